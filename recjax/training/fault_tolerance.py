"""What ends a run in good order: SIGTERM, numbers that are none, input that stalls, a hung step."""
import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from recjax.errors import ConfigError, Preempted, UserError

GRACE = 25.0       # seconds that a step may still take after SIGTERM, before the process just ends

HUNG = 75          # exit code of the watchdog: "try again", which launchers do

SLOW_FACTOR = 20   # times the usual time of a step after which slowness is worth a line

ON_NAN = ('stop', 'skip')


@dataclasses.dataclass(frozen=True)
class Guards:
  """on_nan: 'stop' the run at a loss that is no number, or 'skip' that batch. watchdog: seconds
  without a step after which the process ends with code 75, 0 for never. stall: seconds without a
  batch after which that is said. memory: GiB of a device that a step may take, 0 for what
  the device says."""
  on_nan: str = 'stop'
  watchdog: float = 0.0
  stall: float = 60.0
  memory: float = 0.0

  def __post_init__(self):
    if self.on_nan not in ON_NAN:
      raise ConfigError(f'--on_nan={self.on_nan!r}; choose one of {", ".join(ON_NAN)}')
    if not 0 <= self.watchdog < math.inf or not self.stall > 0:
      raise ConfigError(f'--watchdog={self.watchdog} must not be below 0 and stall={self.stall} '
                        'must be above it')
    if not 0 <= self.memory < math.inf:
      raise ConfigError(f'--memory={self.memory} must not be below 0 (GiB of a device)')


# SIGTERM, as spot machines, Kubernetes and SLURM send it.

_state = {'asked': False, 'heard': False, 'holding': 0, 'calls': 0}


def listen(grace: float = GRACE) -> None:
  """Makes SIGTERM end this process in good order: at the next step where `holding`, else at once.

  Where that does not come about within `grace` seconds (a long compilation), the process just ends:
  what is on disk is whole at any moment. Several processes must all stop at the same step, on which
  JAX makes them agree: its handler, set when they met, is handed the signal.
  """
  def handler(number: int, frame: Any) -> None:
    del number, frame
    _state['asked'] = True
    if not _state['holding']:
      raise Preempted
  hand_on = _handler_of_jax() if jax.process_count() > 1 else None
  ear, mouth = os.pipe()
  os.set_blocking(mouth, False)
  threading.Thread(target=_attend, args=(ear, grace, hand_on), daemon=True).start()
  signal.signal(signal.SIGTERM, handler)
  signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)


def _handler_of_jax():
  """The handler that `jax.distributed.initialize` set in C++, where Python does not see it."""
  libc = ctypes.CDLL(None)
  libc.signal.restype = ctypes.c_void_p
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  return ctypes.CFUNCTYPE(None, ctypes.c_int)(libc.signal(signal.SIGTERM, int(signal.SIG_IGN)))


def _attend(ear, grace, hand_on):
  """Hears SIGTERM beside the main thread, which may not run its handler for long."""
  while signal.SIGTERM not in os.read(ear, 64):
    pass
  if hand_on:
    hand_on(signal.SIGTERM)
  ends = time.monotonic() + grace
  while not _state['heard'] and time.monotonic() < ends:
    if not _state['asked']:  # it may have come just before a call that waits: wake that
      signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(min(1.0, grace))
  if not _state['heard']:
    os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def holding() -> Iterator[None]:
  """Within it SIGTERM only sets what `asked` tells."""
  _state['holding'] += 1
  try:
    yield
  finally:
    _state['holding'] -= 1


