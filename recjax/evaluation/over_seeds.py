"""Runs that differ in their seed alone, as one method: what holds for other users and seeds.

Letters of shapes: U users, S seeds.
"""
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from recjax.evaluation import classical, statistics

DRAWS_NOTHING = ('popularity', 'recency', *classical.GRIDS)  # rows that no seed changes
Values = Mapping[str, Float[np.ndarray, ' U']]  # {metric: a value of each user}


def families(runs: Mapping[str, Mapping], paths: Mapping[str, pathlib.Path]) -> dict[str, str]:
  """What to call each run together with those that differ from it in their seed alone.

  runs: {name: 'settings' of its config}. paths: {name: folder}. -> {name: name of its family}: its
  own where it has none, the folder above where the runs are those of a sweep, else the first run.
  """
  alike: dict[str, list[str]] = {}
  for name, run in runs.items():
    settings = {k: v for k, v in run['settings'].items() if k not in ('seed', 'seeds')}
    key = json.dumps(settings, sort_keys=True, default=str) if settings else name
    alike.setdefault(key, []).append(name)
  for key, names in list(alike.items()):  # the same seed twice is one run, and stays two rows
    drawn = [seed for name in names for seed in _seeds_of(runs[name]['settings'])]
    if len(set(drawn)) < len(drawn):
      del alike[key]
      alike |= {f'{key} {name}': [name] for name in names}
  out = {}
  for names in alike.values():
    resolved = [paths[name].resolve() for name in names]
    swept = len(names) > 1 and all(path.name.startswith('seed=') for path in resolved) and len(
        {path.parent for path in resolved}) == 1
    out |= dict.fromkeys(names, resolved[0].parent.name if swept else names[0])
  taken = [out[names[0]] for names in alike.values()]
  return {name: family if taken.count(family) == 1 else name for name, family in out.items()}


def _seeds_of(settings: Mapping[str, Any]) -> list[Any]:
  """The seeds that a run trained."""
  first, count = settings.get('seed'), settings.get('seeds', 1)
  if not isinstance(first, int) or not isinstance(count, int):
    return [str(first)]
  return list(range(first, first + count))


def row_of(row: str) -> str:
  """A row's name without the seed of its line. row: e.g. 'sasrec:seed=1'."""
  return row.partition(':seed=')[0]


def merged(lines: Mapping[str, tuple[str, str, Values]], alone: Sequence[str]
           ) -> tuple[dict[str, Values], dict[str, str], dict[str, list[Values]]]:
  """Lines of one row and family as one row: users' means over the seeds.

  lines: {full name: (family, row, values)}. alone: full names, or lines of a seed, that stay as
  they are. -> {full name:
  values}, {full name: row}, {full name of a row of several lines: the values of each}
  """
  groups: dict[str, list[str]] = {}
  for full, (family, row, _) in lines.items():
    kept = full in alone or row in alone and ':seed=' in row
    groups.setdefault(full if kept else f'{family}:{row_of(row)}', []).append(full)
  means, rows, several = {}, {}, {}
  for name, fulls in groups.items():
    each = [lines[full][2] for full in fulls]
    means[name] = {m: np.mean([values[m] for values in each], 0) for m in each[0]}
    rows[name] = lines[fulls[0]][1] if name == fulls[0] else row_of(lines[fulls[0]][1])
    if len(each) > 1:
      several[name] = each
  return means, rows, several


def intervals(several: Mapping[str, list[Values]], owners: Int[np.ndarray, ' C'] | None = None
              ) -> dict[str, dict[str, dict]]:
  """`statistics.two_way` of each metric of each row of several lines. several: of `merged`. owners:
  as of `statistics.by_user`."""
  return {row: {m: statistics.two_way(np.stack(
      [statistics.by_user(values[m], owners) for values in each])) for m in each[0]}
          for row, each in several.items()}


def widen(cells: dict[str, dict], spread: Mapping[str, Mapping]) -> None:
  """Puts the ends of intervals over users and seeds, where there are such, in the place of those
  over users. cells: {metric: {'low', 'high', ...}}, changed. spread: of one row of `intervals`."""
  for metric, found in spread.items():
    if found['low'] is not None:
      cells[metric].update(low=found['low'], high=found['high'])


def verdict(rows: Mapping[str, Mapping], tests: Mapping[str, Mapping],
            spread: Mapping[str, Mapping], metric: str, against: str = '') -> str:
  """Who leads and whom it is told apart from, as the sentence that a reader needs first.

  rows: {row: {metric: {'value', ...}}}. tests: {'a>b': {metric: p}}, corrected. spread: of
  `intervals`. metric: which. against: the row that all were tested against, '' where all pairs
  were. Two trained rows are told apart where p is below .05 and the difference above
  `statistics.seed_noise`. '' for a single row, and where the metric was not counted.
  """
  if len(rows) < 2 or not all(metric in cells for cells in rows.values()):
    return ''
  best = against or max(rows, key=lambda row: rows[row][metric]['value'])
  value = rows[best][metric]['value']
  above, below, level, unknown = [], [], [], False
  for row in rows:
    p = (tests.get(f'{row}>{best}') or tests.get(f'{best}>{row}') or {}).get(metric)
    if row == best or p is None:
      continue
    noise = statistics.seed_noise(*(_seeds(name, metric, spread) for name in (row, best)))
    unknown |= noise is None and p < .05
    apart = p < .05 and abs(rows[row][metric]['value'] - value) > (noise or 0)
    (level if not apart else above if rows[row][metric]['value'] > value else below).append(row)
  lead = f'{best} has {"" if against else "the highest "}{metric}{"" if against else ","}'
  said = [f'{lead} {value:.4f}{_over(best, spread)}']
  said += [f'it is ahead of {_listed(below)}'] if below else []
  said += [f'behind {_listed(above)}'] if above else []
  said += [f'not told apart from {_listed(level)}'] if level else []
  by_seeds = ', and the difference above what seeds alone make' if spread else ''
  end = f' (paired test, Holm-corrected p below .05{by_seeds})' if below or above or level else ''
  more = '; rows of one seed may turn around with another' if unknown else ''
  return f'{"; ".join(said)}{end}{more}'


def _seeds(row: str, metric: str, spread: Mapping[str, Mapping]) -> dict[str, Any]:
  if row in spread:
    return spread[row][metric]
  return {'seeds': 0 if row_of(row).partition(':')[2] in DRAWS_NOTHING or row in DRAWS_NOTHING
          else 1, 'sd_of_seeds': None}


def _over(row: str, spread: Mapping[str, Mapping]) -> str:
  return f' (mean over {next(iter(spread[row].values()))["seeds"]} seeds)' if row in spread else ''


def _listed(names: Sequence[str]) -> str:
  return ', '.join(names[:-1]) + (' and ' if len(names) > 1 else '') + names[-1]
