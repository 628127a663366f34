"""T5: an encoder and a decoder with relative positions, and its steps for `recjax.decoding`.

Raffel et al., JMLR 2020. Parity with transformers in float32 is tested. Norms, softmax and scores
are float32. `Stacks` is the network between embeddings and states, which other models put their own
embeddings around; `T5` is the language model that pretrained weights belong to.

Shape letters: B rows, S tokens read, T tokens written, K beams, D width, H heads, Dh their size, L
layers, V vocabulary. An axis E is H * Dh.
"""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from recjax.errors import ConfigError
from recjax.models.layers import FAR, check_dtype, dropout, linear, rms_norm
from recjax.protocols import AnyArray, Decoder

RULES = (
    (r'(shared|head)', P('model', 'fsdp')),
    (r'(q|k|v|up|gate|cross_k|cross_v|cross_q)', P(None, 'fsdp', 'model')),
    (r'(o|down|cross_o)', P(None, 'model', 'fsdp')),
)
Slots = tuple[Float[Array, 'L B K T H Dh'], Float[Array, 'L B K T H Dh']]  # keys, values
CrossKV = tuple[Float[Array, 'L B H Dh S'], Float[Array, 'L B H S Dh']]  # keys, values
OfLayer = tuple[tuple[Array, Array], tuple[Array, Array] | None]
Mask = Shaped[AnyArray, 'B S']  # above 0, or true, where there is a token


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape and numerics; hashable. dtype computes, weights are float32. Raises ConfigError.

  vocab, width, layers, decoder_layers, heads, head_dim, ffn: sizes; layers are the encoder's, ffn
  the inner width of the feed-forward layers. buckets, distance: of the relative positions.
  norm_eps: of `rms_norm`. dropout: share in training. gated: T5 1.1's GELU gate instead of ReLU.
  tied: the output layer is the input table. scaled: states times D ** -0.5 before it. std: of new
  weights.
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


