"""A trained method's uniform face, and batch recommendation that can be resumed."""
import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib

from recjax import file_io, methods, run_files, settings
from recjax.data import array_record, loading
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.file_io import write_json
from recjax.training.workdir import plain_progress

BLOCK = 256  # users that are answered, and come to disk, together
FLAG = '--output'
MERGED = 'merged.json'  # in TARGET.parts: the digest of what they became


def load(workdir, data=None):
  """Opens what a run trained. -> (recommend, Dataset)

  recommend(histories, k, exclude_seen=True, allowed=None) -> (item ids [B][k], scores [B, k]);
  histories are lists of item ids, oldest first, and may come from people never seen in training.
  data: a later data set, made from the run's by `recjax prepare --update`: its new items come along
  without training, or a ConfigError says why this run cannot read them.
  """
  module, shop = opened(workdir, data)
  with run_files.opening(workdir), settings.of_run(workdir):
    return in_stock(module.recommender(workdir, data), shop.catalog), shop


def opened(workdir, data=None):
  """The package of the method that made a run, and its data, or later ones. -> module, Dataset or
  Records"""
  module, config = method_of(workdir)
  if not data and not isinstance(config['data'], str):
    raise WorkdirError(f'{workdir}/config.json: "data" is {config["data"]!r:.60}, no folder')
  data = data or config['data']
  load = array_record.load if array_record.is_record_folder(data) else loading.load_data
  return module, load(data)


def method_of(workdir):
  """The package of the method that made a run, and its config. Raises WorkdirError for no run,
  ConfigError where it names no method."""
  config = run_files.read_config(workdir)['config']
  return methods.find(config['method'], f'{workdir}/config.json'), config


def in_stock(recommend, goods):
  """The same face without retired items, which stay known in histories."""
  live = goods.active_ids()
  if live is None:
    return recommend

  def among_live(histories, k, exclude_seen=True, allowed=None):
    return recommend(histories, k, exclude_seen, live if allowed is None else live & set(allowed))
  return among_live


def model_version(workdir):
  """What tells the model of a run from one that is trained later in the same folder. -> str"""
  done = sorted((pathlib.Path(workdir) / 'stages').glob('*/DONE.json'))
  return ' '.join(str(run_files.need_json(path)['fingerprint'])[:12] for path in done)


def history_of(shop, user_id):
  """All items of a known user, oldest first. Raises DataError for an unknown one."""
  if isinstance(shop, array_record.Records):
    raise DataError(f'{shop.name} keeps its users on disk, by number; give the items themselves: '
                    '--history=ID,ID,...')
  users = shop.interactions.users
  if user_id not in users:
    raise DataError(f'user {user_id!r} is not among the {len(users)} users of {shop.name}')
  return [shop.catalog.id_of(i) for i in shop.interactions.history(users.index(user_id))]


def title_of(goods, item_id):
  """The title of an item id of a catalogue, '' where it has none."""
  titles = goods.columns.get('title')
  return titles[goods.index(item_id) - 1] or '' if titles else ''


def batch(recommend, shop, source, target, k, model='', say=print, part=None):
  """Recommends for every row of `source` into `target`; a call that was killed goes on.

  source: JSON Lines, {"user_id": ..., "items": [...]} a line, or Parquet with these columns (name
  ends in .parquet). target: x.jsonl, the same rows with "recommended": [{"item", "title",
  "score"}], or x.parquet with a row an answer: user, rank (1 is best), item, title, score. All of
  source is checked first; answers gather in TARGET.partial, and target appears whole. model: as
  `mark` gives it. part: (i, n) for the i-th of n shares, from 0, see `batch_part`. -> users
  answered now. Raises DataError naming the row that is wrong, ConfigError for another ending or a
  target that is there, WorkdirError where TARGET.partial belongs to another request or program.
  """
  target = pathlib.Path(target)
  if target.suffix not in ('.jsonl', '.parquet'):
    raise ConfigError(f'{target}: the answers go to a file that ends in .jsonl or .parquet')
  partial = target.with_name(target.name + ('.parts' if part else '.partial'))
  if not os.path.lexists(partial):
    run_files.absent(target, FLAG, source)
  total = sum(1 for _ in read_users(source, shop.catalog))
  request = {'source': digest(source), 'k': k, 'model': model, 'data': shop.fingerprint}
  answer = functools.partial(answer_share, recommend, shop.catalog, source, k, say)
  if part:
    return batch_part(answer, target, request, total, part, say)
  with open_journal(partial, request, total) as (out, done):
    if done < total:
      run_files.absent(target, FLAG, source)
    answer(out, range(done, total), total)
    write([partial], target)
    partial.unlink()
  return total - done


