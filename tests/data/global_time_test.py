"""One moment for everybody: who learns from what, who is asked for what, and what is refused."""
import dataclasses
import pathlib

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax import experiment, split_rule
from recjax.data import dataset, loading, splits
from recjax.data.dataset import Catalog, Interactions
from recjax.errors import ConfigError, DataError
from recjax.split_rule import SplitRule
from recjax.training import workdir
from tests.long import examples

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
DAY = 86400


def interactions(rows):
  """rows: (item, time) of each user, in order."""
  items, offsets = dataset.flatten([[item for item, _ in row] for row in rows])
  times = np.array([time for row in rows for _, time in row], np.int64)
  return Interactions(tuple(f'u{u}' for u in range(1, len(rows) + 1)), items, offsets, times)


def by_hand():
  """Four users, five items a..e, as user-item-time."""
  events = ('1a10', '1b20', '1c90', '2a15', '2d60', '2b85', '2e95', '3a88', '3b92', '4c30', '4a40',
            '4d80')
  rows = [[], [], [], []]
  for user, item, *time in events:
    rows[int(user) - 1].append((' abcde'.index(item), int(''.join(time))))
  return interactions([sorted(row, key=lambda e: e[1]) for row in rows])


def named(cases):
  return [(int(user) + 1, ''.join(' abcde'[i] for i in cases.history(case)), ' abcde'[target])
          for case, (user, target) in enumerate(zip(cases.users, cases.targets))]


def rule(target='last', validation='time', at='0.5', refit=True, seed=0):
  return SplitRule('global_time', at, target, validation, refit, seed)


