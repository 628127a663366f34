"""Recommendations out of a trained run, for histories of anybody."""
import pathlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.data.loading import load_unchanged
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError
from recjax.evaluation.recommender import CatalogRecommender
from recjax.methods.etegrec import beam_ranking, interests, train, update
from recjax.models import semantic_id_t5
from recjax.run_files import read_json
from recjax.training import continuation
from recjax.training.workdir import Workdir, find_stage, saved_config


def open_run(workdir: Path) -> tuple[ConfigDict, Dataset, semantic_id_t5.Config, PyTree]:
  """workdir: of the run. -> the run's config, its data set, the recommender's config, parameters of
  the best seed"""
  config = saved_config(workdir)
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  dataset = load_unchanged(config, results['data_fingerprint'], workdir)
  model_dir = model_stage(workdir)
  params = train.load_params(
    model_dir, int(np.argmax(train.validation_scores(model_dir)['NDCG@10'])))
  vector_width = params['rec'].get('dec_adapter', {'bias': np.zeros(1)})['bias'].shape[0]
  text_width = params['rec'].get('interest', {'kernel': np.zeros((1, 1))})['kernel'].shape[0]
  cfg = train.model_config(
    config, params['table'].shape[1], config.semantic_ids.size, vector_width, text_width)
  return config, dataset, cfg, params


def model_stage(workdir: Path) -> pathlib.Path:
  """The folder of the last training: tuned or finetuned where that was done. workdir: of the run.
  """
  return continuation.last_stage(workdir, saved_config(workdir))


def recommender(workdir: Path, data: str | None = None) -> CatalogRecommender:
  """The trained method's face.

  workdir: of the run. data: a later data set; its new items get IDs where texts made the run's.
  -> Recommender, whose scores are log-probabilities of IDs. At most k or `decode.beams` items are
  searched, whichever is more. It raises DataError for an unknown id or an empty history.
  """
  config, dataset, cfg, params = open_run(workdir)
  if data:
    dataset, params['table'] = update.extend_table(workdir, config, dataset, data, params)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  encode_interests = interest_encoder(config, dataset, mesh) if config.fusion != 'none' else None
  rec, table = jax.tree.map(jax.numpy.asarray, (params['rec'], params['table']))

  def recommend(item_rows: Sequence, k: int, exclude_seen: bool, allowed_mask: np.ndarray | None
               ) -> tuple:
    empty = [i for i, h in enumerate(item_rows) if not len(h)]
    if empty:
      raise DataError(f'history {empty[0]} is empty; this method continues at least one item')
    decode = ConfigDict({'beams': max(k, config.decode.beams), 'batch': config.decode.batch})
    with jax.set_mesh(mesh):
      items, scores = beam_ranking.rank_items(
          cfg, rec, table, item_rows, config.model.max_history, decode,
          encode_interests(item_rows) if encode_interests else None, exclude_seen, allowed_mask)
    return items[:, :k], scores[:, :k]
  return CatalogRecommender(recommend, dataset.catalog, list_size=config.decode.beams)


def interest_encoder(config: ConfigDict, dataset: Dataset, mesh: jax.sharding.Mesh) -> Callable:
  """Interests of new histories, from the local provider: files and a service's answers know those
  of the data alone.

  config, dataset: of the run. mesh: the devices. -> as `interests.history_encoder`. Raises
  ConfigError where the source is gone.
  """
  from rich.console import Console
  source = config.interests.source
  if source not in ('local', 'api') and not pathlib.Path(source).exists():
    raise ConfigError(f'interests.source={source!r} is no longer there')
  return interests.history_encoder(
    Workdir(pathlib.Path('.'), Console(quiet=True), mesh), config.interests, dataset)
