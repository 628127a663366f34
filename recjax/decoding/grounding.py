"""From a generated vector to real items: exact distances, and what pulls them (bigrec.md 3.6).

Distances are |e|^2 + |o|^2 - 2 e.o in float32 at the highest matmul precision, after the
catalogue's mean is taken from both sides: the distances stay, less cancels.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.decoding.top_k import top_k

NEVER = jnp.inf  # the distance of an item that may not come


class Vectors(NamedTuple):
  """A catalogue of vectors, centred. items: (N, D) float32. squared: (N,). mean: (D,)"""
  items: jax.Array
  squared: jax.Array
  mean: jax.Array


def catalogue(vectors):
  """vectors: (N, D). -> Vectors"""
  vectors = jnp.asarray(vectors, jnp.float32)
  mean = vectors.mean(0)
  items = vectors - mean
  return Vectors(items, (items * items).sum(-1), mean)


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
  """The k nearest items, ties to the lower index. -> distances (B, k), item rows (B, k) int32"""
  queries = queries.astype(jnp.float32) - items.mean
  dot = jnp.matmul(queries, items.items.T, precision=lax.Precision.HIGHEST)
  # What orders as the distance does; the barrier keeps it from being computed twice by top_k.
  value, at = top_k(lax.optimization_barrier(2 * dot - items.squared), k)
  return jnp.sqrt(jnp.maximum((queries * queries).sum(-1, keepdims=True) - value, 0)), at


def normalised(x, allowed=True):
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
  return normalised(counts / jnp.maximum(counts.sum(), 1))


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
    far = jnp.where(seen & (rows != own), NEVER, far)
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
