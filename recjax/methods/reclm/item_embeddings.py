"""Item vectors of RecLM-ret, and RecLM-token's semantic IDs made of them by residual k-means."""
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.errors import ConfigError, DataError
from recjax.models import semantic_ids as tables
from recjax.training import sequential, text_embedding
from recjax.training.workdir import Workdir


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides the codes. cfg: the run's config."""
  return ConfigDict({k: cfg[k] for k in ('semantic_ids', 'ret', 'llm', 'seed')})


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, llm_dir: Path,
          teacher_dir: Path) -> dict:
  """Writes codes.npy: (N, levels + 1) int32, unique rows. work: of the stage. cfg: as `settings`.
  dataset: of the run. llm_dir, teacher_dir: of the stages before. -> counts"""
  vectors = item_vectors(work, cfg, teacher_dir, dataset, llm_dir)
  fitted = tables.residual_kmeans(vectors, cfg.semantic_ids.levels, cfg.semantic_ids.size, cfg.seed)
  codes = np.asarray(fitted[0] if isinstance(fitted, tuple) else fitted)
  table = tables.with_suffix(codes, cfg.semantic_ids.size)
  np.save(work.folder / 'codes.npy', np.asarray(table, np.int32))
  num_alike = len(codes) - len(np.unique(codes, axis=0))
  return {'items': len(codes), 'levels': table.shape[1], 'alike_before_the_last_level': num_alike}


def item_vectors(work: Workdir, cfg: ConfigDict, teacher_dir: Path, dataset: Dataset,
                 llm_dir: Path) -> Float[np.ndarray, 'N E']:
  """Item vectors that RecLM-ret begins from.

  work: of the stage. cfg: as `settings`. teacher_dir, llm_dir: of the stages before. dataset: of
  the run.

  ret.vectors: 'teacher' (its item table), 'text' (the LLM's mean state over title and description),
  or a .npy file in the order of the items. Raises ConfigError or DataError where there are none.
  """
  source, num_items = cfg.ret.vectors, len(dataset.catalog)
  if source == 'teacher':
    if not (teacher_dir / 'model.npz').exists():
      raise ConfigError("ret.vectors='teacher' needs a teacher in process; choose 'text' or a .npy")
    return np.asarray(
      sequential.load(teacher_dir / 'model.npz')['items'][1 : num_items + 1], np.float32)
  if source == 'text':
    columns = dataset.catalog.columns
    descriptions = columns.get('description') or [''] * num_items
    texts = [
      f'{title}\n{description or ""}'.strip()
      for title, description in zip(columns['title'], descriptions)]
    encoder = text_embedding.load(llm_dir, cfg.llm, work.mesh, 'avg', cfg.ret.tokens)
    return text_embedding.embed_kept(work, encoder, texts, 'embedding')[0]
  try:
    vectors = np.load(source, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ConfigError(
      f"ret.vectors={source!r} is no readable .npy file ({error}); choose 'teacher', "
      "'text' or a file") from error
  if vectors.ndim != 2 or len(vectors) != num_items or not np.isfinite(vectors).all():
    raise DataError(
      f'{source} has shape {vectors.shape}; it needs {num_items:,} rows of finite numbers, one an '
      'item in their order')
  return vectors.astype(np.float32)
