"""A user's own tables: interactions, and items beside them, with columns of any name."""
import codecs
import collections
import itertools
import pathlib
import re

from recjax.data import cleaning, raw_reader, times
from recjax.data.prepare import duckdb_engine
from recjax.errors import ConfigError, DataError

# Names that are understood without being told, the first one found; blanks and signs do not count.
NAMES = {
    'user': ('user_id', 'user', 'userid', 'reviewerid', 'customer_id', 'uid', 'customer',
             'customer_number', 'client_id', 'member_id', 'visitor_id', 'kunde', 'kunden_id',
             'kundennummer', 'benutzer'),
    'item': ('item_id', 'item', 'itemid', 'parent_asin', 'asin', 'product_id', 'movieid', 'iid',
             'isbn', 'sku', 'article_id', 'product', 'article', 'artikelnummer', 'artikel',
             'artikel_id', 'produkt_id', 'produkt', 'news_id', 'book_id', 'track_id', 'song_id'),
    'time': ('timestamp', 'time', 'times', 'unixreviewtime', 'datetime', 'date', 'ts',
             'created_at', 'created', 'creation_date', 'event_time', 'event_date', 'event_ts',
             'order_date', 'order_ts', 'order_time', 'ordered_at', 'purchase_date', 'purchased_at',
             'purchased_on', 'purchase_time', 'review_date', 'review_time', 'visit_time',
             'click_time', 'unix_time', 'unix_timestamp', 'epoch', 'occurred_at', 'when',
             'rating_timestamp', 'bestelldatum', 'kaufdatum', 'datum', 'zeit', 'zeitpunkt',
             'zeitstempel', 'uhrzeit', 'fecha', 'horodatage', 'tstamp'),
    'rating': ('rating', 'ratings', 'stars', 'overall', 'score', 'book_rating', 'bewertung'),
}
GOODS = {
    'item': NAMES['item'],
    'title': ('title', 'name', 'product_name', 'item_name', 'product_title', 'book_title',
              'bezeichnung', 'titel', 'produktname', 'artikelname'),
    'brand': ('brand', 'store', 'maker', 'manufacturer', 'marke', 'hersteller'),
    'categories': ('categories', 'category', 'genres', 'class', 'kategorie', 'kategorien'),
    'description': ('description', 'text', 'beschreibung'),
    'price': ('price', 'preis'),
}
SAMPLE = 1000  # rows by whose values a column of times is found
_NUMBERS = re.compile(r'(?<![a-z])(ids?|no|nr|num|number|code|sku|asin|isbn|ean|gtin|phone|zip|plz|'
                      r'order|session|bestellung|auftrag)(?![a-z])|id$|nummer$|number$')
SURE = ('unixreviewtime',)  # Amazon's reviews hold the same day as a text beside it
_TIMELY = re.compile(r'time|date|(?<![a-z])(ts|at|day)(?![a-z])|stamp|zeit|datum|epoch|when')


def source(interactions, items='', columns='', item_columns='', header='', sep='', list_sep='|',
           tick=None, encoding='', order='', time_format=''):
  """The tables as raw rows. -> funnel.Source

  columns, item_columns: 'user=customer,time=when': ours=theirs, '' switches one off ('rating=').
  header: 'a,b,c', the columns of interactions that do not begin with their names. list_sep: what
  parts categories in one text. encoding: of the texts, UTF-8 or UTF-16 without it. order: 'file'
  where rows stand in order of time and have none. time_format: how times are written, as in
  `times.check`. Raises ConfigError naming the columns there are.
  """
  if order not in ('', 'file'):
    raise ConfigError(f"--order={order!r}; 'file' is the only other one")
  times.check(time_format)
  path, sep = a_file(interactions), {'\\t': '\t', 'tab': '\t'}.get(sep, sep)
  check_encoding(encoding)
  named = [name.strip() for name in header.split(',')] if header else ()
  sign, note = (sep, '') if sep else raw_reader.separator(path, encoding or 'utf-8', bool(named))

  def read(tick=None):
    return raw_reader.read(path, named, sign, encoding or 'utf-8', tick=tick)
  sample, first = peek(read(), path)
  given = pairs(columns)
  found = choose(first, NAMES, given, path, '--columns', ('user', 'item'))
  found['time'], how = time_column(sample, found, given, order, path)
  told = {'events': {'columns': found, 'ignored': ignored(first, found), 'read': note}, 'goods': {}}
  events = _events(path, read, found, how, time_format, told['events'], tick)
  shop = goods(items, item_columns, sep, list_sep, encoding, told['goods']) if items else ()
  return duckdb_engine.Source(path.name, events, shop, told)


