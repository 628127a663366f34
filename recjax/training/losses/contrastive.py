"""Contrastive losses over pairs of vectors, and gradient caching for batches beyond memory.

B pairs of width D; all losses are float32 scalars, unchanged where both sides are permuted alike.
Where `x` and `y` hold the vectors of all devices the negatives are global; nothing else is needed.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from recjax.errors import ConfigError

KINDS = ('infonce', 'soft_target', 'decoupled')

NEVER = -1e30

Scalar = Float[Array, ''] | float


def loss(x: Float[Array, 'B D'], y: Float[Array, 'B D'], tau: Scalar, kind: str = 'infonce',
         valid: Bool[Array, ' B'] | None = None) -> Float[Array, '']:
  """A mean loss by name: row i of `x` and of `y` are a pair, all other rows negatives.

  tau: temperature. kind: one of KINDS. valid: which pairs count, all if None. Raises ConfigError
  for an unknown kind, or fewer than two pairs: there would be no negatives.
  """
  if kind not in KINDS:
    raise ConfigError(f'contrastive loss {kind!r} is unknown; choose one of {", ".join(KINDS)}')
  if len(x) < 2:
    raise ConfigError(f'a contrastive loss needs two pairs or more, there is {len(x)}; raise the '
                      'batch')
  valid = jnp.ones(len(x), bool) if valid is None else valid
  losses = {'infonce': each_info_nce, 'soft_target': each_soft_target,
            'decoupled': each_decoupled}[kind]
  rows, columns = losses(x.astype(jnp.float32), y.astype(jnp.float32), tau, valid)
  return jnp.where(valid, (rows + columns) / 2, 0).sum() / jnp.maximum(valid.sum(), 1)


def each_info_nce(x: Float[Array, 'B D'], y: Float[Array, 'B D'], tau: Scalar,
                  valid: Bool[Array, ' B']) -> tuple[Float[Array, ' B'], Float[Array, ' B']]:
  """Cross-entropy over cosines: each vector finds its partner among all, from x and from y.

  tau, valid: as of `loss`. van den Oord et al., arXiv 1807.03748; both ways as CLIP has it.
  """
  scores = _dot(unit(x), unit(y)) / tau
  pair_scores = jnp.diagonal(scores)
  down = jnp.where(valid[:, None], scores, NEVER)
  along = jnp.where(valid, scores, NEVER)
  return jax.nn.logsumexp(along, 1) - pair_scores, jax.nn.logsumexp(down, 0) - pair_scores


def each_soft_target(x: Float[Array, 'B D'], y: Float[Array, 'B D'], tau: Scalar,
                     valid: Bool[Array, ' B']) -> tuple[Float[Array, ' B'], Float[Array, ' B']]:
  """Targets are the similarities inside both sides, and gradients flow through them.

  x, y: partners in rows, as of `loss`.

  A = X Y' / tau, T = softmax over rows of tau (X X' + Y Y') / 2; the cross-entropies of A with T
  and of A' with T'. Nothing is normalized and T's columns do not sum to one, as in the released
  code of LLMEmb (arXiv 2409.19925). tau, valid: as of `loss`.
  """
  scores = _dot(x, y) / tau
  similarities = jnp.where(valid, tau * (_dot(x, x) + _dot(y, y)) / 2, NEVER)
  targets = jax.nn.softmax(similarities, 1) * valid[:, None]
  along = jax.nn.log_softmax(jnp.where(valid, scores, NEVER), 1)
  down = jax.nn.log_softmax(jnp.where(valid[:, None], scores, NEVER), 0)
  both = valid & valid[:, None]

  def weighted(log_probs: Array) -> Array:
    return jnp.where(both, targets * jnp.where(both, log_probs, 0), 0)
  return -weighted(along).sum(1), -weighted(down).sum(0)


def each_decoupled(x: Float[Array, 'B D'], y: Float[Array, 'B D'], tau: Scalar,
                   valid: Bool[Array, ' B']) -> tuple[Float[Array, ' B'], Float[Array, ' B']]:
  """InfoNCE whose denominator leaves the partner out; it can be negative.

  tau, valid: as of `loss`. Yeh et al., Decoupled Contrastive Learning, arXiv 2110.06848. x, y:
  partners in rows, as of `loss`.
  """
  scores = _dot(unit(x), unit(y)) / tau
  others = jnp.where(jnp.eye(len(x), dtype=bool), NEVER, scores)
  along = jax.nn.logsumexp(jnp.where(valid, others, NEVER), 1)
  down = jax.nn.logsumexp(jnp.where(valid[:, None], others, NEVER), 0)
  pair_scores = jnp.diagonal(scores)
  return along - pair_scores, down - pair_scores


def unit(x: Float[Array, '*rows D']) -> Float[Array, '*rows D']:
  """Rows of length one; a row of zeros stays, with a finite gradient. x: the rows."""
  return x * lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


def _dot(x, y):
  return jnp.dot(x, y.T, precision=lax.Precision.HIGHEST)


def cached(encode: Callable, loss_of_vectors: Callable, parts: int) -> Callable:
  """Gradient caching: a loss over the vectors of a whole batch, encoded in `parts` pieces.

  encode: (train, frozen, batch) -> (rows, ...) vectors, each row alone. loss_of_vectors: (train,
  vectors) -> scalar. The vectors are made without keeping anything, the loss gives their gradient,
  and each piece is encoded once more to take it back to `train`: as direct differentiation, in the
  memory of one piece (Gao et al., RepL4NLP 2021). -> (train, frozen, batch) -> scalar
  """
  def encode_all(train: PyTree, frozen: PyTree, batch: PyTree) -> Array:
    vectors = lax.map(lambda piece: encode(train, frozen, piece), _split(batch, parts))
    return jnp.swapaxes(vectors, 0, 1).reshape(-1, *vectors.shape[2:])

  @jax.custom_vjp
  def run(train: PyTree, frozen: PyTree, batch: PyTree) -> Array:
    return loss_of_vectors(train, encode_all(train, frozen, batch))

  def forward(train: PyTree, frozen: PyTree, batch: PyTree) -> tuple:
    vectors = encode_all(train, frozen, batch)
    value, (direct, vectors_grad) = jax.value_and_grad(loss_of_vectors, (0, 1))(train, vectors)
    return value, (train, frozen, batch, direct, vectors_grad)

  def backward(saved: tuple, grad: Array) -> tuple:
    train, frozen, batch, direct, vectors_grad = saved

    def add(total: PyTree, piece_and_grad: tuple) -> tuple:
      piece, piece_grad = piece_and_grad
      _, back = jax.vjp(lambda t: encode(t, frozen, piece), train)
      return jax.tree.map(jnp.add, total, back(piece_grad)[0]), None
    total, _ = lax.scan(add, direct, (_split(batch, parts), _split(vectors_grad, parts)))
    return jax.tree.map(lambda x: x * grad, total), None, None

  run.defvjp(forward, backward)
  return run


def _split(tree, parts):
  """Every parts-th row in one piece, so that a piece lies on all devices: (P, B / P, ...)."""
  return jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), tree)
