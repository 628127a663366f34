"""Sequential recommenders whole: packing, losses, training, resume, devices, the face."""
import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import pathlib
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax import batch_recommend, cli, recommend, run_files
from recjax.data import dataset as dataset_lib
from recjax.data import loading, splits
from recjax.errors import ConfigError, DataError
from recjax.evaluation import baselines, blending, metrics, ranking, sampled_ranking
from recjax.methods import sequential
from recjax.methods.sequential import train as stages
from recjax.models import seqrec
from recjax.training import sequential as train
from recjax.training import workdir as workdir_lib
from recjax.training.losses import item_losses
from tests import beside_rows, devices, told
from tests.long import long, long_but

ROOT = pathlib.Path(__file__).parents[2]


def config(**kw):
  path = ROOT / 'configs' / 'sequential_beauty.py'
  spec = importlib.util.spec_from_file_location('c', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  cfg = module.get_config(','.join(f'{k}={v}' for k, v in kw.items()))
  cfg.model.update(max_history=12, width=32, hidden=32, dropout=0.1)
  cfg.train.update(batch=64, epochs=4, patience=4, save_every=1)
  cfg.eval.classical = False
  if cfg.model.kind == 'hstu':
    cfg.loss.negatives = 20
  return cfg


def ring(users=2000, length=12, items=50, seed=0):
  """The spec's ring: the next item is the successor with probability .9, else anything."""
  rng = np.random.default_rng(seed)
  rows = np.zeros((users, length), np.int64)
  rows[:, 0] = rng.integers(0, items, users)
  for t in range(1, length):
    jump = rng.uniform(size=users) > .9
    rows[:, t] = np.where(jump, rng.integers(0, items, users), (rows[:, t - 1] + 1) % items)
  return dataset([r + 1 for r in rows], items)


def dataset(rows, items):
  titles = [f'item {i}' for i in range(1, items + 1)]
  goods = dataset_lib.Catalog(tuple(f'i{i}' for i in range(1, items + 1)), {'title': titles})
  offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
  flat = np.concatenate(rows).astype(np.int32)
  users = tuple(f'u{i}' for i in range(len(rows)))
  gaps = np.random.default_rng(1).integers(0, 10 ** 5, len(flat))
  times = 1_600_000_000 + np.cumsum(gaps)
  return dataset_lib.make_dataset(
      'ring', goods, dataset_lib.Interactions(users, flat, offsets, times))


def without_times(shop):
  return dataset_lib.make_dataset(
      'ring', shop.catalog, dataclasses.replace(shop.interactions, times=None))


def mesh(ways=1):
  return devices.mesh(data=ways, fsdp=1, model=1)


def whole_run(cfg):
  """Runs a config from data to report. -> its folder, results.json"""
  folder = pathlib.Path(tempfile.mkdtemp())
  facts = {'command': 'x', 'devices': '1', 'revision': 'r', 'versions': {}, 'overrides': {}}
  with workdir_lib.open_work(folder, {'config': cfg.to_dict(), 'facts': facts}, mesh()) as work:
    sequential.run(cfg, work)
  return folder, run_files.read_json(folder / 'results.json')


def train_on(shop, cfg, folder, ways=1, *start):
  with workdir_lib.open_work(folder, {'config': cfg.to_dict(), 'facts': {}}, mesh(ways)) as work:
    return work.stage('train', stages.stage, stages.settings(cfg), shop, *start)


class PackTest(parameterized.TestCase):

  def test_9_split_and_targets_of_a_short_user(self):
    shop = dataset([np.array([1, 2, 3, 4, 5])], 6)
    split = splits.leave_one_out(shop.interactions)
    seqs = train.sequences(split.train, 4)
    self.assertEqual(seqs.tolist(), [[0, 0, 1, 2, 3], [0] * 5])
    model = seqrec.Config('sasrec', 6, 4)
    inputs, targets = train.example(config(), model, seqs, jax.random.key(0))
    self.assertEqual((inputs[0].tolist(), targets[0].tolist()), ([0, 0, 1, 2], [0, 0, 2, 3]))
    self.assertEqual((split.valid.history(0).tolist(), split.valid.targets[0]), ([1, 2, 3], 4))
    self.assertEqual((split.test.history(0).tolist(), split.test.targets[0]), ([1, 2, 3, 4], 5))

  def test_long_users_keep_their_latest_items(self):
    split = splits.leave_one_out(dataset([np.arange(1, 21), np.array([3])], 20).interactions)
    self.assertEqual(train.sequences(split.train, 4).tolist(),
                     [[14, 15, 16, 17, 18], [0, 0, 0, 0, 3], [0] * 5])

  def test_rows_are_the_same_where_the_loop_is_unrolled(self):
    lengths = np.random.default_rng(0).integers(0, 9, 70)  # no multiple of the turns in one
    rows, starts, row, fill = [], [], 0, 0
    for n in lengths:
      if fill + n > 8:
        row, fill = row + 1, 0
      rows.append(row)
      starts.append(fill)
      fill += n
    for backend in ('cpu', 'tpu'):
      with mock.patch.object(jax, 'default_backend', lambda backend=backend: backend):
        found = train.assign_rows(jnp.asarray(lengths), 8)
      for x, want in zip(found, (rows, starts, row + (fill > 0))):
        np.testing.assert_array_equal(x, want)

  @parameterized.parameters(0, 1, 2)
  def test_every_token_is_laid_down_once(self, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, 30)
    inputs = np.array([[0] * (8 - n) + rng.integers(1, 99, n).tolist() for n in counts])
    packed = train.pack_histories(jnp.asarray(inputs), jnp.asarray(inputs) * 2, 30)
    items, position, segment, targets = map(np.asarray, packed)
    self.assertEqual((items > 0).sum(), counts.sum())
    np.testing.assert_array_equal(targets, items * 2)
    for user, n in enumerate(counts):
      mine = segment == user + 1
      self.assertLessEqual(len(set(np.nonzero(mine)[0])), 1)
      self.assertEqual(items[mine].tolist(), inputs[user, 8 - n:].tolist())
      self.assertEqual(position[mine].tolist(), list(range(8 - n, 8)))

  def test_times_of_users_that_share_a_row_stay_their_own(self):
    shop = dataset([np.array([1, 2, 3, 4, 5]), np.array([6, 7, 8, 9])], 9)
    shop = dataclasses.replace(shop.interactions, times=np.array(
        [1000, 1060, 4660, 91060, 91120, 5, 5, 2 ** 33, 2 ** 33 + 1]))
    split = splits.leave_one_out(shop)
    seqs = train.sequences(split.train, 4, True)
    self.assertEqual(seqs.tolist(), [[0, 0, 1, 2, 3, 0, 0, 0, 60, 3660],
                                     [0, 0, 0, 6, 7, 0, 0, 0, 0, 0], [0] * 10])
    seqs = train.sequences(shop, 4, True)
    self.assertEqual(seqs[0].tolist(), [1, 2, 3, 4, 5, 0, 60, 3660, 90060, 90120])
    self.assertEqual(seqs[1, 5:].tolist(), [0, 0, 0, 2 ** 31 - 1, 2 ** 31 - 1])  # never wrapped
    inputs, wanted, times = seqs[:2, :4], seqs[:2, 1:5], seqs[:2, 5:]
    packed = train.pack_histories(inputs, wanted, 2, None, times[:, :-1], times[:, 1:])
    self.assertEqual(packed[5][0].tolist(), [60, 3660, 90060, 90120])
    self.assertEqual(packed[5][1].tolist(), [0, 2 ** 31 - 1, 2 ** 31 - 1, 0])
    with self.assertRaisesRegex(DataError, "no times; add `times`.*model.time=none"):
      train.sequences(dataclasses.replace(shop, times=None), 4, True)

  def test_times_in_any_unit_are_seconds(self):
    shop = ring(20).interactions
    for unit in (1000, 10 ** 9):
      finer = dataclasses.replace(shop, times=shop.times * unit + unit // 2)
      np.testing.assert_array_equal(*(train.sequences(data, 12, True) for data in (shop, finer)))
      cases = [splits.leave_one_out(data).test for data in (shop, finer)]
      for clock in splits.CLOCKS:
        np.testing.assert_array_equal(*(c.request_times(np.arange(3), clock) for c in cases))

  def test_times_of_a_cut_history_and_of_its_request(self):
    model = seqrec.Config('hstu', 9, 4, time='bias')
    items, offsets = np.array([1, 2, 3, 4, 5, 6, 7]), np.array([0, 5, 6, 7])
    times = np.array([0, 10, 20, 30, 40, 100, 7, 9, 8, 3])  # of the items, then of each request
    rows = train.padded(model, items, offsets)
    self.assertEqual(rows.tolist(), [[2, 3, 4, 5], [0, 0, 0, 6], [0, 0, 0, 7]])
    got = train.padded_times(rows, offsets, times)
    self.assertEqual(got.tolist(), [[0, 10, 20, 30, 90], [0, 0, 0, 0, 2], [0, 0, 0, 5, 0]])

  @long
  def test_room_is_enough_for_every_batch(self):
    shop = ring(300)
    seqs = train.sequences(splits.leave_one_out(shop.interactions).train, 12)
    for kind in seqrec.KINDS:
      cfg = config(model=kind)
      model = train.model_config(cfg, 50)
      rows, targets, steps = train.capacity(cfg, model, seqs)
      for number in range(cfg.train.epochs):
        for users in train.epoch_order(jax.random.key(0), number, 300, 64):
          inputs, wanted = train.example(cfg, model, seqs[users], jax.random.key(number))
          packed = train.pack_histories(inputs, wanted, rows)
          self.assertEqual(int((packed[0] > 0).sum()), int((inputs > 0).sum()))
          self.assertLessEqual(int((wanted > 0).sum()), targets)
      self.assertEqual(steps, 5)

  @parameterized.parameters((10, .2, 99, 2), (2, .2, 99, 1), (100, .6, 30, 30))
  def test_12_hidden_items(self, length, share, most, want):
    self.assertEqual(int(train.hidden_count(jnp.array(length), share, most)), want)

  def test_bert4rec_hides_items_or_the_last_alone(self):
    cfg = config(model='bert4rec')
    model = train.model_config(cfg, 50)
    seqs = jnp.asarray(np.pad(np.arange(1, 11)[None], [(0, 0), (3, 0)]).repeat(400, 0))
    inputs, targets = train.example(cfg, model, seqs, jax.random.key(0))
    hidden = np.asarray(targets) > 0
    self.assertTrue((np.asarray(inputs)[hidden] == model.mask).all())
    self.assertEqual(set(hidden.sum(1)), {1, 2})
    alone = hidden.sum(1) == 1
    self.assertTrue(hidden[alone][:, -1].all())
    self.assertBetween(alone.mean(), .4, .6)


class LossTest(parameterized.TestCase):

  @parameterized.parameters(
      ('bce', 'position', 'train_history'), ('bce', 'sequence', 'none'),
      ('gbce', 'batch', 'target'),
      ('gbce', 'sequence', 'train_history'), ('sampled', 'batch', 'target'),
      ('sampled', 'position', 'none'))
  @long_but(2)
  def test_losses_are_finite_with_and_without_targets(self, kind, shared, exclude):
    cfg = config(loss=kind)
    cfg.loss.update(negatives=5, negative_scope=shared, exclude=exclude)
    model = train.model_config(cfg, 50)
    params = seqrec.init(model, jax.random.key(0))
    seqs = train.sequences(splits.leave_one_out(ring(20).interactions).train, 12)
    run = jax.jit(jax.value_and_grad(lambda p, s: train.loss_of(
        cfg, model, mesh(), 24, 256, p, s, jax.random.key(1))))
    value, _ = run(params, seqs)
    self.assertGreater(float(value), 0)
    value, grads = run(params, jnp.zeros_like(seqs))
    self.assertEqual(float(value), 0)
    self.assertTrue(all(np.isfinite(g).all() for g in jax.tree.leaves(grads)))

  @parameterized.parameters('sasrec', 'bert4rec')
  @long
  def test_a_users_positions_share_negatives_wherever_packing_puts_them(self, kind):
    cfg = config(loss='sampled', model=kind)
    cfg.loss.update(negatives=5, negative_scope='sequence', exclude='none')
    cfg.model.dropout = 0.0
    model = train.model_config(cfg, 50)
    params = seqrec.init(model, jax.random.key(0))
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 51, n) for n in (13, 2, 1, 7, 5, 9, 3, 4)]
    split = splits.leave_one_out(dataset(rows, 50).interactions)
    seqs = train.sequences(split.train, 12)
    drawn = []

    def spy(states, table, ids, user, most):
      want = (states[:, None] * table[ids[user]]).sum(-1)
      got = item_losses.scores_by_user(states, table, ids, user, most)
      drawn.append(jnp.where(user[:, None] >= 0, got - want, 0))
      return got
    with mock.patch.object(train, 'item_losses', mock.Mock(wraps=item_losses)) as spied:
      spied.scores_by_user.side_effect = spy
      value = train.loss_of(cfg, model, mesh(), 8, 128, params, seqs, jax.random.key(1))
    self.assertGreater(float(value), 0)
    self.assertLen(drawn, 1)
    np.testing.assert_allclose(drawn[0], 0, atol=1e-6)

  @parameterized.parameters(
      ('ce', False, 'batch', 'bert4rec'), ('chunked', False, 'batch', 'sasrec'),
      ('bce', False, 'position', 'sasrec'), ('gbce', False, 'batch', 'bert4rec'),
      ('sampled', False, 'position', 'bert4rec'), ('sampled', True, 'position', 'sasrec'),
      ('sampled', True, 'batch', 'bert4rec'), ('ce', False, 'batch', 'hstu'),
      ('chunked', False, 'batch', 'hstu'), ('bce', False, 'position', 'hstu'),
      ('gbce', False, 'sequence', 'hstu'), ('sampled', False, 'position', 'hstu'))
  def test_losses_are_those_of_their_formulas(self, name, log_q, shared, kind):
    """Full softmax; BCE (SASRec); gBCE (gSASRec); sampled softmax, whose scores of
    negatives lose the log of how often each is expected among the drawn (logQ, Bengio 2008)."""
    cfg, items, k = config(loss=name, model=kind), 50, 7
    cfg.loss.update(negatives=k, negative_scope=shared, exclude='target', log_q=log_q, gbce_t=.6,
                    chunk=16)
    model = train.model_config(cfg, items)
    rng = np.random.default_rng(0)
    params = {'output' if model.separate else 'items': rng.normal(size=(52, model.width))}
    if kind == 'bert4rec':
      params['bias'] = rng.normal(size=52)
    params = jax.tree.map(jnp.float32, params)
    states = jnp.float32(rng.normal(size=(6, model.width)))
    goal, user = jnp.array([3, 50, 1, 7, 7, 20]), jnp.array([0, 0, 1, 1, 1, 2])
    seqs, key = jnp.ones((3, 13), jnp.int32), jax.random.key(2)
    got = train.item_loss(cfg.loss, model, mesh(), params, states, goal, seqs, user, key)

    table = np.asarray(params['output' if model.separate else 'items'], np.float64)[1:items + 1]
    if kind == 'hstu':  # cosines, once states have length 1, over .05
      table /= np.linalg.norm(table, axis=1, keepdims=True) * .05
    every = np.asarray(states, np.float64) @ table.T
    every += np.asarray(params['bias'], np.float64)[1:items + 1] if 'bias' in params else 0
    drawn = np.asarray(train.negatives(cfg.loss, items, 6, 3, key))  # rows of the table
    want = []
    for at, target in enumerate(np.asarray(goal) - 1):
      some = drawn[int(user[at])] if shared == 'sequence' else np.broadcast_to(drawn, (6, k))[at]
      up, down = every[at, target], every[at, some[some != target]]
      log1p = lambda x: np.logaddexp(0, x)  # noqa: E731
      if name == 'bce':
        want.append(log1p(-up) + log1p(down).sum())
      elif name == 'gbce':
        share = k / (items - 1)
        power = share * (.6 * (1 - 1 / share) + 1 / share)
        want.append((power * log1p(-up) + log1p(down).sum()) / (k + 1))
      elif name == 'sampled':
        down = down - np.log(k / items) * log_q
        want.append(np.logaddexp.reduce([up, *down]) - up)
      else:
        want.append(np.logaddexp.reduce(every[at]) - up)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)

  def test_sampled_softmax_of_cosines_by_the_spec(self):
    cfg = config(model='hstu')
    cfg.model.update(width=4)
    cfg.loss.update(negatives=2)
    table = np.array([[9] * 4, [.5, 0, .5, 0], [-.3, .4, 0, .1], [.2] * 4, [9] * 4], np.float32)
    state = jnp.array([[.6, -.2, .3, .1]]) / .5 ** .5
    for temperature, drawn, want, delta in (
        (.05, [1, 2], .001247124, 2e-6), (1.0, [1, 2], .651839150, 2e-6),
        (.05, [1, 0], 1.4e-14, 1e-6), (.07, [1, 2], .008394967, 2e-6)):
      cfg.model.temperature = temperature
      with mock.patch.object(train, 'negatives', lambda *_, drawn=drawn: jnp.array([drawn])):
        got = train.item_loss(
            cfg.loss, train.model_config(cfg, 3), mesh(), {'items': jnp.asarray(table)}, state,
            jnp.array([1]), jnp.zeros((1, 13), jnp.int32), jnp.array([0]), jax.random.key(0))
      self.assertAlmostEqual(float(got[0]), want, delta=delta)

  def test_excluded_negatives(self):
    drawn = jnp.array([1, 2, 3])
    goal, history = jnp.array([2, 3]), jnp.array([[0, 1], [0, 2]])
    self.assertIsNone(train.counted_negatives('none', drawn, goal, history))
    self.assertEqual(train.counted_negatives('target', drawn, goal, history).tolist(),
                     [[True, False, True], [True, True, False]])
    self.assertEqual(train.counted_negatives('train_history', drawn, goal, history).tolist(),
                     [[False, False, True], [True, False, False]])

  def test_wrong_settings_are_refused(self):
    for group, key, value in (('loss', 'kind', 'hinge'), ('loss', 'negative_scope', 'all'),
                              ('loss', 'exclude', 'some'), ('train', 'batch', 0)):
      cfg = config()
      cfg[group][key] = value
      with self.assertRaises(ConfigError):
        train.check(cfg, 50)
    cfg = config(loss='sampled')
    with self.assertRaisesRegex(ConfigError, 'loss.negatives=256 of 50'):
      train.check(cfg, 50)


