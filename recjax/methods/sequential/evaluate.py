"""Test users ranked by every seed's best epoch, beside popularity and random."""
import pathlib
import shutil

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from recjax.data import splits
from recjax.data.catalog import load_unchanged
from recjax.errors import ConfigError
from recjax.evaluation import compare, metrics, ranking, sampled, statistics
from recjax.models import seqrec
from recjax.training import sequential
from recjax.training.work import find_stage, read_json, write_json


def settings(cfg):
  """What of the config decides the figures besides the trained model."""
  return ConfigDict({k: cfg[k] for k in ('model', 'loss', 'train', 'judge', 'seed', 'seeds')})


def row_name(cfg):
  """The row of results.json: the model, and the loss where it is not the full softmax."""
  kind = cfg.model.kind
  return kind if cfg.loss.kind in ('ce', 'chunked') else f'{kind}:{cfg.loss.kind}'


def stage(work, cfg, shop, made):
  """Ranks the test users once for each seed and writes every result file."""
  split = splits.leave_one_out(shop.interactions)
  model = sequential.model_config(cfg, len(shop.catalog))
  row, n = row_name(cfg), len(shop.catalog)
  valid = read_json(made / 'valid.json')['NDCG@10']
  first = int(np.argmax(valid))
  ranks, top, block = {}, None, ranking.block_size(n, cfg.judge.memory << 20)
  with work.progress('ranking', cfg.seeds, unit='seed') as advance:
    for seed in range(cfg.seeds):
      name = row if cfg.seeds == 1 else f'{row}:seed={cfg.seed + seed}'
      score = sequential.scorer(model, sequential.load(made / 'model.npz', seed))
      ranks[name], items, scores = ranking.rank_and_recommend(
          score, split.test, n, min(cfg.judge.save_top, n), block,
          mask_history=cfg.judge.mask_history)
      if seed == first:
        top = items, scores
        extra = among_few(cfg, shop, split, score)
      advance()
  others = {'popularity': ranking.popularity(split.train.items, n),
            'recency': ranking.recency(split.train.items, split.train.offsets, n),
            'random': ranking.random_scores(n, cfg.seed)}
  for name, score in others.items():
    ranks[name] = ranking.rank_cases(score, split.test, n, block,
                                     mask_history=cfg.judge.mask_history)
  save(work.folder, cfg, shop, split, ranks, row, top, extra)
  best = read_json(work.folder / 'results.json')['rows'][row]
  return {'users': len(split.test),
          **{m: round(best[m]['value'], 4) for m in ('HR@10', 'NDCG@10')}}


def among_few(cfg, shop, split, score):
  """Figures of a sampled protocol, where one is asked for. -> dict to stand in results.json"""
  how = cfg.judge.sampled
  if not how:
    return {}
  counts = np.bincount(split.train.items, minlength=len(shop.catalog) + 1)[1:]
  drawn = sampled.draw(how, split.test, counts, cfg.seed,
                       split.train if how == 'uniform100_sasrec' else None)
  values = metrics.per_case(sampled.rank_cases(score, split.test, len(shop.catalog), drawn))
  return {'sampled': {'protocol': sampled.protocol(how),
                      **{m: float(v.mean()) for m, v in values.items()}}}


