"""The audit of a data set: by hand, by plain Python, and on public data with known figures."""
import collections
import contextlib
import io
import itertools
import pathlib
import re
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recjax import cli
from recjax.data import dataset, loading, splits
from recjax.errors import ConfigError
from recjax.evaluation import audit
from tests.long import long

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'


def shop(*rows, times=None):
  """A data set of sequences, given as items 1..; times as the rows."""
  items, offsets = dataset.flatten(rows)
  people = dataset.Interactions(
      tuple(f'u{n}' for n in range(len(rows))), items, offsets,
      None if times is None else np.array([*itertools.chain(*times)], np.int64))
  count = int(items.max())
  goods = dataset.Catalog(tuple(f'i{n}' for n in range(count)),
                          {'title': [f'thing {n}' for n in range(count)]})
  return dataset.make_dataset('shop', goods, people)


def found(data, name):
  """The check of that name."""
  check, = [c for c in audit.audit(data) if c.name == name]
  return check


class LeakTest(absltest.TestCase):

  def test_twelve_events_by_hand(self):
    # 1a10 1b20 1c90 2a15 2d60 2b85 2e95 3a88 3b92 4c30 4a40 4d80; a, b, ... are 1, 2, ...
    data = shop([1, 2, 3], [1, 4, 2, 5], [1, 2], [3, 1, 4],
                times=[[10, 20, 90], [15, 60, 85, 95], [88, 92], [30, 40, 80]])
    got = audit.leak(data.interactions, splits.leave_one_out(data.interactions))
    self.assertAlmostEqual(got['mean share of training that is later'], (1 + 0 + 2) / 6 / 3)
    self.assertAlmostEqual(got['targets with later training'], 2 / 3)
    self.assertAlmostEqual(got['targets with a tenth later'], 2 / 3)
    self.assertEqual(got['targets with half later'], 0)
    self.assertEqual(got['targets leaked'], 0)
    self.assertEqual(got['targets not yet met by anybody'], 0)
    # Items a, d, b, c begin at 10, 60, 92, 30: after 80 and after 90 only b.
    self.assertAlmostEqual(got['items not yet there'], (1 + 0 + 1) / 4 / 3)
    self.assertAlmostEqual(got['items that begin after the median target'], 1 / 4)
    # Of b > c, b > e and a > d training knows the last, from 60, before it is asked at 80.
    self.assertAlmostEqual(got['last steps known'], 1 / 3)
    self.assertEqual((got['of these from later'], got['of these from later alone']), (0, 0))

  def test_what_training_meets_at_the_time_of_a_target_is_leaked_but_not_later(self):
    data = shop([1, 2, 3], [3, 4, 5], times=[[1, 2, 7], [7, 8, 9]])
    got = audit.leak(data.interactions, splits.leave_one_out(data.interactions))
    self.assertEqual((got['targets leaked'], got['targets with later training']), (.5, 0))

  def test_steps_that_training_knows_from_later(self):
    data = shop([1, 2, 9, 9], [7, 1, 2], [8, 1, 2], [7, 1, 3], [1, 3, 9, 9], [1, 3, 8, 8],
                times=[[50, 51, 52, 53], [1, 2, 40], [1, 2, 60], [1, 2, 45], [40, 41, 42, 43],
                       [70, 71, 72, 73]])
    got = audit.leak(data.interactions, splits.leave_one_out(data.interactions))
    # Targets 2@40, 2@60, 3@45 follow an item that training saw before them: 1 > 2 at 51, 1 > 3 at
    # 41 and 71; those of users 0, 4 and 5 do not.
    self.assertAlmostEqual(got['last steps known'], 3 / 6)
    self.assertAlmostEqual(got['of these from later'], 2 / 3)
    self.assertAlmostEqual(got['of these from later alone'], 1 / 3)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(2, 3)
  def test_rules_are_those_of_plain_python(self, n):
    draws = np.random.default_rng(n)
    rows = [draws.zipf(1.7, draws.integers(1, 9)).clip(max=9).tolist() for _ in range(90)]
    runs = lambda k: collections.Counter(  # noqa: E731
        tuple(row[at:at + k]) for row in rows for at in range(len(row) - k + 1))
    whole, begins = runs(n), runs(n - 1)
    want = sum(count > 5 and count > .1 * begins[run[:-1]] for run, count in whole.items())
    self.assertGreater(want, 2)
    self.assertLess(want, len(whole))
    self.assertEqual(audit.rules(shop(*rows).interactions, n), want)

  def test_shuffling_moves_items_inside_their_users_alone(self):
    items, offsets = dataset.flatten([[1, 2, 3, 4, 5, 6, 7], [8], [], [9, 10, 11, 12]])
    other = audit.shuffled(items, offsets, np.random.default_rng(0))
    self.assertNotEqual(other.tolist(), items.tolist())
    for begin, end in itertools.pairwise(offsets):
      self.assertCountEqual(other[begin:end].tolist(), items[begin:end].tolist())

  def test_walks_have_an_order_and_drawn_items_have_none(self):
    draws = np.random.default_rng(0)

    def walk():  # each item is followed by one of two others
      row = [int(draws.integers(60))]
      for _ in range(7):
        row.append((2 * row[-1] + int(draws.integers(2))) % 60)
      return [item + 1 for item in row]
    walks = found(shop(*(walk() for _ in range(300))), 'order')
    self.assertEqual(walks.level, 'ok')
    self.assertLess(walks.figures['change'], -.25)
    self.assertGreater(walks.figures['rules of pairs'],
                       5 * walks.figures['rules of pairs, shuffled'])
    drawn = shop(*(draws.permutation(20)[:8] + 1 for _ in range(300)))
    self.assertEqual(found(drawn, 'order').level, 'warning')

  def test_repeats_copies_and_cold_targets(self):
    data = shop([1, 1, 2, 3, 1], [4, 5, 6, 7, 8], [4, 5, 6, 7, 8], [2, 3, 9])
    self.assertAlmostEqual(found(data, 'repeats').figures['twice in a row'], 1 / 18)
    self.assertAlmostEqual(found(data, 'repeats').figures['met before'], 2 / 18)
    self.assertEqual(found(data, 'identical users').figures, {'users': 1})
    self.assertEqual(found(data, 'identical users').level, 'warning')
    self.assertEqual(found(data, 'cold targets').figures, {'share': 3 / 4})

  def test_a_target_that_training_holds_at_the_same_time_is_an_error(self):
    rows = [[1, 2, 3, 1], [1, 2, 3, 1]]
    data = shop(*rows, times=[[5, 5, 5, 5], [1, 2, 3, 4]])
    self.assertEqual((found(data, 'copied targets').level, found(data, 'copied targets').figures),
                     ('error', {'cases': 1}))
    self.assertEqual(found(data, 'ties').figures, {
        'interactions at the time of the one before': 3 / 8, 'users with a tie': .5,
        'tests that a tie decides': .5})
    self.assertEqual(audit.audit(data)[0].level, 'error')  # the gravest comes first

  def test_any_unit_of_time_has_its_days_and_plain_numbers_none(self):
    rows, days = [[1, 2, 3], [3, 4, 5]], np.array([[0, 1, 4], [2, 3, 6]]) * 86400 + 15 * 10**8
    for unit in (1, 10**3, 10**6):
      check = found(shop(*rows, times=days * unit), 'drift')
      self.assertIn('from 2017-07-14 to 2017-07-20', check.sentence)
      self.assertEqual(check.figures['median days to the target'], 3)
    check = found(shop(*rows, times=days + 5 * 10**15), 'drift')  # no unit that there is
    self.assertIn(f'from {days.min() + 5 * 10**15} to', check.sentence)

  def test_nobody_to_test_is_an_error_and_no_times_are_told(self):
    checks = audit.audit(shop([1, 2], [3]))
    self.assertEqual((checks[0].name, checks[0].level), ('test cases', 'error'))
    self.assertIn('add `times`', found(shop([1, 2], [3]), 'times').sentence)

  def test_equal_times_everywhere(self):
    data = shop([1, 2, 3], [2, 3, 1], times=[[7, 7, 7], [7, 7, 7]])
    self.assertEqual(found(data, 'drift').figures['rank correlation of popularity'], 0)
    self.assertEqual(found(data, 'ties').level, 'warning')


