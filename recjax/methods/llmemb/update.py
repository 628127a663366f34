"""Items that come after training: their rows of the recommender's table, from texts alone."""
import pathlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, PyTree
from ml_collections import ConfigDict

from recjax.data import update
from recjax.data.dataset import Dataset
from recjax.distributed import sharding
from recjax.errors import ConfigError
from recjax.methods.llmemb import item_embeddings, prompts, rat, variants
from recjax.training import sequential
from recjax.training.workdir import find_stage, open_later_work


def extend_params(workdir: Path, config: ConfigDict, dataset: Dataset, later: str,
                  seed: int) -> tuple[Dataset, PyTree]:
  """The recommender for a later data set, without training.

  config, dataset: of the run. later: the data set. seed: whose model. Items whose prompt is new, or
  another, get their vectors here. workdir: of the run. -> the later data set, parameters. Raises
  ConfigError where vectors do not come from texts, DataError where the data set is no later one.
  """
  rat_dir = variants.main_stage(workdir)
  params = sequential.load(rat_dir / 'model.npz', seed)
  source = variants.vector_source(config, config.rat.variant)
  if source == 'file':
    raise ConfigError(f'the item vectors of {workdir} come from {config.export.file}, so nothing '
                      'here can make those of new items; train again with a file that holds them')
  if 'output' in params:
    raise ConfigError(f'{workdir} was trained with model.separate, whose second table knows items '
                      'by their numbers alone; train it again on the later data')
  num_known = len(dataset.catalog)
  dataset = update.load_continuation(later, dataset.catalog, workdir)
  texts = prompts.item_prompts(prompts.settings(config), dataset.catalog)[0]
  known_texts = prompts.read(find_stage(workdir, 'prompts'))
  items = [i for i, text in enumerate(texts, 1) if i > num_known or text != known_texts[i - 1]]
  rows = np.zeros((len(texts), params['items'].shape[1]), np.float32)
  rows[:num_known] = params['items'][1:num_known + 1]
  if items:
    vectors = prompt_vectors(workdir, config, dataset, source, [texts[i - 1] for i in items])
    positions = np.array(items) - 1
    rows[positions] = table_rows(workdir, config, num_known, source, seed, vectors, positions)
  # Row 0 is padding, the last one BERT4Rec's mask, whose bias of an item counts how often it came.
  params['items'] = np.concatenate([params['items'][:1], rows, params['items'][-1:]])
  if 'bias' in params:
    bias = params['bias']
    new_bias = np.full(len(texts) - num_known, bias[1:num_known + 1].mean(), np.float32)
    params['bias'] = np.concatenate([bias[:num_known + 1], new_bias, bias[-1:]])
  return dataset, params


def prompt_vectors(workdir: Path, config: ConfigDict, dataset: Dataset, source: str,
                   texts: Sequence[str]) -> Float[np.ndarray, 'n d']:
  """Vectors of prompts by the run's own encoder, made once for a data set.

  source: of the vectors. texts: the prompts. workdir, config: of the run. dataset: the later one.
  """
  weights = variants.text_folder(config) if source == 'text' else config.llm.weights
  llm_dir = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  scft_dir = None if source in ('text', 'plain') else find_stage(workdir, f'scft-{source}')
  with open_later_work(
    workdir, dataset, sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})) as work:
    return item_embeddings.read_shards(
      work.stage(
        f'export-{source}', item_embeddings.write_shards, item_embeddings.settings(config, source),
        texts, llm_dir, scft_dir))


def table_rows(workdir: Path, config: ConfigDict, num_known: int, source: str, seed: int,
               vectors: Float[np.ndarray, 'n d'], positions: Int[np.ndarray, ' n']) -> np.ndarray:
  """What the run's principal components and adapter make of vectors. -> (n, D)

  num_known: items of the run. source: of the vectors. seed: whose adapter. positions: rows of the
  vectors' items, from 0. workdir, config: of the run.
  """
  model = sequential.model_config(variants.recommender_config(config, config.model.kind), num_known)
  reduced_dir = find_stage(workdir, f'pca-{source}')
  components = item_embeddings.read_components(reduced_dir)(vectors)
  parts = variants.VARIANTS[config.rat.variant]
  rat_cfg = rat.settings(config, config.rat.variant)
  x = rat.adapter_inputs(
    rat_cfg, model, item_embeddings.read(reduced_dir), num_known, np.asarray(components))
  if not parts.adapter:
    return x
  trained = sequential.load(variants.main_stage(workdir) / 'adapter.npz', seed)
  rows = np.array(rat.apply_adapter(trained['adapter'], x, config.rat.activation))
  if 'own' in trained:  # what texts do not say of an item stays with it
    is_known = positions < num_known
    rows[is_known] += trained['own'][positions[is_known]]
  return rows
