"""Who is trained on what, and who is asked for what: the leave-one-out split."""
import dataclasses
import re

import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset, Interactions
from recjax.errors import ConfigError, DataError

HISTORIES = ('train+valid', 'train')
SAMPLE_SEED = 42  # draws test cases where not all are asked
_NUM_CASES = re.compile(r'\b(\d+)(?= of \d+ users\b| test (?:samples|rows|records)\b)')
_SAMPLED = re.compile(r'; drawn by seed \d+ out of \d+')


@dataclasses.dataclass(frozen=True)
class Cases:
  """Questions of an evaluation: what came after this history?

  users: (n,) int32, rows of the interactions that were split. targets: (n,) int32, item indices.
  histories: flat items int32, and offsets (n + 1,) int64 into them.
  """
  users: np.ndarray
  histories: tuple[np.ndarray, np.ndarray]
  targets: np.ndarray

  def __len__(self) -> int:
    return len(self.users)

  def history(self, case: int) -> np.ndarray:
    """Items before the target of the case numbered `case`, oldest first, (n,) int32."""
    items, offsets = self.histories
    return items[offsets[case]:offsets[case + 1]]

  def select(self, rows: np.ndarray) -> 'Cases':
    """The cases numbered `rows` (m,), in that order."""
    items, offsets = self.histories
    positions, offsets = flat_positions(offsets[:-1][rows], np.diff(offsets)[rows])
    return Cases(self.users[rows], (items[positions], offsets), self.targets[rows])


@dataclasses.dataclass(frozen=True)
class Split:
  """Training sequences (one for each user, in the same rows) and what is held out of them.

  train: the sequences. valid, test: what is held out, None where nothing is. protocol: how it was
  split, in a sentence.
  """
  train: Interactions
  valid: Cases | None
  test: Cases
  protocol: str


def num_cases(protocol: str) -> int | None:
  """How many test cases the sentence `protocol` names, None where it names no number."""
  match = _NUM_CASES.search(protocol)
  return int(match[1]) if match else None


def with_num_cases(protocol: str, count: int | str) -> str:
  """The sentence `protocol` for `count` of its test cases, however they were chosen."""
  return _NUM_CASES.sub(str(count), _SAMPLED.sub('', protocol), count=1)


def sample_cases(cases: Cases, max_cases: int, protocol: str) -> tuple[np.ndarray, str]:
  """At most `max_cases` of the test cases (0: all), the same ones for every run.

  protocol: the sentence about all of `cases`. Returns their rows (n,), ascending, and the sentence
  about these.
  """
  count = len(cases)
  if not 0 < max_cases < count:
    return np.arange(count), protocol
  rows = np.sort(np.random.default_rng(SAMPLE_SEED).permutation(count)[:max_cases])
  return rows, (f'{with_num_cases(protocol, max_cases)}; drawn by seed {SAMPLE_SEED} out of '
                f'{count}')


def leave_one_out(interactions: Interactions, holdout: int = 2, test_history: str = 'train+valid',
                  drop_cold_targets: bool = False) -> Split:
  """Holds out the last item of each user of `interactions` for testing and, with holdout 2, the one
  before to validate.

  The history of a test case is all items before it, the validation item too; test_history='train'
  leaves that one out. Users with fewer than holdout + 1 items are trained on only, and with
  drop_cold_targets those are not tested whose target is in nobody's training part. Raises
  ConfigError for other settings.
  """
  if holdout not in (1, 2):
    raise ConfigError(f'holdout is {holdout!r}; it must be 1 (test) or 2 (validation and test).')
  if test_history not in HISTORIES:
    raise ConfigError(f'eval.test_history={test_history!r}; choose one of {", ".join(HISTORIES)}')
  lengths = interactions.lengths()
  users = np.flatnonzero(lengths > holdout).astype(np.int32)
  train_lengths = lengths.copy()
  train_lengths[users] -= holdout
  train = prefixes(interactions, train_lengths)
  valid = _last_cases(interactions, users, 2, 2) if holdout == 2 else None
  test = _last_cases(interactions, users, 1, 1 if test_history == 'train+valid' else holdout)
  warm = np.isin(test.targets, train.items) | (not drop_cold_targets)
  test = test.select(np.flatnonzero(warm))
  protocol = ('leave-one-out: the last item of each user is the test'
              + (', the one before it the validation' if valid else '')
              + f'; {len(test)} of {len(lengths)} users, those with {holdout + 1} items or more'
              + ('' if test_history == 'train+valid' else '; test histories end with training'))
  if drop_cold_targets:
    protocol += f'; without {int((~warm).sum())} whose target is in nobody\'s training'
  return Split(train, valid, test, protocol)


def split_for_config(dataset: Dataset, eval_config: ConfigDict) -> Split:
  """The leave-one-out split of `dataset` that a config asks for.

  eval_config: tie_order (in which the data set was loaded), test_history, drop_cold_targets. Raises
  DataError where nobody can be tested.
  """
  split = leave_one_out(dataset.interactions, 2, str(eval_config.test_history),
                        bool(eval_config.drop_cold_targets))
  if not len(split.test):
    more = ', the last one in the training of others' if eval_config.drop_cold_targets else ''
    raise DataError(f'no user of {dataset.name} can be tested: each needs 3 items{more}')
  if eval_config.tie_order == 'file':
    return split
  return dataclasses.replace(
      split, protocol=f'{split.protocol}; tied times: {eval_config.tie_order}')


def prefixes(interactions: Interactions, lengths: np.ndarray) -> Interactions:
  """The first lengths[u] items of each user u of `interactions`. lengths: (U,) int."""
  positions, offsets = flat_positions(interactions.offsets[:-1], lengths)
  times, ratings = (None if array is None else array[positions]
                    for array in (interactions.times, interactions.ratings))
  return Interactions(interactions.users, interactions.items[positions], offsets, times, ratings)


def _last_cases(interactions: Interactions, users: np.ndarray, back: int, held_out: int) -> Cases:
  """Asks `users` for their item `back` from the end, given all but the last `held_out`."""
  starts, ends = interactions.offsets[users], interactions.offsets[users + 1]
  positions, offsets = flat_positions(starts, ends - held_out - starts)
  return Cases(users, (interactions.items[positions], offsets), interactions.items[ends - back])


def flat_positions(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Positions starts[i] .. starts[i] + lengths[i] - 1 of all i end to end, int64, and the offsets
  (n + 1,) int64 where each i begins. starts, lengths: (n,) int."""
  offsets = np.zeros(len(lengths) + 1, np.int64)
  np.cumsum(lengths, out=offsets[1:])
  return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets
