"""The scope-masked loss: cases by hand, and the gather form against a dense mask."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding import trie
from recjax.training.losses import trie_masked

SOI, EOI, V = 6, 7, 8


def table(rows, vocab=V, end=EOI, **kw):
  built = trie.build(rows, end, vocab)
  full = [[*r, end] for r in rows]
  nodes = trie_masked.title_nodes(built.first, built.tok, full)
  return trie_masked.scope_of(built.first, built.tok, vocab), [
      np.asarray(trie_masked.narrowed(n, np.array(r) == end, **kw)) for n, r in zip(nodes, full)]


def nll(logits, targets, nodes, made, **kw):
  """Losses of given logits: the head is the identity."""
  logits = jnp.asarray(logits, jnp.float32)
  return trie_masked.token_nll(logits, jnp.eye(logits.shape[1]), jnp.asarray(targets),
                         jnp.asarray(nodes), made, **kw)


class OracleTest(parameterized.TestCase):

  @parameterized.parameters(
      (None, False, np.log(8)), ('all', False, 1.3863), ('all', True, 0.8664))
  def test_s1_to_s3(self, kind, end, want):
    made, nodes = table([[0, 1], [0, 2], [3]], scope_end=end)
    own = nodes[1] if kind else np.full(3, trie_masked.FREE)
    got = nll(np.zeros((4, V)), [SOI, 0, 2, EOI], [trie_masked.FREE, *own], made)
    self.assertAlmostEqual(float(got.mean()), want, delta=1e-4)

  def test_s4_one_position_and_focal(self):
    made, nodes = table([[0, 1], [0, 2], [3]])
    logits = np.array([[2.0, 1, 0, 0, 0, 0, 0, 0]])
    first = [int(nodes[0][0])]
    self.assertAlmostEqual(float(nll(logits, [0], first, made)[0]), 0.126928, delta=1e-6)
    self.assertAlmostEqual(
      float(nll(logits, [0], [trie_masked.FREE], made)[0]), 0.779275, delta=1e-6
    )
    self.assertAlmostEqual(
      float(nll(logits, [0], first, made, gamma=2.0)[0]), 0.00180356, delta=1e-7
    )

  @parameterized.parameters(('all', 0.0), ('branches', np.log(8)), ('none', np.log(8)))
  def test_s5_single_children(self, kind, want):
    made, nodes = table([[0, 1, 4], [3]], kind=kind)
    got = nll(np.zeros((1, V)), [1], [int(nodes[0][1])], made)
    self.assertAlmostEqual(float(got[0]), want, places=5)

  def test_s6_gradients_stay_among_what_is_allowed(self):
    made, nodes = table([[0, 1], [0, 2], [3]], scope_end=True)
    logits = np.random.default_rng(0).normal(size=(3, V))
    grad = jax.grad(lambda x: nll(x, [0, 2, EOI], nodes[1], made).sum())(jnp.asarray(logits))
    allowed = np.zeros((3, V), bool)
    allowed[0, [0, 3]] = allowed[1, [1, 2]] = True
    np.testing.assert_array_equal(np.asarray(grad)[~allowed], 0)
    np.testing.assert_allclose(grad.sum(-1), 0, atol=1e-6)
    self.assertGreater(float(jnp.abs(grad[:2]).max()), 0.1)

  def test_s7_without_items_it_is_the_plain_loss(self):
    made, _ = table([[0, 1], [3]])
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(5, V)), jnp.float32)
    targets = np.array([1, 4, 5, 0, 2])
    plain = jax.nn.logsumexp(logits, -1) - logits[np.arange(5), targets]
    np.testing.assert_array_equal(nll(logits, targets, [trie_masked.FREE] * 5, made), plain)

  @parameterized.parameters(1 << 28, 256)
  def test_s9_s10_equal_to_a_dense_mask_and_never_above_the_plain_loss(self, chunk):
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, 20, rng.integers(1, 6)).tolist() for _ in range(60)]
    built = trie.build(rows, 21, 22)
    made, nodes = table(rows, 22, 21, scope_end=True)
    targets = np.concatenate([[*r, 21] for r in rows])
    node = np.concatenate(nodes)
    logits = rng.normal(size=(len(targets), 22)).astype(np.float32)
    mask = np.stack([np.isin(np.arange(22), built.children(row[:at]))
                     for row in ([*r, 21] for r in rows) for at in range(len(row))])
    dense = jax.nn.logsumexp(jnp.where(mask, logits, -jnp.inf), -1) - logits[
        np.arange(len(targets)), targets]
    got = nll(logits, targets, node, made, chunk_bytes=chunk)
    np.testing.assert_allclose(got, dense, atol=1e-6)
    free = nll(logits, targets, np.full_like(node, trie_masked.FREE), made)
    self.assertTrue((np.asarray(got) <= np.asarray(free) + 1e-6).all())
    both = nll(logits, targets, node, made, chunk_bytes=chunk, free=3.0)
    np.testing.assert_allclose(both, (np.asarray(got) + 3 * np.asarray(free)) / 4, atol=1e-5)

  def test_outside_titles_the_free_loss_changes_nothing(self):
    made, _ = table([[0, 1], [3]])
    logits, node = np.random.default_rng(1).normal(size=(3, V)), [trie_masked.FREE] * 3
    np.testing.assert_array_equal(nll(logits, [1, 4, 5], node, made),
                                  nll(logits, [1, 4, 5], node, made, free=1.0))


if __name__ == '__main__':
  absltest.main()
