"""Test users asked for lists, the teacher and the sanity rows beside them; several rounds; another
catalogue (reclm.md 5)."""
import dataclasses

import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.data.dataset import load_data
from recjax.data.formats import conversations
from recjax.data.sample_shop.small_talk import questions
from recjax.evaluation import baselines, ranking
from recjax.evaluation import results as results_lib
from recjax.methods.reclm import (
  control_tasks,
  generation,
  list_metrics,
  sft_data,
  teacher,
  tokenized_catalog,
  train,
)

KS = (1, 3, 5, 10)


def settings(cfg):
  """Everything in the config that decides the figures besides the tuned model."""
  return ConfigDict({k: cfg[k] for k in ('grounding', 'prompt', 'decode', 'eval', 'talk', 'llm',
                                         'train', 'seed', 'control')})


def stage(work, cfg, shop, folder, made, helper, coded=None):
  """Writes every result file."""
  table = None if coded is None else run_files.read_arrays(coded / 'codes.npy')
  speaker = train.load(cfg, folder, made, work.mesh)
  split, n = splits.leave_one_out(shop.interactions), len(shop.catalog)
  rows, protocol = splits.drawn(split.test, cfg.eval.users, split.protocol)
  cases = split.test.picked(rows)
  split = dataclasses.replace(split, test=cases, protocol=protocol)
  stock = train.stock_of(cfg, shop, speaker, table)
  shelf = generation.Shelf(speaker, [stock], kind=cfg.grounding)
  found, short = ask(work, 'lists', cfg, shelf, stock, cases, cfg.eval.words,
                     cfg.eval.mask_history)
  lists = [r.items[:cfg.decode.count] for r in found]
  histories = [cases.history(c) for c in range(len(cases))]
  clean = list_metrics.of_lists(
    lists, histories, cases.targets, stock.categories, n, cfg.decode.count
  )
  order = rank_all(work, cfg, shelf, stock, cases)
  more = {'rates': clean, 'unfinished': sum(r.unfinished for r in found),
          'shortened_prompts': short}
  more['rounds'] = rounds(work, cfg, shelf, stock, cases)
  if cfg.eval.candidates:
    more['ranking'] = chosen(work, cfg, shelf, stock, cases)
  if cfg.eval.free:
    more['free'] = free(work, cfg, shelf, stock, cases)
  if cfg.control.share:
    more['control'] = controlled(work, cfg, shelf, stock, cases, lists,
                                 teacher.asker(helper, shop))
  if cfg.eval.cross:
    more['cross'] = cross(work, cfg, speaker)
  return save(work, cfg, shop, split, lists, order, teacher.scorer(helper, shop), more)


def ask(work, name, cfg, shelf, stock, cases, words, masked, wishes=None, candidates=None):
  """Lists for cases. wishes: the last sentence of each request; candidates: what each chooses from.
  -> [Reply], prompts that were shortened"""
  histories = [cases.history(c) for c in range(len(cases))]
  prompts, short = sft_data.prompts(train.renderer(cfg, shelf.speaker, stock), stock,
                                   sft_data.forms(cfg), histories, words, cfg.decode.count, wishes,
                                   candidates)
  return generation.many(work, name, shelf, cfg.decode, prompts, histories if masked else None,
                     cfg.seed), short


def rank_all(work, cfg, shelf, stock, cases):
  """The best first items of each case's list. -> items (n, k), scores (n, k)"""
  template = sft_data.forms(cfg)
  histories = [cases.history(c) for c in range(len(cases))]
  prompts, _ = sft_data.prompts(train.renderer(cfg, shelf.speaker, stock), stock, template,
                               histories, cfg.eval.words, cfg.decode.count)
  return generation.ranked_many(work, 'ranked', shelf, cfg.decode, prompts,
                            histories if cfg.eval.mask_history else None, cfg.decode.count)


def save(work, cfg, shop, split, lists, order, score, more):
  """Adds the rows of the teacher and for sanity. Lists end early: so do the cut-offs. -> counts"""
  cases, n, width = split.test, len(shop.catalog), cfg.decode.count
  items = np.zeros((len(cases), width), np.int32)
  for row, some in zip(items, lists):
    row[:len(some)] = some
  values = np.where(items > 0, 1 / (1 + np.arange(width)), 0).astype(np.float32)
  ranks = {cfg.grounding: ranking.list_ranks(items, cases.targets, n - 1),
           f'{cfg.grounding}:ranked': ranking.list_ranks(order[0], cases.targets, n - 1)}
  others = {**({'sasrec': score} if score else {}), **baselines.baselines(split.train, n, cfg.seed)}
  for name, one in others.items():
    ranks[name] = ranking.rank_cases(one, cases, n, mask_history=cfg.eval.mask_history)
  protocol = ranking.protocol(n, split.protocol, cfg.eval.mask_history)
  shown = (items, values) if items.any() else order  # a model that writes no list has no own
  results = results_lib.save(
      work.folder, shop, split, cfg.grounding, ranks, shown, protocol, (cfg.seed,),
      tuple(k for k in KS if k <= width), **more)
  rows = {row: round(cells['HR@10' if width >= 10 else f'HR@{KS[0]}']['value'], 4)
          for row, cells in results['rows'].items()}
  return {'users': len(cases), **{f'{row} HR@10': v for row, v in rows.items()},
          'out_of_catalogue': more['rates'][f'NonExistRate@{width}'],
          'repeats': more['rates'][f'RepeatRate@{width}']}


