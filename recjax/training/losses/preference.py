"""Preference losses: the next item against items that are not it, beside a frozen reference.

h = log p(item) - log p_reference(item), summed over the item's tokens; the first of a list is the
item that came next, the others are negatives.

  dpo    one negative (Rafailov et al., NeurIPS 2023, arXiv 2305.18290, equation 7)
  pairs  the mean of `dpo` over all negatives
  sdpo   all negatives in one softmax (Chen et al., S-DPO, NeurIPS 2024, arXiv 2406.09215)
  dmpo   the mean of the negatives' log-ratios (Bai et al., DMPO for recommendation, 2024)

All are made of differences and log-sum-exps, so no margin overflows (the released S-DPO sums
exponentials first). B requests, M items of each.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

PREFERENCES = ('dpo', 'pairs', 'sdpo', 'dmpo')


def preference_loss(kind: str, beta: float, log_probs: Float[Array, 'B M'],
                    reference: Float[Array, 'B M'], exists: Bool[Array, 'B M']
                    ) -> Float[Array, ' B']:
  """The loss of each request; 0 where it has no negative.

  kind: of PREFERENCES. beta: strength of the pull to the reference, above 0. log_probs, reference:
  of whole items, the target first. exists: which are there; the target counts always. 'dpo' reads
  the first negative that exists.
  """
  margins = jnp.where(exists, beta * (log_probs - reference), 0)
  chosen, others, are = margins[:, :1], margins[:, 1:], exists[:, 1:]
  count = are.sum(-1)
  if kind == 'dpo':
    first = jnp.argmax(are, -1)[:, None]
    losses = -jax.nn.log_sigmoid(chosen - jnp.take_along_axis(others, first, -1))[:, 0]
  elif kind == 'pairs':
    of_pairs = jnp.where(are, -jax.nn.log_sigmoid(chosen - others), 0)
    losses = of_pairs.sum(-1) / jnp.maximum(count, 1)
  elif kind == 'sdpo':
    excess = jnp.where(are, others - chosen, -jnp.inf)
    excess = jnp.where(count[:, None] > 0, excess, 0)
    losses = jax.nn.softplus(jax.nn.logsumexp(excess, -1))
  else:
    mean = others.sum(-1) / jnp.maximum(count, 1)
    losses = -jax.nn.log_sigmoid(chosen[:, 0] - mean)
  return jnp.where(count > 0, losses, 0)
