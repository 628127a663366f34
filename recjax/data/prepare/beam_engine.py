"""The preparation of `funnel` as Apache Beam pipelines; the only file that knows Beam.

Each rule is a pipeline between files in a folder that all workers see, since only the way shows how
many rounds a k-core takes. A source is read by one worker, as gzipped files cannot be parted; what
follows runs on all. The items are in memory in the end, as they are in training.
"""
import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import tempfile

from recjax import file_io
from recjax.data import times
from recjax.data.prepare import duckdb_engine, duckdb_writer
from recjax.errors import ConfigError, DataError, EmptyDatasetError, UserError

SPAN = 1 << 18  # rows of the source whose new users are written together


@dataclasses.dataclass
class Rows:
  """The interactions that are left, as JSON lines [user, item, t, r, n], and where the next go."""
  room: pathlib.Path
  options: list
  number: int = -1

  def folder(self, number):
    """Where the rows after so many steps lie."""
    return self.room / f'{number:03d}'

  def read(self, pipeline, number=None, what='rows'):
    """A table as a collection; number: after which step, the last one if None."""
    beam = _beam()
    path = self.folder(self.number if number is None else number) / f'{what}-*'
    label = f'{what} after {"all" if number is None else number}'
    return (pipeline | f'read {label}' >> beam.io.ReadFromText(str(path))
            | f'parse {label}' >> beam.Map(json.loads))


def prepare(open_source, out, rules, layout='jsonl', overwrite=False, say=print, options=()):
  """What `duckdb_engine.prepare` does, with the same result. -> report

  open_source: () -> funnel.Source, called on a worker too. options: flags of Beam, such as
  '--runner=FlinkRunner'; --temp_location names the folder that all workers see, if not that of
  `out`. Raises as `duckdb_engine.prepare`, and ConfigError for a flag that Beam does not know.
  """
  _beam()
  check_options(options)
  duckdb_engine.check(rules)
  out = pathlib.Path(out).absolute()
  with (file_io.new_folder(out, overwrite) as fresh,
        tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=_shared(out, options)) as room):
    rows = Rows(pathlib.Path(room), list(options))
    bad, told = load(rows, open_source, rules.max_bad)
    ends = bounds(rows)
    known = duckdb_engine.scale(told['events'], *ends)
    repeated = repeats(rows)
    steps = []
    for name, size in apply(rows, rules, known):
      steps.append({'step': name, **size})
      say(f'{name}: {duckdb_engine.counted(size)}')
      if not size['interactions']:
        raise EmptyDatasetError(
          f'nothing is left after "{name}", of {duckdb_engine.counted(steps[0])}; loosen that rule'
        )
    goods = gathered_items(rows)
    path = fresh / f'items.{"jsonl.gz" if layout == "parquet" else layout}'
    written = {'items': write_items(goods, path, rules.all_items),
               'users': write_sequences(rows, fresh / f'sequences.{layout}', rules.ties)}
    report = {'source': open_source().name, 'rules': dataclasses.asdict(rules), 'bad': bad,
              'told': told, 'times': duckdb_engine.spanned(known, *ends), 'repeated': repeated,
              'items_not_in_the_items_file': sum(g[1] is None and g[2] is not None for g in goods),
              'unlisted': examples(goods), 'untitled': untitled(goods, rules.all_items),
              'steps': steps, 'written': written, 'update': {}}
    file_io.write_text(fresh / 'prepared.json', json.dumps(report, indent=2) + '\n')
  return report


def _beam():
  try:
    import apache_beam
  except ImportError as error:
    raise ConfigError('this needs Apache Beam; install it with: pip install "recjax[beam]"'
                      ) from error
  return apache_beam


def check_options(options):
  """Raises ConfigError for flags that Beam does not know, which it would only log and pass over."""
  from apache_beam.options.pipeline_options import PipelineOptions
  given = PipelineOptions(list(options))
  odd = set(given.get_all_options(retain_unknown_options=True)) - set(given.get_all_options())
  if odd:
    raise ConfigError(f'--beam: Beam has no flag --{", --".join(sorted(odd))}')


def _shared(out, options):
  """The folder that all workers see."""
  found = [o.partition('=')[2] for o in options if o.startswith('--temp_location=')]
  return found[0] if found else out.parent


