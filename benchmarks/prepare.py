"""Raw reviews to a 5-core data set: time and peak memory of `recjax prepare`, beside pandas.

  python -m benchmarks.prepare --rows=1000000 [--memory=2GB] [--without-pandas] [--room=DIR]
  python -m benchmarks.prepare --rows=1000000 --table    a shop's CSV, to `recjax prepare table`

Makes reviews in the layout of Amazon 2023 (gzipped JSON Lines), runs each side in a process of its
own and checks that both find the same sequences. pandas reads in chunks and keeps four columns.
"""
import argparse
import datetime
import gzip
import hashlib
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

LINE = ('{"rating": %d.0, "title": "Fine", "text": "%s", "images": [], "asin": "B%08d", '
        '"parent_asin": "B%08d", "user_id": "AE%024d", "timestamp": %d, "helpful_vote": 0, '
        '"verified_purchase": true}\n')


def make(path, rows):
  """Reviews whose users and items are of exponential popularity, 12 and 60 a piece on average."""
  rng = random.Random(0)
  with gzip.open(path, 'wt', compresslevel=1) as out:
    for _ in range(rows):
      user, item = (int(rng.expovariate(1) * rows / n) for n in (12, 60))
      out.write(LINE % (rng.randint(1, 5), 'word ' * 60, item, item, user,
                        1_500_000_000_000 + rng.randrange(10 ** 11)))


def make_table(path, rows):
  """Purchases as a German spreadsheet writes them, in Windows' encoding, without order."""
  rng = random.Random(0)
  start = datetime.datetime(2023, 1, 1)
  with open(path, 'w', encoding='cp1252', newline='\r\n') as out:
    out.write('Kunde;Artikelnummer;Bezeichnung;Bestelldatum;Menge;Preis\n')
    for _ in range(rows):
      user, item = int(rng.expovariate(1) * 25_000), int(rng.expovariate(1) * 9_000)
      when = start + datetime.timedelta(seconds=rng.randrange(63_000_000))
      out.write(f'K{user:06d};SKU-{item:05d};K\xfcche {item};{when:%d.%m.%Y %H:%M:%S};'
                f'{rng.randint(1, 3)};{rng.randint(1, 99)},{rng.randint(0, 99):02d}\n')


def with_pandas(reviews, out):
  """The same with pandas, all in memory."""
  import pandas as pd
  columns = ['user_id', 'parent_asin', 'timestamp']
  frame = pd.concat(chunk[columns] for chunk in pd.read_json(
      reviews, lines=True, chunksize=100_000, dtype=False))
  while True:
    enough = (frame.groupby('user_id').user_id.transform('size').ge(5)
              & frame.groupby('parent_asin').parent_asin.transform('size').ge(5))
    if enough.all():
      break
    frame = frame[enough]
  frame = frame.sort_values('timestamp', kind='stable')
  out.mkdir()
  with open(out / 'sequences.jsonl', 'w') as lines:
    for user, part in frame.groupby('user_id', sort=False):
      lines.write(json.dumps({'user_id': user, 'items': part.parent_asin.tolist(),
                              'times': part.timestamp.tolist()}) + '\n')


def measured(command):
  """Runs a command. -> seconds, CPU seconds, peak resident memory in bytes. Exits if it fails."""
  start = time.monotonic()
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  _, status, used = os.wait4(process.pid, 0)
  if status:
    sys.exit(f'failed: {" ".join(map(str, command))}')
  return time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def mark(path):
  """Users, interactions, and a sum over hashes of the sequences, whatever their order."""
  users = interactions = total = 0
  with open(path) as lines:
    for row in map(json.loads, lines):
      text = json.dumps([row['user_id'], row['items'], row['times']])
      total += int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')
      users, interactions = users + 1, interactions + len(row['items'])
  return users, interactions, total % 2 ** 64


def main():
  """Measures both sides and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--rows', type=int, default=1_000_000)
  parser.add_argument('--memory', default='2GB')
  parser.add_argument('--without-pandas', action='store_true')
  parser.add_argument('--table', action='store_true', help="a shop's CSV instead of reviews")
  parser.add_argument('--room', default='', help='where the files go; needs 60 bytes a row or so')
  parser.add_argument('--pandas-side', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.pandas_side:
    with_pandas(*map(pathlib.Path, args.pandas_side))
    return
  with tempfile.TemporaryDirectory(dir=args.room or None) as room:
    room = pathlib.Path(room)
    if args.table:
      make_table(room / 'log.csv', args.rows)
      seconds, cpu, peak = measured([
          sys.executable, '-m', 'recjax', 'prepare', 'table', room / 'log.csv', '--yes',
          f'--memory={args.memory}', f'--out={room / "recjax"}'])
      users, interactions, _ = mark(room / 'recjax' / 'sequences.jsonl')
      print(f'{args.rows:,} rows, {(room / "log.csv").stat().st_size / 1e6:,.0f} MB: {seconds:.1f} '
            f's, {cpu:.1f} CPU s, {peak / 1e6:,.0f} MB; {users:,} users, {interactions:,} '
            'interactions')
      return
    reviews = room / 'Made.jsonl.gz'
    make(reviews, args.rows)
    sides = {'recjax prepare': [
        sys.executable, '-m', 'recjax', 'prepare', 'amazon2023', reviews, '--variant=etegrec',
        f'--memory={args.memory}', f'--out={room / "recjax"}']}
    if not args.without_pandas:
      sides['pandas'] = [sys.executable, '-m', 'benchmarks.prepare', '--pandas-side', reviews,
                         room / 'pandas']
    marks = []
    print(f'{args.rows:,} reviews, {reviews.stat().st_size / 1e6:,.0f} MB gzipped')
    print('side            seconds  CPU s   rows/s  peak MB')
    for name, command in sides.items():
      seconds, cpu, peak = measured(command)
      marks.append(mark(room / name.split()[0] / 'sequences.jsonl'))
      print(f'{name:14s} {seconds:8.1f} {cpu:6.1f} {args.rows / seconds:8,.0f} {peak / 1e6:8,.0f}')
    print(f'{marks[0][0]:,} users, {marks[0][1]:,} interactions are left')
    if len(set(marks)) > 1:
      sys.exit(f'the sides differ: {marks}')


if __name__ == '__main__':
  main()
