"""Training of recommenders that write semantic IDs, alone (TIGER) or with the tokenizer (ETEGRec).

Everything lives on the device; one call is one epoch. The state is {'rec', 'table'} and, where the
tokenizer learns too, 'id': its parameters. The table of codes is part of the state, so new codes
recompile nothing. The losses are those of Liu et al., SIGIR 2025, arXiv 2409.05546
(alignment: its equations 15 and 16). Of the rows of a step only the first of each distinct target
counts in the alignment.

B rows of a step, Q codes of an item, L levels of the tokenizer, C codes of a level, d numbers of a
vector, N items, T distinct texts of interests.
"""
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from recjax.distributed import sharding
from recjax.errors import DataError
from recjax.models import rqvae, semantic_id_t5, semantic_ids

SIGNS = ('neg', 'pos')

REDUCERS = ('sum_levels', 'mean_levels')


def first_occurrences(targets: Int[Array, ' B']) -> Bool[Array, ' B']:
  """Which rows hold the first occurrence of their target, of the rows of a step.

  targets: item indices, 0 for nobody, who never counts.
  """
  same = targets[:, None] == targets[None]
  row = jnp.arange(len(targets))
  return ~(same & (row[None] < row[:, None])).any(1) & (targets > 0)


def code_loss(logits: Float[Array, 'B Q C'], codes: Int[Array, 'B Q'],
              counted: Array) -> Float[Array, '']:
  """Mean negative log-likelihood of all codes (Liu et al., SIGIR 2025).

  logits: of each code. codes: of the target items. counted: (B,) whether a row holds somebody.
  """
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  row_losses = -jnp.take_along_axis(logp, jnp.maximum(codes, 0)[..., None], -1)[..., 0].mean(-1)
  return (row_losses * counted).sum() / jnp.maximum(counted.sum(), 1)


def sia(item: Float[Array, 'B L C'], state: Float[Array, 'B L C'], rows: Bool[Array, ' B'],
        sign: str = 'neg', reduce: str = 'sum_levels',
        temperature: float = 1.0) -> Float[Array, '']:
  """Symmetric KL between code distributions of an item and of its encoder state (equation 15).

  item, state: squared distances to the codes. rows: which count. sign: 'neg' is the paper's softmax
  of -distance; 'pos' what the released code computes. reduce: levels are summed (paper) or averaged
  (code). temperature: divides distances.
  """
  scale = (-1 if sign == 'neg' else 1) / temperature
  p, q = (jax.nn.log_softmax(scale * d.astype(jnp.float32)) for d in (item, state))
  divergence = (jnp.exp(p) * (p - q) + jnp.exp(q) * (q - p)).sum(-1)
  divergence = divergence.sum(-1) if reduce == 'sum_levels' else divergence.mean(-1)
  return (divergence * rows).sum() / jnp.maximum(rows.sum(), 1)


def psa(recon: Float[Array, 'B d'], state: Float[Array, 'B d'], rows: Bool[Array, ' B'],
        tau: float = 0.07) -> Float[Array, '']:
  """Two-way contrast of rebuilt item vectors and first decoder states, by cosine (equation 16).

  recon: vectors rebuilt from codes. state: of the decoder. rows: which count; others are neither
  asked for nor negatives. tau: temperature.
  """
  a, b = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
          for x in (recon.astype(jnp.float32), state.astype(jnp.float32)))
  logits = jnp.dot(a, b.T, precision=jax.lax.Precision.HIGHEST) / tau
  logits = jnp.where(rows[:, None] & rows[None], logits, -1e30)
  positives = jnp.where(rows, jnp.diagonal(logits), 0)
  row_losses = sum(jax.nn.logsumexp(logits, axis) - positives for axis in (0, 1))
  return jnp.where(rows, row_losses, 0).sum() / jnp.maximum(rows.sum(), 1)


@dataclasses.dataclass(frozen=True)
class AlignmentWeights:
  """How the two models meet; hashable.

  sia, psa: weights of the alignment losses (0: they do not). sign, reduce, temperature: of `sia`;
  tau: of `psa`. warm: epochs without either.
  """
  sia: float = 0.0
  psa: float = 0.0
  sign: str = 'neg'
  reduce: str = 'sum_levels'
  temperature: float = 1.0
  tau: float = 0.07
  warm: int = 0


