"""Semantic IDs of RecLM-token: residual k-means over item vectors, told apart by a last level."""

import numpy as np
from ml_collections import ConfigDict

from recjax.errors import ConfigError, DataError
from recjax.models import semantic_ids as tables
from recjax.training import sequential, text_embedding


def settings(cfg):
  """Everything in the config that decides the codes."""
  return ConfigDict({k: cfg[k] for k in ('semantic_ids', 'ret', 'llm', 'seed')})


def stage(work, cfg, shop, folder, helper):
  """Writes codes.npy: (N, levels + 1) int32, unique rows."""
  vectors = item_vectors(work, cfg, helper, shop, folder)
  made = tables.residual(vectors, cfg.semantic_ids.levels, cfg.semantic_ids.size, cfg.seed)
  plain = np.asarray(made[0] if isinstance(made, tuple) else made)
  table = tables.with_suffix(plain, cfg.semantic_ids.size)
  np.save(work.folder / 'codes.npy', np.asarray(table, np.int32))
  alike = len(plain) - len(np.unique(plain, axis=0))
  return {'items': len(plain), 'levels': table.shape[1], 'alike_before_the_last_level': alike}


def item_vectors(work, cfg, made, shop, folder):
  """Item vectors that RecLM-ret begins from. -> (N, E) float32

  ret.vectors: 'teacher' (its item table), 'text' (the LLM's mean state over title and description),
  or a .npy file in the order of the items.
  """
  how, n = cfg.ret.vectors, len(shop.catalog)
  if how == 'teacher':
    if not (made / 'model.npz').exists():
      raise ConfigError("ret.vectors='teacher' needs a teacher in process; choose 'text' or a .npy")
    return np.asarray(sequential.load(made / 'model.npz')['items'][1:n + 1], np.float32)
  if how == 'text':
    columns = shop.catalog.columns
    about = columns.get('description') or [''] * n
    texts = [f'{t}\n{d or ""}'.strip() for t, d in zip(columns['title'], about)]
    reader = text_embedding.load(folder, cfg.llm, work.mesh, 'avg', cfg.ret.tokens)
    return text_embedding.embed_kept(work, reader, texts, 'embedding')[0]
  try:
    found = np.load(how, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ConfigError(f"ret.vectors={how!r} is no readable .npy file ({error}); choose 'teacher', "
                      "'text' or a file") from error
  if found.ndim != 2 or len(found) != n or not np.isfinite(found).all():
    raise DataError(f'{how} has shape {found.shape}; it needs {n:,} rows of finite numbers, one an '
                    'item in their order')
  return found.astype(np.float32)
