"""Requests of many clients, answered together: what waits when the device is free is one batch."""
import collections
import concurrent.futures
import threading
import time


class Busy(Exception):
  """Too many requests wait already."""


class Batcher:
  """One thread that gathers waiting requests and answers them by one call.

  answer: list of requests -> list of answers, in order. most: requests of a batch. room: requests
  that may wait. wait: seconds that a first request waits for others; 0 loses no time, as others
  gather while a batch is being answered. seen: called with (size, seconds) of every batch. share:
  of so many that wait, how many are answered first; None takes all, up to `most`. early: whether
  `answer` takes a second argument, settle(row, answer), by which it may give some before all.
  """

  def __init__(self, answer, most=64, room=1024, wait=0.0, seen=None, name='batcher', share=None,
               early=False):
    self.answer, self.most, self.room, self.wait = answer, most, room, wait
    self.share, self.early = share or (lambda waiting: waiting), early
    self.seen = seen or (lambda size, seconds: None)
    self.queue, self.ready, self.closed = collections.deque(), threading.Condition(), False
    self.thread = threading.Thread(target=self._work, name=name, daemon=True)
    self.thread.start()

  def __len__(self):
    return len(self.queue)

  def submit(self, request):
    """-> concurrent Future of its answer. Cancelling it takes it out. Raises Busy when full."""
    future = concurrent.futures.Future()
    with self.ready:
      if self.closed or len(self.queue) >= self.room:
        raise Busy(f'{len(self.queue)} requests wait already')
      self.queue.append((request, future))
      self.ready.notify()
    return future

  def close(self, timeout=None):
    """Takes no more; returns when what waits is answered, or after `timeout` seconds."""
    with self.ready:
      self.closed = True
      self.ready.notify()
    self.thread.join(timeout)

  def _gather(self):
    with self.ready:
      while not self.queue:
        if self.closed:
          return None
        self.ready.wait()
    until = time.monotonic() + self.wait
    while len(self.queue) < self.most and not self.closed and time.monotonic() < until:
      time.sleep(min(0.001, self.wait))
    out = []
    with self.ready:
      most = min(self.share(len(self.queue)), self.most)
      while self.queue and len(out) < most:
        request, future = self.queue.popleft()
        if future.set_running_or_notify_cancel():
          out.append((request, future))
    return out

  def _work(self):
    while (batch := self._gather()) is not None:
      if batch:
        start = time.perf_counter()
        self._answer(batch)
        self.seen(len(batch), time.perf_counter() - start)

  def _answer(self, batch):
    """Answers all; where that fails, each alone, so that one's mistake is not the others'."""
    def settle(row, answer):
      if not batch[row][1].done():
        batch[row][1].set_result(answer)
    try:
      requests = [request for request, _ in batch]
      answers = self.answer(requests, settle) if self.early else self.answer(requests)
    except Exception as error:
      left = [one for one in batch if not one[1].done()]
      for one in left if len(batch) > 1 else ():
        self._answer([one])
      if left and len(batch) == 1:
        left[0][1].set_exception(error)
      return
    for row, answer in zip(range(len(batch)), answers, strict=True):
      settle(row, answer)
