"""The catalog as it is served: what may be recommended and how it is shown.

A CatalogSnapshot never changes; reloading makes another one and puts it in its place, so a request
that has begun goes on with the one it began with.
"""
import collections
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from recjax.data import dataset, loading
from recjax.errors import DataError
from recjax.text import interest_terms

MAX_EARLIER = 4  # snapshots that can be returned to
SHOWN_COLUMNS = ('title', 'brand', 'categories', 'description', 'price')
MAX_SHOWN_CHARS = {'title': 300, 'brand': 100, 'description': 2000}


class CatalogSnapshot:
  """One state of a catalog of N items.

  catalog: the items as the model knows them; their indices are 1..N.
  purchase_counts: (N,) int, how often each item was bought.
  fresh: the same and other items as they are now, a Catalog, or None.
  version: its number, counted from 1.
  source: where `fresh` comes from, in words.

  columns: {name: N values} as they are now. is_live: (N,) bool, what may be recommended.
  unknown_items: how many items of `fresh` the model does not know. by_popularity: live item
  indices, bought most first. terms: the words that interests are found by. items_by_category:
  {category: its item indices}. Raises DataError where no item may be recommended.
  """

  def __init__(self, catalog: dataset.Catalog, purchase_counts: np.ndarray,
               fresh: dataset.Catalog | None = None, version: int = 1,
               source: str = 'the data set'):
    self.catalog, self.version, self.source = catalog, version, source
    self.columns, self.is_live, self.unknown_items = merge_catalogs(catalog, fresh)
    if not self.is_live.any():
      raise DataError('no item is left that may be recommended; the model knows none of the items '
                      'of this file')
    self.purchase_counts = purchase_counts
    order = np.lexsort((np.arange(len(purchase_counts)), -purchase_counts)) + 1
    self.by_popularity = order[self.is_live[order - 1]]
    self._shown_columns = [(name, self.columns[name], MAX_SHOWN_CHARS.get(name))
                           for name in SHOWN_COLUMNS if self.columns.get(name)]
    self.terms = interest_terms.read_terms(self.columns, len(catalog))
    self.items_by_category = group_by_category(self.columns.get('categories'))

  def __len__(self) -> int:
    return len(self.catalog)

  def index(self, item_id: str | int) -> int:
    """Returns the index 1..N of `item_id`, or 0 for one that the model does not know."""
    return self.catalog.find(item_id)

  def indices(self, item_ids: Iterable[str | int]) -> tuple[list[int], list[str | int]]:
    """Returns the indices 1..N of `item_ids` in their order, and the ids that are unknown."""
    known, unknown = [], []
    for item_id in item_ids:
      index = self.index(item_id)
      if index:
        known.append(index)
      else:
        unknown.append(item_id)
    return known, unknown

  def item_id(self, item: int) -> str:
    """Returns the id of item index 1..N."""
    return self.catalog.ids[item - 1]

  def title(self, item: int) -> str:
    """Returns the title of item index 1..N, '' where it has none."""
    titles = self.columns.get('title')
    return (titles[item - 1] or '') if titles else ''

  def describe(self, item: int) -> dict[str, Any]:
    """Returns what people are shown of item index 1..N, as JSON values."""
    shown = {'id': self.item_id(item), 'title': ''}
    for name, column, max_chars in self._shown_columns:
      value = column[item - 1]
      if isinstance(value, str):
        value = value[:max_chars]
      if value is not None:
        shown[name] = value
    return shown

  def allowed_mask(self, category: str | None = None, allow: Sequence[int] | None = None,
                   block: Sequence[int] = (), history: Sequence[int] = (),
                   exclude_seen: bool = True) -> np.ndarray:
    """Returns which items may be recommended, (N,) bool.

    category: only items of it, None for all. allow: only these item indices, None for all. block:
    not these item indices. history: item indices, left out where `exclude_seen`. Raises DataError
    for a category that no item has.
    """
    mask = self.is_live.copy()
    if category is not None:
      if category not in self.items_by_category:
        known = ', '.join(map(repr, list(self.items_by_category)[:5])) or 'none'
        raise DataError(f'there is no category {category!r:.100}; there are {known} ...')
      mask &= self._mask_of(self.items_by_category[category])
    if allow is not None:
      mask &= self._mask_of(allow)
    mask &= ~self._mask_of(block)
    if exclude_seen:
      mask &= ~self._mask_of(history)
    return mask

  def _mask_of(self, items):
    mask = np.zeros(len(self), bool)
    mask[np.asarray(items, np.int64) - 1] = True
    return mask


