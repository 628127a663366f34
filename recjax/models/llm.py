"""The decoder of the Llama and Qwen families: one definition trains, prefills and decodes.

Touvron et al., arXiv 2302.13971 (Llama); Qwen2 and Qwen3 technical reports, arXiv 2407.10671 and
2505.09388. The model writes no cache. A call returns the keys and values of its own tokens; the
caller keeps them and passes remembered ones back as `KVBlock` blocks, which are only read. So
packed training rows, a prompt shared by a whole batch, and many streams over one prompt are the
same program. Frozen weights live in 'params', adapters in 'lora'; norms, rotary angles, softmax and
logits are float32 whatever the compute type. Shape letters: see `layers`.
"""
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int8, Integer, Key, PyTree

from recjax.distributed.sharding import shard, shard_rows
from recjax.errors import ConfigError
from recjax.models import quantize, rope
from recjax.models.attention import KVBlock, attend, kv_block
from recjax.models.layers import check_dtype, linear, rms_norm
from recjax.protocols import AnyArray

LINEAR = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')

KEPT = 'linear'  # the name of what linear layers give

INIT = 0.02  # standard deviation of fresh weights
INT8_SD = 32  # of fresh weights in 8 bits, whose largest are 127

POLICIES = {
    'dots': jax.checkpoint_policies.save_only_these_names(KEPT),
    'full': jax.checkpoint_policies.nothing_saveable,
}

# Leaves carry their layer first. Outputs split over 'model', inputs over 'fsdp'; o and down turn
# that round so that one all-reduce closes each half of a block.
RULES = (
    (r'embed', P('model', 'fsdp')),
    (r'head', P('fsdp', 'model')),
    (r'(q|k|v|gate|up)/kernel', P(None, 'fsdp', 'model')),
    (r'(o|down)/kernel', P(None, 'model', 'fsdp')),
    (r'(q|k|v|gate|up)/(bias|scale)', P(None, 'model')),
    (r'(q|k|v|gate|up)/a', P(None, 'fsdp', None)),
    (r'(q|k|v|gate|up)/b', P(None, None, 'model')),
    (r'(o|down)/a', P(None, 'model', None)),
    (r'(o|down)/b', P(None, None, 'fsdp')),
)


@dataclasses.dataclass(frozen=True)
class Config:
  """A decoder's shape and numerics; hashable, so a module that holds it can be a static argument.

  vocab, width, layers, heads, kv_heads, head_dim, ffn: sizes; ffn is the inner width of the
  feed-forward layers. rope_theta: base of the rotary angles. rope_scaling: pairs as in a
  checkpoint's rope_scaling, with 'rope_type'; () for none. norm_eps: of `rms_norm`. tied: the
  output layer is the embedding. qkv_bias, out_bias, mlp_bias: which linear layers have a bias.
  qk_norm: queries and keys are normed, as in Qwen3. max_positions: length the model was made for.
  dtype: computes. param_dtype: stores the frozen weights; adapters are float32. remat: 'none' keeps
  every activation, 'dots' keeps what linear layers give, 'full' only each block's input.
  scan_unroll: layers in one step of the scan. lora_rank: 0 for no adapters. lora_alpha: as of
  `lora_scale`. lora_targets: names of the linear layers that have one. table_rows: of the token
  tables where they are filled up for a mesh (see `padded_rows`), 0 for vocab. quantize: 'int8'
  stores the linear layers' kernels as `quantize` says, 'none' in param_dtype. Raises ConfigError.
  """
  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  ffn: int
  rope_theta: float = 10_000.0
  rope_scaling: tuple[tuple[str, Any], ...] = ()
  norm_eps: float = 1e-6
  tied: bool = False
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  max_positions: int = 2048
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'
  scan_unroll: int = 1
  lora_rank: int = 0
  lora_alpha: float = 16.0
  lora_targets: tuple[str, ...] = LINEAR
  table_rows: int = 0
  quantize: str = 'none'

  def __post_init__(self):
    check_dtype('dtype', self.dtype)
    check_dtype('param_dtype', self.param_dtype)
    if self.heads % self.kv_heads:
      raise ConfigError(f'{self.heads} heads do not divide over kv_heads={self.kv_heads}')
    if self.head_dim % 2:
      raise ConfigError(f'head_dim={self.head_dim} is odd; rotary positions turn pairs')
    if self.remat not in ('none', *POLICIES):
      raise ConfigError(f'llm.remat={self.remat!r} is not one of none, {", ".join(POLICIES)}')
    if self.quantize not in quantize.KINDS:
      raise ConfigError(f'llm.quantize={self.quantize!r} is not one of '
                        f'{", ".join(quantize.KINDS)}')
    if unknown := set(self.lora_targets) - set(LINEAR):
      raise ConfigError(f'lora_targets has {", ".join(sorted(unknown))}; known are '
                        f'{", ".join(LINEAR)}')

  @property
  def rows(self) -> int:
    """Rows of the token tables."""
    return self.table_rows or self.vocab

  @property
  def stored(self) -> str:
    """The types that weights are kept in, for people."""
    return self.param_dtype + (f', kernels {self.quantize}' if self.quantize != 'none' else '')

  @property
  def lora_scale(self) -> float:
    """What an adapter's product A B is multiplied with."""
    return self.lora_alpha / self.lora_rank

  @property
  def linear(self) -> dict[str, tuple[int, int, bool]]:
    """{name: (inputs, outputs, has a bias)} of a block's seven linear layers."""
    q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
    return {
        'q': (self.width, q, self.qkv_bias), 'k': (self.width, kv, self.qkv_bias),
        'v': (self.width, kv, self.qkv_bias), 'o': (q, self.width, self.out_bias),
        'gate': (self.width, self.ffn, self.mlp_bias), 'up': (self.width, self.ffn, self.mlp_bias),
        'down': (self.ffn, self.width, self.mlp_bias),
    }