def position_buckets(
    offset: Int[np.ndarray, '...'] | Sequence[int], count: int, distance: int, both: bool,
) -> Int[np.ndarray, '...']:
  """The bucket of each relative position, as transformers counts them, int32.

  offset: index of the key minus index of the query. count: buckets in all. distance: from which on
  all share the last one. both: keys on either side are told apart (encoder).
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

  def linear(self, x: Float[Array, '*rows I'], name: str, out: int) -> Float[Array, '*rows O']:
    """x times the kernel `name`, of `out` columns."""
    kernel = self.param(name, nn.initializers.normal(self.cfg.std), (x.shape[-1], out))
    return linear(x, kernel.astype(self.cfg.dtype))

  def norm(self, x: Float[Array, '*rows D'], name: str) -> Float[Array, '*rows D']:
    """`rms_norm` of x with the scale `name`, in the compute type."""
    scale = self.param(name, nn.initializers.ones, (self.cfg.width,))
    return rms_norm(x.astype(jnp.float32), scale, self.cfg.norm_eps).astype(self.cfg.dtype)

  def drop(self, x: Float[Array, '...'], train: bool) -> Float[Array, '...']:
    """x after dropout, where it is training. train: whether it is training."""
    if not train or not self.cfg.dropout:
      return x
    return dropout(x, self.cfg.dropout, self.make_rng('dropout'))

  def heads(self, x: Float[Array, '*rows E']) -> Float[Array, '*rows H Dh']:
    """x split into heads."""
    return x.reshape(*x.shape[:-1], self.cfg.heads, self.cfg.head_dim)

  def attend(
      self, q: Float[Array, 'B Q H Dh'], k: Float[Array, 'B ...'], v: Float[Array, 'B ...'],
      bias: Float[Array, '...'], train: bool, k_axes: str = 'bthd', v_axes: str = 'bthd',
  ) -> Float[Array, 'B Q E']:
    """Attention whose scores are not divided.

    q, k, v: queries, keys and values. bias: added to the scores, broadcasts to (B, H, Q, keys).
    k_axes, v_axes: the axes of k and v: b rows, s queries, t keys, h heads, d their size. train:
    whether there is dropout.
    """
    scores = jnp.einsum(f'bshd,{k_axes}->bhst', q, k, preferred_element_type=jnp.float32) + bias
    weights = self.drop(jax.nn.softmax(scores, -1).astype(v.dtype), train)
    out = jnp.einsum(f'bhst,{v_axes}->bshd', weights, v)
    return out.reshape(*out.shape[:2], -1)

  def attend_memory(
      self, q: Float[Array, 'B T H Dh'], memory: Float[Array, 'B S D'], w_k: Float[Array, 'D E'],
      w_v: Float[Array, 'D E'], bias: Float[Array, '...'], train: bool) -> Float[Array, 'B T E']:
    """`attend` to keys memory @ w_k and values memory @ w_v that are never made.

    bias, train: as of `attend`.

    q w_k' is scored against what is read itself, and what is seen of that goes through w_v.
    """
    w_k, w_v = (self.heads(w.astype(self.cfg.dtype)) for w in (w_k, w_v))
    q = jnp.einsum('bthd,mhd->bthm', q, w_k)
    scores = jnp.einsum('bthm,bsm->bhts', q, memory, preferred_element_type=jnp.float32) + bias
    weights = self.drop(jax.nn.softmax(scores, -1).astype(memory.dtype), train)
    seen = jnp.einsum('bhts,bsm->bthm', weights, memory)
    out = jnp.einsum('bthm,mhd->bthd', seen, w_v)
    return out.reshape(*out.shape[:2], -1)

  def feed(self, x: Float[Array, 'B Q D'], train: bool) -> Float[Array, 'B Q D']:
    """The feed-forward layer with its residual. x: the states. train: whether there is dropout."""
    cfg, y = self.cfg, self.norm(x, 'feed_norm')
    up = self.linear(y, 'up', cfg.ffn)
    if cfg.gated:
      up = nn.gelu(self.linear(y, 'gate', cfg.ffn)) * up
    else:
      up = nn.relu(up)
    return x + self.drop(self.linear(self.drop(up, train), 'down', cfg.width), train)


class EncoderBlock(T5Layer):

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B S D'], bias: Float[Array, 'B H S S'], train: bool,
  ) -> tuple[Float[Array, 'B S D'], None]:
    """x: the states. bias: added to the scores of attention. train: whether there is dropout."""
    inner = self.cfg.heads * self.cfg.head_dim
    y = self.norm(x, 'norm')
    q, k, v = (self.heads(self.linear(y, name, inner)) for name in 'qkv')
    attended = self.attend(q, k, v, bias, train)
    x = x + self.drop(self.linear(attended, 'o', self.cfg.width), train)
    return self.feed(x, train), None


class DecoderBlock(T5Layer):

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B Q D'], of_layer: OfLayer, bias: Float[Array, '...'],
      cross_bias: Float[Array, 'B 1 1 S'], t: int | Int[Array, ''],
      memory: Float[Array, 'B S D'] | None, train: bool,
  ) -> tuple[Float[Array, 'B Q D'], tuple | None]:
    """x: states of tokens, or of beams. bias, cross_bias: of attention to them and to what is read.

    of_layer: keys and values of what is read, or with `memory` the kernels of both; and slots of
    keys and of values where tokens come one by one, else None. t: the number of the token. train:
    whether there is dropout. -> states, the slots with token t in
    """
    inner = self.cfg.heads * self.cfg.head_dim
    cross, slots = of_layer
    y = self.norm(x, 'norm')
    q, k, v = (self.heads(self.linear(y, name, inner)) for name in 'qkv')
    axes = 'bthd'
    if slots is not None:
      k, v = slots = tuple(lax.dynamic_update_index_in_dim(old, new.astype(old.dtype), t, 2)
                           for old, new in zip(slots, (k, v)))
      axes = 'bsthd'
    attended = self.attend(q, k, v, bias, train, axes, axes)
    x = x + self.drop(self.linear(attended, 'o', self.cfg.width), train)
    q = self.heads(self.linear(self.norm(x, 'cross_norm'), 'cross_q', inner))
    attended = (self.attend(q, *cross, cross_bias, train, 'bhdt', 'bhtd') if memory is None
                else self.attend_memory(q, memory, *cross, cross_bias, train))
    x = x + self.drop(self.linear(attended, 'cross_o', self.cfg.width), train)
    return self.feed(x, train), slots


class Encoder(T5Layer):

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B S D'], mask: Mask, train: bool = False) -> Float[Array, 'B S D']:
    """x: embeddings of what is read. mask: where there is a token. train: whether there is dropout.
    """
    cfg, order = self.cfg, np.arange(x.shape[1])
    table = self.param('bias', nn.initializers.normal(cfg.std), (cfg.buckets, cfg.heads))
    buckets = position_buckets(order - order[:, None], cfg.buckets, cfg.distance, True)
    bias = jnp.moveaxis(table[buckets], 2, 0)[None]
    bias = bias + jnp.where(mask > 0, 0.0, FAR)[:, None, None]
    block = nn.scan(EncoderBlock, length=cfg.layers,
                    in_axes=cast(Any, (nn.broadcast, nn.broadcast)),
                    variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True})
    x = block(cfg, name='blocks')(self.drop(x.astype(cfg.dtype), train), bias, train)[0]
    return self.drop(self.norm(x, 'norm'), train)


class DecoderStack(T5Layer):

  def setup(self) -> None:
    cfg = self.cfg
    std, inner = nn.initializers.normal(cfg.std), cfg.heads * cfg.head_dim
    shape = (cfg.decoder_layers, cfg.width, inner)
    self.cross_k, self.cross_v = (self.param(f'cross_{name}', std, shape) for name in 'kv')
    self.bias = self.param('bias', std, (cfg.buckets, cfg.heads))
    self.last_scale = self.param('norm', nn.initializers.ones, (cfg.width,))
    self.blocks = nn.scan(
        DecoderBlock, length=cfg.decoder_layers,
        in_axes=cast(Any, (0, *(nn.broadcast,) * 5)),
        variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True})(cfg)

  def cross(self, memory: Float[Array, 'B S D']) -> CrossKV:
    """Keys and values of what is read, of all layers. memory: of `Encoder`."""
    memory, dtype = memory.astype(self.cfg.dtype), self.cfg.dtype
    keys, values = (
        jnp.stack([self.heads(linear(memory, kernel)) for kernel in kernels.astype(dtype)])
        for kernels in (self.cross_k, self.cross_v))
    return jnp.moveaxis(keys, 2, 4), jnp.moveaxis(values, 2, 3)

  def relative_bias(
      self, first: int | Int[Array, ''], count: int, keys: int) -> Float[Array, '1 H Q T']:
    """The bias of `count` tokens from `first` on toward tokens 0 .. keys - 1."""
    cfg = self.cfg
    order = np.arange(max(keys, count))
    buckets = position_buckets(order - order[:, None], cfg.buckets, cfg.distance, False)
    bias = jnp.where((order <= order[:, None])[..., None], self.bias[buckets], FAR)
    if count < len(order):
      bias = lax.dynamic_slice_in_dim(bias, first, count)
    return jnp.moveaxis(bias[:, :keys], 2, 0)[None]

  def __call__(
      self, x: Float[Array, 'B Q D'], cross: CrossKV | None, mask: Mask,
      slots: Slots | None = None, t: int | Int[Array, ''] = 0, train: bool = False,
      memory: Float[Array, 'B S D'] | None = None) -> tuple[Float[Array, 'B Q D'], Slots | None]:
    """x: embeddings of all tokens that are written; or with slots of token t of K beams.

    cross: of the method `cross`; None where `memory` is given instead. mask: where a token is read.
    slots: keys and values of the tokens before, or None. t: number of the token. train: whether
    there is dropout. -> float32 states, slots
    """
    if memory is not None:
      cross = self.cross_k, self.cross_v
    cross_bias = jnp.where(mask > 0, 0.0, FAR)[:, None, None]
    if slots is None:
      bias = self.relative_bias(0, x.shape[1], x.shape[1])
    else:
      bias = self.relative_bias(t, 1, slots[0].shape[3])
    x = self.drop(x.astype(self.cfg.dtype), train)
    of_layers = cast(Any, (cross, slots))
    x, slots = self.blocks(x, of_layers, bias, cross_bias, t, memory, train)
    y = rms_norm(x.astype(jnp.float32), self.last_scale, self.cfg.norm_eps)
    return self.drop(y, train), slots


def memory_attention_pays(cfg: Config, written: int, read: int) -> bool:
  """Whether keys and values of what is read take more products than `T5Layer.attend_memory`.

  cfg: of the model. written, read: numbers of tokens.
  """
  inner = cfg.heads * cfg.head_dim
  direct = read * cfg.width * inner + written * read * inner
  return direct > written * cfg.width * (inner + read * cfg.heads)


class Stacks(nn.Module):
  """Encoder and decoder over embeddings."""
  cfg: Config

  def setup(self) -> None:
    self.encoder, self.decoder = Encoder(self.cfg), DecoderStack(self.cfg)

  def __call__(
      self, x: Float[Array, 'B S D'], mask: Mask, y: Float[Array, 'B T D'], train: bool = False,
  ) -> tuple[Float[Array, 'B S D'], Float[Array, 'B T D']]:
    """x: embeddings read, mask: where they are tokens. y: written ones. train: whether there is
    dropout. -> memory, states"""
    memory = self.encode(x, mask, train)
    return memory, self.decode(y, memory, mask, train)

  def encode(
      self, x: Float[Array, 'B S D'], mask: Mask, train: bool = False) -> Float[Array, 'B S D']:
    """The memory: the encoder's states. x, mask, train: as of `__call__`."""
    return self.encoder(x, mask, train)

  def decode(
      self, y: Float[Array, 'B T D'], memory: Float[Array, 'B S D'], mask: Mask,
      train: bool = False) -> Float[Array, 'B T D']:
    """The decoder's states of all tokens that are written. y, mask, train: as of `__call__`.
    memory: of `encode`."""
    if memory_attention_pays(self.cfg, y.shape[1], memory.shape[1]):
      return self.decoder(y, None, mask, train=train, memory=memory.astype(self.cfg.dtype))[0]
    return self.decoder(y, self.decoder.cross(memory), mask, train=train)[0]

  def cross(self, memory: Float[Array, 'B S D']) -> CrossKV:
    """The keys and values of memory in every layer. memory: of `encode`."""
    return self.decoder.cross(memory)

  def step(
      self, y: Float[Array, 'B K D'], cross: CrossKV, mask: Mask, slots: Slots,
      t: int | Int[Array, '']) -> tuple[Float[Array, 'B K D'], Slots]:
    """The decoder's states of token t of every beam, and the slots with it. y: embeddings of the
    tokens. cross: of the method `cross`. mask: where a token is read."""
    return cast(Any, self.decoder(y, cross, mask, slots, t))


