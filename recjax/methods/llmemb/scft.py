"""Supervised contrastive fine-tuning: two views of an item meet, other items part (llmemb.md 4)."""
import dataclasses
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from recjax.data.batches import pad_batch
from recjax.distributed.multihost import to_host
from recjax.distributed.sharding import shard
from recjax.errors import ConfigError
from recjax.file_io import write_json
from recjax.methods.llmemb import prompts
from recjax.models import huggingface, llm, lora
from recjax.training import loop, text_embedding
from recjax.training.loop import Task, fit
from recjax.training.losses import contrastive

FIRST_TAU = 3.0  # where the released code's learned temperature begins


def settings(cfg, source):
  """Everything in the config that decides this stage's result."""
  return ConfigDict({'scft': cfg.scft, 'lora': cfg.lora, 'llm': cfg.llm, 'defects': cfg.defects,
                     'pool': 'last' if source == 'last' else cfg.scft.pool, 'seed': cfg.seed})


def stage(work, cfg, texts, folder):
  """Trains the adapter into `work.folder`, in PEFT's format. -> counts"""
  reader = text_embedding.load(folder, cfg.llm, work.mesh, cfg.pool, cfg.scft.max_len,
                        lora_rank=cfg.lora.rank, lora_alpha=float(cfg.lora.alpha))
  if reader.about['kind'] != 'decoder':
    raise ConfigError(f'{folder} is a {reader.about["kind"]}; SCFT tunes decoder models. Use '
                      'variant=no_scft, or name it as text.weights with variant=text')
  texts = prompts.read(texts)
  batches = ViewBatches(reader, texts, cfg, ways_of(work.mesh))
  def split(parts):  # pairs divide evenly
    count = next(n for n in range(parts, cfg.scft.batch + 1) if cfg.scft.batch % n == 0)
    return objective(reader, cfg, ways_of(work.mesh), count)
  task = Task(init=functools.partial(begin, reader.model.cfg, cfg), batches=batches,
              loss=objective(reader, cfg, ways_of(work.mesh)), frozen=reader.variables['params'],
              split=split, parts=cfg.scft.parts, shape=(reader.model.cfg, 0), rules=llm.RULES)
  how = dataclasses.replace(loop.FitSettings.of(cfg.scft.optim), steps=cfg.scft.steps,
                            seed=cfg.seed)
  trained = to_host(fit(task, how, work))
  # A tiny model of this run is named relative to here: the run's folder may be moved.
  inside = folder.resolve().is_relative_to(work.path.resolve())
  name = os.path.relpath(folder, work.folder) if inside else str(folder)
  huggingface.save_adapter(trained['lora'], reader.model.cfg, work.folder, base=name)
  tau = float(trained.get('tau', cfg.scft.tau))
  write_json(work.folder / 'scft.json', {'tau': tau, 'loss': cfg.scft.loss, 'pool': cfg.pool})
  return {'steps': cfg.scft.steps, 'trained': llm.count(trained['lora']), 'tau': round(tau, 4),
          'epochs': round(cfg.scft.steps * batches.size / len(texts), 1)}


def ways_of(mesh):
  """Over how many devices rows are spread."""
  return max(1, mesh.size // mesh.shape.get('model', 1))


def begin(shape, cfg, key):
  """What is trained: the adapter, and as released the temperature."""
  train = {'lora': lora.init_lora(shape, key)}
  return train | ({'tau': jnp.float32(FIRST_TAU)} if cfg.defects.learned_tau else {})


class ViewBatches:
  """batches[i] holds two views of B items, a function of (seed, i) alone.

  Every epoch draws new views of an item; with `views_frozen` all see those of the first. ways:
  devices; where B does not divide over them, empty pairs are put behind that count nothing.
  """

  def __init__(self, reader, texts, cfg, ways=1):
    self.reader, self.texts, self.cfg = reader, texts, cfg
    self.size = cfg.scft.batch
    if len(texts) < self.size:
      raise ConfigError(f'scft.batch={self.size} of {len(texts)} items: an item would stand beside '
                        'itself as a negative; lower it')
    self.steps = len(texts) // self.size  # a batch holds an item once
    self.ways = math.lcm(ways, cfg.scft.parts)
    if cfg.defects.local_negatives and self.size % ways:
      raise ConfigError(f'scft.batch={self.size} does not divide over {ways} devices, which '
                        'defects.local_negatives asks for; set it to a multiple of them')

  def __len__(self):
    return 10**9

  def __getitem__(self, i):
    """-> tokens, mask (B or more, 2, S) int32"""
    epoch, step = divmod(i, self.steps)
    order = np.random.default_rng((self.cfg.seed, epoch)).permutation(len(self.texts))
    items = order[step * self.size:(step + 1) * self.size]
    drawn = 0 if self.cfg.defects.views_frozen else epoch
    rows = self.reader.ids([v for item in items for v in prompts.views(
        self.texts[item], self.cfg.scft.ratio, self.cfg.seed, drawn, int(item),
        self.cfg.defects.lone_attribute_lost)])
    tokens, mask = text_embedding.padded(rows, text_embedding.rung(max(map(len, rows)), 2))
    return pad_batch({'tokens': tokens.reshape(self.size, 2, -1),
                   'mask': mask.reshape(self.size, 2, -1)}, self.ways)


def objective(reader, cfg, ways=1, parts=0):
  """The loss that `fit` wants. ways: devices, each of which keeps to itself with local negatives.

  parts: in which a batch goes through, 0 for those of the config.
  """
  parts = parts or cfg.scft.parts

  def encode(train, frozen, batch):
    flat = {k: v.reshape(-1, v.shape[-1]) for k, v in batch.items()}
    z = reader.run({'params': frozen, 'lora': train['lora']}, flat['tokens'], flat['mask'])
    return z.reshape(-1, 2, z.shape[-1])

  judge = functools.partial(judged, cfg, ways)
  if parts > 1:
    whole = contrastive.cached(encode, judge, parts)
    return lambda train, frozen, batch, key: (whole(train, frozen, batch), {})
  return lambda train, frozen, batch, key: (judge(train, encode(train, frozen, batch)), {})


def judged(cfg, ways, train, z):
  """The contrastive loss of vectors of pairs, the first scft.batch of them. z: (B, 2, d) -> ()"""
  tau = train.get('tau', cfg.scft.tau)
  if cfg.defects.local_negatives:
    parts = z.reshape(ways, -1, *z.shape[1:])
    return jax.vmap(lambda p: contrastive.loss(p[:, 0], p[:, 1], tau, cfg.scft.loss))(parts).mean()
  z = shard(z, None, None, None)  # every device meets the vectors of all
  return contrastive.loss(z[:, 0], z[:, 1], tau, cfg.scft.loss,
                          jnp.arange(len(z)) < cfg.scft.batch)
