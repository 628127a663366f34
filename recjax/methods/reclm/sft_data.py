"""What is learned: windows of users, the lists that a teacher completes, and the turns around them.

Every draw is a function of (seed, epoch, user) alone. The forms of requests and answers are those
of the released code (Liao et al., ACL Findings 2026, arXiv 2505.03336); docs/reclm.md lists what
differs.
"""
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Interactions
from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import control_tasks
from recjax.methods.reclm.chat_encoding import ChatEncoder
from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog
from recjax.text import prompt_templates
from recjax.text.prompt_templates import fill

MAX_ITEMS = 10  # items of a history that a prompt shows, and of a list that is asked for

MIN_USER_ITEMS = 4  # items of a user who can be learned from: two train, one validates, one tests

FIELDS = {'system': (), 'train': ('history|items', 'count'), 'rule': (),
          'train_candidates': ('history|items', 'candidates', 'count'),
          'test': ('history|items', 'count'), 'first': (), 'acknowledge': ()}


def read_template(cfg: ConfigDict) -> dict[str, str]:
  """The template's parts, those of `control` too where it is on. cfg: the run's config. Raises
  ConfigError."""
  control_fields = control_tasks.FIELDS if cfg.control.share else {}
  return prompt_templates.read(
    cfg.prompt.template, 'recjax.methods.reclm', {**FIELDS, **control_fields}
  )


@dataclasses.dataclass(frozen=True)
class Sample:
  """One conversation.

  turns: [{'role', 'content'}], contents of the assistant may be lists of texts and item indices.
  task: what it teaches. user: the row of the interactions, -1 for none. history, labels,
  candidates: item indices 1..N; target: the true next item, 0 in chat.
  """
  turns: list[dict]
  task: str = 'chat'
  user: int = -1
  history: tuple[int, ...] = ()
  target: int = 0
  labels: tuple[int, ...] = ()
  candidates: tuple[int, ...] = ()


