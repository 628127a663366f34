"""Reviews and metadata of Amazon as published in 2014, 2018 and 2023, of any category; and D3's own
preparation of those of 2018.

Reviews are JSON Lines, or the ratings-only tables; metadata of 2014 are Python dicts, which are
read without running them, and may stand in a table as well. Times are UTC.
"""
import datetime
import html
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from recjax.data import cleaning, loading, raw_reader, times
from recjax.data.dataset import Catalog, Dataset, Interactions, make_dataset
from recjax.errors import ConfigError, DataError

# (user, item, time, rating), the item of the metadata, the order of columns in ratings-only tables
EDITIONS = {
    '2014': (('reviewerID', 'asin', 'unixReviewTime', 'overall'), 'asin',
             ('reviewerID', 'asin', 'overall', 'unixReviewTime')),
    '2018': (('reviewerID', 'asin', 'unixReviewTime', 'overall'), 'asin',
             ('asin', 'reviewerID', 'overall', 'unixReviewTime')),
    '2023': (('user_id', 'parent_asin', 'timestamp', 'rating'), 'parent_asin', ()),
}
HOMEPAGES = {
    '2014': 'cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html',
    '2018': 'cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2',
    '2023': 'amazon-reviews-2023.github.io',
}
FIRST_YEAR, MAX_TITLE_WORDS = 1996, 20  # of D3
DROP_REASONS: tuple[str, ...] = (
    'missing', 'with_markup', 'page_script', 'too_short', 'too_long')
_AFFIXES = re.compile(r'^(reviews_|ratings_|meta_)|(_5)$|(\.(json|jsonl|csv|gz))+$')


def category(path: raw_reader.Path) -> str:
  """The category that a file's name tells: 'Beauty' of the path 'reviews_Beauty_5.json.gz'."""
  name = pathlib.Path(path).name
  while (shorter := _AFFIXES.sub('', name)) != name:
    name = shorter
  return name


def source(edition: str, reviews: raw_reader.Path, meta: raw_reader.Path = '',
           tick: raw_reader.Tick | None = None) -> raw_reader.Source:
  """The files of one category as raw rows, named by the category.

  edition: '2014', '2018' or '2023'. reviews, meta: paths of its files; '' for no metadata. tick: as
  in `raw_reader.read`, of the reviews.
  """
  (user, item, time, rating), item_column, rating_columns = EDITIONS[edition]
  for path in filter(None, (reviews, meta)):
    raw_reader.require_file(path, HOMEPAGES[edition])
  bare = raw_reader.file_kind(reviews) == '.csv' and not _has_header(reviews)
  unit = 'ms' if edition == '2023' else 's'
  notes = raw_reader.new_notes(time, unit)
  interactions = raw_reader.to_interactions(
      reviews, raw_reader.read(reviews, rating_columns if bare else (), tick=tick), user, item,
      time, rating, times.published_parser(unit), notes['interactions']['ids'])
  items = raw_reader.to_items(meta, raw_reader.read(meta, literal=True), item_column, _item_columns,
                              notes['items'], '.') if meta else ()
  return raw_reader.Source(category(reviews), interactions, items, notes)


def _has_header(path: raw_reader.Path) -> bool:
  """Whether a table's first line names columns, as tables made of the reviews do."""
  line = next((line for _, line in raw_reader.read_lines(path)), None) or b''
  return any(name.encode() in line for name in ('asin', 'user_id', 'reviewerID'))


def _item_columns(row: dict) -> dict:
  """A line of metadata, of any edition, as columns of the catalog, before they are cleaned."""
  return {'title': row.get('title'), 'brand': row.get('brand') or row.get('store'),
          'categories': _category_path(row), 'description': row.get('description'),
          'features': row.get('feature') or row.get('features'), 'price': row.get('price'),
          'main_category': row.get('main_category') or row.get('main_cat')}


def _category_path(row: dict) -> object:
  """The first path of categories: 2014 gives a list of paths, 2018 `category`; or None."""
  value = row.get('categories') or row.get('category')
  if isinstance(value, str):
    value = cleaning.parse_list(value) or value
  if isinstance(value, list) and value and isinstance(value[0], list):
    value = value[0]
  return value


def prepare_d3(reviews: raw_reader.Path, meta: raw_reader.Path, out: raw_reader.Path,
               start: str = '2017-10', end: str = '2018-11', k: int = 5, min_items: int = 10_000,
               seed: int = 42) -> dict[str, int | str]:
  """Writes items.jsonl and sequences.jsonl to `out`, as D3 prepares `reviews` and `meta` of 2018.

  start, end: the first days of months, both included. k: reviews that each user and item keeps. The
  window's first year goes back one by one until `min_items` items survive the k-core, or 1996.
  Items are shuffled by `seed`. Returns what was found, with its count. Raises DataError naming file
  and line of what cannot be read, and where nothing is left. Source: arXiv:2406.14900 and
  github.com/SAI990323/DecodingMatters.
  """
  titles, dropped = read_d3_titles(meta)
  table, unknown = _read_d3_reviews(reviews, titles)
  users, items, seconds = table['users'], table['items'], table['times']
  last = month_start(end)
  while True:
    inside = np.flatnonzero((seconds >= month_start(start)) & (seconds <= last))
    rows = inside[k_core(users[inside], items[inside], k)]
    num_items = len(np.unique(items[rows]))
    if num_items >= min_items or int(start[:4]) <= FIRST_YEAR:
      break
    start = f'{int(start[:4]) - 1}{start[4:]}'
  if not len(rows):
    raise DataError(f'{reviews}: no user and item with {k} reviews each are left; lower k, or '
                    'bring more reviews')
  dataset = _d3_dataset(pathlib.Path(out).name, table, rows, titles, seed)
  loading.save_data(dataset, out)
  return {'window': f'{start} to {end}', 'items': num_items, 'users': len(dataset.interactions),
          'interactions': len(rows), 'reviews_of_unknown_items': unknown,
          **{f'titles_{reason}': count for reason, count in dropped.items()}}


