"""Ranking over catalogues too large to be scored whole: items come in pieces and are only counted.

One user's scores of a million items are 4 MB, so few users fit beside each other, each block reads
the whole table, and scores go through memory several times. Here 256 users meet 8,192 items at a
time: scores live in the cache, and the table is read once for 256 users.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FROM = 65_536  # items from which on pieces are faster

PIECE = 8_192  # items scored at a time

USERS = 256


def peak(table, bias):
  """The largest size of an entry, and of a bias: what says whether scores can overflow."""
  return jnp.abs(table).max(), 0.0 if bias is None else jnp.abs(bias).max()


@functools.partial(jax.jit, static_argnames=('k', 'tie', 'piece'))
def judge_block(states, table, bias, peaks, target, rows, columns, filling, k, tie, piece):
  """Ranks and, for k > 0, top-k of one block of users, as `ranking` gives them for all scores.

  states: (B, D). table: (N, D), bias: (N,) or None, peaks: of `peak`. target: (B,), 1..N. rows,
  columns: history to score `filling`; row B is dropped. A user whose scores may be NaN or overflow
  has rank -1. -> (ranks (B,),) or (ranks, items (B, k), scores (B, k))
  """
  n, users = len(table), len(states)
  bias = jnp.zeros(n) if bias is None else bias
  # The target's score comes out of a matmul of the same shape, so that equal rows tie exactly.
  repeated = jnp.resize(target - 1, (max(piece, users),))
  own = jnp.diagonal(_scores(states, table[repeated], bias[repeated]))[:, None]

  def add(carry, number):
    above, level, best, items = carry
    start = jnp.minimum(number * piece, n - piece)
    scores = _scores(states, lax.dynamic_slice_in_dim(table, start, piece),
                     lax.dynamic_slice_in_dim(bias, start, piece))
    inside = (columns >= start) & (columns < start + piece)
    scores = scores.at[rows, jnp.where(inside, columns - start, piece)].set(filling, mode='drop')
    at = start + jnp.arange(piece)
    fresh = at >= number * piece  # the last piece begins inside the one before
    others = fresh & (at != target[:, None] - 1)
    if tie != 'pessimistic':
      above += jnp.sum((scores > own) & others, 1, dtype=jnp.int32)
    if tie != 'optimistic':
      level += jnp.sum((scores >= own) & others, 1, dtype=jnp.int32)
    if k:
      found, places = lax.top_k(jnp.where(fresh, scores, -jnp.inf), min(k, piece))
      both = jnp.concatenate([best, found], 1)
      best, chosen = lax.top_k(both, k)
      items = jnp.take_along_axis(jnp.concatenate([items, start + places + 1], 1), chosen, 1)
    return (above, level, best, items), None

  none = jnp.zeros(users, jnp.int32)
  start = (none, none, jnp.full((users, k), -jnp.inf), jnp.zeros((users, k), jnp.int32))
  (above, level, best, items), _ = lax.scan(add, start, jnp.arange(-(-n // piece)))
  ranks = {'pessimistic': level, 'optimistic': above, 'mean': (above + level) / 2}[tie]
  ranks = jnp.where(own[:, 0] == -jnp.inf, jnp.asarray(n - 1, ranks.dtype), ranks)
  most = jnp.abs(states).max(1) * peaks[0] * states.shape[1] + peaks[1]
  ranks = jnp.where(jnp.isfinite(most), ranks, -1)
  return (ranks, jnp.where(best > -jnp.inf, items, 0), best) if k else (ranks,)


def _scores(states, rows, bias):
  return jnp.dot(states, rows.T, preferred_element_type=jnp.float32) + bias


def judge(product, peaks, target, coordinates, filling, part, cuts, k, tie):
  """One block of `ranking`: its users' states, then all pieces. -> as `judge_block`"""
  states = jnp.asarray(product.states(part, cuts), jnp.float32)
  return judge_block(states, product.table, product.bias, peaks, np.asarray(target, np.int32),
                     *coordinates, filling, k, tie, min(PIECE, len(product.table)))
