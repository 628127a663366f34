"""A shop's million purchases from the export to a list for every user, beside RecBole and implicit.

  python -m benchmarks.million [--rows=1000000 --users=100000 --items=50000] [--room=DIR]
                               [--peers=PYTHON] [--only=recjax,recbole,implicit]

Makes a CSV of purchases with some order in it (a third of them follow from the one before), and
measures every step in a process of its own: seconds, CPU seconds, peak memory, and how often the
last purchase stands among the ten best. PYTHON is an interpreter that has `recbole`, `implicit` and
`pandas`; without it recjax runs alone. SASRec has the same shape on both sides, one negative a
target, one epoch; RecBole trains on every prefix of a history in a row of its own. implicit is ALS
with 64 factors and its usual 15 rounds.
"""
import argparse
import csv
import datetime
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

from benchmarks.prepare import measured

ROOT = pathlib.Path(__file__).parents[1]
WIDTH, LENGTH, TOP = 64, 20, 10
SIDES = ('recjax', 'recbole', 'implicit')


def make(path, rows, users, items):
  """Purchases of one item each at distinct minutes, users and items of falling popularity."""
  rng = np.random.default_rng(0)
  counts = 5 + rng.multinomial(rows - 5 * users, rng.dirichlet(np.full(users, 1.5)))
  share = 1 / np.arange(10, items + 10)
  popular = rng.choice(items, rows, p=share / share.sum())
  follows, next_item = rng.random(rows) < 1 / 3, rng.permutation(items)
  start = datetime.datetime(2024, 1, 1)
  minutes = np.sort(rng.integers(0, 900_000, rows))
  last, line = np.full(users, -1), 0
  with open(path, 'w', newline='', encoding='utf-8') as file:
    out = csv.writer(file)
    out.writerow(['customer_id', 'product_id', 'ordered_at'])
    for user in rng.permutation(np.repeat(np.arange(users), counts)):
      item = next_item[last[user]] if follows[line] and last[user] >= 0 else popular[line]
      when = start + datetime.timedelta(minutes=int(minutes[line]))
      out.writerow([f'C{user:06d}', f'P{item:05d}', f'{when:%Y-%m-%d %H:%M}'])
      last[user], line = item, line + 1


def recjax_steps(room):
  """[(step, its command)]"""
  command = [sys.executable, '-m', 'recjax']
  data, run = room / 'data', room / 'run'
  return [
      ('prepare', [*command, 'prepare', 'table', room / 'orders.csv', '--yes', f'--out={data}']),
      ('doctor', [*command, 'doctor', data]),
      ('run', [
          *command, 'run', f'sequential_scientific:data={data}', f'--workdir={run}',
          f'--config.model.max_history={LENGTH}', '--config.loss.kind=bce',
          '--config.train.epochs=1', '--config.eval.classical=False', '--config.eval.save_top=10',
          '--config.train.valid_users=1000']),
      ('lists', [*command, 'recommend', run, f'--input={data / "sequences.jsonl"}',
                 f'--output={room / "lists.parquet"}', f'--k={TOP}'])]


def with_implicit(room):
  """ALS on all but each user's last purchase, lists of all users into a Parquet file."""
  import pandas as pd
  from implicit.als import AlternatingLeastSquares
  from scipy import sparse
  frame = pd.read_csv(room / 'orders.csv', parse_dates=['ordered_at']).sort_values(
      'ordered_at', kind='stable')
  users, user_names = pd.factorize(frame.customer_id)
  items, item_names = pd.factorize(frame.product_id)
  last = ~pd.Series(users).duplicated(keep='last').to_numpy()
  shape = len(user_names), len(item_names)
  known = sparse.csr_matrix((np.ones((~last).sum(), np.float32), (users[~last], items[~last])),
                            shape)
  model = AlternatingLeastSquares(factors=WIDTH, random_state=0)
  model.fit(known, show_progress=False)
  found = np.concatenate([
      model.recommend(part, known[part], N=TOP)[0]
      for part in np.array_split(np.arange(shape[0]), 50)])
  target = np.zeros(shape[0], int)
  target[users[last]] = items[last]
  pd.DataFrame({'user_id': user_names, 'items': list(item_names.to_numpy()[found])}).to_parquet(
      room / 'implicit.parquet')
  print(json.dumps({'HR@10': float((found == target[:, None]).any(1).mean())}))


