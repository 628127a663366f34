"""The tokenizer's stage: item vectors to semantic IDs, told apart (docs/etegrec.md)."""
import pathlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree
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
from recjax.training.workdir import Workdir

NETWORKS = {'rqvae': 'mlp', 'letter': 'mlp', 'rqkmeans_plus': 'residual', 'rvq': 'none'}

RESIDUAL = ('rqkmeans', 'rkmeans', 'rkmeans_balanced', 'rkmeans_mapped')  # codebooks of residuals


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the codes. cfg: the run's config."""
  return ConfigDict({'semantic_ids': cfg.semantic_ids, 'seed': cfg.seed})


def rqvae_config(ids_cfg: ConfigDict, dim: int) -> rqvae.Config:
  """The RQ-VAE of a config's group over vectors of width `dim`. ids_cfg: the group semantic_ids."""
  kind = NETWORKS[ids_cfg.kind]
  return rqvae.Config(
    dim, tuple(ids_cfg.hidden), ids_cfg.width if kind == 'mlp' else dim, ids_cfg.levels,
    ids_cfg.size, ids_cfg.beta, ids_cfg.alpha, ids_cfg.reduction, ids_cfg.residual,
    ids_cfg.distance, ids_cfg.recon, ids_cfg.estimator, kind, tuple(ids_cfg.sinkhorn), ids_cfg.tau)


def stage(work: Workdir, cfg: ConfigDict, vectors_dir: Path, ids: Sequence[str]) -> dict:
  """Writes codes.npy, (N, Q) int32, health.json, and tokenizer.npz of networks, codebooks.npy of
  RESIDUAL.

  cfg: as `settings`; its kind is one of NETWORKS or `semantic_ids.TOKENIZERS`, or an index file,
  whose items go by `ids`. work: of the stage. vectors_dir: of the item vectors. -> counts. Raises
  ConfigError for another kind, DataError for codes that do not fit the size or items that share
  theirs.
  """
  ids_cfg, x = cfg.semantic_ids, item_embeddings.read(vectors_dir)
  if ids_cfg.kind.endswith('.json'):
    codes, distances = files.read_index(ids_cfg.kind, ids), None
    if len(np.unique(codes, axis=0)) == len(codes):
      ids_cfg = ConfigDict({**ids_cfg, 'dedupe': 'none'})  # they have been told apart already
  elif ids_cfg.weights:
    codes, distances = load_released(work, ids_cfg, x)
  elif ids_cfg.kind in NETWORKS:
    codes, distances = train_network(work, ids_cfg, x, cfg.seed)
  elif ids_cfg.kind in semantic_ids.TOKENIZERS:
    codes, fitted = semantic_ids.TOKENIZERS[ids_cfg.kind](x, ids_cfg.levels, ids_cfg.size, cfg.seed)
    distances = None
    if ids_cfg.kind in RESIDUAL:
      np.save(work.folder / 'codebooks.npy', fitted['codebooks'], allow_pickle=False)
    if ids_cfg.kind in ('rqkmeans', 'rkmeans'):
      distances = semantic_ids.encode_residual(x, fitted['codebooks'], ids_cfg.kind == 'rkmeans')[1]
  else:
    raise ConfigError(f'semantic_ids.kind={ids_cfg.kind!r}; choose one of '
                      f'{", ".join([*NETWORKS, *semantic_ids.TOKENIZERS])}')
  if codes.max() >= ids_cfg.size:
    raise DataError(
      f'semantic_ids.size={ids_cfg.size}, but there is a code {codes.max()}; set '
      f'semantic_ids.size={1 << int(codes.max()).bit_length()}')
  table = semantic_ids.resolve_collisions(
    np.asarray(codes), ids_cfg.size, ids_cfg.dedupe, distances, cfg.seed)
  num_sharing = len(table) - len(np.unique(table, axis=0))
  if num_sharing:
    raise DataError(
      f'{num_sharing} items still share their codes after semantic_ids.dedupe={ids_cfg.dedupe}; '
      "every item needs its own: choose 'suffix'")
  stats = semantic_ids.codebook_stats(codes, ids_cfg.size)
  np.save(work.folder / 'codes.npy', table, allow_pickle=False)
  write_json(work.folder / 'health.json', stats)
  return {'items': len(table), 'levels': table.shape[1],
          'usage': ', '.join(f'{share:.1%}' for share in stats['usage']),
          'collision_rate': f'{stats["collision_rate"]:.2%}', 'largest_group': stats['max_group']}


def train_network(work: Workdir, ids_cfg: ConfigDict, x: Float[np.ndarray, 'N d'],
                  seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Trains the RQ-VAE.

  ids_cfg: the group semantic_ids. x: item vectors. seed: of the draws. work: of the stage. -> codes
  (N, L), distances of the last level (N, C)
  """
  cfg = rqvae_config(ids_cfg, x.shape[1])
  letter = rqvae_training.LetterWeights()
  if ids_cfg.kind == 'letter':
    letter = rqvae_training.LetterWeights(ids_cfg.collaborative, ids_cfg.diversity)
  params, best = rqvae_training.fit(work, cfg, ids_cfg, x, seed, letter,
                                    x if x.shape[1] == cfg.width else None)
  work.log(f'    the codes of step {best["step"]:,} are kept')
  return save_network(work, cfg, params, x)


def load_released(work: Workdir, ids_cfg: ConfigDict,
                  x: Float[np.ndarray, 'N d']) -> tuple[np.ndarray, np.ndarray]:
  """Takes over the tensors of a released RQ-VAE. -> codes (N, L), distances of the last level

  ids_cfg: the group semantic_ids. x: item vectors. work: of the stage. Raises DataError where they
  do not fit the vectors or the config.
  """
  cfg, params = rqvae.from_state_dict(
      safe_pickle.read_torch_state(ids_cfg.weights), ids_cfg.weights)
  if cfg.dim != x.shape[1] or (cfg.levels, cfg.size) != (ids_cfg.levels, ids_cfg.size):
    raise DataError(f'{ids_cfg.weights} reads vectors of {cfg.dim} numbers into {cfg.levels} x '
                    f'{cfg.size} codes; here are {x.shape[1]} numbers and semantic_ids.levels='
                    f'{ids_cfg.levels}, semantic_ids.size={ids_cfg.size}')
  return save_network(work, cfg, params, x)


def save_network(work: Workdir, cfg: rqvae.Config, params: PyTree,
                 x: Float[np.ndarray, 'N d']) -> tuple[np.ndarray, np.ndarray]:
  """Writes the parameters.

  cfg, params: of the network. x: item vectors. work: of the stage. -> codes (N, L), distances of
  the last level (N, C)
  """
  sequential.save(work.folder / 'tokenizer.npz', params)
  outputs = jax.jit(rqvae.forward, static_argnums=0)(cfg, params, x)
  return np.asarray(outputs['codes']), np.asarray(outputs['dist'][:, -1])


def read(folder: Path) -> Int[np.ndarray, 'N Q']:
  """The codes of a finished stage. folder: of the stage."""
  return run_files.read_arrays(pathlib.Path(folder) / 'codes.npy')


def codebook_stats(folder: Path) -> dict:
  """What `semantic_ids.codebook_stats` said when the codes were made. folder: of the stage."""
  return read_json(pathlib.Path(folder) / 'health.json')
