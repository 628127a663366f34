"""Interactions and items in any order and number to the canonical data set, in bounded memory.

Rows stream into a DuckDB file beside the result, which counts, filters and sorts on disk where
memory does not do. Its tables: interactions (user, item, t, r, n),
item_rows and previous_items (item, data as JSON, titled, n), and what `_number_ids` makes of them.
"""
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from recjax import file_io
from recjax.data import raw_reader, times
from recjax.data.duckdb_database import database
from recjax.data.prepare import duckdb_writer
from recjax.data.prepare.duckdb_writer import Connection
from recjax.data.prepare.report import (
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
from recjax.data.prepare.rules import DEFAULT_RULES, EQUAL_TIMES, REPEATS, Rules, check_rules
from recjax.errors import DataError, EmptyDatasetError

_CREATE_ITEMS = 'CREATE TABLE {} (item VARCHAR, data VARCHAR, titled BOOLEAN, n BIGINT)'


def prepare(source: raw_reader.Source, out: raw_reader.Path, rules: Rules = DEFAULT_RULES,
            layout: str = 'jsonl', memory: str = '2GB', overwrite: bool = False,
            say: Callable[[str], None] = print, update: raw_reader.Path = '') -> dict:
  """Writes items, sequences and prepared.json to `out`, whole or not at all.

  source: the raw rows, to which `rules` are applied. layout: 'jsonl', 'jsonl.gz' or 'parquet' (of
  sequences; items stay jsonl.gz). memory: what DuckDB may hold, beside about 0.5 GB of Python.
  overwrite: replace what `out` holds. say: is told how far it is. update: a data set whose items
  keep their places, as `_load_previous_items` says, or ''. Returns the report, as in prepared.json:
  {'bad': {...}, 'steps': [{'step', 'users', 'items', 'interactions'}], ...}. Raises DataError where
  too many rows are bad, EmptyDatasetError where nothing is left.
  """
  check_rules(rules)
  out = pathlib.Path(out).absolute()
  with file_io.new_folder(out, overwrite) as folder, database(out, memory) as con:
    bad = {'interactions': _load_interactions(con, source.interactions, rules.max_bad),
           'items': _load_items(con, source.items, rules.max_bad)}
    _load_previous_items(con, update)
    say('numbering users and items')
    _number_ids(con)
    ends = con.sql('SELECT min(t), max(t) FROM kept').fetchall()[0]
    scale = time_scale(source_notes(source, 'interactions'), *ends)
    repeated = _count_repeats(con)
    steps = []
    for name in _apply_rules(con, rules, scale):
      steps.append({'step': name, **_count_sizes(con)})
      say(f'{name}: {sizes_text(steps[-1])}')
      if not steps[-1]['interactions']:
        raise EmptyDatasetError(f'nothing is left after "{name}", of {sizes_text(steps[0])}; '
                                'loosen that rule')
    say('writing')
    items_path = folder / f'items.{"jsonl.gz" if layout == "parquet" else layout}'
    fates = {'of': str(update)} if update else {}
    written = {'items': duckdb_writer.write_items(con, items_path, rules.all_items, fates),
               'users': duckdb_writer.write_sequences(con, folder / f'sequences.{layout}',
                                                      EQUAL_TIMES[rules.ties])}
    report = {'source': source.name, 'rules': dataclasses.asdict(rules), 'bad': bad,
              'told': {key: source_notes(source, what) for what, key in NOTE_KEYS.items()},
              'times': time_range(scale, *ends), 'repeated': repeated,
              'items_not_in_the_items_file': _count_unlisted(con),
              'unlisted': _unlisted_examples(con),
              'untitled': _count_untitled(con, rules.all_items),
              'items_left_out': _count_left_out(con, rules.all_items), 'steps': steps,
              'written': written, 'update': fates}
    file_io.write_text(folder / 'prepared.json', json.dumps(report, indent=2) + '\n')
  return report


def _load_interactions(con: Connection, rows: Iterable[raw_reader.InteractionRow],
                      max_bad: float) -> dict:
  """Brings interactions (rows) to the table of that name and returns what was bad.

  max_bad: the share of bad rows that is tolerated.
  """
  import pyarrow as pa
  con.execute('CREATE TABLE interactions (user VARCHAR, item VARCHAR, t BIGINT, r DOUBLE, '
              'n BIGINT)')
  schema = pa.schema([('user', pa.string()), ('item', pa.string()), ('t', pa.int64()),
                      ('r', pa.float64()), ('n', pa.int64())])
  tally, start = new_tally(), 0
  for block in good_blocks(rows, tally):
    numbers = np.arange(start, start + len(block))
    start += len(block)
    columns = [*zip(*block), numbers]
    _insert(con, 'interactions', pa.table([pa.array(c, dtype) for c, dtype in zip(
        columns, schema.types)], schema=schema))
  return check_tally(tally, max_bad, 'interactions')


def _load_items(con: Connection, rows: Iterable[raw_reader.ItemRow], max_bad: float) -> dict:
  """Brings items (rows) to table item_rows and returns what was bad; as `_load_interactions`."""
  con.execute(_CREATE_ITEMS.format('item_rows'))
  tally, repeated = _insert_items(con, 'item_rows', rows)
  return check_tally(tally, max_bad, 'items') | {'given_twice': repeated}


def _insert_items(con: Connection, table: str, rows: Iterable[raw_reader.ItemRow]) -> tuple[dict,
                  int]:
  """Fills a table of items. Returns the tally of its rows, and how many items were given again."""
  import pyarrow as pa
  tally, start = new_tally(), 0
  for block in good_blocks(encode_items(rows), tally):
    ids, data, titled = zip(*block)
    _insert(con, table, pa.table({
        'item': pa.array(ids, pa.string()), 'data': pa.array(data, pa.string()),
        'titled': pa.array(titled, pa.bool_()), 'n': np.arange(start, start + len(block))}))
    start += len(block)
  return tally, con.sql(f'SELECT count(*) - count(DISTINCT item) FROM {table}').fetchall()[0][0]


def _load_previous_items(con: Connection, folder: raw_reader.Path) -> None:
  """Brings the items of an earlier data set at `folder` to table previous_items; '' for none.

  They keep their places, new items come behind them. Old ones that are missing now are retired:
  they stay, with `retired` true. Missing means in the items file, or without one in the
  interactions. Raises DataError where the folder is no data set.
  """
  con.execute(_CREATE_ITEMS.format('previous_items'))
  if not folder:
    return
  path = file_io.find_table(folder, 'items') if pathlib.Path(folder).is_dir() else None
  if path is None:
    raise DataError(f'--update={folder}: no data set stands there; name the folder that holds the '
                    'items file of the last time')
  rows = ((path, n, (file_io.text_id(row.pop('item_id', None), place, 'item_id'), row), '')
          for n, (place, row) in enumerate(file_io.read_rows(path), 1))
  tally, repeated = _insert_items(con, 'previous_items', rows)
  check_tally(tally, 0, f'items of {folder}')
  if repeated:
    raise DataError(f'{path} gives an item twice; see `recjax doctor {folder}`')


def _insert(con: Connection, table: str, block) -> None:
  con.register('block', block)
  con.execute(f'INSERT INTO {table} SELECT * FROM block')
  con.unregister('block')


def _number_ids(con: Connection) -> None:
  """Numbers users by first appearance; items as before, then as listed, then by first appearance.

  Makes tables users (user, u), items (item, i, titled, listed, before, met), kept (u, i, t, r, n).
  """
  con.execute('CREATE TABLE users AS SELECT user, row_number() OVER (ORDER BY min(n)) AS u '
              'FROM interactions GROUP BY user')
  con.execute('''
      CREATE TABLE items AS WITH
        listed AS (
          SELECT item, min(n) AS n, arg_min(titled, n) AS titled FROM item_rows GROUP BY item),
        met AS (SELECT item, min(n) AS n FROM interactions GROUP BY item)
      SELECT item, coalesce(l.titled, o.titled, false) AS titled, l.n AS listed, o.n AS before,
        m.n AS met, row_number() OVER (
          ORDER BY o.n IS NULL, o.n, l.n IS NULL, coalesce(l.n, m.n)) AS i
      FROM listed l FULL JOIN met m USING (item) FULL JOIN previous_items o USING (item)''')
  con.execute('CREATE TABLE kept AS SELECT u, i, t, r, n FROM interactions JOIN users USING (user) '
              'JOIN items USING (item)')
  con.execute('DROP TABLE interactions')


def _count_sizes(con: Connection) -> dict[str, int]:
  """Numbers of users, items and interactions in table kept."""
  counts = con.sql('SELECT count(DISTINCT u), count(DISTINCT i), count(*) FROM kept').fetchall()[0]
  return dict(zip(('users', 'items', 'interactions'), counts))


def _replace_kept(con: Connection, query: str) -> None:
  """Replaces table kept by what a query over it finds."""
  con.execute(f'CREATE TABLE fewer AS {query}')
  con.execute('DROP TABLE kept')
  con.execute('ALTER TABLE fewer RENAME TO kept')


def _apply_rules(con: Connection, rules: Rules, scale: times.TimeScale) -> Iterator[str]:
  """Applies one rule after the other to table kept. Yields the name of each that was applied.

  rules: those. scale: of the times.
  """
  yield 'as read'
  tests = []
  if rules.min_rating:
    tests.append((f'min_rating={rules.min_rating}', f'r >= {float(rules.min_rating)}'))
  for name, sign in (('start', '>='), ('end', '<=')):
    if getattr(rules, name):
      bound = times.parse_bound(getattr(rules, name), name, scale, name == 'end')
      tests.append((f'{name}={getattr(rules, name)}', f't {sign} {bound}'))
  if rules.untitled == 'drop':
    tests.append(('untitled=drop', 'i IN (SELECT i FROM items WHERE titled)'))
  for name, test in tests:
    _replace_kept(con, f'SELECT * FROM kept WHERE {test}')
    yield name
  if rules.repeats != 'keep':
    _replace_kept(con, 'SELECT * FROM kept QUALIFY row_number() OVER (PARTITION BY u, i ORDER BY '
         f'{REPEATS[rules.repeats]}) = 1')
    yield f'repeats={rules.repeats}'
  if rules.user_k or rules.item_k:
    _k_core(con, rules.user_k, rules.item_k, rules.once)
    yield (f'users with {rules.user_k} and items with {rules.item_k}, '
           + ('counted once' if rules.once else 'until nothing changes'))
  yield from _apply_lengths(con, rules)


def _apply_lengths(con: Connection, rules: Rules) -> Iterator[str]:
  """The rules about whole users, as `_apply_rules`."""
  if rules.min_length:
    _replace_kept(
      con,
      'SELECT k.* FROM kept k SEMI JOIN (SELECT u FROM kept GROUP BY u HAVING count(*) >= '
      f'{int(rules.min_length)}) USING (u)',
    )
    yield f'min_length={rules.min_length}'
  if rules.max_length:
    way = 't DESC, n DESC' if rules.cut == 'last' else 't, n'
    _replace_kept(
      con,
      f'SELECT * FROM kept QUALIFY row_number() OVER (PARTITION BY u ORDER BY {way}) <= '
      f'{int(rules.max_length)}',
    )
    yield f'max_length={rules.max_length}, {rules.cut}'
  if rules.sample:
    _replace_kept(con, 'SELECT k.* FROM kept k SEMI JOIN (SELECT u FROM users '
         f"WHERE u IN (SELECT u FROM kept) ORDER BY md5(concat('{int(rules.seed)}:', user)), user "
         f'LIMIT {int(rules.sample)}) USING (u)')
    yield f'{rules.sample} users by seed {rules.seed}'


def _k_core(con: Connection, user_k: int, item_k: int, once: bool) -> None:
  """Keeps users with `user_k` and items with `item_k` interactions; until nothing changes if not
  `once`. Repeats count.
  """
  rows = 'SELECT count(*) FROM kept'
  while True:
    before = con.sql(rows).fetchall()
    _replace_kept(con, f'''SELECT k.* FROM kept k
        SEMI JOIN (SELECT u FROM kept GROUP BY u HAVING count(*) >= {int(user_k)}) USING (u)
        SEMI JOIN (SELECT i FROM kept GROUP BY i HAVING count(*) >= {int(item_k)}) USING (i)''')
    if once or con.sql(rows).fetchall() == before:
      return


def _count_repeats(con: Connection) -> int:
  """How many rows name the user, item and time of an earlier one."""
  return con.sql('SELECT (SELECT count(*) FROM kept) - (SELECT count(*) FROM (SELECT DISTINCT u, '
                 'i, t FROM kept))').fetchall()[0][0]


def _count_untitled(con: Connection, all_items: bool) -> int:
  """How many of the items that are written have no title."""
  condition = '' if all_items else 'AND (before IS NOT NULL OR i IN (SELECT i FROM kept))'
  return con.sql(f'SELECT count(*) FROM items WHERE NOT titled {condition}').fetchall()[0][0]


def _count_left_out(con: Connection, all_items: bool) -> int:
  """How many items of the items file are not written, since no interaction of theirs is left."""
  if all_items:
    return 0
  return con.sql('SELECT count(*) FROM items WHERE listed IS NOT NULL AND before IS NULL '
                 'AND i NOT IN (SELECT i FROM kept)').fetchall()[0][0]


def _unlisted_examples(con: Connection) -> dict[str, list[str]]:
  """Some items of the interactions that the items file lacks, and some that it has."""
  if not con.sql('SELECT 1 FROM item_rows LIMIT 1').fetchall():
    return {}
  return {name: [row[0] for row in con.sql(
      f'SELECT item FROM items WHERE {test} ORDER BY {place} LIMIT 3').fetchall()]
          for name, test, place in (('lacking', 'listed IS NULL AND met IS NOT NULL', 'met'),
                                    ('listed', 'listed IS NOT NULL', 'listed'))}


def _count_unlisted(con: Connection) -> int:
  """How many items of the interactions the items file lacked."""
  return con.sql('SELECT count(*) FROM items WHERE listed IS NULL AND met IS NOT NULL'
                 ).fetchall()[0][0]
