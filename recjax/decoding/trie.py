"""Catalogs as tries: breadth-first arrays, built by NumPy, cut where one title is left.

Nodes are numbered level by level and, inside a level, in the order of the sorted titles, so the
children of u are the nodes first[u] .. first[u + 1] - 1 and no pointer is stored. Items are sorted
the same way: a node knows the interval of places below it. Where all items of a node share one
title it keeps no children; the tokens that are left are read from the title itself.
"""
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from recjax import file_io, run_files
from recjax.errors import DataError

ARRAYS = ('tok', 'first', 'lo', 'hi', 'item', 'start', 'rows')


@dataclasses.dataclass(frozen=True)
class Trie:
  """A catalog's token rows. M nodes, N items, W tokens in all; `build` makes one.

  tok: token on the edge into the node, siblings ascending. first: the first child, M + 1 of them.
  lo, hi: the places below the node. item: the row at each place, from 0: item i has row i - 1.
  start: where each row begins, N + 1 of them; none if all have `length`. rows: the tokens,
  the end token included. length: tokens of every row, or 0 if they differ. end: the token that ends
  every row, or -1 where rows end by their length. vocab: tokens are below it.
  """
  tok: Integer[np.ndarray, ' M']
  first: Int[np.ndarray, ' M1']
  lo: Int[np.ndarray, ' M']
  hi: Int[np.ndarray, ' M']
  item: Int[np.ndarray, ' N']
  start: Int[np.ndarray, ' N1']
  rows: Integer[np.ndarray, ' W']
  length: int
  end: int
  vocab: int

  def __len__(self) -> int:
    return len(self.item)

  def row(self, row: Any) -> Integer[np.ndarray, ' T']:
    """The tokens of a row, its end token included. row: its number, from 0."""
    if self.length:
      return self.rows[row * self.length:(row + 1) * self.length]
    return self.rows[self.start[row]:self.start[row + 1]]

  @functools.cached_property
  def longest(self) -> int:
    """Tokens of the longest row, the end token included."""
    return self.length or int(np.diff(self.start).max())

  @functools.cached_property
  def fan_out(self) -> Int[np.ndarray, ' M']:
    """Children of each node."""
    return np.diff(self.first)

  @functools.cached_property
  def widest(self) -> tuple[int, int]:
    """(children of the root, of the widest other node)."""
    return int(self.fan_out[0]), int(self.fan_out[1:].max(initial=0))

  def children(self, prefix: Sequence | np.ndarray) -> list[int]:
    """Tokens that may follow a prefix, on the host. Raises DataError naming where it leaves."""
    node = self.walk(prefix)
    if self.first[node] < self.first[node + 1]:
      return self.tok[self.first[node]:self.first[node + 1]].tolist()
    return self.row(self.item[self.lo[node]])[len(prefix):len(prefix) + 1].tolist()

  def walk(self, prefix: Sequence | np.ndarray) -> int:
    """The node that a prefix leads to. Raises DataError with the position where it leaves."""
    node = 0
    for position, token in enumerate(prefix):
      begin, stop = self.first[node], self.first[node + 1]
      if begin < stop:
        node = begin + np.searchsorted(self.tok[begin:stop], token)
        follows = node < stop and self.tok[node] == token
      else:
        row = self.row(self.item[self.lo[node]])
        follows = position < len(row) and row[position] == token
      if not follows:
        raise DataError(f'token {token} at position {position} leaves the catalog: no title begins '
                        f'with {list(map(int, prefix[:position + 1]))}')
    return int(node)

  def stats(self) -> dict[str, int | float]:
    """What the trie holds, for people."""
    leaf = self.fan_out == 0
    shared = (self.hi - self.lo)[leaf]
    size = sum(getattr(self, a).nbytes for a in ARRAYS)
    root, below = self.widest
    return {'items': len(self), 'titles': int(leaf.sum()), 'nodes': len(self.tok),
            'longest': self.longest, 'root_children': root, 'widest_below': below,
            'duplicates': int((shared - 1).sum()), 'bytes': size,
            'bytes_per_item': round(size / len(self), 1)}

  def save(self, folder: str | os.PathLike) -> None:
    """Writes one .npy file an array, readable by memory map; the folder appears whole."""
    with file_io.atomic_folder(folder, overwrite=True) as fresh:
      for name in ARRAYS:
        np.save(fresh / f'{name}.npy', getattr(self, name))
      file_io.write_json(fresh / 'trie.json', {
          'length': self.length, 'end': self.end, 'vocab': self.vocab})

  @classmethod
  def load(cls, folder: str | os.PathLike, mmap: bool = True) -> 'Trie':
    """Opens what `save` wrote. mmap: leaves arrays on disk until they are read.

    folder: as `save` wrote it. Raises DataError where a file is missing or unreadable.
    """
    folder = pathlib.Path(folder)
    try:
      facts = json.loads((folder / 'trie.json').read_text())
      arrays = {name: np.load(folder / f'{name}.npy', mmap_mode='r' if mmap else None)
                for name in ARRAYS}
      return cls(**arrays, **facts)
    except run_files.DAMAGE as error:
      raise DataError(f'{folder} holds no readable trie ({error}); build it again') from error


