"""Yelp: the academic data set of any year, and the training set of the 2013 challenge.

Both are JSON Lines; only the names of the files and a few columns differ. LLMEmb uses the set of
2013.
"""
import pathlib

from recjax.data import cleaning, raw_reader, times
from recjax.errors import DataError

EDITIONS = ('yelp_academic_dataset', 'yelp_training_set')


def source(folder: raw_reader.Path, tick: raw_reader.Tick | None = None) -> raw_reader.Source:
  """The folder's reviews and businesses as raw rows. tick: as in `raw_reader.read`, of reviews."""
  folder = pathlib.Path(folder)
  reviews, businesses = (_find_file(folder, what) for what in ('review', 'business'))
  notes = raw_reader.new_notes('date', 'iso')
  interactions = raw_reader.to_interactions(
      reviews, raw_reader.read(reviews, tick=tick), 'user_id', 'business_id', 'date', 'stars',
      times.published_parser('iso'), notes['interactions']['ids'])
  items = raw_reader.to_items(businesses, raw_reader.read(businesses), 'business_id', _item_columns,
                              notes['items'])
  return raw_reader.Source('yelp', interactions, items, notes)


def _find_file(folder: pathlib.Path, what: str) -> pathlib.Path:
  """The file of reviews or of businesses. Raises DataError saying which are looked for."""
  names = [f'{edition}_{what}.json{packed}' for edition in EDITIONS for packed in ('', '.gz')]
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise DataError(f'{folder} has none of {", ".join(names)}; fetch the set from yelp.com/dataset '
                  '(it asks for consent to its terms), unpack it and name its folder.')


def _item_columns(row: dict) -> dict:
  """A business as columns of the catalog; categories are a list in 2013, a text later."""
  return {'title': row.get('name'),
          'categories': cleaning.split_categories(row.get('categories'), ','),
          'city': row.get('city'), 'state': row.get('state'),
          'neighborhoods': cleaning.split_categories(row.get('neighborhoods'), ','),
          'stars': row.get('stars')}
