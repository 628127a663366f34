"""Beam search over titles in few model passes: forced tokens go through together, others ahead.

The decisions are those of `beam_search`; only the model runs in other passes. A pass takes all
tokens of a request that beams wait for. With look-ahead it is filled up with tokens that beams may
come to: where a pass of few tokens costs as much as one of many, those are free. They are taken
best first, by the score that a beam would have there: known where the state before has gone through
the model, else guessed as if all children were equally likely. What is looked up later has the same
score as if it had been asked for then, so rows do not change.

Shape letters as in `lm_head`; S slots of a request's pool, Q tokens of a pass, F of the frontier.
"""
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from recjax.decoding import device_trie
from recjax.decoding.beam_search import (
  best_continuations,
  check_beams,
  finished_values,
  gather_rows,
  may_improve,
)
from recjax.decoding.constraints import DEAD, LIVE, CatalogConstraint, first_nan
from recjax.decoding.device_trie import DeviceTrie
from recjax.decoding.lm_head import BoundDecoder, LMHead, log_sum_exp, plain_head
from recjax.errors import ConfigError
from recjax.protocols import NewTokens

MAX_CHILDREN = 16  # the best children of a node that look-ahead considers


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LookaheadBeamSearch:
  """Settings; hashable. Raises ConfigError.

  beams, new_tokens, length_penalty, early_stopping, pad_id: as in `BeamSearch`. pass_widths: tokens
  of a request that go through in one pass, ascending; the smallest that holds what is pending is
  used. lookahead: tokens that passes are filled up to, 0 for no look-ahead; worth while where a
  pass of few tokens is bound by reading the weights, so not on a CPU.
  """
  beams: int = 1
  new_tokens: NewTokens = None
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  pass_widths: tuple[int, ...] = (8, 32)
  lookahead: int = 0
  pad_id: int = 0

  def __post_init__(self):
    check_beams(self.beams, self.new_tokens, self.early_stopping)
    if not self.pass_widths or min(self.pass_widths) < 1:
      raise ConfigError(f'pass_widths={self.pass_widths} must be at least 1, and one or more')
    if self.lookahead < 0:
      raise ConfigError(f'lookahead={self.lookahead} is a number of tokens, 0 for none')

  @property
  def compiled_widths(self) -> tuple[int, ...]:
    """Compiled widths of a pass; with look-ahead none is below it."""
    ahead = (self.lookahead,) if self.lookahead else ()
    return (*ahead, *(w for w in self.pass_widths if w > self.lookahead))

  @property
  def slots(self) -> int:
    """Slots of a request's pool: all paths, one pass, what is ahead, and the prompt's state."""
    return self.beams * self.new_tokens + self.compiled_widths[-1] + 2 * self.lookahead + 1


class Children(NamedTuple):
  """The best children of nodes. log_probs: DEAD for none."""
  nodes: Int[Array, 'B S C']
  log_probs: Float[Array, 'B S C']


class Pool(NamedTuple):
  """What went through the model. lo, hi, depth: the token that each slot holds, known by the places
  below its node and its depth, which counts it; depth -1 for none, 0 for the prompt. state: the
  model's after it. total: log-sum-exp of all logits there. children: of its node."""
  lo: Int[Array, 'B S']
  hi: Int[Array, 'B S']
  depth: Int[Array, 'B S']
  state: Float[Array, 'B S D']
  total: Float[Array, 'B S']
  children: Children


class OpenBeams(NamedTuple):
  """Where beams stand. node: of the trie. score: sums of log-probabilities, DEAD for no beam."""
  node: Int[Array, 'B K']
  score: Float[Array, 'B K']


class FinishedRows(NamedTuple):
  """Finished rows, best value first. node: the last one's. complete: ended and not cut at T. value:
  DEAD where there is no row. length: tokens."""
  node: Int[Array, 'B K']
  value: Float[Array, 'B K']
  length: Int[Array, 'B K']
  complete: Bool[Array, 'B K']


