"""A decoder as a decoding step: the prompt's keys once per row, a private suffix for each beam.

Beams only read the prompt's `KVBlock`, so K beams share one copy of it; what they write are T - 1
suffix slots of their own, beam slots that `reorder` permutes when beams change places.
"""

import jax
import jax.numpy as jnp
from jax import lax

from recjax import protocols
from recjax.models.attention import KVBlock, kv_block
from recjax.protocols import Decoder


def decoder(model, past=()):
  """The LM as `recjax.decoding` wants it; its params are the variables {'params', 'lora'}.

  past: blocks that every prompt continues, as from `prefill_prefix`. -> Decoder
  """
  def start(variables, tokens, lengths, beams, new_tokens):
    last, own = prefill_states(model, variables, tokens, lengths, past)
    blocks = (*past, own)
    return last, (blocks, empty_suffix(model.cfg, len(tokens), beams, new_tokens))

  def step(variables, cache, tokens, t):
    blocks, own = cache
    hidden, own = suffix_step(model, variables, blocks, own, tokens, t)
    return hidden, (blocks, own)

  def turn(cache, parents):
    return cache[0], reorder_suffix(cache[1], parents)

  def logits(variables, hidden):
    return model.apply(variables, hidden, method='logits')

  def rows(variables, hidden, ids):
    return model.apply(variables, hidden, ids, method='candidate_logits')

  def window(variables, hidden, first, size):
    return model.apply(variables, hidden, first, size, method='window_logits')

  def extend(variables, cache, tokens, at, seen, within, slots):
    blocks, own = cache
    k, v = (x[:, :, 0] for x in own)  # one beam's slots are the pool of all
    positions = jnp.broadcast_to(_seen(blocks), (len(tokens), 1)) + at
    hidden, new = model.apply(variables, tokens, positions, within, (*blocks, KVBlock(k, v, seen)))
    rows = jnp.arange(len(tokens))[:, None]
    own = tuple(c.at[:, rows, 0, :, slots].set(jnp.moveaxis(n, 0, 2).astype(c.dtype), mode='drop')
                for c, n in zip(own, new))
    return hidden, (blocks, own)

  def roomier(cache, new_tokens):
    return cache[0], grow_suffix(cache[1], new_tokens)

  def pick(cache, requests):
    blocks, own = cache
    blocks = tuple(b if b.mask.ndim == 1 else KVBlock(b.k[:, requests], b.v[:, requests],
                                                   b.mask[requests]) for b in blocks)
    return blocks, tuple(x[:, requests] for x in own)

  return Decoder(start, step, turn, logits, rows, window, extend, roomier, pick)


def continuing_decoder(model):
  """As `decoder`, for prompts that go on from keys given with the parameters, {'variables': ...,
  'past': Past}: a conversation's rounds are one program as long as the Past has one size."""
  def bound(call):
    def run(params, *given):
      return getattr(decoder(model, (params['past'],)), call)(params['variables'], *given)
    return run
  bare = decoder(model)
  names = ('start', 'step', 'logits', 'rows', 'window', 'extend')
  return bare._replace(**{name: bound(name) for name in names})


def empty_block(cfg, size):
  """An empty Past of one row with room for `size` tokens."""
  shape = (cfg.layers, 1, cfg.kv_heads, size, cfg.head_dim)
  return KVBlock(
    jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype), jnp.zeros((1, size), bool)
  )


def append_tokens(model, variables, past, tokens, count):
  """The Past with the keys of more tokens behind those it has; the caller sees to the room.

  tokens: (1, S) int32, `count` () of them real. -> Past
  """
  start = past.mask.sum(-1, dtype=jnp.int32)[0]
  _, own = prefill_states(model, variables, tokens, jnp.asarray(count)[None], (past,))
  at = start + jnp.arange(tokens.shape[1])
  at = jnp.where(jnp.arange(tokens.shape[1]) < count, at, past.mask.shape[1])
  put = lambda x, y: x.at[:, :, :, at].set(y.astype(x.dtype), mode='drop')  # noqa: E731
  return KVBlock(put(past.k, own.k), put(past.v, own.v), past.mask.at[:, at].set(True, mode='drop'))


def prefill(model, variables, tokens, lengths, past=()):
  """Runs prompts, padded on the right, that continue the blocks of `past`.

  tokens: (B, P) int32. lengths: (B,) int32, each at least 1. -> (logits (B, V) float32 after the
  last real token, Past of these tokens alone: (L, B, G, P, Dh), mask (B, P))
  """
  last, own = prefill_states(model, variables, tokens, lengths, past)
  return model.apply(variables, last, method='logits'), own


