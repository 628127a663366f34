"""Base tags: from the data, a file, the local keyword extractor, or an LLM behind an API."""
from recjax.data import splits
from recjax.data.formats import betag as files
from recjax.errors import ConfigError, DataError
from recjax.text import keywords, llm_api

SOURCES = ('auto', 'data', 'file', 'keywords', 'api')


def stage(work, cfg, shop):
  """Writes base_tags.json and inters.train.json, checked against each other. -> counts

  cfg: source, file, sep, most (tags an item), on_missing, escape, and the api_* settings.
  """
  found, counts = gather(work, cfg, shop)
  known = set(shop.catalog.ids)
  unknown = [i for i in found if i not in known]
  if unknown:
    counts['tags_of_unknown_items'] = len(unknown)
  found = {i: found[i] for i in shop.catalog.ids if i in found}
  train = split_of(shop).train
  sequences = [[shop.catalog.id_of(i) for i in train.history(u)] for u in range(len(train))]
  checked = files.check(sequences, found, sep=cfg.sep, on_missing=cfg.on_missing,
                        on_empty=cfg.on_missing, escape=cfg.escape)
  files.write_base_tags(work.folder / 'base_tags.json', checked.tags)
  files.write_interactions(work.folder / 'inters.train.json', checked.sequences)
  return {**counts, **checked.counts, 'items': len(checked.tags)}


def split_of(shop):
  """Leave-one-out; of BETag's own files, which hold training items only, the last item is held."""
  return splits.leave_one_out(shop.interactions,
                              holdout=1 if shop.notes.get('source') == 'betag' else 2)


def gather(work, cfg, shop):
  """-> ({item id: [tag]}, counts) from wherever `cfg.source` says."""
  own = shop.catalog.columns.get('tags')
  source = cfg.source
  if source == 'auto':
    source = 'data' if own else 'keywords'
  if source == 'data':
    if not own:
      raise DataError(f"{shop.name} has no column 'tags'; set --config.tags.source=keywords, or "
                      'file with --config.tags.file=base_tags.json')
    return dict(zip(shop.catalog.ids, own)), {'source': 'data'}
  if source == 'file':
    return files.read_base_tags(cfg.file), {'source': cfg.file}
  if source == 'keywords':
    lists = keywords.extract_tags(shop.catalog.columns, n=cfg.most)
    return dict(zip(shop.catalog.ids, lists)), {'source': 'keywords'}
  if source == 'api':
    return ask(work, cfg, shop)
  raise ConfigError(f'tags.source={source!r}; choose one of {", ".join(SOURCES)}')


def ask(work, cfg, shop):
  """Base tags from an OpenAI-compatible endpoint, as a job that survives a kill (betag 2.1)."""
  catalog = shop.catalog
  requests = {item: question({k: v[i] for k, v in catalog.columns.items()})
              for i, item in enumerate(catalog.ids)}
  api = llm_api.ApiConfig(
      base_url=cfg.api_url, model=cfg.api_model, n=cfg.api_samples, timeout=cfg.api_timeout,
      concurrency=cfg.api_concurrency, max_cost=cfg.api_budget, price_in=cfg.api_price_in,
      price_out=cfg.api_price_out)
  answers = llm_api.run_requests(requests, api, work.folder, log=work.say)
  tags = {item: llm_api.pool_samples([llm_api.parse_tag_list(t) for t in answer.texts],
                                     cap=cfg.most)
          for item, answer in answers.items() if answer.texts}
  return tags, {'source': cfg.api_url, 'failed': len(requests) - len(tags)}


def question(fields):
  """The messages that ask for one item's tags."""
  lines = []
  for name in ('title', 'brand', 'categories', 'description'):
    value = fields.get(name)
    if value:
      value = ', '.join(value) if isinstance(value, list) else value
      lines.append(f'{name}: {value}')
  return [
      {'role': 'system', 'content': 'You label products for a shop.'},
      {'role': 'user', 'content': '\n'.join([
          'Write short English tags for this product, of one to three words each, that help to '
          'recommend it. Answer with a numbered list and nothing else.', *lines])}]
