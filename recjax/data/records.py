"""Sequences larger than memory: ArrayRecord files by a TFDS builder, read at random by grain.

The only file that knows TFDS and grain; TensorFlow is needed for neither. Record u is user u of the
canonical data set, so rows mean the same in both.
"""
import pathlib
import shutil

import numpy as np

from recjax.data import catalog, files, raw
from recjax.errors import ConfigError, DataError, WorkdirError

MISSING = 'records need TFDS and grain; install them with: pip install "recjax[data]"'


def write(folder, data_dir):
  """A canonical data set as TFDS records under `data_dir`. -> the folder to give to `load`

  Streams; only the items are in memory. Raises DataError for what is wrong with the data set,
  WorkdirError where records of that name are there already.
  """
  folder = pathlib.Path(folder)
  items, sequences = (files.find_table(folder, stem) for stem in ('items', 'sequences'))
  if not items or not sequences:
    raise DataError(f'{folder} holds no items and sequences; make them with `recjax prepare`.')
  goods, _ = catalog.read_items(items)
  builder = _builder(folder.resolve().name, sequences, goods, data_dir)
  target = pathlib.Path(builder.data_dir)
  if target.exists():
    raise WorkdirError(f'{target} exists already; remove it or write somewhere else.')
  builder.download_and_prepare()
  shutil.copyfile(items, target / items.name)
  return target


def load(path):
  """What `write` made. -> Catalog, source

  source[u] -> {'user_id': str, 'items': (n,) int32, 'times': (n,) int64, 'ratings': (n,) float32};
  the last two are empty where the data set has none. source reads one record at a time from disk.
  """
  tfds = _tfds()
  items = files.find_table(path, 'items')
  if items is None:
    raise DataError(f'{path} holds no records; make them with records.write.')
  try:
    source = tfds.builder_from_directory(str(path)).as_data_source('train')
  except (OSError, ValueError, tfds.core.DatasetNotFoundError) as error:
    raise DataError(f'{path} holds no records that can be read: {error}.') from error
  return catalog.read_items(items)[0], source


def batches(source, collate, size, seed=0, process=0, processes=1):
  """batches[i] is the i-th batch of an endless shuffled stream: a function of (seed, i) alone.

  collate: list of examples -> dict of arrays. Each of `processes` gets its own `size` examples of
  step i; together they are those that one process with size * processes would get. The stream's
  position is the step, so a run goes on with another number of processes.
  """
  try:
    import grain
  except ImportError as error:
    raise ConfigError(MISSING) from error
  stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  return stream[process::processes].batch(size, batch_fn=collate)


def _tfds():
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ConfigError(MISSING) from error
  return tensorflow_datasets


def _builder(name, sequences, goods, data_dir):
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
      yield from enumerate(_examples(sequences, goods))

  Sequences.name = ''.join(c if c.isascii() and c.isalnum() else '_' for c in name.lower())
  return Sequences(data_dir=str(data_dir), file_format='array_record')


def _examples(path, goods):
  """The rows of a sequences file, items as indices 1..N. Raises DataError naming the row."""
  for number, row, why in raw.read(path):
    place = raw.place(path, number)
    if why:
      raise DataError(f'{place}: {why}.')
    items = row.get('items')
    if not isinstance(items, list):
      raise DataError(f'{place}: items must be a list of item ids, found {items!r:.60}.')
    lists = {}
    for name, kind in (('times', np.int64), ('ratings', np.float32)):
      lists[name] = np.asarray(row.get(name) or [], kind)
      if len(lists[name]) not in (0, len(items)):
        raise DataError(f'{place}: {name} must be as long as items ({len(items)}).')
    try:
      indices = np.array([goods.index(item) for item in items], np.int32)
    except DataError as error:
      raise DataError(f'{place}: {error}') from error
    yield {'user_id': files.text_id(row.get('user_id'), place, 'user_id'), 'items': indices} | lists
