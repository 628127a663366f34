"""Catalogs in pieces: the same ranks and lists as when everything is scored at once."""
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.data import splits
from recjax.errors import ConfigError, DataError
from recjax.evaluation import blocked_ranking, ranking, ties
from recjax.models.dot_product import DotProduct

N = 23


def problem(seed, users=11, levels=2, bias=True):
  """Small whole numbers: every sum is exact and ties are common."""
  rng = np.random.default_rng(seed)
  rows = [rng.integers(1, N + 1, rng.integers(0, 6)) for _ in range(users)]
  flat = np.concatenate(rows).astype(np.int32)
  offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
  targets = np.array([row[0] if len(row) and u % 3 == 0 else rng.integers(1, N + 1)
                      for u, row in enumerate(rows)], np.int32)  # every third target repeats
  own = rng.integers(-levels, levels + 1, (N + 1, 3)).astype(np.float32)

  def states(items, offsets):
    return jnp.asarray([own[items[a:b]].sum(0) for a, b in zip(offsets[:-1], offsets[1:])])
  table = rng.integers(-levels, levels + 1, (N, 3)).astype(np.float32)
  cases = splits.Cases(np.arange(users, dtype=np.int32), (flat, offsets), targets)
  return DotProduct(states, jnp.asarray(table), jnp.asarray(
      rng.integers(0, 2, N), jnp.float32) if bias else None), cases


def in_pieces(piece):
  return mock.patch.multiple(blocked_ranking, MIN_ITEMS=1, PIECE=piece, USERS=4)


class PiecesTest(parameterized.TestCase):

  @parameterized.product(piece=(1, 5, 8, 23, 64), tie=ties.TIES, seen=('inf', 'zero'))
  def test_ranks_and_lists_are_those_of_all_scores(self, piece, tie, seen):
    for seed, mask, bias in ((0, True, True), (1, False, False)):
      score, cases = problem(seed, bias=bias)
      how = dict(mask_history=mask, tie=tie, seen_mask=seen)
      want = ranking.rank_and_recommend(score, cases, N, 7, **how)
      with in_pieces(piece):
        got = ranking.rank_and_recommend(score, cases, N, 7, block=3, **how)
        np.testing.assert_array_equal(ranking.rank_cases(score, cases, N, **how), want[0])
      for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)

  def test_all_equal_scores_rank_last_whatever_the_numbers(self):
    rng = np.random.default_rng(0)
    row = rng.normal(size=64).astype(np.float32)
    states = rng.normal(size=(5, 64)).astype(np.float32)
    score = DotProduct(lambda i, o: jnp.asarray(states), jnp.tile(row, (20_000, 1)))
    cases = splits.Cases(np.arange(5, dtype=np.int32), (np.zeros(0, np.int32), np.zeros(6, int)),
                         np.array([1, 8192, 8193, 17_000, 20_000], np.int32))
    with mock.patch.multiple(blocked_ranking, MIN_ITEMS=1, USERS=5):
      np.testing.assert_array_equal(ranking.rank_cases(score, cases, 20_000), 19_999)

  def test_nan_and_overflow_are_errors_that_name_the_case(self):
    score, _ = problem(0)
    cases = splits.Cases(np.arange(6), (np.arange(1, 7, dtype=np.int32), np.arange(7)),
                         np.full(6, 9, np.int32))
    for bad in (jnp.nan, 3e38):
      def states(items, offsets, bad=bad):
        return jnp.where((jnp.asarray(items) == 5)[:, None], bad, score.states(items, offsets))
      with in_pieces(5), self.assertRaisesRegex(DataError, 'the scores of case 4 hold NaN'):
        ranking.rank_cases(DotProduct(states, score.table), cases, N)
    with in_pieces(5), self.assertRaises(DataError):
      ranking.rank_cases(DotProduct(score.states, score.table.at[3].set(jnp.nan)), cases, N)

  def test_scores_of_another_catalog_and_unknown_ties_are_refused(self):
    score, cases = problem(0)
    with in_pieces(5), self.assertRaisesRegex(DataError, 'a table of 22 rows for 23 items'):
      ranking.rank_cases(DotProduct(score.states, score.table[:22]), cases, N)
    with in_pieces(5), self.assertRaisesRegex(ConfigError, 'tie rule'):
      ranking.rank_cases(score, cases, N, tie='random')


if __name__ == '__main__':
  absltest.main()
