"""Several runs in one table: intervals, paired tests over the users they share, their groups."""
import csv
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from recjax import run_files
from recjax.data import splits
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation import over_seeds, slices
from recjax.evaluation.metrics import GROUPS, KS, per_case
from recjax.evaluation.results import CaseKey, read_groups, read_ranks
from recjax.evaluation.statistics import bootstrap_interval, by_user, holm, paired_test, summarize

SANITY = ('popularity', 'random')  # rows that every run repeats; not tested against each other
SHOWN = ('HR@10', 'NDCG@10', 'MRR')


def compare(workdirs: Iterable[str | os.PathLike], rows: Sequence[str] = (), against: str = '',
            seed: int = 0, ks: Sequence[int] = KS) -> dict[str, Any]:
  """Puts the rows of several runs side by side, over the users that all of them ranked.

  workdirs: folders with results.json ('protocol'), ranks.parquet, and 'data_fingerprint' in
  results.json or config.json. rows: which rows to take, by row name or 'workdir:row', if empty all;
  where several runs hold the same ranks under one row name (popularity, a teacher) the first, but
  for those named 'workdir:row'. against: one row that every other is tested against; if empty, all
  pairs are tested, sanity rows not among themselves. seed: of intervals and tests. ks: cut-offs. ->
  {'protocol', 'data', 'users': count, 'left_out': {workdir: users that others lack}, 'runs':
  {workdir: what its figures rest on}, 'once': row names that were found again, 'against': its full
  name or '', 'groups': of `by_group`, 'spread': {row of several seeds: {metric:
  `statistics.two_way`}}, 'by_seed': {row: [{metric: mean}]}, 'verdict': `over_seeds.verdict`,
  'rows', 'tests'}, the last two as in statistics.summarize with rows named 'workdir:row'. Lines of
  one row that differ in their seed alone, inside a run or in runs of otherwise equal settings, are
  one row: users' means over the seeds, with the interval over users and seeds from three on; a line
  that `rows` names stays alone. Raises DataError where data or protocols differ, or no user or row
  is shared.
  """
  paths = _names(workdirs)
  runs = {name: _read_run(path) for name, path in paths.items()}
  for key in ('protocol', 'data'):
    _check_equal(key, {name: run[key] for name, run in runs.items()})
  users, takes = _shared_users(runs)
  plain = {f'{name}:{row}': (name, row) for name, run in runs.items() for row in run['ranks']}
  chosen = {full: (name, row) for full, (name, row) in plain.items()
            if not rows or {full, row, over_seeds.row_of(full), over_seeds.row_of(row)} & {*rows}}
  once = [full for full in _found_again(runs, takes, chosen) if full not in rows]
  for full in once:
    del chosen[full]
  lacking = [asked for asked in rows if not any(
      asked in (full, row, over_seeds.row_of(full), over_seeds.row_of(row))
      for full, (_, row) in plain.items())]
  if lacking:
    raise DataError(f'no row is named {", ".join(lacking)}; these runs have {", ".join(plain)}')
  owners, family = owners_of(users), over_seeds.families(runs, paths)
  first = next(iter(runs.values()))
  set_sizes = _set_sizes(runs, owners)
  values, names, several = over_seeds.merged(
      {full: (family[name], row, per_case(runs[name]['ranks'][row][takes[name]], ks, set_sizes))
       for full, (name, row) in chosen.items()}, rows)
  spread, pairs = over_seeds.intervals(several, owners), _pairs(names, against)
  reference = pairs[0][1] if against else next(iter(values))
  found = summarize(values, seed, pairs=pairs, owners=owners)
  for row, cells in spread.items():
    over_seeds.widen(found['rows'][row], cells)
  return {
      'protocol': _protocol(runs, len(users)), 'data': first['data'], 'users': _num_users(users),
      'left_out': {name: _num_users(run['users']) - _num_users(users)
                   for name, run in runs.items()},
      'runs': {name: run['about'] for name, run in runs.items()},
      'once': list(dict.fromkeys(full.partition(':')[2] for full in once)),
      'against': against and reference,
      'groups': by_group(values, reference, _masks(runs, users), seed, owners=owners),
      'spread': spread, 'by_seed': {row: [{m: float(by_user(x, owners).mean())
                                           for m, x in line.items()} for line in each]
                                    for row, each in several.items()},
      'verdict': over_seeds.verdict(found['rows'], found['tests'], spread, SHOWN[0],
                                    against and reference), **found}


