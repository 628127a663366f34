"""LLMEmb's own files (arXiv:2409.19925): interactions, ids, prompts, and arrays of item vectors.

A folder holds `inter_seq.txt` (user item item ...) or `inter.txt` (user item, a line each),
`id_map.json` and, for prompts, `item_str.jsonline` or `item_str_0722.jsonline`; or a subfolder
`handled` does. Numbers start at 1 in order of appearance.
"""
import collections
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from recjax import file_io
from recjax.data.dataset import Catalog, Dataset, Interactions, flatten, make_dataset
from recjax.data.formats import safe_pickle
from recjax.errors import DataError, EmptyDatasetError

SEQUENCES, PAIRS, IDS = 'inter_seq.txt', 'inter.txt', 'id_map.json'
PROMPTS = 'item_str.jsonline'
PROMPT_NAMES = (PROMPTS, 'item_str_0722.jsonline')


def find_folder(folder: str | pathlib.Path) -> pathlib.Path | None:
  """The folder that holds the files, `folder` or one in it, or None."""
  folder = pathlib.Path(folder)
  for place in (folder, folder / 'handled'):
    if (place / IDS).is_file() and any((place / n).is_file() for n in (SEQUENCES, PAIRS)):
      return place
  return None


def is_folder(folder: str | pathlib.Path) -> bool:
  """Whether `folder` holds the files."""
  return find_folder(folder) is not None


def load(folder: str | pathlib.Path, name: str) -> Dataset:
  """Reads `folder` as the data set `name`, with the columns prompt and title where prompts are."""
  items, users, rows, prompts = read(folder)
  columns = {} if prompts is None else {'prompt': prompts, 'title': titles(prompts)}
  return make_dataset(name, Catalog(items, columns), Interactions(tuple(users), *flatten(rows)),
                      {'source': 'llmemb'})


def read(folder: str | pathlib.Path
         ) -> tuple[tuple[str, ...], list[str], list[list[int]], list[str] | None]:
  """Item ids, user ids, sequences of item numbers, and prompts or None, in `folder`.

  Raises DataError with file and line for ids outside 1..N, a number given twice, and whatever else
  does not fit together.
  """
  files_folder = find_folder(folder)
  if files_folder is None:
    raise DataError(f'{folder} holds no {IDS} with {SEQUENCES} or {PAIRS}')
  folder = files_folder
  items, users = (_numbered_ids(folder / IDS, name) for name in ('id2item', 'id2user'))
  if (folder / SEQUENCES).is_file():
    rows = _read_sequences(folder / SEQUENCES, len(items), len(users))
  else:
    rows = _read_pairs(folder / PAIRS, len(items), len(users))
  if not rows:
    raise EmptyDatasetError(f'{folder} holds no interactions')
  names = [users[u - 1] for u in rows]
  prompt_paths = [folder / n for n in PROMPT_NAMES if (folder / n).is_file()]
  prompts = read_prompts(prompt_paths[0], items) if prompt_paths else None
  return items, names, list(rows.values()), prompts


def _numbered_ids(path: pathlib.Path, name: str) -> tuple[str, ...]:
  """The ids of id_map.json's table from number to id, number 1 first."""
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


def _number_lines(path: pathlib.Path) -> Iterator[tuple[str, list[int]]]:
  for number, line in enumerate(file_io.read_bytes(path).split(b'\n'), 1):
    if line.strip():
      try:
        yield f'{path} line {number}', [int(x) for x in line.split()]
      except ValueError as error:
        raise DataError(f'{path} line {number}: whole numbers are expected ({error})') from error


def _check_numbers(place: str, kind: str, numbers: list[int], count: int) -> None:
  for n in numbers:
    if not 1 <= n <= count:
      raise DataError(f'{place}: {kind} {n} is outside 1..{count}')


def _read_sequences(path: pathlib.Path, items: int, users: int) -> dict[int, list[int]]:
  rows = {}
  for place, (user, *row) in _number_lines(path):
    _check_numbers(place, 'user', [user], users)
    _check_numbers(place, 'item', row, items)
    if user in rows:
      raise DataError(f'{place}: user {user} was given before')
    rows[user] = row
  return rows


