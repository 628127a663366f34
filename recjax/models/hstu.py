"""The block of HSTU: gated attention without a softmax, biased by place and by time.

Zhai et al., ICML 2024 (arXiv 2402.17152), as in github.com/meta-recsys/generative-recommenders. No
feed-forward layer; SiLU in place of the softmax, divided by the number of slots, which is a
constant of the model and no length of a row.

Shape letters: R rows, L slots, D width, H heads, d width of a head.
"""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from recjax.models.layers import linear
from recjax.protocols import AnyArray

TIMES = ('none', 'bias')  # what is known of when things happened
EDGES = np.array([math.ceil(math.exp(.301 * k)) for k in range(1, 72)], np.int32)
NUM_BUCKETS = len(EDGES) + 1  # as many as differences of 32 bits reach
EPS = 1e-6
SPAN = 64  # slots that ask together; those behind them are not computed, half of a long row


def time_buckets(asked: Int[AnyArray, 'R L'], seen: Int[AnyArray, 'R L']) -> UInt8[Array, 'R L L']:
  """The bucket of |asked_i - seen_j|, floor(ln(max(1, seconds)) / .301).

  asked: when the item behind each slot came, in seconds. seen: when the slot's own item did. By
  whole numbers, since float32 puts some edges a bucket off, each library others.
  """
  gap = jnp.abs(asked[:, :, None] - seen[:, None]).astype(jnp.int32)
  # An estimate, off by one at most, then two exact comparisons: cheaper than a search.
  guess = (jnp.log(jnp.maximum(gap, 1).astype(jnp.float32)) / .301).astype(jnp.int32)
  limits = jnp.asarray(np.concatenate([[0], EDGES, [np.iinfo(np.int32).max]]).astype(np.int32))
  guess = guess - (gap < limits[guess])
  return jnp.minimum(guess + (gap >= limits[guess + 1]), NUM_BUCKETS - 1).astype(jnp.uint8)


class HstuBlock(nn.Module):
  """One layer: x + W_o (u * LN(sum_j SiLU(q_i k_j + bias) / slots v_j)).

  heads: H. slots: what sums are divided by, and how far behind a place may lie. dropout: share of
  the gated numbers that is dropped in training. timed: whether it has a time bias.
  """
  heads: int
  slots: int
  dropout: float
  timed: bool

  @nn.compact
  def __call__(
      self, x: Float[Array, 'R L D'], visible: Bool[AnyArray, 'R 1 L L'],
      buckets: UInt8[Array, 'R L L'] | None, train: bool) -> Float[Array, 'R L D']:
    """x: the states. visible: of `seqrec.attention_mask`. buckets: of `time_buckets`; None leaves
    the time bias out. train: whether there is dropout."""
    std, width, order = nn.initializers.normal(0.02), x.shape[-1], jnp.arange(x.shape[1])

    def norm(y: Array) -> Array:
      return nn.LayerNorm(EPS, use_scale=False, use_bias=False, use_fast_variance=False)(y)

    def by_head(y: Array) -> Array:
      return y.reshape(*y.shape[:2], self.heads, width // self.heads).swapaxes(1, 2)
    uvqk = nn.silu(linear(norm(x), self.param('uvqk', std, (width, 4 * width))))
    u, v, q, k = jnp.split(uvqk, 4, -1)
    v, q, k = by_head(v), by_head(q), by_head(k)
    by_place = self.param('behind', std, (self.slots,))
    by_time = self.param('time', std, (NUM_BUCKETS,)) if self.timed else None

    def summed(first: int, last: int) -> Array:
      """What slots first .. last - 1 take from those up to themselves."""
      scores = jnp.einsum('rhqd,rhkd->rhqk', q[:, :, first:last], k[:, :, :last])
      bias = by_place[jnp.maximum(order[first:last, None] - order[:last], 0)]
      if by_time is not None and buckets is not None:
        bias = bias + by_time[buckets[:, None, first:last, :last]]
      weights = nn.silu(scores + bias) / self.slots  # masked below: SiLU of a bias is not 0
      weights = jnp.where(visible[:, :, first:last, :last], weights, 0)
      return jnp.einsum('rhqk,rhkd->rhqd', weights, v[:, :, :last])
    length = x.shape[1]
    y = jnp.concatenate([summed(i, min(i + SPAN, length)) for i in range(0, length, SPAN)], 2)
    y = y.swapaxes(1, 2).reshape(x.shape)
    gated = nn.Dropout(self.dropout, deterministic=not train)(u * norm(y))
    return x + nn.Dense(width, kernel_init=nn.initializers.xavier_uniform(), name='out')(gated)


def unit_rows(x: Float[AnyArray, '... D']) -> Float[Array, '... D']:
  """x over its length, 0 for zeros, with a gradient that is finite everywhere."""
  return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), EPS ** 2))
