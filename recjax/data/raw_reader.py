"""Raw files row by row: what cannot be used is handed on with its reason, never lost.

Readers yield (number, row, why): the line or row, a dict, and ''; or None and what is wrong.
"""
import ast
import codecs
import collections
import csv
import gzip
import io
import itertools
import json
import os
import pathlib
import re
import zlib

from recjax import file_io
from recjax.data import cleaning, times
from recjax.errors import ConfigError, DataError

LINE = 4 << 20    # bytes; a longer line is damage, or meant to fill the memory

SPAN = 100        # lines that a quoted text of a table may go over

TICK = 1 << 16    # lines between two reports of progress

SEPARATORS = {'.csv': ',', '.tsv': '\t', '.txt': '\t', '.inter': '\t', '.item': '\t', '.dat': '::'}

JSON_LINES = ('.jsonl', '.json', '.jsonline', '.ndjson')

INDEX = '(no name)'  # a first column without one: the numbers of rows, as pandas writes them

UNQUOTED = ('.inter', '.item')

_SURROGATE = re.compile(r'[\ud800-\udfff]')


def _refuse(name):
  raise ValueError(f'{name} is not a JSON number')


# Made once: json.loads makes a decoder for each call that has settings, which takes longer.
_JSON = json.JSONDecoder(parse_constant=_refuse)


def kind(path):
  """What a file's name says it holds. -> '.csv', '.jsonl', '.parquet', ..., without '.gz'"""
  path = pathlib.Path(path)
  ending = (path.with_suffix('') if path.suffix == '.gz' else path).suffix.lower()
  return '.jsonl' if ending in JSON_LINES else ending


def read(path, header=(), sep='', encoding='utf-8', literal=False, tick=None):
  """Reads a table of any kind. Yields (number, row, why).

  header: names of the columns, of a file that does not begin with them. sep: what parts columns,
  where the name's ending does not say it. literal: lines may be Python dicts, which are read
  without running anything. tick(share of bytes read). Raises DataError where the file itself
  cannot be read, ConfigError for an unknown kind.
  """
  ending = kind(path)
  if ending == '.parquet' and not sep:
    return _parquet(path, tick)
  if ending == '.jsonl' and not sep:
    return _json(path, literal, tick)
  sep = sep or SEPARATORS.get(ending)
  if not sep:
    known = ', '.join([*SEPARATORS, *JSON_LINES, '.parquet'])
    raise ConfigError(f'{path}: what kind of table is it? Known endings are {known}, the texts '
                      "also with .gz; for another, say what parts its columns: --sep=','")
  return _delimited(path, list(header), sep, encoding, tick)


def check_file(path, where):
  """Raises DataError saying where to get a published file that is not there."""
  if not pathlib.Path(path).is_file():
    raise DataError(f'{path} does not exist; fetch it from {where} and name its place.')


def place(path, number):
  """Where a row stands, for messages."""
  return f'{path} {({".parquet": "row", "": "entry"}).get(kind(path), "line")} {number}'


def narrow(encoding):
  """What lines of a file in this encoding are decoded with: UTF-16 has become UTF-8 by then."""
  return 'utf-8' if _wide(encoding) else encoding


def _wide(encoding):
  return encoding.lower().replace('_', '-').startswith(('utf-16', 'utf16', 'utf-32', 'utf32'))


