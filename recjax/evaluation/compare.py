"""Several runs in one table: intervals, paired tests over the users they share, and the files."""
import csv
import io
import itertools
import json
import os
import pathlib

import numpy as np

from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation.metrics import KS, per_case
from recjax.evaluation.statistics import summarise

SANITY = ('popularity', 'random')  # rows that every run repeats; not tested against each other
SHOWN = ('HR@10', 'NDCG@10', 'MRR')


def compare(workdirs, rows=(), against='', seed=0, ks=KS):
  """Puts the rows of several runs side by side, over the users that all of them ranked.

  workdirs: folders with results.json ('protocol'), ranks.parquet, and 'data_fingerprint' in
  results.json or config.json. rows: which rows to take, by row name or 'workdir:row'; if empty all,
  where several runs hold the same ranks under one row name (popularity, a teacher) only the first.
  against: one row that every other is tested against; if empty, all pairs are tested, sanity rows
  not among themselves. -> {'protocol', 'data', 'users': count, 'left_out': {workdir: users that
  others lack}, 'runs': {workdir: what its figures rest on}, 'once': row names that were found
  again, 'against': its full name or '', 'rows', 'tests'}, the last two as in statistics.summarise
  with rows named 'workdir:row'. Raises DataError where data or protocols differ, or no user or row
  is shared.
  """
  runs = {name: _read_run(path) for name, path in _names(workdirs).items()}
  for key in ('data', 'protocol'):
    _check_equal(key, {name: run[key] for name, run in runs.items()})
  users, takes = _shared_users(runs)
  plain = {f'{name}:{row}': (name, row) for name, run in runs.items() for row in run['ranks']}
  once = [] if rows else _found_again(runs, takes, plain)
  for full in once:
    del plain[full]
  chosen = {full: of for full, of in plain.items() if not rows or full in rows or of[1] in rows}
  if not chosen:
    raise DataError(f'no row is named {", ".join(rows)}; these runs have {", ".join(plain)}')
  values = {full: per_case(runs[name]['ranks'][row][takes[name]], ks)
            for full, (name, row) in chosen.items()}
  pairs = _pairs({full: row for full, (_, row) in chosen.items()}, against)
  first = next(iter(runs.values()))
  return {
      'protocol': first['protocol'], 'data': first['data'], 'users': len(users),
      'left_out': {name: len(run['users']) - len(users) for name, run in runs.items()},
      'runs': {name: run['about'] for name, run in runs.items()},
      'once': list(dict.fromkeys(full.partition(':')[2] for full in once)), 'against': against and
      pairs[0][1], **summarise(values, seed, pairs=pairs),
  }


def _found_again(runs, takes, plain):
  """Rows whose name and ranks an earlier run has, a run's own first row never. -> ['run:row']"""
  seen, again = {}, []
  for full, (name, row) in plain.items():
    ranks = runs[name]['ranks'][row][takes[name]]
    if row != next(iter(runs[name]['ranks'])) and any(
        np.array_equal(ranks, other) for other in seen.get(row, ())):
      again.append(full)
    seen.setdefault(row, []).append(ranks)
  return again


def average(workdirs, seed=0, ks=KS):
  """The first row of several runs, e.g. of one setting and several seeds, as one row.

  A user's figure is the mean over the runs; only users that all of them ranked count. -> {metric:
  {value, low, high, n}}. Raises DataError as `compare` does.
  """
  runs = {name: _read_run(path) for name, path in _names(workdirs).items()}
  for key in ('data', 'protocol'):
    _check_equal(key, {name: run[key] for name, run in runs.items()})
  _, takes = _shared_users(runs)
  found = []
  for name, run in runs.items():
    ours = next(iter(run['ranks'])).partition(':seed=')[0]
    found += [per_case(ranks[takes[name]], ks) for row, ranks in run['ranks'].items()
              if row.partition(':seed=')[0] == ours]
  values = {m: np.mean([each[m] for each in found], 0) for m in found[0]}
  return summarise({'mean': values}, seed, pairs=[])['rows']['mean']


def _names(workdirs):
  """Folder names where they tell the runs apart, else the paths as given. -> {name: path}"""
  paths = [pathlib.Path(w) for w in workdirs]
  short = [p.resolve().name for p in paths]
  names = [str(p) if short.count(s) > 1 else s for p, s in zip(paths, short)]
  if not paths or len({p.resolve() for p in paths}) < len(paths):
    raise DataError(f'{", ".join(map(str, workdirs)) or "no run"} to compare; name each run once')
  return dict(zip(names, paths))


def _read_run(path):
  results, config = _read_json(path / 'results.json'), {}
  if (path / 'config.json').exists():
    config = _read_json(path / 'config.json')
  settings, facts = config.get('config', {}), config.get('facts', {})
  users, ranks = read_ranks(path / 'ranks.parquet')
  run = {'protocol': results.get('protocol'), 'users': users, 'ranks': ranks,
         'data': results.get('data_fingerprint') or config.get('data_fingerprint'), 'about': {
             'method': settings.get('method'), 'preset': settings.get('preset'),
             'seeds': results.get('seeds', []), 'users': len(users),
             'note': results.get('note', ''), 'revision': facts.get('revision'),
             'command': facts.get('command')}}
  for key, what in (('protocol', 'protocol'), ('data', 'data_fingerprint')):
    if not run[key]:
      raise DataError(f'{path / "results.json"} names no {what}, so nothing compares with it; run '
                      'its evaluation again')
  return run


