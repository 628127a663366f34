"""Greedy search and sampling: rows that do not compete with each other. Shapes as in `lm_head`."""
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from recjax.decoding.constraints import DEAD, LIVE, first_nan
from recjax.decoding.lm_head import BoundDecoder
from recjax.errors import ConfigError
from recjax.protocols import Constraint, NewTokens
from recjax.retrieval.top_k import top_k as largest


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings of sampling; hashable. Raises ConfigError.

  samples: independent rows of each request. new_tokens: tokens of a row at most; None takes the
  longest row of the constraint. temperature: 0 is greedy. top_k: 0 keeps all; top_p: 1.0 keeps all;
  they act in this order on what the constraint allows, as in transformers. token_scores: also
  return each token's log-probability. pass_width: tokens of a row that one pass of the model takes
  where they are forced (see `forced_sampling`), 0 for one token a step. pad_id: what fills rows up.
  """
  samples: int = 1
  new_tokens: NewTokens = None
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  token_scores: bool = False
  pass_width: int = 0
  pad_id: int = 0

  def __post_init__(self):
    if self.samples < 1 or (self.new_tokens is not None and self.new_tokens < 1):
      raise ConfigError(f'samples={self.samples} and new_tokens={self.new_tokens} must be at '
                        'least 1')
    if self.temperature < 0 or self.top_k < 0 or self.pass_width < 0 or not 0 < self.top_p <= 1:
      raise ConfigError(f'temperature={self.temperature}, top_k={self.top_k} and pass_width='
                        f'{self.pass_width} must not be negative, top_p={self.top_p} must be above '
                        '0 and at most 1')


class Samples(NamedTuple):
  """Rows of each request, in the order of their draws.

  tokens: padded. scores: sums of log-probabilities before temperature and cuts. complete: ended.
  state: the constraint's. steps: model passes so far. nan_step: the new token at which the model
  gave NaN to a row that went on, or -1. lengths: tokens of each row. token_scores: log-probability
  of each token.
  """
  tokens: Int[Array, 'B K T']
  scores: Float[Array, 'B K']
  lengths: Int[Array, 'B K']
  complete: Bool[Array, 'B K']
  state: PyTree
  token_scores: Float[Array, 'B K T']
  steps: Int[Array, '']
  nan_step: Int[Array, ' B']


class Draws(NamedTuple):
  """What chance each request has of its own, in one program for all: keys, and temperatures, 0 for
  greedy. A request's rows are those that it has alone with its key."""
  keys: Key[Array, ' B']
  temperatures: Float[Array, ' B']


Chance = Key[Array, ''] | Draws  # of all draws, or of each request's


def own_draws(seeds: Sequence[int], temperatures: Sequence[float]) -> Draws:
  """Draws of requests that each have a seed and a temperature. seeds: from 0 to 2^32 - 1."""
  return Draws(jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32)),
               jnp.array(temperatures, jnp.float32))


def no_samples(batch: int, constraint: Constraint, search: Sampling) -> Samples:
  """Rows before their first token. batch: B. constraint, search: as of `sample`."""
  shape = (batch, search.samples)
  state = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[2:])),
                       constraint.start(batch))
  tokens = jnp.full((*shape, search.new_tokens), search.pad_id, jnp.int32)
  return Samples(tokens, jnp.zeros(shape), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool),
                 state, jnp.zeros(tokens.shape), jnp.int32(0), jnp.full(batch, -1))


def sample(model: BoundDecoder, cache: PyTree, first: Float[Array, 'B D'], constraint: Constraint,
           search: Sampling, key: Chance) -> Samples:
  """Draws rows token by token; greedy where the temperature is 0.

  model, cache, first, constraint: as in `beam_search`. search: its settings. key: of all draws, or
  Draws, whose temperatures then count. A row's draws depend on the key, its request's and its own
  number and the step alone.
  """
  shape = (len(first), search.samples)

  def append(rows: Samples, hidden: Array) -> Samples:
    t, choose = rows.steps, cast(Any, draw)
    hidden = jnp.broadcast_to(hidden, (*shape, hidden.shape[-1]))
    token, node, log_prob = constraint.candidates(
        model.head(hidden), rows.state, t, 0, lambda *given: choose(*given, key, t, search))
    live = ~rows.complete & (log_prob > LIVE)
    state = constraint.advance(rows.state, token, node)
    complete = constraint.is_final(state, token, t)
    tokens = lax.dynamic_update_index_in_dim(
        rows.tokens, jnp.where(live, token, search.pad_id), t, 2)
    gained = jnp.where(live, log_prob, 0)
    token_scores = lax.dynamic_update_index_in_dim(rows.token_scores, gained, t, 2)
    return Samples(tokens, rows.scores + gained, rows.lengths + live,
                   rows.complete | (live & complete), where_rows(live, state, rows.state),
                   token_scores, t + 1, first_nan(rows.nan_step, hidden, ~rows.complete, t))

  def goes_on(carry: tuple) -> Array:
    rows, _ = carry
    return (rows.steps < search.new_tokens) & ~rows.complete.all()

  def step(carry: tuple) -> tuple:
    rows, cache = carry
    last = lax.dynamic_index_in_dim(rows.tokens, rows.steps - 1, 2, keepdims=False)
    hidden, cache = model.step(last, cache, rows.steps - 1)
    return append(rows, hidden), cache

  rows = append(no_samples(len(first), constraint, search), first[:, None])
  return lax.while_loop(goes_on, step, (rows, cache))[0]


