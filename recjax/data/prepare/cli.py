"""What `recjax prepare` does: sources and rules from the command line, figures and a page back."""
import argparse
import contextlib
import dataclasses
import difflib
import functools
import pathlib
import shlex
import sys
import time

from recjax import file_io, settings
from recjax.data import archives, array_record, cleaning, loading, raw_reader, times
from recjax.data.formats import etegrec, recbole, reclm, sequence_lines, unirec
from recjax.data.prepare import asking, beam_engine, duckdb_engine
from recjax.data.prepare.report import report_page
from recjax.data.prepare.rules import Rules
from recjax.data.sources import amazon, columns, movielens, steam, table, yelp
from recjax.errors import ConfigError, DataError

EXPORTS = {'recbole': recbole, 'sequences': sequence_lines, 'etegrec': etegrec, 'reclm': reclm,
           'unirec': unirec}

REVIEWS = {'2014': 'reviews_Beauty_5.json.gz', '2018': 'Video_Games_5.json.gz',
           '2023': 'Video_Games.jsonl.gz'}

META = {'2014': 'meta_Beauty.json.gz', '2018': 'meta_Video_Games.json.gz',
        '2023': 'meta_Video_Games.jsonl.gz'}

WAYS = ('--columns=user=NAME,item=NAME,time=NAME, --item-columns, --header, --sep, --encoding, '
        '--time-format, --events')
PAUSE = 5.0  # seconds between two words of progress

# Published variants: rules, and where known (users, items, interactions) that must come out.
# Sources: the papers and repositories of S3-Rec, SASRec, LLMEmb, RecLM, ETEGRec and RecBole.
FIVE = dict(user_k=5, item_k=5)

VARIANTS = {
    'amazon2014': {
        's3rec': (FIVE, {'Beauty': (22363, 12101, 198502), 'Sports_and_Outdoors':
                         (35598, 18357, 296337), 'Toys_and_Games': (19412, 11924, 167597)}),
        'sasrec': (FIVE | dict(once=True), {'Beauty': (52024, 57289, 394908)}),
        'llmemb': (FIVE | dict(once=True, min_length=3), {'Beauty': (52024, 57289, 394908)})},
    'amazon2018': {
        '5core': (FIVE, {}),
        'llmemb': (dict(user_k=3, item_k=2, min_length=3), {'AMAZON_FASHION': (9049, 4722, 0)}),
        'reclm': (dict(untitled='drop', repeats='first-in-file', min_length=17, max_length=17,
                       cut='first', sample=10000), {})},
    'amazon2023': {
        'etegrec': (FIVE, {'Musical_Instruments': (57439, 24587, 511836), 'Video_Games':
                           (94762, 25612, 814586), 'Industrial_and_Scientific':
                           (50985, 25848, 412947)})},
    'movielens': {
        'sasrec': (dict(item_k=5, once=True), {'ml-1m': (6040, 3416, 999611)}),
        'all': ({}, {'ml-1m': (6040, 3706, 1000209), 'ml-100k': (943, 1682, 100000)}),
        'recbole': (dict(min_rating=3, user_k=10, item_k=10), {'ml-1m': (0, 3124, 834449)})},
    'yelp': {
        's3rec': (FIVE | dict(start='2019-01-01', end='2019-12-31 00:00:00'),
                  {'yelp': (30431, 20033, 316354)}),
        'llmemb': (dict(user_k=3, item_k=3, once=True, min_length=3, start='2000-01-01',
                        end='2019-12-31'), {'yelp': (0, 11383, 0)})},
    'steam': {'5core': (FIVE, {})},
    'table': {}, 'etegrec': {}, 'reclm': {}, 'unirec': {},
    'sequences': {'all': ({}, {'Beauty': (22363, 12101, 198502), 'ml-1m': (6040, 3416, 999611)})},
}

