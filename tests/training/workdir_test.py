"""The run folder: stages run once, whole or not at all, and only for one process."""
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from ml_collections import ConfigDict

from recjax import errors, progress
from recjax.training import loop
from recjax.training import workdir as workdir_lib
from tests import devices
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]


class Stopped(Exception):
  pass


class Breaks:
  """Batches, up to one that cannot be read."""

  def __init__(self, batches, stop):
    self.batches, self.stop = batches, stop

  def __getitem__(self, i):
    if i >= self.stop:
      raise Stopped
    return self.batches[i]


class WorkTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'run'

  def open(self):
    return workdir_lib.open_work(self.path, {'config': {}})

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

  def test_a_stage_that_says_nothing_is_told_of_in_its_log(self):
    with mock.patch.object(progress, 'QUIET', 0.01), mock.patch.object(progress, 'LOOK', 0.01), \
        workdir_lib.open_work(self.path, {}) as work:
      def silent(work):
        with progress.doing('opening the model'):
          while 'slow: opening the model ... 0 s' not in (self.path / 'run.log').read_text():
            time.sleep(0.01)  # as long as the timer thread needs
      work.stage('slow', silent)
    self.assertEmpty(progress._watched)
    self.assertNotIn('recjax-pulse', [t.name for t in threading.enumerate()])

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

  def test_training_state_of_other_inputs_is_cleared_and_that_of_other_stages_stays(self):
    def fails(work, x):
      work.checkpoints().mkdir(parents=True, exist_ok=True)
      (work.checkpoints() / '4').write_text(str(x))
      work.record(4, {'loss': x})
      raise Stopped
    seen = []

    def fn(work, x):
      found = work.checkpoints() / '4'
      seen.append((found.read_text() if found.exists() else None,
                   [r['loss'] for r in work.metrics() if r['stage'] == 'train']))
      raise Stopped
    for what, x in ((fails, 1), (fn, 1), (fn, 2)):
      with self.assertRaises(Stopped), self.open() as work:
        work.stage('first', lambda w: w.checkpoints().mkdir(exist_ok=True) or w.record(
            1, {'loss': 0}))
        work.stage('train', what, x)
    self.assertEqual(seen, [('1', [1]), (None, [])])
    self.assertTrue((self.path / 'checkpoints' / 'first').is_dir())
    with self.open() as work:
      self.assertEqual([r['stage'] for r in work.metrics()], ['first'])

  def test_training_goes_on_for_equal_inputs_and_begins_anew_for_others(self):
    def settings(lr, steps=20):
      return ConfigDict(dict(steps=steps, seed=3, log_every=5, save_every=4, eval_every=0,
                             patience=0, optim=dict(lr=lr, warmup=0, schedule='constant', decay=0.0,
                                                    clip=0.0, beta2=0.99)))
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    task = loop.Task(init=lambda key: {'w': jnp.ones(4)}, batches=[{'x': x}] * 30,
                    loss=lambda t, f, b, k: (((b['x'] @ t['w']) ** 2).mean(), {}))

    def run(path, cfg, stop=99):
      def fn(work, cfg):
        batches = Breaks(task.batches, stop)
        np.save(work.folder / 'w.npy', loop.fit(dataclasses.replace(
            task, batches=batches), cfg, work)['w'])
      with workdir_lib.open_work(path, {'config': {}}, devices.mesh(data=1)) as work:
        return np.load(work.stage('train', fn, cfg) / 'w.npy')
    want = run(self.path.with_name('straight'), settings(.05))
    for other in (settings(.1), settings(.05, 12)):  # the second ends where a checkpoint stands
      path = self.path.with_name(f'{other.optim.lr} {other.steps}')
      with self.assertRaises(Stopped):
        run(path, other, stop=10)
      np.testing.assert_array_equal(run(path, settings(.05)), want)
      self.assertNotIn('going on', (path / 'run.log').read_text())
      log = [json.loads(line)['step'] for line in (
          path / 'metrics.jsonl').read_text().splitlines()]
      self.assertEqual(log, [4, 5, 8, 10, 12, 15, 16, 20])

  def test_other_processes_read_the_shared_folder_and_write_into_their_own(self):
    with self.open() as work:
      work.stage('one', lambda w: (w.folder / 'a').write_text('x') and None)
      work.record(1, {'loss': 2.0})
    room = pathlib.Path(self.create_tempdir().full_path)
    seen = workdir_lib.mirror(self.path, room)
    self.assertEqual((workdir_lib.find_stage(seen, 'one') / 'a').read_text(), 'x')
    other = workdir_lib.Workdir(seen, None, first=False)
    other.record(2, {'loss': 1.0})
    self.assertEqual([r['step'] for r in other.metrics()], [1, 2])
    with self.open() as work:
      self.assertEqual([r['step'] for r in work.metrics()], [1])
    with self.assertRaisesRegex(errors.WorkdirError, 'file system that all hosts share'):
      workdir_lib.mirror(self.path.with_name('elsewhere'), room)

  @long
  def test_a_second_process_is_told_who_holds_the_folder(self):
    with self.open():
      code = f"""
          from recjax import errors, progress
          from recjax.training import workdir
          def go():
            with workdir.open_work({str(self.path)!r}):
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
        from recjax.training import workdir
        def fn(w):
          (w.folder / 'half').write_text('done')
          os.kill(os.getpid(), signal.SIGKILL)
        with workdir.open_work({str(self.path)!r}, {{}}) as w:
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
        workdir_lib.open_work(blocked / 'run'):
      pass

  def test_an_input_without_a_fingerprint_is_refused(self):
    with self.assertRaises(TypeError):
      workdir_lib.fingerprint(object())

  def test_fingerprints_do_not_depend_on_key_order(self):
    self.assertEqual(workdir_lib.fingerprint({'a': 1, 'b': (2, 3)}),
                     workdir_lib.fingerprint({'b': [2, 3], 'a': 1}))

  def test_fingerprints_tell_apart_all_that_may_decide_a_result(self):
    values = (
        [1, 2], [2, 1], [1, 2, 2], [[1], 2], [1, [2]], [], None, '', 0, 1, '1', 1.0, True, [1],
        {'a': [1, 2]}, {'a': [2, 1]}, {'b': [1, 2]}, {}, ['a', 'b'], ['b', 'a'], ['ab'],
        (('x', 1), ('y', 2)), (('y', 2), ('x', 1)), ['', 'a'], ['a', ''],
        np.array([1, 2]), np.array([2, 1]), np.array([[1, 2]]), np.array([1, 2], np.float32),
        np.zeros(2, np.float32), np.zeros(2, np.int32), ConfigDict({'a': (2, 3)}),
        ConfigDict({'a': (3, 2)}))
    found = [workdir_lib.fingerprint(v) for v in values]
    found += [
      workdir_lib.fingerprint(*some) for some in (([1], [2]), ([2], [1]), ('a', 'b'), ('b', 'a'))
    ]
    again = {f: i for i, f in enumerate(found)}
    self.assertEqual([again[f] for f in found], list(range(len(found))))

  def test_a_folder_is_known_by_names_and_contents_and_a_large_file_by_parts_of_it(self):
    room = self.path.parent / 'weights'
    room.mkdir()
    for name, text in (('a', 'one'), ('b', 'two')):
      (room / name).write_text(text)
    big = room / 'model.safetensors'
    found = []
    with mock.patch.object(workdir_lib, 'HASHED', 1 << 20):
      data = np.random.default_rng(0).bytes(5 << 20)
      for change in (None, 0, 123_456, 3 << 20, len(data) - 1):
        now = bytearray(data)
        if change is not None:
          now[change : change + workdir_lib.BLOCK] = bytes(
            len(now[change : change + workdir_lib.BLOCK])
          )
        big.write_bytes(now)
        found.append(workdir_lib.fingerprint(room))
      big.write_bytes(data)
      self.assertEqual(workdir_lib.fingerprint(room), found[0])
      os.replace(room / 'a', room / 'c')
      found.append(workdir_lib.fingerprint(room))
      (room / 'c').write_text('two')
      (room / 'b').write_text('one')
      found.append(workdir_lib.fingerprint(room))
    self.assertLen(set(found), len(found))


if __name__ == '__main__':
  absltest.main()
