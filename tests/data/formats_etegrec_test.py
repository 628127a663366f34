"""Index files in every published form, interests, and state dicts that nothing runs to read."""
import contextlib
import json
import pathlib
import tempfile
import zipfile

import numpy as np
from absl.testing import absltest

from recjax.data.formats import etegrec, safe_pickle
from recjax.errors import DataError


class FormatsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(tempfile.mkdtemp()) / 'x'

  def test_index_round_trip(self):
    codes, ids = np.array([[0, 3], [255, 1]], np.int32), ('x', 'y')
    for form in ('letters', 'numbers', 'rows'):
      etegrec.write_index(self.path, codes, ids, form)
      np.testing.assert_array_equal(etegrec.read_index(self.path, ids), codes)
    etegrec.write_index(self.path, codes)
    self.assertEqual(json.loads(self.path.read_text())['1'], ['<a_255>', '<b_1>'])
    np.testing.assert_array_equal(etegrec.read_index(self.path), codes)

  def test_index_from_one_of_several_lengths_and_wrong(self):
    for value, want in (({'0': [1, 2], '1': [3, 1]}, [[0, 1], [2, 0]]),
                        ({'0': ['<a_0>', '<b_2>'], '1': ['<a_0>', '<b_2>', '<c_1>']},
                         [[0, 2, 0], [0, 2, 1]])):
      self.path.write_text(json.dumps(value))
      self.assertEqual(etegrec.read_index(self.path).tolist(), want)
    with self.assertRaisesRegex(DataError, 'rows of 2 to 3 codes'):
      etegrec.read_index(self.path, mixed='error')
    with self.assertRaisesRegex(DataError, 'lacks item'):
      etegrec.read_index(self.path, ('0', '1', '2'))
    for value, what in (({'0': ['a17']}, 'is no code'), ([[-1], [0]], 'codes of 1 items')):
      self.path.write_text(json.dumps(value))
      with self.assertRaisesRegex(DataError, what):
        etegrec.read_index(self.path, () if isinstance(value, dict) else ('a', 'b'))

  def test_interests(self):
    tagged = 'x <interest> Tea </interest>\n<interest>tea</interest><interest>Pots</interest>'
    self.assertEqual(etegrec.parse_interests(tagged), ['Tea', 'Pots'])
    self.assertEqual(etegrec.parse_interests('ok: {"interests": ["a", "b"]}'), ['a', 'b'])
    self.assertEqual(etegrec.parse_interests('no'), [])
    rows = [{'inter_history': ['a', 'b'], 'target_id': 'c', 'interests': ['x', 'y']},
            {'inter_history': ['c'], 'target_id': 'c', 'interests': []}]
    etegrec.write_interests(self.path, rows)
    self.assertIn(r'x\\ny', self.path.read_text())
    found, counts = etegrec.read_interests([self.path])
    self.assertEqual(found, {('a', 'b'): ['x', 'y'], ('c',): []})
    self.assertEqual(counts, {'rows': 2, 'without_interests': 1})

  def test_state_dicts(self):
    try:
      import torch
    except ImportError:
      self.skipTest('torch is not installed')
    state = {'a.weight': torch.arange(6.).reshape(2, 3), 'b': torch.arange(8.)[2:5],
             'c': torch.arange(6.).reshape(2, 3).T}
    for value in (state, {'args': {'x': 1}, 'epoch': 3, 'state_dict': state}):
      torch.save(value, self.path)
      found = safe_pickle.read_torch_state(self.path)
      self.assertEqual(set(found), set(state))
      for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())

  def test_nothing_runs(self):
    mark = self.path.with_name('ran')
    code = f'cposix\nsystem\n(Vtouch {mark}\ntR.'.encode()
    with zipfile.ZipFile(self.path, 'w') as archive:
      archive.writestr('archive/data.pkl', code)
    with contextlib.suppress(DataError):
      self.assertEqual(safe_pickle.read_torch_state(self.path), {})
    self.assertFalse(mark.exists())
    self.path.write_bytes(b'no zip')
    with self.assertRaisesRegex(DataError, 'cannot be read as a torch state dict'):
      safe_pickle.read_torch_state(self.path)


if __name__ == '__main__':
  absltest.main()