def save(folder, cfg, shop, split, ranks, row, top, extra):
  """results.json (a user's figures are means over the seeds), ranks and predictions."""
  each = {name: metrics.per_case(r) for name, r in ranks.items()}
  seeds = [name for name in each if name.startswith(row)]
  rows = {row: {m: np.mean([each[s][m] for s in seeds], 0) for m in each[seeds[0]]}}
  rows |= {name: values for name, values in each.items() if name not in seeds}
  counts = np.bincount(split.train.items, minlength=len(shop.catalog) + 1)[1:]
  lengths = np.diff(split.test.histories[1])
  masks = metrics.groups(split.test.targets, counts, lengths)
  summary = statistics.summarise(rows, cfg.seed, masks, [(row, o) for o in rows if o != row])
  by_seed = {s: {m: float(v.mean()) for m, v in each[s].items()} for s in seeds}
  spread = {m: float(np.std([f[m] for f in by_seed.values()], ddof=1)) if len(seeds) > 1 else None
            for m in each[seeds[0]]}
  cold = int((counts[split.test.targets - 1] == 0).sum())
  write_json(folder / 'results.json', {
      'protocol': ranking.protocol(len(shop.catalog), split.protocol, cfg.judge.mask_history),
      'seeds': [cfg.seed + s for s in range(cfg.seeds)], 'data_fingerprint': shop.fingerprint,
      **summary, 'by_seed': by_seed, 'sd_of_seeds': spread,
      'lists': metrics.list_metrics(top[0][:, :10], counts, split.test.histories),
      'cold_targets': cold, **extra})
  users = [shop.interactions.users[u] for u in split.test.users]
  compare.write_ranks(folder / 'ranks.parquet', users, ranks)
  named = [[shop.catalog.id_of(i) if i else None for i in items] for items in top[0]]
  compare.write_predictions(folder / 'predictions.parquet', users, named, top[1])


def show(work, found):
  """The closing table, 80 columns wide."""
  results = read_json(found / 'results.json')
  names, row = ('HR@10', 'NDCG@10'), next(iter(results['rows']))
  table = Table('row', *names, 'p, HR@10')
  for name, cells in results['rows'].items():
    p = results['tests'].get(f'{row}>{name}', {}).get('HR@10')
    table.add_row(name, *('{value:.4f} [{low:.4f}, {high:.4f}]'.format(**cells[m]) for m in names),
                  '' if p is None else f'{p:.4f}')
  work.console.print(table)
  work.note(f'{results["rows"]}')
  if len(results['seeds']) > 1:
    said = ', '.join(f'{m} {results["rows"][row][m]["value"]:.4f} ± {results["sd_of_seeds"][m]:.4f}'
                     for m in names)
    work.say(f'{len(results["seeds"])} seeds, mean ± standard deviation: {said}')
  work.say(results['protocol'])
  if 'sampled' in results:
    few = results['sampled']
    work.say(f'{few["protocol"]}: HR@10 {few["HR@10"]:.4f}, NDCG@10 {few["NDCG@10"]:.4f}')


def recommender(workdir):
  """The method's face: the best seed's model on any history.

  -> recommend, as `ranking.recommender` makes it
  """
  config = ConfigDict(read_json(pathlib.Path(workdir) / 'config.json')['config'])
  made = find_stage(workdir, 'train')
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  shop = load_unchanged(config.data, results['data_fingerprint'], workdir)
  best = int(np.argmax(read_json(made / 'valid.json')['NDCG@10']))
  score = sequential.scorer(sequential.model_config(config, len(shop.catalog)),
                       sequential.load(made / 'model.npz', best))

  return ranking.recommender(score, shop.catalog)


def cost(cfg, shop):
  """What a run would take, before it runs. -> {name: text}"""
  model = sequential.model_config(cfg, len(shop.catalog))
  shapes = jax.eval_shape(lambda: seqrec.init(model, jax.random.key(0)))
  count = seqrec.parameters(shapes)
  targets = int(np.maximum(np.minimum(shop.interactions.lengths() - 2, model.length + 1) - 1,
                           0).sum())
  flops = 6 * targets * model.width * (model.items if cfg.loss.kind in ('ce', 'chunked')
                                       else 1 + cfg.loss.negatives)
  return {'parameters': f'{count:,} a seed, {count * 16 / 2**20:.0f} MiB with Adam and the best '
          'epoch', 'targets an epoch': f'{targets:,}',
          'output layer an epoch': f'{flops / 1e9:,.0f} GFLOP a seed'}


def convert(workdir, kind, out):
  """Writes the trained parameters as one .npz. Raises ConfigError for others, or a file there."""
  if kind != 'npz':
    raise ConfigError(f'--to={kind} is unknown for this method; npz writes all parameters')
  if pathlib.Path(out).exists():
    raise ConfigError(f'{out} is there already; name a file that does not exist yet')
  shutil.copyfile(find_stage(workdir, 'train') / 'model.npz', out)
