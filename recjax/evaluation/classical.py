"""Rows that learn no weights by gradients: Markov chains, neighbors, EASE, titles, a graph.

They are fitted on training interactions alone, in seconds, and are what a strict reviewer asks to
see beside any model. Every row is a score function (`recjax.protocols.ScoreFn`).

Letters of shapes: M interactions of all histories, U users (U1 is one more), B histories of a
block (B1 is one more), N items, V words, K items of a list.
"""
import functools
import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse as sp
from jaxtyping import Array, Bool, Float, Int

from recjax.data import splits
from recjax.data.dataset import Catalog, Interactions
from recjax.data.splits import Cases, Split
from recjax.errors import ConfigError
from recjax.evaluation import baselines, ranking, settings_store
from recjax.protocols import AnyArray, ScoreFn
from recjax.retrieval import bm25

LONGEST = 20  # items of a history that a Markov chain reads, the last ones
TUNING_USERS = 2000  # validation users at most by whom settings are chosen
MEMORY = 8 << 30  # bytes that a row may take: EASE three float32 tables of N x N, pairs of items
PAIR_BYTES = 64  # of a pair of items that someone met, while neighbors are sought
# What two cores do in a second, about. A budget is counted by these, never timed, so that a data
# set has the same rows and settings on any machine, however busy.
SCORES = 1e8  # scores that are made and ranked
SLOWER = {'text': 2.5, 'id_text': 3.5, 'graph1': 3.0, 'graph2': 4.5}  # times longer than others'
PRODUCTS = 1e9  # multiplications of a history with a table of N x N
PAIRS = 5e7  # pairs of items of one user that are counted
SOLVED = 1.5e10  # of the N^3 operations that solve EASE
TIMED = ('pop_recent', 'pop_decay')  # rows that need times
BUDGET = ('markov', 'markov_k', 'text', 'id_text', *TIMED, 'item_knn', 'item_knn:decay', 'graph1',
          'graph2', 'ease', 'ease:decay')  # who is served first
MADE_OF = {'id_text': ('markov_k', 'text'), 'ease:decay': ('ease',)}
WORD = re.compile('[a-z0-9]+')

# Settings that validation chooses among, the first is taken where there is no validation.
GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    'pop_recent': dict(days=(30, 7, 90)),
    'pop_decay': dict(half_life=(90, 30, 365)),
    'markov': {},
    'markov_k': dict(decay=(0.7, 0.5, 0.85, 1.0), shrink=(10.0, 3.0, 1.0), second=(0.5, 0.0)),
    'item_knn': dict(shrink=(20.0, 0.0, 100.0), neighbors=(0, 100), decay=(1.0,)),
    'item_knn:decay': dict(shrink=(100.0, 20.0, 0.0), neighbors=(0, 100), decay=(0.7, 0.85)),
    'ease': dict(l2=(50.0, 100.0, 300.0), decay=(1.0,)),
    'ease:decay': dict(l2=(50.0, 100.0, 300.0), decay=(0.7,)),
    'text': dict(decay=(0.7, 0.5, 1.0)),
    'id_text': dict(weight=(0.3, 0.5, 0.7)),
    'graph1': {},
    'graph2': {},
}
# (items back from the end of a history, places for each ring around that item)
GRAPHS = {'graph1': ((1, (7, 2, 1)),), 'graph2': ((1, (5, 1)), (2, (3, 1)))}


class Rows(NamedTuple):
  """The classical rows of a data set.

  scores: {row: score function}. settings: {row: those chosen}. left_out: {row: why}. untuned: {row
  that has the first settings of its grid: why}. counted: {row: seconds of two cores for fitting,
  choosing and ranking, by `counted_seconds`}.
  """
  scores: dict[str, ScoreFn]
  settings: dict[str, dict[str, Any]]
  left_out: dict[str, str]
  untuned: dict[str, str]
  counted: dict[str, float]


