"""The recommender of a run: what may be recommended."""
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


if __name__ == '__main__':
  absltest.main()
