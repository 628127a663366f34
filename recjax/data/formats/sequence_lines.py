"""Lines `user item item ...` as S3-Rec, P5, LETTER and LLMEmb read them, `user item` (SASRec), or
`item item ...` without the user (gSASRec).

They hold no times, so the order is that of the file.
"""
import json
import pathlib
from collections.abc import Iterator

from recjax import file_io
from recjax.data import raw_reader
from recjax.data.dataset import Dataset
from recjax.data.sources import table
from recjax.errors import ConfigError

LAYOUTS = {'first': "a line's first word is its user",
           'none': 'each line is a user, numbered from 1, and its words are items'}


def source(path: raw_reader.Path, items: raw_reader.Path = '',
           tick: raw_reader.Tick | None = None, users: str = '') -> raw_reader.Source:
  """The lines of the file at `path` as raw rows.

  items: path of a table of items in any form, columns under their usual names, or ''. tick: as in
  `raw_reader.read`. users: 'first' where a line's first word is the user, 'none' where each line is
  a user of its own; '' tells it from all lines.
  """
  if users not in ('', *LAYOUTS):
    raise ConfigError(f"--users={users!r}; choose 'first' or 'none'")
  notes = {'interactions': {}, 'items': {}}
  item_rows = table.item_rows(items, notes=notes['items']) if items else ()
  return raw_reader.Source(pathlib.Path(path).stem,
                           _interactions(path, users, notes['interactions'], tick), item_rows,
                           notes)


def _interactions(path: raw_reader.Path, users: str, notes: dict,
                  tick: raw_reader.Tick | None) -> Iterator[raw_reader.InteractionRow]:
  layout = users or find_layout(path)
  notes['layout'] = LAYOUTS[layout] + ('' if users else ' (told by all lines)')
  for number, line in raw_reader.read_lines(path, tick):
    try:
      words = (line or b'\xff').decode('utf-8').split()
    except UnicodeDecodeError:
      yield path, number, None, 'not UTF-8, or a line over 4 MB'
      continue
    if layout == 'none':
      words.insert(0, str(number))
    if len(words) == 1 and layout == 'first':
      yield path, number, None, 'a user without items'
    for item in words[1:]:
      yield path, number, (words[0], item, None, None), ''


def find_layout(path: raw_reader.Path) -> str:
  """'first' where the lines of the file at `path` begin with their user.

  They do where all lines are pairs, or the first words count them from 0 or 1, or are no items.
  Raises ConfigError where nothing tells it.
  """
  firsts, others, lines, pairs, numbered = set(), set(), 0, 0, True
  for _, line in raw_reader.read_lines(path):
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


def write(dataset: Dataset, folder: raw_reader.Path, name: str) -> None:
  """Writes `dataset` to `folder` as NAME.txt, numbered from 1, and NAME.ids.json with the ids.

  name: NAME. User n is the n-th of its `users`, item n of its `items`.
  """
  data = dataset.interactions
  lines = [' '.join(map(str, (u, *data.history(u - 1)))) for u in range(1, len(data) + 1)]
  file_io.write_text(pathlib.Path(folder) / f'{name}.txt', '\n'.join(lines) + '\n')
  file_io.write_text(pathlib.Path(folder) / f'{name}.ids.json', json.dumps(
      {'users': data.users, 'items': dataset.catalog.ids}, ensure_ascii=False) + '\n')
