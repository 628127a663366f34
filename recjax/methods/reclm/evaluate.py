"""Test users asked for lists, the teacher and the sanity rows beside them; several rounds; another
catalog. docs/reclm.md says what each figure means."""
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.data.dataset import Dataset, load_data
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
from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog
from recjax.training.workdir import Workdir

KS = (1, 3, 5, 10)


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides the figures besides the tuned model."""
  return ConfigDict({k: cfg[k] for k in ('grounding', 'prompt', 'decode', 'eval', 'talk', 'llm',
                                         'train', 'seed', 'control')})


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, llm_dir: Path, tuned_dir: Path,
          teacher_dir: Path, codes_dir: Path | None = None) -> dict:
  """Writes every result file. The folders are those of the stages before. -> counts"""
  table = None if codes_dir is None else run_files.read_arrays(codes_dir / 'codes.npy')
  chat_model = train.load_model(cfg, llm_dir, tuned_dir, work.mesh)
  split, num_items = splits.leave_one_out(dataset.interactions), len(dataset.catalog)
  rows, protocol = splits.drawn(split.test, cfg.eval.users, split.protocol)
  cases = split.test.picked(rows)
  split = dataclasses.replace(split, test=cases, protocol=protocol)
  tokenized = train.load_tokenized(cfg, dataset, chat_model, table)
  grounded = generation.GroundedModel(chat_model, [tokenized], kind=cfg.grounding)
  replies, num_shortened = ask_lists(work, 'lists', cfg, grounded, tokenized, cases, cfg.eval.words,
                     cfg.eval.mask_history)
  lists = [reply.items[:cfg.decode.num_items] for reply in replies]
  histories = [cases.history(case) for case in range(len(cases))]
  rates = list_metrics.list_rates(
    lists, histories, cases.targets, tokenized.categories, num_items, cfg.decode.num_items
  )
  ranked = rank_all(work, cfg, grounded, tokenized, cases)
  extra_results = {'rates': rates, 'unfinished': sum(reply.unfinished for reply in replies),
          'shortened_prompts': num_shortened}
  extra_results['rounds'] = judge_rounds(work, cfg, grounded, tokenized, cases)
  if cfg.eval.candidates:
    extra_results['ranking'] = judge_candidates(work, cfg, grounded, tokenized, cases)
  if cfg.eval.free:
    extra_results['free'] = judge_free(work, cfg, grounded, tokenized, cases)
  if cfg.control.share:
    extra_results['control'] = judge_control(work, cfg, grounded, tokenized, cases, lists,
                                 teacher.make_teacher(teacher_dir, dataset))
  if cfg.eval.cross:
    extra_results['cross'] = judge_cross(work, cfg, chat_model)
  return save_results(
    work, cfg, dataset, split, lists, ranked, teacher.scorer(teacher_dir, dataset), extra_results
  )


def ask_lists(work: Workdir, name: str, cfg: ConfigDict, grounded: generation.GroundedModel,
              tokenized: TokenizedCatalog, cases: splits.Cases, words: str, mask_history: bool,
              wishes: Sequence[str] | None = None,
              candidates: Sequence | None = None) -> tuple[list[generation.Reply], int]:
  """Lists for cases.

  name: of the journal. words: of requests, as in `sft_data.request_turns`. mask_history: whether
  items of the history may not come. wishes: the last sentence of each request; candidates: what
  each chooses from. -> replies, prompts that were shortened
  """
  histories = [cases.history(case) for case in range(len(cases))]
  prompts, num_shortened = sft_data.make_prompts(
    train.make_encoder(cfg, grounded.chat_model, tokenized), tokenized, sft_data.read_template(cfg),
    histories, words, cfg.decode.num_items, wishes, candidates
  )
  return generation.reply_to_all(
    work, name, grounded, cfg.decode, prompts, histories if mask_history else None, cfg.seed
  ), num_shortened


def rank_all(work: Workdir, cfg: ConfigDict, grounded: generation.GroundedModel,
             tokenized: TokenizedCatalog, cases: splits.Cases) -> tuple[np.ndarray, np.ndarray]:
  """The best first items of each case's list. cases: test users. -> items (n, k), scores (n, k)"""
  template = sft_data.read_template(cfg)
  histories = [cases.history(case) for case in range(len(cases))]
  prompts, _ = sft_data.make_prompts(
    train.make_encoder(cfg, grounded.chat_model, tokenized), tokenized, template, histories,
    cfg.eval.words, cfg.decode.num_items
  )
  return generation.rank_items_of_all(
    work, 'ranked', grounded, cfg.decode, prompts, histories if cfg.eval.mask_history else None,
    cfg.decode.num_items
  )


