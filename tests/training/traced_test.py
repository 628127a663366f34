"""What doctor counts by tracing: products by hand, recommenders' steps beside the compiler."""
import functools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from recjax import experiment
from recjax.data import loading
from recjax.distributed import sharding
from recjax.methods import etegrec, llmemb, sequential
from recjax.methods.etegrec import train
from recjax.models import layers, seqrec
from recjax.training import cost_model
from recjax.training import sequential as training
from tests.long import long, long_but

ROOT = pathlib.Path(__file__).parents[2]


def config(name, **model):
  cfg = experiment.read_config(str(ROOT / 'configs' / f'{name}.py'))
  cfg.model.update(model)
  return cfg


@functools.cache
def shop():
  return loading.load_data('sample:1:300')


def traced(parameters, kept, flops):
  return cost_model.TracedStep(parameters, kept, flops, run=lambda: None, arguments=())


def compiled(loss, params, *rest):
  return jax.jit(jax.value_and_grad(loss)).lower(params, *rest).compile()


class CountTest(absltest.TestCase):

  def test_products_by_hand_loops_as_often_as_they_run_and_the_dearer_branch(self):
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    count = lambda fn, *x: cost_model.flops(jax.make_jaxpr(fn)(*x).jaxpr)  # noqa: E731
    self.assertEqual(count(jnp.dot, a, b), 2 * 3 * 5 * 7)
    self.assertEqual(count(lambda x, y: jnp.einsum('bij,bjk->bik', x, y), jnp.ones((4, 3, 5)),
                           jnp.ones((4, 5, 7))), 4 * 2 * 3 * 5 * 7)
    self.assertEqual(count(jax.jit(jax.checkpoint(jnp.dot)), a, b), 2 * 3 * 5 * 7)
    square = jnp.ones((5, 5))
    self.assertEqual(count(lambda x: jax.lax.scan(lambda c, _: (c @ square, None), x, None, 9)[0],
                           a), 9 * 2 * 3 * 5 * 5)
    twice = lambda x: jax.lax.scan(lambda c, _: (jax.lax.scan(  # noqa: E731
        lambda c, _: (c @ square, None), c, None, 4)[0], None), x, None, 3)[0]
    self.assertEqual(count(twice, a), 3 * 4 * 2 * 3 * 5 * 5)
    self.assertEqual(count(lambda x: jax.lax.fori_loop(0, 6, lambda i, c: c @ square, x), a),
                     6 * 2 * 3 * 5 * 5)
    self.assertEqual(count(lambda x, i: jax.lax.cond(i, lambda x: (x @ b).sum(), jnp.sum, x), a,
                           True), 2 * 3 * 5 * 7)

  def test_a_step_by_hand(self):
    def loss(p, x):
      return jnp.tanh(jnp.tanh(x @ p['a']) @ p['b']).sum()
    p = {'a': jnp.ones((8, 16)), 'b': jnp.ones((16, 4))}
    found = cost_model.trace(loss, p, jnp.ones((32, 8)))
    self.assertEqual(found.parameters, 8 * 16 + 16 * 4)
    # Forward both; backward both for the weights, and once for what lies between.
    self.assertEqual(found.flops, 2 * 32 * (2 * 8 * 16 + 3 * 16 * 4))
    self.assertBetween(found.kept, 4 * 32 * (8 + 16 + 4), 4 * 32 * (8 + 2 * 16 + 2 * 4))

  def test_layers_in_a_loop_count_as_layers_side_by_side(self):
    def loss(p, x):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p)[0].sum()

    def plain(p, x):
      for w in p:
        x = jnp.tanh(x @ w)
      return x.sum()
    p, x = jnp.ones((7, 8, 8)), jnp.ones((32, 8))
    want = 3 * 7 * 2 * 32 * 8 * 8  # forward, and backward for the weights and for what lies between
    self.assertEqual(cost_model.trace(loss, p, x).flops, want)
    self.assertEqual(cost_model.trace(plain, list(p), x).flops, want - 2 * 32 * 8 * 8)  # not for x

  def test_chips_are_as_many_as_the_rows_need(self):
    step = traced(10**6, 60 * cost_model.GIB, 10**12)
    found = cost_model.traced_lines(step, 100, 5, 3, 1, 1)
    self.assertIn('fits 8 chips (data=8): 0.159 s an epoch', found['TPU v5e'])  # 16 GiB each
    self.assertIn('fits 1 chip (data=1)', found['A100 80 GB'])
    self.assertIn('does not fit', cost_model.traced_lines(
        traced(10**10, 0, 1), 1, 1, 1, 1, 1)['H200'])
    self.assertIn('fits 16 chips', cost_model.traced_lines(step, 1, 1, 1, 3, 1)['TPU v5e'])
    self.assertIn('fits 2 chips', cost_model.traced_lines(
        traced(1, 0, 1), 1, 1, 1, 1, 1, 20 * cost_model.GIB)['TPU v5e'])


