"""Losses of language models over hidden states, without holding all logits at once.

M tokens, D width, V vocabulary.
"""
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from recjax.distributed import sharding
from recjax.protocols import AnyArray


def token_nll(hidden: Float[AnyArray, 'M D'], head: Float[AnyArray, 'D V'],
              targets: Int[AnyArray, ' M'], chunk_bytes: int = 1 << 28) -> Float[Array, ' M']:
  """Negative log-likelihood of each target under softmax(hidden @ head), in float32.

  hidden: states of M tokens. head: kernel of the head. targets: token ids.

  Rows go through in chunks whose logits fit `chunk_bytes` on each device. Where the head is frozen,
  the gradient of the states is made beside the loss, from the same logits: two products with the
  head in all (the idea of Hsu et al., Liger Kernel, arXiv 2410.10989). Where it trains, each
  chunk's logits are made again in the backward pass.
  """
  rows, vocab = hidden.shape[0], head.shape[1]
  mesh = jax.sharding.get_abstract_mesh()
  devices = sharding.num_batch_shards(mesh) * mesh.shape.get('model', 1)
  return _token_nll(math.ceil(rows * vocab * 4 / (chunk_bytes * devices)), hidden, head, targets)


def _chunked_nll(chunks, hidden, head, targets):
  def nll(arrays: Sequence) -> Array:
    states, targets = arrays
    logits = head_logits(states, head.astype(states.dtype))
    target_logits = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    return jax.nn.logsumexp(logits, -1) - target_logits
  return map_rows(nll, (hidden, targets), chunks)


def _nll_forward(chunks, hidden, head, targets):
  if head.perturbed:  # it trains: autodiff of the plain function
    nll, pull = jax.vjp(lambda hidden, head: _chunked_nll(chunks, hidden, head, targets.value),
                        hidden.value, head.value)
    return nll, (pull,)

  def nll_and_gradient(arrays: Sequence) -> tuple[Array, Array]:
    states, targets = arrays
    kernel = head.value.astype(states.dtype)
    logits = head_logits(states, kernel)
    exps = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = exps.sum(-1)
    is_target = jnp.arange(logits.shape[1]) == targets[:, None]
    logit_grads = (exps / total[:, None] - is_target).astype(states.dtype)
    log_total = jnp.log(total) + logits.max(-1)
    nll = log_total - jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    return nll, jnp.dot(logit_grads, kernel.T, preferred_element_type=jnp.float32)
  nll, gradient = map_rows(nll_and_gradient, (hidden.value, targets.value), chunks, remat=False)
  # The empty array carries the type that the gradient must have.
  return nll, (gradient, jnp.zeros(0, hidden.value.dtype))


def _nll_backward(chunks, saved, grads):
  if len(saved) == 1:
    hidden_grad, head_grad = saved[0](grads)
    return hidden_grad, head_grad, None
  gradient, like = saved
  return (gradient * grads[:, None]).astype(like.dtype), None, None


_token_nll = jax.custom_vjp(_chunked_nll, nondiff_argnums=(0,))
_token_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


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


def map_rows(fn: Callable[[Sequence], PyTree], arrays: Sequence[Shaped[AnyArray, 'M ...']],
             chunks: int, remat: bool = True) -> PyTree[Shaped[Array, 'M ...']]:
  """`fn` of some rows at a time.

  fn: arrays (m, ...) -> a tree of arrays (m, ...). chunks: 1 or less for all rows together, kept as
  usual. remat: what `fn` makes inside is made again in the backward pass. Every device keeps its
  own rows: a chunk holds some of each device's.
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

  def join(x: Array) -> Array:
    x = jnp.swapaxes(x.reshape(chunks, shards, size, *x.shape[2:]), 0, 1)
    x = x.reshape(shards, chunks * size, *x.shape[3:])[:, :rows // shards]
    return x.reshape(rows, *x.shape[2:])
  mapped = jax.lax.map(jax.checkpoint(fn) if remat else fn, tuple(map(split, arrays)))
  return jax.tree.map(join, mapped)
