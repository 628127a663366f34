"""Free text with items inside: between control tokens only catalogue titles, none twice (RecLM).

In text mode every token may come but a stray end-of-item; the start-of-item token opens item mode,
where only the children of a trie node may come; the title's end token closes it and uses the item
up for the rest of the reply. An exhausted branch closes early, so no reply can get stuck.
"""
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.decoding import device_trie as trees
from recjax.decoding import item_filter
from recjax.decoding.constraints import DEAD, sanitize_log_probs
from recjax.decoding.lm_head import log_sum_exp
from recjax.errors import DataError
from recjax.retrieval.top_k import top_k


class Reply(NamedTuple):
  """Where each row stands. node, depth: in the open item; used: (B, K, U) int32 places used up,
  in order, padded with forest.PAD; count: (B, K) how many."""
  inside: jax.Array
  node: jax.Array
  depth: jax.Array
  used: jax.Array
  count: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['forest', 'shortest', 'begin', 'limits', 'root'],
    meta_fields=['soi', 'eos_ids', 'new_tokens', 'max_items', 'banned', 'repeat', 'least'])
@dataclasses.dataclass(frozen=True)
class ItemSpanConstraint:
  """The constraint; `item_span_constraint` makes it.

  shortest: (M, S + 1) int32, see `shortest_below`. begin: Reply (B, ...), where
  the prompts end. banned: tokens that may not come in text. repeat: whether items may come twice.
  least: items before the reply may end, as long as another may be opened.
  """
  forest: trees.DeviceTrie
  shortest: jax.Array
  begin: Reply
  limits: item_filter.ItemFilter
  root: jax.Array
  soi: int
  eos_ids: tuple
  new_tokens: int
  max_items: int
  banned: tuple
  repeat: bool
  least: int = 0

  def start(self, batch):
    del batch
    return jax.tree.map(lambda x: x[:, None], self.begin)

  def expand(self, head, state, t, most, choose):
    logits = head.full()
    vocab = logits.shape[-1]
    child = lax.cond(state.inside.any(), lambda: self._children(state, t, vocab),
                     lambda: jnp.full(logits.shape, -1, jnp.int32))
    inside = state.inside[..., None]
    token = np.arange(vocab)
    ends = np.isin(token, (*self.banned, self._end()))
    opens = self._may_open(state, t)[..., None]
    early = np.isin(token, self.eos_ids) & opens & (state.count < self.least)[..., None]
    allowed = jnp.where(inside, child >= 0, ~ends & ~early & ((token != self.soi) | opens))
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    values = jnp.where(allowed, sanitize_log_probs(logits - log_sum_exp(logits)), DEAD)
    ids = jnp.broadcast_to(jnp.arange(vocab), values.shape)
    if most and most < vocab:
      values, ids = top_k(values, most)
      child = jnp.take_along_axis(child, ids, -1)
    return choose(values, ids, child)

  def _end(self):
    return self.banned[0]

  def _children(self, state, t, vocab):
    """The child by token of rows in item mode. -> (B, K, V) int32, -1 for none"""
    left = self._left(state, t)

    def sparse(width):
      token, child, exists = trees.children(self.forest, state.node, state.depth, width)
      token = jnp.where(exists & self._open(state, child, left), token, vocab)
      grid = jnp.indices(token.shape, sparse=True)
      out = jnp.full((*state.node.shape, vocab), -1, jnp.int32)
      return out.at[grid[0], grid[1], token].set(child, mode='drop')

    def dense():
      child = trees.dense_children(self.forest, state.node, state.depth, vocab)
      good = (child >= 0) & self._open(state, jnp.maximum(child, 0), left)
      return jnp.where(good, child, -1)

    widest = max(self.forest.width, self.forest.root_width)
    widths = [w for w in trees.WIDTHS if w <= widest]
    branches = [functools.partial(sparse, w) for w in widths]
    branches += [dense] if len(self.forest.wide) else []
    counts = jnp.where(state.inside, trees.fan_out(self.forest, state.node), 0).max()
    need = jnp.searchsorted(jnp.asarray(widths), counts)
    return lax.switch(jnp.minimum(need, len(branches) - 1), branches)

  def _left(self, state, t):
    """Tokens that may come after number t (() or (B, K)). -> (B, K, 1)"""
    return jnp.broadcast_to(self.new_tokens - t - 1, state.node.shape)[..., None]

  def forced(self, state, t):
    """The one token that may come, where rows are inside an item and it is so.

    -> token, node, whether; each (B, K). Nodes of more than 4 children count as a choice.
    """
    few = trees.WIDTHS[0]
    token, child, exists = trees.children(self.forest, state.node, state.depth, few)
    exists &= self._open(state, child, self._left(state, t))
    one = state.inside & (exists.sum(-1) == 1) & (trees.fan_out(self.forest, state.node) <= few)
    pick = lambda x: jnp.take_along_axis(x, jnp.argmax(exists, -1)[..., None], -1)[..., 0]  # noqa: E731
    return pick(token), pick(child), one

  def _open(self, state, child, left):
    """Whether an unused title is left below each child, and time to finish one.

    If n titles below a node are closed, one of the n + 1 shortest is not. Some child of a node
    passes this test if the node does: its children cannot all have as many closed as short ones.
    """
    lo, hi = self.forest.lo[child], self.forest.hi[child]
    free = item_filter.open_places(self.limits, lo, hi) - self._used(state, lo, hi)
    closed = jnp.minimum(hi - lo - free, self.shortest.shape[1] - 1)
    length = jnp.take_along_axis(self.shortest[child], closed[..., None], -1)[..., 0]
    return (free > 0) & (length - state.depth[..., None] - 1 <= left)

  def _used(self, state, lo, hi):
    """How many places of lo .. hi - 1 the reply has used. lo, hi: (B, K, C)"""
    if self.repeat:
      return 0
    used = state.used[..., None, :]
    return ((used >= lo[..., None]) & (used < hi[..., None])).sum(-1, dtype=jnp.int32)

  def _may_open(self, state, t):
    """Whether rows in text may open an item. -> (B, K)"""
    root = self.forest.roots[self.root][:, None]
    root = jnp.broadcast_to(root, state.node.shape)
    fresh = state._replace(depth=jnp.full_like(state.depth, -1))  # counts the opening token
    good = self._open(fresh, root[..., None], self._left(state, t))[..., 0]
    return good & (state.count < self.max_items)

  def follow(self, state, beam, token, node):
    del beam
    depth = state.depth + 1
    over = state.inside & trees.complete(self.forest, node, depth)
    lo = self.forest.lo[node]
    hi = self.forest.hi[node]
    spot = jnp.arange(state.used.shape[-1])
    place = self._next_place(state, lo, hi)
    new = over[..., None] & (spot == state.count[..., None])
    used = jnp.where(new, place[..., None], state.used)
    opened = ~state.inside & (token == self.soi)
    root = self.forest.roots[self.root][:, None]
    return Reply((state.inside & ~over) | opened,
                 jnp.where(opened, root, jnp.where(state.inside, node, state.node)),
                 jnp.where(opened, 0, depth), used, state.count + over)

  def _next_place(self, state, lo, hi):
    """The first place of a finished title that is still open: several items may share it."""
    most = 8
    at = lo[..., None] + jnp.arange(most)
    taken = (state.used[..., None, :] == at[..., None]).any(-1) & (not self.repeat)
    good = (at < hi[..., None]) & ~taken & (item_filter.open_places(self.limits, at, at + 1) > 0)
    return jnp.where(good.any(-1), lo + jnp.argmax(good, -1), lo + most)

  def ends(self, state, token, t):
    del t
    return jnp.isin(token, jnp.asarray(self.eos_ids, jnp.int32)) & ~state.inside

  def pick(self, requests):
    return dataclasses.replace(
        self, begin=jax.tree.map(lambda x: x[requests], self.begin), root=self.root[requests],
        limits=item_filter.select_requests(self.limits, requests))


