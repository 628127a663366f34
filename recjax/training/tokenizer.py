"""Training of an RQ-VAE over a whole catalogue on the device (specification: semantic_ids.md 2).

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

from recjax.errors import ConfigError, UserError
from recjax.models import codes, kmeans, rqvae
from recjax.training import optim

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

  cfg: rqvae.Config. how: steps, batch, look_every (steps), revive, and what `optim.make` reads.
  x: (N, d) float32. letter: weights of LETTER's terms; partners: (N, E) collaborative vectors that
  its first one contrasts with. -> params, {'step', 'collision_rate'} of the kept ones
  Raises ConfigError for partners of another width, UserError where the loss is no number.
  """
  if letter.collaborative and (partners is None or partners.shape[1] != cfg.width):
    raise ConfigError(f'tokenizer.collaborative contrasts codes of width {cfg.width} with '
                      'collaborative vectors of that width; make tokenizer.width and '
                      'vectors.model.width equal')
  x, key = jnp.asarray(x), jax.random.key(seed)
  params = rqvae.seed_codes(cfg, rqvae.init(cfg, jax.random.fold_in(key, 0)), x[_some(key, len(x))],
                            jax.random.fold_in(key, 1))
  tx = optim.make(how, how.steps)
  opt, best = tx.init(params), (np.inf, 0, params)
  steps = min(how.look_every, how.steps)
  partners = x[:, :0] if partners is None else jnp.asarray(partners)
  run = functools.partial(_steps, cfg, tx, steps, min(how.batch, len(x)), letter)
  with work.progress('tokenizer', how.steps) as advance:
    for done in range(steps, how.steps + 1, steps):
      groups = _groups(cfg, params, seed + done) if letter.diversity else None
      params, opt, loss, recon = run(params, opt, x, partners, groups,
                                     jax.random.fold_in(key, done + 2))
      if not np.isfinite(loss):
        raise UserError(f'the loss of the tokenizer became {loss} before step {done}; lower '
                        'tokenizer.lr and run again')
      found = codes.health(rqvae.codes_of(cfg, params, x), cfg.size)
      work.record(done, {
          'loss': float(loss), 'recon': float(recon), 'collision_rate': found['collision_rate'],
          **{f'usage_{level + 1}': u for level, u in enumerate(found['usage'])}})
      if found['collision_rate'] < best[0]:
        best = (found['collision_rate'], done, params)
      if how.revive and done < 0.8 * how.steps:
        params, opt = revive(cfg, params, opt, x)
      advance(steps, f'collisions {found["collision_rate"]:.2%}')
  return best[2], {'step': best[1], 'collision_rate': best[0]}


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
      value += letter.collaborative * rqvae.collaborative(sum(found['parts']), partners[rows])
    if letter.diversity:
      value += letter.diversity * rqvae.diversity(params['codebooks'], found['parts'],
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
def revive(cfg, params, opt, x):
  """Codes that no item has become residuals that are quantised worst; their moments become 0.

  x: (N, d). -> params, opt
  """
  found = rqvae.quantise(cfg, params['codebooks'], rqvae.encode(cfg, params, x))
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
