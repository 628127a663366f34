"""Free text with items inside: between control tokens only catalog titles, none twice (RecLM-cgen).

In text every token may come but a stray end-of-item; the start-of-item token opens an item, where
only the children of a trie node may come; the title's end token closes it and uses the item up for
the rest of the reply. An exhausted branch closes early, so no reply can get stuck. Liao et al.,
arXiv 2505.03336. Shape letters as in `lm_head`.
"""
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from recjax.decoding import device_trie
from recjax.decoding.constraints import DEAD, finite_logits, sanitize_log_probs
from recjax.decoding.device_trie import DeviceTrie
from recjax.decoding.item_filter import ItemFilter
from recjax.decoding.lm_head import LMHead, log_sum_exp
from recjax.decoding.trie import Trie
from recjax.errors import DataError
from recjax.retrieval.top_k import top_k

SHORTEST = 16  # so many titles below a node are known by their length
SHARED = 8     # of so many items with one title each has a turn


class SpanState(NamedTuple):
  """Where each row stands. inside: in an item. node, depth: where in it. used: places used up, in
  order, padded with `device_trie.PAD`. count: how many."""
  inside: Bool[Array, 'B K']
  node: Int[Array, 'B K']
  depth: Int[Array, 'B K']
  used: Int[Array, 'B K U']
  count: Int[Array, 'B K']


@dataclasses.dataclass(frozen=True)
class SpanSettings:
  """What decides the program of an `ItemSpanConstraint`; hashable.

  soi, eoi: the start-of-item and end-of-item tokens. eos_ids: tokens that end a reply. new_tokens:
  tokens of a reply at most. max_items: items of a reply. pad_id: a token that may not come in text,
  or None. repeat: whether an item may come twice.
  """
  soi: int
  eoi: int
  eos_ids: tuple[int, ...]
  new_tokens: int
  max_items: int = 32
  pad_id: int | None = None
  repeat: bool = False


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=['trie', 'shortest', 'begin', 'item_filter', 'catalog',
                                'least'],
                   meta_fields=['settings'])
