"""Test users ranked by RAT, its ablations and recommenders over ids alone (llmemb.md 9)."""

import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.dataset import load_unchanged
from recjax.errors import ConfigError
from recjax.evaluation import baselines, metrics, ranking, sampled_ranking, statistics
from recjax.evaluation import results as results_lib
from recjax.methods.llmemb import rat, update, variants
from recjax.run_files import read_json
from recjax.training import sequential
from recjax.training import workdir as workdir_lib
from recjax.training.workdir import find_stage

SHOWN = ('HR@10', 'NDCG@10')


def settings(cfg):
  """What of the config decides the figures besides the trained models."""
  kinds = {k: variants.recommender_config(cfg, k) for k in variants.id_models(cfg)}
  return ConfigDict({'kinds': kinds, 'kind': cfg.model.kind, 'eval': cfg.eval, 'seed': cfg.seed,
                     'seeds': cfg.seeds, 'popularity_of_all': cfg.defects.popularity_of_all,
                     'early_mask_row': cfg.defects.early_mask_row})


def stage(work, cfg, shop, tables, ids, made):
  """Ranks the test users with every model and seed; writes every result file. -> counts"""
  del tables
  split, n = rat.split_of(shop), len(shop.catalog)
  block, mask = ranking.block_size(n, cfg.eval.memory << 20), cfg.eval.mask_history
  models = {variants.row_name(v): (cfg.kind, folder) for v, folder in made.items()}
  models |= {kind: (kind, folder) for kind, folder in ids.items()}
  drawn = candidates(work, cfg, split, n)
  ranks, few, lists = {}, {}, None
  with work.progress('ranking', len(models) * cfg.seeds, unit='model') as advance:
    for row, (kind, folder) in models.items():
      model = sequential.model_config(cfg.kinds[kind], n)
      best = int(np.argmax(read_json(folder / 'valid.json')['NDCG@10']))
      full, some = [], []
      for seed in range(cfg.seeds):
        score = sequential.scorer(model, sequential.load(folder / 'model.npz', seed))
        found, *top = ranking.rank_and_recommend(score, split.test, n, min(cfg.eval.save_top, n),
                                                 block, mask_history=mask)
        full.append(found)
        if drawn is not None:
          some.append(sampled_ranking.rank_cases(score, split.test, n, drawn))
        if lists is None and seed == best:
          lists = top
        advance()
      ranks[row] = np.stack(full)
      if drawn is not None:
        few[row] = np.stack(some)
  main = next(iter(models))
  groups = group_masks(cfg, shop, split)
  more = {'groups': grouped(ranks, groups, main, cfg.seed)}
  if few:
    more['sampled'] = {'protocol': sampled_ranking.protocol(cfg.eval.sampled), **grouped(
        few, {'all': np.ones(len(split.test), bool), **groups}, main, cfg.seed)}
  for name, score in baselines.baselines(split.train, n, cfg.seed).items():
    ranks[name] = ranking.rank_cases(score, split.test, n, block, mask_history=mask)
  results = results_lib.save(work.folder, shop, split, main, ranks, lists,
                         ranking.protocol(n, split.protocol, mask),
                         range(cfg.seed, cfg.seed + cfg.seeds), **more)
  return {'users': len(split.test), **{m: round(results['rows'][main][m]['value'], 4)
                                       for m in SHOWN}}


def candidates(work, cfg, split, n):
  """The items that each target is ranked among besides, where a sampled protocol is asked for."""
  if not cfg.eval.sampled:
    return None
  counts = np.bincount(split.train.items, minlength=n + 1)[1:]
  try:
    return sampled_ranking.draw(cfg.eval.sampled, split.test, counts, cfg.seed)
  except ConfigError as error:
    if 'full ranking' not in str(error):
      raise
    work.say(f'    {error}: left out')
    return None


def group_masks(cfg, shop, split):
  """Which test users belong where. -> {name: (n,) bool}

  An item is of the tail with fewer than eval.tail_item training interactions, a user with a
  shorter input than eval.tail_user.
  """
  items = shop.interactions.items if cfg.popularity_of_all else split.train.items
  counts = np.bincount(items, minlength=len(shop.catalog) + 1)[split.test.targets]
  rare = counts < cfg.eval.tail_item
  short = np.diff(split.test.histories[1]) < cfg.eval.tail_user
  return {'tail_item': rare, 'head_item': ~rare, 'tail_user': short, 'head_user': ~short}


def grouped(ranks, groups, main, seed):
  """Figures of groups of test users with tests of `main` against every other row.

  ranks: {row: (S, n)}; a user counts with the mean over seeds. -> {group: {'n', 'rows', 'tests'}}
  """
  each = {}
  for row, lines in ranks.items():
    values = [metrics.per_case(r, (10,)) for r in lines]
    each[row] = {m: np.mean([v[m] for v in values], 0) for m in SHOWN}
  found = {}
  for name, mask in groups.items():
    if not mask.any():
      continue
    some = {row: {m: v[mask] for m, v in values.items()} for row, values in each.items()}
    found[name] = {'n': int(mask.sum()), **statistics.summarize(
        some, seed, {}, [(main, o) for o in some if o != main])}
  return found


def show(work, folder):
  """Prints the tables of rare and frequent items, short and long histories."""
  from rich.table import Table
  results = run_files.need_json(folder / 'results.json')
  names = list(results['groups'])
  table = Table('NDCG@10', *(f'{g.replace("_", " ")}, n {results["groups"][g]["n"]:,}'
                             for g in names))
  for row in next(iter(results['groups'].values()))['rows']:
    table.add_row(row, *(cell(results['groups'][g], row) for g in names))
  with work.console.capture() as drawn:
    work.console.print(table)
  work.say(drawn.get().rstrip())
  first = next(iter(results['rows']))
  work.say(f'in brackets: p of {first} against the row, paired randomisation test, Holm-corrected')
  if 'sampled' in results:
    every = results['sampled']['all']['rows']
    work.say(results['sampled']['protocol'] + ': ' + ', '.join(
        f'{row} HR@10 {cells["HR@10"]["value"]:.4f} NDCG@10 {cells["NDCG@10"]["value"]:.4f}'
        for row, cells in every.items()))


def cell(group, row):
  """A value, and how sure the difference to the first row is."""
  first = next(iter(group['rows']))
  p = group['tests'].get(f'{first}>{row}', {}).get('NDCG@10')
  return f'{group["rows"][row]["NDCG@10"]["value"]:.4f}' + ('' if p is None else f' ({p:.2g})')


def recommender(workdir, data=None):
  """The method's face: the best seed's model on any history; no LLM runs.

  data: a later data set, whose new items the run's LLM reads once. -> recommend, as
  `ranking.recommender` makes it
  """
  config, made = workdir_lib.saved_config(workdir), variants.main_stage(workdir)
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  shop = load_unchanged(config.data, results['data_fingerprint'], workdir)
  best = int(np.argmax(read_json(made / 'valid.json')['NDCG@10']))
  if data:
    shop, params = update.carried_on(workdir, config, shop, data, best)
  else:
    params = sequential.load(made / 'model.npz', best)
  model = sequential.model_config(variants.recommender_config(config, config.model.kind),
                                  len(shop.catalog))
  return ranking.recommender(sequential.scorer(model, params), shop.catalog)
