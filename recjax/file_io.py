"""Files of any kind: read strictly, written whole or not at all, journaled, locked.

What is read comes from users, so what is wrong with it is a DataError that names the place. What is
written takes its name only once it is on disk, so a kill or a full disk leaves what was there.
"""
import contextlib
import datetime
import fcntl
import gzip
import io
import itertools
import json
import os
import pathlib
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from recjax.errors import DataError, WorkdirError

TableWriter = Callable[[list[dict]], object]

SUFFIXES = ('.jsonl', '.jsonl.gz', '.parquet')

GZIP, ZSTD, BOM = b'\x1f\x8b', b'\x28\xb5\x2f\xfd', b'\xef\xbb\xbf'

HEAD = 512  # bytes by which a file is told to be of another kind

KINDS = (
    (b'version https://git-lfs', 'a pointer of Git LFS, not the data; fetch them with: git lfs '
     'pull'),
    (b'PK\x03\x04', 'a zip archive, or a workbook of a spreadsheet; unpack it, or save it as CSV'),
    (b'PAR1', 'a Parquet file; give it a name that ends in .parquet'),
    (b'BZh', 'packed by bzip2; unpack it'), (b'\xfd7zXZ', 'packed by xz; unpack it'),
    (ZSTD, 'packed by zstd; unpack it'), (b'7z\xbc\xaf', 'a 7z archive; unpack it'),
    (b'SQLite format 3', 'an SQLite database; export the table as CSV'),
    (b'ARROW1', 'an Arrow file; save it as Parquet'), (b'%PDF', 'a PDF'),
    (b'\xd0\xcf\x11\xe0', 'a workbook of a spreadsheet; save it as CSV'),
    (b'\x80\x03', 'a pickle'), (b'\x80\x04', 'a pickle'), (b'\x80\x05', 'a pickle'))

JSON_KINDS = {dict: 'an object', list: 'a list', str: 'a text', bool: 'a boolean',
              type(None): 'null', int: 'a number', float: 'a number'}

_PAGES = (b'<!doctype html', b'<html', b'<?xml')


# Reading what users give.


def find_table(folder: str | os.PathLike, stem: str) -> pathlib.Path | None:
  """The one file `stem`.jsonl, .jsonl.gz or .parquet in `folder`, or None.

  Raises DataError if there are several, since nothing says which one is meant.
  """
  found = [p for p in (pathlib.Path(folder) / f'{stem}{s}' for s in SUFFIXES) if p.is_file()]
  if len(found) > 1:
    names = ' and '.join(p.name for p in found)
    raise DataError(f'{folder} holds {names}; keep one of them, so that it is clear which counts.')
  return found[0] if found else None


def read_rows(path: str | os.PathLike, blank_lines: bool = True) -> Iterator[tuple[str, dict]]:
  """Yields (place, row) of JSON Lines or Parquet: where each object stands, for messages, and it.

  path: of the file.

  Lines end in LF or CRLF; a byte order mark is tolerated, and so are blank lines unless blank_lines
  is False. What is not packed is read as a stream. Raises DataError with file and line for anything
  that is not one UTF-8 JSON object a line.
  """
  path = pathlib.Path(path)
  if path.suffix == '.parquet':
    yield from _parquet_rows(path)
    return
  for number, line in enumerate(_lines(path), start=1):
    place = f'{path} line {number}'
    if not line.strip():
      if blank_lines:
        continue
      raise DataError(f'{place} is empty; remove it')
    row = parse_json(line, path, number)
    if not isinstance(row, dict):
      raise DataError(f'{place}: a JSON object is expected, found {JSON_KINDS[type(row)]}.')
    yield place, row


def _lines(path: pathlib.Path) -> Iterator[bytes]:
  with _reading(path), open(path, 'rb') as file:
    head = file.peek(HEAD)[:HEAD]
    if head[:2] == GZIP:
      yield from _unpacked(file.read(), path).split(b'\n')
      return
    check_kind(head, path)
    file.read(len(BOM) if head.startswith(BOM) else 0)
    yield from (line.removesuffix(b'\n') for line in file)


