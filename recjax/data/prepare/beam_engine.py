"""The preparation of `duckdb_engine` as Apache Beam pipelines; the only file that knows Beam.

Each rule is a pipeline between files in a folder that all workers see, since only the way shows how
many rounds a k-core takes. A source is read by one worker, as gzipped files cannot be split; what
follows runs on all. The items are in memory in the end, as they are in training. A row is a list
[user, item, time, rating, number]. `Any` stands for Beam's pipelines, collections and transforms.
"""
import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from recjax import file_io
from recjax.data import raw_reader, times
from recjax.data.prepare.duckdb_writer import update_item
from recjax.data.prepare.report import (
  BLOCK,
  NOTE_KEYS,
  check_tally,
  encode_items,
  good_blocks,
  new_tally,
  sizes_text,
  source_notes,
  time_range,
  time_scale,
)
from recjax.data.prepare.rules import Rules, check_rules
from recjax.errors import ConfigError, DataError, EmptyDatasetError, UserError

SPAN = 1 << 18  # rows of the source whose new users are written together


@dataclasses.dataclass
class Rows:
  """The interactions that are left, as JSON lines, and the folder `root` where the next go.
  options: flags of Beam. step: how many rules were applied."""
  root: pathlib.Path
  options: list[str]
  step: int = -1

  def folder(self, step: int) -> pathlib.Path:
    """Where the rows after so many steps lie. step: so many."""
    return self.root / f'{step:03d}'

  def read(self, pipeline: Any, step: int | None = None, what: str = 'rows') -> Any:
    """The table `what` in `pipeline` as a collection, after `step`, or after the last one."""
    beam = _beam()
    path = self.folder(self.step if step is None else step) / f'{what}-*'
    label = f'{what} after {"all" if step is None else step}'
    return (pipeline | f'read {label}' >> beam.io.ReadFromText(str(path))
            | f'parse {label}' >> beam.Map(json.loads))


class Item(NamedTuple):
  """An item: its places in the items file and in the interactions, or None, and what is kept. id:
  as text. listed, met: those places. data: its columns as JSON, None for none."""
  id: str
  listed: int | None
  met: int | None
  kept: bool
  data: str | None


def prepare(open_source: Callable[[], raw_reader.Source], out: raw_reader.Path, rules: Rules,
            layout: str = 'jsonl', overwrite: bool = False, say: Callable[[str], None] = print,
            options: Sequence[str] = ()) -> dict:
  """What `duckdb_engine.prepare` does, with the same report and settings of the same names.

  open_source: gives the raw rows; it is called on a worker too. options: flags of Beam, such as
  '--runner=FlinkRunner'; --temp_location names the folder that all workers see, if not that of
  `out`. out: the folder to make. rules, layout, overwrite, say: as of `duckdb_engine.prepare`.
  Raises as `duckdb_engine.prepare`, and ConfigError for a flag that Beam does not know.
  """
  _beam()
  check_options(options)
  check_rules(rules)
  out = pathlib.Path(out).absolute()
  with (file_io.new_folder(out, overwrite) as folder,
        tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=_shared(out, options)) as root):
    rows = Rows(pathlib.Path(root), list(options))
    bad, notes = _load(rows, open_source, rules.max_bad)
    ends = _time_ends(rows)
    scale = time_scale(notes['interactions'], *ends)
    repeated = _count_repeats(rows)
    steps = []
    for name, sizes in _apply_rules(rows, rules, scale):
      steps.append({'step': name, **sizes})
      say(f'{name}: {sizes_text(sizes)}')
      if not sizes['interactions']:
        raise EmptyDatasetError(f'nothing is left after "{name}", of {sizes_text(steps[0])}; '
                                'loosen that rule')
    items = _gather_items(rows)
    items_path = folder / f'items.{"jsonl.gz" if layout == "parquet" else layout}'
    written = {'items': _write_items(items, items_path, rules.all_items),
               'users': _write_sequences(rows, folder / f'sequences.{layout}', rules.ties)}
    report = {'source': open_source().name, 'rules': dataclasses.asdict(rules), 'bad': bad,
              'told': {key: notes[what] for what, key in NOTE_KEYS.items()},
              'times': time_range(scale, *ends), 'repeated': repeated,
              'items_not_in_the_items_file': sum(
                  i.listed is None and i.met is not None for i in items),
              'unlisted': _unlisted_examples(items),
              'untitled': _count_untitled(items, rules.all_items),
              'items_left_out': sum(
                  i.listed is not None and not (i.kept or rules.all_items) for i in items),
              'steps': steps,
              'written': written, 'update': {}}
    file_io.write_text(folder / 'prepared.json', json.dumps(report, indent=2) + '\n')
  return report