class LookaheadState(NamedTuple):
  """t: tokens of each request so far.

  passes: model passes that each took part in. tokens_fed: tokens that went through the model.
  nan_step: as in `BeamResult`. beams, finished: open and finished rows. is_open: which requests go
  on. pool: states of tokens that went through the model. cache: the model's.
  """
  t: Int[Array, ' B']
  beams: OpenBeams
  finished: FinishedRows
  is_open: Bool[Array, ' B']
  pool: Pool
  cache: PyTree
  passes: Int[Array, ' B']
  tokens_fed: Int[Array, '']
  nan_step: Int[Array, ' B']


class LookaheadResult(NamedTuple):
  """What the search gives. finished, passes, tokens_fed, nan_step: as of `LookaheadState`."""
  finished: FinishedRows
  passes: Int[Array, ' B']
  tokens_fed: Int[Array, '']
  nan_step: Int[Array, ' B']


class Searcher(NamedTuple):
  """What all steps of one search share: the model, the constraint, the settings."""
  model: BoundDecoder
  constraint: CatalogConstraint
  search: LookaheadBeamSearch

  @property
  def trie(self) -> DeviceTrie:
    return self.constraint.trie

  @property
  def over_vocab(self) -> bool:
    """Whether scores need the state after every token, forced or not."""
    return self.constraint.normalization.denominator == 'vocab'


def lookahead_beam_search(model: BoundDecoder, cache: PyTree, first: Float[Array, 'B D'],
                          constraint: CatalogConstraint, search: LookaheadBeamSearch
                          ) -> LookaheadResult:
  """Searches all requests at once; the rows are those of `beam_search`.

  model: with `extend`: (cache, tokens (B, Q), position (B, Q), seen (B, Q, S) bool, within (B, Q,
  Q) bool, slots (B, Q)) -> (states (B, Q, D), cache), which runs tokens number `position` of their
  rows, each seeing the slots and the tokens of this pass that it is told, and keeps their keys in
  `slots` (S: nowhere). first: the state after each prompt. cache: the model's after the prompts.
  constraint: of titles. search: its settings. Raises ConfigError for a normalization but 'vocab'
  and 'valid', and for a length_penalty with 'valid'.
  """
  denominator = constraint.normalization.denominator
  if denominator not in ('vocab', 'valid'):
    raise ConfigError(f'Normalization({denominator!r}): look-ahead is worth while for '
                      "'vocab', 'valid'")
  if denominator == 'valid' and search.length_penalty:
    raise ConfigError(f"length_penalty={search.length_penalty} with Normalization('valid') rewards "
                      'titles for their forced tokens, which are free; set it to 0')
  searcher = Searcher(model, constraint, search)

  def step_and_feed(state: LookaheadState) -> LookaheadState:
    state = lax.while_loop(lambda s: can_step(searcher, s).any(),
                           functools.partial(search_step, searcher), state)
    return lax.cond(state.is_open.any(), functools.partial(feed_pending, searcher), lambda s: s,
                    state)

  state = lax.while_loop(lambda s: s.is_open.any(), step_and_feed,
                         initial_state(searcher, cache, first))
  return LookaheadResult(state.finished, state.passes, state.tokens_fed, state.nan_step)


