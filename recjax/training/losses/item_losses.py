"""Losses over a catalog of items, each a value per position; all in float32.

T positions, D width, N items in rows 0..N - 1 of the table, K negatives, B users.
"""
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from recjax.distributed import sharding
from recjax.errors import ConfigError

DENSE = 64  # so many rows of a matmul cost about as much as one gathered row and its gradient

CACHED, HELD = 1 << 21, 1 << 27  # scores at a time: in a CPU's cache, in an accelerator's memory

NEVER = -1e30  # score of what nobody can choose


def cross_entropy(states: Float[Array, 'T D'], table: Float[Array, 'N D'],
                  targets: Int[Array, ' T'], bias: Float[Array, ' N'] | None = None
                  ) -> Float[Array, ' T']:
  """Full softmax: -s+ + log-sum-exp of all scores. states: of T positions. table: vectors of all
  items. targets: rows of the table. bias: of each row's scores."""
  logits = jnp.dot(states, table.T, preferred_element_type=jnp.float32)
  logits = logits if bias is None else logits + bias
  return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked_cross_entropy(states: Float[Array, 'T D'], table: Float[Array, 'N D'],
                          targets: Int[Array, ' T'], bias: Float[Array, ' N'],
                          chunk: int) -> Float[Array, ' T']:
  """`cross_entropy` that never holds more than (T, chunk) scores, forward or backward.

  bias: zeros for none. Saved for the backward pass: inputs and the log-sum-exp. states, table,
  targets: as of `cross_entropy`. chunk: rows of the table at a time.
  """
  return _chunked_loss(states, table, targets, bias, chunk)[0]


def _table_chunks(table, bias, chunk):
  """The table in pieces of `chunk` rows, the last filled up with rows that nobody can choose."""
  pad = -len(table) % chunk
  table = jnp.pad(table, [(0, pad), (0, 0)]).reshape(-1, chunk, table.shape[1])
  return table, jnp.pad(bias, (0, pad), constant_values=NEVER).reshape(-1, chunk)


def _chunked_loss(states, table, targets, bias, chunk):
  def add_chunk(carry: tuple, table_chunk: tuple) -> tuple:
    highest, total = carry
    rows, row_bias = table_chunk
    logits = jnp.dot(states, rows.T, preferred_element_type=jnp.float32) + row_bias
    peak = jnp.maximum(highest, logits.max(-1))
    total = total * jnp.exp(highest - peak) + jnp.exp(logits - peak[:, None]).sum(-1)
    return (peak, total), None

  start = (jnp.full(len(states), NEVER), jnp.zeros(len(states)))
  (highest, total), _ = lax.scan(add_chunk, start, _table_chunks(table, bias, chunk))
  log_total = highest + jnp.log(total)
  target_scores = (states * table[targets]).sum(-1).astype(jnp.float32) + bias[targets]
  return log_total - target_scores, log_total


def _chunked_forward(states, table, targets, bias, chunk):
  loss, log_total = _chunked_loss(states, table, targets, bias, chunk)
  return loss, (states, table, targets, bias, log_total)


def _chunked_backward(chunk, saved, grad):
  states, table, targets, bias, log_total = saved

  def add_chunk(states_grad: Array, table_chunk: tuple) -> tuple:
    rows, row_bias = table_chunk
    logits = jnp.dot(states, rows.T, preferred_element_type=jnp.float32) + row_bias
    logits_grad = jnp.exp(logits - log_total[:, None]) * grad[:, None]
    return states_grad + logits_grad @ rows, (logits_grad.T @ states, logits_grad.sum(0))

  states_grad, (table_grad, bias_grad) = lax.scan(
      add_chunk, jnp.zeros_like(states), _table_chunks(table, bias, chunk))
  table_grad = table_grad.reshape(-1, table.shape[1])[:len(table)]
  table_grad = table_grad.at[targets].add(-grad[:, None] * states)
  bias_grad = bias_grad.reshape(-1)[:len(table)].at[targets].add(-grad)
  return states_grad - grad[:, None] * table[targets], table_grad, None, bias_grad


