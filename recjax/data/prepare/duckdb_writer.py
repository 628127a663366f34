"""The files of the data set out of tables that DuckDB holds, span by span.

Tables as `duckdb_engine` makes them in the database `con`: users (user, u), items (item, i, listed,
before, met), kept (u, i, t, r, n), item_rows and previous_items (item, data, n).
"""
import collections
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from recjax import file_io
from recjax.data.prepare.report import BLOCK

Connection = Any  # a duckdb.DuckDBPyConnection; one file alone imports that package


def spans(con: Connection, column: str, table: str, per_span: int) -> Iterator[tuple[int, int]]:
  """Parts the numbers in a `column` of a `table` into spans of about `per_span` rows.

  con: the database. Yields the first and the last number of each.
  """
  top, rows = con.sql(f'SELECT max({column}), count(*) FROM {table}').fetchall()[0]
  width = max(1, top * per_span // max(1, rows))
  for first in range(1, top + 1, width):
    yield first, first + width - 1


def write_items(con: Connection, path: pathlib.Path, all_items: bool, fates: dict) -> int:
  """Writes the items that were met, or all, in order to `path`, span by span. Returns how many.

  all_items: all. fates: where not empty, counts of what became of earlier ones are added to it.
  con: the database.
  """
  condition = '' if all_items else 'AND (before IS NOT NULL OR i IN (SELECT i FROM kept))'
  retired = 'before IS NOT NULL AND listed IS NULL AND (met IS NULL OR EXISTS (FROM item_rows))'
  count, fate_counts = 0, collections.Counter()
  with file_io.table_writer(path) as write:
    for first, last in spans(con, 'i', 'items', BLOCK // 4):
      # Numbers of one span lie close together in their files, mostly.
      rows = con.sql(f"""
          WITH part AS (SELECT * FROM items WHERE i BETWEEN {first} AND {last} {condition})
          SELECT part.item, g.data, o.data, {retired} FROM part
          LEFT JOIN (SELECT n, data FROM item_rows WHERE n BETWEEN
            (SELECT min(listed) FROM part) AND (SELECT max(listed) FROM part)) g ON listed = g.n
          LEFT JOIN previous_items o ON before = o.n
          ORDER BY i""").fetchall()
      updated = [update_item(*row) for row in rows]
      write([row for row, _ in updated])
      fate_counts.update(fate for _, fate in updated)
      count += len(rows)
  if fates:
    for fate in ('same', 'changed', 'retired', 'back', 'new'):
      fates[fate] = fate_counts[fate]
  return count


def update_item(item: str, data: str | None, before: str | None, retired: bool) -> tuple[dict, str]:
  """A row of the items file, and what became of it: 'new', 'same', 'changed', 'retired', 'back'.

  item: its id. data, before: its columns now and in the earlier data set, as JSON, or None.
  retired: it is in the earlier one alone.
  """
  old = json.loads(before) if before else {}
  was_retired = old.pop('retired', None)
  row = json.loads(data or before or json.dumps({'item_id': item, 'title': ''}))
  row.pop('retired', None)
  if retired:
    return row | {'retired': True}, 'retired'
  if not before:
    return row, 'new'
  return row, 'back' if was_retired else 'changed' if row != old else 'same'


def write_sequences(con: Connection, path: pathlib.Path, ties: str) -> int:
  """Writes each user's items in order of time to `path`, span by span. Returns how many users.

  ties: columns that order items of one time, as SQL. con: the database.
  """
  timed, rated = con.sql('SELECT count(t) > 0, count(r) > 0 FROM kept').fetchall()[0]
  names = con.sql('SELECT item FROM items ORDER BY i').to_arrow_table().column(0)
  join = 'JOIN items USING (i)' if 'item' in ties else ''
  count = 0
  with file_io.table_writer(path) as write:
    for first, last in spans(con, 'u', 'kept', 8 * BLOCK):
      condition = f'WHERE u BETWEEN {first} AND {last}'
      table = con.sql(f'SELECT u, i, t, r FROM kept {join} {condition} ORDER BY u, t, {ties}'
                      ).to_arrow_table()
      if not len(table):
        continue
      users = con.sql(f'SELECT user FROM users {condition} AND u IN '
                      f'(SELECT u FROM kept {condition}) '
                      'ORDER BY u').fetchall()
      columns = [c.to_numpy() for c in table.columns]
      write(_sequence_rows(columns, users, names, timed, rated))
      count += len(users)
  return count


def _sequence_rows(columns: list[np.ndarray], users: list[tuple[str]], names, timed: bool,
                   rated: bool) -> list[dict]:
  """Rows of sequences.jsonl.

  columns: u, i (from 1), t, r, each (M,). users: their ids, in tuples. names: of all items.
  """
  u, i, t, r = columns
  starts = np.flatnonzero(np.diff(u, prepend=u[0] - 1))
  items = names.take(i - 1).to_pylist()
  t = t.astype(np.int64).tolist() if timed else []
  r = r.tolist() if rated else []
  rows = []
  for (name,), a, b in zip(users, starts, [*starts[1:], len(u)]):
    row = {'user_id': name, 'items': items[a:b]}
    if timed:
      row['times'] = t[a:b]
    if rated:
      row['ratings'] = r[a:b]
    rows.append(row)
  return rows