def initial_state(searcher: Searcher, cache: PyTree, first: Float[Array, 'B D']) -> LookaheadState:
  """After the first token, which the prompt's state in slot 0 decides: one beam branches into K.
  searcher: model, constraint and settings. cache, first: as of `lookahead_beam_search`."""
  search, trie = searcher.search, searcher.trie
  batch, slots = len(first), search.slots
  root = searcher.constraint.start(batch)
  none = jnp.full((batch, slots), -1)
  with_root = lambda x: none.at[:, :1].set(x[root])  # noqa: E731
  shape = (batch, slots if search.lookahead else 1, MAX_CHILDREN)
  pool = Pool(with_root(trie.lo), with_root(trie.hi), none.at[:, 0].set(0),
              jnp.zeros((batch, slots, first.shape[-1]), first.dtype).at[:, 0].set(first),
              jnp.zeros((batch, slots)),
              Children(jnp.zeros(shape, jnp.int32), jnp.full(shape, DEAD)))
  if searcher.over_vocab:
    total = log_sum_exp(searcher.model.head(first[:, None]).full())[:, 0, 0]
    pool = pool._replace(total=pool.total.at[:, 0].set(total))
  beams = OpenBeams(root, jnp.zeros((batch, 1)))
  zeros = jnp.zeros((batch, search.beams), jnp.int32)
  finished = FinishedRows(zeros + root, jnp.full(zeros.shape, DEAD), zeros, zeros > 0)
  zero = jnp.zeros(batch, jnp.int32)
  return advance_all(searcher, LookaheadState(
      zero, beams, finished, jnp.ones(batch, bool), pool, cache, zero, jnp.int32(0), zero - 1))


# Search steps, which need no model.


def slot_of(pool: Pool, lo: Int[Array, 'B Q'], depth: Int[Array, 'B Q']) -> Int[Array, 'B Q']:
  """The slot of tokens, -1 for none. pool: what went through the model. lo: the first place below
  each token's node. depth: tokens of the row up to it."""
  same = (pool.lo[:, None] == lo[..., None]) & (pool.depth[:, None] == depth[..., None])
  return jnp.where(same.any(-1), jnp.argmax(same, -1), -1)


def beam_slots(searcher: Searcher, state: LookaheadState) -> Int[Array, 'B K']:
  """The slot of each beam's last token, the prompt's before the first; -1 for none. searcher,
  state: of the search."""
  node = state.beams.node
  return slot_of(state.pool, searcher.trie.lo[node],
                 jnp.broadcast_to(state.t[:, None], node.shape))


def waiting(searcher: Searcher, state: LookaheadState) -> Bool[Array, 'B K']:
  """Which beams cannot be scored before a pass. searcher, state: of the search."""
  lacks = (state.beams.score > LIVE) & (beam_slots(searcher, state) < 0) & state.is_open[:, None]
  if searcher.over_vocab:
    return lacks
  return lacks & (device_trie.fan_out(searcher.trie, state.beams.node) > 1)


def can_step(searcher: Searcher, state: LookaheadState) -> Bool[Array, ' B']:
  """Which requests can take a search step. searcher, state: of the search."""
  return state.is_open & ~waiting(searcher, state).any(-1)


