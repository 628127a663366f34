"""Steam reviews and games (cseweb.ucsd.edu/~jmcauley), lines of Python dicts.

Users are known by their names, days are the finest times; as SASRec uses the set.
"""
from recjax.data import funnel, raw


def source(reviews, games='', tick=None):
  """The files as raw rows: steam_reviews.json.gz, steam_games.json.gz. -> funnel.Source"""
  for path in filter(None, (reviews, games)):
    raw.check_file(path, 'cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data')
  rows = raw.read(reviews, literal=True, tick=tick)
  events = raw.events(reviews, rows, 'username', 'product_id', 'date')
  goods = raw.goods(games, raw.read(games, literal=True), 'id', shape) if games else ()
  return funnel.Source('steam', events, goods)


def shape(row):
  """A game as columns of the catalogue."""
  return {'title': raw.as_text(row.get('title') or row.get('app_name')),
          'brand': raw.as_text(row.get('developer') or row.get('publisher')),
          'categories': raw.as_list(row.get('genres')), 'tags': raw.as_list(row.get('tags')),
          'price': row.get('price'), 'release_date': raw.as_text(row.get('release_date'))}
