"""Scores that are inner products of a history's state with a row for every item."""
import dataclasses
from collections.abc import Callable

import jax


@dataclasses.dataclass(frozen=True)
class DotProduct:
  """A score function in two halves, so that a large catalogue need not be scored whole.

  states: ragged histories (items, offsets) -> (B, D) float32. table: (N, D), row j for item j + 1.
  bias: (N,) or None. Called like `states`, it gives all scores, (B, N).
  """
  states: Callable
  table: jax.Array
  bias: jax.Array | None = None

  def __call__(self, items, offsets):
    return dot_product_scores(self.states(items, offsets), self.table, self.bias)


@jax.jit
def dot_product_scores(states, table, bias):
  """(B, D), (N, D), (N,) or None -> (B, N)"""
  scores = states @ table.T
  return scores if bias is None else scores + bias
