"""Metrics equal those of ranx on identical lists; skipped where it (recjax[parity]) is missing."""
import importlib.util

import numpy as np
from absl.testing import absltest

from recjax.evaluation import metrics, statistics
from tests.long import long


def ranked(seed, users, items):
  """Scores of every item for every user, each user's in another order."""
  rng = np.random.default_rng(seed)
  return rng, rng.permuted(np.tile(np.arange(float(items)), (users, 1)), axis=1)


class RanxTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    if importlib.util.find_spec('ranx') is None:
      self.skipTest('ranx is not installed')

  def judge(self, scores, wanted, names):
    """What ranx says of each user. wanted: items of each user. -> {name: (users,)}"""
    import ranx
    user = [f'u{u:03}' for u in range(len(scores))]  # ranx goes by sorted names
    qrels = ranx.Qrels({u: {f'i{i}': 1 for i in items} for u, items in zip(user, wanted)})
    run = ranx.Run({u: {f'i{i}': float(s) for i, s in enumerate(row)}
                    for u, row in zip(user, scores)})
    return ranx.evaluate(qrels, run, list(names), return_mean=False)

  @long
  def test_metrics_are_those_of_ranx_to_a_billionth(self):
    rng, scores = ranked(0, 500, 200)
    targets = rng.integers(0, 200, 500)
    ours = metrics.per_case((scores > scores[np.arange(500), targets][:, None]).sum(1))
    names = {'MRR': 'mrr'}
    for k in metrics.KS:
      names |= {f'HR@{k}': f'hit_rate@{k}', f'NDCG@{k}': f'ndcg@{k}'}
    theirs = self.judge(scores, targets[:, None], [*names.values(), 'recall@10'])
    for name, other in [*names.items(), ('HR@10', 'recall@10')]:
      np.testing.assert_allclose(ours[name], theirs[other], atol=1e-9, err_msg=name)

  @long
  def test_several_targets_of_a_user_are_those_of_ranx_too(self):
    rng, scores = ranked(1, 200, 60)
    wanted = [rng.permutation(60)[:rng.integers(1, 15)] for _ in range(200)]
    owners = np.repeat(np.arange(200), [len(w) for w in wanted])
    ranks = np.concatenate([(row > row[w][:, None]).sum(1) for row, w in zip(scores, wanted)])
    ours = metrics.per_case(ranks, (1, 5, 10, 20), np.bincount(owners)[owners])
    names = {f'{name}@{k}': f'{other}@{k}' for k in (1, 5, 10, 20)
             for name, other in (('HR', 'recall'), ('NDCG', 'ndcg'))}
    theirs = self.judge(scores, wanted, names.values())
    for name, other in names.items():
      np.testing.assert_allclose(statistics.by_user(ours[name], owners), theirs[other], atol=1e-9,
                                 err_msg=name)


if __name__ == '__main__':
  absltest.main()
