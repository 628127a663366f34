"""Checkpoints and adapters: the numbers of transformers and PEFT both ways, clear refusals."""
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

from recjax.distributed.sharding import make_mesh, shardings
from recjax.errors import ConfigError, DataError
from recjax.models import embedding_resize, huggingface, llm, lora
from recjax.training.losses import lm
from tests.long import long_but

HAS_TORCH = importlib.util.find_spec('torch') is not None
HAS_PEFT = HAS_TORCH and importlib.util.find_spec('peft') is not None
SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
             intermediate_size=48, max_position_embeddings=256, initializer_range=0.15)
LLAMA3 = dict(rope_type='llama3', rope_theta=5e5, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type='yarn', rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
FAMILIES = {
    'llama2': ('Llama', dict(tie_word_embeddings=False)),
    'llama3': ('Llama', dict(num_key_value_heads=2, rope_parameters=LLAMA3)),
    'llama_biased': ('Llama', dict(num_key_value_heads=1, attention_bias=True, mlp_bias=True)),
    'llama_linear': ('Llama', dict(rope_parameters=dict(rope_type='linear', rope_theta=1e4,
                                                        factor=2.0))),
    'qwen2': ('Qwen2', dict(num_key_value_heads=2, tie_word_embeddings=False)),
    'qwen2_5': ('Qwen2', dict(num_key_value_heads=2, tie_word_embeddings=True,
                              rope_parameters=dict(rope_type='default', rope_theta=1e6))),
    'qwen3': ('Qwen3', dict(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
    'qwen3_yarn': ('Qwen3', dict(num_key_value_heads=2, head_dim=16, rope_parameters=YARN)),
}
TINY = llm.Config(vocab=64, width=32, layers=3, heads=4, kv_heads=2, head_dim=16, ffn=48,
                  qk_norm=True, max_positions=256)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 70)).astype(np.int32)


def tempdir(test):
  return pathlib.Path(test.create_tempdir().full_path)


def random_params(cfg, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape) + (x.ndim == 1), x.dtype),
      llm.shapes(cfg))


@functools.partial(jax.jit, static_argnums=0)
def our_logits(cfg, params, adapters=None):
  tokens = jnp.asarray(TOKENS)
  at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  variables, model = {'params': params, 'lora': adapters or {}}, llm.LM(cfg)
  hidden, _ = model.apply(variables, tokens, at, jnp.ones_like(tokens))
  return model.apply(variables, hidden, method='logits')