RULES = {
    'min_rating': 'keep interactions rated so or better', 'start': 'keep those from this day on',
    'end': 'keep those up to this day', 'untitled': "'drop' leaves out items without a title",
    'repeats': "of a user's meetings with one item keep all, or the 'first', 'last', "
               "'first-in-file'",
    'user_k': 'interactions that each user needs', 'item_k': 'interactions that each item needs',
    'once': 'count for --user-k and --item-k once, not until nothing changes',
    'min_length': 'interactions that each user needs at the end',
    'max_length': 'keep so many of a user', 'cut': "which: the 'last' or the 'first'",
    'sample': 'keep so many users', 'seed': 'that draws them',
    'ties': "order of equal times: as in the 'file', or by 'item' id",
    'all_items': 'keep items that nobody met',
    'max_bad': 'share of rows that may be unusable'}


COUNT = settings.flag(int, 'at least 0')

FLAGS = {'min_rating': settings.flag(float), 'max_bad': settings.flag(float, 'between 0 and 1'),
         **dict.fromkeys(('user_k', 'item_k', 'min_length', 'max_length', 'sample', 'seed'), COUNT)}


def add_flags(verb: argparse.ArgumentParser) -> None:
  """Gives the parser `verb` its sources and their flags."""
  sources = verb.add_subparsers(dest='source', required=True, metavar='SOURCE')
  sub = sources.add_parser('table', help='your own interactions, one row each: any table')
  add_table(sub)
  add_rules(sub)
  for edition in ('2014', '2018', '2023'):
    sub = sources.add_parser(f'amazon{edition}', help=f'a category of the Amazon data of {edition}')
    sub.add_argument('reviews', help='as downloaded, e.g. ' + REVIEWS[edition])
    sub.add_argument('--meta', default='', help='its metadata, e.g. ' + META[edition])
    add_rules(sub)
  for name, help_text in (('movielens', 'MovieLens, 100k to 32M'),
                          ('yelp', 'Yelp, academic or of 2013')):
    sub = sources.add_parser(name, help=help_text)
    sub.add_argument('folder', help='its archive, zip or tar, or the folder where it was unpacked')
    if name == 'movielens':
      sub.add_argument('--download', action='store_true', help='fetch the archive of that name, '
                       'e.g. ml-1m.zip, if it is not there')
    add_rules(sub)
  sub = sources.add_parser('steam', help='Steam reviews')
  sub.add_argument('reviews', help='steam_reviews.json.gz')
  sub.add_argument('--games', default='', help='steam_games.json.gz')
  add_rules(sub)
  add_systems(sources)
  sub = sources.add_parser('export', help='a data set in the files of other programs')
  sub.add_argument('folder', help="a data set, or 'sample'")
  sub.add_argument('--to', required=True, choices=tuple(EXPORTS))
  sub.add_argument('--out', required=True, help='folder to make; its name is that of the files')
  sub = sources.add_parser('records', help='a data set as TFDS records (ArrayRecord), for training '
                           'on more than memory holds')
  sub.add_argument('folder', help='a canonical data set')
  sub.add_argument('--out', required=True, help='the TFDS data_dir to write under')
  sub = sources.add_parser('amazon', help='reviews of 2018 as D3 prepares them: a growing window')
  sub.add_argument('--reviews', required=True, help='e.g. Video_Games_5.json.gz')
  sub.add_argument('--meta', required=True, help='e.g. meta_Video_Games.json.gz')
  sub.add_argument('--out', required=True, help='folder to make')
  sub.add_argument('--start', type=settings.month, default='2017-10',
                   help='first month; goes back where items lack')
  sub.add_argument('--end', type=settings.month, default='2018-11',
                   help='last month, its first day alone')
  sub.add_argument('--k', type=COUNT, default=5, help='reviews that each user and item keeps')
  sub.add_argument('--min-items', type=COUNT, default=10_000, help='fewer items widen the window')


