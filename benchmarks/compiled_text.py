"""What a compiled program's text says: kernels, products, collectives, sorts, copies.

The text lists computations. Reading starts at ENTRY with weight 1; the body of a loop is entered
with the weight times the turns that the loop takes, calls, branches and fusions with the weight
itself. A loop whose turns the text does not say counts once, and is told.
"""
import collections
import dataclasses
import math
import re

HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
OP = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(([^)]*)')
ARRAY = re.compile(r'([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\]')
CALLED = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)='
                    r'%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}')
WIDTHS = {'pred': 1, 's4': .5, 'u4': .5, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2,
          's64': 8, 'u64': 8, 'f64': 8}
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
NO_KERNEL = {'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant', 'while', 'call',
             'conditional', 'after-all', 'partition-id', 'replica-id', 'opt-barrier'}
PRODUCTS = {'dot', 'convolution'}
SORTS = ('TopK', '__gpu$TopK', 'PartialReduce')
COPIES = {'copy', 'transpose', 'copy-start'}
LARGE = 1 << 20  # bytes from which a copy counts
MATRIX = 1 << 18  # numbers from which an array is a weight matrix


@dataclasses.dataclass
class Figures:
  """Of one device, loops multiplied out.

  kernels: launches. turns: of the loops, by their bodies' names. unknown: loops whose turns are not
  said. products: how many by 'left x right' types, those of float32 at default precision as 'bare'.
  collectives: {kind: [count, bytes of results]}; looped: those inside loops. sorts: {width: count}.
  copies: bytes of copied results of 1 MiB and more. widened: matrices that a conversion writes.
  """
  kernels: int = 0
  unknown: int = 0
  products: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  collectives: dict[str, list[int]] = dataclasses.field(default_factory=dict)
  looped: dict[str, list[int]] = dataclasses.field(default_factory=dict)
  sorts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  copies: int = 0

  @property
  def bare(self) -> int:
    """Products of two float32 arrays that no precision was asked for."""
    return self.products['f32 x f32']

  @property
  def widest_sort(self) -> int:
    """Numbers of the longest row that is sorted."""
    return max(self.sorts, default=0)


def computations(text: str) -> tuple[str, dict[str, list[str]]]:
  """-> the name of the entry, the lines of each computation"""
  entry, name, bodies = '', '', {}
  for line in text.splitlines():
    if head := HEAD.match(line):
      name = head[2]
      bodies[name] = []
      entry = name if head[1] else entry
    elif line.startswith('}'):
      name = ''
    elif name and line.strip():
      bodies[name].append(line)
  return entry, bodies


def trips(line: str, bodies: dict[str, list[str]]) -> int:
  """The turns of the loop in `line`; 0 where the text does not say."""
  if known := re.search(r'known_trip_count\D*(\d+)', line):
    return int(known[1])
  condition = bodies[re.search(r'condition=%?([\w.\-]+)', line)[1]]
  if 'direction=LT' not in condition[-1]:
    return 0
  return max((int(n) for row in condition
              for n in re.findall(r's32\[\]\S* constant\((\d+)\)', row)), default=0)


def size(shapes: str) -> int:
  """Bytes of the arrays in a type, all parts of a tuple added up."""
  return int(sum(WIDTHS.get(dtype, 4) * math.prod(int(n) for n in dims.split(',') if n)
                 for dtype, dims in ARRAY.findall(shapes)))


