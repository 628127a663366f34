"""Errors that a user can mend, and how they are shown."""
import errno
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


def guard(main):
  """Runs `main()`; a UserError or a full disk becomes one paragraph on stderr and exit code 2."""
  try:
    return main()
  except UserError as error:
    text = str(error)
  except KeyboardInterrupt:
    print('\nstopped; the same command goes on from here', file=sys.stderr)
    sys.exit(130)
  except Exception as error:
    text = disk_error(error)
    if not text:
      raise
  print(f'error: {text}', file=sys.stderr)
  sys.exit(2)


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
