"""Greedy search over tables, which is sampling at temperature 0."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from recjax.decoding import sampling
from recjax.decoding.constraints import Unconstrained
from recjax.decoding.lm_head import BoundDecoder
from recjax.decoding.sampling import Sampling, sample


def greedy(step, first, new_tokens, eos_ids=(), pad_id=0):
  """Sampling at temperature 0. -> tokens (B, T), lengths (B,)"""
  found = sample(
    BoundDecoder(step),
    (),
    first,
    Unconstrained(eos_ids),
    Sampling(1, new_tokens, 0.0, pad_id=pad_id),
    jax.random.key(0),
  )
  return found.tokens[:, 0], found.lengths[:, 0]


class NoiseTest(absltest.TestCase):

  def test_every_step_request_and_row_draws_its_own(self):
    key = sampling.jax.random.key(0)
    found = [sampling.gumbel_noise(key, t, (3, 2, 5)) for t in (0, 1)]
    rows = {tuple(row) for x in found for row in x.reshape(-1, 5).tolist()}
    self.assertLen(rows, 12)
    self.assertTrue(
      (sampling.gumbel_noise(key, 0, (1, 2, 5)) == found[0][:1]).all()
    )  # whatever the batch


class OwnDrawsTest(absltest.TestCase):

  def test_each_request_is_drawn_as_it_is_alone(self):
    """Seeds and temperatures of a batch, in one program, against a program each."""
    rng = np.random.default_rng(0)
    first, table = jnp.asarray(rng.normal(size=(6, 9))), jnp.asarray(rng.normal(size=(9, 9)))
    seeds, temperatures = [3, 3, 2**31, 0, 7, 3], [0.7, 0.7, 2.0, 0.0, 0.01, 0.0]
    compiled = []

    def run(first, search, key):
      compiled.append(search)
      return sample(BoundDecoder(lambda tokens, cache, t: (table[tokens], cache)), (), first,
                    Unconstrained((4,)), search, key)
    run = jax.jit(run, static_argnums=1)
    search = Sampling(2, 8, 1.0, top_p=0.9)
    together = run(first, search, sampling.own_draws(seeds, temperatures))
    for row, (seed, temperature) in enumerate(zip(seeds, temperatures)):
      alone = run(first[row:row + 1], Sampling(2, 8, temperature, top_p=0.9), jax.random.key(seed))
      np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
      np.testing.assert_allclose(together.scores[row], alone.scores[0], rtol=1e-6)
    self.assertGreater(len({tuple(r) for r in together.tokens.reshape(-1, 8).tolist()}), 6)
    before = len(compiled)
    others = run(first, search, sampling.own_draws([1] * 6, [0.123, 1.5, 0.9, 0.31, 0, 0]))
    self.assertLen(compiled, before)  # other values are no other program
    self.assertFalse((others.tokens == together.tokens).all())

  def test_a_warm_request_leaves_greedy_ones_greedy(self):
    first = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)))
    step = lambda tokens, cache, t: (first[0][None, None] + tokens[..., None], cache)  # noqa: E731
    found = sample(BoundDecoder(step), (), first, Unconstrained(), Sampling(1, 4, 1.0),
                   sampling.own_draws([5, 6, 7], [0, 3.0, 0]))
    greedy_tokens, _ = greedy(step, first, 4)
    np.testing.assert_array_equal(found.tokens[::2, 0], greedy_tokens[::2])


class GreedyTest(absltest.TestCase):

  def test_takes_the_likeliest_token_and_pads_after_the_end(self):
    rng = np.random.default_rng(0)
    first, table = rng.normal(size=(5, 8)), rng.normal(size=(8, 8))
    tokens, lengths = jax.jit(lambda first: greedy(
        lambda tokens, cache, t: (jnp.asarray(table)[tokens], cache), first, 6, (3, 4), 7)
    )(jnp.asarray(first))
    for b in range(5):
      want = [int(first[b].argmax())]
      while len(want) < 6 and want[-1] not in (3, 4):
        want.append(int(table[want[-1]].argmax()))
      self.assertEqual(tokens[b].tolist(), want + [7] * (6 - len(want)))
      self.assertEqual(int(lengths[b]), len(want))

  def test_one_token_needs_no_model_call(self):
    tokens, lengths = greedy(
        lambda tokens, cache, t: (jnp.zeros((*tokens.shape, 4)), cache), jnp.eye(4), 1)
    self.assertEqual(tokens.tolist(), [[0], [1], [2], [3]])
    self.assertEqual(lengths.tolist(), [1, 1, 1, 1])


if __name__ == '__main__':
  absltest.main()
