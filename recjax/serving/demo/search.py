"""Search over a catalog by SQLite's full-text index, which forgives accents and slips of the hand.

Items are found by the beginnings of all words of a query. A word that no item has is replaced by
the likest words that some have, by difflib's ratio: of those that share its trigrams, and where it
is short its first letter.
"""
import dataclasses
import difflib
import re
import sqlite3
import threading
import unicodedata
import weakref

import numpy as np

from recjax.serving.catalog_snapshot import CatalogSnapshot

WORD = re.compile(r'\w+')
SEARCHED_COLUMNS = ('title', 'brand', 'categories')
MAX_ITEM_CHARS, MAX_QUERY_WORDS, MAX_WORD_CHARS = 4000, 8, 40
TYPO_LENGTH = 4  # letters of the shortest word in which a slip is looked for
TRIGRAM_LENGTH = 7  # and of the shortest that shares a trigram with what was meant
MOST_SHORT, LAST_SIGN = 500, chr(0x10ffff)
MOST_ALIKE, LEAST_RATIO = 30, 0.7  # words that are compared, and how alike one must be
SIGNS = str.maketrans({'ß': 'ss', 'æ': 'ae', 'œ': 'oe', 'ø': 'o', 'đ': 'd', 'ł': 'l'})


@dataclasses.dataclass(frozen=True)
class Found:
  """What a search found.

  items: indices 1..N, the first ones. total: how many there are. read_as: the query with the words
  that were looked for instead of unknown ones, '' where none was replaced.
  """
  items: list[int]
  total: int
  read_as: str = ''


class WordIndex:
  """The words of a catalog's titles, brands and categories with the items that have them.

  snapshot: the catalog.
  """

  def __init__(self, snapshot: CatalogSnapshot):
    self._lock = threading.Lock()
    self._database = sqlite3.connect(':memory:', check_same_thread=False)
    self._database.executescript("""
        CREATE VIRTUAL TABLE items USING fts5(
          text, content='', prefix='1 2 3', tokenize='unicode61 remove_diacritics 2');
        CREATE VIRTUAL TABLE vocabulary USING fts5vocab(items, 'row');
        CREATE VIRTUAL TABLE words USING fts5(word, tokenize='trigram');""")
    empty = [None] * len(snapshot)
    columns = [snapshot.columns.get(name) or empty for name in SEARCHED_COLUMNS]
    self._database.executemany('INSERT INTO items(rowid, text) VALUES (?, ?)', (
        (item, searched_text(values)) for item, values in enumerate(zip(*columns), 1)))
    self._database.execute('INSERT INTO words SELECT term FROM vocabulary')

  def items_with_prefix(self, prefix: str) -> list[int]:
    """Returns the indices of the items of which a word begins with `prefix`."""
    with self._lock:
      return [item for item, in self._database.execute(
          'SELECT rowid FROM items WHERE items MATCH ?', (f'"{prefix}"*',))]

  def words_like(self, word: str) -> list[str]:
    """Returns the words of the catalog that `word` may have been meant to be, the likest first."""
    if len(word) < TYPO_LENGTH:
      return []
    trigrams = {word[i:i + 3] for i in range(len(word) - 2)}
    with self._lock:
      near = self._database.execute(
          'SELECT word FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?',
          (' OR '.join(f'"{trigram}"' for trigram in sorted(trigrams)), MOST_ALIKE)).fetchall()
      if len(word) < TRIGRAM_LENGTH:  # two letters that changed places leave no trigram whole
        near += self._database.execute(
            'SELECT term FROM vocabulary WHERE term BETWEEN ? AND ? AND length(term) BETWEEN ? AND '
            '? ORDER BY cnt DESC LIMIT ?', (word[0], word[0] + LAST_SIGN, len(word) - 1,
                                            len(word) + 1, MOST_SHORT)).fetchall()
    near = list(dict.fromkeys(found for found, in near))
    return difflib.get_close_matches(word, near, 3, LEAST_RATIO)

  def close(self) -> None:
    """Frees the index."""
    self._database.close()


def searched_text(values: tuple) -> str:
  """Returns the text by which an item is found. values: texts, lists of texts, or None."""
  parts = []
  for value in values:
    parts += value if isinstance(value, list) else [value or '']
  return as_typed(' '.join(parts)[:MAX_ITEM_CHARS].replace('\0', ' '))


def as_typed(text: str) -> str:
  """Returns a text as hasty people type it: in lower case, without accents."""
  parts = unicodedata.normalize('NFKD', text.lower().translate(SIGNS))
  return ''.join(sign for sign in parts if not unicodedata.combining(sign))


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
             offset: int = 0, limit: int = 24) -> Found:
    """Finds live items whose words begin with all words of a query, those bought most first.

    snapshot: the catalog. query: the words; '' finds all. category: only items of it, None for all.
    offset: how many to leave out. limit: the most to return. Raises DataError for an unknown
    category.
    """
    word_index = self.prepare(snapshot)
    is_match = snapshot.allowed_mask(category)
    words = [word[:MAX_WORD_CHARS]
             for word in WORD.findall(as_typed(query))[:MAX_QUERY_WORDS]]
    read_as = []
    for word in words:
      items = word_index.items_with_prefix(word)
      meant = word
      if not items:
        alike = word_index.words_like(word)
        meant = alike[0] if alike else word
        items = [item for other in alike for item in word_index.items_with_prefix(other)]
      read_as.append(meant)
      has_word = np.zeros(len(is_match), bool)
      has_word[np.array(items, int) - 1] = True
      is_match &= has_word
    found = snapshot.by_popularity[is_match[snapshot.by_popularity - 1]]
    return Found(found[offset:offset + limit].tolist(), len(found),
                 ' '.join(read_as) if read_as != words else '')
