"""T5: equal to transformers, its published small values, and what must not matter."""
import dataclasses
import json
import pathlib
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.constraints import Unconstrained
from recjax.decoding.generate import generate
from recjax.errors import ConfigError, DataError
from recjax.models import t5, t5_weights
from tests.long import long, long_but

SMALL = t5.Config(vocab=40, width=24, layers=2, decoder_layers=3, heads=3, head_dim=8, ffn=40,
                  dropout=0.1)


def theirs(folder, **changes):
  """A random T5 of transformers, saved. -> the torch model"""
  import torch
  from transformers import T5Config, T5ForConditionalGeneration
  torch.manual_seed(0)
  model = T5ForConditionalGeneration(T5Config(**dict(dict(
      vocab_size=40, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3,
      decoder_start_token_id=0), **changes))).eval()
  if changes.get('tie_word_embeddings') is False:  # transformers 5 ties whatever it is told
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 24))
  with torch.no_grad():
    for p in model.parameters():
      p.add_(torch.randn_like(p) * 0.05)
  model.save_pretrained(folder)
  return model


class ParityTest(parameterized.TestCase):

  @parameterized.parameters((dict(),), (dict(feed_forward_proj='gated-gelu',
                                             tie_word_embeddings=False),))
  @long_but(0)
  def test_logits_and_beams_equal_transformers(self, changes):
    try:
      import torch
    except ImportError:
      self.skipTest('torch is not installed')
    folder = pathlib.Path(tempfile.mkdtemp())
    model = theirs(folder, **changes)
    cfg = t5_weights.read_config(folder)
    ours, params = t5.T5(cfg), t5_weights.load(folder, cfg)
    rng = np.random.default_rng(0)
    tokens, written = rng.integers(2, 40, (3, 150)), rng.integers(2, 40, (3, 7))
    mask = (np.arange(150) < np.array([150, 9, 60])[:, None]).astype(int)
    with torch.no_grad():
      want = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask),
                   decoder_input_ids=torch.tensor(written)).logits.numpy()
      beams = model.generate(
          torch.tensor(tokens), attention_mask=torch.tensor(mask), num_beams=4,
          num_return_sequences=4, max_new_tokens=5, min_new_tokens=5, length_penalty=0.0,
          output_scores=True, return_dict_in_generate=True)
    got = jax.jit(ours.apply)({'params': params}, tokens, mask, written)
    np.testing.assert_allclose(got, want, atol=1e-4)  # float32 sums in another order
    found = generate(t5.decoder(ours), {'params': params}, [r[m > 0] for r, m in zip(tokens, mask)],
                     BeamSearch(4, 5, 0.0), Unconstrained((1,), 5))
    np.testing.assert_array_equal(found.tokens.reshape(12, 5), beams.sequences[:, 1:].numpy())
    np.testing.assert_allclose(found.scores.reshape(-1), beams.sequences_scores.numpy(), atol=1e-4)

  def test_a_head_of_its_own_is_used_whatever_the_flag_says(self):
    try:
      import torch
      import transformers
    except ImportError:
      self.skipTest('torch is not installed')
    folder = pathlib.Path(tempfile.mkdtemp())
    theirs(folder, feed_forward_proj='gated-gelu', tie_word_embeddings=False)
    raw = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**raw, 'tie_word_embeddings': True}))
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    cfg = t5_weights.read_config(folder)
    self.assertFalse(cfg.tied)
    tokens, written = np.arange(2, 22)[None], np.arange(2, 9)[None]
    with torch.no_grad():
      want = model(input_ids=torch.tensor(tokens),
                   decoder_input_ids=torch.tensor(written)).logits.numpy()
    got = jax.jit(t5.T5(cfg).apply)({'params': t5_weights.load(folder, cfg)}, tokens,
                                    np.ones_like(tokens), written)
    np.testing.assert_allclose(got, want, atol=1e-4)
    with self.assertRaisesRegex(DataError, 'lm_head.weight is not shared.weight'):
      t5_weights.load(folder, dataclasses.replace(cfg, tied=True))

  def test_checkpoints_that_are_something_else(self):
    folder = pathlib.Path(tempfile.mkdtemp())
    for change, what in ((dict(model_type='bert'), 'no T5'),
                         (dict(model_type='t5', feed_forward_proj='silu'), 'feed_forward_proj'),
                         (dict(model_type='t5', vocab_size=3), 'd_model is missing')):
      (folder / 'config.json').write_text(json.dumps(change))
      with self.assertRaisesRegex(ConfigError, what):
        t5_weights.read_config(folder)