def search_step(searcher: Searcher, state: LookaheadState) -> LookaheadState:
  """One token for the requests that can take it; the others stay as they are. searcher, state: of
  the search."""
  steps = can_step(searcher, state)

  def where_steps(new: Array, old: Array) -> Array:
    return jnp.where(steps.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
  new = advance_all(searcher, state)
  return state._replace(**{
      name: jax.tree.map(where_steps, getattr(new, name), getattr(state, name))
      for name in ('t', 'beams', 'finished', 'is_open', 'nan_step')})


def advance_all(searcher: Searcher, state: LookaheadState) -> LookaheadState:
  """All requests one token further. searcher: of the search. state: before the token."""
  trie, search = searcher.trie, searcher.search
  slot = jnp.maximum(beam_slots(searcher, state), 0)
  hidden = jnp.take_along_axis(state.pool.state, slot[..., None], 1)
  head = searcher.model.head(hidden)
  total = jnp.take_along_axis(state.pool.total, slot, 1)[..., None]
  head = LMHead(head.full, head.rows, head.window,
                (lambda: total) if searcher.over_vocab else None)
  t = state.t[:, None]
  kept = 2 * search.beams
  scores, _, _, node = searcher.constraint.candidates(
      head, state.beams.node, t, kept, best_continuations(state.beams.score, kept))
  complete = device_trie.complete(trie, node, t + 1)
  ended = complete | (t + 1 == search.new_tokens)
  finished = merge_finished(state, scores, node, complete, ended, search)
  order = lax.top_k(jnp.where(ended, 4 * DEAD, scores), search.beams)[1]
  ordered = lambda x: jnp.take_along_axis(x, order, 1)  # noqa: E731
  beams = OpenBeams(ordered(node), jnp.where(ordered(ended), DEAD, ordered(scores)))
  nan_step = first_nan(state.nan_step, hidden, state.beams.score > LIVE, t)
  state = state._replace(t=state.t + 1, beams=beams, finished=finished, nan_step=nan_step)
  better = may_improve(beams.score[:, 0], state.t, finished.value, search)
  return state._replace(is_open=state.is_open & better & (state.t < search.new_tokens))


def merge_finished(state: LookaheadState, scores: Float[Array, 'B M'], node: Int[Array, 'B M'],
                   complete: Bool[Array, 'B M'], ended: Bool[Array, 'B M'],
                   search: LookaheadBeamSearch) -> FinishedRows:
  """The K best of the rows that end now and of those that ended before.

  state: before this token. scores, node, complete: of the M continuations. ended: which of them end
  now. search: as of `lookahead_beam_search`.
  """
  length = (state.t + 1)[:, None]
  values = finished_values(scores, ended, length, state.finished.value, search)
  new = FinishedRows(node, values, jnp.broadcast_to(length, node.shape), complete)
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), state.finished, new)
  return gather_rows(both, lax.top_k(both.value, search.beams)[1])


# The model's passes.


class PassTokens(NamedTuple):
  """Tokens of one pass: number `position` of the rows of `node`; real: not padding."""
  node: Int[Array, 'B Q']
  position: Int[Array, 'B Q']
  real: Bool[Array, 'B Q']


class Pending(NamedTuple):
  """What a pass should feed. wanted: which tokens of which beams. last_node, last_depth: where
  those of each beam lead."""
  wanted: Bool[Array, 'B K T']
  last_node: Int[Array, 'B K']
  last_depth: Int[Array, 'B K']


def contains(lo: Int[Array, 'B S'], hi: Int[Array, 'B S'], depth: Int[Array, 'B S'],
             lo_below: Int[Array, 'B Q'], hi_below: Int[Array, 'B Q'], depth_below: Array
             ) -> Bool[Array, 'B Q S']:
  """Which tokens (B, S) come before others (B, Q) in their rows, or are them.

  lo, hi, depth: of the former: the places below the node from lo to hi - 1, tokens up to it.
  lo_below, hi_below, depth_below: of the latter.
  """
  lo, hi, depth = (x[:, None] for x in (lo, hi, depth))
  return ((lo <= lo_below[..., None]) & (hi >= hi_below[..., None]) & (depth > 0)
          & (depth <= depth_below[..., None]))


def forced_run(trie: DeviceTrie, node: Int[Array, 'B K'], depth: Int[Array, 'B _'], longest: int
               ) -> tuple[Int[Array, 'B K'], Int[Array, 'B K']]:
  """The tokens after a node's that are forced before a fork or the title's end.

  trie: of the catalog. depth: tokens that lead to the nodes.

  The end itself needs no pass, so a run stops one short of it. longest: tokens of a row at most.
  -> how many, and the node that the last one leads to
  """
  def goes_on(carry: tuple) -> Array:
    return carry[2].any()

  def follow(carry: tuple) -> tuple:
    node, count, following = carry
    fan_out, depth_here = device_trie.fan_out(trie, node), depth + count
    left = jnp.maximum(device_trie.row_length(trie, node) - depth_here - 1, 0)
    child = trie.first[node]
    single = following & (fan_out == 1) & ~device_trie.complete(trie, child, depth_here + 1)
    count = count + jnp.where(following & (fan_out == 0), left, 0) + single
    return jnp.where(single, child, node), count, single

  start = (node, jnp.zeros_like(node), jnp.ones(node.shape, bool))
  node, count, _ = lax.while_loop(goes_on, follow, start)
  return jnp.minimum(count, longest - depth - 1), node


