"""The one loop over training steps: jit, donation, sharding, logging, checkpoints, resume."""
import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax.distributed import multihost, sharding
from recjax.errors import ConfigError, Preempted
from recjax.progress import doing
from recjax.training import checkpoint, fault_tolerance, microbatch, optim
from recjax.training.workdir import Workdir

AHEAD = 2  # steps that are handed to the devices before one is waited for


@dataclasses.dataclass(frozen=True)
class FitSettings:
  """What `fit` reads; methods fill it from their own config groups.

  optim: as `optim.make` takes it. steps: of the training. seed: of all draws. log_every,
  save_every, eval_every: steps between lines, checkpoints and validations, 0 validations for none.
  patience: validations without a lower loss before it stops, 0 for never.
  """
  optim: Any
  steps: int = 0
  seed: int = 0
  log_every: int = 10
  save_every: int = 100
  eval_every: int = 0
  patience: int = 0

  @classmethod
  def of(cls, cfg: ConfigDict) -> 'FitSettings':
    """From a config group that holds the optimizer's settings and the cadences. cfg: that group."""
    return cls(optim=cfg, log_every=cfg.log_every, save_every=cfg.save_every)


@dataclasses.dataclass(frozen=True)
class Task:
  """One optimization problem: what is trained, on what, judged how. All functions are pure.

  init: key -> tree to train; runs under jit with shardings. loss: (train, frozen, batch, key) ->
  (scalar, {name: scalar}). batches: batches[i] is a dict of host arrays for step i, a function of i
  alone. frozen: tree that the loss reads and nobody changes. rules: (path regex, PartitionSpec) for
  `train` and its optimizer moments. evaluate: (train, frozen) -> {name: float}. start: tree to
  begin from instead of `init`, of any floating type. split: parts -> the loss, in the memory of one
  part; see `microbatch`. parts: in how many parts `loss` goes through already. shape: llm.Config,
  tokens of the prefix: a step's memory. share: batches[i] holds this process's rows alone, not the
  whole batch.
  """
  init: Callable | None
  loss: Callable
  batches: Any
  frozen: PyTree = ()
  rules: tuple = ()
  evaluate: Callable | None = None
  start: PyTree = None
  split: Callable | None = None
  parts: int = 1
  shape: tuple[Any, int] | None = None
  share: bool = False


def fit(task: Task, cfg: FitSettings, work: Workdir) -> PyTree:
  """Trains `task` for `cfg.steps` steps from wherever the stage's checkpoints stand.

  cfg: an eval_every of 0 judges only at the end. work: the stage's part of the work folder. With
  patience above 0 the tree with the lowest 'valid_loss' of `evaluate` is kept and returned, and
  training ends after so many evaluations without a lower one.
  -> the trained tree. Batches, keys and schedules depend on the step alone, so a run that was
  killed ends bit for bit where an uninterrupted one ends.
  """
  tx = optim.make(cfg.optim, cfg.steps)
  key = jax.random.key(cfg.seed)
  mesh = work.mesh
  with jax.set_mesh(mesh), checkpoint.open_checkpoints(work.checkpoints()) as saved, \
      fault_tolerance.holding():
    step, state = restore_or_init(task, tx, key, mesh, saved, work, cfg.patience)
    wait = cfg.patience * cfg.eval_every if cfg.patience else math.inf
    best = best_step(state)  # kept on the host: asking the device would wait for every step
    work.drop_metrics(work.current, step)

    def make(task: Task) -> Callable:
      run = make_update(task, tx, key)
      return lambda state, host, step: run(state, task.frozen, place(host, mesh, task.share), step)
    update = microbatch.AdaptiveStep(task, work, make, lambda: restore_or_init(
        task, tx, key, mesh, saved, work, cfg.patience)[1])
    window, waits, start = [], [], time.monotonic()
    with work.progress(work.current, cfg.steps, step) as advance, \
        fault_tolerance.watch(work, work.guards.watchdog, AHEAD) as beat, \
        concurrent.futures.ThreadPoolExecutor(1) as reader:
      coming = reader.submit(task.batches.__getitem__, step)
      while step < cfg.steps and step - best < wait:
        host, lost = awaited(coming, window, work, step)
        coming = reader.submit(task.batches.__getitem__, step + 1)
        state, values = update(state, host, np.int32(step))
        step += 1
        window.append(values)
        waits.append(lost)
        running = await_step_before(window)
        beat()
        leave = fault_tolerance.asked()
        last = step == cfg.steps
        judged = task.evaluate and (last or cfg.eval_every and step % cfg.eval_every == 0)
        keep = last or leave or step % cfg.save_every == 0 or judged and cfg.patience
        if keep or step % cfg.log_every == 0 or seen_bad(window):  # no window spans a checkpoint
          report(step, window, waits, start, work, task.batches)
          window, waits, start, running = [], [], time.monotonic(), 0
        advance.reach(step - running)
        if judged and task.evaluate:
          with doing('the validation'):
            values = task.evaluate(state['train'], task.frozen)
          work.record(step, values)
          state = keep_best(state, values, step)
          best = best_step(state)
        if keep:
          checkpoint.save(saved, step, state)
        if leave and not last:
          work.log(f'    SIGTERM: saving step {step:,}')
          raise Preempted
  return state['best']['train'] if 'best' in state else state['train']


