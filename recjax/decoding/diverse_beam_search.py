"""Group (diverse) beam search: groups choose in turn, each paying for tokens chosen before it.

The contract is that of transformers 4.37: at each step group g loses `diversity_penalty` for every
beam of groups 0..g-1 that has just chosen the same token; penalties stay in the scores. It differs
in ties, which go to the lower group, beam and token, and in the end token, which a row keeps.

No group sorts the vocabulary. The groups before g have penalised at most g*s tokens (s beams per
group), so what g may choose lies among the end tokens and the g*s + s other tokens with the largest
logits of each of its rows: one exact top-k of all rows, then a scan over groups on small arrays.
"""
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.decoding.constraints import DEAD as DEAD_TOKEN
from recjax.decoding.constraints import LIVE
from recjax.decoding.lm_head import plain_head, stages
from recjax.errors import ConfigError
from recjax.retrieval.top_k import top_k

DEAD = -1e9  # the score of beams that do not exist yet, as transformers writes it

FEW = 8       # up to so many end tokens it is cheaper to rank them than to mask the vocabulary


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Settings of a group beam search; hashable, so a static argument. Raises ConfigError.

  length_penalty: a row's value is its score / length ** length_penalty, the end token counted.
  pad_id: what a finished group emits; like any token it is penalised in later groups.
  """
  beams: int
  groups: int
  diversity_penalty: float
  new_tokens: int
  min_new_tokens: int = 0
  eos_ids: tuple = ()
  pad_id: int = 0
  length_penalty: float = 1.0

  def __post_init__(self):
    if self.groups < 1 or self.beams < 1 or self.beams % self.groups:
      raise ConfigError(f'beams={self.beams} do not divide over groups={self.groups}; '
                        'set beams to a multiple of groups')
    if self.groups > 1 and not self.diversity_penalty > 0:
      raise ConfigError(f'diversity_penalty={self.diversity_penalty} with groups={self.groups}: '
                        'set it above 0, or groups to 1')
    if self.new_tokens < 1 or not 0 <= self.min_new_tokens <= self.new_tokens:
      raise ConfigError(f'min_new_tokens={self.min_new_tokens} and new_tokens={self.new_tokens}: '
                        'they must satisfy 0 <= min <= new and new >= 1')
    if any(i < 0 for i in (*self.eos_ids, self.pad_id)):
      raise ConfigError(f'eos_ids={self.eos_ids} and pad_id={self.pad_id} must not be negative')

  @property
  def size(self):
    """Beams per group."""
    return self.beams // self.groups

  @property
  def may_end(self):
    """Whether any row can end before new_tokens."""
    return bool(self.eos_ids) and self.min_new_tokens < self.new_tokens


class Beams(NamedTuple):
  """Finished rows of each prompt, best value first; T = new_tokens.

  tokens: (B, K, T) int32, padded with pad_id. scores: (B, K) float32, penalties and length
  included, below LIVE where there is no row. lengths: (B, K) int32, the end token counted. groups:
  (B, K) int32. node: (B, K) int32, where each row ended under a constraint
  """
  tokens: jax.Array
  scores: jax.Array
  lengths: jax.Array
  groups: jax.Array
  node: jax.Array


class Rows(NamedTuple):
  """Rows of every group, N to a group: values, lengths and node (B, G, N), tokens (B, G, N, T)."""
  values: jax.Array
  tokens: jax.Array
  lengths: jax.Array
  node: jax.Array


class Picks(NamedTuple):
  """What the groups chose: scores, parents within the group, tokens, nodes, whether a row ends
  there; each (B, G, s)."""
  scores: jax.Array
  parents: jax.Array
  tokens: jax.Array
  node: jax.Array
  over: jax.Array


class State(NamedTuple):
  """The loop's state after t tokens: open beams, the n-best list and the end of each group."""
  t: jax.Array        # int32
  tokens: jax.Array   # (B, K, T)
  scores: jax.Array   # (B, G, s)
  done: jax.Array     # (B, G) bool
  best: Rows | None   # None where no row can end early
  node: jax.Array     # (B, K), the constraint's
  cache: object


