"""Every method under a global temporal split: nothing that comes after the cut is learned from."""
import contextlib
import dataclasses
import pathlib
import re
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recjax import experiment, methods, recommend, run_files
from recjax.data import dataset, loading, splits
from recjax.errors import ConfigError, DataError
from recjax.evaluation import compare
from recjax.methods.sequential import on_disk
from recjax.split_rule import SplitRule
from recjax.training import auxiliary_recommender, sequential, workdir
from tests import devices
from tests.long import long

RULE = SplitRule('global_time', '0.8', validation='users', refit=False)
LLM = dict(tiny=dict(vocab=512, width=32, layers=1, ffn=64, heads=2, kv_heads=1, epochs=0.2,
                     row_tokens=128))
COMPANION = dict(train=dict(epochs=2, batch=64), model=dict(width=16, hidden=16, layers=1))
SMALL = {
    'sequential_scientific': dict(COMPANION),
    'betag_scientific': dict(LLM, sasrec=COMPANION, train=dict(epochs=0.2, row_tokens=128),
                             decode=dict(beams=2, groups=2, new_tokens=6, batch=64)),
    'bigrec_games': dict(LLM, assist=COMPANION, decode=dict(beams=2, new_tokens=8),
                         train=dict(epochs=1, sample=64, valid_sample=8, row_tokens=256),
                         eval=dict(max_valid_users=16, max_test_users=24)),
    'd3_games': dict(LLM, assist=COMPANION, decode=dict(beams=10, alphas=(1.0, 0.5)),
                     train=dict(epochs=1, sample=64, valid_sample=8, row_tokens=256),
                     eval=dict(max_valid_users=12, max_test_users=12)),
    'reclm_scientific': dict(LLM, teacher=COMPANION, decode=dict(new_tokens=64),
                             train=dict(epochs=1, sample=48, valid_users=8, row_tokens=512),
                             eval=dict(users=12, rounds=2, answer_tokens=8, cross_users=4)),
    'llmemb_scientific': dict(LLM, **COMPANION, base=COMPANION['model'], pca=dict(dim=16),
                              scft=dict(steps=3, batch=16), rat=dict(ablations=())),
    'tiger_beauty': dict(vectors=COMPANION, train=dict(epochs=1, valid_users=20),
                         semantic_ids=dict(hidden=(16,), width=8, size=16, steps=20, eval_every=10),
                         model=dict(width=16, layers=1, decoder_layers=1, heads=2, head_dim=8,
                                    ffn=16), decode=dict(beams=10)),
}
SMALL['etegrec_scientific'] = {**SMALL['tiger_beauty'],
                               'train': dict(epochs=2, cycle=2, valid_users=20),
                               'finetune': dict(epochs=1)}
# What a method learns; files of the evaluation and of answers to test users are not.
LEARNED = ('model.npz', 'adapter.npz', 'adapter_model.safetensors', 'vectors.npy', 'ids.npy',
           'inters.train.json', 'raw_betags.json')
NOT_LEARNED = re.compile('-evaluate|-interests')  # the latter hold texts of test histories


def shop():
  return loading.load_data('sample:3:300')


def later_items_swapped(data):
  """The same shop, in which other items that training knows too come after the cut."""
  split = splits.global_time(data.interactions, RULE)
  known = np.zeros(len(data.interactions.items), bool)
  for user, length in enumerate(split.for_choice.lengths()):
    start = data.interactions.offsets[user]
    cut = max(length, int((data.interactions.times[start:data.interactions.offsets[user + 1]]
                           <= np.quantile(data.interactions.times, .8)).sum()))
    known[start:start + cut] = True
  items = data.interactions.items.copy()
  items[~known] = np.random.default_rng(0).choice(items[known], int((~known).sum()))
  return dataset.make_dataset(data.name, data.catalog,
                              dataclasses.replace(data.interactions, items=items))


class Trained(Exception):
  """A method comes to its evaluation."""


class MethodsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.room = pathlib.Path(self.create_tempdir().full_path)

  def config(self, name, data, **rule):
    cfg = experiment.read_config(f'{name}:split=global_time,data={data}')
    for group, changes in SMALL[name].items():
      for key, value in changes.items():
        if isinstance(value, dict):
          cfg[group][key].update(value)
        else:
          cfg[group][key] = value
    cfg.eval.classical = False
    cfg.mesh.data = 1
    cfg.split.update({'at': RULE.at, 'validation': RULE.validation, 'refit': RULE.refit, **rule})
    return cfg

  def learned(self, name, data, folder, judged=True, **rule):
    """Runs a method on data. judged: whether to the end; else it stops where it is evaluated. ->
    what it has learned, by file"""
    loading.save_data(data, self.room / f'{folder}-data')
    cfg = self.config(name, self.room / f'{folder}-data', **rule)
    facts = {'command': 'test', 'devices': '1', 'versions': {}, 'revision': '', 'overrides': {}}
    with workdir.open_work(self.room / folder, {'config': cfg.to_dict(), 'facts': facts},
                           devices.mesh(data=1, fsdp=1, model=1)) as work:
      stage = work.stage

      def until_evaluation(name, *given, **more):
        if name == 'evaluate':
          raise Trained
        return stage(name, *given, **more)
      with mock.patch.object(work, 'stage', stage if judged else until_evaluation), \
          contextlib.suppress(Trained):
        methods.find(cfg.method, 'the config').run(cfg, work)
    return {path.relative_to(self.room / folder): path.read_bytes()
            for path in sorted((self.room / folder / 'stages').rglob('*'))
            if path.name in LEARNED and not NOT_LEARNED.search(str(path))}

  def check(self, name, **rule):
    before = self.learned(name, shop(), 'before', **rule)
    after = self.learned(name, later_items_swapped(shop()), 'after', judged=False, **rule)
    self.assertNotEmpty(before)
    self.assertEqual(before.keys(), after.keys())
    for path, content in before.items():
      self.assertEqual(content, after[path], f'{path} knows what comes after the cut')
    results = run_files.read_json(self.room / 'before' / 'results.json')
    self.assertStartsWith(results['protocol'], 'global time: train to ')
    return results

  @long
  def test_sasrec_with_a_refit(self):
    results = self.check('sequential_scientific', refit=True, validation='time')
    self.assertIn('validation by time, refitted', results['protocol'])
    once = self.learned('sequential_scientific', shop(), 'once', validation='time', refit=False)
    again = next((self.room / 'before' / 'stages').glob('*train*')) / 'model.npz'
    self.assertNotEqual(list(once.values()), [again.read_bytes()])  # it has seen more
    with self.assertRaisesRegex(DataError, 'differ in their protocol.*not refitted'):
      compare.compare([self.room / 'before', self.room / 'once'])
    recommender, data = recommend.load(self.room / 'before')[:2]
    items, _ = recommender([[data.catalog.id_of(1), data.catalog.id_of(2)]], 5)
    self.assertLen(items[0], 5)
    cfg = self.config('betag_scientific', self.room / 'before-data')
    with self.assertRaisesRegex(DataError, 'trained on other data'):
      auxiliary_recommender.adopt(None, str(self.room / 'before'), loading.load_for_config(cfg),
                                  'sasrec.source', 'none')

  @long
  def test_a_refit_is_the_training_itself_up_to_the_cut(self):
    """Equal to one training on all up to the cut that keeps the epoch chosen before."""
    self.learned('sequential_scientific', shop(), 'twice', validation='time', refit=True)
    work = self.room / 'twice'
    stage = next((work / 'stages').glob('*train*'))
    epoch = run_files.read_json(stage / 'valid.json')['epoch'][0]
    data = loading.load_for_config(self.config('sequential_scientific', self.room / 'twice-data',
                                               validation='time', refit=True))
    split = splits.make_split(data)
    folder = self.room / 'direct'
    cfg = self.config('sequential_scientific', self.room / 'twice-data')
    judged = iter(range(1, 99))
    with workdir.open_work(folder, {'config': cfg.to_dict(), 'facts': {}},
                           devices.mesh(data=1, fsdp=1, model=1)) as opened:
      opened.current = 'train'
      best, _, _ = sequential.fit(
          opened, cfg, len(data.catalog), dataclasses.replace(split, refit_from=None),
          lambda params: np.array([float(next(judged) == epoch)], np.float32))
    sequential.save(folder / 'model.npz', best)
    self.assertEqual((folder / 'model.npz').read_bytes(), (stage / 'model.npz').read_bytes())

  def test_records_are_split_by_leave_one_out(self):
    cfg = self.config('sequential_scientific', 'anywhere')
    with self.assertRaisesRegex(ConfigError, "split.kind='global_time' needs all users in memory"):
      on_disk.check(cfg, None)

  @parameterized.parameters(*(name for name in SMALL if not name.startswith('sequential')))
  @long
  def test_nothing_after_the_cut_is_learned(self, name):
    if name not in ('betag_scientific', 'd3_games', 'tiger_beauty'):
      self.check(name)
      return
    results = self.check(name, target='successive')  # every later item is asked for
    self.assertIn('successive targets', results['protocol'])
    row = next(iter(results['rows'].values()))
    self.assertEqual(row['HR@10']['n'], results['users'])


if __name__ == '__main__':
  absltest.main()
