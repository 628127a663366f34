"""Tables about evaluation itself, out of finished runs, as Markdown with intervals and p.

  python -m benchmarks.evaluation_tables shortcuts runs/a runs/b        # rows by data set
  python -m benchmarks.evaluation_tables splits runs/loo runs/last      # rows by split, and tau
  python -m benchmarks.evaluation_tables groups runs/a --against=sasrec   # rows by group
  python -m benchmarks.evaluation_tables cold DATA OUT    # data with items kept out of training

docs/evaluation.md shows what they came to, with the commands of the runs.
"""
import argparse
import dataclasses
import pathlib

import numpy as np

from recjax import experiment
from recjax.data import loading, splits
from recjax.data.dataset import flatten, make_dataset
from recjax.evaluation import audit, compare, metrics, results, statistics
from recjax.training import workdir


def cell(value):
  """A figure with its interval."""
  return f'{value["value"]:.4f} [{value["low"]:.4f}, {value["high"]:.4f}]'


def lines(heads, body):
  """Prints a Markdown table."""
  for line in (heads, ['---'] * len(heads), *body):
    print('| ' + ' | '.join(line) + ' |')
  print()


def opened(path):
  """A run's results, and its data set as it was split."""
  return experiment.open_run(path).results, loading.load_for_config(workdir.saved_config(path))


def shortcuts(paths):
  """Rows that train nothing beside one that does, and what the data are like, a column a run."""
  runs = [opened(path) for path in paths]
  users = [next(iter(found['rows'].values()))['HR@10']['n'] for found, _ in runs]
  names = [f'{data.name} ({n:,} users)' for n, (_, data) in zip(users, runs)]
  rows = list(dict.fromkeys(row for found, _ in runs for row in found['rows']))
  for metric in ('HR@10', 'NDCG@10'):
    body = []
    for row in rows:
      cells = []
      for found, _ in runs:
        first = next(iter(found['rows']))
        if row not in found['rows']:
          cells.append('left out')
          continue
        p = found['tests'].get(f'{first}>{row}', {}).get(metric)
        cells.append(cell(found['rows'][row][metric])
                     + (f', p {p:.2g}' if p is not None else f', {len(found["seeds"])} seeds'))
      body.append([f'`{row}`', *cells])
    lines([metric, *names], body)
  facts = {}
  for number, (found, data) in enumerate(runs):
    for check in audit.audit(data):
      for name, value in check.figures.items():
        facts.setdefault(f'{check.name}: {name}', {})[number] = (
            f'{value:,}' if isinstance(value, int) else f'{value:.4f}')
    facts.setdefault('share of tests memorized', {})[number] = (
        f'{next(iter(found["rows"].values()))["HR@10:memorized"]["n"] / users[number]:.4f}')
  lines(['of the data', *names],
        [[name, *(values.get(n, '') for n in range(len(runs)))] for name, values in facts.items()])


def by_row(path, metric='NDCG@10'):
  """A metric of every user under each row: {row: (U,)}, means over seeds and cases."""
  cases, ranks = results.read_ranks(pathlib.Path(path) / 'ranks.parquet')
  owners = compare.owners_of(cases)
  sizes = np.bincount(owners)[owners] if experiment.open_run(path).results.get('as_set') else None
  values = {}
  for row, line in ranks.items():
    values.setdefault(row.partition(':seed=')[0], []).append(
        statistics.by_user(metrics.per_case(line, (10,), sizes)[metric], owners))
  return {row: np.mean(each, 0) for row, each in values.items()}


def splits_table(paths):
  """The same rows under several splits of one data set, and how alike their orders are."""
  found = [experiment.open_run(path).results for path in paths]
  values = [by_row(path) for path in paths]
  shared = [row for row in values[0] if all(row in v for v in values) and row != 'random']
  lines(['NDCG@10', *(f.get('protocol', '').split(', full')[0] for f in found)],
        [[f'`{row}`', *(cell(f['rows'][row]['NDCG@10']) for f in found)] for row in shared])
  first, *others = ([v[row] for row in shared] for v in values)
  taus = [statistics.kendall(first, other, 0) for other in others]
  lines([f'against {pathlib.Path(paths[0]).name}', 'rows', "Kendall's tau-b of NDCG@10"],
        [[pathlib.Path(path).name, str(len(shared)), '{:.3f} [{:.3f}, {:.3f}]'.format(*tau)]
         for path, tau in zip(paths[1:], taus)])


def groups(paths, against, rows):
  """Each row among the memorized, generalized, cold ... users, with p against one row."""
  found = compare.compare(paths, rows, against)
  print(found['protocol'], end='\n\n')
  about = found['groups']
  names = [n for n, size in about['sizes'].items() if size >= 30]
  body = []
  for row, cells in about['rows'].items():
    marked = row == about['reference']
    body.append([f'`{row}`', *(
        cell(cells[n]) + ('' if marked else f', p {cells[n]["p"]:.2g}') for n in names)])
  lines([f'{about["metric"]}, difference to {about["reference"]}',
         *(f'{n} ({about["sizes"][n]:,})' for n in names)], body)
  lines(['all users', 'HR@10', 'NDCG@10', 'p of HR@10'], [
      [f'`{row}`', cell(cells['HR@10']), cell(cells['NDCG@10']),
       f'{p["HR@10"]:.2g}' if (p := found['tests'].get(f'{row}>{found["against"]}')) else '']
      for row, cells in found['rows'].items()])


def keep_out(source, folder, share=.05, seed=0):
  """Writes a data set in which items drawn evenly over popularity are met as last items alone."""
  data = loading.load_data(source)
  given = data.interactions
  counts = np.bincount(splits.leave_one_out(given).train.items,
                       minlength=len(data.catalog) + 1)[1:]
  order = np.argsort(-counts, kind='stable') + 1
  step = round(1 / share)
  rng = np.random.default_rng(seed)
  out = np.array([rng.choice(order[i:i + step]) for i in range(0, len(order), step)])
  rows, times = [], []
  for user in range(len(given)):
    items = given.history(user)
    kept = ~np.isin(items, out)
    kept[-1:] = True
    rows.append(items[kept])
    if given.times is not None:
      times.append(given.times[given.offsets[user]:given.offsets[user + 1]][kept])
  items, offsets = flatten(rows)
  interactions = dataclasses.replace(
      given, items=items, offsets=offsets, ratings=None,
      times=np.concatenate(times) if times else None)
  loading.save_data(make_dataset(f'{data.name}-cold', data.catalog, interactions), folder)
  print(f'{len(out):,} of {len(data.catalog):,} items are in no training part; '
        f'{len(given.items) - len(items):,} interactions are gone')


def main():
  """Prints the table that the command line asks for."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('table', choices=('shortcuts', 'splits', 'groups', 'cold'))
  parser.add_argument('paths', nargs='+')
  parser.add_argument('--against', default='')
  parser.add_argument('--rows', default='')
  args = parser.parse_args()
  if args.table == 'cold':
    keep_out(*args.paths)
  elif args.table == 'groups':
    groups(args.paths, args.against, [r for r in args.rows.split(',') if r])
  else:
    {'shortcuts': shortcuts, 'splits': splits_table}[args.table](args.paths)


if __name__ == '__main__':
  main()
