"""The built-in shop: a science and workshop supplier, generated from a seed, with its own oracle.

Customers carry out projects. A project is a chain of kinds of product, each from another department
than the one before. Most purchases take the next step, some skip one or two, some go back for
another item of an earlier step, some have nothing to do with it. Among the items of a kind a
customer looks for the attributes that the project asks for (a bore, a voltage, a grade), for a
brand of the circle he or she is at home in, and for what is popular. So the kind of the next item
follows from the order of the kinds before it and hardly from shared words; brands and attributes
follow from those of the items before.

Whole numbers decide everything: raw PCG64 output and integer weights, so that a seed gives the same
shop on every machine and with every version of numpy.

What there is to find in `make()`, the last item of each of the 4,000 users being the test, its
history masked:

  ranking                                              HR@10   NDCG@10
  popularity                                           .032    .016
  true probabilities, habits known (`oracle()`)        .657    .397

For orientation, BM25 over words of title, brand and leaf category as tags, queries being the union
of the history's tags (or the last item's): HR@10 .126 (.104); the same after each item was given
the tags of its ten most frequent successors in training as well: .261 (.299).
"""
import dataclasses

import numpy as np

from recjax.data.dataset import Catalog, Dataset, Interactions, make_dataset
from recjax.data.sample_shop import product_text
from recjax.data.sample_shop.products import AXES, BRANDS
from recjax.errors import ConfigError

CUSTOMERS = 4000
SHORTEST, LONGEST = 5, 20
NOISE = 10                      # per cent of purchases by popularity alone
RETURN = 38                     # per cent of steps that go back to an earlier one
JUMPS = (80, 15, 5)             # per cent: one step on, two, three
CIRCLE, MATCH = 4, 20           # weight of a brand of one's circle, of an attribute asked for
SUIT = 97                       # per cent of attributes that suit the step they are stocked for
KINDRED = 40                    # weight of a project that is kindred to the last one
RANKS = (9, 5, 3, 2)            # popularity among the items for a step
LEAST = 4                       # items stocked for a step
CIRCLES = (4, 3, 3, 2)          # customers at home in each circle
_START = 1_704_096_000          # 1 January 2024, 08:00 UTC


@dataclasses.dataclass(frozen=True)
class World:
  """The shop's shelves and its customers' habits. T kinds, N items, P projects, A axes; int64.

  members: (T, M) rows of a kind's items, -1 beyond. kind: (N,). circle: (N,) of the brand.
  values: (N, A) attribute values, -1 without. popularity: (N,) within the kind. demand: (T,).
  chains: (P + 1, S) kinds of a project's steps, -1 beyond. spans: (P + 1,) numbers of steps.
  taste: (P, A) attribute values a project asks for. follow: (P + 1, P) weights of the next project.
  Row P of chains, spans and follow is where customers without a project stand.
  """
  members: np.ndarray
  kind: np.ndarray
  circle: np.ndarray
  values: np.ndarray
  popularity: np.ndarray
  demand: np.ndarray
  chains: np.ndarray
  spans: np.ndarray
  taste: np.ndarray
  follow: np.ndarray


@dataclasses.dataclass(frozen=True)
class Walk:
  """Where U customers stand; the arrays change with every purchase.

  circle, project, step: (U,). done: (U, P) bool, projects begun. bought: (U, N) bool
  """
  circle: np.ndarray
  project: np.ndarray
  step: np.ndarray
  done: np.ndarray
  bought: np.ndarray


def make_shop(seed: int = 0, items: int = 1000, users: int = CUSTOMERS) -> Dataset:
  """Generates the shop of `seed` with title, brand, categories, description, price, attributes.

  items, users: how many. Few items make a shop of fewer kinds and projects. Raises ConfigError
  below 60 items or 1 user.
  """
  world, catalog = _stock(seed, items, users)
  walk, lengths, bits = _begin(world, seed, users)
  bought = np.zeros((users, LONGEST), np.int64)
  for step in range(LONGEST):
    rows = np.flatnonzero(lengths > step)
    bought[rows, step] = _buy(world, walk, rows, bits[rows, step])
  flat_items = bought[np.arange(LONGEST) < lengths[:, None]].astype(np.int32) + 1
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  names = tuple(f'U{u:05d}' for u in range(1, users + 1))
  interactions = Interactions(names, flat_items, offsets, _times(seed, lengths))
  name = 'sample' if (seed, users) == (0, CUSTOMERS) else f'sample:{seed}'
  name += f':{users}' if users != CUSTOMERS else ''
  return make_dataset(name, catalog, interactions)


