"""BM25 over tags: an item's document is its weighted tag list, and a whole tag is one term.

Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, 3.5; see docs/betag.md. Shape
letters: N documents, V tags, B queries.
"""
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from recjax.errors import ConfigError, DataError

DENSE = 1 << 26  # query weights, most of them 0, that may be held at once

REDUCERS = ('union', 'sum', 'intersection', 'last')
Document = Iterable[str | tuple[str, float]] | Mapping[str, float]
Ids = Int[np.ndarray, ' _'] | Sequence[int]
if TYPE_CHECKING:
  CSR = Any  # scipy has no types
else:
  CSR = sp.csr_array


@dataclasses.dataclass(frozen=True)
class BM25:
  """A fitted index over documents, those of items 1..N in order.

  terms: {tag: column}. counts: (N, V) float32, tag weights. idf: of the tags, float64, 0 for
  dropped ones. weights: (N, V) float32, what one unit of a tag in the query adds to a document.
  by_tag: its transpose. dropped: how many tags fell to the idf cutoff.
  """
  terms: dict[str, int]
  counts: CSR
  idf: Float[np.ndarray, ' V']
  weights: CSR
  by_tag: CSR
  dropped: int

  @classmethod
  def fit(
      cls, docs: Iterable[Document], k1: float = 0.75, b: float = 0.75, idf_cutoff: float = 0.0,
      known: int | None = None) -> 'BM25':
    """Indexes documents: lists of tags, lists of (tag, weight), or {tag: weight} mappings.

    docs: the documents. A tag's frequency is its weight, summed over repetitions, and a document's
    length the sum of its weights, dropped tags included. An empty document is kept and never
    scores. k1: how slowly frequency saturates. b: how much length counts. idf_cutoff: tags with
    ln(N - n + 0.5) - ln(n + 0.5) up to it are dropped; where that leaves none, a warning says so
    and all scores are 0. known: how many documents, the first ones, say how rare tags and how long
    documents are (default: all), so that further ones change no score of theirs. Raises DataError
    for no tags at all or weights that are not finite and positive, ConfigError for k1 < 0 or b
    outside 0..1.
    """
    if k1 < 0 or not 0 <= b <= 1:
      raise ConfigError(f'k1={k1}, b={b}: k1 must be 0 or more, b between 0 and 1')
    terms = {}
    counts = count_matrix(docs, terms, grow=True)
    n_docs = counts.shape[0] if known is None else known
    if not counts.nnz:
      raise DataError(f'{n_docs} documents hold no tag at all; there is nothing to index')
    holding = np.bincount(counts[:n_docs].indices, minlength=len(terms))
    idf = np.log(n_docs - holding + 0.5) - np.log(holding + 0.5)
    keep = idf > idf_cutoff
    if not keep.any():
      warnings.warn(f'all {len(terms)} tags have an idf of {idf_cutoff} or less over {n_docs} '
                    'documents and are dropped: every score is 0; lower idf_cutoff', stacklevel=2)
    idf = np.where(keep, idf, 0.0)
    length = counts.sum(axis=1, dtype=np.float64)
    norm = k1 * (1 - b + b * length / length[:n_docs].mean())
    tf = counts.data.astype(np.float64)
    tf = tf * (k1 + 1) / (tf + np.repeat(norm, np.diff(counts.indptr)))
    weights = sp.csr_array(((tf * idf[counts.indices]).astype(np.float32), counts.indices.copy(),
                            counts.indptr.copy()), shape=counts.shape)
    weights.eliminate_zeros()
    return cls(terms, counts, idf, weights, weights.T.tocsr(), int((~keep).sum()))

  def scores(self, queries: CSR | Iterable[Document]) -> Float[np.ndarray, 'B N']:
    """Scores every document for every query, linear in the query's weights; unknown tags add 0.

    queries: tag weights, (B, V), or documents in any form that fit takes. -> float32
    """
    rows: CSR = queries if sp.issparse(queries) else count_matrix(queries, self.terms)
    rows = rows.astype(np.float32)
    # Both ways add the same products in the order of tags, so they agree to the last bit; dense
    # costs an eighth per product but takes every tag of every document.
    products = int(np.diff(self.by_tag.indptr)[rows.indices].sum())
    if 8 * products > self.weights.nnz * rows.shape[0] and np.prod(rows.shape) <= DENSE:
      return np.ascontiguousarray((self.weights @ rows.T.toarray()).T)
    return (rows @ self.by_tag).toarray()


