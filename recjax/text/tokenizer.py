"""Tokenizers whose plain text never turns into control tokens: how they are trained and loaded.

A `Tokenizer` holds two backends of the tokenizers library with equal ids. `backend` is the one
other programs see. The private one spells every control token with Unicode noncharacters, so that
a title holding '<|im_end|>' has nothing to match: safety is a property of the vocabulary, not of
a search through each text.
"""
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recjax import file_io, gguf_file
from recjax.errors import ConfigError, DataError
from recjax.text import gguf_tokenizer

if TYPE_CHECKING:
  import tokenizers

PAD, START, END = '<|pad|>', '<|start|>', '<|end|>'

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('roles are system, user and assistant, not ' ~ message['role']) }}
{%- endif %}
{{- '<|start|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start|>assistant\\n' }}
{%- endif %}"""

# Looked for in this order; the first group needs no transformers import.
_FAST_FILE = 'tokenizer.json'

_SLOW_FILES = ('vocab.json', 'vocab.txt', 'tokenizer.model', 'spiece.model', 'tekken.json')

_ROLES = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token',
          'mask_token')

# What the classes of transformers call their tokens where tokenizer_config.json does not say.
_DEFAULTS = {
    'LlamaTokenizer': {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'},
    'GPT2Tokenizer': dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>'),
    'Qwen2Tokenizer': dict.fromkeys(('eos_token', 'unk_token', 'pad_token'), '<|endoftext|>'),
    'T5Tokenizer': {'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>'},
    'BertTokenizer': {'unk_token': '[UNK]', 'sep_token': '[SEP]', 'pad_token': '[PAD]',
                      'cls_token': '[CLS]', 'mask_token': '[MASK]'},
}

# U+FDD0..U+FDEF are set aside for internal use and never stand in text meant for interchange.
_OPEN, _CLOSE = '\ufdd0', '\ufdd1'

_UNFIT = re.compile('[\ud800-\udfff\ufdd0-\ufdef]')


def clean(text: str) -> str:
  """Replaces what cannot be encoded (lone surrogates) or is reserved here (U+FDD0..U+FDEF). text:
  to be encoded."""
  return text if text.isascii() else _UNFIT.sub('\ufffd', text)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A tokenizers.Tokenizer with its special ids and chat template; compared by identity.

  backend: of the tokenizers library. before, after: ids that the tokenizer itself puts around a
  text, as transformers' AutoTokenizer does where nothing is asked for. eos_ids: ids that end a
  text. special_tokens: role -> string ('eos_token' -> '<|end|>'), as chat templates name them.
  chat_template: '' when there is none. pad_id: fills rows up.
  """
  backend: 'tokenizers.Tokenizer'
  before: tuple[int, ...]
  after: tuple[int, ...]
  eos_ids: tuple[int, ...]
  pad_id: int
  special_tokens: dict[str, str]
  chat_template: str = ''

  @functools.cached_property
  def vocab_size(self) -> int:
    """Number of ids, added tokens included; every id lies below it."""
    return 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 (hex) of the compact tokenizer.json: equal for equal vocabularies and rules."""
    return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

  @functools.cached_property
  def controls(self) -> dict[str, int]:
    """Added tokens that plain text must not produce, string -> id.

    Runs of white space that some vocabularies add are ordinary text and stay out.
    """
    added = self.backend.get_added_tokens_decoder()
    return {t.content: i for i, t in added.items() if t.special or t.content.strip(' \t\r\n▁')}

  @functools.cached_property
  def _plain(self):
    return _without_controls(self.backend, {t: _spelling(i) for t, i in self.controls.items()})

  @functools.cached_property
  def control_pattern(self) -> re.Pattern:
    """Finds control tokens as the tokenizers library does: leftmost, then longest."""
    longest_first = sorted(self.controls, key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, longest_first)) or r'(?!)')

  def encode(self, text: str) -> list[int]:
    """Plain text -> ids: nothing around it, and no control token, whatever the text says.

    Characters that a vocabulary lacks still become its unknown id.
    """
    return self._plain.encode(clean(text), add_special_tokens=False).ids

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """`encode` of each text, in parallel threads. texts: as of `encode`."""
    rows = self._plain.encode_batch_fast([clean(t) for t in texts], add_special_tokens=False)
    return [row.ids for row in rows]

  def encode_pieces(self, pieces: list[tuple[str, bool]]) -> list[int]:
    """Encodes the concatenation of (text, trusted) pieces as one string.

    Control tokens written out in trusted pieces become their ids; the others are plain text.
    """
    def spell(match: re.Match) -> str:
      return _spelling(self.controls[match[0]])

    parts = [self.control_pattern.sub(spell, clean(text)) if trusted else clean(text)
             for text, trusted in pieces]
    return self._plain.encode(''.join(parts), add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    """ids -> text without special tokens, spaces left as they are."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def save(self, folder: str | os.PathLike) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads.
    folder: to write to."""
    folder = pathlib.Path(folder)
    config = dict(tokenizer_class='PreTrainedTokenizerFast', clean_up_tokenization_spaces=False,
                  **self.special_tokens, eos_token_ids=list(self.eos_ids))
    if self.chat_template:
      config['chat_template'] = self.chat_template
    file_io.write_text(folder / _FAST_FILE, self.backend.to_str(pretty=True))
    file_io.write_text(folder / 'tokenizer_config.json',
                       json.dumps(config, indent=2, ensure_ascii=False) + '\n')


def _spelling(token_id):
  return f'{_OPEN}{token_id}{_CLOSE}'


def _without_controls(backend, spelling):
  """A copy of the backend with equal ids, its control tokens respelled (string -> string)."""
  if any(backend.model.token_to_id(token) is not None for token in spelling):
    return _respelled_model(backend, spelling)
  plain = type(backend)(backend.model)  # shares the vocabulary: no second parse of megabytes
  if backend.normalizer is not None:
    plain.normalizer = backend.normalizer
  if backend.pre_tokenizer is not None:
    plain.pre_tokenizer = backend.pre_tokenizer
  added = backend.get_added_tokens_decoder()
  for _, token in sorted(added.items()):
    if token.content in spelling:
      # Raw matching: a normalizer may drop or change noncharacters.
      token = type(token)(spelling[token.content], lstrip=token.lstrip, rstrip=token.rstrip,
                          normalized=False, special=True)
    plain.add_tokens([token])
  same = all(plain.token_to_id(spelling.get(t.content, t.content)) == i for i, t in added.items())
  return plain if same else _respelled_model(backend, spelling)


def _respelled_model(backend, spelling):
  """As above where control tokens stand in the model's own vocabulary, as in sentencepiece ones.

  There plain characters, or others that a normalizer maps to them, would still find the token.
  """
  spec = json.loads(backend.to_str())
  model = spec['model']

  def rename(token: str) -> str:
    return spelling.get(token, token)

  for token in spec['added_tokens']:
    if token['content'] in spelling:
      token.update(content=rename(token['content']), normalized=False, single_word=False)
  if isinstance(model['vocab'], dict):
    model['vocab'] = {rename(token): i for token, i in model['vocab'].items()}
  else:  # Unigram: [piece, score], the id is the place
    model['vocab'] = [[rename(piece), score] for piece, score in model['vocab']]
  if model.get('unk_token'):
    model['unk_token'] = rename(model['unk_token'])
  if model.get('merges'):
    model['merges'] = _merges_without(model['merges'], spelling)
  spec['post_processor'] = None
  return type(backend).from_str(json.dumps(spec))


def _merges_without(merges, spelling):
  """Drops the merges that make or use a control token; the others keep their order."""
  pairs = [m.split(' ', 1) if isinstance(m, str) else m for m in merges]
  return [[a, b] for a, b in pairs
          if not (a in spelling or b in spelling or a + b in spelling)]


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Byte-level BPE trained on texts; the same texts give the same tokenizer.

  New lines, '|' and single digits are always tokens of their own, so numbered lists and tag
  lines read alike whatever stands beside them. vocab_size: ids at most; small corpora may yield
  fewer. Raises ConfigError where it is too small.
  """
  from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
  from tokenizers import Tokenizer as Backend
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  if vocab_size < len(alphabet) + 3:
    raise ConfigError(f'vocab_size {vocab_size} is too small: 256 bytes and 3 control tokens '
                      f'need at least {len(alphabet) + 3}')
  backend = Backend(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(Regex(r'[\n|]'), 'isolated'),
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False)])
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PAD, START, END],
                                initial_alphabet=alphabet, show_progress=False)
  backend.train_from_iterator((clean(text) for text in texts), trainer)
  return wrap(backend, dict(eos_token=END, pad_token=PAD), CHAT_TEMPLATE)


