"""Recommendation adaptation training: an adapter inside a sequential recommender (llmemb.md 6, 7).

N items, k components, D width of the recommender, C distinct items of a batch.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.errors import ConfigError, DataError
from recjax.evaluation import ranking
from recjax.file_io import write_json
from recjax.methods.llmemb import item_embeddings, variants
from recjax.models import seqrec
from recjax.training import cost_model, sequential
from recjax.training.losses import contrastive

ACTIVATIONS = {'none': lambda x: x, 'gelu': jax.nn.gelu, 'relu': jax.nn.relu}
ALIGN_ITEMS = ('distinct', 'positions')


def check(cfg, items):
  """What can be known to be wrong before anything is trained. Raises ConfigError."""
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
    sequential.check(variants.recommender_config(cfg, kind), items)
  widths = {variants.recommender_config(cfg, k).model.width for k in (cfg.model.kind,
                                                                  variants.aligned_to(cfg))}
  if len(widths) > 1:
    raise ConfigError(f'model.width and base.width are {sorted(widths)}; alignment compares their '
                      'vectors, so they must be equal')
  if rat.align_most < 2 or not 1 <= cfg.pca.dim <= items:
    raise ConfigError(f'rat.align_most={rat.align_most} must be 2 or more, pca.dim={cfg.pca.dim} '
                      f'between 1 and the number of items, {items}')


# Recommenders over ids alone.


def id_settings(cfg, kind):
  """What of the config decides a recommender over ids."""
  return variants.recommender_config(cfg, kind)


def ids_stage(work, cfg, shop):
  """Trains a recommender over ids alone: the base to beat and the aim of the alignment."""
  split = split_of(shop)
  model = sequential.model_config(cfg, len(shop.catalog))
  judge = ranking.validator(lambda params: sequential.scorer(model, params), split.valid,
                            model.items, cfg.seeds, cfg.train.valid_users)
  return keep(work, cfg, *sequential.fit(work, cfg, model.items, split.train, judge))


def split_of(shop):
  """Leave-one-out. Raises DataError where nobody can be judged."""
  split = splits.leave_one_out(shop.interactions)
  if not len(split.valid):
    raise DataError(f'no user of {shop.name} has 3 items, so nobody can be validated or tested')
  return split


def keep(work, cfg, params, scores, at):
  """Writes the model of every seed and how it was chosen. -> counts"""
  sequential.save(work.folder / 'model.npz', params)
  write_json(work.folder / 'valid.json', {
      'NDCG@10': [round(float(s), 6) for s in scores], 'epoch': at.tolist()})
  return {'parameters': f'{seqrec.parameters(params) // cfg.seeds:,}',
          'best_epochs': ', '.join(map(str, at)),
          'valid_NDCG@10': ', '.join(f'{s:.4f}' for s in scores)}


# RAT.


def settings(cfg, variant):
  """Everything in the config that decides this stage's result."""
  what = variants.VARIANTS[variant]
  rat = {**cfg.rat.to_dict(), 'adapter': what.adapter, 'freeze': what.freeze,
         'alpha': cfg.rat.alpha if what.align else 0.0,
         'ids_from': cfg.rat.ids_from if what.adapter else 0}
  del rat['variant'], rat['ablations']
  return ConfigDict({**variants.recommender_config(cfg, cfg.model.kind), 'rat': rat,
                     'early_mask_row': cfg.defects.early_mask_row,
                     'raw_vectors': cfg.defects.raw_vectors})


def stage(work, cfg, shop, table, ids):
  """Trains adapter and recommender, all seeds, and keeps each one's best epoch. -> counts"""
  split = split_of(shop)
  model = sequential.model_config(cfg, len(shop.catalog))
  vectors = jnp.asarray(inputs(cfg, model, item_embeddings.read(table), len(shop.catalog)))
  own = known(cfg, split, model.items)
  aim = jnp.asarray(sequential.load(ids / 'model.npz')['items'][:, 1:model.items + 1])
  whole = jax.jit(lambda params: expand(cfg, model, params, vectors, own=own))
  judge = ranking.validator(lambda params: sequential.scorer(model, whole(params)), split.valid,
                            model.items, cfg.seeds, cfg.train.valid_users)
  taught = functools.partial(teach, cfg, vectors.shape[1], own=own)
  best, scores, at = sequential.fit(work, cfg, model.items, split.train, judge, taught, vectors,
                                    aim)
  sequential.save(work.folder / 'adapter.npz', {k: v for k, v in best.items() if k != 'rest'})
  return keep(work, cfg, jax.vmap(whole)(best), scores, at)


def cost(cfg, shop):
  """What the trainings of recommenders take, each over all seeds at once. -> {what: text}"""
  split, items, found = splits.leave_one_out(shop.interactions), len(shop.catalog), {}
  for kind in variants.id_models(cfg):
    parts = sequential.planned(id_settings(cfg, kind), items, split.train)
    found[f'{kind} over ids'] = parts
  for variant in variants.variants(cfg):
    how = settings(cfg, variant)
    model = sequential.model_config(how, items)
    k = cfg.pca.dim if how.rat.adapter else model.width
    shape = lambda *n: jax.ShapeDtypeStruct(n, jnp.float32)  # noqa: E731
    found[f'RAT {variant}'] = sequential.planned(
      how,
      items,
      split.train,
      functools.partial(teach, how, k, own=known(how, split, items)),
      shape(items, k),
      shape(items, model.width),
    )
  return {
    f'{name}: {what}': said
    for name, (step, steps, targets) in found.items()
    for what, said in cost_model.traced_lines(
      step, steps, targets, cfg.train.epochs, cfg.seeds, jax.device_count(), unit='targets'
    ).items()
  }


def known(cfg, split, items):
  """Items with rat.ids_from training interactions or more; None where that is 0. -> (N,) bool"""
  if not cfg.rat.ids_from:
    return None
  return jnp.asarray(np.bincount(split.train.items, minlength=items + 1)[1:] >= cfg.rat.ids_from)


def inputs(cfg, model, table, items, rows=None):
  """The frozen vectors as the recommender reads them, on one scale. -> (N, k)

  rows: others, that are brought to the same scale instead of the table.

  With rat.whiten every component has the same spread, so that an adapter learns them at the same
  pace. Without an adapter: the first D components, rows of length one on average. Raises DataError
  for a table of another catalogue, ConfigError where there are fewer than D components.
  """
  if len(table) != items:
    raise DataError(f'the table of item vectors has {len(table)} rows, the catalogue {items} items')
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


def teach(cfg, k, model, loss, targets, own=None):
  """What `training.sequential.fit` is to train instead of the model as it is.

  k: components. loss: of the whole recommender. own: as `known` gives it.
  -> init(key), loss(params, vectors, aim, seqs, key)
  """
  most = distinct_room(cfg, model, targets)

  def total(params, vectors, aim, seqs, key):
    some = batch_items(cfg, model, targets, most, seqs, key)
    full = expand(cfg, model, params, vectors, some, own)
    value = loss(full, seqs, key)
    if not cfg.rat.alpha:
      return value
    return value + cfg.rat.alpha * alignment(cfg, model, full['items'], aim, seqs, key, targets)
  return functools.partial(init, cfg, model, k), total


def init(cfg, model, k, key):
  """What is trained: the recommender without its table, and what makes the table."""
  rest = seqrec.init(model, jax.random.fold_in(key, 0))
  del rest['items']
  params = {'rest': rest}
  if cfg.rat.adapter:
    params['adapter'] = init_adapter(k, cfg.rat.hidden or k // 2, model.width, cfg.rat.spread,
                                     jax.random.fold_in(key, 1))
  if not cfg.rat.freeze:
    params['moved'] = jnp.zeros((model.items, k))  # what training adds to the frozen vectors
  if cfg.rat.ids_from:
    params['own'] = jnp.zeros((model.items, model.width))  # what texts do not say
  if not model.causal:
    params['mask'] = 0.01 * jax.random.normal(jax.random.fold_in(key, 2), (model.width,))
  return params


def init_adapter(k, hidden, width, spread, key):
  """Two layers; `spread` is about the size of the numbers that come out, of inputs about one."""
  one, two = jax.random.split(key)
  return {'w1': jax.random.normal(one, (k, hidden)) * k ** -0.5, 'b1': jnp.zeros(hidden),
          'w2': jax.random.normal(two, (hidden, width)) * spread * hidden ** -0.5,
          'b2': jnp.zeros(width)}


def adapt(adapter, x, activation='none'):
  """W2 act(W1 x + b1) + b2. x: (…, k) -> (…, D)"""
  inner = ACTIVATIONS[activation](x @ adapter['w1'] + adapter['b1'])
  return inner @ adapter['w2'] + adapter['b2']


def expand(cfg, model, params, vectors, some=None, own=None):
  """The recommender's parameters with the item table that the adapter makes.

  vectors: (N, k). some: (C,) item ids that are read, 0 for none; the rest of the table is zeros.
  None makes all. own: (N,) bool, items with a row of their own beside it. -> tree of seqrec
  """
  ids = jnp.arange(1, model.items + 1) if some is None else some
  x = vectors if some is None else vectors[ids - 1]
  if cfg.early_mask_row and model.causal:  # as released: a row of zeros in the last item's place
    x = jnp.where(ids[:, None] == model.items, 0, x)
  if 'moved' in params:
    x = x + params['moved'][ids - 1]
  rows = adapt(params['adapter'], x, cfg.rat.activation) if 'adapter' in params else x
  if 'own' in params:
    rows = rows + jnp.where(own[ids - 1, None], params['own'][ids - 1], 0)
  at = jnp.where(ids > 0, ids, model.items + 2)
  table = jnp.zeros((model.items + 2, model.width)).at[at].set(rows, mode='drop')
  if 'mask' in params:
    table = table.at[model.mask].set(params['mask'])
  if model.pads and 'adapter' in params:  # as released: padding goes through the adapter
    table = table.at[0].set(adapt(params['adapter'], jnp.zeros(x.shape[-1]), cfg.rat.activation))
  return {**params['rest'], 'items': table}


def distinct_room(cfg, model, targets):
  """How many distinct items a batch can hold at most; 0 where that is no less than all.

  A softmax over the catalogue reads them all; noisy masks show any item.
  """
  if cfg.loss.kind in ('ce', 'chunked') or cfg.train.get('mask_by_chance'):
    return 0
  drawn = cfg.loss.negatives * {'batch': 1, 'sequence': cfg.train.batch, 'position': targets}[
      cfg.loss.negative_scope]
  # Every token but a user's first is a target too.
  tokens = targets + cfg.train.batch if model.causal else cfg.train.batch * (model.max_history + 1)
  most = -(-(tokens + drawn) // 128) * 128
  return most if most < model.items else 0


def batch_items(cfg, model, targets, most, seqs, key):
  """The distinct items of a batch's sequences and negatives. -> (C,) int32, 0 behind; or None"""
  if not most:
    return None
  drawn = sequential.negatives(cfg.loss, model.items, targets, len(seqs),
                               jax.random.split(key, 3)[2])
  both = jnp.concatenate([seqs.reshape(-1), drawn.reshape(-1) + 1])
  return jnp.unique(both, size=most + 1, fill_value=0)


def alignment(cfg, model, table, aim, seqs, key, targets):
  """How far the table is from that of ids, over what the batch asks for. aim: (N, D) -> ()"""
  hide, _, draw = jax.random.split(key, 3)
  goals = sequential.example(cfg, model, seqs, hide)[1].reshape(-1)
  if cfg.rat.align_items == 'positions':
    at = jnp.nonzero(goals, size=targets, fill_value=goals.size)[0]
    ids = goals.at[at].get(mode='fill', fill_value=0)
  else:
    ids = distinct(goals, model.items, min(cfg.rat.align_most, model.items, targets), draw)
  return contrastive.loss(aim[ids - 1], table[ids], cfg.rat.tau, cfg.rat.align_loss, ids > 0)


def distinct(goals, items, most, key):
  """Up to `most` distinct ids above 0, drawn without replacement where there are more.

  goals: (P,) ids, 0 for none. -> (most,) int32, 0 behind
  """
  there = jnp.zeros(items + 1, bool).at[goals].set(True).at[0].set(False)
  noise = jnp.where(there, jax.random.uniform(key, there.shape), -1.0)
  best, ids = jax.lax.top_k(noise, most)
  return jnp.where(best >= 0, ids, 0)
