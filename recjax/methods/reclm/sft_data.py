"""What is learnt: windows of users, the lists that a teacher completes, and the turns around them.

Every draw is a function of (seed, epoch, user) alone (reclm.md 2.3, 3.1).
"""
import dataclasses

import numpy as np

from recjax.errors import ConfigError, DataError
from recjax.methods.reclm import control_tasks
from recjax.text import prompt_templates
from recjax.text.prompt_templates import fill

LONGEST = 10  # items of a history that a prompt shows, and of a list that is asked for

SHORTEST = 4  # items of a user who can be learnt from: two train, one validates, one tests

FIELDS = {'system': (), 'train': ('history|items', 'count'), 'rule': (),
          'train_candidates': ('history|items', 'candidates', 'count'),
          'test': ('history|items', 'count'), 'first': (), 'acknowledge': ()}


def forms(cfg):
  """The template's parts, those of `control` too where it is on. Raises ConfigError."""
  more = control_tasks.FIELDS if cfg.control.share else {}
  return prompt_templates.read(cfg.prompt.template, 'recjax.methods.reclm', {**FIELDS, **more})


@dataclasses.dataclass(frozen=True)
class Sample:
  """One conversation. turns: [{'role', 'content'}], contents of the assistant may be lists of texts
  and item indices. history, labels: item indices 1..N; target: the true next item, 0 in chat."""
  turns: list
  task: str = 'chat'
  user: int = -1
  history: tuple = ()
  target: int = 0
  labels: tuple = ()
  candidates: tuple = ()


def windows(sequences, epoch, seed, full=False):
  """One window of each user whose training part has two items: s[a:t] -> s[t].

  sequences: Interactions of the training part. t is uniform in 1 .. n - 1, a in max(0, t - 10) ..
  t - 1 (D4); with `full` t = n - 1 and a is the first of these. -> users, begins, ends: (M,)
  positions in the flat items
  """
  lengths = sequences.lengths()
  users = np.flatnonzero(lengths >= 2)
  rng = np.random.default_rng((seed, epoch, 1))
  u = rng.random((2, len(lengths)))[:, users]
  t = lengths[users] - 1 if full else 1 + np.floor(u[0] * (lengths[users] - 1)).astype(np.int64)
  a = np.maximum(0, t - LONGEST)
  if not full:
    a = a + np.floor(u[1] * (t - a)).astype(np.int64)
  start = sequences.offsets[users]
  return users, start + a, start + t


def label_list(target, taught, count):
  """The true item first, then the teacher's without it, cut to `count` (D3). -> list"""
  return [target, *(i for i in taught if i != target and i)][:count]


def epoch(cfg, goods, train, teach, number, template, talk, count=0):
  """The samples of one epoch, one a user, chat mixed in. -> list of Sample

  cfg: the `train` group, `control`, the share of requests about categories, and its seed. teach:
  (histories, k[, signs]) -> (M, k) item indices, those of the history left out, 0 behind the last.
  talk: [(question, answer)]. count: so many of the users, drawn (0: all).
  """
  users, begin, end = windows(train, number, cfg.seed, cfg.full_histories)
  if count and count < len(users):
    some = np.sort(np.random.default_rng((cfg.seed, number, 2)).permutation(len(users))[:count])
    users, begin, end = users[some], begin[some], end[some]
  histories = [train.items[a:b] for a, b in zip(begin, end)]
  taught = teach(histories, LONGEST + 1)
  wished = controlled(cfg, goods, template, histories, train.items[end], users, number, teach)
  out = []
  for i, user in enumerate(users):
    rng = np.random.default_rng((cfg.seed, number, int(user)))
    size = int(rng.integers(1, min(cfg.longest_list, len(goods.titles) - 1) + 1))
    if cfg.full_lists:
      size = min(cfg.longest_list, len(goods.titles) - 1)
    target = int(train.items[end[i]])
    labels = label_list(target, taught[i].tolist(), size)
    sample = wished[i] if i in wished else recommend(goods, template, histories[i], labels, rng,
                                                     cfg)
    out.append(dataclasses.replace(sample, user=int(user), target=target))
    if talk and rng.random() < cfg.multi_round:
      out[-1] = beside(out[-1], talk[rng.integers(len(talk))], int(rng.integers(2)))
  rng = np.random.default_rng((cfg.seed, number, 3))
  for _ in range(round(cfg.chat_share * len(out)) if talk else 0):
    question, answer = talk[rng.integers(len(talk))]
    out.append(Sample([said('system', template['system']), said('user', question),
                       said('assistant', [answer])]))
  return out


def controlled(cfg, goods, template, histories, targets, users, number, teach):
  """Samples about categories, for `cfg.control` of the users. -> {place in users: Sample}"""
  if not cfg.control:
    return {}
  draws = [np.random.default_rng((cfg.seed, number, int(u), 4)) for u in users]
  kinds = {i: control_tasks.KINDS[r.integers(len(control_tasks.KINDS))] for i, r in enumerate(draws)
           if r.random() < cfg.control}
  lists, out = [i for i, k in kinds.items() if k in control_tasks.LISTS], {}
  most = min(cfg.longest_list, len(goods.titles) - 1)
  found = control_tasks.lists(
      goods, [histories[i] for i in lists], [int(targets[i]) for i in lists], teach,
      [(cfg.seed, number, int(users[i]), 5) for i in lists], [kinds[i] for i in lists], most)
  for i, made in zip(lists, found):
    if made:
      out[i] = dataclasses.replace(recommend(
          goods, template, histories[i], made[0], draws[i],
          cfg, made[1].text(template)), task=f'control:{made[1].kind}')
  for i, kind in kinds.items():
    if kind in control_tasks.QUESTIONS and goods.categories[targets[i] - 1]:
      request, answer = control_tasks.question(
        goods, template, kind, int(targets[i]), draws[i], most
      )
      labels = () if kind == 'category_of' else tuple(answer)
      out[i] = Sample([said('system', template['system']), said('user', request),
                       said('assistant', written(labels) if labels else answer)],
                      f'control:{kind}', labels=labels)
  return out


