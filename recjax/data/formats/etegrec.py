"""ETEGRec's files (arXiv:2409.05546): samples of users, index JSON of semantic IDs in every
published form, interests.
"""
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from recjax import file_io
from recjax.data import raw_reader
from recjax.data.dataset import Dataset
from recjax.errors import DataError

MAX_HISTORY = 50  # items of a history at most
_CODE = re.compile(r'<([a-z])_(\d+)>')


def source(folder: raw_reader.Path, tick: raw_reader.Tick | None = None) -> raw_reader.Source:
  """NAME.test.jsonl and NAME.emb_map.json in `folder` as raw rows: each user's history and target
  of the test.

  Histories hold 50 items at most, so longer ones are already cut; they have no times. Items come in
  the order of the map, without texts. tick: as in `raw_reader.read`.
  """
  folder = pathlib.Path(folder)
  maps = sorted(folder.glob('*.emb_map.json'))
  if len(maps) != 1:
    raise DataError(f'{folder} must hold one NAME.emb_map.json, found {len(maps)}.')
  name = maps[0].name.removesuffix('.emb_map.json')
  numbers = file_io.read_json(maps[0])
  if not isinstance(numbers, dict) or sorted(map(str, numbers.values())) != sorted(
      map(str, range(len(numbers)))) or not all(isinstance(n, int) for n in numbers.values()):
    raise DataError(f'{maps[0]}: an object from item to number, 0 to N, is expected.')
  ids = sorted((item for item in numbers if numbers[item]), key=lambda item: numbers[item])
  items = ((maps[0], number, (item, {}), '') for number, item in enumerate(ids, 1))
  return raw_reader.Source(name, _interactions(folder / f'{name}.test.jsonl', numbers, tick), items)


def _interactions(path: pathlib.Path, numbers: dict[str, int],
                  tick: raw_reader.Tick | None) -> Iterator[raw_reader.InteractionRow]:
  for number, row, reason in raw_reader.read(path, tick=tick):
    if row is not None and not (isinstance(row.get('inter_history'), list) and 'target_id' in row):
      row, reason = None, 'no inter_history and target_id'
    if row is None:
      yield path, number, None, reason
      continue
    for item in [*row['inter_history'], row['target_id']]:
      if isinstance(item, str) and item in numbers:
        yield path, number, (str(row.get('user_id', number)), item, None, None), ''
      else:
        yield path, number, None, f'{item!r:.40} is not in the map of items'


def write(dataset: Dataset, folder: raw_reader.Path, name: str) -> None:
  """Writes `dataset` to `folder`: `name`.train, .valid and .test.jsonl and `name`.emb_map.json.

  Of users with 3 items or more: every prefix trains, the last but one item validates, the last one
  tests; histories hold the last 50 items.
  """
  folder, data = pathlib.Path(folder), dataset.interactions
  ids = np.array(('', *dataset.catalog.ids), object)
  rows = {'train': [], 'valid': [], 'test': []}
  for u, user in enumerate(data.users):
    items = ids[data.history(u)].tolist()
    for n in range(1, len(items) if len(items) > 2 else 0):
      part = {len(items) - 1: 'test', len(items) - 2: 'valid'}.get(n, 'train')
      rows[part].append({'user_id': user, 'target_id': items[n],
                         'inter_history': items[max(0, n - MAX_HISTORY):n]})
  for part, samples in rows.items():
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in samples)
    file_io.write_text(folder / f'{name}.{part}.jsonl', text)
  numbers = {'[PAD]': 0} | {item: n for n, item in enumerate(dataset.catalog.ids, 1)}
  file_io.write_text(folder / f'{name}.emb_map.json',
                     json.dumps(numbers, ensure_ascii=False) + '\n')


def read_index(path: raw_reader.Path, ids: Sequence[str] = (), mixed: str = 'pad') -> np.ndarray:
  """Reads the index file at `path` as codes (N, L) int32, in the order of `ids`.

  It holds {item: ['<a_1>', ...]}, {item: [1, ...]}, or a list of rows (N.code.json). Items are
  named by `ids`, or numbered from 0 (`ids` empty too). Row 0 of a list may be padding, -1
  throughout. Codes written from 1 (no 0 anywhere in the file) are counted from 0 again. mixed: rows
  of several lengths are filled up with 0 ('pad', codes of the longer part then count from 1) or
  refused ('error'). Raises DataError for missing items, unreadable codes, another number of rows.
  """
  value = file_io.read_json(path)
  if isinstance(value, list):
    rows = value[1:] if value and all(c == -1 for c in value[0]) else value
    if ids and len(rows) != len(ids):
      raise DataError(f'{path} has codes of {len(rows)} items, the catalog {len(ids)} items')
  else:
    order = list(ids) if ids and ids[0] in value else [str(i) for i in range(len(value))]
    missing = [i for i in order if i not in value]
    if missing or ids and len(order) != len(ids):
      raise DataError(f'{path} lacks item {missing[0] if missing else len(order)} '
                      f'({len(value)} items in the file, {len(ids) or len(value)} in the catalog)')
    rows = [value[i] for i in order]
  return _code_table(path, [[_code_number(path, code) for code in row] for row in rows], mixed)


