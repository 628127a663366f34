"""Sequences larger than memory: ArrayRecord files by a TFDS builder, read at random by grain.

The only file that knows TFDS and grain; TensorFlow is needed for neither. Record u is user u of the
canonical data set, so rows mean the same in both.
"""
import dataclasses
import json
import pathlib
import shutil
import tempfile

import numpy as np

from recjax import file_io
from recjax.data import dataset, raw_reader
from recjax.errors import ConfigError, DataError, WorkdirError

MISSING = 'records need TFDS and grain; install them with: pip install "recjax[data]"'

ABOUT = 'records.json'


@dataclasses.dataclass(frozen=True)
class Records:
  """A data set whose users stay on disk; the catalogue is in memory.

  source[u] -> {'user_id': bytes, 'items': (n,) int32, 'times': (n,) int64, 'ratings': (n,)
  float32}; the last two are empty where the data set has none. fingerprint: that of the same data
  set in memory.
  """
  name: str
  catalog: dataset.Catalog
  source: object
  fingerprint: str

  def __len__(self):
    return len(self.source)

  def users(self, rows):
    """Some users in memory, under the fingerprint of all. rows: (n,) int -> Dataset"""
    found = self.source.__getitems__([int(row) for row in rows])
    offsets = np.cumsum([0, *(len(one['items']) for one in found)]).astype(np.int64)
    columns = [np.concatenate([one[name] for one in found])
               for name in ('items', 'times', 'ratings')]
    items, *more = (column if len(column) else None for column in columns)
    data = dataset.Interactions(tuple(one['user_id'].decode() for one in found),
                                np.zeros(0, np.int32) if items is None else items, offsets, *more)
    return dataset.Dataset(self.name, self.catalog, data, self.fingerprint, {'source': 'records'})


def found(path):
  """Whether a folder is one that `write` made."""
  return (pathlib.Path(path) / ABOUT).is_file()


def write(folder, data_dir):
  """A canonical data set as TFDS records under `data_dir`. -> the folder to give to `load`

  Streams; only the items are in memory. Raises DataError for what is wrong with the data set,
  WorkdirError where records of that name are there already.
  """
  folder = pathlib.Path(folder)
  items, sequences = (file_io.find_table(folder, stem) for stem in ('items', 'sequences'))
  if not items or not sequences:
    raise DataError(f'{folder} holds no items and sequences; make them with `recjax prepare`.')
  goods, _ = dataset.read_items(items)
  name = folder.resolve().name
  with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix='.records.') as room:
    tally = _Tally(goods, room)
    builder = _builder(name, sequences, goods, data_dir, tally)
    target = pathlib.Path(builder.data_dir)
    if target.exists():
      raise WorkdirError(f'{target} exists already; remove it or write somewhere else.')
    builder.download_and_prepare()
  about = {'name': name, **tally.result}
  shutil.copyfile(items, target / items.name)
  file_io.write_text(target / ABOUT, json.dumps(about, ensure_ascii=False, indent=2) + '\n')
  return target


def load(path):
  """What `write` made, read one record at a time. -> Records. Raises DataError."""
  tfds = _tfds()
  path = pathlib.Path(path)
  items = file_io.find_table(path, 'items')
  if items is None or not found(path):
    raise DataError(f'{path} holds no records; make them with: recjax prepare records')
  about = file_io.read_json(path / ABOUT)
  try:
    source = tfds.builder_from_directory(str(path)).as_data_source('train')
  except (OSError, ValueError, tfds.core.DatasetNotFoundError) as error:
    raise DataError(f'{path} holds no records that can be read: {error}.') from error
  return Records(about['name'], dataset.read_items(items)[0], source, about['fingerprint'])


def load_unchanged(path, fingerprint, workdir, tie_order='file'):
  """`load`, of the very data that a run was made on. Raises DataError where they changed."""
  del tie_order  # that of the file
  stored = load(path)
  if stored.fingerprint != fingerprint:
    raise DataError(f'{path} has changed since {workdir} was made; run the experiment again')
  return stored


