"""Rows without replacement: exact laws of a small tree by plain arithmetic, many draws at once."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding import device_trie
from recjax.decoding import trie as trie_lib
from recjax.decoding.constraints import CatalogConstraint, Normalization, Unconstrained
from recjax.decoding.item_filter import build_item_filter
from recjax.decoding.lm_head import BoundDecoder
from recjax.decoding.stochastic_beam_search import (
  StochasticBeamSearch,
  conditioned,
  inclusion_weights,
  stochastic_beam_search,
)
from recjax.errors import ConfigError

LEAVES = np.array([0.5, 0.3, 0.15, 0.05])  # of a tree whose root has (.8, .2)
DRAWS = 8_000


def tree(denominator='valid', limits=None):
  """Four items of two codes; logits of the root, then of the children of each first code."""
  trie = device_trie.semantic_id_trie(
    jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]]), 2, jnp.array([0, 2]))
  first = jnp.log(jnp.array([0.8, 0.2, 1, 1]))
  after = jnp.log(jnp.array([[1, 1, 0.625, 0.375], [1, 1, 0.75, 0.25]]))
  taken = build_item_filter(trie, taken=limits) if limits else build_item_filter(trie)
  rule = CatalogConstraint(trie, taken, normalization=Normalization(denominator, 2))
  return trie, rule, first, BoundDecoder(lambda tokens, cache, t: (after[tokens % 2], cache))


def draw(rows, count, limits=None):
  """-> items (B, K) from 0, DistinctRows"""
  trie, rule, first, model = tree(limits=limits)
  drawn = jax.jit(lambda key: stochastic_beam_search(
    model, (), jnp.broadcast_to(first, (count, 4)), rule, StochasticBeamSearch(rows, 2), key))(
      jax.random.key(0))
  items = np.asarray(trie.item)[np.asarray(trie.lo)[np.asarray(drawn.state)]]
  return np.where(np.asarray(drawn.complete), items, -1), drawn


@functools.cache
def pairs():
  return draw(2, DRAWS)


def pair_law():
  """P of each set of two, drawn one after the other from LEAVES."""
  return {frozenset((i, j)): LEAVES[i] * LEAVES[j] / (1 - LEAVES[i])
          + LEAVES[j] * LEAVES[i] / (1 - LEAVES[j])
          for i, j in itertools.combinations(range(4), 2)}


class LawTest(absltest.TestCase):

  def test_pairs_have_the_law_of_draws_without_replacement(self):
    items, drawn = pairs()
    self.assertTrue((items[:, 0] != items[:, 1]).all())
    law = pair_law()
    self.assertAlmostEqual(law[frozenset((0, 1))], 0.514286, places=6)
    for pair, p in law.items():
      share = np.mean([set(row) == pair for row in items.tolist()])
      self.assertAlmostEqual(share, p, delta=4 * (p * (1 - p) / DRAWS) ** 0.5)
    for item, p in enumerate(LEAVES):  # the first drawn has the model's own law
      self.assertAlmostEqual((items[:, 0] == item).mean(), p,
                             delta=4 * (p * (1 - p) / DRAWS) ** 0.5)
    np.testing.assert_allclose(drawn.log_probs, np.log(LEAVES)[items], atol=1e-5)
    np.testing.assert_allclose(drawn.token_log_probs.sum(-1), drawn.log_probs, atol=1e-5)

  def test_weights_estimate_means_without_bias(self):
    """E sum w f = sum p f, and E sum w = 1, within four standard errors."""
    items, drawn = pairs()
    weights = np.asarray(inclusion_weights(drawn.log_probs, drawn.threshold))
    f = np.array([0, 1, 0, 0.2])
    for value, truth in ((weights * f[items]).sum(1), 0.31), (weights.sum(1), 1.0):
      self.assertAlmostEqual(value.mean(), truth, delta=4 * value.std() / DRAWS ** 0.5)

  def test_a_gradient_of_drawn_pairs_is_the_exact_one_on_average(self):
    """Reward for item 1: the gradient by the logits of the leaves, p (f - mean)."""
    items, drawn = pairs()
    weights = np.asarray(inclusion_weights(drawn.log_probs, drawn.threshold))
    reward = (items == 1) * weights  # (draws, 2)
    score = np.eye(4)[items] - LEAVES  # of log p by the logits
    estimate = np.einsum('bk,bkc->bc', reward, score)
    np.testing.assert_allclose(estimate.mean(0), [-0.15, 0.21, -0.045, -0.015],
                               atol=4 * estimate.std(0).max() / DRAWS ** 0.5)

  def test_children_get_the_value_of_their_parent(self):
    """Uniform numbers by hand: Gumbels -log(-log u), conditioned on a parent at 0."""
    gumbels = -np.log(-np.log([0.4, 0.7]))
    noisy = jnp.asarray(np.log([0.8, 0.2]) + gumbels)[None, None]
    np.testing.assert_allclose(noisy[0, 0], [-0.135722, -0.578508], atol=1e-6)
    below = conditioned(jnp.zeros((1, 1)), noisy)
    np.testing.assert_allclose(below[0, 0], [0, -0.493483], atol=1e-5)
    for u, logits, parent, wanted in (
        ([0.2, 0.5], [0.5, 0.3], 0.0, [-0.646258, 0]),
        ([0.6, 0.3], [0.15, 0.05], -0.493483, [-0.493483, -3.105123])):
      noisy = jnp.asarray(np.log(logits) - np.log(-np.log(u)))[None, None]
      np.testing.assert_allclose(conditioned(jnp.full((1, 1), parent), noisy)[0, 0], wanted,
                                 atol=2e-5)

  def test_weights_of_a_draw_by_hand(self):
    weights = inclusion_weights(jnp.log(jnp.array([[0.3, 0.5]])), jnp.array([-1.225393]))
    np.testing.assert_allclose(weights, [[0.468750, 0.611383]], atol=2e-6)


class EdgesTest(parameterized.TestCase):

  @parameterized.parameters(4, 6)
  def test_as_many_rows_as_items(self, rows):
    items, drawn = draw(rows, 500)
    found = np.asarray(drawn.complete).sum(1)
    self.assertTrue((found == min(rows, 4)).all())
    # everything is drawn: each row counts by its probability
    self.assertTrue(np.isneginf(drawn.threshold).all())
    weights = np.asarray(inclusion_weights(drawn.log_probs, drawn.threshold))
    np.testing.assert_allclose(weights[:, :4], LEAVES[items[:, :4]], atol=1e-6)
    self.assertTrue((weights[:, 4:] == 0).all())

  def test_taken_items_never_come(self):
    items, drawn = draw(3, 200, limits=[[1]] * 100 + [[2, 3, 4]] * 100)
    self.assertNotIn(0, items[:100])
    self.assertEqual(set(items[100:].ravel().tolist()), {0, -1})
    np.testing.assert_allclose(drawn.log_probs[100:, 0], 0, atol=1e-6)  # certain

  def test_titles_of_different_lengths_end_when_they_end(self):
    """A finished row stays a row, with its noise, while others go on."""
    titles = [[1, 9], [1, 2, 9], [3, 2, 2, 9], [4, 9]]
    trie = device_trie.to_device_trie(trie_lib.build(titles, vocab=10))
    table = jnp.asarray(np.random.default_rng(0).normal(size=(10, 10)))
    rule = CatalogConstraint(trie, normalization=Normalization('valid'))
    drawn = stochastic_beam_search(
      BoundDecoder(lambda tokens, cache, t: (table[tokens], cache)), (),
      jnp.broadcast_to(table[0], (300, 10)), rule, StochasticBeamSearch(4, trie.longest),
      jax.random.key(3))
    rows = [[tuple(np.asarray(drawn.tokens[b, k])[:int(drawn.lengths[b, k])].tolist())
             for k in range(4)] for b in range(300)]
    for row in rows:
      self.assertEqual(set(row), {tuple(title) for title in titles})
    np.testing.assert_allclose(jnp.exp(drawn.log_probs).sum(1), 1, atol=1e-5)
    firsts = {row[0] for row in rows}
    self.assertLen(firsts, 4)
    order = np.asarray(drawn.perturbed)
    self.assertTrue((np.diff(order) <= 0).all())

  def test_nan_is_told(self):
    trie, rule, first, _ = tree()
    model = BoundDecoder(lambda tokens, cache, t: (jnp.full((*tokens.shape, 4), jnp.nan), cache))
    drawn = stochastic_beam_search(model, (), jnp.broadcast_to(first, (2, 4)), rule,
                                   StochasticBeamSearch(2, 2), jax.random.key(0))
    self.assertEqual(drawn.nan_step.tolist(), [1, 1])
    del trie

  def test_requests_draw_what_they_draw_alone(self):
    np.testing.assert_array_equal(pairs()[0][:5], draw(2, 5)[0])

  def test_other_normalizations_are_refused(self):
    _, rule, first, model = tree('level')
    with self.assertRaisesRegex(ConfigError, 'valid'):
      stochastic_beam_search(model, (), first[None], rule, StochasticBeamSearch(2, 2),
                             jax.random.key(0))
    with self.assertRaisesRegex(ConfigError, 'at least 1'):
      StochasticBeamSearch(0)

  def test_a_vocabulary_without_a_catalog(self):
    """Any tokens until an end: two steps of three words, all nine rows and their probabilities."""
    table = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))
    drawn = stochastic_beam_search(
      BoundDecoder(lambda tokens, cache, t: (table[tokens], cache)), (), table[:1],
      Unconstrained(), StochasticBeamSearch(8, 2), jax.random.key(0))
    p = np.asarray(jax.nn.softmax(table))
    for k in range(8):
      a, b = drawn.tokens[0, k].tolist()
      self.assertAlmostEqual(float(jnp.exp(drawn.log_probs[0, k])), p[0, a] * p[a, b], places=5)
    self.assertLen({tuple(row) for row in drawn.tokens[0].tolist()}, 8)


if __name__ == '__main__':
  absltest.main()
