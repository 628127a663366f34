"""Semantic IDs of RecLM-token: residual k-means over item vectors, told apart by a last level."""
import numpy as np
from ml_collections import ConfigDict

from recjax.methods.reclm import teacher
from recjax.models import semantic_ids as tables


def settings(cfg):
  """Everything in the config that decides the codes."""
  return ConfigDict({k: cfg[k] for k in ('token', 'ret', 'llm', 'seed')})


def stage(work, cfg, shop, folder, helper):
  """Writes codes.npy: (N, levels + 1) int32, unique rows."""
  vectors = teacher.item_vectors(work, cfg, helper, shop, folder)
  made = tables.residual_kmeans(vectors, cfg.token.levels, cfg.token.size, cfg.seed)
  plain = np.asarray(made[0] if isinstance(made, tuple) else made)
  table = tables.with_suffix(plain, cfg.token.size)
  np.save(work.folder / 'codes.npy', np.asarray(table, np.int32))
  alike = len(plain) - len(np.unique(plain, axis=0))
  return {'items': len(plain), 'levels': table.shape[1], 'alike_before_the_last_level': alike}
