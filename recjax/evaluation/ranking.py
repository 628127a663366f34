"""Full ranking in blocks on device: where the target stands, and the top of the list.

A score function takes one block of histories and scores the whole catalog:
`score_fn(items, offsets) -> (B, N) float32`, numpy or jax. Histories are ragged, row b being
items[offsets[b]:offsets[b + 1]], oldest first, as dense indices 1..N; column j scores item j + 1.
All blocks of a call have the same B, so a jitted score function compiles once.

Letters of shapes: B histories of a block, U cases in all (U1 is one more), N items, M items of all
histories, H items of the histories of a block (or room for them), K items of a list.
"""
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from recjax.data import splits
from recjax.data.dataset import Catalog
from recjax.data.splits import Cases
from recjax.errors import ConfigError, DataError
from recjax.evaluation import baselines, blocked_ranking, metrics, statistics, ties
from recjax.evaluation.recommender import CatalogRecommender
from recjax.models.dot_product import DotProduct
from recjax.protocols import ScoreFn

MEMORY = 256 << 20  # bytes that the score arrays of one block may take

SEEN = {'inf': -np.inf, 'zero': 0.0}  # the score that items of a history get


def protocol(n_items: int, split: str = 'leave-one-out', mask_history: bool = True,
             tie: str = 'pessimistic', seen_mask: str = 'inf') -> str:
  """The sentence that stands beside every figure: two figures compare only where it is equal.

  n_items: of the catalog. split: the sentence of the split. mask_history, tie, seen_mask: as in
  `rank_cases`. Raises ConfigError for an unknown seen_mask.
  """
  _filling(seen_mask)
  history = 'not masked' if not mask_history else (
      'masked' if seen_mask == 'inf' else 'SET TO ZERO, not masked')
  return f'{split}, full ranking over {n_items:,} items, history {history}, {tie} ties'


@functools.partial(jax.jit, static_argnames='tie')
def item_ranks(scores: Float[Array, 'B N'], target: Int[Array, ' B'],
               tie: str = 'pessimistic') -> Num[Array, ' B']:
  """Counts the items that beat the target; no sort.

  scores: column j of item j + 1, -inf where it may not come. target: 1..N. tie: of `ties.TIES`.
  -> 0 is best; float32 for tie='mean'. A target at -inf is last (N - 1) whatever the tie rule, and
  a row that holds NaN gives -1. Raises ConfigError for an unknown tie rule.
  """
  own = _target_scores(scores, target)
  return jnp.where(_has_nan(scores), -1, _count(scores, own, own, tie))


def _has_nan(scores):
  return jnp.isnan(jnp.max(scores, axis=1))  # max hands NaN on, and costs a fifth of isnan().any()


def _target_scores(scores: Float[Array, 'B N'], target: Int[Array, ' B']) -> Float[Array, 'B 1']:
  return jnp.take_along_axis(scores, target[:, None] - 1, axis=1)


def _count(scores: Float[Array, 'B N'], own: Float[Array, 'B 1'], itself: Float[Array, 'B 1'],
           tie: str) -> Num[Array, ' B']:
  """Ranks of targets that score `own` and stand among the scores as `itself`."""
  ranks = ties.count_ahead(scores, own, tie) - ties.count_ahead(itself, own, tie)
  return jnp.where(own[:, 0] == -jnp.inf, jnp.asarray(scores.shape[1] - 1, ranks.dtype), ranks)


@functools.partial(jax.jit, static_argnames=('k', 'tie'))
def rank_block(scores: Float[Array, 'B N'], target: Int[Array, ' B'], rows: Int[Array, ' H'],
               columns: Int[Array, ' H'], filling: Float[Array, ''] | float, k: int,
               tie: str) -> tuple:
  """Ranks and, for k > 0, top-k of one block. scores: of its histories. target: 1..N. rows,
  columns: what to mask with `filling`; row B is dropped. tie: of `ties.TIES`. -> ranks, -1 where a
  row holds NaN; with k items and scores too"""
  masked = scores.at[rows, columns].set(filling, mode='drop')
  # A repeated target is ranked as scored, but a list made before it is known cannot hold it.
  own = _target_scores(scores, target)
  ranks = _count(masked, own, _target_scores(masked, target), tie)
  ranks = jnp.where(_has_nan(scores), -1, ranks)
  return (ranks, *_top_block(masked, k)) if k else (ranks,)


