"""LLMEmb's parts: prompts and views, the contrastive stage, the adapter, alignment, groups."""
import functools
import importlib.util
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import dataset, splits
from recjax.distributed.sharding import make_mesh
from recjax.errors import ConfigError, DataError
from recjax.evaluation import metrics
from recjax.methods.llmemb import evaluate, prompts, rat, scft, variants
from recjax.models import seqrec
from recjax.training import sequential, text_embedding
from recjax.training import workdir as workdir_lib
from recjax.training.losses import item_losses
from tests import devices
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]
RULES = prompts.RULES['any']


def config(arg='', name='llmemb_scientific'):
  spec = importlib.util.spec_from_file_location('c', ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


class PromptTest(parameterized.TestCase):

  def test_values_lose_what_parts_attributes(self):
    got = prompts.attributes({'title': 'a; b\nc', 'categories': ['x', 'y;z'], 'price': 3.5,
                              'brand': None, 'tags': [], 'description': ''}, RULES)
    self.assertEqual(got, ['title is a. b c', 'categories is x, y.z', 'price is 3.5'])

  def test_missing_values_may_say_none(self):
    self.assertEqual(prompts.attributes({'brand': None}, RULES, 'none'), ['brand is none'])
    with self.assertRaisesRegex(ConfigError, 'prompts.empty'):
      prompts.attributes({}, RULES, 'blank')

  def test_values_are_cut_by_characters_alone(self):
    long = 'é' * 150
    self.assertEqual(prompts.attributes({'title': long}, RULES), [f'title is {long[:100]}'])
    self.assertEqual(prompts.attributes({'title': long}, RULES, crude=True),
                     [f'title is {long[:98]}'])
    self.assertEqual(prompts.attributes({'name': long}, prompts.RULES['yelp']), [f'name is {long}'])

  def test_a_text_in_place_of_a_list_is_one_value(self):
    fashion = prompts.RULES['fashion']
    self.assertEqual(prompts.attributes({'feature': 'soft'}, fashion), ['feature is soft'])
    self.assertEqual(prompts.attributes({'feature': []}, fashion), ['feature is none'])
    self.assertEqual(prompts.attributes({'feature': 'ab'}, fashion, crude=True),
                     ['feature is a, b'])
    self.assertEqual(prompts.attributes({'fit': 'x', 'title': 't'}, fashion), ['title is t'])

  def test_of_nested_categories_beauty_keeps_the_first_path(self):
    record = {'asin': '1', 'categories': [['Beauty', 'Hair'], ['Gifts']]}
    self.assertEqual(prompts.attributes(record, prompts.RULES['beauty']),
                     ['categories is Beauty, Hair'])
    self.assertEqual(prompts.attributes({'categories': []}, prompts.RULES['beauty']), [])

  def test_an_item_without_attributes_gets_the_fallback_and_is_counted(self):
    columns = {'title': ['A', '', 'C'], 'brand': [None, None, 'B']}
    shop = dataset.make_dataset('x', dataset.Catalog(('i', 'j', 'k'), columns),
                                dataset.Interactions(('u',), np.array([1], np.int32),
                                                     np.array([0, 1])))
    cfg = ConfigDict(dict(rules='any', header='H:', empty='omit', crude=False))
    with workdir_lib.open_work(tempfile.mkdtemp()) as work:
      made = work.stage('prompts', prompts.stage, cfg, shop)
    self.assertEqual(prompts.read(made), ['H:\ntitle is A', 'H:\ntitle is unknown',
                                          'H:\ntitle is C; brand is B'])
    self.assertEqual(run_files.read_json(made / 'report.json')['without_attributes'], ['j'])
    cfg.rules = 'books'
    with (
      workdir_lib.open_work(tempfile.mkdtemp()) as work,
      self.assertRaisesRegex(ConfigError, 'books'),
    ):
      work.stage('prompts', prompts.stage, cfg, shop)


class ViewTest(parameterized.TestCase):

  @parameterized.parameters((1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2), (8, 3), (9, 3),
                            (10, 4), (15, 6))
  def test_7_so_many_attributes_are_dropped(self, count, dropped):
    parts = [f'k{i % 4} is {i % 3}' for i in range(count)]
    text = 'Head:\n' + '; '.join(parts)
    for seed in range(5):
      header, kept = prompts.split(prompts.view(text, .4, np.random.default_rng(seed)))
      self.assertEqual((header, len(kept)), ('Head:', count - dropped))
      left = list(parts)
      for part in kept:
        left.remove(part)  # a multiset: each is there as often as it was

  def test_as_released_a_lone_attribute_is_lost_and_later_lines_too(self):
    rng = np.random.default_rng(0)
    self.assertEqual(prompts.view('H\na is b', .4, rng), 'H\na is b')
    self.assertEqual(prompts.view('H\na is b', .4, rng, crude=True), 'H')
    self.assertEqual(prompts.split('H\na; b\nc; d')[1], ['a', 'b\nc', 'd'])
    self.assertEqual(prompts.split('H\na; b\nc; d', crude=True)[1], ['a', ' b'])
    with self.assertRaisesRegex(DataError, 'line break'):
      prompts.split('H')

  def test_views_follow_from_seed_epoch_and_item(self):
    text = 'H\n' + '; '.join('abcdefgh')
    drawn = {prompts.views(text, .4, s, e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    self.assertLen(drawn, 8)
    self.assertEqual(prompts.views(text, .4, 1, 1, 1), prompts.views(text, .4, 1, 1, 1))
    self.assertNotEqual(*prompts.views(text, .4, 0, 0, 0))


class Reader:
  """Stands in for an encoder: words are tokens, a vector is a mean of rows."""
  table = jnp.asarray(np.random.default_rng(0).normal(size=(400, 6)), jnp.float32)
  words = {}

  def ids(self, texts):
    return [[self.words.setdefault(w, len(self.words)) for w in t.split()] for t in texts]

  def run(self, variables, tokens, mask):
    rows = self.table[tokens] @ variables['params'] + self.table[tokens] @ variables['lora']
    return (rows * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]


class ScftTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.cfg = scft.settings(config(), 'tuned')
    self.cfg.scft.update(batch=8)
    self.texts = [f'Head {i}\n' + '; '.join(f'k{j} is v{i * j}' for j in range(6))
                  for i in range(21)]

  def test_a_batch_holds_two_views_of_distinct_items_drawn_anew_each_epoch(self):
    batches = scft.ViewBatches(Reader(), self.texts, self.cfg)
    first, again = batches[0], batches[0]
    np.testing.assert_array_equal(first['tokens'], again['tokens'])
    self.assertEqual(first['tokens'].shape[:2], (8, 2))
    self.assertEqual(batches.steps, 2)
    def bags(batches):  # the words of both views of every item of two epochs
      rows = [{}, {}]
      for i in range(4):
        for pair, mask in zip(batches[i]['tokens'], batches[i]['mask']):
          rows[i // 2][int(pair[0][1])] = [tuple(v[:n]) for v, n in zip(pair, mask.sum(-1))]
      return rows
    one, two = bags(batches)
    same = set(one) & set(two)
    self.assertTrue(any(one[k] != two[k] for k in same))
    self.cfg.reproduce_bugs.views_frozen = True
    one, two = bags(scft.ViewBatches(Reader(), self.texts, self.cfg))
    self.assertTrue(all(one[k] == two[k] for k in set(one) & set(two)))

  def test_more_pairs_than_items_are_refused(self):
    self.cfg.scft.batch = 22
    with self.assertRaisesRegex(ConfigError, 'scft.batch=22 of 21'):
      scft.ViewBatches(Reader(), self.texts, self.cfg)

  def loss(self, mesh=None):
    rng = np.random.default_rng(1)
    train = {'lora': jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)}
    frozen = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    ways = scft.num_row_shards(mesh) if mesh is not None else 1
    batch = scft.ViewBatches(Reader(), self.texts, self.cfg, ways)[0]
    run = jax.jit(jax.value_and_grad(
        lambda t: scft.make_loss(Reader(), self.cfg, ways)(t, frozen, batch, None)[0]))
    if mesh is None:
      return run(train)
    from recjax.training import loop
    with jax.set_mesh(mesh):
      batch = loop.place(batch, mesh)
      return run(train)

  @parameterized.parameters('infonce', 'soft_target')
  def test_cached_and_direct_gradients_agree_and_so_do_eight_devices(self, kind):
    self.cfg.scft.loss = kind
    want, grads = self.loss()
    self.cfg.scft.parts = 4
    got, cached = self.loss()
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(cached['lora'], grads['lora'], atol=1e-4)
    mesh = make_mesh({'data': -1})
    for parts in (1, 4) if mesh.size <= 2 else (1,):
      self.cfg.scft.parts = parts
      got, many = self.loss(mesh)
      np.testing.assert_allclose(got, want, atol=1e-5)
      np.testing.assert_allclose(many['lora'], grads['lora'], atol=1e-4)

  @parameterized.parameters('infonce', 'soft_target', 'decoupled')
  def test_pairs_that_do_not_divide_over_devices_are_filled_up(self, kind):
    self.cfg.scft.update(loss=kind, batch=6)
    want, grads = self.loss()
    for parts in (1, 3):
      self.cfg.scft.parts = parts
      got, many = self.loss(devices.mesh(data=4))
      np.testing.assert_allclose(got, want, rtol=1e-5)
      np.testing.assert_allclose(many['lora'], grads['lora'], atol=1e-4)
    self.assertLen(scft.ViewBatches(Reader(), self.texts, self.cfg, 4)[0]['mask'], 12)
    self.cfg.reproduce_bugs.local_negatives = True
    with self.assertRaisesRegex(ConfigError, 'scft.batch=6 does not divide over 4'):
      scft.ViewBatches(Reader(), self.texts, self.cfg, 4)

  @long
  def test_local_negatives_are_the_mean_over_devices(self):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 5)))
    self.cfg.reproduce_bugs.local_negatives = True
    got = scft.pair_loss(self.cfg, 2, {}, z)
    self.cfg.reproduce_bugs.local_negatives = False
    want = np.mean([scft.pair_loss(self.cfg, 1, {}, z[i:i + 4]) for i in (0, 4)])
    np.testing.assert_allclose(got, want, rtol=1e-6)
    self.assertLess(float(got), float(scft.pair_loss(self.cfg, 1, {}, z)))

  def test_as_released_the_temperature_is_learned_from_three(self):
    from recjax.models import llm
    shape = llm.Config(vocab=9, width=8, layers=1, heads=2, kv_heads=2, head_dim=4, ffn=8,
                       lora_rank=2)
    self.assertNotIn('tau', scft.init_params(shape, self.cfg, jax.random.key(0)))
    self.cfg.reproduce_bugs.learned_tau = True
    self.assertEqual(float(scft.init_params(shape, self.cfg, jax.random.key(0))['tau']), 3)


