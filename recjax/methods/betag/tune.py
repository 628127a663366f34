"""Behaviour-enhanced fine-tuning: LoRA on sequences spelled as tags (betag 2.2 to 2.4)."""
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from recjax.data.batches import halving_draws
from recjax.data.formats import betag as files
from recjax.errors import DataError
from recjax.methods.betag import text
from recjax.models import huggingface, llm, lora
from recjax.text import chat
from recjax.text import tokens as tokenizers
from recjax.training import backbone, losses
from recjax.training.fit import Task, fit

ROW_STEP = 64   # rows are a multiple of this long, so that few shapes are compiled


def settings(cfg):
  """Everything in the config that decides this stage's result."""
  return FrozenConfigDict({'train': cfg.train, 'lora': cfg.lora, 'optim': cfg.optim,
                           'llm': cfg.llm, 'sep': cfg.tags.sep, 'seed': cfg.seed})


def stage(work, cfg, shop, base, folder):
  """Trains the adapter into `work.folder`, in PEFT's format. -> counts"""
  del shop  # decides the result through the base-tags stage
  model, params, tokenizer = backbone.load(folder, cfg.llm, work.mesh, lora_rank=cfg.lora.rank,
                                           lora_alpha=float(cfg.lora.alpha))
  sequences, _, _ = files.read_sequences(base / 'inters.train.json')
  tags = files.read_tags(base / 'base_tags.json')
  batches = SampleBatches(tokenizer, sequences, tags, cfg, work.mesh)
  train = cfg.train
  steps = train.epochs * batches.per_epoch
  task = Task(init=lambda key: lora.init_lora(model.cfg, key),
              loss=functools.partial(sample_loss, model, batches.prefix),
              batches=batches, frozen=params, rules=llm.RULES)
  fitting = backbone.FitSettings.of(cfg.optim)
  trained = fit(task, dataclasses.replace(fitting, steps=steps, seed=cfg.seed), work)
  # A tiny model of this run is named relative to here: the run's folder may be moved.
  inside = folder.resolve().is_relative_to(work.path.resolve())
  name = os.path.relpath(folder, work.folder) if inside else str(folder)
  huggingface.save_adapter(jax.device_get(trained), model.cfg, work.folder, base=name)
  return {'steps': steps, 'trained': llm.count(trained), **batches.counts}