def oracle(seed: int = 0, items: int = 1000, users: int = CUSTOMERS) -> dict[str, dict[str, float]]:
  """What can be reached on the shop's leave-one-out test, history masked, ties against the target.

  'oracle' ranks by the true probability of the next item, given the customer's true circle,
  attributes, project and step: no model that sees only the items can expect more. 'popularity'
  ranks by counts over all but the last two items of each user. seed, items, users: as in
  `make_shop`. Returns HR@10 and NDCG@10 of both.
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


def _stock(seed: int, items: int, users: int) -> tuple[World, Catalog]:
  """Fills the shelves."""
  kinds, chains = _projects_for(items)
  if users < 1 or items < 60:
    raise ConfigError(f'a sample shop of {items} items and {users} users is too small; '
                      'make it at least 60 items and 1 user.')
  spans = np.array([len(c) for c in chains] + [0])
  table = np.full((len(spans), spans.max()), -1)
  for p, chain in enumerate(chains):
    table[p, :len(chain)] = chain
  # Every step of every project finds items that suit it.
  mixed = np.argsort(_bits(seed, 'order', items), kind='stable')
  purpose, place = mixed % spans.sum(), mixed // spans.sum()
  kind = table[table >= 0][purpose]
  project = np.repeat(np.arange(len(spans)), spans)[purpose]
  taste, values = _values(seed, kinds, kind, project, len(chains))
  shift = _draw(_bits(seed, 'shifts', (spans.sum(), 2)), 8)[purpose]
  world = World(
      members=_members(kind, len(kinds)), kind=kind, circle=(place + shift[:, 0]) % len(BRANDS),
      values=values, popularity=np.array(RANKS)[(place + shift[:, 1]) % len(RANKS)],
      demand=np.bincount(table[table >= 0]), chains=table, spans=spans, taste=taste,
      follow=_follow(seed, len(chains)))
  return world, _catalog(seed, kinds, world)


def _projects_for(items: int) -> tuple[list[product_text.Kind], list[list[int]]]:
  """The kinds of the first projects, which leave LEAST items for each step, and rows of kinds."""
  chains, steps = [], 0
  for chain in product_text.projects().values():
    steps += len(chain)
    if steps * LEAST <= items:
      chains.append(chain)
  used = {key for chain in chains for key in chain}
  kinds = [kind for kind in product_text.kinds() if kind.key in used]
  rows = {kind.key: t for t, kind in enumerate(kinds)}
  return kinds, [[rows[key] for key in chain] for chain in chains]


def _values(seed: int, kinds: list[product_text.Kind], kind: np.ndarray, project: np.ndarray,
            projects: int) -> tuple[np.ndarray, np.ndarray]:
  """What projects ask for, (P, A), and values of items that mostly follow it, (N, A)."""
  sizes = np.array([len(v) for v in AXES.values()])
  varies = np.array([[axis in k.axes for axis in AXES] for k in kinds])
  taste = _draw(_bits(seed, 'taste', (projects, len(sizes))), sizes)
  bits = _bits(seed, 'values', (2, len(kind), len(sizes)))
  values = np.where(_draw(bits[0], 100) < SUIT, taste[project], _draw(bits[1], sizes))
  return taste, np.where(varies[kind], values, -1)


def _members(kind: np.ndarray, kinds: int) -> np.ndarray:
  members = np.full((kinds, np.bincount(kind).max()), -1)
  for t in range(kinds):
    rows = np.flatnonzero(kind == t)
    members[t, :len(rows)] = rows
  return members


def _follow(seed: int, projects: int) -> np.ndarray:
  """Weights of the next project, (P + 1, P) int64: popular ones, and three that are kindred."""
  base = 60 // (np.arange(projects) + 3) + 3
  follow = np.tile(base, (projects + 1, 1))
  for p, kindred in enumerate(_draw(_bits(seed, 'kindred', (projects, 3)), projects)):
    follow[p, kindred] = base[kindred] * KINDRED
  return follow


def _catalog(seed: int, kinds: list[product_text.Kind], world: World) -> Catalog:
  departments = list(dict.fromkeys(k.department for k in kinds))
  bits = _bits(seed, 'texts', (len(world.kind), 12)).tolist()
  rows, titles = [], set()
  for i, row in enumerate(bits):
    kind = kinds[world.kind[i]]
    # Three of a circle's ten brands are at home in a department.
    branch = 3 * departments.index(kind.department) + product_text.pick((0, 1, 2), row[10])
    brand = BRANDS[world.circle[i]][branch % 10]
    values = {axis: AXES[axis][v] for axis, v in zip(AXES, world.values[i]) if v >= 0}
    rows.append(product_text.describe(kind, brand, world.circle[i], values, 101 + i, row))
    if rows[-1]['title'] in titles:
      rows[-1]['title'] += f', no. {101 + i}'
    titles.add(rows[-1]['title'])
  ids = tuple(f'P{i:04d}' for i in range(1, len(rows) + 1))
  return Catalog(ids, {name: [row[name] for row in rows] for name in rows[0]})


def _begin(world: World, seed: int, users: int) -> tuple[Walk, np.ndarray, np.ndarray]:
  """Customers before their first purchase, lengths (U,), bits (U, LONGEST, 6)."""
  first = _bits(seed, 'customers', (users, 2))
  fade = [4096 * 3 ** k // 4 ** k for k in range(LONGEST - SHORTEST + 1)]
  projects = len(world.spans) - 1
  walk = Walk(
      circle=_choose(np.tile(CIRCLES, (users, 1)), first[:, 0]),
      project=np.full(users, projects), step=np.zeros(users, np.int64),
      done=np.zeros((users, projects), bool), bought=np.zeros((users, len(world.kind)), bool))
  lengths = SHORTEST + _choose(np.tile(fade, (users, 1)), first[:, 1])
  return walk, lengths, _bits(seed, 'purchases', (users, LONGEST, 6))


def _buy(world: World, walk: Walk, rows: np.ndarray, bits: np.ndarray) -> np.ndarray:
  """Lets the customers `rows` buy once and moves them on. Returns item rows (n,) int64."""
  noise = _draw(bits[:, 0], 100) < NOISE
  chosen = np.zeros(len(rows), np.int64)
  kind = _advance(world, walk, rows[~noise], bits[~noise])
  shelf, weights = _appeal(world, walk, rows[~noise], walk.project[rows[~noise]], kind)
  chosen[~noise] = shelf[np.arange(len(shelf)), _choose(weights, bits[~noise, 4])]
  # Who has everything of a kind buys something else.
  noise[~noise] = weights.sum(axis=1) == 0
  free = ~walk.bought[rows[noise]]
  chosen[noise] = _choose(free * _fame(world), bits[noise, 4])
  walk.bought[rows, chosen] = True
  return chosen


def _advance(world: World, walk: Walk, rows: np.ndarray, bits: np.ndarray) -> np.ndarray:
  """Takes customers on, or back for something they need again. Returns kinds (n,) int64."""
  step, underway = walk.step[rows], walk.project[rows] < len(world.follow) - 1
  back = underway & (_draw(bits[:, 5], 100) < RETURN)
  again = _draw(bits[:, 1], step + 1)
  jumps = np.tile(JUMPS, (len(rows), 1))
  step = step + 1 + _choose(jumps, bits[:, 1])
  over = ~back & (step >= world.spans[walk.project[rows]])
  leaving = rows[over]
  project = _choose(_prospects(world, walk, leaving), bits[over, 2])
  step[over] = _choose(jumps[over], bits[over, 3])
  walk.project[leaving] = project
  walk.done[leaving, project] = True
  walk.step[rows[~back]] = step[~back]
  return world.chains[walk.project[rows], np.where(back, again, step)]


def _prospects(world: World, walk: Walk, rows: np.ndarray) -> np.ndarray:
  """Weights (n, P) of the next project; one that was done only comes again when all are."""
  done = walk.done[rows]
  return world.follow[walk.project[rows]] * (~done | done.all(axis=1, keepdims=True))


def _appeal(world: World, walk: Walk, rows: np.ndarray, project: np.ndarray,
            kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows (n, M) of the items of a kind, and what draws customers to them, (n, M) int64."""
  items = world.members[kind]
  matches = (world.values[items] == world.taste[project][:, None]).sum(axis=2)
  home = world.circle[items] == walk.circle[rows][:, None]
  weights = world.popularity[items] * MATCH ** matches * np.where(home, CIRCLE, 1)
  return items, weights * (items >= 0) * ~walk.bought[rows[:, None], items]