class Weight(NamedTuple):
  """A linear layer: kernel, bias or None, and the adapter a, b, or None for both; b is scaled.

  scale: of a kernel in 8 bits, one number an output, else None.
  """
  kernel: Float[Array, 'E F'] | Int8[Array, 'E F']
  scale: Float[Array, ' F'] | None
  bias: Float[Array, ' F'] | None
  a: Float[Array, 'E R'] | None
  b: Float[Array, 'R F'] | None

  def product(self, x: Float[AnyArray, '... E'], dtype: str) -> Float[Array, '... F']:
    """x W in `dtype`. x: the input."""
    if self.scale is None:
      return linear(x, self.kernel.astype(dtype))
    return quantize.product(x.astype(dtype), self.kernel, self.scale)


class Linear(nn.Module):
  """Declares the arrays of the linear layer that has the module's name."""
  cfg: Config

  @nn.compact
  def __call__(self) -> Weight:
    cfg = self.cfg
    size_in, size_out, has_bias = cfg.linear[str(self.name)]
    bias = scale = None
    if cfg.quantize == 'int8':
      kernel = self.param('kernel', _random_int8, (size_in, size_out))
      scale = self.param('scale', nn.initializers.constant(INIT / INT8_SD), (size_out,),
                         jnp.float32)
    else:
      kernel = self.param('kernel', nn.initializers.normal(INIT), (size_in, size_out),
                          cfg.param_dtype)
    if has_bias:
      bias = self.param('bias', nn.initializers.zeros, (size_out,), cfg.param_dtype)
    if not cfg.lora_rank or self.name not in cfg.lora_targets:
      return Weight(kernel, scale, bias, None, None)
    a = self.variable('lora', 'a', jnp.zeros, (size_in, cfg.lora_rank), jnp.float32).value
    b = self.variable('lora', 'b', jnp.zeros, (cfg.lora_rank, size_out), jnp.float32).value
    return Weight(kernel, scale, bias, a, b * cfg.lora_scale)


def _random_int8(key, shape):
  """Numbers that times a scale of INIT / INT8_SD are spread as a fresh model's weights."""
  drawn = jnp.round(jax.random.normal(key, shape) * INT8_SD)
  return jnp.clip(drawn, -quantize.MOST, quantize.MOST).astype(jnp.int8)


def project(x: Float[AnyArray, 'B S E'], weights: Sequence[Weight],
            dtype: str) -> list[Float[Array, 'B S _']]:
  """Applies linear layers that read the same input. -> the output of each

  x: the input. weights: the layers. dtype: of the products.

  y = x W + bias + s (x A) B (Hu et al., ICLR 2022). In float32, with many tokens,
  x (W + s A B) is the same to rounding and spares the passes over the output; its backward never
  forms the dense gradient of W.
  """
  adapted = [w.a for w in weights if w.a is not None]
  if adapted and len(adapted) == len(weights) and dtype == 'float32' and _merging_pays(x, weights):
    kernels = tuple(w.kernel if w.scale is None else (w.kernel, w.scale) for w in weights)
    ys = merged_matmul(x, kernels, tuple(w.a for w in weights), tuple(w.b for w in weights))
  else:
    ys = [w.product(x, dtype) for w in weights]
    if adapted:
      low_rank = x @ jnp.concatenate(adapted, 1).astype(dtype)
      parts = iter(jnp.split(low_rank, len(adapted), -1))
      ys = [y if w.b is None else y + next(parts) @ w.b.astype(dtype) for y, w in zip(ys, weights)]
  # Named as a sum: x W and the adapter's share would each be kept, were products what is kept.
  return [checkpoint_name(y if w.bias is None else y + w.bias.astype(dtype), KEPT)
          for y, w in zip(ys, weights)]


