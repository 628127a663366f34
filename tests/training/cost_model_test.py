"""What doctor says a run takes: bytes against real arrays and the compiler, meshes, collectives."""
import dataclasses
import functools
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from ml_collections import ConfigDict

from recjax import base_config
from recjax.data import loading
from recjax.distributed import sharding
from recjax.methods import betag, bigrec, reclm
from recjax.models import llm, lora
from recjax.training import cost_model, loop, optim
from recjax.training.losses import lm
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]

TINY = llm.Config(vocab=96, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=64,
                  lora_rank=4)

LLAMA_8B = llm.Config(
    vocab=128_256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn=14_336,
    dtype='bfloat16', param_dtype='bfloat16', remat='full', lora_rank=64)

AXES = {'data': 1, 'fsdp': 4, 'model': 2}


def step_program(shape, axes, rows=8, row=64, chunk=1 << 16):
  """A LoRA step compiled from shapes alone. -> compiled"""
  mesh, model = sharding.make_mesh(axes), llm.LM(shape)

  def loss(train, frozen, batch, key):
    del key
    hidden, _ = model.apply({'params': frozen, 'lora': train}, batch['tokens'], batch['positions'],
                            batch['segments'])
    head = llm.head_matrix(frozen, shape)
    return lm.token_nll(hidden.reshape(-1, shape.width), head, batch['targets'].reshape(-1),
                            chunk_bytes=chunk).mean(), {}
  tx = optim.make(ConfigDict(dict(lr=1e-4, warmup=0, schedule='constant', decay=0.0, clip=1.0,
                                  beta2=0.999)), 10)
  key = jax.random.key(0)
  task = loop.Task(init=functools.partial(lora.init_lora, shape), loss=loss, batches=())

  def placed(tree):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree,
                        sharding.shardings(tree, llm.RULES, mesh))

  def init(key):
    train = task.init(key)
    return {'train': train, 'opt': tx.init(train)}
  where = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  batch = {k: jax.ShapeDtypeStruct((rows, row), jnp.int32, sharding=where)
           for k in ('tokens', 'positions', 'segments', 'targets')}
  with jax.set_mesh(mesh):
    return loop.make_update(task, tx, key).lower(
        placed(jax.eval_shape(init, key)), placed(llm.shapes(shape)), batch, np.int32(0)).compile()


