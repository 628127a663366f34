"""GGUF files of llama.cpp: what they say, and their tensors, dequantized where they are read.

The header is read here because the gguf package takes seconds and hundreds of megabytes for it,
one NumPy array a word of the vocabulary. Kinds of tensors and their dequantization are the
package's. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
import dataclasses
import functools
import math
import mmap
import os
import pathlib
import struct
from typing import Any

import numpy as np

from recjax.errors import DataError

MAGIC = b'GGUF'

VERSIONS = (2, 3)  # version 1 counted in 32 bits, and was replaced within weeks

# Number of a type of metadata -> how struct and NumPy call it.
SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q',
           12: 'd'}

STRING, ARRAY = 8, 9

MAX_AXES = 4

Path = str | os.PathLike


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor of a file, read by slices as those of safetensors are.

  path: of the file. name: in it. shape: of the values, the axis that lies together last. kind: the
  package's GGMLQuantizationType. data: bytes, a row of values in each row. order: which stored row
  stands in which place, None for all in theirs.
  """
  path: pathlib.Path
  name: str
  shape: tuple[int, ...]
  kind: Any
  data: np.ndarray
  order: np.ndarray | None = None

  def get_shape(self) -> list[int]:
    """Sizes of the axes."""
    return list(self.shape)

  def get_dtype(self) -> str:
    """What slices come as. Raises DataError where the package cannot dequantize this kind."""
    self._dequantize(self.data[:1] if self.data.ndim > 1 else self.data)
    return 'F32'

  def __getitem__(self, index: Any) -> np.ndarray:
    """Values of some rows, and of some places in them, float32. index: a slice, or one an axis."""
    first, *rest = index if isinstance(index, tuple) else (index,)
    rows = first if self.order is None else self.order[first]
    if self.data.ndim == 1:
      return self._dequantize(self.data)[rows]
    return self._dequantize(self.data[rows])[(slice(None), *rest)]

  def _dequantize(self, data):
    from gguf import quants
    try:
      return quants.dequantize(data, self.kind)
    except NotImplementedError:
      raise DataError(
          f'{self.path}: tensor {self.name} is quantized as {self.kind.name}, which the package '
          'gguf cannot dequantize; take a file of another quantization, such as Q8_0') from None


