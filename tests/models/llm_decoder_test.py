"""Prefill and steps against the whole row run at once, and searches over a real model."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from recjax.decoding.constraints import Unconstrained
from recjax.decoding.diverse_beam_search import DiverseBeamSearch, diverse_beam_search
from recjax.decoding.lm_head import BoundDecoder
from recjax.models import attention, llm, llm_decoder
from tests.long import long
from tests.reference import group_search as judge

CFG = llm.Config(vocab=40, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)

MODEL = llm.LM(CFG)

# Wide weights: at the usual 0.02 all logits are nearly equal and searches would test nothing.
VARIABLES = {'params': jax.tree.map(lambda x: x * 15 if x.ndim > 2 else x,
                                    llm.init(CFG, jax.random.key(0)))}


@jax.jit
def whole(tokens):
  """Logits after every token of one row without any cache. tokens: (S,) -> (S, V)"""
  order = jnp.arange(len(tokens))[None]
  hidden, _ = MODEL.apply(VARIABLES, tokens[None], order, jnp.ones_like(order))
  return MODEL.apply(VARIABLES, hidden, method='logits')[0] * 20


def after(prompt, tokens, longest=16):
  row = [*prompt, *tokens]
  padded = jnp.asarray(row + [0] * (longest - len(row)))  # one shape; later tokens are not seen
  return np.asarray(whole(padded)[len(row) - 1])


class DecodeTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.shared = rng.integers(1, 40, 3)
    self.prompts = rng.integers(1, 40, (2, 5))
    self.lengths = np.array([5, 2])

  def whole_prompts(self):
    return [[*self.shared, *p[:n]] for p, n in zip(self.prompts, self.lengths)]

  def prepared(self):
    row = self.shared[None], jnp.arange(3)[None], jnp.ones((1, 3), int)
    _, (k, v) = MODEL.apply(VARIABLES, *row)
    shared = attention.kv_block(k[:, 0], v[:, 0], jnp.ones(3, bool))
    first, own = llm_decoder.prefill(MODEL, VARIABLES, jnp.asarray(self.prompts),
                                jnp.asarray(self.lengths), (shared,))
    return first * 20, (shared, own)

  def search(self, cfg, ends):
    first, past = self.prepared()
    step, cache = llm_decoder.make_step(MODEL, VARIABLES, past, 2, cfg.beams, cfg.new_tokens)

    def sharp(tokens, cache, t):
      logits, cache = step(tokens, cache, t)
      return logits * 20, cache
    sharp = BoundDecoder(sharp, reorder=llm_decoder.reorder_suffix)
    return jax.jit(lambda c: diverse_beam_search(sharp, c, first, Unconstrained(ends), cfg))(cache)

  def test_prefill_after_a_shared_prefix_equals_the_whole_prompt(self):
    first, _ = self.prepared()
    for b, prompt in enumerate(self.whole_prompts()):
      # float32 sums in another order
      np.testing.assert_allclose(first[b], after(prompt, []), atol=1e-4)

  def test_steps_equal_whole_rows_for_every_beam(self):
    _, past = self.prepared()
    step, cache = llm_decoder.make_step(MODEL, VARIABLES, past, 2, 3, 4)
    rows = np.random.default_rng(1).integers(1, 40, (2, 3, 3))
    for t in range(3):
      logits, cache = jax.jit(step)(jnp.asarray(rows[:, :, t]), cache, jnp.int32(t))
      for b, prompt in enumerate(self.whole_prompts()):
        for i in range(3):
          np.testing.assert_allclose(logits[b, i] * 20, after(prompt, rows[b, i, :t + 1]),
                                     atol=1e-4)

  def test_the_prompt_is_held_once_however_many_beams(self):
    _, (_, own) = self.prepared()
    self.assertEqual(own.k.shape, (2, 2, 2, 5, 8))

  @long
  def test_group_search_over_the_model_equals_the_judge(self):
    for beams, groups, ends in ((4, 4, ()), (4, 2, (7, 9)), (6, 2, (7,))):
      found = self.search(DiverseBeamSearch(beams, groups, 1.0, 5, pad_id=1), ends)
      for b, prompt in enumerate(self.whole_prompts()):
        rows = judge.group_search(after(prompt, []), lambda t, p=prompt: after(p, t), beams, groups,
                                  1.0, 5, 0, ends, 1)
        got = [tuple(r[:n]) for r, n in zip(np.asarray(found.tokens[b]).tolist(),
                                            found.lengths[b].tolist())]
        self.assertEqual(got, [t for _, t, _ in rows])
        np.testing.assert_allclose(found.scores[b], [v for v, *_ in rows], atol=1e-3)


if __name__ == '__main__':
  absltest.main()
