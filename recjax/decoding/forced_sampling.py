"""Sampling of items in free text in fewer model passes than tokens: forced tokens go together.

Inside an item often one token alone may come: the rest of a title that no other shares, or the end.
Such runs need no choice, so a pass takes a row's last token and the run after it. Rows have clocks
of their own. Tokens, draws and scores are those of `sampling.sample`. Shapes as in `lm_head`; W is
the width of a pass.
"""
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from recjax.decoding.constraints import finite_logits, first_nan, sanitize_log_probs
from recjax.decoding.lm_head import BoundDecoder, log_sum_exp
from recjax.decoding.sampling import Chance, Samples, Sampling, draw, no_samples, where_rows
from recjax.protocols import Constraint


class ForcedState(NamedTuple):
  """Rows so far; a row's last token has not gone through the model yet. rows: as of
  `sampling.sample`. cache: the model's."""
  rows: Samples
  cache: PyTree


def sample_forced(model: BoundDecoder, cache: PyTree, first: Float[Array, 'B D'],
                  constraint: Constraint, search: Sampling, key: Chance) -> Samples:
  """As `sampling.sample`, in passes of up to `search.pass_width` tokens of each row.

  model: with `extend`, whose pool has samples * new_tokens slots. constraint: one with
  `forced_token`. cache, first, key: as of `sampling.sample`.
  """
  rows = first_tokens(model, first, constraint, search, key)
  return run_passes(model, constraint, search, key, ForcedState(rows, cache),
                    search.new_tokens).rows


def first_tokens(model: BoundDecoder, first: Float[Array, 'B D'], constraint: Constraint,
                 search: Sampling, key: Chance) -> Samples:
  """Rows with their first token. first: the state after each prompt. model, constraint, search,
  key: as of `sample_forced`."""
  rows = no_samples(len(first), constraint, search)
  hidden = jnp.broadcast_to(first[:, None], (*rows.scores.shape, first.shape[-1]))
  return draw_next(model, rows, hidden, constraint, search, key)


def run_passes(model: BoundDecoder, constraint: Constraint, search: Sampling, key: Chance,
               state: ForcedState, passes: int) -> ForcedState:
  """Goes on until every row ended, for `passes` passes at most. model, constraint, search, key: as
  of `sample_forced`. state: to go on from."""
  last = state.rows.steps + passes
  return lax.while_loop(
      lambda s: unfinished(s.rows, search).any() & (s.rows.steps < last),
      lambda s: one_pass(model, constraint, search, key, s), state)


def unfinished(rows: Samples, search: Sampling) -> Bool[Array, 'B K']:
  """Which rows are not at their end. search: as of `sample_forced`."""
  return ~rows.complete & (rows.lengths < search.new_tokens)


def draw_next(model: BoundDecoder, rows: Samples, hidden: Float[Array, 'B K D'],
              constraint: Constraint, search: Sampling, key: Chance) -> Samples:
  """Draws the next token of every row that goes on. hidden: the state after its last token. rows:
  so far. model, constraint, search, key: as of `sample_forced`."""
  t, choose = rows.lengths, cast(Callable, draw)
  token, node, log_prob = constraint.candidates(
      model.head(hidden), rows.state, t, 0, lambda *given: choose(*given, key, t, search))
  live = unfinished(rows, search)
  nan_step = first_nan(rows.nan_step, hidden, live, t)
  rows = append(rows, constraint, live, token, node, log_prob)
  return rows._replace(steps=rows.steps + 1, nan_step=nan_step)


def append(rows: Samples, constraint: Constraint, which: Bool[Array, 'B K'],
           token: Int[Array, 'B K'], node: Int[Array, 'B K'], log_prob: Float[Array, 'B K']
           ) -> Samples:
  """Rows with one more token where `which` says so. rows: so far. node: of each token. log_prob:
  what it adds to the score. constraint: as of `sample_forced`."""
  here = which[..., None] & (jnp.arange(rows.tokens.shape[2]) == rows.lengths[..., None])
  state = constraint.advance(rows.state, token, node)
  complete = constraint.is_final(state, token, rows.lengths)
  return rows._replace(
      tokens=jnp.where(here, token[..., None], rows.tokens),
      token_scores=jnp.where(here, log_prob[..., None], rows.token_scores),
      scores=rows.scores + jnp.where(which, log_prob, 0), lengths=rows.lengths + which,
      complete=rows.complete | (which & complete), state=where_rows(which, state, rows.state))


