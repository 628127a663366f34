"""Records hold the same data set; batches follow from the step, however many processes."""
import importlib.util
import pathlib

import numpy as np
from absl.testing import absltest

from recjax.data import catalog, records, sample_shop
from recjax.errors import DataError, WorkdirError

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

  def test_the_same_data_set_and_batches_of_any_number_of_processes(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    shop = sample_shop.make(0)
    catalog.save_data(shop, room / 'Shop 1')
    path = records.write(room / 'Shop 1', room / 'tfds')
    self.assertEqual(path, room / 'tfds' / 'shop_1' / '1.0.0')
    goods, source = records.load(path)
    self.assertEqual(goods.ids, shop.catalog.ids)
    self.assertEqual(goods.columns['title'], shop.catalog.columns['title'])
    self.assertLen(source, len(shop.interactions))
    for u in (0, 7, len(source) - 1):
      self.assertEqual(source[u]['user_id'].decode(), shop.interactions.users[u])
      np.testing.assert_array_equal(source[u]['items'], shop.interactions.history(u))
    self.assertEqual(source[0]['items'].dtype, np.int32)
    with self.assertRaisesRegex(WorkdirError, 'exists already'):
      records.write(room / 'Shop 1', room / 'tfds')

    one = records.batches(source, padded, 8, seed=3)
    again = records.batches(source, padded, 8, seed=3)
    far = len(source)  # many epochs on
    for step in (0, 5, far, 1):
      whole = one[step]['items']
      np.testing.assert_array_equal(again[step]['items'], whole)
      parts = [records.batches(source, padded, 4, 3, p, 2)[step]['items'] for p in range(2)]
      self.assertEqual(sorted(map(tuple, np.concatenate(parts))), sorted(map(tuple, whole)))
    other = records.batches(source, padded, 8, seed=4)
    self.assertFalse(np.array_equal(one[0]['items'], other[0]['items']))
    whole_pass = -(-len(source) // 8)
    seen = np.concatenate([one[i]['items'] for i in range(whole_pass)])[:len(source)]
    want = padded([source[u] for u in range(len(source))])['items']
    self.assertEqual(sorted(map(tuple, seen)), sorted(map(tuple, want)))

  def test_any_folder_name_will_do(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    for number, name in enumerate(('1', '-x', 'a b.c', '\u6570\u636e', '..\\x', 'Con')):
      folder = room / name
      folder.mkdir()
      (folder / 'items.jsonl').write_text('{"item_id": "a"}\n')
      (folder / 'sequences.jsonl').write_text('{"user_id": "u", "items": ["a"]}\n')
      path = records.write(folder, room / f'out{number}')
      self.assertIn(room / f'out{number}', path.parents)
      self.assertLen(records.load(path)[1], 1)

  def test_what_is_wrong_is_named(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(DataError, 'holds no items and sequences'):
      records.write(room, room / 'tfds')
    with self.assertRaisesRegex(DataError, 'holds no records'):
      records.load(room)
    (room / 'items.jsonl').write_text('{"item_id": "a"}\n')
    for line, why in (('{"user_id": "u", "items": ["b"]}', "'b' is not in the catalogue"),
                      ('{"user_id": "u", "items": "a"}', 'must be a list'),
                      ('{"user_id": "u", "items": ["a"], "times": [1, 2]}', 'as long as items'),
                      ('no', 'not JSON')):
      (room / 'sequences.jsonl').write_text('{"user_id": "v", "items": ["a"]}\n' + line + '\n')
      with self.assertRaisesRegex(DataError, f'sequences.jsonl line 2: .*{why}'):
        records.write(room, room / 'tfds')


if __name__ == '__main__':
  absltest.main()
