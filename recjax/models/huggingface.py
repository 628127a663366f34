"""Hugging Face checkpoints and PEFT adapters, read and written without torch; GGUF files read.

One table pairs our paths with their names; reading, writing, checking and adapters all follow it.
They keep linear weights as (out, in), one tensor for each layer; ours are (in, out), all layers in
one array. Every device reads only its own slice of the files.
"""
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from recjax import file_io, gguf_file
from recjax.distributed.sharding import path_of
from recjax.errors import ConfigError, DataError
from recjax.models import checkpoint_config, gguf_checkpoint, llm, quantize, rope

Folder = str | os.PathLike

MODULES = {
    'q': 'self_attn.q_proj', 'k': 'self_attn.k_proj', 'v': 'self_attn.v_proj',
    'o': 'self_attn.o_proj', 'gate': 'mlp.gate_proj', 'up': 'mlp.up_proj', 'down': 'mlp.down_proj',
}
# (our path, their name with {} for the layer, whether to transpose)
TABLE = (
    ('embed', 'model.embed_tokens.weight', False),
    ('norm', 'model.norm.weight', False),
    ('head', 'lm_head.weight', True),
    ('blocks/attn_norm', 'model.layers.{}.input_layernorm.weight', False),
    ('blocks/mlp_norm', 'model.layers.{}.post_attention_layernorm.weight', False),
    ('blocks/q_norm', 'model.layers.{}.self_attn.q_norm.weight', False),
    ('blocks/k_norm', 'model.layers.{}.self_attn.k_norm.weight', False),
    *((f'blocks/{ours}/{leaf}', f'{root}model.layers.{{}}.{theirs}.{name}', transpose)
      for ours, theirs in MODULES.items()
      for leaf, root, name, transpose in (
          ('kernel', '', 'weight', True), ('scale', '', 'weight', True),
          ('bias', '', 'bias', False),
          ('a', 'base_model.model.', 'lora_A.weight', True),
          ('b', 'base_model.model.', 'lora_B.weight', True))),
)
Names = Mapping[str, tuple[str, bool]]  # our path -> their name, whether to transpose
NAMES: Names = {path: (name, transpose) for path, name, transpose in TABLE}
FLOATS = {'F64', 'F32', 'F16', 'BF16'}
METADATA = {'format': 'pt'}

HEAD, EMBED = 'lm_head.weight', 'model.embed_tokens.weight'
BLOCK = 1 << 22  # numbers of a tensor that are read or compared at a time


def read_config(folder: Folder) -> llm.Config:
  """The configuration of a checkpoint; its dtype is float32, its param_dtype the file's.

  folder: of the checkpoint, or a GGUF file. `tied` is what the files show: a stored output layer
  that is not the embedding is used, whatever config.json says. Raises DataError if config.json is
  missing or unreadable, ConfigError naming the key if the model has an option that is not
  implemented.
  """
  path, raw = _raw_config(folder)
  kind = raw.get('model_type')
  if kind not in ('llama', 'qwen2', 'qwen3'):
    hint = ('. A sentence encoder is read for vectors, not tuned or decoded'
            if kind in ('bert', 'roberta', 'xlm-roberta', 'mpnet', 'distilbert') else '')
    raise ConfigError(f'{path}: model_type {kind!r} is not supported; llama, qwen2 and qwen3 '
                      f'are{hint}')
  if not gguf_file.is_gguf(folder):
    refuse_adapter(folder)
  checkpoint_config.check_llm(path, raw)
  sizes: dict[str, Any] = {
      ours: checkpoint_config.positive_int(path, raw, theirs) for ours, theirs in (
          ('vocab', 'vocab_size'), ('width', 'hidden_size'), ('layers', 'num_hidden_layers'),
          ('heads', 'num_attention_heads'), ('ffn', 'intermediate_size'),
          ('max_positions', 'max_position_embeddings'))}
  groups = 32 if kind != 'llama' and 'num_key_value_heads' not in raw else sizes['heads']
  sizes['kv_heads'] = checkpoint_config.positive_int(path, raw, 'num_key_value_heads', groups)
  width = 128 if kind == 'qwen3' else sizes['width'] // sizes['heads']
  sizes['head_dim'] = checkpoint_config.positive_int(path, raw, 'head_dim', width)
  theta, scaling = _rotary(path, raw)
  attention_bias = checkpoint_config.flag(path, raw, 'attention_bias') and kind != 'qwen2'
  tied = checkpoint_config.flag(path, raw, 'tie_word_embeddings')
  stored = raw.get('dtype') or raw.get('torch_dtype')
  return llm.Config(
      **sizes, rope_theta=theta, rope_scaling=scaling,
      norm_eps=checkpoint_config.nonnegative(path, raw, 'rms_norm_eps', 1e-6),
      tied=tied and not tensors_differ(folder, HEAD, EMBED), qk_norm=kind == 'qwen3',
      qkv_bias=attention_bias or kind == 'qwen2', out_bias=attention_bias,
      mlp_bias=kind == 'llama' and checkpoint_config.flag(path, raw, 'mlp_bias'),
      param_dtype='bfloat16' if stored == 'bfloat16' else 'float32')


