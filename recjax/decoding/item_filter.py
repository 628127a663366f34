"""Tries on the device: what may follow a node, under which limits, as gathers on arrays.

Array sizes are rounded up, so another catalogue of about the same size is the same program. All
of it works on places: the order of the sorted titles in which every node is an interval.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.decoding import device_trie
from recjax.errors import DataError


class ItemFilter(NamedTuple):
  """What one batch may not have, in places; None where there is no such limit.

  bits, base: (A, ceil(N / 32) + 1) uint32 and int32, allowed places and their count before each
  word; use: (B,) int32, which of the A lists a request has. taken: (B, E) int32, places that are
  used up, ascending without repeats, padded with 2**31 - 1.
  """
  bits: jax.Array | None = None
  base: jax.Array | None = None
  use: jax.Array | None = None
  taken: jax.Array | None = None


# Limits of one batch.


def select_requests(limits, requests):
  """The limits of some of the requests. requests: (A,) int32"""
  return limits._replace(
      use=None if limits.use is None else limits.use[requests],
      taken=None if limits.taken is None else limits.taken[requests])


def build_item_filter(trie, allowed=None, use=None, taken=None):
  """Builds Limits from item numbers, without touching the trie.

  trie: a Trie, or a Forest of one catalogue.
  allowed: (A, N) bool by item, or a list of A lists of items; use: (B,) which of them a request
  has, default its own. taken: B lists of items that a request may not have (again).
  -> Limits. Raises DataError for an item number outside the catalogue
  """
  item = np.asarray(trie.item)
  places = np.empty(len(item), np.int64)
  places[item] = np.arange(len(item))
  bits = base = None
  if allowed is not None:
    mask = _mask(allowed, len(item))[:, item]
    bits, base = allow_bits(jnp.asarray(mask))
    use = jnp.arange(len(mask)) if use is None else jnp.asarray(use)
  if taken is not None:
    rows = [np.unique(places[_known(t, len(item))]) for t in taken]
    if allowed is not None:
      rows = [r[mask[int(u)][r]] for r, u in zip(rows, np.broadcast_to(use, len(rows)))]
    longest = max(8, 1 << max(map(len, rows)).bit_length())
    taken = np.full((len(rows), longest), device_trie.PAD, np.int32)
    for row, r in zip(taken, rows):
      row[:len(r)] = r
    taken = jnp.asarray(taken)
  return ItemFilter(bits, base, None if use is None else use.astype(jnp.int32), taken)


def _known(items, count):
  items = np.asarray(items, np.int64)
  wrong = items[(items < 0) | (items >= count)]
  if len(wrong):
    raise DataError(f'item number {wrong[0]} is outside the catalogue of {count} items')
  return items


def _mask(allowed, count):
  if isinstance(allowed, np.ndarray) and allowed.dtype == bool:
    if allowed.shape[-1] != count:
      raise DataError(f'the allow list covers {allowed.shape[-1]} items, the catalogue {count}')
    return np.atleast_2d(allowed)
  mask = np.zeros((len(allowed), count), bool)
  for row, items in zip(mask, allowed):
    row[_known(items, count)] = True
  return mask


def allow_bits(mask):
  """Packs allowed places into words with running counts. mask: (A, N) bool. -> bits, base"""
  lists, count = mask.shape
  words = jnp.pad(mask, [(0, 0), (0, -count % 32 + 32)]).reshape(lists, -1, 32)
  bits = (words.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
  ones = words.sum(-1, dtype=jnp.int32)
  return bits, jnp.cumsum(ones, -1) - ones


def open_places(limits, lo, hi):
  """How many places of lo .. hi - 1 a request may still have. lo, hi: (B, ...). -> int32"""
  count = hi - lo
  if limits.bits is not None:
    count = _rank(limits, hi) - _rank(limits, lo)
  if limits.taken is not None:
    rows = limits.taken.reshape(len(lo), *(1,) * (lo.ndim - 1), -1)
    count -= ((rows >= lo[..., None]) & (rows < hi[..., None])).sum(-1, dtype=jnp.int32)
  return count


def _rank(limits, place):
  """Allowed places before each place."""
  use = limits.use.reshape(-1, *(1,) * (place.ndim - 1))
  word = limits.bits[use, place >> 5]
  below = word & ((jnp.uint32(1) << (place & 31).astype(jnp.uint32)) - 1)
  return limits.base[use, place >> 5] + lax.population_count(below).astype(jnp.int32)
