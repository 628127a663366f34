"""The recommender over ids that stands beside the tags: a SASRec of the same training part."""
import pathlib
from typing import Any

from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.dataset import Dataset
from recjax.errors import ConfigError
from recjax.evaluation import ranking
from recjax.methods.betag import base_tags
from recjax.training import auxiliary_recommender, sequential
from recjax.training.workdir import Workdir


def check(cfg: ConfigDict) -> None:
  """Raises ConfigError for a source that is no run. cfg: the run's config."""
  source = cfg.sasrec.source
  if source not in ('train', 'none') and not run_files.is_config(
      pathlib.Path(source) / 'config.json'):
    raise ConfigError(f'sasrec.source={source!r} is no folder of a run; give that of a run of the '
                      "method 'sequential', 'train' or 'none'")


def make(cfg: ConfigDict, work: Workdir, dataset: Dataset) -> pathlib.Path | None:
  """The folder of its stage, None where the config wants none or nobody is held out to validate.

  cfg: the run's config. work: the Workdir. dataset: the data set.
  """
  source = cfg.sasrec.source
  if source == 'none':
    return None
  if source == 'train' and base_tags.split_of(dataset).valid is None:
    work.log('row sasrec is left out: nobody is held out to choose its epoch by')
    return None
  group = cfg.sasrec if source == 'train' else {'source': source}
  return work.stage('sasrec', stage, ConfigDict({'sasrec': group, 'seed': cfg.seed}), dataset)


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """Trains it, or checks and takes over a trained one. -> counts

  work: the Workdir. cfg: the group `sasrec` and the seed. dataset: the data set.
  """
  if cfg.sasrec.source != 'train':
    return auxiliary_recommender.adopt(work, cfg.sasrec.source, dataset, 'sasrec.source',
                                       "'train' or 'none'")
  settings, split = (auxiliary_recommender.settings(cfg.sasrec, cfg.seed),
                     base_tags.split_of(dataset))
  n = len(dataset.catalog)
  model = sequential.model_config(settings, n)
  validate = ranking.validator(lambda params: sequential.scorer(model, params), split.valid, n, 1,
                               settings.train.valid_users)
  return auxiliary_recommender.train(work, settings, n, split, validate)
