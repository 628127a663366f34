"""k-means on the device: plain, in small batches, and with clusters of equal size.

Distances are float32 at the highest precision, since an argmin depends on them. N points, d numbers
each, K centres; ties go to the lower index. (specification: semantic_ids.md 2.5, 2.6, 4)
"""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CHUNK = 8192  # points whose distances are held at a time


def distances(x, centres):
  """Squared distances. x: (N, d), centres: (K, d) -> (N, K), not below 0"""
  cross = jnp.dot(x, centres.T, precision=lax.Precision.HIGHEST)
  both = (x * x).sum(-1, keepdims=True) + (centres * centres).sum(-1)
  return jnp.maximum(both - 2 * cross, 0)


def nearest(x, centres):
  """-> the nearest centre of each point (N,) int32, its squared distance (N,)"""
  def one(part):
    d = distances(part, centres)
    return argmin(d).astype(jnp.int32), d.min(-1)
  if len(x) <= CHUNK:
    return one(x)
  pad = -len(x) % CHUNK
  parts = jnp.pad(x, [(0, pad), (0, 0)]).reshape(-1, CHUNK, x.shape[1])
  return tuple(y.reshape(-1)[:len(x)] for y in lax.map(one, parts))


@functools.partial(jax.jit, static_argnums=2)
def plus_plus(key, x, k):
  """k-means++: each next centre is a point drawn by its squared distance to those before.

  Where fewer than k points differ, some centres are equal. -> (K, d)
  """
  def add(number, carry):
    centres, least = carry
    noise = jax.random.gumbel(jax.random.fold_in(key, number), least.shape)
    at = jnp.argmax(jnp.where(least > 0, jnp.log(jnp.maximum(least, 1e-37)) + noise, -jnp.inf))
    centres = centres.at[number].set(x[at])
    return centres, jnp.minimum(least, ((x - x[at]) ** 2).sum(-1))
  first = x[jax.random.randint(jax.random.fold_in(key, k), (), 0, len(x))]
  start = jnp.zeros((k, x.shape[1])).at[0].set(first), ((x - first) ** 2).sum(-1)
  return lax.fori_loop(1, k, add, start)[0]


def update_centers(x, assigned, centres, least):
  """Means of the clusters; empty ones take the points that lie farthest from theirs."""
  k = len(centres)
  count = jax.ops.segment_sum(jnp.ones(len(x)), assigned, k)
  fresh = jax.ops.segment_sum(x, assigned, k) / jnp.maximum(count, 1)[:, None]
  rank = jnp.cumsum(count == 0) - 1
  value, far = lax.top_k(least, min(k, len(x)))
  at = jnp.minimum(rank, len(far) - 1)
  spare = jnp.where((value[at] > 0)[:, None], x[far[at]], centres)
  return jnp.where((count > 0)[:, None], fresh, spare)


@functools.partial(jax.jit, static_argnums=(2, 3))
def fit(key, x, k, steps=25):
  """k-means++ and Lloyd. -> centres (K, d), assigned (N,), inertia ()"""
  def step(_, centres):
    return update_centers(x, *_paired(nearest(x, centres), centres))
  centres = lax.fori_loop(0, steps, step, plus_plus(key, x, k))
  assigned, least = nearest(x, centres)
  return centres, assigned, least.sum()


def _paired(found, centres):
  return found[0], centres, found[1]


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def fit_minibatch(key, x, k, steps=30, batch=2048):
  """Mini-batch k-means: a centre moves by its batch's share of all that it has seen (GRID).

  -> centres (K, d), assigned (N,), inertia ()
  """
  some = jax.random.permutation(jax.random.fold_in(key, 0), len(x))[:3072]
  def step(number, carry):
    centres, seen = carry
    at = jax.random.randint(jax.random.fold_in(key, number + 2), (min(batch, len(x)),), 0, len(x))
    assigned, _ = nearest(x[at], centres)
    count = jax.ops.segment_sum(jnp.ones(len(at)), assigned, k)
    mean = jax.ops.segment_sum(x[at], assigned, k) / jnp.maximum(count, 1)[:, None]
    seen = seen + count
    share = (count / jnp.maximum(seen, 1))[:, None]
    return centres + share * (mean - centres), seen
  start = plus_plus(jax.random.fold_in(key, 1), x[some], k), jnp.zeros(k)
  centres, _ = lax.fori_loop(0, steps, step, start)
  assigned, least = nearest(x, centres)
  return centres, assigned, least.sum()


# Clusters of equal size.


def sinkhorn(d, eps, columns=None, steps=50):
  """The transport plan of distances, in the log domain.

  d: (N, K), centred and scaled as the published code does. columns: (K,) share of each column,
  equal ones by default. -> log plan (N, K); a row's plan sums to about 1
  """
  middle = (d.max() + d.min()) / 2
  scaled = (d - middle) / (d.max() - middle + 1e-5)
  n, k = d.shape
  goal = jnp.full(k, -jnp.log(k)) if columns is None else jnp.log(columns)

  def turn(_, log):
    log = log - jax.nn.logsumexp(log, 1, keepdims=True) - jnp.log(n)
    return log - jax.nn.logsumexp(log, 0) + goal
  log = lax.fori_loop(0, steps, turn, -scaled / eps - jax.nn.logsumexp(-scaled / eps))
  return log + jnp.log(n)


def capacities(n, k):
  """How many points each of k equal clusters takes: the first n mod k one more. -> (K,)"""
  return n // k + (np.arange(k) < n % k)


def assign_to_capacity(worth, room, order):
  """Gives each point the best centre that has room, in the order given.

  worth: (N, K), higher is better. room: (K,), its sum at least N. -> (N,) int32
  """
  worth, room = np.asarray(worth), np.array(room)
  choice = np.argsort(-worth, 1, kind='stable')
  out = np.zeros(len(worth), np.int32)
  for i in order:
    row = choice[i]
    out[i] = row[np.argmax(room[row] > 0)]
    room[out[i]] -= 1
  return out


def fit_balanced(key, x, k, steps=10, eps=0.05):
  """k-means whose clusters hold between max(1, N // K - 1) and N // K + 1 points (at least).

  Sinkhorn and rounding under capacities in turn with means; a substitute for min-cost flow.
  -> centres (K, d), assigned (N,), inertia ()
  """
  n = len(x)
  room = jnp.asarray(capacities(n, k), jnp.float32)
  plan = jax.jit(lambda c: sinkhorn(distances(x, c), eps, room / n))
  centres = fit(key, x, k, 5)[0]
  order = np.random.default_rng(int(jax.random.randint(key, (), 0, 1 << 30))).permutation(n)
  for _ in range(steps):
    assigned = jnp.asarray(assign_to_capacity(plan(centres), np.asarray(room, int), order))
    centres = update_centers(x, assigned, centres, jnp.zeros(n))
  d = distances(x, centres)
  return centres, assigned, jnp.take_along_axis(d, assigned[:, None], 1).sum()


def argmin(x):
  """The first place of the least number, as jnp.argmin over the last axis. x: (..., C) -> (...)

  Least numbers of blocks first, then one block: a sixth of the time on a CPU, where a reduction
  that carries places is not vectorised.
  """
  size = x.shape[-1]
  block = next(b for b in range(math.isqrt(size), 0, -1) if size % b == 0)
  if block == 1:
    return x.argmin(-1)
  parts = x.reshape(*x.shape[:-1], size // block, block)
  best = parts.min(-1).argmin(-1)
  inside = jnp.take_along_axis(parts, best[..., None, None], -2)[..., 0, :].argmin(-1)
  return best * block + inside
