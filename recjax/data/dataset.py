"""The data set in memory: what can be recommended, and who met it in which order.

Items have dense indices 1..N in the order of the items file; 0 is padding. A fingerprint of items
and sequences travels with everything that is made from them.
"""
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np

from recjax.errors import ConfigError, DataError
from recjax.split_rule import LEAVE_ONE_OUT, SplitRule

ARRAY_DTYPES = {'items': '<i4', 'offsets': '<i8', 'times': '<i8', 'ratings': '<f4'}  # when hashed


@dataclasses.dataclass(frozen=True)
class Catalog:
  """Items in index order; `columns[name][i - 1]` belongs to item i, None where it has no value.
  ids: of the items."""
  ids: tuple[str, ...]
  columns: dict[str, list]

  def __len__(self) -> int:
    return len(self.ids)

  @functools.cached_property
  def _indices(self) -> dict[str, int]:
    return {item: i for i, item in enumerate(self.ids, start=1)}

  def active_ids(self) -> frozenset[str] | None:
    """Ids of the items that may be recommended, or None where none is retired."""
    retired = self.columns.get('retired') or ()
    return frozenset(i for i, r in zip(self.ids, retired) if not r) if any(retired) else None

  def index(self, item_id: object) -> int:
    """Dense index 1..N of the item `item_id`. Raises DataError if the catalog lacks it."""
    index = self.find(item_id)
    if not index:
      raise DataError(f'item {item_id!r} is not in the catalog of {len(self)} items.')
    return index

  def find(self, item_id: object) -> int:
    """Dense index 1..N of the item `item_id`, 0 for one that is not there."""
    return self._indices.get(str(item_id), 0)

  def id_of(self, index: int) -> str:
    """Item id of the dense index `index`. Raises DataError outside 1..N."""
    if not 1 <= index <= len(self):
      raise DataError(f'item index {index} is outside 1..{len(self)}.')
    return self.ids[index - 1]


@dataclasses.dataclass(frozen=True)
class Interactions:
  """Users' item sequences, laid end to end; user u has items[offsets[u]:offsets[u + 1]].

  items: (M,) int32. offsets: (U + 1,) int64. times: (M,) int64, ratings: (M,) float32, or None.
  users: their ids.
  """
  users: tuple[str, ...]
  items: np.ndarray
  offsets: np.ndarray
  times: np.ndarray | None = None
  ratings: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.users)

  def history(self, user: int) -> np.ndarray:
    """Items of the user row `user` in time order, a view of shape (n,)."""
    return self.items[self.offsets[user]:self.offsets[user + 1]]

  def lengths(self) -> np.ndarray:
    """Number of items of each user, (U,) int64."""
    return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A catalog with its interactions; `notes` counts what was odd but usable in the files. name:
  what it is called. fingerprint: hash of its content, and of the rule where that is not
  leave-one-out. split_rule: how it is split into training and test."""
  name: str
  catalog: Catalog
  interactions: Interactions
  fingerprint: str
  notes: dict
  split_rule: SplitRule = LEAVE_ONE_OUT

  @property
  def summary(self) -> str:
    """What it holds, in a line for the log."""
    return (f'{self.name}: {len(self.catalog):,} items, {len(self.interactions):,} users, '
            f'{len(self.interactions.items):,} interactions, fingerprint {self.fingerprint[:12]}')


def make_dataset(name: str, catalog: Catalog, interactions: Interactions,
                 notes: dict | None = None) -> Dataset:
  """Puts `catalog` and `interactions` together under a name, with notes, and fingerprints them."""
  return Dataset(name, catalog, interactions, fingerprint(catalog, interactions), notes or {})


def flatten(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Item indices of each user (rows) as Interactions hold them: items (M,), offsets (U + 1,)."""
  offsets = np.zeros(len(rows) + 1, np.int64)
  np.cumsum([len(row) for row in rows], out=offsets[1:])
  return np.fromiter((i for row in rows for i in row), np.int32, offsets[-1]), offsets


def item_texts(catalog: Catalog) -> list[str]:
  """One text of each item of `catalog` for encoders: title, price, brand, categories, or its id."""
  columns, n = catalog.columns, len(catalog)
  parts = [columns.get(name) or [''] * n for name in ('title', 'price', 'brand', 'categories')]

  def text(value: object) -> str:
    if isinstance(value, (list, tuple)):
      return ', '.join(map(text, value))
    return '' if value is None else str(value)
  return [', '.join(t for t in map(text, row) if t) or catalog.id_of(i + 1)
          for i, row in enumerate(zip(*parts))]


def in_tie_order(dataset: Dataset, order: str) -> Dataset:
  """`dataset` with each user's items of one time as the file has them, or shuffled.

  order: 'file', or 'shuffle(SEED)', which moves items among neighbors of equal time alone; their
  order in a file often follows ids, which can be learned. A shuffled data set has a fingerprint of
  its own. Raises ConfigError for other orders, DataError without times.
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
  shuffled = np.lexsort((np.random.default_rng(int(seed[1])).random(len(first)), np.cumsum(first)))
  ratings = None if data.ratings is None else data.ratings[shuffled]
  data = dataclasses.replace(data, items=data.items[shuffled], ratings=ratings)
  return make_dataset(dataset.name, dataset.catalog, data, dataset.notes)


def with_rule(dataset: Dataset, rule: SplitRule) -> Dataset:
  """`dataset` to be split by `rule`; what is made under one rule fits no other, so the fingerprint
  says it too."""
  if rule.default:
    return dataset
  named = _canonical_json([dataset.fingerprint, dataclasses.asdict(rule)])
  return dataclasses.replace(dataset, split_rule=rule,
                             fingerprint=hashlib.sha256(named).hexdigest())


def fingerprint(catalog: Catalog, interactions: Interactions) -> str:
  """Hexadecimal hash of catalog and interactions, whatever file format they came in."""
  arrays = [array if array is None else [np.ascontiguousarray(array, dtype)]
            for array, dtype in zip((interactions.items, interactions.offsets, interactions.times,
                                     interactions.ratings), ARRAY_DTYPES.values())]
  return digest(catalog, [_canonical_json(interactions.users)], arrays)


def digest(catalog: Catalog, users: Iterable[bytes], arrays: Iterable[Iterable | None]) -> str:
  """`fingerprint` of `catalog` and of other parts that may come in pieces.

  users: pieces of the ids of the users as one JSON list. arrays: pieces of each of ARRAY_DTYPES,
  None for one that the data set lacks.
  """
  sha = hashlib.sha256()
  columns = {k: v for k, v in catalog.columns.items() if any(x is not None for x in v)}
  for pieces in ([_canonical_json(catalog.ids)], [_canonical_json(columns)], users):
    for piece in pieces:
      sha.update(piece)
    sha.update(b'\n')
  for pieces in arrays:
    for piece in [b'-'] if pieces is None else pieces:
      sha.update(piece)
  return sha.hexdigest()


def _canonical_json(value: object) -> bytes:
  return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(',', ':')).encode()
