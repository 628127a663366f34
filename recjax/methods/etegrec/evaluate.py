"""Test users' lists by beams over real IDs, beside the recommender that gave the item vectors."""
import numpy as np
from ml_collections import ConfigDict

from recjax.evaluation import baselines, ranking
from recjax.evaluation import results as results_lib
from recjax.methods.etegrec import beam_ranking, item_embeddings, train
from recjax.training import auxiliary_recommender, sharded_stage

SWAPPED = 2000  # users at most whose interests are taken away, or given to others
PIECE = 2048    # users whose lists a kill may cost
FREE = 1000     # users at most whose beams are left free


def settings(cfg):
  """What of the config decides the figures besides the trained models."""
  names = ('variant', 'fusion', 'model', 'tokenizer', 'decode', 'eval', 'seed', 'seeds')
  return ConfigDict({**{k: cfg[k] for k in names}, 'batch': cfg.train.batch,
                     'normalize': beam_ranking.NORMALIZE})


def row_name(cfg):
  """The row of results.json."""
  return cfg.variant if cfg.fusion == 'none' else f'{cfg.variant}:{cfg.fusion}'


def stage(work, cfg, shop, made, coded, heard, model):
  """Ranks the test users with every seed's best epoch and writes every result file. -> counts"""
  given = train.task(with_train(cfg), shop, made, coded, heard)
  cases, n, row = given.split.test, len(shop.catalog), row_name(cfg)
  best = int(np.argmax(train.valid_of(model)['NDCG@10']))
  ours, kept = [], None
  with work.progress('ranking', cfg.seeds * len(cases), unit='user') as advance:
    for seed in range(cfg.seeds):
      items, scores = ask(work, f'seed-{seed}', cfg, given, train.trained(model, seed),
                          given.given('test'), advance=advance)
      ours.append(ranking.list_ranks(items, cases.targets, n))
      if seed == best:
        kept = items[:, :cfg.eval.save_top], scores[:, :cfg.eval.save_top]
  ranks, chosen = {row: np.stack(ours)}, train.trained(model, best)
  more = {'free': free(cfg, given, chosen)}
  if cfg.fusion != 'none':
    more['interests'], ranks['no interests'] = without(work, cfg, given, chosen, kept[0])
  mask = cfg.eval.mask_history
  if item_embeddings.trained(made):
    ranks['sasrec'] = ranking.rank_cases(
      auxiliary_recommender.scorer(made, n), cases, n, mask_history=mask
    )
  for name, score in baselines.baselines(given.split.train, n, cfg.seed).items():
    ranks[name] = ranking.rank_cases(score, cases, n, mask_history=mask)
  more['note'] = f'lists of {cfg.decode.beams} beams, a target outside counts as not found'
  results = results_lib.save(
      work.folder, shop, given.split, row, ranks, kept,
      ranking.protocol(n, given.split.protocol, mask),
      range(cfg.seed, cfg.seed + cfg.seeds),
      tuple(k for k in (1, 5, 10, 20) if k <= min(cfg.decode.beams, n)), **more)
  return {'users': len(cases), **{m: round(results['rows'][row][m]['value'], 4)
                                  for m in results_lib.CLOSING},
          'invalid_rate_of_free_beams': f'{more["free"]["invalid_rate"]:.2%}'}


def with_train(cfg):
  """The settings of this stage as `train.task` reads them."""
  return ConfigDict({**cfg, 'train': {'batch': cfg.batch}})


def ask(work, name, cfg, given, params, heard, some=None, advance=None):
  """Lists of test users, of all or of `some`, in pieces that a killed stage finds again.

  name: of these lists, its own in the stage. -> items (n, beams), scores
  """
  cases, batch = given.split.test, cfg.decode.batch
  histories = [cases.history(i) for i in (range(len(cases)) if some is None else some)]
  # Batches are those of one call, so pieces change no list.
  order = np.argsort([min(len(h), cfg.model.max_history) for h in histories], kind='stable')
  size, found = -(-PIECE // batch) * batch, []
  for at in range(0, len(order), size):
    def make(part=order[at:at + size]):
      items, scores = beam_ranking.ranked(
          given.cfg, params['rec'], params['table'], [histories[i] for i in part],
          cfg.model.max_history, cfg.decode,
          None if heard is None else tuple(h[part] for h in heard), cfg.eval.mask_history)
      return {'items': items, 'scores': scores}
    found.append(sharded_stage.kept(work, f'{name}-{at}', make))
    if advance:
      advance(len(found[-1]['items']))
  back = np.argsort(order)
  return tuple(np.concatenate([f[k] for f in found])[back] for k in ('items', 'scores'))


def free(cfg, given, params):
  """How often beams that may be any codes are codes of no item (semantic_ids.md 5.4)."""
  cases = given.split.test
  order = np.random.default_rng(cfg.seed).permutation(len(cases))[:FREE]
  heard = given.given('test')
  items, _ = beam_ranking.ranked(given.cfg, params['rec'], params['table'],
                          [cases.history(i) for i in order], cfg.model.max_history, cfg.decode,
                          None if heard is None else tuple(h[order] for h in heard), free=True)
  return {'users': len(order), 'invalid_rate': float((items[:, :10] == 0).mean())}


def without(work, cfg, given, params, items):
  """What interests do to lists: taken away, and those of another user given.

  items: (n, k), with their own. -> figures, ranks of all test users without interests (1, n)
  """
  cases, heard = given.split.test, given.given('test')
  work.say('    the same users without their interests, and with those of others')
  none = tuple(np.zeros_like(h) for h in heard)
  plain, _ = ask(work, 'none', cfg, given, params, none)
  rng = np.random.default_rng(cfg.seed)
  some = rng.permutation(len(cases))[:SWAPPED]
  swapped, _ = ask(work, 'swapped', cfg, given, params, tuple(h[np.roll(some, 1)] for h in heard),
                   some)
  top = slice(0, min(10, items.shape[1]))
  changed = lambda a, b: float((a[:, top] != b[:, top]).any(1).mean())  # noqa: E731
  places = ranking.list_ranks(plain, cases.targets, len(given.x))
  return {'users': len(cases), 'with_interests': int(heard[1].any(1).sum()),
          'top10_changed_without': changed(items, plain),
          'top10_changed_by_others': changed(items[some], swapped),
          'swapped_users': len(some)}, np.broadcast_to(places, (cfg.seeds, len(places)))
