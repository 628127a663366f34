"""The catalogue as a language model writes it: titles that survive their tokens, and their trie."""
import dataclasses
import functools
import unicodedata

import numpy as np

from recjax.data.dataset import Catalog
from recjax.decoding import item_filter, trie
from recjax.errors import DataError
from recjax.text import spelling

SOI, EOI = '<SOI>', '<EOI>'


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedCatalog:
  """Items by index - 1. titles: unique spellings. rows: their token lists, without the end token.

  categories: every path of an item below the root, the most specific last, as one text each.
  notes: what was odd, counted.
  """
  catalog: Catalog
  titles: list
  rows: list
  categories: list
  notes: dict

  @functools.cached_property
  def index(self):
    """{title: item index 1..N}, titles also as the catalogue spells them"""
    out = {}
    for i, title in enumerate(self.catalog.columns.get('title') or (), 1):
      if tidy(title or ''):
        out.setdefault(tidy(title), i)
    return {**out, **{t: i for i, t in enumerate(self.titles, 1)}}

  def plant(self, end, vocab):
    """The titles as a trie whose rows end with the end-of-item token. -> Trie"""
    return trie.build(self.rows, end, vocab)


def load(catalog, tokenizer):
  """Titles of a catalogue, spelt so that they come back from their tokens; an item without one is
  called by its id. -> Goods

  Raises DataError for an empty catalogue, or naming an item whose title the tokenizer cannot write.
  """
  if not len(catalog):
    raise DataError('the catalogue is empty; nothing can be recommended')
  raw = catalog.columns.get('title')
  if raw is None:
    raise DataError('the catalogue has no titles to write; add `title` to its items')
  bare = [not (title or '').strip() for title in raw]
  plain = [tidy(item if none else title) for title, item, none in zip(raw, catalog.ids, bare)]

  def back(some):
    return [' '.join(tokenizer.decode(ids).split()) for ids in tokenizer.encode_batch(some)]
  titles = spelling.round_trip(back, plain, catalog.ids)
  spelt = unlike(titles)
  rows = tokenizer.encode_batch(spelt)
  twins = len(rows) - len(set(map(tuple, rows)))
  notes = {**spelling.count_changes(plain, titles), 'equal_tokens': twins, 'named_by_id': sum(bare),
           'titles_made_unlike': sum(a != b for a, b in zip(titles, spelt))}
  return TokenizedCatalog(catalog, spelt, rows, paths(catalog), notes)


def tidy(title):
  """A title in Unicode's NFC, with single spaces. -> str"""
  return ' '.join(unicodedata.normalize('NFC', title).split())


def unlike(titles):
  """Titles with ' (1)', ' (2)', ... behind later holders: the smallest number not taken (D6)."""
  taken, out = set(), []
  for title in titles:
    spelt, number = title, 0
    while spelt in taken:
      number += 1
      spelt = f'{title} ({number})'
    taken.add(spelt)
    out.append(spelt)
  return out


def paths(catalog):
  """Every category path of each item without its root: [Root, A, B] -> ['A', 'A, B'] (D6)."""
  lists = catalog.columns.get('categories') or [None] * len(catalog)
  roots = {c[0] for c in lists if c}
  cut = 1 if len(roots) == 1 and any(len(c) > 1 for c in lists if c) else 0
  return [[', '.join(c[cut:end]) for end in range(cut + 1, len(c) + 1)] if c else [] for c in lists]


def codes(goods, table, first):
  """The catalogue with semantic-ID tokens instead of titles (RecLM-token).

  table: (N, levels) int, unique rows. first: the id of the first code token, level by level of
  equal size. -> Goods whose rows are code tokens; titles stay for people
  """
  size = int(table.max()) + 1
  rows = table + first + size * np.arange(table.shape[1])
  return dataclasses.replace(goods, rows=rows.tolist())


def limits(tree, closed, allowed=None):
  """Items that requests may not have. closed: list of (n,) item indices 1..N. allowed: (N,) bool of
  all requests, or (B, N). -> Limits"""
  some = None if allowed is None else np.atleast_2d(allowed)
  use = None if some is None else np.arange(len(closed), dtype=np.int32) % len(some)
  return item_filter.build_item_filter(
    tree, some, use, [np.asarray(c, np.int64) - 1 for c in closed]
  )
