"""Ranks among sampled items, for parity with old published tables only.

Sampled metrics are far higher than those of full ranking and may order methods otherwise (Krichene
and Rendle, KDD 2020), so every figure made here says so in its protocol.

Letters of shapes: U cases, N items, R items that are drawn for a case.
"""
import numpy as np
from jaxtyping import Int, Num

from recjax.data.dataset import Interactions
from recjax.data.splits import Cases
from recjax.errors import ConfigError
from recjax.evaluation import ranking, ties
from recjax.protocols import ScoreFn

PROTOCOLS = ('uniform100', 'uniform100_sasrec', 'uniform99', 'pop100')


def protocol(how: str) -> str:
  """The sentence that stands beside a sampled figure.

  how: one of PROTOCOLS. Raises ConfigError for another name.
  """
  if how not in PROTOCOLS:
    raise ConfigError(f'eval.sampled={how!r}; choose one of {", ".join(PROTOCOLS)}')
  count = 99 if how == 'uniform99' else 100
  law = 'by popularity' if how == 'pop100' else 'uniformly'
  return (f'SAMPLED ranking among {count} items drawn {law} and the target ({how}); not comparable '
          'with full ranking')


def draw(how: str, cases: Cases, counts: Num[np.ndarray, ' N'], seed: int,
         train: Interactions | None = None) -> Int[np.ndarray, 'U R']:
  """The items that each target is ranked among, 99 or 100.

  how: one of PROTOCOLS. cases: of the test. counts: training interactions, the law of 'pop100'.
  seed: of the draws. train: the items that 'uniform100_sasrec' leaves out alone, so the validation
  item may be drawn, as in the authors' code (github.com/kang205/SASRec). -> items 1..N without the
  target; without repeats but in 'uniform100_sasrec'. Raises ConfigError where there are too few.
  """
  protocol(how)
  size, n = 99 if how == 'uniform99' else 100, len(counts)
  rng = np.random.default_rng(seed)
  share = counts / counts.sum() if how == 'pop100' else np.full(n, 1 / n)
  edges = np.cumsum(share)
  drawn = np.empty((len(cases), size), np.int32)
  for case in range(len(cases)):
    seen = cases.history(case) if train is None else train.history(int(cases.users[case]))
    taken = {*seen.tolist(), int(cases.targets[case])}
    if n - len(taken) < size or how == 'pop100' and (counts > 0).sum() - len(taken) < size:
      raise ConfigError(f'{how} draws {size} items besides a history of {len(seen)}, but there are '
                        f'only {n}; use full ranking')
    items = []
    while len(items) < size:
      place = np.searchsorted(edges, rng.uniform(size=2 * size) * edges[-1], side='right')
      for item in (np.minimum(place, n - 1) + 1).tolist():
        if item not in taken and len(items) < size:
          items.append(item)
          if how != 'uniform100_sasrec':
            taken.add(item)
    drawn[case] = items
  return drawn


def rank_cases(score_fn: ScoreFn, cases: Cases, n_items: int, drawn: Int[np.ndarray, 'U R'],
               block: int = 0) -> Int[np.ndarray, ' U']:
  """The target's place among the drawn items; ties count against it.

  score_fn, cases, n_items, block: as in `ranking.rank_cases`. drawn: of `draw`. -> 0 is best
  """
  flat, offsets = cases.histories
  ranks = []
  for rows, part, cuts, _ in ranking.blocks(flat, offsets, n_items, block, False):
    scores = np.asarray(ranking.at_times(score_fn, cases, rows)(part, cuts))
    target_scores = np.take_along_axis(scores, cases.targets[rows][:, None] - 1, 1)
    drawn_scores = np.take_along_axis(scores, drawn[rows] - 1, 1)
    ranks.append(np.asarray(ties.count_ahead(drawn_scores, target_scores, 'pessimistic')))
  return np.concatenate(ranks)[:len(cases)].astype(np.int32)
