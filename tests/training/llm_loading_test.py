"""Checkpoints as methods open them: what cannot work is said before anything is trained."""
import dataclasses
import importlib
import json
import math
import pathlib
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax import experiment
from recjax.distributed.sharding import make_mesh
from recjax.errors import ConfigError, DataError
from recjax.models import embedding_resize, huggingface, llm
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import host_memory, llm_loading, text_embedding, workdir
from tests import gguf_files
from tests.long import long
from tests.models import huggingface_test

HOW = ConfigDict(dict(dtype='float32', remat='none', quantize='none'))


def ones(cfg):
  return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), llm.shapes(cfg))


def checkpoint(folder, spare=0, **changes):
  """A small LLM whose embedding has `spare` rows more than its tokenizer has ids."""
  tokenizer = tokenizer_lib.train_bpe(['steel screws and some wood'] * 9, 280)
  cfg = llm.Config(vocab=tokenizer.vocab_size + spare, width=16, layers=1, heads=2, kv_heads=1,
                   head_dim=8, ffn=24, tied=True)
  huggingface.save(ones(cfg), cfg, folder)
  tokenizer.save(folder)
  path = folder / 'tokenizer_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
  return folder, tokenizer.vocab_size


class OpenTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.mesh = make_mesh({'data': -1})

  def opened(self):
    cfg = ConfigDict({'llm': {**HOW.to_dict(), 'weights': str(self.folder)}})
    return llm_loading.folder(cfg, None, '', list)

  @parameterized.parameters(0, 1, 40)
  def test_spare_rows_are_usual(self, spare):
    checkpoint(self.folder, spare)
    self.assertEqual(self.opened(), self.folder)
    llm_loading.load(self.folder, HOW, self.mesh)

  @parameterized.parameters(1, 30)
  def test_ids_without_rows_are_refused_with_both_numbers(self, lacking):
    _, size = checkpoint(self.folder, -lacking)
    message = f'ids up to {size - 1} .*has {size - lacking} rows'
    for open_it in (self.opened, lambda: llm_loading.load(self.folder, HOW, self.mesh)):
      with self.assertRaisesRegex(DataError, message):
        open_it()

  def test_no_end_token_and_one_without_a_row_are_refused(self):
    checkpoint(self.folder, eos_token=None, eos_token_ids=[])
    with self.assertRaisesRegex(DataError, 'no end token.*eos_token in tokenizer_config.json'):
      self.opened()
    (self.folder / 'generation_config.json').write_text('{"eos_token_id": 2}')
    self.opened()
    (self.folder / 'generation_config.json').write_text('{"eos_token_id": [2, 999999]}')
    with self.assertRaisesRegex(DataError, '999999 is none of the .* rows'):
      self.opened()

  @parameterized.parameters('bogus', 'int8', 'float64', '', None, 32)
  def test_a_type_that_is_none_is_named_with_its_setting(self, dtype):
    checkpoint(self.folder)
    how = types.SimpleNamespace(dtype=dtype, remat='none', quantize='none')
    with self.assertRaisesRegex(ConfigError, r'llm\.dtype=.* is not one of auto, float32'):
      llm_loading.load(self.folder, how, self.mesh)

  @parameterized.parameters(
      ('betag_scientific', 'llm.dtype'), ('bigrec_games', 'llm.dtype'),
      ('d3_scientific', 'llm.dtype'), ('llmemb_scientific', 'llm.dtype'),
      ('reclm_toys', 'llm.dtype'), ('tiger_beauty', 'model.dtype'),
      ('etegrec_scientific', 'model.dtype'))
  def test_every_method_refuses_it_before_it_begins(self, name, key):
    root = pathlib.Path(__file__).parents[2]
    cfg = experiment.read_config(str(root / 'configs' / f'{name}.py'))
    cfg.update_from_flattened_dict({key: 'bogus'})
    method = importlib.import_module(f'recjax.methods.{cfg.method}')
    with self.assertRaisesRegex(ConfigError, f"{key}='bogus' is not one of"):
      method.run(cfg, None)

  @long
  def test_a_gguf_file_is_what_a_folder_is(self):
    if not huggingface_test.HAS_TORCH:
      self.skipTest('torch is not installed')
    model = huggingface_test.torch_model('llama2')
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    add = gguf_files.add_words([*(f'w{i}' for i in range(61)), 'a', 'b', 'ab'], ['a b'], 'gpt-2',
                               bos=0, eos=1)
    path = gguf_files.write_model(self.folder / 'x.gguf', model.config, state, tokens=add)
    cfg = ConfigDict({'llm': {**HOW.to_dict(), 'weights': str(path)}})
    self.assertEqual(llm_loading.folder(cfg, None, '', list), path)
    self.assertEqual(llm_loading.shape_of(cfg).width, model.config.hidden_size)
    encoder = text_embedding.load(path, HOW, self.mesh)
    self.assertEqual(encoder.width, model.config.hidden_size)
    shape = huggingface.read_config(path)
    adapted = dataclasses.replace(shape, lora_rank=2)
    adapter = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32),
                           {'blocks': {n: {'a': np.zeros((shape.layers, size_in, 2)),
                                           'b': np.zeros((shape.layers, 2, size_out))}
                                       for n, (size_in, size_out, _) in shape.linear.items()}})
    huggingface.save_adapter(adapter, adapted, self.folder / 'tuned', base=path)
    for to in ('peft', 'merged'):
      llm_loading.export_adapted(path, self.folder / 'tuned', to, self.folder / to)
    named = json.loads((self.folder / 'peft' / 'adapter_config.json').read_text())
    self.assertEqual(named['base_model_name_or_path'], str(path.resolve()))
    out = self.folder / 'merged'
    merged = huggingface.load(out, huggingface.read_config(out))
    plain = huggingface.load(path, shape)
    for name in shape.linear:  # alpha is 16 of rank 2, and each product of A and B 2 * 0.01
      np.testing.assert_allclose(merged['blocks'][name]['kernel'] - plain['blocks'][name]['kernel'],
                                 8 * 0.02, rtol=1e-4)
    self.assertEqual(tokenizer_lib.load(out).encode('ab'), [63])

  def test_runs_are_known_by_the_content_of_a_gguf_file(self):
    path = self.folder / 'x.gguf'

    def write(letter):
      words = ['a', letter, f'a{letter}']
      gguf_files.write_vocabulary(path, gguf_files.add_words(words, [f'a {letter}'], 'gpt-2'))
    write('b')
    known = workdir.fingerprint({'weights': path})
    self.assertEqual(workdir.fingerprint({'weights': path}), known)
    write('c')
    self.assertNotEqual(workdir.fingerprint({'weights': path}), known)

  def test_a_folder_that_holds_a_gguf_file_names_it(self):
    (self.folder / 'x.gguf').write_bytes(b'')
    with self.assertRaisesRegex(ConfigError, r'holds no config.json; name the file .*/x\.gguf'):
      self.opened()

  def test_new_tokens_never_leave_rows_of_zeros_between(self):
    cfg = llm.Config(vocab=10, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=24)
    params = jax.tree.map(jnp.asarray, ones(cfg))
    grown, shape = embedding_resize.add_tokens(params, cfg, [10, 11], [[1], [2, 3]])
    self.assertEqual((shape.vocab, grown['embed'].shape[0]), (12, 12))
    with self.assertRaisesRegex(ConfigError, 'the model has 10 rows: 2 tokens from 10 on'):
      embedding_resize.add_tokens(params, cfg, [12, 13], [[1], [2]])


class MemoryTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    checkpoint(self.folder)
    self.mesh = make_mesh({'data': -1})
    cfg = huggingface.read_config(self.folder)
    self.bytes = 4 * sum(x.size for x in jax.tree.leaves(llm.shapes(cfg))) * jax.device_count()

  def load(self, free, dtype='float32'):
    how = ConfigDict(dict(dtype=dtype, remat='none', quantize='none'))
    with mock.patch.object(host_memory, 'free', lambda: free), mock.patch.object(
        huggingface, 'load', side_effect=huggingface.load) as read:
      try:
        return llm_loading.load(self.folder, how, self.mesh)
      finally:
        self.read = read.called

  def test_what_fits_is_loaded(self):
    self.load(self.bytes)
    self.load(self.bytes // 2, 'bfloat16')

  def test_what_does_not_is_refused_before_it_is_read_with_what_would_fit(self):
    for share, message in ((0.7, 'GiB as float32, and .* GiB of memory are free: --config.llm.dtype'
                            '=bfloat16 takes half of that, and fits'),
                           (0.3, 'a model of up to .*e-06 billion weights fits in bfloat16')):
      with self.assertRaisesRegex(ConfigError, f'{self.folder}: .*{message}.*recjax doctor'):
        self.load(share * self.bytes)
      self.assertFalse(self.read)
    with self.assertRaisesRegex(ConfigError, 'GiB as bfloat16'):
      self.load(0.4 * self.bytes, 'bfloat16')
    self.load(self.bytes)
    self.assertTrue(self.read)

  def test_the_size_that_is_named_would_fit(self):
    count = self.bytes / 4 / jax.device_count()
    with self.assertRaises(ConfigError) as caught:
      self.load(0.3 * self.bytes)
    said = float(re.search('up to (.*) billion', str(caught.exception))[1]) * 1e9
    self.assertAlmostEqual(said / (0.6 * count), 1, delta=0.05)  # half the bytes a weight

  def test_a_device_that_says_what_it_has(self):
    shapes = {'x': jax.ShapeDtypeStruct((1000,), jnp.float32)}
    device = mock.Mock(platform='gpu', process_index=jax.process_index(), memory_stats=lambda: {
        'bytes_limit': 6000, 'bytes_in_use': 4500})
    sharding = mock.Mock(device_set={device}, shard_shape=lambda shape: shape)
    with self.assertRaisesRegex(ConfigError, 'of a device are free.*mesh.model'):
      host_memory.check('m', shapes, {'x': sharding})
    device.memory_stats = lambda: None
    host_memory.check('m', shapes, {'x': sharding})

  @parameterized.parameters(
      ({}, math.inf),
      ({'proc/meminfo': 'MemTotal: 9 kB\nMemAvailable: 4 kB\n'}, 4096),
      ({'proc/meminfo': 'MemAvailable: 4 kB\n', 'sys/fs/cgroup/memory.max': '3000\n',
        'sys/fs/cgroup/memory.current': '1000\n',
        'sys/fs/cgroup/memory.stat': 'anon 7\ninactive_file 500\n'}, 2500),
      ({'proc/meminfo': 'MemAvailable: 4 kB\n', 'sys/fs/cgroup/memory.max': 'max\n',
        'sys/fs/cgroup/memory.current': '1000\n'}, 4096),
      ({'sys/fs/cgroup/memory/memory.limit_in_bytes': '3000\n',
        'sys/fs/cgroup/memory/memory.usage_in_bytes': '4000\n'}, 0))
  def test_what_the_system_says(self, files, wanted):
    root = pathlib.Path(self.create_tempdir().full_path)
    for name, text in files.items():
      (root / name).parent.mkdir(parents=True, exist_ok=True)
      (root / name).write_text(text)
    self.assertEqual(host_memory.free(root), wanted)

  def test_this_machine_says_something(self):
    if not pathlib.Path('/proc/meminfo').exists():
      self.skipTest('needs /proc')
    self.assertBetween(host_memory.free(), 1 << 20, 1 << 50)


if __name__ == '__main__':
  absltest.main()
