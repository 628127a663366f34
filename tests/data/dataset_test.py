"""The data set's files are read strictly, kept whole, and fingerprinted by content."""
import gzip
import itertools
import json
import os
import pathlib
import time

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax import file_io
from recjax.data import dataset as dataset_lib
from recjax.data import loading
from recjax.errors import ConfigError, DataError, UserError, WorkdirError
from tests.long import examples

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data'

ITEMS = ['{"item_id":"a","title":"Ant","brand":"X","categories":["C","D"],"price":1.5}',
         '{"item_id":7,"title":"Bee"}', '{"item_id":"c","title":" "}']

SEQUENCES = ['{"user_id":"u","items":["a",7,"c"],"times":[1,2,3]}',
             '{"user_id":2,"items":["7"],"times":[5]}']


class CatalogTest(parameterized.TestCase):

  def folder(self, items=ITEMS, sequences=SEQUENCES, encode=str.encode):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for stem, lines in (('items', items), ('sequences', sequences)):
      (folder / f'{stem}.jsonl').write_bytes(b''.join(encode(line + '\n') for line in lines))
    return folder

  def fails(self, folder, *words):
    with self.assertRaises(DataError) as caught:
      loading.load_data(folder)
    for word in words:
      self.assertIn(word, str(caught.exception))

  def test_a_folder_becomes_dense_indices(self):
    data = loading.load_data(self.folder())
    self.assertEqual(data.catalog.ids, ('a', '7', 'c'))
    self.assertEqual((len(data.catalog), data.catalog.index(7), data.catalog.id_of(3)), (3, 2, 'c'))
    self.assertEqual(data.catalog.columns['title'], ['Ant', 'Bee', ''])
    self.assertEqual(data.catalog.columns['price'], [1.5, None, None])
    self.assertEqual(data.interactions.users, ('u', '2'))
    np.testing.assert_array_equal(data.interactions.items, np.array([1, 2, 3, 2], np.int32))
    np.testing.assert_array_equal(data.interactions.offsets, np.array([0, 3, 4], np.int64))
    np.testing.assert_array_equal(data.interactions.history(1), [2])
    np.testing.assert_array_equal(data.interactions.times, [1, 2, 3, 5])
    self.assertEqual(data.interactions.items.dtype, np.int32)
    self.assertEqual(data.interactions.offsets.dtype, np.int64)
    self.assertEqual(data.notes, {'empty_titles': 1, 'empty_sequences': 0,
                                  'times_out_of_order': 0})

  def test_unknown_ids_and_indices_are_refused(self):
    shop = loading.load_data(self.folder()).catalog
    with self.assertRaisesRegex(DataError, "'nobody' is not in the catalog"):
      shop.index('nobody')
    for index in (0, 4, -1):
      with self.assertRaisesRegex(DataError, 'outside 1..3'):
        shop.id_of(index)

  def test_byte_order_marks_crlf_and_blank_lines_change_nothing(self):
    plain = loading.load_data(self.folder())
    marked = self.folder(encode=lambda line: line.replace('\n', '\r\n').encode())
    for stem in ('items', 'sequences'):
      path = marked / f'{stem}.jsonl'
      path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes() + b'\r\n  \r\n')
    self.assertEqual(loading.load_data(marked).fingerprint, plain.fingerprint)

  def test_gzip_and_parquet_hold_the_same_data(self):
    import pyarrow
    from pyarrow import parquet
    plain = self.folder()
    packed, tables = (pathlib.Path(self.create_tempdir().full_path) for _ in range(2))
    for stem in ('items', 'sequences'):
      text = (plain / f'{stem}.jsonl').read_bytes()
      (packed / f'{stem}.jsonl.gz').write_bytes(gzip.compress(text))
      rows = [json.loads(line) for line in text.splitlines()]
      for row in rows:
        row |= {k: str(row[k]) for k in ('item_id', 'user_id') if k in row}
        row |= {'items': [str(i) for i in row['items']]} if 'items' in row else {}
      parquet.write_table(pyarrow.Table.from_pylist(rows), tables / f'{stem}.parquet')
    marks = {loading.load_data(f).fingerprint for f in (plain, packed, tables)}
    self.assertLen(marks, 1)

  @parameterized.parameters(
      ('items', 1, '{"item_id": "b",', 'items.jsonl line 2, column 17: not valid JSON'),
      ('items', 1, '["b"]', 'line 2: a JSON object is expected, found a list'),
      ('items', 1, '{"item_id":"a","title":"x"}', "'a' was given before"),
      ('items', 1, '{"title":"x"}', 'item_id is missing'),
      ('items', 1, '{"item_id":1.5,"title":"x"}', 'item_id is 1.5'),
      ('items', 1, '{"item_id":true,"title":"x"}', 'item_id is True'),
      ('items', 1, '{"item_id":"b","title":5}', 'title must be a text'),
      ('items', 1, '{"item_id":"b","categories":"x"}', 'categories must be a list of texts'),
      ('items', 1, '{"item_id":"b","tags":[1]}', 'tags must be a list of texts'),
      ('items', 1, '{"item_id":"b","price":NaN}', 'NaN is not a JSON number'),
      ('items', 1, '{"item_id":"b","price":1e999}', 'which JSON cannot'),
      ('items', 1, '{"item_id":"b","title":"\\ud800"}', 'half a surrogate pair'),
      ('items', 1, '{"item_id":"b","item_id":"d"}', "'item_id' is given twice"),
      ('items', 1, '[' * 100_000, 'items.jsonl line 2'),
      ('items', 1, '{"item_id":"b","retired":1}', 'retired must be true or false'),
      ('sequences', 0, '{"user_id":"u","items":["a","z"]}', "'z' is not in the items file"),
      ('sequences', 0, '{"user_id":2,"items":["a"]}', "'2' was given before"),
      ('sequences', 0, '{"user_id":"u","items":"a"}', 'must be a list of item ids'),
      ('sequences', 0, '{"user_id":"u","items":[[]]}', 'an item is []'),
      ('sequences', 0, '{"user_id":"u","items":["a"]}', 'has no times while others have'),
      ('sequences', 0, '{"user_id":"u","items":["a"],"times":[1,2]}', 'found 2 values'),
      ('sequences', 0, '{"user_id":"u","items":["a"],"times":["x"]}', 'must hold whole numbers'),
      ('sequences', 0, '{"user_id":"u","items":["a"],"times":[1.5]}', 'must hold whole numbers'),
  )
  def test_a_bad_line_is_named(self, stem, number, line, message):
    lines = {'items': list(ITEMS), 'sequences': list(SEQUENCES)}
    lines[stem][number] = line
    self.fails(self.folder(**lines), f'{stem}.jsonl line', message)

  def test_bad_utf8_is_named_with_line_and_byte(self):
    folder = self.folder()
    (folder / 'items.jsonl').write_bytes(ITEMS[0].encode() + b'\n{"item_id":"\xff"}\n')
    self.fails(folder, 'line 2, column 13', 'not UTF-8')

  def test_a_sample_shop_of_another_seed_is_another_shop(self):
    one, other = loading.load_data('sample'), loading.load_data('sample:3')
    self.assertNotEqual(one.fingerprint, other.fingerprint)
    self.assertEqual((one.name, other.name), ('sample', 'sample:3'))
    self.assertEqual(one.fingerprint, loading.load_data('sample:0').fingerprint)
    few = loading.load_data('sample:3:50')
    self.assertEqual((few.name, len(few.interactions.users)), ('sample:3:50', 50))
    for wrong in ('sample:x', 'sample:', 'sample:1:-2', 'sample:1:2:3'):
      self.fails(wrong, wrong, 'whole number')

  def test_what_was_looked_for_is_told(self):
    folder = self.folder()
    self.fails(folder / 'gone', 'does not exist', "'sample'")
    (folder / 'sequences.jsonl').unlink()
    self.fails(folder, 'sequences.jsonl, sequences.jsonl.gz, sequences.parquet')
    (folder / 'items.parquet').write_bytes(b'')
    self.fails(folder, 'items.jsonl and items.parquet', 'keep one')

  def test_broken_containers_are_data_errors(self):
    folder = self.folder()
    text = gzip.compress((folder / 'items.jsonl').read_bytes())
    (folder / 'items.jsonl').unlink()
    for name, data in (('items.jsonl.gz', text[:-9]), ('items.jsonl.gz', b'no gzip'),
                       ('items.parquet', b'no parquet')):
      (folder / name).write_bytes(data)
      self.fails(folder, name)
      (folder / name).unlink()

  def test_empty_files_are_refused(self):
    self.fails(self.folder(items=[]), 'holds no items')
    self.fails(self.folder(sequences=[]), 'holds no users')

  def test_oddities_are_counted(self):
    rows = ['{"user_id":"u","items":["a","c"],"times":[5,3],"ratings":[1,2.5]}',
            '{"user_id":"v","items":[]}', '{"user_id":"w","items":["a"],"times":[1],"ratings":[3]}']
    data = loading.load_data(self.folder(sequences=rows))
    self.assertEqual(data.notes['empty_sequences'], 1)
    self.assertEqual(data.notes['times_out_of_order'], 1)
    np.testing.assert_array_equal(data.interactions.ratings, np.array([1, 2.5, 3], np.float32))

  def test_timestamps_are_times_under_another_name(self):
    rows = [row.replace('"times"', '"timestamps"') for row in SEQUENCES]
    same, other = (
      loading.load_data(self.folder(**given)) for given in ({}, {'sequences': rows})
    )
    self.assertNotEqual(rows, list(SEQUENCES))
    self.assertEqual(other.fingerprint, same.fingerprint)
    rows[0] = rows[0].replace('"timestamps":[', '"timestamps":["x",')
    self.fails(self.folder(sequences=rows), 'sequences.jsonl line', 'times must')

  def test_saving_and_loading_changes_nothing(self):
    data = loading.load_data(self.folder())
    folder = pathlib.Path(self.create_tempdir().full_path) / 'new'
    loading.save_data(data, folder)
    self.assertEqual(loading.load_data(folder).fingerprint, data.fingerprint)
    self.assertCountEqual(os.listdir(folder), ['items.jsonl', 'sequences.jsonl'])
    self.assertEqual(os.listdir(folder.parent), ['new'])
    with self.assertRaisesRegex(DataError, 'exists already'):
      loading.save_data(data, folder)
    loading.save_data(data, folder, overwrite=True)
    self.assertEqual(loading.load_data(folder).fingerprint, data.fingerprint)

  def test_an_unwritable_place_is_a_workdir_error(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'file'
    path.write_text('x')
    with self.assertRaises(WorkdirError):
      loading.save_data(loading.load_data(self.folder()), path / 'below')
    with self.assertRaises(WorkdirError):
      file_io.write_text(path / 'below.json', 'x')

  def test_the_fingerprint_sees_every_part(self):
    lines = json.dumps
    first = loading.load_data(self.folder()).fingerprint
    other = [ITEMS[0].replace('Ant', 'Asp'), *ITEMS[1:]]
    changed = [dict(items=other), dict(items=[ITEMS[1], ITEMS[0], ITEMS[2]]),
               dict(sequences=[SEQUENCES[0].replace('3]', '4]'), SEQUENCES[1]]),
               dict(sequences=[SEQUENCES[0].replace('"a",7', '7,"a"'), SEQUENCES[1]]),
               dict(sequences=SEQUENCES[::-1])]
    marks = {loading.load_data(self.folder(**change)).fingerprint for change in changed}
    self.assertLen(marks | {first}, 6, lines(sorted(marks)))

  def test_ten_thousand_items_are_fingerprinted_quickly(self):
    n = 10_000
    text = 'a description of about one hundred and twenty letters, as shops have for them ' * 2
    shop = dataset_lib.Catalog(tuple(str(i) for i in range(n)), {'title': [text] * n})
    data = dataset_lib.Interactions(('u',), np.ones(80_000, np.int32), np.array([0, 80_000]))
    start = time.process_time()
    dataset_lib.fingerprint(shop, data)
    self.assertLess(time.process_time() - start, 0.3)

  def test_betag_files_are_a_data_set(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'inters.train.json').write_text('[[3,1],[1]]')
    (folder / 'base_tags.json').write_text('{"1":["a","b"],"3":["c"]}')
    data = loading.load_data(folder)
    self.assertEqual(data.catalog.columns, {'title': ['a, b', 'c'], 'tags': [['a', 'b'], ['c']]})
    np.testing.assert_array_equal(data.interactions.items, [2, 1, 1])
    self.assertEqual((data.notes['source'], data.notes['integer_ids']), ('betag', 1))

  @absltest.skipUnless(SHARED.is_dir(), 'shared/data is not there')
  @parameterized.parameters(('amazon-scientific', 8_317, 4_344, 58_492),
                            ('ml-1m', 6_040, 3_416, 999_611),
                            ('formats/betag', 8_317, 4_344, 41_858))
  def test_real_data_have_their_published_size(self, name, users, items, interactions):
    data = loading.load_data(SHARED / name)
    self.assertEqual((len(data.interactions), len(data.catalog), len(data.interactions.items)),
                     (users, items, interactions))

  @examples(12, 60)
  @hypothesis.given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(
      lambda s: s.encode('utf-8', 'surrogatepass'))), st.booleans())
  def test_garbage_raises_data_errors_only(self, garbage, in_items):
    folder = self.folder()
    path = folder / ('items.jsonl' if in_items else 'sequences.jsonl')
    path.write_bytes(garbage)
    self.quietly(folder)

  @examples(12, 60)
  @hypothesis.given(st.recursive(
      st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
      lambda x: st.lists(x, max_size=3) | st.dictionaries(
          st.sampled_from(['item_id', 'user_id', 'items', 'times', 'ratings', 'title', 'price',
                           'categories']), x, max_size=6), max_leaves=10))
  def test_any_json_raises_data_errors_only(self, value):
    line = json.dumps(value)
    self.quietly(self.folder(items=[line]))
    self.quietly(self.folder(sequences=[line]))

  def quietly(self, folder):
    try:
      data = loading.load_data(folder)
    except UserError as error:
      self.assertIsInstance(error, DataError)
    else:
      copy = folder / 'copy'
      loading.save_data(data, copy)
      self.assertEqual(loading.load_data(copy).fingerprint, data.fingerprint)


