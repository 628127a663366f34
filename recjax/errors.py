"""Errors that a user can mend, and how they are shown."""
import errno
import logging
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Mapping

DISK = {
    errno.ENOSPC: 'the disk is full',
    errno.EDQUOT: 'the disk quota is used up',
    errno.EROFS: 'the folder is read-only',
    errno.EFBIG: 'a file would grow past the limit of this system or user',
    errno.EIO: 'the disk fails',
}
# How libraries say so that raise no OSError, or one without a number: TensorStore of Orbax, DuckDB,
# Arrow, safetensors, shutil; numpy and DuckDB's own words.
SAID = {
    'No space left on device': errno.ENOSPC,
    'Disk quota exceeded': errno.EDQUOT,
    'Read-only file system': errno.EROFS,
    'File too large': errno.EFBIG,
    'max_temp_directory_size': errno.ENOSPC,
}
AFTERWARDS = ('Event loop is closed', 'handle is closed')  # of threads whose caller has gone
SHORT = re.compile(r'\d+ requested and \d+ written')  # of numpy
# Modules that come with an extra of the package, as setup.py lists them.
EXTRAS = {
    'serve': ('fastapi', 'uvicorn', 'uvloop', 'httptools', 'orjson', 'prometheus_client',
              'pydantic', 'starlette', 'fastapi_offline', 'sqlalchemy', 'alembic'),
    'postgres': ('psycopg', 'psycopg_binary'),
    'mcp': ('mcp',),
    'data': ('duckdb', 'tensorflow_datasets', 'array_record', 'grain', 'importlib_resources',
             'charset_normalizer', 'python_calamine', 'sqlalchemy'),
    'beam': ('apache_beam',),
    'gguf': ('gguf',),
}


class UserError(Exception):
  """A mistake in data, configuration or use: says what, where, and how to mend it.

  Shown as one paragraph without a traceback; the process exits with code 2.
  """


class ConfigError(UserError):
  """A setting that is unknown, malformed, or contradicts another."""


class DataError(UserError):
  """A file, row, item or user that cannot be used as it is."""


class EmptyDatasetError(DataError):
  """Filters that leave nothing."""


class WorkdirError(UserError):
  """A run's folder that is in use, full, unwritable, or made by another run."""


class ServiceError(UserError):
  """A remote service that refuses, fails too often, or costs more than allowed."""


class Preempted(BaseException):
  """SIGTERM came and what was to be saved is saved. No Exception: nothing may swallow it."""


class PartDone(BaseException):
  """A part of a run has done its share, and others have not, or go on. No Exception, as above."""


def guard(main: Callable[[], object]) -> object:
  """Runs `main()`; a UserError or a full disk becomes one paragraph on stderr and exit code 2.

  After SIGTERM the code is 143, so that whoever sent it may start the same command again. Where
  nobody reads the output any more (`| head`) it ends quietly.
  """
  quieten()
  try:
    result = main()
    sys.stdout.flush()
    return result
  except UserError as error:
    text = str(error)
  except KeyboardInterrupt:
    print('\nstopped; the same command goes on from here', file=sys.stderr)
    sys.exit(130)
  except Preempted:
    print('stopped by SIGTERM; the same command goes on from here', file=sys.stderr)
    sys.exit(143)
  except BrokenPipeError:
    if not reader_left():
      raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
  except Exception as error:
    text = disk_error(error) or memory_error(error) or missing_extra(error) or file_error(error)
    if not text:
      raise
  print('error:', text if text.endswith('..') else text.removesuffix('.'), file=sys.stderr)
  sys.exit(2)


def quieten() -> None:
  """Keeps threads of libraries, which have no caller, from showing tracebacks about a full disk:
  the call that waits for them gets the error and tells it once."""
  def but(hook: Callable, error_of: Callable) -> Callable:
    def filtered(*args):
      if not _about_disk(error_of(*args)):
        hook(*args)
    return filtered

  threading.excepthook = but(threading.__excepthook__, lambda args: args.exc_value)
  sys.unraisablehook = but(sys.__unraisablehook__, lambda args: args.exc_value)
  # TensorStore's threads show by this one what they cannot raise.
  sys.excepthook = but(sys.__excepthook__, lambda kind, value, traceback: value)
  logger = logging.getLogger('absl')  # Orbax's
  if not any(isinstance(f, _DiskFilter) for f in logger.filters):
    logger.addFilter(_DiskFilter())