def prefill_states(model, variables, tokens, lengths, past=()):
  """As `prefill`, with the hidden states (B, D) after the last tokens instead of logits."""
  order = jnp.arange(tokens.shape[1])
  mask = order < lengths[:, None]
  positions = _seen(past) + order
  hidden, (k, v) = model.apply(
      variables, tokens, jnp.broadcast_to(positions, tokens.shape), mask.astype(jnp.int32), past)
  return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], 1)[:, 0], kv_block(k, v, mask)


def make_step(model, variables, past, prompts, beams, new_tokens):
  """The step of `recjax.decoding` over prompts that are already run.

  past: tuple of Past blocks in order, the prompt's last; prompts: B. -> (step, cache): the
  cache is (k, v), each (L, B, K, G, T - 1, Dh), zeros; step as `diverse_beam_search` wants it
  """
  def step(tokens, cache, t):
    hidden, cache = suffix_step(model, variables, past, cache, tokens, t)
    return model.apply(variables, hidden, method='logits'), cache
  return step, empty_suffix(model.cfg, prompts, beams, new_tokens)


def empty_suffix(cfg, prompts, beams, new_tokens):
  """The empty private caches of all beams: (k, v), each (L, B, K, G, T - 1, Dh)."""
  shape = (cfg.layers, prompts, beams, cfg.kv_heads, max(new_tokens - 1, 1), cfg.head_dim)
  return jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype)


def suffix_step(model, variables, past, cache, tokens, t):
  """One token for every beam. tokens: (B, K), number t. -> (hidden (B, K, D), cache)"""
  shape = cache[0].shape
  apart = jnp.broadcast_to(jnp.arange(1, shape[2] + 1), tokens.shape)  # beams do not see another
  live = jnp.broadcast_to(jnp.arange(shape[4]) < t, (*shape[1:3], shape[4]))
  start = jnp.broadcast_to(_seen(past), (len(tokens), 1))
  positions = jnp.broadcast_to(start + t, tokens.shape)
  hidden, new = model.apply(variables, tokens, positions, apart, (*past, KVBlock(*cache, live)))
  cache = tuple(lax.dynamic_update_index_in_dim(c, n.astype(c.dtype), t, 4)
                for c, n in zip(cache, new))
  return hidden, cache


def reorder_suffix(cache, parents):
  """Makes suffix i of each prompt continue beam parents[b, i]. parents: (B, K) int32"""
  def rows(x):
    return jax.vmap(lambda rows, order: rows[:, order], (1, 0), 1)(x, parents)
  return jax.tree.map(rows, cache)


def grow_suffix(cache, new_tokens):
  """Private caches with room for rows of `new_tokens`."""
  more = max(0, new_tokens - 1 - cache[0].shape[4])
  return tuple(jnp.pad(x, [(0, 0)] * 4 + [(0, more), (0, 0)]) for x in cache)


def _seen(past):
  """How many tokens the blocks hold for each row. -> () or (B, 1) int32"""
  return sum((p.mask.sum(-1, dtype=jnp.int32)[..., None] for p in past), jnp.int32(0))


def uncached(apply):
  """A Decoder of any function (params, tokens (R, S)) -> logits (R, S, V), without a cache.

  Every step runs the whole rows again: slow, and right for any causal model; a first try, a test.
  """
  def start(params, tokens, lengths, beams, new_tokens):
    batch, longest = tokens.shape
    logits = apply(params, tokens)
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], 1)[:, 0]
    rows = jnp.pad(tokens, [(0, 0), (0, new_tokens)])
    rows = jnp.broadcast_to(rows[:, None], (batch, beams, rows.shape[1]))
    return last, (rows, lengths)

  def step(params, cache, tokens, t):
    rows, lengths = cache
    at = (lengths + t)[:, None, None]
    here = jnp.arange(rows.shape[-1]) == at
    rows = jnp.where(here, tokens[..., None], rows)
    logits = apply(params, rows.reshape(-1, rows.shape[-1]))
    logits = logits.reshape(*rows.shape, -1)
    last = jnp.take_along_axis(logits, at[..., None].astype(jnp.int32), 2)[:, :, 0]
    return last, (rows, lengths)

  def reorder(cache, parents):
    rows, lengths = cache
    return jnp.take_along_axis(rows, parents[..., None], 1), lengths

  return protocols.Decoder(start, step, reorder, lambda params, state: state)
