"""Contrastive losses over pairs of vectors, and gradient caching for batches beyond memory.

B pairs of width d; all losses are float32 scalars, unchanged where both sides are permuted alike.
Where `x` and `y` hold the vectors of all devices the negatives are global; nothing else is needed.
"""
import jax
import jax.numpy as jnp
from jax import lax

from recjax.errors import ConfigError

KINDS = ('infonce', 'soft_target', 'decoupled')

NEVER = -1e30


def loss(x, y, tau, kind='infonce', valid=None):
  """A loss by name. x, y: (B, d). valid: (B,) bool, which pairs count. -> ()

  Raises ConfigError for an unknown kind, or fewer than two pairs: there would be no negatives.
  """
  if kind not in KINDS:
    raise ConfigError(f'contrastive loss {kind!r} is unknown; choose one of {", ".join(KINDS)}')
  if len(x) < 2:
    raise ConfigError(f'a contrastive loss needs two pairs or more, there is {len(x)}; raise the '
                      'batch')
  valid = jnp.ones(len(x), bool) if valid is None else valid
  return {'infonce': info_nce, 'soft_target': soft_target, 'decoupled': decoupled}[kind](
      x.astype(jnp.float32), y.astype(jnp.float32), tau, valid)


def info_nce(x, y, tau, valid):
  """Symmetric cross-entropy over cosines: each vector finds its partner among all, both ways."""
  rows, columns = each_info_nce(x, y, tau, valid)
  return _mean((rows + columns) / 2, valid)


def each_info_nce(x, y, tau, valid):
  """The losses by row and by column. -> (B,), (B,)"""
  scores = _dot(unit(x), unit(y)) / tau
  own = jnp.diagonal(scores)
  down = jnp.where(valid[:, None], scores, NEVER)
  along = jnp.where(valid, scores, NEVER)
  return jax.nn.logsumexp(along, 1) - own, jax.nn.logsumexp(down, 0) - own


def soft_target(x, y, tau, valid):
  """Targets are the similarities inside both sides, and gradients flow through them (LLMEmb).

  A = X Y' / tau, T = softmax over rows of tau (X X' + Y Y') / 2; mean of the cross-entropies of A
  with T and of A' with T'. Nothing is normalised and T's columns do not sum to one, as released.
  """
  rows, columns = each_soft_target(x, y, tau, valid)
  return _mean((rows + columns) / 2, valid)


def each_soft_target(x, y, tau, valid):
  """The cross-entropies by row and by column. -> (B,), (B,)"""
  scores = _dot(x, y) / tau
  near = jnp.where(valid, tau * (_dot(x, x) + _dot(y, y)) / 2, NEVER)
  aim = jax.nn.softmax(near, 1) * valid[:, None]
  along = jax.nn.log_softmax(jnp.where(valid, scores, NEVER), 1)
  down = jax.nn.log_softmax(jnp.where(valid[:, None], scores, NEVER), 0)
  both = valid & valid[:, None]
  picked = lambda logs: jnp.where(both, aim * jnp.where(both, logs, 0), 0)  # noqa: E731
  return -picked(along).sum(1), -picked(down).sum(0)


def decoupled(x, y, tau, valid):
  """InfoNCE whose denominator leaves the partner out; it can be negative."""
  rows, columns = each_decoupled(x, y, tau, valid)
  return _mean((rows + columns) / 2, valid)


def each_decoupled(x, y, tau, valid):
  """The losses by row and by column. -> (B,), (B,)"""
  scores = _dot(unit(x), unit(y)) / tau
  other = jnp.where(jnp.eye(len(x), dtype=bool), NEVER, scores)
  along = jax.nn.logsumexp(jnp.where(valid, other, NEVER), 1)
  down = jax.nn.logsumexp(jnp.where(valid[:, None], other, NEVER), 0)
  own = jnp.diagonal(scores)
  return along - own, down - own


def unit(x):
  """Rows of length one; a row of zeros stays, with a finite gradient."""
  return x * lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


def _dot(x, y):
  return jnp.dot(x, y.T, precision=lax.Precision.HIGHEST)


def _mean(each, valid):
  return jnp.where(valid, each, 0).sum() / jnp.maximum(valid.sum(), 1)


def cached(encode, judge, parts):
  """Gradient caching: a loss over the vectors of a whole batch, encoded in `parts` pieces.

  encode: (train, frozen, batch) -> (rows, ...) vectors, each row alone. judge: (train, vectors) ->
  scalar. The vectors are made without keeping anything, the loss gives their gradient, and each
  piece is encoded once more to take it back to `train`: as direct differentiation, in the memory
  of one piece (Gao et al., RepL4NLP 2021). -> (train, frozen, batch) -> scalar
  """
  def vectors(train, frozen, batch):
    out = lax.map(lambda piece: encode(train, frozen, piece), _split(batch, parts))
    return _join(out)

  @jax.custom_vjp
  def run(train, frozen, batch):
    return judge(train, vectors(train, frozen, batch))

  def forward(train, frozen, batch):
    z = vectors(train, frozen, batch)
    value, (direct, dz) = jax.value_and_grad(judge, (0, 1))(train, z)
    return value, (train, frozen, batch, direct, dz)

  def backward(saved, g):
    train, frozen, batch, direct, dz = saved

    def add(total, given):
      piece, wanted = given
      _, back = jax.vjp(lambda t: encode(t, frozen, piece), train)
      return jax.tree.map(jnp.add, total, back(wanted)[0]), None
    total, _ = lax.scan(add, direct, (_split(batch, parts), _split(dz, parts)))
    return jax.tree.map(lambda x: x * g, total), None, None

  run.defvjp(forward, backward)
  return run


def _split(tree, parts):
  """Every parts-th row in one piece, so that a piece lies on all devices. (B, …) -> (P, B/P, …)"""
  return jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), tree)


def _join(x):
  return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
