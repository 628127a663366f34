"""The training stages: the recommender alone or in turn with the tokenizer, then finetuning."""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.data.dataset import Catalog, Dataset
from recjax.distributed import multihost
from recjax.errors import ConfigError
from recjax.evaluation import ranking
from recjax.file_io import write_json
from recjax.methods.etegrec import (
  batching,
  beam_ranking,
  interests,
  item_embeddings,
  joint_training,
  tokenization,
  update,
)
from recjax.methods.etegrec import joint_training as training
from recjax.models import rqvae, semantic_id_t5, t5
from recjax.models.layers import check_dtype
from recjax.policy import tuning
from recjax.training import continuation, cost_model, epoch_loop, optim, sequential
from recjax.training.continuation import Start
from recjax.training.workdir import Workdir

VARIANTS = ('tiger', 'etegrec')

# What of `semantic_ids` decides how a tokenizer is trained, and not which one it is then.
OF_TOKENIZER_TRAINING = (
  'sinkhorn', 'collaborative', 'diversity', 'steps', 'batch', 'eval_every', 'save_every', 'revive',
  'lr', 'warmup', 'schedule', 'decay', 'clip', 'beta2')


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the trained models. cfg: the run's config."""
  names = [
    'variant', 'fusion', 'model', 'semantic_ids', 'train', 'optim', 'decode', 'seed', 'seeds']
  names += ['align', 'id_optim'] if cfg.variant == 'etegrec' else []
  return ConfigDict({**{k: cfg[k] for k in names}, 'normalize': beam_ranking.NORMALIZE})


def finetune_settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the finetuned models. cfg: the run's config."""
  return ConfigDict({**settings(cfg), 'finetune': cfg.finetune})


def shortened(cfg: ConfigDict) -> ConfigDict:
  """The config with the epochs and learning rates of a training that goes on, the same where it
  begins from nothing.

  Item vectors, the alternation and the finetuning are shortened alike; the alignment, which the
  earlier run has warmed up, counts from the first epoch. cfg: the run's config.
  """
  if not cfg.start.run:
    return cfg
  cfg, share, factor = continuation.shortened(cfg), cfg.start.epochs_share, cfg.start.lr_factor
  with cfg.unlocked():
    if cfg.variant == 'etegrec':
      cfg.train.epochs = max(cfg.train.epochs, cfg.train.cycle)
      cfg.id_optim.lr *= factor
      cfg.align.warm = 0
    if cfg.finetune.epochs:
      cfg.finetune.update(
        epochs=max(1, round(cfg.finetune.epochs * share)), lr=cfg.finetune.lr * factor)
    if cfg.vectors.source == 'train':
      cfg.vectors.train.epochs = max(1, round(cfg.vectors.train.epochs * share))
      cfg.vectors.optim.lr *= factor
  return cfg


def open_start(cfg: ConfigDict, catalog: Catalog) -> Start | None:
  """The run that a config goes on from, None where it begins from nothing.

  cfg: the run's config. catalog: the items of its data. Raises what `continuation.open_start`
  does, and ConfigError for another model, tokenizer, source of vectors or number of seeds.
  """
  start = continuation.open_start(cfg, catalog, ['model.npz'])
  if not start:
    return None
  old = start.config
  for name in ('variant', 'fusion'):
    continuation.same_settings(start, cfg, name)
  continuation.same_settings(start, cfg, 'model', free=('dropout', 'max_history', 'dtype'))
  files = all(c.semantic_ids.kind.endswith('.json') for c in (old, cfg))
  continuation.same_settings(
    start, cfg, 'semantic_ids', free=OF_TOKENIZER_TRAINING + ('kind',) * files)
  kinds = [item_embeddings.kind_of_source(c.vectors.source) for c in (old, cfg)]
  if kinds[0] != kinds[1]:
    continuation.same_settings(start, cfg, 'vectors.source')
  for name in ('vectors.unit', *['vectors.model'] * (kinds[0] == 'train')):
    continuation.same_settings(start, cfg, name, free=('dropout',))
  for name in ['vectors.encoder'] * (kinds[0] == 'text') + ['interests.encoder'] * (
      cfg.fusion != 'none'):
    continuation.same_settings(start, cfg, name)
  continuation.same_seeds(start, cfg)
  return start


