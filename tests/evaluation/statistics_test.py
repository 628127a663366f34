import time

import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.errors import DataError
from recjax.evaluation import metrics, statistics
from tests.reference import metrics as judge

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


class BootstrapTest(parameterized.TestCase):

  @settings(max_examples=50, deadline=None, database=None)
  @given(VALUES, st.randoms(use_true_random=False))
  def test_holds_the_mean_and_ignores_the_order_of_users(self, values, shuffle):
    mean, low, high = statistics.bootstrap_interval(np.array(values), 0, draws=100)
    self.assertLessEqual(low, mean)
    self.assertLessEqual(mean, high)
    np.testing.assert_allclose(mean, np.mean(values), rtol=1e-9, atol=1e-6)
    shuffle.shuffle(values)
    self.assertEqual(statistics.bootstrap_interval(np.array(values), 0, draws=100),
                     (mean, low, high))

  @parameterized.parameters('hits', 'gains')
  def test_intervals_cover_the_truth_about_as_often_as_they_say(self, kind):
    rng = np.random.default_rng(0)
    if kind == 'hits':
      draw, truth = (lambda: (rng.random(300) < 0.2).astype(float)), 0.2
    else:
      gains = metrics.per_case(np.arange(40), (10,))['NDCG@10']
      draw, truth = (lambda: gains[rng.integers(0, 40, 300)]), gains.mean()
    covered = 0
    for _ in range(400):
      _, low, high = statistics.bootstrap_interval(draw(), 0, draws=400)
      covered += low <= truth <= high
    # 95 % less the small-sample loss of percentile intervals; four sigma of 400 trials is 4.4 %
    self.assertBetween(covered / 400, 0.90, 0.99)

  def test_width_matches_the_normal_interval(self):
    values = (np.random.default_rng(1).random(5000) < 0.1).astype(float)
    mean, low, high = statistics.bootstrap_interval(values, 3)
    wide = 2 * 1.96 * values.std() / 5000 ** 0.5
    self.assertAlmostEqual((high - low) / wide, 1, delta=0.1)  # quantiles of 1000 draws
    self.assertAlmostEqual(mean, values.mean())

  def test_many_distinct_values_agree_with_the_normal_interval(self):
    values = np.random.default_rng(2).random(statistics.DISTINCT + 5000)
    mean, low, high = statistics.bootstrap_interval(values, 0, draws=400)
    side = 1.96 * values.std() / len(values) ** 0.5
    self.assertAlmostEqual((mean - low) / side, 1, delta=0.2)  # quantiles of 400 draws
    self.assertAlmostEqual((high - mean) / side, 1, delta=0.2)

  def test_a_million_users_take_seconds(self):
    values = metrics.per_case(np.random.default_rng(0).integers(0, 1000, 1_000_000), (50,))
    start = time.process_time()
    statistics.bootstrap_interval(values['NDCG@50'], 0)
    self.assertLess(time.process_time() - start, 20)  # 0.1 s alone

  def test_seed_decides(self):
    values = np.arange(50.0)
    one = statistics.bootstrap_interval(values, 0)
    self.assertEqual(one, statistics.bootstrap_interval(values, 0))
    self.assertNotEqual(one, statistics.bootstrap_interval(values, 1))

  @parameterized.parameters(([], 'non-empty'), ([1, np.nan], 'nan at position 1'),
                            ([np.inf], 'inf at position 0'), ([[1.0]], 'vector'))
  def test_bad_values_are_named(self, values, words):
    with self.assertRaisesRegex(DataError, words):
      statistics.bootstrap_interval(values, 0)