def read_bins(
    cfg: semantic_id_t5.Config, params: PyTree, table: Int[Array, 'N1 Q'], bins: Sequence[tuple],
    texts: Float[Array, 'T e'] | None, key: Key[Array, ''] | None = None
) -> tuple[Float[Array, 'B Q C'], dict[str, Array], Int[Array, ' B']]:
  """The recommender over a step's bins.

  cfg: of the recommender. params: its parameters. table: codes of items, row 0 of padding. bins:
  (history, target, interests) of each, as in `batching.Bin`. texts: vectors of interests, row 0 for
  none. key: of dropout, None for none. -> logits, the states 'pooled' and 'first', target items
  """
  logits, states = [], []
  for number, (history, target, interests) in enumerate(bins):
    interest_vectors = (texts[interests], interests > 0) if cfg.fusion != 'none' else None
    rngs = {} if key is None else {'dropout': jax.random.fold_in(key, number)}
    bin_outputs = semantic_id_t5.SemanticIdT5(cfg).apply(
      {'params': params}, table[history], table[target], interest_vectors, key is not None,
      rngs=rngs)
    logits.append(bin_outputs[0])
    states.append(bin_outputs[1])
  return (jnp.concatenate(logits), jax.tree.map(lambda *x: jnp.concatenate(x), *states),
          jnp.concatenate([target for _, target, _ in bins]))


def alignment_losses(weights: AlignmentWeights, id_cfg: rqvae.Config, id_params: PyTree,
                     x: Float[Array, 'N d'], states: dict[str, Array],
                     target: Int[Array, ' B']) -> tuple[Array, Array, dict]:
  """Both alignment losses of a batch.

  weights: of which the shapes of the losses are read. id_cfg, id_params: of the tokenizer. x: item
  vectors. states: as `read_bins` gives. target: item indices. -> SIA, PSA, what `rqvae.forward`
  gives of the target items
  """
  rows = first_occurrences(target)
  item_codes = rqvae.forward(id_cfg, id_params, x[jnp.maximum(target - 1, 0)],
                             weight=rows.astype(jnp.float32))
  state_distances = rqvae.quantize(id_cfg, id_params['codebooks'], states['pooled'])['dist']
  return (
    sia(
      item_codes['dist'], state_distances, rows, weights.sign, weights.reduce, weights.temperature),
    psa(item_codes['recon'], states['first'], rows, weights.tau), item_codes)


def rec_loss(cfg: semantic_id_t5.Config, weights: AlignmentWeights, id_cfg: rqvae.Config | None,
             x: Float[Array, 'N d'] | None, texts: Float[Array, 'T e'] | None, rec: PyTree,
             fixed: PyTree, bins: Sequence[tuple], key: Key[Array, ''] | None,
             on: Array | float) -> tuple[Array, dict[str, Array]]:
  """Code loss, and alignment with a tokenizer that stands still.

  cfg, id_cfg: of recommender and tokenizer. weights: of the alignment. x: item vectors, None
  without an alignment. texts: vectors of interests, None without interests. rec: the parameters
  that learn. fixed: the rest of the state. bins: of a step. key: of dropout. on: 1 where the
  alignment counts, 0 before. -> loss, its parts
  """
  logits, states, target = read_bins(cfg, rec, fixed['table'], bins, texts, key)
  value = code_loss(logits, fixed['table'][target], target > 0)
  parts = {'code': value}
  if weights.sia or weights.psa:
    sia, psa, _ = alignment_losses(weights, id_cfg, fixed['id'], x, states, target)
    value = value + on * (weights.sia * sia + weights.psa * psa)
    parts |= {'sia': sia, 'psa': psa}
  return value, parts


