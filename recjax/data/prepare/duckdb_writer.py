"""The files of the data set out of tables that DuckDB holds, span by span.

Tables as `duckdb_engine.number` makes them: users (user, u), items (item, i, listed, before, met),
kept (u, i, t, r, n), goods and old (item, data, n).
"""
import collections
import json

import numpy as np

from recjax import file_io

BLOCK = 1 << 16  # rows that come from DuckDB together, or so


def spans(con, column, table, per_span):
  """Parts the numbers in a column into spans of about so many rows. Yields (first, last)."""
  top, rows = con.sql(f'SELECT max({column}), count(*) FROM {table}').fetchall()[0]
  width = max(1, top * per_span // max(1, rows))
  for first in range(1, top + 1, width):
    yield first, first + width - 1


def write_items(con, path, all_items, update):
  """Writes the items that were met, or all, in order; span by span. -> how many

  update: where not empty, counts of what became of the old ones are added to it.
  """
  some = '' if all_items else 'AND (before IS NOT NULL OR i IN (SELECT i FROM kept))'
  gone = 'before IS NOT NULL AND listed IS NULL AND (met IS NULL OR EXISTS (FROM goods))'
  count, fates = 0, collections.Counter()
  with file_io.table_writer(path) as write:
    for first, last in spans(con, 'i', 'items', BLOCK // 4):
      # Numbers of one span lie close together in their files, mostly.
      rows = con.sql(f"""
          WITH part AS (SELECT * FROM items WHERE i BETWEEN {first} AND {last} {some})
          SELECT part.item, g.data, o.data, {gone} FROM part
          LEFT JOIN (SELECT n, data FROM goods WHERE n BETWEEN
            (SELECT min(listed) FROM part) AND (SELECT max(listed) FROM part)) g ON listed = g.n
          LEFT JOIN old o ON before = o.n
          ORDER BY i""").fetchall()
      made = [renewed(*row) for row in rows]
      write([row for row, _ in made])
      fates.update(fate for _, fate in made)
      count += len(rows)
  if update:
    update.update({fate: fates[fate] for fate in ('same', 'changed', 'retired', 'back', 'new')})
  return count


def renewed(item, data, before, gone):
  """A row of the items file, and what became of it: 'new', 'same', 'changed', 'retired', 'back'."""
  old = json.loads(before) if before else {}
  was_gone = old.pop('retired', None)
  row = json.loads(data or before or json.dumps({'item_id': item, 'title': ''}))
  row.pop('retired', None)
  if gone:
    return row | {'retired': True}, 'retired'
  if not before:
    return row, 'new'
  return row, 'back' if was_gone else 'changed' if row != old else 'same'


def write_sequences(con, path, ties):
  """Writes each user's items in order of time, span by span. ties: columns, as SQL. -> how many"""
  timed, rated = con.sql('SELECT count(t) > 0, count(r) > 0 FROM kept').fetchall()[0]
  names = con.sql('SELECT item FROM items ORDER BY i').to_arrow_table().column(0)
  join = 'JOIN items USING (i)' if 'item' in ties else ''
  count = 0
  with file_io.table_writer(path) as write:
    for first, last in spans(con, 'u', 'kept', 8 * BLOCK):
      some = f'WHERE u BETWEEN {first} AND {last}'
      table = con.sql(f'SELECT u, i, t, r FROM kept {join} {some} ORDER BY u, t, {ties}'
                      ).to_arrow_table()
      if not len(table):
        continue
      users = con.sql(f'SELECT user FROM users {some} AND u IN (SELECT u FROM kept {some}) '
                      'ORDER BY u').fetchall()
      columns = [c.to_numpy() for c in table.columns]
      write(sequences(columns, users, names, timed, rated))
      count += len(users)
  return count


def sequences(columns, users, names, timed, rated):
  """Rows of sequences.jsonl. columns: u, i (from 1), t, r, each (M,); users: their names."""
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
