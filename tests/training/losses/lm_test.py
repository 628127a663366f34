"""Losses against plain softmax, chunked and whole, with their gradients."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.distributed import sharding
from recjax.training.losses import lm


def plain(hidden, head, targets):
  logp = jax.nn.log_softmax(hidden @ head)
  return -jnp.take_along_axis(logp, targets[:, None], 1)[:, 0]


class TokenNllTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.hidden = jnp.asarray(rng.normal(size=(13, 8)), jnp.float32)
    self.head = jnp.asarray(rng.normal(size=(8, 30)), jnp.float32)
    self.targets = jnp.asarray(rng.integers(0, 30, 13))
    self.weights = jnp.asarray(rng.uniform(size=13), jnp.float32)

  def gradients(self, nll):
    return jax.value_and_grad(
        lambda h, w: (nll(h, w, self.targets) * self.weights).sum(), (0, 1))(self.hidden, self.head)

  @parameterized.parameters(1 << 28, 600)
  def test_values_and_gradients_are_those_of_softmax(self, chunk_bytes):
    want, (dh, dw) = self.gradients(plain)
    got, (gh, gw) = self.gradients(lambda *a: lm.token_nll(*a, chunk_bytes))
    np.testing.assert_allclose(got, want, rtol=1e-5)  # float32 sums in another order
    np.testing.assert_allclose(gh, dh, atol=1e-5)
    np.testing.assert_allclose(gw, dw, atol=1e-5)

  @parameterized.parameters(1 << 28, 600)
  def test_a_bfloat16_model_multiplies_bfloat16_alone(self, chunk_bytes):
    _, (dh, dw) = self.gradients(plain)
    hidden, head = self.hidden.astype(jnp.bfloat16), self.head.astype(jnp.bfloat16)

    def loss(hidden, head):
      return (lm.token_nll(hidden, head, self.targets, chunk_bytes) * self.weights).sum()
    gh, gw = jax.grad(loss, (0, 1))(hidden, head)
    for got, want in ((gh, dh), (gw, dw)):
      self.assertEqual(got.dtype, jnp.bfloat16)
      np.testing.assert_allclose(got.astype(jnp.float32), want, atol=.03 * np.abs(want).max())
    text = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head).as_text()
    products = [line for line in text.splitlines() if 'dot_general' in line]
    self.assertGreaterEqual(len(products), 3)
    for line in products:
      self.assertNotIn('xf32', line.split(':')[-1].split('->')[0], line)

  def test_the_head_of_a_model_that_keeps_it_has_no_gradient(self):
    def loss(hidden, head):
      return lm.token_nll(hidden, head, self.targets, 600).sum()
    text = jax.jit(jax.grad(loss)).lower(self.hidden, self.head).compile().as_text()
    self.assertNotIn('f32[8,30]{1,0} dot(', text)  # states.T @ the gradient of logits

  @parameterized.parameters(1 << 28, 600)
  def test_a_frozen_head_is_multiplied_twice_and_no_more(self, chunk_bytes):
    want, dh = jax.value_and_grad(
        lambda h: (plain(h, self.head, self.targets) * self.weights).sum())(self.hidden)

    def loss(hidden, head):
      return (lm.token_nll(hidden, head, self.targets, chunk_bytes) * self.weights).sum()
    got, gh = jax.jit(jax.value_and_grad(loss))(self.hidden, self.head)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(gh, dh, atol=1e-5)
    text = jax.jit(jax.grad(loss)).lower(self.hidden, self.head).as_text()
    self.assertEqual(sum('dot_general' in line for line in text.splitlines()), 2)

  def test_a_frozen_head_far_from_flat(self):
    # Softmax is 1 or 0 nearly everywhere; exp of a logit alone would overflow.
    head = 300 * self.head
    want = jax.grad(lambda h: plain(h, head, self.targets).sum())(self.hidden)
    got = jax.grad(lambda h: lm.token_nll(h, head, self.targets).sum())(self.hidden)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(head).max())

  @parameterized.parameters(1 << 28, 600)
  def test_a_frozen_bfloat16_head_multiplies_bfloat16_alone(self, chunk_bytes):
    want = jax.grad(lambda h: (plain(h, self.head, self.targets) * self.weights).sum())(self.hidden)
    hidden, head = self.hidden.astype(jnp.bfloat16), self.head.astype(jnp.bfloat16)

    def loss(hidden):
      return (lm.token_nll(hidden, head, self.targets, chunk_bytes) * self.weights).sum()
    got = jax.grad(loss)(hidden)
    self.assertEqual(got.dtype, jnp.bfloat16)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=.03 * np.abs(want).max())
    text = jax.jit(jax.grad(loss)).lower(hidden).as_text()
    products = [line for line in text.splitlines() if 'dot_general' in line]
    self.assertLen(products, 2)
    for line in products:
      self.assertNotIn('xf32', line.split(':')[-1].split('->')[0], line)

  def test_a_frozen_head_over_devices_in_chunks(self):
    hidden, targets = jnp.tile(self.hidden, (8, 1))[:96], jnp.tile(self.targets, 8)[:96]
    weights = jnp.linspace(0, 1, 96)
    want = jax.grad(lambda h: (plain(h, self.head, targets) * weights).sum())(hidden)
    mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'model': 2})

    def loss(hidden, head):
      return (lm.token_nll(hidden, head, targets, 300) * weights).sum()
    with jax.set_mesh(mesh):
      rows = jax.device_put(hidden, sharding.NamedSharding(mesh, sharding.P(('data', 'fsdp'))))
      got = jax.jit(jax.grad(loss))(rows, self.head)
    np.testing.assert_allclose(got, want, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
