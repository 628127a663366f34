"""Recommendations out of a trained run, for histories of anybody."""
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from recjax import run_files, split_rule
from recjax.decoding.block_generator import BlockGenerator, PromptGenerator
from recjax.decoding.device_trie import DeviceTrie
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.decoding.prefix_memory import PrefixMemory
from recjax.decoding.trie import Trie
from recjax.distributed import sharding
from recjax.errors import DataError
from recjax.evaluation.recommender import CatalogRecommender
from recjax.methods.bigrec import cf_assistant, grounding, instruction_data, prompts, train
from recjax.methods.bigrec import generate as gen
from recjax.methods.bigrec.instruction_data import Data
from recjax.methods.bigrec.prompts import Template
from recjax.protocols import ScoreFn
from recjax.retrieval import nearest
from recjax.run_files import read_json
from recjax.text.tokenizer import Tokenizer
from recjax.training import auxiliary_recommender, sft, text_embedding
from recjax.training.workdir import find_stage, open_later_work, saved_config


def faces(workdir: str | os.PathLike, catalogs: Sequence[str] = (), data: str | None = None,
          memory: PrefixMemory | None = None) -> tuple[CatalogRecommender, None]:
  """One opened run for serving, and nothing that converses.

  workdir, data, memory: as of `opened`. catalogs: of runs that converse, not used.
  """
  return opened(workdir, data, memory), None


def recommender(workdir: str | os.PathLike, data: str | None = None) -> CatalogRecommender:
  """The trained method's face. data: a later data set than the run's, whose titles it reads.

  workdir: the run's folder. -> Recommender. D3 searches with k or `decode.beams` beams, whichever
  is more. It raises DataError for an unknown id or an empty history.
  """
  return opened(workdir, data)


def opened(workdir: str | os.PathLike, data: str | None = None,
           memory: PrefixMemory | None = None) -> CatalogRecommender:
  """`recommender`, for files of users or for users who come again. workdir, data: as there.

  memory: None reads the prompts of a batch together; else they are read in blocks, which it keeps.
  """
  config = saved_config(workdir)
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  later, data = data, instruction_data.load(
      config.data, config.samples, split_rule.for_config(config))
  if data.fingerprint != results['data_fingerprint']:
    raise DataError(f'{config.data} has changed since {workdir} was made; run the experiment again')
  weights = config.llm.weights
  folder = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})  # whatever is here
  model, variables, tokenizer = train.tuned(config, folder, find_stage(workdir, 'tune'), mesh)
  template = prompts.load_template(config.prompt.template)
  before = data = instruction_data.respell(data, tokenizer, template)
  if later:
    data = instruction_data.respell(instruction_data.carried_on(before, later, workdir), tokenizer,
                                  template)
  grounds = config.variant == 'ground'
  score = auxiliary_recommender.widened(  # of a new item the assistant knows nothing
      cf_assistant.scorer(find_stage(workdir, 'assistant'), before), len(before.catalog),
      len(data.catalog),
      auxiliary_recommender.least if grounds else auxiliary_recommender.mean_share)
  with jax.set_mesh(mesh):
    writer = make_writer((model, variables, tokenizer), opening(config, template, tokenizer),
                         config.prompt.max_prompt_tokens, memory)
  if grounds:
    reader = grounding.text_encoder(config, folder, find_stage(workdir, 'tune'), mesh)
    embed = lambda texts: text_embedding.embed(reader, texts, mesh)[0]  # noqa: E731
    vectors_dir = vectors_of(workdir, data, before, embed, mesh)
    answer = grounded(config, data, vectors_dir, results, score, embed)
  else:
    tries = gen.title_trie(tokenizer, template, data.titles)
    answer = decoded(config.decode, results, score, tries)

  def recommend(rows: Any, k: int, exclude_seen: bool, mask: Any) -> tuple:
    empty = [i for i, h in enumerate(rows) if not len(h)]
    if empty:
      raise DataError(f'history {empty[0]} is empty; this method continues at least one item')
    asked = asked_of(config, data, template, tokenizer, rows)
    items, scores = [], []
    size = min(config.decode.batch, 1 << (len(rows) - 1).bit_length())
    with jax.set_mesh(mesh):
      for start in range(0, len(rows), size):
        chosen = list(range(start, min(start + size, len(rows))))
        full = chosen + chosen[-1:] * (size - len(chosen))
        answers = answer(writer, [rows[i] for i in full], [asked[i] for i in full], k, exclude_seen,
                       mask)
        items.append(answers[0][:len(chosen)])
        scores.append(answers[1][:len(chosen)])
    return np.concatenate(items), np.concatenate(scores)
  return CatalogRecommender(recommend, data.catalog,
                            list_size=len(data.catalog) if grounds else config.decode.beams)


