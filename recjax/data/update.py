"""A data set that carries a trained run's on: the same items under their numbers, new ones behind.

`recjax prepare --update` makes such sets. A run answers about them without another training where
its method can read what an item says of itself.
"""
import itertools

from recjax.data import dataset
from recjax.errors import DataError


def load(source, known, workdir):
  """The data set at `source`, which must begin with the items of the Catalog `known`. -> Dataset

  workdir: the run, for messages. Raises DataError naming the first item that differs.
  """
  shop = dataset.load_data(source)
  ids = shop.catalog.ids[:len(known)]
  for place, (old, new) in enumerate(itertools.zip_longest(known.ids, ids), 1):
    if old != new:
      found = 'there is none' if new is None else f'it is {new!r}'
      raise DataError(f'{source} does not carry on the data of {workdir}: item {place} was '
                      f'{old!r}, now {found}. Make it with `recjax prepare ... --update=OLD '
                      '--out=NEW`, which keeps every item at its number')
  return shop


def fresh(known, goods, columns=None):
  """Items of `goods` that are new, or say something else than in `known`. -> indices 1..N, sorted

  columns: those that count, by default all but the mark of retired items.
  """
  names = set(known.columns) | set(goods.columns)
  names = names - {'retired'} if columns is None else names & set(columns)
  rows = range(len(known))
  changed = set(range(len(known), len(goods)))
  for name in names:
    old, new = (c.columns.get(name) or itertools.repeat(None) for c in (known, goods))
    changed.update(i for i, a, b in zip(rows, old, new) if (a or None) != (b or None))
  return [i + 1 for i in sorted(changed)]