def wrap(backend: 'tokenizers.Tokenizer', special_tokens: dict[str, str], chat_template: str = '',
         more_eos: Sequence[int] = ()) -> Tokenizer:
  """Makes a Tokenizer of a tokenizers.Tokenizer and its special strings, such as eos_token.

  more_eos: further ids that end a text. Pad falls back to the first end id, then to 0. Truncation
  and padding are switched off. backend: that tokenizer. special_tokens, chat_template: as of
  `Tokenizer`.
  """
  backend.no_truncation()
  backend.no_padding()
  ids = {role: backend.token_to_id(token) for role, token in special_tokens.items()}
  ends = [i for i in (ids.get('eos_token'), *more_eos) if i is not None]
  pad = ids.get('pad_token')
  if pad is None:
    pad = ends[0] if ends else 0
  return Tokenizer(backend, *_around(backend), tuple(dict.fromkeys(ends)), pad,
                   special_tokens, chat_template or '')


def _around(backend):
  """The ids that a post-processor puts before and behind a text, each a tuple."""
  if backend.post_processor is None:
    return (), ()
  for text in 'a0.':
    if bare := backend.encode(text, add_special_tokens=False).ids:
      whole = backend.encode(text, add_special_tokens=True)
      start = whole.special_tokens_mask.index(0)
      return tuple(whole.ids[:start]), tuple(whole.ids[start + len(bare):])
  return tuple(backend.encode('', add_special_tokens=True).ids), ()


