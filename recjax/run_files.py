"""Run folders: their files read without trust, held against what was written, never written over.

Any damage becomes one WorkdirError that names the file and says what makes it anew. How files are
written stands in `file_io`.
"""
import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from recjax import file_io
from recjax.errors import ConfigError, UserError, WorkdirError, disk_fault

HASHED = 64 << 20  # files up to this size are known by their content, larger ones by their size

DONE = 'DONE.json'

PLAUSIBLE = 256 << 20  # a file below this whose array claims more than memory holds is damaged

# numpy and zipfile raise these, and no others were met, of a file that is cut or altered.
DAMAGE = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, TypeError,
          NotImplementedError, OverflowError, IndexError, AttributeError, SyntaxError)


class Facts(dict):
  """A JSON object of a file; a key that it lacks is told with the file's name. pairs: keys and
  values. path: of the file."""

  def __init__(self, pairs: list[tuple], path: pathlib.Path):
    super().__init__(pairs)
    self.path = path

  def __missing__(self, key: str):
    raise WorkdirError(f'{self.path} lacks {key!r}; {remedy(self.path)}')


KINDS = {**file_io.JSON_KINDS, Facts: 'an object'}


def remedy(path: str | os.PathLike) -> str:
  """What makes a file of a run's folder anew. path: of the file."""
  path = pathlib.Path(path)
  for folder in path.parents:
    if folder.parent.name == 'stages':
      return f'delete {folder} and run the command of the run again, which makes it anew'
  return 'run the command of the run again, which writes it anew'


def damaged(path: str | os.PathLike, why: str) -> WorkdirError:
  """The error for a file that is not what a run wrote. why: what is wrong with it. path: of the
  file."""
  return WorkdirError(f'{path} is damaged ({why}); {remedy(path)}')


def read_json(path: str | os.PathLike, default: object = None, kind: type = dict) -> Any:
  """The JSON in `path`, or `default` where there is no such file.

  kind: what it must hold, dict or list. path: of the file. Raises WorkdirError for anything else
  than that as JSON.
  """
  path = pathlib.Path(path)
  try:
    value = json.loads(path.read_bytes().decode(), object_pairs_hook=lambda p: Facts(p, path))
  except FileNotFoundError:
    return default
  except (ValueError, RecursionError) as error:
    raise damaged(path, f'not readable JSON: {str(error)[:200]}') from error
  except OSError as error:
    raise WorkdirError(f'{path} cannot be read: {error.strerror}') from error
  if not isinstance(value, kind):
    raise damaged(path, f'it holds {KINDS[type(value)]}, not {KINDS[kind]}')
  return value


def need_json(path: str | os.PathLike, kind: type = dict) -> Any:
  """The JSON in `path`, a `kind`. path: of the file. Raises WorkdirError where it is damaged or
  missing."""
  value = read_json(path, kind=kind)
  if value is None:
    raise WorkdirError(f'{path} is missing; {remedy(path)}')
  return value


def read_metrics(path: str | os.PathLike, log: Callable[[str], object] | None = None) -> list[dict]:
  """The objects of metrics.jsonl in order, each with 'stage' and 'step'.

  path: of the file.

  A line that was torn by a kill is left out: losing one costs nothing, so they are appended without
  waiting for the disk. log: called with a sentence about such lines. Raises WorkdirError for a file
  that cannot be read.
  """
  path, rows, torn = pathlib.Path(path), [], []
  try:
    lines = path.read_bytes().split(b'\n') if path.exists() else ()
  except OSError as error:
    raise WorkdirError(f'{path} cannot be read: {error.strerror}') from error
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line) if line.strip() else {}
    except (ValueError, RecursionError):
      row = None
    if isinstance(row, dict) and {'stage', 'step'} <= row.keys():
      rows.append(row)
    elif row != {}:
      torn.append(number)
  if torn and log:
    log(f'{path}: line {", ".join(map(str, torn[:5]))} cannot be read and is left out')
  return rows


