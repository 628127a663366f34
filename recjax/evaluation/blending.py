"""Several rankings mixed into one: scores made comparable for each user, weights by validation.

What each part says of a user is brought to 0..1 by minimum and maximum, then added up by weights,
as rankings have long been fused (CombSUM, Fox and Shaw, TREC-2, 1994). An item that a part does not
list has its 0. Weights are fixed, or those of the memorization indicator: the surer an ID model is
of its first item, the more it counts (arXiv 2603.19809, code at Jamesding000/MemGen-GR).

The range is that of all items where a part scores all, so that nothing is cut and ranks are exact;
MemGen-GR takes the first 50. `top` does that. Items of the history, which will be masked, do not
count: they are often the best by far, and would press the others together.

Letters of shapes: P parts, B histories of a block, N items, K items of a list, C candidate rules, U
cases.
"""
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from recjax.data.splits import Cases
from recjax.errors import DataError
from recjax.evaluation import ranking
from recjax.protocols import AnyArray, ScoreFn

STEPS = 10  # weights are multiples of 1 / STEPS
GRID_PARTS = 4  # so many parts at most are searched by all their weights
ROUNDS = 5  # turns of the search by one weight after the other, at most
STEEPNESS = (1.0, 5.0, 9.0, 13.0)  # q of the indicator
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # tau of the indicator
METRIC = 'NDCG@10'


@dataclasses.dataclass(frozen=True)
class Rule:
  """How parts are mixed.

  weights: one a part, 0 or more, with the sum 1; () for the indicator of two parts. id_part: number
  of the ID model, whose weight is sigmoid(steepness * (its largest probability - threshold)); the
  other part has the rest. steepness, threshold: q and tau of arXiv 2603.19809.
  """
  weights: tuple[float, ...] = ()
  id_part: int = 0
  steepness: float = 0.0
  threshold: float = 0.0

  @property
  def alone(self) -> int | None:
    """The number of the part that has all the weight, None where several have some."""
    used = [part for part, weight in enumerate(self.weights) if weight]
    return used[0] if len(used) == 1 else None

  def uses(self, part: int) -> bool:
    """Whether a part has any weight. part: its number."""
    return not self.weights or self.weights[part] > 0

  def of(self, scores: Sequence[Float[AnyArray, 'B N'] | None], batch: int) -> Float[Array, 'B P']:
    """The weights for a block of histories. scores: of each part. batch: histories."""
    if self.weights:
      return jnp.broadcast_to(jnp.asarray(self.weights, jnp.float32), (batch, len(self.weights)))
    first = indicator(largest_probability(scores[self.id_part]), self.steepness, self.threshold)
    pair = (first, 1 - first)
    return jnp.stack(pair if self.id_part == 0 else pair[::-1], 1)

  def told(self, names: Sequence[str]) -> str:
    """The rule in words. names: of the parts."""
    if self.weights:
      return ', '.join(f'{name} {weight:g}' for name, weight in zip(names, self.weights))
    return (f'{names[self.id_part]} sigmoid({self.steepness:g} * (MSP - {self.threshold:g})), '
            f'{names[1 - self.id_part]} the rest')


@jax.jit
def largest_probability(logits: Float[AnyArray, 'B N']) -> Float[Array, ' B']:
  """The largest softmax probability (MSP) over the whole catalog. logits: of the items."""
  return jnp.exp(jnp.max(logits, 1) - jax.nn.logsumexp(logits, 1))


def indicator(probability: Float[AnyArray, ' B'], steepness: float,
              threshold: float) -> Float[Array, ' B']:
  """The weight of an ID model whose largest probability is `probability`. steepness, threshold: as
  `Rule` has them."""
  return jax.nn.sigmoid(steepness * (jnp.asarray(probability) - threshold))


@functools.partial(jax.jit, static_argnames='top')
def comparable(scores: Float[AnyArray, 'B N'], seen: Bool[AnyArray, 'B N'],
               top: int = 0) -> Float[Array, 'B N']:
  """Scores brought to 0..1 for each history, 0 for what is not listed.

  scores: of a part, -inf for an item that it does not list. seen: items that do not count for the
  range. top: 0 takes the range of all that are listed, else that of the best so many, what scores
  below them being 0. Where all of them score the same they have 1. NaN stays NaN.
  """
  unseen = jnp.where(seen, -jnp.inf, scores)
  listed = unseen > -jnp.inf
  high = jnp.max(unseen, 1, keepdims=True)
  low = jnp.min(jnp.where(listed | jnp.isnan(unseen), unseen, jnp.inf), 1, keepdims=True)
  if 0 < top < scores.shape[1]:
    low = jnp.maximum(low, jax.lax.top_k(unseen, top)[0][:, -1:])
  spread = high - low
  scaled = jnp.maximum((scores - low) / jnp.where(spread > 0, spread, 1.0), 0.0)
  scaled = jnp.where(spread <= 0, (scores >= low).astype(scores.dtype), scaled)
  return jnp.where(scores == -jnp.inf, 0.0, scaled)


