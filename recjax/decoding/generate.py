"""The public face: prompts in, rows and items out, one compiled program for each shape.

Shape letters as in `lm_head`.
"""
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from recjax.decoding.beam_search import BeamSearch, beam_search
from recjax.decoding.constraints import (
  LIVE,
  CatalogConstraint,
  Unconstrained,
  with_new_tokens,
)
from recjax.decoding.device_trie import DeviceTrie, forced_token
from recjax.decoding.diverse_beam_search import DiverseBeamSearch, diverse_beam_search
from recjax.decoding.forced_sampling import sample_forced
from recjax.decoding.item_filter import ItemFilter
from recjax.decoding.lm_head import bind, cache_lengths
from recjax.decoding.lookahead_beam_search import LookaheadBeamSearch, lookahead_beam_search
from recjax.decoding.sampling import Chance, Draws, Sampling, sample
from recjax.decoding.trie import Trie
from recjax.distributed import multihost
from recjax.errors import ConfigError, DataError, UserError
from recjax.progress import doing
from recjax.protocols import Constraint, Decoder

Search = BeamSearch | DiverseBeamSearch | LookaheadBeamSearch | Sampling


@dataclasses.dataclass(frozen=True)
class Generated:
  """Rows of every request, best first (sampled rows in order); numpy.

  tokens: padded. exists: false where there are fewer rows than asked for. complete: ended and not
  cut at T. places: of a `CatalogConstraint`, the first place of each title and the one after its
  last, or None. steps: how often the model was asked. token_scores: where asked for. scores: sums
  of log-probabilities, divided as the search's length_penalty says. lengths: tokens of each row.
  """
  tokens: Int[np.ndarray, 'B K T']
  scores: Float[np.ndarray, 'B K']
  lengths: Int[np.ndarray, 'B K']
  exists: Bool[np.ndarray, 'B K']
  complete: Bool[np.ndarray, 'B K']
  places: Int[np.ndarray, 'B K 2'] | None
  steps: int
  token_scores: Float[np.ndarray, 'B K T'] | None = None

  def row(self, request: int, rank: int) -> list[int]:
    """The tokens of one row, its end token included. request, rank: its numbers, from 0."""
    return self.tokens[request, rank, :self.lengths[request, rank]].tolist()

  def items(self, trie: Trie | DeviceTrie, item_filter: ItemFilter | None = None,
            every: bool = False) -> list[list[tuple[int, float]]]:
    """The items of each request with their scores, best first, 1..N; fewer where fewer exist.

    trie, item_filter: those of the constraint. Items that share a title share a row; of those the
    first open one is given, or with `every` all.
    """
    everything = []
    places: Any = self.places
    for b, (spans, scores) in enumerate(zip(places, self.scores)):
      items = []
      for (lo, hi), score, good in zip(spans, scores, self.exists[b] & self.complete[b]):
        if good:
          places = [p for p in range(lo, hi) if item_filter is None or _is_open(item_filter, b, p)]
          items += [(int(trie.item[p]) + 1, float(score)) for p in places[:None if every else 1]]
      everything.append(items)
    return everything

  def best(self, count: int, trie: Trie | DeviceTrie, item_filter: ItemFilter | None = None,
           every: bool = True) -> tuple[Int[np.ndarray, 'B C'], Float[np.ndarray, 'B C']]:
    """`items` as arrays: items 1..N and scores, 0 and -inf where there are fewer than `count`.
    trie, item_filter, every: as of `items`."""
    items = np.zeros((len(self.scores), count), np.int32)
    scores = np.full(items.shape, -np.inf, np.float32)
    for b, row in enumerate(self.items(trie, item_filter, every)):
      row = row[:count]
      items[b, :len(row)] = [i for i, _ in row]
      scores[b, :len(row)] = [s for _, s in row]
    return items, scores


def _is_open(item_filter: ItemFilter, request: int, place: int) -> bool:
  """Whether one place is open, on the host."""
  is_open = True
  if item_filter.allowed_bits is not None:
    row = cast(Array, item_filter.list_of_request)[request]
    word = np.asarray(item_filter.allowed_bits[row, place >> 5])
    is_open = bool(word >> np.uint32(place & 31) & np.uint32(1))
  return is_open and (item_filter.taken is None
                      or place not in np.asarray(item_filter.taken[request]))


