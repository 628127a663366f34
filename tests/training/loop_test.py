"""The loop: it learns, it resumes bit for bit, and the number of devices changes nothing."""
import concurrent.futures
import dataclasses
import math
import os
import pathlib
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from recjax import errors
from recjax.data.batches import Batches
from recjax.distributed import sharding
from recjax.training import fault_tolerance
from recjax.training import loop as fitting
from recjax.training import workdir as workdir_lib
from tests import devices as several
from tests.long import long, long_but

OPTIM = types.SimpleNamespace(lr=0.05, warmup=3, schedule='linear', decay=0.0, clip=1.0, beta2=0.99)


def settings(**changes):
  base = dict(steps=20, seed=3, log_every=5, save_every=4, eval_every=10, optim=OPTIM, patience=0)
  return types.SimpleNamespace(**{**base, **changes})


def linear_task(nan_at=-1):
  x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
  y = x @ np.array([[1.0], [2.0], [-1.0], [0.5]], np.float32)

  def loss(train, frozen, batch, key):
    noise = 0.01 * jax.random.normal(key, ())
    error = batch['x'] @ train['w'] - batch['y'] + noise
    return jnp.mean(error**2) * jnp.where(nan_at >= 0, jnp.nan, 1.0), {'frozen': frozen['c'] + 0.0}

  return fitting.Task(
      init=lambda key: {'w': jax.random.normal(key, (4, 1))}, loss=loss,
      batches=Batches(lambda r: {'x': x[r], 'y': y[r]}, 64, 16, seed=1),
      frozen={'c': jnp.float32(7)}, evaluate=lambda t, f: {'norm': float(jnp.abs(t['w']).sum())})


def timeless(rows):
  return [{k: v for k, v in r.items() if k not in ('steps_per_s', 'data_wait')}
          for r in rows]


class Stopped(Exception):
  pass


