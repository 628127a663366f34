"""Items that come after training: their rows of the recommender's table, from texts alone."""
import pathlib

import numpy as np

from recjax import run_files
from recjax.data import update
from recjax.distributed import sharding
from recjax.errors import ConfigError
from recjax.methods.llmemb import item_embeddings, prompts, rat, variants
from recjax.retrieval import pca
from recjax.training import sequential
from recjax.training.workdir import find_stage, open_adopted


def carried_on(workdir, config, shop, later, seed):
  """The recommender for a later data set, without training.

  shop: what the run was trained on. Items whose prompt is new, or another, get their vectors here.
  -> Dataset, parameters of a seed. Raises ConfigError where vectors do not come from texts,
  DataError where the data set is no later one.
  """
  made = variants.main_stage(workdir)
  params = sequential.load(made / 'model.npz', seed)
  source = variants.source(config, config.rat.variant)
  if source == 'file':
    raise ConfigError(f'the item vectors of {workdir} come from {config.export.file}, so nothing '
                      'here can make those of new items; train again with a file that holds them')
  if 'output' in params:
    raise ConfigError(f'{workdir} was trained with model.separate, whose second table knows items '
                      'by their numbers alone; train it again on the later data')
  known, shop = len(shop.catalog), update.load_continuation(later, shop.catalog, workdir)
  texts = prompts.texts_of(prompts.settings(config), shop.catalog)[0]
  before = prompts.read(find_stage(workdir, 'prompts'))
  items = [i for i, text in enumerate(texts, 1) if i > known or text != before[i - 1]]
  rows = np.zeros((len(texts), params['items'].shape[1]), np.float32)
  rows[:known] = params['items'][1:known + 1]
  if items:
    given = prompted(workdir, config, shop, source, [texts[i - 1] for i in items])
    at = np.array(items) - 1
    rows[at] = table_rows(workdir, config, known, source, seed, given, at)
  # Row 0 is padding, the last one BERT4Rec's mask, whose bias of an item counts how often it came.
  params['items'] = np.concatenate([params['items'][:1], rows, params['items'][-1:]])
  if 'bias' in params:
    bias = params['bias']
    more = np.full(len(texts) - known, bias[1:known + 1].mean(), np.float32)
    params['bias'] = np.concatenate([bias[:known + 1], more, bias[-1:]])
  return shop, params


def prompted(workdir, config, shop, source, texts):
  """Vectors of prompts by the run's own encoder, made once for a data set. -> (n, d) float32"""
  weights = variants.text_folder(config) if source == 'text' else config.llm.weights
  folder = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  tuned = None if source in ('text', 'plain') else find_stage(workdir, f'scft-{source}')
  with open_adopted(workdir, shop, sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})) as work:
    return item_embeddings.read_shards(
      work.stage(
        f'export-{source}',
        item_embeddings.write,
        item_embeddings.settings(config, source),
        texts,
        folder,
        tuned,
      )
    )


def table_rows(workdir, config, known, source, seed, vectors, at):
  """What the run's principal components and adapter make of the vectors of items `at`. -> (n, D)"""
  model = sequential.model_config(variants.recommender_config(config, config.model.kind), known)
  reduced = find_stage(workdir, f'pca-{source}')
  arrays = run_files.read_arrays(reduced / 'pca.npz')
  few = pca.PCA(*(arrays[k] for k in pca.PCA._fields))(vectors)
  what = variants.VARIANTS[config.rat.variant]
  how = rat.settings(config, config.rat.variant)
  x = rat.inputs(how, model, item_embeddings.read(reduced), known, np.asarray(few))
  if not what.adapter:
    return x
  trained = sequential.load(variants.main_stage(workdir) / 'adapter.npz', seed)
  rows = np.array(rat.adapt(trained['adapter'], x, config.rat.activation))
  if 'own' in trained:  # what texts do not say of an item stays with it
    old = at < known
    rows[old] += trained['own'][at[old]]
  return rows
