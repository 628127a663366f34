"""Sentence encoders as sentence-transformers keeps them: a BERT, how it is pooled, what follows."""
import dataclasses
import pathlib

from recjax.errors import ConfigError
from recjax.models import bert, huggingface

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
IGNORED = r'(bert\.)?(pooler\..*|embeddings\.position_ids)|cls\..*'
POOLING = {'pooling_mode_mean_tokens': 'avg', 'pooling_mode_cls_token': 'cls',
           'pooling_mode_lasttoken': 'last'}


@dataclasses.dataclass(frozen=True)
class Spec:
  """A sentence encoder besides its weights: pool, whether vectors get length one, most tokens."""
  cfg: bert.Config
  pool: str = 'avg'
  unit: bool = False
  most: int = 512


def is_bert(folder):
  """Whether a checkpoint folder holds a BERT-type encoder."""
  return huggingface.read_json(pathlib.Path(folder) / 'config.json').get('model_type') == 'bert'


def read(folder):
  """The encoder of a folder; without sentence-transformers' own files, mean pooling. -> Spec

  Raises DataError where config.json is missing, ConfigError naming what is not implemented.
  """
  folder = pathlib.Path(folder)
  path = folder / 'config.json'
  raw = huggingface.read_json(path)
  if raw.get('model_type') != 'bert':
    raise ConfigError(f'{path}: model_type {raw.get("model_type")!r} is no text encoder that is '
                      'supported; bert is')
  if raw.get('position_embedding_type', 'absolute') != 'absolute':
    raise ConfigError(f'{path}: position_embedding_type must be absolute')
  cfg = bert.Config(
      **{ours: huggingface.need(path, raw, theirs) for ours, theirs in (
          ('vocab', 'vocab_size'), ('width', 'hidden_size'), ('layers', 'num_hidden_layers'),
          ('heads', 'num_attention_heads'), ('ffn', 'intermediate_size'))},
      positions=raw.get('max_position_embeddings', 512), types=raw.get('type_vocab_size', 2),
      norm_eps=raw.get('layer_norm_eps', 1e-12), act=raw.get('hidden_act', 'gelu'))
  most, unit, pool = cfg.positions, False, 'avg'
  if (folder / 'sentence_bert_config.json').exists():
    own = huggingface.read_json(folder / 'sentence_bert_config.json')
    most = min(most, own.get('max_seq_length') or most)
  for module in _modules(folder):
    kind = module.get('type', '').rpartition('.')[2]
    if kind == 'Pooling':
      pool = _pool(folder / module.get('path', '') / 'config.json')
    elif kind == 'Normalize':
      unit = True
    elif kind != 'Transformer':
      raise ConfigError(f'{folder / "modules.json"}: module {kind!r} is not supported; '
                        'Transformer, Pooling and Normalize are')
  return Spec(cfg, pool, unit, most)


def _modules(folder):
  path = folder / 'modules.json'
  return huggingface.read_json(path, list) if path.exists() else []


def _pool(path):
  raw = huggingface.read_json(path)
  modes = [key for key, value in raw.items() if key.startswith('pooling_mode_') and value is True]
  if len(modes) != 1 or modes[0] not in POOLING:
    raise ConfigError(f'{path}: pooling {modes} is not supported; one of {", ".join(POOLING)} is')
  return POOLING[modes[0]]


def load(folder, cfg, shardings=None):
  """The weights of a folder. -> 'params' of bert.Bert. Raises DataError naming tensor and file."""
  return huggingface.read(folder, bert.shapes(cfg), shardings, IGNORED, NAMES, 'bert.')
