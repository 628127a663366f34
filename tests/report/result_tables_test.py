"""The results table says what results.json holds: values, intervals, p-values, the best."""
import re

import numpy as np
from absl.testing import absltest, parameterized

from recjax.report import result_tables


def cell(value, low=None, high=None, n=4000):
  return {'value': value, 'low': low, 'high': high, 'n': n}


MADE = {
    'protocol': 'leave-one-out, 1,000 items', 'seeds': [0, 1],
    'rows': {
        'betags': {'HR@10': cell(0.1712, 0.16, 0.18), 'NDCG@10': cell(0.09, 0.08, 0.1),
                   'HR@10:mid': cell(0.2, 0.1, 0.3, 40)},
        'base_tags': {'HR@10': cell(0.1394, 0.13, 0.15), 'NDCG@10': cell(0.095, 0.08, 0.1)},
        'random': {'HR@10': cell(0.0, 0.0, 0.0), 'NDCG@10': cell(None)},
    },
    'tests': {'betags>base_tags': {'HR@10': 0.0002, 'NDCG@10': 0.3},
              'base_tags>random': {'HR@10': 0.0123}},
}


def text(made):
  return re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', made)).replace('&lt;', '<')


def rows_of(made):
  body = made.split('<tbody>')[1].split('</tbody>')[0]
  return [text(row) for row in body.split('</tr>')[:-1]]


class ResultsTest(parameterized.TestCase):

  def test_rows_show_value_interval_p_and_best(self):
    made = result_tables.results_table(MADE, reference='base_tags', labels={'betags': 'BETags'})
    first, second, third = rows_of(made)
    self.assertIn('BETags 0.1712 (best) 0.1600 to 0.1800 < 0.001 0.0900', first)
    self.assertIn('base_tags 0.1394 0.1300 to 0.1500 reference 0.0950 (best)', second)
    self.assertIn('random 0.0000 0.0000 to 0.0000 0.012 –', third)
    self.assertEqual(made.count('<strong>'), 2)

  def test_what_the_figures_rest_on_is_said(self):
    made = text(result_tables.results_table(MADE, reference='base_tags'))
    self.assertIn('Protocol: leave-one-out, 1,000 items. Seeds: 0, 1.', made)
    self.assertIn('n = 4,000.', made)
    self.assertIn('against base_tags', made)

  def test_classical_rows_that_are_left_out_are_said(self):
    facts = {'left_out': {'ease': 'it is slow', 'ease:decay': 'it is slow'},
             'untuned': {'markov_k': 'nobody is held out'}}
    made = text(result_tables.results_table({**MADE, 'classical': facts}))
    self.assertIn('Left out: EASE, EASE, later items more, since it is slow.', made)
    self.assertIn('With first settings: Markov chain, last 20 items, since nobody is held', made)

  def test_groups_have_a_section_of_their_own(self):
    made = result_tables.results_table(MADE)  # hundreds of lines with groups of months and lengths
    self.assertNotIn('HR@10:mid', made)
    self.assertIn('results.json has those of groups', made)

  def test_main_metric_comes_first_and_has_the_bar(self):
    made = result_tables.results_table(MADE, ('HR@10', 'NDCG@10'), 'NDCG@10')
    self.assertLess(made.index('NDCG@10</th>'), made.index('HR@10</th>'))
    self.assertEqual(made.count('class="bar"'), 2)

  def test_an_unknown_reference_is_an_error(self):
    with self.assertRaises(KeyError):
      result_tables.results_table(MADE, reference='sasrec')

  def test_a_result_without_tests_or_values_still_makes_a_table(self):
    rows = {'a': {'HR@10': cell(float('nan'))}}
    made = result_tables.results_table({'rows': rows}, reference='a')
    self.assertIn('–', text(made))

  @parameterized.parameters(
      ([cell(0.1, 0.05, 0.15), cell(0.02, 0.01, 0.03)], '0 to 0.15'),
      ([cell(0.9, 0.89, 0.912), cell(0.85, 0.84, 0.86)], '0.84 to 0.912'),
      ([cell(-0.02, -0.041, 0.0)], '−0.041 to 0'), ([cell(0.0, 0.0, 0.0)], '0 to 1'))
  def test_bars_start_at_zero_unless_all_lie_far_from_it(self, cells, ends):
    rows = {f'row {i}': {'HR@10': found} for i, found in enumerate(cells)}
    self.assertIn(f'HR@10 {ends} ', text(result_tables.results_table({'rows': rows})))

  def test_bar_puts_values_where_they_belong(self):
    made = result_tables.interval_bar(cell(0.5, 0.2, 0.8), (0.0, 1.0), 0.25)
    (left, right), mark, (low, high) = [
        [float(x) for x in re.findall(r'x[12]="([^"]*)"', line)]
        for line in made.split('<line')[1:]]
    value = float(re.search(r'cx="([^"]*)"', made)[1])
    np.testing.assert_allclose(
        [value, low, high, *mark], left + np.array([0.5, 0.2, 0.8, 0.25, 0.25]) * (right - left))
    self.assertEqual(result_tables.interval_bar(None, (0, 1)), '')

  def test_tiles_show_four_decimals_and_the_interval(self):
    rows = {'a': {'HR@10': {'value': .5, 'low': .4, 'high': .6}}}
    made = result_tables.metric_tiles({'rows': rows}, 'a', ['HR@10'])
    self.assertEqual(made, [('HR@10', '0.5000', '0.4000 to 0.6000')])

  @parameterized.parameters((0.0, '< 0.001'), (0.0456, '0.046'), (1, '1.000'), (None, '–'))
  def test_p_values_are_written_for_readers(self, p, shown):
    self.assertEqual(result_tables.p_value(p), shown)

  def test_groups_of_too_few_users_are_named_and_not_drawn(self):
    cells = {f'HR@10:{group}': cell(.2, .1, .3, n) for group, n in (
        ('head', 30), ('uncategorized', 29), ('cold', 3))}
    results = {'rows': {'a': cells}, 'lists': {}, 'cold_targets': 3}
    made = text(result_tables.groups_section(results, 'a').body)
    self.assertIn('fewer than 30 users are not drawn: uncategorized (29), cold (3).', made)
    few = {name: {**c, 'n': 5} for name, c in cells.items()}  # all of them: drawn as they are
    self.assertNotIn('not drawn', text(result_tables.groups_section(
        {**results, 'rows': {'a': few}}, 'a').body))


if __name__ == '__main__':
  absltest.main()
