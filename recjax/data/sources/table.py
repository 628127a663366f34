"""A user's own tables: interactions, and items beside them, with columns of any name."""
import codecs
import collections
import itertools
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator

from recjax.data import cleaning, raw_reader, times
from recjax.errors import ConfigError, DataError

# Names that are understood without being told, the first one found; blanks and signs do not count.
INTERACTION_NAMES = {
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
ITEM_NAMES = {
    'item': INTERACTION_NAMES['item'],
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


def source(interactions: raw_reader.Path, items: raw_reader.Path = '', columns: str = '',
           item_columns: str = '', header: str = '', sep: str = '', list_sep: str = '|',
           tick: raw_reader.Tick | None = None, encoding: str = '', order: str = '',
           time_format: str = '') -> raw_reader.Source:
  """The tables at the paths `interactions` and `items` ('' for none) as raw rows.

  columns, item_columns: 'user=customer,time=when': ours=theirs, '' switches one off ('rating=').
  header: 'a,b,c', the columns of interactions that do not begin with their names. sep: what parts
  columns, found without it. list_sep: what parts categories in one text. tick: as in
  `raw_reader.read`. encoding: of the texts, UTF-8 or UTF-16 without it. order: 'file' where rows
  stand in order of time and have none. time_format: how times are written, as in
  `times.check_format`. Raises ConfigError naming the columns there are.
  """
  if order not in ('', 'file'):
    raise ConfigError(f"--order={order!r}; 'file' is the only other one")
  times.check_format(time_format)
  path, sep = regular_file(interactions), {'\\t': '\t', 'tab': '\t'}.get(sep, sep)
  check_encoding(encoding)
  names = [name.strip() for name in header.split(',')] if header else ()
  separator, note = (sep, '') if sep else raw_reader.find_separator(path, encoding or 'utf-8',
                                                                    bool(names))

  def read(tick: Callable | None = None) -> Iterator:
    return raw_reader.read(path, names, separator, encoding or 'utf-8', tick=tick)
  sample, first = peek(read(), path)
  named = parse_pairs(columns)
  chosen = choose_columns(first, INTERACTION_NAMES, named, path, '--columns', ('user', 'item'))
  chosen['time'], how = time_column(sample, chosen, named, order, path)
  notes = {'interactions': {'columns': chosen, 'ignored': ignored(first, chosen), 'read': note},
           'items': {}}
  rows = _timed_interactions(path, read, chosen, how, time_format, notes['interactions'], tick)
  catalog_rows = item_rows(items, item_columns, sep, list_sep, encoding,
                           notes['items']) if items else ()
  return raw_reader.Source(path.name, rows, catalog_rows, notes)


def regular_file(path: raw_reader.Path) -> pathlib.Path:
  """The path of a file that can be read twice. Raises DataError for a pipe or a folder."""
  path = pathlib.Path(path)
  if path.exists() and not path.is_file():
    raise DataError(f'{path} is {"a folder" if path.is_dir() else "a pipe"}; name a file, which is '
                    'read twice: its values tell what they are before they are taken.')
  return path


def check_encoding(name: str) -> None:
  """Raises ConfigError for an encoding `name` that is not known."""
  try:
    codecs.lookup(name or 'utf-8')
  except LookupError as error:
    raise ConfigError(f'--encoding={name!r} is none that is known; e.g. utf-8, cp1252, cp1251, '
                      'utf-16, gb18030') from error


def _timed_interactions(path: pathlib.Path, read: Callable, columns: dict[str, str], how: str,
                        time_format: str, notes: dict, tick: raw_reader.Tick | None
                        ) -> Iterator[raw_reader.InteractionRow]:
  """The rows, after a first reading that tells what times and ids look like."""
  profile = times.ColumnProfile()
  ids = {name: cleaning.IdColumn() for name in (columns['user'], columns['item'])}
  for number, row, _ in read(_half(tick, 0)):
    if row is not None:
      for name, column in ids.items():
        column.add(row.get(name))
      if columns['time']:
        profile.add(row.get(columns['time']), number)
  parser = times.PLAIN
  if columns['time']:
    parser, by = times.choose_parser(profile, time_format, path, columns['time'])
    notes['time'] = {'column': columns['time'], 'found': how, 'kind': parser.kind, 'told': by,
                     'per_second': parser.per_second, 'factor': parser.factor}
  notes['ids'] = collections.Counter()
  for name, column in ids.items():
    notes['ids'].update(column.mixed(name))
  yield from raw_reader.to_interactions(
      path, read(_half(tick, 1)), columns['user'], columns['item'], columns['time'],
      columns['rating'], parser, notes['ids'],
      whole_ids=[name for name, column in ids.items() if column.whole()])


def _half(tick: raw_reader.Tick | None, start: int) -> raw_reader.Tick | None:
  """What one of two readings tells `tick`; start: 0 for the first, 1 for the second."""
  return None if tick is None else lambda share: tick((start + share) / 2)


def item_rows(path: raw_reader.Path, columns: str = '', sep: str = '', list_sep: str = '|',
              encoding: str = '', notes: dict | None = None) -> Iterator[raw_reader.ItemRow]:
  """The table of items at `path` as raw rows; settings as in `source`.

  columns: as its item_columns. sep, list_sep, encoding: as there. notes: what the reading tells is
  added to it.
  """
  notes = {} if notes is None else notes
  path, encoding, note = regular_file(path), encoding or 'utf-8', ''
  if not sep or raw_reader.file_kind(path) in ('.parquet', '.jsonl'):
    sep, note = raw_reader.find_separator(path, encoding)

  def read() -> Iterator:
    return raw_reader.read(path, sep=sep, encoding=encoding, literal=True)
  _, first = peek(read(), path)
  names = choose_columns(first, ITEM_NAMES, parse_pairs(columns), path, '--item-columns',
                         ('item',))
  notes.update({'columns': names, 'ignored': ignored(first, names), 'read': note},
               **cleaning.new_counts())
  return _cleaned_items(path, read, names, list_sep, notes)


def _cleaned_items(path: pathlib.Path, read: Callable, names: dict[str, str], list_sep: str,
                   notes: dict) -> Iterator[raw_reader.ItemRow]:
  """The items, after a first reading that tells what ids and prices look like."""
  ids, signs = cleaning.IdColumn(), set()
  for _, row, _ in read():
    if row is not None:
      ids.add(row.get(names['item']))
      if names['price']:
        signs.add(cleaning.decimal_sign([row.get(names['price'])]))
  notes['ids'].update(ids.mixed(names['item']))
  signs.discard('')
  decimal = signs.pop() if len(signs) == 1 else ''
  if decimal == ',':
    notes['decimal'] = 'prices have a decimal comma'

  def item_columns(row: dict) -> dict:
    return {ours: cleaning.split_categories(row.get(theirs), list_sep)
            if ours in cleaning.CLEANED_LISTS else row.get(theirs)
            for ours, theirs in names.items() if theirs and ours != 'item'}
  yield from raw_reader.to_items(path, read(), names['item'], item_columns, notes, decimal,
                                 ids.whole())


def peek(rows: Iterable[raw_reader.Row], path: pathlib.Path) -> tuple[list[dict], dict]:
  """The first good rows of the file at `path`, and one of them with the columns of all.

  Raises DataError where there is none.
  """
  sample = list(itertools.islice(rows, SAMPLE))
  good = [row for _, row, _ in sample if row is not None]
  if not good:
    where = f', e.g. {raw_reader.row_place(path, sample[0][0])}: {sample[0][2]}' if sample else ''
    raise DataError(f'{path} holds no row that can be read{where}.')
  return good, {**dict.fromkeys(name for row in good for name in row), **good[0]}


def parse_pairs(text: str) -> dict[str, str]:
  """{'a': 'b', 'c': 'd'} of 'a=b,c=d'. Raises ConfigError for another `text`."""
  pairs = {}
  for part in filter(None, text.split(',')):
    ours, equals, theirs = (p.strip() for p in part.partition('='))
    if not equals or not ours:
      raise ConfigError(f'{part!r} maps no column; write OURS=THEIRS, as in user=customer_id')
    pairs[ours] = theirs
  return pairs


def plain_name(name: object) -> str:
  """A column's name without what differs between spellings: 'orderdate' of 'Order-Date'."""
  return re.sub(r'[\s_.-]', '', str(name).lower())


def choose_columns(row: dict, known: dict[str, Collection[str]], named: dict[str, str],
                   path: pathlib.Path, flag: str, needed: Collection[str]) -> dict[str, str]:
  """Which column of `row` is meant by each of our names, '' for none.

  known: usual spellings of each. named: those that the command line names by `flag`, also beyond
  `known`. path: the file, for messages. needed: ours that must be found. Raises ConfigError.
  """
  spellings = {plain_name(name): name for name in reversed(row)}
  columns = {ours: next((spellings[plain_name(name)] for name in names
                         if plain_name(name) in spellings), '') for ours, names in known.items()}
  for ours, theirs in named.items():
    if theirs and theirs not in row:
      raise ConfigError(f'{path} has no column {theirs!r}; it has {", ".join(map(str, row))}')
    if ours not in known and known is INTERACTION_NAMES:
      raise ConfigError(f'{flag}: {ours!r} is none of {", ".join(known)}')
    columns[ours] = theirs
  for ours in needed:
    if not columns[ours]:
      headless = any(times.parse_number(str(name)) for name in row)
      raise ConfigError(
          f'{path}: which column is the {ours}? It has {", ".join(map(str, row))}; say {flag} '
          f'{ours}=NAME, ' + '--header=NAME,NAME,... if its first line is no names, ' * headless
          + 'or --sep where columns are parted by another sign')
  return columns


def ignored(row: dict, columns: dict[str, str]) -> list[str]:
  """The columns of `row` that nothing is taken from."""
  return [str(name) for name in row if name not in columns.values()]


def time_column(sample: list[dict], columns: dict[str, str], named: dict[str, str], order: str,
                path: pathlib.Path) -> tuple[str, str]:
  """The column of the times and how it was found; '' and '' where file order is meant.

  By the flag, by its name, or by its values in the rows `sample`. columns: those chosen so far.
  named: those that the command line names. order: as in `source`. path: the file, for messages.
  Raises ConfigError naming the candidates where there are several, or none.
  """
  if order == 'file' or named.get('time') == '':
    if named.get('time'):
      raise ConfigError(f'--order=file and --columns=time={named["time"]} exclude each other')
    return '', ''
  if 'time' in named:
    return named['time'], 'named'
  profiles = {}
  for name in dict.fromkeys(name for row in sample for name in row):
    if name not in (columns['user'], columns['item'], columns['rating']):
      profiles[name] = times.ColumnProfile()
      for number, row in enumerate(sample):
        profiles[name].add(row.get(name), number)
  known = {plain_name(name) for name in INTERACTION_NAMES['time']}
  usual = [name for name in profiles if plain_name(name) in known]
  dated = [name for name, profile in profiles.items() if profile.dated()]
  clocks = [name for name, profile in profiles.items() if 'clock' in profile.kinds]
  likely = [name for name, profile in profiles.items() if profile.like_times()
            and (name in dated or may_be_times(words(name)))]
  strong = [name for name in usual if name in likely] or usual
  if sure := [name for name in strong if plain_name(name) in SURE][:1]:
    return sure[0], 'by its name'
  timely = [name for name in likely if _TIMELY.search(words(name))]
  several = list(dict.fromkeys([*strong, *dated, *timely, *clocks] if strong else
                               [*likely, *clocks]))
  if len(several) == 1 and several[0] not in clocks:
    return several[0], 'by its name' if strong else 'by its values'
  if several:
    joined = '; date and hour must stand in one column' if clocks else ''
    raise ConfigError(f'{path}: which column holds the times? {", ".join(map(str, several))} could '
                      f'do{joined}. Say --columns=time={several[0]}, or --order=file if the rows '
                      'stand in order')
  numbers = ', '.join(str(name) for name, profile in profiles.items() if profile.like_times())
  could = f' ({numbers} could be one by its numbers alone)' if numbers else ''
  raise ConfigError(f'{path}: no column of times is found{could}; it has '
                    f'{", ".join(map(str, sample[0]))}. Say '
                    '--columns=time=NAME (and --time-format, where it is written in a way of its '
                    'own), or --order=file if the rows of each user stand in order')


def words(name: object) -> str:
  """The words of a column's name: 'order time utc' of 'orderTime_utc'."""
  return re.sub(r'[\W_]+', ' ', re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', str(name))).lower()


def may_be_times(name: str) -> bool:
  """Whether numbers of a column may be times, by the words of its name: not those of an order."""
  return bool(_TIMELY.search(name) or not _NUMBERS.search(name))