def _raw_config(folder):
  """What config.json says, or would say of a GGUF file, and the path to name in messages."""
  if gguf_file.is_gguf(folder):
    return pathlib.Path(folder), gguf_checkpoint.config(folder)
  path = pathlib.Path(folder) / 'config.json'
  return path, read_json(path)


def refuse_adapter(folder: Folder) -> None:
  """Raises ConfigError where an adapter lies in the folder of a whole model, which changes it."""
  path = pathlib.Path(folder) / 'adapter_config.json'
  if path.exists():
    raise ConfigError(f'{path}: an adapter lies beside the model, and other programs would apply '
                      'it; merge it into the model, or take its files out of the folder')


def _rotary(path, raw):
  """Rotary base and scaling from the old spelling (rope_theta, rope_scaling) or the new one."""
  old, new = (_rope_settings(path, raw, key) for key in ('rope_scaling', 'rope_parameters'))
  if old and new and old != {k: v for k, v in new.items() if k in old or k != 'rope_theta'}:
    raise ConfigError(f'{path}: rope_scaling and rope_parameters say different things; keep one')
  scaling = {**old, **new}
  outside = raw.get('rope_theta')
  theta = checkpoint_config.nonnegative(
      path, {'rope_theta': scaling.pop('rope_theta', outside)}, 'rope_theta', 10_000.0)
  kind = scaling.pop('rope_type', 'default')
  if scaling.pop('partial_rotary_factor', 1) != 1:
    raise ConfigError(f'{path}: partial_rotary_factor below 1 is not supported')
  outer = raw.get('original_max_position_embeddings')
  if outer not in (None, scaling.get('original_max_position_embeddings', outer)):
    raise ConfigError(f'{path}: original_max_position_embeddings={outer} is not the one of its '
                      'rope_scaling; keep one')
  if kind == 'default':
    if scaling:
      raise ConfigError(f"{path}: rope_scaling of type 'default' has {', '.join(sorted(scaling))}, "
                        'which mean nothing there; name its rope_type or take them out')
    return float(theta), ()
  if kind in ('llama3', 'yarn'):
    length = scaling.setdefault('original_max_position_embeddings',
                                outer or raw['max_position_embeddings'])
    scaling.setdefault('factor', raw['max_position_embeddings'] / length)
  scaling['rope_type'] = kind
  try:
    rope.check_scaling(scaling)
  except ConfigError as error:
    raise ConfigError(f'{path}: {error}') from None
  return float(theta), tuple(sorted(scaling.items()))


def _rope_settings(path, raw, key):
  """Rotary settings without empty ones, the kind under its newer name. -> dict"""
  value = raw.get(key) or {}
  if not isinstance(value, dict):
    raise ConfigError(f'{path}: {key}={value!r:.120} is no object')
  settings = {k: v for k, v in value.items() if v is not None}
  older = settings.pop('type', None)
  if settings and older:
    settings.setdefault('rope_type', older)
  elif older:
    settings = {'rope_type': older}
  return settings


