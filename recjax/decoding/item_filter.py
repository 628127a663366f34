"""Which items each request may still have: allow lists and used items, counted by trie interval."""
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

from recjax.decoding.device_trie import PAD, DeviceTrie
from recjax.decoding.trie import Trie
from recjax.errors import DataError


class ItemFilter(NamedTuple):
  """What one batch may not have, by place in the trie; None where nothing is forbidden that way.

  allowed_bits: allowed places of A allow lists, 32 to a word; allowed_before: how many there are
  before each word; list_of_request: which of the A lists a request has. taken: places that are
  used up, ascending without repeats, padded with `device_trie.PAD`.
  """
  allowed_bits: UInt32[Array, 'A W'] | None = None
  allowed_before: Int[Array, 'A W'] | None = None
  list_of_request: Int[Array, ' B'] | None = None
  taken: Int[Array, 'B E'] | None = None

  @property
  def forbids_any(self) -> bool:
    """Whether there is an allow list or a list of taken places at all."""
    return self.allowed_bits is not None or self.taken is not None

  def select_requests(self, requests: Int[Array, ' R']) -> 'ItemFilter':
    """The filter of some of the requests."""
    return self._replace(
        list_of_request=None if self.list_of_request is None else self.list_of_request[requests],
        taken=None if self.taken is None else self.taken[requests])

  def count_open(self, lo: Int[Array, 'B ...'], hi: Int[Array, 'B ...']) -> Int[Array, 'B ...']:
    """How many places of lo .. hi - 1 a request may still have."""
    count = hi - lo
    if self.allowed_bits is not None:
      count = self._allowed_below(hi) - self._allowed_below(lo)
    if self.taken is not None:
      taken = self.taken.reshape(len(lo), *(1,) * (lo.ndim - 1), -1)
      count -= ((taken >= lo[..., None]) & (taken < hi[..., None])).sum(-1, dtype=jnp.int32)
    return count

  def _allowed_below(self, place: Array) -> Array:
    """Allowed places before each place."""
    bits, before, of_request = cast(tuple[Array, Array, Array], self[:3])
    row = of_request.reshape(-1, *(1,) * (place.ndim - 1))
    word = bits[row, place >> 5]
    below = word & ((jnp.uint32(1) << (place & 31).astype(jnp.uint32)) - 1)
    return before[row, place >> 5] + lax.population_count(below).astype(jnp.int32)


def build_item_filter(trie: Trie | DeviceTrie,
                      allowed: np.ndarray | Sequence | None = None,
                      list_of_request: np.ndarray | Array | Sequence | None = None,
                      taken: Sequence | None = None) -> ItemFilter:
  """A filter out of items 1..N, without touching the trie.

  trie: of one catalog. allowed: a mask whose column i - 1 is item i, or A lists of items.
  list_of_request: which of the A lists each request has, by default its own. taken: for each
  request the items that it may not have (again). Raises DataError for an item outside the catalog.
  """
  row_at_place = np.asarray(trie.item)
  num_items = len(row_at_place)
  place_of_row = np.empty(num_items, np.int64)
  place_of_row[row_at_place] = np.arange(num_items)
  bits = before = of_request = places_taken = None
  if allowed is not None:
    allowed_places = _item_mask(allowed, num_items)[:, row_at_place]
    bits, before = pack_allowed(jnp.asarray(allowed_places))
    of_request = (jnp.arange(len(allowed_places)) if list_of_request is None
                  else jnp.asarray(list_of_request)).astype(jnp.int32)
  if taken is not None:
    rows = [np.unique(place_of_row[_rows_of(items, num_items)]) for items in taken]
    if allowed is not None:
      lists = np.broadcast_to(np.asarray(of_request), len(rows))
      rows = [row[allowed_places[int(a)][row]] for row, a in zip(rows, lists)]
    longest = max(8, 1 << max(map(len, rows)).bit_length())
    table = np.full((len(rows), longest), PAD, np.int32)
    for padded, row in zip(table, rows):
      padded[:len(row)] = row
    places_taken = jnp.asarray(table)
  return ItemFilter(bits, before, of_request, places_taken)


def _rows_of(items: Sequence | np.ndarray, num_items: int) -> np.ndarray:
  items = np.asarray(items, np.int64)
  outside = items[(items < 1) | (items > num_items)]
  if len(outside):
    raise DataError(f'item {outside[0]} is outside the catalog of {num_items} items')
  return items - 1


def _item_mask(allowed: np.ndarray | Sequence, num_items: int) -> np.ndarray:
  if isinstance(allowed, np.ndarray) and allowed.dtype == bool:
    if allowed.shape[-1] != num_items:
      raise DataError(f'the allow list covers {allowed.shape[-1]} items, the catalog {num_items}')
    return np.atleast_2d(allowed)
  mask = np.zeros((len(allowed), num_items), bool)
  for row, items in zip(mask, allowed):
    row[_rows_of(items, num_items)] = True
  return mask


def pack_allowed(mask: Bool[Array, 'A N']) -> tuple[UInt32[Array, 'A W'], Int[Array, 'A W']]:
  """Packs allowed places into words. mask: which of N places each of A lists allows. -> words,
  allowed places before each word"""
  lists, num_places = mask.shape
  bits = jnp.pad(mask, [(0, 0), (0, -num_places % 32 + 32)]).reshape(lists, -1, 32)
  words = (bits.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
  counts = bits.sum(-1, dtype=jnp.int32)
  return words, jnp.cumsum(counts, -1) - counts