def add_table(sub: argparse.ArgumentParser) -> None:
  """Gives the parser `sub` the flags of one's own tables."""
  sub.add_argument('interactions', help='CSV, TSV, JSON, Parquet, a workbook, a database of SQLite '
                   "or RecBole's atomic file, also .gz or .zst; or postgresql://USER@HOST/DATABASE")
  sub.add_argument('--items', default='', help='one row an item, of any such kind')
  sub.add_argument('--yes', action='store_true', help='ask nothing and take what is likely; without'
                   ' a terminal nothing is asked, and what only is likely is refused')
  sub.add_argument('--query', default='', metavar='NAME', help='the table or sheet of the '
                   'interactions, or a query of SQL')
  sub.add_argument('--items-query', default='', metavar='NAME', help='that of the items')
  sub.add_argument('--events', default='', metavar='RULE', help='kinds of events that count, as in '
                   'purchase,cart, or with weights that become ratings, as in view=1,purchase=4; '
                   "'all' counts returns too")
  sub.add_argument('--columns', default='', help='user=NAME,item=NAME,time=NAME,rating=NAME,'
                   'event=NAME,quantity=NAME; time=DATE+HOUR joins two')
  sub.add_argument('--item-columns', default='', help='item=NAME,title=NAME,brand=NAME,... or any '
                   'more to keep, as in price=NAME')
  sub.add_argument('--header', default='', help='names of the columns, where the file has none')
  sub.add_argument('--sep', default='', help='what parts columns, where it is not found')
  sub.add_argument('--list-sep', default='|', help='what parts categories (default |)')
  sub.add_argument('--encoding', default='', help='of texts, as in cp1252, where it is not '
                   'found')
  sub.add_argument('--time-format', default='', metavar='FORM', help='how times are written, where '
                   f'their values do not tell: {", ".join(times.FORMATS)}, or a pattern as in '
                   '%%d.%%m.%%Y')
  sub.add_argument('--order', default='', choices=('file',), help='the rows of each user stand in '
                   'order, and no column of times is read')


def add_systems(sources: argparse._SubParsersAction) -> None:
  """Adds the folders of published systems to the subparsers `sources`."""
  sub = sources.add_parser('sequences', help="lines 'user item item ...' of S3-Rec, P5, LETTER and "
                           "LLMEmb, or 'user item' of SASRec")
  sub.add_argument('file', help='e.g. Beauty.txt')
  sub.add_argument('--items', default='', help='a table of the items')
  sub.add_argument('--users', default='', choices=('first', 'none'), help="whether a line's first "
                   'word is its user, where the lines do not tell')
  add_rules(sub)
  sub = sources.add_parser('etegrec', help='a folder of ETEGRec')
  sub.add_argument('folder', help='with NAME.test.jsonl and NAME.emb_map.json')
  add_rules(sub)
  sub = sources.add_parser('reclm', help='a folder of RecLM-cgen, or of RecLM-gen')
  sub.add_argument('folder', help='with sequential.jsonl and metas.jsonl')
  sub.add_argument('--allow-pickle', action='store_true', help='read the pickles of RecLM-gen')
  add_rules(sub)
  sub = sources.add_parser('unirec', help="a folder of UniRec's pickled tables, as RecLM makes it")
  sub.add_argument('folder', help='with map.pkl, user_history.pkl and test.pkl')
  sub.add_argument('--items', default='', help='a table of the items')
  sub.add_argument('--allow-pickle', action='store_true', help='read them')
  add_rules(sub)