def _read_json(path):
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise DataError(f'{path} does not exist; compare takes folders of finished runs') from None
  except ValueError as error:
    raise DataError(f'{path} is not readable JSON ({error}); run its evaluation again') from error


def _check_equal(key, found):
  alike = {}
  for name, value in found.items():
    alike.setdefault(json.dumps(value, sort_keys=True), []).append(name)
  if len(alike) > 1:
    listed = '; '.join(f'{", ".join(names)}: {found[names[0]]}' for names in alike.values())
    raise DataError(f'the runs differ in their {key}, so their figures do not compare: {listed}; '
                    'compare runs of one data set and one protocol')


def _shared_users(runs):
  """Users that every run ranked, in the first run's order, and where each run has them."""
  places = {name: {user: i for i, user in enumerate(run['users'])} for name, run in runs.items()}
  users = [u for u in next(iter(places.values())) if all(u in place for place in places.values())]
  if not users:
    raise DataError(f'no user is ranked in all of {", ".join(runs)}; compare runs on shared users')
  return users, {name: np.array([place[u] for u in users]) for name, place in places.items()}


def _pairs(rows, against):
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

def _cells(table, metrics):
  """Headings and rows of text for the figures, then for the tests.

  Where all rows were tested against one, p-values stand beside the figures and no tests follow.
  """
  heads, test_heads = ['row', 'users', *metrics], ['p, Holm-corrected', *metrics]
  figures = [[row, f'{found[metrics[0]]["n"]:,}'] + [
      '{value:.4f} [{low:.4f}, {high:.4f}]'.format(**found[m]) for m in metrics]
      for row, found in table['rows'].items()]
  tests = [[name, *(f'{p[m]:.4f}' for m in metrics)] for name, p in table['tests'].items()]
  against = table.get('against')
  if against:
    p = {name.removesuffix(f'>{against}'): found[metrics[0]]
         for name, found in table['tests'].items()}
    for row in figures:
      row.append('reference' if row[0] == against else f'{p[row[0]]:.4f}')
    heads, tests = [*heads, f'p of {metrics[0]}'], []
  return heads, figures, test_heads, tests


def note(table):
  """What a reader of the table has to know beside the protocol, '' where there is nothing."""
  said = []
  if table.get('against'):
    said.append(f'p: paired randomisation test against {table["against"]}, Holm-corrected')
  if table.get('once'):
    said.append(f'{", ".join(table["once"])}: the same in several runs, shown once')
  return '; '.join(said)


def text_table(table, metrics=SHOWN, width=120):
  """Figures with 95 % intervals and p-values for a terminal. -> str"""
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text
  heads, figures, test_heads, tests = _cells(table, metrics)
  out = io.StringIO()
  console = Console(file=out, width=width, force_terminal=False)
  for line in filter(None, (table['protocol'], note(table))):
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


def markdown_table(table, metrics=SHOWN):
  """The same for a Markdown page, the best value of each metric bold. -> str"""
  heads, figures, test_heads, tests = _cells(table, metrics)
  for cells in (figures, tests):
    for row in cells:
      row[0] = row[0].replace('|', r'\|')
  _mark_best(table, metrics, figures, '**{}**')
  parts = [p for line in (table['protocol'], note(table)) if line for p in (line, '')]
  for head, body in ((heads, figures), (test_heads, tests)):
    lines = [head, ['---'] + ['---:'] * (len(head) - 1), *body]
    parts += ['| ' + ' | '.join(line) + ' |' for line in lines if body] + [''] * bool(body)
  return '\n'.join(parts)


def latex_table(table, metrics=SHOWN):
  """The same as LaTeX tabulars (booktabs), the best value of each metric bold. -> str"""
  heads, figures, test_heads, tests = _cells(table, metrics)
  for cells in (heads, test_heads, *figures, *tests):
    cells[:] = [_latex(cell) for cell in cells]
  _mark_best(table, metrics, figures, r'\textbf{{{}}}')
  parts = [f'% {line}' for line in (table['protocol'], note(table)) if line]
  for head, body in ((heads, figures), (test_heads, tests)):
    if body:
      lines = [' & '.join(line) + r' \\' for line in (head, *body)]
      parts += [r'\begin{tabular}{l' + 'r' * (len(head) - 1) + '}', r'\toprule', lines[0],
                r'\midrule', *lines[1:], r'\bottomrule', r'\end{tabular}']
  return '\n'.join(parts) + '\n'


