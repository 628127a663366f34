"""Recommendation for files of users: streamed, resumable after any kill, shared out in parts."""
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from recjax import file_io, run_files
from recjax.data.array_record import Records
from recjax.data.dataset import Catalog, Dataset
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.file_io import write_json
from recjax.progress import PlainProgress
from recjax.recommend import title_of

BLOCK = 256  # users that are answered, and come to disk, together
FLAG = '--output'
MERGED = 'merged.json'  # in TARGET.parts: the digest of what they became


@dataclasses.dataclass(frozen=True)
class Batch:
  """What is asked for whom: `source` holds the users, `target` gets the answers.

  recommend: as `recommend.load` gives it. catalog: its items. k: items of a list. request: what
  tells this batch from others. total: users in all. log: called with lines of progress.
  """
  recommend: Callable
  catalog: Catalog
  source: pathlib.Path
  target: pathlib.Path
  k: int
  request: dict
  total: int
  log: Callable[[str], object]


def run(recommend: Callable, data: Dataset | Records, source: str | os.PathLike,
        target: str | os.PathLike, k: int, model: str = '', log: Callable[[str], object] = print,
        part: tuple[int, int] | None = None) -> int:
  """Recommends for every row of `source` into `target`; a call that was killed goes on.

  recommend, data: as `recommend.load` gives them. source: JSON Lines, {"user_id": ..., "items":
  [...]} a line, or Parquet with these columns (name ends in .parquet); "times", and "now" of the
  request, in seconds too, for a model that reads them. target: x.jsonl, the same
  rows with "recommended": [{"item", "title", "score"}], or x.parquet with a row an answer: user,
  rank (1 is best), item, title, score. k: items for each. model: as `recommend.model_version` gives
  it. log: called with lines. part: (i, n) for the i-th of n shares, from 0, see `_run_part`.

  All of source is checked first; answers gather in TARGET.partial, and target appears whole. ->
  users answered now. Raises DataError naming the row that is wrong, ConfigError for another ending
  or a target that is there, WorkdirError where TARGET.partial belongs to another request or
  program.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  if target.suffix not in ('.jsonl', '.parquet'):
    raise ConfigError(f'{target}: the answers go to a file that ends in .jsonl or .parquet')
  partial = target.with_name(target.name + ('.parts' if part else '.partial'))
  if not os.path.lexists(partial):
    run_files.absent(target, FLAG, source)
  total = sum(1 for _ in read_users(source, data.catalog))
  request = {'source': digest(source), 'k': k, 'model': model, 'data': data.fingerprint}
  batch = Batch(recommend, data.catalog, source, target, k, request, total, log)
  if part:
    return _run_part(batch, *part)
  with open_journal(partial, request, total) as journal:
    done = journal.count
    if done < total:
      run_files.absent(target, FLAG, source)
    answer(batch, journal, range(done, total), total)
    write_answers([partial], target)
    partial.unlink()
  return total - done


def answer(batch: Batch, journal: file_io.Journal, users: range, share: int) -> None:
  """Journals the answers to `users`, which begin at a block's start, the last of `share` users.
  batch: what is asked. journal: of `open_journal`."""
  advance = PlainProgress(batch.log, 'answered', share, share - len(users), 'user')
  rows = itertools.islice(read_users(batch.source, batch.catalog), users.start, users.stop)
  while block := list(itertools.islice(rows, BLOCK)):
    journal.add(answer_rows(batch, block))
    advance(len(block))


def answer_rows(batch: Batch, rows: list[dict]) -> list[dict]:
  """The rows of one block with what is recommended. batch: what is asked."""
  items: list[Any] = [None] * len(rows)
  scores = items[:]
  timed = getattr(batch.recommend, 'timed', False)
  for told in (False, True):  # rows with times, where they are read, apart from the others
    places = [n for n, row in enumerate(rows) if (timed and bool(row.get('times'))) == told]
    some = [rows[n] for n in places]
    if some:
      more = {'times': [[*row['times'], row.get('now') or row['times'][-1]]
                        for row in some]} if told else {}
      answers = batch.recommend([row['items'] for row in some], batch.k, **more)
      for place, *answer in zip(places, *answers):
        items[place], scores[place] = answer
  return [{**row, 'recommended': [
      {'item': item, 'title': title_of(batch.catalog, item), 'score': round(float(score), 6)}
      for item, score in zip(row_items, row_scores)]}
          for row, row_items, row_scores in zip(rows, items, scores)]


def _run_part(batch, index, parts):
  """Answers one of n shares; the call that finds all of them finished merges them into the target.

  A share is whole blocks side by side, so answers have the bytes that one process gives them. All
  stands in TARGET.parts, which hosts must see alike; after the merge it tells that it was done.
  -> users answered now. Raises WorkdirError where TARGET.parts belongs to another request.
  """
  target, total = batch.target, batch.total
  folder, request = target.with_name(target.name + '.parts'), {**batch.request, 'parts': parts}
  journals = [folder / f'{i + 1}-of-{parts}.jsonl' for i in range(parts)]
  with hold_parts(folder, request):
    if merged(folder, target):
      batch.log(f'{target} was merged from {parts} parts before; nothing is left to do')
      return 0
    if not all(path.exists() for path in journals):
      run_files.absent(target, FLAG)
  blocks = -(-total // BLOCK)
  first, last = (min(total, i * blocks // parts * BLOCK) for i in (index, index + 1))
  done, partial = last - first, journals[index].with_suffix('.partial')
  if not journals[index].exists():
    with open_journal(partial, request, last - first) as journal:
      done = journal.count
      answer(batch, journal, range(first + done, last), last - first)
      os.replace(partial, journals[index])
  with hold_parts(folder, request):
    left = [i for i, path in enumerate(journals, 1) if not path.exists()]
    if merged(folder, target):
      batch.log(f'all {parts} parts are finished, and merged by another in {target}')
    elif left:
      batch.log(f'part {index + 1} of {parts} is finished; to come: {", ".join(map(str, left))}. '
                f'The last to finish writes {target}')
    else:
      write_answers(journals, target)
      write_json(folder / MERGED, digest(target))
      for path in journals:
        path.unlink()
      batch.log(f'all {parts} parts are finished, and merged in {target}')
  return last - first - done


@contextlib.contextmanager
def hold_parts(folder: pathlib.Path, request: dict) -> Iterator[None]:
  """The folder of a request's parts, held by this process alone for a moment.

  Raises WorkdirError where it belongs to another request or program, or to this request in other
  parts.
  """
  folder.mkdir(exist_ok=True)
  if any(folder.iterdir()) and not (folder / 'request.json').exists():  # in this order: others
    raise file_io.foreign(folder)
  with file_io.Journal(folder / 'request.json', header=request, wait=True) as journal:
    held: Any = journal.held
    if held != request:
      what = (f'this request in {held["parts"]} parts, not {request["parts"]}'
              if {**held, 'parts': 0} == {**request, 'parts': 0} else
              'another request (other input, k, data or model)')
      raise WorkdirError(f'{folder} belongs to {what}; give all parts the same flags, or remove '
                         'the folder to begin anew')
    yield


@contextlib.contextmanager
def open_journal(path: pathlib.Path, request: dict, total: int) -> Iterator[file_io.Journal]:
  """The answers so far of `total` users, for this process alone: the request, then a line each.

  path: of the journal. request: what tells this batch from others.

  Cut back to whole blocks, so that every answer is computed beside the same others as in a call
  that nobody stopped. Raises WorkdirError where they answer another request, or are damaged.
  """
  with file_io.Journal(path, is_answer, request, 'remove the file to begin anew') as journal:
    if journal.held != request:
      raise WorkdirError(f'{path} holds {journal.count} answers to another request (other input, '
                         'k, data or model); repeat that one to finish it, or remove the file')
    if journal.count != total:
      journal.keep(journal.count // BLOCK * BLOCK)
    yield journal


def is_answer(value: object) -> bool:
  """Whether a line of a journal is one of a batch. value: of the line."""
  return isinstance(value, dict) and 'recommended' in value


def merged(folder: pathlib.Path, target: pathlib.Path) -> bool:
  """Whether the parts in `folder` became `target`, and it is still the same file."""
  return target.is_file() and (folder / MERGED).is_file() and (
      (folder / MERGED).read_bytes() == f'"{digest(target)}"\n'.encode())


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, hex. path: of the file."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def read_users(source: pathlib.Path, catalog: Catalog) -> Iterator[dict]:
  """source: a file of users. catalog: that knows their items. Yields the rows of a batch, items as
  texts; read as a stream. Raises DataError naming one."""
  for place, row in file_io.read_rows(source, blank_lines=False):
    file_io.text_id(row.get('user_id'), place, 'user_id')
    if not isinstance(row.get('items'), list) or not row['items']:
      raise DataError(f'{place}: items must be a list of one item id or more, oldest first, found '
                      f'{row.get("items")!r:.60}')
    row['items'] = [file_io.text_id(item, place, 'an item') for item in row['items']]
    times = row.get('times')
    if times is not None and (
        not isinstance(times, list) or len(times) != len(row['items'])
        or not all(isinstance(t, int) for t in (*times, row.get('now') or 0))):
      raise DataError(f'{place}: times must be whole seconds, one for each of {len(row["items"])} '
                      f'items, and now another, found {times!r:.60}')
    for item in row['items']:
      try:
        catalog.index(item)
      except DataError as error:
        raise DataError(f'{place}: {str(error).rstrip(".")}; leave it out of `items`, or name '
                        'later data that hold it: --data') from error
    yield row


def write_answers(journals: Iterable[pathlib.Path], target: pathlib.Path) -> None:
  """The answers of journals, one behind the other, as `target`, which appears whole.

  A target that is there is left as it is if it holds the same, as where a kill came between the end
  and its note. Raises ConfigError for another.
  """
  def place(fresh: pathlib.Path, target: pathlib.Path) -> None:
    if not (target.is_file() and digest(target) == digest(fresh)):
      run_files.place(fresh, target, FLAG)

  lines = itertools.chain.from_iterable(file_io.lines_of(path, header=True) for path in journals)
  with file_io.atomic_path(target, place) as fresh:
    if target.suffix == '.parquet':
      write_parquet(lines, fresh)
    else:
      with open(fresh, 'wb') as out:
        out.writelines(lines)


def write_parquet(lines: Iterator[bytes], path: pathlib.Path) -> None:
  """Answers, a JSON object a line, as Parquet: user, rank, item, title, score. path: of the new
  file. lines: of the journal."""
  import pyarrow as pa
  import pyarrow.parquet as pq
  schema = pa.schema([('user', pa.string()), ('rank', pa.int32()), ('item', pa.string()),
                      ('title', pa.string()), ('score', pa.float32())])
  with pq.ParquetWriter(path, schema) as out:
    while block := list(itertools.islice(lines, 64 * BLOCK)):
      rows = [{'user': str(row['user_id']), 'rank': rank, **item} for row in
              map(json.loads, block) for rank, item in enumerate(row['recommended'], 1)]
      out.write_table(pa.Table.from_pylist(rows, schema))
