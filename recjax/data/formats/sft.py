"""Samples of supervised fine-tuning, List[List[Dict]]: epochs of samples, as RecLM-cgen keeps them
(github.com/microsoft/RecAI).

`train` and, where there is one, `valid`, each .jsonl or .json: a line is one sample with its
`epoch`, or the list of an epoch's samples; a .json file may be one list of epochs. A sample holds
`input_text` and `output_text`, or lists of turns, `input_texts` and `output_texts`, and may hold
`system`, `task`, `input_field_data` and `output_field_data`.
"""
import json
import pathlib
from collections.abc import Iterable, Iterator

from recjax import file_io
from recjax.errors import DataError

PARTS = {'train': ('train.jsonl', 'train.json'),
         'valid': ('valid.jsonl', 'valid.json', 'val.jsonl', 'val.json')}


def read(folder: str | pathlib.Path, part: str) -> list[list[tuple[str, dict]]] | None:
  """Epochs of the samples in `folder` with their places; None without a file of `part`.

  part: 'train' or 'valid'. Samples come back with lists of turns. Raises DataError naming file,
  line and what is wrong.
  """
  path = next((p for p in (pathlib.Path(folder) / n for n in PARTS[part]) if p.is_file()), None)
  if path is None:
    return None
  epochs = {}
  for number, (place, value) in enumerate(_values(path)):
    epoch = number if isinstance(value, list) else _epoch(value, place)
    for n, sample in enumerate(value if isinstance(value, list) else [value], 1):
      sample_place = f'{place}, sample {n}' if isinstance(value, list) else place
      epochs.setdefault(epoch, []).append((sample_place, _with_turns(sample, sample_place)))
  missing = sorted(set(range(max(epochs, default=-1) + 1)) - set(epochs))
  if not epochs or missing:
    raise DataError(f'{path} holds no sample' + (f' of epoch {missing[0]}' if missing else ''))
  return [epochs[e] for e in sorted(epochs)]


def _values(path: pathlib.Path) -> Iterator[tuple[str, object]]:
  """Yields the place of each sample, or of each list of an epoch, and that."""
  if path.suffix == '.json':
    epochs = file_io.read_json(path)
    if not isinstance(epochs, list):
      raise DataError(f'{path}: a list of epochs is expected')
    yield from ((f'{path}: entry {number}', value) for number, value in enumerate(epochs, 1))
    return
  for number, line in enumerate(file_io.read_bytes(path).split(b'\n'), 1):
    if line.strip():
      yield f'{path} line {number}', file_io.parse_json(line, path, number)


def _epoch(value: object, place: str) -> int:
  epoch = value.get('epoch', 0) if isinstance(value, dict) else None
  if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
    raise DataError(f'{place}: a sample with an `epoch` from 0 is expected, or a list of samples')
  return epoch


def _with_turns(sample: object, place: str) -> dict:
  if not isinstance(sample, dict):
    raise DataError(f'{place} is no sample: it needs input_text and output_text')
  inputs, outputs = (
      sample.get(f'{side}_texts', [sample[f'{side}_text']] if f'{side}_text' in sample else None)
      for side in ('input', 'output'))
  for name, texts in (('input_text', inputs), ('output_text', outputs)):
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
      raise DataError(f'{place} needs {name}, a text, or {name}s, texts of its turns')
  if len(inputs) != len(outputs):
    raise DataError(f'{place} has {len(inputs)} inputs and {len(outputs)} outputs')
  for name in ('input_field_data', 'output_field_data'):
    if not isinstance(sample.get(name, {}), dict):
      raise DataError(f'{place}: {name} must be an object')
  return {**sample, 'input_texts': inputs, 'output_texts': outputs}


def write(folder: str | pathlib.Path, part: str, epochs: Iterable[Iterable[dict]]) -> pathlib.Path:
  """Writes the samples of `epochs` to `folder` as PART.jsonl, a line each with its `epoch`.

  part: 'train' or 'valid'. Returns the path.
  """
  path = pathlib.Path(folder) / PARTS[part][0]
  file_io.write_text(path, ''.join(
      json.dumps({'epoch': number, **sample}, ensure_ascii=False) + '\n'
      for number, samples in enumerate(epochs) for sample in samples))
  return path
