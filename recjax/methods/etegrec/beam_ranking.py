"""Ranked items by beam search over semantic IDs: real IDs alone, or any codes."""
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from recjax.decoding import constraints, device_trie, item_filter
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.device_trie import DeviceTrie
from recjax.decoding.generate import Generated, generate
from recjax.models import semantic_id_t5

NUM_BUCKETS = 4  # how many lengths of histories are compiled

NORMALIZE = 'level'  # each level has a softmax of its own, as in training; runs are keyed by it


@functools.partial(jax.jit, static_argnums=1)
def build_device_trie(table: Int[Array, 'N1 Q'], size: int) -> DeviceTrie:
  """The trie of a table of codes on the device. table: row 0 is padding. size: codes of a level."""
  return device_trie.semantic_id_trie(table[1:], size, jnp.arange(table.shape[1]) * size)


def rank_items(cfg: semantic_id_t5.Config, params: PyTree, table: Int[Array | np.ndarray, 'N1 Q'],
               histories: Sequence[np.ndarray], max_history: int, decode: ConfigDict,
               interests: tuple | None = None, exclude_seen: bool = True,
               allowed: np.ndarray | None = None, advance: Callable | None = None,
               free: bool = False) -> tuple[Int[np.ndarray, 'B K'], Float[np.ndarray, 'B K']]:
  """The best items of each history, by the log-probability that training gives their codes: each
  level has a softmax of its own.

  cfg: of the recommender. params: its parameters. table: codes of items, row 0 of padding.
  histories: item indices, oldest first, none empty. max_history: items of a history that are read.
  decode: beams, batch. interests: vectors (B, K, d) and whether there is one (B, K), or None.
  exclude_seen: whether items of the history are out. allowed: (N,) bool, other items are out.
  advance: told how many histories are done. free: beams may be codes of no item, which count as
  item 0. -> item indices, 0 where none is left; scores
  """
  table = jnp.asarray(table)
  trie = None if free else build_device_trie(table, cfg.size)
  beams = min(decode.beams, len(table) - 1)
  items = np.zeros((len(histories), beams), np.int32)
  scores = np.full(items.shape, -np.inf, np.float32)
  decoder, bucket_length = semantic_id_t5.decoder(cfg), max(1, -(-max_history // NUM_BUCKETS))
  order = np.argsort([min(len(history), max_history) for history in histories], kind='stable')
  for batch_start in range(0, len(order), decode.batch):
    batch_rows = order[batch_start : batch_start + decode.batch]
    padded_rows = np.resize(
      batch_rows, decode.batch
    )  # the last batch goes on with its own first rows
    batch_histories = [histories[i] for i in padded_rows]
    inputs = {'params': params, 'table': table}
    if interests is not None:
      inputs['interests'] = tuple(x[padded_rows] for x in interests)
    if free:
      constraint = constraints.CodeConstraint(cfg.levels, cfg.size)
    else:
      limits = item_filter.build_item_filter(
        trie, None if allowed is None else allowed[None],
        None if allowed is None else np.zeros(len(padded_rows), np.int32),
        batch_histories if exclude_seen else None)
      constraint = constraints.CatalogConstraint(
        trie, limits, normalization=constraints.Normalization(NORMALIZE, cfg.size))
    generated = generate(
      decoder, inputs, [history[-max_history:].tolist() for history in batch_histories],
      BeamSearch(beams, cfg.levels, length_penalty=0.0), constraint, bucket=bucket_length)
    is_item = generated.exists & generated.complete
    scores[batch_rows] = np.where(is_item, generated.scores, -np.inf)[: len(batch_rows)]
    items[batch_rows] = np.where(
      is_item,
      items_of_codes(generated, table, cfg.size) if free else items_of_nodes(generated, trie), 0
    )[: len(batch_rows)]
    if advance:
      advance(len(batch_rows))
  return items, scores


def items_of_nodes(generated: Generated, trie: DeviceTrie) -> Int[np.ndarray, 'B K']:
  """Item indices of beams over the trie; every item has codes of its own.

  generated: of beam search.
  """
  return np.asarray(trie.item)[np.clip(generated.places[..., 0], 0, len(trie.item) - 1)] + 1


def items_of_codes(generated: Generated, table: Int[Array | np.ndarray, 'N1 Q'],
                   size: int) -> Int[np.ndarray, 'B K']:
  """Item indices of free beams, 0 for codes of none. table: row 0 is padding. size: of a level.

  generated: of beam search.
  """
  items = {tuple(codes): item for item, codes in enumerate(np.asarray(table).tolist()) if item}
  return np.array([[items.get(tuple(codes), 0) for codes in beam_codes.tolist()]
                   for beam_codes in generated.tokens % size], np.int32)