def seen_items(items: Int[np.ndarray, ' M'], offsets: Int[np.ndarray, ' B1'],
               n_items: int) -> Bool[np.ndarray, 'B N']:
  """Which items stand in which history. items, offsets: ragged histories. n_items: of the catalog.
  """
  seen = np.zeros((len(offsets) - 1, n_items), bool)
  seen[np.repeat(np.arange(len(seen)), np.diff(offsets)), np.asarray(items) - 1] = True
  return seen


def whole(items: Int[np.ndarray, 'B K'], scores: Float[np.ndarray, 'B K'],
          n_items: int) -> Float[np.ndarray, 'B N']:
  """Lists as scores of the whole catalog, -inf for what they do not hold. items: 1..N, 0 for an
  empty place. scores: of them. n_items: of the catalog."""
  out = np.full((len(items), n_items + 1), -np.inf, np.float32)
  np.put_along_axis(out, np.asarray(items, np.int64), np.asarray(scores, np.float32), 1)
  return out[:, 1:]


def mixed(scores: Sequence[Float[AnyArray, 'B N'] | None], rule: Rule,
          seen: Bool[np.ndarray, 'B N'], top: int = 0) -> Float[AnyArray, 'B N']:
  """One score out of those of all parts; a part alone keeps its own.

  scores: of each part as `comparable` takes them, None where the rule does not use it. rule: how
  they are mixed. seen, top: as of `comparable`.
  """
  if rule.alone is not None:
    return scores[rule.alone]
  scaled = [None if s is None else comparable(jnp.asarray(s), seen, top) for s in scores]
  return _weighted(scaled, rule.of(scores, len(seen)))


def _weighted(scaled: Sequence[Float[Array, 'B N'] | None],
              weights: Float[Array, 'B P']) -> Float[Array, 'B N']:
  total: Any = sum(weights[:, part, None] * s for part, s in enumerate(scaled) if s is not None)
  return total


def score_function(parts: Sequence[ScoreFn | None], rule: Rule, n_items: int, top: int = 0,
                   mask_history: bool = True) -> ScoreFn:
  """The blend of score functions, itself one.

  parts: of all, -inf for what one does not list; those that the rule does not use are not called.
  rule: how they are mixed. n_items: of the catalog.
  top: as of `comparable`. mask_history: whether items of a history are out, and so do not count for
  the range.
  """
  used: Any = [part if rule.uses(number) else None for number, part in enumerate(parts)]
  if rule.alone is not None:
    return used[rule.alone]
  return Blended(tuple(used), rule, n_items, top, mask_history)


@dataclasses.dataclass(frozen=True)
class Blended:
  """What `score_function` gives, and takes: None for a part that the rule does not use. `timed` and
  `at` are those of `DotProduct`."""
  parts: tuple[Any, ...]
  rule: Rule
  n_items: int
  top: int
  mask_history: bool

  def __call__(self, items: np.ndarray, offsets: np.ndarray) -> Float[AnyArray, 'B N']:
    """Scores of all items. items, offsets: ragged histories."""
    seen = seen_items(items, offsets, self.n_items) & self.mask_history
    scores = [part and part(items, offsets) for part in self.parts]
    return mixed(scores, self.rule, seen, self.top)

  @property
  def timed(self) -> bool:
    """Whether any part reads times."""
    return any(getattr(part, 'timed', False) for part in self.parts)

  def at(self, times: np.ndarray | None) -> 'Blended':
    """The blend of one block of histories with these times. times: as `DotProduct.at` takes them.
    """
    return dataclasses.replace(self, parts=tuple(
        part.at(times) if getattr(part, 'timed', False) else part for part in self.parts))


# The choice.


def simplex(parts: int, steps: int = STEPS) -> list[Rule]:
  """All weights that are multiples of 1 / steps with the sum 1, but those of one part alone.

  parts: how many.
  """
  counts = (count for count in itertools.product(range(steps + 1), repeat=parts)
            if sum(count) == steps and max(count) < steps)
  return [Rule(tuple(n / steps for n in count)) for count in counts]


def alone(parts: int) -> list[Rule]:
  """The rules that give all to one part, in order. parts: how many."""
  return [Rule(tuple(float(part == other) for other in range(parts))) for part in range(parts)]


def indicators(id_part: int) -> list[Rule]:
  """The rules of the memorization indicator, for two parts. id_part: number of the ID model."""
  return [Rule((), id_part, q, tau) for q in STEEPNESS for tau in THRESHOLDS]


