"""The tables of a run that `recjax compare` and people read: ranks and predictions, as Parquet."""
import contextlib
import os
import pathlib

import numpy as np

from recjax.errors import DataError, WorkdirError


def write_ranks(path, users, rows, groups=None):
  """Writes columns user, row, rank (0 is best), groups (names between spaces), atomically.

  users: n strings. rows: {row: (n,) int32 ranks}. groups: {name: (n,) bool}, without them there is
  no such column. Raises DataError for unequal lengths, ranks that are no integers, or a user named
  twice; WorkdirError where the file cannot be written.
  """
  import pyarrow as pa
  users = [str(u) for u in users]
  for row, ranks in rows.items():
    ranks = np.asarray(ranks)
    if ranks.shape != (len(users),) or not np.issubdtype(ranks.dtype, np.integer):
      raise DataError(f'row {row}: ranks are {ranks.dtype}{ranks.shape} for {len(users)} users; '
                      'give one integer each')
  if len(set(users)) < len(users):
    raise DataError(f'{len(users) - len(set(users))} users are named twice; a rank belongs to one')
  column = pa.array(users, pa.string())
  table = {
      'user': pa.chunked_array([column] * len(rows), pa.string()),
      'row': pa.array(np.repeat(np.array(list(rows), object), len(users)), pa.string()),
      'rank': pa.array(np.concatenate([np.zeros(0), *rows.values()]).astype(np.int32))}
  if groups:
    of = pa.array([' '.join(n for n, mask in groups.items() if mask[i]) for i in range(len(users))])
    table['groups'] = pa.chunked_array([of] * len(rows), pa.string())
  _write_parquet(path, pa.table(table))


def read_ranks(path):
  """Reads what write_ranks wrote, in whatever order of lines.

  -> users tuple of n str, {row: (n,) int32}. Raises DataError where the file is missing or broken,
  or its rows do not rank the same users once each.
  """
  table = _read_parquet(path, ('user', 'row', 'rank'))
  labels = table['row'].combine_chunks().dictionary_encode()
  owner, order = labels.indices.to_numpy(zero_copy_only=False), labels.dictionary.to_pylist()
  user, rank = np.array(table['user'].to_pylist(), object), table['rank'].to_numpy()
  users, rows = (), {}
  for number, name in enumerate(order):
    mine = owner == number
    found = dict(zip(user[mine], rank[mine]))
    users = users or tuple(found)
    if len(found) != mine.sum() or found.keys() != set(users):
      raise DataError(f'{path}: row {name} does not rank the same users as row {order[0]}, each '
                      'once; write the ranks again')
    rows[name] = np.array([found[u] for u in users], np.int32)
  if not users:
    raise DataError(f'{path} holds no rank; run the evaluation again')
  return users, rows


def read_groups(path):
  """-> {user: list of group names}, empty where the file does not say them"""
  if 'groups' not in _schema(path).names:
    return {}
  table = _read_parquet(path, ('user', 'groups'))
  return {u: of.split() for u, of in zip(table['user'].to_pylist(), table['groups'].to_pylist())}


def write_predictions(path, users, items, scores):
  """Writes columns user, rank (1 is best), item, score, atomically.

  users: n strings. items: (n, k) item ids, None or '' where a list is shorter. scores: (n, k)
  float32. Raises DataError for unequal shapes, WorkdirError where the file cannot be written.
  """
  import pyarrow as pa
  items, scores = np.asarray(items, object), np.asarray(scores, np.float32)
  if items.ndim != 2 or items.shape != scores.shape or len(users) != len(items):
    raise DataError(f'{len(users)} users, items {items.shape} and scores {scores.shape} do not '
                    'belong together; give one list of k items and scores a user')
  row, place = np.nonzero((items != None) & (items != ''))  # noqa: E711  elementwise
  names = pa.array([str(u) for u in users], pa.string())
  _write_parquet(path, pa.table({
      'user': names.take(pa.array(row)),
      'rank': pa.array((place + 1).astype(np.int32)),
      'item': pa.array([str(i) for i in items[row, place]], pa.string()),
      'score': pa.array(scores[row, place]),
  }))


def _write_parquet(path, table):
  import pyarrow.parquet as pq
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    pq.write_table(table, temporary, write_page_checksum=True)
    with open(temporary, 'rb+') as f:
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise WorkdirError(f'cannot write {path}: {error}; free space or change folder') from error


def _read_parquet(path, columns):
  import pyarrow as pa
  import pyarrow.parquet as pq
  kinds = {'user': pa.string(), 'row': pa.string(), 'groups': pa.string(), 'item': pa.string(),
           'rank': pa.int32(), 'score': pa.float32()}
  with _reading(path, columns):
    table = pq.read_table(path, columns=list(columns), page_checksum_verification=True)
    table = table.select(columns).cast(pa.schema([(c, kinds[c]) for c in columns]))
    table.validate(full=True)
    if empty := [c for c in columns if table[c].null_count]:
      raise ValueError(f'{empty[0]} is empty in {table[empty[0]].null_count} rows')
    return table


def _schema(path):
  import pyarrow.parquet as pq
  with _reading(path, ()):
    return pq.read_schema(path)


@contextlib.contextmanager
def _reading(path, columns):
  import pyarrow as pa
  try:
    if os.path.isdir(path):  # which Arrow would read as many files
      raise IsADirectoryError('it is a folder')
    yield
  except FileNotFoundError:
    raise DataError(f'{path} does not exist; compare takes folders of finished runs') from None
  except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
    raise DataError(f'{path} is no Parquet file with columns {", ".join(columns) or "of a run"} '
                    f'({" ".join(str(error).split())[:300]}); run the evaluation again') from error
