"""A decoder as a decoding step: the prompt's keys once per row, a private suffix for each beam.

Beams only read the prompt's `KVBlock`, so K beams share one copy of it; what they write are T - 1
suffix slots of their own, beam slots that `reorder_suffix` permutes when beams change places.
"""
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from recjax.models import llm
from recjax.models.attention import KVBlock, kv_block
from recjax.protocols import AnyArray, Decoder

Suffix = tuple[Float[Array, 'L B K G slots Dh'], Float[Array, 'L B K G slots Dh']]
Keys = tuple[Float[Array, 'L 1 G P Dh'], Float[Array, 'L 1 G P Dh']]  # of one row, and values
BlockKeys = tuple[Float[Array, 'L 1 G S Dh'], Float[Array, 'L 1 G S Dh']]  # of some tokens of it


def decoder(model: llm.LM, past: Sequence[KVBlock] = ()) -> Decoder:
  """The LM as `recjax.decoding` wants it; its params are the variables {'params', 'lora'}.

  past: blocks that every prompt continues, as from `llm.prefill_prefix`. model: the LM.
  """
  def start(variables: PyTree, tokens: AnyArray, lengths: AnyArray, beams: int, new_tokens: int
           ) -> tuple[Array, PyTree]:
    state, prompt = prefill_states(model, variables, tokens, lengths, past)
    return state, ((*past, prompt), empty_suffix(model.cfg, len(tokens), beams, new_tokens))

  def step(variables: PyTree, cache: PyTree, tokens: AnyArray, t: AnyArray | int
           ) -> tuple[Array, PyTree]:
    blocks, suffix = cache
    hidden, suffix = suffix_step(model, variables, blocks, suffix, tokens, t)
    return hidden, (blocks, suffix)

  def reorder(cache: PyTree, parents: AnyArray) -> PyTree:
    return cache[0], reorder_suffix(cache[1], parents)

  def logits(variables: PyTree, hidden: AnyArray) -> Array:
    return cast(Array, model.apply(variables, hidden, method='logits'))

  def rows(variables: PyTree, hidden: AnyArray, ids: AnyArray) -> Array:
    return cast(Array, model.apply(variables, hidden, ids, method='candidate_logits'))

  def window(variables: PyTree, hidden: AnyArray, first: AnyArray | int, size: int) -> Array:
    return cast(Array, model.apply(variables, hidden, first, size, method='window_logits'))

  def extend(variables: PyTree, cache: PyTree, tokens: AnyArray, depth: AnyArray, seen: AnyArray,
             within: AnyArray, slots: AnyArray) -> tuple[Array, PyTree]:
    blocks, suffix = cache
    k, v = (x[:, :, 0] for x in suffix)  # one beam's slots are the pool of all
    positions = jnp.broadcast_to(_num_seen(blocks), (len(tokens), 1)) + depth
    hidden, new = cast(Any, model.apply(
        variables, tokens, positions, within, (*blocks, KVBlock(k, v, seen))))
    rows = jnp.arange(len(tokens))[:, None]
    suffix = tuple(
        old.at[:, rows, 0, :, slots].set(jnp.moveaxis(x, 0, 2).astype(old.dtype), mode='drop')
        for old, x in zip(suffix, new))
    return hidden, (blocks, suffix)

  def grow(cache: PyTree, new_tokens: int) -> PyTree:
    return cache[0], grow_suffix(cache[1], new_tokens)

  def pick(cache: PyTree, requests: AnyArray) -> PyTree:
    blocks, suffix = cache
    blocks = tuple(b if b.mask.ndim == 1 else KVBlock(b.k[:, requests], b.v[:, requests],
                                                      b.mask[requests]) for b in blocks)
    return blocks, tuple(x[:, requests] for x in suffix)

  return Decoder(start, step, reorder, logits, rows, window, extend, grow, pick)


def continuing_decoder(model: llm.LM) -> Decoder:
  """As `decoder`, for prompts that go on from keys given with the parameters.

  model: the LM.

  Its params are {'variables': ..., 'past': KVBlock}: a conversation's rounds are one program as
  long as the block has one size.
  """
  def bound(name: str) -> Callable:
    def call(params: dict, *args) -> Any:
      continued = decoder(model, (params['past'],))
      return getattr(continued, name)(params['variables'], *args)
    return call
  names = ('start', 'step', 'logits', 'rows', 'window', 'extend')
  return decoder(model)._replace(**{name: bound(name) for name in names})


