"""`recjax doctor`: what is wrong with data, what a config costs."""
import argparse

from recjax import experiment, methods, settings
from recjax.errors import ConfigError

HELP = 'what is wrong with data, what a config costs'
EXAMPLE = 'sample --config=configs/betag_scientific.py:paper'
WRITES = ''


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('data', help="folder of a data set, or 'sample'")
  parser.add_argument('--config', help='a config file (with :argument) whose cost to print; its '
                      'settings change by --config.a.b=VALUE, as in recjax.main')


def run(args: argparse.Namespace) -> None:
  """Prints findings about the data and the cost of a config. args: of the command line."""
  from recjax.data import loading, validate
  if args.settings and not args.config:
    raise ConfigError(f'--config.{args.settings[0]} changes a config; name it, e.g. '
                      '--config=configs/betag_scientific.py')
  cfg = args.config and experiment.changed(experiment.read_config(args.config), args.settings)
  data = loading.load_data(args.data)
  print(f'{data.name}: {len(data.catalog):,} items, {len(data.interactions):,} users, '
        f'{len(data.interactions.items):,} interactions, fingerprint {data.fingerprint[:16]}')
  for finding in validate.check(data):
    print(f'{finding.severity}: {finding.what}: {finding.count:,}'
          + (f', e.g. {", ".join(map(str, finding.examples[:3]))}' if finding.examples else ''))
    print(f'    {finding.remedy}')
  if cfg:
    with settings.reading():
      costs = methods.find(cfg.method, args.config).cost(cfg, data)
    for name, value in costs.items():
      print(f'{name}: {value}')
