"""Where float32 products are one pass in bfloat16, ranks and lists are what they are here."""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from recjax.data import splits
from recjax.evaluation import blocked_ranking, ranking
from recjax.methods.reclm import train as reclm_train
from recjax.models import semantic_id_t5, t5
from recjax.models.dot_product import DotProduct
from recjax.retrieval import nearest
from tests import short_products
from tests.long import long

USERS, ITEMS, WIDTH = 32, 5000, 64


class PrecisionTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.states, self.table = (rng.normal(size=(n, WIDTH)).astype(np.float32)
                               for n in (USERS, ITEMS))
    self.cases = splits.Cases(np.arange(USERS, dtype=np.int32), (
        np.zeros(0, np.int32), np.zeros(USERS + 1, int)), rng.integers(1, ITEMS, USERS))

  def ranked(self):
    score = DotProduct(lambda i, o: jnp.asarray(self.states), jnp.asarray(self.table))
    return ranking.rank_and_recommend(score, self.cases, ITEMS, 20)

  def assert_equal_when_rounded(self, run):
    want = run()
    with short_products.rounded():
      got = run()
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_ranks_and_lists(self):
    exact = self.states.astype(float) @ self.table.T
    own = np.take_along_axis(exact, self.cases.targets[:, None] - 1, 1)
    np.testing.assert_array_equal(self.ranked()[0], (exact > own).sum(1))
    self.assert_equal_when_rounded(self.ranked)
    with mock.patch.multiple(blocked_ranking, MIN_ITEMS=1, USERS=USERS, PIECE=1024):
      self.assert_equal_when_rounded(self.ranked)
    with short_products.rounded():  # what would be without: half of the lists are others
      plain = jax.lax.top_k(jnp.asarray(self.states) @ self.table.T, 20)[1]
    others = (np.asarray(plain) + 1 != self.ranked()[1]).any(1).mean()
    self.assertGreater(others, .3)

  def test_nearest_items(self):
    vectors = nearest.center(self.table)
    self.assert_equal_when_rounded(lambda: nearest.nearest(vectors, self.states, 20))

  def test_vectors_of_replies(self):
    layers = reclm_train.init_projection(jax.random.key(0), WIDTH, 32, 16)
    self.assert_equal_when_rounded(lambda: reclm_train.project(layers, self.states))

  @long
  def test_codes_of_beams(self):
    net = t5.Config(width=16, layers=1, decoder_layers=1, heads=2, head_dim=8, ffn=16)
    cfg = semantic_id_t5.Config(net, 3, 8, 0, 0)
    params = {'params': semantic_id_t5.init(cfg, jax.random.key(0))}
    decoder = semantic_id_t5.decoder(cfg)
    states = jnp.asarray(self.states[None, :, :16])
    ids = jnp.arange(4) + jnp.zeros((1, USERS, 1), jnp.int32)
    for run in (lambda: decoder.logits(params, states), lambda: decoder.rows(params, states, ids),
                lambda: decoder.window(params, states, 8, 8)):
      self.assert_equal_when_rounded(run)


if __name__ == '__main__':
  absltest.main()
