"""Test cases by what training could know of them: a step it saw, one that it can infer, or neither.

After "How Well Does Generative Recommendation Generalize?" (arXiv 2603.19809). A model that leads
where the step was seen has learned transitions by heart; where it leads elsewhere it has learned
more.

Letters of shapes: U test cases, N items.
"""
import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Int, Integer, Shaped

from recjax.data import times as times_lib
from recjax.data.dataset import Interactions
from recjax.data.splits import Cases

HOPS = 4       # items back that may lead to the target
FEW = 4        # training interactions of an item up to which it is rare
BLOCK = 2048   # cases at once
LENGTHS = {'len1-3': (0, 4), 'len4-5': (4, 6), 'len6-9': (6, 10), 'len10+': (10, 1 << 40)}
MONTHS = 12    # groups of time at most
FEWEST = 30    # users of a group whose figure says something
NAMES = ('memorized', 'generalized', 'uncategorized', 'cold', 'few')


def groups(train: Interactions, cases: Cases, n_items: int) -> dict[str, Bool[np.ndarray, ' U']]:
  """The cases of each of NAMES; the first three part them, the others say how well training knows
  the target: not at all, or by FEW interactions at most.

  train: the training sequences. cases: of the test. n_items: of the catalog.
  """
  kind = memory(train, cases, n_items)
  count = np.bincount(train.items, minlength=n_items + 1)[cases.targets]
  return {**{name: kind == k for k, name in enumerate(NAMES[:3])},
          'cold': count == 0, 'few': (count > 0) & (count <= FEW)}


def apart(interactions: Interactions, cases: Cases) -> dict[str, Bool[np.ndarray, ' U']]:
  """Further groups, each left out where it parts nothing: by how long the history is (LENGTHS), by
  whether the target stands in it ('repeated', 'new'), by the month of the target, or its year where
  there are more than MONTHS months.

  interactions: all that were split, with times or without. cases: of the test, whose users are rows
  of `interactions`.
  """
  items, offsets = cases.histories
  lengths = np.diff(offsets)
  owner = np.repeat(np.arange(len(cases)), lengths)
  again = np.bincount(owner, items == cases.targets[owner], len(cases)) > 0
  found = {name: (lengths >= low) & (lengths < high) for name, (low, high) in LENGTHS.items()}
  if again.any():
    found |= {'repeated': again, 'new': ~again}
  when = times(interactions, cases)
  if when is not None:
    for unit in ('M', 'Y'):
      stamps = when.astype('datetime64[s]').astype(f'datetime64[{unit}]')
      known = np.unique(stamps[~np.isnat(stamps)])
      if 1 < len(known) <= MONTHS:
        found |= {str(stamp): stamps == stamp for stamp in known}
        break
  return {name: mask for name, mask in found.items() if mask.any() and not mask.all()}


def times(interactions: Interactions, cases: Cases) -> Shaped[np.ndarray, ' U'] | None:
  """When each target was met, as datetime64 in seconds, none where it cannot be told; None without
  times.

  interactions, cases: as of `apart`. A target is looked for behind the case's history: right there,
  or further where a history ends before what the user did next.
  """
  if interactions.times is None or not len(cases):
    return None
  when = np.full(len(cases), np.datetime64('NaT', 's'))
  place = interactions.offsets[cases.users] + np.diff(cases.histories[1])
  ends = interactions.offsets[cases.users + 1]
  seconds = times_lib.in_seconds(interactions.times)
  left = np.flatnonzero(place < ends)
  while len(left):
    good = interactions.items[place[left]] == cases.targets[left]
    when[left[good]] = seconds[place[left[good]]].astype('datetime64[s]')
    left = left[~good]
    place[left] += 1
    left = left[place[left] < ends[left]]
  return when


