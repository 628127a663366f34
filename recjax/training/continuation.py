"""Training that goes on from the weights of a finished run, as of the day before, on later data.

`start.run` of a config names that run. Its items must be the first ones of the new data, as
`recjax prepare --update` leaves them, and its model must have the same shape. The optimizer begins
anew; epochs and learning rate are shares of those of a training from nothing.
"""
import dataclasses
import functools
import operator
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from recjax.data import loading, update
from recjax.data.dataset import Catalog, Dataset, Interactions
from recjax.data.splits import Cases, Split, make_split
from recjax.errors import ConfigError, WorkdirError
from recjax.file_io import write_json
from recjax.run_files import need_json, read_json
from recjax.training.workdir import DONE, Workdir, find_stage, fingerprint, saved_config

# Of methods that go on, the stages that train; the last one of a run holds its weights.
STAGES = {'sequential': ('train',), 'bigrec': ('tune',), 'betag': ('tune',), 'reclm': ('tune',),
          'etegrec': ('train', 'finetune', 'policy'), 'llmemb': ('rat-{rat.variant}',)}
LLM_WEIGHTS = ('adapter_model.safetensors', 'model.safetensors', 'model.safetensors.index.json',
               'rows.npz', 'ret.npz')
FACTS = 'start.json'  # in the folder of the first of them: what it went on from


@dataclasses.dataclass(frozen=True)
class Start:
  """A finished run that another goes on from.

  workdir: its folder. config: its settings. folder: of its last stage that trains. data: what it
  was trained on. fingerprint: hash of its weights.
  """
  workdir: pathlib.Path
  config: ConfigDict
  folder: pathlib.Path
  data: Dataset
  fingerprint: str

  def said(self, catalog: Catalog) -> str:
    """Where a training begins, in a sentence. catalog: of the new data."""
    new = len(catalog) - len(self.data.catalog)
    return (f'goes on from {self.workdir} (weights {self.fingerprint[:12]}), which knew '
            f'{len(self.data.catalog):,} of {len(catalog):,} items; {new:,} begin untrained')


def check(cfg: ConfigDict, workdir: str | os.PathLike) -> None:
  """Raises ConfigError where a config names a run to go on from and its method cannot, or that run
  is its own. cfg: the run's config. workdir: its folder."""
  run = cfg.start.run
  if not run:
    return
  if cfg.method not in STAGES:
    raise ConfigError(f'start.run={run!r}: {cfg.method} is trained from nothing each time; leave '
                      f'--from out. These go on from an earlier run: {", ".join(STAGES)}')
  if os.path.realpath(run) == os.path.realpath(workdir):
    raise ConfigError(f'start.run={run!r} is the folder of this very run; name another --workdir, '
                      'so that nothing of the earlier run is written over')


def shortened(cfg: ConfigDict) -> ConfigDict:
  """The config with the epochs and the learning rate of a training that goes on, the same where it
  begins from nothing. cfg: the run's config."""
  if not cfg.start.run:
    return cfg
  cfg = cfg.copy_and_resolve_references()
  epochs = cfg.train.epochs * cfg.start.epochs_share
  with cfg.unlocked():
    cfg.train.epochs = max(1, round(epochs)) if isinstance(cfg.train.epochs, int) else epochs
    cfg.optim.lr = cfg.optim.lr * cfg.start.lr_factor
  return cfg


