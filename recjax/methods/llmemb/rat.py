"""Recommendation adaptation training: an adapter inside a sequential recommender.

Liu et al., AAAI 2025, arXiv 2409.19925. N items, k components, D width of the recommender, B
sequences of a batch, S their length, C distinct items of a batch.
"""
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Catalog, Dataset
from recjax.errors import ConfigError, DataError
from recjax.evaluation import ranking
from recjax.file_io import write_json
from recjax.methods.llmemb import item_embeddings, variants
from recjax.models import layers, seqrec
from recjax.training import continuation, cost_model, cpu_cost, sequential
from recjax.training.continuation import Start
from recjax.training.losses import contrastive
from recjax.training.workdir import Workdir

ACTIVATIONS = {'none': lambda x: x, 'gelu': jax.nn.gelu, 'relu': jax.nn.relu}
ALIGN_ITEMS = ('distinct', 'positions')


def check(cfg: ConfigDict, num_items: int) -> None:
  """What can be known to be wrong before anything is trained.

  num_items: of the catalog. cfg: the run's config. Raises ConfigError.
  """
  rat = cfg.rat
  if rat.activation not in ACTIVATIONS:
    raise ConfigError(f'rat.activation={rat.activation!r}; choose one of {", ".join(ACTIVATIONS)}')
  if rat.align_items not in ALIGN_ITEMS:
    raise ConfigError(f'rat.align_items={rat.align_items!r}; choose one of '
                      f'{", ".join(ALIGN_ITEMS)}')
  for loss in (rat.align_loss, cfg.scft.loss):
    if loss not in contrastive.KINDS:
      raise ConfigError(f'contrastive loss {loss!r} is unknown; choose one of '
                        f'{", ".join(contrastive.KINDS)}')
  for kind in variants.id_models(cfg):
    sequential.check(variants.recommender_config(cfg, kind), num_items)
  widths = {variants.recommender_config(cfg, k).model.width for k in (cfg.model.kind,
                                                                  variants.alignment_target(cfg))}
  if len(widths) > 1:
    raise ConfigError(f'model.width and base.width are {sorted(widths)}; alignment compares their '
                      'vectors, so they must be equal')
  if rat.max_align_items < 2 or not 1 <= cfg.pca.dim <= num_items:
    raise ConfigError(
      f'rat.max_align_items={rat.max_align_items} must be 2 or more, pca.dim={cfg.pca.dim} '
      f'between 1 and the number of items, {num_items}')


# Recommenders over ids alone.


def id_settings(cfg: ConfigDict, kind: str) -> ConfigDict:
  """What of the config decides a recommender over ids. kind: of the recommender. cfg: the run's
  config."""
  return variants.recommender_config(cfg, kind)


def ids_stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, old_dir: Path | None = None
              ) -> dict:
  """Trains a recommender over ids alone: the base to beat and the aim of the alignment. work: of
  the stage. cfg: as `id_settings`. dataset: of the run. old_dir: this stage of the run that it goes
  on from."""
  split = load_split(dataset)
  model = sequential.model_config(cfg, len(dataset.catalog))
  validate = ranking.validator(lambda params: sequential.scorer(model, params), split.valid,
                               model.items, cfg.seeds, cfg.train.valid_users)
  begin = None
  if old_dir:
    begin = continuation.for_seeds(sequential.load(old_dir / 'model.npz'), cfg.seeds)
  return save_models(work, cfg, *sequential.fit(
    work, cfg, model.items, split, validate, starts=(begin, begin)))


def load_split(dataset: Dataset) -> splits.Split:
  """How the users are split. dataset: of the run. Raises DataError where nobody can be judged."""
  split = splits.make_split(dataset)
  if not len(split.valid):
    raise DataError(f'no user of {dataset.name} has 3 items, so nobody can be validated or tested')
  return split


def save_models(work: Workdir, cfg: ConfigDict, params: PyTree, scores: np.ndarray,
                best_epochs: np.ndarray) -> dict:
  """Writes the model of every seed and how it was chosen.

  params: of all seeds. scores, best_epochs: of each. work: of the stage. cfg: of the training.
  -> counts
  """
  sequential.save(work.folder / 'model.npz', params)
  write_json(work.folder / 'valid.json', {
      'NDCG@10': [round(float(score), 6) for score in scores], 'epoch': best_epochs.tolist()})
  return {'parameters': f'{layers.count_params(params) // cfg.seeds:,}',
          'best_epochs': ', '.join(map(str, best_epochs)),
          'valid_NDCG@10': ', '.join(f'{score:.4f}' for score in scores)}


