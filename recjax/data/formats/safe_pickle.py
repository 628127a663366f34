"""Pickled files read without running anything: plain values, numpy arrays, pandas' tables, torch's
state dicts.

Of pandas' tables inert stand-ins keep what they are made of: numbers, texts and arrays of numbers,
as pandas 1.5 to 3.1 write them; texts of pandas 3 lie in Arrow's buffers
(https://arrow.apache.org/docs/format/Columnar.html, large_string). Of torch's files the words of
the pickle are read alone.
"""
import io
import pathlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Collection
from typing import Any, TypeGuard

import numpy as np

from recjax.errors import DataError

_DAMAGE = (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, TypeError,
           AttributeError, OverflowError, MemoryError)  # what a damaged pickle may raise

# What dicts, lists, tuples, texts and numbers are written with. Absent: whatever names a class or
# a function (GLOBAL, INST, REDUCE, BUILD, NEWOBJ, EXT*, persistent ids) or reserves memory.
_PLAIN_OPCODES = re.compile(
    'PROTO|FRAME|STOP|MARK|POP|POP_MARK|NONE|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG1?|FLOAT|BINFLOAT'
    '|STRING|UNICODE|BINUNICODE8?|SHORT_BINUNICODE|EMPTY_(LIST|TUPLE|DICT)|APPENDS?|LIST|DICT'
    '|TUPLE[123]?|SETITEMS?|MEMOIZE|PUT|BINPUT|LONG_BINPUT|GET|BINGET|LONG_BINGET')


class _Plain(pickle.Unpickler):

  def find_class(self, module: str, name: str) -> type:
    raise pickle.UnpicklingError(f'it names {module}.{name}')


def read_plain(path: str | pathlib.Path) -> object:
  """The value of the pickle of plain containers at `path`. Raises DataError naming what else is."""
  path = pathlib.Path(path)
  try:
    return _Plain(io.BytesIO(_checked_bytes(path))).load()
  except _DAMAGE as error:
    raise DataError(f'{path} is no pickle that can be read: {error}.') from error


def _checked_bytes(path: pathlib.Path, more: Collection[str] = ()) -> bytes:
  """The bytes of a pickle of _PLAIN_OPCODES, and `more`, alone. Raises DataError."""
  try:
    data = path.read_bytes()
    for opcode, argument, place in pickletools.genops(data):
      if not _PLAIN_OPCODES.fullmatch(opcode.name) and opcode.name not in more:
        raise DataError(f'{path} byte {place}: {opcode.name} is more than plain lists, dicts, '
                        'texts and numbers; such pickles can run programs and are not read. Save '
                        'the data as JSON.')
      # The memo is made as long as the highest reference.
      if 'PUT' in opcode.name and not 0 <= int(argument or 0) <= len(data):
        raise DataError(f'{path} byte {place}: a reference beyond the file; it is damaged.')
    return data
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
  except _DAMAGE as error:
    raise DataError(f'{path} is no pickle that can be read: {error}.') from error


# Arrays of numpy.

_NUMPY_NAMES = {('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')} | {
    (f'numpy.{core}.{module}', name) for core in ('core', '_core') for module, name in (
        ('multiarray', '_reconstruct'), ('multiarray', 'scalar'), ('numeric', '_frombuffer'))}


class _ArrayUnpickler(pickle.Unpickler):
  """An unpickler that can make numpy arrays and nothing else."""

  def find_class(self, module: str, name: str) -> type:
    if (module, name) not in _NUMPY_NAMES:
      raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is no array')
    return super().find_class(module, name)


def read_array(path: pathlib.Path) -> object:
  """The value of the pickle at `path`, made with numpy arrays and plain values alone.

  Raises DataError where it asks for anything else.
  """
  try:
    return _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
  except (*_DAMAGE, ImportError) as error:
    raise DataError(f'{path} holds no plain array of numbers ({error})') from error


# Tables of pandas.

_TABLE_OPCODES = {'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD', 'BYTEARRAY8', 'BINBYTES',
        'BINBYTES8', 'SHORT_BINBYTES'}

