"""Training rows: every prefix of a user's items with the item after it, in widths that fit them.

A row pays for its own length, not for the longest: rows lie in few bins of one width each, and
every step takes the same share of each bin, so batches are fair samples of unchanging shapes.
"""
import math
from typing import NamedTuple

import jax
import numpy as np

from recjax.errors import DataError

SHARE_MULTIPLE = 8


class Bin(NamedTuple):
  """Rows of one width. history: (R, W) int32 item indices, oldest first, 0 behind. target: (R,),
  0 for nobody. interests: (R, K) int32 rows of the table of interests, 0 for none."""
  history: jax.Array
  target: jax.Array
  interests: jax.Array


def prefixes(train, most):
  """All rows of Interactions. -> histories [(n,) int32, n <= most], targets (R,)

  Raises DataError where nobody has two items.
  """
  histories, targets = [], []
  for start, end in zip(train.offsets[:-1], train.offsets[1:]):
    items = train.items[start:end]
    for at in range(1, len(items)):
      histories.append(items[max(0, at - most):at])
      targets.append(items[at])
  if not targets:
    raise DataError('no user has two training items, so no next item can be learnt')
  return histories, np.array(targets, np.int32)


def pad_histories(histories, width):
  """-> (B, width) int32, 0 behind; the last `width` items of longer ones"""
  out = np.zeros((len(histories), width), np.int32)
  for row, h in zip(out, histories):
    row[:min(len(h), width)] = h[-width:]
  return out


def bin_widths(most):
  """The widths of bins: a quarter, a half and the whole of the longest history.

  Each is a network of its own to the compiler, so there are few.
  """
  return sorted({-(-most // part) for part in (4, 2, 1)})


def make_bins(histories, targets, interests, most, batch):
  """Parts rows among bins. interests: (R, K) int32. -> [Bin] on the host, shares [rows], steps

  Bins are filled up with nobody to steps times their share. Together the shares are about `batch`;
  each divides by EVEN, whatever the mesh is: any number of devices sees the same rows in a step.
  """
  lengths = np.array([len(h) for h in histories])
  width = np.array(bin_widths(most))
  which = np.searchsorted(width, lengths)
  steps = math.ceil(len(targets) / batch)
  made, shares = [], []
  for number, w in enumerate(width):
    rows = np.flatnonzero(which == number)
    if not len(rows):
      continue
    share = -(-math.ceil(len(rows) / steps) // SHARE_MULTIPLE) * SHARE_MULTIPLE
    more = share * steps - len(rows)
    fill = lambda x: np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1))  # noqa: E731, B023
    made.append(Bin(fill(pad_histories([histories[r] for r in rows], w)), fill(targets[rows]),
                    fill(interests[rows])))
    shares.append(share)
  return made, shares, steps


def shuffle_rows(key, made, shares, steps):
  """The rows of an epoch in a new order. -> [(steps, share) int32 row numbers]"""
  return [jax.random.permutation(jax.random.fold_in(key, n), len(b.target)).reshape(steps, share)
          for n, (b, share) in enumerate(zip(made, shares))]


def take_rows(made, rows):
  """A step's part of every bin. rows: [(share,)] -> [Bin]"""
  return [Bin(*(x[r] for x in b)) for b, r in zip(made, rows)]
