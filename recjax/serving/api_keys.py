"""Who may ask, and how often: keys by name, each with a bucket of tokens that fills steadily."""
import dataclasses
import fcntl
import hmac
import os
import pathlib
import struct
import time
import tomllib
from collections.abc import Mapping
from typing import Any

from recjax.errors import ConfigError

ANYBODY = ''  # who asks where no key is asked for


@dataclasses.dataclass(frozen=True)
class ApiKey:
  """A key. name: for logs. secret: what a request carries. rate: requests a second in the long run,
  0 for any. burst: requests at once after a pause."""
  name: str
  secret: str
  rate: float = 0.0
  burst: int = 1


class TokenBucket:
  """Holds up to `burst` tokens, gets `rate` a second, gives one a request.

  rate: tokens a second. burst: tokens that fit. clock: seconds, of a clock that never goes back.
  """

  def __init__(self, rate: float, burst: int, clock: Any = time.monotonic):
    self.rate, self.burst, self._clock = rate, burst, clock
    self._tokens, self._at = float(burst), clock()

  def take(self) -> float:
    """Takes a token. Returns 0, or without one the seconds until there is one."""
    now = self._clock()
    self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
    self._at = now
    if self._tokens >= 1:
      self._tokens -= 1
      return 0.0
    return (1 - self._tokens) / self.rate


class SharedTokenBucket(TokenBucket):
  """A bucket of several processes.

  rate, burst, clock: as TokenBucket has them. path: of the file that holds its state; where it is
  not there yet, the bucket is full.
  """

  def __init__(self, rate: float, burst: int, path: str | os.PathLike,
               clock: Any = time.monotonic):
    super().__init__(rate, burst, clock)
    self._file = open(path, 'a+b', buffering=0)  # noqa: SIM115  it lives as long as the bucket

  def take(self) -> float:
    """Takes a token, as TokenBucket does."""
    fcntl.flock(self._file, fcntl.LOCK_EX)  # the system gives it back where a process dies
    try:
      if state := os.pread(self._file.fileno(), 16, 0):
        self._tokens, self._at = struct.unpack('dd', state)
      wait = super().take()
      self._file.truncate(0)
      self._file.write(struct.pack('dd', self._tokens, self._at))
      return wait
    finally:
      fcntl.flock(self._file, fcntl.LOCK_UN)


class KeyRing:
  """The keys of a server.

  keys: all of them; none where everybody may ask. default: rate and burst of those who need no key.
  folder: where buckets are that several processes share, '' where one process asks alone.
  """

  def __init__(self, keys: tuple[ApiKey, ...] = (), default: tuple[float, int] = (0.0, 1),
               folder: str = ''):
    self.keys = keys
    limits = {key.name: (key.rate, key.burst) for key in keys} or {ANYBODY: default}
    self._buckets = {
        name: SharedTokenBucket(rate, burst, f'{folder}/{number}.bucket') if folder else
        TokenBucket(rate, burst)
        for number, (name, (rate, burst)) in enumerate(limits.items()) if rate}

  def name_of(self, secret: str) -> str | None:
    """Returns the name of the key that a request carries, None for a wrong one. secret: of the
    request, '' for none. Every key is compared, in a time that tells nothing."""
    if not self.keys:
      return ANYBODY
    found = None
    for key in self.keys:
      if hmac.compare_digest(secret.encode(), key.secret.encode()):
        found = key.name
    return found

  def wait_of(self, name: str) -> float:
    """Counts a request. Returns 0, or the seconds after which it may come again. name: of the key.
    """
    bucket = self._buckets.get(name)
    return bucket.take() if bucket else 0.0


def read_keys(path: str | os.PathLike, environment: Mapping[str, str]) -> tuple[ApiKey, ...]:
  """Returns the keys of a TOML file: a table a key, [NAME] with `key`, or with `key_env`, the
  environment variable that holds it; `rate` and `burst` where it is limited.

  path: of the file. environment: the environment variables. Raises ConfigError.
  """
  try:
    tables = tomllib.loads(pathlib.Path(path).read_text('utf-8'))
  except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
    raise ConfigError(f'--keys={path}: {error}') from error
  keys = []
  for name, table in tables.items():
    place = f'--keys={path}: [{name}]'
    if not isinstance(table, dict) or not set(table) <= {'key', 'key_env', 'rate', 'burst'}:
      raise ConfigError(f'{place} is a table of key or key_env, rate and burst')
    secret = table.get('key') or environment.get(str(table.get('key_env', '')), '')
    rate, burst = table.get('rate', 0), table.get('burst', 1)
    if not is_secret(secret):
      raise ConfigError(f'{place} has no key; give key or key_env, without special characters')
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1e9 or (
        isinstance(burst, bool) or not isinstance(burst, int) or burst < 1):
      raise ConfigError(f'{place}: rate is 0 or more, a second, and burst 1 or more')
    keys.append(ApiKey(name, secret, float(rate), burst))
  if len({key.secret for key in keys}) < len(keys) or not keys:
    raise ConfigError(f'--keys={path}: ' + ('two keys are the same' if keys else 'there is no key'))
  return tuple(keys)


def is_secret(text: Any) -> bool:
  """Whether `text` can be a key."""
  return isinstance(text, str) and bool(text.strip()) and text.isascii() and text.isprintable()
