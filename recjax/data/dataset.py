"""The data set in memory: what can be recommended, and who met it in which order.

Items have dense indices 1..N in the order of the items file; 0 is padding. A fingerprint of items
and sequences travels with everything that is made from them.
"""
import dataclasses
import functools
import hashlib
import json
import pathlib
import re

import numpy as np

from recjax import file_io
from recjax.data.formats import betag, llmemb, reclm
from recjax.errors import ConfigError, DataError

TEXT_COLUMNS = ('title', 'brand', 'description')

LIST_COLUMNS = ('categories', 'tags')

KINDS = {'items': '<i4', 'offsets': '<i8', 'times': '<i8', 'ratings': '<f4'}  # of arrays on disk


@dataclasses.dataclass(frozen=True)
class Catalog:
  """Items in index order; `columns[name][i - 1]` belongs to item i, None where it has no value."""
  ids: tuple[str, ...]
  columns: dict[str, list]

  def __len__(self):
    return len(self.ids)

  @functools.cached_property
  def _indices(self):
    return {item: i for i, item in enumerate(self.ids, start=1)}

  def live(self):
    """Ids of the items that may be recommended, or None where none is retired."""
    gone = self.columns.get('retired') or ()
    return frozenset(i for i, g in zip(self.ids, gone) if not g) if any(gone) else None

  def index(self, item_id):
    """Dense index 1..N of an item id. Raises DataError if the catalogue lacks it."""
    found = self._indices.get(str(item_id))
    if found is None:
      raise DataError(f'item {item_id!r} is not in the catalogue of {len(self)} items.')
    return found

  def find(self, item_id):
    """Dense index 1..N of an item id, 0 for one that is not there."""
    return self._indices.get(str(item_id), 0)

  def id_of(self, index):
    """Item id of a dense index. Raises DataError outside 1..N."""
    if not 1 <= index <= len(self):
      raise DataError(f'item index {index} is outside 1..{len(self)}.')
    return self.ids[index - 1]


