"""`recjax chat`: a conversation in the terminal with a model that recommends real items alone."""
import json
import sys

import jax
from rich.console import Console
from rich.text import Text

from recjax import methods, run_files, settings
from recjax.errors import ConfigError, UserError

HELP = ('/domain NAME recommends from another catalogue, /about ID,ID says what was bought, /clear '
        'begins anew, /json shows replies as JSON, /quit ends')
TINY = ('This tiny model shows the method: it lists items and knows no other talk. Say what was '
        'bought, then ask: /about ID,ID and on the next line, Please recommend 10 items.')


def run(workdir, catalogues=(), lines=None, console=None):
  """Reads turns from `lines` (the terminal) and answers each until there are no more.

  Raises ConfigError where the run's method does not converse.
  """
  config = run_files.read_config(workdir)['config']
  method = config['method']
  module = methods.find(method, f'{workdir}/config.json')
  if not hasattr(module, 'converse'):
    raise ConfigError(f'{workdir} is a run of {method}, which does not converse; ask it for items '
                      'with `recjax recommend`')
  with run_files.opening(workdir), settings.of_run(workdir):
    talk, mesh = module.converse(workdir, catalogues)
  console = console or Console(highlight=False)
  console.print(f'{", ".join(talk.domains)}. {HELP}')
  if config['llm']['weights'] == 'tiny':
    console.print(TINY)
  state = {'json': False, 'history': ()}
  with jax.set_mesh(mesh):
    for line in lines if lines is not None else typed(console):
      line = line.strip()
      if line in ('/quit', '/exit'):
        break
      if line:
        try:
          turn(talk, line, state, console)
        except UserError as error:
          console.print(str(error), style='red', markup=False)


def typed(console):
  """Lines of the terminal or a pipe."""
  while True:
    try:
      yield console.input('> ' if sys.stdin.isatty() else '')
    except (EOFError, KeyboardInterrupt):
      return


def turn(talk, line, state, console):
  """One line: a command, or something said."""
  word, _, rest = line.partition(' ')
  if word == '/clear':
    talk.clear()
    state['history'] = ()
  elif word == '/json':
    state['json'] = not state['json']
  elif word == '/domain':
    talk.use(rest.strip())
  elif word == '/about':
    state['history'] = tuple(i.strip() for i in rest.split(',') if i.strip())
  elif word.startswith('/'):
    console.print(HELP)
  else:
    about, state['history'] = state['history'], ()
    if state['json']:
      reply = talk.say(line, history=about)
      console.print(json.dumps({'text': reply.text, 'items': named(talk, reply),
                                'complete': reply.complete},
                               ensure_ascii=False), markup=False, soft_wrap=True)
    else:
      written = Written(talk, console)
      written(talk.say(line, history=about, tell=written))
      console.print()


class Written:
  """Prints of a reply what is new each time. talk: whose catalogue it is about."""

  def __init__(self, talk, console):
    self.talk, self.console, self.size = talk, console, 0

  def __call__(self, reply):
    line = shown(reply.text, named(self.talk, reply))
    self.console.print(line[self.size:], end='', soft_wrap=True)
    self.size = len(line)


def named(talk, reply):
  """The items of a reply. -> [{'id', 'title'}]"""
  stock = talk.grounded.catalogs[0]
  return [{'id': stock.catalog.id_of(i), 'title': stock.titles[i - 1]} for i in reply.items]


def shown(text, items):
  """The reply with its items highlighted, their ids behind."""
  out, rest = Text(), text
  for item in items:
    before, found, rest = rest.partition(f'"{item["title"]}"')
    out.append(before)
    if found:
      out.append(item['title'], 'bold cyan')
      out.append(f' [{item["id"]}]', 'dim')
  return out.append(rest)