def run(rows):
  """A pipeline with the given options, which runs when its block ends."""
  from apache_beam.options.pipeline_options import PipelineOptions
  return _beam().Pipeline(options=PipelineOptions(rows.options))


def write(collection, path):
  """Writes a collection as JSON lines."""
  beam = _beam()
  pathlib.Path(path).parent.mkdir(exist_ok=True)
  return (collection | f'format {path}' >> beam.Map(json.dumps)
          | f'write {path}' >> beam.io.WriteToText(str(path)))


# What is read.


def load(rows, open_source, max_bad):
  """Reads the source into tables `rows` and `goods`. -> what was bad and what was told, as `funnel`
  reports them
  """
  beam = _beam()
  rows.number = 0
  folder = rows.folder(0)
  with run(rows) as p:
    for what in ('events', 'goods'):
      both = (p | f'start {what}' >> beam.Create([what])
              | what >> beam.FlatMap(functools.partial(read_source, open_source)).with_outputs(
                  'tally', main='good'))
      write(both.good | f'spread {what}' >> beam.Reshuffle(),
            folder / {'events': 'rows', 'goods': 'goods'}[what])
      write(both.tally, folder / f'tally_{what}')
  found, told = {}, {}
  for what, name in (('events', 'interactions'), ('goods', 'items')):
    tally, = lines(folder, f'tally_{what}')
    if tally['error']:
      raise DataError(tally['error'])
    told[what] = tally['told']
    tally['why'] = collections.Counter(tally['why'])
    found[name] = duckdb_engine.judged(tally, max_bad, name)
  names = [line[0] for line in lines(folder, 'goods')]
  found['items']['given_twice'] = len(names) - len(set(names))
  return found, told


def read_source(open_source, what):
  """The good rows of a source, numbered, then the tally; what it raises stands in there."""
  import apache_beam as beam
  source = open_source()
  tally, number, error = duckdb_engine.new_tally(), 0, ''
  rows = source.events if what == 'events' else duckdb_engine.as_json(source.goods)
  try:
    for block in duckdb_engine.blocks(rows, tally):
      for row in block:
        yield [*row, number]
        number += 1
  except UserError as found:
    error = str(found)
  yield beam.pvalue.TaggedOutput('tally', tally | {
      'error': error, 'told': duckdb_engine.told(source, what)})


def lines(folder, what):
  """A small table, here."""
  for path in sorted(folder.glob(f'{what}-*')):
    with open(path, encoding='utf-8') as text:
      yield from map(json.loads, text)


# The rules. Each takes and gives a collection of rows.


def step(rows, transform=None):
  """Applies a transform to the rows. -> {'users', 'items', 'interactions'}"""
  beam = _beam()
  target = rows.folder(rows.number + (transform is not None))
  with run(rows) as p:
    left = rows.read(p)
    if transform:
      left = transform(left)
      write(left, target / 'rows')
    for name, column in (('users', 0), ('items', 1)):
      write(left | f'pick {name}' >> beam.Map(lambda r, c=column: r[c])
            | f'distinct {name}' >> beam.Distinct()
            | f'count {name}' >> beam.combiners.Count.Globally(), target / name)
    write(left | beam.combiners.Count.Globally(), target / 'interactions')
  rows.number += transform is not None
  return {name: sum(lines(target, name)) for name in ('users', 'items', 'interactions')}


def bounds(rows):
  """The least and the greatest time; None where there are none."""
  beam = _beam()
  with run(rows) as p:
    write(rows.read(p, 0) | beam.Map(lambda r: r[2]) | beam.CombineGlobally(ends),
          rows.folder(0) / 'ends')
  return next(lines(rows.folder(0), 'ends'))


def ends(values):
  """(least, greatest) of times, or of such pairs; None among them is left out."""
  some = [v for value in values for v in (value if isinstance(value, list | tuple) else [value])
          if v is not None]
  return (min(some), max(some)) if some else (None, None)


def repeats(rows):
  """How many rows name the user, item and time of an earlier one."""
  beam = _beam()
  with run(rows) as p:
    found = rows.read(p, 0)
    write(found | 'all' >> beam.combiners.Count.Globally(), rows.folder(0) / 'all')
    write(found | beam.Map(lambda r: (r[0], r[1], r[2])) | beam.Distinct()
          | beam.combiners.Count.Globally(), rows.folder(0) / 'single')
  return sum(lines(rows.folder(0), 'all')) - sum(lines(rows.folder(0), 'single'))


