"""What ranks and lists are worth: per-case metrics, groups of cases, properties of the lists.

With one target a case, recall at K equals the hit rate, so only HR is named. Where a question has
several targets, each is a case, and a user's figure is the mean over the cases: HR@K is then the
share of the targets inside K, which is recall.

Letters of shapes: U cases or users, N items, K items of a list.
"""
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Num

from recjax.errors import ConfigError, DataError

KS = (1, 3, 5, 10, 20, 50)
GROUPS = ('head', 'mid', 'tail', 'short', 'long')


def per_case(ranks: Num[np.ndarray, '...'] | Sequence, ks: Iterable[int] = KS,
             set_sizes: Int[np.ndarray, ' U'] | None = None) -> dict[str, Float[np.ndarray, ' U']]:
  """HR@K, NDCG@K = 1 / log2(rank + 2) inside the first K, and MRR = 1 / (rank + 1) without a cut.

  ranks: 0 is best; half ranks of tie='mean' count as they are. ks: the cut-offs. set_sizes: how
  many right answers the question of each case has, None for one; NDCG is then so scaled that its
  mean over a question's cases has the best list's gain below it. -> {name: a value of each case}.
  Raises DataError for no ranks, negative or NaN ones, ConfigError for a K below 1.
  """
  ranks = np.asarray(ranks, np.float64)
  if ranks.ndim != 1 or not len(ranks):
    raise DataError(f'ranks have shape {ranks.shape}; they must be a non-empty vector, one a case')
  if not (np.isfinite(ranks) & (ranks >= 0)).all():
    raise DataError(f'ranks reach from {ranks.min()} to {ranks.max()}; they must be 0 or more')
  if min(ks, default=0) < 1:
    raise ConfigError(f'cut-offs {tuple(ks)} must be 1 or more')
  gain = 1 / np.log2(ranks + 2.0)
  values = {}
  for k in ks:
    values[f'HR@{k}'] = (ranks < k).astype(np.float64)
    values[f'NDCG@{k}'] = np.where(ranks < k, gain * _scale(set_sizes, k), 0.0)
  return values | {'MRR': 1 / (ranks + 1.0)}


def _scale(set_sizes: Int[np.ndarray, ' U'] | None, k: int) -> Float[np.ndarray, ' U'] | float:
  """Targets of a question over the gain of its best list of k."""
  if set_sizes is None:
    return 1.0
  best = np.cumsum(1 / np.log2(np.arange(k) + 2.0))
  return set_sizes / best[np.minimum(set_sizes, k) - 1]


