"""Ranking over catalogs too large to be scored whole: items come in pieces and are only counted.

One user's scores of a million items are 4 MB, so few users fit beside each other, each block reads
the whole table, and scores go through memory several times. Here 256 users meet 8,192 items at a
time: scores live in the cache, and the table is read once for 256 users.

Letters of shapes: B users of a block, N items, D numbers of a state, H items of all histories, K
items of a list.
"""
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from recjax.evaluation.ties import count_ahead
from recjax.models.dot_product import DotProduct

MIN_ITEMS = 65_536  # from so many items on pieces are faster

PIECE = 8_192  # items scored at a time

USERS = 256

Peaks = tuple[Float[Array, ''], Float[Array, ''] | float]


def peak(table: Float[Array | np.ndarray, 'N D'],
         bias: Float[Array | np.ndarray, ' N'] | None) -> Peaks:
  """The largest size of an entry, and of a bias: what says whether scores can overflow.

  table, bias: of a `DotProduct`.
  """
  return jnp.abs(table).max(), 0.0 if bias is None else jnp.abs(bias).max()


@functools.partial(jax.jit, static_argnames=('k', 'tie', 'piece'))
def rank_block(
    states: Float[Array, 'B D'], table: Float[Array, 'N D'], bias: Float[Array, ' N'] | None,
    peaks: Sequence, target: Int[Array, ' B'], rows: Int[Array, ' H'], columns: Int[Array, ' H'],
    filling: Float[Array, ''] | float, k: int, tie: str, piece: int,
) -> tuple[Num[Array, ' B']] | tuple[Num[Array, ' B'], Int[Array, 'B K'], Float[Array, 'B K']]:
  """Ranks and, for k > 0, top-k of one block of users, as `ranking` gives them for all scores.

  states: of the users. table, bias: of a `DotProduct`. peaks: of `peak`. target: 1..N. rows,
  columns: users and items of the histories, which score `filling`; row B is dropped. k: items of a
  list, 0 for ranks alone. tie: a rule of `ties.TIES`. piece: items scored at a time. -> ranks,
  and items and scores of the lists; a user whose scores may be NaN or overflow has rank -1.
  """
  n, users = len(table), len(states)
  bias = jnp.zeros(n) if bias is None else bias
  # The target's score comes out of a matmul of the same shape, so that equal rows tie exactly.
  repeated = jnp.resize(target - 1, (max(piece, users),))
  target_scores = jnp.diagonal(_scores(states, table[repeated], bias[repeated]))[:, None]

  def add(carry: tuple, number: Array) -> tuple:
    ranks, best_scores, best_items = carry
    start = jnp.minimum(number * piece, n - piece)
    scores = _scores(states, lax.dynamic_slice_in_dim(table, start, piece),
                     lax.dynamic_slice_in_dim(bias, start, piece))
    inside = (columns >= start) & (columns < start + piece)
    scores = scores.at[rows, jnp.where(inside, columns - start, piece)].set(filling, mode='drop')
    column = start + jnp.arange(piece)
    fresh = column >= number * piece  # the last piece begins inside the one before
    others = fresh & (column != target[:, None] - 1)
    ranks += count_ahead(scores, target_scores, tie, others)
    if k:
      piece_scores, places = lax.top_k(jnp.where(fresh, scores, -jnp.inf), min(k, piece))
      candidates = jnp.concatenate([best_scores, piece_scores], 1)
      best_scores, chosen = lax.top_k(candidates, k)
      best_items = jnp.take_along_axis(
          jnp.concatenate([best_items, start + places + 1], 1), chosen, 1)
    return (ranks, best_scores, best_items), None

  start = (count_ahead(states[:, :0], target_scores, tie), jnp.full((users, k), -jnp.inf),
           jnp.zeros((users, k), jnp.int32))
  (ranks, scores, items), _ = lax.scan(add, start, jnp.arange(-(-n // piece)))
  ranks = jnp.where(target_scores[:, 0] == -jnp.inf, jnp.asarray(n - 1, ranks.dtype), ranks)
  bound = jnp.abs(states).max(1) * peaks[0] * states.shape[1] + peaks[1]
  ranks = jnp.where(jnp.isfinite(bound), ranks, -1)
  return (ranks, jnp.where(scores > -jnp.inf, items, 0), scores) if k else (ranks,)


def _scores(states, rows, bias):
  return jnp.dot(states, rows.T, precision=lax.Precision.HIGHEST,  # ranks hang on it
                 preferred_element_type=jnp.float32) + bias


def rank_users(
    product: DotProduct, peaks: Sequence, target: Int[Array | np.ndarray, ' B'],
    coordinates: tuple[Int[np.ndarray, ' H'], Int[np.ndarray, ' H']], filling: float,
    items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' B+1'], k: int, tie: str,
) -> tuple:
  """One block of `ranking`: its users' states, then all pieces.

  product: the score function. items, offsets: ragged histories of the block. coordinates: (rows,
  columns) of `rank_block`; the other parameters and what comes back as there. peaks: of `peak`.
  target: 1..N. filling: score of items of a history. k: items of a list. tie: a rule of
  `ties.TIES`.
  """
  states = jnp.asarray(product.states(items, offsets), jnp.float32)
  return rank_block(states, product.table, product.bias, peaks, np.asarray(target, np.int32),
                    *coordinates, filling, k, tie, min(PIECE, len(product.table)))
