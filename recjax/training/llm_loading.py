"""The LLM under a method: a checkpoint of others, or a tiny model trained on the catalog."""
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax import gguf_file
from recjax.distributed import multihost, sharding
from recjax.errors import ConfigError, DataError
from recjax.models import embedding_resize, huggingface, llm, lora, quantize
from recjax.models.layers import check_dtype
from recjax.progress import doing
from recjax.text import tokenizer as tokenizers
from recjax.training import host_memory, tiny_llm
from recjax.training.workdir import Workdir


def folder(cfg: ConfigDict, work: Workdir, messages: str | list[dict],
           texts: Callable[[], list[str]], *inputs: Any) -> pathlib.Path:
  """Where the LLM stands; trains the tiny one where that is asked.

  cfg: llm.weights is 'tiny', or the path of a checkpoint folder or of a GGUF file. work: the run's.
  texts: () -> list of documents to train the tiny tokenizer and model on, decided by `inputs`; it
  learns them as answers to the chat `messages`, as an instruction-tuned model would have, or as
  what follows a plain text, where `messages` is one. -> folder, or file
  """
  check(cfg.llm)
  weights = cfg.llm.weights
  if weights == 'tiny':
    settings = {**cfg.tiny.to_dict(), 'dtype': 'float32', 'seed': cfg.seed}
    return work.stage(
        'llm', lambda work, *_: tiny_llm.train_tiny(work, cfg.tiny, cfg.seed, messages, texts()),
        settings, messages, *inputs)
  if not weights:
    raise ConfigError('llm.weights is empty: this preset needs a Hugging Face checkpoint folder or '
                      "a .gguf file, e.g. --config.llm.weights=/models/Meta-Llama-3-8B-Instruct, "
                      "or 'tiny'")
  path = pathlib.Path(weights)
  if not gguf_file.is_gguf(path) and not (path / 'config.json').exists():
    inside = next(iter(sorted(path.glob('*.gguf'))), '')
    raise ConfigError(f'llm.weights={weights!r} holds no config.json; name '
                      + (f'the file {inside}, ' if inside else '') +
                      'a folder with a Hugging Face checkpoint (config.json, *.safetensors, '
                      "tokenizer files), a .gguf file, or 'tiny'")
  shape = huggingface.read_config(path)
  opened(path, shape)  # now rather than after an hour
  if work is not None and work.mesh is not None:
    dtype = dtype_of(cfg.llm)
    shapes = llm.shapes(dataclasses.replace(shape, param_dtype=dtype, quantize=cfg.llm.quantize))
    host_memory.check(path, shapes, sharding.shardings(shapes, llm.RULES, work.mesh))
  return path


def check(cfg: ConfigDict, mode: str = 'lora') -> None:
  """Raises ConfigError where a setting of the group `llm` has a value that it cannot have. cfg:
  that group. mode: 'full' where all weights are to be trained."""
  dtype_of(cfg)
  if cfg.remat not in ('none', *llm.POLICIES):
    raise ConfigError(f'llm.remat={cfg.remat!r} is not one of none, {", ".join(llm.POLICIES)}')
  if cfg.quantize not in quantize.KINDS:
    raise ConfigError(f'llm.quantize={cfg.quantize!r} is not one of {", ".join(quantize.KINDS)}')
  if cfg.quantize != 'none' and mode == 'full':
    raise ConfigError(f'llm.quantize={cfg.quantize}: weights in 8 bits are frozen, and '
                      'train.mode=full trains all; take train.mode=lora, or llm.quantize=none')


def dtype_of(cfg: ConfigDict) -> str:
  """The type that a model computes in. cfg: dtype, 'auto' for what suits the backend."""
  check_dtype('llm.dtype', cfg.dtype, ('auto',))
  if cfg.dtype != 'auto':
    return cfg.dtype
  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'


def opened(folder: str | pathlib.Path, shape: llm.Config) -> tokenizers.Tokenizer:
  """The tokenizer of a checkpoint, held against its model.

  shape: the model's. folder: the checkpoint. Raises DataError where it has ids without rows, or no
  end token.
  """
  tokenizer = tokenizers.load(folder)
  embedding_resize.check_rows(folder, tokenizer, shape.vocab)
  if not tokenizer.eos_ids:
    raise DataError(f'{folder}: no end token is known, and answers could not end; name eos_token '
                    'in tokenizer_config.json, or eos_token_id in generation_config.json')
  return tokenizer


