"""`recjax sweep`: one config over settings and seeds, the best setting chosen by validation alone.

Every run is a run folder of its own, made by `recjax.main` in a process of its own, so memory and
compiled programs never leak from one into the next. What is finished is not run again.
"""
import csv
import io
import itertools
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax import methods, progress, run_files
from recjax.errors import ConfigError, Preempted, WorkdirError
from recjax.evaluation import compare
from recjax.evaluation.results import CLOSING
from recjax.file_io import write_atomic, write_json
from recjax.run_files import read_json

WRITTEN = ('sweep.json', 'sweep.csv', 'sweep.html')

Point = dict[str, str]  # one setting of the grid: {'optim.lr': '1e-3'}
RunKey = tuple[int, int]  # place of its point in the grid, seed


def grid(settings: Iterable[str]) -> list[Point]:
  """Every combination. settings: ['optim.lr=1e-3,3e-4', ...] -> [{'optim.lr': '1e-3'}, ...]

  Raises ConfigError for a setting without values, or one that is named twice.
  """
  axes = {}
  for word in settings:
    name, equals, values = word.partition('=')
    texts = [v.strip() for v in split(values) if v.strip()]
    if not name or not equals or not texts:
      raise ConfigError(f'--set {word}: write --set optim.lr=1e-3,3e-4')
    if name in axes or name == 'seed':
      raise ConfigError(f'--set {name}: ' + ('seeds are counted by --seeds' if name == 'seed' else
                                             'give all its values in one --set'))
    axes[name] = list(dict.fromkeys(texts))
  return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def split(values: str) -> list[str]:
  """Values separated by commas outside of brackets: '(1,2),(3,)' -> ['(1,2)', '(3,)']. values: as
  --set holds them."""
  parts, depth = [''], 0
  for letter in values:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += letter
  return parts


def check_points(points: Sequence[Point], cfgs: Sequence[ConfigDict]) -> None:
  """Raises ConfigError where two points mean the same config, as 1e-3 and 0.001 do, or would share
  a folder. points: of the grid. cfgs: the config of each."""
  seen = {}
  for point, cfg in zip(points, cfgs):
    for key, what in ((json.dumps(cfg.to_dict(), sort_keys=True, default=str), 'are the same '
                       'settings'), (folder_name(point, 0), 'would be in one folder')):
      if key in seen:
        raise ConfigError(f'--set: {seen[key]} and {point} {what}; leave one out')
      seen[key] = point


def run(config: str, points: Sequence[Point], cfgs: Mapping[RunKey, ConfigDict],
        out: str | os.PathLike) -> int:
  """Runs what is not finished and writes sweep.csv, sweep.json and sweep.html after every run.

  config: what `--config` of recjax.main takes. points: of `grid`. cfgs: {(place in points, seed):
  resolved config}, in the order to run. out: the sweep's folder. -> how many runs failed.
  """
  out = pathlib.Path(out)
  runs = {key: out / folder_name(points[key[0]], key[1]) for key in cfgs}
  left = [key for key in cfgs if not finished(runs[key], cfgs[key])]
  done = len(runs) - len(left)
  print(f'{len(points)} settings x {len(runs) // len(points)} seeds = {len(runs)} runs in {out}'
        + (f', {done} of them done before' if done else ''), flush=True)
  took, failed = [], {}
  out.mkdir(parents=True, exist_ok=True)
  if not (out / 'sweep.json').exists():
    write(out, config, [], {})  # whose folder this is
  for number, key in enumerate(left, done + 1):
    name = runs[key].relative_to(out).as_posix()
    print(f'[{number}/{len(runs)}] {name}', flush=True)
    start = time.monotonic()
    with progress.doing(f'{name}, see its output.log'):
      error = run_one(config, points[key[0]], key[1], runs[key])
    took.append(time.monotonic() - start)
    if error:
      failed[key] = error
      print(f'    failed after {took[-1]:.0f} s: {error}', flush=True)
      continue
    write(out, config, table(points, runs, cfgs), failed)
    test = ', '.join(f'{m} {read_cell(runs[key], m):.4f}' for m in CLOSING)
    to_go = np.mean(took) * (len(runs) - number)
    print(f'    {took[-1]:.0f} s, {validation_text(validation(runs[key], cfgs[key]))}; test {test}'
          + (f'; about {to_go / 60:.0f} min left' if number < len(runs) else ''), flush=True)
  rows = table(points, runs, cfgs)
  write(out, config, rows, failed)
  print(closing_table(rows))
  for key, error in failed.items():
    print(f'failed: {runs[key]}: {error}')
  if failed:
    print('the same command runs the failed ones again')
  print(f'all in {out}: sweep.html, sweep.csv, sweep.json')
  return len(failed)


def folder_name(point: Point, seed: int) -> str:
  """Where a run goes: its settings and its seed, as a path that any file system takes. point: the
  settings."""
  name = '_'.join(f'{k}={v}' for k, v in point.items()) or 'preset'
  return f'{re.sub(r"[^A-Za-z0-9=._+-]", "-", name)}/seed={seed}'


