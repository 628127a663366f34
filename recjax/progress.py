"""No silence: bars, lines of progress, and a line for whatever takes long and says nothing itself.

A `Pulse` watches the thread that made it. What that thread is at is known from three sides: the
stage, names that code gives to long calls (`doing`), and what JAX tells of its compilations. Where
nothing was logged for QUIET seconds, a timer thread logs which it is and since when. It reads and
logs, calls nothing of JAX, and takes no signal, since Python handles those in the main thread.
"""
import abc
import contextlib
import dataclasses
import functools
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.progress import Progress

QUIET = 10.0   # seconds without a line after which one comes

LOOK = 1.0     # seconds between two looks of the timer thread

COMPILING = '/jax/core/compile/'  # JAX's events of tracing, lowering and compiling

TRACING = COMPILING + 'jaxpr_trace_duration'  # the first of the three

PLAIN_NAME = re.compile(r'^jit[(_](.*?)\)?$')  # 'jit(score)' and 'jit_score' to 'score'


@dataclasses.dataclass
class Activity:
  """What a thread is at.

  since: seconds of the clock. compiles: whether JAX said that it compiles. counts: where units of
  it are counted. phase: since when it traces, lowers or compiles. name: what it is.
  """
  name: str
  since: float
  compiles: bool = False
  counts: 'Progressing | None' = None
  phase: float = 0.0


@dataclasses.dataclass
class Watched:
  """What is known of a watched thread. stack: what it is at, the outermost first. compiled: seconds
  that its compilations took so far. program: the last one, traced, lowered and compiled in turn.
  compiled_at: when that ended. pulses: that watch it, of which the last speaks."""
  stack: list[Activity] = dataclasses.field(default_factory=list)
  compiled: float = 0.0
  program: Activity | None = None
  compiled_at: float = 0.0
  pulses: list['Pulse'] = dataclasses.field(default_factory=list)


_watched: dict[int, Watched] = {}  # of each thread that a pulse watches


def _here() -> Watched | None:
  return _watched.get(threading.get_ident())


@contextlib.contextmanager
def doing(name: str, counts: 'Progressing | None' = None) -> Iterator[None]:
  """Names what the calling thread does within, for the line that tells of a long wait.

  name: e.g. 'the training step (1,024 tokens a row)', of what may also be compiling. counts: says
  how much of it is done. Costs nothing where no `Pulse` watches the thread.
  """
  here = _here()
  if here is None:
    yield
    return
  here.stack.append(Activity(name, time.monotonic(), counts=counts))
  depth = len(here.stack)
  try:
    yield
  finally:
    del here.stack[depth - 1:]


def spoke() -> None:
  """Notes that the calling thread told how far it is."""
  here = _here()
  if here and here.pulses:
    here.pulses[-1].heard()


def printing(where: str) -> 'Pulse':
  """A pulse that prints to standard error. where: what a line begins with."""
  return Pulse(lambda text: print(text, file=sys.stderr, flush=True), lambda: where)


def compiled_seconds() -> float:
  """Seconds that JAX has compiled in the calling thread since it is watched; 0 where it is not."""
  here = _here()
  return here.compiled if here else 0.0


@functools.cache
def _listen_to_jax() -> None:
  """Hears of every compilation: JAX records when one begins, and how long it took when it ends."""
  from jax import monitoring
  monitoring.register_scalar_listener(_begun)
  monitoring.register_event_duration_secs_listener(_ended)


def _begun(event: str, value: float, fun_name: str = '', **_):
  here = _here()
  if not here or not event.startswith(COMPILING):
    return
  name, now, before = PLAIN_NAME.sub(r'\1', fun_name), time.monotonic(), here.program
  outermost = not any(a.compiles for a in here.stack)
  goes_on = outermost and event != TRACING and before is not None and before.name == name
  program = Activity(name, before.since if goes_on else now, compiles=True, phase=now)
  here.stack.append(program)
  if outermost:
    here.program = program


def _ended(event: str, seconds: float, **_):
  here = _here()
  if here and event.startswith(COMPILING) and here.stack and here.stack[-1].compiles:
    program = here.stack.pop()
    if not any(a.compiles for a in here.stack):  # one inside another is part of that
      here.compiled_at = time.monotonic()
      here.compiled += here.compiled_at - program.phase


def describe(stack: list[Activity], now: float, compiled_at: float = 0.0) -> str:
  """What a thread is at, in words.

  stack: the outermost first. now: seconds of the clock. compiled_at: when something last compiled.
  -> 'compiling the training step (256 tokens a row) ... 23 s', or '' for nothing
  """
  calls = [a for a in stack if not a.counts]
  counted = [a for a in stack if a.counts]
  counts = [f'{a.name} {a.counts.count()}' for a in counted]
  program = next((a for a in calls if a.compiles), None)
  named = [a for a in calls if not a.compiles]
  if program:
    what, since = f'compiling {named[-1].name if named else program.name}', program.since
  elif named:
    what, since = named[-1].name, max(named[-1].since, compiled_at)
  elif counts:
    return f'{counts[-1]} ... {now - counted[-1].counts.moved:.0f} s'
  else:
    return ''
  return f'{what} ... {now - since:.0f} s' + (f' ({counts[-1]})' if counts else '')


