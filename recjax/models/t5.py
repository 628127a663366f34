"""T5: an encoder and a decoder with relative positions, and its steps for `recjax.decoding`.

Raffel et al., JMLR 2020. Parity with transformers in float32 is tested. Norms, softmax and scores
are float32. `Stacks` is the network between embeddings and states, which other models put their own
embeddings around; `T5` is the language model that pretrained weights belong to.

B rows, S tokens read, T tokens written, K beams, D width, H heads, Dh their size, L layers.
"""
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from recjax.errors import ConfigError
from recjax.models.layers import check_dtype, dropout, linear
from recjax.protocols import Decoder

FAR = -1e9  # instead of -inf, so that a row without a single key stays finite
RULES = (
    (r'(shared|head)', P('model', 'fsdp')),
    (r'(q|k|v|up|gate|cross_k|cross_v|cross_q)', P(None, 'fsdp', 'model')),
    (r'(o|down|cross_o)', P(None, 'model', 'fsdp')),
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape and numerics; hashable. dtype computes, weights are float32. Raises ConfigError.

  buckets, distance: of the relative positions. gated: T5 1.1's GELU gate instead of ReLU. tied: the
  output layer is the input table; scaled: states times D ** -0.5 before it. std: of new weights.
  """
  vocab: int = 1
  width: int = 128
  layers: int = 6
  decoder_layers: int = 6
  heads: int = 4
  head_dim: int = 64
  ffn: int = 512
  buckets: int = 32
  distance: int = 128
  norm_eps: float = 1e-6
  dropout: float = 0.1
  gated: bool = False
  tied: bool = True
  scaled: bool = True
  std: float = 0.02
  dtype: str = 'float32'

  def __post_init__(self):
    check_dtype('dtype', self.dtype)
    for name in ('width', 'layers', 'decoder_layers', 'heads', 'head_dim', 'ffn'):
      if getattr(self, name) < 1:
        raise ConfigError(f'{name}={getattr(self, name)} of the T5 model must be at least 1')
    if not 0 <= self.dropout < 1:
      raise ConfigError(f'dropout={self.dropout} of the T5 model must lie in 0..1')


def position_buckets(offset, count, distance, both):
  """The bucket of each relative position, as transformers counts them.

  offset: ints, key minus query. both: keys on either side are told apart (encoder). -> int32
  """
  offset = np.asarray(offset)
  base = np.zeros_like(offset)
  if both:
    count //= 2
    base, offset = np.where(offset > 0, count, 0), np.abs(offset)
  else:
    offset = np.maximum(-offset, 0)
  near = count // 2
  far = np.log(np.maximum(offset, 1) / near) / np.log(distance / near) * (count - near)
  far = np.minimum(near + np.floor(far + 1e-9).astype(int), count - 1)
  return (base + np.where(offset < near, offset, far)).astype(np.int32)


class T5Layer(nn.Module):
  """What the modules below share: weights of a layer, norm, dropout."""
  cfg: Config

  def linear(self, x, name, out):
    shape = (x.shape[-1], out)
    weight = self.param(name, nn.initializers.normal(self.cfg.std), shape)
    return linear(x, weight.astype(self.cfg.dtype))

  def norm(self, x, name):
    """Divided by the root of the mean square, no mean taken off."""
    scale = self.param(name, nn.initializers.ones, (self.cfg.width,))
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.cfg.norm_eps)
    return (scale * y).astype(self.cfg.dtype)

  def drop(self, x, train):
    if not train or not self.cfg.dropout:
      return x
    return dropout(x, self.cfg.dropout, self.make_rng('dropout'))

  def heads(self, x):
    return x.reshape(*x.shape[:-1], self.cfg.heads, self.cfg.head_dim)

  def attend(self, q, k, v, bias, train, keys='bthd', values='bthd'):
    """Scores are not divided. q: (B, S, H, Dh). keys, values: the axes of k and v. bias: float32,
    broadcasts to (B, H, S, T). -> (B, S, H * Dh)
    """
    scores = jnp.einsum(f'bshd,{keys}->bhst', q, k, preferred_element_type=jnp.float32) + bias
    share = self.drop(jax.nn.softmax(scores, -1).astype(v.dtype), train)
    out = jnp.einsum(f'bhst,{values}->bshd', share, v)
    return out.reshape(*out.shape[:2], -1)

  def attend_memory(self, q, memory, w_k, w_v, bias, train):
    """`attend` to keys memory @ w_k and values memory @ w_v that are never made. -> (B, T, H * Dh)

    q w_k' is scored against what is read itself, and what is seen of that goes through w_v. q: (B,
    T, H, Dh), memory: (B, S, D), w_k, w_v: (D, H * Dh).
    """
    w_k, w_v = (self.heads(w.astype(self.cfg.dtype)) for w in (w_k, w_v))
    q = jnp.einsum('bthd,mhd->bthm', q, w_k)
    scores = jnp.einsum('bthm,bsm->bhts', q, memory, preferred_element_type=jnp.float32) + bias
    share = self.drop(jax.nn.softmax(scores, -1).astype(memory.dtype), train)
    seen = jnp.einsum('bhts,bsm->bthm', share, memory)
    out = jnp.einsum('bthm,mhd->bthd', seen, w_v)
    return out.reshape(*out.shape[:2], -1)

  def feed(self, x, train):
    """The feed-forward layer with its residual."""
    cfg, y = self.cfg, self.norm(x, 'feed_norm')
    up = self.linear(y, 'up', cfg.ffn)
    if cfg.gated:
      up = nn.gelu(self.linear(y, 'gate', cfg.ffn)) * up
    else:
      up = nn.relu(up)
    return x + self.drop(self.linear(self.drop(up, train), 'down', cfg.width), train)


class EncoderBlock(T5Layer):

  @nn.compact
  def __call__(self, x, bias, train):
    inner = self.cfg.heads * self.cfg.head_dim
    y = self.norm(x, 'norm')
    q, k, v = (self.heads(self.linear(y, n, inner)) for n in 'qkv')
    seen = self.attend(q, k, v, bias, train)
    x = x + self.drop(self.linear(seen, 'o', self.cfg.width), train)
    return self.feed(x, train), None


class DecoderBlock(T5Layer):

  @nn.compact
  def __call__(self, x, given, bias, across, t, memory, train):
    """given: (keys, values) of what is read, of this layer, or with `memory` the kernels of both;
    and where tokens come one by one (slots of keys, of values). -> x, the slots with token t in
    """
    inner = self.cfg.heads * self.cfg.head_dim
    read, slots = given
    y = self.norm(x, 'norm')
    q, k, v = (self.heads(self.linear(y, n, inner)) for n in 'qkv')
    if slots is not None:
      k, v = slots = tuple(lax.dynamic_update_index_in_dim(s, n.astype(s.dtype), t, 2)
                           for s, n in zip(slots, (k, v)))
    own = 'bthd' if slots is None else 'bsthd'
    seen = self.attend(q, k, v, bias, train, own, own)
    x = x + self.drop(self.linear(seen, 'o', self.cfg.width), train)
    q = self.heads(self.linear(self.norm(x, 'cross_norm'), 'cross_q', inner))
    seen = (self.attend(q, *read, across, train, 'bhdt', 'bhtd') if memory is None
            else self.attend_memory(q, memory, *read, across, train))
    x = x + self.drop(self.linear(seen, 'cross_o', self.cfg.width), train)
    return self.feed(x, train), slots


class Encoder(T5Layer):

  @nn.compact
  def __call__(self, x, mask, train=False):
    """x: (B, S, D). mask: (B, S), true where there is a token. -> (B, S, D)"""
    cfg, at = self.cfg, np.arange(x.shape[1])
    table = self.param('bias', nn.initializers.normal(cfg.std), (cfg.buckets, cfg.heads))
    near = table[position_buckets(at - at[:, None], cfg.buckets, cfg.distance, True)]  # (S, S, H)
    bias = jnp.moveaxis(near, 2, 0)[None] + jnp.where(mask > 0, 0.0, FAR)[:, None, None]
    block = nn.scan(EncoderBlock, length=cfg.layers, in_axes=(nn.broadcast, nn.broadcast),
                    variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True})
    x = block(cfg, name='blocks')(self.drop(x.astype(cfg.dtype), train), bias, train)[0]
    return self.drop(self.norm(x, 'norm'), train)


class DecoderStack(T5Layer):

  def setup(self):
    cfg = self.cfg
    std, inner = nn.initializers.normal(cfg.std), cfg.heads * cfg.head_dim
    shape = (cfg.decoder_layers, cfg.width, inner)
    self.cross_k, self.cross_v = (self.param(f'cross_{n}', std, shape) for n in 'kv')
    self.bias = self.param('bias', std, (cfg.buckets, cfg.heads))
    self.last = self.param('norm', nn.initializers.ones, (cfg.width,))
    self.blocks = nn.scan(
        DecoderBlock, length=cfg.decoder_layers, in_axes=(0, *(nn.broadcast,) * 5),
        variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True})(cfg)

  def cross(self, memory):
    """Keys (L, B, H, Dh, S) and values (L, B, H, S, Dh) of what is read, of all layers."""
    memory, dtype = memory.astype(self.cfg.dtype), self.cfg.dtype
    keys, values = (jnp.stack([self.heads(linear(memory, w)) for w in stacked.astype(dtype)])
                    for stacked in (self.cross_k, self.cross_v))
    return jnp.moveaxis(keys, 2, 4), jnp.moveaxis(values, 2, 3)

  def near(self, first, count, keys):
    """The bias of `count` tokens from `first` on towards tokens 0 .. keys - 1. -> (1, H, ., .)"""
    cfg, size = self.cfg, max(keys, count)
    at = np.arange(size)
    each = self.bias[position_buckets(at - at[:, None], cfg.buckets, cfg.distance, False)]
    each = jnp.where((at <= at[:, None])[..., None], each, FAR)
    rows = lax.dynamic_slice_in_dim(each, first, count) if count < size else each
    return jnp.moveaxis(rows[:, :keys], 2, 0)[None]

  def __call__(self, x, across, mask, slots=None, t=0, train=False, memory=None):
    """x: (B, T, D), all tokens; or with slots (L, B, K, T, H, Dh) token t of K beams, (B, K, D).

    across: of `cross`, or instead of it memory (B, S, D). mask: (B, S). -> (B, T or K, D) float32,
    slots
    """
    if memory is not None:
      across = self.cross_k, self.cross_v
    away = jnp.where(mask > 0, 0.0, FAR)[:, None, None]
    if slots is None:
      bias = self.near(0, x.shape[1], x.shape[1])
    else:
      bias = self.near(t, 1, slots[0].shape[3])
    x = self.drop(x.astype(self.cfg.dtype), train)
    x, slots = self.blocks(x, (across, slots), bias, away, t, memory, train)
    y = x.astype(jnp.float32)
    y = self.last * y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.cfg.norm_eps)
    return self.drop(y, train), slots


def memory_attention_pays(cfg, written, read):
  """Whether keys and values of what is read take more products than `attend_memory` does."""
  inner = cfg.heads * cfg.head_dim
  direct = read * cfg.width * inner + written * read * inner
  return direct > written * cfg.width * (inner + read * cfg.heads)


class Stacks(nn.Module):
  """Encoder and decoder over embeddings."""
  cfg: Config

  def setup(self):
    self.encoder, self.decoder = Encoder(self.cfg), DecoderStack(self.cfg)

  def __call__(self, x, mask, y, train=False):
    """x: (B, S, D) read, mask: (B, S); y: (B, T, D) written. -> memory (B, S, D), (B, T, D)"""
    memory = self.encode(x, mask, train)
    return memory, self.decode(y, memory, mask, train)

  def encode(self, x, mask, train=False):
    return self.encoder(x, mask, train)

  def decode(self, y, memory, mask, train=False):
    if memory_attention_pays(self.cfg, y.shape[1], memory.shape[1]):
      return self.decoder(y, None, mask, train=train, memory=memory.astype(self.cfg.dtype))[0]
    return self.decoder(y, self.decoder.cross(memory), mask, train=train)[0]

  def cross(self, memory):
    return self.decoder.cross(memory)

  def step(self, y, across, mask, slots, t):
    return self.decoder(y, across, mask, slots, t)


class T5(nn.Module):
  """The language model: tokens read and tokens written in, logits out."""
  cfg: Config

  def setup(self):
    std = nn.initializers.normal(self.cfg.std)
    self.shared = self.param('shared', std, (self.cfg.vocab, self.cfg.width))
    self.stacks = Stacks(self.cfg)
    if not self.cfg.tied:
      self.head = self.param('head', std, (self.cfg.width, self.cfg.vocab))

  def __call__(self, tokens, mask, written, train=False):
    """tokens, mask: (B, S). written: (B, T), the first one is the start. -> (B, T, V) float32"""
    _, states = self.stacks(self.embed(tokens), mask, self.embed(written), train)
    return self.logits(states)

  def embed(self, tokens):
    return self.shared[tokens]

  def encode(self, tokens, mask):
    return self.stacks.encode(self.embed(tokens), mask)

  def cross(self, memory):
    return self.stacks.cross(memory)

  def step(self, tokens, across, mask, slots, t):
    return self.stacks.step(self.embed(tokens), across, mask, slots, t)

  def logits(self, states):
    states = states * self.cfg.width ** -0.5 if self.cfg.scaled else states
    return states @ (self.shared.T if self.cfg.tied else self.head)


def init(cfg, key):
  """Random parameters of `T5`, float32."""
  one = jnp.zeros((1, 1), jnp.int32)
  return T5(cfg).init(key, one, one + 1, one)['params']


def shapes(cfg):
  """The parameters of `T5` as jax.ShapeDtypeStruct."""
  return jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))


# Steps for decoding.


def empty_slots(cfg, batch, beams, tokens):
  """Room for keys and values of what beams write: two of (L, B, K, T, H, Dh)."""
  shape = (cfg.decoder_layers, batch, beams, tokens, cfg.heads, cfg.head_dim)
  return jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype)


def make_decoder(cfg, read, step, logits, rows=None, window=None):
  """A Decoder of a model that reads once and writes token by token.

  read: (params, tokens, lengths) -> (across, mask). step: (params, tokens (B, K) or None for the
  start, across, mask, slots, t) -> (states (B, K, D), slots). logits, rows, window: of `Decoder`.
  What is read is shared by all beams; each has a slot for the start and for every token but the
  last.
  """
  def start(params, tokens, lengths, beams, new_tokens):
    across, mask = read(params, tokens, lengths)
    slots = empty_slots(cfg, len(tokens), 1, new_tokens)
    state, slots = step(params, None, across, mask, slots, 0)
    slots = tuple(jnp.broadcast_to(s, (*s.shape[:2], beams, *s.shape[3:])) for s in slots)
    return state[:, 0], (across, mask, slots)

  def forward(params, cache, tokens, t):
    across, mask, slots = cache
    state, slots = step(params, tokens, across, mask, slots, t + 1)
    return state, (across, mask, slots)

  def reorder(cache, parents):
    turn = jax.vmap(lambda rows, order: rows[:, order], (1, 0), 1)
    return (*cache[:2], tuple(turn(s, parents) for s in cache[2]))

  return Decoder(start, forward, reorder, logits, rows, window)


def decoder(model, start_id=0):
  """The T5 as `recjax.decoding` wants it; its params are the variables {'params'}. -> Decoder"""
  def read(variables, tokens, lengths):
    mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
    memory = model.apply(variables, tokens, mask, method='encode')
    return model.apply(variables, memory, method='cross'), mask

  def step(variables, tokens, across, mask, slots, t):
    if tokens is None:
      tokens = jnp.full((len(mask), 1), start_id)
    return model.apply(variables, tokens, across, mask, slots, t, method='step')

  def logits(variables, states):
    return model.apply(variables, states, method='logits')
  return make_decoder(model.cfg, read, step, logits)
