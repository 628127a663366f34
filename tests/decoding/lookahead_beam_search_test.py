"""Runs through the model together: the rows of the plain search, in fewer passes."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding import device_trie, item_filter, trie
from recjax.decoding.beam_search import BeamSearch, beam_search
from recjax.decoding.constraints import LIVE, CatalogConstraint, Normalization
from recjax.decoding.lm_head import bind, cache_lengths
from recjax.decoding.lookahead_beam_search import (
  LookaheadBeamSearch,
  forced_run,
  lookahead_beam_search,
)
from recjax.errors import ConfigError
from recjax.models import llm, llm_decoder
from tests.long import long, long_but

V, END = 60, 59

CFG = llm.Config(vocab=V, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)

DECODER = llm_decoder.decoder(llm.LM(CFG))

# Wide weights: at the usual 0.02 all logits are nearly equal and searches would test nothing.
PARAMS = {'params': jax.tree.map(lambda x: x * 15 if x.ndim > 2 else x,
                                 llm.init(CFG, jax.random.key(0)))}

PROMPTS = np.random.default_rng(9).integers(0, END, (3, 8)).astype(np.int32)

LENGTHS = np.array([8, 3, 5], np.int32)


@functools.partial(jax.jit, static_argnames='cfg')
def plain(titles, cfg):
  first, cache = DECODER.start(PARAMS, PROMPTS, LENGTHS, cfg.beams,
                               cache_lengths(cfg.new_tokens)[0])
  return beam_search(bind(DECODER, PARAMS), cache, first, titles, cfg)


@functools.partial(jax.jit, static_argnames='cfg')
def tree(titles, cfg):
  first, cache = DECODER.start(PARAMS, PROMPTS, LENGTHS, 1, cfg.slots + 1)
  return lookahead_beam_search(bind(DECODER, PARAMS), cache, first, titles, cfg)


def catalog(seed, count, alphabet=8, stem=4):
  """Titles of which every other one has a common beginning."""
  rng = np.random.default_rng(seed)
  start = rng.integers(0, alphabet, stem).tolist()
  rows = [rng.integers(0, alphabet, rng.integers(1, 14)).tolist() for _ in range(count)]
  return [start + r if i % 2 else r for i, r in enumerate(rows)]


class TreeSearchTest(parameterized.TestCase):

  @parameterized.product(normalize=('vocab', 'valid'), lookahead=(0, 12), count=(1, 30, 90),
                         seed=(0, 1))
  @long_but(20)
  def test_rows_are_those_of_the_plain_search_in_fewer_passes(self, normalize, lookahead, count,
                                                               seed):
    built = trie.build(catalog(seed, count), end=END, vocab=V)
    titles = CatalogConstraint(
      device_trie.to_device_trie(built), normalization=Normalization(normalize)
    )
    want = plain(titles, BeamSearch(5, 24, 0.0))
    got = tree(titles, LookaheadBeamSearch(5, 24, 0.0, pass_widths=(4, 16), lookahead=lookahead))
    exists = np.asarray(want.exists)
    np.testing.assert_array_equal(np.asarray(got.finished.value) > LIVE, exists)
    np.testing.assert_array_equal(np.where(exists, got.finished.node, 0),
                                  np.where(exists, want.rows.state, 0))
    np.testing.assert_array_equal(np.where(exists, got.finished.length, 0),
                                  np.where(exists, want.rows.lengths, 0))
    np.testing.assert_allclose(np.where(exists, got.finished.value, 0),  # sums of up to 18 logits
                               np.where(exists, want.rows.scores, 0), atol=5e-4)
    self.assertLess(int(got.passes.max()), max(2, int(want.steps)))

  @parameterized.parameters(False, True, 'never')
  @long
  def test_length_penalty_and_stopping_are_those_of_the_plain_search(self, early):
    titles = CatalogConstraint(
      device_trie.to_device_trie(trie.build(catalog(7, 60), end=END, vocab=V))
    )
    want = plain(titles, BeamSearch(4, 24, 1.0, early))
    got = tree(titles, LookaheadBeamSearch(4, 24, 1.0, early, (8,)))
    np.testing.assert_array_equal(got.finished.node, want.rows.state)
    np.testing.assert_allclose(got.finished.value, want.rows.scores, atol=5e-4)

  @long
  def test_a_title_alone_from_its_first_token_needs_no_pass(self):
    rows = [[i, *range(10, 20)] for i in range(5)]
    titles = CatalogConstraint(
      device_trie.to_device_trie(trie.build(rows, end=END, vocab=V)),
      normalization=Normalization('valid'),
    )
    got = tree(titles, LookaheadBeamSearch(5, 16, 0.0, pass_widths=(4,)))
    self.assertEqual(got.passes.tolist(), [0, 0, 0])
    self.assertEqual(int(got.tokens_fed), 0)
    vocab = CatalogConstraint(device_trie.to_device_trie(trie.build(rows, end=END, vocab=V)))
    self.assertEqual(
      tree(vocab, LookaheadBeamSearch(5, 16, 0.0, pass_widths=(64,))).passes.tolist(), [1, 1, 1]
    )

  @parameterized.parameters(('vocab', 16), ('valid', 32))
  @long
  def test_look_ahead_leaves_fewer_passes(self, normalize, lookahead):
    titles = CatalogConstraint(
      device_trie.to_device_trie(trie.build(catalog(0, 90), end=END, vocab=V)),
      normalization=Normalization(normalize),
    )
    off, on = (
      tree(titles, LookaheadBeamSearch(5, 24, 0.0, pass_widths=(16,), lookahead=n))
      for n in (0, lookahead)
    )
    self.assertLess(int(on.passes.sum()), int(off.passes.sum()))
    np.testing.assert_array_equal(on.finished.node, off.finished.node)

  @parameterized.parameters('vocab', 'valid')
  @long
  def test_a_pool_without_room_forgets_what_is_ahead_and_nothing_else(self, normalize):
    class Tight(LookaheadBeamSearch):
      slots = property(lambda self: self.beams * self.new_tokens + self.compiled_widths[-1] + 1)

    titles = CatalogConstraint(
      device_trie.to_device_trie(trie.build(catalog(5, 90), end=END, vocab=V)),
      normalization=Normalization(normalize),
    )
    want = plain(titles, BeamSearch(2, 20, 0.0))
    got = tree(titles, Tight(2, 20, 0.0, pass_widths=(4,), lookahead=40))
    np.testing.assert_array_equal(got.finished.node, want.rows.state)
    np.testing.assert_allclose(got.finished.value, want.rows.scores, atol=5e-4)

  @long
  def test_look_ahead_under_limits_and_several_catalogs(self):
    tries = [trie.build(catalog(s, 40), end=END, vocab=V) for s in (1, 2)]
    titles = CatalogConstraint(device_trie.to_device_trie(tries), catalog=jnp.array([1, 0, 1]))
    want = plain(titles, BeamSearch(4, 24, 0.0))
    got = tree(titles, LookaheadBeamSearch(4, 24, 0.0, lookahead=32))
    np.testing.assert_array_equal(got.finished.node, want.rows.state)
    limits = item_filter.build_item_filter(
      tries[0], allowed=[[2, 6, 9, 21, 22, 34]] * 3, taken=[[2], [6, 9], []]
    )
    titles = CatalogConstraint(device_trie.to_device_trie(tries[0]), limits)
    want = plain(titles, BeamSearch(8, 24, 0.0))
    got = tree(titles, LookaheadBeamSearch(8, 24, 0.0, lookahead=32))
    exists = np.asarray(want.exists)
    np.testing.assert_array_equal(np.where(exists, got.finished.node, 0),
                                  np.where(exists, want.rows.state, 0))

  def test_limits_hold(self):
    rows = catalog(3, 40)
    built = trie.build(rows, end=END, vocab=V)
    keep = [2, 6, 9, 21, 22, 34]
    limits = item_filter.build_item_filter(built, allowed=[keep] * 3, taken=[[2], [6, 9], []])
    got = tree(
      CatalogConstraint(
        device_trie.to_device_trie(built), limits, normalization=Normalization('valid')
      ),
      LookaheadBeamSearch(8, 24, 0.0, pass_widths=(8,)),
    )
    for b, taken in enumerate(([2], [6, 9], [])):
      found = {int(built.item[built.lo[n]]) + 1 for n, v in zip(
          got.finished.node[b].tolist(), got.finished.value[b].tolist()) if v > LIVE}
      self.assertEqual(found, set(keep) - set(taken))

  def test_runs_are_as_long_as_by_hand(self):
    built = trie.build([[1, 2, 3, 4], [1, 2, 3, 5], [6, 7, 8]], end=END, vocab=V)
    planted = device_trie.to_device_trie(built)

    def run(prefix):
      node = jnp.full((1, 1), built.walk(prefix))
      return int(forced_run(planted, node, jnp.full((1, 1), len(prefix)), 24)[0][0, 0])
    self.assertEqual(run([1]), 2)        # 2 and 3 are forced, then it forks
    self.assertEqual(run([1, 2]), 1)
    self.assertEqual(run([1, 2, 3]), 0)
    self.assertEqual(run([1, 2, 3, 4]), 0)  # the end alone needs no pass
    self.assertEqual(run([6]), 2)        # 7 and 8, not the end

  def test_settings_that_mislead_are_refused(self):
    titles = CatalogConstraint(
      device_trie.to_device_trie(trie.build([[1]], end=END, vocab=V)),
      normalization=Normalization('valid'),
    )
    with self.assertRaisesRegex(ConfigError, 'length_penalty'):
      tree(titles, LookaheadBeamSearch(2, 4, 1.0))
    with self.assertRaisesRegex(ConfigError, 'Normalization'):
      tree(CatalogConstraint(titles.trie, normalization=Normalization('level', 4)),
           LookaheadBeamSearch(2, 4))
    with self.assertRaises(ConfigError):
      LookaheadBeamSearch(2, 4, 0.0, pass_widths=())
    with self.assertRaises(ConfigError):
      LookaheadBeamSearch(2, 4, 0.0, lookahead=-1)


if __name__ == '__main__':
  absltest.main()
