"""Tags from a catalog's own words: brand, categories, and the phrases that tell items apart.

Deterministic, local, and for a whole catalog at once, because a phrase is judged by the company
it keeps: how many items share it, whether it appears in titles, whether it holds together as a
phrase, and whether its last word is one that phrases end with.
"""
import collections
import functools
import html
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from recjax.errors import DataError
from recjax.text import prompt_templates

BRANDS = ('brand', 'manufacturer', 'author', 'artist', 'developer', 'publisher')
CATEGORIES = ('categories', 'category', 'genres', 'genre', 'tags')
TITLES = ('title', 'name')

_NOBODY = frozenset(('', 'unknown', 'generic', 'n/a', 'na', 'none', 'unbranded', 'no brand', 'by'))

_MARKUP = re.compile(r'<[^<>]{1,80}>|/>')
_WORD = re.compile(r"[^\W_]+(?:[-'’&][^\W_]+)*|[^\w\s]|_")
_SHORT_NAME = re.compile(r'(?:[a-z]\d{1,2}|\d[a-z])$')  # m3, 3d: names, unlike 42mm or a1203ux
_CHAIN = re.compile(r'[^\W_]+(?:-[^\W_]+)+')
_PATH = re.compile(r'\s*[>|;]\s*')
_UNFIT = re.compile(r'[|,\s]+')


@functools.cache
def _words(part):
  """A list of templates/keywords.txt: words that are in no phrase ('stop'), 'measures' and packing,
  which end a phrase and begin none, 'weak' ones, which say something only beside another, and forms
  of a 'company', which end the name of a brand."""
  return frozenset(prompt_templates.read('keywords', 'recjax.text', {part: ()})[part].split())


def extract_tags(columns: Mapping[str, Sequence], n: int = 10, exclude: Iterable[str] = ()
                 ) -> list[list[str]]:
  """At most n tags for each item, most telling first: brand, categories leaf first, key phrases.

  columns: name -> one value per item, each None, text, a number, or a list of texts. Columns are
  understood by their names (BRANDS, CATEGORIES, TITLES); other text columns are descriptions.
  exclude: names of columns to leave out. Tags are lower case, distinct, and hold no ',', '|' or
  new line. An item with any text has at least one tag. Raises DataError on uneven columns.
  """
  used = {name: values for name, values in columns.items() if name not in exclude}
  sizes = {name: len(values) for name, values in used.items()}
  if len(set(sizes.values())) > 1:
    raise DataError(f'columns differ in length: {sizes}; give one value per item in each')
  items = [_read(used, i) for i in range(max(sizes.values(), default=0))]
  common = _common_categories(items)
  statistics = _Statistics(items)
  return [_choose(item, statistics, common, n) for item in items]


def phrases(text: str) -> list[list[str]]:
  """Stretches of lower-case words that a phrase may be cut from: no stop words, numbers, codes.
  text: as written."""
  return _runs(_plain(text))


class _Item:
  """One row read: brand, categories leaf first, and word runs of title and description."""

  def __init__(self):
    self.brand, self.categories, self.titles, self.texts, self.anything = '', [], [], [], ''


def _read(columns, row):
  item = _Item()
  for name, values in columns.items():
    texts = [_plain(text) for text in _texts(values[row])]
    texts = [text for text in texts if text.strip()]
    if not texts:
      continue
    if name in BRANDS:
      item.brand = item.brand or _brand(texts[0])
    elif name in CATEGORIES:
      parts = [part for text in texts for part in _PATH.split(text)]
      item.categories += [tag for tag in map(_tag, reversed(parts)) if tag]
    elif name in TITLES:
      item.titles += _runs('\n'.join(texts))
    else:
      item.texts += _runs('\n'.join(texts))
    if name in TITLES or not item.anything:
      item.anything = texts[0]
  return item


def _texts(value):
  """Texts of one cell; numbers and None say nothing as tags."""
  if isinstance(value, str):
    return [] if value.startswith(('http://', 'https://')) else [value]
  if isinstance(value, (list, tuple)):
    return [text for part in value for text in _texts(part)]
  return []


