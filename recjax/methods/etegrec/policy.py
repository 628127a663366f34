"""Policy tuning of a trained recommender: it learns from lists of real items that it rolls out.

Requests are prefixes of users' training items with the item after each. The table of codes stays as
it is. docs/policy_tuning.md.
"""
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset, Interactions
from recjax.decoding import constraints
from recjax.decoding.device_trie import PAD
from recjax.decoding.item_filter import ItemFilter
from recjax.errors import DataError
from recjax.file_io import write_json
from recjax.methods.etegrec import batching, beam_ranking, train
from recjax.models import semantic_id_t5
from recjax.policy import tuning as policy_tuning
from recjax.policy.tuning import Model, PolicyTuning
from recjax.training import loop, sequential
from recjax.training.workdir import Workdir


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the tuned models. cfg: the run's config."""
  return ConfigDict({**train.settings(cfg), 'policy': cfg.policy,
                     'mask_history': cfg.eval.mask_history})


class Requests:
  """Training rows of a policy: batches[step] is a function of the step alone.

  train: the users' sequences. table: codes of items, row 0 of padding. cfg: as `settings`. size:
  codes of a level. place: (N,) where each item stands in the trie. interests: of each row, as
  `prefixes` of `batching` orders them: vectors' rows (R, K), and the vectors (T, e); None without.
  seed: of their order.

  Where items of the history may not come (mask_history), rows whose next item stands in it are left
  out: `repeats` counts them. Raises DataError where no row is left.
  """

  def __init__(self, train: Interactions, table: Int[np.ndarray, 'N1 Q'], cfg: ConfigDict,
               size: int, place: Int[np.ndarray, ' N'], interests: tuple | None, seed: int):
    lengths = np.diff(train.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(train.items))
    rows = position[position > train.offsets[owner]]  # every item but a user's first one
    kept = np.arange(len(rows))
    if cfg.mask_history:
      _, first = np.unique(owner.astype(np.int64) * (len(place) + 1) + train.items,
                           return_index=True)
      kept = np.flatnonzero(np.isin(rows, first))
    if not len(kept):
      raise DataError('no training row is left to tune a policy on: every item that comes next '
                      'stands in its history already, and eval.mask_history forbids those')
    self.repeats = len(rows) - len(kept)
    self.end, self.begin = rows[kept], train.offsets[owner[rows[kept]]]
    self.items, self.table, self.place, self.size = train.items, table, place, size
    self.interests = None if interests is None else (interests[0][kept], interests[1])
    self.width, self.batch, self.seed = cfg.model.max_history, cfg.policy.batch, seed
    longest = int((self.end - self.begin).max())
    self.taken_width = 1 << max(3, longest.bit_length()) if cfg.mask_history else 0
    self.steps = -(-len(kept) // self.batch)  # of an epoch

  def __len__(self) -> int:
    return len(self.end)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    epoch, number = divmod(step, self.steps)
    order = np.random.default_rng((self.seed, epoch)).permutation(len(self.end))
    rows = np.resize(order, self.steps * self.batch)[number * self.batch:][:self.batch]
    histories = [self.items[self.begin[r]:self.end[r]] for r in rows]
    target = self.items[self.end[rows]]
    codes = self.table[target]
    batch = {
      'tokens': batching.pad_histories(histories, self.width),
      'lengths': np.array([min(len(h), self.width) for h in histories], np.int32),
      'target': target.astype(np.int32),
      'target_tokens': (codes + np.arange(codes.shape[1]) * self.size).astype(np.int32),
      'target_lengths': np.full(len(rows), codes.shape[1], np.int32)}
    if self.taken_width:
      taken = np.full((len(rows), self.taken_width), PAD, np.int32)
      for places, history in zip(taken, histories):
        seen = np.unique(self.place[history - 1])
        places[:len(seen)] = seen
      batch['taken'] = taken
    if self.interests is not None:
      row_of, vectors = self.interests
      batch |= {'interests': vectors[row_of[rows]], 'present': row_of[rows] > 0}
    return batch


def make_model(cfg: semantic_id_t5.Config) -> Model:
  """How tuning reads the recommender. What is frozen holds 'table', 'trie' and 'reference', the
  parameters that training began with. cfg: of the recommender."""
  def with_inputs(params: PyTree, frozen: PyTree, batch: dict[str, Array]) -> PyTree:
    inputs = {'params': params, 'table': frozen['table']}
    if 'interests' in batch:
      inputs['interests'] = batch['interests'], batch['present']
    return inputs

  def rollout_rule(frozen: PyTree, batch: dict[str, Array], denominator: str
                   ) -> constraints.CatalogConstraint:
    return constraints.CatalogConstraint(
      frozen['trie'], ItemFilter(taken=batch.get('taken')),
      normalization=constraints.Normalization(denominator, cfg.size))

  def supervised_rule(frozen: PyTree, batch: dict[str, Array]) -> constraints.CatalogConstraint:
    del batch
    return constraints.CatalogConstraint(
      frozen['trie'], normalization=constraints.Normalization(beam_ranking.NORMALIZE, cfg.size))

  def item_of(frozen: PyTree, nodes: Int[Array, 'B K']) -> Int[Array, 'B K']:
    trie = frozen['trie']
    return trie.item.at[trie.lo[nodes]].get(mode='clip') + 1

  return Model(
    semantic_id_t5.decoder(cfg), with_inputs,
    lambda frozen, batch: with_inputs(frozen['reference'], frozen, batch),
    functools.partial(rollout_rule, denominator='valid'), supervised_rule, item_of)


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, vectors_dir: Path, ids_dir: Path,
          interests_dir: Path | None, trained_dir: Path) -> dict:
  """Tunes every seed from its trained weights, and keeps the best of what validation saw; with
  policy.patience the trained weights are one of these, so a policy that loses is not kept.

  trained_dir: of the training or finetuning. work: of the stage. cfg: as `settings`. dataset,
  vectors_dir, ids_dir, interests_dir: as of `train.stage`. -> counts
  """
  data = train.load_training_data(cfg, dataset, vectors_dir, ids_dir, interests_dir)
  tuning = policy_tuning.from_config(cfg.policy)
  tuned, before, after, kept = [], [], [], []
  for seed in range(cfg.seeds):
    params = train.load_params(trained_dir, seed)
    before.append(train.validate_params(cfg, data, params))
    with work.again(f'seed-{cfg.seed + seed}'):
      work.log(f'    seed {cfg.seed + seed}: validation NDCG@10 {before[-1]:.4f} before')
      rec = tune_seed(work, cfg, data, tuning, params, cfg.seed + seed)
    score = train.validate_params(cfg, data, {**params, 'rec': rec})
    gained = score > before[-1] or not cfg.policy.patience
    kept.append(gained)
    after.append(score if gained else before[-1])
    tuned.append({**params, 'rec': jax.device_get(rec) if gained else params['rec']})
    if not gained:
      work.log(f'    {score:.4f} after, which is no gain: the weights of before stay')
  sequential.save(work.folder / 'model.npz', jax.tree.map(lambda *x: np.stack(x), *tuned))
  write_json(work.folder / 'valid.json', {
    'NDCG@10': [round(float(x), 6) for x in after], 'before': [round(float(x), 6) for x in before],
    'kept': kept})
  work.record(cfg.seeds, {f'valid_{seed}': float(x) for seed, x in enumerate(after)})
  shown = ', '.join(f'{b:.4f} -> {a:.4f}' for b, a in zip(before, after))
  return {'valid_NDCG@10': shown}


