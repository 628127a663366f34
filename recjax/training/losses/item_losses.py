"""Losses over a catalogue of items (specification: sequential.md 3), each a value per position.

T positions, D width, N items in rows 0..N - 1 of the table, K negatives. All in float32.
"""
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from recjax.distributed import sharding
from recjax.errors import ConfigError

DENSE = 64  # so many rows of a matmul cost about as much as one gathered row and its gradient


def cross_entropy(states, table, targets, bias=None):
  """Full softmax: -s+ + log-sum-exp of all scores. states (T, D), table (N, D), targets (T,)."""
  logits = jnp.dot(states, table.T, preferred_element_type=jnp.float32)
  logits = logits if bias is None else logits + bias
  return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked_cross_entropy(states, table, targets, bias, chunk):
  """`cross_entropy` that never holds more than (T, chunk) scores, forward or backward.

  bias: (N,), zeros for none. Saved for the backward pass: inputs and the log-sum-exp.
  """
  return _chunked(states, table, targets, bias, chunk)[0]


def _pieces(table, bias, chunk):
  """The table in pieces of `chunk` rows, the last filled up with rows that nobody can choose."""
  pad = -len(table) % chunk
  table = jnp.pad(table, [(0, pad), (0, 0)]).reshape(-1, chunk, table.shape[1])
  return table, jnp.pad(bias, (0, pad), constant_values=-1e30).reshape(-1, chunk)


def _chunked(states, table, targets, bias, chunk):
  def add(carry, piece):
    most, total = carry
    rows, b = piece
    logits = jnp.dot(states, rows.T, preferred_element_type=jnp.float32) + b
    peak = jnp.maximum(most, logits.max(-1))
    total = total * jnp.exp(most - peak) + jnp.exp(logits - peak[:, None]).sum(-1)
    return (peak, total), None

  start = (jnp.full(len(states), -1e30), jnp.zeros(len(states)))
  (most, total), _ = lax.scan(add, start, _pieces(table, bias, chunk))
  lse = most + jnp.log(total)
  own = (states * table[targets]).sum(-1).astype(jnp.float32) + bias[targets]
  return lse - own, lse


def _chunked_forward(states, table, targets, bias, chunk):
  loss, lse = _chunked(states, table, targets, bias, chunk)
  return loss, (states, table, targets, bias, lse)


def _chunked_backward(chunk, saved, g):
  states, table, targets, bias, lse = saved

  def add(total, piece):
    rows, b = piece
    logits = jnp.dot(states, rows.T, preferred_element_type=jnp.float32) + b
    share = jnp.exp(logits - lse[:, None]) * g[:, None]
    return total + share @ rows, (share.T @ states, share.sum(0))

  total, (of_table, of_bias) = lax.scan(add, jnp.zeros_like(states), _pieces(table, bias, chunk))
  of_table = of_table.reshape(-1, table.shape[1])[:len(table)]
  of_table = of_table.at[targets].add(-g[:, None] * states)
  of_bias = of_bias.reshape(-1)[:len(table)].at[targets].add(-g)
  return total - g[:, None] * table[targets], of_table, None, of_bias


chunked_cross_entropy.defvjp(_chunked_forward, _chunked_backward)


