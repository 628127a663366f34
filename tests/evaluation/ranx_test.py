"""Metrics equal those of ranx on identical lists; skipped where it (recjax[parity]) is missing."""
import importlib.util

import numpy as np
from absl.testing import absltest

from recjax.evaluation import metrics
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


if __name__ == '__main__':
  absltest.main()
