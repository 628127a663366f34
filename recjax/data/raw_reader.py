"""Raw files row by row: what cannot be used is handed on with its reason, never lost.

Readers yield rows (number, row, reason): the line or row, a dict, and ''; or None and what is
wrong.
"""
import ast
import codecs
import collections
import csv
import dataclasses
import gzip
import io
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from recjax import file_io
from recjax.data import cleaning, duckdb_database, times
from recjax.errors import ConfigError, DataError

Path = str | pathlib.Path
Row = tuple[int, dict | None, str]
Tick = Callable[[float], None]  # told now and then which share of a file is read
Interaction = tuple[str, str, int | None, float | None]  # user, item, time, rating
InteractionRow = tuple[Path, int, Interaction | None, str]
ItemRow = tuple[Path, int, tuple[str, dict] | None, str]

MAX_LINE_BYTES = 4 << 20  # a longer line is damage, or meant to fill the memory
MAX_QUOTED_LINES = 100    # that a quoted text of a table may go over
TICK_LINES = 1 << 16      # between two reports of progress
SEPARATORS = {'.csv': ',', '.tsv': '\t', '.txt': '\t', '.inter': '\t', '.item': '\t', '.dat': '::'}
JSON_LINES = ('.jsonl', '.json', '.jsonline', '.ndjson')
ROWS = ('.parquet', '.xlsx', '.xls', '.xlsb', '.xlsm', '.ods', '.sqlite', '.sqlite3', '.db')
ARRAY = '[]'  # behind the name of a file that is one JSON array
PACKED = ('.gz', '.zst')
UNQUOTED = ('.inter', '.item')
INDEX = '(no name)'  # a first column without one: the numbers of rows, as pandas writes them
_SURROGATE = re.compile(r'[\ud800-\udfff]')


@dataclasses.dataclass(frozen=True)
class Source:
  """Raw rows of one data set; both iterables are read once.

  interactions: their times are all None or none. items: in the order of the catalog. notes:
  {'interactions': {...}, 'items': {...}}, what the reading of either tells, complete when all its
  rows are read: 'time' (a TimeParser's kind, per_second and factor among it), 'ids', 'cleaned', ….
  name: of the data set. preview: gives lines that say how the source was understood, before its
  rows are read.
  """
  name: str
  interactions: Iterable[InteractionRow]
  items: Iterable[ItemRow] = ()
  notes: dict[str, dict] = dataclasses.field(default_factory=dict)
  preview: Callable[[], list[str]] | None = None


def new_notes(column: str, kind: str) -> dict[str, dict]:
  """What a published set tells before it is read.

  column: of its times. kind: how these are written, as in `times.DESCRIPTIONS`.
  """
  time = {'column': column, 'kind': kind, 'per_second': times.UNITS.get(kind, 1), 'factor': 1}
  return {'interactions': {'ids': collections.Counter(), 'time': time},
          'items': cleaning.new_counts()}


def _refuse(name: str) -> None:
  raise ValueError(f'{name} is not a JSON number')


# Made once: json.loads makes a decoder for each call that has settings, which takes longer.
_JSON = json.JSONDecoder(parse_constant=_refuse)


def file_kind(path: Path) -> str:
  """The ending of `path` without '.gz' or '.zst': '.csv', …, or '.jsonl' for all JSON."""
  path = pathlib.Path(path)
  ending = (path.with_suffix('') if path.suffix in PACKED else path).suffix.lower()
  return '.jsonl' if ending in JSON_LINES else ending


def read(path: Path, header: Collection[str] = (), sep: str = '', encoding: str = 'utf-8',
         literal: bool = False, tick: Tick | None = None, skip: int = 0,
         kind: str = '') -> Iterator[Row]:
  """Reads the table of any kind at `path`.

  header: names of the columns, of a file that does not begin with them. sep: what parts columns,
  where the name's ending does not say it. encoding: of texts; UTF-16 is found without it. literal:
  lines may be Python dicts, which are read without running anything. tick: is told how far it is.
  skip: lines above the names of the columns. kind: the ending that counts, that of `path` without
  it; '.json' + ARRAY is a JSON array. Raises DataError where the file itself cannot be read,
  ConfigError for an unknown kind.
  """
  ending = kind or file_kind(path)
  if ending == '.json' + ARRAY:
    return _json_array(path)
  if ending == '.parquet' and not sep:
    return _parquet(path, tick)
  if ending == '.jsonl' and not sep:
    return _json(path, literal, tick)
  sep = sep or SEPARATORS.get(ending, '')
  if not sep:
    raise unknown_kind(path)
  return _delimited(path, list(header), sep, encoding, tick, skip)


