"""Samples of supervised fine-tuning, List[List[Dict]]: epochs of samples (reclm.md 1.4).

`train` and, where there is one, `valid`, each .jsonl or .json: a line is one sample with its
`epoch`, or the list of an epoch's samples; a .json file may be one list of epochs. A sample holds
`input_text` and `output_text`, or lists of turns, `input_texts` and `output_texts`, and may hold
`system`, `task`, `input_field_data` and `output_field_data`.
"""
import json
import pathlib

from recjax import file_io
from recjax.errors import DataError

PARTS = {'train': ('train.jsonl', 'train.json'),
         'valid': ('valid.jsonl', 'valid.json', 'val.jsonl', 'val.json')}


def read(folder, part):
  """-> epochs, each a list of (place, sample), or None where the folder has no file of `part`.

  Samples come back with lists of turns. Raises DataError naming file, line and what is wrong.
  """
  path = next((p for p in (pathlib.Path(folder) / n for n in PARTS[part]) if p.is_file()), None)
  if path is None:
    return None
  found = {}
  for number, (place, value) in enumerate(_values(path)):
    epoch = number if isinstance(value, list) else _epoch(value, place)
    for at, one in enumerate(value if isinstance(value, list) else [value]):
      where = f'{place}, sample {at + 1}' if isinstance(value, list) else place
      found.setdefault(epoch, []).append((where, _turns(one, where)))
  missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
  if not found or missing:
    raise DataError(f'{path} holds no sample' + (f' of epoch {missing[0]}' if missing else ''))
  return [found[e] for e in sorted(found)]


def _values(path):
  """Yields (place, a sample or an epoch's list)."""
  if path.suffix == '.json':
    whole = file_io.read_json(path)
    if not isinstance(whole, list):
      raise DataError(f'{path}: a list of epochs is expected')
    for number, value in enumerate(whole, 1):
      yield f'{path}: entry {number}', value
    return
  for number, line in enumerate(file_io.read_bytes(path).split(b'\n'), 1):
    if line.strip():
      yield f'{path} line {number}', file_io.parse_json(line, path, number)


def _epoch(value, place):
  epoch = value.get('epoch', 0) if isinstance(value, dict) else None
  if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
    raise DataError(f'{place}: a sample with an `epoch` from 0 is expected, or a list of samples')
  return epoch


def _turns(one, place):
  if not isinstance(one, dict):
    raise DataError(f'{place} is no sample: it needs input_text and output_text')
  asked, said = (one.get(f'{side}_texts', [one[f'{side}_text']] if f'{side}_text' in one else None)
                 for side in ('input', 'output'))
  for name, some in (('input_text', asked), ('output_text', said)):
    if not isinstance(some, list) or not some or not all(isinstance(t, str) for t in some):
      raise DataError(f'{place} needs {name}, a text, or {name}s, texts of its turns')
  if len(asked) != len(said):
    raise DataError(f'{place} has {len(asked)} inputs and {len(said)} outputs')
  for name in ('input_field_data', 'output_field_data'):
    if not isinstance(one.get(name, {}), dict):
      raise DataError(f'{place}: {name} must be an object')
  return {**one, 'input_texts': asked, 'output_texts': said}


def write(folder, part, epochs):
  """Writes epochs of samples as PART.jsonl, one sample a line with its `epoch`. -> path"""
  path = pathlib.Path(folder) / PARTS[part][0]
  file_io.write_text(path, ''.join(
      json.dumps({'epoch': number, **one}, ensure_ascii=False) + '\n'
      for number, some in enumerate(epochs) for one in some))
  return path
