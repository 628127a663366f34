"""Recommendations and tags out of a trained run."""
import os

from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.data.loading import load_unchanged
from recjax.evaluation import ranking
from recjax.evaluation.recommender import CatalogRecommender
from recjax.methods.betag import update
from recjax.retrieval import bm25
from recjax.run_files import read_json
from recjax.training.workdir import find_stage, saved_config


def recommender(workdir: str | os.PathLike, data: str | None = None) -> CatalogRecommender:
  """The trained method's face: BM25 over the BETags, with what validation chose.

  data: a later data set, whose new items get their BETags from the run's LLM once. workdir: the
  run's folder. -> recommend, as `ranking.recommender` makes it
  """
  config, dataset, docs, known = opened(workdir, data)
  select, chosen = config.select, read_json(
      find_stage(workdir, 'evaluate') / 'results.json')['chosen']['betags']
  model = bm25.BM25.fit(docs, select.k1, select.b, select.idf_cutoff, known)
  return ranking.recommender(bm25.history_scores(model, chosen['reducer']), dataset.catalog)


def opened(workdir: str | os.PathLike,
           data: str | None = None) -> tuple[ConfigDict, Dataset, list[list], int]:
  """workdir: the run's folder. data: a later data set than the run's. -> config, Dataset, a
  weighted tag list an item, how many items the run was trained on"""
  config = saved_config(workdir)
  evaluated = find_stage(workdir, 'evaluate')
  results = read_json(evaluated / 'results.json')
  dataset = load_unchanged(config, results['data_fingerprint'], workdir)
  docs = [[tuple(t) for t in tags] for tags in read_json(evaluated / 'tags.json').values()]
  known = len(docs)
  if data:
    dataset, docs = update.carried_on(workdir, config, dataset, data, docs,
                                  results['chosen']['betags']['option'])
  return config, dataset, docs, known


def item_tags(workdir: str | os.PathLike,
              data: str | None = None) -> dict[str, list[tuple[str, int]]]:
  """What the run found, or finds of a later data set.

  workdir: the run's folder. -> {item id: [(tag, weight), ...]}, heaviest first
  """
  _, dataset, docs, _ = opened(workdir, data)
  return {item: sorted(tags, key=lambda t: -t[1]) for item, tags in zip(dataset.catalog.ids, docs)}