def diverse_beam_search(step: Callable, cache, first_logits, cfg: SearchConfig, reorder=None,
                 constraint=None, grow=None) -> Beams:
  """Searches all prompts at once; what one finds does not depend on the others.

  step: (tokens (B, K) int32, cache, t int32) -> (logits (B, K, V), cache), where tokens are number
  t of each row, counted from 0. first_logits: (B, V), shared by the beams of a prompt.
  reorder: (cache, parents (B, K) int32) -> cache whose row i continues row parents[i]; needed only
  with several beams per group. constraint: None or Titles; its ends then take the place of
  cfg.eos_ids. grow: as in `beam_search`. Raises ConfigError where reorder is missing or V is too
  small.
  """
  size = first_logits.shape[-1]
  if size < cfg.size + len(set(cfg.eos_ids)) or max((*cfg.eos_ids, cfg.pad_id)) >= size:
    raise ConfigError(f'a vocabulary of {size} is too small for {cfg.size} beams per group, '
                      f'eos_ids={cfg.eos_ids} and pad_id={cfg.pad_id}')
  if cfg.size > 1 and reorder is None:
    raise ConfigError(f'beams={cfg.beams} in groups={cfg.groups} change places; pass reorder')

  def advance(state):
    last = lax.dynamic_index_in_dim(state.tokens, state.t - 1, 2, keepdims=False)
    logits, cache = step(last, state.cache, state.t - 1)
    return choose(state._replace(cache=cache), logits, cfg, reorder, constraint)

  prompts = first_logits.shape[0]
  node = constraint.start(prompts) if constraint else jnp.zeros((prompts, 1), jnp.int32)
  state = start(cache, prompts, node, cfg, constraint is not None)
  # identical beams need no reordering
  state = choose(state, first_logits[:, None], cfg, None, constraint)
  for limit in stages(cfg.new_tokens) if grow else [cfg.new_tokens]:
    cache = grow(state.cache, limit) if grow else state.cache
    state = lax.while_loop(lambda s, limit=limit: (s.t < limit) & ~jnp.all(s.done), advance,
                           state._replace(cache=cache))
  return pool(state, cfg)


def start(cache, prompts, node, cfg, may_end):
  """The state before the first token: one live beam in each group."""
  shape = (prompts, cfg.groups, cfg.size)
  tokens = jnp.full((prompts, cfg.beams, cfg.new_tokens), cfg.pad_id, jnp.int32)
  scores = jnp.where(jnp.arange(cfg.size) == 0, 0.0, DEAD)
  none = jnp.zeros(shape, jnp.int32)
  best = Rows(jnp.full(shape, -jnp.inf), tokens.reshape(*shape, -1), none, none)
  return State(jnp.int32(0), tokens, jnp.broadcast_to(scores, shape), jnp.zeros(shape[:2], bool),
               best if may_end or cfg.may_end else None, node, cache)


def choose(state, logits, cfg, reorder, constraint):
  """Lets every group choose the next token of its beams. logits: (B, K or 1, V). -> State"""
  if constraint is None:
    final = np.isin(np.arange(logits.shape[-1]), cfg.eos_ids)
    values, ids = candidates(logits, final, state.t, cfg)
    ends, goes = pick(values, ids, ids, jnp.asarray(final)[ids], state, cfg)
  else:
    def among(values, ids, nodes):
      over = constraint.ends(nodes, ids, state.t)
      values = jnp.where(over & (state.t + 1 < cfg.min_new_tokens), DEAD_TOKEN, values)
      shape = (len(ids), cfg.beams, ids.shape[-1])
      return pick(*(jnp.broadcast_to(x, shape) for x in (values, ids, nodes, over)), state, cfg)
    ends, goes = constraint.expand(plain_head(logits), state.node, state.t, 0, among)
  tokens, cache = state.tokens, state.cache
  if cfg.size > 1:
    base = cfg.size * jnp.arange(cfg.groups)[:, None]
    rows = (base + goes.parents).reshape(len(tokens), cfg.beams)
    tokens = jnp.take_along_axis(tokens, rows[..., None], 1)
    cache = reorder(cache, rows) if reorder else cache
  tokens = lax.dynamic_update_index_in_dim(tokens, goes.tokens.reshape(len(tokens), -1), state.t, 2)
  best, done = finish(ends, state, cfg) if state.best is not None else (None, state.done)
  node = goes.node.reshape(len(tokens), -1)
  return State(state.t + 1, tokens, goes.scores, done, best, node, cache)


def candidates(logits, final, t, cfg):
  """The tokens that any group can choose, ascending, so that ties go to the lower one.

  logits: (B, K or 1, V). final: (V,) bool, numpy, the end tokens. -> log-probabilities (B, K, C)
  float32, those of end tokens -inf while they are forbidden, and ids (B, K, C) int32
  """
  logits = logits.astype(jnp.float32)
  ends = np.flatnonzero(final).astype(np.int32)
  if len(ends) <= FEW:
    values, ids = top_k(logits, min(cfg.beams + len(ends), len(final)))
  else:  # all of them, and the best of the others
    values, ids = top_k(jnp.where(final, -jnp.inf, logits), min(cfg.beams, len(final) - len(ends)))
    values = jnp.concatenate([values, logits[..., ends]], -1)
    ids = jnp.concatenate([ids, jnp.broadcast_to(ends, (*ids.shape[:-1], len(ends)))], -1)
  if len(ends):
    values = jnp.where(jnp.asarray(final)[ids] & (t < cfg.min_new_tokens), -jnp.inf, values)
  values -= jax.nn.logsumexp(logits, -1, keepdims=True)
  ids, values = lax.sort((ids, values), num_keys=1)
  shape = (len(logits), cfg.beams, ids.shape[-1])
  return jnp.broadcast_to(values, shape), jnp.broadcast_to(ids, shape)


