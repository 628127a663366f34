"""Losses over items: cases by hand, and equality of the ways to compute one."""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.training.losses import item_losses as losses
from tests import devices
from tests.long import long_but


def case(seed, count=7, items=23, width=5):
  keys = jax.random.split(jax.random.key(seed), 4)
  return (jax.random.normal(keys[0], (count, width)), jax.random.normal(keys[1], (items, width)),
          jax.random.randint(keys[2], (count,), 0, items), jax.random.normal(keys[3], (items,)))


class LossTest(parameterized.TestCase):

  def test_1_to_3_by_hand(self):
    table = jnp.array([2.0, 1, 0, -1])[:, None]
    one, zero = jnp.ones((1, 1)), jnp.zeros(1, jnp.int32)
    for got, want in (
        (losses.cross_entropy(one, table, zero), .440190),
        (losses.chunked_cross_entropy(one, table, zero, jnp.zeros(4), 2), .440190),
        (losses.binary(jnp.array([2.0]), jnp.array([[-1.0]])), .440190),
        (losses.sampled_softmax(jnp.array([2.0]), jnp.array([[0.0, -1]])), .169846),
        (losses.sampled_softmax(jnp.array([2.0]), jnp.array([[0.0, -1]]),
                                jnp.log(2 * jnp.array([.5, .25]))), .210998)):
      np.testing.assert_allclose(got, [want], atol=1e-5)

  def test_4_gbce(self):
    self.assertAlmostEqual(losses.beta(101, 20, .5), .6, places=6)
    self.assertAlmostEqual(losses.beta(3416, 256, .75), .306223, places=5)
    self.assertAlmostEqual(losses.beta(12101, 256, .75), .265868, places=5)
    # beta .6 with two negatives: a = .2 of 11 items
    got = losses.generalized_binary(jnp.array([1.0]), jnp.array([[0.0, -1]]), 11, .5)
    np.testing.assert_allclose(got, [.398122], atol=1e-5)
    positive, negative = jnp.array([.3, -2.0]), jnp.array([[.1], [2.0]])
    np.testing.assert_allclose(2 * losses.generalized_binary(positive, negative, 50, 0.0),
                               losses.binary(positive, negative), rtol=1e-6)
    self.assertAlmostEqual(losses.beta(101, 20, 1.0), .2)

  @parameterized.parameters(1, 5, 10, 23, 64)
  @long_but(1, 3)
  def test_chunks_equal_the_whole_in_value_and_gradient(self, chunk):
    states, table, targets, bias = case(0)
    weight = jnp.arange(7.0)
    whole = jax.value_and_grad(lambda s, t, b: (losses.cross_entropy(s, t, targets, b) * weight
                                                ).sum(), (0, 1, 2))(states, table, bias)
    parts = jax.value_and_grad(lambda s, t, b: (losses.chunked_cross_entropy(
        s, t, targets, b, chunk) * weight).sum(), (0, 1, 2))(states, table, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)

  def test_chunks_never_hold_all_scores(self):
    states, table, targets, bias = case(0, 64, 1000)
    text = str(jax.make_jaxpr(jax.grad(lambda s: losses.chunked_cross_entropy(
        s, table, targets, bias, 100).sum()))(states))
    self.assertNotIn('f32[64,1000]', text)
    self.assertIn('f32[64,100]', text)

  @parameterized.parameters((22, 1), (24, 1), (23, 4))
  @long_but(2)
  def test_a_table_over_devices_equals_one_device(self, items, data):
    mesh = devices.mesh(data=data, model=8 // data)
    states, table, targets, bias = case(1, items=items)

    def over(states, table, bias):
      return losses.sharded_cross_entropy(states, table, targets, bias, mesh).sum()

    def whole(states, table, bias):
      return losses.cross_entropy(states, table, targets, bias).sum()
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(states, table, bias)
                 for f in (over, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)

  @parameterized.parameters(64, 1)
  @long_but(0)
  def test_scores_of_negatives_by_position_in_value_and_gradient(self, dense):
    states, table, _, _ = case(2)
    drawn = jax.random.randint(jax.random.key(3), (7, 4), 0, 23)
    weight = jax.random.normal(jax.random.key(4), (7, 4))

    def plain(states, table):
      return ((states[:, None] * table[drawn]).sum(-1) * weight).sum()

    def ours(states, table):
      return (losses.scores_by_position(states, table, drawn) * weight).sum()
    with mock.patch.object(losses, 'DENSE', dense):
      got, want = (jax.value_and_grad(f, (0, 1))(states, table) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)

  def test_scores_of_negatives_by_user_in_value_and_gradient(self):
    states, table, _, _ = case(2)
    user = jnp.array([0, 0, 2, 3, 3, 3, -1])  # nobody asks for user 1; the last is filled up
    drawn = jax.random.randint(jax.random.key(3), (4, 5), 0, 23)
    weight = jax.random.normal(jax.random.key(4), (7, 5)).at[6].set(0)

    def plain(states, table):
      return ((states[:, None] * table[drawn[user]]).sum(-1) * weight).sum()

    def ours(states, table):
      return (losses.scores_by_user(states, table, drawn, user, 3) * weight).sum()
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(states, table) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)

  def test_a_users_negatives_are_never_gathered_for_each_position(self):
    states, table, _, _ = case(0, 64, 100)
    user, drawn = jnp.arange(64) // 8, jnp.zeros((8, 50), jnp.int32)
    text = str(jax.make_jaxpr(jax.grad(lambda s: losses.scores_by_user(
        s, table, drawn, user, 8).sum()))(states))
    self.assertNotIn('f32[64,50,5]', text)

  def test_negatives_that_do_not_count(self):
    positive, negative = jnp.array([1.0]), jnp.array([[0.0, 50.0]])
    kept = jnp.array([[True, False]])
    np.testing.assert_allclose(losses.binary(positive, negative, kept),
                               losses.binary(positive, negative[:, :1]))
    np.testing.assert_allclose(losses.sampled_softmax(positive, negative, counted=kept),
                               losses.sampled_softmax(positive, negative[:, :1]))

  def test_settings_that_cannot_be_are_refused(self):
    for items, count, t in ((10, 10, .5), (10, 3, 1.5), (10, 3, -.1)):
      with self.assertRaises(ConfigError):
        losses.beta(items, count, t)


if __name__ == '__main__':
  absltest.main()