def id_loss(cfg: semantic_id_t5.Config, weights: AlignmentWeights, id_cfg: rqvae.Config,
            x: Float[Array, 'N d'], texts: Float[Array, 'T e'] | None, id_params: PyTree,
            fixed: PyTree, bins: Sequence[tuple], _key: Key[Array, ''] | None,
            on: Array | float) -> tuple[Array, dict[str, Array]]:
  """Quantization of the distinct targets, and alignment with a recommender that stands still.

  weights, id_cfg, x, texts, fixed, bins, on: as there. _key: unused. id_params: the tokenizer's
  parameters, which learn; the rest as in `rec_loss`. cfg: the recommender's shape.
  """
  _, states, target = read_bins(cfg, fixed['rec'], fixed['table'], bins, texts)
  sia, psa, item_codes = alignment_losses(weights, id_cfg, id_params, x, states, target)
  rows = first_occurrences(target).astype(jnp.float32)
  vq = id_cfg.alpha * item_codes['loss'] + rqvae.recon_loss(
      id_cfg, item_codes['recon'], x[jnp.maximum(target - 1, 0)], rows)
  return vq + on * (weights.sia * sia + weights.psa * psa), {'vq': vq, 'sia': sia, 'psa': psa}


LOSSES = {'rec': rec_loss, 'id': id_loss}


def shard_rows(bins: Sequence[tuple]) -> Sequence[tuple]:
  """A step's rows over the devices, filled up with nobody's where they do not divide.

  bins: (history, target, interests) of each.
  """
  num_shards = sharding.num_batch_shards(jax.sharding.get_abstract_mesh())

  def pad_and_shard(x: Array) -> Array:
    x = jnp.pad(x, [(0, -len(x) % num_shards)] + [(0, 0)] * (x.ndim - 1))
    return sharding.shard(x, ('data', 'fsdp'))
  return jax.tree.map(pad_and_shard, bins)


def make_epoch(side: str, cfg: semantic_id_t5.Config, weights: AlignmentWeights,
               id_cfg: rqvae.Config | None, tx: optax.GradientTransformation, orders: Callable,
               take: Callable) -> Callable:
  """One epoch of one side.

  side: 'rec' or 'id', the part of the state that learns. cfg, id_cfg: of recommender and tokenizer.
  weights: of the alignment. tx: the optimizer. orders: key -> the rows of each step. take: data,
  rows -> the step's bins. -> epoch(state, key, data, x, texts, number) -> state, {'loss', its
  parts, 'grad_norm', 'bad': the first step whose loss is no number, or -1}
  """
  loss = functools.partial(LOSSES[side], cfg, weights, id_cfg)

  def epoch(state: PyTree, key: Array, data: PyTree, x: Array, texts: Array, number: Array
           ) -> tuple:
    key = jax.random.fold_in(key, number + 1)
    on = (number >= weights.warm).astype(jnp.float32)
    fixed = {k: v for k, v in state['params'].items() if k != side}

    def step(carry: tuple, row_and_number: tuple) -> tuple:
      params, opt = carry
      rows, number_of_step = row_and_number
      (value, parts), grads = jax.value_and_grad(
        lambda p: loss(
          x, texts, p, fixed, shard_rows(take(data, rows)), jax.random.fold_in(key, number_of_step),
          on),
        has_aux=True)(params)
      updates, opt = tx.update(grads, opt, params)
      return (optax.apply_updates(params, updates), opt), {
          'loss': value, **parts, 'grad_norm': optax.global_norm(grads)}
    order = orders(jax.random.fold_in(key, 2**20))
    count = jnp.arange(len(jax.tree.leaves(order)[0]))
    (params, opt), means = lax.scan(step, (state['params'][side], state['opt'][side]),
                                    (order, count))
    new_state = {'params': {**state['params'], side: params}, 'opt': {**state['opt'], side: opt}}
    bad = ~jnp.isfinite(means['loss'])
    means = {**jax.tree.map(jnp.mean, means), 'bad': jnp.where(bad.any(), bad.argmax(), -1)}
    if side == 'id':
      table, largest = semantic_ids.padded_table(rqvae.assign_codes(id_cfg, params, x))
      new_state['params']['table'], means['largest_group'] = table, largest
    return new_state, means
  return epoch


def check_collisions(means: dict, size: int) -> None:
  """Raises DataError where more items share codes than the last level can tell apart.

  means: of an epoch. size: codes of a level.
  """
  largest = int(max(means.get('largest_group', [0])))
  if largest > size:
    raise DataError(f'{largest} items share their codes after this epoch of the tokenizer, more '
                    f'than the {size} of a level: it collapses; lower id_optim.lr')
