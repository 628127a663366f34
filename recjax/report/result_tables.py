"""Tables of figures: rows of a `results.json` with intervals and tests, and counts with bars."""
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from recjax.report import plots
from recjax.report.html import (
    Section,
    details,
    figure,
    grid,
    inline,
    number,
    render,
    section,
    table,
    value_with_interval,
)

FEWEST = 30  # users of a group whose figure says something
MARKED = 200  # users of a group below which it is marked
# groups of test users that one table and one picture show together; those of no kind are times
KINDS = {'How popular the next item is': ('head', 'mid', 'tail', 'cold', 'few'),
         'How long the history is': ('short', 'long', 'len1-3', 'len4-5', 'len6-9', 'len10+'),
         'What training could know of the step': ('memorized', 'generalized', 'uncategorized'),
         'Met before or new': ('repeated', 'new')}
WHEN = 'When the next item was met'
GROUPS_ARE = ('Head, mid and tail items hold a third of all training interactions each; cold ones '
              'have none there, few have one to four. Short and long histories are cut at the '
              'median. The step to a memorized target was seen in training, to a generalized one '
              'it can be inferred from what stands near it, to an uncategorized one it cannot.')
LIST_METRICS = {'coverage': 'share of the catalog that stands in some list',
         'Gini': 'Gini: 0 where all items are shown alike, near 1 where a few get all',
         'novelty': "novelty: mean −log2 of an item's share of training interactions",
         'out_of_catalog': 'share of answers that are no item',
         'repeat': 'share that stand twice in a list', 'seen': 'share that the user had before',
         'memorized': 'share that came right after the last item in training'}
# what `evaluation.beside` puts beside the rows of a method
BESIDE = {'popularity': 'popularity', 'recency': 'recent popularity', 'random': 'random',
          'pop_recent': 'popularity of the last days', 'pop_decay': 'popularity, fading with age',
          'markov': 'Markov chain, last item', 'markov_k': 'Markov chain, last 20 items',
          'item_knn': 'neighbors', 'item_knn:decay': 'neighbors, later items more',
          'ease': 'EASE', 'ease:decay': 'EASE, later items more',
          'text': 'titles of the history (TF-IDF)', 'id_text': 'Markov chain and titles',
          'graph1': 'graph around the last item (TGH-1)',
          'graph2': 'graph around the last two (TGH-2)'}
_BAR_WIDTH, _BAR_HEIGHT, _BAR_MARGIN = 140, 16, 5  # of an interval bar, in CSS pixels


def p_value(p: float | None) -> str:
  """Returns a p-value `p` in three digits, `< 0.001` below them, an en dash where there is none."""
  if p is None or not _finite(p):
    return '–'
  return '< 0.001' if p < 0.001 else f'{p:.3f}'


def results_table(results: Mapping, metrics: Sequence[str] = (), main: str = '',
                  reference: str = '', labels: Mapping[str, str] | None = None,
                  caption: str = '', sizes: bool = False) -> Markup:
  """Returns the table of a `results.json`: values with intervals, bars, p-values, the best in bold.

  results: {'protocol', 'seeds', 'rows': {row: {metric: {value, low, high, n}}}, 'tests': {'a>b':
  {metric: p}}}, the tests two-sided. metrics: the columns, by default all that are not of a group
  (`HR@10:mid`); higher is better in each. main: the metric with bar and p-value, the first by
  default. reference: the row that p-values and the mark in the bars refer to. labels: row -> what
  to call it. caption: of the table. sizes: whether each row says its n. Raises KeyError when
  `reference` is no row.
  """
  rows, labels = results['rows'], labels or {}
  every_metric = dict.fromkeys(metric for cells in rows.values() for metric in cells)
  metrics = list(metrics) or [metric for metric in every_metric if ':' not in metric]
  main = main or metrics[0]
  others = [metric for metric in metrics if metric != main]
  best = {m: max((_value(cells, m) for cells in rows.values()), default=-math.inf)
          for m in [main, *others]}
  scale = _scale([cells[main] for cells in rows.values() if main in cells])
  mark = _value(rows[reference], main) if reference else None
  scale_ends = render('small', f'{number(scale[0])} to {number(scale[1])}')
  head = ['Row', *(['n'] if sizes else []), main, [f'{main} ', scale_ends],
          *(['p'] if reference else []), *others]

  def cells_of(row: str) -> list:
    cells = rows[row]
    p = render('ends', 'reference') if row == reference else (
        p_value(_paired_p(results, row, reference, main)))
    return [labels.get(row, row), *([number(cells.get(main, {}).get('n'))] if sizes else []),
            _interval(cells.get(main), best[main]), interval_bar(cells.get(main), scale, mark),
            *([p] if reference else []),
            *(_interval(cells.get(metric), best[metric]) for metric in others)]

  body = table(head, [cells_of(row) for row in rows], caption or f'Results by {main}',
               ('lrrl' if sizes else 'lrl').ljust(len(head), 'r'))
  note = _note(results, main, labels.get(reference, reference))
  return inline(body, note, _every_number(results, reference, labels))