def _code_number(path: raw_reader.Path, code: object) -> int:
  match = _CODE.fullmatch(code) if isinstance(code, str) else None
  if match:
    return int(match[2])
  if isinstance(code, int) and code >= 0:
    return code
  raise DataError(f'{path}: {code!r} is no code; codes are like "<a_17>", or whole numbers')


def _code_table(path: raw_reader.Path, rows: list[list[int]], mixed: str) -> np.ndarray:
  lengths = [len(row) for row in rows]
  shortest, longest = min(lengths, default=0), max(lengths, default=0)
  if not shortest:
    raise DataError(f'{path}: item {lengths.index(0) if lengths else 0} has no codes')
  if shortest != longest and mixed == 'error':
    raise DataError(f'{path} has rows of {shortest} to {longest} codes; pass mixed="pad" to fill '
                    'short ones up')
  first = min(code for row in rows for code in row[:shortest])
  codes = np.zeros((len(rows), longest), np.int32)
  for i, row in enumerate(rows):
    codes[i, :shortest] = np.array(row[:shortest]) - (first == 1)
    codes[i, shortest:len(row)] = row[shortest:]
  return codes


def write_index(path: raw_reader.Path, codes: np.ndarray, ids: Sequence[str] = (),
                form: str = 'letters') -> None:
  """Writes the codes (N, L) of the items `ids`, or of numbers from 0, to `path`.

  form: 'letters' by item, 'numbers' by item, or 'rows' with padding first.
  """
  rows = np.asarray(codes).tolist()
  names = list(ids) or [str(i) for i in range(len(rows))]
  if form == 'rows':
    value = [[-1] * len(rows[0]), *rows]
  elif form == 'numbers':
    value = dict(zip(names, rows))
  else:
    value = {name: [f'<{chr(97 + level)}_{code}>' for level, code in enumerate(row)]
             for name, row in zip(names, rows)}
  file_io.write_text(path, json.dumps(value, separators=(',', ':')) + '\n')


def clean_interests(texts: Iterable[object], max_interests: int = 5,
                    max_letters: int = 80) -> list[str]:
  """The first `max_interests` texts, trimmed to `max_letters`, none twice whatever its case."""
  interests = {}
  for text in texts:
    text = ' '.join(str(text).split())[:max_letters].strip()
    if text:
      interests.setdefault(text.lower(), text)
  return list(interests.values())[:max_interests]


def parse_interests(text: str) -> list[str]:
  """The interests in an LLM's answer `text`: <interest> tags, or JSON {"interests": [...]}.

  Empty where it holds neither.
  """
  tagged = re.findall(r'<interest>(.*?)</interest>', text)
  if tagged:
    return clean_interests(tagged)
  start, end = text.find('{'), text.rfind('}')
  try:
    value = json.loads(text[start:end + 1])['interests']
    return clean_interests(value) if isinstance(value, list) else []
  except (ValueError, KeyError, TypeError):
    return []


def read_interests(
    paths: Iterable[raw_reader.Path]) -> tuple[dict[tuple[str, ...], list[str]], dict[str, int]]:
  """The interests of each history, by its item ids, in files *.processed.jsonl at `paths`.

  Texts are separated by a backslash and an n, as published, or by line ends; rows without the field
  count as without interests. Also returns the numbers of 'rows' and of those 'without_interests'.
  """
  interests, counts = {}, {'rows': 0, 'without_interests': 0}
  for path in paths:
    for place, row in file_io.read_rows(path):
      if not isinstance(row.get('inter_history'), list):
        raise DataError(f'{place}: inter_history must be a list of item ids')
      value = row.get('interests') or ''
      texts = value if isinstance(value, list) else re.split(r'\\n|\n', value)
      interests[tuple(map(str, row['inter_history']))] = clean_interests(texts)
      counts['rows'] += 1
      counts['without_interests'] += not any(texts)
  return interests, counts


def write_interests(path: raw_reader.Path, rows: Iterable[dict]) -> None:
  """Writes *.processed.jsonl to `path`. rows: with inter_history, target_id, a list `interests`."""
  file_io.write_text(path, ''.join(json.dumps(
      {**row, 'interests': '\\n'.join(row['interests'])}, ensure_ascii=False) + '\n'
      for row in rows))
