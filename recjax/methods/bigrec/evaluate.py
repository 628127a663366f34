"""What both methods leave: result files with the assistant's row and what stands beside."""
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset, Interactions
from recjax.data.splits import Cases
from recjax.errors import ConfigError
from recjax.evaluation import beside, metrics, ranking, statistics
from recjax.evaluation import results as results_lib
from recjax.methods.bigrec import instruction_data
from recjax.methods.bigrec.instruction_data import Data
from recjax.protocols import ScoreFn
from recjax.training import continuation
from recjax.training.workdir import Workdir, find_stage

POLICIES = ('exact_id', 'best')


def means(ranks: np.ndarray, cases: Cases | None,
          ks: Sequence[int] = metrics.KS) -> dict[str, float]:
  """Metrics over users, by which settings are chosen. ranks: of the cases. cases: whose they are,
  None where each counts alike. ks: the cut-offs. -> {metric: mean}"""
  each = metrics.per_case(ranks, ks, cases.set_sizes() if cases else None)
  owners = cases.owners() if cases else None
  return {m: round(float(statistics.by_user(v, owners).mean()), 6) for m, v in each.items()}


def save(work: Workdir, cfg: ConfigDict, data: Data, cases: Cases, main: str,
         ranks: dict[str, np.ndarray], lists: tuple[np.ndarray, np.ndarray], score: ScoreFn | None,
         ks: Sequence[int] = metrics.KS, **more: Any) -> dict[str, Any]:
  """Adds the assistant's row and `beside.rank_beside`, and writes the files of `results.save`.

  cases: the test cases that were asked. ranks: {row: (n,)}. score: the assistant's score function,
  or None. work: the Workdir. cfg: the run's config. data: the Data. main: the first row. lists: its
  items and scores. ks: cut-offs. more: further entries of results.json. -> counts
  """
  n, known = len(data.catalog), data.cases.known
  mask_history = instruction_data.masked(cfg, data)
  if score is not None:
    ranks['sasrec'] = ranking.rank_cases(score, cases, n, mask_history=mask_history)
  dataset, test = Dataset(data.name, data.catalog, known, data.fingerprint, data.notes), cases
  if not data.cases.by_user:  # each case counts alike, as if it were a user
    names = tuple(case_names(known.users, cases.users))
    dataset = dataclasses.replace(
        dataset, interactions=Interactions(names, known.items, known.offsets))
    test = dataclasses.replace(cases, users=np.arange(len(cases), dtype=np.int32))
  _, protocol = splits.sample_cases(data.cases.test, cfg.eval.max_test_users, data.cases.protocol)
  split = splits.Split(known, data.cases.valid, test, protocol)
  others, facts = beside.rank_beside(split, data.catalog, cfg.eval, cfg.seed, work.log,
                                     mask_history=mask_history)
  results = results_lib.save(
    work.folder, dataset, split, main, ranks | others, lists,
    ranking.protocol(n, protocol, mask_history), (cfg.seed,), ks, audited=False, notes=data.notes,
    **more, **facts, **continuation.facts(find_stage(work.path, 'tune')))
  return {
    'cases': len(cases),
    **{f'{row} HR@10': round(cells['HR@10']['value'], 4) for row, cells in results['rows'].items()
       if row in ranks}}


def case_names(users: Sequence[str], rows: np.ndarray) -> list[str]:
  """A user's name for each case; where a user is asked more than once, with a number.

  users: the users' names. rows: user rows of the cases.
  """
  count, out = {}, []
  for r in rows:
    name = users[r]
    count[name] = count.get(name, 0) + 1
    out.append(name if count[name] == 1 else f'{name}#{count[name]}')
  return out


def rank_in(items: Int[np.ndarray, 'n K'], targets: Int[np.ndarray, ' n'], titles: Sequence[str],
            policy: str, last: int) -> Int[np.ndarray, ' n']:
  """Ranks in lists that end early: the place, or `last` where the target is missing.

  items: (n, K) int32, 0 for none. titles: by index - 1. policy: 'exact_id' wants that very item,
  'best' any item of its title, titles counted once. targets: 1..N. -> (n,) int32
  """
  if policy not in POLICIES:
    raise ConfigError(f'eval.duplicate_titles={policy!r}; choose one of {", ".join(POLICIES)}')
  if policy == 'exact_id':
    return ranking.list_ranks(items, targets, last)
  out = np.full(len(items), last, np.int32)
  for b, (row, target) in enumerate(zip(items, targets)):
    names = list(dict.fromkeys(titles[i - 1] for i in row if i))
    if titles[target - 1] in names:
      out[b] = names.index(titles[target - 1])
  return out


def likeness(items: Int[np.ndarray, 'n K'], titles: Sequence[str], most: int = 10) -> float:
  """How alike the titles of a list are: the mean over pairs of the share of common words.

  items: (n, K), 0 for none. most: places of a list that count. -> float in 0 .. 1
  """
  words = [frozenset(t.lower().split()) for t in titles]
  values = []
  for row in items[:, :most]:
    title_words = [words[i - 1] for i in row if i]
    values += [len(title & other) / max(1, len(title | other))
               for i, title in enumerate(title_words) for other in title_words[:i]]
  return float(np.mean(values)) if values else 0.0
