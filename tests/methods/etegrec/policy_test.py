"""Policy tuning of semantic IDs: which rows it asks for, and the whole of it on a tiny shop."""
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict
from rich.console import Console

from configs import etegrec_scientific, tiger_beauty
from recjax import recommend, sweep
from recjax.data.dataset import Interactions
from recjax.data.loading import load_data
from recjax.errors import ConfigError, DataError, UserError
from recjax.methods.etegrec import policy, train
from recjax.run_files import read_json
from recjax.training import checkpoint, workdir
from recjax.training.workdir import find_stage, open_work
from tests import devices
from tests.long import long
from tests.methods.etegrec_test import run, shop_folder, small

TABLE = np.array([[-1, -1], [0, 0], [0, 1], [1, 0], [1, 1], [2, 0]], np.int32)
PLACE = np.array([4, 3, 2, 1, 0], np.int32)  # of items 1..5 in a trie of another order
SEQUENCES = [[1, 2, 3, 1, 4], [5], [2, 2, 3], [4, 3]]


def requests(mask_history=True, batch=3, interests=None):
  offsets = np.cumsum([0, *map(len, SEQUENCES)])
  data = Interactions(['a', 'b', 'c', 'd'], np.concatenate(SEQUENCES).astype(np.int32), offsets)
  cfg = ConfigDict({'mask_history': mask_history, 'model': {'max_history': 3},
                    'policy': {'batch': batch}})
  return policy.Requests(data, TABLE, cfg, 3, PLACE, interests, 0)


class RequestsTest(parameterized.TestCase):

  @parameterized.parameters(True, False)
  def test_an_epoch_asks_for_every_next_item_once(self, mask_history):
    """Beside the prefixes of plain lists."""
    wanted = []
    for items in SEQUENCES:
      for at in range(1, len(items)):
        if not (mask_history and items[at] in items[:at]):
          wanted.append((tuple(items[:at]), items[at]))
    made = requests(mask_history)
    self.assertLen(made, len(wanted))
    self.assertEqual(made.repeats, 7 - len(wanted))
    found = []
    for step in range(made.steps):
      batch = made[step]
      for row in range(3):
        length = batch['lengths'][row]
        found.append((tuple(batch['tokens'][row, :length].tolist()), int(batch['target'][row])))
        self.assertEqual(batch['tokens'][row, length:].tolist(), [0] * (3 - length))
        np.testing.assert_array_equal(
          batch['target_tokens'][row], TABLE[batch['target'][row]] + [0, 3])
    self.assertCountEqual(found[:len(wanted)], [(h[-3:], target) for h, target in wanted])

  def test_taken_places_are_those_of_the_whole_history(self):
    made = requests(batch=1)
    for step in range(made.steps):
      batch = made[step]
      target = int(batch['target'][0])
      history = next(s[:s.index(target)] for s in SEQUENCES
                     if target in s[1:] and tuple(s[:s.index(target)][-3:])
                     == tuple(batch['tokens'][0, :batch['lengths'][0]].tolist()))
      taken = batch['taken'][0]
      real = taken[taken < 5]
      self.assertEqual(real.tolist(), sorted({int(PLACE[i - 1]) for i in history}))
      self.assertTrue((np.diff(taken[:len(real) + 1]) > 0).all())

  def test_a_step_is_a_function_of_its_number(self):
    one, other = requests(), requests()
    for step in (5, 0, 3):
      for name, array in one[step].items():
        np.testing.assert_array_equal(array, other[step][name])
    self.assertFalse(all(np.array_equal(one[0][k], one[one.steps][k]) for k in one[0]))

  def test_interests_stand_beside_their_own_rows(self):
    rows = np.arange(7)[:, None] + 1
    vectors = np.arange(8, dtype=np.float32)[:, None]
    made = requests(interests=(rows, vectors), batch=1)
    plain = [(tuple(s[:at][-3:]), s[at]) for s in SEQUENCES for at in range(1, len(s))]
    for step in range(made.steps):
      batch = made[step]
      asked = (tuple(batch['tokens'][0, :batch['lengths'][0]].tolist()), int(batch['target'][0]))
      self.assertEqual(int(batch['interests'][0, 0, 0]), plain.index(asked) + 1)
      self.assertTrue(batch['present'].all())

  def test_nothing_to_ask_for(self):
    data = Interactions(['a'], np.array([1, 1], np.int32), np.array([0, 2]))
    cfg = ConfigDict({'mask_history': True, 'model': {'max_history': 3}, 'policy': {'batch': 1}})
    with self.assertRaisesRegex(DataError, 'mask_history'):
      policy.Requests(data, TABLE, cfg, 3, PLACE, None, 0)