def metric_tiles(results: Mapping, row: str, metrics: Sequence[str]) -> list[tuple]:
  """Returns tiles of a summary, for `html.tiles`: a metric, its value, its interval.

  results: as `results_table` takes it. row: whose. metrics: which.
  """
  cells = results['rows'][row]
  return [(m, _four(cells[m]['value']), f'{_four(cells[m]["low"])} to {_four(cells[m]["high"])}')
          for m in metrics]


def interval_bar(cell: Mapping | None, scale: tuple[float, float],
                 mark: float | None = None) -> Markup:
  """Returns a small picture of a value, its interval and the reference's value on one scale.

  cell: {value, low, high} or None. scale: what the left and the right end stand for. mark: the
  reference's value, None for none.
  """
  if cell is None or not _finite(cell.get('value')):
    return Markup('')

  def x(value: Any) -> float:
    share = (min(max(value, scale[0]), scale[1]) - scale[0]) / (scale[1] - scale[0])
    return round(_BAR_MARGIN + share * (_BAR_WIDTH - 2 * _BAR_MARGIN), 1)

  def line(first: Any, last: Any, name: str, top: float = _BAR_HEIGHT / 2,
           bottom: float = _BAR_HEIGHT / 2) -> dict:
    return {'x1': x(first), 'x2': x(last), 'y1': top, 'y2': bottom, 'name': name}

  low, high = cell.get('low'), cell.get('high')
  lines = [line(*scale, 'axis')]
  if _finite(mark):
    lines.append(line(mark, mark, 'upright', 0, _BAR_HEIGHT))
  if _finite(low) and _finite(high):
    lines.append(line(low, high, 'range'))
  return render('interval_bar', lines, x(cell['value']), _BAR_WIDTH, _BAR_HEIGHT)


def groups_section(results: Mapping, row: str, metric: str = 'HR@10') -> Section:
  """Returns where the hits are: popular and rare targets, short and long histories.

  results: as `results_table` takes it, with 'lists' and 'cold_targets'. row: whose. metric: which.
  """
  cells = results['rows'][row]
  found = {name.partition(':')[2]: {metric: cell} for name, cell in cells.items()
           if name.startswith(f'{metric}:')}
  drawn = {group: cell for group, cell in found.items()
           if cell[metric].get('n', FEWEST) >= FEWEST} or found
  left = ', '.join(f'{group} ({number(cell[metric]["n"])})' for group, cell in found.items()
                   if group not in drawn)
  said = f' Groups of fewer than {FEWEST} users are not drawn: {left}.' if left else ''
  return section(
      'Where the hits are',
      grid(*(figure(plots.bars_with_intervals({g: drawn[g] for g in groups}, metric),
                    f'{metric} of {row} by group: {kind[0].lower()}{kind[1:]}',
                    f'bars of {metric} by group')
             for kind, groups in _by_kind(drawn).items())),
      table(['Lists of ten', 'Value'],
            [[LIST_METRICS.get(name, name), f'{value:.4f}']
             for name, value in results['lists'].items()], 'What is shown', 'lr'),
      intro=f'{GROUPS_ARE} {number(results["cold_targets"])} test items were never seen in '
            f'training.{said}{_trend(results, row, metric)}')


def _trend(results: Mapping, row: str, metric: str) -> str:
  """How the row's figure changes over the time of the targets, as a sentence; '' where it is not
  known."""
  cell = results.get('trend', {}).get(row, {}).get(metric)
  return cell and (f' With every 30 days from the first target on {metric} of {row} changes by '
                   f'{cell["value"]:+.4f} [{cell["low"]:+.4f}, {cell["high"]:+.4f}].') or ''


def _by_kind(groups: Iterable[str]) -> dict[str, list[str]]:
  """{what parts them: the groups, in order}, of those that there are."""
  kind_of = {group: kind for kind, names in KINDS.items() for group in names}
  order = [group for names in KINDS.values() for group in names]
  out: dict[str, list[str]] = {}
  for group in sorted(groups, key=lambda g: order.index(g) if g in order else len(order)):
    out.setdefault(kind_of.get(group, WHEN), []).append(group)
  return out


