"""Tries on the device: what may follow a node, as gathers on arrays.

Array sizes are rounded up, so another catalog of about the same size is the same program. All of
it works on places: the order of the sorted titles, in which every node is an interval. Shape
letters as in `lm_head`.
"""
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Integer

from recjax.decoding.trie import ARRAYS, Trie

WIDTHS = (4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)  # of compiled gathers of children
PAD = np.int32(2**31 - 1)  # above every place


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[*ARRAYS, 'offset', 'roots', 'dense', 'wide'],
    meta_fields=['root_width', 'width', 'longest', 'length'])
@dataclasses.dataclass(frozen=True)
class DeviceTrie:
  """One or several tries as one set of arrays; `to_device_trie` and `semantic_id_trie` make it.

  tok, first, lo, hi, item, start, rows, length: as in `Trie`, padded. offset: added to the tokens
  of each depth. roots: the root node of each catalog. wide: nodes of so many children that they
  have a row by token, ascending; dense: these rows, the child or -1. root_width, width: bounds of
  the children of roots and of other nodes. longest: bound of the tokens of a row.
  """
  tok: Array
  first: Array
  lo: Array
  hi: Array
  item: Array
  start: Array
  rows: Array
  offset: Array
  roots: Array
  dense: Array
  wide: Array
  root_width: int
  width: int
  longest: int
  length: int


