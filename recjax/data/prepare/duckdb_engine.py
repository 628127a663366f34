"""Interactions and items in any order and number to the canonical data set, in bounded memory.

Rows stream into a DuckDB file beside the result, which counts, filters and sorts on disk where
memory does not do. The only file that knows DuckDB.
"""
import collections
import contextlib
import dataclasses
import itertools
import json
import pathlib
import tempfile

import numpy as np

from recjax import file_io
from recjax.data import cleaning, raw_reader, times
from recjax.data.prepare import duckdb_writer
from recjax.errors import ConfigError, DataError, EmptyDatasetError, WorkdirError

BLOCK = 1 << 16    # rows that come to DuckDB together

EXAMPLES = 5

REPEATS = {'keep': '', 'first': 't, n', 'last': 't DESC, n DESC', 'first-in-file': 'n'}

TIES = {'file': 'n', 'item': 'item, n'}


@dataclasses.dataclass(frozen=True)
class Source:
  """Raw rows. events: (path, number, (user, item, time, rating) or None, why), times all None or
  none. goods: (path, number, (item id, columns) or None, why), in the order of the catalogue.
  told: {'events': {...}, 'goods': {...}}, what the reading of either tells, complete when all its
  rows are read: 'time' (a Clock's kind, per_second and factor among it), 'ids', 'cleaned', ….
  """
  name: str
  events: collections.abc.Iterable
  goods: collections.abc.Iterable = ()
  told: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rules:
  """What stays, in the order in which it is applied; 0 and '' switch a rule off.

  start, end: dates or times, both included. untitled: 'keep' or 'drop' items without a title.
  repeats: which of a user's meetings with one item stay. user_k, item_k: interactions each needs,
  counted once or until nothing changes. max_length keeps a user's last or first items. sample:
  users drawn by seed. max_bad: the share of unusable rows that is still tolerated.
  """
  min_rating: float = 0.0
  start: str = ''
  end: str = ''
  untitled: str = 'keep'
  repeats: str = 'keep'
  user_k: int = 0
  item_k: int = 0
  once: bool = False
  min_length: int = 0
  max_length: int = 0
  cut: str = 'last'
  sample: int = 0
  seed: int = 0
  ties: str = 'file'
  all_items: bool = False
  max_bad: float = 0.01


USUAL = Rules()


def prepare(source, out, rules=USUAL, layout='jsonl', memory='2GB', overwrite=False, say=print,
            update=''):
  """Writes items, sequences and prepared.json to `out`, whole or not at all. -> report

  layout: 'jsonl', 'jsonl.gz' or 'parquet' (of sequences; items stay jsonl.gz). memory: what DuckDB
  may hold, beside about 0.5 GB of Python. update: a data set whose items keep their places, as
  `load_old` says. report: {'bad': {...}, 'steps': [{'step', 'users', 'items', 'interactions'}],
  ...}.
  Raises DataError where too many rows are bad, EmptyDatasetError where nothing is left.
  """
  check(rules)
  out = pathlib.Path(out).absolute()
  with file_io.new_folder(out, overwrite) as fresh, database(out, memory) as con:
    bad = {'interactions': load_events(con, source.events, rules.max_bad),
           'items': load_goods(con, source.goods, rules.max_bad)}
    load_old(con, update)
    say('numbering users and items')
    number(con)
    ends = con.sql('SELECT min(t), max(t) FROM kept').fetchall()[0]
    known = scale(told(source, 'events'), *ends)
    repeated = repeats(con)
    steps = []
    for name in apply(con, rules, known):
      steps.append({'step': name, **sizes(con)})
      say(f'{name}: {counted(steps[-1])}')
      if not steps[-1]['interactions']:
        raise EmptyDatasetError(f'nothing is left after "{name}", of {counted(steps[0])}; loosen '
                                'that rule')
    say('writing')
    goods = fresh / f'items.{"jsonl.gz" if layout == "parquet" else layout}'
    update = {'of': str(update)} if update else {}
    written = {'items': duckdb_writer.write_items(con, goods, rules.all_items, update),
               'users': duckdb_writer.write_sequences(con, fresh / f'sequences.{layout}',
                                                    TIES[rules.ties])}
    report = {'source': source.name, 'rules': dataclasses.asdict(rules), 'bad': bad,
              'told': {what: told(source, what) for what in ('events', 'goods')},
              'times': spanned(known, *ends), 'repeated': repeated,
              'items_not_in_the_items_file': unlisted(con), 'unlisted': examples(con),
              'untitled': untitled(con, rules.all_items), 'steps': steps, 'written': written,
              'update': update}
    file_io.write_text(fresh / 'prepared.json', json.dumps(report, indent=2) + '\n')
  return report


