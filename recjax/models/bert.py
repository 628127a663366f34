"""Text encoders of the BERT family: MiniLM, bge, e5 and their like, read from a sentence encoder.

Devlin et al., NAACL 2019. Layers are scanned, norms, softmax and pooling are float32. B texts,
S tokens, D width.
"""
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from recjax.errors import ConfigError
from recjax.models.attention import attend
from recjax.models.layers import check_dtype

ACTIVATIONS = {
    'gelu': functools.partial(nn.gelu, approximate=False), 'relu': nn.relu,
    'gelu_new': nn.gelu, 'gelu_pytorch_tanh': nn.gelu}
POOLS = ('avg', 'last', 'cls')
RULES = (
    (r'words', P('model', 'fsdp')),
    (r'(q|k|v|up)/kernel', P(None, 'fsdp', 'model')),
    (r'(o|down)/kernel', P(None, 'model', 'fsdp')),
)


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape and numerics; hashable. dtype computes, weights are float32. Raises ConfigError."""
  vocab: int
  width: int
  layers: int
  heads: int
  ffn: int
  positions: int = 512
  types: int = 2
  norm_eps: float = 1e-12
  act: str = 'gelu'
  dtype: str = 'float32'

  def __post_init__(self):
    check_dtype('dtype', self.dtype)
    if self.act not in ACTIVATIONS:
      raise ConfigError(f'hidden_act {self.act!r} is not supported; {", ".join(ACTIVATIONS)} are')
    if self.width % self.heads:
      raise ConfigError(f'width {self.width} does not divide into {self.heads} heads')


class Bert(nn.Module):
  """Tokens in, the states of the last layer out."""
  cfg: Config

  @nn.compact
  def __call__(self, tokens, mask):
    """tokens: (B, S) int32. mask: (B, S), above 0 where a token is real. -> (B, S, D) cfg.dtype"""
    cfg = self.cfg
    std = nn.initializers.normal(0.02)
    table = lambda name, rows: self.param(name, std, (rows, cfg.width))  # noqa: E731
    at = jnp.maximum(jnp.cumsum(mask > 0, -1) - 1, 0)  # the same whichever side is padded
    x = table('words', cfg.vocab)[tokens] + table('places', cfg.positions)[at]
    x = LayerNorm(cfg, name='norm')(x + table('types', cfg.types)[0])
    block = nn.scan(Block, length=cfg.layers, in_axes=nn.broadcast, variable_axes={'params': 0},
                    split_rngs={'params': True})
    allowed = jnp.broadcast_to((mask > 0)[:, None], (*mask.shape, mask.shape[1]))
    return block(cfg, name='blocks')(x, allowed)[0]


class LayerNorm(nn.Module):
  """Layer norm in float32."""
  cfg: Config

  @nn.compact
  def __call__(self, x):
    y = nn.LayerNorm(epsilon=self.cfg.norm_eps, use_fast_variance=False, name='of')(
        x.astype(jnp.float32))
    return y.astype(self.cfg.dtype)


class Block(nn.Module):
  """Attention and a feed-forward layer, each with its norm behind it."""
  cfg: Config

  @nn.compact
  def __call__(self, x, allowed):
    cfg = self.cfg
    dense = lambda name, size: nn.Dense(  # noqa: E731
        size, dtype=cfg.dtype, kernel_init=nn.initializers.normal(0.02), name=name)
    heads = lambda y: y.reshape(*y.shape[:2], cfg.heads, -1)  # noqa: E731
    q, k, v = (heads(dense(n, cfg.width)(x)) for n in 'qkv')
    # One chunk of all queries: `attend` cuts longer rows as causal ones may be cut.
    seen = attend(q, k, v, allowed, (), chunk=x.shape[1])
    x = LayerNorm(cfg, name='attn_norm')(x + dense('o', cfg.width)(seen))
    y = ACTIVATIONS[cfg.act](dense('up', cfg.ffn)(x))
    return LayerNorm(cfg, name='mlp_norm')(x + dense('down', cfg.width)(y)), None


def pool(hidden, mask, how):
  """One vector a text, in float32. hidden: (B, S, D). mask: (B, S). -> (B, D)

  how: 'avg' over real tokens, 'last' real token, 'cls' the first one. A text without real tokens
  gives zeros. Raises ConfigError for another name.
  """
  if how not in POOLS:
    raise ConfigError(f'pool={how!r}; choose one of {", ".join(POOLS)}')
  real = (mask > 0).astype(jnp.float32)
  hidden = hidden.astype(jnp.float32)
  if how == 'avg':
    return jnp.einsum('bsd,bs->bd', hidden, real) / jnp.maximum(real.sum(1), 1)[:, None]
  order = jnp.arange(1, mask.shape[1] + 1)
  at = (real * (order if how == 'last' else order[::-1])).argmax(1)
  some = jnp.take_along_axis(hidden, at[:, None, None], 1)[:, 0]
  return some * (real.sum(1) > 0)[:, None]


def init(cfg, key):
  """Random parameters, float32."""
  one = jnp.ones((1, 1), jnp.int32)
  return Bert(cfg).init(key, one, one)['params']


def shapes(cfg):
  """The parameters as jax.ShapeDtypeStruct."""
  return jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))
