"""Two-stage top-k against lax.top_k, ties included."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from recjax.retrieval.top_k import top_k


class TopKTest(parameterized.TestCase):

  @parameterized.product(size=(31, 256, 2048, 2051, 8000), k=(1, 7), levels=(3, 10**6))
  def test_equals_lax_top_k_with_its_order_under_ties(self, size, k, levels):
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.integers(levels, size=(2, 3, size)), jnp.float32)
    values, ids = jax.jit(lambda x: top_k(x, k))(x)
    want_values, want_ids = lax.top_k(x, k)
    np.testing.assert_array_equal(values, want_values)
    np.testing.assert_array_equal(ids, want_ids)

  def test_the_end_of_a_row_that_no_tile_covers_is_seen(self):
    x = jnp.zeros((1, 1025)).at[0, 1024].set(1.0)
    self.assertEqual(top_k(x, 3)[1].tolist(), [[1024, 0, 1]])

  def test_minus_infinity_fills_up_in_index_order(self):
    x = jnp.full((1, 2048), -jnp.inf).at[0, 700].set(1.0)
    self.assertEqual(top_k(x, 3)[1].tolist(), [[700, 0, 1]])


if __name__ == '__main__':
  absltest.main()