class RecommenderTest(parameterized.TestCase):

  def step_of(self, cfg):
    """What is planned, and the same step compiled. -> traced.Step, compiled"""
    got = []
    def kept(*args):
      got.append(args)
      return trace(*args)
    trace = cost_model.trace
    with mock.patch.object(cost_model, 'trace', kept):
      found = training.planned(cfg, len(shop().catalog), shop().interactions)[0]
    return found, compiled(*got[0])

  @parameterized.parameters(('sasrec', 'ce'), ('bert4rec', 'ce'), ('sasrec', 'bce'),
                            ('sasrec', 'sampled'), ('hstu', 'ce'))
  @long_but(0, 2)
  def test_operations_are_those_of_the_compiler(self, kind, loss):
    cfg = config('sequential_scientific', kind=kind, width=128, hidden=256, layers=1)
    cfg.loss.update(kind=loss, negatives=256)
    cfg.train.batch = 64
    found, program = self.step_of(cfg)
    self.assertAlmostEqual(found.flops / program.cost_analysis()['flops'], 1, delta=.12)
    used = program.memory_analysis().temp_size_in_bytes
    self.assertBetween(found.kept / used, .4, 2.5)

  def test_a_recurrence_counts_every_step(self):
    key, rows, found = jax.eval_shape(lambda: jax.random.key(0)), 8, []
    for n in (8, 16, 32):
      cfg = config('sequential_scientific', kind='gru4rec', max_history=n, layers=1)
      model = training.model_config(cfg, 50)
      loss = functools.partial(training.loss_of, cfg, model, sharding.make_mesh({'data': -1}), rows,
                               128)
      found.append(cost_model.trace(
          loss, jax.eval_shape(functools.partial(seqrec.init, model), key),
          jax.ShapeDtypeStruct((rows, n + 1), jnp.int32), key).flops)
    self.assertEqual(found[2] - found[1], 2 * (found[1] - found[0]))
    place = (found[1] - found[0]) / (8 * rows)  # inputs, recurrence; forward, and backward twice
    self.assertBetween(place / (6 * (64 * 3 * 64 + 64 * 3 * 64)), .9, 1.4)

  @parameterized.parameters(*seqrec.KINDS)
  def test_parameters_are_those_that_are_made(self, kind):
    cfg = config('sequential_scientific', kind=kind)
    model = training.model_config(cfg, len(shop().catalog))
    real = layers.count_params(seqrec.init(model, jax.random.key(0)))
    self.assertTrue(sequential.cost(cfg, shop())['parameters'].startswith(f'{real:,} a seed'))

  @parameterized.parameters('tiger_beauty', 'etegrec_scientific')
  @long
  def test_semantic_ids(self, name):
    cfg = config(name, width=128, ffn=256, layers=1, decoder_layers=1, max_history=10, dropout=0.0)
    cfg.train.batch, got, trace = 64, [], cost_model.trace
    def kept(*args):
      got.append(args)
      return trace(*args)
    with mock.patch.object(cost_model, 'trace', kept):
      found, steps, given = train.trace_step(cfg, shop())
    self.assertEqual(steps, -(-sum(int((b.target > 0).sum()) for b in given) // 64))
    program = compiled(*got[0])
    self.assertAlmostEqual(found.flops / program.cost_analysis()['flops'], 1, delta=0.15)
    self.assertBetween(found.kept / program.memory_analysis().temp_size_in_bytes, 0.4, 2.5)
    net = train.model_config(
      cfg, train.num_levels(cfg), cfg.semantic_ids.size, cfg.vectors.model.width, 64
    )
    real = sum(x.size for x in jax.tree.leaves(train.semantic_id_t5.init(net, jax.random.key(0))))
    self.assertEqual(found.parameters, real)
    said = etegrec.cost(cfg, shop())
    ways = jax.device_count()
    q = train.num_levels(cfg)
    held = 2 * cfg.model.heads * cfg.model.head_dim * 4 * cfg.decode.batch * q * (
        cfg.decode.beams + 10) / ways / 2**20
    self.assertIn(f'KV caches {held:,.2f}', said[f'bytes a device in generation (data={ways})'])
    self.assertIn('s an epoch at', said['H100'])

  @long
  def test_llmemb_says_what_each_training_takes(self):
    cfg = experiment.read_config(str(ROOT / 'configs' / 'llmemb_scientific.py'))
    said = llmemb.cost(cfg, shop())
    k, model = cfg.pca.dim, training.model_config(
        llmemb.variants.recommender_config(cfg, cfg.model.kind), len(shop().catalog))
    whole = layers.count_params(seqrec.init(model, jax.random.key(0)))
    self.assertIn(f'{whole:,} a seed', said['sasrec over ids: parameters'])
    hidden = cfg.rat.hidden or k // 2
    table = (len(shop().catalog) + 2) * model.width
    adapter = (k + 1) * hidden + (hidden + 1) * model.width
    own = len(shop().catalog) * model.width if cfg.rat.ids_from else 0
    self.assertIn(f'{whole - table + adapter + own:,} a seed', said['RAT full: parameters'])
    self.assertIn('fits 1 chip', said['RAT full: TPU v5e'])
    self.assertIn('export', said)


if __name__ == '__main__':
  absltest.main()
