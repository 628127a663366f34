"""Frozen kernels in 8 bits: whole numbers, and one scale for each output of a linear layer.

The scale comes after the product, x (Q s) = (x Q) s, so that the conversion of Q fuses into the
product and no kernel is ever written out in a wider type. The largest weight of an output, in
absolute value, becomes 127 (absmax quantization; Dettmers et al., LLM.int8(), arXiv 2208.07339,
section 2).
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from recjax.models.layers import linear
from recjax.protocols import AnyArray

KINDS = ('none', 'int8')  # of `llm.Config.quantize`
MOST = 127


def to_int8(kernel: Float[AnyArray, '... E F']
            ) -> tuple[Int8[AnyArray, '... E F'], Float[AnyArray, '... F']]:
  """A kernel as whole numbers and their scales. kernel: of NumPy or JAX, in float32. -> numbers,
  scales; 1 for an output without a weight, or whose scale is too small for a float32"""
  xp: Any = kernel.__array_namespace__()
  scale = xp.max(xp.abs(kernel), axis=-2) / MOST
  scale = xp.where(scale < np.finfo(np.float32).tiny, xp.ones_like(scale), scale)  # NaN stays
  return xp.round(kernel / scale[..., None, :]).astype(xp.int8), scale


def to_float(numbers: Int8[AnyArray, '... E F'], scale: Float[AnyArray, '... F']
             ) -> Float[AnyArray, '... E F']:
  """The kernel that numbers and scales stand for, in the scales' type. numbers, scale: of
  `to_int8`."""
  return numbers.astype(scale.dtype) * scale[..., None, :]


@jax.custom_vjp
def product(x: Float[AnyArray, '... E'], numbers: Int8[AnyArray, 'E F'],
            scale: Float[AnyArray, ' F']) -> Float[Array, '... F']:
  """x W in the type of x, with a gradient for x alone.

  x: the input. numbers, scale: W, of `to_int8`. The backward pass reads the numbers again: what it
  would keep otherwise is the kernel as it was multiplied. Sums before the scale can be thousands of
  times those behind it, more than float16 holds, so there they are in float32.
  """
  sums = jnp.float32 if x.dtype == jnp.float16 else None
  y = jnp.matmul(x.reshape(-1, x.shape[-1]), numbers.astype(x.dtype), preferred_element_type=sums)
  return (y * scale).astype(x.dtype).reshape(*x.shape[:-1], numbers.shape[-1])


def _forward(x, numbers, scale):
  return product(x, numbers, scale), (numbers, scale)


def _backward(kernel, dy):
  numbers, scale = kernel
  return linear((dy * scale).astype(dy.dtype), numbers.astype(dy.dtype).T), None, None


product.defvjp(_forward, _backward)
