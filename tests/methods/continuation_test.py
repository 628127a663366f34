"""Runs that go on from an earlier run's weights: where they begin, what is refused."""
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from configs import etegrec_scientific, tiger_beauty
from recjax import experiment, file_io, recommend, run_files
from recjax.data import dataset as dataset_lib
from recjax.data import loading, splits
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation import ranking
from recjax.methods.betag import train as betag_train
from recjax.methods.bigrec import instruction_data
from recjax.methods.bigrec import train as bigrec_train
from recjax.methods.etegrec import beam_ranking
from recjax.methods.etegrec import inference as etegrec_inference
from recjax.methods.etegrec import train as etegrec_train
from recjax.methods.etegrec import update as etegrec_update
from recjax.methods.llmemb import rat
from recjax.methods.reclm import train as reclm_train
from recjax.methods.sequential import train as stages
from recjax.models import huggingface, seqrec
from recjax.training import continuation, epoch_loop, sft
from recjax.training import sequential as train
from recjax.training import workdir as workdir_lib
from recjax.training.workdir import find_stage
from tests import later
from tests.long import long
from tests.methods import betag_test, etegrec_test, llmemb_test, reclm_test
from tests.methods.bigrec_test import config as bigrec_config
from tests.methods.bigrec_test import run as bigrec_run
from tests.methods.bigrec_test import write_ring
from tests.methods.sequential_test import config, mesh, ring, train_on, whole_run

ROOT = pathlib.Path(__file__).parents[2]
ITEMS, NEW = 50, 3
SHAPES = {'sasrec': {}, 'gru4rec': {}, 'bert4rec': {}, 'hstu': {'time': 'none'},
          'apart': {'kind': 'sasrec', 'separate': True}}


def grown(shop):
  """The shop a day later: new items behind, and everybody has bought one more thing, or two."""
  rng, rows = np.random.default_rng(5), []
  for user in range(len(shop.interactions)):
    more = rng.integers(1, ITEMS + NEW + 1, rng.integers(1, 3))
    rows.append([*shop.interactions.history(user).tolist(), *more.tolist()])
  ids = tuple(f'i{i}' for i in range(1, ITEMS + NEW + 1))
  goods = dataset_lib.Catalog(ids, {'title': [f'item {i}' for i in range(1, len(ids) + 1)]})
  items, offsets = dataset_lib.flatten(rows)
  times = 1_700_000_000 + 1000 * np.arange(len(items))
  return dataset_lib.make_dataset('grown', goods, dataset_lib.Interactions(
      shop.interactions.users, items, offsets, times))


def falling(*given):
  """A validation by which the first epoch is the best."""
  del given
  figures = iter(range(100, 0, -1))
  return lambda params: np.full(len(params['items']), next(figures), np.float32)


def drawn(work, cfg, shop):
  """The stage `train` without training: weights as they are drawn."""
  model = train.model_config(cfg, len(shop.catalog))
  for shift, name in enumerate(('model.npz', 'before_refit.npz')):
    keys = jax.random.split(jax.random.key(cfg.seed + 10 * shift), cfg.seeds)
    train.save(work.folder / name, jax.vmap(lambda key: seqrec.init(model, key))(keys))


def finished(cfg, fn=drawn, settings=stages.settings):
  """A run, and of its evaluation what tells its data. fn: the stage `train`, settings: of it.
  -> its folder"""
  folder, shop = pathlib.Path(tempfile.mkdtemp()), loading.load_for_config(cfg)
  facts = {'command': 'x', 'devices': '1', 'revision': 'r', 'versions': {}, 'overrides': {}}
  with workdir_lib.open_work(folder, {'config': cfg.to_dict(), 'facts': facts}, mesh()) as work:
    work.stage('train', fn, settings(cfg), shop)
    work.stage('evaluate', lambda work: file_io.write_json(
        work.folder / 'results.json', {'data_fingerprint': shop.fingerprint}))
  return folder


def first_state(call):
  """What training would begin with: {'params', 'opt'} of every training that `call` starts."""
  states = []

  def stop(init, *_, stop_at=None, **__):
    states.append(jax.tree.map(np.asarray, jax.jit(init)()))
    seeds = len(states[0]['params']['items'])
    return states[-1]['params'], np.ones(seeds, np.float32), np.ones(seeds, np.int32)
  with mock.patch.object(epoch_loop, 'fit_epochs', stop):
    call()
  return states


