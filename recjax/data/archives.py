"""Downloads with a checksum, and zip and tar archives unpacked with bounded disk and memory.

An archive with a member that points outside, is a link or a device, or unpacks to far more than
data do, is refused whole; nothing of it is kept.
"""
import contextlib
import gzip
import hashlib
import pathlib
import re
import stat
import tarfile
import tempfile
import unicodedata
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from recjax import file_io
from recjax.errors import DataError, WorkdirError

ENDINGS = ('.zip', '.tar', '.tar.gz', '.tgz')
MAX_BYTES = 64 << 30    # bytes that an archive may hold
MAX_MEMBERS = 10_000
CHUNK = 1 << 20

# Size and SHA-256 of the archives there, as TFDS has them in its url_checksums/movielens.txt.
PLACE = 'https://files.grouplens.org/datasets/movielens/'
MOVIELENS = {
    'ml-100k.zip': (4924029, '50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229'),
    'ml-1m.zip': (5917549, 'a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20'),
    'ml-20m.zip': (198702078, '96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3'),
    'ml-25m.zip': (261978986, '8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa'),
}
_RESERVED = re.compile(r'(con|prn|aux|nul|com\d|lpt\d)(\..*)?', re.IGNORECASE)
_ODD = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')


def is_archive(path: str | pathlib.Path) -> bool:
  """Whether the name at the end of `path` is that of an archive."""
  return str(path).lower().endswith(ENDINGS)


def fetch_movielens(path: str | pathlib.Path, say: Callable[[str], None]) -> None:
  """Downloads a published archive to `path`, whose name says which, and tells it to `say`.

  Raises DataError.
  """
  path = pathlib.Path(path)
  if path.name not in MOVIELENS:
    raise DataError(f'{path.name} is none of {", ".join(MOVIELENS)}, whose checksums are known; '
                    f'fetch it from {PLACE} and put it at {path}.')
  fetch(PLACE + path.name, path, *MOVIELENS[path.name], say)


def fetch(url: str, path: pathlib.Path, size: int, sha256: str,
          say: Callable[[str], None] = print) -> None:
  """Downloads the file at `url` to `path`; it appears whole and right, or not at all.

  size, sha256: of the file. say: is told of the download. Raises DataError where there is no
  network, or other bytes came; WorkdirError where `path` cannot be written.
  """
  say(f'downloading {url}, {size / 1e6:,.0f} MB')
  digest, count = hashlib.sha256(), 0
  try:
    with file_io.atomic_path(path) as part:
      with urllib.request.urlopen(url, timeout=30) as source, open(part, 'wb') as out:
        while count <= size and (data := source.read(CHUNK)):
          count += len(data)
          digest.update(data)
          out.write(data)
      if count != size or digest.hexdigest() != sha256:
        raise DataError(f'{url} gave {"more than " * (count > size)}{count:,} bytes that are not '
                        f'the {size:,} of SHA-256 {sha256[:12]}...; try again, or fetch it by hand '
                        f'and put it at {path}.')
  except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
    raise DataError(f'{url} cannot be reached ({getattr(error, "reason", error)}); fetch it where '
                    f'there is a network and put it at {path}.') from error
  except OSError as error:
    raise WorkdirError(f'{path} cannot be written: {error.strerror or error}.') from error


