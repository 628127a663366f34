import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from recjax.data import splits
from recjax.errors import ConfigError, DataError
from recjax.evaluation import baselines, metrics, ranking, ties
from tests import devices
from tests.long import long
from tests.reference import metrics as judge

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared'
N = 12


def ragged(rows):
  return (np.array([i for row in rows for i in row], np.int32),
          np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64))


def make_cases(rows, targets):
  return splits.Cases(np.arange(len(rows)), ragged(rows), np.array(targets, np.int32))


def some_cases(n, seed=0, repeats=True):
  rng = np.random.default_rng(seed)
  rows = [rng.integers(1, N + 1, rng.integers(0, 6)).tolist() for _ in range(n)]
  targets = rng.integers(1, N + 1, n)
  if not repeats:
    rows = [[i for i in row if i != t] for row, t in zip(rows, targets)]
  return make_cases(rows, targets), rows


def coarse(items, offsets):
  """Scores with many ties, a function of the history alone."""
  sums = np.array([items[a:b].sum() for a, b in zip(offsets[:-1], offsets[1:])])
  return ((sums[:, None] * 7 + np.arange(N) * 5) % 4).astype(np.float32)


class ChoiceTest(absltest.TestCase):
  """Epochs and settings are chosen by the mean over users, as results are told."""

  HITS = np.array([True] * 8 + [False] * 2)  # a user of eight cases, two users of one

  def cases(self, as_set=False):
    users = np.array([0] * 8 + [1, 2], np.int32)
    targets = np.array([*range(3, 11), 3, 3], np.int32)
    return splits.Cases(users, ragged([[1]] * 8 + [[2]] * 2), targets, as_set)

  def test_a_user_of_many_cases_counts_once(self):
    ranks = np.where(self.HITS, 0, 20)
    self.assertAlmostEqual(ranking.mean_ndcg(ranks, self.cases()), 1 / 3)
    perfect = np.array([*range(8), 0, 0])  # of the set no list can be better
    self.assertAlmostEqual(ranking.mean_ndcg(perfect, self.cases(as_set=True)), 1)

  def test_validation_draws_users_whole_and_means_over_them(self):
    scores = np.zeros((1, N), np.float32)
    scores[0, 2:10] = np.arange(8, 0, -1)
    def scorer(params):
      return lambda items, offsets: np.repeat(scores * params, len(offsets) - 1, 0)
    judge = ranking.validator(scorer, self.cases(as_set=True), N, 1)
    np.testing.assert_allclose(judge(np.ones(1)), [1])
    drawn = splits.drawn_rows(self.cases(), 9, 0)
    self.assertIn(len(drawn), (1, 2, 9))
    self.assertIn((drawn < 8).sum(), (0, 8))
    judge = ranking.validator(scorer, self.cases(as_set=True), N, 1, 8)
    np.testing.assert_allclose(judge(np.ones(1)), [1])


