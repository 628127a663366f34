"""Test users' lists by beams over real IDs, beside the recommender that gave the item vectors."""
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.evaluation import beside, metrics, ranking
from recjax.evaluation import results as results_lib
from recjax.methods.etegrec import beam_ranking, item_embeddings, train
from recjax.training import auxiliary_recommender, continuation, sharded_stage
from recjax.training.workdir import Workdir, find_stage

MAX_SWAPPED_USERS = 2000  # users at most whose interests are taken away, or given to others
PIECE_USERS = 2048    # users whose lists a kill may cost
MAX_FREE_USERS = 1000     # users at most whose beams are left free


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the figures besides the trained models. cfg: the run's config."""
  names = ('variant', 'fusion', 'model', 'semantic_ids', 'decode', 'eval', 'seed', 'seeds')
  return ConfigDict({**{k: cfg[k] for k in names}, 'batch': cfg.train.batch,
                     'normalize': beam_ranking.NORMALIZE, 'policy': policy_name(cfg.policy)})


def policy_name(policy: ConfigDict) -> str:
  """What a tuned row is called behind its model, '' without tuning. policy: the config's group.
  """
  if policy.loss == 'none':
    return ''
  return policy.loss if policy.rollout == 'swor' else f'{policy.loss}:{policy.rollout}'


def row_name(cfg: ConfigDict) -> str:
  """The row of results.json before any tuning. cfg: as `settings`."""
  return cfg.variant if cfg.fusion == 'none' else f'{cfg.variant}:{cfg.fusion}'


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, vectors_dir: pathlib.Path,
          ids_dir: pathlib.Path, interests_dir: pathlib.Path | None,
          model_dir: pathlib.Path, before_dir: pathlib.Path | None = None) -> dict:
  """Ranks the test users with every seed's best epoch and writes every result file.

  cfg: as `settings`. vectors_dir, ids_dir, interests_dir, model_dir: of the stages before.
  before_dir: of the model that was tuned, whose row stands beside; None without tuning. work: of
  the stage. dataset: of the run. -> counts
  """
  data = train.load_training_data(with_train(cfg), dataset, vectors_dir, ids_dir, interests_dir)
  cases, num_items, row = data.split.test, len(dataset.catalog), row_name(cfg)
  best = int(np.argmax(train.validation_scores(model_dir)['NDCG@10']))
  ranks, extra_results = {}, {}
  if before_dir is not None:
    ranks[row], before = rank_seeds(work, 'before', cfg, data, before_dir, best)
    row = f'{row}:{cfg.policy}'
  ranks[row], predictions = rank_seeds(work, 'seed', cfg, data, model_dir, best)
  if before_dir is not None:
    extra_results['tuning'] = compare_lists(data, before, predictions, model_dir)
  best_params = train.load_params(model_dir, best)
  extra_results['free'] = judge_free_beams(cfg, data, best_params)
  if cfg.fusion != 'none':
    extra_results['interests'], ranks['no interests'] = judge_without_interests(
      work, cfg, data, best_params, predictions[0])
  mask_history = cfg.eval.mask_history
  if item_embeddings.has_recommender(vectors_dir):
    ranks['sasrec'] = ranking.rank_cases(
      auxiliary_recommender.scorer(vectors_dir, num_items), cases, num_items,
      mask_history=mask_history)
  others, facts = beside.rank_beside(data.split, dataset.catalog, cfg.eval, cfg.seed, work.log,
                                     mask_history=mask_history)
  extra_results['note'] = f'lists of {cfg.decode.beams} beams, a target outside counts as not found'
  results = results_lib.save(
      work.folder, dataset, data.split, row, ranks | others, predictions,
      ranking.protocol(num_items, data.split.protocol, mask_history),
      range(cfg.seed, cfg.seed + cfg.seeds),
      tuple(k for k in (1, 5, 10, 20) if k <= min(cfg.decode.beams, num_items)), **extra_results,
      **facts, **continuation.facts(find_stage(work.path, 'train')))
  return {'users': len(cases), **{m: round(results['rows'][row][m]['value'], 4)
                                  for m in results_lib.CLOSING},
          'invalid_rate_of_free_beams': f'{extra_results["free"]["invalid_rate"]:.2%}'}


def rank_seeds(work: Workdir, name: str, cfg: ConfigDict, data: train.TrainingData,
               model_dir: pathlib.Path, best: int) -> tuple[np.ndarray, tuple]:
  """Ranks the test users with the models of all seeds.

  name: of the lists, for the pieces of the stage. model_dir: of the training. best: the seed whose
  lists are wanted. work, cfg: of the stage. data: of the run. -> ranks (seeds, U); items and scores
  of that seed
  """
  cases, seed_ranks, lists = data.split.test, [], None
  title = 'ranking' if name == 'seed' else f'ranking {name} tuning'
  with work.progress(title, cfg.seeds * len(cases), unit='user') as advance:
    for seed in range(cfg.seeds):
      items, scores = rank_test_users(
        work, f'{name}-{seed}', cfg, data, train.load_params(model_dir, seed), data.given('test'),
        advance=advance)
      seed_ranks.append(ranking.list_ranks(items, cases.targets, len(data.x)))
      if seed == best:
        lists = items[:, :cfg.eval.save_top], scores[:, :cfg.eval.save_top]
  return np.stack(seed_ranks), lists