class PlanTest(absltest.TestCase):

  def test_bytes_of_a_tree_are_those_that_a_device_holds(self):
    mesh = sharding.make_mesh({'data': 1, 'fsdp': 4, 'model': 2})
    params = llm.init(TINY, jax.random.key(0))
    placed = jax.device_put(params, sharding.shardings(params, llm.RULES, mesh))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed))
    self.assertEqual(sharding.device_bytes(params, llm.RULES, AXES), held)
    whole = sum(x.nbytes for x in jax.tree.leaves(params))
    self.assertEqual(sharding.device_bytes(params, llm.RULES, {}), whole)

  def test_a_step_takes_what_the_compiler_says(self):
    shape = dataclasses.replace(TINY, vocab=32_768, width=1024, layers=8, heads=8, kv_heads=4,
                                head_dim=128, ffn=2816, remat='full', lora_rank=16)
    found = step_program(shape, AXES, rows=8, row=128, chunk=cost_model.CHUNK).memory_analysis()
    want = (found.argument_size_in_bytes + found.output_size_in_bytes
            - found.alias_size_in_bytes + found.temp_size_in_bytes)
    got = sum(cost_model.training_bytes(shape, AXES, 8, 128).values())
    self.assertBetween(got / want, 0.85, 1.25)  # parts are added up as if all lived at once

  def test_weights_that_train_are_counted_as_they_are_kept(self):
    shape = dataclasses.replace(TINY, lora_rank=0, dtype='bfloat16', param_dtype='bfloat16')
    tx = optim.make(ConfigDict(dict(lr=1e-4, warmup=0, schedule='constant', decay=0.0, clip=1.0,
                                    beta2=0.999)), 10)
    task = loop.Task(init=None, loss=None, batches=())
    state = loop.fresh_state(task, tx, None, llm.init(shape, jax.random.key(0)))
    held = sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim)
    told = cost_model.training_bytes(shape, {}, 8, 64)
    self.assertEqual(told['trained'] + told['optimizer'], held)

  @long
  def test_what_the_backward_pass_keeps(self):
    base = llm.Config(vocab=96, width=128, layers=3, heads=8, kv_heads=4, head_dim=16, ffn=384)
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    for remat in ('none', 'dots', 'full'):
      for dtype, rank in (('bfloat16', 8), ('bfloat16', 0), ('float32', 8), ('float32', 0)):
        shape = dataclasses.replace(base, remat=remat, dtype=dtype, lora_rank=rank)
        frozen = llm.shapes(shape)

        def run(train, frozen, tokens, shape=shape):
          variables = {'params': frozen, 'lora': train} if shape.lora_rank else {'params': train}
          return llm.LM(shape).apply(variables, tokens, jnp.arange(64)[None], tokens)[0]

        def back(train, frozen, tokens, run=run):
          return jax.vjp(lambda t: run(t, frozen, tokens), train)[1]
        train = jax.eval_shape(lambda k, shape=shape: lora.init_lora(shape, k), jax.random.key(0))
        left = jax.eval_shape(back, *((train, frozen) if rank else (frozen, ())), tokens)
        # Stacked by the scan, but for weights, of any type, and what a block has once.
        weights = {x.shape for x in jax.tree.leaves((frozen, train))}
        kept = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(left)
                   if x.shape[:1] == (3,) and x.shape not in weights)
        told = 3 * 4 * 64 * cost_model.kept_bytes(shape, 64)
        self.assertBetween(told / kept, .9, 1.1, (remat, dtype, rank))

  def test_weights_in_8_bits_are_counted_as_they_are_kept(self):
    whole, eight = (cost_model.numerics(TINY, ConfigDict({
        **base_config.llm('paper'), 'quantize': kind})) for kind in ('none', 'int8'))
    self.assertEqual((whole.stored, eight.stored), ('bfloat16', 'bfloat16, kernels int8'))
    kernels = sum(n * out for n, out, _ in TINY.linear.values()) * TINY.layers
    scales = 4 * sum(out for _, out, _ in TINY.linear.values()) * TINY.layers
    self.assertEqual(llm.param_bytes(whole) - llm.param_bytes(eight), kernels - scales)

  @long
  def test_8b_fits_one_large_card_and_several_small_ones(self):
    run = cost_model.LLMRun(LLAMA_8B, 8, 512, 160, 1e6, 5, 1000, 8, 40, 24, 64)
    self.assertEqual(
      cost_model.smallest_mesh(run, 141 * cost_model.GIB), {'data': 1, 'fsdp': 1, 'model': 1}
    )
    small = cost_model.smallest_mesh(run, 16 * cost_model.GIB)
    self.assertGreaterEqual(math.prod(small.values()), 2)
    self.assertIsNone(cost_model.smallest_mesh(run, cost_model.GIB // 4))
    sizes = [sum(cost_model.training_bytes(LLAMA_8B, {'fsdp': n}, 64, 512).values())
             for n in (2, 4, 8, 16)]
    self.assertEqual(sizes, sorted(sizes, reverse=True))
    full = dataclasses.replace(LLAMA_8B, lora_rank=0)
    self.assertGreater(sum(cost_model.training_bytes(full, {}, 8, 512).values()), 8e9 * 16)

  def test_time_follows_operations_and_chips(self):
    run = cost_model.LLMRun(LLAMA_8B, 8, 512, 160, 1e6, 5, 1000, 8, 40, 24, 64)
    one = cost_model.epoch_seconds(run, 1, 989e12)
    self.assertAlmostEqual(cost_model.epoch_seconds(run, 8, 989e12), one / 8)
    # 8.0e9 parameters of which 7.5e9 multiply: forward, backward to x, forward again.
    self.assertAlmostEqual(one, 3 * 2 * 7.6e9 * 1e6 / (0.4 * 989e12), delta=0.15 * one)

  def test_collectives_are_counted_with_their_bytes(self):
    text = ('%a = f32[4,8]{1,0} all-gather(f32[1,8] %x), dims\n'
            '%b = (bf16[16]{0}, f32[2]{0}) all-reduce(%y, %z)\n %c = f32[3] add(%a, %b)\n'
            '%d = f32[4,8]{1,0} all-gather-start(f32[1,8] %x)\n'
            '%e = (f32[1]{0}, /*index=5*/f32[2]{0}) all-reduce(%y, /*index=5*/%z)')
    self.assertEqual(cost_model.collectives(text), {'all-gather': (2, 256), 'all-reduce': (2, 52)})

  @long
  def test_a_step_moves_weights_and_activations_and_never_logits(self):
    shape = dataclasses.replace(TINY, vocab=4096, layers=3)
    text = step_program(shape, AXES).as_text()
    found = cost_model.COLLECTIVE.findall(text)
    self.assertTrue(found)
    tokens, model = 8 * 64 // 4, 2
    for shapes, kind in found:
      size, = [s for _, s in cost_model.collectives(f'= {shapes} {kind}(').values()]
      if kind == 'all-reduce':  # over 'model': a block's outputs; over 'fsdp': adapters' gradients
        self.assertLess(size, 4 * tokens * shape.vocab / model / 4, shapes)
      else:
        self.assertLessEqual(size, 4 * shape.vocab * shape.width / model, shapes)
    gathers, total = cost_model.collectives(text)['all-gather']
    self.assertGreater(gathers, 0)
    layer = sum(n * out for n, out, _ in shape.linear.values()) / model * 4
    tables = 2 * shape.vocab * shape.width / model * 4
    # Tables once, a layer's weights there and back; a loop's body counts once.
    self.assertLess(total, 1.3 * (tables + 2 * layer))

  @long
  def test_every_method_with_an_llm_says_what_it_takes(self):
    sys.path.insert(0, str(ROOT))
    shop = loading.load_data('sample')
    from tests import house_test
    for name, method in (('betag_scientific', betag), ('bigrec_games', bigrec),
                         ('reclm_scientific', reclm)):
      cfg = house_test.load_config(ROOT / 'configs' / f'{name}.py').get_config()
      found = method.cost(cfg, shop)
      self.assertIn('fits 1 chip', found['TPU v5e'], name)
      self.assertTrue(any('bytes a device' in k for k in found), name)

  @long
  def test_doctor_takes_settings_as_a_run_does(self):
    def doctor(*words):
      return subprocess.run(
          [sys.executable, '-m', 'recjax', 'doctor', 'sample',
           '--config=configs/betag_scientific.py', *words], cwd=ROOT, capture_output=True,
          text=True)
    done = doctor('--config.decode.beams=77', '--config.llm.remat=full')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('a step: ', done.stdout)
    self.assertIn('fits 1 chip', done.stdout)
    self.assertEqual(doctor('--config.decode.beems=7').returncode, 2)
    self.assertEqual(doctor('--other=7').returncode, 2)


if __name__ == '__main__':
  absltest.main()