def torch_logits(model):
  import torch
  with torch.no_grad():
    return model.eval()(input_ids=torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def torch_model(family):
  import torch
  import transformers
  name, options = FAMILIES[family]
  torch.manual_seed(0)
  config = getattr(transformers, name + 'Config')(**{**SMALL, **options})
  model = getattr(transformers, name + 'ForCausalLM')(config)
  with torch.no_grad():  # biases and norms start at zeros and ones, which would hide a mix-up
    for p in model.parameters():
      if p.ndim == 1:
        p.add_(0.2 * torch.randn_like(p))
  return model


@absltest.skipUnless(HAS_TORCH, 'torch is not installed')
class TransformersTest(parameterized.TestCase):

  @parameterized.parameters(*FAMILIES)
  @long_but(1, 7)
  def test_logits_equal_transformers_both_ways(self, family):
    import transformers
    theirs, ours = tempdir(self), tempdir(self)
    model = torch_model(family)
    model.save_pretrained(theirs, max_shard_size='20KB')
    self.assertGreater(len(list(theirs.glob('model-*.safetensors'))), 1)
    cfg = huggingface.read_config(theirs)
    params = huggingface.load(theirs, cfg)
    expected = torch_logits(model)
    self.assertGreater(expected.std(), 0.5)
    np.testing.assert_allclose(our_logits(cfg, params), expected, atol=1e-4)
    huggingface.save(params, cfg, ours, max_shard_bytes=30_000)
    self.assertGreater(len(list(ours.glob('model-*.safetensors'))), 1)
    self.assertEqual(huggingface.read_config(ours), cfg)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        ours, output_loading_info=True)
    self.assertFalse(report['missing_keys'] or report['unexpected_keys'], report)
    self.assertIs(type(again), type(model))
    np.testing.assert_allclose(torch_logits(again), expected, atol=1e-6)

  def test_older_spelling_of_rotary_settings_is_read_alike(self):
    folder = tempdir(self)
    torch_model('llama3').save_pretrained(folder)
    new = huggingface.read_config(folder)
    raw = json.loads((folder / 'config.json').read_text())
    scaling = raw.pop('rope_parameters')
    raw['rope_theta'] = scaling.pop('rope_theta')
    raw['rope_scaling'] = {'type': scaling.pop('rope_type'), **scaling}
    (folder / 'config.json').write_text(json.dumps(raw))
    self.assertEqual(huggingface.read_config(folder), new)


  @parameterized.parameters(
      ('llama2', dict(rope_parameters=None, rope_theta=5e3), ''),
      ('llama2', dict(rope_parameters=None, rope_scaling={'type': 'linear', 'factor': 3.0}), ''),
      ('llama2', dict(rope_parameters=None, rope_scaling={'type': 'dynamic', 'factor': 3.0}),
       'dynamic'),
      ('llama2', dict(rope_scaling={'type': 'linear', 'factor': 3.0}), 'rope_scaling'),
      ('llama2', dict(rope_parameters={'rope_type': 'default', 'factor': 3.0}), 'factor'),
      ('llama2', dict(rope_parameters={'rope_type': 'linear', 'factor': '3'}), 'factor'),
      ('llama2', dict(rope_parameters={'rope_type': 'default', 'partial_rotary_factor': 0.5}),
       'partial_rotary_factor'),
      ('llama2', dict(hidden_act='swish', pretraining_tp=2, attention_dropout=0.5), ''),
      ('llama2', dict(rms_norm_eps=0.1, num_key_value_heads=None), ''),
      ('llama2', dict(tie_word_embeddings=True), ''),  # its head is another matrix
      ('llama2', dict(is_causal=False), 'is_causal'), ('llama2', dict(logit_scale=2.), 'logit_sc'),
      ('llama2', dict(attention_bias='false'), 'attention_bias'),
      ('llama2', dict(attention_bias=True), 'bias is in no file'),
      ('llama2', dict(layer_types=['sliding_attention'] * 2), 'layer_types'),
      ('qwen2', dict(sliding_window=8), ''), ('qwen2', dict(attention_bias=False), ''),
      ('qwen2', dict(use_sliding_window=True, sliding_window=8), 'use_sliding_window'),
      ('qwen3', dict(tie_word_embeddings=False), 'lm_head.weight is in no file'))
  @long_but(1, 3, 10, 12, 17)
  def test_an_edited_config_is_read_as_transformers_does_or_refused(self, family, edit, message):
    import transformers
    folder = tempdir(self)
    torch_model(family).save_pretrained(folder)
    raw = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**raw, **edit}))
    if message:
      with self.assertRaisesRegex((ConfigError, DataError), message):
        huggingface.load(folder, huggingface.read_config(folder))
      return
    cfg = huggingface.read_config(folder)
    want = torch_logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    np.testing.assert_allclose(our_logits(cfg, huggingface.load(folder, cfg)), want, atol=1e-4)


