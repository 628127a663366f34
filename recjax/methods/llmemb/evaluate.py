"""Test users ranked by RAT, its ablations and recommenders over ids alone."""
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.dataset import Dataset
from recjax.data.splits import Cases, Split
from recjax.errors import ConfigError
from recjax.evaluation import beside, metrics, ranking, sampled_ranking, statistics
from recjax.evaluation import results as results_lib
from recjax.methods.llmemb import rat, variants
from recjax.run_files import read_json
from recjax.training import continuation, sequential
from recjax.training.workdir import Workdir

METRICS = ('HR@10', 'NDCG@10')


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the figures besides the trained models. cfg: the run's config."""
  kinds = {k: variants.recommender_config(cfg, k) for k in variants.id_models(cfg)}
  return ConfigDict({'kinds': kinds, 'kind': cfg.model.kind, 'eval': cfg.eval, 'seed': cfg.seed,
                     'seeds': cfg.seeds, 'popularity_of_all': cfg.reproduce_bugs.popularity_of_all,
                     'early_mask_row': cfg.reproduce_bugs.early_mask_row})


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, tables: dict, id_dirs: dict,
          rat_dirs: dict) -> dict:
  """Ranks the test users with every model and seed; writes every result file.

  cfg: as `settings`. tables: folders of item vectors by their source. id_dirs: of recommenders over
  ids by kind. rat_dirs: of RAT by variant. work: of the stage. dataset: of the run. -> counts
  """
  del tables
  split, num_items = rat.load_split(dataset), len(dataset.catalog)
  block, mask_history = ranking.block_size(num_items, cfg.eval.memory << 20), cfg.eval.mask_history
  models = {variants.row_name(variant): (cfg.kind, folder) for variant, folder in rat_dirs.items()}
  models |= {kind: (kind, folder) for kind, folder in id_dirs.items()}
  candidate_items = draw_candidates(work, cfg, split, num_items)
  ranks, sampled_ranks, predictions = {}, {}, None
  with work.progress('ranking', len(models) * cfg.seeds, unit='model') as advance:
    for row, (kind, folder) in models.items():
      model = sequential.model_config(cfg.kinds[kind], num_items)
      best = int(np.argmax(read_json(folder / 'valid.json')['NDCG@10']))
      model_ranks, model_sampled_ranks = [], []
      for seed in range(cfg.seeds):
        score = sequential.scorer(model, sequential.load(folder / 'model.npz', seed))
        seed_ranks, *top_items_and_scores = ranking.rank_and_recommend(
          score, split.test, num_items, min(cfg.eval.save_top, num_items), block,
          mask_history=mask_history)
        model_ranks.append(seed_ranks)
        if candidate_items is not None:
          model_sampled_ranks.append(
            sampled_ranking.rank_cases(score, split.test, num_items, candidate_items))
        if predictions is None and seed == best:
          predictions = top_items_and_scores
        advance()
      ranks[row] = np.stack(model_ranks)
      if candidate_items is not None:
        sampled_ranks[row] = np.stack(model_sampled_ranks)
  main = next(iter(models))
  groups = group_masks(cfg, dataset, split)
  extra_results = {'groups': summarize_groups(ranks, groups, main, cfg.seed, split.test)}
  if sampled_ranks:
    extra_results['sampled'] = {
      'protocol': sampled_ranking.protocol(cfg.eval.sampled),
      **summarize_groups(
        sampled_ranks, {'all': np.ones(len(split.test), bool), **groups}, main, cfg.seed,
        split.test)}
  others, facts = beside.rank_beside(split, dataset.catalog, cfg.eval, cfg.seed, work.log,
                                     block=block, mask_history=mask_history)
  results = results_lib.save(work.folder, dataset, split, main, ranks | others, predictions,
                             ranking.protocol(num_items, split.protocol, mask_history),
                             range(cfg.seed, cfg.seed + cfg.seeds), **extra_results, **facts,
                             **continuation.facts(next(iter(rat_dirs.values()))))
  return {'users': results['users'], **{m: round(results['rows'][main][m]['value'], 4)
                                       for m in METRICS}}