class FitTest(parameterized.TestCase):

  def run_fit(self, path, task=None, cfg=None, devices=1):
    mesh = several.mesh(data=devices)
    with workdir_lib.open_work(path, {}, mesh) as work:
      work.current = 'fit'
      trained = jax.device_get(fitting.fit(task or linear_task(), cfg or settings(), work))
      return trained['w'], work.metrics()

  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path) / 'run'

  def test_loss_falls_and_every_number_is_recorded(self):
    _, rows = self.run_fit(self.folder(), cfg=settings(steps=60))
    losses = [r['loss'] for r in rows if 'loss' in r]
    self.assertLess(losses[-1], 0.2 * losses[0])
    self.assertEqual([r['step'] for r in rows if 'norm' in r], [10, 20, 30, 40, 50, 60])
    self.assertEqual(rows[0]['frozen'], 7.0)

  @parameterized.parameters(1, 5, 8, 13, 19)
  @long_but(0, 3)
  def test_a_run_stopped_anywhere_ends_where_an_uninterrupted_one_ends(self, stop):
    straight, rows = self.run_fit(self.folder())
    path, task = self.folder(), linear_task()
    class Breaks:
      def __getitem__(self, i):
        if i >= stop:
          raise Stopped
        return task.batches[i]
    with self.assertRaises(Stopped):
      self.run_fit(path, dataclasses.replace(task, batches=Breaks()))
    again, found = self.run_fit(path)
    if stop >= 4:
      self.assertIn(f'going on from step {stop // 4 * 4}', (path / 'run.log').read_text())
    np.testing.assert_array_equal(again, straight)  # bit for bit, on the same machine
    self.assertEqual(timeless(found), timeless(rows))

  def test_a_start_in_bfloat16_trains_and_resumes_in_float32(self):
    task = dataclasses.replace(linear_task(), start={'w': jnp.ones((4, 1), jnp.bfloat16)})
    straight, _ = self.run_fit(self.folder(), task)
    self.assertEqual(straight.dtype, np.float32)
    path = self.folder()
    with mock.patch.object(fitting, 'report', side_effect=[None, Stopped]), \
        self.assertRaises(Stopped):
      self.run_fit(path, task)
    again, _ = self.run_fit(path, task)
    self.assertIn('going on from step 4', (path / 'run.log').read_text())
    np.testing.assert_array_equal(again, straight)

  def test_the_share_of_time_that_waits_for_data_is_recorded(self):
    coming = concurrent.futures.Future()
    coming.set_result('batch')
    work = types.SimpleNamespace(guards=fault_tolerance.Guards())
    for ready, lost in ((True, 3), (False, 0)):  # what computes meanwhile loses nothing
      window = [{'loss': mock.Mock(is_ready=lambda ready=ready: ready)}]
      with mock.patch.object(fitting.time, 'monotonic', mock.Mock(side_effect=[10, 11, 13])):
        self.assertEqual(fitting.awaited(coming, window, work, 0), ('batch', lost))
    said, window = [], [{'loss': 1.0, 'bad': False}] * 4
    with mock.patch.object(fitting.time, 'monotonic', lambda: 30):
      fitting.report(4, window, [1, 2, 0, 2], 10, mock.Mock(
          record=lambda step, values: said.append(values)), None)
    self.assertEqual(said, [{'loss': 1, 'steps_per_s': .2, 'data_wait': .25}])

  def test_one_two_and_eight_devices_agree(self):
    one, _ = self.run_fit(self.folder())
    for devices in (2, 8):
      many, _ = self.run_fit(self.folder(), devices=devices)
      np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)  # sums in another order

  def test_a_relative_run_folder_will_do(self):
    here = os.getcwd()
    self.addCleanup(os.chdir, here)
    os.chdir(self.create_tempdir().full_path)
    self.run_fit(pathlib.Path('run'), cfg=settings(steps=4))
    self.assertTrue(pathlib.Path('run/checkpoints/fit/4').is_dir())

  def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(self):
    path = self.folder()
    straight, _ = self.run_fit(path)
    newest = max((path / 'checkpoints' / 'fit').iterdir(), key=lambda p: int(p.name))
    for f in newest.rglob('*'):
      if f.is_file():
        f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])
    again, _ = self.run_fit(path)
    np.testing.assert_array_equal(again, straight)
    self.assertIn('cannot be read', (path / 'run.log').read_text())

  def test_a_loss_that_is_not_a_number_stops_the_run_with_a_remedy(self):
    with self.assertRaisesRegex(errors.UserError, 'optim.lr'):
      self.run_fit(self.folder(), linear_task(nan_at=0))

  def test_a_batch_that_does_not_divide_over_the_devices_is_an_error(self):
    task = linear_task()
    odd = Batches(task.batches.collate, 64, 15)
    with self.assertRaisesRegex(errors.ConfigError, 'multiple of 2'):
      self.run_fit(self.folder(), dataclasses.replace(task, batches=odd), devices=2)


  def test_every_step_has_a_random_key_of_its_own_and_so_has_every_seed(self):
    task = linear_task()
    def loss(train, frozen, batch, key):
      return task.loss(train, frozen, batch, key)[0], {'draw': jax.random.uniform(key)}
    drawn = []
    for seed in (3, 4):
      _, rows = self.run_fit(self.folder(), dataclasses.replace(task, loss=loss),
                             settings(log_every=1, seed=seed))
      drawn += [r['draw'] for r in rows if 'draw' in r]
    self.assertLen(set(drawn), 40)

  def scripted(self, losses, path=None, stop=0, every=2, **changes):
    """Trains with these validation losses, one each `every` steps. -> w, metrics, w at each look"""
    task, seen = linear_task(), []

    def evaluate(train, frozen):
      at = round(float(train['steps'])) // every - 1
      if at + 1 == stop:
        raise Stopped
      seen.append(np.asarray(train['w']))
      return {'valid_loss': losses[at]}

    def loss(train, frozen, batch, key):  # counts steps in a parameter whose gradient is fixed
      return 0.01 * task.loss(train, frozen, batch, key)[0] - train['steps'], {}
    cfg = settings(eval_every=every, steps=every * len(losses), **changes)
    with mock.patch.object(fitting.optim, 'make', lambda cfg, steps: optax.sgd(1.0)):
      w, rows = self.run_fit(path or self.folder(), dataclasses.replace(
          task, loss=loss, evaluate=evaluate, init=lambda key: {
              **task.init(key), 'steps': jnp.zeros(())}), cfg)
    return w, rows, seen

  def test_the_first_of_equal_evaluations_is_kept_and_no_number_never(self):
    for losses, best in (([.5, .1, .3, .1, .1], 1),  # .1 is no float32
                         ([.3, .2, .1, .4, .2], 2), ([math.nan, .2, math.nan, .3, math.nan], 1)):
      w, _, seen = self.scripted(losses, patience=9)
      self.assertLen(seen, 5)
      np.testing.assert_array_equal(w, seen[best])

  @long
  def test_patience_counts_evaluations_without_a_lower_loss(self):
    losses = [.5, .1, .3, .1, .1, .05, .2, .2, .2, .2]
    for patience, looks, best in ((1, 3, 1), (2, 4, 1), (3, 5, 1), (4, 10, 5)):
      w, rows, seen = self.scripted(losses, patience=patience, every=1)
      self.assertLen(seen, looks)
      self.assertEqual(max(r['step'] for r in rows), looks)
      np.testing.assert_array_equal(w, seen[best])
    w, rows, _ = self.scripted(losses, patience=4)
    for stop in (2, 7):
      path = self.folder()
      with self.assertRaises(Stopped):
        self.scripted(losses, path, stop, patience=4)
      again, found, _ = self.scripted(losses, path, patience=4)
      np.testing.assert_array_equal(again, w)
      self.assertEqual(timeless(found), timeless(rows))


class MeshTest(absltest.TestCase):

  def test_one_open_axis_takes_what_is_left(self):
    mesh = sharding.make_mesh({'data': -1, 'fsdp': 2, 'model': 2})
    self.assertEqual(dict(mesh.shape), {'data': jax.device_count() // 4, 'fsdp': 2, 'model': 2})

  def test_a_mesh_that_does_not_cover_the_devices_is_an_error(self):
    for axes in ({'data': 3}, {'data': -1, 'model': -1}):
      with self.assertRaises(errors.ConfigError):
        sharding.make_mesh(axes)

  def test_rules_shard_parameters_and_their_moments_alike(self):
    mesh = sharding.make_mesh({'data': -1, 'model': 2})
    spec = jax.sharding.PartitionSpec(None, 'model')
    tree = {'a': {'kernel': jnp.zeros((4, 4)), 'bias': jnp.zeros(4)},
            'opt': ({'a': {'kernel': jnp.zeros((4, 4))}},)}
    found = sharding.shardings(tree, ((r'a/kernel', spec),), mesh)
    self.assertEqual(found['a']['kernel'].spec, spec)
    self.assertEqual(found['opt'][0]['a']['kernel'].spec, spec)
    self.assertEqual(found['a']['bias'].spec, jax.sharding.PartitionSpec())


if __name__ == '__main__':
  absltest.main()
