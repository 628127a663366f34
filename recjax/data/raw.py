"""Raw files row by row: what cannot be used is handed on with its reason, never lost.

Readers yield (number, row, why): the line or row, a dict, and ''; or None and what is wrong.
"""
import ast
import collections
import csv
import datetime
import gzip
import io
import json
import math
import os
import pathlib
import re
import zlib

from recjax.data import files
from recjax.errors import ConfigError, DataError

LINE = 4 << 20    # bytes; a longer line is damage, or meant to fill the memory
SPAN = 100        # lines that a quoted text of a table may go over
TICK = 1 << 16    # lines between two reports of progress
SEPARATORS = {'.csv': ',', '.tsv': '\t', '.txt': '\t', '.inter': '\t', '.item': '\t', '.dat': '::'}
JSON_LINES = ('.jsonl', '.json', '.jsonline', '.ndjson')
_CONTROL = re.compile(r'[\x00-\x1f\x7f]')
_SURROGATE = re.compile(r'[\ud800-\udfff]')
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


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


def lines(path, tick=None):
  """Yields (number, bytes) of each line, None in place of one that is too long; as a stream."""
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as base:
      size = max(1, os.fstat(base.fileno()).st_size)
      opened = gzip.GzipFile(fileobj=base) if path.suffix == '.gz' else base
      with io.BufferedReader(opened, 1 << 20) as stream:
        for number, line in _numbered(stream, tick, lambda: base.tell() / size):
          if number % TICK == 0 and stream.tell() > files.plausible(base.tell()):
            raise DataError(f'{path} unpacks to far more than data do, at line {number}.')
          yield number, line
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist.') from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise DataError(f'{path} is damaged or cut off ({error}); fetch it again.') from error
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error


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
      row, why = _literal(text)
    if why:
      return None, why
  return (row, '') if isinstance(row, dict) else (None, 'not a JSON object')


def _literal(text):
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
    return 'not in the encoding of the file, or over 4 MB'
  return ''


def _header(fields, path):
  """Names of columns; RecBole's carry types, as in `user_id:token`. -> names, those of lists"""
  if isinstance(fields, str):
    raise DataError(f'{path}: its first line is {fields}; the names of the columns are expected.')
  parts = [field.strip().partition(':') for field in fields]
  names = [part[0] for part in parts]
  if len(set(names)) < len(names) or not all(names):
    raise DataError(f'{path}: the first line must name each column once, found {names!r:.120}; a '
                    'file without such a line needs --header=NAME,NAME,...')
  return names, {part[0] for part in parts if part[2].endswith('_seq')}


def _fields(path, sep, encoding, tick):
  """Yields (number, list of texts), or (number, reason)."""
  # A half surrogate marks what is no text; such a row is refused later, under its number.
  texts = ((number, '\udcff\n' if line is None else line.decode(encoding, 'surrogateescape'))
           for number, line in lines(path, tick))
  if len(sep) == 1:
    yield from _quoted(texts, sep, csv.QUOTE_NONE if kind(path) in ('.inter', '.item') else
                       csv.QUOTE_MINIMAL)
    return
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
    width = width or (0 if why else len(fields))
    if not why and len(taken) > 1 and len(fields) != width:
      why = 'an open quote'
    yield taken[0][0], why or fields
    if why and len(taken) > 1:
      waiting.extendleft(reversed(taken[1:]))
      reader = csv.reader(feed(), delimiter=sep, quoting=quoting, strict=True)


def _parquet(path, tick):
  import pyarrow
  from pyarrow import parquet
  try:
    file = parquet.ParquetFile(path)
    number, total = 0, max(1, file.metadata.num_rows)
    for batch in file.iter_batches(batch_size=8192):
      for row in batch.to_pylist():
        number += 1
        yield number, row, ''
      if tick:
        tick(number / total)
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist.') from error
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise DataError(f'{path} cannot be read as Parquet: {error}.') from error


def events(path, rows, user, item, time='', rating=''):
  """Rows as interactions, by the names of their columns; time and rating may be ''.

  Yields (path, number, (user, item, time, rating) or None, why).
  """
  for number, row, why in rows:
    event = None
    if row is not None:
      try:
        event = (as_id(row.get(user), user), as_id(row.get(item), item),
                 as_time(row.get(time)) if time else None,
                 as_rating(row.get(rating)) if rating else None)
      except ValueError as error:
        why = str(error)
    yield path, number, event, why


def goods(path, rows, item, shape):
  """Rows as items. shape: row -> columns of the catalogue; it may raise ValueError.

  Yields (path, number, (item id, columns) or None, why).
  """
  for number, row, why in rows:
    found = None
    if row is not None:
      try:
        columns = {k: v for k, v in shape(row).items() if v is not None and v == v}
        found = (as_id(row.get(item), item), columns)
      except ValueError as error:
        why = str(error)
    yield path, number, found, why


def as_id(value, name):
  """An id as text. Raises ValueError saying why it is none."""
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if not isinstance(value, str) or not value.strip():
    empty = value is None or isinstance(value, str)
    raise ValueError(f'{name} is {"empty" if empty else "neither a text nor a whole number"}')
  if not value.isprintable() and (_CONTROL.search(value) or _SURROGATE.search(value)):
    raise ValueError(f'{name} holds control signs or half a surrogate pair')
  return value.strip()


def as_time(value):
  """Whole numbers as they are; dates and hours as seconds since 1970, UTC where they name no zone.

  Raises ValueError saying why it is none.
  """
  if isinstance(value, str):
    value = value.strip()
    try:
      value = int(value) if value.lstrip('-').isdecimal() else float(value)
    except ValueError:
      value = _date(value)
  elif isinstance(value, datetime.datetime):
    value = _seconds(value)
  elif isinstance(value, datetime.date):
    value = _seconds(datetime.datetime(value.year, value.month, value.day))
  if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2 ** 62:
    raise ValueError('the time is neither a number nor a date like 2024-03-31')
  return math.floor(value)


def _date(text):
  try:
    return _seconds(datetime.datetime.fromisoformat(text))
  except (ValueError, OverflowError):
    return None


def _seconds(when):
  when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
  return (when - _EPOCH) // datetime.timedelta(seconds=1)


def as_rating(value):
  """A finite number. Raises ValueError."""
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