def read_bytes(path: str | os.PathLike) -> bytes:
  """The file's bytes, unpacked if they are gzip's, and without a UTF-8 byte order mark.

  path: of the file. Raises DataError for a file that cannot be read or is of another kind than
  text.
  """
  path = pathlib.Path(path)
  with _reading(path):
    return _unpacked(path.read_bytes(), path)


def _unpacked(data, path):
  if data[:2] == GZIP:
    data = unpack(data, path)
  check_kind(data[:HEAD], path)
  return data.removeprefix(BOM)


@contextlib.contextmanager
def _reading(path):
  try:
    yield
  except FileNotFoundError as error:
    raise DataError(f'{path} does not exist.') from error
  except (OSError, EOFError, zlib.error) as error:
    raise DataError(f'{path} cannot be read: {error}.') from error


def check_kind(head: bytes, path: str | os.PathLike) -> None:
  """Raises DataError, saying what it is, for a file whose first bytes are not those of text. head:
  the first bytes. path: of the file, for messages."""
  for magic, what in KINDS:
    if head.startswith(magic):
      raise DataError(f'{path} is {what}.')
  if b'\r' in head[:-1] and b'\n' not in head and not wide_encoding(head):
    raise DataError(f'{path} ends its lines with CR alone, as old Macs did; save it with LF.')
  if head.lstrip(b'\xef\xbb\xbf \r\n\t')[:20].lower().startswith(_PAGES):
    raise DataError(f'{path} is a web page or XML, not the data; its download went wrong, or asks '
                    'for a log-in.')


def wide_encoding(head: bytes) -> str:
  """'utf-16', 'utf-16-le', … where a file begins so, by its mark or by its zeros; else ''. head:
  the first bytes."""
  if head.startswith((b'\xff\xfe\0\0', b'\0\0\xfe\xff')):
    return 'utf-32'
  if head.startswith((b'\xff\xfe', b'\xfe\xff')) and len(head) > 3 and 0 in head[2:4]:
    return 'utf-16'
  even, odd = head[0:64:2], head[1:64:2]
  if len(odd) > 3 and even.count(0) == 0 and odd.count(0) > .9 * len(odd):
    return 'utf-16-le'
  return 'utf-16-be' if len(odd) > 3 and odd.count(0) == 0 and even.count(0) > .9 * len(
      even) else ''


def whole_json(line: bytes) -> str:
  """What a first line tells of a file that is one JSON value over many lines; '' for others."""
  line = line.strip()
  if line == b'[' or line.startswith((b'[{', b'[[', b'[ {')):
    return 'one JSON array'
  return 'one JSON object over many lines' if line == b'{' else ''


def unpack(data: bytes, path: str | os.PathLike) -> bytes:
  """gzip's bytes unpacked. path: of the file, for messages. Raises DataError for what unpacks to
  far more than data do."""
  limit = plausible(len(data))
  with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
    unpacked = stream.read(limit + 1)
  if len(unpacked) > limit:
    raise DataError(f'{path} unpacks to more than {limit / 1e6:,.0f} MB, far more than data do.')
  return unpacked


def plausible(packed: int) -> int:
  """What so many packed bytes may unpack to: 200 times as many, or 256 MB if that is more."""
  return max(256 << 20, 200 * packed)


def read_json(path: str | os.PathLike, strict: bool = True) -> Any:
  """The value of a whole JSON file, strict as in `parse_json`. path: of the file. Raises DataError
  with the place."""
  return parse_json(read_bytes(path), path, strict=strict)