def save_results(work: Workdir, cfg: ConfigDict, dataset: Dataset, split: splits.Split,
                 lists: list[list[int]], ranked: tuple[np.ndarray, np.ndarray],
                 teacher_score: Callable | None, extra_results: dict) -> dict:
  """Adds the rows of the teacher and for sanity. Lists end early: so do the cut-offs.

  split: of the users. lists, ranked: items of each. teacher_score: as of `teacher.scorer`.
  extra_results: for results.json. -> counts
  """
  cases, num_items, width = split.test, len(dataset.catalog), cfg.decode.num_items
  items = np.zeros((len(cases), width), np.int32)
  for row, list_items in zip(items, lists):
    row[:len(list_items)] = list_items
  list_scores = np.where(items > 0, 1 / (1 + np.arange(width)), 0).astype(np.float32)
  ranks = {
    cfg.grounding: ranking.list_ranks(items, cases.targets, num_items - 1),
    f'{cfg.grounding}:ranked': ranking.list_ranks(ranked[0], cases.targets, num_items - 1)
  }
  other_scores = {
    **({'sasrec': teacher_score} if teacher_score else {}),
    **baselines.baselines(split.train, num_items, cfg.seed)
  }
  for name, score_fn in other_scores.items():
    ranks[name] = ranking.rank_cases(score_fn, cases, num_items, mask_history=cfg.eval.mask_history)
  protocol = ranking.protocol(num_items, split.protocol, cfg.eval.mask_history)
  shown = (items, list_scores) if items.any() else ranked  # a model that writes no list has no own
  results = results_lib.save(
      work.folder, dataset, split, cfg.grounding, ranks, shown, protocol, (cfg.seed,),
      tuple(k for k in KS if k <= width), **extra_results)
  rows = {row: round(cells['HR@10' if width >= 10 else f'HR@{KS[0]}']['value'], 4)
          for row, cells in results['rows'].items()}
  return {'users': len(cases), **{f'{row} HR@10': hit_rate for row, hit_rate in rows.items()},
          'out_of_catalog': extra_results['rates'][f'NonExistRate@{width}'],
          'repeats': extra_results['rates'][f'RepeatRate@{width}']}


# Several rounds.


def judge_rounds(work: Workdir, cfg: ConfigDict, grounded: generation.GroundedModel,
                 tokenized: TokenizedCatalog, cases: splits.Cases) -> dict:
  """A worked question, a request, another question: what of lists and answers is left.

  cases: test users. -> rates
  """
  count = min(cfg.eval.rounds, len(cases))
  if not count:
    return {}
  talk = (questions(count + 1, cfg.seed + 1) if cfg.talk.questions == 'sample'
          else conversations.read(cfg.talk.questions)[0])
  first, later = talk[0], talk[1:count + 1]
  count = len(later)
  template = sft_data.read_template(cfg)
  encoder, message = train.make_encoder(cfg, grounded.chat_model, tokenized), sft_data.message
  opening = [
    message('system', template['system']), message('user', first[0]),
    message('assistant', [first[1]])
  ]
  turns = [
    opening
    + sft_data.request_turns(
      tokenized, template, cases.history(case)[-sft_data.MAX_ITEMS :], 'rule', cfg.decode.num_items
    )[1:]
    for case in range(count)
  ]
  lists = generation.reply_to_all(
    work, 'rounds-1', grounded, cfg.decode,
    [encoder.tokens(conversation) for conversation in turns], None, cfg.seed
  )
  ends = set(grounded.chat_model.tokenizer.eos_ids)
  for conversation, reply, (question, _) in zip(turns, lists, later):
    conversation += [
      message('assistant', [[token for token in reply.ids if token not in ends]]),
      message('user', question),
    ]
  answers = generation.reply_to_all(
    work, 'rounds-2', grounded, answer_settings(cfg),
    [encoder.tokens(conversation) for conversation in turns], None, cfg.seed
  )
  is_right = [
    list_metrics.last_number(reply.text) is not None
    and list_metrics.last_number(reply.text) == list_metrics.last_number(gold)
    for reply, (_, gold) in zip(answers, later)
  ]
  some_cases = cases.picked(np.arange(count))
  return {
    'conversations': count,
    'CSN_R1': float(np.mean([len(reply.items) == cfg.decode.num_items for reply in lists])),
    'CSN_R2': float(np.mean([not reply.items and not reply.unfinished for reply in answers])),
    'accuracy': float(np.mean(is_right)),
    **list_metrics.list_rates(
      [reply.items for reply in lists], [some_cases.history(case) for case in range(count)],
      some_cases.targets, tokenized.categories, len(tokenized.titles), cfg.decode.num_items
    ),
  }


