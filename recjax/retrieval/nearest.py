"""From a generated vector to real items: exact distances, and popularity that pulls them.

Bao et al., arXiv 2308.08434 (BIGRec); see docs/bigrec.md. Distances are |e|^2 + |o|^2
- 2 e.o in float32 at the highest matmul precision, after the catalog's mean is taken from both
sides: the distances stay, less cancels. Shape letters: N items, B queries, D width.
"""
import functools
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from recjax.protocols import AnyArray
from recjax.retrieval.top_k import top_k

UNREACHABLE = jnp.inf  # the distance of an item that may not come
MANY_ITEMS = 32_768  # from which a pass in bfloat16 saves more than its second look costs


class RoundedVectors(NamedTuple):
  """items: in bfloat16. longest: the largest norm. lost: the largest norm of what rounding took."""
  items: Float[Array, 'N D']
  longest: Float[Array, '']
  lost: Float[Array, '']


class Vectors(NamedTuple):
  """A catalog's vectors. items: less their mean, float32. squared: their squared norms.

  mean: of the vectors. rounded: as `with_rounded` adds them for `nearest`, or None.
  """
  items: Float[Array, 'N D']
  squared: Float[Array, ' N']
  mean: Float[Array, ' D']
  rounded: RoundedVectors | None = None


def center(vectors: Num[AnyArray, 'N D'] | Sequence[Sequence[float]]) -> Vectors:
  """The vectors of a catalog, ready for distances."""
  vectors = jnp.asarray(vectors, jnp.float32)
  mean = vectors.mean(0)
  items = vectors - mean
  return Vectors(items, (items * items).sum(-1), mean)


def with_rounded(vectors: Vectors) -> Vectors:
  """Vectors for many calls of `nearest`: half as much memory again where that saves time. vectors:
  of all items."""
  if len(vectors.items) < MANY_ITEMS or not bfloat16_pays():
    return vectors
  return vectors._replace(rounded=round_vectors(vectors.items))


@jax.jit
def round_vectors(items: Float[Array, 'N D']) -> RoundedVectors:
  """The vectors in bfloat16, and how far that is from them. items: their vectors."""
  low = items.astype(jnp.bfloat16)
  return RoundedVectors(
      low, _row_norms(items).max(), _row_norms(items - low.astype(jnp.float32)).max())


def _row_norms(x):
  return jnp.sqrt((x * x).sum(-1))


def bfloat16_pays() -> bool:
  """Whether this machine multiplies in bfloat16 faster: accelerators, and CPUs that say so."""
  if jax.default_backend() != 'cpu':
    return True
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    return False
  return 'avx512_bf16' in text or 'amx_bf16' in text


@jax.jit
def squared_distances(vectors: Vectors, queries: Float[Array, 'B D']) -> Float[Array, 'B N']:
  """Squared distances of queries to all items, none negative. vectors: of all items."""
  queries = queries.astype(jnp.float32) - vectors.mean
  dot = jnp.matmul(queries, vectors.items.T, precision=lax.Precision.HIGHEST)
  return jnp.maximum(vectors.squared + (queries * queries).sum(-1, keepdims=True) - 2 * dot, 0)


def distances(vectors: Vectors, queries: Float[AnyArray, 'B D']) -> Float[Array, 'B N']:
  """Euclidean distances of queries to all items, float32. vectors: of all items."""
  return jnp.sqrt(squared_distances(vectors, queries))


@functools.partial(jax.jit, static_argnums=2)
def nearest(
    vectors: Vectors, queries: Float[Array, 'B D'], k: int,
) -> tuple[Float[Array, 'B k'], Int[Array, 'B k']]:
  """The k nearest items, ties to the lower index. -> distances, int32 rows of items

  vectors: of all items. queries: of B users.

  With vectors.rounded a pass in bfloat16 picks candidates and float32 decides among them; where
  rounding could hide an item of the k from any query of the batch, all is done in float32.
  """
  queries = queries.astype(jnp.float32) - vectors.mean

  def exact() -> tuple[Array, Array]:
    dot = jnp.matmul(queries, vectors.items.T, precision=lax.Precision.HIGHEST)
    return top_k(_computed_once(2 * dot - vectors.squared), k)
  if vectors.rounded is None or 2 * k + 12 > len(vectors.items):
    value, items = exact()
  else:
    value, items, sure = _nearest_of_candidates(vectors, vectors.rounded, queries, k)
    value, items = lax.cond(sure.all(), lambda: (value, items), exact)
  squared = (queries * queries).sum(-1, keepdims=True) - value
  return jnp.sqrt(jnp.maximum(squared, 0)), items


def _computed_once(x):
  """x, which orders as the distance does, kept from being computed twice by top_k."""
  return lax.optimization_barrier(x)


