"""Greedy search over a step function."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def greedy(step: Callable, cache, first_logits, new_tokens, eos_ids=(), pad_id=0):
  """The likeliest token at every step; stops early once every row has met an end token.

  step: (tokens (B, 1) int32, cache, t int32) -> (logits (B, 1, V), cache), as in `group_search`.
  first_logits: (B, V). -> tokens (B, T) int32, the end token kept and pad_id after it, and
  lengths (B,) int32, the end token counted
  """
  rows, size = first_logits.shape
  final = jnp.asarray(np.isin(np.arange(size), eos_ids))

  def put(t, tokens, lengths, done, logits):
    chosen = jnp.where(done, pad_id, lax.top_k(logits, 1)[1][:, 0])
    tokens = lax.dynamic_update_index_in_dim(tokens, chosen, t, 1)
    return t + 1, tokens, lengths + ~done, done | final[chosen]

  def more(carry):
    t, _, _, done, _ = carry
    return (t < new_tokens) & ~jnp.all(done)

  def advance(carry):
    t, tokens, lengths, done, cache = carry
    last = lax.dynamic_index_in_dim(tokens, t - 1, 1)
    logits, cache = step(last, cache, t - 1)
    return *put(t, tokens, lengths, done, logits[:, 0]), cache

  start = (jnp.int32(0), jnp.full((rows, new_tokens), pad_id, jnp.int32),
           jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool))
  carry = (*put(*start, first_logits), cache)
  _, tokens, lengths, _, _ = jax.lax.while_loop(more, advance, carry)
  return tokens, lengths