def generate(decoder: Decoder, params: PyTree, prompts: Sequence, search: Search,
             constraint: Constraint | None = None, *, seed: int | Draws = 0, bucket: int = 64,
             longest_prompt: int = 0) -> Generated:
  """Continues prompts by beam search, group beam search, look-ahead beam search or sampling.

  params: of the decoder. prompts: lists of token ids, of any lengths. search: `BeamSearch` (one
  beam is greedy), `DiverseBeamSearch`, `LookaheadBeamSearch` or `Sampling`; its new_tokens is by
  default the longest row of the constraint. constraint: `Unconstrained(eos_ids)`,
  `CatalogConstraint`, `CodeConstraint`, `ItemSpanConstraint` or `RetrievalConstraint`; None is
  every token, without an end. seed: of samples, or Draws with one of each request. bucket: prompts
  are padded to a multiple of it, and share a program that way. longest_prompt: refuse longer ones
  (0: no bound). Raises DataError for an empty or too long prompt, UserError where the model gives
  NaN, ConfigError for a search and a constraint that do not go together.
  """
  rule: Any = Unconstrained() if constraint is None else constraint
  tokens, lengths = pad_prompts(prompts, bucket, longest_prompt, search.pad_id)
  search = with_new_tokens(search, rule)
  _check_pair(decoder, search, rule)
  with doing(f'the search for {tokens.shape[0]:,} prompts of {tokens.shape[1]:,} tokens'):
    arrays = multihost.to_host(_run(decoder, params, tokens, lengths, rule, search,
                                    as_chance(seed)))
  raise_on_nan(arrays.pop('nan_step'))
  return Generated(steps=int(arrays.pop('steps')), **arrays)


def as_chance(seed: int | Draws) -> Chance:
  """What draws go by. seed: as of `generate`."""
  return seed if isinstance(seed, Draws) else jax.random.key(seed)


def _check_pair(decoder: Decoder, search: Search, constraint: Constraint) -> None:
  """Raises ConfigError where a search cannot take the constraint, or needs more of the decoder."""
  name = type(constraint).__name__
  has_forced = hasattr(constraint, 'forced_token')
  if isinstance(search, Sampling):
    if search.pass_width and not (has_forced and decoder.extend):
      raise ConfigError(f'Sampling(pass_width={search.pass_width}) needs a constraint with forced '
                        f'tokens, not {name}, and a decoder with extend')
  elif isinstance(search, LookaheadBeamSearch):
    if not isinstance(constraint, CatalogConstraint) or constraint.min_new_tokens:
      raise ConfigError('LookaheadBeamSearch needs a CatalogConstraint without min_new_tokens, not '
                        f'{name}')
    if not decoder.extend:
      raise ConfigError('LookaheadBeamSearch needs a decoder with extend')
  elif not getattr(constraint, 'for_beams', True):
    raise ConfigError(f'{name} goes with Sampling (temperature 0 is greedy), not with beams')


def raise_on_nan(nan_step: Int[np.ndarray, ' B']) -> None:
  """Raises UserError where a request met NaN. nan_step: the new token, or -1."""
  for request in np.flatnonzero(nan_step >= 0)[:1]:
    raise UserError(f'the model gave NaN for request {request} at new token {nan_step[request]}; '
                    'its weights or their type are broken: try float32, then check the checkpoint')