def finished(folder: pathlib.Path, cfg: ConfigDict) -> bool:
  """Whether a run of that very config has ended there. folder: of the run. cfg: its config."""
  saved = run_files.read_config(folder) if (folder / 'config.json').exists() else None
  same = saved and saved['config'] == json.loads(json.dumps(cfg.to_dict(), default=str))
  return bool(same) and (folder / 'report.html').exists() and (folder / 'results.json').exists()


def run_one(config: str, point: Point, seed: int, folder: pathlib.Path) -> str:
  """One experiment in a process of its own. config: name of the file. point: the settings. seed: of
  the run. folder: of the run. -> '' or what went wrong. Raises Preempted."""
  folder.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, '-m', 'recjax.main', f'--config={config}', f'--workdir={folder}',
             *(f'--config.{k}={v}' for k, v in point.items()), f'--config.seed={seed}']
  with open(folder / 'output.log', 'w') as log:
    child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
      code = child.wait()
    except KeyboardInterrupt:
      child.wait()  # the terminal told it too
      raise
    finally:
      signal.signal(signal.SIGTERM, before)
  if code in (143, -signal.SIGTERM):
    raise Preempted
  if code == 130:
    raise KeyboardInterrupt
  lines = (folder / 'output.log').read_text(errors='replace').strip().splitlines()
  return '' if not code else f'exit code {code}: {lines[-1] if lines else "no output"}'


def validation(folder: pathlib.Path, cfg: ConfigDict) -> tuple[str, float, bool] | None:
  """What a run reached on validation. -> (metric, value, whether more is better), or None.

  folder: of the run. cfg: its config.

  It is read from metrics.jsonl for the stage that the method names: the lowest loss, or the best
  NDCG@10, the mean over seeds that were trained side by side. None: the method holds nothing out.
  """
  stage, figures = methods.find(cfg.method, 'the config').validated(cfg), {}
  for row in run_files.read_metrics(folder / 'metrics.jsonl') if stage else ():
    for name, value in row.items() if row.get('stage') == stage else ():
      if name.startswith('valid_'):
        figures.setdefault(name, []).append(value)
  if 'valid_loss' in figures:
    return 'loss', min(figures['valid_loss']), False
  if figures:
    return 'NDCG@10', float(np.mean([max(values) for values in figures.values()])), True
  return None


def validation_text(valid: tuple[str, float, bool] | None) -> str:
  """What `validation` gives, in words. valid: what it gives."""
  return f'validation {valid[0]} {valid[1]:.4f}' if valid else 'no validation figure'


def read_cell(folder: pathlib.Path, metric: str) -> float:
  """The value of a metric in the first row of a run's results. folder: of the run."""
  rows = run_files.need_json(folder / 'results.json')['rows']
  return next(iter(rows.values()))[metric]['value']


def table(points: Sequence[Point], runs: Mapping[RunKey, pathlib.Path],
          cfgs: Mapping[RunKey, ConfigDict]) -> list[dict]:
  """One row a setting, of its finished runs. -> [dict], the best by validation marked.

  points: of the grid. runs: folders. cfgs: the configs of all runs.

  Each has 'settings', 'seeds', 'validation' (metric, mean, sd) or None, 'test' {metric: {value,
  low, high, n, sd}}, 'folders' and 'best'. The interval is that of `compare.average`; sd is over
  seeds, None for one.
  """
  rows = []
  for place, point in enumerate(points):
    done = {seed: runs[p, seed] for p, seed in cfgs
            if p == place and finished(runs[p, seed], cfgs[p, seed])}
    if not done:
      continue
    valid: list[Any] = [validation(folder, cfgs[place, seed]) for seed, folder in done.items()]
    cells = compare.average(done.values())
    test = {m: {**cells[m], 'sd': deviation([read_cell(f, m) for f in done.values()])}
            for m in CLOSING}
    mean = None if None in valid else {
        'metric': valid[0][0], 'mean': float(np.mean([v[1] for v in valid])),
        'sd': deviation([v[1] for v in valid]), 'more_is_better': valid[0][2]}
    rows.append({'settings': point, 'seeds': list(done), 'validation': mean, 'test': test,
                 'folders': [str(f) for f in done.values()], 'best': False})
  judged = [r for r in rows if r['validation']]
  if judged:
    sign = 1 if judged[0]['validation']['more_is_better'] else -1
    best = max(judged, key=lambda r: sign * r['validation']['mean'])
    tied = [r for r in judged if r['validation']['mean'] == best['validation']['mean']]
    best['best'] = len(tied) == 1
  return rows


def deviation(values: Sequence[float]) -> float | None:
  """The standard deviation of several values, None of one."""
  return float(np.std(values, ddof=1)) if len(values) > 1 else None


def cells_of(row: dict) -> list[str]:
  """What a table shows of a setting, as text; an interval stands on a line of its own. row: of
  `table`."""
  def spread(value: Any, sd: Any) -> str:
    return f'{value:.4f}' + (f' ± {sd:.4f}' if sd is not None else '')

  valid = row['validation']
  return [*row['settings'].values(), str(len(row['seeds'])),
          spread(valid['mean'], valid['sd']) if valid else '–',
          *(f'{spread(c["value"], c["sd"])}\n[{c["low"]:.4f}, {c["high"]:.4f}]'
            for c in row['test'].values())]


