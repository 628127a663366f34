"""Attention of new tokens over each other and over blocks of remembered keys and values."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a token with nothing to see gets a mean, not a NaN


class KVBlock(NamedTuple):
  """One block of remembered keys and values, only read.

  k, v: (L, G, P, Dh) shared by everybody, (L, B, G, P, Dh) for each row, or (L, B, S, G, T, Dh)
  private to each query position: as attention reads them, so that nothing is turned at every step.
  mask: bool (P,), (B, P) or (B, S, T), true where it may be seen; or (B, S, P) over blocks of each
  row, for every query its own.
  """
  k: jax.Array
  v: jax.Array
  mask: jax.Array


def kv_block(k, v, mask):
  """A Past of the keys and values that a call returned, or of parts of them: (..., P, G, Dh)."""
  return KVBlock(jnp.swapaxes(k, -3, -2), jnp.swapaxes(v, -3, -2), mask)


def _softmax_over_blocks(q, blocks):
  """One softmax over all blocks of keys.

  q: (B, S, G, R, Dh), scaled. blocks: (k, v, mask) with k (G, P, Dh), (B, G, P, Dh) or
  (B, S, G, T, Dh), mask broadcastable to (B, S, R, keys). -> (B, S, G, R, Dh) float32
  """
  letters = {3: 'gtd', 4: 'bgtd', 5: 'bsgtd'}
  scores = [
      jnp.where(mask, jnp.einsum(f'bsgrd,{letters[k.ndim]}->gbsrt', q, k,
                                 preferred_element_type=jnp.float32), MASKED)
      for k, _, mask in blocks]
  top = scores[0].max(-1)
  for s in scores[1:]:
    top = jnp.maximum(top, s.max(-1))
  top = jax.lax.stop_gradient(top)[..., None]  # any constant gives the same quotient
  weights = [jnp.exp(s - top) for s in scores]
  total = sum(w.sum(-1) for w in weights)
  out = sum(
      jnp.einsum(f'gbsrt,{letters[v.ndim]}->gbsrd', w.astype(v.dtype), v,
                 preferred_element_type=jnp.float32)
      for w, (_, v, _) in zip(weights, blocks))
  return jnp.einsum('gbsrd->bsgrd', out / total[..., None])


def attend(q, k, v, allowed, past, chunk=128):
  """Attention of tokens over remembered blocks and over each other.

  q: (B, S, H, Dh); k, v: (B, S, G, Dh); allowed: (B, S, S) bool, already causal. Long rows go in
  chunks of queries, each meeting only the keys before its end. -> (B, S, H*Dh) in q.dtype
  """
  rows, length, heads, size = q.shape
  q = (q * size ** -0.5).reshape(rows, length, k.shape[2], -1, size)
  outs = []
  for start in range(0, length, chunk):
    here, end = slice(start, start + chunk), min(start + chunk, length)
    blocks = [(p.k, p.v, _mask_of_queries(p.mask, here)) for p in past]
    blocks = [(_keys_of_queries(pk, here), _keys_of_queries(pv, here), m) for pk, pv, m in blocks]
    own = kv_block(k[:, :end], v[:, :end], allowed[:, here, None, :end])
    blocks.append(own)
    outs.append(_softmax_over_blocks(q[:, here], blocks))
  out = jnp.concatenate(outs, 1) if len(outs) > 1 else outs[0]
  return out.reshape(rows, length, heads * size).astype(q.dtype)


def _keys_of_queries(k, here):
  return k[:, here] if k.ndim == 5 else k


def _mask_of_queries(mask, here):
  """Turns a block's mask to (B, S, R, keys)."""
  if mask.ndim == 3:
    return mask[:, here, None]
  return mask[..., None, None, :]
