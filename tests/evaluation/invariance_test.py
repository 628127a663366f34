"""What may not change a figure: blocks, padding, the order of users and items, devices."""

import jax
import numpy as np
from absl.testing import absltest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from recjax.data import splits
from recjax.evaluation import metrics, ranking, statistics, ties
from recjax.models import seqrec
from recjax.training import sequential
from tests import devices
from tests.long import examples, long

N = 16


@st.composite
def problems(draw, sizes=(1, 5, 12)):
  """Histories, targets and integer scores with many ties; few shapes, so little is compiled."""
  n = draw(st.sampled_from(sizes))
  rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
  rows = [rng.integers(1, N + 1, length) for length in rng.permutation(n) % 7]
  levels = draw(st.sampled_from([1, 3, 1000]))
  return rows, rng.integers(1, N + 1, n), rng.integers(-levels, levels + 1, (n, N)), rng


def cases(rows, targets):
  flat = np.concatenate([*rows, np.zeros(0)]).astype(np.int32)
  offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
  return splits.Cases(np.arange(len(rows), dtype=np.int32), (flat, offsets),
                      np.asarray(targets, np.int32))


def table(scores, place=lambda x: x):
  """A score function that reads rows off in the order in which blocks ask for them."""
  at = [0]

  def score(items, offsets):
    rows = np.minimum(at[0] + np.arange(len(offsets) - 1), len(scores) - 1)
    at[0] += len(rows)
    return place(np.asarray(scores, np.float32)[rows])
  return score


def ranked(rows, targets, scores, place=lambda x: x, **kw):
  return ranking.rank_and_recommend(table(scores, place), cases(rows, targets), N, 5, **kw)


class InvarianceTest(absltest.TestCase):

  @examples(3, 25)
  @given(problems(), st.sampled_from([1, 4, 20]), st.sampled_from(ties.TIES), st.sampled_from(
      ['inf', 'zero']), st.booleans())
  def test_block_size(self, problem, block, tie, seen, mask):
    *problem, _ = problem
    how = dict(tie=tie, seen_mask=seen, mask_history=mask)
    for a, b in zip(ranked(*problem, **how), ranked(*problem, block=block, **how)):
      np.testing.assert_array_equal(a, b)

  @examples(3, 25)
  @given(problems((2, 12)))
  def test_order_of_users(self, problem):
    rows, targets, scores, rng = problem
    order = rng.permutation(len(rows))
    one = ranked(rows, targets, scores)
    two = ranked([rows[i] for i in order], targets[order], scores[order])
    for a, b in zip(one, two):
      np.testing.assert_array_equal(a[order], b)
    values = [metrics.per_case(x) for x in (one[0], two[0])]
    np.testing.assert_array_equal(values[0]['NDCG@10'][order], values[1]['NDCG@10'])
    found = [statistics.summarize({'a': v, 'b': {m: 1 - x for m, x in v.items()}}, 0, draws=50,
                                  test_draws=99) for v in values]
    self.assertEqual(found[0], found[1])

  @examples(3, 25)
  @given(problems(), st.sampled_from(ties.TIES))
  def test_names_of_items(self, problem, tie):
    rows, targets, scores, rng = problem
    name = np.concatenate([[0], 1 + rng.permutation(N)])
    moved = np.empty_like(scores)
    moved[:, name[1:] - 1] = scores
    one = ranked(rows, targets, scores, tie=tie)
    two = ranked([name[r] for r in rows], name[targets], moved, tie=tie)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[2], two[2])  # ties go to the lower index, so scores alone
    counts = rng.integers(1, 9, N)
    renamed = np.empty_like(counts)
    renamed[name[1:] - 1] = counts
    lists = [(one[1], counts), (name[one[1]], renamed)]
    if one[1].any():
      a, b = (metrics.list_properties(items, count) for items, count in lists)
      for key, value in a.items():
        self.assertAlmostEqual(value, b[key], places=12, msg=key)

  @examples(2, 6)
  @given(problems((8, 12)))
  def test_devices(self, problem):
    rows, targets, scores, _ = problem
    one = ranked(rows, targets, scores, block=8)
    for axes, spec in (({'data': 8}, P('data')), ({'model': 8}, P(None, 'model')),
                       ({'data': 2, 'model': 4}, P('data', 'model'))):
      where = NamedSharding(devices.mesh(**axes), spec)
      # Blocks spread users evenly, so make their number divide: pad with users that are cut off.
      extra = -len(rows) % 8
      full = ([*rows, *[np.array([1])] * extra], np.concatenate([targets, np.ones(extra, int)]),
              np.concatenate([scores, np.zeros((extra, N), int)]))
      two = ranked(*full, place=lambda x, where=where: jax.device_put(x, where), block=8)
      for a, b in zip(one, two):
        np.testing.assert_array_equal(a, b[:len(rows)])

  @examples(2, 6)
  @given(st.integers(0, 99), st.sampled_from(seqrec.KINDS))
  @long
  def test_padding_beside_longer_histories(self, seed, kind):
    model = seqrec.Config(kind, N, 32, width=8, layers=1, hidden=8)
    score = sequential.scorer(model, seqrec.init(model, jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, N + 1, n) for n in (3, 1, 5, 30)]
    together = np.asarray(score(*cases(rows, [1] * 4).histories))
    for row, want in zip(rows, together):
      alone = np.asarray(score(*cases([row], [1]).histories))[0]
      np.testing.assert_allclose(alone, want, atol=1e-6)  # other shapes sum in another order

  def test_copies_that_fill_the_last_block_count_once(self):
    rows, targets, scores = [np.array([1])] * 7, np.arange(7) + 2, np.eye(7, N) * 3
    found = metrics.per_case(ranked(rows, targets, scores, block=4)[0])
    self.assertLen(found['HR@10'], 7)


if __name__ == '__main__':
  absltest.main()
