"""Old pickles of plain containers, texts and numbers; nothing else is admitted, nothing is run."""
import io
import pathlib
import pickle
import pickletools
import re

from recjax.errors import DataError

# What dicts, lists, tuples, texts and numbers are written with. Absent: whatever names a class or
# a function (GLOBAL, INST, REDUCE, BUILD, NEWOBJ, EXT*, persistent ids) or reserves memory.
PLAIN = re.compile(
    'PROTO|FRAME|STOP|MARK|POP|POP_MARK|NONE|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG1?|FLOAT|BINFLOAT'
    '|STRING|UNICODE|BINUNICODE8?|SHORT_BINUNICODE|EMPTY_(LIST|TUPLE|DICT)|APPENDS?|LIST|DICT'
    '|TUPLE[123]?|SETITEMS?|MEMOIZE|PUT|BINPUT|LONG_BINPUT|GET|BINGET|LONG_BINGET')


class _Plain(pickle.Unpickler):

  def find_class(self, module, name):
    raise pickle.UnpicklingError(f'it names {module}.{name}')


def read(path):
  """The value of a pickle of plain containers. Raises DataError naming what else it holds."""
  path = pathlib.Path(path)
  try:
    return _Plain(io.BytesIO(checked(path))).load()
  except (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, TypeError,
          AttributeError, OverflowError, MemoryError) as error:
    raise DataError(f'{path} is no pickle that can be read: {error}.') from error


def checked(path, more=()):
  """The bytes of a pickle that holds PLAIN opcodes, and `more`, alone. Raises DataError."""
  try:
    data = path.read_bytes()
    for opcode, argument, place in pickletools.genops(data):
      if not PLAIN.fullmatch(opcode.name) and opcode.name not in more:
        raise DataError(f'{path} byte {place}: {opcode.name} is more than plain lists, dicts, '
                        'texts and numbers; such pickles can run programs and are not read. Save '
                        'the data as JSON.')
      # The memo is made as long as the highest reference.
      if 'PUT' in opcode.name and not 0 <= int(argument) <= len(data):
        raise DataError(f'{path} byte {place}: a reference beyond the file; it is damaged.')
    return data
  except OSError as error:
    raise DataError(f'{path} cannot be read: {error.strerror or error}.') from error
  except (pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, TypeError,
          AttributeError, OverflowError, MemoryError) as error:
    raise DataError(f'{path} is no pickle that can be read: {error}.') from error
