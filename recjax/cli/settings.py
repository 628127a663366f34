"""`recjax settings`: what may be changed in a run, and what it means."""
import argparse
import textwrap

from recjax import experiment, setting_meanings, settings
from recjax.errors import ConfigError

HELP = 'every setting of a config: its value, what it means, what it may be'
EXAMPLES = (
    'betag_scientific',
    'reclm_scientific:laptop lora optim',
)
WRITES = ''


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('config', metavar='CONFIG[:ARG]', help='as `recjax run` takes it; what is '
                      'changed by --config.a.b=VALUE is shown so')
  parser.add_argument('words', metavar='WORD', nargs='*',
                      help='only settings whose name or meaning holds one of these')


def run(args: argparse.Namespace) -> None:
  """Prints the settings. args: of the command line. Raises ConfigError where none holds a word."""
  cfg = experiment.read_config(args.config)
  settings.change(cfg, args.settings)
  words = [word.lower() for word in args.words]
  group = ''
  found = [setting for setting in setting_meanings.describe(cfg) if not words or any(
      word in f'{setting.name} {setting.meaning}'.lower() for word in words)]
  if not found:
    raise ConfigError(f'no setting of {args.config} holds {" or ".join(args.words)}')
  for setting in found:
    if setting.name.rpartition('.')[0] != group:
      group = setting.name.rpartition('.')[0]
      print()
    print(f'--config.{setting.name}={setting.value!r}')
    allowed = f'({setting.allowed})' if setting.allowed else ''
    if told := f'{setting.meaning} {allowed}'.strip():
      print(textwrap.fill(told, 96, initial_indent='    ', subsequent_indent='    '))