@functools.partial(jax.jit, static_argnames='k')
def _top_block(masked: Float[Array, 'B N'],
               k: int) -> tuple[Int[Array, 'B K'], Float[Array, 'B K']]:
  """The k best columns as item indices, ties to the lower index; 0 where fewer are allowed."""
  best, columns = jax.lax.top_k(masked, k)
  return jnp.where(best > -jnp.inf, columns + 1, 0).astype(jnp.int32), best


@jax.jit
def _mask_block(scores: Float[Array, 'B N'], allowed: Bool[Array, ' N'] | Bool[Array, 'B N'],
                rows: Int[Array, ' H'], columns: Int[Array, ' H'],
                ) -> tuple[Float[Array, 'B N'], Bool[Array, ' B']]:
  """-inf for history and for what is not allowed, and which rows hold NaN."""
  masked = jnp.where(allowed, scores, -jnp.inf)
  return masked.at[rows, columns].set(-jnp.inf, mode='drop'), _has_nan(scores)


def _filling(seen_mask):
  if seen_mask not in SEEN:
    raise ConfigError(f'eval.seen_mask={seen_mask!r}; choose one of {", ".join(SEEN)}')
  return SEEN[seen_mask]


def rank_cases(score_fn: ScoreFn, cases: Cases, n_items: int, block: int = 0,
               mask_history: bool = True, tie: str = 'pessimistic',
               seen_mask: str = 'inf', clock: str = 'last') -> Num[np.ndarray, ' U']:
  """Ranks every case's target among all items.

  score_fn: scores a block of histories. cases: ragged histories and targets. n_items: of the
  catalog. block: cases scored at a time; 0 takes what MEMORY allows, at most 256. A `DotProduct`
  over a large catalog is never scored whole, so its blocks are 256 and take a few tens of MB.
  mask_history: whether items of a history are out of the ranking, except the target where it is one
  of them. tie: of `ties.TIES`. seen_mask: 'zero' scores items of a history 0 instead, for parity
  with code that does (they then outrank targets below 0). clock: of `splits.CLOCKS`, when requests
  are made, for a score function that reads times. -> 0 is best; float32 for tie='mean'. Raises
  DataError for no cases, ids outside 1..N, scores of another shape, or NaN, and ConfigError
  for an unknown rule.
  """
  if (isinstance(score_fn, baselines.OneList) and len(score_fn.places) == n_items
      and seen_mask == 'inf'):
    ties.check(tie)  # of which there are none
    ranks = score_fn.ranks(*_checked(cases, n_items), mask_history)
    return ranks.astype(np.float32 if tie == 'mean' else np.int32)
  return _rank(score_fn, cases, n_items, 0, block, mask_history, tie, seen_mask, clock)[0]


def rank_and_recommend(
    score_fn: ScoreFn, cases: Cases, n_items: int, k: int, block: int = 0,
    mask_history: bool = True, tie: str = 'pessimistic', seen_mask: str = 'inf',
    clock: str = 'last',
) -> tuple[Num[np.ndarray, ' U'], Int[np.ndarray, 'U K'], Float[np.ndarray, 'U K']]:
  """`rank_cases` and `top_items` from one pass of scores.

  k: items of a list; the other parameters as in `rank_cases`. cases: the cases. score_fn, n_items,
  block, tie, seen_mask, clock: as of `rank_cases`. -> ranks, items and scores. With
  mask_history the lists leave out the whole history, so a target that repeats has a rank but stands
  in no list.
  """
  _check_k(k, n_items)
  return _rank(score_fn, cases, n_items, k, block, mask_history, tie, seen_mask, clock)


