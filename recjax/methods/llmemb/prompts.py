"""What the LLM reads of an item, and views of it without some attributes.

Liu et al., AAAI 2025, arXiv 2409.19925; the wording is that of the released code
(github.com/liuqidong07/LLMEmb).
"""
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from recjax.data.dataset import Catalog, Dataset
from recjax.data.formats import llmemb as files
from recjax.errors import ConfigError, DataError
from recjax.file_io import write_json
from recjax.training.workdir import Workdir

UNKNOWN = 'title is unknown'
SEPARATOR, LINK = '; ', ' is '


@dataclasses.dataclass(frozen=True)
class Rules:
  """How records of one source become prompts.

  header: the first line. drop: columns left out. cap: characters of a value, 0 for all. first_path:
  of nested categories only the first. newline: what a line break becomes. none: lists that say
  'none' when empty.
  """
  header: str = 'Describe this item by its attributes:'
  drop: tuple[str, ...] = ()
  cap: int = 100
  first_path: bool = False
  newline: str = ' '
  none: tuple[str, ...] = ()


RULES = {
    'any': Rules(),
    'beauty': Rules('Describe this beauty item by its attributes:',
                    ('related', 'imUrl', 'salesRank', 'asin'), first_path=True),
    'fashion': Rules('Describe this fashion item by its attributes:',
                     ('fit', 'also_buy', 'also_view', 'similar_item', 'image', 'imageURL',
                      'imageURLHighRes'), none=('description', 'feature', 'tech1')),
    'yelp': Rules('Describe this point of interest by its attributes:',
                  ('longitude', 'latitude'), cap=0, newline=', ')}


def settings(cfg: ConfigDict) -> ConfigDict:
  """What of the config decides this stage's result. cfg: the run's config."""
  return ConfigDict({**cfg.prompts, 'crude': cfg.reproduce_bugs.crude_values})


def stage(work: Workdir, cfg: ConfigDict, dataset: Dataset) -> dict:
  """Writes item_str.jsonline, one prompt an item, and counts what had to be made up. work: of the
  stage. cfg: as `settings`. dataset: of the run. -> counts"""
  ids = dataset.catalog.ids
  prompts, bare_items = item_prompts(cfg, dataset.catalog)
  files.write_prompts(work.folder / files.PROMPTS, ids, prompts)
  write_json(work.folder / 'report.json', {'items': len(ids), 'without_attributes': bare_items})
  if bare_items:
    work.log(
      f'    {len(bare_items)} items have no attribute and read {UNKNOWN!r}, e.g. {bare_items[0]}')
  return {
    'items': len(ids), 'without_attributes': len(bare_items),
    'characters': round(float(np.mean([len(prompt) for prompt in prompts])), 1)}


def item_prompts(cfg: ConfigDict, catalog: Catalog) -> tuple[list[str], list[str]]:
  """The prompts of a catalog.

  cfg: as `settings`. -> prompts, ids of items without an attribute. Raises ConfigError for rules
  that are not known.
  """
  if cfg.rules not in RULES:
    raise ConfigError(f'prompts.rules={cfg.rules!r}; choose one of {", ".join(RULES)}')
  columns, ids = catalog.columns, catalog.ids
  written_prompts = columns.get('prompt')
  prompts, bare_items = [], []
  for i, item in enumerate(ids):
    text = written_prompts[i] if written_prompts else None
    if not text:
      item_attributes = attributes(
        {column: values[i] for column, values in columns.items()}, RULES[cfg.rules], cfg.empty,
        cfg.crude)
      bare_items += [] if item_attributes else [item]
      text = (
        (cfg.header or RULES[cfg.rules].header)
        + '\n'
        + SEPARATOR.join(item_attributes or [UNKNOWN]))
    prompts.append(text)
  return prompts, bare_items


