"""Attention of new tokens over each other and over blocks of remembered keys and values."""
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recjax.protocols import AnyArray

MASKED = -1e30  # finite: a token with nothing to see gets a mean, not a NaN


class KVBlock(NamedTuple):
  """One block of remembered keys and values, only read.

  k, v: (L, G, P, Dh) shared by everybody, (L, B, G, P, Dh) for each row, or (L, B, S, G, T, Dh)
  private to each query position: as attention reads them, so that nothing is turned at every step.
  mask: (P), (B, P) or (B, S, T), true where a key may be seen; or (B, S, P) over blocks of each
  row, for every query its own.
  """
  k: Float[Array, '*rows P Dh']
  v: Float[Array, '*rows P Dh']
  mask: Bool[Array, '*queries P']


def kv_block(
    k: Float[Array, '*rows P G Dh'], v: Float[Array, '*rows P G Dh'],
    mask: Bool[Array, '*queries P']) -> KVBlock:
  """The block of keys and values that a call of the model returned, or of parts of them.

  k, v: the keys and values. mask: as `KVBlock` has it.
  """
  return KVBlock(jnp.swapaxes(k, -3, -2), jnp.swapaxes(v, -3, -2), mask)


def _softmax_over_blocks(
    q: Float[Array, 'B S G R Dh'], blocks: Sequence[KVBlock]) -> Float[Array, 'B S G R Dh']:
  """One softmax over all blocks of keys. -> float32

  q: the queries, scaled. blocks: of one layer, with masks that broadcast to (B, S, R, keys).
  """
  letters = {3: 'gtd', 4: 'bgtd', 5: 'bsgtd'}
  scores = [
      jnp.where(mask, jnp.einsum(f'bsgrd,{letters[k.ndim]}->gbsrt', q, k,
                                 preferred_element_type=jnp.float32), MASKED)
      for k, _, mask in blocks]
  highest = scores[0].max(-1)
  for block_scores in scores[1:]:
    highest = jnp.maximum(highest, block_scores.max(-1))
  highest = jax.lax.stop_gradient(highest)[..., None]  # any constant gives the same quotient
  weights = [jnp.exp(block_scores - highest) for block_scores in scores]
  total = functools.reduce(jnp.add, [w.sum(-1) for w in weights])
  mixed = functools.reduce(jnp.add, [
      jnp.einsum(f'gbsrt,{letters[v.ndim]}->gbsrd', w.astype(v.dtype), v,
                 preferred_element_type=jnp.float32)
      for w, (_, v, _) in zip(weights, blocks)])
  return jnp.einsum('gbsrd->bsgrd', mixed / total[..., None])


def attend(
    q: Float[Array, 'B S H Dh'], k: Float[Array, 'B S G Dh'], v: Float[Array, 'B S G Dh'],
    allowed: Bool[AnyArray, '#B S S'], past: Sequence[KVBlock], chunk: int = 128,
) -> Float[Array, 'B S H*Dh']:
  """Attention of tokens over remembered blocks and over each other. -> q.dtype

  q, k, v: of the tokens. allowed: which tokens each sees, already causal. past: blocks of one
  layer. chunk: long rows go in chunks of so many queries, each meeting only the keys before its
  end.
  """
  rows, length, heads, size = q.shape
  q = (q * size ** -0.5).reshape(rows, length, k.shape[2], -1, size)
  allowed, outs = jnp.asarray(allowed), []
  for start in range(0, length, chunk):
    queries, end = slice(start, start + chunk), min(start + chunk, length)
    blocks = [KVBlock(_of_queries(b.k, queries), _of_queries(b.v, queries),
                      _mask_of_queries(b.mask, queries)) for b in past]
    blocks.append(kv_block(k[:, :end], v[:, :end], allowed[:, queries, None, :end]))
    outs.append(_softmax_over_blocks(q[:, queries], blocks))
  out = jnp.concatenate(outs, 1) if len(outs) > 1 else outs[0]
  return out.reshape(rows, length, heads * size).astype(q.dtype)


def _of_queries(keys, queries):
  """The keys or values that are private to some queries; shared ones as they are."""
  return keys[:, queries] if keys.ndim == 5 else keys


def _mask_of_queries(mask, queries):
  """Brings a block's mask to (B, S, R, keys)."""
  if mask.ndim == 3:
    return mask[:, queries, None]
  return mask[..., None, None, :]