def check(rules):
  """Raises ConfigError for settings that are none."""
  for name, allowed in (('untitled', ('keep', 'drop')), ('repeats', tuple(REPEATS)),
                        ('cut', ('last', 'first')), ('ties', tuple(TIES))):
    if getattr(rules, name) not in allowed:
      raise ConfigError(f'{name}={getattr(rules, name)!r}; choose one of {", ".join(allowed)}')
  for name in ('start', 'end'):
    times.moment(getattr(rules, name), name)


def new_told(column, kind):
  """What a published set tells before it is read. column: of its times; kind: as in times.WORDS"""
  return {'events': {'ids': collections.Counter(), 'time': {
      'column': column, 'kind': kind, 'per_second': times.UNITS.get(kind, 1), 'factor': 1}},
          'goods': cleaning.new_told()}


def told(source, what):
  """What the reading of 'events' or 'goods' told, as plain JSON without what never happened."""
  return plain(source.told.get(what, {})) or {}


def plain(value):
  """Counters as dicts without zeros, empty parts left out."""
  if isinstance(value, dict):
    return {k: v for k, part in value.items() if (v := plain(part)) not in (0, {}, None, '')
            or k == 'per_second'}
  return value


def scale(told_events, least, greatest):
  """What the numbers of the times mean: as their source says, or as their ends look."""
  found = told_events.get('time')
  if found:
    return times.Scale(found['kind'], found['per_second'], found['factor'])
  return times.scale_of(least, greatest)


def spanned(known, least, greatest):
  """The first and the last time in words, for the report."""
  return {'unit': known.unit(), 'first': known.shown(least), 'last': known.shown(greatest)
          } if least is not None else {}


def counted(size):
  """Sizes in words."""
  return (f'{size["users"]:,} users, {size["items"]:,} items, {size["interactions"]:,} '
          'interactions')


@contextlib.contextmanager
def database(out, memory):
  """A DuckDB connection whose file, and what does not fit into memory, lie beside `out`."""
  try:
    import duckdb
  except ImportError as error:
    raise ConfigError('preparing needs DuckDB; install it with: pip install "recjax[data]"'
                      ) from error
  with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as folder:
    try:
      con = duckdb.connect(f'{folder}/rows.duckdb', config={
          'memory_limit': memory, 'temp_directory': f'{folder}/spill'})
    except duckdb.IOException as error:
      raise WorkdirError(f'DuckDB cannot write beside {out}: {error}; free some space or choose '
                         'another folder') from error
    except duckdb.Error as error:
      raise ConfigError(f'memory={memory!r} is no size, as in 2GB ({error})') from error
    try:
      con.execute('SET preserve_insertion_order = false')
      yield con
    except duckdb.OutOfMemoryException as error:
      if 'max_temp_directory_size' in str(error):  # memory does not do, and the disk is full
        raise WorkdirError(f'the disk is full beside {out}, where DuckDB keeps what does not fit '
                           f'into {memory} of memory; free some space, choose another folder, or '
                           'give more with --memory') from error
      raise ConfigError(f'{memory} of memory is not enough for these data; give more with --memory'
                        ) from error
    except duckdb.IOException as error:
      raise WorkdirError(f'DuckDB cannot write beside {out}: {error}; free some space or choose '
                         'another folder') from error
    finally:
      con.close()


def load_events(con, rows, max_bad):
  """Brings interactions to table `events` (user, item, t, r, n). -> what was bad"""
  import pyarrow as pa
  con.execute('CREATE TABLE events (user VARCHAR, item VARCHAR, t BIGINT, r DOUBLE, n BIGINT)')
  kinds = pa.schema([('user', pa.string()), ('item', pa.string()), ('t', pa.int64()),
                     ('r', pa.float64()), ('n', pa.int64())])
  tally, start = new_tally(), 0
  for block in blocks(rows, tally):
    count = np.arange(start, start + len(block))
    start += len(block)
    columns = [*zip(*block), count]
    insert(con, 'events', pa.table([pa.array(c, kind) for c, kind in zip(columns, kinds.types)],
                                   schema=kinds))
  return judged(tally, max_bad, 'interactions')


def load_goods(con, rows, max_bad):
  """Brings items to table `goods` (item, data as JSON, titled, n). -> what was bad"""
  con.execute('CREATE TABLE goods (item VARCHAR, data VARCHAR, titled BOOLEAN, n BIGINT)')
  tally, start = new_tally(), 0
  for block in blocks(as_json(rows), tally):
    insert(con, 'goods', goods_block(block, start))
    start += len(block)
  found = judged(tally, max_bad, 'items')
  twice, = con.sql('SELECT count(*) - count(DISTINCT item) FROM goods').fetchall()[0]
  return found | {'given_twice': twice}