def draw_candidates(work: Workdir, cfg: ConfigDict, split: Split,
                    num_items: int) -> np.ndarray | None:
  """The items that each target is ranked among besides, where a sampled protocol is asked for.

  split: of the users. num_items: of the catalog. work: of the stage. cfg: as `settings`.
  """
  if not cfg.eval.sampled:
    return None
  counts = np.bincount(split.train.items, minlength=num_items + 1)[1:]
  try:
    return sampled_ranking.draw(cfg.eval.sampled, split.test, counts, cfg.seed)
  except ConfigError as error:
    if 'full ranking' not in str(error):
      raise
    work.log(f'    {error}: left out')
    return None


def group_masks(cfg: ConfigDict, dataset: Dataset,
                split: Split) -> dict[str, Bool[np.ndarray, ' n']]:
  """Which test users belong where, by the group's name.

  split: of the users. An item is of the tail with fewer than eval.tail_item training interactions,
  a user with a shorter input than eval.tail_user. cfg: as `settings`. dataset: of the run.
  """
  items = dataset.interactions.items if cfg.popularity_of_all else split.train.items
  counts = np.bincount(items, minlength=len(dataset.catalog) + 1)[split.test.targets]
  is_rare = counts < cfg.eval.tail_item
  is_short = np.diff(split.test.histories[1]) < cfg.eval.tail_user
  return {
    'tail_item': is_rare, 'head_item': ~is_rare, 'tail_user': is_short, 'head_user': ~is_short}


def summarize_groups(ranks: dict, groups: dict, main: str, seed: int, cases: Cases) -> dict:
  """Figures of groups of test users with tests of `main` against every other row.

  ranks: {row: (S, n)}; a user counts with the mean over seeds. groups: {name: (n,) bool}. seed: of
  the bootstrap. cases: whose ranks they are. -> {group: {'n': users, 'rows', 'tests'}}
  """
  row_values, owners, set_sizes = {}, cases.owners(), cases.set_sizes()
  for row, seed_ranks in ranks.items():
    values = [metrics.per_case(user_ranks, (10,), set_sizes) for user_ranks in seed_ranks]
    row_values[row] = {
      metric: np.mean([value[metric] for value in values], 0) for metric in METRICS}
  summaries = {}
  for name, mask in groups.items():
    if not mask.any():
      continue
    group_values = {
      row: {metric: value[mask] for metric, value in values.items()}
      for row, values in row_values.items()}
    summaries[name] = {
      'n': len(np.unique(cases.users[mask])),
      **statistics.summarize(
        group_values, seed, {}, [(main, other) for other in group_values if other != main],
        owners=None if owners is None else owners[mask])}
  return summaries


def show(work: Workdir, results_dir: Path) -> None:
  """Prints the tables of rare and frequent items, short and long histories. work: the run's.
  results_dir: of the stage."""
  from rich.table import Table
  results = run_files.need_json(results_dir / 'results.json')
  names = list(results['groups'])
  table = Table('NDCG@10', *(f'{group.replace("_", " ")}, n {results["groups"][group]["n"]:,}'
                             for group in names))
  for row in next(iter(results['groups'].values()))['rows']:
    table.add_row(row, *(format_cell(results['groups'][group], row) for group in names))
  with work.console.capture() as captured:
    work.console.print(table)
  work.log(captured.get().rstrip())
  first = next(iter(results['rows']))
  work.log(f'in brackets: p of {first} against the row, paired randomization test, Holm-corrected')
  if 'sampled' in results:
    sampled_rows = results['sampled']['all']['rows']
    work.log(results['sampled']['protocol'] + ': ' + ', '.join(
        f'{row} HR@10 {cells["HR@10"]["value"]:.4f} NDCG@10 {cells["NDCG@10"]["value"]:.4f}'
        for row, cells in sampled_rows.items()))


def format_cell(group: dict, row: str) -> str:
  """A value, and how sure the difference to the first row is. group: of `summarize_groups`."""
  first = next(iter(group['rows']))
  p = group['tests'].get(f'{first}>{row}', {}).get('NDCG@10')
  return f'{group["rows"][row]["NDCG@10"]["value"]:.4f}' + ('' if p is None else f' ({p:.2g})')
