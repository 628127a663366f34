"""k-means on the device: plain, in small batches, and with clusters of equal size.

Distances are float32 at the highest precision, since an argmin depends on them; ties go to the
lower index. Shape letters: N points of d numbers, K centers.
"""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from recjax.protocols import AnyArray

CHUNK = 8192  # points whose distances are held at a time
Clusters = tuple[Float[Array, 'K d'], Int[Array, ' N'], Float[Array, '']]


def argmin(x: Float[AnyArray, '*rows K']) -> Int[Array, '*rows']:
  """The first index of the least number, as jnp.argmin over the last axis.

  x: of any shape.

  Least numbers of blocks first, then one block: a sixth of the time on a CPU, where a reduction
  that carries indices is not vectorized.
  """
  size = x.shape[-1]
  block = next(b for b in range(math.isqrt(size), 0, -1) if size % b == 0)
  if block == 1:
    return jnp.argmin(x, -1)
  blocks = x.reshape(*x.shape[:-1], size // block, block)
  best = blocks.min(-1).argmin(-1)
  inside = jnp.take_along_axis(blocks, best[..., None, None], -2)[..., 0, :].argmin(-1)
  return best * block + inside


def distances(x: Float[AnyArray, 'N d'], centers: Float[AnyArray, 'K d']) -> Float[Array, 'N K']:
  """Squared distances of points x to centers, not below 0."""
  dot = jnp.dot(x, centers.T, precision=lax.Precision.HIGHEST)
  norms = (x * x).sum(-1, keepdims=True) + (centers * centers).sum(-1)
  return jnp.maximum(norms - 2 * dot, 0)


def nearest(
    x: Float[AnyArray, 'N d'], centers: Float[AnyArray, 'K d'],
) -> tuple[Int[Array, ' N'], Float[Array, ' N']]:
  """The nearest center of each point x, and its squared distance. centers: of K clusters."""
  def of_chunk(points: AnyArray) -> tuple[Array, Array]:
    d = distances(points, centers)
    return argmin(d).astype(jnp.int32), d.min(-1)
  if len(x) <= CHUNK:
    return of_chunk(x)
  chunks = jnp.pad(x, [(0, -len(x) % CHUNK), (0, 0)]).reshape(-1, CHUNK, x.shape[1])
  assigned, least = (y.reshape(-1)[:len(x)] for y in lax.map(of_chunk, chunks))
  return assigned, least


@functools.partial(jax.jit, static_argnums=2)
def plus_plus(key: Key[Array, ''], x: Float[Array, 'N d'], k: int) -> Float[Array, 'K d']:
  """k-means++ (Arthur and Vassilvitskii, SODA 2007): k of the points x as centers.

  key: of the draws.

  Each next one is drawn by its squared distance to those before. Where fewer than k points differ,
  some centers are equal.
  """
  def add(number: Array | int, carry: tuple) -> tuple:
    centers, least = carry
    noise = jax.random.gumbel(jax.random.fold_in(key, number), least.shape)
    drawn = jnp.argmax(jnp.where(least > 0, jnp.log(jnp.maximum(least, 1e-37)) + noise, -jnp.inf))
    centers = centers.at[number].set(x[drawn])
    return centers, jnp.minimum(least, ((x - x[drawn]) ** 2).sum(-1))
  first = x[jax.random.randint(jax.random.fold_in(key, k), (), 0, len(x))]
  start = jnp.zeros((k, x.shape[1])).at[0].set(first), ((x - first) ** 2).sum(-1)
  return lax.fori_loop(1, k, add, start)[0]


def update_centers(
    x: Float[Array, 'N d'], assigned: Int[Array, ' N'], centers: Float[Array, 'K d'],
    least: Float[Array, ' N']) -> Float[Array, 'K d']:
  """Means of the clusters; empty ones take the points that lie farthest from their center.

  x: the points. assigned, least: of `nearest` for the old centers.
  """
  k = len(centers)
  count = jax.ops.segment_sum(jnp.ones(len(x)), assigned, k)
  means = jax.ops.segment_sum(x, assigned, k) / jnp.maximum(count, 1)[:, None]
  rank = jnp.cumsum(count == 0) - 1
  value, farthest = lax.top_k(least, min(k, len(x)))
  index = jnp.minimum(rank, len(farthest) - 1)
  spare = jnp.where((value[index] > 0)[:, None], x[farthest[index]], centers)
  return jnp.where((count > 0)[:, None], means, spare)


@functools.partial(jax.jit, static_argnums=(2, 3))
def fit(key: Key[Array, ''], x: Float[Array, 'N d'], k: int, steps: int = 25) -> Clusters:
  """k-means++ and `steps` of Lloyd's algorithm. key: of the draws. -> centers, cluster of each
  point x, inertia"""
  def step(_: Array | int, centers: Array) -> Array:
    assigned, least = nearest(x, centers)
    return update_centers(x, assigned, centers, least)
  centers = lax.fori_loop(0, steps, step, plus_plus(key, x, k))
  assigned, least = nearest(x, centers)
  return centers, assigned, least.sum()


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def fit_minibatch(
    key: Key[Array, ''], x: Float[Array, 'N d'], k: int, steps: int = 30, batch: int = 2048,
) -> Clusters:
  """Mini-batch k-means (Sculley, WWW 2010), as github.com/snap-research/GRID has it.

  key: of the draws.

  A center moves by its batch's share of all that it has seen. x, k, steps: as in `fit`. batch:
  points of a step. -> centers, cluster of each point, inertia
  """
  sample = jax.random.permutation(jax.random.fold_in(key, 0), len(x))[:3072]

  def step(number: Array | int, carry: tuple) -> tuple:
    centers, seen = carry
    rows = jax.random.randint(jax.random.fold_in(key, number + 2), (min(batch, len(x)),), 0, len(x))
    assigned, _ = nearest(x[rows], centers)
    count = jax.ops.segment_sum(jnp.ones(len(rows)), assigned, k)
    means = jax.ops.segment_sum(x[rows], assigned, k) / jnp.maximum(count, 1)[:, None]
    seen = seen + count
    share = (count / jnp.maximum(seen, 1))[:, None]
    return centers + share * (means - centers), seen
  start = plus_plus(jax.random.fold_in(key, 1), x[sample], k), jnp.zeros(k)
  centers, _ = lax.fori_loop(0, steps, step, start)
  assigned, least = nearest(x, centers)
  return centers, assigned, least.sum()


# Clusters of equal size.


def sinkhorn(
    distance: Float[AnyArray, 'N K'], eps: float, columns: Float[Array, ' K'] | None = None,
    steps: int = 50) -> Float[Array, 'N K']:
  """The logarithm of a transport plan (Cuturi, NeurIPS 2013); a row's plan sums to about 1.

  distance: centered and scaled first, as github.com/RUCAIBox/LC-Rec does. eps: of the entropy.
  columns: share of each column, equal ones by default. steps: of the iteration.
  """
  middle = (distance.max() + distance.min()) / 2
  scaled = (distance - middle) / (distance.max() - middle + 1e-5)
  n, k = distance.shape
  goal = jnp.full(k, -jnp.log(k)) if columns is None else jnp.log(columns)

  def step(_: Array | int, log: Array) -> Array:
    log = log - jax.nn.logsumexp(log, 1, keepdims=True) - jnp.log(n)
    return log - jax.nn.logsumexp(log, 0) + goal
  log = lax.fori_loop(0, steps, step, -scaled / eps - jax.nn.logsumexp(-scaled / eps))
  return log + jnp.log(n)


def capacities(n: int, k: int) -> Int[np.ndarray, ' K']:
  """How many of n points each of k equal clusters takes: the first n mod k one more."""
  return n // k + (np.arange(k) < n % k)


def assign_to_capacity(
    worth: Float[AnyArray, 'N K'], capacity: Int[AnyArray, ' K'], order: Int[np.ndarray, ' N'],
) -> Int[np.ndarray, ' N']:
  """Gives each point the best center that has room, in the order given. -> int32

  worth: higher is better. capacity: of the centers, its sum at least N. order: of the points.
  """
  worth, room = np.asarray(worth), np.array(capacity)
  choice = np.argsort(-worth, 1, kind='stable')
  assigned = np.zeros(len(worth), np.int32)
  for i in order:
    row = choice[i]
    assigned[i] = row[np.argmax(room[row] > 0)]
    room[assigned[i]] -= 1
  return assigned


def fit_balanced(
    key: Key[Array, ''], x: Float[Array, 'N d'], k: int, steps: int = 10, eps: float = 0.05,
) -> Clusters:
  """k-means whose clusters hold between max(1, N // K - 1) and N // K + 1 points (at least).

  key: of the draws.

  Sinkhorn and rounding under capacities in turn with means; a substitute for min-cost flow. x, k:
  as in `fit`. steps: of that. eps: of `sinkhorn`. -> centers, cluster of each point, inertia
  """
  n = len(x)
  capacity = capacities(n, k)
  plan = jax.jit(lambda c: sinkhorn(distances(x, c), eps, jnp.asarray(capacity, jnp.float32) / n))
  centers = fit(key, x, k, 5)[0]
  order = np.random.default_rng(int(jax.random.randint(key, (), 0, 1 << 30))).permutation(n)
  assigned = nearest(x, centers)[0]
  for _ in range(steps):
    assigned = jnp.asarray(assign_to_capacity(plan(centers), capacity, order))
    centers = update_centers(x, assigned, centers, jnp.zeros(n))
  d = distances(x, centers)
  return centers, assigned, jnp.take_along_axis(d, assigned[:, None], 1).sum()