def said(role, content):
  return {'role': role, 'content': content}


def recommend(goods, template, history, labels, rng, cfg, wish=''):
  """A request and its answer: free or among candidates, the rule stated or not, drawn uniformly.

  wish: a sentence that the request ends with; candidates do not come with it.
  """
  candidates = ()
  if not wish and rng.random() < cfg.candidates:
    candidates = among(labels, len(goods.titles), rng, cfg.longest_list)
  form = template['train_candidates' if candidates else 'train']
  rule = template['rule'] if rng.random() < cfg.rule else ''
  request = asked(goods, form, history, len(labels), candidates, wish + rule)
  return Sample([said('system', template['system']), said('user', request),
                 said('assistant', written(labels))], 'recommend', -1,
                tuple(map(int, history)), 0, tuple(labels), candidates)


def among(labels, n, rng, most):
  """The labels and other items without repeats, shuffled: c in len(labels) .. `most` in all."""
  size = int(rng.integers(len(labels), max(most, len(labels)) + 1))
  some = list(labels)
  while len(some) < min(size, n):
    one = int(rng.integers(1, n + 1))
    if one not in some:
      some.append(one)
  return tuple(some[i] for i in rng.permutation(len(some)))


def asked(goods, form, history, count, candidates=(), more=''):
  """A request (reclm.md 3.1), `more` at its end: a text, its titles in single quotes and joined by
  arrows; or, where the form has {items} for {history}, [text or item index, ...], the
  history's items between control tokens, as they are in answers."""
  def filled(text):
    return fill(text, history=quoted(goods, history, ' → '),
                candidates=quoted(goods, candidates, ', '), count=str(count))
  before, listed, after = form.partition('{items}')
  if not listed:
    return filled(form) + more
  return [filled(before), *named(history), filled(after) + more]


def named(items):
  """Items in a request, by themselves, joined by arrows. -> [str or int, ...]"""
  return [part for i in items for part in (' → ', int(i))][1:]


def about(cfg, goods, history, text):
  """A turn of free text after the items that it is about, as the template shows histories."""
  if '{items}' in forms(cfg)['train']:
    return ['', *named(history), '. ' + text]
  return f'{quoted(goods, history, " → ")}. {text}'


def quoted(goods, items, between):
  """Titles in single quotes. -> str"""
  return between.join(f"'{goods.titles[i - 1]}'" for i in items)


def written(labels):
  """An answer: numbered items, one a line, a new line at its end (D5). -> [str or int, ...]"""
  out = []
  for number, item in enumerate(labels, 1):
    out += [('' if number == 1 else '\n ') + f'{number}. ', int(item)]
  return [*out, '\n']


def beside(sample, pair, late):
  """A chat turn before the recommendation, or after it (reclm.md 3.1, multi-round mixing)."""
  turns = [said('user', pair[0]), said('assistant', [pair[1]])]
  system, *rest = sample.turns
  return dataclasses.replace(sample, turns=[system, *rest, *turns] if late
                             else [system, *turns, *rest])


def question(goods, template, history, way='plain', count=LONGEST, wish='', candidates=()):
  """The turns that ask for `count` items, in words that training does not use. wish: its last
  sentence. candidates: items to choose from, asked for in training's words.

  way: 'plain' (one turn), 'rule' (with the rule of control symbols), 'acknowledged' (after a first
  turn), or 'trained' (training's own words). Raises ConfigError for another.
  """
  if way not in ('plain', 'rule', 'acknowledged', 'trained'):
    raise ConfigError(f"eval.words={way!r}; choose 'plain', 'rule', 'acknowledged' or 'trained'")
  turns = [said('system', template['system'])]
  if way == 'acknowledged':
    turns += [said('user', template['first']), said('assistant', template['acknowledge'])]
  form = template['train_candidates' if candidates else 'train' if way == 'trained' else 'test']
  rule = template['rule'] if way == 'rule' else ''
  return [*turns, said('user', asked(goods, form, history, count, candidates, wish + rule))]


def prompts(renderer, goods, template, histories, way='plain', count=LONGEST, wishes=None,
            candidates=None):
  """Prompts for histories: their last items, fewer where a prompt would be too long.

  histories: lists of item indices. wishes: the last sentence of each request. candidates: items to
  choose from, of each. -> (token lists, how many were shortened)
  """
  out, short = [], 0
  for number, history in enumerate(histories):
    kept = list(history[-LONGEST:])
    while True:
      ids = renderer.tokens(question(goods, template, kept, way, count,
                                     wishes[number] if wishes else '',
                                     candidates[number] if candidates else ()))
      if len(ids) <= renderer.longest:
        break
      if len(kept) < 2:
        raise DataError(f'history {number}: one title alone makes a prompt of {len(ids)} tokens, '
                        f'{renderer.longest} fit; raise prompt.max_prompt_tokens')
      kept = kept[1:]
    short += len(kept) < min(LONGEST, len(history))
    out.append(ids)
  return out, short