def decoder_of_read_prompts(model: llm.LM) -> Decoder:
  """As `decoder`, for prompts that are read already, as by `read_block`.

  model: the LM.

  Its params are {'variables': ..., 'prompt': KVBlock of each row, 'state': (B, D) after each
  prompt's last token}; the tokens that `start` is given are not read.
  """
  def bound(name: str) -> Callable:
    def call(params: dict, *args) -> Any:
      return getattr(decoder(model), name)(params['variables'], *args)
    return call

  def start(params: dict, tokens: AnyArray, lengths: AnyArray, beams: int, new_tokens: int
            ) -> tuple[Array, PyTree]:
    return params['state'], ((params['prompt'],),
                             empty_suffix(model.cfg, len(tokens), beams, new_tokens))
  names = ('step', 'logits', 'rows', 'window', 'extend')
  return decoder(model)._replace(start=start, **{name: bound(name) for name in names})


def empty_keys(cfg: llm.Config, size: int) -> Keys:
  """Keys and values of a row that nothing was read of, with room for `size` tokens of cfg's model.
  """
  shape = (cfg.layers, 1, cfg.kv_heads, size, cfg.head_dim)
  return jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype)


def write_keys(keys: Keys, new: BlockKeys, start: int | Int[AnyArray, '']) -> Keys:
  """Keys and values of a row with those of some more tokens in their places. keys: of the row. new:
  of the tokens. start: the place of the first."""
  return jax.tree.map(
    lambda old, x: lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), start, 3), keys, new)


def read_block(
    model: llm.LM, variables: PyTree, keys: Keys, tokens: Int[AnyArray, '1 S'],
    start: int | Int[AnyArray, ''], count: int | Int[AnyArray, ''],
) -> tuple[Float[Array, '1 D'], Keys, BlockKeys]:
  """Reads tokens of a row behind those that it has.

  model, variables: what reads. keys: of the row, its first `start` places filled, with room for
  start + S. tokens: ids, the first `count` of them real, 1 at least. -> the state after the last
  real one, the row's keys and values with theirs, theirs alone
  """
  size = keys[0].shape[3]
  past = KVBlock(*keys, (jnp.arange(size) < start)[None])
  state, new = prefill_states(model, variables, tokens, jnp.asarray(count)[None], (past,))
  new = (new.k.astype(keys[0].dtype), new.v.astype(keys[1].dtype))
  return state, write_keys(keys, new, start), new


def empty_block(cfg: llm.Config, size: int) -> KVBlock:
  """A block of one row with room for `size` tokens of cfg's model."""
  keys = jnp.zeros((cfg.layers, 1, cfg.kv_heads, size, cfg.head_dim), cfg.dtype)
  return KVBlock(keys, keys, jnp.zeros((1, size), bool))


def append_tokens(
    model: llm.LM, variables: PyTree, past: KVBlock, tokens: Int[AnyArray, '1 S'],
    count: int | Int[AnyArray, '']) -> KVBlock:
  """The block with the keys of more tokens behind those it has; the caller sees to the room.

  model, variables: whose keys they are. past: of one row. tokens: ids, the first `count` of them
  real.
  """
  start = past.mask.sum(-1, dtype=jnp.int32)[0]
  _, new = prefill_states(model, variables, tokens, jnp.asarray(count)[None], (past,))
  order = jnp.arange(tokens.shape[1])
  slots = jnp.where(order < count, start + order, past.mask.shape[1])

  def put(old: AnyArray, x: AnyArray) -> Array:
    return old.at[:, :, :, slots].set(x.astype(old.dtype), mode='drop')
  mask = past.mask.at[:, slots].set(True, mode='drop')
  return KVBlock(put(past.k, new.k), put(past.v, new.v), mask)


def prefill(
    model: llm.LM, variables: PyTree, tokens: Int[AnyArray, 'B P'], lengths: Int[AnyArray, ' B'],
    past: Sequence[KVBlock] = ()) -> tuple[Float[Array, 'B V'], KVBlock]:
  """Runs prompts, padded on the right, that continue blocks.

  model, variables: what runs. tokens: ids. lengths: of the prompts, each at least 1. past: the
  blocks. -> float32 logits after the last real token, the block of these tokens alone
  """
  state, block = prefill_states(model, variables, tokens, lengths, past)
  return cast(Any, model.apply(variables, state, method='logits')), block


def prefill_states(
    model: llm.LM, variables: PyTree, tokens: Int[AnyArray, 'B P'], lengths: Int[AnyArray, ' B'],
    past: Sequence[KVBlock] = ()) -> tuple[Float[Array, 'B D'], KVBlock]:
  """As `prefill`, with the hidden states after the last tokens instead of logits. model, variables,
  tokens, lengths, past: as there."""
  order = jnp.arange(tokens.shape[1])
  mask = order < lengths[:, None]
  positions = jnp.broadcast_to(_num_seen(past) + order, tokens.shape)
  hidden, (k, v) = cast(Any, model.apply(
      variables, tokens, positions, mask.astype(jnp.int32), past))
  return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], 1)[:, 0], kv_block(k, v, mask)