def unknown_kind(path: Path) -> ConfigError:
  """The error that asks what kind of table stands at `path`."""
  known = ', '.join([*SEPARATORS, *JSON_LINES, '.parquet'])
  return ConfigError(f'{path}: what kind of table is it? Known endings are {known}, the texts '
                     "also with .gz; for another, say what parts its columns: --sep=','")


def require_file(path: Path, where: str) -> None:
  """Raises DataError, naming `where` to get it, for a published file that is not at `path`."""
  if not pathlib.Path(path).is_file():
    raise DataError(f'{path} does not exist; fetch it from {where} and name its place.')


def row_place(path: Path, number: int) -> str:
  """Where the row numbered `number` of the table at `path` stands, for messages."""
  if str(path).endswith(ARRAY):
    return f'{str(path).removesuffix(ARRAY)} entry {number}'
  kind = file_kind(path)
  return f'{path} {"row" if kind in ROWS else "line" if kind else "entry"} {number}'


def byte_encoding(encoding: str) -> str:
  """What lines of a file in this `encoding` are decoded with: UTF-16 has become UTF-8 by then."""
  return 'utf-8' if _is_wide(encoding) else encoding


def _is_wide(encoding: str) -> bool:
  return encoding.lower().replace('_', '-').startswith(('utf-16', 'utf16', 'utf-32', 'utf32'))


def read_lines(path: Path, tick: Tick | None = None,
               encoding: str = '') -> Iterator[tuple[int, bytes | None]]:
  """Yields (number, bytes) of each line at `path`, None in place of one that is too long.

  tick: is told how far it is. What is gzip is unpacked, whatever its name says, and UTF-16 becomes
  UTF-8, where `encoding` names it or the first bytes tell. Raises DataError for a file that is no
  text, saying what it is.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as base:
      size = max(1, os.fstat(base.fileno()).st_size)
      opened = _unpacking(base)
      with io.BufferedReader(opened, 1 << 20) as unpacked:
        head = unpacked.peek(file_io.HEAD)[:file_io.HEAD]
        file_io.check_kind(head, path)
        wide = encoding if _is_wide(encoding) else file_io.wide_encoding(head)
        recoded: Any = _Recoded(unpacked, wide, path) if wide else None
        stream: Any = io.BufferedReader(recoded) if wide else unpacked
        taken = 0
        for number, line in _numbered(stream, tick, lambda: base.tell() / size):
          taken += len(line or b'')
          if number % TICK_LINES == 0 and taken > file_io.plausible(base.tell()):
            raise DataError(f'{path} unpacks to far more than data do, at line {number}.')
          yield number, line
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist.') from error
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise DataError(f'{path} is damaged or cut off ({error}); fetch it again.') from error
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error


def _unpacking(base: Any) -> Any:
  """The stream `base`, unpacked where its first bytes are those of gzip or zstd."""
  head = base.peek(4)[:4]
  if head[:2] == file_io.GZIP:
    return gzip.GzipFile(fileobj=base)
  if head != file_io.ZSTD:
    return base
  import pyarrow
  return pyarrow.CompressedInputStream(base, 'zstd')


class _Recoded(io.RawIOBase):
  """A stream of bytes in UTF-16 or UTF-32, as UTF-8."""

  def __init__(self, stream: Any, encoding: str, path: Path):
    self.stream, self.path, self.rest = stream, path, b''
    self.decoder = codecs.getincrementaldecoder(encoding)()

  def readable(self) -> bool:
    """As io asks."""
    return True

  def readinto(self, buffer: bytearray) -> int:
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
    part, self.rest = self.rest[:len(buffer)], self.rest[len(buffer):]
    buffer[:len(part)] = part
    return len(part)


def _numbered(stream: io.BufferedReader, tick: Tick | None,
              share: Callable[[], float]) -> Iterator[tuple[int, bytes | None]]:
  number = 0
  while line := stream.readline(MAX_LINE_BYTES + 1):
    number += 1
    if number == 1:
      line = line.removeprefix(b'\xef\xbb\xbf')
    if tick and number % TICK_LINES == 0:
      tick(share())
    if len(line) > MAX_LINE_BYTES:
      while line and not line.endswith(b'\n'):
        line = stream.readline(MAX_LINE_BYTES + 1)
      line = None
    yield number, line


def _json(path: Path, literal: bool, tick: Tick | None) -> Iterator[Row]:
  for number, line in read_lines(path, tick):
    if line is None:
      yield number, None, 'a line over 4 MB'
      continue
    if not line.strip():
      continue
    if number == 1 and (kind := file_io.whole_json(line)):
      raise DataError(f'{path} is {kind}; JSON Lines are expected, one object a line. This makes '
                      f'them: jq -c "{".[]" if "array" in kind else "."}" FILE > FILE.jsonl')
    row, reason = _object(line, literal)
    yield number, row, reason


def _json_array(path: Path) -> Iterator[Row]:
  last = b''
  for _, line in read_lines(path):  # packed or not
    last = line.strip() or last if line is not None else b']'
  if not last.endswith(b']'):
    raise DataError(f'{path} is a JSON array that is cut off; fetch it again.')
  for number, text in enumerate(duckdb_database.json_objects(pathlib.Path(path)), 1):
    row, reason = _object(text.encode('utf-8', 'surrogatepass'), False)
    yield number, row, reason


def _object(line: bytes, literal: bool) -> tuple[dict | None, str]:
  """One line as a dict, or None and the reason why it is none."""
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError:
    return None, 'not UTF-8'
  try:
    row = _JSON.decode(text)
  except (ValueError, RecursionError):
    row, reason = None, 'not JSON'
    if literal:
      row, reason = _literal(text)  # and what Python writes as JSON: NaN
    if reason:
      return None, reason
  return (row, '') if isinstance(row, dict) else (None, 'not a JSON object')


def _literal(text: str) -> tuple[object, str]:
  try:
    return json.loads(text), ''
  except (ValueError, RecursionError):
    pass
  try:
    return ast.literal_eval(text.strip()), ''
  except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
    return None, 'neither JSON nor a Python dict'


def _delimited(path: Path, header: list[str], sep: str, encoding: str,
               tick: Tick | None, skip: int) -> Iterator[Row]:
  names, lists = [], set()
  for number, fields in _fields(path, sep, encoding, tick, skip):
    if fields == [] or fields == ['']:
      continue
    if not names:
      names, lists = _header(header or fields, path)
      if not header:
        continue
    reason = fields if isinstance(fields, str) else _unfit(fields, names)
    if reason:
      yield number, None, reason
      continue
    row: dict[str, Any] = dict(zip(names, fields))
    for name in lists:
      row[name] = row[name].split()
    yield number, row, ''


def _unfit(fields: list[str], names: list[str]) -> str:
  if len(fields) != len(names):
    return f'{len(fields)} columns where the header has {len(names)}'
  if any(not f.isascii() and _SURROGATE.search(f) for f in fields):
    return 'not in the encoding of the file (name it: --encoding=cp1252, cp1251, …), or over 4 MB'
  return ''


def _header(fields: list[str] | str, path: Path) -> tuple[list[str], set[str]]:
  """Names of columns, and those that hold lists; RecBole's carry types, as in `user_id:token`."""
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


