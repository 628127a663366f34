"""Files around semantic IDs: index JSON in every published form, interests, RQ-VAE state dicts.

(specification: etegrec.md 2.2, semantic_ids.md 1, 3)
"""
import json
import pathlib
import pickletools
import re
import zipfile

import numpy as np

from recjax import file_io
from recjax.errors import DataError

_CODE = re.compile(r'<([a-z])_(\d+)>')


def read_index(path, ids=(), mixed='pad'):
  """An index file: {item: ['<a_1>', ...]}, {item: [1, ...]}, or a list of rows (N.code.json).

  Items are named by `ids`, or numbered from 0 (`ids` empty too). Row 0 of a list may be padding,
  -1 throughout. Codes written from 1 (no 0 anywhere in the file) are counted from 0 again. mixed:
  rows of several lengths are filled up with 0 ('pad', codes of the longer part then count from 1)
  or refused ('error'). -> (N, L) int32 in the order of ids.
  Raises DataError for missing items, unreadable codes, another number of rows.
  """
  raw = file_io.read_json(path)
  if isinstance(raw, list):
    rows = raw[1:] if raw and all(c == -1 for c in raw[0]) else raw
    if ids and len(rows) != len(ids):
      raise DataError(f'{path} has codes of {len(rows)} items, the catalogue {len(ids)} items')
  else:
    order = list(ids) if ids and ids[0] in raw else [str(i) for i in range(len(raw))]
    missing = [i for i in order if i not in raw]
    if missing or ids and len(order) != len(ids):
      raise DataError(f'{path} lacks item {missing[0] if missing else len(order)} '
                      f'({len(raw)} items in the file, {len(ids) or len(raw)} in the catalogue)')
    rows = [raw[i] for i in order]
  return _table(path, [[_number(path, c) for c in row] for row in rows], mixed)


def _number(path, code):
  found = _CODE.fullmatch(code) if isinstance(code, str) else None
  if found:
    return int(found[2])
  if isinstance(code, int) and code >= 0:
    return code
  raise DataError(f'{path}: {code!r} is no code; codes are like "<a_17>", or whole numbers')


def _table(path, rows, mixed):
  lengths = [len(r) for r in rows]
  least, longest = min(lengths, default=0), max(lengths, default=0)
  if not least:
    raise DataError(f'{path}: item {lengths.index(0) if lengths else 0} has no codes')
  if least != longest and mixed == 'error':
    raise DataError(f'{path} has rows of {least} to {longest} codes; pass mixed="pad" to fill '
                    'short ones up')
  every = [c for row in rows for c in row[:least]]
  shift = 1 if min(every) == 1 else 0
  out = np.zeros((len(rows), longest), np.int32)
  for i, row in enumerate(rows):
    out[i, :least] = np.array(row[:least]) - shift
    out[i, least:len(row)] = row[least:]
  return out


def write_index(path, codes, ids=(), form='letters'):
  """Writes codes (N, L). form: 'letters' by item, 'numbers' by item, 'rows' with padding first."""
  rows = np.asarray(codes).tolist()
  names = list(ids) or [str(i) for i in range(len(rows))]
  if form == 'rows':
    value = [[-1] * len(rows[0]), *rows]
  elif form == 'numbers':
    value = dict(zip(names, rows))
  else:
    value = {n: [f'<{chr(97 + at)}_{c}>' for at, c in enumerate(row)]
             for n, row in zip(names, rows)}
  file_io.write_text(path, json.dumps(value, separators=(',', ':')) + '\n')


def clean_interests(found, most=5, longest=80):
  """At most five texts, trimmed, none twice whatever its case. found: list of texts -> list"""
  out = {}
  for text in found:
    text = ' '.join(str(text).split())[:longest].strip()
    if text:
      out.setdefault(text.lower(), text)
  return list(out.values())[:most]


def parse_interests(text):
  """An LLM's answer: <interest> tags, or JSON {"interests": [...]}. -> list, empty where neither"""
  tagged = re.findall(r'<interest>(.*?)</interest>', text)
  if tagged:
    return clean_interests(tagged)
  start, end = text.find('{'), text.rfind('}')
  try:
    value = json.loads(text[start:end + 1])['interests']
    return clean_interests(value) if isinstance(value, list) else []
  except (ValueError, KeyError, TypeError):
    return []