_TABLE_NAMES = {
    'pandas.core.frame': ('DataFrame',), 'pandas.core.internals.managers': ('BlockManager',),
    'pandas._libs.internals': ('_unpickle_block', 'BlockManager'),
    'pandas.core.indexes.base': ('_new_Index', 'Index'),
    'pandas.core.indexes.range': ('RangeIndex',),
    'pandas.core.indexes.numeric': ('Int64Index', 'UInt64Index', 'Float64Index'),
    'numpy.core.multiarray': ('_reconstruct', 'scalar'),
    'numpy._core.multiarray': ('_reconstruct', 'scalar'), 'numpy': ('ndarray', 'dtype'),
    'numpy.core.numeric': ('_frombuffer',), 'numpy._core.numeric': ('_frombuffer',),
    '_codecs': ('encode',), 'builtins': ('slice', 'bytes', 'bytearray'),
    '__builtin__': ('slice', 'bytes', 'bytearray'),
    'pandas': ('DataFrame', 'Index', 'RangeIndex', 'StringDtype'),
    'pandas.arrays': ('ArrowStringArray',),
    'pyarrow.lib': ('_restore_array', 'type_for_alias', 'py_buffer')}


class _Shell:
  """Stands for an object: what its maker was given, and its state."""
  arguments: tuple[Any, ...]
  state: Any

  def __new__(cls, *arguments):
    shell = object.__new__(cls)
    shell.arguments, shell.state = arguments, None
    return shell

  def __setstate__(self, state: object) -> None:
    self.state = state


class _Shells(pickle.Unpickler):
  """Gives stand-ins for the names that a table needs, of classes made for this file alone."""

  def __init__(self, data: bytes):
    super().__init__(io.BytesIO(data))
    self.made = {}

  def find_class(self, module: str, name: str) -> type:
    if name not in _TABLE_NAMES.get(module, ()):
      raise pickle.UnpicklingError(f'it names {module}.{name}, which no table needs')
    return self.made.setdefault(name, type(name, (_Shell,), {}))


def read_table(path: str | pathlib.Path) -> dict[str, np.ndarray | list]:
  """The columns of the pickled DataFrame at `path`: numpy arrays, or lists of texts and arrays.

  Raises DataError for anything that is not a table of numbers, texts and arrays of numbers.
  """
  path = pathlib.Path(path)
  try:
    frame = _Shells(_checked_bytes(path, _TABLE_OPCODES)).load()
    if type(frame).__name__ != 'DataFrame':
      raise ValueError('it holds no table')
    return _columns(frame.state)
  except (*_DAMAGE, RecursionError) as error:
    raise DataError(f'{path} is no pickled table that can be read: {error}.') from error


def _columns(state: dict) -> dict[str, np.ndarray | list]:
  blocks, axes = state['_mgr'].arguments
  names = axes[0].arguments[1]['data']
  names: Any = _texts(names) if _named(names, 'ArrowStringArray') else _array(names)
  columns = {}
  for values, places, *_ in (block.arguments for block in blocks):
    places = range(len(names))[slice(*places.arguments)] if _named(places, 'slice') else _array(
        places).tolist()
    rows = [_texts(values)] if _named(values, 'ArrowStringArray') else _array(values)
    for place, row in zip(places, rows, strict=True):
      columns[names[place]] = row
  return {name: columns[name] for name in names}


def _named(value: object, name: str) -> TypeGuard[_Shell]:
  return isinstance(value, _Shell) and type(value).__name__ == name


def _array(value: Any) -> Any:
  """The array that a stand-in means: numbers as numpy (copied), objects as nested lists."""
  if _named(value, '_frombuffer'):
    data, kind, shape, order = value.arguments
  else:
    _, shape, kind, fortran, data = value.state
    order = 'F' if fortran else 'C'
  name, (_, sign, *_) = kind.arguments[0], kind.state
  if isinstance(data, list):
    flat = np.empty(len(data), object)
    for place, x in enumerate(data):
      flat[place] = _array(x) if isinstance(x, _Shell) else x
    return flat.reshape(shape, order=order).tolist()
  data = _bytes(data)
  kind = np.dtype((sign if sign in '<>' else '') + name)
  if kind.kind not in 'biuf':
    raise ValueError(f'an array of {name!r:.20}')
  return np.frombuffer(data, kind).reshape(shape, order=order).copy()


