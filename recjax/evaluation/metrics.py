"""What ranks and lists are worth: per-case metrics, groups of cases, properties of the lists.

With one target a case, recall at K equals the hit rate, so only HR is named.
"""
import numpy as np

from recjax.errors import ConfigError, DataError

KS = (1, 3, 5, 10, 20, 50)
GROUPS = ('head', 'mid', 'tail', 'short', 'long')


def per_case(ranks, ks=KS):
  """HR@K, NDCG@K = 1 / log2(rank + 2) inside the first K, and MRR = 1 / (rank + 1) without a cut.

  ranks: (n,), 0 is best; half ranks of tie='mean' count as they are. -> {name: (n,) float64}.
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
  found = {}
  for k in ks:
    found[f'HR@{k}'] = (ranks < k).astype(np.float64)
    found[f'NDCG@{k}'] = np.where(ranks < k, gain, 0.0)
  return found | {'MRR': 1 / (ranks + 1.0)}


def groups(targets, counts, lengths):
  """Which cases have a head, mid or tail target, and which a short or long history.

  Items are ordered by training interactions, most first, ties by lower index, and cut where a
  third and two thirds of all interactions are passed: an item belongs where its first interaction
  falls, so head is few items and tail is many, each near a third of the traffic. Items without
  interactions are tail. Short histories are those up to the median length, long the rest.
  targets: (n,) int32, 1..N. counts: (N,) training interactions. lengths: (n,). -> {name: (n,) bool}
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


def list_metrics(items, counts, histories=None):
  """Properties of top-K lists over all users, as single numbers.

  items: (n, K) int32, 1..N; 0 is an empty place and counts nowhere; anything else is an answer
  that is not in the catalogue. counts: (N,) training interactions. histories: (flat items,
  offsets), one a list, for the rate of items the user had already. ->
    coverage           share of the catalogue that stands in any list
    Gini               of how often each item is recommended: 0 all alike, near 1 a few get all
    novelty            mean -log2 of an item's share of interactions (one added to each count)
    out_of_catalogue   share of answers that are no item
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
  found = {
      'coverage': float((shown > 0).mean()),
      'Gini': gini(shown),
      'novelty': float(shown @ surprise / shown.sum()) if shown.any() else 0.0,
      'out_of_catalogue': 1 - int(known.sum()) / total,
      'repeat': int(repeats.sum()) / total,
  }
  if histories is not None:
    found['seen'] = int(_seen(items, known, *histories, n_items).sum()) / total
  return found


def gini(shown):
  """Inequality of counts (N,), none negative: 0 where all are equal, (N - 1) / N at the most."""
  n, total = len(shown), shown.sum()
  if not total:
    return 0.0
  return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(shown) / (n * total))


def _seen(items, known, flat, offsets, n_items):
  """Which known answers stand in their user's history. -> (n, K) bool"""
  if len(offsets) != len(items) + 1:
    raise DataError(f'{len(offsets) - 1} histories for {len(items)} lists; give one for each')
  owner = np.repeat(np.arange(len(items), dtype=np.int64), np.diff(offsets))
  place = np.arange(len(items), dtype=np.int64)[:, None] * (n_items + 1)
  return known & np.isin(place + items, owner * (n_items + 1) + flat)