def last(shapes: str) -> str:
  """The last array of a type: the result of a '-start', whose type is (operand, result, ...)."""
  arrays = [m[0] for m in ARRAY.finditer(shapes) if not m[0].startswith(('u32[]', 's32[]'))]
  return arrays[len(arrays) // 2:][0] if arrays else ''


class Reader:
  """Walks through a program and fills `figures`."""

  def __init__(self, text: str):
    self.entry, self.bodies = computations(text)
    self.types = {name: {m[1]: m[2] for m in map(OP.match, lines) if m}
                  for name, lines in self.bodies.items()}
    self.figures = Figures()

  def walk(self, name: str, weight: int, fused: bool, looped: bool) -> None:
    """name: of the computation. weight: how often it runs. fused, looped: inside what."""
    for line in self.bodies.get(name, ()):
      if not (op := OP.match(line)):
        continue
      _, shapes, kind, operands = op.groups()
      self.count(name, line, shapes, kind, operands, weight, fused, looped)
      if kind == 'while':
        turns = trips(line, self.bodies)
        self.figures.unknown += not turns
        body = re.search(r'body=%?([\w.\-]+)', line)[1]
        self.walk(body, weight * max(turns, 1), fused, True)
        continue
      small = kind in ('reduce', 'sort', 'scatter', 'reduce-window', 'select-and-scatter', 'map',
                       *COLLECTIVES) or kind.endswith('-start') or 'topk' in line.lower()
      for one, several in CALLED.findall(line) if not small else ():
        for called in [one] if one else re.findall(r'[\w.\-]+', several):
          if not called.startswith('async_collective_fusion'):
            self.walk(called, weight, fused or kind == 'fusion', looped)

  def count(self, name: str, line: str, shapes: str, kind: str, operands: str, weight: int,
            fused: bool, looped: bool) -> None:
    """Counts one operation."""
    figures = self.figures
    if not fused and kind not in NO_KERNEL and not kind.endswith('-done'):
      figures.kernels += weight
    custom = re.search(r'custom_call_target="([^"]+)"', line) if kind == 'custom-call' else None
    if kind in PRODUCTS or custom and 'gemm' in custom[1] or custom and 'matmul' in custom[1]:
      self.count_product(name, line, operands, weight)
    base = kind.removesuffix('-start')
    if base in COLLECTIVES:
      moved = size(last(shapes)) if kind.endswith('-start') else size(shapes)
      for totals in (figures.collectives, figures.looped)[:1 + looped]:
        count, total = totals.get(base, (0, 0))
        totals[base] = [count + weight, total + weight * moved]
    if kind == 'sort' or custom and custom[1] in SORTS:
      self.count_sort(name, line, operands, weight)
    if kind in COPIES and not fused and size(last(shapes)) >= LARGE:
      figures.copies += weight * size(last(shapes))
    if kind == 'fusion' and 'dynamic_slice_fusion' in line.split('=')[0] and (
        size(shapes) >= LARGE):
      figures.copies += weight * size(shapes)

  def operand_types(self, name: str, operands: str) -> list[str]:
    """The types of operands, which stand with them or where they were made."""
    found = []
    for operand in re.findall(r'(?:[a-z0-9]+\[[^%]*)?%[\w.\-]+', operands):
      shape = ARRAY.search(operand.split('%')[0]) or ARRAY.search(
          self.types[name].get(operand.split('%')[1], ''))
      found.append(shape[0] if shape else '?')
    return found

  def count_product(self, name: str, line: str, operands: str, weight: int) -> None:
    """Counts a product by the types of what it multiplies."""
    types = [t.split('[')[0] for t in self.operand_types(name, operands)[:2]]
    exact = 'highest' in line.lower() or 'bf16_6x' in line.lower() or 'f32_f32_f32' in line.lower()
    self.figures.products[' x '.join(types) + (' highest' if exact else '')] += weight

  def count_sort(self, name: str, line: str, operands: str, weight: int) -> None:
    """Counts a sort by the length of the rows."""
    shape = self.operand_types(name, operands)[0]
    dims = [int(n) for n in re.findall(r'\d+', shape.split('[')[-1])]
    axis = re.search(r'dimensions=\{(\d+)\}', line)
    if dims:
      self.figures.sorts[dims[int(axis[1])] if axis else max(dims)] += weight


def read(text: str) -> Figures:
  """The figures of a program. text: of `compiled.as_text()`."""
  reader = Reader(text)
  reader.walk(reader.entry, 1, False, False)
  return reader.figures


def widened(text: str, dtype: str = 'bf16', numbers: int = MATRIX) -> int:
  """Conversions outside fusions' insides that write a whole matrix of `dtype`."""
  entry, bodies = computations(text)
  del entry
  return sum(1 for name, lines in bodies.items() if 'fused' not in name and 'fusion' not in name
             for m in map(OP.match, lines)
             if m and m[3] == 'convert' and m[2].startswith(dtype)
             and math.prod(int(n) for n in re.findall(r'\d+', m[2].split('[')[1].split(']')[0])
                           ) >= numbers)