def build(rows: Sequence | tuple | np.ndarray, end: int | None = None, vocab: int = 0) -> Trie:
  """The trie of a catalog.

  rows: a list of token lists; or (flat tokens (W,), offsets (N + 1,)); or codes (N, L). end: the
  token appended to every row, so that a title may begin another one; rows of one length need none.
  vocab: ids must be below it (0: the largest id decides). Equal rows are one title of several
  items. Raises DataError for an empty catalog or row, an id outside the vocabulary, the end token
  inside a row, or a row without end that begins another.
  """
  flat, offsets = _flatten(rows)
  vocab = vocab or int(max(flat.max(initial=0), -1 if end is None else end)) + 1
  _check(flat, offsets, end, vocab)
  flat, offsets = _ended(flat, offsets, end, vocab)
  lengths = np.diff(offsets).astype(np.int32)
  order, shared = sort_rows(flat, offsets, vocab.bit_length())
  equal = np.concatenate([[False], shared[1:] == lengths[order[1:]]])
  equal[1:] &= lengths[order[1:]] == lengths[order[:-1]]
  clash = np.flatnonzero((shared[1:] == lengths[order[:-1]]) & ~equal[1:])
  if len(clash):
    raise DataError(f'row {order[clash[0]]} begins row {order[clash[0] + 1]}, so it could never be '
                    'told apart; give `end`, a token that ends every row')
  nodes = _nodes(flat, offsets, order, shared, np.flatnonzero(~equal).astype(np.int32))
  same = len(lengths) and (lengths == lengths[0]).all()
  start = np.zeros(0, np.int32) if same else offsets.astype(_index_type(len(flat)))
  return Trie(**nodes, item=order, start=start, rows=flat,
              length=int(lengths[0]) if same else 0, end=-1 if end is None else int(end),
              vocab=int(vocab))


def _flatten(rows) -> tuple[np.ndarray, np.ndarray]:
  """Flat tokens and int64 offsets of any of the inputs."""
  if isinstance(rows, tuple):
    flat, offsets = map(np.asarray, rows)
    return flat, offsets.astype(np.int64)
  if isinstance(rows, np.ndarray):
    return rows.reshape(-1), np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
  offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows], dtype=np.int64)])
  flat = np.fromiter((t for r in rows for t in r), np.int32, int(offsets[-1]))
  return flat, offsets


def _check(flat, offsets, end, vocab) -> None:
  """Refuses what would make a wrong trie."""
  if len(offsets) < 2:
    raise DataError('the catalog is empty: there is no item to build a trie of')
  empty = np.flatnonzero(np.diff(offsets) <= 0)
  if len(empty):
    raise DataError(f'row {empty[0]} has no tokens ({len(empty)} such rows): every item needs a '
                    'title; drop it or give it one')

  def row_at(places: np.ndarray) -> np.integer:
    return np.searchsorted(offsets, places[0], side='right') - 1
  outside = np.flatnonzero((flat < 0) | (flat >= vocab))
  if len(outside):
    raise DataError(f'row {row_at(outside)} holds token {flat[outside[0]]}, outside the vocabulary '
                    f'of {vocab}; is it of another tokenizer?')
  if end is not None:
    if not 0 <= end < vocab:
      raise DataError(f'the end token {end} is outside the vocabulary of {vocab}')
    inside = np.flatnonzero(flat == end)
    if len(inside):
      raise DataError(f'row {row_at(inside)} holds the end token {end}; encode titles as plain '
                      'text, so that no control token gets into them')


def _ended(flat, offsets, end, vocab):
  """Rows in the smallest type, each with its end token."""
  dtype = np.uint16 if vocab <= 1 << 16 else np.int32
  if end is None:
    return flat.astype(dtype, copy=False), offsets
  longer = offsets + np.arange(len(offsets))
  tokens = np.empty(int(longer[-1]), dtype)
  last = np.zeros(len(tokens), bool)
  last[longer[1:] - 1] = True
  tokens[last] = end
  tokens[~last] = flat
  return tokens, longer


def _index_type(size: int) -> type:
  return np.int32 if size < 2**31 else np.int64


