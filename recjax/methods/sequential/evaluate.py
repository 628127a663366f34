"""Test users ranked by every seed's best epoch, beside the rows of `beside.rank_beside`."""
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.data.splits import Split
from recjax.evaluation import beside, metrics, ranking, sampled_ranking, statistics
from recjax.evaluation import results as results_lib
from recjax.protocols import ScoreFn
from recjax.run_files import read_json
from recjax.training import continuation, sequential
from recjax.training.workdir import Workdir

TOLD = 'clock=target'  # row of a model that is told when the target will come, as published


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the figures besides the trained model. cfg: the run's config."""
  return ConfigDict({k: cfg[k] for k in ('model', 'loss', 'train', 'eval', 'seed', 'seeds')})


def row_name(cfg: ConfigDict) -> str:
  """The row of results.json: the model, and the loss where it is not the full softmax.

  cfg: the run's config.
  """
  kind = cfg.model.kind
  return kind if cfg.loss.kind in ('ce', 'chunked') else f'{kind}:{cfg.loss.kind}'


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, made: pathlib.Path,
          drawn: str = '') -> dict[str, Any]:
  """Ranks the test users once for each seed and writes every result file.

  drawn: what the protocol says where `dataset` holds some users alone. work: the Workdir. cfg: of
  `settings`. made: folder of the stage 'train'.
  """
  split = splits.split_for_config(dataset, cfg.eval)
  n, row = len(dataset.catalog), row_name(cfg)
  model = sequential.model_config(cfg, n)
  options = dict(block=ranking.block_size(n, cfg.eval.memory << 20), **masking(cfg))
  best = int(np.argmax(read_json(made / 'valid.json')['NDCG@10']))
  ranks_of_seeds: dict[str, list] = {row: []}
  with work.progress('ranking', cfg.seeds, unit='seed') as advance:
    for seed in range(cfg.seeds):
      score = sequential.scorer(model, sequential.load(made / 'model.npz', seed))
      seed_ranks, *top = ranking.rank_and_recommend(
          score, split.test, n, min(cfg.eval.save_top, n), **options)
      ranks_of_seeds[row].append(seed_ranks)
      if score.timed:
        ranks_of_seeds.setdefault(f'{row}:{TOLD}', []).append(ranking.rank_cases(
            score, split.test, n, clock='target', **options))
      if seed == best:
        lists, sampled = top, among_few(cfg, dataset, split, score)
      advance()
  ranks = {name: np.stack(each) for name, each in ranks_of_seeds.items()}
  others, facts = beside.rank_beside(split, dataset.catalog, cfg.eval, cfg.seed, work.log,
                                     **options)
  results = results_lib.save(work.folder, dataset, split, row, ranks | others, lists,
                         ranking.protocol(n, split.protocol + drawn, **masking(cfg)),
                         range(cfg.seed, cfg.seed + cfg.seeds), **sampled, **facts,
                         **continuation.facts(made))
  return {'users': results['users'], **{m: round(results['rows'][row][m]['value'], 4)
                                       for m in results_lib.CLOSING}}


def masking(cfg: ConfigDict) -> dict[str, Any]:
  """What happens to items of the history, as `ranking` takes it. cfg: the run's config."""
  return dict(mask_history=cfg.eval.mask_history, seen_mask=cfg.eval.seen_mask)


def among_few(cfg: ConfigDict, dataset: Dataset, split: Split, score: ScoreFn) -> dict[str, Any]:
  """Figures of a sampled protocol, where one is asked for.

  cfg: the run's config. dataset: the data set. split: the split. score: the score function. -> dict
  to stand in results.json
  """
  rule = cfg.eval.sampled
  if not rule:
    return {}
  counts = np.bincount(split.train.items, minlength=len(dataset.catalog) + 1)[1:]
  drawn = sampled_ranking.draw(rule, split.test, counts, cfg.seed,
                       split.train if rule == 'uniform100_sasrec' else None)
  values = metrics.per_case(
      sampled_ranking.rank_cases(score, split.test, len(dataset.catalog), drawn),
      set_sizes=split.test.set_sizes())
  return {'sampled': {'protocol': sampled_ranking.protocol(rule),
                      **{m: float(statistics.by_user(v, split.test.owners()).mean())
                         for m, v in values.items()}}}
