"""The loss of RecLM-cgen (arXiv 2505.03336): within a title, a softmax over what may come there.

Positions carry the trie node that the title has reached: a number of `Scope`, FREE outside
titles, FORCED where one token alone may come. No mask of the vocabulary's size is ever made.
M tokens, D width, V vocabulary, U nodes, E children of all nodes.
"""
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Int32, Integer

from recjax.training.losses import lm

FREE, FORCED = -1, -2

KINDS = ('none', 'all', 'branches')


@struct.dataclass
class Scope:
  """The children of every node: those of node u are tok[begin[u] : begin[u] + count[u]].

  root: which tokens may begin a title. width: children of the widest node below the root.
  """
  begin: Int32[Array, ' U']
  count: Int32[Array, ' U']
  tok: Int32[Array, ' E']
  root: Bool[Array, ' V']
  width: int = struct.field(pytree_node=False)


def scope_of(first: Integer[np.ndarray, ' U1'], tok: Integer[np.ndarray, ' E'],
             vocab: int) -> Scope:
  """The Scope of a trie's arrays: the children of node u are first[u] .. first[u + 1] - 1. first,
  tok: those arrays. vocab: V."""
  first = np.asarray(first, np.int64)
  count = np.diff(first)
  root = np.zeros(vocab, bool)
  root[tok[first[0]:first[1]]] = True
  return Scope(jnp.asarray(first[:-1], jnp.int32), jnp.asarray(count, jnp.int32),
               jnp.asarray(tok, jnp.int32), jnp.asarray(root),
               int(count[1:].max(initial=1)) or 1)


def title_nodes(first: Integer[np.ndarray, ' U1'], tok: Integer[np.ndarray, ' E'],
                titles: Sequence[Sequence[int]]) -> list[Int32[np.ndarray, ' _']]:
  """The node before each token of each title, which ends with the end-of-item token.

  first, tok: of the trie, as of `scope_of`. Every token is marked, FORCED where no other may come;
  `narrowed` says which marks a loss uses. titles: token lists.
  """
  return [_nodes_of(first, tok, title) for title in titles]


def _nodes_of(first, tok, title):
  nodes, node = np.full(len(title), FORCED, np.int32), 0
  for position, token in enumerate(title):
    start, stop = first[node], first[node + 1]
    if start == stop:  # one title is left: no children are stored
      break
    nodes[position] = node if stop - start > 1 else FORCED
    node = start + int(np.searchsorted(tok[start:stop], token))
  return nodes


def narrowed(nodes: Int[Array | np.ndarray, ' M'], ends: Bool[Array | np.ndarray, ' M'],
             kind: str = 'all', scope_end: bool = False) -> Int[Array, ' M']:
  """The marks where the softmax is over what may come there, FREE elsewhere.

  nodes: of `title_nodes`. ends: end-of-item tokens. kind: 'all' positions of titles, 'branches',
  those with a choice alone, or 'none'. scope_end: whether end tokens count.
  """
  off = jnp.zeros_like(ends) if scope_end else ends
  if kind == 'none':
    off = jnp.ones_like(ends)
  elif kind == 'branches':
    off = off | (nodes == FORCED)
  return jnp.where(off, FREE, nodes)


def token_nll(hidden: Float[Array, 'M D'], head: Float[Array, 'D V'], targets: Int[Array, ' M'],
              nodes: Int[Array, ' M'], scope: Scope, gamma: float = 0.0, focus: str = 'title',
              chunk_bytes: int = 1 << 28, free: float = 0.0) -> Float[Array, ' M']:
  """Negative log-likelihood of each target, inside titles among the children of its node.

  gamma: above 0 multiplies by (1 - p) to its power, at positions in titles or, with focus 'all',
  everywhere. free: weight of the same over the whole vocabulary, beside, at positions in titles.
  chunk_bytes: of logits at a time. hidden, head, targets: as of `lm.token_nll`. nodes: of each
  target, FREE outside titles. scope: of the trie. focus: 'title' or 'all'.
  """
  def token_losses(arrays: Sequence) -> Array:
    return _scoped_nll(head, scope, free, *arrays)
  chunks = math.ceil(hidden.shape[0] * head.shape[1] * 4 / chunk_bytes)
  nll = lm.map_rows(token_losses, (hidden, targets, nodes), chunks)
  if gamma:
    weight = (1 - jnp.exp(-nll)) ** gamma
    nll = nll * (weight if focus == 'all' else jnp.where(nodes == FREE, 1, weight))
  return nll


def _scoped_nll(head, scope, free, states, targets, nodes):
  logits = lm.head_logits(states, head.astype(states.dtype))
  target_logits = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
  place = jnp.arange(scope.width)
  is_inner = nodes > 0
  inner = jnp.where(is_inner, nodes, 0)
  children = scope.tok[jnp.minimum(scope.begin[inner][:, None] + place, len(scope.tok) - 1)]
  # Rows outside of titles stay finite.
  is_child = (place < scope.count[inner][:, None]) | ~is_inner[:, None]
  child_logits = jnp.where(is_child, jnp.take_along_axis(logits, children, -1), -jnp.inf)
  among_children = jax.nn.logsumexp(child_logits, -1)
  at_root = jax.nn.logsumexp(jnp.where(scope.root, logits, -jnp.inf), -1)
  whole = jax.nn.logsumexp(logits, -1)
  total = jnp.where(is_inner, among_children, jnp.where(nodes == 0, at_root, whole))
  within = jnp.where(nodes == FORCED, 0, total - target_logits)
  if not free:
    return within
  return jnp.where(nodes == FREE, within,
                   (within + free * (whole - target_logits)) / (1 + free))
