"""Stages whose result comes in pieces, each whole once it is there: a kill costs one of them.

Shards are files that several processes may fill side by side; arrays are kept between two steps of
a stage; answers of a model go to a journal, batch by batch.
"""
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from recjax import file_io
from recjax.distributed import multihost
from recjax.errors import PartDone
from recjax.training import job_parts
from recjax.training.workdir import PIECES, Workdir


def compute_once(work: Workdir, name: str, make: Callable[[], dict[str, np.ndarray]]
                 ) -> dict[str, np.ndarray]:
  """Arrays that the running stage computes once, and finds again after a kill.

  name: of the piece, its own in the stage. make: computes it. work: of the running stage. -> {name:
  array}
  """
  path = work.folder / PIECES / f'{name}.npz'
  if not multihost.broadcast(path.exists()):
    path.parent.mkdir(exist_ok=True)
    file_io.write_arrays(path, make())
  with np.load(path, allow_pickle=False) as arrays:
    return dict(arrays)


def fill(work: Workdir, title: str, paths: Sequence[pathlib.Path], sizes: Sequence[int],
         make: Callable[[int, Callable[[int], None]], None], unit: str = 'item') -> None:
  """Makes those shards of the running stage that are not there yet, and returns when all are.

  title: of the progress bar. paths: of each shard the file that `make(number, advance)` writes last
  and atomically, the same bytes in whichever process. sizes: of each, in `unit`; make calls advance
  with what it has done. Part i of n makes shards i, i + n, ...; it ends with PartDone where others
  are missing, or another part goes on. Parts of any number may work side by side with each other
  and with the whole run.
  """
  index, count = work.part or (0, 1)
  own = range(index, len(paths), count)
  missing = multihost.broadcast([n for n in own if not paths[n].exists()])
  total = sum(sizes[n] for n in own)
  try:
    with work.progress(title, total, total - sum(sizes[n] for n in missing), unit) as advance:
      for n in missing:
        if jax.process_count() == 1 and paths[n].exists():  # another has made it meanwhile
          advance(sizes[n])
        else:
          paths[n].parent.mkdir(exist_ok=True)
          make(n, advance)
  except FileNotFoundError:
    if not work.part or work.folder.is_dir():
      raise
  if work.part:
    shards = paths[0].parent  # gone where another part has finished the stage
    left = sum(not path.exists() for path in paths)
    if left and shards.is_dir():
      raise PartDone(f'part {index + 1} of {count} has made its {len(own):,} of {len(paths):,} '
                     f'shards of stage {work.current}; {left:,} of other parts are to come. The '
                     'part that makes the last one goes on with the run')
    job_parts.gather(work, shards)


def answer_all(work: Workdir, title: str, path: pathlib.Path, prompts: Sequence[Sequence[int]],
               batch: int, run: Callable[[list[int]], Sequence[list]]) -> list[list]:
  """Answers prompts of like length together, `batch` at a time; the last batch repeats its last.

  title: of the progress bar. path: the journal, where batches are found again after a kill.
  prompts: token lists. run: of `batch` prompt numbers one JSON-ready list for each. work: of the
  running stage. batch: prompts at once. -> the lists in the order of the prompts. Raises
  WorkdirError where the journal is damaged or in use.
  """
  order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
  with file_io.Journal(path, is_batch, remedy='delete it and the lines behind it, and run the same '
                       'command again') as journal:
    answered = sum(map(len, journal.rows()))
    with work.progress(title, len(prompts), answered, unit='prompt') as advance:
      for start in range(journal.count * batch, len(order), batch):
        members = order[start:start + batch]
        replies = run(members + members[-1:] * (batch - len(members)))
        journal.add([[[i, *reply] for i, reply in zip(members, replies)]])
        advance(len(members))
    answers = {i: reply for rows in journal.rows() for i, *reply in rows}
  return [answers[i] for i in range(len(prompts))]


def is_batch(rows: object) -> bool:
  """Whether a line of the journal of `answer_all` is one: lists that begin with a number. rows: the
  value of the line."""
  return isinstance(rows, list) and all(isinstance(row, list) and row for row in rows)
