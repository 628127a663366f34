"""Rewards of rolled-out lists: how good each item of a list is, given the item that came next.

A list holds K items in the order of their probability. Rewards read numbers of items alone, on the
device: no text, and nothing that is not in the catalog can be rewarded. The place i of a list,
counted from 0, weighs w_i = 1 / log2(i + 2), the discount of DCG.

  hit          1 for the next item, 0 for others
  rank         1 for the next item; the others share -1 by w_i, where the list holds the next item
               (the released code of MiniOneRec, arXiv 2510.24431, and ReRe, arXiv 2510.12211)
  rank_above   as `rank`, but only items above the next one lose: no other costs NDCG
  rank_paper   ReRe's equations 7 to 9 as printed: lists without the next item are punished too, so
               that what is on top goes down for no reason. For comparison
"""
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recjax.errors import ConfigError

Reward = Callable[[Bool[Array, 'B K'], Bool[Array, 'B K']], Float[Array, 'B K']]


def discounts(exists: Bool[Array, 'B K']) -> Float[Array, 'B K']:
  """w_i of the rows that exist, 0 for others. exists: which rows hold an item, best first."""
  return exists / jnp.log2(jnp.arange(exists.shape[-1]) + 2.0)


def hit(is_target: Bool[Array, 'B K'], exists: Bool[Array, 'B K']) -> Float[Array, 'B K']:
  """1 for the next item. is_target: where it is. exists: which rows hold an item."""
  return (is_target & exists).astype(jnp.float32)


def rank(is_target: Bool[Array, 'B K'], exists: Bool[Array, 'B K']) -> Float[Array, 'B K']:
  """1 for the next item, minus a share by place for others; 0 in lists without it. is_target,
  exists: as of `hit`."""
  hits, weights = hit(is_target, exists), discounts(exists)
  share = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)
  return jnp.where(hits > 0, hits, -share) * hits.any(-1, keepdims=True)


def rank_above(is_target: Bool[Array, 'B K'], exists: Bool[Array, 'B K']) -> Float[Array, 'B K']:
  """As `rank`, but items below the next one neither win nor lose. is_target, exists: as of `hit`.
  """
  hits = hit(is_target, exists)
  above = jnp.cumsum(hits, -1) == 0
  weights = discounts(exists) * above
  share = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)
  return jnp.where(hits > 0, hits, -share) * hits.any(-1, keepdims=True)


def rank_paper(is_target: Bool[Array, 'B K'], exists: Bool[Array, 'B K']) -> Float[Array, 'B K']:
  """As printed in ReRe: others share -1 whether the next item is in the list or not. is_target,
  exists: as of `hit`."""
  hits = hit(is_target, exists)
  weights = discounts(exists) * (hits == 0)
  return hits - weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)


REWARDS: Mapping[str, Reward] = {
  'hit': hit, 'rank': rank, 'rank_above': rank_above, 'rank_paper': rank_paper}


def make_reward(name: str) -> Reward:
  """The sum of one or several rewards. name: of REWARDS, joined by '+'. Raises ConfigError."""
  names = name.split('+')
  unknown = [part for part in names if part not in REWARDS]
  if unknown:
    raise ConfigError(f'policy.reward={name!r}: {unknown[0]!r} is unknown; choose of '
                      f'{", ".join(REWARDS)}, or a sum as in hit+rank')

  def reward(is_target: Any, exists: Any) -> Any:
    total = REWARDS[names[0]](is_target, exists)
    for part in names[1:]:
      total = total + REWARDS[part](is_target, exists)
    return total
  return reward
