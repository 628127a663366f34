"""GGUF files as checkpoints: what config.json would say, and tensors with the rows of Hugging Face.

A file is read as the folder that it was converted from, so everything that holds for folders holds
for it. llama.cpp's converter (conversion/llama.py, `permute`) interleaves the two rotary halves of
each head in the rows of q and k for the type llama, and for no other type that is read here.
Metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
import dataclasses
import re
from typing import Any

import numpy as np

from recjax.errors import ConfigError, DataError
from recjax.gguf_file import File, Path, Tensor, read
from recjax.models import rope

CLASSES = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM', 'qwen3': 'Qwen3ForCausalLM'}

MODULES = {'q': 'attn_q', 'k': 'attn_k', 'v': 'attn_v', 'o': 'attn_output', 'gate': 'ffn_gate',
           'up': 'ffn_up', 'down': 'ffn_down'}

# Our path -> the name in a file with {} for the layer, whether to transpose.
NAMES = {
    'embed': ('token_embd.weight', False), 'norm': ('output_norm.weight', False),
    'head': ('output.weight', True),
    'blocks/attn_norm': ('blk.{}.attn_norm.weight', False),
    'blocks/mlp_norm': ('blk.{}.ffn_norm.weight', False),
    'blocks/q_norm': ('blk.{}.attn_q_norm.weight', False),
    'blocks/k_norm': ('blk.{}.attn_k_norm.weight', False),
    **{f'blocks/{ours}/{leaf}': (f'blk.{{}}.{theirs}.weight', True)
       for ours, theirs in MODULES.items() for leaf in ('kernel', 'scale')},
    **{f'blocks/{ours}/bias': (f'blk.{{}}.{theirs}.bias', False)
       for ours, theirs in MODULES.items()},
}
ROPE_FACTORS = 'rope_freqs.weight'

SPARE = {re.escape(ROPE_FACTORS): None}  # as of huggingface.read_tensors: `config` follows it

# Metadata of a type, without the type's name before it, that `config` reads or that change nothing.
READ = {
    'vocab_size', 'block_count', 'context_length', 'embedding_length', 'feed_forward_length',
    'attention.head_count', 'attention.head_count_kv', 'attention.key_length',
    'attention.value_length', 'attention.layer_norm_rms_epsilon', 'rope.dimension_count',
    'rope.freq_base', 'rope.scaling.type', 'rope.scaling.factor',
    'rope.scaling.original_context_length', 'rope.scaling.finetuned', 'rope.scaling.attn_factor',
    'rope.scaling.yarn_beta_fast', 'rope.scaling.yarn_beta_slow', 'tensor_data_layout'}

LAYOUTS = ('', 'Meta AI original pth')  # of rows; both are interleaved


def config(path: Path) -> dict[str, Any]:
  """config.json of the model in a GGUF file.

  path: of the file. Raises ConfigError where it is of another type, one of several parts, no whole
  model, or has an option that is not known, DataError where it is damaged.
  """
  file = read(path)
  kind = _kind(file)

  def number(key: str, default: float | None = None) -> Any:
    value = file.field(f'{kind}.{key}', (int, float), default)
    return float(str(np.float32(value))) if isinstance(value, float) else value  # 1e-05, as written
  _refuse_unknown(file, kind)
  width, heads = number('embedding_length'), number('attention.head_count')
  head = number('attention.key_length', width // heads if heads else 0)
  for key in ('attention.value_length', 'rope.dimension_count'):
    if (size := number(key, head)) != head:
      raise ConfigError(f'{file.path}: {kind}.{key} is {size} and the size of a head {head}; only '
                        'equal ones are supported')
  embed = _tensor(file, 'token_embd.weight')
  biased = 'blk.0.attn_q.bias' in file.tensors
  return {
      'model_type': kind, 'architectures': [CLASSES[kind]], 'hidden_act': 'silu',
      'vocab_size': embed.shape[0], 'hidden_size': width,
      'intermediate_size': number('feed_forward_length'),
      'num_hidden_layers': number('block_count'), 'num_attention_heads': heads,
      'num_key_value_heads': number('attention.head_count_kv', heads), 'head_dim': head,
      'max_position_embeddings': number('context_length'),
      'rms_norm_eps': number('attention.layer_norm_rms_epsilon'),
      'tie_word_embeddings': 'output.weight' not in file.tensors,
      **({} if kind == 'qwen2' else {'attention_bias': biased}),
      **({'mlp_bias': 'blk.0.ffn_up.bias' in file.tensors} if kind == 'llama' else {}),
      **_rotary(file, kind, head, number),
      'dtype': 'bfloat16' if embed.kind.name == 'BF16' else 'float32'}


def tensors(path: Path) -> dict[str, Tensor]:
  """The tensors of a GGUF file by its own names, the rows in the order of Hugging Face.

  path: of the file. Raises DataError naming a tensor that no supported model has.
  """
  file = read(path)
  kind = _kind(file)
  patterns = [re.escape(name).replace(r'\{\}', r'\d+') for name, _ in NAMES.values()]
  known = re.compile('|'.join([*patterns, re.escape(ROPE_FACTORS)]))
  for name in file.tensors:
    if not known.fullmatch(name):
      raise DataError(f'{file.path}: tensor {name} is of no {kind} model that is supported; '
                      'mixtures of experts and fused layers are not')
  if kind != 'llama':
    return file.tensors
  heads = file.field('llama.attention.head_count', int)
  counts = {'q': heads, 'k': file.field('llama.attention.head_count_kv', int, heads)}

  def ordered(name: str, tensor: Tensor) -> Tensor:
    part = re.fullmatch(r'blk\.\d+\.attn_([qk])\.(weight|bias)', name)
    if not part:
      return tensor
    return dataclasses.replace(tensor, order=_halves_apart(tensor, counts[part[1]]))
  return {name: ordered(name, tensor) for name, tensor in file.tensors.items()}


def _halves_apart(tensor, heads):
  """Where the rows lie that are to come first, second, ...: each head's halves one by one."""
  rows = tensor.shape[0]
  if heads < 1 or rows % (2 * heads):
    raise DataError(f'{tensor.path}: tensor {tensor.name} has {rows} rows, which are not those of '
                    f'{heads} heads')
  return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _kind(file: File) -> str:
  """The type of the model. Raises ConfigError where it is none that is read, or not whole."""
  kind = file.field('general.architecture', str)
  if kind not in CLASSES:
    raise ConfigError(f'{file.path}: general.architecture {kind!r} is not supported; '
                      f'{", ".join(CLASSES)} are')
  if (content := file.field('general.type', str, 'model')) != 'model':
    raise ConfigError(f'{file.path} holds a {content}, not a whole model; name the .gguf file of '
                      'the model')
  if (parts := file.field('split.count', int, 1)) > 1:
    raise ConfigError(f'{file.path} is one of {parts} parts of a model; join them with llama.cpp: '
                      f'llama-gguf-split --merge {file.path} OUT.gguf')
  return kind