def _rank(score_fn, cases, n_items, k, block, mask_history, tie, seen_mask, clock) -> Any:
  filling = _filling(seen_mask)
  items, offsets, targets = _checked(cases, n_items)
  ties.check(tie)
  large = isinstance(score_fn, DotProduct) and n_items >= blocked_ranking.MIN_ITEMS
  if large and len(score_fn.table) != n_items:
    raise DataError(f'the score function has a table of {len(score_fn.table)} rows for {n_items} '
                    'items; index it with the catalog of this data set')
  parts, peaks = [], blocked_ranking.peak(score_fn.table, score_fn.bias) if large else ()
  for rows, part, cuts, coordinates in blocks(
    items, offsets, n_items, blocked_ranking.USERS if large else block, mask_history
  ):
    target = jnp.asarray(targets[rows], jnp.int32)
    score_block: Any = at_times(score_fn, cases, rows, clock)
    if large:
      ranked = blocked_ranking.rank_users(
        score_block, peaks, target, coordinates, filling, part, cuts, k, tie
      )
    else:
      scores = _scores(score_block, part, cuts, n_items)
      ranked = rank_block(scores, target, *coordinates, filling, k, tie)
    parts.append([np.asarray(x) for x in ranked])  # waits: blocks in flight would pile up in memory
    _check_numbers(parts[-1][0] < 0, rows)
  return tuple(np.concatenate(x)[:len(targets)] for x in zip(*parts))


