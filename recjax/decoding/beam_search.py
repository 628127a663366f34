"""Beam search with the semantics of transformers 5, free or under a constraint.

At each step the best (1 + end tokens) * K continuations of a request's K beams are kept; those of
rank below K that end are finished rows, the best K that do not end go on. A finished row's value is
its score / length ** length_penalty, the end token counted. Requests do not influence each other,
and beams that do not exist (fewer titles than beams) never come back as rows.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from recjax.decoding.constraints import DEAD, LIVE, met_nan
from recjax.decoding.lm_head import stages
from recjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class BeamConfig:
  """Settings of a beam search; hashable, so a static argument. Raises ConfigError.

  early_stopping: False stops when the best open beam cannot beat the worst finished row at its own
  length, True as soon as K rows are finished, 'never' reckons with the longest length. end_tokens:
  how many tokens may end a row. token_scores: also return each token's log-probability.
  """
  beams: int
  new_tokens: int
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  end_tokens: int = 1
  pad_id: int = 0
  token_scores: bool = False

  def __post_init__(self):
    if self.beams < 1 or self.new_tokens < 1:
      raise ConfigError(f'beams={self.beams} and new_tokens={self.new_tokens} must be at least 1')
    if self.early_stopping not in (True, False, 'never'):
      raise ConfigError(f"early_stopping={self.early_stopping!r}; choose True, False or 'never'")

  @property
  def kept(self):
    """Continuations kept of a step: enough for K to go on however many end."""
    return (1 + max(1, self.end_tokens)) * self.beams


class Rows(NamedTuple):
  """K rows of each request, best first; T = new_tokens.

  tokens: (B, K, T) int32, padded. scores: (B, K) float32, DEAD where there is no row. lengths: (B,
  K) int32. complete: (B, K) bool, ended and not cut at T. state: the constraint's, (B, K).
  token_scores: (B, K, T) float32 or None
  """
  tokens: jax.Array
  scores: jax.Array
  lengths: jax.Array
  complete: jax.Array
  state: object
  token_scores: jax.Array | None


class Found(NamedTuple):
  """What a search gives. exists: (B, K) bool; count: (B,) rows found; steps: () model steps used;
  broken: (B,) int32, the step at which a live beam of the model gave NaN, or -1."""
  rows: Rows
  exists: jax.Array
  count: jax.Array
  steps: jax.Array
  broken: jax.Array


class State(NamedTuple):
  """The loop's state after t tokens: open beams, finished rows, which requests go on."""
  t: jax.Array
  beams: Rows          # scores are sums of log-probabilities
  done: Rows           # scores are values
  open: jax.Array      # (B,)
  before: jax.Array    # (B,) tokens that lengths count besides the new ones
  broken: jax.Array    # (B,)
  cache: object


def beam_search(step: Callable, reorder: Callable, head: Callable, cache, first, constraint,
                cfg: BeamConfig, grow: Callable | None = None,
                pick: Callable | None = None, before=None) -> Found:
  """Searches all requests at once.

  step: (tokens (B, K) int32, cache, t) -> (state (B, K, D), cache). reorder: (cache, parents
  (B, K)) -> cache. head: state -> Head. first: (B, D), the state after each prompt. constraint:
  see `constraints`. grow: (cache, new_tokens) -> cache, where the cache begins with room for
  `stages(cfg.new_tokens)[0]` tokens only. pick: (cache, requests (A,)) -> cache; with it the last
  half of the requests goes on alone once the other half is done. before: (B,) int32, tokens that
  lengths count besides the new ones; the prompts' give the values of old releases of transformers.
  """
  half = len(first) // 2 if pick else 0

  def advance(constraint, state):
    last = lax.dynamic_index_in_dim(state.beams.tokens, state.t - 1, 2, keepdims=False)
    hidden, cache = step(last, state.cache, state.t - 1)
    return turn(state._replace(cache=cache), hidden, head, reorder, constraint, cfg)

  before = jnp.zeros(len(first), jnp.int32) if before is None else before
  state = begin(cache, before, constraint, cfg)
  state = turn(state, first[:, None], head, None, constraint, cfg)
  for limit in stages(cfg.new_tokens) if grow else [cfg.new_tokens]:
    cache = grow(state.cache, limit) if grow else state.cache
    state = lax.while_loop(lambda s, limit=limit: (s.t < limit) & (s.open.sum() > half),
                           functools.partial(advance, constraint), state._replace(cache=cache))
  if half:
    few = lax.top_k(state.open.astype(jnp.int32), half)[1]
    rest = jax.tree.map(lambda x: x[few] if x.ndim else x, state._replace(cache=()))
    rest = lax.while_loop(lambda s: (s.t < cfg.new_tokens) & s.open.any(),
                          functools.partial(advance, constraint.pick(few)),
                          rest._replace(cache=pick(state.cache, few)))
    done, broken = jax.tree.map(lambda a, b: a.at[few].set(b), (state.done, state.broken),
                                (rest.done, rest.broken))
    state = state._replace(t=rest.t, done=done, broken=broken)
  exists = state.done.scores > LIVE
  return Found(state.done, exists, exists.sum(-1, dtype=jnp.int32), state.t, state.broken)


