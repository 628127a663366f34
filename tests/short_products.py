"""A CPU that multiplies as a TPU does: float32 products are one pass in bfloat16 unless they ask.

Sums stay float32, and products at HIGHEST whole, as XLA documents both.
"""
import contextlib
from unittest import mock

import jax
import jax.numpy as jnp


@contextlib.contextmanager
def rounded():
  """Products of float32 without a precision round what they multiply, in programs made inside.

  Raises AssertionError where JAX no longer goes through what is replaced here.
  """
  bind = jax.lax.dot_general_p.bind

  def short(lhs, rhs, *, precision, **how):
    if jax.lax.Precision.HIGHEST not in (precision or ()):
      lhs, rhs = (jax.lax.reduce_precision(x, 8, 7) if x.dtype == jnp.float32 else x
                  for x in (lhs, rhs))  # a cast there and back would be left out by XLA
    return bind(lhs, rhs, precision=precision, **how)
  jax.clear_caches()
  try:
    with mock.patch.object(jax.lax.dot_general_p, 'bind', short):
      third, one = jnp.full((1, 1), 1 / 3, jnp.float32), jnp.ones((1, 1))
      for product in (third @ one, jnp.einsum('ij,jk->ik', third, one), jnp.dot(third, one)):
        assert product[0, 0] != third[0, 0], 'products are not rounded'
      assert jnp.matmul(third, one, precision='highest')[0, 0] == third[0, 0]
      yield
  finally:
    jax.clear_caches()
