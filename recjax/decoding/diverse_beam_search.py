"""Group (diverse) beam search: groups choose in turn, each paying for tokens chosen before it.

The contract is that of transformers 4.37: at each step group g loses `diversity_penalty` for every
beam of groups 0..g-1 that has just chosen the same token; penalties stay in the scores. It differs
in ties, which go to the lower group, beam and token, and in the end token, which a row keeps.

No group sorts the vocabulary. The groups before g have penalized at most g*s tokens (s beams per
group), so what g may choose lies among the end tokens and the g*s + s other tokens with the largest
logits of each of its rows: one exact top-k of all rows, then a scan over groups on small arrays.
Shape letters as in `lm_head`; G groups of s beams.
"""
import dataclasses
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from recjax.decoding.constraints import DEAD, LIVE, CatalogConstraint, Unconstrained
from recjax.decoding.lm_head import BoundDecoder, cache_lengths, log_sum_exp, plain_head
from recjax.distributed import sharding
from recjax.errors import ConfigError
from recjax.protocols import Constraint, NewTokens
from recjax.retrieval.top_k import top_k

UNBORN = -1e9     # the score of beams that do not exist yet, as transformers writes it
FEW_END_TOKENS = 8  # up to so many it is cheaper to rank them than to mask the vocabulary


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DiverseBeamSearch:
  """Settings of a group beam search; hashable. Raises ConfigError.

  beams: K, of all groups. groups: G. diversity_penalty: see the module. new_tokens: tokens of a row
  at most; None takes the longest title of the constraint. length_penalty: a row's value is its
  score / length ** length_penalty, the end token counted. pad_id: what a finished group emits; like
  any token it is penalized in later groups.
  """
  beams: int
  groups: int
  diversity_penalty: float = 1.0
  new_tokens: NewTokens = None
  length_penalty: float = 1.0
  pad_id: int = 0

  def __post_init__(self):
    if self.groups < 1 or self.beams < 1 or self.beams % self.groups:
      raise ConfigError(f'beams={self.beams} do not divide over groups={self.groups}; '
                        'set beams to a multiple of groups')
    if self.groups > 1 and not self.diversity_penalty > 0:
      raise ConfigError(f'diversity_penalty={self.diversity_penalty} with groups={self.groups}: '
                        'set it above 0, or groups to 1')
    if self.new_tokens is not None and self.new_tokens < 1:
      raise ConfigError(f'new_tokens={self.new_tokens} must be at least 1')
    if self.pad_id < 0:
      raise ConfigError(f'pad_id={self.pad_id} must not be negative')

  @property
  def size(self) -> int:
    """Beams per group."""
    return self.beams // self.groups


class DiverseResult(NamedTuple):
  """Finished rows of each request, best value first.

  tokens: padded with pad_id. scores: values, penalties included, below LIVE where there is no row.
  lengths: the end token counted. groups: which group found the row. state: the constraint's at its
  end.
  """
  tokens: Int[Array, 'B K T']
  scores: Float[Array, 'B K']
  lengths: Int[Array, 'B K']
  groups: Int[Array, 'B K']
  state: Int[Array, 'B K']


class GroupRows(NamedTuple):
  """Finished rows of every group, best value first.

  values: score / length ** length_penalty, -inf where there is no row. tokens: padded. lengths: 0
  where there is no row. state: the node where a row ends.
  """
  values: Float[Array, 'B G R']
  tokens: Int[Array, 'B G R T']
  lengths: Int[Array, 'B G R']
  state: Int[Array, 'B G R']


class Choices(NamedTuple):
  """What groups chose: scores, parents within the group, tokens, nodes, whether a row ends.
  is_final: whether a row ends."""
  scores: Float[Array, '... s']
  parents: Int[Array, '... s']
  tokens: Int[Array, '... s']
  nodes: Int[Array, '... s']
  is_final: Bool[Array, '... s']


class GroupState(NamedTuple):
  """The loop's state after t tokens: open beams, the finished rows and the end of each group.

  scores: sums of log-probabilities less penalties. group_done: which groups are closed. finished:
  None where no row can end early. state: the constraint's. cache: the model's.
  """
  t: Int[Array, '']
  tokens: Int[Array, 'B K T']
  scores: Float[Array, 'B G s']
  group_done: Bool[Array, 'B G']
  finished: GroupRows | None
  state: Int[Array, 'B _']
  cache: PyTree