def group_differences(differences: Mapping, labels: Mapping[str, str]) -> list[Section]:
  """Returns the section of differences from one row by group of users, none where none are known.

  differences: what `evaluation.compare.by_group` returns. labels: row -> what to call it.
  Differences with p below 0.05 are bold.
  """
  if not differences:
    return []
  name = labels.get(differences['reference'], differences['reference'])

  def cell(found: Mapping) -> Any:
    p = found.get('p')
    sign = '+' if p is not None and found['value'] > 0 else ''
    return value_with_interval(
        sign + _four(found['value']), f'{_four(found["low"])} to {_four(found["high"])}',
        strong=p is not None and p < 0.05, below='its own' if p is None else f'p {p_value(p)}')

  sizes, tables = differences['sizes'], []
  for kind, groups in _by_kind(sizes).items():
    head = ['Row', *([f'{group}{"*" * (sizes[group] < MARKED)} ',
                      render('small', f'n = {number(sizes[group])}')] for group in groups)]
    body = [[labels.get(row, row), *(cell(cells[group]) for group in groups)]
            for row, cells in differences['rows'].items()]
    tables.append(table(head, body, f'{kind}: {differences["metric"]} less that of {name}',
                        'l'.ljust(len(head), 'r')))
  few = ', '.join(f'{group} ({n})' for group, n in differences.get('few', {}).items())
  few = f' Groups of fewer than {FEWEST} users have no figures: {few}.' if few else ''
  return [section(
      'Differences by group', *tables,
      intro=f'Users by what came next and by how much came before. {GROUPS_ARE} Under each '
            'difference its 95 % interval and its paired test, Holm-corrected over all tables; '
            f'bold where p is below 0.05; * marks groups of fewer than {MARKED} users.{few}')]


def _finite(value: Any) -> bool:
  return isinstance(value, numbers.Real) and math.isfinite(value)


def _value(cells: Mapping, metric: str) -> float:
  value = cells.get(metric, {}).get('value')
  return value if _finite(value) else -math.inf


def _interval(cell: Mapping | None, best: float) -> Markup:
  """Shows a value over its interval; the best one says so to eyes and to screen readers."""
  if cell is None or not _finite(cell.get('value')):
    return render('value', '–')
  ends = [_four(cell.get(end)) for end in ('low', 'high')]
  is_best = cell['value'] == best
  return value_with_interval(_four(cell['value']), ' to '.join(ends) if '–' not in ends else None,
                             is_best, ' (best)' if is_best else '')


def _four(value: Any) -> str:
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


def _paired_p(results: Mapping, row: str, other: str, metric: str) -> float | None:
  """Finds the test of two rows under either name; two-sided tests know no order."""
  tests = results.get('tests', {})
  return (tests.get(f'{row}>{other}') or tests.get(f'{other}>{row}') or {}).get(metric)


def _note(results: Mapping, main: str, reference: str) -> Markup:
  """Says what the figures rest on: users, protocol, seeds, tests."""
  seeds = results.get('seeds')
  seeds = ', '.join(map(str, seeds)) if isinstance(seeds, list | tuple) else seeds
  seeds = f' Seeds: {seeds}.' if seeds is not None else ''
  sizes = {cells[main].get('n') for cells in results['rows'].values() if main in cells} - {None}
  users = ' to '.join(number(n) for n in sorted({min(sizes), max(sizes)})) if sizes else '–'
  power = results.get('power', '')
  power = f' {power[0].upper()}{power[1:]}.' if power else ''
  test = (f' p: paired test of {main} against {reference}, '
          'whose value is the upright line in the bars.') if reference else ''
  return render('note', f'Under each value and in the bars: its interval. n = {users}.{test} '
                        f'Protocol: {results.get("protocol", "–")}.{seeds}{power}'
                        f'{_classical(results)}')


def _classical(results: Mapping) -> str:
  """Says which classical rows are left out or not tuned, and why."""
  facts, said = results.get('classical', {}), ''
  for key, opening in (('left_out', 'Left out'), ('untuned', 'With first settings')):
    rows_of: dict[str, list[str]] = {}
    for row, why in facts.get(key, {}).items():
      rows_of.setdefault(why, []).append(BESIDE[row])
    said += ''.join(f' {opening}: {", ".join(rows)}, since {why}.' for why, rows in rows_of.items())
  return said


def _every_number(results: Mapping, reference: str, labels: Mapping[str, str]) -> Markup:
  head = ['Row', 'Metric', 'Value', 'Low', 'High', 'n', *(['p'] if reference else [])]

  def cells_of(row: str, metric: str, cell: Mapping) -> list:
    p = [p_value(_paired_p(results, row, reference, metric))] if reference else []
    ends = [_four(cell.get(key)) for key in ('value', 'low', 'high')]
    return [labels.get(row, row), metric, *ends, number(cell.get('n')), *p]

  rows = [cells_of(row, metric, cell) for row, cells in results['rows'].items()
          for metric, cell in cells.items() if ':' not in metric]
  full = table(head, rows, 'Every metric of every row over all users; results.json has those of '
               'groups', 'll' + 'r' * (len(head) - 2))
  return details('Every number', full)
