"""What an evaluation leaves: the files that people and `recjax compare` read, the closing table.

Letters of shapes: U users, S seeds, K items of a list.
"""
import collections
import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer, Num

from recjax import file_io, run_files
from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.errors import DataError, WorkdirError
from recjax.evaluation import audit, metrics, slices, statistics
from recjax.progress import doing

CLOSING = ('HR@10', 'NDCG@10')
MONTH = np.timedelta64(30, 'D')


def save(
    folder: str | os.PathLike, dataset: Dataset, split: splits.Split, row: str,
    ranks: Mapping[str, np.ndarray],
    lists: Sequence[Num[np.ndarray, 'U K']], protocol: str,
    seeds: Sequence[int] = (0,), ks: Sequence[int] = metrics.KS, audited: bool = True, **more: Any,
) -> dict[str, Any]:
  """Writes results.json, ranks.parquet and predictions.parquet about the test users.

  folder: where to. dataset: the data. split: what was held out of them. row: the one that is tested
  against all others. ranks: {row: integers (U,), or (S, U), a line for each seed}; a user's figure
  is the mean over the seeds. lists: of `row`, items 1..N or 0 for an empty place, and their scores.
  protocol: the sentence of `ranking.protocol` about these very users. seeds: of the lines of ranks;
  the first one draws the intervals. ks: cut-offs, fewer for lists that end early. audited: whether
  it holds what `audit.brief` says of the data, which are then as they were loaded. more: further
  entries of results.json. -> its content. Raises DataError for ranks of another shape, or a
  sentence about another number of users.
  """
  folder, test = pathlib.Path(folder), split.test
  if splits.num_cases(protocol) not in (None, len(test)):
    raise DataError(f'{len(test)} test users were ranked, and the protocol says {protocol!r}; '
                    'build its sentence for these users, as splits.sample_cases does')
  ranks = {row: ranks[row], **ranks}
  for name, x in ranks.items():
    if np.shape(x)[-1] != len(test) or np.ndim(x) == 2 and len(x) != len(seeds):
      raise DataError(f'row {name} has ranks {np.shape(x)}; give one for each of {len(test)} test '
                      f'users, and with two axes a line for each of {len(seeds)} seeds')
  owners, set_sizes = test.owners(), test.set_sizes()
  each = {name: [metrics.per_case(r, ks, set_sizes) for r in np.atleast_2d(x)]
          for name, x in ranks.items()}
  rows = {name: {m: np.mean([values[m] for values in lines], 0) for m in lines[0]}
          for name, lines in each.items()}
  counts = np.bincount(split.train.items, minlength=len(dataset.catalog) + 1)[1:]
  with doing('finding groups of users and items'):
    masks = (metrics.groups(test.targets, counts, np.diff(test.histories[1]))
             | slices.groups(split.train, test, len(dataset.catalog)))
    further = slices.apart(dataset.interactions, test)
  with doing('intervals and tests'):
    results = {
        'protocol': protocol, 'users': len(np.unique(test.users)), 'seeds': list(seeds),
        'data_fingerprint': dataset.fingerprint,
        **statistics.summarize(rows, seeds[0], masks, [(row, o) for o in rows if o != row],
                               owners=owners),
        **_over_seeds(each[row], seeds, owners),
        'lists': metrics.list_properties(lists[0][:, :10], counts, test.histories) | {
            'memorized': slices.memorized(split.train, test.histories,
                                          np.asarray(lists[0])[:, :10], len(dataset.catalog))},
        'cold_targets': int((counts[test.targets - 1] == 0).sum()),
        **({'as_set': True} if test.as_set else {}), **more}
  with doing('the change with time'):
    results |= _trend(rows, slices.times(dataset.interactions, test), seeds[0], owners)
  with doing('the audit of the data'):
    results |= {'audit': audit.brief(dataset)} if audited else {}
  with doing('intervals of groups'):
    for name, cells in results['rows'].items():
      cells |= statistics.in_groups({m: rows[name][m] for m in CLOSING if m in rows[name]},
                                    seeds[0], further, owners)
  with doing('writing ranks and lists'):
    _write(folder, dataset, test, _lines(ranks, seeds), masks | further, lists, results)
  return results


