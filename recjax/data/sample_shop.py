"""The built-in shop: a science and workshop supplier, generated from a seed, with its own oracle.

Customers carry out projects. A project is a chain of kinds of product, each from another department
than the one before; a step is sometimes skipped, a purchase sometimes has nothing to do with it.
Which item of a kind is bought depends on the circle of brands a customer is at home in, on
attributes (a size, a voltage) that a customer keeps to, and on popularity. So the next item's kind
follows from the kinds before it, hardly from shared words; brand and attributes follow from both.

Whole numbers decide everything: raw PCG64 output and integer weights, so that a seed gives the same
shop on every machine and with every version of numpy.
"""
import dataclasses

import numpy as np

from recjax.data import sample_text
from recjax.data.catalog import Catalog, Interactions, make_dataset
from recjax.data.sample_goods import AXES, BRANDS
from recjax.errors import ConfigError

SHORTEST, LONGEST = 5, 20
NOISE = 12                      # per cent of purchases by popularity alone
JUMPS = (85, 12, 3)             # per cent: one step on, two, three
CIRCLE, MATCH = 8, 3            # weight of a brand of one's circle, of an attribute one keeps to
KINDRED = 40                    # weight of a project that is kindred to the last one
RANKS = (16, 10, 7, 5, 4, 3, 2, 2)  # popularity within a kind
LEAST = 4                       # items of a kind
CIRCLES = (6, 5, 4, 4, 3, 3, 2, 2)  # customers at home in each circle

_START = 1_704_096_000          # 1 January 2024, 08:00 UTC


@dataclasses.dataclass(frozen=True)
class World:
  """The shop's shelves and its customers' habits. T kinds, N items, P projects, A axes; int64.

  members: (T, M) rows of a kind's items, -1 beyond. kind: (N,). circle: (N,) of the brand.
  values: (N, A) attribute values, -1 without. popularity: (N,) within the kind. demand: (T,).
  chains: (P, S) kinds, -1 beyond. spans: (P,) steps. follow: (P + 1, P) weights of the project
  after this one; the last row is for customers who have none yet
  """
  members: np.ndarray
  kind: np.ndarray
  circle: np.ndarray
  values: np.ndarray
  popularity: np.ndarray
  demand: np.ndarray
  chains: np.ndarray
  spans: np.ndarray
  follow: np.ndarray


@dataclasses.dataclass
class Walk:
  """Where U customers stand; changes with every purchase.

  circle: (U,). traits: (U, A). project, step: (U,), project P before the first one.
  done: (U, P) bool. bought: (U, N) bool
  """
  circle: np.ndarray
  traits: np.ndarray
  project: np.ndarray
  step: np.ndarray
  done: np.ndarray
  bought: np.ndarray


def make(seed=0, items=1000, users=4000):
  """Generates the shop. -> Dataset with title, brand, categories, description, price, attributes

  Few items make a shop of fewer kinds and projects. Raises ConfigError below 60 items or 1 user.
  """
  world, catalog = _stock(seed, items, users)
  walk, lengths, bits = _begin(world, seed, users)
  bought = np.zeros((users, LONGEST), np.int64)
  for t in range(LONGEST):
    rows = np.flatnonzero(lengths > t)
    bought[rows, t] = _buy(world, walk, rows, bits[rows, t])
  items = bought[np.arange(LONGEST) < lengths[:, None]].astype(np.int32) + 1
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  names = tuple(f'U{u:05d}' for u in range(1, users + 1))
  interactions = Interactions(names, items, offsets, _times(seed, lengths))
  return make_dataset('sample', catalog, interactions)