def open_start(cfg: ConfigDict, catalog: Catalog, weights: Iterable[str]) -> Start | None:
  """The run that `start.run` of a config names, None where it names none.

  cfg: the run's config. catalog: the items of its data, which must begin with those of that run.
  weights: names of the files of its stage that decide where training begins; those that are there
  count. Raises ConfigError for a run of another method, WorkdirError for one that is no finished
  run, DataError where its data have changed, or the items differ.
  """
  if not cfg.start.run:
    return None
  workdir = pathlib.Path(cfg.start.run)
  config = saved_config(workdir)
  if config.method != cfg.method:
    raise ConfigError(f'start.run={str(workdir)!r} is a run of {config.method}, and this is one of '
                      f'{cfg.method}; name a run of {cfg.method}')
  folder = last_stage(workdir, config)
  results = need_json(find_stage(workdir, 'evaluate') / 'results.json')
  data = loading.load_unchanged(config, results['data_fingerprint'], workdir)
  update.check_continuation(catalog.ids, data.catalog, cfg.data, workdir)
  made = {name: folder / name for name in weights if (folder / name).exists()}
  if not made:
    raise WorkdirError(f'{folder} holds no weights; run the experiment of {workdir} again')
  return Start(workdir, config, folder, data, fingerprint(made))


def last_stage(workdir: pathlib.Path, config: ConfigDict) -> pathlib.Path:
  """The folder of the last stage of a finished run that trains.

  workdir: of the run. config: its settings. Raises WorkdirError where the first one is not
  finished.
  """
  first, *later = (name.format(**config) for name in STAGES[config.method])
  folder = find_stage(workdir, first)
  for name in later:
    group = config.get(name) or {}
    if not group.get('epochs', 1) or group.get('loss') == 'none':
      continue  # what stands there is of an earlier run in this folder
    try:
      folder = find_stage(workdir, name)
    except WorkdirError:  # the run has no such stage
      continue
  return folder


def same_settings(start: Start, cfg: ConfigDict, group: str, free: Collection[str] = ()) -> None:
  """Raises ConfigError, which names the setting and both values, where the weights of a run do not
  fit the model of a config.

  start: the run. cfg: of the new one. group: of settings that must be the same, 'a.b' for a group
  within one, or a single setting. free: those of the group that may differ.
  """
  old, new = (_settings(c, group) for c in (start.config, cfg))
  for name in sorted((old.keys() | new.keys()) - {f'{group}.{n}' for n in free}):
    if _plain(old.get(name)) != _plain(new.get(name)):
      raise ConfigError(
          f'{name} is {new.get(name)!r} here and {old.get(name)!r} in {start.workdir}, '
          'whose weights then do not fit; give the same value, or leave --from out and train anew')


def _settings(cfg: ConfigDict, group: str) -> dict[str, Any]:
  value = functools.reduce(operator.getitem, group.split('.'), cfg)
  if not isinstance(value, ConfigDict):
    return {group: value}
  return {f'{group}.{name}': x for name, x in value.to_dict().items()}


def open_llm_start(cfg: ConfigDict, catalog: Catalog, mode: str = 'lora') -> Start | None:
  """`open_start` of a method that tunes an LLM.

  cfg: the run's config. catalog: the items of its data. mode: 'lora' or 'full', what is tuned.
  Raises what `open_start` does, and ConfigError for another adapter or other weights under it.
  """
  start = open_start(cfg, catalog, LLM_WEIGHTS)
  if start:
    same_llm(start, cfg, mode)
  return start


def same_llm(start: Start, cfg: ConfigDict, mode: str = 'lora') -> None:
  """Raises ConfigError where the LLM of a run, or the adapter on it, is not that of a config.

  start: the run. cfg: of the new one. mode: 'lora' or 'full', what is tuned.
  """
  same_settings(start, cfg, 'llm', free=('weights', 'dtype', 'remat'))
  if mode == 'lora':
    same_settings(start, cfg, 'lora')
  same_weights(start, cfg, 'llm.weights')


def same_weights(start: Start, cfg: ConfigDict, key: str) -> None:
  """Raises ConfigError where a setting names other weights than in the run, wherever they stand.

  start: the run. cfg: of the new one. key: of the setting, 'tiny' or a path.
  """
  old, new = (_settings(c, key)[key] for c in (start.config, cfg))
  if old != new and 'tiny' in (old, new) or 'tiny' not in (old, new) and (
      fingerprint(pathlib.Path(old)) != fingerprint(pathlib.Path(new))):
    raise ConfigError(f'{key} is {new!r} here and {old!r} in {start.workdir}, which are other '
                      'weights; name the same model, or leave --from out and train anew')


