"""The recommender of a run: what may be recommended."""
import dataclasses

import numpy as np
from absl.testing import absltest

from recjax import recommend
from tests.batch_recommend_test import shop


class StockTest(absltest.TestCase):

  def test_retired_items_are_not_recommended(self):
    asked = []

    def spy(histories, k, exclude_seen=True, allowed=None):
      asked.append((histories, k, exclude_seen, allowed))
    goods = shop().catalog
    self.assertIs(recommend.without_retired(spy, goods), spy)
    goods.columns['retired'] = [None, True, False, *[True] * 37]
    face = recommend.without_retired(spy, goods)
    face([['i1']], 5)
    face([['i1']], 5, False, ['i0', 'i1'])
    self.assertEqual(asked, [([['i1']], 5, True, {'i0', 'i2'}), ([['i1']], 5, False, {'i0'})])

    self.assertEqual([recommend.is_timed(f) for f in (spy, face)], [False, False])

  def test_times_reach_a_recommender_behind_the_retired_items(self):
    asked = []

    def spy(histories, k, exclude_seen=True, allowed=None, times=None):
      asked.append(times)
    spy.timed = True
    goods = shop().catalog
    goods.columns['retired'] = [True, *[None] * 39]
    face = recommend.without_retired(spy, goods)
    self.assertTrue(recommend.is_timed(face))
    face([['i1']], 5, times=[[3, 4]])
    self.assertEqual(asked, [[[3, 4]]])

  def test_times_of_a_user_are_seconds_of_whatever_the_data_have(self):
    data = shop()
    for unit in (1, 1000, 10 ** 6):
      times = np.array([1_600_000_000, 1_600_000_060, 1_600_003_600]) * unit
      timed = dataclasses.replace(data, interactions=dataclasses.replace(
          data.interactions, times=times))
      self.assertEqual(recommend.times_of(timed, 'u'),
                       [1_600_000_000, 1_600_000_060, 1_600_003_600, 1_600_003_600])
    self.assertIsNone(recommend.times_of(data, 'u'))


if __name__ == '__main__':
  absltest.main()
