"""The scope-masked loss: inside a title the softmax is over what may come there (reclm.md 3.3).

Positions carry the trie node that the title has reached: a number of `Scope`, FREE outside
titles, FORCED where one token alone may come. No mask of the vocabulary's size is ever made.
"""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

FREE, FORCED = -1, -2

KINDS = ('none', 'all', 'branches')


@struct.dataclass
class Scope:
  """The children of every node. begin, count: (M,) int32 into tok (E,) int32. root: (V,) bool, what
  may begin a title. width: children of the widest node below the root."""
  begin: jax.Array
  count: jax.Array
  tok: jax.Array
  root: jax.Array
  width: int = struct.field(pytree_node=False)


def scope_of(first, tok, vocab):
  """The Scope of a trie's arrays: the children of node u are first[u] .. first[u + 1] - 1."""
  first = np.asarray(first, np.int64)
  count = np.diff(first)
  root = np.zeros(vocab, bool)
  root[tok[first[0]:first[1]]] = True
  return Scope(jnp.asarray(first[:-1], jnp.int32), jnp.asarray(count, jnp.int32),
               jnp.asarray(tok, jnp.int32), jnp.asarray(root),
               int(count[1:].max(initial=1)) or 1)


def title_nodes(first, tok, rows):
  """The node before each token of a title's row, which ends with the end-of-item token.

  rows: list of token lists. -> list of (T,) int32: every token is marked, FORCED where no other
  may come; `narrowed` says which marks a loss uses
  """
  return [_nodes_of(first, tok, row) for row in rows]


def _nodes_of(first, tok, row):
  out, node = np.full(len(row), FORCED, np.int32), 0
  for at, token in enumerate(row):
    a, b = first[node], first[node + 1]
    if a == b:  # one title is left: no children are stored
      break
    out[at] = node if b - a > 1 else FORCED
    node = a + int(np.searchsorted(tok[a:b], token))
  return out


def narrowed(nodes, ends, kind='all', scope_end=False):
  """The marks where the softmax is over what may come there (reclm.md 3.3).

  nodes: (M,) int32 of `title_nodes`. ends: (M,) bool, end-of-item tokens. kind: 'all' positions of
  titles, 'branches', those with a choice alone, or 'none'. scope_end: whether end tokens count.
  -> (M,) int32, FREE elsewhere
  """
  off = jnp.zeros_like(ends) if scope_end else ends
  if kind == 'none':
    off = jnp.ones_like(ends)
  elif kind == 'branches':
    off = off | (nodes == FORCED)
  return jnp.where(off, FREE, nodes)


def token_nll(hidden, head, targets, nodes, scope, gamma=0.0, focus='title',
              chunk_bytes=1 << 28, free=0.0):
  """Negative log-likelihood of each target, inside titles among the children of its node.

  hidden: (M, D). head: (D, V). targets, nodes: (M,) int32. gamma: above 0 multiplies by (1 - p) to
  its power, at positions in titles or, with focus 'all', everywhere. free: weight of the same over
  the whole vocabulary, beside, at positions in titles. -> (M,) float32
  """
  rows, vocab = hidden.shape[0], head.shape[1]
  chunks = max(1, math.ceil(rows * vocab * 4 / chunk_bytes))
  size = math.ceil(rows / chunks)
  pad = size * chunks - rows
  parts = [jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, size, *x.shape[1:])
           for x in (hidden, targets, nodes)]
  one = functools.partial(_nll, head, scope, free)
  if chunks == 1:
    nll = one([x[0] for x in parts])
  else:
    nll = jax.lax.map(jax.checkpoint(one), parts).reshape(-1)[:rows]
  if gamma:
    weight = (1 - jnp.exp(-nll)) ** gamma
    nll = nll * (weight if focus == 'all' else jnp.where(nodes == FREE, 1, weight))
  return nll


def _nll(head, scope, free, part):
  h, target, node = part
  logits = jnp.dot(h, head.astype(h.dtype), preferred_element_type=jnp.float32)
  picked = jnp.take_along_axis(logits, target[:, None], -1)[:, 0]
  at = jnp.arange(scope.width)
  inner = node > 0
  here = jnp.where(inner, node, 0)
  ids = scope.tok[jnp.minimum(scope.begin[here][:, None] + at, len(scope.tok) - 1)]
  open_ = (at < scope.count[here][:, None]) | ~inner[:, None]  # rows outside stay finite
  below = jax.nn.logsumexp(jnp.where(open_, jnp.take_along_axis(logits, ids, -1), -jnp.inf), -1)
  first = jax.nn.logsumexp(jnp.where(scope.root, logits, -jnp.inf), -1)
  every = jax.nn.logsumexp(logits, -1)
  total = jnp.where(inner, below, jnp.where(node == 0, first, every))
  within = jnp.where(node == FORCED, 0, total - picked)
  if not free:
    return within
  return jnp.where(node == FREE, within, (within + free * (every - picked)) / (1 + free))