def sharded_cross_entropy(states, table, targets, bias, mesh, axis='model'):
  """`cross_entropy` with the table's rows over a mesh axis; each device scores its own rows.

  bias: (N,), zeros for none. States lie over the data axes. Both are filled up where they do not
  divide. -> (T,)
  """
  data, short = (
    sharding.present(mesh, [('data', 'fsdp')]),
    -len(states) % sharding.num_batch_shards(mesh),
  )
  pad = -len(table) % mesh.shape[axis]
  table = jnp.pad(table, [(0, pad), (0, 0)])
  bias = jnp.pad(bias, (0, pad), constant_values=-1e30)
  size = len(table) // mesh.shape[axis]

  def local(states, rows, bias, targets):
    logits = jnp.dot(states, rows.T, preferred_element_type=jnp.float32) + bias
    at = targets - lax.axis_index(axis) * size
    mine = (at >= 0) & (at < size)
    own = jnp.take_along_axis(logits, jnp.clip(at, 0, size - 1)[:, None], 1)[:, 0]
    peak = lax.pmax(lax.stop_gradient(logits.max(-1)), axis)
    total = lax.psum(jnp.exp(logits - peak[:, None]).sum(-1), axis)
    return peak + jnp.log(total) - lax.psum(jnp.where(mine, own, 0), axis)

  run = jax.shard_map(local, mesh=mesh, in_specs=(data, P(axis), P(axis), data), out_specs=data)
  return run(jnp.pad(states, [(0, short), (0, 0)]), table, bias, jnp.pad(targets, (0, short)))[
      :len(states)]


def scores_by_position(states, table, drawn):
  """Scores of negatives that each position draws anew. states (T, D), drawn (T, K). -> (T, K)

  Rows gathered one by one cost far more than rows in a matmul, so a catalogue up to DENSE times K
  items is scored whole and K scores are picked.
  """
  if len(table) <= DENSE * drawn.shape[1]:
    return jnp.take_along_axis(states @ table.T, drawn, 1)
  return jnp.einsum('td,tkd->tk', states, table[drawn])


def scores_by_user(states, table, drawn, user, most):
  """Scores of negatives that all positions of a user share: a matmul for each user.

  states: (T, D). drawn: (B, K). user: (T,), 0..B - 1 and never falling, then -1; nobody has more
  than `most` positions. -> (T, K); scores of positions of nobody mean nothing.
  """
  user = jnp.where(user < 0, len(drawn), user)
  place = jnp.arange(len(user)) - jnp.searchsorted(user, user)
  laid = jnp.zeros((len(drawn), most, states.shape[1]), states.dtype)
  laid = laid.at[user, place].set(states, mode='drop')
  return jnp.einsum('bld,bkd->blk', laid, table[drawn])[user, place]


def binary(positive, negative, kept=None):
  """BCE: softplus(-s+) + sum of softplus(s-). positive (T,), negative (T, K), kept (T, K) bool."""
  each = jax.nn.softplus(negative)
  return jax.nn.softplus(-positive) + _over(each, kept)


def generalized_binary(positive, negative, items, t, kept=None):
  """gBCE (gSASRec): (beta softplus(-s+) + sum softplus(s-)) / (K + 1); t = 0 is BCE's mean."""
  count = negative.shape[-1]
  each = jax.nn.softplus(negative)
  return (beta(items, count, t) * jax.nn.softplus(-positive) + _over(each, kept)) / (count + 1)


def beta(items, count, t):
  """The power of gBCE's positive term. Raises ConfigError for t outside 0..1 or K >= N."""
  if not 0 <= t <= 1:
    raise ConfigError(f'loss.gbce_t={t} must lie between 0 (plain BCE) and 1 (fully calibrated)')
  if count >= items:
    raise ConfigError(f'loss.negatives={count} of {items} items: there must be fewer negatives '
                      "than items; use loss.kind=ce for all of them")
  a = count / (items - 1)
  return a * (t * (1 - 1 / a) + 1 / a)


def sampled_softmax(positive, negative, log_expected=None, kept=None):
  """-s+ + log(e^s+ + sum of e^s-); log_expected (K,) or (T, K): log(n q), taken off s- (logQ)."""
  if log_expected is not None:
    negative = negative - log_expected
  if kept is not None:
    negative = jnp.where(kept, negative, -1e30)
  both = jnp.concatenate([positive[:, None], negative], -1)
  return jax.nn.logsumexp(both, -1) - positive


def _over(each, kept):
  return (each if kept is None else jnp.where(kept, each, 0)).sum(-1)