def heads_of(rows: Sequence[dict]) -> list[str]:
  """The heads of the columns of `cells_of`. rows: of `table`."""
  metric = next((r['validation']['metric'] for r in rows if r['validation']), '')
  return [*rows[0]['settings'], 'seeds', f'validation {metric}'.strip(),
          *(f'test {m}' for m in CLOSING)]


def verdict(rows: Sequence[dict]) -> str:
  """Which setting won, in a sentence. rows: of `table`."""
  best = next((r for r in rows if r['best']), None)
  if best:
    setting = ', '.join(f'{k}={v}' for k, v in best['settings'].items()) or 'the config as it is'
    return f'best by validation: {setting}; its first run: {best["folders"][0]}'
  if any(r['validation'] for r in rows):
    return 'validation does not tell the settings apart, so none is called best'
  return 'the method holds nothing out for validation, so no setting is called best'


NOTE = ('± is the standard deviation over seeds, [ ] the 95 % interval of the mean over seeds: '
        'over users and seeds from three seeds on, a bootstrap over users below; test figures '
        'choose nothing')


def closing_table(rows: Sequence[dict]) -> str:
  """The table that a sweep ends with, as text, and what it says. rows: of `table`."""
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text
  if not rows:
    return 'no run has ended'
  out = io.StringIO()
  console = Console(file=out, width=120, force_terminal=False)
  shown = Table(*heads_of(rows))
  for row in rows:
    shown.add_row(*map(Text, cells_of(row)), style='bold' if row['best'] else None)
  console.print(shown)
  return f'{out.getvalue()}{verdict(rows)}\n{NOTE}'


def write(out: pathlib.Path, config: str, rows: Sequence[dict], failed: Mapping[RunKey, str]
          ) -> None:
  """Writes sweep.json, sweep.csv (one line a setting, full precision) and sweep.html, each whole.

  rows: as `table` gives them. failed: what went wrong with runs. out: the sweep's folder. config:
  name of the file.
  """
  from recjax.report import html
  write_json(out / 'sweep.json', {'config': config, 'rows': rows})
  if not rows:
    return
  lines = io.StringIO()
  names = list(rows[0]['settings'])
  writer = csv.writer(lines, lineterminator='\n')
  writer.writerow([*names, 'seeds', 'validation', 'validation_sd', 'best', *(
      f'{m}{end}' for m in CLOSING for end in ('', '_low', '_high', '_sd'))])
  for row in rows:
    valid = row['validation'] or {'mean': math.nan, 'sd': None}
    writer.writerow([*(row['settings'][n] for n in names), len(row['seeds']), valid['mean'],
                     valid['sd'], row['best'], *(c[k] for c in row['test'].values()
                                                 for k in ('value', 'low', 'high', 'sd'))])
  write_atomic(out / 'sweep.csv', lines.getvalue())

  def cell(row: dict, shown: str) -> Any:
    value, _, interval = shown.partition('\n')
    return html.value_with_interval(value, interval, strong=row['best'])

  marked = [[cell(row, shown) for shown in cells_of(row)] for row in rows]
  html.write(out / 'sweep.html', html.page('Sweep', config, f'{verdict(rows)}. {NOTE}.', [
      html.section('Settings', html.table(heads_of(rows), marked, 'One row a setting',
                                           'l' * len(names) + 'rrrr')),
      html.section('Runs', html.facts({f: 'finished' for row in rows for f in row['folders']} | {
          f'{k}': v for k, v in failed.items()}))]))


def check_folder(out: str | os.PathLike, config: str | None = None) -> None:
  """Raises WorkdirError where the folder is that of a run, of another sweep, or holds what no sweep
  made. config: as `run` takes it. out: the folder."""
  out = pathlib.Path(out)
  if (out / 'config.json').exists():
    raise WorkdirError(f'{out} is the folder of a run; name another --out for the sweep')
  if out.exists() and not out.is_dir():
    raise WorkdirError(f'{out} is no folder; name another --out for the sweep')
  made = read_json(out / 'sweep.json')
  odd = [p for p in (sorted(out.iterdir()) if out.exists() else []) if not (
      p.name.startswith(tuple(f'.{name}.' for name in WRITTEN))  # of one that was killed
      or p.name in WRITTEN and made is not None or p.is_dir() and not p.is_symlink()
      and all(re.fullmatch('seed=[0-9]+', q.name) for q in p.iterdir()))]
  if made is not None and made.keys() != {'config', 'rows'}:
    odd.insert(0, out / 'sweep.json')
  if odd:
    raise WorkdirError(f'{odd[0]} was made by no sweep; name another --out, so that nothing is '
                       'written over')
  if made and config and _normal(made['config']) != _normal(config):
    raise WorkdirError(f'{out} holds a sweep of {made["config"]}, not of {config}; name another '
                       '--out')


def _normal(config):
  """`config` as `run` takes it, with its path spelled in one way."""
  path, *argument = str(config).split(':', 1)
  return [os.path.normpath(path), *argument]
