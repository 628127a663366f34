"""Free text into which the titles of retrieved items are pasted (RecLM-ret).

In text every token may come but a stray end-of-item. Where the start-of-item token comes, the state
that gave it is projected into the items' space, the best item that the reply has not used is taken,
and its title and the end token follow as the only tokens that may come. For greedy search and
sampling. Liao et al., arXiv 2505.03336. Shape letters as in `lm_head`; E is the items' width.
"""
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from recjax.decoding.constraints import DEAD, finite_logits, sanitize_log_probs
from recjax.decoding.item_span import SpanSettings
from recjax.decoding.lm_head import LMHead, log_sum_exp
from recjax.errors import DataError

NONE = np.int32(-1)  # no item


class RetrievalState(NamedTuple):
  """Where each row stands. item: whose title is being pasted, NONE in text. depth: tokens of it
  that are there. used: items so far, padded with NONE. count: how many."""
  item: Int[Array, 'B K']
  depth: Int[Array, 'B K']
  used: Int[Array, 'B K U']
  count: Int[Array, 'B K']


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=['titles', 'lengths', 'items', 'project', 'closed', 'least'],
                   meta_fields=['query', 'settings'])
@dataclasses.dataclass(frozen=True)
class RetrievalConstraint:
  """The constraint; `build_retrieval_constraint` makes it.

  titles: tokens with the end token, padded. items: their vectors. closed: items that requests may
  not have, or None. least: items of each reply, before which it may not end, or None. query:
  (project, states (..., D)) -> vectors (..., E). lengths: tokens of each title. project: parameters
  of `query`. settings: control tokens and numbers of items.
  """
  titles: Int[Array, 'N L']
  lengths: Int[Array, ' N']
  items: Float[Array, 'N E']
  project: PyTree
  closed: Bool[Array, 'B N'] | None
  least: Int[Array, ' B'] | None
  query: Callable
  settings: SpanSettings

  for_beams = False  # a title is taken for the best state of one row, not of beams

  @property
  def longest(self) -> int:
    return self.settings.new_tokens

  @property
  def num_end_tokens(self) -> int:
    return max(1, len(self.settings.eos_ids))

  def start(self, batch: int) -> RetrievalState:
    zero = jnp.zeros((batch, 1), jnp.int32)
    used = jnp.full((batch, 1, self.settings.max_items), NONE)
    return RetrievalState(zero + NONE, zero, used, zero)

  def candidates(self, head: LMHead, state: RetrievalState, t: Array | int, limit: int,
                 choose: Callable) -> Any:
    del limit
    settings, logits = self.settings, head.full()
    vocab = logits.shape[-1]
    token = jnp.arange(vocab)
    pad: Any = settings.pad_id
    banned = [settings.eoi] + [pad] * (pad not in (None, *settings.eos_ids))
    may_open = self._may_open(state, t)[..., None]
    least = 0 if self.least is None else self.least[:, None]
    too_early = ((state.count < least)[..., None] & may_open
                 & jnp.isin(token, jnp.asarray(settings.eos_ids)))
    in_text = (~np.isin(np.arange(vocab), banned) & ~too_early
               & ((token != settings.soi) | may_open))
    allowed = jnp.where((state.item >= 0)[..., None],
                        token == self._next_token(state)[..., None], in_text)
    logits = finite_logits(logits)
    log_probs = jnp.where(allowed, sanitize_log_probs(logits - log_sum_exp(logits)), DEAD)
    tokens = jnp.broadcast_to(token, log_probs.shape)
    chosen, item, log_prob = choose(log_probs, tokens,
                                    jnp.broadcast_to(state.item[..., None], log_probs.shape))
    opens = (state.item < 0) & (chosen == settings.soi)
    nearest = lax.cond(opens.any(), lambda: self._nearest_item(cast(Array, head.state), state, t),
                       lambda: jnp.full(item.shape, NONE))
    return chosen, jnp.where(opens, nearest, item), log_prob

  def forced_token(self, state: RetrievalState, t: Array | int
                   ) -> tuple[Int[Array, 'B K'], Int[Array, 'B K'], Bool[Array, 'B K']]:
    """The one token that may come, inside titles. state: of the rows. t: number of the token.
    -> token, item, whether"""
    del t
    return self._next_token(state), state.item, state.item >= 0

  def _next_token(self, state: RetrievalState) -> Int[Array, 'B K']:
    """The token that a title goes on with."""
    row = jnp.maximum(state.item, 0)
    return self.titles[row, jnp.minimum(state.depth, self.lengths[row] - 1)]

  def _open_items(self, state: RetrievalState, t: Array | int) -> Bool[Array, 'B K N']:
    """Items that a row may still paste: not used, not closed, short enough."""
    used = (state.used[..., None] == jnp.arange(len(self.items))).any(-2)
    left = jnp.broadcast_to(self.settings.new_tokens - t - 1, state.item.shape)[..., None]
    is_open = ~used & (self.lengths <= left)
    return is_open if self.closed is None else is_open & ~self.closed[:, None]

  def _may_open(self, state: RetrievalState, t: Array | int) -> Bool[Array, 'B K']:
    return (state.count < self.settings.max_items) & self._open_items(state, t).any(-1)

  def _nearest_item(self, hidden: Float[Array, 'B K D'], state: RetrievalState, t: Array | int
                    ) -> Int[Array, 'B K']:
    scores = jnp.einsum('bke,ne->bkn', self.query(self.project, hidden.astype(jnp.float32)),
                        self.items, precision=lax.Precision.HIGHEST)
    scores = jnp.where(self._open_items(state, t), scores, -jnp.inf)
    return jnp.argmax(scores, -1).astype(jnp.int32)

  def advance(self, state: RetrievalState, token: Int[Array, 'B K'], node: Int[Array, 'B K']
              ) -> RetrievalState:
    inside = state.item >= 0
    opens = ~inside & (token == self.settings.soi)
    depth = jnp.where(inside, state.depth + 1, 0)
    closes = inside & (depth >= self.lengths[jnp.maximum(state.item, 0)])
    slot = jnp.arange(state.used.shape[-1])
    is_new = closes[..., None] & (slot == state.count[..., None])
    used = jnp.where(is_new, state.item[..., None], state.used)
    item = jnp.where(opens, node, jnp.where(closes, NONE, state.item))
    return RetrievalState(item, depth, used, state.count + closes)

  def is_final(self, state: RetrievalState, token: Int[Array, 'B K'], t: Array | int
               ) -> Bool[Array, 'B K']:
    del t
    return jnp.isin(token, jnp.asarray(self.settings.eos_ids, jnp.int32)) & (state.item < 0)

  def select_requests(self, requests: Int[Array, ' R']) -> 'RetrievalConstraint':
    closed = None if self.closed is None else self.closed[requests]
    least = None if self.least is None else self.least[requests]
    return dataclasses.replace(self, closed=closed, least=least)


