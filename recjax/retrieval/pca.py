"""Principal components on the device: centred, not whitened (specification: llmemb.md 5)."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recjax.errors import ConfigError, DataError


class PCA(NamedTuple):
  """mean (d,), components (k, d) by falling variance, variance (k,) with divisor n - 1."""
  mean: jax.Array
  components: jax.Array
  variance: jax.Array

  def __call__(self, x):
    """x: (n, d) -> (n, k) float32"""
    return jnp.dot(x.astype(jnp.float32) - self.mean, self.components.T,
                   precision=jax.lax.Precision.HIGHEST)


def fit(x, k):
  """Fits k components to the rows of x (n, d). -> PCA

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
def _fit(x, k):
  mean = x.mean(0)
  x = x - mean
  # d x d instead of the rows themselves: a sum over rows, which shards.
  spread = jnp.dot(x.T, x, precision=jax.lax.Precision.HIGHEST) / max(1, len(x) - 1)
  values, vectors = jnp.linalg.eigh(spread)
  rows = vectors[:, ::-1][:, :k].T
  most = jnp.take_along_axis(rows, jnp.abs(rows).argmax(1)[:, None], 1)
  return PCA(mean, rows * jnp.where(most < 0, -1.0, 1.0), jnp.maximum(values[::-1][:k], 0))
