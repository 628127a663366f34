"""Item vectors that the tokenizer reads: of a SASRec, of a text encoder, or of a file."""
import pathlib

import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.data.dataset import item_texts
from recjax.errors import ConfigError, DataError
from recjax.evaluation import ranking
from recjax.models import semantic_ids
from recjax.training import auxiliary_recommender, sequential, text_embedding

SOURCES = ('train', 'text')


def settings(cfg):
  """What of the config decides the vectors."""
  if cfg.vectors.source == 'train':
    return ConfigDict({'vectors': cfg.vectors, 'seed': cfg.seed})
  return ConfigDict({'vectors': {k: cfg.vectors[k] for k in ('source', 'encoder', 'unit')}})


def stage(work, cfg, shop):
  """Writes vectors.npy, (N, d) float32, row i - 1 of item i. -> counts"""
  how, n, counts = cfg.vectors, len(shop.catalog), {}
  if how.source == 'text':
    found = from_text(work, item_texts(shop.catalog), how.encoder)
  elif how.source == 'train':
    given, split = (
      auxiliary_recommender.settings(how, cfg.seed),
      splits.leave_one_out(shop.interactions),
    )
    model = sequential.model_config(given, n)
    counts = auxiliary_recommender.train(work, given, n, split.train, ranking.validator(
        lambda p: sequential.scorer(model, p), split.valid, n, 1, given.train.valid_users))
    found = sequential.load(work.folder / 'model.npz')['items'][1:n + 1]
  elif how.source.endswith('.npy'):
    found = from_file(how.source, n)
  else:  # a finished run of the method 'sequential'
    counts = auxiliary_recommender.adopt(work, how.source, shop, 'vectors.source',
                             "a .npy file, 'train' or 'text'")
    found = sequential.load(work.folder / 'model.npz')['items'][1:n + 1]
  found = semantic_ids.check_vectors(found)
  if how.unit:  # losses of the tokenizer weigh alike whatever the vectors' scale
    np.savez(work.folder / 'scale.npz', mean=found.mean(0), std=max(float(found.std()), 1e-9))
    found = rescale(found, work.folder)
  np.save(work.folder / 'vectors.npy', found, allow_pickle=False)
  return {**counts, 'items': len(found), 'numbers': found.shape[1]}


def rescale(found, folder):
  """Vectors on the scale that a stage's folder holds. -> (N, d)"""
  kept = run_files.read_arrays(folder / 'scale.npz')
  return ((found - kept['mean']) / kept['std']).astype(np.float32)


def from_text(work, texts, folder):
  """Vectors of title, brand, categories and price, by a text encoder's folder. -> (N, d)"""
  if not folder:
    raise ConfigError("vectors.source='text' needs vectors.encoder, the folder of a text encoder")
  reader = text_embedding.load(folder, ConfigDict({'dtype': 'auto', 'remat': 'none'}), work.mesh)
  return text_embedding.embed_kept(work, reader, texts, 'embedding')[0]


def from_file(path, n):
  """A .npy file in the order of the items. -> (N, d). Raises DataError"""
  try:
    found = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f'{path} is no readable .npy file ({error})') from error
  if found.ndim != 2 or len(found) != n:
    raise DataError(f'{path} has shape {found.shape}; it needs {n:,} rows, one an item in their '
                    'order')
  return found


def has_recommender(folder):
  """Whether the vectors' folder holds the recommender that they came from."""
  return (pathlib.Path(folder) / 'model.npz').exists()


def read(folder):
  """-> (N, d) float32"""
  return run_files.read_arrays(folder / 'vectors.npy')