def require(path: pathlib.Path, raw: Mapping, key: str) -> Any:
  """The setting `key` of the file `path`, which holds `raw`. Raises ConfigError if missing."""
  if raw.get(key) is None:
    raise ConfigError(f'{path}: {key} is missing')
  return raw[key]


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
  """The value of a JSON file, of type `kind`. path: of the file. Raises DataError where it is
  missing or torn."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise DataError(f'{path} does not exist; give the folder of a checkpoint') from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise DataError(f'{path} is not readable JSON: {error}') from None
  if not isinstance(value, kind):
    raise DataError(f'{path} holds a {type(value).__name__}, not '
                    + ('an object' if kind is dict else f'a {kind.__name__}'))
  return value


def load(
    folder: Folder, cfg: llm.Config, shardings: PyTree | None = None, dtype: str | None = None,
) -> PyTree:
  """Reads the weights of `cfg`'s model from safetensors files or from a GGUF file.

  folder: of the checkpoint, or the GGUF file. shardings: a tree like the parameters (or one
  sharding for all); None puts all on one device. dtype: of the result, cfg.param_dtype if None.
  -> 'params' tree of llm.LM
  Raises DataError naming tensor and file where one is missing, left over, or of another shape.
  """
  shapes = llm.shapes(dataclasses.replace(cfg, param_dtype=dtype or cfg.param_dtype))
  filled = {}
  if cfg.rows > cfg.vocab:
    filled = {'embed': (cfg.vocab, cfg.width), 'head': (cfg.width, cfg.vocab)}
  if gguf_file.is_gguf(folder):
    return read_tensors(folder, shapes, shardings, gguf_checkpoint.SPARE, gguf_checkpoint.NAMES,
                        filled=filled)
  spare: dict = {
      r'(model\.layers\.\d+\.self_attn|model)\.rotary_emb\.inv_freq': rope.frequencies(cfg)[0]}
  if cfg.tied:
    spare[re.escape(HEAD)] = EMBED
  return read_tensors(folder, shapes, shardings, spare, filled=filled)


class StoredTensor(NamedTuple):
  """A tensor of an open file: view() gives its shape, its type, and slices of its values. path: of
  that file."""
  path: pathlib.Path
  view: Callable[[], Any]


def read_tensors(
    folder: Folder, shapes: PyTree, shardings: PyTree | None,
    spare: Mapping[str, np.ndarray | str | None], names: Names = NAMES, root: str = '',
    stem: str = 'model', filled: Mapping[str, tuple[int, int]] | None = None) -> PyTree:
  """Fills a tree of jax.ShapeDtypeStruct from the files of `folder`.

  shapes: the tree. shardings: as `load` takes them. spare: {pattern of the names of tensors that
  have no place: what they must equal, as an array or as the name of another tensor, or None for
  those that the function never reads}. names: of the leaves. root: what some files put before
  names. stem: of the files' names. filled: {path of a leaf: shape in the files} of those that are
  larger, with zeros behind. Raises DataError as `load` does.
  """
  folder = pathlib.Path(folder)
  with contextlib.ExitStack() as stack:
    stored = {}
    for name, tensor in _open_tensors(folder, stem, stack).items():
      if stored.setdefault(name.removeprefix(root), tensor) is not tensor:
        raise DataError(
            f'{tensor.path}: tensor {name} is there with and without {root!r} before it')
    _check_names(folder, _leaves(shapes), names, stored, spare)
    if shardings is None:
      shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
      everywhere = shardings
      shardings = jax.tree.map(lambda _: everywhere, shapes)

    scales: dict = {}
    in_8_bits = {path.removesuffix('/kernel') for path, leaf in _leaves(shapes).items()
                 if leaf.dtype == jnp.int8}

    def read(path: tuple, leaf: Any, sharding: Any) -> jax.Array:
      name = path_of(path)
      if name.removesuffix('/kernel').removesuffix('/scale') in in_8_bits:
        return _read_quantized(name, leaf, sharding, names, stored, scales)
      return _read_leaf(name, leaf, sharding, names, stored, filled or {})
    return jax.tree_util.tree_map_with_path(read, shapes, shardings)


def _leaves(shapes):
  """A tree's leaves by our paths."""
  return {path_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]}