def windows(sequences: Interactions, epoch: int, seed: int,
            full: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """One window of each user whose training part has two items: s[a:t] -> s[t].

  epoch, seed: of the draws. sequences: the training part. t is uniform in 1 .. n - 1, a in max(0, t
  - 10) .. t - 1; with `full` t = n - 1 and a is the first of these. -> users, begins, ends: (M,)
  positions in the flat items
  """
  lengths = sequences.lengths()
  users = np.flatnonzero(lengths >= 2)
  rng = np.random.default_rng((seed, epoch, 1))
  draws = rng.random((2, len(lengths)))[:, users]
  length_before = (
    lengths[users] - 1 if full else 1 + np.floor(draws[0] * (lengths[users] - 1)).astype(np.int64)
  )
  first = np.maximum(0, length_before - MAX_ITEMS)
  if not full:
    first = first + np.floor(draws[1] * (length_before - first)).astype(np.int64)
  offsets = sequences.offsets[users]
  return users, offsets + first, offsets + length_before


def label_list(target: int, taught: Sequence[int], count: int) -> list[int]:
  """The true item first, then the teacher's without it, cut to `count`.

  target: an item. taught: the teacher's list.
  """
  return [target, *(item for item in taught if item != target and item)][:count]


def epoch_samples(cfg: ConfigDict, tokenized: TokenizedCatalog, train: Interactions,
                  teach: Callable, number: int, template: dict[str, str],
                  talk: Sequence[tuple[str, str]], count: int = 0) -> list[Sample]:
  """The samples of one epoch, one a user, chat mixed in.

  cfg: the `train` group, `control`, the share of requests about categories, and its seed. train:
  the sequences. teach: (histories, k[, signs]) -> (M, k) item indices, those of the history left
  out, 0 behind the last. number: of the epoch. talk: [(question, answer)]. count: so many of the
  users, drawn (0: all). tokenized: the catalog. template: the request's parts.
  """
  users, begin, end = windows(train, number, cfg.seed, cfg.full_histories)
  if count and count < len(users):
    chosen = np.sort(np.random.default_rng((cfg.seed, number, 2)).permutation(len(users))[:count])
    users, begin, end = users[chosen], begin[chosen], end[chosen]
  histories = [train.items[first:last] for first, last in zip(begin, end)]
  taught = teach(histories, MAX_ITEMS + 1)
  category_requests = category_samples(
    cfg, tokenized, template, histories, train.items[end], users, number, teach
  )
  samples = []
  for i, user in enumerate(users):
    rng = np.random.default_rng((cfg.seed, number, int(user)))
    size = int(rng.integers(1, min(cfg.longest_list, len(tokenized.titles) - 1) + 1))
    if cfg.full_lists:
      size = min(cfg.longest_list, len(tokenized.titles) - 1)
    target = int(train.items[end[i]])
    labels = label_list(target, taught[i].tolist(), size)
    sample = (
      category_requests[i]
      if i in category_requests
      else recommendation_sample(tokenized, template, histories[i], labels, rng, cfg)
    )
    samples.append(dataclasses.replace(sample, user=int(user), target=target))
    if talk and rng.random() < cfg.multi_round:
      samples[-1] = add_chat_turn(samples[-1], talk[rng.integers(len(talk))], int(rng.integers(2)))
  rng = np.random.default_rng((cfg.seed, number, 3))
  for _ in range(round(cfg.chat_share * len(samples)) if talk else 0):
    question, answer = talk[rng.integers(len(talk))]
    samples.append(Sample([message('system', template['system']), message('user', question),
                           message('assistant', [answer])]))
  return samples


def category_samples(cfg: ConfigDict, tokenized: TokenizedCatalog, template: dict[str, str],
                     histories: Sequence[np.ndarray], targets: np.ndarray, users: np.ndarray,
                     number: int, teach: Callable) -> dict[int, Sample]:
  """Samples about categories, for `cfg.control` of the users.

  histories, targets, users: of the windows. number: of the epoch. tokenized, template, teach: as in
  `epoch_samples`. -> {place in users: Sample}
  """
  if not cfg.control:
    return {}
  rngs = [np.random.default_rng((cfg.seed, number, int(user), 4)) for user in users]
  kinds = {
    i: control_tasks.KINDS[rng.integers(len(control_tasks.KINDS))]
    for i, rng in enumerate(rngs)
    if rng.random() < cfg.control
  }
  lists, samples = (
    [i for i, kind_of_user in kinds.items() if kind_of_user in control_tasks.LIST_KINDS], {}
  )
  max_items = min(cfg.longest_list, len(tokenized.titles) - 1)
  made_lists = control_tasks.make_lists(
      tokenized, [histories[i] for i in lists], [int(targets[i]) for i in lists], teach,
      [(cfg.seed, number, int(users[i]), 5) for i in lists], [kinds[i] for i in lists], max_items)
  for i, labels_and_request in zip(lists, made_lists):
    if labels_and_request:
      samples[i] = dataclasses.replace(recommendation_sample(
          tokenized, template, histories[i], labels_and_request[0], rngs[i],
          cfg, labels_and_request[1].text(template)), task=f'control:{labels_and_request[1].kind}')
  for i, kind in kinds.items():
    if kind in control_tasks.QUESTION_KINDS and tokenized.categories_of(targets[i]):
      request, answer = control_tasks.make_question(
        tokenized, template, kind, int(targets[i]), rngs[i], max_items
      )
      labels = () if kind == 'category_of' else tuple(answer)
      samples[i] = Sample([message('system', template['system']), message('user', request),
                           message('assistant', numbered_list(labels) if labels else answer)],
                          f'control:{kind}', labels=labels)
  return samples


def message(role: str, content: str | list) -> dict:
  """A turn of a conversation. role: who speaks. content: what is said."""
  return {'role': role, 'content': content}


def recommendation_sample(tokenized: TokenizedCatalog, template: dict[str, str],
                          history: Sequence[int] | np.ndarray, labels: Sequence[int],
                          rng: np.random.Generator, cfg: ConfigDict, wish: str = '') -> Sample:
  """A request and its answer: free or among candidates, the rule stated or not, drawn uniformly.

  history: item indices. labels: items of the answer. cfg: the `train` group. wish: a sentence that
  the request ends with; candidates do not come with it. tokenized, template: as in `epoch_samples`.
  rng: of the draws.
  """
  candidates = ()
  if not wish and rng.random() < cfg.candidates:
    candidates = draw_candidates(labels, len(tokenized.titles), rng, cfg.longest_list)
  form = template['train_candidates' if candidates else 'train']
  rule = template['rule'] if rng.random() < cfg.rule else ''
  request = request_text(tokenized, form, history, len(labels), candidates, wish + rule)
  return Sample([message('system', template['system']), message('user', request),
                 message('assistant', numbered_list(labels))], 'recommend', -1,
                tuple(map(int, history)), 0, tuple(labels), candidates)


def draw_candidates(labels: Sequence[int], num_items: int, rng: np.random.Generator,
                    max_items: int) -> tuple[int, ...]:
  """The labels and other items without repeats, shuffled: len(labels) .. `max_items` in all.

  num_items: of the catalog. rng: of the draws.
  """
  size = int(rng.integers(len(labels), max(max_items, len(labels)) + 1))
  candidates = list(labels)
  while len(candidates) < min(size, num_items):
    item = int(rng.integers(1, num_items + 1))
    if item not in candidates:
      candidates.append(item)
  return tuple(candidates[place] for place in rng.permutation(len(candidates)))


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


def add_chat_turn(sample: Sample, pair: tuple[str, str], late: int) -> Sample:
  """A chat turn before the recommendation, or after it where it is `late`.

  sample: the recommendation. pair: question and answer.
  """
  turns = [message('user', pair[0]), message('assistant', [pair[1]])]
  system, *rest = sample.turns
  return dataclasses.replace(sample, turns=[system, *rest, *turns] if late
                             else [system, *turns, *rest])


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
    *turns, message('user', request_text(tokenized, form, history, count, candidates, wish + rule))
  ]


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