def model_config(cfg: ConfigDict, levels: int, size: int, dim: int,
                 text_width: int) -> semantic_id_t5.Config:
  """The recommender of a config.

  levels: codes of an item. size: codes of a level. dim: width of item vectors. text_width: of
  interest vectors. cfg: as `settings`.
  """
  model = cfg.model
  check_dtype('model.dtype', model.dtype)
  net = t5.Config(
    width=model.width, layers=model.layers, decoder_layers=model.decoder_layers, heads=model.heads,
    head_dim=model.head_dim, ffn=model.ffn, dropout=model.dropout, gated=model.gated,
    dtype=model.dtype)
  joint = cfg.variant == 'etegrec'
  code_width = (
    cfg.semantic_ids.width if tokenization.NETWORKS.get(cfg.semantic_ids.kind) == 'mlp' else dim)
  return semantic_id_t5.Config(
    net, levels, size, dim if joint else 0, code_width if joint else 0, cfg.fusion, text_width,
    model.fusion_heads, model.fusion_layers, model.reproduce_release, model.untied_output)


@dataclasses.dataclass
class TrainingData:
  """What training and evaluation read.

  cfg: of the recommender. id_cfg: of the tokenizer, None where that does not train. split: the
  users. table: codes of items, row 0 of padding. x: item vectors. texts: vectors of interests, row
  0 for none. bins, shares, steps: as `batching.make_bins` gives. valid, test: interests of those
  cases, rows of texts.
  """
  cfg: semantic_id_t5.Config
  id_cfg: rqvae.Config | None
  split: splits.Split
  table: Int[np.ndarray, 'N1 Q']
  x: Float[np.ndarray, 'N d']
  texts: Float[np.ndarray, 'T e']
  bins: list[batching.Bin]
  shares: list[int]
  steps: int
  valid: Int[np.ndarray, 'V K']
  test: Int[np.ndarray, 'U K']
  train_interests: Int[np.ndarray, 'R K'] | None = None

  def given(self, part: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Vectors of interests of some cases, as `beam_ranking.rank_items` takes them, or None.

    part: 'valid' or 'test'.
    """
    rows = getattr(self, part)
    return None if self.cfg.fusion == 'none' else (self.texts[rows], rows > 0)


def load_training_data(cfg: ConfigDict, dataset: Dataset, vectors_dir: Path, ids_dir: Path,
                       interests_dir: Path | None) -> TrainingData:
  """Reads what the stages before left.

  cfg: as `settings`. vectors_dir, ids_dir, interests_dir: of the stages, None without interests.
  dataset: of the run.
  """
  split = splits.make_split(dataset)
  x, table = item_embeddings.read(vectors_dir), tokenization.read(ids_dir)
  histories, targets = batching.prefixes(split.train, cfg.model.max_history)
  interest_rows = np.zeros((len(targets) + len(split.valid) + len(split.test), 1), np.int32)
  texts = np.zeros((1, 1), np.float32)
  if interests_dir is not None:
    interest_rows, texts, _ = interests.read(interests_dir)
  bins, shares, steps = batching.make_bins(
    histories, targets, interest_rows[: len(targets)], cfg.model.max_history, cfg.train.batch)
  net = model_config(cfg, table.shape[1], cfg.semantic_ids.size, x.shape[1], texts.shape[1])
  id_cfg = (
    tokenization.rqvae_config(cfg.semantic_ids, x.shape[1]) if cfg.variant == 'etegrec' else None)
  held_out_rows = interest_rows[len(targets) :]
  return TrainingData(
    net, id_cfg, split, np.pad(table, [(1, 0), (0, 0)], constant_values=-1), x, texts, bins, shares,
    steps, held_out_rows[: len(split.valid)], held_out_rows[len(split.valid) :],
    None if interests_dir is None else interest_rows[: len(targets)])


def num_levels(cfg: ConfigDict) -> int:
  """Codes of an item: those of the tokenizer, and one more that tells equal items apart. cfg: the
  run's config."""
  return cfg.semantic_ids.levels + (cfg.semantic_ids.dedupe in ('suffix', 'random'))


def trace_step(cfg: ConfigDict,
               dataset: Dataset) -> tuple[cost_model.TracedStep, int, list[batching.Bin]]:
  """What the recommender's side takes, from shapes. -> a step, steps an epoch, the bins

  cfg: the run's config. dataset: of the run.

  Interests are taken to have the width of hashed ones.
  """
  train = splits.make_split(dataset).train
  histories, targets = batching.prefixes(train, cfg.model.max_history)
  interest_rows = np.zeros(
    (len(targets), interests.MAX_INTERESTS if cfg.fusion != 'none' else 1), np.int32)
  bins, shares, steps = batching.make_bins(
    histories, targets, interest_rows, cfg.model.max_history, cfg.train.batch)
  step_bins = [
    tuple(
      jax.ShapeDtypeStruct((share, *x.shape[1:]), np.int32)
      for x in (one_bin.history, one_bin.target, one_bin.interests))
    for share, one_bin in zip(shares, bins)]
  dim = cfg.vectors.model.width
  net = model_config(cfg, num_levels(cfg), cfg.semantic_ids.size, dim, interests.HASH_WIDTH)
  key = jax.eval_shape(lambda: jax.random.key(0))
  fixed = {'table': jax.ShapeDtypeStruct((len(dataset.catalog) + 1, num_levels(cfg)), np.int32)}
  weights, id_cfg = training.AlignmentWeights(), None
  if cfg.variant == 'etegrec':
    weights, id_cfg = (
      training.AlignmentWeights(1.0, 1.0), tokenization.rqvae_config(cfg.semantic_ids, dim))
    fixed['id'] = jax.eval_shape(functools.partial(rqvae.init, id_cfg), key)
  x = jax.ShapeDtypeStruct((len(dataset.catalog), dim), np.float32)
  texts = jax.ShapeDtypeStruct((1, interests.HASH_WIDTH), np.float32)

  def loss(rec: PyTree, x: Array, texts: Array, fixed: PyTree, step_bins: Sequence, key: Array
          ) -> Array:
    return training.rec_loss(net, weights, id_cfg, x, texts, rec, fixed, step_bins, key, 1.0)[0]

  return (
    cost_model.trace(
      loss, jax.eval_shape(functools.partial(semantic_id_t5.init, net), key), x, texts, fixed,
      step_bins, key),
    steps, bins)


def check(cfg: ConfigDict) -> None:
  """What can be known to be wrong before anything runs. cfg: the run's config. Raises ConfigError.
  """
  if cfg.variant not in VARIANTS:
    raise ConfigError(f'variant={cfg.variant!r}; choose one of {", ".join(VARIANTS)}')
  if cfg.fusion != 'none' and not cfg.interests.source:
    raise ConfigError(f"fusion={cfg.fusion} needs interests; set interests.source='local', or "
                      "'api', or a folder of *.processed.jsonl files")
  if cfg.variant == 'etegrec':
    if cfg.semantic_ids.kind not in tokenization.NETWORKS or cfg.semantic_ids.dedupe != 'suffix':
      raise ConfigError(f'ETEGRec trains its tokenizer, so semantic_ids.kind must be one of '
                        f'{", ".join(tokenization.NETWORKS)}, with semantic_ids.dedupe=suffix')
    for key, known in (('sign', joint_training.SIGNS), ('reduce', joint_training.REDUCERS)):
      if cfg.align[key] not in known:
        raise ConfigError(f'align.{key}={cfg.align[key]!r}; choose one of {", ".join(known)}')
    if cfg.train.cycle < 2:
      raise ConfigError(f'train.cycle={cfg.train.cycle}: the recommender learns in all epochs but '
                        'one of a cycle, so it must be at least 2')
  elif cfg.fusion == 'pooled':
    raise ConfigError("fusion='pooled' changes the alignment with the tokenizer alone, never a "
                      "recommendation; with variant='tiger' nothing would read it: use 'encoder' "
                      "or 'prefix'")
  if cfg.policy.loss != 'none':
    tuning.from_config(cfg.policy)
  model_config(cfg, cfg.semantic_ids.levels + 1, cfg.semantic_ids.size, cfg.semantic_ids.width, 8)


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, vectors_dir: Path, ids_dir: Path,
          interests_dir: Path | None, start: Start | None = None) -> dict:
  """Trains all seeds, keeps the best epoch of each by validation NDCG@10.

  work: of the stage. cfg: as `settings`. dataset: of the run. vectors_dir, ids_dir, interests_dir:
  of the stages before. start: the run that it goes on from. -> counts
  """
  data = load_training_data(cfg, dataset, vectors_dir, ids_dir, interests_dir)
  if start:
    continuation.keep_split_facts(work, start, dataset, data.split)
  begin = first_params(start, cfg, data) if start else None
  joint = data.id_cfg is not None
  id_share = 1 / cfg.train.cycle if joint else 0  # the tokenizer's part of all epochs
  tx = {'rec': optim.make(cfg.optim, max(1, int(data.steps * cfg.train.epochs * (1 - id_share))))}
  fixed_start = {'table': jnp.asarray(data.table)}
  if joint:
    tx['id'] = optim.make(cfg.id_optim, max(1, int(data.steps * cfg.train.epochs * id_share)))
    fixed_start['id'] = jax.tree.map(jnp.asarray, sequential.load(ids_dir / 'tokenizer.npz'))
  count = sum(int((one_bin.target > 0).sum()) for one_bin in data.bins)
  parts = [
    f'{share} of {one_bin.history.shape[1]} items' for share, one_bin in zip(data.shares, data.bins)
  ]
  work.log(f'    {count:,} rows, {data.steps:,} steps an epoch of ' + ', '.join(parts))

  def init() -> PyTree:
    def init_seed(key: Array, old: PyTree) -> PyTree:
      params = old or {**fixed_start, 'rec': semantic_id_t5.init(data.cfg, key)}
      return {
        'params': params, 'opt': {side: side_tx.init(params[side]) for side, side_tx in tx.items()}}

    return jax.vmap(init_seed)(seed_keys(cfg), begin)

  weights = (
    training.AlignmentWeights(
      cfg.align.sia, cfg.align.psa, cfg.align.sign, cfg.align.reduce, cfg.align.temperature,
      cfg.align.tau, cfg.align.warm)
    if joint
    else (training.AlignmentWeights()))
  return fit_alternating(
    work, cfg, cfg.train, data, init, tx, weights, cfg.train.cycle if joint else 0)


