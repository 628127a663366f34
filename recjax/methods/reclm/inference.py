"""Recommendations and conversation out of a trained run."""
import pathlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data import update
from recjax.data.dataset import Dataset
from recjax.data.loading import load_data, load_unchanged
from recjax.decoding.block_generator import BlockGenerator, PromptGenerator
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.decoding.prefix_memory import PrefixMemory
from recjax.distributed import sharding
from recjax.errors import ConfigError
from recjax.evaluation.recommender import CatalogRecommender
from recjax.methods.reclm import chat_batcher, conversation, generate, tokenized_catalog, train
from recjax.methods.reclm import prompts as prompts_lib
from recjax.run_files import read_json
from recjax.text import prompt_templates
from recjax.training import sft
from recjax.training.workdir import find_stage, saved_config

MANY = 20  # items that a prompt asks for, in other words than one


def open_run(
    workdir: Path, later: str | None = None
) -> tuple[ConfigDict, Dataset, generate.GroundedModel, jax.sharding.Mesh]:
  """-> config, data set, the model over its catalog, a mesh of what is here, whatever the folder

  later: a data set that carries the run's on. workdir: of the run. Raises ConfigError where its
  items cannot be read.
  """
  config = saved_config(workdir)
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  dataset = load_unchanged(config, results['data_fingerprint'], workdir)
  if later:
    check_later(config)
    dataset = update.load_continuation(later, dataset.catalog, workdir)
  weights = config.llm.weights
  llm_dir = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  chat_model = train.load_model(config, llm_dir, find_stage(workdir, 'tune'), mesh)
  table = None
  if config.grounding == 'token':
    table = run_files.read_arrays(find_stage(workdir, 'codes') / 'codes.npy')
  tokenized = train.load_tokenized(config, dataset, chat_model, table)
  return (
    config, dataset,
    generate.GroundedModel(chat_model, [tokenized], [dataset.name], config.grounding), mesh)


def check_later(config: ConfigDict) -> None:
  """Raises ConfigError where new items have no place in what was trained. config: of the run."""
  why = {'ret': 'finds items by vectors that were trained one an item',
         'token': 'writes codes that were dealt out among the items of the run'}.get(
             config.grounding)
  if why:
    raise ConfigError(f'grounding={config.grounding} {why}, so it cannot read new ones; '
                      'train again on the later data, or use a run of grounding=cgen, which writes '
                      'titles')


def recommender(workdir: Path, data: str | None = None) -> CatalogRecommender:
  """The trained method's face. data: a later data set, as in `open_run`.

  workdir: of the run. -> Recommender, ranked as the first item of a reply would be: scores are
  log-probabilities of titles, or of RecLM-ret products with the projected state.
  """
  return make_recommender(*open_run(workdir, data))


def faces(workdir: Path, catalogs: Sequence[str] = (), data: str | None = None,
          memory: PrefixMemory | None = None
          ) -> tuple[CatalogRecommender, chat_batcher.ChatBatcher]:
  """One opened run for serving: `recommender` and `chat_batcher.ChatBatcher`.

  catalogs: as in `converse`; data: a later data set, as in `open_run`. workdir: of the run.
  memory: of what both read, of nothing else; without it all is read anew.
  """
  memory = memory or PrefixMemory(0)
  config, dataset, grounded, mesh = opened = open_run(workdir, data)
  domains = load_domains(config, grounded, catalogs)
  return make_recommender(*opened, memory), chat_batcher.ChatBatcher(
    config, domains, system_prompt(config), mesh, memory)


