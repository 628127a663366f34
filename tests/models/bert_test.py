"""Text encoders: the numbers of transformers and of a published encoder, pooling, refusals."""
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.distributed.sharding import make_mesh, shardings
from recjax.errors import ConfigError, DataError
from recjax.models import bert, sentence_encoder
from tests.long import long, long_but

HAS_TORCH = importlib.util.find_spec('torch') is not None
SMALL = dict(vocab_size=80, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
             intermediate_size=40, max_position_embeddings=200, initializer_range=0.3)
MODULES = [{'idx': i, 'path': path, 'type': f'sentence_transformers.models.{kind}'}
           for i, (path, kind) in enumerate((('', 'Transformer'), ('1_Pooling', 'Pooling'),
                                             ('2_Normalize', 'Normalize')))]


def write_json(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def torch_model(**more):
  import torch
  import transformers
  torch.manual_seed(0)
  model = transformers.BertModel(transformers.BertConfig(**{**SMALL, **more})).eval()
  with torch.no_grad():  # biases start at zero, which would hide a mix-up
    for p in model.parameters():
      if p.ndim == 1:
        p.add_(0.2 * torch.randn_like(p))
  return model


def batch(rows=4, length=150, seed=0):
  rng = np.random.default_rng(seed)
  mask = (np.arange(length) < rng.integers(3, length + 1, rows)[:, None]).astype(np.int32)
  return (rng.integers(1, 80, (rows, length)) * mask).astype(np.int32), mask


class BertTest(parameterized.TestCase):

  def folder(self, **more):
    if not HAS_TORCH:
      self.skipTest('torch is not installed')
    folder = pathlib.Path(self.create_tempdir().full_path)
    model = torch_model(**more)
    model.save_pretrained(folder)
    return folder, model

  @parameterized.parameters('gelu', 'gelu_new', 'relu')
  @long_but(1)
  def test_states_are_those_of_transformers(self, act):
    folder, model = self.folder(hidden_act=act)
    import torch
    spec = sentence_encoder.read_spec(folder)
    params = sentence_encoder.load(folder, spec.cfg)
    tokens, mask = batch()
    with torch.no_grad():
      want = model(torch.tensor(tokens).long(), torch.tensor(mask)).last_hidden_state.numpy()
    got = np.asarray(jax.jit(bert.Bert(spec.cfg).apply)({'params': params}, tokens, mask))
    real = mask > 0
    np.testing.assert_allclose(got[real], want[real], atol=1e-5)

  @long
  def test_names_may_carry_the_prefix_of_a_larger_model(self):
    import safetensors.numpy
    folder, _ = self.folder()
    path = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    spec = sentence_encoder.read_spec(folder)
    want = sentence_encoder.load(folder, spec.cfg)
    safetensors.numpy.save_file({f'bert.{k}': v for k, v in tensors.items()}, path)
    got = sentence_encoder.load(folder, spec.cfg)
    jax.tree.map(np.testing.assert_array_equal, want, got)

  def test_weights_come_sharded(self):
    folder, _ = self.folder()
    spec = sentence_encoder.read_spec(folder)
    mesh = make_mesh({'data': 1, 'fsdp': 2, 'model': -1})
    where = shardings(bert.shapes(spec.cfg), bert.RULES, mesh)
    one = sentence_encoder.load(folder, spec.cfg)
    many = sentence_encoder.load(folder, spec.cfg, where)
    jax.tree.map(np.testing.assert_array_equal, one, many)
    self.assertLen(many['words'].sharding.device_set, len(jax.devices()))

  def test_neither_padding_nor_its_side_nor_the_batch_matters(self):
    cfg = bert.Config(vocab=80, width=24, layers=2, heads=4, ffn=40)
    params = jax.jit(bert.init, static_argnums=0)(cfg, jax.random.key(0))
    tokens, mask = batch(3, 20)
    run = jax.jit(lambda t, m: bert.pool(bert.Bert(cfg).apply({'params': params}, t, m), m, 'avg'))
    want = run(tokens, mask)
    for t, m in ((np.pad(tokens, [(0, 0), (0, 9)]), np.pad(mask, [(0, 0), (0, 9)])),
                 (np.pad(tokens, [(0, 0), (9, 0)]), np.pad(mask, [(0, 0), (9, 0)]))):
      np.testing.assert_allclose(run(t, m), want, atol=1e-5)
    np.testing.assert_allclose(run(tokens[1:2], mask[1:2]), want[1:2], atol=1e-5)

  def test_6_pooling(self):
    hidden = jnp.array([[[1., 2], [3, 4], [100, 100]]])
    mask = jnp.array([[1, 1, 0]])
    for how, want in (('avg', [2, 3]), ('last', [3, 4]), ('cls', [1, 2])):
      self.assertEqual(bert.pool(hidden, mask, how)[0].tolist(), want)
      self.assertEqual(bert.pool(hidden, 0 * mask, how)[0].tolist(), [0, 0])
    left = bert.pool(hidden, jnp.array([[0, 1, 1]]), 'cls')
    self.assertEqual(left[0].tolist(), [3, 4])
    with self.assertRaisesRegex(ConfigError, 'median'):
      bert.pool(hidden, mask, 'median')

  def test_a_sentence_folder_says_how_to_pool(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    write_json(folder / 'config.json', {**SMALL, 'model_type': 'bert'})
    self.assertEqual(
      (sentence_encoder.read_spec(folder).pool, sentence_encoder.read_spec(folder).normalize),
      ('avg', False),
    )
    write_json(folder / 'modules.json', MODULES)
    write_json(folder / '1_Pooling' / 'config.json', {
        'word_embedding_dimension': 24, 'pooling_mode_cls_token': True,
        'pooling_mode_mean_tokens': False})
    write_json(folder / 'sentence_bert_config.json', {'max_seq_length': 64})
    spec = sentence_encoder.read_spec(folder)
    self.assertEqual((spec.pool, spec.normalize, spec.max_tokens), ('cls', True, 64))

  def test_what_is_not_implemented_is_refused(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(DataError, 'does not exist'):
      sentence_encoder.read_spec(folder)
    for more, said in (({'model_type': 'xlm-roberta'}, 'xlm-roberta'),
                       ({'hidden_act': 'mish'}, 'mish'),
                       ({'position_embedding_type': 'relative_key'}, 'absolute'),
                       ({'hidden_size': None}, 'hidden_size')):
      write_json(folder / 'config.json', {'model_type': 'bert', **SMALL, **more})
      with self.assertRaisesRegex(ConfigError, said):
        sentence_encoder.read_spec(folder)
    write_json(folder / 'config.json', {'model_type': 'bert', **SMALL})
    write_json(folder / 'modules.json', [{'type': 'sentence_transformers.models.Dense'}])
    with self.assertRaisesRegex(ConfigError, 'Dense'):
      sentence_encoder.read_spec(folder)


if __name__ == '__main__':
  absltest.main()