def _check_names(folder, leaves, names, stored, spare):
  """Raises DataError where stored tensors are not those of our leaves. spare: of `read_tensors`."""
  wanted = {name for path, leaf in leaves.items() for name in _their_names(path, leaf, names)}
  extra = sorted(set(stored) - wanted)
  placeless = [n for n in extra if not any(re.fullmatch(p, n) for p in spare)]
  if placeless:
    raise DataError(f'{stored[placeless[0]].path}: tensor {placeless[0]} has no place in this '
                    f'model ({len(placeless)} such tensors); its config.json may belong to another')
  if missing := sorted(wanted - set(stored)):
    raise DataError(f'{folder}: tensor {missing[0]} is in no file ({len(missing)} are missing)')
  for name in extra:
    equal = next(value for pattern, value in spare.items() if re.fullmatch(pattern, name))
    _check_unplaced(name, equal, stored)


def _check_unplaced(name, equal, stored):
  """Raises DataError where a tensor that is left out is not what stands in its place.

  equal: an array, the name of another tensor, or None.
  """
  path, view = stored[name]
  if equal is None:
    return
  if isinstance(equal, str):
    if not _tensors_equal(view(), stored[equal].view()):
      remedy = ("set tie_word_embeddings to false where both are the model's own" if name == HEAD
                else 'take it out, or export the model again with transformers')
      raise DataError(f'{path}: tensor {name} is not {equal}, which would be used in its place; '
                      f'{remedy}')
    return
  values = view()[:]
  near = 1e-6 if values.dtype.itemsize > 2 else 1e-2  # half precision rounds what was stored
  if values.size != equal.size or not np.allclose(
      values.astype(np.float64).reshape(equal.shape), equal, rtol=near, atol=1e-6 * near):
    raise DataError(f'{path}: tensor {name} is not what config.json makes of it; correct '
                    'config.json, or take the tensor out where it is left from another setting')


