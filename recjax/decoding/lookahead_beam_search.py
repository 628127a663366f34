"""Look-ahead over the trie: which tokens beams may come to, so that a pass can take them along.

Where a pass of few tokens costs as much as one of many, tokens that may be needed are free. They
are taken best first, by the score that a beam would have there: known where the state before has
gone through the model, else guessed as if all children were equally likely. What is looked up later
has the same score as if it had been asked for then, so rows do not change; only passes do.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from recjax.decoding import device_trie as trees
from recjax.decoding.beam_search import best_of, may_improve, take, values_of
from recjax.decoding.constraints import DEAD, LIVE, met_nan
from recjax.decoding.lm_head import LMHead, log_sum_exp, plain_head
from recjax.errors import ConfigError


class Front(NamedTuple):
  """Tokens at the edge of what is looked at, each (B, F)."""
  node: jax.Array
  depth: jax.Array
  score: jax.Array


def likely(state, titles, cfg, vocab, given, last, depth, fed, free):
  """Fills a pass with tokens that live beams may come to.

  given: (node, at, real), each (B, Q), what the pass feeds anyhow. last, depth: (B, K), where each
  beam stands once it is through. fed: (B, K), which beams feed something. free: (B,) slots.
  -> (node, at, real), what was given first
  """
  width = given[0].shape[1]
  budget = jnp.minimum(cfg.lookahead, free) - given[2].sum(-1)
  live = (state.beams.score > LIVE) & state.open[:, None]
  slot = slot_of(state.pool, titles.forest.lo[last], depth)
  front = Front(last, depth, jnp.where(live & (fed | (slot >= 0)), state.beams.score, DEAD))
  front = best(front, width)
  chosen = front._replace(score=jnp.full_like(front.score, DEAD))

  def more(carry):
    front, chosen, turn = carry
    worst = jnp.take_along_axis(chosen.score, jnp.clip(budget - 1, 0, width - 1)[:, None], 1)
    better = front.score.max(-1) > jnp.maximum(worst[:, 0], LIVE)
    return (better & (budget > 0)).any() & (turn < cfg.new_tokens)

  def turn(carry):
    front, chosen, turn = carry
    front = below(front, state.pool, titles, vocab, cfg, width)
    new = slot_of(state.pool, titles.forest.lo[front.node], front.depth) < 0
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), chosen,
                        front._replace(score=jnp.where(new, front.score, DEAD)))
    # of equal scores the earlier stays, so no token comes without those before it
    return front, best(both, width), turn + 1

  _, chosen, _ = lax.while_loop(more, turn, (front, chosen, 0))
  real = (chosen.score > LIVE) & (jnp.arange(width) < budget[:, None])
  both = [jnp.concatenate([a, b], 1) for a, b in zip(given, (chosen.node, chosen.depth - 1, real))]
  order = jnp.argsort(~both[2], -1, stable=True)[:, :width]
  return tuple(jnp.take_along_axis(x, order, 1) for x in both)


def best(front, most):
  """The `most` of highest score; of equal ones the first."""
  lack = max(0, most - front.score.shape[1])
  front = Front(*(jnp.pad(x, [(0, 0), (0, lack)], constant_values=fill)
                  for x, fill in zip(front, (0, 0, DEAD))))
  score, place = lax.top_k(front.score, most)
  return Front(*(jnp.take_along_axis(x, place, 1) for x in front[:2]), score)


def below(front, pool, titles, vocab, cfg, most):
  """The best children of the edge that may have to go through the model. -> Front (B, most)"""
  forest = titles.forest
  slot = slot_of(pool, forest.lo[front.node], front.depth)
  rows = jnp.arange(len(slot))[:, None]
  known = Kids(*(x[rows, jnp.maximum(slot, 0)] for x in pool.kids))
  _, child, exists = trees.children(forest, front.node, front.depth, KIDS)
  fan = jnp.maximum(trees.fan_out(forest, front.node), 1)[..., None]
  guess = jnp.where(exists, -jnp.log(fan.astype(jnp.float32)), DEAD)
  seen = (slot >= 0)[..., None]
  node, logp = jnp.where(seen, known.node, child), jnp.where(seen, known.logp, guess)
  depth = jnp.broadcast_to(front.depth[..., None] + 1, node.shape)
  needed = ~trees.complete(forest, node, depth) & (depth < cfg.new_tokens)
  if not vocab:
    needed &= trees.fan_out(forest, node) > 0
  good = needed & (logp > LIVE) & (front.score > LIVE)[..., None]
  score = jnp.where(good, front.score[..., None] + jnp.minimum(logp, 0), DEAD)
  return best(Front(*(x.reshape(len(slot), -1) for x in (node, depth, score))), most)

KIDS = 16  # the best children of a node that look-ahead considers


class Kids(NamedTuple):
  """The best children of a node. node: (B, S, M) int32, logp: (B, S, M) float32, DEAD for none"""
  node: jax.Array
  logp: jax.Array

  @classmethod
  def none(cls, batch, slots):
    return cls(jnp.zeros((batch, slots, KIDS), jnp.int32), jnp.full((batch, slots, KIDS), DEAD))

  @classmethod
  def of(cls, titles, head, node, depth):
    """Of nodes (B, Q), by their true log-probabilities under the constraint."""
    def best(values, _, nodes):
      lack = max(0, KIDS - values.shape[-1])
      values = jnp.pad(values, [(0, 0), (0, 0), (0, lack)], constant_values=DEAD)
      nodes = jnp.pad(nodes, [(0, 0), (0, 0), (0, lack)])
      logp, place = lax.top_k(values, KIDS)
      return cls(jnp.take_along_axis(nodes, place, -1), logp)
    return titles.expand(head, node, depth, KIDS, best)


class Pool(NamedTuple):
  """What went through the model, S slots of each request. lo, hi, depth: (B, S) int32, which token
  each slot holds, depth counting it; -1 for none, 0 for the prompt. state: (B, S, D). total: (B, S)
  log-sum-exp. kids: `Kids` (B, S, M)."""
  lo: jax.Array
  hi: jax.Array
  depth: jax.Array
  state: jax.Array
  total: jax.Array
  kids: Kids


def slot_of(pool, lo, depth):
  """The slot of tokens, each known by its first place and its depth (B, Q). -> (B, Q), -1: none"""
  same = (pool.lo[:, None] == lo[..., None]) & (pool.depth[:, None] == depth[..., None])
  return jnp.where(same.any(-1), jnp.argmax(same, -1), -1)


def above(lo, hi, depth, lo_below, hi_below, depth_below):
  """Which tokens (B, S) come before others (B, Q) in their rows, or are them. -> (B, Q, S)"""
  lo, hi, depth = (x[:, None] for x in (lo, hi, depth))
  return ((lo <= lo_below[..., None]) & (hi >= hi_below[..., None]) & (depth > 0)
          & (depth <= depth_below[..., None]))


@dataclasses.dataclass(frozen=True)
class TreeConfig:
  """Settings; hashable. The rest as in `BeamConfig`. Raises ConfigError.

  widths: tokens of a request that go through in one pass, ascending; the smallest that holds what
  is pending is used. lookahead: passes are filled up to so many tokens, 0 for no look-ahead; worth
  while where a pass of few tokens is bound by reading the weights, so not on a CPU.
  """
  beams: int
  new_tokens: int
  length_penalty: float = 0.0
  early_stopping: bool | str = False
  widths: tuple = (8, 32)
  lookahead: int = 0

  def __post_init__(self):
    if self.beams < 1 or self.new_tokens < 1 or not self.widths or min(self.widths) < 1:
      raise ConfigError(f'beams={self.beams}, new_tokens={self.new_tokens} and widths='
                        f'{self.widths} must be at least 1')
    if self.lookahead < 0:
      raise ConfigError(f'lookahead={self.lookahead} is a number of tokens, 0 for none')

  @property
  def passes(self):
    """Compiled widths of a pass; with look-ahead none is below it."""
    ahead = (self.lookahead,) if self.lookahead else ()
    return (*ahead, *(w for w in self.widths if w > self.lookahead))

  @property
  def slots(self):
    """Slots of a request's pool: all paths, one pass, what is ahead, and the prompt's state."""
    return self.beams * self.new_tokens + self.passes[-1] + 2 * self.lookahead + 1


class Beams(NamedTuple):
  """node, score: (B, K)."""
  node: jax.Array
  score: jax.Array


class Done(NamedTuple):
  """Finished rows, best value first: node, value, length, complete; each (B, K)."""
  node: jax.Array
  value: jax.Array
  length: jax.Array
  complete: jax.Array


class State(NamedTuple):
  """t: (B,) tokens of each request. passes: (B,) model passes each request took part in. fed: ()
  tokens that went through the model."""
  t: jax.Array
  beams: Beams
  done: Done
  open: jax.Array
  pool: Pool
  cache: object
  passes: jax.Array
  fed: jax.Array
  broken: jax.Array


class Tree(NamedTuple):
  """What the search gives: finished rows, passes (B,), tokens fed (), broken (B,) as in `beam`."""
  done: Done
  passes: jax.Array
  fed: jax.Array
  broken: jax.Array


def lookahead_beam_search(
  extend: Callable, head: Callable, cache, first, titles, cfg: TreeConfig
) -> Tree:
  """Searches all requests at once; the rows are those of `beam_search`.

  extend: (cache, tokens (B, Q), at (B, Q), seen (B, Q, S) bool, within (B, Q, Q) bool, slots
  (B, Q)) -> (state (B, Q, D), cache): runs tokens number `at` of their rows, each seeing the slots
  and the tokens of this pass that it is told, and keeps their keys in `slots` (S: nowhere). head:
  state -> Head. first: (B, D), the state after each prompt. titles: `CatalogConstraint` with
  normalize 'vocab' or 'valid'. Raises ConfigError for another.
  """
  if titles.normalize not in ('vocab', 'valid'):
    raise ConfigError(f"normalize={titles.normalize!r}: runs are worth while for 'vocab', 'valid'")
  if titles.normalize == 'valid' and cfg.length_penalty:
    raise ConfigError(f"length_penalty={cfg.length_penalty} with normalize='valid' rewards titles "
                      'for their forced tokens, which are free; set it to 0')
  state = begin(cache, first, head, titles, cfg)
  vocab = titles.normalize == 'vocab'
  feed = functools.partial(feed_pending, extend, head, titles, cfg, vocab)

  def round_(state):
    step = functools.partial(search_step, head=head, titles=titles, cfg=cfg)
    state = lax.while_loop(lambda s: ready(s, titles, vocab).any(), step, state)
    return lax.cond(state.open.any(), feed, lambda s: s, state)

  state = lax.while_loop(lambda s: s.open.any(), round_, state)
  return Tree(state.done, state.passes, state.fed, state.broken)


def begin(cache, first, head, titles, cfg):
  """After the first token, which the prompt's state in slot 0 decides: one beam branches into K."""
  batch, slots = len(first), cfg.slots
  root = titles.start(batch)
  none = jnp.full((batch, slots), -1)
  of_root = lambda of: none.at[:, :1].set(of[root])  # noqa: E731
  pool = Pool(of_root(titles.forest.lo), of_root(titles.forest.hi), none.at[:, 0].set(0),
              jnp.zeros((batch, slots, first.shape[-1]), first.dtype).at[:, 0].set(first),
              jnp.zeros((batch, slots)), Kids.none(batch, slots if cfg.lookahead else 1))
  if titles.normalize == 'vocab':
    total = log_sum_exp(head(first[:, None]).full())[:, 0, 0]
    pool = pool._replace(total=pool.total.at[:, 0].set(total))
  beams = Beams(root, jnp.zeros((batch, 1)))
  none = jnp.zeros((batch, cfg.beams), jnp.int32)
  done = Done(none + root, jnp.full(none.shape, DEAD), none, none > 0)
  zero = jnp.zeros(batch, jnp.int32)
  state = State(zero, beams, done, jnp.ones(batch, bool), pool, cache, zero, jnp.int32(0), zero - 1)
  return moved(state, head, titles, cfg)


