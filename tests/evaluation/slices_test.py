"""Steps that training saw, that it can infer, and neither: by hand, by sets, on public data."""
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
