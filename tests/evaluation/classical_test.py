"""Classical rows against figures computed by hand and against scipy's own solvers."""
import dataclasses
import pathlib
from unittest import mock

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from absl.testing import absltest

import recjax
from recjax.data import loading, splits
from recjax.data.dataset import Interactions, flatten
from recjax.data.splits import Cases, Split
from recjax.errors import ConfigError, DataError
from recjax.evaluation import baselines, classical, metrics, ranking, settings_store
from tests.long import long

SEQUENCES = ((1, 2, 3), (1, 2, 4), (2, 3, 1), (3, 4), (1, 2))  # item 5 is never met
TARGETS = (4, 3, 4, 1, 3)
N = 5
TRAIN = Interactions(tuple('abcde'), *flatten(SEQUENCES))
TIMES = 15 * 10**8 + np.arange(len(TRAIN.items)) * 86400 * 3  # a step every three days
CASES = Cases(np.arange(5, dtype=np.int32), flatten(SEQUENCES), np.array(TARGETS, np.int32))
SCIENTIFIC = pathlib.Path(__file__).parents[2].parent / 'shared/data/amazon-scientific'


def ranks(score):
  return ranking.rank_cases(score, CASES, N).tolist()


def scores(score, *history):
  return np.asarray(score(np.array(history, np.int32), np.array([0, len(history)])))[0]


class TimedTest(absltest.TestCase):
  """Popularity in its windows, against plain loops."""

  def order(self, score):
    return np.argsort(-np.asarray(score(*flatten([(1,)])))[0], kind='stable').tolist()

  def worth(self, weigh):
    """Items by the sum of `weigh` (age in days) of their interactions, then by count and number."""
    train = timed()
    ages = [(int(train.times.max()) - int(t)) / 86400 for t in train.times]
    counts = [sum(i == item for i in train.items) for item in range(1, N + 1)]
    sums = [sum(weigh(age) for age, i in zip(ages, train.items) if i == item)
            for item in range(1, N + 1)]
    return sorted(range(N), key=lambda k: (-round(sums[k], 9), -counts[k], k))

  def test_the_last_days_alone_and_popularity_parts_the_rest(self):
    found = [self.order(baselines.recent_popularity(timed(), N, days)) for days in (7, 20, 900)]
    self.assertEqual(found, [self.worth(lambda age, days=days: age < days)
                             for days in (7, 20, 900)])
    self.assertEqual(found[2], self.order(baselines.popularity(TRAIN.items, N)))
    self.assertNotEqual(found[0], found[2])

  def test_half_at_the_half_life(self):
    for half in (2., 10., 1e6):
      self.assertEqual(self.order(baselines.decayed_popularity(timed(), N, half)),
                       self.worth(lambda age, half=half: .5 ** (age / half)))

  def test_rows_are_fitted_again_to_the_cut(self):
    until = np.array([2, 2, 2, 1, 1])
    split = Split(timed(), CASES, CASES, '', splits.prefixes(timed(), until))
    made = classical.score_functions(split, [f'a{i}' for i in range(N)], len(CASES), 5.0)
    for row, told in (('markov', True), ('pop_recent', False), ('item_knn', False)):
      found, again, before = (scores(score, 1, 2) for score in (made.scores[row], *(
          classical.fitted(known, ['a'] * N, row, made.settings)
          for known in (split.train, split.for_choice))))
      np.testing.assert_array_equal(found, again)
      self.assertTrue(not told or not np.array_equal(found, before))

  def test_a_window_is_open_where_it_begins(self):
    self.assertNotEqual(self.worth(lambda age: age < 6), self.worth(lambda age: age <= 6))
    self.assertEqual(self.order(baselines.recent_popularity(timed(), N, 6)),
                     self.worth(lambda age: age < 6))

  def test_a_day_is_a_day_in_milliseconds_too(self):
    fine = dataclasses.replace(TRAIN, times=TIMES * 1000)
    self.assertEqual(self.order(baselines.recent_popularity(fine, N, 7)),
                     self.worth(lambda age: age < 7))
    self.assertEqual(self.order(baselines.decayed_popularity(fine, N, 2.)),
                     self.worth(lambda age: .5 ** (age / 2.)))

  def test_no_times_no_row(self):
    with self.assertRaisesRegex(DataError, 'have no times'):
      baselines.recent_popularity(TRAIN, N, 7)
    found = classical.score_functions(Split(TRAIN, CASES, CASES, ''), ['a'] * N, len(CASES), 5.0)
    self.assertEqual(found.left_out, dict.fromkeys(classical.TIMED, 'the data have no times'))


