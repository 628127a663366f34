"""What files of other programs may say: a key is read, known to change nothing, or refused by name.

A key that no list names may belong to another function (a scale on the logits, other attention),
so it is refused unless it is empty. The lists follow the fields of transformers' configuration
classes, of PEFT's LoraConfig and of sentence-transformers' modules.
"""
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from recjax.errors import ConfigError


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


# Names and numbers for programs around a model: what it computes does not depend on them.
IRRELEVANT = _words('''
    transformers_version architectures model_type _name_or_path name_or_path dtype torch_dtype
    _commit_hash unsloth_version unsloth_fixed transformers.js_config tokenizer_class
    use_cache initializer_range initializer_factor gradient_checkpointing use_bfloat16 torchscript
    output_past output_attentions output_hidden_states output_scores return_dict
    return_dict_in_generate chunk_size_feed_forward
    _attn_implementation attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _flash_attn_2_enabled
    attention_dropout attention_probs_dropout_prob hidden_dropout_prob hidden_dropout
    classifier_dropout
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    id2label label2id num_labels problem_type finetuning_task task_specific_params prefix
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens tf_legacy_loss
    ''')

# Key -> the values that leave the function alone; none: it must be empty.
ALLOWED = {
    'is_causal': (True,), 'pruned_heads': (), 'auto_map': (), 'quantization_config': (),
    'compression_config': (), 'is_decoder': (False,), 'add_cross_attention': (False,),
    'cross_attention_hidden_size': (), 'tie_encoder_decoder': (False,),
}

SIZES = _words('vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size '
              'max_position_embeddings')


def check_llm(path: pathlib.Path, raw: Mapping) -> None:
  """Refuses what a Llama, Qwen2 or Qwen3 of this config.json could have and `llm` has not.

  path: of config.json, for messages. raw: its object. Raises ConfigError naming the key.
  """
  kind = raw['model_type']
  read = SIZES | {
      'num_key_value_heads', 'head_dim', 'rms_norm_eps', 'rope_theta', 'rope_scaling',
      'rope_parameters', 'tie_word_embeddings', 'attention_bias',
      'original_max_position_embeddings'}
  allowed = {**ALLOWED, 'hidden_act': ('silu', 'swish'), 'partial_rotary_factor': (1,),
             'is_encoder_decoder': (False,), 'use_sliding_window': (False,), 'layer_types': (),
             'use_mrope': (False,)}
  irrelevant = IRRELEVANT | {'max_sequence_length'}
  if kind == 'llama':
    read, irrelevant = read | {'mlp_bias'}, irrelevant | {'pretraining_tp'}
    allowed |= {'rope_interleaved': (False,), 'is_llama_config': (True,), 'sliding_window': ()}
  else:  # a window is read only where use_sliding_window says so
    allowed |= {'mlp_bias': (False,)}
    irrelevant |= {'sliding_window', 'max_window_layers'}
  layers = raw.get('layer_types') or ()
  if set(layers) <= {'full_attention'}:
    raw = {**raw, 'layer_types': None}
  check_architecture(path, raw, {'llama': 'Llama', 'qwen2': 'Qwen2', 'qwen3': 'Qwen3'}[kind])
  check_keys(path, raw, read, allowed, irrelevant)


def check_t5(path: pathlib.Path, raw: Mapping) -> None:
  """As `decoder`, for the config.json of a T5. path: of the file, for errors. raw: its contents."""
  read = {'vocab_size', 'd_model', 'num_layers', 'num_decoder_layers', 'num_heads', 'd_kv', 'd_ff',
          'relative_attention_num_buckets', 'relative_attention_max_distance',
          'layer_norm_epsilon', 'dropout_rate', 'feed_forward_proj', 'tie_word_embeddings',
          'scale_decoder_outputs'}
  gated = raw.get('feed_forward_proj', 'relu') == 'gated-gelu'
  allowed = {**ALLOWED, 'is_encoder_decoder': (True,), 'is_gated_act': (gated,),
             'dense_act_fn': ('gelu_new' if gated else 'relu',)}
  check_architecture(path, raw, 'T5')
  check_keys(path, raw, read, allowed, IRRELEVANT | {'n_positions'})


def check_bert(path: pathlib.Path, raw: Mapping) -> None:
  """As `decoder`, for the config.json of a BERT. Heads and the pooler are no part of an encoder.
  path: of the file, for errors. raw: its contents."""
  read = SIZES | {'type_vocab_size', 'layer_norm_eps', 'hidden_act'}
  allowed = {**ALLOWED, 'position_embedding_type': ('absolute',), 'is_encoder_decoder': (False,),
             'is_causal': (False,)}
  irrelevant = IRRELEVANT | {
      'tie_word_embeddings', 'directionality', 'pooler_fc_size', 'pooler_num_attention_heads',
      'pooler_num_fc_layers', 'pooler_size_per_head', 'pooler_type'}
  check_architecture(path, raw, 'Bert')
  check_keys(path, raw, read, allowed, irrelevant)


# What LoRA's inits do to the weights below: none of these does anything that A and B do not store.
PLAIN_INITS = (True, False, 'gaussian', 'orthogonal', 'eva', 'mica')

BASE_INITS = ('pissa', 'olora', 'corda', 'loftq', 'lora_ga')


