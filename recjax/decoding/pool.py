"""What went through the model in a tree search, slot by slot.

A token is known by its trie node's interval of places and its depth: a slot's token comes before
another where its interval holds the other's and its depth is smaller. Nodes in a chain share an
interval, so a beam's own node speaks for the chain above it.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from recjax.decoding.constraints import DEAD

KIDS = 16  # the best children of a node that look-ahead considers


class Kids(NamedTuple):
  """The best children of a node. node: (B, S, M) int32, logp: (B, S, M) float32, DEAD for none"""
  node: jax.Array
  logp: jax.Array

  @classmethod
  def none(cls, batch, slots):
    return cls(jnp.zeros((batch, slots, KIDS), jnp.int32), jnp.full((batch, slots, KIDS), DEAD))

  @classmethod
  def of(cls, titles, head, node, depth):
    """Of nodes (B, Q), by their true log-probabilities under the constraint."""
    def best(values, _, nodes):
      lack = max(0, KIDS - values.shape[-1])
      values = jnp.pad(values, [(0, 0), (0, 0), (0, lack)], constant_values=DEAD)
      nodes = jnp.pad(nodes, [(0, 0), (0, 0), (0, lack)])
      logp, place = lax.top_k(values, KIDS)
      return cls(jnp.take_along_axis(nodes, place, -1), logp)
    return titles.expand(head, node, depth, KIDS, best)


class Pool(NamedTuple):
  """What went through the model, S slots of each request. lo, hi, depth: (B, S) int32, which token
  each slot holds, depth counting it; -1 for none, 0 for the prompt. state: (B, S, D). total: (B, S)
  log-sum-exp. kids: `Kids` (B, S, M)."""
  lo: jax.Array
  hi: jax.Array
  depth: jax.Array
  state: jax.Array
  total: jax.Array
  kids: Kids


def slot_of(pool, lo, depth):
  """The slot of tokens, each known by its first place and its depth (B, Q). -> (B, Q), -1: none"""
  same = (pool.lo[:, None] == lo[..., None]) & (pool.depth[:, None] == depth[..., None])
  return jnp.where(same.any(-1), jnp.argmax(same, -1), -1)


def above(lo, hi, depth, lo_below, hi_below, depth_below):
  """Which tokens (B, S) come before others (B, Q) in their rows, or are them. -> (B, Q, S)"""
  lo, hi, depth = (x[:, None] for x in (lo, hi, depth))
  return ((lo <= lo_below[..., None]) & (hi >= hi_below[..., None]) & (depth > 0)
          & (depth <= depth_below[..., None]))
