"""Steps that training saw, that it can infer, and neither: by hand, by sets, on public data."""
import dataclasses
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from recjax.data import dataset, loading, splits
from recjax.evaluation import slices
from tests.long import long

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'
SEEN, INFERRED, NEITHER = range(3)


def sequences(*rows):
  items, offsets = dataset.flatten(rows)
  return dataset.Interactions(tuple(map(str, range(len(rows)))), items, offsets)


def asked(*pairs):
  """Cases of (history, target)."""
  histories = dataset.flatten([history for history, _ in pairs])
  return splits.Cases(np.arange(len(pairs), dtype=np.int32), histories,
                      np.array([target for _, target in pairs], np.int32))


def by_sets(rows, history, target, hops):
  """The paper's relations in plain sets, every distance by itself."""
  def after(h):
    return {(a, b) for row in rows for i, a in enumerate(row) for b in row[i + 1:i + 1 + h]}
  if history and (history[-1], target) in after(1):
    return SEEN
  for h in range(1, min(hops, len(history)) + 1):
    pairs = after(h)
    out = lambda x: {b for a, b in pairs if a == x}   # noqa: B023, E731
    into = lambda x: {a for a, b in pairs if b == x}  # noqa: B023, E731
    for u in history[-h:]:
      v = target
      if (h >= 2 and v in out(u) or u in out(v) or out(u) & into(v) or out(v) & into(u)
          or out(v) & out(u) or into(v) & into(u)):
        return INFERRED
  return NEITHER


def dated(*rows):
  """Sequences of (item, date)."""
  made = sequences(*([item for item, _ in row] for row in rows))
  return dataclasses.replace(made, times=np.array(
      [np.datetime64(date, 's').astype(np.int64) for row in rows for _, date in row]))


class ApartTest(absltest.TestCase):

  DATA = dated([(i, f'2014-01-{i:02}') for i in range(1, 6)] + [(2, '2014-05-31')],
               [(1, '2014-01-01'), (2, '2014-01-02'), (3, '2014-06-01')],
               [(i, '2014-02-02') for i in range(1, 11)] + [(11, '2014-06-02')])

  def test_lengths_repeats_and_months_by_hand(self):
    found = slices.apart(self.DATA, splits.leave_one_out(self.DATA).test)
    self.assertEqual({name: np.flatnonzero(mask).tolist() for name, mask in found.items()}, {
        'len1-3': [1], 'len4-5': [0], 'len10+': [2], 'repeated': [0], 'new': [1, 2],
        '2014-05': [0], '2014-06': [1, 2]})

  def test_histories_that_end_with_training_have_the_same_times(self):
    for history in ('train', 'train+valid'):
      cases = splits.leave_one_out(self.DATA, test_history=history).test
      self.assertEqual(slices.times(self.DATA, cases).astype('datetime64[D]').astype(str).tolist(),
                       ['2014-05-31', '2014-06-01', '2014-06-02'])

  def test_milliseconds_are_the_same_days(self):
    cases = splits.leave_one_out(self.DATA).test
    fine = dataclasses.replace(self.DATA, times=self.DATA.times * 1000)
    np.testing.assert_array_equal(slices.times(fine, cases), slices.times(self.DATA, cases))

  def test_cases_of_one_user_have_their_own_times(self):
    cases = asked(([1, 2, 3], 4), ([1, 2, 3], 2), ([1, 2, 3, 4, 5], 2))
    cases = dataclasses.replace(cases, users=np.zeros(3, np.int32))
    self.assertEqual(slices.times(self.DATA, cases).astype('datetime64[D]').astype(str).tolist(),
                     ['2014-01-04', '2014-05-31', '2014-05-31'])

  def test_many_months_are_years_and_one_is_no_group(self):
    rows = [[(1, '2000-01-01'), (2, '2000-01-01'), (3, f'{2000 + k // 12}-{k % 12 + 1:02}-01')]
            for k in range(30)]
    data = dated(*rows)
    found = slices.apart(data, splits.leave_one_out(data).test)
    self.assertEqual({name: int(mask.sum()) for name, mask in found.items()},
                     {'2000': 12, '2001': 12, '2002': 6})
    data = dated(*rows[:1] * 3)
    self.assertEqual(slices.apart(data, splits.leave_one_out(data).test), {})

  def test_without_times_and_with_targets_that_are_not_there(self):
    data = sequences([1, 2, 3], [1, 2, 4])
    self.assertEqual(slices.apart(data, splits.leave_one_out(data).test), {})
    strange = asked(([1, 2, 3, 4, 5], 9), ([1], 2), ([1], 12))
    self.assertTrue(np.isnat(slices.times(self.DATA, strange)[[0, 2]]).all())

  def test_what_lists_repeat_of_training(self):
    train = sequences([1, 2, 3], [1, 2, 4])  # 1>2, 2>3, 2>4
    cases = asked(([3, 2], 4), ([4, 1], 2), ([], 1))
    lists = np.array([[3, 1, 4], [2, 0, 3], [1, 9, 2]])
    self.assertAlmostEqual(slices.memorized(train, cases.histories, lists, 5), 3 / 8)


