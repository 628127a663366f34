"""Result files of an evaluation: means over seeds, groups, lists, the closing table."""
import dataclasses
import io
import json
import pathlib
import tempfile
import types
from unittest import mock

import numpy as np
from absl.testing import absltest
from rich.console import Console

from recjax import experiment
from recjax.data import dataset, loading, splits
from recjax.errors import DataError
from recjax.evaluation import compare, ranking, slices
from recjax.evaluation import results as results_lib
from recjax.methods import reclm
from recjax.methods.bigrec import instruction_data
from recjax.methods.reclm import evaluate as lists
from recjax.report import result_tables, user_examples
from tests import beside_rows, told

ROOT = pathlib.Path(__file__).parents[2]


def shop(users=6, items=8):
  rng = np.random.default_rng(0)
  rows = [rng.permutation(items)[:5] + 1 for _ in range(users)]
  goods = dataset.Catalog(tuple(f'i{i}' for i in range(1, items + 1)),
                          {'title': [f'title {i}' for i in range(1, items + 1)]})
  offsets = np.arange(users + 1, dtype=np.int64) * 5
  data = dataset.Interactions(tuple(f'u{u}' for u in range(users)),
                              np.concatenate(rows).astype(np.int32), offsets)
  return dataset.make_dataset('x', goods, data)


