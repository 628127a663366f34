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

from recjax.decoding.top_k import top_k
from recjax.errors import ConfigError

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
  included. lengths: (B, K) int32, the end token counted. groups: (B, K) int32
  """
  tokens: jax.Array
  scores: jax.Array
  lengths: jax.Array
  groups: jax.Array


class Rows(NamedTuple):
  """Rows of every group, N to a group: values (B, G, N), tokens (B, G, N, T), lengths (B, G, N)."""
  values: jax.Array
  tokens: jax.Array
  lengths: jax.Array


class State(NamedTuple):
  """The loop's state after t tokens: open beams, the n-best list and the end of each group."""
  t: jax.Array        # int32
  tokens: jax.Array   # (B, K, T)
  scores: jax.Array   # (B, G, s)
  done: jax.Array     # (B, G) bool
  best: Rows | None   # None where no row can end early
  cache: object


def group_search(step: Callable, cache, first_logits, cfg: SearchConfig, reorder=None) -> Beams:
  """Searches all prompts at once; what one finds does not depend on the others.

  step: (tokens (B, K) int32, cache, t int32) -> (logits (B, K, V), cache), where tokens are number
  t of each row, counted from 0. first_logits: (B, V), shared by the beams of a prompt.
  reorder: (cache, parents (B, K) int32) -> cache whose row i continues row parents[i]; needed only
  with several beams per group. Raises ConfigError where it is missing or V is too small.
  """
  size = first_logits.shape[-1]
  if size < cfg.size + len(set(cfg.eos_ids)) or max((*cfg.eos_ids, cfg.pad_id)) >= size:
    raise ConfigError(f'a vocabulary of {size} is too small for {cfg.size} beams per group, '
                      f'eos_ids={cfg.eos_ids} and pad_id={cfg.pad_id}')
  if cfg.size > 1 and reorder is None:
    raise ConfigError(f'beams={cfg.beams} in groups={cfg.groups} change places; pass reorder')

  def more(state):
    return (state.t < cfg.new_tokens) & ~jnp.all(state.done)

  def advance(state):
    last = lax.dynamic_index_in_dim(state.tokens, state.t - 1, 2, keepdims=False)
    logits, cache = step(last, state.cache, state.t - 1)
    return choose(state._replace(cache=cache), logits, cfg, reorder)

  state = start(cache, first_logits.shape[0], cfg)
  state = choose(state, first_logits[:, None], cfg, None)  # identical beams need no reordering
  return pool(lax.while_loop(more, advance, state), cfg)


def start(cache, prompts, cfg):
  """The state before the first token: one live beam in each group."""
  shape = (prompts, cfg.groups, cfg.size)
  tokens = jnp.full((prompts, cfg.beams, cfg.new_tokens), cfg.pad_id, jnp.int32)
  scores = jnp.where(jnp.arange(cfg.size) == 0, 0.0, DEAD)
  best = Rows(jnp.full(shape, -jnp.inf), tokens.reshape(*shape, -1), jnp.zeros(shape, jnp.int32))
  return State(jnp.int32(0), tokens, jnp.broadcast_to(scores, shape),
               jnp.zeros(shape[:2], bool), best if cfg.may_end else None, cache)


def choose(state, logits, cfg, reorder):
  """Lets every group choose the next token of its beams. logits: (B, K or 1, V). -> State"""
  final = np.isin(np.arange(logits.shape[-1]), cfg.eos_ids)
  values, ids = candidates(logits, final, state.t, cfg)
  ends, (scores, parents, chosen) = pick(values, ids, final, state, cfg)
  tokens, cache = state.tokens, state.cache
  if cfg.size > 1:
    base = cfg.size * jnp.arange(cfg.groups)[:, None]
    rows = (base + parents).reshape(len(tokens), cfg.beams)
    tokens = jnp.take_along_axis(tokens, rows[..., None], 1)
    cache = reorder(cache, rows) if reorder else cache
  tokens = lax.dynamic_update_index_in_dim(tokens, chosen.reshape(len(tokens), -1), state.t, 2)
  best, done = finish(ends, final, state, cfg) if cfg.may_end else (state.best, state.done)
  return State(state.t + 1, tokens, scores, done, best, cache)


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


