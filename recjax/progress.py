"""No silence: bars, lines of progress, and a line for whatever takes long and says nothing itself.

A `Pulse` watches the thread that made it. What that thread is at is known from three sides: the
stage, names that code gives to long calls (`doing`), and what JAX tells of its compilations. Where
nothing was logged for QUIET seconds, a timer thread logs which it is and since when. It reads and
logs, calls nothing of JAX, and takes no signal, since Python handles those in the main thread.
"""
import contextlib
import dataclasses
import functools
import re
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
  """What a thread is at. since: seconds of the clock. compiles: whether JAX said that it compiles.
  count: gives 'DONE/TOTAL' of what is counted. phase: since when it traces, lowers or compiles."""
  name: str
  since: float
  compiles: bool = False
  count: Callable[[], str] | None = None
  phase: float = 0.0


@dataclasses.dataclass
class Watched:
  """What is known of a watched thread. stack: what it is at, the outermost first. compiled: seconds
  that its compilations took so far. program: the last one, traced, lowered and compiled in turn.
  pulses: how many watch it."""
  stack: list[Activity] = dataclasses.field(default_factory=list)
  compiled: float = 0.0
  program: Activity | None = None
  pulses: int = 0


_watched: dict[int, Watched] = {}  # of each thread that a pulse watches


def _here() -> Watched | None:
  return _watched.get(threading.get_ident())


@contextlib.contextmanager
def doing(name: str, count: Callable[[], str] | None = None) -> Iterator[None]:
  """Names what the calling thread does within, for the line that tells of a long wait.

  name: e.g. 'the training step (1,024 tokens a row)', of what may also be compiling. count: gives
  how much of it is done, 'DONE/TOTAL'. Costs nothing where no `Pulse` watches the thread.
  """
  here = _here()
  if here is None:
    yield
    return
  here.stack.append(Activity(name, time.monotonic(), count=count))
  depth = len(here.stack)
  try:
    yield
  finally:
    del here.stack[depth - 1:]


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
      here.compiled += time.monotonic() - program.phase


def describe(stack: list[Activity], now: float) -> str:
  """What a thread is at, in words. stack: the outermost first. now: seconds of the clock.

  -> 'compiling the training step (256 tokens a row) ... 23 s', or '' for nothing
  """
  calls = [a for a in stack if not a.count]
  counts = [f'{a.name} {a.count()}' for a in stack if a.count]
  program = next((a for a in calls if a.compiles), None)
  named = [a for a in calls if not a.compiles]
  if program:
    what, since = f'compiling {named[-1].name if named else program.name}', program.since
  elif named:
    what, since = named[-1].name, named[-1].since
  elif counts:
    return f'{counts[-1]} ... {now - stack[-1].since:.0f} s'
  else:
    return ''
  return f'{what} ... {now - since:.0f} s' + (f' ({counts[-1]})' if counts else '')


class Pulse:
  """Logs a line where none came for QUIET seconds, about the thread that made it.

  log: called with the line. where: gives what to begin it with, e.g. the stage. now: the clock, in
  seconds. To be used as a context; `heard` is called whenever a line came from elsewhere.
  """

  def __init__(self, log: Callable[[str], object], where: Callable[[], str] = lambda: 'still at it',
               now: Callable[[], float] = time.monotonic):
    self.log, self.where, self.now = log, where, now
    self.last = self.begun = now()
    self.thread, self.over = threading.get_ident(), threading.Event()

  def heard(self) -> None:
    """Notes that a line came."""
    self.last = self.now()

  def look(self) -> None:
    """Logs what the thread is at if it has been quiet for QUIET seconds."""
    now = self.now()
    if now - self.last < QUIET:
      return
    watched = _watched.get(self.thread)
    what = describe(list(watched.stack), now) if watched else ''
    self.last = now
    self.log(f'    {self.where()}: {what or f"at work ... {now - self.begun:.0f} s"}')

  def __enter__(self) -> 'Pulse':
    _listen_to_jax()
    _watched.setdefault(self.thread, Watched()).pulses += 1
    self.timer = threading.Thread(target=self._run, name='recjax-pulse', daemon=True)
    self.timer.start()
    return self

  def _run(self):
    while not self.over.wait(LOOK):
      self.look()

  def __exit__(self, *_):
    self.over.set()
    self.timer.join()
    watched = _watched[self.thread]
    watched.pulses -= 1
    if not watched.pulses:
      del _watched[self.thread]


class Rate:
  """Units a second, and time left, without the time that compilations took.

  From the second unit on it counts from the first, which also opens files and fills caches. now:
  the clock, in seconds.
  """

  def __init__(self, done: int, now: Callable[[], float] = time.monotonic):
    self.now, self.first, self.from_first = now, done, False
    self.start, self.compiled = now(), compiled_seconds()

  def __call__(self, done: int) -> float:
    now, compiled = self.now(), compiled_seconds()
    seconds = max(1e-9, now - self.start - (compiled - self.compiled))
    rate = (done - self.first) / seconds
    if not self.from_first:
      self.first, self.start, self.compiled, self.from_first = done, now, compiled, True
    return rate


class Progressing:
  """What `Workdir.progress` yields: a function of what was done since the last call."""
  done: int

  def reach(self, done: int) -> None:
    """Moves to a count of `done`, where that is more than it stands at."""
    if done > self.done:
      self(done - self.done)


class BarProgress(Progressing):
  """Moves a bar of rich's Progress, in a terminal.

  bar: the Progress. row: its task. done: units so far. unit: their name. pulse: to be told of a
  move.
  """

  def __init__(self, bar: Progress, row: int, done: int, unit: str, pulse: Pulse | None = None):
    self.bar, self.row, self.done, self.unit, self.rate = bar, row, done, unit, Rate(done)
    self.pulse = pulse

  def count(self) -> str:
    """'DONE/TOTAL'."""
    return f'{self.done:,}/{self.bar.tasks[self.row].total:,}'

  def tell(self, note: str) -> None:
    """Writes a note beside the bar, until the next move."""
    self.bar.update(self.row, note=note)

  def __call__(self, n: int = 1, note: str = '') -> None:
    self.done += n
    self.bar.update(self.row, advance=n, rate=pace(self.rate(self.done), self.unit), note=note)
    if self.pulse:
      self.pulse.heard()


class PlainProgress(Progressing):
  """For logs and pipes: a line with rate and time left for the first unit, then every ten seconds,
  and at the end.

  log: called with the line. title: what is counted. total, done: counts of `unit`. now: the clock,
  in seconds.
  """

  def __init__(self, log: Callable[[str], object], title: str, total: int, done: int, unit: str,
               now: Callable[[], float] = time.monotonic):
    self.log, self.title, self.total, self.done, self.unit = log, title, total, done, unit
    self.now, self.rate, self.logged = now, Rate(done, now), None

  def count(self) -> str:
    """'DONE/TOTAL'."""
    return f'{self.done:,}/{self.total:,}'

  def __call__(self, n: int = 1, note: str = '') -> None:
    self.done += n
    now, rate = self.now(), self.rate(self.done)
    if self.logged is not None and now - self.logged < QUIET and self.done < self.total:
      return
    self.logged = now
    left = (self.total - self.done) / max(rate, 1e-9)
    self.log(f'    {self.title} {self.count()}, {pace(rate, self.unit)}, '
             f'{left:,.0f} s left {note}'.rstrip())


def pace(rate: float, unit: str) -> str:
  """'12.3 step/s', or '28.1 s/epoch' where one takes long."""
  return f'{rate:,.1f} {unit}/s' if rate >= 0.5 or rate <= 0 else f'{1 / rate:,.1f} s/{unit}'
