"""The training stage: leave-one-out, the best epoch of each seed by validation NDCG@10."""
import functools
from typing import Any

from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Catalog, Dataset
from recjax.errors import DataError
from recjax.evaluation import ranking, sampled_ranking
from recjax.file_io import write_json
from recjax.models import layers
from recjax.training import continuation, sequential
from recjax.training.continuation import Start
from recjax.training.workdir import Workdir

MODEL = 'model.npz'
BEFORE_REFIT = 'before_refit.npz'  # the model that validation chose, of a run that trained anew


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the trained model. cfg: the run's config."""
  return ConfigDict({k: cfg[k] for k in ('model', 'loss', 'train', 'optim', 'seed', 'seeds')})


def open_start(cfg: ConfigDict, catalog: Catalog) -> Start | None:
  """The run that a config goes on from, None where it begins from nothing.

  cfg: the run's config. catalog: the items of its data. Raises what `continuation.open_start`
  does, and ConfigError for a model of another shape or another number of seeds.
  """
  start = continuation.open_start(cfg, catalog, (MODEL, BEFORE_REFIT))
  if start:
    continuation.same_settings(start, cfg, 'model', free=('dropout',))
    continuation.same_seeds(start, cfg)
  return start


def first_params(start: Start | None, seeds: int) -> tuple[PyTree, PyTree]:
  """What `sequential.fit` takes as `starts`: the model that validation chose, and the last one.

  The first has seen nothing that validation asks for now where the data were cut at a moment and
  that has moved on. start: the earlier run. seeds: of the new one.
  """
  if not start:
    return None, None
  last = start.folder / MODEL
  chosen = start.folder / BEFORE_REFIT
  chosen, last = (continuation.for_seeds(sequential.load(path), seeds)
                  for path in (chosen if chosen.exists() else last, last))
  return chosen, last


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset,
          start: Start | None = None) -> dict[str, Any]:
  """Trains all seeds and keeps the best epoch of each by validation NDCG@10.

  work: the Workdir. cfg: of `settings`. dataset: the data set. start: the run that it goes on from.
  """
  split = splits.make_split(dataset)
  if not len(split.valid):
    raise DataError(f'no user of {dataset.name} has 3 items, so nobody can be validated or tested')
  if start:
    continuation.keep_split_facts(work, start, dataset, split)
  n = len(dataset.catalog)
  model = sequential.model_config(cfg, n)
  validate = ranking.validator(lambda params: sequential.scorer(model, params), split.valid, n,
                            cfg.seeds, cfg.train.valid_users)
  best, scores, epochs = sequential.fit(
      work, cfg, n, split, validate,
      before_refit=functools.partial(sequential.save, work.folder / BEFORE_REFIT),
      starts=first_params(start, cfg.seeds))
  sequential.save(work.folder / MODEL, best)
  write_json(work.folder / 'valid.json', {
      'NDCG@10': [round(float(s), 6) for s in scores], 'epoch': epochs.tolist()})
  return {'parameters': f'{layers.count_params(best) // cfg.seeds:,}',
          'best_epochs': ', '.join(map(str, epochs)),
          'valid_NDCG@10': ', '.join(f'{s:.4f}' for s in scores)}


def check(cfg: ConfigDict, dataset: Dataset) -> None:
  """What can be known to be wrong before anything runs.

  cfg: the run's config. dataset: the data set. Raises ConfigError or DataError.
  """
  sequential.check(cfg, len(dataset.catalog))
  if sequential.model_config(cfg, len(dataset.catalog)).time == 'bias':
    splits.usable_times(dataset.interactions, dataset.name, sequential.WITHOUT_TIMES)
  splits.split_for_config(dataset, cfg.eval)
  ranking.protocol(len(dataset.catalog), seen_mask=cfg.eval.seen_mask)
  if cfg.eval.sampled:
    sampled_ranking.protocol(cfg.eval.sampled)
