"""Titles, descriptions and prices of the sample shop, put together from its tables of goods.

Every choice is made by 64 random bits handed in, with whole numbers only.
"""
import dataclasses
from collections.abc import Sequence
from typing import Any

from recjax.data.sample_shop.products import PRODUCTS, PROJECTS

PACKS = (5, 10, 20, 25, 50, 100)

# How an attribute is told after 'This one is'.
_TOLD = {
    'bore': 'sized for {}', 'color': '{}', 'grade': 'of {} grade', 'metal': 'made of {}',
    'plastic': 'made of {}', 'size': 'of {} size', 'thread': 'cut for {}',
    'voltage': 'meant for {}', 'volume': 'sold as {}',
}

_TITLES = (
    '{brand} {values} {noun}{pack}',
    '{brand} {noun}, {values}{pack}',
    '{noun} by {brand}, {values}{pack}',
    '{values} {noun} - {brand} {code}{pack}',
    '{brand} {code} {noun} ({values}){pack}',
    '{brand} {noun} with {plain}, {values}',
    '{noun} {code}, {values}{pack}',
)

_FIRST = (
    '{Noun} with {one} and {two}.',
    '{Noun} from {brand}, with {one} and {two}.',
    'What sets this {brand} apart: {one}, and {two}.',
    '{brand} builds it around {one}.',
    'Chosen by people who want {one}.',
    '{Noun} that comes with {one}.',
    'Simple and sound, with {one} and {two}.',
    'Look for {one}; few others have that.',
    'With {one}, in the manner of {brand}.',
)

_SECOND = (
    'Also has {three}.',
    'Our test bench liked {three}.',
    'Expect {three} as well.',
    'Not to forget {three}.',
    'For the price one also gets {three}.',
    'The maker is proud of {three}.',
)

_THIRD = (
    'This one is {told}.',
    'Offered here {told}.',
    'The version shown is {told}.',
    'Article {code} is {told}.',
)


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of product: what it is called, where it stands, what varies, what it costs.

  key: its name in code. department, categories: where it stands. nouns: what it is called. axes:
  what varies. packed: whether it comes in packs. prices: from and to. features: sentences.
  """
  key: str
  department: str
  nouns: tuple[str, ...]
  categories: tuple[str, ...]
  axes: tuple[str, ...]
  packed: bool
  prices: tuple[int, int]
  features: tuple[str, ...]


def kinds() -> tuple[Kind, ...]:
  """All kinds in the order of the table."""
  rows, department = [], ''
  lines = iter([line for line in PRODUCTS.splitlines() if line.strip()])
  for line in lines:
    if line.startswith('# '):
      department = line[2:]
      continue
    key, rest = line.split(' = ')
    nouns, place, axes, prices = (part.strip() for part in rest.split('|'))
    low, high = prices.split('-')
    axes = tuple(axes.split())
    rows.append(Kind(
        key, department, tuple(nouns.split(', ')), (department, *place.split('/')),
        tuple(a for a in axes if a != 'pack'), 'pack' in axes, (int(low), int(high)),
        tuple(next(lines).strip().split('; '))))
  return tuple(rows)


def projects() -> dict[str, tuple[str, ...]]:
  """Keys of the kinds of each project, in order, by its name."""
  rows = (line.split(' = ') for line in PROJECTS.strip().splitlines())
  return {name: tuple(steps.split()) for name, steps in rows}


def pick(options: Sequence, bits: int) -> Any:
  """One of `options`, by the upper half of 64 random `bits`."""
  return options[(bits >> 32) * len(options) >> 32]


def describe(kind: Kind, brand: str, circle: int, values: dict[str, str], serial: int,
             bits: Sequence[int]) -> dict:
  """The columns of one item of a kind and brand.

  circle: of the brand; it has its own word for the thing. values: texts by axis. serial: a number
  of its own. bits: 12 integers of 64 random bits.
  """
  noun = kind.nouns[circle % len(kind.nouns)]
  code = f'{brand[:2].upper()}-{serial}'
  pack = pick(PACKS, bits[1]) if kind.packed else 0
  first = (bits[2] >> 32) * 3 >> 32
  one, two, three = (kind.features[(first + i) % 3] for i in range(3))
  value_text = ' '.join(f'{v} grade' if axis == 'grade' else v for axis, v in values.items())
  title = pick(_TITLES, bits[3]).format(
      brand=brand, noun=_capitals(noun), values=value_text, code=code,
      plain=one.removeprefix('a ').removeprefix('an '), pack=f', pack of {pack}' if pack else '')
  phrases = [_TOLD[axis].format(value) for axis, value in values.items()]
  phrases += [f'packed in {pack}s'] if pack else []
  sentences = [pick(_FIRST, bits[4])]
  sentences += [pick(_SECOND, bits[5])] if bits[6] >> 63 else []
  sentences += [pick(_THIRD, bits[7])] if bits[8] >> 62 else []
  description = ' '.join(sentences).format(
      Noun=noun[0].upper() + noun[1:], brand=brand, one=one, two=two, three=three, code=code,
      told=' and '.join(phrases))
  low, high = kind.prices
  cents = low * 100 + ((bits[9] >> 32) * (high - low) * 10 >> 32) * 10 + 9
  attributes = list(values.values()) + ([f'pack of {pack}'] if pack else [])
  return {'title': title[0].upper() + title[1:], 'brand': brand,
          'categories': list(kind.categories), 'description': description, 'price': cents / 100,
          'attributes': attributes}


def _capitals(text: str) -> str:
  return ' '.join(w.capitalize() if w.islower() else w for w in text.split())