@absltest.skipUnless(HAS_PEFT, 'torch or peft is not installed')
class PeftTest(parameterized.TestCase):

  def test_their_adapter_gives_equal_logits_here(self):
    import peft
    import torch
    base, folder = tempdir(self), tempdir(self)
    model = torch_model('qwen2')
    model.save_pretrained(base)
    tuned = peft.get_peft_model(model, peft.LoraConfig(
        r=3, lora_alpha=12, target_modules=['q_proj', 'v_proj', 'down_proj'],
        task_type='CAUSAL_LM'))
    with torch.no_grad():
      for name, p in tuned.named_parameters():
        if 'lora_B' in name:
          p.add_(0.1 * torch.randn_like(p))
    tuned.save_pretrained(folder)
    cfg = huggingface.adapter_config(folder, huggingface.read_config(base))
    self.assertEqual((cfg.lora_rank, cfg.lora_alpha, cfg.lora_targets),
                     (3, 12.0, ('q', 'v', 'down')))
    params, adapters = huggingface.load(base, cfg), huggingface.load_adapter(folder, cfg)
    np.testing.assert_allclose(our_logits(cfg, params, adapters), torch_logits(tuned), atol=1e-4)

  @parameterized.parameters(
      (dict(use_rslora=True), ''), (dict(init_lora_weights='gaussian'), ''),
      (dict(init_lora_weights='orthogonal', r=4), ''), (dict(target_modules='all-linear'), ''),
      (dict(target_modules=r'.*\.(q_proj|up_proj)', exclude_modules=['v_proj']), ''),
      (dict(init_lora_weights='pissa'), 'init_lora_weights'),
      (dict(init_lora_weights='olora'), 'init_lora_weights'), (dict(use_dora=True), 'use_dora'),
      (dict(alora_invocation_tokens=[5]), 'alora_invocation_tokens'),
      (dict(rank_pattern={'q_proj': 5}), 'rank_pattern'),
      (dict(alpha_pattern={'layers.0.self_attn.q_proj': 5}), 'alpha_pattern'),
      (dict(modules_to_save=['lm_head']), 'modules_to_save'), (dict(bias='all'), 'bias'),
      (dict(layers_to_transform=0), 'layers_to_transform'), (dict(lora_bias=True), 'lora_bias'),
      (dict(trainable_token_indices=[1]), 'trainable_token_indices'),
      (dict(target_parameters=['mlp.up_proj.weight']), 'target_parameters'),
      (dict(target_modules=r'.*layers\.1.*\.q_proj'), 'target_modules'),
      (dict(exclude_modules=r'.*layers\.1.*v_proj'), 'exclude_modules'),
      (dict(target_modules=['q_proj', 'lm_head']), 'lm_head'),
      (dict(target_modules=['q_proj', 'embed_tokens']), 'embed_tokens'))
  @long_but(4, 5, 9, 17)
  def test_their_adapters_give_equal_logits_or_are_refused(self, options, message):
    import peft
    import torch
    import transformers
    base, folder = tempdir(self), tempdir(self)
    torch_model('qwen2').save_pretrained(base)
    tuned = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**{
            **dict(r=3, lora_alpha=12, target_modules=['q_proj', 'v_proj', 'down_proj'],
                   task_type='CAUSAL_LM'), **options}))
    with torch.no_grad():
      for p in tuned.parameters():
        if p.requires_grad:
          p.add_(0.1 * torch.randn_like(p))
    tuned.save_pretrained(folder)
    read = huggingface.read_config(base)
    if message:
      with self.assertRaisesRegex(ConfigError, message):
        huggingface.load_adapter(folder, huggingface.adapter_config(folder, read))
      return
    cfg = huggingface.adapter_config(folder, read)
    want = torch_logits(peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), folder))
    np.testing.assert_allclose(our_logits(
        cfg, huggingface.load(base, cfg), huggingface.load_adapter(folder, cfg)), want, atol=1e-4)

  def test_our_adapter_gives_equal_logits_there(self):
    import peft
    import transformers
    base, folder = tempdir(self), tempdir(self)
    cfg = dataclasses.replace(TINY, lora_rank=4, lora_alpha=8.0)
    params = random_params(cfg)
    adapters = random_lora(cfg)
    huggingface.save(params, cfg, base)
    huggingface.save_adapter(adapters, cfg, folder, base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tuned = peft.PeftModel.from_pretrained(model, folder)
    expected = our_logits(cfg, params, adapters)
    np.testing.assert_allclose(torch_logits(tuned), expected, atol=1e-4)
    plain = dataclasses.replace(cfg, lora_rank=0)
    merged = our_logits(plain, lora.merge(params, adapters, cfg))
    np.testing.assert_allclose(merged, expected, atol=1e-4)


def random_lora(cfg):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype),
                      lora.init_lora(cfg, jax.random.key(0)))