def best_step(state: PyTree) -> int:
  """The step of the best tree so far; 0 where none is kept. state: as of `restore_or_init`."""
  return int(state['best']['step']) if 'best' in state else 0


def keep_best(state: PyTree, values: dict[str, float], step: int) -> PyTree:
  """Takes the trained tree over where its validation loss is the lowest yet, the first of equals.

  state: as of `restore_or_init`. values: of the validation. step: its step.

  Losses are compared in float32, as the best one is held.
  """
  if 'best' not in state:
    return state
  loss = np.float32(values['valid_loss'])
  if not loss < np.asarray(state['best']['loss']):
    return state
  best = {'train': jax.tree.map(jnp.copy, state['train']),
          'loss': multihost.put_global(loss, state['best']['loss'].sharding),
          'step': multihost.put_global(np.int32(step), state['best']['step'].sharding)}
  return {**state, 'best': best}


def restore_or_init(task: Task, tx: optax.GradientTransformation, key: jax.Array,
                    mesh: jax.sharding.Mesh, saved: Any, work: Workdir,
                    patience: int = 0) -> tuple[int, PyTree]:
  """The newest whole checkpoint of `saved`, or step 0.

  task: what is trained. tx: the optimizer. key: of new parameters. mesh: the devices. work: of the
  running stage. -> step, {'train', 'opt'} and, with patience, 'best'
  """
  def init(key: jax.Array, start: PyTree) -> PyTree:
    return fresh_state(task, tx, key, start, patience)

  shapes = jax.eval_shape(init, key, task.start)
  where = sharding.shardings(shapes, task.rules, mesh)
  step, state = checkpoint.restore(saved, checkpoint.abstract(shapes, where), work.log)
  if state is None:
    return 0, jax.jit(init, out_shardings=where)(key, task.start)
  if step:
    work.log(f'    going on from step {step:,}')
  return step, state


def fresh_state(task: Task, tx: optax.GradientTransformation, key: jax.Array | None,
                start: PyTree = None, patience: int = 0) -> PyTree:
  """The state before the first step, as `restore_or_init` gives it.

  task, tx: what is trained and how. key: of what `task.init` draws. start: the tree to begin from
  instead. patience: as of FitSettings. What is trained is float32, and so are its moments, whatever
  type the model computes in: 0.999, the decay of Adam's second moment, is 1 in bfloat16, and small
  updates are lost (Micikevicius et al., ICLR 2018, arXiv 1710.03740, 3.1).
  """
  train = jax.tree.map(_master, cast(Callable, task.init)(key) if start is None else start)
  state = {'train': train, 'opt': tx.init(train)}
  if patience:
    state['best'] = {'train': jax.tree.map(jnp.copy, train), 'loss': jnp.float32(jnp.inf),
                     'step': jnp.int32(0)}
  return state


def _master(x):
  """A trained array as it is kept: short floating point types become float32."""
  short = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
  return x.astype(jnp.float32) if short else x