def lines(path, tick=None, encoding=''):
  """Yields (number, bytes) of each line, None in place of one that is too long; as a stream.

  What is gzip is unpacked, whatever its name says, and UTF-16 becomes UTF-8. Raises DataError for
  a file that is no text, saying what it is.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as base:
      size = max(1, os.fstat(base.fileno()).st_size)
      opened = gzip.GzipFile(fileobj=base) if base.peek(2)[:2] == file_io.GZIP else base
      with io.BufferedReader(opened, 1 << 20) as unpacked:
        head = unpacked.peek(file_io.HEAD)[:file_io.HEAD]
        file_io.check_kind(head, path)
        wide = encoding if _wide(encoding) else file_io.wide_encoding(head)
        stream = io.BufferedReader(_Recoded(unpacked, wide, path)) if wide else unpacked
        for number, line in _numbered(stream, tick, lambda: base.tell() / size):
          if number % TICK == 0 and unpacked.tell() > file_io.plausible(base.tell()):
            raise DataError(f'{path} unpacks to far more than data do, at line {number}.')
          yield number, line
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist.') from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise DataError(f'{path} is damaged or cut off ({error}); fetch it again.') from error
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error


class _Recoded(io.RawIOBase):
  """A stream of bytes in UTF-16 or UTF-32, as UTF-8."""

  def __init__(self, stream, encoding, path):
    self.stream, self.path, self.rest = stream, path, b''
    self.decoder = codecs.getincrementaldecoder(encoding)()

  def readable(self):
    """As io asks."""
    return True

  def readinto(self, buffer):
    """As io asks."""
    while not self.rest:
      read = self.stream.read(1 << 16)
      try:
        self.rest = self.decoder.decode(read, not read).encode('utf-8')
      except UnicodeError as error:
        raise DataError(f'{self.path} looks like UTF-16 and is not ({error}); save it as UTF-8.'
                        ) from error
      if not read:
        break
    some, self.rest = self.rest[:len(buffer)], self.rest[len(buffer):]
    buffer[:len(some)] = some
    return len(some)


def _numbered(stream, tick, share):
  number = 0
  while line := stream.readline(LINE + 1):
    number += 1
    if number == 1:
      line = line.removeprefix(b'\xef\xbb\xbf')
    if tick and number % TICK == 0:
      tick(share())
    if len(line) > LINE:
      while line and not line.endswith(b'\n'):
        line = stream.readline(LINE + 1)
      line = None
    yield number, line


def _json(path, literal, tick):
  for number, line in lines(path, tick):
    if line is None:
      yield number, None, 'a line over 4 MB'
      continue
    if not line.strip():
      continue
    if number == 1 and (what := file_io.whole_json(line)):
      raise DataError(f'{path} is {what}; JSON Lines are expected, one object a line. This makes '
                      f'them: jq -c "{".[]" if "array" in what else "."}" FILE > FILE.jsonl')
    row, why = _object(line, literal)
    yield number, row, why


def _object(line, literal):
  """One line as a dict. -> (row, '') or (None, reason)"""
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError:
    return None, 'not UTF-8'
  try:
    row = _JSON.decode(text)
  except (ValueError, RecursionError):
    row, why = None, 'not JSON'
    if literal:
      row, why = _literal(text)  # and what Python writes as JSON: NaN
    if why:
      return None, why
  return (row, '') if isinstance(row, dict) else (None, 'not a JSON object')


def _literal(text):
  try:
    return json.loads(text), ''
  except (ValueError, RecursionError):
    pass
  try:
    return ast.literal_eval(text.strip()), ''
  except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
    return None, 'neither JSON nor a Python dict'


def _delimited(path, header, sep, encoding, tick):
  names, lists = [], set()
  for number, fields in _fields(path, sep, encoding, tick):
    if fields == [] or fields == ['']:
      continue
    if not names:
      names, lists = _header(header or fields, path)
      if not header:
        continue
    why = fields if isinstance(fields, str) else _unfit(fields, names)
    if why:
      yield number, None, why
      continue
    row = dict(zip(names, fields))
    for name in lists:
      row[name] = row[name].split()
    yield number, row, ''


def _unfit(fields, names):
  if len(fields) != len(names):
    return f'{len(fields)} columns where the header has {len(names)}'
  if any(not f.isascii() and _SURROGATE.search(f) for f in fields):
    return 'not in the encoding of the file (name it: --encoding=cp1252, cp1251, …), or over 4 MB'
  return ''


def _header(fields, path):
  """Names of columns; RecBole's carry types, as in `user_id:token`. -> names, those of lists"""
  if isinstance(fields, str):
    raise DataError(f'{path}: its first line is {fields}; the names of the columns are expected.')
  parts = [field.strip().partition(':') for field in fields]
  names = [part[0] for part in parts]
  if len(names) > 1 and not names[0] and INDEX not in names:
    names[0] = INDEX
  if len(set(names)) < len(names) or not all(names):
    raise DataError(f'{path}: the first line must name each column once, found {names!r:.120}; a '
                    'file without such a line needs --header=NAME,NAME,...')
  return names, {part[0] for part in parts if part[2].endswith('_seq')}


