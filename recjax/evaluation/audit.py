"""What a strict reviewer asks of a data set before any model: is it in order, does the test leak?

Each check gives figures, a level and a sentence. Leave-one-out is looked at as
`recjax.data.splits.leave_one_out` makes it: the training part is all but each user's last two
items, the target is the last one. Checks of the clock need times and are left out without them.

Letters of shapes: M interactions, U users, N items, C test cases, R interactions of training.
"""
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Bool, Int

from recjax.data import splits, times
from recjax.data.dataset import Dataset, Interactions
from recjax.data.splits import Cases, Split
from recjax.errors import DataError
from recjax.evaluation import classical, ranking
from recjax.evaluation.metrics import per_case

LEVELS = ('error', 'warning', 'note', 'ok')
SHUFFLES = 5          # orders of every user's items that the true one is compared with
SUPPORT, CONFIDENCE = 5, .1  # a rule comes more often, and after this share of its beginnings
MARKOV = dict(decay=.7, shrink=10., second=.5)  # of the model whose histories are shuffled
MOST_CASES = 25_000   # test users at most whose histories are shuffled
QUICK = 80_000_000    # scores of a pass up to which a run's report has the shuffle test
DAY = 86400  # seconds


@dataclasses.dataclass(frozen=True)
class Check:
  """One look at the data. name: what was looked at. figures: values by name, shares from 0 to 1
  unless named otherwise. level: one of LEVELS. sentence: what they mean, for a reader."""
  name: str
  figures: dict[str, float]
  level: str
  sentence: str


def brief(dataset: Dataset) -> list[dict[str, Any]]:
  """What `audit` finds, as results.json holds it: for a run's report, so within a few seconds.

  dataset: the data set. The shuffle test is left to `recjax doctor` where it ranks more than
  QUICK scores.
  """
  cases = min(int((dataset.interactions.lengths() > 2).sum()), MOST_CASES)
  quick = cases * len(dataset.catalog) <= QUICK and len(dataset.interactions.items) <= QUICK // 500
  return [dataclasses.asdict(check) for check in audit(dataset, shuffle=quick)]


def audit(dataset: Dataset, seed: int = 0, shuffle: bool = True) -> list[Check]:
  """All checks that the data allow, the gravest first.

  dataset: the data set, in the order of its file. seed: of the shuffled orders. shuffle: whether
  the order is tested by shuffling, which takes nearly all of the time. Shuffle tests and
  levels after "Does It Look Sequential?" (RecSys 2024, arXiv 2408.12008), and SplitLight (arXiv
  2602.19339). Seconds for a million interactions; N^2 is never held.
  """
  split = splits.leave_one_out(dataset.interactions)
  checks = [*_sizes(dataset, split), *_repeats(dataset.interactions), *_cold(split),
            *_copies(dataset.interactions)]
  if len(split.test):
    checks += [*_order(dataset, split, seed)] if shuffle else [Check(
        'order', {}, 'note', 'not tested by shuffling here, since it takes a while; `recjax doctor '
        'DATA --audit` does')]
    checks += _neighbors(dataset, split.train, seed)
  if dataset.interactions.times is None:
    checks.append(Check('times', {}, 'note', 'the data have none, so that ties, leaks from the '
                        'future and drift cannot be looked at; add `times` to the sequences'))
  else:
    checks += _clock(dataset.interactions, split)
  return sorted(checks, key=lambda check: LEVELS.index(check.level))


def _sizes(dataset: Dataset, split: Split) -> Iterator[Check]:
  data = dataset.interactions
  count, users, items = len(data.items), len(data), len(dataset.catalog)
  mean, density = count / max(users, 1), count / max(users * items, 1)
  small = count < 10_000 or mean < 4 or density < 1e-6
  yield Check('size', {'interactions': count, 'mean length': mean, 'density': density},
              'warning' if small else 'ok' if count >= 300_000 and mean >= 10 else 'note',
              'differences between models are told apart from about 300,000 interactions and ten a '
              'user on; below, report intervals and several seeds')
  tested = len(split.test)
  yield Check('test cases', {'cases': tested},
              'error' if not tested else 'ok' if tested >= 3_000 else 'note' if tested >= 1_500
              else 'warning',
              'nobody has the three items that a test wants' if not tested else
              f'{tested:,} users tell two models apart from a difference in HR@10 of about '
              f'{2.801585 * np.sqrt(.08 / tested):.3f} on, where one in twelve is hit by one alone')


