"""Classical rows against figures computed by hand and against scipy's own solvers."""
import pathlib
from unittest import mock

import numpy as np
import scipy.linalg
from absl.testing import absltest

from recjax.data import loading, splits
from recjax.data.dataset import Interactions, flatten
from recjax.data.splits import Cases
from recjax.errors import ConfigError
from recjax.evaluation import classical, metrics, ranking
from tests.long import long

SEQUENCES = ((1, 2, 3), (1, 2, 4), (2, 3, 1), (3, 4), (1, 2))  # item 5 is never met
TARGETS = (4, 3, 4, 1, 3)
N = 5
TRAIN = Interactions(tuple('abcde'), *flatten(SEQUENCES))
CASES = Cases(np.arange(5, dtype=np.int32), flatten(SEQUENCES), np.array(TARGETS, np.int32))
SCIENTIFIC = pathlib.Path(__file__).parents[2].parent / 'shared/data/amazon-scientific'


def ranks(score):
  return ranking.rank_cases(score, CASES, N).tolist()


def scores(score, *history):
  return np.asarray(score(np.array(history, np.int32), np.array([0, len(history)])))[0]


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


class ChoiceTest(absltest.TestCase):

  def test_validation_chooses(self):
    rows, chosen, left_out = classical.score_functions(
        TRAIN, ['a b', 'b c', 'c d', 'd a', 'e'], CASES)
    self.assertEqual(set(rows), set(classical.GRIDS))
    self.assertEqual(set(chosen), set(classical.GRIDS))
    self.assertEqual(left_out, {})

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
    row, settings = classical._choose(maker, grid, cases, N, True)
    self.assertEqual(settings, dict(place=1, other='a'))
    self.assertEqual(ranking.rank_cases(row, cases, N).tolist(), [0])

  def test_ease_beyond_its_memory_is_left_out_with_what_stands_in(self):
    with mock.patch.object(classical, 'EASE_BYTES', 3 * 4 * N * N - 1):
      rows, _, left_out = classical.score_functions(TRAIN, ['a'] * N, None)
    self.assertEqual(set(left_out), {'ease', 'ease:decay'})
    self.assertRegex(left_out['ease:decay'], 'GiB for 5 items; item_knn:decay stands in')
    self.assertIn('item_knn:decay', rows)

  def test_first_settings_where_nothing_is_held_out(self):
    _, chosen, _ = classical.score_functions(TRAIN, ['a'] * N, None)
    self.assertEqual(chosen['markov_k'], dict(decay=0.7, shrink=10.0, second=0.5))

  def test_what_cannot_be_is_left_out_with_a_reason(self):
    rows, _, left_out = classical.score_functions(TRAIN, ['', '?', '', '', ''], CASES)
    self.assertEqual(left_out, {'text': 'no title has a word', 'id_text': 'no title has a word'})
    self.assertNotIn('text', rows)

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
        (classical.text(data.catalog.columns['title'], 0.7), .109174, .071000)):
      found = metrics.per_case(ranking.rank_cases(row, split.test, n), (10,))
      self.assertAlmostEqual(found['HR@10'].mean(), hits, delta=2e-4)
      self.assertAlmostEqual(found['NDCG@10'].mean(), ndcg, delta=2e-4)


if __name__ == '__main__':
  absltest.main()
