"""What doctor says of this CPU: products of the pieces against those of the real programs."""
import dataclasses
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax.models import llm, lora
from recjax.text.packing import TokenSample, pack_samples
from recjax.training import cost_model, cpu_cost, microbatch, sft

SHAPE = llm.Config(vocab=512, width=32, layers=6, heads=4, kv_heads=2, head_dim=8, ffn=64,
                   tied=True, lora_rank=4, lora_targets=('q', 'v'))


def count_products(fn, *args, clock=None):
  """In the place of `seconds_of`: operations of all matrix products, so a second is one of them."""
  return cost_model.flops(jax.make_jaxpr(fn)(*args).jaxpr)


def one_device():
  return jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',),
                           axis_types=(jax.sharding.AxisType.Auto,))


class CpuCostTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(cpu_cost, 'seconds_of', count_products))

  def near(self, found, real):
    self.assertBetween(found / real, 1 / 1.1, 1.1)

  @parameterized.parameters(4, 0)
  def test_a_step_of_training_has_the_products_of_the_real_one(self, rank):
    shape = dataclasses.replace(SHAPE, lora_rank=rank)
    ids = np.arange(6 + 57, dtype=np.int32)
    packed = pack_samples([TokenSample(ids, np.ones(len(ids), bool))] * 8, [*range(6)], 128)
    batch, model = packed.batch(), llm.LM(shape)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), llm.shapes(shape))
    adapter = lora.init_lora(shape, jax.random.key(0))

    def loss(trained, frozen):
      variables = {'params': frozen, 'lora': trained} if rank else {'params': trained}
      return microbatch.mean(lambda *_: sft.loss_sums(model, packed.prefix, variables, batch))(
          trained, frozen, batch, None)[0]
    trees = (adapter, params) if rank else (params, adapter)
    with jax.set_mesh(one_device()):
      real = count_products(jax.grad(loss), *trees)
      stage = cpu_cost.Training('tune', *batch['tokens'].shape, 6, steps=3)
      self.near(cpu_cost.Pieces(shape).seconds(stage), 3 * real)

  def test_embedding_and_searching_have_the_products_that_are_counted_by_hand(self):
    shape = dataclasses.replace(SHAPE, lora_rank=0)
    pieces = cpu_cost.Pieces(shape)
    no_head = 2 * shape.width * shape.vocab

    def forward(context):
      return llm.flops_per_token(shape, context) - no_head
    self.near(pieces.seconds(cpu_cost.Embedding('embed', 1000, 32)), 1000 * forward(32))
    search = cpu_cost.Search('generate', 7, 4, beams=5, prompt=64, passes=10, prefix=16)
    prompts = 2 * 4 * 64 * forward(64 + 16)
    steps = 2 * 4 * 5 * 10 * (forward(64 + 16 + 10) + no_head)
    self.near(pieces.seconds(search), prompts + steps)

  def test_packing_is_that_of_a_run(self):
    lengths = np.random.default_rng(0).integers(20, 150, 40)
    packed = pack_samples([TokenSample(np.zeros(6 + n + 1, np.int32), np.ones(6 + n + 1, bool))
                           for n in lengths], [0] * 6, 128)
    batches, epoch_steps = sft.shuffled_batches(packed, 8, one_device(), 0)
    train = types.SimpleNamespace(row_tokens=128, batch=8, epochs=3)
    stage = cpu_cost.packed('tune', lengths, 6, 40, train)
    self.assertEqual((stage.rows, stage.row), (batches.size, packed.row_tokens))
    self.assertEqual(stage.steps, round(3 * epoch_steps))

  def test_a_model_that_does_not_fit_is_said_before_anything_is_measured(self):
    cfg = ConfigDict({'llm': {'dtype': 'auto', 'remat': 'none', 'quantize': 'none'}})
    stages = [cpu_cost.Training('tune', 4, 128, 0, steps=3)]
    with mock.patch.object(cpu_cost, 'memory', lambda: 1e6), \
        mock.patch.object(cpu_cost, 'Pieces', side_effect=AssertionError):
      text = str(cpu_cost.lines(cfg, SHAPE, lambda: stages)['this CPU'])
    self.assertRegex(text, r'does not fit: about [0-9.]+ GiB of 0.0 .*--config.llm.remat=full')

  def test_a_run_that_has_an_accelerator_is_not_told_of_the_cpu(self):
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      self.assertEmpty(cpu_cost.lines(ConfigDict(), SHAPE, mock.Mock(side_effect=AssertionError)))

  def test_the_line_names_every_stage_and_the_peak(self):
    cfg = ConfigDict({'llm': {'dtype': 'auto', 'remat': 'none', 'quantize': 'none'}})
    stages = [cpu_cost.Training('tune', 4, 128, 0, steps=3), cpu_cost.Embedding('embed', 9, 3)]
    with mock.patch.object(cpu_cost.Pieces, 'seconds', lambda self, stage: 600.0), \
        mock.patch.object(cpu_cost.Pieces, '_forward', lambda self, *_: 1e-6):
      text = str(cpu_cost.lines(cfg, SHAPE, lambda: stages)['this CPU'])
    self.assertStartsWith(text, '20 min of the language model (tune 10 min, embed 10 min)')
    self.assertRegex(text, 'GiB of .* at the peak')

  def test_a_small_model_s_step_runs_at_its_own_shapes(self):
    ran = []

    def loss(params, ids, key, x):
      noise = jax.random.normal(key, (len(ids), x.shape[1]))
      return ((params['w'][ids] @ x + noise) ** 2).sum()
    shapes = ({'w': jax.ShapeDtypeStruct((5, 3), np.float32)},
              jax.ShapeDtypeStruct((7,), np.int32), jax.eval_shape(lambda: jax.random.key(0)),
              jax.ShapeDtypeStruct((3, 2), np.float32))
    step = cost_model.trace(loss, *shapes)

    def seconds_of(fn, *args, clock=None):
      if len(args) == 1:  # memory's part: reads and writes of 2^22 numbers
        return 2.0 * 2**22
      ran.append(fn(*args))
      return 0.5
    with mock.patch.object(cpu_cost, 'seconds_of', seconds_of):
      found = cpu_cost.traced_lines(step, steps=4, epochs=3, seeds=2)['this CPU']
    self.assertEqual(found.seconds, {'training': (0.5 + 15 * cpu_cost.COPIES) * 4 * 3 * 2})
    (value, slopes), = ran
    self.assertEqual(slopes['w'].shape, (5, 3))
    self.assertTrue(np.isfinite(value))
    with mock.patch.object(cpu_cost, 'memory', lambda: 1e3):
      text = str(cpu_cost.traced_lines(step, 4, 3, 2)['this CPU'])
    self.assertRegex(text, '^does not fit: .*fewer seeds')

  def test_tokens_are_those_of_the_tokenizer_or_typical_ones(self):
    count = cpu_cost.counter(ConfigDict({'llm': {'weights': 'tiny'}}))
    np.testing.assert_array_equal(count(['abcdef', '', 'abcd']), [2, 0, 2])
    tokenizer = types.SimpleNamespace(encode_batch=lambda texts: [t.split() for t in texts])
    with mock.patch.object(cpu_cost.tokenizer, 'load', lambda folder: tokenizer):
      count = cpu_cost.counter(ConfigDict({'llm': {'weights': 'folder'}}))
    np.testing.assert_array_equal(count(['a b c', '']), [3, 0])
    self.assertEqual(cpu_cost.some(range(1000), 3), [0, 499, 999])
    self.assertEqual([cpu_cost.duration(s) for s in (9, 600, 9000)], ['9 s', '10 min', '2.5 h'])


if __name__ == '__main__':
  absltest.main()