def item_span_constraint(
  trie,
  forest,
  soi,
  eos_ids,
  new_tokens,
  batch=1,
  max_items=32,
  tails=None,
  root=None,
  limits=None,
  pad_id=None,
  repeat=False,
  least=0,
):
  """The constraint for `batch` requests.

  trie: its rows end with the end-of-item token; or a list of tries, those of `forest` in order,
  and root: (B,), the catalogue of each request. soi: the start-of-item token. tails: for each
  request the tokens of the answer that the prompt already holds, so that a prompt may end inside a
  title and earlier items count as used. max_items: per reply, those of the tail included. least:
  see `ItemSpanConstraint`. Raises
  DataError where a tail leaves the catalogue. -> ItemMode
  """
  tries = trie if isinstance(trie, (list, tuple)) else [trie]
  end = tries[0].end
  if any(t.end != end for t in tries) or end < 0 or soi == end:
    raise DataError('item mode needs titles that end with an end-of-item token, one for all '
                    f'catalogues and not the start-of-item token {soi}; build tries with end=')
  tails = tails or [()] * batch
  root = np.zeros(len(tails), np.int32) if root is None else np.asarray(root, np.int32)
  sizes = np.cumsum([0, *map(len, tries)])
  states = [resume(tries[r], tail, soi, max_items, int(forest.roots[r]), sizes[r])
            for tail, r in zip(tails, root)]
  begin = Reply(*(jnp.asarray(np.stack(x)) for x in zip(*states)))
  most = min(max_items, 16)
  idle = np.zeros((1, most + 1), np.int32)
  shortest = np.concatenate([x for t in tries for x in (shortest_below(t, most), idle)])
  shortest = np.resize(shortest, (len(forest.tok), most + 1))  # the end is not read
  banned = (end,) if pad_id is None or pad_id in eos_ids else (end, pad_id)
  return ItemSpanConstraint(
    forest,
    jnp.asarray(shortest),
    begin,
    limits or item_filter.ItemFilter(),
    jnp.asarray(root),
    int(soi),
    tuple(eos_ids),
    new_tokens,
    max_items,
    banned,
    repeat,
    least,
  )


