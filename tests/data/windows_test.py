"""Windows and splits of BIGRec and D3: oracles B1 and B2, published rows, wrong names."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from recjax.data import dataset, loading, splits, windows
from recjax.errors import ConfigError, DataError
from recjax.split_rule import SplitRule


def shop(sequences, times=None):
  ids = tuple(f'i{k}' for k in range(1, 30))
  items = np.concatenate([np.asarray(s, np.int32) for s in sequences])
  offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
  times = None if times is None else np.concatenate([np.asarray(t) for t in times])
  users = tuple(f'u{k}' for k in range(len(sequences)))
  return dataset.make_dataset('toy', dataset.Catalog(ids, {'title': list(ids)}),
                              dataset.Interactions(users, items, offsets, times))


class WindowsTest(parameterized.TestCase):

  @parameterized.parameters((10, 8, 1, 1), (11, 8, 1, 2), (19, 15, 2, 2),
                            (9_301_274, 7_441_019, 930_127, 930_128))
  def test_time_parts_b1(self, count, train, valid, test):
    first, second = windows.split_points(count)
    self.assertEqual((first, second - first, count - second), (train, valid, test))

  @parameterized.parameters(
      ('movie', 10, []), ('movie', 12, [10, 11]), ('game', 5, [4]), ('game', 11, [10]),
      ('game', 13, [10, 11, 12]), ('every', 4, [1, 2, 3]), ('every', 13, list(range(1, 13))),
      ('game', 1, []), ('every', 1, []))
  def test_places_b2(self, window, length, want):
    users, places = windows.target_positions([length], window, 10)
    self.assertEqual(places.tolist(), want)
    self.assertEqual(users.tolist(), [0] * len(want))

  def test_histories_are_the_items_before_and_no_more_than_ten(self):
    made = shop([list(range(1, 14))])
    users, places = windows.target_positions([13], 'every', 10)
    cases = windows.window_cases(made.interactions, users, places, 10)
    self.assertEqual(cases.history(2).tolist(), [1, 2, 3])
    self.assertEqual(cases.history(11).tolist(), list(range(3, 13)))
    self.assertEqual(cases.targets.tolist(), list(range(2, 14)))

  def test_time_split_is_in_order_of_the_target_and_hides_what_comes_later(self):
    made = shop([[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11, 12]],
                [[1, 20, 30, 99], [5, 6, 7], [2, 40, 50, 60, 70]])
    found = windows.make_samples(made, '.', 'every', 'time', 10)
    # targets by time: 6 at 6, 7 at 7, 2 at 20, 3 at 30, 9, 10, 11, 12, 4 at 99: 9 samples, 7/1/1
    self.assertEqual(found.train.targets.tolist(), [6, 7, 2, 3, 9, 10, 11])
    self.assertEqual((found.valid.targets.tolist(), found.test.targets.tolist()), ([12], [4]))
    self.assertEqual([found.known.history(u).tolist() for u in range(3)],
                     [[1, 2, 3], [5, 6, 7], [8, 9, 10, 11]])
    self.assertFalse(found.masked)

  def test_leave_one_out_asks_whole_histories_and_trains_before_them(self):
    made = shop([list(range(1, 15)), [1, 2]])
    found = windows.make_samples(made, '.', 'every', 'leave_one_out', 10)
    self.assertEqual(found.test.history(0).tolist(), list(range(1, 14)))
    self.assertEqual((found.test.targets.tolist(), found.valid.targets.tolist()), ([14], [13]))
    self.assertEqual(max(found.train.targets), 12)
    self.assertEqual(found.known.lengths().tolist(), [12, 2])
    self.assertIn('1 of 2 users', found.protocol)

  def test_published_rows_train_on_what_stands_before_the_first_of_them(self):
    folder = pathlib.Path(tempfile.mkdtemp())
    made = shop([[1, 2, 3, 4, 5], [6, 7, 8]])
    row = lambda u, h, t: json.dumps({'user_id': u, 'history': [f'i{i}' for i in h],  # noqa: E731
                                      'target': f'i{t}'})
    (folder / 'valid.jsonl').write_text(row('u0', [1, 2, 3], 4))
    (folder / 'test.jsonl').write_text(row('u0', [1, 2, 3, 4], 5) + '\n' + row('u1', [6, 7], 8))
    found = windows.make_samples(made, folder, 'every', 'auto', 10)
    self.assertEqual(found.known.lengths().tolist(), [3, 2])
    self.assertEqual(found.train.targets.tolist(), [2, 3, 7])
    self.assertEqual(found.test.targets.tolist(), [5, 8])
    (folder / 'test.jsonl').write_text('{"user_id": "nobody", "history": [], "target": "i1"}')
    with self.assertRaisesRegex(DataError, "test.jsonl line 1: user 'nobody' has no sequence"):
      windows.make_samples(made, folder, 'every', 'rows', 10)
    (folder / 'test.jsonl').write_text('{"user_id": "u0", "history": []}')
    with self.assertRaisesRegex(DataError, "line 1 lacks 'target'"):
      windows.make_samples(made, folder, 'every', 'rows', 10)

  def test_wrong_names_and_data_that_cannot_be_cut(self):
    made = shop([[1, 2, 3, 4]])
    with self.assertRaisesRegex(ConfigError, 'samples.window'):
      windows.make_samples(made, '.', 'all', 'leave_one_out', 10)
    with self.assertRaisesRegex(ConfigError, 'samples.split'):
      windows.make_samples(made, '.', 'every', 'random', 10)
    with self.assertRaisesRegex(DataError, 'needs times'):
      windows.make_samples(made, '.', 'every', 'time', 10)
    with self.assertRaisesRegex(DataError, 'no train sample'):
      windows.make_samples(made, '.', 'movie', 'leave_one_out', 10)
    with self.assertRaisesRegex(DataError, 'needs .*valid.jsonl'):
      windows.make_samples(made, tempfile.mkdtemp(), 'every', 'rows', 10)


class ByRuleTest(absltest.TestCase):

  def test_nothing_after_the_cut_is_trained_on(self):
    shop = dataset.with_rule(loading.load_data('sample:1:60'), SplitRule(
        'global_time', '0.7', 'successive', refit=False))
    data, split = shop.interactions, splits.make_split(shop)
    made = windows.make_samples(shop, 'x', 'every', 'auto', 5)
    self.assertLen(made.train, int(np.maximum(split.train.lengths() - 1, 0).sum()))
    met = {(int(user), int(item)) for user in range(len(data)) for item in
           split.train.history(user)}
    self.assertContainsSubset(
        {(int(user), int(item)) for user, item in zip(made.train.users, made.train.targets)}, met)
    self.assertTrue(made.by_user and made.masked)


if __name__ == '__main__':
  absltest.main()
