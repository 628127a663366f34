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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from recjax.errors import ConfigError
from recjax.serving import app as apps
from recjax.serving import limits, served_model
from recjax.serving.events import EventStore
from recjax.serving.prometheus import Metrics
from recjax.serving.service import RecommendationService, ServerSettings

KEY_ENV = 'RECJAX_API_KEY'
BACKLOG = 1024  # connections that the system holds until they are taken
SHUTDOWN_SECONDS = 20  # that requests under way have to end
KEEP_ALIVE_SECONDS = 15  # that a connection may wait for its next request
CONNECTIONS_PER_REQUEST = 4  # connections that may be open for each request at a time


def run(workdirs: Iterable[str | os.PathLike], settings: ServerSettings,
        chat_data: Sequence[str] = (), items_file: str | os.PathLike | None = None,
        later: str | os.PathLike | None = None, log: Callable[..., None] = print,
        prefix_bytes: int = served_model.PREFIX_MIB << 20) -> None:
  """Serves finished runs until SIGTERM or SIGINT.

  workdirs: their folders. settings: how; its key is read from RECJAX_API_KEY. chat_data,
  items_file, later, prefix_bytes: as `served_model.ModelOpener` takes them. log: prints a line, as
  `print` does.

  Raises ConfigError for a key or an address that cannot be used, and where a folder holds no run.
  """
  key = key_of_environment()
  import uvicorn  # noqa: F401  if it is missing, before models are read, which takes a while
  logging.basicConfig(level=logging.WARNING, stream=sys.stderr,
                      format='%(asctime)s %(levelname)s %(message)s')
  logging.getLogger('recjax').setLevel(logging.INFO)
  folders = list(map(str, workdirs))
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(one) for one in bind_sockets(settings)]  # as early as that, too
    metrics = Metrics()
    opener = served_model.ModelOpener(chat_data, items_file, on_batch=metrics.observe_batch,
                                      later=later, prefix_bytes=prefix_bytes,
                                      on_prompt=metrics.observe_prompt)
    models = served_model.open_models(folders, opener, functools.partial(log, flush=True))
    for line in served_model.describe_models(models, folders):
      log(line)
    store = EventStore(settings.events)
    log(f'events are in {store.name}' if settings.events else
        'events are forgotten when the server ends')
    service = RecommendationService(models, dataclasses.replace(settings, api_key=key), metrics,
                                    store)
    service.reopen = {name: functools.partial(opener.open, folder)
                      for name, folder in zip(models, folders)}
    if not service.keys.keys and settings.host not in limits.LOCAL_HOSTS and (
        not settings.unix_socket):
      log(f'anybody who reaches {settings.host} may ask; set {KEY_ENV} to a secret')
    listen(service, log, sockets)


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
      app, settings.host, settings.port, http='h11', ws='none',
      lifespan=lifespan, log_level='warning', access_log=False, server_header=False,
      timeout_keep_alive=KEEP_ALIVE_SECONDS, backlog=BACKLOG,
      limit_concurrency=CONNECTIONS_PER_REQUEST * settings.max_concurrent,
      timeout_graceful_shutdown=SHUTDOWN_SECONDS)

  class Server(uvicorn.Server):
    """Ends open event streams as soon as a signal comes, so that the rest can end, and then ends as
    a program that did what it was told; uvicorn would raise the signal again."""

    def handle_exit(self, sig: int, frame: Any) -> None:
      self.force_exit = self.should_exit and sig == signal.SIGINT
      if not self.should_exit:
        log(f'{signal.Signals(sig).name}: no new connections; what is under way '
            f'({app.running}) is answered, for {SHUTDOWN_SECONDS} s at most', flush=True)
      service.is_closing = self.should_exit = True
  return Server(config)


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
  if settings.unix_socket:
    log(f'the API is at the socket {settings.unix_socket}', flush=True)
  else:
    host = f'[{settings.host}]' if ':' in settings.host else settings.host
    url = f'http://{host}:{sockets[0].getsockname()[1]}'
    log(f'{url}/ is the shop, {url}/docs the API' if settings.shop else f'{url}/docs is the API',
        flush=True)
  server.run(sockets)
  if settings.unix_socket:
    os.unlink(settings.unix_socket)
  service.close()
  log('ended; all that was asked is answered', flush=True)
