"""A user's own tables: interactions, and items beside them, with columns of any name.

What a table holds is found out, shown and, where nothing tells, asked. Nothing is guessed in
silence.
"""
import codecs
import collections
import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator

from recjax.data import cleaning, raw_reader, table_files, times
from recjax.data.prepare import asking
from recjax.data.sources import columns as column_names
from recjax.data.sources import events as event_rules
from recjax.data.sources.columns import INTERACTION_NAMES, ITEM_NAMES
from recjax.errors import ConfigError, DataError

SAMPLE = 1000  # rows by whose values columns are found
SHOWN = 3      # rows that are shown as they were understood
WIDE = 40      # letters of a value that are shown
WEIGHT = '(weight)'  # a column that is made: what --events says an event counts


def source(interactions: raw_reader.Path, items: raw_reader.Path = '', columns: str = '',
           item_columns: str = '', header: str = '', sep: str = '', list_sep: str = '|',
           tick: raw_reader.Tick | None = None, encoding: str = '', order: str = '',
           time_format: str = '', query: str = '', items_query: str = '', events: str = '',
           ask: asking.Ask = asking.refuse) -> raw_reader.Source:
  """The tables at `interactions` and `items` ('' for none) as raw rows.

  Both are files or addresses of databases. columns, item_columns: 'user=customer,time=when':
  ours=theirs, '' switches one off ('rating='), time=A+B joins a date and an hour. header: 'a,b,c',
  the columns of interactions that do not begin with their names. sep: what parts columns, found
  without it. list_sep: what parts categories in one text. tick: as in `raw_reader.read`. encoding:
  of the texts, found without it. order: 'file' where rows stand in order of time and have none.
  time_format: how times are written, as in `times.check_format`. query, items_query: the sheet or
  table that is meant, or a query. events: what counts, as in `events.parse_rule`. ask: is asked
  what cannot be told. Raises ConfigError naming the columns there are.
  """
  if order not in ('', 'file'):
    raise ConfigError(f"--order={order!r}; 'file' is the only other one")
  times.check_format(time_format)
  sep = {'\\t': '\t', 'tab': '\t'}.get(sep, sep)
  check_encoding(encoding)
  log = _Log(table_files.open_table(interactions, sep, encoding, query,
                                    column_names.fits_interactions, column_names.recognized),
             header, columns, order, time_format, events, ask, tick)
  table = _items_table(items, sep, encoding, items_query, log.table)
  goods = _Items(table, item_columns, list_sep) if table else None
  notes = {'interactions': log.notes, 'items': goods.notes if goods else {}}
  name = log.table.path.rstrip('/').rpartition('/')[2]
  return raw_reader.Source(name, log.rows(), goods.rows() if goods else (), notes,
                           lambda: log.preview() + (goods.preview() if goods else []))


def _items_table(items: raw_reader.Path, sep: str, encoding: str, query: str,
                 log: table_files.Table) -> table_files.Table | None:
  """The table of the items; without a path that of the workbook or database `log`, if there is one.

  items, sep, encoding, query: as of `source`.
  """
  if items:
    return table_files.open_table(items, sep, encoding, query, column_names.fits_items,
                                  column_names.recognized)
  if log.kind not in ('workbook', 'database'):
    if query:
      raise ConfigError('--items-query is for --items, or for a database or workbook')
    return None
  try:
    found = table_files.open_table(log.hidden or log.path, part=query, fits=lambda names: len(
        names) > 1 and column_names.fits_items(names))
    return None if found.part == log.part and not query else found
  except ConfigError:
    if query:
      raise
    return None


def check_encoding(name: str) -> None:
  """Raises ConfigError for an encoding `name` that is not known."""
  try:
    codecs.lookup(name or 'utf-8')
  except LookupError as error:
    raise ConfigError(f'--encoding={name!r} is none that is known; e.g. utf-8, cp1252, cp1251, '
                      'utf-16, gb18030') from error