def pending(searcher: Searcher, state: LookaheadState) -> Pending:
  """What beams wait for, and what is forced after it. searcher, state: of the search."""
  trie, node, pool = searcher.trie, state.beams.node, state.pool
  new_tokens = searcher.search.new_tokens
  waits = waiting(searcher, state)
  last_node, last_depth = node, jnp.broadcast_to(state.t[:, None], node.shape)
  if searcher.over_vocab:
    count, run_node = forced_run(trie, node, last_depth, new_tokens)
    last_depth = last_depth + jnp.where(waits, count, 0)
    last_node = jnp.where(waits, run_node, node)
  held = contains(pool.lo, pool.hi, pool.depth, trie.lo[node], trie.hi[node], last_depth)
  depth = jnp.where(held, pool.depth[:, None], 0)
  grid = jnp.indices(held.shape, sparse=True)
  in_pool = jnp.zeros((*node.shape, new_tokens + 1), bool)
  in_pool = in_pool.at[grid[0], grid[1], depth].set(True)[..., 1:]
  position = jnp.arange(new_tokens)
  wanted = waits[..., None] & ~in_pool & (position < last_depth[..., None])
  return Pending(wanted, last_node, last_depth)


def feed_pending(searcher: Searcher, state: LookaheadState) -> LookaheadState:
  """One model pass of the smallest width that holds what is pending. searcher, state: of the
  search."""
  widths = searcher.search.compiled_widths
  tokens = pending(searcher, state)
  branches = [functools.partial(feed, searcher, w) for w in widths]
  branch = jnp.searchsorted(jnp.asarray(widths), tokens.wanted.sum((1, 2)).max())
  return lax.switch(jnp.minimum(branch, len(branches) - 1), branches, state, tokens)


def feed(searcher: Searcher, width: int, state: LookaheadState, tokens: Pending) -> LookaheadState:
  """Feeds up to `width` pending tokens of each request, those that come first in their rows.
  searcher, state: of the search. tokens: what is pending."""
  search, trie, wanted = searcher.search, searcher.trie, tokens.wanted
  beams, longest = wanted.shape[1:]
  rank = jnp.where(wanted, jnp.arange(longest) * beams + jnp.arange(beams)[:, None],
                   longest * beams)
  negative_rank, flat = lax.top_k(-rank.reshape(len(rank), -1), width)
  real, position, beam = -negative_rank < longest * beams, flat % longest, flat // longest
  node = jnp.take_along_axis(state.beams.node, beam, 1)
  free_slots, state = free_pool(trie, state, real.sum(-1))
  fed = PassTokens(node, position, real)
  if search.lookahead:
    is_last = jnp.take_along_axis(tokens.last_depth, beam, 1) == position + 1
    last_node = jnp.take_along_axis(tokens.last_node, beam, 1)
    fed = fed._replace(node=jnp.where(is_last, last_node, node))
    fed = fill_up(searcher, state, fed, tokens, (free_slots >= 0).sum(-1))
  slot = jnp.where(fed.real, free_slots[:, :width], search.slots)
  return run_pass(searcher, state, fed, slot)