def compare_lists(data: train.TrainingData, before: tuple, after: tuple,
                  model_dir: pathlib.Path) -> dict:
  """What tuning did to the lists of the test users, besides their accuracy.

  data: of the run. before, after: items and scores of one seed. model_dir: of the tuned model. ->
  {'before', 'after': {property: value}, 'validation': NDCG@10 of each seed}
  """
  counts = np.bincount(data.split.train.items, minlength=len(data.x) + 1)[1:]
  histories = data.split.test.histories
  of = lambda items: metrics.list_properties(  # noqa: E731
    items[:, :10], counts, histories) | metrics.concentration(items[:, :10], counts)
  scores = train.validation_scores(model_dir)
  return {'before': of(before[0]), 'after': of(after[0]), 'validation': {
    'before': scores['before'], 'after': scores['NDCG@10'], 'kept': scores['kept']}}


def with_train(cfg: ConfigDict) -> ConfigDict:
  """The settings of this stage as `train.load_training_data` reads them. cfg: as `settings`."""
  return ConfigDict({**cfg, 'train': {'batch': cfg.batch}})


def rank_test_users(work: Workdir, name: str, cfg: ConfigDict, data: train.TrainingData,
                    params: PyTree, interests: tuple | None, rows: np.ndarray | None = None,
                    advance: Callable | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Lists of test users, in pieces that a killed stage finds again.

  name: of these lists, its own in the stage. data: of the run. params: of a seed. interests: as in
  `beam_ranking.rank_items`. rows: which test users, None for all. advance: told how many are done.
  work: of the stage. cfg: as `settings`. -> items (n, beams), scores
  """
  cases, batch = data.split.test, cfg.decode.batch
  histories = [cases.history(i) for i in (range(len(cases)) if rows is None else rows)]
  # Batches are those of one call, so pieces change no list.
  order = np.argsort([min(len(array), cfg.model.max_history) for array in histories], kind='stable')
  piece_size, pieces = -(-PIECE_USERS // batch) * batch, []
  for start in range(0, len(order), piece_size):
    def rank_piece(piece_rows: np.ndarray = order[start:start + piece_size]
                  ) -> dict[str, np.ndarray]:
      items, scores = beam_ranking.rank_items(
        data.cfg, params['rec'], params['table'], [histories[i] for i in piece_rows],
        cfg.model.max_history, cfg.decode,
        None if interests is None else tuple(array[piece_rows] for array in interests),
        cfg.eval.mask_history)
      return {'items': items, 'scores': scores}
    pieces.append(sharded_stage.compute_once(work, f'{name}-{start}', rank_piece))
    if advance:
      advance(len(pieces[-1]['items']))
  inverse_order = np.argsort(order)
  return tuple(
    np.concatenate([piece[key] for piece in pieces])[inverse_order] for key in ('items', 'scores'))


def judge_free_beams(cfg: ConfigDict, data: train.TrainingData, params: PyTree) -> dict:
  """How often beams that may be any codes are codes of no item (Rajput et al., NeurIPS 2023).

  data, params: of the run. cfg: as `settings`.
  """
  cases = data.split.test
  order = np.random.default_rng(cfg.seed).permutation(len(cases))[:MAX_FREE_USERS]
  interests = data.given('test')
  items, _ = beam_ranking.rank_items(
    data.cfg, params['rec'], params['table'], [cases.history(i) for i in order],
    cfg.model.max_history, cfg.decode,
    None if interests is None else tuple(array[order] for array in interests), free=True)
  return {'users': len(order), 'invalid_rate': float((items[:, :10] == 0).mean())}


def judge_without_interests(work: Workdir, cfg: ConfigDict, data: train.TrainingData,
                            params: PyTree, items: np.ndarray) -> tuple[dict, np.ndarray]:
  """What interests do to lists: taken away, and those of another user given.

  data, params: of the run. items: (n, k), with their own. work: of the stage. cfg: as `settings`.
  -> figures, ranks of all test users without interests (seeds, n)
  """
  cases, interests = data.split.test, data.given('test')
  work.log('    the same users without their interests, and with those of others')
  no_interests = tuple(np.zeros_like(array) for array in interests)
  without_items, _ = rank_test_users(work, 'none', cfg, data, params, no_interests)
  rng = np.random.default_rng(cfg.seed)
  swapped_users = rng.permutation(len(cases))[:MAX_SWAPPED_USERS]
  swapped_items, _ = rank_test_users(
    work, 'swapped', cfg, data, params,
    tuple(array[np.roll(swapped_users, 1)] for array in interests), swapped_users)
  top = slice(0, min(10, items.shape[1]))
  share_changed = lambda a, b: float((a[:, top] != b[:, top]).any(1).mean())  # noqa: E731
  ranks = ranking.list_ranks(without_items, cases.targets, len(data.x))
  return {'users': len(cases), 'with_interests': int(interests[1].any(1).sum()),
          'top10_changed_without': share_changed(items, without_items),
          'top10_changed_by_others': share_changed(items[swapped_users], swapped_items),
          'swapped_users': len(swapped_users)}, np.broadcast_to(ranks, (cfg.seeds, len(ranks)))
