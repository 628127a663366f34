"""Layers in a faster form do what the plain form does."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.models import layers
from recjax.retrieval import kmeans


class LinearTest(absltest.TestCase):

  def test_product_and_gradients_are_those_of_the_plain_form(self):
    x = jax.random.normal(jax.random.key(0), (3, 5, 8))
    w = jax.random.normal(jax.random.key(1), (8, 4))
    both = [jax.value_and_grad(lambda x, w, f=f: (f(x, w) ** 2).sum(), (0, 1))(x, w)
            for f in (layers.linear, jnp.matmul)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *both)


class DropoutTest(parameterized.TestCase):

  def setUp(self):
    self.ones = jnp.ones((400, 500))

  @parameterized.parameters(0.05, 0.1, 0.5)
  def test_the_share_and_the_mean_are_right(self, rate):
    for seed in range(5):
      x = layers.dropout(self.ones, rate, jax.random.key(seed))
      self.assertLess(abs(float((x == 0).mean()) - rate), 4 * (rate * (1 - rate) / x.size) ** 0.5)
      np.testing.assert_allclose(float(x.max()), 1 / (1 - rate), rtol=1e-6)

  def test_rate_zero_changes_nothing(self):
    self.assertIs(layers.dropout(self.ones, 0.0, jax.random.key(0)), self.ones)

  def test_masks_are_independent_of_neighbors_and_of_other_keys(self):
    base = jax.random.key(7)
    masks = [np.asarray(layers.dropout(self.ones, 0.5, k) > 0).astype(float).ravel() - 0.5
             for k in (base, *(jax.random.fold_in(base, i) for i in range(4)), jax.random.key(8))]
    bound = 4.5 / masks[0].size ** 0.5
    for i, one in enumerate(masks):
      for other in masks[:i]:
        self.assertLess(abs((one * other).mean() * 4), bound)
      for lag in (1, 2, 3, 4, 64, 128, 500, 512):
        self.assertLess(abs((one[lag:] * one[:-lag]).mean() * 4), bound)

  def test_the_mask_is_that_of_its_key(self):
    one, again, other = (layers.dropout(self.ones, 0.3, jax.random.key(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    self.assertGreater(float((one != other).mean()), 0.3)

  def test_gradients_pass_where_numbers_are_kept(self):
    key = jax.random.key(3)
    grad = jax.grad(lambda x: layers.dropout(x, 0.4, key).sum())(self.ones)
    np.testing.assert_allclose(grad, layers.dropout(self.ones, 0.4, key))


class ArgminTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 7, 12, 30, 64, 256)
  def test_ties_go_to_the_first(self, size):
    x = np.random.default_rng(size).integers(0, 6, (50, 3, size)).astype(np.float32)
    np.testing.assert_array_equal(kmeans.argmin(jnp.asarray(x)), x.argmin(-1))

  def test_a_number_that_is_none_wins_as_in_numpy(self):
    x = np.arange(16, dtype=np.float32)
    x[9] = np.nan
    self.assertEqual(int(kmeans.argmin(jnp.asarray(x))), 9)


if __name__ == '__main__':
  absltest.main()
