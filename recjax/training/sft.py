"""Supervised fine-tuning of a causal LM on packed rows: prompts with answers, or conversations.

What all samples begin with runs once a step and its gradient flows; the rest of each stands beside
others in rows, told apart by segments. R rows of L tokens, D model width.
"""
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from recjax.data.batches import Batches
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError
from recjax.models import layers, llm, lora
from recjax.models.attention import kv_block
from recjax.text.packing import PackedSamples, TokenSample, pack_samples
from recjax.training import microbatch
from recjax.training.loop import FitSettings, Task, fit
from recjax.training.losses import lm
from recjax.training.workdir import Workdir

LOSS_ON = ('all', 'response')


def common_prefix(prompts: list[list[int]]) -> list[int]:
  """Tokens that all prompts begin with, short of the last token of the shortest."""
  first, last = min(prompts), max(prompts)
  longest = min(map(len, prompts)) - 1
  same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), longest)
  return first[:min(same, longest)]


def pack_pairs(prompts: list[list[int]], answers: list[list[int]], loss_on: str,
               row_tokens: int = 0, prefix: list[int] | None = None) -> PackedSamples:
  """Lays pairs of a prompt and its answer into rows.

  prompts, answers: token lists, the answers with their end token. loss_on: 'all' tokens or those of
  the 'response'. row_tokens: length of a row, or more where a sample is longer. prefix: of these
  and other prompts, else their own. Raises ConfigError for another loss_on, DataError without
  samples.
  """
  if loss_on not in LOSS_ON:
    raise ConfigError(f'train.loss_on={loss_on!r}; choose one of {", ".join(LOSS_ON)}')
  if not prompts:
    raise DataError('there is no sample to train on')
  samples = []
  for prompt, answer in zip(prompts, answers):
    unlearned = 0 if loss_on == 'all' else len(prompt)
    ids = np.array([*prompt, *answer], np.int32)
    samples.append(TokenSample(ids, np.arange(len(ids)) >= unlearned))
  return pack_samples(samples, common_prefix(prompts) if prefix is None else prefix, row_tokens)


def pack_conversations(conversations: list[TokenSample], row_tokens: int, prefix: list[int],
                       fills: dict[str, int]) -> PackedSamples:
  """Lays conversations into rows, with the marks that `fills` names and their value in padding.

  row_tokens: tokens of a row at most. prefix: tokens that all conversations begin with. Raises
  DataError without conversations, or where one learns nothing.
  """
  if not conversations:
    raise DataError('there is no conversation to learn from')
  for i, conversation in enumerate(conversations):
    if not conversation.learned.any():
      raise DataError(f'conversation {i} has no answer to learn')
  return pack_samples(conversations, prefix, row_tokens, fills)