def oracle(seed=0, items=1000, users=4000):
  """What can be reached on the shop's leave-one-out test, history masked, ties against the target.

  'oracle' ranks by the true probability of the next item, given the customer's true circle,
  attributes, project and step: no model that sees only the items can expect more. 'popularity'
  ranks by counts over all but the last two items of each user.
  -> {'oracle' or 'popularity': {'HR@10': float, 'NDCG@10': float}}
  """
  world, _ = _stock(seed, items, users)
  walk, lengths, bits = _begin(world, seed, users)
  counts, ranks = np.zeros(items, np.int64), {'oracle': [], 'popularity': []}
  histories, targets = [], []
  for t in range(LONGEST):
    rows = np.flatnonzero(lengths > t)
    last = lengths[rows] == t + 1
    odds, seen = _odds(world, walk, rows[last]), walk.bought[rows[last]].copy()
    chosen = _buy(world, walk, rows, bits[rows, t])
    counts += np.bincount(chosen[lengths[rows] > t + 2], minlength=items)
    ranks['oracle'].append(_ranks(odds, chosen[last]))
    histories.append(seen)
    targets.append(chosen[last])
  for seen, target in zip(histories, targets):
    ranks['popularity'].append(_ranks(np.where(seen, -1, counts), target))
  return {name: _metrics(np.concatenate(parts)) for name, parts in ranks.items()}


def _stock(seed, items, users):
  """Fills the shelves. -> World, Catalog"""
  kinds, chains = _projects_for(items)
  if users < 1 or not chains:
    raise ConfigError(f'a sample shop of {items} items and {users} users is too small; '
                      'make it at least 60 items and 1 user.')
  kind, place, members = _shelve(seed, items, len(kinds))
  shift = _draw(_bits(seed, 'shifts', (len(kinds), 2)), 8)[kind]
  circle = (place + shift[:, 0]) % len(BRANDS)
  has = np.array([[axis in k.axes for axis in AXES] for k in kinds])
  sizes = np.array([len(v) for v in AXES.values()])
  values = np.where(has[kind], _draw(_bits(seed, 'values', (items, len(AXES))), sizes), -1)
  spans = np.array([len(c) for c in chains] + [0])
  table = np.full((len(spans), spans.max()), -1)
  for p, chain in enumerate(chains):
    table[p, :len(chain)] = chain
  world = World(
      members=members, kind=kind, circle=circle, values=values,
      popularity=np.array(RANKS)[(5 * place + shift[:, 1]) % len(RANKS)],
      demand=np.bincount(table[table >= 0], minlength=len(kinds)),
      chains=table, spans=spans, follow=_follow(seed, len(chains)))
  return world, _catalog(seed, kinds, world)


def _projects_for(items):
  """As many projects, in order, as leave LEAST items for each kind. -> kinds, lists of kind rows"""
  kinds = {kind.key: kind for kind in sample_text.kinds()}
  chains, used = [], {}
  for steps in sample_text.projects().values():
    more = used | dict.fromkeys(steps)
    if len(more) * LEAST <= items:
      chains, used = [*chains, steps], more
  keys = [key for key in kinds if key in used]
  return [kinds[key] for key in keys], [[keys.index(s) for s in steps] for steps in chains]


def _shelve(seed, items, kinds):
  """Deals items out to kinds in mixed order. -> kind (N,), place within it (N,), members (T, M)"""
  mixed = np.argsort(_bits(seed, 'order', items), kind='stable')
  kind, place = mixed % kinds, mixed // kinds
  members = np.full((kinds, place.max() + 1), -1)
  members[kind, place] = np.arange(items)
  return kind, place, members


def _follow(seed, projects):
  """Weights of the next project: popular ones, and three that are kindred. -> (P + 1, P) int64"""
  base = 60 // (np.arange(projects) + 3) + 3
  follow = np.tile(base, (projects + 1, 1))
  for p, kindred in enumerate(_draw(_bits(seed, 'kindred', (projects, 3)), projects)):
    follow[p, kindred] = base[kindred] * KINDRED
  return follow


