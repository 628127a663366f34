"""Errors that a user can mend, and how they are shown."""
import errno
import logging
import os
import re
import select
import sys
import threading

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
    'serve': ('fastapi', 'uvicorn', 'prometheus_client', 'pydantic', 'starlette'),
    'data': ('duckdb', 'tensorflow_datasets', 'array_record', 'grain', 'importlib_resources'),
    'beam': ('apache_beam',),
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


def guard(main):
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


def quieten():
  """Keeps threads of libraries, which have no caller, from showing tracebacks about a full disk:
  the call that waits for them gets the error and tells it once."""
  def about_disk(error):
    return bool(error) and (bool(disk_error(error)) or str(error) in AFTERWARDS)

  def but(hook, of):
    def shown(*given):
      if not about_disk(of(*given)):
        hook(*given)
    return shown

  def worth(record):
    raised = record.exc_info[1] if record.exc_info else None
    return not about_disk(raised) and not any(words in record.getMessage() for words in SAID)
  threading.excepthook = but(threading.__excepthook__, lambda given: given.exc_value)
  sys.unraisablehook = but(sys.__unraisablehook__, lambda given: given.exc_value)
  # TensorStore's threads show by this one what they cannot raise.
  sys.excepthook = but(sys.__excepthook__, lambda kind, value, where: value)
  logger = logging.getLogger('absl')  # Orbax's
  if not any(getattr(f, 'about', '') == 'disk' for f in logger.filters):
    worth.about = 'disk'
    logger.addFilter(worth)


def reader_left():
  """Whether standard output is a pipe that nobody reads any more."""
  watch = select.poll()
  watch.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in watch.poll(0))


def chain(error):
  """An error and those that it came from, the last one first."""
  seen = []
  while error is not None and error not in seen:
    seen.append(error)
    error = error.__cause__ or error.__context__
  return seen


def disk_error(error):
  """What to tell of a file system that refuses, wherever in the chain of causes; '' otherwise."""
  found = disk_fault(error)
  return found and (f'{found}; mend that and run the same command again: finished stages and '
                    'checkpoints are kept')


def disk_fault(error):
  """What a file system refuses, and of which file where that is known; '' for other errors."""
  for one in chain(error):
    found = getattr(one, 'errno', None) if isinstance(one, OSError) else None
    if found not in DISK:
      found = next((number for words, number in SAID.items() if words in str(one)), None)
    if found is None and isinstance(one, OSError) and SHORT.search(str(one)):
      found = errno.ENOSPC
    if found is not None:
      # Of a copy the second name is that of the file that is written.
      name = getattr(one, 'filename2', None) or getattr(one, 'filename', None)
      where = f' while writing {name}' if isinstance(name, str) else ''
      return DISK[found] + where
  return ''


def file_error(error):
  """What to tell of a file that the system does not let this process use; '' otherwise."""
  if isinstance(error, OSError) and error.errno and isinstance(error.filename, str):
    return (f'{error.filename}: {error.strerror}; name another file or folder, or change what '
            'stands there')
  return ''


def missing_extra(error):
  """What to tell of a package that only some uses need; '' otherwise."""
  for one in chain(error):
    name = (one.name or '').partition('.')[0] if isinstance(one, ModuleNotFoundError) else ''
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
    ('mesh.fsdp', ': shards weights and optimiser over so many devices'),
    ('mesh.model', ': shards layers over so many devices'))


def memory_error(error, config=None):
  """What to tell where memory ran out, wherever in the chain of causes; '' otherwise.

  config: ConfigDict whose own settings are named, else those that many configs have.
  """
  if disk_error(error):  # whose words are much the same
    return ''
  for one in chain(error):
    text = str(one)
    if isinstance(one, MemoryError) or 'RESOURCE_EXHAUSTED' in text or (
        'ut of memory' in text and 'Error' in type(one).__name__):
      where = 'host' if isinstance(one, MemoryError) else 'device'
      known = [f'--config.{name}{what}' for name, what in SAVERS if _has(config, name)]
      first = text.strip().partition('\n')[0][:200] or type(one).__name__
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
