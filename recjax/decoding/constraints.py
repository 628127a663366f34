"""What may come next: everything, the titles of a catalog, or semantic IDs.

Every search calls a constraint by `protocols.Constraint`. Its state is a pytree with leading axes
(B, K) that the search reorders with its beams. Shape letters as in `lm_head`.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from recjax.decoding import device_trie
from recjax.decoding.device_trie import DeviceTrie
from recjax.decoding.item_filter import ItemFilter
from recjax.decoding.lm_head import LMHead, log_sum_exp
from recjax.errors import ConfigError
from recjax.protocols import Constraint
from recjax.retrieval.top_k import top_k

DEAD = -1e30   # the score of what does not exist
FLOOR = -1e8   # a token's log-probability is no lower, however broken the logits are
LIVE = -1e20   # scores above are of real rows, whatever they are divided by
DENOMINATORS = ('vocab', 'valid', 'level', 'scope')


def sanitize_log_probs(log_probs: Float[Array, '...']) -> Float[Array, '...']:
  """Log-probabilities without NaN and infinities, FLOOR or above. log_probs: of any shape."""
  return jnp.clip(jnp.where(jnp.isnan(log_probs), FLOOR, log_probs), FLOOR, -FLOOR)


def finite_logits(logits: Float[Array, '...']) -> Float[Array, '...']:
  """Logits with -inf for NaN. logits: of any shape."""
  return jnp.where(jnp.isnan(logits), -jnp.inf, logits)


def first_nan(nan_step: Int[Array, ' B'], hidden: Float[Array, 'B K D'], live: Bool[Array, 'B K'],
              t: Array | int) -> Int[Array, ' B']:
  """The token at which a request first met NaN in the state of a live row, or -1.

  nan_step: as it was before. hidden: the states that decide token number t, () or (B, K). live:
  rows that count.
  """
  nan = jnp.isnan(hidden).any(-1) & live
  step = jnp.where(nan, t, jnp.iinfo(jnp.int32).max).min(-1)
  return jnp.where((nan_step < 0) & nan.any(-1), step, nan_step)


def with_new_tokens(search: Any, constraint: Constraint) -> Any:
  """A search's settings with their `new_tokens`, by default the longest row of the constraint.

  Raises ConfigError where neither bounds the rows.
  """
  new_tokens = search.new_tokens or constraint.longest
  if not new_tokens:
    raise ConfigError('new_tokens is missing: without titles nothing bounds the rows')
  return dataclasses.replace(search, new_tokens=new_tokens)


class Stateless:
  """What constraints have in common that need not know what came before."""

  def start(self, batch: int) -> Int[Array, 'B 1']:
    return jnp.zeros((batch, 1), jnp.int32)

  def advance(self, state: Array, token: Array, node: Array) -> Int[Array, 'B K']:
    del state, node
    return jnp.zeros_like(token)

  def select_requests(self, requests: Array) -> 'Stateless':
    del requests
    return self


@functools.partial(jax.tree_util.register_dataclass, data_fields=[],
                   meta_fields=['eos_ids', 'min_new_tokens'])
@dataclasses.dataclass(frozen=True)
class Unconstrained(Stateless):
  """Any token of the vocabulary, until an end token.

  eos_ids: the end tokens. min_new_tokens: tokens of a row before an end token may come. Raises
  ConfigError for negative numbers.
  """
  eos_ids: tuple[int, ...] = ()
  min_new_tokens: int = 0

  longest = 0

  def __post_init__(self):
    if min((*self.eos_ids, self.min_new_tokens)) < 0:
      raise ConfigError(f'eos_ids={self.eos_ids} and min_new_tokens={self.min_new_tokens} must not '
                        'be negative')

  @property
  def num_end_tokens(self) -> int:
    return max(1, len(self.eos_ids))

  def candidates(self, head: LMHead, state: Array, t: Array | int, limit: int,
                 choose: Callable) -> Any:
    del state
    logits = head.full()
    vocab = logits.shape[-1]
    total = log_sum_exp(logits)
    if self.eos_ids and self.min_new_tokens:
      is_end = np.isin(np.arange(vocab), self.eos_ids)
      logits = jnp.where(is_end & (t < self.min_new_tokens), -jnp.inf, logits)
    if limit and limit < vocab:
      logits, tokens = top_k(finite_logits(logits), limit)
    else:
      tokens = jnp.broadcast_to(jnp.arange(vocab), logits.shape)
    log_probs = jnp.where(logits == -jnp.inf, DEAD, sanitize_log_probs(logits - total))
    return choose(log_probs, tokens, tokens)

  def is_final(self, state: Array, token: Array, t: Array | int) -> Bool[Array, '...']:
    del state, t
    return jnp.isin(token, jnp.asarray(self.eos_ids, jnp.int32)) if self.eos_ids else token < 0


@functools.partial(jax.tree_util.register_dataclass, data_fields=[],
                   meta_fields=['levels', 'code_size'])
@dataclasses.dataclass(frozen=True)
class CodeConstraint(Stateless):
  """Any code at each of `levels` levels, whether an item has them or not; the last one ends.

  code_size: codes of a level; level q's code c is token q * code_size + c.
  """
  levels: int
  code_size: int

  num_end_tokens = 1

  @property
  def longest(self) -> int:
    return self.levels

  def candidates(self, head: LMHead, state: Array, t: Array | int, limit: int,
                 choose: Callable) -> Any:
    del state, limit
    first = t * self.code_size
    logits = head.window(first, self.code_size)
    tokens = jnp.broadcast_to(first + jnp.arange(self.code_size), logits.shape)
    return choose(sanitize_log_probs(logits - log_sum_exp(logits)), tokens, tokens)

  def is_final(self, state: Array, token: Array, t: Array | int) -> Bool[Array, '...']:
    del state
    return jnp.broadcast_to(t + 1 >= self.levels, token.shape)


class ScoreMixing(NamedTuple):
  """D3's text-free assistant: weight * log p + (1 - weight) * log of its share among open items.

  high, low: running sums of the assistant's probabilities by place, as a number and its rounding
  error, so that small shares survive. weight: of the language model, (). Bao et al., Decoding
  Matters, EMNLP 2024 (arXiv 2406.14900).
  """
  high: Float[Array, 'B N1']
  low: Float[Array, 'B N1']
  weight: Float[Array, '']

  def mass(self, lo: Int[Array, 'B K C'], hi: Int[Array, 'B K C']) -> Float[Array, 'B K C']:
    """The assistant's probability of the items of places lo .. hi - 1."""
    def at(sums: Array, place: Array) -> Array:
      return jnp.take_along_axis(sums, place.reshape(len(sums), -1), 1).reshape(place.shape)
    return (at(self.high, hi) - at(self.high, lo)) + (at(self.low, hi) - at(self.low, lo))