def _beam() -> Any:
  try:
    import apache_beam
  except ImportError as error:
    raise ConfigError('this needs Apache Beam; install it with: pip install "recjax[beam]"'
                      ) from error
  return apache_beam


def check_options(options: Sequence[str]) -> None:
  """Raises ConfigError for `options` that Beam does not know, which it would only log."""
  from apache_beam.options.pipeline_options import PipelineOptions
  parsed = PipelineOptions(list(options))
  unknown = set(parsed.get_all_options(retain_unknown_options=True)) - set(parsed.get_all_options())
  if unknown:
    raise ConfigError(f'--beam: Beam has no flag --{", --".join(sorted(unknown))}')


def _shared(out: pathlib.Path, options: Sequence[str]) -> str | pathlib.Path:
  """The folder that all workers see."""
  named = [o.partition('=')[2] for o in options if o.startswith('--temp_location=')]
  return named[0] if named else out.parent


def _run(rows: Rows) -> Any:
  """A pipeline with the options of `rows`, which runs when its block ends."""
  from apache_beam.options.pipeline_options import PipelineOptions
  return _beam().Pipeline(options=PipelineOptions(rows.options))


def _write(collection: Any, path: pathlib.Path) -> Any:
  """Writes a `collection` as JSON lines to files whose names begin with `path`."""
  beam = _beam()
  pathlib.Path(path).parent.mkdir(exist_ok=True)
  return (collection | f'format {path}' >> beam.Map(json.dumps)
          | f'write {path}' >> beam.io.WriteToText(str(path)))


def _load(rows: Rows, open_source: Callable[[], raw_reader.Source],
         max_bad: float) -> tuple[dict, dict]:
  """Reads the source into the tables rows and item_rows.

  max_bad: the share of bad rows that is tolerated. Returns what was bad, and the notes of the
  source, both by 'interactions' and 'items'.
  """
  beam = _beam()
  rows.step = 0
  folder = rows.folder(0)
  tables = {'interactions': 'rows', 'items': 'item_rows'}
  with _run(rows) as p:
    for what, table in tables.items():
      both = (p | f'start {what}' >> beam.Create([what])
              | what >> beam.FlatMap(functools.partial(_read_source, open_source)).with_outputs(
                  'tally', main='good'))
      _write(both.good | f'spread {what}' >> beam.Reshuffle(), folder / table)
      _write(both.tally, folder / f'tally_{what}')
  bad, notes = {}, {}
  for what in tables:
    tally, = _lines(folder, f'tally_{what}')
    if tally['error']:
      raise DataError(tally['error'])
    notes[what] = tally['notes']
    tally['why'] = collections.Counter(tally['why'])
    bad[what] = check_tally(tally, max_bad, what)
  ids = [line[0] for line in _lines(folder, 'item_rows')]
  bad['items']['given_twice'] = len(ids) - len(set(ids))
  return bad, notes


def _read_source(open_source: Callable[[], raw_reader.Source], what: str) -> Iterator:
  """Yields the good rows of a source, numbered, then the tally; what it raises stands in there.

  what: 'interactions' or 'items'.
  """
  beam = _beam()
  source = open_source()
  tally, number, error = new_tally(), 0, ''
  rows = source.interactions if what == 'interactions' else encode_items(source.items)
  try:
    for block in good_blocks(rows, tally):
      for row in block:
        yield [*row, number]
        number += 1
  except UserError as user_error:
    error = str(user_error)
  yield beam.pvalue.TaggedOutput('tally', tally | {
      'error': error, 'notes': source_notes(source, what)})


