"""Who is trained on what, and who is asked for what: the leave-one-out split."""
import dataclasses
import re

import numpy as np

from recjax.data.dataset import Interactions
from recjax.errors import ConfigError, DataError

HISTORIES = ('train+valid', 'train')
DRAWN_BY = 42  # the seed that draws test cases where not all are asked
_ASKED = re.compile(r'\b(\d+)(?= of \d+ users\b| test (?:samples|rows|records)\b)')
_DRAWN = re.compile(r'; drawn by seed \d+ out of \d+')


@dataclasses.dataclass(frozen=True)
class Cases:
  """Questions of an evaluation: what came after this history?

  users: (n,) int32, rows of the interactions that were split. targets: (n,) int32.
  histories: (flat items int32, offsets (n + 1,) int64)
  """
  users: np.ndarray
  histories: tuple[np.ndarray, np.ndarray]
  targets: np.ndarray

  def __len__(self):
    return len(self.users)

  def history(self, case):
    """Items before the target of a case, oldest first. -> (n,) int32"""
    flat, offsets = self.histories
    return flat[offsets[case]:offsets[case + 1]]

  def picked(self, order):
    """Some of the cases, in another order. order: (m,) case numbers -> Cases"""
    flat, offsets = self.histories
    at, cuts = positions(offsets[:-1][order], np.diff(offsets)[order])
    return Cases(self.users[order], (flat[at], cuts), self.targets[order])


@dataclasses.dataclass(frozen=True)
class Split:
  """Training sequences (one for each user, in the same rows) and what is held out of them."""
  train: Interactions
  valid: Cases | None
  test: Cases
  protocol: str


def asked(protocol):
  """How many test cases a protocol's sentence names. -> int, None where it names no number"""
  found = _ASKED.search(protocol)
  return int(found[1]) if found else None


def told(protocol, count):
  """A protocol's sentence for `count` of its test cases, however they were chosen. -> str"""
  return _ASKED.sub(str(count), _DRAWN.sub('', protocol), count=1)


def drawn(cases, most, protocol):
  """At most `most` of the test cases (0: all), the same ones for every run.

  protocol: the sentence about all of them. -> rows of `cases` (n,), ascending, and the sentence
  about these
  """
  count = len(cases)
  if not 0 < most < count:
    return np.arange(count), protocol
  rows = np.sort(np.random.default_rng(DRAWN_BY).permutation(count)[:most])
  return rows, f'{told(protocol, most)}; drawn by seed {DRAWN_BY} out of {count}'


def leave_one_out(interactions, holdout=2, test_history='train+valid', drop_cold_targets=False):
  """Holds out each user's last item for testing and, with holdout 2, the one before to validate.

  The history of a test case is all items before it, the validation item too; test_history='train'
  leaves that one out. Users with fewer than holdout + 1 items are trained on only, and with
  drop_cold_targets those are not tested whose target is in nobody's training part.
  -> Split. Raises ConfigError for other settings.
  """
  if holdout not in (1, 2):
    raise ConfigError(f'holdout is {holdout!r}; it must be 1 (test) or 2 (validation and test).')
  if test_history not in HISTORIES:
    raise ConfigError(f'eval.test_history={test_history!r}; choose one of {", ".join(HISTORIES)}')
  lengths = interactions.lengths()
  users = np.flatnonzero(lengths > holdout).astype(np.int32)
  kept = lengths.copy()
  kept[users] -= holdout
  train = heads(interactions, kept)
  valid = _cases(interactions, users, 2, 2) if holdout == 2 else None
  test = _cases(interactions, users, 1, 1 if test_history == 'train+valid' else holdout)
  least = holdout + 1
  warm = np.isin(test.targets, train.items) | (not drop_cold_targets)
  test = test.picked(np.flatnonzero(warm))
  protocol = ('leave-one-out: the last item of each user is the test'
              + (', the one before it the validation' if valid else '')
              + f'; {len(test)} of {len(lengths)} users, those with {least} items or more'
              + ('' if test_history == 'train+valid' else '; test histories end with training'))
  if drop_cold_targets:
    protocol += f'; without {int((~warm).sum())} whose target is in nobody\'s training'
  return Split(train, valid, test, protocol)


def split_for_config(dataset, judge):
  """The leave-one-out split that a config asks for. judge: tie_order (in which the data set was
  loaded), test_history, drop_cold_targets. -> Split. Raises DataError where nobody can be tested.
  """
  split = leave_one_out(dataset.interactions, 2, judge.test_history, judge.drop_cold_targets)
  if not len(split.test):
    more = ', the last one in the training of others' if judge.drop_cold_targets else ''
    raise DataError(f'no user of {dataset.name} can be tested: each needs 3 items{more}')
  if judge.tie_order == 'file':
    return split
  return dataclasses.replace(split, protocol=f'{split.protocol}; tied times: {judge.tie_order}')


def heads(interactions, kept):
  """The first kept[u] items of each user. -> Interactions"""
  picked, offsets = positions(interactions.offsets[:-1], kept)
  times, ratings = (None if array is None else array[picked]
                    for array in (interactions.times, interactions.ratings))
  return Interactions(interactions.users, interactions.items[picked], offsets, times, ratings)


def _cases(interactions, users, back, held):
  """Asks `users` for their item `back` from the end, given all but the last `held`. -> Cases"""
  starts, ends = interactions.offsets[users], interactions.offsets[users + 1]
  picked, offsets = positions(starts, ends - held - starts)
  return Cases(users, (interactions.items[picked], offsets), interactions.items[ends - back])


def positions(starts, lengths):
  """Indices starts[i] .. starts[i] + lengths[i] - 1 end to end. -> (sum,) int64, (n + 1,) int64"""
  offsets = np.zeros(len(lengths) + 1, np.int64)
  np.cumsum(lengths, out=offsets[1:])
  return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets
