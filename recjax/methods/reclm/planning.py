"""Texts for the tiny model, what a run would cost, and its model in other programs' layouts."""
import pathlib
import shutil

import jax
import numpy as np

from recjax import run_files
from recjax.data.dataset import load_unchanged
from recjax.distributed import sharding
from recjax.errors import ConfigError
from recjax.methods.reclm import offline_samples, sft_data, teacher, tokenized_catalog, train
from recjax.models import llm, lora
from recjax.run_files import read_json
from recjax.text import tokenizer
from recjax.training import cost_model, llm_loading, tiny_llm
from recjax.training.workdir import find_stage, saved_config

OPENING, TITLE = 60, 14  # tokens of a prompt around its titles, and of a title, typical


def documents(template, titles, seed, walks=3, longest=sft_data.LONGEST):
  """What the tiny model learns before it sees any behaviour: lists that wander from an item to one
  of like words, asked for and answered, so that it knows titles and form and nothing of users."""
  words = [sorted(set(t.lower().split())) for t in titles]
  rng = np.random.default_rng((seed, len(titles)))
  out = []
  for _ in range(walks):
    order = tiny_llm.similarity_walk(words, rng)
    for start in range(0, len(order), longest):
      some = [titles[i] for i in order[start:start + longest]]
      cut = int(rng.integers(1, len(some) + 1)) if len(some) > 1 else 1
      history = ' → '.join(f"'{t}'" for t in some[:cut])
      lines = '\n '.join(f'{n}. {t}' for n, t in enumerate(some[cut:] or some, 1))
      form = template['train' if rng.random() < 0.5 else 'test']
      form += template['rule'] if rng.random() < 0.5 else ''
      out.append(form.replace('{history}', history).replace('{count}', str(len(some) - cut or 1))
                 + '\n' + lines + '\n')
  return out


def cost(cfg, shop):
  """Parameters, operations and time, by hand count. -> {what: text}"""
  shape = llm_loading.shape_of(cfg, **({} if cfg.train.mode == 'full' else dict(
      lora_rank=cfg.lora.rank, lora_targets=tuple(cfg.lora.targets))))
  users = int((shop.interactions.lengths() > 3).sum())
  users = min(users, cfg.train.sample) if cfg.train.sample else users
  length = OPENING + TITLE * (sft_data.LONGEST // 2 + cfg.train.longest_list / 2)
  forward = llm.flops_per_token(shape, length / 2)
  full = cfg.train.mode == 'full'
  trained = llm.count(llm.shapes(shape)) if full else llm.count(
      jax.eval_shape(lambda k: lora.init_lora(shape, k), jax.random.key(0)))
  tokens = cfg.train.epochs * users * length
  flops = (3 if full else 2) * forward * tokens
  run = cost_model.LLMRun(cost_model.numerics(shape, cfg.llm), max(1, round(
      cfg.train.batch * length / cfg.train.row_tokens)), cfg.train.row_tokens, 0, users * length,
                 cfg.train.epochs, users, cfg.decode.batch, 1, round(length), cfg.decode.new_tokens)
  return {
      'model': f'{llm.count(llm.shapes(shape)):,} parameters, '
               f'{llm.param_bytes(shape) / 2**20:,.0f} MiB as stored ({shape.dtype})',
      'trained': f'{trained:,} parameters ({cfg.train.mode})',
      'training': f'{cfg.train.epochs} epochs of {users:,} samples, about {tokens / 1e6:,.1f} M '
                  f'tokens, {flops / 1e12:,.1f} TFLOP',
      **cost_model.llm_lines(run, cfg.mesh, jax.device_count())}


def convert(workdir, to, out):
  """Writes the tuned chat model, control tokens included, as a whole Hugging Face checkpoint
  ('merged'), or the samples that it learnt from, as List[List[Dict]] files ('samples').

  Raises WorkdirError where the run has not finished tuning, ConfigError where `out` is not empty or
  `to` is another.
  """
  config = saved_config(workdir)
  made = find_stage(workdir, 'tune')
  if to not in ('merged', 'samples'):
    raise ConfigError(f'--to={to} does not fit: an adapter alone lacks the new tokens; choose '
                      'merged, or samples for what it was trained on')
  with run_files.new_folder(out, '--out') as fresh:
    if to == 'samples':
      write_samples(config, workdir, made, fresh)
      return
    if config.train.mode == 'full':
      shutil.copytree(made, fresh, dirs_exist_ok=True,
                      ignore=shutil.ignore_patterns('DONE.json', '.*', '*.npz'))
      return
    weights = config.llm.weights
    folder = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
    train.merged(config, folder, made, fresh)


def write_samples(cfg, workdir, made, out):
  """The samples of a run, drawn again as training drew them, into the folder `out`."""
  shop = load_unchanged(cfg.data, read_json(
      find_stage(workdir, 'evaluate') / 'results.json')['data_fingerprint'], workdir)
  stock = tokenized_catalog.load(shop.catalog, tokenizer.load(made))
  with jax.set_mesh(sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})):
    teach = teacher.asker(find_stage(workdir, 'teacher'), shop)
    offline_samples.write(
      out, offline_samples.of_run(cfg, shop, stock, teach, train.talk_of(cfg)[0]), shop, stock
    )