class MemoryTest(parameterized.TestCase):

  def test_by_hand(self):
    train = sequences([1, 2, 3], [1, 2, 4], [2, 3, 1], [3, 4], [1, 2])
    cases = asked(([1, 2, 3], 4), ([1, 2, 4], 3), ([2, 3, 1], 4), ([3, 4], 1), ([1, 2], 3),
                  ([1], 5), ([3], 2), ([], 2))
    self.assertEqual(slices.memory(train, cases, 5).tolist(), [
        SEEN, INFERRED, INFERRED, INFERRED, SEEN, NEITHER, INFERRED, NEITHER])

  @parameterized.parameters(1, 2, 4)
  def test_as_plain_sets_say(self, hops):
    rng = np.random.default_rng(hops)
    rows = [rng.permutation(40)[:rng.integers(1, 7)].tolist() for _ in range(14)]
    pairs = [(rng.permutation(40)[:rng.integers(0, 6)].tolist(), int(rng.integers(40)))
             for _ in range(300)]
    plus = lambda row: [item + 1 for item in row]  # noqa: E731
    found = slices.memory(sequences(*map(plus, rows)),
                          asked(*((plus(h), t + 1) for h, t in pairs)), 40, hops)
    want = [by_sets(rows, *pair, hops) for pair in pairs]
    self.assertEqual(found.tolist(), want)
    self.assertGreater(min(want.count(kind) for kind in range(3)), 3)

  def test_groups_part_the_cases_and_count_their_targets(self):
    train = sequences(*[[1, 2]] * 4, [3, 1])  # 1 comes five times, 2 four times
    found = slices.groups(train, asked(([1], 2), ([2], 1), ([4], 3), ([2], 5)), 5)
    self.assertEqual({name: mask.tolist() for name, mask in found.items()}, {
        'memorized': [True, False, False, False], 'generalized': [False, True, False, False],
        'uncategorized': [False, False, True, True], 'cold': [False, False, False, True],
        'few': [True, False, True, False]})

  @parameterized.parameters(
      ('amazon-scientific', 803, 742, 73), ('amazon-beauty', 1925, 2268, 138),
      ('ml-1m', 3562, 0, 0))
  @long
  def test_public_data(self, folder, seen, neither, cold):
    if not (SHARED / folder).is_dir():
      self.skipTest(f'needs {folder}')
    data = loading.load_data(str(SHARED / folder))
    split = splits.leave_one_out(data.interactions)
    found = slices.groups(split.train, split.test, len(data.catalog))
    self.assertEqual((found['memorized'].sum(), found['uncategorized'].sum(),
                      (found['uncategorized'] & found['cold']).sum()), (seen, neither, cold))
    self.assertTrue((sum(found[name].astype(int) for name in slices.NAMES[:3]) == 1).all())


if __name__ == '__main__':
  absltest.main()