def run_pass(searcher: Searcher, state: LookaheadState, fed: PassTokens, slot: Int[Array, 'B Q']
             ) -> LookaheadState:
  """The pass itself. slot: where each token's state goes. searcher, state: of the search. fed: the
  tokens."""
  trie, pool = searcher.trie, state.pool
  node, position, real = fed
  lo, hi = trie.lo[node], trie.hi[node]
  seen = contains(pool.lo, pool.hi, pool.depth, lo, hi, position)
  within = contains(lo, hi, jnp.where(real, position + 1, 0), lo, hi, position + 1)
  within |= jnp.eye(position.shape[1], dtype=bool)
  tokens = device_trie.forced_token(trie, node, position)
  extend: Any = searcher.model.extend
  hidden, cache = extend(state.cache, tokens, position, seen, within, slot)
  requests = jnp.arange(len(position))[:, None]

  def put(old: Array, new: Array) -> Array:
    return old.at[requests, slot].set(new, mode='drop')
  pool = pool._replace(lo=put(pool.lo, lo), hi=put(pool.hi, hi),
                       depth=put(pool.depth, position + 1), state=put(pool.state, hidden))
  head = searcher.model.head(hidden)
  if searcher.over_vocab:
    logits = head.full()
    total = log_sum_exp(logits)
    pool = pool._replace(total=put(pool.total, total[..., 0]))
    head = plain_head(logits)._replace(total=lambda: total)
  if searcher.search.lookahead:
    children = best_children(searcher, head, node, position + 1)
    pool = pool._replace(children=jax.tree.map(put, pool.children, children))
  return state._replace(pool=pool, cache=cache, passes=state.passes + real.any(-1),
                        tokens_fed=state.tokens_fed + real.sum())


def free_pool(trie: DeviceTrie, state: LookaheadState, needed: Int[Array, ' B']
              ) -> tuple[Int[Array, 'B S'], LookaheadState]:
  """Slots that may be overwritten, first those that hold nothing; -1 for none.

  trie: of the catalog. state: of the search.

  What live beams have behind them stays, and what they may come to, unless `needed` slots are not
  free otherwise: then all that is ahead of beams is forgotten.
  """
  pool, node = state.pool, state.beams.node
  lo, hi = trie.lo[node], trie.hi[node]
  live = state.beams.score > LIVE
  t = jnp.broadcast_to(state.t[:, None], node.shape)
  behind = (contains(pool.lo, pool.hi, pool.depth, lo, hi, t) & live[..., None]).any(1)
  ahead = ((pool.lo[:, None] >= lo[..., None]) & (pool.hi[:, None] <= hi[..., None])
           & (pool.depth[:, None] > t[..., None]) & live[..., None]).any(1)
  keep = behind | (pool.depth == 0)
  tight = (~(keep | ahead)).sum(-1) < needed
  keep |= ahead & ~tight[:, None]
  pool = pool._replace(depth=jnp.where(keep, pool.depth, -1))
  order = jnp.argsort(keep, -1, stable=True)
  is_free = jnp.arange(keep.shape[1]) < (~keep).sum(-1, keepdims=True)
  return jnp.where(is_free, order, -1), state._replace(pool=pool)


# Look-ahead.


class Frontier(NamedTuple):
  """Tokens at the edge of what is looked at, by node and depth, and a beam's score there."""
  node: Int[Array, 'B F']
  depth: Int[Array, 'B F']
  score: Float[Array, 'B F']

  def best(self, limit: int) -> 'Frontier':
    """The `limit` of highest score; of equal ones the first."""
    lack = max(0, limit - self.score.shape[1])
    padded = [jnp.pad(x, [(0, 0), (0, lack)], constant_values=fill)
              for x, fill in zip(self, (0, 0, DEAD))]
    score, place = lax.top_k(padded[2], limit)
    node, depth = (jnp.take_along_axis(x, place, 1) for x in padded[:2])
    return Frontier(node, depth, score)


def best_children(searcher: Searcher, head: LMHead, node: Int[Array, 'B Q'],
                  depth: Int[Array, 'B Q']) -> Children:
  """The best children of nodes, by their true log-probabilities under the constraint.

  searcher: of the search. head: the output layer on the states at the nodes. node: of the trie.
  depth: tokens that lead to them.
  """
  def best(log_probs: Array, _: Array, nodes: Array) -> Children:
    pad = [(0, 0), (0, 0), (0, max(0, MAX_CHILDREN - log_probs.shape[-1]))]
    log_probs, place = lax.top_k(jnp.pad(log_probs, pad, constant_values=DEAD), MAX_CHILDREN)
    return Children(jnp.take_along_axis(jnp.pad(nodes, pad), place, -1), log_probs)
  return searcher.constraint.candidates(head, node, depth, MAX_CHILDREN, best)