def where_rows(which: Bool[Array, 'B K'], new: PyTree, old: PyTree) -> PyTree:
  """Chooses between pytrees with leading axes (B, K), row by row. which: takes `new`, else `old`.
  """
  def choose(a: Array, b: Array) -> Array:
    return jnp.where(which.reshape(*which.shape, *(1,) * (a.ndim - 2)), a, b)
  return jax.tree.map(choose, new, old)


def draw(log_probs: Float[Array, 'B K C'], tokens: Int[Array, 'B K C'], nodes: Int[Array, 'B K C'],
         key: Chance, t: Array | int, search: Sampling
         ) -> tuple[Int[Array, 'B K'], Int[Array, 'B K'], Float[Array, 'B K']]:
  """Token number t, () or (B, K), of each row, by the Gumbel trick.

  log_probs, tokens, nodes: of the candidates; DEAD where forbidden. key: as in `sample`. search:
  temperature and cuts. -> tokens, nodes, log-probabilities
  """
  def drawn(temperature: Array | float) -> Array:
    scaled = jnp.where(log_probs > LIVE, log_probs / temperature, DEAD)
    kept = within_cuts(scaled, search.top_k, search.top_p)
    noisy = scaled + gumbel_noise(key, t, log_probs.shape)
    return jnp.argmax(jnp.where(kept, noisy, DEAD * 2), -1)
  if isinstance(key, Draws):
    warmth = key.temperatures[:, None]
    choice = jnp.argmax(log_probs, -1)
    choice = lax.cond((warmth > 0).any(), lambda: jnp.where(
        warmth > 0, drawn(jnp.where(warmth > 0, warmth, 1)[..., None]), choice), lambda: choice)
  elif search.temperature:
    choice = drawn(search.temperature)
  else:
    choice = jnp.argmax(log_probs, -1)
  chosen = lambda x: jnp.take_along_axis(x, choice[..., None], -1)[..., 0]  # noqa: E731
  return chosen(tokens), chosen(nodes), chosen(log_probs)


def gumbel_noise(key: Chance, t: Array | int, shape: tuple) -> Float[Array, 'B K C']:
  """Noise of each row's step, which depends on its own numbers, not on the batch's size. key: as
  in `sample`. t: number of the token, () or (B, K). shape: (B, K, C)."""
  *rows, width = shape
  request, row = jnp.indices(rows)

  def noise_of(key: Array, t: Array, request: Array, row: Array) -> Array:
    row_key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, t), request), row)
    return jax.random.gumbel(row_key, (width,))
  if isinstance(key, Draws):  # each request is the first of its own
    keys, request = key.keys, jnp.zeros_like(request)
  else:  # as one key, its part of the work is done once
    keys = key
  over_rows = jax.vmap(noise_of, (None, 0, 0, 0))
  return jax.vmap(over_rows, (0 if keys.ndim else None, 0, 0, 0))(
      keys, jnp.broadcast_to(t, rows), request, row)


def within_cuts(log_weights: Float[Array, '... C'], top_k: int, top_p: float
                ) -> Bool[Array, '... C']:
  """Which candidates top-k and then top-p leave: all that are equal at a cut, and the best.

  log_weights: of the candidates, unnormalized. top_k: how many, 0 for all. top_p: the share that
  those which are left have at least together, 1 for all. Nothing is sorted but the top k.
  """
  if not top_k and top_p >= 1:
    return jnp.ones(log_weights.shape, bool)
  kept = log_weights > LIVE
  if top_k:
    best, _ = largest(log_weights, min(top_k, log_weights.shape[-1]))
    kept &= log_weights >= best[..., -1:]
  if top_p < 1:
    kept &= _in_nucleus(jnp.where(kept, log_weights, DEAD), top_p)
  return kept | (log_weights == log_weights.max(-1, keepdims=True))


def _in_nucleus(log_weights, top_p):
  """The fewest candidates whose shares add up to top_p, by the largest lower bound that has them.

  The bound is found bit by bit on whole numbers that order as floats do: the sign bit set for
  positive ones, all bits turned for negative ones.
  """
  share = jax.nn.softmax(log_weights, -1)
  bits = lax.bitcast_convert_type(log_weights.astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  order = jnp.where(bits >= sign, ~bits, bits | sign)

  def raised(turn, bound):
    higher = bound | (sign >> turn.astype(jnp.uint32))
    mass = jnp.where(order >= higher, share, 0).sum(-1, keepdims=True)
    return jnp.where(mass >= top_p, higher, bound)
  none = jnp.zeros((*log_weights.shape[:-1], 1), jnp.uint32)
  return order >= lax.fori_loop(0, 32, raised, none, unroll=8)  # a turn is several kernels
