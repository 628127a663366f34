"""A step in parts, where its rows do not fit a device together: the same loss and gradient.

B rows of a batch, P parts of them.
"""
import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from recjax.distributed import multihost, sharding
from recjax.progress import doing
from recjax.training import cost_model

OUT = 'RESOURCE_EXHAUSTED'  # how XLA calls it


def mean(sums: Callable) -> Callable:
  """The loss of `fit` from (train, frozen, batch) -> (sum over tokens, how many count). sums: that
  function."""
  def loss(train: PyTree, frozen: PyTree, batch: PyTree, key: Any) -> tuple[Array, dict]:
    del key
    total, count = sums(train, frozen, batch)
    return total / count, {}
  return loss


def accumulate_sums(sums: Callable) -> Callable:
  """What `Task.split` is where a loss is a mean over tokens: parts -> the loss of `mean`.

  Each part's gradient is taken as soon as its sum is there, so nothing of it is kept; sums are
  divided by the count of the whole batch, however many tokens a part has. sums: as in `mean`;
  zeros count nothing in it, and rows do not meet. Arrays of one row belong to the first part.
  """
  def split(parts: int) -> Callable:
    def forward(train: PyTree, frozen: PyTree, batch: PyTree) -> tuple:
      def add(total: tuple, piece: PyTree) -> tuple:
        (value, count), grads = jax.value_and_grad(sums, has_aux=True)(train, frozen, piece)
        return jax.tree.map(jnp.add, total, (value, count, grads)), None
      zeros = jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, train)
      (value, count, grads), _ = lax.scan(add, zeros, pieces(batch, parts))
      return value / count, jax.tree.map(lambda g: g / count, grads)

    @jax.custom_vjp
    def run(train: PyTree, frozen: PyTree, batch: PyTree) -> tuple:
      return forward(train, frozen, batch)[0]
    run.defvjp(forward, lambda grads, g: (jax.tree.map(lambda x: x * g, grads), None, None))
    return lambda train, frozen, batch, key: (run(train, frozen, batch), {})
  return split


def pieces(batch: dict[str, Array], parts: int) -> dict[str, Array]:
  """Every P-th row in one piece, so that a piece lies on all devices: (P, B / P, ...). batch:
  arrays of B rows, or of one. parts: P."""
  shards = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())

  def split(x: Array) -> Array:
    short = parts - 1 if len(x) == 1 else -len(x) % (parts * shards)
    x = jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))
    return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
  return {name: split(x) for name, x in batch.items()}


def memory(given: float = 0.0) -> float:
  """Bytes of a device that a step may plan with, infinite where it does not say.

  given: GiB, 0 for what the device says.
  """
  if given:
    return given * cost_model.GIB
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit', math.inf)


def planned(task: Any, batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh,
            limit: float) -> tuple[int, float]:
  """In how many parts a step of `task` fits `limit` bytes of each device, as it is planned.

  batch: of a step. mesh: the devices. -> (parts, bytes as a whole)
  """
  if not task.split or not task.shape:
    return task.parts, 0
  parts, most = task.parts, most_parts(batch, mesh)

  def takes(parts: int) -> Any:
    return cost_model.step_bytes(task.shape, dict(mesh.shape), batch['tokens'], parts)
  while takes(parts) > cost_model.FILL * limit and 2 * parts <= most:
    parts *= 2
  return parts, takes(1)


def most_parts(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> int:
  """Parts of which each is a row on each device. batch: of a step. mesh: the devices."""
  return max(map(len, batch.values())) // sharding.num_batch_shards(mesh)


class AdaptiveStep:
  """The loop's step: in parts where the plan says so, in more where memory runs out at its first.

  task: `loop.Task`. make: Task -> update(state, host batch, step) -> (state, values), which a call
  of this runs. restore: () -> the state to go on from, since one that memory ran out under may be
  gone. work: of the running stage.
  """

  def __init__(self, task: Any, work: Any, make: Callable, restore: Callable[[], PyTree]):
    self.task, self.work, self.make, self.restore = task, work, make, restore
    self.parts, self.fits = 0, False
    self.update: Any = None

  def _split(self, parts, why):
    task = self.task
    if parts > task.parts:
      self.work.log(f'    {why}: a step goes through in {parts} parts')
      task = dataclasses.replace(task, loss=cast(Callable, task.split)(parts))
    self.parts, self.update = parts, self.make(task)

  def __call__(self, state: PyTree, batch: dict[str, np.ndarray], step: Any) -> tuple[PyTree, dict]:
    mesh = self.work.mesh
    if not self.parts:
      parts, whole_bytes = multihost.broadcast(
          planned(self.task, batch, mesh, memory(self.work.guards.memory)))
      gib = whole_bytes / cost_model.GIB
      self._split(parts, f'as a whole it is planned to take {gib:,.2f} GiB of a device')
    while True:
      try:
        if self.fits:
          return self.update(state, batch, step)
        with doing(f'the training step{_row(batch)}'):
          updated = jax.block_until_ready(self.update(state, batch, step))
        self.fits = True
        return updated
      except jax.errors.JaxRuntimeError as error:
        if (OUT not in str(error) or self.fits or not self.task.split
            or 2 * self.parts > most_parts(batch, mesh) or jax.process_count() > 1):
          raise
      self._split(2 * self.parts, 'out of memory')
      if any(x.is_deleted() for x in jax.tree.leaves(state)):
        state = self.restore()


def _row(batch):
  """' (256 tokens a row)' of a batch of texts."""
  return f' ({batch["tokens"].shape[-1]:,} tokens a row)' if 'tokens' in batch else ''
