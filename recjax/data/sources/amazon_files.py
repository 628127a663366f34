"""Reviews and metadata of Amazon as published in 2014, 2018 and 2023 (any category).

Reviews are JSON Lines, or the ratings-only tables; metadata of 2014 are Python dicts, which are
read without running them, and may stand in a table as well.
"""
import pathlib
import re

from recjax.data import cleaning, raw_reader, times
from recjax.data.prepare import duckdb_engine

# (user, item, time, rating), the item of the metadata, the order of columns in ratings-only tables
EDITIONS = {
    '2014': (('reviewerID', 'asin', 'unixReviewTime', 'overall'), 'asin',
             ('reviewerID', 'asin', 'overall', 'unixReviewTime')),
    '2018': (('reviewerID', 'asin', 'unixReviewTime', 'overall'), 'asin',
             ('asin', 'reviewerID', 'overall', 'unixReviewTime')),
    '2023': (('user_id', 'parent_asin', 'timestamp', 'rating'), 'parent_asin', ()),
}
WHERE = {
    '2014': 'cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html',
    '2018': 'cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2',
    '2023': 'amazon-reviews-2023.github.io',
}
_AFFIXES = re.compile(r'^(reviews_|ratings_|meta_)|(_5)$|(\.(json|jsonl|csv|gz))+$')


def category(path):
  """The category that a published file's name tells: 'reviews_Beauty_5.json.gz' -> 'Beauty'"""
  name = pathlib.Path(path).name
  while (shorter := _AFFIXES.sub('', name)) != name:
    name = shorter
  return name


def source(edition, reviews, meta='', tick=None):
  """The files of one category as raw rows. -> funnel.Source, named by the category"""
  columns, key, bare = EDITIONS[edition]
  for path in filter(None, (reviews, meta)):
    raw_reader.check_file(path, WHERE[edition])
  header = bare if raw_reader.kind(reviews) == '.csv' and not named(reviews) else ()
  unit = 'ms' if edition == '2023' else 's'
  told = duckdb_engine.new_told(columns[2], unit)
  events = raw_reader.events(
    reviews,
    raw_reader.read(reviews, header, tick=tick),
    *columns,
    times.usual(unit),
    {'told': told['events']['ids']},
  )
  goods = (
    raw_reader.goods(meta, raw_reader.read(meta, literal=True), key, shape, told['goods'], '.')
    if meta
    else ()
  )
  return duckdb_engine.Source(category(reviews), events, goods, told)


def named(path):
  """Whether a table's first line names columns, as tables made of the reviews do."""
  line = next((line for _, line in raw_reader.lines(path)), None) or b''
  return any(name.encode() in line for name in ('asin', 'user_id', 'reviewerID'))


def shape(row):
  """A line of metadata, of any edition, as columns of the catalogue, before they are cleaned."""
  return {'title': row.get('title'), 'brand': row.get('brand') or row.get('store'),
          'categories': paths(row), 'description': row.get('description'),
          'features': row.get('feature') or row.get('features'), 'price': row.get('price'),
          'main_category': row.get('main_category') or row.get('main_cat')}


def paths(row):
  """The first path of categories: 2014 gives a list of paths, 2018 `category`. -> list or None"""
  value = row.get('categories') or row.get('category')
  if isinstance(value, str):
    value = cleaning.listed(value) or value
  if isinstance(value, list) and value and isinstance(value[0], list):
    value = value[0]
  return value