def _lines(folder: pathlib.Path, what: str) -> Iterator:
  """Yields the rows of the small table `what`, here."""
  for path in sorted(folder.glob(f'{what}-*')):
    with open(path, encoding='utf-8') as file:
      yield from map(json.loads, file)


def _run_step(rows: Rows, transform: Callable | None = None) -> dict[str, int]:
  """Applies a `transform` to the rows. Returns how many users, items and interactions are left."""
  beam = _beam()
  target = rows.folder(rows.step + (transform is not None))
  with _run(rows) as p:
    left = rows.read(p)
    if transform:
      left = transform(left)
      _write(left, target / 'rows')
    for name, column in (('users', 0), ('items', 1)):
      _write(left | f'pick {name}' >> beam.Map(lambda r, c=column: r[c])
            | f'distinct {name}' >> beam.Distinct()
            | f'count {name}' >> beam.combiners.Count.Globally(), target / name)
    _write(left | beam.combiners.Count.Globally(), target / 'interactions')
  rows.step += transform is not None
  return {name: sum(_lines(target, name)) for name in ('users', 'items', 'interactions')}


def _time_ends(rows: Rows) -> tuple[int | None, int | None]:
  """The least and the greatest time of `rows`; None where there are none."""
  beam = _beam()
  with _run(rows) as p:
    _write(rows.read(p, 0) | beam.Map(lambda r: r[2]) | beam.CombineGlobally(_ends_of),
          rows.folder(0) / 'ends')
  return next(_lines(rows.folder(0), 'ends'))


def _ends_of(values: Iterable) -> tuple[int | None, int | None]:
  """The least and the greatest of times, or of such pairs; None among them is left out."""
  known = [v for value in values for v in (value if isinstance(value, list | tuple) else [value])
           if v is not None]
  return (min(known), max(known)) if known else (None, None)


def _count_repeats(rows: Rows) -> int:
  """How many rows name the user, item and time of an earlier one."""
  beam = _beam()
  with _run(rows) as p:
    loaded = rows.read(p, 0)
    _write(loaded | 'all' >> beam.combiners.Count.Globally(), rows.folder(0) / 'all')
    _write(loaded | beam.Map(lambda r: (r[0], r[1], r[2])) | beam.Distinct()
          | beam.combiners.Count.Globally(), rows.folder(0) / 'single')
  return sum(_lines(rows.folder(0), 'all')) - sum(_lines(rows.folder(0), 'single'))


def _apply_rules(rows: Rows, rules: Rules,
                scale: times.TimeScale) -> Iterator[tuple[str, dict[str, int]]]:
  """Applies one rule after the other to `rows`. Yields the name of each, and what is left.

  rules: those. scale: of the times.
  """
  sizes = _run_step(rows)
  yield 'as read', sizes
  for name, transform in _transforms(rows, rules, scale):
    while True:
      before, sizes = sizes, _run_step(rows, transform)
      if not name.endswith('nothing changes') or sizes == before:
        break
    yield name, sizes


def _transforms(rows: Rows, rules: Rules,
               scale: times.TimeScale) -> Iterator[tuple[str, Callable]]:
  """Yields the name and the transform of each of `rules`; 'until nothing changes' asks for more."""
  for name, test in _row_tests(rules, scale):
    yield name, lambda left, test=test: left | _beam().Filter(test)
  if rules.untitled == 'drop':
    yield 'untitled=drop', functools.partial(_keep_titled, rows)
  if rules.repeats != 'keep':
    yield f'repeats={rules.repeats}', functools.partial(
        _keep_first, lambda r: (r[0], r[1]), ORDER[rules.repeats], 1)
  if rules.user_k or rules.item_k:
    yield (f'users with {rules.user_k} and items with {rules.item_k}, '
           + ('counted once' if rules.once else 'until nothing changes')), functools.partial(
               _k_core, rules.user_k, rules.item_k)
  if rules.min_length:
    yield f'min_length={rules.min_length}', functools.partial(_k_core, rules.min_length, 0)
  if rules.max_length:
    yield f'max_length={rules.max_length}, {rules.cut}', functools.partial(
        _keep_first, lambda r: r[0], ORDER[rules.cut], rules.max_length)
  if rules.sample:
    yield (f'{rules.sample} users by seed {rules.seed}',
           functools.partial(_sample_users, rules.sample, rules.seed))


