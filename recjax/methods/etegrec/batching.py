"""Training rows: every prefix of a user's items with the item after it, in widths that fit them.

A row pays for its own length, not for the longest: rows lie in few bins of one width each, and
every step takes the same share of each bin, so batches are fair samples of unchanging shapes.
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from recjax.data.dataset import Interactions
from recjax.errors import DataError

SHARE_MULTIPLE = 8


class Bin(NamedTuple):
  """Rows of one width W.

  history: item indices, oldest first, 0 behind. target: 0 for nobody. interests: rows of the table
  of interests, 0 for none.
  """
  history: Int[Array | np.ndarray, 'R W']
  target: Int[Array | np.ndarray, ' R']
  interests: Int[Array | np.ndarray, 'R K']


def prefixes(train: Interactions, max_history: int) -> tuple[list[np.ndarray], np.ndarray]:
  """Every prefix of a user's training items, with the item after it.

  train: the sequences. max_history: items that are kept of a prefix, its last ones. -> histories,
  int32 arrays of at most so many items, oldest first; targets (R,) int32. Raises DataError where
  nobody has two items.
  """
  histories, targets = [], []
  for start, end in zip(train.offsets[:-1], train.offsets[1:]):
    items = train.items[start:end]
    for position in range(1, len(items)):
      histories.append(items[max(0, position - max_history):position])
      targets.append(items[position])
  if not targets:
    raise DataError('no user has two training items, so no next item can be learned')
  return histories, np.array(targets, np.int32)


def pad_histories(histories: Sequence[np.ndarray], width: int) -> Int[np.ndarray, 'B W']:
  """Histories as rows of one width, 0 behind; of longer ones the last `width` items.

  histories: item indices, oldest first.
  """
  rows = np.zeros((len(histories), width), np.int32)
  for row, history in zip(rows, histories):
    row[:min(len(history), width)] = history[-width:]
  return rows


def bin_widths(max_history: int) -> list[int]:
  """The widths of bins: a quarter, a half and the whole of the longest history.

  max_history: the longest. Each is a network of its own to the compiler, so there are few.
  """
  return sorted({-(-max_history // divisor) for divisor in (4, 2, 1)})


def make_bins(histories: Sequence[np.ndarray], targets: np.ndarray, interests: np.ndarray,
              max_history: int, batch: int) -> tuple[list[Bin], list[int], int]:
  """Parts rows among bins.

  histories, targets: as of `prefixes`. interests: (R, K) int32. max_history: width of the widest
  bin. batch: rows of a step, about. -> bins on the host, rows of each in a step (its share), steps

  Bins are filled up with nobody to steps times their share. Together the shares are about `batch`;
  each divides by SHARE_MULTIPLE, whatever the mesh is: any number of devices sees the same rows in
  a step.
  """
  lengths = np.array([len(h) for h in histories])
  widths = np.array(bin_widths(max_history))
  bin_of_row = np.searchsorted(widths, lengths)
  steps = math.ceil(len(targets) / batch)
  bins, shares = [], []
  for number, width in enumerate(widths):
    rows = np.flatnonzero(bin_of_row == number)
    if not len(rows):
      continue
    share = -(-math.ceil(len(rows) / steps) // SHARE_MULTIPLE) * SHARE_MULTIPLE
    missing = share * steps - len(rows)
    fill = lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))  # noqa: E731, B023
    bins.append(Bin(fill(pad_histories([histories[r] for r in rows], width)), fill(targets[rows]),
                    fill(interests[rows])))
    shares.append(share)
  return bins, shares, steps


def shuffle_rows(key: Key[Array, ''], bins: Sequence[Bin], shares: Sequence[int],
                 steps: int) -> list[Array]:
  """The rows of an epoch in a new order.

  bins, shares, steps: as `make_bins` gives. key: of the epoch. -> for each bin (steps, share) row
  numbers
  """
  return [
    jax.random.permutation(jax.random.fold_in(key, number), len(one_bin.target)).reshape(
      steps, share)
    for number, (one_bin, share) in enumerate(zip(bins, shares))]


def take_rows(bins: Sequence[Bin], rows: Sequence[Array]) -> list[Bin]:
  """A step's part of every bin. rows: (share,) row numbers of each. bins: all rows."""
  return [Bin(*(x[bin_rows] for x in one_bin)) for one_bin, bin_rows in zip(bins, rows)]
