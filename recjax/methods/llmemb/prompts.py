"""What the LLM reads of an item, and views of it without some attributes (llmemb.md 3, 4.1)."""
import dataclasses
import json

import numpy as np
from ml_collections import ConfigDict

from recjax.data.formats import llmemb as files
from recjax.errors import ConfigError, DataError
from recjax.file_io import write_json

UNKNOWN = 'title is unknown'
SEP, LINK = '; ', ' is '


@dataclasses.dataclass(frozen=True)
class Rules:
  """How records of one source become prompts.

  drop: columns left out. cap: characters of a value, 0 for all. first_path: of nested categories
  only the first. newline: what a line break becomes. none: lists that say 'none' when empty.
  """
  header: str = 'Describe this item by its attributes:'
  drop: tuple = ()
  cap: int = 100
  first_path: bool = False
  newline: str = ' '
  none: tuple = ()


RULES = {
    'any': Rules(),
    'beauty': Rules('Describe this beauty item by its attributes:',
                    ('related', 'imUrl', 'salesRank', 'asin'), first_path=True),
    'fashion': Rules('Describe this fashion item by its attributes:',
                     ('fit', 'also_buy', 'also_view', 'similar_item', 'image', 'imageURL',
                      'imageURLHighRes'), none=('description', 'feature', 'tech1')),
    'yelp': Rules('Describe this point of interest by its attributes:',
                  ('longitude', 'latitude'), cap=0, newline=', '),
}


def settings(cfg):
  """What of the config decides this stage's result."""
  return ConfigDict({**cfg.prompts, 'crude': cfg.defects.crude_values})


def stage(work, cfg, shop):
  """Writes item_str.jsonline, one prompt an item, and counts what had to be made up. -> counts"""
  ids = shop.catalog.ids
  prompts, without = texts_of(cfg, shop.catalog)
  files.write_prompts(work.folder / files.PROMPTS, ids, prompts)
  write_json(work.folder / 'report.json', {'items': len(ids), 'without_attributes': without})
  if without:
    work.log(f'    {len(without)} items have no attribute and read {UNKNOWN!r}, e.g. {without[0]}')
  return {'items': len(ids), 'without_attributes': len(without),
          'characters': round(float(np.mean([len(p) for p in prompts])), 1)}


def texts_of(cfg, goods):
  """The prompts of a Catalog. cfg: as `settings`. -> [text], ids of items without an attribute"""
  if cfg.rules not in RULES:
    raise ConfigError(f'prompts.rules={cfg.rules!r}; choose one of {", ".join(RULES)}')
  columns, ids = goods.columns, goods.ids
  given = columns.get('prompt')
  prompts, without = [], []
  for i, item in enumerate(ids):
    text = given[i] if given else None
    if not text:
      parts = attributes({k: v[i] for k, v in columns.items()}, RULES[cfg.rules], cfg.empty,
                         cfg.crude)
      without += [] if parts else [item]
      text = (cfg.header or RULES[cfg.rules].header) + '\n' + SEP.join(parts or [UNKNOWN])
    prompts.append(text)
  return prompts, without


def attributes(record, rules, empty='omit', crude=False):
  """'KEY is VALUE' for every column of an item that says something. -> [text]

  empty: 'omit' leaves a missing value out, 'none' writes none. crude: as released, values lose two
  more characters where they are cut, and texts in place of lists fall into letters.
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
      parts.append(f'{plain(key, rules)}{LINK}{text}')
  return parts


def value_text(key, value, rules, crude):
  """One value as a line of text without structure signs. -> '' where it says nothing"""
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
  text = plain(text, rules)
  if rules.cap and len(text) > rules.cap:
    text = text[:rules.cap - 2 if crude else rules.cap]
  return text


def plain(text, rules):
  """';' and line breaks part attributes, so no value may hold them."""
  return rules.newline.join(text.replace(';', '.').splitlines())


def read(folder):
  """The prompts of a finished stage, in item order. -> [text]"""
  return files.read_prompts(folder / files.PROMPTS)


def split(prompt, crude=False):
  """A prompt's header and its attributes. crude: as released, those up to the second line break
  alone, with the blanks that stand around them.

  Raises DataError for a prompt of one line.
  """
  header, broken, body = prompt.partition('\n')
  if not broken:
    raise DataError(f'prompt {prompt[:60]!r} has no line break behind its header')
  if crude:
    return header, body.partition('\n')[0].split(';')
  return header, [part.strip() for part in body.split(';') if part.strip()]


def view(prompt, ratio, rng, crude=False):
  """The prompt with its attributes in another order, the last floor(n * ratio) of them dropped.

  crude: as released, an item's only attribute is lost with the line break in front of it, and
  attributes keep their blanks: 'b; a' may follow as ' a;b'.
  """
  header, parts = split(prompt, crude)
  drop = int(np.floor(len(parts) * ratio + 1e-9))
  order = rng.permutation(len(parts))[:len(parts) - drop]
  if crude and len(parts) == 1:
    return header
  return header + '\n' + (';' if crude else SEP).join(parts[i] for i in order)


def views(prompt, ratio, seed, epoch, item, crude=False):
  """Two views of an item, a function of seed, epoch and item alone. -> (text, text)"""
  return tuple(view(prompt, ratio, np.random.default_rng((seed, epoch, item, side)), crude)
               for side in (0, 1))


def documents(folder, seed):
  """Texts that a tiny model learns to write: every prompt, and two views of it. -> [text]"""
  texts = read(folder)
  return [t for i, text in enumerate(texts) for t in (text, *views(text, 0.2, seed, 0, i))]
