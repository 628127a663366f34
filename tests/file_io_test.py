"""Files: whole or as they were, journals at any byte, one holder of a lock."""
import errno
import os
import pathlib
import subprocess
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recjax import file_io
from recjax.errors import DataError, WorkdirError

ROWS = [{'n': 0}, {'n': 1, 'text': 'ü\n'}, {'n': 22}]
HEADER = {'of': 'this'}


def good(value):
  return isinstance(value, dict) and 'n' in value


class AtomicTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'a.txt'
    self.path.write_text('old')

  def unchanged(self):
    self.assertEqual(self.path.read_text(), 'old')
    self.assertEqual(os.listdir(self.folder), ['a.txt'])

  def test_what_stood_there_stays_until_the_new_file_is_whole(self):
    with self.assertRaises(KeyError), file_io.atomic_path(self.path) as fresh:
      fresh.write_text('half')
      self.assertEqual(self.path.read_text(), 'old')
      raise KeyError
    self.unchanged()
    file_io.write_atomic(self.path, 'new ü')
    self.assertEqual(self.path.read_bytes(), 'new ü'.encode())
    file_io.write_atomic(self.path, b'\xff')
    self.assertEqual(self.path.read_bytes(), b'\xff')
    self.assertEqual(os.listdir(self.folder), ['a.txt'])

  def test_a_full_disk_leaves_what_stood_there(self):
    with mock.patch.object(file_io.os, 'fsync', side_effect=OSError(errno.ENOSPC, 'full')), \
        self.assertRaisesRegex(WorkdirError, 'a.txt cannot be written: full'):
      file_io.write_text(self.path, 'new')
    self.unchanged()
    with self.assertRaisesRegex(DataError, 'half a surrogate pair'):
      file_io.write_text(self.path, '\ud800')

  def test_it_is_on_disk_before_it_has_its_name(self):
    calls = []

    def place(fresh, path):
      calls.append('place')
      os.replace(fresh, path)
    with mock.patch.object(file_io.os, 'fsync', side_effect=lambda _: calls.append('fsync')), \
        file_io.atomic_path(self.path, place) as fresh:
      fresh.write_text('x')
    self.assertEqual(calls, ['fsync', 'place', 'fsync'])  # the file, its name, the folder

  def test_arrays_come_back_and_objects_are_refused(self):
    file_io.write_arrays(self.folder / 'x.npy', np.arange(3))
    np.testing.assert_array_equal(np.load(self.folder / 'x.npy'), np.arange(3))
    file_io.write_arrays(self.folder / 'x.npz', {'a/b': np.ones(2), 'c': np.zeros(1)})
    with np.load(self.folder / 'x.npz') as found:
      self.assertEqual(sorted(found.files), ['a/b', 'c'])
    with self.assertRaises(ValueError):
      file_io.write_arrays(self.folder / 'x.npy', np.array([{}], object))
    np.testing.assert_array_equal(np.load(self.folder / 'x.npy'), np.arange(3))

  def test_a_folder_takes_the_place_of_another_only_when_told_to(self):
    target = self.folder / 'f'
    for text in ('one', 'two'):
      with file_io.atomic_folder(target, overwrite=True) as fresh:
        (fresh / 'x').write_text(text)
      self.assertEqual((target / 'x').read_text(), text)
    with self.assertRaises(OSError), file_io.atomic_folder(target) as fresh:
      (fresh / 'x').write_text('three')
    with self.assertRaises(KeyError), file_io.atomic_folder(target, overwrite=True):
      raise KeyError
    self.assertEqual((target / 'x').read_text(), 'two')
    self.assertEqual(sorted(os.listdir(self.folder)), ['a.txt', 'f'])


class ReadTest(absltest.TestCase):

  def test_rows_are_read_as_a_stream_with_their_places(self):
    path = self.create_tempfile(content=b'\xef\xbb\xbf{"a": 1}\r\n\n{"b": 2}').full_path
    self.assertEqual(list(file_io.read_rows(path)), [(f'{path} line 1', {'a': 1}),
                                                     (f'{path} line 3', {'b': 2})])
    with self.assertRaisesRegex(DataError, 'line 2 is empty; remove it'):
      list(file_io.read_rows(path, blank_lines=False))
    pathlib.Path(path).write_text('{"a": 1}\n[2]\n')
    rows = file_io.read_rows(path)
    self.assertEqual(next(rows)[1], {'a': 1})
    with self.assertRaisesRegex(DataError, 'line 2: a JSON object is expected, found a list'):
      next(rows)
    pathlib.Path(path).write_text('{"a": 1}\n{"b":\n')
    with self.assertRaisesRegex(DataError, 'line 2, column 6: not valid JSON'):
      list(file_io.read_rows(path))

  def test_what_other_programs_write_may_be_laxer(self):
    path = pathlib.Path(self.create_tempfile(content='{"a": NaN, "a": 1}').full_path)
    self.assertEqual(file_io.read_json(path, strict=False), {'a': 1})
    with self.assertRaisesRegex(DataError, 'line 1'):
      file_io.read_json(path)


class JournalTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'deep' / 'j.jsonl'

  def open(self, header=None, check=good):
    return file_io.Journal(self.path, check, header)

  def written(self, header):
    with self.open(header) as journal:
      journal.add(ROWS[:2])
      journal.add(ROWS[2:])
      journal.add([])
    return self.path.read_bytes()

  @parameterized.parameters((None,), (HEADER,))
  def test_whatever_byte_a_kill_stops_at_whole_lines_stay_and_it_goes_on(self, header):
    whole = self.written(header)
    above = b'' if header is None else file_io.encode_lines([header])
    ends = [len(above + file_io.encode_lines(ROWS[:n])) - 1 for n in (1, 2, 3)]  # of lines
    for size in range(len(whole) + 1):
      self.path.write_bytes(whole[:size])
      with self.open(header) as journal:
        count = sum(size >= end for end in ends)  # one whose line end alone is missing is there
        self.assertEqual(list(journal.rows()), ROWS[:count], size)
        self.assertEqual(journal.count, count)
        journal.add(ROWS[count:])
      self.assertEqual(self.path.read_bytes(), whole, size)

  def test_a_damaged_line_before_the_last_is_refused_and_nothing_is_cut(self):
    whole = self.written(HEADER)
    lines = whole.split(b'\n')
    for number, damage in ((2, b'{"n": '), (2, b''), (3, b'{"m": 1}'), (4, b'null'), (2, b'3')):
      self.path.write_bytes(b'\n'.join([*lines[:number - 1], damage, *lines[number:]]))
      before = self.path.read_bytes()
      with self.assertRaisesRegex(WorkdirError, f'line {number} is damaged; delete that line'):
        self.open(HEADER).__enter__()
      self.assertEqual(self.path.read_bytes(), before)

  def test_files_of_others_are_refused_and_those_of_another_request_told(self):
    self.path.parent.mkdir()
    for text in (b'mine', b'mine\n', b'[]\n', b'{"other": 1}\n', b'{"of": "that"}'):
      self.path.write_bytes(text)
      with self.assertRaisesRegex(WorkdirError, 'was not made by this command'):
        self.open(HEADER).__enter__()
      self.assertEqual(self.path.read_bytes(), text)
    self.path.write_bytes(b'{"of": "that"}\n{"n": 1}\n')
    with self.open(HEADER) as journal:
      self.assertEqual((journal.held, journal.count), ({'of': 'that'}, 1))

  def test_it_is_cut_back_to_so_many_lines(self):
    for header in (None, HEADER):
      self.path.unlink(missing_ok=True)
      self.written(header)
      with self.open(header) as journal:
        journal.keep(1)
        journal.add(ROWS[2:])
        self.assertEqual(list(journal.rows()), [ROWS[0], ROWS[2]])
      with self.open(header) as journal:
        self.assertEqual(list(journal.rows()), [ROWS[0], ROWS[2]])

  def test_a_group_that_the_disk_does_not_take_is_not_there_at_all(self):
    with self.open() as journal:
      journal.add(ROWS[:1])
      with mock.patch.object(file_io.os, 'fsync', side_effect=OSError(errno.ENOSPC, 'full')), \
          self.assertRaisesRegex(WorkdirError, r'cannot be written \(full\)'):
        journal.add(ROWS[1:])
      self.assertEqual((journal.count, self.path.read_bytes()),
                       (1, file_io.encode_lines(ROWS[:1])))
      journal.add(ROWS[1:])
    self.assertEqual(self.path.read_bytes(), file_io.encode_lines(ROWS))

  def test_one_process_has_it_at_a_time(self):
    with self.open():
      with self.assertRaisesRegex(WorkdirError, 'in use by another process'):
        self.open().__enter__()
      code = ('import sys\nfrom recjax import file_io\n'
              'with file_io.Journal(sys.argv[1], wait=True) as journal:\n  journal.add([{"n": 9}])')
      child = subprocess.Popen([sys.executable, '-c', code, str(self.path)])
      with self.assertRaises(subprocess.TimeoutExpired):
        child.wait(1)
      self.assertEqual(self.path.read_bytes(), b'')
    self.assertEqual(child.wait(), 0)
    with self.open() as journal:
      self.assertEqual(list(journal.rows()), [{'n': 9}])

  def test_half_a_surrogate_pair_is_kept(self):
    with self.open() as journal:
      journal.add([{'n': '\ud800'}])
      self.assertEqual(list(journal.rows()), [{'n': '\ud800'}])


class LockTest(absltest.TestCase):

  def test_it_says_who_has_it_and_is_free_when_it_is_let_go_or_its_holder_is_gone(self):
    path = self.create_tempfile().full_path
    first, second = file_io.FileLock(path), file_io.FileLock(path)
    with second.file:
      with first.file:
        self.assertTrue(first.acquire())
        self.assertTrue(first.acquire())  # it has it already
        self.assertFalse(second.acquire())
        self.assertRegex(second.holder(), f'^process {os.getpid()} on .* since ')
        first.release()
        self.assertTrue(second.acquire())
        self.assertFalse(first.acquire())
        second.release()
        self.assertEqual(second.holder(), 'another process')
        self.assertTrue(first.acquire())
      self.assertTrue(second.acquire())


if __name__ == '__main__':
  absltest.main()