class T5(nn.Module):
  """The language model: tokens read and tokens written in, logits out."""
  cfg: Config

  def setup(self) -> None:
    std = nn.initializers.normal(self.cfg.std)
    self.shared = self.param('shared', std, (self.cfg.vocab, self.cfg.width))
    self.stacks = Stacks(self.cfg)
    if not self.cfg.tied:
      self.head = self.param('head', std, (self.cfg.width, self.cfg.vocab))

  def __call__(
      self, tokens: Int[AnyArray, 'B S'], mask: Mask, written: Int[AnyArray, 'B T'],
      train: bool = False) -> Float[Array, 'B T V']:
    """tokens: read, mask: where they are real. written: ids, the first one is the start. train:
    whether there is dropout."""
    _, states = self.stacks(self.embed(tokens), mask, self.embed(written), train)
    return self.logits(states)

  def embed(self, tokens: Int[AnyArray, '*rows']) -> Float[Array, '*rows D']:
    """Embeddings of tokens: ids."""
    return self.shared[tokens]

  def encode(self, tokens: Int[AnyArray, 'B S'], mask: Mask) -> Float[Array, 'B S D']:
    """The encoder's states. tokens: read, mask: where they are real."""
    return self.stacks.encode(self.embed(tokens), mask)

  def cross(self, memory: Float[Array, 'B S D']) -> CrossKV:
    """The keys and values of memory in every layer. memory: of `encode`."""
    return self.stacks.cross(memory)

  def step(
      self, tokens: Int[AnyArray, 'B K'], cross: CrossKV, mask: Mask, slots: Slots,
      t: int | Int[Array, '']) -> tuple[Float[Array, 'B K D'], Slots]:
    """As `Stacks.step`, for tokens: ids. cross, mask, slots, t: as there."""
    return self.stacks.step(self.embed(tokens), cross, mask, slots, t)

  def logits(self, states: Float[Array, '*rows D']) -> Float[Array, '*rows V']:
    """The head on the decoder's states."""
    states = states * self.cfg.width ** -0.5 if self.cfg.scaled else states
    return states @ (self.shared.T if self.cfg.tied else self.head)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def init(cfg: Config, key: Key[Array, '']) -> PyTree:
  """Random parameters of `T5`, float32. cfg: the model's shape. key: of the draws."""
  zeros = jnp.zeros((1, 1), jnp.int32)
  return T5(cfg).init(key, zeros, zeros + 1, zeros)['params']