def _repeats(data: Interactions) -> Iterator[Check]:
  same_user = _same_user(data)
  twice = same_user & (data.items[1:] == data.items[:-1])
  user = np.repeat(np.arange(len(data)), data.lengths())
  _, first = np.unique(np.stack([user, data.items]), axis=1, return_index=True)
  again = 1 - len(first) / max(len(data.items), 1)
  rows = float(twice.sum()) / max(len(data.items), 1)
  yield Check('repeats', {'twice in a row': rows, 'met before': again},
              'warning' if again > .3 else 'note' if again else 'ok',
              'no user meets an item twice' if not again else
              'history is masked in rankings by default, so that these targets cannot be hit; '
              'choose eval.mask_history=False where repeats are what is asked for')


def _cold(split: Split) -> Iterator[Check]:
  if not len(split.test):
    return
  share = float((~np.isin(split.test.targets, split.train.items)).mean())
  yield Check('cold targets', {'share': share},
              'ok' if share <= .03 else 'note' if share <= .15 else 'warning',
              'models of numbers cannot find items that training never met; report them apart')


def _copies(data: Interactions) -> Iterator[Check]:
  rows = [data.history(u).tobytes() for u in range(len(data)) if len(data.history(u)) >= 5]
  copies = len(rows) - len(set(rows))
  yield Check('identical users', {'users': copies},
              'warning' if copies > .01 * max(len(rows), 1) else 'note' if copies else 'ok',
              'users of five items and more whose sequences are equal: bots, shared accounts or '
              'copied rows; the target of one stands behind the same history of another' if copies
              else 'no two users of five items and more have the same sequence')


def _order(dataset: Dataset, split: Split, seed: int) -> Iterator[Check]:
  """The shuffle tests: rules that the true order holds, and what a chain loses without it."""
  data, draws = dataset.interactions, np.random.default_rng(seed)
  mixed = [dataclasses.replace(data, items=shuffled(data.items, data.offsets, draws))
           for _ in range(SHUFFLES)]
  figures = {}
  for n, name in ((2, 'pairs'), (3, 'triples')):
    figures[f'rules of {name}'] = rules(data, n)
    figures[f'rules of {name}, shuffled'] = float(np.mean([rules(other, n) for other in mixed]))
  n_items = len(dataset.catalog)
  score = classical.markov_k(split.train, n_items, **MARKOV)

  def quality(cases: Cases) -> float:
    ranks = ranking.rank_cases(score, cases, n_items)
    return float(per_case(ranks)['NDCG@10'].mean())
  cases = split.test.select(np.sort(draws.permutation(len(split.test))[:MOST_CASES]))
  items, offsets = cases.histories
  true = quality(cases)
  without = float(np.mean([quality(dataclasses.replace(
      cases, histories=(shuffled(items, offsets, draws), offsets))) for _ in range(SHUFFLES)]))
  change = without / true - 1 if true else 0.
  figures |= {'users': len(cases), 'NDCG@10': true, 'NDCG@10, shuffled': without, 'change': change}
  level = 'ok' if change < -.25 else 'note' if change < -.1 else 'warning'
  yield Check('order', figures, level, {
      'ok': 'sequential: a Markov chain loses more than a quarter when histories are shuffled',
      'note': 'weakly sequential: a Markov chain loses a tenth to a quarter when histories are '
              'shuffled',
      'warning': 'hardly sequential: shuffled histories do nearly as well, so that a model of '
                 'order has little to learn here'}[level])


def shuffled(items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' U1'],
             draws: np.random.Generator) -> Int[np.ndarray, ' M']:
  """Each user's items in an order drawn anew. items, offsets: ragged. draws: random numbers."""
  user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
  return items[np.lexsort((draws.random(len(items)), user))]


def rules(data: Interactions, n: int) -> int:
  """How many runs of n items come more than SUPPORT times and after more than CONFIDENCE of the
  places where their first n - 1 items stand. data: the sequences. n: 2 or 3."""
  whole, counts = _runs(data, n)
  begins, places = _runs(data, n - 1)
  both, where = np.unique(np.concatenate([begins, whole[:-1]], 1), axis=1, return_inverse=True)
  where = where.reshape(-1)
  total = np.bincount(where[:begins.shape[1]], places, minlength=both.shape[1])
  return int(((counts > SUPPORT) & (counts > CONFIDENCE * total[where[begins.shape[1]:]])).sum())


