"""What may come next: everything, the titles of a catalogue, or semantic IDs.

A constraint is a pytree with four functions that every search calls; its state is a pytree with
leading axes (B, K) that the search reorders with its beams.

  start(batch) -> state (B, 1)
  expand(head, state, t, most, choose) -> what `choose` gives; choose(values, ids, nodes) sees
      log-probabilities (B, K, C) float32, at most 0, DEAD where a token may not come, ids
      (B, K, C) int32 ascending where values tie, and the nodes behind them. C is the constraint's
      affair, so what `choose` returns must not have it in its shape.
  follow(state, beam, token, node) -> the state after tokens (B, M) of beams (B, M)
  ends(state, token, t) -> whether token number t, just followed, is a row's last. bool (B, M)
  pick(requests) -> the constraint of some of the requests
"""
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.decoding import device_trie as trees
from recjax.decoding import item_filter
from recjax.decoding.lm_head import log_sum_exp
from recjax.errors import ConfigError
from recjax.retrieval.top_k import top_k

DEAD = -1e30   # the score of what does not exist
FLOOR = -1e8   # a token's log-probability is no lower, however broken the logits are
LIVE = -1e20   # scores above are of real rows, whatever they are divided by
NORMALIZE = ('vocab', 'valid', 'level', 'scope')


def sanitize_log_probs(logp):
  """Log-probabilities without NaN and infinities. -> in FLOOR .. inf"""
  return jnp.clip(jnp.where(jnp.isnan(logp), FLOOR, logp), FLOOR, -FLOOR)


def met_nan(broken, hidden, live, t):
  """Notes requests with NaN in the state of a live row. hidden: (B, K, D), live: (B, K), t: token
  number, () or (B, K). -> (B,) int32, the first such t, or -1"""
  nan = jnp.isnan(hidden).any(-1) & live
  first = jnp.where(nan, t, jnp.iinfo(jnp.int32).max).min(-1)
  return jnp.where((broken < 0) & nan.any(-1), first, broken)


@functools.partial(jax.tree_util.register_dataclass, data_fields=[],
                   meta_fields=['eos_ids', 'min_new_tokens'])
@dataclasses.dataclass(frozen=True)
class Unconstrained:
  """Any token of the vocabulary, until an end token."""
  eos_ids: tuple = ()
  min_new_tokens: int = 0

  def start(self, batch):
    return jnp.zeros((batch, 1), jnp.int32)

  def expand(self, head, state, t, most, choose):
    del state
    logits = head.full()
    total = log_sum_exp(logits)
    if self.eos_ids and self.min_new_tokens:
      ends = np.isin(np.arange(logits.shape[-1]), self.eos_ids)
      logits = jnp.where(ends & (t < self.min_new_tokens), -jnp.inf, logits)
    ids = None
    if most and most < logits.shape[-1]:
      logits, ids = top_k(jnp.where(jnp.isnan(logits), -jnp.inf, logits), most)
    else:
      ids = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape)
    forbidden = logits == -jnp.inf
    return choose(jnp.where(forbidden, DEAD, sanitize_log_probs(logits - total)), ids, ids)

  def follow(self, state, beam, token, node):
    del state, beam, node
    return jnp.zeros_like(token)

  def ends(self, state, token, t):
    del state, t
    return jnp.isin(token, jnp.asarray(self.eos_ids, jnp.int32)) if self.eos_ids else token < 0

  def pick(self, requests):
    del requests
    return self


@functools.partial(jax.tree_util.register_dataclass, data_fields=[],
                   meta_fields=['levels', 'code_size'])
