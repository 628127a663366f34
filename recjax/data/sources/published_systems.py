"""Files that published systems read, back to raw rows: S3-Rec and its kin, ETEGRec, RecLM,
UniRec.

Their own ids stay. None of them holds times, so the order is that of the files.
"""
import pathlib

from recjax import file_io
from recjax.data import cleaning, raw_reader
from recjax.data.formats import plain_pickle
from recjax.data.formats import reclm as reclm_files
from recjax.data.formats import unirec as unirec_files
from recjax.data.prepare import duckdb_engine
from recjax.errors import ConfigError, DataError


def sequences(path, items='', tick=None, users=''):
  """Lines `user item item ...` (S3-Rec, P5, LETTER, LLMEmb), `user item` (SASRec), or `item item
  ...` without the user (gSASRec).

  items: a table of items in any form, columns under their usual names. users: 'first' where a
  line's first word is the user, 'none' where each line is a user of its own; '' tells it from all
  lines. -> funnel.Source
  """
  if users not in ('', 'first', 'none'):
    raise ConfigError(f"--users={users!r}; choose 'first' or 'none'")
  told, goods = {'events': {}, 'goods': {}}, ()
  if items:
    from recjax.data.sources import table
    goods = table.goods(items, told=told['goods'])
  return duckdb_engine.Source(
    pathlib.Path(path).stem, _words(path, users, told['events'], tick), goods, told
  )


def _words(path, users, told, tick):
  how = '' if users else 'told by all lines'
  users = users or layout(path)
  told['layout'] = {'first': "a line's first word is its user",
                    'none': 'each line is a user, numbered from 1, and its words are items'}[users]
  told['layout'] += f' ({how})' if how else ''
  for number, line in raw_reader.lines(path, tick):
    try:
      words = (line or b'\xff').decode('utf-8').split()
    except UnicodeDecodeError:
      yield path, number, None, 'not UTF-8, or a line over 4 MB'
      continue
    user, row = (str(number), words) if users == 'none' else (words[:1] and words[0], words[1:])
    if words and not row:
      yield path, number, None, 'a user without items'
    for item in row:
      yield path, number, (user, item, None, None), ''


def layout(path):
  """'first' where lines begin with their user. Raises ConfigError where nothing tells it.

  They do where all lines are pairs, or the first words count them from 0 or 1, or are no items.
  """
  firsts, others, lines, pairs, numbered = set(), set(), 0, 0, True
  for _, line in raw_reader.lines(path):
    words = (line or b'').decode('utf-8', 'replace').split()
    if not words:
      continue
    if not lines:
      zero = words[0] == '0'
    numbered = numbered and words[0] == str(lines + (not zero))
    lines += 1
    pairs += len(words) == 2
    firsts.add(words[0])
    others.update(words[1:])
  if pairs == lines or numbered or not firsts & others:
    return 'first'
  raise ConfigError(f'{path}: do its lines begin with their user? Of {lines:,} first words '
                    f'{len(firsts):,} are different and {len(firsts & others):,} are items as '
                    'well. Say --users=first (lines are: user item item …) or --users=none (lines '
                    'are: item item …, each of one user)')


def etegrec(folder, tick=None):
  """NAME.test.jsonl and its two siblings: a user's history and target of the test. -> Source

  Histories hold 50 items at most, so longer ones are already cut. Items come in the order of
  NAME.emb_map.json, without texts.
  """
  folder = pathlib.Path(folder)
  found = sorted(folder.glob('*.emb_map.json'))
  if len(found) != 1:
    raise DataError(f'{folder} must hold one NAME.emb_map.json, found {len(found)}.')
  name = found[0].name.removesuffix('.emb_map.json')
  numbers = file_io.read_json(found[0])
  if not isinstance(numbers, dict) or sorted(numbers.values(), key=str) != sorted(
      range(len(numbers)), key=str):
    raise DataError(f'{found[0]}: an object from item to number, 0 to N, is expected.')
  ids = sorted((item for item in numbers if numbers[item]), key=numbers.get)
  goods = ((found[0], number, (item, {}), '') for number, item in enumerate(ids, 1))
  path = folder / f'{name}.test.jsonl'
  return duckdb_engine.Source(name, _questions(path, numbers, tick), goods)


