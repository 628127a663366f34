"""The catalogue as it is served: what may be recommended, how it is shown, found and explained.

A Stock never changes; reloading makes another one and puts it in its place, so a request that has
begun goes on with the one it began with.
"""
import bisect
import collections
import re
import threading

import numpy as np

from recjax.data import loading
from recjax.errors import DataError
from recjax.text import interest_terms

KEPT = 4  # earlier catalogues that can be returned to
SHOWN = ('title', 'brand', 'categories', 'description', 'price')
WORD = re.compile(r'\w+')
LONGEST = {'title': 300, 'brand': 100, 'description': 2000}  # letters that are sent to people


class Stock:
  """One state of a catalogue. catalog: as the model knows it, items 1..N. fresh: the same and other
  items as they are now, or None. counts: (N,) how often each was bought."""

  def __init__(self, catalog, counts, fresh=None, version=1, source='the data set'):
    self.catalog, self.version, self.source = catalog, version, source
    self.columns, live, self.strangers = current(catalog, fresh)
    self.live = live
    if not live.any():
      raise DataError('no item is left that may be recommended; the model knows none of the items '
                      'of this file')
    self.counts = counts
    self.popular = np.lexsort((np.arange(len(counts)), -counts)) + 1
    self.popular = self.popular[live[self.popular - 1]]
    self.terms = interest_terms.read_terms(self.columns, len(catalog))
    self.categories = members(self.columns.get('categories'), len(catalog))
    self.words = words_of(self.columns, len(catalog))

  def __len__(self):
    return len(self.catalog)

  def title(self, item):
    """Title of item index 1..N, '' where it has none."""
    titles = self.columns.get('title')
    return (titles[item - 1] or '') if titles else ''

  def show(self, item):
    """What people are shown of item index 1..N. -> dict of JSON values"""
    out = {'id': self.catalog.ids[item - 1], 'title': ''}
    for name in SHOWN:
      value = (self.columns.get(name) or [None] * len(self))[item - 1]
      if value is not None:
        out[name] = value[:LONGEST[name]] if name in LONGEST and isinstance(value, str) else value
    return out

  def index(self, item_id):
    """Index 1..N, or 0 for an id that the model does not know."""
    return self.catalog.find(item_id)

  def mask(self, category=None, allow=None, block=(), history=(), unseen=True):
    """Which items may come. allow, block: ids. history: indices. -> (N,) bool

    Raises DataError for a category that no item has.
    """
    out = self.live.copy()
    if category is not None:
      inside = self.categories.get(category)
      if inside is None:
        some = ', '.join(map(repr, list(self.categories)[:5])) or 'none'
        raise DataError(f'there is no category {category!r:.100}; there are {some} ...')
      keep = np.zeros(len(out), bool)
      keep[inside - 1] = True
      out &= keep
    if allow is not None:
      keep = np.zeros(len(out), bool)
      keep[[i - 1 for i in map(self.index, allow) if i]] = True
      out &= keep
    out[[i - 1 for i in map(self.index, block) if i]] = False
    if unseen and len(history):
      out[np.asarray(history) - 1] = False
    return out

  def search(self, text='', category=None, offset=0, limit=24):
    """Items whose words begin with all words of `text`; those bought most first.

    -> item indices, how many there are in all
    """
    good = self.mask(category)
    for word in WORD.findall(text.lower())[:8]:
      hit = np.zeros(len(good), bool)
      for rows in self.words.starting(word):
        hit[rows - 1] = True
      good &= hit
    found = self.popular[good[self.popular - 1]]
    return found[offset:offset + limit].tolist(), len(found)


def current(catalog, fresh):
  """The model's items as a fresh catalogue has them. -> columns, live (N,) bool, unknown items

  An item that the fresh one lacks keeps its texts and is retired.
  """
  gone = catalog.columns.get('retired') or [None] * len(catalog)
  if fresh is None:
    return catalog.columns, ~np.array([bool(g) for g in gone]), 0
  places = [fresh.find(item) for item in catalog.ids]
  retired = fresh.columns.get('retired') or [None] * len(fresh)
  live = np.array([p > 0 and not retired[p - 1] for p in places])
  columns = {}
  for name in {**catalog.columns, **fresh.columns}:
    old = catalog.columns.get(name) or [None] * len(catalog)
    new = fresh.columns.get(name) or [None] * len(fresh)
    columns[name] = [new[p - 1] if p else o for o, p in zip(old, places)]
  return columns, live, len(fresh) - sum(map(bool, places))


def members(categories, count):
  """{category: its item indices}: every part of an item's list, and every path parted by commas."""
  out = collections.defaultdict(list)
  for item, some in zip(range(1, count + 1), categories or ()):
    names = dict.fromkeys(some or ())
    names.update(dict.fromkeys(', '.join(some[a:e]) for a in (0, 1) if some
                               for e in range(a + 1, len(some) + 1)))
    for name in names:
      out[name].append(item)
  return {name: np.array(items) for name, items in out.items()}


class Words:
  """Words in sorted order with the items that have them."""

  def __init__(self, found):
    self.sorted = sorted(found)
    self.rows = [np.array(found[w]) for w in self.sorted]

  def starting(self, start):
    """Item indices of every word that begins so. -> list of arrays"""
    at = bisect.bisect_left(self.sorted, start)
    out = []
    while at < len(self.sorted) and self.sorted[at].startswith(start):
      out.append(self.rows[at])
      at += 1
    return out


def words_of(columns, count):
  """-> Words of titles, brands and categories"""
  found = collections.defaultdict(list)
  for row in range(count):
    text = []
    for name in ('title', 'brand', 'categories'):
      value = (columns.get(name) or [None] * count)[row]
      text += value if isinstance(value, list) else [value or '']
    for word in set(WORD.findall(' '.join(text)[:4000].lower())):
      found[word].append(row + 1)
  return Words(found)


class Shelves:
  """The stock that is served, and those before it. path: the items file that `reload` reads."""

  def __init__(self, catalog, counts, path=None):
    self.path, self.lock = path, threading.Lock()
    self.now, self.past, self.newest = Stock(catalog, counts), [], 1
    if path:
      self.reload()

  def reload(self):
    """Reads the items file anew. -> Stock. Raises DataError, the old one stays, where it fails."""
    if not self.path:
      raise DataError('nothing to reload; start the server with --catalogue=FILE')
    with self.lock:
      fresh, _ = loading.read_items(self.path)
      made = Stock(self.now.catalog, self.now.counts, fresh, self.newest + 1, str(self.path))
      self.past = [*self.past, self.now][-KEPT:]
      self.now, self.newest = made, made.version
      return made

  def rollback(self):
    """Returns to the stock before. -> Stock. Raises DataError where there is none."""
    with self.lock:
      if not self.past:
        raise DataError('there is no earlier catalogue to return to')
      self.now = self.past.pop()
      return self.now