def _write(folder: pathlib.Path, dataset: Dataset, test: splits.Cases,
           lines: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray],
           lists: Sequence[Num[np.ndarray, 'U K']], results: Mapping[str, Any]) -> None:
  """The files of `save`. lines: ranks as from `_lines`. masks: groups of the test users."""
  users = [dataset.interactions.users[u] for u in test.users]
  numbers = None if test.owners() is None else case_numbers(users)
  write_ranks(folder / 'ranks.parquet', users, lines, masks, numbers)
  named = [[dataset.catalog.id_of(i) if i else None for i in items] for items in lists[0]]
  write_predictions(folder / 'predictions.parquet', users, named, lists[1], numbers)
  file_io.write_text(folder / 'results.json',
                     json.dumps(results, indent=1, ensure_ascii=False) + '\n')


def _trend(rows: Mapping[str, Mapping], when: np.ndarray | None, seed: int,
           owners: np.ndarray | None) -> dict[str, Any]:
  """{'trend': {row: {metric: its change with each MONTH from the first target on}}}, where data
  have times and the targets lie over more than two of them."""
  if when is None or np.isnat(when).all():
    return {}
  known = ~np.isnat(when)
  months = (when[known] - when[known].min()) / MONTH
  if months.max() <= 2:
    return {}
  whose = None if owners is None else owners[known]
  return {'trend': {name: {m: dict(zip(('value', 'low', 'high'), statistics.slope(
      values[m][known], months, seed, whose))) for m in CLOSING if m in values}
      for name, values in rows.items()}}


def _over_seeds(lines: Sequence[Mapping], seeds: Sequence[int],
                owners: np.ndarray | None) -> dict[str, Any]:
  """What results.json says of the seeds of a row. lines: values by metric, one for each seed."""
  stacked = {m: np.stack([statistics.by_user(line[m], owners) for line in lines])
             for m in lines[0]}
  found = {m: statistics.two_way(values) for m, values in stacked.items()}
  return {'by_seed': {str(seed): {m: float(values[i].mean()) for m, values in stacked.items()}
                      for i, seed in zip(range(len(lines)), seeds)},
          'sd_of_seeds': {m: cell['sd_of_seeds'] for m, cell in found.items()},
          'users_and_seeds': found}


def _lines(ranks: Mapping[str, np.ndarray],
           seeds: Sequence[int]) -> dict[str, Integer[np.ndarray, ' U']]:
  """One entry a row and seed, as ranks.parquet has them, under 'row' or 'row:seed=S'."""
  return {name if len(lines) == 1 else f'{name}:seed={seed}': line
          for name, lines in ((name, np.atleast_2d(x)) for name, x in ranks.items())
          for seed, line in zip(seeds, lines)}


def show(work: Any, folder: str | os.PathLike) -> None:
  """The closing table of a run, 80 columns wide: the first row and its tests against the others.

  work: the Workdir, whose console it is drawn on. folder: of results.json.
  """
  from rich.table import Table
  results = run_files.need_json(pathlib.Path(folder) / 'results.json')
  first = next(iter(results['rows']))
  table = Table('row', *CLOSING, 'p')
  for row, cells in results['rows'].items():
    p = results['tests'].get(f'{first}>{row}', {}).get(CLOSING[0])
    table.add_row(row, *('{value:.4f} [{low:.4f}, {high:.4f}]'.format(**cells[m]) for m in CLOSING),
                  '' if p is None else f'{p:.2g}')
  with work.console.capture() as captured:
    work.console.print(table)
  work.log(captured.get().rstrip())
  if len(results['seeds']) > 1:
    figures = ', '.join(f'{m} {results["rows"][first][m]["value"]:.4f} ± '
                        f'{results["sd_of_seeds"][m]:.4f}' for m in CLOSING)
    work.log(f'{len(results["seeds"])} seeds, mean ± standard deviation: {figures}')
  work.log(f'{results["protocol"]}; 95 % bootstrap intervals; p: paired randomization test of '
           f'{first} against the row by {CLOSING[0]}, Holm-corrected')
  if results.get('power'):
    work.log(results['power'])
  if results.get('started'):
    work.log(results['started']['said'])


