"""How sure a figure is: bootstrap intervals over users, paired randomization tests, Holm.

Metrics of ranks take few distinct values, so equal ones are resampled together: a multinomial over
distinct values is the same bootstrap as drawing users, at a cost that does not grow with them.
Intervals: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13. Correction: Holm, A
Simple Sequentially Rejective Multiple Test Procedure, 1979.

Letters of shapes: U users, D distinct values.
"""
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int, Shaped

from recjax.errors import DataError

DISTINCT = 20_000     # more distinct values than this are resampled one by one, with Poisson counts
BLOCK = 1 << 18       # random numbers held at once
BINOMIAL = 48         # equal differences that are cheaper as one binomial than as single signs
NORMAL = 1.959964     # standard errors of a 95 % interval
POWER = 2.801585      # standard errors: 1.959964 of p < .05, two-sided, and .841621 of power .8


def bootstrap_interval(values: Shaped[np.ndarray, '...'] | Sequence, seed: Any,
                       draws: int = 1000, level: float = 0.95) -> tuple[float, float, float]:
  """Mean and percentile bootstrap interval over users.

  The order of users does not matter, and equal calls give equal results. With more than DISTINCT
  distinct values every user gets a Poisson(1) count, which at that size equals the multinomial for
  all purposes. values: one a user. seed: of numpy's generator. draws: resamples. level: share of
  them inside. -> (mean, low, high), the mean always inside. Raises DataError for no values or NaN.
  """
  values = _checked(values, 'values')
  rng = np.random.default_rng(seed)
  distinct, counts = np.unique(values, return_counts=True)
  mean = float(distinct @ counts / len(values))
  if len(distinct) == 1:
    return mean, mean, mean
  if len(distinct) > DISTINCT:
    sums = _poisson_sums(
        np.stack([np.repeat(distinct, counts), np.ones(len(values))], 1), rng, draws)
    means = sums[:, 0] / sums[:, 1]
  else:
    share, means = counts / len(values), []
    for size in _block_sizes(draws, len(distinct)):
      means.append(rng.multinomial(len(values), share, size) @ distinct / len(values))
    means = np.concatenate(means)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return mean, min(float(low), mean), max(float(high), mean)


