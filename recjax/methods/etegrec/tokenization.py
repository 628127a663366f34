"""The tokenizer's stage: item vectors to semantic IDs, told apart (semantic_ids.md 2 to 4)."""
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.formats import etegrec as files
from recjax.data.formats import safe_pickle
from recjax.errors import ConfigError, DataError
from recjax.file_io import write_json
from recjax.methods.etegrec import item_embeddings, rqvae_training
from recjax.models import rqvae, semantic_ids
from recjax.run_files import read_json
from recjax.training import sequential

NETWORKS = {'rqvae': 'mlp', 'letter': 'mlp', 'rqkmeans_plus': 'residual', 'rvq': 'none'}

RESIDUAL = ('rqkmeans', 'rkmeans', 'rkmeans_balanced', 'rkmeans_mapped')  # codebooks of residuals


def settings(cfg):
  """What of the config decides the codes."""
  return ConfigDict({'tokenizer': cfg.tokenizer, 'seed': cfg.seed})


def shape(how, dim):
  """The RQ-VAE of a config over vectors of width `dim`. -> rqvae.Config"""
  kind = NETWORKS[how.kind]
  return rqvae.Config(dim, tuple(how.hidden), how.width if kind == 'mlp' else dim, how.levels,
                      how.size, how.beta, how.alpha, how.reduction, how.residual, how.distance,
                      how.recon, how.estimator, kind, tuple(how.sinkhorn), how.tau)


def stage(work, cfg, made, ids):
  """Writes codes.npy, (N, Q) int32, health.json, and tokenizer.npz of networks, codebooks.npy of
  RESIDUAL. -> counts

  tokenizer.kind: one of NETWORKS or codes.PLAIN, or an index file, whose items go by `ids`.
  """
  how, x = cfg.tokenizer, item_embeddings.read(made)
  if how.kind.endswith('.json'):
    plain, dist = files.read_index(how.kind, ids), None
    if len(np.unique(plain, axis=0)) == len(plain):
      how = ConfigDict({**how, 'dedupe': 'none'})  # they have been told apart already
  elif how.weights:
    plain, dist = published(work, how, x)
  elif how.kind in NETWORKS:
    plain, dist = network(work, how, x, cfg.seed)
  elif how.kind in semantic_ids.PLAIN:
    plain, state = semantic_ids.PLAIN[how.kind](x, how.levels, how.size, cfg.seed)
    dist = None
    if how.kind in RESIDUAL:
      np.save(work.folder / 'codebooks.npy', state['codebooks'], allow_pickle=False)
    if how.kind in ('rqkmeans', 'rkmeans'):
      dist = semantic_ids.encode_residual(x, state['codebooks'], how.kind == 'rkmeans')[1]
  else:
    raise ConfigError(f'tokenizer.kind={how.kind!r}; choose one of '
                      f'{", ".join([*NETWORKS, *semantic_ids.PLAIN])}')
  if plain.max() >= how.size:
    raise DataError(f'tokenizer.size={how.size}, but there is a code {plain.max()}; set '
                    f'tokenizer.size={1 << int(plain.max()).bit_length()}')
  table = semantic_ids.resolve_collisions(np.asarray(plain), how.size, how.dedupe, dist, cfg.seed)
  same = len(table) - len(np.unique(table, axis=0))
  if same:
    raise DataError(f'{same} items still share their codes after tokenizer.dedupe={how.dedupe}; '
                    "every item needs its own: choose 'suffix'")
  about = semantic_ids.codebook_stats(plain, how.size)
  np.save(work.folder / 'codes.npy', table, allow_pickle=False)
  write_json(work.folder / 'health.json', about)
  return {'items': len(table), 'levels': table.shape[1],
          'usage': ', '.join(f'{u:.1%}' for u in about['usage']),
          'collision_rate': f'{about["collision_rate"]:.2%}', 'largest_group': about['max_group']}


def network(work, how, x, seed):
  """Trains the RQ-VAE. -> codes (N, L), distances of the last level (N, C)"""
  cfg = shape(how, x.shape[1])
  letter = rqvae_training.Letter()
  if how.kind == 'letter':
    letter = rqvae_training.Letter(how.collaborative, how.diversity)
  params, kept = rqvae_training.fit(work, cfg, how, x, seed, letter,
                               x if x.shape[1] == cfg.width else None)
  work.say(f'    the codes of step {kept["step"]:,} are kept')
  return save(work, cfg, params, x)


def published(work, how, x):
  """Takes over the tensors of a released RQ-VAE. -> codes (N, L), distances of the last level"""
  cfg, params = rqvae.from_state(safe_pickle.read_torch_state(how.weights), how.weights)
  if cfg.dim != x.shape[1] or (cfg.levels, cfg.size) != (how.levels, how.size):
    raise DataError(f'{how.weights} reads vectors of {cfg.dim} numbers into {cfg.levels} x '
                    f'{cfg.size} codes; here are {x.shape[1]} numbers and tokenizer.levels='
                    f'{how.levels}, tokenizer.size={how.size}')
  return save(work, cfg, params, x)


def save(work, cfg, params, x):
  """Writes the parameters. -> codes (N, L), distances of the last level (N, C)"""
  sequential.save(work.folder / 'tokenizer.npz', params)
  found = jax.jit(rqvae.forward, static_argnums=0)(cfg, params, x)
  return np.asarray(found['codes']), np.asarray(found['dist'][:, -1])


def read(folder):
  """-> codes (N, Q) int32"""
  return run_files.read_arrays(pathlib.Path(folder) / 'codes.npy')


def health(folder):
  """What `semantic_ids.codebook_stats` said when the codes were made. -> dict"""
  return read_json(pathlib.Path(folder) / 'health.json')