def rounded_up(size: int) -> int:
  """Rounds up by an eighth at most (small sizes to 256s), so that near sizes share a program. size:
  at least 1."""
  step = 1 << max(8, int(size).bit_length() - 4)
  return -(-size // step) * step


def to_device_trie(tries: Trie | Sequence[Trie],
                   level_offsets: Sequence | np.ndarray | Array | None = None,
                   dense_from: int | None = None) -> DeviceTrie:
  """Puts tries on the device.

  tries: one, or one for each catalog. level_offsets: added to tokens by depth, for codes whose
  levels have vocabularies of their own. dense_from: nodes with more children get a row by token
  instead of being gathered; by default an eighth of the vocabulary, never for codes.
  """
  tries = [tries] if isinstance(tries, Trie) else list(tries)
  joined, roots = _join(tries)
  longest = max(t.longest for t in tries)
  fan_outs = np.diff(joined['first'])
  vocab = max(t.vocab for t in tries)
  fan_outs[len(fan_outs) - 1:] = 0
  if level_offsets is not None:  # rows by token know no offsets, and levels are narrow
    dense_from = vocab
  dense_from = dense_from or max(WIDTHS[2], vocab // 8)
  wide = np.flatnonzero(fan_outs > dense_from)
  gathered = np.where(fan_outs > dense_from, 0, fan_outs)
  below_roots = np.delete(gathered, roots)
  offset = np.zeros(-(-longest // 8) * 8, np.int32)
  if level_offsets is not None:
    offset[:longest] = level_offsets
  return DeviceTrie(
      **{name: jnp.asarray(_padded(x)) for name, x in joined.items()}, offset=jnp.asarray(offset),
      roots=jnp.asarray(roots, jnp.int32),
      dense=jnp.asarray(_rows_by_token(joined, wide, vocab)), wide=jnp.asarray(wide, jnp.int32),
      root_width=_width(int(gathered[roots].max())),
      width=_width(int(below_roots.max(initial=1))),
      longest=len(offset), length=tries[0].length if len(tries) == 1 else 0)


def _width(num_children: int) -> int:
  """The compiled width that holds so many children."""
  return next(w for w in WIDTHS if w >= num_children)


def _join(tries: list[Trie]) -> tuple[dict[str, np.ndarray], list[int]]:
  """Lays tries end to end, an idle node between them. -> arrays by name, roots"""
  if len(tries) == 1:
    return {name: getattr(tries[0], name) for name in ARRAYS}, [0]
  parts = {name: [] for name in ARRAYS}
  nodes = places = tokens = 0
  roots = []
  for t in tries:
    roots.append(nodes)
    start = t.start if not t.length else np.arange(len(t) + 1) * t.length
    parts['tok'] += [t.tok.astype(np.int32), [0]]
    parts['first'].append(t.first.astype(np.int64) + nodes)  # the sentinel is the idle node's
    parts['lo'] += [t.lo + places, [0]]
    parts['hi'] += [t.hi + places, [0]]
    parts['item'].append(t.item + places)
    parts['start'].append(start[:-1].astype(np.int64) + tokens)
    parts['rows'].append(t.rows.astype(np.int32))
    nodes, places, tokens = nodes + len(t.tok) + 1, places + len(t), tokens + len(t.rows)
  parts['first'].append([nodes])
  parts['start'].append([tokens])
  joined = {k: np.concatenate(v) for k, v in parts.items()}
  return {k: v if k in ('tok', 'rows') else v.astype(np.int32) for k, v in joined.items()}, roots


def _padded(x: np.ndarray) -> np.ndarray:
  """Repeats the last value up to a rounded size; padding nodes so have no children."""
  if not len(x):
    return x
  return np.concatenate([x, np.full(rounded_up(len(x)) - len(x), x[-1], x.dtype)])


def _rows_by_token(joined: dict, wide: np.ndarray, vocab: int) -> np.ndarray:
  """The child by token of the widest nodes, -1 for none. -> (number of them, V) int32"""
  child_by_token = np.full((len(wide), vocab), -1, np.int32)
  for row, node in enumerate(wide):
    children = np.arange(joined['first'][node], joined['first'][node + 1])
    child_by_token[row, joined['tok'][children]] = children
  return child_by_token


def semantic_id_trie(codes: Integer[Array, 'N L'], code_size: int,
                     level_offsets: Int[Array, ' L'] | np.ndarray | None = None) -> DeviceTrie:
  """The trie of a table of semantic IDs, built on the device: no host, no recompilation.

  codes: each below `code_size`; equal rows are one ID of several items. level_offsets: added to
  the codes of each level. Jit this with `code_size` static, and rebuild as often as the table
  changes.
  """
  items, levels = codes.shape
  *columns, item = lax.sort([*codes.T, jnp.arange(items, dtype=jnp.int32)], num_keys=levels)
  place = jnp.arange(items, dtype=jnp.int32)
  begins_node = jnp.zeros(items, bool).at[0].set(True)
  size = 1 + items * levels
  tok, lo = jnp.zeros(size, jnp.int32), jnp.zeros(size, jnp.int32)
  hi = jnp.zeros(size, jnp.int32).at[0].set(items)
  first = jnp.full(size + 1, -1, jnp.int32)
  parent, level_start = jnp.zeros(items, jnp.int32), jnp.int32(1)
  for column in columns:
    begins_node = begins_node | (column != jnp.roll(column, 1))
    node = level_start + jnp.cumsum(begins_node, dtype=jnp.int32) - 1
    new_node = jnp.where(begins_node, node, size)
    tok = tok.at[new_node].set(column, mode='drop')
    lo = lo.at[new_node].set(place, mode='drop')
    hi = hi.at[node].max(place + 1)
    new_parent = jnp.where(jnp.roll(parent, 1) != parent, parent, size + 1).at[0].set(parent[0])
    first = first.at[new_parent].set(node, mode='drop')
    parent, level_start = node, node[-1] + 1
  first = jnp.where(first < 0, level_start, first)  # leaves, and what is not used
  width = _width(min(items, code_size))
  offset = jnp.zeros(levels, jnp.int32) if level_offsets is None else jnp.asarray(level_offsets)
  return DeviceTrie(tok, first, lo, hi, item, jnp.zeros(0, jnp.int32), codes.reshape(-1),
                    offset, jnp.zeros(1, jnp.int32), jnp.zeros((0, 1), jnp.int32),
                    jnp.zeros(0, jnp.int32), width, width, levels, levels)


# What may follow. depth: tokens from the root to the node, of the nodes' shape or a scalar.


def fan_out(trie: DeviceTrie, node: Int[Array, '...']) -> Int[Array, '...']:
  """Children of each node; 0 where one title is left and its tokens follow from it. trie: as of
  `children`."""
  return trie.first[node + 1] - trie.first[node]


def forced_token(trie: DeviceTrie, node: Array, depth: Array | int) -> Int[Array, '...']:
  """The token at `depth` of the first title below a node. trie: as of `children`."""
  item = trie.item[trie.lo[node]]
  row_start = item * trie.length if trie.length else trie.start[item]
  token = trie.rows.at[row_start + depth].get(mode='clip').astype(jnp.int32)
  return token + trie.offset.at[depth].get(mode='clip')


def row_length(trie: DeviceTrie, node: Array) -> Int[Array, '...']:
  """Tokens of the first title below a node, its end included. trie: as of `children`."""
  if trie.length:
    return jnp.full(jnp.shape(node), trie.length, jnp.int32)
  item = trie.item[trie.lo[node]]
  return (trie.start[item + 1] - trie.start[item]).astype(jnp.int32)


def complete(trie: DeviceTrie, node: Array, depth: Array | int) -> Bool[Array, '...']:
  """Whether a title ends at a node reached with `depth` tokens. trie: as of `children`."""
  return (fan_out(trie, node) == 0) & (row_length(trie, node) <= depth)


def children(trie: DeviceTrie, node: Int[Array, 'B K'], depth: Array | int, width: int
             ) -> tuple[Int[Array, 'B K C'], Int[Array, 'B K C'], Bool[Array, 'B K C']]:
  """The first `width` children of each node. trie: on the device. depth: tokens that lead to the
  nodes. -> tokens, child nodes, which exist"""
  count = fan_out(trie, node)
  single_title = (count == 0)[..., None]
  slot = jnp.arange(width)
  child = jnp.where(single_title, node[..., None], trie.first[node][..., None] + slot)
  depth = jnp.broadcast_to(depth, node.shape)
  token = trie.tok.at[child].get(mode='clip').astype(jnp.int32)
  token += trie.offset.at[depth].get(mode='clip')[..., None]
  token = jnp.where(single_title, forced_token(trie, node, depth)[..., None], token)
  goes_on = ~single_title[..., 0] | (row_length(trie, node) > depth)  # an ended title has no child
  return token, child, (slot < jnp.maximum(count, 1)[..., None]) & goes_on[..., None]


def dense_children(trie: DeviceTrie, node: Int[Array, 'B K'], depth: Array | int, vocab: int
                   ) -> Int[Array, 'B K V']:
  """The child by token, -1 for none, where some node is too wide to gather. trie, depth: as of
  `children`. vocab: V."""
  token, child, exists = children(trie, node, depth, trie.width)
  gathered = by_token(jnp.where(exists, token, vocab), child, vocab)
  row = jnp.minimum(jnp.searchsorted(trie.wide, node), len(trie.wide) - 1)
  stored = trie.dense[row][..., :vocab]
  stored = jnp.pad(stored, [(0, 0), (0, 0), (0, vocab - stored.shape[-1])], constant_values=-1)
  return jnp.where((trie.wide[row] == node)[..., None], stored, gathered)


def by_token(token: Int[Array, 'B K C'], child: Int[Array, 'B K C'], vocab: int
             ) -> Int[Array, 'B K V']:
  """Lays children out by their token, -1 for none; a token of `vocab` or above is dropped. child:
  the node of each token. vocab: V."""
  grid = jnp.indices(token.shape, sparse=True)
  child_by_token = jnp.full((*token.shape[:2], vocab), -1, jnp.int32)
  return child_by_token.at[grid[0], grid[1], token].set(child, mode='drop')