class PairedTest(parameterized.TestCase):

  @parameterized.parameters('equal sizes', 'distinct sizes')
  def test_p_is_that_of_all_sign_flips(self, kind):
    rng = np.random.default_rng(4)
    a = rng.integers(0, 2, 12) if kind == 'equal sizes' else rng.normal(0.4, 1, 12)
    b = rng.integers(0, 2, 12) * 0 if kind == 'equal sizes' else np.zeros(12)
    exact = judge.sign_flip_p(a.tolist(), b.tolist())
    found = statistics.paired_test(a, b, 0, draws=20000)
    self.assertAlmostEqual(found, exact, delta=4 * (exact / 20000) ** 0.5 + 1e-4)  # four sigma

  def test_common_and_rare_sizes_together_match_the_normal_test(self):
    rng = np.random.default_rng(5)
    d = np.concatenate([rng.choice([-1, 0, 1], 400, p=[.28, .4, .32]), rng.normal(0, 1, 100)])
    found = statistics.paired_test(d, 0 * d, 0)
    z = abs(d.sum()) / (d ** 2).sum() ** 0.5
    normal = 2 * (1 - _phi(z))
    self.assertAlmostEqual(found, normal, delta=0.03)  # normal approximation and 10,000 draws

  def test_p_is_uniform_under_the_null(self):
    rng = np.random.default_rng(6)
    p = []
    for trial in range(300):
      a, b = (metrics.per_case(rng.integers(0, 30, 200), (10,))['NDCG@10'] for _ in range(2))
      p.append(statistics.paired_test(a, b, trial, draws=300))
    for level in (0.05, 0.25, 0.5, 0.75):
      self.assertAlmostEqual(np.mean(np.array(p) <= level), level, delta=0.12)  # 4 sigma of 300

  def test_p_is_small_for_a_real_effect_and_never_zero(self):
    rng = np.random.default_rng(7)
    b = (rng.random(2000) < 0.1).astype(float)
    a = np.maximum(b, rng.random(2000) < 0.03)
    p = statistics.paired_test(a, b, 0)
    self.assertEqual(p, 1 / 10001)
    self.assertEqual(statistics.paired_test(b, a, 0), p)

  def test_no_difference_is_p_one(self):
    self.assertEqual(statistics.paired_test([1, 0, 1], [1, 0, 1], 0), 1)
    self.assertEqual(statistics.paired_test([1, 0], [0, 1], 0), 1)

  def test_users_without_a_difference_and_their_order_change_nothing(self):
    rng = np.random.default_rng(8)
    d = rng.normal(0.1, 1, 70)
    p = statistics.paired_test(d, 0 * d, 0)
    padded = rng.permutation(np.concatenate([d, np.zeros(500)]))
    self.assertEqual(statistics.paired_test(padded, 0 * padded, 0), p)
    # Powers of two scale without rounding.
    self.assertEqual(statistics.paired_test(d * 2.0 ** -600, 0 * d, 0), p)

  def test_unequal_users(self):
    with self.assertRaisesRegex(DataError, '2 values against 3'):
      statistics.paired_test([1, 2], [1, 2, 3], 0)
    with self.assertRaisesRegex(DataError, 'second values hold nan'):
      statistics.paired_test([1], [np.nan], 0)


class DetectableTest(parameterized.TestCase):

  @parameterized.parameters((.05, 22363, .0042), (.05, 2000, .0140), (.10, 500, .0396),
                            (.10, 2000, .0198))
  def test_of_hits_it_is_that_of_the_share_of_users_hit_by_one_alone(self, share, users, want):
    # 2.801585 sqrt(share / users), by the normal approximation.
    one, other = np.zeros(users), np.zeros(users)
    count = round(share * users) // 2
    one[:count], other[count:2 * count] = 1, 1
    self.assertAlmostEqual(statistics.detectable(one, other), want, delta=.0001)

  def test_four_tables_of_five_find_such_a_difference(self):
    rng = np.random.default_rng(0)
    spread, users = 2.0, 400
    gap = statistics.POWER * spread / users ** .5
    drawn = rng.normal(gap, spread, (4000, users))
    z = drawn.mean(1) / (drawn.std(1, ddof=1) / users ** .5)
    self.assertBetween((np.abs(z) > 1.959964).mean(), .78, .82)

  def test_what_cannot_be_said(self):
    self.assertTrue(np.isnan(statistics.detectable([1.], [0.])))
    self.assertEqual(statistics.detectable([1., 1.], [1., 1.]), 0)
    with self.assertRaisesRegex(DataError, 'the same users'):
      statistics.detectable([1.], [1., 0.])
    one = statistics.summarize({'a': {'HR@10': [1.]}, 'b': {'HR@10': [0.]}}, 0)
    self.assertEqual((one['detectable'], one['power']), ({'a>b': {'HR@10': None}}, ''))
    rows = {'a': {'HR@10': [1., 0., 1., 0.]}, 'b': {'HR@10': [1., 1., 0., 0.]}}
    said = statistics.summarize(rows, 0)['power']
    # The standard error is .816497 / 2.
    self.assertIn('a true difference in HR@10 of 1.1437 (median of the pairs', said)


class HolmTest(absltest.TestCase):

  def test_by_hand(self):
    found = statistics.holm({'a': 0.01, 'b': 0.04, 'c': 0.03, 'd': 0.005})
    self.assertEqual(list(found), ['a', 'b', 'c', 'd'])
    for name, p in {'d': 0.02, 'a': 0.03, 'c': 0.06, 'b': 0.06}.items():
      self.assertAlmostEqual(found[name], p)
    self.assertEqual(statistics.holm({'x': 0.7, 'y': 0.8}), {'x': 1, 'y': 1})
    self.assertEqual(statistics.holm({}), {})

  @settings(max_examples=50, deadline=None, database=None)
  @given(st.dictionaries(st.text(max_size=3), st.floats(1e-6, 1), max_size=8))
  def test_lies_between_the_raw_and_the_bonferroni_p_and_keeps_the_order(self, raw):
    found = statistics.holm(raw)
    for name, p in raw.items():
      self.assertBetween(found[name], p, min(1, len(raw) * p))
    ordered = [found[n] for n in sorted(raw, key=raw.get)]
    self.assertEqual(ordered, sorted(ordered))


