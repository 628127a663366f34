"""What a run would cost, and its trained model in other programs' layouts."""
import os
import pathlib
import shutil

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import windows
from recjax.data.dataset import Dataset
from recjax.errors import ConfigError
from recjax.models import layers, llm, lora
from recjax.training import cost_model, llm_loading
from recjax.training.workdir import find_stage, saved_config

OPENING, TITLE = 60, 14  # tokens of a prompt around its history, and of a title, typical


def cost(cfg: ConfigDict, dataset: Dataset) -> dict[str, str]:
  """Parameters, memory, operations and time, by hand count. -> {what: text}

  Titles are taken as typical (14 tokens); the run itself counts the real ones. cfg: the run's
  config. dataset: the data set.
  """
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
               f'{llm.param_bytes(shape) / 2**20:,.0f} MiB as stored ({shape.dtype})',
      'trained': f'{trained:,} parameters ({cfg.train.mode})',
      'training': f'{count:,} samples, at most {tokens / 1e6:,.1f} M tokens, '
                  f'{flops / 1e12:,.1f} TFLOP',
      'generation': f'{asked:,} prompts, {written / 1e6:,.2f} M beam tokens, '
                    f'{forward * (written + asked * length) / 1e12:,.1f} TFLOP',
      **cost_model.llm_lines(run, cfg.mesh, jax.device_count())}


def convert(workdir: str | os.PathLike, to: str, out: str | os.PathLike) -> None:
  """Writes the tuned model: 'peft' as an adapter folder, 'merged' as a whole checkpoint.

  workdir: the run's folder. Raises WorkdirError where the run has not finished tuning, ConfigError
  where `out` exists, or `to` is another or does not fit how the run was tuned.
  """
  config = saved_config(workdir)
  tuned, mode = find_stage(workdir, 'tune'), config['train']['mode']
  if to not in ('peft', 'merged') or (to == 'peft' and mode == 'full'):
    raise ConfigError(f'--to={to} does not fit this run, which was tuned with train.mode={mode}; '
                      + ('choose merged' if mode == 'full' else 'choose peft or merged'))
  run_files.absent(out, '--out', folder=True)
  if mode == 'full':
    with run_files.new_folder(out, '--out') as fresh:
      shutil.copytree(tuned, fresh, dirs_exist_ok=True,
                      ignore=shutil.ignore_patterns('DONE.json', '.*'))
    return
  weights = config['llm']['weights']
  folder = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  with run_files.new_folder(out, '--out') as fresh:
    llm_loading.export_adapted(folder, tuned, to, fresh)
