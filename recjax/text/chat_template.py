"""Chat messages to token ids through a tokenizer's own template, contents always plain text.

A message's content goes through the template with marks around it, and with each control token
in it replaced by a stand-in, so that the template can neither see nor be fooled by it. What the
template wrote is trusted to hold control tokens; what lies between marks is not.
"""
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

from recjax.errors import ConfigError
from recjax.text import tokenizer as tokenizer_lib
from recjax.text.tokenizer import Tokenizer

# Noncharacters: tokenizer.clean removes them from every content first.
# What stands around contents, around the numbers of control tokens, and for lists of ids.
_IN, _OUT, _HIDE, _SHOW, _SLOT = '\ufde0', '\ufde1', '\ufde2', '\ufde3', '\ufde4'

# What templates take for the present day: the one that Llama 3.1's names where it knows no clock.
TODAY = datetime.datetime(2024, 7, 26)

_MARKS = re.compile(f'[{_IN}{_OUT}]')

_PIECES = re.compile(f'({_IN}[^{_OUT}]*{_OUT}|{_HIDE}[0-9]+{_SHOW})')

_HIDDEN = re.compile(f'{_HIDE}([0-9]+){_SHOW}')


# [{'role': text, 'content': text, or a list of texts and lists of token ids}, ...]
Messages = Sequence[Mapping[str, object]]


def render(tokenizer: Tokenizer, messages: Messages, generation_prompt: bool = True,
           **variables: object) -> list[int]:
  """Token ids of messages as the tokenizer's chat template lays them out.

  Equal to transformers' apply_chat_template(tokenize=True) when no content holds a control
  token; where one does, that content is encoded as plain text.

  messages: of a chat, in order. generation_prompt: whether the assistant's turn is opened.
  variables: for the template (enable_thinking=False, date_string=...).
  Raises ConfigError without a template, when the template refuses the messages, and when it
  rewrites a content that could then pass for a control token.
  """
  parts = render_parts(tokenizer, messages, generation_prompt, **variables)
  return [i for part in parts for i in part]


def render_parts(tokenizer: Tokenizer, messages: Messages, generation_prompt: bool = True,
                 **variables: object) -> list[list[int]]:
  """As `render`, where contents may hold token ids: a content is a text, or a list of texts and id
  lists, which stand in their places as they are.

  tokenizer, messages, generation_prompt, variables: as there. -> [ids, ids, ...]: what is before
  the first id list, that list, what is up to the next, ...
  """
  slots, hidden = _hidden(tokenizer, messages)
  return _spliced(tokenizer, _laid_out(tokenizer, hidden, generation_prompt, variables), slots)


def prompt_parts(tokenizer: Tokenizer, messages: Messages, **variables: object
                 ) -> list[list[int]]:
  """As `render_parts`, up to where the assistant's answer begins, whatever the template does.

  tokenizer, messages, variables: as there.

  Where it has no generation prompt, or none for these messages, the answer is opened as the
  template opens one that is there; white space alone is left to the answer.
  """
  slots, hidden = _hidden(tokenizer, messages)
  asked, bare = (_written(tokenizer, hidden, how, variables) for how in (True, False))
  if asked == bare:
    more = [*hidden, {'role': 'assistant', 'content': _SLOT}]
    answered = _written(tokenizer, more, False, variables).rpartition(_SLOT)[0]
    if not answered.startswith(bare) or answered[len(bare):].strip():
      pieces = _laid_out(tokenizer, more, False, variables)
      return _spliced(tokenizer, pieces, [*slots, []])[:-2]
  return _spliced(tokenizer, _laid_out(tokenizer, hidden, True, variables), slots)


def prompt_ids(tokenizer: Tokenizer, messages: Messages, **variables: object) -> list[int]:
  """`prompt_parts` in one: the ids of messages up to where the assistant's answer begins.
  tokenizer, messages, variables: as there."""
  return [i for part in prompt_parts(tokenizer, messages, **variables) for i in part]


def _hidden(tokenizer, messages):
  """-> the id lists within contents, messages whose contents hold neither these nor controls"""
  if not tokenizer.chat_template:
    raise ConfigError('this tokenizer has no chat template; use an instruction-tuned model, or add '
                      'chat_template.jinja to the folder of the tokenizer')
  slots = [list(p) for m in messages if not isinstance(m.get('content', ''), str)
           for p in m['content'] if not isinstance(p, str)]
  return slots, [_hide(tokenizer, message) for message in messages]


def _written(tokenizer, messages, generation_prompt, variables):
  """What the template writes of messages as `_hidden` gives them. -> str"""
  values = {**tokenizer.special_tokens, 'tools': None, 'documents': None, **variables,
            'add_generation_prompt': generation_prompt}
  return _fill(tokenizer.chat_template, messages, values)


