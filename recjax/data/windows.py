"""Samples (a history, the next item) cut out of sequences, and the published ways to part them.

Where leave-one-out asks each user once, BIGRec and D3 cut a window at many places of a sequence and
part all windows by time (bigrec.md 3.1, 4.1).
"""
import dataclasses
import pathlib

import numpy as np

from recjax import file_io
from recjax.data.dataset import Interactions
from recjax.data.splits import Cases, heads, positions
from recjax.errors import ConfigError, DataError

# The first place of a sequence of n items that is asked for.
FIRST = {
    'movie': lambda n, longest: longest + 0 * n,
    'game': lambda n, longest: np.maximum(np.minimum(longest, n - 1), 1),
    'every': lambda n, longest: 1 + 0 * n,
}


@dataclasses.dataclass(frozen=True)
class Samples:
  """Cases to learn from, to choose by and to judge by.

  known: what training may look at. masked: whether this split's origin takes a history's items out
  of the ranking.
  """
  train: Cases
  valid: Cases
  test: Cases
  known: Interactions
  masked: bool
  protocol: str


def make(shop, folder, window, split, longest):
  """Cuts and parts a data set's windows.

  window: which places are asked for in training, 'movie' (the 11th item on), 'game' (the same, or
  the last item of a shorter sequence), 'every' (all but the first item). split: 'leave_one_out',
  'time' (80/10/10 by the target's time), 'rows' (valid.jsonl and test.jsonl of `folder`), 'auto'
  ('rows' where the folder has them, else leave-one-out). longest: items of a window; histories of
  leave-one-out are whole. -> Samples. Raises ConfigError for other names, DataError where the data
  lack times, rows, or any sample.
  """
  if split == 'auto':
    held = file_io.find_table(folder, 'test') if pathlib.Path(folder).is_dir() else None
    split = 'rows' if held else 'leave_one_out'
  if window not in FIRST:
    raise ConfigError(f'samples.window={window!r}; choose one of {", ".join(FIRST)}')
  makers = {'leave_one_out': _leave_one_out, 'time': _by_time,
            'rows': lambda *given: _by_rows(shop, folder, *given)}
  if split not in makers:
    raise ConfigError(f'samples.split={split!r}; choose one of {", ".join(makers)}')
  found = makers[split](shop.interactions, window, longest)
  for name in ('train', 'valid', 'test'):
    if not len(getattr(found, name)):
      raise DataError(f'{shop.name} leaves no {name} sample with samples.window={window!r}, '
                      f'samples.split={split!r}; its sequences are too short or too few')
  return found


def cut(lengths, window, longest=10):
  """Which places of sequences are asked for. lengths: (U,). -> users (n,), places (n,) from 0"""
  lengths = np.asarray(lengths, np.int64)
  first = FIRST[window](lengths, longest)
  counts = np.maximum(lengths - first, 0)
  places, _ = positions(first, counts)
  return np.repeat(np.arange(len(lengths)), counts), places


def cases(interactions, users, places, longest=0):
  """Asks for given places of users' sequences. longest: items of a history (0: all) -> Cases"""
  starts = interactions.offsets[users]
  first = np.maximum(starts, starts + places - longest) if longest else starts
  at, offsets = positions(first, starts + places - first)
  return Cases(users.astype(np.int32), (interactions.items[at], offsets),
               interactions.items[starts + places])


def parts(count, shares=(0.8, 0.9)):
  """Where so many samples in order of time are cut: int(0.8 N) train, to int(0.9 N) validation."""
  return tuple(int(s * count) for s in shares)


def _leave_one_out(interactions, window, longest):
  lengths = interactions.lengths()
  asked = np.flatnonzero(lengths > 2)
  kept = np.where(lengths > 2, lengths - 2, lengths)
  users, places = cut(kept, window, longest)
  return Samples(
      cases(interactions, users, places, longest),
      cases(interactions, asked, lengths[asked] - 2),
      cases(interactions, asked, lengths[asked] - 1), heads(interactions, kept), True,
      'leave-one-out: the last item of each user is the test, the one before it the validation; '
      f'{len(asked)} of {len(lengths)} users, those with 3 items or more')


def _by_time(interactions, window, longest):
  if interactions.times is None:
    raise DataError("samples.split='time' needs times, which this data set lacks; use "
                    "samples.split='leave_one_out', or add `times` to its sequences")
  users, places = cut(interactions.lengths(), window, longest)
  at = interactions.offsets[users] + places
  order = np.argsort(interactions.times[at], kind='stable')
  first, second = parts(len(order))
  kept = np.zeros(len(interactions), np.int64)
  np.maximum.at(kept, users[order[:first]], places[order[:first]] + 1)
  train, valid, test = (cases(interactions, users[o], places[o], longest)
                        for o in np.split(order, (first, second)))
  return Samples(train, valid, test, heads(interactions, kept), False,
                 f'windows of up to {longest} items and the next ({window}), by the time of the '
                 f'next item: first 80 % train, then 10 % validation, last 10 % test; '
                 f'{len(test)} test samples')


def _by_rows(shop, folder, interactions, window, longest):
  """Held-out rows as they were published; training sees a user's items before the first of them."""
  row_of = {user: row for row, user in enumerate(interactions.users)}
  held = {name: _read_rows(pathlib.Path(folder), name, shop, row_of, longest)
          for name in ('valid', 'test')}
  kept = interactions.lengths().copy()
  for part in held.values():
    for u, history, target in zip(part.users, _lists(part.histories), part.targets):
      kept[u] = min(kept[u], _find(interactions.history(u), history, target))
  users, places = cut(kept, window, longest)
  return Samples(cases(interactions, users, places, longest), held['valid'], held['test'],
                 heads(interactions, kept), False, f'the rows of valid.jsonl and test.jsonl; '
                 f'{len(held["test"])} test rows')


def _lists(histories):
  flat, offsets = histories
  return [flat[a:b] for a, b in zip(offsets[:-1], offsets[1:])]


def _find(sequence, history, target):
  """Where a row's target stands in its user's sequence; 0 where the row is not part of it."""
  wanted = np.concatenate([history, [target]])
  for end in range(len(wanted), len(sequence) + 1):
    if (sequence[end - len(wanted):end] == wanted).all():
      return end - 1
  return 0


def _read_rows(folder, name, shop, row_of, longest):
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
    history = [shop.catalog.index(i) for i in row['history']][-longest:]
    users.append(row_of[user])
    items.extend(history)
    offsets.append(len(items))
    targets.append(shop.catalog.index(row['target']))
  return Cases(np.array(users, np.int32), (np.array(items, np.int32), np.array(offsets, np.int64)),
               np.array(targets, np.int32))
