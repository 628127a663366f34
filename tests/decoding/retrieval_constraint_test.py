"""Fetched titles: nothing made up, nothing twice, cached equal to whole passes (RecLM-ret)."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding import retrieval_constraint
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.generate import generate
from recjax.decoding.item_span import SpanSettings
from recjax.decoding.lm_head import plain_head
from recjax.decoding.sampling import Sampling
from recjax.decoding.streaming import stream
from recjax.errors import ConfigError, DataError
from recjax.models import llm, llm_decoder
from recjax.models.llm_decoder import uncached
from tests.long import long

V, SOI, EOI, EOS = 12, 9, 10, 11


def plain(project, states):
  return states[..., :2] if project is None else states @ project


def rule(rows, items, new_tokens=40, project=None, closed=None, least=None, **kw):
  return retrieval_constraint.build_retrieval_constraint(
    rows, np.asarray(items, np.float32), project, plain,
    SpanSettings(SOI, EOI, (EOS,), new_tokens, pad_id=0, **kw), closed, least
  )


def small():
  cfg = llm.Config(vocab=V, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=24, tied=True)
  params = llm.init(cfg, jax.random.key(3))
  params = {**params, 'embed': params['embed'] * 20}
  return llm.LM(cfg), {'params': params}


class FetchTest(parameterized.TestCase):

  def test_r1_the_best_item_then_the_next_then_none_opens(self):
    made = rule([[1], [2], [3]], [[1, 0], [0, 1], [1, 1]], max_items=3)
    state, taken = made.start(1), []
    head = plain_head(jnp.zeros((1, 1, V)).at[..., SOI].set(5.0))._replace(
        state=jnp.asarray([[[1.0, 0.0]]]))
    pick = lambda v, i, c: tuple(  # noqa: E731
        jnp.take_along_axis(x, jnp.argmax(v, -1)[..., None], -1)[..., 0] for x in (i, c, v))
    for _ in range(3):
      for t in range(3):
        token, node, _ = made.candidates(head, state, t, 0, pick)
        state = made.advance(state, token, node)
        if not t:
          taken.append(int(node[0, 0]))
    self.assertEqual(taken, [0, 2, 1])
    self.assertNotEqual(int(made.candidates(head, state, 9, 0, pick)[0][0, 0]), SOI)

  @parameterized.parameters(0.0, 2.0)
  @long
  def test_lists_exist_and_never_repeat_whatever_the_weights(self, temperature):
    model, variables = small()
    rng = np.random.default_rng(0)
    rows = [list(r) for r in {tuple(rng.integers(0, 9, rng.integers(1, 5))) for _ in range(20)}]
    made = rule(rows, rng.normal(size=(len(rows), 5)), project=jnp.asarray(
        rng.normal(size=(16, 5))), max_items=6, least=np.full(4, 4))
    prompts = [rng.integers(0, 9, n).tolist() for n in (1, 5, 9, 3)]
    decoder = llm_decoder.decoder(model)
    eager = decoder._replace(rows=None, window=None, logits=lambda p, s: decoder.logits(
        p, s) + 30 * (jnp.arange(V) == SOI))
    found = generate(eager, variables, prompts, Sampling(2, temperature=temperature), made)
    listed = 0
    for b in range(4):
      for k in range(2):
        items, _ = retrieval_constraint.parse(
          retrieval_constraint.items_by_title(rows), found.row(b, k), SOI, EOI
        )
        self.assertEqual(len(items), len(set(items)))
        listed += len(items)
    self.assertGreater(listed, 16)

  @long
  def test_r4_cached_and_pasted_in_runs_equal_whole_passes(self):
    model, variables = small()
    rng = np.random.default_rng(1)
    rows = [[1, 2, 3], [1, 2], [4, 5, 6, 7], [8]]
    made = rule(rows, rng.normal(size=(4, 5)), project=jnp.asarray(rng.normal(size=(16, 5))),
                max_items=4, least=np.full(2, 3))

    def apply(params, tokens):
      at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
      hidden, _ = model.apply(params, tokens, at, jnp.ones_like(tokens))
      return hidden
    slow = uncached(apply)._replace(logits=lambda p, s: model.apply(p, s, method='logits'))
    prompts = [[1, 4, 2], [5, 3, 3, 7, 0]]
    whole = generate(slow, variables, prompts, Sampling(temperature=0.0), made)
    for width in (0, 8):
      search = Sampling(temperature=0.0, pass_width=width)
      found = generate(llm_decoder.decoder(model), variables, prompts, search, made)
      np.testing.assert_array_equal(found.tokens, whole.tokens)
    found = stream(llm_decoder.decoder(model), variables, prompts, search, made,
                   lambda rows: [True, True])
    np.testing.assert_array_equal(found.tokens, whole.tokens)

  def test_closed_items_and_short_budgets(self):
    made = rule([[1], [2, 3, 4, 5]], [[1, 0], [5, 0]], new_tokens=3,
                closed=np.array([[False, True]]))
    self.assertEqual(int(made._nearest_item(jnp.ones((1, 1, 2)), made.start(1), 0)[0, 0]), 0)
    self.assertFalse(bool(made._may_open(made.start(1), 1)[0, 0]))

  def test_refusals(self):
    model, variables = small()
    with self.assertRaisesRegex(DataError, '2 titles and 1 item vectors'):
      rule([[1], [2]], [[1, 0]])
    with self.assertRaisesRegex(DataError, 'item 1 has no tokens'):
      rule([[1], []], [[1, 0], [0, 1]])
    with self.assertRaisesRegex(ConfigError, 'not with beams'):
      generate(llm_decoder.decoder(model), variables, [[1]], BeamSearch(2), rule([[1]], [[1, 0]]))
    with self.assertRaisesRegex(DataError, 'spell no title'):
      retrieval_constraint.parse(
        retrieval_constraint.items_by_title([[1]]), [SOI, 2, EOI], SOI, EOI
      )


if __name__ == '__main__':
  absltest.main()
