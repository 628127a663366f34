"""Sampled protocols: what may be drawn, and what sampling does to a rank."""
import numpy as np
from absl.testing import absltest, parameterized

from recjax.data import splits
from recjax.data.dataset import Interactions
from recjax.errors import ConfigError
from recjax.evaluation import ranking, sampled_ranking


def shop(users=30, items=300, length=8, seed=0):
  rng = np.random.default_rng(seed)
  flat = np.concatenate([rng.permutation(items)[:length] + 1 for _ in range(users)])
  return Interactions(tuple(map(str, range(users))), flat.astype(np.int32),
                      np.arange(users + 1, dtype=np.int64) * length)


class SampledTest(parameterized.TestCase):

  @parameterized.parameters(*sampled_ranking.PROTOCOLS)
  def test_draws_leave_out_history_and_target(self, how):
    split = splits.leave_one_out(shop())
    counts = np.ones(300, np.int64)
    train = split.train if how == 'uniform100_sasrec' else None
    drawn = sampled_ranking.draw(how, split.test, counts, 0, train)
    self.assertEqual(drawn.shape, (30, 99 if how == 'uniform99' else 100))
    for case, row in enumerate(drawn):
      self.assertNotIn(split.test.targets[case], row)
      known = split.train.history(case) if train is not None else split.test.history(case)
      self.assertFalse(set(row) & set(known.tolist()))
      if how != 'uniform100_sasrec':
        self.assertLen(set(row), len(row))
    self.assertIn('SAMPLED', sampled_ranking.protocol(how))

  def test_popular_items_come_more_often(self):
    counts = np.where(np.arange(300) < 150, 9, 1)
    drawn = sampled_ranking.draw('pop100', splits.leave_one_out(shop()).test, counts, 0)
    self.assertGreater((drawn <= 150).mean(), .7)

  @parameterized.parameters((500, .9918), (1000, .6880), (1500, .1908))
  def test_13_a_full_rank_of_hundreds_is_a_sampled_hit(self, rank, want):
    items, users = 12101, 3000
    data = Interactions(tuple(map(str, range(users))), np.tile([1, 2, 3], users).astype(np.int32),
                        np.arange(users + 1, dtype=np.int64) * 3)
    cases = splits.leave_one_out(data).test
    scores = np.zeros(items, np.float32)
    scores[3:3 + rank] = 1  # `rank` items beat the target, which is item 3
    scores[2] = .5
    drawn = sampled_ranking.draw('uniform100', cases, np.ones(items, np.int64), 1)
    ranks = sampled_ranking.rank_cases(
      lambda i, o: np.tile(scores, (len(o) - 1, 1)), cases, items, drawn
    )
    self.assertAlmostEqual((ranks < 10).mean(), want, delta=0.03)

  def test_ties_count_against_the_target(self):
    split = splits.leave_one_out(shop())
    drawn = sampled_ranking.draw('uniform99', split.test, np.ones(300, np.int64), 0)
    ranks = sampled_ranking.rank_cases(
      lambda i, o: np.zeros((len(o) - 1, 300)), split.test, 300, drawn
    )
    self.assertTrue((ranks == 99).all())

  def test_among_all_other_items_it_is_the_full_ranking(self):
    cases, rng = splits.leave_one_out(shop(items=40)).test, np.random.default_rng(1)
    scores = rng.integers(0, 5, (len(cases), 40)).astype(np.float32)  # most of them tie
    drawn = np.stack([np.setdiff1d(np.arange(1, 41), [target]) for target in cases.targets])
    score = lambda items, offsets: scores  # noqa: E731
    np.testing.assert_array_equal(
      sampled_ranking.rank_cases(score, cases, 40, drawn, len(cases)),
      ranking.rank_cases(score, cases, 40, len(cases), mask_history=False))

  def test_impossible_draws_are_refused(self):
    split = splits.leave_one_out(shop(items=100))
    with self.assertRaisesRegex(ConfigError, 'only 100'):
      sampled_ranking.draw('uniform100', split.test, np.ones(100, np.int64), 0)
    with self.assertRaisesRegex(ConfigError, 'eval.sampled'):
      sampled_ranking.protocol('uniform101')


if __name__ == '__main__':
  absltest.main()
