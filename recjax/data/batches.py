"""Which examples a step sees: pure functions of (seed, step), so that any run can be resumed."""
import functools

import numpy as np


class Batches:
  """batches[i] is the i-th batch of an endless shuffled stream: a function of (seed, i) alone.

  collate: takes an int array of example rows (size,) and returns a dict of arrays. ways: arrays are
  filled up with rows of zeros to a multiple of it, so that they divide over so many devices while
  the examples of a batch stay the same for any number of them.
  """

  def __init__(self, collate, count, size, seed=0, ways=1):
    self.collate, self.count, self.size, self.ways = collate, count, size, ways
    self.order = functools.lru_cache(2)(
        lambda epoch: np.random.default_rng((seed, epoch)).permutation(count))

  def __len__(self):
    return 10**9

  def rows_of(self, i):
    """The examples of batch i. -> (size,) int"""
    epoch, row = np.divmod(np.arange(i * self.size, (i + 1) * self.size), self.count)
    return np.concatenate([self.order(e)[row[epoch == e]] for e in np.unique(epoch)])

  def __getitem__(self, i):
    return filled(self.collate(self.rows_of(i)), self.ways)


def filled(batch, ways):
  """Arrays with rows of zeros behind, up to a multiple of `ways`. batch: dict of arrays"""
  def one(x):
    return np.pad(x, [(0, -len(x) % ways)] + [(0, 0)] * (x.ndim - 1)) if -len(x) % ways else x
  return {name: one(x) for name, x in batch.items()}


def halving_draws(lengths, epochs, seed):
  """Draws sequences by length, halving a sequence's weight at each draw (betag 2.2).

  lengths: (U,) int. -> (epochs * U,) int32 rows; an epoch is U draws. At an epoch's start the
  weights go back to the lengths if every sequence has been drawn since they last were. (The
  authors reset when data-set index 0 is asked for; with a shuffling loader that is at random.)
  Weights stand in blocks with their sums, so one draw costs about sqrt(U).
  """
  rng = np.random.default_rng(seed)
  count = len(lengths)
  width = int(np.ceil(np.sqrt(count)))
  full = np.zeros(width * width)
  full[:count] = lengths
  full = full.reshape(width, width)
  weights, drawn = full.copy(), np.zeros(count, bool)
  out = np.empty(epochs * count, np.int32)
  for i, u in enumerate(rng.random(epochs * count)):
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
    out[i] = row
  return out
