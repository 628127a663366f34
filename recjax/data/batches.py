"""Which examples a step sees: pure functions of (seed, step), so that any run can be resumed."""
import functools
from collections.abc import Callable

import numpy as np

Batch = dict[str, np.ndarray]


class Batches:
  """batches[i] is the i-th batch of an endless shuffled stream: a function of (seed, i) alone.

  collate: takes an int array of example rows (size,) and returns a dict of arrays. count: examples
  there are. size: examples of a batch. ways: arrays are filled up with rows of zeros to a multiple
  of it, so that they divide over so many devices while the examples of a batch stay the same for
  any number of them.
  """

  def __init__(self, collate: Callable[[np.ndarray], Batch], count: int, size: int, seed: int = 0,
               ways: int = 1):
    self.collate, self.count, self.size, self.seed, self.ways = collate, count, size, seed, ways
    self._order = functools.lru_cache(2)(self._shuffled)

  def __len__(self) -> int:
    return 10**9

  def rows_of(self, step: int) -> np.ndarray:
    """The examples of the batch of `step`, (size,) int."""
    epochs, places = np.divmod(np.arange(step * self.size, (step + 1) * self.size), self.count)
    return np.concatenate([self._order(e)[places[epochs == e]] for e in np.unique(epochs)])

  def __getitem__(self, step: int) -> Batch:
    return pad_batch(self.collate(self.rows_of(step)), self.ways)

  def _shuffled(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self.seed, epoch)).permutation(self.count)


def pad_batch(batch: Batch, ways: int) -> Batch:
  """The arrays of `batch` with rows of zeros behind, up to a multiple of `ways`."""
  def padded(x: np.ndarray) -> np.ndarray:
    return np.pad(x, [(0, -len(x) % ways)] + [(0, 0)] * (x.ndim - 1)) if -len(x) % ways else x
  return {name: padded(x) for name, x in batch.items()}


def halving_draws(lengths: np.ndarray, epochs: float, seed: int) -> np.ndarray:
  """Draws sequences by length, halving a sequence's weight at each draw, as BETag trains.

  lengths: (U,) int, items of each sequence. seed: of the draws. An epoch is U draws; the result is
  (round(epochs * U),) int32 rows, one at least. At an epoch's start the weights go back to the
  lengths if every sequence has been drawn since they last were. (The authors' code resets when
  data-set index 0 is asked for; with a shuffling loader that is at random.) Weights stand in blocks
  with their sums, so one draw costs about sqrt(U).
  """
  rng = np.random.default_rng(seed)
  count = len(lengths)
  width = int(np.ceil(np.sqrt(count)))
  full = np.zeros(width * width)
  full[:count] = lengths
  full = full.reshape(width, width)
  weights, drawn = full.copy(), np.zeros(count, bool)
  draws = np.empty(max(1, round(epochs * count)), np.int32)
  for i, u in enumerate(rng.random(len(draws))):
    if i % count == 0 and drawn.all():
      weights[:], drawn[:] = full, False
    blocks = np.cumsum(weights.sum(1))
    u *= blocks[-1]
    block = min(int(np.searchsorted(blocks, u, 'right')), width - 1)
    inside = np.cumsum(weights[block])
    u -= blocks[block] - inside[-1]
    column = min(int(np.searchsorted(inside, u, 'right')), np.flatnonzero(weights[block])[-1])
    row = block * width + column
    weights[block, column] /= 2
    drawn[row] = True
    draws[i] = row
  return draws
