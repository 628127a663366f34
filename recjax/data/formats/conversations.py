"""Chat data as people have it: ShareGPT conversations and GSM8K questions, JSON or JSON Lines."""
import json
import pathlib

from recjax.errors import DataError

ROLES = {'human': 'user', 'user': 'user', 'gpt': 'assistant', 'assistant': 'assistant',
         'chatgpt': 'assistant', 'bing': 'assistant', 'bard': 'assistant'}


def read(path):
  """Pairs of a question and its answer, the first of each conversation, in file order.

  path: a JSON list, or JSON Lines. Records: {'question', 'answer'} (GSM8K), {'conversations':
  [{'from', 'value'}]} (ShareGPT), that list alone, or {'messages': [{'role', 'content'}]}.
  Conversations without a person's text followed by an answer are counted. -> ([(question, answer)],
  left out). Raises DataError naming file and record.
  """
  pairs, left = [], 0
  for number, record in enumerate(_records(pathlib.Path(path))):
    found = _pair(record, f'{path}: record {number}')
    left += found is None
    pairs += [found] if found else []
  if not pairs:
    raise DataError(f'{path} holds no conversation of a question and its answer')
  return pairs, left


def _records(path):
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{path} cannot be read as UTF-8 text ({error})') from error
  lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
  if text.lstrip().startswith('['):
    lines = [(1, text)]
  out = []
  for number, line in lines:
    try:
      value = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise DataError(f'{path}: line {number} is not valid JSON ({error})') from error
    out += value if len(lines) == 1 and isinstance(value, list) else [value]
  return out


def _pair(record, place):
  if isinstance(record, dict) and {'question', 'answer'} <= set(record):
    turns = [('user', record['question']), ('assistant', record['answer'])]
  else:
    some = record
    if isinstance(record, dict):
      some = record.get('conversations', record.get('messages'))
    if not isinstance(some, list) or not all(isinstance(t, dict) for t in some):
      raise DataError(f"{place} is no conversation: it needs 'question' and 'answer', "
                      "'conversations' or 'messages'")
    turns = [(ROLES.get(str(t.get('from', t.get('role'))).lower()),
              t.get('value', t.get('content'))) for t in some]
  if any(not isinstance(text, str) for _, text in turns):
    raise DataError(f'{place} has a turn that is no text')
  for (a, question), (b, answer) in zip(turns, turns[1:]):
    if (a, b) == ('user', 'assistant') and question.strip() and answer.strip():
      return question.strip(), answer.strip()
  return None
