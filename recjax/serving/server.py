"""`recjax serve`: opens runs, listens, and ends when asked, answering first what was asked."""
import contextlib
import dataclasses
import errno
import functools
import logging
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from recjax.errors import ConfigError
from recjax.serving import app as apps
from recjax.serving import limits, served_model, workers
from recjax.serving.events import EventStore
from recjax.serving.prometheus import Metrics
from recjax.serving.service import RecommendationService, ServerSettings

KEY_ENV = 'RECJAX_API_KEY'
BACKLOG = 1024  # connections that the system holds until they are taken
SHUTDOWN_SECONDS = 20  # that requests under way have to end
END_SECONDS = 15  # that a worker has besides, to write what came as events
KEEP_ALIVE_SECONDS = 15  # that a connection may wait for its next request
MAX_HEAD_BYTES = 16 << 10  # of a request
CONNECTIONS_PER_REQUEST = 4  # connections that may be open for each request at a time


def run(workdirs: Iterable[str | os.PathLike], settings: ServerSettings,
        chat_data: Sequence[str] = (), items_file: str | os.PathLike | None = None,
        later: str | os.PathLike | None = None, log: Callable[..., None] = print) -> None:
  """Serves finished runs until SIGTERM or SIGINT.

  workdirs: their folders. settings: how; its key is read from RECJAX_API_KEY. chat_data,
  items_file, later: as `served_model.ModelOpener` takes them. log: prints a line, as `print` does.

  Raises ConfigError for a key or an address that cannot be used, and where a folder holds no run.
  """
  settings = dataclasses.replace(settings, api_key=key_of_environment())
  import httptools  # noqa: F401  if one is missing, before models are read, which takes a while
  import uvicorn  # noqa: F401
  set_up_log()
  check_workers(settings)
  opened = functools.partial(open_service, list(map(str, workdirs)), tuple(chat_data), items_file,
                             later)
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(one) for one in bind_sockets(settings)]  # as early as that, too
    if settings.workers > 1:
      run_workers(opened, settings, sockets, log)
    else:
      listen(opened(settings, log), log, sockets)


def set_up_log() -> None:
  """Sends what this process logs to standard error."""
  logging.basicConfig(level=logging.WARNING, stream=sys.stderr,
                      format='%(asctime)s %(levelname)s %(message)s')
  logging.getLogger('recjax').setLevel(logging.INFO)


def open_service(folders: Sequence[str], chat_data: Sequence[str],
                 items_file: str | os.PathLike | None, later: str | os.PathLike | None,
                 settings: ServerSettings, log: Callable[..., None],
                 worker: workers.Worker | None = None) -> RecommendationService:
  """Returns a service of finished runs, and says what it serves.

  folders: of the runs. chat_data, items_file, later, settings, log: as `run` takes them. worker:
  the process's place among others. Raises ConfigError.
  """
  metrics = Metrics()
  opener = served_model.ModelOpener(chat_data, items_file, on_batch=metrics.observe_batch,
                                    later=later, prefix_bytes=settings.prefix_bytes,
                                    on_prompt=metrics.observe_prompt)
  models = served_model.open_models(folders, opener, functools.partial(log, flush=True))
  for line in served_model.describe_models(models, folders):
    log(line)
  store = EventStore(settings.events)
  log('events are forgotten when the server ends' if not settings.events or worker and (
      settings.events.startswith(worker.folder)) else f'events are in {store.name}')
  service = RecommendationService(models, settings, metrics, store, worker)
  service.reopen = {name: functools.partial(opener.open, folder)
                    for name, folder in zip(models, folders)}
  if not service.keys.keys and settings.host not in limits.LOCAL_HOSTS and (
      not settings.unix_socket):
    log(f'anybody who reaches {settings.host} may ask; set {KEY_ENV} to a secret')
  return service


def check_workers(settings: ServerSettings) -> None:
  """Raises ConfigError for what several workers cannot do. settings: of the server."""
  if settings.workers > 1 and settings.shop:
    raise ConfigError(f'--workers={settings.workers} needs --no-shop: a visitor of the shop is '
                      'told of new interests by the one process that took the event')


def run_workers(opened: Callable[..., RecommendationService], settings: ServerSettings,
                sockets: Sequence[socket.socket], log: Callable[..., None] = print) -> None:
  """Serves by several processes until a signal comes.

  opened: called in each with (settings, log, worker) for its service; it can be pickled. settings:
  of the server. sockets: of `bind_sockets`. log: prints a line, as `print` does.

  Raises ConfigError, and SystemExit as `workers.supervise` does.
  """
  for one in sockets:
    with address_errors(settings, sockets):
      one.listen(BACKLOG)
  with tempfile.TemporaryDirectory(prefix='recjax-workers-') as folder:
    log(f'{describe_address(settings, sockets)}, of {settings.workers} workers', flush=True)
    shared = dataclasses.replace(settings, events=settings.events or f'{folder}/events.sqlite')
    workers.supervise(settings.workers, folder, sockets,
                      functools.partial(serve_worker, opened, shared),
                      SHUTDOWN_SECONDS + END_SECONDS)
  if settings.unix_socket:
    os.unlink(settings.unix_socket)
  log('ended; all that was asked is answered', flush=True)