def begin(cache, before, constraint, cfg):
  """The state before the first token: one beam a request. before: (B,) int32"""
  batch = len(before)
  start = constraint.start(batch)
  beams = _empty(batch, 1, start, cfg)._replace(scores=jnp.zeros((batch, 1)))
  return State(jnp.int32(0), beams, _empty(batch, cfg.beams, start, cfg), jnp.ones(batch, bool),
               before, jnp.full(batch, -1, jnp.int32), cache)


def _empty(batch, rows, start, cfg):
  shape = (batch, rows)
  tokens = jnp.full((*shape, cfg.new_tokens), cfg.pad_id, jnp.int32)
  state = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], (*shape, *x.shape[2:])), start)
  return Rows(tokens, jnp.full(shape, DEAD), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool),
              state, jnp.zeros(tokens.shape, jnp.float32) if cfg.token_scores else None)


def turn(state, hidden, head, reorder, constraint, cfg):
  """One step of all requests after the model's. hidden: (B, K, D) -> State"""
  t, beams = state.t, state.beams
  open_rows = state.open[:, None] & (beams.scores > LIVE)  # rows that are dead may hold anything
  broken = met_nan(state.broken, hidden, open_rows, t)
  total, beam, token, node = constraint.expand(
      head(hidden), beams.state, t, cfg.kept, best_of(beams.scores, cfg.kept))
  follow = constraint.follow(take(beams.state, beam), beam, token, node)
  made = extend(beams, total, beam, token, follow, t)
  over = constraint.ends(follow, token, t)
  made = made._replace(complete=over)
  ended = over | (t + 1 == cfg.new_tokens)
  done = finish(state, made, ended, cfg)
  order = lax.top_k(jnp.where(ended, 4 * DEAD, total), cfg.beams)[1]
  running = take(made, order)
  alive = ~jnp.take_along_axis(ended, order, 1)
  running = running._replace(scores=jnp.where(alive, running.scores, DEAD))
  cache = reorder(state.cache, jnp.take_along_axis(beam, order, 1)) if reorder else state.cache
  still = state.open & may_improve(running.scores[:, 0], t + 1, done.scores, cfg, state.before)
  return State(t + 1, running, done, still, state.before, broken, cache)


def best_of(scores, kept):
  """What `expand` asks: the best continuations of all beams, ties by beam, then by place.

  scores: (B, K). -> choose(values, ids, nodes) -> totals, beams, tokens, nodes, each (B, kept)
  """
  def choose(values, ids, nodes):
    batch, _, width = values.shape
    total = jnp.maximum(scores[..., None] + values, DEAD).reshape(batch, -1)
    flat_ids, flat_nodes = ids.reshape(batch, -1), nodes.reshape(batch, -1)
    lack = kept - total.shape[1]
    if lack > 0:
      total = jnp.pad(total, [(0, 0), (0, lack)], constant_values=DEAD)
      flat_ids, flat_nodes = (jnp.pad(x, [(0, 0), (0, lack)]) for x in (flat_ids, flat_nodes))
    total, place = lax.top_k(total, kept)
    beam = jnp.minimum(place // width, scores.shape[1] - 1)
    at = lambda x: jnp.take_along_axis(x, place, 1)  # noqa: E731
    return total, beam, at(flat_ids), at(flat_nodes)
  return choose


def take(tree, order):
  """Rows of a pytree with leading axes (B, K) by number. order: (B, M)"""
  def one(x):
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), 1)
  return jax.tree.map(one, tree)


def extend(beams, total, beam, token, follow, t):
  """Rows one token longer. total, beam, token: (B, M) -> Rows (B, M)"""
  base = take(beams._replace(state=None), beam)
  tokens = lax.dynamic_update_index_in_dim(base.tokens, token, t, 2)
  scores = base.token_scores
  if scores is not None:
    scores = lax.dynamic_update_index_in_dim(scores, total - base.scores, t, 2)
  return Rows(tokens, total, jnp.full(total.shape, t + 1), base.complete, follow, scores)


def finish(state, made, ended, cfg):
  """Merges rows that end now with those that ended before. -> Rows (B, K)"""
  made = made._replace(scores=values_of(
      made.scores, ended & state.open[:, None], state.t + 1 + state.before[:, None],
      state.done.scores, cfg))
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), state.done, made)
  return take(both, lax.top_k(both.scores, cfg.beams)[1])


def values_of(scores, ended, length, done, cfg):
  """Values of rows that end now, DEAD for those that do not, or rank too low to.

  scores, ended: (B, M), best first. length: tokens that count, () or (B, 1). done:
  (B, K) values so far
  """
  new = ended & (jnp.arange(scores.shape[1]) < cfg.beams) & (scores > LIVE)
  if cfg.early_stopping is True:
    new &= ~(done > LIVE).all(-1, keepdims=True)
  return jnp.where(new, scores / length.astype(jnp.float32) ** cfg.length_penalty, DEAD)


def may_improve(best, length, done, cfg, before=0):
  """Whether a request's open beams can still beat its finished rows. -> (B,) bool

  best: (B,), the best open beam's score. length: new tokens so far, () or (B,). done: (B, K)
  values. before: tokens that count besides the new ones, () or (B,)
  """
  if cfg.early_stopping == 'never' and cfg.length_penalty > 0:
    length = jnp.full_like(length, cfg.new_tokens)
  value = best / (length + before).astype(jnp.float32) ** cfg.length_penalty
  full = (done > LIVE).all(-1)
  better = ~full if cfg.early_stopping is True else ~full | (value > done.min(-1))
  return better & (best > LIVE)
