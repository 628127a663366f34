"""Training of an RQ-VAE over a whole catalogue on the device (Rajput et al., NeurIPS 2023, 3.1).

All steps between two looks at the codes are one call. Codes that no item has start anew from the
encoder outputs that are quantised worst, since collapse is the failure that others report most.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from recjax.distributed import multihost
from recjax.errors import ConfigError, Preempted, UserError
from recjax.models import rqvae, semantic_ids
from recjax.retrieval import kmeans
from recjax.training import checkpoint, fault_tolerance, optim

GROUPS = 10  # LETTER: groups of codes that are drawn together


@dataclasses.dataclass(frozen=True)
class Letter:
  """LETTER's regularisers; hashable. Weights; 0 is off."""
  collaborative: float = 0.0
  diversity: float = 0.0

  def __bool__(self):
    return bool(self.collaborative or self.diversity)


NONE = Letter()


def fit(work, cfg, how, x, seed, letter=NONE, partners=None):
  """Trains an RQ-VAE and keeps the parameters with the fewest items that share their codes.

  cfg: rqvae.Config. how: steps, batch, look_every and save_every (steps; a checkpoint is written at
  looks alone), revive, and what `optim.make` reads. x: (N, d) float32. letter: weights of LETTER's
  terms; partners: (N, E) collaborative vectors that its first one contrasts with. -> params,
  {'step', 'collision_rate'} of the kept ones, the first of equals.
  Steps depend on their number and the seed alone, so a run that was killed ends bit for bit where
  an uninterrupted one ends.
  Raises ConfigError for partners of another width or cadences below 1, UserError where the loss is
  no number.
  """
  if letter.collaborative and (partners is None or partners.shape[1] != cfg.width):
    raise ConfigError(f'tokenizer.collaborative contrasts codes of width {cfg.width} with '
                      'collaborative vectors of that width; make tokenizer.width and '
                      'vectors.model.width equal')
  if min(how.look_every, how.save_every) < 1:
    raise ConfigError(f'tokenizer.look_every={how.look_every} and save_every={how.save_every} '
                      'count steps; each must be 1 or more')
  x, key, tx = jnp.asarray(x), jax.random.key(seed), optim.make(how, how.steps)
  partners = x[:, :0] if partners is None else jnp.asarray(partners)
  with checkpoint.open_checkpoints(work.checkpoints()) as saved, fault_tolerance.holding():
    done, tree = resumed(saved, work, functools.partial(begin, cfg, tx, x, key))
    work.drop_metrics(work.current, done)
    with work.progress('tokenizer', how.steps, done) as advance, \
        fault_tolerance.watch(work, work.guards.watchdog) as beat:
      while done < how.steps:
        before, done = done, min(done + how.look_every, how.steps)
        groups = _groups(cfg, tree['params'], seed + done) if letter.diversity else None
        params, opt, loss, recon = _steps(
            cfg, tx, done - before, min(how.batch, len(x)), letter, tree['params'], tree['opt'], x,
            partners, groups, jax.random.fold_in(key, done + 2))
        tree = looked(work, cfg, x, {**tree, 'params': params, 'opt': opt}, done, loss, recon)
        beat()
        if how.revive and done < 0.8 * how.steps:
          params, opt = reset_dead_codes(cfg, params, opt, x)
          tree.update(params=params, opt=opt)
        leave, last = fault_tolerance.asked(), done == how.steps
        if leave or last or done // how.save_every > before // how.save_every:
          checkpoint.save(saved, done, spread(tree, work.mesh))
        if leave and not last:
          work.say(f'    SIGTERM: saving step {done:,}')
          raise Preempted
        advance(done - before, f'collisions {float(tree["rate"]):.2%} at best')
  return tree['best'], {'step': int(tree['at']), 'collision_rate': round(float(tree['rate']), 6)}


def begin(cfg, tx, x, key):
  """Everything that a checkpoint holds, before the first step."""
  params = rqvae.init_codebooks(
    cfg,
    rqvae.init(cfg, jax.random.fold_in(key, 0)),
    x[_some(key, len(x))],
    jax.random.fold_in(key, 1),
  )
  return {
    'params': params,
    'opt': tx.init(params),
    'best': params,
    'rate': np.float32(np.inf),
    'at': np.int32(0),
  }


def resumed(saved, work, start):
  """The newest whole checkpoint, or what `start` makes. -> steps done, tree as of `begin`

  Every process holds the tree whole, as `_steps` works on one device.
  """
  everywhere = jax.NamedSharding(work.mesh, jax.P())
  shapes = jax.eval_shape(start)
  done, tree = checkpoint.restore(saved, checkpoint.abstract(
      shapes, jax.tree.map(lambda _: everywhere, shapes)), work.say)
  if tree is None:
    return 0, start()
  work.say(f'    going on from step {done:,}')
  return done, jax.tree.map(jnp.asarray, multihost.to_host(tree))


