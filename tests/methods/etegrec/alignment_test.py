"""ETEGRec's alignment losses: values computed by hand, masks equal to subsets."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from recjax.methods.etegrec import joint_training

ITEM = jnp.array([[[1.25, .05, 6.05], [.05, .05, .02]]])

STATE = jnp.array([[[2.0, 2.6, .4], [.4, .36, .13]]])

ONE = jnp.array([True])


class AlignTest(absltest.TestCase):

  def test_sia(self):
    sia = lambda **how: float(joint_training.sia(ITEM, STATE, ONE, **how))  # noqa: E731
    self.assertAlmostEqual(sia(), 6.103503, places=5)
    self.assertAlmostEqual(sia(reduce='mean_levels'), 3.051751, places=5)
    self.assertAlmostEqual(sia(sign='pos', reduce='mean_levels'), 3.497793, places=5)
    self.assertEqual(float(joint_training.sia(ITEM, ITEM, ONE)), 0)

  def test_psa(self):
    a, b = jnp.array([[1., 0], [0, 1], [1, 1]]), jnp.array([[2., 0], [1, 1], [0, 3]])
    rows = jnp.ones(3, bool)
    self.assertAlmostEqual(float(joint_training.psa(a, b, rows)), 5.619088, places=4)
    self.assertAlmostEqual(float(joint_training.psa(a, b, rows, 1.0)), 2 * 0.998700, places=5)
    self.assertAlmostEqual(
      float(joint_training.psa(jnp.eye(2), jnp.eye(2), rows[:2], 1.0)), 2 * 0.313262, places=5
    )
    np.testing.assert_allclose(
      joint_training.psa(7 * a, b, rows), joint_training.psa(a, b, rows), rtol=1e-5
    )

  def test_first_rows_and_masks(self):
    rows = joint_training.first_occurrences(jnp.array([7, 3, 7, 9, 0]))
    self.assertEqual(rows.tolist(), [True, True, False, True, False])
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(5, 4)), jnp.float32) for _ in range(2))
    at = np.flatnonzero(rows)
    np.testing.assert_allclose(
      joint_training.psa(a, b, rows), joint_training.psa(a[at], b[at], rows[at]), rtol=1e-5
    )
    p, q = (jnp.asarray(rng.random((5, 2, 3)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(
      joint_training.sia(p, q, rows), joint_training.sia(p[at], q[at], rows[at]), rtol=1e-5
    )
    grad = jax.grad(lambda b: joint_training.psa(a, b, rows))(b)
    self.assertTrue(np.isfinite(grad).all())
    self.assertEqual(float(jnp.abs(grad[~rows]).max()), 0)

  def test_codes(self):
    value = joint_training.code_loss(
      jnp.zeros((3, 4, 256)), jnp.zeros((3, 4), int), jnp.array([1, 1, 0])
    )
    self.assertAlmostEqual(float(value), 5.545177, places=5)


if __name__ == '__main__':
  absltest.main()
