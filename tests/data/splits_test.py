"""Leave-one-out holds out what it says, for users of every length."""
import dataclasses

import hypothesis
import numpy as np
from absl.testing import absltest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Catalog, Dataset, Interactions
from recjax.data.splits import leave_one_out, split_for_config
from recjax.errors import ConfigError, DataError
from tests.long import examples


def interactions(*rows):
  offsets = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
  items = np.array([i for row in rows for i in row], np.int32)
  return Interactions(tuple(str(u) for u in range(len(rows))), items, offsets, items * 10 + 0)


class SplitsTest(absltest.TestCase):

  def test_oracle_9(self):
    split = leave_one_out(interactions([1, 2, 3, 4, 5]))
    np.testing.assert_array_equal(split.train.history(0), [1, 2, 3])
    np.testing.assert_array_equal(split.valid.history(0), [1, 2, 3])
    np.testing.assert_array_equal(split.valid.targets, [4])
    np.testing.assert_array_equal(split.test.history(0), [1, 2, 3, 4])
    np.testing.assert_array_equal(split.test.targets, [5])

  def test_short_users_train_only(self):
    data = interactions([], [1], [2, 3], [4, 5, 6], [], [7, 8])
    split = leave_one_out(data)
    np.testing.assert_array_equal(split.train.lengths(), [0, 1, 2, 1, 0, 2])
    np.testing.assert_array_equal(split.test.users, [3])
    np.testing.assert_array_equal(split.valid.users, [3])
    split = leave_one_out(data, holdout=1)
    self.assertIsNone(split.valid)
    np.testing.assert_array_equal(split.train.lengths(), [0, 1, 1, 2, 0, 1])
    np.testing.assert_array_equal(split.test.users, [2, 3, 5])
    np.testing.assert_array_equal(split.test.targets, [3, 6, 8])

  def test_nobody_to_test_gives_empty_cases(self):
    split = leave_one_out(interactions([1], [2, 3]))
    self.assertLen(split.test, 0)
    np.testing.assert_array_equal(split.test.histories[1], [0])

  def test_types_stay_small_and_times_travel_along(self):
    split = leave_one_out(interactions([1, 2, 3, 4], [5, 6, 7]))
    self.assertEqual(split.train.items.dtype, np.int32)
    self.assertEqual(split.train.offsets.dtype, np.int64)
    self.assertEqual(split.test.users.dtype, np.int32)
    self.assertEqual(split.test.targets.dtype, np.int32)
    self.assertEqual(split.test.histories[0].dtype, np.int32)
    np.testing.assert_array_equal(split.train.times, [10, 20, 50])
    self.assertIn('leave-one-out', split.protocol)
    self.assertIn('2 of 2 users', split.protocol)

  def test_the_history_can_leave_the_validation_item_out(self):
    data = interactions([1, 2, 3, 4, 5], [1, 2], [6, 7, 8])
    usual, short = leave_one_out(data), leave_one_out(data, test_history='train')
    self.assertEqual([short.test.history(c).tolist() for c in range(2)], [[1, 2, 3], [6]])
    np.testing.assert_array_equal(short.test.targets, usual.test.targets)
    np.testing.assert_array_equal(short.train.items, usual.train.items)
    self.assertNotEqual(short.protocol, usual.protocol)
    self.assertIn('end with training', short.protocol)

  def test_cold_targets_can_be_left_out(self):
    data = interactions([1, 2, 3], [3, 1, 2], [1, 4, 1], [2, 1, 4])  # trained on: 1, 3, 1, 2
    split = leave_one_out(data, drop_cold_targets=True)
    np.testing.assert_array_equal(split.test.users, [0, 1, 2])  # 4 is in validation alone
    np.testing.assert_array_equal(split.test.targets, [3, 2, 1])
    np.testing.assert_array_equal(split.test.history(2), [1, 4])
    self.assertLen(split.valid, 4)
    self.assertIn('without 1 whose target', split.protocol)
    self.assertIn('; 3 of 4 users', split.protocol)  # those that are asked

  def test_the_sentence_names_those_that_are_drawn(self):
    split = leave_one_out(interactions(*[[1, 2, 3]] * 30, [1, 2]))
    rows, said = splits.sample_cases(split.test, 7, split.protocol)
    self.assertLen(set(rows.tolist()), 7)
    self.assertTrue((np.diff(rows) > 0).all())
    self.assertEqual(said, 'leave-one-out: the last item of each user is the test, the one before '
                     'it the validation; 7 of 31 users, those with 3 items or more; drawn by seed '
                     '42 out of 30')
    self.assertEqual((splits.num_cases(said), splits.with_num_cases(said, 30)), (7, split.protocol))
    for most in (0, 30, 99):
      rows, said = splits.sample_cases(split.test, most, split.protocol)
      self.assertEqual((rows.tolist(), said), (list(range(30)), split.protocol))
    self.assertIsNone(splits.num_cases('by hand'))

  def judge(self, **kw):
    return ConfigDict({'test_history': 'train+valid', 'drop_cold_targets': False,
                       'tie_order': 'file', **kw})

  def test_a_config_names_the_split_and_its_sentence(self):
    data = Dataset('x', Catalog(('a',), {}), interactions([1, 1, 2], [2, 2, 1]), '', {})
    self.assertEqual(
      split_for_config(data, self.judge()).protocol, leave_one_out(data.interactions).protocol
    )
    self.assertIn(
      'tied times: shuffle(3)', split_for_config(data, self.judge(tie_order='shuffle(3)')).protocol
    )
    self.assertIn(
      'end with training', split_for_config(data, self.judge(test_history='train')).protocol
    )
    cold = dataclasses.replace(data, interactions=interactions([1, 1, 2]))
    with self.assertRaisesRegex(DataError, 'in the training of others'):
      split_for_config(cold, self.judge(drop_cold_targets=True))
    with self.assertRaisesRegex(ConfigError, "test_history='all'"):
      split_for_config(data, self.judge(test_history='all'))

  def test_other_holdouts_are_refused(self):
    with self.assertRaisesRegex(ConfigError, 'holdout is 3'):
      leave_one_out(interactions([1, 2]), holdout=3)

  @examples(12, 60)
  @hypothesis.given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=8),
                    st.sampled_from([1, 2]))
  def test_split_equals_slicing_each_user(self, rows, holdout):
    split = leave_one_out(interactions(*rows), holdout)
    tested = [u for u, row in enumerate(rows) if len(row) > holdout]
    np.testing.assert_array_equal(split.test.users, tested)
    for u, row in enumerate(rows):
      kept = row[:-holdout] if u in tested else row
      np.testing.assert_array_equal(split.train.history(u), kept)
    for case, u in enumerate(tested):
      np.testing.assert_array_equal(split.test.history(case), rows[u][:-1])
      self.assertEqual(split.test.targets[case], rows[u][-1])
      if holdout == 2:
        np.testing.assert_array_equal(split.valid.history(case), rows[u][:-2])
        self.assertEqual(split.valid.targets[case], rows[u][-2])


if __name__ == '__main__':
  absltest.main()