def first_params(start: Start, cfg: ConfigDict, data: TrainingData) -> PyTree:
  """What a training that goes on begins with: {'rec', 'table', and of ETEGRec 'id'}, host arrays
  with a leading axis of seeds.

  Old items keep their IDs, new ones have those of the tokenizer; of ETEGRec each seed has its own.
  start: the earlier run. cfg: as `settings`. data: of the run.
  """
  old = continuation.for_seeds(sequential.load(start.folder / 'model.npz'), cfg.seeds)
  if data.id_cfg is None:
    return {**old, 'table': np.broadcast_to(data.table, (cfg.seeds, *data.table.shape))}
  new = data.x[old['table'].shape[1] - 1:]
  tables = [
    update.with_new_ids(start.workdir, cfg.semantic_ids, old['table'][seed], new,
                        jax.tree.map(lambda array: array[seed], old['id']))  # noqa: B023
    for seed in range(cfg.seeds)]
  return {**old, 'table': np.stack(tables)}


def finetune(work: Workdir, cfg: ConfigDict, dataset: Dataset, vectors_dir: Path, ids_dir: Path,
             interests_dir: Path | None, trained_dir: Path) -> dict:
  """The recommender alone again, from the best of before, its codes held. -> counts

  trained_dir: of the training stage. work: of the stage. cfg: as `finetune_settings`. dataset,
  vectors_dir, ids_dir, interests_dir: as of `stage`.
  """
  data = load_training_data(cfg, dataset, vectors_dir, ids_dir, interests_dir)
  tx = {'rec': optim.make(cfg.finetune, data.steps * cfg.finetune.epochs)}
  best = jax.tree.map(jnp.asarray, sequential.load(trained_dir / 'model.npz'))

  def init() -> PyTree:
    return {'params': best, 'opt': {'rec': jax.vmap(tx['rec'].init)(best['rec'])}}
  return fit_alternating(work, cfg, cfg.finetune, data, init, tx, training.AlignmentWeights(), 0)


