"""Token rows of many samples: which of them share a row, and the arrays that a model trains on."""
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Num

from recjax.errors import DataError

ROW_STEP = 64  # rows are a multiple of this long


@dataclasses.dataclass(frozen=True)
class TokenSample:
  """Token ids of one sample, the tokens that are learned, and further marks of each token."""
  ids: Int[np.ndarray, ' S']
  learned: Bool[np.ndarray, ' S']
  marks: dict[str, Int[np.ndarray, ' S']] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PackedSamples:
  """Samples laid into rows, without the tokens that all of them begin with.

  prefix: those tokens, which a model runs once a step. rows: the samples of each row, as indices.
  row_tokens: length of a row. fills: of each mark, its value where there is no token.
  """
  prefix: list[int]
  samples: Sequence[TokenSample]
  rows: list[list[int]]
  row_tokens: int
  fills: dict[str, int] = dataclasses.field(default_factory=dict)

  def batch(self, rows: Iterable[int] | None = None,
            num_rows: int = 0) -> dict[str, Num[np.ndarray, 'R _']]:
    """Arrays of some rows, all if None, filled up to `num_rows` with rows that count nothing.

    Each token has its next one as target, its position in its sample (prefix included) and the
    number of its sample in the row (`segments`, from 1; 0 for padding). `weights` is 1 where the
    target is learned. `first` and `first_weight` are the same for the token of each sample that the
    prefix predicts. Marks are those of the target.
    """
    taken = [self.rows[r] for r in (range(len(self.rows)) if rows is None else rows)]
    num_rows, start = max(num_rows, len(taken)), len(self.prefix)
    shape, widest = (num_rows, self.row_tokens), max(map(len, self.rows))
    batch: dict[str, Any] = {name: np.zeros(shape, np.int32)
                             for name in ('tokens', 'positions', 'segments', 'targets')}
    batch['weights'] = np.zeros(shape, np.float32)
    batch['first'] = np.zeros((num_rows, widest), np.int32)
    batch['first_weight'] = np.zeros((num_rows, widest), np.float32)
    batch |= {name: np.full(shape, fill, np.int32) for name, fill in self.fills.items()}
    for r, members in enumerate(taken):
      column = 0
      for s, index in enumerate(members):
        sample = self.samples[index]
        place = r, slice(column, column + len(sample.ids) - start - 1)
        batch['tokens'][place] = sample.ids[start:-1]
        batch['targets'][place] = sample.ids[start + 1:]
        batch['weights'][place] = sample.learned[start + 1:]
        batch['positions'][place] = np.arange(start, len(sample.ids) - 1)
        batch['segments'][place] = s + 1
        batch['first'][r, s], batch['first_weight'][r, s] = sample.ids[start], sample.learned[start]
        for name in self.fills:
          batch[name][place] = sample.marks[name][start + 1:]
        column = place[1].stop
    return batch

  @property
  def tokens(self) -> int:
    """How many tokens are learned; the prefix's count once for each sample, or not at all."""
    start = len(self.prefix)
    return int(sum(s.learned[start + 1:].sum() + start * s.learned[start] for s in self.samples))

  @property
  def filled(self) -> float:
    """Share of the rows' places that hold a token."""
    tokens = sum(len(s.ids) - len(self.prefix) - 1 for s in self.samples)
    return tokens / (len(self.rows) * self.row_tokens)


def pack_samples(samples: Sequence[TokenSample], prefix: list[int], row_tokens: int = 0,
                 fills: dict[str, int] | None = None) -> PackedSamples:
  """Lays samples into rows of `row_tokens` tokens, or more where one is longer.

  prefix: tokens that all samples begin with. fills: as of PackedSamples.
  """
  sizes = [len(s.ids) - len(prefix) - 1 for s in samples]
  row_tokens = round_row(max(row_tokens, *sizes, 1))
  return PackedSamples(prefix, samples, pack(sizes, row_tokens), row_tokens, fills or {})


def round_row(tokens: int) -> int:
  """The next length of a row that holds so many tokens."""
  return -(-tokens // ROW_STEP) * ROW_STEP


def pack_in_order(lengths: Int[np.ndarray, ' N'], num_rows: int,
                  capacity: int) -> list[tuple[int, list[list[int]]]]:
  """Fills batches of rows with samples in order, each into the first row with space.

  lengths: none above `capacity`. num_rows: of a batch. -> [(first sample, for each row its samples
  counted from there)]
  """
  batches, start = [], 0
  space, rows = [capacity] * num_rows, [[] for _ in range(num_rows)]
  for index, length in enumerate(lengths.tolist()):
    row = next((r for r in range(num_rows) if space[r] >= length), None)
    if row is None:
      batches.append((start, rows))
      start, row = index, 0
      space, rows = [capacity] * num_rows, [[] for _ in range(num_rows)]
    space[row] -= length
    rows[row].append(index - start)
  return [*batches, (start, rows)]


def pack(lengths: Iterable[int], capacity: int) -> list[list[int]]:
  """Puts indices of `lengths` into rows of at most `capacity` tokens, first-fit-decreasing.

  Longest first, ties by index, each into the first row with space: the same lengths always give
  the same rows. O(n log n). -> the indices of each row. Raises DataError naming an index that fits
  no row.
  """
  lengths = [int(n) for n in lengths]
  for index, length in enumerate(lengths):
    if not 0 <= length <= capacity:
      raise DataError(f'index {index} has length {length}, outside 0..{capacity}; '
                      'shorten it or raise the capacity')
  rows, tree = [], _FreeSpace(len(lengths), capacity)
  for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    row = tree.take(lengths[index])
    if row == len(rows):
      rows.append([])
    rows[row].append(index)
  return rows


class _FreeSpace:
  """Free space of up to n rows under a tree of maxima, for the leftmost row with enough."""

  def __init__(self, n, capacity):
    self.leaves = 1 << max(n - 1, 0).bit_length()
    self.most = [capacity] * (2 * self.leaves)

  def take(self, length: int | np.integer):
    node = 1
    while node < self.leaves:
      node = 2 * node + (self.most[2 * node] < length)
    row = node - self.leaves
    self.most[node] -= length
    while node > 1:
      node //= 2
      self.most[node] = max(self.most[2 * node], self.most[2 * node + 1])
    return row
