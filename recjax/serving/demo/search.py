"""Word search over a catalog: items that have every word of a query, by how each word begins."""
import bisect
import collections
import re
import threading
import weakref

import numpy as np

from recjax.serving.catalog_snapshot import CatalogSnapshot

WORD = re.compile(r'\w+')
SEARCHED_COLUMNS = ('title', 'brand', 'categories')
MAX_ITEM_CHARS, MAX_QUERY_WORDS = 4000, 8


class WordIndex:
  """The words of a catalog's titles, brands and categories with the items that have them.

  snapshot: the catalog.
  """

  def __init__(self, snapshot: CatalogSnapshot):
    items_by_word = collections.defaultdict(list)
    empty = [None] * len(snapshot)
    columns = [snapshot.columns.get(name) or empty for name in SEARCHED_COLUMNS]
    for item, values in enumerate(zip(*columns), 1):
      parts = []
      for value in values:
        parts += value if isinstance(value, list) else [value or '']
      for word in set(WORD.findall(' '.join(parts)[:MAX_ITEM_CHARS].lower())):
        items_by_word[word].append(item)
    self._words = sorted(items_by_word)
    self._items = [np.array(items_by_word[word]) for word in self._words]

  def items_with_prefix(self, prefix: str) -> list[np.ndarray]:
    """Returns the item indices of every word that begins with `prefix`."""
    row = bisect.bisect_left(self._words, prefix)
    found = []
    while row < len(self._words) and self._words[row].startswith(prefix):
      found.append(self._items[row])
      row += 1
    return found


class CatalogSearch:
  """Searches snapshots; each is indexed once, when it is first searched or `prepare` names it."""

  def __init__(self):
    self._indices: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
    self._lock = threading.Lock()

  def prepare(self, snapshot: CatalogSnapshot) -> WordIndex:
    """Returns the index of `snapshot`, which is made where it is new."""
    with self._lock:
      if snapshot not in self._indices:
        self._indices[snapshot] = WordIndex(snapshot)
      return self._indices[snapshot]

  def search(self, snapshot: CatalogSnapshot, query: str = '', category: str | None = None,
             offset: int = 0, limit: int = 24) -> tuple[list[int], int]:
    """Finds live items whose words begin with all words of a query, those bought most first.

    snapshot: the catalog. query: the words; '' finds all. category: only items of it, None for all.
    offset: how many to leave out. limit: the most to return.

    Returns item indices, and how many there are in all. Raises DataError for an unknown category.
    """
    word_index = self.prepare(snapshot)
    is_match = snapshot.allowed_mask(category)
    for word in WORD.findall(query.lower())[:MAX_QUERY_WORDS]:
      has_word = np.zeros(len(is_match), bool)
      for items in word_index.items_with_prefix(word):
        has_word[items - 1] = True
      is_match &= has_word
    found = snapshot.by_popularity[is_match[snapshot.by_popularity - 1]]
    return found[offset:offset + limit].tolist(), len(found)