class KnownTest(absltest.TestCase):
  """Figures of public data, as arXiv 2408.12008's and 2602.19339's repositories have them or as a
  plain computation gave them."""

  def known(self, folder, want, places=6):
    if not (SHARED / folder).is_dir():
      self.skipTest(f'needs {folder}')
    checks = {c.name: c.figures for c in audit.audit(loading.load_data(str(SHARED / folder)))}
    for name, figures in want.items():
      for figure, value in figures.items():
        self.assertAlmostEqual(checks[name][figure], value, places, f'{name}: {figure}')
    return checks

  @long
  def test_movielens_100k(self):
    checks = self.known('ml-100k', {
        'leave-one-out': {
            'targets with later training': .998940, 'targets with a tenth later': .820785,
            'targets with half later': .375398, 'mean share of training that is later': .412529,
            'targets leaked': .961824, 'targets not yet met by anybody': .010604,
            'items not yet there': .116560, 'items that begin after the median target': .100119,
            'last steps known': .374337, 'of these from later': .586402,
            'of these from later alone': .317280},
        'ties': {'interactions at the time of the one before': .505610, 'users with a tie': 1,
                 'tests that a tie decides': .440085},
        'cold targets': {'share': .003181}})
    self.assertBetween(checks['order']['change'], -.62, -.56)

  @long
  def test_amazon_scientific(self):
    checks = self.known('amazon-scientific', {
        'order': {'rules of pairs': 156, 'rules of triples': 24, 'NDCG@10': .0791},
        'identical users': {'users': 40}, 'neighbors': {
            'successors an item': 7.1268, 'items of one successor': .0640,
            'cosine of titles': .1157, 'cosine of titles, pairs drawn': .0183}}, 4)
    self.assertBetween(checks['order']['change'], -.19, -.16)

  @long
  def test_amazon_beauty(self):
    checks = self.known('amazon-beauty', {
        'order': {'rules of pairs': 443, 'rules of triples': 131, 'rules of triples, shuffled': 0},
        'identical users': {'users': 24}})
    self.assertBetween(checks['order']['rules of pairs, shuffled'], 8, 15)
    self.assertBetween(checks['order']['change'], -.37, -.33)


