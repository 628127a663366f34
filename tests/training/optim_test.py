"""Learning rates by step, against published figures."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.training import optim


class ScheduleTest(parameterized.TestCase):

  @parameterized.parameters((39, 5e-5), (78, 1e-4), (78 + (6250 - 78) // 2, 2.5075e-5),
                            (6250, 1e-7))
  def test_reclm_as_published(self, step, want):
    """As RecLM is released: 6,250 steps, 78 of warm-up, then with the square down to 1e-7."""
    rate = optim.schedule(types.SimpleNamespace(lr=1e-4, warmup=78, schedule='square'), 6250)
    self.assertAlmostEqual(float(rate(step)) / want, 1, places=4)

  @parameterized.parameters(*optim.SCHEDULES)
  def test_all_begin_at_the_rate_and_never_rise(self, name):
    rate = optim.schedule(types.SimpleNamespace(lr=0.1, warmup=2, schedule=name), 20)
    found = [float(rate(step)) for step in range(21)]
    self.assertAlmostEqual(found[0], 0)
    self.assertAlmostEqual(found[2], 0.1, places=6)
    self.assertTrue(all(a >= b - 1e-8 for a, b in zip(found[2:], found[3:])))

  def test_an_unknown_one_is_refused(self):
    with self.assertRaisesRegex(ConfigError, "'cubic'.*square"):
      optim.schedule(types.SimpleNamespace(lr=0.1, warmup=0, schedule='cubic'), 5)


class MuonTest(absltest.TestCase):
  HOW = types.SimpleNamespace(lr=0.1, warmup=0, schedule='constant', clip=0.0, beta2=0.98,
                              decay=0.01)

  def test_each_layers_matrix_moves_the_same_way_in_every_direction(self):
    """Orthogonal to rounding of five Newton-Schulz steps, whatever the gradient's sizes."""
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.normal(size=(3, 8, 12)), full_matrices=False)
    sizes = 10.0 ** rng.uniform(-1, 0, (3, 8)) * np.array([[1], [1e-3], [1e2]])
    params = {'kernel': jnp.zeros((3, 8, 12)), 'embed': jnp.ones((5, 8))}
    grads = {'kernel': jnp.asarray((left * sizes[:, None]) @ right, jnp.float32),
             'embed': jnp.ones((5, 8))}
    tx = optim.make(types.SimpleNamespace(**vars(self.HOW), muon=0.02), 10)
    moved, _ = tx.update(grads, tx.init(params), params)
    along = np.einsum('lik,lij,lkj->lk', left, np.asarray(moved['kernel']), right)
    self.assertBetween(float((-along / 0.02).min()), 0.5, 1.6)
    self.assertBetween(float((-along / 0.02).max()), 0.5, 1.6)
    adam = optax.adamw(0.1, b2=0.98, weight_decay=0.01, nesterov=True)
    want = adam.update(grads['embed'], adam.init(params['embed']), params['embed'])[0]
    np.testing.assert_allclose(moved['embed'], want, rtol=1e-6)

  def test_without_it_adamw_has_all(self):
    params = {'kernel': jnp.ones((2, 3, 4))}
    grads = jax.tree.map(lambda x: 0.3 * x, params)
    given, plain = optim.make(self.HOW, 10), optax.adamw(0.1, b2=0.98, weight_decay=0.01)
    np.testing.assert_array_equal(given.update(grads, given.init(params), params)[0]['kernel'],
                                  plain.update(grads, plain.init(params), params)[0]['kernel'])


if __name__ == '__main__':
  absltest.main()
