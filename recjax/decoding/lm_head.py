"""A model as a search calls it: steps, an output layer computed as far as it is asked for, a cache.

Shape letters of this package: B requests, K beams or samples of a request, T new tokens, C
candidates of a beam, D width, V vocabulary, N items, M trie nodes.
"""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from recjax.protocols import Decoder


class LMHead(NamedTuple):
  """The output layer on one step's states, computed as far as it is asked for.

  full: () -> logits (B, K, V). rows: tokens (B, K, C) -> their logits (B, K, C). window: (first,
  size) -> logits first .. first + size - 1, (B, K, size). total: () -> the log-sum-exp of all
  logits (B, K, 1), where it is known without them. state: the states, where there are any.
  """
  full: Callable[[], Array]
  rows: Callable[[Array], Array]
  window: Callable[[Array | int, int], Array]
  total: Callable[[], Array] | None = None
  state: Float[Array, 'B K D'] | None = None


def lm_head_of(decoder: Decoder, params: PyTree, state: Float[Array, 'B K D']) -> LMHead:
  """The output layer of a `Decoder` with its parameters on states. decoder: the model. params: its
  parameters. state: of the beams."""
  full = lambda: decoder.logits(params, state).astype(jnp.float32)  # noqa: E731
  plain = plain_head(full)
  rows = window = None
  rows_of, window_of = decoder.rows, decoder.window
  if rows_of:
    rows = lambda ids: rows_of(params, state, ids).astype(jnp.float32)  # noqa: E731
  if window_of:
    window = lambda first, size: window_of(  # noqa: E731
        params, state, first, size).astype(jnp.float32)
  return LMHead(full, rows or plain.rows, window or plain.window, state=state)


def plain_head(logits: Float[Array, 'B K V'] | Callable[[], Array]) -> LMHead:
  """The output layer of logits that are there already, or of a function that gives them."""
  full = logits if callable(logits) else lambda: logits.astype(jnp.float32)
  return LMHead(
      full, lambda ids: jnp.take_along_axis(full(), ids, -1),
      lambda first, size: lax.dynamic_slice_in_dim(full(), first, size, 2))


class BoundDecoder(NamedTuple):
  """A model with its parameters, as every search of this package calls it.

  step: (tokens (B, K) int32, cache, t) -> (states (B, K, D), cache), where tokens are number t of
  what was generated. head: states -> `LMHead`; with `plain_head` the states are logits. reorder:
  (cache, parents (B, K)) -> the cache whose row i goes on from row parents[i]; None where nothing
  of it belongs to a row. grow, select_requests, extend: those of `protocols.Decoder` without
  parameters, or None.
  """
  step: Callable
  head: Callable[[Array], LMHead] = plain_head
  reorder: Callable | None = None
  grow: Callable | None = None
  select_requests: Callable | None = None
  extend: Callable | None = None


def bind(decoder: Decoder, params: PyTree) -> BoundDecoder:
  """The model with its parameters. decoder: the model. params: its parameters."""
  return BoundDecoder(
      lambda tokens, cache, t: decoder.step(params, cache, tokens, t),
      functools.partial(lm_head_of, decoder, params), decoder.reorder, decoder.grow,
      decoder.select_requests, decoder.extend and functools.partial(decoder.extend, params))


def log_sum_exp(logits: Float[Array, '... V']) -> Float[Array, '... 1']:
  """Over the last axis, which stays with size 1. logits: -inf for what may not come."""
  return jax.nn.logsumexp(logits, -1, keepdims=True)


def cache_lengths(new_tokens: int, first: int = 16) -> list[int]:
  """Tokens that a cache holds at first, and after each time that it grows: doubling, so that what
  is read and reordered at a step is not the longest row's.

  new_tokens: of the longest row. first: tokens at first.
  """
  lengths = [min(first, new_tokens)]
  while lengths[-1] < new_tokens:
    lengths.append(min(2 * lengths[-1], new_tokens))
  return lengths