def _questions(path, known, tick):
  for number, row, why in raw_reader.read(path, tick=tick):
    items = None if row is None else row.get('inter_history')
    if not why and (not isinstance(items, list) or 'target_id' not in row):
      why = 'no inter_history and target_id'
    if why:
      yield path, number, None, why
      continue
    for item in [*items, row['target_id']]:
      good = isinstance(item, str) and item in known
      yield (path, number, (str(row.get('user_id', number)), item, None, None) if good else None,
             '' if good else f'{item!r:.40} is not in the map of items')


def reclm(folder, allow_pickle=False):
  """sequential, metas and category, each one JSON object; or the pickles of RecLM-gen. -> Source

  A title is `title_t` where there is one. Raises ConfigError for pickles that were not allowed.
  """
  folder = pathlib.Path(folder)
  users = _whole(folder, ('sequential.jsonl', 'sequential.json', 'sequential.pickle'), allow_pickle)
  metas = _whole(folder, ('metas.jsonl', 'metas.json', 'meta.pickle'), allow_pickle)
  events = ((folder / 'sequential', n, *_event(user, item, metas))
            for n, (user, items) in enumerate(users.items(), 1)
            for item in (items if isinstance(items, list) else [None]))
  told = {'goods': cleaning.new_told()}
  goods = ((folder / 'metas', n, (str(item), cleaning.item(reclm_files.columns_of(row),
                                                           told['goods'])), '')
           if isinstance(row, dict) else (folder / 'metas', n, None, 'no columns')
           for n, (item, row) in enumerate(metas.items(), 1))
  return duckdb_engine.Source(folder.resolve().name, events, goods, told)


def _whole(folder, names, allow_pickle):
  path = next((folder / n for n in names if (folder / n).is_file()), None)
  if path is None:
    raise DataError(f'{folder} has none of {", ".join(names)}.')
  if path.suffix == '.pickle' and not allow_pickle:
    raise ConfigError(f'{path} is a pickle; add --allow-pickle to read it. Only plain lists, '
                      'dicts, texts and numbers are admitted.')
  value = plain_pickle.read(path) if path.suffix == '.pickle' else reclm_files.read_object(path)
  if not isinstance(value, dict):
    raise DataError(f'{path}: one object with ids as keys is expected.')
  return value


def _event(user, item, metas):
  try:
    event = (cleaning.identity(user, 'the user'), cleaning.identity(item, 'an item'), None, None)
  except ValueError as error:
    return None, str(error)
  # Keys of JSON are texts, those of pickles may be numbers.
  known = item in metas or event[1] in metas
  return (event, '') if known else (None, f'{item!r:.40} is not in metas')


def unirec(folder, allow_pickle=False, items=''):
  """The pickled tables that UniRec reads; items: a table of the items, for texts. -> Source

  Raises ConfigError where pickles were not allowed.
  """
  folder = pathlib.Path(folder)
  if not allow_pickle:
    raise ConfigError(f'{folder}: UniRec keeps its tables as pickles; add --allow-pickle to read '
                      'them. Only tables of numbers and texts are admitted, and nothing is run.')
  ids, users, rows = unirec_files.read(folder)
  events = ((folder / 'user_history.pkl', n, (user, ids[i - 1], None, None), '')
            for n, (user, row) in enumerate(zip(users, rows), 1) for i in row)
  goods = ((folder / 'map.pkl', n, (item, {}), '') for n, item in enumerate(ids, 1))
  told = {'goods': {}}
  if items:
    from recjax.data.sources import table
    goods = table.goods(items, told=told['goods'])
  return duckdb_engine.Source(folder.resolve().name, events, goods, told)