def timed():
  return dataclasses.replace(TRAIN, times=TIMES)


class MarkovTest(absltest.TestCase):

  def test_counts_of_neighbors(self):
    follow = classical.transitions(TRAIN, N).toarray()
    expected = np.zeros((N, N))
    for a, b, count in ((1, 2, 3), (2, 3, 2), (2, 4, 1), (3, 1, 1), (3, 4, 1)):
      expected[a - 1, b - 1] = count
    np.testing.assert_array_equal(follow, expected)

  def test_markov_backs_off_to_popularity(self):
    row = classical.markov(TRAIN, N)
    self.assertEqual(ranks(row), [0, 0, 0, 1, 0])
    # item 5 of a history follows nothing: the order is that of the counts 4 4 3 2 0
    self.assertEqual(np.argsort(-scores(row, 5), kind='stable').tolist(), [0, 1, 2, 3, 4])

  def test_markov_k(self):
    row = classical.markov_k(TRAIN, N, decay=0.5, shrink=1.0, second=0.5)
    np.testing.assert_allclose(scores(row, 1, 2), [.272727, .333333, .419192, .181818, 0],
                               atol=1e-5)
    self.assertEqual(ranks(row), [0, 0, 0, 1, 0])

  def test_only_the_last_items_are_read(self):
    row = classical.markov_k(TRAIN, N, decay=1.0, shrink=0.0, second=0.0)
    late = [5] * classical.LONGEST
    np.testing.assert_array_equal(scores(row, 1, *late), scores(row, 2, *late))
    self.assertGreater(scores(row, 1, *late[1:])[1], 0.9)


class NeighborsTest(absltest.TestCase):

  def test_cosines(self):
    row = classical.item_knn(TRAIN, N, shrink=0.0, neighbors=0, decay=1.0)
    near = np.stack([scores(row, i) for i in (1, 3)])
    np.testing.assert_allclose(near[0], [0, 1, .577350, .353553, 0], atol=1e-6)
    np.testing.assert_allclose(near[1], [.577350, .577350, 0, .408248, 0], atol=1e-6)

  def test_shrunk_and_added_up(self):
    row = classical.item_knn(TRAIN, N, shrink=1.0, neighbors=0, decay=1.0)
    np.testing.assert_allclose(scores(row, 1, 2)[2:], [.896037, .522408, 0], atol=1e-6)
    self.assertEqual(ranks(row), [0, 0, 0, 1, 0])

  def test_nearest_alone(self):
    row = classical.item_knn(TRAIN, N, shrink=0.0, neighbors=1, decay=1.0)
    self.assertEqual(np.flatnonzero(scores(row, 1)).tolist(), [1])
    # items 1 and 2 are equally near to item 3: the lower one stays
    self.assertEqual(np.flatnonzero(scores(row, 3)).tolist(), [0])

  def test_decay_weighs_the_last_item_most(self):
    one = classical.item_knn(TRAIN, N, 1.0, 0, 1.0)
    half = classical.item_knn(TRAIN, N, 1.0, 0, 0.5)
    np.testing.assert_allclose(scores(half, 1, 2), 0.5 * scores(one, 1) + scores(one, 2),
                               atol=1e-6)


class EaseTest(absltest.TestCase):

  def test_by_hand(self):
    row = classical.ease(TRAIN, N, l2=1.0, decay=1.0)
    np.testing.assert_allclose(scores(row, 1)[1:4], [.744186, .2, .071429], atol=1e-6)
    np.testing.assert_allclose(scores(row, 3, 4)[:2], [.162791] * 2, atol=1e-6)
    np.testing.assert_allclose(scores(row, 1, 2)[2:4], [.4, .142857], atol=1e-6)
    # the same users met items 1 and 2, so target 1 ties with 2
    self.assertEqual(ranks(row), [0, 0, 0, 1, 0])

  def test_is_the_ridge_regression_without_oneself(self):
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(12)[:rng.integers(2, 8)] + 1 for _ in range(40)]
    train = Interactions(tuple(map(str, range(40))), *flatten(sequences))
    met = classical.incidence(train, 12).toarray()
    row = classical.ease(train, 12, l2=3.0, decay=1.0)
    for item in range(12):
      others = [i for i in range(12) if i != item]
      a = met[:, others]
      expected = scipy.linalg.solve(a.T @ a + 3.0 * np.eye(11), a.T @ met[:, item])
      learned = [scores(row, i + 1)[item] for i in others]
      np.testing.assert_allclose(learned, expected, atol=1e-5)

  def test_needs_a_ridge(self):
    with self.assertRaisesRegex(ConfigError, 'l2 above 0, not 0'):
      classical.ease(TRAIN, N, l2=0.0, decay=1.0)