class CommandTest(absltest.TestCase):

  def call(self, *words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
      cli.doctor.run(self.args(*words))
    return out.getvalue()

  def args(self, *words):
    args = cli.parser().parse_args(['doctor', *words])
    args.settings = ()
    return args

  def test_doctor_prints_it_and_writes_a_page(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'audit.html'
    said = self.call('sample:1:60', '--audit', f'--html={path}')
    self.assertIn('targets leaked', said)
    self.assertIn('What was looked at', path.read_text())
    with self.assertRaisesRegex(ConfigError, 'add --audit'):
      self.call('sample:1:60', f'--html={path}')

  def test_nothing_is_said_twice(self):
    rows = [[1, 2, 2, 3, 4], [1, 2, 2, 3, 4], [5, 6, 7, 8, 9], [3, 1, 4]]
    data = shop(*rows, times=[[1, 2, 2, 3, 3], [1, 2, 2, 3, 3], [4, 5, 6, 7, 8], [9, 10, 11]])
    folder = f'{self.create_tempdir().full_path}/shop'
    loading.save_data(data, folder)
    plain, whole = self.call(folder), self.call(folder, '--audit')
    for what, check in (('users with the very sequence of another: 2', 'identical users'),
                        ('users with the same item twice in a row: 2', 'repeats'),
                        ('users with tied times: 2', 'ties'),
                        ("users whose test item is in nobody's training: 4", 'cold targets')):
      self.assertRegex(plain, rf'(note|warning): {what}')
      self.assertEqual(whole.count(what), 1, what)  # below the check, with who it is
      self.assertRegex(whole, rf'\n(note|warning|ok): {check}\n(    .*\n)*    {what}, e\.g\.')
    heads = re.findall(r'^(error|warning|note|ok): ', whole, re.MULTILINE)
    self.assertEqual(heads, sorted(heads, key=audit.LEVELS.index))  # one list

  def test_a_run_says_it_within_seconds(self):
    data = shop(*[[1 + (u + k) % 9 for k in range(5)] for u in range(40)])
    quick = audit.brief(data)
    self.assertEqual([c['name'] for c in quick], [c.name for c in audit.audit(data)])
    self.assertIn('NDCG@10', next(c for c in quick if c['name'] == 'order')['figures'])
    with mock.patch.object(audit, 'QUICK', 40 * 9 - 1):
      order = next(c for c in audit.brief(data) if c['name'] == 'order')
    self.assertEqual((order['figures'], order['level']), ({}, 'note'))
    self.assertIn('recjax doctor', order['sentence'])

  def test_an_error_is_exit_code_1(self):
    data = shop([1, 2, 3, 1], [1, 2, 3, 1], times=[[5, 5, 5, 5], [1, 2, 3, 4]])
    folder = f'{self.create_tempdir().full_path}/shop'
    loading.save_data(data, folder)
    self.call(folder)  # without an audit it only says what it finds
    with self.assertRaises(SystemExit) as end:
      self.call(folder, '--audit')
    self.assertEqual(end.exception.code, 1)


if __name__ == '__main__':
  absltest.main()
