"""What `recjax prepare` does: sources and rules from the command line, figures and a page back."""
import contextlib
import dataclasses
import difflib
import functools
import pathlib
import shlex
import sys
import time

from recjax import file_io, settings
from recjax.data import archives, cleaning, times
from recjax.data.prepare import duckdb_engine
from recjax.errors import ConfigError, DataError

REVIEWS = {'2014': 'reviews_Beauty_5.json.gz', '2018': 'Video_Games_5.json.gz',
           '2023': 'Video_Games.jsonl.gz'}

META = {'2014': 'meta_Beauty.json.gz', '2018': 'meta_Video_Games.json.gz',
        '2023': 'meta_Video_Games.jsonl.gz'}

FEW = .5     # share of unknown items above which the items file may be of other ids

PAUSE = 5.0  # seconds between two words of progress

# Published variants: rules, and where known (users, items, interactions) that must come out.
# llmemb.md 2.1, sequential.md 1.2, etegrec.md 2.1
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


def add_flags(verb):
  """Gives the verb its sources and their flags."""
  sources = verb.add_subparsers(dest='source', required=True, metavar='SOURCE')
  one = sources.add_parser('table', help='your own interactions: CSV, TSV, Parquet, JSON Lines or '
                           "RecBole's atomic files, gzipped or not")
  one.add_argument('interactions', help='one row an interaction')
  one.add_argument('--items', default='', help='one row an item')
  one.add_argument('--columns', default='', help='user=NAME,item=NAME,time=NAME,rating=NAME')
  one.add_argument('--item-columns', default='', help='item=NAME,title=NAME,brand=NAME,... or any '
                   'more to keep, as in price=NAME')
  one.add_argument('--header', default='', help='names of the columns, where the file has none')
  one.add_argument('--sep', default='', help='what parts columns, of other endings')
  one.add_argument('--list-sep', default='|', help='what parts categories (default |)')
  one.add_argument('--encoding', default='', help='of texts: UTF-8 and UTF-16 are found, others '
                   'are named, as in cp1252')
  one.add_argument('--time-format', default='', metavar='FORM', help='how times are written, where '
                   f'their values do not tell: {", ".join(times.NAMED)}, or a pattern as in '
                   '%%d.%%m.%%Y')
  one.add_argument('--order', default='', choices=('file',), help='the rows of each user stand in '
                   'order, and no column of times is read')
  add_rules(one)
  for edition in ('2014', '2018', '2023'):
    one = sources.add_parser(f'amazon{edition}', help=f'a category of the Amazon data of {edition}')
    one.add_argument('reviews', help='as downloaded, e.g. ' + REVIEWS[edition])
    one.add_argument('--meta', default='', help='its metadata, e.g. ' + META[edition])
    add_rules(one)
  for name, help_text in (('movielens', 'MovieLens, 100k to 32M'),
                          ('yelp', 'Yelp, academic or of 2013')):
    one = sources.add_parser(name, help=help_text)
    one.add_argument('folder', help='its archive, zip or tar, or the folder where it was unpacked')
    if name == 'movielens':
      one.add_argument('--download', action='store_true', help='fetch the archive of that name, '
                       'e.g. ml-1m.zip, if it is not there')
    add_rules(one)
  one = sources.add_parser('steam', help='Steam reviews')
  one.add_argument('reviews', help='steam_reviews.json.gz')
  one.add_argument('--games', default='', help='steam_games.json.gz')
  add_rules(one)
  add_systems(sources)
  one = sources.add_parser('export', help='a data set in the files of other programs')
  one.add_argument('folder', help="a data set, or 'sample'")
  one.add_argument('--to', required=True, choices=(
      'recbole', 'sequences', 'etegrec', 'reclm', 'unirec'))
  one.add_argument('--out', required=True, help='folder to make; its name is that of the files')
  one = sources.add_parser('records', help='a data set as TFDS records (ArrayRecord), for training '
                           'on more than memory holds')
  one.add_argument('folder', help='a canonical data set')
  one.add_argument('--out', required=True, help='the TFDS data_dir to write under')
  one = sources.add_parser('amazon', help='reviews of 2018 as D3 prepares them: a growing window')
  one.add_argument('--reviews', required=True, help='e.g. Video_Games_5.json.gz')
  one.add_argument('--meta', required=True, help='e.g. meta_Video_Games.json.gz')
  one.add_argument('--out', required=True, help='folder to make')
  one.add_argument('--start', type=settings.month, default='2017-10',
                   help='first month; goes back where items lack')
  one.add_argument('--end', type=settings.month, default='2018-11',
                   help='last month, its first day alone')
  one.add_argument('--k', type=COUNT, default=5, help='reviews that each user and item keeps')
  one.add_argument('--min-items', type=COUNT, default=10_000, help='fewer items widen the window')