def merge_catalogs(catalog: dataset.Catalog, fresh: dataset.Catalog | None
                   ) -> tuple[Mapping[str, Sequence], np.ndarray, int]:
  """Returns the columns, (N,) bool of live items, and how many items of `fresh` are unknown.

  catalog: as the model knows it. fresh: as it is now, or None. An item that the fresh one lacks
  keeps its texts and is retired.
  """
  if fresh is None:
    is_retired = catalog.columns.get('retired') or [None] * len(catalog)
    return catalog.columns, ~np.array([bool(r) for r in is_retired]), 0
  fresh_rows = [fresh.find(item_id) for item_id in catalog.ids]
  is_retired = fresh.columns.get('retired') or [None] * len(fresh)
  is_live = np.array([row > 0 and not is_retired[row - 1] for row in fresh_rows])
  columns = {}
  for name in {**catalog.columns, **fresh.columns}:
    old = catalog.columns.get(name) or [None] * len(catalog)
    new = fresh.columns.get(name) or [None] * len(fresh)
    columns[name] = [new[row - 1] if row else value for value, row in zip(old, fresh_rows)]
  return columns, is_live, len(fresh) - sum(map(bool, fresh_rows))


def category_names(path: Sequence[str] | None) -> list[str]:
  """Returns the names of the categories that an item is in.

  path: its list of categories, from the root. Every part counts, and every path, with and without
  its root, separated by commas.
  """
  path = path or ()
  paths = (', '.join(path[start:end]) for start in (0, 1) if path
           for end in range(start + 1, len(path) + 1))
  return list(dict.fromkeys([*path, *paths]))


def group_by_category(paths: Sequence[Sequence[str] | None] | None) -> dict[str, np.ndarray]:
  """Returns {category: indices 1..N of its items}, by the rule of `category_names`.

  paths: the list of categories of each item.
  """
  items_by_category = collections.defaultdict(list)
  for item, path in enumerate(paths or (), 1):
    for name in category_names(path):
      items_by_category[name].append(item)
  return {name: np.array(items) for name, items in items_by_category.items()}


class CatalogVersions:
  """The snapshot that is served, and those before it.

  catalog, purchase_counts: as CatalogSnapshot takes them. path: the items file that `reload` reads,
  None for none; where there is one, it is read at once. current: the snapshot that is served.
  """

  def __init__(self, catalog: dataset.Catalog, purchase_counts: np.ndarray,
               path: str | os.PathLike | None = None):
    self.path, self._lock = path, threading.Lock()
    self.current = CatalogSnapshot(catalog, purchase_counts)
    self._earlier, self._newest_version = [], 1
    if path:
      self.reload()

  def reload(self) -> CatalogSnapshot:
    """Reads the items file anew and serves it.

    Returns the new snapshot. Raises DataError where the file is broken; the old one goes on then.
    """
    if not self.path:
      raise DataError('nothing to reload; start the server with --catalog=FILE')
    with self._lock:
      fresh, _ = loading.read_items(self.path)
      current = self.current
      snapshot = CatalogSnapshot(current.catalog, current.purchase_counts, fresh,
                                 self._newest_version + 1, str(self.path))
      self._earlier = [*self._earlier, current][-MAX_EARLIER:]
      self.current, self._newest_version = snapshot, snapshot.version
      return snapshot

  def rollback(self) -> CatalogSnapshot:
    """Serves the snapshot before, and returns it. Raises DataError where there is none."""
    with self._lock:
      if not self._earlier:
        raise DataError('there is no earlier catalog to return to')
      self.current = self._earlier.pop()
      return self.current