def read_arrays(path: str | os.PathLike) -> np.ndarray | dict[str, np.ndarray]:
  """The array of a .npy file, or {name: array} of an .npz. path: of the file. Raises WorkdirError,
  nothing else."""
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as file:
      loaded = np.load(file, allow_pickle=False)
      return loaded if isinstance(loaded, np.ndarray) else {n: loaded[n] for n in loaded.files}
  except FileNotFoundError:
    raise WorkdirError(f'{path} is missing; {remedy(path)}') from None
  except MemoryError as error:
    if path.stat().st_size > PLAUSIBLE:
      raise
    raise damaged(path, str(error)) from error
  except DAMAGE as error:
    raise damaged(path, str(error)[:200] or type(error).__name__) from error


# What a finished stage and a config say of themselves.


def file_sums(folder: str | os.PathLike) -> dict[str, str]:
  """What tells the files of a stage from others. -> {name below folder: 'size' or 'size sha256'}"""
  folder = pathlib.Path(folder)
  return {p.relative_to(folder).as_posix(): sum_of(p) for p in sorted(folder.rglob('*'))
          if p.is_file() and p.name != DONE and not p.name.startswith('.')}


def sum_of(path: pathlib.Path) -> str:
  """What tells a file from others: its size, and its hash unless it is larger than HASHED. path: of
  the file."""
  size = path.stat().st_size
  if size > HASHED:
    return str(size)
  return f'{size} {hashlib.sha256(path.read_bytes()).hexdigest()}'


def version(workdir: str | os.PathLike) -> str:
  """What tells a run's finished stages from those of another training in the same folder, however
  the folder is moved or touched.

  workdir: of the run. -> a hash of each stage's fingerprint and of the sums of its files
  """
  made = {}
  for path in sorted((pathlib.Path(workdir) / 'stages').glob(f'*/{DONE}')):
    saved = need_json(path)
    made[path.parent.name] = [saved['fingerprint'], saved.get('files')]
  return _signature(made)


def check(folder: str | os.PathLike) -> None:
  """Raises WorkdirError where a file of a finished stage is not as the stage left it.

  folder: of the stage.

  What was made before stages kept the sums of their files is not looked at.
  """
  folder = pathlib.Path(folder)
  saved = need_json(folder / DONE).get('files', {})
  if not isinstance(saved, dict):
    raise damaged(folder / DONE, '"files" is no object')
  for name, was in saved.items():
    path = folder / name
    try:
      now = sum_of(path)
    except FileNotFoundError:
      raise WorkdirError(f'{path} is missing; {remedy(path)}') from None
    except (OSError, ValueError) as error:
      raise WorkdirError(f'{path} cannot be read: {error}; {remedy(path)}') from error
    if now != was:
      raise damaged(path, f'it is not what the stage wrote, as {folder / DONE} tells')


def signed(config: dict) -> dict:
  """A run's {'config', 'facts'} as config.json holds it: with a sum of what stands there."""
  plain = json.loads(json.dumps(config, default=str))
  return {**plain, 'sum': _signature(plain)}