def diverse_beam_search(model: BoundDecoder, cache: PyTree, first: Float[Array, 'B D'],
                        constraint: Constraint, search: DiverseBeamSearch) -> DiverseResult:
  """Searches all requests at once; what one finds does not depend on the others.

  cache, first: as in `beam_search`. model: as there; `reorder` is needed with several beams per
  group. constraint: `Unconstrained` or `CatalogConstraint`. search: its settings. Raises
  ConfigError where `reorder` is missing, for another constraint, where V is too small, and where
  `constraint.min_new_tokens` is above new_tokens.
  """
  if not isinstance(constraint, Unconstrained | CatalogConstraint):
    raise ConfigError('group beam search takes titles or free text, not '
                      f'{type(constraint).__name__}')
  first_logits = model.head(first[:, None]).full()
  eos_ids = constraint.eos_ids if isinstance(constraint, Unconstrained) else ()
  vocab, prompts = first_logits.shape[-1], len(first)
  if vocab < search.size + len(set(eos_ids)) or max((*eos_ids, search.pad_id)) >= vocab:
    raise ConfigError(f'a vocabulary of {vocab} is too small for {search.size} beams per group, '
                      f'eos_ids={eos_ids} and pad_id={search.pad_id}')
  if search.size > 1 and model.reorder is None:
    raise ConfigError(f'beams={search.beams} in groups={search.groups} change places; pass reorder')
  if constraint.min_new_tokens > search.new_tokens:
    raise ConfigError(f'min_new_tokens={constraint.min_new_tokens} is above new_tokens='
                      f'{search.new_tokens}')

  def step(state: GroupState) -> GroupState:
    last = lax.dynamic_index_in_dim(state.tokens, state.t - 1, 2, keepdims=False)
    hidden, cache = model.step(last, state.cache, state.t - 1)
    return advance_groups(state._replace(cache=cache), model.head(hidden).full(), constraint,
                          search, model.reorder)

  state = initial_state(cache, prompts, constraint, search)
  # identical beams need no reordering
  state = advance_groups(state, first_logits, constraint, search, None)
  for limit in cache_lengths(search.new_tokens) if model.grow else [search.new_tokens]:
    cache = model.grow(state.cache, limit) if model.grow else state.cache
    state = lax.while_loop(lambda s, limit=limit: (s.t < limit) & ~jnp.all(s.group_done), step,
                           state._replace(cache=cache))
  return merge_groups(state, search)


def initial_state(cache: PyTree, batch: int, constraint: Unconstrained | CatalogConstraint,
                  search: DiverseBeamSearch) -> GroupState:
  """The state before the first token: one live beam in each group. cache: the model's after the
  prompts. batch: B. constraint, search: as of `diverse_beam_search`."""
  shape = (batch, search.groups, search.size)
  tokens = jnp.full((batch, search.beams, search.new_tokens), search.pad_id, jnp.int32)
  scores = jnp.where(jnp.arange(search.size) == 0, 0.0, UNBORN)
  zeros = jnp.zeros(shape, jnp.int32)
  finished = GroupRows(jnp.full(shape, -jnp.inf), tokens.reshape(*shape, -1), zeros, zeros)
  may_end = isinstance(constraint, CatalogConstraint) or (
      bool(constraint.eos_ids) and constraint.min_new_tokens < search.new_tokens)
  return GroupState(jnp.int32(0), tokens, jnp.broadcast_to(scores, shape),
                    jnp.zeros(shape[:2], bool), finished if may_end else None,
                    constraint.start(batch), cache)


def advance_groups(state: GroupState, logits: Float[Array, 'B _ V'],
                   constraint: Unconstrained | CatalogConstraint, search: DiverseBeamSearch,
                   reorder: Callable | None) -> GroupState:
  """Lets every group choose the next token of its beams.

  logits: of all beams, or of one for all. state: before the step. constraint, search: as of
  `diverse_beam_search`. reorder: as of `Decoder`, None where beams stay in place.
  """
  if isinstance(constraint, Unconstrained):
    is_end = np.isin(np.arange(logits.shape[-1]), constraint.eos_ids)
    log_probs, tokens = free_candidates(logits, is_end, state.t, constraint.min_new_tokens, search)
    ended, running = choose_by_group(log_probs, tokens, tokens, jnp.asarray(is_end)[tokens], state,
                                     search)
  else:
    def choose(log_probs: Array, tokens: Array, nodes: Array) -> tuple[Choices | None, Choices]:
      is_final = constraint.is_final(nodes, tokens, state.t)
      shape = (len(tokens), search.beams, tokens.shape[-1])
      log_probs, tokens, nodes, is_final = (
          jnp.broadcast_to(x, shape) for x in (log_probs, tokens, nodes, is_final))
      return choose_by_group(log_probs, tokens, nodes, is_final, state, search)
    ended, running = constraint.candidates(plain_head(logits), state.state, state.t, 0, choose)
  tokens, cache, batch = state.tokens, state.cache, len(state.tokens)
  if search.size > 1:
    group_start = search.size * jnp.arange(search.groups)[:, None]
    parents = (group_start + running.parents).reshape(batch, search.beams)
    tokens = jnp.take_along_axis(tokens, parents[..., None], 1)
    cache = reorder(cache, parents) if reorder else cache
  tokens = lax.dynamic_update_index_in_dim(tokens, running.tokens.reshape(batch, -1), state.t, 2)
  finished, group_done = state.finished, state.group_done
  if finished is not None:
    finished, group_done = store_finished(cast(Choices, ended), state, search)
  return GroupState(state.t + 1, tokens, running.scores, group_done, finished,
                    running.nodes.reshape(batch, -1), cache)


