"""A data set that carries a trained run's on: the same items under their numbers, new ones behind.

`recjax prepare --update` makes such sets. A run answers about them without another training where
its method can read what an item says of itself.
"""
import itertools
import pathlib
from collections.abc import Collection, Sequence

from recjax.data import loading
from recjax.data.dataset import Catalog, Dataset
from recjax.errors import DataError


def load_continuation(source: str | pathlib.Path, trained: Catalog,
                      workdir: str | pathlib.Path) -> Dataset:
  """Loads the data set at `source`, which must begin with the items of the catalog `trained` on.

  workdir: the run, for messages. Raises DataError naming the first item that differs.
  """
  dataset = loading.load_data(source)
  check_continuation(dataset.catalog.ids, trained, source, workdir)
  return dataset


def check_continuation(ids: Sequence[str], trained: Catalog, source: str | pathlib.Path,
                       workdir: str | pathlib.Path) -> None:
  """Raises DataError, which names the first item that differs, where ids do not begin with those of
  the catalog `trained` on.

  ids: of the later data. source: where these stand. workdir: the run. Both are for messages.
  """
  ids = ids[:len(trained)]
  for place, (old, new) in enumerate(itertools.zip_longest(trained.ids, ids), 1):
    if old != new:
      actual = 'there is none' if new is None else f'it is {new!r}'
      raise DataError(f'{source} does not carry on the data of {workdir}: item {place} was '
                      f'{old!r}, now {actual}. Make it with `recjax prepare ... --update=OLD '
                      '--out=NEW`, which keeps every item at its number')


def changed_items(trained: Catalog, catalog: Catalog,
                  columns: Collection[str] | None = None) -> list[int]:
  """Indices 1..N, sorted, of items of `catalog` that are new or say other things than in `trained`.

  columns: those that count, by default all but the mark of retired items.
  """
  names = set(trained.columns) | set(catalog.columns)
  names = names - {'retired'} if columns is None else names & set(columns)
  rows = range(len(trained))
  changed = set(range(len(trained), len(catalog)))
  for name in names:
    old, new = (c.columns.get(name) or itertools.repeat(None) for c in (trained, catalog))
    changed.update(i for i, a, b in zip(rows, old, new) if (a or None) != (b or None))
  return [i + 1 for i in sorted(changed)]