def serve_worker(opened: Callable[..., RecommendationService], settings: ServerSettings,
                 worker: workers.Worker, sockets: list[socket.socket],
                 ready: Callable[[], None]) -> None:
  """A worker's part of `run_workers`. opened, settings: see there. worker: its place. sockets: that
  it takes connections of. ready: called when its models are compiled. Raises ConfigError."""
  set_up_log()
  import jax
  if jax.default_backend() != 'cpu':
    raise ConfigError(f'--workers={settings.workers}: the models run on a {jax.default_backend()}, '
                      'which one process holds; leave --workers out')

  def log(text: str, **how: Any) -> None:
    if worker.listens_at_once or service:
      print(f'worker {worker.number}: {text}', **how)
  service: RecommendationService | None = None
  service = opened(settings, log, worker)
  server = build_server(service, False, log)

  def warm_up() -> None:
    for thread in served_model.warm_up_all(service.models):
      thread.join()
    ready()
  if worker.listens_at_once:
    threading.Thread(target=warm_up, name='warm up', daemon=True).start()
  else:
    warm_up()
  server.run(sockets)
  service.close()


def key_of_environment() -> str:
  """Returns the key that RECJAX_API_KEY holds, '' for none. Raises ConfigError for one that cannot
  be used."""
  key = os.environ.get(KEY_ENV, '').strip()
  if not key.isascii() or not key.isprintable():
    raise ConfigError(f'the environment variable {KEY_ENV} does not hold a key: it has special '
                      'characters')
  return key


def bind_sockets(settings: ServerSettings) -> list[socket.socket]:
  """Returns sockets bound to every address of `settings.host`, or to `settings.unix_socket`.

  settings: host and port. Raises ConfigError where an address cannot be had, or a setting is out of
  its range.
  """
  host, port = settings.host, settings.port
  if not 0 <= port <= 65535:
    raise ConfigError(f'--port={port}: a port is a number from 1 to 65535, or 0 for any free one')
  if settings.max_concurrent < 1 or not 0 < settings.answer_seconds < float('inf'):
    raise ConfigError(f'--most={settings.max_concurrent} and '
                      f'--timeout={settings.answer_seconds:g}: both must be above 0')
  if settings.unix_socket:
    return [bind_unix_socket(settings.unix_socket)]
  try:
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
  except (socket.gaierror, UnicodeError) as error:
    raise ConfigError(f'--host={host} is no address ({error}); give one of this machine, e.g. '
                      '127.0.0.1') from error
  sockets: list[socket.socket] = []
  failure: OSError | None = None
  for family, kind, protocol, _, address in dict.fromkeys(addresses):
    try:
      one = socket.socket(family, kind, protocol)
    except OSError as error:  # a family that this machine has not
      failure = error
      continue
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
      one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if sockets and not port:  # any free one, the same of every address
      address = (address[0], sockets[0].getsockname()[1], *address[2:])
    try:
      one.bind(address)
      sockets.append(one)
    except OSError as error:
      one.close()
      failure = error
      if error.errno != errno.EADDRNOTAVAIL:  # another address of the name may do
        break
  else:
    if sockets:
      return sockets
  with address_errors(settings, sockets):
    raise failure or OSError(errno.EADDRNOTAVAIL, 'no address')


