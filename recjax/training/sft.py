"""Tuning a causal LM on prompts and answers: packed rows, a shared opening, LoRA or all weights.

Prompts of one task begin alike. What all of them share runs once a step and its gradient flows; the
rest of each prompt and its answer stand beside others in rows, told apart by segments.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from recjax.data.batches import Batches
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError
from recjax.models import layers, llm, lora
from recjax.models.attention import kv_block
from recjax.text import packing
from recjax.training import microbatch
from recjax.training.loop import FitSettings, Task, fit
from recjax.training.losses import lm

ROW_STEP = 64   # rows are a multiple of this long

LOSS_ON = ('all', 'response')


@dataclasses.dataclass(frozen=True)
class Packed:
  """Samples in rows. prefix: the token ids that every prompt begins with. rows: dict of arrays
  (n, row) or (n, most samples of a row). tokens: how many count in the loss of all."""
  prefix: list
  rows: dict
  samples: int
  tokens: int
  filled: float


def common_prefix(prompts):
  """Tokens that all prompts begin with, short of the last token of the shortest."""
  first, last = min(prompts), max(prompts)
  most = min(map(len, prompts)) - 1
  same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), most)
  return first[:min(same, most)]


def pack(prompts, answers, loss_on, row=0, prefix=None):
  """Lays samples into rows. prompts, answers: token lists, the answers with their end token.

  row: tokens of a row, or more where a sample is longer. prefix: of these and other prompts, else
  their own. -> Packed. Raises ConfigError for another loss_on, DataError without samples.
  """
  if loss_on not in LOSS_ON:
    raise ConfigError(f'train.loss_on={loss_on!r}; choose one of {", ".join(LOSS_ON)}')
  if not prompts:
    raise DataError('there is no sample to train on')
  prefix = common_prefix(prompts) if prefix is None else prefix
  own = [p[len(prefix):] + a for p, a in zip(prompts, answers)]
  sizes = [len(o) - 1 for o in own]
  row = -(-max(row, *sizes, 1) // ROW_STEP) * ROW_STEP
  members = packing.pack(sizes, row)
  widest = max(map(len, members))
  made = {k: np.zeros((len(members), row), np.int32)
          for k in ('tokens', 'positions', 'segments', 'targets')}
  made['weights'] = np.zeros((len(members), row), np.float32)
  made['first'] = np.zeros((len(members), widest), np.int32)
  made['first_weight'] = np.zeros((len(members), widest), np.float32)
  for r, some in enumerate(members):
    at = 0
    for s, i in enumerate(some):
      here = slice(at, at + sizes[i])
      made['tokens'][r, here], made['targets'][r, here] = own[i][:-1], own[i][1:]
      made['positions'][r, here] = len(prefix) + np.arange(sizes[i])
      made['segments'][r, here] = s + 1
      asked = 0 if loss_on == 'all' else len(prompts[i]) - len(prefix) - 1
      made['weights'][r, at + asked:here.stop] = 1
      made['first'][r, s] = own[i][0]
      made['first_weight'][r, s] = loss_on == 'all'
      at = here.stop
  count = int(made['weights'].sum())
  if loss_on == 'all':
    count += len(prefix) * len(prompts)
  return Packed(prefix, made, len(prompts), count, sum(sizes) / (len(members) * row))


def loss_sums(model, prefix, variables, batch):
  """Summed negative log-likelihood of a batch, and how many tokens it is over.

  batch: rows of Packed. The prefix's own tokens count once for each sample where prompts count.
  """
  cfg, params = model.cfg, variables['params']
  head = llm.head_matrix(params, cfg)
  past, total, count = (), jnp.float32(0), batch['weights'].sum()
  if prefix:
    ids = jnp.asarray(prefix, jnp.int32)[None]
    opening, (k, v) = model.apply(variables, ids, jnp.arange(ids.shape[1])[None],
                                  jnp.ones_like(ids))
    past = (kv_block(k[:, 0], v[:, 0], jnp.ones(ids.shape[1], bool)),)
    logits = jnp.dot(opening[0, -1], head.astype(opening.dtype), preferred_element_type=jnp.float32)
    weight = batch['first_weight']
    nll = jax.nn.logsumexp(logits) - logits[batch['first']]
    shared = lm.token_nll(opening[0, :-1], head, ids[0, 1:]).sum()
    total += (nll * weight).sum() + shared * weight.sum()
    count += weight.sum() * len(prefix)
  hidden, _ = model.apply(variables, batch['tokens'], batch['positions'], batch['segments'], past)
  nll = lm.token_nll(hidden.reshape(-1, cfg.width), head, batch['targets'].reshape(-1))
  total += (nll * batch['weights'].reshape(-1)).sum()
  return total, count


def tune(work, cfg, model, params, train, valid):
  """Trains an adapter, or all weights where the model has no adapter rank.

  cfg: epochs, batch (samples a step, about), patience (epochs without a lower validation loss, 0:
  none is stopped early), seed, and an `optim` group with the cadences of `fit`. train, valid:
  Packed; valid may be None. -> (adapter or params, counts)
  """
  adapted = bool(model.cfg.lora_rank)
  batches, an_epoch = batched(train, cfg.batch, work.mesh, cfg.seed)
  steps = max(1, round(cfg.epochs * an_epoch))

  def variables(trained, frozen):
    return {'params': frozen, 'lora': trained} if adapted else {'params': trained}

  def learnt(trained, frozen, batch):
    return loss_sums(model, train.prefix, variables(trained, frozen), batch)

  sums = jax.jit(lambda t, f, b: loss_sums(model, valid.prefix, variables(t, f), b))

  def judge(trained, frozen):
    total = count = 0.0
    for batch in whole(valid, -(-batches.size // batches.ways) * batches.ways):
      one, of = sums(trained, frozen, batch)
      total, count = total + float(one), count + float(of)
    return {'valid_loss': total / count}

  task = Task(init=(lambda key: lora.init_lora(model.cfg, key)) if adapted else None,
              start=None if adapted else params, loss=microbatch.mean(learnt), batches=batches,
              split=microbatch.accumulate_sums(learnt), shape=(model.cfg, len(train.prefix)),
              frozen=params if adapted else (), rules=llm.RULES,
              evaluate=judge if valid is not None else None)
  fitting = dataclasses.replace(
      FitSettings.of(cfg.optim), steps=steps, seed=cfg.seed, eval_every=max(1, round(an_epoch)),
      patience=cfg.patience if valid is not None else 0)
  trained = fit(task, fitting, work)
  return trained, {'steps': steps, 'samples': train.samples,
                   'trained': layers.count_params(trained), 'tokens an epoch': train.tokens,
                   'filled': round(train.filled, 3),
                   'shared_prefix': len(train.prefix)}


def batched(packed, samples, mesh, seed):
  """Shuffled batches of so many samples on average. -> (Batches, batches an epoch, a float)"""
  count = len(packed.rows['tokens'])
  rows = max(1, round(samples * count / packed.samples))
  return Batches(lambda r: {k: v[r] for k, v in packed.rows.items()}, count, rows, seed,
                 sharding.num_batch_shards(mesh)), count / rows


def whole(packed, rows):
  """Every row once, in batches of one shape; the last is filled with rows that count nothing."""
  count = len(packed.rows['tokens'])
  for start in range(0, count, rows):
    some = {k: v[start:start + rows] for k, v in packed.rows.items()}
    short = rows - len(some['tokens'])
    yield {k: np.pad(v, [(0, short)] + [(0, 0)] * (v.ndim - 1)) for k, v in some.items()}