def _num_users(cases: Sequence[CaseKey]) -> int:
  """How many users so many cases are of."""
  owners = owners_of(cases)
  return len(cases) if owners is None else int(owners.max()) + 1


def owners_of(cases: Sequence[CaseKey]) -> Int[np.ndarray, ' C'] | None:
  """Whose each case is, from 0, None where they are users. cases: as `read_ranks` gives them."""
  if not cases or isinstance(cases[0], str):
    return None
  numbers: dict[str, int] = {}
  return np.array([numbers.setdefault(case[0], len(numbers)) for case in cases])


def _set_sizes(runs: Mapping[str, dict],
               owners: Int[np.ndarray, ' C'] | None) -> Int[np.ndarray, ' C'] | None:
  """How many right answers each case's question has, None where each has one."""
  as_set = next(iter(runs.values()))['as_set']
  return np.bincount(owners)[owners] if as_set and owners is not None else None


def _protocol(runs: Mapping[str, dict], count: int) -> str:
  """The sentence about the users that all runs ranked."""
  first = next(iter(runs.values()))['protocol']
  same = all(run['protocol'] == first for run in runs.values())
  if splits.num_cases(first) is None or same and splits.num_cases(first) == count:
    return first
  return splits.with_num_cases(first, count).replace(
      ', full ranking', '; those that all runs ranked, full ranking')


def _masks(runs: Mapping[str, dict],
           users: Sequence[CaseKey]) -> dict[str, Bool[np.ndarray, ' U']]:
  """The users of each group, as the run of most users tells them, of such the one of most groups.
  """
  def named(run: Mapping[str, Any]) -> int:
    return len({name for names in run['groups'].values() for name in names})
  for run in sorted(runs.values(), key=lambda run: (-len(run['users']), -named(run))):
    if run['groups']:
      groups = [run['groups'][u] for u in users]
      known = (*GROUPS, *slices.NAMES, *slices.LENGTHS, 'repeated', 'new')
      names = [*known, *sorted({name for each in groups for name in each} - set(known))]
      masks = {name: np.array([name in each for each in groups]) for name in names}
      return {name: mask for name, mask in masks.items() if mask.any()}
  return {}


def by_group(values: Mapping[str, Mapping[str, Float[np.ndarray, ' U']]], reference: str,
             masks: Mapping[str, Bool[np.ndarray, ' U']], seed: int,
             metric: str = SHOWN[0],
             owners: Int[np.ndarray, ' C'] | None = None) -> dict[str, Any]:
  """How far every row is from one in each group of users.

  values: {row: {metric: a value of each user}}. reference: the row. masks: the users of each group.
  seed: of intervals and tests. metric: which is compared. owners: as of `statistics.by_user`. -> {}
  without groups, else {'reference', 'metric', 'sizes': {group: users}, 'few': the same of groups
  below slices.FEWEST, which have no figures, 'rows': {row: {group: {'value', 'low', 'high',
  'p'}}}}: the mean difference of users, its 95 % bootstrap interval, and the paired test,
  Holm-corrected over all rows and groups; for the reference its own figure, without p.
  """
  sizes = {group: len(by_user(mask[mask], owners if owners is None else owners[mask]))
           for group, mask in masks.items()}
  few = {group: n for group, n in sizes.items() if n < slices.FEWEST}
  masks = {group: mask for group, mask in masks.items() if group not in few}
  if not masks or metric not in values[reference]:
    return {}
  base = values[reference][metric]
  rows, tests = {row: {} for row in values}, {}
  draws = max(10_000, 100 * len(values) * len(masks))  # or no corrected p could be below .05
  for (row, of_row), (group, mask) in itertools.product(values.items(), masks.items()):
    mine, other = (by_user(x[mask], owners if owners is None else owners[mask])
                   for x in (of_row[metric], base))
    value, low, high = bootstrap_interval(mine if row == reference else mine - other, seed)
    rows[row][group] = {'value': value, 'low': low, 'high': high}
    if row != reference:
      tests[row, group] = paired_test(mine, other, seed, draws)
  for (row, group), p in holm(tests).items():
    rows[row][group]['p'] = p
  return {'reference': reference, 'metric': metric, 'rows': rows, 'few': few,
          'sizes': {group: sizes[group] for group in masks}}