def free_candidates(logits: Float[Array, 'B _ V'], is_end: Bool[np.ndarray, ' V'],
                    t: Int[Array, ''], min_new_tokens: int, search: DiverseBeamSearch
                    ) -> tuple[Float[Array, 'B K C'], Int[Array, 'B K C']]:
  """The tokens that any group can choose, ascending, so that ties go to the lower one.

  is_end: which tokens end a row. logits: of all beams, or of one for all. t: number of the token.
  min_new_tokens: tokens before which none may end a row. search: as of `diverse_beam_search`.
  -> log-probabilities, those of end tokens -inf while they are forbidden; tokens
  """
  logits = logits.astype(jnp.float32)
  vocab = len(is_end)
  end_tokens = np.flatnonzero(is_end).astype(np.int32)
  if len(end_tokens) <= FEW_END_TOKENS:
    values, tokens = top_k(logits, min(search.beams + len(end_tokens), vocab))
  else:  # all of them, and the best of the others
    values, tokens = top_k(jnp.where(is_end, -jnp.inf, logits),
                           min(search.beams, vocab - len(end_tokens)))
    values = jnp.concatenate([values, logits[..., end_tokens]], -1)
    all_ends = jnp.broadcast_to(end_tokens, (*tokens.shape[:-1], len(end_tokens)))
    tokens = jnp.concatenate([tokens, all_ends], -1)
  if len(end_tokens):
    values = jnp.where(jnp.asarray(is_end)[tokens] & (t < min_new_tokens), -jnp.inf, values)
  values -= log_sum_exp(logits)
  tokens, values = lax.sort((tokens, values), num_keys=1)
  # Whole on each device of a row: groups choose in turn, and would else gather them in each turn.
  values, tokens = sharding.shard_rows(values), sharding.shard_rows(tokens)
  shape = (len(logits), search.beams, tokens.shape[-1])
  return jnp.broadcast_to(values, shape), jnp.broadcast_to(tokens, shape)


def choose_by_group(log_probs: Float[Array, 'B K C'], tokens: Int[Array, 'B K C'],
                    nodes: Int[Array, 'B K C'], is_final: Bool[Array, 'B K C'], state: GroupState,
                    search: DiverseBeamSearch) -> tuple[Choices | None, Choices]:
  """Goes through the groups in order; each is penalized for what the ones before it chose.

  log_probs, tokens, nodes, is_final: of the candidates of each beam. state: before this token.
  search: as of `diverse_beam_search`. -> the best candidates of any kind, None if no row can end;
  the best that go on; (B, G, s)
  """
  prompts, _, width = tokens.shape

  def choose_for_group(chosen: Array, given: tuple) -> tuple[Array, tuple[Choices | None, Choices]]:
    g, log_probs, tokens, nodes, is_final, scores, done = given  # (B, s, C); (B, s); (B,)
    counts = (tokens[..., None] == chosen[:, None, None]).sum(-1)
    total = scores[..., None] + (log_probs - search.diversity_penalty * counts)
    ended, running = None, largest(total, tokens, nodes, is_final, search.size)
    if state.finished is not None:
      ended = running
      running = largest(jnp.where(is_final, DEAD, total), tokens, nodes, is_final, search.size)
      idle = (0.0, jnp.arange(search.size), search.pad_id, 0, False)
      running = Choices(*(jnp.where(done[:, None], i, x) for i, x in zip(idle, running)))
    counted = jnp.where(running.scores > LIVE, running.tokens, -1)  # the dead cost nobody
    return lax.dynamic_update_slice(chosen, counted, (0, g * search.size)), (ended, running)

  by_group = (prompts, search.groups, search.size, width)
  given = (*(x.reshape(by_group) for x in (log_probs, tokens, nodes, is_final)), state.scores,
           state.group_done)
  given = (jnp.arange(search.groups), *(jnp.moveaxis(x, 1, 0) for x in given))
  _, choices = lax.scan(choose_for_group, jnp.full((prompts, search.beams), -1), given)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), choices)