def answer_share(recommend, goods, source, k, say, out, users, of):
  """Appends the answers to some users, a range that begins at a block's start; `of` are the job."""
  advance = plain_progress(say, 'answered', of, of - len(users), 'user')
  rows = itertools.islice(read_users(source, goods), users.start, users.stop)
  while some := list(itertools.islice(rows, BLOCK)):
    append(out, answers(recommend, goods, some, k))
    advance(len(some))


def batch_part(answer, target, request, total, part, say):
  """Answers one of n shares; the call that finds all of them finished merges them into `target`.

  A share is whole blocks side by side, so answers have the bytes that one process gives them. All
  stands in TARGET.parts, which hosts must see alike; after the merge it tells that it was done.
  -> users answered now. Raises WorkdirError where TARGET.parts belongs to another request.
  """
  index, parts = part
  folder, request = target.with_name(target.name + '.parts'), {**request, 'parts': parts}
  journals = [folder / f'{i + 1}-of-{parts}.jsonl' for i in range(parts)]
  mine, partial = journals[index], journals[index].with_suffix('.partial')
  with alone(folder, request):
    if merged(folder, target):
      say(f'{target} was merged from {parts} parts before; nothing is left to do')
      return 0
    if not all(path.exists() for path in journals):
      run_files.absent(target, FLAG)
  blocks = -(-total // BLOCK)
  first, last = (min(total, i * blocks // parts * BLOCK) for i in (index, index + 1))
  done = last - first
  if not mine.exists():
    with open_journal(partial, request, last - first) as (out, done):
      answer(out, range(first + done, last), last - first)
      os.replace(partial, mine)
  with alone(folder, request):
    left = [i for i, path in enumerate(journals, 1) if not path.exists()]
    if merged(folder, target):
      say(f'all {parts} parts are finished, and merged by another in {target}')
    elif left:
      say(f'part {index + 1} of {parts} is finished; to come: {", ".join(map(str, left))}. The '
          f'last to finish writes {target}')
    else:
      write(journals, target)
      write_json(folder / MERGED, digest(target))
      for path in journals:
        path.unlink()
      say(f'all {parts} parts are finished, and merged in {target}')
  return last - first - done


@contextlib.contextmanager
def alone(folder, request):
  """The folder of a request's parts, held by this process alone for a moment.

  Raises WorkdirError where it belongs to another request or program, or to this request in other
  parts.
  """
  folder.mkdir(exist_ok=True)
  if any(folder.iterdir()) and not (folder / 'request.json').exists():  # in this order: others
    raise foreign(folder)
  with open(folder / 'request.json', 'a+b') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    f.seek(0)
    found = f.read()
    held = request_of(found, request, folder)
    if held != request:
      what = (f'this request in {held["parts"]} parts, not {request["parts"]}'
              if {**held, 'parts': 0} == {**request, 'parts': 0} else
              'another request (other input, k, data or model)')
      raise WorkdirError(f'{folder} belongs to {what}; give all parts the same flags, or remove '
                         'the folder to begin anew')
    if found != encoded([request]):  # new, or whoever made it was killed there
      f.truncate(0)
      append(f, [request])
    yield


def request_of(line, request, path):
  """The request that the first line of a journal tells; `request` where it is empty, or was being
  written when the process was killed. Raises WorkdirError for what another program wrote."""
  if encoded([request]).startswith(line):
    return request
  try:
    held = json.loads(line)
  except (ValueError, RecursionError):
    held = None
  if not line.endswith(b'\n') or not isinstance(held, dict) or held.keys() != request.keys():
    raise foreign(path)
  return held


def foreign(path):
  """-> WorkdirError"""
  return WorkdirError(f'{path} was not made by this command, which would keep its answers there, '
                      f'and is not written over; move it away, or choose another {FLAG}')


def merged(folder, target):
  """Whether the parts in `folder` became `target`, and it is still the same file."""
  return target.is_file() and (folder / MERGED).is_file() and (
      (folder / MERGED).read_bytes() == f'"{digest(target)}"\n'.encode())


def digest(path):
  """SHA-256 of a file. -> str"""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def read_users(source, goods):
  """Yields the rows of a batch, items as texts; read as a stream. Raises DataError naming one."""
  for place, row in read_rows(source):
    file_io.text_id(row.get('user_id'), place, 'user_id')
    if not isinstance(row.get('items'), list) or not row['items']:
      raise DataError(f'{place}: items must be a list of one item id or more, oldest first, found '
                      f'{row.get("items")!r:.60}')
    row['items'] = [file_io.text_id(item, place, 'an item') for item in row['items']]
    for item in row['items']:
      try:
        goods.index(item)
      except DataError as error:
        raise DataError(f'{place}: {str(error).rstrip(".")}; leave it out of `items`, or name '
                        'later data that hold it: --data') from error
    yield row


def read_rows(source):
  """Yields (place, row) of a JSON Lines or Parquet file, one at a time."""
  source = pathlib.Path(source)
  if source.suffix == '.parquet':
    yield from file_io.read_rows(source)
    return
  try:
    with open(source, 'rb') as lines:
      for number, line in enumerate(lines, 1):
        place = f'{source} line {number}'
        if not line.strip():
          raise DataError(f'{place} is empty; remove it')
        row = file_io.parse_json(line.removeprefix(b'\xef\xbb\xbf'), source, number)
        if not isinstance(row, dict):
          raise DataError(f'{place} is not {{"user_id": ..., "items": [...]}}: {row!r:.60}')
        yield place, row
  except OSError as error:
    raise DataError(f'{source} cannot be read: {error.strerror}; name a JSON Lines or Parquet '
                    'file') from error


@contextlib.contextmanager
def open_journal(path, request, total):
  """The answers so far, for this process alone: first the request, then a line each.

  Cut back to whole blocks, so that every answer is computed beside the same others as in a call
  that nobody stopped. Yields the open file and how many users are answered.
  """
  with open(path, 'a+b') as out:
    try:
      fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise WorkdirError(f'{path} is being written by another process; wait for it') from None
    out.seek(0)
    first = out.readline()
    held = request_of(first, request, path)
    sizes = [len(line) for number, line in enumerate(out, 2) if whole_line(line, path, number)]
    done = len(sizes) if len(sizes) == total else len(sizes) // BLOCK * BLOCK
    if held != request:
      raise WorkdirError(f'{path} holds {len(sizes)} answers to another request (other input, k, '
                         'data or model); repeat that one to finish it, or remove the file')
    out.truncate(len(first) + sum(sizes[:done]) if done else 0)
    if not done:
      append(out, [request])
    yield out, done


def whole_line(line, path, number):
  """Whether a line of a journal is whole. Raises WorkdirError where it holds no answer."""
  if not line.endswith(b'\n'):
    return False
  try:
    good = 'recommended' in json.loads(line)
  except (ValueError, TypeError, RecursionError):
    good = False
  if not good:
    raise WorkdirError(f'{path} line {number} is damaged; remove the file to begin anew')
  return True


def encoded(rows):
  """Rows as JSON Lines. -> bytes"""
  return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode()


def append(out, rows):
  """Writes rows as JSON Lines, flushed to disk."""
  out.write(encoded(rows))
  out.flush()
  os.fsync(out.fileno())


def answers(recommend, goods, rows, k):
  """The rows of one block with what is recommended. -> list of dict"""
  items, scores = recommend([row['items'] for row in rows], k)
  return [{**row, 'recommended': [
      {'item': i, 'title': title_of(goods, i), 'score': round(float(s), 6)}
      for i, s in zip(found, values)]} for row, found, values in zip(rows, items, scores)]


@contextlib.contextmanager
def whole(target):
  """Yields a file beside `target` that gets its name when all went well. A target that is there is
  left as it is: it holds the same where a kill came between the end and its note."""
  fresh = target.with_name(f'.{target.name}.{os.getpid()}')
  try:
    yield fresh
    with open(fresh, 'rb+') as f:
      os.fsync(f.fileno())
    if not (target.is_file() and digest(target) == digest(fresh)):
      run_files.place(fresh, target, FLAG)
    file_io.sync_folder(target.absolute().parent)
  finally:
    fresh.unlink(missing_ok=True)


def write(journals, target):
  """The answers of journals, one behind the other, as `target`, which appears whole."""
  with whole(target) as fresh:
    (write_parquet if target.suffix == '.parquet' else write_lines)(lines_of(journals), fresh)


def lines_of(journals):
  """Yields the answers of journals, as bytes, without the requests above them."""
  for path in journals:
    with open(path, 'rb') as lines:
      next(lines)
      yield from lines


def write_lines(lines, path):
  """Answers as JSON Lines."""
  with open(path, 'wb') as out:
    out.writelines(lines)


def write_parquet(lines, path):
  """Answers as Parquet: user, rank, item, title, score."""
  import pyarrow as pa
  import pyarrow.parquet as pq
  kinds = pa.schema([('user', pa.string()), ('rank', pa.int32()), ('item', pa.string()),
                     ('title', pa.string()), ('score', pa.float32())])
  with pq.ParquetWriter(path, kinds) as out:
    while some := list(itertools.islice(lines, 64 * BLOCK)):
      rows = [{'user': str(row['user_id']), 'rank': rank, **found} for row in
              map(json.loads, some) for rank, found in enumerate(row['recommended'], 1)]
      out.write_table(pa.Table.from_pylist(rows, kinds))
