"""Files of other programs: real settings pass, and no key that could matter is passed over."""
import importlib.util
import pathlib

from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.models import checkpoint_config

PATH = pathlib.Path('config.json')

# As published beside the models of these names.
SMOLLM2 = {
    'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
    'bos_token_id': 1, 'eos_token_id': 2, 'hidden_act': 'silu', 'hidden_size': 576,
    'initializer_range': 0.04, 'intermediate_size': 1536, 'is_llama_config': True,
    'max_position_embeddings': 8192, 'mlp_bias': False, 'model_type': 'llama',
    'num_attention_heads': 9, 'num_hidden_layers': 30, 'num_key_value_heads': 3,
    'pad_token_id': 2, 'pretraining_tp': 1, 'rms_norm_eps': 1e-05, 'rope_interleaved': False,
    'rope_scaling': None, 'rope_theta': 100000, 'tie_word_embeddings': True,
    'torch_dtype': 'bfloat16', 'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16'}},
    'transformers_version': '4.42.3', 'use_cache': True, 'vocab_size': 49152}

QWEN = {
    'architectures': ['Qwen2ForCausalLM'], 'attention_dropout': 0.0, 'bos_token_id': 151643,
    'eos_token_id': 151643, 'hidden_act': 'silu', 'hidden_size': 896, 'initializer_range': 0.02,
    'intermediate_size': 4864, 'max_position_embeddings': 32768, 'max_window_layers': 24,
    'model_type': 'qwen2', 'num_attention_heads': 14, 'num_hidden_layers': 24,
    'num_key_value_heads': 2, 'rms_norm_eps': 1e-06, 'rope_theta': 1000000.0,
    'sliding_window': 32768, 'tie_word_embeddings': True, 'torch_dtype': 'bfloat16',
    'transformers_version': '4.40.1', 'use_cache': True, 'use_mrope': False,
    'use_sliding_window': False, 'vocab_size': 151936}

T5 = {
    'architectures': ['T5WithLMHeadModel'], 'd_ff': 2048, 'd_kv': 64, 'd_model': 512,
    'decoder_start_token_id': 0, 'dropout_rate': 0.1, 'eos_token_id': 1, 'initializer_factor': 1.0,
    'is_encoder_decoder': True, 'layer_norm_epsilon': 1e-06, 'model_type': 't5', 'n_positions': 512,
    'num_heads': 8, 'num_layers': 6, 'output_past': True, 'pad_token_id': 0,
    'relative_attention_num_buckets': 32, 'vocab_size': 32128,
    'task_specific_params': {'summarization': {'num_beams': 4, 'prefix': 'summarize: '}}}

BERT = {
    '_name_or_path': 'nreimers/MiniLM-L6-H384-uncased', 'architectures': ['BertModel'],
    'attention_probs_dropout_prob': 0.1, 'gradient_checkpointing': False, 'hidden_act': 'gelu',
    'hidden_dropout_prob': 0.1, 'hidden_size': 384, 'initializer_range': 0.02,
    'intermediate_size': 1536, 'layer_norm_eps': 1e-12, 'max_position_embeddings': 512,
    'model_type': 'bert', 'num_attention_heads': 12, 'num_hidden_layers': 6, 'pad_token_id': 0,
    'position_embedding_type': 'absolute', 'transformers_version': '4.8.2',
    'type_vocab_size': 2, 'use_cache': True, 'vocab_size': 30522}

ADAPTER = {
    'alpha_pattern': {}, 'auto_mapping': None, 'base_model_name_or_path': 'x', 'bias': 'none',
    'corda_config': None, 'eva_config': None, 'exclude_modules': None, 'fan_in_fan_out': False,
    'inference_mode': True, 'init_lora_weights': True, 'layer_replication': None,
    'layers_pattern': None, 'layers_to_transform': None, 'loftq_config': {}, 'lora_alpha': 16,
    'lora_bias': False, 'lora_dropout': 0.05, 'megatron_config': None,
    'megatron_core': 'megatron.core', 'modules_to_save': None, 'peft_type': 'LORA', 'r': 8,
    'rank_pattern': {}, 'revision': None, 'target_modules': ['q_proj', 'v_proj'],
    'task_type': 'CAUSAL_LM', 'trainable_token_indices': None, 'use_dora': False,
    'use_rslora': False}

