"""Chat data as people have it: ShareGPT conversations and GSM8K questions, JSON or JSON Lines."""
import pathlib
from collections.abc import Iterator

from recjax import file_io
from recjax.errors import DataError

CUT = '\N{SYMBOL FOR CANCEL}'  # at the end of an answer that goes on, whose end is not learned
ROLES = {'human': 'user', 'user': 'user', 'gpt': 'assistant', 'assistant': 'assistant',
         'chatgpt': 'assistant', 'bing': 'assistant', 'bard': 'assistant'}


def read(path: str | pathlib.Path) -> tuple[list[tuple[str, str]], int]:
  """Pairs of a question and its answer, the first of each conversation at `path`, in file order.

  The file is a JSON list, or JSON Lines. Records: {'question', 'answer'} (GSM8K), {'conversations':
  [{'from', 'value'}]} (ShareGPT), that list alone, or {'messages': [{'role', 'content'}]}.
  Conversations without a person's text followed by an answer are counted, in the second value.
  Raises DataError naming file and record.
  """
  pairs, left_out = [], 0
  for number, record in enumerate(_records(path)):
    pair = _pair(record, f'{path}: record {number}')
    left_out += pair is None
    pairs += [pair] if pair else []
  if not pairs:
    raise DataError(f'{path} holds no conversation of a question and its answer')
  return pairs, left_out


def _records(path: str | pathlib.Path) -> Iterator[object]:
  data = file_io.read_bytes(path)
  lines = [(n, line) for n, line in enumerate(data.split(b'\n'), 1) if line.strip()]
  if data.lstrip().startswith(b'['):
    lines = [(None, data)]
  for number, line in lines:
    value = file_io.parse_json(line, path, number)
    if len(lines) == 1 and isinstance(value, list):
      yield from value
    else:
      yield value


def _pair(record: object, place: str) -> tuple[str, str] | None:
  if isinstance(record, dict) and {'question', 'answer'} <= set(record):
    turns = [('user', record['question']), ('assistant', record['answer'])]
  else:
    messages = record
    if isinstance(record, dict):
      messages = record.get('conversations', record.get('messages'))
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
      raise DataError(f"{place} is no conversation: it needs 'question' and 'answer', "
                      "'conversations' or 'messages'")
    turns = [(ROLES.get(str(m.get('from', m.get('role'))).lower()),
              m.get('value', m.get('content'))) for m in messages]
  if any(not isinstance(text, str) for _, text in turns):
    raise DataError(f'{place} has a turn that is no text')
  for (a, question), (b, answer) in zip(turns, turns[1:]):
    if (a, b) == ('user', 'assistant') and question.strip() and answer.strip():
      return question.strip(), answer.strip()
  return None
