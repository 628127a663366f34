"""Tuning of a trained generative recommender on lists that it rolls out itself, over real items.

One step is one jitted program: from each prompt K rows are rolled out under the catalog's trie,
each gets a reward, and the rows' log-probabilities under the model that learns, and under the
frozen one that training began with, go into a policy loss (`training.losses.policy`) or a
preference loss (`training.losses.preference`). No row can leave the catalog. One gradient is taken
of a roll-out, so weights and step number alone decide a step, and a killed training ends where an
uninterrupted one does.

Rows are rolled out by `swor` (stochastic beam search: without replacement, weighted by how likely
they were drawn), `samples` (with replacement) or `beams` (the K most probable ones, as published
code does: what lies outside them cannot be learned). docs/policy_tuning.md.

Shape letters: B requests, K rows of each, M = K + 1 rows with the item that came next, T tokens of
a row.
"""
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from recjax.decoding.beam_search import BeamSearch, beam_search, gather_rows
from recjax.decoding.constraints import DEAD, LIVE
from recjax.decoding.lm_head import bind
from recjax.decoding.sampling import Sampling, sample
from recjax.decoding.stochastic_beam_search import (
  StochasticBeamSearch,
  inclusion_weights,
  stochastic_beam_search,
)
from recjax.errors import ConfigError
from recjax.policy import rewards
from recjax.protocols import Constraint, Decoder
from recjax.training.losses import policy, preference

LOSSES = ('grpo', *preference.PREFERENCES)
ROLLOUTS = ('swor', 'samples', 'beams')


@dataclasses.dataclass(frozen=True)
class PolicyTuning:
  """What is rolled out and learned; hashable. Raises ConfigError.

  loss: 'grpo', or a preference loss, whose negatives are the rolled-out rows. rollout: of ROLLOUTS.
  rows: K. reward: of `rewards.REWARDS`, or a sum. nll: weight of the supervised loss on the same
  requests. grpo: settings of the policy loss, whose beta a preference loss has too.
  """
  loss: str = 'grpo'
  rollout: str = 'swor'
  rows: int = 16
  reward: str = 'rank'
  nll: float = 0.1
  grpo: policy.PolicyLoss = policy.PolicyLoss()

  def __post_init__(self):
    for name, known in (('loss', LOSSES), ('rollout', ROLLOUTS)):
      if getattr(self, name) not in known:
        raise ConfigError(f'policy.{name}={getattr(self, name)!r}; choose one of '
                          f'{", ".join(known)}')
    if self.rows < 2:
      raise ConfigError(f'policy.rows={self.rows}: a row is judged beside others of its list; '
                        'give at least 2')
    if self.nll < 0:
      raise ConfigError(f'policy.nll={self.nll} must not be negative')
    rewards.make_reward(self.reward)
    if self.rollout == 'swor' and self.grpo.ratio != 'product':
      raise ConfigError(f"policy.ratio={self.grpo.ratio!r} goes with rollout='beams' or 'samples'; "
                        "the weights of rollout='swor' belong to whole rows: ratio='product'")
    if self.loss != 'grpo':
      if self.rollout == 'samples':
        raise ConfigError(f"policy.loss={self.loss!r} needs different negatives; choose "
                          "policy.rollout='swor' or 'beams'")
      if not self.grpo.beta:
        raise ConfigError(f'policy.beta=0: {self.loss} is nothing without it; 0.1 is usual')


def from_config(cfg: ConfigDict) -> PolicyTuning:
  """The settings of a config's group `policy`. cfg: that group. Raises ConfigError."""
  of = lambda kind: {f.name: cfg[f.name] for f in dataclasses.fields(kind) if f.name in cfg}  # noqa: E731
  return PolicyTuning(**of(PolicyTuning), grpo=policy.PolicyLoss(**of(policy.PolicyLoss)))


class Model(NamedTuple):
  """How tuning reads a method's model; functions are pure.

  decoder: the model. params: (trained, frozen, batch) -> its parameters for the requests of a
  batch; reference: (frozen, batch) -> those of where training began. rollout_rule: (frozen, batch)
  -> the constraint under which rows are rolled out and scored; supervised_rule: the one of the
  supervised loss. item_of: (frozen, states of the constraint (B, K)) -> item numbers (B, K), from
  1.
  """
  decoder: Decoder
  params: Callable
  reference: Callable
  rollout_rule: Callable
  supervised_rule: Callable
  item_of: Callable