def a_file(path):
  """A path, of a file that can be read twice. Raises DataError for a pipe or a folder."""
  path = pathlib.Path(path)
  if path.exists() and not path.is_file():
    raise DataError(f'{path} is {"a folder" if path.is_dir() else "a pipe"}; name a file, which is '
                    'read twice: its values tell what they are before they are taken.')
  return path


def check_encoding(name):
  """Raises ConfigError for an encoding that is not known."""
  try:
    codecs.lookup(name or 'utf-8')
  except LookupError as error:
    raise ConfigError(f'--encoding={name!r} is none that is known; e.g. utf-8, cp1252, cp1251, '
                      'utf-16, gb18030') from error


def _events(path, read, found, how, time_format, told, tick):
  """The rows, after a first reading that tells what times and ids look like."""
  profile, ids = times.Profile(), {name: cleaning.Ids() for name in (found['user'], found['item'])}
  half = lambda start: tick and (lambda share: tick((start + share) / 2))  # noqa: E731
  for number, row, _ in read(half(0)):
    if row is not None:
      for name, column in ids.items():
        column.add(row.get(name))
      if found['time']:
        profile.add(row.get(found['time']), number)
  clock = times.PLAIN
  if found['time']:
    clock, by = times.decide(profile, time_format, path, found['time'])
    told['time'] = {'column': found['time'], 'found': how, 'kind': clock.kind, 'told': by,
                    'per_second': clock.per_second, 'factor': clock.factor}
  told['ids'] = collections.Counter()
  whole = [name for name, column in ids.items() if column.whole()]
  for name, column in ids.items():
    told['ids'].update(column.mixed(name))
  yield from raw_reader.events(path, read(half(1)), **found, clock=clock,
                        ids={'told': told['ids'], 'whole': whole})


def goods(path, columns='', sep='', list_sep='|', encoding='', told=None):
  """A table of items as raw rows; settings as in `source`. told: what is told is added to it."""
  told = {} if told is None else told
  path, encoding, note = a_file(path), encoding or 'utf-8', ''
  if not sep or raw_reader.kind(path) in ('.parquet', '.jsonl'):
    sep, note = raw_reader.separator(path, encoding)
  _, first = peek(raw_reader.read(path, sep=sep, encoding=encoding, literal=True), path)
  names = choose(first, GOODS, pairs(columns), path, '--item-columns', ('item',))
  told.update({'columns': names, 'ignored': ignored(first, names), 'read': note},
              **cleaning.new_told())
  return _goods(path, sep, encoding, names, list_sep, told)


def _goods(path, sep, encoding, names, list_sep, told):
  """The items, after a first reading that tells what ids and prices look like."""
  ids, comma, point = cleaning.Ids(), False, False
  for _, row, _ in raw_reader.read(path, sep=sep, encoding=encoding, literal=True):
    if row is not None:
      ids.add(row.get(names['item']))
      sign = cleaning.decimal_of([row.get(names['price'])]) if names['price'] else ''
      comma, point = comma or sign == ',', point or sign == '.'
  told['ids'].update(ids.mixed(names['item']))
  decimal = '' if comma == point else ',' if comma else '.'
  if names['price'] and decimal == ',':
    told['decimal'] = 'prices have a decimal comma'
  rows = raw_reader.read(path, sep=sep, encoding=encoding, literal=True)
  yield from raw_reader.goods(path, rows, names['item'], shape(names, list_sep), told, decimal,
                       ids.whole())


def peek(rows, path):
  """The first rows, and of them the first one that can be read. Raises DataError for none."""
  seen = list(itertools.islice(rows, SAMPLE))
  first = next((row for _, row, _ in seen if row is not None), None)
  if first is None:
    why = f', e.g. {raw_reader.place(path, seen[0][0])}: {seen[0][2]}' if seen else ''
    raise DataError(f'{path} holds no row that can be read{why}.')
  names = dict.fromkeys(name for _, row, _ in seen if row is not None for name in row)
  return [row for _, row, _ in seen if row is not None], {**dict.fromkeys(names), **first}


def pairs(text):
  """'a=b,c=d' -> {'a': 'b', 'c': 'd'}. Raises ConfigError."""
  found = {}
  for part in filter(None, text.split(',')):
    ours, equals, theirs = (p.strip() for p in part.partition('='))
    if not equals or not ours:
      raise ConfigError(f'{part!r} maps no column; write OURS=THEIRS, as in user=customer_id')
    found[ours] = theirs
  return found