def _plain(text):
  return _MARKUP.sub(' . ', html.unescape(text)).lower() if text else ''


def _tag(text):
  """Text as a tag: one line, no separators, no loose punctuation, at most 60 characters."""
  return _UNFIT.sub(' ', text)[:60].strip(' .;:!?"\'*-_/\\')


def _brand(text):
  words = _tag(text).removeprefix('by ').split()
  while len(words) > 1 and words[-1].strip('.') in _words('company'):
    words.pop()
  tag = _tag(' '.join(words))
  return '' if tag in _NOBODY else tag


def _split(text):
  return _WORD.findall(_CHAIN.sub(_unchain, text))


def _unchain(match):
  """heat-shrink is two words, write-on and x-ray are one, sml-c125-500 is none."""
  parts, lists = match[0].split('-'), (_words('stop'), _words('measures'))
  if any(letter.isdigit() for letter in match[0]):
    return ' . '
  whole = any(len(part) == 1 or any(part in words for words in lists) for part in parts)
  return match[0] if whole else ' '.join(parts)


def _runs(text):
  """Stretches of words that a phrase may be cut from: no stop word, number, measure or code."""
  runs, run = [], []
  for word in _split(text):
    if _speaks(word):
      run.append(word)
    elif run:
      runs.append(run)
      run = []
  return runs + [run] if run else runs


@functools.lru_cache(maxsize=1 << 16)
def _speaks(word):
  if word in _words('stop') or word in _words('measures') or not word[0].isalnum():
    return False
  if any(letter.isdigit() for letter in word):
    return _SHORT_NAME.match(word) is not None
  return len(word) > 1 or word > '\u2e80'  # one letter says nothing, one ideograph may


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
  """Folds plurals, roughly: only used to see whether two tags say the same. word: in lower case."""
  if len(word) > 4 and word.endswith('ies'):
    return word[:-3] + 'y'
  if len(word) > 4 and word.endswith(('ches', 'shes', 'xes', 'sses')):
    return word[:-2]
  return word[:-1] if len(word) > 3 and word.endswith('s') and word[-2] not in 'su' else word


def _stems(tag):
  return {stem(word) for word in _split(tag) if word[0].isalnum()}


def _common_categories(items):
  """Categories that most items share, such as the name of the shop's department."""
  counts = collections.Counter(tag for item in items for tag in set(item.categories))
  holders = sum(bool(item.categories) for item in items)
  return {tag for tag, count in counts.items() if count > max(0.6 * holders, 2)}


