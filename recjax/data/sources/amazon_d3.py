"""Amazon review dumps of 2018 to the canonical data set, as D3 prepares them (bigrec.md 4.1).

Reviews and metadata are JSON Lines, gzipped or not. Times are UTC, so the window does not depend on
where it is cut.
"""
import datetime
import html
import json
import pathlib

import numpy as np

from recjax.data import cleaning, raw_reader
from recjax.data import dataset as dataset_lib
from recjax.errors import ConfigError, DataError

FIRST_YEAR, WORDS = 1996, 20


def prepare(reviews, meta, out, start='2017-10', end='2018-11', k=5, min_items=10_000, seed=42):
  """Writes items.jsonl and sequences.jsonl to `out`.

  start, end: the first days of months, both included. The window's first year goes back one by one
  until `min_items` items survive the k-core, or 1996. Items are shuffled by `seed`. -> {what:
  count}. Raises DataError naming file and line of what cannot be read, and where nothing is left.
  """
  titles, dropped = read_titles(meta)
  users, items, times, ratings, names = read_reviews(reviews, titles)
  last = epoch(end)
  while True:
    inside = np.flatnonzero((times >= epoch(start)) & (times <= last))
    kept = inside[core(users[inside], items[inside], k)]
    count = len(np.unique(items[kept]))
    if count >= min_items or int(start[:4]) <= FIRST_YEAR:
      break
    start = f'{int(start[:4]) - 1}{start[4:]}'
  if not len(kept):
    raise DataError(f'{reviews}: no user and item with {k} reviews each are left; lower k, or '
                    'bring more reviews')
  shop = dataset(pathlib.Path(out).name, users[kept], items[kept], times[kept], ratings[kept],
                 names, titles, seed)
  dataset_lib.save_data(shop, out)
  return {'window': f'{start} to {end}', 'items': count, 'users': len(shop.interactions),
          'interactions': len(kept), 'reviews_of_unknown_items': names['unknown'],
          **{f'titles_{why}': count for why, count in dropped.items()}}


def epoch(month):
  """Seconds of the first day of 'YYYY-MM', UTC. Raises ConfigError for another form."""
  try:
    return int(datetime.datetime.strptime(month, '%Y-%m').replace(
        tzinfo=datetime.UTC).timestamp())
  except ValueError as error:
    raise ConfigError(f'{month!r} is no month; write it as 2017-10') from error


def clean(title):
  """A title as D3 spells it, or why it is dropped. -> (title, '') or ('', reason)"""
  if not title or not isinstance(title, str):
    return '', 'missing'
  if '<span' in title:
    return '', 'with_markup'
  if cleaning.is_code(title) or cleaning.is_nothing(title):
    return '', 'page_script' if cleaning.is_code(title) else 'missing'
  title = ' '.join(html.unescape(title).split()).strip('" ')
  if len(title) <= 1:
    return '', 'too_short'
  if len(title.split(' ')) > WORDS:
    return '', 'too_long'
  return title, ''


def lines(path):
  """Yields (place, object) of a JSON Lines file, gzipped or not."""
  for number, line in raw_reader.lines(path):
    try:
      row = json.loads(line or b'')
      if not isinstance(row, dict):
        raise ValueError('no object')
    except ValueError as error:
      raise DataError(f'{path} line {number} is not JSON ({error}); the dumps of 2018 hold one '
                      'object a line') from error
    yield f'{path} line {number}', row


def read_titles(path):
  """-> {asin: title}, {reason: dropped}"""
  reasons = ('missing', 'with_markup', 'page_script', 'too_short', 'too_long')
  titles, dropped = {}, dict.fromkeys(reasons, 0)
  for place, row in lines(path):
    if 'asin' not in row:
      raise DataError(f'{place} has no asin')
    title, why = clean(row.get('title'))
    if why:
      dropped[why] += 1
    else:
      titles.setdefault(str(row['asin']), title)
  return titles, dropped


def read_reviews(path, titles):
  """-> user rows, item rows, times, ratings (all (M,)), {'users', 'items': names, 'unknown': count}

  Reviews of items without a usable title are counted and left out.
  """
  user_of, item_of, unknown = {}, {}, 0
  users, items, times, ratings = [], [], [], []
  for place, row in lines(path):
    try:
      user, item, time = str(row['reviewerID']), str(row['asin']), int(row['unixReviewTime'])
    except (KeyError, TypeError, ValueError) as error:
      raise DataError(f'{place} lacks a usable reviewerID, asin or unixReviewTime ({error})'
                      ) from error
    if item not in titles:
      unknown += 1
      continue
    users.append(user_of.setdefault(user, len(user_of)))
    items.append(item_of.setdefault(item, len(item_of)))
    times.append(time)
    ratings.append(float(row.get('overall', np.nan)))
  return (np.array(users, np.int64), np.array(items, np.int64), np.array(times, np.int64),
          np.array(ratings, np.float32),
          {'users': list(user_of), 'items': list(item_of), 'unknown': unknown})


def core(users, items, k):
  """The k-core: reviews of users and items that keep k reviews each, to a fixed point (D6).

  users, items: (M,) rows. Repeats count. -> rows of the reviews that stay
  """
  kept = np.arange(len(users))
  while len(kept):
    enough = ((np.bincount(users[kept])[users[kept]] >= k)
              & (np.bincount(items[kept])[items[kept]] >= k))
    if enough.all():
      break
    kept = kept[enough]
  return kept


def dataset(name, users, items, times, ratings, names, titles, seed):
  """Reviews in order of user and time, file order where times are equal. -> Dataset"""
  order = np.lexsort((np.arange(len(users)), times, users))
  rows, per_user = np.unique(users[order], return_counts=True)
  shown = np.random.default_rng(seed).permutation(np.unique(items))
  index = np.zeros(items.max() + 1, np.int32)
  index[shown] = np.arange(1, len(shown) + 1)
  ids = tuple(names['items'][i] for i in shown)
  return dataset_lib.make_dataset(
      name, dataset_lib.Catalog(ids, {'title': [titles[i] for i in ids]}),
      dataset_lib.Interactions(tuple(names['users'][u] for u in rows), index[items[order]],
                           np.concatenate([[0], np.cumsum(per_user)]).astype(np.int64),
                           times[order], ratings[order] if np.isfinite(ratings).all() else None))