def sort_rows(flat: Integer[np.ndarray, ' W'], offsets: Int[np.ndarray, ' N1'], bits: int
              ) -> tuple[Int[np.ndarray, ' N'], Int[np.ndarray, ' N']]:
  """Sorts rows by their tokens, a few tokens packed into one number at a time.

  Only rows that still agree with another one go on, so a row costs what tells it apart. flat: the
  tokens of all rows. offsets: where rows begin, and the end. bits: of a token. -> order, and how
  many tokens each row shares with the one before it
  """
  bits = min(bits + 1, 32)  # 0 stands for a row that is over
  lengths = np.diff(offsets).astype(np.int32)
  count = len(lengths)
  order, shared = np.arange(count, dtype=np.int32), np.zeros(count, np.int32)
  active, group, groups, depth = order.copy(), None, 1, 0
  while len(active):
    fields = max(1, (64 - (groups - 1).bit_length()) // bits)
    keys = _keys(flat, offsets, lengths, order[active], depth, fields, bits)
    if group is not None:
      keys |= group.astype(np.uint64) << np.uint64(bits * fields) if groups > 1 else np.uint64(0)
    turn = np.argsort(keys).astype(np.int32)
    order[active] = order[active][turn]
    keys = keys[turn]
    del turn
    differ = keys[1:] ^ keys[:-1]
    del keys
    agree = np.zeros(len(differ), np.int32)
    for field in range(fields):  # how many leading tokens agree
      agree += (differ >> np.uint64(bits * (fields - 1 - field))) == 0
    if group is not None:
      agree[group[1:] != group[:-1]] = 0  # neighbors of two groups were told apart before
      inside = group[1:] == group[:-1]
    else:
      inside = np.ones(len(differ), bool)
    # Fields past a row's end agree as zeros; what is shared ends with the row.
    here = active[1:][inside]
    shared[here] = np.minimum(depth + agree[inside], lengths[order[here]])
    depth += fields
    tied = inside & (differ == 0) & (lengths[order[active[1:]]] > depth)
    member = np.concatenate([tied, [False]]) | np.concatenate([[False], tied])
    begins = np.concatenate([[True], ~tied])
    group = (np.cumsum(begins, dtype=np.int32) - 1)[member]
    group = np.cumsum(np.concatenate([[0], np.diff(group) > 0]), dtype=np.int32)[:len(group)]
    active, groups = active[member], int(group[-1]) + 1 if len(group) else 1
  return order, shared


def _keys(flat, offsets, lengths, rows, depth, fields, bits):
  """Tokens depth .. depth + fields - 1 of rows as one number each, 0 past the end. -> uint64"""
  keys = np.zeros(len(rows), np.uint64)
  start, left = offsets[rows] + depth, lengths[rows] - depth
  last = len(flat) - 1
  for field in range(fields):
    token = flat[np.minimum(start + field, last)].astype(np.uint64) + np.uint64(1)
    keys = (keys << np.uint64(bits)) | np.where(left > field, token, np.uint64(0))
  return keys


def _nodes(flat, offsets, order, shared, places):
  """The node arrays, level by level. places: (D,) first place of each distinct title."""
  ends = np.append(places[1:], np.int32(len(order)))  # where the items of each title end
  shared_before = shared[places]
  begin = offsets[order[places]].astype(_index_type(len(flat)))
  tok, lo, hi = [np.zeros(1, flat.dtype)], [np.zeros(1, np.int32)], [ends[-1:]]
  fans = []
  ranks, depth = np.arange(len(places), dtype=np.int32), 0
  parent = np.zeros(len(places), np.int32)  # of each rank, counted inside its level
  parents = 1
  while len(ranks) and (depth or len(places) > 1):
    new = shared_before[ranks] <= depth
    new[np.flatnonzero(np.diff(parent, prepend=-1))] = True  # ranks between may have left earlier
    heads = np.flatnonzero(new)
    tails = np.append(heads[1:], len(ranks)) - 1
    tok.append(flat[begin[ranks[heads]] + depth])
    lo.append(places[ranks[heads]])
    hi.append(ends[ranks[tails]])
    fans.append(np.bincount(parent[heads], minlength=parents).astype(np.int32))
    node, parents = np.cumsum(new, dtype=np.int32) - 1, len(heads)
    several = (tails > heads)[node]
    ranks, parent, depth = ranks[several], node[several], depth + 1
  total = sum(map(len, tok))
  first = np.ones(total + 1, np.int32)
  fan = np.concatenate([*fans, np.zeros(total - sum(map(len, fans)), np.int32)])
  first[1:] += np.cumsum(fan, dtype=np.int32)
  return {'tok': np.concatenate(tok), 'first': first, 'lo': np.concatenate(lo),
          'hi': np.concatenate(hi)}
