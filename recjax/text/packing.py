"""Token rows of many samples: which of them share a row, so that little of it is padding."""
from collections.abc import Iterable

from recjax.errors import DataError


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

  def take(self, length):
    node = 1
    while node < self.leaves:
      node = 2 * node + (self.most[2 * node] < length)
    row = node - self.leaves
    self.most[node] -= length
    while node > 1:
      node //= 2
      self.most[node] = max(self.most[2 * node], self.most[2 * node + 1])
    return row
