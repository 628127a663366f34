"""What a run would cost before it runs, and texts for the tiny model."""
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Dataset
from recjax.methods.reclm import (
  generate,
  prompts,
  sft_data,
)
from recjax.models import layers, llm, lora
from recjax.training import continuation, cost_model, cpu_cost, llm_loading, tiny_llm

CHAT, MARKS = 16, 5  # tokens that a chat template puts around, and that a list puts around a title

FORCED = 4  # tokens of a title that a pass of a list writes, about

LONGEST = 0.9  # quantile of the tokens of titles at which a batch of searches is done, about

OPENING, TITLE = 60, 14  # tokens of a prompt around its titles, and of a title, typical


def documents(template: dict[str, str], titles: Sequence[str], seed: int, walks: int = 3,
              longest: int = prompts.MAX_ITEMS) -> list[str]:
  """What the tiny model learns before it sees any behavior: lists that wander from an item to one
  of like words, asked for and answered, so that it knows titles and form and nothing of users.

  template: the request's parts. walks: over all titles. longest: items of a list. titles: of the
  catalog. seed: of the draws.
  """
  words = [sorted(set(title.lower().split())) for title in titles]
  rng = np.random.default_rng((seed, len(titles)))
  texts = []
  for _ in range(walks):
    order = tiny_llm.similarity_walk(words, rng)
    for start in range(0, len(order), longest):
      list_titles = [titles[item] for item in order[start:start + longest]]
      cut = int(rng.integers(1, len(list_titles) + 1)) if len(list_titles) > 1 else 1
      history = ' → '.join(f"'{title}'" for title in list_titles[:cut])
      lines = '\n '.join(
        f'{number}. {title}' for number, title in enumerate(list_titles[cut:] or list_titles, 1)
      )
      form = template['train' if rng.random() < 0.5 else 'test']
      form += template['rule'] if rng.random() < 0.5 else ''
      texts.append(
        form.replace('{history}', history).replace('{count}', str(len(list_titles) - cut or 1))
        + '\n'
        + lines
        + '\n'
      )
  return texts


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """Parameters, operations and time, by hand count. cfg, dataset: of the run.
  -> {what: text or Estimate}"""
  cfg = continuation.shortened(cfg)
  shape = llm_loading.shape_of(cfg, **({} if cfg.train.mode == 'full' else dict(
      lora_rank=cfg.lora.rank, lora_targets=tuple(cfg.lora.targets))))
  users = int((dataset.interactions.lengths() > 3).sum())
  users = min(users, cfg.train.sample) if cfg.train.sample else users
  length = OPENING + TITLE * (prompts.MAX_ITEMS // 2 + cfg.train.longest_list / 2)
  forward = llm.flops_per_token(shape, length / 2)
  full = cfg.train.mode == 'full'
  trained = layers.count_params(llm.shapes(shape)) if full else layers.count_params(
      jax.eval_shape(lambda k: lora.init_lora(shape, k), jax.random.key(0)))
  tokens = cfg.train.epochs * users * length
  flops = (3 if full else 2) * forward * tokens
  run = cost_model.LLMRun(cost_model.numerics(shape, cfg.llm), max(1, round(
      cfg.train.batch * length / cfg.train.row_tokens)), cfg.train.row_tokens, 0, users * length,
                 cfg.train.epochs, users, cfg.decode.batch, 1, round(length), cfg.decode.new_tokens)
  return {
      'model': f'{layers.count_params(llm.shapes(shape)):,} parameters, '
               f'{llm.param_bytes(shape) / 2**20:,.0f} MiB as stored ({shape.stored})',
      'trained': f'{trained:,} parameters ({cfg.train.mode})',
      'training': f'{cfg.train.epochs} epochs of {users:,} samples, about {tokens / 1e6:,.1f} M '
                  f'tokens, {flops / 1e12:,.1f} TFLOP',
      **cost_model.llm_lines(run, cfg.mesh, jax.device_count()),
      **cpu_cost.lines(cfg, shape, lambda: cpu_stages(cfg, dataset))}


def cpu_stages(cfg: ConfigDict, dataset: Dataset) -> list[cpu_cost.Stage]:
  """The stages that use the language model. cfg: the run's config. dataset: the data set."""
  tokens_of, template = cpu_cost.counter(cfg), prompts.read_template(cfg)
  columns, flat = dataset.catalog.columns, dataset.interactions
  titles = tokens_of([text or '' for text in cpu_cost.some(columns['title'])])
  around = int(tokens_of([template['system'] + template['train']])[0]) + CHAT
  known = [n for n in flat.lengths() if n >= sft_data.MIN_USER_ITEMS]
  shown = np.minimum(cpu_cost.some(known), prompts.MAX_ITEMS)
  title, count = titles.mean(), min(len(known), cfg.train.sample or len(known))
  answer = cfg.train.longest_list * (title + MARKS)
  lengths = np.minimum(around + shown * (title + MARKS) + answer, cfg.prompt.max_prompt_tokens)
  users = min(len(flat), cfg.eval.users or len(flat))
  prefix = int(tokens_of([template['system']])[0])
  search = functools.partial(
      cpu_cost.Search, batch=cfg.decode.batch, prefix=prefix,
      prompt=cpu_cost.padded(around - prefix + prompts.MAX_ITEMS * (title + MARKS)))
  passes = cfg.decode.num_items * (MARKS + title / FORCED)
  tuned = cpu_cost.packed('tune', lengths.astype(int), prefix,
                          count * (1 + cfg.train.chat_share), cfg.train, cfg.train.valid_users)
  return [tuned, search('lists', users, beams=1, passes=passes, width=generate.PASS_WIDTH),
          search('ranked', users, beams=generate.MIN_BEAMS,
                 passes=float(np.quantile(titles, LONGEST))),
          search('rounds', cfg.eval.rounds, beams=1, passes=passes + cfg.eval.answer_tokens,
                 width=generate.PASS_WIDTH)]