def judge_cross(work: Workdir, cfg: ConfigDict, chat_model: train.ChatModel) -> dict:
  """The same weights over another catalog: only the trie and the prompts change. -> rates"""
  dataset = load_data(cfg.eval.cross)
  tokenized = tokenized_catalog.load(dataset.catalog, chat_model.tokenizer)
  grounded = generation.GroundedModel(chat_model, [tokenized])
  cases = splits.leave_one_out(dataset.interactions).test
  cases = cases.picked(splits.drawn(cases, cfg.eval.cross_users, '')[0])
  replies, _ = ask_lists(
    work, 'cross', cfg, grounded, tokenized, cases, cfg.eval.words, cfg.eval.mask_history
  )
  counts = np.bincount(
    splits.leave_one_out(dataset.interactions).train.items, minlength=len(dataset.catalog) + 1
  )[1:]
  popular_items = set((np.argsort(-counts, kind='stable')[:10] + 1).tolist())
  return {
    'data': dataset.name,
    'notes': {note: count for note, count in tokenized.notes.items() if count},
    'popularity HR@10': float(np.mean([target in popular_items for target in cases.targets])),
    **list_metrics.list_rates(
      [reply.items for reply in replies], [cases.history(case) for case in range(len(cases))],
      cases.targets, tokenized.categories, len(tokenized.titles), cfg.decode.num_items
    ),
  }


def judge_candidates(work: Workdir, cfg: ConfigDict, grounded: generation.GroundedModel,
                     tokenized: TokenizedCatalog, cases: splits.Cases) -> dict:
  """The best of given candidates: the next item among others that the user has not had, shuffled.
  The words alone say what may be named, so another item is counted.

  cases: test users. -> rates
  """
  k, num_items, candidates = cfg.decode.num_items, len(tokenized.titles), []
  histories = [cases.history(case) for case in range(len(cases))]
  size = min(max(cfg.eval.candidates, k), num_items)
  for number, (history, target) in enumerate(zip(histories, cases.targets.tolist())):
    rng = np.random.default_rng((cfg.seed, 7, number))
    others = np.setdiff1d(np.arange(1, num_items + 1), [*history, target])
    items_of_case = np.concatenate([[target], rng.permutation(others)[:size - 1]])
    candidates.append(tuple(rng.permutation(items_of_case).tolist()))
  replies, _ = ask_lists(
    work, 'ranking', cfg, grounded, tokenized, cases, cfg.eval.words, cfg.eval.mask_history,
    candidates=candidates
  )
  lists = [reply.items[:k] for reply in replies]
  return {
    **list_metrics.list_rates(
      [reply.items for reply in replies], histories, cases.targets, tokenized.categories, num_items,
      k
    ),
    'candidates': size,
    f'NotInCandidateRate@{k}': float(
      np.mean(
        [
          sum(item not in case_candidates for item in items)
          for items, case_candidates in zip(lists, candidates)
        ]
      )
    ),
  }


# Requests about categories, and replies that nothing holds to the catalog.