class ConfigTest(absltest.TestCase):

  def test_arguments(self):
    self.assertEqual(tiger_beauty.get_config().policy.loss, 'none')
    published = tiger_beauty.get_config('policy=minionerec').policy
    self.assertEqual((published.loss, published.rollout, published.advantage, published.flat),
                     ('grpo', 'beams', 'std', 'keep'))
    self.assertEqual(etegrec_scientific.get_config('policy=sdpo').policy.loss, 'sdpo')
    with self.assertRaisesRegex(ValueError, 'policy'):
      tiger_beauty.get_config('policy=ppo')

  def test_bad_settings_end_a_run_before_it_begins(self):
    cfg = tiger_beauty.get_config('policy=grpo')
    cfg.policy.ratio = 'token'
    with self.assertRaisesRegex(ConfigError, 'policy.ratio'):
      train.check(cfg)


def tuned(data, **changes):
  """A config in which every stage takes a moment, tuning too."""
  cfg = small(tiger_beauty.get_config('policy=grpo'), data)
  cfg.train.epochs = 2
  cfg.policy.update(steps=6, batch=16, rows=4, lr=3e-3, eval_every=3, log_every=2, save_every=2,
                    patience=0)
  cfg.policy.update(changes)
  return cfg


class WholeTest(absltest.TestCase):

  @long
  def test_a_tuned_run_and_a_killed_one(self):
    """The whole run; then its tuning again, killed at both of its checkpoints, ends alike; then one
    that loses, which is not kept."""
    folder = self.create_tempdir().full_path
    cfg = tuned(shop_folder(self.create_tempdir()))
    results = run(cfg, folder)
    self.look(folder, results)
    whole = np.load(find_stage(folder, 'policy') / 'model.npz')
    dataset = load_data(cfg.data)
    inputs = [dataset, *(find_stage(folder, name) for name in ('vectors', 'tokenizer')), None,
              find_stage(folder, 'train')]
    saved = checkpoint.save

    def save(checkpoints, step, state):
      saved(checkpoints, step, state)
      raise UserError('killed')
    killed = self.create_tempdir().full_path

    def again(cfg, folder):
      with open_work(folder, None, devices.mesh(data=2, fsdp=1, model=1)) as work:
        work.console = Console(quiet=True)
        return work.stage('policy', policy.stage, policy.settings(cfg), *inputs)
    cfg.policy.save_every = 4
    for _ in range(2):
      with mock.patch.object(checkpoint, 'save', save), self.assertRaisesRegex(UserError, 'killed'):
        again(cfg, killed)
    found = np.load(again(cfg, killed) / 'model.npz')
    for name in whole:
      np.testing.assert_array_equal(whole[name], found[name], err_msg=name)
    cfg.policy.update(lr=1.0, patience=3, nll=0.0, steps=3)
    loses = again(cfg, self.create_tempdir().full_path)
    self.assertEqual(read_json(loses / 'valid.json')['kept'], [False])
    np.testing.assert_array_equal(np.load(loses / 'model.npz')['rec/codes'],
                                  np.load(inputs[-1] / 'model.npz')['rec/codes'])

  def look(self, folder, results):
    """What a tuned run leaves."""
    self.assertEqual(list(results['rows'])[:2], ['tiger:grpo', 'tiger'])
    self.assertIn('tiger:grpo>tiger', results['tests'])
    name, value, more = sweep.validation(pathlib.Path(folder), workdir.saved_config(folder))
    self.assertEqual((name, more), ('NDCG@10', True))
    self.assertAlmostEqual(value, results['tuning']['validation']['after'][0], places=5)
    self.assertEqual(results['tuning']['before'].keys(), results['tuning']['after'].keys())
    page = (pathlib.Path(folder) / 'report.html').read_text()
    for words in ('the same before tuning', 'What tuning changed', 'most frequent first item',
                  'Divergence from before'):
      self.assertIn(words, page)
    weights = [np.load(find_stage(folder, name) / 'model.npz') for name in ('train', 'policy')]
    self.assertFalse(np.array_equal(weights[0]['rec/codes'], weights[1]['rec/codes']))
    np.testing.assert_array_equal(weights[0]['table'], weights[1]['table'])
    ask, _ = recommend.load(folder)
    self.assertLen(set(ask([['i3', 'i4']], 5)[0][0]), 5)


if __name__ == '__main__':
  absltest.main()