def pick(values, ids, final, state, cfg):
  """Goes through the groups in order; each is penalised for what the ones before it chose.

  values, ids: (B, K, C). -> (ends, goes), each (scores, parents within the group, tokens), all
  (B, G, s): the best candidates of any kind, None if no row can end, and the best that go on
  """
  prompts, _, width = ids.shape

  def group(taken, given):
    g, values, ids, scores, done = given  # values, ids: (B, s, C); scores: (B, s); done: (B,)
    counts = (ids[..., None] == taken[:, None, None]).sum(-1)
    total = scores[..., None] + (values - cfg.diversity_penalty * counts)
    ends, goes = None, largest(total, ids, cfg.size)
    if cfg.may_end:
      ends = goes
      goes = largest(jnp.where(jnp.asarray(final)[ids], -jnp.inf, total), ids, cfg.size)
      idle = (0.0, jnp.arange(cfg.size), cfg.pad_id)
      goes = tuple(jnp.where(done[:, None], i, x) for i, x in zip(idle, goes))
    return lax.dynamic_update_slice(taken, goes[2], (0, g * cfg.size)), (ends, goes)

  by_group = (prompts, cfg.groups, cfg.size, width)
  given = (values.reshape(by_group), ids.reshape(by_group), state.scores, state.done)
  given = (jnp.arange(cfg.groups), *(jnp.moveaxis(x, 1, 0) for x in given))
  _, picked = lax.scan(group, jnp.full((prompts, cfg.beams), -1), given)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), picked)


def largest(total, ids, count):
  """The `count` best pairs (beam, token). total, ids: (B, s, C). -> totals, beams, tokens (B, s)"""
  width = total.shape[-1]
  total, ids = total.reshape(len(total), -1), ids.reshape(len(ids), -1)
  total, place = lax.top_k(total, count)
  return total, place // width, jnp.take_along_axis(ids, place, 1)


def finish(ends, final, state, cfg):
  """Stores rows that end with this token and closes groups that cannot improve. -> best, done"""
  total, parents, chosen = ends
  length = state.t + 1
  value = total / length.astype(jnp.float32) ** cfg.length_penalty
  rows = state.tokens.reshape(*total.shape, -1)
  rows = jnp.take_along_axis(rows, parents[..., None], 2)
  rows = lax.dynamic_update_index_in_dim(rows, chosen, state.t, 3)
  ended = jnp.asarray(final)[chosen] & ~state.done[..., None] & (state.t >= cfg.min_new_tokens)
  new = Rows(jnp.where(ended, value, -jnp.inf), rows, jnp.where(ended, length, 0))
  best = keep(state.best, new)
  full = (best.lengths > 0).all(-1)
  return best, state.done | full & (best.values.min(-1) >= value[..., 0])


def keep(best, new):
  """The n best of both, where n is the size of `best`; equal values keep the older row."""
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 2), best, new)
  values, place = lax.top_k(both.values, best.values.shape[2])
  return Rows(values, jnp.take_along_axis(both.tokens, place[..., None], 2),
              jnp.take_along_axis(both.lengths, place, 2))


def pool(state, cfg):
  """Adds the beams still open and sorts the rows of all groups by value. -> Beams"""
  shape = state.scores.shape
  rows = Rows(state.scores / float(cfg.new_tokens) ** cfg.length_penalty,
              state.tokens.reshape(*shape, -1), jnp.full(shape, cfg.new_tokens))
  if cfg.may_end:
    closed = state.done[..., None]
    still = rows._replace(values=jnp.where(closed, -jnp.inf, rows.values),
                          lengths=jnp.where(closed, 0, rows.lengths))
    rows = keep(state.best, still)
  values, place = lax.top_k(rows.values.reshape(shape[0], -1), cfg.beams)
  tokens = rows.tokens.reshape(*values.shape, -1)
  lengths = rows.lengths.reshape(values.shape)
  return Beams(jnp.take_along_axis(tokens, place[..., None], 1), values,
               jnp.take_along_axis(lengths, place, 1), place // cfg.size)
