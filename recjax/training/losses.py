"""Losses over hidden states, without holding all logits at once."""
import math

import jax
import jax.numpy as jnp


def token_nll(hidden, head, targets, chunk_bytes=1 << 28):
  """Negative log-likelihood of each target under softmax(hidden @ head), in float32.

  hidden: (M, D). head: (D, V). targets: (M,) int32. -> (M,) float32
  Rows go through in chunks whose logits fit `chunk_bytes`; each chunk's logits are recomputed in
  the backward pass instead of being kept.
  """
  rows, vocab = hidden.shape[0], head.shape[1]
  chunks = max(1, math.ceil(rows * vocab * 4 / chunk_bytes))

  def nll(part):
    h, t = part
    logits = jnp.dot(h, head.astype(h.dtype), preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, t[:, None], -1)[:, 0]
    return jax.nn.logsumexp(logits, -1) - picked

  if chunks == 1:
    return nll((hidden, targets))
  size = math.ceil(rows / chunks)
  pad = size * chunks - rows
  parts = (jnp.pad(hidden, ((0, pad), (0, 0))).reshape(chunks, size, -1),
           jnp.pad(targets, (0, pad)).reshape(chunks, size))
  return jax.lax.map(jax.checkpoint(nll), parts).reshape(-1)[:rows]
