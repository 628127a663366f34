"""Tokenizers whose plain text never turns into control tokens; training, loading, packing.

A `Tokenizer` holds two backends of the tokenizers library with equal ids. `backend` is the one
other programs see. The private one spells every control token with Unicode noncharacters, so that
a title holding '<|im_end|>' has nothing to match: safety is a property of the vocabulary, not of
a search through each text.
"""
from recjax.errors import DataError


def pack(lengths, capacity: int) -> list[list[int]]:
  """Puts indices of `lengths` into rows of at most `capacity`, first-fit-decreasing.

  Longest first, ties by index, each into the first row with room: the same lengths always give
  the same rows. O(n log n). Raises DataError naming an index that fits no row.
  """
  lengths = [int(n) for n in lengths]
  for index, length in enumerate(lengths):
    if not 0 <= length <= capacity:
      raise DataError(f'index {index} has length {length}, outside 0..{capacity}; '
                      'shorten it or raise the capacity')
  rows, tree = [], _Room(len(lengths), capacity)
  for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    row = tree.take(lengths[index])
    if row == len(rows):
      rows.append([])
    rows[row].append(index)
  return rows


class _Room:
  """Free room of up to n rows under a tree of maxima, for the leftmost row with enough."""

  def __init__(self, n, capacity):
    self.leaves = 1 << max(n - 1, 0).bit_length()
    self.best = [capacity] * (2 * self.leaves)

  def take(self, length):
    node = 1
    while node < self.leaves:
      node = 2 * node + (self.best[2 * node] < length)
    row = node - self.leaves
    self.best[node] -= length
    while node > 1:
      node //= 2
      self.best[node] = max(self.best[2 * node], self.best[2 * node + 1])
    return row