def _texts(value: Any) -> list[str | None]:
  """The texts of an ArrowStringArray; None where there is none."""
  kind, count, _, start, (valid, ends, data), *_ = value.state['_pa_array'].arguments[0]
  if kind.arguments != ('large_string',):
    raise ValueError(f'texts as {kind.arguments!r:.40}')
  valid, ends, data = (b'' if x is None else _bytes(x.arguments[0]) for x in (valid, ends, data))
  ends = np.frombuffer(ends, '<i8')[start:start + count + 1].tolist()
  if len(ends) != count + 1 or ends != sorted(ends) or ends[0] < 0 or ends[-1] > len(data):
    raise ValueError('the places of its texts are damaged')
  present = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder='little')[start:start + count]
  present = present.tolist() if valid else [1] * count
  return [data[a:b].decode() if there else None
          for a, b, there in zip(ends[:-1], ends[1:], present, strict=True)]


def _bytes(data: Any) -> bytes | bytearray:
  if _named(data, 'encode') and data.arguments[1] == 'latin1':
    return data.arguments[0].encode('latin1')
  if _named(data, 'bytes') or _named(data, 'bytearray'):
    return b''.join(_bytes(x) for x in data.arguments)
  if not isinstance(data, bytes | bytearray):
    raise ValueError(f'numbers as {data!r:.20}')
  return data


# State dicts of torch.

_STORAGE_DTYPES = {'FloatStorage': np.float32, 'DoubleStorage': np.float64, 'LongStorage': np.int64,
          'HalfStorage': np.float16, 'IntStorage': np.int32}


def read_torch_state(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of the torch file at `path` by name, as arrays.

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
      tensors = _torch_tensors(archive.read(f'{root}/data.pkl'))
      return {
        name: _torch_array(archive, f'{root}/data/{t["key"]}', t) for name, t in tensors.items()
      }
  except (zipfile.BadZipFile, KeyError, ValueError, OSError, IndexError, TypeError) as error:
    raise DataError(f'{path} cannot be read as a torch state dict: {error}') from error


def _torch_array(archive: zipfile.ZipFile, name: str, tensor: dict) -> np.ndarray:
  flat = np.frombuffer(archive.read(name), _STORAGE_DTYPES[tensor['type']])
  shape, strides = tensor['shape'], tensor['strides']
  size = 1 + sum((n - 1) * s for n, s in zip(shape, strides)) if all(shape) else 0
  if tensor['offset'] + size > len(flat):
    raise ValueError(f'{name} has {len(flat)} numbers, {tensor["offset"] + size} are needed')
  numbers = flat[tensor['offset']:]
  view = np.lib.stride_tricks.as_strided(numbers, shape, [s * numbers.itemsize for s in strides])
  return np.array(view)


def _torch_tensors(data: bytes) -> dict[str, dict]:
  """Where each tensor lies, by its name, from the pickle's words alone."""
  tensors, stack, memo, marks = {}, [], {}, []
  for opcode, argument, _ in pickletools.genops(data):
    name = opcode.name
    if name == 'MARK':
      marks.append(len(stack))
    elif name in ('BINUNICODE', 'SHORT_BINUNICODE', 'BININT', 'BININT1', 'BININT2', 'LONG1',
                  'BINFLOAT'):
      stack.append(argument)
    elif name == 'GLOBAL':
      stack.append(str(argument).split(' ')[1])
    elif name in ('BINPUT', 'LONG_BINPUT'):
      memo[argument] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(memo[argument])
    elif name in ('EMPTY_TUPLE', 'EMPTY_DICT', 'EMPTY_LIST', 'NONE', 'NEWTRUE', 'NEWFALSE'):
      stack.append(() if 'TUPLE' in name else None)
    elif name == 'TUPLE' or name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
      start = marks.pop() if name == 'TUPLE' else len(stack) - int(name[-1])
      stack[start:] = [tuple(stack[start:])]
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
      start = marks.pop() if name.endswith('S') else len(stack) - (2 if name == 'SETITEM' else 1)
      parts, stack[start:] = stack[start:], []
      if name.startswith('SETITEM'):
        tensors |= {k: v for k, v in zip(parts[::2], parts[1::2])
                  if isinstance(k, str) and isinstance(v, dict) and 'shape' in v}
  return tensors