def _merging_pays(x, weights):
  """Whether merging costs less than the low-rank path would."""
  size_in, size_out = weights[0].kernel.shape
  return math.prod(x.shape[:-1]) * (size_in + size_out) >= 2 * size_in * size_out


@jax.custom_vjp
def merged_matmul(
    x: Float[AnyArray, '... E'],
    kernels: tuple[Float[AnyArray, 'E _']
                   | tuple[Int8[AnyArray, 'E _'], Float[AnyArray, ' _']], ...],
    a: tuple[Float[AnyArray, 'E _'], ...], b: tuple[Float[AnyArray, '_ _'], ...],
) -> list[Float[Array, '... _']]:
  """x (W + A B) for each layer, float32. kernels, a, b: W, A and B of the layers, in one order; W
  as numbers and scales where it is in 8 bits, and then without a gradient."""
  return [x @ (_dense(w) + p @ q) for w, p, q in zip(kernels, a, b)]


def _dense(kernel):
  return quantize.to_float(*kernel) if isinstance(kernel, tuple) else kernel.astype(jnp.float32)


def _merged_forward(x, kernels, a, b):
  return merged_matmul(x, kernels, a, b), (x, kernels, a, b)  # in 8 bits, not as it was multiplied


def _merged_backward(saved, dys):
  x, kernels, a, b = saved
  flat, dys = x.reshape(-1, x.shape[-1]), [d.reshape(-1, d.shape[-1]) for d in dys]
  dx = functools.reduce(
      jnp.add, [dy @ (_dense(w) + p @ q).T for dy, w, p, q in zip(dys, kernels, a, b)])
  # The thin products of layers that share an input go through as one matmul each way.
  down = jnp.concatenate([dy @ q.T for dy, q in zip(dys, b)], 1)
  up = jnp.split(flat @ jnp.concatenate(a, 1), len(a), 1)
  da = tuple(part.T for part in jnp.split(down.T @ flat, len(a)))
  db = tuple(part.T @ dy for part, dy in zip(up, dys))
  # Dropped by the compiler while the kernels are frozen.
  dw = tuple(None if isinstance(w, tuple) else (flat.T @ dy).astype(w.dtype)
             for w, dy in zip(kernels, dys))
  return dx.reshape(x.shape), dw, da, db


merged_matmul.defvjp(_merged_forward, _merged_backward)


class Block(nn.Module):
  """One layer; returns the keys and values of its tokens beside its output."""
  cfg: Config

  @nn.compact
  def __call__(
      self, x: Float[AnyArray, 'B S D'], past: tuple[tuple[AnyArray, Array], ...],
      rotation: tuple[Float[AnyArray, '#B S 1 _'], Float[AnyArray, '#B S 1 _']],
      allowed: Bool[AnyArray, '#B S S'], masks: tuple[Bool[AnyArray, '...'], ...],
  ) -> tuple[Float[Array, 'B S D'], tuple[Float[Array, 'B S G Dh'], Float[Array, 'B S G Dh']]]:
    """x: the states. past: keys and values of remembered blocks, of this layer; masks: theirs.

    rotation: cosine and sine of `rope.angles`. allowed: which tokens each sees.
    """
    cfg = self.cfg
    layers = {name: Linear(cfg, name=name)() for name in LINEAR}

    def ones(name: str, size: int = cfg.width) -> Array:
      return self.param(name, nn.initializers.ones, (size,), cfg.param_dtype)

    def apply(y: Array, *names) -> Any:
      return project(y, [layers[name] for name in names], cfg.dtype)
    y = rms_norm(x, ones('attn_norm'), cfg.norm_eps)
    q, k, v = (t.reshape(*t.shape[:2], -1, cfg.head_dim) for t in apply(y, 'q', 'k', 'v'))
    if cfg.qk_norm:
      q = rms_norm(q, ones('q_norm', cfg.head_dim), cfg.norm_eps)
      k = rms_norm(k, ones('k_norm', cfg.head_dim), cfg.norm_eps)
    q, k = rope.rotate(q, *rotation), rope.rotate(k, *rotation)
    blocks = [KVBlock(*kv, mask) for kv, mask in zip(past, masks)]
    x += apply(attend(q, k, v, allowed, blocks), 'o')[0]
    gate, up = apply(rms_norm(x, ones('mlp_norm'), cfg.norm_eps), 'gate', 'up')
    x += apply(nn.silu(gate) * up, 'down')[0]
    return shard_rows(x), (k, v)


