"""Item vectors out of the encoder, shard by shard, and their principal components (llmemb.md 5)."""
import hashlib
import io
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.formats import llmemb as files
from recjax.distributed.multihost import put_global
from recjax.distributed.sharding import shardings
from recjax.errors import DataError
from recjax.file_io import write_atomic, write_json
from recjax.methods.llmemb import prompts
from recjax.models import huggingface, llm
from recjax.retrieval import pca
from recjax.training import sharded_stage, text_embedding

TABLE, ABOUT = 'table.npy', 'table.json'


def settings(cfg, source):
  """What of the config decides the vectors."""
  pool = {'last': 'last', 'text': cfg.text.pool}.get(source, cfg.scft.pool)
  return ConfigDict({'llm': cfg.llm, 'pool': pool, 'max_len': cfg.scft.max_len,
                     'export': cfg.export})


def stage(work, cfg, texts, folder, tuned):
  """Embeds the prompts of a finished stage, as `write`. -> counts"""
  return write(work, cfg, prompts.read(texts), folder, tuned)


def write(work, cfg, texts, folder, tuned):
  """Writes one row a text into shards, which are made once, whoever makes them.

  tuned: the SCFT stage, or None for the encoder as it is. -> counts
  """
  more = {}
  if tuned is not None:
    shape = huggingface.adapter_config(tuned, huggingface.read_config(folder))
    more = dict(lora_rank=shape.lora_rank, lora_alpha=shape.lora_alpha,
                lora_targets=shape.lora_targets)
  reader = text_embedding.load(folder, cfg.llm, work.mesh, cfg.pool, cfg.max_len, **more)
  if tuned is not None:
    adapter = huggingface.load_adapter(tuned, shape)
    reader.variables['lora'] = jax.tree.map(
        put_global, adapter, shardings(adapter, llm.RULES, work.mesh))
  size = cfg.export.shard
  some = [texts[at:at + size] for at in range(0, len(texts), size)]
  notes = [work.folder / f'items-{n:05d}-of-{len(some):05d}.json' for n in range(len(some))]

  def make(n, advance):
    z, info = text_embedding.embed(reader, some[n], work.mesh, cfg.export.budget, cfg.export.rungs,
                            advance)
    write_array(notes[n].with_suffix('.npy'), z)
    write_json(notes[n], info)
  sharded_stage.fill(work, 'embedding', notes, list(map(len, some)), make)
  if not work.first:
    return {}
  infos = [run_files.need_json(note) for note in notes]
  total = sum(i['tokens'] for i in infos)
  padding = 1 - total / sum(i['tokens'] / (1 - i['padding']) for i in infos)
  about, model = dict(reader.about), pathlib.Path(folder)
  if model.is_relative_to(work.path):  # a run's folder may move
    about['model'] = model.relative_to(work.path).as_posix()
  write_json(work.folder / ABOUT, {
      'num_items': len(texts), 'dim': reader.width, 'dtype': 'float32', 'tuned': tuned is not None,
      'prompts_sha256': hashlib.sha256('\0'.join(texts).encode()).hexdigest(), **about})
  return {'items': len(texts), 'dim': reader.width, 'tokens': total, 'padding': round(padding, 4),
          'cut_texts': sum(i['cut'] for i in infos)}


def write_array(path, x):
  """Writes a plain array, whole or not at all."""
  held = io.BytesIO()
  np.save(held, np.asarray(x, np.float32), allow_pickle=False)
  write_atomic(path, held.getvalue())


def read_shards(folder):
  """All rows of an export in item order. -> (N, d) float32. Raises DataError for missing rows."""
  about = run_files.need_json(folder / ABOUT)
  parts = [run_files.read_arrays(p) for p in sorted(folder.glob('items-*.npy'))]
  table = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
  if len(table) != about['num_items']:
    raise DataError(f'{folder} holds {len(table)} rows of {about["num_items"]} items; delete it and'
                    ' run again')
  return table


def reduce(work, cfg, raw):
  """Principal components of an export. -> counts"""
  return write_reduced(work, read_shards(raw), cfg.dim)


def write_reduced(work, table, dim):
  """Writes the first `dim` components of every item, by falling variance."""
  found = pca.fit(table, dim)
  write_array(work.folder / TABLE, found(table))
  with open(work.folder / 'pca.npz', 'wb') as f:
    np.savez(f, mean=found.mean, components=found.components, variance=found.variance)
  total = float(np.var(table, 0, ddof=1).sum())
  kept = float(np.asarray(found.variance).sum()) / max(total, 1e-30)
  write_json(work.folder / ABOUT, {'num_items': len(table), 'dim': dim, 'dtype': 'float32',
                                   'of': table.shape[1], 'variance_kept': round(kept, 4)})
  return {'items': len(table), 'from': table.shape[1], 'to': dim, 'variance_kept': round(kept, 4)}


def file_settings(cfg):
  """The file of item vectors and what is made of it."""
  return ConfigDict({'file': cfg.export.file, 'dim': cfg.pca.dim})


def reduce_file(work, cfg, texts):
  """The same from a file of item vectors, .npy or a published pickle. -> counts"""
  return write_reduced(work, files.read_item_vectors(cfg.file, len(prompts.read(texts))), cfg.dim)


def read(folder):
  """The reduced table of a finished stage. -> (N, k) float32"""
  return run_files.read_arrays(folder / TABLE)
