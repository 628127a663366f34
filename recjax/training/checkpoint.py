"""Checkpoints of training state, through Orbax; the only file that knows it."""
import contextlib
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from recjax.distributed import multihost, sharding
from recjax.errors import WorkdirError
from recjax.progress import doing


@contextlib.contextmanager
def open_checkpoints(folder: str | os.PathLike, keep: int = 2) -> Iterator[Any]:
  """Opens the `keep` last checkpoints in `folder`; on leaving, waits until the last is on disk.

  A checkpoint that was being written when the process died is not seen: Orbax renames it last. One
  whose own description is damaged is put aside, as STEP.damaged, since Orbax would open none then.
  """
  from orbax.checkpoint import v1 as ocp
  logging.getLogger('absl').setLevel(logging.ERROR)  # one line per array otherwise
  if jax.process_count() == 1:  # with several, all would have to open, and so to fail, together
    _put_aside_damaged(pathlib.Path(folder).absolute(), ocp)
  policies = ocp.training.preservation_policies
  latest: Any = policies.LatestN(keep)
  with ocp.training.Checkpointer(
      cast(Any, pathlib.Path(folder).absolute()), preservation_policy=latest,
      cleanup_tmp_directories=True) as checkpoints:
    yield checkpoints


def _put_aside_damaged(folder, ocp):
  """Renames steps that Orbax cannot even list. Other errors than of their content are raised."""
  def can_list(path: Any) -> bool:
    try:
      with ocp.training.Checkpointer(path) as checkpointer:
        return all(c.step >= 0 for c in checkpointer.checkpoints)
    except (ValueError, KeyError, TypeError, AttributeError):
      return False
  if not folder.is_dir() or can_list(folder):
    return
  for step in [p for p in folder.iterdir() if p.name.isdigit()]:
    with tempfile.TemporaryDirectory() as alone:
      os.symlink(step, pathlib.Path(alone) / step.name)
      if not can_list(pathlib.Path(alone)):
        os.replace(step, step.with_name(f'{step.name}.damaged'))


def save(checkpoints: Any, step: int, state: PyTree) -> None:
  """Writes `state` as `step` in the background; host memory holds a copy before this returns.

  checkpoints: of `open_checkpoints`.

  The sum of every array goes along, so that damage which still decodes is found on reading.
  """
  # Without `force` Orbax leaves out a step that comes while the one before is being written.
  with doing(f'saving step {step:,}'):
    checkpoints.save_async(step, state, force=True, overwrite=True,
                           custom_metadata={'sums': array_sums(state)})


def restore(checkpoints: Any, like: PyTree,
            log: Callable[[str], None]) -> tuple[int, PyTree]:
  """Loads the newest checkpoint that is whole. -> (step, state), or (0, None) where there is none.

  checkpoints: of `open_checkpoints`. like: tree of ShapeDtypeStruct with shardings, so that any
  mesh can read any other's files. log: takes a line that says which ones are left out.
  Raises WorkdirError where checkpoints exist and none of them can be read.
  """
  for step in pathlib.Path(checkpoints.directory).glob('*.damaged'):
    log(f'checkpoint {step.stem} cannot be read (its description is damaged); it is now {step}')
  steps = sorted((c.step for c in checkpoints.checkpoints), reverse=True)
  for step in steps:
    with doing(f'reading the checkpoint of step {step:,}'):
      state, why = _load(checkpoints, step, like)
    # With several processes one alone may meet the damaged file.
    if multihost.allgather([int(bool(why))]).any():
      log(f'checkpoint {step} cannot be read ({why or "by another process"}); trying the one '
          'before')
    else:
      return step, state
  if steps:
    raise WorkdirError(
        f'none of the checkpoints {steps} in {checkpoints.directory} can be read; delete that '
        'folder to train this stage again from its start')
  return 0, None


def _load(checkpoints, step, like):
  """One checkpoint, if it is whole. -> (state, ''), or (None, why not)"""
  try:
    state = checkpoints.load(step, like)
    saved_sums = (checkpoints.metadata(step).custom_metadata or {}).get('sums')
  except Exception as error:  # a damaged file may raise anything from the libraries that read it
    return None, str(error).replace('\n', ' ')[:300]
  if saved_sums is None:  # written before sums were
    return state, ''
  state_sums = array_sums(state)
  wrong = sorted(name for name in saved_sums if state_sums.get(name) != saved_sums[name])
  if wrong:
    return None, f'array {wrong[0]} is not as it was saved, nor are {len(wrong) - 1} others'
  return state, ''


def array_sums(state: PyTree) -> dict[str, int]:
  """A number for the bits of every array by its path, the same on any mesh. state: any tree of
  arrays."""
  flat = jax.tree_util.tree_flatten_with_path(state)[0]
  numbers = multihost.to_host(_sums([x for _, x in flat]))
  return {sharding.path_of(path): int(n) for (path, _), n in zip(flat, numbers)}


@jax.jit
def _sums(arrays):
  return [_sum(x) for x in arrays]


def _sum(x):
  """Bits as whole numbers, each times an odd one by its place, added up modulo 2 ** 32."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == bool:
    x = x.astype(np.uint8)
  bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}').astype(jnp.uint32)
  weight = jnp.uint32(1)
  for axis in range(x.ndim):
    place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    weight = weight * jnp.uint32(2654435761) + 2 * place
  return (bits * (weight | 1)).sum(dtype=jnp.uint32)


def abstract(state: PyTree, shardings: PyTree) -> PyTree:
  """Shapes, dtypes and shardings of `state`, as `restore` wants them."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
