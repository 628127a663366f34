"""Items that come after training: the tuned LLM writes their BETags, nothing is trained."""
import pathlib

from recjax.data import update
from recjax.data.formats import betag as files
from recjax.distributed import sharding
from recjax.errors import DataError
from recjax.methods.betag import base_tags as base_tags_lib
from recjax.methods.betag import generate, prompts
from recjax.run_files import read_json
from recjax.text import keywords
from recjax.training.workdir import find_stage, open_adopted

READ = (
  *base_tags_lib.TEXT_FIELDS,
  'tags',
)  # columns; an item is read again where one of them changed


def carried_on(workdir, config, shop, data, docs, option):
  """The documents of a later data set; those of items that are new, or say something else, made.

  shop, docs: what the run was trained on, and a weighted tag list an item. option: 'm,k', what
  validation chose. -> Dataset, docs. Raises DataError for an item without base tags.
  """
  known, shop = shop.catalog, update.load(data, shop.catalog, workdir)
  items = update.fresh(known, shop.catalog, READ)
  docs = docs + [[]] * (len(shop.catalog) - len(known))
  if not items:
    return shop, docs
  rows = written(workdir, config, shop, items)
  beams, most = map(int, option.split(','))
  how = config.select
  for i in items:
    docs[i - 1] = prompts.select(rows.get(shop.catalog.id_of(i), []), beams, most, how.casefold,
                              how.dedup_within_beam)
  return shop, docs


def written(workdir, config, shop, items):
  """Rows of tags of some items, base tags first, by the run's LLM; made once for a data set.

  -> {item id: [[tag]]}
  """
  weights = config.llm.weights
  llm = find_stage(workdir, 'llm') if weights == 'tiny' else pathlib.Path(weights)
  source = read_json(find_stage(workdir, 'base-tags') / 'DONE.json')['counts']['source']
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  how = config.copy_and_resolve_references()
  how.decode.batch += -how.decode.batch % mesh.size  # the devices here may be others
  with open_adopted(workdir, shop, mesh) as work:
    base = work.stage('base-tags', base_tags, config.tags, source, shop, items)
    if not files.read_tags(base / 'base_tags.json'):
      return {}
    raw = work.stage('generate', generate.stage, generate.settings(how), base, llm,
                     find_stage(workdir, 'tune'))
    parsed = work.stage('parse', generate.parse, generate.parsing(config), raw)
  return files.read_betags(parsed / 'raw_betags.json')


def base_tags(work, cfg, source, shop, items):
  """Writes base_tags.json of some items, from where the run's came from. -> counts

  Those of a file or an API are looked for in the column `tags`, then in the file.
  """
  ids = [shop.catalog.id_of(i) for i in items]
  if source == 'keywords':
    every = keywords.extract_tags(shop.catalog.columns, n=cfg.max_base_tags)
  else:
    every = shop.catalog.columns.get('tags') or [None] * len(shop.catalog)
  found = {name: every[i - 1] or () for name, i in zip(ids, items)}
  if source not in ('data', 'keywords'):
    more = files.read_tags(cfg.file) if cfg.source == 'file' else {}
    found = {name: own or more.get(name) for name, own in found.items()}
    lost = [name for name, own in found.items() if not own]
    if lost:
      raise DataError(f'{len(lost)} items have no base tags, e.g. {lost[0]}; those of the run came '
                      f'from {source}: give the new items of {shop.name} a column `tags`')
  on_empty = 'error' if cfg.on_missing == 'error' else 'drop'
  found, counts = files.clean_tags(found, 'base tags', cfg.sep, on_empty, cfg.on_bad_tag)
  files.write_tags(work.folder / 'base_tags.json', found)
  return {'items': len(found), **counts}
