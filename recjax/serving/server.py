"""`recjax serve`: opens runs, listens, and ends when asked, answering first what was asked."""
import dataclasses
import logging
import os
import signal
import sys

from recjax.errors import ConfigError
from recjax.serving import app as apps
from recjax.serving import limits, models
from recjax.serving.counters import Counters
from recjax.serving.service import Service

KEY_ENV = 'RECJAX_API_KEY'
DRAIN = 20  # seconds that requests under way have to end


def run(workdirs, settings, data=(), items_file=None, later=None, say=print):
  """Serves runs until SIGTERM or SIGINT. The API key is read from RECJAX_API_KEY.

  data, items_file, later: as `models.open_all` takes them
  """
  key = os.environ.get(KEY_ENV, '').strip()
  if not key.isascii() or not key.isprintable():
    raise ConfigError(f'the environment variable {KEY_ENV} does not hold a key: it has special '
                      'characters')
  logging.basicConfig(level=logging.WARNING, stream=sys.stderr,
                      format='%(asctime)s %(levelname)s %(message)s')
  logging.getLogger('recjax').setLevel(logging.INFO)
  counters = Counters()
  found = models.open_all(list(map(str, workdirs)), data, items_file, seen=counters.batch,
                          later=later)
  for line in models.describe(found, workdirs):
    say(line)
  service = Service(found, dataclasses.replace(settings, key=key), counters)
  if not key and settings.host not in limits.LOCAL:
    say(f'anybody who reaches {settings.host} may ask; set {KEY_ENV} to a secret')
  listen(service, say)


def server_of(service, warm=True):
  """The uvicorn server of a Service, its models being warmed if asked."""
  import uvicorn
  settings = service.settings
  config = uvicorn.Config(
      apps.make(service), settings.host, settings.port, http=limits.Punctual, ws='none',
      lifespan='off', log_level='warning', access_log=False, server_header=False,
      timeout_keep_alive=15, limit_concurrency=4 * settings.most, backlog=1024,
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


def listen(service, say=print):
  """Listens until a signal comes."""
  server = server_of(service)
  settings = service.settings
  host = f'[{settings.host}]' if ':' in settings.host else settings.host
  say(f'http://{host}:{settings.port}/ is the shop, http://{host}:{settings.port}/docs the API',
      flush=True)
  server.run()
  service.close()