def shapes(cfg: Config) -> PyTree:
  """The parameters of `T5` as jax.ShapeDtypeStruct. cfg: the model's shape."""
  return jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))


# Steps for decoding.


def empty_slots(cfg: Config, batch: int, beams: int, tokens: int) -> Slots:
  """Room for keys and values of what beams write. batch, beams, tokens: how many. cfg: the model's
  shape."""
  shape = (cfg.decoder_layers, batch, beams, tokens, cfg.heads, cfg.head_dim)
  return jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype)


def make_decoder(
    cfg: Config, read: Callable, step: Callable, logits: Callable, rows: Callable | None = None,
    window: Callable | None = None) -> Decoder:
  """A Decoder of a model that reads once and writes token by token.

  cfg: of its stacks. read: (params, tokens, lengths) -> (cross, mask). step: (params, tokens (B, K)
  or None for the start, cross, mask, slots, t) -> (states (B, K, D), slots). logits, rows, window:
  of `Decoder`. What is read is shared by all beams; each has a slot for the start and for every
  token but the last.
  """
  def start(params: PyTree, tokens: AnyArray, lengths: AnyArray, beams: int, new_tokens: int
           ) -> tuple[Array, tuple]:
    cross, mask = read(params, tokens, lengths)
    slots = empty_slots(cfg, len(tokens), 1, new_tokens)
    state, slots = step(params, None, cross, mask, slots, 0)
    slots = tuple(jnp.broadcast_to(s, (*s.shape[:2], beams, *s.shape[3:])) for s in slots)
    return state[:, 0], (cross, mask, slots)

  def forward(params: PyTree, cache: tuple, tokens: AnyArray, t: AnyArray | int
              ) -> tuple[Array, tuple]:
    cross, mask, slots = cache
    state, slots = step(params, tokens, cross, mask, slots, t + 1)
    return state, (cross, mask, slots)

  def reorder(cache: tuple, parents: AnyArray) -> tuple:
    take = jax.vmap(lambda beams, order: beams[:, order], (1, 0), 1)
    return (*cache[:2], tuple(take(s, parents) for s in cache[2]))

  return Decoder(start, forward, reorder, logits, rows, window)


def decoder(model: T5, start_id: int = 0) -> Decoder:
  """The T5 as `recjax.decoding` wants it; its params are the variables {'params'}.

  start_id: the token that stands before what is written. model: the T5.
  """
  def read(variables: PyTree, tokens: AnyArray, lengths: AnyArray) -> tuple:
    mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
    memory = model.apply(variables, tokens, mask, method='encode')
    return model.apply(variables, memory, method='cross'), mask

  def step(variables: PyTree, tokens: AnyArray | None, cross: tuple, mask: AnyArray, slots: tuple,
           t: AnyArray | int) -> tuple:
    if tokens is None:
      tokens = jnp.full((len(mask), 1), start_id)
    return model.apply(variables, tokens, cross, mask, slots, t, method='step')

  def logits(variables: PyTree, states: AnyArray) -> Array:
    return cast(Array, model.apply(variables, states, method='logits'))
  return make_decoder(model.cfg, read, step, logits)
