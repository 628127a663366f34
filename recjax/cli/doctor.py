"""`recjax doctor`: what is wrong with data, what a config costs."""
import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from recjax import experiment, file_io, methods, run_files, settings
from recjax.errors import ConfigError

if TYPE_CHECKING:
  from recjax.data.dataset import Dataset
  from recjax.data.validate import Finding
  from recjax.evaluation.audit import Check

HELP = 'what is wrong with data, what a test on them can tell, what a config costs'
EXAMPLES = (
    'data/mine --audit --html=audit.html',
    'sample --config=configs/betag_scientific.py:paper',
)
WRITES = 'html'
LEVELS = ('error', 'warning', 'note', 'ok')


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('data', help="folder of a data set, or 'sample'")
  parser.add_argument('--config', help='a config file (with :argument) whose cost to print; its '
                      'settings change by --config.a.b=VALUE, as in recjax.main')
  parser.add_argument('--audit', action='store_true', help='also: is there an order to learn, how '
                      'much does leave-one-out leak, ties, repeats, drift; exit code 1 on an error')
  parser.add_argument('--contamination', metavar='MODEL', default='', help='also: how much of the '
                      'data a language model can recite; a Hugging Face folder, a .gguf file, or '
                      'the folder of a run, whose model it is')
  parser.add_argument('--cases', type=settings.flag(int, 'at least 1'), default=200, help='of '
                      '--contamination: questions of each kind (default 200)')
  parser.add_argument('--control', default='sample', metavar='DATA', help='of --contamination: a '
                      'catalog whose titles the model cannot know, best of the same kind (default '
                      'the built-in shop, whose products are made up)')
  parser.add_argument('--html', default='', help='also write the audit as a page, e.g. audit.html')


def run(args: argparse.Namespace) -> None:
  """Prints findings about the data, an audit and the cost of a config. args: of the command line.
  Raises SystemExit with 1 where an audit finds an error."""
  from recjax import split_rule
  from recjax.data import loading, splits, validate
  from recjax.data.dataset import with_rule
  if args.html:
    if not args.audit:
      raise ConfigError('--html writes the audit as a page; add --audit')
    run_files.absent(args.html, '--html')
  if args.settings and not args.config:
    raise ConfigError(f'--config.{args.settings[0]} changes a config; name it, e.g. '
                      '--config=configs/betag_scientific.py')
  if args.contamination and not pathlib.Path(args.contamination).exists():
    raise ConfigError(f'--contamination={args.contamination} does not exist; name a Hugging Face '
                      'folder, a .gguf file, or a run whose language model is to be asked')
  cfg = args.config and experiment.changed(experiment.read_config(args.config), args.settings)
  data = loading.load_data(args.data)
  if cfg:
    with settings.reading():
      method = methods.find(cfg.method, args.config)
      data = with_rule(data, split_rule.for_config(cfg))
  print(f'{data.name}: {len(data.catalog):,} items, {len(data.interactions):,} users, '
        f'{len(data.interactions.items):,} interactions, fingerprint {data.fingerprint[:16]}')
  if not data.split_rule.default:
    print(f'split: {splits.make_split(data).protocol}')
  findings = validate.check(data)
  checks = audit_of(data) if args.audit else []
  for line in told(findings, checks):
    print(line)
  if args.html:
    from recjax.report import html
    html.write(args.html, page(data, entries(findings, checks)))
    print(f'page: {args.html}')
  if args.contamination:
    contaminated(data, args)
  if cfg:
    with settings.reading():
      costs = method.cost(cfg, data)
    for name, value in costs.items():
      print(f'{name}: {value}')
  if args.audit and 'error' in {*(f.severity for f in findings), *(c.level for c in checks)}:
    sys.exit(1)


def contaminated(data: 'Dataset', args: argparse.Namespace) -> None:
  """Prints how much of the data a model can recite, and keeps it in the folder of its run, where it
  is of one. data: the data set. args: of the command line."""
  from recjax import contamination
  from recjax.data import loading
  print(f'asking {args.contamination} about {data.name}', file=sys.stderr, flush=True)
  found = contamination.probe(
      data, args.contamination, args.cases, 0, loading.load_data(args.control),
      lambda text: print(text, file=sys.stderr, flush=True))
  for line in contamination.told(found):
    print(line)
  folder = pathlib.Path(args.contamination)
  if 'probes' in found and run_files.is_config(folder / 'config.json'):
    file_io.write_json(folder / contamination.FILE, found)
    print(f'kept in {folder / contamination.FILE}; the report of the run says it from its next '
          'start on')


def audit_of(data: 'Dataset') -> 'list[Check]':
  """What an audit finds. data: the data set."""
  from recjax.evaluation import audit
  return audit.audit(data)


def counted(finding: 'Finding') -> str:
  """A finding in a line, with its examples. finding: of `validate.check`."""
  examples = ', '.join(map(str, finding.examples[:3]))
  return f'{finding.what}: {finding.count:,}' + (f', e.g. {examples}' if examples else '')


def entries(findings: 'Sequence[Finding]', checks: 'Sequence[Check]') -> list[dict]:
  """Findings and checks as one list, the gravest first: a finding that a check looks at too stands
  below that one, as who it is, and nothing is said twice.

  findings: of `validate.check`. checks: of an audit, none where none was asked for. -> {'name',
  'level', 'sentence', 'figures', 'found': lines} each
  """
  names = {check.name for check in checks}
  made = [{'name': finding.what, 'level': finding.severity, 'sentence': finding.remedy,
           'figures': {'count': finding.count}, 'found': [counted(finding)]}
          for finding in findings if finding.check not in names]
  made += [{'name': check.name, 'level': check.level, 'sentence': check.sentence,
            'figures': check.figures,
            'found': [counted(f) for f in findings if f.check == check.name]} for check in checks]
  return sorted(made, key=lambda entry: LEVELS.index(entry['level']))


def told(findings: 'Sequence[Finding]', checks: 'Sequence[Check]') -> Iterator[str]:
  """The lines that are printed. findings, checks: as `entries` takes them."""
  from recjax.report import audit_tables
  plain = {finding.what for finding in findings}
  for entry in entries(findings, checks):
    if entry['name'] in plain:
      yield f'{entry["level"]}: {entry["found"][0]}'
    else:
      yield f'{entry["level"]}: {entry["name"]}'
      for name, value in entry['figures'].items():
        yield f'    {name}: {audit_tables.shown(value)}'
      yield from (f'    {line}' for line in entry['found'])
    yield f'    {entry["sentence"]}'


def page(data: 'Dataset', checks: 'Sequence[dict]') -> str:
  """The page of an audit. data: the data set. checks: of `entries`."""
  from recjax.report import audit_tables, html
  levels = {level: sum(check['level'] == level for check in checks) for level in LEVELS}
  return html.page(f'Audit of {data.name}', f'fingerprint {data.fingerprint[:16]}', html.tiles([
      ('items', len(data.catalog)), ('users', len(data.interactions)),
      ('interactions', len(data.interactions.items)), *levels.items()]),
                   audit_tables.sections(checks))