class TieOrderTest(parameterized.TestCase):

  def dataset(self, rows, times=True):
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    flat = [pair for row in rows for pair in row]
    data = dataset_lib.Interactions(
        tuple(map(str, range(len(rows)))), np.array([i for i, _ in flat], np.int32), offsets,
        np.array([t for _, t in flat], np.int64) if times else None,
        np.array([i / 2 for i, _ in flat], np.float32))
    return dataset_lib.make_dataset('x', dataset_lib.Catalog(tuple('abcdefghi'), {}), data)

  @examples(12, 60)
  @hypothesis.given(st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), max_size=6),
                             min_size=1, max_size=5), st.integers(0, 9))
  def test_items_move_among_neighbors_of_equal_time_alone(self, rows, seed):
    data = self.dataset(rows)
    moved = dataset_lib.in_tie_order(data, f'shuffle({seed})').interactions
    np.testing.assert_array_equal(moved.times, data.interactions.times)
    np.testing.assert_array_equal(moved.offsets, data.interactions.offsets)
    np.testing.assert_array_equal(moved.ratings, moved.items / 2)  # ratings go along
    for u, row in enumerate(rows):
      at = 0
      for _, group in itertools.groupby(row, lambda pair: pair[1]):
        want = sorted(i for i, _ in group)
        self.assertEqual(sorted(moved.history(u)[at:at + len(want)].tolist()), want)
        at += len(want)

  def test_every_order_comes_up_and_the_fingerprint_says_so(self):
    data = self.dataset([[(1, 0), (2, 5), (3, 5), (4, 6)]])
    orders = {tuple(dataset_lib.in_tie_order(data, f'shuffle({s})').interactions.items.tolist())
              for s in range(20)}
    self.assertEqual(orders, {(1, 2, 3, 4), (1, 3, 2, 4)})
    self.assertIs(dataset_lib.in_tie_order(data, 'file'), data)
    self.assertLen(
      {dataset_lib.in_tie_order(data, f'shuffle({s})').fingerprint for s in range(20)}, 2
    )

  def test_wrong_orders_and_missing_times_are_refused(self):
    data = self.dataset([[(1, 0), (2, 0)]])
    for order in ('random', 'shuffle', 'shuffle(x)', 'shuffle(1) '):
      with self.assertRaisesRegex(ConfigError, 'shuffle.SEED'):
        dataset_lib.in_tie_order(data, order)
    with self.assertRaisesRegex(DataError, 'x has no times'):
      dataset_lib.in_tie_order(self.dataset([[(1, 0)]], times=False), 'shuffle(1)')


if __name__ == '__main__':
  absltest.main()