def bind_unix_socket(path: str) -> socket.socket:
  """Returns a socket that this user and group may open at `path`; one that a killed server left is
  replaced. Raises ConfigError where it cannot be, or another program listens there."""
  one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
  try:
    if os.path.exists(path):
      if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ConfigError(f'--unix-socket={path}: a file stands there that is no socket; name '
                          'another path')
      with contextlib.suppress(ConnectionRefusedError), (
          socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as other:
        other.connect(path)
        raise ConfigError(f'--unix-socket={path}: another program listens there; name another path')
      os.unlink(path)
    one.bind(path)
    os.chmod(path, 0o660)
  except (OSError, ConfigError) as error:
    one.close()
    if isinstance(error, ConfigError):
      raise
    raise ConfigError(f'--unix-socket={path}: {error.strerror or error}; name a path in a folder '
                      'that can be written, of at most 100 characters') from error
  return one


@contextlib.contextmanager
def address_errors(settings: ServerSettings, sockets: Iterable[socket.socket]) -> Iterator[None]:
  """Turns what the system says of an address into ConfigError; the sockets are closed then.

  settings: host and port. sockets: those that are open.
  """
  try:
    yield
  except OSError as error:
    for one in sockets:
      one.close()
    host, port = settings.host, settings.port
    explanations = {
        errno.EADDRINUSE: f'--port={port}: another program listens there; give another, or 0 for '
                          'any free one',
        errno.EACCES: f'--port={port}: only an administrator may listen there; give one above 1023',
        errno.EADDRNOTAVAIL: f'--host={host} is no address of this machine; 127.0.0.1 and 0.0.0.0 '
                             'always are'}
    raise ConfigError(explanations.get(
        error.errno or 0, f'--host={host} --port={port}: {error.strerror or error}')) from error


def build_server(service: RecommendationService, warm_up: bool = True,
                 log: Callable[..., None] = print) -> Any:
  """Returns the uvicorn.Server of a service.

  service: what answers. warm_up: whether its models are warmed up now. log: prints a line, as
  `print` does.
  """
  server = uvicorn_server(apps.create_app(service), service, log)
  if warm_up:
    served_model.warm_up_all(service.models)
  return server


def uvicorn_server(app: limits.LimitsMiddleware, service: RecommendationService,
                   log: Callable[..., None], lifespan: Literal['on', 'off'] = 'off') -> Any:
  """Returns the uvicorn.Server of an application.

  app: what it serves. service: what is behind it. log: prints a line, as `print` does. lifespan:
  'on' where the application wants to be started and ended.
  """
  import uvicorn
  settings = service.settings
  config = uvicorn.Config(
      app, settings.host, settings.port, http=limited_protocol(), ws='none',
      lifespan=lifespan, log_level='warning', access_log=False, server_header=False,
      timeout_keep_alive=KEEP_ALIVE_SECONDS, backlog=BACKLOG,
      limit_concurrency=CONNECTIONS_PER_REQUEST * settings.max_concurrent,
      timeout_graceful_shutdown=SHUTDOWN_SECONDS)

  class Server(uvicorn.Server):
    """Ends open event streams as soon as a signal comes, so that the rest can end, and then ends as
    a program that did what it was told; uvicorn would raise the signal again."""

    def handle_exit(self, sig: int, frame: Any) -> None:
      self.force_exit = self.should_exit and sig == signal.SIGINT
      is_first, service.is_closing, self.should_exit = not self.should_exit, True, True
      if is_first:
        with contextlib.suppress(BrokenPipeError):  # whoever read this may be gone, too
          log(f'{signal.Signals(sig).name}: no new connections; what is under way '
              f'({app.running}) is answered, for {SHUTDOWN_SECONDS} s at most', flush=True)
  return Server(config)


def limited_protocol() -> Any:
  """Returns uvicorn's protocol of httptools, which has no limit for a request's head, with one."""
  from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

  class LimitedProtocol(HttpToolsProtocol):
    """Ends a connection on which more than MAX_HEAD_BYTES came after the first piece of a head, and
    the head is not whole."""
    is_in_head, head_bytes = False, 0

    def data_received(self, data: bytes) -> None:
      self.head_bytes = self.head_bytes + len(data) if self.is_in_head else 0
      super().data_received(data)
      if self.is_in_head and self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
        self.send_400_response('the head of the request is too long')

    def on_message_begin(self) -> None:
      self.is_in_head = True
      super().on_message_begin()

    def on_headers_complete(self) -> None:
      self.is_in_head, self.head_bytes = False, 0  # the next may begin in the same piece
      super().on_headers_complete()
  return LimitedProtocol


def describe_address(settings: ServerSettings, sockets: Sequence[socket.socket]) -> str:
  """Returns where a server is found. settings: its own. sockets: of `bind_sockets`."""
  if settings.unix_socket:
    return f'the API is at the socket {settings.unix_socket}'
  host = f'[{settings.host}]' if ':' in settings.host else settings.host
  url = f'http://{host}:{sockets[0].getsockname()[1]}'
  return f'{url}/ is the shop, {url}/docs the API' if settings.shop else f'{url}/docs is the API'


def listen(service: RecommendationService, log: Callable[..., None] = print,
           sockets: list[socket.socket] | None = None) -> None:
  """Listens until a signal comes, then answers what waits.

  service: what answers. log: prints a line, as `print` does. sockets: of `bind_sockets`, made here
  without them. Raises ConfigError where another program took the port meanwhile.
  """
  settings = service.settings
  sockets, server = sockets or bind_sockets(settings), build_server(service, False, log)
  for one in sockets:
    with address_errors(settings, sockets):  # who began meanwhile may have the port
      one.listen(BACKLOG)
  served_model.warm_up_all(service.models)
  log(describe_address(settings, sockets), flush=True)
  server.run(sockets)
  if settings.unix_socket:
    os.unlink(settings.unix_socket)
  service.close()
  log('ended; all that was asked is answered', flush=True)
