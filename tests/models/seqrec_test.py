"""SASRec, GRU4Rec, BERT4Rec: the spec's oracles and invariants."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.models import layers, seqrec
from tests.long import long_but

KINDS = seqrec.KINDS


def small(kind, **kw):
  return seqrec.Config(kind, **{**dict(items=20, max_history=8, width=16, layers=2, heads=2,
                                       hidden=16, dropout=0.3), **kw})


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, params, *rows):
  return seqrec.SeqRec(cfg).apply({'params': params}, *rows)


def states(cfg, params, *rows):
  """rows: items, positions, segments."""
  return apply(cfg, params, *(jnp.asarray(x, jnp.int32) for x in rows))


def wide(cfg, seed=0):
  """Parameters large enough that outputs differ."""
  first = jax.jit(seqrec.init, static_argnums=0)(cfg, jax.random.key(seed))
  return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, first)


class OracleTest(parameterized.TestCase):

  @parameterized.parameters((12101, 64, 50, 828288), (3416, 50, 200, 211950),
                            (57289, 128, 200, 7558144))
  def test_14_parameter_counts_and_the_row_of_the_mask(self, items, width, length, count):
    cfg = seqrec.Config('sasrec', items, length, width, 2, 1, width)
    shapes = jax.eval_shape(lambda: seqrec.init(cfg, jax.random.key(0)))
    self.assertEqual(layers.count_params(shapes), count + width)

  def test_7_causal_attention_without_projections(self):
    cfg = small('sasrec', width=2, heads=1, dropout=0.0)
    eye = {'kernel': np.eye(2).reshape(2, 1, 2), 'bias': np.zeros((1, 2))}
    out = {'kernel': np.eye(2).reshape(1, 2, 2), 'bias': np.zeros(2)}
    x = jnp.array([[[1.0, 0], [0, 1], [1, 1]]])
    seen = seqrec.attention_mask(jnp.ones((1, 3), jnp.int32), True)
    got = seqrec.Attention(cfg).apply({'params': {'q': eye, 'k': eye, 'v': eye, 'out': out}}, x, x,
                                      seen, False)
    np.testing.assert_allclose(got[0], [[1, 0], [.330238, .669762], [.751745, .751745]], atol=1e-5)

  def test_a_ligr_block_by_its_formula(self):
    cfg = small('sasrec', norm='ligr', hidden=24, dropout=0.0)
    params = wide(cfg)['block_0']
    x = jax.random.normal(jax.random.key(1), (1, 5, 16))
    seen = seqrec.attention_mask(jnp.ones((1, 5), jnp.int32), True)
    got = seqrec.Block(cfg).apply({'params': params}, x, seen, False)

    def linear(name, x, part=params):
      return x @ np.asarray(part[name]['kernel']) + np.asarray(part[name]['bias'])

    def norm(name, x):
      x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-8)
      return x * np.asarray(params[name]['scale']) + np.asarray(params[name]['bias'])

    def sigmoid(x):
      return 1 / (1 + np.exp(-x))
    x = np.asarray(x)
    y = jnp.asarray(norm('norm_1', x))
    attended = seqrec.Attention(cfg).apply({'params': params['attention']}, y, y, seen, False)
    x = x + sigmoid(linear('gate_1', x)) * np.asarray(attended)
    y = norm('norm_2', x)
    up, side = (linear(name, y, params['feed']) for name in ('up', 'side'))
    want = x + sigmoid(linear('gate_2', x)) * linear('down', up * sigmoid(up) * side,
                                                     params['feed'])
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_8_gru_of_width_one(self):
    one = np.ones((1, 3), np.float32)
    segment = jnp.array([[1, 1, 0]])
    got = seqrec.GRU(1).apply({'params': {'input': one, 'state': one}}, jnp.ones((1, 3, 1)),
                              segment)
    np.testing.assert_allclose(got[0, :, 0], [.204824, .346753, .346753], atol=1e-5)


class InvariantTest(parameterized.TestCase):

  @parameterized.parameters(*KINDS)
  def test_later_items_change_earlier_states_in_bert4rec_alone(self, kind):
    cfg = small(kind)
    params = wide(cfg)
    at, one = np.arange(8)[None], np.ones((1, 8))
    a, b = np.arange(1, 9)[None], np.arange(1, 9)[None].copy()
    b[0, 5] = 17
    a, b = (np.asarray(states(cfg, params, x, at, one)) for x in (a, b))
    same = np.abs(a - b)[0, :5].max() < 1e-6
    self.assertEqual(same, kind != 'bert4rec')
    self.assertGreater(np.abs(a - b)[0, 5:].max(), 1e-3)

  @parameterized.product(kind=KINDS, norm=seqrec.NORMS)
  @long_but(*range(0, 20, 4))
  def test_users_that_share_a_row_do_not_see_each_other(self, kind, norm):
    cfg = small(kind, norm=norm)
    params = wide(cfg)
    packed = states(cfg, params, [[3, 4, 5, 7, 8, 0, 0, 0]], [[5, 6, 7, 6, 7, 0, 0, 0]],
                    [[1, 1, 1, 2, 2, 0, 0, 0]])
    for items, part in (([3, 4, 5], slice(0, 3)), ([7, 8], slice(3, 5))):
      row = np.array([[0] * (8 - len(items)) + items])
      alone = states(cfg, params, row, np.arange(8)[None], row > 0)
      np.testing.assert_allclose(packed[0, part], alone[0, -len(items):], atol=1e-5)
    self.assertEqual(float(jnp.abs(packed[0, 5:]).max()), 0)

  @parameterized.parameters(*KINDS)
  def test_more_padding_in_front_changes_nothing(self, kind):
    cfg = small(kind)
    params = wide(cfg)
    row = np.array([[4, 2, 9]])
    short = seqrec.last_states(cfg, params, jnp.asarray(row))
    long = seqrec.last_states(cfg, params, jnp.asarray(np.pad(row, [(0, 0), (5, 0)])))
    np.testing.assert_allclose(short, long, atol=1e-5)

  @parameterized.parameters(*KINDS)
  def test_rows_of_nobody_are_finite_and_padding_has_no_gradient(self, kind):
    cfg = small(kind)
    params = wide(cfg)
    nobody = np.zeros((2, 8), np.int32)
    got = states(cfg, params, nobody, nobody, nobody)
    self.assertTrue(np.isfinite(got).all())
    row = np.array([[0, 0, 0, 5, 6, 7, 8, 9]])

    def loss(params):
      return (states(cfg, params, row, np.arange(8)[None], row > 0) ** 2).sum()
    grads = jax.jit(jax.grad(loss))(params)
    self.assertEqual(float(jnp.abs(grads['items'][0]).max()), 0)
    self.assertGreater(float(jnp.abs(grads['items'][5]).max()), 0)
    self.assertTrue(all(np.isfinite(g).all() for g in jax.tree.leaves(grads)))

  def test_wrong_settings_are_refused(self):
    for kw in (dict(kind='sasrecs'), dict(norm='mid'), dict(heads=3), dict(items=1)):
      with self.assertRaises(ConfigError):
        small(**{'kind': 'sasrec', **kw})


class ReleasedTest(parameterized.TestCase):

  def test_future_places_are_seen_only_where_asked(self):
    rows = jnp.array([[1, 2, 3, 4]])
    for future in (False, True):
      cfg = small('sasrec', max_history=4, future=future)
      params = wide(cfg)
      at = seqrec.history_positions(cfg, rows)
      one, two = (states(cfg, params, r, at, np.ones((1, 4))) for r in (rows, rows.at[0, 3].set(9)))
      self.assertEqual(bool(jnp.allclose(one[0, 0], two[0, 0], atol=1e-6)), not future)

  @parameterized.parameters(*KINDS)
  def test_padding_is_seen_only_where_asked(self, kind):
    short, long = jnp.array([[0, 0, 5, 6]]), jnp.array([[0, 0, 0, 0, 0, 0, 5, 6]])
    for pads in (False, True):
      cfg = small(kind, pads=pads)
      params = wide(cfg)
      one, two = (seqrec.last_states(cfg, params, r) for r in (short, long))
      self.assertEqual(bool(jnp.allclose(one, two, atol=1e-4)), not pads)

  def test_positions_from_the_start_or_from_the_end(self):
    rows = jnp.array([[0, 0, 5, 6]])
    self.assertEqual(seqrec.history_positions(small('sasrec'), rows).tolist(), [[4, 5, 6, 7]])
    cfg = small('sasrec', count='start')
    self.assertEqual(seqrec.history_positions(cfg, rows).tolist(), [[0, 0, 1, 2]])
    self.assertLen(seqrec.init(cfg, jax.random.key(0))['positions'], 9)
    with self.assertRaisesRegex(ConfigError, 'model.count'):
      small('sasrec', count='middle')


if __name__ == '__main__':
  absltest.main()