class _DiskFilter(logging.Filter):
  """Drops what a library logs about a full disk."""

  def filter(self, record: logging.LogRecord) -> bool:
    raised = record.exc_info[1] if record.exc_info else None
    return not _about_disk(raised) and not any(words in record.getMessage() for words in SAID)


def _about_disk(error):
  return bool(error) and (bool(disk_error(error)) or str(error) in AFTERWARDS)


def reader_left() -> bool:
  """Whether standard output is a pipe that nobody reads any more."""
  watch = select.poll()
  watch.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in watch.poll(0))


def chain(error: BaseException | None) -> list[BaseException]:
  """An error and those that it came from, the last one first."""
  seen = []
  while error is not None and error not in seen:
    seen.append(error)
    error = error.__cause__ or error.__context__
  return seen


def disk_error(error: BaseException) -> str:
  """What to tell of a file system that refuses, wherever in the chain of causes; '' otherwise.
  error: what was raised."""
  fault = disk_fault(error)
  return fault and (f'{fault}; mend that and run the same command again: finished stages and '
                    'checkpoints are kept')


def disk_fault(error: BaseException) -> str:
  """What a file system refuses, and of which file where that is known; '' for other errors. error:
  what was raised."""
  for cause in chain(error):
    number = getattr(cause, 'errno', None) if isinstance(cause, OSError) else None
    if number not in DISK:
      number = next((n for words, n in SAID.items() if words in str(cause)), None)
    if number is None and isinstance(cause, OSError) and SHORT.search(str(cause)):
      number = errno.ENOSPC
    if number is not None:
      # Of a copy the second name is that of the file that is written.
      name = getattr(cause, 'filename2', None) or getattr(cause, 'filename', None)
      where = f' while writing {name}' if isinstance(name, str) else ''
      return DISK[number] + where
  return ''


def file_error(error: BaseException) -> str:
  """What to tell of a file that the system does not let this process use; '' otherwise. error: what
  was raised."""
  if isinstance(error, OSError) and error.errno and isinstance(error.filename, str):
    return (f'{error.filename}: {error.strerror}; name another file or folder, or change what '
            'stands there')
  return ''


def missing_extra(error: BaseException) -> str:
  """What to tell of a package that only some uses need; '' otherwise. error: what was raised."""
  for cause in chain(error):
    name = ((cause.name or '').partition('.')[0] if isinstance(cause, ModuleNotFoundError) else '')
    for extra, modules in EXTRAS.items():
      if name in modules:
        return (f"this needs the package {name}, which is not installed: pip install "
                f"'recjax[{extra}]'")
  return ''


# Settings that save memory, as they are called in configs, with what to do to them.
SAVERS = (
    ('llm.remat', "='full' recomputes activations"), ('train.batch', ': lower it'),
    ('tiny.batch', ': lower it'), ('scft.batch', ': lower it'),
    ('scft.parts', ': raise it, a batch then goes through in so many parts'),
    ('decode.batch', ': lower it'), ('decode.beams', ': lower it'),
    ('llm.dtype', "='bfloat16' halves weights and activations"),
    ('loss.kind', "='chunked' or 'sampled' spares the scores of all items"),
    ('eval.memory', ': lower it (MiB of scores)'), ('seeds', ': fewer train at once'),
    ('mesh.fsdp', ': shards weights and optimizer over so many devices'),
    ('mesh.model', ': shards layers over so many devices'))


def memory_error(error: BaseException, config: Mapping | None = None) -> str:
  """What to tell where memory ran out, wherever in the chain of causes; '' otherwise.

  config: a ConfigDict whose own settings are named, else those that many configs have. error: what
  was raised.
  """
  if disk_error(error):  # whose words are much the same
    return ''
  for cause in chain(error):
    text = str(cause)
    if isinstance(cause, MemoryError) or 'RESOURCE_EXHAUSTED' in text or (
        'ut of memory' in text and 'Error' in type(cause).__name__):
      where = 'host' if isinstance(cause, MemoryError) else 'device'
      known = [f'--config.{name}{what}' for name, what in SAVERS if _has(config, name)]
      first = text.strip().partition('\n')[0][:200] or type(cause).__name__
      return (f'the {where} is out of memory ({first}). What helps: {"; ".join(known)}. `recjax '
              'doctor DATA --config=...` tells what a run takes. The same command goes on from the '
              'last checkpoint')
  return ''


def _has(config, name):
  if config is None:
    return True
  for part in name.split('.'):
    if part not in config:
      return False
    config = config[part]
  return True
