"""Kernels in 8 bits: by hand, against the floats they stand for, and as files are read."""
import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax import base_config
from recjax.distributed.sharding import make_mesh, shardings
from recjax.errors import ConfigError
from recjax.models import huggingface, llm, lora, quantize
from recjax.training import llm_loading

CFG = llm.Config(vocab=48, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48,
                 qkv_bias=True)
INT8 = dataclasses.replace(CFG, quantize='int8')
TOKENS = np.random.default_rng(0).integers(0, 48, (3, 7))


def forward(cfg, variables):
  return llm.LM(cfg).apply(variables, TOKENS, np.arange(7)[None], np.ones_like(TOKENS))[0]


def dequantized(params):
  """The tree of a float model that computes the same, made in plain NumPy."""
  blocks = {}
  for name, leaf in params['blocks'].items():
    blocks[name] = leaf
    if name in llm.LINEAR:
      numbers, scale = (np.asarray(leaf[k], np.float32) for k in ('kernel', 'scale'))
      blocks[name] = {k: v for k, v in leaf.items() if k != 'scale'}
      blocks[name]['kernel'] = np.einsum('lef,lf->lef', numbers, scale)
  return {**params, 'blocks': blocks}


def adapters(cfg):
  tree = lora.init_lora(cfg, jax.random.key(1))
  return jax.tree.map(lambda x: x + .1 * jax.random.normal(jax.random.key(x.size), x.shape), tree)


class Int8Test(parameterized.TestCase):

  def test_by_hand(self):
    kernel = np.array([[2.54, 0, -1e-3], [-1.28, 0, 1e-3], [.005, 0, 0]], np.float32)
    for xp in (np, jnp):
      numbers, scale = quantize.to_int8(xp.asarray(kernel))
      np.testing.assert_array_equal(numbers, [[127, 0, -127], [-64, 0, 127], [0, 0, 0]])
      np.testing.assert_allclose(scale, [.02, 1, 1e-3 / 127], rtol=1e-6)
      self.assertEqual((numbers.dtype, scale.dtype), (np.int8, np.float32))
      np.testing.assert_allclose(quantize.to_float(numbers, scale), kernel, atol=.0101)

  @parameterized.parameters(('float32', 0), ('float32', 3), ('float32', 40), ('bfloat16', 3))
  def test_the_model_is_that_of_the_floats(self, dtype, rank):
    cfg = dataclasses.replace(INT8, dtype=dtype, lora_rank=rank)
    params = llm.init(cfg, jax.random.key(0))
    self.assertEqual(params['blocks']['up']['kernel'].dtype, jnp.int8)
    self.assertBetween(float(jnp.std(dequantized(params)['blocks']['up']['kernel'])), .019, .021)
    trained = adapters(cfg)
    plain = dataclasses.replace(cfg, quantize='none')
    draws = np.random.default_rng(1).normal(size=(*TOKENS.shape, cfg.width))

    def loss(trained, cfg, params):
      states = forward(cfg, {'params': params, 'lora': trained})
      return (states.astype(jnp.float32) * draws).sum(), states
    found, want = (jax.grad(loss, has_aux=True)(trained, *model)
                   for model in ((cfg, params), (plain, dequantized(params))))
    near = 5e-2 if dtype == 'bfloat16' else 1e-5

    def compare(x, y):
      x, y = (np.asarray(z, np.float32) for z in (x, y))
      self.assertLess(np.linalg.norm(x - y), near * np.linalg.norm(y))
    jax.tree.map(compare, found, want)

  @parameterized.product(dtype=('float32', 'bfloat16'), remat=('none', 'dots'), rank=(0, 2))
  def test_no_kernel_is_kept_as_floats(self, dtype, remat, rank):
    cfg = dataclasses.replace(INT8, dtype=dtype, param_dtype=dtype, layers=5, remat=remat,
                              lora_rank=rank)

    def loss(trained, params):
      tokens = jnp.ones((3, 31), jnp.int32)  # enough of them for adapters to be folded in
      states = llm.LM(cfg).apply({'params': params, 'lora': trained}, tokens,
                                 jnp.arange(31)[None], tokens)[0]
      return states.astype(jnp.float32).sum()
    trained = jax.eval_shape(lambda key: lora.init_lora(cfg, key), jax.random.key(0))
    text = jax.jit(jax.value_and_grad(loss)).lower(trained, llm.shapes(cfg)).as_text()
    self.assertRegex(text, r'tensor<5x32x48xi8>')
    self.assertEmpty(re.findall(r'tensor<5x(?:32x48|48x32|32x32|32x16)x(?:bf16|f32)>', text))

  def test_an_adapter_folds_into_it(self):
    cfg = dataclasses.replace(INT8, lora_rank=3)
    params, trained = llm.init(cfg, jax.random.key(0)), adapters(cfg)
    merged = lora.merge(params, trained, cfg)
    exact = lora.merge(dequantized(params), trained, dataclasses.replace(cfg, quantize='none'))
    for name in llm.LINEAR:
      numbers, scale = (np.asarray(merged['blocks'][name][k]) for k in ('kernel', 'scale'))
      want = np.asarray(exact['blocks'][name]['kernel'])
      self.assertEqual(numbers.dtype, np.int8)
      error = numbers * scale[:, None] - want
      self.assertLess(np.abs(error / scale[:, None]).max(), .5001)
      np.testing.assert_array_equal(np.abs(numbers).max(1), 127)


class FilesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.params = llm.init(CFG, jax.random.key(3))
    huggingface.save(self.params, CFG, self.folder)

  def test_files_are_read_as_numbers_and_scales_on_any_mesh(self):
    want = {name: quantize.to_int8(np.asarray(self.params['blocks'][name]['kernel']))
            for name in llm.LINEAR}
    whole = {'data': 2, 'fsdp': 2, 'model': 2}
    for axes in (None, whole, {'data': 1, 'fsdp': 8, 'model': 1}):
      where = axes and shardings(llm.shapes(INT8), llm.RULES, make_mesh(axes))
      found = huggingface.load(self.folder, INT8, where)
      for name, (numbers, scale) in want.items():
        np.testing.assert_array_equal(found['blocks'][name]['kernel'], numbers)
        np.testing.assert_array_equal(found['blocks'][name]['scale'], scale)
      found['bias'], self.params['bias'] = (p['blocks']['q']['bias'] for p in (found, self.params))
      for leaf in ('embed', 'head', 'norm', 'bias'):
        np.testing.assert_array_equal(found[leaf], self.params[leaf])
      if axes == whole:
        shard = found['blocks']['down']['kernel'].addressable_shards[0].data
        self.assertEqual((shard.shape, shard.dtype), ((2, 24, 16), np.int8))
        self.assertEqual(found['blocks']['up']['scale'].addressable_shards[0].data.shape, (2, 24))

  def test_no_other_program_reads_it_so_it_is_not_saved(self):
    params = huggingface.load(self.folder, INT8)
    with self.assertRaisesRegex(ConfigError, 'llm.quantize=int8: a whole checkpoint is written'):
      huggingface.save(params, INT8, self.create_tempdir().full_path)

  def test_settings_that_cannot_be(self):
    cfg = base_config.ConfigDict(base_config.llm('sample'))
    llm_loading.check(cfg, 'full')
    cfg.quantize = 'int4'
    for check in (llm_loading.check, lambda cfg: dataclasses.replace(CFG, quantize=cfg.quantize)):
      with self.assertRaisesRegex(ConfigError, "llm.quantize='int4' is not one of none, int8"):
        check(cfg)
    cfg.quantize = 'int8'
    llm_loading.check(cfg)
    with self.assertRaisesRegex(ConfigError, 'train.mode=full trains all; take train.mode=lora'):
      llm_loading.check(cfg, 'full')

  def test_a_missing_or_cut_tensor_is_named(self):
    other = dataclasses.replace(INT8, ffn=40)
    with self.assertRaisesRegex(huggingface.DataError, r'mlp.down_proj.weight has shape \(32, 48\)'
                                r', the model needs \(32, 40\)'):
      huggingface.load(self.folder, other)


if __name__ == '__main__':
  absltest.main()