def attributes(record: dict, rules: Rules, empty: str = 'omit', crude: bool = False) -> list[str]:
  """'KEY is VALUE' for every column of an item that says something.

  rules: of the source. record: {column: value}. empty: 'omit' leaves a missing value out, 'none'
  writes none. crude: as released, values lose two more characters where they are cut, and texts in
  place of lists fall into letters.
  """
  if empty not in ('omit', 'none'):
    raise ConfigError(f"prompts.empty={empty!r}; choose 'omit' or 'none'")
  parts = []
  for key, value in record.items():
    if key in rules.drop or key == 'retired':  # that says nothing about what it is
      continue
    text = value_text(key, value, rules, crude)
    if not text and (empty == 'none' or key in rules.none and value is not None):
      text = 'none'
    if text:
      parts.append(f'{sanitize(key, rules)}{LINK}{text}')
  return parts


def value_text(key: str, value: Any, rules: Rules, crude: bool) -> str:
  """One value as a line of text without structure signs; '' where it says nothing.

  key: the column. rules, crude: as in `attributes`.
  """
  if value is None or value == '' or value == []:
    return ''
  if key == 'categories' and rules.first_path and isinstance(value, list) and value \
      and isinstance(value[0], list):
    value = value[0]
  if crude and isinstance(value, str) and key in rules.none:
    value = list(value)
  if isinstance(value, list):
    value = ', '.join(str(v) for v in value if v not in (None, ''))
  text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
  text = sanitize(text, rules)
  if rules.cap and len(text) > rules.cap:
    text = text[:rules.cap - 2 if crude else rules.cap]
  return text


def sanitize(text: str, rules: Rules) -> str:
  """';' and line breaks part attributes, so no value may hold them.

  text: a value. rules: of the source.
  """
  return rules.newline.join(text.replace(';', '.').splitlines())


def read(folder: Path) -> list[str]:
  """The prompts of a finished stage, in item order. folder: of the stage."""
  return files.read_prompts(folder / files.PROMPTS)


def split(prompt: str, crude: bool = False) -> tuple[str, list[str]]:
  """A prompt's header and its attributes.

  crude: as released, those up to the second line break alone, with the blanks that stand around
  them. Raises DataError for a prompt of one line.
  """
  header, broken, body = prompt.partition('\n')
  if not broken:
    raise DataError(f'prompt {prompt[:60]!r} has no line break behind its header')
  if crude:
    return header, body.partition('\n')[0].split(';')
  return header, [part.strip() for part in body.split(';') if part.strip()]


def view(prompt: str, ratio: float, rng: np.random.Generator, crude: bool = False) -> str:
  """The prompt with its attributes in another order, the last floor(n * ratio) of them dropped.

  crude: as released, an item's only attribute is lost with the line break in front of it, and
  attributes keep their blanks: 'b; a' may follow as ' a;b'. rng: of the order. prompt: as
  `item_prompts` makes it. ratio: share of attributes dropped.
  """
  header, parts = split(prompt, crude)
  num_dropped = int(np.floor(len(parts) * ratio + 1e-9))
  order = rng.permutation(len(parts))[:len(parts) - num_dropped]
  if crude and len(parts) == 1:
    return header
  return header + '\n' + (';' if crude else SEPARATOR).join(parts[i] for i in order)


def views(prompt: str, ratio: float, seed: int, epoch: int, item: int,
          crude: bool = False) -> tuple[str, str]:
  """Two views of an item, a function of seed, epoch and item alone.

  prompt, ratio, crude: as in `view`.
  """
  return tuple(view(prompt, ratio, np.random.default_rng((seed, epoch, item, side)), crude)
               for side in (0, 1))


def documents(folder: Path, seed: int) -> list[str]:
  """Texts that a tiny model learns to write: every prompt, and two views of it. folder: of the
  stage. seed: of the views."""
  texts = read(folder)
  return [
    document
    for item, text in enumerate(texts)
    for document in (text, *views(text, 0.2, seed, 0, item))]