@dataclasses.dataclass(frozen=True)
class ItemSpanConstraint:
  """The constraint; `item_span_constraint` makes it.

  trie: of one or several catalogs. shortest: see `shortest_below`. begin: where the prompts end,
  without the axis K. item_filter: which items each request may have. catalog: of each request.
  least: items of each reply, before which it may not end as long as another may be opened.
  settings: control tokens and numbers of items.
  """
  trie: DeviceTrie
  shortest: Int[Array, 'M S']
  begin: SpanState
  item_filter: ItemFilter
  catalog: Int[Array, ' B']
  least: Int[Array, ' B']
  settings: SpanSettings

  @property
  def longest(self) -> int:
    return self.settings.new_tokens

  @property
  def num_end_tokens(self) -> int:
    return max(1, len(self.settings.eos_ids))

  def start(self, batch: int) -> SpanState:
    del batch
    return jax.tree.map(lambda x: x[:, None], self.begin)

  def candidates(self, head: LMHead, state: SpanState, t: Array | int, limit: int,
                 choose: Callable) -> Any:
    settings, logits = self.settings, head.full()
    vocab = logits.shape[-1]
    child = lax.cond(state.inside.any(), lambda: self._child_by_token(state, t, vocab),
                     lambda: jnp.full(logits.shape, -1, jnp.int32))
    token = np.arange(vocab)
    pad: Any = settings.pad_id
    banned = [settings.eoi] + [pad] * (pad not in (None, *settings.eos_ids))
    may_open = self._may_open(state, t)[..., None]
    too_early = (np.isin(token, settings.eos_ids) & may_open
                 & (state.count < self.least[:, None])[..., None])
    in_text = ~np.isin(token, banned) & ~too_early & ((token != settings.soi) | may_open)
    allowed = jnp.where(state.inside[..., None], child >= 0, in_text)
    logits = finite_logits(logits)
    log_probs = jnp.where(allowed, sanitize_log_probs(logits - log_sum_exp(logits)), DEAD)
    tokens = jnp.broadcast_to(jnp.arange(vocab), log_probs.shape)
    if limit and limit < vocab:
      log_probs, tokens = top_k(log_probs, limit)
      child = jnp.take_along_axis(child, tokens, -1)
    return choose(log_probs, tokens, child)

  def _child_by_token(self, state: SpanState, t: Array | int, vocab: int) -> Int[Array, 'B K V']:
    """The open child by token of rows inside an item, -1 for none."""
    trie, left = self.trie, self._tokens_left(state, t)

    def gathered(width: int) -> Array:
      token, child, exists = device_trie.children(trie, state.node, state.depth, width)
      is_open = exists & self._is_open(state, child, left)
      return device_trie.by_token(jnp.where(is_open, token, vocab), child, vocab)

    def dense() -> Array:
      child = device_trie.dense_children(trie, state.node, state.depth, vocab)
      is_open = (child >= 0) & self._is_open(state, jnp.maximum(child, 0), left)
      return jnp.where(is_open, child, -1)

    widths = [w for w in device_trie.WIDTHS if w <= max(trie.width, trie.root_width)]
    branches = [functools.partial(gathered, w) for w in widths]
    branches += [dense] if len(trie.wide) else []
    most = jnp.where(state.inside, device_trie.fan_out(trie, state.node), 0).max()
    branch = jnp.searchsorted(jnp.asarray(widths), most)
    return lax.switch(jnp.minimum(branch, len(branches) - 1), branches)

  def _tokens_left(self, state: SpanState, t: Array | int) -> Int[Array, 'B K 1']:
    """Tokens that may come after number t, () or (B, K)."""
    return jnp.broadcast_to(self.settings.new_tokens - t - 1, state.node.shape)[..., None]

  def forced_token(self, state: SpanState, t: Array | int
                   ) -> tuple[Int[Array, 'B K'], Int[Array, 'B K'], Bool[Array, 'B K']]:
    """The one token that may come, where rows are inside an item and it is so.

    state: of the rows. t: number of the token. -> token, node, whether. Nodes of more than 4
    children count as a choice.
    """
    few = device_trie.WIDTHS[0]
    token, child, exists = device_trie.children(self.trie, state.node, state.depth, few)
    is_open = exists & self._is_open(state, child, self._tokens_left(state, t))
    single = (is_open.sum(-1) == 1) & (device_trie.fan_out(self.trie, state.node) <= few)
    slot = jnp.argmax(is_open, -1)[..., None]
    token, child = (jnp.take_along_axis(x, slot, -1)[..., 0] for x in (token, child))
    return token, child, state.inside & single

  def _is_open(self, state: SpanState, child: Int[Array, 'B K C'], left: Int[Array, 'B K 1']
               ) -> Bool[Array, 'B K C']:
    """Whether an unused title is left below each child, and time to finish one.

    If n titles below a node are closed, one of the n + 1 shortest is not. Some child of a node
    passes this test if the node does: its children cannot all have as many closed as short ones.
    """
    lo, hi = self.trie.lo[child], self.trie.hi[child]
    num_open = self.item_filter.count_open(lo, hi) - self._count_used(state, lo, hi)
    num_closed = jnp.minimum(hi - lo - num_open, self.shortest.shape[1] - 1)
    length = jnp.take_along_axis(self.shortest[child], num_closed[..., None], -1)[..., 0]
    return (num_open > 0) & (length - state.depth[..., None] - 1 <= left)

  def _count_used(self, state: SpanState, lo: Int[Array, 'B K C'], hi: Int[Array, 'B K C']
                  ) -> Int[Array, 'B K C'] | int:
    """How many places of lo .. hi - 1 the reply has used."""
    if self.settings.repeat:
      return 0
    used = state.used[..., None, :]
    return ((used >= lo[..., None]) & (used < hi[..., None])).sum(-1, dtype=jnp.int32)

  def _may_open(self, state: SpanState, t: Array | int) -> Bool[Array, 'B K']:
    """Whether rows in text may open an item."""
    root = jnp.broadcast_to(self.trie.roots[self.catalog][:, None], state.node.shape)
    fresh = state._replace(depth=jnp.full_like(state.depth, -1))  # counts the opening token
    is_open = self._is_open(fresh, root[..., None], self._tokens_left(state, t))[..., 0]
    return is_open & (state.count < self.settings.max_items)

  def advance(self, state: SpanState, token: Int[Array, 'B K'], node: Int[Array, 'B K']
              ) -> SpanState:
    depth = state.depth + 1
    closes = state.inside & device_trie.complete(self.trie, node, depth)
    place = self._next_place(state, self.trie.lo[node], self.trie.hi[node])
    slot = jnp.arange(state.used.shape[-1])
    is_new = closes[..., None] & (slot == state.count[..., None])
    used = jnp.where(is_new, place[..., None], state.used)
    opens = ~state.inside & (token == self.settings.soi)
    root = self.trie.roots[self.catalog][:, None]
    return SpanState((state.inside & ~closes) | opens,
                     jnp.where(opens, root, jnp.where(state.inside, node, state.node)),
                     jnp.where(opens, 0, depth), used, state.count + closes)

  def _next_place(self, state: SpanState, lo: Int[Array, 'B K'], hi: Int[Array, 'B K']
                  ) -> Int[Array, 'B K']:
    """The first place of a finished title that is still open: several items may share it."""
    place = lo[..., None] + jnp.arange(SHARED)
    used = (state.used[..., None, :] == place[..., None]).any(-1) & (not self.settings.repeat)
    is_open = (place < hi[..., None]) & ~used
    is_open &= self.item_filter.count_open(place, place + 1) > 0
    return jnp.where(is_open.any(-1), lo + jnp.argmax(is_open, -1), lo + SHARED)

  def is_final(self, state: SpanState, token: Int[Array, 'B K'], t: Array | int
               ) -> Bool[Array, 'B K']:
    del t
    return jnp.isin(token, jnp.asarray(self.settings.eos_ids, jnp.int32)) & ~state.inside

  def select_requests(self, requests: Int[Array, ' R']) -> 'ItemSpanConstraint':
    return dataclasses.replace(
        self, begin=jax.tree.map(lambda x: x[requests], self.begin), catalog=self.catalog[requests],
        least=self.least[requests], item_filter=self.item_filter.select_requests(requests))