def ranks_of(parts: Sequence[ScoreFn], rules: Sequence[Rule], cases: Cases, n_items: int,
             top: int = 0, mask_history: bool = True,
             advance: Callable[[int], None] = lambda count: None) -> Int[np.ndarray, 'C U']:
  """Ranks of cases under many rules, out of one pass of scores.

  parts, top, mask_history: as of `score_function`. rules: to be tried. cases: histories and
  targets. n_items: of the catalog. advance: told how many cases are done. Raises DataError where a
  part gives NaN.
  """
  out, done = [], 0
  for rows, part, cuts, (seen_rows, seen_columns) in ranking.blocks(
      *cases.histories, n_items, 0, mask_history):
    scores = [jnp.asarray(ranking.at_times(score, cases, rows)(part, cuts), jnp.float32)
              for score in parts]
    seen = seen_items(part, cuts, n_items) & mask_history
    weights = jnp.stack([rule.of(scores, len(rows)) for rule in rules])
    owner = jnp.asarray([-1 if rule.alone is None else rule.alone for rule in rules])
    ranks = np.asarray(_ranks_of_block(
        jnp.stack(scores), seen, weights, owner, jnp.asarray(cases.targets[rows], jnp.int32),
        seen_rows, seen_columns, top))
    if (ranks < 0).any():
      raise DataError(f'the scores of case {rows[np.argmax((ranks < 0).any(0))]} hold NaN; a part '
                      'diverged or divides by zero, so ranks would mean nothing')
    out.append(ranks)
    count = min(len(rows), len(cases) - done)
    done += count
    advance(count)
  return np.concatenate(out, 1)[:, :len(cases)]


@functools.partial(jax.jit, static_argnames='top')
def _ranks_of_block(scores: Float[Array, 'P B N'], seen: Bool[Array, 'B N'],
                    weights: Float[Array, 'C B P'], owner: Int[Array, ' C'],
                    target: Int[Array, ' B'], rows: Int[Array, ' H'], columns: Int[Array, ' H'],
                    top: int) -> Int[Array, 'C B']:
  """owner: the part that has all the weight of a rule, -1 where several have some."""
  scaled = [comparable(s, seen, top) for s in scores]

  def ranks(rule: tuple) -> Array:
    of_rule, part = rule
    mix = jnp.where(part >= 0, scores[part], _weighted(scaled, of_rule))
    return ranking.rank_block(mix, target, rows, columns, -jnp.inf, 0, 'pessimistic')[0]
  return jax.lax.map(ranks, (weights, owner))


def search(num_parts: int, judge: Callable[[Sequence[Rule]], list[float]],
           more: Sequence[Rule] = (), fixed: bool = True) -> list[tuple[Rule, float]]:
  """Rules with their figures, best first, of equal ones the earlier.

  Each part alone is always tried; up to GRID_PARTS parts all weights in steps of 1 / STEPS, beyond
  one weight after the other, the rest in its proportions, from equal ones until nothing is gained.
  num_parts: how many. judge: rules -> a figure for each, more is better. more: further rules.
  fixed: whether fixed weights are tried at all.
  """
  rules = [*alone(num_parts), *more]
  if fixed:
    rules += (simplex(num_parts) if num_parts <= GRID_PARTS
              else [Rule((1 / num_parts,) * num_parts)])
  found = list(zip(rules, judge(rules)))
  if fixed and num_parts > GRID_PARTS:
    found += _by_coordinates(num_parts, judge, found[-1])
  return sorted(found, key=lambda pair: -pair[1])


def _by_coordinates(num_parts: int, judge: Callable, best: tuple[Rule, float]) -> Iterator[tuple]:
  """Yields the rules that the search by one weight after the other tries, with their figures."""
  for _ in range(ROUNDS):
    before = best
    for part in range(num_parts):
      rules = [rule for rule in (_moved(best[0].weights, part, step / STEPS)
                                 for step in range(STEPS)) if rule.alone is None]
      tried = list(zip(rules, judge(rules)))
      yield from tried
      best = max([best, *tried], key=lambda pair: pair[1])
    if best == before:
      return


def _moved(weights: Sequence[float], part: int, value: float) -> Rule:
  """The rule in which a part has the weight `value`, the others sharing the rest as before."""
  rest = 1 - weights[part]
  return Rule(tuple(value if other == part else round((1 - value) * weight / rest, 6)
                    for other, weight in enumerate(weights)))


def mean_ndcg(ranks: Int[np.ndarray, 'C U'], cases: Cases) -> list[float]:
  """METRIC of each line, a mean over users. ranks: of the cases under several rules. cases: whose
  they are."""
  return [ranking.mean_ndcg(line, cases) for line in ranks]