class ItemRanksTest(parameterized.TestCase):

  @parameterized.parameters(('pessimistic', [2, 4, 4]), ('optimistic', [1, 0, 4]),
                            ('mean', [1.5, 2, 4]))
  def test_ties_by_hand(self, tie, want):
    scores = jnp.array([[3, 2, 2, 1, 0], [1, 1, 1, 1, 1], [1, 2, 3, 4, -jnp.inf]], jnp.float32)
    found = ranking.item_ranks(scores, jnp.array([2, 4, 5]), tie)
    np.testing.assert_array_equal(found, want)
    self.assertEqual(found.dtype, np.float32 if tie == 'mean' else np.int32)

  def test_nan_gives_minus_one_wherever_it_stands(self):
    scores = np.zeros((3, 4), np.float32)
    scores[0, 0] = scores[1, 2] = np.nan
    np.testing.assert_array_equal(ranking.item_ranks(scores, np.array([1, 1, 1])), [-1, -1, 3])

  def test_zeroing_seen_items_is_worse_than_masking_them(self):
    scores = np.array([[-0.5, 3.0, -1.0, -2.0]], np.float32)
    case = make_cases([[2]], [1])
    self.assertEqual(ranking.rank_cases(lambda *_: scores, case, 4)[0], 0)
    self.assertEqual(ranking.rank_cases(lambda *_: scores, case, 4, seen_mask='zero')[0], 1)
    ranks, items, values = ranking.rank_and_recommend(lambda *_: scores, case, 4, 2,
                                                      seen_mask='zero')
    self.assertEqual((ranks.tolist(), items.tolist()), ([1], [[2, 1]]))
    np.testing.assert_array_equal(values, [[0, -.5]])
    again = make_cases([[1, 2]], [1])  # a repeated target keeps its score and never beats itself
    for tie in ties.TIES:
      found = ranking.rank_cases(lambda *_: scores, again, 4, seen_mask='zero', tie=tie)
      self.assertEqual(found[0], 1)
    self.assertIn('SET TO ZERO', ranking.protocol(4, seen_mask='zero'))
    with self.assertRaisesRegex(ConfigError, "seen_mask='one'"):
      ranking.rank_cases(lambda *_: scores, case, 4, seen_mask='one')

  def test_all_equal_scores_rank_last_less_the_masked(self):
    case = make_cases([[1, 2, 2], []], [5, 5])
    found = ranking.rank_cases(lambda i, o: np.zeros((2, N), np.float32), case, N)
    np.testing.assert_array_equal(found, [N - 3, N - 1])

  def test_sharded_scores_rank_the_same(self):
    mesh = devices.mesh(data=2, model=4)
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (4, 16)).astype(np.float32)
    target = rng.integers(1, 17, 4)
    split = jax.device_put(scores, NamedSharding(mesh, P('data', 'model')))
    np.testing.assert_array_equal(ranking.item_ranks(split, target),
                                  ranking.item_ranks(scores, target))

  def test_unknown_tie_rule(self):
    with self.assertRaisesRegex(ConfigError, 'pessimistic, optimistic, mean'):
      ranking.item_ranks(np.zeros((1, 2), np.float32), np.array([1]), 'random')


class ListRanksTest(absltest.TestCase):

  def test_places_and_what_is_missing(self):
    items = np.array([[4, 2, 0], [1, 3, 5], [0, 0, 0]])
    self.assertEqual(ranking.list_ranks(items, [2, 2, 7], 9).tolist(), [1, 9, 9])


