"""The folder that UniRec (github.com/microsoft/UniRec) trains RecLM's teacher on: pickled tables
and a map of ids.

Writing needs pandas, reading does not.
"""
import json
import pathlib
import pickle

import numpy as np

from recjax import file_io
from recjax.data import raw_reader
from recjax.data.dataset import Dataset
from recjax.data.formats import reclm, safe_pickle
from recjax.data.sources import table
from recjax.errors import ConfigError, DataError

PAD = '[PAD]'  # number 0 of both maps


def read(folder: raw_reader.Path) -> tuple[tuple[str, ...], list[str], list[list[int]]]:
  """Item ids, user ids in the order of the map, and their sequences of item numbers from 1.

  A sequence is the history in `folder`, which ends with the item of the validation, and the item of
  the test. Raises DataError naming the file and the row.
  """
  folder = pathlib.Path(folder)
  users, items = _maps(folder / 'map.pkl')
  history = _table(folder / 'user_history.pkl', 'item_seq')
  test = _table(folder / 'test.pkl', 'item_id')
  rows = {}
  for number, (user, sequence) in enumerate(zip(history['user_id'], history['item_seq']), 1):
    place = f'{folder / "user_history.pkl"} row {number}'
    sequence = [int(i) for i in sequence]
    _check_numbers(place, 'user', [int(user)], users)
    _check_numbers(place, 'item', sequence, items)
    if int(user) in rows:
      raise DataError(f'{place}: user {user} was given before.')
    rows[int(user)] = sequence
  for number, (user, item) in enumerate(zip(test['user_id'], test['item_id']), 1):
    place = f'{folder / "test.pkl"} row {number}'
    _check_numbers(place, 'item', [int(item)], items)
    if int(user) not in rows:
      raise DataError(f'{place}: user {user} has no history.')
    rows[int(user)].append(int(item))
  return items[1:], [users[u] for u in sorted(rows)], [rows[u] for u in sorted(rows)]


def _maps(path: pathlib.Path) -> list[tuple[str, ...]]:
  value = safe_pickle.read_plain(path)
  maps = []
  for name in ('id2user', 'id2item'):
    ids = value.get(name) if isinstance(value, dict) else None
    if not isinstance(ids, list) or not ids or len(set(map(str, ids))) < len(ids):
      raise DataError(f'{path}: {name} must be a list of ids, each once, {PAD} first.')
    maps.append(tuple(map(str, ids)))
  return maps


def _table(path: pathlib.Path, column: str) -> dict:
  columns = safe_pickle.read_table(path)
  for name in ('user_id', column):
    if name not in columns:
      raise DataError(f'{path} has no column {name}; it has {", ".join(map(str, columns))}.')
  whole = column == 'item_id'
  for name in ('user_id',) + (column,) * whole:
    if getattr(columns[name], 'dtype', np.dtype(object)).kind not in 'iu':
      raise DataError(f'{path}: {name} must hold whole numbers.')
  if not whole and not all(np.ndim(x) == 1 and np.asarray(x).dtype.kind in 'iu' or not len(x)
                           for x in columns[column]):
    raise DataError(f'{path}: {column} must hold arrays of whole numbers.')
  return columns


def _check_numbers(place: str, what: str, numbers: list[int], ids: tuple[str, ...]) -> None:
  for number in numbers:
    if not 1 <= number < len(ids):
      raise DataError(f'{place}: {what} {number} is outside 1..{len(ids) - 1}.')


def source(folder: raw_reader.Path, allow_pickle: bool = False,
           items: raw_reader.Path = '') -> raw_reader.Source:
  """The tables in `folder` as raw rows, in the order of the files.

  items: path of a table of the items, for texts, or ''. Raises ConfigError without allow_pickle.
  """
  folder = pathlib.Path(folder)
  if not allow_pickle:
    raise ConfigError(f'{folder}: UniRec keeps its tables as pickles; add --allow-pickle to read '
                      'them. Only tables of numbers and texts are admitted, and nothing is run.')
  ids, users, sequences = read(folder)
  interactions = ((folder / 'user_history.pkl', n, (user, ids[i - 1], None, None), '')
                  for n, (user, sequence) in enumerate(zip(users, sequences), 1) for i in sequence)
  notes = {'items': {}}
  rows = (table.item_rows(items, notes=notes['items']) if items else
          ((folder / 'map.pkl', n, (item, {}), '') for n, item in enumerate(ids, 1)))
  return raw_reader.Source(folder.resolve().name, interactions, rows, notes)


def write(dataset: Dataset, folder: raw_reader.Path, name: str) -> None:
  """Writes `dataset` to `folder`, its settings as `name`.yaml.

  Users with fewer than 3 items are left out. Raises ConfigError where pandas is missing.
  """
  try:
    import pandas as pd
  except ImportError as error:
    raise ConfigError("UniRec's tables are those of pandas; install it with: pip install pandas"
                      ) from error
  folder, data, catalog = pathlib.Path(folder), dataset.interactions, dataset.catalog
  users = [u for u, n in enumerate(data.lengths()) if n >= 3]
  histories = [data.history(u) for u in users]
  numbers = np.arange(1, len(users) + 1)
  train = {'user_id': np.repeat(numbers, [len(h) - 2 for h in histories]),
           'item_id': np.concatenate([h[:-2] for h in histories] or [[]]).astype(np.int64)}
  tables = {'train': train,
            'valid': {'user_id': numbers, 'item_id': [int(h[-2]) for h in histories]},
            'test': {'user_id': numbers, 'item_id': [int(h[-1]) for h in histories]},
            'user_history': {'user_id': numbers, 'item_seq': [h[:-1] for h in histories]}}
  for stem, columns in tables.items():
    pd.DataFrame(columns).to_pickle(folder / f'{stem}.pkl')
  maps = {'user': [PAD, *(data.users[u] for u in users)], 'item': [PAD, *catalog.ids]}
  with open(folder / 'map.pkl', 'wb') as file:
    pickle.dump({f'{what}2id': {x: n for n, x in enumerate(ids)} for what, ids in maps.items()}
                | {f'id2{what}': ids for what, ids in maps.items()}, file)
  text = json.dumps(reclm.items_by_category(catalog), ensure_ascii=False, indent=2)
  file_io.write_text(folder / 'category.jsonl', text + '\n')
  file_io.write_text(folder / f'{name}.yaml', ''.join(f'{k}: {v}\n' for k, v in {
      'group_size': -1, 'n_neg_train_from_sampling': 0, 'n_neg_valid_from_sampling': 0,
      'n_neg_test_from_sampling': 0, 'train_file_format': 'user-item',
      'valid_file_format': 'user-item', 'test_file_format': 'user-item',
      'user_history_file_format': 'user-item_seq', 'n_items': len(catalog) + 1,
      'n_users': len(users) + 1}.items()))
