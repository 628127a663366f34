"""Beam search over titles with fewer model passes than tokens: forced runs go through together.

Beams advance in token time exactly as in `beam`; only the model runs ahead. Every token that went
through the model has a slot in its request's pool: its key and value, its state, and (normalize=
'vocab') its log-sum-exp. A request takes search steps as long as all it needs is in the pool, and
requests have clocks of their own. A pass then feeds what live beams lack: their pending tokens, and
the tokens forced after them. With normalize='valid' forced tokens cost nothing, so they wait until
a beam comes to a fork, and a title that is alone from some token on never goes through to its end.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from recjax.decoding import forest as trees
from recjax.decoding.beam import best_of, may_improve, take, values_of
from recjax.decoding.constraints import DEAD, LIVE
from recjax.decoding.head import Head, log_sum_exp
from recjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class TreeConfig:
  """Settings; hashable. widths: tokens of a request that go through in one pass, ascending; the
  smallest that holds what is pending is used. The rest as in `BeamConfig`. Raises ConfigError."""
  beams: int
  new_tokens: int
  length_penalty: float = 0.0
  early_stopping: bool | str = False
  widths: tuple = (8, 32)

  def __post_init__(self):
    if self.beams < 1 or self.new_tokens < 1 or not self.widths or min(self.widths) < 1:
      raise ConfigError(f'beams={self.beams}, new_tokens={self.new_tokens} and widths='
                        f'{self.widths} must be at least 1')

  @property
  def slots(self):
    """Slots of a request's pool: all paths, one pass, and the prompt's state."""
    return self.beams * self.new_tokens + self.widths[-1] + 1


class Beams(NamedTuple):
  """node, score: (B, K). path: (B, K, T) int32, the slot of each token, -1 where it has none."""
  node: jax.Array
  score: jax.Array
  path: jax.Array


class Done(NamedTuple):
  """Finished rows, best value first: node, value, length, complete; each (B, K)."""
  node: jax.Array
  value: jax.Array
  length: jax.Array
  complete: jax.Array


class State(NamedTuple):
  """t: (B,) tokens of each request. pool: (hidden (B, S, D), log-sum-exp (B, S)). passes: (B,)
  model passes each request took part in. fed: () tokens that went through the model."""
  t: jax.Array
  beams: Beams
  done: Done
  open: jax.Array
  pool: tuple
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


def tree_search(extend: Callable, head: Callable, cache, first, titles, cfg: TreeConfig) -> Tree:
  """Searches all requests at once; the rows are those of `beam_search`.

  extend: (cache, tokens (B, Q), at (B, Q), seen (B, Q, S) bool, within (B, Q, Q) bool, slots
  (B, Q)) -> (state (B, Q, D), cache): runs tokens number `at` of their rows, each seeing the slots
  and the tokens of this pass that it is told, and keeps their keys in `slots` (S: nowhere). head:
  state -> Head. first: (B, D), the state after each prompt. titles: `Titles` with normalize
  'vocab' or 'valid'. Raises ConfigError for another.
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
  hidden = jnp.zeros((batch, slots, first.shape[-1]), first.dtype).at[:, 0].set(first)
  total = jnp.zeros((batch, slots))
  if titles.normalize == 'vocab':
    total = total.at[:, 0].set(log_sum_exp(head(first[:, None]).full())[:, 0, 0])
  root = titles.start(batch)
  beams = Beams(root, jnp.zeros((batch, 1)), jnp.full((batch, 1, cfg.new_tokens), -1))
  none = jnp.zeros((batch, cfg.beams), jnp.int32)
  done = Done(none + root, jnp.full(none.shape, DEAD), none, none > 0)
  zero = jnp.zeros(batch, jnp.int32)
  state = State(zero, beams, done, jnp.ones(batch, bool), (hidden, total), cache, zero,
                jnp.int32(0), zero - 1)
  return moved(state, head, titles, cfg)


def current_slot(state):
  """The slot of each beam's last token; the prompt's before the first. -> (B, K), -1 for none"""
  at = jnp.maximum(state.t - 1, 0)[:, None, None]
  at = jnp.broadcast_to(at, (*state.beams.node.shape, 1))
  slot = jnp.take_along_axis(state.beams.path, at, 2)[..., 0]
  return jnp.where(state.t[:, None] == 0, 0, slot)


