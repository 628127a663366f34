"""Sentence encoders as sentence-transformers keeps them: a BERT, how it is pooled, what follows."""
import dataclasses
import os
import pathlib

import numpy as np
from jaxtyping import PyTree

from recjax import gguf_file
from recjax.errors import ConfigError
from recjax.models import bert, checkpoint_config, huggingface

LINEAR = {'q': 'attention.self.query', 'k': 'attention.self.key', 'v': 'attention.self.value',
          'o': 'attention.output.dense', 'up': 'intermediate.dense', 'down': 'output.dense'}

NORMS = {'attn_norm': 'attention.output.LayerNorm', 'mlp_norm': 'output.LayerNorm'}

# our path -> (their name with {} for the layer, whether to transpose)
NAMES = {
    'words': ('embeddings.word_embeddings.weight', False),
    'places': ('embeddings.position_embeddings.weight', False),
    'types': ('embeddings.token_type_embeddings.weight', False),
    'norm/of/scale': ('embeddings.LayerNorm.weight', False),
    'norm/of/bias': ('embeddings.LayerNorm.bias', False),
    **{f'blocks/{ours}/{leaf}': (f'encoder.layer.{{}}.{theirs}.{name}', leaf == 'kernel')
       for ours, theirs in LINEAR.items() for leaf, name in (('kernel', 'weight'),
                                                             ('bias', 'bias'))},
    **{f'blocks/{ours}/of/{leaf}': (f'encoder.layer.{{}}.{theirs}.{name}', False)
       for ours, theirs in NORMS.items() for leaf, name in (('scale', 'weight'),
                                                            ('bias', 'bias'))},
}

# Heads that pretraining or a task put on the encoder; vectors of texts are made without them.
HEADS = r'(pooler|cls|classifier|qa_outputs)\..*'

POOLING = {'mean': 'avg', 'cls': 'cls', 'lasttoken': 'last'}

OLDER_POOLING = {
    'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'cls',
    'pooling_mode_lasttoken': 'lasttoken', 'pooling_mode_max_tokens': 'max',
    'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
    'pooling_mode_weightedmean_tokens': 'weightedmean'}

TEXT_MODALITY = {'text': {'method': 'forward', 'method_output_name': 'last_hidden_state'}}

# Names that the file of the first module had, by the kind of the model.
TRANSFORMER_FILES = tuple(f'sentence_{kind}_config.json' for kind in (
    'bert', 'roberta', 'distilbert', 'camembert', 'albert', 'xlm-roberta', 'xlnet'))


@dataclasses.dataclass(frozen=True)
class Spec:
  """A sentence encoder besides its weights.

  cfg: of the BERT. pool: of `bert.pool`. normalize: whether vectors get length one. max_tokens: of
  a text. prompt: stands before every text, and is pooled with it where `prompt_pooled` says so.
  lower: texts are read in lower case whatever the tokenizer does.
  """
  cfg: bert.Config
  pool: str = 'avg'
  normalize: bool = False
  max_tokens: int = 512
  prompt: str = ''
  prompt_pooled: bool = True
  lower: bool = False


def is_bert(folder: str | os.PathLike) -> bool:
  """Whether a checkpoint folder holds a BERT-type encoder; a GGUF file does not.

  Raises ConfigError where sentence-transformers keeps another kind of model in it.
  """
  if gguf_file.is_gguf(folder):
    return False
  folder = pathlib.Path(folder)
  modules = _modules(folder)
  inner = modules and modules[0].get('path')
  if inner:
    raise ConfigError(f'{folder / "modules.json"}: the Transformer stands in {inner!r}; move the '
                      'files of that folder up, and make its path empty')
  return huggingface.read_json(folder / 'config.json').get('model_type') == 'bert'


def has_modules_list(folder: str | os.PathLike) -> bool:
  """Whether sentence-transformers' list of modules is in a folder."""
  return (pathlib.Path(folder) / 'modules.json').exists()