def _found_again(runs: Mapping[str, dict], takes: Mapping[str, np.ndarray],
                 plain: Mapping[str, tuple[str, str]]) -> list[str]:
  """Rows whose name and ranks an earlier run has, a run's own first row never. -> ['run:row']"""
  seen, again = {}, []
  for full, (name, row) in plain.items():
    ranks = runs[name]['ranks'][row][takes[name]]
    if row != next(iter(runs[name]['ranks'])) and any(
        np.array_equal(ranks, other) for other in seen.get(row, ())):
      again.append(full)
    seen.setdefault(row, []).append(ranks)
  return again


def average(workdirs: Iterable[str | os.PathLike], seed: int = 0,
            ks: Sequence[int] = KS) -> dict[str, dict]:
  """The first row of several runs, e.g. of one setting and several seeds, as one row.

  A user's figure is the mean over the runs; only users that all of them ranked count. workdirs,
  seed, ks: as in `compare`. -> {metric: {value, low, high, n}}, the interval over users and seeds
  where there are three and more, over users where there are fewer. Raises DataError as `compare`
  does.
  """
  runs = {name: _read_run(path) for name, path in _names(workdirs).items()}
  for key in ('protocol', 'data'):
    _check_equal(key, {name: run[key] for name, run in runs.items()})
  users, takes = _shared_users(runs)
  owners, values = owners_of(users), []
  set_sizes = _set_sizes(runs, owners)
  for name, run in runs.items():
    ours = next(iter(run['ranks'])).partition(':seed=')[0]
    values += [per_case(ranks[takes[name]], ks, set_sizes) for row, ranks in run['ranks'].items()
               if row.partition(':seed=')[0] == ours]
  means = {m: np.mean([each[m] for each in values], 0) for m in values[0]}
  cells = summarize({'mean': means}, seed, pairs=[], owners=owners)['rows']['mean']
  over_seeds.widen(cells, over_seeds.intervals({'mean': values}, owners)['mean'])
  return cells


def _names(workdirs: Iterable[str | os.PathLike]) -> dict[str, pathlib.Path]:
  """Folder names where they tell the runs apart, else the paths as given."""
  paths = [pathlib.Path(w) for w in workdirs]
  short = [p.resolve().name for p in paths]
  names = [str(p) if short.count(s) > 1 else s for p, s in zip(paths, short)]
  if not paths or len({p.resolve() for p in paths}) < len(paths):
    raise DataError(f'{", ".join(map(str, workdirs)) or "no run"} to compare; name each run once')
  return dict(zip(names, paths))


def _read_run(path: pathlib.Path) -> dict[str, Any]:
  _check_published(path)
  results, config = _read_json(path / 'results.json'), {}
  if (path / 'config.json').exists():
    config = _read_json(path / 'config.json')
    if {'config', 'sum'} <= config.keys():
      config = run_files.read_config(path)
  settings, facts = config.get('config', {}), config.get('facts', {})
  for name, kind, value in (('config', dict, settings), ('facts', dict, facts),
                            ('seeds', list, results.get('seeds', []))):
    if not isinstance(value, kind):
      raise DataError(f'{path}: {name!r} of its config.json or results.json is {value!r:.60}, not '
                      f'{run_files.KINDS[kind]}; run it again')
  users, ranks = read_ranks(path / 'ranks.parquet')
  run = {'protocol': results.get('protocol'), 'users': users, 'ranks': ranks,
         'settings': settings, 'groups': read_groups(path / 'ranks.parquet'),
         'as_set': bool(results.get('as_set')),
         'data': results.get('data_fingerprint') or config.get('data_fingerprint'), 'about': {
             'method': settings.get('method'), 'preset': settings.get('preset'),
             'seeds': results.get('seeds', []), 'users': _num_users(users),
             'lists': results.get('lists', {}), 'note': results.get('note', ''),
             'revision': facts.get('revision'),
             'command': facts.get('command')}}
  for key, what in (('protocol', 'protocol'), ('data', 'data_fingerprint')):
    if not run[key]:
      raise DataError(f'{path / "results.json"} names no {what}, so nothing compares with it; run '
                      'its evaluation again')
  return run


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = run_files.read_json(path)
  except WorkdirError as error:
    raise DataError(str(error)) from error
  if content is None:
    raise DataError(f'{path} does not exist; compare takes folders of finished runs')
  return content


