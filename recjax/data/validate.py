"""What is odd about a data set, with examples and what to do about it."""
import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from recjax.data import splits
from recjax.data.dataset import Catalog, Dataset, Interactions, in_tie_order

MAX_TEXT = 4_000  # letters; about a thousand tokens, more than any preset reads of one item
EXAMPLES = 3
SHUFFLES = 3   # orders of tied times that are tried

# Marks that chat models and tokenizers give a meaning of their own.
_CONTROL = re.compile(
    r'<\|[^|<>\n]{1,40}\|>|<\uff5c[^\uff5c\n]{1,40}\uff5c>|</?s>|\[/?INST\]|<</?SYS>>'
    r'|<(?:start|end)_of_turn>|</?(?:bos|eos|pad|unk|mask|think)>|\[(?:PAD|CLS|SEP|MASK|UNK)\]')


@dataclasses.dataclass(frozen=True)
class Finding:
  """One oddity. severity: 'error', 'warning' or 'note'. examples: ids or short texts. what: the
  oddity, in words. count: how often. remedy: what to do. check: that of `evaluation.audit` which
  looks at the same, '' for none."""
  severity: str
  what: str
  count: int
  examples: tuple[str, ...]
  remedy: str
  check: str = ''


def check(dataset: Dataset) -> list[Finding]:
  """Looks `dataset` over and changes nothing. The gravest findings come first."""
  findings = [*_texts(dataset.catalog), *_sequences(dataset), *_columns(dataset.notes),
              *_times(dataset.interactions), *_ties(dataset), *_items(dataset), *_ids(dataset),
              *_version(dataset)]
  order = ('error', 'warning', 'note')
  return sorted((f for f in findings if f.count), key=lambda f: order.index(f.severity))


def _texts(catalog: Catalog) -> Iterator[Finding]:
  titles = catalog.columns['title']
  empty = [i for i, title in enumerate(titles) if not title]
  yield _about('warning', 'items without a title', catalog, empty,
               'methods that read text see nothing of them; add titles')
  counts = collections.Counter(titles)
  repeated = [i for i, title in enumerate(titles) if title and counts[title] > 1]
  yield _about('warning', 'items that share their title with another', catalog, repeated,
               'methods that generate titles cannot tell them apart; add size, brand or edition')
  for name in ('categories', 'tags'):
    if name in catalog.columns:
      empty_rows = [i for i, value in enumerate(catalog.columns[name]) if not value]
      yield _about('note', f'items without {name}', catalog, empty_rows,
                   f'methods that read {name} treat them as unknown; fill the column')
  with_marks, long = [], []
  for i in range(len(catalog)):
    texts = list(_strings(catalog, i))
    if any(_CONTROL.search(text) for text in texts):
      with_marks.append(i)
    if any(len(text) > MAX_TEXT for text in texts):
      long.append(i)
  yield _about('warning', 'items whose text looks like control tokens', catalog, with_marks,
               'they are read as plain text here, but other tools may obey them; remove the marks')
  yield _about('note', f'items with a text over {MAX_TEXT} letters', catalog, long,
               'only the beginning will be read; put what matters first')