def _fields(path: Path, sep: str, encoding: str, tick: Tick | None,
            skip: int) -> Iterator[tuple[int, list[str] | str]]:
  """Yields the number of each row with its texts, or with the reason why it has none."""
  # A half surrogate marks what is no text; such a row is refused later, under its number.
  decode = byte_encoding(encoding)
  numbered_texts = (
      (number, '\udcff\n' if line is None else line.decode(decode, 'surrogateescape'))
      for number, line in read_lines(path, tick, encoding) if number > skip)
  if sep == ' ':
    yield from ((number, text.split()) for number, text in numbered_texts)
  elif len(sep) == 1:
    # In tab-separated files quotes are text: tabs and line breaks cannot stand inside anyway.
    literal = sep == '\t' or file_kind(path) in UNQUOTED
    yield from _quoted(numbered_texts, sep, literal)
  else:
    for number, text in numbered_texts:
      text = text.rstrip('\r\n')
      yield number, text.split(sep) if text else []


def _quoted(numbered_texts: Iterator[tuple[int, str]], sep: str,
            literal: bool) -> Iterator[tuple[int, list[str] | str]]:
  """Rows whose texts may be quoted and hold line breaks; literal: quotes are text.

  Where a row over several lines proves wrong, only its first line is, and the next ones count anew.
  """
  pending, taken_lines, width = collections.deque(), [], 0

  def feed() -> Iterator[str]:
    while line := pending.popleft() if pending else next(numbered_texts, None):
      taken_lines.append(line)
      yield line[1]
      if len(taken_lines) > MAX_QUOTED_LINES:
        yield '"\udcff\n'  # closes the quote and is no separator, so the reader gives up

  def new_reader() -> Iterator[list[str]]:
    return csv.reader(feed(), delimiter=sep, strict=True,
                      quoting=csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL)

  reader = new_reader()
  while True:
    taken_lines.clear()
    reason = ''
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      reason = 'an open quote' if len(taken_lines) > 1 else f'not a row of a table ({error})'
    if not reason and len(taken_lines) > 1 and width and len(fields) != width:
      reason = 'an open quote'
    if reason and (escaped := _escaped(taken_lines[0][1], sep, width)):
      reason, fields = '', escaped
      pending.extendleft(reversed(taken_lines[1:]))
      reader = new_reader()
      del taken_lines[1:]
    width = width or (0 if reason else len(fields))
    yield taken_lines[0][0], reason or fields
    if reason and len(taken_lines) > 1:
      pending.extendleft(reversed(taken_lines[1:]))
      reader = new_reader()


