"""Cuts the log of a data set at a moment, as a shop had it the day before and has it now.

    python -m benchmarks.nightly data/ml-100k --at=0.9 --out=/tmp/nightly

leaves before.csv, now.csv and items.csv, which `recjax prepare table` reads (docs/data.md, "The
nightly job").
"""
import argparse
import csv
import pathlib

import numpy as np

from recjax.data import loading, splits


def write(path, names, rows):
  """A CSV file. names: of its columns."""
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerows([names, *rows])


def main():
  """Writes the three files and says what they hold."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('data', help='a data set with times')
  parser.add_argument('--at', type=float, default=0.9, help='share of the log before the moment')
  parser.add_argument('--out', required=True, help='folder for the files')
  args = parser.parse_args()
  dataset, out = loading.load_data(args.data), pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  data = dataset.interactions
  times = splits.usable_times(data, dataset.name, 'or take another data set')
  users = np.repeat(data.users, data.lengths())
  ids = np.array(dataset.catalog.ids)[data.items - 1]
  order = np.lexsort((np.arange(len(times)), times))
  early = times[order] <= np.quantile(times, args.at)
  for name, rows in (('before', order[early]), ('now', order)):
    write(out / f'{name}.csv', ('user_id', 'item_id', 'timestamp'),
          zip(users[rows], ids[rows], times[rows]))
    print(f'{name}.csv: {len(rows):,} interactions, {len(set(users[rows])):,} users, '
          f'{len(set(ids[rows])):,} items')
  write(out / 'items.csv', ('item_id', 'title'),
        zip(dataset.catalog.ids, dataset.catalog.columns['title']))


if __name__ == '__main__':
  main()