def add_control_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> tuple[Tokenizer, list[int]]:
  """The tokenizer with further control tokens, and their ids; those it has keep theirs.

  tokenizer: it stays as it is. names: the tokens as text. Raises ConfigError where a name does not
  become one token of its own.
  """
  from tokenizers import AddedToken
  backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
  backend.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in names])
  ids: list[Any] = [backend.token_to_id(name) for name in names]
  if None in ids or len(set(ids)) < len(names):
    raise ConfigError(f'control tokens {", ".join(names)} become the ids {ids}; each needs one of '
                      'its own: choose other names')
  return dataclasses.replace(tokenizer, backend=backend), ids


def load(folder: str | os.PathLike) -> Tokenizer:
  """Reads the tokenizer of a Hugging Face folder, or of a GGUF file.

  folder: of the checkpoint, or the file. For a file, and with a tokenizer.json, only the
  tokenizers library is needed; other vocabularies go through transformers, whose import takes
  seconds. Raises DataError when there is nothing to read or what is there cannot be read.
  """
  folder = pathlib.Path(folder)
  if gguf_file.is_gguf(folder):
    return wrap(*gguf_tokenizer.parts(folder))
  if (folder / _FAST_FILE).is_file():
    return _load_fast(folder)
  if any((folder / name).is_file() for name in _SLOW_FILES):
    return _load_slow(folder)
  missing = 'is not a folder' if not folder.is_dir() else 'holds no tokenizer'
  raise DataError(f'{folder} {missing}: looked for {_FAST_FILE}, then for '
                  f'{", ".join(_SLOW_FILES)}; name a folder with the files of a Hugging Face '
                  'tokenizer')


def _load_fast(folder):
  from tokenizers import AddedToken
  from tokenizers import Tokenizer as Backend
  try:
    backend = Backend.from_file(str(folder / _FAST_FILE))
  except Exception as error:  # the Rust library raises bare Exception
    raise DataError(f'{folder / _FAST_FILE} is not a readable tokenizer ({error}); '
                    'download it again') from error
  config = _read_json(folder / 'tokenizer_config.json')
  special_map = _read_json(folder / 'special_tokens_map.json')
  known = {token.content for token in backend.get_added_tokens_decoder().values()}
  entries = sorted(config.get('added_tokens_decoder', {}).items(), key=lambda e: int(e[0]))
  for _, entry in entries:  # some fine-tunes name new tokens here only
    if entry['content'] not in known:
      backend.add_tokens([AddedToken(**entry)])
  kind = _class_of(folder, config)
  special = {}
  for role in _ROLES:
    token = config.get(role) or special_map.get(role)
    if token:
      special[role] = token['content'] if isinstance(token, dict) else token
    elif role not in config and backend.token_to_id(
        _DEFAULTS.get(kind, {}).get(role, '')) is not None:
      special[role] = _DEFAULTS[kind][role]
  _follow(folder / 'tokenizer_config.json', backend, kind, config, special)
  more = config.get('eos_token_ids', []) + _generation_ends(folder)
  return wrap(backend, special, _chat_template(folder, config), more)


