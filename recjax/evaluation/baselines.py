"""Full ranking in blocks on device: where the target stands, and the top of the list.

A score function takes one block of histories and scores the whole catalogue:
`score_fn(items, offsets) -> (B, N) float32`, numpy or jax. Histories are ragged, row b being
items[offsets[b]:offsets[b + 1]], oldest first, as dense indices 1..N; column j scores item j + 1.
All blocks of a call have the same B, so a jitted score function compiles once.
"""
import zlib

import jax
import jax.numpy as jnp
import numpy as np


def baselines(train, n_items, seed):
  """What any method must beat. train: Interactions. -> {row: score function}"""
  return {'popularity': popularity(train.items, n_items),
          'recency': recency(train.items, train.offsets, n_items),
          'random': random_scores(n_items, seed)}


def popularity(items, n_items):
  """The same list for everyone: items by how often they stand in the training interactions.

  The score is minus the place in that list, ties to the lower index, so that one list is judged and
  shown. items: (M,) int32, training interactions only. -> a score function
  """
  return _one_list(np.bincount(items, minlength=n_items + 1)[1:])


def recency(items, offsets, n_items):
  """Recent popularity: an interaction counts 0.5 ** (its distance from its sequence's end).

  Nobody's own history enters, only where in the training sequences an item tends to stand; the rest
  as popularity. items, offsets: ragged training sequences. -> a score function
  """
  ends = np.repeat(offsets[1:] - 1, np.diff(offsets))
  weight = 0.5 ** (ends - np.arange(len(items))).astype(np.float64)
  return _one_list(np.bincount(items, weight, minlength=n_items + 1)[1:])


def _one_list(worth):
  places = np.empty(len(worth), np.float32)
  places[np.argsort(-worth, kind='stable')] = np.arange(len(worth))
  row = jnp.asarray(-places)
  return lambda items, offsets: jnp.broadcast_to(row, (len(offsets) - 1, len(row)))


def random_scores(n_items, seed):
  """Uniform scores in [0, 1), drawn anew for every history from the seed and the history itself.

  So neither block size nor order of users changes them. -> a score function
  """
  @jax.jit
  def draw(histories):
    # A mixed counter instead of threefry: a tenth of the time, and a sanity row needs no more.
    items = _mix(jnp.arange(1, n_items + 1, dtype=jnp.uint32))
    return (_mix(_mix(histories)[:, None] + items) >> 8).astype(jnp.float32) / (1 << 24)

  def score(items, offsets):
    items, start = np.ascontiguousarray(items, np.int32), zlib.crc32(str(seed).encode())
    return draw(np.array([zlib.crc32(items[a:b], start) for a, b in zip(offsets[:-1], offsets[1:])],
                         np.uint32))
  return score


def _mix(x):
  """Murmur3's 32-bit finaliser, a bijection that spreads every bit. x: (...) uint32"""
  for shift, factor in ((16, 0x85ebca6b), (13, 0xc2b2ae35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)
