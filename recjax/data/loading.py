"""Readers and writers of data sets: the canonical folder, the built-in shop, published folders."""
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict

from recjax import file_io, split_rule
from recjax.data.dataset import (
  Catalog,
  Dataset,
  Interactions,
  flatten,
  in_tie_order,
  make_dataset,
  with_rule,
)
from recjax.data.formats import betag, llmemb, reclm
from recjax.data.sample_shop import simulator
from recjax.errors import DataError

# Columns that the package reads, so that they must be texts, or lists of texts, in any folder.
CHECKED_TEXTS = ('title', 'brand', 'description')
CHECKED_LISTS = ('categories', 'tags')


def load_data(source: str | os.PathLike, tie_order: str = 'file') -> Dataset:
  """Reads the data set at `source`: 'sample', 'sample:SEED', 'sample:SEED:USERS' or a folder, the
  canonical one (docs/data.md) or the own files of BETag, LLMEmb or RecLM.

  'sample' is the built-in shop of seed 0 with 4,000 customers; another seed makes another shop of
  the same kind, for a second opinion, and fewer customers leave more items rare. tie_order: as in
  `dataset.in_tie_order`. Raises DataError with file and line for whatever is wrong.
  """
  return in_tie_order(_load(source), tie_order)


def _load(source: str | os.PathLike) -> Dataset:
  name, *numbers = str(source).split(':')
  if name == 'sample':
    if not all(n.isdecimal() for n in numbers) or len(numbers) > 2:
      raise DataError(f"data '{source}': seed and customers of a sample shop are whole numbers, as "
                      "in 'sample:7' or 'sample:7:1000'.")
    seed, users = (numbers + ['0', simulator.CUSTOMERS][len(numbers):])
    return simulator.make_shop(int(seed), users=int(users))
  folder = pathlib.Path(source)
  if not folder.is_dir():
    problem = 'is not a folder' if folder.exists() else 'does not exist'
    raise DataError(f"data folder '{source}' {problem}; give a folder or 'sample'.")
  items, sequences = (file_io.find_table(folder, stem) for stem in ('items', 'sequences'))
  if sequences is None and (folder / 'records.json').is_file():
    raise DataError(f'{folder} holds records, which the sequential recommenders train on; for '
                    'anything else name the data set that they were made of.')
  name = folder.resolve().name
  if items is None and sequences is None:
    for layout in (betag, llmemb, reclm):
      if layout.is_folder(folder):
        return layout.load(folder, name)
  if items is None or sequences is None:
    stem = 'items' if items is None else 'sequences'
    names = ', '.join(stem + suffix for suffix in file_io.SUFFIXES)
    raise DataError(f'{folder} holds none of {names} (nor {betag.SEQUENCES} with '
                    f'{betag.TAGS}); see `recjax prepare` for making them.')
  catalog, notes = read_items(items)
  interactions = _read_sequences(sequences, catalog, notes)
  return make_dataset(name, catalog, interactions, notes)


def load_for_config(cfg: ConfigDict) -> Dataset:
  """The data set of a run, in its order of ties and to be split by its rule.

  cfg: its config. Raises DataError as `load_data` does, ConfigError for an unknown rule.
  """
  tie_order = cfg.eval.tie_order if cfg.method == 'sequential' else 'file'
  return with_rule(load_data(cfg.data, tie_order), split_rule.for_config(cfg))


def load_unchanged(cfg: ConfigDict, fingerprint: str, workdir: str | pathlib.Path) -> Dataset:
  """`load_for_config` of the very data that the run in `workdir` was made on, which had
  `fingerprint`.

  cfg: the run's. Raises DataError where they changed.
  """
  dataset = load_for_config(cfg)
  if dataset.fingerprint != fingerprint:
    raise DataError(f'{cfg.data} has changed since {workdir} was made (its fingerprint is now '
                    f'{dataset.fingerprint[:12]}); run the experiment again')
  return dataset


def save_data(dataset: Dataset, folder: str | pathlib.Path, overwrite: bool = False) -> None:
  """Writes `dataset` as items.jsonl and sequences.jsonl; the folder appears whole or not at all.

  Raises DataError if the folder holds something and `overwrite` is False, WorkdirError if it
  cannot be written.
  """
  with file_io.new_folder(folder, overwrite) as new_folder:
    file_io.write_text(new_folder / 'items.jsonl', _json_lines(_item_rows(dataset.catalog)))
    file_io.write_text(new_folder / 'sequences.jsonl', _json_lines(_sequence_rows(dataset)))


def read_items(path: str | os.PathLike) -> tuple[Catalog, dict]:
  """Reads the items file at `path`, and notes about it. Raises DataError with file and line."""
  ids, rows, places = [], [], {}
  for place, row in file_io.read_rows(path):
    item = file_io.text_id(row.pop('item_id', None), place, 'item_id')
    if item in places:
      raise DataError(f'{place}: item_id {item!r} was given before, at {places[item]}.')
    places[item] = place
    _check_columns(row, place)
    ids.append(item)
    rows.append(row)
  if not ids:
    raise DataError(f'{path} holds no items.')
  names = dict.fromkeys(name for row in rows for name in row)
  columns = {name: [row.get(name) for row in rows] for name in names}
  titles = [(title or '').strip() for title in columns.get('title', [''] * len(ids))]
  columns = {'title': titles} | {k: v for k, v in columns.items() if k != 'title'}
  return Catalog(tuple(ids), columns), {'empty_titles': titles.count('')}


