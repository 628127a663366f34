"""Tables of figures: rows of a `results.json` with intervals and tests, and counts with bars."""
import math
import numbers
from collections.abc import Mapping, Sequence

from recjax.report import plots
from recjax.report.html import Html, details, element, figure, join, number, section, table

GROUPS = ('head', 'mid', 'tail', 'short', 'long')
LISTS = {'coverage': 'share of the catalogue that stands in some list',
         'Gini': 'Gini: 0 where all items are shown alike, near 1 where a few get all',
         'novelty': "novelty: mean −log2 of an item's share of training interactions",
         'out_of_catalogue': 'share of answers that are no item',
         'repeat': 'share that stand twice in a list', 'seen': 'share that the user had before'}
_WIDTH, _HEIGHT, _EDGE = 140, 16, 5  # of an interval bar, in CSS pixels


def p_value(p: float | None) -> str:
  """Returns a p-value in three digits, `< 0.001` below them, an en dash where there is none."""
  if not _finite(p):
    return '–'
  return '< 0.001' if p < 0.001 else f'{p:.3f}'


def results_table(results: Mapping, metrics: Sequence[str] = (), main: str = '',
                  reference: str = '', labels: Mapping[str, str] | None = None,
                  caption: str = '', sizes: bool = False) -> Html:
  """Returns the table of a `results.json`: values with intervals, bars, p-values, the best in bold.

  results: {'protocol', 'seeds', 'rows': {row: {metric: {value, low, high, n}}}, 'tests': {'a>b':
  {metric: p}}}, the tests two-sided. metrics: the columns, by default all that are not of a group
  (`HR@10:mid`); higher is better in each. main: the metric with bar and p-value, the first by
  default. reference: the row that p-values and the mark in the bars refer to. labels: row -> what
  to call it. sizes: whether each row says its n. Raises KeyError when `reference` is no row.
  """
  rows, labels = results['rows'], labels or {}
  every = dict.fromkeys(metric for cells in rows.values() for metric in cells)
  metrics = list(metrics) or [metric for metric in every if ':' not in metric]
  main = main or metrics[0]
  others = [metric for metric in metrics if metric != main]
  best = {m: max((_value(cells, m) for cells in rows.values()), default=-math.inf)
          for m in [main, *others]}
  scale = _scale([cells[main] for cells in rows.values() if main in cells])
  mark = _value(rows[reference], main) if reference else None
  ends = element('small', f'{number(scale[0])} to {number(scale[1])}')
  head = ['Row', *(['n'] if sizes else []), main, [f'{main} ', ends],
          *(['p'] if reference else []), *others]

  def cells(row):
    made = rows[row]
    p = element('span', 'reference', class_='ends') if row == reference else (
        p_value(_paired(results, row, reference, main)))
    return [labels.get(row, row), *([number(made.get(main, {}).get('n'))] if sizes else []),
            _interval(made.get(main), best[main]),
            interval_bar(made.get(main), scale, mark),
            *([p] if reference else []),
            *(_interval(made.get(metric), best[metric]) for metric in others)]

  body = table(head, [cells(row) for row in rows], caption or f'Results by {main}',
               ('lrrl' if sizes else 'lrl').ljust(len(head), 'r'))
  note = _note(results, main, labels.get(reference, reference))
  return join([body, note, _every_number(results, reference, labels)])


def tiles(results: Mapping, row: str, metrics: Sequence[str]) -> list[tuple]:
  """Tiles of a summary: a metric, its value, its interval."""
  cells = results['rows'][row]
  return [(m, _four(cells[m]['value']), f'{_four(cells[m]["low"])} to {_four(cells[m]["high"])}')
          for m in metrics]


def interval_bar(cell: Mapping | None, scale: tuple[float, float],
                 mark: float | None = None) -> Html:
  """Returns a small picture of a value, its interval and the reference's value on one scale.

  cell: {value, low, high} or None. scale: what the left and the right end stand for.
  """
  if cell is None or not _finite(cell.get('value')):
    return Html('')

  def x(value):
    share = (min(max(value, scale[0]), scale[1]) - scale[0]) / (scale[1] - scale[0])
    return round(_EDGE + share * (_WIDTH - 2 * _EDGE), 1)

  def line(first, last, name, top=_HEIGHT / 2, bottom=_HEIGHT / 2):
    return element('line', x1=x(first), x2=x(last), y1=top, y2=bottom, class_=name)

  low, high = cell.get('low'), cell.get('high')
  return element(
      'svg', line(*scale, 'axis'),
      line(mark, mark, 'upright', 0, _HEIGHT) if _finite(mark) else None,
      line(low, high, 'range') if _finite(low) and _finite(high) else None,
      element('circle', cx=x(cell['value']), cy=_HEIGHT / 2, r=3.5, class_='point'), class_='bar',
      width=_WIDTH, height=_HEIGHT, viewBox=f'0 0 {_WIDTH} {_HEIGHT}', aria_hidden='true')


def groups_section(results: Mapping, row: str, metric: str = 'HR@10') -> Html:
  """Returns where the hits are: popular and rare targets, short and long histories."""
  cells = results['rows'][row]
  some = {group: {metric: cells[f'{metric}:{group}']} for group in GROUPS
          if f'{metric}:{group}' in cells}
  return section(
      'Popular and rare items, short and long histories',
      figure(plots.bars_with_intervals(some, metric), f'{metric} of {row} by group of test users',
             f'bars of {metric} by group'),
      table(['Lists of ten', 'Value'], [[LISTS.get(name, name), f'{value:.4f}'] for name, value in
                                        results['lists'].items()], 'What is shown', 'lr'),
      intro='Head, mid and tail items hold a third of all training interactions each. '
            f'{number(results["cold_targets"])} test items were never seen in training.')