@dataclasses.dataclass(frozen=True)
class Interactions:
  """Users' item sequences, laid end to end; user u has items[offsets[u]:offsets[u + 1]].

  items: (M,) int32. offsets: (U + 1,) int64. times: (M,) int64, ratings: (M,) float32, or None
  """
  users: tuple[str, ...]
  items: np.ndarray
  offsets: np.ndarray
  times: np.ndarray | None = None
  ratings: np.ndarray | None = None

  def __len__(self):
    return len(self.users)

  def history(self, u):
    """Items of user row `u` in time order, a view. -> (n,) int32"""
    return self.items[self.offsets[u]:self.offsets[u + 1]]

  def lengths(self):
    """Number of items of each user. -> (U,) int64"""
    return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A catalogue with its interactions; `notes` counts what was odd but usable in the files."""
  name: str
  catalog: Catalog
  interactions: Interactions
  fingerprint: str
  notes: dict


def make_dataset(name, catalog, interactions, notes=None):
  """Puts a data set together and fingerprints it. -> Dataset"""
  mark = fingerprint(catalog, interactions)
  return Dataset(name, catalog, interactions, mark, notes or {})


def item_texts(catalog):
  """One text of each item for encoders: title, price, brand, categories, or its id. -> [str]"""
  columns, n = catalog.columns, len(catalog)
  parts = [columns.get(name) or [''] * n for name in ('title', 'price', 'brand', 'categories')]

  def text(value):
    if isinstance(value, (list, tuple)):
      return ', '.join(map(text, value))
    return '' if value is None else str(value)
  return [', '.join(t for t in map(text, row) if t) or catalog.id_of(i + 1)
          for i, row in enumerate(zip(*parts))]


def load_data(source, tie_order='file'):
  """Reads 'sample', 'sample:SEED', 'sample:SEED:USERS' or a folder: canonical, or the own files of
  BETag, LLMEmb or RecLM.

  'sample' is the built-in shop of seed 0 with 4,000 customers; another seed makes another shop of
  the same kind, for a second opinion, and fewer customers leave more items rare. tie_order: as in
  `in_tie_order`. -> Dataset. Raises DataError with file and line for whatever is wrong.
  """
  return in_tie_order(_load(source), tie_order)


def _load(source):
  name, *numbers = str(source).split(':')
  if name == 'sample':
    from recjax.data.sample_shop import simulator
    if not all(n.isdecimal() for n in numbers) or len(numbers) > 2:
      raise DataError(f"data '{source}': seed and customers of a sample shop are whole numbers, as "
                      "in 'sample:7' or 'sample:7:1000'.")
    seed, users = (numbers + ['0', simulator.CUSTOMERS][len(numbers):])
    return simulator.make(int(seed), users=int(users))
  folder = pathlib.Path(source)
  if not folder.is_dir():
    what = 'is not a folder' if folder.exists() else 'does not exist'
    raise DataError(f"data folder '{source}' {what}; give a folder or 'sample'.")
  items, sequences = (file_io.find_table(folder, stem) for stem in ('items', 'sequences'))
  if sequences is None and (folder / 'records.json').is_file():
    raise DataError(f'{folder} holds records, which the sequential recommenders train on; for '
                    'anything else name the data set that they were made of.')
  name = folder.resolve().name
  if items is None and sequences is None and (folder / betag.SEQUENCES).is_file():
    return _load_betag(folder, name)
  if items is None and sequences is None and llmemb.find(folder):
    return _load_llmemb(folder, name)
  if items is None and sequences is None and reclm.find(folder):
    return _load_reclm(folder, name)
  for path, stem in ((items, 'items'), (sequences, 'sequences')):
    if path is None:
      looked = ', '.join(stem + suffix for suffix in file_io.SUFFIXES)
      raise DataError(f'{folder} holds none of {looked} (nor {betag.SEQUENCES} with '
                      f'{betag.TAGS}); see `recjax prepare` for making them.')
  catalog, notes = read_items(items)
  interactions = _read_sequences(sequences, catalog, notes)
  return make_dataset(name, catalog, interactions, notes)


def in_tie_order(dataset, order):
  """The data set with each user's items of one time as the file has them, or shuffled.

  order: 'file', or 'shuffle(SEED)', which moves items among neighbours of equal time alone; their
  order in a file often follows ids, which can be learnt. -> Dataset, with a fingerprint of its own
  where it was shuffled. Raises ConfigError for other orders, DataError without times.
  """
  if order == 'file':
    return dataset
  seed = re.fullmatch(r'shuffle\((\d+)\)', str(order))
  if not seed:
    raise ConfigError(f"eval.tie_order={order!r}; choose 'file' or 'shuffle(SEED)', as in "
                      "'shuffle(0)'")
  data = dataset.interactions
  if data.times is None:
    raise DataError(f'{dataset.name} has no times, so nothing says which items are tied; add '
                    "`times` to its sequences, or keep eval.tie_order='file'")
  first = np.ones(len(data.items), bool)
  first[1:] = np.diff(data.times) != 0
  first[data.offsets[:-1][data.lengths() > 0]] = True
  moved = np.lexsort((np.random.default_rng(int(seed[1])).random(len(first)), np.cumsum(first)))
  ratings = None if data.ratings is None else data.ratings[moved]
  data = dataclasses.replace(data, items=data.items[moved], ratings=ratings)
  return make_dataset(dataset.name, dataset.catalog, data, dataset.notes)


def load_unchanged(source, fingerprint, workdir, tie_order='file'):
  """`load_data`, of the very data that a run was made on. Raises DataError where they changed."""
  dataset = load_data(source, tie_order)
  if dataset.fingerprint != fingerprint:
    raise DataError(f'{source} has changed since {workdir} was made (its fingerprint is now '
                    f'{dataset.fingerprint[:12]}); run the experiment again')
  return dataset


def save_data(dataset, folder, overwrite=False):
  """Writes items.jsonl and sequences.jsonl; the folder appears whole or not at all.

  Raises DataError if the folder holds something and `overwrite` is False, WorkdirError if it
  cannot be written.
  """
  with file_io.new_folder(folder, overwrite) as fresh:
    file_io.write_text(fresh / 'items.jsonl', _lines(_item_rows(dataset.catalog)))
    file_io.write_text(fresh / 'sequences.jsonl', _lines(_sequence_rows(dataset)))


def fingerprint(catalog, interactions):
  """Hash over the content of items and sequences, whatever file format they came in. -> hex"""
  arrays = [array if array is None else [np.ascontiguousarray(array, kind)]
            for array, kind in zip((interactions.items, interactions.offsets, interactions.times,
                                    interactions.ratings), KINDS.values())]
  return digest(catalog, [_compact(interactions.users)], arrays)


def digest(catalog, users, arrays):
  """`fingerprint` of parts that may come in pieces.

  users: pieces of the ids as one JSON list. arrays: pieces of each of KINDS, None for none.
  """
  made = hashlib.sha256()
  columns = {k: v for k, v in catalog.columns.items() if any(x is not None for x in v)}
  for pieces in ([_compact(catalog.ids)], [_compact(columns)], users):
    for piece in pieces:
      made.update(piece)
    made.update(b'\n')
  for pieces in arrays:
    for piece in [b'-'] if pieces is None else pieces:
      made.update(piece)
  return made.hexdigest()


def _compact(part):
  return json.dumps(part, ensure_ascii=False, sort_keys=True, separators=(',', ':')).encode()


def _load_betag(folder, name):
  published = betag.read_inputs(folder)
  ids = tuple(published.tags)
  catalog = Catalog(ids, {'title': [', '.join(t) for t in published.tags.values()],
                          'tags': list(published.tags.values())})
  index = {item: i for i, item in enumerate(ids, start=1)}
  rows = [[index[item] for item in row] for row in published.sequences]
  interactions = Interactions(tuple(str(u) for u in range(len(rows))), *_flatten(rows))
  notes = {'source': 'betag', 'integer_ids': int(published.integer_ids), **published.counts}
  return make_dataset(name, catalog, interactions, notes)


def _load_llmemb(folder, name):
  items, users, rows, prompts = llmemb.read(folder)
  columns = {} if prompts is None else {'prompt': prompts, 'title': llmemb.titles(prompts)}
  interactions = Interactions(tuple(users), *_flatten(rows))
  return make_dataset(name, Catalog(items, columns), interactions, {'source': 'llmemb'})


def _load_reclm(folder, name):
  items, columns, users, rows = reclm.read_reclm(folder)
  interactions = Interactions(users, *_flatten(rows))
  return make_dataset(name, Catalog(items, columns), interactions, {'source': 'reclm'})


def read_items(path):
  """The items file. -> Catalog, notes. Raises DataError with file and line."""
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


def _check_columns(row, place):
  """Checks and freezes the columns that the package reads; others may hold any JSON value."""
  for name in TEXT_COLUMNS:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
      raise DataError(f'{place}: {name} must be a text, found {value!r:.60}.')
  for name in LIST_COLUMNS:
    value = row.get(name)
    if value is not None and not (isinstance(value, list)
                                  and all(isinstance(x, str) for x in value)):
      raise DataError(f'{place}: {name} must be a list of texts, found {value!r:.60}.')
  if not isinstance(row.get('retired'), bool | None):
    raise DataError(f'{place}: retired must be true or false, found {row["retired"]!r:.60}.')
  for name, value in row.items():
    if value != value:  # Parquet's way to leave a number out
      row[name] = None
    elif isinstance(value, str | int | None) or name in LIST_COLUMNS:
      continue
    try:
      json.dumps(row[name], allow_nan=False)
    except (TypeError, ValueError) as error:
      raise DataError(f'{place}: {name} holds {value!r:.60}, which JSON cannot.') from error


def _read_sequences(path, catalog, notes):
  users, rows, extras, places = [], [], {'times': [], 'ratings': []}, {}
  unread = set()
  index = {item: i for i, item in enumerate(catalog.ids, start=1)}
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
    unread.update(row.keys() - {'user_id', 'items', *extras})
    users.append(user)
    rows.append([_known(item, index, place) for item in items])
    for name, kept in extras.items():
      kept.append(_numbers(row.get(name), name, len(items), place))
  if not users:
    raise DataError(f'{path} holds no users.')
  notes['empty_sequences'] = sum(not row for row in rows)
  if unread:
    notes['unread_columns'] = ', '.join(sorted(unread))
  times, ratings = (_column(extras[name], name, places) for name in extras)
  items, offsets = _flatten(rows)
  if times is not None:
    falls = np.diff(times) < 0
    falls[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(times))] - 1] = False
    notes['times_out_of_order'] = int(falls.sum())
  return Interactions(tuple(users), items, offsets, times, ratings)


def _known(item, index, place):
  found = index.get(item) if isinstance(item, str) else index.get(
      file_io.text_id(item, place, 'an item'))
  if found is None:
    raise DataError(f'{place}: item {item!r} is not in the items file; add it there or take it '
                    'out of the sequence.')
  return found


def _numbers(values, name, length, place):
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


def _column(values, name, places):
  """Joins per-user lists; either every user with items has one or nobody has."""
  if not any(values):
    return None
  for value, (user, place) in zip(values, places.items()):
    if value is None:
      raise DataError(f'{place}: user {user!r} has no {name} while others have; '
                      f'give {name} to all users or to none.')
  flat = [x for value in values for x in value]
  return np.asarray(flat, np.int64 if name == 'times' else np.float32)


def _flatten(rows):
  """Lists of indices -> items (M,) int32, offsets (U + 1,) int64"""
  offsets = np.zeros(len(rows) + 1, np.int64)
  np.cumsum([len(row) for row in rows], out=offsets[1:])
  return np.fromiter((i for row in rows for i in row), np.int32, offsets[-1]), offsets


def _item_rows(catalog):
  for i, item in enumerate(catalog.ids):
    values = {name: column[i] for name, column in catalog.columns.items()}
    yield {'item_id': item} | {k: v for k, v in values.items() if v is not None}


def _sequence_rows(dataset):
  data, ids = dataset.interactions, np.array(dataset.catalog.ids, dtype=object)
  for u, user in enumerate(data.users):
    span = slice(data.offsets[u], data.offsets[u + 1])
    row = {'user_id': user, 'items': ids[data.items[span] - 1].tolist()}
    if data.times is not None:
      row['times'] = data.times[span].tolist()
    if data.ratings is not None:
      row['ratings'] = data.ratings[span].tolist()
    yield row


def _lines(rows):
  return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