def _check_published(path: pathlib.Path) -> None:
  """Raises DataError where what a run's last stage wrote is not what stands at the top."""
  sums = [run_files.need_json(done).get('files')
          for done in path.glob(f'stages/*/{run_files.DONE}')]
  sums = [of_stage for of_stage in sums
          if isinstance(of_stage, dict) and 'ranks.parquet' in of_stage]
  for name in ('results.json', 'ranks.parquet') if sums else ():
    known = [of_stage.get(name) for of_stage in sums]
    if (path / name).is_file() and run_files.sum_of(path / name) not in known:
      raise DataError(f'{path / name} is not what the evaluation wrote, as DONE.json of its stage '
                      'tells; run the command of the run again, which writes it anew')


def _check_equal(key: str, values: Mapping[str, Any]) -> None:
  """Raises DataError where runs differ. Of a protocol everything counts but how many were asked."""
  alike = {}
  for name, value in values.items():
    rule = splits.with_num_cases(value, 'so many') if key == 'protocol' else value
    alike.setdefault(json.dumps(rule, sort_keys=True), []).append(name)
  if len(alike) > 1:
    listed = '; '.join(f'{", ".join(names)}: {values[names[0]]}' for names in alike.values())
    raise DataError(f'the runs differ in their {key}, so their figures do not compare: {listed}; '
                    'compare runs of one data set and one protocol')


def _shared_users(runs: Mapping[str, dict]) -> tuple[list[CaseKey], dict[str, np.ndarray]]:
  """Users that every run ranked, in the first run's order, and where each run has them."""
  places = {name: {user: i for i, user in enumerate(run['users'])} for name, run in runs.items()}
  users = [u for u in next(iter(places.values())) if all(u in place for place in places.values())]
  if not users:
    raise DataError(f'no user is ranked in all of {", ".join(runs)}; compare runs on shared users')
  return users, {name: np.array([place[u] for u in users]) for name, place in places.items()}


def _pairs(rows: Mapping[str, str], against: str) -> list[tuple[str, str]]:
  """Which rows to test. rows: {full name: row name}"""
  if not against:
    return [(a, b) for a, b in itertools.combinations(rows, 2)
            if rows[a] not in SANITY or rows[b] not in SANITY]
  chosen = [full for full, row in rows.items() if against in (full, row)]
  if len(chosen) != 1:
    raise ConfigError(f'{against!r} names {len(chosen)} rows; give one of '
                      f'{", ".join(chosen or rows)}')
  return [(full, chosen[0]) for full in rows if full != chosen[0]]


# Rendering. Every function takes what compare returns (or a results.json) and the metrics to show.

def _cells(table: Mapping[str, Any], metrics: Sequence[str]) -> tuple[list, list, list, list]:
  """Headings and rows of text for the figures, then for the tests.

  Where all rows were tested against one, p-values stand beside the figures and no tests follow.
  """
  heads, test_heads = ['row', 'users', *metrics], ['p, Holm-corrected', *metrics]
  figures = [[row, f'{cells[metrics[0]]["n"]:,}'] + [
      '{value:.4f} [{low:.4f}, {high:.4f}]'.format(**cells[m]) for m in metrics]
      for row, cells in table['rows'].items()]
  tests = [[name, *(f'{p[m]:.4f}' for m in metrics)] for name, p in table['tests'].items()]
  against = table.get('against')
  if against:
    p = {name.removesuffix(f'>{against}'): p_values[metrics[0]]
         for name, p_values in table['tests'].items()}
    for row in figures:
      row.append('reference' if row[0] == against else f'{p[row[0]]:.4f}')
    heads, tests = [*heads, f'p of {metrics[0]}'], []
  return heads, figures, test_heads, tests


def note(table: Mapping[str, Any]) -> str:
  """What a reader of the table has to know beside the protocol, '' where there is nothing.

  table: of `compare`, or a results.json.
  """
  notes = []
  if table.get('against'):
    notes.append(f'p: paired randomization test against {table["against"]}, Holm-corrected')
  if table.get('once'):
    notes.append(f'{", ".join(table["once"])}: the same in several runs, shown once')
  for row, cells in table.get('spread', {}).items():
    metric = next((m for m in SHOWN if m in cells), next(iter(cells)))
    each = ', '.join(f'{line[metric]:.4f}' for line in table['by_seed'][row])
    sure = 'interval over users and seeds' if cells[metric]['low'] is not None else (
        'too few to say how far seeds reach, interval over users')
    notes.append(f'{row}: mean over {cells[metric]["seeds"]} seeds, {metric} {each}, sd '
                 f'{cells[metric]["sd_of_seeds"]:.4f}, {sure}')
  return '; '.join(filter(None, [*notes, table.get('power', '')]))


