"""The catalog as a language model writes it: titles that survive their tokens, and their trie."""
import dataclasses
import functools
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from recjax.data.dataset import Catalog
from recjax.decoding import item_filter, trie
from recjax.errors import DataError
from recjax.methods.reclm import item_limits
from recjax.text import spelling
from recjax.text.tokenizer import Tokenizer

SOI, EOI = '<SOI>', '<EOI>'


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedCatalog:
  """Items by index - 1.

  catalog: the data set's. titles: unique spellings. title_tokens: their token lists, without the
  end token. categories: every path of an item below the root, the most specific last, as one text
  each. notes: what was odd, counted.
  """
  catalog: Catalog
  titles: list[str]
  title_tokens: list[list[int]]
  categories: list[list[str]]
  notes: dict[str, int]

  @functools.cached_property
  def index(self) -> dict[str, int]:
    """{title: item index 1..N}, titles also as the catalog spells them"""
    out = {}
    for i, title in enumerate(self.catalog.columns.get('title') or (), 1):
      if normalize_title(title or ''):
        out.setdefault(normalize_title(title), i)
    return {**out, **{t: i for i, t in enumerate(self.titles, 1)}}

  @functools.cached_property
  def prices(self) -> Float[np.ndarray, ' N']:
    """What items cost, NaN where that is not known."""
    return item_limits.prices_of(self.catalog)

  @functools.cached_property
  def on_offer(self) -> Bool[np.ndarray, ' N']:
    """Items that may be recommended: all but the retired."""
    return ~np.array([bool(retired) for retired in self.catalog.columns.get('retired')
                      or [False] * len(self.catalog)])

  def title(self, item: int) -> str:
    """The title of an item, by its index 1..N."""
    return self.titles[item - 1]

  def categories_of(self, item: int) -> list[str]:
    """The category paths of an item, by its index 1..N."""
    return self.categories[item - 1]

  def to_trie(self, end: int, vocab: int) -> trie.Trie:
    """The titles as a trie whose rows end with the end-of-item token. vocab: of the model."""
    return trie.build(self.title_tokens, end, vocab)


def load(catalog: Catalog, tokenizer: Tokenizer) -> TokenizedCatalog:
  """Titles of a catalog, spelled so that they come back from their tokens; an item without one is
  called by its id.

  Raises DataError for an empty catalog, or naming an item whose title the tokenizer cannot write.
  """
  if not len(catalog):
    raise DataError('the catalog is empty; nothing can be recommended')
  catalog_titles = catalog.columns.get('title')
  if catalog_titles is None:
    raise DataError('the catalog has no titles to write; add `title` to its items')
  is_bare = [not (title or '').strip() for title in catalog_titles]
  normalized = [
    normalize_title(item if without else title) for title, item,
    without in zip(catalog_titles, catalog.ids, is_bare)]

  def round_trip(texts: Sequence[str]) -> list[str]:
    return [' '.join(tokenizer.decode(ids).split()) for ids in tokenizer.encode_batch(texts)]
  titles = spelling.round_trip(round_trip, normalized, catalog.ids)
  distinct = distinct_titles(titles)
  title_tokens = tokenizer.encode_batch(distinct)
  num_twins = len(title_tokens) - len(set(map(tuple, title_tokens)))
  notes = {
    **spelling.count_changes(normalized, titles), 'equal_tokens': num_twins,
    'named_by_id': sum(is_bare),
    'titles_made_unlike': sum(before != after for before, after in zip(titles, distinct))}
  return TokenizedCatalog(catalog, distinct, title_tokens, category_paths(catalog), notes)


def normalize_title(title: str) -> str:
  """A title in Unicode's NFC, with single spaces."""
  return ' '.join(unicodedata.normalize('NFC', title).split())


def distinct_titles(titles: Sequence[str]) -> list[str]:
  """Titles with ' (1)', ' (2)', ... behind later holders: the smallest number not taken.

  titles: by item.
  """
  taken, distinct = set(), []
  for title in titles:
    spelled, number = title, 0
    while spelled in taken:
      number += 1
      spelled = f'{title} ({number})'
    taken.add(spelled)
    distinct.append(spelled)
  return distinct


def category_paths(catalog: Catalog) -> list[list[str]]:
  """Every category path of each item without its root: [Root, A, B]

  catalog: of the data set. -> ['A', 'A, B'].
  """
  lists = catalog.columns.get('categories') or [None] * len(catalog)
  roots = {categories[0] for categories in lists if categories}
  cut = (
    1 if len(roots) == 1 and any(len(categories) > 1 for categories in lists if categories) else 0)
  return [
    [', '.join(categories[cut:end]) for end in range(cut + 1, len(categories) + 1)]
    if categories
    else []
    for categories in lists]


def with_codes(tokenized: TokenizedCatalog, table: Int[np.ndarray, 'N L'],
               first: int) -> TokenizedCatalog:
  """The catalog with semantic-ID tokens instead of titles (RecLM-token); titles stay for people.

  table: unique rows of codes. first: the id of the first code token, level by level of equal size.
  tokenized: the catalog with titles.
  """
  size = int(table.max()) + 1
  code_tokens = table + first + size * np.arange(table.shape[1])
  return dataclasses.replace(tokenized, title_tokens=code_tokens.tolist())


def make_filter(tree: trie.Trie, excluded: Sequence[Sequence[int]],
                allowed: np.ndarray | None = None) -> item_filter.ItemFilter:
  """Items that requests may not have.

  tree: the titles' trie. excluded: item indices 1..N of each request. allowed: (N,) bool of all
  requests, or (B, N).
  """
  allowed_rows = None if allowed is None else np.atleast_2d(allowed)
  row_of_request = (
    None if allowed_rows is None else np.arange(len(excluded), dtype=np.int32) % len(allowed_rows))
  return item_filter.build_item_filter(
    tree, allowed_rows, row_of_request, excluded)