def make_recommender(config: ConfigDict, dataset: Dataset, grounded: generate.GroundedModel,
                     mesh: jax.sharding.Mesh, memory: PrefixMemory | None = None
                     ) -> CatalogRecommender:
  """The face of a run. config, dataset, grounded, mesh: as `open_run` gives them. memory: None
  reads the prompts of a batch together, for files of users; else they are read in blocks, for
  users who come again."""
  tokenized, template = grounded.tokenized, prompt_templates.read(
      config.prompt.template, 'recjax.methods.reclm', prompts_lib.FIELDS)
  encoder, generators = train.make_encoder(config, grounded.chat_model, tokenized), []

  def make_generator(chat_model: train.ChatModel, longest: int) -> PromptGenerator:
    llm = chat_model.model, chat_model.variables, chat_model.tokenizer
    if memory is None:
      return PrefixGenerator(*llm, [], longest)
    titles = tokenized.titles
    unlike = ([titles.index(min(titles)) + 1], 1), ([titles.index(max(titles)) + 1], MANY)
    opening = sft.common_prefix([
      prompts_lib.make_prompts(encoder, tokenized, template, [history], config.eval.words, k)[0][0]
      for history, k in unlike])
    generator = BlockGenerator(*llm, memory, opening, longest)
    generator.keep_opening()
    return generator

  def recommend(histories: Sequence, k: int, exclude_seen: bool, allowed_mask: np.ndarray | None
               ) -> tuple:
    item_rows = [history.tolist() for history in histories]
    prompts, _ = prompts_lib.make_prompts(
      encoder, tokenized, template, item_rows, config.eval.words, k)
    items, scores = [], []
    size = min(config.decode.batch, 1 << (len(item_rows) - 1).bit_length())
    with jax.set_mesh(mesh):
      if not generators:
        generators.append(make_generator(
          grounded.chat_model, min(max(map(len, prompts)) + 64, config.prompt.max_prompt_tokens)))
      for start in range(0, len(item_rows), size):
        batch_rows = list(range(start, min(start + size, len(item_rows))))
        padded_rows = batch_rows + batch_rows[-1:] * (size - len(batch_rows))
        ranked = generate.rank_items(
          grounded, generators[0], [prompts[i] for i in padded_rows], k,
          [item_rows[i] for i in padded_rows] if exclude_seen else None, allowed_mask[padded_rows]
          if allowed_mask is not None and allowed_mask.ndim == 2
          else allowed_mask)
        items += ranked[0][: len(batch_rows)].tolist()
        scores.append(ranked[1][: len(batch_rows)])
    return items, np.concatenate(scores)
  return CatalogRecommender(recommend, dataset.catalog, masks_by_row=True, max_batch=8,
                            list_size=config.decode.num_items)


def converse(workdir: Path,
             catalogs: Sequence[str] = ()) -> tuple[conversation.Conversation, jax.sharding.Mesh]:
  """A conversation with the trained model. catalogs: further data sets to recommend from. workdir:
  of the run."""
  config, _, grounded, mesh = open_run(workdir)
  return conversation.Conversation(
    config, load_domains(config, grounded, catalogs), system_prompt(config)), mesh


def system_prompt(config: ConfigDict) -> str:
  """What the model is told before a conversation. config: of the run."""
  return prompt_templates.read(config.prompt.template, 'recjax.methods.reclm', prompts_lib.FIELDS)[
    'system']


def load_domains(config: ConfigDict, grounded: generate.GroundedModel,
                 catalogs: Sequence[str]) -> dict[str, generate.GroundedModel]:
  """The run's own catalog and further data sets, by name. Raises ConfigError where the grounding
  knows its own alone.

  catalogs: further data sets. config: of the run. grounded: the model over the run's catalog.
  """
  domains = {grounded.names[0]: grounded}
  if catalogs and config.grounding != 'cgen':
    raise ConfigError(f'grounding={config.grounding} knows its own catalog alone; other data '
                      'sets need a run with grounding=cgen')
  for source in catalogs:
    dataset = load_data(source)
    tokenized = tokenized_catalog.load(dataset.catalog, grounded.chat_model.tokenizer)
    domains[dataset.name] = generate.GroundedModel(
      grounded.chat_model, [tokenized], [dataset.name])
  return domains