def case_numbers(users: Sequence[str]) -> list[int]:
  """Which of its user's cases each is, from 1. users: whose each case is, in order."""
  met: collections.Counter[str] = collections.Counter()
  numbers = []
  for user in users:
    met[user] += 1
    numbers.append(met[user])
  return numbers


def write_ranks(path: str | os.PathLike, users: Sequence[str], rows: Mapping[str, Any],
                groups: Mapping[str, Bool[np.ndarray, ' U']] | None = None,
                numbers: Sequence[int] | None = None) -> None:
  """Writes columns user, row, rank (0 is best), groups (names between spaces), atomically.

  path: of the Parquet file. users: their names. rows: {row: integer ranks}. groups: the users of
  each group; without them there is no such column. numbers: which of its user's cases each is, a
  column `case`; None where each user has one. Raises DataError for unequal lengths, ranks that are
  no integers, or a user, or case of one, named twice; WorkdirError where the file cannot be
  written.
  """
  import pyarrow as pa
  users = [str(u) for u in users]
  for row, ranks in rows.items():
    ranks = np.asarray(ranks)
    if ranks.shape != (len(users),) or not np.issubdtype(ranks.dtype, np.integer):
      raise DataError(f'row {row}: ranks are {ranks.dtype}{ranks.shape} for {len(users)} users; '
                      'give one integer each')
  cases = set(users) if numbers is None else set(zip(users, numbers))
  if len(cases) < len(users):
    raise DataError(f'{len(users) - len(cases)} users are named twice; a rank belongs to one')
  column = pa.array(users, pa.string())
  table = {
      'user': pa.chunked_array([column] * len(rows), pa.string()),
      'row': pa.array(np.repeat(np.array(list(rows), object), len(users)), pa.string()),
      'rank': pa.array(np.concatenate([np.zeros(0), *rows.values()]).astype(np.int32))}
  if numbers is not None:
    table['case'] = pa.array(np.tile(np.asarray(numbers, np.int32), len(rows)))
  if groups:
    names = pa.array([' '.join(n for n, mask in groups.items() if mask[i])
                      for i in range(len(users))])
    table['groups'] = pa.chunked_array([names] * len(rows), pa.string())
  _write_parquet(path, pa.table(table))


# Whose a rank is: a user, or one of a user's cases.
CaseKey = str | tuple[str, int]


def read_ranks(
    path: str | os.PathLike,
) -> tuple[tuple[CaseKey, ...], dict[str, Int[np.ndarray, ' U']]]:
  """Reads what write_ranks wrote, in whatever order of lines.

  path: of the Parquet file. -> users, or (user, number) of each case where users have several,
  {row: their ranks}. Raises DataError where it is missing or broken, or its rows do not rank the
  same users once each.
  """
  table = _read_parquet(path, ('user', 'row', 'rank', *_case_column(path)))
  labels = table['row'].combine_chunks().dictionary_encode()
  owner, order = labels.indices.to_numpy(zero_copy_only=False), labels.dictionary.to_pylist()
  user, rank = _case_keys(table), table['rank'].to_numpy()
  users, rows = (), {}
  for number, name in enumerate(order):
    mine = owner == number
    rank_of = dict(zip(user[mine], rank[mine]))
    users = users or tuple(rank_of)
    if len(rank_of) != mine.sum() or rank_of.keys() != set(users):
      raise DataError(f'{path}: row {name} does not rank the same users as row {order[0]}, each '
                      'once; write the ranks again')
    rows[name] = np.array([rank_of[u] for u in users], np.int32)
  if not users:
    raise DataError(f'{path} holds no rank; run the evaluation again')
  return users, rows


