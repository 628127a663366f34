"""Items that come after training: the tuned LLM writes their BETags, nothing is trained."""
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from recjax.data import update
from recjax.data.dataset import Dataset
from recjax.data.formats import betag as files
from recjax.distributed import sharding
from recjax.errors import DataError
from recjax.methods.betag import base_tags as base_tags_lib
from recjax.methods.betag import generate, prompts
from recjax.run_files import read_json
from recjax.text import keywords
from recjax.training.workdir import Workdir, find_stage, open_later_work

READ = (
  *base_tags_lib.TEXT_FIELDS,
  'tags',
)  # columns; an item is read again where one of them changed


def carried_on(workdir: str | os.PathLike, config: ConfigDict, dataset: Dataset, data: str,
               docs: list[list], option: str) -> tuple[Dataset, list[list]]:
  """The documents of a later data set; those of items that are new, or say something else, made.

  dataset, docs: what the run was trained on, and a weighted tag list an item. option: 'm,k', what
  validation chose. workdir: the run's folder. config: the run's config. -> Dataset, docs. Raises
  DataError for an item without base tags.
  """
  known, dataset = dataset.catalog, update.load_continuation(data, dataset.catalog, workdir)
  items = update.changed_items(known, dataset.catalog, READ)
  docs = docs + [[]] * (len(dataset.catalog) - len(known))
  if not items:
    return dataset, docs
  rows = written(workdir, config, dataset, items)
  beams, most = map(int, option.split(','))
  select = config.select
  for i in items:
    docs[i - 1] = prompts.select(rows.get(dataset.catalog.id_of(i), []), beams, most,
                                 select.casefold, select.dedup_within_beam)
  return dataset, docs


def written(workdir: str | os.PathLike, config: ConfigDict, dataset: Dataset,
            items: list[int]) -> dict[str, list[list[str]]]:
  """Rows of tags of some items, base tags first, by the run's LLM; made once for a data set.

  workdir: the run's folder. config: the run's config. dataset: the data set. -> {item id: [[tag]]}
  """
  weights = config.llm.weights
  llm = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  source = read_json(find_stage(workdir, 'base-tags') / 'DONE.json')['counts']['source']
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  generation_config = config.copy_and_resolve_references()
  decode = generation_config.decode
  decode.batch += -decode.batch % mesh.size  # the devices here may be others
  with open_later_work(workdir, dataset, mesh) as work:
    base = work.stage('base-tags', base_tags, config.tags, source, dataset, items)
    if not files.read_tags(base / 'base_tags.json'):
      return {}
    raw = work.stage('generate', generate.stage, generate.settings(generation_config), base, llm,
                     find_stage(workdir, 'tune'))
    parsed = work.stage('parse', generate.parse, generate.parsing(config), raw)
  return files.read_betags(parsed / 'raw_betags.json')


def base_tags(work: Workdir, cfg: ConfigDict, source: str, dataset: Dataset,
              items: list[int]) -> dict[str, Any]:
  """Writes base_tags.json of some items, from where the run's came from. -> counts

  Those of a file or an API are looked for in the column `tags`, then in the file. work: the
  Workdir. cfg: the group `tags`. source: where the run's tags came from. dataset: the data set.
  """
  ids = [dataset.catalog.id_of(i) for i in items]
  if source == 'keywords':
    all_tags = keywords.extract_tags(dataset.catalog.columns, n=cfg.max_base_tags)
  else:
    all_tags = dataset.catalog.columns.get('tags') or [None] * len(dataset.catalog)
  tags = {name: all_tags[i - 1] or () for name, i in zip(ids, items)}
  if source not in ('data', 'keywords'):
    more = files.read_tags(cfg.file) if cfg.source == 'file' else {}
    tags = {name: item_tags or more.get(name) for name, item_tags in tags.items()}
    lost = [name for name, item_tags in tags.items() if not item_tags]
    if lost:
      raise DataError(f'{len(lost)} items have no base tags, e.g. {lost[0]}; those of the run came '
                      f'from {source}: give the new items of {dataset.name} a column `tags`')
  on_empty = 'error' if cfg.on_missing == 'error' else 'drop'
  tags, counts = files.clean_tags(tags, 'base tags', cfg.sep, on_empty, cfg.on_bad_tag)
  files.write_tags(work.folder / 'base_tags.json', tags)
  return {'items': len(tags), **counts}