def add_systems(sources):
  """The folders of published systems."""
  one = sources.add_parser('sequences', help="lines 'user item item ...' of S3-Rec, P5, LETTER and "
                           "LLMEmb, or 'user item' of SASRec")
  one.add_argument('file', help='e.g. Beauty.txt')
  one.add_argument('--items', default='', help='a table of the items')
  one.add_argument('--users', default='', choices=('first', 'none'), help="whether a line's first "
                   'word is its user, where the lines do not tell')
  add_rules(one)
  one = sources.add_parser('etegrec', help='a folder of ETEGRec')
  one.add_argument('folder', help='with NAME.test.jsonl and NAME.emb_map.json')
  add_rules(one)
  one = sources.add_parser('reclm', help='a folder of RecLM-cgen, or of RecLM-gen')
  one.add_argument('folder', help='with sequential.jsonl and metas.jsonl')
  one.add_argument('--allow-pickle', action='store_true', help='read the pickles of RecLM-gen')
  add_rules(one)
  one = sources.add_parser('unirec', help="a folder of UniRec's pickled tables, as RecLM makes it")
  one.add_argument('folder', help='with map.pkl, user_history.pkl and test.pkl')
  one.add_argument('--items', default='', help='a table of the items')
  one.add_argument('--allow-pickle', action='store_true', help='read them')
  add_rules(one)


def add_rules(verb):
  """The flags that every source has: a published variant, or one rule after the other."""
  verb.add_argument('--out', required=True, help='folder to make')
  verb.add_argument('--variant', default='', help='rules of a published set, by name')
  for field in dataclasses.fields(duckdb_engine.Rules):
    name, text = '--' + field.name.replace('_', '-'), RULES[field.name]
    if field.type is bool:
      verb.add_argument(name, action='store_true', default=None, help=text)
    else:
      shown = f' (default {field.default})' if field.default else ''
      verb.add_argument(name, type=FLAGS.get(field.name, field.type), help=text + shown)
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


def check_columns(args):
  """Raises ConfigError for names on the left of --columns and --item-columns that mean nothing.

  Items may have columns of any name, but not one that is nearly a name which is read.
  """
  from recjax.data.sources import table
  if args.item_columns and not args.items:
    raise ConfigError('--item-columns names columns of --items; add that, or leave it out')
  for flag, text, known in (('--columns', args.columns, table.NAMES),
                            ('--item-columns', args.item_columns, (*table.GOODS, *cleaning.LISTS))):
    ours = [part.partition('=')[0].strip() for part in text.split(',')]
    for name, equals, theirs in (part.partition('=') for part in filter(None, text.split(','))):
      name, near = name.strip(), difflib.get_close_matches(name.strip().lower(), known, 1, 0.8)
      if equals and name not in known and (flag == '--columns' or near or not theirs.strip()):
        raise ConfigError(f'{flag}: {name!r} is none of {", ".join(dict.fromkeys(known))}'
                          + (f'; is it {near[0]}?' if near else ''))
      if ours.count(name) > 1:
        raise ConfigError(f'{flag}: {name!r} is given twice')


def run(args):
  """Does what the command line asks and prints what came of it."""
  if args.source == 'table':
    check_columns(args)
  if args.source == 'export':
    from recjax.data import dataset
    from recjax.data.formats import exports
    data = dataset.load_data(args.folder)
    with file_io.new_folder(args.out) as fresh:
      getattr(exports, args.to)(data, fresh, pathlib.Path(args.out).name)
  elif args.source == 'records':
    from recjax.data import array_record
    args.out = array_record.write(args.folder, args.out)
  elif args.source == 'amazon':
    from recjax.data.sources import amazon_d3
    if args.start > args.end:
      raise ConfigError(f'--start={args.start} is after --end={args.end}')
    found = amazon_d3.prepare(args.reviews, args.meta, args.out, args.start, args.end, args.k,
                           args.min_items)
    print('\n'.join(f'{what.replace("_", " ")}: {count}' for what, count in found.items()))
  else:
    with contextlib.ExitStack() as stack:
      if args.source in ('movielens', 'yelp') and archives.is_archive(args.folder):
        args.folder = stack.enter_context(archives.unpacked(
            archive_of(args), pathlib.Path(args.out).absolute().parent))
      filtered(args)
  print(f'data set: {args.out}')


