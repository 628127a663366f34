"""The LLM under a method: a checkpoint folder, or a tiny model really trained on the catalogue."""
import collections
import dataclasses

import jax
import numpy as np

from recjax.data.batches import Batches
from recjax.distributed import multihost, sharding
from recjax.models import huggingface, layers, llm
from recjax.text import chat_template, packing
from recjax.text import tokenizer as tokenizers
from recjax.training import loop, microbatch
from recjax.training.loop import Task, fit
from recjax.training.losses import lm


def train_tiny(work, cfg, seed, messages, texts):
  """Trains a BPE tokenizer and a small Llama-type model on `texts` into `work.folder`.

  cfg: vocab, width, layers, heads, kv_heads, ffn, row (tokens a row), batch (rows), epochs,
  and the settings of `fit`. -> counts
  """
  plain = isinstance(messages, str)
  turns = [messages] if plain else [m['content'] for m in messages]
  tokenizer = tokenizers.train_bpe(texts + turns * 20, cfg.vocab)  # a short prefix costs less
  prefix = tokenizer.encode(messages) if plain else chat_template.ask(tokenizer, messages)
  shape = llm.Config(
      vocab=tokenizer.vocab_size, width=cfg.width, layers=cfg.layers, heads=cfg.heads,
      kv_heads=cfg.kv_heads, head_dim=cfg.width // cfg.heads, ffn=cfg.ffn, tied=True,
      max_positions=4096, scan_unroll=cfg.layers)
  batches, used = packed_documents(tokenizer, texts, len(prefix), cfg.row_tokens, cfg.batch, seed,
                                   sharding.num_batch_shards(work.mesh))
  model = llm.LM(shape)

  def sums(params, frozen, batch):
    del frozen
    _, past = llm.prefill_prefix(model, {'params': params}, prefix)
    hidden, _ = model.apply({'params': params}, batch['tokens'], batch['positions'],
                            batch['segments'], (past,))
    nll = lm.token_nll(hidden.reshape(-1, shape.width), llm.head_matrix(params, shape),
                           batch['targets'].reshape(-1))
    weight = batch['weights'].reshape(-1)
    return (nll * weight).sum(), weight.sum()

  task = Task(init=lambda key: fan_in(llm.init(shape, key)), loss=microbatch.mean(sums),
              split=microbatch.accumulate_sums(sums), shape=(shape, len(prefix)), batches=batches,
              rules=llm.RULES)
  steps = max(1, round(cfg.epochs * batches.count / cfg.batch))
  params = fit(task, dataclasses.replace(loop.FitSettings.of(cfg), steps=steps, seed=seed), work)
  huggingface.save(multihost.to_host(params), shape, work.folder)
  tokenizer.save(work.folder)
  return {
    'parameters': layers.count_params(params),
    'vocabulary': tokenizer.vocab_size,
    'steps': steps,
    'tokens': used,
  }


def fan_in(params):
  """Random weights at 1 / sqrt(inputs): at small widths the usual 0.02 learns slowly at first."""
  def one(path, x):
    name = sharding.path_of(path)
    if name.endswith('kernel'):
      return x * (x.shape[-2] ** -0.5 / 0.02)
    return x * (x.shape[-1] ** -0.5 / 0.02) if name == 'embed' else x
  return jax.tree_util.tree_map_with_path(one, params)


def packed_documents(tokenizer, texts, start, row, batch, seed, ways=1):
  """Documents, each ended by the end token, in rows of `row` tokens; long ones are cut.

  start: position of every document's first token. ways: as Batches takes it.

  -> (Batches of tokens, positions, segments, targets (int32) and weights (float32), each
  (batch, row), number of tokens)
  """
  end = tokenizer.eos_ids[0]
  documents = [ids[:row] + [end] for ids in tokenizer.encode_batch(texts)]
  rows = packing.pack([len(d) - 1 for d in documents], row)
  arrays = {k: np.zeros((len(rows), row), np.int32)
            for k in ('tokens', 'positions', 'segments', 'targets')}
  arrays['weights'] = np.zeros((len(rows), row), np.float32)
  for i, members in enumerate(rows):
    at = 0
    for s, d in enumerate(members, 1):
      ids = documents[d]
      here = slice(at, at + len(ids) - 1)
      arrays['tokens'][i, here], arrays['targets'][i, here] = ids[:-1], ids[1:]
      arrays['positions'][i, here] = start + np.arange(len(ids) - 1)
      arrays['segments'][i, here], arrays['weights'][i, here] = s, 1
      at = here.stop
  batches = Batches(lambda r: {k: v[r] for k, v in arrays.items()}, len(rows), batch, seed, ways)
  return batches, int(arrays['weights'].sum())


def similarity_walk(word_lists, rng):
  """An order of items in which each shares as many words as possible with the one before it.

  word_lists: the words of each item. -> list of item rows
  """
  holders = collections.defaultdict(set)
  for i, words in enumerate(word_lists):
    for word in words:
      holders[word].add(i)
  left = dict.fromkeys(rng.permutation(len(word_lists)).tolist())
  order, now = [], None
  while left:
    shared = collections.Counter() if now is None else collections.Counter(
        j for word in word_lists[now] for j in holders[word])
    now = max(shared, key=lambda j: (shared[j], j)) if shared else next(iter(left))
    del left[now]
    for word in word_lists[now]:
      holders[word].discard(now)
    order.append(now)
  return order