def parse_json(data: bytes, path: str | os.PathLike, line: int | None = None,
               strict: bool = True) -> Any:
  """Parses bytes as JSON, without half surrogate pairs. Raises DataError with line and column.

  path, line: what the bytes are, a whole file or a line of it, for messages. strict: whether NaN,
  and a key given twice, are refused; other programs' files may hold them. data: the bytes.
  """
  def complain(what: str, at_line: int, column: int) -> DataError:
    where = f'line {line or at_line}, column {column}'
    return DataError(f'{path} {where}: {what}.')

  try:
    text = data.decode('utf-8')
  except UnicodeDecodeError as error:
    row = data.count(b'\n', 0, error.start) + 1
    byte = error.start - data.rfind(b'\n', 0, error.start)
    raise complain('not UTF-8; save the file as UTF-8', row, byte) from error
  try:
    rules: Any = dict(object_pairs_hook=_unique, parse_constant=_refuse) if strict else {}
    value = json.loads(text, **rules)
    if '\\ud' in text or '\\uD' in text:
      json.dumps(value, ensure_ascii=False).encode('utf-8')
  except json.JSONDecodeError as error:
    raise complain(f'not valid JSON ({error.msg})', error.lineno, error.colno) from error
  except UnicodeEncodeError as error:
    raise complain('half a surrogate pair, which no text may hold', 1, 1) from error
  except (ValueError, RecursionError) as error:
    raise complain(f'not usable JSON ({error})', 1, 1) from error
  return value


def cache_folder() -> pathlib.Path:
  """Where recjax keeps what it can make anew: the folder that the variable RECJAX_CACHE names, or
  ~/.cache/recjax without one."""
  return pathlib.Path(os.environ.get('RECJAX_CACHE') or pathlib.Path.home() / '.cache' / 'recjax')


# Writing: whole, or as it was.


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike,
                place: Callable[[pathlib.Path, pathlib.Path], object] = os.replace
                ) -> Iterator[pathlib.Path]:
  """Yields a name beside `path` for a file that takes its place at the end, whole and on disk.

  place: gives the finished file its name, by default over what stands there. Where anything raises,
  `path` stays as it was and nothing is left beside it.
  """
  path = pathlib.Path(path)
  fresh = path.with_name(f'.{path.name}.{socket.gethostname()}.{os.getpid()}.tmp')
  try:
    yield fresh
    with open(fresh, 'rb+') as file:
      os.fsync(file.fileno())
    place(fresh, path)
    sync_folder(path.absolute().parent)
  finally:
    # Where even this fails there is nothing to clean up; the first error is the one to show.
    with contextlib.suppress(OSError):
      fresh.unlink()


def write_atomic(path: str | os.PathLike, data: str | bytes) -> None:
  """Writes UTF-8 text or bytes so that readers see the old file or the whole new one. path: of the
  file. data: what it will hold."""
  with atomic_path(path) as fresh:
    fresh.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_json(path: str | os.PathLike, value: object) -> None:
  """Writes `value` as indented JSON, whole; what JSON does not know is written as its text. path:
  of the file."""
  write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + '\n')


