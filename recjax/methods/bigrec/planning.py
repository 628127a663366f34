"""What a run would cost before it runs."""
import functools
import os
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax.data import windows
from recjax.data.dataset import Dataset
from recjax.methods.bigrec import instruction_data, prompts
from recjax.models import layers, llm, lora
from recjax.training import continuation, cost_model, cpu_cost, llm_loading

LONGEST = 0.9  # quantile of the tokens of titles at which a batch of searches is done, about

OPENING, TITLE = 60, 14  # tokens of a prompt around its history, and of a title, typical


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """Parameters, memory, operations and time, by hand count. -> {what: text or Estimate}

  Titles are taken as typical (14 tokens); the run itself counts the real ones. cfg: the run's
  config. dataset: the data set.
  """
  cfg = continuation.shortened(cfg)
  shape = llm_loading.shape_of(cfg, **({} if cfg.train.mode == 'full' else dict(
      lora_rank=cfg.lora.rank, lora_targets=tuple(cfg.lora.targets))))
  users, _ = windows.target_positions(np.maximum(dataset.interactions.lengths() - 2, 0),
                                      cfg.samples.window, cfg.samples.max_history)
  count = len(users) if cfg.train.sample <= 0 else min(len(users), cfg.train.sample)
  share = min(cfg.samples.max_history,
              len(dataset.interactions.items) / max(1, len(dataset.interactions)))
  length = OPENING + TITLE * (share + 1)
  forward = llm.flops_per_token(shape, length / 2)
  full = cfg.train.mode == 'full'
  trained = (layers.count_params(llm.shapes(shape)) if full else layers.count_params(
      jax.eval_shape(lambda k: lora.init_lora(shape, k), jax.random.key(0))))
  tokens = cfg.train.epochs * count * length
  flops = (3 if full else 2) * forward * tokens
  asked = cfg.eval.max_test_users or len(dataset.interactions)
  written = asked * cfg.decode.beams * (TITLE if cfg.variant == 'decode' else cfg.decode.new_tokens)
  run = cost_model.LLMRun(cost_model.numerics(shape, cfg.llm), max(1, round(
      cfg.train.batch * (length - OPENING) / cfg.train.row_tokens)), cfg.train.row_tokens, OPENING,
                 count * length, cfg.train.epochs, asked, cfg.decode.batch, cfg.decode.beams,
                 round(length), TITLE if cfg.variant == 'decode' else cfg.decode.new_tokens)
  return {
      'model': f'{layers.count_params(llm.shapes(shape)):,} parameters, '
               f'{llm.param_bytes(shape) / 2**20:,.0f} MiB as stored ({shape.stored})',
      'trained': f'{trained:,} parameters ({cfg.train.mode})',
      'training': f'{count:,} samples, at most {tokens / 1e6:,.1f} M tokens, '
                  f'{flops / 1e12:,.1f} TFLOP',
      'generation': f'{asked:,} prompts, {written / 1e6:,.2f} M beam tokens, '
                    f'{forward * (written + asked * length) / 1e12:,.1f} TFLOP',
      **cost_model.llm_lines(run, cfg.mesh, jax.device_count()),
      **cpu_cost.lines(cfg, shape, lambda: cpu_stages(cfg, dataset))}


def cpu_stages(cfg: ConfigDict, dataset: Dataset) -> list[cpu_cost.Stage]:
  """The stages that use the language model. cfg: the run's config. dataset: the data set."""
  tokens_of, template = cpu_cost.counter(cfg), prompts.load_template(cfg.prompt.template)
  titles, flat = instruction_data.titles_of(dataset), dataset.interactions

  def texts(cases):  # (user, place of the target in the sequence)
    rows = [(flat.history(user), place) for user, place in cpu_cost.some(cases)]
    shown = [items[max(0, place - cfg.samples.max_history):place] for items, place in rows]
    return [template.text(template.record(cfg.prompt.noun, [titles[i - 1] for i in items], ''))
            for items in shown]
  learned = list(zip(*windows.target_positions(np.maximum(flat.lengths() - 2, 0),
                                              cfg.samples.window, cfg.samples.max_history)))
  asked = texts([(user, n - 1) for user, n in enumerate(flat.lengths()) if n > 1])
  answers = tokens_of([template.reply(title) for title in cpu_cost.some(titles)]) + 1
  sampled = texts(learned)
  prefix = int(tokens_of([os.path.commonprefix(sampled)])[0])
  lengths = np.minimum(tokens_of(sampled), cfg.prompt.max_prompt_tokens) - prefix
  lengths = lengths + np.resize(answers, len(lengths))
  count = len(learned) if cfg.train.sample <= 0 else min(len(learned), cfg.train.sample)
  valid, test = (min(len(flat), most or len(flat)) for most in (
      cfg.eval.max_valid_users, cfg.eval.max_test_users))
  prompt = min(int(tokens_of(asked).max()), cfg.prompt.max_prompt_tokens) - prefix
  search = functools.partial(cpu_cost.Search, batch=cfg.decode.batch, beams=cfg.decode.beams,
                             prompt=cpu_cost.padded(prompt), prefix=prefix)
  tune = cpu_cost.packed('tune', lengths, prefix, count, cfg.train, cfg.train.valid_sample)
  if cfg.variant == 'decode':
    passes = float(np.quantile(answers, LONGEST))
    return [tune, search('choose', len(cfg.decode.alphas) * valid, passes=passes),
            search('decode', 3 * test + cfg.decode.ghost_cases, passes=passes)]
  tokens = answers.mean() * (len(titles) + valid + test)
  return [tune, search('generate', valid + test, passes=cfg.decode.new_tokens),
          cpu_cost.Embedding('embed', tokens, round(answers.mean()))]