def _refuse_unknown(file, kind):
  """Raises ConfigError for metadata of the model that say something and are not read."""
  for key, value in file.fields.items():
    name = key.removeprefix(f'{kind}.')
    if name == key or name in READ or not isinstance(value, np.ndarray) and not value:
      continue
    if name == 'attention.causal':
      continue
    raise ConfigError(f'{file.path}: the metadata {key}={value!r:.80} is not known here, and may '
                      'change what the model computes')
  if file.field(f'{kind}.tensor_data_layout', str, '') not in LAYOUTS:
    raise ConfigError(f'{file.path}: {kind}.tensor_data_layout='
                      f'{file.fields[f"{kind}.tensor_data_layout"]!r} is not supported')


def _tensor(file, name):
  if name not in file.tensors:
    raise DataError(f'{file.path}: tensor {name} is missing; a file that holds a vocabulary alone '
                    'is no model')
  return file.tensors[name]


def _rotary(file, kind, head, number):
  """rope_theta and rope_scaling, from metadata or from the factors of Llama 3.1 and later."""
  theta, length = number('rope.freq_base', 10_000.0), number('context_length')
  said = file.field(f'{kind}.rope.scaling.type', str, 'none')
  scaling: Any = None
  if said != 'none':
    scaling = {'rope_type': said, 'factor': number('rope.scaling.factor')}
  if said == 'yarn':
    scaling['original_max_position_embeddings'] = number(
        'rope.scaling.original_context_length', length)
    for theirs, ours in (('yarn_beta_fast', 'beta_fast'), ('yarn_beta_slow', 'beta_slow')):
      if f'{kind}.rope.scaling.{theirs}' in file.fields:
        scaling[ours] = number(f'rope.scaling.{theirs}')
  elif said not in ('none', 'linear'):
    raise ConfigError(f'{file.path}: {kind}.rope.scaling.type={said!r} is not supported; none, '
                      'linear and yarn are')
  if (factor := number('rope.scaling.attn_factor', 1.0)) != 1:
    raise ConfigError(f'{file.path}: {kind}.rope.scaling.attn_factor={factor} is not supported')
  if ROPE_FACTORS in file.tensors:
    if scaling:
      raise ConfigError(f'{file.path}: tensor {ROPE_FACTORS} and {kind}.rope.scaling.type='
                        f'{said!r} both scale rotary positions, which no known model does')
    scaling = _llama3(file, head, theta)
  return {'rope_theta': theta, 'rope_scaling': scaling}


def _llama3(file, head, theta):
  """The rope_scaling whose divisors of the frequencies a file holds; None where all are 1.

  transformers' rule (modeling_rope_utils.py) with the settings of all Llama 3 but the factor and
  the length, which are found: the converter keeps the divisors and drops the settings.
  """
  stored = file.tensors[ROPE_FACTORS][:]
  if np.all(stored == 1):
    return None
  freq = 1.0 / theta ** (np.arange(0, head, 2) / head)
  factor = float(f'{stored.max():.6g}')  # 8, not what is left of it after divisions
  for power in range(21):
    scaling = {'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': 1.0,
               'high_freq_factor': 4.0, 'original_max_position_embeddings': 1 << power}
    divisors = freq / rope.llama3(freq, scaling)
    if divisors.shape == stored.shape and np.allclose(divisors, stored, rtol=1e-4, atol=0):
      return scaling
  raise ConfigError(f'{file.path}: the divisors in tensor {ROPE_FACTORS} are not those of Llama '
                    '3.1 and later, so they cannot be followed')