def filtered(args):
  """Brings raw rows through the rules, and writes and prints the page."""
  rules, expected = rules_of(args)
  start = time.monotonic()
  source = open_source(args)
  if args.beam is None:
    report = duckdb_engine.prepare(
      source, args.out, rules, args.layout, args.memory, args.overwrite, say, args.update
    )
  else:
    report = on_beam(args, rules)
  text = page(pathlib.Path(args.out).name, report, expected.get(source.name))
  file_io.write_text(pathlib.Path(args.out) / 'README.md', text)
  rows = report['bad']['interactions']['rows']
  for line in text.splitlines():
    if line.startswith('WARNING'):
      say(line)
  print(text + f'\n{rows:,} rows in {time.monotonic() - start:.1f} s', flush=True)


def archive_of(args):
  """The archive that the command line names, fetched if asked. Raises DataError."""
  if not pathlib.Path(args.folder).exists():
    if not getattr(args, 'download', False):
      where = {'movielens': archives.PLACE + ' or add --download', 'yelp': 'yelp.com/dataset (it '
               'asks for consent to its terms)'}[args.source]
      raise DataError(f'{args.folder} does not exist; fetch it from {where}.')
    archives.fetch_movielens(args.folder, say)
  return args.folder


def on_beam(args, rules):
  """The preparation on Apache Beam. -> report"""
  from recjax.data.prepare import beam_engine
  if args.update:
    raise ConfigError('--update works with DuckDB alone; leave --beam out')
  return beam_engine.prepare(functools.partial(open_source, args), args.out, rules, args.layout,
                      args.overwrite, say, shlex.split(args.beam))


def progress(what):
  """A tick(share of bytes read) that says now and then how far the reading is."""
  start = last = time.monotonic()

  def tick(share):
    nonlocal last
    now = time.monotonic()
    if now - last > PAUSE and share > 0:
      last = now
      say(f'{what}: {share:.0%} read, about {(now - start) * (1 / share - 1):,.0f} s to go')
  return tick


def say(text):
  """Progress, away from what a pipe reads."""
  print(text, file=sys.stderr, flush=True)


def rules_of(args):
  """-> funnel.Rules, {name of the raw set: published sizes}. Raises ConfigError."""
  known = VARIANTS[args.source]
  if args.variant and args.variant not in known:
    raise ConfigError(f'--variant={args.variant}: {args.source} has '
                      + (', '.join(known) or 'none; give the rules themselves'))
  settings, expected = known[args.variant] if args.variant else ({}, {})
  given = {f.name: getattr(args, f.name) for f in dataclasses.fields(duckdb_engine.Rules)}
  if args.k_core is not None:
    given = {'user_k': args.k_core, 'item_k': args.k_core} | {
        k: v for k, v in given.items() if v is not None}
  given = {k: v for k, v in given.items() if v is not None}
  changed = any(settings.get(k, v) != v or k not in settings for k, v in given.items())
  return duckdb_engine.Rules(**settings | given), {} if changed else expected


def page(name, report, expected):
  """The figures of a preparation, as Markdown."""
  out = [f'# {name}', '', f'Prepared from {report["source"]}.', '',
         '| after | users | items | interactions |', '| --- | --- | --- | --- |']
  out += [f'| {s["step"]} | {s["users"]:,} | {s["items"]:,} | {s["interactions"]:,} |'
          for s in report['steps']]
  last = report['steps'][-1]
  out += ['', f'{last["interactions"] / last["users"]:.2f} interactions a user, '
          f'{last["interactions"] / last["items"]:.2f} an item; {report["written"]["items"]:,} '
          'items written.']
  if expected:
    got = (last['users'], last['items'], last['interactions'])
    same = all(e in (0, g) for e, g in zip(expected, got))
    out += [f'{"As published" if same else "NOT as published"}: '
            + ', '.join(f'{e:,} {what}' for e, what in zip(
                expected, ('users', 'items', 'interactions')) if e) + '.']
  if report.get('update'):
    out.append(updated(report['update']))
  out += told(report)
  for what, bad in report['bad'].items():
    if bad['rows']:
      out.append(f'{bad["bad"]:,} of {bad["rows"]:,} rows of {what} could not be used.')
      out += [f'- {count:,} times: {why}' for why, count in bad['why'].items()]
      out += [f'- e.g. {example}' for example in bad['examples'][:3]]
  if report['bad']['items'].get('given_twice'):
    out.append(f'{report["bad"]["items"]["given_twice"]:,} items were given again; the first '
               'counts.')
  return '\n'.join(out + unmatched(report)) + '\n'


