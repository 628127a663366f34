"""Metrics equal those of ranx on identical lists; skipped where it (recjax[parity]) is missing."""
import importlib.util

import numpy as np
from absl.testing import absltest

from recjax.evaluation import metrics, statistics
from tests.long import long


class RanxTest(absltest.TestCase):

  @long
  def test_metrics_are_those_of_ranx_to_a_billionth(self):
    if importlib.util.find_spec('ranx') is None:
      self.skipTest('ranx is not installed')
    import ranx
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(200.0), (500, 1)), axis=1)
    targets = rng.integers(0, 200, 500)
    ranks = (scores > scores[np.arange(500), targets][:, None]).sum(1)
    ours = metrics.per_case(ranks)
    qrels = ranx.Qrels({f'u{u}': {f'i{t}': 1} for u, t in enumerate(targets)})
    run = ranx.Run({f'u{u}': {f'i{i}': float(s) for i, s in enumerate(row)}
                    for u, row in enumerate(scores)})
    names = {'MRR': 'mrr'}
    for k in metrics.KS:
      names |= {f'HR@{k}': f'hit_rate@{k}', f'NDCG@{k}': f'ndcg@{k}'}
    theirs = ranx.evaluate(qrels, run, list(names.values()), return_mean=False)
    order = np.argsort([f'u{u}' for u in range(500)])
    for name, other in names.items():
      got = theirs[other]
      same = np.allclose(ours[name], got, atol=1e-9) or np.allclose(ours[name][order], got,
                                                                   atol=1e-9)
      self.assertTrue(same, name)
      self.assertAlmostEqual(ours[name].mean(), np.mean(got), delta=1e-9)
    recall = ranx.evaluate(qrels, run, 'recall@10')
    self.assertAlmostEqual(ours['HR@10'].mean(), recall, delta=1e-9)

  @long
  def test_several_targets_of_a_user_are_those_of_ranx_too(self):
    if importlib.util.find_spec('ranx') is None:
      self.skipTest('ranx is not installed')
    import ranx
    rng = np.random.default_rng(1)
    scores = rng.permuted(np.tile(np.arange(60.0), (200, 1)), axis=1)
    wanted = [rng.permutation(60)[:rng.integers(1, 15)] for _ in range(200)]
    owners = np.repeat(np.arange(200), [len(w) for w in wanted])
    ranks = np.concatenate([(row > row[w][:, None]).sum(1) for row, w in zip(scores, wanted)])
    ours = metrics.per_case(ranks, (1, 5, 10, 20), np.bincount(owners)[owners])
    qrels = ranx.Qrels({f'u{u:03}': {f'i{t}': 1 for t in w} for u, w in enumerate(wanted)})
    run = ranx.Run({f'u{u:03}': {f'i{i}': float(s) for i, s in enumerate(row)}
                    for u, row in enumerate(scores)})
    for k in (1, 5, 10, 20):
      for name, other in ((f'HR@{k}', f'recall@{k}'), (f'NDCG@{k}', f'ndcg@{k}')):
        theirs = ranx.evaluate(qrels, run, other, return_mean=False)
        np.testing.assert_allclose(statistics.by_user(ours[name], owners), theirs, atol=1e-9)


if __name__ == '__main__':
  absltest.main()