def _sequences(dataset: Dataset) -> Iterator[Finding]:
  data = dataset.interactions
  lengths = data.lengths()
  short = np.flatnonzero(lengths < 3)
  yield Finding('note' if len(short) < len(lengths) else 'error',
                'users with fewer than 3 items', len(short), _names(data, short),
                'they are trained on and never tested; leave-one-out needs 3 items')
  user = np.repeat(np.arange(len(data)), lengths)
  same_user = user[1:] == user[:-1]
  adjacent = np.unique(user[1:][same_user & (data.items[1:] == data.items[:-1])])
  yield Finding('warning', 'users with the same item twice in a row', len(adjacent),
                _names(data, adjacent), 'often a log artifact; merge such purchases', 'repeats')
  pairs, counts = np.unique(user * (len(dataset.catalog) + 1) + data.items, return_counts=True)
  repeating = np.unique(pairs[counts > 1] // (len(dataset.catalog) + 1))
  yield Finding('warning', 'users with an item more than once', len(repeating),
                _names(data, repeating), 'masking the history then hides repeated targets; keep '
                'first purchases, or evaluate without the mask', 'repeats')
  rows = [data.history(u).tobytes() for u in range(len(data))]
  copies = collections.Counter(rows)
  copied = [u for u, row in enumerate(rows) if len(row) > 4 and copies[row] > 1]
  yield Finding('warning', 'users with the very sequence of another', len(copied),
                _names(data, copied), 'one of them is tested on what the other was trained on; '
                'keep one of each', 'identical users')


def _columns(notes: dict) -> Iterator[Finding]:
  unread = notes.get('unread_columns')
  yield Finding('note', f'columns of the sequences that are not read: {unread}', bool(unread), (),
                '`times` and `ratings` are the names that are read; rename them if that is meant')


def _times(data: Interactions) -> Iterator[Finding]:
  if data.times is None:
    return
  lengths = data.lengths()
  user = np.repeat(np.arange(len(data)), lengths)
  same_user, steps = user[1:] == user[:-1], np.diff(data.times)
  tied, backwards = (np.unique(user[1:][same_user & odd]) for odd in (steps == 0, steps < 0))
  yield Finding('note', 'users with tied times', len(tied), _names(data, tied),
                'their order is that of the file; sort by a finer time if there is one', 'ties')
  yield Finding('error', 'users whose times run backwards', len(backwards), _names(data, backwards),
                'sequences must be in time order; sort them, and times along')
  ends = data.offsets[1:][lengths >= 3] - 1
  if not len(ends):
    return
  open_end = user[ends[steps[ends - 1] == 0]]
  yield Finding('warning', 'users whose test item has the time of the item before', len(open_end),
                _names(data, open_end), 'the file decides which of them is tested: shuffled, about '
                'half of these tests ask for another item; an order by item code can be learned',
                'ties')
  held_out = np.zeros(len(data.items), bool)
  held_out[ends] = held_out[ends - 1] = True
  later = int((data.times[~held_out] > np.median(data.times[ends])).sum())
  yield Finding('note', 'training interactions later than half of all test items', later, (),
                'leave-one-out lets models see the future of other users; for forecasting, compare '
                'under split=global_time as well', 'leave-one-out')


def _ties(dataset: Dataset) -> Iterator[Finding]:
  """What the order of items of equal time does, and whether it follows the item ids."""
  data = dataset.interactions
  if data.times is None:
    return
  user = np.repeat(np.arange(len(data)), data.lengths())
  tied = np.flatnonzero((user[1:] == user[:-1]) & (np.diff(data.times) == 0))
  up = int((data.items[tied + 1] > data.items[tied]).sum())
  if len(tied) >= 20 and max(up, len(tied) - up) > 0.9 * len(tied):
    yield Finding('warning', "steps between tied items in the order of the items file, or against "
                  f'it, of {len(tied):,} such steps', max(up, len(tied) - up), (),
                  'that order can be learned and is no behavior; compare with '
                  "tie_order='shuffle(0)'")
  split = splits.leave_one_out(data)
  if not len(tied) or not len(split.test):
    return
  before, after, changed = _popularity(split, len(dataset.catalog)), [], 0
  for seed in range(SHUFFLES):
    shuffled = splits.leave_one_out(in_tie_order(dataset, f'shuffle({seed})').interactions)
    after.append(_popularity(shuffled, len(dataset.catalog)))
    changed += int((shuffled.test.targets != split.test.targets).sum())
  yield Finding('note', 'test items that change when tied times are shuffled (popularity has '
                f'NDCG@10 {before:.4f} in file order and {np.mean(after):.4f} shuffled)',
                round(changed / SHUFFLES), (), "tie_order='shuffle(0)' trains and tests on such an "
                'order; published figures mostly keep that of the file')


def _popularity(split: splits.Split, n: int) -> float:
  """NDCG@10 of the most popular items, history masked, without a device."""
  counts = np.bincount(split.train.items, minlength=n + 1)[1:]
  rank_of = np.empty(n + 1, np.int64)
  rank_of[1 + np.argsort(-counts, kind='stable')] = np.arange(n)
  flat, offsets = split.test.histories
  owner = np.repeat(np.arange(len(split.test)), np.diff(offsets))
  once = np.unique(owner * (n + 1) + flat)  # a history may hold an item twice
  owner, seen = np.divmod(once, n + 1)
  target_ranks = rank_of[split.test.targets]
  ranks = target_ranks - np.bincount(owner[rank_of[seen] < target_ranks[owner]],
                                     minlength=len(target_ranks))
  return float(np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0).mean())