def groups(
    targets: Int[np.ndarray, ' U'] | Sequence[int], counts: Int[np.ndarray, ' N'] | Sequence[int],
    lengths: Integer[np.ndarray, ' L'] | Sequence[int],
) -> dict[str, Bool[np.ndarray, ' U']]:
  """Which cases have a head, mid or tail target, and which a short or long history.

  Items are ordered by training interactions, most first, ties by lower index, and cut where a
  third and two thirds of all interactions are passed: an item belongs where its first interaction
  falls, so head is few items and tail is many, each near a third of the traffic. Items without
  interactions are tail. Short histories are those up to the median length, long the rest.
  targets: 1..N. counts: training interactions of each item. lengths: of the histories. -> the cases
  of each of GROUPS. Raises DataError for no cases, or unequal numbers of them.
  """
  targets, counts, lengths = (np.asarray(x) for x in (targets, counts, lengths))
  if len(targets) != len(lengths) or not len(targets):
    raise DataError(f'{len(targets)} targets and {len(lengths)} lengths; give one of each a case')
  order = np.argsort(-counts, kind='stable')
  before = np.zeros(len(counts), np.int64)
  before[order] = np.cumsum(counts[order]) - counts[order]
  # 3 * before against the total keeps the cut exact; an unseen item starts where all are passed.
  third = np.minimum(3 * before // max(1, int(counts.sum())), 2)
  third = np.where(counts > 0, third, 2)[targets - 1]
  short = lengths <= np.median(lengths)
  return {'head': third == 0, 'mid': third == 1, 'tail': third == 2, 'short': short, 'long': ~short}


def list_properties(
    items: Integer[np.ndarray, '...'] | Sequence[Sequence[int]],
    counts: Num[np.ndarray, ' N'] | Sequence[int],
    histories: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
  """Properties of top-K lists over all users, as single numbers.

  items: (U, K), 1..N; 0 is an empty place and counts nowhere; anything else is an answer that is
  not in the catalog. counts: training interactions of each item. histories: (flat items, offsets),
  one a list, for the rate of items the user had already. ->
    coverage           share of the catalog that stands in any list
    Gini               of how often each item is recommended: 0 all alike, near 1 a few get all
    novelty            mean -log2 of an item's share of interactions (one added to each count)
    out_of_catalog   share of answers that are no item
    repeat             share of answers that stand earlier in the same list
    seen               share of answers that stand in the user's history (with histories only)
  Raises DataError where there is no answer at all.
  """
  items, counts = np.asarray(items), np.asarray(counts)
  answers = items != 0
  total, n_items = int(answers.sum()), len(counts)
  if items.ndim != 2 or not total:
    raise DataError(f'lists of shape {items.shape} hold no answer; give (users, K) item indices')
  known = answers & (items > 0) & (items <= n_items)
  shown = np.bincount(items[known], minlength=n_items + 1)[1:]
  surprise = -np.log2((counts + 1) / (counts.sum() + n_items))
  ordered = np.sort(items, axis=1)
  repeats = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != 0)
  values = {
      'coverage': float((shown > 0).mean()),
      'Gini': gini(shown),
      'novelty': float(shown @ surprise / shown.sum()) if shown.any() else 0.0,
      'out_of_catalog': 1 - int(known.sum()) / total,
      'repeat': int(repeats.sum()) / total,
  }
  if histories is not None:
    values['seen'] = int(_seen(items, known, *histories, n_items).sum()) / total
  return values


def concentration(items: Integer[np.ndarray, 'U K'], counts: Integer[np.ndarray, ' N']
                  ) -> dict[str, float]:
  """Whether lists of different users are one list: what a collapsed policy shows.

  items: 1..N, 0 for an empty place. counts: training interactions of each item. ->
    same_first    share of lists that begin with the most frequent first item
    first_items   share of the catalog that begins a list
    top_percent   share of answers among the one percent of items with most interactions
  """
  first = np.bincount(items[:, 0], minlength=len(counts) + 1)[1:]
  popular = np.argsort(-counts, kind='stable')[:max(1, len(counts) // 100)] + 1
  answers = items[items > 0]
  return {'same_first': float(first.max() / max(1, first.sum())),
          'first_items': float((first > 0).mean()),
          'top_percent': float(np.isin(answers, popular).mean()) if len(answers) else 0.0}


def gini(shown: Num[np.ndarray, ' N']) -> float:
  """Inequality of counts, none negative: 0 where all are equal, (N - 1) / N at the most.

  shown: how often each item is recommended.
  """
  n, total = len(shown), shown.sum()
  if not total:
    return 0.0
  return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(shown) / (n * total))


def _seen(items: Integer[np.ndarray, 'U K'], known: Bool[np.ndarray, 'U K'], flat: np.ndarray,
          offsets: np.ndarray, n_items: int) -> Bool[np.ndarray, 'U K']:
  """Which known answers stand in their user's history."""
  if len(offsets) != len(items) + 1:
    raise DataError(f'{len(offsets) - 1} histories for {len(items)} lists; give one for each')
  owner = np.repeat(np.arange(len(items), dtype=np.int64), np.diff(offsets))
  place = np.arange(len(items), dtype=np.int64)[:, None] * (n_items + 1)
  return known & np.isin(place + items, owner * (n_items + 1) + flat)
