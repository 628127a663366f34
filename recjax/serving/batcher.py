"""Dynamic batching: what waits while the device is busy is answered by one call when it is free."""
import asyncio
import collections
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class QueueFull(Exception):
  """Too many requests wait already, or the batcher is closed."""


class Batcher:
  """One thread that gathers waiting requests and answers them by one call.

  answer_batch: called with a list of requests, gives a list of answers in their order. With
    `settles_early` it is called with a second argument, settle(row, answer), by which it may give
    some answers before it returns.
  max_batch_size: the most requests of one call.
  max_waiting: the most requests that may wait.
  wait_seconds: how long a first request waits for others. 0 loses no time, because others gather
    while a batch is being answered.
  on_batch: called with (size, seconds) after every batch.
  name: the name of the thread.
  batch_size_for: how many to answer first when so many wait; all of them without it.
  settles_early: see `answer_batch`.
  """

  def __init__(self, answer_batch: Callable[..., Sequence[Any]], max_batch_size: int = 64,
               max_waiting: int = 1024, wait_seconds: float = 0.0,
               on_batch: Callable[[int, float], None] | None = None, name: str = 'batcher',
               batch_size_for: Callable[[int], int] | None = None, settles_early: bool = False):
    self.answer_batch, self.max_batch_size = answer_batch, max_batch_size
    self.max_waiting, self.wait_seconds = max_waiting, wait_seconds
    self.batch_size_for = batch_size_for or (lambda waiting: waiting)
    self.on_batch = on_batch or (lambda size, seconds: None)
    self.settles_early = settles_early
    self._queue: collections.deque = collections.deque()
    self._changed, self._closed = threading.Condition(), False
    self._thread = threading.Thread(target=self._run, name=name, daemon=True)
    self._thread.start()

  @property
  def waiting(self) -> int:
    """How many requests wait."""
    return len(self._queue)

  def submit(self, request: Any) -> concurrent.futures.Future:
    """Queues a request.

    request: what `answer_batch` takes.

    Returns the future of its answer; cancelling it takes the request out of the queue. Raises
    QueueFull where `max_waiting` requests wait, or after `close`.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()
    self._put(request, future)
    return future

  def ask(self, request: Any) -> asyncio.Future:
    """Queues a request of the event loop that runs; a batch's answers come to it all at once, which
    takes a third of the time that `asyncio.wrap_future` takes of each.

    request: what `answer_batch` takes.

    Returns the future of its answer, and raises, as `submit` does.
    """
    future = asyncio.get_running_loop().create_future()
    self._put(request, future)
    return future

  def _put(self, request: Any, future: concurrent.futures.Future | asyncio.Future) -> None:
    with self._changed:
      if self._closed or len(self._queue) >= self.max_waiting:
        raise QueueFull(f'{len(self._queue)} requests wait already')
      self._queue.append((request, future))
      self._changed.notify()

  def close(self, timeout: float | None = None) -> None:
    """Takes no more requests and returns when those that wait are answered.

    timeout: seconds after which it returns anyway; None waits without end.
    """
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join(timeout)

  def _next_batch(self) -> list | None:
    with self._changed:
      while not self._queue:
        if self._closed:
          return None
        self._changed.wait()
    deadline = time.monotonic() + self.wait_seconds
    while (len(self._queue) < self.max_batch_size and not self._closed
           and time.monotonic() < deadline):
      time.sleep(min(0.001, self.wait_seconds))
    batch = []
    with self._changed:
      size = min(self.batch_size_for(len(self._queue)), self.max_batch_size)
      while self._queue and len(batch) < size:
        request, future = self._queue.popleft()
        if (not future.done() if isinstance(future, asyncio.Future) else
            future.set_running_or_notify_cancel()):
          batch.append((request, future))
    return batch

  def _run(self) -> None:
    while (batch := self._next_batch()) is not None:
      if batch:
        start = time.perf_counter()
        self._answer(batch)
        self.on_batch(len(batch), time.perf_counter() - start)

  def _answer(self, batch: list) -> None:
    """Answers all; where that fails, each alone, so that one's mistake is not the others'."""
    is_settled = [False] * len(batch)

    def settle(row: int, answer: Any) -> None:
      if not is_settled[row]:
        is_settled[row] = True
        deliver([(batch[row][1], answer, None)])
    try:
      requests = [request for request, _ in batch]
      answers = (self.answer_batch(requests, settle) if self.settles_early else
                 self.answer_batch(requests))
      if len(answers) != len(batch):
        raise RuntimeError(f'{len(answers)} answers to {len(batch)} requests')
    except Exception as error:
      unanswered = [entry for entry, settled in zip(batch, is_settled) if not settled]
      for entry in unanswered if len(batch) > 1 else ():
        self._answer([entry])
      if unanswered and len(batch) == 1:
        deliver([(unanswered[0][1], None, error)])
      return
    deliver([(future, answer, None) for (_, future), answer, settled in zip(
        batch, answers, is_settled, strict=True) if not settled])


def deliver(answers: Sequence[tuple[Any, Any, Exception | None]]) -> None:
  """Gives futures what they wait for: those of threads at once, those of an event loop in one call
  of it. answers: (future, answer, error or None)."""
  by_loop = collections.defaultdict(list)
  for future, answer, error in answers:
    if isinstance(future, asyncio.Future):
      by_loop[future.get_loop()].append((future, answer, error))
    else:
      set_answers([(future, answer, error)])
  for loop, some in by_loop.items():
    with contextlib.suppress(RuntimeError):  # closed: the server has ended, and nobody waits
      loop.call_soon_threadsafe(set_answers, some)


def set_answers(answers: Sequence[tuple[Any, Any, Exception | None]]) -> None:
  """Sets the answers of futures whose caller still waits. answers: as `deliver` takes them."""
  for future, answer, error in answers:
    if future.done():
      continue
    if error is None:
      future.set_result(answer)
    else:
      future.set_exception(error)
