"""Rows that learn no weights by gradients: Markov chains, neighbors, EASE, and titles.

They are fitted on training interactions alone, in seconds, and are what a strict reviewer asks to
see beside any model. Every row is a score function (`recjax.protocols.ScoreFn`).

Letters of shapes: M interactions of all histories, U users (U1 is one more), B histories of a
block (B1 is one more), N items, V words.
"""
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from jaxtyping import Float, Int

from recjax.data.dataset import Catalog, Interactions
from recjax.data.splits import Cases
from recjax.errors import ConfigError
from recjax.evaluation import metrics, ranking
from recjax.protocols import AnyArray, ScoreFn
from recjax.retrieval import bm25

LONGEST = 20  # items of a history that a Markov chain reads, the last ones
TUNING_USERS = 2000  # validation users at most by whom settings are chosen
EASE_BYTES = 8 << 30  # memory that EASE may take: three float32 tables of N x N
EASE_TUNING = 8000  # items up to which its ridge is chosen: each value costs N^3 operations
WORD = re.compile('[a-z0-9]+')

# Settings that validation chooses among, the first is taken where there is no validation.
GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    'markov': {},
    'markov_k': dict(decay=(0.7, 0.5, 0.85, 1.0), shrink=(10.0, 3.0, 1.0), second=(0.5, 0.0)),
    'item_knn': dict(shrink=(20.0, 0.0, 100.0), neighbors=(0, 100), decay=(1.0,)),
    'item_knn:decay': dict(shrink=(100.0, 20.0, 0.0), neighbors=(0, 100), decay=(0.7, 0.85)),
    'ease': dict(l2=(50.0, 100.0, 300.0), decay=(1.0,)),
    'ease:decay': dict(l2=(50.0, 100.0, 300.0), decay=(0.7,)),
    'text': dict(decay=(0.7, 0.5, 1.0)),
    'id_text': dict(weight=(0.3, 0.5, 0.7)),
}


def score_functions(train: Interactions, item_titles: Sequence[str],
                    valid: Cases | None, mask_history: bool = True
                    ) -> tuple[dict[str, ScoreFn], dict[str, dict[str, Any]], dict[str, str]]:
  """All classical rows, each with the settings that rank validation users best by NDCG@10.

  train: the training interactions. item_titles: of items 1..N in order. valid: cases of validation,
  at most TUNING_USERS of them drawn, or None. mask_history: as the rows will be ranked.
  -> {row: score function}, {row: the settings chosen}, {row that is left out: why}
  """
  n_items = len(item_titles)
  cases = valid and valid.select(np.sort(
      np.random.default_rng(0).permutation(len(valid))[:TUNING_USERS]))
  makers, left_out = _makers(train, item_titles), {}
  rows, chosen = {}, {}
  for row, grid in GRIDS.items():
    if row.startswith('ease') and (need := 3 * 4 * n_items ** 2) > EASE_BYTES:
      left_out[row] = (f'it needs {need / 2**30:,.1f} GiB for {n_items:,} items; '
                       f'{row.replace("ease", "item_knn")} stands in for it')
    elif row in ('text', 'id_text') and not any(map(words, item_titles)):
      left_out[row] = 'no title has a word'
    else:
      maker = (functools.partial(blend, rows['markov_k'], rows['text']) if row == 'id_text'
               else makers[row])
      few = row.startswith('ease') and n_items > EASE_TUNING
      rows[row], chosen[row] = _choose(maker, grid, None if few else cases, n_items, mask_history)
  return rows, chosen, left_out


def _makers(train: Interactions, item_titles: Sequence[str]) -> dict[str, Callable[..., ScoreFn]]:
  n = len(item_titles)
  knn = functools.partial(item_knn, train, n)
  ease_row = functools.partial(ease, train, n)
  return {'markov': functools.partial(markov, train, n),
          'markov_k': functools.partial(markov_k, train, n),
          'item_knn': knn, 'item_knn:decay': knn, 'ease': ease_row, 'ease:decay': ease_row,
          'text': functools.partial(text, item_titles)}


def _choose(maker: Callable[..., ScoreFn], grid: Mapping[str, Sequence[Any]], cases: Cases | None,
            n_items: int, mask_history: bool) -> tuple[ScoreFn, dict[str, Any]]:
  """The row, and its settings, that ranks `cases` best by NDCG@10, the first of equal ones."""
  options = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
  best_row, best_settings = maker(**options[0]), options[0]
  if cases is None or not len(cases) or len(options) == 1:
    return best_row, best_settings

  def ndcg(row):
    ranks = ranking.rank_cases(row, cases, n_items, mask_history=mask_history)
    return float(metrics.per_case(ranks, (10,))['NDCG@10'].mean())
  best = ndcg(best_row)
  for settings in options[1:]:
    row = maker(**settings)
    if (value := ndcg(row)) > best:
      best, best_row, best_settings = value, row, settings
  return best_row, best_settings


