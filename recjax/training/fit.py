"""The one loop over training steps: jit, donation, sharding, logging, checkpoints, resume."""
import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from recjax import sharding
from recjax.errors import ConfigError, UserError
from recjax.training import checkpoint, optim


@dataclasses.dataclass(frozen=True)
class Task:
  """One optimisation problem: what is trained, on what, judged how. All functions are pure."""
  init: Callable             # key -> tree to train; runs under jit with shardings
  loss: Callable             # (train, frozen, batch, key) -> (scalar, {name: scalar})
  batches: Sequence          # batches[i] -> dict of host arrays for step i, a function of i alone
  frozen: object = ()        # tree that the loss reads and nobody changes
  rules: tuple = ()          # (path regex, PartitionSpec) for `train` and its optimiser moments
  evaluate: Callable | None = None  # (train, frozen) -> {name: float}


def fit(task, cfg, work):
  """Trains `task` for `cfg.steps` steps from wherever the stage's checkpoints stand.

  cfg: steps, seed, log_every, save_every, eval_every (0: only at the end), optim.
  -> the trained tree. Batches, keys and schedules depend on the step alone, so a run that was
  killed ends bit for bit where an uninterrupted one ends.
  """
  tx = optim.make(cfg.optim, cfg.steps)
  key = jax.random.key(cfg.seed)
  mesh = work.mesh
  with jax.set_mesh(mesh), checkpoint.open_checkpoints(work.checkpoints()) as saved:
    step, state = restore_or_init(task, tx, key, mesh, saved, work)
    work.drop_metrics(work.current, step)
    update = make_update(task, tx, key)
    window, start = [], time.monotonic()
    with work.progress(work.current, cfg.steps, step) as advance, \
        concurrent.futures.ThreadPoolExecutor(1) as reader:
      coming = reader.submit(task.batches.__getitem__, step)
      while step < cfg.steps:
        batch = place(coming.result(), mesh)
        coming = reader.submit(task.batches.__getitem__, step + 1)
        state, values = update(state, task.frozen, batch, jnp.int32(step))
        step += 1
        window.append(values)
        last, keep = step == cfg.steps, step % cfg.save_every == 0
        if last or keep or step % cfg.log_every == 0:
          report(step, window, start, work)
          window, start = [], time.monotonic()
        if task.evaluate and (last or cfg.eval_every and step % cfg.eval_every == 0):
          work.record(step, task.evaluate(state['train'], task.frozen))
        if keep or last:
          checkpoint.save(saved, step, state)
        advance()
  return state['train']


def restore_or_init(task, tx, key, mesh, saved, work):
  """The newest whole checkpoint, or step 0. -> (step, {'train', 'opt'})"""
  def init(key):
    train = task.init(key)
    return {'train': train, 'opt': tx.init(train)}

  shapes = jax.eval_shape(init, key)
  where = sharding.shardings(shapes, task.rules, mesh)
  step, state = checkpoint.restore(saved, checkpoint.abstract(shapes, where), work.say)
  if state is None:
    return 0, jax.jit(init, out_shardings=where)(key)
  if step:
    work.say(f'    going on from step {step:,}')
  return step, state


def make_update(task, tx, key):
  """One jitted step: gradient with respect to `train` alone, old state donated."""
  def update(state, frozen, batch, step):
    grad = jax.value_and_grad(task.loss, has_aux=True)
    (loss, values), grads = grad(state['train'], frozen, batch, jax.random.fold_in(key, step))
    updates, opt = tx.update(grads, state['opt'], state['train'])
    train = optax.apply_updates(state['train'], updates)
    values = {'loss': loss, 'grad_norm': optax.tree.norm(grads), **values}
    return {'train': train, 'opt': opt}, values
  return jax.jit(update, donate_argnums=0)


def place(batch, mesh):
  """Puts host arrays on the mesh, first axis over the data axes; 1-row arrays are replicated."""
  axes = tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names)
  ways = math.prod(mesh.shape[a] for a in axes)

  def one(name, x):
    if x.ndim and x.shape[0] > 1 and x.shape[0] % ways:
      raise ConfigError(
          f'batch array {name!r} has {x.shape[0]} rows, which do not divide over {ways} devices; '
          f'set --config.batch to a multiple of {ways}')
    spec = P(axes) if x.ndim and x.shape[0] > 1 else P()
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), x)
  return {name: one(name, np.asarray(x)) for name, x in batch.items()}


def report(step, window, start, work):
  """Means over the window, fetched in one go: the only host sync of the loop."""
  host = jax.device_get(window)
  means = {k: float(np.mean([w[k] for w in host], dtype=np.float64)) for k in host[0]}
  if not math.isfinite(means['loss']):
    raise UserError(
        f'the loss of {work.current} became {means["loss"]} before step {step}; lower '
        '--config.optim.lr or raise warmup, then run again: it goes on from the last checkpoint')
  means['steps_per_s'] = round(len(host) / max(1e-9, time.monotonic() - start), 3)
  work.record(step, means)
