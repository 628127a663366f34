"""Search and clustering of vectors and tags."""
import jax
import numpy as np

AnyArray = jax.Array | np.ndarray  # on the device or on the host
