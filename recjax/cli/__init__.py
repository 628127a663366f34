"""The command recjax: a module a verb, each with its flags and what it does.

A verb's module holds HELP, EXAMPLES (what may stand behind `recjax VERB`), WRITES (the flag that
says where it writes, or ''), `add_flags` and `run`.
"""
import argparse
import contextlib
import os
import sys

import recjax
import recjax.settings
from recjax import errors, file_io, progress
from recjax.cli import (
  blend,
  chat,
  compare,
  convert,
  doctor,
  events,
  guide,
  mcp,
  prepare,
  recommend,
  run,
  serve,
  settings,
  sweep,
)
from recjax.errors import WorkdirError

GROUPS = {
    'data': {'prepare': prepare, 'doctor': doctor, 'guide': guide},
    'runs': {'run': run, 'settings': settings, 'sweep': sweep, 'compare': compare,
             'blend': blend, 'convert': convert},
    'recommendations': {'recommend': recommend, 'chat': chat, 'serve': serve, 'mcp': mcp,
                        'events': events}}

VERBS = {name: verb for verbs in GROUPS.values() for name, verb in verbs.items()}

COMPILING = ('recommend', 'chat', 'serve', 'mcp')  # they keep programs, as runs do

OPEN_ENDED = ('chat', 'serve', 'mcp', 'prepare')  # they wait for people, or tell by themselves

FIRST_HOUR = """\
from raw files to recommendations:
  recjax prepare table log.csv --out=data/mine                  counts after every step
  recjax doctor data/mine                                       what is odd in them
  recjax guide data/mine                                        which method, how long, its command
  recjax run CONFIG:data=data/mine --workdir=checkpoints/mine
  recjax recommend checkpoints/mine --user=ID                   or --history=, or --input=FILE
  recjax compare checkpoints/mine checkpoints/other --html=compare.html
  recjax blend checkpoints/mine checkpoints/other --out=checkpoints/mix
  recjax serve checkpoints/mine                                 a shop at http://127.0.0.1:8000
  recjax events report                                          what came of its recommendations

CONFIG is one of configs/, e.g. betag_scientific, which has a built-in shop as well, or your file.
every verb tells more: recjax VERB --help"""


def parser() -> argparse.ArgumentParser:
  """Every verb with its flags."""
  told = [f'{group}:\n' + '\n'.join(f'  {name:<11} {verb.HELP}' for name, verb in verbs.items())
          for group, verbs in GROUPS.items()]
  top = argparse.ArgumentParser(
      prog='recjax', usage='recjax [-h] [--version] VERB ...', epilog=FIRST_HOUR,
      description='\n\n'.join(['Recommendation with language models, on JAX.', *told]),
      formatter_class=argparse.RawDescriptionHelpFormatter)
  top.add_argument('--version', action='version', version=f'recjax {recjax.__version__}')
  subparsers = top.add_subparsers(dest='verb', required=True, metavar='VERB',
                                  help=argparse.SUPPRESS)
  for name, verb in VERBS.items():
    flags = subparsers.add_parser(name, prog=f'recjax {name}', description=verb.HELP)
    verb.add_flags(flags)
    flags.epilog = 'examples:' + ''.join(f'\n  recjax {name} {example}'
                                         for example in verb.EXAMPLES)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter  # a command stays in one line
  return top


def main() -> None:
  """Runs the verb that the command line names."""
  top = parser()
  words, rest = recjax.settings.split_command_line(sys.argv[1:])
  args = top.parse_args(rest)
  args.settings = words
  if words and args.verb not in ('doctor', 'run', 'settings'):
    top.error(f'--config.{words[0]}: settings are of `recjax run`, `doctor` and `settings`')
  if args.verb == 'run':  # which guards itself
    return run.run(args)
  errors.guard(lambda: call_verb(args))


def call_verb(args: argparse.Namespace) -> None:
  """Runs a verb. args: of the command line. Raises WorkdirError that names what it writes to where
  the disk is full."""
  verb = VERBS[args.verb]
  if args.verb in COMPILING:  # read where JAX is imported, here and in the processes of a server
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(file_io.cache_folder() / 'xla'))
  try:
    with contextlib.nullcontext() if args.verb in OPEN_ENDED else progress.printing(args.verb):
      verb.run(args)
  except errors.UserError:
    raise
  except Exception as error:
    target = getattr(args, verb.WRITES, '')
    fault = target and errors.disk_fault(error)
    if not fault:
      raise
    raise WorkdirError(f'--{verb.WRITES}={target}: {fault}; make room there and run the same '
                       'command again, or name another place') from error
