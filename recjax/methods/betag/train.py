"""Behavior-enhanced fine-tuning: LoRA on sequences spelled as tags (Lin et al., WWW 2025)."""
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict, FrozenConfigDict

from recjax.data.batches import halving_draws, pad_batch
from recjax.data.dataset import Dataset
from recjax.data.formats import betag as files
from recjax.distributed.multihost import to_host
from recjax.distributed.sharding import num_batch_shards
from recjax.errors import DataError
from recjax.methods.betag import base_tags, prompts
from recjax.models import huggingface, layers, llm, lora
from recjax.text import chat_template, packing
from recjax.text.tokenizer import Tokenizer
from recjax.training import continuation, llm_loading, loop, microbatch
from recjax.training.continuation import Start
from recjax.training.loop import Task, fit
from recjax.training.losses import lm
from recjax.training.workdir import Workdir

FILL = 0.88     # share of a row that samples in order fill, about


def settings(cfg: ConfigDict) -> FrozenConfigDict:
  """Everything in the config that decides this stage's result. cfg: the run's config."""
  return FrozenConfigDict({'train': cfg.train, 'lora': cfg.lora, 'optim': cfg.optim,
                           'llm': cfg.llm, 'sep': cfg.tags.sep, 'seed': cfg.seed})


def stage(work: Workdir, cfg: FrozenConfigDict, dataset: Dataset, base: pathlib.Path,
          folder: pathlib.Path, start: Start | None = None) -> dict[str, Any]:
  """Trains the adapter into `work.folder`, in PEFT's format.

  cfg: of `settings`. dataset: the data set. base: folder of the stage 'base-tags'. folder: of the
  LLM. start: the run whose adapter it goes on from. -> counts
  """
  if start:
    continuation.keep_split_facts(work, start, dataset, base_tags.split_of(dataset))
  model, params, tokenizer = llm_loading.load(folder, cfg.llm, work.mesh, lora_rank=cfg.lora.rank,
                                           lora_alpha=float(cfg.lora.alpha))
  sequences, _, _ = files.read_sequences(base / 'inters.train.json')
  tags = prompts.respell(tokenizer, files.read_tags(base / 'base_tags.json'))
  batches = SampleBatches(tokenizer, sequences, tags, cfg, work.mesh)
  steps = len(batches)
  task = Task(init=lambda key: lora.init_lora(model.cfg, key),
              start=huggingface.load_adapter(start.folder, model.cfg) if start else None,
              loss=functools.partial(sample_loss, model, batches.prefix),
              split=microbatch.accumulate_sums(functools.partial(loss_sums, model, batches.prefix)),
              shape=(model.cfg, len(batches.prefix)), batches=batches, frozen=params,
              rules=llm.RULES)
  fitting = loop.FitSettings.of(cfg.optim)
  trained = fit(task, dataclasses.replace(fitting, steps=steps, seed=cfg.seed), work)
  # A tiny model of this run is named relative to here: the run's folder may be moved.
  inside = folder.resolve().is_relative_to(work.path.resolve())
  name = os.path.relpath(folder, work.folder) if inside else str(folder)
  huggingface.save_adapter(to_host(trained), model.cfg, work.folder, base=name)
  return {'parameters': layers.count_params(params) + layers.count_params(trained),
          'steps': steps, 'trained': layers.count_params(trained), **batches.counts}


