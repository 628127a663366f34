"""Training on more than memory holds: SASRec on records, beside the same data set in memory.

  python -m benchmarks.records --users=100000 --length=400 [--limit=3000] [--room=DIR]

Makes users of so many items, writes them as records, and trains an epoch; once with a quarter of
the users, so that one sees what grows with them. Then the same with the data set in memory. limit:
RLIMIT_DATA of both, in MB; JAX reserves 2 GB or so of it before it holds anything.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from recjax import file_io

ITEMS = 20_000


def make(folder, users, length):
  """Users who mostly go on to the next item, in blocks, as Parquet."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  names = np.array([f'i{n}' for n in range(ITEMS)], object)
  with file_io.table_writer(folder / 'items.jsonl') as write:
    write([{'item_id': name, 'title': name} for name in names])
  with file_io.table_writer(folder / 'sequences.parquet') as write:
    for first in range(0, users, 2000):
      count = min(2000, users - first)
      size = count, length
      steps = np.where(rng.random(size) < 0.1, rng.integers(0, ITEMS, size), 1)
      rows = names[steps.cumsum(1) % ITEMS].tolist()
      times = list(range(1_600_000_000, 1_600_000_000 + length))
      write([{'user_id': f'u{first + n}', 'items': row, 'times': times}
             for n, row in enumerate(rows)])


def run(words, limit=0):
  """Runs a command. limit: MB of data. -> exit code, seconds, peak resident MB, what it said"""
  def bounded():
    if limit:
      resource.setrlimit(resource.RLIMIT_DATA, (limit << 20, limit << 20))
  start = time.monotonic()
  with tempfile.TemporaryFile('w+') as said:
    process = subprocess.Popen([sys.executable, '-m', *map(str, words)], stdout=said, stderr=said,
                               preexec_fn=bounded)
    _, status, used = os.wait4(process.pid, 0)
    said.seek(0)
    text = said.read()
  return status, time.monotonic() - start, used.ru_maxrss / 1024, text


def training(data, workdir, batch):
  """The command that trains one epoch."""
  return ['recjax.main', f'--config=configs/sequential_beauty.py:data={data}',
          f'--workdir={workdir}', '--config.train.epochs=1', '--config.train.valid_users=2000',
          f'--config.train.batch={batch}', '--config.loss.kind=sampled',
          '--config.loss.negatives=256', '--config.loss.negative_scope=batch',
          '--config.loss.exclude=target']


def streamed(room, users, args):
  """Makes so many users, writes them as records, trains on them; prints what each took."""
  total = users * args.length
  make(room / f'made{users}', users, args.length)
  print(f'{users:,} users, {total:,} interactions, {total * 12 / 1e6:,.0f} MB as arrays',
        flush=True)
  status, seconds, peak, said = run(['recjax', 'prepare', 'records', room / f'made{users}',
                                     f'--out={room / "tfds"}'])
  if status:
    sys.exit(said)
  stored = pathlib.Path(said.rsplit('data set: ', 1)[1].strip())
  size = sum(p.stat().st_size for p in stored.iterdir()) / 1e6
  print(f'  written as records: {seconds:,.0f} s, {size:,.0f} MB, peak {peak:,.0f} MB', flush=True)
  workdir = room / f'run{users}'
  status, seconds, peak, said = run(training(stored, workdir, args.batch), args.limit)
  if status:
    sys.exit(said)
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  rows = [r for r in rows if 'data_wait' in r][1:]  # the first one compiles
  print(f'  trained an epoch: {seconds:,.0f} s, peak {peak:,.0f} MB; '
        f'{np.median([r["steps_per_s"] for r in rows]):.1f} steps/s, '
        f'{np.mean([r["data_wait"] for r in rows]):.2%} of the time waiting for data', flush=True)


def main():
  """Trains on a quarter of the users, on all of them, and on all of them in memory."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--users', type=int, default=100_000)
  parser.add_argument('--length', type=int, default=400)
  parser.add_argument('--limit', type=int, default=0, help='MB of data that training may hold')
  parser.add_argument('--batch', type=int, default=256)
  parser.add_argument('--room', default='', help='where the files go')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=args.room or None) as room:
    room = pathlib.Path(room)
    for users in (args.users // 4, args.users):
      streamed(room, users, args)
    status, seconds, peak, said = run(training(room / f'made{args.users}', room / 'whole',
                                               args.batch), args.limit)
    print(f'  the same in memory: {"fails" if status else "done"} after {seconds:,.0f} s, peak '
          f'{peak:,.0f} MB; {(said.strip().splitlines() or [""])[-1][:100]}')


if __name__ == '__main__':
  main()
