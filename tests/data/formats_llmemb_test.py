"""LLMEmb's own files in and out, the published filter, arrays out of pickles and nothing else."""
import json
import os
import pathlib
import pickle

import numpy as np
from absl.testing import absltest, parameterized

from recjax.data import loading
from recjax.data.formats import llmemb
from recjax.errors import DataError

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data' / 'formats' / 'llmemb'
ITEMS, USERS = ('a', 'b', 'c'), ('u', 'v')
ROWS = [[1, 2, 3, 1], [3, 2]]
PROMPTS = ['Head:\ntitle is A; brand is X', 'Head:\nbrand is Y', '']


class FilesTest(parameterized.TestCase):

  def folder(self, **prompts):
    folder = pathlib.Path(self.create_tempdir().full_path)
    llmemb.write(folder, ITEMS, USERS, ROWS, **(prompts or {'prompts': PROMPTS}))
    return folder

  def test_what_is_written_is_read(self):
    folder = self.folder()
    self.assertEqual(llmemb.read(folder), (ITEMS, list(USERS), ROWS, PROMPTS))
    self.assertEqual((folder / 'inter_seq.txt').read_text(), '1 1 2 3 1\n2 3 2\n')
    os.remove(folder / 'inter_seq.txt')  # the same out of pairs
    self.assertEqual(llmemb.read(folder), (ITEMS, list(USERS), ROWS, PROMPTS))
    os.remove(folder / 'item_str.jsonline')
    self.assertIsNone(llmemb.read(folder)[3])

  def test_a_data_set_is_made_of_a_folder(self):
    shop = loading.load_data(self.folder())
    self.assertEqual(shop.catalog.columns['title'], ['A', '', ''])
    self.assertEqual(shop.catalog.columns['prompt'], PROMPTS)
    self.assertEqual(shop.interactions.items.tolist(), [1, 2, 3, 1, 3, 2])

  @parameterized.parameters(
      ('inter_seq.txt', '1 1 4\n', 'line 1: item 4 is outside 1..3'),
      ('inter_seq.txt', '1 1\n1 2\n', 'line 2: user 1 was given before'),
      ('inter_seq.txt', '1 x\n', 'line 1: whole numbers'),
      ('inter_seq.txt', '3 1\n', 'user 3 is outside 1..2'),
      ('id_map.json', '{"id2item": {"1": "a", "3": "c"}, "id2user": {"1": "u"}}', 'without gaps'),
      ('item_str.jsonline', '{"input": "x", "item_id": "1"}\n' * 2, 'item_id 1 was given before'),
      ('item_str.jsonline', '{"input": "x", "item_id": "9"}\n', 'outside 1..3'),
      ('item_str.jsonline', '{"input": "x", "item_id": "2"}\n', r'2 items have no .*: \[1, 3\]'),
      ('item_str.jsonline', '{"input": "x"}\n', 'item_id and input'))
  def test_what_does_not_fit_names_file_and_line(self, name, text, said):
    folder = self.folder()
    (folder / name).write_text(text)
    with self.assertRaisesRegex(DataError, said):
      llmemb.read(folder)

  def test_a_published_folder_comes_back_as_it_was(self):
    if not SHARED.exists():
      self.skipTest(f'{SHARED} is not there')
    items, users, rows, prompts = llmemb.read(SHARED / 'scientific')
    self.assertEqual((len(items), len(users), sum(map(len, rows))), (2351, 600, 4296))
    out = pathlib.Path(self.create_tempdir().full_path)
    llmemb.write(out, items, users, rows, prompts)
    published = SHARED / 'scientific' / 'handled'
    for name in ('inter_seq.txt', 'inter.txt'):
      self.assertEqual((out / name).read_text(), (published / name).read_text())
    for name in ('id_map.json',):
      self.assertEqual(json.loads((out / name).read_text()),
                       json.loads((published / name).read_text()))
    lines = [[json.loads(line) for line in (place / 'item_str.jsonline').read_text().splitlines()]
             for place in (out, published)]
    self.assertEqual(*lines)


class ArrayTest(parameterized.TestCase):

  def path(self, name, data):
    path = pathlib.Path(self.create_tempdir().full_path) / name
    path.write_bytes(data)
    return path

  @parameterized.parameters(2, 4, 5)
  def test_pickles_of_arrays_are_read(self, protocol):
    x = np.random.default_rng(0).normal(size=(5, 3))
    got = llmemb.read_item_vectors(self.path('x.pkl', pickle.dumps(x, protocol)), 5)
    np.testing.assert_allclose(got, x, rtol=1e-6)
    self.assertEqual(got.dtype, np.float32)

  def test_pickles_of_anything_else_are_not_run(self):
    for value in (os.system, {'a': np.zeros((2, 2))}, np.zeros(3), np.zeros((2, 2), int)):
      with self.assertRaises(DataError):
        llmemb.read_item_vectors(self.path('x.pkl', pickle.dumps(value)))
    with self.assertRaisesRegex(DataError, 'no plain array'):
      llmemb.read_item_vectors(self.path('x.pkl', b'cos\nsystem\n(S"true"\ntR.'))

  def test_counts_and_numbers_are_checked(self):
    x = np.ones((4, 2), np.float32)
    path = pathlib.Path(self.create_tempdir().full_path) / 'x.npy'
    np.save(path, x)
    with self.assertRaisesRegex(DataError, '4 rows, the catalog 5 items'):
      llmemb.read_item_vectors(path, 5)
    x[2, 1] = np.inf
    np.save(path, x)
    with self.assertRaisesRegex(DataError, r'row 2 \(item 3\)'):
      llmemb.read_item_vectors(path)
    with self.assertRaisesRegex(DataError, 'does not exist'):
      llmemb.read_item_vectors(path.with_name('y.npy'))


if __name__ == '__main__':
  absltest.main()