def month_start(month: str) -> int:
  """Seconds of the first day of 'YYYY-MM', UTC. Raises ConfigError for another form of `month`."""
  try:
    return int(datetime.datetime.strptime(month, '%Y-%m').replace(
        tzinfo=datetime.UTC).timestamp())
  except ValueError as error:
    raise ConfigError(f'{month!r} is no month; write it as 2017-10') from error


def clean_d3_title(title: object) -> tuple[str, str]:
  """A title as D3 spells it and '', or '' and the reason why it is dropped."""
  if not title or not isinstance(title, str):
    return '', 'missing'
  if '<span' in title:
    return '', 'with_markup'
  if cleaning.is_code(title):
    return '', 'page_script'
  if cleaning.is_empty_text(title):
    return '', 'missing'
  title = ' '.join(html.unescape(title).split()).strip('" ')
  if len(title) <= 1:
    return '', 'too_short'
  if len(title.split(' ')) > MAX_TITLE_WORDS:
    return '', 'too_long'
  return title, ''


def _json_rows(path: raw_reader.Path) -> Iterator[tuple[str, dict]]:
  """Yields the place of each object in a file of JSON Lines, and the object."""
  for number, row, reason in raw_reader.read(path, literal=True):
    place = raw_reader.row_place(path, number)
    if row is None:
      raise DataError(f'{place} is not JSON ({reason}); the dumps of 2018 hold one object a line')
    yield place, row


def read_d3_titles(path: raw_reader.Path) -> tuple[dict[str, str], dict[str, int]]:
  """Titles of the metadata at `path` by asin, and how many were dropped for each reason."""
  titles, dropped = {}, {reason: 0 for reason in DROP_REASONS}
  for place, row in _json_rows(path):
    if 'asin' not in row:
      raise DataError(f'{place} has no asin')
    title, reason = clean_d3_title(row.get('title'))
    if reason:
      dropped[reason] += 1
    else:
      titles.setdefault(str(row['asin']), title)
  return titles, dropped


def _read_d3_reviews(path: raw_reader.Path, titles: dict[str, str]) -> tuple[dict, int]:
  """The reviews of items with a title as columns (M,), and how many others there are.

  'users' and 'items' are rows of 'user_ids' and 'item_ids'.
  """
  user_rows, item_rows, unknown = {}, {}, 0
  reviews = []
  for place, row in _json_rows(path):
    try:
      user, item, time = str(row['reviewerID']), str(row['asin']), int(row['unixReviewTime'])
    except (KeyError, TypeError, ValueError) as error:
      raise DataError(f'{place} lacks a usable reviewerID, asin or unixReviewTime ({error})'
                      ) from error
    if item not in titles:
      unknown += 1
      continue
    reviews.append((user_rows.setdefault(user, len(user_rows)),
                    item_rows.setdefault(item, len(item_rows)), time,
                    float(row.get('overall', np.nan))))
  columns = zip(*reviews) if reviews else ((), (), (), ())
  table = {name: np.array(column, dtype) for name, column, dtype in zip(
      ('users', 'items', 'times', 'ratings'), columns, (np.int64, np.int64, np.int64, np.float32))}
  return table | {'user_ids': list(user_rows), 'item_ids': list(item_rows)}, unknown


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
  """The k-core: rows of the reviews of users and items that keep k reviews each, to a fixed point.

  users, items: (M,) int, of each review. Repeats count.
  """
  rows = np.arange(len(users))
  while len(rows):
    enough = ((np.bincount(users[rows])[users[rows]] >= k)
              & (np.bincount(items[rows])[items[rows]] >= k))
    if enough.all():
      break
    rows = rows[enough]
  return rows


def _d3_dataset(name: str, table: dict, rows: np.ndarray, titles: dict[str, str],
                seed: int) -> Dataset:
  """Reviews in order of user and time, file order where times are equal."""
  rows = rows[np.lexsort((rows, table['times'][rows], table['users'][rows]))]
  users, items, ratings = table['users'][rows], table['items'][rows], table['ratings'][rows]
  user_rows, lengths = np.unique(users, return_counts=True)
  shuffled = np.random.default_rng(seed).permutation(np.unique(items))
  index = np.zeros(items.max() + 1, np.int32)
  index[shuffled] = np.arange(1, len(shuffled) + 1)
  ids = tuple(table['item_ids'][i] for i in shuffled)
  return make_dataset(
      name, Catalog(ids, {'title': [titles[item] for item in ids]}),
      Interactions(tuple(table['user_ids'][u] for u in user_rows), index[items],
                   np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                   table['times'][rows], ratings if np.isfinite(ratings).all() else None))
