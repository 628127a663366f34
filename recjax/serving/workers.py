"""Several processes that answer at one port: started, watched, asked together, ended.

Each worker opens the models for itself and takes connections of the sockets that its parent bound,
so the system gives a connection to whoever is free. What all must know of is in the database of
events, in files of buckets (`api_keys.SharedTokenBucket`), or is asked of each over a socket of its
own in a folder of the parent's.
"""
import concurrent.futures
import contextlib
import dataclasses
import hmac
import http.client
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from recjax.errors import ConfigError, guard
from recjax.serving.http_errors import RequestError

HEADER = b'x-recjax-worker'  # that a request of one worker to another carries, with their secret
RESTART_SECONDS = 1.0  # before a worker is started anew that had not become ready
METRICS_SECONDS, RELOAD_SECONDS = 2.0, 600.0  # that another worker may take
METRICS_AT_ONCE = 32  # workers whose figures are asked for at a time
log = logging.getLogger('recjax')


@dataclasses.dataclass(frozen=True)
class Worker:
  """A worker's place among the others.

  number: its own, from 0. folder: of the sockets and buckets that workers share. secret: by which
  they know one another. listens_at_once: whether it takes requests before its models are compiled.
  """
  number: int
  folder: str
  secret: str = dataclasses.field(repr=False)
  listens_at_once: bool = False

  def is_sender(self, value: str) -> bool:
    """Returns whether a request comes of another worker. value: of its HEADER."""
    return hmac.compare_digest(value.encode(), self.secret.encode())

  def bind(self) -> socket.socket:
    """Returns this worker's own socket, on which others may ask already. Raises ConfigError."""
    path = pathlib.Path(self.folder, f'{self.number}.sock')
    path.unlink(missing_ok=True)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
      one.bind(str(path))
      one.listen()
    except OSError as error:
      one.close()
      raise ConfigError(f'{path}: {error.strerror or error}; set TMPDIR to a folder that can be '
                        'written, of a short path') from error
    return one

  def ask_others(self, method: str, path: str, timeout: float, at_once: int = 1
                 ) -> Iterator[tuple[int, int, bytes]]:
    """Yields (number, status, body) of what every other worker answers; blocks.

    method, path: of the request. timeout: seconds that each has; status 0 where it does not answer.
    at_once: how many are asked at a time. One that is dead is left out: it reads everything anew
    when it is back.
    """
    places = sorted(place for place in pathlib.Path(self.folder).glob('*.sock')
                    if place.stem != str(self.number))
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
      yield from filter(None, pool.map(
          lambda place: self._ask(place, method, path, timeout), places))

  def _ask(self, place: pathlib.Path, method: str, path: str, timeout: float
           ) -> tuple[int, int, bytes] | None:
    """What the worker of one socket answers, None where it is dead."""
    connection = UnixConnection(str(place), timeout)
    try:
      connection.request(method, path, headers={HEADER.decode(): self.secret})
      answer = connection.getresponse()
      return int(place.stem), answer.status, answer.read()
    except (ConnectionRefusedError, ConnectionResetError, http.client.RemoteDisconnected):
      return None
    except (OSError, http.client.HTTPException) as error:
      return int(place.stem), 0, str(error).encode()
    finally:
      connection.close()

  def spread(self, path: str) -> None:
    """Has every other worker do what this one did; blocks. path: that was posted to. Raises
    RequestError that names those that could not, and go on as they were."""
    failed = [f'worker {number} goes on as it was ({status}: '
              f'{body.decode("utf-8", "replace")[:300]})'
              for number, status, body in self.ask_others('POST', path, RELOAD_SECONDS)
              if status != 200]
    if failed:
      raise RequestError(503, f'{"; ".join(failed)}; others do not; send this again')


class UnixConnection(http.client.HTTPConnection):
  """HTTP over a socket of this machine. path: of the socket. timeout: seconds."""

  def __init__(self, path: str, timeout: float):
    super().__init__('127.0.0.1', timeout=timeout)
    self.path = path

  def connect(self) -> None:
    """Connects."""
    self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    self.sock.settimeout(self.timeout)
    self.sock.connect(self.path)


