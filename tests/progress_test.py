"""No silence: a line for every long wait, with times; all clocks are the test's own."""
import io
import threading
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from rich.console import Console

from recjax import progress
from recjax.training.workdir import Workdir


class Clock:
  """Seconds that pass when a test says so."""

  def __init__(self):
    self.seconds = 0.0

  def __call__(self):
    return self.seconds


class PulseTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.clock, self.lines = Clock(), []
    self.enter_context(mock.patch.object(
        progress, 'time', types.SimpleNamespace(monotonic=self.clock)))
    self.enter_context(mock.patch.object(progress, 'LOOK', 1e9))  # the test looks
    self.pulse = progress.Pulse(self.log, lambda: 'tune', self.clock)

  def log(self, text):
    self.lines.append((self.clock.seconds, text))

  def counted(self):
    return progress.PlainProgress(print, '', 48, 3, 'user', self.clock)

  def wait(self, seconds):
    """Looks every second, as the timer thread does."""
    for _ in range(seconds):
      self.clock.seconds += 1
      self.pulse.look()

  def test_no_wait_is_silent_for_twenty_seconds_whatever_it_is_for(self):
    with self.pulse:
      self.wait(25)
      with progress.doing('opening the model'):
        self.wait(12)
        with progress.doing('ranking', self.counted()):
          self.wait(33)
      with progress.doing('tune', self.counted()):
        self.wait(18)
      self.wait(14)
    times = [0.0] + [at for at, _ in self.lines] + [self.clock.seconds]
    self.assertLessEqual(np.diff(times).max(), 20)
    self.assertEqual(self.lines[0], (10, '    tune: at work ... 10 s'))
    self.assertEqual(self.lines[2], (30, '    tune: opening the model ... 5 s'))
    self.assertEqual(self.lines[3], (40, '    tune: opening the model ... 15 s (ranking 3/48)'))
    self.assertEqual(self.lines[-3], (80, '    tune: 3/48 ... 10 s'))
    self.assertEqual(self.lines[-1][1], '    tune: at work ... 100 s')

  def test_lines_from_elsewhere_are_enough(self):
    with self.pulse:
      for _ in range(10):
        self.wait(9)
        self.pulse.heard()
    self.assertEmpty(self.lines)

  def test_a_compilation_is_named_with_its_seconds_and_not_counted_as_work(self):
    rates = []
    with self.pulse:
      rate = progress.Rate(0, self.clock)

      def traced(x):
        self.wait(23)  # tracing is part of it
        return jax.jit(inner)(x) + 1

      def inner(x):
        self.wait(4)
        return 2 * x
      with progress.doing('the training step (1,024 tokens a row)'):
        jax.jit(traced)(jnp.ones(3)).block_until_ready()
        self.wait(3)  # what the step itself takes
        self.assertEqual(self.lines[2][1],
                         '    tune: the training step (1,024 tokens a row) ... 3 s')
      self.clock.seconds += 2
      rates.append(rate(1))
      self.clock.seconds += 4
      rates.append(rate(2))
    self.assertEqual(self.lines[0], (
        10, '    tune: compiling the training step (1,024 tokens a row) ... 10 s'))
    self.assertEqual(self.lines[1][1],
                     '    tune: compiling the training step (1,024 tokens a row) ... 20 s')
    self.assertEqual(progress.compiled_seconds(), 0)  # nobody watches any more
    self.assertEqual(rates, [1 / 5, 1 / 4])

  def test_a_program_without_a_name_is_told_by_its_function(self):
    with self.pulse:
      def score_all(x):
        self.wait(10)
        return x
      jax.jit(score_all)(jnp.ones(3))
    self.assertEqual(self.lines, [(10, '    tune: compiling score_all ... 10 s')])

  def test_tracing_lowering_and_compiling_are_one_wait(self):
    with self.pulse:
      for event, name, seconds in (('jaxpr_trace', 'update', 6),
                                   ('jaxpr_to_mlir_module', 'jit(update)', 2),
                                   ('backend_compile', 'jit(update)', 5)):
        event = f'{progress.COMPILING}{event}_duration'
        jax.monitoring.record_scalar(event, 0.0, fun_name=name)
        self.wait(seconds)
        jax.monitoring.record_event_duration_secs(event, float(seconds), fun_name=name)
      self.assertEqual(progress.compiled_seconds(), 13)
    self.assertEqual(self.lines, [(10, '    tune: compiling update ... 10 s')])

  def test_other_threads_are_not_told_of_and_cost_nothing(self):
    with self.pulse:
      def other():
        with progress.doing('the answer to somebody'):
          self.wait(10)
      thread = threading.Thread(target=other)
      thread.start()
      thread.join()
    self.assertEqual(self.lines, [(10, '    tune: at work ... 10 s')])
    with progress.doing('something that nobody watches'):
      self.assertEmpty(progress._watched)

  def test_of_two_the_inner_one_alone_speaks(self):
    inner_lines = []
    with self.pulse:
      with progress.Pulse(inner_lines.append, lambda: 'inner', self.clock) as inner:
        for _ in range(12):
          self.wait(1)
          inner.look()
      self.wait(9)
      self.assertEmpty(self.lines)
      self.assertEqual(inner_lines, ['    inner: at work ... 10 s'])
      self.wait(1)
    self.assertEqual(self.lines, [(22, '    tune: at work ... 10 s')])

  def test_a_line_that_cannot_be_written_ends_nothing(self):
    lines = []

    def full(text):
      lines.append(text)
      raise OSError(28, 'No space left on device')
    with mock.patch.object(progress, 'LOOK', 0.001), mock.patch.object(progress, 'QUIET', 0.0), \
        progress.Pulse(full, now=self.clock) as pulse:
      while len(lines) < 2:
        pulse.over.wait(0.001)
    self.assertLen(set(lines), 1)

  def test_an_error_within_leaves_nothing_behind(self):
    with self.pulse:
      with self.assertRaises(ZeroDivisionError), progress.doing('a division'):
        jax.jit(lambda x: x / (1 // 0))(1.0)
      self.wait(10)
    self.assertEqual(self.lines, [(10, '    tune: at work ... 10 s')])


class PlainProgressTest(absltest.TestCase):

  def test_rate_and_time_left_come_with_the_first_unit_then_every_ten_seconds(self):
    clock, lines = Clock(), []
    advance = progress.PlainProgress(lines.append, 'tune', 48, 0, 'step', clock)
    for seconds in (4, 5, 5, 5, 5):
      clock.seconds += seconds
      advance()
    self.assertEqual(lines, ['    tune 1/48, 4.0 s/step, 188 s left',
                             '    tune 3/48, 5.0 s/step, 225 s left',
                             '    tune 5/48, 5.0 s/step, 215 s left'])

  def test_a_run_that_goes_on_counts_from_where_it_stands(self):
    clock, lines = Clock(), []
    advance = progress.PlainProgress(lines.append, 'tune', 48, 40, 'step', clock)
    clock.seconds += 3
    advance()
    advance.reach(41)
    self.assertEqual(lines, ['    tune 41/48, 3.0 s/step, 21 s left'])
    advance.reach(48)
    self.assertStartsWith(lines[-1], '    tune 48/48')


class BarTest(absltest.TestCase):

  def test_in_a_terminal_the_wait_stands_beside_the_bar_and_in_the_log(self):
    log = io.StringIO()
    work = Workdir(None, Console(file=io.StringIO(), force_terminal=True, width=120), log_file=log)
    with work.progress('tune', 48) as advance:
      work.tell_wait('    tune: compiling the training step ... 10 s')
      self.assertEqual(advance.bar.tasks[0].fields['note'],
                       'tune: compiling the training step ... 10 s')
      advance()
      self.assertEqual(advance.bar.tasks[0].fields['note'], '')
      self.assertEqual(advance.count(), '1/48')
      self.assertIn('step', advance.bar.tasks[0].fields['rate'])
    self.assertIn('compiling the training step ... 10 s', log.getvalue())
    self.assertIsNone(work.bar)


if __name__ == '__main__':
  absltest.main()