class TextTest(absltest.TestCase):

  def test_tf_idf_by_hand(self):
    titles = ['red nail polish', 'Red lip-gloss, red', 'nail file', '', '???']
    vectors = classical.tf_idf(titles).toarray()
    idf = {w: np.log(6 / (1 + df)) + 1 for w, df in
           dict(red=2, nail=2, polish=1, lip=1, gloss=1, file=1).items()}
    second = np.array([(1 + np.log(2)) * idf['red'], idf['lip'], idf['gloss']])
    first = np.array([idf['red'], idf['nail'], idf['polish']])
    cosine = first[0] * second[0] / np.linalg.norm(first) / np.linalg.norm(second)
    self.assertAlmostEqual(vectors[0] @ vectors[1], cosine)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 0])

  def test_history_fades(self):
    row = classical.text(['a b', 'b c', 'c d'], decay=0.5)
    both = scores(row, 1, 2)
    np.testing.assert_allclose(both, 0.5 * scores(row, 1) + scores(row, 2), atol=1e-6)

  def test_blend_is_by_range_of_each_history(self):
    first, second = (lambda items, offsets, x=x: np.array([x])
                     for x in ([1., 3., 2.], [5., 5., 5.]))
    np.testing.assert_allclose(scores(classical.blend(first, second, 0.3), 1), [0, .3, .15])


class GraphTest(absltest.TestCase):

  def listed(self, row, *history):
    """The items of a row's list, best first."""
    found = scores(row, *history)
    return (np.argsort(-found, kind='stable') + 1)[:(found > 0).sum()].tolist()

  def test_ring_1_is_by_title_and_by_how_often_it_followed(self):
    # item 3 followed item 2 twice, item 4 once: .5 against .5 ln 2 / ln 3 = .315465
    row = classical.graph(TRAIN, ['a', 'b', 'c', 'd', 'e'], ((1, (2, 0, 0)),))
    self.assertEqual(self.listed(row, 2), [3, 4])
    for cosine, expected in ((.18, [3, 4]), (.19, [4, 3])):
      vectors = sp.csr_array(np.array([[1, 0], [1, 0], [0, 1], [cosine, 0], [0, 1.]]))
      with mock.patch.object(classical, 'tf_idf', lambda _, v=vectors: v):
        row = classical.graph(TRAIN, ['a'] * N, ((1, (2, 0, 0)),))
      self.assertEqual(self.listed(row, 2), expected)

  def test_rings_have_their_places_and_short_ones_leave_them(self):
    # after 1 comes 2, after that 3 and 4; 5 is near to item 1 and never met
    row = classical.graph(TRAIN, ['a b', 'c', 'd', 'b', 'a b'], ((1, (1, 1, 1)),))
    self.assertEqual(self.listed(row, 1), [2, 4, 5])
    row = classical.graph(TRAIN, ['a b', 'c', 'd', 'b', 'a b'], ((1, (3, 1, 0)),))
    self.assertEqual(self.listed(row, 1), [2, 4, 3, 5])
    self.assertEqual(self.listed(row, 4, 1), [2, 3, 5])  # none of the history

  def test_places_pass_on(self):
    fill = classical._fill
    self.assertEqual(fill([[1, 2, 3], [4], [5]], (2, 2, 1)), [1, 2, 3, 4, 5])
    self.assertEqual(fill([[1], [4, 6, 7], [5, 8]], (2, 2, 1)), [1, 4, 6, 5, 7])
    self.assertEqual(fill([[], [], [5]], (7, 2, 1)), [5])

  def test_two_items_back_without_repeats(self):
    row = classical.graph(TRAIN, list('abcde'), ((1, (1, 0)), (2, (2, 0))))
    self.assertEqual(self.listed(row, 2, 1), [3, 4])  # 3 two steps from 1, 4 after 2
    # the second last of one item is that item
    self.assertEqual(self.listed(row, 2), [3, 4, 1])

  def test_outside_the_list_is_a_miss_and_an_empty_history_has_popular_items(self):
    row = classical.graph(TRAIN, list('abcde'), ((1, (1,)),))
    self.assertEqual(ranks(row), [0, 1, 1, 2, 0])  # a miss has the last place outside the history
    self.assertEqual(np.argsort(-scores(row), kind='stable').tolist(), [0, 1, 2, 3, 4])