ORDER = {'first': lambda r: (r[2] or 0, r[4]), 'last': lambda r: (-(r[2] or 0), -r[4]),
         'first-in-file': lambda r: r[4]}


def _row_tests(rules: Rules, scale: times.TimeScale) -> Iterator[tuple[str, Callable]]:
  """Yields the name and the test of each of `rules` about single rows."""
  if rules.min_rating:
    yield (f'min_rating={rules.min_rating}',
           lambda r: r[3] is not None and r[3] >= rules.min_rating)
  for name in ('start', 'end'):
    if not getattr(rules, name):
      continue
    bound = times.parse_bound(getattr(rules, name), name, scale, name == 'end')
    yield f'{name}={getattr(rules, name)}', {
        'start': lambda r, bound=bound: r[2] is not None and r[2] >= bound,
        'end': lambda r, bound=bound: r[2] is not None and r[2] <= bound}[name]


def _keep_titled(rows: Rows, left: Any) -> Any:
  """Keeps the rows in `left` of items whose first line in the items file has a title."""
  beam = _beam()
  items = rows.read(left.pipeline, 0, 'item_rows') | 'by item' >> beam.Map(lambda i: (i[0], i[2:]))
  keyed = left | 'rows by item' >> beam.Map(lambda r: (r[1], r))
  return ((keyed, items) | beam.CoGroupByKey() | beam.FlatMap(
      lambda pair: pair[1][0] if pair[1][1] and min(pair[1][1], key=lambda i: i[1])[0] else ()))


def _keep_first(key: Callable, order: Callable, count: int, left: Any) -> Any:
  """Keeps the first `count` rows in `left` of each `key`, sorted by `order`."""
  beam = _beam()
  return (left | beam.Map(lambda r: (key(r), r)) | beam.GroupByKey()
          | beam.FlatMap(lambda pair: sorted(pair[1], key=order)[:count]))


def _k_core(user_k: int, item_k: int, left: Any) -> Any:
  """Keeps the rows in `left` of users and items that have enough of them, both counted before."""
  beam = _beam()
  marked = (left | 'by user' >> beam.Map(lambda r: (r[0], r)) | 'users' >> beam.GroupByKey()
            | 'enough' >> beam.FlatMap(functools.partial(_mark_rows, user_k)))
  return (marked | 'by item' >> beam.Map(lambda m: (m[1][1], m)) | 'items' >> beam.GroupByKey()
          | 'kept' >> beam.FlatMap(functools.partial(_enough_rows, item_k)))


def _mark_rows(user_k: int, pair: tuple) -> Iterator[tuple[bool, list]]:
  """Each row of a user, a pair of id and rows, with whether there are enough."""
  good = sum(1 for _ in pair[1]) >= user_k
  return ((good, row) for row in pair[1])


def _enough_rows(item_k: int, pair: tuple) -> Iterator[list]:
  """The rows of an item, a pair of id and rows, whose user has enough, if it has enough itself."""
  if sum(1 for _ in pair[1]) >= item_k:
    yield from (row for good, row in pair[1] if good)


def _sample_users(count: int, seed: int, left: Any) -> Any:
  """Keeps the rows in `left` of so many users, those whose hashes by `seed` are smallest."""
  beam = _beam()
  chosen = (left | 'names' >> beam.Map(lambda r: r[0]) | beam.Distinct()
            | beam.combiners.Top.Of(count, key=lambda user: _draw_key(seed, user), reverse=True)
            | beam.Map(frozenset))
  return left | beam.Filter(lambda r, users: r[0] in users, beam.pvalue.AsSingleton(chosen))


def _draw_key(seed: int, user: str) -> tuple[str, str]:
  """By what users are drawn, as `duckdb_engine` does."""
  return hashlib.md5(f'{seed}:{user}'.encode()).hexdigest(), user


