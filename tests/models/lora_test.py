"""Adapters: what they start as, what they change, and that merging is the same function."""
import collections
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.models import llm, lora
from tests.long import long_but

CFG = llm.Config(vocab=48, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=40,
                 lora_rank=3, lora_alpha=6.0)


def random_lora(cfg, seed=1):
  tree = lora.init_lora(cfg, jax.random.key(seed))
  return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), tree)


@functools.cache
def weights(cfg):
  return jax.jit(lambda: llm.init(cfg, jax.random.key(0)))()


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def hidden(cfg, params, adapters, rows, length):
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, cfg.vocab, (rows, length)))
  at = jnp.broadcast_to(jnp.arange(length), tokens.shape)
  out, _ = llm.LM(cfg).apply(
      {'params': params, 'lora': adapters}, tokens, at, jnp.ones_like(tokens))
  return out


class LoraTest(parameterized.TestCase):

  def test_fresh_adapters_change_nothing(self):
    params, fresh = weights(CFG), lora.init_lora(CFG, jax.random.key(1))
    plain = hidden(dataclasses.replace(CFG, lora_rank=0), params, {}, 2, 3)
    np.testing.assert_allclose(hidden(CFG, params, fresh, 2, 3), plain, atol=1e-6)
    a = fresh['blocks']['down']['a']
    self.assertEqual(a.shape, (2, 40, 3))
    self.assertBetween(float(jnp.abs(a).max()), 0.9 / 40 ** 0.5, 1 / 40 ** 0.5)
    self.assertEqual(lora.init_lora(dataclasses.replace(CFG, lora_rank=0), jax.random.key(0)), {})

  @parameterized.parameters((2, llm.LINEAR), (2, ('q', 'down')), (40, llm.LINEAR))
  @long_but(2)
  def test_merged_weights_equal_adapters(self, length, targets):
    cfg = dataclasses.replace(CFG, lora_targets=targets)
    params, adapters = weights(cfg), random_lora(cfg)
    got = hidden(cfg, params, adapters, 4, length)
    merged = lora.merge(params, adapters, cfg)
    plain = dataclasses.replace(cfg, lora_rank=0)
    np.testing.assert_allclose(hidden(plain, merged, {}, 4, length), got, rtol=1e-4, atol=1e-4)
    self.assertGreater(float(jnp.abs(hidden(plain, params, {}, 4, length) - got).max()), 0.1)

  def test_many_tokens_take_the_merged_path_with_the_gradients_of_the_plain_one(self):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 9, 6)).astype('f'), [rng.normal(size=(6, n)).astype('f')
                                                    for n in (4, 5)]
    a = [rng.normal(size=(6, 2)).astype('f') for _ in w]
    b = [rng.normal(size=(2, n)).astype('f') for n in (4, 5)]

    def plain(x, w, a, b):
      return sum(jnp.sin(x @ k + (x @ p) @ q).sum() for k, p, q in zip(w, a, b))

    def merged(x, w, a, b):
      return sum(jnp.sin(y).sum() for y in llm.merged_matmul(x, tuple(w), tuple(a), tuple(b)))
    expected = jax.jit(jax.grad(plain, (0, 1, 2, 3)))(x, w, a, b)
    got = jax.jit(jax.grad(merged, (0, 1, 2, 3)))(x, w, a, b)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-3, atol=1e-4), got, expected)

  def test_no_dense_gradient_is_formed_for_frozen_weights(self):
    params, adapters = weights(CFG), random_lora(CFG)

    def loss(adapters, params):
      return jnp.sin(hidden(CFG, params, adapters, 4, 40)).sum()
    text = jax.jit(jax.grad(loss)).lower(adapters, params).compile().as_text()
    rows = 4 * 40
    # A dense gradient is the only product over all tokens with the shape of a kernel.
    self.assertNotIn(f'f32[32,40]{{1,0}} dot(f32[{rows},32]', text)
    grad = jax.grad(loss)(adapters, params)
    self.assertEqual(jax.tree.structure(grad), jax.tree.structure(adapters))

  def test_policy_dots_keeps_sums_of_weight_and_adapter(self):
    for dtype in ('bfloat16', 'float32'):
      cfg = dataclasses.replace(CFG, dtype=dtype, remat='dots')
      params, adapters = weights(cfg), random_lora(cfg)

      def back(adapters, params, cfg=cfg):
        return jax.vjp(lambda a: hidden(cfg, params, a, 4, 40), adapters)[1]
      kept = collections.Counter(
          x.shape for x in jax.tree.leaves(jax.eval_shape(back, adapters, params)))
      widths = [n for name, (_, n, _) in cfg.linear.items() if name != 'down']
      stacked = sum(math.prod(s) * n for s, n in kept.items() if s[:1] == (2,) and 40 in s[1:3]
                    or math.prod(s) % (2 * 4 * 40) == 0 and s[:1] == (2,))
      # Each layer's input and what its layers give; x W apart from the adapter would be twice that.
      self.assertBetween(stacked / (2 * 4 * 40), sum(widths) + 32, 1.2 * (sum(widths) + 32))

  def test_merging_keeps_bfloat16_and_refuses_another_rank(self):
    cfg = dataclasses.replace(CFG, param_dtype='bfloat16')
    params, adapters = weights(cfg), random_lora(cfg)
    merged = lora.merge(params, adapters, cfg)
    self.assertEqual(merged['blocks']['q']['kernel'].dtype, jnp.bfloat16)
    with self.assertRaisesRegex(ConfigError, 'rank 3'):
      lora.merge(params, adapters, dataclasses.replace(cfg, lora_rank=4))


if __name__ == '__main__':
  absltest.main()
