"""`recjax recommend`: items for a history or a user, or for a file of users."""
import argparse

from recjax import settings
from recjax.errors import ConfigError

HELP = 'items for a history, a user, or a file of users'
EXAMPLES = (
    'checkpoints/betag_scientific --user=U00001 --k=5',
    'checkpoints/mine --input=histories.jsonl --output=lists.parquet',
)
WRITES = 'output'


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of the verb. parser: takes them."""
  parser.add_argument('workdir', help='the folder of a finished run')
  who = parser.add_mutually_exclusive_group(required=True)
  who.add_argument('--history', help='item ids, oldest first, separated by commas')
  who.add_argument('--user', help='id of a user in the data')
  who.add_argument('--input', help='users.jsonl, {"user_id": ..., "items": [...]} a line, or '
                   'users.parquet with these columns; `times` in seconds too, and `now`, for a '
                   'model that reads them')
  parser.add_argument('--output', help='where the answers to --input go: x.jsonl or x.parquet; the '
                      'same command goes on where it was stopped')
  parser.add_argument('--part', metavar='I/N', help='answer only share I of N of --input, here or '
                      'on another host; the last to finish merges all into --output')
  parser.add_argument('--k', type=settings.flag(int, 'at least 1'), default=10,
                      help='how many items (default 10)')
  parser.add_argument('--data', metavar='NEW', help='the data as `recjax prepare --update` carried '
                      'them on: new items are recommended, too, where the method can read them')


def run(args: argparse.Namespace) -> None:
  """Prints item ids, scores and titles, or answers a file of users. args: of the command line."""
  from recjax import batch_recommend
  from recjax import recommend as recommend_lib
  from recjax.training import job_parts
  if args.input and not args.output:
    raise ConfigError('--input needs --output, the file for the answers')
  if args.part and not args.input:
    raise ConfigError('--part shares out the users of --input; add it, or leave --part out')
  part = job_parts.parse(args.part)
  recommend, data = recommend_lib.load(args.workdir, args.data)
  if args.input:
    answered = batch_recommend.run(
        recommend, data, args.input, args.output, args.k, recommend_lib.model_version(args.workdir),
        part=part)
    print(f'{answered} users answered, ' + (f'part {args.part}' if part else f'in {args.output}'))
    return
  if args.history == '':
    raise ConfigError('--history is empty; give item ids, separated by commas')
  history = (args.history.split(',') if args.history else
             recommend_lib.history_of(data, args.user))
  timed = args.user and recommend_lib.is_timed(recommend)
  times = recommend_lib.times_of(data, args.user) if timed else None
  items, scores = recommend([history], args.k, **({'times': [times]} if times else {}))
  for item, score in zip(items[0], scores[0]):
    print(f'{item}\t{score:.4f}\t{recommend_lib.title_of(data.catalog, item)}')
