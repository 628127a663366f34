"""RecLM's three files (github.com/microsoft/RecAI, RecLM-cgen), one JSON object each despite their
ending; those of RecLM-gen may be pickles.

`sequential` {user: [item, ...]}, `metas` {item: {"title", "title_t", "category", ...}}, `category`
{category: [item, ...]}, a category being the names below the root, joined by ', '.
"""
import json
import pathlib

from recjax import file_io
from recjax.data import cleaning, raw_reader
from recjax.data.dataset import Catalog, Dataset, Interactions, flatten, make_dataset
from recjax.data.formats import safe_pickle
from recjax.errors import ConfigError, DataError

SEQUENTIAL = ('sequential.jsonl', 'sequential.json')
METAS = ('metas.jsonl', 'metas.json')
CATEGORY = ('category.jsonl', 'category.json')
TITLE_PREFIXES = ('<|begin_of_text|>', '<s>', '<bos>')  # that tokenizers left in published titles
ROOT = 'all'  # of paths that are known from `category` alone, which leaves the root out


def is_folder(folder: pathlib.Path) -> bool:
  """Whether `folder` holds the files."""
  return bool(_find(folder, SEQUENTIAL) and _find(folder, METAS))


def _find(folder: raw_reader.Path, names: tuple[str, ...]) -> pathlib.Path | None:
  return next((pathlib.Path(folder) / n for n in names if (pathlib.Path(folder) / n).is_file()),
              None)


def load(folder: raw_reader.Path, name: str) -> Dataset:
  """Reads `folder` as the data set `name`, items in the order of metas.

  A title is `title_t`, or `title`; categories are paths from the root. Raises DataError naming the
  file and what is wrong in it.
  """
  users_path, path = (_find(folder, names) or pathlib.Path(folder) / names[0]
                      for names in (SEQUENTIAL, METAS))
  users, metas = read_object(users_path), read_object(path)
  rows = []
  for item, row in metas.items():
    if not item or not isinstance(row, dict):
      raise DataError(f'{path}: item {item!r:.60} has no columns.')
    rows.append(item_columns(row))
  if not rows or not users:
    raise DataError(f'{folder} holds no {"users" if rows else "items"}.')
  category_path = _find(folder, CATEGORY)
  if category_path and not any('categories' in row for row in rows):
    _add_categories(category_path, dict(zip(metas, rows)))
  index = {item: n for n, item in enumerate(metas, 1)}
  sequences = [_indices(users_path, user, items, index) for user, items in users.items()]
  names = dict.fromkeys(['title', *(name for row in rows for name in row)])
  columns = {name: [row.get(name) for row in rows] for name in names}
  columns['title'] = [title or '' for title in columns['title']]
  return make_dataset(name, Catalog(tuple(metas), columns),
                      Interactions(tuple(users), *flatten(sequences)), {'source': 'reclm'})


def item_columns(row: dict) -> dict:
  """A row of metas as columns of the catalog."""
  path = row.get('category')
  plain = isinstance(path, list) and path and all(isinstance(x, str) and x for x in path)
  title = raw_reader.as_text(row.get('title_t') or row.get('title'))
  for prefix in TITLE_PREFIXES:
    title = title and title.removeprefix(prefix).lstrip()
  columns = {'title': title,
             'brand': raw_reader.as_text(row.get('brand')),
             'categories': path if plain else raw_reader.as_list(path),  # as stand in `category`
             'description': raw_reader.as_text(row.get('description'))}
  return {name: value for name, value in columns.items() if value is not None}


def read_object(path: pathlib.Path) -> dict:
  """The object in the file at `path`, or in its lines, whose objects are parts of it."""
  value = _merged_lines(path) if path.suffix == '.jsonl' and path.is_file() else None
  value = file_io.read_json(path) if value is None else value
  if not isinstance(value, dict):
    raise DataError(f'{path}: one object with ids as keys is expected.')
  return value


def _merged_lines(path: pathlib.Path) -> dict | None:
  """True JSON Lines, an object with some of the keys a line; None where the file is none."""
  lines = [x for x in file_io.read_bytes(path).split(b'\n') if x.strip()]
  if len(lines) < 2 or not all(x.strip().startswith(b'{') for x in lines):
    return None
  merged = {}
  for number, (_, row) in enumerate(file_io.read_rows(path), 1):
    twice = merged.keys() & row.keys()
    if twice:
      raise DataError(f'{path} object {number}: {min(twice)!r:.60} was there before.')
    merged |= row
  return merged


def _indices(path: pathlib.Path, user: str, items: object, index: dict[str, int]) -> list[int]:
  if not user or not isinstance(items, list):
    raise DataError(f'{path}: user {user!r:.60} needs a list of items.')
  for item in items:
    if not isinstance(item, str) or item not in index:
      raise DataError(f'{path}: user {user!r:.60} has item {item!r:.60}, which is not in metas.')
  return [index[item] for item in items]