def fill_up(searcher: Searcher, state: LookaheadState, fed: PassTokens, tokens: Pending,
            num_free: Int[Array, ' B']) -> PassTokens:
  """Fills a pass with tokens that live beams may come to. num_free: slots. searcher, state: of the
  search. fed: what goes first. tokens: what is pending. -> what is fed first"""
  search, trie, width = searcher.search, searcher.trie, fed.node.shape[1]
  budget = jnp.minimum(search.lookahead, num_free) - fed.real.sum(-1)
  live = (state.beams.score > LIVE) & state.is_open[:, None]
  slot = slot_of(state.pool, trie.lo[tokens.last_node], tokens.last_depth)
  reached = live & (tokens.wanted.any(-1) | (slot >= 0))
  frontier = Frontier(tokens.last_node, tokens.last_depth,
                      jnp.where(reached, state.beams.score, DEAD)).best(width)
  chosen = frontier._replace(score=jnp.full_like(frontier.score, DEAD))

  def goes_on(carry: tuple) -> Array:
    frontier, chosen, depth = carry
    worst = jnp.take_along_axis(chosen.score, jnp.clip(budget - 1, 0, width - 1)[:, None], 1)
    better = frontier.score.max(-1) > jnp.maximum(worst[:, 0], LIVE)
    return (better & (budget > 0)).any() & (depth < search.new_tokens)

  def deeper(carry: tuple) -> tuple:
    frontier, chosen, depth = carry
    frontier = next_frontier(searcher, frontier, state.pool, width)
    is_new = slot_of(state.pool, trie.lo[frontier.node], frontier.depth) < 0
    new = frontier._replace(score=jnp.where(is_new, frontier.score, DEAD))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), chosen, new)
    # of equal scores the earlier stays, so no token comes without those before it
    return frontier, both.best(width), depth + 1

  _, chosen, _ = lax.while_loop(goes_on, deeper, (frontier, chosen, 0))
  real = (chosen.score > LIVE) & (jnp.arange(width) < budget[:, None])
  ahead = PassTokens(chosen.node, chosen.depth - 1, real)
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), fed, ahead)
  order = jnp.argsort(~both.real, -1, stable=True)[:, :width]
  return gather_rows(both, order)


def next_frontier(searcher: Searcher, frontier: Frontier, pool: Pool, limit: int) -> Frontier:
  """The `limit` best children of the frontier that may have to go through the model. searcher: of
  the search. pool: what went through the model."""
  trie = searcher.trie
  slot = slot_of(pool, trie.lo[frontier.node], frontier.depth)
  known = Children(*(x[jnp.arange(len(slot))[:, None], jnp.maximum(slot, 0)]
                     for x in pool.children))
  _, child, exists = device_trie.children(trie, frontier.node, frontier.depth, MAX_CHILDREN)
  fan_out = jnp.maximum(device_trie.fan_out(trie, frontier.node), 1)[..., None]
  guess = jnp.where(exists, -jnp.log(fan_out.astype(jnp.float32)), DEAD)
  is_known = (slot >= 0)[..., None]
  node, log_probs = jnp.where(is_known, known.nodes, child), jnp.where(is_known, known.log_probs,
                                                                       guess)
  depth = jnp.broadcast_to(frontier.depth[..., None] + 1, node.shape)
  needed = ~device_trie.complete(trie, node, depth) & (depth < searcher.search.new_tokens)
  if not searcher.over_vocab:
    needed &= device_trie.fan_out(trie, node) > 0
  good = needed & (log_probs > LIVE) & (frontier.score > LIVE)[..., None]
  score = jnp.where(good, frontier.score[..., None] + jnp.minimum(log_probs, 0), DEAD)
  return Frontier(*(x.reshape(len(slot), -1) for x in (node, depth, score))).best(limit)
