"""The training stages: the recommender alone or in turn with the tokenizer, then finetuning."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.distributed import multihost
from recjax.errors import ConfigError
from recjax.evaluation import metrics, ranking
from recjax.file_io import write_json
from recjax.methods.etegrec import (
  alignment,
  batching,
  beam_ranking,
  interests,
  item_embeddings,
  tokenization,
)
from recjax.methods.etegrec import joint_training as training
from recjax.models import rqvae, semantic_id_t5, t5
from recjax.models.layers import check_dtype
from recjax.training import cost_model, epoch_loop, optim, sequential

WAYS = ('tiger', 'etegrec')


def settings(cfg):
  """What of the config decides the trained models."""
  names = ['variant', 'fusion', 'model', 'tokenizer', 'train', 'optim', 'decode', 'seed', 'seeds']
  names += ['align', 'id_optim'] if cfg.variant == 'etegrec' else []
  return ConfigDict({**{k: cfg[k] for k in names}, 'normalize': beam_ranking.NORMALIZE})


def finetune_settings(cfg):
  return ConfigDict({**settings(cfg), 'finetune': cfg.finetune})


def shape(cfg, levels, size, dim, text):
  """The recommender of a config. levels: Q. dim, text: widths of item and interest vectors."""
  m = cfg.model
  check_dtype('model.dtype', m.dtype)
  net = t5.Config(width=m.width, layers=m.layers, decoder_layers=m.decoder_layers, heads=m.heads,
                  head_dim=m.head_dim, ffn=m.ffn, dropout=m.dropout, gated=m.gated, dtype=m.dtype)
  both = cfg.variant == 'etegrec'
  code = cfg.tokenizer.width if tokenization.NETWORKS.get(cfg.tokenizer.kind) == 'mlp' else dim
  return semantic_id_t5.Config(
    net,
    levels,
    size,
    dim if both else 0,
    code if both else 0,
    cfg.fusion,
    text,
    m.fusion_heads,
    m.fusion_layers,
    m.compat,
    m.apart,
  )


@dataclasses.dataclass
class Task:
  """What training and evaluation read. cfg: coder.Config. id_cfg: rqvae.Config or None. table:
  (N + 1, Q). x: (N, d). texts: (U + 1, d'). bins, shares, steps: as `batching.bins` gives. valid,
  test: interests of those cases, (n, K) rows of texts."""
  cfg: semantic_id_t5.Config
  id_cfg: rqvae.Config | None
  split: splits.Split
  table: np.ndarray
  x: np.ndarray
  texts: np.ndarray
  bins: list
  shares: list
  steps: int
  valid: np.ndarray
  test: np.ndarray

  def given(self, which):
    """Vectors of interests of some cases, as `beam_ranking.ranked` takes them, or None."""
    rows = getattr(self, which)
    return None if self.cfg.fusion == 'none' else (self.texts[rows], rows > 0)


def task(cfg, shop, made, coded, heard):
  """Reads what the stages before left. heard: the folder of interests, or None. -> Task"""
  split = splits.leave_one_out(shop.interactions)
  x, table = item_embeddings.read(made), tokenization.read(coded)
  histories, targets = batching.prefixes(split.train, cfg.model.max_history)
  told = np.zeros((len(targets) + len(split.valid) + len(split.test), 1), np.int32)
  texts = np.zeros((1, 1), np.float32)
  if heard is not None:
    told, texts, _ = interests.read(heard)
  bins, shares, steps = batching.bins(histories, targets, told[:len(targets)],
                                      cfg.model.max_history, cfg.train.batch)
  net = shape(cfg, table.shape[1], cfg.tokenizer.size, x.shape[1], texts.shape[1])
  id_cfg = tokenization.shape(cfg.tokenizer, x.shape[1]) if cfg.variant == 'etegrec' else None
  rest = told[len(targets):]
  return Task(net, id_cfg, split, np.pad(table, [(1, 0), (0, 0)], constant_values=-1), x, texts,
              bins, shares, steps, rest[:len(split.valid)], rest[len(split.valid):])


def levels(cfg):
  """Codes of an item: those of the tokenizer, and one more that tells equal items apart."""
  return cfg.tokenizer.levels + (cfg.tokenizer.dedupe in ('suffix', 'random'))


def planned(cfg, shop):
  """What the recommender's side takes, from shapes. -> (traced.Step, steps an epoch, [rows.Bin])

  Interests are taken to have the width of hashed ones.
  """
  train = splits.leave_one_out(shop.interactions).train
  histories, targets = batching.prefixes(train, cfg.model.max_history)
  told = np.zeros((len(targets), interests.MOST if cfg.fusion != 'none' else 1), np.int32)
  made, shares, steps = batching.bins(histories, targets, told, cfg.model.max_history,
                                      cfg.train.batch)
  some = [tuple(jax.ShapeDtypeStruct((share, *x.shape[1:]), np.int32)
                for x in (b.history, b.target, b.interests)) for share, b in zip(shares, made)]
  dim = cfg.vectors.model.width
  net = shape(cfg, levels(cfg), cfg.tokenizer.size, dim, interests.HASHED)
  key = jax.eval_shape(lambda: jax.random.key(0))
  fixed = {'table': jax.ShapeDtypeStruct((len(shop.catalog) + 1, levels(cfg)), np.int32)}
  weights, id_cfg = training.Weights(), None
  if cfg.variant == 'etegrec':
    weights, id_cfg = training.Weights(1.0, 1.0), tokenization.shape(cfg.tokenizer, dim)
    fixed['id'] = jax.eval_shape(functools.partial(rqvae.init, id_cfg), key)
  x = jax.ShapeDtypeStruct((len(shop.catalog), dim), np.float32)
  texts = jax.ShapeDtypeStruct((1, interests.HASHED), np.float32)

  def loss(rec, x, texts, fixed, some, key):
    return training.rec_loss(net, weights, id_cfg, x, texts, rec, fixed, some, key, 1.0)[0]

  return (
    cost_model.trace(
      loss,
      jax.eval_shape(functools.partial(semantic_id_t5.init, net), key),
      x,
      texts,
      fixed,
      some,
      key,
    ),
    steps,
    made,
  )


def check(cfg):
  """What can be known to be wrong before anything runs. Raises ConfigError."""
  if cfg.variant not in WAYS:
    raise ConfigError(f'variant={cfg.variant!r}; choose one of {", ".join(WAYS)}')
  if cfg.fusion != 'none' and not cfg.interests.source:
    raise ConfigError(f"fusion={cfg.fusion} needs interests; set interests.source='local', or a "
                      'folder of *.processed.jsonl files')
  if cfg.variant == 'etegrec':
    if cfg.tokenizer.kind not in tokenization.NETWORKS or cfg.tokenizer.dedupe != 'suffix':
      raise ConfigError(f'ETEGRec trains its tokenizer, so tokenizer.kind must be one of '
                        f'{", ".join(tokenization.NETWORKS)}, with tokenizer.dedupe=suffix')
    for key, known in (('sign', alignment.SIGNS), ('reduce', alignment.REDUCERS)):
      if cfg.align[key] not in known:
        raise ConfigError(f'align.{key}={cfg.align[key]!r}; choose one of {", ".join(known)}')
    if cfg.train.cycle < 2:
      raise ConfigError(f'train.cycle={cfg.train.cycle}: the recommender learns in all epochs but '
                        'one of a cycle, so it must be at least 2')
  elif cfg.fusion == 'pooled':
    raise ConfigError("fusion='pooled' changes the alignment with the tokenizer alone, never a "
                      "recommendation; with variant='tiger' nothing would read it: use 'encoder' "
                      "or 'prefix'")
  shape(cfg, cfg.tokenizer.levels + 1, cfg.tokenizer.size, cfg.tokenizer.width, 8)


def stage(work, cfg, shop, made, coded, heard):
  """Trains all seeds, keeps the best epoch of each by validation NDCG@10. -> counts"""
  given = task(cfg, shop, made, coded, heard)
  both = given.id_cfg is not None
  turn = 1 / cfg.train.cycle if both else 0  # the tokenizer's part of all epochs
  tx = {'rec': optim.make(cfg.optim, max(1, int(given.steps * cfg.train.epochs * (1 - turn))))}
  start = {'table': jnp.asarray(given.table)}
  if both:
    tx['id'] = optim.make(cfg.id_optim, max(1, int(given.steps * cfg.train.epochs * turn)))
    start['id'] = jax.tree.map(jnp.asarray, sequential.load(coded / 'tokenizer.npz'))
  count = sum(int((b.target > 0).sum()) for b in given.bins)
  parts = [f'{share} of {b.history.shape[1]} items' for share, b in zip(given.shares, given.bins)]
  work.say(f'    {count:,} rows, {given.steps:,} steps an epoch of ' + ', '.join(parts))

  def init():
    def one(key):
      params = {**start, 'rec': semantic_id_t5.init(given.cfg, key)}
      return {'params': params, 'opt': {side: t.init(params[side]) for side, t in tx.items()}}
    return jax.vmap(one)(keys_of(cfg))
  weights = training.Weights(cfg.align.sia, cfg.align.psa, cfg.align.sign, cfg.align.reduce,
                             cfg.align.temperature, cfg.align.tau, cfg.align.warm) if both else (
                                 training.Weights())
  return fit(work, cfg, cfg.train, given, init, tx, weights, cfg.train.cycle if both else 0)


def finetune(work, cfg, shop, made, coded, heard, trained):
  """The recommender alone again, from the best of before, its codes held. -> counts"""
  given = task(cfg, shop, made, coded, heard)
  tx = {'rec': optim.make(cfg.finetune, given.steps * cfg.finetune.epochs)}
  best = jax.tree.map(jnp.asarray, sequential.load(trained / 'model.npz'))

  def init():
    return {'params': best, 'opt': {'rec': jax.vmap(tx['rec'].init)(best['rec'])}}
  return fit(work, cfg, cfg.finetune, given, init, tx, training.Weights(), 0)


def keys_of(cfg):
  return jnp.stack([jax.random.key(cfg.seed + s) for s in range(cfg.seeds)])


def fit(work, cfg, how, given, init, tx, weights, cycle):
  """Epochs of either side in turn. cycle: every so many the tokenizer learns, 0 for never."""
  orders = functools.partial(
    batching.shuffled, made=given.bins, shares=given.shares, steps=given.steps
  )
  run = {
    side: jax.jit(
      jax.vmap(
        training.epoch_of(side, given.cfg, weights, given.id_cfg, tx[side], orders, batching.take),
        (0, 0, None, None, None, None),
      ),
      donate_argnums=0,
    )
    for side in tx
  }
  everywhere = jax.NamedSharding(work.mesh, jax.P())
  bins, x, texts = jax.tree.map(lambda a: multihost.put_global(a, everywhere),
                                (given.bins, given.x, given.texts))
  keys = keys_of(cfg)
  last = {}

  def epoch(state, number):
    last['side'] = 'id' if cycle and int(number) % cycle == 0 else 'rec'
    state, means = run[last['side']](state, keys, bins, x, texts, number)
    training.check_groups(jax.device_get(means), given.cfg.size)
    return state, means

  def validate(params):
    if last['side'] == 'id':  # the recommender has not met these codes yet
      return np.full(cfg.seeds, np.nan)
    each = lambda s: jax.tree.map(lambda p: p[s], params)  # noqa: E731
    return [judged(cfg, given, each(s)) for s in range(cfg.seeds)]
  best, scores, at = epoch_loop.fit_epochs(init, epoch, validate, how, work)
  sequential.save(work.folder / 'model.npz', best)
  write_json(work.folder / 'valid.json', {
      'NDCG@10': [round(float(s), 6) for s in scores], 'epoch': at.tolist()})
  count = sum(p.size for p in jax.tree.leaves(best['rec'])) // cfg.seeds
  return {'parameters': f'{count:,}', 'best_epochs': ', '.join(map(str, at)),
          'valid_NDCG@10': ', '.join(f'{s:.4f}' for s in scores)}


def judged(cfg, given, params):
  """NDCG@10 of validation users, as many as the config looks at, by beams as in the test."""
  cases = given.split.valid
  order = np.random.default_rng(0).permutation(len(cases))[:cfg.train.valid_users or None]
  heard = given.given('valid')
  found, _ = beam_ranking.ranked(
      given.cfg, params['rec'], params['table'], [cases.history(i) for i in order],
      cfg.model.max_history, cfg.decode, None if heard is None else tuple(h[order] for h in heard))
  places = ranking.list_ranks(found, cases.targets[order], len(given.x))
  return float(metrics.per_case(places, (10,))['NDCG@10'].mean())


def trained(folder, seed):
  """-> {'rec', 'table', 'id'} of one seed, host arrays"""
  return sequential.load(folder / 'model.npz', seed)


def valid_of(folder):
  return run_files.need_json(folder / 'valid.json')