class _Log:
  """The table of interactions: its columns, what a first reading tells, and its rows."""

  def __init__(self, table: table_files.Table, header: str, columns: str, order: str,
               time_format: str, events: str, ask: asking.Ask, tick: raw_reader.Tick | None):
    self.table, self.ask, self.time_format, self.tick = table, ask, time_format, tick
    self.names = [name.strip() for name in header.split(',')] if header else []
    self.how: dict[str, str] = {}
    if table.headless and not self.names:
      self.names = self._guessed_names()
    table = self.table
    self.nested = ''
    self.sample, first = peek(self._lines(), table.place)
    self.nested = column_names.nested_items([row for _, row in self.sample])
    if self.nested:
      self.sample, first = peek(self._lines(), table.place)
    named = column_names.parse_pairs(columns)
    self.columns = choose_columns(first, INTERACTION_NAMES, named, table.path, '--columns',
                                  ('user', 'item'), ask, self.how,
                                  [row for _, row in self.sample])
    self._check_kinds(named, events)
    self.columns['time'] = self._time_column(named, order)
    self.rule = event_rules.Rule(self.columns['event'], self.columns['quantity'], events)
    if self.rule.weighted:
      if named.get('rating'):
        raise ConfigError('--events with weights makes ratings; leave out --columns=rating=')
      self.columns['rating'] = ''
    self.notes: dict = {'columns': self.columns, 'ignored': ignored(first, self.columns),
                        'read': '; '.join(table.found), 'ids': collections.Counter()}

  def read(self, tick: raw_reader.Tick | None = None) -> Iterator[raw_reader.Row]:
    """All rows, a date and an hour of two columns joined, what holds for an order on all of
    its lines."""
    rows, time = self._with_orders(self._lines(tick)), self.columns['time']
    parts = time.split('+')
    if time in self.sample[0][1] or len(parts) == 1:
      yield from rows
      return
    for number, row, reason in rows:
      if row is not None:
        row[time] = ' '.join(str(row.get(part) or '').strip() for part in parts).strip()
      yield number, row, reason

  def _lines(self, tick: raw_reader.Tick | None = None) -> Iterator[raw_reader.Row]:
    """The rows of the table, one for each thing of an order that holds a list of them."""
    if not self.nested:
      yield from self.table.read(self.names, tick=tick)
      return
    outer, _, key = self.nested.rpartition('.')
    for number, row, reason in self.table.read(self.names, tick=tick):
      if row is None:
        yield number, row, reason
        continue
      if outer and isinstance(row.get(outer), dict):
        within = row.pop(outer)
        parts = within.get(key)
        row |= {f'{outer}.{name}': value for name, value in within.items() if name != key}
      else:
        parts = row.pop(key, None)
      if not isinstance(parts, list):
        yield number, row, reason
        continue
      for part in parts:
        if isinstance(part, dict):
          inner = {name if name not in row else f'{key}.{name}': value
                   for name, value in part.items()}
          yield number, {**row, **inner}, reason

  def _with_orders(self, rows: Iterator[raw_reader.Row]) -> Iterator[raw_reader.Row]:
    """The rows with what holds for an order on each of its lines: some systems write its user, time
    and state on the first alone."""
    order = column_names.order_column([row for _, row in self.sample])
    held = [part for ours in ('user', 'time', 'event')
            for part in self.columns[ours].split('+') if part and part != order]
    if not order:
      yield from rows
      return
    current, known = None, {}
    for number, row, reason in rows:
      if row is not None:
        if row.get(order) != current or current in (None, ''):
          current, known = row.get(order), {}
        for name in held:
          if row.get(name) in (None, ''):
            row[name] = known.get(name, row.get(name))
          else:
            known.setdefault(name, row[name])
      yield number, row, reason

  def _guessed_names(self) -> list[str]:
    """Names for the columns of a table without: user and item first, as public data sets do."""
    names = [f'column{n}' for n in range(1, self.table.width + 1)]
    sample, _ = peek(self.table.read(names), self.table.path)
    rows = [row for _, row in sample]
    candidates = column_names.numeric_candidates(rows, ())
    renamed = {candidates[-1]: 'time'} if candidates else {}
    free = [name for name in names if name not in renamed]
    renamed |= dict(zip(free, ('user', 'item')))
    for name in free[2:]:
      if 'rating' not in renamed.values() and _like_ratings([row[name] for row in rows]):
        renamed[name] = 'rating'
    guess = ','.join(renamed.get(name, name) for name in names)
    shown = ', '.join(map(str, rows[0].values()))
    chosen = self.ask(
        f'{self.table.path}: its first line ({shown:.80}) names no columns.', [guess], True,
        f'Say which they are, as in --header={guess}')
    self.table = dataclasses.replace(self.table, found=(
        *self.table.found, f'without names of columns, taken as {chosen}'))
    return chosen.split(',')

  def _check_kinds(self, named: dict[str, str], events: str) -> None:
    """Gives up columns of events and quantities whose values are none, unless they are named."""
    for ours, fits in (('event', event_rules.is_events), ('quantity', event_rules.is_quantity)):
      theirs = self.columns[ours]
      if theirs and ours not in named and not fits([row.get(theirs) for _, row in self.sample]):
        self.columns[ours] = ''
    if events and events != 'all' and not self.columns['event']:
      raise ConfigError(f'{self.table.path}: which column holds the kinds of events for --events? '
                        f'It has {", ".join(map(str, self.sample[0][1]))}; say '
                        '--columns=event=NAME')

  def _time_column(self, named: dict[str, str], order: str) -> str:
    """The column of the times, '' where file order is meant. named: as the command line names them.

    By the flag, by its name, or by its values. Raises ConfigError naming the candidates where there
    are several, or none. order: as of `source`.
    """
    if order == 'file' or named.get('time') == '':
      if named.get('time'):
        raise ConfigError(f'--order=file and --columns=time={named["time"]} exclude each other')
      return ''
    if 'time' in named:
      return named['time']
    rows = [row for _, row in self.sample]
    taken = [theirs for ours, theirs in self.columns.items() if ours != 'time']
    found, clocks, how = column_names.time_candidates(rows, taken)
    path = self.table.path
    if len(found) == 1 and len(clocks) < 2:
      self.how['time'] = how
      return '+'.join([*found, *clocks])
    if found or clocks:
      several = [*found, *clocks]
      joined = '; date and hour of two columns: --columns=time=DATE+HOUR' if clocks else ''
      self.how['time'] = 'as answered'
      return self.ask(f'{path}: which column holds the times? {", ".join(several)} could do'
                      f'{joined}.', several, how == 'by its name', 'Say --columns=time='
                      f'{several[0]}, or --order=file if the rows stand in order')
    numbers = ', '.join(column_names.numeric_candidates(rows, taken))
    could = f' ({numbers} could be one by its numbers alone)' if numbers else ''
    raise ConfigError(f'{path}: no column of times is found{could}; it has '
                      f'{", ".join(map(str, rows[0]))}. Say --columns=time=NAME (and --time-format,'
                      ' where it is written in a way of its own), or --order=file if the rows of '
                      'each user stand in order')

  @functools.cached_property
  def parser(self) -> times.TimeParser:
    """What reads the times, after a first reading that tells what times and ids look like."""
    profile, time = times.ColumnProfile(), self.columns['time']
    self.ids = {name: cleaning.IdColumn() for name in (self.columns['user'], self.columns['item'])}
    self.rule.seen.clear()
    left_out: collections.Counter = collections.Counter()
    for number, row, _ in self.read(_half(self.tick, 0)):
      if row is None:
        continue
      if lacking := self._lacking(row):
        left_out[lacking] += 1
        continue
      if counted := self.rule.count(row).left_out:
        left_out[counted] += 1
        continue
      for name, column in self.ids.items():
        column.add(row.get(name))
      if time:
        profile.add(row.get(time), number)
    self.rule.check()
    self.notes |= {'left_out': left_out, 'events': dict(self.rule.seen.most_common())}
    if self.rule.event:
      self.notes['counted'] = self.rule.said()
    parser = times.PLAIN
    if time:
      parser, by = self._choose_parser(profile)
      self.notes['time'] = {'column': time, 'found': self.how.get('time', 'named'),
                            'kind': parser.kind, 'told': by, 'per_second': parser.per_second,
                            'factor': parser.factor}
    for name, column in self.ids.items():
      self.notes['ids'].update(column.mixed(name))
    return parser

  def _choose_parser(self, profile: times.ColumnProfile) -> tuple[times.TimeParser, str]:
    """What reads the times; where day and month could be exchanged, somebody is asked."""
    path, time = self.table.path, self.columns['time']
    try:
      return times.choose_parser(profile, self.time_format, path, time)
    except ConfigError as error:
      if 'x/y' not in profile.kinds:
        raise
      form = self.ask(str(error), ['d/m/y', 'm/d/y'], False, '')
      return times.choose_parser(profile, form, path, time)[0], 'as answered'

  def interactions(self, rows: Iterator[raw_reader.Row], ids: collections.Counter
                   ) -> Iterator[raw_reader.InteractionRow]:
    """Those of the `rows` that count. ids: counts what was done to ids."""
    parser = self.parser
    whole = [name for name, column in self.ids.items() if column.whole()]
    rating = WEIGHT if self.rule.weighted else self.columns['rating']
    return raw_reader.to_interactions(
        self.table.place, self._counting(rows), self.columns['user'], self.columns['item'],
        self.columns['time'], rating, parser, ids, whole)

  @functools.cached_property
  def _anonymous(self) -> list[str]:
    """Columns of user and item that some rows lack, as purchases of guests and lines of sums do:
    more than one in twenty, and no more than half."""
    columns = [self.columns[ours] for ours in ('user', 'item')]
    empty = [sum(row.get(name) in (None, '') for _, row in self.sample) for name in columns]
    return [name for name, count in zip(columns, empty)
            if .05 * len(self.sample) < count <= .5 * len(self.sample)]

  def _lacking(self, row: dict) -> str:
    """Why a row is no purchase of somebody, '' where it could be."""
    return next((f'{name} is empty' for name in self._anonymous if row.get(name) in (None, '')), '')

  def _counting(self, rows: Iterator[raw_reader.Row]) -> Iterator[raw_reader.Row]:
    """The rows that count; of the others the first reading told how many."""
    if not (self.rule.event or self.rule.quantity or self._anonymous):
      yield from rows
      return
    for number, row, reason in rows:
      if row is not None:
        if self._lacking(row):
          continue
        counted = self.rule.count(row)
        if counted.left_out:
          continue
        if self.rule.weighted:
          row[WEIGHT] = counted.weight
      yield number, row, reason

  def rows(self) -> Iterator[raw_reader.InteractionRow]:
    """All interactions."""
    per_second = self.parser.per_second if self.columns['time'] else 0
    rows = self.interactions(self.read(_half(self.tick, 1)), self.notes['ids'])
    yield from event_rules.counting(rows, per_second, self.notes)

  def preview(self) -> list[str]:
    """What was found out, which column is what, and three rows as they were understood."""
    scale = times.TimeScale(self.parser.kind, self.parser.per_second, self.parser.factor)
    roles = {ours: theirs for ours, theirs in self.columns.items() if theirs}
    notes = {'time': times.DESCRIPTIONS.get(self.parser.kind, self.parser.kind)
             + f' ({self.notes["time"]["told"]})'} if self.columns['time'] else {}
    if self.rule.event:
      notes['event'] = ', '.join(f'{value or "(empty)"} {count:,}' for value, count in
                                 self.notes['events'].items()) + f'; {self.rule.said()}'
    understood = [row for _, _, row, _ in self.interactions(
        iter([(n, dict(row), '') for n, row in self._joined_sample()]), collections.Counter())
                  if row is not None]
    shown = [[user, item, *([scale.shown(time) or ''] if self.columns['time'] else []),
              *([] if rating is None else [f'{rating:g}'])]
             for user, item, time, rating in itertools.islice(understood, SHOWN)]
    heads = ['user', 'item', *(['time'] if self.columns['time'] else []), 'rating']
    left = [f'left out: {count:,} rows, {reason}' for reason, count in
            self.notes['left_out'].items()]
    return _shown(self.table, roles, self.how, notes, self.notes['ignored'], left, heads, shown)

  def _joined_sample(self) -> Iterator[tuple[int, dict]]:
    time = self.columns['time']
    for number, row in self.sample[:SAMPLE]:
      if time and time not in row and '+' in time:
        row = row | {time: ' '.join(str(row.get(part) or '') for part in time.split('+'))}
      yield number, row


