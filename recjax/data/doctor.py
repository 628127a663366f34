"""What is odd about a data set, with examples and what to do about it."""
import collections
import dataclasses
import re

import numpy as np

LONG_TEXT = 4_000  # letters; about a thousand tokens, more than any preset reads of one item
EXAMPLES = 3

# Marks that chat models and tokenizers give a meaning of their own.
_CONTROL = re.compile(
    r'<\|[^|<>\n]{1,40}\|>|<\uff5c[^\uff5c\n]{1,40}\uff5c>|</?s>|\[/?INST\]|<</?SYS>>'
    r'|<(?:start|end)_of_turn>|</?(?:bos|eos|pad|unk|mask|think)>|\[(?:PAD|CLS|SEP|MASK|UNK)\]')


@dataclasses.dataclass(frozen=True)
class Finding:
  """One oddity. severity: 'error', 'warning' or 'note'; examples: ids or short texts."""
  severity: str
  what: str
  count: int
  examples: tuple[str, ...]
  remedy: str


def check(dataset):
  """Looks a data set over; changes nothing. -> list of Finding, the gravest first"""
  found = [*_texts(dataset.catalog), *_sequences(dataset), *_items(dataset)]
  order = ('error', 'warning', 'note')
  return sorted((f for f in found if f.count), key=lambda f: order.index(f.severity))


def _texts(catalog):
  titles = catalog.columns['title']
  empty = [i for i, title in enumerate(titles) if not title]
  yield _about('warning', 'items without a title', catalog, empty,
               'methods that read text see nothing of them; add titles')
  counts = collections.Counter(titles)
  twice = [i for i, title in enumerate(titles) if title and counts[title] > 1]
  yield _about('warning', 'items that share their title with another', catalog, twice,
               'methods that generate titles cannot tell them apart; add size, brand or edition')
  for name in ('categories', 'tags'):
    if name in catalog.columns:
      bare = [i for i, value in enumerate(catalog.columns[name]) if not value]
      yield _about('note', f'items without {name}', catalog, bare,
                   f'methods that read {name} treat them as unknown; fill the column')
  marked, long = [], []
  for i in range(len(catalog)):
    texts = list(_strings(catalog, i))
    if any(_CONTROL.search(text) for text in texts):
      marked.append(i)
    if any(len(text) > LONG_TEXT for text in texts):
      long.append(i)
  yield _about('warning', 'items whose text looks like control tokens', catalog, marked,
               'they are read as plain text here, but other tools may obey them; remove the marks')
  yield _about('note', f'items with a text over {LONG_TEXT} letters', catalog, long,
               'only the beginning will be read; put what matters first')


def _sequences(dataset):
  data = dataset.interactions
  lengths = data.lengths()
  short = np.flatnonzero(lengths < 3)
  yield Finding('note' if len(short) < len(lengths) else 'error',
                'users with fewer than 3 items', len(short), _names(data, short),
                'they are trained on and never tested; leave-one-out needs 3 items')
  user = np.repeat(np.arange(len(data)), lengths)
  same = user[1:] == user[:-1]
  adjacent = np.unique(user[1:][same & (data.items[1:] == data.items[:-1])])
  yield Finding('warning', 'users with the same item twice in a row', len(adjacent),
                _names(data, adjacent), 'often a log artefact; merge such purchases')
  pairs, counts = np.unique(user * (len(dataset.catalog) + 1) + data.items, return_counts=True)
  again = np.unique(pairs[counts > 1] // (len(dataset.catalog) + 1))
  yield Finding('warning', 'users with an item more than once', len(again), _names(data, again),
                'masking the history then hides repeated targets; keep first purchases, or '
                'evaluate without the mask')
  if data.times is not None:
    steps = np.diff(data.times)
    tied, back = (np.unique(user[1:][same & odd]) for odd in (steps == 0, steps < 0))
    yield Finding('note', 'users with tied times', len(tied), _names(data, tied),
                  'their order is that of the file; sort by a finer time if there is one')
    yield Finding('error', 'users whose times run backwards', len(back), _names(data, back),
                  'sequences must be in time order; sort them, and times along')


def _items(dataset):
  n = len(dataset.catalog)
  data = dataset.interactions
  counts = np.bincount(data.items, minlength=n + 1)[1:]
  yield _about('note', 'items never bought', dataset.catalog, np.flatnonzero(counts == 0),
               'only methods that read text can recommend them')
  lengths = data.lengths()
  held = np.zeros(len(data.items), bool)
  ends = data.offsets[1:][lengths >= 3]
  held[ends - 1] = held[ends - 2] = True
  seen = np.bincount(data.items[~held], minlength=n + 1)[1:]
  cold = np.flatnonzero((counts > 0) & (seen == 0))
  yield _about('note', 'cold items: bought, but never in training under leave-one-out',
               dataset.catalog, cold, 'methods that learn from ids alone cannot find them')


def _strings(catalog, i):
  for column in catalog.columns.values():
    value = column[i]
    if isinstance(value, str):
      yield value
    elif isinstance(value, list):
      yield from (x for x in value if isinstance(x, str))


def _about(severity, what, catalog, rows, remedy):
  """A finding about the items at `rows`, counted from 0."""
  examples = tuple(f'{catalog.ids[i]}: {catalog.columns["title"][i][:60]}'
                   for i in rows[:EXAMPLES])
  return Finding(severity, what, len(rows), examples, remedy)


def _names(data, rows):
  return tuple(data.users[u] for u in rows[:EXAMPLES])