def make_step(
    model: llm.LM, variables: PyTree, past: Sequence[KVBlock], prompts: int, beams: int,
    new_tokens: int) -> tuple[Callable, Suffix]:
  """The step of `recjax.decoding` over prompts that are already run. -> step, its first cache

  model, variables: what runs. past: blocks in order, the prompts' last. prompts, beams, new_tokens:
  how many. step: as `diverse_beam_search` wants it.
  """
  def step(tokens: AnyArray, cache: PyTree, t: AnyArray | int) -> tuple[Array, PyTree]:
    hidden, cache = suffix_step(model, variables, past, cache, tokens, t)
    return cast(Array, model.apply(variables, hidden, method='logits')), cache
  return step, empty_suffix(model.cfg, prompts, beams, new_tokens)


def empty_suffix(cfg: llm.Config, prompts: int, beams: int, new_tokens: int) -> Suffix:
  """The empty private caches of all beams: keys, values.

  cfg: of the model. prompts, beams, new_tokens: how many; the last token needs no slot.
  """
  shape = (cfg.layers, prompts, beams, cfg.kv_heads, max(new_tokens - 1, 1), cfg.head_dim)
  return jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype)


def suffix_step(
    model: llm.LM, variables: PyTree, past: Sequence[KVBlock], cache: Suffix,
    tokens: Int[AnyArray, 'B K'], t: int | Int[AnyArray, ''],
) -> tuple[Float[Array, 'B K D'], Suffix]:
  """One token for every beam. -> states, cache

  model, variables: what runs. past: blocks that the beams share. cache: their private suffixes.
  tokens: number t of what each beam writes.
  """
  _, rows, beams, _, slots, _ = cache[0].shape
  apart = jnp.broadcast_to(jnp.arange(1, beams + 1), tokens.shape)  # beams do not see another
  live = jnp.broadcast_to(jnp.arange(slots) < t, (rows, beams, slots))
  start = jnp.broadcast_to(_num_seen(past), (len(tokens), 1))
  positions = jnp.broadcast_to(start + t, tokens.shape)
  hidden, new = cast(Any, model.apply(
      variables, tokens, positions, apart, (*past, KVBlock(*cache, live))))
  k, v = (lax.dynamic_update_index_in_dim(old, x.astype(old.dtype), t, 4)
          for old, x in zip(cache, new))
  return hidden, (k, v)


def reorder_suffix(cache: Suffix, parents: Int[Array, 'B K']) -> Suffix:
  """Makes suffix i of each prompt continue beam parents[b, i]. cache: the suffixes."""
  def take(x: AnyArray) -> Array:
    return jax.vmap(lambda beams, order: beams[:, order], (1, 0), 1)(x, parents)
  return jax.tree.map(take, cache)


def grow_suffix(
    cache: Suffix, new_tokens: int,
) -> tuple[Float[Array, 'L B K G grown Dh'], Float[Array, 'L B K G grown Dh']]:
  """Private caches with room for rows of `new_tokens`. cache: the suffixes."""
  more = max(0, new_tokens - 1 - cache[0].shape[4])
  k, v = (jnp.pad(x, [(0, 0)] * 4 + [(0, more), (0, 0)]) for x in cache)
  return k, v


def _num_seen(past: Sequence[KVBlock]) -> Int[Array, '*rows']:
  """How many tokens the blocks hold, for all rows or each: shaped (), (1) or (B, 1)."""
  return sum((p.mask.sum(-1, dtype=jnp.int32)[..., None] for p in past), jnp.int32(0))


def uncached(apply: Callable[[Any, Any], Array]) -> Decoder:
  """A Decoder of any function (params, tokens (R, S)) -> logits (R, S, V), without a cache.

  apply: that function.

  Every step runs the whole rows again: slow, and right for any causal model; a first try, a test.
  """
  def start(params: PyTree, tokens: AnyArray, lengths: AnyArray, beams: int, new_tokens: int
           ) -> tuple[Array, PyTree]:
    batch = len(tokens)
    logits = apply(params, tokens)
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], 1)[:, 0]
    rows = jnp.pad(tokens, [(0, 0), (0, new_tokens)])
    rows = jnp.broadcast_to(rows[:, None], (batch, beams, rows.shape[1]))
    return last, (rows, lengths)

  def step(params: PyTree, cache: PyTree, tokens: AnyArray, t: AnyArray | int
           ) -> tuple[Array, PyTree]:
    rows, lengths = cache
    index = (lengths + t)[:, None, None]
    rows = jnp.where(jnp.arange(rows.shape[-1]) == index, tokens[..., None], rows)
    logits = apply(params, rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape, -1)
    last = jnp.take_along_axis(logits, index[..., None].astype(jnp.int32), 2)[:, :, 0]
    return last, (rows, lengths)

  def reorder(cache: PyTree, parents: AnyArray) -> PyTree:
    rows, lengths = cache
    return jnp.take_along_axis(rows, parents[..., None], 1), lengths

  return Decoder(start, step, reorder, lambda params, state: state)
