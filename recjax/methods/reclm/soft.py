"""Soft labels of a list: at each place any of the items that the list still holds may come.

The order of a list is the teacher's; a small model cannot learn it to the last place, and what it
pays for that it lacks for which items belong into the list at all. With `train.soft` above 0 the
r-th of the items that are left has a share of soft^r of the place, and each token of its title the
sum over the items that begin alike.
"""
import numpy as np


class Shares:
  """What is learnt at each token. titles: token lists by item index - 1, eoi: the token behind
  them. soft: 0..1. most: items of the longest list."""

  def __init__(self, titles, eoi, soft, most):
    self.soft, self.most = soft, most
    size = max(map(len, titles)) + 2
    self.rows = np.full((len(titles) + 1, size), -1, np.int32)
    for row, some in zip(self.rows[1:], titles):
      row[:len(some) + 1] = [*some, eoi]

  def of(self, targets, items):
    """targets: (n,) tokens, items: (n,) marks of them, as `Renderer.answer` gives them; both of one
    conversation. -> tokens (n, most) int32, shares (n, most) float32 that sum to one"""
    tokens = np.repeat(targets[:, None], self.most, 1).astype(np.int32)
    shares = np.zeros(tokens.shape, np.float32)
    shares[:, 0] = 1
    starts = np.flatnonzero(items > 0)
    listed = items[starts]
    for number, start in enumerate(starts):
      left = self.rows[listed[number:number + self.most]]
      size = int((left[0] >= 0).sum())
      alike = np.cumprod(np.concatenate(
          [np.ones((len(left), 1), bool), left[:, :size - 1] == left[0, :size - 1]], 1), 1)
      alike = alike * (self.soft ** np.arange(len(left)))[:, None]
      here = slice(start + 1, start + 1 + size)
      tokens[here, :len(left)] = np.where(alike > 0, left[:, :size], left[0, :size]).T
      shares[here, :len(left)] = (alike / alike.sum(0)).T
    return tokens, shares


def collate(packed, shares):
  """`packed` (rows of examples -> batch) with the arrays 'tokens_of' and 'shares' beside."""
  def one(rows):
    batch = packed(rows)
    found = []
    for targets, items, segments in zip(batch['targets'], batch['item'], batch['segments']):
      ends = np.flatnonzero(np.diff(segments)) + 1
      found.append([np.concatenate(x) for x in zip(*(
          shares.of(t, i) for t, i in zip(np.split(targets, ends), np.split(items, ends))))])
    tokens, parts = (np.stack(x) for x in zip(*found))
    return {**batch, 'tokens_of': tokens, 'shares': parts}
  return one
