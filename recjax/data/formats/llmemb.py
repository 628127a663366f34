"""LLMEmb's own files: interactions, ids, prompts, and pickled arrays that become plain ones.

A folder holds `inter_seq.txt` (user item item ...) or `inter.txt` (user item, a line each),
`id_map.json` and, for prompts, `item_str.jsonline` or `item_str_0722.jsonline`; or a subfolder
`handled` does. Numbers start at 1 in order of appearance.
"""
import collections
import io
import json
import pathlib
import pickle

import numpy as np

from recjax import file_io
from recjax.errors import DataError, EmptyDatasetError

SEQUENCES, PAIRS, IDS = 'inter_seq.txt', 'inter.txt', 'id_map.json'
PROMPTS = 'item_str.jsonline'
PROMPT_NAMES = (PROMPTS, 'item_str_0722.jsonline')
PICKLES = {('numpy.core.multiarray', '_reconstruct'), ('numpy._core.multiarray', '_reconstruct'),
           ('numpy.core.multiarray', 'scalar'), ('numpy._core.multiarray', 'scalar'),
           ('numpy._core.numeric', '_frombuffer'), ('numpy.core.numeric', '_frombuffer'),
           ('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')}


def find(folder):
  """The folder that holds the files, or None."""
  folder = pathlib.Path(folder)
  for place in (folder, folder / 'handled'):
    if (place / IDS).is_file() and any((place / n).is_file() for n in (SEQUENCES, PAIRS)):
      return place
  return None


def read(folder):
  """Reads a folder. -> (item ids, user ids, sequences of item numbers, prompts or None)

  Raises DataError with file and line for ids outside 1..N, a number given twice, and whatever else
  does not fit together.
  """
  folder = find(named := folder)
  if folder is None:
    raise DataError(f'{named} holds no {IDS} with {SEQUENCES} or {PAIRS}')
  items, users = (_numbered(folder / IDS, name) for name in ('id2item', 'id2user'))
  if (folder / SEQUENCES).is_file():
    rows = _sequences(folder / SEQUENCES, len(items), len(users))
  else:
    rows = _pairs(folder / PAIRS, len(items), len(users))
  if not rows:
    raise EmptyDatasetError(f'{folder} holds no interactions')
  names = [users[u - 1] for u in rows]
  found = [folder / n for n in PROMPT_NAMES if (folder / n).is_file()]
  prompts = read_prompts(found[0], items) if found else None
  return items, names, list(rows.values()), prompts


def _numbered(path, name):
  """id_map.json's table from number to id. -> tuple of ids, number 1 first"""
  table = file_io.read_json(path).get(name)
  if not isinstance(table, dict):
    raise DataError(f'{path}: {name} is missing')
  try:
    numbers = {int(k): str(v) for k, v in table.items()}
  except ValueError as error:
    raise DataError(f'{path}: {name} has a key that is no number ({error})') from error
  missing = [n for n in range(1, max(numbers, default=0) + 1) if n not in numbers]
  if missing or len(set(numbers.values())) != len(numbers):
    raise DataError(f'{path}: {name} must number 1..N without gaps and repeats; '
                    f'{missing[:10] or "an id stands twice"}')
  return tuple(numbers[n] for n in range(1, len(numbers) + 1))


def _lines(path):
  for number, line in enumerate(file_io.read_bytes(path).split(b'\n'), 1):
    if line.strip():
      try:
        yield f'{path} line {number}', [int(x) for x in line.split()]
      except ValueError as error:
        raise DataError(f'{path} line {number}: whole numbers are expected ({error})') from error


def _known(place, kind, numbers, most):
  for n in numbers:
    if not 1 <= n <= most:
      raise DataError(f'{place}: {kind} {n} is outside 1..{most}')


def _sequences(path, items, users):
  rows = {}
  for place, (user, *row) in _lines(path):
    _known(place, 'user', [user], users)
    _known(place, 'item', row, items)
    if user in rows:
      raise DataError(f'{place}: user {user} was given before')
    rows[user] = row
  return rows


def _pairs(path, items, users):
  rows = collections.defaultdict(list)
  for place, row in _lines(path):
    if len(row) != 2:
      raise DataError(f'{place}: a user and an item are expected, found {len(row)} numbers')
    _known(place, 'user', row[:1], users)
    _known(place, 'item', row[1:], items)
    rows[row[0]].append(row[1])
  return rows