def check_adapter(path: pathlib.Path, raw: Mapping) -> None:
  """Refuses what PEFT's adapter_config.json could ask for and plain LoRA does not do.

  path, raw: as `decoder` takes them. Raises ConfigError naming the key.
  """
  init = raw.get('init_lora_weights', True)
  if isinstance(init, str) and (init in BASE_INITS or init.startswith('pissa_niter_')):
    raise ConfigError(
        f'{path}: init_lora_weights={init!r} changed the base weights when training began, so this '
        'adapter does not fit the base as it was published; save it with PEFT as a plain one '
        '(save_pretrained(OUT, path_initial_model_for_weight_conversion=INITIAL_ADAPTER)), or '
        'merge it there (merge_and_unload) and give the whole model')
  read = {'r', 'lora_alpha', 'target_modules', 'exclude_modules', 'use_rslora'}
  allowed = {
      'peft_type': ('LORA',), 'task_type': ('CAUSAL_LM', 'FEATURE_EXTRACTION'), 'bias': ('none',),
      'init_lora_weights': PLAIN_INITS, 'use_dora': (False,), 'use_qalora': (False,),
      'fan_in_fan_out': (False,), 'lora_bias': (False,),
      **dict.fromkeys((
          'modules_to_save', 'rank_pattern', 'alpha_pattern', 'layers_to_transform',
          'layers_pattern', 'layer_replication', 'trainable_token_indices', 'target_parameters',
          'loftq_config'), ()),
      **dict.fromkeys((
          'alora_invocation_tokens', 'megatron_config', 'corda_config', 'lora_ga_config',
          'velora_config', 'monteclora_config', 'use_bdlora', 'arrow_config', 'kasa_config'),
          (None,))}
  irrelevant = {
      'base_model_name_or_path', 'revision', 'inference_mode', 'auto_mapping', 'peft_version',
      'merge_weights', 'lora_dropout', 'megatron_core', 'eva_config', 'qalora_group_size',
      'runtime_config', 'ensure_weight_tying'}
  check_keys(path, raw, read, allowed, irrelevant)


def check_architecture(path: pathlib.Path, raw: Mapping, family: str) -> None:
  """Raises ConfigError where 'architectures' names a class that is not the library's own.

  path: of config.json, for messages. raw: its object. family: what its classes begin with.
  """
  for name in raw.get('architectures') or ():
    if not re.fullmatch(rf'{family}(Model|EncoderModel|LMHeadModel|WithLMHeadModel|For\w+)',
                        str(name)):
      raise ConfigError(f'{path}: architectures names {name}, which is no {family} class of '
                        'transformers; its code may compute something else')


def check_keys(
    path: pathlib.Path, raw: Mapping, read: Collection[str],
    allowed: Mapping[str, tuple] | None = None, irrelevant: Collection[str] = ()) -> None:
  """Refuses every key of `raw` that could matter and is not read.

  path: of the file, for messages. raw: its object. read: keys that the caller reads. allowed: key
  -> values that are fine, () for empty ones, (None,) for null alone. irrelevant: keys whose value
  does not matter. Raises ConfigError naming file, key and value.
  """
  allowed = allowed or {}
  for key, value in raw.items():
    if key in read or key in irrelevant or value is None:
      continue
    if _is_empty(value) and allowed.get(key) != (None,):
      continue
    if key not in allowed:
      raise ConfigError(
          f'{path}: {key}={value!r:.120} is not known here, and may change what the model computes'
          '; if it does not, take the key out of the file')
    if not any(_alike(value, fine) for fine in allowed[key]):
      fine = ' or '.join('null' if fine is None else repr(fine) for fine in allowed[key])
      raise ConfigError(f'{path}: {key}={value!r:.120} is not supported'
                        + (f'; it must be {fine}' if fine else ''))


def _alike(value, fine):
  """Equality that tells true from 1, as JSON does."""
  return value == fine and isinstance(value, bool) == isinstance(fine, bool)


def _is_empty(value: Any) -> bool:
  """Whether a value says nothing: None, '', or an empty list or object."""
  return value is None or isinstance(value, (str, list, dict)) and not value


def positive_int(path: pathlib.Path, raw: Mapping, key: str, default: int | None = None) -> int:
  """The setting `key`, a count of at least one; `default` where it is missing or null.

  path: of the file, for messages. raw: its object. Raises ConfigError where it is something else,
  or missing without a default.
  """
  value = _value(path, raw, key, default)
  if type(value) is not int or value < 1:
    raise ConfigError(f'{path}: {key}={value!r:.120} is no whole number above 0')
  return value


def nonnegative(
    path: pathlib.Path, raw: Mapping, key: str, default: float | None = None) -> float:
  """As `positive_int`, for a finite number of 0 or more. path, raw, key, default: as there."""
  value = _value(path, raw, key, default)
  if type(value) not in (int, float) or not 0 <= value < float('inf'):
    raise ConfigError(f'{path}: {key}={value!r:.120} is no number of 0 or more')
  return value


def flag(path: pathlib.Path, raw: Mapping, key: str, default: bool = False) -> bool:
  """As `positive_int`, for true or false; 'false' in quotes is neither. path, raw, key, default: as
  there."""
  value = _value(path, raw, key, default)
  if type(value) is not bool:
    raise ConfigError(f'{path}: {key}={value!r:.120} is neither true nor false')
  return value


def _value(path, raw, key, default):
  value = raw.get(key)
  if value is None:
    value = default
  if value is None:
    raise ConfigError(f'{path}: {key} is missing')
  return value
