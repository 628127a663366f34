"""A run's folder: its lock, its log, its metrics, and stages that run once (docs/scaling.md)."""
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recjax import base_config, file_io, run_files, split_rule
from recjax.distributed import multihost
from recjax.errors import DataError, WorkdirError
from recjax.progress import BarProgress, PlainProgress, Pulse, doing
from recjax.run_files import DONE
from recjax.training import job_parts
from recjax.training.fault_tolerance import Guards

HASHED = 64 << 20  # files up to this size are fingerprinted by all of their content

PIECES = '.pieces'  # what a stage keeps in its folder to go on with; gone when the stage is done

BLOCK, BLOCKS = 1 << 16, 256  # larger ones by their size and so many pieces, evenly spread

# What a run writes at the top of its folder, beside what its method publishes.
WRITTEN = ('config.json', 'lock', 'stages', 'checkpoints', 'tb', 'adopted', 'run.log',
           'metrics.jsonl', 'bad_steps.jsonl', 'results.json', 'ranks.parquet',
           'predictions.parquet', 'report.html')


def describe(value: Any) -> object:
  """What of an input decides a stage's result, as plain JSON.

  value: a config, path, array, anything of JSON, or an object with a `fingerprint`. Raises
  TypeError for others.
  """
  if hasattr(value, 'to_dict'):
    value = value.to_dict()
  if hasattr(value, 'fingerprint'):
    return {'fingerprint': value.fingerprint}
  if isinstance(value, pathlib.Path):
    return describe_path(value)
  if isinstance(value, dict):
    return {str(k): describe(v) for k, v in sorted(value.items(), key=lambda kv: str(kv[0]))}
  if isinstance(value, (list, tuple)):
    return [describe(v) for v in value]
  if isinstance(value, np.ndarray):
    return {'array': hashlib.sha256(value.tobytes()).hexdigest(), 'shape': list(value.shape),
            'dtype': str(value.dtype)}
  if value is None or isinstance(value, (str, int, float, bool)):
    return value
  raise TypeError(f'a stage cannot depend on {type(value)}: give it a fingerprint attribute')


