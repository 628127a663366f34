"""Stochastic beam search: K different rows of each request, drawn without replacement.

Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019 (arXiv 1903.06059). The log-
probability of every row is perturbed by Gumbel noise; the K largest are a sample without
replacement, and conditioning children on the perturbed value of their parent finds them by a beam
search. Row K + 1 gives the threshold that the rows' weights need. The value of the empty row is
drawn too: held at 0, as the paper's pseudocode may be read, the weights would not be unbiased.

A parent's probability must be the sum of its children's, so constraints are normalized over what
may come: `Normalization('valid')`. Shape letters as in `lm_head`.
"""
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from recjax.decoding.beam_search import gather_rows
from recjax.decoding.constraints import DEAD, LIVE, CatalogConstraint, first_nan
from recjax.decoding.lm_head import BoundDecoder
from recjax.decoding.sampling import gumbel_noise
from recjax.errors import ConfigError
from recjax.protocols import Constraint, NewTokens


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StochasticBeamSearch:
  """Settings; hashable. Raises ConfigError.

  beams: K, rows of each request. new_tokens: tokens of a row at most; None takes the longest row of
  the constraint. pad_id: what fills rows up.
  """
  beams: int = 1
  new_tokens: NewTokens = None
  pad_id: int = 0

  def __post_init__(self):
    if self.beams < 1 or (self.new_tokens is not None and self.new_tokens < 1):
      raise ConfigError(f'beams={self.beams} and new_tokens={self.new_tokens} must be at least 1')


class DistinctRows(NamedTuple):
  """Rows of each request, no two the same, the largest perturbed value first.

  tokens: padded. log_probs: of rows, DEAD where there is no row; token_log_probs: of their tokens.
  perturbed: with the noise. threshold: the perturbed value of the best row that is not here, -inf
  where there is none. complete: ended and not cut at T. state: the constraint's. steps: model
  steps. nan_step: the new token at which the model gave NaN to a live row, or -1. lengths: tokens
  of each row.
  """
  tokens: Int[Array, 'B K T']
  log_probs: Float[Array, 'B K']
  token_log_probs: Float[Array, 'B K T']
  perturbed: Float[Array, 'B K']
  threshold: Float[Array, ' B']
  lengths: Int[Array, 'B K']
  complete: Bool[Array, 'B K']
  state: PyTree
  steps: Int[Array, '']
  nan_step: Int[Array, ' B']


def check_normalized(constraint: Constraint) -> None:
  """Raises ConfigError where children's probabilities do not sum to their parent's. constraint: of
  the search."""
  if isinstance(constraint, CatalogConstraint) and (
      constraint.normalization.denominator != 'valid' or constraint.mixing is not None):
    raise ConfigError('rows without replacement need probabilities over what may come: '
                      "Normalization('valid') and no mixing; elsewhere use beams or samples")


def conditioned(perturbed: Float[Array, 'B K'], noisy: Float[Array, 'B K C']
                ) -> Float[Array, 'B K C']:
  """Perturbed values of children whose largest is their parent's (Kool et al., appendix B.3).

  perturbed: of the parents. noisy: log-probabilities of the children plus Gumbel noise.
  """
  largest = noisy.max(-1, keepdims=True)
  parent = perturbed[..., None]
  excess = parent - noisy + jnp.log1p(-jnp.exp(jnp.minimum(noisy - largest, 0)))
  return parent - jnp.maximum(excess, 0) - jnp.log1p(jnp.exp(-jnp.abs(excess)))


def inclusion_weights(log_probs: Float[Array, 'B K'], threshold: Float[Array, ' B']
                      ) -> Float[Array, 'B K']:
  """p / P(p's perturbed value is above the threshold): sums over rows of weight * f are unbiased
  estimates of the mean of f (Kool et al., equation 6). 0 for rows that do not exist.

  log_probs, threshold: as of DistinctRows.
  """
  above = log_probs - threshold[:, None]
  likely = jnp.log(-jnp.expm1(-jnp.exp(jnp.minimum(jnp.maximum(above, -15.0), 80.0))))
  log_inclusion = jnp.where(above < -15, above, likely)
  return jnp.where(log_probs > LIVE, jnp.exp(log_probs - log_inclusion), 0)