def _ids(dataset: Dataset) -> Iterator[Finding]:
  """Holes in numbered item ids, and ids that were handed out along the histories."""
  catalog, data = dataset.catalog, dataset.interactions
  if not all(i.isascii() and i.isdecimal() and len(i) < 16 for i in catalog.ids):
    return
  ids = np.array(catalog.ids, np.int64)
  low, high = int(ids.min()), int(ids.max())
  if high - low < 2 * len(ids):  # else they are numbers of another system, not a count
    holes = np.setdiff1d(np.arange(low, high + 1), ids)
    yield Finding('note', f'numbers between {low} and {high} that are no item id', len(holes),
                  tuple(map(str, holes[:EXAMPLES])), 'were items lost? Indices here have no holes, '
                  'but code that sizes tables by the highest id needs rows for them')
  user = np.repeat(np.arange(len(data)), data.lengths())
  steps = np.diff(ids[data.items - 1])[user[1:] == user[:-1]]
  next_up = int((steps == 1).sum())
  if next_up > 0.05 * len(steps):
    yield Finding('warning', f'steps to the next higher item id, of {len(steps):,} steps', next_up,
                  (), 'ids were handed out along the histories, which tells models that read ids '
                  'as text, or sort by them, what comes next; number the items otherwise')


def _items(dataset: Dataset) -> Iterator[Finding]:
  n = len(dataset.catalog)
  data = dataset.interactions
  counts = np.bincount(data.items, minlength=n + 1)[1:]
  retired = [i for i, mark in enumerate(dataset.catalog.columns.get('retired', ())) if mark]
  yield _about('note', 'retired items', dataset.catalog, retired, 'they keep their numbers and '
               'stand in histories; `recjax recommend` leaves them out')
  yield _about('note', 'items never bought', dataset.catalog, np.flatnonzero(counts == 0),
               'only methods that read text can recommend them')
  lengths = data.lengths()
  held_out = np.zeros(len(data.items), bool)
  ends = data.offsets[1:][lengths >= 3]
  held_out[ends - 1] = held_out[ends - 2] = True
  seen = np.bincount(data.items[~held_out], minlength=n + 1)[1:]
  cold_rows = np.flatnonzero((counts > 0) & (seen == 0))
  yield _about('note', 'cold items: bought, but never in training under leave-one-out',
               dataset.catalog, cold_rows, 'methods that learn from ids alone cannot find them')
  tested = np.flatnonzero(lengths >= 3)
  tested = tested[seen[data.items[data.offsets[1:][tested] - 1] - 1] == 0]
  yield Finding('note', "users whose test item is in nobody's training", len(tested),
                _names(data, tested), 'they count as misses of such methods; drop_cold_targets '
                'leaves them out, as some papers do', 'cold targets')


# (users, items, interactions) of data sets that are often mixed up.
KNOWN = {
    (22363, 12101, 198502): 'Amazon Beauty of S3-Rec, P5 and TIGER (2014, 5-core)',
    (40226, 54542, 353962): 'Amazon Beauty of BERT4Rec, not that of S3-Rec and TIGER',
    (52024, 57289, 394908): 'Amazon Beauty of SASRec and LLMEmb, not that of S3-Rec and TIGER',
    (35598, 18357, 296337): 'Amazon Sports of S3-Rec, P5 and TIGER',
    (19412, 11924, 167597): 'Amazon Toys of S3-Rec, P5 and TIGER',
    (30431, 20033, 316354): 'Yelp of S3-Rec',
    (6040, 3416, 999611): 'MovieLens-1M of SASRec, BERT4Rec and gSASRec',
    (6040, 3706, 1000209): 'MovieLens-1M as released, with 290 rare films that SASRec leaves out',
    (31013, 23715, 287107): 'Amazon Video Games of SASRec',
}


def _version(dataset: Dataset) -> Iterator[Finding]:
  data = dataset.interactions
  size = (len(data), len(dataset.catalog), len(data.items))
  if size in KNOWN:
    yield Finding('note', f'this is {KNOWN[size]}', 1, (),
                  'figures compare only with those that were made on this version')
    return
  users, items, _ = size
  for known, name in KNOWN.items():
    if abs(users - known[0]) <= known[0] // 100 and abs(items - known[1]) <= known[1] // 100:
      yield Finding('warning', f'nearly {name}, which has {known[0]:,} users, {known[1]:,} items, '
                    f'{known[2]:,} interactions', 1, (),
                    'rows went missing or were added; published figures do not compare')


def _strings(catalog: Catalog, i: int) -> Iterator[str]:
  for column in catalog.columns.values():
    value = column[i]
    if isinstance(value, str):
      yield value
    elif isinstance(value, list):
      yield from (x for x in value if isinstance(x, str))


def _about(severity: str, what: str, catalog: Catalog, rows: Sequence[int] | np.ndarray,
           remedy: str) -> Finding:
  """A finding about the items at `rows`, counted from 0."""
  examples = tuple(f'{catalog.ids[i]}: {catalog.columns["title"][i][:60]}'
                   for i in rows[:EXAMPLES])
  return Finding(severity, what, len(rows), examples, remedy)


def _names(data: Interactions, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
  return tuple(data.users[u] for u in rows[:EXAMPLES])
