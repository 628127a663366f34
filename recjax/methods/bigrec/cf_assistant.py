"""The recommender without text that BIGRec is pulled by and D3 is mixed with."""
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.splits import Split
from recjax.errors import DataError
from recjax.evaluation import ranking
from recjax.file_io import write_json
from recjax.methods.bigrec.instruction_data import Data
from recjax.protocols import ScoreFn
from recjax.run_files import read_json
from recjax.training import auxiliary_recommender, sequential
from recjax.training.workdir import Workdir


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides the assistant. cfg: the run's config."""
  if cfg.assist.source == 'train':
    return ConfigDict({k: cfg[k] for k in ('assist', 'samples', 'seed')})
  return ConfigDict({'assist': {'source': cfg.assist.source}})


def stage(work: Workdir, cfg: ConfigDict, data: Data) -> dict[str, Any]:
  """Trains the assistant on what training may look at, or checks and links a trained one.

  work: the Workdir. cfg: the run's config. data: the Data.
  """
  source = cfg.assist.source
  if source == 'train':
    assistant_config, n = auxiliary_recommender.settings(cfg.assist, cfg.seed), len(data.catalog)
    model = sequential.model_config(assistant_config, n)
    validate = ranking.validator(
        lambda params: sequential.scorer(model, params), data.cases.valid, n, 1,
        assistant_config.train.valid_users)
    split = Split(data.cases.known, data.cases.valid, data.cases.test, data.cases.protocol)
    return auxiliary_recommender.train(work, assistant_config, n, split, validate)
  if source.endswith('.npz'):
    read_scores(source, data)
    write_json(work.folder / 'scores.json', {'scores': str(pathlib.Path(source).resolve())})
    return {'scores': source}
  return auxiliary_recommender.adopt(work, source, data, 'assist.source',
                         "a file of scores ending in .npz, or 'train'")


def scorer(made: pathlib.Path, data: Data) -> ScoreFn | None:
  """The assistant's scores of all items. -> score function, as `evaluation.ranking` wants it

  Scores of a file know the held-out cases alone: they are looked up by history. made: folder of the
  assistant. data: the Data.
  """
  saved = read_json(made / 'scores.json')
  if saved:
    return looked_up(read_scores(saved['scores'], data), data)
  return auxiliary_recommender.scorer(made, len(data.catalog))


def read_scores(path: str | os.PathLike, data: Data) -> dict[str, Float[np.ndarray, 'n N']]:
  """Scores of another program: an .npz with item_ids (N,), valid (n, N) and test (n, N).

  Columns may stand in any order; rows are in the order of the held-out cases. path: of the file.
  data: the Data. -> {part: (n, N)} by item index. Raises DataError naming both shapes, or the ids
  that differ.
  """
  try:
    with np.load(path, allow_pickle=False) as arrays:
      saved = {k: arrays[k] for k in ('item_ids', 'valid', 'test')}
  except run_files.DAMAGE as error:
    raise DataError(f'{path} must hold the arrays item_ids, valid and test ({error})') from error
  ids = [str(i) for i in saved['item_ids']]
  if sorted(ids) != sorted(data.catalog.ids):
    odd = sorted(set(ids) ^ set(data.catalog.ids))
    raise DataError(f'{path}: item_ids has {len(ids)} ids, the catalog {len(data.catalog)}; '
                    f'differing or repeated, e.g. {", ".join(odd[:3])}')
  order = np.argsort([data.catalog.index(i) for i in ids])
  out = {}
  for part in ('valid', 'test'):
    want = (len(getattr(data.cases, part)), len(ids))
    if saved[part].shape != want:
      raise DataError(f'{path}: {part} has shape {saved[part].shape}, it must be {want}: one row a '
                      f'{part} case in their order, one column an item of item_ids')
    out[part] = saved[part][:, order].astype(np.float32)
  return out


def looked_up(scores: dict[str, Float[np.ndarray, 'n N']], data: Data) -> ScoreFn:
  """A score function over the held-out cases' rows, found by their histories.

  scores: of `read_scores`. data: the Data.
  """
  rows = {}
  for part, table in scores.items():
    cases = getattr(data.cases, part)
    rows |= {tuple(cases.history(i).tolist()): table[i] for i in range(len(cases))}

  def score(items: np.ndarray, offsets: np.ndarray) -> Array:
    try:
      return jnp.stack([rows[tuple(items[a:b].tolist())]
                        for a, b in zip(offsets[:-1], offsets[1:])])
    except KeyError as error:
      raise DataError('assist.source holds scores of the held-out cases alone; for other histories '
                      'give the folder of a trained sequential run') from error
  return score


def probabilities(score: ScoreFn | None, histories: list, seen: bool) -> Array | None:
  """p_TF:

  the softmax of the assistant's scores. histories: list of (n,) item arrays. seen: whether items of
  the history may not come. score: the assistant, or None. -> (B, N) float32
  """
  offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
  items = np.concatenate([np.asarray(h, np.int32) for h in histories])
  logits = jnp.asarray(score(items, offsets), jnp.float32)
  if seen:
    rows = np.repeat(np.arange(len(histories)), np.diff(offsets))
    logits = logits.at[rows, items - 1].set(-jnp.inf)
  return jax.nn.softmax(logits, -1)