def add_rules(verb: argparse.ArgumentParser) -> None:
  """Adds the flags that every source has to the parser `verb`: a published variant, or rules."""
  verb.add_argument('--out', required=True, help='folder to make')
  verb.add_argument('--variant', default='', help='rules of a published set, by name')
  for field in dataclasses.fields(Rules):
    name, text = '--' + field.name.replace('_', '-'), RULES[field.name]
    if field.type is bool:
      verb.add_argument(name, action='store_true', default=None, help=text)
    else:
      default = f' (default {field.default})' if field.default else ''
      verb.add_argument(name, type=FLAGS.get(field.name, field.type), help=text + default)
  verb.add_argument('--k-core', type=COUNT, help='for --user-k and --item-k alike')
  verb.add_argument('--layout', default='jsonl', choices=('jsonl', 'jsonl.gz', 'parquet'),
                    help='of the files that are made (default jsonl)')
  verb.add_argument('--memory', type=settings.size, default='2GB',
                    help='what DuckDB may hold (default 2GB)')
  verb.add_argument('--update', default='', metavar='OLD', help='a data set whose items keep their '
                    'numbers: new ones come behind, missing ones are retired')
  verb.add_argument('--beam', default=None, metavar='OPTIONS', help='run on Apache Beam, with its '
                    "own flags in one text: --beam='--runner=DirectRunner'")
  verb.add_argument('--overwrite', action='store_true', help='replace what --out holds')


def check_columns(args: argparse.Namespace) -> None:
  """Raises ConfigError for names left of = in --columns and --item-columns that mean nothing.

  args: the command line. Items may have columns of any name, but not one that is nearly a name
  which is read.
  """
  if args.item_columns and not (args.items or args.items_query):
    raise ConfigError('--item-columns names columns of --items; add that, or leave it out')
  for flag, text, known in (
    ('--columns', args.columns, columns.INTERACTION_NAMES),
    ('--item-columns', args.item_columns, (*columns.ITEM_NAMES, *cleaning.CLEANED_LISTS)),
  ):
    ours = [part.partition('=')[0].strip() for part in text.split(',')]
    for name, equals, theirs in (part.partition('=') for part in filter(None, text.split(','))):
      name, near = name.strip(), difflib.get_close_matches(name.strip().lower(), known, 1, 0.8)
      if equals and name not in known and (flag == '--columns' or near or not theirs.strip()):
        raise ConfigError(f'{flag}: {name!r} is none of {", ".join(dict.fromkeys(known))}'
                          + (f'; is it {near[0]}?' if near else ''))
      if ours.count(name) > 1:
        raise ConfigError(f'{flag}: {name!r} is given twice')


def run(args: argparse.Namespace) -> None:
  """Does what the command line `args` asks and prints what came of it."""
  if args.source == 'table':
    check_columns(args)
  if args.source == 'export':
    dataset = loading.load_data(args.folder)
    with file_io.new_folder(args.out) as folder:
      EXPORTS[args.to].write(dataset, folder, pathlib.Path(args.out).name)
  elif args.source == 'records':
    args.out = array_record.write(args.folder, args.out)
  elif args.source == 'amazon':
    if args.start > args.end:
      raise ConfigError(f'--start={args.start} is after --end={args.end}')
    counts = amazon.prepare_d3(args.reviews, args.meta, args.out, args.start, args.end, args.k,
                               args.min_items)
    print('\n'.join(f'{what.replace("_", " ")}: {count}' for what, count in counts.items()))
  else:
    with contextlib.ExitStack() as stack:
      if args.source in ('movielens', 'yelp') and archives.is_archive(args.folder):
        args.folder = stack.enter_context(archives.unpacked(
            fetch_archive(args), pathlib.Path(args.out).absolute().parent))
      prepare_source(args)
  print(f'data set: {args.out}')


