"""Data sets that carry a run's on: what they must begin with, and which of their items are new."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from recjax.data import dataset, loading, update
from recjax.errors import DataError
from tests import later


class AdoptedTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.room = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    goods = dataset.Catalog(('a', 'b', 'c'), {
        'title': ['red', 'blue', ''], 'price': [1, None, 3], 'tags': [['x'], None, ['y']]})
    people = dataset.Interactions(('u',), np.array([1, 2], np.int32), np.array([0, 2]))
    self.shop = dataset.make_dataset('shop', goods, people)
    loading.save_data(self.shop, self.room / 'old')

  def write(self, name, *given, **kw):
    return later.write(self.room / 'old', self.room / name, *given, **kw)

  def test_the_same_items_first_and_new_ones_behind(self):
    new = self.write('new', [{'item_id': 'd', 'title': 'x'}])
    found = update.load_continuation(new, self.shop.catalog, 'w')
    self.assertEqual(found.catalog.ids, ('a', 'b', 'c', 'd'))
    same = update.load_continuation(self.room / 'old', self.shop.catalog, 'w')
    self.assertEqual(same.fingerprint, self.shop.fingerprint)
    self.assertEqual(update.changed_items(self.shop.catalog, same.catalog), [])

  def test_another_order_and_fewer_items_are_refused_by_name(self):
    with self.assertRaisesRegex(DataError, "of run: item 1 was 'a', now it is 'b'.*--update=OLD"):
      update.load_continuation(self.write('swapped', [], swap=True), self.shop.catalog, 'run')
    longer = dataset.Catalog(('a', 'b', 'c', 'z'), {})
    with self.assertRaisesRegex(DataError, "item 4 was 'z', now there is none"):
      update.load_continuation(self.room / 'old', longer, 'run')

  def test_fresh_items_are_new_or_say_something_else(self):
    goods = loading.load_data(self.write(
        'new', [{'item_id': 'd', 'title': 'x', 'color': 'red'}], retired=['a'],
        changed={'b': {'price': 7}})).catalog
    known = self.shop.catalog
    self.assertEqual(update.changed_items(known, goods), [2, 4])
    self.assertEqual(update.changed_items(known, goods, ('title', 'tags')), [4])
    goods.columns['tags'][2] = ['z']
    self.assertEqual(update.changed_items(known, goods, ('title', 'tags')), [3, 4])


if __name__ == '__main__':
  absltest.main()