def told(report):
  """What was taken from which column, how it was told, and what was changed, in sentences."""
  out = []
  for what, found in zip(('interactions', 'items'), (report['told'].get('events', {}),
                                                     report['told'].get('goods', {}))):
    out += [f'{what.capitalize()}: {found[key]}.' for key in ('read', 'layout', 'decimal')
            if key in found]
    if 'columns' in found:
      taken = ', '.join(f'{ours}=`{theirs}`' for ours, theirs in found['columns'].items())
      left = ', '.join(f'`{name}`' for name in found.get('ignored', ()))
      out.append(f'Columns of {what}: {taken}' + (f'; not read: {left}' if left else '') + '.')
    out += [f'- {count:,} times, {what}: {why}' for why, count in found.get('ids', {}).items()]
    out += [f'- {count:,} times, {name}: {why}' for name, counts in found.get('cleaned', {}).items()
            for why, count in counts.items()]
  out.append(of_times(report))
  if report['repeated']:
    timed = ', item and time' if report['times'] else ' and item'
    out.append(f'{report["repeated"]:,} rows repeat the user{timed} of an earlier row; all were '
               'read' + ('.' if report['rules']['repeats'] != 'keep' else
                         ' and kept (--repeats=first keeps one).'))
  if report['untitled']:
    out.append(f'{report["untitled"]:,} of {report["written"]["items"]:,} items have no title.')
  return out


def of_times(report):
  """Which times order the histories, in a sentence."""
  found, spanned = report['told'].get('events', {}).get('time', {}), report['times']
  if not spanned:
    return 'No times: histories have the order of the file.'
  out = 'Times: '
  if found:
    how = ' ' + found['found'] if found.get('found', 'named') != 'named' else ''
    out += f'column `{found["column"]}`' + (f' (found{how})' if how else '')
    out += f', {times.WORDS.get(found["kind"], found["kind"])}'
    out += f' ({found["told"]})' if 'told' in found else ''
    out += '; '
  return out + (f'{spanned["first"]} to {spanned["last"]}, written as {spanned["unit"]}'
                + (', UTC.' if found.get('per_second', 1) else '.'))


def unmatched(report):
  """Whether the items file knows the items of the interactions, in sentences."""
  lacking, met = report['items_not_in_the_items_file'], report['steps'][0]['items']
  if not report['bad']['items']['rows']:
    return []
  if lacking < met and report['untitled'] == report['written']['items']:
    return ['WARNING: NO item has a title. Which column of the items file holds the titles? Say '
            '--item-columns=title=NAME']
  if not lacking:
    return []
  text = (f'{lacking:,} items of the interactions are not in the items file; they have '
          'no title (untitled=drop leaves them out).')
  if lacking < FEW * met:
    return [text]
  some = {name: ', '.join(repr(i) for i in ids) for name, ids in report['unlisted'].items()}
  none = 'NO item of the interactions is in the items file, so none has a title'
  if lacking < met:
    none = (f'only {met - lacking:,} of {met:,} items of the interactions are in the items file; '
            'the others have no title')
  return [f'WARNING: {none}. The interactions have {some["lacking"]}, the items '
          f'file has {some["listed"]}: are these the same ids, written alike (zeros in front, '
          'capitals, another column: --columns=item=NAME, --item-columns=item=NAME)?']


def updated(counts):
  """What became of the items of an earlier data set, in a sentence."""
  old = sum(counts[fate] for fate in ('same', 'changed', 'retired', 'back'))
  return (f'Of {old:,} items of {counts["of"]}, which keep their numbers, {counts["same"]:,} are '
          f'the same, {counts["changed"]:,} changed, {counts["back"]:,} came back and '
          f'{counts["retired"]:,} are retired; {counts["new"]:,} are new.')


def open_source(args):
  """The raw rows that the command line names. -> funnel.Source"""
  name = args.source
  tick = progress(name)
  if name == 'table':
    from recjax.data.sources import table
    return table.source(args.interactions, args.items, args.columns, args.item_columns,
                        args.header, args.sep, args.list_sep, tick, args.encoding, args.order,
                        args.time_format)
  if name.startswith('amazon'):
    from recjax.data.sources import amazon_files
    return amazon_files.source(name.removeprefix('amazon'), args.reviews, args.meta, tick)
  if name == 'steam':
    from recjax.data.sources import steam
    return steam.source(args.reviews, args.games, tick)
  if name in ('sequences', 'etegrec', 'reclm', 'unirec'):
    from recjax.data.sources import published_systems

    return {
      'sequences': lambda: published_systems.sequences(args.file, args.items, tick, args.users),
      'etegrec': lambda: published_systems.etegrec(args.folder, tick),
      'reclm': lambda: published_systems.reclm(args.folder, args.allow_pickle),
      'unirec': lambda: published_systems.unirec(args.folder, args.allow_pickle, args.items),
    }[name]()
  from recjax.data.sources import movielens, yelp
  return {'movielens': movielens, 'yelp': yelp}[name].source(args.folder, tick)
