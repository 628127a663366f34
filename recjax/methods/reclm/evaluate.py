"""Test users asked for lists, the teacher and the sanity rows beside them; several rounds; another
catalog. docs/reclm.md says what each figure means."""
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.data.formats import conversations
from recjax.data.loading import load_data
from recjax.data.sample_shop.small_talk import questions
from recjax.evaluation import beside, ranking
from recjax.evaluation import results as results_lib
from recjax.methods.reclm import (
  control_tasks,
  generate,
  list_metrics,
  teacher,
  tokenized_catalog,
  train,
)
from recjax.methods.reclm import prompts as prompts_lib
from recjax.training import continuation
from recjax.training.workdir import Workdir

KS = (1, 3, 5, 10)


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides the figures besides the tuned model. cfg: the run's
  config."""
  return ConfigDict({k: cfg[k] for k in ('grounding', 'prompt', 'decode', 'eval', 'talk', 'llm',
                                         'train', 'seed', 'control')})


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, llm_dir: Path, tuned_dir: Path,
          teacher_dir: Path, codes_dir: Path | None = None) -> dict:
  """Writes every result file. The folders are those of the stages before.

  work: of the stage. cfg: as `settings`. dataset: of the run. llm_dir, tuned_dir, teacher_dir,
  codes_dir: of the stages before. -> counts
  """
  table = None if codes_dir is None else run_files.read_arrays(codes_dir / 'codes.npy')
  chat_model = train.load_model(cfg, llm_dir, tuned_dir, work.mesh)
  split = splits.make_split(dataset)
  rows, protocol = splits.sample_cases(split.test, cfg.eval.users, split.protocol)
  cases = split.test.select(rows)
  split = dataclasses.replace(split, test=cases, protocol=protocol)
  tokenized = train.load_tokenized(cfg, dataset, chat_model, table)
  grounded = generate.GroundedModel(chat_model, [tokenized], kind=cfg.grounding)
  replies, num_shortened = ask_lists(work, 'lists', cfg, grounded, cases)
  lists = [reply.items[:cfg.decode.num_items] for reply in replies]
  ranked = rank_all(work, cfg, grounded, cases)
  extra_results = {
    'rates': rates_of(cfg, grounded, cases, lists), 'shortened_prompts': num_shortened,
    'unfinished': sum(reply.unfinished for reply in replies),
    'rounds': judge_rounds(work, cfg, grounded, cases), **continuation.facts(tuned_dir)}
  if cfg.eval.candidates:
    extra_results['ranking'] = judge_candidates(work, cfg, grounded, cases)
  if cfg.eval.free:
    extra_results['free'] = judge_free(work, cfg, grounded, cases)
  if cfg.control.share:
    extra_results['control'] = judge_control(work, cfg, grounded, cases, lists,
                                             teacher.make_teacher(teacher_dir, dataset))
  if cfg.eval.cross:
    extra_results['cross'] = judge_cross(work, cfg, chat_model)
  return save_results(
    work, cfg, dataset, split, lists, ranked, teacher.scorer(teacher_dir, dataset), extra_results)


def make_prompts(cfg: ConfigDict, grounded: generate.GroundedModel, cases: splits.Cases,
                 wishes: Sequence[str] | None = None,
                 candidates: Sequence | None = None) -> tuple[list[list[int]], int]:
  """Requests for lists, in the words of the config, as `sft_data.make_prompts`.

  cases: test users. wishes: the last sentence of each request; candidates: what each chooses from.
  cfg: as `settings`. grounded: the model over its catalog. -> token lists, how many were shortened
  """
  encoder = train.make_encoder(cfg, grounded.chat_model, grounded.tokenized)
  return prompts_lib.make_prompts(
    encoder, grounded.tokenized, prompts_lib.read_template(cfg), histories_of(cases),
    cfg.eval.words, cfg.decode.num_items, wishes, candidates)


def ask_lists(work: Workdir, name: str, cfg: ConfigDict, grounded: generate.GroundedModel,
              cases: splits.Cases, wishes: Sequence[str] | None = None,
              candidates: Sequence | None = None) -> tuple[list[generate.Reply], int]:
  """Lists for cases, without items of the history where the config says so.

  name: of the journal. cases, wishes, candidates: as in `make_prompts`. work: of the stage. cfg: as
  `settings`. grounded: the model over its catalog. -> replies, prompts that were shortened
  """
  prompts, num_shortened = make_prompts(cfg, grounded, cases, wishes, candidates)
  excluded = histories_of(cases) if cfg.eval.mask_history else None
  return generate.reply_to_all(
    work, name, grounded, cfg.decode, prompts, excluded, cfg.seed), num_shortened


def rank_all(work: Workdir, cfg: ConfigDict, grounded: generate.GroundedModel,
             cases: splits.Cases) -> tuple[np.ndarray, np.ndarray]:
  """The best first items of each case's list. cases: test users. work: of the stage. cfg: as
  `settings`. grounded: the model over its catalog. -> items (n, k), scores (n, k)"""
  excluded = histories_of(cases) if cfg.eval.mask_history else None
  return generate.rank_items_of_all(
    work, 'ranked', grounded, cfg.decode, make_prompts(cfg, grounded, cases)[0], excluded,
    cfg.decode.num_items)


def histories_of(cases: splits.Cases) -> list[np.ndarray]:
  """What was before each case, item indices. cases: of the split."""
  return [cases.history(case) for case in range(len(cases))]


def rates_of(cfg: ConfigDict, grounded: generate.GroundedModel, cases: splits.Cases,
             lists: Sequence[Sequence[int]]) -> dict[str, float]:
  """`list_metrics.list_rates` of a list for each case. cases: users. lists: item indices. cfg: as
  `settings`. grounded: the model over its catalog."""
  tokenized = grounded.tokenized
  return list_metrics.list_rates(
    lists, histories_of(cases), cases.targets, tokenized.categories, len(tokenized.titles),
    cfg.decode.num_items)


def save_results(work: Workdir, cfg: ConfigDict, dataset: Dataset, split: splits.Split,
                 lists: list[list[int]], ranked: tuple[np.ndarray, np.ndarray],
                 teacher_score: Callable | None, extra_results: dict) -> dict:
  """Adds the rows of the teacher and of `beside.rank_beside`. Lists end early: so do the cut-offs.

  split: of the users. lists, ranked: items of each. teacher_score: as of `teacher.scorer`.
  extra_results: for results.json. work: of the stage. cfg: as `settings`. dataset: of the run.
  -> counts
  """
  cases, num_items, width = split.test, len(dataset.catalog), cfg.decode.num_items
  items = np.zeros((len(cases), width), np.int32)
  for row, list_items in zip(items, lists):
    row[:len(list_items)] = list_items
  list_scores = np.where(items > 0, 1 / (1 + np.arange(width)), 0).astype(np.float32)
  ranks = {
    cfg.grounding: ranking.list_ranks(items, cases.targets, num_items - 1),
    f'{cfg.grounding}:ranked': ranking.list_ranks(ranked[0], cases.targets, num_items - 1)}
  if teacher_score:
    ranks['sasrec'] = ranking.rank_cases(
        teacher_score, cases, num_items, mask_history=cfg.eval.mask_history)
  others, facts = beside.rank_beside(split, dataset.catalog, cfg.eval, cfg.seed, work.log,
                                     mask_history=cfg.eval.mask_history)
  protocol = ranking.protocol(num_items, split.protocol, cfg.eval.mask_history)
  shown = (items, list_scores) if items.any() else ranked  # a model that writes no list has no own
  results = results_lib.save(
      work.folder, dataset, split, cfg.grounding, ranks | others, shown, protocol, (cfg.seed,),
      tuple(k for k in KS if k <= width), **extra_results, **facts)
  rows = {row: round(cells['HR@10' if width >= 10 else f'HR@{KS[0]}']['value'], 4)
          for row, cells in results['rows'].items() if row in ranks}
  return {'users': len(cases), **{f'{row} HR@10': hit_rate for row, hit_rate in rows.items()},
          'out_of_catalog': extra_results['rates'][f'NonExistRate@{width}'],
          'repeats': extra_results['rates'][f'RepeatRate@{width}']}


# Several rounds.


def judge_rounds(work: Workdir, cfg: ConfigDict, grounded: generate.GroundedModel,
                 cases: splits.Cases) -> dict:
  """A worked question, a request, another question: what of lists and answers is left.

  cases: test users. work: of the stage. cfg: as `settings`. grounded: the model over its catalog.
  -> rates
  """
  count = min(cfg.eval.rounds, len(cases))
  if not count:
    return {}
  talk = (questions(count + 1, cfg.seed + 1) if cfg.talk.questions == 'sample'
          else conversations.read(cfg.talk.questions)[0])
  first, later = talk[0], talk[1:count + 1]
  count = len(later)
  template, tokenized = prompts_lib.read_template(cfg), grounded.tokenized
  encoder, message = train.make_encoder(cfg, grounded.chat_model, tokenized), prompts_lib.message
  opening = [
    message('system', template['system']), message('user', first[0]),
    message('assistant', [first[1]])]
  turns = [
    opening
    + prompts_lib.request_turns(
      tokenized, template, cases.history(case)[-prompts_lib.MAX_ITEMS:], 'rule',
      cfg.decode.num_items)[1:]
    for case in range(count)]
  lists = generate.reply_to_all(
    work, 'rounds-1', grounded, cfg.decode,
    [encoder.tokens(conversation) for conversation in turns], None, cfg.seed)
  ends = set(grounded.chat_model.tokenizer.eos_ids)
  for conversation, reply, (question, _) in zip(turns, lists, later):
    conversation += [
      message('assistant', [[token for token in reply.ids if token not in ends]]),
      message('user', question)]
  answers = generate.reply_to_all(
    work, 'rounds-2', grounded, answer_settings(cfg),
    [encoder.tokens(conversation) for conversation in turns], None, cfg.seed)
  is_right = [
    list_metrics.last_number(reply.text) is not None
    and list_metrics.last_number(reply.text) == list_metrics.last_number(gold)
    for reply, (_, gold) in zip(answers, later)]
  return {
    'conversations': count,
    'CSN_R1': float(np.mean([len(reply.items) == cfg.decode.num_items for reply in lists])),
    'CSN_R2': float(np.mean([not reply.items and not reply.unfinished for reply in answers])),
    'accuracy': float(np.mean(is_right)),
    **rates_of(cfg, grounded, cases.select(np.arange(count)), [reply.items for reply in lists])}


def judge_cross(work: Workdir, cfg: ConfigDict, chat_model: train.ChatModel) -> dict:
  """The same weights over another catalog: only the trie and the prompts change. work: of the
  stage. cfg: as `settings`. chat_model: the tuned LLM. -> rates"""
  dataset = load_data(cfg.eval.cross)
  tokenized = tokenized_catalog.load(dataset.catalog, chat_model.tokenizer)
  grounded = generate.GroundedModel(chat_model, [tokenized])
  cases = splits.make_split(dataset).test
  cases = cases.select(splits.sample_cases(cases, cfg.eval.cross_users, '')[0])
  replies, _ = ask_lists(work, 'cross', cfg, grounded, cases)
  counts = np.bincount(
    splits.make_split(dataset).train.items, minlength=len(dataset.catalog) + 1)[1:]
  popular_items = set((np.argsort(-counts, kind='stable')[:10] + 1).tolist())
  return {
    'data': dataset.name,
    'notes': {note: count for note, count in tokenized.notes.items() if count},
    'popularity HR@10': float(np.mean([target in popular_items for target in cases.targets])),
    **rates_of(cfg, grounded, cases, [reply.items for reply in replies])}


def judge_candidates(work: Workdir, cfg: ConfigDict, grounded: generate.GroundedModel,
                     cases: splits.Cases) -> dict:
  """The best of given candidates: the next item among others that the user has not had, shuffled.
  The words alone say what may be named, so another item is counted.

  cases: test users. work: of the stage. cfg: as `settings`. grounded: the model over its catalog.
  -> rates
  """
  k, num_items, candidates = cfg.decode.num_items, len(grounded.tokenized.titles), []
  size = min(max(cfg.eval.candidates, k), num_items)
  for number, (history, target) in enumerate(zip(histories_of(cases), cases.targets.tolist())):
    rng = np.random.default_rng((cfg.seed, 7, number))
    others = np.setdiff1d(np.arange(1, num_items + 1), [*history, target])
    items_of_case = np.concatenate([[target], rng.permutation(others)[:size - 1]])
    candidates.append(tuple(rng.permutation(items_of_case).tolist()))
  replies, _ = ask_lists(work, 'ranking', cfg, grounded, cases, candidates=candidates)
  num_outside = [sum(item not in case_candidates for item in reply.items[:k])
                 for reply, case_candidates in zip(replies, candidates)]
  return {**rates_of(cfg, grounded, cases, [reply.items for reply in replies]), 'candidates': size,
          f'NotInCandidateRate@{k}': float(np.mean(num_outside))}


# Requests about categories, and replies that nothing holds to the catalog.


def judge_control(work: Workdir, cfg: ConfigDict, grounded: generate.GroundedModel,
                  cases: splits.Cases, plain: list[list[int]], teach: Callable) -> dict:
  """How often requests about categories are followed (Lu et al., arXiv 2403.05063).

  cases: test users. teach: as `teacher.make_teacher` gives it. plain: the lists without such a
  request; 'unasked' is how often they happen to follow it. work: of the stage. cfg: as `settings`.
  grounded: the model over its catalog. -> {kind: {'users', 'followed', 'unasked', 'in_category',
  'HR@k'}, 'category_of': {'users', 'right'}}
  """
  k, template, requests = cfg.decode.num_items, prompts_lib.read_template(cfg), []
  rows, tokenized = np.arange(min(len(cases), cfg.control.users)), grounded.tokenized
  some_cases, members = cases.select(rows), control_tasks.category_members(tokenized)
  for number, kind in enumerate(control_tasks.LIST_KINDS):
    lists = control_tasks.make_lists(
      tokenized, histories_of(some_cases), some_cases.targets.tolist(), teach,
      [(cfg.seed, 6, number, case) for case in rows.tolist()], [kind] * len(rows), k)
    requests += [
      (case, labels_and_request[1])
      for case, labels_and_request in enumerate(lists)
      if labels_and_request]
  if not requests:
    return {}
  replies, _ = ask_lists(
    work, 'control', cfg, grounded, some_cases.select(np.array([case for case, _ in requests])),
    [category_request.text(template) for _, category_request in requests])
  rates = {}
  for (case, request), reply in zip(requests, replies):
    category_items, items = members[request.category], reply.items[:k]
    row = rates.setdefault(
      request.kind, {'users': [], 'followed': [], 'unasked': [], 'in_category': [], f'HR@{k}': []})
    for name, value in zip(
      row,
      (
        1, request.followed(items, category_items), request.followed(plain[case], category_items),
        sum(item in category_items for item in items) / k, some_cases.targets[case] in items)):
      row[name].append(value)
  rates = {
    kind: {
      name: sum(values) if name == 'users' else float(np.mean(values))
      for name, values in row.items()}
    for kind, row in rates.items()}
  return {**rates, **category_questions(work, cfg, grounded, some_cases)}


def category_questions(work: Workdir, cfg: ConfigDict, grounded: generate.GroundedModel,
                       cases: splits.Cases) -> dict:
  """Of what kind items are: right where the answer is one of their categories.

  cases: test users. work: of the stage. cfg: as `settings`. grounded: the model over its catalog.
  -> rates
  """
  tokenized = grounded.tokenized
  items = [target for target in cases.targets.tolist() if tokenized.categories_of(target)]
  if not items:
    return {}
  template, rng = prompts_lib.read_template(cfg), np.random.default_rng(cfg.seed)
  encoder = train.make_encoder(cfg, grounded.chat_model, tokenized)
  prompts = [
    encoder.tokens(
      [
        prompts_lib.message('system', template['system']),
        prompts_lib.message(
          'user', control_tasks.make_question(tokenized, template, 'category_of', item, rng, 1)[0])]
    )
    for item in items]
  replies = generate.reply_to_all(
    work, 'control-category_of', grounded, answer_settings(cfg), prompts, None, cfg.seed)
  is_right = [
    reply.text.strip() in tokenized.categories_of(item) for item, reply in zip(items, replies)]
  return {'category_of': {'users': len(items), 'right': float(np.mean(is_right))}}


def answer_settings(cfg: ConfigDict) -> ConfigDict:
  """Settings of decoding for answers that are no lists. cfg: as `settings`."""
  return ConfigDict({**cfg.decode.to_dict(), 'new_tokens': cfg.eval.answer_tokens})


def judge_free(work: Workdir, cfg: ConfigDict, grounded: generate.GroundedModel,
               cases: splits.Cases) -> dict:
  """What the same model names when nothing holds it to the catalog. -> rates

  cases: test users. eval.vague above 0 takes a title within so many edits for the nearest item's,
  which hides a part of what does not exist. work: of the stage. cfg: as `settings`. grounded: the
  model over its catalog.
  """
  some_cases = cases.select(np.arange(min(len(cases), cfg.eval.free)))
  chat_model, prompts = grounded.chat_model, make_prompts(cfg, grounded, some_cases)[0]
  return rates_of(cfg, grounded, some_cases, [
    list_metrics.match_items(
      list_metrics.parse_titles(ids, chat_model.tokenizer, chat_model.soi, chat_model.eoi),
      grounded.tokenized, chat_model.tokenizer, cfg.eval.vague)
    for ids in generate.reply_freely(work, 'free', grounded, cfg.decode, prompts, cfg.seed)])
