"""Rewards of lists, against DCG's discounts in plain Python."""
import math

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.policy import rewards


def shares(places):
  """1 / log2(i + 2) of some places, as shares of their sum."""
  weights = [1 / math.log2(i + 2) for i in places]
  return [w / sum(weights) for w in weights]


def list_of(length, place, missing=0):
  """-> where the next item stands, which rows exist; place None for a list without it"""
  target = np.zeros((1, length), bool)
  if place is not None:
    target[0, place] = True
  exists = np.ones((1, length), bool)
  if missing:
    exists[0, -missing:] = False
  return jnp.asarray(target), jnp.asarray(exists)


class RewardsTest(parameterized.TestCase):

  def test_rank_shares_minus_one_by_place(self):
    value = np.asarray(rewards.rank(*list_of(16, 3)))[0]
    wanted = [-w for w in shares(range(16))]
    wanted[3] = 1.0
    np.testing.assert_allclose(value, wanted, atol=1e-6)
    self.assertAlmostEqual(value.sum(), 0.070533, places=5)  # the target's own share is left over
    np.testing.assert_allclose(value[[0, 15]], [-0.163773, -0.040067], atol=1e-6)

  def test_only_items_above_lose_with_rank_above(self):
    value = np.asarray(rewards.rank_above(*list_of(16, 3)))[0]
    np.testing.assert_allclose(value[:5], [*(-w for w in shares(range(3))), 1, 0], atol=1e-6)
    np.testing.assert_allclose(value[:3], [-0.469279, -0.296082, -0.234639], atol=1e-6)
    self.assertEqual(np.abs(value[4:]).max(), 0)
    first = np.asarray(rewards.rank_above(*list_of(4, 0)))[0]
    np.testing.assert_array_equal(first, [1, 0, 0, 0])

  @parameterized.parameters('rank', 'rank_above', 'hit')
  def test_lists_without_the_next_item_say_nothing(self, name):
    value = np.asarray(rewards.REWARDS[name](*list_of(8, None)))
    self.assertEqual(np.abs(value).max(), 0)

  def test_as_printed_they_are_punished(self):
    value = np.asarray(rewards.rank_paper(*list_of(16, None)))[0]
    np.testing.assert_allclose(value, [-w for w in shares(range(16))], atol=1e-6)
    value = np.asarray(rewards.rank_paper(*list_of(16, 3)))[0]
    self.assertAlmostEqual(value.sum(), 0, places=5)
    np.testing.assert_allclose(value[[0, 15]], [-0.176202, -0.043108], atol=1e-6)

  @parameterized.parameters('rank', 'rank_paper')
  def test_rows_that_do_not_exist_have_no_share(self, name):
    value = np.asarray(rewards.REWARDS[name](*list_of(6, 1, missing=2)))[0]
    places = range(4) if name == 'rank' else [0, 2, 3]
    wanted = dict(zip(places, shares(places)))
    np.testing.assert_allclose(
      value, [-wanted.get(0), 1, -wanted[2], -wanted[3], 0, 0], atol=1e-6)

  def test_sums_and_unknown_names(self):
    target, exists = list_of(4, 2)
    value = rewards.make_reward('hit+rank')(target, exists)
    np.testing.assert_allclose(value, rewards.hit(target, exists) + rewards.rank(target, exists))
    for name in ('ndcg', 'rank+', ''):
      with self.assertRaisesRegex(ConfigError, 'rank_above'):
        rewards.make_reward(name)


if __name__ == '__main__':
  absltest.main()
