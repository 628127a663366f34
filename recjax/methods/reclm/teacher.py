"""The teacher that completes label lists: a SASRec in process, or behind HTTP."""
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Catalog, Dataset
from recjax.errors import DataError
from recjax.evaluation import ranking
from recjax.file_io import write_json
from recjax.methods.reclm import tokenized_catalog
from recjax.run_files import read_json
from recjax.training import auxiliary_recommender, sequential
from recjax.training.continuation import Start
from recjax.training.workdir import Workdir, find_stage

RANKING_BLOCK = 1024  # histories whose whole rankings are held at once


def settings(cfg: ConfigDict) -> ConfigDict:
  """Everything in the config that decides the teacher. cfg: the run's config."""
  if cfg.teacher.source == 'train':
    return ConfigDict({'teacher': cfg.teacher, 'seed': cfg.seed})
  return ConfigDict({'teacher': {'source': cfg.teacher.source}})


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset, start: Start | None = None) -> dict:
  """Trains the teacher on the training part, or checks and takes over a trained one.

  work: of the stage. cfg: as `settings`. dataset: of the run. start: the earlier run, from whose
  teacher, where there is one, this one begins: it trains in full, but its item vectors stay in the
  space that RecLM-ret knows. -> counts
  """
  source, num_items = cfg.teacher.source, len(dataset.catalog)
  if source.startswith('http'):
    write_json(work.folder / 'served.json', {'url': source})
    return {'url': source}
  if source != 'train':
    return auxiliary_recommender.adopt(
      work, source, dataset, 'teacher.source',
      "the address of a served one (http://...), or 'train'")
  recommender_cfg, split = (
    auxiliary_recommender.settings(cfg.teacher, cfg.seed),
    splits.make_split(dataset))
  model = sequential.model_config(recommender_cfg, num_items)
  validate = ranking.validator(lambda p: sequential.scorer(model, p), split.valid, num_items, 1,
                               recommender_cfg.train.valid_users)
  old = find_stage(start.workdir, 'teacher') / 'model.npz' if start else None
  begin = sequential.load(old) if old and old.exists() else None
  return auxiliary_recommender.train(work, recommender_cfg, num_items, split, validate, begin)


def scorer(teacher_dir: Path, dataset: Dataset) -> Callable | None:
  """The teacher's scores of all items, or None where it is behind HTTP. teacher_dir: of the stage.
  dataset: of the run."""
  return (
    None
    if read_json(teacher_dir / 'served.json')
    else auxiliary_recommender.scorer(teacher_dir, len(dataset.catalog)))


def make_teacher(teacher_dir: Path, dataset: Dataset) -> Callable:
  """A function teach(histories, k, signs=None) -> (M, k) item indices, best first, none of the
  history, 0 behind.

  signs: '+CATEGORY' of each history for items of it alone, '-CATEGORY' for others. teacher_dir: of
  the stage. dataset: of the run.
  """
  score, num_items = scorer(teacher_dir, dataset), len(dataset.catalog)
  if score is None:
    url = read_json(teacher_dir / 'served.json')['url']
    return lambda histories, k, signs=None: ask_server(
      url, dataset.catalog, histories, k, signs=signs)

  def best(histories: Sequence, k: int) -> np.ndarray:
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(
      np.int64)
    flat = np.concatenate(histories).astype(np.int32)
    return ranking.top_items(score, flat, offsets, num_items, min(k, num_items))[0]

  def teach(histories: Sequence, k: int, signs: Sequence[str] | None = None) -> np.ndarray:
    if signs is None:
      return best(histories, k)
    masks, taught = category_masks(dataset.catalog), np.zeros((len(histories), k), np.int32)
    for start in range(0, len(histories), RANKING_BLOCK):
      order = best(histories[start:start + RANKING_BLOCK], num_items)
      for row, items, sign in zip(taught[start:], order, signs[start:]):
        chosen = items[masks[sign[1:]][items] == (sign[0] == '+')]
        chosen = chosen[chosen > 0][:k]
        row[:len(chosen)] = chosen
    return taught
  return teach


def category_masks(catalog: Catalog) -> dict[str, np.ndarray]:
  """(N + 1,) bool of each category, by item index; categories as in
  `tokenized_catalog.category_paths`.

  catalog: of the data set.
  """
  masks = {}
  for item, item_paths in enumerate(tokenized_catalog.category_paths(catalog), 1):
    for path in item_paths:
      masks.setdefault(path, np.zeros(len(catalog) + 1, bool))[item] = True
  return masks


def ask_server(url: str, catalog: Catalog, histories: Sequence, k: int, batch: int = 512,
               signs: Sequence[str] | None = None) -> np.ndarray:
  """Asks a served teacher, many histories a request. -> (M, k) int32

  histories, k: as in `make_teacher`. batch: histories of a request. url: of the server. signs: as
  in `make_teacher`. Raises DataError where it cannot be reached or names items that the catalog
  lacks.
  """
  taught = np.zeros((len(histories), k), np.int32)
  for start in range(0, len(histories), batch):
    histories_of_batch = histories[start : start + batch]
    answers = post(
      f'{url.rstrip("/")}/inference',
      {
        'users': [str(item) for item in range(len(histories_of_batch))],
        'item_lengths': [len(history) for history in histories_of_batch],
        'item_lists': [
          [catalog.id_of(int(item)) for item in history] for history in histories_of_batch],
        'k': k, 'immediately': 1,
        **({'target_category': signs[start:start + batch]} if signs else {})})['inference']
    for row, items in zip(taught[start:], answers):
      row[:len(items)] = [catalog.index(item) for item in items[:k]]
  return taught


def post(url: str, request: dict, timeout: float = 60) -> dict:
  """One JSON request. timeout: seconds.

  url: of the server. -> the answer. Raises DataError with what went wrong.
  """
  body = json.dumps(request).encode()
  call = urllib.request.Request(url, body, {'Content-Type': 'application/json'})
  try:
    with urllib.request.urlopen(call, timeout=timeout) as answer:
      return json.loads(answer.read())
  except urllib.error.HTTPError as error:
    raise DataError(f'{url} answered {error.code}: {error.read()[:200].decode(errors="replace")}'
                    ) from error
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f'{url} does not answer ({error}); start it with `recjax serve WORKDIR`, '
                    'or set teacher.source=train') from error
