"""The folder that UniRec trains RecLM's teacher on (reclm.md 1.3): pickled tables and a map of ids.

Writing needs pandas, reading does not.
"""
import json
import pathlib
import pickle

import numpy as np

from recjax import file_io
from recjax.data.formats import pandas_pickle, plain_pickle, reclm
from recjax.errors import ConfigError, DataError

PAD = '[PAD]'  # number 0 of both maps


def read(folder):
  """-> item ids, user ids, sequences of item numbers from 1; users in the order of the map.

  A sequence is the history, which ends with the item of the validation, and the item of the test.
  Raises DataError naming the file and the row.
  """
  folder = pathlib.Path(folder)
  users, items = _maps(folder / 'map.pkl')
  history = _table(folder / 'user_history.pkl', 'item_seq')
  test = _table(folder / 'test.pkl', 'item_id')
  rows = {}
  for number, (user, row) in enumerate(zip(history['user_id'], history['item_seq']), 1):
    place = f'{folder / "user_history.pkl"} row {number}'
    row = [int(i) for i in row]
    _inside(place, 'user', [int(user)], users)
    _inside(place, 'item', row, items)
    if int(user) in rows:
      raise DataError(f'{place}: user {user} was given before.')
    rows[int(user)] = row
  for number, (user, item) in enumerate(zip(test['user_id'], test['item_id']), 1):
    place = f'{folder / "test.pkl"} row {number}'
    _inside(place, 'item', [int(item)], items)
    if int(user) not in rows:
      raise DataError(f'{place}: user {user} has no history.')
    rows[int(user)].append(int(item))
  return items[1:], [users[u] for u in sorted(rows)], [rows[u] for u in sorted(rows)]


def _maps(path):
  found = plain_pickle.read(path)
  maps = []
  for name in ('id2user', 'id2item'):
    ids = found.get(name) if isinstance(found, dict) else None
    if not isinstance(ids, list) or not ids or len(set(map(str, ids))) < len(ids):
      raise DataError(f'{path}: {name} must be a list of ids, each once, {PAD} first.')
    maps.append(tuple(map(str, ids)))
  return maps


def _table(path, column):
  found = pandas_pickle.read(path)
  for name in ('user_id', column):
    if name not in found:
      raise DataError(f'{path} has no column {name}; it has {", ".join(map(str, found))}.')
  whole = column == 'item_id'
  for name in ('user_id',) + (column,) * whole:
    if getattr(found[name], 'dtype', np.dtype(object)).kind not in 'iu':
      raise DataError(f'{path}: {name} must hold whole numbers.')
  if not whole and not all(np.ndim(x) == 1 and np.asarray(x).dtype.kind in 'iu' or not len(x)
                           for x in found[column]):
    raise DataError(f'{path}: {column} must hold arrays of whole numbers.')
  return found


def _inside(place, what, numbers, ids):
  for number in numbers:
    if not 1 <= number < len(ids):
      raise DataError(f'{place}: {what} {number} is outside 1..{len(ids) - 1}.')


def write(data, folder, name):
  """Writes a Dataset; users with fewer than 3 items are left out.

  Raises ConfigError where pandas is missing.
  """
  try:
    import pandas as pd
  except ImportError as error:
    raise ConfigError("UniRec's tables are those of pandas; install it with: pip install pandas"
                      ) from error
  folder, shop, goods = pathlib.Path(folder), data.interactions, data.catalog
  rows = [u for u, n in enumerate(shop.lengths()) if n >= 3]
  seqs = [shop.history(u) for u in rows]
  numbers = np.arange(1, len(rows) + 1)
  train = {'user_id': np.repeat(numbers, [len(s) - 2 for s in seqs]),
           'item_id': np.concatenate([s[:-2] for s in seqs] or [[]]).astype(np.int64)}
  tables = {'train': train, 'valid': {'user_id': numbers, 'item_id': [int(s[-2]) for s in seqs]},
            'test': {'user_id': numbers, 'item_id': [int(s[-1]) for s in seqs]},
            'user_history': {'user_id': numbers, 'item_seq': [s[:-1] for s in seqs]}}
  for stem, columns in tables.items():
    pd.DataFrame(columns).to_pickle(folder / f'{stem}.pkl')
  maps = {'user': [PAD, *(shop.users[u] for u in rows)], 'item': [PAD, *goods.ids]}
  with open(folder / 'map.pkl', 'wb') as out:
    pickle.dump({f'{what}2id': {one: n for n, one in enumerate(ids)} for what, ids in maps.items()}
                | {f'id2{what}': ids for what, ids in maps.items()}, out)
  text = json.dumps(reclm.categories(goods), ensure_ascii=False, indent=2)
  file_io.write_text(folder / 'category.jsonl', text + '\n')
  file_io.write_text(folder / f'{name}.yaml', ''.join(f'{k}: {v}\n' for k, v in {
      'group_size': -1, 'n_neg_train_from_sampling': 0, 'n_neg_valid_from_sampling': 0,
      'n_neg_test_from_sampling': 0, 'train_file_format': 'user-item',
      'valid_file_format': 'user-item', 'test_file_format': 'user-item',
      'user_history_file_format': 'user-item_seq', 'n_items': len(goods) + 1,
      'n_users': len(rows) + 1}.items()))
