"""A trained method's uniform face, and batch recommendation that can be resumed."""
import importlib
import json
import os
import pathlib

from recjax.data import catalog
from recjax.errors import DataError, WorkdirError
from recjax.training.work import read_json


def load(workdir):
  """Opens what a run trained. -> (recommend, Dataset)

  recommend(histories, k, exclude_seen=True, allowed=None) -> (item ids [B][k], scores [B, k]);
  histories are lists of item ids, oldest first, and may come from people never seen in training.
  """
  saved = read_json(pathlib.Path(workdir) / 'config.json')
  if saved is None:
    raise WorkdirError(f'{workdir} holds no config.json, so no run was made there; name the folder '
                       'that --workdir named')
  method = importlib.import_module(f'recjax.methods.{saved["config"]["method"]}')
  return method.recommender(workdir), catalog.load_data(saved['config']['data'])


def history_of(shop, user_id):
  """All items of a known user, oldest first. Raises DataError for an unknown one."""
  users = shop.interactions.users
  if user_id not in users:
    raise DataError(f'user {user_id!r} is not among the {len(users)} users of {shop.name}')
  return [shop.catalog.id_of(i) for i in shop.interactions.history(users.index(user_id))]


def batch(recommend, source, target, k, block=256):
  """Recommends for every line of `source` into `target`, both JSON Lines; goes on where it was.

  A source line: {"user_id": ..., "items": [...]}. A target line adds "recommended": [{"item",
  "score"}]. -> number of lines written now. Raises DataError naming the line that is wrong.
  """
  partial = pathlib.Path(f'{target}.partial')
  done = whole_lines(partial)
  written = 0
  with open(source, encoding='utf-8') as lines, open(partial, 'a', encoding='utf-8') as out:
    rows = []
    for number, line in enumerate(lines, 1):
      if number > done and line.strip():
        rows.append(parse_row(line, source, number))
      elif number > done:
        raise DataError(f'{source} line {number} is empty; remove it')
      if len(rows) == block:
        written += answer(recommend, rows, k, out)
        rows = []
    written += answer(recommend, rows, k, out)
  os.replace(partial, target)
  return written


def whole_lines(path):
  """Counts finished lines and cuts off a torn one."""
  if not path.exists():
    return 0
  data = path.read_bytes()
  os.truncate(path, data.rfind(b'\n') + 1)
  return data.count(b'\n')


def parse_row(line, source, number):
  """One user of a batch file. -> dict with 'items' as strings"""
  try:
    row = json.loads(line)
    row['items'] = [str(i) for i in row['items']]
  except (ValueError, TypeError, KeyError) as error:
    raise DataError(f'{source} line {number} is not {{"user_id": ..., "items": [...]}}: '
                    f'{error}') from error
  return row


def answer(recommend, rows, k, out):
  """Writes the answers of one block, flushed to disk. -> how many"""
  if not rows:
    return 0
  items, scores = recommend([r['items'] for r in rows], k)
  for row, found, values in zip(rows, items, scores):
    row['recommended'] = [{'item': i, 'score': round(float(s), 6)} for i, s in zip(found, values)]
    out.write(json.dumps(row, ensure_ascii=False) + '\n')
  out.flush()
  os.fsync(out.fileno())
  return len(rows)