chunked_cross_entropy.defvjp(_chunked_forward, _chunked_backward)


def sharded_cross_entropy(states: Float[Array, 'T D'], table: Float[Array, 'N D'],
                          targets: Int[Array, ' T'], bias: Float[Array, ' N'],
                          mesh: jax.sharding.Mesh, axis: str = 'model') -> Float[Array, ' T']:
  """`cross_entropy` with the table's rows over a mesh axis; each device scores its own rows.

  bias: zeros for none. States lie over the data axes. Both are filled up where they do not divide.
  states, table, targets: as of `cross_entropy`. mesh: the devices. axis: of the mesh.
  """
  data = sharding.present(mesh, [('data', 'fsdp')])
  missing = -len(states) % sharding.num_batch_shards(mesh)
  pad = -len(table) % mesh.shape[axis]
  table = jnp.pad(table, [(0, pad), (0, 0)])
  bias = jnp.pad(bias, (0, pad), constant_values=NEVER)
  shard_rows = len(table) // mesh.shape[axis]

  def local_loss(states: Array, rows: Array, bias: Array, targets: Array) -> Array:
    logits = jnp.dot(states, rows.T, preferred_element_type=jnp.float32) + bias
    local_targets = targets - lax.axis_index(axis) * shard_rows
    here = (local_targets >= 0) & (local_targets < shard_rows)
    target_scores = jnp.take_along_axis(
        logits, jnp.clip(local_targets, 0, shard_rows - 1)[:, None], 1)[:, 0]
    peak = lax.pmax(lax.stop_gradient(logits.max(-1)), axis)
    total = lax.psum(jnp.exp(logits - peak[:, None]).sum(-1), axis)
    return peak + jnp.log(total) - lax.psum(jnp.where(here, target_scores, 0), axis)

  run = jax.shard_map(
      local_loss, mesh=mesh, in_specs=(data, P(axis), P(axis), data), out_specs=data)
  return run(jnp.pad(states, [(0, missing), (0, 0)]), table, bias,
             jnp.pad(targets, (0, missing)))[:len(states)]


