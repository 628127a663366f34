"""Parts of a run: any order, any number, killed, at once, beside the whole run; equal bytes."""
import pathlib
import threading
import time
from unittest import mock

from absl.testing import absltest

from recjax import errors, experiment, file_io
from recjax.training import job_parts, sharded_stage
from recjax.training import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parents[2]


class ShardsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'run'
    self.made, self.trained = [], []
    self.enterContext(mock.patch.object(job_parts, 'WAIT', .01))

  def make(self, paths, n, advance):
    file_io.write_atomic(paths[n], f'shard {n}')
    self.made.append(n)
    advance(2)

  def run_part(self, part=None, make=None, config=None, train=lambda: None):
    """The run: a stage that cannot be shared, seven shards, and a stage that reads them."""
    def first(work):
      self.trained.append(part)
      train()
      (work.folder / 'model').write_text('m')

    def second(work, model):
      del model
      paths = [work.folder / f'{n}.txt' for n in range(7)]
      sharded_stage.fill(work, 'write', paths, [2] * 7,
                  lambda n, advance: (make or self.make)(paths, n, advance))
      (work.folder / 'all').write_text(' '.join(p.read_text() for p in paths))

    def third(work, text):
      (work.folder / 'end').write_text((text / 'all').read_text().upper())
    with workdir_lib.open_work(self.path, {'config': config or {}}, part=part) as work:
      model = work.stage('train', first)
      text = work.stage('write', second, model, shared=True)
      return (work.stage('end', third, text) / 'end').read_text()

  WHOLE = ' '.join(f'SHARD {n}' for n in range(7))

  def test_one_process_makes_every_shard_once(self):
    self.assertEqual(self.run_part(), self.WHOLE)
    self.assertEqual(self.run_part(), self.WHOLE)
    self.assertEqual(self.made, list(range(7)))

  def test_parts_in_any_order_and_of_any_number_and_the_last_goes_on(self):
    with self.assertRaisesRegex(errors.PartDone, r'part 3 of 3 has made its 2 of 7 .* 5 of other'):
      self.run_part((2, 3))
    with self.assertRaisesRegex(errors.PartDone, r'part 1 of 3 .* 2 of other'):
      self.run_part((0, 3))
    with self.assertRaises(errors.PartDone):  # again: nothing is left of its share
      self.run_part((0, 3))
    self.assertEqual(self.made, [2, 5, 0, 3, 6])
    with self.assertRaises(errors.PartDone):  # a host was lost: parts of another number go on
      self.run_part((3, 4))
    self.assertEqual(self.run_part((0, 1)), self.WHOLE)
    self.assertEqual(self.made, [2, 5, 0, 3, 6, 1, 4])
    self.assertLen(self.trained, 1)

  def test_the_whole_run_takes_what_parts_have_made_even_while_it_runs(self):
    with self.assertRaises(errors.PartDone):
      self.run_part((1, 2))

    def beside(paths, n, advance):
      if n == 0:
        file_io.write_atomic(paths[4], 'shard 4')
      self.make(paths, n, advance)
    self.assertEqual(self.run_part(make=beside), self.WHOLE)
    self.assertEqual(self.made, [1, 3, 5, 0, 2, 6])

  def test_a_part_that_was_killed_begins_at_its_first_missing_shard(self):
    def dying(paths, n, advance):
      if n == 3:
        paths[n].with_name('.3.txt.torn').write_text('sha')
        raise KeyboardInterrupt
      self.make(paths, n, advance)
    with self.assertRaises(KeyboardInterrupt):
      self.run_part((1, 2), dying)
    with self.assertRaises(errors.PartDone):
      self.run_part((1, 2))
    self.assertEqual(self.made, [1, 3, 5])
    self.assertEqual(self.run_part((0, 2)), self.WHOLE)

  def test_what_cannot_be_shared_runs_once_while_others_wait(self):
    waiting = threading.Barrier(3)
    ends = self.at_once(3, train=lambda: waiting.wait(10), before=waiting)
    self.assertLen(self.trained, 1)
    self.assertEqual(sorted(self.made), list(range(7)))
    self.assertEqual(sum(e == self.WHOLE for e in ends), 1)
    self.assertEqual(sum(isinstance(e, errors.PartDone) for e in ends), 2)

  def test_of_parts_that_finish_at_once_one_goes_on(self):
    for _ in range(5):
      self.path = pathlib.Path(self.create_tempdir().full_path) / 'run'
      meet = threading.Barrier(2)

      def last(paths, n, advance, meet=meet):
        self.make(paths, n, advance)
        if n > 4:
          meet.wait(10)
      ends = self.at_once(2, make=last)
      self.assertEqual(sum(e == self.WHOLE for e in ends), 1, ends)
      self.assertEqual(sum(isinstance(e, errors.PartDone) for e in ends), 1, ends)

  def at_once(self, count, before=None, **kw):
    """Runs all parts in threads; `before`, where some wait until one is told to. -> their ends"""
    ends, turn = [None] * count, job_parts.wait_for_turn

    def told(work, name, state_of, shared):
      if before and name == 'train' and not work.lock.held:
        before.wait(10)  # the one that trains is in its stage, all others are here
      return turn(work, name, state_of, shared)

    def one(i):
      try:
        ends[i] = self.run_part((i, count), **kw)
      except BaseException as error:
        ends[i] = error
    with mock.patch.object(job_parts, 'wait_for_turn', told):
      threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
    return ends

  def test_a_part_waits_for_who_has_the_folder_and_takes_over_from_the_dead(self):
    self.path.mkdir(parents=True)
    file_io.write_json(self.path / 'config.json', {'config': {}})
    lock = file_io.FileLock(self.path / 'lock')
    with lock.file:
      self.assertTrue(lock.acquire())
      thread = threading.Thread(target=lambda: self.at_once(1))
      thread.start()
      log = self.path / 'run.log'
      while not log.exists() or 'waiting for stage train; process' not in log.read_text():
        self.assertTrue(thread.is_alive(), 'the part ended before it waited')
        time.sleep(.01)
      self.assertEqual(self.trained, [])
    thread.join()  # whoever had the lock is gone without a word
    self.assertEqual(self.trained, [(0, 1)])

  def test_a_stage_that_another_finished_meanwhile_ends_the_part(self):
    with self.assertRaises(errors.PartDone):
      self.run_part((0, 2))

    def slow(paths, n, advance):
      if n == 1:
        self.run_part()  # the whole run, to its end
      self.make(paths, n, advance)
    with self.assertRaisesRegex(errors.PartDone, 'is whole; another process'):
      self.run_part((1, 2), slow)

  def test_parts_of_other_settings_are_refused(self):
    with self.assertRaises(errors.PartDone):
      self.run_part((0, 2), config={'a': (1, 2)})
    with self.assertRaisesRegex(errors.WorkdirError, 'run of other settings'):
      self.run_part((1, 2), config={'a': (1, 3)})
    self.assertEqual(self.run_part((1, 2), config={'a': (1, 2)}), self.WHOLE)

  def test_the_whole_run_is_refused_while_a_part_has_the_folder(self):
    def refused():
      with self.assertRaisesRegex(errors.WorkdirError, 'is in use by process'):
        self.run_part()
    with self.assertRaises(errors.PartDone):
      self.run_part((0, 2), train=refused)
    self.assertLen(self.trained, 1)

  def test_methods_without_shards_take_no_part(self):
    cfg = experiment.read_config(str(ROOT / 'configs' / 'sequential_scientific.py'))
    with self.assertRaisesRegex(errors.ConfigError, 'no stage of sequential is made of shards'):
      experiment.run(cfg, self.path, {}, part=(0, 2))
    self.assertFalse(self.path.exists())


if __name__ == '__main__':
  absltest.main()