def current_slot(state, forest):
  """The slot of each beam's last token; the prompt's before the first. -> (B, K), -1 for none"""
  node = state.beams.node
  return slot_of(state.pool, forest.lo[node], jnp.broadcast_to(state.t[:, None], node.shape))


def lacking(state, titles, vocab):
  """Which beams cannot be scored before a pass. -> (B, K)"""
  slot = current_slot(state, titles.forest)
  lacks = (state.beams.score > LIVE) & (slot < 0) & state.open[:, None]
  return lacks if vocab else lacks & (trees.fan_out(titles.forest, state.beams.node) > 1)


def ready(state, titles, vocab):
  """Which requests can take a search step. -> (B,)"""
  return state.open & ~lacking(state, titles, vocab).any(-1)


def search_step(state, head, titles, cfg):
  """One token for the requests that are ready; the others stay as they are."""
  go = ready(state, titles, titles.normalize == 'vocab')

  def only(new, old):
    return jnp.where(go.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
  new = moved(state, head, titles, cfg)
  return state._replace(**{
      k: jax.tree.map(only, getattr(new, k), getattr(state, k))
      for k in ('t', 'beams', 'done', 'open', 'broken')})


def moved(state, head, titles, cfg):
  """All requests one token further."""
  slot = jnp.maximum(current_slot(state, titles.forest), 0)
  here = jnp.take_along_axis(state.pool.state, slot[..., None], 1)
  plain = head(here)
  known = jnp.take_along_axis(state.pool.total, slot, 1)[..., None]
  scorer = LMHead(plain.full, plain.rows, plain.window,
                (lambda: known) if titles.normalize == 'vocab' else None)
  t = state.t[:, None]
  kept = 2 * cfg.beams
  value, _, _, node = titles.expand(scorer, state.beams.node, t, kept,
                                    best_of(state.beams.score, kept))
  over = trees.complete(titles.forest, node, t + 1)
  ended = over | (t + 1 == cfg.new_tokens)
  done = finish(state, value, node, over, ended, cfg)
  order = lax.top_k(jnp.where(ended, 4 * DEAD, value), cfg.beams)[1]
  pick = lambda x: jnp.take_along_axis(x, order, 1)  # noqa: E731
  score = jnp.where(pick(ended), DEAD, pick(value))
  beams = Beams(pick(node), score)
  broken = met_nan(state.broken, here, state.beams.score > LIVE, t)
  state = state._replace(t=state.t + 1, beams=beams, done=done, broken=broken)
  still = may_improve(beams.score[:, 0], state.t, done.value, cfg)
  return state._replace(open=state.open & still & (state.t < cfg.new_tokens))


def finish(state, value, node, over, ended, cfg):
  """Merges rows that end now with those that ended before. value, ...: (B, 2 K) -> Done"""
  length = (state.t + 1)[:, None]
  made = Done(node, values_of(value, ended, length, state.done.value, cfg),
              jnp.broadcast_to(length, node.shape), over)
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), state.done, made)
  return take(both, lax.top_k(both.value, cfg.beams)[1])