def _check_columns(row: dict, place: str) -> None:
  """Checks the columns that the package reads; others may hold any JSON value."""
  for name in CHECKED_TEXTS:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
      raise DataError(f'{place}: {name} must be a text, found {value!r:.60}.')
  for name in CHECKED_LISTS:
    value = row.get(name)
    if value is not None and not (isinstance(value, list)
                                  and all(isinstance(x, str) for x in value)):
      raise DataError(f'{place}: {name} must be a list of texts, found {value!r:.60}.')
  if not isinstance(row.get('retired'), bool | None):
    raise DataError(f'{place}: retired must be true or false, found {row["retired"]!r:.60}.')
  for name, value in row.items():
    if value != value:  # Parquet's way to leave a number out
      row[name] = None
    elif isinstance(value, str | int | None) or name in CHECKED_LISTS:
      continue
    try:
      json.dumps(row[name], allow_nan=False)
    except (TypeError, ValueError) as error:
      raise DataError(f'{place}: {name} holds {value!r:.60}, which JSON cannot.') from error


def _read_sequences(path: pathlib.Path, catalog: Catalog, notes: dict) -> Interactions:
  """Reads the sequences file and adds to `notes` what is odd but usable in it."""
  users, rows, lists, places = [], [], {'times': [], 'ratings': []}, {}
  unread = set()
  for place, row in file_io.read_rows(path):
    user = file_io.text_id(row.get('user_id'), place, 'user_id')
    if user in places:
      raise DataError(f'{place}: user_id {user!r} was given before, at {places[user]}.')
    places[user] = place
    items = row.get('items')
    if not isinstance(items, list):
      raise DataError(f'{place}: items must be a list of item ids, found {items!r:.60}.')
    if 'times' not in row and 'timestamps' in row:  # as some published sets call them
      row['times'] = row.pop('timestamps')
    unread.update(row.keys() - {'user_id', 'items', *lists})
    users.append(user)
    rows.append([_item_index(item, catalog, place) for item in items])
    for name, values in lists.items():
      values.append(_number_list(row.get(name), name, len(items), place))
  if not users:
    raise DataError(f'{path} holds no users.')
  notes['empty_sequences'] = sum(not row for row in rows)
  if unread:
    notes['unread_columns'] = ', '.join(sorted(unread))
  times, ratings = (_flat_column(lists[name], name, places) for name in lists)
  items, offsets = flatten(rows)
  if times is not None:
    falls = np.diff(times) < 0
    falls[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(times))] - 1] = False
    notes['times_out_of_order'] = int(falls.sum())
  return Interactions(tuple(users), items, offsets, times, ratings)


def _item_index(item: object, catalog: Catalog, place: str) -> int:
  index = catalog.find(item if isinstance(item, str) else file_io.text_id(item, place, 'an item'))
  if not index:
    raise DataError(f'{place}: item {item!r} is not in the items file; add it there or take it '
                    'out of the sequence.')
  return index


def _number_list(values: object, name: str, length: int, place: str) -> list | None:
  if values is None:
    return None if length else []
  if not isinstance(values, list) or len(values) != length:
    size = f'{len(values)} values' if isinstance(values, list) else repr(values)[:60]
    raise DataError(f'{place}: {name} must be a list as long as items ({length}), found {size}.')
  for value in values:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2 ** 62
    if not good or (name == 'times' and value != int(value)):
      kind = 'whole numbers' if name == 'times' else 'numbers'
      raise DataError(f'{place}: {name} must hold {kind}, found {value!r:.60}.')
  return values


def _flat_column(lists: list, name: str, places: dict) -> np.ndarray | None:
  """Joins the lists of the users; either every user with items has one or nobody has."""
  if not any(lists):
    return None
  for values, (user, place) in zip(lists, places.items()):
    if values is None:
      raise DataError(f'{place}: user {user!r} has no {name} while others have; '
                      f'give {name} to all users or to none.')
  return np.asarray([x for values in lists for x in values],
                    np.int64 if name == 'times' else np.float32)


def _item_rows(catalog: Catalog) -> Iterator[dict]:
  for i, item in enumerate(catalog.ids):
    values = {name: column[i] for name, column in catalog.columns.items()}
    yield {'item_id': item} | {k: v for k, v in values.items() if v is not None}


def _sequence_rows(dataset: Dataset) -> Iterator[dict]:
  data, ids = dataset.interactions, np.array(dataset.catalog.ids, dtype=object)
  for u, user in enumerate(data.users):
    span = slice(data.offsets[u], data.offsets[u + 1])
    row = {'user_id': user, 'items': ids[data.items[span] - 1].tolist()}
    for name, values in (('times', data.times), ('ratings', data.ratings)):
      if values is not None:
        row[name] = values[span].tolist()
    yield row


def _json_lines(rows: Iterable[dict]) -> str:
  return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