class LM(nn.Module):
  """Embedding, a scanned stack of blocks, final norm, and the head as a method of its own."""
  cfg: Config

  def setup(self) -> None:
    cfg = self.cfg
    normal = nn.initializers.normal(INIT)
    self.embed = self.param('embed', normal, (cfg.rows, cfg.width), cfg.param_dtype)
    block = Block
    if cfg.remat != 'none':
      block = nn.remat(Block, prevent_cse=False, policy=POLICIES[cfg.remat])
    in_axes: Any = (0, nn.broadcast, nn.broadcast, nn.broadcast)
    self.blocks = nn.scan(
        block, length=cfg.layers, in_axes=in_axes, out_axes=0,
        variable_axes={'params': 0, 'lora': 0}, split_rngs={'params': True},
        unroll=min(cfg.scan_unroll, cfg.layers))(cfg)
    self.norm = self.param('norm', nn.initializers.ones, (cfg.width,), cfg.param_dtype)
    if not cfg.tied:
      self.head = self.param('head', normal, (cfg.width, cfg.rows), cfg.param_dtype)

  def __call__(
      self, tokens: Integer[AnyArray, 'B S'], positions: Integer[AnyArray, '#B S'],
      segments: Integer[AnyArray, 'B S'] | Bool[AnyArray, 'B S S'], past: Sequence[KVBlock] = (),
  ) -> tuple[Float[Array, 'B S D'],
             tuple[Float[Array, 'L B S G Dh'], Float[Array, 'L B S G Dh']]]:
    """Runs tokens; each sees itself, earlier tokens of its segment, and every unmasked past key.

    tokens: ids. positions: of the rotation. segments: whose token it is; 0 is padding, whose
    results are finite and mean nothing. Or, as booleans, which tokens each sees. past: blocks that
    are seen besides. -> states after the final norm in cfg.dtype, keys (rotated) and values of
    these tokens
    """
    table = shard(self.embed, 'model', None)  # gathered over fsdp first, as rows split over it too
    x = shard_rows(jnp.take(table, tokens, axis=0).astype(self.cfg.dtype))
    if segments.ndim == 3:
      allowed = segments
    else:
      allowed = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
      order = jnp.arange(tokens.shape[1])
      allowed &= order[:, None] >= order
    rotation = rope.angles(self.cfg, positions)
    x, kv = self.blocks(
        x, tuple((p.k, p.v) for p in past), rotation, allowed, tuple(p.mask for p in past))
    return rms_norm(x, self.norm, self.cfg.norm_eps), kv

  def logits(self, hidden: Float[AnyArray, '*rows D']) -> Float[Array, '*rows V']:
    """The logits of all tokens, float32, -inf for rows that fill up. hidden: of `__call__`."""
    head = self.embed.T if self.cfg.tied else self.head
    y = jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if self.cfg.rows > self.cfg.vocab:
      y = jnp.where(jnp.arange(self.cfg.rows) < self.cfg.vocab, y, -jnp.inf)
    return shard_rows(y, *(None,) * (y.ndim - 2), 'model') if y.ndim > 1 else y

  def candidate_logits(self, hidden: Float[AnyArray, '*rows D'],
                       ids: Integer[AnyArray, '*rows C']) -> Float[Array, '*rows C']:
    """The logits of tokens `ids` alone, float32. hidden: states of `__call__`."""
    rows = jnp.take(self.embed, ids, 0) if self.cfg.tied else jnp.take(self.head.T, ids, 0)
    return jnp.einsum('...d,...cd->...c', hidden, rows.astype(hidden.dtype),
                      preferred_element_type=jnp.float32)

  def window_logits(
      self, hidden: Float[AnyArray, '*rows D'], first: int | Integer[AnyArray, ''], size: int,
  ) -> Float[Array, '*rows C']:
    """The logits of tokens first .. first + size - 1, float32. hidden: states of `__call__`."""
    if self.cfg.tied:
      window = jax.lax.dynamic_slice_in_dim(self.embed, first, size, 0).T
    else:
      window = jax.lax.dynamic_slice_in_dim(self.head, first, size, 1)
    return jnp.matmul(hidden, window.astype(hidden.dtype), preferred_element_type=jnp.float32)