def prepare_source(args: argparse.Namespace) -> None:
  """Brings raw rows through the rules of `args`, and writes and prints the page."""
  rules, expected = rules_of(args)
  start = time.monotonic()
  file_io.check_new(pathlib.Path(args.out).absolute(), args.overwrite)
  args.ask = asking.Asker(getattr(args, 'yes', False))
  source = open_source(args)
  if source.preview:
    log('\n'.join(source.preview()))
    args.ask.confirm(f'Say what is otherwise: {WAYS}')
  if args.beam is None:
    report = duckdb_engine.prepare(source, args.out, rules, args.layout, args.memory,
                                   args.overwrite, log, args.update)
  elif args.update:
    raise ConfigError('--update works with DuckDB alone; leave --beam out')
  else:
    report = beam_engine.prepare(functools.partial(open_source, args), args.out, rules,
                                 args.layout, args.overwrite, log, shlex.split(args.beam))
  text = report_page(pathlib.Path(args.out).name, report, expected.get(source.name))
  file_io.write_text(pathlib.Path(args.out) / 'README.md', text)
  rows = report['bad']['interactions']['rows']
  for line in text.splitlines():
    if line.startswith('WARNING'):
      log(line)
  print(text + f'\n{rows:,} rows in {time.monotonic() - start:.1f} s', flush=True)


def fetch_archive(args: argparse.Namespace) -> str:
  """The archive that `args` name, fetched if asked. Raises DataError."""
  if not pathlib.Path(args.folder).exists():
    if not getattr(args, 'download', False):
      where = {'movielens': archives.PLACE + ' or add --download', 'yelp': 'yelp.com/dataset (it '
               'asks for consent to its terms)'}[args.source]
      raise DataError(f'{args.folder} does not exist; fetch it from {where}.')
    archives.fetch_movielens(args.folder, log)
  return args.folder


class Progress:
  """Says now and then how far the reading of `what` is, when called with the share of bytes."""

  def __init__(self, what: str):
    self.what = what
    self.start = self.last = time.monotonic()

  def __call__(self, share: float) -> None:
    now = time.monotonic()
    if now - self.last > PAUSE and share > 0:
      self.last = now
      seconds = (now - self.start) * (1 / share - 1)
      log(f'{self.what}: {share:.0%} read, about {seconds:,.0f} s to go')


def log(text: str) -> None:
  """Prints `text` away from what a pipe reads."""
  print(text, file=sys.stderr, flush=True)


def rules_of(args: argparse.Namespace) -> tuple[Rules, dict[str, tuple[int, int, int]]]:
  """The rules of `args`, and the published sizes by name of the raw set. Raises ConfigError."""
  variants = VARIANTS[args.source]
  if args.variant and args.variant not in variants:
    raise ConfigError(f'--variant={args.variant}: {args.source} has '
                      + (', '.join(variants) or 'none; give the rules themselves'))
  published, expected = variants[args.variant] if args.variant else ({}, {})
  k_core = {} if args.k_core is None else {'user_k': args.k_core, 'item_k': args.k_core}
  flags = k_core | {f.name: getattr(args, f.name) for f in dataclasses.fields(Rules)
                    if getattr(args, f.name) is not None}
  changed = any(name not in published or published[name] != value for name, value in flags.items())
  return Rules(**published | flags), {} if changed else expected


def open_source(args: argparse.Namespace) -> raw_reader.Source:
  """The raw rows that `args` name."""
  name = args.source
  tick = Progress(name)
  if name == 'table':
    return table.source(args.interactions, args.items, args.columns, args.item_columns,
                        args.header, args.sep, args.list_sep, tick, args.encoding, args.order,
                        args.time_format, args.query, args.items_query, args.events, args.ask)
  if name.startswith('amazon'):
    return amazon.source(name.removeprefix('amazon'), args.reviews, args.meta, tick)
  if name == 'steam':
    return steam.source(args.reviews, args.games, tick)
  if name == 'sequences':
    return sequence_lines.source(args.file, args.items, tick, args.users)
  if name == 'reclm':
    return reclm.source(args.folder, args.allow_pickle)
  if name == 'unirec':
    return unirec.source(args.folder, args.allow_pickle, args.items)
  return {'movielens': movielens, 'yelp': yelp, 'etegrec': etegrec}[name].source(args.folder, tick)