class ValueTest(parameterized.TestCase):

  def test_buckets(self):
    both = {0: 0, -1: 1, -7: 7, -8: 8, -11: 8, -12: 9, -16: 10, -32: 12, -64: 14, -127: 15,
            -500: 15, 1: 17, 8: 24, 32: 28, 64: 30, 127: 31, 900: 31}
    one = {0: 0, -15: 15, -16: 16, -20: 17, -32: 21, -64: 26, -127: 31, 1: 0, 30: 0}
    for want, side in ((both, True), (one, False)):
      np.testing.assert_array_equal(
        t5.position_buckets(list(want), 32, 128, side), list(want.values())
      )

  def test_norm_and_a_block_by_hand(self):
    cfg = t5.Config(width=2, layers=1, decoder_layers=1, heads=1, head_dim=2, ffn=1, dropout=0.0)
    class Norm(t5.T5Layer):
      __call__ = nn.compact(lambda self, x: self.norm(x, 'scale'))
    norm = Norm(cfg).apply({'params': {'scale': jnp.ones(2)}}, jnp.array([3., 4.]))
    np.testing.assert_allclose(norm, [.848528, 1.131371], atol=1e-5)
    x = jnp.array([[[1., 0.], [0., 1.]]])
    share = jax.nn.softmax(jnp.array([2., 0.]))  # of (sqrt 2, 0) with itself and the other
    np.testing.assert_allclose(share, [.880797, .119203], atol=1e-6)
    eye = jnp.eye(2)
    params = {n: eye for n in 'qkvo'} | {'norm': jnp.ones(2), 'feed_norm': jnp.ones(2),
                                         'up': jnp.zeros((2, 1)), 'down': jnp.zeros((1, 2))}
    out, _ = t5.EncoderBlock(cfg).apply({'params': params}, x, jnp.zeros((1, 1, 2, 2)), False)
    np.testing.assert_allclose(out[0, 0], [2.245633, .168579], atol=1e-5)

  def test_counts_of_the_recommender(self):
    cfg = t5.Config(vocab=1)
    count = sum(x.size for x in jax.tree.leaves(t5.shapes(cfg)))
    self.assertEqual(count, 3_936_640)

  def test_impossible_shapes(self):
    for change in (dict(layers=0), dict(dropout=1.0)):
      with self.assertRaises(ConfigError):
        dataclasses.replace(SMALL, **change)


class InvarianceTest(absltest.TestCase):
  model = t5.T5(SMALL)

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    first = jax.jit(t5.init, static_argnums=0)(SMALL, jax.random.key(0))
    cls.params = jax.tree.map(lambda x: x * 5, first)
    cls.apply = staticmethod(jax.jit(cls.model.apply, static_argnums=4))

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(1)
    self.tokens, self.written = rng.integers(0, 40, (2, 9)), rng.integers(0, 40, (2, 5))
    self.mask = np.arange(9) < np.array([9, 4])[:, None]

  def logits(self, tokens, mask, written):
    return self.apply({'params': self.params}, tokens, mask, written)

  def test_later_tokens_and_padding_do_not_matter(self):
    want = self.logits(self.tokens, self.mask, self.written)
    changed = self.written.copy()
    changed[:, 3] += 1
    got = self.logits(self.tokens, self.mask, changed % 40)
    np.testing.assert_allclose(got[:, :3], want[:, :3], atol=1e-6)
    self.assertGreater(float(jnp.abs(got[:, 3] - want[:, 3]).max()), 1e-3)
    other = np.where(self.mask, self.tokens, 7)
    np.testing.assert_allclose(self.logits(other, self.mask, self.written), want, atol=1e-5)
    wide = [np.pad(x, [(0, 0), (0, 4)]) for x in (self.tokens, self.mask)]
    np.testing.assert_allclose(self.logits(*wide, self.written), want, atol=1e-5)

  def test_steps_equal_the_whole(self):
    model, params = t5.decoder(self.model), {'params': self.params}
    lengths = self.mask.sum(1)
    written = np.concatenate([np.zeros((2, 1), int), self.written], 1)
    want = self.logits(self.tokens, self.mask, written)
    state, cache = model.start(params, self.tokens, lengths, 2, 6)
    np.testing.assert_allclose(model.logits(params, state), want[:, 0], atol=1e-5)
    for t in range(5):
      twice = np.stack([self.written[:, t], self.written[::-1, t]], 1)  # beam 1: the other's row
      state, cache = model.step(params, cache, twice, t)
      np.testing.assert_allclose(model.logits(params, state)[:, 0], want[:, t + 1], atol=1e-5)
      if t == 1:  # beams change places and back
        swap = jnp.array([[1, 0], [1, 0]])
        cache = model.reorder(model.reorder(cache, swap), swap)

  def test_dropout_depends_on_its_key(self):
    one, other = (self.apply({'params': self.params}, self.tokens, self.mask, self.written, True,
                             rngs={'dropout': jax.random.key(key)}) for key in (0, 1))
    self.assertGreater(float(jnp.abs(one - other).max()), 1e-3)

  @long
  def test_cross_attention_without_keys_is_that_with_them(self):
    cfg = t5.Config(width=8, layers=1, decoder_layers=2, heads=2, head_dim=4, ffn=16)
    key = jax.random.key
    x, y = (jax.random.normal(key(s), (3, n, 8)) for s, n in ((0, 40), (1, 2)))
    mask = jnp.arange(40) < jnp.array([40, 7, 1])[:, None]
    net = t5.Stacks(cfg)
    params = jax.tree.map(lambda p: 10 * p if p.ndim > 1 else p,
                          jax.jit(net.init)(key(2), x, mask, y))
    self.assertTrue(t5.memory_attention_pays(cfg, 2, 40))
    self.assertFalse(t5.memory_attention_pays(cfg, 40, 40))

    def with_keys(net, y, x, mask):
      return net.decoder(y, net.decoder.cross(x), mask)[0]
    ways = [lambda p, m: net.apply(p, y, m, mask, method='decode'),
            lambda p, m: net.apply(p, y, m, mask, method=with_keys)]
    both = [jax.jit(jax.value_and_grad(lambda p, m, f=f: (f(p, m) ** 3).sum(), (0, 1)))(params, x)
            for f in ways]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *both)


if __name__ == '__main__':
  absltest.main()