# RAT.


def settings(cfg: ConfigDict, variant: str) -> ConfigDict:
  """Everything in the config that decides this stage's result. variant: of VARIANTS. cfg: the run's
  config."""
  parts = variants.VARIANTS[variant]
  rat = {**cfg.rat.to_dict(), 'adapter': parts.adapter, 'freeze': parts.freeze,
         'alpha': cfg.rat.alpha if parts.align else 0.0,
         'ids_from': cfg.rat.ids_from if parts.adapter else 0}
  del rat['variant'], rat['ablations']
  return ConfigDict({**variants.recommender_config(cfg, cfg.model.kind), 'rat': rat,
                     'early_mask_row': cfg.reproduce_bugs.early_mask_row,
                     'raw_vectors': cfg.reproduce_bugs.raw_vectors})


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, table_dir: Path, ids_dir: Path,
          start: Start | None = None, old_dir: Path | None = None,
          old_table_dir: Path | None = None) -> dict:
  """Trains adapter and recommender, all seeds, and keeps each one's best epoch.

  cfg: as `settings`. table_dir: of the reduced item vectors. ids_dir: of the recommender whose
  items are the aim of the alignment. work: of the stage. dataset: of the run. start: the run that
  it goes on from; old_dir, old_table_dir: this stage of it, and its table_dir. -> counts
  """
  split = load_split(dataset)
  begin = None
  if start and old_dir and old_table_dir:
    continuation.keep_split_facts(work, start, dataset, split)
    begin = continuation.for_seeds(first_params(
      cfg, old_dir, *map(item_embeddings.read, (old_table_dir, table_dir))), cfg.seeds)
  model = sequential.model_config(cfg, len(dataset.catalog))
  vectors = jnp.asarray(
    adapter_inputs(cfg, model, item_embeddings.read(table_dir), len(dataset.catalog)))
  id_rows = has_id_row(cfg, split, model.items)
  aim = jnp.asarray(sequential.load(ids_dir / 'model.npz')['items'][:, 1:model.items + 1])
  full_params = jax.jit(lambda params: expand_table(cfg, model, params, vectors, id_rows=id_rows))
  validate = ranking.validator(
    lambda params: sequential.scorer(model, full_params(params)), split.valid, model.items,
    cfg.seeds, cfg.train.valid_users)
  objective = functools.partial(make_objective, cfg, vectors.shape[1], id_rows=id_rows)
  best, scores, best_epochs = sequential.fit(
    work, cfg, model.items, split, validate, objective, vectors, aim, starts=(begin, begin))
  sequential.save(
    work.folder / 'adapter.npz', {key: value for key, value in best.items() if key != 'rest'})
  return save_models(work, cfg, jax.vmap(full_params)(best), scores, best_epochs)


def first_params(cfg: ConfigDict, old_dir: Path, old_table: Float[np.ndarray, 'N k'],
                 table: Float[np.ndarray, 'M k']) -> PyTree:
  """What a training that goes on begins with: as `init` makes it, over the items of the earlier
  run, with a leading axis of seeds.

  Vectors come on a scale of all items, which new ones move a little; the adapter takes that back,
  so that it makes of old items what it made before. cfg: as `settings`. old_dir: of the earlier
  stage. old_table, table: the reduced vectors of then and now, the first rows alike.
  """
  params, rest = (sequential.load(old_dir / name) for name in ('adapter.npz', 'model.npz'))
  del rest['items']
  if cfg.rat.adapter and not cfg.raw_vectors:
    before, now = (x.std(0) if cfg.rat.whiten else np.sqrt((x ** 2).mean())
                   for x in (old_table, table))
    grown = (now / np.maximum(before, 1e-30)).astype(np.float32)
    params['adapter']['w1'] = params['adapter']['w1'] * np.reshape(grown, (-1, 1))
    if 'moved' in params:
      params['moved'] = params['moved'] / grown
  return {**params, 'rest': rest}


def open_start(cfg: ConfigDict, catalog: Catalog) -> Start | None:
  """The run that a config goes on from, None where it begins from nothing.

  cfg: the run's config. catalog: the items of its data. Raises what `continuation.open_start`
  does, and ConfigError for other encoders, prompts, components, recommenders or number of seeds.
  """
  start = continuation.open_start(cfg, catalog, ['model.npz', 'adapter.npz'])
  if not start:
    return None
  if variants.needs_llm(cfg):
    continuation.same_llm(start, cfg)
  if 'text' in variants.vector_sources(cfg):
    continuation.same_weights(start, cfg, 'text.weights')
  for group in ('prompts', 'pca', 'reproduce_bugs'):
    continuation.same_settings(start, cfg, group)
  for group in ('model', 'base'):
    continuation.same_settings(start, cfg, group, free=('dropout',))
  continuation.same_settings(start, cfg, 'rat', free=(
    'alpha', 'tau', 'align_loss', 'align_items', 'max_align_items', 'spread', 'ablations'))
  continuation.same_seeds(start, cfg)
  return start


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """What the trainings of recommenders take, each over all seeds at once. cfg: the run's config.
  dataset: of the run. -> {what: text, or `cpu_cost.Estimate`}"""
  split, num_items, steps_by_name = (
    splits.make_split(dataset), len(dataset.catalog), {})
  for kind in variants.id_models(cfg):
    planned = sequential.planned(id_settings(cfg, kind), num_items, split.train)
    steps_by_name[f'{kind} over ids'] = planned
  for variant in variants.variants(cfg):
    variant_cfg = settings(cfg, variant)
    model = sequential.model_config(variant_cfg, num_items)
    num_components = cfg.pca.dim if variant_cfg.rat.adapter else model.width
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)  # noqa: E731
    steps_by_name[f'RAT {variant}'] = sequential.planned(
      variant_cfg, num_items, split.train,
      functools.partial(
        make_objective, variant_cfg, num_components,
        id_rows=has_id_row(variant_cfg, split, num_items)),
      shape(num_items, num_components), shape(num_items, model.width))
  return {
    f'{name}: {what}': text
    for name, (step, steps, targets) in steps_by_name.items()
    for what, text in {
      **cost_model.traced_lines(
        step, steps, targets, cfg.train.epochs, cfg.seeds, jax.device_count(), unit='targets'),
      **cpu_cost.traced_lines(step, steps, cfg.train.epochs, cfg.seeds)}.items()
  }


def has_id_row(cfg: ConfigDict, split: splits.Split, num_items: int) -> Bool[Array, ' N'] | None:
  """Items with rat.ids_from training interactions or more; None where that is 0.

  split: of the users. num_items: of the catalog. cfg: as `settings`.
  """
  if not cfg.rat.ids_from:
    return None
  return jnp.asarray(
    np.bincount(split.train.items, minlength=num_items + 1)[1:] >= cfg.rat.ids_from)


def adapter_inputs(cfg: ConfigDict, model: seqrec.Config, table: Float[np.ndarray, 'N k'],
                   num_items: int, rows: np.ndarray | None = None) -> np.ndarray:
  """The frozen vectors as the recommender reads them, on one scale. -> (N, k)

  model: the recommender's. num_items: of the catalog. cfg: as `settings`. table: reduced item
  vectors. rows: others, that are brought to the same scale instead of the table.

  With rat.whiten every component has the same spread, so that an adapter learns them at the same
  pace. Without an adapter: the first D components, rows of length one on average. Raises DataError
  for a table of another catalog, ConfigError where there are fewer than D components.
  """
  if len(table) != num_items:
    raise DataError(
      f'the table of item vectors has {len(table)} rows, the catalog {num_items} items')
  rows = table if rows is None else rows
  if cfg.rat.adapter and cfg.raw_vectors:  # as released
    return rows
  if cfg.rat.adapter and cfg.rat.whiten:
    return rows / np.maximum(table.std(0), 1e-6 * max(float(table.std()), 1e-30))
  if cfg.rat.adapter:
    return rows / max(float(np.sqrt((table ** 2).mean())), 1e-30)
  if table.shape[1] < model.width:
    raise ConfigError(f'no_adapter uses {model.width} components (model.width), pca.dim='
                      f'{table.shape[1]} has fewer; raise it')
  table, rows = table[:, :model.width], rows[:, :model.width]
  if cfg.raw_vectors:
    return rows
  return rows / max(float(np.sqrt((table ** 2).sum(1).mean())), 1e-30)


def make_objective(cfg: ConfigDict, num_components: int, model: seqrec.Config, loss: Callable,
                   targets: int, id_rows: Array | None = None) -> tuple[Callable, Callable]:
  """What `training.sequential.fit` is to train instead of the model as it is.

  num_components: of an item vector. model: the recommender's. cfg: as `settings`. loss: of the
  whole recommender. targets: of a batch. id_rows: as `has_id_row` gives it. -> init(key),
  loss(params, vectors, aim, seqs, key)
  """
  max_items = max_distinct_items(cfg, model, targets)

  def total(params: PyTree, vectors: Array, aim: Array, seqs: Array, key: Array) -> Array:
    item_ids = batch_items(cfg, model, targets, max_items, seqs, key)
    full_params = expand_table(cfg, model, params, vectors, item_ids, id_rows)
    value = loss(full_params, seqs, key)
    if not cfg.rat.alpha:
      return value
    return value + cfg.rat.alpha * alignment_loss(
      cfg, model, full_params['items'], aim, seqs, key, targets)

  return functools.partial(init, cfg, model, num_components), total


def init(cfg: ConfigDict, model: seqrec.Config, num_components: int, key: Key[Array, '']) -> PyTree:
  """What is trained: the recommender without its table, and what makes the table.

  model: the recommender's. num_components: of an item vector. cfg: as `settings`. key: of the
  draws.
  """
  rest = seqrec.init(model, jax.random.fold_in(key, 0))
  del rest['items']
  params = {'rest': rest}
  if cfg.rat.adapter:
    params['adapter'] = init_adapter(
      num_components, cfg.rat.hidden or num_components // 2, model.width, cfg.rat.spread,
      jax.random.fold_in(key, 1))
  if not cfg.rat.freeze:
    params['moved'] = jnp.zeros(
      (model.items, num_components)
    )  # what training adds to the frozen vectors
  if cfg.rat.ids_from:
    params['own'] = jnp.zeros((model.items, model.width))  # what texts do not say
  if not model.causal:
    params['mask'] = 0.01 * jax.random.normal(jax.random.fold_in(key, 2), (model.width,))
  return params


def init_adapter(num_components: int, hidden: int, width: int, spread: float,
                 key: Key[Array, '']) -> dict[str, Array]:
  """Two layers; `spread` is about the size of the numbers that come out, of inputs about one.

  num_components, hidden, width: numbers that come in, stand between, come out. key: of the draws.
  """
  first_key, second_key = jax.random.split(key)
  return {
    'w1': jax.random.normal(first_key, (num_components, hidden)) * num_components**-0.5,
    'b1': jnp.zeros(hidden),
    'w2': jax.random.normal(second_key, (hidden, width)) * spread * hidden**-0.5,
    'b2': jnp.zeros(width)}


def apply_adapter(adapter: dict[str, Array], x: Float[Array, '*B k'],
                  activation: str = 'none') -> Float[Array, '*B D']:
  """W2 act(W1 x + b1) + b2 (Liu et al., AAAI 2025).

  adapter: its weights. x: vectors. activation: of ACTIVATIONS.
  """
  hidden = ACTIVATIONS[activation](x @ adapter['w1'] + adapter['b1'])
  return hidden @ adapter['w2'] + adapter['b2']


def expand_table(cfg: ConfigDict, model: seqrec.Config, params: PyTree,
                 vectors: Float[Array, 'N k'], item_ids: Int[Array, ' C'] | None = None,
                 id_rows: Bool[Array, ' N'] | None = None) -> PyTree:
  """The recommender's parameters with the item table that the adapter makes.

  model: the recommender's. params: what is trained. vectors: as `adapter_inputs` gives them.
  item_ids: that are read, 0 for none; the rest of the table is zeros. None makes all. id_rows:
  items with a row of their own beside it. cfg: as `settings`. -> tree of seqrec
  """
  ids = jnp.arange(1, model.items + 1) if item_ids is None else item_ids
  x = vectors if item_ids is None else vectors[ids - 1]
  if cfg.early_mask_row and model.causal:  # as released: a row of zeros in the last item's place
    x = jnp.where(ids[:, None] == model.items, 0, x)
  if 'moved' in params:
    x = x + params['moved'][ids - 1]
  rows = apply_adapter(params['adapter'], x, cfg.rat.activation) if 'adapter' in params else x
  if 'own' in params:
    rows = rows + jnp.where(id_rows[ids - 1, None], params['own'][ids - 1], 0)
  positions = jnp.where(ids > 0, ids, model.items + 2)
  table = jnp.zeros((model.items + 2, model.width)).at[positions].set(rows, mode='drop')
  if 'mask' in params:
    table = table.at[model.mask].set(params['mask'])
  if model.pads and 'adapter' in params:  # as released: padding goes through the adapter
    table = table.at[0].set(
      apply_adapter(params['adapter'], jnp.zeros(x.shape[-1]), cfg.rat.activation))
  return {**params['rest'], 'items': table}


def max_distinct_items(cfg: ConfigDict, model: seqrec.Config, targets: int) -> int:
  """How many distinct items a batch can hold at most; 0 where that is no less than all.

  model: the recommender's. targets: of a batch. A softmax over the catalog reads them all; noisy
  masks show any item. cfg: as `settings`.
  """
  if cfg.loss.kind in ('ce', 'chunked') or cfg.train.get('mask_by_chance'):
    return 0
  num_negatives = (
    cfg.loss.negatives
    * {'batch': 1, 'sequence': cfg.train.batch, 'position': targets}[cfg.loss.negative_scope])
  # Every token but a user's first is a target too.
  tokens = targets + cfg.train.batch if model.causal else cfg.train.batch * (model.max_history + 1)
  max_items = -(-(tokens + num_negatives) // 128) * 128
  return max_items if max_items < model.items else 0


def batch_items(cfg: ConfigDict, model: seqrec.Config, targets: int, max_items: int,
                seqs: Int[Array, 'B S'], key: Key[Array, '']) -> Int[Array, ' C'] | None:
  """The distinct items of a batch's sequences and negatives, 0 behind; None where max_items is 0.

  model: the recommender's. seqs: item ids of the users. targets: of a batch. key: of the step, from
  which training draws its negatives, too. cfg: as `settings`.
  """
  if not max_items:
    return None
  negatives = sequential.negatives(cfg.loss, model.items, targets, len(seqs),
                                   jax.random.split(key, 3)[2])
  read_items = jnp.concatenate([seqs.reshape(-1), negatives.reshape(-1) + 1])
  return jnp.unique(read_items, size=max_items + 1, fill_value=0)


def alignment_loss(cfg: ConfigDict, model: seqrec.Config, table: Float[Array, 'M D'],
                   aim: Float[Array, 'N D'], seqs: Int[Array, 'B S'], key: Key[Array, ''],
                   targets: int) -> Float[Array, '']:
  """How far the table is from that of ids, over what the batch asks for.

  model: the recommender's. seqs: item ids of the users. key: of the step. table: of the
  recommender, row 0 of padding. aim: item table of ids, without padding. targets: of a batch. cfg:
  as `settings`.
  """
  mask_key, _, draw_key = jax.random.split(key, 3)
  target_ids = sequential.example(cfg, model, seqs, mask_key)[1].reshape(-1)
  if cfg.rat.align_items == 'positions':
    positions = jnp.nonzero(target_ids, size=targets, fill_value=target_ids.size)[0]
    ids = target_ids.at[positions].get(mode='fill', fill_value=0)
  else:
    ids = sample_distinct(
      target_ids, model.items, min(cfg.rat.max_align_items, model.items, targets), draw_key)
  return contrastive.loss(aim[ids - 1], table[ids], cfg.rat.tau, cfg.rat.align_loss, ids > 0)


def sample_distinct(target_ids: Int[Array, ' P'], num_items: int, max_items: int,
                    key: Key[Array, '']) -> Int[Array, ' M']:
  """Up to `max_items` distinct ids above 0, drawn without replacement where there are more.

  num_items: of the catalog. key: of the draw. target_ids: 0 for none. -> ids, 0 behind
  """
  present = jnp.zeros(num_items + 1, bool).at[target_ids].set(True).at[0].set(False)
  noise = jnp.where(present, jax.random.uniform(key, present.shape), -1.0)
  best, ids = jax.lax.top_k(noise, max_items)
  return jnp.where(best >= 0, ids, 0)
