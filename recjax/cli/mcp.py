"""`recjax mcp`: trained runs as tools of assistants, by the Model Context Protocol."""
import argparse
import functools
import os
import sys
import threading

from recjax.cli import events as events_cli

HELP = 'trained runs as tools of assistants (Model Context Protocol)'
EXAMPLES = (
    'checkpoints/sequential_beauty',
    'checkpoints/sequential_beauty --http --port=8001',
)
WRITES = ''


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('workdirs', nargs='+', metavar='workdir', help='folders of finished runs; '
                      'the first answers where none is named')
  parser.add_argument('--http', action='store_true', help='listen at http://HOST:PORT/mcp, not at '
                      'standard input; RECJAX_API_KEY, where set, guards it')
  parser.add_argument('--host', default='127.0.0.1', help='(default 127.0.0.1)')
  parser.add_argument('--port', type=int, default=8001, help='(default 8001; 0 takes any free one)')
  parser.add_argument('--events', default='', metavar='PLACE', help='the database of `recjax '
                      'serve`, which knows users by id; without it only the training data do')
  parser.add_argument('--history-types', default='purchase', metavar='TYPE,...', help='as of '
                      '`recjax serve`')


def run(args: argparse.Namespace) -> None:
  """Answers until its input ends, or until stopped. args: of the command line."""
  import mcp  # noqa: F401  if it is missing, before models are read

  from recjax.serving import mcp_server, served_model, server
  from recjax.serving.service import RecommendationService, ServerSettings
  log = functools.partial(print, file=sys.stderr, flush=True)  # standard output is the protocol's
  settings = ServerSettings(
      args.host, args.port, api_key=server.key_of_environment() if args.http else '',
      events=args.events,
      history_types=events_cli.parse_types(args.history_types, '--history-types'))
  sockets = server.bind_sockets(settings) if args.http else []
  models = served_model.open_models(args.workdirs, log=log)
  service = RecommendationService(models, settings)
  served_model.warm_up_all(models)
  tools = mcp_server.build(service)
  if args.http:
    mcp_server.listen_http(tools, service, sockets, log)
  else:
    tools.run('stdio')
  service.close()
  if any(thread.daemon for thread in threading.enumerate()):  # a model that still warms
    sys.stdout.flush()
    os._exit(0)
