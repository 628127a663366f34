"""`recjax run`: an experiment, as `python -m recjax.main` runs it."""
import argparse
import functools
import shlex
import sys

from absl import app, flags

from recjax import main as experiments

HELP = 'an experiment, from its first unfinished stage on'
EXAMPLES = (
    'betag_scientific:data=data/mine --workdir=checkpoints/mine --config.seed=1',
    'sequential_beauty:paper,data=data/beauty,model=gru4rec',
)
WRITES = ''


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of recjax.main. parser: takes them."""
  parser.add_argument('config', metavar='CONFIG[:ARG]', help='one of configs/ by its name, from '
                      'here or as it came with recjax, or a file; ARG is paper, data=FOLDER, or '
                      'what else it takes. Its settings change by --config.a.b=VALUE')
  for holder in experiments.RUN_FLAGS:
    flag = flags.FLAGS[holder.name]
    kind = {'action': 'store_true'} if flag.boolean else {}
    parser.add_argument(f'--{flag.name}', help=flag.help.replace('%', '%%'), **kind)


def run(args: argparse.Namespace) -> None:
  """Runs the experiment, and ends the process as recjax.main does. args: of the command line."""
  values = {holder.name: getattr(args, holder.name) for holder in experiments.RUN_FLAGS}
  argv = ['recjax run', f'--config={args.config}', *(f'--config.{word}' for word in args.settings),
          *(f'--{name}' if value is True else f'--{name}={value}' for name, value in values.items()
            if value not in (None, False))]
  command = f'recjax {shlex.join(sys.argv[1:])}'
  app.run(functools.partial(experiments.main, command=command), argv, experiments.parse)