def score_mixing(trie: DeviceTrie, probabilities: Float[Array, 'B N'],
                 weight: float) -> ScoreMixing:
  """Mixes an assistant's probabilities of items in. weight: of the language model, 0 to 1. trie: of
  the catalog that the items belong to."""
  items = trie.item[:probabilities.shape[1]]
  by_place = probabilities.astype(jnp.float32)[:, items]

  def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    # Knuth's exact sum of two numbers, errors carried along.
    high = a[0] + b[0]
    part = high - a[0]
    error = (a[0] - (high - part)) + (b[0] - part)
    return high, error + a[1] + b[1]
  high, low = lax.associative_scan(add, (by_place, jnp.zeros_like(by_place)), axis=1)
  pad = [(0, 0), (1, 0)]
  return ScoreMixing(jnp.pad(high, pad), jnp.pad(low, pad), jnp.float32(weight))


@dataclasses.dataclass(frozen=True)
class Normalization:
  """What the probability of a token is divided by; hashable. Raises ConfigError.

  denominator: 'vocab' is the whole vocabulary, as in Hugging Face; 'valid' what may come, so forced
  tokens cost nothing; 'level' the `code_size` codes of the level; 'scope' what the catalog has
  there, whatever the filter closes, as `training.losses.trie_masked` learns it. With 'scope' alone:
  vocab_weight is the weight of log-probabilities over the whole vocabulary beside those over the
  scope; vocab_tokens count over the whole vocabulary alone, and so do, with forced_over_vocab,
  tokens that no other of the catalog could replace.
  """
  denominator: str = 'vocab'
  code_size: int = 0
  vocab_weight: float = 0.0
  vocab_tokens: tuple[int, ...] = ()
  forced_over_vocab: bool = False

  def __post_init__(self):
    if self.denominator not in DENOMINATORS:
      raise ConfigError(f'Normalization({self.denominator!r}) is unknown; choose one of '
                        f'{", ".join(DENOMINATORS)}')
    if self.denominator == 'level' and not self.code_size:
      raise ConfigError("Normalization('level') needs code_size, the number of codes of a level")

  def scorer(self, trie: DeviceTrie, head: LMHead, t: Array | int) -> Callable:
    """A function (tokens (B, K, C), which exist) -> their log-probabilities (B, K, C). trie: of the
    catalog. head: the output layer on the beams' states. t: number of the token."""
    if self.denominator == 'vocab':
      rows, total = _rows_and_total(head)
      return lambda token, _: sanitize_log_probs(rows(token) - total)
    if self.denominator == 'level':
      start = trie.offset.at[t].get(mode='clip')
      logits = head.window(start, self.code_size)
      total = log_sum_exp(logits)
      return lambda token, _: sanitize_log_probs(jnp.take_along_axis(
          logits, jnp.clip(token - start, 0, self.code_size - 1), -1) - total)

    def over_existing(token: Array, exists: Array) -> Array:
      logits = jnp.where(exists, sanitize_log_probs(head.rows(token)), DEAD)
      return sanitize_log_probs(logits - log_sum_exp(logits))
    if self.denominator == 'scope' and (
        self.vocab_weight or self.vocab_tokens or self.forced_over_vocab):
      return functools.partial(self._mixed, over_existing, *_rows_and_total(head))
    return over_existing

  def _mixed(self, over_existing, rows, total, token, exists):
    """As `training.losses.trie_masked.token_nll`: over the scope, the vocabulary, or both."""
    over_vocab = sanitize_log_probs(rows(token) - total)
    vocab_alone = (jnp.isin(token, jnp.asarray(self.vocab_tokens, jnp.int32))
                   if self.vocab_tokens else False)
    if self.forced_over_vocab:
      vocab_alone |= exists.sum(-1, keepdims=True) == 1
    both = over_existing(token, exists) + self.vocab_weight * over_vocab
    return jnp.where(vocab_alone, over_vocab, both / (1 + self.vocab_weight))


