"""How equal scores rank: the one place that knows."""
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from recjax.errors import ConfigError

TIES = ('pessimistic', 'optimistic', 'mean')


def check(tie: str) -> None:
  """Raises ConfigError for a rule that there is not. tie: its name."""
  if tie not in TIES:
    raise ConfigError(f'tie rule {tie!r} is unknown; use one of {", ".join(TIES)}')


def count_ahead(scores: Float[Array | np.ndarray, 'B _'], own: Float[Array | np.ndarray, 'B 1'],
                tie: str, among: Bool[Array, 'B _'] | None = None) -> Num[Array, ' B']:
  """How many of each row's scores come before `own`: the rank of what scores so, 0 is best.

  tie: 'pessimistic' puts equal scores before it, 'optimistic' behind it, 'mean' counts them half.
  among: which scores count, None for all. -> int32, float32 for 'mean'. Raises ConfigError for
  another rule.
  """
  check(tie)
  if tie == 'mean':
    ahead = ((scores > own).astype(jnp.float32) + (scores >= own)) / 2
  else:
    ahead = scores >= own if tie == 'pessimistic' else scores > own
  return jnp.sum(ahead, 1, dtype=jnp.float32 if tie == 'mean' else jnp.int32, where=among)