def lacking(state, titles, vocab):
  """Which beams cannot be scored before a pass. -> (B, K)"""
  lacks = (state.beams.score > LIVE) & (current_slot(state) < 0) & state.open[:, None]
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
  slot = jnp.maximum(current_slot(state), 0)
  hidden, total = state.pool
  here = jnp.take_along_axis(hidden, slot[..., None], 1)
  plain = head(here)
  known = jnp.take_along_axis(total, slot, 1)[..., None]
  scorer = Head(plain.full, plain.rows, plain.window,
                (lambda: known) if titles.normalize == 'vocab' else None)
  t = state.t[:, None]
  kept = 2 * cfg.beams
  value, beam, _, node = titles.expand(scorer, state.beams.node, t, kept,
                                       best_of(state.beams.score, kept))
  over = trees.complete(titles.forest, node, t + 1)
  ended = over | (t + 1 == cfg.new_tokens)
  done = finish(state, value, node, over, ended, cfg)
  order = lax.top_k(jnp.where(ended, 4 * DEAD, value), cfg.beams)[1]
  pick = lambda x: jnp.take_along_axis(x, order, 1)  # noqa: E731
  score = jnp.where(pick(ended), DEAD, pick(value))
  beams = Beams(pick(node), score, take(state.beams.path, pick(beam)))
  nan = (jnp.isnan(here).any(-1) & (state.beams.score > LIVE)).any(-1)
  broken = jnp.where((state.broken < 0) & nan, state.t, state.broken)
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
  """How many tokens after a node's are forced before a fork or the title's end. -> int32

  The end itself needs no pass, so a run stops one short of it. node: (B, K), depth: (B, 1).
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
  return jnp.minimum(lax.while_loop(more, advance, start)[1], longest - depth - 1)


def pending(state, titles, vocab, cfg):
  """Which tokens of which beams a pass should feed. -> (B, K, T) bool"""
  lacks = lacking(state, titles, vocab)
  end = state.t[:, None]
  if vocab:
    end = end + forced_run(titles.forest, state.beams.node, end, cfg.new_tokens)
  token = jnp.arange(cfg.new_tokens)
  return lacks[..., None] & (state.beams.path < 0) & (token < end[..., None])


def feed_pending(extend, head, titles, cfg, vocab, state):
  """One model pass of the smallest width that holds what is pending."""
  want = pending(state, titles, vocab, cfg)
  most = want.sum((1, 2)).max()
  branches = [functools.partial(feed, extend, head, titles, cfg, vocab, w) for w in cfg.widths]
  need = jnp.searchsorted(jnp.asarray(cfg.widths), most)
  return lax.switch(jnp.minimum(need, len(branches) - 1), branches, state, want)


def feed(extend, head, titles, cfg, vocab, width, state, want):
  """Feeds up to `width` pending tokens of each request, those that come first in their rows."""
  batch, beams, longest = want.shape
  token = jnp.arange(longest)
  rank = jnp.where(want, token * beams + jnp.arange(beams)[:, None], longest * beams)
  key, flat = lax.top_k(-rank.reshape(batch, -1), width)
  real = -key < longest * beams
  beam, at = flat // longest, flat % longest
  path = jnp.take_along_axis(state.beams.path, beam[..., None], 1)  # (B, Q, T)
  node = jnp.take_along_axis(state.beams.node, beam, 1)
  tokens = trees.forced_token(titles.forest, node, at)
  rows = jnp.arange(batch)[:, None]
  slots = cfg.slots
  seen = jnp.zeros((batch, width, slots), bool)
  prior = jnp.where((path >= 0) & (token < at[..., None]), path, slots)
  grid = jnp.indices(prior.shape, sparse=True)
  seen = seen.at[grid[0], grid[1], prior].set(True, mode='drop')
  within = (beam[:, :, None] == beam[:, None]) & (at[:, :, None] >= at[:, None]) & real[:, None]
  within |= jnp.eye(width, dtype=bool)
  free = free_slots(state.beams, slots)[:, :width]
  slot = jnp.where(real, free, slots)
  hidden, cache = extend(state.cache, tokens, at, seen, within, slot)
  kept, total = state.pool
  kept = kept.at[rows, slot].set(hidden, mode='drop')
  if vocab:
    total = total.at[rows, slot].set(log_sum_exp(head(hidden).full())[..., 0], mode='drop')
  spot = jnp.where(real, at, longest)
  new = state.beams.path.at[rows, beam, spot].set(slot, mode='drop')
  return state._replace(
      beams=state.beams._replace(path=new), pool=(kept, total), cache=cache,
      passes=state.passes + real.any(-1), fed=state.fed + real.sum())


def free_slots(beams, slots):
  """Slots that no live beam's path holds, first; slot 0 is the prompt's. -> (B, S)"""
  batch = len(beams.node)
  live = (beams.score > LIVE)[..., None] & (beams.path >= 0)
  held = jnp.where(live, beams.path, slots).reshape(batch, -1)
  used = jnp.zeros((batch, slots), bool).at[:, 0].set(True)
  used = used.at[jnp.arange(batch)[:, None], held].set(True, mode='drop')
  return jnp.argsort(used, -1, stable=True)
