"""The journal of a paid job: answers on disk before they count, whole after any kill."""
import collections
import dataclasses
import fcntl
import json
import os

from recjax.errors import DataError, WorkdirError

# Failures that asking again may mend; a later run does so.
TRANSIENT = ('timeout', 'unreachable', 'rate_limited', 'server_error', 'malformed')


@dataclasses.dataclass(frozen=True)
class Result:
  """The answer to one request: texts, or a kind of failure and a sentence about it.

  Kinds: those of TRANSIENT, 'rejected' (the service will never answer this), 'refused' (the model
  declined), 'empty'.
  """
  texts: tuple[str, ...] = ()
  failure: str = ''
  detail: str = ''


class Journal:
  """Append-only JSON lines, one per answered request; a context manager that locks the file.

  results maps request hashes to Result, tokens counts what all records ever cost. Opening cuts a
  torn last line off; raises WorkdirError if the file is in use or unwritable, DataError if an
  earlier line is damaged.
  """

  def __init__(self, path):
    self.path, self.results, self.tokens = path, {}, collections.Counter()

  def __enter__(self):
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self.file = open(self.path, 'a+b')  # noqa: SIM115
    except OSError as error:
      raise WorkdirError(f'{self.path} cannot be opened ({error.strerror}); change its rights or '
                         'use another folder') from error
    try:
      fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      self._load()
    except BlockingIOError as error:
      self.file.close()
      raise WorkdirError(f'{self.path} is in use by another process; wait for it') from error
    except BaseException:
      self.file.close()
      raise
    return self

  def __exit__(self, *_):
    self.file.close()

  def _load(self):
    self.file.seek(0)
    whole, _, tail = self.file.read().rpartition(b'\n')
    for number, line in enumerate(whole.split(b'\n') if whole else (), 1):
      record = _record(line)
      if record is None:
        raise DataError(f'{self.path} line {number} is damaged; delete that line and run again')
      self._take(record)
    if tail and _record(tail):  # killed between the answer and its line end
      self._take(_record(tail))
      self._write(b'\n')
    elif tail:
      self.file.truncate(len(whole) + bool(whole))

  def _take(self, record):
    self.tokens.update({name: record.get(name, 0) for name in ('tokens_in', 'tokens_out')})
    self.results[record['hash']] = Result(tuple(record['texts']), record['failure'],
                                          record['detail'])

  def _write(self, data):
    try:
      self.file.write(data)
      self.file.flush()
      os.fsync(self.file.fileno())
    except OSError as error:
      raise WorkdirError(f'{self.path} cannot be written ({error.strerror}); free space or change '
                         'its rights, then run again') from error

  def add(self, records):
    """Writes records (dicts) as one group; they count once they are on disk."""
    if records:
      self._write(b''.join(json.dumps(record).encode() + b'\n' for record in records))
      for record in records:
        self._take(record)

  def holds(self, key):
    """True unless the request is new or its failure may pass."""
    return key in self.results and self.results[key].failure not in TRANSIENT


def _record(line):
  try:
    record = json.loads(line)
    return record if {'hash', 'texts', 'failure', 'detail'} <= record.keys() else None
  except (ValueError, AttributeError):
    return None