def _checked(cases: Cases, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  items, offsets, targets = (np.asarray(x) for x in (*cases.histories, cases.targets))
  _check_histories(items, offsets, n_items)
  if len(targets) != len(offsets) - 1:
    raise DataError(f'{len(targets)} targets for {len(offsets) - 1} histories; give one for each')
  if targets.min() < 1 or targets.max() > n_items:
    raise DataError(f'a target lies outside 1..{n_items}: found {targets.min()}..{targets.max()}')
  return items, offsets, targets


def at_times(score_fn: ScoreFn, cases: Cases, rows: Int[np.ndarray, ' B'],
             clock: str = 'last') -> ScoreFn:
  """The score function of one block, told its times where it reads any. score_fn: of the model.
  cases: of all blocks. rows: those of this one. clock: of `splits.CLOCKS`."""
  timed: Any = score_fn if getattr(score_fn, 'timed', False) else None
  return timed.at(cases.request_times(rows, clock)) if timed else score_fn


def list_ranks(items: Int[np.ndarray, 'U K'], targets: Int[np.ndarray, ' U'] | Sequence[int],
               last: int) -> Int[np.ndarray, ' U']:
  """Ranks in lists that end early: the place, or `last` where the target is missing.

  items: 0 for an empty place. targets: 1..N.
  """
  hit = items == np.asarray(targets)[:, None]
  return np.where(hit.any(1), hit.argmax(1), last).astype(np.int32)


def validator(scorer: Callable[[PyTree], ScoreFn], cases: Cases, n_items: int, seeds: int,
              max_users: int = 0) -> Callable[[PyTree], list[float]]:
  """NDCG@10 of validation users for the parameters of several seeds.

  scorer: parameters of one seed -> a score function. cases: of validation. n_items: of the catalog.
  seeds: how many. max_users: rank so many users (drawn once) at most, 0 for all. -> a function of
  parameters with a leading axis of seeds, which gives a figure for each
  """
  cases = cases.select(splits.drawn_rows(cases, max_users, 0))
  cases = cases.select(np.argsort(np.diff(cases.histories[1]), kind='stable'))

  def ndcg(params: PyTree) -> float:
    return mean_ndcg(rank_cases(scorer(params), cases, n_items), cases)
  return lambda params: [ndcg(jax.tree.map(lambda x, s=s: x[s], params)) for s in range(seeds)]


def mean_ndcg(ranks: Num[np.ndarray, ' U'], cases: Cases) -> float:
  """NDCG@10, a mean over users, by which settings and epochs are chosen.

  ranks: of the cases. cases: whose they are.
  """
  values = metrics.per_case(ranks, (10,), cases.set_sizes())['NDCG@10']
  return float(statistics.by_user(values, cases.owners()).mean())


def top_items(
    score_fn: ScoreFn, items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' U1'],
    n_items: int, k: int, exclude_seen: bool = True, allowed: np.ndarray | None = None,
    block: int = 0, times: Int[np.ndarray, ' MU'] | None = None,
) -> tuple[Int[np.ndarray, 'U K'], Float[np.ndarray, 'U K']]:
  """The k best items for every history.

  score_fn: scores a block of histories. items, offsets: ragged histories. n_items: of the catalog.
  k: items of a list. exclude_seen: whether items of a history are out. allowed: (N,) bool, which
  items may appear, or (U, N), a row a history. block: as in `rank_cases`. times: seconds of each
  history's items and then of its request, end to end, for a score function that is `timed`. ->
  items, 0 where fewer than k may appear, and their scores, best first, ties to the lower index.
  Raises DataError as `rank_cases` does, for k outside 1..N, and for a mask of another shape.
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
    mask = allowed if allowed.ndim == 1 else allowed[rows]
    score_block: Any = score_fn
    if times is not None:
      score_block = score_block.at(_gather(times, offsets + np.arange(len(offsets)), rows)[0])
    masked, bad = _mask_block(_scores(score_block, part, cuts, n_items), mask, *coordinates)
    _check_numbers(np.asarray(bad), rows)
    parts.append([np.asarray(x) for x in _top_block(masked, k)])
  found, values = (np.concatenate(x)[:len(offsets) - 1] for x in zip(*parts))
  return found, values


def recommender(score_fn: ScoreFn, catalog: Catalog, logits: bool = False,
                choice_fn: ScoreFn | None = None) -> CatalogRecommender:
  """The face of a method that scores the whole catalog. score_fn: of the method. catalog: that it
  scores. logits, choice_fn: as `CatalogRecommender` has them. -> Recommender, with masks by row"""
  def recommend(histories: Sequence, k: int, exclude_seen: bool, mask: np.ndarray | None,
                times: Sequence | None = None) -> tuple:
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    items = np.concatenate(histories) if len(histories) else np.zeros(0, np.int32)
    flat = None if times is None else np.concatenate(times)
    return top_items(score_fn, items, offsets, len(catalog), k, exclude_seen, mask, times=flat)
  return CatalogRecommender(recommend, catalog, masks_by_row=True, score_fn=score_fn, logits=logits,
                            choice_fn=choice_fn)


def block_size(n_items: int, memory: int = MEMORY) -> int:
  """How many users fit: scores, their masked copy and room for the score function's own.

  n_items: of the catalog. memory: bytes.
  """
  return int(np.clip(memory // (12 * n_items), 1, 256))


def blocks(
    items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' U1'], n_items: int, block: int,
    mask: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
  """Yields case rows, their ragged histories and (rows, columns) to mask, all of fixed shapes.

  Cases are spread evenly; the last one stands again where the last block is not full. items,
  offsets: ragged histories. n_items: of the catalog. block: cases of a block, 0 for what fits.
  mask: whether there is anything to mask.
  """
  n = len(offsets) - 1
  count = -(-n // (block or block_size(n_items)))
  rows = np.minimum(np.arange(count * -(-n // count)), n - 1).reshape(count, -1)
  lengths = np.diff(offsets)[rows]
  widest = max(1, int(lengths.sum(axis=1).max())) if mask else 1
  for block_rows, length in zip(rows, lengths):
    part, cuts = _gather(items, offsets, block_rows)
    coordinates = np.full((2, widest), len(block_rows), np.int32)  # row B is dropped
    if mask:
      coordinates[0, :len(part)] = np.repeat(np.arange(len(block_rows)), length)
      coordinates[1, :len(part)] = part - 1
    yield block_rows, part, cuts, (coordinates[0], coordinates[1])


def _gather(
    items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' U1'], rows: Int[np.ndarray, ' B'],
) -> tuple[Int[np.ndarray, ' H'], Int[np.ndarray, ' B1']]:
  """Picks rows of a ragged array. -> their items and offsets"""
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
                    'index it with the catalog of this data set')


def _check_k(k, n_items):
  if not 1 <= k <= n_items:
    raise DataError(f'k is {k}, but the catalog has {n_items} items; choose 1..{n_items}')


def _check_numbers(bad, rows):
  if bad.any():
    raise DataError(f'the scores of case {rows[np.argmax(bad)]} hold NaN; the model diverged or '
                    'divides by zero, so its ranks would mean nothing')
