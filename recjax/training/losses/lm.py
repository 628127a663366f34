"""Losses of language models over hidden states, without holding all logits at once.

M tokens, D width, V vocabulary.
"""
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from recjax.distributed import sharding
from recjax.protocols import AnyArray


def token_nll(hidden: Float[AnyArray, 'M D'], head: Float[AnyArray, 'D V'],
              targets: Int[AnyArray, ' M'], chunk_bytes: int = 1 << 28) -> Float[Array, ' M']:
  """Negative log-likelihood of each target under softmax(hidden @ head), in float32.

  hidden: states of M tokens. head: kernel of the head. targets: token ids.

  Rows go through in chunks whose logits fit `chunk_bytes` on each device; each chunk's logits are
  recomputed in the backward pass instead of being kept.
  """
  rows, vocab = hidden.shape[0], head.shape[1]
  mesh = jax.sharding.get_abstract_mesh()
  devices = sharding.num_batch_shards(mesh) * mesh.shape.get('model', 1)

  def nll(arrays: Sequence) -> Array:
    states, targets = arrays
    logits = head_logits(states, head.astype(states.dtype))
    target_logits = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    return jax.nn.logsumexp(logits, -1) - target_logits
  return map_rows(nll, (hidden, targets),
                  math.ceil(rows * vocab * 4 / (chunk_bytes * devices)))


@jax.custom_vjp
def head_logits(states: Float[AnyArray, 'M D'],
                head: Float[AnyArray, 'D V']) -> Float[Array, 'M V']:
  """states @ head in float32, with a gradient that multiplies in the type of the states.

  Autodiff would multiply the float32 gradient of the logits with what is bfloat16: on accelerators
  such products run at half the speed or less.
  """
  return jnp.dot(states, head, preferred_element_type=jnp.float32)


def _head_forward(states, head):
  return head_logits(states, head), (states, head)


def _head_backward(saved, grads):
  states, head = saved
  grads = grads.astype(states.dtype)
  return (jnp.dot(grads, head.T, preferred_element_type=jnp.float32).astype(states.dtype),
          jnp.dot(states.T, grads, preferred_element_type=jnp.float32).astype(head.dtype))


head_logits.defvjp(_head_forward, _head_backward)


def map_rows(fn: Callable, arrays: Sequence[Shaped[AnyArray, 'M ...']],
             chunks: int) -> Shaped[Array, ' M']:
  """`fn` of some rows at a time, whose inner values are made again in the backward pass.

  fn: arrays (m, ...) -> (m,). chunks: 1 or less for all rows together, kept as usual. Every device
  keeps its own rows: a chunk holds some of each device's.
  """
  if chunks <= 1:
    return fn(arrays)
  rows = len(arrays[0])
  shards = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())
  shards = shards if rows % shards == 0 else 1
  size = math.ceil(rows / shards / chunks)

  def split(x: AnyArray) -> Array:
    x = x.reshape(shards, rows // shards, *x.shape[1:])
    x = jnp.pad(x, [(0, 0), (0, size * chunks - rows // shards)] + [(0, 0)] * (x.ndim - 2))
    x = jnp.swapaxes(x.reshape(shards, chunks, size, *x.shape[2:]), 0, 1)
    if shards > 1:
      x = sharding.shard(x, None, ('data', 'fsdp'))
    return x.reshape(chunks, shards * size, *x.shape[3:])
  mapped = jax.lax.map(jax.checkpoint(fn), tuple(map(split, arrays)))
  mapped = jnp.swapaxes(mapped.reshape(chunks, shards, size), 0, 1)
  return mapped.reshape(shards, -1)[:, :rows // shards].reshape(-1)