class SeedsTest(parameterized.TestCase):

  def test_users_and_seeds_by_hand(self):
    found = statistics.two_way([[1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    for name, value in dict(value=.5, sd_of_seeds=.25, se_users=.215166, se=.259094).items():
      self.assertAlmostEqual(found[name], value, 6, name)
    self.assertAlmostEqual((found['low'] + found['high']) / 2, .5)
    parts = np.array([.0462963, .0208333])  # .215166 ** 2 and .25 ** 2 / 3
    t = scipy.stats.t.ppf(.975, parts.sum() ** 2 / (parts ** 2 / [3, 2]).sum())
    self.assertAlmostEqual(found['high'] - .5, t * .259094, 4)

  def test_intervals_hold_the_truth_of_other_users_and_other_seeds(self):
    draws, held = np.random.default_rng(0), 0
    for _ in range(400):  # a value of each user and seed: user, seed, noise
      values = (draws.normal(size=(1, 60)) + .2 * draws.normal(size=(5, 1))
                + draws.normal(size=(5, 60)))
      found = statistics.two_way(values)
      held += found['low'] <= 0 <= found['high']
    self.assertBetween(held / 400, .92, .995)

  def test_two_seeds_say_nothing_about_seeds(self):
    found = statistics.two_way([[1, 0, 1], [1, 0, 0]])
    self.assertEqual((found['se'], found['low'], found['high']), (None, None, None))
    self.assertAlmostEqual(found['sd_of_seeds'], np.std([2 / 3, 1 / 3], ddof=1))
    alone = statistics.two_way([[1, 0, 1]])
    self.assertIsNone(alone['sd_of_seeds'])
    self.assertIsNone(statistics.two_way([[1], [0], [1]])['se'])
    self.assertEqual(statistics.two_way(np.ones((3, 4)))['high'], 1)
    for bad in ([1, 2], [[]], [[1, np.nan]]):
      with self.assertRaises(DataError):
        statistics.two_way(bad)

  def test_noise_of_seeds(self):
    three, none, one = ({'seeds': s, 'sd_of_seeds': sd}
                        for s, sd in ((3, .01), (0, None), (1, None)))
    self.assertAlmostEqual(statistics.seed_noise(three, three), 2 * .01 * (2 / 3) ** .5)
    self.assertAlmostEqual(statistics.seed_noise(three, none), 2 * .01 / 3 ** .5)
    self.assertEqual(statistics.seed_noise(none, none), 0)
    self.assertIsNone(statistics.seed_noise(three, one))

  @parameterized.parameters(([1, 2, 3, 4, 5], [1, 2, 4, 3, 5], .8),
                            ([.1, .2, .2, .3], [.1, .2, .3, .4], .912871),
                            ([1, 2, 3], [3, 2, 1], -1))
  def test_kendalls_tau(self, a, b, want):
    found = statistics.kendall(np.transpose([a]), np.transpose([b]), 0, draws=20)
    self.assertAlmostEqual(found[0], want, 6)

  def test_taus_interval_is_that_of_drawing_users(self):
    draws = np.random.default_rng(0)
    a = draws.normal(size=(5, 80)) + .12 * np.arange(5)[:, None]
    b = draws.normal(size=(5, 90)) + .12 * np.arange(5)[:, None]
    tau, low, high = statistics.kendall(a, b, 0)
    self.assertBetween(tau, low, high)
    plain = []
    for _ in range(1000):
      x, y = (z[:, draws.integers(0, z.shape[1], z.shape[1])].mean(1) for z in (a, b))
      plain.append(scipy.stats.kendalltau(x, y).statistic)
    np.testing.assert_allclose((low, high), np.quantile(plain, (.025, .975)), atol=.21)  # one step
    same = statistics.kendall(a, a, 0, paired=True)
    self.assertEqual(same, (1, 1, 1))
    self.assertLess(statistics.kendall(a, a, 0)[1], 1)

  def test_what_has_no_tau(self):
    self.assertTrue(np.isnan(statistics.kendall(np.ones((3, 4)), np.eye(3), 0)[0]))
    for a, b, paired in ((np.ones((1, 4)), np.ones((1, 4)), False), (np.eye(3), np.eye(2), False),
                         (np.eye(3), np.ones((3, 4)), True),
                         (np.full((2, 2), np.nan), np.eye(2), False)):
      with self.assertRaises(DataError):
        statistics.kendall(a, b, 0, paired=paired)


class SlopeTest(absltest.TestCase):

  def test_the_line_is_that_of_least_squares(self):
    draws = np.random.default_rng(1)
    place, values = draws.normal(5, 2, 40), draws.normal(size=40)
    self.assertAlmostEqual(statistics.slope(values, place, 0)[0], np.polyfit(place, values, 1)[0])

  def test_intervals_hold_the_truth_where_cases_of_a_user_are_alike(self):
    draws, held, blind = np.random.default_rng(2), 0, 0
    for turn in range(100):  # a user's cases share one place and most of their noise
      owners = np.repeat(np.arange(80), 5)
      place = draws.uniform(0, 10, 80)[owners]
      values = .3 * place + draws.normal(size=80)[owners] + .1 * draws.normal(size=400)
      found = [statistics.slope(values, place, turn, of, 300) for of in (owners, None)]
      held, blind = (n + (low < .3 < high) for n, (_, low, high) in zip((held, blind), found))
    self.assertBetween(held, 88, 99)
    self.assertLess(blind, 75)  # users drawn case by case know far too much

  def test_one_place_has_no_line(self):
    with self.assertRaisesRegex(DataError, 'one place'):
      statistics.slope(np.arange(3), np.ones(3), 0)


class SummarizeTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    good = rng.integers(0, 40, 400)
    self.rows = {row: metrics.per_case(r, (10,)) for row, r in (
        ('good', good), ('worse', good + 10), ('random', rng.integers(0, 4000, 400)))}

  def test_shape_of_results_json(self):
    found = statistics.summarize(self.rows, 0)
    self.assertEqual(list(found['rows']), ['good', 'worse', 'random'])
    self.assertEqual(list(found['tests']), ['good>worse', 'good>random', 'worse>random'])
    cell = found['rows']['good']['HR@10']
    self.assertEqual((list(cell), cell['n']), (['value', 'low', 'high', 'n'], 400))
    self.assertAlmostEqual(cell['value'], self.rows['good']['HR@10'].mean())
    self.assertEqual(list(found['tests']['good>worse']), ['HR@10', 'NDCG@10', 'MRR'])

  def test_p_values_are_corrected_within_each_metric(self):
    pairs = [('good', 'worse'), ('worse', 'random')]
    found = statistics.summarize(self.rows, 5, pairs=pairs)['tests']
    for metric in ('HR@10', 'NDCG@10', 'MRR'):
      raw = {f'{a}>{b}': statistics.paired_test(self.rows[a][metric], self.rows[b][metric], 5)
             for a, b in pairs}
      self.assertEqual({n: p[metric] for n, p in found.items()}, statistics.holm(raw))

  def test_groups_are_metrics_with_a_suffix_and_empty_ones_are_left_out(self):
    head = np.arange(400) < 100
    found = statistics.summarize(self.rows, 0, {'head': head, 'long': head & ~head})['rows']['good']
    self.assertEqual(found['HR@10:head']['n'], 100)
    self.assertAlmostEqual(found['HR@10:head']['value'], self.rows['good']['HR@10'][:100].mean())
    self.assertNotIn('HR@10:long', found)

  def test_cases_of_a_user_are_averaged_first(self):
    owners = np.array([7, 3, 7, 7, 3, 9])
    rows = {'a': {'m': np.array([1., 0, 0, 0, 1, 1])}, 'b': {'m': np.array([0., 1, 1, 1, 0, 1])}}
    mask = np.array([True, False, True, False, False, True])
    found = statistics.summarize(rows, 0, {'g': mask}, owners=owners)
    users = {'a': {'m': np.array([.5, 1 / 3, 1])}, 'b': {'m': np.array([.5, 2 / 3, 1])}}
    plain = statistics.summarize(users, 0)  # in order of owners
    for row in rows:
      self.assertEqual(found['rows'][row]['m'], plain['rows'][row]['m'])
    self.assertEqual((found['tests'], found['detectable']), (plain['tests'], plain['detectable']))
    self.assertEqual(found['rows']['a']['m:g']['value'], (.5 + 1) / 2)
    self.assertEqual(found['rows']['a']['m:g']['n'], 2)

  def test_other_users_are_an_error(self):
    with self.assertRaisesRegex(DataError, '400 values against 3'):
      statistics.summarize(self.rows | {'short': metrics.per_case([1, 2, 3], (10,))}, 0)
    with self.assertRaisesRegex(DataError, 'no row'):
      statistics.summarize({}, 0)


def _phi(z):
  import math
  return (1 + math.erf(z / 2 ** 0.5)) / 2


if __name__ == '__main__':
  absltest.main()
