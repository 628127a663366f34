"""Steam reviews and games (cseweb.ucsd.edu/~jmcauley), lines of Python dicts.

Users are known by their names, days are the finest times; as SASRec uses the set.
"""
from recjax.data import raw_reader, times


def source(reviews: raw_reader.Path, games: raw_reader.Path = '',
           tick: raw_reader.Tick | None = None) -> raw_reader.Source:
  """The files as raw rows; names that differ by blanks are different users.

  reviews: path of steam_reviews.json.gz. games: of steam_games.json.gz, or ''. tick: as in
  `raw_reader.read`, of the reviews.
  """
  for path in filter(None, (reviews, games)):
    raw_reader.require_file(path, 'cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data')
  notes = raw_reader.new_notes('date', 'iso')
  interactions = raw_reader.to_interactions(
      reviews, raw_reader.read(reviews, literal=True, tick=tick), 'username', 'product_id', 'date',
      '', times.published_parser('iso'), notes['interactions']['ids'], exact_users=True)
  items = raw_reader.to_items(games, raw_reader.read(games, literal=True), 'id', _item_columns,
                              notes['items'], '.') if games else ()
  return raw_reader.Source('steam', interactions, items, notes)


def _item_columns(row: dict) -> dict:
  """A game as columns of the catalog, before they are cleaned."""
  return {'title': row.get('title') or row.get('app_name'),
          'brand': row.get('developer') or row.get('publisher'),
          'categories': row.get('genres'), 'tags': row.get('tags'),
          'price': row.get('price'), 'release_date': row.get('release_date')}
