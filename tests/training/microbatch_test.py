"""Steps in parts: the gradient of the whole, chosen by memory, found where memory runs out."""
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax import errors
from recjax.data.batches import Batches
from recjax.methods.betag import train as betag
from recjax.models import llm, lora
from recjax.training import cost_model, fault_tolerance, loop, microbatch, sft
from recjax.training import workdir as workdir_lib
from tests import devices as several
from tests.long import long, long_but
from tests.training import loop_test

SHAPE = llm.Config(vocab=96, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=64,
                   lora_rank=4, tied=True)

PREFIX = [5, 7, 9]


def packed(count=60):
  """Prompts and answers of very different lengths, so that parts hold different token counts."""
  rng = np.random.default_rng(0)
  prompts = [PREFIX + rng.integers(10, 96, 1 + n % 7).tolist() for n in range(count)]
  answers = [rng.integers(10, 96, 1 + n * n % 40).tolist() for n in range(count)]
  batch = sft.pack_pairs(prompts, answers, 'all', 64, PREFIX).batch()
  at = np.arange(len(batch['tokens']))[:, None]
  batch['weights'] *= np.arange(batch['tokens'].shape[1]) < 10 * (at % 6 + 1)
  return batch


def instruct_case():
  batch = packed()
  model, params = llm.LM(SHAPE), llm.init(SHAPE, jax.random.key(0))
  def sums(train, frozen, batch):
    return sft.loss_sums(model, PREFIX, {'params': frozen, 'lora': train}, batch)
  return sums, params, batch


def betag_case():
  model, params = llm.LM(SHAPE), llm.init(SHAPE, jax.random.key(0))
  batch = {k: v for k, v in packed().items() if not k.startswith('first')}
  batch |= {'first': np.array([11], np.int32), 'first_weight': np.array([9], np.float32)}
  def sums(train, frozen, batch):
    return betag.loss_sums(model, PREFIX, train, frozen, batch)
  return sums, params, batch


def adapter():
  return jax.tree.map(lambda x: x + .02 * jnp.cos(jnp.arange(x.size)).reshape(x.shape),
                      lora.init_lora(SHAPE, jax.random.key(1)))


class SplitTest(parameterized.TestCase):

  @parameterized.product(case=(instruct_case, betag_case), split=((2, 1), (3, 2), (8, 1)))
  @long_but(0)
  def test_loss_and_gradient_are_those_of_the_whole(self, case, split):
    parts, devices = split
    sums, frozen, batch = case()
    mesh = several.mesh(data=devices)
    rows = len(batch['tokens'])
    self.assertGreaterEqual(rows, 8)
    counts = [float(batch['weights'][p::parts].sum()) for p in range(parts)]
    self.assertGreater(max(counts), 1.2 * min(counts))  # means of parts' means would be wrong
    batch = {k: np.pad(v, [(0, -len(v) % devices if len(v) > 1 else 0)] + [(0, 0)] * (v.ndim - 1))
             for k, v in batch.items()}
    with jax.set_mesh(mesh):
      placed = loop.place(batch, mesh)
      want, got = (jax.jit(jax.value_and_grad(f, has_aux=True))(adapter(), frozen, placed, None)
                   for f in (microbatch.mean(sums), microbatch.accumulate_sums(sums)(parts)))
    np.testing.assert_allclose(got[0][0], want[0][0], rtol=1e-5)
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want[1]))
    self.assertGreater(size, 1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * size), got[1], want[1])

  @long
  def test_a_part_takes_less_memory_than_the_whole(self):
    sums, frozen, batch = instruct_case()
    batch = {k: np.concatenate([v] * 16) for k, v in batch.items()}
    used = [
      jax.jit(jax.value_and_grad(f, has_aux=True))
      .lower(adapter(), frozen, batch, None)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
      for f in (
        microbatch.mean(sums),
        microbatch.accumulate_sums(sums)(4),
        microbatch.accumulate_sums(sums)(16),
      )
    ]
    self.assertLess(used[1], 0.5 * used[0])
    self.assertLess(used[2], 0.5 * used[1])

  def test_pieces_hold_every_row_once_and_a_single_row_in_the_first(self):
    found = microbatch.pieces({'x': jnp.arange(1, 8)[:, None], 'one': jnp.array([5])}, 3)
    self.assertEqual(found['x'][..., 0].tolist(), [[1, 4, 7], [2, 5, 0], [3, 6, 0]])
    self.assertEqual(found['one'].tolist(), [[5], [0], [0]])