def small(variant='full', arg='', **over):
  """Settings of a RAT stage over few items."""
  cfg = config(arg)
  for model in (cfg.model, cfg.base):
    model.update(max_history=4, width=8, hidden=8, dropout=0.)
  cfg.train.batch = 4
  cfg.rat.update({'hidden': 0, 'activation': 'none', 'whiten': False, 'alpha': .01,
                  'tau': 2., 'align_loss': 'soft_target', 'ids_from': 0, **over})
  return rat.settings(cfg, variant)


class RatTest(parameterized.TestCase):

  def vectors(self, items=3, k=6):
    return jnp.asarray(np.random.default_rng(0).normal(size=(items, k)), jnp.float32)

  def test_9_an_adapter_without_activation_is_one_affine_map(self):
    adapter = rat.init_adapter(1536, 768, 128, 1., jax.random.key(0))
    adapter = {k: v + .1 * (v.ndim == 1) for k, v in adapter.items()}
    self.assertEqual(sum(v.size for v in adapter.values()), 1_278_848)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1536)), jnp.float32)
    kernel, bias = adapter['w1'] @ adapter['w2'], adapter['b1'] @ adapter['w2'] + adapter['b2']
    got = rat.apply_adapter(adapter, x)
    self.assertEqual(got.shape, (5, 128))
    np.testing.assert_allclose(got, x @ kernel + bias, atol=1e-4)
    self.assertGreater(float(jnp.abs(got - rat.apply_adapter(adapter, x, 'gelu')).max()), .01)

  @parameterized.parameters(*seqrec.KINDS)
  def test_10_rows_of_the_table(self, kind):
    cfg = small(arg=f'backbone={kind}')
    model = sequential.model_config(cfg, 3)
    params = rat.init(cfg, model, 6, jax.random.key(0))
    params['adapter']['b2'] += 1
    rows = rat.apply_adapter(params['adapter'], self.vectors())
    mask = params.get('mask', jnp.zeros(8))
    table = rat.expand_table(cfg, model, params, self.vectors())['items']
    np.testing.assert_allclose(table, jnp.stack([jnp.zeros(8), *rows, mask]), atol=1e-6)
    np.testing.assert_allclose(table[3], rows[2], atol=1e-6)
    cfg.early_mask_row = True  # as released SASRec and GRU4Rec read zeros of the last item
    last = rows[2] if kind == 'bert4rec' else rat.apply_adapter(params['adapter'], jnp.zeros(6))
    table = rat.expand_table(cfg, model, params, self.vectors())['items']
    np.testing.assert_allclose(table, jnp.stack([jnp.zeros(8), *rows[:2], last, mask]), atol=1e-6)

  def test_items_that_many_met_have_a_row_of_their_own_beside_the_adapters(self):
    cfg = small(ids_from=2)
    model = sequential.model_config(cfg, 3)
    data = dataset.Interactions(('u', 'v'), np.array([1, 1, 2, 3, 1, 3, 2, 2], np.int32),
                                np.array([0, 4, 8]))
    own = rat.has_id_row(cfg, splits.leave_one_out(data), 3)
    self.assertEqual(own.tolist(), [True, False, False])  # trained on 1, 1 and 1, 3
    params = rat.init(cfg, model, 6, jax.random.key(0))
    plain = rat.expand_table(cfg, model, params, self.vectors(), id_rows=own)['items']
    params['own'] += jnp.arange(1., 4)[:, None]
    table = rat.expand_table(cfg, model, params, self.vectors(), id_rows=own)['items']
    np.testing.assert_allclose(table - plain, np.outer([0, 1, 0, 0, 0], np.ones(8)), atol=1e-6)
    some = rat.expand_table(cfg, model, params, self.vectors(), jnp.array([0, 1, 3]), own)['items']
    np.testing.assert_allclose(some[jnp.array([0, 1, 3])], table[jnp.array([0, 1, 3])], atol=1e-6)
    self.assertEqual(rat.settings(config('variant=pca'), 'pca').rat.ids_from, 0)

  def test_padding_as_released_is_the_bias(self):
    cfg = small()
    cfg.model.pads = True
    model = sequential.model_config(cfg, 3)
    params = rat.init(cfg, model, 6, jax.random.key(0))
    params['adapter']['b2'] += 1
    table = rat.expand_table(cfg, model, params, self.vectors())['items']
    np.testing.assert_allclose(table[0], np.ones(8), atol=1e-6)

  def test_5_the_recommender_loss_with_one_negative(self):
    for pos, neg, want in ((2., -1., .440190), (0., 0., 1.386294)):
      got = item_losses.binary(jnp.array([pos]), jnp.array([[neg]]))
      np.testing.assert_allclose(got, [want], atol=1e-5)

  def test_13_inputs_targets_and_positions(self):
    offsets = np.array([0, 5])
    data = dataset.Interactions(('u',), np.arange(1, 6, dtype=np.int32), offsets)
    split = splits.leave_one_out(data)
    cfg = small()
    cfg.model.count = 'start'
    model = sequential.model_config(cfg, 5)
    seqs = sequential.sequences(split.train, 4)[:1]
    inputs, targets = sequential.example(cfg, model, seqs, jax.random.key(0))
    self.assertEqual((inputs.tolist(), targets.tolist()), ([[0, 0, 1, 2]], [[0, 0, 2, 3]]))
    self.assertEqual(seqrec.history_positions(model, inputs).tolist(), [[0, 0, 1, 2]])
    self.assertEqual((split.valid.history(0).tolist(), split.valid.targets[0]), ([1, 2, 3], 4))
    self.assertEqual((split.test.history(0).tolist(), split.test.targets[0]), ([1, 2, 3, 4], 5))

  @parameterized.parameters(*seqrec.KINDS)
  def test_14_without_alignment_the_loss_is_the_recommenders(self, kind):
    cfg = small('no_align', f'backbone={kind}')
    model = sequential.model_config(cfg, 9)
    vectors, aim = self.vectors(9), self.vectors(9, 8)
    seqs = jnp.array([[0, 0, 3, 4, 5], [1, 2, 3, 9, 8], [0, 0, 0, 7, 2], [0, 6, 1, 2, 4]])
    mesh = devices.mesh(data=1, model=1)
    loss = functools.partial(sequential.loss_of, cfg, model, mesh, 8, 128)
    init, total = rat.make_objective(cfg, 6, model, loss, 128)
    params, key = init(jax.random.key(0)), jax.random.key(1)
    full = rat.expand_table(cfg, model, params, vectors)
    self.assertEqual(float(total(params, vectors, aim, seqs, key)), float(loss(full, seqs, key)))
    cfg.rat.alpha = .5
    more = rat.make_objective(cfg, 6, model, loss, 128)[1](params, vectors, aim, seqs, key)
    gap = rat.alignment_loss(cfg, model, full['items'], aim, seqs, key, 128)
    np.testing.assert_allclose(more, loss(full, seqs, key) + .5 * gap, rtol=1e-5)
    paths = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    self.assertFalse([p for p in paths if 'items' in p or 'moved' in p])

  @parameterized.parameters('position', 'sequence', 'batch')
  @long
  def test_the_adapter_over_distinct_items_gives_loss_and_gradient_of_all(self, shared):
    cfg = small()
    cfg.loss.update(kind='bce', negative_scope=shared, negatives=2)
    model = sequential.model_config(cfg, 5000)
    vectors, aim = self.vectors(5000), self.vectors(5000, 8)
    seqs = jnp.asarray(np.random.default_rng(0).integers(1, 5001, (4, 5)))
    mesh = devices.mesh(data=1, model=1)
    loss = functools.partial(sequential.loss_of, cfg, model, mesh, 8, 128)
    init, total = rat.make_objective(cfg, 6, model, loss, 128)
    params, key = init(jax.random.key(0)), jax.random.key(1)
    most = rat.max_distinct_items(cfg, model, 128)
    some = rat.batch_items(cfg, model, 128, most, seqs, key)
    self.assertLess(len(some), 5000)
    got, grads = jax.jit(jax.value_and_grad(total))(params, vectors, aim, seqs, key)
    cfg.loss.kind, whole = 'ce', cfg.loss.kind
    self.assertEqual(rat.max_distinct_items(cfg, model, 128), 0)
    cfg.loss.kind = whole
    full = lambda p: (lambda f: loss(f, seqs, key) + cfg.rat.alpha * rat.alignment_loss(  # noqa: E731
        cfg, model, f['items'], aim, seqs, key, 128))(rat.expand_table(cfg, model, p, vectors))
    want, all_of_them = jax.jit(jax.value_and_grad(full))(params)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, all_of_them)

  def test_distinct_items_are_drawn_without_replacement(self):
    goals = jnp.array([0, 5, 5, 2, 9, 0, 9, 1])
    all_of_them = rat.sample_distinct(goals, 10, 8, jax.random.key(0))
    self.assertEqual(sorted(all_of_them.tolist()), [0, 0, 0, 0, 1, 2, 5, 9])
    found = {tuple(sorted(rat.sample_distinct(goals, 10, 2, jax.random.key(s)).tolist()))
             for s in range(40)}
    self.assertLen(found, 6)
    self.assertTrue(all(a != b for a, b in found))

  def test_alignment_pulls_the_table_to_that_of_ids(self):
    cfg = small(align_loss='infonce', tau=.2)
    model = sequential.model_config(cfg, 9)
    aim = self.vectors(9, 8)
    seqs = jnp.asarray(np.random.default_rng(0).integers(1, 10, (4, 5)))
    near, far = (rat.alignment_loss(cfg, model, jnp.pad(t, [(1, 1), (0, 0)]), aim, seqs,
                               jax.random.key(0), 128) for t in (aim, -aim))
    self.assertLess(float(near), float(far))
    cfg.rat.align_items = 'positions'
    self.assertTrue(np.isfinite(rat.alignment_loss(cfg, model, jnp.pad(aim, [(1, 1), (0, 0)]), aim,
                                              seqs, jax.random.key(0), 128)))

  def test_tables_that_do_not_fit_are_refused(self):
    model = sequential.model_config(small(), 9)
    with self.assertRaisesRegex(DataError, '5 rows, the catalog 9'):
      rat.adapter_inputs(small(), model, np.ones((5, 6), np.float32), 9)
    with self.assertRaisesRegex(ConfigError, 'pca.dim=6'):
      rat.adapter_inputs(small('no_adapter'), model, np.ones((9, 6), np.float32), 9)
    table = rat.adapter_inputs(small('no_adapter'), model, np.eye(9, 12, dtype=np.float32), 9)
    np.testing.assert_allclose((table ** 2).sum(1).mean(), 1, rtol=1e-5)

  @parameterized.parameters(
    ('rat', 'activation', 'tanh'),
    ('rat', 'align_items', 'all'),
    ('rat', 'align_loss', 'mse'),
    ('rat', 'max_align_items', 1),
    ('pca', 'dim', 0),
    ('scft', 'loss', 'mse'),
    ('scft', 'batch', 1),
    ('scft', 'parts', 7),
    ('scft', 'ratio', 1.0),
    ('rat', 'align_source', 'ids'),
    ('rat', 'variant', 'half'),
    ('scft', 'tau', 0.0),
    ('base', 'width', 8),
    ('text', 'weights', '/nowhere'),
  )
  def test_settings_that_cannot_be_are_refused(self, group, key, value):
    cfg = config('backbone=gru4rec' + (',variant=text' if group == 'text' else ''))
    cfg[group][key] = value
    with self.assertRaises(ConfigError):
      variants.check(cfg)
      rat.check(cfg, 1000)


