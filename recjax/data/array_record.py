"""Sequences larger than memory: ArrayRecord files by a TFDS builder, read at random by grain.

The only file that knows TFDS and grain; TensorFlow is needed for neither. Record u is user u of the
canonical data set, so rows mean the same in both.
"""
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax import file_io
from recjax.data import loading, raw_reader
from recjax.data.dataset import ARRAY_DTYPES, Catalog, Dataset, Interactions, digest
from recjax.errors import ConfigError, DataError, WorkdirError

MISSING = 'records need TFDS and grain; install them with: pip install "recjax[data]"'

ABOUT = 'records.json'


@dataclasses.dataclass(frozen=True)
class Records:
  """A data set whose users stay on disk; the catalog is in memory.

  name: of the data set.

  source[u] is {'user_id': bytes, 'items': (n,) int32, 'times': (n,) int64, 'ratings': (n,)
  float32}; the last two are empty where the data set has none. fingerprint: that of the same data
  set in memory.
  """
  name: str
  catalog: Catalog
  source: Any
  fingerprint: str

  def __len__(self) -> int:
    return len(self.source)

  def users(self, rows: Iterable[int]) -> Dataset:
    """The users at `rows` in memory, under the fingerprint of all."""
    records = self.source.__getitems__([int(row) for row in rows])
    offsets = np.cumsum([0, *(len(r['items']) for r in records)]).astype(np.int64)
    columns = [np.concatenate([r[name] for r in records])
               for name in ('items', 'times', 'ratings')]
    items, times, ratings = (column if len(column) else None for column in columns)
    data = Interactions(tuple(r['user_id'].decode() for r in records),
                        np.zeros(0, np.int32) if items is None else items, offsets, times, ratings)
    return Dataset(self.name, self.catalog, data, self.fingerprint, {'source': 'records'})


def is_record_folder(path: str | os.PathLike) -> bool:
  """Whether the folder at `path` is one that `write` made."""
  return (pathlib.Path(path) / ABOUT).is_file()


def write(folder: str | pathlib.Path, data_dir: str | pathlib.Path) -> pathlib.Path:
  """Writes the canonical data set in `folder` as TFDS records under `data_dir`.

  Returns the folder to give to `load`. Streams; only the items are in memory. Raises DataError for
  what is wrong with the data set, WorkdirError where records of that name are there already.
  """
  folder = pathlib.Path(folder)
  items, sequences = (file_io.find_table(folder, stem) for stem in ('items', 'sequences'))
  if not items or not sequences:
    raise DataError(f'{folder} holds no items and sequences; make them with `recjax prepare`.')
  catalog, _ = loading.read_items(items)
  name = folder.resolve().name
  with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix='.records.') as spool_dir:
    tally = _Tally(catalog, spool_dir)
    builder = _builder(name, sequences, catalog, data_dir, tally)
    target = pathlib.Path(builder.data_dir)
    if target.exists():
      raise WorkdirError(f'{target} exists already; remove it or write somewhere else.')
    builder.download_and_prepare()
  about = {'name': name, **tally.result}
  shutil.copyfile(items, target / items.name)
  file_io.write_text(target / ABOUT, json.dumps(about, ensure_ascii=False, indent=2) + '\n')
  return target


def load(path: str | os.PathLike) -> Records:
  """The records that `write` made at `path`. Raises DataError where there are none."""
  tfds = _tfds()
  path = pathlib.Path(path)
  items = file_io.find_table(path, 'items')
  if items is None or not is_record_folder(path):
    raise DataError(f'{path} holds no records; make them with: recjax prepare records')
  about = file_io.read_json(path / ABOUT)
  try:
    builder: Any = tfds.builder_from_directory(str(path))
    source = builder.as_data_source('train')
  except (OSError, ValueError, tfds.core.DatasetNotFoundError) as error:
    raise DataError(f'{path} holds no records that can be read: {error}.') from error
  return Records(about['name'], loading.read_items(items)[0], source, about['fingerprint'])


def load_unchanged(cfg: ConfigDict, fingerprint: str, workdir: str | pathlib.Path) -> Records:
  """`load` of a run's records, which must have the `fingerprint` that the run in `workdir` was made
  on.

  cfg: the run's. Raises DataError where the data changed.
  """
  records = load(cfg.data)
  if records.fingerprint != fingerprint:
    raise DataError(f'{cfg.data} has changed since {workdir} was made; run the experiment again')
  return records



