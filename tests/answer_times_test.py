"""Times of answers, by a clock that the recommender itself moves."""
from unittest import mock

import numpy as np
from absl.testing import absltest

from recjax import answer_times, cli, recommend
from recjax.data.array_record import Records
from recjax.data.dataset import Catalog, Dataset, Interactions, flatten
from recjax.errors import DataError


class AnswerTimesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.now, self.asked = 0.0, []
    data = Dataset('x', Catalog(('a', 'b'), {}), Interactions(
        ('u', 'nobody', 'v'), *flatten(((1, 2), (), (2,)))), '', ())
    self.enter_context(mock.patch.object(recommend, 'load', lambda path: (self.answer, data)))

  def answer(self, histories, k):
    self.asked.append((len(histories), k))
    self.histories = histories
    self.now += self.seconds(len(self.asked), len(histories))

  def test_medians_after_the_first_rounds_within_a_bound(self):
    self.seconds = lambda turn, users: (
        100. if turn <= 3 else [0.25, 0.5, 9.][turn % 3] if users == 1 else 12.8)
    found = answer_times.of_run('run', lambda: self.now)
    np.testing.assert_allclose((found.alone, found.together), (500, 50))
    self.assertEqual(found.rounds, (7, 3))
    self.assertEqual(self.asked, [(1, 2)] * 10 + [(256, 2)] * 4)
    self.assertCountEqual(set(map(tuple, self.histories)), {('a', 'b'), ('b',)})

  def test_quick_answers_are_asked_fifty_times(self):
    self.seconds = lambda turn, users: .001 * users
    found = answer_times.of_run('run', lambda: self.now)
    np.testing.assert_allclose((found.alone, found.together), 1)
    self.assertEqual(found.rounds, (50, 50))

  def test_users_on_disk_are_refused(self):
    with mock.patch.object(recommend, 'load', lambda path: (None, mock.Mock(spec=Records))), \
        self.assertRaisesRegex(DataError, 'run: its users are kept on disk'):
      answer_times.of_run('run')

  def test_compare_prints_them_and_draws_them(self):
    times = answer_times.AnswerTimes(1.5, .25, (50, 20))
    with mock.patch.object(answer_times, 'of_run', lambda path: times), \
        mock.patch('sys.stdout') as out:
      found = cli.compare.measured(['runs/a', 'runs/b'], {'runs': {'a': {}, 'bb': {}}})
    self.assertEqual(found, {'a': times, 'bb': times})
    said = ''.join(call.args[0] for call in out.write.call_args_list)
    self.assertIn('bb      1.500 ms alone (50 rounds)     0.2500 ms a user of 256 together', said)
    rows = {row: {f'{m}@{k}': {'value': .1, 'low': .1, 'high': .1, 'n': 3}
                  for m in ('HR', 'NDCG') for k in (5, 10)} for row in ('a:x', 'bb:y')}
    with mock.patch.object(cli.compare.run_files, 'need_json',
                           lambda path: {'rows': {'x' if 'a' in path.parts else 'y': {}}}):
      made = cli.compare.pictures(['runs/a', 'runs/b'], {
          'runs': {'a': {}, 'bb': {}}, 'rows': rows}, found)
    drawn = {picture.name: picture.rows for picture in made}
    self.assertEqual([row[:2] for row in drawn['together']], [['a:x', .25], ['bb:y', .25]])
    self.assertEqual([row[:2] for row in drawn['alone']], [['a:x', 1.5], ['bb:y', 1.5]])


if __name__ == '__main__':
  absltest.main()