class ByHandTest(parameterized.TestCase):

  @parameterized.parameters(
      ('first', [(1, 'ab', 'c'), (2, 'ad', 'b'), (4, 'ca', 'd')]),
      ('last', [(1, 'ab', 'c'), (2, 'adb', 'e'), (4, 'ca', 'd')]),
      ('successive', [(1, 'ab', 'c'), (2, 'ad', 'b'), (2, 'adb', 'e'), (4, 'ca', 'd')]),
      ('all', [(1, 'ab', 'c'), (2, 'ad', 'b'), (2, 'ad', 'e'), (4, 'ca', 'd')]))
  def test_who_is_asked_for_what(self, target, wanted):
    split = splits.global_time(by_hand(), rule(target))
    self.assertEqual(named(split.test), wanted)
    self.assertEqual(split.test.as_set, target == 'all')
    self.assertEqual([split.train.history(u).tolist() for u in range(4)],
                     [[1, 2], [1, 4], [], [3, 1]])
    self.assertIn('T=70, quantile 0.5', split.protocol)

  def test_validation_is_cut_once_more(self):
    split = splits.global_time(by_hand(), rule())
    self.assertEqual(named(split.valid), [(2, 'a', 'd')])  # 4 has no history yet
    self.assertEqual([split.for_choice.history(u).tolist() for u in range(4)],
                     [[1, 2], [1], [], []])
    self.assertEqual(split.refit.items.tolist(), split.train.items.tolist())

  def test_validation_ends_at_the_quantile_of_what_is_known(self):
    # Many items at T itself: what is known is more than the share that was asked for.
    data = interactions([[(1, a), (2, b), (3, 10), (4, 10), (5, 50)]
                         for a, b in ((1, 3), (1, 4), (2, 6))])
    split = splits.global_time(data, rule(at='0.5'))
    self.assertEqual(np.quantile(data.times, .5), 10)
    self.assertEqual(split.for_choice.times.tolist(), [1, 3, 1, 4, 2, 6])  # all below 8

  def test_without_refit_training_ends_where_validation_begins(self):
    split = splits.global_time(by_hand(), rule(refit=False))
    self.assertEqual(split.train.lengths().tolist(), [2, 1, 0, 0])
    self.assertIsNone(split.refit)
    self.assertIs(split.for_choice, split.train)
    self.assertIn('3 cold targets', splits.global_time(by_hand(), rule(refit=False)).protocol)

  def test_the_sentence_counts_users_and_cold_targets(self):
    said = splits.global_time(by_hand(), rule()).protocol
    self.assertIn('last target; 3 of 4 users after it have a history; 1 cold targets; validation '
                  'by time, refitted; FEW USERS', said)
    self.assertEqual(splits.num_cases(said), 3)
    said = splits.global_time(by_hand(), rule('successive')).protocol
    self.assertIn('successive targets; 4 test cases, averaged within each of 3 users', said)
    self.assertEqual(splits.num_cases(said), 4)

  def test_cold_targets_can_be_left_out(self):
    split = splits.global_time(by_hand(), rule(), drop_cold_targets=True)
    self.assertEqual(named(split.test), [(1, 'ab', 'c'), (4, 'ca', 'd')])
    self.assertIn('without 1 cold targets', split.protocol)

  def test_users_who_leave_training(self):
    split = splits.global_time(by_hand(), rule(validation='users'))
    (user, history, target), = named(split.valid)  # one, a tenth being less
    self.assertIn((user, history, target), [(1, 'a', 'b'), (2, 'a', 'd'), (4, 'c', 'a')])
    self.assertEqual(split.for_choice.lengths()[user - 1], 0)
    self.assertEqual(split.for_choice.lengths().sum(), 4)

  def test_the_last_of_training(self):
    long = interactions([[(1, 1), (2, 2), (3, 3), (4, 9)], [(1, 1), (2, 2), (4, 9)]])
    split = splits.global_time(long, rule(validation='last_train', at='0.7'))
    self.assertEqual(named(split.valid), [(1, 'ab', 'c')])  # the other would be left with one
    self.assertEqual(split.for_choice.lengths().tolist(), [2, 2])
    self.assertEqual(split.train.lengths().tolist(), [3, 2])

  def test_a_drawn_target_depends_on_seed_and_user_alone(self):
    data = interactions([[(1, 0), (1, 0), *((i, 50 + i) for i in range(2, 30))]] * 9
                        + [[(1, 0)] * 300])
    drawn = splits.global_time(data, rule('random', 'users')).test
    again = splits.global_time(data, rule('random', 'users')).test
    np.testing.assert_array_equal(drawn.targets, again.targets)
    self.assertGreater(len(set(drawn.targets.tolist())), 3)
    other = splits.global_time(data, rule('random', 'users', seed=1)).test
    self.assertNotEqual(drawn.targets.tolist(), other.targets.tolist())
    for case, target in enumerate(drawn.targets):
      self.assertEqual(drawn.history(case).tolist(), [1, *range(1, target)])

  def test_an_item_that_comes_twice_is_one_answer_of_a_set(self):
    data = interactions([[(1, 1), (2, 8), (3, 8), (2, 9)], [(1, 1), (2, 2), (3, 3)]])
    split = splits.global_time(data, rule('all', at='0.6'))
    self.assertEqual(named(split.test), [(1, 'a', 'b'), (1, 'a', 'c')])
    self.assertEqual(split.test.set_sizes().tolist(), [2, 2])

  def test_users_are_drawn_with_all_their_cases(self):
    rows = [[(1, 0), *((i, 60 + i) for i in range(2, 2 + n))] for n in (1, 4, 2, 3)]
    data = interactions([*rows, [(1, 0), (2, 1)]])
    split = splits.global_time(data, rule('successive', at='0.35', validation='users'))
    self.assertLen(split.test, 10)
    rows, said = splits.sample_cases(split.test, 5, split.protocol)
    kept = split.test.select(rows)
    counts = np.bincount(kept.users, minlength=4)
    self.assertBetween(len(kept), 1, 5)
    for user, count in enumerate(counts[:4]):
      self.assertIn(count, (0, (1, 4, 2, 3)[user]))
    self.assertEqual(splits.num_cases(said), len(kept))
    self.assertIn(f'within each of {(counts > 0).sum()} users', said)