def _nearest_of_candidates(
    vectors: Vectors, rounded: RoundedVectors, queries: Float[Array, 'B D'], k: int,
) -> tuple[Float[Array, 'B k'], Int[Array, 'B k'], Bool[Array, ' B']]:
  """2 q.x - x.x, the largest k among candidates. -> values, rows, sure

  sure: no other item can be among the k. With q = q' + r and x = x' + s, |q.x - q'.x'| is at most
  |r| |x| + |q'| |s| (Cauchy-Schwarz), float32 sums of D products err by D 2^-24 |q| |x| each, and
  taking x.x away rounds by 2^-24 |x|^2 more.
  """
  low = queries.astype(jnp.bfloat16)
  dot = lax.dot_general(low, rounded.items, (((1,), (1,)), ((), ())),
                        preferred_element_type=jnp.float32)
  guess, candidates = top_k(_computed_once(2 * dot - vectors.squared), 2 * k + 12)
  last, candidates = guess[:, -1], lax.sort(candidates)  # in index order, which ties fall back on
  exact = jnp.einsum(
      'bd,bmd->bm', queries, vectors.items[candidates], precision=lax.Precision.HIGHEST)
  value, order = lax.top_k(2 * exact - vectors.squared[candidates], k)

  back, longest = low.astype(jnp.float32), rounded.longest
  sums = 2.0 ** -23 * (queries.shape[1] * _row_norms(queries) * longest + longest ** 2)
  slack = 2 * (_row_norms(queries - back) * longest + _row_norms(back) * rounded.lost + sums)
  return value, jnp.take_along_axis(candidates, order, -1), value[:, -1] > last + slack


def min_max_normalize(
    x: Num[AnyArray, '*rows N'], allowed: Bool[AnyArray, '*#rows N'] | bool = True,
) -> Float[Array, '*rows N']:
  """Each row brought to 0 .. 1 by its smallest and largest allowed value; 0 where they are equal.

  x: the rows. allowed: which values count. -> float32
  """
  x = jnp.asarray(x, jnp.float32)
  low = jnp.where(allowed, x, jnp.inf).min(-1, keepdims=True)
  high = jnp.where(allowed, x, -jnp.inf).max(-1, keepdims=True)
  spread = high - low
  return jnp.where(spread > 0, (x - low) / jnp.where(spread > 0, spread, 1), 0)


def popularity(counts: Num[AnyArray, ' N'] | Sequence[float]) -> Float[Array, ' N']:
  """The weight W of items: their share of all interactions in training, brought to 0 .. 1. counts:
  interactions of each item."""
  counts = jnp.asarray(counts, jnp.float32)
  return min_max_normalize(counts / jnp.maximum(counts.sum(), 1))


@functools.partial(jax.jit, static_argnames='ties')
def rank_curve(
    distance: Float[Array, 'B N'], weight: Float[Array, '#B N'] | Float[Array, ' N'],
    targets: Int[Array, ' B'], gammas: Float[Array, ' G'], seen: Bool[Array, 'B N'] | None = None,
    ties: Literal['pessimistic', 'index'] = 'pessimistic') -> Int[Array, 'G B']:
  """The rank of each target by Dn (1 + W) ** -gamma for every gamma, without sorting. -> int32

  Logarithms are compared, which order alike; the nearest item, at minus infinity, is always first.

  distance: Dn, of `min_max_normalize`. weight: W, of `popularity` or the like. targets: rows of
  items. seen: items out of the ranking; a target never is. ties: 'pessimistic' counts equal items
  before the target, 'index' those of lower row alone. gammas: powers of the weight.
  """
  rows = jnp.arange(distance.shape[1])
  target_rows = targets[:, None]
  log_distance = jnp.log(distance)
  if seen is not None:
    log_distance = jnp.where(seen & (rows != target_rows), UNREACHABLE, log_distance)
  lift = jnp.broadcast_to(jnp.log1p(weight), distance.shape)

  def of_gamma(gamma: Array) -> Array:
    value = log_distance - gamma * lift
    target_value = jnp.take_along_axis(value, target_rows, 1)
    tied = (rows < target_rows) if ties == 'index' else (rows != target_rows)
    # A compiler may reckon a target's value twice and round it differently, so that it would be
    # ahead of itself.
    ahead = (value < target_value) & (rows != target_rows) | (value == target_value) & tied
    return ahead.sum(-1, dtype=jnp.int32)
  return lax.map(of_gamma, gammas)


def best_gamma(
    curve: Num[AnyArray, ' G'] | Sequence[float], gammas: Float[AnyArray, ' G'] | Sequence[float],
) -> tuple[float, int]:
  """The gamma with the highest value, the smallest of equals, and its index.

  curve: the value of each of `gammas`.
  """
  index = int(np.argmax(np.asarray(curve)))
  return float(gammas[index]), index
