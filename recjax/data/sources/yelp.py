"""Yelp: the academic data set of any year, and the training set of the 2013 challenge.

Both are JSON Lines; only the names of the files and a few columns differ. LLMEmb uses the set of
2013 (llmemb.md 2.1).
"""
import pathlib

from recjax.data import cleaning, raw_reader, times
from recjax.data.prepare import duckdb_engine
from recjax.errors import DataError

EDITIONS = ('yelp_academic_dataset', 'yelp_training_set')


def source(folder, tick=None):
  """The folder's reviews and businesses as raw rows. -> funnel.Source"""
  folder = pathlib.Path(folder)
  reviews, places = (find(folder, what) for what in ('review', 'business'))
  told = duckdb_engine.new_told('date', 'iso')
  events = raw_reader.events(
    reviews,
    raw_reader.read(reviews, tick=tick),
    'user_id',
    'business_id',
    'date',
    'stars',
    times.usual('iso'),
    {'told': told['events']['ids']},
  )
  goods = raw_reader.goods(places, raw_reader.read(places), 'business_id', shape, told['goods'])
  return duckdb_engine.Source('yelp', events, goods, told)


def find(folder, what):
  """The file of reviews or of businesses. Raises DataError saying which are looked for."""
  names = [f'{edition}_{what}.json{packed}' for edition in EDITIONS for packed in ('', '.gz')]
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise DataError(f'{folder} has none of {", ".join(names)}; fetch the set from yelp.com/dataset '
                  '(it asks for consent to its terms), unpack it and name its folder.')


def shape(row):
  """A business as columns of the catalogue; categories are a list in 2013, a text later."""
  return {'title': row.get('name'), 'categories': cleaning.parted(row.get('categories'), ','),
          'city': row.get('city'), 'state': row.get('state'),
          'neighborhoods': cleaning.parted(row.get('neighborhoods'), ','),
          'stars': row.get('stars')}