class PropertyTest(absltest.TestCase):

  @examples(15, 100)
  @hypothesis.given(
      st.lists(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=7), min_size=2,
               max_size=8), st.sampled_from(('0.3', '0.5', '0.8')),
      st.sampled_from(('first', 'last', 'successive', 'all')))
  def test_equals_slicing_each_user_in_plain_python(self, rows, at, target):
    rows = [sorted(row, key=lambda event: event[1]) for row in rows]
    times = sorted(time for row in rows for _, time in row)
    hypothesis.assume(len(times) > 1 and times[0] < times[-1])
    place = float(at) * (len(times) - 1)
    cut = times[int(place)] + (place % 1) * (times[min(int(place) + 1, len(times) - 1)]
                                             - times[int(place)])
    hypothesis.assume(cut < times[-1])
    try:
      split = splits.global_time(interactions(rows), rule(target, 'users', at))
    except DataError:  # nobody to validate by
      self.assertFalse(any(sum(t <= cut for _, t in row) > 1 for row in rows))
      return
    wanted = []
    for user, row in enumerate(rows):
      known = [item for item, time in row if time <= cut]
      later = [item for item, time in row if time > cut]
      self.assertEqual(split.train.history(user).tolist(), known)
      if known and later:
        wanted += {'first': [(user, known, later[0])],
                   'last': [(user, known + later[:-1], later[-1])],
                   'successive': [(user, known + later[:i], x) for i, x in enumerate(later)],
                   'all': [(user, known, x) for x in dict.fromkeys(later)]}[target]
    self.assertEqual([(int(u), split.test.history(c).tolist(), int(t)) for c, (u, t) in enumerate(
        zip(split.test.users, split.test.targets))], wanted)


class RealDataTest(absltest.TestCase):

  def test_movielens_100k_as_computed_elsewhere(self):
    if not (SHARED / 'ml-100k').is_dir():
      self.skipTest('the data set is not at hand')
    data = loading.load_data(SHARED / 'ml-100k').interactions
    for target, cold in (('first', .0778), ('last', .1333), ('all', .0298)):
      split = splits.global_time(data, rule(target, at='0.9'))
      miss = np.mean(~np.isin(split.test.targets, split.train.items))
      self.assertAlmostEqual(miss, cold, places=4)
      self.assertIn('T=891382271.2, quantile 0.9', split.protocol)
    self.assertIn('166 are after it', split.protocol)
    self.assertLen(np.unique(split.test.users), 90)
    known = split.for_choice
    self.assertEqual((len(known.items), int((known.lengths() > 1).sum()),
                      len(np.unique(known.items))), (81_000, 760, 1_625))
    held = data.lengths() - split.train.lengths()
    self.assertAlmostEqual(held[np.unique(split.test.users)].mean(), 32.07, places=2)