def item_span_constraint(tries: Trie | Sequence[Trie], trie: DeviceTrie, settings: SpanSettings,
                         batch: int = 1, tails: Sequence | None = None,
                         catalog: Sequence | np.ndarray | None = None,
                         item_filter: ItemFilter | None = None,
                         least: Sequence | np.ndarray | None = None) -> ItemSpanConstraint:
  """The constraint for `batch` requests.

  tries: whose rows end with the end-of-item token; one for each catalog of `trie`, which is the
  same on the device. tails: for each request the tokens of the answer that the prompt already
  holds, so that a prompt may end inside a title and earlier items count as used, also for
  max_items. catalog: the number of each request's. settings: control tokens and numbers of items.
  item_filter: which items each request may have, None for all. least: items of each reply, before
  which it may not end, None for none. Raises DataError where a tail leaves the catalog, and for
  tries that end otherwise.
  """
  tries = [tries] if isinstance(tries, Trie) else list(tries)
  if any(t.end != settings.eoi for t in tries) or settings.soi == settings.eoi:
    raise DataError(f'items in text need titles that end with the end-of-item token {settings.eoi},'
                    f' which is not the start-of-item token {settings.soi}; build tries with end=')
  tails = tails or [()] * batch
  catalog = np.zeros(len(tails), np.int32) if catalog is None else np.asarray(catalog, np.int32)
  first_places = np.cumsum([0, *map(len, tries)])
  states = [resume(tries[c], tail, settings, int(trie.roots[c]), int(first_places[c]))
            for tail, c in zip(tails, catalog)]
  begin = SpanState(*(jnp.asarray(np.stack(x)) for x in zip(*states)))
  limit = min(settings.max_items, SHORTEST)
  idle = np.zeros((1, limit + 1), np.int32)
  shortest = np.concatenate([x for t in tries for x in (shortest_below(t, limit), idle)])
  shortest = np.resize(shortest, (len(trie.tok), limit + 1))  # the end is not read
  return ItemSpanConstraint(trie, jnp.asarray(shortest), begin, item_filter or ItemFilter(),
                            jnp.asarray(catalog), minimum_items(least, len(tails)), settings)