class Batches:
  """batches[i] is the i-th batch of an endless shuffled stream: a function of (seed, i) alone.

  collate: list of examples -> dict of arrays. Of each step's size * processes examples a process
  reads its own `size` alone, those that stand together; so the parts side by side are what one
  process would get, and a run goes on with another number of processes, bit for bit. The stream's
  position is the step.
  """

  def __init__(self, source, collate, size, seed=0, process=0, processes=1):
    try:
      import grain
    except ImportError as error:
      raise ConfigError(MISSING) from error
    self.order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    self.source, self.collate, self.size = source, collate, size
    self.process, self.processes = process, processes

  def __len__(self):
    return 10**9

  def rows_of(self, step):
    """The examples of this process in a step. -> list of int"""
    first = (step * self.processes + self.process) * self.size
    return [int(self.order[i]) for i in range(first, first + self.size)]

  def __getitem__(self, step):
    return self.collate(self.source.__getitems__(self.rows_of(step)))


def _tfds():
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ConfigError(MISSING) from error
  return tensorflow_datasets


def _builder(name, sequences, goods, data_dir, tally):
  tfds = _tfds()

  class Sequences(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      row = {'user_id': tfds.features.Text()} | {
          name: tfds.features.Tensor(shape=(None,), dtype=kind) for name, kind in (
              ('items', np.int32), ('times', np.int64), ('ratings', np.float32))}
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True,
                                   features=tfds.features.FeaturesDict(row))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for number, row in enumerate(_examples(sequences, goods)):
        tally.add(row)
        yield number, row
      tally.close(sequences)

  Sequences.name = ''.join(c if c.isascii() and c.isalnum() else '_' for c in name.lower())
  return Sequences(data_dir=str(data_dir), file_format='array_record')


def _examples(path, goods):
  """The rows of a sequences file, items as indices 1..N. Raises DataError naming the row."""
  for number, row, why in raw_reader.read(path):
    place = raw_reader.place(path, number)
    if why:
      raise DataError(f'{place}: {why}.')
    items = row.get('items')
    if not isinstance(items, list):
      raise DataError(f'{place}: items must be a list of item ids, found {items!r:.60}.')
    lists = {}
    if 'times' not in row and 'timestamps' in row:  # as in catalog
      row['times'] = row['timestamps']
    for name, kind in (('times', np.int64), ('ratings', np.float32)):
      try:
        lists[name] = np.asarray(row.get(name) or [], kind)
      except (TypeError, ValueError, OverflowError):
        lists[name] = np.zeros((), kind)
      if lists[name].shape not in ((0,), (len(items),)):
        raise DataError(f'{place}: {name} must be numbers, as long as items ({len(items)}).')
    try:
      indices = np.array([goods.index(item) for item in items], np.int32)
    except DataError as error:
      raise DataError(f'{place}: {error}') from error
    yield {
      'user_id': file_io.text_id(row.get('user_id'), place, 'user_id'),
      'items': indices,
    } | lists


class _Tally:
  """Counts and `dataset.fingerprint` of users that pass one by one; arrays wait on disk."""

  def __init__(self, goods, room):
    self.goods, self.result = goods, {}
    self.spools = {name: open(pathlib.Path(room) / name, 'w+b')  # noqa: SIM115  closed in `close`
                   for name in ('users', *dataset.KINDS)}
    self.users = self.total = 0
    self.spools['users'].write(b'[')
    self._keep('offsets', 0)

  def add(self, row):
    """Takes in a row as `_examples` makes it."""
    text = json.dumps(row['user_id'], ensure_ascii=False)
    self.spools['users'].write((',' * bool(self.users) + text).encode())
    self.users += 1
    self.total += len(row['items'])
    self._keep('offsets', self.total)
    for name in ('items', 'times', 'ratings'):
      self._keep(name, row[name])

  def _keep(self, name, values):
    self.spools[name].write(np.asarray(values, dataset.KINDS[name]).tobytes())

  def close(self, path):
    """Fills `result`. Raises DataError where some users alone have times or ratings."""
    self.spools['users'].write(b']')
    for name in ('times', 'ratings'):
      size = self.spools[name].tell() // np.dtype(dataset.KINDS[name]).itemsize
      if size not in (0, self.total):
        raise DataError(f'{path}: only some users have {name}; give it to all users or to none.')
    users, *arrays = (self._pieces(name) if spool.tell() or name in ('items', 'offsets') else None
                      for name, spool in self.spools.items())
    self.result = {'users': self.users, 'interactions': self.total,
                   'fingerprint': dataset.digest(self.goods, users, arrays)}
    for spool in self.spools.values():
      spool.close()

  def _pieces(self, name):
    self.spools[name].seek(0)
    return iter(lambda: self.spools[name].read(1 << 20), b'')
