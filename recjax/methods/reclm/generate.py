"""Lists out of the language model: titles between control symbols, real ones alone."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax.decoding import constraints, device_trie, item_span, retrieval_constraint
from recjax.decoding.beam_search import BeamSearch
from recjax.decoding.block_generator import PromptGenerator
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.decoding.sampling import Draws, Sampling
from recjax.distributed import multihost
from recjax.errors import ConfigError
from recjax.methods.reclm import tokenized_catalog, train
from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog
from recjax.models.dot_product import dot_product_scores
from recjax.training import sft, sharded_stage
from recjax.training.workdir import Workdir

MIN_BEAMS = 20    # of which ranked lists are made, or more where more are asked for

PASS_WIDTH = 8   # tokens of a row that go through the model together where they are forced


@dataclasses.dataclass(frozen=True)
class Reply:
  """One answer.

  ids: its tokens. items: item indices 1..N in order. text: without control symbols, titles in
  double quotes. complete: it ended by itself. unfinished: a title was cut at the end.
  """
  ids: list[int]
  items: list[int]
  text: str
  complete: bool
  unfinished: bool


class GroundedModel:
  """A chat model over one or several catalogs, whose items alone it can name.

  chat_model: the language model. catalogs: as `tokenized_catalog` makes them, called `names`; the
  first is `tokenized`. kind: the run's grounding.
  """

  def __init__(self, chat_model: train.ChatModel, catalogs: Sequence[TokenizedCatalog],
               names: Sequence[str] = ('',), kind: str = 'cgen'):
    self.chat_model, self.catalogs = chat_model, list(catalogs)
    self.names, self.kind = list(names), kind
    self.trees = [
      tokenized.to_trie(chat_model.eoi, chat_model.model.cfg.vocab) for tokenized in self.catalogs]
    self.tokenized = self.catalogs[0]  # of the run, whose items are judged
    self.device_trie = device_trie.to_device_trie(self.trees)
    if kind == 'ret' and len(self.catalogs) > 1:
      raise ConfigError('RecLM-ret has vectors of its own catalog alone; give one catalog')
    self.spelling = (
      retrieval_constraint.items_by_title(self.tokenized.title_tokens) if kind == 'ret' else None)

  def constraint(self, decode: ConfigDict, batch: int,
                 excluded: Sequence[Sequence[int]] | None = None, allowed: np.ndarray | None = None,
                 least: np.ndarray | None = None, root: np.ndarray | None = None) -> Any:
    """The rule of one batch.

    decode: num_items, new_tokens. batch: requests. excluded: item indices of each that may not
    come. allowed: (N,) or (B, N) bool, other items may not. least: (B,), items of each before its
    reply may end. root: (B,), the catalog of each request.
    """
    chat_model = self.chat_model
    settings = item_span.SpanSettings(
        chat_model.soi, chat_model.eoi, tuple(chat_model.tokenizer.eos_ids), decode.new_tokens,
        decode.num_items, chat_model.tokenizer.pad_id)
    if self.kind == 'ret':
      return retrieval_constraint.build_retrieval_constraint(
        self.tokenized.title_tokens, chat_model.extra['items'], chat_model.extra['project'],
        train.project, settings, self.excluded_mask(batch, excluded, allowed), least)
    filter_ = None
    if excluded is not None or allowed is not None:
      filter_ = tokenized_catalog.make_filter(self.trees[0], excluded or [()] * batch, allowed)
    return item_span.item_span_constraint(
      self.trees, self.device_trie, settings, batch, catalog=root, item_filter=filter_,
      least=least)

  def excluded_mask(self, batch: int, excluded: Sequence[Sequence[int]] | None,
                    allowed: np.ndarray | None) -> np.ndarray | None:
    """Items that requests of RecLM-ret may not have, item i at column i - 1.

    batch: requests. excluded, allowed: as in `constraint`. -> (B, N) bool, or None where all may
    come
    """
    if excluded is None and allowed is None:
      return None
    mask = np.zeros((batch, len(self.tokenized.titles)), bool)
    if allowed is not None:
      mask |= ~np.asarray(allowed)
    for row, items in zip(mask, excluded or ()):
      row[np.asarray(items, np.int64) - 1] = True
    return mask

  def read(self, ids: Sequence[int], root: int = 0) -> Reply:
    """The Reply that tokens make. root: the catalog. ids: the tokens."""
    chat_model, tokenized = self.chat_model, self.catalogs[root]
    if self.kind == 'ret':
      items, unfinished = retrieval_constraint.parse(
        self.spelling, ids, chat_model.soi, chat_model.eoi)
    else:
      items, unfinished = item_span.parse(self.trees[root], ids, chat_model.soi)
    complete = bool(ids) and ids[-1] in chat_model.tokenizer.eos_ids
    return Reply(list(ids), items, self.text(ids, items, tokenized), complete, unfinished)

  def text(self, ids: Sequence[int], items: Sequence[int], tokenized: TokenizedCatalog) -> str:
    """What a person reads: titles in double quotes, a cut one left out. items: named by `ids`. ids:
    of the reply. tokenized: the catalog."""
    parts, text_ids, named_items, inside = [], [], iter(items), False
    chat_model = self.chat_model

    def flush() -> None:
      parts.append(chat_model.tokenizer.decode(text_ids))
      text_ids.clear()
    for token in ids:
      if token == chat_model.soi:
        flush()
        inside = True
      elif token == chat_model.eoi:
        parts.append(f'"{tokenized.title(next(named_items))}"')
        inside = False
      elif not inside:
        text_ids.append(token)
    flush()
    return ''.join(parts).strip()


def generate_replies(grounded: GroundedModel, generator: PromptGenerator, decode: ConfigDict,
                     prompts: Sequence[Sequence[int]], excluded: Sequence | None = None,
                     allowed: np.ndarray | None = None, least: np.ndarray | None = None,
                     root: np.ndarray | None = None, *, seed: int | Draws,
                     on_tokens: Callable | None = None) -> list[Reply]:
  """Answers to a batch of prompts, token lists.

  grounded: the model. generator: of it, with what the prompts share. decode: num_items, new_tokens,
  temperature, top_p. excluded, allowed, least, root: as in `GroundedModel.constraint`. seed: of
  the draws, or Draws, whose temperatures then count. on_tokens: what `decoding.stream` tells the
  tokens to.
  """
  constraint = grounded.constraint(decode, len(prompts), excluded, allowed, least, root)
  suffixes, search = [generator.own(prompt) for prompt in prompts], sampling(decode)
  if on_tokens:
    generated = generator.stream(suffixes, search, constraint, on_tokens, seed)
  else:
    generated = generator.generate(suffixes, search, constraint, seed)
  return [grounded.read(generated.row(row, 0), 0 if root is None else int(root[row]))
          for row in range(len(prompts))]


def sampling(decode: ConfigDict, pass_width: int = PASS_WIDTH) -> Sampling:
  """One reply of a prompt. decode: new_tokens, temperature, top_p. pass_width: see there."""
  return Sampling(1, decode.new_tokens, float(decode.temperature), top_p=float(decode.top_p),
                  pass_width=pass_width)


def rank_items(grounded: GroundedModel, generator: PromptGenerator,
               prompts: Sequence[Sequence[int]], k: int, excluded: Sequence | None = None,
               allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
  """The k best first items of a list, which a greedy list shows one of: beams over the catalog, or
  with RecLM-ret the nearest vectors.

  generator: as in `generate_replies`. prompts: up to where the assistant begins. excluded, allowed:
  as in `GroundedModel.constraint`. grounded: the model over its catalog. -> items (B, k) int32
  1..N, 0 where fewer may come, scores (B, k): log-probabilities of titles as training has them, or
  products with the projected state
  """
  chat_model = grounded.chat_model
  list_start = [*chat_model.tokenizer.encode('1. ')]
  if grounded.kind == 'ret':
    return rank_by_vectors(
      grounded, generator, [[*prompt, *list_start] for prompt in prompts], k, excluded, allowed)
  trie = grounded.trees[0]
  filter_ = tokenized_catalog.make_filter(trie, excluded or [()] * len(prompts), allowed)
  generated = generator.generate(
    [generator.own([*prompt, *list_start, chat_model.soi]) for prompt in prompts],
    BeamSearch(max(k, MIN_BEAMS), length_penalty=0.0), constraints.CatalogConstraint(
        grounded.device_trie, filter_, normalization=chat_model.scoring))
  return generated.best(k, trie, filter_)


def rank_by_vectors(grounded: GroundedModel, generator: PromptGenerator,
                    prompts: Sequence[Sequence[int]], k: int, excluded: Sequence | None,
                    allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
  """The items whose vectors go best with the state at the end of prompts.

  generator, excluded, allowed: as there. grounded, prompts, k: as there. -> as `rank_items`
  """
  extra, num_items = grounded.chat_model.extra, len(grounded.tokenized.titles)
  queries = train.project(
    extra['project'], generator.states([generator.own(prompt) for prompt in prompts]))
  scores = np.array(multihost.to_host(dot_product_scores(queries, extra['items'], None)),
                    np.float32)
  excluded_mask = grounded.excluded_mask(len(prompts), excluded, allowed)
  if excluded_mask is not None:
    scores[excluded_mask] = -np.inf
  order = np.argsort(-scores, 1, kind='stable')[:, :min(k, num_items)]
  best = np.take_along_axis(scores, order, 1)
  return np.where(best > -np.inf, order + 1, 0).astype(np.int32), best


def prefix_generator(chat_model: train.ChatModel,
                     prompts: Sequence[Sequence[int]]) -> PrefixGenerator:
  """The LLM with what these prompts share run once. chat_model: the LLM. prompts: token lists."""
  return PrefixGenerator(chat_model.model, chat_model.variables, chat_model.tokenizer,
                         sft.common_prefix(prompts), max(map(len, prompts)))


def rank_items_of_all(work: Workdir, name: str, grounded: GroundedModel, decode: ConfigDict,
                      prompts: Sequence[Sequence[int]], excluded: Sequence | None,
                      k: int) -> tuple[np.ndarray, np.ndarray]:
  """`rank_items` for all prompts, in batches, resumable: a journal `name` in the stage's folder.

  decode: batch. excluded, k: as there. work: of the stage. grounded, prompts: as there. -> items
  (n, k) int32, scores (n, k)
  """
  generator = prefix_generator(grounded.chat_model, prompts)

  def rank_batch(rows: list[int]) -> list:
    items, scores = rank_items(
      grounded, generator, [prompts[items_of_row] for items_of_row in rows], k,
      None if excluded is None else [excluded[items_of_row] for items_of_row in rows])
    return [
      [items_of_row.tolist(), [round(float(score), 5) for score in scores_of_row]]
      for items_of_row, scores_of_row in zip(items, scores)]

  with jax.set_mesh(work.mesh):
    ranked = sharded_stage.answer_all(
      work, name, work.folder / f'{name}.jsonl', prompts, decode.batch, rank_batch)
  return (
    np.array([items_of_row for items_of_row, _ in ranked], np.int32),
    np.array([scores_of_row for _, scores_of_row in ranked], np.float32))


def reply_to_all(work: Workdir, name: str, grounded: GroundedModel, decode: ConfigDict,
                 prompts: Sequence[Sequence[int]], excluded: Sequence | None, seed: int,
                 generator: PrefixGenerator | None = None) -> list[Reply]:
  """Replies to all prompts, in batches, resumable: a journal `name` in the stage's folder.

  decode, excluded: as in `generate_replies`. generator: None makes one. seed: of the draws. work:
  of the stage. grounded, prompts: as in `generate_replies`.
  """
  generator = generator or prefix_generator(grounded.chat_model, prompts)

  def reply_batch(batch_rows: list[int]) -> list:
    replies = generate_replies(grounded, generator, decode, [prompts[row] for row in batch_rows],
                    None if excluded is None else [excluded[row] for row in batch_rows], seed=seed)
    return [[reply.ids] for reply in replies]
  with jax.set_mesh(work.mesh):
    rows = sharded_stage.answer_all(
      work, name, work.folder / f'{name}.jsonl', prompts, decode.batch, reply_batch)
  return [grounded.read(ids) for (ids,) in rows]


def reply_freely(work: Workdir, name: str, grounded: GroundedModel, decode: ConfigDict,
                 prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
  """Replies that nothing constrains, in batches, resumable.

  name: of the journal. decode: as in `generate_replies`. prompts: token lists. seed: of the draws.
  work: of the stage. grounded: the model over its catalog. -> token lists
  """
  generator = prefix_generator(grounded.chat_model, prompts)
  eos_ids = tuple(grounded.chat_model.tokenizer.eos_ids)

  def reply_batch(batch_rows: list[int]) -> list:
    generated = generator.generate(
      [generator.own(prompts[row]) for row in batch_rows], sampling(decode, 0),
      constraints.Unconstrained(eos_ids), seed)
    rows = [list(map(int, generated.row(place, 0))) for place in range(len(batch_rows))]
    return [
      [reply_ids[:-1] if reply_ids and reply_ids[-1] in eos_ids else reply_ids]
      for reply_ids in rows]

  with jax.set_mesh(work.mesh):
    rows = sharded_stage.answer_all(
      work, name, work.folder / f'{name}.jsonl', prompts, decode.batch, reply_batch)
  return [ids for (ids,) in rows]
