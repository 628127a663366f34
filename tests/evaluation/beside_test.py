"""The rows that stand beside any method's: under its masking, and said where they are left out."""
import dataclasses
from unittest import mock

import numpy as np
from absl.testing import absltest
from ml_collections import ConfigDict

from recjax import base_config
from recjax.data import splits
from recjax.evaluation import beside, classical, ranking
from tests.evaluation.results_test import shop


class BesideTest(absltest.TestCase):

  def ranked(self, **changes):
    data, self.said = shop(), []
    data = dataclasses.replace(data, interactions=dataclasses.replace(
        data.interactions, times=np.arange(len(data.interactions.items), dtype=np.int64)))
    self.split = splits.leave_one_out(data.interactions)
    cfg = ConfigDict(base_config.rows_beside() | changes)
    return beside.rank_beside(self.split, data.catalog, cfg, 0, self.said.append, block=3,
                              mask_history=False, seen_mask='zero')

  def test_settings_are_chosen_as_the_rows_are_ranked(self):
    with mock.patch.object(ranking, 'rank_cases', wraps=ranking.rank_cases) as rank:
      ranks, facts = self.ranked()
    self.assertEqual(list(ranks), ['popularity', 'recency', 'random', *classical.GRIDS])
    self.assertEqual((self.said, facts['classical']['untuned']), ([], {}))
    asked = [call.args[1].users.tolist() for call in rank.call_args_list]
    self.assertIn(self.split.valid.users.tolist(), asked)
    for call in rank.call_args_list:
      self.assertEqual(call.kwargs, dict(block=3, mask_history=False, seen_mask='zero'))

  def test_the_flag_leaves_them_out(self):
    ranks, facts = self.ranked(classical=False)
    self.assertEqual((list(ranks), facts), (['popularity', 'recency', 'random'], {}))
    self.assertEqual([np.shape(x) for x in ranks.values()], [(6,)] * 3)

  def test_what_is_left_out_is_said(self):
    ranks, facts = self.ranked(classical_minutes=0.0)
    self.assertEqual(list(ranks), ['popularity', 'recency', 'random'])
    self.assertEqual(set(facts['classical']['left_out']), set(classical.GRIDS))
    self.assertLen(self.said, len(classical.GRIDS))
    self.assertRegex(self.said[0], 'row markov is left out: .*eval.classical_minutes=0 leave no')


if __name__ == '__main__':
  absltest.main()