def _add_categories(path: pathlib.Path, row_of: dict[str, dict]) -> None:
  """Paths out of `category`: 'A' and 'A, B' make [ROOT, 'A', 'B']."""
  for category, items in sorted(read_object(path).items(), key=lambda pair: len(pair[0])):
    for item in items if isinstance(items, list) else [None]:
      row = row_of.get(item) if isinstance(item, str) else None
      if row is None:
        raise DataError(f'{path}: category {category!r:.60} holds {item!r:.60}, which is not in '
                        'metas.')
      categories = row.setdefault('categories', [ROOT])
      above = ', '.join(categories[1:])
      if len(categories) == 1:
        categories.append(category)
      elif category.startswith(above + ', '):
        categories.append(category[len(above) + 2:])


def source(folder: raw_reader.Path, allow_pickle: bool = False) -> raw_reader.Source:
  """The files in `folder` as raw rows; they have no times, so the order is that of the files.

  allow_pickle: read the pickles of RecLM-gen too, plain values alone. Raises ConfigError for
  pickles that were not allowed.
  """
  folder = pathlib.Path(folder)
  users = _read_any(folder, (*SEQUENTIAL, 'sequential.pickle'), allow_pickle)
  metas = _read_any(folder, (*METAS, 'meta.pickle'), allow_pickle)
  counts = cleaning.new_counts()
  interactions = ((folder / 'sequential', n, *_interaction(user, item, metas))
                  for n, (user, items) in enumerate(users.items(), 1)
                  for item in (items if isinstance(items, list) else [None]))
  items = ((folder / 'metas', n,
            (str(item), cleaning.clean_item(item_columns(row), counts)), '')
           if isinstance(row, dict) else (folder / 'metas', n, None, 'no columns')
           for n, (item, row) in enumerate(metas.items(), 1))
  return raw_reader.Source(folder.resolve().name, interactions, items, {'items': counts})


def _read_any(folder: pathlib.Path, names: tuple[str, ...], allow_pickle: bool) -> dict:
  path = _find(folder, names)
  if path is None:
    raise DataError(f'{folder} has none of {", ".join(names)}.')
  if path.suffix != '.pickle':
    return read_object(path)
  if not allow_pickle:
    raise ConfigError(f'{path} is a pickle; add --allow-pickle to read it. Only plain lists, '
                      'dicts, texts and numbers are admitted.')
  value = safe_pickle.read_plain(path)
  if not isinstance(value, dict):
    raise DataError(f'{path}: one object with ids as keys is expected.')
  return value


def _interaction(user: object, item: object,
                 metas: dict) -> tuple[raw_reader.Interaction | None, str]:
  try:
    ids = cleaning.clean_id(user, 'the user'), cleaning.clean_id(item, 'an item')
  except ValueError as error:
    return None, str(error)
  # Keys of JSON are texts, those of pickles may be numbers.
  known = item in metas or ids[1] in metas
  return ((*ids, None, None), '') if known else (None, f'{item!r:.40} is not in metas')


def write(dataset: Dataset, folder: raw_reader.Path, name: str = '') -> None:
  """Writes `dataset` as the three files in `folder`; their names are fixed, whatever `name` says.

  `title_t` is the title, numbered where others had it before: ' (1)', ' (2)'. Categories below the
  root are joined with those above them.
  """
  del name
  data, catalog = dataset.interactions, dataset.catalog
  metas, titles = {}, set()
  for i, item in enumerate(catalog.ids):
    row = {k: v[i] for k, v in catalog.columns.items() if v[i] is not None}
    path = row.pop('categories', [])
    metas[item] = row | {'category': path, 'title_t': _unique_title(row.get('title', ''), titles)}
    titles.add(metas[item]['title_t'])
  users = {user: [catalog.id_of(i) for i in data.history(u)] for u, user in enumerate(data.users)}
  for file_name, value in ((SEQUENTIAL[0], users), (METAS[0], metas),
                           (CATEGORY[0], items_by_category(catalog))):
    text = json.dumps(value, ensure_ascii=False, indent=2) + '\n'
    file_io.write_text(pathlib.Path(folder) / file_name, text)


def items_by_category(catalog: Catalog) -> dict[str, list[str]]:
  """The ids of the items of each category of `catalog`, as `category` holds them."""
  items = {}
  for item, path in zip(catalog.ids, catalog.columns.get('categories', ())):
    for n in range(2, len(path or ()) + 1):
      items.setdefault(', '.join(path[1:n]), []).append(item)
  return items


def _unique_title(title: str, taken: set[str]) -> str:
  """The title, or with the smallest number that nobody has yet."""
  number, unique = 0, title
  while unique in taken:
    number += 1
    unique = f'{title} ({number})'
  return unique