class Pulse:
  """Logs a line where none came for QUIET seconds, about the thread that made it. Inside another of
  the same thread it alone speaks.

  log: called with the line. where: gives what to begin it with, e.g. the stage. now: the clock, in
  seconds. To be used as a context; `heard` is called whenever a line came from elsewhere.
  """

  def __init__(self, log: Callable[[str], object], where: Callable[[], str] = lambda: 'still at it',
               now: Callable[[], float] = time.monotonic):
    self.log, self.where, self.now = log, where, now
    self.last = self.heard_at = now()
    self.thread, self.over = threading.get_ident(), threading.Event()

  def heard(self) -> None:
    """Notes that a line came."""
    self.last = self.heard_at = self.now()

  def look(self) -> None:
    """Logs what the thread is at if it has been quiet for QUIET seconds."""
    now = self.now()
    if now - self.last < QUIET:
      return
    watched = _watched.get(self.thread)
    if not watched or watched.pulses[-1:] != [self]:
      return
    where, what = self.where(), describe(list(watched.stack), now, watched.compiled_at)
    self.last = now
    what = what or f'at work ... {now - self.heard_at:.0f} s'
    self.log(f'    {where}: {what.removeprefix(f"{where} ")}')

  def __enter__(self) -> 'Pulse':
    _watched.setdefault(self.thread, Watched()).pulses.append(self)
    self.timer = threading.Thread(target=self._run, name='recjax-pulse', daemon=True)
    self.timer.start()
    _listen_to_jax()  # whose import may take a while
    return self

  def _run(self):
    while not self.over.wait(LOOK):
      with contextlib.suppress(OSError, ValueError):  # a full disk: the main thread will say so
        self.look()

  def __exit__(self, *_):
    self.over.set()
    self.timer.join()
    pulses = _watched[self.thread].pulses
    pulses.remove(self)
    if pulses:
      pulses[-1].heard()
    else:
      del _watched[self.thread]


class Rate:
  """Units a second, and time left, without the time that compilations took.

  From the second unit on it counts from the first, which also opens files and fills caches. now:
  the clock, in seconds.
  """

  def __init__(self, done: int, now: Callable[[], float] = time.monotonic):
    """done: units done before it counts. now: the clock, in seconds."""
    self.now, self.first, self.from_first = now, done, False
    self.start, self.compiled = now(), compiled_seconds()

  def __call__(self, done: int) -> float:
    """The rate so far. done: units done in all."""
    now, compiled = self.now(), compiled_seconds()
    seconds = max(1e-9, now - self.start - (compiled - self.compiled))
    rate = (done - self.first) / seconds
    if not self.from_first:
      self.first, self.start, self.compiled, self.from_first = done, now, compiled, True
    return rate


class Progressing(abc.ABC):
  """What `Workdir.progress` yields: a function of what was done since the last call.

  done, total: counts of `unit`. now: the clock, in seconds.
  """

  def __init__(self, done: int, total: int, unit: str,
               now: Callable[[], float] = time.monotonic):
    self.done, self.total, self.unit, self.now = done, total, unit, now
    self.moved, self.rate = now(), Rate(done, now)

  def __call__(self, n: int = 1, note: str = '') -> None:
    """Counts `n` more units and shows it. note: to stand beside them."""
    self.done, self.moved = self.done + n, self.now()
    if self.show(self.rate(self.done), n, note):
      spoke()

  @abc.abstractmethod
  def show(self, rate: float, n: int, note: str) -> bool:
    """Shows how far it is. rate: units a second. n, note: of this call. -> whether it did"""

  def reach(self, done: int) -> None:
    """Moves to a count of `done`, where that is more than it stands at."""
    if done > self.done:
      self(done - self.done)

  def count(self) -> str:
    """'DONE/TOTAL'."""
    return f'{self.done:,}/{self.total:,}'


class BarProgress(Progressing):
  """Moves a bar of rich's Progress, in a terminal.

  bar: the Progress. title: of its task. total, done: counts of `unit`.
  """

  def __init__(self, bar: Progress, title: str, total: int, done: int, unit: str):
    super().__init__(done, total, unit)
    self.bar = bar
    self.row = bar.add_task(title, total=total, completed=done, rate='', note='')

  def show(self, rate: float, n: int, note: str) -> bool:
    """Moves the bar. rate: of units. n: units done now. note: what it says besides. -> True"""
    self.bar.update(self.row, advance=n, rate=pace(rate, self.unit), note=note)
    return True

  def tell(self, note: str) -> None:
    """Writes a note beside the bar, until the next move."""
    self.bar.update(self.row, note=note)


class PlainProgress(Progressing):
  """For logs and pipes: a line with rate and time left for the first unit, then every ten seconds,
  and at the end.

  log: called with the line. title: what is counted. total, done: counts of `unit`. now: the clock,
  in seconds.
  """

  def __init__(self, log: Callable[[str], object], title: str, total: int, done: int, unit: str,
               now: Callable[[], float] = time.monotonic):
    super().__init__(done, total, unit, now)
    self.log, self.title, self.logged = log, title, -math.inf

  def show(self, rate: float, n: int, note: str) -> bool:
    """Logs a line where it is time. rate: of units. n: units done now. note: what it says besides.
    -> whether"""
    if self.moved - self.logged < QUIET and self.done < self.total:
      return False
    self.logged = self.moved
    left = (self.total - self.done) / max(rate, 1e-9)
    self.log(f'    {self.title} {self.count()}, {pace(rate, self.unit)}, {left:,.0f} s left '
             f'{note}'.rstrip())
    return True


def pace(rate: float, unit: str) -> str:
  """'12.3 step/s', or '28.1 s/epoch' where one takes long. rate: units a second. unit: its name."""
  return f'{rate:,.1f} {unit}/s' if rate >= 0.5 or rate <= 0 else f'{1 / rate:,.1f} s/{unit}'
