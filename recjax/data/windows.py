"""Samples (a history, the next item) cut out of sequences, and the published ways to split them.

Where leave-one-out asks each user once, BIGRec and D3 cut a window at many places of a sequence and
split all windows by time (arXiv:2308.08434, arXiv:2406.14900, and their repositories SAI990323/
BIGRec and SAI990323/DecodingMatters).
"""
import dataclasses
import pathlib

import numpy as np

from recjax import file_io
from recjax.data.dataset import Dataset, Interactions
from recjax.data.splits import Cases, flat_positions, make_split, prefixes
from recjax.errors import ConfigError, DataError

# The first place of a sequence of n items that is asked for.
FIRST_TARGET = {
    'movie': lambda n, longest: longest + 0 * n,
    'game': lambda n, longest: np.maximum(np.minimum(longest, n - 1), 1),
    'every': lambda n, longest: 1 + 0 * n,
}


@dataclasses.dataclass(frozen=True)
class CaseSplit:
  """Cases to learn from, to choose by and to judge by.

  known: what training may look at. masked: whether this split's origin takes a history's items out
  of the ranking. protocol: how they were split, in a sentence. train, valid, test: the cases.
  by_user: whether cases of one user are averaged first; published figures count each alike.
  """
  train: Cases
  valid: Cases
  test: Cases
  known: Interactions
  masked: bool
  protocol: str
  by_user: bool = False


def make_samples(dataset: Dataset, folder: str | pathlib.Path, window: str, split: str,
                 longest: int) -> CaseSplit:
  """Cuts and splits the windows of `dataset`.

  window: which places are asked for in training, 'movie' (the 11th item on), 'game' (the same, or
  the last item of a shorter sequence), 'every' (all but the first item). split: 'leave_one_out',
  'time' (80/10/10 by the target's time), 'rows' (valid.jsonl and test.jsonl of `folder`), 'auto'
  (the data set's own rule, 'rows' where the folder has them, else leave-one-out). longest: items of
  a window; histories of leave-one-out are whole. Raises ConfigError for other names, DataError
  where the data lack times, rows, or any sample.
  """
  if not dataset.split_rule.default:
    if split != 'auto':
      raise ConfigError(f'samples.split={split!r} and split.kind={dataset.split_rule.kind!r} part '
                        "the data twice; leave samples.split='auto'")
    split = dataset.split_rule.kind
  elif split == 'auto':
    rows = file_io.find_table(folder, 'test') if pathlib.Path(folder).is_dir() else None
    split = 'rows' if rows else 'leave_one_out'
  if window not in FIRST_TARGET:
    raise ConfigError(f'samples.window={window!r}; choose one of {", ".join(FIRST_TARGET)}')
  splitters = {'leave_one_out': _leave_one_out, 'time': _by_time,
               'rows': lambda *settings: _by_rows(dataset, folder, *settings),
               'global_time': lambda _, *settings: _by_rule(dataset, *settings)}
  if split not in splitters:
    raise ConfigError(f'samples.split={split!r}; choose one of {", ".join(splitters)}')
  samples = splitters[split](dataset.interactions, window, longest)
  for name in ('train', 'valid', 'test'):
    if not len(getattr(samples, name)):
      raise DataError(f'{dataset.name} leaves no {name} sample with samples.window={window!r}, '
                      f'samples.split={split!r}; its sequences are too short or too few')
  return samples


def target_positions(lengths: np.ndarray, window: str,
                     longest: int = 10) -> tuple[np.ndarray, np.ndarray]:
  """Which places of sequences are asked for: users (n,), and places (n,) from 0.

  lengths: (U,) int. window, longest: as in `make_samples`.
  """
  lengths = np.asarray(lengths, np.int64)
  first = FIRST_TARGET[window](lengths, longest)
  counts = np.maximum(lengths - first, 0)
  places, _ = flat_positions(first, counts)
  return np.repeat(np.arange(len(lengths)), counts), places


def window_cases(interactions: Interactions, users: np.ndarray, places: np.ndarray,
                 longest: int = 0) -> Cases:
  """Asks for items at `places` (n,) in the sequences of `users` (n,) of `interactions`.

  longest: items of a history at most, 0 for all.
  """
  starts = interactions.offsets[users]
  first = np.maximum(starts, starts + places - longest) if longest else starts
  positions, offsets = flat_positions(first, starts + places - first)
  return Cases(users.astype(np.int32), (interactions.items[positions], offsets),
               interactions.items[starts + places])


def split_points(count: int, shares: tuple[float, ...] = (0.8, 0.9)) -> tuple[int, ...]:
  """Where `count` samples in order of time are cut, at `shares` of them, rounded down."""
  return tuple(int(share * count) for share in shares)


