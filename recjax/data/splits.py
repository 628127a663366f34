"""Who is trained on what, and who is asked for what: leave-one-out, or one moment for everybody."""
import dataclasses
import functools
import re

import numpy as np
from ml_collections import ConfigDict

from recjax.data import times as times_lib
from recjax.data.dataset import Dataset, Interactions
from recjax.errors import ConfigError, DataError
from recjax.split_rule import SplitRule

HISTORIES = ('train+valid', 'train')
CLOCKS = ('last', 'target')  # when a request is made: at its last item's time, or at its target's
SAMPLE_SEED = 42  # draws test cases where not all are asked
VALID_USERS = 1024  # who leave training where validation is by users
FEW_USERS = 100  # of a test, beyond which a sentence need not warn
_NUM_CASES = re.compile(r'\b(\d+)(?= of \d+ users\b| test (?:samples|rows|records|cases)\b)')
_SAMPLED = re.compile(r'; drawn by seed \d+ out of \d+')


@dataclasses.dataclass(frozen=True)
class CaseTimes:
  """When the items of cases came.

  times: (M,) int64, of the interactions that were split. per_second: how many of its units make a
  second. starts, targets: (n,) int64, where each history begins in them, and where its target is.
  """
  times: np.ndarray
  per_second: int
  starts: np.ndarray
  targets: np.ndarray

  def of_requests(self, rows: np.ndarray, lengths: np.ndarray, clock: str) -> np.ndarray:
    """Seconds of the items of each case of `rows`, `lengths` of them, and behind these of its
    request, end to end, int64. clock: of CLOCKS."""
    places, offsets = flat_positions(self.starts[rows], lengths + 1)
    ends = offsets[1:] - 1
    last = clock == 'last'
    places[ends] = np.where(last & (lengths > 0), places[ends] - 1, self.targets[rows])
    return self.times[places] // self.per_second


@dataclasses.dataclass(frozen=True)
class Cases:
  """Questions of an evaluation: what came after this history?

  users: (n,) int32, rows of the interactions that were split; a user may have several. targets:
  (n,) int32, item indices. histories: flat items int32, and offsets (n + 1,) int64 into them.
  as_set: whether a user's cases are one question with several right answers. when: their times,
  None where there are none.
  """
  users: np.ndarray
  histories: tuple[np.ndarray, np.ndarray]
  targets: np.ndarray
  as_set: bool = False
  when: CaseTimes | None = None

  def __len__(self) -> int:
    return len(self.users)

  def history(self, case: int) -> np.ndarray:
    """Items before the target of the case numbered `case`, oldest first, (n,) int32."""
    items, offsets = self.histories
    return items[offsets[case]:offsets[case + 1]]

  def owners(self) -> np.ndarray | None:
    """Whose each case is, (n,) int32, or None where no user has two."""
    return self.users if len(np.unique(self.users)) < len(self.users) else None

  def set_sizes(self) -> np.ndarray | None:
    """How many right answers each case's question has, (n,) int64, or None where each has one."""
    if not self.as_set:
      return None
    _, user, counts = np.unique(self.users, return_inverse=True, return_counts=True)
    return counts[user]

  def select(self, rows: np.ndarray) -> 'Cases':
    """The cases numbered `rows` (m,), in that order."""
    items, offsets = self.histories
    positions, offsets = flat_positions(offsets[:-1][rows], np.diff(offsets)[rows])
    when = self.when and dataclasses.replace(
        self.when, starts=self.when.starts[rows], targets=self.when.targets[rows])
    return dataclasses.replace(self, users=self.users[rows], histories=(items[positions], offsets),
                               targets=self.targets[rows], when=when)

  def request_times(self, rows: np.ndarray, clock: str = 'last') -> np.ndarray | None:
    """Seconds of the items of the cases numbered `rows` and, behind each history, of its request,
    end to end; None where there are no times.

    clock: of CLOCKS, when a request is made: at the time of its target, or still at that of the
    last item, as where nobody tells when the target will come.
    """
    return self.when and self.when.of_requests(rows, np.diff(self.histories[1])[rows], clock)