def _fame(world: World) -> np.ndarray:
  """Popularity over the whole shop, (N,) int64."""
  return world.popularity * world.demand[world.kind]


def _odds(world: World, walk: Walk, rows: np.ndarray) -> np.ndarray:
  """True probability of the next item for customers `rows`, (n, N) float64."""
  odds = np.zeros((len(rows), len(world.kind) + 1))  # the last column takes the -1 of short shelves
  project = walk.project[rows]
  back = np.where(project < len(world.follow) - 1, RETURN / 100, 0)
  for earlier in range(world.chains.shape[1]):
    mass = back / (walk.step[rows] + 1) * (earlier <= walk.step[rows])
    _spread(odds, world, walk, rows, mass, project, np.full(len(rows), earlier))
  leaving = np.zeros(len(rows))
  for ahead, share in enumerate(JUMPS, start=1):
    step, mass = walk.step[rows] + ahead, (1 - back) * share / 100
    inside = step < world.spans[project]
    leaving += ~inside * mass
    _spread(odds, world, walk, rows, inside * mass, project, np.where(inside, step, 0))
  prospects = _prospects(world, walk, rows)
  prospects = leaving[:, None] * prospects / prospects.sum(axis=1, keepdims=True)
  for following in range(prospects.shape[1]):
    for step, share in enumerate(JUMPS):
      _spread(odds, world, walk, rows, prospects[:, following] * share / 100,
              np.full(len(rows), following), np.full(len(rows), step))
  odds = odds[:, :-1] * (1 - NOISE / 100)
  fame = ~walk.bought[rows] * _fame(world)
  # Noise, and what fell to kinds of which a customer has everything.
  return odds + (1 - odds.sum(axis=1, keepdims=True)) * fame / fame.sum(axis=1, keepdims=True)


