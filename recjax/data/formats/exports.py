"""The data set in the files that other programs read: RecBole, S3-Rec and its kin, ETEGRec, RecLM,
UniRec.

Each function writes into a folder under a name; ids stay as they are unless said.
"""
import json
import re

import numpy as np

from recjax import file_io
from recjax.data.formats import reclm as reclm_files
from recjax.data.formats import unirec as unirec_files
from recjax.errors import DataError

HISTORY = 50  # items of an ETEGRec history at most (etegrec.md 2.1)
_BREAKS = re.compile(r'[\s\x00-\x1f]')


def recbole(data, folder, name):
  """NAME.inter and NAME.item, RecBole's atomic files.

  Without times, a user's n-th item has timestamp n. Blanks inside a category become '_', since
  RecBole parts lists at blanks. Raises DataError for ids that hold tabs or line breaks.
  """
  shop, ids = data.interactions, data.catalog.ids
  for what, names in (('item', ids), ('user', shop.users)):
    for one in names:
      if any(sign in one for sign in '\t\r\n'):
        raise DataError(f'{what} {one!r:.60} holds a tab or a line break, which RecBole cannot '
                        'read.')
  head = ['user_id:token', 'item_id:token'] + ['rating:float'] * (shop.ratings is not None)
  lines = ['\t'.join([*head, 'timestamp:float'])]
  for u, user in enumerate(shop.users):
    for n, at in enumerate(range(shop.offsets[u], shop.offsets[u + 1])):
      row = [user, ids[shop.items[at] - 1]]
      row += [] if shop.ratings is None else [str(shop.ratings[at])]
      lines.append('\t'.join([*row, str(n if shop.times is None else shop.times[at])]))
  file_io.write_text(folder / f'{name}.inter', '\n'.join(lines) + '\n')
  file_io.write_text(folder / f'{name}.item', _recbole_items(data.catalog))


def _recbole_items(goods):
  columns = [c for c in ('title', 'brand', 'categories') if c in goods.columns]
  lines = ['\t'.join(['item_id:token', *(f'{c}:token_seq' for c in columns)])]
  for i, item in enumerate(goods.ids):
    row = [item]
    for column in columns:
      value = goods.columns[column][i] or ''
      words = [_BREAKS.sub('_', v) for v in value] if isinstance(value, list) else value.split()
      row.append(' '.join(words))
    lines.append('\t'.join(row))
  return '\n'.join(lines) + '\n'


def sequences(data, folder, name):
  """NAME.txt, lines `user item item ...` numbered from 1, and NAME.ids.json with the ids behind.

  S3-Rec, P5 and LETTER read such lines; user n is the n-th of `users`, item n of `items`.
  """
  shop = data.interactions
  lines = [' '.join(map(str, (u, *shop.history(u - 1)))) for u in range(1, len(shop) + 1)]
  file_io.write_text(folder / f'{name}.txt', '\n'.join(lines) + '\n')
  _write(folder / f'{name}.ids.json', {'users': shop.users, 'items': data.catalog.ids})


def etegrec(data, folder, name):
  """NAME.train, .valid and .test.jsonl and NAME.emb_map.json (etegrec.md 2.2).

  Of users with 3 items or more: every prefix trains, the last but one item validates, the last one
  tests; histories hold the last 50 items.
  """
  shop, ids = data.interactions, np.array(('', *data.catalog.ids), object)
  rows = {'train': [], 'valid': [], 'test': []}
  for u, user in enumerate(shop.users):
    items = ids[shop.history(u)].tolist()
    if len(items) < 3:
      continue
    for n in range(1, len(items)):
      part = {len(items) - 1: 'test', len(items) - 2: 'valid'}.get(n, 'train')
      rows[part].append({'user_id': user, 'target_id': items[n],
                         'inter_history': items[max(0, n - HISTORY):n]})
  for part, found in rows.items():
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in found)
    file_io.write_text(folder / f'{name}.{part}.jsonl', text)
  _write(folder / f'{name}.emb_map.json', {'[PAD]': 0} | {
      item: n for n, item in enumerate(data.catalog.ids, 1)})


def reclm(data, folder, name):
  """RecLM's three files, as `formats.reclm` writes them; name is not used."""
  del name
  reclm_files.write_reclm(data, folder)


def unirec(data, folder, name):
  """UniRec's tables, as `formats.unirec` writes them."""
  unirec_files.write(data, folder, name)


def _write(path, value, indent=None):
  file_io.write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + '\n')
