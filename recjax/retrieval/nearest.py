"""From a generated vector to real items: exact distances, and what pulls them (bigrec.md 3.6).

Distances are |e|^2 + |o|^2 - 2 e.o in float32 at the highest matmul precision, after the
catalogue's mean is taken from both sides: the distances stay, less cancels.
"""
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.retrieval.top_k import top_k

UNREACHABLE = jnp.inf  # the distance of an item that may not come


MANY_ITEMS = 32_768  # items from which a pass in bfloat16 saves more than its second look costs


class RoundedVectors(NamedTuple):
  """Items in bfloat16 (N, D), the longest vector, the longest part of one that rounding took."""
  items: jax.Array
  long: jax.Array
  lost: jax.Array


class Vectors(NamedTuple):
  """A catalogue of vectors, centred. items: (N, D) float32. squared: (N,). mean: (D,)

  coarse: the same rounded, as `quick` adds them for `nearest`, or None.
  """
  items: jax.Array
  squared: jax.Array
  mean: jax.Array
  coarse: RoundedVectors | None = None


def center(vectors):
  """vectors: (N, D). -> Vectors"""
  vectors = jnp.asarray(vectors, jnp.float32)
  mean = vectors.mean(0)
  items = vectors - mean
  return Vectors(items, (items * items).sum(-1), mean)


def with_rounded(items):
  """Vectors for many calls of `nearest`: half as much memory again where that saves time."""
  if len(items.items) < MANY_ITEMS or not bfloat16_pays():
    return items
  return items._replace(coarse=round_vectors(items.items))


@jax.jit
def round_vectors(items):
  """items: (N, D) float32. -> Coarse"""
  low = items.astype(jnp.bfloat16)
  return RoundedVectors(
    low, _row_norms(items).max(), _row_norms(items - low.astype(jnp.float32)).max()
  )


def _row_norms(x):
  return jnp.sqrt((x * x).sum(-1))


def bfloat16_pays():
  """Whether this machine multiplies in bfloat16 faster: accelerators, and CPUs that say so."""
  if jax.default_backend() != 'cpu':
    return True
  try:
    told = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    return False
  return 'avx512_bf16' in told or 'amx_bf16' in told


@jax.jit
def squared_distances(items, queries):
  """items: Vectors. queries: (B, D). -> (B, N) float32, none negative"""
  queries = queries.astype(jnp.float32) - items.mean
  dot = jnp.matmul(queries, items.items.T, precision=lax.Precision.HIGHEST)
  return jnp.maximum(items.squared + (queries * queries).sum(-1, keepdims=True) - 2 * dot, 0)


def distances(items, queries):
  """Euclidean distances of queries (B, D) to all items. -> (B, N) float32"""
  return jnp.sqrt(squared_distances(items, queries))


@functools.partial(jax.jit, static_argnums=2)
def nearest(items, queries, k):
  """The k nearest items, ties to the lower index. -> distances (B, k), item rows (B, k) int32

  With items.coarse a pass in bfloat16 picks candidates and float32 decides among them; where
  rounding could hide an item of the k from any query of the batch, all is done in float32.
  """
  queries = queries.astype(jnp.float32) - items.mean

  def fine():
    dot = jnp.matmul(queries, items.items.T, precision=lax.Precision.HIGHEST)
    return top_k(_computed_once(2 * dot - items.squared), k)
  if items.coarse is None or 2 * k + 12 > len(items.items):
    value, at = fine()
  else:
    value, at, sure = _nearest_of_candidates(items, queries, k)
    value, at = lax.cond(sure.all(), lambda: (value, at), fine)
  return jnp.sqrt(jnp.maximum((queries * queries).sum(-1, keepdims=True) - value, 0)), at


def _computed_once(x):
  """x, which orders as the distance does, kept from being computed twice by top_k."""
  return lax.optimization_barrier(x)


def _nearest_of_candidates(items, queries, k):
  """2 q.x - x.x, the largest k among candidates. -> values, rows (B, k), sure (B,) bool

  sure: no other item can be among the k. With q = q' + r and x = x' + s, |q.x - q'.x'| is at most
  |r| |x| + |q'| |s| (Cauchy-Schwarz), float32 sums of D products err by D 2^-24 |q| |x| each, and
  taking x.x away rounds by 2^-24 |x|^2 more.
  """
  half = queries.astype(jnp.bfloat16)
  dot = lax.dot_general(half, items.coarse.items, (((1,), (1,)), ((), ())),
                        preferred_element_type=jnp.float32)
  guess, at = top_k(_computed_once(2 * dot - items.squared), 2 * k + 12)
  last, at = guess[:, -1], lax.sort(at)  # in index order, which ties fall back on
  exact = jnp.einsum('bd,bmd->bm', queries, items.items[at], precision=lax.Precision.HIGHEST)
  value, place = lax.top_k(2 * exact - items.squared[at], k)

  back, long = half.astype(jnp.float32), items.coarse.long
  sums = 2.0 ** -23 * (queries.shape[1] * _row_norms(queries) * long + long ** 2)
  slack = 2 * (_row_norms(queries - back) * long + _row_norms(back) * items.coarse.lost + sums)
  return value, jnp.take_along_axis(at, place, -1), value[:, -1] > last + slack


def min_max_normalize(x, allowed=True):
  """Each row brought to 0 .. 1 by its smallest and largest allowed value; 0 where they are equal.

  x: (..., N). allowed: (..., N) bool or True. -> float32
  """
  x = jnp.asarray(x, jnp.float32)
  low = jnp.where(allowed, x, jnp.inf).min(-1, keepdims=True)
  high = jnp.where(allowed, x, -jnp.inf).max(-1, keepdims=True)
  spread = high - low
  return jnp.where(spread > 0, (x - low) / jnp.where(spread > 0, spread, 1), 0)


def popularity(counts):
  """W of training counts (N,): the share of all interactions, brought to 0 .. 1. -> (N,)"""
  counts = jnp.asarray(counts, jnp.float32)
  return min_max_normalize(counts / jnp.maximum(counts.sum(), 1))


@functools.partial(jax.jit, static_argnames='ties')
def rank_curve(distance, weight, targets, gammas, seen=None, ties='pessimistic'):
  """The rank of each target by Dn (1 + W) ** -gamma for every gamma, without sorting.

  Logarithms are compared, which order alike; the nearest item, at minus infinity, is always first.

  distance: (B, N) as `normalised`. weight: (N,) or (B, N). targets: (B,) rows of items. gammas:
  (G,). seen: (B, N) bool, items out of the ranking; a target never is. ties: 'pessimistic' counts
  equal items before the target, 'index' those of lower row alone. -> (G, B) int32
  """
  rows = jnp.arange(distance.shape[1])
  own = targets[:, None]
  far = jnp.log(distance)
  if seen is not None:
    far = jnp.where(seen & (rows != own), UNREACHABLE, far)
  lift = jnp.broadcast_to(jnp.log1p(weight), distance.shape)

  def one(gamma):
    value = far - gamma * lift
    mine = jnp.take_along_axis(value, own, 1)
    ahead = (value < mine) | (value == mine) & ((rows < own) if ties == 'index' else (rows != own))
    return ahead.sum(-1, dtype=jnp.int32)
  return lax.map(one, gammas)


def best_gamma(curve, gammas):
  """The gamma with the highest value, the smallest of equals. curve: (G,). -> (gamma, place)"""
  place = int(np.argmax(np.asarray(curve)))
  return float(gammas[place]), place
