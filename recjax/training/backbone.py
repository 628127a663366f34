"""The LLM under a method: a checkpoint folder, or a tiny model really trained on the catalogue."""
import collections
import dataclasses
import pathlib

import jax
import numpy as np

from recjax import sharding
from recjax.data.batches import Batches
from recjax.errors import ConfigError, DataError
from recjax.models import huggingface, llm, lora, vocabulary
from recjax.models.layers import check_dtype
from recjax.text import chat
from recjax.text import tokens as tokenizers
from recjax.training import losses, micro
from recjax.training.fit import Task, fit


def folder(cfg, work, messages, texts, *inputs):
  """Where the LLM stands as a Hugging Face checkpoint; trains the tiny one where that is asked.

  cfg.llm.weights: 'tiny', or the path of a checkpoint folder. texts: () -> list of documents to
  train the tiny tokenizer and model on, decided by `inputs`; it learns them as answers to the chat
  `messages`, as an instruction-tuned model would have, or as what follows a plain text, where
  `messages` is one. -> folder
  """
  check(cfg.llm)
  weights = cfg.llm.weights
  if weights == 'tiny':
    settings = {**cfg.tiny.to_dict(), 'dtype': 'float32', 'seed': cfg.seed}
    return work.stage(
        'llm', lambda work, *_: train_tiny(work, cfg.tiny, cfg.seed, messages, texts()),
        settings, messages, *inputs)
  if not weights:
    raise ConfigError('llm.weights is empty: this preset needs a Hugging Face checkpoint folder, '
                      "e.g. --config.llm.weights=/models/Meta-Llama-3-8B-Instruct, or 'tiny'")
  if not (pathlib.Path(weights) / 'config.json').exists():
    raise ConfigError(f'llm.weights={weights!r} holds no config.json; name a folder with a Hugging '
                      "Face checkpoint (config.json, *.safetensors, tokenizer files), or 'tiny'")
  opened(weights, huggingface.read_config(weights))  # now rather than after an hour
  return pathlib.Path(weights)


def check(cfg):
  """Raises ConfigError where a setting of the group `llm` has a value that it cannot have."""
  dtype_of(cfg)
  if cfg.remat not in ('none', *llm.POLICIES):
    raise ConfigError(f'llm.remat={cfg.remat!r} is not one of none, {", ".join(llm.POLICIES)}')


def dtype_of(cfg):
  """The type that a model computes in. cfg: dtype, 'auto' for what suits the backend. -> str"""
  check_dtype('llm.dtype', cfg.dtype, ('auto',))
  if cfg.dtype != 'auto':
    return cfg.dtype
  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'


def opened(folder, shape):
  """The tokenizer of a checkpoint folder, held against its model. shape: llm.Config. -> Tokenizer

  Raises DataError where it has ids without rows, or no end token.
  """
  tokenizer = tokenizers.load(folder)
  vocabulary.check_rows(folder, tokenizer, shape.vocab)
  if not tokenizer.eos_ids:
    raise DataError(f'{folder}: no end token is known, and answers could not end; name eos_token '
                    'in tokenizer_config.json, or eos_token_id in generation_config.json')
  return tokenizer


def shape_of(cfg, **adapter):
  """The model's shape before anything runs, from its folder or the tiny model's settings.

  cfg: llm.weights and tiny. adapter: lora_rank, lora_targets. -> llm.Config. Raises ConfigError
  where no model is named.
  """
  check(cfg.llm)
  if cfg.llm.weights == 'tiny':
    tiny = cfg.tiny
    return llm.Config(
        vocab=tiny.vocab, width=tiny.width, layers=tiny.layers, heads=tiny.heads,
        kv_heads=tiny.kv_heads, head_dim=tiny.width // tiny.heads, ffn=tiny.ffn, tied=True,
        **adapter)
  if not cfg.llm.weights:
    raise ConfigError('llm.weights is empty, so there is no model to count; add '
                      '--config.llm.weights=FOLDER, or use the sample preset')
  return dataclasses.replace(huggingface.read_config(cfg.llm.weights), **adapter)