def _fields(path, sep, encoding, tick):
  """Yields (number, list of texts), or (number, reason)."""
  # A half surrogate marks what is no text; such a row is refused later, under its number.
  narrowed = narrow(encoding)
  texts = ((number, '\udcff\n' if line is None else line.decode(narrowed, 'surrogateescape'))
           for number, line in lines(path, tick, encoding))
  if sep == ' ':
    yield from ((number, text.split()) for number, text in texts)
  elif len(sep) == 1:
    # In tab-separated files quotes are text: tabs and line breaks cannot stand inside anyway.
    literal = sep == '\t' or kind(path) in UNQUOTED
    yield from _quoted(texts, sep, csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL)
  else:
    for number, text in texts:
      text = text.rstrip('\r\n')
      yield number, text.split(sep) if text else []


def _quoted(texts, sep, quoting):
  """Rows whose texts may be quoted and hold line breaks. texts: (number, text) of each line.

  Where a row over several lines proves wrong, only its first line is, and the next ones count anew.
  """
  waiting, taken, width = collections.deque(), [], 0

  def feed():
    while line := waiting.popleft() if waiting else next(texts, None):
      taken.append(line)
      yield line[1]
      if len(taken) > SPAN:
        yield '"\udcff\n'  # closes the quote and is no separator, so the reader gives up

  reader = csv.reader(feed(), delimiter=sep, quoting=quoting, strict=True)
  while True:
    taken.clear()
    why = ''
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      why = 'an open quote' if len(taken) > 1 else f'not a row of a table ({error})'
    if not why and len(taken) > 1 and width and len(fields) != width:
      why = 'an open quote'
    if why and (escaped := _escaped(taken[0][1], sep, width)):
      why, fields = '', escaped
      waiting.extendleft(reversed(taken[1:]))
      reader = csv.reader(feed(), delimiter=sep, quoting=quoting, strict=True)
      del taken[1:]
    width = width or (0 if why else len(fields))
    yield taken[0][0], why or fields
    if why and len(taken) > 1:
      waiting.extendleft(reversed(taken[1:]))
      reader = csv.reader(feed(), delimiter=sep, quoting=quoting, strict=True)


def _escaped(line, sep, width):
  """A line whose quotes are written as \\" in quoted texts. -> fields, or None"""
  if '\\"' not in line:
    return None
  try:
    fields = next(csv.reader([line], delimiter=sep, escapechar='\\', strict=True))
  except (csv.Error, StopIteration):
    return None
  return fields if not width or len(fields) == width else None


def _parquet(path, tick):
  import pyarrow
  from pyarrow import parquet
  try:
    file = parquet.ParquetFile(path)
    number, total = 0, max(1, file.metadata.num_rows)
    for batch in file.iter_batches(batch_size=8192):
      for row in _nanoseconds(batch).to_pylist():
        number += 1
        yield number, row, ''
      if tick:
        tick(number / total)
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist.') from error
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise DataError(f'{path} cannot be read as Parquet: {error}.') from error


def _nanoseconds(batch):
  """A batch whose times in nanoseconds, which Python has no type for, are texts."""
  import pyarrow as pa
  for at, field in enumerate(batch.schema):
    if pa.types.is_timestamp(field.type) and field.type.unit == 'ns':
      batch = batch.set_column(at, field.name, batch.column(at).cast(pa.string()))
  return batch


def events(path, rows, user, item, time='', rating='', clock=times.PLAIN, ids=None):
  """Rows as interactions, by the names of their columns; time and rating may be ''.

  clock: reads the times. ids: {'told': Counter, 'whole': names of columns whose 17.0 is 17,
  'exact': whether blanks around an id belong to it}, as in `cleaning.identity`.
  Yields (path, number, (user, item, time, rating) or None, why).
  """
  ids = ids or {}
  told, whole, exact = ids.get('told'), ids.get('whole', ()), ids.get('exact', False)
  if told is None:
    told = collections.Counter()
  for number, row, why in rows:
    event = None
    if row is not None:
      try:
        event = (cleaning.identity(row.get(user), user, told, user in whole, exact),
                 cleaning.identity(row.get(item), item, told, item in whole),
                 clock.read(row.get(time)) if time else None,
                 as_rating(row.get(rating)) if rating else None)
      except ValueError as error:
        why = str(error)
    yield path, number, event, why


