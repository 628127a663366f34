"""Training of recommenders that write semantic IDs, alone (TIGER) or with the tokenizer (ETEGRec).

Everything lives on the device; one call is one epoch. The state is {'rec', 'table'} and, where the
tokenizer learns too, 'id': its parameters. The table of codes is part of the state, so new codes
recompile nothing. B rows of a step, Q codes of an item. (specification: etegrec.md 5, 6)
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax

from recjax.distributed import sharding
from recjax.errors import DataError
from recjax.methods.etegrec import alignment
from recjax.models import rqvae, semantic_id_t5, semantic_ids


@dataclasses.dataclass(frozen=True)
class Weights:
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


def read(cfg, params, table, some, texts, key=None):
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


def aligned(weights, id_cfg, id_params, x, out, target):
  """Both alignment losses of a batch. x: (N, d) item vectors. -> SIA (), PSA (), rqvae's dict"""
  rows = alignment.first(target)
  found = rqvae.forward(id_cfg, id_params, x[jnp.maximum(target - 1, 0)],
                        weight=rows.astype(jnp.float32))
  state = rqvae.quantize(id_cfg, id_params['codebooks'], out['pooled'])['dist']
  return (
    alignment.sia(found['dist'], state, rows, weights.sign, weights.reduce, weights.temperature),
    alignment.psa(found['recon'], out['first'], rows, weights.tau),
    found,
  )


def rec_loss(cfg, weights, id_cfg, x, texts, rec, fixed, some, key, on):
  """Code loss, and alignment with a tokenizer that stands still. -> (), {name: ()}"""
  logits, out, target = read(cfg, rec, fixed['table'], some, texts, key)
  value = alignment.code_loss(logits, fixed['table'][target], target > 0)
  parts = {'code': value}
  if weights.sia or weights.psa:
    sia, psa, _ = aligned(weights, id_cfg, fixed['id'], x, out, target)
    value = value + on * (weights.sia * sia + weights.psa * psa)
    parts |= {'sia': sia, 'psa': psa}
  return value, parts


def id_loss(cfg, weights, id_cfg, x, texts, ids, fixed, some, _key, on):
  """Quantisation of the distinct targets, and alignment with a recommender that stands still."""
  _, out, target = read(cfg, fixed['rec'], fixed['table'], some, texts)
  sia, psa, found = aligned(weights, id_cfg, ids, x, out, target)
  rows = alignment.first(target).astype(jnp.float32)
  vq = id_cfg.alpha * found['loss'] + rqvae.recon_loss(
      id_cfg, found['recon'], x[jnp.maximum(target - 1, 0)], rows)
  return vq + on * (weights.sia * sia + weights.psa * psa), {'vq': vq, 'sia': sia, 'psa': psa}


LOSSES = {'rec': rec_loss, 'id': id_loss}


def spread(some):
  """A step's rows over the devices, filled up with nobody's where they do not divide."""
  ways = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())

  def one(x):
    x = jnp.pad(x, [(0, -len(x) % ways)] + [(0, 0)] * (x.ndim - 1))
    return sharding.shard(x, ('data', 'fsdp'))
  return jax.tree.map(one, some)


def epoch_of(side, cfg, weights, id_cfg, tx, orders, take):
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
          lambda p: loss(x, texts, p, fixed, spread(take(data, rows)), jax.random.fold_in(key, at),
                         on), has_aux=True)(params)
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
      table, largest = semantic_ids.padded_table(rqvae.assign_codes(id_cfg, params, x))
      new['params']['table'], means['largest_group'] = table, largest
    return new, means
  return epoch


def check_groups(means, size):
  """Raises DataError where more items share codes than the last level can tell apart."""
  largest = int(max(means.get('largest_group', [0])))
  if largest > size:
    raise DataError(f'{largest} items share their codes after this epoch of the tokenizer, more '
                    f'than the {size} of a level: it collapses; lower id_optim.lr')