def _class_of(folder, config):
  """The class that transformers opens the folder with, as far as its class has rules of its own."""
  named = config.get('tokenizer_class')
  if not named:
    kind: Any = _read_json(folder / 'config.json').get('model_type')
    named = {'bert': 'BertTokenizer', 't5': 'T5Tokenizer', 'llama': 'LlamaTokenizer'}.get(kind, '')
  return named.removesuffix('Fast')


def _follow(path, backend, kind, config, special):
  """Brings a backend to the rules that transformers puts above those of tokenizer.json.

  What stands around a text is the post-processor's; add_bos_token and add_eos_token are for folders
  without a tokenizer.json. path: of tokenizer_config.json, for messages. kind: name of the class.
  special: role -> string. Raises ConfigError where a rule names a token that is not there, or asks
  for what is not done.
  """
  from tokenizers import normalizers, processors
  if kind == 'BertTokenizer':
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=config.get('tokenize_chinese_chars', True),
        strip_accents=config.get('strip_accents'), lowercase=config.get('do_lower_case', True))
  around = {'BertTokenizer': ('cls_token', '$A', 'sep_token'),
            'T5Tokenizer': ('$A', 'eos_token')}.get(kind, ())
  ids = {role: backend.token_to_id(special.get(role, '')) for role in around if role != '$A'}
  for role, found in ids.items():
    if found is None:
      raise ConfigError(f'{path}: {role}={special.get(role)!r} is to stand beside each text and is '
                        'no token of tokenizer.json')
  if around:
    backend.post_processor = processors.TemplateProcessing(
        single=[special.get(part, part) for part in around],
        special_tokens=[(special[role], i) for role, i in ids.items()])
  space = config.get('add_prefix_space')
  byte_level = _parts(json.loads(backend.to_str())['pre_tokenizer'] or {}, 'ByteLevel')
  if space is not None and any(part['add_prefix_space'] is not space for part in byte_level):
    raise ConfigError(f'{path}: add_prefix_space={space} is not what tokenizer.json does; correct '
                      'the one that is wrong')


def _parts(spec, kind):
  """The parts of one kind in a serialized pipeline, which may be a sequence. -> list of dict"""
  if isinstance(spec, dict):
    inner = [part for value in spec.values() for part in _parts(value, kind)]
    return [spec] * (spec.get('type') == kind) + inner
  return [part for value in spec for part in _parts(value, kind)] if isinstance(spec, list) else []


def lowercased(tokenizer: Tokenizer) -> Tokenizer:
  """The tokenizer with its texts in lower case first, unless it has them so already."""
  from tokenizers import normalizers
  spec = json.loads(tokenizer.backend.to_str())['normalizer'] or {}
  if _parts(spec, 'Lowercase') or any(p['lowercase'] for p in _parts(spec, 'BertNormalizer')):
    return tokenizer
  backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
  then = [backend.normalizer] if backend.normalizer is not None else []
  backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *then])
  return dataclasses.replace(tokenizer, backend=backend)


def _load_slow(folder):
  import transformers
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  except (OSError, ValueError, KeyError, ImportError) as error:
    raise DataError(f'{folder} holds tokenizer files that transformers cannot load '
                    f'({str(error).splitlines()[0]}); add its {_FAST_FILE}') from error
  special = {role: str(token) for role, token in tokenizer.special_tokens_map.items()
             if role in _ROLES}
  return wrap(tokenizer.backend_tokenizer, special,
              _default_template(tokenizer.chat_template), _generation_ends(folder))


def _generation_ends(folder):
  """The end ids a model's own generation_config.json names, beside the tokenizer's."""
  ends = _read_json(folder / 'generation_config.json').get('eos_token_id') or []
  return ends if isinstance(ends, list) else [ends]


def _read_json(path: pathlib.Path) -> Mapping:
  return file_io.read_json(path, strict=False) if path.is_file() else {}


def _chat_template(folder, config):
  """The separate file, which newer tools write, beats the entry in tokenizer_config.json."""
  path = folder / 'chat_template.jinja'
  if path.is_file():
    return path.read_text(encoding='utf-8')
  return _default_template(config.get('chat_template'))


def _default_template(template):
  """A template may also be given by name, as a list of {name, template} or a dictionary."""
  if isinstance(template, list):
    template = {entry['name']: entry['template'] for entry in template}
  return template.get('default', '') if isinstance(template, dict) else template or ''