@dataclasses.dataclass(frozen=True)
class Split:
  """Training sequences (one for each user, in the same rows) and what is held out of them.

  train: what the model that is tested has learned from. valid, test: what is held out, None where
  nothing is. protocol: how it was split, in a sentence. refit_from: what is learned from while
  `valid` chooses epochs and settings, None where that is `train`.
  """
  train: Interactions
  valid: Cases | None
  test: Cases
  protocol: str
  refit_from: Interactions | None = None

  @property
  def for_choice(self) -> Interactions:
    """What may be learned from while `valid` chooses."""
    return self.train if self.refit_from is None else self.refit_from

  @property
  def refit(self) -> Interactions | None:
    """What is learned from anew once epochs and settings are chosen, None where nothing is."""
    return None if self.refit_from is None else self.train


def num_cases(protocol: str) -> int | None:
  """How many test cases the sentence `protocol` names, None where it names no number."""
  match = _NUM_CASES.search(protocol)
  return int(match[1]) if match else None


def with_num_cases(protocol: str, count: int | str) -> str:
  """The sentence `protocol` for `count` of its test cases, however they were chosen."""
  return _NUM_CASES.sub(str(count), _SAMPLED.sub('', protocol), count=1)


def sample_cases(cases: Cases, max_cases: int, protocol: str) -> tuple[np.ndarray, str]:
  """At most `max_cases` of the test cases (0: all), the same ones for every run.

  Where users have several cases, users are drawn with all of theirs, at least one. protocol: the
  sentence about all of `cases`. Returns their rows (n,), ascending, and the sentence
  about these.
  """
  count = len(cases)
  if not 0 < max_cases < count:
    return np.arange(count), protocol
  rows = drawn_rows(cases, max_cases, SAMPLE_SEED)
  if cases.owners() is not None:
    asked = len(np.unique(cases.users[rows]))
    protocol = re.sub(r'(?<=within each of )\d+', str(asked), protocol)
  return rows, (f'{with_num_cases(protocol, len(rows))}; drawn by seed {SAMPLE_SEED} out of '
                f'{count}')


def drawn_rows(cases: Cases, most: int, seed: int) -> np.ndarray:
  """At most `most` of the cases (0: all), drawn by `seed`; users who have several with all of
  theirs, at least one. -> rows (n,), ascending"""
  if not 0 < most < len(cases):
    return np.arange(len(cases))
  rng = np.random.default_rng(seed)
  if cases.owners() is None:
    return np.sort(rng.permutation(len(cases))[:most])
  users, user, of_user = np.unique(cases.users, return_inverse=True, return_counts=True)
  order = rng.permutation(len(users))
  taken = order[np.cumsum(of_user[order]) <= most]
  return np.flatnonzero(np.isin(user, taken if len(taken) else order[:1]))


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


def make_split(dataset: Dataset, test_history: str = 'train+valid',
               drop_cold_targets: bool = False) -> Split:
  """`dataset` split by its own rule.

  test_history, drop_cold_targets: as of `leave_one_out`; the first is for leave-one-out alone.
  Raises ConfigError for settings that do not fit, DataError where nobody can be tested.
  """
  rule = dataset.split_rule
  if rule.default:
    split = leave_one_out(dataset.interactions, 2, test_history, drop_cold_targets)
    need = 'each needs 3 items'
  elif test_history != 'train+valid':
    raise ConfigError(f'eval.test_history={test_history!r} is for leave-one-out; with '
                      f'split.kind={rule.kind!r} a history ends where its target begins')
  else:
    split = global_time(dataset.interactions, rule, drop_cold_targets, dataset.name)
    need = 'each needs items before and after the cut'
  if not len(split.test):
    more = ', the target in the training of others' if drop_cold_targets else ''
    raise DataError(f'no user of {dataset.name} can be tested: {need}{more}')
  return split


def split_for_config(dataset: Dataset, eval_config: ConfigDict) -> Split:
  """The split of `dataset`, by its own rule, that a config asks for.

  eval_config: tie_order (in which the data set was loaded), test_history, drop_cold_targets, where
  it has them. Raises what `make_split` does.
  """
  split = make_split(dataset, str(eval_config.get('test_history', 'train+valid')),
                     bool(eval_config.get('drop_cold_targets', False)))
  if eval_config.get('tie_order', 'file') == 'file':
    return split
  return dataclasses.replace(
      split, protocol=f'{split.protocol}; tied times: {eval_config.tie_order}')