class RingTest(parameterized.TestCase):

  @parameterized.parameters(('sasrec', .85), ('gru4rec', .85), ('bert4rec', .80), ('hstu', .85))
  @long
  def test_models_learn_the_ring(self, kind, least):
    cfg = config(model=kind)
    cfg.optim.lr = 4e-3
    cfg.train.update(epochs=10 if kind != 'bert4rec' else 24, patience=30, save_every=100,
                     valid_users=50)
    if kind == 'gru4rec':
      cfg.model.hidden = 64
    shop = ring()
    made = train_on(shop, cfg, tempfile.mkdtemp())
    model = train.model_config(cfg, 50)
    score = train.scorer(model, train.load(made / 'model.npz', 0))
    cases = splits.leave_one_out(shop.interactions).test
    ranks = ranking.rank_cases(score, cases, 50, mask_history=False)
    self.assertGreaterEqual(metrics.per_case(ranks, (1,))['HR@1'].mean(), least)


class RunTest(parameterized.TestCase):

  @parameterized.parameters('sasrec', 'hstu')
  @long
  def test_a_run_that_was_killed_ends_where_an_uninterrupted_one_does(self, kind):
    cfg, shop = config(model=kind), ring(300)
    cfg.seeds = 2
    whole = train_on(shop, cfg, tempfile.mkdtemp())
    folder, count = tempfile.mkdtemp(), [0]
    judge = ranking.validator

    def dying(*given):
      inner = judge(*given)

      def run(params):
        count[0] += 1
        if count[0] == 3:
          raise KeyboardInterrupt
        return inner(params)
      return run
    with mock.patch.object(ranking, 'validator', dying), self.assertRaises(KeyboardInterrupt):
      train_on(shop, cfg, folder)
    again = train_on(shop, cfg, folder)
    self.assertEqual((whole / 'valid.json').read_text(), (again / 'valid.json').read_text())
    self.assertEqual((whole / 'model.npz').read_bytes(), (again / 'model.npz').read_bytes())

  @parameterized.parameters(('sasrec', 8), ('gru4rec', 5), ('bert4rec', 5), ('hstu', 2),
                            ('hstu', 4), ('hstu', 8))
  @long
  def test_many_devices_learn_what_one_does(self, kind, devices):
    cfg, shop = config(model=kind), ring(300)
    cfg.train.update(epochs=2, batch=60)  # neither users nor rows divide over 5
    folders = [tempfile.mkdtemp() for _ in range(2)]
    one, many = (train.load(train_on(shop, cfg, folder, n) / 'model.npz', 0)
                 for folder, n in zip(folders, (1, devices)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), one, many)
    curves = [[json.loads(row)['loss_0'] for row in
               (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()]
              for folder in folders]
    self.assertLen(curves[0], 2)
    np.testing.assert_allclose(*curves, rtol=1e-5)

  def test_a_device_scores_its_own_targets_alone(self):
    cfg, shop = config(), ring(256)
    model = train.model_config(cfg, 50)
    given = (seqrec.init(model, jax.random.key(0)), train.sequences(shop.interactions, 12)[:256],
             jax.random.key(1))
    cost = []
    for ways in (1, 8):
      loss = functools.partial(train.loss_of, cfg, model, mesh(ways), 256, 3072)
      where = jax.NamedSharding(mesh(ways), jax.P())
      with jax.set_mesh(mesh(ways)):
        program = jax.jit(jax.grad(loss)).lower(*jax.device_put(given, where)).compile()
      cost.append(program.cost_analysis()['flops'])
    self.assertLess(cost[1], 0.2 * cost[0])

  @long
  def test_seeds_in_one_program_are_those_of_programs_of_their_own(self):
    cfg, shop = config(), ring(300)
    cfg.train.update(epochs=2)
    cfg.seeds = 2
    both = train.load(train_on(shop, cfg, tempfile.mkdtemp()) / 'model.npz', 1)
    cfg.seeds, cfg.seed = 1, 1
    alone = train.load(train_on(shop, cfg, tempfile.mkdtemp()) / 'model.npz', 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), both, alone)

  def test_from_files_to_report_and_recommendations(self):
    shop, cfg = ring(200), config(loss='bce')
    cfg.eval.classical = True
    cfg.seeds, cfg.data = 2, tempfile.mkdtemp() + '/shop'
    loading.save_data(shop, cfg.data)
    folder, results = whole_run(cfg)
    self.assertEqual(list(results['rows']), [
        'sasrec:bce', 'popularity', 'recency', 'random', *beside_rows.classical_rows(shop)])
    beside_rows.check(self, folder, shop, masked=True)
    self.assertEqual(told.check(results), (200, 200))
    self.assertEqual(results['seeds'], [0, 1])
    cells = results['rows']['sasrec:bce']
    self.assertAlmostEqual(cells['HR@10']['value'],
                           np.mean([c['HR@10'] for c in results['by_seed'].values()]), places=6)
    self.assertLessEqual(cells['NDCG@10']['value'], cells['HR@10']['value'])
    page = (folder / 'report.html').read_text()
    for words in ('the next item', '>epoch<', 'What is shown', 'HR@10 of sasrec:bce by group',
                  'The most bought instead', 'kang2018sasrec', 'How to reproduce'):
      self.assertIn(words, page)
    self.assertNotIn('>step<', page)
    ask = sequential.recommender(folder)
    items, scores = ask([['i3', 'i4', 'i5'], ['i9']], 5)
    self.assertEqual([len(set(r)) for r in items], [5, 5])
    self.assertNotIn('i4', items[0])
    self.assertTrue((np.diff(scores, axis=1) <= 0).all())
    with self.assertRaisesRegex(DataError, 'i99'):
      ask([['i99']], 5)
    with self.assertRaisesRegex(ConfigError, 'by their numbers alone.*betag'):
      sequential.recommender(folder, cfg.data)
    sequential.convert(folder, 'npz', folder / 'copy.npz')
    self.assertEqual(train.load(folder / 'copy.npz')['items'].shape, (2, 52, 32))
    with self.assertRaisesRegex(ConfigError, 'peft'):
      sequential.convert(folder, 'peft', folder / 'x')
    self.assertIn('a seed', sequential.cost(cfg, shop)['parameters'])

  def test_a_model_with_times_from_files_to_recommendations(self):
    shop, cfg = ring(120), config(model='hstu')
    cfg.data = tempfile.mkdtemp() + '/shop'
    cfg.train.epochs = 2
    loading.save_data(shop, cfg.data)
    folder, results = whole_run(cfg)
    self.assertEqual(list(results['rows'])[:3], ['hstu:sampled', 'hstu:sampled:clock=target',
                                                 'popularity'])
    self.assertEqual(told.check(results), (120, 120))
    self.assertIn('zhai2024hstu', (folder / 'report.html').read_text())
    self.assertIn('a seed', sequential.cost(cfg, shop)['parameters'])
    ask = sequential.recommender(folder)
    items, untold = ask([['i3', 'i4', 'i5'], ['i9']], 5)  # one of a single item too
    self.assertEqual([len(set(r)) for r in items], [5, 5])
    self.assertTrue(ask.timed)
    times = [[0, 60, 90000, 90000], [5, 10 ** 7]]
    items, scores = ask([['i3', 'i4', 'i5'], ['i9']], 5, times=times)
    self.assertGreater(np.abs(scores - untold).max(), 0)
    with self.assertRaisesRegex(DataError, '3 times for a history of 3 items'):
      ask([['i3', 'i4', 'i5']], 5, times=[[0, 60, 90000]])
    self.files_with_times(ask, folder, shop, list(zip(items, scores)), untold)

  def files_with_times(self, ask, folder, shop, told, untold):
    """A file of users has the same answers as calls; the command knows a user's times."""
    rows = [{'user_id': 'a', 'items': ['i3', 'i4', 'i5'], 'times': [0, 60, 90000]},
            {'user_id': 'b', 'items': ['i9'], 'times': [5], 'now': 10 ** 7},
            {'user_id': 'c', 'items': ['i9']}]
    source, target = folder / 'in.jsonl', folder / 'out.jsonl'
    source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    batch_recommend.run(ask, shop, source, target, 5, log=lambda line: None)
    answers = [json.loads(line)['recommended'] for line in target.read_text().splitlines()]
    for answer, (items, scores) in zip(answers, told):
      self.assertEqual([a['item'] for a in answer], items)
      np.testing.assert_allclose([a['score'] for a in answer], scores, atol=1e-5)
    np.testing.assert_allclose([a['score'] for a in answers[2]], untold[1], atol=1e-5)
    source.write_text(json.dumps({**rows[0], 'times': [0, 60]}) + '\n')
    with self.assertRaisesRegex(DataError, 'line 1.*whole seconds, one for each of 3 items'):
      batch_recommend.run(ask, shop, source, folder / 'other.jsonl', 5)
    own = recommend.times_of(shop, 'u2')
    self.assertEqual(own, [*shop.interactions.times[24:36], shop.interactions.times[35]])
    said = io.StringIO()
    words = ['recjax', 'recommend', str(folder), '--user=u2', '--k=3']
    with contextlib.redirect_stdout(said), mock.patch.object(sys, 'argv', words):
      cli.main()
    history = [f'i{i}' for i in shop.interactions.history(2)]
    self.assertEqual([line.split('\t')[0] for line in said.getvalue().splitlines()],
                     ask([history], 3, times=[own])[0][0])

  def test_a_request_is_at_the_last_item_or_at_the_target(self):
    """What either clock scores is what the model says of histories with these times."""
    shop, cfg = ring(40), config(model='hstu')
    model = train.model_config(cfg, 50)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x * (300 if 'time' in str(path[-1]) else 10),
        seqrec.init(model, jax.random.key(0)))
    cases = splits.leave_one_out(shop.interactions).test.select(np.arange(20, 5, -3))
    ranks = {}
    for clock in splits.CLOCKS:
      ranks[clock] = ranking.rank_cases(train.scorer(model, params), cases, 50, clock=clock)
      for case, user in enumerate(cases.users):
        own = slice(*shop.interactions.offsets[user:user + 2])
        items, times = shop.interactions.items[own], shop.interactions.times[own].copy()
        times[-1] = times[-1] if clock == 'target' else times[-2]
        row, times = np.pad(items[:-1], (1, 0))[None], np.pad(times - times[0], (1, 0))[None]
        state = train.last_states(model, params, jnp.asarray(row), jnp.asarray(times))
        scores = np.array(seqrec.output_table(params, model)[0] @ state[0])
        scores[np.setdiff1d(items[:-1], items[-1:]) - 1] = -np.inf
        self.assertEqual(ranks[clock][case], (scores > scores[items[-1] - 1]).sum())
    self.assertNotEqual(ranks['last'].tolist(), ranks['target'].tolist())
    self.never_told_of_the_target(train.scorer(model, params), cases, ranks['last'])

  def never_told_of_the_target(self, score, cases, want):
    """Whatever ranks cases is at the last item unless it is told otherwise, and blends too."""
    everything = np.stack([np.setdiff1d(np.arange(1, 51), [target]) for target in cases.targets])
    blend = blending.score_function([score, score], blending.Rule((.5, .5)), 50, 0, True)
    self.assertTrue(blend.timed)
    rules = [blending.Rule((1., 0.)), blending.Rule((.5, .5))]
    unmasked = ranking.rank_cases(score, cases, 50, mask_history=False)
    for got, ranks in ((ranking.rank_cases(score, cases, 50), want),
                       (ranking.rank_and_recommend(score, cases, 50, 3)[0], want),
                       (ranking.rank_cases(blend, cases, 50), want),
                       *((r, want) for r in blending.ranks_of([score, score], rules, cases, 50)),
                       (sampled_ranking.rank_cases(score, cases, 50, everything), unmasked)):
      np.testing.assert_array_equal(got, ranks)

  @long
  def test_options_of_the_evaluation_stand_in_the_protocol_and_change_the_data(self):
    shop, cfg = ring(200), config()
    times = np.tile(np.repeat(np.arange(6), 2), 200)
    tied = dataclasses.replace(shop.interactions, times=times)
    shop = dataset_lib.make_dataset('ring', shop.catalog, tied)
    cfg.data = tempfile.mkdtemp() + '/shop'
    loading.save_data(shop, cfg.data)
    cfg.train.update(epochs=1)
    cfg.eval.update(tie_order='shuffle(2)', seen_mask='zero', test_history='train',
                     drop_cold_targets=True)
    folder, results = whole_run(cfg)
    for words in ('tied times: shuffle(2)', 'SET TO ZERO', 'end with training', 'without 0 whose'):
      self.assertIn(words, results['protocol'])
    told.check(results)
    self.assertNotEqual(results['data_fingerprint'], shop.fingerprint)
    self.assertLen(sequential.recommender(folder)([['i1']], 3)[0][0], 3)

  @parameterized.parameters(('tie_order', 'shuffle(1)', DataError), ('tie_order', 'x', ConfigError),
                            ('seen_mask', 'x', ConfigError), ('test_history', 'x', ConfigError),
                            ('sampled', 'x', ConfigError))
  def test_options_that_cannot_be_stop_a_run_before_it_trains(self, key, value, error):
    cfg = config()
    cfg.eval[key], cfg.data = value, tempfile.mkdtemp() + '/shop'
    loading.save_data(without_times(ring(20)), cfg.data)
    with workdir_lib.open_work(tempfile.mkdtemp(), {}, mesh()) as work, self.assertRaises(error):
      sequential.run(cfg, work)

  def test_times_that_cannot_be_are_refused_before_anything_trains(self):
    shop = ring(20)
    back = shop.interactions.times.copy()
    back[3], back[4] = back[4], back[3]
    for times, why in ((None, 'no times.*model.time=none'), (back, 'user u0 go backwards .1 such'),
                       (np.full(len(back), 7), 'all times are equal')):
      wrong = dataset_lib.make_dataset(
          'ring', shop.catalog, dataclasses.replace(shop.interactions, times=times))
      cfg = config(model='hstu')
      with self.assertRaisesRegex(DataError, why):
        stages.check(cfg, wrong)
      cfg.model.time = 'none'
      stages.check(cfg, wrong)

  def test_nobody_to_judge_is_an_error(self):
    with self.assertRaisesRegex(DataError, 'no user'):
      train_on(dataset([np.array([1, 2])], 5), config(), tempfile.mkdtemp())

  @long
  def test_popularity_on_beauty_proves_loader_split_and_metric(self):
    folder = ROOT.parent / 'shared' / 'data' / 'amazon-beauty'
    if not folder.exists():
      self.skipTest(f'{folder} is not there')
    shop = loading.load_data(folder)
    n = len(shop.catalog)
    split = splits.leave_one_out(shop.interactions)
    ranks = ranking.rank_cases(baselines.popularity(split.train.items, n), split.test, n)
    got = metrics.per_case(ranks, (5, 10))
    for name, want in (('HR@5', .0075), ('NDCG@5', .0041), ('HR@10', .0115), ('NDCG@10', .0055)):
      self.assertAlmostEqual(got[name].mean(), want, delta=.0002)


if __name__ == '__main__':
  absltest.main()
