"""Recommendations out of a trained run, for histories of anybody."""
import pathlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.dataset import Dataset
from recjax.data.formats import etegrec as files
from recjax.data.loading import load_unchanged
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation.recommender import CatalogRecommender
from recjax.methods.etegrec import beam_ranking, interests, train, update
from recjax.models import semantic_id_t5
from recjax.run_files import read_json
from recjax.training import cost_model
from recjax.training.workdir import Workdir, find_stage, saved_config


def open_run(workdir: Path) -> tuple[ConfigDict, Dataset, semantic_id_t5.Config, PyTree]:
  """workdir: of the run. -> the run's config, its data set, the recommender's config, parameters of
  the best seed"""
  config = saved_config(workdir)
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  dataset = load_unchanged(config.data, results['data_fingerprint'], workdir)
  model_dir = model_stage(workdir)
  params = train.load_params(
    model_dir, int(np.argmax(train.validation_scores(model_dir)['NDCG@10'])))
  vector_width = params['rec'].get('dec_adapter', {'bias': np.zeros(1)})['bias'].shape[0]
  text_width = params['rec'].get('interest', {'kernel': np.zeros((1, 1))})['kernel'].shape[0]
  cfg = train.model_config(
    config, params['table'].shape[1], config.semantic_ids.size, vector_width, text_width)
  return config, dataset, cfg, params


def model_stage(workdir: Path) -> pathlib.Path:
  """The folder of the last training: finetuned where that was done. workdir: of the run."""
  try:
    return find_stage(workdir, 'finetune')
  except WorkdirError:
    return find_stage(workdir, 'train')


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
  return CatalogRecommender(recommend, dataset.catalog)


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


def convert(workdir: Path, kind: str, out: Path) -> None:
  """Writes what was trained.

  workdir: of the run. kind: 'npz', all parameters; 'index', the items' codes as index JSON. out:
  the new file. Raises ConfigError for other kinds, or a file that is there.
  """
  if kind not in ('npz', 'index'):
    raise ConfigError(f'--to={kind} is unknown for this method; npz writes all parameters, index '
                      'the codes of all items as JSON')
  run_files.absent(out, '--out')
  _, dataset, _, params = open_run(workdir)
  with run_files.new_file(out, '--out') as path:
    if kind == 'index':
      files.write_index(path, np.asarray(params['table'])[1:], dataset.catalog.ids)
    else:
      shutil.copyfile(model_stage(workdir) / 'model.npz', path)


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, str]:
  """What a run would take, before it runs: of the recommender's side. cfg, dataset: of the run.
  -> {name: text}"""
  step, steps, bins = train.trace_step(cfg, dataset)
  model, num_levels = cfg.model, train.num_levels(cfg)
  positions_read = sum(one_bin.history.size for one_bin in bins) * num_levels
  num_targets = sum(int((one_bin.target > 0).sum()) for one_bin in bins)
  # A beam keeps its own codes, a request what it has read, once for every decoder layer.
  cache_bytes = (
    model.decoder_layers
    * 2
    * model.heads
    * model.head_dim
    * jax.numpy.dtype(model.dtype).itemsize
    * (cfg.decode.batch * num_levels * (cfg.decode.beams + model.max_history)))
  return {
    'variant': cfg.variant,
    'codes': f'{num_levels} levels of {cfg.semantic_ids.size}, by {cfg.semantic_ids.kind}',
    **cost_model.traced_lines(
      step, steps, positions_read, cfg.train.epochs, cfg.seeds, jax.device_count(), cache_bytes,
      unit=f'code positions read for {num_targets:,} targets')}