class Rollout(NamedTuple):
  """Rolled-out rows, the most probable first.

  token_log_probs: of each token at the roll-out; log_probs: of rows. weights: of rows, which sum to
  1; 0 where there is no row. items: from 1, 0 for none. nan: requests for which the model gave NaN.
  tokens: padded. lengths: tokens of each row.
  """
  tokens: Int[Array, 'B K T']
  lengths: Int[Array, 'B K']
  token_log_probs: Float[Array, 'B K T']
  log_probs: Float[Array, 'B K']
  weights: Float[Array, 'B K']
  items: Int[Array, 'B K']
  nan: Bool[Array, ' B']


def roll_out(settings: PolicyTuning, model: Model, params: PyTree, frozen: PyTree,
             batch: dict[str, Array], rule: Constraint, key: Key[Array, '']) -> Rollout:
  """Rolls rows out of a batch's prompts.

  settings: what is rolled out. model: how it is read. params: of the decoder. frozen: as of
  `Model`. batch: 'tokens', 'lengths' of the prompts. rule: the constraint. key: of the draws.
  """
  count, new_tokens = settings.rows, rule.longest
  room = count + (settings.rollout == 'swor')
  first, cache = model.decoder.start(params, batch['tokens'], batch['lengths'], room, new_tokens)
  bound = bind(model.decoder, params)._replace(grow=None, select_requests=None)
  if settings.rollout == 'swor':
    drawn = stochastic_beam_search(bound, cache, first, rule,
                                   StochasticBeamSearch(count, new_tokens), key)
    token_log_probs, log_probs = drawn.token_log_probs, drawn.log_probs
    weights = inclusion_weights(log_probs, drawn.threshold) * drawn.complete
    nan_step = drawn.nan_step
  elif settings.rollout == 'beams':
    found = beam_search(bound, cache, first, rule, BeamSearch(
      count, new_tokens, length_penalty=0.0, token_scores=True))
    drawn, token_log_probs = found.rows, found.rows.token_scores
    log_probs, weights = drawn.scores, 1.0 * (found.exists & drawn.complete)
    nan_step = found.nan_step
  else:
    drawn = sample(bound, cache, first, rule, Sampling(count, new_tokens), key)
    token_log_probs, log_probs = drawn.token_scores, drawn.scores
    weights, nan_step = 1.0 * drawn.complete, drawn.nan_step
  nan = nan_step >= 0
  exists = (weights > 0) & ~nan[:, None]
  log_probs = jnp.where(exists, log_probs, DEAD)
  weights = jnp.where(exists, weights, 0)
  weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
  items = jnp.where(exists, model.item_of(frozen, drawn.state), 0)
  order = jnp.argsort(-log_probs, -1, stable=True)
  tokens, lengths, token_log_probs, log_probs, weights, items = gather_rows(
    (drawn.tokens, jnp.where(exists, drawn.lengths, 0), token_log_probs, log_probs, weights, items),
    order)
  return Rollout(tokens, lengths, token_log_probs, log_probs, weights, items, nan)


def row_log_probs(model: Model, params: PyTree, batch: dict[str, Array], rule: Constraint,
                  tokens: Int[Array, 'B M T'], lengths: Int[Array, 'B M']
                  ) -> Float[Array, 'B M T']:
  """Log-probabilities of the tokens of given rows, as the search under `rule` has them; 0 behind a
  row's end. All rows of a request share what was read of its prompt.

  model, params, batch, rule: as of `roll_out`. tokens, lengths: of the rows.
  """
  count, longest = tokens.shape[1:]
  first, cache = model.decoder.start(params, batch['tokens'], batch['lengths'], count, longest)
  bound = bind(model.decoder, params)

  def score(hidden: Array, state: PyTree, t: Array | int) -> tuple[Array, PyTree]:
    token = lax.dynamic_index_in_dim(tokens, t, 2, keepdims=False)
    live = t < lengths

    def pick(log_probs: Array, candidates: Array, nodes: Array) -> tuple[Array, Array]:
      found = (candidates == token[..., None]) & (log_probs > LIVE)
      place = jnp.argmax(found, -1)[..., None]
      log_prob = jnp.take_along_axis(log_probs, place, -1)[..., 0]
      return (jnp.where(found.any(-1), log_prob, DEAD),
              jnp.take_along_axis(nodes, place, -1)[..., 0])
    log_prob, node = rule.candidates(bound.head(hidden), state, t, 0, pick)
    after = rule.advance(state, token, node)

    def if_live(new: Any, old: Any) -> Array:
      return jnp.where(live.reshape(*live.shape, *(1,) * (new.ndim - 2)), new, old)
    return jnp.where(live, log_prob, 0), jax.tree.map(if_live, after, state)

  start = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], (*tokens.shape[:2], *x.shape[2:])),
                       rule.start(len(tokens)))
  hidden = jnp.broadcast_to(first[:, None], (*tokens.shape[:2], first.shape[-1]))
  log_prob, state = score(hidden, start, 0)

  def step(carry: tuple, t: Array) -> tuple[tuple, Array]:
    state, cache = carry
    hidden, cache = bound.step(
      lax.dynamic_index_in_dim(tokens, t - 1, 2, keepdims=False), cache, t - 1)
    log_prob, state = score(hidden, state, t)
    return (state, cache), log_prob
  _, rest = lax.scan(step, (state, cache), jnp.arange(1, longest))
  return jnp.concatenate([log_prob[..., None], jnp.moveaxis(rest, 0, -1)], -1)


