"""A model's output layer, computed as far as a search asks for it, and the room of its cache."""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class LMHead(NamedTuple):
  """The output layer on one step's states, computed as far as it is asked for.

  full: () -> (B, K, V). rows: ids (B, K, C) -> (B, K, C). window: (first, size) -> (B, K, size).
  total: () -> the log-sum-exp of all logits (B, K, 1), where it is known without them. state: the
  states (B, K, D) themselves, where there are any.
  """
  full: Callable
  rows: Callable
  window: Callable
  total: Callable | None = None
  state: jax.Array | None = None


def lm_head_of(decoder, params, state):
  """The Head of a Decoder on states (B, K, D)."""
  full = lambda: decoder.logits(params, state).astype(jnp.float32)  # noqa: E731
  plain = plain_head(full)
  rows = window = None
  if decoder.rows:
    rows = lambda ids: decoder.rows(params, state, ids).astype(jnp.float32)  # noqa: E731
  if decoder.window:
    window = lambda first, size: decoder.window(  # noqa: E731
        params, state, first, size).astype(jnp.float32)
  return LMHead(full, rows or plain.rows, window or plain.window, state=state)


def plain_head(logits):
  """The Head of logits that are there already, or of a function that gives them."""
  full = logits if callable(logits) else lambda: logits.astype(jnp.float32)
  return LMHead(
      full, lambda ids: jnp.take_along_axis(full(), ids, -1),
      lambda first, size: lax.dynamic_slice_in_dim(full(), first, size, 2))


def log_sum_exp(logits):
  """Over the last axis, float32."""
  return jax.nn.logsumexp(logits, -1, keepdims=True)


def stages(new_tokens, first=16):
  """Room for tokens, doubling: what is read and reordered at a step is not the longest row's."""
  out = [min(first, new_tokens)]
  while out[-1] < new_tokens:
    out.append(min(2 * out[-1], new_tokens))
  return out