def apply(rows, rules, known):
  """Applies one rule after the other. Yields (name, sizes) as `duckdb_engine.apply` counts them.

  known: the Scale of the times.
  """
  size = step(rows)
  yield 'as read', size
  for name, transform in transforms(rows, rules, known):
    while True:
      before, size = size, step(rows, transform)
      if not name.endswith('nothing changes') or size == before:
        break
    yield name, size


def transforms(rows, rules, known):
  """Yields (name, transform) of each rule; 'until nothing changes' asks for repetition."""
  for name, test in tests(rules, known):
    yield name, lambda left, test=test: left | _beam().Filter(test)
  if rules.untitled == 'drop':
    yield 'untitled=drop', functools.partial(titled, rows)
  if rules.repeats != 'keep':
    yield f'repeats={rules.repeats}', functools.partial(
        best, lambda r: (r[0], r[1]), ORDER[rules.repeats], 1)
  if rules.user_k or rules.item_k:
    yield (f'users with {rules.user_k} and items with {rules.item_k}, '
           + ('counted once' if rules.once else 'until nothing changes')), functools.partial(
               core, rules.user_k, rules.item_k)
  if rules.min_length:
    yield f'min_length={rules.min_length}', functools.partial(core, rules.min_length, 0)
  if rules.max_length:
    yield f'max_length={rules.max_length}, {rules.cut}', functools.partial(
        best, lambda r: r[0], ORDER[rules.cut], rules.max_length)
  if rules.sample:
    yield (f'{rules.sample} users by seed {rules.seed}',
           functools.partial(drawn, rules.sample, rules.seed))


ORDER = {'first': lambda r: (r[2] or 0, r[4]), 'last': lambda r: (-(r[2] or 0), -r[4]),
         'first-in-file': lambda r: r[4]}


def tests(rules, known):
  """Rules about single rows. Yields (name, test)."""
  if rules.min_rating:
    yield (f'min_rating={rules.min_rating}',
           lambda r: r[3] is not None and r[3] >= rules.min_rating)
  for name in ('start', 'end'):
    if not getattr(rules, name):
      continue
    bound = times.moment(getattr(rules, name), name, known)
    yield f'{name}={getattr(rules, name)}', {
        'start': lambda r, bound=bound: r[2] is not None and r[2] >= bound,
        'end': lambda r, bound=bound: r[2] is not None and r[2] <= bound}[name]


def titled(rows, left):
  """Rows of items whose first line in the items file has a title."""
  beam = _beam()
  goods = rows.read(left.pipeline, 0, 'goods') | 'by item' >> beam.Map(lambda g: (g[0], g[2:]))
  keyed = left | 'rows by item' >> beam.Map(lambda r: (r[1], r))
  return ((keyed, goods) | beam.CoGroupByKey() | beam.FlatMap(
      lambda pair: pair[1][0] if pair[1][1] and min(pair[1][1], key=lambda g: g[1])[0] else ()))


def best(key, order, most, left):
  """The first `most` rows of each key."""
  beam = _beam()
  return (left | beam.Map(lambda r: (key(r), r)) | beam.GroupByKey()
          | beam.FlatMap(lambda pair: sorted(pair[1], key=order)[:most]))


def core(user_k, item_k, left):
  """Rows of users and items that have enough of them, both counted before."""
  beam = _beam()
  marked = (left | 'by user' >> beam.Map(lambda r: (r[0], r)) | 'users' >> beam.GroupByKey()
            | 'enough' >> beam.FlatMap(functools.partial(marked_rows, user_k)))
  return (marked | 'by item' >> beam.Map(lambda m: (m[1][1], m)) | 'items' >> beam.GroupByKey()
          | 'kept' >> beam.FlatMap(functools.partial(kept_rows, item_k)))


def marked_rows(user_k, pair):
  """Each row of a user with whether there are enough."""
  good = sum(1 for _ in pair[1]) >= user_k
  return ((good, row) for row in pair[1])


def kept_rows(item_k, pair):
  """An item's rows whose user has enough, if it has enough itself."""
  if sum(1 for _ in pair[1]) >= item_k:
    yield from (row for good, row in pair[1] if good)


