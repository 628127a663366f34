"""Checkpoints of training state, through Orbax; the only file that knows it (jax_stack 5)."""
import contextlib
import logging
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from recjax.distributed import multihost, sharding
from recjax.errors import WorkdirError


@contextlib.contextmanager
def open_checkpoints(folder, keep=2):
  """Opens the checkpoints in `folder`; on leaving, waits for the last one to be on disk.

  A checkpoint that was being written when the process died is not seen: Orbax renames it last. One
  whose own description is damaged is put aside, as STEP.damaged, since Orbax would open none then.
  """
  from orbax.checkpoint import v1 as ocp
  logging.getLogger('absl').setLevel(logging.ERROR)  # one line per array otherwise
  if jax.process_count() == 1:  # with several, all would have to open, and so to fail, together
    put_aside(pathlib.Path(folder).absolute(), ocp)
  policies = ocp.training.preservation_policies
  with ocp.training.Checkpointer(
      pathlib.Path(folder).absolute(), preservation_policy=policies.LatestN(keep),
      cleanup_tmp_directories=True) as open_one:
    yield open_one


def put_aside(folder, ocp):
  """Renames steps that Orbax cannot even list. Other errors than of their content are raised."""
  def listed(path):
    try:
      with ocp.training.Checkpointer(path) as alone:
        return [c.step for c in alone.checkpoints]
    except (ValueError, KeyError, TypeError, AttributeError):
      return None
  if not folder.is_dir() or listed(folder) is not None:
    return
  for step in [p for p in folder.iterdir() if p.name.isdigit()]:
    with tempfile.TemporaryDirectory() as room:
      os.symlink(step, pathlib.Path(room) / step.name)
      if listed(pathlib.Path(room)) is None:
        os.replace(step, step.with_name(f'{step.name}.damaged'))


def save(checkpoints, step, state):
  """Writes `state` as `step` in the background; host memory holds a copy before this returns.

  The sum of every array goes along, so that damage which still decodes is found on reading.
  """
  # Without `force` Orbax leaves out a step that comes while the one before is being written.
  checkpoints.save_async(step, state, force=True, overwrite=True,
                         custom_metadata={'sums': sums(state)})


def restore(checkpoints, like, log):
  """Loads the newest checkpoint that is whole. -> (step, state), or (0, None) where there is none.

  like: tree of ShapeDtypeStruct with shardings, so that any mesh can read any other's files.
  Raises WorkdirError where checkpoints exist and none of them can be read.
  """
  for step in pathlib.Path(checkpoints.directory).glob('*.damaged'):
    log(f'checkpoint {step.stem} cannot be read (its description is damaged); it is now {step}')
  found = sorted((c.step for c in checkpoints.checkpoints), reverse=True)
  for step in found:
    state, why = attempt(checkpoints, step, like)
    # With several processes one alone may meet the damaged file.
    if multihost.allgather([int(bool(why))]).any():
      log(f'checkpoint {step} cannot be read ({why or "by another process"}); trying the one '
          'before')
    else:
      return step, state
  if found:
    raise WorkdirError(
        f'none of the checkpoints {found} in {checkpoints.directory} can be read; delete that '
        'folder to train this stage again from its start')
  return 0, None


def attempt(checkpoints, step, like):
  """One checkpoint, if it is whole. -> (state, ''), or (None, why not)"""
  try:
    state = checkpoints.load(step, like)
    saved = (checkpoints.metadata(step).custom_metadata or {}).get('sums')
  except Exception as error:  # a damaged file may raise anything from the libraries that read it
    return None, str(error).replace('\n', ' ')[:300]
  if saved is None:  # written before sums were
    return state, ''
  now = sums(state)
  wrong = sorted(name for name in saved if now.get(name) != saved[name])
  return (None, f'array {wrong[0]} is not as it was saved, nor are {len(wrong) - 1} others') if (
      wrong) else (state, '')


def sums(state):
  """A number for the bits of every array, the same on any mesh. -> {path: int}"""
  flat = jax.tree_util.tree_flatten_with_path(state)[0]
  found = multihost.to_host(_sums([x for _, x in flat]))
  return {sharding.path_of(path): int(n) for (path, _), n in zip(flat, found)}


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


def abstract(state, shardings):
  """Shapes, dtypes and shardings of `state`, as `restore` wants them."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
