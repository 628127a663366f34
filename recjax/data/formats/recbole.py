"""RecBole's atomic files, NAME.inter and NAME.item (recbole.io); `sources.table` reads them."""
import pathlib
import re

from recjax import file_io
from recjax.data import raw_reader
from recjax.data.dataset import Catalog, Dataset
from recjax.errors import DataError

_BREAKS = re.compile(r'[\s\x00-\x1f]')


def write(dataset: Dataset, folder: raw_reader.Path, name: str) -> None:
  """Writes `dataset` to `folder` as the files `name`.inter and `name`.item.

  Without times, a user's n-th item has timestamp n. Blanks inside a category become '_', since
  RecBole parts lists at blanks. Raises DataError for ids that hold tabs or line breaks.
  """
  data, ids = dataset.interactions, dataset.catalog.ids
  for what, names in (('item', ids), ('user', data.users)):
    for id_ in names:
      if any(sign in id_ for sign in '\t\r\n'):
        raise DataError(f'{what} {id_!r:.60} holds a tab or a line break, which RecBole cannot '
                        'read.')
  header = ['user_id:token', 'item_id:token'] + ['rating:float'] * (data.ratings is not None)
  lines = ['\t'.join([*header, 'timestamp:float'])]
  for u, user in enumerate(data.users):
    for n, position in enumerate(range(data.offsets[u], data.offsets[u + 1])):
      row = [user, ids[data.items[position] - 1]]
      row += [] if data.ratings is None else [str(data.ratings[position])]
      lines.append('\t'.join([*row, str(n if data.times is None else data.times[position])]))
  for ending, rows in (('inter', lines), ('item', _item_lines(dataset.catalog))):
    file_io.write_text(pathlib.Path(folder) / f'{name}.{ending}', '\n'.join(rows) + '\n')


def _item_lines(catalog: Catalog) -> list[str]:
  columns = [c for c in ('title', 'brand', 'categories') if c in catalog.columns]
  lines = ['\t'.join(['item_id:token', *(f'{c}:token_seq' for c in columns)])]
  for i, item in enumerate(catalog.ids):
    row = [item]
    for column in columns:
      value = catalog.columns[column][i] or ''
      words = [_BREAKS.sub('_', v) for v in value] if isinstance(value, list) else value.split()
      row.append(' '.join(words))
    lines.append('\t'.join(row))
  return lines