class RefusalTest(parameterized.TestCase):

  def refuse(self, error, words, data, **how):
    with self.assertRaisesRegex(error, words):
      splits.global_time(data, rule(**how), name='shop')

  def test_times_that_cannot_be_cut(self):
    data = by_hand()
    self.refuse(DataError, 'shop has no times', dataclasses.replace(data, times=None))
    self.refuse(DataError, 'all times are equal',
                dataclasses.replace(data, times=np.full(12, 7)))
    mixed = data.times + 1_400_000_000
    mixed[2] *= 1000
    self.refuse(DataError, 'mixes units', dataclasses.replace(data, times=mixed))
    back = data.times.copy()
    back[4] = 14
    self.refuse(DataError, 'times of user u2 go backwards', dataclasses.replace(data, times=back))

  @parameterized.parameters('0', '1', '1.5', '-0.1', '95', '')
  def test_moments_outside_the_data(self, at):
    self.refuse(ConfigError, 'leaves nothing before or nothing after|look', by_hand(), at=at)

  @parameterized.parameters(('soon', 'neither a number nor a date'),
                            ('2031-01-01', 'plain numbers'))
  def test_what_is_no_moment(self, at, words):
    self.refuse(ConfigError, words, by_hand(), at=at)

  def test_nobody_to_validate_by(self):
    data = interactions([[(1, 1), (2, 9)], [(1, 2), (3, 9)], [(2, 3)]])
    self.refuse(DataError, "split.validation='users' finds no case.*split.at", data,
                validation='users')

  def test_a_day_is_meant_up_to_its_end(self):
    start = 1_700_006_400  # a midnight
    data = interactions([[(1, start), (2, start + DAY - 1), (3, start + DAY)],
                         [(1, start + 5), (2, start + 9), (4, start + 2 * DAY)]])
    split = splits.global_time(data, rule(at='2023-11-15', validation='users'))
    self.assertEqual(split.train.lengths().tolist(), [2, 2])
    self.assertIn('train to 2023-11-15 23:59:59 (T=1700092799)', split.protocol)

  def test_a_history_that_ends_with_training_is_for_leave_one_out(self):
    data = dataset.with_rule(
        dataset.make_dataset('x', Catalog(tuple('abcde'), {}), by_hand()), rule())
    with self.assertRaisesRegex(ConfigError, "test_history='train' is for leave-one-out"):
      splits.make_split(data, 'train')


class RuleTest(absltest.TestCase):

  def test_what_is_made_under_one_rule_fits_no_other(self):
    plain = dataset.make_dataset('x', Catalog(tuple('abcde'), {}), by_hand())
    self.assertIs(dataset.with_rule(plain, split_rule.LEAVE_ONE_OUT), plain)
    prints = {dataset.with_rule(plain, r).fingerprint for r in (
        split_rule.LEAVE_ONE_OUT, rule(), rule('first'), rule(at='0.6'), rule(refit=False))}
    self.assertLen(prints, 5)

  def test_a_run_of_before_means_leave_one_out_and_whole_weights(self):
    folder = self.create_tempdir().full_path
    pathlib.Path(folder, 'config.json').write_text('{"config": {"method": "betag"}, "facts": {}}')
    self.assertTrue(split_rule.for_config(workdir.saved_config(folder)).default)
    pathlib.Path(folder, 'config.json').write_text(
        '{"config": {"method": "betag", "llm": {"weights": "w"}}, "facts": {}}')
    self.assertEqual(workdir.saved_config(folder).llm.to_dict(),
                     {'weights': 'w', 'quantize': 'none'})

  def test_runs_of_other_seeds_ask_the_same(self):
    first, second = (experiment.read_config('sequential_beauty:split=global_time')
                     for _ in range(2))
    second.seed = 7
    self.assertEqual(split_rule.for_config(first), split_rule.for_config(second))

  def test_settings_of_a_moment_without_one_are_refused(self):
    cfg = experiment.read_config('sequential_beauty')
    cfg.split.at = '2024-06-01'
    with self.assertRaisesRegex(ConfigError, "split.at='2024-06-01' says nothing .*global_time"):
      split_rule.for_config(cfg)

  def test_a_method_that_is_trained_once_says_so(self):
    cfg = experiment.read_config('betag_scientific:split=global_time')
    self.assertFalse(split_rule.for_config(cfg).refit)
    cfg.split.refit = True
    with self.assertRaisesRegex(ConfigError, 'betag is trained once'):
      split_rule.for_config(cfg)

  def test_every_config_takes_the_split(self):
    for path in sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')):
      cfg = experiment.read_config(f'{path}:split=global_time')
      self.assertEqual(split_rule.for_config(cfg).kind, 'global_time', path)
      self.assertTrue(split_rule.for_config(experiment.read_config(str(path))).default)


if __name__ == '__main__':
  absltest.main()
