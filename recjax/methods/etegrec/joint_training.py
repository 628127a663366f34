"""ETEGRec's alignment of recommender and tokenizer, and the loss of codes.

Liu et al., SIGIR 2025, equations 6, 15 and 16. B rows; only the first row of each distinct target
counts, as `first` says. (specification: etegrec.md 5)
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax

from recjax.distributed import sharding
from recjax.errors import DataError
from recjax.models import rqvae, semantic_id_t5, semantic_ids

SIGNS = ('neg', 'pos')

REDUCERS = ('sum_levels', 'mean_levels')


def first_occurrences(targets):
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


@dataclasses.dataclass(frozen=True)
class AlignmentWeights:
  """How the two models meet; hashable. sia, psa: weights of the alignment losses (0: they do not).
  sign, reduce, temperature: of `alignment.sia`; tau: of `alignment.psa`. warm: epochs without
  either."""
  sia: float = 0.0
  psa: float = 0.0
  sign: str = 'neg'
  reduce: str = 'sum_levels'
  temperature: float = 1.0
  tau: float = 0.07
  warm: int = 0


def read_bins(cfg, params, table, some, texts, key=None):
  """The recommender over a step's bins. some: [(history, target, interests)], as rows.Bin.

  texts: (U + 1, d) vectors of interests. key: of dropout, None for none.
  -> logits (B, Q, C), {'pooled', 'first'}, target items (B,)
  """
  logits, out = [], []
  for number, (history, target, interests) in enumerate(some):
    given = (texts[interests], interests > 0) if cfg.fusion != 'none' else None
    rngs = {} if key is None else {'dropout': jax.random.fold_in(key, number)}
    found = semantic_id_t5.SemanticIdT5(cfg).apply(
      {'params': params}, table[history], table[target], given, key is not None, rngs=rngs
    )
    logits.append(found[0])
    out.append(found[1])
  return (jnp.concatenate(logits), jax.tree.map(lambda *x: jnp.concatenate(x), *out),
          jnp.concatenate([target for _, target, _ in some]))


def alignment_losses(weights, id_cfg, id_params, x, out, target):
  """Both alignment losses of a batch. x: (N, d) item vectors. -> SIA (), PSA (), rqvae's dict"""
  rows = first_occurrences(target)
  found = rqvae.forward(id_cfg, id_params, x[jnp.maximum(target - 1, 0)],
                        weight=rows.astype(jnp.float32))
  state = rqvae.quantize(id_cfg, id_params['codebooks'], out['pooled'])['dist']
  return (
    sia(found['dist'], state, rows, weights.sign, weights.reduce, weights.temperature),
    psa(found['recon'], out['first'], rows, weights.tau),
    found,
  )


def rec_loss(cfg, weights, id_cfg, x, texts, rec, fixed, some, key, on):
  """Code loss, and alignment with a tokenizer that stands still. -> (), {name: ()}"""
  logits, out, target = read_bins(cfg, rec, fixed['table'], some, texts, key)
  value = code_loss(logits, fixed['table'][target], target > 0)
  parts = {'code': value}
  if weights.sia or weights.psa:
    sia, psa, _ = alignment_losses(weights, id_cfg, fixed['id'], x, out, target)
    value = value + on * (weights.sia * sia + weights.psa * psa)
    parts |= {'sia': sia, 'psa': psa}
  return value, parts


def id_loss(cfg, weights, id_cfg, x, texts, ids, fixed, some, _key, on):
  """Quantisation of the distinct targets, and alignment with a recommender that stands still."""
  _, out, target = read_bins(cfg, fixed['rec'], fixed['table'], some, texts)
  sia, psa, found = alignment_losses(weights, id_cfg, ids, x, out, target)
  rows = first_occurrences(target).astype(jnp.float32)
  vq = id_cfg.alpha * found['loss'] + rqvae.recon_loss(
      id_cfg, found['recon'], x[jnp.maximum(target - 1, 0)], rows)
  return vq + on * (weights.sia * sia + weights.psa * psa), {'vq': vq, 'sia': sia, 'psa': psa}


LOSSES = {'rec': rec_loss, 'id': id_loss}


def shard_rows(some):
  """A step's rows over the devices, filled up with nobody's where they do not divide."""
  ways = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())

  def one(x):
    x = jnp.pad(x, [(0, -len(x) % ways)] + [(0, 0)] * (x.ndim - 1))
    return sharding.shard(x, ('data', 'fsdp'))
  return jax.tree.map(one, some)


def make_epoch(side, cfg, weights, id_cfg, tx, orders, take):
  """One epoch of one side. side: 'rec' or 'id', the part of the state that learns.

  orders: key -> the rows of each step; take: rows -> the step's bins, given the data.
  -> epoch(state, key, data, x, texts, number) -> state, {'loss', parts, 'grad_norm', 'bad': ()}
  """
  loss = functools.partial(LOSSES[side], cfg, weights, id_cfg)

  def epoch(state, key, data, x, texts, number):
    key = jax.random.fold_in(key, number + 1)
    on = (number >= weights.warm).astype(jnp.float32)
    fixed = {k: v for k, v in state['params'].items() if k != side}

    def step(carry, given):
      params, opt = carry
      rows, at = given
      (value, parts), grads = jax.value_and_grad(
        lambda p: loss(
          x, texts, p, fixed, shard_rows(take(data, rows)), jax.random.fold_in(key, at), on
        ),
        has_aux=True,
      )(params)
      change, opt = tx.update(grads, opt, params)
      return (optax.apply_updates(params, change), opt), {
          'loss': value, **parts, 'grad_norm': optax.global_norm(grads)}
    order = orders(jax.random.fold_in(key, 2**20))
    count = jnp.arange(len(jax.tree.leaves(order)[0]))
    (params, opt), means = lax.scan(step, (state['params'][side], state['opt'][side]),
                                    (order, count))
    new = {'params': {**state['params'], side: params}, 'opt': {**state['opt'], side: opt}}
    bad = ~jnp.isfinite(means['loss'])
    means = {**jax.tree.map(jnp.mean, means), 'bad': jnp.where(bad.any(), bad.argmax(), -1)}
    if side == 'id':
      table, largest = semantic_ids.table(rqvae.codes_of(id_cfg, params, x))
      new['params']['table'], means['largest_group'] = table, largest
    return new, means
  return epoch


def check_collisions(means, size):
  """Raises DataError where more items share codes than the last level can tell apart."""
  largest = int(max(means.get('largest_group', [0])))
  if largest > size:
    raise DataError(f'{largest} items share their codes after this epoch of the tokenizer, more '
                    f'than the {size} of a level: it collapses; lower id_optim.lr')
