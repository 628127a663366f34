"""What is learned: windows of users, and the lists that a teacher completes, in turns of `prompts`.

Every draw is a function of (seed, epoch, user) alone.
"""
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Interactions
from recjax.data.formats import conversations
from recjax.methods.reclm import control_tasks, plain_wishes
from recjax.methods.reclm.prompts import MAX_ITEMS, message, numbered_list, request_text
from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog

MIN_USER_ITEMS = 4  # items of a user who can be learned from: two train, one validates, one tests


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
    lengths[users] - 1 if full else 1 + np.floor(draws[0] * (lengths[users] - 1)).astype(np.int64))
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
    cfg, tokenized, template, histories, train.items[end], users, number, teach)
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
      else recommendation_sample(tokenized, template, histories[i], labels, rng, cfg))
    samples.append(dataclasses.replace(sample, user=int(user), target=target))
    if talk and rng.random() < cfg.multi_round:
      samples[-1] = add_chat_turn(samples[-1], talk[rng.integers(len(talk))], int(rng.integers(2)))
  num_users, rng = len(samples), np.random.default_rng((cfg.seed, number, 3))
  for _ in range(round(cfg.chat_share * num_users) if talk else 0):
    samples.append(Sample([message('system', template['system']),
                           *chat_turns(talk[rng.integers(len(talk))])]))
  rng = np.random.default_rng((cfg.seed, number, 6))
  for _ in range(round(cfg.wishes * num_users)):
    wish = plain_wishes.make_wish(tokenized, tokenized.prices, rng, cfg.longest_list)
    if wish:
      samples.append(Sample(
        [message('system', template['system']), message('user', wish[0]),
         message('assistant', numbered_list(wish[1]))], 'wish', labels=tuple(wish[1])))
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
    if rng.random() < cfg.control}
  lists, samples = (
    [i for i, kind_of_user in kinds.items() if kind_of_user in control_tasks.LIST_KINDS], {})
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
        tokenized, template, kind, int(targets[i]), rngs[i], max_items)
      labels = () if kind == 'category_of' else tuple(answer)
      samples[i] = Sample([message('system', template['system']), message('user', request),
                           message('assistant', numbered_list(labels) if labels else answer)],
                          f'control:{kind}', labels=labels)
  return samples


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


def chat_turns(pair: tuple[str, str]) -> list[dict]:
  """A chat turn and its answer, marked as 'cut' where it goes on beyond what is known.

  pair: question and answer, a cut one with the sign `conversations.CUT` at its end.
  """
  question, answer = pair
  reply = message('assistant', [answer.removesuffix(conversations.CUT)])
  return [message('user', question),
          {**reply, 'cut': True} if answer.endswith(conversations.CUT) else reply]


def add_chat_turn(sample: Sample, pair: tuple[str, str], late: int) -> Sample:
  """A chat turn before the recommendation, or after it where it is `late`.

  sample: the recommendation. pair: question and answer; one that was cut stands after it.
  """
  turns = chat_turns(pair)
  late = late or 'cut' in turns[-1]
  system, *rest = sample.turns
  return dataclasses.replace(sample, turns=[system, *rest, *turns] if late
                             else [system, *turns, *rest])
