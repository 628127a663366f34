"""A decoder as a decoding step: the prompt's keys once per row, a private suffix for each beam.

Beams only read the prompt's `Past`, so K beams share one copy of it; what they write are T - 1
suffix slots of their own, beam slots that `reorder` permutes when beams change places.
"""
import jax
import jax.numpy as jnp
from jax import lax

from recjax.models.llm import Past


def prefill(model, variables, tokens, lengths, past=()):
  """Runs prompts, padded on the right, that continue the blocks of `past`.

  tokens: (B, P) int32. lengths: (B,) int32, each at least 1. -> (logits (B, V) float32 after the
  last real token, Past of these tokens alone: (L, B, P, G, Dh), mask (B, P))
  """
  order = jnp.arange(tokens.shape[1])
  mask = order < lengths[:, None]
  positions = _seen(past) + order
  hidden, (k, v) = model.apply(
      variables, tokens, jnp.broadcast_to(positions, tokens.shape), mask.astype(jnp.int32), past)
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], 1)[:, 0]
  return model.apply(variables, last, method='logits'), Past(k, v, mask)


def make_step(model, variables, past, prompts, beams, new_tokens):
  """The step of `recjax.decoding` over prompts that are already run.

  past: tuple of Past blocks in order, the prompt's last; prompts: B. -> (step, cache): the
  cache is (k, v), each (L, B, K, T - 1, G, Dh), zeros; step as `group_search` wants it
  """
  cfg = model.cfg
  start = jnp.broadcast_to(_seen(past), (prompts, 1))
  shape = (cfg.layers, prompts, beams, max(new_tokens - 1, 1), cfg.kv_heads, cfg.head_dim)
  cache = (jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype))
  apart = jnp.broadcast_to(jnp.arange(1, beams + 1), (prompts, beams))  # beams do not see another

  def step(tokens, cache, t):
    live = jnp.broadcast_to(jnp.arange(shape[3]) < t, shape[1:4])
    positions = jnp.broadcast_to(start + t, tokens.shape)
    hidden, new = model.apply(
        variables, tokens, positions, apart, (*past, Past(*cache, live)))
    cache = tuple(lax.dynamic_update_index_in_dim(c, n.astype(c.dtype), t, 3)
                  for c, n in zip(cache, new))
    return model.apply(variables, hidden, method='logits'), cache

  return step, cache


def reorder(cache, parents):
  """Makes suffix i of each prompt continue beam parents[b, i]. parents: (B, K) int32"""
  def rows(x):
    return jax.vmap(lambda rows, order: rows[:, order], (1, 0), 1)(x, parents)
  return jax.tree.map(rows, cache)


def _seen(past):
  """How many tokens the blocks hold for each row. -> () or (B, 1) int32"""
  return sum((p.mask.sum(-1, dtype=jnp.int32)[..., None] for p in past), jnp.int32(0))