def score_functions(split: Split, item_titles: Sequence[str], num_cases: int, minutes: float,
                    store: str | os.PathLike = '', **options: Any) -> Rows:
  """All classical rows, each with the settings that rank validation users best by NDCG@10.

  split: whose training interactions they learn from, and whose cases of validation, at most
  TUNING_USERS of them drawn, choose. item_titles: of items 1..N in order. num_cases: how many cases
  the rows will rank. minutes: of two cores that fitting, choosing and ranking may take, as
  `counted_seconds` counts them. store: a folder in which choices are kept and looked up, see
  `settings_store`; '' for none. options: how the rows will be ranked, as `ranking.rank_cases`
  takes it.
  """
  n_items, train, valid = len(item_titles), split.train, split.valid
  cases = valid and valid.select(splits.drawn_rows(valid, TUNING_USERS, 0))
  left_out = _impossible(train, item_titles)
  seconds = counted_seconds(train.lengths(), n_items, num_cases, len(cases) if cases else 0)
  slow, untuned = _beyond(seconds, left_out, minutes)
  left_out |= slow
  if not cases:
    untuned = {row: 'nobody is held out to choose by' for row, grid in GRIDS.items() if grid}
  kept = [row for row in GRIDS if row not in left_out]
  grids, known = {row: GRIDS[row] for row in kept}, split.for_choice
  key = settings_store.key_of(
      grids, sorted(untuned), list(item_titles), known.items, known.offsets, known.times,
      cases.users, *cases.histories, cases.targets, cases.as_set, LONGEST,
      {name: value for name, value in options.items() if name != 'block'}
  ) if store and cases else ''

  def fit(known: Interactions, settings: Mapping[str, Mapping[str, Any]]) -> tuple[dict, dict]:
    makers, rows, chosen = _makers(known, item_titles), {}, {}
    for row in kept:
      maker = (functools.partial(blend, rows['markov_k'], rows['text']) if row == 'id_text'
               else makers[row])
      if row in settings:
        rows[row] = maker(**settings[row])
      else:
        rows[row], chosen[row] = _choose(maker, GRIDS[row], None if row in untuned else cases,
                                         n_items, options)
    return rows, chosen
  rows, chosen = {}, settings_store.read(store, key, grids) if key else {}
  if not chosen:
    rows, chosen = fit(known, {})
    if key:
      settings_store.write(store, key, chosen)
  if not rows or split.refit is not None:
    rows, _ = fit(split.train, chosen)
  untuned = {row: why for row, why in untuned.items() if row in rows}
  return Rows(rows, chosen, left_out, untuned, {
      row: round(sum(seconds[row][:1 if row in untuned else 2]), 3) for row in rows})


def fitted(train: Interactions, item_titles: Sequence[str], row: str,
           settings: Mapping[str, Mapping[str, Any]]) -> ScoreFn:
  """One classical row with settings that were chosen before.

  train, item_titles: as of `score_functions`. row: of GRIDS. settings: {row: its settings}, those
  of the rows it is made of too, as `Rows` has them.
  """
  makers = _makers(train, item_titles)
  if row == 'id_text':
    first, second = (makers[part](**settings[part]) for part in MADE_OF[row])
    return blend(first, second, **settings[row])
  return makers[row](**settings[row])


def counted_seconds(lengths: Int[np.ndarray, ' U'], n_items: int, num_cases: int,
                    num_valid: int) -> dict[str, tuple[float, float]]:
  """What each row takes on two cores, by a count of operations.

  lengths: of training sequences. n_items: of the catalog. num_cases, num_valid: cases that are
  ranked, and by which settings are chosen. -> {row: (seconds with the first settings, seconds more
  to choose them)}
  """
  mean = float(lengths.mean()) + 2
  one_pass = {row: SLOWER.get(row, 1.0) * n_items / SCORES for row in GRIDS}
  for row in ('ease', 'ease:decay'):
    one_pass[row] += n_items * mean / PRODUCTS
  fit = dict.fromkeys(GRIDS, 0.0)
  for row in ('item_knn', 'item_knn:decay'):
    fit[row] = float((lengths.astype(float) ** 2).sum()) / PAIRS
  fit['ease'] = n_items ** 3 / SOLVED  # 'ease:decay' weighs what that has solved
  out = {}
  for row, grid in GRIDS.items():
    options = math.prod(map(len, grid.values()))
    out[row] = (fit[row] + num_cases * one_pass[row],
                (options - 1) * fit[row] + (options > 1) * options * num_valid * one_pass[row])
  return out