def read_spec(folder: str | os.PathLike) -> Spec:
  """The encoder of a folder; without sentence-transformers' own files, mean pooling.

  Raises DataError where config.json is missing, ConfigError naming what is not implemented.
  """
  folder = pathlib.Path(folder)
  path = folder / 'config.json'
  raw = huggingface.read_json(path)
  if raw.get('model_type') != 'bert':
    raise ConfigError(f'{path}: model_type {raw.get("model_type")!r} is no text encoder that is '
                      'supported; bert is')
  huggingface.refuse_adapter(folder)
  checkpoint_config.check_bert(path, raw)

  def size(key: str, default: int | None = None) -> int:
    return checkpoint_config.positive_int(path, raw, key, default)
  cfg = bert.Config(
      vocab=size('vocab_size'), width=size('hidden_size'), layers=size('num_hidden_layers'),
      heads=size('num_attention_heads'), ffn=size('intermediate_size'),
      positions=size('max_position_embeddings', 512), types=size('type_vocab_size', 2),
      norm_eps=checkpoint_config.nonnegative(path, raw, 'layer_norm_eps', 1e-12),
      act=raw.get('hidden_act') or 'gelu')
  spec = Spec(cfg, max_tokens=_max_tokens(folder, cfg.positions))
  modules = _modules(folder)
  if modules:  # without that list, sentence-transformers reads none of its other files
    spec = _with_modules(folder, modules, spec)
  return dataclasses.replace(spec, max_tokens=min(spec.max_tokens, cfg.positions))


def _with_modules(folder, modules, spec):
  """The encoder with what sentence-transformers' modules say."""
  kinds = [_kind(folder, module) for module in modules]
  if kinds[:2] != ['Transformer', 'Pooling'] or set(kinds[2:]) - {'Normalize'}:
    raise ConfigError(f'{folder / "modules.json"}: modules {", ".join(kinds)} are not supported; '
                      'Transformer, Pooling and then perhaps Normalize are')
  pool, prompt_pooled = _pooling(
      folder / modules[1].get('path', '') / 'config.json', spec.cfg.width)
  for module in modules[2:]:
    _check_normalize(folder / module.get('path', '') / 'config.json')
  max_tokens, lower = _transformer_settings(folder, spec.max_tokens)
  return dataclasses.replace(
      spec, pool=pool, normalize=len(modules) > 2, max_tokens=max_tokens, prompt=_prompt(folder),
      prompt_pooled=prompt_pooled, lower=lower)


def _modules(folder):
  path = folder / 'modules.json'
  modules = huggingface.read_json(path, list) if path.exists() else []
  for module in modules:
    if not isinstance(module, dict):
      raise ConfigError(f'{path}: {module!r:.120} is no module')
    checkpoint_config.check_keys(path, module, {'type', 'path'}, {'kwargs': ()}, {'idx', 'name'})
  return modules


def _kind(folder, module):
  """The name of a module's class, which must be one of sentence-transformers' own."""
  name = str(module.get('type', ''))
  kind = name.rpartition('.')[2]
  if not name.startswith('sentence_transformers.') or kind not in (
      'Transformer', 'Pooling', 'Normalize'):
    raise ConfigError(f'{folder / "modules.json"}: module {name!r} is not supported; '
                      "sentence-transformers' Transformer, Pooling and Normalize are")
  return kind


def _transformer_settings(folder, length):
  """What the file of the Transformer module says. -> (tokens of a text, whether in lower case)"""
  path = next((p for p in (folder / name for name in TRANSFORMER_FILES) if p.exists()), None)
  if path is None:
    return length, False
  raw = huggingface.read_json(path)
  checkpoint_config.check_keys(path, raw, {'max_seq_length', 'do_lower_case'}, {
      'transformer_task': ('feature-extraction',), 'module_output_name': ('token_embeddings',),
      'modality_config': (TEXT_MODALITY,), **dict.fromkeys((
          'processing_kwargs', 'query_length', 'document_length', 'query_expansion', 'model_args',
          'model_kwargs', 'tokenizer_args', 'processor_kwargs', 'config_args', 'config_kwargs',
          'tokenizer_name_or_path'), ())}, {'unpad_inputs'})
  return (checkpoint_config.positive_int(path, raw, 'max_seq_length', length),
          checkpoint_config.flag(path, raw, 'do_lower_case'))


