"""Supervised fine-tuning on prompts and titles: LoRA (BIGRec) or all weights (D3)."""
import os
import pathlib
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax import split_rule
from recjax.distributed import sharding
from recjax.distributed.multihost import to_host
from recjax.errors import ConfigError
from recjax.methods.bigrec import instruction_data, prompts
from recjax.methods.bigrec.instruction_data import Data
from recjax.methods.bigrec.prompts import Template
from recjax.models import huggingface, llm
from recjax.text.tokenizer import Tokenizer
from recjax.training import continuation, llm_loading, sft, tiny_llm
from recjax.training.continuation import Start
from recjax.training.workdir import Workdir

MODES = ('lora', 'full')


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides this stage's result. cfg: the run's config."""
  return ConfigDict({k: cfg[k] for k in ('data', 'domains', 'samples', 'prompt', 'train', 'lora',
                                         'optim', 'llm', 'seed')})


def documents(template: Template, noun: str, titles: list[str], seed: int, walks: int = 4,
              longest: int = 8) -> tuple[Any, list[str]]:
  """Texts that the tiny model learns to write before it sees any behavior, and their opening.

  Prompts and answers of made-up histories that wander from an item to one of like words, so that
  the model knows the catalog's titles and the prompts' form, and nothing of what users did.
  template: of prompts. noun: what items are called. seed: of the walks. walks: how often the
  histories go through all items. longest: titles of a history. -> (opening, list of texts that
  continue it)
  """
  first, last = (template.text(template.record(noun, [h], '')) for h in ('a', 'b'))
  opening = os.path.commonprefix([first, last])
  words = [sorted(set(t.lower().split())) for t in titles]
  rng = np.random.default_rng((seed, len(titles)))
  out = []
  for _ in range(walks):
    order = tiny_llm.similarity_walk(words, rng)
    for start in range(0, len(order), longest):
      walk = [titles[i] for i in order[start:start + longest + 1]]
      record = template.record(noun, walk[:-1] or walk, walk[-1])
      out.append(template.text(record).removeprefix(opening) + template.reply(walk[-1]))
  return opening, out


def open_start(cfg: ConfigDict, data: Data) -> Start | None:
  """The run that a config goes on from, None where it begins from nothing.

  cfg: the run's config. data: the Data. Raises what `continuation.open_llm_start` does, and
  ConfigError where one run tunes all weights and the other an adapter.
  """
  start = continuation.open_llm_start(cfg, data.catalog, cfg.train.mode)
  if start:
    continuation.same_settings(start, cfg, 'train.mode')
  return start


def stage(work: Workdir, cfg: ConfigDict, data: Data, folder: pathlib.Path,
          start: Start | None = None) -> dict[str, Any]:
  """Tunes the LLM of `folder` into `work.folder`: a PEFT adapter, or a whole checkpoint.

  cfg: of `settings`. data: the Data. start: the run that it goes on from.
  """
  if cfg.train.mode not in MODES:
    raise ConfigError(f'train.mode={cfg.train.mode!r}; choose one of {", ".join(MODES)}')
  adapter = {}
  if cfg.train.mode == 'lora':
    adapter = dict(lora_rank=cfg.lora.rank, lora_alpha=float(cfg.lora.alpha),
                   lora_targets=tuple(cfg.lora.targets))
  whole = start.folder if start and not adapter else folder
  model, params, tokenizer = llm_loading.load(whole, cfg.llm, work.mesh, **adapter)
  begin = huggingface.load_adapter(start.folder, model.cfg) if start and adapter else None
  template = prompts.load_template(cfg.prompt.template)
  every = domains(cfg, data, tokenizer, template)
  parts = [encoded(tokenizer, template, cfg, every, part, most) for part, most in (
      ('train', cfg.train.sample), ('valid', cfg.train.valid_sample))]
  prefix = sft.common_prefix(parts[0][0] + parts[1][0])
  train, valid = (sft.pack_pairs(p, a, cfg.train.loss_on, cfg.train.row_tokens, prefix)
                  for p, a, _ in parts)
  settings = ConfigDict({**cfg.train.to_dict(), 'optim': cfg.optim, 'seed': cfg.seed})
  trained, counts = sft.tune(work, settings, model, params, train, valid, begin)
  if start:
    keep_facts(work, start, data)
  if cfg.train.mode == 'lora':
    inside = folder.resolve().is_relative_to(work.path.resolve())
    name = os.path.relpath(folder, work.folder) if inside else str(folder)
    huggingface.save_adapter(to_host(trained), model.cfg, work.folder, base=name)
  else:
    huggingface.save(llm.as_stored(to_host(trained), model.cfg), model.cfg, work.folder)
    tokenizer.save(work.folder)
  return {**counts, 'shortened_prompts': parts[0][2] + parts[1][2]}


def keep_facts(work: Workdir, start: Start, data: Data) -> None:
  """Writes what training went on from. work: the Workdir. start: the earlier run. data: the Data.
  """
  old = instruction_data.load(start.config.data, start.config.samples,
                              split_rule.for_config(start.config)).cases
  valid, test = (continuation.learned_before(old.known, data.cases.known, cases)
                 for cases in (data.cases.valid, data.cases.test))
  continuation.keep_facts(work, start, data.catalog, valid, test)


def domains(cfg: ConfigDict, data: Data, tokenizer: Tokenizer,
            template: Template) -> list[tuple[Data, str]]:
  """The data sets that are learned from, with what their items are called.

  cfg: the run's config. tokenizer: the LLM's. template: of prompts. -> [(Data, noun)]
  """
  more = [
    (instruction_data.respell(
        instruction_data.load(source, cfg.samples, split_rule.for_config(cfg)), tokenizer,
        template), noun)
    for source, noun in cfg.domains]
  return [(data, cfg.prompt.noun), *more]


def encoded(tokenizer: Tokenizer, template: Template, cfg: ConfigDict,
            parts: list[tuple[Data, str]], part: str,
            most: int) -> tuple[list[list[int]], list[list[int]], int]:
  """Prompts and answers of `most` samples of each domain.

  tokenizer: the LLM's. template: of prompts. cfg: the run's config. parts: of `domains`. part:
  'train' or 'valid'. -> (prompts, answers, shortened)
  """
  asked, answers, cut = [], [], 0
  for data, noun in parts:
    cases = getattr(data.cases, part)
    rows = np.arange(len(cases))
    if 0 < most < len(rows):
      rows = np.sort(np.random.default_rng(cfg.seed).permutation(len(rows))[:most])
    records = data.records_of(part, template, noun, rows)
    more, short = prompts.encode_prompts(tokenizer, template, records, cfg.prompt.max_prompt_tokens)
    asked, cut = asked + more, cut + short
    titles = [data.titles[t - 1] for t in cases.targets[rows]]
    end = [tokenizer.eos_ids[0]]
    answers += [a + end for a in prompts.encode_answers(tokenizer, template, titles)]
  return asked, answers, cut


def generation_mesh(folder: pathlib.Path, mesh: Mesh) -> Mesh:
  """The devices of `mesh` as writing wants them. folder: of the LLM."""
  return sharding.generation_mesh(mesh, huggingface.read_config(folder).kv_heads)


def tuned(cfg: ConfigDict, folder: pathlib.Path, made: pathlib.Path,
          mesh: Mesh) -> tuple[Any, dict[str, PyTree], Tokenizer]:
  """The tuned LLM.

  cfg: the run's config. folder: of the LLM. made: folder of the tuned model. mesh: of the devices.
  -> (model, variables, tokenizer)
  """
  if cfg.train.mode == 'lora':
    model, params, tokenizer = llm_loading.load_merged(folder, cfg.llm, made, mesh)
  else:
    model, params, tokenizer = llm_loading.load(made, cfg.llm, mesh)
  return model, {'params': params}, tokenizer
