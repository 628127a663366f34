"""Checkpoints as methods open them: what cannot work is said before anything is trained."""
import importlib
import json
import pathlib
import types

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
from recjax.training import llm_loading

HOW = ConfigDict(dict(dtype='float32', remat='none'))


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
    how = types.SimpleNamespace(dtype=dtype, remat='none')
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

  def test_new_tokens_never_leave_rows_of_zeros_between(self):
    cfg = llm.Config(vocab=10, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=24)
    params = jax.tree.map(jnp.asarray, ones(cfg))
    grown, shape = embedding_resize.add_tokens(params, cfg, [10, 11], [[1], [2, 3]])
    self.assertEqual((shape.vocab, grown['embed'].shape[0]), (12, 12))
    with self.assertRaisesRegex(ConfigError, 'the model has 10 rows: 2 tokens from 10 on'):
      embedding_resize.add_tokens(params, cfg, [12, 13], [[1], [2]])


if __name__ == '__main__':
  absltest.main()
