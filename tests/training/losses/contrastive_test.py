"""Contrastive losses by hand, their invariants, gradient caching, many devices."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from recjax.distributed.sharding import shard
from recjax.errors import ConfigError
from recjax.training.losses import contrastive
from tests import devices
from tests.long import long, long_but

X = jnp.eye(2)

Y = jnp.array([[.8, .6], [0, 1]])

ALL = jnp.ones(2, bool)


def pairs(count=16, width=6, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(2, count, width)), jnp.float32)


class ByHandTest(parameterized.TestCase):

  def near(self, got, want):
    np.testing.assert_allclose(np.asarray(got), want, atol=1e-5)

  def test_1_info_nce(self):
    rows, columns = contrastive.each_info_nce(X, Y, .5, ALL)
    self.near(rows, [.183901, .371101])
    self.near(columns, [.513015, .126928])
    self.near(contrastive.loss(X, Y, .5), .298736)

  def test_2_decoupled(self):
    rows, columns = contrastive.each_decoupled(X, Y, .5, ALL)
    self.near(rows, [-1.6, -.8])
    self.near(columns, [-.4, -2.0])
    for kind in contrastive.KINDS:
      with self.assertRaisesRegex(ConfigError, 'two pairs'):
        contrastive.loss(X[:1], Y[:1], .5, kind)

  def test_3_soft_target(self):
    rows, columns = contrastive.each_soft_target(X, Y, 2., ALL)
    self.near(rows, [.592142, .637702])
    self.near(columns, [.664178, .572985])
    self.near(contrastive.loss(X, Y, 2., 'soft_target'), .616752)

  def test_4_soft_target_of_unequal_norms(self):
    y = jnp.array([[.8, .6], [0, 2]])
    rows, columns = contrastive.each_soft_target(X, y, 2., ALL)
    self.near(rows, [.637025, .418503])
    self.near(columns, [.460906, .713552])
    self.near(contrastive.loss(X, y, 2., 'soft_target'), .557496)

  def test_unknown_losses_are_refused(self):
    with self.assertRaisesRegex(ConfigError, 'triplet'):
      contrastive.loss(X, Y, 1., 'triplet')


class InvariantTest(parameterized.TestCase):

  @parameterized.parameters(*contrastive.KINDS)
  def test_order_does_not_matter(self, kind):
    x, y = pairs()
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_allclose(contrastive.loss(x, y, .7, kind),
                               contrastive.loss(x[order], y[order], .7, kind), rtol=1e-5)

  def test_scale_matters_to_soft_targets_alone(self):
    x, y = pairs()
    for kind in ('infonce', 'decoupled'):
      np.testing.assert_allclose(contrastive.loss(x, y, .7, kind),
                                 contrastive.loss(3 * x, 5 * y, .7, kind), rtol=1e-5)
    self.assertNotAlmostEqual(float(contrastive.loss(x, y, .7, 'soft_target')),
                              float(contrastive.loss(3 * x, y, .7, 'soft_target')), places=2)

  @parameterized.parameters(*contrastive.KINDS)
  @long_but(1)
  def test_pairs_that_do_not_count_change_neither_loss_nor_gradient(self, kind):
    x, y = pairs()
    valid = jnp.arange(16) < 11
    loss = lambda x, y, v: contrastive.loss(x, y, .7, kind, v)  # noqa: E731
    value, grads = jax.value_and_grad(loss, (0, 1))(x, y, valid)
    want, few = jax.value_and_grad(loss, (0, 1))(x[:11], y[:11], None)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for got, only in zip(grads, few):
      np.testing.assert_allclose(got[:11], only, atol=1e-5)
      self.assertEqual(float(jnp.abs(got[11:]).max()), 0)

  @parameterized.parameters(*contrastive.KINDS)
  @long_but(1)
  def test_gradients_stay_finite_at_zero_vectors(self, kind):
    x = jnp.zeros((4, 3))
    grads = jax.grad(lambda x: contrastive.loss(x, x, .1, kind))(x)
    self.assertTrue(bool(jnp.isfinite(grads).all()))


class DevicesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.mesh = devices.mesh(data=8)

  @parameterized.parameters(*contrastive.KINDS)
  @long_but(1)
  def test_eight_devices_give_the_loss_of_one(self, kind):
    x, y = pairs(64)
    want, grads = jax.value_and_grad(lambda x: contrastive.loss(x, y, .3, kind))(x)

    def spread(x, y):
      return contrastive.loss(shard(x, None, None), shard(y, None, None), .3, kind)
    with jax.set_mesh(self.mesh):
      where = NamedSharding(self.mesh, P('data'))
      got, many = jax.jit(jax.value_and_grad(spread))(
          jax.device_put(x, where), jax.device_put(y, where))
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(many, grads, atol=1e-5)

  @long
  def test_eight_devices_cache_gradients_as_one_differentiates(self):
    x = jnp.stack(pairs(64), 1)
    encode = lambda w, frozen, batch: jnp.tanh(batch) @ w  # noqa: E731
    judge = lambda w, z: contrastive.loss(z[:, 0], z[:, 1], .3)  # noqa: E731
    w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    want, grads = jax.value_and_grad(lambda w: judge(w, encode(w, None, x)))(w)
    spread = lambda w, z: judge(w, shard(z, None, None, None))  # noqa: E731
    run = contrastive.cached(encode, spread, 4)
    with jax.set_mesh(self.mesh):
      batch = jax.device_put(x, NamedSharding(self.mesh, P('data')))
      got, many = jax.jit(jax.value_and_grad(run))(w, (), batch)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(many, grads, atol=1e-4)


class CachedTest(parameterized.TestCase):

  @parameterized.product(kind=('infonce', 'soft_target'), parts=(1, 2, 8))
  @long_but(1)
  def test_caching_is_direct_differentiation(self, kind, parts):
    rng = np.random.default_rng(0)
    train = {'w': jnp.asarray(rng.normal(size=(5, 6)) / 3), 'tau': jnp.float32(.6)}
    frozen = jnp.asarray(rng.normal(size=(4, 5)) / 2)
    batch = {'x': jnp.asarray(rng.normal(size=(16, 2, 4)))}
    encode = lambda t, f, b: jnp.tanh(b['x'] @ f) @ t['w']  # noqa: E731
    judge = lambda t, z: contrastive.loss(z[:, 0], z[:, 1], t['tau'], kind)  # noqa: E731
    want, grads = jax.value_and_grad(lambda t: judge(t, encode(t, frozen, batch)))(train)
    run = contrastive.cached(encode, judge, parts)
    got, cached = jax.jit(jax.value_and_grad(run))(train, frozen, batch)
    np.testing.assert_allclose(got, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), cached, grads)
    self.assertNotEqual(float(grads['tau']), 0)


if __name__ == '__main__':
  absltest.main()