def stochastic_beam_search(model: BoundDecoder, cache: PyTree, first: Float[Array, 'B D'],
                           constraint: Constraint, search: StochasticBeamSearch,
                           key: Key[Array, '']) -> DistinctRows:
  """Draws the rows of all requests at once.

  model, first, constraint: as in `beam_search`. cache: after the prompts, with K + 1 suffixes.
  search: with its new_tokens. key: of all draws. Raises ConfigError for a constraint whose
  probabilities do not sum to 1.
  """
  check_normalized(constraint)

  def goes_on(carry: tuple) -> Array:
    rows, _ = carry
    return (rows.steps < search.new_tokens) & ((rows.log_probs > LIVE) & ~rows.complete).any()

  def step(carry: tuple) -> tuple:
    rows, cache = carry
    last = lax.dynamic_index_in_dim(rows.tokens, rows.steps - 1, 2, keepdims=False)
    hidden, cache = model.step(last, cache, rows.steps - 1)
    rows, parents = advance_rows(rows, hidden, model.head, constraint, search, key)
    return rows, model.reorder(cache, parents) if model.reorder else cache

  rows = first_rows(len(first), constraint, search, key)
  hidden = jnp.broadcast_to(first[:, None], (*rows.log_probs.shape, first.shape[-1]))
  rows, _ = advance_rows(rows, hidden, model.head, constraint, search, key)
  rows, _ = lax.while_loop(goes_on, step, (rows, cache))
  threshold = jnp.where(rows.log_probs[:, -1] > LIVE, rows.perturbed[:, -1], -jnp.inf)
  kept = jax.tree.map(lambda x: x[:, :-1], (
    rows.tokens, rows.log_probs, rows.token_log_probs, rows.perturbed, rows.lengths, rows.complete,
    rows.state))
  tokens, log_probs, token_log_probs, perturbed, lengths, complete, state = kept
  return DistinctRows(
    tokens, log_probs, token_log_probs, perturbed, threshold, lengths,
    complete & (log_probs > LIVE), state, rows.steps, rows.nan_step)


def first_rows(batch: int, constraint: Constraint, search: StochasticBeamSearch,
               key: Key[Array, '']) -> DistinctRows:
  """One empty row of each request, with its Gumbel noise, and K that do not exist. batch: B.
  constraint, search, key: as of `stochastic_beam_search`."""
  shape = (batch, search.beams + 1)
  exists = jnp.arange(shape[1]) == 0
  state = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], (*shape, *x.shape[2:])),
                       constraint.start(batch))
  tokens = jnp.full((*shape, search.new_tokens), search.pad_id, jnp.int32)
  noise = gumbel_noise(key, 0, (batch, 1, 1))[..., 0]
  return DistinctRows(
    tokens, jnp.broadcast_to(jnp.where(exists, 0.0, DEAD), shape), jnp.zeros(tokens.shape),
    jnp.where(exists, noise, DEAD), jnp.full(batch, -jnp.inf), jnp.zeros(shape, jnp.int32),
    jnp.zeros(shape, bool), state, jnp.int32(0), jnp.full(batch, -1, jnp.int32))


def advance_rows(rows: DistinctRows, hidden: Float[Array, 'B K1 D'], head: Callable,
                 constraint: Constraint, search: StochasticBeamSearch, key: Key[Array, '']
                 ) -> tuple[DistinctRows, Int[Array, 'B K1']]:
  """One token more. -> rows, the row that each goes on from

  rows: before, K + 1 of each request. hidden: their states. head: states -> LMHead. constraint,
  search, key: as of `stochastic_beam_search`. A finished row is its own only child.
  """
  t, done = rows.steps, rows.complete
  live = (rows.log_probs > LIVE) & ~done
  nan_step = first_nan(rows.nan_step, hidden, live, t)

  def choose(log_probs: Array, tokens: Array, nodes: Array) -> tuple[Array, ...]:
    batch, count, width = log_probs.shape
    itself = done[..., None] & (jnp.arange(width) == 0)
    log_probs = jnp.where(live[..., None], log_probs, DEAD)
    noise = gumbel_noise(key, t + 1, log_probs.shape)
    whole = jnp.maximum(rows.log_probs[..., None] + log_probs, DEAD)
    perturbed = jnp.where(whole > LIVE, conditioned(rows.perturbed, whole + noise), DEAD)
    perturbed = jnp.where(itself, rows.perturbed[..., None], perturbed).reshape(batch, -1)
    gained = jnp.where(itself, 0, log_probs).reshape(batch, -1)
    lack = max(0, count - perturbed.shape[1])
    perturbed = jnp.pad(perturbed, [(0, 0), (0, lack)], constant_values=DEAD)
    best, place = lax.top_k(perturbed, count)
    place = jnp.minimum(place, count * width - 1)
    take = lambda x: jnp.take_along_axis(x.reshape(batch, -1), place, 1)  # noqa: E731
    return best, take(gained), place // width, take(tokens), take(nodes)

  best, gained, parents, token, node = constraint.candidates(
    head(hidden), rows.state, t, 0, choose)
  exists, was_done = best > LIVE, jnp.take_along_axis(done, parents, 1)
  base = gather_rows((rows.tokens, rows.log_probs, rows.token_log_probs, rows.lengths, rows.state),
                     parents)
  tokens, log_probs, token_log_probs, lengths, before = base
  after = constraint.advance(before, token, node)
  grows = exists & ~was_done

  def if_grows(new: Any, old: Any) -> Array:
    return jnp.where(grows.reshape(*grows.shape, *(1,) * (new.ndim - 2)), new, old)
  state = jax.tree.map(if_grows, after, before)
  gained = jnp.where(grows, gained, 0)
  return DistinctRows(
    lax.dynamic_update_index_in_dim(tokens, jnp.where(grows, token, search.pad_id), t, 2),
    jnp.where(exists, log_probs + gained, DEAD),
    lax.dynamic_update_index_in_dim(token_log_probs, gained, t, 2), best, rows.threshold,
    lengths + grows, was_done | grows & constraint.is_final(state, token, t), state, t + 1,
    nan_step), parents
