"""T5 checkpoints of Hugging Face: original T5, T5 1.1, Flan-T5 and their like."""
import os
import pathlib
from typing import Any

from jaxtyping import PyTree

from recjax.errors import ConfigError
from recjax.models import checkpoint_config, huggingface, t5

# (our path, their name with {} for the layer, whether to transpose)
NAMES = {'shared': ('shared.weight', False), 'head': ('lm_head.weight', True)}
for _side, _feed in (('encoder', 1), ('decoder', 2)):
  _layer, _ours = f'{_side}.block.{{}}.layer', f'stacks/{_side}'
  NAMES |= {
      f'{_ours}/norm': (f'{_side}.final_layer_norm.weight', False),
      f'{_ours}/bias': (f'{_side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
                        False),
      f'{_ours}/blocks/norm': (f'{_layer}.0.layer_norm.weight', False),
      f'{_ours}/blocks/feed_norm': (f'{_layer}.{_feed}.layer_norm.weight', False),
      f'{_ours}/blocks/gate': (f'{_layer}.{_feed}.DenseReluDense.wi_0.weight', True),
      f'{_ours}/blocks/down': (f'{_layer}.{_feed}.DenseReluDense.wo.weight', True),
      **{f'{_ours}/blocks/{n}': (f'{_layer}.0.SelfAttention.{n}.weight', True) for n in 'qkvo'}}
NAMES |= {
    'stacks/decoder/blocks/cross_norm': ('decoder.block.{}.layer.1.layer_norm.weight', False),
    **{f'stacks/decoder/{where}cross_{n}': (
        f'decoder.block.{{}}.layer.1.EncDecAttention.{n}.weight', True)
       for n, where in (('q', 'blocks/'), ('o', 'blocks/'), ('k', ''), ('v', ''))}}
HEAD, EMBED = 'lm_head.weight', 'shared.weight'
# The first releases hold relative positions of the attention across, which no T5 reads.
UNREAD = r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight'


def names(cfg: t5.Config) -> dict[str, tuple[str, bool]]:
  """The table of a model: the first feed-forward matrix has another name where it is gated. cfg:
  the model's shape."""
  wi = 'wi_1' if cfg.gated else 'wi'
  return NAMES | {f'stacks/{side}/blocks/up': (
      f'{side}.block.{{}}.layer.{feed}.DenseReluDense.{wi}.weight', True)
      for side, feed in (('encoder', 1), ('decoder', 2))}


def read_config(folder: str | os.PathLike) -> t5.Config:
  """The configuration of a checkpoint folder.

  `tied` is what the files show: a stored output layer that is not the embedding is used, whatever
  config.json says (transformers 5 writes true for every T5). Raises DataError where config.json is
  missing or unreadable, ConfigError naming a key that is not implemented.
  """
  path = pathlib.Path(folder) / 'config.json'
  raw = huggingface.read_json(path)
  if raw.get('model_type') != 't5':
    raise ConfigError(f'{path}: model_type {raw.get("model_type")!r} is no T5; t5 is supported')
  feed = raw.get('feed_forward_proj', 'relu')
  if feed not in ('relu', 'gated-gelu'):
    raise ConfigError(f"{path}: feed_forward_proj={feed!r} is not supported; 'relu' and "
                      "'gated-gelu' are")
  huggingface.refuse_adapter(path.parent)
  checkpoint_config.check_t5(path, raw)
  sizes: dict[str, Any] = {
      ours: checkpoint_config.positive_int(path, raw, theirs) for ours, theirs in (
          ('vocab', 'vocab_size'), ('width', 'd_model'), ('layers', 'num_layers'),
          ('heads', 'num_heads'), ('head_dim', 'd_kv'), ('ffn', 'd_ff'))}
  tied = checkpoint_config.flag(path, raw, 'tie_word_embeddings', True)
  return t5.Config(
    **sizes,
    decoder_layers=checkpoint_config.positive_int(path, raw, 'num_decoder_layers', sizes['layers']),
    buckets=checkpoint_config.positive_int(path, raw, 'relative_attention_num_buckets', 32),
    distance=checkpoint_config.positive_int(path, raw, 'relative_attention_max_distance', 128),
    norm_eps=checkpoint_config.nonnegative(path, raw, 'layer_norm_epsilon', 1e-6),
    dropout=checkpoint_config.nonnegative(path, raw, 'dropout_rate', 0.1),
    gated=feed == 'gated-gelu',
    tied=tied and not huggingface.tensors_differ(folder, HEAD, EMBED),
    scaled=checkpoint_config.flag(path, raw, 'scale_decoder_outputs', tied),
  )  # a key of transformers 5


def load(folder: str | os.PathLike, cfg: t5.Config, shardings: PyTree | None = None) -> PyTree:
  """The weights of a checkpoint folder, 'params' of t5.T5.

  cfg: of `read_config`. shardings: as `huggingface.load` takes them. Raises DataError naming tensor
  and file.
  """
  spare = {r'(en|de)coder\.embed_tokens\.weight': EMBED, UNREAD: None}
  if cfg.tied:
    spare[r'lm_head\.weight'] = EMBED
  return huggingface.read_tensors(folder, t5.shapes(cfg), shardings, spare, names(cfg))
