"""The run folder: stages run once, whole or not at all, and only for one process."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

from absl.testing import absltest

from recjax import errors
from recjax.training import work as works

ROOT = pathlib.Path(__file__).parents[2]


class WorkTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'run'

  def open(self):
    return works.open_work(self.path, {'config': {}})

  def test_a_stage_runs_once_for_equal_inputs_and_again_for_others(self):
    calls = []

    def fn(work, x):
      calls.append(x)
      (work.folder / 'out').write_text(str(x))
      return {'x': x}

    for x in (1, 1, 2):
      with self.open() as work:
        folder = work.stage('one', fn, x)
        self.assertEqual((folder / 'out').read_text(), str(x))
    self.assertEqual(calls, [1, 2])
    self.assertEqual(json.loads((folder / 'DONE.json').read_text())['counts'], {'x': 2})

  def test_a_later_stage_runs_again_when_an_earlier_one_changed(self):
    calls = []
    for seed in (0, 0, 1):
      with self.open() as work:
        first = work.stage('first', lambda w, s: (w.folder / 'a').write_text(str(s)) and None, seed)
        work.stage('second', lambda w, f: calls.append((f / 'a').read_text()), first)
    self.assertEqual(calls, ['0', '1'])

  def test_a_failed_stage_leaves_nothing_that_looks_done_and_keeps_its_partial_work(self):
    def fails(work):
      (work.folder / 'half').write_text('kept')
      raise ValueError('no')

    with self.assertRaises(ValueError), self.open() as work:
      work.stage('one', fails)
    self.assertFalse((self.path / 'stages' / '01-one').exists())
    with self.open() as work:
      folder = work.stage('one', lambda w: None)
    self.assertEqual((folder / 'half').read_text(), 'kept')

  def test_partial_work_of_other_inputs_is_cleared(self):
    def fails(work, x):
      (work.folder / 'half').write_text('old')
      raise ValueError(x)

    with self.assertRaises(ValueError), self.open() as work:
      work.stage('one', fails, 1)
    with self.open() as work:
      folder = work.stage('one', lambda w, x: None, 2)
    self.assertFalse((folder / 'half').exists())

  def test_other_processes_read_the_shared_folder_and_write_into_their_own(self):
    with self.open() as work:
      work.stage('one', lambda w: (w.folder / 'a').write_text('x') and None)
      work.record(1, {'loss': 2.0})
    room = pathlib.Path(self.create_tempdir().full_path)
    seen = works.mirror(self.path, room)
    self.assertEqual((works.find_stage(seen, 'one') / 'a').read_text(), 'x')
    other = works.Work(seen, None, first=False)
    other.record(2, {'loss': 1.0})
    self.assertEqual([r['step'] for r in other.metrics()], [1, 2])
    with self.open() as work:
      self.assertEqual([r['step'] for r in work.metrics()], [1])
    with self.assertRaisesRegex(errors.WorkdirError, 'file system that all hosts share'):
      works.mirror(self.path.with_name('elsewhere'), room)

  def test_a_second_process_is_told_who_holds_the_folder(self):
    with self.open():
      code = f"""
          from recjax import errors
          from recjax.training import work
          def go():
            with work.open_work({str(self.path)!r}):
              print('opened')
          errors.guard(go)
          """
      done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT,
                            capture_output=True, text=True)
    self.assertEqual(done.returncode, 2)
    self.assertIn(f'process {os.getpid()}', done.stderr)
    self.assertNotIn('Traceback', done.stderr)

  def test_a_killed_process_frees_the_folder_and_its_stage_goes_on(self):
    code = f"""
        import os, signal
        from recjax.training import work
        def fn(w):
          (w.folder / 'half').write_text('done')
          os.kill(os.getpid(), signal.SIGKILL)
        with work.open_work({str(self.path)!r}, {{}}) as w:
          w.stage('one', fn)
        """
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, check=False)
    self.assertEqual(done.returncode, -signal.SIGKILL)
    with self.open() as work:
      folder = work.stage('one', lambda w: {'found': (w.folder / 'half').read_text()})
    self.assertEqual(json.loads((folder / 'DONE.json').read_text())['counts']['found'], 'done')

  def test_metrics_past_a_restored_step_are_forgotten_and_torn_lines_ignored(self):
    with self.open() as work:
      work.current = 'tune'
      for step in (1, 2, 3):
        work.record(step, {'loss': 1.0 / step})
      with open(self.path / 'metrics.jsonl', 'a') as f:
        f.write('{"step": 4, "sta')
      work.drop_metrics('tune', 2)
      self.assertEqual([r['step'] for r in work.metrics()], [1, 2])

  def test_a_full_disk_is_an_error_with_a_remedy(self):
    def full(work):
      with open('/dev/full', 'w') as f:
        f.write('x' * 100_000)

    with self.assertRaises(SystemExit) as stop, self.open() as work:
      errors.guard(lambda: work.stage('one', full))
    self.assertEqual(stop.exception.code, 2)

  def test_an_unwritable_folder_is_named(self):
    blocked = self.path.parent / 'file'
    blocked.write_text('')
    with self.assertRaisesRegex(errors.WorkdirError, 'choose another --workdir'), \
        works.open_work(blocked / 'run'):
      pass

  def test_an_input_without_a_fingerprint_is_refused(self):
    with self.assertRaises(TypeError):
      works.fingerprint(object())

  def test_fingerprints_do_not_depend_on_key_order(self):
    self.assertEqual(works.fingerprint({'a': 1, 'b': (2, 3)}),
                     works.fingerprint({'b': [2, 3], 'a': 1}))


if __name__ == '__main__':
  absltest.main()
