"""The decoder: caches, packing, padding, remat and meshes change nothing."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

from recjax.distributed.sharding import make_mesh, shardings
from recjax.errors import ConfigError
from recjax.models import attention, layers, llm, lora, rope
from tests import devices
from tests.long import long

TINY = llm.Config(vocab=48, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=40,
                  qkv_bias=True, qk_norm=True)
# Two orders of summation in float32 over a few hundred terms of size about one.
NEAR = dict(rtol=2e-5, atol=2e-5)


@functools.cache
def weights(cfg, seed=0):
  """Weights large enough that attention is far from uniform; biases and scales are random too."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape) + (x.ndim == 1), x.dtype),
      llm.shapes(cfg))


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, variables, *inputs):
  return llm.LM(cfg).apply(variables, *inputs)


def run(cfg, params, tokens, positions=None, segments=None, past=(), adapters=None):
  tokens = jnp.asarray(tokens, jnp.int32)
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  segments = jnp.ones_like(tokens) if segments is None else jnp.asarray(segments)
  return apply(cfg, {'params': params, 'lora': adapters or {}}, tokens, jnp.asarray(positions),
               segments, past)


def some_tokens(*shape, seed=3):
  return np.random.default_rng(seed).integers(0, TINY.vocab, shape).astype(np.int32)


class CacheTest(parameterized.TestCase):

  def test_prefix_prompt_and_private_suffixes_equal_full_rows(self):
    params, rows, prefix, streams, steps = weights(TINY), 2, 5, 3, 4
    head, prompts = some_tokens(prefix), some_tokens(rows, 6, seed=4)
    lengths = np.array([6, 4])
    tails = some_tokens(rows, streams, steps, seed=5)
    _, (pk, pv) = run(TINY, params, head[None])
    shared = attention.kv_block(pk[:, 0], pv[:, 0], jnp.ones(prefix, bool))
    real = np.arange(6) < lengths[:, None]
    _, (rk, rv) = run(TINY, params, prompts, prefix + np.broadcast_to(np.arange(6), real.shape),
                      real.astype(np.int32), (shared,))
    prompt = attention.kv_block(rk, rv, jnp.asarray(real))
    room = (TINY.layers, rows, streams, steps, TINY.kv_heads, TINY.head_dim)
    k, v = jnp.zeros(room), jnp.full(room, 7.0)  # what is masked must not matter
    own = np.broadcast_to(np.arange(1, streams + 1, dtype=np.int32), (rows, streams))
    for t in range(steps):
      seen = jnp.broadcast_to(jnp.arange(steps) < t, (rows, streams, steps))
      at = np.broadcast_to((prefix + lengths + t)[:, None], own.shape)
      hidden, (nk, nv) = run(TINY, params, tails[:, :, t], at, own,
                             (shared, prompt, attention.kv_block(k, v, seen)))
      k, v = k.at[:, :, :, t].set(nk), v.at[:, :, :, t].set(nv)
      for b in range(rows):
        for s in range(streams):
          full = np.concatenate([head, prompts[b, :lengths[b]], tails[b, s]])
          full = np.pad(full, (0, prefix + 6 + steps - len(full)))  # later tokens are not seen
          expected, _ = run(TINY, params, full[None])
          np.testing.assert_allclose(hidden[b, s], expected[0, prefix + lengths[b] + t], **NEAR)

  @long
  def test_shared_prefix_passes_the_same_gradient_as_repeating_it(self):
    cfg = dataclasses.replace(TINY, lora_rank=2)
    params, adapters = weights(TINY), lora.init_lora(cfg, jax.random.key(5))
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    head, tails = some_tokens(4), some_tokens(3, 5, seed=6)

    def split(adapters):
      _, (k, v) = run(cfg, params, head[None], adapters=adapters)
      past = attention.kv_block(k[:, 0], v[:, 0], jnp.ones(4, bool))
      at = np.broadcast_to(4 + np.arange(5), tails.shape)
      waves = jnp.sin(run(cfg, params, tails, at, past=(past,), adapters=adapters)[0])
      return waves.sum(), waves

    def whole(adapters):
      rows = np.concatenate([np.broadcast_to(head, (3, 4)), tails], 1)
      waves = jnp.sin(run(cfg, params, rows, adapters=adapters)[0][:, 4:])
      return waves.sum(), waves
    (_, waves), grad = jax.jit(jax.value_and_grad(split, has_aux=True))(adapters)
    (_, expected), wanted = jax.jit(jax.value_and_grad(whole, has_aux=True))(adapters)
    np.testing.assert_allclose(waves, expected, **NEAR)
    # sums over rows in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grad, wanted)


