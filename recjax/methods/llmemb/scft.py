"""Supervised contrastive fine-tuning: two views of an item meet, other items part.

Liu et al., AAAI 2025, arXiv 2409.19925.
"""
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from recjax.data.batches import pad_batch
from recjax.distributed.multihost import to_host
from recjax.distributed.sharding import shard
from recjax.errors import ConfigError
from recjax.file_io import write_json
from recjax.methods.llmemb import prompts
from recjax.models import huggingface, layers, llm, lora
from recjax.training import loop, text_embedding
from recjax.training.loop import Task, fit
from recjax.training.losses import contrastive
from recjax.training.workdir import Workdir

RELEASED_TAU = 3.0  # where the released code's learned temperature begins


def settings(cfg: ConfigDict, source: str) -> ConfigDict:
  """Everything in the config that decides this stage's result.

  source: as `variants.vector_source` names it. cfg: the run's config.
  """
  return ConfigDict(
    {
      'scft': cfg.scft, 'lora': cfg.lora, 'llm': cfg.llm, 'reproduce_bugs': cfg.reproduce_bugs,
      'pool': 'last' if source == 'last' else cfg.scft.pool, 'seed': cfg.seed})


def stage(work: Workdir, cfg: ConfigDict, prompts_dir: Path, llm_dir: Path) -> dict:
  """Trains the adapter into `work.folder`, in PEFT's format.

  cfg: as `settings`. prompts_dir: of the prompts. llm_dir: of the LLM. -> counts. Raises
  ConfigError for a model that is no decoder.
  """
  encoder = text_embedding.load(llm_dir, cfg.llm, work.mesh, cfg.pool, cfg.scft.max_len,
                                lora_rank=cfg.lora.rank, lora_alpha=float(cfg.lora.alpha))
  if encoder.about['kind'] != 'decoder':
    raise ConfigError(f'{llm_dir} is a {encoder.about["kind"]}; SCFT tunes decoder models. Use '
                      'variant=no_scft, or name it as text.weights with variant=text')
  prompts_dir = prompts.read(prompts_dir)
  batches = ViewBatches(encoder, prompts_dir, cfg, num_row_shards(work.mesh))
  def split(parts: int) -> Callable:  # pairs divide evenly
    num_parts = next(n for n in range(parts, cfg.scft.batch + 1) if cfg.scft.batch % n == 0)
    return make_loss(encoder, cfg, num_row_shards(work.mesh), num_parts)

  task = Task(
    init=functools.partial(init_params, encoder.model.cfg, cfg), batches=batches,
    loss=make_loss(encoder, cfg, num_row_shards(work.mesh)), frozen=encoder.variables['params'],
    split=split, parts=cfg.scft.parts, shape=(encoder.model.cfg, 0), rules=llm.RULES)
  fit_settings = dataclasses.replace(
    loop.FitSettings.of(cfg.scft.optim), steps=cfg.scft.steps, seed=cfg.seed)
  trained = to_host(fit(task, fit_settings, work))
  # A tiny model of this run is named relative to here: the run's folder may be moved.
  is_inside = llm_dir.resolve().is_relative_to(work.path.resolve())
  name = os.path.relpath(llm_dir, work.folder) if is_inside else str(llm_dir)
  huggingface.save_adapter(trained['lora'], encoder.model.cfg, work.folder, base=name)
  tau = float(trained.get('tau', cfg.scft.tau))
  write_json(work.folder / 'scft.json', {'tau': tau, 'loss': cfg.scft.loss, 'pool': cfg.pool})
  return {'steps': cfg.scft.steps, 'trained': layers.count_params(trained['lora']),
          'tau': round(tau, 4),
          'epochs': round(cfg.scft.steps * batches.size / len(prompts_dir), 1)}