def memorized(train: Interactions, histories: tuple[np.ndarray, np.ndarray],
              lists: Integer[np.ndarray, 'U K'], n_items: int) -> float:
  """The share of recommended items that came right after the list's last history item in some
  training sequence: what a table of transitions would have said too.

  train: the training sequences. histories: flat items and offsets, one a list. lists: items 1..N,
  0 for an empty place, others are no items and count as not seen. n_items: of the catalog. nan
  where nothing is recommended.
  """
  items, offsets = histories
  follow = after(train, n_items, 1)
  user, place = np.nonzero(lists)
  shown = lists[user, place]
  some = (np.diff(offsets)[user] > 0) & (shown > 0) & (shown <= n_items)
  last = items[offsets[user[some] + 1] - 1] - 1
  return float(_held(follow, last, shown[some] - 1).sum() / len(shown)) if len(shown) else np.nan


def memory(train: Interactions, cases: Cases, n_items: int, hops: int = HOPS
           ) -> Int[np.ndarray, ' U']:
  """What training says of the step to each target: 0 it was seen, 1 it can be inferred, 2 neither.

  It was seen where the target came right after the last item in some training sequence. It can be
  inferred where, for one of the last `hops` items u and the target v, within so many places of a
  sequence (no more than the history is long): v comes after u, or u after v; an item comes after u
  and before v, or after v and before u; one comes after both, or before both.
  train: the training sequences. cases: of the test. n_items: of the catalog.
  """
  items, offsets = cases.histories
  lengths = np.diff(offsets)
  target = cases.targets - 1
  kind = np.full(len(cases), 2)
  near = [after(train, n_items, h) for h in range(1, hops + 1)]
  leads = [follow.T.tocsr() for follow in near]
  some = lengths > 0
  last = items[np.maximum(offsets[1:] - 1, 0)] - 1
  kind[some & _held(near[0], last, target)] = 0
  for begin in range(0, len(cases), BLOCK):
    for h in range(1, hops + 1):
      rows = begin + np.flatnonzero(np.minimum(lengths, hops)[begin:begin + BLOCK] == h)
      for back in range(1, h + 1):
        rows = rows[kind[rows] == 2]
        if len(rows):
          u = items[offsets[rows + 1] - back] - 1
          kind[rows[_inferred(near[h - 1], leads[h - 1], u, target[rows])]] = 1
  return kind


def after(train: Interactions, n_items: int, hops: int) -> sp.csr_array:
  """Which items come at most `hops` places after which in training sequences. train: the sequences.
  n_items: of the catalog. -> (N, N) of 1, row i - 1, column j - 1"""
  user = np.repeat(np.arange(len(train)), train.lengths())
  found = sp.csr_array((n_items, n_items), dtype=np.float32)
  for h in range(1, hops + 1):
    start = np.flatnonzero(user[:-h] == user[h:])
    pairs = train.items[start] - 1, train.items[start + h] - 1
    found = found + sp.csr_array((np.ones(len(start), np.float32), pairs), shape=found.shape)
  return sp.csr_array((np.ones(found.nnz, np.float32), found.nonzero()), shape=found.shape)


def _held(matrix: sp.csr_array, row: Int[np.ndarray, ' U'], column: Int[np.ndarray, ' U']
          ) -> Bool[np.ndarray, ' U']:
  """Whether each place of the matrix holds something."""
  return np.asarray(matrix[row, column]).reshape(-1) > 0


def _inferred(follow: sp.csr_array, lead: sp.csr_array, u: Int[np.ndarray, ' U'],
              v: Int[np.ndarray, ' U']) -> Bool[np.ndarray, ' U']:
  """Whether v is tied to u by one step or by an item between, beside or around them. lead: what
  `follow` is of later items, of earlier ones."""
  def meet(a: sp.csr_array, x: np.ndarray, b: sp.csr_array, y: np.ndarray) -> np.ndarray:
    return np.asarray(a[x].multiply(b[y]).sum(1)).reshape(-1) > 0
  return (_held(follow, u, v) | _held(follow, v, u) | meet(follow, u, lead, v)
          | meet(follow, v, lead, u) | meet(follow, v, follow, u) | meet(lead, v, lead, u))
