"""Greedy search and sampling: rows that do not compete with each other."""
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from recjax.decoding.constraints import DEAD, LIVE, met_nan
from recjax.decoding.lm_head import plain_head
from recjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Settings of sampling; hashable. Raises ConfigError.

  rows: independent rows of each request. temperature: 0 is greedy. top_k: 0 keeps all; top_p: 1.0
  keeps all. They act in this order on what the constraint allows, as in transformers.
  """
  rows: int
  new_tokens: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  pad_id: int = 0

  def __post_init__(self):
    if self.rows < 1 or self.new_tokens < 1:
      raise ConfigError(f'rows={self.rows} and new_tokens={self.new_tokens} must be at least 1')
    if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
      raise ConfigError(f'temperature={self.temperature} and top_k={self.top_k} must not be '
                        f'negative, top_p={self.top_p} must be above 0 and at most 1')


class Sampled(NamedTuple):
  """tokens: (B, K, T) int32, padded. scores: (B, K) float32, sums of log-probabilities before
  temperature and cuts. lengths: (B, K) int32. complete: (B, K) bool, ended. state: the
  constraint's. token_scores: (B, K, T) float32. steps: () int32. broken: (B,) int32, the token at
  which the model gave NaN to a row that went on, or -1"""
  tokens: jax.Array
  scores: jax.Array
  lengths: jax.Array
  complete: jax.Array
  state: object
  token_scores: jax.Array
  steps: jax.Array
  broken: jax.Array


def sample(step: Callable, cache, first, constraint, cfg: SampleConfig, key, head=plain_head):
  """Draws rows token by token; greedy where the temperature is 0. Arguments as in `beam_search`.

  A row's draws depend on the key, its request's and its own number and the step alone.
  -> Sampled
  """
  batch = len(first)
  shape = (batch, cfg.rows)

  def put(found, hidden):
    t = found.steps
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[2:])), found.state)
    if hidden.shape[1] == 1:
      hidden = jnp.broadcast_to(hidden, (*shape, hidden.shape[-1]))
    token, node, logp = constraint.expand(
        head(hidden), state, t, 0, lambda *given: draw(*given, key, t, cfg))
    live = ~found.complete & (logp > LIVE)
    beam = jnp.broadcast_to(jnp.arange(cfg.rows), shape)
    follow = constraint.follow(state, beam, token, node)
    over = constraint.ends(follow, token, t)
    keep = lambda a, b: jnp.where(live.reshape(*shape, *(1,) * (a.ndim - 2)), a, b)  # noqa: E731
    tokens = lax.dynamic_update_index_in_dim(
        found.tokens, jnp.where(live, token, cfg.pad_id), t, 2)
    gained = jnp.where(live, logp, 0)
    each = lax.dynamic_update_index_in_dim(found.token_scores, gained, t, 2)
    return Sampled(tokens, found.scores + gained, found.lengths + live,
                   found.complete | (live & over), jax.tree.map(keep, follow, state), each, t + 1,
                   met_nan(found.broken, hidden, ~found.complete, t))

  def more(carry):
    found, _ = carry
    return (found.steps < cfg.new_tokens) & ~found.complete.all()

  def advance(carry):
    found, cache = carry
    last = lax.dynamic_index_in_dim(found.tokens, found.steps - 1, 2, keepdims=False)
    hidden, cache = step(last, cache, found.steps - 1)
    return put(found, hidden), cache

  tokens = jnp.full((*shape, cfg.new_tokens), cfg.pad_id, jnp.int32)
  found = Sampled(tokens, jnp.zeros(shape), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool),
                  constraint.start(batch), jnp.zeros(tokens.shape), jnp.int32(0),
                  jnp.full(batch, -1))
  return lax.while_loop(more, advance, (put(found, first[:, None]), cache))[0]


def draw(values, ids, nodes, key, t, cfg):
  """Token number t (() or (B, K)) of each row by the Gumbel trick. values: (B, K, C), DEAD where
  forbidden.

  -> tokens, nodes, log-probabilities, each (B, K)
  """
  if cfg.temperature:
    scaled = jnp.where(values > LIVE, values / cfg.temperature, DEAD)
    kept = cut(scaled, cfg.top_k, cfg.top_p)
    place = jnp.argmax(jnp.where(kept, scaled + noise(key, t, values.shape), DEAD * 2), -1)
  else:
    place = jnp.argmax(values, -1)
  at = lambda x: jnp.take_along_axis(x, place[..., None], -1)[..., 0]  # noqa: E731
  return at(ids), at(nodes), at(values)


def noise(key, t, shape):
  """Gumbel noise of a row's step, which depends on its own numbers, not on the batch's size."""
  *rows, width = shape
  number = jnp.indices(rows)

  def one(t, request, row):
    here = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, t), request), row)
    return jax.random.gumbel(here, (width,))
  return jax.vmap(jax.vmap(one))(jnp.broadcast_to(t, rows), *number)


def cut(values, top_k, top_p):
  """Which candidates top-k and then top-p leave. values: (..., C) log-weights. -> bool"""
  if not top_k and top_p >= 1:
    return jnp.ones(values.shape, bool)
  order = jnp.argsort(-values, -1)
  ranked = jnp.take_along_axis(values, order, -1)
  if top_k:
    ranked = jnp.where(jnp.arange(values.shape[-1]) < top_k, ranked, DEAD)
  share = jax.nn.softmax(ranked, -1)
  before = jnp.cumsum(share, -1) - share
  good = (before < top_p) & (ranked > LIVE)
  place = jnp.argsort(order, -1)
  return jnp.take_along_axis(good.at[..., 0].set(True), place, -1)