def _read_pairs(path: pathlib.Path, items: int, users: int) -> dict[int, list[int]]:
  rows = collections.defaultdict(list)
  for place, row in _number_lines(path):
    if len(row) != 2:
      raise DataError(f'{place}: a user and an item are expected, found {len(row)} numbers')
    _check_numbers(place, 'user', row[:1], users)
    _check_numbers(place, 'item', row[1:], items)
    rows[row[0]].append(row[1])
  return rows


def read_prompts(path: str | pathlib.Path, items: Sequence[str] | None = None) -> list[str]:
  """The prompts of the file at `path` in item order. items: ids that must all be there, or None.

  Raises DataError for a number given twice, one outside, or missing ones: the first ten of them.
  """
  prompts = {}
  for place, row in file_io.read_rows(path):
    try:
      number = int(row['item_id'])
      text = row['input']
    except (KeyError, TypeError, ValueError) as error:
      raise DataError(f'{place}: item_id and input are expected ({error!r})') from error
    if number in prompts:
      raise DataError(f'{place}: item_id {number} was given before')
    if items is not None and not 1 <= number <= len(items):
      raise DataError(f'{place}: item_id {number} is outside 1..{len(items)}')
    prompts[number] = text or ''
  count = max(prompts, default=0) if items is None else len(items)
  missing = [n for n in range(1, count + 1) if n not in prompts]
  if missing:
    raise DataError(f'{path}: {len(missing)} items have no prompt: {missing[:10]}')
  return [prompts[n] for n in range(1, count + 1)]


def titles(prompts: Sequence[str]) -> list[str]:
  """The title that each of `prompts` names, '' without one."""
  fields_of = [[p.strip() for p in text.partition('\n')[2].split(';')] for text in prompts]
  return [next((p.removeprefix('title is ') for p in fields if p.startswith('title is ')), '')
          for fields in fields_of]


def write_prompts(path: str | pathlib.Path, ids: Sequence[str], prompts: Sequence[str]) -> None:
  """Writes the prompts of the items `ids` to `path` in the published layout."""
  file_io.write_text(path, ''.join(json.dumps(
      {'input': p, 'target': '', 'item': i, 'item_id': str(n)}, ensure_ascii=False) + '\n'
      for n, (i, p) in enumerate(zip(ids, prompts), 1)))


def write(folder: str | pathlib.Path, items: Sequence[str], users: Sequence[str],
          sequences: Sequence[Sequence[int]], prompts: Sequence[str] | None = None) -> None:
  """Writes the ids `items` and `users` to the `folder` that `read` reads.

  sequences: item numbers of each user. prompts: of each item, or None.
  """
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


def read_item_vectors(path: str | pathlib.Path, rows: int | None = None) -> np.ndarray:
  """A table of item vectors (N, D) float32 from .npy, or a pickle that holds nothing but an array.

  rows: how many the file at `path` must hold. Raises DataError with both counts, or naming the
  first row that is not finite.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise DataError(f'{path} does not exist; name a .npy or .pkl file of item vectors')
  try:
    if path.suffix == '.npy':
      vectors = np.load(path, allow_pickle=False)
    else:
      vectors = safe_pickle.read_array(path)
  except (ValueError, EOFError) as error:
    raise DataError(f'{path} holds no plain array of numbers ({error})') from error
  if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != 'f':
    raise DataError(f'{path} must hold a float array of two axes, items and numbers')
  if rows is not None and len(vectors) != rows:
    raise DataError(f'{path} has {len(vectors)} rows, the catalog {rows} items; row r must be '
                    'item r + 1')
  bad = np.flatnonzero(~np.isfinite(vectors).all(1))
  if len(bad):
    raise DataError(f'{path}: row {bad[0]} (item {bad[0] + 1}) is not finite')
  return np.ascontiguousarray(vectors, np.float32)