def _leave_one_out(interactions: Interactions, window: str, longest: int) -> CaseSplit:
  lengths = interactions.lengths()
  tested = np.flatnonzero(lengths > 2)
  train_lengths = np.where(lengths > 2, lengths - 2, lengths)
  users, places = target_positions(train_lengths, window, longest)
  return CaseSplit(
      window_cases(interactions, users, places, longest),
      window_cases(interactions, tested, lengths[tested] - 2),
      window_cases(interactions, tested, lengths[tested] - 1),
      prefixes(interactions, train_lengths), True,
      'leave-one-out: the last item of each user is the test, the one before it the validation; '
      f'{len(tested)} of {len(lengths)} users, those with 3 items or more')


def _by_rule(dataset: Dataset, window: str, longest: int) -> CaseSplit:
  """Windows of the training part, whole histories of what the data set's own rule holds out."""
  split = make_split(dataset)
  assert split.valid is not None  # as the rule's own splits always have
  users, places = target_positions(split.train.lengths(), window, longest)
  return CaseSplit(window_cases(split.train, users, places, longest), split.valid, split.test,
                   split.train, True, split.protocol, by_user=True)


def _by_time(interactions: Interactions, window: str, longest: int) -> CaseSplit:
  if interactions.times is None:
    raise DataError("samples.split='time' needs times, which this data set lacks; use "
                    "samples.split='leave_one_out', or add `times` to its sequences")
  users, places = target_positions(interactions.lengths(), window, longest)
  order = np.argsort(interactions.times[interactions.offsets[users] + places], kind='stable')
  first, second = split_points(len(order))
  train_lengths = np.zeros(len(interactions), np.int64)
  np.maximum.at(train_lengths, users[order[:first]], places[order[:first]] + 1)
  train, valid, test = (window_cases(interactions, users[rows], places[rows], longest)
                        for rows in np.split(order, (first, second)))
  return CaseSplit(train, valid, test, prefixes(interactions, train_lengths), False,
                 f'windows_by_count of up to {longest} items and the next ({window}), by the time '
                 f'of the next item: first 80 % train, then 10 % validation, last 10 % test; '
                 f'{len(test)} test samples')


def _by_rows(dataset: Dataset, folder: str | pathlib.Path, interactions: Interactions, window: str,
             longest: int) -> CaseSplit:
  """Held-out rows as they were published; training sees a user's items before the first of them."""
  row_of = {user: row for row, user in enumerate(interactions.users)}
  valid, test = (_read_cases(pathlib.Path(folder), name, dataset, row_of, longest)
                 for name in ('valid', 'test'))
  train_lengths = interactions.lengths().copy()
  for cases in (valid, test):
    for case, (user, target) in enumerate(zip(cases.users, cases.targets)):
      place = _target_place(interactions.history(user), cases.history(case), target)
      train_lengths[user] = min(train_lengths[user], place)
  users, places = target_positions(train_lengths, window, longest)
  return CaseSplit(window_cases(interactions, users, places, longest), valid, test,
                 prefixes(interactions, train_lengths), False, 'the rows of valid.jsonl and '
                 f'test.jsonl; {len(test)} test rows')


def _target_place(sequence: np.ndarray, history: np.ndarray, target: int) -> int:
  """Where a row's target stands in its user's sequence; 0 where the row is not part of it."""
  wanted = np.concatenate([history, [target]])
  for end in range(len(wanted), len(sequence) + 1):
    if (sequence[end - len(wanted):end] == wanted).all():
      return end - 1
  return 0


def _read_cases(folder: pathlib.Path, name: str, dataset: Dataset, row_of: dict[str, int],
                longest: int) -> Cases:
  path = file_io.find_table(folder, name)
  if path is None:
    raise DataError(f"samples.split='rows' needs {folder}/{name}.jsonl with user_id, history and "
                    'target in each line')
  users, items, offsets, targets = [], [], [0], []
  for place, row in file_io.read_rows(path):
    for key in ('user_id', 'history', 'target'):
      if key not in row:
        raise DataError(f'{place} lacks {key!r}; each row needs user_id, history and target')
    user = str(row['user_id'])
    if user not in row_of:
      raise DataError(f'{place}: user {user!r} has no sequence; add it to the sequences file, '
                      'with what is known of them before this row')
    users.append(row_of[user])
    items.extend([dataset.catalog.index(item) for item in row['history']][-longest:])
    offsets.append(len(items))
    targets.append(dataset.catalog.index(row['target']))
  return Cases(np.array(users, np.int32), (np.array(items, np.int32), np.array(offsets, np.int64)),
               np.array(targets, np.int32))