def _rows_and_total(head: LMHead) -> tuple[Callable, Array]:
  """The logits of tokens, as a function of their ids, and the log-sum-exp of all."""
  if head.total:
    return head.rows, head.total()
  logits = head.full()
  return lambda token: jnp.take_along_axis(logits, token, -1), log_sum_exp(logits)


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=['trie', 'item_filter', 'mixing', 'catalog'],
                   meta_fields=['normalization', 'min_new_tokens'])
@dataclasses.dataclass(frozen=True)
class CatalogConstraint:
  """Rows of a catalog: titles of any length, or semantic IDs. The state is a trie node.

  trie: of one or several catalogs. item_filter: which items each request may have. mixing: another
  recommender's probabilities, or None. catalog: the number of each request's catalog, or None for
  the first. normalization: see there. min_new_tokens: tokens of the shortest row that may come, its
  end included.
  """
  trie: DeviceTrie
  item_filter: ItemFilter = ItemFilter()
  mixing: ScoreMixing | None = None
  catalog: Int[Array, ' B'] | None = None
  normalization: Normalization = Normalization()
  min_new_tokens: int = 0

  num_end_tokens = 1

  @property
  def longest(self) -> int:
    return self.trie.longest

  def start(self, batch: int) -> Int[Array, 'B 1']:
    catalog = jnp.zeros(batch, jnp.int32) if self.catalog is None else self.catalog
    return self.trie.roots[catalog][:, None]

  def candidates(self, head: LMHead, state: Int[Array, 'B K'], t: Array | int, limit: int,
                 choose: Callable) -> Any:
    del limit
    trie = self.trie
    score = self.normalization.scorer(trie, head, t)
    widths = [w for w in device_trie.WIDTHS if w < trie.width] + [trie.width]
    widths += [trie.root_width] if trie.root_width > trie.width else []
    branches = [functools.partial(self._gathered, state, t, score, choose, w) for w in widths]
    if len(trie.wide):
      branches.append(functools.partial(self._by_token, state, t, head, score, choose))
    if len(branches) == 1:
      return branches[0]()
    branch = jnp.searchsorted(jnp.asarray(widths), device_trie.fan_out(trie, state).max())
    return lax.switch(jnp.minimum(branch, len(branches) - 1), branches)

  def _gathered(self, node, t, score, choose, width):
    children = device_trie.children(self.trie, node, t, width)
    return self._choose(t, score, choose, *children)

  def _by_token(self, node, t, head, score, choose):
    vocab = head.full().shape[-1]
    child = device_trie.dense_children(self.trie, node, t, vocab)
    token = jnp.broadcast_to(jnp.arange(vocab), child.shape)
    return self._choose(t, score, choose, token, jnp.maximum(child, 0), child >= 0)

  def _choose(self, t, score, choose, token, child, exists):
    lo, hi, is_open = self.trie.lo[child], self.trie.hi[child], exists
    if self.item_filter.forbids_any:
      is_open &= self.item_filter.count_open(lo, hi) > 0
    if self.min_new_tokens:
      over = device_trie.complete(self.trie, child, t + 1)
      is_open &= ~(over & (t + 1 < self.min_new_tokens))
    in_scope = self.normalization.denominator == 'scope'
    log_probs = score(token, exists if in_scope else is_open)
    if self.mixing is not None:
      share = jnp.where(is_open, self.mixing.mass(lo, hi), 0) + 1e-20
      total = jnp.where(is_open, share, 0).sum(-1, keepdims=True)
      log_share = jnp.log(share) - jnp.log(jnp.maximum(total, 1e-20))
      log_probs = self.mixing.weight * log_probs + (1 - self.mixing.weight) * log_share
    return choose(jnp.where(is_open, log_probs, DEAD), token, child)

  def advance(self, state: Array, token: Array, node: Array) -> Int[Array, 'B K']:
    del state, token
    return node

  def is_final(self, state: Array, token: Array, t: Array | int) -> Bool[Array, '...']:
    del token
    return device_trie.complete(self.trie, state, t + 1)

  def select_requests(self, requests: Int[Array, ' R']) -> 'CatalogConstraint':
    mixing = self.mixing and self.mixing._replace(high=self.mixing.high[requests],
                                                  low=self.mixing.low[requests])
    catalog = None if self.catalog is None else self.catalog[requests]
    return dataclasses.replace(self, item_filter=self.item_filter.select_requests(requests),
                               mixing=mixing, catalog=catalog)
