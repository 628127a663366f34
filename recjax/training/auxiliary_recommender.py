"""The recommender without text that stands beside an LLM: trained here, or a finished run."""
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.splits import Split
from recjax.errors import ConfigError, DataError
from recjax.file_io import write_json
from recjax.models.dot_product import DotProduct
from recjax.run_files import read_json
from recjax.settings import reading
from recjax.training import sequential
from recjax.training.workdir import Workdir, find_stage

FACTS = 'companion.json'


def settings(group: ConfigDict, seed: int) -> ConfigDict:
  """The sequential trainer's settings out of a config group (model, loss, train, optim).

  seed: of its training.
  """
  return ConfigDict({k: group[k] for k in ('model', 'loss', 'train', 'optim')}
                    | {'seed': seed, 'seeds': 1})


def train(work: Workdir, cfg: ConfigDict, n: int, split: Split,
          judge: Callable, begin: PyTree | None = None) -> dict[str, Any]:
  """Trains one model over `n` items into `work.folder`.

  cfg: as from `settings`. split: whose training part is learned from. judge: as `sequential.fit`
  takes it. begin: parameters of an earlier one, over the first of the items, that it goes on from.
  -> counts
  """
  sequential.check(cfg, n)
  begin = None if begin is None else jax.tree.map(lambda x: x[None], begin)
  best, scores, epochs = sequential.fit(work, cfg, n, split, judge, starts=(begin, begin))
  sequential.save(work.folder / 'model.npz', jax.tree.map(lambda x: x[0], best))
  write_json(work.folder / FACTS, {'config': cfg.to_dict()})
  return {'best_epoch': int(epochs[0]), 'valid_NDCG@10': round(float(scores[0]), 4)}


def adopt(work: Workdir, source: str, data: Any, flag: str, others: str) -> dict[str, Any]:
  """Takes over the best seed of a finished `sequential` run on the same data. -> counts

  data: whose fingerprint must be the run's. flag: the config key that named it; others: what else
  it may be, for the message. work: the Workdir. source: the run's folder. Raises ConfigError for
  another kind of folder, DataError for other data.
  """
  named = run_files.is_config(pathlib.Path(source) / 'config.json')
  saved = run_files.read_config(source) if named else {'config': {}}
  if saved['config'].get('method') != 'sequential':
    raise ConfigError(f"{flag}={source!r} is no run of the method 'sequential'; give its folder, "
                      f'{others}')
  with reading(source):
    results = read_json(find_stage(source, 'evaluate') / 'results.json')
  if results['data_fingerprint'] != data.fingerprint:
    raise DataError(f'{source} was trained on other data (fingerprint '
                    f'{results["data_fingerprint"][:12]}, here {data.fingerprint[:12]}); train it '
                    'on this data set')
  trained = find_stage(source, 'train')
  best = int(np.argmax(read_json(trained / 'valid.json')['NDCG@10']))
  sequential.save(work.folder / 'model.npz', sequential.load(trained / 'model.npz', best))
  write_json(work.folder / FACTS, {'config': saved['config']})
  return {'from': source}


def scorer(made: pathlib.Path, n: int) -> DotProduct:
  """The scores of all `n` items by the model of a stage's folder.

  made: the stage's folder. -> score function
  """
  config = ConfigDict(read_json(made / FACTS)['config'])
  return sequential.scorer(sequential.model_config(config, n), sequential.load(made / 'model.npz'))


def widened(score: Callable, known: int, n: int, blank: Callable) -> Callable:
  """A score function over `known` items, for a catalog of `n` that begins with them.

  Histories lose the items that it does not know; one of these alone scores all known items alike.
  blank: (B, known) scores -> (B, 1), what each further item scores. -> score function
  """
  if n == known:
    return score

  def wide(items: np.ndarray, offsets: np.ndarray) -> Array:
    kept = np.asarray(items) <= known
    cuts = np.concatenate([[0], np.cumsum(kept)])[offsets]
    known_scores = jnp.asarray(score(items[kept], cuts), jnp.float32)
    known_scores = jnp.where((np.diff(cuts) > 0)[:, None], known_scores, 0)
    more = jnp.broadcast_to(blank(known_scores), (len(known_scores), n - known))
    return jnp.concatenate([known_scores, more], 1)
  return wide


def least(scores: Float[Array, 'B N']) -> Float[Array, 'B 1']:
  """For `widened`: further items score as the last of the known ones.

  scores: of the known items.
  """
  return scores.min(-1, keepdims=True)


def mean_share(scores: Float[Array, 'B N']) -> Float[Array, 'B 1']:
  """For `widened`: further items get the mean share of the known ones in a softmax.

  scores: of the known items.
  """
  return jax.nn.logsumexp(scores, -1, keepdims=True) - np.log(scores.shape[-1])