def drawn(count, seed, left):
  """Rows of so many users, those whose hashes are smallest."""
  beam = _beam()
  chosen = (left | 'names' >> beam.Map(lambda r: r[0]) | beam.Distinct()
            | beam.combiners.Top.Of(count, key=lambda user: draw_key(seed, user), reverse=True)
            | beam.Map(frozenset))
  return left | beam.Filter(lambda r, users: r[0] in users, beam.pvalue.AsSingleton(chosen))


def draw_key(seed, user):
  """By what users are drawn, as `funnel` does."""
  return hashlib.md5(f'{seed}:{user}'.encode()).hexdigest(), user


# What is written.


def gathered_items(rows):
  """All items. -> [(item, place in the items file, first row, whether kept, columns as JSON)]"""
  beam = _beam()
  with run(rows) as p:
    first = (rows.read(p, 0) | 'first' >> beam.Map(lambda r: (r[1], r[4]))
             | beam.CombinePerKey(min))
    kept = rows.read(p) | 'kept' >> beam.Map(lambda r: (r[1], 1)) | 'once' >> beam.Distinct()
    goods = rows.read(p, 0, 'goods') | 'listed' >> beam.Map(lambda g: (g[0], (g[3], g[1])))
    write((goods, first, kept) | beam.CoGroupByKey() | beam.Map(
        lambda pair: (pair[0], *min(pair[1][0], default=(None, None)),
                      min(pair[1][1], default=None), bool(list(pair[1][2])))), rows.room / 'items')
  found = [(item, listed, met, kept, data) for item, listed, data, met, kept in lines(
      rows.room, 'items')]
  return sorted(found, key=lambda g: (g[1] is None, g[2] if g[1] is None else g[1]))


def untitled(goods, all_items):
  """How many of the items that are written have no title."""
  return sum(not (data and json.loads(data).get('title')) for _, _, _, kept, data in goods
             if kept or all_items)


def examples(goods):
  """Some items of the interactions that the items file lacks, and some that it has."""
  listed = sorted((g for g in goods if g[1] is not None), key=lambda g: g[1])
  lacking = sorted((g for g in goods if g[1] is None and g[2] is not None), key=lambda g: g[2])
  return {'lacking': [g[0] for g in lacking[:3]], 'listed': [g[0] for g in listed[:3]]
          } if listed else {}


def write_items(goods, path, all_items):
  """Writes the items that were met, or all. -> how many"""
  made = [duckdb_writer.renewed(item, data, None, False)[0] for item, _, _, kept, data in goods
          if kept or all_items]
  with file_io.table_writer(path) as put:
    for at in range(0, len(made), duckdb_writer.BLOCK):
      put(made[at:at + duckdb_writer.BLOCK])
  return len(made)


def write_sequences(rows, path, ties):
  """Writes each user's items in order of time; workers write parts, in order of users. -> users"""
  beam = _beam()
  parts = rows.room / 'parts'
  parts.mkdir()
  with run(rows) as p:
    first = (rows.read(p, 0) | 'first' >> beam.Map(lambda r: (r[0], r[4]))
             | beam.CombinePerKey(min))
    kept = rows.read(p) | 'by user' >> beam.Map(lambda r: (r[0], r))
    ((kept, first) | beam.CoGroupByKey() | beam.FlatMap(by_span) | beam.GroupByKey()
     | beam.Map(functools.partial(write_part, str(parts), ties)))
  count = 0
  with file_io.table_writer(path) as put:
    for part in sorted(parts.iterdir()):
      some = [json.loads(line) for line in part.read_text('utf-8').splitlines()]
      put(some)
      count += len(some)
  return count


def by_span(pair):
  """A user with rows left, under the number of the span that the first row lies in."""
  left, first = list(pair[1][0]), min(pair[1][1])
  if left:
    yield first // SPAN, (first, left)


def write_part(folder, ties, pair):
  """Writes the users of a span of the source, in order of their first rows."""
  number, users = pair
  text = []
  for _, found in sorted(users, key=lambda user: user[0]):
    order = sorted(found, key=lambda r: (r[2] or 0, r[1] if ties == 'item' else '', r[4]))
    row = {'user_id': order[0][0], 'items': [r[1] for r in order]}
    if order[0][2] is not None:
      row['times'] = [r[2] for r in order]
    if order[0][3] is not None:
      row['ratings'] = [r[3] for r in order]
    text.append(json.dumps(row, ensure_ascii=False) + '\n')
  file_io.write_text(pathlib.Path(folder) / f'{number:012d}', ''.join(text))