def scores_by_position(states: Float[Array, 'T D'], table: Float[Array, 'N D'],
                       negatives: Int[Array, 'T K']) -> Float[Array, 'T K']:
  """Scores of negatives that each position draws anew.

  states, table: as of `cross_entropy`. negatives: rows of the table.

  Rows gathered one by one cost far more than rows in a matmul, so a catalog up to DENSE times K
  items is scored whole and K scores are picked, for so many positions at a time that their scores
  stay in a CPU's cache.
  """
  if len(table) > DENSE * negatives.shape[1]:
    return jnp.einsum('td,tkd->tk', states, table[negatives])
  room = CACHED if jax.default_backend() == 'cpu' else HELD
  return _picked_scores(states, table, negatives,
                        min(len(states), max(8, room // len(table) // 8 * 8)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _picked_scores(states, table, picks, piece):
  """Scores of `picks` (T, K), of `piece` positions at a time."""
  pieces = _in_pieces(piece, states, picks)
  picked = lax.map(lambda x: jnp.take_along_axis(x[0] @ table.T, x[1], 1), pieces)
  return picked.reshape(-1, picks.shape[1])[:len(states)]


def _in_pieces(piece, *arrays):
  return tuple(jnp.pad(x, [(0, -len(x) % piece), (0, 0)]).reshape(-1, piece, x.shape[1])
               for x in arrays)


def _picked_forward(states, table, picks, piece):
  return _picked_scores(states, table, picks, piece), (states, table, picks)


def _picked_backward(piece, saved, grad):
  states, table, picks = saved

  def add_piece(table_grad: Array, of_piece: tuple) -> tuple:
    rows, columns, row_grad = of_piece
    dense = jnp.zeros((piece, len(table)), grad.dtype)
    dense = dense.at[jnp.arange(piece)[:, None], columns].add(row_grad)
    return table_grad + dense.T @ rows, dense @ table

  table_grad, states_grad = lax.scan(add_piece, jnp.zeros_like(table),
                                     _in_pieces(piece, states, picks, grad))
  return states_grad.reshape(-1, states.shape[1])[:len(states)], table_grad, None


_picked_scores.defvjp(_picked_forward, _picked_backward)


def scores_by_user(states: Float[Array, 'T D'], table: Float[Array, 'N D'],
                   negatives: Int[Array, 'B K'], user: Int[Array, ' T'],
                   max_positions: int) -> Float[Array, 'T K']:
  """Scores of negatives that all positions of a user share: a matmul for each user.

  user: of each position, 0..B - 1 and never falling, then -1 for nobody, whose scores mean nothing.
  max_positions: of any user. states, table: as of `cross_entropy`. negatives: rows of the table.
  """
  user = jnp.where(user < 0, len(negatives), user)
  position = jnp.arange(len(user)) - jnp.searchsorted(user, user)
  user_states = jnp.zeros((len(negatives), max_positions, states.shape[1]), states.dtype)
  user_states = user_states.at[user, position].set(states, mode='drop')
  return jnp.einsum('bld,bkd->blk', user_states, table[negatives])[user, position]


def binary(positive: Float[Array, ' T'], negative: Float[Array, 'T K'],
           counted: Bool[Array, 'T K'] | None = None) -> Float[Array, ' T']:
  """BCE over scores: softplus(-s+) + sum of softplus(s-). counted: which negatives, all if None.
  positive, negative: scores s+ and s-."""
  return jax.nn.softplus(-positive) + _sum_counted(jax.nn.softplus(negative), counted)


def generalized_binary(positive: Float[Array, ' T'], negative: Float[Array, 'T K'], items: int,
                       t: float, counted: Bool[Array, 'T K'] | None = None) -> Float[Array, ' T']:
  """gBCE: (beta softplus(-s+) + sum of softplus(s-)) / (K + 1); t = 0 is BCE's mean.

  items: N. t: calibration, see `beta`. Petrov and Macdonald, gSASRec (RecSys 2023, arXiv
  2308.07192). positive, negative, counted: as of `binary`.
  """
  count = negative.shape[-1]
  negatives = _sum_counted(jax.nn.softplus(negative), counted)
  return (beta(items, count, t) * jax.nn.softplus(-positive) + negatives) / (count + 1)


def beta(items: int, count: int, t: float) -> float:
  """The power of gBCE's positive term, of `count` negatives out of `items`.

  t: from 0, plain BCE, to 1, fully calibrated. Raises ConfigError for t outside 0..1 or K >= N.
  """
  if not 0 <= t <= 1:
    raise ConfigError(f'loss.gbce_t={t} must lie between 0 (plain BCE) and 1 (fully calibrated)')
  if count >= items:
    raise ConfigError(f'loss.negatives={count} of {items} items: there must be fewer negatives '
                      "than items; use loss.kind=ce for all of them")
  sampling_rate = count / (items - 1)
  return sampling_rate * (t * (1 - 1 / sampling_rate) + 1 / sampling_rate)


def sampled_softmax(positive: Float[Array, ' T'], negative: Float[Array, 'T K'],
                    log_expected: Float[Array, '... K'] | float | None = None,
                    counted: Bool[Array, 'T K'] | None = None) -> Float[Array, ' T']:
  """-s+ + log(e^s+ + sum of e^s-).

  log_expected: the logarithm of how often each negative is drawn, log(K q), which is taken off its
  score (logQ correction). positive, negative, counted: as of `binary`.
  """
  if log_expected is not None:
    negative = negative - log_expected
  if counted is not None:
    negative = jnp.where(counted, negative, NEVER)
  scores = jnp.concatenate([positive[:, None], negative], -1)
  return jax.nn.logsumexp(scores, -1) - positive


def _sum_counted(losses, counted):
  return (losses if counted is None else jnp.where(counted, losses, 0)).sum(-1)
