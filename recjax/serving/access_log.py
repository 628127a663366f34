"""One JSON object a line for every request: what was asked and how it went, not of whom or what."""
import datetime
import json
import logging
import logging.handlers
import sys
from collections.abc import Mapping
from typing import Any

from recjax.errors import ConfigError

LOGGER = 'recjax.access'


class AccessLog:
  """Writes lines to a file, which may be moved away while it is open, or to standard error.

  place: the path of a file, '-' for standard error. with_histories: whether users and histories are
  written, too.
  """

  def __init__(self, place: str, with_histories: bool = False):
    self.with_histories = with_histories
    self._log = logging.getLogger(f'{LOGGER}.{id(self)}')
    self._log.propagate = False
    self._log.setLevel(logging.INFO)
    try:
      handler = logging.StreamHandler(sys.stderr) if place == '-' else (
          logging.handlers.WatchedFileHandler(place, encoding='utf-8'))
    except OSError as error:
      raise ConfigError(f'--access-log={place}: {error.strerror}; name a file that can be '
                        'written, or - for standard error') from error
    handler.setFormatter(logging.Formatter('%(message)s'))
    self._log.addHandler(handler)

  def write(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
    """Writes a line. scope: of ASGI, after the request; its state holds what routes noted. status:
    of the answer. seconds: from head to end."""
    notes = scope.get('state', {})
    line = {
        'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds'),
        'request_id': notes.get('request_id'), 'key': notes.get('key') or None,
        'method': scope['method'], 'route': getattr(scope.get('route'), 'path', None),
        'status': status, 'ms': round(seconds * 1000, 1),
        **{name: notes[name] for name in ('model', 'items', 'events') if name in notes}}
    if self.with_histories:
      line.update({name: notes[name] for name in ('user', 'history') if notes.get(name)})
    self._log.info(json.dumps(line))

  def close(self) -> None:
    """Closes the file."""
    for handler in list(self._log.handlers):
      self._log.removeHandler(handler)
      handler.close()
