"""Greedy search over tables."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from recjax.decoding.search import greedy


class GreedyTest(absltest.TestCase):

  def test_takes_the_likeliest_token_and_pads_after_the_end(self):
    rng = np.random.default_rng(0)
    first, table = rng.normal(size=(5, 8)), rng.normal(size=(8, 8))
    tokens, lengths = jax.jit(lambda first: greedy(
        lambda tokens, cache, t: (jnp.asarray(table)[tokens], cache), (), first, 6, (3, 4), 7)
    )(jnp.asarray(first))
    for b in range(5):
      want = [int(first[b].argmax())]
      while len(want) < 6 and want[-1] not in (3, 4):
        want.append(int(table[want[-1]].argmax()))
      self.assertEqual(tokens[b].tolist(), want + [7] * (6 - len(want)))
      self.assertEqual(int(lengths[b]), len(want))

  def test_one_token_needs_no_model_call(self):
    tokens, lengths = greedy(
        lambda tokens, cache, t: (jnp.zeros((*tokens.shape, 4)), cache), (), jnp.eye(4), 1)
    self.assertEqual(tokens.tolist(), [[0], [1], [2], [3]])
    self.assertEqual(lengths.tolist(), [1, 1, 1, 1])


if __name__ == '__main__':
  absltest.main()
