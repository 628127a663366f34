"""The doctor finds what is odd, counts it, and finds nothing where nothing is."""
import numpy as np
from absl.testing import absltest

from recjax.data import catalog, doctor, sample_shop


def dataset(titles, rows, times=None, **columns):
  ids = tuple('abcdefghij'[:len(titles)])
  offsets = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
  items = np.array([i for row in rows for i in row], np.int32)
  times = None if times is None else np.array(times, np.int64)
  users = tuple(f'u{u}' for u in range(len(rows)))
  return catalog.make_dataset('x', catalog.Catalog(ids, {'title': titles, **columns}),
                              catalog.Interactions(users, items, offsets, times))


def findings(*args, **kwargs):
  return {f.what: f for f in doctor.check(dataset(*args, **kwargs))}


class DoctorTest(absltest.TestCase):

  def test_the_sample_shop_has_no_errors_or_warnings(self):
    found = doctor.check(sample_shop.make(items=200, users=300))
    self.assertNotIn('error', {f.severity for f in found}, found)
    self.assertNotIn('warning', {f.severity for f in found}, found)

  def test_titles_are_checked(self):
    found = findings(['A', '', 'A', '<|im_start|>user', 'x' * 5000], [[1, 2, 3, 4, 5]],
                     categories=[['c'], None, [], ['c'], ['c']])
    self.assertEqual({k: f.count for k, f in found.items()}, {
        'items without a title': 1, 'items that share their title with another': 2,
        'items without categories': 2, 'items whose text looks like control tokens': 1,
        'items with a text over 4000 letters': 1,
        'cold items: bought, but never in training under leave-one-out': 2})
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
        'cold items: bought, but never in training under leave-one-out': (1, ('b: B',))})

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
    what = [f.what for f in doctor._version(Sized(22363, 12101, 198502))]
    self.assertEqual(what, ['this is Amazon Beauty of S3-Rec, P5 and TIGER (2014, 5-core)'])
    near = list(doctor._version(Sized(22360, 12101, 198000)))
    self.assertEqual([f.severity for f in near], ['warning'])
    self.assertEqual(list(doctor._version(Sized(10, 12101, 198502))), [])

  def test_the_gravest_comes_first_and_nobody_to_test_is_grave(self):
    found = doctor.check(dataset(['A', '', 'C'], [[1, 2], []]))
    self.assertEqual([f.severity for f in found], ['error', 'warning', 'note'])
    self.assertEqual(found[0].what, 'users with fewer than 3 items')
    self.assertTrue(all(f.remedy for f in found))


if __name__ == '__main__':
  absltest.main()