def loss_sums(model: llm.LM, prefix: list[int], variables: PyTree,
              batch: dict[str, Array]) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Summed negative log-likelihood of a batch, and how many tokens it is over.

  batch: rows of PackedSamples. The prefix's own tokens count once for each sample where prompts
  count. model: the LLM. variables: 'params', and 'lora' where there is an adapter. prefix: as of
  `pack_conversations`.
  """
  cfg, params = model.cfg, variables['params']
  head = llm.head_matrix(params, cfg)
  past, total, count = (), jnp.float32(0), batch['weights'].sum()
  if prefix:
    ids = jnp.asarray(prefix, jnp.int32)[None]
    found: Any = model.apply(variables, ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids))
    opening, (k, v) = found
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


def hidden_states(model: llm.LM, prefix: list[int], variables: PyTree,
                  batch: dict[str, Array]) -> Float[Array, 'RL D']:
  """Hidden states of a batch's tokens behind the prefix. model, prefix, variables, batch: as of
  `loss_sums`."""
  past = (llm.prefill_prefix(model, variables, prefix)[1],) if prefix else ()
  hidden, _ = model.apply(variables, batch['tokens'], batch['positions'], batch['segments'], past)
  return hidden.reshape(-1, model.cfg.width)


def sample_weights(weights: Float[Array, 'R L'], segments: Int[Array, 'R L']
                   ) -> Float[Array, 'R L']:
  """Weights under which every sample counts alike: those of one sum to 1.

  weights: of tokens. segments: the sample of each token of a row, 0 for none.
  """
  def totals(row: Array, row_segments: Array) -> Array:
    return jax.ops.segment_sum(row, row_segments, len(row) + 1)[row_segments]
  return weights / jnp.maximum(jax.vmap(totals)(weights, segments), 1e-9)


def tune(work: Workdir, cfg: ConfigDict, model: llm.LM, params: PyTree, train: PackedSamples,
         valid: PackedSamples | None, begin: PyTree = None) -> tuple[PyTree, dict]:
  """Trains an adapter, or all weights where the model has no adapter rank.

  work: the stage's part of the work folder. cfg: epochs, batch (samples a step, about), patience
  (epochs without a lower validation loss, 0: none is stopped early), seed, and an `optim` group
  with the cadences of `fit`. model, params: the LLM. train, valid: rows to learn and to validate
  on, None for no validation. begin: the adapter that training begins from, None for a fresh one.
  -> (adapter or params, counts)
  """
  adapted = bool(model.cfg.lora_rank)
  batches, epoch_steps = shuffled_batches(train, cfg.batch, work.mesh, cfg.seed)
  steps = max(1, round(cfg.epochs * epoch_steps))

  def sums(packed: PackedSamples, trained: PyTree, frozen: PyTree, batch: PyTree
          ) -> tuple[Array, Array]:
    variables = {'params': frozen, 'lora': trained} if adapted else {'params': trained}
    return loss_sums(model, packed.prefix, variables, batch)

  def train_sums(trained: PyTree, frozen: PyTree, batch: PyTree) -> tuple[Array, Array]:
    return sums(train, trained, frozen, batch)

  def valid_sums(trained: PyTree, frozen: PyTree, batch: PyTree) -> tuple[dict, Array]:
    total, count = sums(cast(PackedSamples, valid), trained, frozen, batch)
    return {'valid_loss': total}, count

  evaluate = None
  if valid is not None:
    evaluate = evaluator(valid_sums, valid, padded_rows(batches.size, work.mesh))
  task = Task(init=(lambda key: lora.init_lora(model.cfg, key)) if adapted else None,
              start=begin if adapted else params, loss=microbatch.mean(train_sums), batches=batches,
              split=microbatch.accumulate_sums(train_sums), shape=(model.cfg, len(train.prefix)),
              frozen=params if adapted else (), rules=llm.RULES, evaluate=evaluate)
  fitting = dataclasses.replace(
      FitSettings.of(cfg.optim), steps=steps, seed=cfg.seed, eval_every=max(1, round(epoch_steps)),
      patience=cfg.patience if valid is not None else 0)
  trained = fit(task, fitting, work)
  size = layers.count_params(trained)
  return trained, {'parameters': size + (layers.count_params(params) if adapted else 0),
                   'steps': steps, 'samples': len(train.samples), 'trained': size,
                   'tokens an epoch': train.tokens,
                   'filled': round(train.filled, 3),
                   'shared_prefix': len(train.prefix)}


def shuffled_batches(packed: PackedSamples, num_samples: int, mesh: jax.sharding.Mesh,
                     seed: int) -> tuple[Batches, float]:
  """Shuffled batches of about so many samples, the same for any number of devices.

  packed: the rows. num_samples: of a batch, about. mesh: the devices. seed: of the order.
  -> (Batches, batches that see all once)
  """
  num_rows = max(1, round(num_samples * len(packed.rows) / len(packed.samples)))

  def collate(rows: Any) -> dict[str, np.ndarray]:
    return packed.batch(rows, padded_rows(len(rows), mesh))
  return Batches(collate, len(packed.rows), num_rows, seed), len(packed.rows) / num_rows


def padded_rows(num_rows: int, mesh: jax.sharding.Mesh) -> int:
  """The next number of rows that divides over the devices of `mesh`. num_rows: at least so many.
  mesh: the devices."""
  shards = sharding.num_batch_shards(mesh)
  return -(-num_rows // shards) * shards


def batches_once(packed: PackedSamples, num_rows: int) -> Iterator[dict[str, np.ndarray]]:
  """Every row once, in batches of one shape; the last is filled with rows that count nothing.
  packed: the rows. num_rows: of a batch."""
  for start in range(0, len(packed.rows), num_rows):
    yield packed.batch(range(start, min(start + num_rows, len(packed.rows))), num_rows)


def evaluator(sums: Callable, packed: PackedSamples, num_rows: int) -> Callable:
  """A function (trained, frozen) -> {name: value over all of `packed`}.

  sums: (trained, frozen, batch) -> ({name: sum}, count). num_rows: rows of a batch.
  """
  run = jax.jit(sums)

  def evaluate(trained: PyTree, frozen: PyTree) -> dict[str, float]:
    totals, count = {}, 0.0
    for batch in batches_once(packed, num_rows):
      batch_sums, batch_count = run(trained, frozen, batch)
      count += float(batch_count)
      totals = {k: totals.get(k, 0.0) + float(v) for k, v in batch_sums.items()}
    return {k: v / max(count, 1) for k, v in totals.items()}
  return evaluate
