"""Principal components by hand and against a plain decomposition; refusals."""
import numpy as np
from absl.testing import absltest

from recjax.errors import ConfigError, DataError
from recjax.retrieval import pca


class PcaTest(absltest.TestCase):

  def test_8_four_points_on_a_line(self):
    x = np.array([[0, 0], [1, 1], [2, 2], [3, 3.]])
    found = pca.fit(x, 1)
    np.testing.assert_allclose(found(x)[:, 0], [-2.121320, -.707107, .707107, 2.121320], atol=1e-5)
    np.testing.assert_allclose(found.variance, [3.333333], atol=1e-5)

  def test_components_are_those_of_a_singular_value_decomposition(self):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12))).astype(np.float32)
    found = pca.fit(x, 5)
    _, size, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.variance, size[:5] ** 2 / 59, rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.asarray(found.components) @ right[:5].T), np.eye(5),
                               atol=1e-3)
    np.testing.assert_allclose(np.var(found(x), 0, ddof=1), found.variance, rtol=1e-4)
    most = np.abs(found.components).argmax(1)
    self.assertTrue((np.asarray(found.components)[np.arange(5), most] > 0).all())

  def test_fewer_components_are_the_first_ones(self):
    x = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    np.testing.assert_allclose(pca.fit(x, 3)(x), pca.fit(x, 6)(x)[:, :3], atol=1e-5)

  def test_what_does_not_exist_is_refused(self):
    x = np.zeros((3, 5), np.float32)
    for k in (0, 4):
      with self.assertRaisesRegex(ConfigError, 'at most 3'):
        pca.fit(x, k)
    x[1, 2] = np.nan
    with self.assertRaisesRegex(DataError, 'row 1'):
      pca.fit(x, 2)


if __name__ == '__main__':
  absltest.main()
