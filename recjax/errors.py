"""Errors that a user can mend, and how they are shown."""
import errno
import os
import select
import sys

DISK = {
    errno.ENOSPC: 'the disk is full',
    errno.EDQUOT: 'the disk quota is used up',
    errno.EROFS: 'the folder is read-only',
    errno.EACCES: 'permission denied',
    errno.EFBIG: 'the file would grow past the limit',
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
    text = disk_error(error) or memory_error(error)
    if not text:
      raise
  print('error:', text if text.endswith('..') else text.removesuffix('.'), file=sys.stderr)
  sys.exit(2)


def reader_left():
  """Whether standard output is a pipe that nobody reads any more."""
  watch = select.poll()
  watch.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in watch.poll(0))


def disk_error(error):
  """What to tell of a file system that refuses, wherever in the chain of causes; '' otherwise."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in DISK:
      where = f' while writing {error.filename}' if error.filename else ''
      return (f'{DISK[error.errno]}{where}; mend that and run the same command again: finished '
              'stages and checkpoints are kept')
    if 'No space left on device' in str(error) or 'RESOURCE_EXHAUSTED: No space' in str(error):
      return ('the disk is full; free some space and run the same command again: finished stages '
              'and checkpoints are kept')
    error = error.__cause__ or error.__context__
  return ''


# Settings that save memory, as they are called in configs, with what to do to them.
SAVERS = (
    ('llm.remat', "='full' recomputes activations"), ('train.batch', ': lower it'),
    ('tiny.batch', ': lower it'), ('scft.batch', ': lower it'),
    ('scft.parts', ': raise it, a batch then goes through in so many parts'),
    ('decode.batch', ': lower it'), ('decode.beams', ': lower it'),
    ('llm.dtype', "='bfloat16' halves weights and activations"),
    ('loss.kind', "='chunked' or 'sampled' spares the scores of all items"),
    ('judge.memory', ': lower it (MiB of scores)'), ('seeds', ': fewer train at once'),
    ('mesh.fsdp', ': shards weights and optimiser over so many devices'),
    ('mesh.model', ': shards layers over so many devices'))


def memory_error(error, config=None):
  """What to tell where memory ran out, wherever in the chain of causes; '' otherwise.

  config: ConfigDict whose own settings are named, else those that many configs have.
  """
  while error is not None:
    text = str(error)
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text or (
        'ut of memory' in text and 'Error' in type(error).__name__):
      where = 'host' if isinstance(error, MemoryError) else 'device'
      known = [f'--config.{name}{what}' for name, what in SAVERS if _has(config, name)]
      first = text.strip().partition('\n')[0][:200] or type(error).__name__
      return (f'the {where} is out of memory ({first}). What helps: {"; ".join(known)}. `recjax '
              'doctor DATA --config=...` tells what a run takes. The same command goes on from the '
              'last checkpoint')
    error = error.__cause__ or error.__context__
  return ''


def _has(config, name):
  if config is None:
    return True
  for part in name.split('.'):
    if part not in config:
      return False
    config = config[part]
  return True