def _gather_items(rows: Rows) -> list[Item]:
  """All items, those of the items file first, then those that were met alone."""
  beam = _beam()
  with _run(rows) as p:
    first = (rows.read(p, 0) | 'first' >> beam.Map(lambda r: (r[1], r[4]))
             | beam.CombinePerKey(min))
    left = rows.read(p) | 'kept' >> beam.Map(lambda r: (r[1], 1)) | 'once' >> beam.Distinct()
    items = rows.read(p, 0, 'item_rows') | 'listed' >> beam.Map(lambda i: (i[0], (i[3], i[1])))
    _write((items, first, left) | beam.CoGroupByKey() | beam.Map(
        lambda pair: (pair[0], *min(pair[1][0], default=(None, None)),
                      min(pair[1][1], default=None), bool(list(pair[1][2])))), rows.root / 'items')
  gathered = [Item(id_, listed, met, left, data) for id_, listed, data, met, left in _lines(
      rows.root, 'items')]
  return sorted(gathered, key=lambda i: (i.listed is None, i.met if i.listed is None else i.listed))


def _count_untitled(items: Iterable[Item], all_items: bool) -> int:
  """How many of `items` that are written, all or those that were kept, have no title."""
  return sum(not (i.data and json.loads(i.data).get('title')) for i in items
             if i.kept or all_items)


def _unlisted_examples(items: Iterable[Item]) -> dict[str, list[str]]:
  """Some items of the interactions that the items file lacks, and some that it has."""
  listed = sorted((i for i in items if i.listed is not None), key=lambda i: i.listed or 0)
  lacking = sorted((i for i in items if i.listed is None and i.met is not None),
                   key=lambda i: i.met or 0)
  return {'lacking': [i.id for i in lacking[:3]], 'listed': [i.id for i in listed[:3]]
          } if listed else {}


def _write_items(items: Iterable[Item], path: pathlib.Path, all_items: bool) -> int:
  """Writes the `items` that were kept, or all, to `path`. Returns how many."""
  rows = [update_item(i.id, i.data, None, False)[0] for i in items if i.kept or all_items]
  with file_io.table_writer(path) as write_rows:
    for start in range(0, len(rows), BLOCK):
      write_rows(rows[start:start + BLOCK])
  return len(rows)


def _write_sequences(rows: Rows, path: pathlib.Path, ties: str) -> int:
  """Writes each user's items in order of time to `path`; workers write parts, in order of users.

  ties: as in Rules. Returns how many users.
  """
  beam = _beam()
  parts = rows.root / 'parts'
  parts.mkdir()
  with _run(rows) as p:
    first = (rows.read(p, 0) | 'first' >> beam.Map(lambda r: (r[0], r[4]))
             | beam.CombinePerKey(min))
    left = rows.read(p) | 'by user' >> beam.Map(lambda r: (r[0], r))
    ((left, first) | beam.CoGroupByKey() | beam.FlatMap(_by_span) | beam.GroupByKey()
     | beam.Map(functools.partial(_write_part, str(parts), ties)))
  count = 0
  with file_io.table_writer(path) as write_rows:
    for part in sorted(parts.iterdir()):
      sequences = [json.loads(line) for line in part.read_text('utf-8').splitlines()]
      write_rows(sequences)
      count += len(sequences)
  return count


def _by_span(pair: tuple) -> Iterator[tuple[int, tuple[int, list]]]:
  """A user with rows left, under the number of the span that the first row lies in.

  pair: the user's id with its rows and the number of its first row.
  """
  left, first = list(pair[1][0]), min(pair[1][1])
  if left:
    yield first // SPAN, (first, left)


def _write_part(folder: str, ties: str, pair: tuple) -> None:
  """Writes the users of a span of the source to `folder`, in order of their first rows.

  ties: as in Rules. pair: the number of the span, and its users as `_by_span` gives them.
  """
  number, users = pair
  sequences = []
  for _, user_rows in sorted(users, key=lambda user: user[0]):
    ordered = sorted(user_rows, key=lambda r: (r[2] or 0, r[1] if ties == 'item' else '', r[4]))
    sequence = {'user_id': ordered[0][0], 'items': [r[1] for r in ordered]}
    for name, column in (('times', 2), ('ratings', 3)):
      if ordered[0][column] is not None:
        sequence[name] = [r[column] for r in ordered]
    sequences.append(json.dumps(sequence, ensure_ascii=False) + '\n')
  file_io.write_text(pathlib.Path(folder) / f'{number:012d}', ''.join(sequences))
