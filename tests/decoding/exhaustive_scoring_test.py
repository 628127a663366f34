"""Every title's log-probability: against one at a time, and as beam search's judge."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from recjax.decoding import constraints, device_trie, exhaustive_scoring, trie
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.generate import generate
from recjax.models import llm, llm_decoder
from tests.long import long

V, END = 30, 29

SHAPE = llm.Config(vocab=V, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, tied=True)


@functools.cache
def model():
  params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, llm.init(SHAPE, jax.random.key(0)))
  return llm.LM(SHAPE), {'params': params}


def catalog(seed, count=20):
  rng = np.random.default_rng(seed)
  rows = [rng.integers(0, 5, rng.integers(1, 6)).tolist() for _ in range(count)]
  rows += [rows[0] + [3], rows[1]]  # a title that another begins, and one twice
  return trie.build(rows, END, V)


def one_at_a_time(prompt, tree):
  """Each title after a prompt, run whole. -> (N,)"""
  lm, variables = model()
  out = []
  for item in range(len(tree)):
    row = tree.row(item)
    ids = jnp.asarray([*prompt, *row])[None]
    hidden, _ = lm.apply(variables, ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids))
    logp = jax.nn.log_softmax(lm.apply(variables, hidden, method='logits'))[0]
    at = np.arange(len(prompt) - 1, len(prompt) + len(row) - 1)
    out.append(float(logp[at, row].sum()))
  return np.array(out)


class ExactTest(absltest.TestCase):

  @long
  def test_every_title_as_if_it_were_run_alone(self):
    lm, variables = model()
    decoder, prompts = llm_decoder.decoder(lm), [[4, 7, 1], [9]]
    tokens, lengths = np.array([[4, 7, 1], [9, 0, 0]], np.int32), np.array([3, 1], np.int32)
    for seed, width in ((0, 4), (1, 16), (2, 256)):
      tree = catalog(seed)
      found = exhaustive_scoring.title_scores(
        decoder, variables, tokens, lengths, exhaustive_scoring.layout(tree, width), len(tree)
      )
      for b, prompt in enumerate(prompts):
        np.testing.assert_allclose(found[b], one_at_a_time(prompt, tree), rtol=1e-4, atol=1e-4)

  @long
  def test_a_wide_beam_finds_all_titles_in_exact_order_d5(self):
    lm, variables = model()
    decoder, tree = llm_decoder.decoder(lm), catalog(5)
    planted, prompt = device_trie.to_device_trie(tree), [3, 8]
    scores = np.asarray(exhaustive_scoring.title_scores(
        decoder, variables, np.array([prompt], np.int32), np.array([2], np.int32),
        exhaustive_scoring.layout(tree), len(tree)))[0]
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(len(tree))).astype(np.float32)
    titles = {}
    for item in range(len(tree)):  # equal titles are one leaf, whose mass is theirs together
      titles.setdefault(tuple(tree.row(item)), []).append(item)
    for alpha in (1.0, 0.6, 0.0):
      mix = constraints.score_mixing(planted, jnp.asarray(share)[None], alpha)
      found = generate(
        decoder,
        variables,
        [prompt],
        BeamSearch(len(titles), length_penalty=0.0),
        constraints.CatalogConstraint(planted, mixing=mix),
      )
      want = {
        tuple(some): alpha * scores[some[0]] + (1 - alpha) * np.log(share[some].sum())
        for some in titles.values()
      }
      order = sorted(want, key=want.get, reverse=True)
      got = found.items(tree)[0]
      self.assertTrue(all(
          item - 1 in members for (item, _), members in zip(got, order, strict=True)))
      np.testing.assert_allclose([s for _, s in got], [want[m] for m in order], rtol=1e-3,
                                 atol=1e-3)

  def test_mass_of_the_whole_tree_is_below_one_and_prefix_titles_share_d4(self):
    lm, variables = model()
    tree = trie.build([[1], [1, 2], [1, 2, 3], [4]], END, V)
    found = np.exp(np.asarray(exhaustive_scoring.title_scores(
        llm_decoder.decoder(lm), variables, np.array([[6]], np.int32), np.array([1], np.int32),
        exhaustive_scoring.layout(tree), 4)))[0]
    self.assertLess(found.sum(), 1)
    self.assertTrue((found > 0).all())

  @long
  def test_the_assistant_changes_no_bit_at_full_weight_of_the_model(self):
    lm, variables = model()
    decoder, tree = llm_decoder.decoder(lm), catalog(7)
    planted = device_trie.to_device_trie(tree)
    rng = np.random.default_rng(1)
    search = BeamSearch(6, length_penalty=0.0)
    plain = generate(decoder, variables, [[3, 8]], search, constraints.CatalogConstraint(planted))
    for scale in (0.1, 30.0):
      share = jax.nn.softmax(jnp.asarray(rng.normal(size=(1, len(tree))) * scale))
      mixed = generate(decoder, variables, [[3, 8]], search, constraints.CatalogConstraint(
          planted, mixing=constraints.score_mixing(planted, share, 1.0)))
      np.testing.assert_array_equal(plain.scores, mixed.scores)
      np.testing.assert_array_equal(plain.tokens, mixed.tokens)


if __name__ == '__main__':
  absltest.main()
