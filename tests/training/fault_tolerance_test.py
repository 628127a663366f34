"""Numbers that are none, stalled input, hung steps, SIGTERM, full memory: named, and harmless."""
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from ml_collections import ConfigDict

from recjax import errors
from recjax.data.batches import Batches
from recjax.training import epoch_loop, fault_tolerance
from recjax.training import loop as fitting
from recjax.training import workdir as workdir_lib
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]

OPTIM = types.SimpleNamespace(lr=0.05, warmup=0, schedule='constant', decay=0.0, clip=0.0,
                              beta2=0.99)

SETTINGS = types.SimpleNamespace(steps=12, seed=3, log_every=4, save_every=4, eval_every=0,
                                 optim=OPTIM, patience=0)


def task(bad_row=-1):
  """A line to fit; the example `bad_row` is infinite."""
  x = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
  y = x @ np.array([[1.0], [2.0], [-1.0], [0.5]], np.float32)
  if bad_row >= 0:
    y[bad_row] = np.inf
  return fitting.Task(
      init=lambda key: {'w': jax.random.normal(key, (4, 1))},
      loss=lambda t, f, b, k: (jnp.mean((b['x'] @ t['w'] - b['y'])**2), {}),
      batches=Batches(lambda r: {'x': x[r], 'y': y[r]}, 24, 4, seed=1))


class GuardsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'run'

  def open(self, **guarded):
    return workdir_lib.open_work(self.path, {}, jax.sharding.Mesh(
        np.array(jax.devices()[:1]), ('data',), axis_types=(jax.sharding.AxisType.Auto,)),
        fault_tolerance.Guards(**guarded))

  def train(self, what, settings=SETTINGS, **guarded):
    with self.open(**guarded) as work:
      work.current = 'fit'
      return jax.device_get(fitting.fit(what, settings, work))['w'], work.metrics()

  def bad_steps(self):
    return [json.loads(line) for line in (self.path / 'bad_steps.jsonl').read_text().splitlines()]

  def test_a_batch_that_gives_no_number_stops_the_run_and_is_kept(self):
    what = task(bad_row=7)
    step = next(i for i in range(12) if 7 in what.batches.rows_of(i))
    with self.assertRaisesRegex(errors.UserError, rf'step {step} .*--on_nan=skip'):
      self.train(what)
    row, = self.bad_steps()
    self.assertEqual((row['stage'], row['step']), ('fit', step))
    self.assertEqual(row['rows'], what.batches.rows_of(step).tolist())
    with np.load(self.path / row['batch'], allow_pickle=False) as kept:
      np.testing.assert_array_equal(kept['y'], what.batches[step]['y'])

  def test_skipping_leaves_the_batch_out_and_the_parameters_clean(self):
    trained, rows = self.train(task(bad_row=7), on_nan='skip')
    self.assertTrue(np.isfinite(trained).all())
    bad = {r['step'] for r in self.bad_steps()}
    self.assertEqual(sum(r.get('skipped', 0) for r in rows), len(bad))
    self.assertTrue(all(np.isfinite(r['loss']) for r in rows))

  def test_a_skipped_step_leaves_the_parameters_as_they_were(self):
    def steps(n):
      return types.SimpleNamespace(**{**vars(SETTINGS), 'steps': n})
    before, _ = self.train(task(), steps(5))
    self.path = self.path.with_name('one_more')
    after, _ = self.train(self.spoilt_at(5), steps(6), on_nan='skip')
    np.testing.assert_array_equal(after, before)

  def spoilt_at(self, step):
    """The clean task with one batch spoilt."""
    what = task()

    class Spoilt:
      def __getitem__(self, i):
        batch = what.batches[i]
        return {**batch, 'y': batch['y'] * np.float32(np.nan)} if i == step else batch
    return dataclasses.replace(what, batches=Spoilt())

  def test_a_run_without_one_good_step_stops_even_when_skipping(self):
    what = task()

    class Spoilt:
      def __getitem__(self, i):
        return {k: v * np.float32(np.nan) for k, v in what.batches[i].items()}
    with self.assertRaisesRegex(errors.UserError, 'nan'):
      self.train(dataclasses.replace(what, batches=Spoilt()), on_nan='skip')

  def test_an_epoch_with_no_number_names_its_step_and_users_and_saves_nothing(self):
    means = {'loss': np.array([0.5, np.nan]), 'bad': np.array([-1, 3])}
    with self.open() as work, self.assertRaisesRegex(errors.UserError, 'epoch 2, step 3'):
      work.current = 'train'
      epoch_loop.check(means, 2, work, lambda seed, epoch, step: [seed, epoch, step])
    row, = self.bad_steps()
    self.assertEqual(row['rows'], [1, 1, 3])

  def test_stalled_input_is_named(self):
    late = threading.Event()
    with self.open(stall=0.05) as work, concurrent.futures.ThreadPoolExecutor(1) as reader:
      work.current, say = 'tune', work.log
      work.log = lambda text: (say(text), late.set())
      coming = reader.submit(lambda: late.wait(60) and 'batch')
      self.assertEqual(fault_tolerance.awaited(coming, work, 41), 'batch')
    self.assertIn('input stalled: the batch of step 41 of tune', (
        self.path / 'run.log').read_text())

  def test_a_timeout_inside_the_reader_is_no_stall(self):
    def fails():
      raise TimeoutError('the network')
    with self.open(stall=5) as work, concurrent.futures.ThreadPoolExecutor(1) as reader, \
        self.assertRaisesRegex(TimeoutError, 'network'):
      fault_tolerance.awaited(reader.submit(fails), work, 0)

  def test_the_watchdog_ends_a_process_whose_step_hangs(self):
    left = threading.Event()
    codes = []
    with self.open() as work:
      work.current = 'tune'
      with fault_tolerance.watch(
        work, 0.2, leave=lambda code: (codes.append(code), left.set())
      ) as beat:
        beat()
        self.assertTrue(left.wait(60))
    self.assertEqual(codes, [fault_tolerance.HUNG])
    log = (self.path / 'run.log').read_text()
    self.assertIn('no step of tune', log)
    self.assertIn('Thread', log)  # where everybody stood

  def test_the_watchdog_lets_a_run_go_whose_steps_come(self):
    seen, looks, left = [0.0], threading.Semaphore(0), []
    def now():  # a clock of our own, that the watchdog reads at each look
      looks.release()
      return seen[0]
    with self.open() as work, fault_tolerance.watch(work, 0.5, now=now, leave=left.append) as beat:
      for step in range(1, 11):
        for _ in range(3):
          self.assertTrue(looks.acquire(timeout=60))
        seen[0] = step * 0.4
        beat()
    self.assertEqual(left, [])

  def test_slowness_is_said_beyond_what_is_usual(self):
    self.assertEqual(fault_tolerance.slow_after([], 1), math.inf)
    self.assertEqual(fault_tolerance.slow_after([30.0], 1), math.inf)  # the first one compiles
    self.assertEqual(fault_tolerance.slow_after([2.0, .1, .1], 1), 60)
    self.assertEqual(fault_tolerance.slow_after([5.0] * 9, 1), 100)
    ahead = [1.0] + [0.1] * 19  # twenty steps are under way, none is known to be done
    self.assertEqual(fault_tolerance.slow_after(ahead, 20), math.inf)
    self.assertEqual(
      fault_tolerance.slow_after([*ahead, 62.0], 20), 186
    )  # they take a minute together

  def test_unknown_policies_are_refused(self):
    for bad in (dict(on_nan='ignore'), dict(watchdog=-1.0)):
      with self.assertRaises(errors.ConfigError):
        fault_tolerance.Guards(**bad)


class MemoryTest(absltest.TestCase):

  def test_the_message_names_the_settings_that_this_config_has(self):
    config = ConfigDict({'train': {'batch': 8}, 'llm': {'remat': 'none'}, 'mesh': {'fsdp': 1}})
    error = RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.')
    text = errors.memory_error(error, config)
    for word in ('17179869184', '--config.train.batch', "--config.llm.remat='full'",
                 '--config.mesh.fsdp', 'recjax doctor'):
      self.assertIn(word, text)
    self.assertNotIn('scft', text)
    self.assertEqual(errors.memory_error(ValueError('shapes differ'), config), '')

  def test_the_cause_of_an_error_counts_too(self):
    error = ValueError('while saving')
    error.__cause__ = MemoryError()
    self.assertIn('host is out of memory', errors.memory_error(error))


