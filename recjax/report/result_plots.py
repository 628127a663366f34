"""The pictures of a table of results: all rows, lists of every length, quality against cost.

Each is shown in a page and kept as a file: SVG for a paper, CSV with the numbers that it draws.
"""
import csv
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from recjax import run_files
from recjax.errors import WorkdirError
from recjax.report import html, plots

MAIN = 'NDCG@10'
MOST_CURVES = 6  # rows whose lists of every length are drawn: the table's first and the best
JUDGING = ('evaluate',)  # stages that are no part of what a row costs
LEAST = .01  # costs below it are drawn there, since the axis is logarithmic
# {what the axis says: (name of the picture, what its caption says)}
COSTS = {
    'seconds': (
        'cost', 'seconds: of a run all its stages but the evaluation, as they took on its machine; '
        'of a classical row fitting, choosing and ranking, as counted from the sizes for two '
        'cores'),
    'parameters': ('parameters', 'parameters: of the model that answers, those that are frozen '
                   'too'),
    'milliseconds a user, alone': (
        'alone', 'milliseconds a user, one at a time, medians on the machine of the comparison'),
    'milliseconds a user, together': (
        'together', 'milliseconds a user, many at a time, medians on the machine of the '
        'comparison'),
}


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture and its numbers. name: of its files. svg: the picture. caption: what it shows. head,
  rows: the numbers, one line each."""
  name: str
  svg: Markup
  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence]


def pictures(results: Mapping, first: Sequence[str], labels: Mapping[str, str],
             costs: Mapping[str, Mapping[str, float]]) -> list[Picture]:
  """All pictures that a table allows.

  results: as `result_tables.results_table` takes it. first: the rows that matter most. labels: row
  -> what to call it where there is room. costs: {key of COSTS: {row: what it takes}}, of the rows
  for which that is known.
  """
  rows = results['rows']
  metric = MAIN if all(MAIN in cells for cells in rows.values()) else next(iter(
      next(iter(rows.values()))))
  ordered = sorted(rows, key=lambda row: -rows[row][metric]['value'])
  return [_table(rows, ordered, metric, first, labels),
          *_over_k(rows, ordered, metric, first),
          *(picture for kind in COSTS
            for picture in _cost(rows, metric, first, kind, costs.get(kind, {})))]


def _ends(cell: Mapping) -> tuple[float, float, float]:
  return cell['value'], cell['low'], cell['high']


def _table(rows: Mapping, ordered: Sequence[str], metric: str, first: Sequence[str],
           labels: Mapping[str, str]) -> Picture:
  svg = plots.bars_with_intervals({row: rows[row] for row in ordered}, metric, labels,
                                  first[0] if len(first) == 1 else '')
  return Picture('rows', svg, f'{metric} of every row, the best first, with 95 % intervals',
                 ['row', 'value', 'low', 'high', 'n'],
                 [[row, *_ends(rows[row][metric]), rows[row][metric]['n']] for row in ordered])


def _over_k(rows: Mapping, ordered: Sequence[str], metric: str,
            first: Sequence[str]) -> list[Picture]:
  stem = metric.partition('@')[0]
  ks = [int(m.rpartition('@')[2]) for m in rows[ordered[0]] if re.fullmatch(rf'{stem}@\d+', m)]
  ks = sorted(k for k in ks if all(f'{stem}@{k}' in cells for cells in rows.values()))
  if len(ks) < 2:
    return []
  curves = {row: [(k, *_ends(rows[row][f'{stem}@{k}'])) for k in ks] for row in ordered}
  shown = list(dict.fromkeys([*first, *ordered]))[:MOST_CURVES]
  said = '' if len(shown) == len(ordered) else f'; the best of {len(ordered)} rows, all in the CSV'
  svg = plots.curves_over_k({row: curves[row] for row in shown}, f'{stem}@k')
  return [Picture('by_k', svg,
                  f'{stem}@k against the length of the list, with 95 % intervals{said}',
                  ['row', 'k', 'value', 'low', 'high'],
                  [[row, *point] for row, curve in curves.items() for point in curve])]


def _cost(rows: Mapping, metric: str, first: Sequence[str], kind: str,
          cost: Mapping[str, float]) -> list[Picture]:
  points = {row: (max(cost[row], LEAST), *_ends(rows[row][metric])) for row in rows if row in cost}
  if len(points) < 2:
    return []
  name, said = COSTS[kind]
  svg = plots.quality_against_cost(points, kind, metric, highlight=first)
  return [Picture(
      name, svg, f'{metric} against {said}. The line joins what nothing cheaper beats.',
      ['row', kind, metric, 'low', 'high'], [[row, *point] for row, point in points.items()])]


def figures(made: Sequence[Picture]) -> Markup:
  """The pictures for a page. made: of `pictures`."""
  return html.grid(*(html.figure(picture.svg, picture.caption, picture.caption)
                     for picture in made))


def save(made: Sequence[Picture], folder: str | os.PathLike) -> None:
  """Writes NAME.svg and NAME.csv of each picture. made: of `pictures`. folder: where to, made where
  there is none. Raises WorkdirError where it cannot be written."""
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise WorkdirError(f'{folder} cannot be made: {error.strerror}; name another') from error
  for picture in made:
    lines = io.StringIO()
    csv.writer(lines, lineterminator='\n').writerows([picture.head, *picture.rows])
    html.write(folder / f'{picture.name}.svg', plots.standalone(picture.svg))
    html.write(folder / f'{picture.name}.csv', lines.getvalue())


def costs_of(path: str | os.PathLike, results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
  """What the rows of a run cost: its first row as its stages say, classical ones as counted.

  path: the run's folder. results: its results.json. -> {key of COSTS: {row: cost}}
  """
  stages = [run_files.need_json(done)
            for done in sorted(pathlib.Path(path).glob('stages/*/DONE.json'))]
  first = next(iter(results['rows']))
  took = sum(stage['seconds'] for stage in stages if stage['stage'] not in JUDGING)
  counted = results.get('classical', {}).get('counted_seconds', {})
  sizes = [float(str(stage['counts']['parameters']).replace(',', '')) for stage in stages
           if 'parameters' in stage.get('counts', {})]
  return {'seconds': {row: s for row, s in {first: took, **counted}.items() if s},
          'parameters': {first: sizes[-1]} if sizes else {}}  # the last stage's model answers