def write_arrays(path: str | os.PathLike, arrays: np.ndarray | dict) -> None:
  """Writes an array as .npy, or a dict of named arrays as .npz, whole and without pickles. path: of
  the file."""
  with atomic_path(path) as fresh, open(fresh, 'wb') as file:
    if isinstance(arrays, dict):
      np.savez(file, **arrays)
    else:
      np.save(file, arrays, allow_pickle=False)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a user's UTF-8 text, whole, and makes the folder above it.

  path: of the file. Raises WorkdirError if the disk is full or the folder cannot be written,
  DataError for a text that UTF-8 cannot hold.
  """
  path = pathlib.Path(path)
  try:
    data = text.encode('utf-8')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
  except UnicodeEncodeError as error:
    raise DataError(f'{path}: the text to write holds half a surrogate pair.') from error
  except OSError as error:
    raise WorkdirError(f'{path} cannot be written: {error.strerror or error}; '
                       'free some space or choose another folder.') from error


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike, overwrite: bool = False) -> Iterator[pathlib.Path]:
  """Yields an empty folder that becomes `folder`, whole, when all went well, or goes away.

  overwrite: whether it may take the place of a folder that holds something.
  """
  folder = pathlib.Path(folder).absolute()
  fresh, stale = (folder.with_name(f'.{folder.name}.{os.getpid()}.{end}') for end in ('new', 'old'))
  try:
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if overwrite and folder.exists():
      os.replace(folder, stale)
    os.replace(fresh, folder)  # takes the place of an empty folder alone
    sync_folder(folder.parent)
  finally:
    shutil.rmtree(fresh, ignore_errors=True)
    # A swap that failed half-way must not lose what stood there before.
    if stale.exists() and not folder.exists():
      os.replace(stale, folder)
    shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike, overwrite: bool = False) -> Iterator[pathlib.Path]:
  """`atomic_folder` for a data set.

  Raises DataError if the folder holds something and `overwrite` is False, WorkdirError if it
  cannot be written.
  """
  folder = pathlib.Path(folder).absolute()
  check_new(folder, overwrite)
  try:
    with atomic_folder(folder, overwrite) as fresh:
      yield fresh
  except OSError as error:
    raise WorkdirError(f'{folder} cannot be written: {error.strerror or error}.') from error


def check_new(folder: pathlib.Path, overwrite: bool = False) -> None:
  """Raises DataError if the `folder` holds something and `overwrite` is False."""
  if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
    raise DataError(f'{folder} exists already; remove it or write somewhere else.')


def sync_folder(folder: str | os.PathLike) -> None:
  """Makes renames inside `folder` survive a power cut."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


@contextlib.contextmanager
def table_writer(path: pathlib.Path) -> Iterator[TableWriter]:
  """Yields write(rows), which adds dicts to a new .jsonl, .jsonl.gz or .parquet file, as a stream.

  path: of the file.

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


# Locks and journals.


def try_lock(file: IO, wait: bool = False) -> bool:
  """Takes an open file for this process alone, or tells that another has it.

  file: open for writing.

  The system frees it when the file is closed or the process ends, however it ends. wait: until
  another lets it go.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError:
    return False
  return True


class FileLock:
  """A file whose lock is the right to do something, and which says who has it. path: of the file
  that is locked."""

  def __init__(self, path: str | os.PathLike):
    self.file, self.held = open(path, 'a+'), False  # noqa: SIM115  for as long as it may be held

  def acquire(self) -> bool:
    """Takes the lock unless another process has it. -> whether this one has it now"""
    if not self.held and try_lock(self.file):
      self.held = True
      self.file.truncate(0)
      since = datetime.datetime.now().isoformat(' ', 'seconds')
      self.file.write(f'process {os.getpid()} on {socket.gethostname()} since {since}')
      self.file.flush()
    return self.held

  def release(self) -> None:
    """Lets another process have it."""
    if self.held:
      self.file.truncate(0)
      fcntl.flock(self.file, fcntl.LOCK_UN)
      self.held = False

  def holder(self) -> str:
    """Who has it."""
    self.file.seek(0)
    return self.file.read().strip() or 'another process'


