"""What a BETag run would cost before it runs."""
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax.data import batches
from recjax.data.dataset import Dataset
from recjax.methods.betag import base_tags, prompts, train
from recjax.models import layers, llm, lora
from recjax.text import keywords
from recjax.training import continuation, cost_model, cpu_cost, llm_loading

CHAT = 16  # tokens that a chat template puts around the messages of the prefix, typical

PROMPT, LINE = 160, 24  # tokens of the chat prefix and of one item's line, typical


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """Parameters, memory, operations, tokens and API price, by hand count.
  -> {what: text or Estimate}

  Line lengths are taken as typical (24 tokens an item); the run itself counts the real ones. cfg:
  the run's config. dataset: the data set.
  """
  cfg = continuation.shortened(cfg)
  shape = llm_loading.shape_of(cfg, lora_rank=cfg.lora.rank)
  items, users = len(dataset.catalog), len(dataset.interactions)
  length = min(cfg.train.max_seq_len, len(dataset.interactions.items) / users)
  train_tokens = cfg.train.epochs * users * length * LINE
  new_tokens = items * cfg.decode.beams * cfg.decode.new_tokens
  context = PROMPT + LINE + cfg.decode.new_tokens / 2
  flops = llm.flops_per_token(shape, context)
  kv = 2 * shape.layers * shape.kv_heads * shape.head_dim * (2 if shape.dtype != 'float32' else 4)
  suffix = cfg.decode.batch * cfg.decode.beams * cfg.decode.new_tokens * kv
  count = max(1, round(length * LINE * cfg.train.batch / (0.88 * cfg.train.row_tokens)))
  run = cost_model.LLMRun(cost_model.numerics(shape, cfg.llm), count, cfg.train.row_tokens, PROMPT,
                 train_tokens / cfg.train.epochs, cfg.train.epochs, items, cfg.decode.batch,
                 cfg.decode.beams, LINE, cfg.decode.new_tokens)
  api = 0.0
  if cfg.tags.source == 'api':
    api = items * (310 * cfg.tags.api_price_in
                   + 100 * cfg.tags.api_samples * cfg.tags.api_price_out) / 1e6
  adapter = dict_size(shape)
  return {
      'model': f'{llm.param_bytes(shape) / 2**20:,.1f} MiB of weights ({shape.stored}), '
               f'{adapter:,} adapter parameters',
      'optimizer': f'{adapter * 12 / 2**20:,.1f} MiB (adapter and two moments, float32)',
      'training': f'about {train_tokens / 1e6:,.1f} M tokens, '
                  f'{2 * flops * train_tokens / 1e12:,.1f} TFLOP',
      'generation': f'{new_tokens / 1e6:,.1f} M tokens, {flops * new_tokens / 1e12:,.1f} TFLOP',
      'KV cache': f'{suffix / 2**20:,.1f} MiB for the beams of {cfg.decode.batch} items; their '
                  f'prompts, once each: {cfg.decode.batch * LINE * kv / 2**20:,.2f} MiB',
      'API': f'about {api:,.2f} (at most {cfg.tags.api_budget:,.2f}) at the prices of the config'
             if cfg.tags.source == 'api' else 'none: tags come from ' + cfg.tags.source,
      **cost_model.llm_lines(run, cfg.mesh, jax.device_count()),
      **cpu_cost.lines(cfg, shape, lambda: cpu_stages(cfg, dataset))}


def cpu_stages(cfg: ConfigDict, dataset: Dataset) -> list[cpu_cost.Stage]:
  """The stages that use the language model, tags being the keywords of titles where there are none
  yet. cfg: the run's config. dataset: the data set."""
  tokens_of = cpu_cost.counter(cfg)
  column = dataset.catalog.columns.get('tags')
  tags = column or keywords.extract_tags(dataset.catalog.columns, n=cfg.tags.max_base_tags)
  sequences = [[tags[i - 1] for i in base_tags.split_of(dataset).train.history(user)]
               for user in range(len(dataset.interactions))]
  sequences = [s for s in sequences if len(s) >= cfg.train.min_seq_len]
  draws = batches.halving_draws(np.array([len(s) for s in sequences]), cfg.train.epochs, cfg.seed)
  how = train.DrawSettings(cfg.seed, cfg.train.max_seq_len, cfg.tags.sep, tuple(cfg.train.keep))
  drawn = [''.join(prompts.draw_sample(sequences[draws[d]], d, how))
           for d in cpu_cost.some(range(len(draws)))]
  prefix = int(tokens_of([''.join(m['content'] for m in prompts.MESSAGES)])[0]) + CHAT
  heading = int(tokens_of([prompts.HEADING])[0])
  tuned = cpu_cost.packed('tune', tokens_of(drawn) + heading, prefix,
                          len(draws) / cfg.train.epochs, cfg.train)
  lines = [prompts.generation_prompt(t, cfg.tags.sep, cfg.decode.max_tags)
           for t in cpu_cost.some(tags)]
  return [tuned, cpu_cost.Search(
      'generate', len(tags), cfg.decode.batch, cfg.decode.beams,
      cpu_cost.padded(np.median(tokens_of(lines)) + heading, 16), cfg.decode.new_tokens, prefix)]


def dict_size(shape: llm.Config) -> int:
  """Parameters of the adapter. shape: the LLM's."""
  return layers.count_params(jax.eval_shape(lambda k: lora.init_lora(shape, k), jax.random.key(0)))