class JudgeTest(parameterized.TestCase):

  def test_11_gains_by_rank_and_of_a_random_order(self):
    got = metrics.per_case(np.array([0, 1, 2, 9, 10]), (10,))['NDCG@10']
    np.testing.assert_allclose(got, [1, .630930, .5, .289065, 0], atol=1e-5)
    got = metrics.per_case(np.arange(101), (10,))
    np.testing.assert_allclose([got['HR@10'].mean(), got['NDCG@10'].mean()], [.099010, .044986],
                               atol=1e-5)

  def test_groups_part_the_users_and_their_means_make_the_whole(self):
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 30, n).astype(np.int32) for n in rng.integers(3, 15, 80)]
    offsets = np.cumsum([0, *map(len, rows)])
    data = dataset.Interactions(tuple(map(str, range(80))), np.concatenate(rows), offsets)
    shop = dataset.make_dataset('x', dataset.Catalog(tuple(map(str, range(29))), {}), data)
    split = splits.leave_one_out(data)
    cfg = ConfigDict(dict(eval=dict(tail_item=20, tail_user=7), popularity_of_all=False))
    groups = evaluate.group_masks(cfg, shop, split)
    ranks = rng.integers(0, 29, (2, 80))
    found = evaluate.summarize_groups({'a': ranks, 'b': ranks[::-1]}, groups, 'a', 0, split.test)
    whole = np.mean([metrics.per_case(r, (10,))['NDCG@10'] for r in ranks])
    for kind in ('item', 'user'):
      tail, head = found[f'tail_{kind}'], found[f'head_{kind}']
      self.assertEqual(tail['n'] + head['n'], 80)
      np.testing.assert_allclose(sum(g['n'] * g['rows']['a']['NDCG@10']['value']
                                     for g in (tail, head)) / 80, whole, rtol=1e-6)
    twice = split.test.select(np.repeat(np.arange(80), 2))  # every user is asked the same twice
    again = evaluate.summarize_groups(
        {row: np.repeat(x, 2, 1) for row, x in (('a', ranks), ('b', ranks[::-1]))},
        {name: np.repeat(mask, 2) for name, mask in groups.items()}, 'a', 0, twice)
    self.assertEqual(again, found)
    cfg.popularity_of_all = True
    self.assertLessEqual(evaluate.group_masks(cfg, shop, split)['tail_item'].sum(),
                         groups['tail_item'].sum())


class ConfigTest(absltest.TestCase):

  def test_the_released_profile_differs_by_switches(self):
    cfg = config('profile=faithful')
    self.assertTrue(all(cfg.reproduce_bugs.values()))
    sas, gru = (variants.recommender_config(config(f'profile=faithful,backbone={k}'), k)
                for k in ('sasrec', 'gru4rec'))
    self.assertTrue(sas.model.future and sas.model.pads and not sas.train.last_only)
    self.assertTrue(gru.train.last_only and not gru.model.future)
    self.assertFalse(any(config().reproduce_bugs.values()))
    self.assertIn('reproduce_bugs', json.dumps(config().to_dict()))

  def test_rungs_bound_the_padding(self):
    for n in range(1, 2000):
      self.assertBetween(text_embedding.rung(n), n, max(16, n * 1.25 + 8))


if __name__ == '__main__':
  absltest.main()