def history_weights(items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' B1'], n_items: int,
                    decay: float, longest: int = 0) -> sp.csr_array:
  """Histories as rows of weights over the catalog: decay ** (items that came after).

  items, offsets: ragged histories, oldest first. n_items: of the catalog. decay: 1 weighs all
  alike. longest: only so many of the last items count, 0 for all. An item that repeats has the sum.
  -> (B, N) float64
  """
  items, offsets = np.asarray(items), np.asarray(offsets)
  lengths = np.diff(offsets)
  age = np.repeat(offsets[1:], lengths) - 1 - np.arange(offsets[0], offsets[-1])
  weight = np.power(float(decay), age)
  if longest:
    weight[age >= longest] = 0.0
  rows = np.repeat(np.arange(len(lengths)), lengths)
  return sp.csr_array((weight, (rows, items[offsets[0]:offsets[-1]] - 1)),
                      shape=(len(lengths), n_items))


def transitions(train: Interactions, n_items: int) -> sp.csr_array:
  """How often item j comes right after item i in training sequences.

  train: the sequences. n_items: of the catalog. -> (N, N) float64, row i - 1, column j - 1
  """
  user = np.repeat(np.arange(len(train.offsets) - 1), np.diff(train.offsets))
  start = np.flatnonzero(user[:-1] == user[1:])
  pairs = (train.items[start] - 1, train.items[start + 1] - 1)
  return sp.csr_array((np.ones(len(start)), pairs), shape=(n_items, n_items))


def incidence(train: Interactions, n_items: int) -> sp.csr_array:
  """Which user has met which item. train: the sequences. n_items: of the catalog. -> (U, N) of 1"""
  matrix = history_weights(train.items, train.offsets, n_items, 1.0)
  matrix.data[:] = 1.0
  return matrix


def markov(train: Interactions, n_items: int) -> ScoreFn:
  """What followed the last item in training, how often; popularity where that is nothing.

  train: the training sequences. n_items: of the catalog.
  """
  counts = _item_counts(train, n_items)
  # below 1, so that it parts only what followed equally often
  return _linear(transitions(train, n_items), counts / (2 * counts.max() + 2), 1.0, 1)


def markov_k(train: Interactions, n_items: int, decay: float, shrink: float,
             second: float) -> ScoreFn:
  """A chain from each of the last LONGEST items, older ones weighing less.

  The chain is (T + second * T') with rows divided by (their sum + shrink), T the counts of
  neighbors in training sequences. train: the sequences. n_items: of the catalog. decay: of an
  item's weight with each later one. shrink: draws rows of few counts to 0. second: weight of what
  came before an item beside what came after. Popularity parts what is left equal.
  """
  follow = transitions(train, n_items)
  chain = follow + second * follow.T
  total = np.asarray(chain.sum(1)).ravel() + shrink
  chain = sp.diags_array(np.divide(1.0, total, where=total > 0, out=np.zeros(n_items))) @ chain
  return _linear(chain.tocsr(), _item_counts(train, n_items) * 1e-6, decay, LONGEST)


def item_knn(train: Interactions, n_items: int, shrink: float, neighbors: int,
             decay: float) -> ScoreFn:
  """Items that the same users met: cosine of their users, shrunk where these are few.

  train: the training sequences. n_items: of the catalog. shrink: added to the product of norms.
  neighbors: so many of the nearest count for each item, 0 for all. decay: of an item's weight with
  each later one. Sarwar et al., WWW 2001.
  """
  met = incidence(train, n_items)
  both = (met.T @ met).tocoo()
  norm = np.sqrt(np.asarray(met.sum(0)).ravel())
  row, column = both.coords
  value = both.data / (norm[row] * norm[column] + shrink)
  near = sp.csr_array((np.where(row == column, 0.0, value), (row, column)), shape=both.shape)
  near.eliminate_zeros()
  return _linear(_keep_largest(near, neighbors) if neighbors else near, None, decay)


