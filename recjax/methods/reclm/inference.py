"""Recommendations and conversation out of a trained run."""
import pathlib

import jax
import numpy as np

from recjax import run_files
from recjax.data import update
from recjax.data.dataset import load_data, load_unchanged
from recjax.decoding.prefix_generator import PrefixGenerator
from recjax.distributed import sharding
from recjax.errors import ConfigError
from recjax.evaluation import ranking
from recjax.methods.reclm import (
  chat_batcher,
  conversation,
  generation,
  sft_data,
  tokenized_catalog,
  train,
)
from recjax.run_files import read_json
from recjax.text import prompt_templates
from recjax.training.workdir import find_stage, saved_config


def open_run(workdir, later=None):
  """-> config, data set, Shelf, folder-independent mesh of what is here

  later: a data set that carries the run's on. Raises ConfigError where its items cannot be read.
  """
  config = saved_config(workdir)
  results = read_json(find_stage(workdir, 'evaluate') / 'results.json')
  shop = load_unchanged(config.data, results['data_fingerprint'], workdir)
  if later:
    check_later(config)
    shop = update.load(later, shop.catalog, workdir)
  weights = config.llm.weights
  folder = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  speaker = train.load(config, folder, find_stage(workdir, 'tune'), mesh)
  table = None
  if config.grounding == 'token':
    table = run_files.read_arrays(find_stage(workdir, 'codes') / 'codes.npy')
  stock = train.stock_of(config, shop, speaker, table)
  return config, shop, generation.Shelf(speaker, [stock], [shop.name], config.grounding), mesh


def check_later(config):
  """Raises ConfigError where new items have no place in what was trained."""
  why = {'ret': 'finds items by vectors that were trained one an item',
         'token': 'writes codes that were dealt out among the items of the run'}.get(
             config.grounding)
  if why:
    raise ConfigError(f'grounding={config.grounding} {why}, so it cannot read new ones; '
                      'train again on the later data, or use a run of grounding=cgen, which writes '
                      'titles')


def recommender(workdir, data=None):
  """The trained method's face. data: a later data set, as in `open_run`.

  -> recommend(histories, k, exclude_seen=True, allowed=None) -> (item ids [B][k], scores (B, k)),
  ranked as the first item of a reply would be: scores are log-probabilities of titles, or of
  RecLM-ret products with the projected state; histories are lists of item ids, oldest first,
  `allowed` a set of item ids, or (B, N) bool, a row a history (which recommend.rows says; .most is
  how many histories do well together). Raises DataError for an unknown id.
  """
  return recommending(*open_run(workdir, data))


def faces(workdir, catalogues=(), data=None):
  """One opened run for serving: `recommender` and `chat_batcher.ChatBatcher`. catalogues: as in
  `converse`; data: a later data set, as in `open_run`.

  -> recommend, Replier
  """
  config, shop, shelf, mesh = opened = open_run(workdir, data)
  domains = domains_of(config, shelf, catalogues)
  return recommending(*opened), chat_batcher.ChatBatcher(config, domains, system_of(config), mesh)


def recommending(config, shop, shelf, mesh):
  """The face of a run that `open_run` opened."""
  stock, template = shelf.stocks[0], prompt_templates.read(
      config.prompt.template, 'recjax.methods.reclm', sft_data.FIELDS)
  turn, writers = train.renderer(config, shelf.speaker, stock), []

  def recommend(histories, k, exclude_seen=True, allowed=None):
    rows = [[shop.catalog.index(i) for i in h] for h in histories]
    mask = ranking.mask_of(allowed, shop.catalog)
    prompts, _ = sft_data.prompts(turn, stock, template, rows, config.eval.words, k)
    items, scores = [], []
    size = min(config.decode.batch, 1 << (len(rows) - 1).bit_length())
    with jax.set_mesh(mesh):
      if not writers:
        longest = min(max(map(len, prompts)) + 64, config.prompt.max_prompt_tokens)
        writers.append(PrefixGenerator(shelf.speaker.model, shelf.speaker.variables,
                              shelf.speaker.tokenizer, [], longest))
      for start in range(0, len(rows), size):
        some = list(range(start, min(start + size, len(rows))))
        full = some + some[-1:] * (size - len(some))
        found = generation.ranked(shelf, writers[0], [prompts[i] for i in full], k,
                              [rows[i] for i in full] if exclude_seen else None,
                              mask[full] if mask is not None and mask.ndim == 2 else mask)
        items += found[0][:len(some)].tolist()
        scores.append(found[1][:len(some)])
    return [[shop.catalog.id_of(i) for i in row if i] for row in items], np.concatenate(scores)
  recommend.rows, recommend.most = True, 8
  return recommend


def converse(workdir, catalogues=()):
  """A conversation with the trained model. catalogues: further data sets to recommend from.

  -> talk.Conversation, mesh
  """
  config, _, shelf, mesh = open_run(workdir)
  return conversation.Conversation(
    config, domains_of(config, shelf, catalogues), system_of(config)
  ), mesh


def system_of(config):
  """What the model is told before a conversation."""
  return prompt_templates.read(config.prompt.template, 'recjax.methods.reclm', sft_data.FIELDS)[
    'system'
  ]


def domains_of(config, shelf, catalogues):
  """The run's own catalogue and further data sets. -> {name: Shelf}"""
  domains = {shelf.names[0]: shelf}
  if catalogues and config.grounding != 'cgen':
    raise ConfigError(f'grounding={config.grounding} knows its own catalogue alone; other data '
                      'sets need a run with grounding=cgen')
  for source in catalogues:
    shop = load_data(source)
    stock = tokenized_catalog.load(shop.catalog, shelf.speaker.tokenizer)
    domains[shop.name] = generation.Shelf(shelf.speaker, [stock], [shop.name])
  return domains