# Several rounds (reclm.md 5.2).


def rounds(work, cfg, shelf, stock, cases):
  """A worked question, a request, another question: what of lists and answers is left. -> rates"""
  count = min(cfg.eval.rounds, len(cases))
  if not count:
    return {}
  talk = (questions(count + 1, cfg.seed + 1) if cfg.talk.questions == 'sample'
          else conversations.read(cfg.talk.questions)[0])
  first, later = talk[0], talk[1:count + 1]
  count = len(later)
  template = sft_data.forms(cfg)
  turn, said = train.renderer(cfg, shelf.speaker, stock), sft_data.said
  opening = [
    said('system', template['system']),
    said('user', first[0]),
    said('assistant', [first[1]]),
  ]
  turns = [
    opening
    + sft_data.question(
      stock, template, cases.history(c)[-sft_data.LONGEST :], 'rule', cfg.decode.count
    )[1:]
    for c in range(count)
  ]
  lists = generation.many(
    work, 'rounds-1', shelf, cfg.decode, [turn.tokens(t) for t in turns], None, cfg.seed
  )
  ends = set(shelf.speaker.tokenizer.eos_ids)
  for t, r, (question, _) in zip(turns, lists, later):
    t += [said('assistant', [[i for i in r.ids if i not in ends]]), said('user', question)]
  plain = generation.many(
    work, 'rounds-2', shelf, brief(cfg), [turn.tokens(t) for t in turns], None, cfg.seed
  )
  right = [
    list_metrics.last_number(r.text) is not None
    and list_metrics.last_number(r.text) == list_metrics.last_number(gold)
    for r, (_, gold) in zip(plain, later)
  ]
  few = cases.picked(np.arange(count))
  return {'conversations': count,
          'CSN_R1': float(np.mean([len(r.items) == cfg.decode.count for r in lists])),
          'CSN_R2': float(np.mean([not r.items and not r.unfinished for r in plain])),
          'accuracy': float(np.mean(right)),
          **list_metrics.of_lists([r.items for r in lists], [few.history(c) for c in range(count)],
                           few.targets, stock.categories, len(stock.titles), cfg.decode.count)}


def cross(work, cfg, speaker):
  """The same weights over another catalogue: only the trie and the prompts change. -> rates"""
  shop = load_data(cfg.eval.cross)
  stock = tokenized_catalog.load(shop.catalog, speaker.tokenizer)
  shelf = generation.Shelf(speaker, [stock])
  cases = splits.leave_one_out(shop.interactions).test
  cases = cases.picked(splits.drawn(cases, cfg.eval.cross_users, '')[0])
  found, _ = ask(work, 'cross', cfg, shelf, stock, cases, cfg.eval.words, cfg.eval.mask_history)
  counts = np.bincount(splits.leave_one_out(shop.interactions).train.items,
                       minlength=len(shop.catalog) + 1)[1:]
  top = set((np.argsort(-counts, kind='stable')[:10] + 1).tolist())
  return {
    'data': shop.name,
    'notes': {k: v for k, v in stock.notes.items() if v},
    'popularity HR@10': float(np.mean([t in top for t in cases.targets])),
    **list_metrics.of_lists(
      [r.items for r in found],
      [cases.history(c) for c in range(len(cases))],
      cases.targets,
      stock.categories,
      len(stock.titles),
      cfg.decode.count,
    ),
  }


def chosen(work, cfg, shelf, stock, cases):
  """The best of given candidates: the next item among others that the user has not had, shuffled
  (reclm.md 5.1). The words alone say what may be named, so another item is counted. -> rates"""
  k, n, given = cfg.decode.count, len(stock.titles), []
  histories = [cases.history(c) for c in range(len(cases))]
  size = min(max(cfg.eval.candidates, k), n)
  for number, (history, target) in enumerate(zip(histories, cases.targets.tolist())):
    rng = np.random.default_rng((cfg.seed, 7, number))
    others = np.setdiff1d(np.arange(1, n + 1), [*history, target])
    some = np.concatenate([[target], rng.permutation(others)[:size - 1]])
    given.append(tuple(rng.permutation(some).tolist()))
  found, _ = ask(work, 'ranking', cfg, shelf, stock, cases, cfg.eval.words, cfg.eval.mask_history,
                 candidates=given)
  lists = [r.items[:k] for r in found]
  return {
    **list_metrics.of_lists(
      [r.items for r in found], histories, cases.targets, stock.categories, n, k
    ),
    'candidates': size,
    f'NotInCandidateRate@{k}': float(
      np.mean([sum(i not in own for i in items) for items, own in zip(lists, given)])
    ),
  }