def spread(tree, mesh):
  """The tree as several processes write it together."""
  everywhere = jax.NamedSharding(mesh, jax.P())
  return jax.tree.map(lambda leaf: multihost.put_global(leaf, everywhere), tree)


def looked(work, cfg, x, tree, done, loss, recon):
  """Records a look at the codes; parameters that are better than ever become the best. -> tree"""
  if not np.isfinite(loss):
    raise UserError(f'the loss of the tokenizer became {loss} before step {done}, of which nothing '
                    'is kept; lower tokenizer.lr and run again, which trains it anew')
  found = semantic_ids.codebook_stats(rqvae.assign_codes(cfg, tree['params'], x), cfg.size)
  work.record(done, {
      'loss': float(loss), 'recon': float(recon), 'collision_rate': found['collision_rate'],
      **{f'usage_{level + 1}': u for level, u in enumerate(found['usage'])}})
  rate = np.float32(found['collision_rate'])  # as a checkpoint holds it, so that equals stay equal
  if rate < tree['rate']:
    tree = {**tree, 'best': tree['params'], 'rate': rate, 'at': np.int32(done)}
  return tree


def _some(key, n, most=20_000):
  """Rows that k-means starts from."""
  return jax.random.permutation(jax.random.fold_in(key, 2**20), n)[:most]


def _groups(cfg, params, seed):
  """LETTER: which codes of a level belong together. -> (L, C) int32"""
  if cfg.size < 2 * GROUPS:
    return jnp.zeros((cfg.levels, cfg.size), jnp.int32)
  return jnp.stack([kmeans.fit_balanced(jax.random.key(seed + level), book, GROUPS, 3)[1]
                    for level, book in enumerate(params['codebooks'])])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _steps(cfg, tx, count, batch, letter, params, opt, x, partners, groups, key):
  """`count` updates on rows drawn without repeats in a batch.

  -> params, opt, mean loss (), mean reconstruction ()
  """
  def loss_of(params, rows, key):
    draw, noise = jax.random.split(key)
    value, found = rqvae.loss(cfg, params, x[rows], draw)
    if letter.collaborative:
      value += letter.collaborative * rqvae.collaborative_loss(sum(found['parts']), partners[rows])
    if letter.diversity:
      value += letter.diversity * rqvae.diversity_loss(params['codebooks'], found['parts'],
                                                  found['codes'], groups, noise)
    return value, rqvae.recon_loss(cfg, found['recon'], x[rows])

  def step(state, number):
    params, opt = state
    own = jax.random.fold_in(key, number)
    rows = jax.random.permutation(jax.random.fold_in(own, 0), len(x))[:batch]
    found, grads = jax.value_and_grad(loss_of, has_aux=True)(params, rows,
                                                             jax.random.fold_in(own, 1))
    change, opt = tx.update(grads, opt, params)
    return (optax.apply_updates(params, change), opt), found
  (params, opt), found = lax.scan(step, (params, opt), jnp.arange(count))
  return params, opt, *(x.mean() for x in found)


@functools.partial(jax.jit, static_argnums=0)
def reset_dead_codes(cfg, params, opt, x):
  """Codes that no item has become residuals that are quantised worst; their moments become 0.

  x: (N, d). -> params, opt
  """
  found = rqvae.quantize(cfg, params['codebooks'], rqvae.encode(cfg, params, x))
  v, books, dead = rqvae.encode(cfg, params, x), [], []
  for level in range(cfg.levels):
    book, code = params['codebooks'][level], found['codes'][:, level]
    unused = jnp.zeros(cfg.size, jnp.int32).at[code].add(1) == 0
    gap = ((v - book[code]) ** 2).sum(-1)
    worst = lax.top_k(gap, min(cfg.size, len(x)))[1]
    at = worst[jnp.minimum(jnp.cumsum(unused) - 1, len(worst) - 1)]
    books.append(jnp.where(unused[:, None], v[at], book))
    dead.append(unused)
    v = v - book[code]
  dead = jnp.stack(dead)[..., None]

  def fresh(path, leaf):
    of_books = any(getattr(k, 'key', None) == 'codebooks' for k in path)
    alike = of_books and leaf.shape == params['codebooks'].shape
    return jnp.where(dead, 0, leaf) if alike else leaf
  return ({**params, 'codebooks': jnp.stack(books)},
          jax.tree_util.tree_map_with_path(fresh, opt))
