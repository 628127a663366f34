"""`recjax chat`: a conversation in the terminal with a model that recommends real items alone."""
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.text import Text

from recjax import methods, run_files, settings
from recjax.errors import ConfigError, UserError

HELP = ('/domain NAME recommends from another catalog, /about ID,ID says what was bought, /clear '
        'begins anew, /json shows replies as JSON, /quit ends')
TINY = ('This tiny model shows the method: it lists items and knows no other talk. Say what was '
        'bought, then ask: /about ID,ID and on the next line, Please recommend 10 items.')


def run(workdir: str | os.PathLike, catalogs: Sequence[str] = (),
        lines: Iterable[str] | None = None, console: Console | None = None) -> None:
  """Reads turns and answers each until there are no more.

  workdir: the run's folder. catalogs: folders of further data sets to recommend from. lines: what
  is typed, by default in the terminal. console: where answers go. Raises ConfigError where the
  run's method does not converse.
  """
  config = run_files.read_config(workdir)['config']
  method = config['method']
  module = methods.find(method, f'{workdir}/config.json')
  if not hasattr(module, 'converse'):
    raise ConfigError(f'{workdir} is a run of {method}, which does not converse; ask it for items '
                      'with `recjax recommend`')
  with run_files.opening(workdir), settings.reading(workdir):
    talk, mesh = module.converse(workdir, catalogs)
  console = console or Console(highlight=False)
  console.print(f'{", ".join(talk.domains)}. {HELP}')
  if config['llm']['weights'] == 'tiny':
    console.print(TINY)
  state = {'json': False, 'history': ()}
  with jax.set_mesh(mesh):
    console.print('Getting ready ...', end=' ')
    started = time.monotonic()
    talk.warm()
    console.print(f'{time.monotonic() - started:.0f} s.')
    for line in lines if lines is not None else typed(console):
      line = line.strip()
      if line in ('/quit', '/exit'):
        break
      if line:
        try:
          turn(talk, line, state, console)
        except UserError as error:
          console.print(str(error), style='red', markup=False)


def typed(console: Console) -> Iterator[str]:
  """console: of the terminal. Yields lines of the terminal or a pipe."""
  while True:
    try:
      yield console.input('> ' if sys.stdin.isatty() else '')
    except (EOFError, KeyboardInterrupt):
      return


def turn(talk: Any, line: str, state: dict, console: Console) -> None:
  """One line: a command, or something said.

  talk: the conversation, as the method's `converse` gives it. state: 'json', whether replies are
  shown as JSON, and 'history', ids of what was bought, for the next turn. line: what was typed.
  console: where replies are shown.
  """
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
    history, state['history'] = state['history'], ()
    if state['json']:
      reply = talk.say(line, history=history)
      console.print(json.dumps({'text': reply.text, 'items': named(talk, reply),
                                'complete': reply.complete},
                               ensure_ascii=False), markup=False, soft_wrap=True)
    else:
      written = Written(talk, console)
      written(talk.say(line, history=history, tell=written))
      console.print()


class Written:
  """Prints of a reply what is new each time. talk: whose catalog it is about. console: where it is
  shown."""

  def __init__(self, talk: Any, console: Console) -> None:
    self.talk, self.console, self.size = talk, console, 0

  def __call__(self, reply: Any) -> None:
    line = shown(reply.text, named(self.talk, reply))
    self.console.print(line[self.size:], end='', soft_wrap=True)
    self.size = len(line)


def named(talk: Any, reply: Any) -> list[dict[str, str]]:
  """The items of a reply, [{'id', 'title'}, ...]. talk: the conversation."""
  stock = talk.grounded.tokenized
  return [{'id': stock.catalog.id_of(i), 'title': stock.titles[i - 1]} for i in reply.items]


def shown(text: str, items: Sequence[dict[str, str]]) -> Text:
  """The reply with its items highlighted, their ids behind. items: as `named` gives them. text: of
  the reply."""
  out, rest = Text(), text
  for item in items:
    before, found, rest = rest.partition(f'"{item["title"]}"')
    out.append(before)
    if found:
      out.append(item['title'], 'bold cyan')
      out.append(f' [{item["id"]}]', 'dim')
  return out.append(rest)