def goods(path, rows, item, shape, told=None, decimal='', whole=False):
  """Rows as items. shape: row -> columns of the catalogue; it may raise ValueError.

  told, decimal: as in `cleaning.item`, through which all columns go. whole: as in
  `cleaning.identity`. Yields (path, number, (item id, columns) or None, why).
  """
  told = told or cleaning.new_told()
  for number, row, why in rows:
    found = None
    if row is not None:
      try:
        found = (cleaning.identity(row.get(item), item, told['ids'], whole),
                 cleaning.item(shape(row), told, decimal))
      except ValueError as error:
        why = str(error)
    yield path, number, found, why


def as_rating(value):
  """A finite number, its decimal sign a point or a comma. Raises ValueError."""
  if isinstance(value, str) and value.count(',') == 1 and '.' not in value:
    value = value.replace(',', '.')
  try:
    if not isinstance(value, bool) and abs(number := float(value)) < 3e38:
      return number
  except (TypeError, ValueError, OverflowError):
    pass
  raise ValueError('the rating is no number')


def as_text(value):
  """A text on one line, blanks collapsed; lists are joined, numbers written. -> str or None"""
  if isinstance(value, list | tuple):
    value = ' '.join(str(v) for v in value if v is not None)
  if value is None or value != value:
    return None
  text = ' '.join(_SURROGATE.sub('', str(value)).split())
  return text or None


def as_list(value, sep=''):
  """A list of texts, of a list (nested ones laid flat) or of a text parted by `sep`. -> or None"""
  if isinstance(value, str):
    value = value.split(sep) if sep else [value]
  if not isinstance(value, list | tuple):
    return None
  flat = [t for v in value for t in (as_list(v) or [] if isinstance(v, list | tuple)
                                     else [as_text(v)])]
  return list(dict.fromkeys(t for t in flat if t)) or None

LINES = 200

CANDIDATES = (',', ';', '\t', '|', '::', ' ')

NAMES = {'\t': 'a tab', ' ': 'blanks', ',': 'a comma', ';': 'a semicolon'}


def separator(path, encoding='utf-8', named=False):
  """What parts columns. -> (sign, '' or how it was told); ('', '') for Parquet and JSON Lines.

  The sign that the file's ending promises, if it parts the lines; else the one that parts most of
  them alike. named: whether the columns are named elsewhere, so that one column is no fault.
  Raises ConfigError where several do or none does.
  """
  ending = kind(path)
  if ending in ('.parquet', '.jsonl'):
    return '', ''
  usual = SEPARATORS.get(ending, '')
  some = itertools.islice(lines(path, encoding=encoding), LINES)
  some = [text for _, line in some if line and (
      text := line.decode(narrow(encoding), 'replace').rstrip('\r\n'))]
  if not some:
    raise DataError(f'{path} holds no row that can be read.')
  shares = {sign: parted(some, sign) for sign in CANDIDATES}
  if usual and (shares[usual] > .5 or named):
    return usual, ''
  good = [sign for sign in CANDIDATES if shares[sign] == max(shares.values()) > .5]
  if len(good) > 1 and ' ' in good:
    good.remove(' ')  # blanks inside texts
  if len(good) == 1:
    return good[0], f'columns are parted by {NAMES.get(good[0], good[0])}'
  if usual:
    return usual, ''
  known = ', '.join([*SEPARATORS, *JSON_LINES, '.parquet'])
  raise ConfigError(f'{path}: what kind of table is it? Known endings are {known}, the texts '
                    "also with .gz; for another, say what parts its columns: --sep=','")


def parted(lines, sign):
  """The share of lines that a sign parts into as many columns, at least 2, as the first one."""
  if sign == ' ':
    widths = [len(line.split()) for line in lines]
  elif len(sign) > 1 or sign == '\t':
    widths = [len(line.split(sign)) for line in lines]
  else:
    widths = []
    for line in lines:
      try:
        widths.append(len(next(csv.reader([line], delimiter=sign))))
      except (csv.Error, StopIteration):
        widths.append(0)
  return widths.count(widths[0]) / len(widths) if widths[0] > 1 else 0.