class Child:
  """A worker's process.

  worker: its place. serve: see `supervise`. sockets: that it takes connections of. is_ready:
  whether its models are compiled.
  """

  def __init__(self, worker: Worker, serve: Callable[..., None], sockets: Sequence[socket.socket]):
    self.worker, self.is_ready = worker, False
    context = multiprocessing.get_context('spawn')
    self.pipe, theirs = context.Pipe()
    self.process = context.Process(target=work, args=(worker, serve, sockets, theirs),
                                   name=f'worker {worker.number}')
    self.process.start()
    theirs.close()


def work(worker: Worker, serve: Callable[..., None], sockets: Sequence[socket.socket],
         pipe: Any) -> None:
  """A worker's process from its start to its end. worker: its place. serve, sockets: see
  `supervise`. pipe: to the parent."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent is told, too
  threading.Thread(target=end_with_parent, args=(pipe,), name='parent', daemon=True).start()
  code: Any = 0
  try:
    guard(lambda: serve(worker, [*sockets, worker.bind()], lambda: pipe.send('ready')))
  except SystemExit as error:
    code = error.code
  except Exception:
    log.exception('worker %d failed', worker.number)
    code = 1
  with contextlib.suppress(BrokenPipeError):  # of a parent that is gone
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code)  # a model that still warms would abort an end in order


def end_with_parent(pipe: Any) -> None:
  """Ends this process in order when its parent is gone, however that ended. pipe: to it."""
  with contextlib.suppress(EOFError, OSError):
    pipe.recv()
  os.kill(os.getpid(), signal.SIGTERM)


def supervise(count: int, folder: str, sockets: Sequence[socket.socket],
              serve: Callable[..., None], end_seconds: float) -> None:
  """Runs workers until SIGTERM or SIGINT, and starts anew those that die.

  count: how many. folder: for what they share. sockets: that listen, of which each takes
  connections. serve: called in each with (worker, sockets and its own, ready), where `ready` is
  called when its models are compiled; it can be pickled. end_seconds: that workers have to end.

  Raises SystemExit where a worker ends that never was ready, as the next would, too.
  """
  reader, writer = os.pipe()
  was = {sig: signal.signal(sig, lambda *given: os.write(writer, b'.'))
         for sig in (signal.SIGTERM, signal.SIGINT)}
  secret, children = secrets.token_hex(16), []
  try:
    children += [Child(Worker(number, folder, secret, number == 0), serve, sockets)
                 for number in range(count)]
    was_ready = [False] * count
    while reader not in (found := multiprocessing.connection.wait(
        [reader, *(child.process.sentinel for child in children),
         *(child.pipe for child in children if not child.is_ready)])):
      for number, child in enumerate(children):
        if child.pipe in found and not child.is_ready:
          with contextlib.suppress(EOFError, OSError):  # it died: its sentinel says so
            child.is_ready = was_ready[number] = child.pipe.recv() == 'ready'
        if not child.process.is_alive():
          children[number] = replace(child, serve, sockets, was_ready[number])
  finally:
    for sig, handler in was.items():
      signal.signal(sig, handler)
    end(children, end_seconds)
    os.close(reader)
    os.close(writer)


def replace(child: Child, serve: Callable[..., None], sockets: Sequence[socket.socket],
            was_ready: bool) -> Child:
  """Returns a new process in the place of one that died.

  child: that died. serve, sockets: see `supervise`. was_ready: whether a worker of this place ever
  was. Raises SystemExit where none was, and this one says by its exit code that none can be.
  """
  child.process.join()
  child.pipe.close()
  code = child.process.exitcode
  how = f'signal {-code}' if code is not None and code < 0 else f'code {code}'
  place = f'worker {child.worker.number} (process {child.process.pid}) ended with {how}'
  if not was_ready and code and code > 0:
    log.error('%s before it was ready; the others end, too', place)
    raise SystemExit(code)
  log.error('%s; it is started anew', place)
  if not child.is_ready:
    time.sleep(RESTART_SECONDS)
  return Child(dataclasses.replace(child.worker, listens_at_once=False), serve, sockets)


def end(children: Sequence[Child], seconds: float) -> None:
  """Ends workers, each when it has answered what it was asked. children: the workers. seconds: that
  they have; then they are killed."""
  for child in children:
    child.process.terminate()
  deadline = time.monotonic() + seconds
  for child in children:
    child.process.join(max(0.0, deadline - time.monotonic()))
    if child.process.is_alive():
      log.error('worker %d did not end in %g s; it is killed', child.worker.number, seconds)
      child.process.kill()
      child.process.join()
