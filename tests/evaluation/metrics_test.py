import math

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.errors import ConfigError, DataError
from recjax.evaluation import metrics
from tests.reference import metrics as judge

RANKS = st.lists(st.integers(0, 200), min_size=1, max_size=50)


class PerCaseTest(parameterized.TestCase):

  def test_ndcg_by_hand(self):
    found = metrics.per_case(np.array([0, 1, 2, 9, 10, 400], np.int32))
    np.testing.assert_allclose(found['NDCG@10'], [1, .630930, .5, .289065, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(found['HR@10'], [1, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(found['MRR'], [1, 1 / 2, 1 / 3, 1 / 10, 1 / 11, 1 / 401])

  def test_several_targets_by_hand(self):
    relevance, of_five = np.array([0, 2, 9]), np.array([3, 3, 3])  # 1 0 1 0 0, the third beyond
    values = metrics.per_case(relevance, (1, 5), of_five)
    self.assertAlmostEqual(values['NDCG@5'].mean(), .703918, places=6)
    self.assertAlmostEqual(values['HR@5'].mean(), 2 / 3)  # recall
    self.assertAlmostEqual(values['NDCG@1'].mean(), 1.0)  # the best list of one holds one
    one = metrics.per_case(relevance, (1, 5), np.ones(3, int))
    for name, plain in metrics.per_case(relevance, (1, 5)).items():
      np.testing.assert_array_equal(one[name], plain)

  def test_names(self):
    names = [f'{m}@{k}' for k in (1, 3, 5, 10, 20, 50) for m in ('HR', 'NDCG')] + ['MRR']
    self.assertEqual(list(metrics.per_case([0])), names)

  def test_uniform_ranks_among_101(self):  # the expectation under random scores
    found = metrics.per_case(np.arange(101), (5, 10))
    want = {'HR@5': .049505, 'NDCG@5': .029193, 'HR@10': .099010, 'NDCG@10': .044986}
    for name, value in want.items():
      self.assertAlmostEqual(found[name].mean(), value, places=6)

  @settings(max_examples=60, deadline=None, database=None)
  @given(RANKS, st.integers(1, 60))
  def test_means_match_the_definition_to_1e9(self, ranks, k):
    found = metrics.per_case(np.array(ranks, np.int32), (k,))
    got = [found[n].mean() for n in (f'HR@{k}', f'NDCG@{k}', 'MRR')]
    np.testing.assert_allclose(got, judge.metrics(ranks, k), rtol=0, atol=1e-9)

  @settings(max_examples=60, deadline=None, database=None)
  @given(RANKS)
  def test_metrics_grow_with_k_and_ndcg_stays_below_hr(self, ranks):
    found = metrics.per_case(ranks)
    for name in ('HR', 'NDCG'):
      for low, high in zip(metrics.KS, metrics.KS[1:]):
        self.assertTrue((found[f'{name}@{low}'] <= found[f'{name}@{high}']).all())
    for k in metrics.KS:
      self.assertTrue((found[f'NDCG@{k}'] <= found[f'HR@{k}']).all())
    np.testing.assert_array_equal(found['HR@1'], found['NDCG@1'])

  @parameterized.parameters(([],), ([[1]],), ([-1, 0],), ([0, float('nan')],))
  def test_bad_ranks_are_errors(self, ranks):
    with self.assertRaises(DataError):
      metrics.per_case(ranks)

  def test_bad_cut_off(self):
    with self.assertRaisesRegex(ConfigError, 'must be 1 or more'):
      metrics.per_case([0], (0, 5))


class GroupsTest(parameterized.TestCase):

  def test_terciles_by_hand(self):
    counts = np.array([1, 6, 0, 3, 2])  # 12 interactions; passed before each: 11, 0, -, 6, 9
    found = metrics.groups(np.array([1, 2, 3, 4, 5]), counts, np.array([1, 2, 3, 4, 5]))
    self.assertEqual({g: m.tolist() for g, m in found.items()}, {
        'head': [0, 1, 0, 0, 0], 'mid': [0, 0, 0, 1, 0], 'tail': [1, 0, 1, 0, 1],
        'short': [1, 1, 1, 0, 0], 'long': [0, 0, 0, 1, 1]})

  @settings(max_examples=40, deadline=None, database=None)
  @given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.data())
  def test_every_case_is_in_one_group_of_each_kind(self, counts, data):
    size = st.integers(1, len(counts))
    targets = np.array(data.draw(st.lists(size, min_size=1, max_size=20)))
    found = metrics.groups(targets, np.array(counts), np.arange(len(targets)))
    np.testing.assert_array_equal(sum(found[g].astype(int) for g in ('head', 'mid', 'tail')), 1)
    np.testing.assert_array_equal(found['short'], ~found['long'])
    # A more popular target is never in a lower group.
    place = found['mid'] + 2 * found['tail']
    order = np.argsort(-np.array(counts)[targets - 1], kind='stable')
    ties = np.diff(np.array(counts)[targets - 1][order]) == 0
    self.assertTrue(((np.diff(place[order]) >= 0) | ties).all())

  def test_groups_need_cases(self):
    with self.assertRaisesRegex(DataError, 'one of each a case'):
      metrics.groups([], [1], [])


class ListMetricsTest(absltest.TestCase):

  def test_by_hand(self):
    items = np.array([[1, 2, 0], [1, 1, -1], [2, 9, 1]], np.int32)  # 8 answers, 2 of them no items
    counts = np.array([5, 2, 0, 0])
    found = metrics.list_properties(items, counts, (np.array([2, 3, 1]), np.array([0, 2, 3, 3])))
    self.assertEqual(found['coverage'], 2 / 4)
    self.assertEqual(found['out_of_catalog'], 2 / 8)
    self.assertEqual(found['repeat'], 1 / 8)
    self.assertEqual(found['seen'], (1 + 2 + 0) / 8)
    surprise = [-math.log2((c + 1) / (7 + 4)) for c in counts]
    self.assertAlmostEqual(found['novelty'], (4 * surprise[0] + 2 * surprise[1]) / 6)
    self.assertAlmostEqual(found['Gini'], judge.gini([4, 2, 0, 0]))

  def test_gini_ends(self):
    self.assertEqual(metrics.gini(np.array([3, 3, 3])), 0)
    self.assertAlmostEqual(metrics.gini(np.array([0, 0, 0, 7])), 3 / 4)
    self.assertEqual(metrics.gini(np.zeros(3)), 0)

  @settings(max_examples=40, deadline=None, database=None)
  @given(st.lists(st.lists(st.integers(-1, 6), min_size=4, max_size=4), min_size=1, max_size=12),
         st.randoms(use_true_random=False))
  def test_rates_are_rates_and_order_of_users_changes_nothing(self, rows, shuffle):
    if not any(any(row) for row in rows):
      return
    counts = np.array([3, 1, 4, 1, 5])
    found = metrics.list_properties(np.array(rows), counts)
    shuffle.shuffle(rows)
    again = metrics.list_properties(np.array(rows), counts)
    for name, value in found.items():
      self.assertAlmostEqual(value, again[name], places=12)
      if name != 'novelty':
        self.assertBetween(value, 0, 1)

  def test_lists_without_an_answer(self):
    with self.assertRaisesRegex(DataError, 'hold no answer'):
      metrics.list_properties(np.zeros((2, 3), np.int32), np.ones(4))


if __name__ == '__main__':
  absltest.main()
