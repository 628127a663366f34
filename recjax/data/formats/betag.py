"""BETag's own files: training sequences, base tags, raw predictions and the finished tags.

Ids are texts in memory. The published files write them as JSON integers in sequences and, as JSON
must, as texts for keys; `integer_ids` remembers which of the two a folder uses, so that what we
write matches what was read.
"""
import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from recjax import file_io
from recjax.data.dataset import Catalog, Dataset, Interactions, flatten, make_dataset
from recjax.errors import ConfigError, DataError

SEQUENCES = 'inters.train.json'
TAGS = 'base_tags.json'
PREDICTIONS = 'raw_predict.json'
BETAGS = 'raw_betags.json'

ON_MISSING = ('error', 'drop_item', 'drop_sequence')
ON_BAD_TAG = ('error', 'escape')

# A line break, or a number where the parser would take it for the next item of the list.
_BREAK = re.compile(r'[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]')
_NUMBERED = re.compile(r'\d+\.(?=\s|$)')


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What fine-tuning reads; `counts` says what was dropped or escaped on the way.

  sequences: lists of item ids in time order. tags: item id -> tags, at least one each. integer_ids:
  whether all item ids are integers.
  """
  sequences: list[list[str]]
  tags: dict[str, list[str]]
  integer_ids: bool
  counts: dict[str, int]


def is_folder(folder: pathlib.Path) -> bool:
  """Whether `folder` holds the files that fine-tuning reads."""
  return (folder / SEQUENCES).is_file()


def load(folder: str | pathlib.Path, name: str) -> Dataset:
  """Reads `folder` as the data set `name`; titles are the tags."""
  inputs = read_inputs(folder)
  index = {item: i for i, item in enumerate(inputs.tags, start=1)}
  columns = {'title': [', '.join(tags) for tags in inputs.tags.values()],
             'tags': list(inputs.tags.values())}
  rows = [[index[item] for item in sequence] for sequence in inputs.sequences]
  interactions = Interactions(tuple(str(u) for u in range(len(rows))), *flatten(rows))
  notes = {'source': 'betag', 'integer_ids': int(inputs.integer_ids), **inputs.counts}
  return make_dataset(name, Catalog(tuple(index), columns), interactions, notes)


def read_inputs(folder: str | pathlib.Path, sep: str = '| ', on_missing: str = 'error',
                on_empty: str = 'error', on_bad_tag: str = 'error') -> Inputs:
  """Reads inters.train.json and base_tags.json in `folder` and makes them fit each other.

  sep: between the tags of an item, as in `clean_tags`. on_missing (an item without tags in a
  sequence): error, drop_item or drop_sequence. on_empty (an item whose tag list is empty): error,
  or drop, after which the item has no tags. on_bad_tag (see `clean_tags`): error or escape. Raises
  DataError; ConfigError for other choices.
  """
  folder = pathlib.Path(folder)
  sequences, integer_ids, mixed = read_sequences(folder / SEQUENCES)
  if not sequences:
    raise DataError(f'{folder / SEQUENCES} holds no sequences.')
  tags, counts = clean_tags(read_tags(folder / TAGS), folder / TAGS, sep, on_empty, on_bad_tag)
  if not tags:
    raise DataError(f'{folder / TAGS} holds no item with tags.')
  sequences, more = match_tags(sequences, tags, folder / SEQUENCES, on_missing)
  return Inputs(sequences, tags, integer_ids, counts | more | {'mixed_ids': mixed})


def read_sequences(path: str | pathlib.Path) -> tuple[list[list[str]], bool, int]:
  """Lists of text ids in the file at `path`, whether all ids are integers, ids of the rarer type.

  Raises DataError naming sequence and position for anything else.
  """
  value = file_io.read_json(path)
  if not isinstance(value, list):
    raise DataError(f'{path}: a list of sequences is expected.')
  integers = texts = 0
  sequences = []
  for number, row in enumerate(value):
    if not isinstance(row, list):
      raise DataError(f'{path} sequence {number}: a list of item ids is expected, found '
                      f'{row!r:.60}.')
    sequences.append([
        file_io.text_id(item, f'{path} sequence {number}, position {i}', 'the item id')
        for i, item in enumerate(row)])
    whole = sum(type(item) is int for item in row)
    integers, texts = integers + whole, texts + len(row) - whole
  return sequences, integers > 0 and not texts, min(integers, texts)


def write_sequences(path: str | pathlib.Path, sequences: Iterable[Iterable[str]],
                    integer_ids: bool) -> None:
  """Writes the text ids of `sequences` to `path`, as JSON integers if `integer_ids`.

  Raises DataError if they are none.
  """
  rows = [[_integer(item, path) if integer_ids else item for item in row] for row in sequences]
  file_io.write_text(path, json.dumps(rows, ensure_ascii=False, separators=(',', ':')))


def read_tags(path: str | pathlib.Path) -> dict[str, list[str]]:
  """The tags of each item in base_tags.json at `path`. Raises DataError naming the id."""
  return _table(path, _texts, 'a list of texts')


def write_tags(path: str | pathlib.Path, tags: dict[str, list[str]]) -> None:
  """Writes the `tags` of each item to `path`, as base_tags.json."""
  _write_table(path, tags)


def read_predictions(path: str | pathlib.Path) -> dict[str, list[str]]:
  """The texts that each item has, one for each beam, in raw_predict.json at `path`.

  A single text in place of a list, as the published code writes for one beam, becomes a list.
  """
  return _table(path, lambda value: _texts([value] if isinstance(value, str) else value),
                'a text or a list of texts')


def write_predictions(path: str | pathlib.Path, predictions: dict[str, list[str]]) -> None:
  """Writes `predictions`, texts of each item, to `path`, as raw_predict.json."""
  _write_table(path, predictions)


def read_betags(path: str | pathlib.Path) -> dict[str, list[list[str]]]:
  """Rows of tags of each item in raw_betags.json at `path`; row 0 holds the base tags."""
  return _table(path, _rows, 'a list of lists of texts')


def write_betags(path: str | pathlib.Path, betags: dict[str, list[list[str]]]) -> None:
  """Writes `betags`, rows of tags of each item, base tags first, to `path`, as raw_betags.json."""
  _write_table(path, betags)


def clean_tags(tags: dict[str, list[str]], source: str | pathlib.Path, sep: str = '| ',
               on_empty: str = 'error',
               on_bad_tag: str = 'error') -> tuple[dict[str, list[str]], dict[str, int]]:
  """Makes every tag survive being written into a numbered line and parsed again.

  Blanks around tags go, and so do tags of blanks only. A tag is bad if it holds the separator or a
  line break, or starts like a numbered line ('2. '); on_bad_tag='escape' takes these out (see
  `escape_tag`). tags: of each item. source: what messages call the file. sep: between tags.
  on_empty: 'error', or 'drop' items without tags. Returns the tags, and counts of what was done.
  Raises DataError naming item and tag; ConfigError for unknown choices or a separator of blanks
  only.
  """
  _choice('on_empty', on_empty, ('error', 'drop'))
  _choice('on_bad_tag', on_bad_tag, ON_BAD_TAG)
  if not sep.strip():
    raise ConfigError(f'the tag separator is {sep!r}; it must hold a sign other than blanks.')
  counts = {'trimmed_tags': 0, 'escaped_tags': 0, 'empty_items': 0}
  cleaned = {}
  for item, texts in tags.items():
    trimmed = [tag.strip() for tag in texts]
    escaped = [escape_tag(tag, sep) for tag in trimmed]
    bad = [tag for tag, clean in zip(trimmed, escaped) if tag != clean]
    if bad and on_bad_tag == 'error':
      raise DataError(f'{source} item {item!r}: tag {bad[0]!r:.80} holds the separator {sep!r}, a '
                      'line break or a line number; mend it, or let bad tags be escaped.')
    counts['escaped_tags'] += len(bad)
    counts['trimmed_tags'] += sum(a != b for a, b in zip(texts, trimmed))
    cleaned[item] = [tag for tag in escaped if tag]
    if cleaned[item]:
      continue
    if on_empty == 'error':
      raise DataError(f'{source} item {item!r} has no tags; give it some, or let such items be '
                      'dropped.')
    del cleaned[item]
    counts['empty_items'] += 1
  return cleaned, counts


def escape_tag(tag: str, sep: str = '| ') -> str:
  """`tag` without line breaks, separators `sep` and leading line numbers; '' if that is all it is.

  A tag that parsing gives back as it was comes back unchanged.
  """
  text = tag
  if _BREAK.search(text):
    text = ' '.join(_BREAK.sub(' ', text).split())
  if (text + sep + text).split(sep) != [text, text]:
    sign = sep.strip()
    # An end of a tag that would run into the separator behind it goes too.
    text = ' '.join(text.replace(sign, ' ').split()).strip(sign)
  text = text.strip()
  while match := _NUMBERED.match(text):
    text = text[match.end():].strip()
  return text


def match_tags(sequences: list[list[str]], tags: Collection[str], source: str | pathlib.Path,
               on_missing: str = 'error') -> tuple[list[list[str]], dict[str, int]]:
  """Takes items out of `sequences` that have no `tags`, as `on_missing` of `read_inputs` says.

  source: what messages call the file. Returns the sequences, and counts of what was missing. Raises
  DataError listing the ids if `on_missing` is 'error'.
  """
  _choice('on_missing', on_missing, ON_MISSING)
  missing = collections.Counter(item for row in sequences for item in row if item not in tags)
  counts = {'missing_items': len(missing), 'missing_interactions': missing.total(),
            'dropped_sequences': 0}
  if not missing:
    return sequences, counts
  if on_missing == 'error':
    shown = ', '.join(list(missing)[:20]) + (', ...' if len(missing) > 20 else '')
    raise DataError(f'{source}: {len(missing)} items of the sequences have no tags: {shown}; give '
                    'them tags, or let the items or their sequences be dropped.')
  if on_missing == 'drop_item':
    matched = [[item for item in row if item in tags] for row in sequences]
    matched = [row for row in matched if row]
  else:
    matched = [row for row in sequences if all(item in tags for item in row)]
  counts['dropped_sequences'] = len(sequences) - len(matched)
  return matched, counts


def _table(path: str | pathlib.Path, check: Callable, expected: str) -> dict:
  value = file_io.read_json(path)
  if not isinstance(value, dict):
    raise DataError(f'{path}: an object with item ids as keys is expected.')
  table = {}
  for item, entry in value.items():
    if not item:
      raise DataError(f'{path}: a key is empty; keys are item ids.')
    checked = check(entry)
    if checked is False:
      raise DataError(f'{path} item {item!r}: {expected} is expected, found {entry!r:.60}.')
    table[item] = checked
  return table


def _texts(value: object) -> Any:
  """The list itself if it holds nothing but texts, else False."""
  good = isinstance(value, list) and all(isinstance(x, str) for x in value)
  return value if good else False


def _rows(value: object) -> Any:
  good = isinstance(value, list) and all(_texts(row) is not False for row in value)
  return value if good else False


def _write_table(path: str | pathlib.Path, table: dict) -> None:
  file_io.write_text(path, json.dumps(table, ensure_ascii=False, separators=(',', ':')))


def _integer(item: str, path: str | pathlib.Path) -> int:
  # int() would also take ' 7', '+7' and '007', which would not come back as they were.
  if not re.fullmatch(r'0|-?[1-9][0-9]*', item):
    raise DataError(f'{path}: item id {item!r} is no integer, though the ids read were integers.')
  return int(item)


def _choice(name: str, value: str, allowed: Collection[str]) -> None:
  if value not in allowed:
    raise ConfigError(f'{name} is {value!r}; it must be one of {", ".join(allowed)}.')
