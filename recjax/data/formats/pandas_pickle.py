"""pandas' pickled tables without pandas: inert stand-ins keep what they are made of, nothing runs.

Tables of numbers, texts and arrays of numbers, as pandas 1.5 to 3.1 write them; texts of pandas 3
lie in Arrow's buffers (https://arrow.apache.org/docs/format/Columnar.html, large_string).
"""
import io
import pathlib
import pickle

import numpy as np

from recjax.data.formats import plain_pickle
from recjax.errors import DataError

KINDS = 'biuf'  # of numbers

MORE = {'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD', 'BYTEARRAY8', 'BINBYTES',
        'BINBYTES8', 'SHORT_BINBYTES'}

NAMES = {
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

  def __new__(cls, *arguments):
    shell = object.__new__(cls)
    shell.arguments, shell.state = arguments, None
    return shell

  def __setstate__(self, state):
    self.state = state


class _Shells(pickle.Unpickler):
  """Gives stand-ins for the names that a table needs, of classes made for this file alone."""

  def __init__(self, data):
    super().__init__(io.BytesIO(data))
    self.made = {}

  def find_class(self, module, name):
    if name not in NAMES.get(module, ()):
      raise pickle.UnpicklingError(f'it names {module}.{name}, which no table needs')
    return self.made.setdefault(name, type(name, (_Shell,), {}))


def read(path):
  """A pickled DataFrame. -> {column: numpy array, or list of texts and arrays}

  Raises DataError for anything that is not a table of numbers, texts and arrays of numbers.
  """
  path = pathlib.Path(path)
  try:
    frame = _Shells(plain_pickle.checked(path, MORE)).load()
    if type(frame).__name__ != 'DataFrame':
      raise ValueError('it holds no table')
    return _columns(frame.state)
  except (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, TypeError,
          AttributeError, OverflowError, MemoryError, RecursionError) as error:
    raise DataError(f'{path} is no pickled table that can be read: {error}.') from error


def _columns(state):
  blocks, axes = state['_mgr'].arguments
  names = axes[0].arguments[1]['data']
  names = _texts(names) if _named(names, 'ArrowStringArray') else _array(names)
  found = {}
  for values, places, *_ in (block.arguments for block in blocks):
    places = range(len(names))[slice(*places.arguments)] if _named(places, 'slice') else _array(
        places).tolist()
    rows = [_texts(values)] if _named(values, 'ArrowStringArray') else _array(values)
    for place, row in zip(places, rows, strict=True):
      found[names[place]] = row
  return {name: found[name] for name in names}


def _named(value, name):
  return isinstance(value, _Shell) and type(value).__name__ == name


def _array(value):
  """The array that a stand-in means. -> numbers as numpy (copied), objects as nested lists"""
  if _named(value, '_frombuffer'):
    data, kind, shape, order = value.arguments
  else:
    _, shape, kind, fortran, data = value.state
    order = 'F' if fortran else 'C'
  name, (_, sign, *_) = kind.arguments[0], kind.state
  if isinstance(data, list):
    flat = np.empty(len(data), object)
    for at, x in enumerate(data):
      flat[at] = _array(x) if isinstance(x, _Shell) else x
    return flat.reshape(shape, order=order).tolist()
  data = _bytes(data)
  kind = np.dtype((sign if sign in '<>' else '') + name)
  if kind.kind not in KINDS:
    raise ValueError(f'an array of {name!r:.20}')
  return np.frombuffer(data, kind).reshape(shape, order=order).copy()


def _texts(value):
  """The texts of an ArrowStringArray; None where there is none. -> list"""
  kind, count, _, start, (valid, ends, data), *_ = value.state['_pa_array'].arguments[0]
  if kind.arguments != ('large_string',):
    raise ValueError(f'texts as {kind.arguments!r:.40}')
  valid, ends, data = (b'' if x is None else _bytes(x.arguments[0]) for x in (valid, ends, data))
  ends = np.frombuffer(ends, '<i8')[start:start + count + 1].tolist()
  if len(ends) != count + 1 or ends != sorted(ends) or ends[0] < 0 or ends[-1] > len(data):
    raise ValueError('the places of its texts are damaged')
  held = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder='little')[start:start + count]
  held = held.tolist() if valid else [1] * count
  return [data[a:b].decode() if there else None
          for a, b, there in zip(ends[:-1], ends[1:], held, strict=True)]


def _bytes(data):
  if _named(data, 'encode') and data.arguments[1] == 'latin1':
    return data.arguments[0].encode('latin1')
  if _named(data, 'bytes') or _named(data, 'bytearray'):
    return b''.join(_bytes(x) for x in data.arguments)
  if not isinstance(data, bytes | bytearray):
    raise ValueError(f'numbers as {data!r:.20}')
  return data