def _escaped(line: str, sep: str, width: int) -> list[str] | None:
  """The fields of a line whose quotes are written as \\" in quoted texts; None for another one."""
  if '\\"' not in line:
    return None
  try:
    fields = next(csv.reader([line], delimiter=sep, escapechar='\\', strict=True))
  except (csv.Error, StopIteration):
    return None
  return fields if not width or len(fields) == width else None


def _parquet(path: Path, tick: Tick | None) -> Iterator[Row]:
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
  for place, field in enumerate(batch.schema):
    if pa.types.is_timestamp(field.type) and field.type.unit == 'ns':
      batch = batch.set_column(place, field.name, batch.column(place).cast(pa.string()))
  return batch


def to_interactions(path: Path, rows: Iterable[Row], user: str, item: str, time: str = '',
                    rating: str = '', parser: times.TimeParser = times.PLAIN,
                    id_counts: collections.Counter | None = None, whole_ids: Collection[str] = (),
                    exact_users: bool = False) -> Iterator[InteractionRow]:
  """Yields the rows of the file at `path` as interactions.

  user, item, time, rating: names of the columns; the last two may be ''. parser: reads the times.
  id_counts: counts what was done to ids. whole_ids: columns whose 17.0 is 17. exact_users: blanks
  around the id of a user belong to it. The last three are as in `cleaning.clean_id`.
  """
  id_counts = collections.Counter() if id_counts is None else id_counts
  for number, row, reason in rows:
    interaction = None
    if row is not None:
      try:
        interaction = (
            cleaning.clean_id(row.get(user), user, id_counts, user in whole_ids, exact_users),
            cleaning.clean_id(row.get(item), item, id_counts, item in whole_ids),
            parser.read(row.get(time)) if time else None,
            as_rating(row.get(rating)) if rating else None)
      except ValueError as error:
        reason = str(error)
    yield path, number, interaction, reason


def to_items(path: Path, rows: Iterable[Row], item: str, item_columns: Callable[[dict], dict],
             counts: dict | None = None, decimal: str = '',
             whole: bool = False) -> Iterator[ItemRow]:
  """Yields the rows of the file at `path` as items.

  item: the column of their ids. item_columns: makes columns of the catalog out of a row. counts,
  decimal: as in `cleaning.clean_item`, through which all columns go. whole: as in
  `cleaning.clean_id`.
  """
  counts = counts or cleaning.new_counts()
  for number, row, reason in rows:
    cleaned = None
    if row is not None:
      try:
        cleaned = (cleaning.clean_id(row.get(item), item, counts['ids'], whole),
                   cleaning.clean_item(item_columns(row), counts, decimal))
      except ValueError as error:
        reason = str(error)
    yield path, number, cleaned, reason


def as_rating(value: Any) -> float:
  """A finite number, its decimal sign a point or a comma. Raises ValueError for another `value`."""
  if isinstance(value, str) and value.count(',') == 1 and '.' not in value:
    value = value.replace(',', '.')
  try:
    if not isinstance(value, bool) and abs(number := float(value)) < 3e38:
      return number
  except (TypeError, ValueError, OverflowError):
    pass
  raise ValueError('the rating is no number')


def as_text(value: object) -> str | None:
  """A value as text on one line, blanks collapsed; lists are joined. None where nothing is left."""
  if isinstance(value, list | tuple):
    value = ' '.join(str(v) for v in value if v is not None)
  if value is None or value != value:
    return None
  text = ' '.join(_SURROGATE.sub('', str(value)).split())
  return text or None


def as_list(value: object, sep: str = '') -> list[str] | None:
  """The texts of the list `value`, nested ones laid flat, or of a text split at `sep`; or None."""
  if isinstance(value, str):
    value = value.split(sep) if sep else [value]
  if not isinstance(value, list | tuple):
    return None
  flat = [t for v in value for t in (as_list(v) or [] if isinstance(v, list | tuple)
                                     else [as_text(v)])]
  return list(dict.fromkeys(t for t in flat if t)) or None
