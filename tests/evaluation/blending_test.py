"""Blends against plain NumPy: scales, ranks of rules, the memorization indicator, the search."""
import itertools

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.data.splits import Cases
from recjax.errors import DataError
from recjax.evaluation import blending, ranking

N = 30


def min_max(scores, listed):
  """What MemGen-GR does to a list: 0..1 inside it, 0 outside, 1 where all are equal."""
  out = np.zeros(len(scores))
  low, high = scores[listed].min(), scores[listed].max()
  out[listed] = (scores[listed] - low) / (high - low) if high > low else 1.0
  return out


def cases(count=40, seed=0):
  rng = np.random.default_rng(seed)
  rows = [rng.permutation(N)[:n] + 1 for n in rng.integers(1, 9, count)]
  offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
  targets = np.array([rng.choice(np.setdiff1d(np.arange(1, N + 1), r)) for r in rows], np.int32)
  return Cases(np.arange(count, dtype=np.int32), (np.concatenate(rows).astype(np.int32), offsets),
               targets)


def table(seed, levels=0):
  """A score function: a row of a table for the last item. levels: how many values there are."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(N + 1, N)) if not levels else rng.integers(0, levels, (N + 1, N))
  values = values.astype(np.float32)
  return values, lambda items, offsets: values[np.asarray(items)[np.asarray(offsets)[1:] - 1]]


def plain_ranks(of_user, asked):
  """Ranks, ties against the target, items of the history out."""
  out = []
  for row in range(len(asked)):
    history, target = asked.history(row), asked.targets[row]
    scores = of_user(row)
    rivals = [i for i in range(1, N + 1) if i not in history and i != target]
    out.append(sum(scores[i - 1] >= scores[target - 1] for i in rivals))
  return out


class ScaleTest(parameterized.TestCase):

  @parameterized.parameters(0, 5, 12, N, N + 7)
  def test_a_range_is_that_of_unseen_items(self, top):
    asked, (values, score) = cases(), table(1)
    items, offsets = asked.histories
    seen = blending.seen_items(items, offsets, N)
    found = np.asarray(blending.comparable(score(items, offsets), seen, top))
    for row in range(len(asked)):
      mine, open_ = values[asked.history(row)[-1]], ~np.isin(np.arange(1, N + 1),
                                                             asked.history(row))
      best = np.argsort(-np.where(open_, mine, -np.inf))[:min(top or N, open_.sum())]
      want = min_max(mine, best)
      np.testing.assert_allclose(found[row][open_], want[open_], atol=1e-6)

  def test_lists_that_end_early_and_equal_scores(self):
    scores = blending.whole(np.array([[3, 1, 2], [2, 0, 0], [4, 2, 0]]),
                            np.array([[5., 4, 1], [7, 0, 0], [2, 2, 0]]), 4)
    np.testing.assert_array_equal(scores[1], [-np.inf, 7, -np.inf, -np.inf])
    found = blending.comparable(scores, np.zeros((3, 4), bool))
    np.testing.assert_allclose(found, [[.75, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 1]])

  def test_a_history_that_holds_everything_and_nan(self):
    found = blending.comparable(jnp.ones((1, 3)), np.ones((1, 3), bool))
    self.assertFalse(np.isnan(found).any())
    found = blending.comparable(jnp.array([[1., np.nan, 2]]), np.zeros((1, 3), bool))
    self.assertTrue(np.isnan(found).any())


class IndicatorTest(parameterized.TestCase):

  @parameterized.parameters((.6, .937027), (.1, .141851))
  def test_the_published_formula(self, probability, want):
    self.assertAlmostEqual(float(blending.indicator(np.array([probability]), 9, .3)[0]), want, 6)
    self.assertAlmostEqual(1 / (1 + np.exp(-9 * (probability - .3))), want, 6)

  def test_the_largest_probability_is_of_the_whole_catalog(self):
    logits = np.random.default_rng(0).normal(size=(5, N)) * 3
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(blending.largest_probability(logits), softmax.max(1), rtol=1e-5)

  def test_the_grid_is_that_of_the_paper(self):
    rules = blending.indicators(1)
    self.assertEqual({(r.steepness, r.threshold) for r in rules}, set(itertools.product(
        (1, 5, 9, 13), (0, .1, .2, .3, .4, .5))))
    self.assertEqual({r.id_part for r in rules}, {1})


class RankTest(parameterized.TestCase):

  @parameterized.product(levels=(0, 3), top=(0, 8))
  def test_ranks_are_those_of_plain_sums(self, levels, top):
    asked, (a, first), (b, second) = cases(), table(1, levels), table(2, levels)
    # steps of 1/8, whose sums float32 holds exactly, so that what ties in NumPy ties here
    rules = [*blending.alone(2), *blending.simplex(2, 8), *blending.indicators(0)[::5],
             *blending.indicators(1)[::7]]
    found = blending.ranks_of([first, second], rules, asked, N, top)

    def scaled(values, row):
      mine = values[asked.history(row)[-1]].astype(np.float64)
      open_ = ~np.isin(np.arange(1, N + 1), asked.history(row))
      if not top:
        return min_max(mine, open_)
      worst = np.sort(mine[open_])[::-1][min(top, open_.sum()) - 1]  # all that equal the last one
      return min_max(mine, open_ & (mine >= worst))
    for rule, ranks in zip(rules, found):
      def of_user(row, rule=rule):
        weights = rule.weights
        if not weights:
          logits = (a, b)[rule.id_part][asked.history(row)[-1]].astype(np.float64)
          msp = np.exp(logits.max()) / np.exp(logits).sum()
          weight = 1 / (1 + np.exp(-rule.steepness * (msp - rule.threshold)))
          weights = (weight, 1 - weight) if rule.id_part == 0 else (1 - weight, weight)
        if rule.alone is not None:
          return (a, b)[rule.alone][asked.history(row)[-1]]
        return weights[0] * scaled(a, row) + weights[1] * scaled(b, row)
      np.testing.assert_array_equal(ranks, plain_ranks(of_user, asked), str(rule))

  def test_all_weight_on_one_part_gives_its_ranks_to_the_bit(self):
    asked = cases(200)
    close = (np.random.default_rng(3).normal(size=(N + 1, N)) * 1e-6 + 5).astype(np.float32)
    first = lambda items, offsets: close[np.asarray(items)[np.asarray(offsets)[1:] - 1]]  # noqa: E731
    rule = blending.Rule((1.0, 0.0))
    want = ranking.rank_cases(first, asked, N)
    score = blending.score_function([first, None], rule, N)
    np.testing.assert_array_equal(ranking.rank_cases(score, asked, N), want)
    np.testing.assert_array_equal(
        blending.ranks_of([first, table(2)[1]], [rule], asked, N)[0], want)

  def test_one_pass_of_many_rules_ranks_as_the_score_function_of_each(self):
    asked, parts = cases(), [table(1)[1], table(2)[1], table(4)[1]]
    rules = blending.simplex(3)[::9]
    for mask in (True, False):
      found = blending.ranks_of(parts, rules, asked, N, 0, mask)
      for rule, ranks in zip(rules, found):
        score = blending.score_function(parts, rule, N, 0, mask)
        np.testing.assert_array_equal(
            ranks, ranking.rank_cases(score, asked, N, mask_history=mask))

  def test_nan_of_a_part_is_an_error(self):
    broken = lambda items, offsets: np.full((len(offsets) - 1, N), np.nan, np.float32)  # noqa: E731
    with self.assertRaisesRegex(DataError, 'NaN'):
      blending.ranks_of([table(1)[1], broken], blending.simplex(2), cases(), N)


class SearchTest(parameterized.TestCase):

  @parameterized.parameters((2, 9), (3, 63), (4, 282))
  def test_the_simplex_holds_every_mix_once(self, parts, count):
    rules = blending.simplex(parts)
    self.assertLen({r.weights for r in rules}, count)
    self.assertLen(rules, count)
    for rule in rules:
      self.assertAlmostEqual(sum(rule.weights), 1)
      self.assertIsNone(rule.alone)

  @parameterized.parameters(2, 3, 5, 6)
  def test_the_best_is_found(self, parts):
    goal = np.zeros(parts)
    goal[[0, -1]] = .7, .3

    def judge(rules):
      return [-float(np.abs(np.array(r.weights) - goal).sum()) for r in rules]
    (best, figure), *rest = blending.search(parts, judge)
    self.assertGreater(figure, -.15)
    self.assertTrue(all(figure >= other for _, other in rest))
    for one in blending.alone(parts):
      self.assertIn(one, [rule for rule, _ in rest])

  def test_of_equal_ones_a_part_alone_is_taken(self):
    self.assertEqual(blending.search(3, lambda rules: [0.] * len(rules))[0][0].alone, 0)

  def test_rules_say_what_they_are(self):
    self.assertEqual(blending.Rule((.25, .75)).told(['a', 'b']), 'a 0.25, b 0.75')
    self.assertEqual(blending.Rule((), 1, 9., .3).told(['a', 'b']),
                     'b sigmoid(9 * (MSP - 0.3)), a the rest')


if __name__ == '__main__':
  absltest.main()