def train_tiny(work, cfg, seed, messages, texts):
  """Trains a BPE tokenizer and a small Llama-type model on `texts` into `work.folder`.

  cfg: vocab, width, layers, heads, kv_heads, ffn, row (tokens a row), batch (rows), epochs,
  and the settings of `fit`. -> counts
  """
  plain = isinstance(messages, str)
  turns = [messages] if plain else [m['content'] for m in messages]
  tokenizer = tokenizers.train_bpe(texts + turns * 20, cfg.vocab)  # a short prefix costs less
  prefix = tokenizer.encode(messages) if plain else chat.ask(tokenizer, messages)
  shape = llm.Config(
      vocab=tokenizer.vocab_size, width=cfg.width, layers=cfg.layers, heads=cfg.heads,
      kv_heads=cfg.kv_heads, head_dim=cfg.width // cfg.heads, ffn=cfg.ffn, tied=True,
      max_positions=4096, scan_unroll=cfg.layers)
  batches, used = packed_documents(tokenizer, texts, len(prefix), cfg.row, cfg.batch, seed,
                                   sharding.ways(work.mesh))
  model = llm.LM(shape)

  def sums(params, frozen, batch):
    del frozen
    _, past = llm.shared_past(model, {'params': params}, prefix)
    hidden, _ = model.apply({'params': params}, batch['tokens'], batch['positions'],
                            batch['segments'], (past,))
    nll = losses.token_nll(hidden.reshape(-1, shape.width), llm.head_matrix(params, shape),
                           batch['targets'].reshape(-1))
    weight = batch['weights'].reshape(-1)
    return (nll * weight).sum(), weight.sum()

  task = Task(init=lambda key: fan_in(llm.init(shape, key)), loss=micro.mean(sums),
              split=micro.by_sums(sums), shape=(shape, len(prefix)), batches=batches,
              rules=llm.RULES)
  steps = max(1, round(cfg.epochs * batches.count / cfg.batch))
  params = fit(task, dataclasses.replace(FitSettings.of(cfg), steps=steps, seed=seed), work)
  huggingface.save(sharding.fetch(params), shape, work.folder)
  tokenizer.save(work.folder)
  return {'parameters': llm.count(params), 'vocabulary': tokenizer.vocab_size, 'steps': steps,
          'tokens': used}


def fan_in(params):
  """Random weights at 1 / sqrt(inputs): at small widths the usual 0.02 learns slowly at first."""
  def one(path, x):
    name = sharding.path_of(path)
    if name.endswith('kernel'):
      return x * (x.shape[-2] ** -0.5 / 0.02)
    return x * (x.shape[-1] ** -0.5 / 0.02) if name == 'embed' else x
  return jax.tree_util.tree_map_with_path(one, params)


@dataclasses.dataclass(frozen=True)
class FitSettings:
  """What `fit` reads; methods fill it from their own config groups."""
  optim: object
  steps: int = 0
  seed: int = 0
  log_every: int = 10
  save_every: int = 100
  eval_every: int = 0
  patience: int = 0

  @classmethod
  def of(cls, cfg):
    """From a config group that holds the optimiser's settings and the cadences."""
    return cls(optim=cfg, log_every=cfg.log_every, save_every=cfg.save_every)


def packed_documents(tokenizer, texts, start, row, batch, seed, ways=1):
  """Documents, each ended by the end token, in rows of `row` tokens; long ones are cut.

  start: position of every document's first token. ways: as Batches takes it.

  -> (Batches of tokens, positions, segments, targets (int32) and weights (float32), each
  (batch, row), number of tokens)
  """
  end = tokenizer.eos_ids[0]
  documents = [ids[:row] + [end] for ids in tokenizer.encode_batch(texts)]
  rows = tokenizers.pack([len(d) - 1 for d in documents], row)
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


def wander(word_lists, rng):
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


def load_adapted(folder, cfg, adapter, mesh):
  """A checkpoint with a trained adapter, saved as PEFT's. -> (llm.LM, params, Tokenizer, LoRA)"""
  shape = huggingface.adapter_config(adapter, huggingface.read_config(folder))
  model, params, tokenizer = load(folder, cfg, mesh, lora_rank=shape.lora_rank,
                                  lora_alpha=shape.lora_alpha, lora_targets=shape.lora_targets)
  trained = huggingface.load_adapter(adapter, shape)
  where = sharding.shardings(trained, llm.RULES, mesh)
  return model, params, tokenizer, jax.tree.map(sharding.spread, trained, where)


def export_adapted(folder, adapter, to, out):
  """A checkpoint's adapter in PEFT's layout ('peft'), or merged into a whole one ('merged')."""
  base = huggingface.read_config(folder)
  shape = huggingface.adapter_config(adapter, base)
  lora_params = huggingface.load_adapter(adapter, shape)
  if to == 'peft':
    huggingface.save_adapter(lora_params, shape, out, base=str(pathlib.Path(folder).resolve()))
    return
  huggingface.save(lora.merge(huggingface.load(folder, base), lora_params, shape), base, out)
  tokenizers.load(folder).save(out)


def load(folder, cfg, mesh, **adapter):
  """Opens a checkpoint folder for use on `mesh`. cfg: dtype ('auto' by backend), remat.

  adapter: lora_rank, lora_alpha, lora_targets of llm.Config, where the model is to have one.
  -> (llm.LM, params on the mesh, Tokenizer)
  """
  dtype, shape = dtype_of(cfg), huggingface.read_config(folder)
  # A loop over few layers costs a CPU more than it saves in compilation.
  unroll = shape.layers if shape.layers <= 4 and jax.default_backend() == 'cpu' else 1
  shape = dataclasses.replace(shape, dtype=dtype, param_dtype=dtype, remat=cfg.remat,
                              scan_unroll=unroll, **adapter)
  where = sharding.shardings(llm.shapes(shape), llm.RULES, mesh)
  tokenizer = opened(folder, shape)
  return llm.LM(shape), huggingface.load(folder, shape, where), tokenizer
