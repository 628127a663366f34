"""`recjax events`: what users did with recommendations, to train on and to judge models by."""
import argparse
import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from recjax import run_files
from recjax.errors import ConfigError

HELP = 'what users did: to train on, and to judge models by'
EXAMPLES = (
    'report --events=recjax-events.sqlite',
    'export --events=recjax-events.sqlite --data=data/mine --out=log.jsonl',
)
WRITES = 'out'
DEFAULT_PLACE = 'recjax-events.sqlite'
TYPES = ('view', 'click', 'cart', 'purchase')
ROWS = 10_000  # that are written at a time


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
  export = actions.add_parser('export', help='the log that `recjax prepare table` reads')
  export.add_argument('--out', required=True, help='x.jsonl, x.jsonl.gz or x.parquet')
  export.add_argument('--data', default='', metavar='OLD', help='the data set that the events '
                      'carry on; its interactions come first, so that the file is the whole log')
  export.add_argument('--types', default='purchase', metavar='TYPE,...', help='events that count, '
                      'of view, click, cart, purchase (default purchase)')
  report = actions.add_parser('report', help='how often items were clicked and bought, by model')
  for action in (export, report):
    action.add_argument('--events', default=DEFAULT_PLACE, metavar='PLACE', help='the database, as '
                        f'`recjax serve` takes it (default {DEFAULT_PLACE} here)')


def parse_types(text: str, flag: str) -> tuple[str, ...]:
  """Returns types of events. text: separated by commas. flag: that names them. Raises
  ConfigError."""
  types = tuple(filter(None, text.split(',')))
  if not types or not set(types) <= set(TYPES):
    raise ConfigError(f'{flag}={text}: name types of {", ".join(TYPES)}, separated by commas')
  return types


def run(args: argparse.Namespace) -> None:
  """Writes the log, or prints the report. args: of the command line."""
  from recjax.serving.events import EventStore
  if '://' not in args.events and not os.path.exists(args.events):
    raise ConfigError(f'--events={args.events}: there is no such file; name the database that '
                      '`recjax serve` wrote')
  store = EventStore(args.events)
  try:
    if args.action == 'report':
      print('\n'.join(report_lines(store.report())))
    else:
      export_log(store, args)
  finally:
    store.close()


def export_log(store: Any, args: argparse.Namespace) -> None:
  """Writes the log and says how to prepare it. store: of events. args: of the command line."""
  from recjax import file_io
  from recjax.serving import user_histories
  types = parse_types(args.types, '--types')
  out = pathlib.Path(args.out)
  if not out.name.endswith(('.jsonl', '.jsonl.gz', '.parquet')):
    raise ConfigError(f'--out={out}: name a file that ends in .jsonl, .jsonl.gz or .parquet')
  run_files.need_folder(out, '--out')
  data = load_old(args.data) if args.data else None
  unit = user_histories.time_unit(data.interactions) if data else 's'
  counts = [0, 0]
  with file_io.atomic_path(out) as path, file_io.table_writer(path) as write:
    for rows in chunks(old_rows(data, unit) if data else ()):
      write(rows)
      counts[0] += len(rows)
    for rows in chunks(event_rows(store, types, unit)):
      write(rows)
      counts[1] += len(rows)
  print(f'{counts[0]:,} interactions of {args.data or "no data set"} and {counts[1]:,} events are '
        f'in {out}')
  order = ',time=time' if unit else ' --order=file'
  old = args.data or 'OLD'
  items = file_io.find_table(args.data, 'items') if args.data else f'{old}/items.jsonl'
  carried = (f' --items={shlex.quote(str(items))} --update={shlex.quote(old)}' if items else
             '')  # the built-in shop is in no folder
  print(f'make a data set of it:\n  recjax prepare table {shlex.quote(str(out))} '
        f'--columns=user=user,item=item{order}{carried} --out=NEW')


def load_old(folder: str) -> Any:
  """Returns the data set that events carry on. folder: of it, as runs name it. Raises ConfigError
  where its users are on disk."""
  from recjax.data import array_record, loading
  if array_record.is_record_folder(folder):
    raise ConfigError(f'--data={folder} holds records; name the data set that they were made of')
  return loading.load_data(folder)


def old_rows(data: Any, unit: str) -> Iterator[dict[str, Any]]:
  """Yields the interactions of a data set. data: the data set. unit: of its times, '' for none."""
  log = data.interactions
  for row, user in enumerate(log.users):
    for place in range(log.offsets[row], log.offsets[row + 1]):
      time = {'time': int(log.times[place])} if unit else {}
      yield {'user': user, 'item': data.catalog.id_of(int(log.items[place])), **time}


def event_rows(store: Any, types: Iterable[str], unit: str) -> Iterator[dict[str, Any]]:
  """Yields events in the form of `old_rows`. store: of events. types, unit: as there."""
  from recjax.serving.user_histories import in_unit
  for event in store.export(types):
    time = {'time': in_unit(event.time_ms, unit)} if unit else {}
    yield {'user': event.user, 'item': event.item, **time}


def chunks(rows: Iterable[dict]) -> Iterator[list[dict]]:
  """Yields `rows` in lists."""
  part = []
  for row in rows:
    part.append(row)
    if len(part) == ROWS:
      yield part
      part = []
  if part:
    yield part


def report_lines(counts: Iterable[Any]) -> list[str]:
  """Returns the lines of the report. counts: a ModelCounts of each model."""
  from recjax.evaluation.statistics import wilson

  def share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f'{hits / n:.2%} [{low:.2%}, {high:.2%}]'
  rows = [('model', 'answers', 'users', 'clicked', 'bought', 'users who clicked',
           'users who bought')]
  for count in counts:
    rows.append((count.model, f'{count.answers:,}', f'{count.users:,}',
                 share(count.clicked, count.answers), share(count.bought, count.answers),
                 *((share(count.users_clicked, count.users), share(count.users_bought, count.users))
                   if count.users else ('-', '-'))))
  if len(rows) == 1:
    return ['no answer to a named user is in these events; POST /v1/recommend with `user`']
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
           for row in rows]
  return [*lines, 'shares of answers, and of users, with a click on an item, or a purchase of one, '
          'that names the answer; with 95 % Wilson intervals. Answers to one user are not '
          'independent: judge a split by its users']
