"""Checkpoints of training state, through Orbax; the only file that knows it (jax_stack 5)."""
import contextlib
import logging
import pathlib

import jax

from recjax.errors import WorkdirError


@contextlib.contextmanager
def open_checkpoints(folder, keep=2):
  """Opens the checkpoints in `folder`; on leaving, waits for the last one to be on disk.

  A checkpoint that was being written when the process died is not seen: Orbax renames it last.
  """
  from orbax.checkpoint import v1 as ocp
  logging.getLogger('absl').setLevel(logging.ERROR)  # one line per array otherwise
  policies = ocp.training.preservation_policies
  with ocp.training.Checkpointer(
      pathlib.Path(folder).absolute(), preservation_policy=policies.LatestN(keep),
      cleanup_tmp_directories=True) as open_one:
    yield open_one


def save(checkpoints, step, state):
  """Writes `state` as `step` in the background; host memory holds a copy before this returns."""
  # Without `force` Orbax leaves out a step that comes while the one before is being written.
  checkpoints.save_async(step, state, force=True, overwrite=True)


def restore(checkpoints, like, log):
  """Loads the newest checkpoint that is whole. -> (step, state), or (0, None) where there is none.

  like: tree of ShapeDtypeStruct with shardings, so that any mesh can read any other's files.
  Raises WorkdirError where checkpoints exist and none of them can be read.
  """
  found = sorted((c.step for c in checkpoints.checkpoints), reverse=True)
  for step in found:
    try:
      return step, checkpoints.load(step, like)
    except (ValueError, OSError, KeyError) as error:
      log(f'checkpoint {step} cannot be read ({str(error)[:200]}); trying the one before')
  if found:
    raise WorkdirError(
        f'none of the checkpoints {found} in {checkpoints.directory} can be read; delete that '
        'folder to train this stage again from its start')
  return 0, None


def abstract(state, shardings):
  """Shapes, dtypes and shardings of `state`, as `restore` wants them."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