def read_interests(paths):
  """*.processed.jsonl: the interests of each history. -> {tuple of item ids: [text]}, counts

  Texts are parted by a backslash and an n, as published, or by line ends; rows without the field
  count as without interests.
  """
  out, counts = {}, {'rows': 0, 'without_interests': 0}
  for path in paths:
    for place, row in file_io.read_rows(path):
      if not isinstance(row.get('inter_history'), list):
        raise DataError(f'{place}: inter_history must be a list of item ids')
      value = row.get('interests') or ''
      found = value if isinstance(value, list) else re.split(r'\\n|\n', value)
      out[tuple(map(str, row['inter_history']))] = clean_interests(found)
      counts['rows'] += 1
      counts['without_interests'] += not any(found)
  return out, counts


def write_interests(path, rows):
  """Writes *.processed.jsonl. rows: dicts with inter_history, target_id and a list `interests`."""
  file_io.write_text(path, ''.join(json.dumps(
      {**r, 'interests': '\\n'.join(r['interests'])}, ensure_ascii=False) + '\n' for r in rows))


# State dicts of torch, read without running them.

_TYPES = {'FloatStorage': np.float32, 'DoubleStorage': np.float64, 'LongStorage': np.int64,
          'HalfStorage': np.float16, 'IntStorage': np.int32}


def read_state(path):
  """The tensors of a torch file, as arrays. -> {name: array}

  The file is a zip of raw numbers and a pickle that says where they lie; of the pickle only the
  words are read, so nothing can run. Names of nested dicts ('state_dict') are left as they stand in
  the innermost one. Raises DataError where it is another kind of file.
  """
  path = pathlib.Path(path)
  try:
    with zipfile.ZipFile(path) as archive:
      root = next((n.rpartition('/')[0] for n in archive.namelist()
                   if n.endswith('/data.pkl')), None)
      if root is None:
        raise DataError(f'{path} holds no data.pkl; is it a torch file?')
      found = _tensors(archive.read(f'{root}/data.pkl'))
      return {name: _array(archive, f'{root}/data/{t["key"]}', t) for name, t in found.items()}
  except (zipfile.BadZipFile, KeyError, ValueError, OSError, IndexError, TypeError) as error:
    raise DataError(f'{path} cannot be read as a torch state dict: {error}') from error


def _array(archive, name, tensor):
  flat = np.frombuffer(archive.read(name), _TYPES[tensor['type']])
  shape, strides = tensor['shape'], tensor['strides']
  size = 1 + sum((n - 1) * s for n, s in zip(shape, strides)) if all(shape) else 0
  if tensor['offset'] + size > len(flat):
    raise ValueError(f'{name} has {len(flat)} numbers, {tensor["offset"] + size} are needed')
  part = flat[tensor['offset']:]
  view = np.lib.stride_tricks.as_strided(part, shape, [s * part.itemsize for s in strides])
  return np.array(view)


def _tensors(data):
  """Where each tensor lies, from the pickle's words alone. -> {name: facts}"""
  found, stack, memo, marks = {}, [], {}, []
  for opcode, argument, _ in pickletools.genops(data):
    name = opcode.name
    if name == 'MARK':
      marks.append(len(stack))
    elif name in ('BINUNICODE', 'SHORT_BINUNICODE', 'BININT', 'BININT1', 'BININT2', 'LONG1',
                  'BINFLOAT'):
      stack.append(argument)
    elif name == 'GLOBAL':
      stack.append(argument.split(' ')[1])
    elif name in ('BINPUT', 'LONG_BINPUT'):
      memo[argument] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(memo[argument])
    elif name in ('EMPTY_TUPLE', 'EMPTY_DICT', 'EMPTY_LIST', 'NONE', 'NEWTRUE', 'NEWFALSE'):
      stack.append(() if 'TUPLE' in name else None)
    elif name == 'TUPLE' or name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
      at = marks.pop() if name == 'TUPLE' else len(stack) - int(name[-1])
      stack[at:] = [tuple(stack[at:])]
    elif name == 'BINPERSID':
      kind = stack.pop()  # ('storage', type, key, device, count)
      stack.append({'type': kind[1], 'key': kind[2]})
    elif name == 'REDUCE':
      arguments, function = stack.pop(), stack.pop()
      if function == '_rebuild_tensor_v2':
        where, offset, shape, strides = arguments[:4]
        stack.append({**where, 'offset': offset, 'shape': shape, 'strides': strides})
      else:
        stack.append(None)
    elif name in ('SETITEMS', 'APPENDS', 'SETITEM', 'APPEND', 'BUILD'):
      at = marks.pop() if name.endswith('S') else len(stack) - (2 if name == 'SETITEM' else 1)
      some, stack[at:] = stack[at:], []
      if name.startswith('SETITEM'):
        found |= {k: v for k, v in zip(some[::2], some[1::2])
                  if isinstance(k, str) and isinstance(v, dict) and 'shape' in v}
  return found