def count_matrix(
    docs: Iterable[Document], terms: dict[str, int], grow: bool = False) -> CSR:
  """Documents as rows of float32 tag weights, without repeated or zero entries.

  docs: as in BM25.fit. terms: {tag: column}; with grow, new tags get the next column, else they are
  left out. Raises DataError for a weight that is not finite and positive.
  """
  data, columns, cuts = [], [], [0]
  for row, doc in enumerate(docs):
    for entry in doc.items() if isinstance(doc, Mapping) else doc:
      pair: Any = (entry, 1) if isinstance(entry, str) else entry
      tag, weight = pair
      if not 0 < weight < np.inf:
        raise DataError(f'document {row} gives tag {tag!r} the weight {weight}; weights must be '
                        'finite and above 0')
      column = terms.setdefault(tag, len(terms)) if grow else terms.get(tag)
      if column is not None:
        data.append(weight)
        columns.append(column)
    cuts.append(len(data))
  matrix = sp.csr_array((np.array(data, np.float32), np.array(columns, np.int32),
                         np.array(cuts, np.int32)), shape=(len(cuts) - 1, len(terms)))
  matrix.sum_duplicates()
  return matrix


def reduce_queries(
    counts: CSR, items: Ids, offsets: Ids, how: str = 'union') -> CSR:
  """One query a history, from the tag weights of its items. -> (B, V) float32

  counts: of the index, row i for item i + 1. items, offsets: ragged histories, 1..N. how: a tag's
  weight is its largest over the items ('union'), their sum ('sum', a repeated item counting again),
  the smallest, 0 if any item lacks it ('intersection'), or that of the last item ('last'). An empty
  history is an empty query. Raises ConfigError for another `how`, DataError for unknown items.
  """
  if how not in REDUCERS:
    raise ConfigError(f'query reducer {how!r} is unknown; use one of {", ".join(REDUCERS)}')
  items, offsets = np.asarray(items), np.asarray(offsets)
  if len(items) and (items.min() < 1 or items.max() > counts.shape[0]):
    raise DataError(f'histories hold items {items.min()}..{items.max()}, but {counts.shape[0]} '
                    'documents are indexed; index both with the same catalog')
  shape = (len(offsets) - 1, counts.shape[1])
  if how == 'last':
    filled = np.flatnonzero(np.diff(offsets))
    last = items[offsets[filled + 1] - 1]
    select = sp.csr_array((np.ones(len(filled), np.float32), (filled, last - 1)),
                          shape=(shape[0], counts.shape[0]))
    return select @ counts
  rows = counts[items - 1]  # one row an interaction; a user's are neighbors
  stacked = sp.csr_array((rows.data, rows.indices, rows.indptr[offsets]), shape=shape)
  stacked.sort_indices()  # now a user's entries of one tag are neighbors
  if how == 'sum':
    stacked.sum_duplicates()
    return stacked
  return _reduce_runs(stacked, np.diff(offsets), how)


def _reduce_runs(stacked, lengths, how):
  """Merges equal neighboring columns of each row by max, or by min where all items hold them."""
  if not stacked.nnz:
    return stacked
  owner = np.repeat(np.arange(stacked.shape[0]), np.diff(stacked.indptr))
  new = (np.diff(owner) != 0) | (np.diff(stacked.indices) != 0)
  first = np.flatnonzero(np.concatenate([[True], new]))
  merge = np.maximum if how == 'union' else np.minimum
  data, owner, columns = merge.reduceat(stacked.data, first), owner[first], stacked.indices[first]
  if how == 'intersection':
    held = np.diff(np.append(first, stacked.nnz)) == lengths[owner]
    data, owner, columns = data[held], owner[held], columns[held]
  cuts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=stacked.shape[0]))])
  return sp.csr_array((data, columns, cuts), shape=stacked.shape)


def history_scores(model: BM25, how: str = 'union') -> Callable:
  """A score function for ranking: each history queries the index through `reduce_queries`.

  model: the index. how: of `reduce_queries`.
  """
  return lambda items, offsets: model.scores(reduce_queries(model.counts, items, offsets, how))
