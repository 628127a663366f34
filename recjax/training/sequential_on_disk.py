"""Training of sequential recommenders on users that stay on disk, read step by step.

Where `sequential.fit` has all users on the device and runs an epoch a call, here a batch of users
is read for each step, so that neither host nor device holds the data set. Losses and packing are
the same.
"""
import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Int, PyTree
from ml_collections import ConfigDict

from recjax.data import array_record, splits
from recjax.data import times as times_lib
from recjax.distributed import multihost
from recjax.errors import ConfigError
from recjax.models import seqrec
from recjax.training import sequential
from recjax.training.loop import FitSettings, Task, fit
from recjax.training.workdir import Workdir

SAMPLE = 16        # batches that show how much room one takes

SCALE_USERS = 256  # users whose times tell their unit

SPARE = 1.25       # room beyond the fullest of them

SAVE_EVERY = 1000  # steps between checkpoints at most; an epoch may take hours


def fit_records(work: Workdir, cfg: ConfigDict, records: array_record.Records, validate: Callable,
                held: int = 2) -> tuple[PyTree, float, int]:
  """Trains one seed of a config on users that stay on disk.

  work: the Workdir. cfg: model, loss, train, optim, seed. records: the users. validate: parameters
  with a leading axis of one seed -> [figure], higher is better. held: of each user's last items
  that stay out. -> the best parameters, their figure, their epoch. Raises ConfigError for a batch
  that does not divide over the processes.
  """
  model = sequential.model_config(cfg, len(records.catalog))
  steps = math.ceil(len(records) / cfg.train.batch)
  room = room_of(cfg, model, batches(cfg, records, model.max_history, held, 0, 1))
  work.log(f'    {steps:,} steps an epoch, read from disk; {cfg.train.batch} users mostly fit '
           f'{room[0]} rows of {model.max_history} and {room[1]:,} targets')

  def evaluate(params: PyTree, frozen: PyTree) -> dict:
    del frozen
    score, = validate(jax.tree.map(lambda x: x[None], multihost.local_values(params)))
    return {'valid_NDCG@10': score, 'valid_loss': 1 - score}  # `fit` keeps the lowest loss

  task = Task(functools.partial(seqrec.init, model), objective(cfg, model, room, work.mesh),
              batches(cfg, records, model.max_history, held), evaluate=evaluate, share=True)
  how = FitSettings(cfg.optim, steps * cfg.train.epochs, cfg.seed, log_every=max(1, steps // 10),
                    save_every=min(SAVE_EVERY, steps), eval_every=steps,
                    patience=cfg.train.patience)
  best = fit(task, how, work)
  rows = [r for r in work.metrics() if r['stage'] == work.current]
  top = min((r for r in rows if 'valid_loss' in r), key=lambda r: np.float32(r['valid_loss']))
  return best, top['valid_NDCG@10'], round(top['step'] / steps)


def batches(cfg: ConfigDict, records: array_record.Records, length: int, held: int,
            process: int | None = None, processes: int | None = None) -> array_record.Batches:
  """This process's part of every step's batch.

  cfg: the run's config. records: the users. length: items that are read. held: of each user's last
  items that stay out. processes: how many there are. -> records.Batches of {'seqs': (b, L + 1)
  int32}
  """
  processes = processes or jax.process_count()
  process = jax.process_index() if process is None else process
  size, rest = divmod(cfg.train.batch, processes)
  if rest or not size:
    raise ConfigError(f'train.batch={cfg.train.batch} does not divide over {processes} processes')
  timed = sequential.model_config(cfg, len(records.catalog)).time == 'bias'
  collate = functools.partial(rows_of, length=length, held=held,
                              per_second=units_per_second(records) if timed else 0)
  return array_record.Batches(records.source, collate, size, cfg.seed, process, processes)


def units_per_second(records: array_record.Records) -> int:
  """How many units of their times make a second, as the first users tell.

  records: the users. Raises DataError where they have no times.
  """
  few = records.users(range(min(len(records), SCALE_USERS)))
  times = splits.usable_times(few.interactions, records.name, sequential.WITHOUT_TIMES)
  return times_lib.find_scale(int(times.min()), int(times.max())).per_second or 1


def rows_of(examples: list[dict], length: int, held: int,
            per_second: int = 0) -> dict[str, Int[np.ndarray, 'B L1']]:
  """The last length + 1 training items of each user, 0 in front; as leave-one-out parts them.

  examples: records of users. held: of each user's last items that stay out. per_second: units of a
  second where their times stand behind them, as `sequential.sequences` lays them; 0 for none.
  """
  def lay(name: str, dtype: type) -> np.ndarray:
    out = np.zeros((len(examples), length + 1), dtype)
    for row, example in zip(out, examples):
      values = example[name]
      values = values[:-held] if len(values) > held else values
      values = values[-len(row):]
      row[len(row) - len(values):] = values
    return out
  items = lay('items', np.int32)
  if not per_second:
    return {'seqs': items}
  seconds = sequential.from_first(lay('times', np.int64) // per_second, items > 0)
  return {'seqs': np.hstack([items, seconds])}


def room_of(cfg: ConfigDict, model: seqrec.Config, whole: array_record.Batches) -> tuple[int, int]:
  """Rows and targets that nearly every batch fits into; some more than the first ones take.

  cfg: the run's config. model: the model's shape. whole: batches of one process.
  """
  rows = targets = 0
  for step in range(SAMPLE):
    counts, seen = sequential.places_and_targets(cfg, model, whole[step]['seqs'])
    rows = max(rows, int(sequential.assign_rows(counts, model.max_history)[2]))
    targets = max(targets, int(seen.sum()))
  most = cfg.train.batch, cfg.train.batch * model.max_history
  return (min(most[0], -(-int(SPARE * rows) // 8) * 8),
          min(most[1], -(-int(SPARE * targets) // 128) * 128))


def objective(cfg: ConfigDict, model: seqrec.Config, room: tuple[int, int], mesh: Mesh) -> Callable:
  """The mean loss of a batch. -> loss(params, frozen, batch, key)

  A batch that does not fit takes a second branch, with a row for each user: slower, the same value.
  cfg: the run's config. model: the model's shape. room: rows and targets of the usual batch. mesh:
  of the devices.
  """
  usual, full = (functools.partial(sequential.loss_of, cfg, model, mesh, *size) for size in (
      room, (cfg.train.batch, cfg.train.batch * model.max_history)))

  def loss(params: PyTree, frozen: PyTree, batch: PyTree, key: jax.Array) -> tuple[jax.Array, dict]:
    del frozen
    counts, seen = sequential.places_and_targets(cfg, model, batch['seqs'])
    used = sequential.assign_rows(counts, model.max_history)[2]
    fits = (used <= room[0]) & (seen.sum() <= room[1])
    return lax.cond(fits, usual, full, params, batch['seqs'], key), {}
  return loss
