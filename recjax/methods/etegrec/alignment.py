"""ETEGRec's alignment of recommender and tokenizer, and the loss of codes.

Liu et al., SIGIR 2025, equations 6, 15 and 16. B rows; only the first row of each distinct target
counts, as `first` says. (specification: etegrec.md 5)
"""
import jax
import jax.numpy as jnp

SIGNS = ('neg', 'pos')

REDUCERS = ('sum_levels', 'mean_levels')


def first(targets):
  """Which rows hold the first occurrence of their target; 0 is nobody's. targets: (B,) -> bool"""
  same = targets[:, None] == targets[None]
  at = jnp.arange(len(targets))
  return ~(same & (at[None] < at[:, None])).any(1) & (targets > 0)


def code_loss(logits, codes, real):
  """Mean negative log-likelihood of all codes. logits: (B, Q, C), codes: (B, Q), real: (B,)"""
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  each = -jnp.take_along_axis(logp, jnp.maximum(codes, 0)[..., None], -1)[..., 0].mean(-1)
  return (each * real).sum() / jnp.maximum(real.sum(), 1)


def sia(item, state, rows, sign='neg', reduce='sum_levels', temperature=1.0):
  """Symmetric KL between code distributions of an item and of its encoder state.

  item, state: squared distances (B, L, C). rows: (B,) bool, which count. sign: 'neg' is the
  paper's softmax of -distance; 'pos' what the released code computes. reduce: levels are summed
  (paper) or averaged (code). -> ()
  """
  scale = (-1 if sign == 'neg' else 1) / temperature
  p, q = (jax.nn.log_softmax(scale * d.astype(jnp.float32)) for d in (item, state))
  each = (jnp.exp(p) * (p - q) + jnp.exp(q) * (q - p)).sum(-1)
  each = each.sum(-1) if reduce == 'sum_levels' else each.mean(-1)
  return (each * rows).sum() / jnp.maximum(rows.sum(), 1)


def psa(recon, state, rows, tau=0.07):
  """Two-way contrast of rebuilt item vectors and first decoder states, by cosine.

  recon, state: (B, d). rows: (B,) bool; others are neither asked for nor negatives. -> ()
  """
  a, b = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
          for x in (recon.astype(jnp.float32), state.astype(jnp.float32)))
  logits = jnp.dot(a, b.T, precision=jax.lax.Precision.HIGHEST) / tau
  logits = jnp.where(rows[:, None] & rows[None], logits, -1e30)
  own = jnp.where(rows, jnp.diagonal(logits), 0)
  each = sum(jax.nn.logsumexp(logits, axis) - own for axis in (0, 1))
  return jnp.where(rows, each, 0).sum() / jnp.maximum(rows.sum(), 1)