class RowsTest(parameterized.TestCase):

  def test_packed_segments_equal_separate_rows(self):
    params, lengths = weights(TINY), (5, 1, 7)
    parts = [some_tokens(n, seed=n) for n in lengths]
    packed = np.concatenate([*parts, np.zeros(3, np.int32)])[None]
    segments = np.repeat([1, 2, 3, 0], (*lengths, 3)).astype(np.int32)[None]
    positions = np.concatenate([*map(np.arange, lengths), np.arange(3)]).astype(np.int32)[None]
    hidden, (k, _) = run(TINY, params, packed, positions, segments)
    start = 0
    for part in parts:
      alone, (k1, _) = run(TINY, params, part[None])
      here = slice(start, start + len(part))
      np.testing.assert_allclose(hidden[0, here], alone[0], **NEAR)
      np.testing.assert_allclose(k[:, 0, here], k1[:, 0], **NEAR)
      start += len(part)

  @parameterized.parameters('left', 'right')
  def test_padding_changes_nothing(self, side):
    params, tokens = weights(TINY), some_tokens(1, 6)
    expected, _ = run(TINY, params, tokens)
    pad = ((0, 0), (4, 0) if side == 'left' else (0, 4))
    real = slice(4, 10) if side == 'left' else slice(0, 6)
    at = np.pad(np.arange(6, dtype=np.int32)[None], pad)
    hidden, _ = run(TINY, params, np.pad(tokens, pad, constant_values=9), at,
                    np.pad(np.ones((1, 6), np.int32), pad))
    np.testing.assert_allclose(hidden[:, real], expected, **NEAR)

  def test_rows_of_padding_only_are_finite_in_value_and_gradient(self):
    params, nothing = weights(TINY), np.zeros((2, 4), np.int32)
    grad = jax.jit(jax.grad(lambda p: run(TINY, p, nothing, segments=nothing)[0].sum()))(params)
    self.assertTrue(all(np.isfinite(x).all() for x in jax.tree.leaves(grad)))

  def test_chunks_of_queries_equal_one_chunk(self):
    shape, keys = (2, 20, 4, 8), jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], shape)
    k, v = (jax.random.normal(key, (2, 20, 2, 8)) for key in keys[1:])
    allowed = jnp.broadcast_to(jnp.tri(20, dtype=bool), (2, 20, 20))
    attend = jax.jit(attention.attend, static_argnames='chunk')
    np.testing.assert_allclose(attend(q, k, v, allowed, (), chunk=7),
                               attend(q, k, v, allowed, (), chunk=64), **NEAR)

  def test_attention_equals_a_plain_softmax(self):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 5, n, 4)).astype('f') for n in (4, 2, 2))
    allowed = np.tri(5, dtype=bool)[None]
    got = attention.attend(*map(jnp.asarray, (q, k, v, allowed)), ()).reshape(5, 4, 4)
    for h in range(4):
      scores = np.where(allowed[0], q[0, :, h] @ k[0, :, h // 2].T / 2, -np.inf)
      weight = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
      np.testing.assert_allclose(got[:, h], weight @ v[0, :, h // 2], **NEAR)


class VariantTest(parameterized.TestCase):

  def test_remat_and_unrolling_change_no_gradient(self):
    params, tokens = weights(TINY), some_tokens(2, 6)

    def loss(params, cfg):
      return jnp.sin(run(cfg, params, tokens)[0]).sum()
    grad = jax.jit(jax.grad(loss), static_argnums=1)
    expected = grad(params, TINY)
    for change in (dict(remat='dots'), dict(remat='full', scan_unroll=5)):
      got = grad(params, dataclasses.replace(TINY, **change))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
                   got, expected)

  @parameterized.parameters((2, 1, 1), (2, 2, 2), (1, 4, 2))
  @long
  def test_one_two_and_eight_devices_agree_in_logits_and_gradients(self, *shape):
    cfg = dataclasses.replace(TINY, lora_rank=2)
    params, tokens = weights(TINY), jnp.asarray(some_tokens(8, 6))
    adapters = jax.tree.map(lambda x: x + 0.1, lora.init_lora(cfg, jax.random.key(1)))

    def loss(adapters, params, tokens):
      _, (k, v) = run(cfg, params, tokens[:1, :3], adapters=adapters)
      past = attention.kv_block(k[:, 0], v[:, 0], jnp.ones(3, bool))
      hidden, _ = run(cfg, params, tokens, past=(past,), adapters=adapters)
      logits = llm.LM(cfg).apply({'params': params}, hidden, method='logits')
      return jnp.sin(logits).mean(), logits
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, expected), wanted = step(adapters, params, tokens)
    mesh = devices.mesh(**dict(zip(('data', 'fsdp', 'model'), shape)))
    with jax.set_mesh(mesh):
      put = [jax.device_put(t, shardings(t, llm.RULES, mesh)) for t in (adapters, params)]
      rows = jax.device_put(tokens, jax.NamedSharding(mesh, P(('data', 'fsdp'))))
      (_, got), grad = step(*put, rows)
    # sums are ordered by device
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grad, wanted)

  def test_rules_name_every_matrix(self):
    cfg = dataclasses.replace(TINY, lora_rank=2)
    tree = {'params': llm.shapes(cfg), 'lora': lora.init_lora(cfg, jax.random.key(0))}
    where = shardings(tree, llm.RULES, make_mesh({'data': 2, 'fsdp': 2, 'model': 2}))
    for path, spec in jax.tree_util.tree_flatten_with_path(where)[0]:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      self.assertEqual(spec.spec == P(), 'norm' in name, name)

  def test_bfloat16_follows_float32_and_keeps_logits_in_float32(self):
    params, tokens = weights(TINY), some_tokens(2, 6)
    cfg = dataclasses.replace(TINY, dtype='bfloat16', param_dtype='bfloat16')
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    exact, _ = run(TINY, jax.tree.map(lambda x: x.astype(jnp.float32), half), tokens)
    hidden, (k, _) = run(cfg, half, tokens)
    self.assertEqual((hidden.dtype, k.dtype), (jnp.bfloat16, jnp.bfloat16))
    logits = llm.LM(cfg).apply({'params': half}, hidden, method='logits')
    self.assertEqual(logits.dtype, jnp.float32)
    # eight bits of mantissa over two layers
    np.testing.assert_allclose(hidden.astype('f'), exact, atol=0.15)

  @parameterized.parameters(True, False)
  def test_head_matrix_is_what_logits_uses(self, tied):
    cfg = dataclasses.replace(TINY, tied=tied)
    params = weights(cfg)
    hidden = jax.random.normal(jax.random.key(9), (3, cfg.width))
    logits = llm.LM(cfg).apply({'params': params}, hidden, method='logits')
    np.testing.assert_allclose(logits, hidden @ llm.head_matrix(params, cfg), **NEAR)

  def test_init_is_a_function_of_the_key(self):
    init = jax.jit(lambda key: llm.init(TINY, key))
    a, b, c = (init(jax.random.key(k)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    self.assertFalse(np.array_equal(a['embed'], c['embed']))
    self.assertFalse(np.array_equal(a['blocks']['q']['kernel'][0], a['blocks']['q']['kernel'][1]))
    self.assertBetween(float(a['embed'].std()), 0.018, 0.022)

  def test_counts_by_hand(self):
    cfg = llm.Config(vocab=10, width=4, layers=3, heads=2, kv_heads=1, head_dim=2, ffn=5,
                     param_dtype='bfloat16')
    layer = 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 3 * 4 * 5
    total = 3 * (layer + 2 * 4) + 4 + 2 * 10 * 4
    self.assertEqual(layers.count_params(llm.init(cfg, jax.random.key(0))), total)
    self.assertEqual(llm.param_bytes(cfg), 2 * total)
    self.assertEqual(llm.flops_per_token(cfg, 7), 2 * (3 * (layer + 2 * 7 * 4) + 40))

  def test_impossible_configs_are_refused(self):
    for change in (dict(kv_heads=3), dict(head_dim=7), dict(remat='some'),
                   dict(lora_targets=('q', 'qkv'))):
      with self.assertRaises(ConfigError):
        dataclasses.replace(TINY, **change)
    odd = dataclasses.replace(TINY, rope_scaling=(('factor', 2.0), ('rope_type', 'dynamic')))
    with self.assertRaisesRegex(ConfigError, 'dynamic'):
      rope.frequencies(odd)


if __name__ == '__main__':
  absltest.main()