def same_seeds(start: Start, cfg: ConfigDict) -> None:
  """Raises ConfigError where a run has neither one seed nor as many as a config. start: the run.
  cfg: of the new one."""
  if start.config.seeds not in (1, cfg.seeds):
    raise ConfigError(f'seeds is {cfg.seeds} here and {start.config.seeds} in {start.workdir}; a '
                      'run goes on with as many seeds, or from a run of one seed')


def for_seeds(params: PyTree, seeds: int) -> PyTree:
  """Parameters of an earlier run for so many seeds, all from the one where it has one. params:
  arrays with a leading axis of seeds."""
  return jax.tree.map(lambda x: np.broadcast_to(x, (seeds, *x.shape[1:])), params)


def llm_folder(cfg: ConfigDict, work: Workdir, start: Start | None,
               fresh: Callable[[], pathlib.Path]) -> pathlib.Path:
  """Where the LLM stands: the tiny one of the earlier run comes along with its tokenizer.

  cfg: the run's config. work: the Workdir. start: the earlier run. fresh: () -> the folder for all
  others.
  """
  if not start or cfg.llm.weights != 'tiny':
    return fresh()
  return work.stage('llm', carry_stage, find_stage(start.workdir, 'llm'))


def carry_stage(work: Workdir, folder: pathlib.Path) -> None:
  """A stage of a run that goes on which is that of the earlier run: a copy.

  A tiny model has tokens for the titles of its day and writes new ones in pieces. work: the
  Workdir. folder: of the earlier stage.
  """
  shutil.copytree(folder, work.folder, dirs_exist_ok=True,
                  ignore=shutil.ignore_patterns(DONE, '.*'))


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def learned_before(known: Interactions, train: Interactions, cases: Cases) -> int:
  """How many cases ask for what the earlier run has learned and this one's training lacks, which
  flatters it.

  known: what the earlier run was trained on. train: what the new one is. cases: its questions.
  """
  row = {user: i for i, user in enumerate(train.users)}
  rows = np.array([row.get(user, -1) for user in known.users], np.int64)

  def pairs(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    return users.astype(np.int64) << 32 | items
  old = pairs(np.repeat(rows, known.lengths()), known.items)
  own = pairs(np.repeat(np.arange(len(train)), train.lengths()), train.items)
  asked = pairs(cases.users, cases.targets)
  return int((np.isin(asked, old) & ~np.isin(asked, own)).sum())


def keep_facts(work: Workdir, start: Start, catalog: Catalog, valid: int, test: int) -> None:
  """Writes what the running stage went on from into its folder.

  work: the Workdir. start: the earlier run. catalog: of the new data. valid, test: targets of these
  parts that the earlier run has learned, as `learned_before` counts them, and which are told.
  """
  said = start.said(catalog)
  if valid or test:
    said += (f'; it has learned {valid} of the validation targets and {test} of the test targets, '
             'which flatters figures')
    work.log(f'    {said}')
  write_json(work.folder / FACTS, {
      'run': str(start.workdir), 'weights': start.fingerprint, 'said': said,
      'items_known': len(start.data.catalog), 'valid_learned': valid, 'test_learned': test})


def keep_split_facts(work: Workdir, start: Start, dataset: Dataset, split: Split) -> None:
  """`keep_facts` of a method that learns from the training part of the data set's split.

  work: the Workdir. start: the earlier run. dataset: the data set. split: of it.
  """
  old = make_split(start.data)
  keep_facts(
      work, start, dataset.catalog,
      valid=learned_before(old.for_choice, split.for_choice, split.valid) if split.valid else 0,
      test=learned_before(old.train, split.train, split.test))


def facts(folder: pathlib.Path) -> Mapping[str, Any]:
  """{'started': what `keep_facts` wrote}, {} of a training from nothing, for results.json. folder:
  of the stage that trained."""
  found = read_json(folder / FACTS)
  return {'started': dict(found)} if found else {}
