"""Recommendations out of a trained run, for histories of anybody."""
from pathlib import Path

import numpy as np

from recjax.data.loading import load_unchanged
from recjax.evaluation import ranking
from recjax.evaluation.recommender import CatalogRecommender
from recjax.methods.llmemb import update, variants
from recjax.run_files import read_json
from recjax.training import sequential
from recjax.training import workdir as workdir_lib
from recjax.training.workdir import find_stage


def recommender(workdir: Path, data: str | None = None) -> CatalogRecommender:
  """The method's face: the best seed's model on any history; no LLM runs.

  workdir: of the run. data: a later data set, whose new items the run's LLM reads once. ->
  recommend, as `ranking.recommender` makes it
  """
  config, rat_dir = workdir_lib.saved_config(workdir), variants.main_stage(workdir)
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  dataset = load_unchanged(config, results['data_fingerprint'], workdir)
  best = int(np.argmax(read_json(rat_dir / 'valid.json')['NDCG@10']))
  if data:
    dataset, params = update.extend_params(workdir, config, dataset, data, best)
  else:
    params = sequential.load(rat_dir / 'model.npz', best)
  model = sequential.model_config(variants.recommender_config(config, config.model.kind),
                                  len(dataset.catalog))
  return ranking.recommender(sequential.scorer(model, params), dataset.catalog,
                             logits=config.loss.kind in sequential.SOFTMAX_LOSSES)