class _Statistics:
  """How often phrases of one to three words stand in items, in titles, and inside longer ones."""

  def __init__(self, items):
    self.n = len(items)
    self.df, self.title_df, self.end_df, self.longer = {}, {}, {}, {}
    self.words, self.ends = collections.Counter(), collections.Counter()
    for item in items:
      for run in itertools.chain(item.titles, item.texts):
        self.words.update(run)
        self.ends[run[-1]] += 1
    for size in (1, 2, 3):  # longer phrases only of parts that occur twice
      self._count(items, size)
    self.titled = any(item.titles for item in items)

  def _count(self, items, size):
    found, titled, ended = (collections.Counter() for _ in range(3))
    for item in items:
      in_title = {phrase: ends for _, ends, phrase in self.phrases(item.titles, size)}
      titled.update(in_title.keys())
      for _, ends, phrase in self.phrases(item.texts, size):
        in_title[phrase] = ends or in_title.get(phrase, False)
      found.update(in_title.keys())
      ended.update(phrase for phrase, ends in in_title.items() if ends)
    for phrase, count in found.items():
      if count > 1:
        self.df[phrase] = count
        self.title_df[phrase], self.end_df[phrase] = titled[phrase], ended[phrase]
        for part in (phrase[1:], phrase[:-1]) if size > 1 else ():
          self.longer[part] = max(count, self.longer.get(part, 0))

  def phrases(self, runs: Iterable, size: int) -> Iterator[tuple]:
    """(position, ends its run, words) of each phrase whose parts occur in two items."""
    position = 0
    for run in runs:
      last = len(run) - size
      for start in range(last + 1):
        phrase = tuple(run[start:start + size])
        # A name's last two words say what the thing is, even if nothing else has the first.
        if size == 1 or (phrase[1:] in self.df and
                         (phrase[:-1] in self.df or size == 2 and start == last)):
          yield position + start, start == last, phrase
      position += len(run)

  @functools.cached_property
  def worths(self) -> dict:
    return {phrase: self._worth(phrase, count) for phrase, count in self.df.items()}

  def worth(self, phrase: tuple, closes_title: bool) -> float:
    """How telling a phrase is anywhere, about 0..2; one of a single item must close its title."""
    known = self.worths.get(phrase)
    if known is None:
      known = self._worth(phrase, 1) if closes_title and len(phrase) > 1 else 0.
    return known

  def _worth(self, phrase, count):
    if all(word in _words('weak') for word in phrase):
      return 0.
    # Rarer is better down to a handful of items; beyond that nobody shares the tag.
    enough = max(4., self.n / 400)
    rarity = math.log(self.n / max(count, enough)) / math.log(self.n / enough + 1e-9)
    titles = (self.title_df.get(phrase, 1) + .3) / (count + 1) if self.titled else 1.
    # Whether the phrase is one that stretches of words end with, or a piece of a longer one.
    head = (self.ends[phrase[-1]] + 1) / (self.words[phrase[-1]] + 2)
    head = (self.end_df.get(phrase, 1) + 2 * head) / (count + 2)
    parts = math.prod(self.df.get((word,), 1) for word in phrase) ** (1 / len(phrase))
    nested = 1 - .8 * self.longer.get(phrase, 0) / count
    return (max(rarity, 0.) * titles ** .8 * head ** .8 * (count / parts) ** .35 * nested
            * min(1., count / 3) * (1., 1.7, 2.)[len(phrase) - 1])


def _choose(item, statistics, common, n):
  """The tags of one item; each new one must say something the earlier ones do not."""
  tags, covered = [], set()

  def add(tag: str, share: float) -> None:
    stems = _stems(tag)
    if tag and stems and len(stems - covered) >= share * len(stems) and len(tags) < n:
      tags.append(tag)
      covered.update(stems)

  add(item.brand, .01)
  categories = [tag for tag in item.categories if tag not in common]
  for tag in categories[:max(1, min(3, n // 3))]:
    add(tag, .01)
  brand = _stems(item.brand)
  ranked = _ranked(item, statistics)
  for score, phrase in ranked:
    if score < .13 * ranked[0][0]:
      break
    if brand.isdisjoint(map(stem, phrase)):
      add(' '.join(phrase), .5)
  if len(tags) < min(n, 4):
    for tag in itertools.chain(categories, (' '.join(run[:3]) for run in item.titles)):
      add(tag, .5)
  for tag in (item.brand, *item.categories, _tag(' '.join(item.anything.split()[:6])),
              item.anything.strip()[:60]):
    if not tags:
      add(tag, 0.)
  return tags


def _ranked(item, statistics):
  """(score, phrase) of the item's phrases, best first; ties by place, title before text."""
  places = {}
  for base, runs in ((0, item.titles), (1000, item.texts)):
    for size in (1, 2, 3):
      for position, ends, phrase in statistics.phrases(runs, size):
        places.setdefault(phrase, (base + position, ends))
  scored = []
  for phrase, (place, ends) in places.items():
    in_title = place < 1000
    worth = statistics.worth(phrase, in_title and ends)
    # What only the description says, late and in one word, is rarely what the item is.
    field = 1. if in_title else (.3, .6, .6)[len(phrase) - 1] / (1 + (place - 1000) / 60)
    if worth:
      scored.append((-worth * field, place, phrase))
  return [(-score, phrase) for score, _, phrase in sorted(scored)]