class FilesTest(parameterized.TestCase):

  @parameterized.product(limit=[5 << 30, 4_000], kind=['bfloat16', 'float32'])
  def test_round_trip_is_exact_to_the_bit(self, limit, kind):
    cfg, folder = dataclasses.replace(TINY, param_dtype=kind), tempdir(self)
    params = random_params(cfg)
    huggingface.save(params, cfg, folder, max_shard_bytes=limit)
    self.assertEqual(huggingface.read_config(folder), cfg)
    again = huggingface.load(folder, cfg)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    self.assertEqual(again['embed'].dtype, jnp.dtype(kind))
    sizes = [f.stat().st_size for f in folder.glob('*.safetensors')]
    self.assertEqual(len(sizes) == 1, limit > 1 << 20)
    self.assertFalse(list(folder.glob('.*')))  # nothing half-written stays

  def test_stored_tensors_have_their_layout(self):
    folder = tempdir(self)
    params = random_params(TINY)
    huggingface.save(params, TINY, folder)
    stored = safetensors.numpy.load_file(folder / 'model.safetensors')
    np.testing.assert_array_equal(stored['model.layers.1.mlp.up_proj.weight'],
                                  np.asarray(params['blocks']['up']['kernel'][1]).T)
    np.testing.assert_array_equal(stored['lm_head.weight'], np.asarray(params['head']).T)
    self.assertLen(stored, 3 + TINY.layers * 11)

  def test_each_device_holds_its_slice_of_the_same_weights(self):
    folder, params = tempdir(self), random_params(TINY)
    huggingface.save(params, TINY, folder, max_shard_bytes=4_000)
    where = shardings(llm.shapes(TINY), llm.RULES, make_mesh({'data': 2, 'fsdp': 2, 'model': 2}))
    again = huggingface.load(folder, TINY, where)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    kernel = again['blocks']['q']['kernel']
    self.assertEqual(kernel.sharding, where['blocks']['q']['kernel'])
    self.assertEqual(kernel.addressable_shards[0].data.shape, (3, 16, 32))

  @parameterized.parameters(False, True)
  @long_but(1)
  def test_a_vocabulary_that_no_axis_divides_is_filled_up_and_cut_again(self, tied):
    plain = dataclasses.replace(TINY, vocab=66, tied=tied)
    params, folder = random_params(plain), tempdir(self)
    huggingface.save(params, plain, folder)
    mesh = make_mesh({'data': 1, 'fsdp': 2, 'model': 4})
    self.assertEqual([llm.padded_rows(v, 4) for v in (64, 66, 513)], [64, 512, 1024])
    cfg = dataclasses.replace(plain, table_rows=llm.padded_rows(66, 4))
    where = shardings(llm.shapes(cfg), llm.RULES, mesh)
    filled = huggingface.load(folder, cfg, where)
    for name in ('embed',) if tied else ('embed', 'head'):
      table, want = (np.asarray(t[name]) for t in (filled, params))
      np.testing.assert_array_equal(table[tuple(map(slice, want.shape))], want)
      self.assertEqual(table.size, 512 * 32)
      self.assertEqual(np.count_nonzero(table), np.count_nonzero(want))
      self.assertEqual(filled[name].sharding, where[name])
    with jax.set_mesh(mesh):
      logits = our_logits(cfg, filled)
      np.testing.assert_allclose(logits[..., :66], our_logits(plain, params), atol=1e-5)
      self.assertTrue(np.isneginf(logits[..., 66:]).all())

      def loss(params, cfg):
        head = llm.head_matrix(params, cfg)
        return lm.token_nll(jnp.ones((3, 32)), head, jnp.array([0, 5, 65])).sum()
      got, want = (jax.jit(jax.grad(loss), static_argnums=1, out_shardings=place)(p, c)
                   for p, c, place in ((filled, cfg, where), (params, plain, None)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5),
                 llm.cut_tables(got, cfg), want)
    out = tempdir(self)
    huggingface.save(filled, cfg, out)
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(out, plain), params)
    grown, shape = embedding_resize.add_tokens(filled, cfg, [66, 67], [[1], [2, 3]])
    self.assertEqual((shape.vocab, shape.rows, grown['embed'].shape[0]), (68, 512, 512))
    np.testing.assert_allclose(grown['embed'][66], params['embed'][1], rtol=1e-6)

  def test_saving_over_a_split_checkpoint_leaves_no_old_part(self):
    folder, params = tempdir(self), random_params(TINY)
    huggingface.save(params, TINY, folder, max_shard_bytes=4_000)
    huggingface.save(params, TINY, folder)
    self.assertEqual(sorted(os.listdir(folder)), ['config.json', 'model.safetensors'])

  def test_adapter_round_trip_is_exact(self):
    cfg, folder = dataclasses.replace(TINY, lora_rank=2, lora_targets=('o', 'k')), tempdir(self)
    adapters = random_lora(cfg)
    huggingface.save_adapter(adapters, cfg, folder, 'base')
    jax.tree.map(np.testing.assert_array_equal, huggingface.load_adapter(folder, cfg), adapters)
    raw = json.loads((folder / 'adapter_config.json').read_text())
    self.assertEqual((raw['r'], raw['lora_alpha'], raw['target_modules']),
                     (2, 16, ['o_proj', 'k_proj']))
    self.assertIsInstance(raw['lora_alpha'], int)


