"""Users one by one: the rule that chooses them, what is said of each, what a method adds."""
import pathlib
import re

import numpy as np
from absl.testing import absltest, parameterized

from recjax.data.dataset import Catalog
from recjax.data.splits import Cases
from recjax.evaluation import results
from recjax.report import user_examples

ITEMS = 100
CATALOG = Catalog(tuple(f'i{n}' for n in range(1, ITEMS + 1)),
                  {'title': [f'<Thing {n}>' if n > 1 else None for n in range(1, ITEMS + 1)]})


def cases_of(histories, targets):
  offsets = np.cumsum([0, *map(len, histories)])
  return Cases(np.arange(len(targets), dtype=np.int32),
               (np.concatenate(histories).astype(np.int32), offsets), np.array(targets, np.int32))


class UsersTest(parameterized.TestCase):

  def folder(self, ranks, lists, names=None):
    """A run's folder. ranks: {row: ranks}. lists: items of each user."""
    room = pathlib.Path(self.create_tempdir().full_path)
    names = names or [f'u{n}' for n in range(len(lists))]
    results.write_ranks(room / 'ranks.parquet', names, {
        row: np.array(x, np.int32) for row, x in ranks.items()})
    results.write_predictions(
        room / 'predictions.parquet', names,
        [[f'i{i}' if i else None for i in row] for row in lists],
        [[1.0 / (n + 1) for n in range(len(row))] for row in lists])
    return room

  def test_a_user_in_full(self):
    room = self.folder({'ours': [1], 'other': [7]}, [[5, 9, 1]], ['<Ann>'])
    cases = cases_of([np.arange(30, 50)], [9])

    def tell(case, had, items):
      self.assertEqual((case, had.tolist(), items.tolist()), (0, list(range(38, 50)), [5, 9, 1]))
      return {'Color': ['c'] * 12}, {'Why': ['w1', 'w2', 'w3']}, ['More of it.']
    page = user_examples.section(room, CATALOG, cases, 'ours', 0, tell, 'Worth').body
    text = re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', page))
    self.assertIn('&lt;Ann&gt;, place 2: &lt;Thing 9&gt;', text)
    self.assertIn('newest last, the last 12 of 20', text)
    self.assertIn(' 20 &lt;Thing 49&gt; c ', text)
    self.assertNotIn('Thing 37&', text)
    self.assertIn(' 2 &lt;Thing 9&gt; (the next item) 0.5000 w2 ', text)
    self.assertIn(' 3 i1 0.3333 w3 ', text)  # no title, so its id
    self.assertIn('More of it.', text)
    self.assertEqual(text.count('the next item)'), 1)

  def test_hits_near_misses_and_failures(self):
    ranks = [*range(10), *range(10, 50), *range(50, 100)]
    room = self.folder({'ours': ranks}, [[1] * 20] * 100)
    page = user_examples.section(room, CATALOG, cases_of([[3]] * 100, [2] * 100), 'ours').body
    self.assertEqual(re.findall(r'<h3>([^<]*)</h3>', page), [
        'Hits, at places 1 to 10: 10 of 100 users',
        'Near misses, at places 11 to 50: 40 of 100 users',
        'Failures, after place 50: 50 of 100 users'])
    places = [int(p) for p in re.findall(r'<summary>u\d+, place (\d+)', page)]
    self.assertEqual(places, [1, 4, 7, 10, 11, 24, 37, 50, 51, 67, 84, 100])
    self.assertEqual(page.count('<details open'), 1)

  @parameterized.parameters(
      (20, [0, 9, 10, 19, 99], ['1 to 10: 2', '11 to 20: 2', 'not in the list of 20: 1']),
      (10, [0, 2, 3, 9, 99], ['1 to 3: 2', '4 to 10: 2', 'not in the list of 10: 1']))
  def test_lists_that_end(self, length, ranks, heads):
    room = self.folder({'ours': ranks}, [[1] * length] * 5)
    page = user_examples.section(room, CATALOG, cases_of([[3]] * 5, [2] * 5), 'ours',
                         list_length=length).body
    for head, found in zip(heads, re.findall(r'<h3>([^<]*) of 5 users</h3>', page), strict=True):
      self.assertTrue(found.endswith(head), found)
    self.assertIn(f'u4, not in the list of {length}:', page)
    self.assertNotIn('u4, place', page)

  def test_small_groups_leave_their_room_to_others(self):
    chosen = user_examples.spread_over_groups([np.arange(2), np.arange(0), np.arange(100)])
    self.assertEqual([len(c) for c in chosen], [2, 0, 10])
    self.assertEqual((chosen[2][0], chosen[2][-1]), (0, 99))
    chosen = user_examples.spread_over_groups([np.arange(3)] * 3)
    self.assertEqual([len(c) for c in chosen], [3, 3, 3])

  def test_the_seed_whose_lists_were_kept(self):
    room = self.folder({'ours:seed=4': [1], 'ours:seed=5': [60]}, [[5, 9]])
    page = user_examples.section(room, CATALOG, cases_of([[3]], [9]), 'ours', 4).body
    self.assertIn('u0, place 2:', page)
    self.assertNotIn('place 61', page)

  def test_empty_lists_and_targets_that_repeat(self):
    room = self.folder({'ours': [0, 99]}, [[5, 6], [0, 0]])
    cases = cases_of([[3], [4]], [3, 8])
    page = user_examples.section(room, CATALOG, cases, 'ours', list_length=2).body
    self.assertIn('u0, place 1, had before and so in no list:', page)
    self.assertIn('The list is empty.', page)


if __name__ == '__main__':
  absltest.main()