# Requests about categories, and replies that nothing holds to the catalogue.


def controlled(work, cfg, shelf, stock, cases, plain, teach):
  """How often requests about categories are followed (reclm.md 5.1, control pack).

  plain: the lists without such a request; 'unasked' is how often they happen to follow it.
  -> {kind: {'users', 'followed', 'unasked', 'in_category', 'HR@k'}, 'category_of': {'users',
  'right'}}
  """
  k, template, asked = cfg.decode.count, sft_data.forms(cfg), []
  few = np.arange(min(len(cases), cfg.control.users))
  some, groups = cases.picked(few), control_tasks.members(stock)
  histories = [some.history(c) for c in few]
  for number, kind in enumerate(control_tasks.LISTS):
    made = control_tasks.lists(stock, histories, some.targets.tolist(), teach,
                          [(cfg.seed, 6, number, c) for c in few.tolist()], [kind] * len(few), k)
    asked += [(c, m[1]) for c, m in enumerate(made) if m]
  if not asked:
    return {}
  found, _ = ask(work, 'control', cfg, shelf, stock, some.picked(np.array([c for c, _ in asked])),
                 cfg.eval.words, cfg.eval.mask_history, [w.text(template) for _, w in asked])
  out = {}
  for (c, wish), reply in zip(asked, found):
    own, items = groups[wish.category], reply.items[:k]
    row = out.setdefault(wish.kind, {'users': [], 'followed': [], 'unasked': [], 'in_category': [],
                                     f'HR@{k}': []})
    for name, value in zip(row, (1, wish.followed(items, own), wish.followed(plain[c], own),
                                 sum(i in own for i in items) / k, some.targets[c] in items)):
      row[name].append(value)
  out = {kind: {name: sum(v) if name == 'users' else float(np.mean(v)) for name, v in row.items()}
         for kind, row in out.items()}
  return {**out, **category_questions(work, cfg, shelf, stock, some)}


def category_questions(work, cfg, shelf, stock, cases):
  """Of what kind items are: right where the answer is one of their categories. -> rates"""
  items = [t for t in cases.targets.tolist() if stock.categories[t - 1]]
  if not items:
    return {}
  template, rng = sft_data.forms(cfg), np.random.default_rng(cfg.seed)
  turn = train.renderer(cfg, shelf.speaker, stock)
  prompts = [
    turn.tokens(
      [
        sft_data.said('system', template['system']),
        sft_data.said('user', control_tasks.question(stock, template, 'category_of', i, rng, 1)[0]),
      ]
    )
    for i in items
  ]
  found = generation.many(work, 'control-category_of', shelf, brief(cfg), prompts, None, cfg.seed)
  right = [r.text.strip() in stock.categories[i - 1] for i, r in zip(items, found)]
  return {'category_of': {'users': len(items), 'right': float(np.mean(right))}}


def brief(cfg):
  """Settings of decoding for answers that are no lists."""
  return ConfigDict({**cfg.decode.to_dict(), 'new_tokens': cfg.eval.answer_tokens})


def free(work, cfg, shelf, stock, cases):
  """What the same model names when nothing holds it to the catalogue (reclm.md 5.1).

  eval.vague above 0 takes a title within so many edits for the nearest item's, which hides a part
  of what does not exist (M5). -> rates
  """
  some = cases.picked(np.arange(min(len(cases), cfg.eval.free)))
  histories = [some.history(c) for c in range(len(some))]
  speaker = shelf.speaker
  prompts, _ = sft_data.prompts(
    train.renderer(cfg, speaker, stock),
    stock,
    sft_data.forms(cfg),
    histories,
    cfg.eval.words,
    cfg.decode.count,
  )
  found = [
    list_metrics.recognised(
      list_metrics.titles_of(ids, speaker.tokenizer, speaker.soi, speaker.eoi),
      stock,
      speaker.tokenizer,
      cfg.eval.vague,
    )
    for ids in generation.free(work, 'free', shelf, cfg.decode, prompts, cfg.seed)
  ]
  return list_metrics.of_lists(
    found, histories, some.targets, stock.categories, len(stock.titles), cfg.decode.count
  )
