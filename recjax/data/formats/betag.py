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

from recjax import file_io
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

  sequences: lists of item ids in time order. tags: item id -> tags, at least one each
  """
  sequences: list[list[str]]
  tags: dict[str, list[str]]
  integer_ids: bool
  counts: dict[str, int]


def read_inputs(folder, sep='| ', on_missing='error', on_empty='error', on_bad_tag='error'):
  """Reads inters.train.json and base_tags.json and makes them fit each other. -> Inputs

  on_missing (an item without tags in a sequence): error, drop_item or drop_sequence.
  on_empty (an item whose tag list is empty): error, or drop, after which the item has no tags.
  on_bad_tag (see `clean_tags`): error or escape. Raises DataError; ConfigError for other choices.
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


def read_sequences(path):
  """Reads a list of lists of ids. -> (lists of text ids, all ids are integers, ids of rarer type)

  Raises DataError naming sequence and position for anything else.
  """
  value = file_io.read_json(path)
  if not isinstance(value, list):
    raise DataError(f'{path}: a list of sequences is expected.')
  integers = texts = 0
  sequences = []
  for number, row in enumerate(value):
    if not isinstance(row, list):
      raise DataError(
        f'{path} sequence {number}: a list of item ids is expected, found {row!r:.60}.'
      )
    sequences.append(
      [
        file_io.text_id(item, f'{path} sequence {number}, position {i}', 'the item id')
        for i, item in enumerate(row)
      ]
    )
    whole = sum(type(item) is int for item in row)
    integers, texts = integers + whole, texts + len(row) - whole
  return sequences, integers > 0 and not texts, min(integers, texts)


def write_sequences(path, sequences, integer_ids):
  """Writes lists of text ids; as JSON integers if `integer_ids`. Raises DataError if they are not.
  """
  if integer_ids:
    sequences = [[_integer(item, path) for item in row] for row in sequences]
  file_io.write_text(path, json.dumps(sequences, ensure_ascii=False, separators=(',', ':')))


def read_tags(path):
  """Reads base_tags.json. -> dict item id -> list of texts. Raises DataError naming the id."""
  return _table(path, _texts, 'a list of texts')


def write_tags(path, tags):
  """Writes base_tags.json from dict item id -> list of texts."""
  _write_table(path, tags)


def read_predictions(path):
  """Reads raw_predict.json. -> dict item id -> list of texts, one for each beam

  A single text in place of a list, as the published code writes for one beam, becomes a list.
  """
  return _table(path, lambda value: _texts([value] if isinstance(value, str) else value),
                'a text or a list of texts')


def write_predictions(path, predictions):
  """Writes raw_predict.json from dict item id -> list of texts."""
  _write_table(path, predictions)


def read_betags(path):
  """Reads raw_betags.json. -> dict item id -> rows of tags; row 0 holds the base tags"""
  return _table(path, _rows, 'a list of lists of texts')


def write_betags(path, betags):
  """Writes raw_betags.json from dict item id -> rows of tags, base tags first."""
  _write_table(path, betags)


def clean_tags(tags, source, sep='| ', on_empty='error', on_bad_tag='error'):
  """Makes every tag survive being written into a numbered line and parsed again.

  Blanks around tags go, and so do tags of blanks only. A tag is bad if it holds the separator or a
  line break, or starts like a numbered line ('2. '); 'escape' takes these out (see `escape_tag`).
  source: what messages call the file. -> (dict item id -> tags, counts). Raises DataError naming
  item and tag; ConfigError for unknown choices or a separator of blanks only.
  """
  _choice('on_empty', on_empty, ('error', 'drop'))
  _choice('on_bad_tag', on_bad_tag, ON_BAD_TAG)
  if not sep.strip():
    raise ConfigError(f'the tag separator is {sep!r}; it must hold a sign other than blanks.')
  counts = {'trimmed_tags': 0, 'escaped_tags': 0, 'empty_items': 0}
  kept = {}
  for item, given in tags.items():
    old = [tag.strip() for tag in given]
    new = [escape_tag(tag, sep) for tag in old]
    bad = [tag for tag, clean in zip(old, new) if tag != clean]
    if bad and on_bad_tag == 'error':
      raise DataError(f'{source} item {item!r}: tag {bad[0]!r:.80} holds the separator {sep!r}, a '
                      'line break or a line number; mend it, or let bad tags be escaped.')
    counts['escaped_tags'] += len(bad)
    counts['trimmed_tags'] += sum(a != b for a, b in zip(given, old))
    kept[item] = [tag for tag in new if tag]
    if kept[item]:
      continue
    if on_empty == 'error':
      raise DataError(f'{source} item {item!r} has no tags; give it some, or let such items be '
                      'dropped.')
    del kept[item]
    counts['empty_items'] += 1
  return kept, counts


def escape_tag(tag, sep='| '):
  """The tag without line breaks, separators and leading line numbers; '' if nothing else is left.

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


def match_tags(sequences, tags, source, on_missing='error'):
  """Deals with items that have no tags. -> (sequences, counts)

  Raises DataError listing the ids if `on_missing` is 'error'.
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
    kept = [[item for item in row if item in tags] for row in sequences]
    kept = [row for row in kept if row]
  else:
    kept = [row for row in sequences if all(item in tags for item in row)]
  counts['dropped_sequences'] = len(sequences) - len(kept)
  return kept, counts


def _table(path, shape, expected):
  value = file_io.read_json(path)
  if not isinstance(value, dict):
    raise DataError(f'{path}: an object with item ids as keys is expected.')
  table = {}
  for item, entry in value.items():
    if not item:
      raise DataError(f'{path}: a key is empty; keys are item ids.')
    shaped = shape(entry)
    if shaped is False:
      raise DataError(f'{path} item {item!r}: {expected} is expected, found {entry!r:.60}.')
    table[item] = shaped
  return table


def _texts(value):
  """The list itself if it holds nothing but texts, else False."""
  good = isinstance(value, list) and all(isinstance(x, str) for x in value)
  return value if good else False


def _rows(value):
  good = isinstance(value, list) and all(_texts(row) is not False for row in value)
  return value if good else False


def _write_table(path, table):
  file_io.write_text(path, json.dumps(table, ensure_ascii=False, separators=(',', ':')))


def _integer(item, path):
  # int() would also take ' 7', '+7' and '007', which would not come back as they were.
  if not re.fullmatch(r'0|-?[1-9][0-9]*', item):
    raise DataError(f'{path}: item id {item!r} is no integer, though the ids read were integers.')
  return int(item)


def _choice(name, value, allowed):
  if value not in allowed:
    raise ConfigError(f'{name} is {value!r}; it must be one of {", ".join(allowed)}.')
