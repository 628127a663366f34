"""A step in parts, where its rows do not fit a device together: the same loss and gradient.

B rows of a batch, P parts of them.
"""
import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from recjax.distributed import multihost, sharding
from recjax.training import cost_model

OUT = 'RESOURCE_EXHAUSTED'  # how XLA calls it


def mean(sums):
  """The loss of `fit` from (train, frozen, batch) -> (sum over tokens, how many count)."""
  def loss(train, frozen, batch, key):
    del key
    total, count = sums(train, frozen, batch)
    return total / count, {}
  return loss


def accumulate_sums(sums):
  """What `Task.split` is where a loss is a mean over tokens: parts -> the loss of `mean`.

  Each part's gradient is taken as soon as its sum is there, so nothing of it is kept; sums are
  divided by the count of the whole batch, however many tokens a part has. sums: as in `mean`;
  zeros count nothing in it, and rows do not meet. Arrays of one row belong to the first part.
  """
  def split(parts):
    def forward(train, frozen, batch):
      def add(total, piece):
        (value, count), grads = jax.value_and_grad(sums, has_aux=True)(train, frozen, piece)
        return jax.tree.map(jnp.add, total, (value, count, grads)), None
      zeros = jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, train)
      (value, count, grads), _ = lax.scan(add, zeros, pieces(batch, parts))
      return value / count, jax.tree.map(lambda g: g / count, grads)

    @jax.custom_vjp
    def run(train, frozen, batch):
      return forward(train, frozen, batch)[0]
    run.defvjp(forward, lambda grads, g: (jax.tree.map(lambda x: x * g, grads), None, None))
    return lambda train, frozen, batch, key: (run(train, frozen, batch), {})
  return split


def pieces(batch, parts):
  """Every P-th row in one piece, so that a piece lies on all devices. (B, ...) -> (P, B/P, ...)"""
  ways = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())

  def one(x):
    short = parts - 1 if len(x) == 1 else -len(x) % (parts * ways)
    x = jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))
    return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
  return {name: one(x) for name, x in batch.items()}


def memory(given=0.0):
  """Bytes of a device that a step may plan with. given: GiB, 0 for what it says. -> inf unknown"""
  if given:
    return given * cost_model.GIB
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit', math.inf)


def planned(task, batch, mesh, limit):
  """In how many parts a step fits the devices, as it is planned. -> (parts, bytes as a whole)"""
  if not task.split or not task.shape:
    return task.parts, 0
  parts, most = task.parts, most_parts(batch, mesh)
  takes = lambda n: cost_model.step_bytes(task.shape, dict(mesh.shape), batch['tokens'], n)  # noqa: E731
  while takes(parts) > cost_model.FILL * limit and 2 * parts <= most:
    parts *= 2
  return parts, takes(1)


def most_parts(batch, mesh):
  """A part is a row on each device at least."""
  return max(map(len, batch.values())) // sharding.num_batch_shards(mesh)


def adaptive_step(task, work, make, anew):
  """The loop's step: in parts where the plan says so, in more where memory runs out at its first.

  make: Task -> update(state, host batch, step) -> (state, values). anew: () -> the state to go on
  from, since one that memory ran out under may be gone. -> the same as make's
  """
  now = {'parts': 0, 'sure': False, 'update': None}

  def into(parts, why):
    chosen = task
    if parts > task.parts:
      work.log(f'    {why}: a step goes through in {parts} parts')
      chosen = dataclasses.replace(task, loss=task.split(parts))
    now.update(parts=parts, update=make(chosen))

  def update(state, batch, step):
    if not now['parts']:
      parts, takes = multihost.broadcast(
        planned(task, batch, work.mesh, memory(work.guards.memory))
      )
      into(parts, f'as a whole it is planned to take {takes / cost_model.GIB:,.2f} GiB of a device')
    while True:
      try:
        out = now['update'](state, batch, step)
        if not now['sure']:
          jax.block_until_ready(out)
          now['sure'] = True
        return out
      except jax.errors.JaxRuntimeError as error:
        more = 2 * now['parts']
        if (OUT not in str(error) or now['sure'] or not task.split
            or more > most_parts(batch, work.mesh) or jax.process_count() > 1):
          raise
      into(more, 'out of memory')
      if any(x.is_deleted() for x in jax.tree.leaves(state)):
        state = anew()
  return update