# The model's passes.


def forced_run(forest, node, depth, longest):
  """The tokens after a node's that are forced before a fork or the title's end.

  The end itself needs no pass, so a run stops one short of it. node: (B, K), depth: (B, 1).
  -> how many, and the node that the last one leads to; each (B, K)
  """
  def more(carry):
    return carry[2].any()

  def advance(carry):
    node, count, going = carry
    fan, at = trees.fan_out(forest, node), depth + count
    tail = jnp.where(fan == 0, jnp.maximum(trees.row_length(forest, node) - at - 1, 0), 0)
    child = forest.first[node]
    chain = going & (fan == 1) & ~trees.complete(forest, child, at + 1)
    return jnp.where(chain, child, node), count + jnp.where(going, tail, 0) + chain, chain

  start = (node, jnp.zeros_like(node), jnp.ones(node.shape, bool))
  node, count, _ = lax.while_loop(more, advance, start)
  return jnp.minimum(count, longest - depth - 1), node


def pending(state, titles, vocab, cfg):
  """Which tokens of which beams a pass should feed, and where those of each beam lead.

  -> (B, K, T) bool, node (B, K), depth (B, K)
  """
  forest, node, pool = titles.forest, state.beams.node, state.pool
  lacks = lacking(state, titles, vocab)
  end = jnp.broadcast_to(state.t[:, None], node.shape)
  last = node
  if vocab:
    more, last = forced_run(forest, node, end, cfg.new_tokens)
    end, last = end + jnp.where(lacks, more, 0), jnp.where(lacks, last, node)
  held = above(pool.lo, pool.hi, pool.depth, forest.lo[node], forest.hi[node], end)
  depth = jnp.where(held, pool.depth[:, None], 0)
  grid = jnp.indices(held.shape, sparse=True)
  there = jnp.zeros((*node.shape, cfg.new_tokens + 1), bool)
  there = there.at[grid[0], grid[1], depth].set(True)[..., 1:]
  token = jnp.arange(cfg.new_tokens)
  return lacks[..., None] & ~there & (token < end[..., None]), last, end