def num_row_shards(mesh: jax.sharding.Mesh) -> int:
  """Over how many devices rows are spread. mesh: the devices."""
  return max(1, mesh.size // mesh.shape.get('model', 1))


def init_params(shape: llm.Config, cfg: ConfigDict, key: Key[Array, '']) -> PyTree:
  """What is trained: the adapter, and as released the temperature. shape: of the LLM. cfg: as
  `settings`. key: of the draws."""
  train = {'lora': lora.init_lora(shape, key)}
  return train | ({'tau': jnp.float32(RELEASED_TAU)} if cfg.reproduce_bugs.learned_tau else {})


class ViewBatches:
  """batches[i] holds two views of B items, a function of (seed, i) alone.

  Every epoch draws new views of an item; with `views_frozen` all see those of the first. encoder:
  whose tokenizer writes them. texts: prompts by item. cfg: as `settings`. num_shards: devices;
  where B does not divide over them, empty pairs are put behind that count nothing.
  """

  def __init__(self, encoder: text_embedding.Encoder, texts: Sequence[str], cfg: ConfigDict,
               num_shards: int = 1):
    self.reader, self.texts, self.cfg = encoder, texts, cfg
    self.size = cfg.scft.batch
    if len(texts) < self.size:
      raise ConfigError(f'scft.batch={self.size} of {len(texts)} items: an item would stand beside '
                        'itself as a negative; lower it')
    self.steps = len(texts) // self.size  # a batch holds an item once
    self.ways = math.lcm(num_shards, cfg.scft.parts)
    if cfg.reproduce_bugs.local_negatives and self.size % num_shards:
      raise ConfigError(f'scft.batch={self.size} does not divide over {num_shards} devices, which '
                        'reproduce_bugs.local_negatives asks for; set it to a multiple of them')

  def __len__(self) -> int:
    return 10**9

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    """-> tokens, mask (B or more, 2, S) int32"""
    epoch, step = divmod(i, self.steps)
    order = np.random.default_rng((self.cfg.seed, epoch)).permutation(len(self.texts))
    items = order[step * self.size:(step + 1) * self.size]
    view_epoch = 0 if self.cfg.reproduce_bugs.views_frozen else epoch
    rows = self.reader.ids([v for item in items for v in prompts.views(
        self.texts[item], self.cfg.scft.ratio, self.cfg.seed, view_epoch, int(item),
        self.cfg.reproduce_bugs.lone_attribute_lost)])
    tokens, mask = text_embedding.padded(rows, text_embedding.rung(max(map(len, rows)), 2))
    return pad_batch({'tokens': tokens.reshape(self.size, 2, -1),
                   'mask': mask.reshape(self.size, 2, -1)}, self.ways)


def make_loss(encoder: text_embedding.Encoder, cfg: ConfigDict, num_shards: int = 1,
              parts: int = 0) -> Callable:
  """The loss that `fit` wants.

  encoder: of the vectors. cfg: as `settings`. num_shards: devices, each of which keeps to itself
  with local negatives. parts: in which a batch goes through, 0 for those of the config.
  """
  parts = parts or cfg.scft.parts

  def encode(train: PyTree, frozen: PyTree, batch: dict[str, Array]) -> Array:
    rows = {key_name: array.reshape(-1, array.shape[-1]) for key_name, array in batch.items()}
    vectors = encoder.run({'params': frozen, 'lora': train['lora']}, rows['tokens'], rows['mask'])
    return vectors.reshape(-1, 2, vectors.shape[-1])

  loss_of_vectors = functools.partial(pair_loss, cfg, num_shards)
  if parts > 1:
    cached_loss = contrastive.cached(encode, loss_of_vectors, parts)
    return lambda train, frozen, batch, key: (cached_loss(train, frozen, batch), {})
  return lambda train, frozen, batch, key: (
    loss_of_vectors(train, encode(train, frozen, batch)), {})


def pair_loss(cfg: ConfigDict, num_shards: int, train: PyTree,
              z: Float[Array, 'B 2 d']) -> Float[Array, '']:
  """The contrastive loss of vectors of pairs, the first scft.batch of them.

  num_shards: devices. cfg: as `settings`. train: what is trained, where the temperature may be. z:
  vectors of pairs.
  """
  tau = train.get('tau', cfg.scft.tau)
  if cfg.reproduce_bugs.local_negatives:
    parts = z.reshape(num_shards, -1, *z.shape[1:])
    return jax.vmap(lambda pairs: contrastive.loss(pairs[:, 0], pairs[:, 1], tau, cfg.scft.loss))(
      parts).mean()
  z = shard(z, None, None, None)  # every device meets the vectors of all
  return contrastive.loss(z[:, 0], z[:, 1], tau, cfg.scft.loss,
                          jnp.arange(len(z)) < cfg.scft.batch)
