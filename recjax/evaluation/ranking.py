"""Full ranking in blocks on device: where the target stands, and the top of the list.

A score function takes one block of histories and scores the whole catalogue:
`score_fn(items, offsets) -> (B, N) float32`, numpy or jax. Histories are ragged, row b being
items[offsets[b]:offsets[b + 1]], oldest first, as dense indices 1..N; column j scores item j + 1.
All blocks of a call have the same B, so a jitted score function compiles once.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from recjax.errors import ConfigError, DataError
from recjax.evaluation import blocked_ranking, metrics
from recjax.models.dot_product import DotProduct

MEMORY = 256 << 20  # bytes that the score arrays of one block may take

TIES = ('pessimistic', 'optimistic', 'mean')

SEEN = {'inf': -np.inf, 'zero': 0.0}  # the score that items of a history get


def protocol(n_items, split='leave-one-out', mask_history=True, tie='pessimistic',
             seen_mask='inf'):
  """The sentence that stands beside every figure: two figures compare only where it is equal."""
  _filling(seen_mask)
  history = 'not masked' if not mask_history else (
      'masked' if seen_mask == 'inf' else 'SET TO ZERO, not masked')
  return f'{split}, full ranking over {n_items:,} items, history {history}, {tie} ties'


@functools.partial(jax.jit, static_argnames='tie')
def item_ranks(scores, target, tie='pessimistic'):
  """Counts the items that beat the target; no sort.

  scores: (B, N) float32, column j for item j + 1, -inf where not allowed. target: (B,) int32,
  1..N. -> (B,) int32, 0 is best; float32 for tie='mean'. A target at -inf is last (N - 1) whatever
  the tie rule, and a row that holds NaN gives -1. Raises ConfigError for an unknown tie rule.
  """
  return jnp.where(_has_nan(scores), -1, _count(scores, *[_own(scores, target)] * 2, tie))


def _has_nan(scores):
  return jnp.isnan(jnp.max(scores, axis=1))  # max hands NaN on, and costs a fifth of isnan().any()


def _own(scores, target):
  return jnp.take_along_axis(scores, target[:, None] - 1, axis=1)  # (B, 1)


def _count(scores, own, itself, tie):
  """Ranks of targets with scores own (B, 1), which stand among the scores as itself (B, 1)."""
  if tie not in TIES:
    raise ConfigError(f'tie rule {tie!r} is unknown; use one of {", ".join(TIES)}')
  ranks = jnp.sum(scores >= own, axis=1, dtype=jnp.int32) - (itself >= own)[:, 0]
  if tie != 'pessimistic':
    above = jnp.sum(scores > own, axis=1, dtype=jnp.int32) - (itself > own)[:, 0]
    ranks = above if tie == 'optimistic' else (above + ranks) / 2
  return jnp.where(own[:, 0] == -jnp.inf, jnp.asarray(scores.shape[1] - 1, ranks.dtype), ranks)


@functools.partial(jax.jit, static_argnames=('k', 'tie'))
def _judge_block(scores, target, rows, columns, filling, k, tie):
  """Ranks and, for k > 0, top-k of one block. rows, columns: what to mask; row B is dropped."""
  masked = scores.at[rows, columns].set(filling, mode='drop')
  # A repeated target is judged as scored, but a list made before it is known cannot hold it.
  own = _own(scores, target)
  ranks = _count(masked, own, _own(masked, target), tie)
  ranks = jnp.where(_has_nan(scores), -1, ranks)
  return (ranks, *_top_block(masked, k)) if k else (ranks,)


@functools.partial(jax.jit, static_argnames='k')
def _top_block(masked, k):
  """The k best columns as item indices, ties to the lower index; 0 where fewer are allowed."""
  best, columns = jax.lax.top_k(masked, k)
  return jnp.where(best > -jnp.inf, columns + 1, 0).astype(jnp.int32), best


@jax.jit
def _mask_block(scores, allowed, rows, columns):
  """-inf for history and for what is not allowed, and which rows hold NaN."""
  masked = jnp.where(allowed, scores, -jnp.inf)
  return masked.at[rows, columns].set(-jnp.inf, mode='drop'), _has_nan(scores)


def _filling(seen_mask):
  if seen_mask not in SEEN:
    raise ConfigError(f'eval.seen_mask={seen_mask!r}; choose one of {", ".join(SEEN)}')
  return SEEN[seen_mask]


def rank_cases(score_fn, cases, n_items, block=0, mask_history=True, tie='pessimistic',
               seen_mask='inf'):
  """Ranks every case's target among all items.

  cases: data.splits.Cases, or anything with ragged histories and targets. block: cases scored at a
  time; 0 takes what MEMORY allows, at most 256. A `DotProduct` over a large catalogue is never
  scored whole, so its blocks are 256 and take a few tens of MB. With mask_history the items of a
  history are out of the ranking, except the target where it is one of them; seen_mask='zero' scores
  them 0 instead, for parity with code that does (they then outrank targets below 0). -> (n,) int32,
  0 is best; float32 for tie='mean'. Raises DataError for no cases, ids outside 1..N, scores of
  another shape, or NaN.
  """
  return _judge(score_fn, cases, n_items, 0, block, mask_history, tie, seen_mask)[0]


def rank_and_recommend(score_fn, cases, n_items, k, block=0, mask_history=True, tie='pessimistic',
                       seen_mask='inf'):
  """`rank_cases` and `top_items` from one pass of scores.

  -> ranks (n,) int32, items (n, k) int32, scores (n, k) float32. With mask_history the lists leave
  out the whole history, so a target that repeats has a rank but stands in no list.
  """
  _check_k(k, n_items)
  return _judge(score_fn, cases, n_items, k, block, mask_history, tie, seen_mask)


def _judge(score_fn, cases, n_items, k, block, mask_history, tie, seen_mask):
  filling = _filling(seen_mask)
  items, offsets, targets = (np.asarray(x) for x in (*cases.histories, cases.targets))
  _check_histories(items, offsets, n_items)
  if len(targets) != len(offsets) - 1:
    raise DataError(f'{len(targets)} targets for {len(offsets) - 1} histories; give one for each')
  if targets.min() < 1 or targets.max() > n_items:
    raise DataError(f'a target lies outside 1..{n_items}: found {targets.min()}..{targets.max()}')
  if tie not in TIES:
    raise ConfigError(f'tie rule {tie!r} is unknown; use one of {", ".join(TIES)}')
  large = isinstance(score_fn, DotProduct) and n_items >= blocked_ranking.FROM
  if large and len(score_fn.table) != n_items:
    raise DataError(f'the score function has a table of {len(score_fn.table)} rows for {n_items} '
                    'items; index it with the catalogue of this data set')
  parts, peaks = [], blocked_ranking.peak(score_fn.table, score_fn.bias) if large else None
  for rows, part, cuts, coordinates in blocks(
    items, offsets, n_items, blocked_ranking.USERS if large else block, mask_history
  ):
    target = jnp.asarray(targets[rows], jnp.int32)
    if large:
      found = blocked_ranking.judge(
        score_fn, peaks, target, coordinates, filling, part, cuts, k, tie
      )
    else:
      scores = _scores(score_fn, part, cuts, n_items)
      found = _judge_block(scores, target, *coordinates, filling, k, tie)
    parts.append([np.asarray(x) for x in found])  # waits: blocks in flight would pile up in memory
    _check_numbers(parts[-1][0] < 0, rows)
  return tuple(np.concatenate(x)[:len(targets)] for x in zip(*parts))


def list_ranks(items, targets, last):
  """Ranks in lists that end early: the place, or `last` where the target is missing.

  items: (n, K) int32, 0 for none. targets: (n,). -> (n,) int32
  """
  hit = items == np.asarray(targets)[:, None]
  return np.where(hit.any(1), hit.argmax(1), last).astype(np.int32)


def validator(scorer, cases, n_items, seeds, most=0):
  """NDCG@10 of validation users for the parameters of several seeds.

  scorer: parameters of one seed -> a score function. most: judge so many users (drawn once) at
  most, 0 for all. -> (params with a leading axis of seeds) -> [float] * seeds
  """
  some = np.sort(np.random.default_rng(0).permutation(len(cases))[:most or len(cases)])
  cases = cases.picked(some)
  cases = cases.picked(np.argsort(np.diff(cases.histories[1]), kind='stable'))

  def ndcg(params):
    ranks = rank_cases(scorer(params), cases, n_items)
    return float(metrics.per_case(ranks, (10,))['NDCG@10'].mean())
  return lambda params: [ndcg(jax.tree.map(lambda x, s=s: x[s], params)) for s in range(seeds)]


def top_items(score_fn, items, offsets, n_items, k, exclude_seen=True, allowed=None, block=0):
  """The k best items for every history.

  items, offsets: ragged histories. allowed: (N,) bool, which items may appear, or (n, N), a row a
  history. block: as in rank_cases. -> items (n, k) int32, 0 where fewer than k may appear, and
  their scores (n, k) float32, best first, ties to the lower index. Raises DataError as rank_cases
  does and for k outside 1..N.
  """
  items, offsets = np.asarray(items), np.asarray(offsets)
  _check_k(k, n_items)
  _check_histories(items, offsets, n_items)
  allowed = np.ones(n_items, bool) if allowed is None else np.asarray(allowed)
  if allowed.shape not in ((n_items,), (len(offsets) - 1, n_items)) or allowed.dtype != bool:
    raise DataError(f'allowed is {allowed.dtype}{allowed.shape}; it must be bool({n_items},), or '
                    f'bool({len(offsets) - 1}, {n_items})')
  parts = []
  for rows, part, cuts, coordinates in blocks(items, offsets, n_items, block, exclude_seen):
    some = allowed if allowed.ndim == 1 else allowed[rows]
    masked, bad = _mask_block(_scores(score_fn, part, cuts, n_items), some, *coordinates)
    _check_numbers(np.asarray(bad), rows)
    parts.append([np.asarray(x) for x in _top_block(masked, k)])
  return tuple(np.concatenate(x)[:len(offsets) - 1] for x in zip(*parts))


def recommender(score_fn, catalog):
  """The face of a method that scores the whole catalogue: item ids in, item ids out.

  -> recommend(histories, k, exclude_seen=True, allowed=None) -> (item ids [B][k], scores (B, k));
  histories are lists of item ids, oldest first, `allowed` a set of item ids, or (B, N) bool, a row
  a history (which recommend.rows says). Raises DataError for an id that the catalogue lacks.
  """
  def recommend(histories, k, exclude_seen=True, allowed=None):
    rows = [[catalog.index(i) for i in h] for h in histories]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    items = np.array([i for r in rows for i in r], np.int32)
    mask = mask_of(allowed, catalog)
    found, scores = top_items(score_fn, items, offsets, len(catalog), k, exclude_seen, mask)
    return [[catalog.id_of(i) for i in row if i] for row in found], scores
  recommend.rows = True
  return recommend


def mask_of(allowed, catalog):
  """What `allowed` of a recommender opens: (N,) bool for a set of item ids; None and a mask stay.

  Raises DataError for an id that the catalogue lacks.
  """
  if allowed is None or isinstance(allowed, np.ndarray):
    return allowed
  mask = np.zeros(len(catalog), bool)
  mask[[catalog.index(i) - 1 for i in allowed]] = True
  return mask


def block_size(n_items, memory=MEMORY):
  """How many users fit: scores, their masked copy and room for the score function's own."""
  return int(np.clip(memory // (12 * n_items), 1, 256))


def blocks(items, offsets, n_items, block, mask):
  """Yields case rows, their ragged histories and (rows, columns) to mask, all of fixed shapes.

  Cases are spread evenly; the last one stands again where the last block is not full.
  """
  n = len(offsets) - 1
  count = -(-n // (block or block_size(n_items)))
  rows = np.minimum(np.arange(count * -(-n // count)), n - 1).reshape(count, -1)
  lengths = np.diff(offsets)[rows]
  widest = max(1, int(lengths.sum(axis=1).max())) if mask else 1
  for some, length in zip(rows, lengths):
    part, cuts = _gather(items, offsets, some)
    at = np.full((2, widest), len(some), np.int32)  # row B does not exist, so it is dropped
    if mask:
      at[0, :len(part)] = np.repeat(np.arange(len(some)), length)
      at[1, :len(part)] = part - 1
    yield some, part, cuts, (at[0], at[1])


def _gather(items, offsets, rows):
  """Picks rows of a ragged array. -> items (m,), offsets (len(rows) + 1,) int64"""
  lengths = np.diff(offsets)[rows]
  cuts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  return items[np.arange(cuts[-1]) + np.repeat(offsets[rows] - cuts[:-1], lengths)], cuts


def _scores(score_fn, part, cuts, n_items):
  scores = jnp.asarray(score_fn(part, cuts), jnp.float32)
  if scores.shape != (len(cuts) - 1, n_items):
    raise DataError(f'the score function gave shape {scores.shape} for {len(cuts) - 1} histories '
                    f'over {n_items} items; it must give ({len(cuts) - 1}, {n_items})')
  return scores


def _check_histories(items, offsets, n_items):
  if len(offsets) < 2:
    raise DataError('there is no history to rank for; give one or more, or a split that holds some')
  if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
    raise DataError(f'offsets run from {offsets[0]} to {offsets[-1]} over {len(items)} items; they '
                    'must start at 0, never fall and end at the number of items')
  bad = np.flatnonzero((items < 1) | (items > n_items))
  if len(bad):
    case = np.searchsorted(offsets, bad[0], side='right') - 1
    raise DataError(f'the history of case {case} holds item {items[bad[0]]}, outside 1..{n_items}; '
                    'index it with the catalogue of this data set')


def _check_k(k, n_items):
  if not 1 <= k <= n_items:
    raise DataError(f'k is {k}, but the catalogue has {n_items} items; choose 1..{n_items}')


def _check_numbers(bad, rows):
  if bad.any():
    raise DataError(f'the scores of case {rows[np.argmax(bad)]} hold NaN; the model diverged or '
                    'divides by zero, so its ranks would mean nothing')
