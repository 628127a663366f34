"""Scores that are inner products of a history's state with a row for every item."""
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from recjax.protocols import AnyArray


@dataclasses.dataclass(frozen=True)
class DotProduct:
  """A score function in two halves, so that a large catalog need not be scored whole.

  states: (items, offsets), ragged histories -> (B, D) float32. table: row j for item j + 1. bias:
  of the items, or None. timed: whether `states` takes times as well: seconds of each history's
  items and of the request behind them, (M + B,). Called like `states`, it gives all scores.
  """
  states: Callable
  table: Float[AnyArray, 'N D']
  bias: Float[AnyArray, ' N'] | None = None
  timed: bool = False

  def __call__(
      self, items: AnyArray | Sequence[int], offsets: AnyArray | Sequence[int],
  ) -> Float[Array, 'B N']:
    """Scores of all items. items, offsets: ragged histories."""
    return dot_product_scores(self.states(items, offsets), self.table, self.bias)

  def at(self, times: Int[np.ndarray, ' M'] | None) -> 'DotProduct':
    """The score function of one block of histories with these times. times: as `states` of a timed
    one takes them; with None nothing changes."""
    return self if times is None else dataclasses.replace(
        self, states=functools.partial(self.states, times=times))


@jax.jit
def dot_product_scores(
    states: Float[Array, 'B D'], table: Float[Array, 'N D'], bias: Float[Array, ' N'] | None,
) -> Float[Array, 'B N']:
  """Scores of the table's rows for every state. bias: added to each row's scores, or None. states:
  what is scored for. table: of candidates.

  In whole float32 also where a device would round what it multiplies (bfloat16 on a TPU, TF32 on a
  GPU): of 100,000 items 1.6 % of ranks would change.
  """
  scores = jnp.matmul(states, table.T, precision=jax.lax.Precision.HIGHEST)
  return scores if bias is None else scores + bias