def judge_control(work: Workdir, cfg: ConfigDict, grounded: generation.GroundedModel,
                  tokenized: TokenizedCatalog, cases: splits.Cases, plain: list[list[int]],
                  teach: Callable) -> dict:
  """How often requests about categories are followed (Lu et al., arXiv 2403.05063).

  cases: test users. teach: as `teacher.make_teacher` gives it. plain: the lists without such a
  request; 'unasked' is how often they happen to follow it. -> {kind: {'users', 'followed',
  'unasked', 'in_category', 'HR@k'}, 'category_of': {'users', 'right'}}
  """
  k, template, requests = cfg.decode.num_items, sft_data.read_template(cfg), []
  rows = np.arange(min(len(cases), cfg.control.users))
  some_cases, members = cases.picked(rows), control_tasks.category_members(tokenized)
  histories = [some_cases.history(case) for case in rows]
  for number, kind in enumerate(control_tasks.LIST_KINDS):
    lists = control_tasks.make_lists(
      tokenized, histories, some_cases.targets.tolist(), teach,
      [(cfg.seed, 6, number, case) for case in rows.tolist()], [kind] * len(rows), k
    )
    requests += [
      (case, labels_and_request[1])
      for case, labels_and_request in enumerate(lists)
      if labels_and_request
    ]
  if not requests:
    return {}
  replies, _ = ask_lists(
    work, 'control', cfg, grounded, tokenized,
    some_cases.picked(np.array([case for case, _ in requests])), cfg.eval.words,
    cfg.eval.mask_history, [category_request.text(template) for _, category_request in requests]
  )
  rates = {}
  for (case, request), reply in zip(requests, replies):
    category_items, items = members[request.category], reply.items[:k]
    row = rates.setdefault(
      request.kind, {'users': [], 'followed': [], 'unasked': [], 'in_category': [], f'HR@{k}': []}
    )
    for name, value in zip(
      row,
      (
        1, request.followed(items, category_items), request.followed(plain[case], category_items),
        sum(item in category_items for item in items) / k, some_cases.targets[case] in items
      ),
    ):
      row[name].append(value)
  rates = {
    kind: {
      name: sum(values) if name == 'users' else float(np.mean(values))
      for name, values in row.items()
    }
    for kind, row in rates.items()
  }
  return {**rates, **category_questions(work, cfg, grounded, tokenized, some_cases)}


def category_questions(work: Workdir, cfg: ConfigDict, grounded: generation.GroundedModel,
                       tokenized: TokenizedCatalog, cases: splits.Cases) -> dict:
  """Of what kind items are: right where the answer is one of their categories.

  cases: test users. -> rates
  """
  items = [target for target in cases.targets.tolist() if tokenized.categories_of(target)]
  if not items:
    return {}
  template, rng = sft_data.read_template(cfg), np.random.default_rng(cfg.seed)
  encoder = train.make_encoder(cfg, grounded.chat_model, tokenized)
  prompts = [
    encoder.tokens(
      [
        sft_data.message('system', template['system']),
        sft_data.message(
          'user', control_tasks.make_question(tokenized, template, 'category_of', item, rng, 1)[0]
        ),
      ]
    )
    for item in items
  ]
  replies = generation.reply_to_all(
    work, 'control-category_of', grounded, answer_settings(cfg), prompts, None, cfg.seed
  )
  is_right = [
    reply.text.strip() in tokenized.categories_of(item) for item, reply in zip(items, replies)
  ]
  return {'category_of': {'users': len(items), 'right': float(np.mean(is_right))}}


def answer_settings(cfg: ConfigDict) -> ConfigDict:
  """Settings of decoding for answers that are no lists."""
  return ConfigDict({**cfg.decode.to_dict(), 'new_tokens': cfg.eval.answer_tokens})


def judge_free(work: Workdir, cfg: ConfigDict, grounded: generation.GroundedModel,
               tokenized: TokenizedCatalog, cases: splits.Cases) -> dict:
  """What the same model names when nothing holds it to the catalog. -> rates

  cases: test users. eval.vague above 0 takes a title within so many edits for the nearest item's,
  which hides a part of what does not exist.
  """
  some_cases = cases.picked(np.arange(min(len(cases), cfg.eval.free)))
  histories = [some_cases.history(case) for case in range(len(some_cases))]
  chat_model = grounded.chat_model
  prompts, _ = sft_data.make_prompts(
    train.make_encoder(cfg, chat_model, tokenized), tokenized, sft_data.read_template(cfg),
    histories, cfg.eval.words, cfg.decode.num_items
  )
  lists = [
    list_metrics.match_items(
      list_metrics.parse_titles(ids, chat_model.tokenizer, chat_model.soi, chat_model.eoi),
      tokenized, chat_model.tokenizer, cfg.eval.vague
    )
    for ids in generation.reply_freely(work, 'free', grounded, cfg.decode, prompts, cfg.seed)
  ]
  return list_metrics.list_rates(
    lists, histories, some_cases.targets, tokenized.categories, len(tokenized.titles),
    cfg.decode.num_items
  )
