"""RecLM's three files, one JSON object each despite their ending (reclm.md 1.1).

`sequential` {user: [item, ...]}, `metas` {item: {"title", "title_t", "category", ...}}, `category`
{category: [item, ...]}, a category being the names below the root, joined by ', '.
"""
import json
import pathlib

from recjax import file_io
from recjax.data import raw_reader
from recjax.errors import DataError

SEQUENTIAL = ('sequential.jsonl', 'sequential.json')
METAS = ('metas.jsonl', 'metas.json')
CATEGORY = ('category.jsonl', 'category.json')
BEGINNINGS = ('<|begin_of_text|>', '<s>', '<bos>')  # that tokenizers left in published titles
ROOT = 'all'  # of paths that are known from `category` alone, which leaves the root out


def find(folder):
  """Whether a folder holds the files."""
  return bool(_path(folder, SEQUENTIAL) and _path(folder, METAS))


def _path(folder, names):
  return next((pathlib.Path(folder) / n for n in names if (pathlib.Path(folder) / n).is_file()),
              None)


def read_reclm(folder):
  """-> item ids, {column: values}, user ids, sequences of item numbers from 1, in order of metas.

  A title is `title_t`, or `title`; categories are paths from the root. Raises DataError naming the
  file and what is wrong in it.
  """
  users, metas = (read_object(_path(folder, names) or pathlib.Path(folder) / names[0])
                  for names in (SEQUENTIAL, METAS))
  path = _path(folder, METAS)
  made = []
  for item, row in metas.items():
    if not item or not isinstance(row, dict):
      raise DataError(f'{path}: item {item!r:.60} has no columns.')
    made.append(columns_of(row))
  if not made or not users:
    raise DataError(f'{folder} holds no {"users" if made else "items"}.')
  chosen = _path(folder, CATEGORY)
  if chosen and not any('categories' in row for row in made):
    _add_paths(chosen, list(metas), made)
  index = {item: n for n, item in enumerate(metas, 1)}
  rows = [_numbers(_path(folder, SEQUENTIAL), user, items, index) for user, items in users.items()]
  names = dict.fromkeys(['title', *(name for row in made for name in row)])
  columns = {name: [row.get(name) for row in made] for name in names}
  columns['title'] = [title or '' for title in columns['title']]
  return tuple(metas), columns, tuple(users), rows


def columns_of(row):
  """A row of metas as columns of the catalogue."""
  path = row.get('category')
  plain = isinstance(path, list) and path and all(isinstance(x, str) and x for x in path)
  title = raw_reader.as_text(row.get('title_t') or row.get('title'))
  for sign in BEGINNINGS:
    title = title and title.removeprefix(sign).lstrip()
  made = {'title': title,
          'brand': raw_reader.as_text(row.get('brand')),
          'categories': path if plain else raw_reader.as_list(path),  # as they stand in `category`
          'description': raw_reader.as_text(row.get('description'))}
  return {name: value for name, value in made.items() if value is not None}


def read_object(path):
  """One object, or lines of objects that are its parts. -> dict"""
  value = None
  if path.suffix == '.jsonl' and path.is_file():
    value = _merged(path)
  value = file_io.read_json(path) if value is None else value
  if not isinstance(value, dict):
    raise DataError(f'{path}: one object with ids as keys is expected.')
  return value


def _merged(path):
  """True JSON Lines, an object with some of the keys a line; None where the file is none."""
  lines = [x for x in file_io.read_bytes(path).split(b'\n') if x.strip()]
  if len(lines) < 2 or not all(x.strip().startswith(b'{') for x in lines):
    return None
  out = {}
  for number, (_, row) in enumerate(file_io.read_rows(path), 1):
    twice = out.keys() & row.keys()
    if twice:
      raise DataError(f'{path} object {number}: {min(twice)!r:.60} was there before.')
    out |= row
  return out


def _numbers(path, user, items, index):
  if not user or not isinstance(items, list):
    raise DataError(f'{path}: user {user!r:.60} needs a list of items.')
  for item in items:
    if not isinstance(item, str) or item not in index:
      raise DataError(f'{path}: user {user!r:.60} has item {item!r:.60}, which is not in metas.')
  return [index[item] for item in items]


def _add_paths(path, ids, made):
  """Paths out of `category`: 'A' and 'A, B' make [ROOT, 'A', 'B']."""
  row_of = dict(zip(ids, made))
  for category, items in sorted(read_object(path).items(), key=lambda pair: len(pair[0])):
    for item in items if isinstance(items, list) else [None]:
      row = row_of.get(item) if isinstance(item, str) else None
      if row is None:
        raise DataError(f'{path}: category {category!r:.60} holds {item!r:.60}, which is not in '
                        'metas.')
      chain = row.setdefault('categories', [ROOT])
      above = ', '.join(chain[1:])
      if len(chain) == 1:
        chain.append(category)
      elif category.startswith(above + ', '):
        chain.append(category[len(above) + 2:])


def write_reclm(data, folder):
  """Writes a Dataset as the three files.

  `title_t` is the title, numbered where others had it before: ' (1)', ' (2)'. Categories below the
  root are joined with those above them.
  """
  shop, goods = data.interactions, data.catalog
  metas, taken = {}, set()
  for i, item in enumerate(goods.ids):
    row = {k: v[i] for k, v in goods.columns.items() if v[i] is not None}
    path = row.pop('categories', [])
    metas[item] = row | {'category': path, 'title_t': _free(row.get('title', ''), taken)}
  users = {user: [goods.id_of(i) for i in shop.history(u)] for u, user in enumerate(shop.users)}
  for name, value in ((SEQUENTIAL[0], users), (METAS[0], metas),
                      (CATEGORY[0], categories(goods))):
    text = json.dumps(value, ensure_ascii=False, indent=2) + '\n'
    file_io.write_text(pathlib.Path(folder) / name, text)


def categories(goods):
  """{category: [item, ...]} of a Catalog."""
  found = {}
  for item, path in zip(goods.ids, goods.columns.get('categories', ())):
    for n in range(2, len(path or ()) + 1):
      found.setdefault(', '.join(path[1:n]), []).append(item)
  return found


def _free(title, taken):
  """The title, or with the smallest number that nobody has yet."""
  number, made = 0, title
  while made in taken:
    number += 1
    made = f'{title} ({number})'
  taken.add(made)
  return made