def shortest_below(trie, most):
  """Tokens of the `most` shortest titles below each node, ascending, and of the longest.

  -> (M, most + 1) int32; where a node has fewer titles, the longest's fills up
  """
  lengths = np.diff(trie.start)[trie.item] if not trie.length else np.full(len(trie), trie.length)
  out = np.repeat(lengths[trie.lo].astype(np.int32)[:, None], most + 1, 1)
  many = np.flatnonzero(trie.hi - trie.lo > 1)
  size = (trie.hi - trie.lo)[many].astype(np.int64)
  start = np.cumsum(size) - size
  place = np.arange(size.sum()) - np.repeat(start - trie.lo[many], size)
  rows = np.repeat(np.arange(len(many)), size)
  ordered = lengths[place][np.lexsort([lengths[place], rows])]
  for rank in range(most):
    out[many, rank] = ordered[start + np.minimum(rank, size - 1)]
  out[many, most] = ordered[start + size - 1]
  return out


def resume(trie, tail, soi, max_items, root=0, first_place=0):
  """Where a reply stands after the tokens of `tail`. -> the fields of one Reply, numpy

  root, first_place: where the trie's nodes and places begin in the forest.
  """
  used, at, inside = [], 0, None
  for position, token in enumerate(tail):
    if inside is None:
      if token == trie.end:
        raise DataError(f'token {token} at position {position} ends an item that was not opened')
      inside = [] if token == soi else None
      continue
    try:
      node = trie.walk([*inside, token])
    except DataError as error:
      raise DataError(f'position {position} of the answer so far: {error}') from error
    inside.append(token)
    if token == trie.end:
      places = [p for p in range(trie.lo[node], trie.hi[node]) if p not in used]
      used.append(places[0] if places else trie.lo[node])
      inside = None
    at = node
  if len(used) > max_items:
    raise DataError(f'the answer so far holds {len(used)} items, max_items is {max_items}')
  slots = np.full(max_items, trees.PAD, np.int32)
  slots[:len(used)] = np.array(used, np.int32) + np.int32(first_place)
  return (np.bool_(inside is not None), np.int32(root + (at if inside else 0)),
          np.int32(len(inside or [])), slots, np.int32(len(used)))


def parse(trie, tokens, soi):
  """The items of a reply, in order, and whether one is left open. -> [item], bool"""
  items, inside, seen = [], None, {}
  for token in map(int, tokens):
    if inside is None:
      inside = [] if token == soi else None
      continue
    inside.append(token)
    if token == trie.end:
      node = trie.walk(inside)
      turn = seen.get(node, 0)
      items.append(int(trie.item[min(trie.lo[node] + turn, trie.hi[node] - 1)]))
      seen[node] = turn + 1
      inside = None
  return items, inside is not None