@contextlib.contextmanager
def unpacked(path: str | pathlib.Path, beside: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a folder with what the archive at `path` holds, for as long as it is needed.

  It lies below the folder `beside`. Of an archive of one folder, that folder. Raises DataError
  where the archive is damaged or not to be trusted, WorkdirError where the disk is full.
  """
  path, beside = pathlib.Path(path), pathlib.Path(beside).absolute()
  beside.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.unpacked.', dir=beside) as folder:
    try:
      (_unzip if zipfile.is_zipfile(path) else _untar)(path, pathlib.Path(folder))
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError,
            NotImplementedError, ValueError) as error:
      raise DataError(f'{path} is damaged or no archive ({error}); fetch it again.') from error
    except FileNotFoundError as error:
      raise DataError(f'{path} does not exist.') from error
    except OSError as error:
      raise WorkdirError(f'{path} cannot be unpacked below {beside}: {error.strerror or error}.'
                         ) from error
    members = list(pathlib.Path(folder).iterdir())
    yield members[0] if len(members) == 1 and members[0].is_dir() else pathlib.Path(folder)


def parts_of(name: str) -> list[str]:
  """The parts of a member's `name`. Raises ValueError for what is no plain relative path.

  Refused on every system, whatever this one would make of it: roots, drives, '..', control signs,
  names that Windows reserves, and letters that look like, or turn into, others.
  """
  if not isinstance(name, str) or not name or len(name) > 1000:
    raise ValueError('it is empty or very long')
  if _ODD.search(name) or any(unicodedata.category(c) in ('Cf', 'Cs', 'Co', 'Zl', 'Zp')
                              for c in name):
    raise ValueError('it holds signs that no file name should')
  if unicodedata.normalize('NFKC', name) != unicodedata.normalize('NFC', name):
    raise ValueError('it holds letters that turn into others')
  parts = name.removesuffix('/').split('/')
  for part in parts:
    if part in ('', '.', '..') or part[0] in ' ~' or part[-1] in ' .' or _RESERVED.fullmatch(
        part.strip()) or len(part.encode()) > 255:
      raise ValueError('it leads elsewhere, or a system would read it in another way')
  return parts


class _Guard:
  """Counts what is written, and refuses an archive in words."""

  def __init__(self, path: pathlib.Path, folder: pathlib.Path):
    self.path, self.folder = path, folder
    self.max_bytes = min(MAX_BYTES, file_io.plausible(path.stat().st_size))
    self.total, self.names = 0, set()

  def refusal(self, name: str, reason: object) -> DataError:
    return DataError(f'{self.path}: member {name!r:.80}: {reason}; the archive is not to be '
                     'trusted, and nothing of it was kept.')

  def place(self, name: str, size: int) -> pathlib.Path:
    """Where a member of so many bytes goes. Raises DataError."""
    try:
      parts = parts_of(name)
    except ValueError as error:
      raise self.refusal(name, error) from error
    key = '/'.join(parts).casefold()
    if key in self.names or len(self.names) >= MAX_MEMBERS:
      raise self.refusal(name, f'it stands there twice, or is beyond {MAX_MEMBERS:,} members')
    self.names.add(key)
    self.count(name, size)
    self.total -= size  # what is really written counts
    return self.folder.joinpath(*parts)

  def count(self, name: str, size: int) -> None:
    self.total += size
    if self.total > self.max_bytes:
      raise self.refusal(name, f'it unpacks to over {self.max_bytes / 1e6:,.0f} MB, far more than '
                         'data do')

  def copy(self, name: str, source: IO[bytes], target: pathlib.Path) -> None:
    """Writes a member. Existing files, and links on the way, are never written through."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, 'xb') as file:
      while data := source.read(CHUNK):
        self.count(name, len(data))
        file.write(data)


def _unzip(path: pathlib.Path, folder: pathlib.Path) -> None:
  guard = _Guard(path, folder)
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
      if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise guard.refusal(name, 'it is a link or a device')
      if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise guard.refusal(name, 'it is encrypted or packed in an unusual way')
      target = guard.place(name, info.file_size)
      if not name.endswith('/'):
        with archive.open(info) as source:
          guard.copy(name, source, target)


def _untar(path: pathlib.Path, folder: pathlib.Path) -> None:
  guard = _Guard(path, folder)
  with open(path, 'rb') as base:
    packed = base.read(2) == b'\x1f\x8b'
    base.seek(0)
    stream: Any = _Slow(gzip.GzipFile(fileobj=base) if packed else base, guard)
    with tarfile.open(fileobj=stream, mode='r:') as opened:
      archive: Any = opened
      for info in archive:
        if not (info.isreg() or info.isdir()):
          raise guard.refusal(info.name, 'it is a link or a device')
        target = guard.place(info.name, info.size)
        if info.isreg():
          guard.copy(info.name, archive.extractfile(info), target)
        archive.members.clear()  # tarfile remembers every header


class _Slow:
  """A stream that refuses to be read in one go, as headers of any length would be."""

  def __init__(self, stream: Any, guard: _Guard):
    self.stream, self.guard = stream, guard
    self.seek, self.tell = stream.seek, stream.tell

  def read(self, size: int = -1) -> bytes:
    if not 0 <= size <= CHUNK:
      raise self.guard.refusal('', 'a header of this length')
    if self.stream.tell() > self.guard.max_bytes + CHUNK * 64:
      raise self.guard.refusal('', 'it unpacks to far more than data do')
    return self.stream.read(size)
