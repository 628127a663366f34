"""How long runs take to answer: the cost that a shop pays for every visitor."""
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from recjax import recommend
from recjax.data.array_record import Records
from recjax.errors import DataError

LIST = 10  # items of an answer, or all where there are fewer
TOGETHER = 256  # histories of the larger question
MOST, FEWEST = 50, 3  # rounds of a size
SECONDS = 20.0  # that the rounds of a size may take beyond the fewest


@dataclasses.dataclass(frozen=True)
class AnswerTimes:
  """Milliseconds a user, medians over rounds after the first, which compiles.

  alone: of one history at a time. together: of TOGETHER at once. rounds: how many of each.
  """
  alone: float
  together: float
  rounds: tuple[int, int]


def of_run(path: str | os.PathLike, clock: Callable[[], float] = time.monotonic) -> AnswerTimes:
  """Times the recommender of a run on histories of its own users, drawn by seed 0.

  path: the run's folder. clock: tells seconds. Raises DataError where its users are on disk, and
  what `recommend.load` raises.
  """
  ask, data = recommend.load(path)
  if isinstance(data, Records):
    raise DataError(f'{path}: its users are kept on disk; answers are timed for data in memory')
  known = data.interactions
  some = np.random.default_rng(0).permutation(np.flatnonzero(known.lengths()))
  histories = [[data.catalog.id_of(i) for i in known.history(user)]
               for user in np.resize(some, TOGETHER)]
  answer = functools.partial(ask, k=min(LIST, len(data.catalog)))
  rounds = [_rounds(answer, [histories[k:k + 1] for k in range(TOGETHER)], clock),
            _rounds(answer, [histories], clock)]
  alone, together = (1000 * statistics.median(times) for times in rounds)
  return AnswerTimes(alone, together / TOGETHER, (len(rounds[0]), len(rounds[1])))


def _rounds(ask: Callable, questions: Sequence[Sequence[Sequence[str]]],
            clock: Callable[[], float]) -> list[float]:
  """Seconds of each round; the questions take turns, all of them once before where they are few."""
  for question in questions[:FEWEST]:
    ask(question)
  times, begun = [], clock()
  while len(times) < FEWEST or len(times) < MOST and clock() - begun < SECONDS:
    start = clock()
    ask(questions[len(times) % len(questions)])
    times.append(clock() - start)
  return times


def table(found: Mapping[str, AnswerTimes]) -> str:
  """Lines for a terminal. found: {run: its times}."""
  wide = max(map(len, found), default=0)
  return ''.join(
      f'{run:{wide}}  {times.alone:9.3f} ms alone ({times.rounds[0]} rounds)  {times.together:9.4f}'
      f' ms a user of {TOGETHER} together ({times.rounds[1]})\n' for run, times in found.items())