def feed_pending(extend, head, titles, cfg, vocab, state):
  """One model pass of the smallest width that holds what is pending."""
  want, last, depth = pending(state, titles, vocab, cfg)
  most = want.sum((1, 2)).max()
  branches = [functools.partial(feed, extend, head, titles, cfg, vocab, w) for w in cfg.passes]
  need = jnp.searchsorted(jnp.asarray(cfg.passes), most)
  return lax.switch(jnp.minimum(need, len(branches) - 1), branches, state, want, last, depth)


def feed(extend, head, titles, cfg, vocab, width, state, want, last, depth):
  """Feeds up to `width` pending tokens of each request, those that come first in their rows."""
  beams, longest = want.shape[1:]
  forest = titles.forest
  rank = jnp.where(want, jnp.arange(longest) * beams + jnp.arange(beams)[:, None],
                   longest * beams)
  key, flat = lax.top_k(-rank.reshape(len(rank), -1), width)
  real, at = -key < longest * beams, flat % longest
  node = jnp.take_along_axis(state.beams.node, flat // longest, 1)
  spot, state = room(state, forest, real.sum(-1))
  if cfg.lookahead:
    end = jnp.take_along_axis(depth, flat // longest, 1) == at + 1
    node = jnp.where(end, jnp.take_along_axis(last, flat // longest, 1), node)
    node, at, real = likely(state, titles, cfg, vocab, (node, at, real), last, depth, want.any(-1),
                            (spot >= 0).sum(-1))
  slot = jnp.where(real, spot[:, :width], cfg.slots)
  return through(extend, head, titles, cfg, vocab, state, node, at, real, slot)


def through(extend, head, titles, cfg, vocab, state, node, at, real, slot):
  """The pass itself. node, at, real, slot: (B, Q), tokens number `at` of the rows of `node`."""
  forest, pool = titles.forest, state.pool
  lo, hi = forest.lo[node], forest.hi[node]
  seen = above(pool.lo, pool.hi, pool.depth, lo, hi, at)
  within = above(lo, hi, jnp.where(real, at + 1, 0), lo, hi, at + 1)
  within |= jnp.eye(at.shape[1], dtype=bool)
  hidden, cache = extend(state.cache, trees.forced_token(forest, node, at), at, seen, within, slot)
  rows = jnp.arange(len(at))[:, None]

  def put(old, new):
    return old.at[rows, slot].set(new, mode='drop')
  pool = pool._replace(lo=put(pool.lo, lo), hi=put(pool.hi, hi), depth=put(pool.depth, at + 1),
                       state=put(pool.state, hidden))
  scorer = head(hidden)
  if vocab:
    logits = scorer.full()
    total = log_sum_exp(logits)
    pool = pool._replace(total=put(pool.total, total[..., 0]))
    scorer = plain_head(logits)._replace(total=lambda: total)
  if cfg.lookahead:
    kids = Kids.of(titles, scorer, node, at + 1)
    pool = pool._replace(kids=jax.tree.map(put, pool.kids, kids))
  return state._replace(pool=pool, cache=cache, passes=state.passes + real.any(-1),
                        fed=state.fed + real.sum())


def room(state, forest, needed):
  """Slots that may be overwritten, first those that hold nothing. -> (B, S), -1 for none; State

  What live beams have behind them stays, and what they may come to, unless `needed` (B,) slots are
  not free otherwise: then all that is ahead of beams is forgotten.
  """
  pool, node = state.pool, state.beams.node
  lo, hi = forest.lo[node], forest.hi[node]
  live = state.beams.score > LIVE
  t = jnp.broadcast_to(state.t[:, None], node.shape)
  behind = (above(pool.lo, pool.hi, pool.depth, lo, hi, t) & live[..., None]).any(1)
  ahead = ((pool.lo[:, None] >= lo[..., None]) & (pool.hi[:, None] <= hi[..., None])
           & (pool.depth[:, None] > t[..., None]) & live[..., None]).any(1)
  keep = behind | (pool.depth == 0)
  tight = (~(keep | ahead)).sum(-1) < needed
  keep |= ahead & ~tight[:, None]
  pool = pool._replace(depth=jnp.where(keep, pool.depth, -1))
  order = jnp.argsort(keep, -1, stable=True)
  free = jnp.arange(keep.shape[1]) < (~keep).sum(-1, keepdims=True)
  return jnp.where(free, order, -1), state._replace(pool=pool)
