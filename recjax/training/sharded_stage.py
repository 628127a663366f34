"""A stage's result in shards, each whole once it is there: a kill or a lost host costs one."""
import io

import jax
import numpy as np

from recjax.distributed import multihost
from recjax.errors import PartDone
from recjax.file_io import write_atomic
from recjax.training import job_parts
from recjax.training.workdir import PIECES


def kept(work, name, make):
  """Arrays that the running stage computes once, and finds again after a kill.

  make: () -> {name: array}. name: of the piece, its own in the stage. -> {name: numpy array}
  """
  path = work.folder / PIECES / f'{name}.npz'
  if not multihost.broadcast(path.exists()):
    path.parent.mkdir(exist_ok=True)
    held = io.BytesIO()
    np.savez(held, **make())
    write_atomic(path, held.getvalue())
  with np.load(path, allow_pickle=False) as found:
    return dict(found)


def fill(work, title, paths, sizes, make, unit='item'):
  """Makes those shards of the running stage that are not there yet, and returns when all are.

  paths: of each shard the file that `make(number, advance)` writes last and atomically, the same
  bytes in whichever process. sizes: of each, in `unit`; make calls advance with what it has done.
  Part i of n makes shards i, i + n, ...; it ends with PartDone where others are missing, or another
  part goes on. Parts of any number may work side by side with each other and with the whole run.
  """
  index, count = work.part or (0, 1)
  mine = range(index, len(paths), count)
  todo = multihost.broadcast([n for n in mine if not paths[n].exists()])
  total = sum(sizes[n] for n in mine)
  try:
    with work.progress(title, total, total - sum(sizes[n] for n in todo), unit) as advance:
      for n in todo:
        if jax.process_count() == 1 and paths[n].exists():  # another has made it meanwhile
          advance(sizes[n])
        else:
          paths[n].parent.mkdir(exist_ok=True)
          make(n, advance)
  except FileNotFoundError:
    if not work.part or work.folder.is_dir():
      raise
  if work.part:
    room = paths[0].parent  # gone where another part has finished the stage
    left = sum(not path.exists() for path in paths)
    if left and room.is_dir():
      raise PartDone(f'part {index + 1} of {count} has made its {len(mine):,} of {len(paths):,} '
                     f'shards of stage {work.current}; {left:,} of other parts are to come. The '
                     'part that makes the last one goes on with the run')
    job_parts.gather(work, room)
