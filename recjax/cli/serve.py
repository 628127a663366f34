"""`recjax serve`: trained runs over HTTP, and a web shop."""
import argparse
import os
import pathlib
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from recjax import settings
from recjax.cli import events as events_cli
from recjax.errors import ConfigError

HELP = 'trained runs over HTTP, and a web shop'
EXAMPLES = (
    'checkpoints/betag_scientific checkpoints/sequential_beauty',
    'checkpoints/mine --events=recjax-events.sqlite --no-shop',
)
WRITES = ''
DEFAULTS: dict[str, Any] = dict(
    workdirs=(), host='127.0.0.1', port=8000, unix_socket='', data=(), later=None, catalog=None,
    catalogue=None, timeout=60.0, most=256, keys='', rate=0.0, burst=100, interests_url='',
    interests_model='', events=events_cli.DEFAULT_PLACE, history_types='purchase', split='',
    workers=1, access_log='', log_histories=False, shop=True, prefix_memory=256,
    options='')
ENVIRONMENT = 'RECJAX_SERVE_'  # and the name of a flag: RECJAX_SERVE_PORT
SWITCHES = ('shop', 'log_histories')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb; those that are not given are not in what it parses. parser: takes them.
  """
  def add(*names: str, **how: Any) -> None:
    parser.add_argument(*names, default=argparse.SUPPRESS, **how)
  add('workdirs', nargs='*', metavar='workdir', help='folders of finished runs')
  add('--options', metavar='FILE', help='a TOML file of these flags, as in port = 80 and runs = '
      '["checkpoints/mine"]; what stands in the environment, as in RECJAX_SERVE_PORT, comes before '
      'it, and the command line before both')
  add('--host', help='address to listen on (default 127.0.0.1, this machine alone)')
  add('--port', type=int, help='(default 8000; 0 takes any free one)')
  add('--unix-socket', metavar='PATH', help='listen there instead')
  add('--data', action='append', metavar='FOLDER', help='a further data set that chat models '
      'recommend from')
  add('--later', metavar='NEW', help='the data of the runs as `recjax prepare --update` carried '
      'them on: new items are recommended, too')
  add('--catalog', metavar='FILE', help='items as they are now, items.jsonl; read again at POST '
      '/v1/catalog/reload')
  add('--catalogue', help=argparse.SUPPRESS)
  add('--timeout', type=settings.flag(float, 'above 0'), help='seconds that an answer may take '
      '(default 60)')
  add('--most', type=settings.flag(int, 'at least 1'), help='requests at a time (default 256)')
  add('--workers', type=settings.flag(int, 'at least 1'), help='processes that answer at the one '
      'address, each with the models in its own memory, on the CPU and with --no-shop (default 1)')
  add('--keys', metavar='FILE', help='keys that requests must carry, TOML: [shop], key = "...", '
      'rate = 50, burst = 100')
  add('--rate', type=settings.flag(float, 'at least 0'), help='requests a second in the long run, '
      'of all who need no key of --keys (default 0: any)')
  add('--burst', type=settings.flag(int, 'at least 1'), help='and at once (default 100)')
  add('--events', metavar='PLACE', help='the database of what users do: a SQLite file (default '
      f'{events_cli.DEFAULT_PLACE} here), postgresql://USER:PASSWORD@HOST/NAME, or none, which '
      'forgets all at the end')
  add('--history-types', metavar='TYPE,...', help="events that make a user's history, of view, "
      'click, cart, purchase (default purchase)')
  add('--split', metavar='NAME:SHARE,...', help='which share of users gets which model where a '
      'request names none, as in a:0.9,b:0.1')
  add('--prefix-memory', metavar='MIB', type=settings.flag(int, 'at least 0'), help='MiB that each '
      'language model may keep of what it read of prompts, so that a second round reads what is '
      'new (default 256; 0 keeps nothing)')
  add('--access-log', metavar='FILE', help='a JSON object a line for every request; - is standard '
      'error')
  add('--log-histories', action=argparse.BooleanOptionalAction, help='with users and histories '
      '(default without)')
  add('--interests-url', metavar='URL', help='an OpenAI-compatible endpoint that foresees '
      'interests; its key is in OPENAI_API_KEY')
  add('--interests-model', metavar='NAME', help='the model to ask there')
  add('--shop', action=argparse.BooleanOptionalAction, help='the demonstration shop, too '
      '(default), or the API alone')


def run(args: argparse.Namespace) -> None:
  """Answers over HTTP until stopped; RECJAX_API_KEY, where set, guards every route. args: of the
  command line."""
  from recjax.serving import server
  from recjax.serving.service import ServerSettings
  args = with_options(args, os.environ)
  if args.catalogue:
    raise ConfigError('--catalogue is called --catalog since 0.2')
  if bool(args.interests_url) != bool(args.interests_model):
    raise ConfigError('--interests-url and --interests-model go together')
  if not args.workdirs:
    raise ConfigError('name the folders of finished runs, as in recjax serve checkpoints/mine')
  server_settings = ServerSettings(
      args.host, args.port, unix_socket=args.unix_socket, answer_seconds=args.timeout,
      max_concurrent=args.most, shop=args.shop, interests_url=args.interests_url,
      interests_model=args.interests_model, keys=args.keys, rate=args.rate, burst=args.burst,
      access_log=args.access_log, log_histories=args.log_histories,
      events='' if args.events == 'none' else args.events, split=args.split,
      history_types=events_cli.parse_types(args.history_types, '--history-types'),
      workers=args.workers, prefix_bytes=args.prefix_memory << 20)
  server.run(args.workdirs, server_settings, args.data, args.catalog, args.later)
  if any(t.daemon for t in threading.enumerate()):  # a model that still warms would abort the end
    sys.stdout.flush()
    os._exit(0)


def with_options(args: argparse.Namespace, environment: Mapping[str, str]) -> argparse.Namespace:
  """Returns what the command line says, where it is silent the environment, then a file, then
  DEFAULTS.

  args: of the command line. environment: the environment variables. Raises ConfigError.
  """
  named = {name.removeprefix(ENVIRONMENT).lower(): value for name, value in environment.items()
           if name.startswith(ENVIRONMENT)}
  if isinstance(named.get('runs'), str):
    named['runs'] = named['runs'].split()
  path = getattr(args, 'options', '') or named.pop('options', '')
  layers = [DEFAULTS]
  if path:
    try:
      table = tomllib.loads(pathlib.Path(path).read_text('utf-8'))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
      raise ConfigError(f'--options={path}: {error}') from error
    layers.append(parse_table(table, f'--options={path}'))
  layers += [parse_table(named, f'the environment, {ENVIRONMENT}…'), vars(args)]
  return argparse.Namespace(**{name: value for layer in layers for name, value in layer.items()})


def parse_table(table: Mapping[str, Any], origin: str) -> dict[str, Any]:
  """Returns flags that do not come from the command line, read as if they did. table: by name.
  origin: where they stand, for messages. Raises ConfigError."""
  class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
      raise ConfigError(f'{origin}: {message}')
  parser = Parser(allow_abbrev=False)
  add_flags(parser)
  known = {'runs', *DEFAULTS} - {'workdirs', 'catalogue', 'options'}
  words = []
  for name, value in table.items():
    name = name.replace('-', '_')
    if name not in known:
      raise ConfigError(f'{origin}: there is no {name!r}; there are {", ".join(sorted(known))}')
    words += flag_words(name, value, origin)
  return vars(parser.parse_args(words))


def flag_words(name: str, value: Any, origin: str) -> Iterator[str]:
  """Yields a setting as words of a command line. name: of the flag, with underscores. value: of it.
  origin: where it stands, for messages. Raises ConfigError for a switch that is neither on nor
  off."""
  if name in SWITCHES:
    is_on = {'true': True, 'false': False}.get(str(value).lower())
    if is_on is None:
      raise ConfigError(f'{origin}: {name} is true or false, not {value!r}')
    yield f'--{"" if is_on else "no-"}{name.replace("_", "-")}'
  elif name == 'runs':
    yield from map(str, value if isinstance(value, list) else [value])
  else:
    for one in value if isinstance(value, list) else [value]:
      yield f'--{name.replace("_", "-")}={one}'