def make_loss(settings: PolicyTuning, model: Model) -> Callable:
  """The loss of `training.loop.Task`: (train, frozen, batch, key) -> scalar, what to watch.

  settings: what is rolled out and learned. model: how it is read. The batch has 'tokens' (B, P) and
  'lengths' (B,) of the prompts, 'target' (B,), the item that came next, from 1, 'target_tokens'
  (B, T) and 'target_lengths' (B,).
  """
  reward_of = rewards.make_reward(settings.reward)

  def loss(train: PyTree, frozen: PyTree, batch: dict[str, Array], key: Key[Array, '']
           ) -> tuple[Array, dict[str, Array]]:
    params = model.params(train, frozen, batch)
    rule = model.rollout_rule(frozen, batch)
    rolled = lax.stop_gradient(roll_out(settings, model, lax.stop_gradient(params), frozen, batch,
                                        rule, key))
    exists, is_target = rolled.weights > 0, rolled.items == batch['target'][:, None]
    tokens = jnp.concatenate([rolled.tokens, batch['target_tokens'][:, None]], 1)
    lengths = jnp.concatenate([rolled.lengths, batch['target_lengths'][:, None]], 1)
    now = row_log_probs(model, params, batch, rule, tokens, lengths)
    before = lax.stop_gradient(
      row_log_probs(model, model.reference(frozen, batch), batch, rule, tokens, lengths))
    reward = jnp.where(exists, reward_of(is_target, exists), 0)
    rows = policy.Rolled(
      now[:, :-1], rolled.token_log_probs, before[:, :-1],
      jnp.arange(tokens.shape[-1]) < rolled.lengths[..., None], rolled.weights)
    losses, watched = policy.policy_loss(settings.grpo, rows, reward)
    if settings.loss != 'grpo':
      order = jnp.roll(jnp.arange(tokens.shape[1]), 1)  # the target first
      are = jnp.concatenate([exists & ~is_target, jnp.ones_like(is_target[:, :1])], 1)
      losses = preference.preference_loss(
        settings.loss, settings.grpo.beta, now.sum(-1)[:, order], before.sum(-1)[:, order],
        are[:, order])
    if settings.nll:
      supervised = row_log_probs(
        model, params, batch, model.supervised_rule(frozen, batch), batch['target_tokens'][:, None],
        batch['target_lengths'][:, None])
      losses = losses - settings.nll * supervised.sum((1, 2))
    return losses.mean(), lax.stop_gradient({
      **watched, **watch_rollout(rolled, reward, is_target)})
  return loss


def watch_rollout(rolled: Rollout, reward: Float[Array, 'B K'], is_target: Bool[Array, 'B K']
                  ) -> dict[str, Float[Array, '']]:
  """What a roll-out looked like: 'reward' of a row, 'hit' (share of lists with the item that came
  next), 'entropy' over items in nats, estimated by the rows' weights, 'rows' and 'distinct' items
  of a list, 'first_items' (different first items a request), 'nan' (requests).

  rolled: the rows. reward: of them. is_target: where the item that came next stands.
  """
  exists = rolled.weights > 0
  ordered, first = jnp.sort(rolled.items, -1), jnp.sort(rolled.items[:, 0])
  new = jnp.diff(ordered, axis=-1, prepend=0) > 0
  return {
    'reward': reward.sum() / jnp.maximum(exists.sum(), 1),
    'hit': (is_target & exists).any(-1).mean(),
    'entropy': -(rolled.weights * jnp.where(exists, rolled.log_probs, 0)).sum(-1).mean(),
    'rows': exists.sum(-1).mean(), 'distinct': new.sum(-1).mean(),
    'first_items': (jnp.diff(first, prepend=-1) != 0).mean(), 'nan': 1.0 * rolled.nan.sum()}