class RankCasesTest(parameterized.TestCase):

  @parameterized.product(tie=ties.TIES, mask=(True, False))
  def test_ranks_match_sorting(self, tie, mask):
    cases, rows = some_cases(40)
    scores = coarse(*cases.histories)
    found = ranking.rank_cases(coarse, cases, N, block=7, mask_history=mask, tie=tie)
    want = [judge.rank(s, t, row if mask else (), tie)
            for s, t, row in zip(scores, cases.targets, rows)]
    np.testing.assert_array_equal(found, want)

  @parameterized.product(tie=ties.TIES, mask=(True, False))
  def test_one_list_for_all_is_ranked_as_by_sorting(self, tie, mask):
    cases, rows = some_cases(60, seed=3)
    score = baselines.OneList(np.random.default_rng(0).integers(0, 5, N))
    found = ranking.rank_cases(score, cases, N, mask_history=mask, tie=tie)
    scores = np.asarray(score(*cases.histories))
    want = [judge.rank(s, t, row if mask else (), tie)
            for s, t, row in zip(scores, cases.targets, rows)]
    np.testing.assert_array_equal(found, want)
    self.assertEqual(found.dtype, np.float32 if tie == 'mean' else np.int32)
    zero = ranking.rank_cases(score, cases, N, mask_history=mask, seen_mask='zero')
    shown = [np.where(np.isin(np.arange(1, N + 1), row), 0, s) if mask else s
             for s, row in zip(scores, rows)]  # places are below 0, so what was seen comes first
    self.assertEqual(zero.tolist(), [int((s >= whole[t - 1]).sum() - (s[t - 1] >= whole[t - 1]))
                                     for s, whole, t in zip(shown, scores, cases.targets)])
    with self.assertRaisesRegex(DataError, 'gave shape'):
      ranking.rank_cases(score, cases, N + 1)

  @settings(max_examples=15, deadline=None, database=None)
  @given(st.integers(1, 30), st.sampled_from([1, 2, 5, 16]), st.randoms(use_true_random=False))
  def test_block_size_and_order_of_users_change_nothing(self, n, block, shuffle):
    cases, rows = some_cases(n, seed=n)
    want = ranking.rank_cases(coarse, cases, N)
    np.testing.assert_array_equal(ranking.rank_cases(coarse, cases, N, block=block), want)
    order = list(range(n))
    shuffle.shuffle(order)
    moved = make_cases([rows[i] for i in order], cases.targets[order])
    np.testing.assert_array_equal(ranking.rank_cases(coarse, moved, N, block=block), want[order])

  def test_every_block_has_one_shape(self):
    shapes = set()
    def score(items, offsets):
      shapes.add(len(offsets))
      return coarse(items, offsets)
    ranking.rank_cases(score, some_cases(11)[0], N, block=4)
    self.assertLen(shapes, 1)

  @parameterized.parameters(
      ('hold NaN', [[1]], [2], lambda i, o: np.full((1, N), np.nan)),
      ('gave shape', [[1]], [2], lambda i, o: np.zeros((1, N + 1))),
      ('case 1 holds item 13', [[1], [2, 13]], [2, 2], coarse),
      ('a target lies outside', [[1]], [0], coarse),
      ('no history to rank', [], [], coarse),
      ('2 targets for 1', [[1]], [1, 2], coarse))
  def test_bad_input_is_named(self, words, rows, targets, score):
    with self.assertRaisesRegex(DataError, words):
      ranking.rank_cases(score, make_cases(rows, targets), N)

  def test_nan_at_a_repeated_target_is_found_and_its_case_named(self):
    def score(items, offsets):
      scores = coarse(items, offsets)
      scores[items[offsets[:-1]] == 3, 2] = np.nan
      return scores
    with self.assertRaisesRegex(DataError, 'case 2 hold NaN'):
      ranking.rank_cases(score, make_cases([[1], [2], [3], [4]], [5, 5, 3, 5]), N, block=2)

  def test_memory_bounds_the_block(self):
    self.assertEqual(ranking.block_size(1_000_000, memory=120_000_000), 10)
    self.assertEqual(ranking.block_size(10 ** 9, memory=1), 1)

  def test_protocol_names_what_decides(self):
    self.assertEqual(ranking.protocol(4344), 'leave-one-out, full ranking over 4,344 items, '
                                             'history masked, pessimistic ties')
    self.assertIn('not masked', ranking.protocol(9, mask_history=False))


class TopItemsTest(parameterized.TestCase):

  @parameterized.parameters(True, False)
  def test_lists_match_sorting(self, exclude):
    cases, rows = some_cases(20)
    items, scores = ranking.top_items(coarse, *cases.histories, N, 5, exclude, block=6)
    for row, mine, got, kept in zip(coarse(*cases.histories), items, scores, rows):
      want = sorted((i for i in range(1, N + 1) if not exclude or i not in kept),
                    key=lambda i: (-row[i - 1], i))[:5]
      self.assertEqual(mine.tolist(), want)
      np.testing.assert_array_equal(got, row[np.array(want) - 1])

  def test_only_allowed_items_and_empty_places_where_they_run_out(self):
    allowed = np.isin(np.arange(1, N + 1), [2, 5])
    items, scores = ranking.top_items(coarse, *ragged([[5], [1]]), N, 3, True, allowed)
    self.assertEqual(items[0].tolist(), [2, 0, 0])
    self.assertEqual(sorted(items[1].tolist()), [0, 2, 5])
    self.assertEqual(scores[0, 1], -np.inf)

  def test_one_pass_gives_ranks_and_lists(self):
    cases, _ = some_cases(17, repeats=False)
    ranks, items, scores = ranking.rank_and_recommend(coarse, cases, N, 4, block=5)
    np.testing.assert_array_equal(ranks, ranking.rank_cases(coarse, cases, N))
    want = ranking.top_items(coarse, *cases.histories, N, 4)
    np.testing.assert_array_equal(items, want[0])
    np.testing.assert_array_equal(scores, want[1])

  def test_a_repeated_target_is_ranked_but_never_listed(self):
    ranks, items, _ = ranking.rank_and_recommend(
        lambda i, o: np.arange(N, dtype=np.float32)[None], make_cases([[N]], [N]), N, 2)
    self.assertEqual((ranks.tolist(), items.tolist()), ([0], [[N - 1, N - 2]]))

  @parameterized.parameters(0, N + 1)
  def test_k_outside_the_catalog(self, k):
    with self.assertRaisesRegex(DataError, f'k is {k}'):
      ranking.top_items(coarse, *ragged([[1]]), N, k)

  def test_nan_and_a_wrong_filter_are_errors(self):
    with self.assertRaisesRegex(DataError, 'NaN'):
      ranking.top_items(lambda i, o: np.full((1, N), np.nan), *ragged([[1]]), N, 2)
    with self.assertRaisesRegex(DataError, 'allowed is'):
      ranking.top_items(coarse, *ragged([[1]]), N, 2, allowed=np.ones(N))


