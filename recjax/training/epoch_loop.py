"""Training by whole epochs on the device, several seeds at once, judged after each on validation.

`fit` feeds steps from the host, which suits large models; here the data are on the device and one
call is one epoch. An epoch depends on its number and the seeds alone, so a run that was killed ends
bit for bit where an uninterrupted one ends.
"""
import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PyTree
from ml_collections import ConfigDict

from recjax.distributed import multihost
from recjax.errors import Preempted, UserError
from recjax.progress import doing
from recjax.training import checkpoint, fault_tolerance
from recjax.training.workdir import Workdir


def fit_epochs(init: Callable, epoch: Callable, validate: Callable | None = None, *,
               cfg: ConfigDict, work: Workdir,
               rows: Callable[[int, int, int], Iterable[int]] | None = None,
               stop_at: Int[np.ndarray, ' S'] | None = None,
               ) -> tuple[PyTree, Float[np.ndarray, ' S'], Int[np.ndarray, ' S']]:
  """Trains until no seed has got better for `cfg.patience` epochs (0: ever), or for `cfg.epochs`.

  init: () -> {'params', 'opt'}, every leaf with a leading axis of S seeds. epoch: (state, number)
  -> (state, {name: (S,)} means, 'bad' being the first step whose loss is no number, or -1), jitted,
  its argument donated. validate: params -> (S,) host floats, higher is better. cfg: epochs,
  patience, save_every (epochs). rows: (seed, epoch from 0, step) -> the examples of that step.
  work: of the running stage. stop_at: in place of `validate`, the epoch at which each seed is
  taken; this is then the stage's part 'refit'. -> (best params (S, ...), best scores (S,), their
  epochs (S,), counted from 1)
  """
  last = cfg.epochs if stop_at is None else int(stop_at.max())
  patience = cfg.patience if stop_at is None else 0
  with work.again('' if stop_at is None else 'refit'), jax.set_mesh(work.mesh), \
      checkpoint.open_checkpoints(work.checkpoints()) as saved, \
      fault_tolerance.holding():
    done, tree = restore_or_begin(init, saved, work)
    with work.progress(work.current, last, done, 'epoch') as advance, \
        fault_tolerance.watch(work, work.guards.watchdog) as beat:
      while done < last and (
          not patience or (done - np.asarray(tree['at']) < patience).any()):
        start = time.monotonic()
        with doing(f'epoch {done + 1}'):
          state, means = epoch(tree['state'], np.int32(done))
          means = multihost.to_host(means)
        seconds = time.monotonic() - start
        done += 1
        check(means, done, work, rows)
        beat()
        with doing('the validation'):
          scores = (validate(multihost.local_values(state['params'])) if validate
                    else np.asarray(stop_at) == done)
        tree = keep_best(tree, state, np.asarray(scores, np.float32), np.int32(done))
        work.record(done, {
            **{f'{k}_{s}': float(v) for k, vs in means.items() for s, v in enumerate(vs)},
            **{f'valid_{s}': float(v) for s, v in enumerate(scores)
               if validate is not None and math.isfinite(v)},
            'seconds': round(seconds, 2), 'with_validation': round(time.monotonic() - start, 2)})
        leave = fault_tolerance.asked()
        if leave or done % cfg.save_every == 0:
          checkpoint.save(saved, done, tree)
        if leave and done < last:
          work.log(f'    SIGTERM: saving epoch {done}')
          raise Preempted
        best, at = (np.asarray(tree[k]) for k in ('score', 'at'))
        judged = f'valid {np.mean(scores):.4f}, ' if np.isfinite(scores).all() else ''
        advance(note='' if validate is None else (
            f'at most; {judged}best {best.mean():.4f}, stops at '
            f'{min(last, at.max() + (patience or last))}'))
    if done % cfg.save_every:
      checkpoint.save(saved, done, tree)
  return multihost.local_values(tree['best']), np.asarray(tree['score']), np.asarray(tree['at'])


def restore_or_begin(init: Callable, saved: Any, work: Workdir) -> tuple[int, PyTree]:
  """The newest checkpoint, or the beginning. init, work: as `fit_epochs` takes them. saved: the
  open checkpoints. -> epochs done, what `begin` makes"""
  shapes = jax.eval_shape(begin, jax.eval_shape(init))
  where = jax.tree.map(lambda _: jax.NamedSharding(work.mesh, jax.P()), shapes)
  done, tree = checkpoint.restore(saved, checkpoint.abstract(shapes, where), work.log)
  if tree is None:
    tree = jax.jit(lambda: begin(init()), out_shardings=where)()
  elif done:
    work.log(f'    going on from epoch {done}')
  work.drop_metrics(work.current, done)
  return done, tree


def begin(state: PyTree) -> PyTree:
  """Everything that a checkpoint holds, before the first epoch. state: of `init` of `fit_epochs`.
  """
  seeds = len(jax.tree.leaves(state)[0])
  return {'state': state, 'best': jax.tree.map(jnp.array, state['params']),
          'score': jnp.full(seeds, -jnp.inf), 'at': jnp.zeros(seeds, jnp.int32)}


@jax.jit
def keep_best(tree: PyTree, state: PyTree, scores: Float[Array, ' S'],
              done: Int32[Array, '']) -> PyTree:
  """Takes over the parameters of those seeds that are better than ever. tree: as `begin` makes it.
  state: after the epoch. scores: of the epoch, higher is better. done: epochs so far."""
  better = scores > tree['score']
  best = jax.tree.map(
      lambda new, old: jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
      state['params'], tree['best'])
  return {'state': state, 'best': best, 'score': jnp.where(better, scores, tree['score']),
          'at': jnp.where(better, done, tree['at'])}


def check(means: dict[str, np.ndarray], epoch: int, work: Workdir,
          rows: Callable | None = None) -> None:
  """Raises UserError where a loss is no number; nothing of that epoch is saved.

  means: as `fit_epochs` takes them; 'bad' is taken out. The step's examples go to bad_steps.jsonl.
  epoch: from 1. work, rows: as of `fit_epochs`.
  """
  first = means.pop('bad', None)
  bad = [s for s, v in enumerate(means['loss']) if not math.isfinite(v)]
  if not bad:
    return
  seed, where = bad[0], f'epoch {epoch}'
  if first is not None and first[seed] >= 0:
    where += f', step {first[seed]}'
    members = rows(seed, epoch - 1, int(first[seed])) if rows else ()
    with open(work.path / 'bad_steps.jsonl', 'a', encoding='utf-8') as f:
      f.write(json.dumps({'stage': work.current, 'epoch': epoch, 'step': int(first[seed]),
                          'seed': seed, 'rows': [int(r) for r in members]}) + '\n')
  raise UserError(f'the loss of {work.current} became {means["loss"][seed]} in {where} (seed '
                  f'number {seed}); nothing of that epoch is kept, and bad_steps.jsonl names its '
                  'users. Lower --config.optim.lr and run again, which trains this stage anew')
