"""Losses of policy tuning: GRPO and its kin on lists that the model rolled out itself.

For each request K rolled-out rows with weights w_k that sum to 1, rewards R_k and, of each token,
log-probabilities now, at the roll-out (old) and of the reference:

  loss = -sum_k w_k avg_t min(rho A_k, clip(rho, 1 - low, 1 + high) A_k) + beta KL

Sources: GRPO, arXiv 2402.03300; Dr. GRPO (`advantage='mean'`, `average='constant'`), arXiv
2503.20783; DAPO (`average='token'`, a higher upper clip), arXiv 2503.14476; GSPO
(`ratio='sequence'`), arXiv 2507.18071. Shape letters: B requests, K rows of each, T tokens of a
row. docs/policy_tuning.md says when to use which.
"""
import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from recjax.errors import ConfigError

ADVANTAGES = ('mean', 'std', 'loo')
RATIOS = ('product', 'token', 'sequence')
AVERAGES = ('answer', 'token', 'constant')
FLAT = ('drop', 'keep')
DIVERGENCES = ('k1', 'k2', 'k3')


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
  """Settings of the loss; hashable. Raises ConfigError.

  advantage: reward less the list's mean ('mean'), also divided by its deviation ('std'), or less
  the mean of the other rows ('loo'). ratio: new over old probability of each 'token', of a whole
  row ('product'), or its geometric mean ('sequence'). clip_low, clip_high: how far it counts below
  and above 1. average: over tokens of each 'answer', of all ('token'), or their sum over the
  longest row ('constant'); with ratio='product' a row is one number. flat: lists whose rewards are
  all equal teach nothing: 'drop' leaves out their divergence too, 'keep' pulls them to the
  reference.
  divergence: the estimate of KL that the loss holds. beta: its weight. kl_clip: log-ratios in it
  are cut there, as k3 has no upper bound.
  """
  advantage: str = 'mean'
  ratio: str = 'product'
  clip_low: float = 0.2
  clip_high: float = 0.28
  average: str = 'answer'
  flat: str = 'drop'
  divergence: str = 'k2'
  beta: float = 1e-3
  kl_clip: float = 10.0

  def __post_init__(self):
    for name, known in (('advantage', ADVANTAGES), ('ratio', RATIOS), ('average', AVERAGES),
                        ('flat', FLAT), ('divergence', DIVERGENCES)):
      if getattr(self, name) not in known:
        raise ConfigError(f'policy.{name}={getattr(self, name)!r}; choose one of '
                          f'{", ".join(known)}')
    if self.beta < 0:
      raise ConfigError(f'policy.beta={self.beta} must not be negative: it would push the model '
                        'away from where it began')
    if not 0 < self.clip_low < 1 or not 0 < self.clip_high < 1:
      raise ConfigError(f'policy.clip_low={self.clip_low} and policy.clip_high={self.clip_high} '
                        'must lie between 0 and 1')
    if self.kl_clip <= 0:
      raise ConfigError(f'policy.kl_clip={self.kl_clip} must be above 0')


class Rolled(NamedTuple):
  """Rolled-out rows as the loss reads them.

  log_probs: of each token under the model that learns; old: at the roll-out; reference: of where
  training began. counted: which tokens count. weights: of the rows, which sum to 1 (0 for rows that
  do not exist).
  """
  log_probs: Float[Array, 'B K T']
  old: Float[Array, 'B K T']
  reference: Float[Array, 'B K T']
  counted: Bool[Array, 'B K T']
  weights: Float[Array, 'B K']


def advantages(kind: str, rewards: Float[Array, 'B K'], weights: Float[Array, 'B K']
               ) -> Float[Array, 'B K']:
  """How much better a row is than its list.

  kind: of ADVANTAGES. rewards: of the rows. weights: which sum to 1; rows of weight 0 do not exist.
  The deviation has n - 1 below, and 1e-4 beside it, as published code has it.
  """
  exists = weights > 0
  if kind == 'loo':
    others = jnp.where(exists, 1 - weights, 1)
    mean = ((weights * rewards).sum(-1, keepdims=True) - weights * rewards) / jnp.maximum(
      others, 1e-9)
    return jnp.where(exists, rewards - mean, 0)
  centered = jnp.where(exists, rewards - (weights * rewards).sum(-1, keepdims=True), 0)
  if kind == 'mean':
    return centered
  count = exists.sum(-1, keepdims=True)
  variance = (weights * centered ** 2).sum(-1, keepdims=True) * count / jnp.maximum(count - 1, 1)
  return centered / (jnp.sqrt(variance) + 1e-4)


