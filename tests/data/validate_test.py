"""The doctor finds what is odd, counts it, and finds nothing where nothing is."""
import pathlib

import numpy as np
from absl.testing import absltest

from recjax.data import dataset as dataset_lib
from recjax.data import loading, splits, validate
from recjax.data.sample_shop import simulator
from recjax.evaluation import baselines, metrics, ranking
from tests.long import long

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data'


def dataset(titles, rows, times=None, **columns):
  ids = tuple('abcdefghij'[:len(titles)])
  offsets = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
  items = np.array([i for row in rows for i in row], np.int32)
  times = None if times is None else np.array(times, np.int64)
  users = tuple(f'u{u}' for u in range(len(rows)))
  return dataset_lib.make_dataset('x', dataset_lib.Catalog(ids, {'title': titles, **columns}),
                              dataset_lib.Interactions(users, items, offsets, times))


def findings(*args, **kwargs):
  return {f.what: f for f in validate.check(dataset(*args, **kwargs))}


class DoctorTest(absltest.TestCase):

  def test_the_sample_shop_has_no_errors_or_warnings(self):
    found = validate.check(simulator.make_shop(items=200, users=300))
    self.assertNotIn('error', {f.severity for f in found}, found)
    self.assertNotIn('warning', {f.severity for f in found}, found)

  def test_titles_are_checked(self):
    found = findings(['A', '', 'A', '<|im_start|>user', 'x' * 5000], [[1, 2, 3, 4, 5]],
                     categories=[['c'], None, [], ['c'], ['c']])
    self.assertEqual({k: f.count for k, f in found.items()}, {
        'items without a title': 1, 'items that share their title with another': 2,
        'items without categories': 2, 'items whose text looks like control tokens': 1,
        'items with a text over 4000 letters': 1,
        'cold items: bought, but never in training under leave-one-out': 2,
        "users whose test item is in nobody's training": 1})
    found = found['items that share their title with another']
    self.assertEqual((found.severity, found.examples), ('warning', ('a: A', 'c: A')))

  def test_control_tokens_of_common_models_are_seen_and_plain_signs_are_not(self):
    bad = ['</s>', '[INST] x', '<<SYS>>', '<start_of_turn>', '<pad>', '<\uff5cUser\uff5c>',
           '<|eot_id|>']
    for text in bad + ['a < b | c > d', '<3', '[new] pads', 'x <|> y', '|<>|']:
      found = findings(['A', 'B', 'C'], [[1, 2, 3]], description=[text, None, None])
      self.assertEqual('items whose text looks like control tokens' in found, text in bad, text)

  def test_sequences_are_checked(self):
    found = findings(list('ABCDE'), [[1, 1, 2], [1, 2, 1], [3], [1, 2, 3]],
                     [1, 2, 2, 5, 4, 6, 1, 0, 1, 2])
    self.assertEqual({k: (f.count, f.examples) for k, f in found.items()}, {
        'users with fewer than 3 items': (1, ('u2',)),
        'users with the same item twice in a row': (1, ('u0',)),
        'users with an item more than once': (2, ('u0', 'u1')),
        'users with tied times': (1, ('u0',)),
        'users whose times run backwards': (1, ('u1',)),
        'users whose test item has the time of the item before': (1, ('u0',)),
        'training interactions later than half of all test items': (1, ()),
        'items never bought': (2, ('d: D', 'e: E')),
        'cold items: bought, but never in training under leave-one-out': (1, ('b: B',)),
        "users whose test item is in nobody's training": (1, ('u0',)),
        'test items that change when tied times are shuffled (popularity has NDCG@10 0.8770 in '
        'file order and 0.9590 shuffled)': (1, ())})

  def test_popularity_under_shuffled_ties_is_that_of_the_ranking_room(self):
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 11, rng.integers(0, 9)).tolist() for _ in range(60)]
    data = dataset(list('ABCDEFGHIJ'), rows, [t // 3 for row in rows for t in range(len(row))])
    for order in ('file', 'shuffle(0)', 'shuffle(1)'):
      split = splits.leave_one_out(dataset_lib.in_tie_order(data, order).interactions)
      # A repeated target is ranked as scored there, so it may not count as masked here.
      ranks = ranking.rank_cases(baselines.popularity(split.train.items, 10), split.test, 10)
      want = metrics.per_case(ranks, (10,))['NDCG@10'].mean()
      self.assertAlmostEqual(validate._popularity(split, 10), want, places=6)
    what = next(f for f in validate.check(data) if 'tied times are shuffled' in f.what)
    self.assertBetween(what.count, 1, 59)

  def test_order_of_tied_items_along_the_ids_is_a_warning(self):
    rng = np.random.default_rng(0)
    rows = [rng.permutation(10)[:6] + 1 for _ in range(40)]
    sort = [np.concatenate([np.sort(row[:3]), np.sort(row[3:])]) for row in rows]
    times = [0, 0, 0, 1, 1, 1] * 40
    words = 'steps between tied items in the order of the items file, or against it, of 160 such'
    found = {w: f for w, f in findings(list('ABCDEFGHIJ'), sort, times).items() if words in w}
    self.assertEqual([f.count for f in found.values()], [160])
    mixed = findings(list('ABCDEFGHIJ'), rows, times)
    self.assertFalse([w for w in mixed if words in w])
    self.assertFalse([w for w in findings(list('ABCDEFGHIJ'), sort) if 'tied' in w])

  def test_holes_in_numbers_and_ids_along_histories(self):
    def numbered(ids, rows):
      data = dataset(['t'] * len(ids), rows)
      goods = dataset_lib.Catalog(tuple(map(str, ids)), {'title': [f't{i}' for i in ids]})
      found = validate.check(dataset_lib.make_dataset('x', goods, data.interactions))
      return {f.what: (f.severity, f.count, f.examples) for f in found}
    found = numbered([4, 5, 7, 8, 10], [[1, 3, 2, 5, 4]])
    self.assertEqual(found['numbers between 4 and 10 that are no item id'],
                     ('note', 2, ('6', '9')))
    self.assertFalse([w for w in found if 'next higher' in w])
    found = numbered([1, 2, 3, 4, 5], [[1, 2, 3, 4, 5], [1, 3, 4]])
    self.assertEqual(found['steps to the next higher item id, of 6 steps'], ('warning', 5, ()))
    self.assertFalse([w for w in found if 'no item id' in w])
    found = numbered([4, 5, 9000, 8, 10], [[1, 3, 2, 5, 4]])  # not a count
    self.assertFalse([w for w in found if 'no item id' in w])

  @long
  def test_real_data_sets_show_what_is_known_of_them(self):
    def found(name):
      folder = SHARED / name
      if not folder.is_dir():
        self.skipTest(f'{folder} is not there')
      return {f.what: f for f in validate.check(loading.load_data(folder))}
    beauty = found('amazon-beauty')
    self.assertEqual(beauty["users whose test item is in nobody's training"].count, 138)
    self.assertIn('this is Amazon Beauty of S3-Rec, P5 and TIGER (2014, 5-core)', beauty)
    self.assertFalse([w for w in beauty if 'items never bought' in w or 'more than once' in w])
    films = found('ml-100k')
    self.assertIn('users with tied times', films)
    self.assertFalse([w for w in films if 'not read' in w])
    self.assertTrue([w for w in found('amazon-scientific') if 'next higher item id' in w])

  def test_users_that_are_copies_of_another_are_counted(self):
    found = findings(list('ABC'), [[1, 2, 3], [1, 2, 3], [1, 2], [1, 3, 2]])
    self.assertEqual(found['users with the very sequence of another'].examples, ('u0', 'u1'))

  def test_known_data_sets_are_told_by_their_counts(self):
    class Sized:
      def __init__(self, users, items, rows):
        self.interactions, self.catalog = self, [0] * items
        self.users, self.items = users, [0] * rows

      def __len__(self):
        return self.users
    what = [f.what for f in validate._version(Sized(22363, 12101, 198502))]
    self.assertEqual(what, ['this is Amazon Beauty of S3-Rec, P5 and TIGER (2014, 5-core)'])
    near = list(validate._version(Sized(22360, 12101, 198000)))
    self.assertEqual([f.severity for f in near], ['warning'])
    self.assertEqual(list(validate._version(Sized(10, 12101, 198502))), [])

  def test_the_gravest_comes_first_and_nobody_to_test_is_grave(self):
    found = validate.check(dataset(['A', '', 'C'], [[1, 2], []]))
    self.assertEqual([f.severity for f in found], ['error', 'warning', 'note'])
    self.assertEqual(found[0].what, 'users with fewer than 3 items')
    self.assertTrue(all(f.remedy for f in found))


if __name__ == '__main__':
  absltest.main()