class OutcomeTest(absltest.TestCase):

  def saved(self, **ranks):
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    data = shop()
    split = splits.leave_one_out(data.interactions)
    lists = np.array([[1, 2, 0]] * 6, np.int32), np.array([[2.0, 1, -np.inf]] * 6, np.float32)
    return results_lib.save(
      self.folder, data, split, 'ours', ranks, lists, 'by hand', [3, 4], note='n'
    )

  def test_users_count_with_their_mean_over_seeds(self):
    base = np.arange(6)
    both = np.array([[0] * 6, [20] * 6])
    results = self.saved(random=base, ours=both)
    self.assertEqual(results, json.loads((self.folder / 'results.json').read_text()))
    self.assertEqual(list(results['rows']), ['ours', 'random'])
    self.assertEqual(results['rows']['ours']['HR@10']['value'], .5)
    self.assertEqual([f['HR@10'] for f in results['by_seed'].values()], [1, 0])
    self.assertEqual(list(results['by_seed']), ['3', '4'])
    self.assertAlmostEqual(results['sd_of_seeds']['HR@10'], .5 ** .5)
    self.assertEqual(list(results['tests']), ['ours>random'])
    self.assertEqual((results['note'], results['protocol'], results['seeds']),
                     ('n', 'by hand', [3, 4]))
    users, rows = results_lib.read_ranks(self.folder / 'ranks.parquet')
    self.assertEqual((len(users), set(rows)), (6, {'ours:seed=3', 'ours:seed=4', 'random'}))
    np.testing.assert_array_equal(rows['ours:seed=4'], both[1])

  def test_groups_lists_and_cold_targets_by_hand(self):
    results = self.saved(ours=np.zeros(6, int), random=np.arange(6))
    cells = results['rows']['ours']
    split = splits.leave_one_out(shop().interactions)
    sizes = [cells[f'HR@10:{g}']['n'] for g in ('head', 'mid', 'tail') if f'HR@10:{g}' in cells]
    self.assertEqual(sum(sizes), 6)
    self.assertEqual(cells['HR@10:short']['n'], 6)  # all histories have the median length
    groups = results_lib.read_groups(self.folder / 'ranks.parquet')
    self.assertEqual(sum('tail' in of for of in groups.values()),
                     cells.get('HR@10:tail', {'n': 0})['n'])
    self.assertTrue(all('short' in of and 'long' not in of for of in groups.values()))
    self.assertTrue(all(sum(name in slices.NAMES[:3] for name in of) == 1
                        for of in groups.values()))
    self.assertEqual(sum('cold' in of for of in groups.values()), results['cold_targets'])
    self.assertEqual(results['lists']['coverage'], 2 / 8)
    trained = set(split.train.items.tolist())
    self.assertEqual(results['cold_targets'],
                     sum(t not in trained for t in split.test.targets.tolist()))
    self.assertIsNone(results['sd_of_seeds']['HR@10'])

  def test_how_figures_change_over_months(self):
    hit = np.array([0, 0, 1, 1, 1, 1]) * 50  # the first two users are found, the others are not
    self.assertNotIn('trend', self.saved(ours=hit))
    days = np.array([0, 30, 60, 90, 120, 150])
    late = np.repeat(days, 5) + np.tile([-4, -3, -2, -1, 0], 6)
    timed = shop()
    timed = dataclasses.replace(timed, interactions=dataclasses.replace(
        timed.interactions, times=10**9 + late * 86400))
    with mock.patch(f'{__name__}.shop', lambda: timed):
      found = self.saved(ours=hit, random=np.zeros(6, int))
      cell = found['trend']['ours']['HR@10']
      self.assertAlmostEqual(cell['value'], np.polyfit(days / 30, hit == 0, 1)[0])
      self.assertBetween(cell['value'], cell['low'], cell['high'])
      self.assertEqual(found['trend']['random']['NDCG@10']['value'], 0)
      section = result_tables.groups_section(found, 'ours')
      self.assertIn('every 30 days from the first target on HR@10 of ours changes by -0.2286',
                    section.body)
      timed.interactions.times[:] //= 3  # two months and less
      self.assertNotIn('trend', self.saved(ours=hit))

  def test_the_closing_table_says_rows_tests_and_protocol(self):
    self.saved(ours=np.array([[0] * 6, [1] * 6]), random=np.arange(6) + 20)
    said = []
    work = types.SimpleNamespace(console=Console(file=io.StringIO(), width=80), log=said.append)
    results_lib.show(work, self.folder)
    text = '\n'.join(said)
    for words in ('ours', 'random', '2 seeds', 'by hand', '1.0000 [1.0000, 1.0000]'):
      self.assertIn(words, text)

  def test_a_user_of_several_cases_counts_once(self):
    data = shop(3)
    cases = splits.Cases(np.array([0, 0, 0, 2], np.int32), dataset.flatten([[1], [1], [1], [2]]),
                         np.array([2, 3, 4, 5], np.int32))
    split = splits.Split(data.interactions, None, cases, '4 test cases')
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    lists = np.tile(np.arange(1, 4), (4, 1)), np.ones((4, 3), np.float32)
    ranks = {'a': np.array([0, 50, 50, 0]), 'b': np.array([0, 0, 0, 50])}
    saved = results_lib.save(folder, data, split, 'a', ranks, lists, '4 test cases', ks=(1,))
    cells = {row: saved['rows'][row]['HR@1'] for row in ranks}
    self.assertAlmostEqual(cells['a']['value'], (1 / 3 + 1) / 2)
    self.assertAlmostEqual(cells['b']['value'], .5)
    self.assertEqual((cells['a']['n'], saved['users']), (2, 2))
    keys, rows = results_lib.read_ranks(folder / 'ranks.parquet')
    self.assertEqual(keys, (('u0', 1), ('u0', 2), ('u0', 3), ('u2', 1)))
    self.assertEqual(rows['b'].tolist(), [0, 0, 0, 50])
    table = compare.compare([folder], ks=(1,))
    self.assertEqual(table['rows'][f'{folder.name}:a']['HR@1'], cells['a'])
    self.assertEqual((table['users'], table['left_out']), (2, {folder.name: 0}))
    self.assertEqual(set(results_lib.read_groups(folder / 'ranks.parquet')), set(keys))
    names, _ = user_examples.read_ranks(folder, 'a', 0)
    self.assertEqual(names, ['u0, case 1', 'u0, case 2', 'u0, case 3', 'u2, case 1'])
    self.assertEqual(user_examples.read_lists(folder, names[1:2]), {
        'u0, case 2': [('i1', 1.0), ('i2', 1.0), ('i3', 1.0)]})

  @mock.patch.object(slices, 'FEWEST', 1)
  def test_differences_by_group_are_means_over_users(self):
    data, users = shop(3), np.array([0] * 6 + [1, 2], np.int32)
    cases = splits.Cases(users, dataset.flatten([[1]] * 6 + [[2], [3]]),
                         np.array([2, 3, 4, 5, 6, 2, 5, 6], np.int32) % 6 + 1)
    split = splits.Split(data.interactions, None, cases, '8 test cases')
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    lists = np.tile(np.arange(1, 4), (8, 1)), np.ones((8, 3), np.float32)
    ranks = {'a': np.array([0] * 6 + [50, 50]), 'b': np.array([50] * 6 + [0, 50])}
    results_lib.save(folder, data, split, 'a', ranks, lists, '8 test cases')
    found = compare.compare([folder], against='b')['groups']
    some = 0
    for name, mask in compare._masks({'x': compare._read_run(folder)}, [
        *results_lib.read_ranks(folder / 'ranks.parquet')[0]]).items():
      gaps = [np.mean((ranks['a'] < 10)[mask & (users == user)]) - np.mean(
          (ranks['b'] < 10)[mask & (users == user)]) for user in np.unique(users[mask])]
      cell = found['rows'][f'{folder.name}:a'][name]
      self.assertAlmostEqual(cell['value'], np.mean(gaps))
      self.assertEqual(found['sizes'][name], len(gaps))
      some += mask.sum() > len(gaps)
    self.assertGreater(some, 0)

  def test_a_user_wanted_several_items_is_one_question(self):
    data = shop(2)
    cases = splits.Cases(np.array([0, 0, 1], np.int32), dataset.flatten([[1], [1], [2]]),
                         np.array([2, 3, 5], np.int32), as_set=True)
    split = splits.Split(data.interactions, None, cases, '3 test cases')
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    lists = np.tile(np.arange(1, 4), (3, 1)), np.ones((3, 3), np.float32)
    saved = results_lib.save(folder, data, split, 'a', {'a': np.array([0, 1, 4])}, lists,
                             '3 test cases', ks=(3,))
    self.assertAlmostEqual(saved['rows']['a']['NDCG@3']['value'], .5)  # a perfect list, and a miss
    found = compare.compare([folder], ks=(3,))['rows'][f'{folder.name}:a']
    self.assertEqual(found['NDCG@3'], saved['rows']['a']['NDCG@3'])
    self.assertAlmostEqual(compare.average([folder], ks=(3,))['NDCG@3']['value'], .5)

  def test_ranks_of_other_users_are_refused(self):
    for wrong in (np.zeros(5, int), np.zeros((3, 6), int)):
      with self.assertRaisesRegex(DataError, 'row ours has ranks'):
        self.saved(ours=wrong)

  def test_a_sentence_about_other_users_is_refused(self):
    data = shop()
    split = splits.leave_one_out(data.interactions)
    rows, said = splits.sample_cases(split.test, 4, split.protocol)
    few = dataclasses.replace(split, test=split.test.select(rows))
    lists = np.ones((4, 1), np.int32), np.ones((4, 1), np.float32)
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    give = lambda protocol: results_lib.save(  # noqa: E731
        folder, data, few, 'ours', {'ours': np.arange(4)}, lists, ranking.protocol(8, protocol))
    for wrong in (split.protocol, 'the rows of valid.jsonl and test.jsonl; 6 test rows'):
      with self.assertRaisesRegex(DataError, '4 test users were ranked, and the protocol says'):
        give(wrong)
    self.assertEqual(told.check(give(said)), (4, 6))
    self.assertEqual(told.check(give('the records of x; 4 test records')), (4, None))

  def test_recommenders_that_write_lists_say_whom_they_asked(self):
    data = shop()
    split = splits.leave_one_out(data.interactions)
    rows, said = splits.sample_cases(split.test, 4, split.protocol)
    few = dataclasses.replace(split, test=split.test.select(rows), protocol=said)
    items = np.array([[1, 2, 3]] * 4, np.int32)
    for kind in reclm.GROUNDINGS:
      cfg = experiment.read_config(f'{ROOT}/configs/reclm_scientific.py:grounding={kind}')
      cfg.decode.num_items, cfg.eval.classical = 3, kind == 'cgen'
      work = types.SimpleNamespace(folder=pathlib.Path(self.create_tempdir().full_path), log=print)
      lists.save_results(
        work,
        cfg,
        data,
        few,
        [[1, 2]] * 4,
        (items, items.astype(np.float32)),
        None,
        {'rates': {'NonExistRate@3': 0, 'RepeatRate@3': 0}},
      )
      results = json.loads((work.folder / 'results.json').read_text())
      self.assertEqual(told.check(results), (4, 6))
      if cfg.eval.classical:
        beside_rows.check(self, work.folder, data, masked=True)

  def test_every_config_says_how_many_it_asks(self):
    data = loading.load_data('sample:1:120')
    for path in sorted((ROOT / 'configs').glob('*.py')):
      cfg = experiment.read_config(f'{path}:data=sample:1:120')
      split, most = splits.leave_one_out(data.interactions), 0
      if cfg.method == 'bigrec':
        cases = instruction_data.load(cfg.data, cfg.samples).cases
        split, most = splits.Split(cases.known, None, cases.test, cases.protocol), 50
      elif cfg.method == 'sequential':
        split = splits.split_for_config(data, cfg.eval)
      elif cfg.method == 'reclm':
        most = 50
      rows, said = splits.sample_cases(split.test, most, split.protocol)
      found = told.ASKED.search(ranking.protocol(len(data.catalog), said))
      self.assertEqual(int(found[1]), len(rows), path.name)
      self.assertEqual(len(rows), most or len(split.test), path.name)


if __name__ == '__main__':
  absltest.main()