def _catalog(seed, kinds, world):
  departments = list(dict.fromkeys(k.department for k in kinds))
  bits = _bits(seed, 'texts', (len(world.kind), 12)).tolist()
  rows, titles = [], set()
  for i, row in enumerate(bits):
    kind = kinds[world.kind[i]]
    # Two of a circle's five brands are at home in a department.
    branch = departments.index(kind.department) + world.circle[i] + 2 * (row[11] >> 63)
    brand = BRANDS[world.circle[i]][branch % 5]
    values = {axis: AXES[axis][v] for axis, v in zip(AXES, world.values[i]) if v >= 0}
    rows.append(sample_text.describe(kind, brand, values, 101 + i, row))
    if rows[-1]['title'] in titles:
      rows[-1]['title'] += f', no. {101 + i}'
    titles.add(rows[-1]['title'])
  ids = tuple(f'P{i:04d}' for i in range(1, len(rows) + 1))
  return Catalog(ids, {name: [row[name] for row in rows] for name in rows[0]})


def _begin(world, seed, users):
  """Customers before their first purchase. -> Walk, lengths (U,), bits (U, LONGEST, 5)"""
  first = _bits(seed, 'customers', (users, 2 + len(AXES)))
  sizes = np.array([len(v) for v in AXES.values()])
  fade = [4096 * 3 ** k // 4 ** k for k in range(LONGEST - SHORTEST + 1)]
  projects = len(world.spans) - 1
  walk = Walk(
      circle=_choose(np.tile(CIRCLES, (users, 1)), first[:, 0]),
      traits=_draw(first[:, 2:], sizes),
      project=np.full(users, projects), step=np.zeros(users, np.int64),
      done=np.zeros((users, projects), bool), bought=np.zeros((users, len(world.kind)), bool))
  lengths = SHORTEST + _choose(np.tile(fade, (users, 1)), first[:, 1])
  return walk, lengths, _bits(seed, 'purchases', (users, LONGEST, 5))


def _buy(world, walk, rows, bits):
  """Lets the customers `rows` buy once and moves them on. -> item rows (n,) int64"""
  noise = _draw(bits[:, 0], 100) < NOISE
  chosen = np.zeros(len(rows), np.int64)
  kind = _advance(world, walk, rows[~noise], bits[~noise])
  shelf = world.members[kind]
  weights = _appeal(world, walk, rows[~noise], shelf)
  chosen[~noise] = shelf[np.arange(len(shelf)), _choose(weights, bits[~noise, 4])]
  # Who has everything of a kind buys something else.
  noise[~noise] = weights.sum(axis=1) == 0
  free = ~walk.bought[rows[noise]]
  chosen[noise] = _choose(free * _fame(world), bits[noise, 4])
  walk.bought[rows, chosen] = True
  return chosen


def _advance(world, walk, rows, bits):
  """Takes the customers `rows` to their next step, of a new project if need be. -> kinds (n,)"""
  jumps = np.tile(JUMPS, (len(rows), 1))
  step = walk.step[rows] + 1 + _choose(jumps, bits[:, 1])
  over = step >= world.spans[walk.project[rows]]
  leaving = rows[over]
  project = _choose(_prospects(world, walk, leaving), bits[over, 2])
  step[over] = _choose(jumps[over], bits[over, 3])
  walk.project[leaving] = project
  walk.done[leaving, project] = True
  walk.step[rows] = step
  return world.chains[walk.project[rows], step]


def _prospects(world, walk, rows):
  """Weights of the next project; one that was done only comes again when all are. -> (n, P)"""
  done = walk.done[rows]
  return world.follow[walk.project[rows]] * (~done | done.all(axis=1, keepdims=True))


def _appeal(world, walk, rows, items):
  """What draws customers to items of one kind. items: (n, M), -1 for none. -> (n, M) int64"""
  kept = (world.values[items] == walk.traits[rows][:, None]).sum(axis=2)
  home = world.circle[items] == walk.circle[rows][:, None]
  weights = world.popularity[items] * MATCH ** kept * np.where(home, CIRCLE, 1)
  return weights * (items >= 0) * ~walk.bought[rows[:, None], items]


def _fame(world):
  """Popularity over the whole shop. -> (N,) int64"""
  return world.popularity * world.demand[world.kind]


def _odds(world, walk, rows):
  """True probability of the next item for customers `rows`. -> (n, N) float64"""
  n, kinds, items = len(rows), len(world.members), len(world.kind)
  jumps = np.array(JUMPS) / 100
  steps = walk.step[rows][:, None] + 1 + np.arange(len(jumps))  # (n, 3)
  spans = world.spans[walk.project[rows]][:, None]
  inside = steps < spans
  ahead = world.chains[walk.project[rows][:, None], np.where(inside, steps, 0)]
  mass = np.zeros((n, kinds))
  np.add.at(mass, (np.arange(n)[:, None], np.where(inside, ahead, 0)), inside * jumps)
  opening = np.zeros((len(world.spans) - 1, kinds))
  for d, share in enumerate(jumps):
    np.add.at(opening, (np.arange(len(opening)), world.chains[:-1, d]), share)
  prospects = _prospects(world, walk, rows)
  prospects = prospects / prospects.sum(axis=1, keepdims=True)
  mass += (~inside * jumps).sum(axis=1, keepdims=True) * (prospects @ opening)

  everything = np.broadcast_to(np.arange(items), (n, items))
  appeal = _appeal(world, walk, rows, everything).astype(float)
  totals = np.zeros((n, kinds))
  for kind, shelf in enumerate(world.members):
    totals[:, kind] = appeal[:, shelf[shelf >= 0]].sum(axis=1)
  share = np.divide(mass, totals, out=np.zeros_like(mass), where=totals > 0)
  fame = ~walk.bought[rows] * _fame(world)
  fame = fame / fame.sum(axis=1, keepdims=True)
  idle = NOISE / 100 + (1 - NOISE / 100) * (mass * (totals == 0)).sum(axis=1, keepdims=True)
  return (1 - NOISE / 100) * share[:, world.kind] * appeal + idle * fame


def _ranks(scores, targets):
  """Rank of each target, 0 is best, ties against it. scores: (n, N). -> (n,) int64"""
  return (scores >= scores[np.arange(len(targets)), targets][:, None]).sum(axis=1) - 1


def _metrics(ranks):
  hits = ranks < 10
  return {'HR@10': float(hits.mean()),
          'NDCG@10': float((hits / np.log2(ranks + 2)).mean())}


def _times(seed, lengths):
  """Seconds since 1970 of all purchases: a day within a year, then gaps of 1 to 240 hours."""
  first = _draw(_bits(seed, 'starts', len(lengths)), 365 * 24 * 60)
  gaps = 60 + _draw(_bits(seed, 'gaps', int(lengths.sum())), 239 * 60)
  ends = np.cumsum(lengths)
  since = np.cumsum(gaps)
  return (_START + 60 * (np.repeat(first - since[ends - lengths], lengths) + since)).astype(np.int64)


def _bits(seed, what, shape):
  """Random bits of a stream named `what`. -> uint64 array"""
  stream = int.from_bytes(what.encode(), 'little')
  return np.random.PCG64([seed, stream]).random_raw(int(np.prod(shape))).reshape(shape)


def _draw(bits, below):
  """Uniform whole numbers 0 .. below - 1 from random bits. -> int64"""
  return ((bits >> np.uint64(32)) * np.asarray(below, np.uint64) >> np.uint64(32)).astype(np.int64)


def _choose(weights, bits):
  """One column a row, in proportion to weights (n, K) int64; 0 if all are 0. -> (n,) int64"""
  sums = np.cumsum(weights, axis=1)
  return (sums <= _draw(bits, sums[:, -1])[:, None]).sum(axis=1) * (sums[:, -1] > 0)
