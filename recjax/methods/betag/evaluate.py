"""Next-item retrieval by tags with BM25: BETags against base tags and what stands beside."""
import itertools
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.data.formats import betag as files
from recjax.data.splits import Cases
from recjax.evaluation import beside, ranking
from recjax.evaluation import results as results_lib
from recjax.file_io import write_json
from recjax.methods.betag import base_tags, prompts
from recjax.retrieval import bm25
from recjax.training import auxiliary_recommender, continuation
from recjax.training.workdir import Workdir, find_stage

REDUCERS = ('union', 'sum', 'last')


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the figures besides the tags. cfg: the run's config."""
  return ConfigDict({k: cfg[k] for k in ('select', 'eval', 'seed')})


def stage(work: Workdir, run_cfg: ConfigDict, dataset: Dataset, base: pathlib.Path,
          parsed: pathlib.Path, sasrec: pathlib.Path | None) -> dict[str, Any]:
  """Chooses the selection on validation users, ranks the test users, writes every result file.

  work: the Workdir. run_cfg: of `settings`. dataset: of the run. base: folder of the stage
  'base-tags'. parsed: folder of the stage 'parse'. sasrec: folder of the stage 'sasrec', or None.
  """
  split, cfg, seed = base_tags.split_of(dataset), run_cfg.select, run_cfg.seed
  rows = files.read_betags(parsed / 'raw_betags.json')
  base_lists = files.read_tags(base / 'base_tags.json')
  candidates = {
      'base_tags': {'': documents(dataset, {
          i: [(t, 1) for t in tags] for i, tags in base_lists.items()})},
      'betags': {f'{m},{k}': documents(dataset, {
          i: prompts.select(r, m, k, cfg.casefold, cfg.dedup_within_beam) for i, r in rows.items()})
          for m, k in itertools.product(cfg.top_m, cfg.top_k)}}
  n, chosen, ranks = len(dataset.catalog), {}, {}
  for row, options in candidates.items():
    chosen[row], model = choose(options, split.valid, n, cfg)
    score = bm25.history_scores(model, chosen[row]['reducer'])
    ranks[row], items, scores = ranking.rank_and_recommend(
        score, split.test, n, min(cfg.save_top, n), mask_history=cfg.mask_history)
  if sasrec:
    ranks['sasrec'] = ranking.rank_cases(auxiliary_recommender.scorer(sasrec, n), split.test, n,
                                         mask_history=cfg.mask_history)
  others, facts = beside.rank_beside(split, dataset.catalog, run_cfg.eval, seed, work.log,
                                     mask_history=cfg.mask_history)
  best = candidates['betags'][chosen['betags']['option']]
  results_lib.save(work.folder, dataset, split, 'betags', ranks | others, (items, scores),
               ranking.protocol(n, split.protocol, cfg.mask_history), [seed], chosen=chosen,
               **facts, **continuation.facts(find_stage(work.path, 'tune')))
  save_tags(work.folder, dataset, best)
  return {'users': len(split.test.targets), **{f'{r} HR@10': round(float((x < 10).mean()), 4)
                                               for r, x in ranks.items()}}


def documents(dataset: Dataset, tags: dict[str, list]) -> list[list]:
  """One document per item in index order, empty where an item was dropped.

  dataset: the data set. tags: {item id: tag list}.
  """
  return [tags.get(i, []) for i in dataset.catalog.ids]


def choose(options: dict[str, list], valid: Cases | None, n: int,
           cfg: ConfigDict) -> tuple[dict[str, Any], bm25.BM25]:
  """The option and query reducer with the best NDCG@10 on validation users; the first without.

  options: {option: documents}. n: items of the catalog. cfg: the group `select`. -> ({'option',
  'reducer', 'valid NDCG@10'}, BM25)
  """
  best = None
  for option, docs in options.items():
    model = bm25.BM25.fit(docs, k1=cfg.k1, b=cfg.b, idf_cutoff=cfg.idf_cutoff)
    if valid is None:
      return {'option': option, 'reducer': cfg.reducer}, model
    for reducer in REDUCERS:
      ranks = ranking.rank_cases(bm25.history_scores(model, reducer), valid, n,
                                 mask_history=cfg.mask_history)
      score = ranking.mean_ndcg(ranks, valid)
      if best is None or score > best[0]:
        choice = {'option': option, 'reducer': reducer, 'valid NDCG@10': round(score, 5)}
        best = score, choice, model
  return best[1], best[2]


def save_tags(folder: pathlib.Path, dataset: Dataset, docs: list[list]) -> None:
  """The chosen tags, and the items with their tags as text.

  folder: where to. dataset: the data set. docs: a weighted tag list an item.
  """
  write_json(folder / 'tags.json', dict(zip(dataset.catalog.ids, docs)))
  columns = dataset.catalog.columns
  with open(folder / 'items_with_tags.jsonl', 'w', encoding='utf-8') as f:
    for i, item in enumerate(dataset.catalog.ids):
      row = {k: v[i] for k, v in columns.items() if v[i] is not None}
      f.write(json.dumps({'item_id': item, **row, 'betags': [t for t, _ in docs[i]]},
                         ensure_ascii=False) + '\n')
