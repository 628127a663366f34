"""What a run consists of: variants and the tables they read; its cost; its parts for others."""
import dataclasses
import pathlib
import shutil

import jax

from recjax import run_files
from recjax.errors import ConfigError
from recjax.methods.llmemb import variants as variants_lib
from recjax.models import huggingface, layers, llm, lora
from recjax.text import tokenizer as tokenizer_lib
from recjax.training import cost_model
from recjax.training.workdir import find_stage, saved_config


def cost(cfg, shop):
  """What a run would take, by hand count. -> {what: text}"""
  items, words = len(shop.catalog), 120  # tokens of a prompt, typical
  found = {}
  if variants_lib.needs_llm(cfg):
    shape = llm_shape(cfg)
    flops = llm.flops_per_token(shape, words)
    tuned = sum(s in ('tuned', 'last') for s in variants_lib.sources(cfg))
    steps = cfg.scft.steps * cfg.scft.batch * 2 * words * (1 - cfg.scft.ratio)
    adapter = layers.count_params(
      jax.eval_shape(lambda k: lora.init_lora(shape, k), jax.random.key(0))
    )
    found = {
        'model': f'{llm.param_bytes(shape) / 2**20:,.1f} MiB of weights, {adapter:,} adapter '
                 'parameters',
        'SCFT': f'{tuned} times about {steps / 1e6:,.1f} M tokens, '
                f'{(2 if cfg.scft.parts == 1 else 3) * flops * steps / 1e12:,.1f} TFLOP',
        'export': f'{items * words / 1e6:,.2f} M tokens a table, '
                  f'{flops * items * words / 1e12:,.1f} TFLOP',
        **cost_model.llm_lines(cost_model.LLMRun(
            cost_model.numerics(shape, cfg.llm), max(1, 2 * cfg.scft.batch // cfg.scft.parts),
            round(words * (1 - cfg.scft.ratio)), 0, tuned * steps, 1), cfg.mesh,
                     jax.device_count())}
  variants, id_models = variants_lib.variants(cfg), variants_lib.id_models(cfg)
  return found | {'trainings': f'{len(variants)} of RAT, {len(id_models)} over ids, '
                               f'{cfg.seeds} seeds each'}


def llm_shape(cfg):
  """The LLM's shape, from its folder or the tiny model's settings. -> llm.Config"""
  if cfg.llm.weights == 'tiny':
    tiny = cfg.tiny
    return llm.Config(
        vocab=tiny.vocab, width=tiny.width, layers=tiny.layers, heads=tiny.heads,
        kv_heads=tiny.kv_heads, head_dim=tiny.width // tiny.heads, ffn=tiny.ffn, tied=True,
        lora_rank=cfg.lora.rank)
  if not cfg.llm.weights:
    raise ConfigError('llm.weights is empty, so there is no model to count; add '
                      '--config.llm.weights=FOLDER, or use the sample preset')
  return dataclasses.replace(huggingface.read_config(cfg.llm.weights), lora_rank=cfg.lora.rank)


def convert(workdir, kind, out):
  """Writes the trained recommender ('npz'), or the tuned LLM as 'peft' adapter or 'merged'.

  Raises ConfigError where `out` is there already, WorkdirError where that was not trained.
  """
  if kind == 'npz':
    run_files.absent(out, '--out')
    model = variants_lib.main_stage(workdir) / 'model.npz'
    with run_files.new_file(out, '--out') as fresh:
      shutil.copyfile(model, fresh)
    return
  if kind not in ('peft', 'merged'):
    raise ConfigError(f'--to={kind} is unknown for this method; choose npz, peft or merged')
  run_files.absent(out, '--out', folder=True)
  at = find_stage(workdir, 'scft-tuned')
  weights = saved_config(workdir).llm.weights
  folder = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  base = huggingface.read_config(folder)
  shape = huggingface.adapter_config(at, base)
  adapter = huggingface.load_adapter(at, shape)
  with run_files.new_folder(out, '--out') as fresh:
    if kind == 'peft':
      huggingface.save_adapter(adapter, shape, fresh, base=str(folder.resolve()))
      return
    huggingface.save(lora.merge(huggingface.load(folder, base), adapter, shape), base, fresh)
    tokenizer_lib.load(folder).save(fresh)