def plain(name):
  """A column's name without what differs between spellings: 'Order-Date' -> 'orderdate'"""
  return re.sub(r'[\s_.-]', '', str(name).lower())


def choose(row, known, given, path, flag, needed):
  """Which column of `row` is meant by each of our names. -> {ours: theirs, or ''}

  Names beyond `known` may be given too. Raises ConfigError.
  """
  lower = {plain(name): name for name in reversed(row)}
  found = {}
  for ours, names in known.items():
    found[ours] = next((lower[plain(name)] for name in names if plain(name) in lower), '')
  for ours, theirs in given.items():
    if theirs and theirs not in row:
      raise ConfigError(f'{path} has no column {theirs!r}; it has {", ".join(map(str, row))}')
    if ours not in known and known is NAMES:
      raise ConfigError(f'{flag}: {ours!r} is none of {", ".join(known)}')
    found[ours] = theirs
  for ours in needed:
    if not found[ours]:
      raise ConfigError(f'{path}: which column is the {ours}? It has {", ".join(map(str, row))}; '
                        f'say {flag} {ours}=NAME, {bare(row)}or --sep where columns are parted by '
                        'another sign')
  return found


def bare(row):
  """A word about --header, where the first line looks like a row."""
  return '--header=NAME,NAME,... if its first line is no names, ' if any(
      times.exact(str(name)) for name in row) else ''


def ignored(row, found):
  """The columns that nothing is taken from."""
  return [str(name) for name in row if name not in found.values()]


def time_column(sample, found, given, order, path):
  """The column of the times. -> (its name, how it was found); ('', '') where file order is meant.

  By the flag, by its name, or by its values. Raises ConfigError naming the candidates where there
  are several, or none.
  """
  if order == 'file' or given.get('time') == '':
    if given.get('time'):
      raise ConfigError(f'--order=file and --columns=time={given["time"]} exclude each other')
    return '', ''
  if 'time' in given:
    return given['time'], 'named'
  looks = {}
  for name in dict.fromkeys(name for row in sample for name in row):
    if name not in (found['user'], found['item'], found['rating']):
      looks[name] = times.Profile()
      for number, row in enumerate(sample):
        looks[name].add(row.get(name), number)
  known = {plain(name) for name in NAMES['time']}
  named = [name for name in looks if plain(name) in known]
  dated = [name for name, look in looks.items() if look.dated()]
  clocks = [name for name, look in looks.items() if 'clock' in look.kinds]
  likely = [name for name, look in looks.items() if look.like_times()
            and (name in dated or may_be_times(words(name)))]
  strong = [name for name in named if name in likely] or named
  if sure := [name for name in strong if plain(name) in SURE][:1]:
    return sure[0], 'by its name'
  timely = [name for name in likely if _TIMELY.search(words(name))]
  several = list(dict.fromkeys([*strong, *dated, *timely, *clocks] if strong else
                               [*likely, *clocks]))
  if len(several) == 1 and several[0] not in clocks:
    return several[0], 'by its name' if strong else 'by its values'
  has = ', '.join(map(str, sample[0]))
  if several:
    joined = '; date and hour must stand in one column' if clocks else ''
    raise ConfigError(f'{path}: which column holds the times? {", ".join(map(str, several))} could '
                      f'do{joined}. Say --columns=time={several[0]}, or --order=file if the rows '
                      'stand in order')
  numbers = ', '.join(str(name) for name, look in looks.items() if look.like_times())
  could = f' ({numbers} could be one by its numbers alone)' if numbers else ''
  raise ConfigError(f'{path}: no column of times is found{could}; it has {has}. Say '
                    '--columns=time=NAME (and --time-format, where it is written in a way of its '
                    'own), or --order=file if the rows of each user stand in order')


def words(name):
  """The words of a column's name: 'orderTime_utc' -> 'order time utc'"""
  return re.sub(r'[\W_]+', ' ', re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', str(name))).lower()


def may_be_times(name):
  """Whether numbers of a column may be times, by the words of its name: not those of an order."""
  return bool(_TIMELY.search(name) or not _NUMBERS.search(name))


def shape(names, list_sep):
  """How a row of the items table becomes columns of the catalogue, before they are cleaned."""
  def columns(row):
    return {ours: cleaning.parted(row.get(theirs), list_sep) if ours in cleaning.LISTS
            else row.get(theirs) for ours, theirs in names.items() if theirs and ours != 'item'}
  return columns