class ChoiceTest(absltest.TestCase):

  def rows(self, item_titles=('a b', 'b c', 'c d', 'd a', 'e'), valid=CASES, minutes=5.0,
           store='', train=None, **options):
    return classical.score_functions(Split(train or timed(), valid, CASES, ''), item_titles,
                                     len(CASES), minutes, store, **options)

  def test_validation_chooses(self):
    found = self.rows()
    self.assertEqual(list(found.scores), list(classical.GRIDS))
    self.assertEqual(set(found.settings), set(classical.GRIDS))
    self.assertEqual((found.left_out, found.untuned), ({}, {}))
    self.assertEqual(set(classical.BUDGET), set(classical.GRIDS))

  def test_the_best_of_a_grid_is_chosen_and_the_first_of_equal_ones(self):
    def maker(place, other):
      del other

      def score(items, offsets):
        scores = np.tile(-np.arange(N, dtype=np.float32), (len(offsets) - 1, 1))
        scores[:, 4] = [-5, 5, -5][place]  # of the target
        return scores
      return score
    cases = Cases(np.zeros(1, np.int32), flatten([(1,)]), np.array([5], np.int32))
    grid = dict(place=(0, 1, 2), other=('a', 'b'))
    row, settings = classical._choose(maker, grid, cases, N, {})
    self.assertEqual(settings, dict(place=1, other='a'))
    self.assertEqual(ranking.rank_cases(row, cases, N).tolist(), [0])

  def test_what_was_chosen_is_kept_and_read_for_equal_inputs_alone(self):
    store = pathlib.Path(self.create_tempdir().full_path, 'made', 'here')
    first = self.rows(store=store)
    (kept,) = store.iterdir()
    with mock.patch.object(classical, '_choose', side_effect=AssertionError):
      again = self.rows(store=store)
      for row in first.scores:
        np.testing.assert_array_equal(*(scores(r.scores[row], 1, 2) for r in (first, again)))
      self.assertEqual(first[1:], again[1:])
    others = dict(item_titles=('a b', 'b c', 'c d', 'd a', 'f')), dict(
        valid=CASES.select(np.arange(3))), dict(minutes=0.0000001), dict(mask_history=False), dict(
        valid=dataclasses.replace(CASES, targets=CASES.targets[::-1])), dict(
        train=dataclasses.replace(TRAIN, times=TIMES[::-1])), dict(
        train=dataclasses.replace(TRAIN, times=TIMES, items=TRAIN.items[::-1]))
    for other in others:
      self.rows(store=store, **other)
    self.assertLen(list(store.iterdir()), 1 + len(others))
    self.rows(store=store, block=7)  # moves no rank
    self.assertLen(list(store.iterdir()), 1 + len(others))
    wrong = kept.read_text().replace('"decay": 0', '"decay": 8')
    for broken in ('', '[]', '{"markov": {}}', wrong):
      whole = kept.read_text()
      kept.write_text(broken)
      self.assertEqual(self.rows(store=store).settings, first.settings)
      self.assertEqual(kept.read_text(), whole)

  def test_keys_tell_inputs_versions_and_arrays_of_equal_bytes_apart(self):
    one = np.arange(4, dtype=np.int32)
    given = ((one, one), (one,), (one, None), (one.reshape(2, 2),), (one.view(np.int64),),
             (one.tolist(),), ({'a': 1.0},), ({'a': 2.0},), ('ab', 'c'), ('a', 'bc'))
    keys = [settings_store.key_of(*inputs) for inputs in given]
    with mock.patch.object(recjax, '__version__', 'another'):
      keys.append(settings_store.key_of(one))
    self.assertLen({*keys}, len(given) + 1)
    self.assertEqual(settings_store.key_of({'a': 1, 'b': 2}), settings_store.key_of(
        {'b': 2, 'a': 1}))

  def test_a_store_that_cannot_be_written_is_no_error(self):
    store = pathlib.Path(self.create_tempdir().full_path, 'file')
    store.write_text('')
    self.assertEqual(self.rows(store=store).settings, self.rows().settings)

  def test_what_was_chosen_before_is_fitted_to_the_cut_as_well(self):
    split = Split(timed(), CASES, CASES, '', splits.prefixes(timed(), np.array([2, 2, 2, 1, 1])))
    store = self.create_tempdir().full_path
    made = [classical.score_functions(split, [f'a{i}' for i in range(N)], len(CASES), 5.0, where)
            for where in ('', store, store)]
    for row in made[0].scores:
      for other in made[1:]:
        np.testing.assert_array_equal(*(scores(m.scores[row], 1, 2) for m in (made[0], other)))

  def test_what_has_no_room_is_left_out_with_what_stands_in(self):
    with mock.patch.multiple(classical, MEMORY=3 * 4 * N * N - 1, PAIR_BYTES=1):
      found = self.rows()
    self.assertEqual(set(found.left_out), {'ease', 'ease:decay'})
    self.assertRegex(found.left_out['ease:decay'], 'GiB for 5 items; item_knn:decay stands in')
    self.assertIn('item_knn:decay', found.scores)

  def test_a_budget_is_counted_and_what_it_does_not_hold_is_said(self):
    seconds = classical.counted_seconds(TRAIN.lengths(), N, len(CASES), len(CASES))
    first = sum(least for least, _ in seconds.values())
    exact = first + sum(more for _, more in seconds.values())
    self.assertEqual(self.rows(minutes=1.001 * exact / 60).untuned, {})
    found = self.rows(minutes=1.001 * first / 60)  # room for all rows, for the choice of few
    self.assertEqual((found.left_out, set(found.scores)), ({}, set(classical.GRIDS)))
    self.assertEqual(found.settings['ease'], dict(l2=50.0, decay=1.0))
    self.assertIn('ease', found.untuned)
    self.assertRegex(found.untuned['ease'], 'eval.classical_minutes=.* leave no room')
    self.assertIn('ease:decay', found.untuned)  # the same solutions
    found = self.rows(minutes=1.001 * (first - seconds['ease:decay'][0]) / 60)
    self.assertEqual(set(found.left_out), {'ease:decay'})
    self.assertRegex(found.left_out['ease:decay'], 'minutes of two cores')
    found = self.rows(minutes=1.001 * sum(seconds[r][0] for r in ('markov', 'markov_k')) / 60)
    self.assertEqual(set(found.scores), {'markov', 'markov_k'})
    self.assertEqual(found.left_out['id_text'], 'it is made of text, left out too')

  def test_large_catalogs_lose_what_would_take_hours(self):
    seconds = classical.counted_seconds(np.full(100_000, 8), 1_000_000, 100_000, 2000)
    self.assertGreater(seconds['markov'][0], 600)
    self.assertGreater(seconds['ease'][0], 1e6)
    self.assertEqual(set(classical._beyond(seconds, {}, 5.0)[0]), set(classical.GRIDS))

  def test_first_settings_where_nothing_is_held_out(self):
    found = self.rows(valid=None)
    self.assertEqual(found.settings['markov_k'], dict(decay=0.7, shrink=10.0, second=0.5))
    self.assertEqual(found.untuned['markov_k'], 'nobody is held out to choose by')
    self.assertNotIn('markov', found.untuned)  # it has none

  def test_what_cannot_be_is_left_out_with_a_reason(self):
    found = self.rows(['', '?', '', '', ''])
    self.assertEqual(found.left_out, dict.fromkeys(
        ('text', 'id_text', 'graph1', 'graph2'), 'no title has a word'))
    self.assertNotIn('text', found.scores)

  @long
  def test_published_data(self):
    """Amazon Scientific: figures computed once with plain scipy in float64."""
    if not SCIENTIFIC.exists():
      self.skipTest('Amazon Scientific is not at hand')
    data = loading.load_data(str(SCIENTIFIC))
    split = splits.leave_one_out(data.interactions)
    n = len(data.catalog)
    markov_k = classical.markov_k(split.train, n, decay=0.7, shrink=10.0, second=0.5)
    for row, hits, ndcg in (
        (classical.markov(split.train, n), .089696, .068123), (markov_k, .108332, .079138),
        (classical.item_knn(split.train, n, 20.0, 0, 1.0), .105687, .072792),
        (classical.text(data.catalog.columns['title'], 0.7), .109174, .071000),
        *((classical.graph(split.train, data.catalog.columns['title'], classical.GRAPHS[name]),
           *figures) for name, figures in (
               ('graph1', (.107250, .080964)), ('graph2', (.108212, .081175))))):
      found = metrics.per_case(ranking.rank_cases(row, split.test, n), (10,))
      self.assertAlmostEqual(found['HR@10'].mean(), hits, delta=2e-4)
      self.assertAlmostEqual(found['NDCG@10'].mean(), ndcg, delta=2e-4)


if __name__ == '__main__':
  absltest.main()