def _impossible(train: Interactions, item_titles: Sequence[str]) -> dict[str, str]:
  """{row that cannot be had: why}."""
  n_items, out = len(item_titles), {}
  lengths = train.lengths().astype(float)
  pairs = min(float(n_items) ** 2, float((lengths ** 2).sum()))
  for rows, need, instead in (
      (('ease', 'ease:decay'), 3 * 4 * n_items ** 2, 'item_knn'),
      (('item_knn', 'item_knn:decay'), PAIR_BYTES * pairs, '')):
    for row in rows:
      if need > MEMORY:
        out[row] = (f'it needs {need / 2**30:,.1f} GiB for {n_items:,} items'
                    + (f'; {row.replace("ease", instead)} stands in for it' if instead else ''))
  if train.times is None:
    out |= dict.fromkeys(TIMED, 'the data have no times')
  if not any(map(words, item_titles)):
    out |= dict.fromkeys(('text', 'id_text', *GRAPHS), 'no title has a word')
  return out


def _beyond(seconds: Mapping[str, tuple[float, float]], left_out: Mapping[str, str],
            minutes: float) -> tuple[dict[str, str], dict[str, str]]:
  """{row for which the budget has no room: why}, {row whose settings it cannot choose: why}."""
  left, out, untuned = 60 * minutes, {}, {}
  said = f'of two cores, and eval.classical_minutes={minutes:g} leave no room for it'
  for row in BUDGET:
    if row in left_out:
      continue
    if gone := [part for part in MADE_OF.get(row, ()) if part in out or part in left_out]:
      out[row] = f'it is made of {" and ".join(gone)}, left out too'
    elif seconds[row][0] > left:
      out[row] = f'it takes about {seconds[row][0] / 60:,.1f} minutes {said}'
    else:
      left -= seconds[row][0]
  for row in BUDGET:
    if row in out or row in left_out:
      continue
    if row == 'ease:decay' and 'ease' in untuned:
      untuned[row] = untuned['ease']
    elif seconds[row][1] > left:
      untuned[row] = f'the choice takes about {seconds[row][1] / 60:,.1f} minutes more {said}'
    else:
      left -= seconds[row][1]
  return out, untuned


def _makers(train: Interactions, item_titles: Sequence[str]) -> dict[str, Callable[..., ScoreFn]]:
  n = len(item_titles)

  @functools.cache
  def shared():
    return _shared_users(train, n)

  @functools.cache
  def weights(l2):
    return _ease_weights(train, n, l2)

  def knn(decay, **how):
    return _linear(_neighbors(shared(), **how), None, decay)

  def ease_row(l2, decay):
    return _linear(weights(l2), None, decay)
  return {'pop_recent': functools.partial(baselines.recent_popularity, train, n),
          'pop_decay': functools.partial(baselines.decayed_popularity, train, n),
          'markov': functools.partial(markov, train, n),
          'markov_k': functools.partial(markov_k, train, n),
          'item_knn': knn, 'item_knn:decay': knn, 'ease': ease_row, 'ease:decay': ease_row,
          'text': functools.partial(text, item_titles),
          **{row: functools.partial(graph, train, item_titles, around)
             for row, around in GRAPHS.items()}}


def _choose(maker: Callable[..., ScoreFn], grid: Mapping[str, Sequence[Any]], cases: Cases | None,
            n_items: int, options: Mapping[str, Any]) -> tuple[ScoreFn, dict[str, Any]]:
  """The row, and its settings, that ranks `cases` best by NDCG@10, the first of equal ones."""
  choices = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
  best_row, best_settings = maker(**choices[0]), choices[0]
  if cases is None or not len(cases) or len(choices) == 1:
    return best_row, best_settings

  def ndcg(row):
    return ranking.mean_ndcg(ranking.rank_cases(row, cases, n_items, **options), cases)
  best = ndcg(best_row)
  for settings in choices[1:]:
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
  return _linear(_neighbors(_shared_users(train, n_items), shrink, neighbors), None, decay)


def _shared_users(train: Interactions, n_items: int) -> sp.csr_array:
  """How many users met both of two items, in the diagonal those of each."""
  met = incidence(train, n_items)
  return (met.T @ met).tocsr()


def _neighbors(shared: sp.csr_array, shrink: float, neighbors: int) -> sp.csr_array:
  norm = np.sqrt(shared.diagonal())
  both = shared.tocoo()
  row, column = both.coords
  value = both.data / (norm[row] * norm[column] + shrink)
  near = sp.csr_array((np.where(row == column, 0.0, value), (row, column)), shape=both.shape)
  near.eliminate_zeros()
  return _keep_largest(near, neighbors) if neighbors else near


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


