"""RecLM's prompts: the words in which lists are asked for and answered, and their lengths.

The text of the prompt is in `templates/`. The forms of requests and answers are those of the
released code (Liao et al., ACL Findings 2026, arXiv 2505.03336); docs/reclm.md lists what differs.
"""
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import control_tasks
from recjax.methods.reclm.chat_encoding import ChatEncoder
from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog
from recjax.text import prompt_templates
from recjax.text.prompt_templates import fill

MAX_ITEMS = 10  # items of a history that a prompt shows, and of a list that is asked for

FIELDS = {'system': (), 'train': ('history|items', 'count'), 'rule': (),
          'train_candidates': ('history|items', 'candidates', 'count'),
          'test': ('history|items', 'count'), 'first': (), 'acknowledge': ()}


def read_template(cfg: ConfigDict) -> dict[str, str]:
  """The template's parts, those of `control` too where it is on. cfg: the run's config. Raises
  ConfigError."""
  control_fields = control_tasks.FIELDS if cfg.control.share else {}
  return prompt_templates.read(
    cfg.prompt.template, 'recjax.methods.reclm', {**FIELDS, **control_fields})


def message(role: str, content: str | list) -> dict:
  """A turn of a conversation. role: who speaks. content: what is said."""
  return {'role': role, 'content': content}


def request_text(tokenized: TokenizedCatalog, form: str, history: Sequence[int] | np.ndarray,
                 count: int, candidates: Sequence[int] | np.ndarray = (),
                 more: str = '') -> str | list:
  """A request, `more` at its end: a text, its titles in single quotes and joined by arrows; or,
  where the form has {items} for {history}, [text or item index, ...], the history's items between
  control tokens, as they are in answers. count: items asked for.

  candidates: items to choose from. tokenized: the catalog.
  """
  def filled(text: str) -> str:
    return fill(text, history=quote_titles(tokenized, history, ' → '),
                candidates=quote_titles(tokenized, candidates, ', '), count=str(count))
  before, listed, after = form.partition('{items}')
  if not listed:
    return filled(form) + more
  return [filled(before), *item_references(history), filled(after) + more]


def item_references(items: Sequence[int] | np.ndarray) -> list:
  """Items in a request, by themselves, joined by arrows.

  items: their indices. -> [str or int, ...]
  """
  return [part for item in items for part in (' → ', int(item))][1:]


def with_history(cfg: ConfigDict, tokenized: TokenizedCatalog, history: Sequence[int] | np.ndarray,
                 text: str) -> str | list:
  """A turn of free text after the items that it is about, as the template shows histories.

  history: item indices. text: the turn. cfg: the run's config. tokenized: the catalog.
  """
  if '{items}' in read_template(cfg)['train']:
    return ['', *item_references(history), '. ' + text]
  return f'{quote_titles(tokenized, history, " → ")}. {text}'


def quote_titles(tokenized: TokenizedCatalog, items: Sequence[int] | np.ndarray,
                 between: str) -> str:
  """Titles in single quotes, joined by `between`. items: their indices. tokenized: the catalog."""
  return between.join(f"'{tokenized.title(item)}'" for item in items)


def numbered_list(labels: Sequence[int]) -> list:
  """An answer: numbered items, one a line, a new line at its end.

  labels: item indices. -> [str or int, ...]
  """
  parts = []
  for number, item in enumerate(labels, 1):
    parts += [('' if number == 1 else '\n ') + f'{number}. ', int(item)]
  return [*parts, '\n']


def request_turns(tokenized: TokenizedCatalog, template: dict[str, str],
                  history: Sequence[int] | np.ndarray, words: str = 'plain', count: int = MAX_ITEMS,
                  wish: str = '', candidates: Sequence[int] | np.ndarray = ()) -> list[dict]:
  """The turns that ask for `count` items, in words that training does not use.

  history: item indices. words: 'plain' (one turn), 'rule' (with the rule of control symbols),
  'acknowledged' (after a first turn), or 'trained' (training's own words). wish: its last sentence.
  candidates: items to choose from, asked for in training's words. tokenized: the catalog. template:
  the request's parts. Raises ConfigError for other words.
  """
  if words not in ('plain', 'rule', 'acknowledged', 'trained'):
    raise ConfigError(f"eval.words={words!r}; choose 'plain', 'rule', 'acknowledged' or 'trained'")
  turns = [message('system', template['system'])]
  if words == 'acknowledged':
    turns += [message('user', template['first']), message('assistant', template['acknowledge'])]
  form = template['train_candidates' if candidates else 'train' if words == 'trained' else 'test']
  rule = template['rule'] if words == 'rule' else ''
  return [
    *turns, message('user', request_text(tokenized, form, history, count, candidates, wish + rule))]


def make_prompts(encoder: ChatEncoder, tokenized: TokenizedCatalog, template: dict[str, str],
                 histories: Sequence, words: str = 'plain', count: int = MAX_ITEMS,
                 wishes: Sequence[str] | None = None,
                 candidates: Sequence | None = None) -> tuple[list[list[int]], int]:
  """Prompts for histories: their last items, fewer where a prompt would be too long.

  encoder: of conversations. histories: item indices. words, count: as in `request_turns`. wishes:
  the last sentence of each request. candidates: items to choose from, of each. tokenized: the
  catalog. template: the request's parts. -> token lists, how many were shortened. Raises DataError
  where one title alone is too long.
  """
  prompts, num_shortened = [], 0
  for number, history in enumerate(histories):
    shown = list(history[-MAX_ITEMS:])
    while True:
      ids = encoder.tokens(request_turns(tokenized, template, shown, words, count,
                                         wishes[number] if wishes else '',
                                         candidates[number] if candidates else ()))
      if len(ids) <= encoder.longest:
        break
      if len(shown) < 2:
        raise DataError(f'history {number}: one title alone makes a prompt of {len(ids)} tokens, '
                        f'{encoder.longest} fit; raise prompt.max_prompt_tokens')
      shown = shown[1:]
    num_shortened += len(shown) < min(MAX_ITEMS, len(history))
    prompts.append(ids)
  return prompts, num_shortened