def tune_seed(work: Workdir, cfg: ConfigDict, data: train.TrainingData, tuning: PolicyTuning,
              params: PyTree, seed: int) -> PyTree:
  """Tunes one seed. -> the recommender's parameters

  params: {'rec', 'table'} of before. seed: of draws and order. data: of the run. tuning: settings.
  work, cfg: of the stage.
  """
  table = np.asarray(params['table'])
  trie = beam_ranking.build_device_trie(jnp.asarray(table), data.cfg.size)
  place = np.empty(len(table) - 1, np.int32)
  place[np.asarray(trie.item)] = np.arange(len(place))
  interests = None if data.train_interests is None else (data.train_interests, data.texts)
  requests = Requests(data.split.train, table, cfg, data.cfg.size, place, interests, seed)
  if requests.repeats:
    work.log(f'    {requests.repeats:,} rows are left out: their next item stands in the history, '
             'which may not come again')
  start = jax.tree.map(jnp.asarray, params['rec'])
  frozen = {'table': jnp.asarray(table), 'trie': trie,
            'reference': jax.tree.map(jnp.copy, start)}

  def evaluate(rec: PyTree, frozen: PyTree) -> dict[str, float]:
    del frozen
    score = train.validate_params(cfg, data, {**params, 'rec': rec})
    return {'valid_loss': -score, 'valid_NDCG@10': score}

  task = loop.Task(
    init=None, start=start, frozen=frozen, batches=requests, evaluate=evaluate,
    loss=policy_tuning.make_loss(tuning, make_model(data.cfg)))
  group = cfg.policy
  steps = group.steps or round(requests.steps * group.epochs)
  return loop.fit(task, loop.FitSettings(
    optim=group, steps=steps, seed=seed, log_every=group.log_every, save_every=group.save_every,
    eval_every=group.eval_every, patience=group.patience), work)