def pick(values, ids, nodes, over, state, cfg):
  """Goes through the groups in order; each is penalised for what the ones before it chose.

  values, ids, nodes, over: (B, K, C). -> (ends, goes): Picks of the best candidates of any kind,
  None if no row can end, and of the best that go on
  """
  prompts, _, width = ids.shape

  def group(taken, given):
    g, values, ids, nodes, over, scores, done = given  # (B, s, C); scores: (B, s); done: (B,)
    counts = (ids[..., None] == taken[:, None, None]).sum(-1)
    total = scores[..., None] + (values - cfg.diversity_penalty * counts)
    ends, goes = None, largest(total, ids, nodes, over, cfg.size)
    if state.best is not None:
      ends = goes
      goes = largest(jnp.where(over, DEAD_TOKEN, total), ids, nodes, over, cfg.size)
      idle = Picks(0.0, jnp.arange(cfg.size), cfg.pad_id, 0, False)
      goes = Picks(*(jnp.where(done[:, None], i, x) for i, x in zip(idle, goes)))
    met = jnp.where(goes.scores > LIVE, goes.tokens, -1)  # what does not exist costs nobody
    return lax.dynamic_update_slice(taken, met, (0, g * cfg.size)), (ends, goes)

  by_group = (prompts, cfg.groups, cfg.size, width)
  given = (*(x.reshape(by_group) for x in (values, ids, nodes, over)), state.scores, state.done)
  given = (jnp.arange(cfg.groups), *(jnp.moveaxis(x, 1, 0) for x in given))
  _, picked = lax.scan(group, jnp.full((prompts, cfg.beams), -1), given)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), picked)


def largest(total, ids, nodes, over, count):
  """The `count` best pairs (beam, token) of a group. Arguments: (B, s, C). -> Picks (B, s)"""
  width = total.shape[-1]
  flat = [x.reshape(len(x), -1) for x in (total, ids, nodes, over)]
  lack = count - flat[0].shape[1]
  if lack > 0:  # fewer children than beams
    flat = [jnp.pad(x, [(0, 0), (0, lack)], constant_values=fill)
            for x, fill in zip(flat, (DEAD_TOKEN, 0, 0, False))]
  total, place = lax.top_k(flat[0], count)
  ids, nodes, over = (jnp.take_along_axis(x, place, 1) for x in flat[1:])
  return Picks(total, jnp.minimum(place // width, count - 1), ids, nodes, over)


def finish(ends, state, cfg):
  """Stores rows that end with this token and closes groups that cannot improve. -> best, done"""
  length = state.t + 1
  value = ends.scores / length.astype(jnp.float32) ** cfg.length_penalty
  rows = state.tokens.reshape(*ends.scores.shape, -1)
  rows = jnp.take_along_axis(rows, ends.parents[..., None], 2)
  rows = lax.dynamic_update_index_in_dim(rows, ends.tokens, state.t, 3)
  ended = ends.over & ~state.done[..., None] & (state.t >= cfg.min_new_tokens)
  ended &= ends.scores > LIVE
  new = Rows(jnp.where(ended, value, -jnp.inf), rows, jnp.where(ended, length, 0), ends.node)
  best = keep(state.best, new)
  full = (best.lengths > 0).all(-1)
  closed = full & (best.values.min(-1) >= value[..., 0])
  return best, state.done | closed | (ends.scores[..., 0] <= LIVE)


def keep(best, new):
  """The n best of both, where n is the size of `best`; equal values keep the older row."""
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 2), best, new)
  values, place = lax.top_k(both.values, best.values.shape[2])
  return Rows(values, jnp.take_along_axis(both.tokens, place[..., None], 2),
              jnp.take_along_axis(both.lengths, place, 2),
              jnp.take_along_axis(both.node, place, 2))


def pool(state, cfg):
  """Adds the beams still open and sorts the rows of all groups by value. -> Beams"""
  shape = state.scores.shape
  rows = Rows(state.scores / float(cfg.new_tokens) ** cfg.length_penalty,
              state.tokens.reshape(*shape, -1), jnp.full(shape, cfg.new_tokens),
              state.node.reshape(shape))
  if state.best is not None:
    closed = state.done[..., None] | (state.scores <= LIVE)
    still = rows._replace(values=jnp.where(closed, -jnp.inf, rows.values),
                          lengths=jnp.where(closed, 0, rows.lengths))
    rows = keep(state.best, still)
  values, place = lax.top_k(rows.values.reshape(shape[0], -1), cfg.beams)
  tokens = rows.tokens.reshape(*values.shape, -1)
  at = lambda x: jnp.take_along_axis(x.reshape(values.shape), place, 1)  # noqa: E731
  return Beams(jnp.take_along_axis(tokens, place[..., None], 1), values, at(rows.lengths),
               place // cfg.size, at(rows.node))
