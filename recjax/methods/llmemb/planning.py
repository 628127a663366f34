"""What a run would cost before it runs."""
import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.errors import ConfigError
from recjax.methods.llmemb import prompts, rat
from recjax.methods.llmemb import variants as variants_lib
from recjax.models import huggingface, layers, llm, lora
from recjax.training import continuation, cost_model, cpu_cost, text_embedding


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """What a run would take, by hand count. cfg, dataset: of the run. -> {what: text or Estimate}"""
  cfg = continuation.shortened(cfg)
  num_items, prompt_tokens = len(dataset.catalog), 120  # tokens of a prompt, typical
  lines: dict[str, Any] = {}
  if variants_lib.needs_llm(cfg):
    shape = llm_shape(cfg)
    flops = llm.flops_per_token(shape, prompt_tokens)
    tuned = sum(source in ('tuned', 'last') for source in variants_lib.vector_sources(cfg))
    steps = cfg.scft.steps * cfg.scft.batch * 2 * prompt_tokens * (1 - cfg.scft.ratio)
    adapter = layers.count_params(
        jax.eval_shape(lambda k: lora.init_lora(shape, k), jax.random.key(0)))
    lines = {
        'model': f'{llm.param_bytes(shape) / 2**20:,.1f} MiB of weights, {adapter:,} adapter '
                 'parameters',
        'SCFT': f'{tuned} times about {steps / 1e6:,.1f} M tokens, '
                f'{(2 if cfg.scft.parts == 1 else 3) * flops * steps / 1e12:,.1f} TFLOP',
        'export': f'{num_items * prompt_tokens / 1e6:,.2f} M tokens a table, '
                  f'{flops * num_items * prompt_tokens / 1e12:,.1f} TFLOP',
        **cost_model.llm_lines(cost_model.LLMRun(
            cost_model.numerics(shape, cfg.llm), max(1, 2 * cfg.scft.batch // cfg.scft.parts),
            round(prompt_tokens * (1 - cfg.scft.ratio)), 0, tuned * steps, 1), cfg.mesh,
                               jax.device_count()),
        **cpu_cost.lines(cfg, shape, lambda: cpu_stages(cfg, dataset))}
  variants, id_models = variants_lib.variants(cfg), variants_lib.id_models(cfg)
  return lines | {'trainings': f'{len(variants)} of RAT, {len(id_models)} over ids, '
                  f'{cfg.seeds} seeds each'} | rat.cost(cfg, dataset)


def cpu_stages(cfg: ConfigDict, dataset: Dataset) -> list[cpu_cost.Stage]:
  """The stages that use the language model. cfg: the run's config. dataset: the data set."""
  texts = prompts.item_prompts(prompts.settings(cfg), dataset.catalog)[0]
  tokens_of, sampled = cpu_cost.counter(cfg), cpu_cost.some(texts)
  lengths = np.minimum(tokens_of(sampled) + 1, cfg.scft.max_len)
  views = np.minimum(tokens_of([prompts.views(text, cfg.scft.ratio, cfg.seed, 0, i)[0]
                                for i, text in enumerate(sampled)]) + 1, cfg.scft.max_len)
  row = text_embedding.rung(int(views.max()), 2)  # a batch is as wide as its longest view
  stages = []
  for source in variants_lib.vector_sources(cfg):
    if source in ('tuned', 'last'):
      stages.append(cpu_cost.Training(f'scft-{source}', 2 * cfg.scft.batch, row, 0, cfg.scft.steps,
                                      head=False, parts=cfg.scft.parts))
    if source in ('tuned', 'last', 'plain'):
      stages.append(cpu_cost.Embedding(f'export-{source}', lengths.mean() * len(texts),
                                       round(lengths.mean())))
  return stages


def llm_shape(cfg: ConfigDict) -> llm.Config:
  """The LLM's shape, from its folder or the tiny model's settings. cfg: the run's config. Raises
  ConfigError for none."""
  if cfg.llm.weights == 'tiny':
    tiny = cfg.tiny
    return llm.Config(
        vocab=tiny.vocab, width=tiny.width, layers=tiny.layers, heads=tiny.heads,
        kv_heads=tiny.kv_heads, head_dim=tiny.width // tiny.heads, ffn=tiny.ffn, tied=True,
        lora_rank=cfg.lora.rank)
  if not cfg.llm.weights:
    raise ConfigError('llm.weights is empty, so there is no model to count; add '
                      '--config.llm.weights=FOLDER, or use the sample preset')
  return dataclasses.replace(huggingface.read_config(cfg.llm.weights), lora_rank=cfg.lora.rank,
                             quantize=cfg.llm.quantize)
