"""Item vectors that the tokenizer reads: of a SASRec, of a text encoder, or of a file."""
import pathlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from recjax import base_config, run_files
from recjax.data import splits
from recjax.data.dataset import Dataset, item_texts
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation import ranking
from recjax.models import semantic_ids
from recjax.training import auxiliary_recommender, sequential, text_embedding
from recjax.training.continuation import Start
from recjax.training.workdir import Workdir, find_stage

SOURCES = ('train', 'text')  # besides a .npy file and the folder of a `sequential` run


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the vectors. cfg: the run's config."""
  if cfg.vectors.source == 'train':
    return ConfigDict({'vectors': cfg.vectors, 'seed': cfg.seed})
  return ConfigDict({'vectors': {k: cfg.vectors[k] for k in ('source', 'encoder', 'unit')}})


def kind_of_source(source: str) -> str:
  """'train', 'text', 'file' or 'run'. source: the setting `vectors.source`."""
  return source if source in SOURCES else 'file' if source.endswith('.npy') else 'run'


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, start: Start | None = None) -> dict:
  """Writes vectors.npy, (N, d) float32, row i - 1 of item i.

  cfg: as `settings`. work: of the stage. dataset: of the run. start: the earlier run that this one
  goes on from; its scale stays, and so do its vectors of texts. -> counts
  """
  source_cfg, num_items, counts = cfg.vectors, len(dataset.catalog), {}
  old_dir = find_stage(start.workdir, 'vectors') if start else None
  known = len(start.data.catalog) if start and source_cfg.source == 'text' else 0
  if source_cfg.source == 'text':
    texts = item_texts(dataset.catalog)[known:]
    vectors = from_text(work, texts, source_cfg.encoder) if texts else read(old_dir)[:0]
  elif source_cfg.source == 'train':
    recommender_cfg, split = (
      auxiliary_recommender.settings(source_cfg, cfg.seed),
      splits.make_split(dataset))
    model = sequential.model_config(recommender_cfg, num_items)
    counts = auxiliary_recommender.train(
      work, recommender_cfg, num_items, split,
      ranking.validator(
        lambda p: sequential.scorer(model, p), split.valid, num_items, 1,
        recommender_cfg.train.valid_users),
      sequential.load(old_dir / 'model.npz') if old_dir else None)
    vectors = sequential.load(work.folder / 'model.npz')['items'][1 : num_items + 1]
  elif source_cfg.source.endswith('.npy'):
    vectors = from_file(source_cfg.source, num_items)
  else:  # a finished run of the method 'sequential'
    counts = auxiliary_recommender.adopt(work, source_cfg.source, dataset, 'vectors.source',
                                         "a .npy file, 'train' or 'text'")
    vectors = sequential.load(work.folder / 'model.npz')['items'][1:num_items + 1]
  if len(vectors):
    vectors = semantic_ids.check_vectors(vectors)
  if source_cfg.unit:  # losses of the tokenizer weigh alike whatever the vectors' scale
    if old_dir:
      check_scale(old_dir)
      shutil.copy(old_dir / 'scale.npz', work.folder)
    else:
      np.savez(work.folder / 'scale.npz', mean=vectors.mean(0), std=max(float(vectors.std()), 1e-9))
    vectors = rescale(vectors, work.folder)
  if known:
    vectors = np.concatenate([read(old_dir), vectors])
  np.save(work.folder / 'vectors.npy', vectors, allow_pickle=False)
  return {**counts, 'items': len(vectors), 'numbers': vectors.shape[1]}


def check_scale(folder: Path) -> None:
  """Raises WorkdirError where a stage did not keep the scale of its vectors. folder: of the stage.
  """
  if not (folder / 'scale.npz').exists():
    raise WorkdirError(f'{folder} was made by an earlier version, which did not keep the scale of '
                       'its vectors; run its experiment again')


def rescale(vectors: Float[np.ndarray, 'N d'], folder: Path) -> Float[np.ndarray, 'N d']:
  """Vectors on the scale that a stage's folder holds. vectors: as they came."""
  scale = run_files.read_arrays(folder / 'scale.npz')
  return ((vectors - scale['mean']) / scale['std']).astype(np.float32)


def from_text(work: Workdir, texts: Sequence[str], folder: str) -> Float[np.ndarray, 'N d']:
  """Vectors of title, brand, categories and price. folder: of a text encoder. texts: by item. work:
  of the stage."""
  if not folder:
    raise ConfigError("vectors.source='text' needs vectors.encoder, the folder of a text encoder")
  encoder = text_embedding.load(folder, ConfigDict(base_config.llm('sample')), work.mesh)
  return text_embedding.embed_kept(work, encoder, texts, 'embedding')[0]


def from_file(path: str, num_items: int) -> np.ndarray:
  """A .npy file in the order of the items, (N, d).

  path: of the file. num_items: rows that it must have. Raises DataError for another shape.
  """
  try:
    vectors = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f'{path} is no readable .npy file ({error})') from error
  if vectors.ndim != 2 or len(vectors) != num_items:
    raise DataError(
      f'{path} has shape {vectors.shape}; it needs {num_items:,} rows, one an item in their order')
  return vectors


def has_recommender(folder: Path) -> bool:
  """Whether the vectors' folder holds the recommender that they came from."""
  return (pathlib.Path(folder) / 'model.npz').exists()


def read(folder: Path) -> Float[np.ndarray, 'N d']:
  """The item vectors of a finished stage. folder: of the stage."""
  return run_files.read_arrays(folder / 'vectors.npy')
