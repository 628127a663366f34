"""A run's tuned model, or its samples, in other programs' layouts."""
import pathlib
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from recjax import run_files
from recjax.data.loading import load_unchanged
from recjax.distributed import sharding
from recjax.errors import ConfigError
from recjax.methods.reclm import (
  offline_samples,
  teacher,
  tokenized_catalog,
  train,
)
from recjax.run_files import read_json
from recjax.text import tokenizer
from recjax.training.workdir import find_stage, saved_config


def convert(workdir: Path, kind: str, out: Path) -> None:
  """Writes the tuned chat model, control tokens included, as a whole Hugging Face checkpoint
  ('merged'), or the samples that it learned from, as List[List[Dict]] files ('samples').

  workdir: of the run. kind: which of both. out: the new folder. Raises WorkdirError where the run
  has not finished tuning, ConfigError where `out` is not empty or `kind` is another.
  """
  config = saved_config(workdir)
  tuned_dir = find_stage(workdir, 'tune')
  if kind not in ('merged', 'samples'):
    raise ConfigError(f'--to={kind} does not fit: an adapter alone lacks the new tokens; choose '
                      'merged, or samples for what it was trained on')
  with run_files.new_folder(out, '--out') as target:
    if kind == 'samples':
      write_samples(config, workdir, tuned_dir, target)
      return
    if config.train.mode == 'full':
      shutil.copytree(tuned_dir, target, dirs_exist_ok=True,
                      ignore=shutil.ignore_patterns('DONE.json', '.*', '*.npz'))
      return
    weights = config.llm.weights
    llm_dir = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
    train.save_merged(config, llm_dir, tuned_dir, target)


def write_samples(cfg: ConfigDict, workdir: Path, tuned_dir: Path, out: Path) -> None:
  """The samples of a run, drawn again as training drew them, into the folder `out`. cfg, workdir:
  of the run. tuned_dir: of its stage."""
  dataset = load_unchanged(cfg, read_json(
      find_stage(workdir, 'evaluate') / 'results.json')['data_fingerprint'], workdir)
  tokenized = tokenized_catalog.load(dataset.catalog, tokenizer.load(tuned_dir))
  talk_dir = find_stage(workdir, 'own-talk') if cfg.talk.source == 'own' else None
  with jax.set_mesh(sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})):
    teach = teacher.make_teacher(find_stage(workdir, 'teacher'), dataset)
    offline_samples.write(
      out,
      offline_samples.run_samples(cfg, dataset, tokenized, teach,
                                  train.load_chat_pairs(cfg, talk_dir)[0]),
      dataset, tokenized
    )