def _signature(value):
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def read_config(workdir: str | os.PathLike) -> dict:
  """What a run's config.json holds, {'config': {...}, 'facts': {...}}.

  workdir: of the run. Raises WorkdirError where there is none, or it was altered.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not pathlib.Path(workdir).is_dir():
    what = 'is no folder' if os.path.lexists(workdir) else 'does not exist'
    raise WorkdirError(f'{workdir} {what}; name the folder that --workdir named')
  saved = read_json(path)
  if saved is None:
    raise WorkdirError(f'{workdir} holds no config.json, so no run was made there; name the folder '
                       'that --workdir named')
  if not isinstance(saved.get('config'), dict):
    raise WorkdirError(f'{path} is not that of a run, which holds an object "config"; name the '
                       f'folder that --workdir named, or, if this is it, {remedy(path)}')
  if 'sum' in saved and saved['sum'] != _signature({k: v for k, v in saved.items() if k != 'sum'}):
    raise WorkdirError(f'{path} is not as the run wrote it; {remedy(path)}, or, where you changed '
                       'it on purpose, remove "sum" from it')
  return saved


def is_config(path: str | os.PathLike) -> bool:
  """Whether a file looks like the config.json of a run. path: of the file."""
  try:
    saved = json.loads(pathlib.Path(path).read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(saved, dict) and isinstance(saved.get('config'), dict) and (
      saved.keys() <= {'config', 'facts', 'sum'})


def method_before(workdir: str | os.PathLike) -> str | None:
  """The method of the run in a folder, or None where none can be told. workdir: that folder."""
  path = pathlib.Path(workdir) / 'config.json'
  return read_json(path)['config'].get('method') if is_config(path) else None


@contextlib.contextmanager
def opening(workdir: str | os.PathLike) -> Iterator[None]:
  """Code that builds something out of a run's folder.

  workdir: of the run.

  What it raises is told as damage of the folder, with the place in the code, as long as the folder
  cannot be proven to be what the run wrote; else it is a mistake of ours and stays as it is.
  """
  try:
    yield
  except (UserError, MemoryError, ImportError):
    raise
  except Exception as error:
    path = not disk_fault(error) and _unproven(pathlib.Path(workdir))
    name = getattr(error, 'filename', None)
    if not path or isinstance(name, str) and not pathlib.Path(name).resolve().is_relative_to(
        pathlib.Path(workdir).resolve()):
      raise
    if isinstance(error, OSError) and isinstance(error.filename, str):
      raise WorkdirError(
          f'{error.filename}: {error.strerror}; {remedy(error.filename)}') from error
    at = traceback.extract_tb(error.__traceback__)[-1]
    what = f'{type(error).__name__}: {str(error).strip()[:200]}'.rstrip(': ')
    raise WorkdirError(
        f'{path} cannot be used ({what}, in {pathlib.Path(at.filename).name} line {at.lineno}); '
        f'{remedy(path)}') from error


def _unproven(workdir):
  """The first file that nothing proves to be what the run wrote, or None."""
  if 'sum' not in read_config(workdir):
    return workdir / 'config.json'
  for done in sorted((workdir / 'stages').glob(f'*/{DONE}')):
    if 'files' not in need_json(done):
      return done
    check(done.parent)
  return None


# Places for what a command makes.


def absent(path: str | os.PathLike, flag: str, source: str | os.PathLike | None = None,
           folder: bool = False) -> None:
  """Raises ConfigError where something stands at `path`, which `flag` named: nothing is written
  over. source: a file that is read, for the message. folder: whether a folder is to be made, which
  may be there if it is empty, and whose parents are made."""
  path = pathlib.Path(path)
  if source is not None and _same(path, source):
    raise ConfigError(f'{flag}={path} is what is read; name another file')
  if folder and path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
    return
  if os.path.lexists(path):
    raise ConfigError(f'{flag}={path} is there already and is not written over; name one that does '
                      'not exist yet, or remove it')
  parent = path.absolute().parent
  while folder and not os.path.lexists(parent):
    parent = parent.parent
  need_folder(path, flag, parent)


def need_folder(path: pathlib.Path, flag: str, parent: pathlib.Path | None = None) -> None:
  """Raises ConfigError where the folder of a file to be written is not there. path: that `flag`
  named. parent: that folder, or the one that must be there."""
  parent = parent or path.absolute().parent
  if not parent.is_dir():
    what = 'is no folder' if parent.exists() else 'does not exist'
    raise ConfigError(f'{flag}={path}: {parent} {what}; make it first')


def _same(path, other):
  try:
    return os.path.realpath(path) == os.path.realpath(other) or os.path.samefile(path, other)
  except OSError:
    return False


def new_file(path: str | os.PathLike, flag: str) -> contextlib.AbstractContextManager[pathlib.Path]:
  """Gives a name beside `path` for a file that gets its name when all went well.

  Raises ConfigError, when it ends, where something has come to stand there: `flag` named it.
  """
  return file_io.atomic_path(path, functools.partial(place, flag=flag))


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, flag: str) -> Iterator[pathlib.Path]:
  """Yields an empty folder that becomes `path`, whole, when all went well, or goes away.

  `path` may be an empty folder. Raises ConfigError where something else stands there, before or
  after: `flag` named it.
  """
  absent(path, flag, folder=True)
  with file_io.atomic_folder(path) as fresh:
    yield fresh
    absent(path, flag, folder=True)


def place(fresh: pathlib.Path, path: str | os.PathLike, flag: str) -> None:
  """Gives a finished file its name, unless something has come to stand there meanwhile.

  fresh: the finished file. path: the name that it gets. Raises ConfigError for that: `flag` named
  the place.
  """
  try:
    os.link(fresh, path)
    os.unlink(fresh)
  except FileExistsError:
    absent(path, flag)
  except OSError as error:  # a file system without hard links
    if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
      raise
    absent(path, flag)
    os.replace(fresh, path)
