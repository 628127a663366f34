"""Strict reading of JSON, JSON Lines and Parquet, and writing of whole files or nothing."""
import contextlib
import gzip
import io
import json
import os
import pathlib
import shutil
import socket
import zlib

from recjax.errors import DataError, WorkdirError

SUFFIXES = ('.jsonl', '.jsonl.gz', '.parquet')

GZIP = b'\x1f\x8b'

HEAD = 512  # bytes by which a file is told to be of another kind

KINDS = (
    (b'version https://git-lfs', 'a pointer of Git LFS, not the data; fetch them with: git lfs '
     'pull'),
    (b'PK\x03\x04', 'a zip archive, or a workbook of a spreadsheet; unpack it, or save it as CSV'),
    (b'PAR1', 'a Parquet file; give it a name that ends in .parquet'),
    (b'BZh', 'packed by bzip2; unpack it'), (b'\xfd7zXZ', 'packed by xz; unpack it'),
    (b'\x28\xb5\x2f\xfd', 'packed by zstd; unpack it'), (b'7z\xbc\xaf', 'a 7z archive; unpack it'),
    (b'SQLite format 3', 'an SQLite database; export the table as CSV'),
    (b'ARROW1', 'an Arrow file; save it as Parquet'), (b'%PDF', 'a PDF'),
    (b'\xd0\xcf\x11\xe0', 'a workbook of a spreadsheet; save it as CSV'),
    (b'\x80\x03', 'a pickle'), (b'\x80\x04', 'a pickle'), (b'\x80\x05', 'a pickle'))

_PAGES = (b'<!doctype html', b'<html', b'<?xml')


def find_table(folder, stem):
  """The one file `stem`.jsonl, .jsonl.gz or .parquet in `folder`, or None.

  Raises DataError if there are several, since nothing says which one is meant.
  """
  found = [p for p in (pathlib.Path(folder) / f'{stem}{s}' for s in SUFFIXES) if p.is_file()]
  if len(found) > 1:
    names = ' and '.join(p.name for p in found)
    raise DataError(f'{folder} holds {names}; keep one of them, so that it is clear which counts.')
  return found[0] if found else None


def read_rows(path):
  """Yields (place, row): where each object stands, for error messages, and the object itself.

  Lines end in LF or CRLF; a byte order mark and blank lines are tolerated. Raises DataError with
  file and line for anything that is not one UTF-8 JSON object a line.
  """
  path = pathlib.Path(path)
  if path.suffix == '.parquet':
    yield from _parquet_rows(path)
    return
  for number, line in enumerate(read_bytes(path).split(b'\n'), start=1):
    if not line.strip():
      continue
    place = f'{path} line {number}'
    row = parse_json(line, path, number)
    if not isinstance(row, dict):
      raise DataError(f'{place}: a JSON object is expected, found {_kind(row)}.')
    yield place, row


def read_bytes(path):
  """The file's bytes, unpacked if they are gzip's, and without a UTF-8 byte order mark."""
  path = pathlib.Path(path)
  try:
    data = path.read_bytes()
    if data[:2] == GZIP:
      data = unpack(data, path)
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist.') from error
  except (OSError, EOFError, zlib.error) as error:
    raise DataError(f'{path} cannot be read: {error}.') from error
  check_kind(data[:HEAD], path)
  return data.removeprefix(b'\xef\xbb\xbf')


def check_kind(head, path):
  """Raises DataError, saying what it is, for a file whose first bytes are not those of text."""
  for magic, what in KINDS:
    if head.startswith(magic):
      raise DataError(f'{path} is {what}.')
  if b'\r' in head[:-1] and b'\n' not in head and not wide_encoding(head):
    raise DataError(f'{path} ends its lines with CR alone, as old Macs did; save it with LF.')
  if head.lstrip(b'\xef\xbb\xbf \r\n\t')[:20].lower().startswith(_PAGES):
    raise DataError(f'{path} is a web page or XML, not the data; its download went wrong, or asks '
                    'for a log-in.')


def wide_encoding(head):
  """'utf-16', 'utf-16-le', … where a file begins so, by its mark or by its zeros; else ''."""
  if head.startswith((b'\xff\xfe\0\0', b'\0\0\xfe\xff')):
    return 'utf-32'
  if head.startswith((b'\xff\xfe', b'\xfe\xff')) and len(head) > 3 and 0 in head[2:4]:
    return 'utf-16'
  even, odd = head[0:64:2], head[1:64:2]
  if len(odd) > 3 and even.count(0) == 0 and odd.count(0) > .9 * len(odd):
    return 'utf-16-le'
  return 'utf-16-be' if len(odd) > 3 and odd.count(0) == 0 and even.count(0) > .9 * len(
      even) else ''


def whole_json(line):
  """What a first line tells of a file that is one JSON value over many lines; '' for others."""
  line = line.strip()
  if line == b'[' or line.startswith((b'[{', b'[[', b'[ {')):
    return 'one JSON array'
  return 'one JSON object over many lines' if line == b'{' else ''


def unpack(data, path):
  """gzip's bytes unpacked. Raises DataError for what unpacks to far more than data do."""
  most = plausible(len(data))
  with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
    found = stream.read(most + 1)
  if len(found) > most:
    raise DataError(f'{path} unpacks to more than {most / 1e6:,.0f} MB, far more than data do.')
  return found


def plausible(packed):
  """What so many packed bytes may unpack to: 200 times as many, or 256 MB if that is more."""
  return max(256 << 20, 200 * packed)