class SigtermTest(absltest.TestCase):

  def start(self, code):
    room = self.create_tempdir().full_path
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    return room, subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), room],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  env=env, cwd=ROOT)

  def assert_ended(self, process):
    """SIGTERM ends a worker that has said where it is."""
    self.assertEqual(process.stdout.readline().strip(), 'here')
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    self.assertEqual(process.returncode, 143)

  @long
  def test_training_saves_its_step_and_leaves_and_the_same_command_goes_on(self):
    code = '''
        import dataclasses, pathlib, sys, time
        from recjax import errors
        from recjax.training import fault_tolerance, loop as fitting
        from tests.training import fault_tolerance_test as here
        what = here.task()
        class Slow:
          def __getitem__(self, i):
            print('step', i, flush=True)
            time.sleep(0.1)
            return what.batches[i]
        def main():
          fault_tolerance.listen()
          room = here.GuardsTest()
          room.path = pathlib.Path(sys.argv[1]) / 'run'
          settings = here.types.SimpleNamespace(
              **{**vars(here.SETTINGS), 'steps': 10**6, 'save_every': 10**6})
          room.train(here.dataclasses.replace(what, batches=Slow()), settings)
        errors.guard(main)
    '''
    room, process = self.start(code)
    for line in process.stdout:
      if line.strip() == 'step 8':
        break
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    self.assertEqual(process.returncode, 143, said)
    self.assertIn('the same command goes on', said)
    step, = (int(p.name) for p in (pathlib.Path(room) / 'run' / 'checkpoints' / 'fit').iterdir()
             if p.name.isdigit())
    self.assertGreaterEqual(step, 7)
    self.assertIn(f'saving step {step}', (pathlib.Path(room) / 'run' / 'run.log').read_text())

  def test_outside_training_it_ends_at_once(self):
    _, process = self.start('''
        import time
        from recjax import errors
        from recjax.training import fault_tolerance
        def main():
          fault_tolerance.listen()
          print('here', flush=True)
          time.sleep(60)
        errors.guard(main)
    ''')
    self.assert_ended(process)

  def test_what_does_not_end_in_time_is_ended(self):
    _, process = self.start('''
        import time
        from recjax.training import fault_tolerance
        fault_tolerance.listen(grace=0.5)
        with fault_tolerance.holding():
          print('here', flush=True)
          time.sleep(60)
    ''')
    self.assert_ended(process)

  @long
  def test_a_long_call_that_hears_nothing_is_ended(self):
    _, process = self.start('''
        import hashlib
        from recjax.training import fault_tolerance
        fault_tolerance.listen(grace=0.5)
        with fault_tolerance.holding():
          print('here', flush=True)
          hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)  # Python's handlers wait for its end
    ''')
    self.assert_ended(process)

  def pair(self, code):
    """Two processes that have met and run `code`, up to its 'here'. -> processes"""
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    both = [self.start(f'''
        import jax
        me = {me}
        jax.distributed.initialize('127.0.0.1:{port}', 2, me)
        from recjax import errors
        from recjax.training import fault_tolerance
        fault_tolerance.listen(grace=5)
        {textwrap.indent(textwrap.dedent(code), ' ' * 8).strip()}
    ''')[1] for me in range(2)]
    for process in both:
      self.assertEqual(process.stdout.readline().strip(), 'here')
    return both

  @long
  def test_two_processes_outside_training_leave_too(self):
    both = self.pair('''
        import time
        def main():
          print('here', flush=True)
          time.sleep(100)
        errors.guard(main)
    ''')
    asked = time.monotonic()
    for process in both:
      process.send_signal(signal.SIGTERM)
    for process in both:
      process.communicate(timeout=300)
      self.assertEqual(process.returncode, 143)
    self.assertLess(time.monotonic() - asked, 90)  # before they end by themselves

  @long
  def test_one_of_two_is_told_and_both_leave_at_the_same_step(self):
    both = self.pair('''
        import time
        def main():
          with fault_tolerance.holding():
            print('here', flush=True)
            for step in range(1000):
              time.sleep(0.05 * (1 + me))
              if fault_tolerance.asked():
                print('left at', step, flush=True)
                raise errors.Preempted
        errors.guard(main)
    ''')
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[0] for process in both]
    self.assertEqual([process.returncode for process in both], [143, 143])
    self.assertStartsWith(said[0], 'left at')
    self.assertEqual(*said)


if __name__ == '__main__':
  absltest.main()