def asked() -> bool:
  """Whether to save and leave now; to be called once a step, in all processes alike."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    _state['calls'] += 1
    _state['heard'] |= multihost_utils.reached_preemption_sync_point(_state['calls'])
    return _state['heard']
  _state['heard'] |= _state['asked']  # saving may take as long as it takes
  return _state['asked']


# Hung steps.


def slow_after(took: Sequence[float], ahead: int) -> float:
  """Seconds without a step after which a line says so. took: seconds of the latest steps. ahead: as
  of `watch`. -> infinite until the wait for all steps under way has been seen once"""
  if len(took) <= ahead:
    return math.inf
  return max(SLOW_FACTOR * max(3.0, statistics.median(took)), 3 * max(took))


@contextlib.contextmanager
def watch(work: Any, limit: float, ahead: int = 1, now: Callable[[], float] = time.monotonic,
          leave: Callable[[int], Any] = os._exit) -> Iterator[Callable[[], None]]:
  """Yields a function to call after every step; says when steps stop coming.

  limit: seconds after which `leave(75)` is called, with the stacks of all threads in run.log; 0 for
  never. ahead: so many steps are handed to the device before one is waited for, so the wait for all
  of them is usual too. Nothing is said before they are over; the first one also compiles. work: of
  the running stage. now: the clock, in seconds. leave: ends the process.
  """
  seen, took, over = [now()], [], threading.Event()

  def beat() -> None:
    took.append(now() - seen[0])
    del took[:-max(50, 2 * ahead)]
    seen[0] = now()

  def look() -> None:
    said = 0.0
    while not over.wait(min(5.0, (limit or 20) / 4)):
      quiet, last = now() - seen[0], seen[0]
      if limit and quiet > limit:
        work.log(f'no step of {work.current} for {quiet:.0f} s (--watchdog={limit:g}): a lost host '
                 'or a hung device; ending, the same command goes on from the last checkpoint')
        if work.log_file:
          faulthandler.dump_traceback(work.log_file)
        leave(HUNG)
        return
      if quiet > slow_after(took, ahead) and said != last:
        said = last
        work.log(f'    no step of {work.current} for {quiet:.0f} s, usually one takes '
                 f'{statistics.mean(took):.1f} s; --watchdog=SECONDS would end a hung run')

  thread = threading.Thread(target=look, daemon=True)
  thread.start()
  try:
    yield beat
  finally:
    over.set()
    thread.join()


def awaited(coming: Future, work: Any, step: int) -> Any:
  """The result of a reader's future; while none comes, says so and which batch it is. coming: the
  future. work: of the running stage. step: number of the batch."""
  start = time.monotonic()
  while True:
    try:
      return coming.result(work.guards.stall)
    except TimeoutError:
      if coming.done():  # the reader itself raised it
        raise
      work.log(f'    input stalled: the batch of step {step} of {work.current} has been read for '
               f'{time.monotonic() - start:.0f} s; is the disk or the network slow?')


# Losses that are no numbers.


def check(work: Any, batches: Sequence, first: int, window: list[dict]) -> list[dict]:
  """Looks for steps that were not finite, whose update was left out (see `loop.make_update`).

  first: number of the window's first step. window: host values of its steps, with 'bad'. Their
  batches go to bad_steps.jsonl and bad/. work: of the running stage. batches: of the loop. -> the
  values of the good steps. Raises UserError at the first bad one under --on_nan=stop, and where no
  step of a window was good.
  """
  bad = [i for i, values in enumerate(window) if values['bad']]
  for i in bad if work.guards.on_nan == 'skip' else bad[:1]:
    dump(work, batches, first + i, window[i])
  good = [w for w in window if not w['bad']]
  if not bad:
    return good
  step, values = first + bad[0], window[bad[0]]
  if work.guards.on_nan == 'stop' or not good:
    raise UserError(
        f'the loss of {work.current} became {float(values["loss"])} in step {step} (norm of the '
        f'gradient {float(values["grad_norm"])}), which changed nothing; its batch is in '
        f'{work.path / "bad"}. Lower --config.optim.lr or raise warmup and run again, which trains '
        'this stage anew, or add --on_nan=skip: that goes on from the last checkpoint and leaves '
        'such batches out')
  work.log(f'    {len(bad)} steps were no numbers and are left out, first step {step}')
  return good


def dump(work: Any, batches: Any, step: int, values: dict) -> None:
  """Keeps what a step was made of: which rows, and the batch itself as plain arrays.

  work: of the running stage. batches: of the loop. step: the bad one. values: its loss and the norm
  of its gradient.
  """
  folder = work.path / 'bad'
  folder.mkdir(exist_ok=True)
  name = f'{work.current}-{step}.npz'
  with open(folder / name, 'wb') as f:
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in batches[step].items()}
    np.savez(f, **arrays)
  rows = batches.rows_of(step) if hasattr(batches, 'rows_of') else None
  with open(work.path / 'bad_steps.jsonl', 'a', encoding='utf-8') as f:
    f.write(json.dumps({
        'stage': work.current, 'step': step, 'loss': str(float(values['loss'])),
        'grad_norm': str(float(values['grad_norm'])), 'batch': f'bad/{name}',
        'rows': None if rows is None else [int(r) for r in rows]}) + '\n')