def _keep_largest(matrix: Any, count: int) -> sp.csr_array:
  """The `count` largest of each row; of equal ones those of lower columns."""
  matrix.sort_indices()
  rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
  order = np.lexsort((matrix.indices, -matrix.data, rows))
  place = np.arange(len(order)) - matrix.indptr[rows]  # rows are sorted, so these are in order
  kept = order[place < count]
  return sp.csr_array((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)


def ease(train: Interactions, n_items: int, l2: float, decay: float) -> ScoreFn:
  """EASE (Steck, WWW 2019, arXiv 1905.03375): items by items, a linear model in closed form.

  train: the training sequences. n_items: of the catalog. l2: of its ridge regression, above 0.
  decay: of an item's weight with each later one. Takes 3 N^2 numbers of float32. Raises ConfigError
  for l2 that is not above 0.
  """
  return _linear(_ease_weights(train, n_items, l2), None, decay)


def _ease_weights(train: Interactions, n_items: int, l2: float) -> Float[np.ndarray, 'N N']:
  if not l2 > 0:
    raise ConfigError(f'EASE needs l2 above 0, not {l2}')
  met = incidence(train, n_items).astype(np.float32)
  gram = (met.T @ met).toarray(order='F')
  gram[np.diag_indices(n_items)] += np.float32(l2)
  lapack: Any = scipy.linalg.lapack
  factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
  inverse, bad = lapack.spotri(factor, lower=1, overwrite_c=1)
  if failed or bad:
    raise ConfigError(f'EASE cannot be solved with l2={l2}; choose a larger one')
  inverse = np.tril(inverse)
  inverse += np.tril(inverse, -1).T
  weights = inverse / -np.diag(inverse)
  weights[np.diag_indices(n_items)] = 0.0
  return weights


def titles(catalog: Catalog) -> list[str]:
  """The titles of a catalog's items in order, '' where one has none. catalog: the items."""
  column = catalog.columns.get('title') or [None] * len(catalog)
  return ['' if title is None else str(title) for title in column]


def words(title: str) -> list[str]:
  """The words of a title: runs of letters a to z and digits, in small letters. title: of an item.
  """
  return WORD.findall(title.lower())


def tf_idf(item_titles: Sequence[str]) -> sp.csr_array:
  """Titles as unit vectors of words: (1 + ln tf) * (ln((1 + N) / (1 + df)) + 1).

  item_titles: of N items. -> (N, V) float64, zeros for a title without words
  """
  counts = bm25.count_matrix(map(words, item_titles), {}, grow=True).astype(np.float64)
  titles_with = np.bincount(counts.indices, minlength=counts.shape[1])
  idf = np.log((1 + len(item_titles)) / (1 + titles_with)) + 1
  counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
  norm = np.sqrt(counts.power(2).sum(1))
  return (sp.diags_array(np.divide(1.0, norm, where=norm > 0, out=np.zeros(len(norm))))
          @ counts).tocsr()


def text(item_titles: Sequence[str], decay: float) -> ScoreFn:
  """Cosine of an item's title with those of the history, added up; nobody else's behavior enters.

  item_titles: of items 1..N in order. decay: of an item's weight with each later one.
  """
  vectors = tf_idf(item_titles)
  by_word = vectors.T.tocsr()

  def score(items, offsets):
    weights = history_weights(items, offsets, len(item_titles), decay)
    return ((weights @ vectors) @ by_word).toarray().astype(np.float32)
  return score


def blend(first: ScoreFn, second: ScoreFn, weight: float) -> ScoreFn:
  """Two rows mixed, each brought to 0..1 over the catalog for every history.

  first, second: the rows. weight: of `first`; `second` has the rest.
  """
  def score(items, offsets):
    return (weight * _min_max(first(items, offsets))
            + (1 - weight) * _min_max(second(items, offsets))).astype(np.float32)
  return score


def _min_max(scores: Float[AnyArray, 'B N']) -> Float[np.ndarray, 'B N']:
  scores = np.asarray(scores, np.float64)
  low, high = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
  return (scores - low) / np.where(high > low, high - low, 1.0)


def _item_counts(train: Interactions, n_items: int) -> Int[np.ndarray, ' N']:
  """How often each item stands in the training interactions."""
  return np.bincount(train.items, minlength=n_items + 1)[1:]


def _linear(table: Any, back_off: np.ndarray | None,
            decay: float, longest: int = 0) -> ScoreFn:
  """The sum of a table's rows over a history's items, weighted as `history_weights` says.

  back_off: (N,) what every item has besides, or None.
  """
  def score(items, offsets):
    found: Any = history_weights(items, offsets, table.shape[0], decay, longest) @ table
    dense = found.toarray() if sp.issparse(found) else found
    return (dense if back_off is None else dense + back_off).astype(np.float32)
  return score
