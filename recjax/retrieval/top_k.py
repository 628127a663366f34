"""The k largest of a long row, exactly, in one pass over the row and two small sorts."""
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

TILE = 32


def top_k(
    x: Float[Array, '*rows V'], k: int) -> tuple[Float[Array, '*rows K'], Int[Array, '*rows K']]:
  """lax.top_k over the last axis, for long rows in two stages; equal values keep index order too.

  The k largest lie in the k tiles with the largest maxima, so only those are gathered and sorted.
  x: the rows. k: how many. -> values, largest first, and their int32 indices
  """
  size = x.shape[-1]
  if size < 256 * k:
    values, indices = lax.top_k(x, k)
    return values, indices
  whole = size - size % TILE
  maxima = x[..., :whole].reshape(*x.shape[:-1], -1, TILE).max(-1)
  tiles = lax.sort(lax.top_k(maxima, k)[1])  # in index order, which ties fall back on
  near = (tiles[..., None] * TILE + jnp.arange(TILE)).reshape(*x.shape[:-1], k * TILE)
  if whole < size:
    tail = jnp.broadcast_to(jnp.arange(whole, size), (*x.shape[:-1], size - whole))
    near = jnp.concatenate([near, tail], -1)
  values, order = lax.top_k(jnp.take_along_axis(x, near, -1), k)
  return values, jnp.take_along_axis(near, order, -1)