def make_update(task: Task, tx: optax.GradientTransformation, key: jax.Array) -> Callable:
  """One jitted step: gradient with respect to `train` alone, old state donated.

  task: what is trained. tx: the optimizer. key: of all steps.

  Where loss or gradient is not finite the state stays as it was, and `values` say it as 'bad'.
  """
  def update(state: PyTree, frozen: PyTree, batch: PyTree, step: jax.Array | int
            ) -> tuple[PyTree, dict]:
    grad = jax.value_and_grad(task.loss, has_aux=True)
    (loss, values), grads = grad(state['train'], frozen, batch, jax.random.fold_in(key, step))
    updates, opt = tx.update(grads, state['opt'], state['train'])
    train = optax.apply_updates(state['train'], updates)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    fresh = {'train': train, 'opt': opt}
    fresh = jax.tree.map(lambda new, old: jnp.where(good, new, old), fresh,
                         {k: state[k] for k in fresh})
    return {**state, **fresh}, {'loss': loss, 'grad_norm': norm, **values, 'bad': ~good}
  return jax.jit(update, donate_argnums=0)


def await_step_before(window: list[dict]) -> int:
  """Waits for the step before the last, while that one runs: progress tells what was computed.

  AHEAD of them keep a device busy; were more in line, the host would wait for all at once.
  window: values of the steps. -> how many still run, 0 or 1
  """
  if len(window) >= AHEAD:
    jax.block_until_ready(window[-AHEAD]['loss'])
  return int(not window[-1]['loss'].is_ready())


def seen_bad(window: list[dict]) -> bool:
  """Whether the step before the last is known to have gone wrong, without waiting for it.

  window: values of the steps since the last report.

  Several processes would find out at different moments, so they look when they report.
  """
  if jax.process_count() > 1 or len(window) < 2:
    return False
  bad = window[-2]['bad']
  return bad.is_ready() and bool(bad)


def place(batch: dict[str, Any], mesh: jax.sharding.Mesh,
          share: bool = False) -> dict[str, jax.Array]:
  """Puts host arrays on the mesh, first axis over the data axes; 1-row arrays are replicated.

  share: whether the arrays hold the rows of this process alone, else each process has all rows.
  batch: arrays of the host by name. mesh: the devices.
  """
  axes = tuple(a for a in ('data', 'fsdp') if a in mesh.axis_names)
  shards = math.prod(mesh.shape[a] for a in axes)

  def put(name: str, x: np.ndarray) -> jax.Array:
    count = x.shape[0] * (jax.process_count() if share else 1) if x.ndim else 1
    if x.ndim and x.shape[0] > 1 and count % shards:
      raise ConfigError(
          f'batch array {name!r} has {count} rows, which do not divide over {shards} devices; '
          f'set --config.batch to a multiple of {shards}')
    spec = P(axes) if x.ndim and x.shape[0] > 1 else P()
    where = NamedSharding(mesh, spec)
    if share:
      return jax.make_array_from_process_local_data(where, x)
    return multihost.put_global(x, where)
  return {name: put(name, np.asarray(x)) for name, x in batch.items()}


def awaited(coming: concurrent.futures.Future, window: list[dict], work: Workdir,
            step: int) -> tuple[dict, float]:
  """The next batch, and for how many seconds at most the devices had nothing to do before it came.

  coming: the batch's future. window: values of the steps since the last report. work: of the
  running stage. step: number of the batch.

  Where the step before is still running when the batch arrives, nothing was lost.
  """
  start = time.monotonic()
  batch = fault_tolerance.awaited(coming, work, step)
  idle = not window or window[-1]['loss'].is_ready()
  return batch, (time.monotonic() - start) * idle


def report(step: int, window: list[dict], waits: list[float], start: float, work: Workdir,
           batches: Sequence) -> None:
  """Means over the window, fetched in one go: the only host sync of the loop.

  step: steps done. window: values of the steps since the last report. start: of the window, of
  time.monotonic. work: of the running stage. batches: of the loop.

  Steps that were no numbers count nowhere. waits: seconds lost to reading, of each step;
  `data_wait` is their share of the window's time.
  """
  host = jax.device_get(window)
  good = fault_tolerance.check(work, batches, step - len(host), host)
  means = {k: float(np.mean([w[k] for w in good], dtype=np.float64)) for k in host[0]
           if k != 'bad'}
  if len(good) < len(host):
    means['skipped'] = len(host) - len(good)
  seconds = max(1e-9, time.monotonic() - start)
  means['steps_per_s'] = round(len(host) / seconds, 3)
  means['data_wait'] = round(sum(waits) / seconds, 4)
  work.record(step, means)
