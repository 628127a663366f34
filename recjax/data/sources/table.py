"""A user's own tables: interactions, and items beside them, with columns of any name."""
import itertools
import pathlib

from recjax.data import funnel, raw
from recjax.errors import ConfigError, DataError

# Names that are understood without being told, the first one found.
NAMES = {
    'user': ('user_id', 'user', 'userid', 'reviewerid', 'customer_id', 'uid'),
    'item': ('item_id', 'item', 'itemid', 'parent_asin', 'asin', 'product_id', 'movieid', 'iid'),
    'time': ('timestamp', 'time', 'times', 'unixreviewtime', 'datetime', 'date', 'ts'),
    'rating': ('rating', 'ratings', 'stars', 'overall', 'score'),
}
GOODS = {
    'item': NAMES['item'],
    'title': ('title', 'name', 'product_name', 'item_name'),
    'brand': ('brand', 'store', 'maker'),
    'categories': ('categories', 'category', 'genres', 'class'),
    'description': ('description', 'text'),
}
LISTS = ('categories', 'tags')


def source(interactions, items='', columns='', item_columns='', header='', sep='', list_sep='|',
           tick=None):
  """The tables as raw rows. -> funnel.Source

  columns, item_columns: 'user=customer,time=when': ours=theirs, '' switches one off ('rating=').
  header: 'a,b,c', the columns of interactions that do not begin with their names. list_sep: what
  parts categories in one text. Raises ConfigError naming the columns there are.
  """
  named = [name.strip() for name in header.split(',')] if header else ()
  first, rows = peek(raw.read(interactions, named, sep, tick=tick), interactions)
  found = choose(first, NAMES, pairs(columns), interactions, '--columns', ('user', 'item'))
  events = raw.events(interactions, rows, **found)
  found = goods(items, item_columns, sep, list_sep) if items else ()
  return funnel.Source(pathlib.Path(interactions).name, events, found)


def goods(path, columns='', sep='', list_sep='|'):
  """A table of items as raw rows; settings as in `source`."""
  first, rows = peek(raw.read(path, sep=sep), path)
  names = choose(first, GOODS, pairs(columns), path, '--item-columns', ('item',))
  return raw.goods(path, rows, names['item'], shape(names, list_sep))


def peek(rows, path):
  """The first row that can be read, and all rows. Raises DataError where there is none."""
  seen = []
  for row in rows:
    seen.append(row)
    if row[1] is not None:
      return row[1], itertools.chain(seen, rows)
    if len(seen) == 1000:
      break
  why = f', e.g. {raw.place(path, seen[0][0])}: {seen[0][2]}' if seen else ''
  raise DataError(f'{path} holds no row that can be read{why}.')


def pairs(text):
  """'a=b,c=d' -> {'a': 'b', 'c': 'd'}. Raises ConfigError."""
  found = {}
  for part in filter(None, text.split(',')):
    ours, equals, theirs = (p.strip() for p in part.partition('='))
    if not equals or not ours:
      raise ConfigError(f'{part!r} maps no column; write OURS=THEIRS, as in user=customer_id')
    found[ours] = theirs
  return found


def choose(row, known, given, path, flag, needed):
  """Which column of `row` is meant by each of our names. -> {ours: theirs, or ''}

  Names beyond `known` may be given too. Raises ConfigError.
  """
  lower = {name.lower(): name for name in reversed(row)}
  found = {}
  for ours, names in known.items():
    found[ours] = next((lower[name] for name in names if name in lower), '')
  for ours, theirs in given.items():
    if theirs and theirs not in row:
      raise ConfigError(f'{path} has no column {theirs!r}; it has {", ".join(map(str, row))}')
    if ours not in known and known is NAMES:
      raise ConfigError(f'{flag}: {ours!r} is none of {", ".join(known)}')
    found[ours] = theirs
  for ours in needed:
    if not found[ours]:
      raise ConfigError(f'{path}: which column is the {ours}? It has {", ".join(map(str, row))}; '
                        f'say {flag} {ours}=NAME')
  return found


def shape(names, list_sep):
  """How a row of the items table becomes columns of the catalogue."""
  def columns(row):
    made = {}
    for ours, theirs in names.items():
      if not theirs or ours == 'item':
        continue
      value = row.get(theirs)
      if ours in LISTS:
        made[ours] = raw.as_list(value, list_sep)
      elif ours in ('title', 'brand', 'description'):
        made[ours] = raw.as_text(value)
      else:
        made[ours] = value
    return made
  return columns
