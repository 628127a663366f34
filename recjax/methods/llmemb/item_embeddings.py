"""Item vectors out of the encoder, shard by shard, and their principal components."""
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.formats import llmemb as files
from recjax.distributed.multihost import put_global
from recjax.distributed.sharding import shardings
from recjax.errors import DataError
from recjax.file_io import write_arrays, write_json
from recjax.methods.llmemb import prompts
from recjax.models import huggingface, llm
from recjax.retrieval import pca
from recjax.training import sharded_stage, text_embedding
from recjax.training.workdir import Workdir

TABLE_FILE, ABOUT_FILE = 'table.npy', 'table.json'


def settings(cfg: ConfigDict, source: str) -> ConfigDict:
  """What of the config decides the vectors. source: as `variants.vector_source` names it. cfg: the
  run's config."""
  pool = {'last': 'last', 'text': cfg.text.pool}.get(source, cfg.scft.pool)
  return ConfigDict({'llm': cfg.llm, 'pool': pool, 'max_len': cfg.scft.max_len,
                     'export': cfg.export})


def stage(work: Workdir, cfg: ConfigDict, prompts_dir: Path, llm_dir: Path,
          scft_dir: Path | None) -> dict:
  """Embeds the prompts of a finished stage, as `write_shards`.

  work: of the stage. cfg: as `settings`. prompts_dir, llm_dir, scft_dir: of the stages before,
  scft_dir None for the LLM as it is. -> counts
  """
  return write_shards(work, cfg, prompts.read(prompts_dir), llm_dir, scft_dir)


def write_shards(work: Workdir, cfg: ConfigDict, texts: Sequence[str], llm_dir: Path,
                 scft_dir: Path | None) -> dict:
  """Writes one row a text into shards, which are made once, whoever makes them.

  texts: prompts by item. cfg: as `settings`. llm_dir: of the encoder. scft_dir: of the SCFT stage,
  or None for the encoder as it is. work: of the stage. -> counts
  """
  lora_shape = {}
  if scft_dir is not None:
    shape = huggingface.adapter_config(scft_dir, huggingface.read_config(llm_dir))
    lora_shape = dict(lora_rank=shape.lora_rank, lora_alpha=shape.lora_alpha,
                      lora_targets=shape.lora_targets)
  encoder = text_embedding.load(llm_dir, cfg.llm, work.mesh, cfg.pool, cfg.max_len, **lora_shape)
  if scft_dir is not None:
    adapter = huggingface.load_adapter(scft_dir, shape)
    encoder.variables['lora'] = jax.tree.map(
        put_global, adapter, shardings(adapter, llm.RULES, work.mesh))
  size = cfg.export.shard
  shards = [texts[start : start + size] for start in range(0, len(texts), size)]
  notes = [
    work.folder / f'items-{number:05d}-of-{len(shards):05d}.json' for number in range(len(shards))]

  def make(number: int, advance: Callable) -> Any:
    vectors, info = text_embedding.embed(
      encoder, shards[number], work.mesh, cfg.export.budget, cfg.export.rungs, advance)
    write_array(notes[number].with_suffix('.npy'), vectors)
    write_json(notes[number], info)
  sharded_stage.fill(work, 'embedding', notes, list(map(len, shards)), make)
  if not work.first:
    return {}
  infos = [run_files.need_json(note) for note in notes]
  total = sum(i['tokens'] for i in infos)
  padding = 1 - total / sum(i['tokens'] / (1 - i['padding']) for i in infos)
  about, model = dict(encoder.about), pathlib.Path(llm_dir)
  if model.is_relative_to(work.path):  # a run's folder may move
    about['model'] = model.relative_to(work.path).as_posix()
  write_json(
    work.folder / ABOUT_FILE,
    {
      'num_items': len(texts), 'dim': encoder.width, 'dtype': 'float32',
      'tuned': scft_dir is not None,
      'prompts_sha256': hashlib.sha256('\0'.join(texts).encode()).hexdigest(), **about})
  return {
    'items': len(texts), 'dim': encoder.width, 'tokens': total, 'padding': round(padding, 4),
    'cut_texts': sum(i['cut'] for i in infos)}


def write_array(path: Path, x: np.ndarray) -> None:
  """Writes a plain float32 array, whole or not at all. path: a .npy. x: the array."""
  write_arrays(path, np.asarray(x, np.float32))


def read_shards(folder: Path) -> Float[np.ndarray, 'N d']:
  """All rows of an export in item order. folder: of the stage. Raises DataError for missing rows.
  """
  about = run_files.need_json(folder / ABOUT_FILE)
  parts = [run_files.read_arrays(p) for p in sorted(folder.glob('items-*.npy'))]
  table = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
  if len(table) != about['num_items']:
    raise DataError(f'{folder} holds {len(table)} rows of {about["num_items"]} items; delete it and'
                    ' run again')
  return table


def reduce(work: Workdir, cfg: ConfigDict, export_dir: Path, old_dir: Path | None = None) -> dict:
  """Principal components of an export.

  cfg: the group pca. export_dir: of the export. work: of the stage. old_dir: this stage of the
  earlier run that this one goes on from, whose components are kept. -> counts
  """
  return write_reduced(work, read_shards(export_dir), cfg.dim, old_dir)


def read_components(folder: Path) -> pca.PCA:
  """The components that a finished stage has fitted. folder: of the stage."""
  arrays = run_files.read_arrays(folder / 'pca.npz')
  return pca.PCA(*(arrays[name] for name in pca.PCA._fields))


def write_reduced(work: Workdir, table: Float[np.ndarray, 'N d'], dim: int,
                  old_dir: Path | None = None) -> dict:
  """Writes the first `dim` components of every item, by falling variance.

  table: item vectors. work: of the stage. old_dir: whose components are kept, None to fit them.
  -> counts
  """
  components = read_components(old_dir) if old_dir else pca.fit(table, dim)
  write_array(work.folder / TABLE_FILE, components(table))
  write_arrays(work.folder / 'pca.npz', dict(
    mean=components.mean, components=components.components, variance=components.variance))
  total = float(np.var(table, 0, ddof=1).sum())
  variance_kept = float(np.asarray(components.variance).sum()) / max(total, 1e-30)
  write_json(
    work.folder / ABOUT_FILE,
    {
      'num_items': len(table), 'dim': dim, 'dtype': 'float32', 'of': table.shape[1],
      'variance_kept': round(variance_kept, 4)})
  return {
    'items': len(table), 'from': table.shape[1], 'to': dim, 'variance_kept': round(variance_kept, 4)
  }


def file_settings(cfg: ConfigDict) -> ConfigDict:
  """The file of item vectors and what is made of it. cfg: the run's config."""
  return ConfigDict({'file': cfg.export.file, 'dim': cfg.pca.dim})


def reduce_file(work: Workdir, cfg: ConfigDict, prompts_dir: Path, old_dir: Path | None = None
                ) -> dict:
  """The same from a file of item vectors, .npy or a published pickle. work: of the stage. cfg: as
  `file_settings`. prompts_dir: of the stage before. old_dir: as of `reduce`. -> counts"""
  vectors = files.read_item_vectors(cfg.file, len(prompts.read(prompts_dir)))
  return write_reduced(work, vectors, cfg.dim, old_dir)


def read(folder: Path) -> Float[np.ndarray, 'N k']:
  """The reduced table of a finished stage. folder: of the stage."""
  return run_files.read_arrays(folder / TABLE_FILE)
