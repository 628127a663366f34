"""Tries on the device: what may follow a node, under which limits, as gathers on arrays.

Array sizes are rounded up, so another catalogue of about the same size is the same program. All
of it works on places: the order of the sorted titles in which every node is an interval.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WIDTHS = (4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['tok', 'first', 'lo', 'hi', 'item', 'start', 'rows', 'offset', 'roots', 'dense',
                 'wide'],
    meta_fields=['root_width', 'width', 'longest', 'length'])
@dataclasses.dataclass(frozen=True)
class DeviceTrie:
  """One or several tries as one set of arrays; `plant` and `semantic_id_trie` make it.

  The arrays are those of `Trie`, padded. offset: (longest,) int32, added to the tokens of each
  depth. roots: (C,) the root node of each catalogue. dense: (R, V) int32, the child by token, or
  -1, of the nodes `wide` (R,). root_width, width: bounds of the children of roots and other nodes.
  """
  tok: jax.Array
  first: jax.Array
  lo: jax.Array
  hi: jax.Array
  item: jax.Array
  start: jax.Array
  rows: jax.Array
  offset: jax.Array
  roots: jax.Array
  dense: jax.Array
  wide: jax.Array
  root_width: int
  width: int
  longest: int
  length: int


PAD = np.int32(2**31 - 1)


def roomy(size):
  """Rounds up by an eighth at most (small sizes to 256s), so that near sizes share a program."""
  step = 1 << max(8, int(size).bit_length() - 4)
  return -(-size // step) * step


def to_device_trie(tries, level_offsets=None, dense_from=None):
  """Puts tries on the device. -> Forest

  tries: one Trie or a list, one catalogue each. level_offsets: (longest,) added to tokens by depth,
  for codes whose levels have vocabularies of their own. dense_from: nodes with more children get
  a row by token instead of being gathered; default an eighth of the vocabulary, never for codes.
  """
  tries = tries if isinstance(tries, (list, tuple)) else [tries]
  joined, roots = _join(tries)
  longest = max(t.longest for t in tries)
  fan = np.diff(joined['first'])
  vocab = max(t.vocab for t in tries)
  fan[len(fan) - 1:] = 0
  if level_offsets is not None:  # rows by token know no offsets, and levels are narrow
    dense_from = vocab
  dense_from = dense_from or max(WIDTHS[2], vocab // 8)
  wide = np.flatnonzero(fan > dense_from)
  narrow = np.where(fan > dense_from, 0, fan)
  below = np.delete(narrow, roots)
  arrays = {name: _padded(x) for name, x in joined.items()}
  offset = np.zeros(-(-longest // 8) * 8, np.int32)
  if level_offsets is not None:
    offset[:longest] = level_offsets
  length = tries[0].length if len(tries) == 1 else 0
  return DeviceTrie(
      **{k: jnp.asarray(v) for k, v in arrays.items()}, offset=jnp.asarray(offset),
      roots=jnp.asarray(roots, jnp.int32), dense=jnp.asarray(_dense(joined, wide, vocab)),
      wide=jnp.asarray(wide, jnp.int32), root_width=_width(narrow[roots].max()),
      width=_width(below.max(initial=1)), longest=len(offset), length=length)


def _width(children):
  """The compiled width that holds so many children."""
  return next(w for w in WIDTHS if w >= children)


def _join(tries):
  """Lays tries end to end, an idle node between them. -> {name: array}, roots"""
  if len(tries) == 1:
    t = tries[0]
    return {k: getattr(t, k) for k in ('tok', 'first', 'lo', 'hi', 'item', 'start', 'rows')}, [0]
  parts = {k: [] for k in ('tok', 'first', 'lo', 'hi', 'item', 'start', 'rows')}
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


def _padded(x):
  """Repeats the last value up to a roomy size; padding nodes so have no children."""
  if not len(x):
    return x
  return np.concatenate([x, np.full(roomy(len(x)) - len(x), x[-1], x.dtype)])


def _dense(joined, wide, vocab):
  """The child by token of the widest nodes. -> (R, V) int32"""
  out = np.full((len(wide), vocab), -1, np.int32)
  for row, node in enumerate(wide):
    kids = np.arange(joined['first'][node], joined['first'][node + 1])
    out[row, joined['tok'][kids]] = kids
  return out


def semantic_id_trie(codes, code_size, level_offsets=None):
  """The forest of a table of semantic IDs, built on the device: no host, no recompilation.

  codes: (N, L) int32, each below `code_size`; equal rows are one ID of several items.
  -> Forest; jit this with `code_size` static, and rebuild as often as the table changes
  """
  items, levels = codes.shape
  *columns, item = lax.sort([*codes.T, jnp.arange(items, dtype=jnp.int32)], num_keys=levels)
  place = jnp.arange(items, dtype=jnp.int32)
  new = jnp.zeros(items, bool).at[0].set(True)
  size = 1 + items * levels
  tok, lo = jnp.zeros(size, jnp.int32), jnp.zeros(size, jnp.int32)
  hi = jnp.zeros(size, jnp.int32).at[0].set(items)
  first = jnp.full(size + 1, -1, jnp.int32)
  parent, base = jnp.zeros(items, jnp.int32), jnp.int32(1)
  for column in columns:
    new = new | (column != jnp.roll(column, 1))
    node = base + jnp.cumsum(new, dtype=jnp.int32) - 1
    at = jnp.where(new, node, size)
    tok = tok.at[at].set(column, mode='drop')
    lo = lo.at[at].set(place, mode='drop')
    hi = hi.at[node].max(place + 1)
    first = first.at[jnp.where(jnp.roll(parent, 1) != parent, parent, size + 1).at[0].set(parent[0])
                     ].set(node, mode='drop')
    parent, base = node, node[-1] + 1
  first = jnp.where(first < 0, base, first)  # leaves, and what is not used
  root, width = _width(min(items, code_size)), _width(min(items, code_size))
  offset = jnp.zeros(levels, jnp.int32) if level_offsets is None else jnp.asarray(level_offsets)
  return DeviceTrie(tok, first, lo, hi, item, jnp.zeros(0, jnp.int32), codes.reshape(-1),
                offset, jnp.zeros(1, jnp.int32), jnp.zeros((0, 1), jnp.int32),
                jnp.zeros(0, jnp.int32), root, width, levels, levels)


# What may follow. node, depth: int32 of one shape, or depth a scalar.


def fan_out(forest, node):
  """Children of each node; 0 where one title is left and its tokens follow from it."""
  return forest.first[node + 1] - forest.first[node]


def _begin(forest, node):
  item = forest.item[forest.lo[node]]
  return item * forest.length if forest.length else forest.start[item]


def forced_token(forest, node, depth):
  """The token at `depth` of the first title below a node. -> int32"""
  at = _begin(forest, node) + depth
  token = forest.rows.at[at].get(mode='clip').astype(jnp.int32)
  return token + forest.offset.at[depth].get(mode='clip')


def row_length(forest, node):
  """Tokens of the first title below a node, its end included."""
  if forest.length:
    return jnp.full(jnp.shape(node), forest.length, jnp.int32)
  item = forest.item[forest.lo[node]]
  return (forest.start[item + 1] - forest.start[item]).astype(jnp.int32)


def complete(forest, node, depth):
  """Whether a title ends at a node reached with `depth` tokens."""
  return (fan_out(forest, node) == 0) & (row_length(forest, node) <= depth)


def children(forest, node, depth, width):
  """The first `width` children. node: (B, K). -> tokens, nodes, which exist: each (B, K, width)"""
  count = fan_out(forest, node)
  cut = (count == 0)[..., None]
  slot = jnp.arange(width)
  child = jnp.where(cut, node[..., None], forest.first[node][..., None] + slot)
  depth = jnp.broadcast_to(depth, node.shape)
  token = forest.tok.at[child].get(mode='clip').astype(jnp.int32)
  token += forest.offset.at[depth].get(mode='clip')[..., None]
  token = jnp.where(cut, forced_token(forest, node, depth)[..., None], token)
  left = ~cut[..., 0] | (row_length(forest, node) > depth)  # a title that is over has no child
  return token, child, (slot < jnp.maximum(count, 1)[..., None]) & left[..., None]


def dense_children(forest, node, depth, vocab):
  """Children by token, where some node is too wide to gather. -> nodes (B, K, V), -1 for none"""
  token, child, exists = children(forest, node, depth, forest.width)
  at = jnp.where(exists, token, vocab)
  grid = jnp.indices(at.shape, sparse=True)
  out = jnp.full((*node.shape, vocab), -1, jnp.int32)
  out = out.at[grid[0], grid[1], at].set(child, mode='drop')
  row = jnp.searchsorted(forest.wide, node)
  row = jnp.minimum(row, len(forest.wide) - 1)
  by_token = forest.dense[row][..., :vocab]
  by_token = jnp.pad(by_token, [(0, 0), (0, 0), (0, vocab - by_token.shape[-1])],
                     constant_values=-1)
  return jnp.where((forest.wide[row] == node)[..., None], by_token, out)
