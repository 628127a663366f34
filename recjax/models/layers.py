"""Operations that several models share, in a form that XLA compiles well for CPUs too.

Shape letters of the models: B rows, S tokens, D width, H heads, G key and value heads, Dh the width
of a head, L layers, V vocabulary, N items, K beams, R LoRA's rank.
"""
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, PyTree, UInt32

from recjax.errors import ConfigError
from recjax.protocols import AnyArray

DTYPES = ('float32', 'bfloat16', 'float16')
FAR = -1e9  # instead of -inf, so that a row without a single key stays finite


def check_dtype(name: str, value: object, more: tuple[str, ...] = ()) -> None:
  """Raises ConfigError where a setting is no type that models compute in.

  name: of the setting, for the message. value: what it holds. more: words that it may hold besides.
  """
  if value not in (*more, *DTYPES):
    raise ConfigError(f'{name}={value!r} is not one of {", ".join((*more, *DTYPES))}')


def count_params(params: PyTree) -> int:
  """The number of values in a tree of arrays or of jax.ShapeDtypeStruct. params: that tree."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def linear(x: Float[AnyArray, '... D'], kernel: Float[AnyArray, 'D E']) -> Float[Array, '... E']:
  """x times kernel, as one product of two matrices.

  The gradients of the product with more axes than two took twice as long on CPUs.
  """
  return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def rms_norm(
    x: Float[AnyArray, '... D'], scale: Float[AnyArray, ' D'], eps: float) -> Float[Array, '... D']:
  """x over its root mean square, computed in float32 (Zhang and Sennrich, NeurIPS 2019).

  scale: what each number is multiplied with afterwards. eps: added to the mean square. -> x.dtype
  """
  y = x.astype(jnp.float32)
  y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
  return (y * scale.astype(jnp.float32)).astype(x.dtype)


def dropout(x: Float[AnyArray, '...'], rate: float, key: Key[Array, '']) -> Float[Array, '...']:
  """Zeros a share `rate` of x, chosen by `key`, and scales the rest by 1 / (1 - rate).

  Which numbers stay is decided by an integer hash of their index and the key (the finalizer of
  MurmurHash3, twice): a tenth of the time of jax.random's bits on a CPU, the same for any sharding.
  """
  if not rate:
    return x
  first, second = jax.random.key_data(key).reshape(-1)[:2].astype(jnp.uint32)
  index = lax.iota(jnp.uint32, x.size).reshape(x.shape)
  keep = _hash(_hash(index ^ first) + second) >= jnp.uint32(round(2**32 * rate))
  return jnp.where(keep, x * (1 / (1 - rate)), 0).astype(x.dtype)


def _hash(bits: UInt32[AnyArray, '...']) -> UInt32[Array, '...']:
  """The finalizer of MurmurHash3, a bijection of uint32 in which each bit depends on all."""
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)
