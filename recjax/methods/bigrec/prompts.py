"""Templates, instruction records, and their tokens.

A template is a plain file of four parts, each under its name in brackets: [instruction] and [input]
make a record out of a history ({noun}, {history}), [prompt] makes the prompt out of a record
({instruction}, {input}), [answer] is what the model shall write ({title}). A part reaches to the
line before the next name; white space counts.
"""
import dataclasses
import re

from recjax.data.formats import bigrec as files
from recjax.errors import DataError
from recjax.text import prompt_templates
from recjax.text.prompt_templates import fill
from recjax.text.tokenizer import Tokenizer

FIELDS = {'instruction': ('noun',), 'input': ('history',), 'prompt': ('instruction', 'input'),
          'answer': ('title',)}


@dataclasses.dataclass(frozen=True)
class Template:
  """The four parts of a template file: instruction, input, prompt, answer."""
  instruction: str
  input: str
  prompt: str
  answer: str

  def record(self, noun: str, history: list[str], title: str) -> dict[str, str]:
    """The record of a history of titles.

    noun: what items are called. title: the next item. -> {'instruction', 'input', 'output'}
    """
    return {'instruction': fill(self.instruction, noun=noun),
            'input': fill(self.input, noun=noun, history=files.quote_titles(history)),
            'output': f'"{title}"'}

  def text(self, record: dict[str, str]) -> str:
    """The prompt of a record."""
    return fill(self.prompt, instruction=record['instruction'], input=record['input'])

  def reply(self, title: str) -> str:
    """What the model shall write, its end token aside. title: the next item."""
    return fill(self.answer, title=title)


def load_template(name: str) -> 'Template':
  """Reads 'bigrec', 'd3' or a file of one's own.

  name: a template of ours or a file. Raises ConfigError naming what it lacks.
  """
  wanted = {**FIELDS, 'instruction': ()}
  parts = prompt_templates.read(name, 'recjax.methods.bigrec', wanted)
  return Template(**{part: parts[part] for part in FIELDS})


def shorter(record: dict[str, str]) -> dict[str, str] | None:
  """The record without its oldest title, or None where it has none left to drop."""
  text = record['input']
  start = text.find('"')
  cut = re.search(r'",\s*"', text[start + 1:]) if start >= 0 else None
  if not cut:
    return None
  return {**record, 'input': text[:start] + text[start + 1 + cut.end() - 1:]}


def encode_prompts(tokenizer: Tokenizer, template: Template, records: list[dict],
                   longest: int) -> tuple[list[list[int]], int]:
  """Token ids of all prompts, whole ones; the oldest titles go where a prompt is too long.

  longest: tokens that a prompt may have. tokenizer: the LLM's. template: of prompts. records: of
  `Template.record`. -> (list of token lists, how many were shortened). Raises DataError where a
  record without any history to drop does not fit.
  """
  start = list(tokenizer.before)
  rows = [start + ids for ids in tokenizer.encode_batch([template.text(r) for r in records])]
  cut = 0
  for i, ids in enumerate(rows):
    if len(ids) <= longest:
      continue
    cut += 1
    record = records[i]
    while len(ids) > longest:
      record = shorter(record)
      if record is None:
        raise DataError(f'record {i} takes {len(ids)} tokens with one title of its history, '
                        f'{longest} fit; raise prompt.max_prompt_tokens, or shorten its titles')
      ids = start + tokenizer.encode(template.text(record))
    rows[i] = ids
  return rows, cut


def encode_answers(tokenizer: Tokenizer, template: Template, titles: list[str]) -> list[list[int]]:
  """Token ids of answers without the end token, the same in training and in the trie.

  tokenizer: the LLM's. template: of prompts. titles: of the answers.
  """
  return tokenizer.encode_batch([template.reply(t) for t in titles])


def come_back(tokenizer: Tokenizer, template: Template, titles: list[str]) -> list[str]:
  """Titles as they are read from the tokens of their answers. tokenizer, template: of the run.
  titles: of all items. -> list of str"""
  return [title_of(tokenizer.decode(row)) for row in encode_answers(tokenizer, template, titles)]


def title_of(text: str) -> str:
  """The title in a generated text: its first line, without the quotes around it. -> str"""
  line = text.strip().partition('\n')[0].strip()
  return files.clean_title(line if line.endswith('"') else line.removeprefix('"'))
