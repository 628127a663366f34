"""An autoregressive model as decoding sees it: pure functions over parameters and caches."""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp


class Decoder(NamedTuple):
  """An autoregressive model as the search sees it. Functions are pure; params is any pytree.

  start: (params, tokens (B, P), lengths (B,), beams, new_tokens) -> (state (B, D) after each
  prompt, cache of `beams` suffixes each). step: (params, cache, tokens (B, K), t) -> (state
  (B, K, D), cache), where tokens are number t of what was generated. reorder: (cache, parents
  (B, K)) -> cache whose row i goes on from row parents[i]. logits: (params, state (..., D)) ->
  (..., V).

  Optional, None where the model has none: rows: (params, state (B, K, D), ids (B, K, C)) -> those
  logits alone. window: (params, state (..., D), first, size) -> logits first .. first + size - 1.
  extend: several tokens of a request in one pass, see `tree_search`. grow: (cache, new_tokens) ->
  the cache with room for so many, so that long searches begin small. pick: (cache, requests (A,))
  -> the cache of those requests alone, so that few do not pay for many that are done.
  """
  start: Callable
  step: Callable
  reorder: Callable
  logits: Callable
  rows: Callable | None = None
  window: Callable | None = None
  extend: Callable | None = None
  grow: Callable | None = None
  pick: Callable | None = None


def uncached(apply):
  """A Decoder of any function (params, tokens (R, S)) -> logits (R, S, V), without a cache.

  Every step runs the whole rows again: slow, and right for any causal model; a first try, a test.
  """
  def start(params, tokens, lengths, beams, new_tokens):
    batch, longest = tokens.shape
    logits = apply(params, tokens)
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], 1)[:, 0]
    rows = jnp.pad(tokens, [(0, 0), (0, new_tokens)])
    rows = jnp.broadcast_to(rows[:, None], (batch, beams, rows.shape[1]))
    return last, (rows, lengths)

  def step(params, cache, tokens, t):
    rows, lengths = cache
    at = (lengths + t)[:, None, None]
    here = jnp.arange(rows.shape[-1]) == at
    rows = jnp.where(here, tokens[..., None], rows)
    logits = apply(params, rows.reshape(-1, rows.shape[-1]))
    logits = logits.reshape(*rows.shape, -1)
    last = jnp.take_along_axis(logits, at[..., None].astype(jnp.int32), 2)[:, :, 0]
    return last, (rows, lengths)

  def reorder(cache, parents):
    rows, lengths = cache
    return jnp.take_along_axis(rows, parents[..., None], 1), lengths

  return Decoder(start, step, reorder, lambda params, state: state)
