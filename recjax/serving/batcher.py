"""Dynamic batching: what waits while the device is busy is answered by one call when it is free."""
import collections
import concurrent.futures
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

  def __len__(self) -> int:
    """How many requests wait."""
    return len(self._queue)

  def submit(self, request: Any) -> concurrent.futures.Future:
    """Queues a request.

    request: what `answer_batch` takes.

    Returns the future of its answer; cancelling it takes the request out of the queue. Raises
    QueueFull where `max_waiting` requests wait, or after `close`.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()
    with self._changed:
      if self._closed or len(self._queue) >= self.max_waiting:
        raise QueueFull(f'{len(self._queue)} requests wait already')
      self._queue.append((request, future))
      self._changed.notify()
    return future

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
        if future.set_running_or_notify_cancel():
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
    def settle(row: int, answer: Any) -> None:
      if not batch[row][1].done():
        batch[row][1].set_result(answer)
    try:
      requests = [request for request, _ in batch]
      answers = (self.answer_batch(requests, settle) if self.settles_early else
                 self.answer_batch(requests))
    except Exception as error:
      unanswered = [entry for entry in batch if not entry[1].done()]
      for entry in unanswered if len(batch) > 1 else ():
        self._answer([entry])
      if unanswered and len(batch) == 1:
        unanswered[0][1].set_exception(error)
      return
    for row, answer in zip(range(len(batch)), answers, strict=True):
      settle(row, answer)