@dataclasses.dataclass(frozen=True)
class CodeConstraint:
  """Any code at each of `levels` levels, whether an item has them or not; the last one ends."""
  levels: int
  code_size: int

  def start(self, batch):
    return jnp.zeros((batch, 1), jnp.int32)

  def expand(self, head, state, t, most, choose):
    del state, most
    first = t * self.code_size
    logits = head.window(first, self.code_size)
    ids = jnp.broadcast_to(first + jnp.arange(self.code_size), logits.shape)
    return choose(sanitize_log_probs(logits - log_sum_exp(logits)), ids, ids)

  def follow(self, state, beam, token, node):
    del state, beam, node
    return jnp.zeros_like(token)

  def ends(self, state, token, t):
    del state
    return jnp.broadcast_to(t + 1 >= self.levels, token.shape)

  def pick(self, requests):
    del requests
    return self


class ScoreMixing(NamedTuple):
  """D3's text-free assistant: gamma log p + (1 - gamma) log of its share among open items.

  high, low: (B, N + 1) float32, running sums of the assistant's probabilities by place, as a number
  and its rounding error, so that small shares survive. gamma: () float32.
  """
  high: jax.Array
  low: jax.Array
  gamma: jax.Array


def score_mixing(forest, probabilities, gamma):
  """Running sums of an assistant's probabilities. probabilities: (B, N) by item. -> Mix"""
  items = forest.item[:probabilities.shape[1]]
  by_place = probabilities.astype(jnp.float32)[:, items]

  def add(a, b):  # Knuth's exact sum of two numbers, errors carried along
    high = a[0] + b[0]
    part = high - a[0]
    error = (a[0] - (high - part)) + (b[0] - part)
    return high, error + a[1] + b[1]
  high, low = lax.associative_scan(add, (by_place, jnp.zeros_like(by_place)), axis=1)
  pad = [(0, 0), (1, 0)]
  return ScoreMixing(jnp.pad(high, pad), jnp.pad(low, pad), jnp.float32(gamma))


def _every(head):
  """The logits of tokens, as a function of their ids, and the log-sum-exp of all."""
  if head.total:
    return head.rows, head.total()
  logits = head.full()
  return lambda token: jnp.take_along_axis(logits, token, -1), log_sum_exp(logits)


def _mass(given, lo, hi):
  """Probability of the items of places lo .. hi - 1. lo, hi: (B, K, C)"""
  def at(x, place):
    return jnp.take_along_axis(x, place.reshape(len(x), -1), 1).reshape(place.shape)
  return (at(given.high, hi) - at(given.high, lo)) + (at(given.low, hi) - at(given.low, lo))


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=['forest', 'limits', 'mix', 'root'],
                   meta_fields=['normalize', 'code_size', 'min_new_tokens', 'free', 'whole',
                                'forced'])