class BeginTest(parameterized.TestCase):

  @parameterized.parameters(*SHAPES)
  def test_a_grown_model_says_of_old_items_what_the_old_one_said(self, name):
    """Scores are asked of both models, which know nothing of how rows were copied."""
    more = {'kind': name, **SHAPES[name]}
    old, new = (seqrec.Config(items=n, max_history=8, width=16, hidden=16, layers=1, **more)
                for n in (ITEMS, ITEMS + NEW))
    draws = np.random.default_rng(0)
    before = jax.tree.map(lambda x: x + draws.normal(size=x.shape).astype(np.float32) / 3,
                          seqrec.init(old, jax.random.key(1)))
    fresh = seqrec.init(new, jax.random.key(2))
    params = train.carried_over(before, fresh)
    histories = draws.integers(1, ITEMS + 1, 40), np.arange(0, 41, 5)
    want = np.asarray(train.scorer(old, before)(*histories))
    found = np.asarray(train.scorer(new, params)(*histories))
    np.testing.assert_allclose(found[:, :ITEMS], want, atol=1e-5)
    self.assertGreater(np.abs(want).max(), .1)
    for table in set(seqrec.ITEM_TABLES) & params.keys():
      np.testing.assert_array_equal(params[table][ITEMS + 1:-1], fresh[table][ITEMS + 1:-1])

  def test_a_run_begins_at_the_best_epoch_with_a_fresh_optimizer(self):
    cfg, shop = config(), ring(60)
    cfg.model.layers = 1
    cfg.seeds, cfg.train.epochs, cfg.data = 2, 3, tempfile.mkdtemp() + '/shop'
    loading.save_data(shop, cfg.data)
    with mock.patch.object(ranking, 'validator', falling):
      folder = finished(cfg, stages.stage)
    best = train.load(workdir_stage(folder) / 'model.npz')
    chosen = run_files.read_json(workdir_stage(folder) / 'valid.json')
    self.assertEqual((chosen['epoch'], cfg.train.epochs), ([1, 1], 3))  # not the last
    cfg = later_config(cfg, folder, grown(shop))
    state, = first_state(lambda: whole_train(cfg))
    np.testing.assert_array_equal(state['params']['items'][:, :ITEMS + 1],
                                  best['items'][:, :ITEMS + 1])
    self.assertEqual(state['params']['items'].shape, (2, ITEMS + NEW + 2, 32))
    rest = [{k: v for k, v in tree.items() if k != 'items'} for tree in (state['params'], best)]
    jax.tree.map(np.testing.assert_array_equal, *rest)
    for leaf in jax.tree.leaves(state['opt']):  # counts and moments of Adam
      self.assertFalse(leaf.any())

  def test_choice_and_refit_begin_where_those_of_the_earlier_run_ended(self):
    cfg, shop = config(split='global_time'), ring(120)
    cfg.train.epochs, cfg.data = 1, tempfile.mkdtemp() + '/shop'
    cfg.seeds = 1
    loading.save_data(by_time(shop), cfg.data)
    folder = finished(cfg)
    cfg = later_config(cfg, folder, by_time(grown(shop)))
    cfg.seeds = 2  # from the one that there is
    states = first_state(lambda: whole_train(cfg))
    self.assertLen(states, 2)
    for state, name in zip(states, ('before_refit.npz', 'model.npz')):
      want = train.load(workdir_stage(folder) / name)['positions'][0]
      for seed in range(2):
        np.testing.assert_array_equal(state['params']['positions'][seed], want)
    self.assertTrue((states[0]['params']['positions'] != states[1]['params']['positions']).any())


def by_time(shop):
  """The same purchases, one of every user before the next one of anybody."""
  place = np.concatenate([np.arange(n) for n in shop.interactions.lengths()])
  times = 1_600_000_000 + 10_000 * place + np.arange(len(place)) % 97
  return dataclasses.replace(shop, interactions=dataclasses.replace(
      shop.interactions, times=times))


def workdir_stage(folder):
  return next(pathlib.Path(folder).glob('stages/*-train'))


def later_config(cfg, run, shop):
  """The config of a run on a later data set, which is written beside the old one."""
  cfg = cfg.copy_and_resolve_references()
  cfg.data = tempfile.mkdtemp() + '/later'
  loading.save_data(shop, cfg.data)
  cfg.start.run = str(run)
  return cfg


def whole_train(cfg):
  """The training stage of a config in a folder of its own. -> its folder, the Start"""
  shop = loading.load_for_config(cfg)
  start, used = stages.open_start(cfg, shop.catalog), continuation.shortened(cfg)
  return train_on(shop, used, tempfile.mkdtemp(), 1, start), start


class RunTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.cfg, cls.shop = config(), ring(120)
    cls.cfg.train.epochs, cls.cfg.data = 2, tempfile.mkdtemp() + '/shop'
    loading.save_data(cls.shop, cls.cfg.data)
    cls.run_folder = finished(cls.cfg)

  def test_a_run_that_goes_on_says_from_where_and_is_another_one(self):
    cfg = later_config(self.cfg, self.run_folder, grown(self.shop))
    folder, results = whole_run(cfg)
    said = (f'goes on from {self.run_folder} (weights {results["started"]["weights"][:12]}), which '
            'knew 50 of 53 items; 3 begin untrained')
    self.assertEqual(results['started']['said'], said)
    self.assertIn(said, (folder / 'run.log').read_text())
    self.assertIn('which knew 50 of 53 items', (folder / 'report.html').read_text())
    self.assertEqual(run_files.read_config(folder)['config']['start']['run'], cfg.start.run)
    ask, _ = recommend.load(folder)
    items, _ = ask([['i51', 'i3']], 53, exclude_seen=False)
    self.assertLen(set(items[0]), 53)

  def test_other_weights_are_another_run_and_a_moved_folder_is_the_same(self):
    cfg = later_config(self.cfg, self.run_folder, grown(self.shop))
    catalog = loading.load_for_config(cfg).catalog
    mark = stages.open_start(cfg, catalog).fingerprint
    moved = tempfile.mkdtemp() + '/moved'
    shutil.copytree(self.run_folder, moved)
    cfg.start.run = moved
    self.assertEqual(stages.open_start(cfg, catalog).fingerprint, mark)
    other = self.cfg.copy_and_resolve_references()
    other.seed = 7
    cfg.start.run = str(finished(other))
    self.assertNotEqual(stages.open_start(cfg, catalog).fingerprint, mark)

  def test_epochs_and_rate_are_shares(self):
    cfg = self.cfg.copy_and_resolve_references()
    cfg.train.epochs, cfg.start.lr_factor = 10, 0.5
    self.assertIs(continuation.shortened(cfg), cfg)
    cfg.start.run = 'x'
    used = continuation.shortened(cfg)
    self.assertEqual((used.train.epochs, used.optim.lr), (2, cfg.optim.lr / 2))
    self.assertEqual(cfg.train.epochs, 10)
    cfg.train.epochs = 1
    self.assertEqual(continuation.shortened(cfg).train.epochs, 1)

  @parameterized.parameters(
      ('model.width', 64, 'model.width is 64 here and 32 in'),
      ('model.layers', 1, 'model.layers is 1 here and 2 in'),
      ('model.kind', 'gru4rec', "model.kind is 'gru4rec' here and 'sasrec' in"),
      ('model.max_history', 9, 'model.max_history is 9 here and 12 in'),
      ('seed', 1, ''), ('model.dropout', .3, ''), ('loss.kind', 'bce', ''))
  def test_what_does_not_fit_is_named_with_both_values(self, name, value, said):
    cfg = later_config(self.cfg, self.run_folder, grown(self.shop))
    catalog = loading.load_for_config(cfg).catalog
    experiment.changed(cfg, {name: value})
    if not said:
      self.assertIsNotNone(stages.open_start(cfg, catalog))
      return
    with self.assertRaisesRegex(ConfigError, said):
      stages.open_start(cfg, catalog)

  def test_more_seeds_than_one_must_be_as_many(self):
    cfg = later_config(self.cfg, self.run_folder, grown(self.shop))
    start = continuation.open_start(cfg, loading.load_for_config(cfg).catalog, ['model.npz'])
    start.config.seeds = 3
    with mock.patch.object(continuation, 'open_start', lambda *_: start):
      cfg.seeds = 3
      stages.open_start(cfg, start.data.catalog)
      cfg.seeds = 2
      with self.assertRaisesRegex(ConfigError, 'seeds is 2 here and 3 in'):
        stages.open_start(cfg, start.data.catalog)

  def test_runs_that_cannot_be_gone_on_from_are_refused(self):
    shop = grown(self.shop)
    cfg = later_config(self.cfg, self.run_folder, shop)
    swapped = later.write(self.cfg.data, tempfile.mkdtemp() + '/swapped', [], swap=True)
    with self.assertRaisesRegex(DataError, "item 1 was 'i1', now it is 'i2'.*--update"):
      stages.open_start(cfg, loading.load_data(swapped).catalog)
    with self.assertRaisesRegex(DataError, "item 50 was 'i50', now there is none"):
      few = dataclasses.replace(shop.catalog, ids=shop.catalog.ids[:49])
      stages.open_start(cfg, few)
    for what in ('stages/02-evaluate', 'stages/01-train'):
      broken = tempfile.mkdtemp() + '/run'
      shutil.copytree(self.run_folder, broken)
      shutil.rmtree(pathlib.Path(broken) / what)
      cfg.start.run = broken
      with self.assertRaisesRegex(WorkdirError, 'no finished stage'):
        stages.open_start(cfg, shop.catalog)
    cfg.start.run = '/nowhere/at/all'
    with self.assertRaisesRegex(WorkdirError, 'does not exist'):
      stages.open_start(cfg, shop.catalog)
    cfg.start.run = str(self.run_folder)
    with self.assertRaisesRegex(ConfigError, 'of this very run'):
      experiment.train(cfg, self.run_folder / '.')
    other = experiment.read_config('bigrec_games')
    other.start.run = str(self.run_folder)
    with self.assertRaisesRegex(ConfigError, 'is a run of sequential, and this is one of bigrec'):
      continuation.open_start(other, shop.catalog, [])

  def test_a_run_whose_data_have_changed_is_refused(self):
    cfg = self.cfg.copy_and_resolve_references()
    cfg.data = tempfile.mkdtemp() + '/shop'
    shutil.copytree(self.cfg.data, cfg.data)
    folder = tempfile.mkdtemp() + '/run'
    shutil.copytree(self.run_folder, folder)
    saved = {**run_files.read_config(folder), 'config': cfg.to_dict()}
    file_io.write_json(pathlib.Path(folder) / 'config.json', run_files.signed(
        {k: v for k, v in saved.items() if k != 'sum'}))
    loading.save_data(grown(self.shop), cfg.data, overwrite=True)
    cfg = later_config(cfg, folder, grown(self.shop))
    with self.assertRaisesRegex(DataError, 'has changed since'):
      stages.open_start(cfg, loading.load_for_config(cfg).catalog)

  def test_what_was_learned_before_and_is_asked_now_is_counted(self):
    old = dataset_lib.make_dataset('old', self.shop.catalog, dataset_lib.Interactions(
        ('a', 'gone', 'b'), *dataset_lib.flatten([[1, 2, 3], [4, 5], [6, 7, 8, 9]])))
    now = dataset_lib.make_dataset('now', self.shop.catalog, dataset_lib.Interactions(
        ('b', 'a', 'c'), *dataset_lib.flatten([[6, 7, 8, 9], [1, 2, 3, 2], [4, 5, 4]])))
    split = splits.leave_one_out(now.interactions)
    count = lambda cases: continuation.learned_before(  # noqa: E731
        old.interactions, split.train, cases)
    self.assertEqual((count(split.valid), count(split.test)), (2, 1))  # b's 8, a's 3; b's 9
    self.assertEqual(continuation.learned_before(
        splits.leave_one_out(old.interactions).train, split.train, split.test), 0)

  @long
  def test_a_run_that_was_killed_as_it_went_on_ends_as_an_uninterrupted_one(self):
    cfg = later_config(self.cfg, self.run_folder, grown(self.shop))
    cfg.train.epochs, cfg.start.epochs_share = 4, 1.0
    shop = loading.load_for_config(cfg)
    start = stages.open_start(cfg, shop.catalog)
    whole = train_on(shop, cfg, tempfile.mkdtemp(), 1, start)
    folder, count, judge = tempfile.mkdtemp(), [0], ranking.validator

    def dying(*given):
      inner = judge(*given)

      def run(params):
        count[0] += 1
        if count[0] == 3:
          raise KeyboardInterrupt
        return inner(params)
      return run
    with mock.patch.object(ranking, 'validator', dying), self.assertRaises(KeyboardInterrupt):
      train_on(shop, cfg, folder, 1, start)
    again = train_on(shop, cfg, folder, 1, stages.open_start(cfg, shop.catalog))
    self.assertEqual((whole / 'valid.json').read_text(), (again / 'valid.json').read_text())
    self.assertEqual((whole / 'model.npz').read_bytes(), (again / 'model.npz').read_bytes())
    self.assertIn('going on from epoch 2', (pathlib.Path(folder) / 'run.log').read_text())

  @long
  def test_the_nightly_job_from_the_command_line(self):
    home = pathlib.Path(tempfile.mkdtemp())
    rows = [f'{u},{i},{t}' for u, items in ((f'u{n}', self.shop.interactions.history(n))
                                            for n in range(120))
            for t, i in enumerate(items.tolist(), 1_600_000_000)]
    head = 'user_id,item_id,timestamp\n'
    (home / 'before.csv').write_text(head + '\n'.join(rows) + '\n')
    (home / 'now.csv').write_text(head + '\n'.join(
        [*rows, *(f'u{n},{900 + n % 4},1600000900' for n in range(60))]) + '\n')

    def call(*words):
      return subprocess.run([sys.executable, '-m', 'recjax', *words], cwd=home, text=True,
                            capture_output=True, check=False)

    def done(*words):
      result = call(*words)
      self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
      return result.stdout
    done('prepare', 'table', 'before.csv', '--yes', '--out=before')
    done('prepare', 'table', 'now.csv', '--yes', '--update=before', '--out=now')
    quick = ['--config.train.epochs=4', '--config.eval.classical=False']
    done('run', 'sequential_beauty:data=before', '--workdir=one', *quick)
    said = done('run', 'sequential_beauty:data=now', '--from=one', '--workdir=two', *quick)
    self.assertRegex(said, r'goes on from one .* 50 of 54 items; 4 begin untrained; 1 epochs')
    again = done('run', 'sequential_beauty:data=now', '--from=one', '--workdir=two', *quick)
    self.assertIn('[1] train: done before', again)
    anew = done('run', 'sequential_beauty:data=now', '--workdir=two', *quick)
    self.assertNotIn('[1] train: done before', anew)
    for words, said in ((['--from=one', '--workdir=one'], 'this very run'),
                        (['--from=one', '--config.start.run=one'], 'given twice')):
      failed = call('run', 'sequential_beauty:data=now', *words)
      self.assertEqual(failed.returncode, 2, failed.stdout + failed.stderr)
      self.assertIn(said, failed.stdout + failed.stderr)


