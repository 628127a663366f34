"""Free text into which fetched titles are pasted (RecLM-ret).

In text mode every token may come but a stray end-of-item. Where the start-of-item token comes, the
state that gave it is projected into the items' space, the best item that the reply has not used is
taken, and its title and the end token follow as the only tokens that may come. For greedy search
and sampling.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.decoding.constraints import DEAD, sanitize_log_probs
from recjax.decoding.lm_head import log_sum_exp
from recjax.errors import DataError

NONE = np.int32(-1)


class Reply(NamedTuple):
  """Where each row stands. item: (B, K) int32, whose title is being pasted, NONE in text; depth:
  tokens of it that are there; used: (B, K, U) int32, padded with NONE; count: (B, K) how many."""
  item: jax.Array
  depth: jax.Array
  used: jax.Array
  count: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['titles', 'lengths', 'items', 'project', 'closed'],
    meta_fields=['query', 'soi', 'end', 'eos_ids', 'new_tokens', 'max_items', 'pad_id', 'least'])
@dataclasses.dataclass(frozen=True)
class RetrievalConstraint:
  """The constraint; `fetch` makes it.

  titles: (N, T) int32 with the end token, padded. lengths: (N,). items: (N, E). closed: (B, N)
  bool, or None. query: (project, states (..., D)) -> (..., E).
  """
  titles: jax.Array
  lengths: jax.Array
  items: jax.Array
  project: object
  closed: jax.Array | None
  query: Callable
  soi: int
  end: int
  eos_ids: tuple
  new_tokens: int
  max_items: int
  pad_id: int
  least: int

  def start(self, batch):
    shape = (batch, 1)
    zero = jnp.zeros(shape, jnp.int32)
    return Reply(zero + NONE, zero, jnp.full((*shape, self.max_items), NONE), zero)

  def expand(self, head, state, t, most, choose):
    del most
    logits = head.full()
    vocab = logits.shape[-1]
    token = jnp.arange(vocab)
    inside = (state.item >= 0)[..., None]
    banned = np.isin(np.arange(vocab), [self.end] + [self.pad_id] * (
        self.pad_id not in self.eos_ids))
    early = (state.count < self.least)[..., None] & jnp.isin(token, jnp.asarray(self.eos_ids))
    open_ = self._may_open(state, t)[..., None]
    text = ~banned & ~(early & open_) & ((token != self.soi) | open_)
    allowed = jnp.where(inside, token == self._next(state)[..., None], text)
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    values = jnp.where(allowed, sanitize_log_probs(logits - log_sum_exp(logits)), DEAD)
    ids = jnp.broadcast_to(token, values.shape)
    chosen, item, logp = choose(values, ids, jnp.broadcast_to(state.item[..., None], values.shape))
    opened = (state.item < 0) & (chosen == self.soi)
    found = lax.cond(opened.any(), lambda: self._best(head.state, state, t),
                     lambda: jnp.full(item.shape, NONE))
    return chosen, jnp.where(opened, found, item), logp

  def forced(self, state, t):
    """The one token that may come, inside titles. -> token, item, whether; each (B, K)"""
    del t
    return self._next(state), state.item, state.item >= 0

  def _next(self, state):
    """The token that a title goes on with. -> (B, K)"""
    row = jnp.maximum(state.item, 0)
    return self.titles[row, jnp.minimum(state.depth, self.lengths[row] - 1)]

  def _free(self, state, t):
    """Items that a row may still paste: not used, not closed, short enough. -> (B, K, N)"""
    rows = jnp.arange(len(self.items))
    used = (state.used[..., None] == rows).any(-2)
    left = jnp.broadcast_to(self.new_tokens - t - 1, state.item.shape)[..., None]
    free = ~used & (self.lengths <= left)
    return free if self.closed is None else free & ~self.closed[:, None]

  def _may_open(self, state, t):
    return (state.count < self.max_items) & self._free(state, t).any(-1)

  def _best(self, states, state, t):
    scores = jnp.einsum('bke,ne->bkn', self.query(self.project, states.astype(jnp.float32)),
                        self.items, precision=lax.Precision.HIGHEST)
    return jnp.argmax(jnp.where(self._free(state, t), scores, -jnp.inf), -1).astype(jnp.int32)

  def follow(self, state, beam, token, node):
    del beam
    opened = (state.item < 0) & (token == self.soi)
    depth = jnp.where(state.item >= 0, state.depth + 1, 0)
    over = (state.item >= 0) & (depth >= self.lengths[jnp.maximum(state.item, 0)])
    new = over[..., None] & (jnp.arange(state.used.shape[-1]) == state.count[..., None])
    used = jnp.where(new, state.item[..., None], state.used)
    item = jnp.where(opened, node, jnp.where(over, NONE, state.item))
    return Reply(item, depth, used, state.count + over)

  def ends(self, state, token, t):
    del t
    return jnp.isin(token, jnp.asarray(self.eos_ids, jnp.int32)) & (state.item < 0)

  def pick(self, requests):
    closed = None if self.closed is None else self.closed[requests]
    return dataclasses.replace(self, closed=closed)


def build_retrieval_constraint(
  rows,
  items,
  project,
  query,
  soi,
  end,
  eos_ids,
  new_tokens,
  max_items=32,
  closed=None,
  pad_id=0,
  least=0,
):
  """The constraint of titles `rows` (token lists without the end token) with vectors items (N, E).

  query: (project, states) -> vectors; a function of module level, as it decides the program.
  closed: (B, N) bool, items that requests may not have. least: items before the reply may end.
  Raises DataError where a title is empty or their number differs. -> Fetch
  """
  if len(rows) != len(items) or not len(rows):
    raise DataError(f'{len(rows)} titles and {len(items)} item vectors; give one for each, and '
                    'at least one')
  lengths = np.array([len(r) + 1 for r in rows], np.int32)
  if lengths.min() < 2:
    raise DataError(f'the title of item {int(lengths.argmin())} has no tokens')
  titles = np.full((len(rows), lengths.max()), end, np.int32)
  for line, row in zip(titles, rows):
    line[: len(row)] = row
  return RetrievalConstraint(
    jnp.asarray(titles),
    jnp.asarray(lengths),
    jnp.asarray(items, jnp.float32),
    project,
    None if closed is None else jnp.asarray(closed),
    query,
    int(soi),
    int(end),
    tuple(eos_ids),
    new_tokens,
    max_items,
    int(pad_id),
    least,
  )


def spelling(rows):
  """{title tokens: item, 0-based}, the first of those that share a title."""
  return {tuple(map(int, r)): i for i, r in reversed(list(enumerate(rows)))}


def parse(known, tokens, soi, end):
  """The items of a reply by their title tokens, in order, and whether one is left open.

  known: as from `spelling`. -> [item, 0-based], bool. Raises DataError for an unknown title.
  """
  items, inside = [], None
  for token in map(int, tokens):
    if inside is None:
      inside = [] if token == soi else None
    elif token == end:
      if tuple(inside) not in known:
        raise DataError(f'tokens {inside} spell no title of the catalogue')
      items.append(known[tuple(inside)])
      inside = None
    else:
      inside.append(token)
  return items, inside is not None
