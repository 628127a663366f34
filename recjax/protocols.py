"""An autoregressive model as decoding sees it: pure functions over parameters and caches."""
from collections.abc import Callable
from typing import NamedTuple


class Decoder(NamedTuple):
  """An autoregressive model as the search sees it. Functions are pure; params is any pytree.

  start: (params, tokens (B, P), lengths (B,), beams, new_tokens) -> (state (B, D) after each
  prompt, cache of `beams` suffixes each). step: (params, cache, tokens (B, K), t) -> (state
  (B, K, D), cache), where tokens are number t of what was generated. reorder: (cache, parents
  (B, K)) -> cache whose row i goes on from row parents[i]. logits: (params, state (..., D)) ->
  (..., V).

  Optional, None where the model has none: rows: (params, state (B, K, D), ids (B, K, C)) -> those
  logits alone. window: (params, state (..., D), first, size) -> logits first .. first + size - 1.
  extend: several tokens of a request in one pass, see `lookahead_beam_search`. grow: (cache,
  new_tokens) -> the cache with room for so many, so that long searches begin small. pick: (cache,
  requests (A,)) -> the cache of those requests alone, so that few do not pay for many that are
  done.
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
