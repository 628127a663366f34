"""Steam reviews and games (cseweb.ucsd.edu/~jmcauley), lines of Python dicts.

Users are known by their names, days are the finest times; as SASRec uses the set.
"""
from recjax.data import raw_reader, times
from recjax.data.prepare import duckdb_engine


def source(reviews, games='', tick=None):
  """The files as raw rows: steam_reviews.json.gz, steam_games.json.gz. -> funnel.Source

  Names that differ by blanks are different users.
  """
  for path in filter(None, (reviews, games)):
    raw_reader.check_file(path, 'cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data')
  told = duckdb_engine.new_told('date', 'iso')
  rows = raw_reader.read(reviews, literal=True, tick=tick)
  events = raw_reader.events(
    reviews,
    rows,
    'username',
    'product_id',
    'date',
    '',
    times.usual('iso'),
    {'told': told['events']['ids'], 'exact': True},
  )
  goods = (
    raw_reader.goods(games, raw_reader.read(games, literal=True), 'id', shape, told['goods'], '.')
    if games
    else ()
  )
  return duckdb_engine.Source('steam', events, goods, told)


def shape(row):
  """A game as columns of the catalogue, before they are cleaned."""
  return {'title': row.get('title') or row.get('app_name'),
          'brand': row.get('developer') or row.get('publisher'),
          'categories': row.get('genres'), 'tags': row.get('tags'),
          'price': row.get('price'), 'release_date': row.get('release_date')}
