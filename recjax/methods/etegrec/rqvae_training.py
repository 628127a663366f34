"""Training of an RQ-VAE over a whole catalog on the device (Rajput et al., NeurIPS 2023).

All steps between two evaluations of the codes are one call. Codes that no item has start anew from
the encoder outputs that are quantized worst, since collapse is the failure that others report most.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from recjax.distributed import multihost
from recjax.errors import ConfigError, Preempted, UserError
from recjax.models import rqvae, semantic_ids
from recjax.retrieval import kmeans
from recjax.training import checkpoint, fault_tolerance, optim
from recjax.training.workdir import Workdir

LETTER_GROUPS = 10  # LETTER: groups of codes that are drawn together


@dataclasses.dataclass(frozen=True)
class LetterWeights:
  """Weights of LETTER's regularizers (Wang et al., CIKM 2024, arXiv 2405.07314), 0 is off.

  Hashable. collaborative: of the contrast with collaborative vectors. diversity: of codes that
  stand apart.
  """
  collaborative: float = 0.0
  diversity: float = 0.0

  def __bool__(self):
    return bool(self.collaborative or self.diversity)


NO_LETTER = LetterWeights()


def fit(work: Workdir, cfg: rqvae.Config, train: ConfigDict, x: Float[np.ndarray, 'N d'], seed: int,
        letter: LetterWeights = NO_LETTER,
        partners: np.ndarray | None = None) -> tuple[PyTree, dict]:
  """Trains an RQ-VAE and keeps the parameters with the fewest items that share their codes.

  cfg: of the model. train: steps, batch, eval_every and save_every (steps; a checkpoint is written
  at evaluations alone), revive, and what `optim.make` reads. x: item vectors. seed: of all draws.
  letter: weights of LETTER's terms; partners: (N, E) collaborative vectors that its first one
  contrasts with. work: of the stage. -> params, {'step', 'collision_rate'} of the kept ones, the
  first of equals. Steps depend on their number and the seed alone, so a run that was killed ends
  bit for bit where an uninterrupted one ends. Raises ConfigError for partners of another width or
  cadences below 1, UserError where the loss is no number.
  """
  if letter.collaborative and (partners is None or partners.shape[1] != cfg.width):
    raise ConfigError(f'semantic_ids.collaborative contrasts codes of width {cfg.width} with '
                      'collaborative vectors of that width; make semantic_ids.width and '
                      'vectors.model.width equal')
  if min(train.eval_every, train.save_every) < 1:
    raise ConfigError(
      f'semantic_ids.eval_every={train.eval_every} and save_every={train.save_every} '
      'count steps; each must be 1 or more')
  x, key, tx = jnp.asarray(x), jax.random.key(seed), optim.make(train, train.steps)
  partners = x[:, :0] if partners is None else jnp.asarray(partners)
  with checkpoint.open_checkpoints(work.checkpoints()) as checkpoints, fault_tolerance.holding():
    done, state = restore_state(checkpoints, work, functools.partial(init_state, cfg, tx, x, key))
    work.drop_metrics(work.current, done)
    with work.progress('tokenizer', train.steps, done) as advance, \
        fault_tolerance.watch(work, work.guards.watchdog) as beat:
      while done < train.steps:
        before, done = done, min(done + train.eval_every, train.steps)
        groups = _letter_groups(cfg, state['params'], seed + done) if letter.diversity else None
        params, opt, loss, recon = _steps(
          cfg, tx, done - before, min(train.batch, len(x)), letter, state['params'], state['opt'],
          x, partners, groups, jax.random.fold_in(key, done + 2))
        state = record_codes(
          work, cfg, x, {**state, 'params': params, 'opt': opt}, done, loss, recon)
        beat()
        if train.revive and done < 0.8 * train.steps:
          params, opt = reset_dead_codes(cfg, params, opt, x)
          state.update(params=params, opt=opt)
        preempted, last = fault_tolerance.asked(), done == train.steps
        if preempted or last or done // train.save_every > before // train.save_every:
          checkpoint.save(checkpoints, done, put_state(state, work.mesh))
        if preempted and not last:
          work.log(f'    SIGTERM: saving step {done:,}')
          raise Preempted
        advance(done - before, f'collisions {float(state["rate"]):.2%} at best')
  return state['best'], {'step': int(state['at']), 'collision_rate': round(float(state['rate']), 6)}


def init_state(cfg: rqvae.Config, tx: optax.GradientTransformation, x: Float[Array, 'N d'],
               key: Key[Array, '']) -> dict:
  """Everything that a checkpoint holds, before the first step.

  tx: the optimizer. x: item vectors. cfg: of the model. key: of the draws.
  """
  params = rqvae.init_codebooks(
    cfg, rqvae.init(cfg, jax.random.fold_in(key, 0)), x[_kmeans_rows(key, len(x))],
    jax.random.fold_in(key, 1))
  return {
    'params': params, 'opt': tx.init(params), 'best': params, 'rate': np.float32(np.inf),
    'at': np.int32(0)}


def restore_state(checkpoints: Any, work: Workdir, start: Callable) -> tuple[int, dict]:
  """The newest whole checkpoint, or what `start` makes. -> steps done, state as of `init_state`

  checkpoints: as `checkpoint.open_checkpoints` gives them. Every process holds the state whole, as
  `_steps` works on one device. work: of the stage. start: makes a new state.
  """
  replicated = jax.NamedSharding(work.mesh, jax.P())
  shapes = jax.eval_shape(start)
  done, state = checkpoint.restore(checkpoints, checkpoint.abstract(
      shapes, jax.tree.map(lambda _: replicated, shapes)), work.log)
  if state is None:
    return 0, start()
  work.log(f'    going on from step {done:,}')
  return done, jax.tree.map(jnp.asarray, multihost.to_host(state))


def put_state(state: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
  """The state as several processes write it together. mesh: the devices. state: as of `init_state`.
  """
  replicated = jax.NamedSharding(mesh, jax.P())
  return jax.tree.map(lambda leaf: multihost.put_global(leaf, replicated), state)


def record_codes(work: Workdir, cfg: rqvae.Config, x: Float[Array, 'N d'], state: dict, done: int,
                 loss: Array, recon: Array) -> dict:
  """Records how the codes are used; parameters that are better than ever become the best.

  x: item vectors. done: steps so far. loss, recon: means of the last ones. work: of the stage. cfg:
  of the model. state: as of `init_state`. -> state. Raises UserError where the loss is no number.
  """
  if not np.isfinite(loss):
    raise UserError(f'the loss of the tokenizer became {loss} before step {done}, of which nothing '
                    'is kept; lower semantic_ids.lr and run again, which trains it anew')
  stats = semantic_ids.codebook_stats(rqvae.assign_codes(cfg, state['params'], x), cfg.size)
  work.record(done, {
      'loss': float(loss), 'recon': float(recon), 'collision_rate': stats['collision_rate'],
      **{f'usage_{level + 1}': share for level, share in enumerate(stats['usage'])}})
  rate = np.float32(stats['collision_rate'])  # as a checkpoint holds it, so that equals stay equal
  if rate < state['rate']:
    state = {**state, 'best': state['params'], 'rate': rate, 'at': np.int32(done)}
  return state


def _kmeans_rows(key: Key[Array, ''], num_items: int, max_rows: int = 20_000) -> Array:
  """Rows that k-means starts from."""
  return jax.random.permutation(jax.random.fold_in(key, 2**20), num_items)[:max_rows]


def _letter_groups(cfg: rqvae.Config, params: PyTree, seed: int) -> Array:
  """LETTER: which codes of a level belong together. -> (L, C) int32"""
  if cfg.size < 2 * LETTER_GROUPS:
    return jnp.zeros((cfg.levels, cfg.size), jnp.int32)
  return jnp.stack([kmeans.fit_balanced(jax.random.key(seed + level), book, LETTER_GROUPS, 3)[1]
                    for level, book in enumerate(params['codebooks'])])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _steps(cfg: rqvae.Config, tx: optax.GradientTransformation, count: int, batch: int,
           letter: LetterWeights, params: PyTree, opt: PyTree, x: Array, partners: Array,
           groups: Array | None, key: Array) -> tuple[PyTree, PyTree, Array, Array]:
  """`count` updates on rows drawn without repeats in a batch.

  -> params, opt, mean loss (), mean reconstruction ()
  """
  def loss_of(params: PyTree, rows: Array, key: Array) -> tuple:
    loss_key, diversity_key = jax.random.split(key)
    value, outputs = rqvae.loss(cfg, params, x[rows], loss_key)
    if letter.collaborative:
      value += letter.collaborative * rqvae.collaborative_loss(
          sum(outputs['parts']), partners[rows])
    if letter.diversity:
      value += letter.diversity * rqvae.diversity_loss(params['codebooks'], outputs['parts'],
                                                  outputs['codes'], groups, diversity_key)
    return value, rqvae.recon_loss(cfg, outputs['recon'], x[rows])

  def step(state: tuple, number: Array) -> tuple:
    params, opt = state
    step_key = jax.random.fold_in(key, number)
    rows = jax.random.permutation(jax.random.fold_in(step_key, 0), len(x))[:batch]
    outputs, grads = jax.value_and_grad(loss_of, has_aux=True)(params, rows,
                                                               jax.random.fold_in(step_key, 1))
    updates, opt = tx.update(grads, opt, params)
    return (optax.apply_updates(params, updates), opt), outputs
  (params, opt), outputs = lax.scan(step, (params, opt), jnp.arange(count))
  return params, opt, *(x.mean() for x in outputs)


@functools.partial(jax.jit, static_argnums=0)
def reset_dead_codes(cfg: rqvae.Config, params: PyTree, opt: PyTree,
                     x: Float[Array, 'N d']) -> tuple[PyTree, PyTree]:
  """Codes that no item has become residuals that are quantized worst; their moments become 0.

  opt: the optimizer's state. x: item vectors. cfg, params: of the model. -> params, optimizer state
  """
  quantized = rqvae.quantize(cfg, params['codebooks'], rqvae.encode(cfg, params, x))
  residual, books, dead = rqvae.encode(cfg, params, x), [], []
  for level in range(cfg.levels):
    book, code = params['codebooks'][level], quantized['codes'][:, level]
    unused = jnp.zeros(cfg.size, jnp.int32).at[code].add(1) == 0
    error = ((residual - book[code]) ** 2).sum(-1)
    worst = lax.top_k(error, min(cfg.size, len(x)))[1]
    replacement = worst[jnp.minimum(jnp.cumsum(unused) - 1, len(worst) - 1)]
    books.append(jnp.where(unused[:, None], residual[replacement], book))
    dead.append(unused)
    residual = residual - book[code]
  dead = jnp.stack(dead)[..., None]

  def reset_moments(path: tuple, leaf: Array) -> Array:
    is_codebook = any(getattr(k, 'key', None) == 'codebooks' for k in path)
    has_rows = is_codebook and leaf.shape == params['codebooks'].shape
    return jnp.where(dead, 0, leaf) if has_rows else leaf
  return ({**params, 'codebooks': jnp.stack(books)},
          jax.tree_util.tree_map_with_path(reset_moments, opt))