def read_json(path):
  """The value of a whole JSON file. Raises DataError with line and column."""
  return parse_json(read_bytes(path), path)


def parse_json(data, path, line=None):
  """Parses bytes as strict JSON: no NaN, no key given twice, no half surrogate pairs.

  `line` says which line of `path` the bytes are, if not all of it. Raises DataError.
  """
  def complain(what, at_line, column):
    where = f'line {line or at_line}, column {column}'
    return DataError(f'{path} {where}: {what}.')

  try:
    text = data.decode('utf-8')
  except UnicodeDecodeError as error:
    row = data.count(b'\n', 0, error.start) + 1
    byte = error.start - data.rfind(b'\n', 0, error.start)
    raise complain('not UTF-8; save the file as UTF-8', row, byte) from error
  try:
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    if '\\ud' in text or '\\uD' in text:
      json.dumps(value, ensure_ascii=False).encode('utf-8')
  except json.JSONDecodeError as error:
    raise complain(f'not valid JSON ({error.msg})', error.lineno, error.colno) from error
  except UnicodeEncodeError as error:
    raise complain('half a surrogate pair, which no text may hold', 1, 1) from error
  except (ValueError, RecursionError) as error:
    raise complain(f'not usable JSON ({error})', 1, 1) from error
  return value


def write_text(path, text):
  """Writes UTF-8 text so that `path` holds either all of it or what it held before.

  Raises WorkdirError if the disk is full or the folder cannot be written.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    data = text.encode('utf-8')
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'wb') as out:
      out.write(data)
      out.flush()
      os.fsync(out.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
  except UnicodeEncodeError as error:
    raise DataError(f'{path}: the text to write holds half a surrogate pair.') from error
  except OSError as error:
    # Where even this fails there is nothing to clean up; the first error is the one to show.
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise WorkdirError(f'{path} cannot be written: {error.strerror or error}; '
                       'free some space or choose another folder.') from error


@contextlib.contextmanager
def table_writer(path):
  """Yields write(rows), which adds dicts to a new .jsonl, .jsonl.gz or .parquet file, as a stream.

  Parquet takes its columns from the first rows. The file is on disk, flushed, when this ends.
  """
  with open(path, 'wb') as out:
    if path.suffix == '.parquet':
      with contextlib.closing(_parquet_writer(out)) as writer:
        next(writer)
        yield writer.send
    else:
      packed = gzip.GzipFile('', 'wb', 6, out, mtime=0) if path.suffix == '.gz' else out
      yield lambda rows: packed.write(''.join(
          json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode())
      if packed is not out:
        packed.close()
    out.flush()
    os.fsync(out.fileno())


def _parquet_writer(out):
  import pyarrow
  from pyarrow import parquet
  rows = yield
  if rows is None:
    return
  table = pyarrow.Table.from_pylist(rows)
  with parquet.ParquetWriter(out, table.schema) as writer:
    while True:
      writer.write_table(table)
      table = pyarrow.Table.from_pylist((yield), table.schema)


@contextlib.contextmanager
def new_folder(folder, overwrite=False):
  """Yields an empty folder that becomes `folder`, whole, when all went well, or goes away.

  Raises DataError if the folder holds something and `overwrite` is False, WorkdirError if it
  cannot be written.
  """
  folder = pathlib.Path(folder).absolute()
  if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
    raise DataError(f'{folder} exists already; remove it or write somewhere else.')
  fresh = folder.with_name(f'.{folder.name}.{os.getpid()}.new')
  stale = folder.with_name(f'.{folder.name}.{os.getpid()}.old')
  try:
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if folder.exists():
      os.replace(folder, stale)
    os.replace(fresh, folder)
    sync_folder(folder.parent)
  except OSError as error:
    raise WorkdirError(f'{folder} cannot be written: {error.strerror or error}.') from error
  finally:
    shutil.rmtree(fresh, ignore_errors=True)
    # A swap that failed half-way must not lose what stood there before.
    if stale.exists() and not folder.exists():
      os.replace(stale, folder)
    shutil.rmtree(stale, ignore_errors=True)


def sync_folder(folder):
  """Makes renames inside `folder` survive a power cut."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def text_id(value, place, name):
  """An id as text; JSON integers are written in decimal. Raises DataError for other types."""
  if isinstance(value, str) and value:
    return value
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  shown = 'missing' if value is None else repr(value)[:60]
  raise DataError(f'{place}: {name} is {shown}; it must be a non-empty text or an integer.')


def _parquet_rows(path):
  import pyarrow
  from pyarrow import parquet
  try:
    file = parquet.ParquetFile(path)
    number = 0
    for batch in file.iter_batches(batch_size=8192):
      for row in batch.to_pylist():
        number += 1
        yield f'{path} row {number}', row
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist.') from error
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise DataError(f'{path} cannot be read as Parquet: {error}.') from error


def _unique(pairs):
  row = dict(pairs)
  if len(row) < len(pairs):
    seen = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise ValueError(f'key {twice!r} is given twice')
  return row


def _refuse(name):
  raise ValueError(f'{name} is not a JSON number')


def _kind(value):
  return {list: 'a list', str: 'a text', bool: 'a truth value', type(None): 'null'}.get(
      type(value), 'a number')


def write_atomic(path, text):
  """Writes a text or bytes file so that readers see the old one or the whole new one."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{socket.gethostname()}.{os.getpid()}')
  data = text if isinstance(text, bytes) else text.encode()
  with open(temporary, 'wb') as f:
    f.write(data)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def write_json(path, value):
  """Writes `value` as indented JSON, atomically."""
  write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + '\n')