def pad_prompts(prompts: Sequence, bucket: int, longest: int = 0, pad_id: int = 0
                ) -> tuple[Int[np.ndarray, 'B P'], Int[np.ndarray, ' B']]:
  """Prompts as an array, padded on the right to a multiple of `bucket`. -> tokens, lengths

  longest: the most tokens that a prompt may have, 0 for any. prompts: token lists. pad_id: what
  fills up. Raises DataError for a longer prompt, an empty one, or none at all.
  """
  lengths = np.array([len(p) for p in prompts], np.int32)
  if not len(lengths) or lengths.min() < 1:
    where = 'no prompt was given' if not len(lengths) else f'prompt {lengths.argmin()} is empty'
    raise DataError(f'{where}; a search continues at least one token')
  if longest and lengths.max() > longest:
    raise DataError(f'prompt {lengths.argmax()} has {lengths.max()} tokens, above longest_prompt='
                    f'{longest}; shorten the history or raise the bound')
  tokens = np.full((len(lengths), -(-int(lengths.max()) // bucket) * bucket), pad_id, np.int32)
  for row, prompt in zip(tokens, prompts):
    row[:len(prompt)] = prompt
  return tokens, lengths


@functools.partial(jax.jit, static_argnums=0)
def _run(decoder: Decoder, params: PyTree, tokens: Int[Array, 'B P'], lengths: Int[Array, ' B'],
         constraint: Constraint, search: Search, key: Chance) -> dict:
  """The whole generation on the device. -> the arrays of `Generated`, and nan_step"""
  model = bind(decoder, params)
  if isinstance(search, LookaheadBeamSearch):
    first, cache = decoder.start(params, tokens, lengths, 1, search.slots + 1)
    titles = cast(CatalogConstraint, constraint)
    return _lookahead(lookahead_beam_search(model, cache, first, titles, search), titles, search)
  if isinstance(search, Sampling):
    beams, room, run = search.samples, search.new_tokens, sample
    if search.pass_width:
      beams, room, run = 1, search.samples * search.new_tokens + 1, sample_forced
    first, cache = decoder.start(params, tokens, lengths, beams, room)
    rows = run(model, cache, first, constraint, search, key)
    return _arrays(rows.tokens, rows.scores, rows.lengths, rows.lengths > 0, rows.complete,
                   rows.state, constraint, rows.steps, rows.nan_step,
                   rows.token_scores if search.token_scores else None)
  room = cache_lengths(search.new_tokens)[0] if decoder.grow else search.new_tokens
  first, cache = decoder.start(params, tokens, lengths, search.beams, room)
  if isinstance(search, DiverseBeamSearch):
    return _diverse(diverse_beam_search(model, cache, first, constraint, search), constraint)
  found = beam_search(model, cache, first, constraint, search)
  rows = found.rows
  return _arrays(rows.tokens, rows.scores, rows.lengths, found.exists, rows.complete, rows.state,
                 constraint, found.steps, found.nan_step, rows.token_scores)


def _diverse(found, constraint: Constraint) -> dict:
  last = jnp.maximum(found.lengths - 1, 0)
  last_token = jnp.take_along_axis(found.tokens, last[..., None], 2)[..., 0]
  complete = constraint.is_final(found.state, last_token, found.lengths - 1)
  return _arrays(found.tokens, found.scores, found.lengths, found.scores > LIVE, complete,
                 found.state, constraint, found.lengths.max(), jnp.full(len(found.scores), -1),
                 None)


def _lookahead(found, constraint: CatalogConstraint, search: LookaheadBeamSearch) -> dict:
  rows = found.finished
  position = jnp.arange(search.new_tokens)
  tokens = forced_token(constraint.trie, rows.node[..., None], jnp.broadcast_to(
      position, (*rows.node.shape, len(position))))  # a node's first title begins with its tokens
  exists = rows.value > LIVE
  tokens = jnp.where((position < rows.length[..., None]) & exists[..., None], tokens, search.pad_id)
  return _arrays(tokens, rows.value, rows.length, exists, rows.complete, rows.node, constraint,
                 found.passes.max() + 1, found.nan_step, None)


def _arrays(tokens, scores, lengths, exists, complete, state, constraint, steps, nan_step,
            token_scores) -> dict:
  places = None
  if isinstance(constraint, CatalogConstraint):
    places = jnp.stack([constraint.trie.lo[state], constraint.trie.hi[state]], -1)
  return {'tokens': tokens, 'scores': scores, 'lengths': lengths, 'exists': exists,
          'complete': complete, 'places': places, 'steps': steps, 'nan_step': nan_step,
          'token_scores': token_scores}