def prefill_prefix(
    model: LM, variables: PyTree, prefix: Sequence[int] | Integer[AnyArray, ' P'],
) -> tuple[Float[Array, ' D'], KVBlock]:
  """Runs a prefix that every row will see, once. -> state of its last token, its block

  model, variables: whose prefix it is. prefix: token ids. Gradients flow through the block like
  through any other argument.
  """
  ids = jnp.asarray(prefix, jnp.int32)[None]
  hidden, (k, v) = cast(Any, model.apply(
      variables, ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids)))
  return hidden[0, -1], kv_block(k[:, 0], v[:, 0], jnp.ones(ids.shape[1], bool))


def head_matrix(params: PyTree, cfg: Config) -> Float[Array, 'D V']:
  """The kernel of the head in the compute type, for losses that go chunk by chunk.

  params: the 'params' tree. Gathered over 'fsdp' once: products with a part of D each would add up
  whole logits instead. Without rows that fill up. cfg: the model's shape.
  """
  head = (params['embed'].T if cfg.tied else params['head'])[:, :cfg.vocab].astype(cfg.dtype)
  return shard(head, None, 'model')


def gather_tables(params: PyTree) -> PyTree:
  """Parameters whose token tables are gathered over 'fsdp', once, for programs of many steps.
  params: the 'params' tree."""
  tables = {'embed': ('model', None), 'head': (None, 'model')}
  return {name: shard(value, *tables[name]) if name in tables else value
          for name, value in params.items()}


@functools.partial(jax.jit, static_argnums=0, inline=True)
def init(cfg: Config, key: Key[Array, '']) -> PyTree:
  """Random weights, a function of the key alone; no adapters. cfg: the model's shape. -> 'params'
  tree"""
  ones = jnp.ones((1, 1), jnp.int32)
  model = LM(dataclasses.replace(cfg, lora_rank=0, remat='none'))
  return model.init(key, ones, ones, ones)['params']


def shapes(cfg: Config) -> PyTree:
  """The 'params' tree as jax.ShapeDtypeStruct, without computing anything. cfg: the model's shape.
  """
  return jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))


def padded_rows(vocab: int, model: int) -> int:
  """Rows of the token tables on a mesh whose axis 'model' has that size.

  vocab: tokens. An array lies on devices in equal parts only, so where the axis does not divide the
  tokens they are filled up to a multiple of 128, a TPU's lanes, for each device.
  """
  return vocab if vocab % model == 0 else -(-vocab // (128 * model)) * 128 * model


def cut_tables(params: PyTree, cfg: Config) -> PyTree:
  """The weights without rows that fill up the token tables. params: the 'params' tree."""
  tables = {'embed': lambda x: x[:cfg.vocab], 'head': lambda x: x[:, :cfg.vocab]}
  return {name: tables[name](x) if name in tables else x for name, x in params.items()}


def as_stored(params: PyTree, cfg: Config) -> PyTree:
  """Trained weights, which are float32, in the type that cfg's model stores; for a checkpoint.

  params: the 'params' tree, on the host or a device.
  """
  return jax.tree.map(lambda x: x.astype(jnp.dtype(cfg.param_dtype)), params)


def param_bytes(cfg: Config) -> int:
  """Bytes of the frozen weights as stored. cfg: the model's shape."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes(cfg)))


def flops_per_token(cfg: Config, context: float) -> float:
  """Forward floating point operations of one token that sees `context` keys, head included.

  cfg: the model's shape.

  Counted by hand, because the compiler's own analysis counts a scanned layer once. A step that
  trains everything costs three times this, one that trains adapters only about twice.
  """
  weights = sum(size_in * size_out for size_in, size_out, _ in cfg.linear.values())
  weights += sum((size_in + size_out) * cfg.lora_rank
                 for name, (size_in, size_out, _) in cfg.linear.items() if name in cfg.lora_targets)
  attention = 2 * context * cfg.heads * cfg.head_dim
  return 2 * (cfg.layers * (weights + attention) + cfg.width * cfg.vocab)
