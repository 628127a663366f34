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
  """What of the config decides the codes."""
  return ConfigDict({'tokenizer': cfg.tokenizer, 'seed': cfg.seed})


def rqvae_config(tokenizer: ConfigDict, dim: int) -> rqvae.Config:
  """The RQ-VAE of a config's group over vectors of width `dim`."""
  kind = NETWORKS[tokenizer.kind]
  return rqvae.Config(
    dim,
    tuple(tokenizer.hidden),
    tokenizer.width if kind == 'mlp' else dim,
    tokenizer.levels,
    tokenizer.size,
    tokenizer.beta,
    tokenizer.alpha,
    tokenizer.reduction,
    tokenizer.residual,
    tokenizer.distance,
    tokenizer.recon,
    tokenizer.estimator,
    kind,
    tuple(tokenizer.sinkhorn),
    tokenizer.tau,
  )


def stage(work: Workdir, cfg: ConfigDict, vectors_dir: Path, ids: Sequence[str]) -> dict:
  """Writes codes.npy, (N, Q) int32, health.json, and tokenizer.npz of networks, codebooks.npy of
  RESIDUAL.

  cfg: as `settings`; its kind is one of NETWORKS or `semantic_ids.PLAIN`, or an index file, whose
  items go by `ids`. -> counts. Raises ConfigError for another kind, DataError for codes that do not
  fit the size or items that share theirs.
  """
  tokenizer, x = cfg.tokenizer, item_embeddings.read(vectors_dir)
  if tokenizer.kind.endswith('.json'):
    codes, distances = files.read_index(tokenizer.kind, ids), None
    if len(np.unique(codes, axis=0)) == len(codes):
      tokenizer = ConfigDict({**tokenizer, 'dedupe': 'none'})  # they have been told apart already
  elif tokenizer.weights:
    codes, distances = load_released(work, tokenizer, x)
  elif tokenizer.kind in NETWORKS:
    codes, distances = train_network(work, tokenizer, x, cfg.seed)
  elif tokenizer.kind in semantic_ids.PLAIN:
    codes, fitted = semantic_ids.PLAIN[tokenizer.kind](
      x, tokenizer.levels, tokenizer.size, cfg.seed
    )
    distances = None
    if tokenizer.kind in RESIDUAL:
      np.save(work.folder / 'codebooks.npy', fitted['codebooks'], allow_pickle=False)
    if tokenizer.kind in ('rqkmeans', 'rkmeans'):
      distances = semantic_ids.encode_residual(x, fitted['codebooks'], tokenizer.kind == 'rkmeans')[
        1
      ]
  else:
    raise ConfigError(f'tokenizer.kind={tokenizer.kind!r}; choose one of '
                      f'{", ".join([*NETWORKS, *semantic_ids.PLAIN])}')
  if codes.max() >= tokenizer.size:
    raise DataError(
      f'tokenizer.size={tokenizer.size}, but there is a code {codes.max()}; set '
      f'tokenizer.size={1 << int(codes.max()).bit_length()}'
    )
  table = semantic_ids.resolve_collisions(
    np.asarray(codes), tokenizer.size, tokenizer.dedupe, distances, cfg.seed
  )
  num_sharing = len(table) - len(np.unique(table, axis=0))
  if num_sharing:
    raise DataError(
      f'{num_sharing} items still share their codes after tokenizer.dedupe={tokenizer.dedupe}; '
      "every item needs its own: choose 'suffix'"
    )
  stats = semantic_ids.codebook_stats(codes, tokenizer.size)
  np.save(work.folder / 'codes.npy', table, allow_pickle=False)
  write_json(work.folder / 'health.json', stats)
  return {'items': len(table), 'levels': table.shape[1],
          'usage': ', '.join(f'{share:.1%}' for share in stats['usage']),
          'collision_rate': f'{stats["collision_rate"]:.2%}', 'largest_group': stats['max_group']}


def train_network(work: Workdir, tokenizer: ConfigDict, x: Float[np.ndarray, 'N d'],
                  seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Trains the RQ-VAE. -> codes (N, L), distances of the last level (N, C)"""
  cfg = rqvae_config(tokenizer, x.shape[1])
  letter = rqvae_training.LetterWeights()
  if tokenizer.kind == 'letter':
    letter = rqvae_training.LetterWeights(tokenizer.collaborative, tokenizer.diversity)
  params, best = rqvae_training.fit(work, cfg, tokenizer, x, seed, letter,
                               x if x.shape[1] == cfg.width else None)
  work.say(f'    the codes of step {best["step"]:,} are kept')
  return save_network(work, cfg, params, x)


def load_released(work: Workdir, tokenizer: ConfigDict,
                  x: Float[np.ndarray, 'N d']) -> tuple[np.ndarray, np.ndarray]:
  """Takes over the tensors of a released RQ-VAE. -> codes (N, L), distances of the last level

  Raises DataError where they do not fit the vectors or the config.
  """
  cfg, params = rqvae.from_state(files.read_state(tokenizer.weights), tokenizer.weights)
  if cfg.dim != x.shape[1] or (cfg.levels, cfg.size) != (tokenizer.levels, tokenizer.size):
    raise DataError(f'{tokenizer.weights} reads vectors of {cfg.dim} numbers into {cfg.levels} x '
                    f'{cfg.size} codes; here are {x.shape[1]} numbers and tokenizer.levels='
                    f'{tokenizer.levels}, tokenizer.size={tokenizer.size}')
  return save_network(work, cfg, params, x)


def save_network(work: Workdir, cfg: rqvae.Config, params: PyTree,
                 x: Float[np.ndarray, 'N d']) -> tuple[np.ndarray, np.ndarray]:
  """Writes the parameters. -> codes (N, L), distances of the last level (N, C)"""
  sequential.save(work.folder / 'tokenizer.npz', params)
  outputs = jax.jit(rqvae.forward, static_argnums=0)(cfg, params, x)
  return np.asarray(outputs['codes']), np.asarray(outputs['dist'][:, -1])


def read(folder: Path) -> Int[np.ndarray, 'N Q']:
  """The codes of a finished stage."""
  return run_files.read_arrays(pathlib.Path(folder) / 'codes.npy')


def codebook_stats(folder: Path) -> dict:
  """What `semantic_ids.codebook_stats` said when the codes were made."""
  return read_json(pathlib.Path(folder) / 'health.json')