def graph(train: Interactions, item_titles: Sequence[str],
          around: Sequence[tuple[int, Sequence[int]]]) -> ScoreFn:
  """TGH: lists of ten out of rings around the last items, in the graph of what followed what.

  Ring 1 holds what followed an item in training, ring 2 what followed that, ring 3 the rest. Inside
  a ring the titles nearest to the item's come first (cosine of TF-IDF); in ring 1, 0.5 * ln(1 +
  times followed), divided by its largest value of that item, is added. Each ring has fixed places;
  what a short one leaves goes to the next best of the rings before it, then to anything left over.
  Items of the history never come, and nothing is drawn at random.

  The row is a list: its items score from 10 down, all others 0, so that a target outside ties with
  the whole catalog and, as ties count against it, is a miss at any cut-off. An empty history has
  the most popular items. Where a history has one item, that stands for the second last too.

  train: the training sequences. item_titles: of items 1..N in order. around: (items back from the
  end of the history, places for each ring around that item). arXiv 2605.07125.
  """
  n, counts = len(item_titles), _item_counts(train, len(item_titles))
  vectors, follow = tf_idf(item_titles), transitions(train, n)
  step: Any = follow.astype(np.float32)
  by_word, bonus = vectors.T.tocsr(), follow.copy()
  step.data[:] = 1.0
  bonus.data = np.log1p(bonus.data)
  largest = bonus.max(1).toarray().ravel()
  bonus = sp.csr_array(
      sp.diags_array(np.divide(0.5, largest, where=largest > 0, out=np.zeros(n))) @ bonus)
  places = sum(sum(rings) for _, rings in around)

  def score(items, offsets):
    items, offsets = np.asarray(items), np.asarray(offsets)
    scores = np.zeros((len(offsets) - 1, n), np.float32)
    taken = history_weights(items, offsets, n, 1.0).toarray() > 0
    empty = np.diff(offsets) == 0
    known = np.append(items, 1)  # any item for an empty history, which has another list
    first = places
    for back, budget in around:
      item = known[np.maximum(offsets[1:] - back, offsets[:-1])] - 1
      one = step[item].toarray() > 0
      two = ((step[item] @ step).toarray() > 0) & ~one
      near = (vectors[item] @ by_word).toarray()
      rings = [_best(value, ring & ~taken, min(sum(budget), n)) for value, ring in (
          (near + bonus[item].toarray(), one), (near, two), (near, ~(one | two)))[:len(budget)]]
      for row, of_rings in enumerate(zip(*rings)):
        chosen = _fill([ring[ring >= 0].tolist() for ring in of_rings], budget)
        scores[row, chosen] = first - np.arange(len(chosen))
        taken[row, chosen] = True
      first -= sum(budget)
    scores[empty] = counts / (counts.max() + 1)
    return scores
  return score


def _best(values: Float[np.ndarray, 'B N'], allowed: Bool[np.ndarray, 'B N'],
          k: int) -> Int[np.ndarray, 'B K']:
  """The columns of the k largest that are allowed, of equal ones the lower; -1 where none is left.
  """
  return np.asarray(_top(jnp.asarray(values, jnp.float32), jnp.asarray(allowed), k))


@functools.partial(jax.jit, static_argnames='k')
def _top(values: Float[Array, 'B N'], allowed: Bool[Array, 'B N'], k: int) -> Int[Array, 'B K']:
  best, columns = jax.lax.top_k(jnp.where(allowed, values, -jnp.inf), k)
  return jnp.where(best > -jnp.inf, columns, -1)


def _fill(rings: Sequence[list[int]], budget: Sequence[int]) -> list[int]:
  """So many items of each ring; the places of a short one go to what rings before it left over."""
  chosen, left = [], []
  for ring, room in zip(rings, budget):
    given = max(0, min(len(left), room - len(ring)))
    chosen += left[:given] + ring[:room - given]
    left = left[given:] + ring[room - given:]
  return (chosen + left)[:sum(budget)]


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
    weights = history_weights(items, offsets, table.shape[0], decay, longest)
    found: Any = weights.astype(table.dtype) @ table  # of one type, or the table would be copied
    dense = found.toarray() if sp.issparse(found) else found
    return (dense if back_off is None else dense + back_off).astype(np.float32)
  return score