@dataclasses.dataclass(frozen=True)
class CatalogConstraint:
  """Rows of a catalogue: titles of any length, or semantic IDs.

  root: (B,) int32, the catalogue of each request, or None for the first. normalize: 'vocab' divides
  by the whole vocabulary as Hugging Face does; 'valid' by what may come, so forced tokens cost
  nothing; 'level' by the `code_size` codes of the level; 'scope' by what the catalogue has there,
  whatever the limits close, as `training.scope` learns it. free: of 'scope', the weight of the
  whole vocabulary's beside it; whole: tokens that count over the vocabulary alone, and with
  `forced` those that no other of the catalogue could replace.
  """
  forest: trees.DeviceTrie
  limits: item_filter.ItemFilter = item_filter.ItemFilter()
  mix: ScoreMixing | None = None
  root: jax.Array | None = None
  normalize: str = 'vocab'
  code_size: int = 0
  min_new_tokens: int = 0
  free: float = 0.0
  whole: tuple = ()
  forced: bool = False

  def __post_init__(self):
    if self.normalize not in NORMALIZE:
      raise ConfigError(f'normalize={self.normalize!r} is not one of {", ".join(NORMALIZE)}')
    if self.normalize == 'level' and not self.code_size:
      raise ConfigError("normalize='level' needs code_size, the number of codes of a level")

  def start(self, batch):
    root = jnp.zeros(batch, jnp.int32) if self.root is None else self.root
    return self.forest.roots[root][:, None]

  def expand(self, head, state, t, most, choose):
    del most
    node, forest = state, self.forest
    logp = self._scorer(head, t)
    counts = trees.fan_out(forest, node)
    widths = [w for w in trees.WIDTHS if w < forest.width] + [forest.width]
    widths += [forest.root_width] if forest.root_width > forest.width else []
    branches = [functools.partial(self._sparse, node, t, logp, choose, w) for w in widths]
    wide = len(forest.wide) > 0
    if wide:
      branches.append(functools.partial(self._dense, node, t, head, logp, choose))
    if len(branches) == 1:
      return branches[0]()
    need = jnp.searchsorted(jnp.asarray(widths), counts.max())
    return lax.switch(jnp.minimum(need, len(branches) - 1), branches)

  def _sparse(self, node, t, logp, choose, width):
    token, child, exists = trees.children(self.forest, node, t, width)
    return self._weigh(node, t, logp, choose, token, child, exists)

  def _dense(self, node, t, head, logp, choose):
    vocab = head.full().shape[-1]
    child = trees.dense_children(self.forest, node, t, vocab)
    token = jnp.broadcast_to(jnp.arange(vocab), child.shape)
    return self._weigh(node, t, logp, choose, token, jnp.maximum(child, 0), child >= 0)

  def _weigh(self, node, t, logp, choose, token, child, exists):
    limits, there = self.limits, exists
    if limits.bits is not None or limits.taken is not None:
      lo, hi = self.forest.lo[child], self.forest.hi[child]
      exists &= item_filter.open_places(limits, lo, hi) > 0
    if self.min_new_tokens:
      over = trees.complete(self.forest, child, t + 1)
      exists &= ~(over & (t + 1 < self.min_new_tokens))
    values = logp(token, there if self.normalize == 'scope' else exists)
    if self.mix is not None:
      share = jnp.where(exists, _mass(self.mix, self.forest.lo[child], self.forest.hi[child]), 0)
      share += 1e-20
      total = jnp.where(exists, share, 0).sum(-1, keepdims=True)
      g = self.mix.gamma
      values = g * values + (1 - g) * (jnp.log(share) - jnp.log(jnp.maximum(total, 1e-20)))
    return choose(jnp.where(exists, values, DEAD), token, child)

  def _scorer(self, head, t):
    """(tokens (B, K, C), which exist) -> their log-probabilities."""
    if self.normalize == 'vocab':
      rows, total = _every(head)
      return lambda token, _: sanitize_log_probs(rows(token) - total)
    if self.normalize == 'level':
      start = self.forest.offset.at[t].get(mode='clip')
      logits = head.window(start, self.code_size)
      total = log_sum_exp(logits)
      return lambda token, _: sanitize_log_probs(jnp.take_along_axis(
          logits, jnp.clip(token - start, 0, self.code_size - 1), -1) - total)

    def valid(token, exists):
      x = jnp.where(exists, sanitize_log_probs(head.rows(token)), DEAD)
      return sanitize_log_probs(x - log_sum_exp(x))
    if self.normalize == 'scope' and (self.free or self.whole or self.forced):
      return functools.partial(self._scope, valid, *_every(head))
    return valid

  def _scope(self, valid, rows, total, token, exists):
    """As `training.scope.token_nll`: tokens among the catalogue's and among all."""
    every = sanitize_log_probs(rows(token) - total)
    alone = jnp.isin(token, jnp.asarray(self.whole, jnp.int32)) if self.whole else False
    if self.forced:
      alone |= exists.sum(-1, keepdims=True) == 1
    return jnp.where(alone, every, (valid(token, exists) + self.free * every) / (1 + self.free))

  def follow(self, state, beam, token, node):
    del state, beam, token
    return node

  def ends(self, state, token, t):
    del token
    return trees.complete(self.forest, state, t + 1)

  def pick(self, requests):
    mixed = self.mix and self.mix._replace(high=self.mix.high[requests],
                                           low=self.mix.low[requests])
    root = None if self.root is None else self.root[requests]
    return dataclasses.replace(
      self, limits=item_filter.select_requests(self.limits, requests), mix=mixed, root=root
    )