class SampleBatches:
  """batches[i] holds the next draws of the published sampler that fit a fixed shape.

  tokenizer: of the LLM. sequences: item ids of each user. tags: of each item. cfg: of the run.
  mesh: the devices.

  Each batch is `rows` rows of `row` tokens, room for about `train.batch` samples of average length;
  the draws keep their order, so only how many of them a step sees varies a little.
  """

  def __init__(self, tokenizer: Tokenizer, sequences: list[list[str]], tags: dict[str, list[str]],
               cfg: FrozenConfigDict, mesh: Mesh) -> None:
    train = cfg.train
    self.cfg, self.tokenizer = cfg, tokenizer
    self.sequences = [[tags[i] for i in s] for s in sequences if len(s) >= train.min_seq_len]
    if not self.sequences:
      raise DataError(f'all {len(sequences)} training sequences are shorter than '
                      f'train.min_seq_len={train.min_seq_len}; lower it or bring longer ones')
    self.prefix = chat_template.prompt_ids(tokenizer, prompts.MESSAGES)
    self.heading = tokenizer.encode(prompts.HEADING)
    self.draw = DrawSettings(cfg.seed, train.max_seq_len, cfg.sep, tuple(train.keep))
    lengths = np.array([len(s) for s in self.sequences])
    self.draws = halving_draws(lengths, train.epochs, cfg.seed)
    sizes = np.concatenate([
        [len(ids) - 1 for ids, _ in self.samples(range(start, min(start + 4096, len(self.draws))))]
        for start in range(0, len(self.draws), 4096)])
    self.row = packing.round_row(max(train.row_tokens, int(sizes.max())))
    self.ways = num_batch_shards(mesh)
    self.rows = max(1, round(sizes.mean() * train.batch / (FILL * self.row)))
    self.plan = packing.pack_in_order(sizes, self.rows, self.row)
    self.counts = {
        'sequences': len(lengths), 'dropped_short': len(sequences) - len(lengths),
        'prefix_tokens': len(self.prefix), 'sample_tokens': int(sizes.sum()),
        'rows': self.rows, 'row': int(self.row),
        'filled': round(float(sizes.sum() / (len(self.plan) * self.rows * self.row)), 3)}

  def __len__(self) -> int:
    return len(self.plan)

  def samples(self, draws: Iterable[int]) -> list[tuple[list[int], int]]:
    """Samples by number of draw: [(token ids of the assistant's text, where the output begins)].

    draws: their numbers.
    """
    parts = [part for d in draws
             for part in prompts.draw_sample(self.sequences[self.draws[d]], d, self.draw)]
    ids = self.tokenizer.encode_batch(parts)
    most = self.cfg.train.max_len - len(self.prefix)
    for j, prompt in enumerate(ids[::2]):
      if len(self.heading) + len(prompt) >= most:
        raise DataError(
            f'the first item of a training sequence takes {len(prompt)} tokens, so nothing of what '
            f'follows fits train.max_len={self.cfg.train.max_len}; shorten its tags '
            f'({parts[2 * j][:80]!r}) or raise max_len')
    return [((self.heading + p + o)[:most], len(self.heading) + len(p))
            for p, o in zip(ids[::2], ids[1::2])]

  def rows_of(self, i: int) -> np.ndarray:
    """The users of batch i, as rows of the sequences that are long enough."""
    start, members = self.plan[i % len(self)]
    return self.draws[start:start + sum(map(len, members))]

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    start, members = self.plan[i % len(self)]
    count = sum(map(len, members))
    late = self.cfg.train.loss_on == 'continuation'
    samples = []
    for ids, boundary in self.samples(range(start, start + count)):
      ids = np.array(self.prefix + ids, np.int32)
      unlearned = len(self.prefix) + (boundary if late else 0)
      samples.append(packing.TokenSample(ids, np.arange(len(ids)) >= unlearned))
    batch = packing.PackedSamples(self.prefix, samples, members, self.row).batch()
    first = 0 if late else count  # all samples begin alike, with the heading
    return {**pad_batch(batch, self.ways), 'first': np.array([self.heading[0]], np.int32),
            'first_weight': np.array([first], np.float32)}

@dataclasses.dataclass(frozen=True)
class DrawSettings:
  """What a draw depends on besides its number. seed: of all draws. max_seq_len: items of a sample
  at most. sep: between tags. keep: shares of tags that stay, least and most."""
  seed: int
  max_seq_len: int
  sep: str
  keep: tuple


def sample_loss(model: llm.LM, prefix: list[int], adapter: PyTree, params: PyTree,
                batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
  """Mean negative log-likelihood over the assistant's tokens of all samples.

  The prefix runs once, not once a sample; its last state predicts every sample's first token.
  model: the LLM. adapter: LoRA's. params: the LLM's weights. batch: of `SampleBatches`. key:
  unused: nothing is drawn.
  """
  return microbatch.mean(functools.partial(loss_sums, model, prefix))(adapter, params, batch, key)


def loss_sums(model: llm.LM, prefix: list[int], adapter: PyTree, params: PyTree,
              batch: dict[str, Array]) -> tuple[Array, Array]:
  """The sum that `sample_loss` is the mean of, and over how many tokens.

  model: the LLM. prefix: the chat prefix's tokens. adapter: LoRA's. params: the LLM's weights.
  batch: of `SampleBatches`.
  """
  variables = {'params': params, 'lora': adapter}
  last, past = llm.prefill_prefix(model, variables, prefix)
  hidden, _ = model.apply(variables, batch['tokens'], batch['positions'], batch['segments'],
                          (past,))
  head = llm.head_matrix(params, model.cfg)
  nll = lm.token_nll(hidden.reshape(-1, model.cfg.width), head, batch['targets'].reshape(-1))
  weights = batch['weights'].reshape(-1)
  logits = jnp.dot(last, head.astype(last.dtype), preferred_element_type=jnp.float32)
  first = jax.nn.logsumexp(logits) - logits[batch['first'][0]]
  total = (nll * weights).sum() + first * batch['first_weight'][0]
  return total, weights.sum() + batch['first_weight'][0]
