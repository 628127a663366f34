"""`recjax doctor`: what is wrong with data, what a config costs."""
import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recjax import experiment, methods, run_files, settings
from recjax.errors import ConfigError

if TYPE_CHECKING:
  from recjax.data.dataset import Dataset
  from recjax.evaluation.audit import Check

HELP = 'what is wrong with data, what a test on them can tell, what a config costs'
EXAMPLE = 'sample --config=configs/betag_scientific.py:paper'
WRITES = 'html'


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('data', help="folder of a data set, or 'sample'")
  parser.add_argument('--config', help='a config file (with :argument) whose cost to print; its '
                      'settings change by --config.a.b=VALUE, as in recjax.main')
  parser.add_argument('--audit', action='store_true', help='also: is there an order to learn, how '
                      'much does leave-one-out leak, ties, repeats, drift; exit code 1 on an error')
  parser.add_argument('--html', default='', help='also write the audit as a page, e.g. audit.html')


def run(args: argparse.Namespace) -> None:
  """Prints findings about the data, an audit and the cost of a config. args: of the command line.
  Raises SystemExit with 1 where an audit finds an error."""
  from recjax.data import loading, split_rule, splits, validate
  from recjax.data.dataset import with_rule
  if args.html:
    if not args.audit:
      raise ConfigError('--html writes the audit as a page; add --audit')
    run_files.absent(args.html, '--html')
  if args.settings and not args.config:
    raise ConfigError(f'--config.{args.settings[0]} changes a config; name it, e.g. '
                      '--config=configs/betag_scientific.py')
  cfg = args.config and experiment.changed(experiment.read_config(args.config), args.settings)
  data = loading.load_data(args.data)
  if cfg:
    data = with_rule(data, split_rule.for_config(cfg))
  print(f'{data.name}: {len(data.catalog):,} items, {len(data.interactions):,} users, '
        f'{len(data.interactions.items):,} interactions, fingerprint {data.fingerprint[:16]}')
  if not data.split_rule.default:
    print(f'split: {splits.make_split(data).protocol}')
  findings = validate.check(data)
  for finding in findings:
    print(f'{finding.severity}: {finding.what}: {finding.count:,}'
          + (f', e.g. {", ".join(map(str, finding.examples[:3]))}' if finding.examples else ''))
    print(f'    {finding.remedy}')
  checks = audited(data, args.html) if args.audit else []
  if cfg:
    with settings.reading():
      costs = methods.find(cfg.method, args.config).cost(cfg, data)
    for name, value in costs.items():
      print(f'{name}: {value}')
  if args.audit and 'error' in {*(f.severity for f in findings), *(c.level for c in checks)}:
    sys.exit(1)


def audited(data: 'Dataset', page_path: str = '') -> 'list[Check]':
  """Prints what an audit finds. data: the data set. page_path: of a page to write, '' for none."""
  from recjax.evaluation import audit
  from recjax.report import html
  checks = audit.audit(data)
  print('audit:')
  for check in checks:
    print(f'{check.level}: {check.name}')
    for name, value in check.figures.items():
      print(f'    {name}: {shown(value)}')
    print(f'    {check.sentence}')
  if page_path:
    html.write(page_path, page(data, checks))
    print(f'page: {page_path}')
  return checks


def shown(value: float) -> str:
  """A figure as people read it. value: a count, or a share or mean."""
  return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def page(data: 'Dataset', checks: 'Sequence[Check]') -> str:
  """The page of an audit. data: the data set. checks: of it."""
  from recjax.evaluation import audit
  from recjax.report import html
  levels = {level: sum(check.level == level for check in checks) for level in audit.LEVELS}
  return html.page(f'Audit of {data.name}', f'fingerprint {data.fingerprint[:16]}', html.tiles([
      ('items', len(data.catalog)), ('users', len(data.interactions)),
      ('interactions', len(data.interactions.items)), *levels.items()]), [
          html.section('What was looked at', html.table(
              ['Check', 'Level', 'What it means'],
              [[check.name, check.level, check.sentence] for check in checks],
              'checks of the data set and of leave-one-out on it, the gravest first')),
          html.section('Figures', html.table(
              ['Check', 'Figure', 'Value'],
              [[check.name, name, shown(value)] for check in checks
               for name, value in check.figures.items()], 'shares are from 0 to 1'))])
