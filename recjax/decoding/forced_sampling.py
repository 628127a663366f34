"""Sampling in item mode with fewer model passes than tokens: forced tokens go through together.

Inside an item often one token alone may come: the rest of a title that no other shares, or the end.
Such runs need no choice, so a pass takes a row's last token and the run after it. Rows have clocks
of their own. Tokens, draws and scores are those of `sampling.sample` (specification: RecLM, T-G7).
"""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from recjax.decoding.constraints import met_nan, sanitize_log_probs
from recjax.decoding.lm_head import log_sum_exp
from recjax.decoding.sampling import SampleConfig, Sampled, draw


class State(NamedTuple):
  """found: `Sampled` so far; a row's last token has not gone through the model yet."""
  found: Sampled
  cache: object


def sample_runs(extend: Callable, cache, first, constraint, cfg: SampleConfig, key, head,
                width: int) -> Sampled:
  """As `sampling.sample`, in passes of up to `width` tokens of each row.

  extend: see `lookahead_beam_search`; its pool has cfg.rows * cfg.new_tokens slots. constraint:
  `ItemSpanConstraint`.
  """
  state = State(begin(first, constraint, cfg, key, head), cache)
  return advance(extend, head, constraint, cfg, key, width, state, cfg.new_tokens).found


def begin(first, constraint, cfg, key, head):
  """Rows with their first token. first: (B, D), the state after each prompt. -> Sampled"""
  batch = len(first)
  shape = (batch, cfg.rows)
  state = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[2:])),
                       constraint.start(batch))
  found = Sampled(jnp.full((*shape, cfg.new_tokens), cfg.pad_id, jnp.int32), jnp.zeros(shape),
                  jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), state,
                  jnp.zeros((*shape, cfg.new_tokens)), jnp.int32(0), jnp.full(batch, -1))
  hidden = jnp.broadcast_to(first[:, None], (*shape, first.shape[-1]))
  return choose(found, hidden, head, constraint, cfg, key)


def advance(extend, head, constraint, cfg, key, width, state, passes):
  """Goes on until every row ended, for `passes` passes at most. -> State"""
  until = state.found.steps + passes
  run = functools.partial(pass_, extend, head, constraint, cfg, key, width)
  return lax.while_loop(lambda s: going(s.found, cfg).any() & (s.found.steps < until), run, state)


def going(found, cfg):
  """Which rows are not at their end. -> (B, K)"""
  return ~found.complete & (found.lengths < cfg.new_tokens)


def choose(found, hidden, head, constraint, cfg, key):
  """Draws the next token of every row that goes on. hidden: (B, K, D) -> Sampled"""
  t = found.lengths
  token, node, logp = constraint.expand(
      head(hidden), found.state, t, 0, lambda *given: draw(*given, key, t, cfg))
  live = going(found, cfg)
  broken = met_nan(found.broken, hidden, live, t)
  found = append(found, constraint, live, token, node, logp)
  return found._replace(steps=found.steps + 1, broken=broken)


def append(found, constraint, which, token, node, logp):
  """Rows with one more token where `which` says so; all (B, K). -> Sampled"""
  keep = lambda a, b: jnp.where(which.reshape(*which.shape, *(1,) * (a.ndim - 2)), a, b)  # noqa: E731
  here = which[..., None] & (jnp.arange(found.tokens.shape[2]) == found.lengths[..., None])
  beam = jnp.broadcast_to(jnp.arange(which.shape[1]), which.shape)
  follow = constraint.follow(found.state, beam, token, node)
  over = constraint.ends(follow, token, found.lengths)
  return found._replace(
      tokens=jnp.where(here, token[..., None], found.tokens),
      token_scores=jnp.where(here, logp[..., None], found.token_scores),
      scores=found.scores + jnp.where(which, logp, 0), lengths=found.lengths + which,
      complete=found.complete | (which & over), state=jax.tree.map(keep, follow, found.state))


def pass_(extend, head, constraint, cfg, key, width, state):
  """Runs each row's last token and what is forced after it, and draws the token after that."""
  found = state.found
  batch, rows = found.lengths.shape
  start, live = found.lengths - 1, going(found, cfg)

  def run(_, found):
    token, node, one = constraint.forced(found.state, found.lengths)
    short = found.lengths - start < width
    return append(found, constraint, live & one & short & going(found, cfg), token, node,
                  jnp.zeros_like(found.scores))

  found = lax.fori_loop(1, width, run, found)
  at = start[..., None] + jnp.arange(width)
  real = (live & (start >= 0))[..., None] & (at < found.lengths[..., None])
  tokens = jnp.take_along_axis(found.tokens, jnp.minimum(at, cfg.new_tokens - 1), 2)
  row = jnp.broadcast_to(jnp.arange(rows)[:, None], (batch, rows, width))
  slot = jnp.where(real, row * cfg.new_tokens + at, rows * cfg.new_tokens)
  flat = lambda x: x.reshape(batch, rows * width, *x.shape[3:])  # noqa: E731
  pool = jnp.arange(rows * cfg.new_tokens)
  seen = ((pool // cfg.new_tokens == flat(row)[..., None])
          & (pool % cfg.new_tokens < jnp.repeat(start, width, 1)[..., None]))
  within = ((flat(row)[:, :, None] == flat(row)[:, None]) & flat(real)[:, None]
            & (flat(at)[:, :, None] >= flat(at)[:, None]))
  within |= jnp.eye(rows * width, dtype=bool)
  hidden, cache = extend(state.cache, flat(tokens), flat(at), seen, within, flat(slot))
  found = weigh(found, head(hidden).full().reshape(batch, rows, width, -1), at)
  last = jnp.maximum(found.lengths - 1 - start, 0)[..., None, None]
  hidden = hidden.reshape(batch, rows, width, -1)
  hidden = jnp.take_along_axis(hidden, last, 2)[:, :, 0]
  return State(choose(found, hidden, head, constraint, cfg, key), cache)


def weigh(found, logits, at):
  """Adds the log-probabilities of forced tokens. logits: (B, K, W, V) after tokens number `at`."""
  longest = found.tokens.shape[2]
  spot = jnp.where(at + 1 < found.lengths[..., None], at + 1, longest)
  token = jnp.take_along_axis(found.tokens, jnp.minimum(spot, longest - 1), 2)
  logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
  logp = sanitize_log_probs(
    jnp.take_along_axis(logits, token[..., None], -1) - log_sum_exp(logits)
  )[..., 0]
  logp = jnp.where(spot < longest, logp, 0)
  grid = jnp.indices(spot.shape, sparse=True)
  each = found.token_scores.at[grid[0], grid[1], spot].set(logp, mode='drop')
  return found._replace(token_scores=each, scores=found.scores + logp.sum(-1))
