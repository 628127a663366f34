"""RQ-VAE, k-means and tables of codes: values worked out by hand, and what must not happen."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.errors import ConfigError, DataError
from recjax.models import rqvae, semantic_ids
from recjax.retrieval import kmeans
from tests.long import long, long_but

BOOKS = jnp.array([[[0., 0.], [1., 0.], [0., 2.]], [[0., 0.], [.2, 0.], [0., -.3]]])
PLAIN = rqvae.Config(2, (), 2, 2, 3, encoder='none')


class QuantizeTest(parameterized.TestCase):

  def test_codes_residuals_and_losses(self):
    for r, want, left, loss in (((1.1, -.2), (1, 2), (.1, .1), .021875),
                                ((.2, 1.4), (2, 2), (.2, -.3), .165625)):
      v = jnp.array([r])
      found = rqvae.quantize(PLAIN, BOOKS, v)
      self.assertEqual(tuple(found['codes'][0].tolist()), want)
      np.testing.assert_allclose(v[0] - sum(found['parts'])[0], left, atol=1e-6)
      self.assertAlmostEqual(float(found['loss']), loss, places=6)
      np.testing.assert_allclose(found['out'], sum(found['parts']), atol=1e-6)

  @parameterized.parameters(('ste', .875), ('sg', .8625))
  def test_gradients(self, residual, want):
    cfg = rqvae.Config(1, (), 1, 2, 1, encoder='none', residual=residual)

    def loss(r, books):
      found = rqvae.quantize(cfg, books, r[None, None])
      return (found['out'][0, 0] - .5) ** 2 + found['loss']
    books = jnp.array([[[1.]], [[-.05]]])
    value, (dr, de) = jax.value_and_grad(loss, (0, 1))(jnp.float32(.9), books)
    np.testing.assert_allclose(value, .2103125, atol=1e-6)
    np.testing.assert_allclose(dr, want, atol=1e-5)
    np.testing.assert_allclose(de[:, 0, 0], [.1, .05], atol=1e-5)

  def test_parameters_of_etegrec_and_a_start_from_k_means(self):
    cfg = rqvae.Config(256)
    shapes = jax.eval_shape(lambda: rqvae.init(cfg, jax.random.key(0)))
    self.assertEqual(sum(x.size for x in jax.tree.leaves(shapes)), 690_048)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(60, 8)), jnp.float32)
    for n in (60, 5):  # fewer items than codes
      plus = rqvae.Config(8, (16,), 8, 2, 8, encoder='residual')
      params = rqvae.init_codebooks(
        plus, rqvae.init(plus, jax.random.key(1)), x[:n], jax.random.key(0)
      )
      again, _ = semantic_ids.encode_residual(x[:n], params['codebooks'])
      np.testing.assert_array_equal(rqvae.assign_codes(plus, params, x[:n]), again)

  @long
  def test_many_items_get_the_codes_that_few_get(self):
    cfg = rqvae.Config(6, (8,), 4, 2, 16)
    params = rqvae.init(cfg, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2 * rqvae.CHUNK + 5, 6))
    found = rqvae.assign_codes(cfg, params, x)
    self.assertEqual(found.shape, (len(x), 2))
    for some in (slice(0, 9), slice(rqvae.CHUNK - 3, rqvae.CHUNK + 3), slice(-7, None)):
      np.testing.assert_array_equal(found[some], rqvae.assign_codes(cfg, params, x[some]))

  def test_rotation_moves_to_the_code_and_passes_gradients(self):
    v, e = jnp.array([[3., 4.]]), jnp.array([[0., 2.]])
    np.testing.assert_allclose(rqvae.rotate(v, e), e, atol=1e-6)
    turn = jax.jacobian(lambda v: rqvae.rotate(v, e)[0])(v)[:, 0]
    np.testing.assert_allclose(turn @ turn.T, np.eye(2) * (2 / 5) ** 2, atol=1e-6)

  def test_rows_without_weight_do_not_count(self):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32)
    cfg = rqvae.Config(8, (16,), 4, 2, 4)
    params = rqvae.init(cfg, jax.random.key(0))
    weight = jnp.array([1., 1, 1, 1, 0, 0])
    np.testing.assert_allclose(rqvae.loss(cfg, params, x, weight=weight)[0],
                               rqvae.loss(cfg, params, x[:4])[0], rtol=1e-5)

  def test_a_code_alone_in_its_group_counts_for_nothing(self):
    found = rqvae.quantize(PLAIN, BOOKS, jnp.array([[1.1, -.2]]))
    value = rqvae.diversity_loss(BOOKS, found['parts'], found['codes'], jnp.array([[0, 1, 2]] * 2),
                            jax.random.key(0))
    self.assertEqual(float(value), 0)

  def test_published_weights(self):
    rng = np.random.default_rng(0)
    state = {}
    for side, sizes in (('encoder', (6, 4, 3)), ('decoder', (3, 4, 6))):
      for at, (a, b) in zip((1, 4), zip(sizes[:-1], sizes[1:])):
        state[f'{side}.mlp_layers.{at}.weight'] = rng.normal(size=(b, a)).astype(np.float32)
        state[f'{side}.mlp_layers.{at}.bias'] = rng.normal(size=b).astype(np.float32)
    for level in range(2):
      state[f'rq.vq_layers.{level}.embedding.weight'] = rng.normal(size=(5, 3)).astype(np.float32)
    cfg, params = rqvae.from_state_dict(state)
    self.assertEqual((cfg.dim, cfg.hidden, cfg.width, cfg.levels, cfg.size), (6, (4,), 3, 2, 5))
    x = rng.normal(size=(7, 6)).astype(np.float32)
    want = np.maximum(x @ state['encoder.mlp_layers.1.weight'].T
                      + state['encoder.mlp_layers.1.bias'], 0)
    want = want @ state['encoder.mlp_layers.4.weight'].T + state['encoder.mlp_layers.4.bias']
    np.testing.assert_allclose(rqvae.encode(cfg, params, x), want, atol=1e-4)
    with self.assertRaisesRegex(DataError, 'holds no RQ-VAE'):
      rqvae.from_state_dict({'x': x})

  def test_wrong_settings(self):
    for change in (dict(residual='x'), dict(encoder='none'), dict(sinkhorn=(0., .1)), dict(size=0)):
      with self.assertRaises(ConfigError):
        rqvae.Config(8, **change)


class KMeansTest(absltest.TestCase):

  def test_small_cases(self):
    x = jnp.array([[0.], [1.], [10.], [11.]])
    centers, _, inertia = kmeans.fit(jax.random.key(0), x, 2)
    np.testing.assert_allclose(np.sort(centers[:, 0]), [.5, 10.5])
    self.assertEqual(float(inertia), 1)
    self.assertTrue(np.isfinite(kmeans.fit(jax.random.key(0), jnp.repeat(x[:2], 5, 0), 4)[0]).all())

  def test_sinkhorn(self):
    d = jnp.array([[0, 1], [.1, 1], [.2, 1], [.3, 1]])
    plan = jnp.exp(kmeans.sinkhorn(d, .05))
    np.testing.assert_allclose(plan[:, 0], [.9975, .8808, .1192, .0025], atol=1e-4)
    np.testing.assert_allclose(plan.sum(0), [2, 2], atol=1e-5)
    self.assertEqual(plan.argmax(1).tolist(), [0, 0, 1, 1])
    self.assertTrue(np.isfinite(kmeans.sinkhorn(d, .003)).all())

  def test_equal_sizes(self):
    self.assertEqual(kmeans.capacities(10, 4).tolist(), [3, 3, 2, 2])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)), jnp.float32)
    sizes = np.bincount(kmeans.fit_balanced(jax.random.key(0), x, 8)[1], minlength=8)
    self.assertBetween(sizes.min(), 5, 7)
    self.assertBetween(sizes.max(), 5, 7)


class TableTest(parameterized.TestCase):

  def test_suffix_counts_in_order(self):
    a, b, c = (1, 2, 3), (0, 0, 1), (4, 4, 4)
    table = np.array([a, a, b, c, c])
    self.assertEqual(semantic_ids.with_suffix(table, 8)[:, 3].tolist(), [0, 1, 0, 0, 1])
    found = semantic_ids.codebook_stats(table, 8)
    self.assertEqual([found[k] for k in ('collision_rate', 'max_group', 'colliding_items')],
                     [.4, 2, 4])
    with self.assertRaisesRegex(DataError, r'257 items share the codes \(0, 0\)'):
      semantic_ids.with_suffix(np.zeros((257, 2), int), 256)
    many, seen, want = np.random.default_rng(0).integers(0, 3, (300, 3)), {}, []
    for row in map(tuple, many):
      want.append(seen.get(row, 0))
      seen[row] = want[-1] + 1
    self.assertEqual(semantic_ids.collision_suffix(jnp.asarray(many)).tolist(), want)

  def test_the_table_on_the_device_is_rebuilt_without_compiling_again(self):
    rng = np.random.default_rng(0)
    before = None
    for _ in range(3):
      some = rng.integers(0, 3, (50, 2))
      whole, largest = semantic_ids.padded_table(jnp.asarray(some, jnp.int32))
      np.testing.assert_array_equal(whole[1:], semantic_ids.with_suffix(some, 64))
      self.assertEqual(whole[0].tolist(), [-1] * 3)
      self.assertEqual(int(largest), semantic_ids.codebook_stats(some, 64)['max_group'])
      before = before or semantic_ids.padded_table._cache_size()
    self.assertEqual(semantic_ids.padded_table._cache_size(), before)

  def test_balance(self):
    for column, want in (([0, 0, 0, 1, 2, 2, 3, 3], .875), ([0] * 8, .25), ([0, 1, 2, 3] * 2, 1)):
      self.assertEqual(semantic_ids.codebook_stats(np.array(column)[:, None], 4)['balance'], [want])

  @parameterized.parameters('suffix', 'random', 'nearest', 'balance')
  def test_policies_leave_no_equal_rows(self, policy):
    rng = np.random.default_rng(0)
    table = rng.integers(0, 4, (30, 3))
    out = semantic_ids.resolve_collisions(table, 16, policy, rng.random((30, 16)))
    self.assertLen(np.unique(out, axis=0), 30)

  def test_nearest_moves_all_but_the_first_of_equals_to_the_nearest_free_code(self):
    table = [[0, 0], [0, 0], [0, 0], [0, 1], [1, 0]]
    distances = [[0, .1, .2, .3], [0, .1, .3, .2], [0, .1, .3, .2], [0] * 4, [0] * 4]
    # By hand: of the three that share (0, 0) the first keeps it; (0, 1) is taken, so the second
    # gets (0, 3), its nearest that is free, and the third what is left.
    out = semantic_ids.resolve_collisions(np.array(table), 4, 'nearest', np.array(distances))
    self.assertEqual(out.tolist(), [[0, 0], [0, 3], [0, 2], [0, 1], [1, 0]])

  def test_policies_that_cannot_be(self):
    for policy, what in (('other', 'dedupe='), ('nearest', 'by distance')):
      with self.assertRaisesRegex(ConfigError, what):
        semantic_ids.resolve_collisions(np.zeros((3, 2), int), 8, policy)
    spread = semantic_ids.resolve_collisions(
      np.zeros((3, 2), int), 8, 'sinkhorn', np.random.rand(3, 8)
    )
    self.assertGreater(len(np.unique(spread, axis=0)), 1)

  @parameterized.parameters(*semantic_ids.TOKENIZERS)
  @long_but(1)
  def test_every_tokenizer_gives_codes_in_range(self, name):
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    table, _ = semantic_ids.TOKENIZERS[name](x, 2, 8, 0)
    self.assertEqual((table.shape, table.dtype), ((40, 2), np.int32))
    self.assertTrue(((table >= 0) & (table < 8)).all())
    np.testing.assert_array_equal(table, semantic_ids.TOKENIZERS[name](x, 2, 8, 0)[0])

  def test_opq(self):
    x = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32) * np.arange(1, 9)
    _, state = semantic_ids.rotated_product_quantize(x, 4, 8, 0)
    np.testing.assert_allclose(state['rotation'].T @ state['rotation'], np.eye(8), atol=1e-5)
    self.assertTrue((np.diff(state['errors']) <= 1e-3 * state['errors'][0]).all())

  def test_bad_vectors(self):
    x = np.ones((3, 2))
    x[1] = np.nan
    with self.assertRaisesRegex(DataError, 'vector of item 2 is not finite'):
      semantic_ids.check_vectors(x)
    with self.assertRaisesRegex(ConfigError, 'power of two'):
      semantic_ids.hashed_codes(np.ones((3, 2)), 2, 6, 0)


if __name__ == '__main__':
  absltest.main()