def build_retrieval_constraint(titles: Sequence, items: Float[np.ndarray | Array, 'N E'],
                               project: PyTree, query: Callable, settings: SpanSettings,
                               closed: Bool[np.ndarray, 'B N'] | None = None,
                               least: Int[np.ndarray, ' B'] | None = None
                               ) -> RetrievalConstraint:
  """The constraint of a catalog.

  titles: token lists without the end token. items: their vectors. project, query: (project, states)
  -> vectors; a function of module level, as it decides the program. closed: items that requests may
  not have. least: items of each reply, before which it may not end. settings: control tokens and
  numbers of items. Raises DataError where a title is empty or their number differs.
  """
  if len(titles) != len(items) or not len(titles):
    raise DataError(f'{len(titles)} titles and {len(items)} item vectors; give one for each, and '
                    'at least one')
  lengths = np.array([len(title) + 1 for title in titles], np.int32)
  if lengths.min() < 2:
    raise DataError(f'the title of item {int(lengths.argmin())} has no tokens')
  padded = np.full((len(titles), lengths.max()), settings.eoi, np.int32)
  for row, title in zip(padded, titles):
    row[:len(title)] = title
  return RetrievalConstraint(
      jnp.asarray(padded), jnp.asarray(lengths), jnp.asarray(items, jnp.float32), project,
      None if closed is None else jnp.asarray(closed),
      None if least is None else jnp.asarray(least, jnp.int32), query, settings)


def items_by_title(titles: Sequence) -> dict[tuple, int]:
  """{title tokens: item, 1..N}, the first of those that share a title. titles: token lists."""
  return {tuple(map(int, t)): i for i, t in reversed(list(enumerate(titles, 1)))}


def parse(items: dict[tuple, int], tokens: Iterable, soi: int, eoi: int) -> tuple[list[int], bool]:
  """The items of a reply by their title tokens, 1..N, in order, and whether one is left open.

  items: as from `items_by_title`. tokens: of the reply. soi, eoi: the tokens that begin and end a
  title. Raises DataError for an unknown title.
  """
  found, title = [], None
  for token in map(int, tokens):
    if title is None:
      title = [] if token == soi else None
    elif token == eoi:
      if tuple(title) not in items:
        raise DataError(f'tokens {title} spell no title of the catalog')
      found.append(items[tuple(title)])
      title = None
    else:
      title.append(token)
  return found, title is not None
