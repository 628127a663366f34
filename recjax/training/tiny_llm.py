"""A tiny causal LM with its tokenizer, really trained on the texts of a catalog."""
import collections
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax.data.batches import Batches
from recjax.distributed import multihost, sharding
from recjax.models import huggingface, layers, llm
from recjax.text import chat_template, packing
from recjax.text import tokenizer as tokenizers
from recjax.training import loop, microbatch, sft
from recjax.training.losses import lm
from recjax.training.workdir import Workdir


def train_tiny(work: Workdir, cfg: ConfigDict, seed: int, messages: str | list[dict],
               texts: list[str]) -> dict:
  """Trains a BPE tokenizer and a small Llama-type model on `texts` into `work.folder`.

  work: the stage's part of the work folder. cfg: vocab, width, layers, heads, kv_heads, ffn,
  row_tokens, batch (rows), epochs, and the settings of `fit`. messages: the chat that texts are
  learned as answers to, or a plain text that they follow. texts: documents. seed: of weights and
  order. -> counts
  """
  plain = isinstance(messages, str)
  turns = [messages] if plain else [m['content'] for m in messages]
  tokenizer = tokenizers.train_bpe(texts + turns * 20, cfg.vocab)  # a short prefix costs less
  prefix = tokenizer.encode(messages) if plain else chat_template.prompt_ids(tokenizer, messages)
  shape = llm.Config(
      vocab=tokenizer.vocab_size, width=cfg.width, layers=cfg.layers, heads=cfg.heads,
      kv_heads=cfg.kv_heads, head_dim=cfg.width // cfg.heads, ffn=cfg.ffn, tied=True,
      max_positions=4096, scan_unroll=cfg.layers)
  packed = pack_documents(tokenizer, texts, prefix, cfg.row_tokens)
  batches = Batches(packed.batch, len(packed.rows), cfg.batch, seed,
                    sharding.num_batch_shards(work.mesh))
  model = llm.LM(shape)

  def sums(params: PyTree, frozen: PyTree, batch: PyTree) -> tuple[jax.Array, jax.Array]:
    del frozen
    hidden = sft.hidden_states(model, prefix, {'params': params}, batch)
    nll = lm.token_nll(hidden, llm.head_matrix(params, shape), batch['targets'].reshape(-1))
    weights = batch['weights'].reshape(-1)
    return (nll * weights).sum(), weights.sum()

  task = loop.Task(
      init=lambda key: fan_in(llm.init(shape, key)), loss=microbatch.mean(sums),
      split=microbatch.accumulate_sums(sums), shape=(shape, len(prefix)), batches=batches,
      rules=llm.RULES)
  steps = max(1, round(cfg.epochs * batches.count / cfg.batch))
  settings = dataclasses.replace(loop.FitSettings.of(cfg), steps=steps, seed=seed)
  params = loop.fit(task, settings, work)
  huggingface.save(multihost.to_host(params), shape, work.folder)
  tokenizer.save(work.folder)
  return {'parameters': layers.count_params(params), 'vocabulary': tokenizer.vocab_size,
          'steps': steps, 'tokens': packed.tokens}


def fan_in(params: PyTree) -> PyTree:
  """Random weights at 1 / sqrt(inputs): at small widths the usual 0.02 learns slowly at first.
  params: of an `llm.LM`."""
  def scaled(path: tuple, x: jax.Array) -> jax.Array:
    name = sharding.path_of(path)
    if name.endswith('kernel'):
      return x * (x.shape[-2] ** -0.5 / 0.02)
    return x * (x.shape[-1] ** -0.5 / 0.02) if name == 'embed' else x
  return jax.tree_util.tree_map_with_path(scaled, params)


def pack_documents(tokenizer: tokenizers.Tokenizer, texts: list[str], prefix: list[int],
                   row_tokens: int) -> packing.PackedSamples:
  """Documents behind `prefix`, each ended by the end token, in rows; long ones are cut.

  tokenizer: ends and encodes. texts: the documents. prefix: token ids. row_tokens: tokens of a row
  at most.

  The first token of a document is not learned.
  """
  end = tokenizer.eos_ids[0]
  samples = []
  for ids in tokenizer.encode_batch(texts):
    ids = np.array([*prefix, *ids[:row_tokens], end], np.int32)
    samples.append(packing.TokenSample(ids, np.arange(len(ids)) > len(prefix)))
  rows = packing.pack([len(s.ids) - len(prefix) - 1 for s in samples], row_tokens)
  return packing.PackedSamples(prefix, samples, rows, row_tokens)


def similarity_walk(word_lists: Sequence[Sequence], rng: np.random.Generator) -> list[int]:
  """An order of items in which each shares as many words as possible with the one before it.

  word_lists: the words of each item. rng: for the order of items that share none. -> item rows
  """
  holders = collections.defaultdict(set)
  for item, words in enumerate(word_lists):
    for word in words:
      holders[word].add(item)
  left = dict.fromkeys(rng.permutation(len(word_lists)).tolist())
  order, current = [], None
  while left:
    shared = collections.Counter() if current is None else collections.Counter(
        item for word in word_lists[current] for item in holders[word])
    current = max(shared, key=lambda i: (shared[i], i)) if shared else next(iter(left))
    del left[current]
    for word in word_lists[current]:
      holders[word].discard(current)
    order.append(current)
  return order
