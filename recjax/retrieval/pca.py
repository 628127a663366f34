"""Principal components on the device: centered, not whitened. See docs/llmemb.md."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from recjax.errors import ConfigError, DataError
from recjax.protocols import AnyArray


class PCA(NamedTuple):
  """mean: of the rows. components: by falling variance. variance: of each, with divisor n - 1."""
  mean: Float[AnyArray, ' d']
  components: Float[AnyArray, 'k d']
  variance: Float[AnyArray, ' k']

  def __call__(self, x: Float[AnyArray, 'n d']) -> Float[Array, 'n k']:
    """The components of rows x, float32."""
    return jnp.dot(x.astype(jnp.float32) - self.mean, self.components.T,
                   precision=jax.lax.Precision.HIGHEST)


def fit(x: Float[AnyArray, 'n d'], k: int) -> PCA:
  """Fits k components to the rows of x.

  Of each component the loading of largest magnitude is positive, so equal data give equal signs.
  Raises ConfigError for k above min(n, d), DataError naming a row that is not finite.
  """
  n, d = x.shape
  if not 1 <= k <= min(n, d):
    raise ConfigError(f'{k} principal components of {n} rows with {d} numbers each: at most '
                      f'{min(n, d)} exist; lower pca.dim')
  bad = np.flatnonzero(~np.asarray(jnp.isfinite(jnp.asarray(x)).all(1)))
  if len(bad):
    raise DataError(f'row {bad[0]} of the embeddings is not finite ({len(bad)} such rows)')
  return _fit(jnp.asarray(x, jnp.float32), k)


@jax.jit(static_argnums=1)
def _fit(x: Float[Array, 'n d'], k: int) -> PCA:
  mean = x.mean(0)
  x = x - mean
  # d x d instead of the rows themselves: a sum over rows, which shards.
  covariance = jnp.dot(x.T, x, precision=jax.lax.Precision.HIGHEST) / max(1, len(x) - 1)
  values, vectors = jnp.linalg.eigh(covariance)
  rows = vectors[:, ::-1][:, :k].T
  largest = jnp.take_along_axis(rows, jnp.abs(rows).argmax(1)[:, None], 1)
  return PCA(mean, rows * jnp.where(largest < 0, -1.0, 1.0), jnp.maximum(values[::-1][:k], 0))