def _runs(data: Interactions, n: int) -> tuple[Int[np.ndarray, 'n G'], Int[np.ndarray, ' G']]:
  """The distinct runs of n items in the sequences, and how often each comes."""
  user = np.repeat(np.arange(len(data)), data.lengths())
  last = max(len(data.items) - n + 1, 0)
  inside = user[:last] == user[n - 1:]
  return np.unique(np.stack([data.items[k:last + k][inside] for k in range(n)]), axis=1,
                   return_counts=True)


def _neighbors(dataset: Dataset, train: Interactions, seed: int) -> Iterator[Check]:
  """How many items follow an item, and how alike the titles of neighbors are."""
  follow = classical.transitions(train, len(dataset.catalog))
  follow.sum_duplicates()
  degree = np.diff(follow.indptr)
  some = degree[degree > 0]
  if not len(some):
    return
  figures = {'successors an item': float(some.mean()), 'items of one successor':
             float((some == 1).mean())}
  vectors = classical.tf_idf(classical.titles(dataset.catalog))
  if vectors.nnz:
    start = np.flatnonzero(_same_user(train))
    one, two = train.items[start] - 1, train.items[start + 1] - 1
    other = np.random.default_rng(seed).permutation(two)
    near, far = (float(np.asarray(vectors[one].multiply(vectors[x]).sum(1)).mean())
                 for x in (two, other))
    figures |= {'cosine of titles': near, 'cosine of titles, pairs drawn': far}
  yield Check('neighbors', figures, 'ok',
              'few successors and like titles are what a graph of the last item or a mix of counts '
              'and titles lives on: put these rows beside every model')


def _clock(data: Interactions, split: Split) -> list[Check]:
  """Checks that need times."""
  return [check for part in (_ties, _shared, _leak, _drift) for check in part(data, split)]


def _ties(data: Interactions, split: Split) -> Iterator[Check]:
  tied = _same_user(data) & (np.diff(_times(data)) == 0)
  user = np.repeat(np.arange(len(data)), data.lengths())[1:]
  ends = data.offsets[split.test.users + 1]
  decides = float((_times(data)[ends - 1] == _times(data)[ends - 2]).mean()) if len(ends) else 0.
  share = float(tied.sum()) / max(len(data.items), 1)
  level = 'warning' if share > .25 or decides > .05 else 'note' if share > .05 else 'ok'
  yield Check('ties', {'interactions at the time of the one before': share, 'users with a tie':
                       len(np.unique(user[tied])) / max(len(data), 1),
                       'tests that a tie decides': decides}, level,
              'times order every user' if level == 'ok' else
              'where times are equal the order of the file decides what is asked: repeat the table '
              "with eval.tie_order='shuffle(0)' and print both")


def _shared(data: Interactions, split: Split) -> Iterator[Check]:
  """Targets that stand in their own user's training at the same time."""
  ends, found = data.offsets[split.test.users + 1] - 1, 0
  for end, user in zip(ends, split.test.users):
    rows = slice(data.offsets[user], end - 1)
    found += bool(((data.items[rows] == data.items[end])
                   & (_times(data)[rows] == _times(data)[end])).any())
  yield Check('copied targets', {'cases': found}, 'error' if found else 'ok',
              'the same item at the same time stands in training and as the target; remove copied '
              'rows' if found else 'no target stands in its own training at the same time')


def _leak(data: Interactions, split: Split) -> Iterator[Check]:
  """How much of training comes after the targets that it is judged by."""
  if not len(split.test):
    return
  figures = leak(data, split)
  worst = max(figures['targets leaked'], figures['mean share of training that is later'])
  yield Check('leave-one-out', figures, 'warning' if worst > .5 else 'note' if worst else 'ok',
              'training holds nothing that is later than a target' if not worst else
              f'{figures["targets leaked"]:.0%} of the targets are met in training at their time '
              f'or later, and {figures["mean share of training that is later"]:.0%} of training is '
              'later than a target on average: figures by leave-one-out know the future, so judge '
              'by a split in time as well')


