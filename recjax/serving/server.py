"""`recjax serve`: opens runs, listens, and ends when asked, answering first what was asked."""
import contextlib
import dataclasses
import errno
import logging
import os
import signal
import socket
import sys

from recjax.errors import ConfigError
from recjax.serving import app as apps
from recjax.serving import limits, models
from recjax.serving.counters import Counters
from recjax.serving.service import Service

KEY_ENV = 'RECJAX_API_KEY'
BACKLOG = 1024  # connections that the system holds until they are taken
DRAIN = 20  # seconds that requests under way have to end


def run(workdirs, settings, data=(), items_file=None, later=None, say=print):
  """Serves runs until SIGTERM or SIGINT. The API key is read from RECJAX_API_KEY.

  data, items_file, later: as `models.open_all` takes them
  """
  key = os.environ.get(KEY_ENV, '').strip()
  if not key.isascii() or not key.isprintable():
    raise ConfigError(f'the environment variable {KEY_ENV} does not hold a key: it has special '
                      'characters')
  import uvicorn  # noqa: F401  if it is missing, before models are read, which takes a while
  logging.basicConfig(level=logging.WARNING, stream=sys.stderr,
                      format='%(asctime)s %(levelname)s %(message)s')
  logging.getLogger('recjax').setLevel(logging.INFO)
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(one) for one in bound(settings)]  # as early as that, too
    counters = Counters()
    found = models.open_all(list(map(str, workdirs)), data, items_file, seen=counters.batch,
                            later=later)
    for line in models.describe(found, workdirs):
      say(line)
    service = Service(found, dataclasses.replace(settings, key=key), counters)
    if not key and settings.host not in limits.LOCAL:
      say(f'anybody who reaches {settings.host} may ask; set {KEY_ENV} to a secret')
    listen(service, say, sockets)


def bound(settings):
  """Sockets of the address to listen on. Raises ConfigError where that cannot be had."""
  host, port = settings.host, settings.port
  if not 0 <= port <= 65535:
    raise ConfigError(f'--port={port}: a port is a number from 1 to 65535, or 0 for any free one')
  if settings.most < 1 or not 0 < settings.seconds < float('inf'):
    raise ConfigError(f'--most={settings.most} and --timeout={settings.seconds:g}: both must be '
                      'above 0')
  try:
    places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
  except (socket.gaierror, UnicodeError) as error:
    raise ConfigError(f'--host={host} is no address ({error}); give one of this machine, e.g. '
                      '127.0.0.1') from error
  out, why = [], None
  for family, kind, protocol, _, address in dict.fromkeys(places):
    try:
      one = socket.socket(family, kind, protocol)
    except OSError as error:  # a family that this machine has not
      why = error
      continue
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
      one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if out and not port:  # any free one, the same of every address
      address = (address[0], out[0].getsockname()[1], *address[2:])
    try:
      one.bind(address)
      out.append(one)
    except OSError as error:
      one.close()
      why = error
      if error.errno != errno.EADDRNOTAVAIL:  # another address of the name may do
        break
  else:
    if out:
      return out
  with refused(settings, out):
    raise why


@contextlib.contextmanager
def refused(settings, sockets):
  """What the system says of an address, as ConfigError; the sockets are closed then."""
  try:
    yield
  except OSError as error:
    for one in sockets:
      one.close()
    host, port = settings.host, settings.port
    raise ConfigError({
        errno.EADDRINUSE: f'--port={port}: another program listens there; give another, or 0 for '
                          'any free one',
        errno.EACCES: f'--port={port}: only an administrator may listen there; give one above 1023',
        errno.EADDRNOTAVAIL: f'--host={host} is no address of this machine; 127.0.0.1 and 0.0.0.0 '
                             'always are'}.get(
        error.errno, f'--host={host} --port={port}: {error.strerror or error}')) from error


def server_of(service, warm=True):
  """The uvicorn server of a Service, its models being warmed if asked."""
  import uvicorn
  settings = service.settings
  config = uvicorn.Config(
      apps.make(service), settings.host, settings.port, http=limits.Punctual, ws='none',
      lifespan='off', log_level='warning', access_log=False, server_header=False,
      timeout_keep_alive=15, limit_concurrency=4 * settings.most, backlog=BACKLOG,
      timeout_graceful_shutdown=DRAIN)

  class Server(uvicorn.Server):
    """Ends open event streams as soon as a signal comes, so that the rest can end, and then ends as
    a program that did what it was told; uvicorn would raise the signal again."""

    def handle_exit(self, sig, frame):
      self.force_exit = self.should_exit and sig == signal.SIGINT
      service.closing = self.should_exit = True
  if warm:
    models.warm_all(service.models)
  return Server(config)


def listen(service, say=print, sockets=None):
  """Listens until a signal comes. sockets: of `bound`, if they are there already."""
  settings = service.settings
  sockets, server = sockets or bound(settings), server_of(service, warm=False)
  for one in sockets:
    with refused(settings, sockets):  # who began meanwhile may have the port
      one.listen(BACKLOG)
  models.warm_all(service.models)
  host = f'[{settings.host}]' if ':' in settings.host else settings.host
  port = sockets[0].getsockname()[1]
  say(f'http://{host}:{port}/ is the shop, http://{host}:{port}/docs the API', flush=True)
  server.run(sockets)
  service.close()