def global_time(interactions: Interactions, rule: SplitRule, drop_cold_targets: bool = False,
                name: str = 'the data set') -> Split:
  """Everything up to one moment T is for training, what comes later is held out.

  Interactions at T itself are training's. T is the quantile of all times, by linear interpolation,
  or the end of a day. A user is asked for the last later item, given all before it; for the first;
  for one that is drawn; for each in turn ('successive'); or for all later items at once, given
  what is up to T ('all'). Users with nothing up to T are left out and counted.

  Validation 'time' cuts what is up to T once more in the same way, at the same quantile; 'users'
  takes users out of training, VALID_USERS and at most a tenth, and asks for their last item up to
  T; 'last_train' holds out each user's last item up to T. With rule.refit `train` reaches to T, and
  `refit_from` lacks what validation asks for; without, `train` lacks it too.

  rule: of kind 'global_time'. drop_cold_targets: do not test for items that training lacks. name:
  of the data set, for messages. Raises DataError where the times do not allow it, ConfigError for a
  moment outside of them. arXiv 2507.16289 and github.com/monkey0head/time-to-split.
  """
  times = usable_times(interactions, name, "or keep split.kind='leave_one_out'")
  cut, share, said = _cut(times, rule.at, name)
  held = functools.partial(_after, interactions, target=rule.target, seed=rule.seed)
  known = _counts_until(interactions, times, cut)
  test = held(known, interactions.lengths())
  later = int((interactions.lengths() > known).sum())
  until_cut = prefixes(interactions, known)
  learned, valid = _validation(interactions, times, cut, share, known, rule)
  if not len(valid):
    raise DataError(f'{name}: split.validation={rule.validation!r} finds no case up to {said}; '
                    "take a later split.at, or split.validation='users'")
  train = until_cut if rule.refit else learned
  warm = np.isin(test.targets, train.items)
  cold = int((~warm).sum())
  if drop_cold_targets:
    test = test.select(np.flatnonzero(warm))
  asked = len(np.unique(test.users))
  counted = (f'{asked} of {later} users after it have a history' if len(test) == asked else
             f'{len(test)} test cases, averaged within each of {asked} users with a history; '
             f'{later} are after it')
  protocol = (f'global time: train to {said}, {rule.target} target'
              f'{"s" * (rule.target in ("successive", "all"))}; {counted}; '
              + (f'without {cold} cold targets' if drop_cold_targets else f'{cold} cold targets')
              + f'; validation by {rule.validation.replace("_", " ")}, '
              + ('refitted' if rule.refit else 'not refitted')
              + ('; FEW USERS, wide intervals' if asked < FEW_USERS else ''))
  return Split(train, valid, test, protocol, learned if rule.refit else None)


def usable_times(interactions: Interactions, name: str, advice: str) -> np.ndarray:
  """Times of a data set that can be cut and compared. Raises DataError for others.

  name: of the data set. advice: what else may be done, for messages.
  """
  times = interactions.times
  if times is None:
    raise DataError(f"{name} has no times, so nothing says what came before a moment; add `times` "
                    f'to its sequences (see `recjax prepare`), {advice}')
  if not len(times) or times.min() == times.max():
    raise DataError(f'{name}: all times are equal, so there is no before and after; {advice}')
  if times.min() > 0 and times.max() > 100 * times.min() and times.max() > 10**11:
    raise DataError(f'{name}: times reach from {times.min()} to {times.max()}, which mixes units '
                    'such as seconds and milliseconds; make the data set again with `recjax '
                    'prepare --time-format`')
  back = np.diff(times) < 0
  starts = interactions.offsets[1:-1]
  back[starts[(starts > 0) & (starts < len(times))] - 1] = False
  if back.any():
    place = int(np.argmax(back)) + 1
    user = int(np.searchsorted(interactions.offsets, place, 'right')) - 1
    raise DataError(f'{name}: the times of user {interactions.users[user]} go backwards '
                    f"({int(back.sum())} such places in all); sort each user's items by time "
                    f'(`recjax prepare` does), {advice}')
  return times