def _like_ratings(values: Collection) -> bool:
  numbers = [event_rules.parse_quantity(value) for value in values]
  return all(number is not None and 0 <= number <= 10 for number in numbers)


def _half(tick: raw_reader.Tick | None, start: int) -> raw_reader.Tick | None:
  """What one of two readings tells `tick`; start: 0 for the first, 1 for the second."""
  return None if tick is None else lambda share: tick((start + share) / 2)


def _shown(table: table_files.Table, roles: dict[str, str], how: dict[str, str],
           notes: dict[str, str], left: Collection[str], more: Collection[str],
           heads: Collection[str], rows: Collection[list[str]]) -> list[str]:
  """Lines that say how a table was understood.

  roles: ours to theirs. how: they were found. notes: beside them. left: columns that are not read.
  more: sentences. heads, rows: the first ones as understood.
  """
  lines = [f'{table.path}: ' + '; '.join(table.found)]
  wide = max(map(len, roles.values()), default=0)
  for ours, theirs in roles.items():
    note = f'; {notes[ours]}' if ours in notes else ''
    lines.append(f'  {theirs:<{wide}}  is {ours}, {how.get(ours, "as named")}{note}')
  if left:
    lines.append(f'  not read: {", ".join(left)}')
  lines += [f'  {line}' for line in more]
  grid = [[*heads][:max(map(len, rows), default=0)],
          *([value if len(value) <= WIDE else value[:WIDE - 1] + '…' for value in row]
            for row in rows)]
  widths = [max(map(len, column)) for column in zip(*grid)]
  lines.append('  the first rows as understood:')
  return lines + ['    ' + '  '.join(f'{value:<{width}}' for value, width in zip(row, widths)
                                     ).rstrip() for row in grid]


def item_rows(path: raw_reader.Path, columns: str = '', sep: str = '', list_sep: str = '|',
              encoding: str = '', notes: dict | None = None) -> Iterator[raw_reader.ItemRow]:
  """The table of items at `path` as raw rows; settings as in `source`.

  columns: as its item_columns. sep, list_sep, encoding: as there. notes: what the reading tells is
  added to it.
  """
  table = table_files.open_table(path, sep, encoding, fits=column_names.fits_items)
  return _Items(table, columns, list_sep, notes).rows()


class _Items:
  """The table of items: its columns, what a first reading tells, and its rows."""

  def __init__(self, table: table_files.Table, columns: str, list_sep: str,
               notes: dict | None = None):
    self.table, self.list_sep, self.how = table, list_sep, {}
    self.sample, first = peek(table.read(literal=True), table.place)
    self.names = choose_columns(first, ITEM_NAMES, column_names.parse_pairs(columns), table.path,
                                '--item-columns', ('item',), asking.refuse, self.how)
    self.notes = {} if notes is None else notes
    self.notes.update({'columns': self.names, 'ignored': ignored(first, self.names),
                       'read': '; '.join(table.found)}, **cleaning.new_counts())

  @functools.cached_property
  def told(self) -> tuple[bool, str]:
    """Whether ids like 17.0 are 17, and the decimal sign of prices, after a first reading."""
    ids, signs = cleaning.IdColumn(), set()
    for _, row, _ in self.table.read(literal=True):
      if row is not None:
        ids.add(row.get(self.names['item']))
        if self.names['price']:
          signs.add(cleaning.decimal_sign([row.get(self.names['price'])]))
    self.notes['ids'].update(ids.mixed(self.names['item']))
    signs.discard('')
    decimal = signs.pop() if len(signs) == 1 else ''
    if decimal == ',':
      self.notes['decimal'] = 'prices have a decimal comma'
    return ids.whole(), decimal

  def _taken(self, row: dict) -> dict:
    """The columns of an item out of a `row`."""
    return {ours: cleaning.split_categories(row.get(theirs), self.list_sep)
            if ours in cleaning.CLEANED_LISTS else row.get(theirs)
            for ours, theirs in self.names.items() if theirs and ours != 'item'}

  def rows(self) -> Iterator[raw_reader.ItemRow]:
    """All items."""
    whole, decimal = self.told
    yield from raw_reader.to_items(self.table.place, self.table.read(literal=True),
                                   self.names['item'], self._taken, self.notes, decimal, whole)

  def preview(self) -> list[str]:
    """What was found out, which column is what, and three items as they were understood."""
    whole, decimal = self.told
    roles = {ours: theirs for ours, theirs in self.names.items() if theirs}
    heads = ['item', *(ours for ours in roles if ours != 'item')]
    items = raw_reader.to_items(
        self.table.place, iter([(n, row, '') for n, row in self.sample[:10 * SHOWN]]),
        self.names['item'], self._taken, cleaning.new_counts(), decimal, whole)
    rows = []
    for _, _, item, _ in items:
      if item is not None and len(rows) < SHOWN:
        values = (item[1].get(name, '') for name in heads[1:])
        rows.append([item[0], *(', '.join(value) if isinstance(value, list) else str(value)
                                for value in values)])
    more = [self.notes['decimal']] if 'decimal' in self.notes else []
    return _shown(self.table, roles, self.how, {}, self.notes['ignored'], more, heads, rows)


def peek(rows: Iterator[raw_reader.Row], path: str) -> tuple[list[tuple[int, dict]], dict]:
  """The first good rows of the table at `path` with their numbers, and one with all columns.

  Raises DataError where there is none.
  """
  sample = list(itertools.islice(rows, SAMPLE))
  good = [(number, row) for number, row, _ in sample if row is not None]
  if not good:
    where = f', e.g. {raw_reader.row_place(path, sample[0][0])}: {sample[0][2]}' if sample else ''
    raise DataError(f'{path.removesuffix(raw_reader.ARRAY)} holds no row that can be read{where}.')
  return good, {**dict.fromkeys(name for _, row in good for name in row), **good[0][1]}


def choose_columns(row: dict, known: dict[str, Collection[str]], named: dict[str, str], path: str,
                   flag: str, needed: Collection[str], ask: asking.Ask,
                   how: dict[str, str], rows: Collection[dict] = ()) -> dict[str, str]:
  """Which column of `row` is meant by each of our names, '' for none.

  known: usual spellings of each. named: those that the command line names by `flag`, also beyond
  `known`. path: the table, for messages. needed: ours that must be found. ask: as of `source`. how:
  is told how each was found. rows: a sample, of whose values some can be no ids. Raises
  ConfigError.
  """
  free = [name for name in row if name not in named.values()]
  wanted = {ours: spellings for ours, spellings in known.items() if ours not in named}
  unlike = column_names.unlike_ids(rows, free) if rows else set()
  unfit = {'user': unlike, 'item': unlike}
  columns = column_names.find(free, wanted, unfit)
  for ours in ('user', 'item'):  # a number that each line has for itself is the line's
    theirs = columns.get(ours, '')
    if theirs and column_names.one_each(rows, theirs):
      others = column_names.find(free, wanted, {**unfit, ours: {*unfit[ours], *(
          name for name in free if column_names.one_each(rows, name))}})
      columns = others if others[ours] else columns
  how.update({ours: 'by its name' for ours, theirs in columns.items() if theirs})
  columns = dict.fromkeys(known, '') | columns
  for ours, theirs in named.items():
    parts = theirs.split('+') if ours == 'time' and theirs not in row else [theirs]
    for part in filter(None, parts):
      if part not in row:
        raise ConfigError(f'{path} has no column {part!r}; it has {", ".join(map(str, row))}')
    if ours not in known and known is INTERACTION_NAMES:
      raise ConfigError(f'{flag}: {ours!r} is none of {", ".join(known)}')
    columns[ours] = theirs
  for ours in needed:
    if not columns[ours]:
      headless = any(times.parse_number(str(name)) for name in row)
      options = [str(name) for name in row if name not in columns.values()]
      free = [name for name in options
              if name not in unlike and not column_names.one_each(rows, name)]
      likely = column_names.best(free, ours, (), 2, several=True
                                 ) if known is INTERACTION_NAMES else []
      options.sort(key=lambda name: name not in likely)
      columns[ours] = ask(
          f'{path}: which column is the {ours}? It has {", ".join(map(str, row))};', options,
          bool(likely), f'say {flag}={ours}=NAME, '
          + '--header=NAME,NAME,... if its first line is no names, ' * headless
          + 'or --sep where columns are separated by another sign')
      how[ours] = 'as answered'
  return columns


def ignored(row: dict, columns: dict[str, str]) -> list[str]:
  """The columns of `row` that nothing is taken from."""
  taken = {part for theirs in columns.values() for part in (theirs, *theirs.split('+'))}
  return [str(name) for name in row if name not in taken]
