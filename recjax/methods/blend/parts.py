"""The parts of a blend: runs by their place, classical rows by their name; what they must share."""
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recjax import methods, run_files
from recjax import settings as settings_lib
from recjax.data import array_record, splits
from recjax.data.dataset import Catalog, Dataset, Interactions
from recjax.data.splits import Split
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation import classical, ranking
from recjax.evaluation.recommender import CatalogRecommender

ROW = 'classical:'  # what a part begins with that is a row
RESERVED = ('blend', 'popularity', 'recency', 'random', *classical.GRIDS)
LIST = 20  # items of a list of a part that says nothing of its search


@dataclasses.dataclass(frozen=True)
class Part:
  """One part as it stands on disk.

  ref: as the config has it: the place of a run as seen from the blend's folder, or classical:NAME.
  name: of its row in the tables. path: of the run, None for a row. version: as of
  `run_files.version`, '' for a row. protocol, data: what its results.json says.
  """
  ref: str
  name: str
  path: pathlib.Path | None = None
  version: str = ''
  protocol: str = ''
  data: str = ''

  @property
  def is_run(self) -> bool:
    """Whether it is a run, and not a classical row."""
    return self.path is not None


def read(workdir: str | os.PathLike, refs: Sequence[str]) -> list[Part]:
  """The parts of a blend.

  workdir: of the blend, which need not be there yet. refs: of the config. Raises ConfigError for
  fewer than two parts, none that is a run, an unknown row or one that stands twice, WorkdirError
  where a run is missing or not finished.
  """
  if len(refs) < 2:
    raise ConfigError(f'a blend mixes two parts or more, and {", ".join(refs) or "none"} is named; '
                      f'add a run, or a row, e.g. {ROW}id_text')
  if twice := sorted({ref for ref in refs if list(refs).count(ref) > 1}):
    raise ConfigError(f'{", ".join(twice)} is named twice; name each part once')
  places = [None if ref.startswith(ROW) else place_of(workdir, ref) for ref in refs]
  if not any(places):
    raise ConfigError(f'{", ".join(refs)}: name a run too, which says what the data are and how '
                      'they are split')
  taken = [path.name for path in places if path]
  parts = []
  for ref, path in zip(refs, places):
    if path is None:
      parts.append(Part(ref, row_of(ref)))
    else:
      odd = taken.count(path.name) > 1 or path.name in RESERVED or ':' in path.name
      parts.append(run_part(ref, path, ref.replace(':', '_') if odd else path.name))
  check_alike(parts)
  return parts


def place_of(workdir: str | os.PathLike, ref: str) -> pathlib.Path:
  """Where a part of the blend in `workdir` lies. ref: the run as seen from there."""
  return pathlib.Path(os.path.normpath(pathlib.Path(workdir).resolve() / ref))


def ref_of(workdir: str | os.PathLike, part: str) -> str:
  """How the config of the blend in `workdir` names a part, so that it stays true where folders move
  together. part: a run's folder as seen from here, or classical:NAME."""
  if part.startswith(ROW):
    return part
  return os.path.relpath(pathlib.Path(part).resolve(), pathlib.Path(workdir).resolve())


def row_of(ref: str) -> str:
  """The classical row that a part names. ref: of it. Raises ConfigError where there is none."""
  row = ref.removeprefix(ROW)
  if row not in classical.GRIDS:
    raise ConfigError(f'{ref} is no row that there is; choose one of '
                      f'{", ".join(ROW + known for known in classical.GRIDS)}')
  return row


def run_part(ref: str, path: pathlib.Path, name: str) -> Part:
  """The part that is a run. ref, name: as of `Part`. path: of the run. Raises WorkdirError where it
  is none or not finished."""
  config = run_files.read_config(path)['config']
  methods.find(config['method'], f'{path}/config.json')
  if array_record.is_record_folder(config['data']):
    raise ConfigError(f'{path} was trained on records, whose users are numbers on disk; a blend '
                      'mixes runs of data sets that fit into memory')
  if not (path / 'results.json').is_file():
    raise WorkdirError(f'{path} holds no results.json, so no run has ended there; run its '
                       'experiment to the end first')
  results = run_files.need_json(path / 'results.json')
  return Part(ref, name, path, run_files.version(path), str(results['protocol']),
              str(results['data_fingerprint']))


