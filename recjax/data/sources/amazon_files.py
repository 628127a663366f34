"""Reviews and metadata of Amazon as published in 2014, 2018 and 2023 (any category).

Reviews are JSON Lines, or the ratings-only tables; metadata of 2014 are Python dicts, which are
read without running them. Texts lose their HTML entities and line breaks.
"""
import html
import pathlib
import re

from recjax.data import funnel, raw

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
    raw.check_file(path, WHERE[edition])
  header = bare if raw.kind(reviews) == '.csv' else ()
  events = raw.events(reviews, raw.read(reviews, header, tick=tick), *columns)
  goods = raw.goods(meta, raw.read(meta, literal=True), key, shape) if meta else ()
  return funnel.Source(category(reviews), events, goods)


def shape(row):
  """A line of metadata, of any edition, as columns of the catalogue."""
  found = {
      'title': text(row.get('title')),
      'brand': text(row.get('brand') or row.get('store')),
      'categories': paths(row),
      'description': text(row.get('description')),
      'features': text(row.get('feature') or row.get('features')),
      'price': row.get('price') or None,
      'main_category': text(row.get('main_category') or row.get('main_cat')),
  }
  return {name: value for name, value in found.items() if value is not None}


def text(value):
  """Text without entities, markup of line breaks, and doubled blanks. -> str or None"""
  value = raw.as_text(value)
  return raw.as_text(html.unescape(re.sub(r'<br\s*/?>', ' ', value))) if value else None


def paths(row):
  """The first path of categories: 2014 gives a list of paths, 2018 `category`. -> list or None"""
  value = row.get('categories') or row.get('category')
  if isinstance(value, list) and value and isinstance(value[0], list):
    value = value[0]
  return [html.unescape(c) for c in raw.as_list(value) or []] or None