class BaselinesTest(absltest.TestCase):

  def test_popularity_counts_and_recency_looks_at_the_end(self):
    items, offsets = ragged([[1, 2, 3], [1, 2], [1, 4]])
    def top(score):
      return ranking.top_items(score, *ragged([[]]), 5, 5, False)[0][0].tolist()
    self.assertEqual(top(baselines.popularity(items, 5)), [1, 2, 3, 4, 5])
    # 1: 1/4 + 1/2 + 1/2; 2: 1/2 + 1; 3: 1; 4: 1
    self.assertEqual(top(baselines.recency(items, offsets, 5)), [2, 1, 3, 4, 5])

  def test_random_depends_on_seed_and_history_alone(self):
    histories = ragged([[1, 2], [3], [1, 2], []])
    one = np.asarray(baselines.random_scores(50, 0)(*histories))
    np.testing.assert_array_equal(one[0], one[2])
    self.assertFalse((one[0] == one[1]).any())
    self.assertFalse((one == np.asarray(baselines.random_scores(50, 1)(*histories))).all())
    np.testing.assert_array_equal(baselines.random_scores(50, 0)(*ragged([[3]]))[0], one[1])

  def test_random_ranks_are_uniform(self):
    rng = np.random.default_rng(0)
    cases = make_cases(rng.integers(1, 101, (4000, 3)).tolist(), rng.integers(1, 101, 4000))
    ranks = ranking.rank_cases(baselines.random_scores(100, 0), cases, 100, mask_history=False)
    share = np.bincount(ranks // 10, minlength=10) / 4000
    np.testing.assert_allclose(share, 0.1, atol=4 * np.sqrt(0.09 / 4000))  # four sigma

  @absltest.skipUnless((SHARED / 'data/amazon-beauty').is_dir(), 'no shared Beauty data')
  @long
  def test_popularity_on_beauty_is_the_published_figure(self):
    folder = SHARED / 'data/amazon-beauty'
    def read(name):
      return map(json.loads, (folder / name).read_text().splitlines())
    index = {row['item_id']: i for i, row in enumerate(read('items.jsonl'), start=1)}
    rows = [[index[i] for i in row['items']] for row in read('sequences.jsonl')]
    train = np.array([i for row in rows for i in row[:-2]], np.int32)
    cases = make_cases([row[:-1] for row in rows], [row[-1] for row in rows])
    ranks = ranking.rank_cases(baselines.popularity(train, len(index)), cases, len(index))
    found = {name: x.mean() for name, x in metrics.per_case(ranks, (5, 10)).items()}
    want = {'HR@5': 0.0075, 'NDCG@5': 0.0041, 'HR@10': 0.0115, 'NDCG@10': 0.0055}
    for name, value in want.items():
      self.assertAlmostEqual(found[name], value, delta=0.0002, msg=name)


if __name__ == '__main__':
  absltest.main()
