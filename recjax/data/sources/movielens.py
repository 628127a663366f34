"""MovieLens of 100k, 1M, 10M, 20M, 25M and 32M ratings: the folder as its archive unpacks.

Every edition names its files in its own way; the files that are there say which one it is. Genres
become categories.
"""
import pathlib

from recjax.data import cleaning, raw_reader, times
from recjax.errors import DataError

# ratings, films, their encoding and separators, names of the columns where the files have none.
# README files of the editions, files.grouplens.org/datasets/movielens
COLUMNS = ('userId', 'movieId', 'rating', 'timestamp')
GENRES = ('unknown', 'Action', 'Adventure', 'Animation', "Children's", 'Comedy', 'Crime',
          'Documentary', 'Drama', 'Fantasy', 'Film-Noir', 'Horror', 'Musical', 'Mystery', 'Romance',
          'Sci-Fi', 'Thriller', 'War', 'Western')
OLD = ('movieId', 'title', 'released', 'video', 'imdb', *GENRES)
EDITIONS = (
    ('u.data', '\t', COLUMNS, 'u.item', '|', OLD),
    ('ratings.dat', '::', COLUMNS, 'movies.dat', '::', ('movieId', 'title', 'genres')),
    ('ratings.csv', ',', (), 'movies.csv', ',', ()),
)


def source(folder: raw_reader.Path, tick: raw_reader.Tick | None = None) -> raw_reader.Source:
  """The files of one edition in `folder` as raw rows, named by the folder.

  tick: as in `raw_reader.read`, of the ratings.
  """
  folder = pathlib.Path(folder)
  for ratings, sep, header, films, film_sep, film_header in EDITIONS:
    if not (folder / ratings).is_file():
      continue
    notes = raw_reader.new_notes('timestamp', 's')
    interactions = raw_reader.to_interactions(
        folder / ratings, raw_reader.read(folder / ratings, header, sep, tick=tick), *COLUMNS[:2],
        'timestamp', 'rating', times.published_parser('s'), notes['interactions']['ids'])
    if not (folder / films).is_file():
      raise DataError(f'{folder} has {ratings} but no {films}; unpack the whole archive there.')
    rows = raw_reader.read(folder / films, film_header, film_sep, _encoding(folder / films))
    items = raw_reader.to_items(folder / films, rows, 'movieId', _item_columns, notes['items'])
    return raw_reader.Source(folder.resolve().name, interactions, items, notes)
  names = ', '.join(edition[0] for edition in EDITIONS)
  raise DataError(f'{folder} has none of {names}; fetch an archive such as ml-1m.zip from '
                  'files.grouplens.org/datasets/movielens, unpack it and name its folder.')


def _encoding(path: pathlib.Path) -> str:
  """'utf-8' where all of a file is, as since 10M; the older ones are Latin-1."""
  try:
    for _, line in raw_reader.read_lines(path):
      (line or b'').decode('utf-8')
  except UnicodeDecodeError:
    return 'latin-1'
  return 'utf-8'


def _item_columns(row: dict) -> dict:
  """A film as columns of the catalog, before they are cleaned."""
  if 'genres' in row:
    genres = row['genres'] if row['genres'] != '(no genres listed)' else None
  else:
    genres = [g for g in GENRES if row.get(g) == '1']
  return {'title': row.get('title'), 'categories': cleaning.split_categories(genres, '|')}