class RefusalTest(parameterized.TestCase):

  def saved(self, change=lambda tensors: None):
    folder = tempdir(self)
    huggingface.save(random_params(TINY), TINY, folder)
    path = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    return folder

  def edited(self, **change):
    folder = self.saved()
    raw = json.loads((folder / 'config.json').read_text())
    raw.update(change)
    (folder / 'config.json').write_text(json.dumps({k: v for k, v in raw.items() if v != 'gone'}))
    return folder

  @parameterized.named_parameters(
      ('missing', lambda t: t.pop('model.layers.2.mlp.up_proj.weight'),
       'model.layers.2.mlp.up_proj.weight is in no file'),
      ('extra', lambda t: t.update({'model.layers.3.mlp.up_proj.weight': np.zeros(1, 'f')}),
       r'model.safetensors: tensor model.layers.3.mlp.up_proj.weight has no place'),
      ('shape', lambda t: t.update({'lm_head.weight': np.zeros((32, 64), 'f')}),
       r'model.safetensors: tensor lm_head.weight has shape \(32, 64\), the model needs .64, 32'),
      ('integers', lambda t: t.update({'lm_head.weight': np.zeros((64, 32), np.int8)}),
       'lm_head.weight is stored as I8'))
  def test_a_wrong_tensor_is_named_with_its_file(self, change, message):
    with self.assertRaisesRegex(DataError, message):
      huggingface.load(self.saved(change), TINY)

  def test_leftovers_are_looked_at(self):
    turns = (1e4 ** -(np.arange(0, 16, 2) / 16)).astype('f')
    name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    for kind in ('float32', 'float16', 'bfloat16'):
      huggingface.load(self.saved(lambda t, k=kind: t.update({name: np.asarray(
          jnp.asarray(turns, k))})), TINY)
    for wrong in (np.zeros(8, 'f'), turns * 1.05, turns[:7]):
      with self.assertRaisesRegex(DataError, r'model.safetensors: tensor .*inv_freq is not what'):
        huggingface.load(self.saved(lambda t, x=wrong: t.update({name: x})), TINY)

  def test_a_head_of_its_own_is_used_and_an_equal_one_is_the_embedding(self):
    def edited(change):
      folder = self.saved(change)
      raw = json.loads((folder / 'config.json').read_text())
      (folder / 'config.json').write_text(json.dumps({**raw, 'tie_word_embeddings': True}))
      return folder
    folder = edited(lambda t: None)
    cfg = huggingface.read_config(folder)
    self.assertFalse(cfg.tied)
    np.testing.assert_array_equal(huggingface.load(folder, cfg)['head'],
                                  random_params(TINY)['head'])
    with self.assertRaisesRegex(DataError, 'lm_head.weight is not model.embed_tokens.weight'):
      huggingface.load(folder, dataclasses.replace(cfg, tied=True))
    for change in (lambda t: t.update({'lm_head.weight': t['model.embed_tokens.weight']}),
                   lambda t: t.pop('lm_head.weight')):
      folder = edited(change)
      cfg = huggingface.read_config(folder)
      self.assertTrue(cfg.tied)
      self.assertNotIn('head', huggingface.load(folder, cfg))

  def test_a_cut_file_an_absent_part_and_a_pickle_are_refused(self):
    folder = self.saved()
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-10])
    with self.assertRaisesRegex(DataError, 'model.safetensors is not a whole'):
      huggingface.load(folder, TINY)
    path.unlink()
    with self.assertRaisesRegex(DataError, 'has neither'):
      huggingface.load(folder, TINY)
    (folder / 'pytorch_model.bin').write_bytes(b'')
    with self.assertRaisesRegex(DataError, 'pytorch_model.bin is a pickle.*save_pretrained'):
      huggingface.load(folder, TINY)
    huggingface.save(random_params(TINY), TINY, folder, max_shard_bytes=4_000)
    next(folder.glob('model-00002*')).unlink()
    with self.assertRaisesRegex(DataError, 'model-00002.*does not exist'):
      huggingface.load(folder, TINY)

  @parameterized.parameters(
      (dict(model_type='mixtral'), "model_type 'mixtral'"), (dict(hidden_act='gelu'), 'hidden_act'),
      (dict(hidden_size='gone'), 'hidden_size is missing'),
      (dict(use_sliding_window=True), 'use_sliding_window'),
      (dict(layer_types=['full_attention', 'sliding_attention']), 'layer_types'),
      (dict(quantization_config={'bits': 4}), 'quantization_config'),
      (dict(partial_rotary_factor=0.5), 'partial_rotary_factor'),
      (dict(rope_scaling={'rope_type': 'longrope', 'factor': 2.0}), "'longrope'"),
      (dict(rope_scaling={'rope_type': 'linear'}), 'lacks factor'),
      (dict(rope_scaling={'rope_type': 'linear', 'factor': 2.0, 'short_factor': 1}),
       'short_factor'))
  def test_an_option_that_is_not_implemented_is_named(self, change, message):
    with self.assertRaisesRegex(ConfigError, message):
      huggingface.read_config(self.edited(**change))

  def test_an_adapter_beside_a_model_and_files_of_two_models_are_refused(self):
    folder = self.saved()
    (folder / 'adapter_config.json').write_text('{}')
    with self.assertRaisesRegex(ConfigError, 'adapter_config.json: an adapter lies beside'):
      huggingface.read_config(folder)
    folder = tempdir(self)
    huggingface.save(random_params(TINY), TINY, folder, max_shard_bytes=4_000)
    first, second = sorted(folder.glob('model-*.safetensors'))[:2]
    one, two = map(safetensors.numpy.load_file, (first, second))
    safetensors.numpy.save_file({**two, **one}, second)
    with self.assertRaisesRegex(DataError, 'stands in model-00001.*, too'):
      huggingface.load(folder, TINY)

  def test_an_adapter_whose_settings_leave_out_a_tensor_is_refused(self):
    cfg, folder = dataclasses.replace(TINY, lora_rank=2), tempdir(self)
    huggingface.save_adapter(random_lora(cfg), cfg, folder, 'base')
    raw = json.loads((folder / 'adapter_config.json').read_text())
    for targets, message in ((['q_proj', 'k_proj'], 'leaves out self_attn.v_proj'),
                             (['('], 'leaves out'), ('(', 'regular expression'), (3, 'neither')):
      (folder / 'adapter_config.json').write_text(json.dumps({**raw, 'target_modules': targets}))
      with self.assertRaisesRegex(ConfigError, f'target_modules.*{message}'):
        huggingface.adapter_config(folder, cfg)

  def test_unreadable_config_and_impossible_family_are_refused(self):
    folder = self.saved()
    (folder / 'config.json').write_text('{')
    with self.assertRaisesRegex(DataError, 'not readable JSON'):
      huggingface.read_config(folder)
    (folder / 'config.json').unlink()
    with self.assertRaisesRegex(DataError, 'does not exist'):
      huggingface.read_config(folder)
    with self.assertRaisesRegex(ConfigError, 'no known family'):
      huggingface.family_config(dataclasses.replace(TINY, qkv_bias=True))

  def test_an_adapter_of_another_kind_or_size_is_refused(self):
    cfg, folder = dataclasses.replace(TINY, lora_rank=2), tempdir(self)
    huggingface.save_adapter(random_lora(cfg), cfg, folder, 'base')
    for change in (dict(lora_rank=4), dict(lora_alpha=3.0), dict(lora_targets=('q',))):
      with self.assertRaisesRegex(ConfigError, next(iter(change))):
        huggingface.load_adapter(folder, dataclasses.replace(cfg, **change))
    with self.assertRaisesRegex(DataError, r'layers\.3.*in no file'):
      huggingface.load_adapter(folder, dataclasses.replace(cfg, layers=4))
    raw = json.loads((folder / 'adapter_config.json').read_text())
    (folder / 'adapter_config.json').write_text(json.dumps({**raw, 'use_dora': True}))
    with self.assertRaisesRegex(ConfigError, 'use_dora'):
      huggingface.load_adapter(folder, cfg)


if __name__ == '__main__':
  absltest.main()