def _tensors_equal(a, b):
  """Whether two stored tensors are equal, a block of rows at a time."""
  shape = a.get_shape()
  if list(shape) != list(b.get_shape()) or not shape:
    return False
  rows = max(1, BLOCK // max(1, math.prod(shape[1:])))
  blocks = [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
  return all(np.array_equal(a[block], b[block]) for block in blocks)


def tensors_differ(folder: Folder, name: str, other: str) -> bool:
  """Whether the files of a folder, if there are any, hold both tensors and they are not equal.
  folder: of the files. name, other: of the tensors."""
  folder = pathlib.Path(folder)
  if not any((folder / f'model.safetensors{end}').exists() for end in ('', '.index.json')):
    return False
  with contextlib.ExitStack() as stack:
    stored = _open_tensors(folder, 'model', stack)
    return {name, other} <= set(stored) and not _tensors_equal(
        stored[name].view(), stored[other].view())


def _their_names(path, leaf, names=NAMES):
  """Their tensors of one of our leaves, in layer order."""
  name = names[path][0]
  return [name.format(i) for i in range(leaf.shape[0])] if '{}' in name else [name]


def _open_tensors(
    folder: pathlib.Path, stem: str, stack: contextlib.ExitStack) -> dict[str, StoredTensor]:
  """All tensors of a checkpoint by name; their files stay open until `stack` is left."""
  if gguf_file.is_gguf(folder):
    return {name: StoredTensor(folder, functools.partial(lambda tensor: tensor, tensor))
            for name, tensor in gguf_checkpoint.tensors(folder).items()}
  index = folder / f'{stem}.safetensors.index.json'
  single = folder / f'{stem}.safetensors'
  listed = {}
  if single.exists():
    paths = [single]
  elif index.exists():
    listed = require(index, read_json(index), 'weight_map')
    paths = [folder / name for name in sorted(set(listed.values()))]
  else:
    pickled = next((p.name for p in sorted(folder.glob('*.bin'))), None)
    if pickled:
      raise DataError(
          f'{folder / pickled} is a pickle, which can run code when read, and is refused; convert '
          'it where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER)'
          '.save_pretrained(OUT) writes safetensors')
    raise DataError(f'{folder} has neither {single.name} nor {index.name}')
  stored = {}
  for path in paths:
    try:
      file = stack.enter_context(safetensors.safe_open(str(path), 'numpy'))
    except FileNotFoundError:
      raise DataError(f'{path} is named in {index.name} but does not exist') from None
    except (safetensors.SafetensorError, OSError) as error:
      raise DataError(f'{path} is not a whole safetensors file: {error}') from None
    for name in file.keys():  # noqa: SIM118, not a mapping
      if name in stored:
        raise DataError(f'{path}: tensor {name} stands in {stored[name].path.name}, too; one of '
                        'the files belongs to another checkpoint')
      stored[name] = StoredTensor(path, functools.partial(file.get_slice, name))
  for name in listed:
    if name not in stored:
      raise DataError(f'{folder / listed[name]}: tensor {name} is missing though the index '
                      f'{index.name} names it')
  return stored


def _stored_of(path, leaf, names, stored, filled):
  """The tensors of one of our leaves, of its shape and type. Raises DataError for others.

  filled: as of `read_tensors`.
  """
  template, transpose = names[path]
  shape = filled.get(path, leaf.shape[1:] if '{}' in template else leaf.shape)
  needed = shape[::-1] if transpose else shape
  tensors = [stored[name] for name in _their_names(path, leaf, names)]
  for name, tensor in zip(_their_names(path, leaf, names), tensors):
    view = tensor.view()
    if (found := tuple(view.get_shape())) != needed:
      raise DataError(f'{tensor.path}: tensor {name} has shape {found}, the model needs {needed}')
    if view.get_dtype() not in FLOATS:
      raise DataError(
          f'{tensor.path}: tensor {name} is stored as {view.get_dtype()}, not as a float')
  return tensors


def _read_leaf(path, leaf, sharding, names, stored, filled):
  """One of our arrays, each device's part read on its own."""
  template, transpose = names[path]
  stacked = '{}' in template
  shape = leaf.shape[1:] if stacked else leaf.shape
  tensors = _stored_of(path, leaf, names, stored, filled)

  def part(index: Any) -> np.ndarray:
    inner = index[1:] if stacked else index
    layers = tensors[index[0]] if stacked else tensors
    wanted = [range(size)[places] for size, places in zip(shape, inner)]
    stored_places = [range(min(r.start, size), min(r.stop, size))
                     for r, size in zip(wanted, filled.get(path, shape))]
    out = np.zeros((len(layers), *map(len, wanted)), leaf.dtype)
    inner = tuple(slice(r.start, r.stop) for r in stored_places)
    corner = tuple(slice(len(r)) for r in stored_places)
    for ours, tensor in zip(out, layers if all(map(len, stored_places)) else ()):
      if transpose:
        _fill(ours[corner].T, tensor.view(), inner[::-1])
      else:
        _fill(ours[corner], tensor.view(), inner)
    return out if stacked else out[0]
  return jax.make_array_from_callback(leaf.shape, sharding, part)


def _read_quantized(path, leaf, sharding, names, stored, scales):
  """The numbers of a kernel in 8 bits, or its scales, one layer in float32 at a time.

  scales: {(tensor, first output, last): its scales} of what was read; kernels come first.
  """
  if path.endswith('/kernel'):
    _stored_of(path, leaf, names, stored, {})

  def part(index: Any) -> np.ndarray:
    wanted = [range(size)[places] for size, places in zip(leaf.shape, index)]
    out = np.zeros(tuple(map(len, wanted)), leaf.dtype)
    outputs = slice(wanted[-1].start, wanted[-1].stop)
    for place, name in zip(out, _their_names(path, leaf, names)[index[0]]):
      key = (name, outputs.start, outputs.stop)
      if path.endswith('/scale') and key in scales:
        place[:] = scales[key]
        continue
      view = stored[name].view()
      rows = np.zeros((len(wanted[-1]), view.get_shape()[1]), np.float32)
      _fill(rows, view, (outputs, slice(0, rows.shape[1])))
      numbers, scales[key] = quantize.to_int8(rows.T)
      place[:] = scales[key] if path.endswith('/scale') else numbers[index[1]]
    return out
  return jax.make_array_from_callback(leaf.shape, sharding, part)


def _fill(out, view, index):
  """Copies a slice of a stored tensor, a block of rows at a time, so that no whole one is made."""
  rows = range(view.get_shape()[0])[index[0]]
  step = max(1, BLOCK // max(1, math.prod(out.shape[1:])))
  for start in range(0, len(rows), step):
    block = rows[start:start + step]
    out[start:start + step] = view[(slice(block[0], block[-1] + 1), *index[1:])]


def save(params: PyTree, cfg: llm.Config, folder: Folder, max_shard_bytes: int = 5 << 30) -> None:
  """Writes a checkpoint that transformers loads: config.json and safetensors, split by size.

  params: without adapters (see lora.merge); rows that fill up tables are left out. cfg: the
  model's. folder: to make. max_shard_bytes: of one file. A folder that has config.json is whole:
  that file goes first and comes back last. Raises ConfigError if no known family has cfg's options,
  or where kernels are in 8 bits, which no other program would read.
  """
  if cfg.quantize != 'none':
    raise ConfigError(f'llm.quantize={cfg.quantize}: a whole checkpoint is written from the '
                      'weights as they came; keep the adapter, and merge it into those')
  config, params = family_config(cfg), llm.cut_tables(params, cfg)
  config |= {'dtype': str(params['embed'].dtype)}
  _save(config, _new_tensors(params), folder, max_shard_bytes)


def convert_gguf(file: Folder, folder: Folder, max_shard_bytes: int = 1 << 30) -> None:
  """Writes the model of a GGUF file as `save` does, with one written file in memory at a time.

  file: the GGUF file. folder: to make. max_shard_bytes: of one written file. Raises as
  `read_config` and `load` do.
  """
  cfg = read_config(file)
  names = gguf_checkpoint.NAMES
  stored = _open_tensors(pathlib.Path(file), '', contextlib.ExitStack())
  leaves = _leaves(llm.shapes(cfg))
  _check_names(file, leaves, names, stored, gguf_checkpoint.SPARE)
  entries = []
  for path, leaf in leaves.items():
    for i, tensor in enumerate(_stored_of(path, leaf, names, stored, {})):
      def make(view: Callable = tensor.view, dtype: Any = leaf.dtype) -> np.ndarray:
        out = np.empty(view().get_shape(), dtype)
        _fill(out, view(), (slice(None),) * out.ndim)
        return out
      size = leaf.dtype.itemsize * math.prod(tensor.view().get_shape())
      entries.append(_entry(path, leaf, i, size, make))
  _save(family_config(cfg) | {'dtype': cfg.param_dtype}, entries, folder, max_shard_bytes)


def _save(config, entries, folder, max_shard_bytes):
  """Writes config.json and tensors. entries: as of `_entry`."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').unlink(missing_ok=True)
  parts = _split_into_files(entries, max_shard_bytes)
  files = ['model.safetensors'] if len(parts) == 1 else [
      f'model-{i + 1:05d}-of-{len(parts):05d}.safetensors' for i in range(len(parts))]
  for name, part in zip(files, parts):
    _write_tensors(folder / name, part)
  for old in folder.glob('model*.safetensors*'):
    if old.name not in files:
      old.unlink()
  if len(parts) > 1:
    _write_json(folder / 'model.safetensors.index.json', {
        'metadata': {'total_size': sum(tensor.size for part in parts for tensor in part)},
        'weight_map': {tensor.name: file for file, part in zip(files, parts) for tensor in part}})
  _write_json(folder / 'config.json', config)


class _NewTensor(NamedTuple):
  """A tensor to write: its name, its bytes, and what makes it."""
  name: str
  size: int
  make: Callable[[], np.ndarray]


def _new_tensors(tree: PyTree) -> list[tuple[int, _NewTensor]]:
  """An `_entry` for each tensor of a tree."""
  def make(leaf: Any, layer: int | None, transpose: bool) -> np.ndarray:
    x = np.asarray(leaf if layer is None else leaf[layer])
    return np.ascontiguousarray(x.T if transpose else x)  # the writer saves strided arrays wrongly
  entries = []
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    template, transpose = NAMES[path_of(path)]
    count = len(_their_names(path_of(path), leaf))
    size = leaf.size * leaf.dtype.itemsize // count
    for i in range(count):
      layer = i if '{}' in template else None
      entries.append(_entry(path_of(path), leaf, i, size,
                            functools.partial(make, leaf, layer, transpose)))
  return entries


def _entry(path, leaf, i, size, make) -> tuple[int, _NewTensor]:
  """The i-th tensor of one of our leaves, behind its layer, -1 for those of none."""
  layer = i if '{}' in NAMES[path][0] else -1
  return layer, _NewTensor(_their_names(path, leaf)[i], size, make)


def _split_into_files(entries: Iterable[tuple[int, _NewTensor]], limit: float
                      ) -> list[list[_NewTensor]]:
  """Entries of `_entry` in files of at most `limit` bytes where a tensor is not larger."""
  parts, filled = [[]], 0
  for _, tensor in sorted(entries, key=lambda entry: (entry[0], entry[1].name)):  # layers together
    if parts[-1] and filled + tensor.size > limit:
      parts.append([])
      filled = 0
    parts[-1].append(tensor)
    filled += tensor.size
  return parts


def _write_tensors(path: pathlib.Path, tensors: Iterable[_NewTensor]) -> None:
  with file_io.atomic_path(path) as part:
    safetensors.numpy.save_file(
        {tensor.name: tensor.make() for tensor in tensors}, str(part), metadata=METADATA)


def _write_json(path: pathlib.Path, value: Any) -> None:
  file_io.write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


def family_config(cfg: llm.Config) -> dict[str, Any]:
  """config.json of the family that has cfg's options, in the spelling that every version reads.

  Raises ConfigError where no family has them.
  """
  bias = (cfg.qkv_bias, cfg.out_bias)
  if cfg.qk_norm and bias in ((False, False), (True, True)) and not cfg.mlp_bias:
    kind, more = 'qwen3', {'attention_bias': cfg.qkv_bias}
  elif not cfg.qk_norm and bias == (True, False) and not cfg.mlp_bias:
    kind, more = 'qwen2', {}
  elif not cfg.qk_norm and cfg.qkv_bias == cfg.out_bias:
    kind, more = 'llama', {'attention_bias': cfg.qkv_bias, 'mlp_bias': cfg.mlp_bias}
  else:
    raise ConfigError(
        'no known family has this mix of qkv_bias, out_bias, mlp_bias and qk_norm: '
        f'{cfg.qkv_bias}, {cfg.out_bias}, {cfg.mlp_bias}, {cfg.qk_norm}')
  names = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM', 'qwen3': 'Qwen3ForCausalLM'}
  if kind != 'llama':
    more['use_sliding_window'] = False
  return {
      'architectures': [names[kind]], 'model_type': kind, 'hidden_act': 'silu', **more,
      'vocab_size': cfg.vocab, 'hidden_size': cfg.width, 'num_hidden_layers': cfg.layers,
      'num_attention_heads': cfg.heads, 'num_key_value_heads': cfg.kv_heads,
      'head_dim': cfg.head_dim, 'intermediate_size': cfg.ffn, 'rms_norm_eps': cfg.norm_eps,
      'max_position_embeddings': cfg.max_positions, 'tie_word_embeddings': cfg.tied,
      'rope_theta': cfg.rope_theta, 'rope_scaling': dict(cfg.rope_scaling) or None,
      # transformers would otherwise assume its own ids, which mean nothing in this vocabulary
      'bos_token_id': None, 'eos_token_id': None, 'pad_token_id': None,
  }


def save_adapter(lora: PyTree, cfg: llm.Config, folder: Folder, base: Folder) -> None:
  """Writes adapters in PEFT's layout.

  lora: the 'lora' tree. cfg: with their rank, alpha and targets. base: name or folder of the model
  they belong to.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'adapter_config.json').unlink(missing_ok=True)
  _write_tensors(folder / 'adapter_model.safetensors', [t for _, t in _new_tensors(lora)])
  alpha = int(cfg.lora_alpha) if float(cfg.lora_alpha).is_integer() else cfg.lora_alpha
  _write_json(folder / 'adapter_config.json', {
      'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': str(base),
      'r': cfg.lora_rank, 'lora_alpha': alpha, 'lora_dropout': 0.0, 'bias': 'none',
      'target_modules': [MODULES[n].rpartition('.')[2] for n in cfg.lora_targets],
      'inference_mode': True, 'init_lora_weights': True, 'fan_in_fan_out': False})


def adapter_config(folder: Folder, cfg: llm.Config) -> llm.Config:
  """`cfg` with the rank, alpha and targets of the adapter in `folder`.

  An adapter of rank-stabilised LoRA is scaled by alpha / sqrt(r): its alpha comes as the one that
  gives the same scale. Raises ConfigError naming the key if the adapter is of a kind that is not
  implemented.
  """
  folder = pathlib.Path(folder)
  path = folder / 'adapter_config.json'
  raw = read_json(path)
  checkpoint_config.check_adapter(path, raw)
  rank = checkpoint_config.positive_int(path, raw, 'r')
  alpha = float(checkpoint_config.nonnegative(path, raw, 'lora_alpha'))
  if checkpoint_config.flag(path, raw, 'use_rslora'):
    alpha *= math.sqrt(rank)
  with contextlib.ExitStack() as stack:
    names = set(_open_tensors(folder, 'adapter_model', stack))
  stored = {(i, n) for n in llm.LINEAR for i in range(cfg.layers)
            if f'base_model.model.model.layers.{i}.{MODULES[n]}.lora_A.weight' in names}
  _check_targets(path, raw, cfg.layers, stored)
  targets = tuple(n for n in llm.LINEAR if any(n == name for _, name in stored))
  return dataclasses.replace(cfg, lora_rank=rank, lora_targets=targets, lora_alpha=alpha)


def _check_targets(path, raw, layers, stored):
  """Refuses an adapter whose settings put it elsewhere than on the same modules of every layer.

  stored: (layer, module) of which the file has tensors. PEFT passes over those that the settings
  do not name.
  """
  for module in ('lm_head', EMBED.removesuffix('.weight')):
    if _targeted(path, raw, module):
      raise ConfigError(f'{path}: target_modules names {module}; adapters on the linear layers of '
                        'the blocks are supported')
  for name, theirs in MODULES.items():
    asked = {i for i in range(layers) if _targeted(path, raw, f'model.layers.{i}.{theirs}')}
    held = {i for i, n in stored if n == name}
    if asked and len(asked) < layers:
      missing = min(set(range(layers)) - asked)
      raise ConfigError(f'{path}: target_modules and exclude_modules leave {theirs} of layer '
                        f'{missing} out, and name that of others; all layers alike are supported')
    if bool(asked) != bool(held):
      raise ConfigError(f'{path}: target_modules {"names" if asked else "leaves out"} {theirs}, '
                        f'and the adapter has {"no" if asked else "a"} tensor for it')


def _targeted(path, raw, module):
  """Whether PEFT puts the adapter on a module, by target_modules and exclude_modules."""
  def named(modules: Any) -> bool:
    if isinstance(modules, str):
      return re.fullmatch(modules, module) is not None
    return any(module == name or module.endswith(f'.{name}') for name in modules)
  targets = require(path, raw, 'target_modules')
  if isinstance(targets, str) and targets.lower() == 'all-linear':
    targets = [m.rpartition('.')[2] for m in MODULES.values()]
  try:
    return named(targets) and not (raw.get('exclude_modules') and named(raw['exclude_modules']))
  except (re.error, TypeError) as error:
    raise ConfigError(f'{path}: target_modules or exclude_modules is neither a list of names nor a '
                      f'regular expression ({error})') from None


def load_adapter(folder: Folder, cfg: llm.Config) -> PyTree:
  """Reads adapters in PEFT's layout for `cfg`. -> 'lora' tree of llm.LM, float32

  folder: of the adapter. Raises ConfigError if their rank, alpha or targets are not cfg's
  (`adapter_config` adopts them), DataError naming tensor and file where one is missing, left over,
  or of another shape.
  """
  theirs = adapter_config(folder, cfg)
  for key in ('lora_rank', 'lora_alpha', 'lora_targets'):
    wanted, stored = getattr(cfg, key), getattr(theirs, key)
    if (set(wanted) != set(stored)) if key == 'lora_targets' else wanted != stored:
      raise ConfigError(f'{folder}: the adapter has {key}={stored}, the configuration {wanted}')
  shapes = {}
  for name in cfg.lora_targets:
    size_in, size_out, _ = cfg.linear[name]
    shapes[name] = {
        'a': jax.ShapeDtypeStruct((cfg.layers, size_in, cfg.lora_rank), jnp.float32),
        'b': jax.ShapeDtypeStruct((cfg.layers, cfg.lora_rank, size_out), jnp.float32)}
  return read_tensors(folder, {'blocks': shapes}, None, {}, stem='adapter_model')
