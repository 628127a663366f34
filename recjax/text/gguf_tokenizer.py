"""The tokenizer of a GGUF file as one of the tokenizers library, with ids of the model's own.

Two kinds are read: byte-level BPE ('gpt2'), whose way to split words a file gives by name alone,
and BPE of sentencepiece ('llama'), whose merges follow from scores. Metadata:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from recjax.errors import ConfigError, DataError, UserError
from recjax.gguf_file import File, Path, read

if TYPE_CHECKING:
  import tokenizers

# How words are split, as the tokenizer.json of the models says that the names stand for.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r'\s*[\r\n]+|\s+(?!\S)|\s+'
_QWEN2 = (_CONTRACTIONS + r'|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|' + _SPACES)
_LLAMA3 = _QWEN2.replace(r'|\p{N}|', r'|\p{N}{1,3}|')
_UPPER, _LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_TEKKEN = (rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*'
           rf'|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|' + _SPACES)


class _Splitting(NamedTuple):
  """How texts are cut into words before merging.

  pattern: of a word; '' for GPT-2's. digits: each stands alone before that. nfc: texts are composed
  first. whole_words: a word of the vocabulary is taken as it is. start: a start token stands before
  a text where the file does not say.
  """
  pattern: str = ''
  digits: bool = False
  nfc: bool = False
  whole_words: bool = False
  start: bool = False


SPLITTINGS = {
    **dict.fromkeys(('gpt-2', 'phi-2'), _Splitting()),
    **dict.fromkeys(('smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'minerva-7b'),
                    _Splitting(digits=True)),
    **dict.fromkeys(('llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'pixtral'),
                    _Splitting(_LLAMA3, whole_words=True, start=True)),
    **dict.fromkeys(('smaug-bpe', 'dbrx'), _Splitting(_LLAMA3)),
    **dict.fromkeys(('qwen2', 'deepseek-r1-qwen'), _Splitting(_QWEN2, nfc=True)),
    'tekken': _Splitting(_TEKKEN, whole_words=True, start=True),
}

# Kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Spelled as the format does.
ROLES = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown', 'sep_token': 'seperator',
         'pad_token': 'padding', 'cls_token': 'cls', 'mask_token': 'mask'}

SPM_IDS = {'bos_token': 1, 'eos_token': 2, 'unk_token': 0}  # where the file does not say

ENDS = ('eot', 'eom')  # of a turn and of a message, beside the end of a text

SPACE = '▁'


class Parts(NamedTuple):
  """What `tokenizer.wrap` takes: backend, special_tokens (role -> token), chat_template, more_eos
  (more end ids)."""
  backend: 'tokenizers.Tokenizer'
  special_tokens: dict[str, str]
  chat_template: str
  more_eos: tuple[int, ...]


def parts(path: Path) -> Parts:
  """The tokenizer of a GGUF file.

  path: of the file. Raises ConfigError where it is of a kind that is not known, DataError where it
  is damaged.
  """
  from tokenizers import AddedToken, processors
  file = read(path)
  kind = file.field('tokenizer.ggml.model', str)
  builders: dict[str, Callable] = {'gpt2': _byte_level, 'llama': _sentencepiece}
  if kind not in builders:
    raise ConfigError(f'{file.path}: tokenizer.ggml.model {kind!r} is not supported; '
                      f'{" and ".join(builders)} are')
  tokens, kinds = _vocabulary(file)
  try:
    backend, start = builders[kind](file, tokens, kinds)
  except UserError:
    raise
  except Exception as error:  # the Rust library raises bare Exception
    raise DataError(f'{file.path}: the tokenizer is damaged ({error})') from error
  backend.add_tokens([  # they have their ids, since all stand in the vocabulary
      AddedToken(token, special=k != USER_DEFINED, normalized=False)
      for token, k in zip(tokens, kinds) if k in (UNKNOWN, CONTROL, USER_DEFINED)])
  special = _special(file, tokens, kinds, kind)
  roles = [role for role, flag, usual in (('bos_token', 'add_bos_token', start), ('', '', False),
                                          ('eos_token', 'add_eos_token', False))
           if not role or file.field(f'tokenizer.ggml.{flag}', bool, usual)]
  if missing := [role for role in roles if role and role not in special]:
    raise DataError(f'{file.path}: {missing[0]} is to stand beside each text, and the file names '
                    'none')
  if roles != ['']:
    backend.post_processor = processors.TemplateProcessing(
        single=[special.get(role, '$A') for role in roles],
        special_tokens=[(special[role], tokens.index(special[role])) for role in roles if role])
  ends = tuple(i for name in ENDS if (i := _id(file, name, tokens)) is not None)
  return Parts(backend, special, file.field('tokenizer.chat_template', str, ''), ends)


def _vocabulary(file: File) -> tuple[list[str], list[int]]:
  """All tokens by id, and their kinds."""
  tokens = file.field('tokenizer.ggml.tokens', list)
  kinds = file.fields.get('tokenizer.ggml.token_type')
  kinds = [NORMAL] * len(tokens) if kinds is None else kinds.tolist()
  if len(kinds) != len(tokens):
    raise DataError(f'{file.path}: {len(tokens):,} tokens and {len(kinds):,} kinds of tokens')
  if len(set(tokens)) < len(tokens):
    first = next(t for i, t in enumerate(tokens) if tokens.index(t) < i)
    raise DataError(f'{file.path}: the token {first!r} stands in tokenizer.ggml.tokens twice')
  return tokens, kinds


def _id(file, name, tokens):
  """The id that the metadata give to a role, None where they give none."""
  key = f'tokenizer.ggml.{name}_token_id'
  if key not in file.fields:
    return None
  i = file.field(key, int)
  if i >= len(tokens):
    raise DataError(f'{file.path}: {key}={i}, and the tokenizer has {len(tokens):,} tokens')
  return i


def _special(file, tokens, kinds, kind):
  """role -> token"""
  ids = {role: _id(file, name, tokens) for role, name in ROLES.items()}
  if kind == 'llama':
    ids = {role: SPM_IDS.get(role) if i is None else i for role, i in ids.items()}
  return {role: tokens[i] for role, i in ids.items()
          if i is not None and i < len(tokens) and kinds[i] != UNUSED}


def _byte_level(file, tokens, kinds):
  """BPE over the bytes of words. -> backend, whether a start token is usual"""
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
  name = file.field('tokenizer.ggml.pre', str, '')
  if name not in SPLITTINGS:
    raise ConfigError(f'{file.path}: the way to split words (tokenizer.ggml.pre) {name!r} is not '
                      f'known; {", ".join(SPLITTINGS)} are. Give the folder of the same model from '
                      'Hugging Face instead')
  how = SPLITTINGS[name]
  merges = [tuple(merge.split(' ')) for merge in file.field('tokenizer.ggml.merges', list)]
  backend = Tokenizer(models.BPE(
      vocab={token: i for i, token in enumerate(tokens) if kinds[i] != UNUSED}, merges=merges,
      ignore_merges=how.whole_words))
  if how.nfc:
    backend.normalizer = normalizers.NFC()
  steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if how.digits else []
  if how.pattern:
    steps.append(pre_tokenizers.Split(Regex(how.pattern), 'isolated'))
  steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not how.pattern))
  backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  backend.decoder = decoders.ByteLevel()
  return backend, how.start


def _sentencepiece(file, tokens, kinds):
  """BPE over the characters of a text, bytes where a character is none. -> as `_byte_level`"""
  from tokenizers import Tokenizer, decoders, models, normalizers
  scores = file.fields.get('tokenizer.ggml.scores')
  if scores is None or len(scores) != len(tokens):
    raise DataError(f'{file.path}: tokenizer.ggml.scores has not one score a token')
  vocab = {token: i for i, token in enumerate(tokens) if kinds[i] != UNUSED}
  unknown = next((token for token, kind in zip(tokens, kinds) if kind == UNKNOWN), None)
  backend = Tokenizer(models.BPE(
      vocab=vocab, merges=_merges(tokens, kinds, scores), unk_token=unknown, fuse_unk=True,
      byte_fallback=BYTE in kinds))
  prefix = file.field('tokenizer.ggml.add_space_prefix', bool, True)
  backend.normalizer = normalizers.Sequence([
      *([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(' ', SPACE)])
  backend.decoder = decoders.Sequence([
      decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(),
      *([decoders.Strip(' ', 1, 0)] if prefix else [])])
  return backend, True


def _merges(tokens, kinds, scores):
  """Pairs of pieces that make a piece, that of the highest score first."""
  normal = {token for token, kind in zip(tokens, kinds) if kind in (NORMAL, USER_DEFINED)}
  pairs = [(-score, cut, token[:cut], token[cut:])
           for token, score in zip(tokens, scores.tolist()) if token in normal
           for cut in range(1, len(token))
           if token[:cut] in normal and token[cut:] in normal]
  return [(left, right) for _, _, left, right in sorted(pairs)]