def _cut(times: np.ndarray, at: str, name: str) -> tuple[float, float, str]:
  """The moment that `at` names, the share of interactions up to it, and how to say it."""
  scale = times_lib.find_scale(int(times.min()), int(times.max()))
  try:
    quantile = float(at)
  except ValueError:
    quantile = 0.0
  if 0 < quantile < 1:
    cut = float(np.quantile(times, quantile))
    how = f', quantile {quantile:g}'
  else:
    bound = times_lib.parse_bound(at, 'config.split.at', scale, closing=True)
    cut, how = float(times.min() - 1 if bound is None else bound), ''
  if not times.min() <= cut < times.max():
    raise ConfigError(
        f'split.at={at!r} leaves nothing before or nothing after it: the times of {name} reach '
        f'from {scale.shown(int(times.min()))} to {scale.shown(int(times.max()))}; give a share '
        "between 0 and 1, such as '0.9', or a date between them")
  share = float((times <= cut).mean())
  day = scale.shown(int(cut)) if scale.per_second else None
  said = f'{day} (T={cut:.12g}{how})' if day else f'T={cut:.12g}{how}'
  return cut, quantile if how else share, said


def _counts_until(interactions: Interactions, times: np.ndarray, cut: float) -> np.ndarray:
  """How many items of each user come at `cut` or before, (U,) int64."""
  before = np.concatenate([[0], np.cumsum(times <= cut)])
  return before[interactions.offsets[1:]] - before[interactions.offsets[:-1]]


def _after(interactions: Interactions, known: np.ndarray, ends: np.ndarray, target: str,
           seed: int) -> Cases:
  """Asks users for items behind their first `known` (U,) and before `ends` (U,)."""
  users = np.flatnonzero((known > 0) & (ends > known))
  first, count = known[users], (ends - known)[users]
  if target in ('successive', 'all'):
    places, _ = flat_positions(first, count)
    users = np.repeat(users, count)
    if target == 'all':  # an item that comes twice is one answer
      items = interactions.items[interactions.offsets[users] + places]
      _, once = np.unique(np.stack([users, items]), axis=1, return_index=True)
      users, places = users[np.sort(once)], places[np.sort(once)]
  elif target == 'random':
    draw = [np.random.default_rng([seed, int(user)]).integers(n) for user, n in zip(users, count)]
    places = first + np.array(draw, np.int64)
  else:
    places = first if target == 'first' else first + count - 1
  starts = interactions.offsets[users]
  read = known[users] if target == 'all' else places
  positions, offsets = flat_positions(starts, read)
  return Cases(users.astype(np.int32), (interactions.items[positions], offsets),
               interactions.items[starts + places], target == 'all',
               _when(interactions, starts, starts + places))


def _validation(interactions: Interactions, times: np.ndarray, cut: float, share: float,
                known: np.ndarray, rule: SplitRule) -> tuple[Interactions, Cases]:
  """What may be learned from while validation chooses, and its cases."""
  last = functools.partial(_after, interactions, target='last', seed=rule.seed)
  if rule.validation == 'time':
    earlier = _counts_until(interactions, times, float(np.quantile(times[times <= cut], share)))
    return prefixes(interactions, earlier), _after(interactions, earlier, known, rule.target,
                                                   rule.seed)
  asked = np.flatnonzero(known > (1 if rule.validation == 'users' else 2))
  if rule.validation == 'users':
    count = min(VALID_USERS, max(1, len(asked) // 10))
    asked = np.sort(np.random.default_rng(rule.seed).permutation(asked)[:count])
  history = np.zeros_like(known)
  history[asked] = known[asked] - 1
  learned = known.copy()
  learned[asked] = 0 if rule.validation == 'users' else known[asked] - 1
  return prefixes(interactions, learned), last(history, known)


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
  return Cases(users, (interactions.items[positions], offsets), interactions.items[ends - back],
               when=_when(interactions, starts, ends - back))


def _when(interactions: Interactions, starts: np.ndarray, targets: np.ndarray) -> CaseTimes | None:
  """The times of cases whose histories begin at `starts` and whose targets are at `targets`."""
  times = interactions.times
  if times is None or not len(times):
    return None
  scale = times_lib.find_scale(int(times.min()), int(times.max()))
  return CaseTimes(times, scale.per_second or 1, starts, targets)


def flat_positions(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Positions starts[i] .. starts[i] + lengths[i] - 1 of all i end to end, int64, and the offsets
  (n + 1,) int64 where each i begins. starts, lengths: (n,) int."""
  offsets = np.zeros(len(lengths) + 1, np.int64)
  np.cumsum(lengths, out=offsets[1:])
  return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets
