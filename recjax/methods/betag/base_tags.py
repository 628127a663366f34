"""Base tags: from the data, a file, the local keyword extractor, or an LLM behind an API."""
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax.data import splits
from recjax.data.dataset import Dataset
from recjax.data.formats import betag as files
from recjax.data.splits import Split
from recjax.errors import ConfigError, DataError
from recjax.methods.betag import prompts
from recjax.text import keywords, tag_parsing
from recjax.training import paid_answers, tiny_llm
from recjax.training.workdir import Workdir

TEXT_FIELDS = ('title', 'brand', 'categories', 'description')

# A product of no catalog: small models keep to a form that they have seen.
EXAMPLE = {'title': 'PowerPack Propane Gas Camping Stove, 1-Burner', 'brand': 'Coleman',
           'categories': ['Sports & Outdoors', 'Camping & Hiking', 'Camp Stoves']}
EXAMPLE_TAGS = ('camping stove', 'propane', 'portable', 'outdoor cooking', 'single burner',
                'camp kitchen')

SOURCES = ('auto', 'data', 'file', 'keywords', 'api')


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset) -> dict[str, Any]:
  """Writes base_tags.json and inters.train.json, checked against each other. -> counts

  cfg: source, file, sep, max_base_tags, on_missing, on_bad_tag, and the api_* settings. work: the
  Workdir. dataset: the data set.
  """
  tags, counts = gather(work, cfg, dataset)
  known = set(dataset.catalog.ids)
  counts['tags_of_unknown_items'] = sum(i not in known for i in tags)
  tags = {i: tags[i] for i in dataset.catalog.ids if i in tags}
  on_empty = 'error' if cfg.on_missing == 'error' else 'drop'
  tags, cleaned = files.clean_tags(tags, 'base tags', cfg.sep, on_empty, cfg.on_bad_tag)
  train = split_of(dataset).train
  sequences = [[dataset.catalog.id_of(i) for i in train.history(u)] for u in range(len(train))]
  sequences, matched = files.match_tags(sequences, tags, 'base tags', cfg.on_missing)
  files.write_tags(work.folder / 'base_tags.json', tags)
  integers = all(str(int(i)) == i if i.isdecimal() else False for i in known)
  files.write_sequences(work.folder / 'inters.train.json', sequences, integers)
  return {**counts, **cleaned, **matched, 'items': len(tags)}


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides the base tags. cfg: the run's config."""
  if cfg.tags.source == 'api':
    return cfg.tags
  younger = ('api_max_tokens', 'api_failure_ratio')  # than the others: runs of before stay valid
  return ConfigDict({name: value for name, value in cfg.tags.items() if name not in younger})


def split_of(dataset: Dataset) -> Split:
  """By the data set's rule; of BETag's own files, which hold training items only, the last item is
  held out alone.

  dataset: the data set.
  """
  if dataset.split_rule.default and dataset.notes.get('source') == 'betag':
    return splits.leave_one_out(dataset.interactions, holdout=1)
  return splits.make_split(dataset)


def gather(work: Workdir, cfg: ConfigDict,
           dataset: Dataset) -> tuple[dict[str, list[str]], dict[str, Any]]:
  """Base tags from wherever `cfg.source` says.

  work: the Workdir. cfg: the group `tags`. dataset: the data set. -> {item id: [tag]}, counts.
  Raises DataError where there are none, ConfigError for an unknown source.
  """
  tag_column = dataset.catalog.columns.get('tags')
  source = cfg.source
  if source == 'auto':
    source = 'data' if tag_column else 'keywords'
  if source == 'data':
    if not tag_column:
      raise DataError(f"{dataset.name} has no column 'tags'; set --config.tags.source=keywords, or "
                      'file with --config.tags.file=base_tags.json')
    return dict(zip(dataset.catalog.ids, tag_column)), {'source': 'data'}
  if source == 'file':
    return files.read_tags(cfg.file), {'source': cfg.file}
  if source == 'keywords':
    lists = keywords.extract_tags(dataset.catalog.columns, n=cfg.max_base_tags)
    return dict(zip(dataset.catalog.ids, lists)), {'source': 'keywords'}
  if source == 'api':
    return ask(work, cfg, dataset)
  raise ConfigError(f'tags.source={source!r}; choose one of {", ".join(SOURCES)}')


def ask(work: Workdir, cfg: ConfigDict,
        dataset: Dataset) -> tuple[dict[str, list[str]], dict[str, Any]]:
  """Base tags from an OpenAI-compatible endpoint, as a job that survives a kill.

  Answers are kept in the run's folder answers/, whatever becomes of the stage: another budget or
  another number of tags asks for nothing twice. work: the Workdir. cfg: the group `tags`. dataset:
  the data set.
  """
  catalog = dataset.catalog
  requests = {item: question({k: v[i] for k, v in catalog.columns.items()})
              for i, item in enumerate(catalog.ids)}
  answers = paid_answers.ask(work, cfg, requests, 'ask for tags', 'item')
  tags = {item: tag_parsing.pool_samples(
      [_tags_of(text, cut, cfg.sep) for text, cut in zip(answer.texts, answer.cut)],
      cfg.max_base_tags) for item, answer in answers.items() if answer.texts}
  unnumbered = sum(not all(map(tag_parsing.is_numbered, a.texts)) for a in answers.values())
  return tags, {'source': cfg.api_url, 'failed': len(requests) - len(tags),
                'without_numbered_list': unnumbered,
                'cut_at_max_tokens': sum(any(a.cut) for a in answers.values())}


def _tags_of(text, cut, sep):
  """Tags of one answer, as a line can hold them: nobody can ask a model to mend its own."""
  tags = (files.escape_tag(tag, sep) for tag in tag_parsing.parse_tag_list(text, cut))
  return [tag for tag in tags if tag]


def question(fields: dict[str, Any]) -> list[dict[str, str]]:
  """The messages that ask for one item's tags, with another one answered before. fields: an item's
  columns."""
  answer = '\n'.join(f'{number}. {tag}' for number, tag in enumerate(EXAMPLE_TAGS, 1))
  return [{'role': 'system', 'content': 'You label products for a shop.'},
          {'role': 'user', 'content': _request(EXAMPLE)},
          {'role': 'assistant', 'content': answer}, {'role': 'user', 'content': _request(fields)}]


def _request(fields):
  lines = []
  for name in TEXT_FIELDS:
    value = fields.get(name)
    if value:
      value = ', '.join(value) if isinstance(value, list) else value
      lines.append(f'{name}: {value}')
  return '\n'.join([
      'Write short English tags for this product, of one to three words each, that help to '
      'recommend it. Answer with a numbered list and nothing else.', *lines])


def documents(dataset: Dataset, base: pathlib.Path, seed: int, walks: int = 8,
              longest: int = 12) -> list[str]:
  """Texts that the tiny model learns to write before it sees any behavior. -> list of texts

  Each item's own text and tags; and lists in the format of the prompts that wander from an item to
  a similar one, so that the model learns to look back at earlier lines. Nothing of what users did.
  dataset: the data set. base: folder of the stage 'base-tags'. seed: of the walks. walks: how often
  the lists go through all items. longest: items of a list.
  """
  tags = files.read_tags(base / 'base_tags.json')
  out = []
  for i, item in enumerate(dataset.catalog.ids):
    fields = {k: v[i] for k, v in dataset.catalog.columns.items() if k in TEXT_FIELDS and v[i]}
    prose = [', '.join(v) if isinstance(v, list) else str(v) for v in fields.values()]
    out.append('\n'.join([*prose, prompts.item_line(1, tags.get(item, ()), '| ')]))
  rng = np.random.default_rng((seed, len(tags)))
  for _ in range(walks):
    lists = list(tags.values())
    order = [lists[i] for i in tiny_llm.similarity_walk(lists, rng)]
    for start in range(0, len(order), longest):
      lines = [prompts.item_line(n, [t[j] for j in rng.permutation(len(t))], '| ')
               for n, t in enumerate(order[start:start + longest], 1)]
      out.append(prompts.HEADING + '\n'.join(lines))
  return out