def shape_of(cfg: ConfigDict, **adapter: Any) -> llm.Config:
  """The model's shape before anything runs, from its files or the tiny model's settings.

  cfg: llm.weights and tiny. adapter: lora_rank, lora_targets. Raises ConfigError where no model is
  named.
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
  return dataclasses.replace(huggingface.read_config(cfg.llm.weights),
                             quantize=cfg.llm.quantize, **adapter)


def load_adapted(folder: str | pathlib.Path, cfg: ConfigDict, adapter: str | pathlib.Path,
                 mesh: jax.sharding.Mesh
                 ) -> tuple[llm.LM, PyTree, tokenizers.Tokenizer, PyTree]:
  """A checkpoint with a trained adapter, saved as PEFT's. cfg: as of `load`.

  folder: the checkpoint. adapter: folder of the adapter. -> model, params, tokenizer, adapter, the
  arrays on `mesh`
  """
  shape = huggingface.adapter_config(adapter, huggingface.read_config(folder))
  model, params, tokenizer = load(folder, cfg, mesh, lora_rank=shape.lora_rank,
                                  lora_alpha=shape.lora_alpha, lora_targets=shape.lora_targets)
  trained = huggingface.load_adapter(adapter, shape)
  where = sharding.shardings(trained, llm.RULES, mesh)
  return model, params, tokenizer, jax.tree.map(multihost.put_global, trained, where)


def load_merged(folder: str | pathlib.Path, cfg: ConfigDict, adapter: str | pathlib.Path,
                mesh: jax.sharding.Mesh) -> tuple[llm.LM, PyTree, tokenizers.Tokenizer]:
  """As `load_adapted`, the adapter folded into the weights, for programs that do not train.

  folder, cfg, adapter, mesh: as there. Each token then costs the products of the weights alone.
  -> model without an adapter, params on `mesh`, tokenizer
  """
  model, params, tokenizer, trained = load_adapted(folder, cfg, adapter, mesh)
  where = jax.tree.map(lambda x: x.sharding, params)
  merge = jax.jit(lambda params, trained: lora.merge(params, trained, model.cfg),
                  donate_argnums=0, out_shardings=where)
  return llm.LM(dataclasses.replace(model.cfg, lora_rank=0)), merge(params, trained), tokenizer


def export_adapted(folder: str | pathlib.Path, adapter: str | pathlib.Path, to: str,
                   out: pathlib.Path) -> None:
  """A checkpoint's adapter in PEFT's layout ('peft'), or merged into a whole one ('merged').

  folder: the checkpoint. adapter: folder of the adapter. to: 'peft' or 'merged'. out: folder to
  write.
  """
  base = huggingface.read_config(folder)
  shape = huggingface.adapter_config(adapter, base)
  lora_params = huggingface.load_adapter(adapter, shape)
  if to == 'peft':
    huggingface.save_adapter(lora_params, shape, out, base=str(pathlib.Path(folder).resolve()))
    return
  huggingface.save(lora.merge(huggingface.load(folder, base), lora_params, shape), base, out)
  tokenizers.load(folder).save(out)


def load(folder: str | pathlib.Path, cfg: ConfigDict, mesh: jax.sharding.Mesh,
         **adapter: Any) -> tuple[llm.LM, PyTree, tokenizers.Tokenizer]:
  """Opens a checkpoint for use on `mesh`. cfg: dtype ('auto' by backend), remat, quantize.

  adapter: lora_rank, lora_alpha, lora_targets of llm.Config, where the model is to have one.
  folder: the checkpoint. -> (llm.LM, params on the mesh, Tokenizer)
  """
  dtype, shape = dtype_of(cfg), huggingface.read_config(folder)
  # A loop over few layers costs a CPU more than it saves in compilation.
  unroll = shape.layers if shape.layers <= 4 and jax.default_backend() == 'cpu' else 1
  shape = dataclasses.replace(shape, dtype=dtype, param_dtype=dtype, remat=cfg.remat,
                              quantize=cfg.quantize, scan_unroll=unroll, **adapter)
  rows = llm.padded_rows(shape.vocab, mesh.shape.get('model', 1))
  shape = dataclasses.replace(shape, table_rows=0 if rows == shape.vocab else rows)
  shapes = llm.shapes(shape)
  where = sharding.shardings(shapes, llm.RULES, mesh)
  host_memory.check(folder, shapes, where)
  with doing(f'opening the model of {folder}'):
    tokenizer = opened(folder, shape)
    return llm.LM(shape), huggingface.load(folder, shape, where), tokenizer
