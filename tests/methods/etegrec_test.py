"""The whole path of semantic IDs on a tiny shop: stages, lists, interests, resume, the face."""
import functools
import json
import pathlib
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict
from rich.console import Console

from configs import etegrec_scientific, tiger_beauty
from recjax import recommend
from recjax.data.dataset import Interactions
from recjax.data.loading import load_data
from recjax.errors import ConfigError, DataError, UserError
from recjax.methods import etegrec
from recjax.methods.etegrec import (
  batching,
  evaluate,
  interests,
  item_embeddings,
  tokenization,
  train,
)
from recjax.methods.etegrec import update as later_ids
from recjax.run_files import read_json
from recjax.training import sharded_stage
from recjax.training.workdir import Workdir, find_stage, open_work
from tests import beside_rows, devices, later, told
from tests.long import long
from tests.methods.llmemb_test import random_decoder
from tests.text import llm_api_test

USERS, ITEMS = 120, 24


def shop_folder(folder):
  """A shop whose users walk round a circle of items, in which a next item can be learned."""
  folder = pathlib.Path(folder)
  rng = np.random.default_rng(0)
  kinds = ('Lamps', 'Pumps', 'Gloves', 'Ropes', 'Scales', 'Trays')
  folder.joinpath('items.jsonl').write_text(''.join(json.dumps({
      'item_id': f'i{i}', 'title': f'{kinds[i // 4]} shade{i % 6}',
      'categories': ['Shop', kinds[i // 4]]}) + '\n' for i in range(ITEMS)))
  lines = []
  for user in range(USERS):
    start, count = int(rng.integers(ITEMS)), int(rng.integers(4, 9))
    lines.append(json.dumps({'user_id': f'u{user}', 'items': [
        f'i{(start + at) % ITEMS}' for at in range(count)]}) + '\n')
  folder.joinpath('sequences.jsonl').write_text(''.join(lines))
  return str(folder)


def small(cfg, data):
  """A config in which every stage takes a moment."""
  cfg.data = data
  cfg.vectors.model.update(width=8, hidden=8, max_history=8)
  cfg.vectors.train.update(epochs=3, batch=32)
  cfg.semantic_ids.update(hidden=(8,), width=8, levels=2, size=8, steps=60, eval_every=20, batch=24)
  cfg.model.update(max_history=2, width=16, layers=1, decoder_layers=1, heads=2, head_dim=8, ffn=16,
                   fusion_heads=2, fusion_layers=1)
  cfg.train.update(epochs=12, batch=64, save_every=6, valid_users=40)
  cfg.optim.update(lr=1e-2, warmup=0)
  cfg.decode.update(beams=10, batch=128)
  cfg.eval.classical = False
  if 'lr' in cfg.finetune:
    cfg.finetune.update(epochs=4, save_every=2)
  return cfg


def run(cfg, folder, count=2):
  mesh = devices.mesh(data=count, fsdp=1, model=1)
  with open_work(folder, {'config': cfg.to_dict(), 'facts': {
      'devices': 'cpu', 'versions': {}, 'revision': '', 'overrides': {}, 'command': ''}},
                 mesh) as work:
    work.console = Console(quiet=True)
    etegrec.run(cfg, work)
  results = read_json(pathlib.Path(folder) / 'results.json')
  told.check(results)
  return results


class WholeTest(parameterized.TestCase):

  def test_a_run_of_few_steps(self):
    cfg = small(tiger_beauty.get_config(), shop_folder(self.create_tempdir()))
    cfg.vectors.train.epochs, cfg.semantic_ids.steps, cfg.train.epochs = 1, 20, 1
    cfg.eval.update(classical=True, mask_history=False)
    self.look('tiger', cfg, 1)

  @parameterized.parameters(('tiger', 'none'), ('etegrec', 'encoder'))
  @long
  def test_a_run_learns_what_follows(self, way, fusion):
    made = tiger_beauty.get_config() if way == 'tiger' else etegrec_scientific.get_config()
    cfg = small(made, shop_folder(self.create_tempdir()))
    self.assertEqual((cfg.variant, cfg.fusion), (way, fusion))
    name = way if fusion == 'none' else f'{way}:{fusion}'
    rows = self.look(name, cfg)
    self.assertGreater(rows[name]['NDCG@5']['value'], 1.5 * rows['random']['NDCG@5']['value'])

  def look(self, name, cfg, count=2):
    """Runs a config whose first row has that name on so many devices, and looks at what it
    leaves. -> rows"""
    folder, fusion = self.create_tempdir().full_path, cfg.fusion
    results = run(cfg, folder, count)
    self.assertEqual(next(iter(results['rows'])), name)
    self.assertContainsSubset({'sasrec', 'popularity', 'recency', 'random'}, results['rows'])
    self.assertBetween(results['free']['invalid_rate'], 0, 1)
    page = (pathlib.Path(folder) / 'report.html').read_text()
    for word in ('Semantic IDs', 'Codes in use', 'Users one by one') + (
        ('Interests',) if fusion != 'none' else ()) + (
            ('the share of attention',) if fusion == 'encoder' else ()):
      self.assertIn(word, page)
    self.check_face(folder)
    if cfg.eval.classical:
      beside_rows.check(self, folder, load_data(cfg.data), cfg.eval.mask_history)
    if fusion != 'none':
      self.assertIn('no interests', results['rows'])
      self.assertGreater(results['interests']['with_interests'], 0)
    return results['rows']

  def check_face(self, folder):
    ask, shop = recommend.load(folder)
    items, scores = ask([['i3', 'i4'], ['i9']], 7)
    self.assertEqual([len(set(row)) for row in items], [7, 7])
    self.assertNoCommonElements(items[0], ['i3', 'i4'])
    self.assertTrue((np.diff(scores, axis=1) <= 0).all())
    self.assertContainsSubset(items[0], shop.catalog.ids)
    few, _ = ask([['i3', 'i4']], 5, allowed={'i1', 'i2', 'i3'})
    self.assertCountEqual(few[0], ['i1', 'i2'])
    with self.assertRaisesRegex(DataError, 'empty'):
      ask([[]], 3)
    with self.assertRaisesRegex(ConfigError, 'SASRec that knows items by their numbers alone'):
      recommend.load(folder, read_json(pathlib.Path(folder) / 'config.json')['config']['data'])
    out = pathlib.Path(folder) / 'codes.json'
    etegrec.convert(folder, 'index', out)
    self.assertLen(json.loads(out.read_text()), ITEMS)
    with self.assertRaisesRegex(ConfigError, 'is there already'):
      etegrec.convert(folder, 'index', out)

  @parameterized.parameters(('tiger', 'rqvae', 'suffix'), ('tiger', 'rkmeans', 'nearest'),
                            ('etegrec', 'rqvae', 'suffix'))
  @long
  def test_new_items_get_ids_of_their_texts(self, way, kind, dedupe):
    data = shop_folder(self.create_tempdir())
    texts = [' '.join(t) for t in zip(*(load_data(data).catalog.columns['title'],) * 2)]
    llm = random_decoder(pathlib.Path(self.create_tempdir().full_path), texts)
    cfg = small(tiger_beauty.get_config() if way == 'tiger' else
                etegrec_scientific.get_config('fusion=none'), data)
    cfg.vectors.update(source='text', encoder=str(llm), unit=True)
    cfg.semantic_ids.update(kind=kind, dedupe=dedupe)
    cfg.train.update(epochs=2)
    cfg.finetune.epochs = 0
    folder = self.create_tempdir().full_path
    run(cfg, folder)
    ask, _ = recommend.load(folder)
    new = [{'item_id': f'n{i}', 'title': t, 'categories': ['Shop', t.split()[0]]}
           for i, t in enumerate(('Lamps shade2', 'Ropes shade9', 'Lamps shade2'))]
    data = later.write(data, self.create_tempdir().full_path + '/later', new, retired=['i2'])
    more, shop = recommend.load(folder, data)
    self.assertLen(shop.catalog, ITEMS + 3)
    items, scores = more([['i3', 'i4'], ['n0']], 3, allowed={'n0', 'n1', 'n2', 'i2'})
    self.assertEqual([set(row) for row in items], [{'n0', 'n1', 'n2'}, {'n1', 'n2'}])
    self.assertTrue(np.isfinite(scores[0]).all())
    some = {'i5', 'i9', 'i13', 'i20'}
    old, before = ask([['i3', 'i4'], ['i9']], 4, allowed=some)
    again, after = more([['i3', 'i4'], ['i9']], 4, allowed=some)
    self.assertEqual(again, old)
    for a, b, row in zip(after, before, old):
      np.testing.assert_allclose(a[:len(row)], b[:len(row)], atol=1e-4)
    with self.assertRaisesRegex(DataError, "item 1 was 'i0', now it is 'i1'.*--update"):
      recommend.load(folder, later.write(data, data + '-wrong', [], swap=True))

  @long
  def test_eight_devices_learn_what_one_does(self):
    cfg = small(etegrec_scientific.get_config('fusion=none'), shop_folder(self.create_tempdir()))
    cfg.model.max_history = 1  # one width of rows is one network to compile
    cfg.train.update(epochs=4, valid_users=8)
    cfg.align.warm = 1
    shop, curves = load_data(cfg.data), []
    for count in (1, 8):
      mesh = devices.mesh(data=count, fsdp=1, model=1)
      with open_work(self.create_tempdir().full_path, {}, mesh) as work:
        work.console = Console(quiet=True)
        if count == 1:
          made = work.stage('vectors', item_embeddings.stage, item_embeddings.settings(cfg), shop)
          coded = work.stage(
            'tokenizer', tokenization.stage, tokenization.settings(cfg), made, shop.catalog.ids
          )
        work.stage('train', train.stage, train.settings(cfg), shop, made, coded, None)
        curves.append([row['loss_0'] for row in work.metrics() if row['stage'] == 'train'])
    self.assertLen(curves[0], 4)  # of both sides in turn
    np.testing.assert_allclose(*curves, rtol=1e-5)

  @long
  def test_a_killed_run_ends_alike(self):
    data = shop_folder(self.create_tempdir())
    cfg = small(etegrec_scientific.get_config('fusion=none'), data)
    cfg.train.update(epochs=3, save_every=1)
    cfg.finetune.epochs = 0
    cfg.decode.batch = 48
    whole, broken = self.create_tempdir().full_path, self.create_tempdir().full_path
    run(cfg, whole)
    original = train.validate_params

    def failing(*given):
      raise UserError('killed')
    train.validate_params = failing
    try:
      with self.assertRaisesRegex(UserError, 'killed'):
        run(cfg, broken)
    finally:
      train.validate_params = original
    calls, kept = [], sharded_stage.compute_once

    def counted(stop, work, name, make):
      def once():
        if len(calls) == stop:
          raise UserError('killed')
        calls.append(name)
        return make()
      return kept(work, name, once)
    with mock.patch.object(evaluate, 'PIECE_USERS', 1):
      with mock.patch.object(sharded_stage, 'compute_once', functools.partial(counted, 1)), \
          self.assertRaisesRegex(UserError, 'killed'):
        run(cfg, broken)
      with mock.patch.object(sharded_stage, 'compute_once', functools.partial(counted, 99)):
        run(cfg, broken)
    self.assertEqual(calls, ['seed-0-0', 'seed-0-48', 'seed-0-96'])
    for name in ('ranks.parquet', 'predictions.parquet'):
      self.assertEqual((pathlib.Path(whole) / name).read_bytes(),
                       (pathlib.Path(broken) / name).read_bytes())
    one, other = (dict(np.load(find_stage(f, 'train') / 'model.npz')) for f in (whole, broken))
    self.assertCountEqual(one, other)
    for name in one:
      np.testing.assert_array_equal(one[name], other[name], name)


class PartsTest(parameterized.TestCase):

  def test_tokenizers_that_read_no_further_vector_say_so(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    (room / 'stages' / '02-tokenizer').mkdir(parents=True)
    (room / 'stages' / '02-tokenizer' / 'DONE.json').write_text('{}')
    for kind in ('pq', 'items.json'):
      with self.assertRaisesRegex(ConfigError, f'semantic_ids.kind={kind} of .* gives no code'):
        later_ids.encode_vectors(
          room, ConfigDict({'kind': kind}), np.zeros((1, 4), np.float32), None
        )

  def test_a_new_id_is_one_that_nobody_has(self):
    table = np.array([[0, 0, 0], [0, 0, 2], [1, 0, 0]])
    some, far = np.array([[0, 0], [0, 0], [2, 1]]), np.zeros((3, 3))
    np.testing.assert_array_equal(later_ids.assign_codes(table, some, far, 4),
                                  [[0, 0, 1], [0, 0, 3], [2, 1, 0]])
    far = np.array([[2., 0, 1], [2, 0, 1], [0, 0, 0]])  # without a level that counts: the nearest
    np.testing.assert_array_equal(later_ids.assign_codes(np.array([[0, 1]]), np.array([[0, 1]] * 2),
                                                    far, 3), [[0, 2], [0, 0]])
    with self.assertRaisesRegex(DataError, r'all 3 IDs that begin with \(0, 0\) are taken'):
      later_ids.assign_codes(table, some, far, 3)

  def test_a_history_is_what_came_right_before_its_target(self):
    train = Interactions(('a', 'b', 'c'), np.array([1, 2, 3, 4, 5, 7, 8, 9], np.int32),
                         np.array([0, 5, 6, 8]))
    histories, targets = batching.prefixes(train, 3)
    self.assertEqual([history.tolist() for history in histories],  # by hand
                     [[1], [1, 2], [1, 2, 3], [2, 3, 4], [8]])
    self.assertEqual(targets.tolist(), [2, 3, 4, 5, 9])

  def test_every_prefix_is_a_row_once_an_epoch(self):
    shop = load_data(shop_folder(self.create_tempdir()))
    histories, targets = batching.prefixes(shop.interactions, 4)
    self.assertLen(targets, int((shop.interactions.lengths() - 1).sum()))
    self.assertLessEqual(max(map(len, histories)), 4)
    made, shares, steps = batching.make_bins(
      histories, targets, np.arange(len(targets))[:, None], 4, 32
    )
    order = batching.shuffle_rows(jax.random.key(0), made, shares, steps)
    met = []
    for step in range(steps):
      for part in batching.take_rows(made, [o[step] for o in order]):
        met += [(tuple(int(i) for i in h if i), int(t)) for h, t in zip(
            part.history, part.target) if t]
    want = [(tuple(map(int, h)), int(t)) for h, t in zip(histories, targets)]
    self.assertCountEqual(met, want)

  def test_interests_know_nothing_of_the_target(self):
    shop = load_data(shop_folder(self.create_tempdir()))
    work = Workdir(pathlib.Path('.'), Console(quiet=True))
    cfg = ConfigDict({'source': 'local', 'encoder': ''})
    history = shop.interactions.items[:3]
    said, _ = interests.interest_texts(work, cfg, shop, [history])
    again, _ = interests.interest_texts(work, cfg, shop, [history, shop.interactions.items[:4]])
    self.assertEqual(said[0], again[0])
    self.assertNotEmpty(said[0])

  def test_a_service_is_asked_once_a_history_and_what_it_says_is_read(self):
    shop = load_data(shop_folder(self.create_tempdir()))
    cfg = small(etegrec_scientific.get_config(), '')
    titles = shop.catalog.columns['title']

    def foresees(asked, before):
      last = json.loads(asked['messages'][-1]['content'].split('\n')[-2].partition('. ')[2])
      if last['title'] == titles[5]:
        return dict(body=llm_api_test.reply(['Things like that.']))
      return dict(body=llm_api_test.reply([f'<interest>Beyond {last["title"]}</interest>\n<inter']))
    found, run_folder = [], self.create_tempdir().full_path
    with llm_api_test.serving(like=foresees) as server:
      cfg.interests.update(source='api', api_url=f'http://127.0.0.1:{server.server_port}/v1')
      for budget in (5., 6.):  # another budget makes the stages anew, and asks for nothing
        cfg.interests.api_budget = budget
        with open_work(run_folder, {}) as work:
          work.console = Console(quiet=True)
          found.append(interests.read(interests.make(cfg, work, shop)))
      self.assertEqual(set(server.asked.values()), {1})
      self.assertEqual({body['n'] for body in server.bodies}, {1})
    rows, vectors, texts = found[0]
    histories = interests.all_histories(interests.settings(cfg), shop)
    self.assertLen(server.asked, len({tuple(map(int, h)) for h in histories}))
    for row, history in zip(rows, histories, strict=True):
      last = titles[int(history[-1]) - 1]
      self.assertEqual([texts[i] for i in row if i],
                       [] if last == titles[5] else [f'Beyond {last}'])
    for first, again in zip(found[0], found[1]):
      np.testing.assert_array_equal(first, again)
    done = read_json(pathlib.Path(run_folder) / 'stages/01-ask-interests/DONE.json')['counts']
    self.assertEqual(done['answers_without_interests'],
                     len({tuple(map(int, h)) for h in histories if titles[h[-1] - 1] == titles[5]}))
    self.assertEqual(done['failed'], 0)

  def test_settings_of_a_service_that_is_not_asked_decide_nothing(self):
    cfg = etegrec_scientific.get_config().lock()
    self.assertEqual(set(interests.settings(cfg).interests), {'source', 'encoder'})
    cfg.interests.source = 'api'
    self.assertIn('api_model', interests.settings(cfg).interests)

  def test_hashed_words(self):
    one, plural, other = (interests.hash_words(t) for t in ('Glass lamp', 'glass lamps', 'Pumps'))
    np.testing.assert_allclose(one, plural)
    self.assertAlmostEqual(float(one @ one), 1, places=5)
    self.assertLess(abs(float(one @ other)), 0.6)

  @parameterized.parameters(
    (dict(variant='both'), 'variant'),
    (dict(fusion='early'), 'fusion'),
    (dict(interests=dict(source='')), 'needs interests'),
    (dict(align=dict(sign='-')), 'align.sign'),
    (dict(align=dict(reduce='max')), 'align.reduce'),
    (dict(train=dict(cycle=1)), 'cycle'),
    (dict(semantic_ids=dict(kind='pq')), 'semantic_ids.kind'),
    (dict(semantic_ids=dict(dedupe='none')), 'dedupe'),
    (dict(fusion='pooled', semantic_ids=dict(width=8)), 'width'),
  )
  def test_what_is_refused(self, change, said):
    cfg = etegrec_scientific.get_config()
    for key, value in change.items():
      if isinstance(value, dict):
        cfg[key].update(value)
      else:
        cfg[key] = value
    with self.assertRaisesRegex(ConfigError, said):
      train.check(cfg)

  def test_pooled_interests_are_refused_where_nothing_reads_them(self):
    cfg = tiger_beauty.get_config()
    cfg.fusion = 'pooled'
    with self.assertRaisesRegex(ConfigError, 'never a recommendation'):
      train.check(cfg)


if __name__ == '__main__':
  absltest.main()
