"""Score functions that any method must beat: popularity, recent popularity, and chance.

Letters of shapes: M interactions, U users (U1 is one more), N items.
"""
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt32

from recjax.data import times
from recjax.data.dataset import Interactions
from recjax.errors import DataError
from recjax.protocols import ScoreFn

DAY = 86400  # seconds


def baselines(train: Interactions, n_items: int, seed: int) -> dict[str, ScoreFn]:
  """What any method must beat, by row name.

  train: the training interactions. n_items: of the catalog. seed: of the random scores.
  """
  return {'popularity': popularity(train.items, n_items),
          'recency': recency(train.items, train.offsets, n_items),
          'random': random_scores(n_items, seed)}


def popularity(items: Int[np.ndarray, ' M'], n_items: int) -> ScoreFn:
  """The same list for everyone: items by how often they stand in the training interactions.

  The score is minus the place in that list, ties to the lower index, so that one list is ranked and
  shown. items: of the training interactions alone. n_items: of the catalog.
  """
  return OneList(np.bincount(items, minlength=n_items + 1)[1:])


def recency(items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' U1'],
            n_items: int) -> ScoreFn:
  """Recent popularity: an interaction counts 0.5 ** (its distance from its sequence's end).

  Nobody's own history enters, only where in the training sequences an item tends to stand; the rest
  as popularity. items, offsets: ragged training sequences. n_items: of the catalog.
  """
  ends = np.repeat(offsets[1:] - 1, np.diff(offsets))
  weight = 0.5 ** (ends - np.arange(len(items))).astype(np.float64)
  return OneList(np.bincount(items, weight, minlength=n_items + 1)[1:])


def recent_popularity(train: Interactions, n_items: int, days: float) -> ScoreFn:
  """One list for everyone: items by how often they were met in the last days of training.

  Popularity of all time parts what is left equal. train: the training interactions, with times.
  n_items: of the catalog. days: before the last of these times. Raises DataError without times.
  """
  age, counts = _age(train), np.bincount(train.items, minlength=n_items + 1)[1:]
  recent = np.bincount(train.items[age < days], minlength=n_items + 1)[1:]
  return OneList(recent + counts / (counts.max() + 1))


def decayed_popularity(train: Interactions, n_items: int, half_life: float) -> ScoreFn:
  """One list for everyone: items by their training interactions, older ones counting less.

  train: as of `recent_popularity`. n_items: of the catalog. half_life: days before the end of
  training at which an interaction counts half. Raises DataError without times.
  """
  return OneList(np.bincount(train.items, .5 ** (_age(train) / half_life),
                               minlength=n_items + 1)[1:])


def _age(train: Interactions) -> Float[np.ndarray, ' M']:
  """Days between each interaction and the last of all."""
  if train.times is None:
    raise DataError('these interactions have no times; add `times` to the sequences')
  seconds = times.in_seconds(train.times)
  return (seconds.max(initial=0) - seconds) / DAY


class OneList:
  """The same list for everyone, as a score function: minus the place in it, so no two are equal.

  worth: of each item; higher comes first, ties to the lower index.
  """

  def __init__(self, worth: Shaped[np.ndarray, ' N']) -> None:
    self.places = np.empty(len(worth), np.int64)
    self.places[np.argsort(-worth, kind='stable')] = np.arange(len(worth))
    self.scores = jnp.asarray(-self.places, jnp.float32)

  def __call__(self, items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' B1']) -> Array:
    del items
    return jnp.broadcast_to(self.scores, (len(offsets) - 1, len(self.scores)))

  def ranks(self, items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' B1'],
            targets: Int[np.ndarray, ' B'], mask_history: bool) -> Int[np.ndarray, ' B']:
    """Where targets stand, without scoring the catalog for each history.

    items, offsets: ragged histories. targets: 1..N. mask_history: whether items of a history are
    out, except the target. -> 0 is best
    """
    places = self.places[targets - 1]
    if not mask_history:
      return places
    rows = np.repeat(np.arange(len(targets)), np.diff(offsets))
    seen = np.unique(rows * (len(self.places) + 1) + items)  # each item of a history once
    rows, items = np.divmod(seen, len(self.places) + 1)
    ahead = self.places[items - 1] < places[rows]
    return places - np.bincount(rows[ahead], minlength=len(targets))


def random_scores(n_items: int, seed: int) -> ScoreFn:
  """Uniform scores in [0, 1), drawn anew for every history from the seed and the history itself.

  So neither block size nor order of users changes them. n_items: of the catalog. seed: anything
  that has a text.
  """
  @jax.jit
  def draw(histories: Array) -> Array:
    # A mixed counter instead of threefry: a tenth of the time, and a sanity row needs no more.
    items = _mix(jnp.arange(1, n_items + 1, dtype=jnp.uint32))
    return (_mix(_mix(histories)[:, None] + items) >> 8).astype(jnp.float32) / (1 << 24)

  def score(items: np.ndarray, offsets: np.ndarray) -> Array:
    items, start = np.ascontiguousarray(items, np.int32), zlib.crc32(str(seed).encode())
    return draw(np.array([zlib.crc32(items[a:b].data, start)
                          for a, b in zip(offsets[:-1], offsets[1:])], np.uint32))
  return score


def _mix(x: UInt32[Array, '*S']) -> UInt32[Array, '*S']:
  """Murmur3's 32-bit finalizer, a bijection that spreads every bit."""
  for shift, factor in ((16, 0x85ebca6b), (13, 0xc2b2ae35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)
