"""Text encoders of the BERT family: MiniLM, bge, e5 and their like, read from a sentence encoder.

Devlin et al., NAACL 2019. Layers are scanned; norms, softmax and pooling are float32. Shape
letters: B texts, S tokens, D width.
"""
import dataclasses
import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from recjax.errors import ConfigError
from recjax.models.attention import attend
from recjax.models.layers import check_dtype
from recjax.protocols import AnyArray

ACTIVATIONS = {
    'gelu': functools.partial(nn.gelu, approximate=False), 'relu': nn.relu,
    'gelu_new': nn.gelu, 'gelu_pytorch_tanh': nn.gelu}
POOLS = ('avg', 'last', 'cls')
RULES = (
    (r'words', P('model', 'fsdp')),
    (r'(q|k|v|up)/kernel', P(None, 'fsdp', 'model')),
    (r'(o|down)/kernel', P(None, 'model', 'fsdp')),
)
Mask = Shaped[AnyArray, 'B S']  # above 0, or true, where a token is real


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape and numerics; hashable. dtype computes, weights are float32. Raises ConfigError.

  vocab, width, layers, heads, ffn: sizes; ffn is the inner width of the feed-forward layers.
  positions, types: rows of the tables of positions and of token types. norm_eps: of the norms. act:
  of the feed-forward layers, one of ACTIVATIONS.
  """
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
  def __call__(self, tokens: Int[AnyArray, 'B S'], mask: Mask) -> Float[Array, 'B S D']:
    """States in the compute type. tokens: ids. mask: which of them are real."""
    cfg = self.cfg

    def table(name: str, rows: int) -> Array:
      return self.param(name, nn.initializers.normal(0.02), (rows, cfg.width))
    positions = jnp.maximum(jnp.cumsum(mask > 0, -1) - 1, 0)  # whichever side is padded
    x = table('words', cfg.vocab)[tokens] + table('places', cfg.positions)[positions]
    x = LayerNorm(cfg, name='norm')(x + table('types', cfg.types)[0])
    block = nn.scan(Block, length=cfg.layers, in_axes=cast(Any, nn.broadcast),
                    variable_axes={'params': 0}, split_rngs={'params': True})
    allowed = jnp.broadcast_to((mask > 0)[:, None], (*mask.shape, mask.shape[1]))
    return block(cfg, name='blocks')(x, allowed)[0]


class LayerNorm(nn.Module):
  """Layer norm in float32."""
  cfg: Config

  @nn.compact
  def __call__(self, x: Float[AnyArray, 'B S D']) -> Float[Array, 'B S D']:
    """x after the norm, in the compute type."""
    norm = nn.LayerNorm(epsilon=self.cfg.norm_eps, use_fast_variance=False, name='of')
    return norm(x.astype(jnp.float32)).astype(self.cfg.dtype)


class Block(nn.Module):
  """Attention and a feed-forward layer, each with its norm behind it."""
  cfg: Config

  @nn.compact
  def __call__(
      self, x: Float[AnyArray, 'B S D'], allowed: Bool[AnyArray, 'B S S'],
  ) -> tuple[Float[Array, 'B S D'], None]:
    """x: states. allowed: which tokens each sees."""
    cfg = self.cfg

    def dense(name: str, y: Array, size: int = cfg.width) -> Array:
      return nn.Dense(size, dtype=cfg.dtype, kernel_init=nn.initializers.normal(0.02),
                      name=name)(y)
    q, k, v = (dense(name, x).reshape(*x.shape[:2], cfg.heads, -1) for name in 'qkv')
    # One chunk of all queries: `attend` cuts longer rows as causal ones may be cut.
    attended = attend(q, k, v, allowed, (), chunk=x.shape[1])
    x = LayerNorm(cfg, name='attn_norm')(x + dense('o', attended))
    y = ACTIVATIONS[cfg.act](dense('up', x, cfg.ffn))
    return LayerNorm(cfg, name='mlp_norm')(x + dense('down', y)), None


def pool(hidden: Float[AnyArray, 'B S D'], mask: Mask, how: str) -> Float[Array, 'B D']:
  """One vector a text, in float32; zeros for a text without real tokens.

  hidden: states of `Bert`. mask: which tokens are real. how: 'avg' over real tokens, 'last' real
  token, 'cls' the first one. Raises ConfigError for another name.
  """
  if how not in POOLS:
    raise ConfigError(f'pool={how!r}; choose one of {", ".join(POOLS)}')
  real = (mask > 0).astype(jnp.float32)
  hidden = hidden.astype(jnp.float32)
  if how == 'avg':
    return jnp.einsum('bsd,bs->bd', hidden, real) / jnp.maximum(real.sum(1), 1)[:, None]
  order = jnp.arange(1, mask.shape[1] + 1)
  index = (real * (order if how == 'last' else order[::-1])).argmax(1)
  chosen = jnp.take_along_axis(hidden, index[:, None, None], 1)[:, 0]
  return chosen * (real.sum(1) > 0)[:, None]


@functools.partial(jax.jit, static_argnums=0, inline=True)
def init(cfg: Config, key: Key[Array, '']) -> PyTree:
  """Random parameters, float32. cfg: the model's shape. key: of the draws."""
  ones = jnp.ones((1, 1), jnp.int32)
  return Bert(cfg).init(key, ones, ones)['params']


def shapes(cfg: Config) -> PyTree:
  """The parameters as jax.ShapeDtypeStruct. cfg: the model's shape."""
  return jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))