KINDS = {
  'llama': (checkpoint_config.check_llm, SMOLLM2),
  'qwen': (checkpoint_config.check_llm, QWEN),
  't5': (checkpoint_config.check_t5, T5),
  'bert': (checkpoint_config.check_bert, BERT),
  'adapter': (checkpoint_config.check_adapter, ADAPTER),
}


class ForeignTest(parameterized.TestCase):

  @parameterized.parameters(*KINDS)
  def test_published_settings_pass_and_an_unknown_key_is_named(self, kind):
    check, raw = KINDS[kind]
    check(PATH, raw)
    check(PATH, {**raw, 'of_a_later_version': None, 'another': []})
    for value in (True, False, 1, 0.5, 'on', [0], {'a': 1}):
      with self.assertRaisesRegex(ConfigError, 'config.json: logit_scale=.*take the key out'):
        check(PATH, {**raw, 'logit_scale': value})

  @parameterized.parameters(
      ('llama', 'LlamaConfig'), ('qwen', 'Qwen2Config'), ('qwen', 'Qwen3Config'),
      ('t5', 'T5Config'), ('bert', 'BertConfig'))
  def test_what_transformers_writes_by_itself_passes(self, kind, name):
    if not importlib.util.find_spec('torch'):
      self.skipTest('torch is not installed')
    import transformers
    KINDS[kind][0](PATH, getattr(transformers, name)().to_dict())

  def test_what_peft_writes_by_itself_passes(self):
    if not importlib.util.find_spec('peft'):
      self.skipTest('peft is not installed')
    import peft
    raw = peft.LoraConfig(target_modules=['q_proj'], task_type='CAUSAL_LM').to_dict()
    checkpoint_config.check_adapter(PATH, {**raw, 'peft_type': 'LORA'})

  @parameterized.parameters(
      ('llama', 'is_causal', False), ('llama', 'rope_interleaved', True),
      ('llama', 'sliding_window', 4096), ('llama', 'auto_map', {'AutoModel': 'mine.Model'}),
      ('llama', 'architectures', ['LlamaBidirectionalModel']), ('qwen', 'use_mrope', True),
      ('qwen', 'use_sliding_window', 1), ('qwen', 'mlp_bias', True),
      ('qwen', 'quantization_config', {'bits': 4}), ('qwen', 'layer_types', ['sliding_attention']),
      ('t5', 'dense_act_fn', 'gelu'), ('t5', 'is_gated_act', True), ('t5', 'is_decoder', True),
      ('t5', 'tie_encoder_decoder', True), ('bert', 'is_decoder', True),
      ('bert', 'add_cross_attention', True), ('bert', 'position_embedding_type', 'relative_key'),
      ('adapter', 'init_lora_weights', 'pissa'), ('adapter', 'init_lora_weights', 'pissa_niter_8'),
      ('adapter', 'init_lora_weights', 'olora'), ('adapter', 'init_lora_weights', 'corda'),
      ('adapter', 'init_lora_weights', 'loftq'), ('adapter', 'init_lora_weights', 'lora_ga'),
      ('adapter', 'init_lora_weights', 'something_new'),
      ('adapter', 'alora_invocation_tokens', []), ('adapter', 'alora_invocation_tokens', [5]),
      ('adapter', 'kasa_config', {}), ('adapter', 'layers_to_transform', 0),
      ('adapter', 'peft_type', 'LOHA'), ('adapter', 'task_type', 'SEQ_CLS'))
  def test_what_changes_the_function_is_named(self, kind, key, value):
    check, raw = KINDS[kind]
    with self.assertRaisesRegex(ConfigError, rf'^config.json: {key}'):
      check(PATH, {**raw, key: value})

  def test_values_of_another_kind_are_named(self):
    for read, value in (
      (checkpoint_config.positive_int, '64'),
      (checkpoint_config.positive_int, 0),
      (checkpoint_config.positive_int, True),
      (checkpoint_config.positive_int, 6.5),
      (checkpoint_config.nonnegative, '1'),
      (checkpoint_config.nonnegative, -1),
      (checkpoint_config.nonnegative, float('nan')),
      (checkpoint_config.flag, 'false'),
      (checkpoint_config.flag, 0),
    ):
      with self.assertRaisesRegex(ConfigError, 'config.json: x='):
        read(PATH, {'x': value}, 'x')
    with self.assertRaisesRegex(ConfigError, 'x is missing'):
      checkpoint_config.positive_int(PATH, {'x': None}, 'x')
    self.assertEqual(checkpoint_config.positive_int(PATH, {}, 'x', 3), 3)


if __name__ == '__main__':
  absltest.main()