def flat_lists(rewards: Float[Array, 'B K'], weights: Float[Array, 'B K']) -> Bool[Array, ' B']:
  """Lists whose rows all have one reward, or of one row alone. rewards, weights: as of
  `advantages`."""
  exists = weights > 0
  low = jnp.where(exists, rewards, jnp.inf).min(-1)
  high = jnp.where(exists, rewards, -jnp.inf).max(-1)
  return high - low <= 1e-9


def divergence(kind: str, log_ratio: Float[Array, '...']) -> Float[Array, '...']:
  """Estimates of KL(model | reference) on tokens that the model drew (Schulman, "Approximating KL
  divergence", 2020).

  kind: of DIVERGENCES. log_ratio: log of the reference's probability over the model's. As a loss
  that is differentiated, k2 has the gradient of that KL, k3 the gradient of the reverse one, and k1
  none on average.
  """
  if kind == 'k1':
    return -log_ratio
  return log_ratio ** 2 / 2 if kind == 'k2' else jnp.expm1(log_ratio) - log_ratio


def surrogate(ratio: Float[Array, '...'], advantage: Float[Array, '...'], low: float, high: float
              ) -> Float[Array, '...']:
  """The clipped gain of PPO (arXiv 1707.06347, equation 7). ratio: new over old probability.
  advantage: of the same shape. low, high: of the clip."""
  return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)


def token_mean(settings: PolicyLoss, values: Float[Array, 'B K T'], rows: Rolled
               ) -> Float[Array, ' B']:
  """Values of tokens as one number of each list. settings: of the loss. values: of the tokens.
  rows: whose `counted` and `weights` are read."""
  counted = rows.counted
  sums, lengths = jnp.where(counted, values, 0).sum(-1), counted.sum(-1)
  if settings.average == 'answer':
    return (rows.weights * sums / jnp.maximum(lengths, 1)).sum(-1)
  if settings.average == 'constant':
    return (rows.weights * sums).sum(-1) / counted.shape[-1]
  return (rows.weights * sums).sum(-1) / jnp.maximum((rows.weights * lengths).sum(-1), 1e-9)


def policy_loss(settings: PolicyLoss, rows: Rolled, rewards: Float[Array, 'B K']
                ) -> tuple[Float[Array, ' B'], dict[str, Float[Array, '']]]:
  """The loss of each list, and what to watch.

  settings: of the loss. rows: rolled out. rewards: of the rows. -> losses; 'kl' (by k3), 'flat'
  (share of lists without a reason), 'clipped' (share of ratios), 'log_ratio' (the largest since the
  roll-out), 'kl_clipped' (share), 'effective' (rows by weight, (sum w)^2 / sum w^2)
  """
  gain_of = advantages(settings.advantage, rewards, rows.weights)
  gain_of = lax.stop_gradient(gain_of)[..., None]
  log_ratio = jnp.where(rows.counted, rows.log_probs - rows.old, 0)
  if settings.ratio == 'token':
    ratio = jnp.exp(log_ratio)
    gains = token_mean(settings, surrogate(ratio, gain_of, settings.clip_low, settings.clip_high),
                       rows)
  else:
    whole = log_ratio.sum(-1)
    if settings.ratio == 'sequence':
      whole = whole / jnp.maximum(rows.counted.sum(-1), 1)
    ratio = jnp.exp(whole)
    gains = (rows.weights * surrogate(ratio, gain_of[..., 0], settings.clip_low,
                                      settings.clip_high)).sum(-1)
  to_reference = jnp.where(rows.counted, rows.reference - rows.log_probs, 0)
  cut = jnp.clip(to_reference, -settings.kl_clip, settings.kl_clip)
  distance = token_mean(settings, divergence(settings.divergence, cut), rows)
  losses, flat = settings.beta * distance - gains, flat_lists(rewards, rows.weights)
  if settings.flat == 'drop':
    losses = jnp.where(flat, 0, losses)
  exists = rows.weights > 0
  watched = {
    'kl': token_mean(settings, divergence('k3', cut), rows).mean(), 'flat': flat.mean(),
    'clipped': _share((ratio < 1 - settings.clip_low) | (ratio > 1 + settings.clip_high),
                      rows.counted if ratio.ndim == 3 else exists),
    'kl_clipped': _share(jnp.abs(to_reference) > settings.kl_clip, rows.counted),
    'log_ratio': jnp.abs(log_ratio).max(),
    'effective': (1 / jnp.maximum((rows.weights ** 2).sum(-1), 1e-9)).mean()}
  return losses, {name: lax.stop_gradient(value) for name, value in watched.items()}


def _share(what: Bool[Array, '...'], among: Bool[Array, '...']) -> Float[Array, '']:
  return (what & among).sum() / jnp.maximum(among.sum(), 1)