def load_old(con, folder):
  """Brings the items of an earlier data set to table `old` (item, data, titled, n); '' for none.

  They keep their places, new items come behind them. Old ones that are missing now are retired:
  they stay, with `retired` true. Missing means in the items file, or without one in the
  interactions. Raises DataError where the folder is no data set.
  """
  con.execute('CREATE TABLE old (item VARCHAR, data VARCHAR, titled BOOLEAN, n BIGINT)')
  if not folder:
    return
  path = file_io.find_table(folder, 'items') if pathlib.Path(folder).is_dir() else None
  if path is None:
    raise DataError(f'--update={folder}: no data set stands there; name the folder that holds the '
                    'items file of the last time')
  rows = ((path, n, (file_io.text_id(row.pop('item_id', None), place, 'item_id'), row), '')
          for n, (place, row) in enumerate(file_io.read_rows(path), 1))
  tally, start = new_tally(), 0
  for block in blocks(as_json(rows), tally):
    insert(con, 'old', goods_block(block, start))
    start += len(block)
  judged(tally, 0, f'items of {folder}')
  if con.sql('SELECT count(*) - count(DISTINCT item) FROM old').fetchall()[0][0]:
    raise DataError(f'{path} gives an item twice; see `recjax doctor {folder}`')


def goods_block(block, start):
  """Items as columns, numbered from `start`."""
  import pyarrow as pa
  names, data, titled = zip(*block)
  return pa.table({'item': pa.array(names, pa.string()), 'data': pa.array(data, pa.string()),
                   'titled': pa.array(titled, pa.bool_()),
                   'n': np.arange(start, start + len(block))})


def as_json(rows):
  """Items with their columns as one JSON text, and whether they have a title."""
  for path, number, found, why in rows:
    if found is not None:
      item, columns = found
      try:
        text = json.dumps({'item_id': item} | columns, ensure_ascii=False, allow_nan=False)
        text.encode()
        found = (item, text, bool(columns.get('title')))
      except (ValueError, TypeError) as error:
        found, why = None, f'a value that JSON cannot hold ({error})'
    yield path, number, found, why


def new_tally():
  """Counts of rows and of what was wrong with them."""
  return {'rows': 0, 'bad': 0, 'why': collections.Counter(), 'examples': []}


def blocks(rows, tally):
  """Good rows in blocks; the others are counted in `tally`, the first ones with their place."""
  rows = iter(rows)
  while some := list(itertools.islice(rows, BLOCK)):
    good = []
    for path, number, row, why in some:
      if row is not None:
        good.append(row)
        continue
      tally['bad'] += 1
      tally['why'][why] += 1
      if len(tally['examples']) < EXAMPLES:
        tally['examples'].append(f'{raw_reader.place(path, number)}: {why}')
    tally['rows'] += len(some)
    if good:
      yield good
    elif tally['bad'] == tally['rows']:
      judged(tally, 0, 'rows')  # a file of another kind, to all appearance


def judged(tally, max_bad, what):
  """The tally as it is reported. Raises DataError where more rows are bad than is tolerated."""
  if tally['bad'] > max_bad * tally['rows']:
    raise DataError(f'{tally["bad"]:,} of {tally["rows"]:,} {what} cannot be used, e.g. '
                    f'{"; ".join(tally["examples"])}. Mend them, or tolerate a greater share: '
                    f'--max-bad (now {max_bad:g})')
  why = dict(tally['why'].most_common(50))
  return {'rows': tally['rows'], 'bad': tally['bad'], 'why': why, 'examples': tally['examples']}


def insert(con, table, block):
  con.register('block', block)
  con.execute(f'INSERT INTO {table} SELECT * FROM block')
  con.unregister('block')


def number(con):
  """Numbers users by first appearance; items as before, then as listed, then by first appearance.

  Makes tables users (user, u), items (item, i, titled, listed, before, met), kept (u, i, t, r, n).
  """
  con.execute('CREATE TABLE users AS SELECT user, row_number() OVER (ORDER BY min(n)) AS u '
              'FROM events GROUP BY user')
  con.execute('''
      CREATE TABLE items AS WITH
        listed AS (SELECT item, min(n) AS n, arg_min(titled, n) AS titled FROM goods GROUP BY item),
        met AS (SELECT item, min(n) AS n FROM events GROUP BY item)
      SELECT item, coalesce(l.titled, o.titled, false) AS titled, l.n AS listed, o.n AS before,
        m.n AS met, row_number() OVER (
          ORDER BY o.n IS NULL, o.n, l.n IS NULL, coalesce(l.n, m.n)) AS i
      FROM listed l FULL JOIN met m USING (item) FULL JOIN old o USING (item)''')
  con.execute('CREATE TABLE kept AS SELECT u, i, t, r, n FROM events JOIN users USING (user) '
              'JOIN items USING (item)')
  con.execute('DROP TABLE events')


