"""Records hold the same data set; batches follow from the step, however many processes."""
import importlib.util
import pathlib

import numpy as np
from absl.testing import absltest

from recjax.data import array_record, dataset, loading
from recjax.data.sample_shop import simulator
from recjax.errors import DataError, WorkdirError
from tests.long import long

MISSING = [m for m in ('tensorflow_datasets', 'grain', 'array_record')
           if importlib.util.find_spec(m) is None]


def padded(examples):
  """The last 5 items of each, padded on the left."""
  out = np.zeros((len(examples), 5), np.int32)
  for row, example in zip(out, examples):
    last = example['items'][-5:]
    row[5 - len(last):] = last
  return {'items': out}


@absltest.skipIf(MISSING, f'{", ".join(MISSING)} missing; pip install "recjax[data]"')
class RecordsTest(absltest.TestCase):

  @long
  def test_the_same_data_set_and_batches_of_any_number_of_processes(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    shop = simulator.make_shop(0)
    loading.save_data(shop, room / 'Shop 1')
    path = array_record.write(room / 'Shop 1', room / 'tfds')
    self.assertEqual(path, room / 'tfds' / 'shop_1' / '1.0.0')
    stored = array_record.load(path)
    goods, source = stored.catalog, stored.source
    self.assertEqual(goods.ids, shop.catalog.ids)
    self.assertEqual(goods.columns['title'], shop.catalog.columns['title'])
    self.assertEqual((stored.name, len(stored)), ('Shop 1', len(shop.interactions)))
    self.assertEqual(stored.fingerprint, loading.load_data(room / 'Shop 1').fingerprint)
    self.assertTrue(
      array_record.is_record_folder(path) and not array_record.is_record_folder(room / 'Shop 1')
    )
    some = stored.users(np.array([7, 0]))
    self.assertEqual(some.interactions.users, tuple(shop.interactions.users[u] for u in (7, 0)))
    for row, u in enumerate((7, 0)):
      np.testing.assert_array_equal(some.interactions.history(row), shop.interactions.history(u))
    np.testing.assert_array_equal(some.interactions.times, np.concatenate([
        shop.interactions.times[shop.interactions.offsets[u]:shop.interactions.offsets[u + 1]]
        for u in (7, 0)]))
    self.assertLen(source, len(shop.interactions))
    for u in (0, 7, len(source) - 1):
      self.assertEqual(source[u]['user_id'].decode(), shop.interactions.users[u])
      np.testing.assert_array_equal(source[u]['items'], shop.interactions.history(u))
    self.assertEqual(source[0]['items'].dtype, np.int32)
    with self.assertRaisesRegex(WorkdirError, 'exists already'):
      array_record.write(room / 'Shop 1', room / 'tfds')

    one = array_record.Batches(source, padded, 8, seed=3)
    again = array_record.Batches(source, padded, 8, seed=3)
    far = len(source)  # many epochs on
    for step in (0, 5, far, 1):
      whole = one[step]['items']
      np.testing.assert_array_equal(again[step]['items'], whole)
      for ways in (2, 4):
        parts = [array_record.Batches(source, padded, 8 // ways, 3, p, ways)[step]['items']
                 for p in range(ways)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    other = array_record.Batches(source, padded, 8, seed=4)
    self.assertFalse(np.array_equal(one[0]['items'], other[0]['items']))
    whole_pass = -(-len(source) // 8)
    seen = np.concatenate([one[i]['items'] for i in range(whole_pass)])[:len(source)]
    want = padded([source[u] for u in range(len(source))])['items']
    self.assertEqual(sorted(map(tuple, seen)), sorted(map(tuple, want)))

  def test_the_fingerprint_is_that_of_the_data_set_in_memory(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    rows = (['{"user_id": "\u00fc", "items": []}', '{"user_id": 7, "items": ["b", "a"]}'],
            ['{"user_id": "u", "items": ["a"], "timestamps": [3], "ratings": [0.1]}',
             '{"user_id": "v", "items": []}'], ['{"user_id": "u", "items": []}'])
    for number, lines in enumerate(rows):
      folder = room / str(number)
      folder.mkdir()
      (folder / 'items.jsonl').write_text('{"item_id": "a", "title": "\u00c4"}\n{"item_id": "b"}\n')
      (folder / 'sequences.jsonl').write_text('\n'.join(lines))
      stored = array_record.load(array_record.write(folder, room / 'tfds'))
      data = loading.load_data(folder)
      self.assertEqual(stored.fingerprint, data.fingerprint)
      again = stored.users(np.arange(len(stored)))
      self.assertEqual(dataset.fingerprint(again.catalog, again.interactions), data.fingerprint)
    self.assertCountEqual([p.name for p in room.iterdir()], ['0', '1', '2', 'tfds'])

  def test_any_folder_name_will_do(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    for number, name in enumerate(('1', '-x', 'a b.c', '\u6570\u636e', '..\\x', 'Con')):
      folder = room / name
      folder.mkdir()
      (folder / 'items.jsonl').write_text('{"item_id": "a"}\n')
      (folder / 'sequences.jsonl').write_text('{"user_id": "u", "items": ["a"]}\n')
      path = array_record.write(folder, room / f'out{number}')
      self.assertIn(room / f'out{number}', path.parents)
      self.assertLen(array_record.load(path), 1)

  def test_what_is_wrong_is_named(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(DataError, 'holds no items and sequences'):
      array_record.write(room, room / 'tfds')
    with self.assertRaisesRegex(DataError, 'holds no records'):
      array_record.load(room)
    (room / 'items.jsonl').write_text('{"item_id": "a"}\n')
    for line, why in (('{"user_id": "u", "items": ["b"]}', "'b' is not in the catalog"),
                      ('{"user_id": "u", "items": "a"}', 'must be a list'),
                      ('{"user_id": "u", "items": ["a"], "times": [1, 2]}', 'as long as items'),
                      ('{"user_id": "u", "items": ["a"], "times": "x"}', 'times must be'),
                      ('{"user_id": "u", "items": ["a"], "times": ["x"]}', 'times must be'),
                      ('no', 'not JSON')):
      (room / 'sequences.jsonl').write_text('{"user_id": "v", "items": ["a"]}\n' + line + '\n')
      with self.assertRaisesRegex(DataError, f'sequences.jsonl line 2: .*{why}'):
        array_record.write(room, room / 'tfds')
    (room / 'sequences.jsonl').write_text('{"user_id": "v", "items": ["a"]}\n'
                                          '{"user_id": "u", "items": ["a"], "times": [1]}\n')
    for _ in range(2):  # nothing of it stays behind
      with self.assertRaisesRegex(DataError, 'only some users have times'):
        array_record.write(room, room / 'tfds')


if __name__ == '__main__':
  absltest.main()