class SampleBatches:
  """batches[i] is the packed i-th batch of the published sampler's draws (betag 2.2, 2.4)."""

  def __init__(self, tokenizer, sequences, tags, cfg, mesh):
    train = cfg.train
    self.cfg, self.tokenizer = cfg, tokenizer
    self.sequences = [[tags[i] for i in s] for s in sequences if len(s) >= train.min_seq_len]
    if not self.sequences:
      raise DataError(f'all {len(sequences)} training sequences are shorter than '
                      f'train.min_seq_len={train.min_seq_len}; lower it or bring longer ones')
    self.prefix = chat.render(tokenizer, list(text.MESSAGES))
    self.heading = tokenizer.encode(text.HEADING)
    self.ways = max(1, mesh.size // mesh.shape.get('model', 1))
    lengths = np.array([len(s) for s in self.sequences])
    self.draws = halving_draws(lengths, train.epochs, cfg.seed)
    self.per_epoch = -(-len(lengths) // train.batch)
    self.counts = {'sequences': len(lengths), 'dropped_short': len(sequences) - len(lengths)}
    self.row, self.rows = ROW_STEP, self.ways
    first = [self.samples(i) for i in range(self.per_epoch)]
    self.row = max(-(-len(ids) // ROW_STEP) * ROW_STEP for batch in first for ids, _ in batch)
    self.row = max(self.row, min(train.row, train.max_len))
    self.rows = max(self.rows_for(batch) for batch in first)
    real = sum(len(ids) for batch in first for ids, _ in batch)
    self.counts.update(
        prefix_tokens=len(self.prefix), tokens_per_epoch=real, rows=self.rows, row=self.row,
        filled=round(real / (len(first) * self.rows * self.row), 3))

  def __len__(self):
    return self.cfg.train.epochs * self.per_epoch

  def samples(self, i):
    """The batch's samples as [(token ids of the assistant's text, where the output begins)]."""
    train, n = self.cfg.train, len(self.sequences)
    epoch, at = divmod(i, self.per_epoch)
    draws = range(epoch * n + at * train.batch, min(epoch * n + (at + 1) * train.batch,
                                                    (epoch + 1) * n))
    draw_cfg = DrawSettings(self.cfg.seed, train.max_seq_len, self.cfg.sep, tuple(train.keep))
    parts = [part for d in draws for part in text.draw_sample(
        self.sequences[self.draws[d]], d, draw_cfg)]
    ids = self.tokenizer.encode_batch(parts)
    most = train.max_len - len(self.prefix)
    for d, prompt in zip(draws, ids[::2]):
      if len(self.heading) + len(prompt) >= most:
        raise DataError(
            f'the first item of training sequence {self.draws[d]} takes {len(prompt)} tokens, so '
            f'nothing of what follows fits train.max_len={train.max_len}; shorten its tags '
            f'({parts[2 * (d - draws.start)][:80]!r}) or raise max_len')
    return [((self.heading + p + o)[:most], len(self.heading) + len(p))
            for p, o in zip(ids[::2], ids[1::2])]

  def rows_for(self, batch):
    """Rows that the batch takes, rounded up so that they divide over the devices."""
    need = len(tokenizers.pack([len(ids) - 1 for ids, _ in batch], self.row))
    return -(-need // self.ways) * self.ways

  def __getitem__(self, i):
    batch = self.samples(i % len(self))
    row = max(self.row, *(-(-len(ids) // ROW_STEP) * ROW_STEP for ids, _ in batch))
    members = tokenizers.pack([len(ids) - 1 for ids, _ in batch], row)
    rows = max(self.rows, -(-len(members) // self.ways) * self.ways)
    out = {k: np.zeros((rows, row), np.int32)
           for k in ('tokens', 'positions', 'segments', 'targets')}
    out['weights'] = np.zeros((rows, row), np.float32)
    first = np.zeros((2, self.cfg.train.batch), np.int32)  # first tokens, and whether they count
    late = self.cfg.train.loss_on == 'continuation'
    for r, chosen in enumerate(members):
      start = 0
      for s, j in enumerate(chosen, 1):
        ids, boundary = batch[j]
        here = slice(start, start + len(ids) - 1)
        out['tokens'][r, here], out['targets'][r, here] = ids[:-1], ids[1:]
        out['positions'][r, here] = len(self.prefix) + np.arange(len(ids) - 1)
        out['segments'][r, here] = s
        out['weights'][r, here] = 1
        if late:
          out['weights'][r, start:start + boundary - 1] = 0
        first[:, j] = ids[0], not late
        start = here.stop
    return {**out, 'first': first[:1], 'first_weights': first[1:].astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class DrawSettings:
  """What a draw depends on besides its number."""
  seed: int
  max_seq_len: int
  sep: str
  keep: tuple


def prefix_past(model, variables, prefix):
  """Runs the chat prefix once. -> (hidden of its last token (D,), Past shared by all rows)"""
  ids = jnp.asarray(prefix, jnp.int32)[None]
  hidden, (k, v) = model.apply(variables, ids, jnp.arange(len(prefix))[None],
                               jnp.ones_like(ids))
  return hidden[0, -1], llm.Past(k[:, 0], v[:, 0], jnp.ones(len(prefix), bool))


def sample_loss(model, prefix, adapter, params, batch, key):
  """Mean negative log-likelihood over the assistant's tokens of all samples (betag 2.4, T5).

  The prefix runs once, not once a sample; its last state predicts every sample's first token.
  """
  del key
  variables = {'params': params, 'lora': adapter}
  last, past = prefix_past(model, variables, prefix)
  hidden, _ = model.apply(variables, batch['tokens'], batch['positions'], batch['segments'],
                          (past,))
  head = llm.head_matrix(params, model.cfg)
  nll = losses.token_nll(hidden.reshape(-1, model.cfg.width), head, batch['targets'].reshape(-1))
  weights = batch['weights'].reshape(-1)
  logits = jnp.dot(last, head.astype(last.dtype), preferred_element_type=jnp.float32)
  first = jax.nn.logsumexp(logits) - logits[batch['first']]
  total = (nll * weights).sum() + (first * batch['first_weights']).sum()
  return total / (weights.sum() + batch['first_weights'].sum()), {}
