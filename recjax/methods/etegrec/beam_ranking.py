"""Ranked items by beam search over semantic IDs: real IDs alone, or any codes."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from recjax.decoding import constraints, device_trie, item_filter
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.generate import generate
from recjax.models import semantic_id_t5

WIDTHS = 4  # how many lengths of histories are compiled

NORMALIZE = 'level'  # each level has a softmax of its own, as in training; runs are keyed by it


@functools.partial(jax.jit, static_argnums=1)
def plant(table, size):
  """The trie of a table (N + 1, Q) with padding in row 0, on the device. -> Forest"""
  return device_trie.semantic_id_trie(table[1:], size, jnp.arange(table.shape[1]) * size)


def ranked(cfg, params, table, histories, most, how, interests=None, seen=True, allowed=None,
           advance=None, free=False):
  """The best items of each history, by the log-probability that training gives their codes: each
  level has a softmax of its own.

  cfg: coder.Config. params: the recommender's. table: (N + 1, Q) int32. histories: [(n,) item
  indices, oldest first], none empty. most: items of a history that are read. how: beams, batch.
  interests: (B, K, d), (B, K) or None. seen: whether items of the history are out. allowed: (N,)
  bool. free: beams may be codes of no item, which count as item 0.
  -> items (B, beams) int32, 0 where none is left, scores (B, beams)
  """
  table = jnp.asarray(table)
  tree = None if free else plant(table, cfg.size)
  beams = min(how.beams, len(table) - 1)
  items = np.zeros((len(histories), beams), np.int32)
  scores = np.full(items.shape, -np.inf, np.float32)
  decoder, bucket = semantic_id_t5.decoder(cfg), max(1, -(-most // WIDTHS))
  order = np.argsort([min(len(h), most) for h in histories], kind='stable')
  for start in range(0, len(order), how.batch):
    part = order[start:start + how.batch]
    full = np.resize(part, how.batch)  # the last batch goes on with its own first rows
    some = [histories[i] for i in full]
    given = {'params': params, 'table': table}
    if interests is not None:
      given['interests'] = tuple(x[full] for x in interests)
    if free:
      rule = constraints.CodeConstraint(cfg.levels, cfg.size)
    else:
      limits = item_filter.build_item_filter(
        tree,
        None if allowed is None else allowed[None],
        None if allowed is None else np.zeros(len(full), np.int32),
        [np.asarray(h) - 1 for h in some] if seen else None,
      )
      rule = constraints.CatalogConstraint(
        tree, limits, normalization=constraints.Normalization(NORMALIZE, cfg.size)
      )
    found = generate(
      decoder,
      given,
      [h[-most:].tolist() for h in some],
      BeamSearch(beams, cfg.levels, length_penalty=0.0),
      rule,
      bucket=bucket,
    )
    good = found.exists & found.complete
    scores[part] = np.where(good, found.scores, -np.inf)[:len(part)]
    items[part] = np.where(good, named(found, table, cfg.size) if free else placed(found, tree),
                           0)[:len(part)]
    if advance:
      advance(len(part))
  return items, scores


def placed(found, tree):
  """Item indices of beams over the trie; every item has codes of its own. -> (B, beams)"""
  return np.asarray(tree.item)[np.clip(found.places[..., 0], 0, len(tree.item) - 1)] + 1


def named(found, table, size):
  """Item indices of free beams, 0 for codes of none. table: (N + 1, Q). -> (B, beams)"""
  names = {tuple(row): i for i, row in enumerate(np.asarray(table).tolist()) if i}
  return np.array([[names.get(tuple(row), 0) for row in beams.tolist()]
                   for beams in found.tokens % size], np.int32)
