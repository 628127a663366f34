"""MovieLens of 100k, 1M, 10M, 20M, 25M and 32M ratings: the folder as its archive unpacks.

Every edition names its files in its own way; the files that are there say which one it is. Genres
become categories.
"""
import pathlib

from recjax.data import cleaning, raw_reader, times
from recjax.data.prepare import duckdb_engine
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


def source(folder, tick=None):
  """The files of one edition as raw rows. -> funnel.Source, named by the folder"""
  folder = pathlib.Path(folder)
  for ratings, sep, header, films, parts, names in EDITIONS:
    if not (folder / ratings).is_file():
      continue
    rows = raw_reader.read(folder / ratings, header, sep, tick=tick)
    told = duckdb_engine.new_told('timestamp', 's')
    events = raw_reader.events(folder / ratings, rows, *COLUMNS[:2], 'timestamp', 'rating',
                        times.usual('s'), {'told': told['events']['ids']})
    if not (folder / films).is_file():
      raise DataError(f'{folder} has {ratings} but no {films}; unpack the whole archive there.')
    goods = raw_reader.goods(folder / films, raw_reader.read(folder / films, names, parts,
                                               encoding(folder / films)), 'movieId', shape,
                      told['goods'])
    return duckdb_engine.Source(folder.resolve().name, events, goods, told)
  looked = ', '.join(edition[0] for edition in EDITIONS)
  raise DataError(f'{folder} has none of {looked}; fetch an archive such as ml-1m.zip from '
                  'files.grouplens.org/datasets/movielens, unpack it and name its folder.')


def encoding(path):
  """'utf-8' where all of a file is, as since 10M; the older ones are Latin-1."""
  try:
    for _, line in raw_reader.lines(path):
      (line or b'').decode('utf-8')
  except UnicodeDecodeError:
    return 'latin-1'
  return 'utf-8'


def shape(row):
  """A film as columns of the catalogue, before they are cleaned."""
  if 'genres' in row:
    genres = row['genres'] if row['genres'] != '(no genres listed)' else None
  else:
    genres = [g for g in GENRES if row.get(g) == '1']
  return {'title': row.get('title'), 'categories': cleaning.parted(genres, '|')}