def csv_table(table, metrics=SHOWN):
  """One line a row and metric: row, metric, value, low, high, n, and its p against each row. -> str

  Full precision; a pair that was not tested is empty.
  """
  names = list(table['rows'])
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['row', 'metric', 'value', 'low', 'high', 'n', *(f'p:{n}' for n in names)])
  for row, metric in itertools.product(names, metrics):
    found = table['rows'][row][metric]
    tested = [table['tests'].get(f'{row}>{n}') or table['tests'].get(f'{n}>{row}') for n in names]
    writer.writerow([row, metric, *(found[c] for c in ('value', 'low', 'high', 'n')),
                     *(p[metric] if p else '' for p in tested)])
  return out.getvalue()


def _mark_best(table, metrics, figures, bold):
  for column, metric in enumerate(metrics, start=2):
    best = max(found[metric]['value'] for found in table['rows'].values())
    for row, found in zip(figures, table['rows'].values()):
      if found[metric]['value'] == best:
        value, interval = row[column].split(' ', 1)
        row[column] = f'{bold.format(value)} {interval}'


def _latex(text):
  special = {c: '\\' + c for c in '&%$#_{}'} | {
      '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
      '<': r'\textless{}', '>': r'\textgreater{}'}
  return ''.join(special.get(c, c) for c in text)


# Files of a run: what compare reads and what a person looks at.

def write_ranks(path, users, rows):
  """Writes columns user, row, rank (0 is best), atomically.

  users: n strings. rows: {row: (n,) int32 ranks}. Raises DataError for unequal lengths, ranks that
  are no integers, or a user named twice; WorkdirError where the file cannot be written.
  """
  import pyarrow as pa
  users = [str(u) for u in users]
  for row, ranks in rows.items():
    ranks = np.asarray(ranks)
    if ranks.shape != (len(users),) or not np.issubdtype(ranks.dtype, np.integer):
      raise DataError(f'row {row}: ranks are {ranks.dtype}{ranks.shape} for {len(users)} users; '
                      'give one integer each')
  if len(set(users)) < len(users):
    raise DataError(f'{len(users) - len(set(users))} users are named twice; a rank belongs to one')
  column = pa.array(users, pa.string())
  _write_parquet(path, pa.table({
      'user': pa.chunked_array([column] * len(rows), pa.string()),
      'row': pa.array(np.repeat(np.array(list(rows), object), len(users)), pa.string()),
      'rank': pa.array(np.concatenate([np.zeros(0), *rows.values()]).astype(np.int32)),
  }))


def read_ranks(path):
  """Reads what write_ranks wrote, in whatever order of lines.

  -> users tuple of n str, {row: (n,) int32}. Raises DataError where the file is missing or broken,
  or its rows do not rank the same users once each.
  """
  table = _read_parquet(path, ('user', 'row', 'rank'))
  labels = table['row'].combine_chunks().dictionary_encode()
  owner, order = labels.indices.to_numpy(zero_copy_only=False), labels.dictionary.to_pylist()
  user, rank = np.array(table['user'].to_pylist(), object), table['rank'].to_numpy()
  users, rows = (), {}
  for number, name in enumerate(order):
    mine = owner == number
    found = dict(zip(user[mine], rank[mine]))
    users = users or tuple(found)
    if len(found) != mine.sum() or found.keys() != set(users):
      raise DataError(f'{path}: row {name} does not rank the same users as row {order[0]}, each '
                      'once; write the ranks again')
    rows[name] = np.array([found[u] for u in users], np.int32)
  if not users:
    raise DataError(f'{path} holds no rank; run the evaluation again')
  return users, rows


def write_predictions(path, users, items, scores):
  """Writes columns user, rank (1 is best), item, score, atomically.

  users: n strings. items: (n, k) item ids, None or '' where a list is shorter. scores: (n, k)
  float32. Raises DataError for unequal shapes, WorkdirError where the file cannot be written.
  """
  import pyarrow as pa
  items, scores = np.asarray(items, object), np.asarray(scores, np.float32)
  if items.ndim != 2 or items.shape != scores.shape or len(users) != len(items):
    raise DataError(f'{len(users)} users, items {items.shape} and scores {scores.shape} do not '
                    'belong together; give one list of k items and scores a user')
  row, place = np.nonzero((items != None) & (items != ''))  # noqa: E711  elementwise
  names = pa.array([str(u) for u in users], pa.string())
  _write_parquet(path, pa.table({
      'user': names.take(pa.array(row)),
      'rank': pa.array((place + 1).astype(np.int32)),
      'item': pa.array([str(i) for i in items[row, place]], pa.string()),
      'score': pa.array(scores[row, place]),
  }))


def _write_parquet(path, table):
  import pyarrow.parquet as pq
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    pq.write_table(table, temporary)
    with open(temporary, 'rb+') as f:
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise WorkdirError(f'cannot write {path}: {error}; free space or change folder') from error


def _read_parquet(path, columns):
  import pyarrow as pa
  import pyarrow.parquet as pq
  try:
    return pq.read_table(path, columns=list(columns)).select(columns)
  except FileNotFoundError:
    raise DataError(f'{path} does not exist; compare takes folders of finished runs') from None
  except (pa.ArrowInvalid, KeyError) as error:
    raise DataError(f'{path} is no Parquet file with columns {", ".join(columns)} ({error}); run '
                    'the evaluation again') from error