def by_group(made: Mapping, labels: Mapping[str, str]) -> list:
  """Returns the section of differences from one row by group of users, none where none are known.

  made: what `evaluation.compare.by_group` returns. Differences with p below 0.05 are bold.
  """
  if not made:
    return []
  name, metric = labels.get(made['reference'], made['reference']), made['metric']

  def cell(found):
    ends, p = f'{_four(found["low"])} to {_four(found["high"])}', found.get('p')
    sign = '+' if p is not None and found['value'] > 0 else ''
    value = element('strong' if p is not None and p < 0.05 else 'span',
                    sign + _four(found['value']))
    return element('span', element('span', value, class_='value'), ' ',
                   element('span', ends, class_='ends'), ' ', element(
                       'span', 'its own' if p is None else f'p {p_value(p)}', class_='ends'),
                   class_='interval')

  head = ['Row', *([f'{group} ', element('small', f'n = {number(n)}')]
                   for group, n in made['sizes'].items())]
  body = [[labels.get(row, row), *(cell(cells[group]) for group in made['sizes'])]
          for row, cells in made['rows'].items()]
  return [section(
      'Differences by group', table(head, body, f'{metric} less that of {name}', 'l'.ljust(
          len(head), 'r')),
      intro='Users by what came next and by how much came before. Head, mid and tail items hold a '
            'third of all training interactions each; short and long histories are cut at the '
            'median. Under each difference its 95 % interval and its paired test, Holm-corrected '
            'over the whole table; bold where p is below 0.05.')]


def _finite(value) -> bool:
  return isinstance(value, numbers.Real) and math.isfinite(value)


def _value(cells: Mapping, metric: str) -> float:
  value = cells.get(metric, {}).get('value')
  return value if _finite(value) else -math.inf


def _interval(cell: Mapping | None, best: float) -> Html:
  """Shows a value over its interval; the best one says so to eyes and to screen readers."""
  if cell is None or not _finite(cell.get('value')):
    return element('span', '–', class_='value')
  value = _four(cell['value'])
  if cell['value'] == best:
    value = [element('strong', value), element('span', ' (best)', class_='hidden')]
  ends = [_four(cell.get(end)) for end in ('low', 'high')]
  span = element('span', ' to '.join(ends), class_='ends') if '–' not in ends else None
  return element('span', element('span', value, class_='value'), ' ', span, class_='interval')


def _four(value) -> str:
  """Metrics stand under each other with four decimals, whole numbers among them too."""
  return number(float(value), 4) if _finite(value) else '–'


def _scale(cells: Sequence[Mapping]) -> tuple[float, float]:
  """Ends of the bars' scale: from zero, unless all lie close together far from it."""
  ends = [cell[key] for cell in cells for key in ('value', 'low', 'high') if _finite(cell.get(key))]
  low, high = min(ends, default=0.0), max(ends, default=1.0)
  if 0 <= low <= 0.6 * high:
    low = 0.0
  if not high > low:
    return low, low + 1.0
  unit = 10.0 ** (math.floor(math.log10(high - low)) - 1)
  return round(math.floor(low / unit) * unit, 10), round(math.ceil(high / unit) * unit, 10)


def _paired(results: Mapping, row: str, other: str, metric: str) -> float | None:
  """Finds the test of two rows under either name; two-sided tests know no order."""
  tests = results.get('tests', {})
  return (tests.get(f'{row}>{other}') or tests.get(f'{other}>{row}') or {}).get(metric)


def _note(results: Mapping, main: str, reference: str) -> Html:
  """Says what the figures rest on: users, protocol, seeds, tests."""
  seeds = results.get('seeds')
  seeds = ', '.join(map(str, seeds)) if isinstance(seeds, list | tuple) else seeds
  seeds = f' Seeds: {seeds}.' if seeds is not None else ''
  sizes = {cells[main].get('n') for cells in results['rows'].values() if main in cells} - {None}
  users = ' to '.join(number(n) for n in sorted({min(sizes), max(sizes)})) if sizes else '–'
  test = (f' p: paired test of {main} against {reference}, '
          'whose value is the upright line in the bars.') if reference else ''
  return element('p', f'Under each value and in the bars: its interval. n = {users}.{test} '
                      f'Protocol: {results.get("protocol", "–")}.{seeds}', class_='note')


def _every_number(results: Mapping, reference: str, labels: Mapping[str, str]) -> Html:
  head = ['Row', 'Metric', 'Value', 'Low', 'High', 'n', *(['p'] if reference else [])]

  def cells(row, metric, cell):
    p = [p_value(_paired(results, row, reference, metric))] if reference else []
    ends = [_four(cell.get(key)) for key in ('value', 'low', 'high')]
    return [labels.get(row, row), metric, *ends, number(cell.get('n')), *p]

  rows = [cells(row, metric, cell) for row, made in results['rows'].items()
          for metric, cell in made.items()]
  full = table(head, rows, 'Every metric of every row', 'll' + 'r' * (len(head) - 2))
  return details('Every number', full)
