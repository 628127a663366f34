"""Losses over hidden states, without holding all logits at once."""
import math

import jax
import jax.numpy as jnp

from recjax.distributed import sharding


def token_nll(hidden, head, targets, chunk_bytes=1 << 28):
  """Negative log-likelihood of each target under softmax(hidden @ head), in float32.

  hidden: (M, D). head: (D, V). targets: (M,) int32. -> (M,) float32
  Rows go through in chunks whose logits fit `chunk_bytes` on each device; each chunk's logits are
  recomputed in the backward pass instead of being kept.
  """
  rows, vocab = hidden.shape[0], head.shape[1]
  mesh = jax.sharding.get_abstract_mesh()
  devices = sharding.num_batch_shards(mesh) * mesh.shape.get('model', 1)
  chunks = max(1, math.ceil(rows * vocab * 4 / (chunk_bytes * devices)))

  def nll(part):
    h, t = part
    logits = jnp.dot(h, head.astype(h.dtype), preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, t[:, None], -1)[:, 0]
    return jax.nn.logsumexp(logits, -1) - picked

  if chunks == 1:
    return nll((hidden, targets))
  return by_chunks(jax.checkpoint(nll), (hidden, targets), chunks)


def by_chunks(fn, arrays, chunks):
  """`fn` of some rows at a time. arrays: (M, ...) each. fn: [(m, ...)] -> (m,). -> (M,)

  Every device keeps its own rows: a chunk holds some of each device's.
  """
  rows = len(arrays[0])
  ways = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())
  ways = ways if rows % ways == 0 else 1
  size = math.ceil(rows / ways / chunks)

  def split(x):
    x = x.reshape(ways, rows // ways, *x.shape[1:])
    x = jnp.pad(x, [(0, 0), (0, size * chunks - rows // ways)] + [(0, 0)] * (x.ndim - 2))
    x = jnp.swapaxes(x.reshape(ways, chunks, size, *x.shape[2:]), 0, 1)
    if ways > 1:
      x = sharding.shard(x, None, ('data', 'fsdp'))
    return x.reshape(chunks, ways * size, *x.shape[3:])
  found = jax.lax.map(fn, tuple(map(split, arrays))).reshape(chunks, ways, size)
  return jnp.swapaxes(found, 0, 1).reshape(ways, -1)[:, :rows // ways].reshape(-1)
