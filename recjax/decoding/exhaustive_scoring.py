"""The log-probability of every title of a small catalog: the whole trie in packed rows.

What beam search approximates. A row holds titles that follow each other in the trie; what they
begin with alike stands there once, and a token sees the prompt and its own ancestors. Shape letters
as in `lm_head`; R packed rows of S tokens, each with up to L titles.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from recjax.decoding.lm_head import log_sum_exp
from recjax.decoding.trie import Trie
from recjax.protocols import Decoder


class Layout(NamedTuple):
  """A trie in packed rows.

  parent: the token before in the title, -1 below the root. ancestors: which tokens of the row stand
  before a token, or are it. leaf: the last token of each title. item: its number, -1 for none.
  depth: of each token in its title, from 0.
  """
  tokens: Int[np.ndarray, 'R S']
  depth: Int[np.ndarray, 'R S']
  parent: Int[np.ndarray, 'R S']
  ancestors: Bool[np.ndarray, 'R S S']
  leaf: Int[np.ndarray, 'R L']
  item: Int[np.ndarray, 'R L']


def layout(trie: Trie, width: int = 256) -> Layout:
  """Lays a trie out. width: tokens of a row, or the longest title's."""
  width = max(width, int(trie.longest))
  rows = [[]]
  previous, used = [], 0
  for item in trie.item:
    tokens = trie.row(int(item)).tolist()
    shared = next((i for i, (a, b) in enumerate(zip(previous, tokens)) if a != b),
                  min(len(previous), len(tokens)))
    if used + len(tokens) - shared > width:
      rows.append([])
      shared, used = 0, 0
    rows[-1].append((int(item), tokens, shared))
    previous, used = tokens, used + len(tokens) - shared
  return _to_arrays(rows, width)


def _to_arrays(rows: list, width: int) -> Layout:
  most_titles = max(map(len, rows))
  tokens, depth, parent = (np.zeros((len(rows), width), np.int32) for _ in range(3))
  leaf, item = (np.full((len(rows), most_titles), -1, np.int32) for _ in range(2))
  packed = Layout(tokens, depth, parent, np.zeros((len(rows), width, width), bool), leaf, item)
  packed.parent[:] = -1
  packed.ancestors[:] = np.eye(width, dtype=bool)
  for r, titles in enumerate(rows):
    path, used = [], 0
    for t, (item, tokens, shared) in enumerate(titles):
      path = path[:shared]
      for depth in range(shared, len(tokens)):
        packed.tokens[r, used], packed.depth[r, used] = tokens[depth], depth
        if path:
          packed.parent[r, used] = path[-1]
          packed.ancestors[r, used] |= packed.ancestors[r, path[-1]]
        path.append(used)
        used += 1
      packed.leaf[r, t], packed.item[r, t] = path[-1], item
  return packed


def title_scores(decoder: Decoder, params: PyTree, tokens: Int[np.ndarray, 'B P'],
                 lengths: Int[np.ndarray, ' B'], rows: Layout, num_items: int
                 ) -> Float[Array, 'B N']:
  """log p of every title after each prompt, over the whole vocabulary, end tokens counted.

  params: of the decoder. tokens, lengths: prompts, padded on the right. rows: see `layout`.
  num_items: N.
  """
  on_device: Any = map(jnp.asarray, rows)
  return _scores(decoder, params, tokens, lengths, Layout(*on_device), num_items)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _scores(decoder, params, tokens, lengths, rows, num_items):
  first, cache = decoder.start(params, tokens, lengths, 1, 2)
  batch = len(tokens)

  def scores_of(row: Layout) -> Array:
    size = len(row.tokens)
    wide = lambda x: jnp.broadcast_to(x, (batch, *x.shape))  # noqa: E731
    states, _ = decoder.extend(
        params, cache, wide(row.tokens), wide(row.depth), jnp.zeros((batch, 1), bool),
        wide(row.ancestors), jnp.full((batch, size), 1 << 20))
    before = jnp.concatenate([states, first[:, None]], 1)[:, row.parent]  # -1 is the prompt's state
    logits = decoder.logits(params, before).astype(jnp.float32)
    log_probs = jnp.take_along_axis(logits, wide(row.tokens)[..., None], -1)[..., 0]
    log_probs -= log_sum_exp(logits)[..., 0]
    return jnp.einsum('bs,ts->bt', log_probs, row.ancestors[row.leaf].astype(jnp.float32),
                      precision=lax.Precision.HIGHEST)
  by_row = lax.map(scores_of, rows)  # (R, B, L)
  by_request = jnp.moveaxis(by_row, 1, 0).reshape(batch, -1)
  item = jnp.where(rows.item >= 0, rows.item, num_items).reshape(-1)
  return jnp.zeros((batch, num_items)).at[:, item].set(by_request, mode='drop')
