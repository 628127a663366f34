"""`recjax serve`: trained runs over HTTP, and a web shop."""
import argparse
import os
import sys
import threading

from recjax import settings
from recjax.cli import events as events_cli
from recjax.errors import ConfigError

HELP = 'trained runs over HTTP, and a web shop'
EXAMPLE = 'checkpoints/betag_scientific checkpoints/sequential_beauty'
WRITES = ''


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('workdirs', nargs='+', metavar='workdir', help='folders of finished runs')
  parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default '
                      '127.0.0.1, this machine alone)')
  parser.add_argument('--port', type=int, default=8000, help='(default 8000)')
  parser.add_argument('--data', action='append', default=[], metavar='FOLDER',
                      help='a further data set that chat models recommend from')
  parser.add_argument('--later', metavar='NEW', help='the data of the runs as `recjax prepare '
                      '--update` carried them on: new items are recommended, too')
  parser.add_argument('--catalog', metavar='FILE', help='items as they are now, items.jsonl; '
                      'read again at POST /v1/catalog/reload')
  parser.add_argument('--catalogue', help=argparse.SUPPRESS)
  parser.add_argument('--timeout', type=settings.flag(float, 'above 0'), default=60.,
                      help='seconds that an answer may take (default 60)')
  parser.add_argument('--most', type=settings.flag(int, 'at least 1'), default=256,
                      help='requests at a time (default 256)')
  parser.add_argument('--interests-url', default='', metavar='URL', help='an OpenAI-compatible '
                      'endpoint that foresees interests; its key is in OPENAI_API_KEY')
  parser.add_argument('--interests-model', default='', metavar='NAME', help='the model to ask '
                      'there')
  parser.add_argument('--events', default=events_cli.DEFAULT_PLACE, metavar='PLACE', help='the '
                      'database of what users do: a SQLite file (default '
                      f'{events_cli.DEFAULT_PLACE} here), postgresql://USER:PASSWORD@HOST/NAME, '
                      'or none, which forgets all at the end')
  parser.add_argument('--history-types', default='purchase', metavar='TYPE,...', help='events that '
                      "make a user's history, of view, click, cart, purchase (default purchase)")
  parser.add_argument('--split', default='', metavar='NAME:SHARE,...', help='which share of users '
                      'gets which model where a request names none, as in a:0.9,b:0.1')
  parser.add_argument('--no-shop', dest='shop', action='store_false', help='the API alone, '
                      'without the demonstration shop')


def run(args: argparse.Namespace) -> None:
  """Answers over HTTP until stopped; RECJAX_API_KEY, where set, guards every route. args: of the
  command line."""
  from recjax.serving import server
  from recjax.serving.service import ServerSettings
  if args.catalogue:
    raise ConfigError('--catalogue is called --catalog since 0.2')
  if bool(args.interests_url) != bool(args.interests_model):
    raise ConfigError('--interests-url and --interests-model go together')
  server_settings = ServerSettings(
      args.host, args.port, answer_seconds=args.timeout, max_concurrent=args.most,
      shop=args.shop, interests_url=args.interests_url, interests_model=args.interests_model,
      events='' if args.events == 'none' else args.events, split=args.split,
      history_types=events_cli.parse_types(args.history_types, '--history-types'))
  server.run(args.workdirs, server_settings, args.data, args.catalog, args.later)
  if any(t.daemon for t in threading.enumerate()):  # a model that still warms would abort the end
    sys.stdout.flush()
    os._exit(0)