class FitTest(absltest.TestCase):

  def task(self, shape=None):
    """Weighted least squares: rows weigh unlike, so parts must be weighed, too."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype(np.float32)
    data = {'tokens': x, 'y': x @ np.float32([[1], [2], [-1], [.5]]),
            'weights': rng.integers(0, 5, 64).astype(np.float32)}

    def sums(train, frozen, batch):
      del frozen
      error = (batch['tokens'] @ train['w'] - batch['y'])[:, 0]**2
      return (error * batch['weights']).sum(), batch['weights'].sum()
    return loop.Task(
        init=lambda key: {'w': jax.random.normal(key, (4, 1))}, loss=microbatch.mean(sums),
        batches=Batches(lambda r: {k: v[r] for k, v in data.items()}, 64, 16, seed=1),
        split=microbatch.accumulate_sums(sums), shape=shape)

  def trained(self, task, fails=0, memory=0.0, devices=1, at=0, path=None):
    """Trains; the first `fails` programs run out of memory. -> w, what was said, parts tried"""
    mesh = several.mesh(data=devices)
    make, tried = loop.make_update, []

    def scarce(task, *rest):
      tried.append(task.loss)
      run, mine, calls = make(task, *rest), len(tried), []

      def step(state, *given):
        calls.append(1)
        if mine <= fails and len(calls) > at:
          if mine % 2:  # the program had taken its input when memory ran out
            jax.tree.map(lambda x: x.delete(), state)
          raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')
        return run(state, *given)
      return step
    path = path or pathlib.Path(self.create_tempdir().full_path) / 'run'
    with workdir_lib.open_work(path, {}, mesh, fault_tolerance.Guards(memory=memory)) as work:
      work.current = 'fit'
      with mock.patch.object(loop, 'make_update', scarce):
        w = jax.device_get(loop.fit(task, loop_test.settings(), work))['w']
    return w, (path / 'run.log').read_text(), len(tried)

  def test_out_of_memory_doubles_the_parts_and_changes_nothing(self):
    want, said, tried = self.trained(self.task())
    self.assertNotIn('parts', said)
    self.assertEqual(tried, 1)
    got, said, tried = self.trained(self.task(), fails=2)
    np.testing.assert_allclose(got, want, atol=1e-5)
    self.assertEqual(tried, 3)
    self.assertIn('out of memory: a step goes through in 2 parts', said)
    self.assertIn('out of memory: a step goes through in 4 parts', said)

  def test_it_ends_with_a_row_on_each_device(self):
    with self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'RESOURCE_EXHAUSTED'):
      self.trained(self.task(), fails=9, devices=4)
    path = pathlib.Path(self.create_tempdir().full_path) / 'run'
    with self.assertRaises(jax.errors.JaxRuntimeError):
      self.trained(self.task(), fails=9, devices=4, path=path)
    self.assertIn('in 4 parts', (path / 'run.log').read_text())
    self.assertNotIn('in 8 parts', (path / 'run.log').read_text())

  def test_later_steps_and_other_errors_and_losses_that_do_not_split_fail_as_ever(self):
    with self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'RESOURCE_EXHAUSTED'):
      self.trained(self.task(), fails=1, at=3)
    with self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'RESOURCE_EXHAUSTED'):
      self.trained(loop_test.linear_task(), fails=1)
    with mock.patch.object(microbatch, 'OUT', 'SOMETHING ELSE'), \
        self.assertRaisesRegex(jax.errors.JaxRuntimeError, 'RESOURCE_EXHAUSTED'):
      self.trained(self.task(), fails=1)

  @long
  def test_a_step_that_was_stopped_goes_on_from_its_checkpoint(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'run'
    task, calls = self.task(), []

    class Breaks:
      def __getitem__(self, i):
        calls.append(i)
        if i == 10:
          raise loop_test.Stopped
        return task.batches[i]
    with self.assertRaises(loop_test.Stopped):
      self.trained(loop.dataclasses.replace(task, batches=Breaks()), path=path)
    got, said, _ = self.trained(task, fails=1, path=path)
    self.assertIn('going on from step 8', said)
    np.testing.assert_allclose(got, self.trained(task)[0], atol=1e-5)

  @long
  def test_a_tiny_limit_splits_as_planned(self):
    shape = SHAPE, 3
    whole = cost_model.step_bytes(shape, {'data': 1}, np.zeros((16, 4)))
    halved = cost_model.step_bytes(shape, {'data': 1}, np.zeros((16, 4)), 2)
    self.assertLess(halved, whole)
    limit = halved / cost_model.FILL / cost_model.GIB
    got, said, _ = self.trained(self.task(shape), memory=limit * 1.0001)
    self.assertIn('GiB of a device: a step goes through in 2 parts', said)
    np.testing.assert_allclose(got, self.trained(self.task(shape))[0], atol=1e-5)
    _, said, _ = self.trained(
      self.task(shape), memory=whole / cost_model.FILL / cost_model.GIB * 1.0001
    )
    self.assertNotIn('parts', said)
    _, said, _ = self.trained(self.task(shape), memory=1e-9)
    self.assertIn('in 16 parts', said)

  def test_memory_is_what_is_given_else_what_the_device_says(self):
    self.assertEqual(microbatch.memory(2), 2 * cost_model.GIB)
    for stats, want in ((None, float('inf')), ({'bytes_limit': 7}, 7)):
      device = mock.Mock(memory_stats=lambda stats=stats: stats)
      with mock.patch.object(jax, 'local_devices', lambda device=device: [device]):
        self.assertEqual(microbatch.memory(), want)
    with self.assertRaisesRegex(errors.ConfigError, '--memory=-1'):
      fault_tolerance.Guards(memory=-1)


if __name__ == '__main__':
  absltest.main()
