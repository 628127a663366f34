"""D3's preparation of Amazon dumps: the k-core, titles, the growing window, bad files."""
import gzip
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from recjax.data import loading
from recjax.data.sources import amazon
from recjax.errors import ConfigError, DataError


def dump(path, rows):
  with gzip.open(path, 'wt') as f:
    f.writelines(json.dumps(r) + '\n' for r in rows)
  return path


class AmazonTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(tempfile.mkdtemp())

  def prepare(self, reviews, meta, **given):
    return amazon.prepare_d3(dump(self.folder / 'r.json.gz', reviews),
                          dump(self.folder / 'm.json.gz', meta), self.folder / 'out', **given)

  def test_core_d6(self):
    users, items = np.array([1, 1, 2, 2, 3, 3]), np.array([0, 1, 0, 1, 0, 2])
    self.assertEqual(amazon.k_core(users, items, 2).tolist(), [0, 1, 2, 3])
    self.assertEqual(amazon.k_core(users, items, 3).tolist(), [])

  @parameterized.parameters(
      (None, 'missing'), ('', 'missing'), ('<span class="a">', 'with_markup'), ('"', 'too_short'),
      ('a ' * 21, 'too_long'), ('a ' * 20, ''), (' "Nuts &amp; bolts&quot; ', ''))
  def test_titles(self, title, why):
    self.assertEqual(amazon.clean_d3_title(title)[1], why)

  def test_entities_and_quotes_of_titles(self):
    self.assertEqual(amazon.clean_d3_title(' "Nuts &amp; 2&quot; bolts" ')[0], 'Nuts & 2" bolts')

  def test_the_window_grows_until_enough_items_are_left(self):
    def review(user, item, month):
      return {'reviewerID': user, 'asin': item, 'unixReviewTime': amazon.month_start(month) + 5}
    old = [review(u, i, '2015-12') for u in 'ab' for i in ('x', 'y')]
    new = [review(u, i, '2018-01') for u in 'cd' for i in ('z', 'w')]
    meta = [{'asin': i, 'title': f'title {i}'} for i in 'xyzw']
    lost = [review('a', 'nothing', '2018-01')]
    found = self.prepare(new + old + lost, meta, k=2, min_items=2)
    self.assertEqual((found['window'], found['items']), ('2017-10 to 2018-11', 2))
    self.assertEqual(found['reviews_of_unknown_items'], 1)
    self.folder = pathlib.Path(tempfile.mkdtemp())
    found = self.prepare(new + old, meta, k=2, min_items=4)
    self.assertEqual((found['window'], found['items']), ('2015-10 to 2018-11', 4))
    shop = loading.load_data(self.folder / 'out')
    self.assertEqual(sorted(shop.catalog.columns['title']), [f'title {i}' for i in 'wxyz'])
    self.assertEqual(shop.interactions.lengths().tolist(), [2, 2, 2, 2])

  def test_what_cannot_be_read_is_named(self):
    with self.assertRaisesRegex(ConfigError, '2017-10'):
      amazon.month_start('October')
    bad = self.folder / 'bad.json'
    bad.write_text('{"asin": "x", "title": "t"}\nnot json\n')
    with self.assertRaisesRegex(DataError, 'bad.json line 2 is not JSON'):
      amazon.read_d3_titles(bad)
    with self.assertRaisesRegex(DataError, 'line 1 lacks a usable'):
      self.prepare([{'asin': 'x'}], [{'asin': 'x', 'title': 'long enough'}])
    with self.assertRaisesRegex(DataError, 'no user and item with 5'):
      self.prepare(
        [{'reviewerID': 'u', 'asin': 'x', 'unixReviewTime': amazon.month_start('2018-01')}],
        [{'asin': 'x', 'title': 'long enough'}],
      )


if __name__ == '__main__':
  absltest.main()