class ScriptTest(absltest.TestCase):

  @long
  def test_the_nightly_script_of_the_page_beside_a_server(self):
    """A purchase comes over HTTP; by night the script learns it, and the server takes over."""
    if not shutil.which('curl'):
      self.skipTest('the script asks by curl')
    home, shop = pathlib.Path(tempfile.mkdtemp()), ring(60)
    ids = [f'i{i}' for i in range(1, ITEMS + 1)]
    (home / 'items.csv').write_text('item_id,title\n' + ''.join(f'{i},Thing {i}\n' for i in ids))
    (home / 'log.csv').write_text('user_id,item_id,timestamp\n' + ''.join(
        f'u{n},i{i},{t}\n' for n in range(60)
        for t, i in enumerate(shop.interactions.history(n).tolist(), 1_600_000_000)))
    (home / 'bin').mkdir()
    (home / 'bin' / 'recjax').write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m recjax "$@" '
        '$([ "$1" = run ] && echo --config.model.width=8 --config.eval.classical=False)\n')
    (home / 'bin' / 'recjax').chmod(0o755)
    path = {**os.environ, 'PATH': f'{home / "bin"}:{os.environ["PATH"]}'}

    def call(command):
      done = subprocess.run(['bash', '-c', command], cwd=home, env=path, text=True,
                            capture_output=True, check=False)
      self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
      return done.stdout
    call('recjax prepare table log.csv --items=items.csv --yes --out=data/2020-01-01 && '
         'recjax run sequential_beauty:data=data/2020-01-01 --workdir=runs/2020-01-01 && '
         'ln -s 2020-01-01 runs/current')
    port = free_port()
    server = subprocess.Popen(
        [home / 'bin' / 'recjax', 'serve', 'runs/current', '--events=recjax-events.sqlite',
         f'--port={port}'], cwd=home, env=path, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    self.addCleanup(server.wait)
    self.addCleanup(server.kill)
    await_ready(port)
    ask(port, '/v1/events', {'user': 'newcomer', 'item': 'i7', 'type': 'purchase',
                             'request_id': 'a', 'time': 1_700_000_000})
    for item in ('i8', 'i9', 'i10'):
      ask(port, '/v1/events', {'user': 'newcomer', 'item': item, 'type': 'purchase'})
    before = ask(port, '/v1/models')['data'][0]
    page = (ROOT / 'docs' / 'data.md').read_text()
    script = re.search(r'```bash\n(#!/usr/bin/env bash\n.*?)```', page, re.S)[1]
    (home / 'nightly.sh').write_text(script.replace('localhost:8000', f'localhost:{port}'))
    call('bash nightly.sh')
    new = os.readlink(home / 'runs' / 'current')
    self.assertNotEqual(new, '2020-01-01')
    data = loading.load_data(home / 'data' / new)
    row = data.interactions.users.index('newcomer')
    self.assertEqual([data.catalog.id_of(i) for i in data.interactions.history(row)],
                     ['i7', 'i8', 'i9', 'i10'])
    results = run_files.read_json(home / 'runs' / new / 'results.json')
    self.assertIn('knew 50 of 50 items', results['started']['said'])
    after = ask(port, '/v1/models')['data'][0]
    self.assertNotEqual(after, before)
    found = ask(port, '/v1/recommend', {'user': 'newcomer', 'k': 5})
    self.assertNoCommonElements([i['id'] for i in found['items']], ['i7', 'i8', 'i9', 'i10'])
    self.assertNotIn('train', call('bash nightly.sh'))  # the same day once more: nothing to do


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def ask(port, route, body=None):
  """The answer of a server, as JSON. body: to be posted."""
  request = urllib.request.Request(
      f'http://127.0.0.1:{port}{route}', body and json.dumps(body).encode(),
      {'Content-Type': 'application/json'})
  with urllib.request.urlopen(request, timeout=60) as answer:
    return json.load(answer)


def await_ready(port):
  for _ in range(1200):
    with contextlib.suppress(OSError):
      if ask(port, '/readyz')['ready']:
        return
    time.sleep(0.1)
  raise TimeoutError('the server is not ready')


class AdapterTest(parameterized.TestCase):

  @long
  def test_bigrec_goes_on_from_its_adapter_over_the_same_model(self):
    home = pathlib.Path(tempfile.mkdtemp())
    cfg = bigrec_config('bigrec_games', write_ring(home / 'ring', 60))
    cfg.train.update(mode='lora', epochs=2)
    bigrec_run(cfg, home / 'old')
    tuned, model = (next((home / 'old' / 'stages').glob(f'*-{n}')) for n in ('tune', 'llm'))
    cfg.data = str(later.write(
        cfg.data, home / 'later', [{'item_id': 'new', 'title': 'grey bowl'}]))
    cfg.start.run, cfg.start.epochs_share = str(home / 'old'), 0.5
    with mock.patch.object(sft, 'fit', side_effect=KeyboardInterrupt) as fit, \
        self.assertRaises(KeyboardInterrupt):
      bigrec_run(cfg, home / 'new')
    begin = fit.call_args.args[0].start
    shape = huggingface.read_config(model)
    want = huggingface.load_adapter(tuned, huggingface.adapter_config(tuned, shape))
    jax.tree.map(np.testing.assert_array_equal, begin, want)
    results = bigrec_run(cfg, home / 'new')
    self.assertIn('knew 50 of 51 items; 1 begin untrained', results['started']['said'])
    copied = next((home / 'new' / 'stages').glob('*-llm'))
    for name in ('model.safetensors', 'tokenizer.json'):
      self.assertEqual((copied / name).read_bytes(), (model / name).read_bytes())
    data = instruction_data.load(cfg.data, cfg.samples)
    for name, value, said in (
        ('lora.rank', 8, 'lora.rank is 8 here and 4 in'), ('llm.weights', '/x', 'other weights'),
        ('train.mode', 'full', "train.mode is .* and 'lora' in")):
      other = cfg.copy_and_resolve_references()
      experiment.changed(other, {name: value})
      with self.assertRaisesRegex(ConfigError, said):
        bigrec_train.open_start(other, data)


  @long
  def test_betag_goes_on_from_its_adapter(self):
    home = pathlib.Path(tempfile.mkdtemp())
    cfg = betag_test.toy_config(betag_test.write_toy(home / 'toy'))
    betag_test.run(cfg, home / 'old')
    tuned = find_stage(home / 'old', 'tune')
    new = [{'item_id': 'new', 'title': 'Grey bowl', 'tags': ['grey', 'bowl']}]
    cfg.data = later.write(cfg.data, str(home / 'later'), new)
    cfg.start.run, cfg.start.epochs_share = str(home / 'old'), 0.5
    begin, shape = first_tree(betag_train, lambda: betag_test.run(cfg, home / 'new'))
    jax.tree.map(np.testing.assert_array_equal, begin, huggingface.load_adapter(tuned, shape))
    self.assertTrue(any(np.asarray(x).any() for x in jax.tree.leaves(begin)))
    betag_test.run(cfg, home / 'new')
    results = run_files.read_json(home / 'new' / 'results.json')
    self.assertRegex(results['started']['said'], r'1 begin untrained$')  # nothing learned is asked
    self.assertIn('new', run_files.read_json(find_stage(home / 'new', 'evaluate') / 'tags.json'))
    cfg.lora.rank = 2 * cfg.lora.rank
    with self.assertRaisesRegex(ConfigError, 'lora.rank is .* here and'):
      betag_test.run(cfg, home / 'other')

  @parameterized.parameters('ret', 'full')
  @long
  def test_reclm_goes_on_from_what_it_has_tuned(self, kind):
    home = pathlib.Path(tempfile.mkdtemp())
    cfg = reclm_test.config(
        reclm_test.write_ring(home / 'ring'), 'cgen' if kind == 'full' else kind,
        train={'mode': 'full' if kind == 'full' else 'lora'}, eval={'rounds': 0})
    reclm_test.run(cfg, home / 'old')
    tuned = find_stage(home / 'old', 'tune')
    cfg.data = str(later.write(cfg.data, home / 'later', [
        {'item_id': 'new', 'title': 'grey bowl', 'categories': ['goods', 'bowl']}]))
    cfg.start.run = str(home / 'old')
    begin, shape = first_tree(reclm_train, lambda: reclm_test.run(cfg, home / 'new'))
    if kind == 'full':
      jax.tree.map(np.testing.assert_array_equal, begin['params'], huggingface.load(tuned, shape))
    else:
      jax.tree.map(np.testing.assert_array_equal, begin['lora'],
                   huggingface.load_adapter(tuned, shape))
      rows = dict(np.load(tuned / 'rows.npz'))
      for name, row in begin['rows'].items():
        np.testing.assert_array_equal(row, rows[name])
    if kind == 'ret':
      old = dict(np.load(tuned / 'ret.npz'))
      np.testing.assert_array_equal(begin['items'][:30], old['items'])
      self.assertEqual(len(begin['items']), 31)
      np.testing.assert_array_equal(begin['project'][0]['kernel'], old['project/0/kernel'])
      table = dict(np.load(find_stage(home / 'new', 'teacher') / 'model.npz'))['items']
      np.testing.assert_array_equal(begin['items'][30], table[31])
    reclm_test.run(cfg, home / 'new')
    results = run_files.read_json(home / 'new' / 'results.json')
    self.assertIn('knew 30 of 31 items; 1 begin untrained', results['started']['said'])
    ask, _ = recommend.load(home / 'new')
    self.assertEqual(ask([['i1', 'i2']], 1, allowed={'new'})[0], [['new']])
    cfg.grounding = 'token'
    with self.assertRaisesRegex(ConfigError, 'grounding=token is trained from nothing'):
      reclm_test.run(cfg, home / 'other')


  @long
  def test_llmemb_begins_with_the_item_table_that_it_had(self):
    room = pathlib.Path(tempfile.mkdtemp())
    shop = llmemb_test.clusters()
    loading.save_data(shop, room / 'data')
    llmemb_test.random_decoder(room / 'llm', [
        f'{t} {b} is title brand categories goods' for t, b in zip(
            *(shop.catalog.columns[k] for k in ('title', 'brand')))])
    cfg = llmemb_test.config(room, 'variant=full,backbone=bert4rec')
    cfg.scft.steps, cfg.train.epochs = 6, 4
    cfg.rat.update(ids_from=3, whiten=True)
    llmemb_test.run(cfg, room / 'old')
    cfg.data = str(later.write(cfg.data, room / 'later', [
        {'item_id': f'n{n}', 'title': f'odd thing {n}', 'brand': 'none'} for n in range(9)]))
    cfg.start.run = str(room / 'old')
    states = noted_states(lambda: llmemb_test.run(cfg, room / 'new'))
    known = len(shop.catalog)
    one, other = (find_stage(room / f, 'scft-tuned') / 'adapter_model.safetensors'
                  for f in ('old', 'new'))
    self.assertEqual(one.read_bytes(), other.read_bytes())
    one, other = (np.load(find_stage(room / f, 'pca-tuned') / 'table.npy') for f in ('old', 'new'))
    np.testing.assert_allclose(other[:known], one, atol=1e-5)
    self.assertLen(other, known + 9)
    trained = train.load(find_stage(room / 'old', 'rat-full') / 'model.npz')
    rat_cfg = rat.settings(cfg, 'full')
    model = train.model_config(rat_cfg, known + 9)
    vectors = rat.adapter_inputs(rat_cfg, model, other, known + 9)
    begin = jax.tree.map(lambda x: x[0], states[-1]['params'])
    own = np.arange(known + 9) < known
    whole = rat.expand_table(rat_cfg, model, begin, vectors, id_rows=own)
    counts = np.bincount(splits.make_split(shop).train.items, minlength=known + 1)[1:]
    rows = counts >= 3  # others have no row of their own, which `own` above gives to all
    np.testing.assert_allclose(np.asarray(whole['items'])[1:known + 1][rows],
                               trained['items'][0][1:known + 1][rows], atol=1e-5)
    np.testing.assert_array_equal(whole['items'][-1], trained['items'][0][-1])
    self.assertEqual(len(whole['items']), known + 9 + 2)
    np.testing.assert_array_equal(whole['bias'][:known + 1], trained['bias'][0][:known + 1])
    aim = train.load(find_stage(room / 'old', 'ids-sasrec') / 'model.npz')
    np.testing.assert_array_equal(states[-2]['params']['items'][0][:known + 1],
                                  aim['items'][0][:known + 1])
    results = run_files.read_json(room / 'new' / 'results.json')
    self.assertIn(f'knew {known} of {known + 9} items', results['started']['said'])
    cfg.pca.dim = 24
    with self.assertRaisesRegex(ConfigError, 'pca.dim is 24 here and 48 in'):
      llmemb_test.run(cfg, room / 'other')


def noted_states(call):
  """{'params', 'opt'} that each training of whole epochs begins with, which then runs."""
  states, fit = [], epoch_loop.fit_epochs

  def noted(init, *given, **more):
    states.append(jax.tree.map(np.asarray, jax.jit(init)()))
    return fit(init, *given, **more)
  with mock.patch.object(epoch_loop, 'fit_epochs', noted):
    call()
  return states


def first_tree(module, call):
  """What a method that tunes an LLM begins with, and the model's shape. module: its train module.
  call: () -> runs it. The stages before stay in the folder."""
  with mock.patch.object(module, 'fit', side_effect=KeyboardInterrupt) as fit, \
      contextlib.suppress(KeyboardInterrupt):
    call()
  task = fit.call_args.args[0]
  return task.start, task.shape[0]


class SemanticIdTest(parameterized.TestCase):

  @parameterized.parameters('rqvae', 'rkmeans')
  @long
  def test_new_items_get_ids_by_the_old_tokenizer_and_the_rest_stays(self, kind):
    cfg = self.config('tiger')
    cfg.vectors.unit = kind == 'rqvae'
    cfg.semantic_ids.kind = kind
    old, new, states = self.go_on(cfg)
    before, after = (np.load(find_stage(f, 'tokenizer') / 'codes.npy') for f in (old, new))
    np.testing.assert_array_equal(after[:etegrec_test.ITEMS], before)
    vectors = np.load(find_stage(new, 'vectors') / 'vectors.npy')[etegrec_test.ITEMS:]
    tokenizer = find_stage(old, 'tokenizer')
    codes = (plain_codes(dict(np.load(tokenizer / 'tokenizer.npz')), vectors) if kind == 'rqvae'
             else nearest(np.load(tokenizer / 'codebooks.npy'), vectors, unit=True))
    taken = set(map(tuple, before.tolist()))
    for row, found in zip(codes, after[etegrec_test.ITEMS:].tolist(), strict=True):
      suffix = next(n for n in range(9) if (*row, n) not in taken)
      self.assertEqual(tuple(found), (*row, suffix))
      taken.add(tuple(found))
    # The companion that gives vectors goes on too.
    table = dict(np.load(find_stage(old, 'vectors') / 'model.npz'))['items']
    np.testing.assert_array_equal(states[0]['params']['items'][0][:etegrec_test.ITEMS + 1],
                                  table[:etegrec_test.ITEMS + 1])
    self.check_begin(old, states[1], after)

  @long
  def test_etegrec_keeps_ids_and_tokenizer_of_every_seed(self):
    cfg = self.config('etegrec')
    cfg.seeds = 2
    old, new, states = self.go_on(cfg)
    trained = dict(np.load(find_stage(old, 'finetune') / 'model.npz'))
    begin = states[1]['params']
    np.testing.assert_array_equal(begin['table'][:, :etegrec_test.ITEMS + 1], trained['table'])
    for name, value in begin['id']['encoder']['0'].items():
      np.testing.assert_array_equal(value, trained[f'id/encoder/0/{name}'])
    for seed in range(2):
      self.assertLen(np.unique(begin['table'][seed], axis=0), etegrec_test.ITEMS + 3 + 1)
    scores = run_files.read_json(find_stage(old, 'finetune') / 'valid.json')['NDCG@10']
    np.testing.assert_array_equal(np.load(find_stage(new, 'tokenizer') / 'codes.npy'),
                                  begin['table'][int(np.argmax(scores))][1:])
    results = run_files.read_json(new / 'results.json')
    self.assertIn('knew 24 of 27 items; 3 begin untrained', results['started']['said'])
    self.assertNotIn('learned', results['started']['said'])

  def test_what_does_not_fit_is_named(self):
    cfg = self.config('tiger')
    self.old = finished(cfg, lambda work, *_: train.save(
        work.folder / 'model.npz', {'table': np.zeros((1, 25, 3))}), etegrec_train.settings)
    cfg = self.later(cfg)
    catalog = loading.load_for_config(cfg).catalog
    self.assertIsNotNone(etegrec_train.open_start(cfg, catalog))
    for name, value, said in (
        ('model.width', 32, 'model.width is 32 here and 16 in'),
        ('semantic_ids.size', 16, 'semantic_ids.size is 16 here and 8 in'),
        ('variant', 'etegrec', "variant is 'etegrec' here and 'tiger' in"),
        ('vectors.source', 'text', "vectors.source is 'text' here and 'train' in"),
        ('vectors.model.width', 4, 'vectors.model.width is 4 here and 8 in'),
        ('vectors.unit', True, 'vectors.unit is True here and False in'),
        ('semantic_ids.steps', 7, ''), ('model.dropout', .3, ''), ('model.max_history', 3, '')):
      other = cfg.copy_and_resolve_references()
      experiment.changed(other, {name: value})
      if not said:
        self.assertIsNotNone(etegrec_train.open_start(other, catalog), name)
        continue
      with self.assertRaisesRegex(ConfigError, said):
        etegrec_train.open_start(other, catalog)

  def test_an_index_file_must_keep_the_codes_of_old_items(self):
    old, new = np.array([[0, 1], [2, 0]]), np.array([[0, 1], [1, 0], [3, 3]])
    with self.assertRaisesRegex(DataError, "'b' other codes than the earlier run"):
      etegrec_update.check_kept('x.json', ['a', 'b', 'c'], old, new)
    etegrec_update.check_kept('x.json', ['a', 'b', 'c'], old[:1], new)
    with self.assertRaisesRegex(DataError, 'gives 3 codes an item, the earlier run had 2'):
      etegrec_update.check_kept('x.json', ['a'], old, np.zeros((3, 3)))

  def setUp(self):
    super().setUp()
    home = pathlib.Path(self.create_tempdir().full_path)
    self.home, self.old, self.new = home, home / 'old', home / 'new'

  def config(self, way):
    made = tiger_beauty if way == 'tiger' else etegrec_scientific
    cfg = etegrec_test.small(made.get_config('fusion=none'),
                             etegrec_test.shop_folder(self.create_tempdir()))
    cfg.vectors.train.epochs, cfg.semantic_ids.steps, cfg.train.epochs = 2, 40, 2
    if way == 'etegrec':
      cfg.finetune.epochs = 1
    return cfg

  def later(self, cfg):
    """The config of a run on a later shop: three new items, and a purchase more of everybody."""
    cfg = cfg.copy_and_resolve_references()
    folder = self.home / 'later'
    folder.mkdir(exist_ok=True)
    source = pathlib.Path(cfg.data)
    new = [{'item_id': f'n{n}', 'title': f'Trays shade{n}', 'categories': ['Shop', 'Trays']}
           for n in range(3)]
    (folder / 'items.jsonl').write_text((source / 'items.jsonl').read_text() + ''.join(
        json.dumps(row) + '\n' for row in new))
    rows = map(json.loads, (source / 'sequences.jsonl').read_text().splitlines())
    (folder / 'sequences.jsonl').write_text(''.join(
        json.dumps({**row, 'items': [*row['items'], f'n{n % 3}']}) + '\n'
        for n, row in enumerate(rows)))
    cfg.data, cfg.start.run = str(folder), str(self.old)
    return cfg

  def go_on(self, cfg):
    """A run, and one that goes on from it. -> their folders, what its trainings begin with"""
    etegrec_test.run(cfg, self.old, 1)
    cfg = self.later(cfg)
    states = noted_states(lambda: etegrec_test.run(cfg, self.new, 1))
    ask, _ = recommend.load(self.new)
    items, _ = ask([['i3', 'n1']], 5, allowed={'n0', 'n1', 'n2', 'i9'})
    self.assertCountEqual(items[0], ['n0', 'n2', 'i9'])
    return self.old, self.new, states

  def check_begin(self, old, state, table):
    """Scores of old items are those of the old model, however the table has grown."""
    config, _, cfg, params = etegrec_inference.open_run(old)
    begin = jax.tree.map(lambda x: x[0], state['params'])
    np.testing.assert_array_equal(begin['table'][1:], table)
    histories, decode = [np.array([3, 4]), np.array([9])], ConfigDict({'beams': 6, 'batch': 2})
    want, found = (beam_ranking.rank_items(
        cfg, p['rec'], p['table'], histories, config.model.max_history, decode,
        allowed=allowed) for p, allowed in (
            (params, None), (begin, np.arange(len(table)) < etegrec_test.ITEMS)))
    np.testing.assert_array_equal(found[0], want[0])
    np.testing.assert_allclose(found[1], want[1], atol=1e-5)
    for leaf in jax.tree.leaves(state['opt']):
      self.assertFalse(leaf.any())


def plain_codes(tensors, x):
  """Codes of an RQ-VAE's tensors, in plain numpy."""
  layers = sum(name.startswith('encoder/') and name.endswith('/w') for name in tensors)
  for n in range(layers):
    x = x @ tensors[f'encoder/{n}/w'] + tensors[f'encoder/{n}/b']
    x = np.maximum(x, 0) if n + 1 < layers else x
  return nearest(tensors['codebooks'], x)


def nearest(codebooks, x, unit=False):
  """Codes by the nearest center of what the levels before left over."""
  codes, rest = [], x.astype(np.float64)
  for centers in codebooks.astype(np.float64):
    if unit:
      rest = rest / np.linalg.norm(rest, axis=1, keepdims=True)
    codes.append(((rest[:, None] - centers[None]) ** 2).sum(-1).argmin(1))
    rest = rest - centers[codes[-1]]
  return np.stack(codes, 1).tolist()


if __name__ == '__main__':
  absltest.main()
