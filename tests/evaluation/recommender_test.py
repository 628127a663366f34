"""The face of a method: ids at its edge alone, masks, and functions of ids that become one."""
from unittest import mock

import numpy as np
from absl.testing import absltest

from recjax.data.dataset import Catalog
from recjax.errors import DataError
from recjax.evaluation.recommender import CatalogRecommender, as_recommender

CATALOG = Catalog(tuple('abcd'), {})


def top_items(histories, k, exclude_seen, mask):
  """The lowest items that may come; the score is minus the index."""
  rows = []
  for n, history in enumerate(histories):
    allowed = np.ones(4, bool) if mask is None else (mask if mask.ndim == 1 else mask[n]).copy()
    if exclude_seen:
      allowed[history - 1] = False
    items = (np.flatnonzero(allowed) + 1)[:k]
    rows.append(np.pad(items, (0, k - len(items))))
  return np.array(rows), -np.array(rows, np.float32)


class RecommenderTest(absltest.TestCase):

  def test_ids_in_and_out(self):
    recommend = CatalogRecommender(top_items, CATALOG)
    items, scores = recommend([['a', 'c'], []], 3)
    self.assertEqual(items, [['b', 'd'], ['a', 'b', 'c']])
    np.testing.assert_array_equal(scores, [[-2, -4, 0], [-1, -2, -3]])
    self.assertEqual(recommend([['a']], 2, exclude_seen=False)[0], [['a', 'b']])
    self.assertEqual(recommend([['a'], ['b']], 2, allowed={'a', 'd'})[0], [['d'], ['a', 'd']])
    mask = np.array([[False, True, True, False], [True, False, False, True]])
    self.assertEqual(recommend([['b'], ['b']], 2, allowed=mask)[0], [['c'], ['a', 'd']])
    for ask in (lambda: recommend([['z']], 1), lambda: recommend([['a']], 1, allowed=['z'])):
      with self.assertRaisesRegex(DataError, "'z'"):
        ask()

  def test_times_are_one_for_each_item_and_one_for_the_request(self):
    told = []

    def timed(histories, k, exclude_seen, mask, times):
      told.append(times)
      return top_items(histories, k, exclude_seen, mask)
    recommend = CatalogRecommender(timed, CATALOG, score_fn=mock.Mock(timed=True))
    recommend([['a'], []], 1, times=[[4, 4], [7]])
    self.assertEqual([x.tolist() for x in told[0]], [[4, 4], [7]])
    for times, words in (([[4, 4]], 'times of 1 histories, and 2'),
                         ([[4], [7]], 'history 1: 1 times for a history of 1 items'),
                         ([[4, 4], [-2 ** 62]], 'history 2: a time is -4')):
      with self.assertRaisesRegex(DataError, words):
        recommend([['a'], []], 1, times=times)
    self.assertLen(told, 1)
    CatalogRecommender(top_items, CATALOG)([['a'], []], 1, times=[[]])

  def test_a_function_of_ids_becomes_one_of_indices(self):
    calls = []

    def recommend(histories, k, exclude_seen=True, allowed=None):
      calls.append((histories, k, exclude_seen, allowed))
      return CatalogRecommender(top_items, CATALOG)(histories, k, exclude_seen, allowed)
    made = as_recommender(recommend, CATALOG)
    items, scores = made.top_items([np.array([1, 3], np.int32), np.array([2], np.int32)], 2, True,
                                   np.array([True, True, True, False]))
    np.testing.assert_array_equal(items, [[2, 0], [1, 3]])
    np.testing.assert_array_equal(scores, [[-2, 0], [-1, -3]])
    self.assertEqual(calls, [([['a', 'c'], ['b']], 2, True, frozenset('abc'))])

  def test_a_recommender_of_the_same_items_stays_and_of_others_is_translated(self):
    same = CatalogRecommender(top_items, CATALOG)
    self.assertIs(as_recommender(same, Catalog(tuple('abcd'), {'title': list('ABCD')})), same)
    turned = as_recommender(same, Catalog(tuple('dcba'), {}))
    items, _ = turned.top_items([np.array([4], np.int32)], 3, True, None)
    np.testing.assert_array_equal(items, [[3, 2, 1]])  # b, c, d as the other catalog numbers them


if __name__ == '__main__':
  absltest.main()