def _laid_out(tokenizer, hidden, generation_prompt, variables):
  """-> (text, trusted) pieces of what the template writes"""
  marked = _written(tokenizer, [_mark(m) for m in hidden], generation_prompt, variables)
  bare = _written(tokenizer, hidden, generation_prompt, variables)
  if _MARKS.sub('', marked) == bare and not _torn(tokenizer, marked):
    return _pieces(tokenizer, marked)
  # The template looks into contents or cuts them up, so marks are in its way; without them only
  # a content that completes a control token with the text around it could do harm.
  for index, message in enumerate(hidden):
    _refuse_halves(tokenizer, index, message.get('content', ''))
  return _pieces(tokenizer, bare)


def _spliced(tokenizer, pieces, slots):
  """Encodes (text, trusted) pieces, with the id lists of `slots` where their marks stand."""
  around = [[]]
  for text, trusted in pieces:
    for number, part in enumerate(text.split(_SLOT)):
      if number:
        around.append([])
      if part:
        around[-1].append((part, trusted))
  if len(around) != len(slots) + 1:
    raise ConfigError(f'the chat template of this tokenizer drops or repeats a message: of '
                      f'{len(slots)} places for tokens {len(around) - 1} are left')
  out = [tokenizer.encode_pieces(around[0])]
  for slot, part in zip(slots, around[1:]):
    out += [slot, tokenizer.encode_pieces(part)]
  return out


def _hide(tokenizer, message):
  """Replaces control tokens in every text of the message but its role by numbered stand-ins."""
  content = message.get('content', '')
  parts = content if isinstance(content, list) else [content]
  if any(isinstance(p, dict) or p is None for p in parts):
    raise ConfigError(f'a chat message has content {content!r:.60}; only text works')

  def stand_in(match: re.Match) -> str:
    return f'{_HIDE}{tokenizer.controls[match[0]]}{_SHOW}'

  def plain(text: str) -> str:
    return tokenizer.control_pattern.sub(stand_in, tokenizer_lib.clean(text))

  out = {key: plain(value) if isinstance(value, str) and key != 'role' else value
         for key, value in message.items()}
  if isinstance(content, list):
    out['content'] = ''.join(plain(p) if isinstance(p, str) else _SLOT for p in parts)
  return out


def _mark(message):
  """Marks stand inside the white space at both ends, which many templates trim away."""
  content = message.get('content', '')
  core = content.strip()
  if not core:
    return message
  start = content.index(core)
  end = start + len(core)
  return {**message, 'content': f'{content[:start]}{_IN}{core}{_OUT}{content[end:]}'}


def _torn(tokenizer, marked):
  """True if a mark lost its partner, or the template wrote a control token between two marks."""
  pieces = _PIECES.split(marked)
  return (_MARKS.search(''.join(pieces[::2])) is not None
          or any(tokenizer.control_pattern.search(piece) for piece in pieces[1::2]))


def _pieces(tokenizer, text):
  """Splits rendered text into (text, trusted) pieces and brings hidden control tokens back."""
  strings = {str(i): token for token, i in tokenizer.controls.items()}

  def show(match: re.Match) -> str:
    return strings[match[1]]

  return [(_HIDDEN.sub(show, _MARKS.sub('', piece)), place % 2 == 0)
          for place, piece in enumerate(_PIECES.split(text)) if piece]


def _refuse_halves(tokenizer, index, content):
  """Raises if the content starts or ends with part of a control token."""
  core = content.strip()
  for token in tokenizer.controls:
    cuts = range(1, len(token))
    if any(core.endswith(token[:cut]) or core.startswith(token[cut:]) for cut in cuts):
      raise ConfigError(
          f'the chat template rewrites contents, and message {index} starts or ends with a part '
          f'of the control token {token!r}; change that text or use another template')


def _fill(template, messages, values):
  try:
    return _compile(template).render({**values, 'messages': messages})
  except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError,
          ValueError) as error:  # the latter where it expects other values
    raise ConfigError(f'the chat template of this tokenizer refuses the messages: {error}; '
                      'adapt the roles and their order to the model') from error


@functools.lru_cache(maxsize=16)
def _compile(template):
  """The environment that templates on the Hugging Face hub are written for."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
  environment.filters['tojson'] = _tojson
  environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
  return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
  """{% generation %} marks the assistant's text in some templates; here it only passes through."""
  tags = {'generation'}

  def parse(self, parser: Any) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return nodes.Scope(body, lineno=line)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
  # Jinja's own filter escapes HTML characters.
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                    sort_keys=sort_keys)


def _raise(message):
  raise jinja2.TemplateError(message)


def _strftime_now(style):
  # What is asked on another day than it was learned on must read alike.
  return TODAY.strftime(style)