def minimum_items(least: Sequence | np.ndarray | None, batch: int) -> Int[Array, ' B']:
  """The least number of items of each of `batch` replies: an array, so that it does not decide the
  program. least: as given, None for none."""
  return jnp.zeros(batch, jnp.int32) if least is None else jnp.asarray(least, jnp.int32)


def shortest_below(trie: Trie, limit: int) -> Int[np.ndarray, 'M S']:
  """Tokens of the `limit` shortest titles below each node, ascending, and then of the longest.

  trie: on the host.

  Where a node has fewer titles, the longest's fills up.
  """
  lengths = np.diff(trie.start)[trie.item] if not trie.length else np.full(len(trie), trie.length)
  shortest = np.repeat(lengths[trie.lo].astype(np.int32)[:, None], limit + 1, 1)
  branching = np.flatnonzero(trie.hi - trie.lo > 1)
  size = (trie.hi - trie.lo)[branching].astype(np.int64)
  start = np.cumsum(size) - size
  place = np.arange(size.sum()) - np.repeat(start - trie.lo[branching], size)
  group = np.repeat(np.arange(len(branching)), size)
  ordered = lengths[place][np.lexsort([lengths[place], group])]
  for rank in range(limit):
    shortest[branching, rank] = ordered[start + np.minimum(rank, size - 1)]
  shortest[branching, limit] = ordered[start + size - 1]
  return shortest


def resume(trie: Trie, tail: Iterable, settings: SpanSettings, root: int = 0, first_place: int = 0
           ) -> SpanState:
  """Where a reply stands after the tokens of `tail`: one row, numpy.

  root, first_place: where the trie's nodes and places begin on the device. trie: of the catalog.
  settings: as of `item_span_constraint`. Raises DataError naming the position where the tail leaves
  the catalog, or for too many items.
  """
  used, node, title = [], 0, None
  for position, token in enumerate(tail):
    if title is None:
      if token == trie.end:
        raise DataError(f'token {token} at position {position} ends an item that was not opened')
      title = [] if token == settings.soi else None
      continue
    try:
      node = trie.walk([*title, token])
    except DataError as error:
      raise DataError(f'position {position} of the answer so far: {error}') from error
    title.append(token)
    if token == trie.end:
      places = [p for p in range(trie.lo[node], trie.hi[node]) if p not in used]
      used.append(places[0] if places else trie.lo[node])
      title = None
  if len(used) > settings.max_items:
    raise DataError(f'the answer so far holds {len(used)} items, max_items is {settings.max_items}')
  places = np.full(settings.max_items, device_trie.PAD, np.int32)
  places[:len(used)] = np.array(used, np.int32) + np.int32(first_place)
  state: Any = (np.bool_(title is not None), np.int32(root + (node if title else 0)),
                np.int32(len(title or [])), places, np.int32(len(used)))
  return SpanState(*state)


def parse(trie: Trie, tokens: Iterable, soi: int) -> tuple[list[int], bool]:
  """The items of a reply, 1..N, in order, and whether one is left open. trie: of the catalog.
  tokens: of the reply. soi: the start-of-item token."""
  items, title, times_seen = [], None, {}
  for token in map(int, tokens):
    if title is None:
      title = [] if token == soi else None
      continue
    title.append(token)
    if token == trie.end:
      node = trie.walk(title)
      turn = times_seen.get(node, 0)
      items.append(int(trie.item[min(trie.lo[node] + turn, trie.hi[node] - 1)]) + 1)
      times_seen[node] = turn + 1
      title = None
  return items, title is not None
