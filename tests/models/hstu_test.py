"""HSTU's block: its oracle of four tokens, the paper's formulas in PyTorch, its invariants."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.models import hstu, layers, seqrec

X = np.array([[.1, .2, -.3, .4], [.5, -.1, .2, 0], [-.2, .3, .1, -.4], [.3, .3, -.1, .2]])
PARAMS = {
    'uvqk': np.fromfunction(lambda r, c: ((16 * r + c) * 7 % 11 - 5) / 10, (4, 16)),
    'out': {'kernel': np.array([[-.3, .2, 0, -.2], [.3, .1, -.1, -.3], [.2, 0, -.2, .3],
                                [.1, -.1, -.3, .2]]), 'bias': np.array([.01, -.02, .03, 0])},
    'behind': np.array([.04, .03, -.02, .05]),
    'time': (3 * np.arange(hstu.NUM_BUCKETS) % 7 - 3) / 100}
TIMES = np.array([1000, 1060, 4660, 91060])


def block(slots=4, heads=1, successors=(1060, 4660, 91060, 91060), segment=(1, 1, 1, 1), timed=True,
          params=None, x=X):
  params = dict(params or PARAMS)
  params['behind'] = np.resize(params['behind'], slots)
  buckets = hstu.time_buckets(jnp.array([successors]), jnp.asarray(TIMES[None, :len(x)]))
  seen = seqrec.attention_mask(jnp.array([segment]), True)
  return np.asarray(apply(heads, slots, jax.tree.map(jnp.float32, params), jnp.float32(x)[None],
                          seen, buckets if timed else None)[0])


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(heads, slots, params, x, seen, buckets):
  return hstu.HstuBlock(heads, slots, 0.0, True).apply({'params': params}, x, seen, buckets, False)


last_states = jax.jit(seqrec.last_states, static_argnums=0)


class OracleTest(parameterized.TestCase):
  """The published block, computed in float64 by its code."""

  def test_four_tokens(self):
    want = [[.245223, .206959, -.296959, .319124], [.608250, -.158469, .093728, .162859],
            [-.018338, .335234, .013820, -.532683], [.804088, .467681, -.235461, -.280986]]
    got = block()
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(hstu.unit_rows(got[3]), [.804218, .467756, -.235499, -.281031],
                               atol=2e-6)

  @parameterized.parameters(
      (dict(slots=8), [.802031, .466899, -.234772, -.278983]),
      (dict(slots=8, successors=(1060, 4660, 91060, 91060 + 86400)),
       [.800706, .471657, -.229945, -.292789]),
      (dict(timed=False), [.803488, .470208, -.232964, -.288308]),
      (dict(heads=2), [.798349, .474977, -.226445, -.302225]))
  def test_last_row(self, given, want):
    np.testing.assert_allclose(block(**given)[3], want, atol=2e-6)

  def test_two_users_in_a_row_are_those_of_rows_of_their_own(self):
    got = block(successors=(1060, 4660, 91060, 91120), segment=(1, 1, 2, 2))
    np.testing.assert_allclose(got, [
        [.245223, .206959, -.296959, .319124], [.608250, -.158469, .093728, .162859],
        [-.146043, .307097, .053345, -.499243], [.639546, .472766, -.124044, -.314720]], atol=2e-6)

  def test_buckets(self):
    rows = hstu.time_buckets(jnp.array([[1060, 4660, 91060, 91060]]), jnp.asarray(TIMES[None]))[0]
    self.assertEqual([r[:n + 1].tolist() for n, r in enumerate(rows)],
                     [[13], [27, 27], [37, 37, 37], [37, 37, 37, 0]])
    gaps = {0: 0, 1: 0, 2: 2, 60: 13, 3600: 27, 86400: 37, 604800: 44, 31536000: 57, 10**9: 68,
            2**31 - 1: 71}
    got = hstu.time_buckets(jnp.array([[*gaps]]), jnp.zeros((1, len(gaps)), jnp.int32))[0, :, 0]
    self.assertEqual(got.tolist(), [*gaps.values()])
    earlier = hstu.time_buckets(jnp.zeros((1, 1), jnp.int32), jnp.array([[3600]]))
    self.assertEqual(earlier.tolist(), [[[27]]])

  def test_every_edge_is_that_of_the_formula_in_float64(self):
    near = hstu.EDGES.astype(np.int64)[:, None] + np.array([-1, 0, 1])
    gaps = np.concatenate([near.ravel(), np.random.default_rng(0).integers(0, 2**31, 5000)])
    got = hstu.time_buckets(jnp.asarray(gaps[:, None], jnp.int32),
                            jnp.zeros((len(gaps), 1), jnp.int32))[:, 0, 0]
    np.testing.assert_array_equal(got, np.floor(np.log(np.maximum(gaps, 1)) / .301))

  def test_parameters_of_movielens(self):
    cfg = seqrec.Config('hstu', 3416, 200, time='bias', slots=211)
    shapes = jax.eval_shape(lambda: seqrec.init(cfg, jax.random.key(0)))
    # Published with tables of 2 n - 1 places and 129 buckets; n and 72 of them can be reached.
    unreached = cfg.layers * (210 + 57)
    self.assertEqual(layers.count_params(shapes), 274_444 - unreached)


def torch_states(params, cfg, items, times):
  """The paper's formulas for one user, oldest item first: equations 1 to 3 of arXiv 2402.17152,
  with the biases and the constant of its code. items: (L,). times: (L + 1,)."""
  import torch
  from torch.nn import functional
  p = jax.tree.map(lambda x: torch.tensor(np.asarray(x, np.float64)), params)
  size, count = cfg.width // cfg.heads, len(items)
  x = p['items'][torch.tensor(items)] * cfg.width ** .5 + p['positions'][:count]
  mask = torch.ones(count, count).tril().bool()
  seconds = torch.tensor(times, dtype=torch.float64)
  gap = (seconds[1:, None] - seconds[None, :-1]).abs().clamp(min=1)
  buckets = (gap.log() / .301).long().clamp(max=128)
  behind = (torch.arange(count)[:, None] - torch.arange(count)).clamp(min=0)
  for layer in range(cfg.layers):
    w = p[f'block_{layer}']
    h = functional.layer_norm(x, (cfg.width,), eps=1e-6)
    u, v, q, k = functional.silu(h @ w['uvqk']).split(cfg.width, -1)
    heads = [t.reshape(count, cfg.heads, size).transpose(0, 1) for t in (q, k, v)]
    scores = heads[0] @ heads[1].transpose(1, 2) + w['behind'][behind]
    if cfg.time == 'bias':
      scores = scores + w['time'][buckets]
    weights = functional.silu(scores) / cfg.num_slots * mask
    y = (weights @ heads[2]).transpose(0, 1).reshape(count, cfg.width)
    gated = u * functional.layer_norm(y, (cfg.width,), eps=1e-6)
    x = x + gated @ w['out']['kernel'] + w['out']['bias']
  return (functional.normalize(x, dim=-1, eps=1e-6) if cfg.unit else x).numpy()


def small(**changes):
  return seqrec.Config(**{**dict(
      kind='hstu', items=20, max_history=8, width=16, layers=2, heads=2, dropout=0.0, time='bias',
      unit=True, temperature=.05), **changes})


def wide(cfg, seed=0):
  """Parameters large enough that biases and sums are seen behind the second norm."""
  return jax.tree.map(lambda x: x * 10, jax.jit(seqrec.init, static_argnums=0)(
      cfg, jax.random.key(seed)))


@functools.partial(jax.jit, static_argnums=0)
def states(cfg, params, items, position, segment, times):
  return seqrec.SeqRec(cfg).apply({'params': params}, items, position, segment, times=times)


class ModelTest(parameterized.TestCase):

  @parameterized.parameters(dict(), dict(time='none'), dict(unit=False, temperature=1.0),
                            dict(layers=6, heads=1, slots=8))
  def test_states_are_those_of_the_formulas_in_torch(self, **changes):
    try:
      import torch
    except ImportError:
      self.skipTest('torch is not installed')
    del torch
    cfg = small(**changes)
    params = wide(cfg)
    rng = np.random.default_rng(0)
    for count in (1, 5, 8):
      items = rng.integers(1, 21, count)
      times = np.sort(rng.integers(0, 10**7, count + 1)) + 1_600_000_000
      row = np.pad(items, (8 - count, 0))[None]
      since = np.pad(times - times[0], (8 - count, 0))[None]
      got = last_states(cfg, params, jnp.asarray(row), jnp.asarray(since))
      want = torch_states(params, cfg, items, times)
      np.testing.assert_allclose(got[0], want[-1], atol=2e-5, rtol=2e-5)

  def test_users_with_times_that_share_a_row_do_not_see_each_other(self):
    cfg = small()
    params = wide(cfg)
    row = dict(items=[3, 4, 5, 7, 8, 9, 2, 0], position=[0, 1, 2, 0, 1, 2, 3, 0],
               segment=[1, 1, 1, 2, 2, 2, 2, 0])
    seen = [0, 60, 4000, 0, 5, 90000, 10**6, 0]
    asked = [60, 4000, 4100, 5, 90000, 10**6, 2 * 10**6, 0]
    packed = states(cfg, params, *(jnp.array([x]) for x in row.values()),
                    jnp.array([[seen], [asked]]))[0]
    for part in (slice(0, 3), slice(3, 7)):
      items, place, segment = (np.array([x[part]]) for x in row.values())
      alone = states(cfg, params, items, place, segment // segment,
                     jnp.array([[seen[part]], [asked[part]]]))[0]
      np.testing.assert_allclose(packed[part], alone, atol=1e-6)
    self.assertEqual(float(jnp.abs(packed[7]).max()), 0)

  def test_times_count_by_their_differences_and_zero_tables_leave_them_out(self):
    cfg = small()
    params = wide(cfg)
    rows, times = jnp.array([[0, 4, 2, 9]]), jnp.array([[0, 10, 500, 9000, 10**6]])
    got = last_states(cfg, params, rows, times)
    np.testing.assert_array_equal(got, last_states(cfg, params, rows, times + 12345))
    self.assertGreater(float(jnp.abs(got - last_states(
        cfg, params, rows, times.at[0, 4].add(86400 * 400))).max()), 1e-3)
    zeroed = {k: {**v, 'time': v['time'] * 0} if k.startswith('block') else v
              for k, v in params.items()}
    bare = {k: {n: x for n, x in v.items() if n != 'time'} if k.startswith('block') else v
            for k, v in params.items()}
    without = last_states(small(time='none'), bare, rows)
    np.testing.assert_array_equal(without, last_states(cfg, zeroed, rows, times))
    np.testing.assert_array_equal(without, last_states(cfg, params, rows))

  def test_scores_are_cosines_over_the_temperature(self):
    cfg = small(items=3, width=4, heads=1)
    table = np.array([[9, 9, 9, 9], [.5, 0, .5, 0], [-.3, .4, 0, .1], [.2, .2, .2, .2],
                      [1, 2, 3, 4]], np.float32)
    rows, bias = seqrec.output_table({'items': table}, cfg)
    self.assertIsNone(bias)
    state = hstu.unit_rows(np.array([.6, -.2, .3, .1], np.float32))
    np.testing.assert_allclose(rows @ state, [18, -13.867505, 11.313708], atol=2e-5)
    zeros = {'items': np.zeros((5, 4), np.float32)}
    np.testing.assert_array_equal(seqrec.output_table(zeros, cfg)[0], np.zeros((3, 4)))
    slope = jax.grad(lambda t: seqrec.output_table({'items': t}, cfg)[0].sum())(zeros['items'])
    self.assertTrue(np.isfinite(slope).all())

  @parameterized.parameters(
      (dict(kind='sasrec'), 'model.time'), (dict(time='place'), 'model.time'),
      (dict(slots=7), 'model.slots=7'), (dict(temperature=0.0), 'model.temperature'),
      (dict(temperature=float('nan')), 'model.temperature'), (dict(unit=False), 'model.unit=True'),
      (dict(heads=3), 'heads'))
  def test_wrong_settings_are_refused(self, changes, why):
    with self.assertRaisesRegex(ConfigError, why):
      small(**changes)


if __name__ == '__main__':
  absltest.main()