def check_alike(parts: Sequence[Part]) -> None:
  """Raises ConfigError where runs are not of one data set, split and protocol. parts: of a blend.
  Of a protocol everything counts but how many users were asked."""
  first, *others = [part for part in parts if part.is_run]
  for part in others:
    for what, of_part in (('protocol', lambda p: splits.with_num_cases(p.protocol, 'so many')),
                          ('data set (by its fingerprint)', lambda p: p.data)):
      if of_part(part) != of_part(first):
        raise ConfigError(f'{first.path} and {part.path} differ in their {what}, so they cannot be '
                          f'mixed: {of_part(first)}; {of_part(part)}')


def check_data(parts: Sequence[Part], dataset: Dataset) -> None:
  """Raises DataError where the data are not those that the runs were trained on. parts: of the
  blend. dataset: the data set now."""
  for part in parts:
    if part.is_run and part.data != dataset.fingerprint:
      raise DataError(f'{dataset.name} has changed since {part.path} was made (its fingerprint is '
                      f'now {dataset.fingerprint[:12]}); run that experiment again')


def check_unchanged(workdir: str | os.PathLike, parts: Sequence[Part],
                    saved: Mapping[str, str]) -> None:
  """Raises WorkdirError where a part was trained again since. workdir: of the blend. parts: as they
  are now. saved: {ref: version} as they were."""
  for part in parts:
    if part.version != saved.get(part.ref):
      raise WorkdirError(f'{part.path} was trained again since {workdir} was made of it, whose '
                         'weights were chosen for what it was; run the `recjax blend` command of '
                         'that folder again, which chooses and ranks anew')


def found(workdir: str | os.PathLike, refs: Sequence[str]) -> list[Part]:
  """The parts of a blend that was made before. workdir: of it. refs: of its config. Raises
  WorkdirError where one is missing, and as `read` does."""
  for ref in refs:
    path = None if ref.startswith(ROW) else place_of(workdir, ref)
    if path and not path.is_dir():
      raise WorkdirError(
          f'{workdir} mixes the run {path.name}, which is not there: it was looked for at {path}. '
          'A blend finds its parts by their place beside it; copy that run there too, or run '
          '`recjax blend` again where the parts are')
  return read(workdir, refs)


def split_of(parts: Sequence[Part], split: Split, n_items: int,
             mask_history: bool) -> tuple[Split, str]:
  """The split with the test cases that every run of the parts has ranked, and their protocol.

  parts: of the blend. split: of the config. n_items: of the catalog. mask_history: as runs do. ->
  split, sentence. Raises ConfigError where the runs ranked under another protocol.
  """
  runs = [part for part in parts if part.is_run]
  counts = [splits.num_cases(part.protocol) or len(split.test) for part in runs]
  rows, sentence = splits.sample_cases(split.test, min(counts), split.protocol)
  protocol = ranking.protocol(n_items, sentence, mask_history)
  fewest = runs[int(np.argmin(counts))]
  if fewest.protocol != protocol:
    raise ConfigError(f'{fewest.path} was ranked under another protocol than a blend is: '
                      f'{fewest.protocol}; the blend: {protocol}')
  test = split.test if len(rows) == len(split.test) else split.test.select(rows)
  return dataclasses.replace(split, test=test, protocol=sentence), protocol


def opened(part: Part, train: Interactions, catalog: Catalog, settings: Mapping[str, Any],
           data: str | None = None) -> CatalogRecommender:
  """What a part recommends with.

  part: of the blend. train: sequences that a row learns from. catalog: of the items.
  settings: of classical rows by their names. data: a later data set, None for the run's. Raises
  DataError where its items are others than the catalog's.
  """
  if not part.is_run:
    score = classical.fitted(train, classical.titles(catalog), part.name, settings)
    return ranking.recommender(score, catalog)
  method = methods.find(run_files.read_config(part.path)['config']['method'], part.path)
  with run_files.opening(part.path), settings_lib.reading(part.path):
    recommender = method.recommender(part.path, data)
  if recommender.catalog.ids != catalog.ids:
    raise DataError(f'{part.path} knows other items than the rest of the blend, or in another '
                    'order; train it again on these data')
  return recommender


def list_size(recommender: CatalogRecommender, n_items: int) -> int:
  """Items that a part without scores of the whole catalog is asked for. recommender: of the part.
  n_items: of the catalog."""
  return min(recommender.list_size or LIST, n_items)