class Journal:
  """Append-only JSON Lines that this process alone writes: a context manager that holds the file.

  A line counts once it is on disk. When the file is opened a last line that a kill tore is cut off;
  one that lacks its line end alone is kept.

  path: of the file. check: function of a line's value, true for one that such a journal holds.
  header: what the first line says of all others; of a file that another request began, `held` is
  what it says there. remedy: what to do about a damaged line, for the message. wait: whether to
  wait for another process that has the file.

  Raises WorkdirError where the file is in use, or cannot be opened or written, where a line before
  the last is damaged, and where another program wrote it.
  """

  def __init__(self, path: str | os.PathLike, check: Callable[[object], object] = bool,
               header: dict | None = None, remedy: str = 'delete that line and run again',
               wait: bool = False):
    self.path, self.check, self.header = pathlib.Path(path), check, header
    self.remedy, self.wait, self.held = remedy, wait, header
    self.count = self.size = 0  # lines behind the header, bytes in all

  def __enter__(self) -> 'Journal':
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self.file = open(self.path, 'ab', buffering=0)  # noqa: SIM115
    except OSError as error:
      raise WorkdirError(f'{self.path} cannot be opened ({error.strerror}); change its rights or '
                         'use another folder') from error
    try:
      if not try_lock(self.file, self.wait):
        raise WorkdirError(f'{self.path} is in use by another process; wait for it')
      with open(self.path, 'rb') as lines:
        self._load(lines)
    except BaseException:
      self.file.close()
      raise
    return self

  def __exit__(self, *_) -> None:
    self.file.close()

  def _load(self, lines):
    if self.header is not None:
      first, whole = lines.readline(), encode_lines([self.header])
      if first != whole and whole.startswith(first):  # new, or whoever made it was killed there
        self.file.truncate(0)
        self._write(whole)
        return
      self.size = len(first)
      if first != whole:
        self.held = _value(first)
        if not first.endswith(b'\n') or not isinstance(self.held, dict) or (
            self.held.keys() != self.header.keys()):
          raise foreign(self.path)
    for number, line in enumerate(lines, 1 if self.header is None else 2):
      torn, value = not line.endswith(b'\n'), _value(line)
      if value is not None and self.check(value):
        self.size += len(line)
        self.count += 1
        if torn:
          return self._write(b'\n')
      elif torn:
        self.file.truncate(self.size)
      else:
        raise WorkdirError(f'{self.path} line {number} is damaged; {self.remedy}')

  def _write(self, data):
    rest = memoryview(data)
    try:
      while rest:
        rest = rest[self.file.write(rest):]
      os.fsync(self.file.fileno())
    except OSError as error:
      with contextlib.suppress(OSError):
        self.file.truncate(self.size)
      raise WorkdirError(f'{self.path} cannot be written ({error.strerror}); free space or change '
                         'its rights, then run again') from error
    self.size += len(data)

  def add(self, values: list) -> None:
    """Appends values, a line each, as one group: they count once they are all on disk."""
    if values:
      self._write(encode_lines(values))
      self.count += len(values)

  def keep(self, count: int) -> None:
    """Cuts the file back to its first `count` lines, beside the header."""
    with open(self.path, 'rb') as lines:
      self.size = sum(map(len, itertools.islice(lines, count + (self.header is not None))))
    self.file.truncate(self.size)
    self.count = count

  def rows(self) -> Iterator:
    """Yields the values of all lines but the header."""
    return map(json.loads, lines_of(self.path, self.header is not None))


def foreign(path: str | os.PathLike) -> WorkdirError:
  """The error for a file or folder of another program, where this one would keep its own. path: of
  that file or folder."""
  return WorkdirError(f'{path} was not made by this command, which would keep its answers there, '
                      'and is not written over; move it away, or choose another place')


def lines_of(path: str | os.PathLike, header: bool) -> Iterator[bytes]:
  """path: of the journal. Yields the lines of a journal, as they stand there. header: whether the
  first is one."""
  with open(path, 'rb') as lines:
    yield from itertools.islice(lines, header, None)


def encode_lines(values: list) -> bytes:
  """Values as JSON Lines in UTF-8; those that UTF-8 cannot hold (half surrogate pairs) in ASCII.
  values: anything of JSON."""
  try:
    return ''.join(json.dumps(v, ensure_ascii=False) + '\n' for v in values).encode()
  except UnicodeEncodeError:
    return ''.join(json.dumps(v) + '\n' for v in values).encode()


def _value(line):
  try:
    return json.loads(line)
  except (ValueError, RecursionError):
    return None


def text_id(value: object, place: str, name: str) -> str:
  """An id as text; JSON integers are written in decimal. value: as it was read. place: where it
  stands, name: what it is, both for messages. Raises DataError for other types."""
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