def read_prompts(path, items=None):
  """The prompts in item order. -> [text]. items: ids that must all be there, or None.

  Raises DataError for a number given twice, one outside, or missing ones: the first ten of them.
  """
  found = {}
  for place, row in file_io.read_rows(path):
    try:
      number = int(row['item_id'])
      text = row['input']
    except (KeyError, TypeError, ValueError) as error:
      raise DataError(f'{place}: item_id and input are expected ({error!r})') from error
    if number in found:
      raise DataError(f'{place}: item_id {number} was given before')
    if items is not None and not 1 <= number <= len(items):
      raise DataError(f'{place}: item_id {number} is outside 1..{len(items)}')
    found[number] = text or ''
  count = max(found, default=0) if items is None else len(items)
  missing = [n for n in range(1, count + 1) if n not in found]
  if missing:
    raise DataError(f'{path}: {len(missing)} items have no prompt: {missing[:10]}')
  return [found[n] for n in range(1, count + 1)]


def titles(prompts):
  """The title that a prompt names, '' without one."""
  parts = [[p.strip() for p in text.partition('\n')[2].split(';')] for text in prompts]
  return [next((p.removeprefix('title is ') for p in some if p.startswith('title is ')), '')
          for some in parts]


def write_prompts(path, ids, prompts):
  """Writes one prompt an item in the published layout."""
  file_io.write_text(path, ''.join(json.dumps(
      {'input': p, 'target': '', 'item': i, 'item_id': str(n)}, ensure_ascii=False) + '\n'
      for n, (i, p) in enumerate(zip(ids, prompts), 1)))


def write(folder, items, users, sequences, prompts=None):
  """Writes the folder that `read` reads. sequences: item numbers of each user."""
  folder = pathlib.Path(folder)
  rows = [' '.join(map(str, (u, *row))) for u, row in enumerate(sequences, 1)]
  file_io.write_text(folder / SEQUENCES, ''.join(r + '\n' for r in rows))
  file_io.write_text(folder / PAIRS, ''.join(f'{u} {i}\n' for u, row in enumerate(sequences, 1)
                                           for i in row))
  maps = {f'{kind}2id': {x: str(n) for n, x in enumerate(ids, 1)}
          for kind, ids in (('user', users), ('item', items))}
  maps |= {f'id2{kind}': {n: x for x, n in maps[f'{kind}2id'].items()} for kind in ('user', 'item')}
  file_io.write_text(folder / IDS, json.dumps(maps, ensure_ascii=False))
  if prompts is not None:
    write_prompts(folder / PROMPTS, items, prompts)


def read_array(path, rows=None):
  """A table of item vectors from .npy, or from a pickle that holds nothing but an array.

  rows: how many there must be. -> (N, d) float32. Raises DataError with both counts, or naming the
  first row that is not finite.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise DataError(f'{path} does not exist; name a .npy or .pkl file of item vectors')
  try:
    if path.suffix == '.npy':
      table = np.load(path, allow_pickle=False)
    else:
      table = _Arrays(io.BytesIO(path.read_bytes())).load()
  except (pickle.UnpicklingError, ValueError, EOFError, AttributeError, ImportError) as error:
    raise DataError(f'{path} holds no plain array of numbers ({error})') from error
  if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != 'f':
    raise DataError(f'{path} must hold a float array of two axes, items and numbers')
  if rows is not None and len(table) != rows:
    raise DataError(f'{path} has {len(table)} rows, the catalogue {rows} items; row r must be '
                    'item r + 1')
  bad = np.flatnonzero(~np.isfinite(table).all(1))
  if len(bad):
    raise DataError(f'{path}: row {bad[0]} (item {bad[0] + 1}) is not finite')
  return np.ascontiguousarray(table, np.float32)


class _Arrays(pickle.Unpickler):
  """An unpickler that can make numpy arrays and nothing else."""

  def find_class(self, module, name):
    if (module, name) not in PICKLES:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is no array')
    return super().find_class(module, name)


def filter_once(rows, user_least, item_least, iterate=False):
  """The published filter: rows whose user and item counts reach their thresholds, in one pass.

  rows: [(user, item)] in order. iterate: until nothing changes. Users who keep fewer than three
  are dropped at the end. -> [(user, item)]. Raises EmptyDatasetError naming the thresholds.
  """
  while True:
    users, items = (collections.Counter(r[i] for r in rows) for i in (0, 1))
    kept = [r for r in rows if users[r[0]] >= user_least and items[r[1]] >= item_least]
    again = iterate and len(kept) < len(rows)
    rows = kept
    if not again:
      break
  users = collections.Counter(u for u, _ in rows)
  rows = [r for r in rows if users[r[0]] >= 3]
  if not rows:
    raise EmptyDatasetError(f'nothing is left with {user_least} interactions a user and '
                            f'{item_least} an item{" (repeated)" if iterate else ""}; lower them')
  return rows