def leak(data: Interactions, split: Split) -> dict[str, float]:
  """What leave-one-out's training knows of the time after its targets.

  data: all interactions, with times. split: of them, with test cases. -> figures by name: shares of
  targets unless named otherwise (SplitLight, arXiv 2602.19339, and arXiv 2507.16289)
  """
  train, test = split.train, split.test
  ends = data.offsets[test.users + 1]
  when, target = _times(data)[ends - 1], test.targets
  before = data.items[ends - 2]
  clock = np.sort(_times(train))
  later = 1 - np.searchsorted(clock, when, 'right') / len(clock)
  n = int(max(data.items.max(), target.max())) + 1
  first, last = np.full(n, np.iinfo(np.int64).max), np.full(n, np.iinfo(np.int64).min)
  np.minimum.at(first, train.items, _times(train))
  np.maximum.at(last, train.items, _times(train))
  met = np.unique(train.items)
  births = np.sort(first[met])
  warm = np.isin(target, met)
  figures = {
      'targets with later training': float((later > 0).mean()),
      'targets with a tenth later': float((later > .1).mean()),
      'targets with half later': float((later > .5).mean()),
      'mean share of training that is later': float(later.mean()),
      'targets leaked': float((warm & (last[target] >= when)).mean()),
      'targets not yet met by anybody': float((warm & (first[target] > when)).mean()),
      'items not yet there': float((1 - np.searchsorted(births, when, 'right') / len(met)).mean()),
      'items that begin after the median target': float((births > np.median(when)).mean())}
  return figures | _later_pairs(train, before, target, when, n)


def _later_pairs(train: Interactions, before: Int[np.ndarray, ' C'], target: Int[np.ndarray, ' C'],
                 when: Int[np.ndarray, ' C'], n: int) -> dict[str, float]:
  """Of the last steps that training knows: those that it knows from later, or from later alone."""
  start = np.flatnonzero(_same_user(train))
  codes = train.items[start].astype(np.int64) * n + train.items[start + 1]
  times = _times(train)[start + 1]
  order = np.lexsort((times, codes))
  codes, times = codes[order], times[order]
  asked = before.astype(np.int64) * n + target
  low, high = np.searchsorted(codes, asked), np.searchsorted(codes, asked, 'right')
  known = high > low
  if not known.any():
    return {'last steps known': 0.}
  return {'last steps known': float(known.mean()),
          'of these from later': float((times[high[known] - 1] > when[known]).mean()),
          'of these from later alone': float((times[low[known]] > when[known]).mean())}


def _drift(data: Interactions, split: Split) -> Iterator[Check]:
  low, high = np.quantile(_times(data), (.1, .9))
  n = int(data.items.max()) + 1
  old, new = (np.bincount(data.items[part], minlength=n)
              for part in (_times(data) <= low, _times(data) > high))
  either = (old + new) > 0
  constant = any(len(np.unique(x[either])) < 2 for x in (old, new))
  ranks: Any = scipy.stats.spearmanr(old[either], new[either]) if not constant else None
  drift = 0. if constant else float(ranks.statistic)
  ends = data.offsets[split.test.users + 1]
  gaps = _times(data)[ends - 1] - _times(data)[ends - 2]
  reach = int(_times(data).min()), int(_times(data).max())
  scale = times.find_scale(*reach)
  days = float(np.median(gaps)) / (scale.per_second or 1) / DAY if len(gaps) else 0.
  dates = [str(scale.shown(t)).partition(' ')[0] for t in reach]
  yield Check('drift', {'rank correlation of popularity': drift, 'median days to the target': days},
              'note' if drift < .3 else 'ok',
              f'from {dates[0]} to {dates[1]}; ' + (
                  'what is popular in the last tenth of the time is not what was in the first: '
                  'popularity in windows of time is the row to beat' if drift < .3 else
                  'popularity of the first and last tenth of the time go together'))


def _same_user(data: Interactions) -> Bool[np.ndarray, ' M_1']:
  """Whether each interaction but the first is of the user of the one before."""
  user = np.repeat(np.arange(len(data)), data.lengths())
  return user[1:] == user[:-1]


def _times(data: Interactions) -> Int[np.ndarray, ' M']:
  """The times of interactions. Raises DataError where there are none."""
  if data.times is None:
    raise DataError('these interactions have no times; add `times` to the sequences')
  return data.times