def sizes(con):
  """Users, items and interactions of table `kept`."""
  found = con.sql('SELECT count(DISTINCT u), count(DISTINCT i), count(*) FROM kept').fetchall()[0]
  return dict(zip(('users', 'items', 'interactions'), found))


def keep(con, query):
  """Replaces table `kept` by what a query over it finds."""
  con.execute(f'CREATE TABLE fewer AS {query}')
  con.execute('DROP TABLE kept')
  con.execute('ALTER TABLE fewer RENAME TO kept')


def apply(con, rules, known):
  """Applies one rule after the other to table `kept`. Yields the name of each that was applied.

  known: the Scale of the times.
  """
  yield 'as read'
  tests = []
  if rules.min_rating:
    tests.append((f'min_rating={rules.min_rating}', f'r >= {float(rules.min_rating)}'))
  for name, sign in (('start', '>='), ('end', '<=')):
    if getattr(rules, name):
      bound = times.moment(getattr(rules, name), name, known)
      tests.append((f'{name}={getattr(rules, name)}', f't {sign} {bound}'))
  if rules.untitled == 'drop':
    tests.append(('untitled=drop', 'i IN (SELECT i FROM items WHERE titled)'))
  for name, test in tests:
    keep(con, f'SELECT * FROM kept WHERE {test}')
    yield name
  if rules.repeats != 'keep':
    keep(con, 'SELECT * FROM kept QUALIFY row_number() OVER (PARTITION BY u, i ORDER BY '
         f'{REPEATS[rules.repeats]}) = 1')
    yield f'repeats={rules.repeats}'
  if rules.user_k or rules.item_k:
    core(con, rules.user_k, rules.item_k, rules.once)
    yield (f'users with {rules.user_k} and items with {rules.item_k}, '
           + ('counted once' if rules.once else 'until nothing changes'))
  yield from apply_lengths(con, rules)


def apply_lengths(con, rules):
  """The rules about whole users, as `apply`."""
  if rules.min_length:
    keep(con, 'SELECT k.* FROM kept k SEMI JOIN (SELECT u FROM kept GROUP BY u HAVING count(*) >= '
         f'{int(rules.min_length)}) USING (u)')
    yield f'min_length={rules.min_length}'
  if rules.max_length:
    way = 't DESC, n DESC' if rules.cut == 'last' else 't, n'
    keep(con, f'SELECT * FROM kept QUALIFY row_number() OVER (PARTITION BY u ORDER BY {way}) <= '
         f'{int(rules.max_length)}')
    yield f'max_length={rules.max_length}, {rules.cut}'
  if rules.sample:
    keep(con, 'SELECT k.* FROM kept k SEMI JOIN (SELECT u FROM users '
         f"WHERE u IN (SELECT u FROM kept) ORDER BY md5(concat('{int(rules.seed)}:', user)), user "
         f'LIMIT {int(rules.sample)}) USING (u)')
    yield f'{rules.sample} users by seed {rules.seed}'


def core(con, user_k, item_k, once):
  """Users and items with enough interactions, repeats counted; again until nothing changes."""
  rows = 'SELECT count(*) FROM kept'
  while True:
    before = con.sql(rows).fetchall()
    keep(con, f'''SELECT k.* FROM kept k
        SEMI JOIN (SELECT u FROM kept GROUP BY u HAVING count(*) >= {int(user_k)}) USING (u)
        SEMI JOIN (SELECT i FROM kept GROUP BY i HAVING count(*) >= {int(item_k)}) USING (i)''')
    if once or con.sql(rows).fetchall() == before:
      return


def repeats(con):
  """How many rows name the user, item and time of an earlier one."""
  return con.sql('SELECT (SELECT count(*) FROM kept) - (SELECT count(*) FROM (SELECT DISTINCT u, '
                 'i, t FROM kept))').fetchall()[0][0]


def untitled(con, all_items):
  """How many of the items that are written have no title."""
  some = '' if all_items else 'AND (before IS NOT NULL OR i IN (SELECT i FROM kept))'
  return con.sql(f'SELECT count(*) FROM items WHERE NOT titled {some}').fetchall()[0][0]


def examples(con):
  """Some items of the interactions that the items file lacks, and some that it has."""
  if not con.sql('SELECT 1 FROM goods LIMIT 1').fetchall():
    return {}
  return {name: [row[0] for row in con.sql(
      f'SELECT item FROM items WHERE {test} ORDER BY {place} LIMIT 3').fetchall()]
          for name, test, place in (('lacking', 'listed IS NULL AND met IS NOT NULL', 'met'),
                                    ('listed', 'listed IS NOT NULL', 'listed'))}


def unlisted(con):
  """How many items of the interactions the items file lacked."""
  return con.sql('SELECT count(*) FROM items WHERE listed IS NULL AND met IS NOT NULL'
                 ).fetchall()[0][0]
