"""What a user did, out of the training data and the events since; and who gets which model."""
import bisect
import collections
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recjax.data import times
from recjax.data.dataset import Interactions
from recjax.errors import ConfigError
from recjax.serving.events import Event

MS = 1000  # milliseconds of a second


class TrainingHistories:
  """The histories that a run was trained on, by user.

  dataset: a Dataset, or Records, which keep no interactions in memory: its users are unknown here.
  unit: in which its times are, one of `times.UNITS`, '' where they are no times since 1970.
  """

  def __init__(self, dataset: Any):
    self._interactions: Interactions | None = getattr(dataset, 'interactions', None)
    users = () if self._interactions is None else self._interactions.users
    self._rows: dict[str, int] = {user: row for row, user in enumerate(users)}
    self.unit = time_unit(self._interactions)

  def merge(self, user: str, events: Sequence[Event], index: Callable[[str], int]
            ) -> tuple[list[int], list[str]]:
    """Returns a user's whole history, oldest first: item indices 1..N, and unknown item ids.

    user: an id. events: of the user, oldest first. index: finds the index of an id, 0 for none.

    Events that the training data hold already, since a log with them was prepared and trained on,
    come once: those of the same item and time, or without times those with which the training
    data end.
    """
    row = self._rows.get(user)
    indices = [index(event.item) for event in events]
    unknown = [event.item for event, item in zip(events, indices) if not item]
    data = self._interactions
    if row is None or data is None:
      return [item for item in indices if item], unknown
    trained = data.history(row).tolist()
    if not self.unit or data.times is None:
      known = [item for item in indices if item]
      overlap = next((n for n in range(min(len(known), len(trained)), 0, -1)
                      if trained[-n:] == known[:n]), 0)
      return trained + known[overlap:], unknown
    start, end = data.offsets[row], data.offsets[row + 1]
    held = collections.Counter(zip(trained, data.times[start:end].tolist()))
    new = []
    for event, item in zip(events, indices):
      place = item, in_unit(event.time_ms, self.unit)
      if held[place]:
        held[place] -= 1
      elif item:
        new.append(item)
    return trained + new, unknown


def time_unit(interactions: Any) -> str:
  """Returns the unit of the times since 1970 of `interactions`, one of `times.UNITS`; '' for none
  or for numbers that are no such times."""
  if interactions is None or interactions.times is None or not len(interactions.times):
    return ''
  kinds = {times.number_kind(int(time)) for time in (interactions.times.min(),
                                                     interactions.times.max())}
  return kinds.pop() if len(kinds) == 1 and kinds <= set(times.UNITS) else ''


def in_unit(time_ms: int, unit: str) -> int:
  """Returns milliseconds `time_ms` as whole units. unit: one of `times.UNITS`."""
  return time_ms * times.UNITS[unit] // MS


class Split:
  """Shares users out to models, each user always to the same one.

  shares: {name of a model: its share}, in the order in which they are laid on a scale from 0 to 1.
  """

  def __init__(self, shares: Mapping[str, float]):
    total = sum(shares.values())
    self.names = list(shares)
    self._ends = list(itertools.accumulate(share / total for share in shares.values()))

  def choose(self, user: str) -> str:
    """Returns the name of the model that `user`, an id, gets: by a hash, the same everywhere."""
    place = int.from_bytes(hashlib.sha256(f'recjax:{user}'.encode()).digest()[:8]) / 2**64
    return self.names[min(bisect.bisect_right(self._ends, place), len(self.names) - 1)]


def parse_split(text: str, names: Iterable[str]) -> Split | None:
  """Returns what --split says, None for ''.

  text: as in 'a:0.9,b:0.1'. names: of the models that are served. Raises ConfigError.
  """
  shares: dict[str, float] = {}
  names = list(names)
  for part in filter(None, text.split(',')):
    name, _, share = part.rpartition(':')
    try:
      value = float(share)
    except ValueError:
      value = -1
    if name not in names:
      raise ConfigError(f'--split: {name or part!r} is no model here; there are '
                        f'{", ".join(names)}, as in --split={names[0]}:0.9,...')
    if not 0 < value < float('inf') or name in shares:
      raise ConfigError(f'--split: {part!r}: name each model once, with a share above 0')
    shares[name] = value
  return Split(shares) if shares else None