def _max_tokens(folder, longest):
  """Tokens of a text by tokenizer_config.json; one that cuts or pads on the left is refused."""
  path = folder / 'tokenizer_config.json'
  raw = huggingface.read_json(path) if path.exists() else {}
  for key in ('truncation_side', 'padding_side'):
    if raw.get(key) not in (None, 'right'):
      raise ConfigError(f'{path}: {key}={raw[key]!r} is not supported for a text encoder; it must '
                        "be 'right'")
  length = raw.get('model_max_length', raw.get('max_len'))
  if length is None:
    return longest
  return max(
    1, int(min(checkpoint_config.nonnegative(path, {'length': length}, 'length'), longest))
  )


def _prompt(folder):
  """What stands before every text that is given without a name of a prompt. -> str"""
  path = folder / 'config_sentence_transformers.json'
  if not path.exists():
    return ''
  raw = huggingface.read_json(path)
  checkpoint_config.check_keys(path, raw, {'prompts', 'default_prompt_name'}, {
      'model_type': ('SentenceTransformer',)}, {'__version__', 'similarity_fn_name'})
  name, prompts = raw.get('default_prompt_name'), raw.get('prompts') or {}
  if name is None:
    return ''
  if name not in prompts:
    raise ConfigError(f'{path}: default_prompt_name={name!r} is none of its prompts: '
                      f'{", ".join(prompts)}')
  return prompts[name] or ''


def _pooling(path, width):
  """-> (pool of `bert.pool`, whether a prompt is pooled, too)"""
  raw = huggingface.read_json(path)
  sizes = ('embedding_dimension', 'word_embedding_dimension')
  checkpoint_config.check_keys(
    path, raw, {*sizes, 'pooling_mode', 'include_prompt', *OLDER_POOLING}
  )
  for key in sizes:
    if raw.get(key) not in (None, width):
      raise ConfigError(f'{path}: {key}={raw[key]} is not the hidden_size {width} of the model')
  modes = [mode for key, mode in OLDER_POOLING.items() if checkpoint_config.flag(path, raw, key)]
  newer = raw.get('pooling_mode')
  if newer is not None:
    newer = newer if isinstance(newer, list) else [newer]
    if modes and modes != newer:
      raise ConfigError(f'{path}: pooling_mode={newer} and {modes} of the older keys differ')
    modes = newer
  if len(modes) != 1 or modes[0] not in POOLING:
    raise ConfigError(f'{path}: pooling {modes} is not supported; one of {", ".join(POOLING)} is')
  return POOLING[modes[0]], checkpoint_config.flag(path, raw, 'include_prompt', True)


def _check_normalize(path):
  """Refuses a Normalize that reads or writes something else; older ones have no file."""
  if path.exists():
    checkpoint_config.check_keys(path, huggingface.read_json(path), set(), dict.fromkeys(
        ('module_input_name', 'module_output_name'), ('sentence_embedding',)))


def load(folder: str | os.PathLike, cfg: bert.Config, shardings: PyTree | None = None) -> PyTree:
  """The weights of a checkpoint folder, 'params' of bert.Bert.

  cfg: of `read_spec`. shardings: as `huggingface.load` takes them. Raises DataError naming tensor
  and file.
  """
  spare = {HEADS: None, r'embeddings\.position_ids': np.arange(cfg.positions)}
  return huggingface.read_tensors(folder, bert.shapes(cfg), shardings, spare, NAMES, 'bert.')