def _poisson_sums(values: Float[np.ndarray, 'U V'], rng: np.random.Generator,
                  draws: int) -> Float[np.ndarray, 'R V']:
  """Sums under Poisson(1) counts looked up by 16 random bits, block by block of users."""
  cut = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(10)])
  table = np.searchsorted(cut, (np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)
  sums = np.zeros((draws, values.shape[1]))
  step = max(1, BLOCK // draws)
  for start in range(0, len(values), step):
    part = values[start:start + step]
    times = table[rng.integers(0, 1 << 16, (draws, len(part)), np.uint16)].astype(np.float64)
    sums += times @ part
  return sums


def paired_test(a: Shaped[np.ndarray, '...'] | Sequence,
                b: Shaped[np.ndarray, '...'] | Sequence, seed: Any,
                draws: int = 10000) -> float:
  """Two-sided randomization test on per-user differences: do a and b differ in the mean?

  Under the null each user's difference is as likely with the other sign. Users without a
  difference cannot change the sum and are left out (Smucker, Allan and Carterette, CIKM 2007).
  a, b: one value a user, the same users in both. seed: of numpy's generator. draws: of signs. -> p,
  the share of random signs that give a sum as far from zero, with one added above and below, so
  never 0. Raises DataError for no values, NaN or unequal lengths.
  """
  a, b = _checked(a, 'the first values'), _checked(b, 'the second values')
  if len(a) != len(b):
    raise DataError(f'{len(a)} values against {len(b)}; a paired test needs the same users in both')
  difference = a - b
  sizes, group = np.unique(np.abs(difference), return_inverse=True)
  net = np.bincount(group, np.sign(difference), len(sizes))
  counts = np.bincount(group, minlength=len(sizes))
  if sizes[0] == 0:
    sizes, net, counts = sizes[1:], net[1:], counts[1:]
  if not len(sizes):
    return 1.0
  scale = sizes.max()  # keeps sums of tiny or huge values in range
  observed = abs(sizes / scale @ net)
  sums = _flipped_sums(sizes / scale, counts, np.random.default_rng(seed), draws)
  # Sums of the same terms in another order differ in the last bits; equal ones count as as far.
  far = np.abs(sums) >= observed - 1e-9 * (sizes / scale @ counts)
  return float((1 + far.sum()) / (1 + draws))


def _flipped_sums(sizes: Float[np.ndarray, ' D'], counts: Int[np.ndarray, ' D'],
                  rng: np.random.Generator, draws: int) -> Float[np.ndarray, ' R']:
  """Sums over all users under random signs: a binomial for common sizes, bits for rare ones."""
  common = counts >= BINOMIAL
  sums = []
  for size in _block_sizes(draws, int(common.sum())):
    up = rng.binomial(counts[common], 0.5, (size, int(common.sum())))
    sums.append((2 * up - counts[common]) @ sizes[common])
  sums = np.concatenate(sums)
  rare = np.repeat(sizes[~common], counts[~common])
  step = max(8, BLOCK // draws // 8 * 8)
  for start in range(0, len(rare), step):
    part = rare[start:start + step]
    bits = np.frombuffer(rng.bytes(draws * (step // 8)), np.uint8).reshape(draws, step // 8)
    signs = np.unpackbits(bits, axis=1, count=len(part)).astype(np.float64)
    sums += 2 * (signs @ part) - part.sum()
  return sums


def _block_sizes(draws: int, width: int) -> list[int]:
  """Splits draws so that one block of (size, width) stays within BLOCK."""
  step = max(1, BLOCK // max(1, width))
  return [min(step, draws - done) for done in range(0, draws, step)]


def _checked(values: Any, what: str) -> Float[np.ndarray, ' U']:
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not len(values):
    raise DataError(f'{what} have shape {values.shape}; they must be a non-empty vector over users')
  if not np.isfinite(values).all():
    bad = int(np.argmin(np.isfinite(values)))
    raise DataError(f'{what} hold {values[bad]} at position {bad}; every user needs a finite value')
  return values


def detectable(a: Shaped[np.ndarray, '...'] | Sequence,
               b: Shaped[np.ndarray, '...'] | Sequence) -> float:
  """How far apart two means must be for these users to show it in four of five tables.

  a, b: one value a user, the same users in both. -> POWER standard errors of the mean paired
  difference, at p < .05 two-sided and power .8 (Cohen, Statistical Power Analysis, 1988, ch. 2);
  nan for one user, 0 where no user differs. Raises DataError for no values, NaN or unequal lengths.
  """
  a, b = _checked(a, 'the first values'), _checked(b, 'the second values')
  if len(a) != len(b):
    raise DataError(f'{len(a)} values against {len(b)}; differences need the same users in both')
  apart = np.sort(a - b)  # so that the order of users changes no bit
  return POWER * float(np.std(apart, ddof=1)) / math.sqrt(len(a)) if len(a) > 1 else math.nan


def _power(apart: Mapping[str, Mapping[str, float | None]], metric: str) -> str:
  """What these users can tell, as a sentence; '' where nothing was tested."""
  found = [value for values in apart.values() if (value := values.get(metric))]
  if not found:
    return ''
  return (f'with so many users a true difference in {metric} of {np.median(found):.4f} (median of '
          f'the pairs; {min(found):.4f} to {max(found):.4f}) is found with probability .8, a '
          'smaller one more seldom: a p above .05 does not mean equal')


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
  """Holm's step-down correction of one family of tests. p_values: by name. -> at most 1"""
  adjusted, worst = {}, 0.0
  for done, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
    worst = max(worst, min(1.0, (len(p_values) - done) * p_values[name]))
    adjusted[name] = worst
  return {name: adjusted[name] for name in p_values}


def by_user(values: Shaped[np.ndarray, ' C'],
            owners: Int[np.ndarray, ' C'] | None) -> Shaped[np.ndarray, ' U']:
  """The mean of each user's cases, since cases of one user depend on each other.

  values: one a case. owners: whose each case is, None where everybody has one. -> one a user, in
  ascending order of owners
  """
  if owners is None:
    return values
  _, user = np.unique(owners, return_inverse=True)
  return np.bincount(user, np.asarray(values, np.float64)) / np.bincount(user)


def two_way(values: Shaped[np.ndarray, 'S U'] | Sequence) -> dict[str, Any]:
  """A method's mean over seeds and users, and how sure it is for other users and other seeds.

  values: a line of users' values for each of S seeds, the same users in all. -> {'value', 'n',
  'seeds': S, 'sd_of_seeds': of the seeds' means, None for one seed, 'se_users': standard error over
  users of the mean over seeds, 'se': over users and seeds, the root of var(user means) / n +
  var(seed means) / S, sample variances, which is slightly too large; 'low', 'high': the 95 %
  interval of t with the degrees of freedom of Welch and Satterthwaite (Biometrics Bulletin 2,
  1946)}; 'se', 'low' and 'high' are None for one user and for two seeds and fewer, which say
  nothing about seeds. Raises DataError for no values or NaN.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not values.size or not np.isfinite(values).all():
    raise DataError(f'values {values.shape} are no lines of finite values, one for each seed')
  seeds, n = values.shape
  of_users, by_seed = values.mean(0), values.mean(1)
  parts = [float(np.var(x, ddof=1)) / len(x) if len(x) > 1 else math.nan
           for x in (of_users, by_seed)]
  found = {'value': float(of_users.mean()), 'n': n, 'seeds': seeds,
           'sd_of_seeds': math.sqrt(parts[1] * seeds) if seeds > 1 else None,
           'se_users': math.sqrt(parts[0]) if n > 1 else None, 'se': None, 'low': None,
           'high': None}
  if seeds > 2 and n > 1:
    found['se'] = math.sqrt(sum(parts))
    spread = sum(part ** 2 / (len(x) - 1) for part, x in zip(parts, (of_users, by_seed)))
    reach = (scipy.stats.t.ppf(.975, sum(parts) ** 2 / spread) * found['se']) if spread else 0.0
    found |= {'low': found['value'] - float(reach), 'high': found['value'] + float(reach)}
  return found


def seed_noise(a: Mapping[str, Any], b: Mapping[str, Any]) -> float | None:
  """How far apart two means over seeds may come to lie by the seeds alone, about.

  a, b: of `two_way`; 'seeds' of 0 means a row that draws nothing. -> 2 standard deviations of the
  difference of the means, 2 sd sqrt(2 / S) where both have S seeds of one spread; None where one
  has a single seed, whose spread nobody knows.
  """
  if 1 in (a['seeds'], b['seeds']):
    return None
  return 2 * math.sqrt(sum(x['sd_of_seeds'] ** 2 / x['seeds'] for x in (a, b) if x['seeds']))


def kendall(a: Shaped[np.ndarray, '_ _'] | Sequence, b: Shaped[np.ndarray, '_ _'] | Sequence,
            seed: Any, draws: int = 1000, paired: bool = False) -> tuple[float, float, float]:
  """How alike two tests order the same rows: Kendall's tau-b of the rows' means, and how sure.

  a, b: for each of R rows a value of each user; the users of the two may differ. seed: of numpy's
  generator. draws: resamples of users, all rows of a test together. paired: whether both have the
  same users in the same order, who are then drawn together. -> (tau, low, high), a 95 % bootstrap
  interval; with ten rows it is wide. nan where a test puts all rows level. Raises DataError for
  unequal rows, fewer than two of them, or NaN.
  """
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 2 or not (a.size and b.size):
    raise DataError(f'values {a.shape} and {b.shape}: tau wants a line of users for each of the '
                    'same two rows or more in both')
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise DataError('tau wants finite values for every row and user')
  if paired and a.shape != b.shape:
    raise DataError(f'{a.shape[1]} users against {b.shape[1]}; paired ones are the same in both')

  def tau(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (np.round(z / max(np.abs(z).max(), 1e-300), 12) for z in (x, y))  # sums of equal rows
    found: Any = scipy.stats.kendalltau(x, y)
    return round(float(found.statistic), 12)
  rng, taus = np.random.default_rng(seed), []
  for size in _block_sizes(draws, max(a.shape[1], b.shape[1])):
    one = rng.poisson(1.0, (size, a.shape[1]))  # so many times each user, about as one draws them
    two = one if paired else rng.poisson(1.0, (size, b.shape[1]))
    taus += [tau(x, y) for x, y in zip(one @ a.T, two @ b.T)]  # sums order as means do
  low, high = np.nanquantile(taus, (.025, .975)) if not np.isnan(taus).all() else (math.nan,) * 2
  found = tau(a.mean(1), b.mean(1))
  return found, min(found, float(low)), max(found, float(high))


def wilson(hits: int, n: int) -> tuple[float, float]:
  """The 95 % interval of a share, inside 0 to 1 and of some width where all or none are hit.

  hits, n: how many of how many. Wilson, Journal of the American Statistical Association 22, 1927.
  Raises DataError for no case, or more hits than cases.
  """
  if not 0 <= hits <= n or not n:
    raise DataError(f'{hits} of {n} is no share')
  share, square = hits / n, NORMAL ** 2
  middle = (share + square / (2 * n)) / (1 + square / n)
  reach = NORMAL / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
  return max(0.0, min(middle - reach, share)), min(1.0, max(middle + reach, share))


def newcombe(hits: int, n: int, other_hits: int, other_n: int) -> tuple[float, float, float]:
  """How far apart two shares are, and the 95 % interval of that, of two samples apart.

  hits, n: of the first. other_hits, other_n: of the second. Wider than needed where both are of the
  same cases. Newcombe, Statistics in Medicine 17, 1998, method 10. -> (first - second, low, high)
  """
  (low, high), (other_low, other_high) = wilson(hits, n), wilson(other_hits, other_n)
  one, two = hits / n, other_hits / other_n
  return (one - two, one - two - math.hypot(one - low, other_high - two),
          one - two + math.hypot(high - one, two - other_low))


def summarize(
    rows: Mapping[str, Mapping[str, Shaped[np.ndarray, '...'] | Sequence]], seed: Any,
    masks: Mapping[str, Bool[np.ndarray, ' U']] | None = None,
    pairs: Iterable[tuple[str, str]] | None = None, draws: int = 1000, test_draws: int = 10000,
    owners: Int[np.ndarray, ' C'] | None = None,
) -> dict[str, Any]:
  """What results.json holds under 'rows', 'tests', 'detectable' and 'power'.

  rows: {row: {metric: a value of each user}}, the same users in the same order everywhere. seed: of
  numpy's generator. masks: {group: its users} adds each metric over that group's users as
  'metric:group', empty groups left out. pairs: (row, other) to test, by default every row against
  every later one. draws, test_draws: of intervals and tests. owners: as of `by_user`, where values
  and masks are of cases; figures are then means over users. -> {'rows': {row: {metric: {'value',
  'low', 'high', 'n'}}}, 'tests': {'row>other': {metric: p}}, 'detectable': {'row>other': {metric:
  `detectable`, None for one user}}, 'power': what they come to for HR@10, or the first metric,
  as a sentence}. Intervals are 95 % bootstraps over users; p is two-sided (the values say which row
  is better), over all users, and Holm-corrected across the comparisons of the same metric. Raises
  DataError for unequal users.
  """
  if not rows:
    raise DataError('there is no row to summarize; give at least one row of per-user values')
  metrics = [m for m in next(iter(rows.values())) if all(m in values for values in rows.values())]
  intervals = {row: _intervals(values, seed, masks or {}, draws, owners)
               for row, values in rows.items()}
  rows = {row: {metric: by_user(np.asarray(values[metric]), owners) for metric in metrics}
          for row, values in rows.items()}
  pairs = list(itertools.combinations(rows, 2)) if pairs is None else list(pairs)
  tests = {f'{row}>{other}': {} for row, other in pairs}
  for metric in metrics:
    raw = {f'{row}>{other}': paired_test(rows[row][metric], rows[other][metric], seed, test_draws)
           for row, other in pairs}
    for name, p in holm(raw).items():
      tests[name][metric] = p
  apart = {f'{row}>{other}': {metric: None if math.isnan(value := detectable(
      rows[row][metric], rows[other][metric])) else value for metric in metrics}
      for row, other in pairs}
  return {'rows': intervals, 'tests': tests, 'detectable': apart,
          'power': _power(apart, 'HR@10' if 'HR@10' in metrics else metrics[0])}


def slope(values: Shaped[np.ndarray, ' C'], place: Shaped[np.ndarray, ' C'], seed: Any,
          owners: Int[np.ndarray, ' C'] | None = None, draws: int = 1000
          ) -> tuple[float, float, float]:
  """How much values change with each unit of `place`: a line by least squares.

  values, place: one a case. seed: of numpy's generator. owners: as of `by_user`; users are drawn
  with all their cases. draws: resamples, each user with a Poisson(1) count. -> (slope, low, high),
  a 95 % percentile interval. Raises DataError where all places are equal.
  """
  x = np.asarray(place, float) - np.mean(place)
  y = np.asarray(values, float)
  whose = np.arange(len(y)) if owners is None else np.unique(owners, return_inverse=True)[1]
  sums = np.stack([np.bincount(whose, part) for part in (np.ones_like(x), x, y, x * y, x * x)])

  def fitted(n, x, y, xy, xx):
    spread = n * xx - x * x
    with np.errstate(divide='ignore', invalid='ignore'):
      return np.where(spread > 0, (n * xy - x * y) / spread, np.nan)
  found = float(fitted(*sums.sum(1)))
  if math.isnan(found):
    raise DataError('all cases stand at one place; a line needs two')
  drawn = fitted(*_poisson_sums(sums.T, np.random.default_rng(seed), draws).T)
  low, high = np.nanquantile(drawn, [.025, .975])
  return found, min(float(low), found), max(float(high), found)


def in_groups(values: Mapping[str, Shaped[np.ndarray, '...']], seed: Any,
              masks: Mapping[str, Bool[np.ndarray, ' U']],
              owners: Int[np.ndarray, ' C'] | None = None) -> dict[str, dict[str, float]]:
  """The entries 'metric:group' of a row, as `summarize` gives them. values: {metric: a value of
  each case}. seed: of intervals. masks: {group: its cases}. owners: as of `by_user`."""
  every = _intervals(values, seed, masks, 1000, owners)
  return {metric: cell for metric, cell in every.items() if metric not in values}


def _intervals(values: Mapping, seed: Any, masks: Mapping, draws: int,
               owners: np.ndarray | None) -> dict[str, dict]:
  chosen = {metric: by_user(np.asarray(x), owners) for metric, x in values.items()}
  for group, mask in masks.items():
    if np.any(mask):
      whose = None if owners is None else owners[mask]
      chosen |= {f'{metric}:{group}': by_user(np.asarray(x)[mask], whose)
                 for metric, x in values.items()}
  intervals = {}
  for metric, x in chosen.items():
    value, low, high = bootstrap_interval(x, seed, draws)
    intervals[metric] = {'value': value, 'low': low, 'high': high, 'n': len(x)}
  return intervals
