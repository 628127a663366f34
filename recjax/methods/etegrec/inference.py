"""Recommendations out of a trained run, for histories of anybody."""
import pathlib
import shutil

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.dataset import load_unchanged
from recjax.data.formats import etegrec as files
from recjax.distributed import sharding
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation import ranking
from recjax.methods.etegrec import beam_ranking, interests, train, update
from recjax.run_files import read_json
from recjax.training import cost_model
from recjax.training.workdir import Workdir, find_stage, saved_config


def open_run(workdir):
  """-> config, data set, coder.Config, parameters of the best seed"""
  config = saved_config(workdir)
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  shop = load_unchanged(config.data, results['data_fingerprint'], workdir)
  model = model_stage(workdir)
  params = train.trained(model, int(np.argmax(train.valid_of(model)['NDCG@10'])))
  dim = params['rec'].get('dec_adapter', {'bias': np.zeros(1)})['bias'].shape[0]
  text = params['rec'].get('interest', {'kernel': np.zeros((1, 1))})['kernel'].shape[0]
  cfg = train.shape(config, params['table'].shape[1], config.tokenizer.size, dim, text)
  return config, shop, cfg, params


def model_stage(workdir):
  """The folder of the last training: finetuned where that was done."""
  try:
    return find_stage(workdir, 'finetune')
  except WorkdirError:
    return find_stage(workdir, 'train')


def recommender(workdir, data=None):
  """The trained method's face. data: a later data set; its new items get IDs where texts made the
  run's.

  -> recommend(histories, k, exclude_seen=True, allowed=None) -> (item ids [B][k], scores (B, k));
  scores are log-probabilities of IDs. Histories are lists of item ids, oldest first, `allowed` a
  set of item ids. At most k or `decode.beams` items are searched, whichever is more.
  Raises DataError for an unknown id or an empty history.
  """
  config, shop, cfg, params = open_run(workdir)
  if data:
    shop, params['table'] = update.carried_on(workdir, config, shop, data, params)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  ask = listener(config, shop, mesh) if config.fusion != 'none' else None
  rec, table = jax.tree.map(jax.numpy.asarray, (params['rec'], params['table']))

  def recommend(histories, k, exclude_seen=True, allowed=None):
    rows = [np.array([shop.catalog.index(i) for i in h], np.int32) for h in histories]
    empty = [i for i, h in enumerate(rows) if not len(h)]
    if empty:
      raise DataError(f'history {empty[0]} is empty; this method continues at least one item')
    mask = ranking.mask_of(allowed, shop.catalog)
    how = ConfigDict({'beams': max(k, config.decode.beams), 'batch': config.decode.batch})
    with jax.set_mesh(mesh):
      items, scores = beam_ranking.ranked(cfg, rec, table, rows, config.model.max_history, how,
                                   ask(rows) if ask else None, exclude_seen, mask)
    items, scores = items[:, :k], scores[:, :k]
    return [[shop.catalog.id_of(int(i)) for i in row if i] for row in items], scores
  return recommend


def listener(config, shop, mesh):
  """Interests of new histories, from the local provider: files know those of the data alone."""
  from rich.console import Console
  if config.interests.source != 'local' and not pathlib.Path(config.interests.source).exists():
    raise ConfigError(f'interests.source={config.interests.source!r} is no longer there')
  return interests.asker(
    Workdir(pathlib.Path('.'), Console(quiet=True), mesh), config.interests, shop
  )


def convert(workdir, kind, out):
  """Writes what was trained: 'npz', all parameters; 'index', the items' codes as index JSON.

  Raises ConfigError for others, or a file that is there.
  """
  if kind not in ('npz', 'index'):
    raise ConfigError(f'--to={kind} is unknown for this method; npz writes all parameters, index '
                      'the codes of all items as JSON')
  run_files.absent(out, '--out')
  _, shop, _, params = open_run(workdir)
  with run_files.new_file(out, '--out') as fresh:
    if kind == 'index':
      files.write_index(fresh, np.asarray(params['table'])[1:], shop.catalog.ids)
    else:
      shutil.copyfile(model_stage(workdir) / 'model.npz', fresh)


def cost(cfg, shop):
  """What a run would take, before it runs: of the recommender's side. -> {name: text}"""
  step, steps, given = train.planned(cfg, shop)
  m, q = cfg.model, train.levels(cfg)
  read = sum(b.history.size for b in given) * q
  count = sum(int((b.target > 0).sum()) for b in given)
  # A beam keeps its own codes, a request what it has read, once for every decoder layer.
  held = (
    m.decoder_layers
    * 2
    * m.heads
    * m.head_dim
    * jax.numpy.dtype(m.dtype).itemsize
    * (cfg.decode.batch * q * (cfg.decode.beams + m.max_history))
  )
  return {
    'variant': cfg.variant,
    'codes': f'{q} levels of {cfg.tokenizer.size}, by {cfg.tokenizer.kind}',
    **cost_model.traced_lines(
      step,
      steps,
      read,
      cfg.train.epochs,
      cfg.seeds,
      jax.device_count(),
      held,
      unit=f'code positions read for {count:,} targets',
    ),
  }