def read_groups(path: str | os.PathLike) -> dict[CaseKey, list[str]]:
  """The groups of each user, or case, empty where the file does not say them.

  path: of what write_ranks wrote. Raises DataError where it is missing or broken.
  """
  if 'groups' not in _schema(path).names:
    return {}
  table = _read_parquet(path, ('user', 'groups', *_case_column(path)))
  return {key: names.split()
          for key, names in zip(_case_keys(table), table['groups'].to_pylist())}


def _case_column(path: str | os.PathLike) -> tuple[str, ...]:
  return ('case',) if 'case' in _schema(path).names else ()


def _case_keys(table: Any) -> np.ndarray:
  """Whose each line is, (lines,) of CaseKey."""
  users = table['user'].to_pylist()
  keys = np.empty(len(users), object)
  keys[:] = users if 'case' not in table.column_names else list(
      zip(users, table['case'].to_pylist()))
  return keys


def write_predictions(path: str | os.PathLike, users: Sequence[str],
                      items: Sequence[Sequence[str | None]] | np.ndarray, scores: Any,
                      numbers: Sequence[int] | None = None) -> None:
  """Writes columns user, rank (1 is best), item, score, atomically.

  path: of the Parquet file. users: one a list. items: ids, None or '' where a list is shorter.
  scores: (U, K), of these items. numbers: as of `write_ranks`. Raises DataError for unequal shapes,
  WorkdirError where the file cannot be written.
  """
  import pyarrow as pa
  items, scores = np.asarray(items, object), np.asarray(scores, np.float32)
  if items.ndim != 2 or items.shape != scores.shape or len(users) != len(items):
    raise DataError(f'{len(users)} users, items {items.shape} and scores {scores.shape} do not '
                    'belong together; give one list of k items and scores a user')
  row, place = np.nonzero((items != None) & (items != ''))  # noqa: E711  elementwise
  names = pa.array([str(u) for u in users], pa.string())
  table = {
      'user': names.take(pa.array(row)),
      'rank': pa.array((place + 1).astype(np.int32)),
      'item': pa.array([str(i) for i in items[row, place]], pa.string()),
      'score': pa.array(scores[row, place]),
  }
  if numbers is not None:
    table['case'] = pa.array(np.asarray(numbers, np.int32)[row])
  _write_parquet(path, pa.table(table))


def _write_parquet(path: str | os.PathLike, table: Any) -> None:
  import pyarrow.parquet as pq
  try:
    with file_io.atomic_path(path) as fresh:
      pq.write_table(table, fresh, write_page_checksum=True)
  except OSError as error:
    raise WorkdirError(f'cannot write {path}: {error}; free space or change folder') from error


def _read_parquet(path: str | os.PathLike, columns: Sequence[str]) -> Any:
  import pyarrow as pa
  import pyarrow.parquet as pq
  kinds = {'user': pa.string(), 'row': pa.string(), 'groups': pa.string(), 'item': pa.string(),
           'rank': pa.int32(), 'score': pa.float32(), 'case': pa.int32()}
  with _reading(path, columns):
    table = pq.read_table(path, columns=list(columns), page_checksum_verification=True)
    table = table.select(columns).cast(pa.schema([(c, kinds[c]) for c in columns]))
    table.validate(full=True)
    if empty := [c for c in columns if table[c].null_count]:
      raise ValueError(f'{empty[0]} is empty in {table[empty[0]].null_count} rows')
    return table


def _schema(path: str | os.PathLike) -> Any:
  import pyarrow.parquet as pq
  with _reading(path, ()):
    return pq.read_schema(path)


@contextlib.contextmanager
def _reading(path: str | os.PathLike, columns: Sequence[str]) -> Iterator[None]:
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