def _spread(odds: np.ndarray, world: World, walk: Walk, rows: np.ndarray, mass: np.ndarray,
            project: np.ndarray, step: np.ndarray) -> None:
  """Adds mass (n,) to the items of a project's step, in proportion to their appeal."""
  moving = np.flatnonzero(mass)
  kind = world.chains[project[moving], step[moving]]
  items, weights = _appeal(world, walk, rows[moving], project[moving], kind)
  totals = weights.sum(axis=1, keepdims=True)
  share = mass[moving, None] * weights / np.maximum(totals, 1)
  odds[moving[:, None], items] += share


def _ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Rank (n,) of each target by scores (n, N), 0 is best, ties against it."""
  return (scores >= scores[np.arange(len(targets)), targets][:, None]).sum(axis=1) - 1


def _metrics(ranks: np.ndarray) -> dict[str, float]:
  hits = ranks < 10
  return {'HR@10': float(hits.mean()),
          'NDCG@10': float((hits / np.log2(ranks + 2)).mean())}


def _times(seed: int, lengths: np.ndarray) -> np.ndarray:
  """Seconds since 1970 of all purchases: a day within a year, then gaps of 1 to 240 hours."""
  first = _draw(_bits(seed, 'starts', len(lengths)), 365 * 24 * 60)
  gaps = 60 + _draw(_bits(seed, 'gaps', int(lengths.sum())), 239 * 60)
  ends = np.cumsum(lengths)
  elapsed = np.cumsum(gaps)
  minutes = np.repeat(first - elapsed[ends - lengths], lengths) + elapsed
  return _START + 60 * minutes


def _bits(seed: int, what: str, shape: int | tuple[int, ...]) -> np.ndarray:
  """Random bits of a stream named `what`, uint64."""
  stream = int.from_bytes(what.encode(), 'little')
  return np.random.PCG64([seed, stream]).random_raw(int(np.prod(shape))).reshape(shape)


def _draw(bits: np.ndarray, below: int | np.ndarray) -> np.ndarray:
  """Uniform whole numbers 0 .. below - 1 from random bits, int64."""
  return ((bits >> np.uint64(32)) * np.asarray(below, np.uint64) >> np.uint64(32)).astype(np.int64)


def _choose(weights: np.ndarray, bits: np.ndarray) -> np.ndarray:
  """One column a row, (n,), in proportion to weights (n, K) int64; 0 if all are 0."""
  sums = np.cumsum(weights, axis=1)
  return (sums <= _draw(bits, sums[:, -1])[:, None]).sum(axis=1) * (sums[:, -1] > 0)