def seed_keys(cfg: ConfigDict) -> Key[Array, ' S']:
  """A key of each seed. cfg: as `settings`."""
  return jnp.stack([jax.random.key(cfg.seed + seed) for seed in range(cfg.seeds)])


def fit_alternating(work: Workdir, cfg: ConfigDict, schedule: ConfigDict, data: TrainingData,
                    init: Callable, tx: dict, weights: training.AlignmentWeights,
                    cycle: int) -> dict:
  """Epochs of either side in turn.

  data: of the run. schedule: epochs, patience, save_every. init: -> the state of all seeds. tx:
  {side: optimizer}. weights: of the alignment. cycle: every so many epochs the tokenizer learns, 0
  for never. work: of the stage. cfg: as `settings`. -> counts
  """
  orders = functools.partial(
    batching.shuffle_rows, bins=data.bins, shares=data.shares, steps=data.steps)
  epoch_of_side = {
    side: jax.jit(
      jax.vmap(
        training.make_epoch(
          side, data.cfg, weights, data.id_cfg, tx[side], orders, batching.take_rows),
        (0, 0, None, None, None, None)),
      donate_argnums=0)
    for side in tx}
  replicated = jax.NamedSharding(work.mesh, jax.P())
  bins, x, texts = jax.tree.map(lambda array: multihost.put_global(array, replicated),
                                (data.bins, data.x, data.texts))
  keys = seed_keys(cfg)
  last = {}

  def epoch(state: PyTree, number: Any) -> tuple:
    last['side'] = 'id' if cycle and int(number) % cycle == 0 else 'rec'
    state, means = epoch_of_side[last['side']](state, keys, bins, x, texts, number)
    training.check_collisions(jax.device_get(means), data.cfg.size)
    return state, means

  def validate(params: PyTree) -> Any:
    if last['side'] == 'id':  # the recommender has not met these codes yet
      return np.full(cfg.seeds, np.nan)
    params_of = lambda seed: jax.tree.map(lambda p: p[seed], params)  # noqa: E731
    return [validate_params(cfg, data, params_of(seed)) for seed in range(cfg.seeds)]
  best, scores, best_epochs = epoch_loop.fit_epochs(init, epoch, validate, cfg=schedule, work=work)
  sequential.save(work.folder / 'model.npz', best)
  write_json(work.folder / 'valid.json', {
      'NDCG@10': [round(float(seed), 6) for seed in scores], 'epoch': best_epochs.tolist()})
  count = sum(p.size for p in jax.tree.leaves(best['rec'])) // cfg.seeds
  return {'parameters': f'{count:,}', 'best_epochs': ', '.join(map(str, best_epochs)),
          'valid_NDCG@10': ', '.join(f'{seed:.4f}' for seed in scores)}


def validate_params(cfg: ConfigDict, data: TrainingData, params: PyTree) -> float:
  """NDCG@10 of validation users, as many as the config looks at, by beams as in the test.

  data, params: of the run. cfg: as `settings`.
  """
  cases = data.split.valid
  order = splits.drawn_rows(cases, cfg.train.valid_users, 0)
  interests = data.given('valid')
  ranked, _ = beam_ranking.rank_items(
    data.cfg, params['rec'], params['table'], [cases.history(i) for i in order],
    cfg.model.max_history, cfg.decode,
    None if interests is None else tuple(array[order] for array in interests))
  return ranking.mean_ndcg(ranking.list_ranks(ranked, cases.targets[order], len(data.x)),
                           cases.select(order))


def load_params(folder: Path, seed: int) -> PyTree:
  """folder: of the training. seed: its number, from 0. -> {'rec', 'table', 'id'} of one seed, host
  arrays"""
  return sequential.load(folder / 'model.npz', seed)


def validation_scores(folder: Path) -> dict:
  """NDCG@10 and its epoch, of each seed. folder: of the training."""
  return run_files.need_json(folder / 'valid.json')