def make_writer(llm: tuple, start: list[int], longest: int,
                memory: PrefixMemory | None) -> PromptGenerator:
  """The LLM behind what all prompts begin with.

  llm: model, variables, tokenizer. start: tokens of every prompt. longest: tokens of a prompt, at
  most. memory: as of `opened`.
  """
  if memory is None:
    return PrefixGenerator(*llm, start, longest)
  writer = BlockGenerator(*llm, memory, start, longest)
  writer.keep_opening()
  return writer


def vectors_of(workdir: str | os.PathLike, data: Data, before: Data, embed: Callable,
               mesh: Mesh) -> pathlib.Path:
  """The folder with items.npy of `data`: the run's own, or of a later data set, made once.

  workdir: the run's folder. before: the run's Data. embed: texts -> vectors. mesh: of the
  devices.
  """
  embedded = find_stage(workdir, 'embed')
  if data is before:
    return embedded
  with open_later_work(workdir, data, mesh) as work:
    return work.stage('embed', functools.partial(grounding.embed_new, embed=embed), data.titles,
                      before.titles, embedded)


def opening(config: ConfigDict, template: Template, tokenizer: Tokenizer) -> list[int]:
  """The tokens that every prompt begins with, as two unlike histories show.

  config: the run's config. template: of prompts. tokenizer: the LLM's. -> token list
  """
  start = list(tokenizer.before)
  return sft.common_prefix([
      start + tokenizer.encode(template.text(template.record(config.prompt.noun, [h], '')))
      for h in ('a', 'B', '1', '(')])


def asked_of(config: ConfigDict, data: Data, template: Template, tokenizer: Tokenizer,
             histories: list) -> list[list[int]]:
  """Prompts of new histories.

  config: the run's config. data: the Data. template: of prompts. tokenizer: the LLM's.
  """
  records = [template.record(config.prompt.noun,
                             [data.titles[i - 1] for i in h[-config.samples.max_history:]], '')
             for h in histories]
  return prompts.encode_prompts(tokenizer, template, records, config.prompt.max_prompt_tokens)[0]


def grounded(config: ConfigDict, data: Data, made: pathlib.Path, results: dict[str, Any],
             score: ScoreFn | None, embed: Callable | None) -> Callable:
  """BIGRec's answer: the first beam, embedded, the catalog ranked as the run's lists were.

  config: the run's config. data: the Data. made: folder with items.npy. results: what results.json
  holds. score: the assistant, or None. embed: texts -> vectors.
  """
  items = nearest.center(run_files.read_arrays(made / 'items.npy'))
  n = len(data.catalog)
  popular = nearest.popularity(np.bincount(data.cases.known.items, minlength=n + 1)[1:])
  how = results['list_of']

  def answer(writer: Any, histories: Any, asked: Any, k: int, seen: Any, mask: Any) -> tuple:
    texts = [prompts.title_of(beams[0]) for beams, _ in gen.texts(writer, asked, config.decode)]
    vectors = np.zeros((len(texts), items.items.shape[1]), np.float32)
    filled = [i for i, t in enumerate(texts) if t]
    if filled:
      vectors[filled] = embed([texts[i] for i in filled])
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    flat = np.concatenate(histories)
    rows = np.repeat(np.arange(len(histories)), np.diff(offsets))
    near, weight, closed, _ = grounding.pulls(items, popular, score, vectors,
                                           (flat, offsets, (rows, flat - 1)), n, seen)
    if mask is not None:
      closed = ~mask if closed is None else closed | ~mask
    return grounding.best(near, weight, how['prior'], how['gamma'], closed, min(k, n))
  return answer


def decoded(cfg: ConfigDict, results: dict[str, Any], score: ScoreFn | None,
            catalog: tuple[Trie, DeviceTrie]) -> Callable:
  """D3's answer: beams of open titles with the run's weight of the LLM.

  cfg: the run's config. results: what results.json holds. score: the assistant, or None. catalog:
  of `generate.plant`.
  """
  tree, planted = catalog
  alpha = results['alpha']

  def answer(writer: Any, histories: Any, asked: Any, k: int, seen: Any, mask: Any) -> tuple:
    closed = gen.limits(tree, histories, seen, mask)
    share = cf_assistant.probabilities(score, histories, seen)
    how = ConfigDict({**cfg.to_dict(), 'beams': max(k, cfg.beams)})
    generated = gen.titles(writer, asked, how, planted, closed, gen.mixed(planted, share, alpha))
    return generated.best(k, tree, closed)
  return answer