def with_recbole(room):
  """SASRec for an epoch, judged on each user's last purchase."""
  import pandas as pd
  from recbole.quick_start import run_recbole
  frame = pd.read_csv(room / 'orders.csv', parse_dates=['ordered_at'])
  folder = room / 'recbole' / 'orders'
  folder.mkdir(parents=True, exist_ok=True)
  pd.DataFrame({'user_id:token': frame.customer_id, 'item_id:token': frame.product_id,
                'timestamp:float': frame.ordered_at.astype('int64') // 10 ** 9}).to_csv(
                    folder / 'orders.inter', sep='\t', index=False)
  sys.argv = sys.argv[:1]
  result = run_recbole(model='SASRec', dataset='orders', saved=False, config_dict={
      'data_path': str(folder.parent), 'load_col': {'inter': ['user_id', 'item_id', 'timestamp']},
      'MAX_ITEM_LIST_LENGTH': LENGTH, 'hidden_size': WIDTH, 'inner_size': WIDTH, 'n_heads': 1,
      'n_layers': 2, 'loss_type': 'BPR', 'train_neg_sample_args': {
          'distribution': 'uniform', 'sample_num': 1, 'alpha': 1.0, 'dynamic': False,
          'candidate_num': 0},
      'epochs': 1, 'train_batch_size': 2048, 'eval_batch_size': 4096, 'topk': [TOP],
      'metrics': ['Hit', 'NDCG'], 'valid_metric': f'NDCG@{TOP}', 'use_gpu': False,
      'eval_args': {'split': {'LS': 'valid_and_test'}, 'order': 'TO', 'mode': 'full',
                    'group_by': 'user'}, 'show_progress': False, 'state': 'WARNING',
      'checkpoint_dir': str(room / 'recbole')})
  print(json.dumps({'HR@10': float(result['test_result'][f'hit@{TOP}'])}))


def told(side, step, seconds, cpu, peak, more=''):
  """Prints a line of the table."""
  print(f'{side:9s} {step:8s} {seconds:8.1f} {cpu:8.1f} {peak / 1e6:8,.0f}  {more}', flush=True)


def main():
  """Measures each side and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--rows', type=int, default=1_000_000)
  parser.add_argument('--users', type=int, default=100_000)
  parser.add_argument('--items', type=int, default=50_000)
  parser.add_argument('--peers', default='', help='a Python with recbole, implicit and pandas')
  parser.add_argument('--only', default=','.join(SIDES))
  parser.add_argument('--room', default='', help='where the files go and stay')
  parser.add_argument('--side', choices=SIDES[1:], help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    return {'implicit': with_implicit, 'recbole': with_recbole}[args.side](pathlib.Path(args.room))
  room = pathlib.Path(args.room or tempfile.mkdtemp(prefix='million-'))
  room.mkdir(parents=True, exist_ok=True)
  begun = time.monotonic()
  make(room / 'orders.csv', args.rows, args.users, args.items)
  print(f'{room / "orders.csv"}: {args.rows:,} purchases, '
        f'{(room / "orders.csv").stat().st_size / 1e6:,.0f} MB, made in '
        f'{time.monotonic() - begun:.0f} s\nside      step      seconds  CPU s    peak MB',
        flush=True)
  for side in args.only.split(','):
    if side == 'recjax':
      for step, command in recjax_steps(room):
        told(side, step, *measured(list(map(str, command))))
      rows = json.loads((room / 'run' / 'results.json').read_text())['rows']
      print('          HR@10: ' + ', '.join(
          f'{name} {cells["HR@10"]["value"]:.4f}' for name, cells in rows.items()))
    elif args.peers:
      out = room / f'{side}.txt'
      command = ['sh', '-c', f'cd "{room}" && PYTHONPATH="{ROOT}" exec "$0" -m benchmarks.million '
                 f'--side={side} --room="{room}" > "{out}" 2> "{out}.log"', args.peers]
      seconds, cpu, peak = measured(command)
      found = json.loads(out.read_text().splitlines()[-1])
      told(side, 'all', seconds, cpu, peak, f'HR@10 {found["HR@10"]:.4f}')


if __name__ == '__main__':
  main()