class Batches:
  """batches[i] is the i-th batch of an endless shuffled stream: a function of (seed, i) alone.

  source: gives lists of examples, as Records do. collate: makes a dict of arrays of such a list. Of
  each step's size * processes examples the process numbered `process` reads its own `size` alone,
  those that stand together; so the parts side by side are what one process would get, and a run
  goes on with another number of processes, bit for bit. The stream's position is the step.
  """

  def __init__(self, source: Any, collate: Callable[[list], dict[str, np.ndarray]], size: int,
               seed: int = 0, process: int = 0, processes: int = 1):
    try:
      import grain
    except ImportError as error:
      raise ConfigError(MISSING) from error
    self.order: Any = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    self.source, self.collate, self.size = source, collate, size
    self.process, self.processes = process, processes

  def __len__(self) -> int:
    return 10**9

  def rows_of(self, step: int) -> list[int]:
    """The examples of this process in the batch of `step`."""
    first = (step * self.processes + self.process) * self.size
    return [int(self.order[i]) for i in range(first, first + self.size)]

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    return self.collate(self.source.__getitems__(self.rows_of(step)))


def _tfds():
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ConfigError(MISSING) from error
  return tensorflow_datasets


def _builder(name: str, sequences: pathlib.Path, catalog: Catalog, data_dir: str | pathlib.Path,
             tally: '_Tally'):
  tfds = _tfds()

  class Sequences(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      row = {'user_id': tfds.features.Text()} | {
          name: tfds.features.Tensor(shape=(None,), dtype=dtype) for name, dtype in (
              ('items', np.int32), ('times', np.int64), ('ratings', np.float32))}
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True,
                                   features=tfds.features.FeaturesDict(row))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for number, row in enumerate(_examples(sequences, catalog)):
        tally.add(row)
        yield number, row
      tally.close(sequences)

  Sequences.name = ''.join(c if c.isascii() and c.isalnum() else '_' for c in name.lower())
  return Sequences(data_dir=str(data_dir), file_format='array_record')


def _examples(path: pathlib.Path, catalog: Catalog) -> Iterator[dict]:
  """The rows of a sequences file, items as indices 1..N. Raises DataError naming the row."""
  for number, row, reason in raw_reader.read(path):
    place = raw_reader.row_place(path, number)
    if row is None:
      raise DataError(f'{place}: {reason}.')
    items = row.get('items')
    if not isinstance(items, list):
      raise DataError(f'{place}: items must be a list of item ids, found {items!r:.60}.')
    lists = {}
    if 'times' not in row and 'timestamps' in row:  # as `loading` reads them
      row['times'] = row['timestamps']
    for name, dtype in (('times', np.int64), ('ratings', np.float32)):
      try:
        lists[name] = np.asarray(row.get(name) or [], dtype)
      except (TypeError, ValueError, OverflowError):
        lists[name] = np.zeros((), dtype)
      if lists[name].shape not in ((0,), (len(items),)):
        raise DataError(f'{place}: {name} must be numbers, as long as items ({len(items)}).')
    try:
      indices = np.array([catalog.index(item) for item in items], np.int32)
    except DataError as error:
      raise DataError(f'{place}: {error}') from error
    user = file_io.text_id(row.get('user_id'), place, 'user_id')
    yield {'user_id': user, 'items': indices} | lists


class _Tally:
  """Counts and `dataset.fingerprint` of users that pass one by one; arrays wait in `spool_dir`."""

  def __init__(self, catalog: Catalog, spool_dir: str):
    self.catalog, self.result = catalog, {}
    self.spools = {name: open(pathlib.Path(spool_dir) / name, 'w+b')  # noqa: SIM115  closed in `close`
                   for name in ('users', *ARRAY_DTYPES)}
    self.users = self.total = 0
    self.spools['users'].write(b'[')
    self._keep('offsets', 0)

  def add(self, row: dict) -> None:
    """Takes in a row as `_examples` makes it."""
    text = json.dumps(row['user_id'], ensure_ascii=False)
    self.spools['users'].write((',' * bool(self.users) + text).encode())
    self.users += 1
    self.total += len(row['items'])
    self._keep('offsets', self.total)
    for name in ('items', 'times', 'ratings'):
      self._keep(name, row[name])

  def _keep(self, name: str, values: int | np.ndarray) -> None:
    self.spools[name].write(np.asarray(values, ARRAY_DTYPES[name]).tobytes())

  def close(self, path: pathlib.Path) -> None:
    """Fills `result`. Raises DataError where some users alone have times or ratings."""
    self.spools['users'].write(b']')
    for name in ('times', 'ratings'):
      size = self.spools[name].tell() // np.dtype(ARRAY_DTYPES[name]).itemsize
      if size not in (0, self.total):
        raise DataError(f'{path}: only some users have {name}; give it to all users or to none.')
    arrays = [self._pieces(name) if self.spools[name].tell() or name in ('items', 'offsets')
              else None for name in ARRAY_DTYPES]
    self.result = {'users': self.users, 'interactions': self.total,
                   'fingerprint': digest(self.catalog, self._pieces('users'), arrays)}
    for spool in self.spools.values():
      spool.close()

  def _pieces(self, name: str) -> Iterator[bytes]:
    self.spools[name].seek(0)
    return iter(lambda: self.spools[name].read(1 << 20), b'')