def one_pass(model: BoundDecoder, constraint: Constraint, search: Sampling, key: Chance,
             state: ForcedState) -> ForcedState:
  """Runs each row's last token and what is forced after it, and draws the token after that. state:
  before the pass. model, constraint, search, key: as of `sample_forced`."""
  rows, width = state.rows, search.pass_width
  start, live = rows.lengths - 1, unfinished(rows, search)

  def append_forced(_: Array | int, rows: Samples) -> Samples:
    token, node, is_forced = cast(Any, constraint).forced_token(rows.state, rows.lengths)
    has_room = rows.lengths - start < width
    return append(rows, constraint, live & is_forced & has_room & unfinished(rows, search), token,
                  node, jnp.zeros_like(rows.scores))

  rows = lax.fori_loop(1, width, append_forced, rows)
  position = start[..., None] + jnp.arange(width)  # (B, K, W)
  hidden, cache = feed(cast(Callable, model.extend), state.cache, rows, position, live, search)
  rows = add_forced_scores(rows, model.head(hidden).full().reshape(*position.shape, -1), position)
  last = jnp.maximum(rows.lengths - 1 - start, 0)[..., None, None]
  hidden = jnp.take_along_axis(hidden.reshape(*position.shape, -1), last, 2)[:, :, 0]
  return ForcedState(draw_next(model, rows, hidden, constraint, search, key), cache)


def feed(extend: Callable, cache: PyTree, rows: Samples, position: Int[Array, 'B K W'],
         live: Bool[Array, 'B K'], search: Sampling) -> tuple[Float[Array, 'B KW D'], PyTree]:
  """The tokens at `position` of live rows through the model; each sees its own row alone.

  extend: the model's, see `lookahead_beam_search`. cache: its cache. rows: so far. live: which rows
  take part. search: as of `sample_forced`.
  """
  batch, num_rows, width = position.shape
  longest = search.new_tokens
  start = position[..., 0]
  real = (live & (start >= 0))[..., None] & (position < rows.lengths[..., None])
  tokens = jnp.take_along_axis(rows.tokens, jnp.minimum(position, longest - 1), 2)
  row = jnp.broadcast_to(jnp.arange(num_rows)[:, None], position.shape)
  slot = jnp.where(real, row * longest + position, num_rows * longest)

  def flat(x: Array) -> Array:
    return x.reshape(batch, num_rows * width)
  pool = jnp.arange(num_rows * longest)
  seen = ((pool // longest == flat(row)[..., None])
          & (pool % longest < jnp.repeat(start, width, 1)[..., None]))
  within = ((flat(row)[:, :, None] == flat(row)[:, None]) & flat(real)[:, None]
            & (flat(position)[:, :, None] >= flat(position)[:, None]))
  within |= jnp.eye(num_rows * width, dtype=bool)
  return extend(cache, flat(tokens), flat(position), seen, within, flat(slot))


def add_forced_scores(rows: Samples, logits: Float[Array, 'B K W V'],
                      position: Int[Array, 'B K W']) -> Samples:
  """Adds the log-probabilities of forced tokens. logits: after the tokens at `position`. rows: with
  the forced tokens."""
  longest = rows.tokens.shape[2]
  forced = jnp.where(position + 1 < rows.lengths[..., None], position + 1, longest)
  token = jnp.take_along_axis(rows.tokens, jnp.minimum(forced, longest - 1), 2)
  logits = finite_logits(logits)
  log_probs = sanitize_log_probs(
      jnp.take_along_axis(logits, token[..., None], -1) - log_sum_exp(logits))[..., 0]
  log_probs = jnp.where(forced < longest, log_probs, 0)
  grid = jnp.indices(forced.shape, sparse=True)
  token_scores = rows.token_scores.at[grid[0], grid[1], forced].set(log_probs, mode='drop')
  return rows._replace(token_scores=token_scores, scores=rows.scores + log_probs.sum(-1))
