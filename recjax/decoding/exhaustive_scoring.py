"""The log-probability of every title of a small catalogue: the whole trie in packed rows.

What beam search approximates. A row holds titles that follow each other in the trie; what they
begin with alike stands there once, and a token sees the prompt and its own ancestors.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recjax.decoding.lm_head import log_sum_exp


class Layout(NamedTuple):
  """A trie in R rows of S tokens with up to T titles. tokens, depth, parent: (R, S) int32, the
  parent -1 below the root. above: (R, S, S) bool, ancestors and the token itself. leaf: (R, T)
  int32, item: (R, T) int32 item numbers, -1 for none."""
  tokens: np.ndarray
  depth: np.ndarray
  parent: np.ndarray
  above: np.ndarray
  leaf: np.ndarray
  item: np.ndarray


def layout(trie, width=256):
  """Lays a trie out. width: tokens of a row, or the longest title's. -> Layout"""
  width = max(width, int(trie.longest))
  rows = [[]]
  path, used = [], 0
  for item in trie.item:
    tokens = trie.row(int(item)).tolist()
    same = _shared(path, tokens)
    if used + len(tokens) - same > width:
      rows.append([])
      same, used = 0, 0
    rows[-1].append((int(item), tokens, same))
    path, used = tokens, used + len(tokens) - same
  return _arrays(rows, width)


def _shared(one, two):
  return next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))


def _arrays(rows, width):
  most = max(map(len, rows))
  out = Layout(*(np.zeros((len(rows), width), np.int32) for _ in range(3)),
               np.zeros((len(rows), width, width), bool),
               *(np.full((len(rows), most), -1, np.int32) for _ in range(2)))
  out.parent[:] = -1
  out.above[:] = np.eye(width, dtype=bool)
  for r, titles in enumerate(rows):
    path, used = [], 0
    for t, (item, tokens, same) in enumerate(titles):
      path = path[:same]
      for depth in range(same, len(tokens)):
        out.tokens[r, used], out.depth[r, used] = tokens[depth], depth
        if path:
          out.parent[r, used] = path[-1]
          out.above[r, used] |= out.above[r, path[-1]]
        path.append(used)
        used += 1
      out.leaf[r, t], out.item[r, t] = path[-1], item
  return out


def title_scores(decoder, params, tokens, lengths, rows, count):
  """log p of every title after each prompt, over the whole vocabulary, end tokens counted.

  tokens: (B, P) int32, padded on the right; lengths: (B,). rows: Layout. count: N items.
  -> (B, N) float32
  """
  return _scores(decoder, params, tokens, lengths, Layout(*map(jnp.asarray, rows)), count)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _scores(decoder, params, tokens, lengths, rows, count):
  first, cache = decoder.start(params, tokens, lengths, 1, 2)
  batch = len(tokens)

  def one(row):
    size = len(row.tokens)
    wide = lambda x: jnp.broadcast_to(x, (batch, *x.shape))  # noqa: E731
    states, _ = decoder.extend(
        params, cache, wide(row.tokens), wide(row.depth), jnp.zeros((batch, 1), bool),
        wide(row.above), jnp.full((batch, size), 1 << 20))
    before = jnp.concatenate([states, first[:, None]], 1)[:, row.parent]  # -1 is the prompt's state
    logits = decoder.logits(params, before).astype(jnp.float32)
    each = jnp.take_along_axis(logits, wide(row.tokens)[..., None], -1)[..., 0]
    each -= log_sum_exp(logits)[..., 0]
    return jnp.einsum('bs,ts->bt', each, row.above[row.leaf].astype(jnp.float32),
                      precision=lax.Precision.HIGHEST)
  found = lax.map(one, rows)  # (R, B, T)
  flat = jnp.moveaxis(found, 1, 0).reshape(batch, -1)
  item = jnp.where(rows.item >= 0, rows.item, count).reshape(-1)
  return jnp.zeros((batch, count)).at[:, item].set(flat, mode='drop')
