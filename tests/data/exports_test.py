"""What is written for other programs comes back as the same data set."""
import json
import pathlib

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.data import dataset, loading
from recjax.data.formats import etegrec, recbole, reclm, sequence_lines
from recjax.data.prepare import duckdb_engine, rules
from recjax.data.sample_shop import simulator
from recjax.data.sources import table
from recjax.errors import DataError
from tests.long import examples

try:
  import duckdb
except ImportError:
  duckdb = None

names = st.text(st.characters(exclude_categories=('Cs', 'Cc', 'Zs', 'Zl', 'Zp')), min_size=1,
                max_size=5)


@st.composite
def datasets(draw):
  """Users of 1 to 6 items, with or without times and ratings."""
  ids = draw(st.lists(names, min_size=1, max_size=6, unique=True))
  users = draw(st.lists(names, min_size=1, max_size=4, unique=True))
  lengths = draw(st.lists(st.integers(1, 6), min_size=len(users), max_size=len(users)))
  total = sum(lengths)
  items = np.array(draw(st.lists(st.integers(1, len(ids)), min_size=total, max_size=total)),
                   np.int32)
  times = np.arange(total) * 3 if draw(st.booleans()) else None
  ratings = np.linspace(0.1, 5, total, dtype=np.float32) if draw(st.booleans()) else None
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  return dataset.make_dataset(
      'x', dataset.Catalog(tuple(ids), {'title': [f'The {i}' for i in ids]}),
      dataset.Interactions(tuple(users), items, offsets, times, ratings))


@absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
class ExportsTest(parameterized.TestCase):

  def there_and_back(self, data, layout, back):
    folder = pathlib.Path(self.create_tempdir().full_path)
    layout.write(data, folder, 'x')
    duckdb_engine.prepare(
      back(folder),
      folder / 'out',
      rules.Rules(all_items=True, max_bad=0),
      say=lambda text: None,
    )
    return loading.load_data(folder / 'out'), folder

  @examples(3, 25)
  @hypothesis.given(datasets())
  def test_recbole_round_trip(self, data):
    again, _ = self.there_and_back(data, recbole, lambda f: table.source(
        f / 'x.inter', f / 'x.item'))
    self.same(again, data)
    if data.interactions.times is not None:
      np.testing.assert_array_equal(again.interactions.times, data.interactions.times)
    if data.interactions.ratings is not None:
      np.testing.assert_array_equal(again.interactions.ratings, data.interactions.ratings)

  @examples(3, 25)
  @hypothesis.given(datasets())
  def test_reclm_round_trip(self, data):
    self.same(self.there_and_back(data, reclm, reclm.source)[0], data)

  @examples(3, 25)
  @hypothesis.given(datasets())
  def test_sequences_round_trip(self, data):
    again, folder = self.there_and_back(data, sequence_lines, lambda f: sequence_lines.source(
        f / 'x.txt'))
    ids = json.loads((folder / 'x.ids.json').read_text())
    shop, old = again.interactions, data.interactions
    for u, user in enumerate(shop.users):
      self.assertEqual(ids['users'][int(user) - 1], old.users[u])
      self.assertEqual([ids['items'][int(again.catalog.id_of(i)) - 1] for i in shop.history(u)],
                       [data.catalog.id_of(i) for i in old.history(u)])

  def same(self, again, data):
    self.assertEqual(again.catalog.ids, data.catalog.ids)
    self.assertEqual(again.catalog.columns['title'], data.catalog.columns['title'])
    self.assertEqual(again.interactions.users, data.interactions.users)
    np.testing.assert_array_equal(again.interactions.items, data.interactions.items)
    np.testing.assert_array_equal(again.interactions.offsets, data.interactions.offsets)

  def test_etegrec_of_the_sample_shop(self):
    data = simulator.make_shop(0)
    again, folder = self.there_and_back(data, etegrec, etegrec.source)
    lengths = data.interactions.lengths()
    self.assertLess(lengths.max(), etegrec.MAX_HISTORY)
    self.assertEqual(again.catalog.ids, data.catalog.ids)
    want = [data.interactions.history(u).tolist() for u in np.flatnonzero(lengths >= 3)]
    self.assertEqual([again.interactions.history(u).tolist()
                      for u in range(len(again.interactions))], want)
    rows = (folder / 'x.train.jsonl').read_text().splitlines()
    # Rows of training = interactions - 3 * users.
    self.assertLen(rows, sum(map(len, want)) - 3 * len(want))

  def test_reclm_titles_and_categories(self):
    goods = dataset.Catalog(('a', 'b', 'c'), {
        'title': ['T', 'T', 'T (1)'], 'categories': [['R', 'A', 'B'], ['R', 'A'], None]})
    data = dataset.make_dataset('x', goods, dataset.Interactions(
        ('u',), np.array([1], np.int32), np.array([0, 1])))
    folder = pathlib.Path(self.create_tempdir().full_path)
    reclm.write(data, folder, 'x')
    metas = json.loads((folder / 'metas.jsonl').read_text())
    self.assertEqual([m['title_t'] for m in metas.values()], ['T', 'T (1)', 'T (1) (1)'])
    self.assertEqual(json.loads((folder / 'category.jsonl').read_text()),
                     {'A': ['a', 'b'], 'A, B': ['a']})

  def test_ids_that_would_break_lines_are_refused(self):
    data = dataset.make_dataset('x', dataset.Catalog(('a\tb',), {'title': ['']}),
                                dataset.Interactions(('u',), np.array([1], np.int32),
                                                     np.array([0, 1])))
    with self.assertRaisesRegex(DataError, 'holds a tab'):
      recbole.write(data, pathlib.Path(self.create_tempdir().full_path), 'x')


if __name__ == '__main__':
  absltest.main()