def text_table(table: Mapping[str, Any], metrics: Sequence[str] = SHOWN, width: int = 120) -> str:
  """Figures with 95 % intervals and p-values for a terminal of so many columns.

  table: of `compare`, or a results.json. metrics: which to show. width: columns.
  """
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text
  heads, figures, test_heads, tests = _cells(table, metrics)
  out = io.StringIO()
  console = Console(file=out, width=width, force_terminal=False)
  for line in filter(None, (table.get('verdict'), table['protocol'], note(table))):
    console.print(line, markup=False, highlight=False)
  for head, body in ((heads, figures), (test_heads, tests)):
    shown = Table()
    for i, name in enumerate(head):
      shown.add_column(name, justify='right' if i else 'left', overflow='fold')
    if len(head) > len(metrics) + 2:  # too wide for one line
      body = [[cell.replace(' [', '\n[') for cell in cells] for cells in body]
    for cells in body:
      shown.add_row(*map(Text, cells))
    if body:
      console.print(shown)
  return out.getvalue()


def markdown_table(table: Mapping[str, Any], metrics: Sequence[str] = SHOWN) -> str:
  """The same for a Markdown page, the best value of each metric bold.

  table: of `compare`, or a results.json. metrics: which to show.
  """
  heads, figures, test_heads, tests = _cells(table, metrics)
  for cells in (figures, tests):
    for row in cells:
      row[0] = row[0].replace('|', r'\|')
  _mark_best(table, metrics, figures, '**{}**')
  opening = (table.get('verdict'), table['protocol'], note(table))
  parts = [p for line in opening if line for p in (line, '')]
  for head, body in ((heads, figures), (test_heads, tests)):
    lines = [head, ['---'] + ['---:'] * (len(head) - 1), *body]
    parts += ['| ' + ' | '.join(line) + ' |' for line in lines if body] + [''] * bool(body)
  return '\n'.join(parts)


def latex_table(table: Mapping[str, Any], metrics: Sequence[str] = SHOWN) -> str:
  """The same as LaTeX tabulars (booktabs), the best value of each metric bold.

  table: of `compare`, or a results.json. metrics: which to show.
  """
  heads, figures, test_heads, tests = _cells(table, metrics)
  for cells in (heads, test_heads, *figures, *tests):
    cells[:] = [_latex(cell) for cell in cells]
  _mark_best(table, metrics, figures, r'\textbf{{{}}}')
  opening = (table.get('verdict'), table['protocol'], note(table))
  parts = [f'% {line}' for line in opening if line]
  for head, body in ((heads, figures), (test_heads, tests)):
    if body:
      lines = [' & '.join(line) + r' \\' for line in (head, *body)]
      parts += [r'\begin{tabular}{l' + 'r' * (len(head) - 1) + '}', r'\toprule', lines[0],
                r'\midrule', *lines[1:], r'\bottomrule', r'\end{tabular}']
  return '\n'.join(parts) + '\n'


def csv_table(table: Mapping[str, Any], metrics: Sequence[str] = SHOWN) -> str:
  """One line a row and metric: row, metric, value, low, high, n, and its p against each row.

  Full precision; a pair that was not tested is empty. table: of `compare`, or a results.json.
  metrics: which to show.
  """
  names = list(table['rows'])
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['row', 'metric', 'value', 'low', 'high', 'n', *(f'p:{n}' for n in names)])
  for row, metric in itertools.product(names, metrics):
    cell = table['rows'][row][metric]
    tested = [table['tests'].get(f'{row}>{n}') or table['tests'].get(f'{n}>{row}') for n in names]
    writer.writerow([row, metric, *(cell[c] for c in ('value', 'low', 'high', 'n')),
                     *(p[metric] if p else '' for p in tested)])
  return out.getvalue()


def _mark_best(table: Mapping[str, Any], metrics: Sequence[str], figures: list, bold: str) -> None:
  for column, metric in enumerate(metrics, start=2):
    best = max(cells[metric]['value'] for cells in table['rows'].values())
    for row, cells in zip(figures, table['rows'].values()):
      if cells[metric]['value'] == best:
        value, interval = row[column].split(' ', 1)
        row[column] = f'{bold.format(value)} {interval}'


def _latex(text: str) -> str:
  special = {c: '\\' + c for c in '&%$#_{}'} | {
      '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
      '<': r'\textless{}', '>': r'\textgreater{}'}
  return ''.join(special.get(c, c) for c in text)
