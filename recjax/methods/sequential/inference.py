"""Recommendations out of a trained run, for histories of anybody."""
import os

import numpy as np

from recjax.data import array_record
from recjax.data.loading import load_unchanged
from recjax.errors import ConfigError
from recjax.evaluation import ranking
from recjax.evaluation.recommender import CatalogRecommender
from recjax.methods.sequential import train
from recjax.run_files import read_json
from recjax.training import sequential
from recjax.training.workdir import find_stage, saved_config


def recommender(workdir: str | os.PathLike, data: str | None = None) -> CatalogRecommender:
  """The method's face: the best seed's model on any history.

  workdir: the run's folder. -> recommend, as `ranking.recommender` makes it. Raises ConfigError for
  `data`, a later data set with items that the run was not trained on
  """
  if data:
    raise ConfigError(f'{workdir} knows items by their numbers alone, so it can say nothing of new '
                      'ones: train it again on later data, or ask a run of a method that reads '
                      'texts: betag, bigrec, llmemb, reclm, etegrec')
  config = saved_config(workdir)
  trained = find_stage(workdir, 'train')
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  streamed = array_record.is_record_folder(config.data)
  load = array_record.load_unchanged if streamed else load_unchanged
  dataset = load(config, results['data_fingerprint'], workdir)
  best = int(np.argmax(read_json(trained / 'valid.json')['NDCG@10']))
  model = sequential.model_config(config, len(dataset.catalog))
  score, before = (
      sequential.scorer(model, sequential.load(trained / name, best))
      if (trained / name).exists() else None for name in ('model.npz', train.BEFORE_REFIT))
  return ranking.recommender(score, dataset.catalog,
                             config.loss.kind in sequential.SOFTMAX_LOSSES, before)
