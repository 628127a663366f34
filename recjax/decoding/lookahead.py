"""Look-ahead over the trie: which tokens beams may come to, so that a pass can take them along.

Where a pass of few tokens costs as much as one of many, tokens that may be needed are free. They
are taken best first, by the score that a beam would have there: known where the state before has
gone through the model, else guessed as if all children were equally likely. What is looked up later
has the same score as if it had been asked for then, so rows do not change; only passes do.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from recjax.decoding import forest as trees
from recjax.decoding.constraints import DEAD, LIVE
from recjax.decoding.pool import KIDS, Kids, slot_of


class Front(NamedTuple):
  """Tokens at the edge of what is looked at, each (B, F)."""
  node: jax.Array
  depth: jax.Array
  score: jax.Array


def likely(state, titles, cfg, vocab, given, last, depth, fed, free):
  """Fills a pass with tokens that live beams may come to.

  given: (node, at, real), each (B, Q), what the pass feeds anyhow. last, depth: (B, K), where each
  beam stands once it is through. fed: (B, K), which beams feed something. free: (B,) slots.
  -> (node, at, real), what was given first
  """
  width = given[0].shape[1]
  budget = jnp.minimum(cfg.lookahead, free) - given[2].sum(-1)
  live = (state.beams.score > LIVE) & state.open[:, None]
  slot = slot_of(state.pool, titles.forest.lo[last], depth)
  front = Front(last, depth, jnp.where(live & (fed | (slot >= 0)), state.beams.score, DEAD))
  front = best(front, width)
  chosen = front._replace(score=jnp.full_like(front.score, DEAD))

  def more(carry):
    front, chosen, turn = carry
    worst = jnp.take_along_axis(chosen.score, jnp.clip(budget - 1, 0, width - 1)[:, None], 1)
    better = front.score.max(-1) > jnp.maximum(worst[:, 0], LIVE)
    return (better & (budget > 0)).any() & (turn < cfg.new_tokens)

  def turn(carry):
    front, chosen, turn = carry
    front = below(front, state.pool, titles, vocab, cfg, width)
    new = slot_of(state.pool, titles.forest.lo[front.node], front.depth) < 0
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), chosen,
                        front._replace(score=jnp.where(new, front.score, DEAD)))
    # of equal scores the earlier stays, so no token comes without those before it
    return front, best(both, width), turn + 1

  _, chosen, _ = lax.while_loop(more, turn, (front, chosen, 0))
  real = (chosen.score > LIVE) & (jnp.arange(width) < budget[:, None])
  both = [jnp.concatenate([a, b], 1) for a, b in zip(given, (chosen.node, chosen.depth - 1, real))]
  order = jnp.argsort(~both[2], -1, stable=True)[:, :width]
  return tuple(jnp.take_along_axis(x, order, 1) for x in both)


def best(front, most):
  """The `most` of highest score; of equal ones the first."""
  lack = max(0, most - front.score.shape[1])
  front = Front(*(jnp.pad(x, [(0, 0), (0, lack)], constant_values=fill)
                  for x, fill in zip(front, (0, 0, DEAD))))
  score, place = lax.top_k(front.score, most)
  return Front(*(jnp.take_along_axis(x, place, 1) for x in front[:2]), score)


def below(front, pool, titles, vocab, cfg, most):
  """The best children of the edge that may have to go through the model. -> Front (B, most)"""
  forest = titles.forest
  slot = slot_of(pool, forest.lo[front.node], front.depth)
  rows = jnp.arange(len(slot))[:, None]
  known = Kids(*(x[rows, jnp.maximum(slot, 0)] for x in pool.kids))
  _, child, exists = trees.children(forest, front.node, front.depth, KIDS)
  fan = jnp.maximum(trees.fan_out(forest, front.node), 1)[..., None]
  guess = jnp.where(exists, -jnp.log(fan.astype(jnp.float32)), DEAD)
  seen = (slot >= 0)[..., None]
  node, logp = jnp.where(seen, known.node, child), jnp.where(seen, known.logp, guess)
  depth = jnp.broadcast_to(front.depth[..., None] + 1, node.shape)
  needed = ~trees.complete(forest, node, depth) & (depth < cfg.new_tokens)
  if not vocab:
    needed &= trees.fan_out(forest, node) > 0
  good = needed & (logp > LIVE) & (front.score > LIVE)[..., None]
  score = jnp.where(good, front.score[..., None] + jnp.minimum(logp, 0), DEAD)
  return best(Front(*(x.reshape(len(slot), -1) for x in (node, depth, score))), most)
