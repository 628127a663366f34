"""Beam search with the semantics of transformers 5, free or under a constraint.

At each step the best (1 + end tokens) * K continuations of a request's K beams are kept; those of
rank below K that end are finished rows, the best K that do not end go on. A finished row's value is
its score / length ** length_penalty, the end token counted. Requests do not influence each other,
and beams that do not exist (fewer titles than beams) never come back as rows. Shape letters as in
`lm_head`.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from recjax.decoding.constraints import DEAD, LIVE, first_nan
from recjax.decoding.lm_head import BoundDecoder, LMHead, cache_lengths
from recjax.errors import ConfigError
from recjax.protocols import Constraint, NewTokens


def check_beams(beams: int, new_tokens: int | None, early_stopping: bool | str) -> None:
  """Raises ConfigError for settings that no beam search has. beams, new_tokens, early_stopping: as
  of `BeamSearch`."""
  if beams < 1 or (new_tokens is not None and new_tokens < 1):
    raise ConfigError(f'beams={beams} and new_tokens={new_tokens} must be at least 1')
  if early_stopping not in (True, False, 'never'):
    raise ConfigError(f"early_stopping={early_stopping!r}; choose True, False or 'never'")


@functools.partial(jax.tree_util.register_dataclass, data_fields=['length_offset'],
                   meta_fields=['beams', 'new_tokens', 'length_penalty', 'early_stopping',
                                'token_scores', 'pad_id'])
@dataclasses.dataclass(frozen=True)
class BeamSearch:
  """Settings of a beam search; one beam is greedy search. Raises ConfigError.

  beams: K. new_tokens: tokens of a row at most; None takes the longest row of the constraint.
  length_penalty: the power of the length. early_stopping: False stops when the best open beam
  cannot beat the worst finished row at its own length, True as soon as K rows are finished, 'never'
  reckons with the longest length. length_offset: tokens that lengths count besides the new ones,
  one number or (B,); the prompts' lengths give the values of transformers before 4.36.
  token_scores: also return each token's log-probability. pad_id: what fills rows up.
  """
  beams: int = 1
  new_tokens: NewTokens = None
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  length_offset: int | Int[np.ndarray, ' B'] | Int[Array, '...'] = 0
  token_scores: bool = False
  pad_id: int = 0

  def __post_init__(self):
    check_beams(self.beams, self.new_tokens, self.early_stopping)


class Rows(NamedTuple):
  """K rows of each request, best first.

  tokens: padded. scores: sums of log-probabilities of open beams, values of finished rows, DEAD
  where there is no row. complete: ended and not cut at T. state: the constraint's, with leading
  axes (B, K). token_scores: None unless asked for. lengths: tokens of each row.
  """
  tokens: Int[Array, 'B K T']
  scores: Float[Array, 'B K']
  lengths: Int[Array, 'B K']
  complete: Bool[Array, 'B K']
  state: PyTree
  token_scores: Float[Array, 'B K T'] | None


class BeamResult(NamedTuple):
  """What a search gives. count: rows found. steps: model steps used. nan_step: the new token at
  which the model gave NaN to a live beam, or -1. exists: which of the rows are rows."""
  rows: Rows
  exists: Bool[Array, 'B K']
  count: Int[Array, ' B']
  steps: Int[Array, '']
  nan_step: Int[Array, ' B']


class BeamState(NamedTuple):
  """The loop's state after t tokens: open beams, finished rows, which requests go on.

  t: tokens so far. beams, finished: open and finished rows. is_open: which requests go on.
  length_offset: as of `BeamSearch`, of each request. nan_step: as of `BeamResult`. cache: the
  model's.
  """
  t: Int[Array, '']
  beams: Rows
  finished: Rows
  is_open: Bool[Array, ' B']
  length_offset: Int[Array, ' B']
  nan_step: Int[Array, ' B']
  cache: PyTree


def beam_search(model: BoundDecoder, cache: PyTree, first: Float[Array, 'B D'],
                constraint: Constraint, search: BeamSearch) -> BeamResult:
  """Searches all requests at once.

  model: with `grow` the cache begins with room for `cache_lengths(new_tokens)[0]` tokens only; with
  `select_requests` the last half of the requests goes on alone once the other half is done. cache:
  after the prompts, with K suffixes. first: the state after each prompt. constraint: see
  `protocols.Constraint`. search: with its new_tokens.
  """
  half = len(first) // 2 if model.select_requests else 0

  def step(constraint: Constraint, state: BeamState) -> BeamState:
    last = lax.dynamic_index_in_dim(state.beams.tokens, state.t - 1, 2, keepdims=False)
    hidden, cache = model.step(last, state.cache, state.t - 1)
    return advance_beams(state._replace(cache=cache), hidden, model.head, model.reorder, constraint,
                         search)

  state = initial_state(cache, len(first), constraint, search)
  state = advance_beams(state, first[:, None], model.head, None, constraint, search)
  for limit in cache_lengths(search.new_tokens) if model.grow else [search.new_tokens]:
    cache = model.grow(state.cache, limit) if model.grow else state.cache
    state = lax.while_loop(lambda s, limit=limit: (s.t < limit) & (s.is_open.sum() > half),
                           functools.partial(step, constraint), state._replace(cache=cache))
  if half:
    slow = lax.top_k(state.is_open.astype(jnp.int32), half)[1]
    rest = jax.tree.map(lambda x: x[slow] if x.ndim else x, state._replace(cache=()))
    kept = cast(Callable, model.select_requests)(state.cache, slow)
    rest = lax.while_loop(lambda s: (s.t < search.new_tokens) & s.is_open.any(),
                          functools.partial(step, constraint.select_requests(slow)),
                          rest._replace(cache=kept))
    finished, nan_step = jax.tree.map(
        lambda a, b: a.at[slow].set(b), (state.finished, state.nan_step),
        (rest.finished, rest.nan_step))
    state = state._replace(t=rest.t, finished=finished, nan_step=nan_step)
  exists = state.finished.scores > LIVE
  return BeamResult(state.finished, exists, exists.sum(-1, dtype=jnp.int32), state.t,
                    state.nan_step)


def initial_state(cache: PyTree, batch: int, constraint: Constraint, search: BeamSearch
                  ) -> BeamState:
  """The state before the first token: one beam a request. cache: the model's after the prompts.
  batch: B. constraint, search: as of `beam_search`."""
  start = constraint.start(batch)
  beams = _no_rows(batch, 1, start, search)._replace(scores=jnp.zeros((batch, 1)))
  offset = jnp.broadcast_to(jnp.asarray(search.length_offset, jnp.int32), batch)
  return BeamState(jnp.int32(0), beams, _no_rows(batch, search.beams, start, search),
                   jnp.ones(batch, bool), offset, jnp.full(batch, -1, jnp.int32), cache)


def _no_rows(batch: int, rows: int, start: PyTree, search: BeamSearch) -> Rows:
  shape = (batch, rows)
  tokens = jnp.full((*shape, search.new_tokens), search.pad_id, jnp.int32)
  state = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], (*shape, *x.shape[2:])), start)
  return Rows(tokens, jnp.full(shape, DEAD), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool),
              state, jnp.zeros(tokens.shape, jnp.float32) if search.token_scores else None)


def advance_beams(state: BeamState, hidden: Float[Array, 'B K D'],
                  head: Callable[[Array], LMHead], reorder: Callable | None,
                  constraint: Constraint, search: BeamSearch) -> BeamState:
  """One step of all requests after the model's.

  hidden: the states of the open beams. state: before the step. head: the model's output layer on
  states. reorder: as of `Decoder`, None where beams stay in place. constraint, search: as of
  `beam_search`.
  """
  t, beams = state.t, state.beams
  live = state.is_open[:, None] & (beams.scores > LIVE)  # rows that are dead may hold anything
  nan_step = first_nan(state.nan_step, hidden, live, t)
  kept = (1 + constraint.num_end_tokens) * search.beams  # enough for K to go on however many end
  scores, parents, token, node = constraint.candidates(
      head(hidden), beams.state, t, kept, best_continuations(beams.scores, kept))
  new_state = constraint.advance(gather_rows(beams.state, parents), token, node)
  rows = append_tokens(beams, scores, parents, token, new_state, t)
  complete = constraint.is_final(new_state, token, t)
  rows = rows._replace(complete=complete)
  ended = complete | (t + 1 == search.new_tokens)
  finished = merge_finished(state, rows, ended, search)
  order = lax.top_k(jnp.where(ended, 4 * DEAD, scores), search.beams)[1]
  running = gather_rows(rows, order)
  goes_on = ~jnp.take_along_axis(ended, order, 1)
  running = running._replace(scores=jnp.where(goes_on, running.scores, DEAD))
  cache = state.cache
  if reorder:
    cache = reorder(cache, jnp.take_along_axis(parents, order, 1))
  is_open = state.is_open & may_improve(running.scores[:, 0], t + 1, finished.scores, search,
                                        state.length_offset)
  return BeamState(t + 1, running, finished, is_open, state.length_offset, nan_step, cache)


def best_continuations(scores: Float[Array, 'B K'], kept: int) -> Callable:
  """What a search asks of `Constraint.candidates`: the best continuations of all beams, ties by
  beam, then by candidate.

  scores: of the beams. -> choose(log_probs, tokens, nodes) -> scores, parents, tokens, nodes, each
  (B, kept)
  """
  def choose(log_probs: Array, tokens: Array, nodes: Array) -> tuple[Array, ...]:
    batch, _, width = log_probs.shape
    total = jnp.maximum(scores[..., None] + log_probs, DEAD).reshape(batch, -1)
    flat_tokens, flat_nodes = tokens.reshape(batch, -1), nodes.reshape(batch, -1)
    lack = kept - total.shape[1]
    if lack > 0:
      total = jnp.pad(total, [(0, 0), (0, lack)], constant_values=DEAD)
      flat_tokens, flat_nodes = (jnp.pad(x, [(0, 0), (0, lack)]) for x in (flat_tokens, flat_nodes))
    total, place = lax.top_k(total, kept)
    parents = jnp.minimum(place // width, scores.shape[1] - 1)
    return (total, parents, jnp.take_along_axis(flat_tokens, place, 1),
            jnp.take_along_axis(flat_nodes, place, 1))
  return choose


def gather_rows(tree: PyTree, order: Int[Array, 'B M']) -> PyTree:
  """Rows of a pytree with leading axes (B, K) by number. tree: the pytree. order: the rows wanted,
  of each request."""
  def gather(x: Array) -> Array:
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), 1)
  return jax.tree.map(gather, tree)


def append_tokens(beams: Rows, scores: Float[Array, 'B M'], parents: Int[Array, 'B M'],
                  token: Int[Array, 'B M'], state: PyTree, t: Int[Array, '']) -> Rows:
  """M rows, each one token longer than its parent. scores, state: with the token. beams: the rows
  before. parents: the row that each goes on from. token: what is appended, as number t."""
  base = gather_rows(beams._replace(state=None), parents)
  tokens = lax.dynamic_update_index_in_dim(base.tokens, token, t, 2)
  token_scores = base.token_scores
  if token_scores is not None:
    token_scores = lax.dynamic_update_index_in_dim(token_scores, scores - base.scores, t, 2)
  return Rows(tokens, scores, jnp.full(scores.shape, t + 1), base.complete, state, token_scores)


def merge_finished(state: BeamState, rows: Rows, ended: Bool[Array, 'B M'], search: BeamSearch
                   ) -> Rows:
  """The K best of the rows that end now and of those that ended before. state: before this token.
  search: as of `beam_search`."""
  rows = rows._replace(scores=finished_values(
      rows.scores, ended & state.is_open[:, None], state.t + 1 + state.length_offset[:, None],
      state.finished.scores, search))
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), state.finished, rows)
  return gather_rows(both, lax.top_k(both.scores, search.beams)[1])


def finished_values(scores: Float[Array, 'B M'], ended: Bool[Array, 'B M'], length: Array,
                    values: Float[Array, 'B K'], search: Any) -> Float[Array, 'B M']:
  """Values of rows that end now, DEAD for those that do not, or rank too low to.

  scores: best first. length: tokens that count, () or (B, 1). values: of the rows that ended
  before. search: beams, early_stopping and length_penalty.
  """
  new = ended & (jnp.arange(scores.shape[1]) < search.beams) & (scores > LIVE)
  if search.early_stopping is True:
    new &= ~(values > LIVE).all(-1, keepdims=True)
  return jnp.where(new, scores / length.astype(jnp.float32) ** search.length_penalty, DEAD)


def may_improve(best_score: Float[Array, ' B'], length: Array, values: Float[Array, 'B K'],
                search: Any, length_offset: Array | int = 0) -> Bool[Array, ' B']:
  """Whether a request's open beams can still beat its finished rows.

  best_score: of the best open beam. length: new tokens so far, () or (B,). values: of the finished
  rows. search: as in `finished_values`. length_offset: tokens that count besides, () or (B,).
  """
  if search.early_stopping == 'never' and search.length_penalty > 0:
    length = jnp.full_like(length, search.new_tokens)
  value = best_score / (length + length_offset).astype(jnp.float32) ** search.length_penalty
  all_found = (values > LIVE).all(-1)
  better = ~all_found
  if search.early_stopping is not True:
    better |= value > values.min(-1)
  return better & (best_score > LIVE)
