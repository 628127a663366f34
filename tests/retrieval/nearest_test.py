"""Grounding: oracles B3 to B5, distances against float64, curves against sorting, invariants."""
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.retrieval import nearest


def ranks_by_sorting(distance, weight, gamma):
  """The published way: score everything, sort twice. -> (N,) ranks"""
  score = distance * (1 + weight) ** -gamma
  return np.argsort(np.argsort(score, kind='stable'), kind='stable')


class GroundingTest(parameterized.TestCase):

  def test_distances_b3(self):
    items = nearest.center([[0, 0], [3, 4], [6, 8], [0, 2]])
    found = nearest.distances(items, jnp.array([[0.0, 1.0]]))
    np.testing.assert_allclose(found[0], [1, 4.242641, 9.219544, 1], rtol=1e-5)
    np.testing.assert_allclose(nearest.min_max_normalize(found)[0], [0, .394504, 1, 0], atol=1e-5)
    near, order = nearest.nearest(items, jnp.array([[0.0, 1.0]]), 4)
    self.assertEqual(order[0].tolist(), [0, 3, 1, 2])
    np.testing.assert_allclose(near[0], [1, 1, 4.242641, 9.219544], rtol=1e-5)

  @parameterized.named_parameters(
      ('spread', lambda rng: rng.normal(size=(3000, 64)), True),
      ('copies', lambda rng: np.repeat(rng.normal(size=(40, 64)), 60, 0), False),
      ('alike', lambda rng: 1 + 1e-3 * rng.normal(size=(3000, 64)), True),
      ('tied', lambda rng: np.concatenate([rng.normal(size=(1500, 64))] * 2), True),
      ('close', lambda rng: rng.normal(size=(3000, 2)) @ rng.normal(size=(2, 64)), False))
  def test_two_looks_find_what_one_finds(self, make, sure):
    rng = np.random.default_rng(0)
    plain = nearest.center(make(rng))
    self.assertIs(nearest.with_rounded(plain), plain)  # few items go as they are
    coarse = plain._replace(rounded=nearest.round_vectors(plain.items))
    queries = plain.mean + plain.items[::300] * 1.1
    want, got = (nearest.nearest(x, queries, 5) for x in (plain, coarse))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-4)
    # sums of equal vectors may round differently by place, so which copy comes is not compared
    np.testing.assert_array_equal(plain.items[got[1]], plain.items[want[1]])
    told = nearest._nearest_of_candidates(coarse, coarse.rounded, queries - plain.mean, 5)
    self.assertEqual(bool(told[2].all()), sure)
    np.testing.assert_array_equal(plain.items[told[1][told[2]]], plain.items[want[1][told[2]]])
    most = len(plain.items)  # no candidates are left over
    every = [nearest.nearest(x, queries, most)[1] for x in (plain, coarse)]
    np.testing.assert_array_equal(*every)

  def test_equal_distances_come_by_index(self):
    rng = np.random.default_rng(0)
    half = rng.integers(-3, 4, (700, 64))
    rows = np.concatenate([half, -half] * 2)  # whole numbers around 0: every sum is exact
    plain = nearest.center(rows)
    coarse = plain._replace(rounded=nearest.round_vectors(plain.items))
    squared = ((rows[None] - rows[::300, None]) ** 2).sum(-1)
    for items in (plain, coarse):
      found = nearest.nearest(items, plain.items[::300], 5)[1]
      np.testing.assert_array_equal(found, np.argsort(squared, 1, kind='stable')[:, :5])

  @parameterized.parameters((0, [0, 1, 2, 3, 4]), (0.5, [0, 1, 2, 3, 4]), (1, [0, 2, 1, 3, 4]),
                            (2, [0, 3, 1, 2, 4]))
  def test_injection_b4(self, gamma, want):
    near = nearest.min_max_normalize(jnp.array([[2.0, 4, 5, 8, 10]]))
    weight = jnp.array([0.0, 0, 1, 1, .5])
    np.testing.assert_allclose(near[0], [0, .25, .375, .75, 1])
    ranks = [int(nearest.rank_curve(near, weight, jnp.array([t]), jnp.array([gamma], jnp.float32),
                                      ties='index')[0, 0]) for t in range(5)]
    self.assertEqual(ranks, want)

  def test_crossings_b4(self):
    near = nearest.min_max_normalize(jnp.array([[2.0, 4, 5, 8, 10]]))
    weight = jnp.array([0.0, 0, 1, 1, .5])
    grid = jnp.array([.5849, .5851, 1.5849, 1.5851], jnp.float32)
    item1 = nearest.rank_curve(near, weight, jnp.array([1]), grid)[:, 0]
    self.assertEqual(item1.tolist(), [1, 2, 2, 3])

  def test_popularity_b5(self):
    np.testing.assert_allclose(nearest.popularity([6, 3, 0, 1]), [1, .5, 0, 1 / 6], rtol=1e-6)
    self.assertEqual(nearest.popularity([0, 0]).tolist(), [0, 0])

  def test_equal_distances_and_constant_weights_are_no_division_by_zero(self):
    near = nearest.min_max_normalize(jnp.full((1, 3), 7.0))
    self.assertEqual(near.tolist(), [[0, 0, 0]])
    ranks = nearest.rank_curve(near, jnp.zeros(3), jnp.array([1]), jnp.array([0.0, 5.0]))
    self.assertEqual(ranks.tolist(), [[2], [2]])  # ties count against the target

  @settings(max_examples=60, deadline=None)
  @given(st.integers(0, 10**6))
  def test_curves_are_those_of_the_published_double_sort(self, seed):
    rng = np.random.default_rng(seed)
    near = np.asarray(nearest.min_max_normalize(rng.random((4, 37)).astype(np.float32)))
    weight = rng.random(37).astype(np.float32)
    grid, targets = np.array([0, .3, 1, 7], np.float32), rng.integers(0, 37, 4)
    found = nearest.rank_curve(jnp.asarray(near), jnp.asarray(weight), jnp.asarray(targets),
                                 jnp.asarray(grid), ties='index')
    for g, row in zip(grid, np.asarray(found)):
      for b in range(4):
        want = ranks_by_sorting(near[b].astype(np.float64), weight, g)
        self.assertEqual(row[b], want[targets[b]])

  @settings(max_examples=30, deadline=None)
  @given(st.integers(0, 10**6))
  def test_invariants(self, seed):
    rng = np.random.default_rng(seed)
    items, queries = rng.normal(size=(25, 6)), rng.normal(size=(3, 6))
    shift = rng.normal(size=6) * 50
    one = nearest.distances(nearest.center(items), jnp.asarray(queries, jnp.float32))
    two = nearest.distances(nearest.center(items + shift),
                              jnp.asarray(queries + shift, jnp.float32))
    exact = np.sqrt(((items - queries[:, None]) ** 2).sum(-1))
    np.testing.assert_allclose(one, exact, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(two, exact, rtol=1e-4, atol=2e-4)
    near = nearest.min_max_normalize(one)
    first = np.asarray(near).argmin(1)
    grid = jnp.array([0, 1, 50], jnp.float32)
    weight = jnp.asarray(rng.random((3, 25)), jnp.float32)
    ranks = nearest.rank_curve(near, weight, jnp.asarray(first), grid)
    self.assertTrue((np.asarray(ranks) == 0).all())  # the nearest item stays first for every gamma
    order = rng.permutation(25)
    targets = rng.integers(0, 25, 3)
    there = np.argsort(order)[targets]
    np.testing.assert_array_equal(
        nearest.rank_curve(near, weight, jnp.asarray(targets), grid),
        nearest.rank_curve(near[:, order], weight[:, order], jnp.asarray(there), grid))

  def test_a_target_is_never_ahead_of_itself(self):
    """Where a compiler reckons its value twice, once with a fused multiply-add."""
    rng = np.random.default_rng(0)
    far, counts = rng.random((9, 40)), rng.integers(0, 30, 40)
    near, weight = (np.asarray(nearest.min_max_normalize(x), np.float64) for x in (far, counts))
    value = near * (1 + weight) ** -3
    for target in range(40):
      found = nearest.rank_curve(
        jnp.asarray(near, jnp.float32), jnp.asarray(weight, jnp.float32), jnp.full(9, target),
        jnp.array([3.0]))[0]
      np.testing.assert_array_equal(found, (value < value[:, [target]]).sum(1))

  def test_seen_items_are_out_but_a_target_never_is(self):
    near = jnp.array([[0.0, .2, .4, 1.0]])
    seen = jnp.array([[True, False, True, False]])
    rank = lambda t: int(nearest.rank_curve(near, jnp.zeros(4), jnp.array([t]),  # noqa: E731
                                              jnp.zeros(1), seen)[0, 0])
    self.assertEqual([rank(1), rank(3), rank(2)], [0, 1, 1])

  def test_the_smallest_of_equal_gammas_is_taken(self):
    self.assertEqual(nearest.best_gamma([.1, .3, .3], [0, .5, 1]), (.5, 1))


if __name__ == '__main__':
  absltest.main()