def describe_path(path: pathlib.Path) -> dict:
  """A finished stage by its own fingerprint, a file by content, a folder by its files.

  path: of the file or folder.

  Of files above HASHED blocks are read, so weights that were trained further are others.
  """
  done = run_files.read_json(path / DONE) if path.is_dir() else None
  if done:
    return {'stage': done['fingerprint']}
  if path.is_dir():
    return {p.name: describe_path(p) for p in sorted(path.iterdir())}
  size = path.stat().st_size
  if size > HASHED:
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
      for start in np.linspace(0, size - BLOCK, BLOCKS, dtype=np.int64):
        f.seek(int(start))
        digest.update(f.read(BLOCK))
    return {'bytes': size, 'pieces': digest.hexdigest()}
  return {'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}


def fingerprint(*values: object) -> str:
  """Hash of everything that decides a result; equal inputs give equal strings on any machine.
  values: as `describe` takes them."""
  text = json.dumps([describe(v) for v in values], sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclasses.dataclass
class Workdir:
  """An open run folder. `stage` runs what is not done; the rest reports what happens.

  path: of the folder. console: where lines and bars are shown. mesh: the devices, for `fit` and for
  decoding. log_file: run.log, open for appending. first: whether this is process 0, the one that
  writes. guards: what watches over training. part: (i, n) where other processes share in, see
  `job_parts`. lock: the right to write here. count: stages met so far. current: the stage that runs
  now. folder: where it puts its files. board: that stage and its TensorBoard writer. pulse: what
  tells of long waits. bar: what moves in a terminal.
  """
  path: pathlib.Path
  console: Console
  mesh: Any = None
  log_file: IO[str] | None = None
  first: bool = True
  guards: Guards = Guards()
  part: tuple[int, int] | None = None
  lock: Any = None
  count: int = 0
  current: str = ''
  folder: Any = None
  board: tuple | None = None
  pulse: Pulse | None = None
  bar: BarProgress | None = None

  def log(self, text: str) -> None:
    """Shows a line and keeps it, with the time, in run.log. text: the line."""
    self.console.print(text, markup=False, highlight=False, soft_wrap=True)
    self.log_to_file(text)
    if self.pulse:
      self.pulse.heard()

  def whereabouts(self) -> str:
    """The stage that runs, if one does."""
    return self.current or 'between stages'

  def tell_wait(self, text: str) -> None:
    """Says what takes long: beside the bar of a terminal, else as `log`. text: the line."""
    if not self.bar:
      self.log(text)
      return
    self.bar.tell(text.strip())
    self.log_to_file(text)

  def log_to_file(self, text: str) -> None:
    """Keeps lines in run.log alone. text: of one line or several."""
    if not self.log_file:
      return
    now = datetime.datetime.now().isoformat(' ', 'seconds')
    self.log_file.write(''.join(f'{now}  {line}\n' for line in text.split('\n')))
    self.log_file.flush()

  def stage(self, name: str, fn: Callable[..., dict | None], *inputs: object, alone: bool = False,
            shared: bool = False) -> pathlib.Path:
    """Runs `fn(work, *inputs)` once, which fills `work.folder`, and returns that folder.

    The folder appears under stages/ only when it is whole, with DONE.json beside the results: the
    fingerprint of name and inputs, seconds, and the counts that `fn` may return as a dict. Where
    that fingerprint is met again the stage is skipped. A stage that was killed finds its partial
    folder as it left it, so `fn` may go on from there.

    With several processes all of them run `fn`, as computations over the mesh need, and what
    process 0 wrote is kept; alone: it runs `fn` by itself, e.g. because a service is paid for.
    shared: whether parts of the run may each fill it with shards, see `sharded_stage`.
    Raises DataError where their inputs differ.
    """
    self.count += 1
    folder = self.path / 'stages' / f'{self.count:02d}-{name}'
    partial = folder.with_name(folder.name + '.partial')
    with doing(f'telling whether {name} is made of the same as before'):
      key = fingerprint(name, *inputs)
    state, first_key = multihost.broadcast([self.state_of(folder, partial, key), key])
    if len(set(multihost.allgather([int(key[:7], 16)])[:, 0])) > 1:
      raise DataError(f'the processes disagree about what stage {name} is made of (here {key[:7]}, '
                      f'in process 0 {first_key[:7]}): give every host the same config and data')
    if self.part:
      state = job_parts.wait_for_turn(
        self, name, functools.partial(self.state_of, folder, partial, key), shared
      )
    if state == 'done':
      run_files.check(folder)
      self.log(f'[{self.count}] {name}: done before')
      return folder
    if state != 'made':
      if self.first and state == 'open':
        self.begin(name, partial, key)
      if self.part and shared:
        self.lock.release()
      self.log(f'[{self.count}] {name}')
      self.run_stage(name, fn, inputs, partial, key, alone)
    if self.first:
      shutil.rmtree(folder, ignore_errors=True)
      os.replace(partial, folder)
    multihost.broadcast('moved')
    return folder

  def state_of(self, folder: pathlib.Path, partial: pathlib.Path, key: str) -> str:
    """'done'; 'made', where it was killed before the folder took its place; 'begun', where files of
    an earlier attempt are of use; else 'open'.

    folder: of the finished stage. partial: where it is made. key: its fingerprint.
    """
    for path, state in ((folder, 'done'), (partial, 'made')):
      if (run_files.read_json(path / DONE) or {}).get('fingerprint') == key:
        return state
    mark = partial / '.fingerprint'
    return 'begun' if mark.exists() and mark.read_text() == key else 'open'

  def run_stage(self, name: str, fn: Callable[..., dict | None], inputs: tuple,
                partial: pathlib.Path, key: str, alone: bool) -> None:
    """Runs `fn` in the partial folder; processes other than 0 work in a copy of it of their own.

    name, fn, inputs: as of `stage`. partial: the folder. key: its fingerprint. alone: whether
    process 0 alone calls `fn`.
    """
    start, mine = time.monotonic(), partial
    multihost.broadcast('begun')
    if not self.first:
      mine = self.path / 'partial' / partial.name
      shutil.rmtree(mine, ignore_errors=True)
      if not alone:
        shutil.copytree(partial, mine)
    multihost.broadcast('copied')
    self.current, self.folder = name, mine
    counts = {}
    if self.first or not alone:
      counts = fn(self, *inputs) or {}
    elif not self.first:
      await_file(partial / DONE)
    self.current, self.folder = '', None
    shutil.rmtree(mine / PIECES, ignore_errors=True)
    seconds = round(time.monotonic() - start, 1)
    if self.first:
      file_io.write_json(partial / DONE, {
          'stage': name, 'fingerprint': key, 'seconds': seconds, 'counts': counts,
          'files': run_files.file_sums(partial)})
    shown = ', '.join(f'{k.replace("_", " ")} {v}' for k, v in counts.items() if v)
    self.log(f'    {name} took {seconds:.1f} s' + (f': {shown}' if shown else ''))

  def begin(self, name: str, partial: pathlib.Path, key: str) -> None:
    """Clears what an earlier attempt with other inputs left. name: of the stage. partial: the
    folder it is made in. key: its fingerprint."""
    shutil.rmtree(partial, ignore_errors=True)
    further = (self.path / 'checkpoints').glob(f'{name}.*')  # of `again`
    for training in {name, *(folder.name for folder in further),
                     *(row['stage'] for row in self.metrics()
                       if row['stage'].startswith(f'{name}.'))}:
      shutil.rmtree(self.path / 'checkpoints' / training, ignore_errors=True)
      self.drop_metrics(training, -1)
    partial.mkdir(parents=True)
    file_io.write_atomic(partial / '.fingerprint', key)

  def publish(self, folder: pathlib.Path, *names: str) -> None:
    """Copies files of a finished stage to the top of the run's folder. folder: of the stage. names:
    of the files."""
    for name in names:
      file_io.write_atomic(self.path / name, (folder / name).read_bytes())

  @contextlib.contextmanager
  def again(self, name: str) -> Iterator[None]:
    """Inside, the running stage goes by a name of its own. name: of that training, which has
    checkpoints of its own; '' for none."""
    stage = self.current
    self.current = f'{stage}.{name}' if name else stage
    try:
      yield
    finally:
      self.current = stage

  def checkpoints(self) -> pathlib.Path:
    """Where the running stage keeps its checkpoints."""
    return self.path / 'checkpoints' / self.current

  def record(self, step: int, values: dict[str, float]) -> None:
    """Appends one step's numbers to metrics.jsonl and to TensorBoard. step: number of the step.
    values: its numbers by name."""
    with open(self.path / 'metrics.jsonl', 'a') as f:
      f.write(json.dumps({'step': step, 'stage': self.current, **values}) + '\n')
    if not self.first:
      return
    if self.board is None or self.board[0] != self.current:
      from tensorboardX import SummaryWriter
      self.board = (self.current, SummaryWriter(str(self.path / 'tb' / self.current),
                                                max_queue=1000))
    for name, value in values.items():
      check_board(self.board[1], self.path / 'tb')
      self.board[1].add_scalar(name, value, step)

  def metrics(self) -> list[dict]:
    """Every recorded line, in order; a line torn by a kill is left out."""
    return run_files.read_metrics(self.path / 'metrics.jsonl', self.log)

  def drop_metrics(self, stage: str, after: int) -> None:
    """Forgets what `stage` recorded past step `after`: those steps will run again."""
    rows = self.metrics()
    kept = [r for r in rows if r['stage'] != stage or r['step'] <= after]
    if rows or (self.path / 'metrics.jsonl').exists():
      file_io.write_atomic(self.path / 'metrics.jsonl', ''.join(json.dumps(r) + '\n' for r in kept))

  @contextlib.contextmanager
  def progress(self, title: str, total: int, done: int = 0, unit: str = 'step'
               ) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left; where the output is no terminal, a line for the first unit and
    every ten seconds.

    total, done: counts of `unit`. title: what the bar says. Yields advance(n=1, note=''), to be
    called for what is done.
    """
    if not self.console.is_terminal:
      advance = PlainProgress(self.log, title, total, done, unit)
      with doing(title, advance):
        yield advance
      return
    columns = (TextColumn('    {task.description}'), BarColumn(), MofNCompleteColumn(),
               TextColumn('{task.fields[rate]}'), TimeRemainingColumn(),
               TextColumn('{task.fields[note]}'))
    with Progress(*columns, console=self.console, transient=True) as bar:
      self.bar = BarProgress(bar, title, total, done, unit)
      try:
        with doing(title, self.bar):
          yield self.bar
      finally:
        self.bar = None


@contextlib.contextmanager
def open_work(path: str | os.PathLike, config: dict | None = None,
              mesh: jax.sharding.Mesh | None = None, guards: Guards | None = None,
              part: tuple[int, int] | None = None) -> Iterator[Workdir]:
  """Opens (and makes) a run's folder for this process alone.

  config: what goes to config.json, or None to leave the one that stands there. mesh, guards: for
  the stages. part: (i, n), where this is one of several that open the folder side by side. With
  several processes, process 0 has the folder; the others see its stages, which takes a file system
  that they share, and write into a folder of their own that is thrown away. path: of the folder.
  Raises WorkdirError where another process holds the folder, or it cannot be written.
  """
  path, guards = pathlib.Path(path), guards or Guards()
  if jax.process_index():
    multihost.broadcast('opened')
    with tempfile.TemporaryDirectory(prefix='recjax-') as own:
      work = Workdir(mirror(path, pathlib.Path(own)), Console(quiet=True), mesh, first=False,
                     guards=guards)
      with Pulse(work.tell_wait, work.whereabouts):  # which is quiet, as all that it says
        yield work
    return
  try:
    path.mkdir(parents=True, exist_ok=True)
    check_own(path)
    lock = file_io.FileLock(path / 'lock')
  except OSError as error:
    raise WorkdirError(
        f'cannot write to {path}: {error.strerror}; choose another --workdir') from error
  with lock.file, contextlib.ExitStack() as stack:
    if not lock.acquire() and not part:
      raise WorkdirError(f'{path} is in use by {lock.holder()}; wait for it, stop it, or choose '
                         'another --workdir')
    if config is not None and not (part and (path / 'config.json').exists()) and lock.held:
      file_io.write_json(path / 'config.json', run_files.signed(config))
    if part:
      job_parts.same_settings(path, (config or {})['config'])
    log_file = stack.enter_context(open(path / 'run.log', 'a'))
    for name in ('stages', 'checkpoints'):
      (path / name).mkdir(exist_ok=True)
    multihost.broadcast('opened')
    work = Workdir(path, Console(), mesh, log_file, guards=guards, part=part, lock=lock)
    try:
      with Pulse(work.tell_wait, work.whereabouts) as work.pulse:
        yield work
    except BaseException as error:
      work.log_to_file(f'stopped by {type(error).__name__}: {error}')
      raise
    finally:
      if work.board:
        work.board[1].close()


def check_board(board: Any, path: pathlib.Path) -> None:
  """Raises WorkdirError where TensorBoard's thread has met a full disk: nobody takes what is handed
  to it any more, and the program would wait for ever.

  board: the SummaryWriter. path: its folder.
  """
  writer = board.file_writer.event_writer
  if not writer._worker.is_alive():
    writer._event_queue.cancel_join_thread()
    raise WorkdirError(f'{path} cannot be written any more: the disk is full, or the file would '
                       'grow past a limit of this system or user; mend that and run the same '
                       'command again: finished stages and checkpoints are kept')


def check_own(path: pathlib.Path) -> None:
  """Raises WorkdirError where a folder holds what no run put there and a run would write over.
  path: the folder."""
  names = [name for name in WRITTEN if os.path.lexists(path / name)]
  lock = path / 'lock'
  locked = lock.is_file() and lock.read_bytes()[:8] in (b'', b'process ')
  if not names or locked or run_files.is_config(path / 'config.json'):
    return
  raise WorkdirError(f'{path} holds {names[0]}, which no run of recjax made and a run would write '
                     'over; choose another --workdir')


@contextlib.contextmanager
def open_later_work(workdir: str | os.PathLike, data: Any, mesh: jax.sharding.Mesh
                    ) -> Iterator[Workdir]:
  """Opens the folder in which a run keeps what it makes of a later data set.

  data: the Dataset. mesh: the devices. What is logged goes to standard error, as answers go to
  standard output. workdir: of the run. Raises as `open_work`.
  """
  with open_work(pathlib.Path(workdir) / 'adopted' / data.fingerprint[:16], None, mesh) as work:
    work.console = Console(stderr=True)
    yield work


def mirror(path: pathlib.Path, own: pathlib.Path) -> pathlib.Path:
  """Makes `own` a folder from which the shared run folder `path` is read. -> own

  Raises WorkdirError where process 0's folder is not to be seen from here.
  """
  path = path.absolute()
  if not (path / 'stages').is_dir():
    raise WorkdirError(f'process {jax.process_index()} does not see {path}, which process 0 has '
                       'made; give a --workdir on a file system that all hosts share')
  for name in ('stages', 'checkpoints', 'config.json'):
    os.symlink(path / name, own / name)
  if (path / 'metrics.jsonl').exists():
    shutil.copyfile(path / 'metrics.jsonl', own / 'metrics.jsonl')
  return own


def await_file(path: pathlib.Path) -> None:
  """Returns when `path` is there; process 0 makes it, and if that one dies so does this one."""
  while not path.exists():
    time.sleep(0.5)


def saved_config(workdir: str | os.PathLike) -> ConfigDict:
  """The settings of an earlier run. workdir: of the run. Raises WorkdirError where there are none.
  """
  saved = run_files.read_config(workdir)['config']
  older = {'split': split_rule.settings(''), 'start': base_config.start_settings()}
  if 'llm' in saved:
    saved['llm'] = {'quantize': 'none', **saved['llm']}
  return ConfigDict({**older, **saved})


def find_stage(workdir: str | os.PathLike, name: str) -> pathlib.Path:
  """The folder of a finished stage of an earlier run. workdir: of the run. name: of the stage.
  Raises WorkdirError where there is none, or a file of it is not as the stage left it."""
  stages = [f for f in sorted((pathlib.Path(workdir) / 'stages').glob(f'*-{name}')) if f.is_dir()]
  finished = [f for f in stages if (f / DONE).exists()]
  if not finished:
    lost = f' ({stages[-1] / DONE} is missing)' if stages else ''
    raise WorkdirError(f'{workdir} holds no finished stage {name!r}{lost}; run its experiment to '
                       f'the end first: python -m recjax.main --config=... --workdir={workdir}')
  run_files.check(finished[-1])
  return finished[-1]