def largest(total: Float[Array, 'B s C'], tokens: Int[Array, 'B s C'], nodes: Int[Array, 'B s C'],
            is_final: Bool[Array, 'B s C'], count: int) -> Choices:
  """The `count` best pairs of beam and token of a group. total, tokens, nodes, is_final: of the
  candidates of each beam; total is what they are ordered by. -> (B, count)"""
  width = total.shape[-1]
  flat = [x.reshape(len(x), -1) for x in (total, tokens, nodes, is_final)]
  lack = count - flat[0].shape[1]
  if lack > 0:  # fewer children than beams
    flat = [jnp.pad(x, [(0, 0), (0, lack)], constant_values=fill)
            for x, fill in zip(flat, (DEAD, 0, 0, False))]
  total, place = lax.top_k(flat[0], count)
  tokens, nodes, is_final = (jnp.take_along_axis(x, place, 1) for x in flat[1:])
  return Choices(total, jnp.minimum(place // width, count - 1), tokens, nodes, is_final)


def store_finished(ended: Choices, state: GroupState, search: DiverseBeamSearch
                   ) -> tuple[GroupRows, Bool[Array, 'B G']]:
  """Stores rows that end with this token and closes groups that cannot improve.

  ended: the best candidates of any kind. state: before this token. search: as of
  `diverse_beam_search`. -> finished rows, which groups are done
  """
  length = state.t + 1
  value = ended.scores / length.astype(jnp.float32) ** search.length_penalty
  tokens = state.tokens.reshape(*ended.scores.shape, -1)
  tokens = jnp.take_along_axis(tokens, ended.parents[..., None], 2)
  tokens = lax.dynamic_update_index_in_dim(tokens, ended.tokens, state.t, 3)
  ends_now = ended.is_final & ~state.group_done[..., None] & (ended.scores > LIVE)
  new = GroupRows(jnp.where(ends_now, value, -jnp.inf), tokens, jnp.where(ends_now, length, 0),
                  ended.nodes)
  finished = merge_rows(cast(GroupRows, state.finished), new)
  all_found = (finished.lengths > 0).all(-1)
  closed = all_found & (finished.values.min(-1) >= value[..., 0])
  return finished, state.group_done | closed | (ended.scores[..., 0] <= LIVE)


def merge_rows(old: GroupRows, new: GroupRows) -> GroupRows:
  """The best rows of both, as many as `old` has; equal values keep the older row. new: of the same
  groups."""
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 2), old, new)
  values, place = lax.top_k(both.values, old.values.shape[2])
  return GroupRows(values, jnp.take_along_axis(both.tokens, place[..., None], 2),
                   jnp.take_along_axis(both.lengths, place, 2),
                   jnp.take_along_axis(both.state, place, 2))


def merge_groups(state: GroupState, search: DiverseBeamSearch) -> DiverseResult:
  """Adds the beams still open and sorts the rows of all groups by value. state: after the last
  token. search: as of `diverse_beam_search`."""
  shape = state.scores.shape
  rows = GroupRows(state.scores / float(search.new_tokens) ** search.length_penalty,
                   state.tokens.reshape(*shape, -1), jnp.full(shape, search.new_tokens),
                   state.state.reshape(shape))
  if state.finished is not None:
    closed = state.group_done[..., None] | (state.scores <= LIVE)
    still_open = rows._replace(values=jnp.where(closed, -jnp.inf, rows.values),
                               lengths=jnp.where(closed, 0, rows.lengths))
    rows = merge_rows(state.finished, still_open)
  values, place = lax.top_k(rows.values.reshape(shape[0], -1), search.beams)
  tokens = rows.tokens.reshape(*values.shape, -1)
  ranked = lambda x: jnp.take_along_axis(x.reshape(values.shape), place, 1)  # noqa: E731
  return DiverseResult(jnp.take_along_axis(tokens, place[..., None], 1), values,
                       ranked(rows.lengths), place // search.size, ranked(rows.state))