@dataclasses.dataclass(frozen=True, eq=False)
class File:
  """An open file. fields: metadata by key, numeric arrays as NumPy's. tensors: by name. path: of
  the file."""
  path: pathlib.Path
  fields: dict[str, Any]
  tensors: dict[str, Tensor]

  def field(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """The metadata `key` as one of the types `kind`, or `default` where it is missing.

    Raises DataError where it is of another type, or missing without a default.
    """
    value = self.fields.get(key, default)
    if value is None:
      raise DataError(f'{self.path}: the metadata {key} is missing; convert the model again with a '
                      'newer llama.cpp')
    if not isinstance(value, kind):
      raise DataError(f'{self.path}: the metadata {key} is {value!r:.80}, which it cannot be')
    return value


def is_gguf(path: Path) -> bool:
  """Whether a model's path is to be read as a GGUF file: a file, or a name that ends so."""
  path = pathlib.Path(path)
  return path.suffix == '.gguf' or path.is_file()


def read(path: Path) -> File:
  """Opens a file; what was read is kept for as long as the file stays as it is.

  path: of the file. Raises DataError where it is missing, cut short, damaged, or no GGUF file.
  """
  path = pathlib.Path(path)
  try:
    now = path.stat()
  except OSError as error:
    raise DataError(f'{path}: {error.strerror}; name a .gguf file, or the folder of a Hugging Face '
                    'checkpoint') from None
  return _read(path, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read(path, size, _):
  with open(path, 'rb') as file:
    head = file.read(8)
    if head[:4] != MAGIC:
      raise DataError(f'{path} is no GGUF file: it begins with {head[:4]!r}')
    version = int.from_bytes(head[4:], 'little')
    if version not in VERSIONS:
      raise DataError(f'{path}: version {version} of GGUF is not read; 2 and 3 are, little-endian')
    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  cursor = _Cursor(buffer, len(head))
  try:
    count, pairs = cursor.numbers('QQ')
    fields = dict((cursor.string(), cursor.value(*cursor.numbers('I'))) for _ in range(pairs))
    infos = [cursor.tensor() for _ in range(count)]
  except (struct.error, IndexError):  # both say that the buffer ends before
    raise DataError(f'{path} is cut short: it ends within its header, after {size:,} bytes; '
                    'download it again') from None
  except (UnicodeDecodeError, ValueError, KeyError) as error:
    raise DataError(f'{path} is damaged at byte {cursor.at:,} of its header ({error}); download it '
                    'again') from None
  alignment = fields.get('general.alignment', 32)
  if type(alignment) is not int or alignment < 1:
    raise DataError(f'{path} is damaged: general.alignment={alignment!r:.80}')
  start = -(-cursor.at // alignment) * alignment
  whole = np.frombuffer(buffer, np.uint8)
  tensors: dict[str, Tensor] = {}
  for info in infos:
    if info[0] in tensors:
      raise DataError(f'{path} is damaged: tensor {info[0]} stands there twice')
    tensors[info[0]] = _tensor(path, whole, start, *info)
  return File(path, fields, tensors)


def _tensor(path, whole, start, name, shape, kind, offset):
  """One tensor's place in the file. kind: its number."""
  from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
  try:
    kind = GGMLQuantizationType(kind)
    block, size = GGML_QUANT_SIZES[kind]
  except (ValueError, KeyError):
    raise DataError(f'{path}: tensor {name} has the unknown quantization {int(kind)}; a newer '
                    'package gguf may know it, or take a file of another quantization') from None
  if not shape or shape[-1] % block:
    raise DataError(f'{path} is damaged: tensor {name} has the shape {shape}, and blocks of '
                    f'{kind.name} hold {block} values')
  begin = start + offset
  end = begin + math.prod(shape) // block * size
  if end > len(whole):
    raise DataError(f'{path} is cut short: tensor {name} ends at byte {end:,}, the file at '
                    f'{len(whole):,}; download it again')
  rows = (*shape[:-1], shape[-1] // block * size)
  return Tensor(path, name, shape, kind, whole[begin:end].reshape(rows))


class _Cursor:
  """Reads a header's values one after the other.

  buffer: the file. at: where the next one begins.
  """

  def __init__(self, buffer: mmap.mmap, at: int):
    self.buffer, self.at = buffer, at

  def numbers(self, form: str) -> tuple:
    """Numbers of the types that struct calls `form`."""
    values = struct.unpack_from(f'<{form}', self.buffer, self.at)
    self.at += struct.calcsize(f'<{form}')
    return values

  def take(self, size: int) -> bytes:
    """The next `size` bytes. Raises IndexError where there are fewer."""
    if size > len(self.buffer) - self.at:
      raise IndexError
    self.at += size
    return self.buffer[self.at - size:self.at]

  def string(self) -> str:
    """A text behind its length."""
    return self.take(*self.numbers('Q')).decode()

  def value(self, kind: int) -> Any:
    """A metadata value of the type numbered `kind`."""
    if kind == STRING:
      return self.string()
    if kind != ARRAY:
      return self.numbers(_scalar(kind))[0]
    inner, count = self.numbers('IQ')
    if inner != STRING:
      form = _scalar(inner)
      return np.frombuffer(self.take(count * struct.calcsize(f'<{form}')), f'<{form}')
    if 8 * count > len(self.buffer) - self.at:
      raise IndexError
    return [self.string() for _ in range(count)]

  def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, number of the kind, and place behind the header, of a tensor."""
    name = self.string()
    axes, = self.numbers('I')
    if axes > MAX_AXES:
      raise ValueError(f'tensor {name:.60} has {axes} axes')
    return name, self.numbers('Q' * axes)[::-1], *self.numbers('IQ')


def _scalar(kind):
  """struct's letter of a metadata type."""
  if kind not in SCALARS:
    raise ValueError(f'metadata of the unknown type {kind}')
  return SCALARS[kind]
