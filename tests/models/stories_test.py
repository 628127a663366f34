"""A trained checkpoint with a known continuation: greedy text equals the stored one to the byte."""
import pathlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from recjax.models import attention, llm
from recjax.models import layers as layers_lib
from tests.long import long

FOLDER = pathlib.Path(__file__).parents[2].parent / 'shared' / 'models' / 'stories260K'


def read_model(path):
  """-> (Config, params) from the flat file of (out, in) weights with neighboring rotary pairs."""
  raw = path.read_bytes()
  width, ffn, layers, heads, kv_heads, vocab, length = struct.unpack('<7i', raw[:28])
  flat, size = np.frombuffer(raw[28:], '<f4'), width // heads
  cfg = llm.Config(vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads,
                   head_dim=size, ffn=ffn, norm_eps=1e-5, tied=True, max_positions=length)
  kv, at = kv_heads * size, 0

  def take(*shape):
    nonlocal at
    at += (n := int(np.prod(shape)))
    return flat[at - n:at].reshape(shape)

  def halves(w):  # (0, 1), (2, 3), ... become (0, Dh/2), (1, Dh/2 + 1), ...
    return w.reshape(layers, -1, size // 2, 2, width).swapaxes(2, 3).reshape(w.shape)
  embed, attn = take(vocab, width), take(layers, width)
  q, k, v = (take(layers, n, width) for n in (width, kv, kv))
  o, mlp = take(layers, width, width), take(layers, width)
  gate, down, up = take(layers, ffn, width), take(layers, width, ffn), take(layers, ffn, width)
  linear = dict(q=halves(q), k=halves(k), v=v, o=o, gate=gate, up=up, down=down)
  blocks = {n: {'kernel': jnp.asarray(w.swapaxes(1, 2))} for n, w in linear.items()}
  params = {'embed': jnp.asarray(embed), 'norm': jnp.asarray(take(width)),
            'blocks': {**blocks, 'attn_norm': jnp.asarray(attn), 'mlp_norm': jnp.asarray(mlp)}}
  return cfg, params


def read_pieces(path):
  raw, at, pieces = path.read_bytes(), 4, []
  while at < len(raw):
    size, = struct.unpack_from('<i', raw, at + 4)
    pieces.append(raw[at + 8:at + 8 + size])
    at += 8 + size
  return pieces


def decode(pieces, tokens):
  """Bytes of the text after begin."""
  out = [bytes([t - 3]) if 3 <= t < 259 else pieces[t] for t in tokens]
  return b''.join([out[0].removeprefix(b' '), *out[1:]])


def greedy(cfg, params, steps):
  """Tokens that follow begin, one step at a time over a cache."""
  shape = (cfg.layers, 1, steps, cfg.kv_heads, cfg.head_dim)
  model = llm.LM(cfg)

  def step(carry, t):
    token, k, v = carry
    past = attention.kv_block(k, v, (jnp.arange(steps) < t)[None])
    one = jnp.ones((1, 1), jnp.int32)
    hidden, (nk, nv) = model.apply({'params': params}, token, one * t, one, (past,))
    logits = model.apply({'params': params}, hidden, method='logits')
    token = logits.argmax(-1).astype(jnp.int32)
    return (token, k.at[:, :, t].set(nk[:, :, 0]), v.at[:, :, t].set(nv[:, :, 0])), token[0, 0]
  start = (jnp.ones((1, 1), jnp.int32), jnp.zeros(shape), jnp.zeros(shape))
  return np.asarray(jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))(start)[1])


@absltest.skipUnless(FOLDER.exists(), 'shared/models/stories260K is absent')
class StoriesTest(absltest.TestCase):

  @long
  def test_greedy_text_equals_the_stored_text_to_the_byte(self):
    cfg, params = read_model(FOLDER / 'stories260K.bin')
    self.assertEqual(layers_lib.count_params(params), 260_032)
    expected = (FOLDER / 'expected_greedy.txt').read_bytes()
    tokens = greedy(cfg, params, 256)
    text = decode(read_pieces(FOLDER / 'tok512.bin'), [int(t) for t in tokens])
    self.assertEqual(text + b'\n', expected)  # the line break that ends the file is no token


if __name__ == '__main__':
  absltest.main()
