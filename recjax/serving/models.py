"""Trained runs, opened for serving: one batcher each, programs compiled for few shapes."""
import dataclasses
import functools
import logging
import threading
import time
import timeit

import numpy as np

from recjax import recommend as recommend_lib
from recjax import run_files, settings
from recjax.errors import ConfigError
from recjax.serving.batcher import Batcher
from recjax.serving.stock import Shelves

SIZES = (1, 8, 64)  # histories of a batch, padded up
COUNTS = (20, 100)  # items of an answer, padded up, as few as suffice
LENGTHS = (1, 9, 17, 33, 65)  # of histories that are run before the first request
READ = 1000  # last items of a history that a model is shown
log = logging.getLogger('recjax')


@dataclasses.dataclass(frozen=True)
class Ask:
  """One request. history: item indices, oldest first. allowed: (N,) bool. k: items, <= COUNTS."""
  history: list
  k: int
  allowed: np.ndarray


class Model:
  """One run. name: as clients call it. face: the method's recommend. shelves: its catalogue."""

  def __init__(self, name, method, face, shelves, talk=None, together=True, seen=None):
    self.name, self.method, self.face, self.shelves = name, method, face, shelves
    self.by_row = getattr(face, 'rows', False)  # a filter for each history
    most = getattr(face, 'most', SIZES[-1] if self.by_row else 8)
    self.sizes = tuple(s for s in SIZES if s <= most) if together else (1,)
    self.light = most == SIZES[-1]  # no language model answers
    seen = seen or (lambda kind, name, size, seconds: None)
    self.seconds = dict.fromkeys(self.sizes, 0.0)  # of a call, as `warm` measures them
    self.batcher = Batcher(self.answer, self.sizes[-1], name=f'recommend {name}',
                           seen=functools.partial(seen, 'recommend', name), share=self.share)
    self.talk = talk
    self.chat = talk and Batcher(talk, 8 if together else 1, room=64, name=f'chat {name}',
                                 seen=functools.partial(seen, 'chat', name), early=True)
    self.ready, self.trouble, self.tags, self.pairs = False, '', None, None

  @property
  def stock(self):
    return self.shelves.now

  def answer(self, asks):
    """Answers many. -> [[(item index, score), ...]], popular items where a history is empty"""
    out = [None] * len(asks)
    for rows in self.groups(asks):
      k = min(next(c for c in COUNTS if c >= max(asks[r].k for r in rows)), len(self.stock))
      for row, found in zip(rows, self.run([asks[r] for r in rows], k)):
        out[row] = found[:asks[row].k]
    return out

  def share(self, waiting):
    """The size of calls by which so many are answered soonest; the larger one in doubt."""
    return min(reversed(self.sizes), key=lambda s: -(-waiting // s) * self.seconds[s])

  def groups(self, asks):
    """Rows that one call can answer: all, or those with one filter."""
    some = {}
    for row, ask in enumerate(asks):
      if ask.history:
        some.setdefault(b'' if self.by_row else ask.allowed.tobytes(), []).append(row)
    return [*some.values(), *([r] for r, a in enumerate(asks) if not a.history)]

  def run(self, asks, k):
    if not asks[0].history:
      return [popular(self.stock, asks[0], k)]
    ids = self.stock.catalog.ids
    count = next(s for s in self.sizes if s >= len(asks))
    asks = [*asks, *[asks[-1]] * (count - len(asks))]
    histories = [[ids[i - 1] for i in a.history[-READ:]] for a in asks]
    if self.by_row:
      found, scores = self.face(histories, k, False, np.stack([a.allowed for a in asks]))
    else:
      allowed = frozenset(ids[i] for i in np.flatnonzero(asks[0].allowed))
      if not allowed:
        return [[] for _ in asks]
      found, scores = self.face(histories, k, False, allowed)
    find = self.stock.catalog.find
    return [[(find(i), float(s)) for i, s in zip(row, values)]
            for row, values in zip(found, scores)]

  def plain(self):
    """The method's face for whole lists of histories, retired items left out, few shapes."""
    def recommend(histories, k, exclude_seen=True, allowed=None):
      stock, n = self.stock, len(histories)
      if not stock.live.all():
        live = {stock.catalog.ids[i] for i in np.flatnonzero(stock.live)}
        allowed = live if allowed is None else live & set(allowed)
      size = next((s for s in (*SIZES, 512) if s >= n), -(-n // 512) * 512)
      most = next((c for c in COUNTS if c >= k), len(stock))
      found, scores = self.face([*histories, *[histories[-1]] * (size - n)],
                                min(most, len(stock)), exclude_seen, allowed)
      return [row[:k] for row in found[:n]], scores[:n, :k]
    return recommend

  def warm(self):
    """Compiles what requests need, before they come."""
    start, full = time.monotonic(), np.ones(len(self.stock), bool)
    try:
      titles = [len(self.stock.title(i)) for i in range(1, len(full) + 1)]
      long = (np.argsort(titles)[-20:] + 1).tolist()  # later prompts are padded to the first
      for size in self.sizes:
        for history in [[1] * n for n in LENGTHS] if self.light else (long, long[:3]):
          for k in COUNTS if len(history) == 1 else COUNTS[:1]:
            asks = [Ask(history, k, full)] * size
            self.answer(asks)
        self.seconds[size] = min(timeit.repeat(lambda: self.answer(asks), number=1, repeat=3))  # noqa: B023
      if self.talk is not None:
        self.talk.warm()
    except Exception as error:
      log.exception('%s does not work', self.name)
      self.trouble = f'{self.name}: {error}'
      return
    self.ready = True
    log.info('%s is ready after %.1f s', self.name, time.monotonic() - start)


  def close(self, timeout):
    """Answers what waits, takes no more."""
    for batcher in filter(None, (self.batcher, self.chat)):
      batcher.close(timeout)


def popular(stock, ask, k):
  """What is bought most, for somebody of whom nothing is known. The score is how often."""
  good = stock.popular[ask.allowed[stock.popular - 1]][:k]
  return [(int(i), float(stock.counts[i - 1])) for i in good]


def counts_of(shop):
  """How often each item was bought, and who bought it. -> (N,) int64, (offsets, users) or None"""
  n = len(shop.catalog)
  data = getattr(shop, 'interactions', None)
  if data is None:
    return np.zeros(n, np.int64), None
  counts = np.bincount(data.items, minlength=n + 1)[1:]
  users = np.repeat(np.arange(len(data), dtype=np.int32), data.lengths())
  order = np.argsort(data.items, kind='stable')
  return counts, (np.concatenate([[0], np.cumsum(counts)]), users[order])


def open_all(workdirs, data=(), items_file=None, together=True, seen=None, later=None):
  """Opens runs. -> {name: Model}, in order; runs on the same data share a catalogue.

  data: further data sets that chat models recommend from. later: one that carries on that of every
  run, as `recommend.load` takes it. Raises ConfigError where two folders have
  one name.
  """
  out, shelves = {}, {}
  for workdir in workdirs:
    module, shop = recommend_lib.open_data(workdir, later)
    name = str(workdir).rstrip('/').rsplit('/', 1)[-1] or str(workdir)
    if name in out:
      raise ConfigError(f'two folders are called {name!r}, which clients could not tell apart; '
                        'rename one')
    if shop.fingerprint not in shelves:
      counts, bought = counts_of(shop)
      shelves[shop.fingerprint] = Shelves(shop.catalog, counts, items_file), bought
    shelf, bought = shelves[shop.fingerprint]
    with run_files.opening(workdir), settings.reading(workdir):
      face, talk, tags = face_of(module, workdir, data, later)
    method = module.__name__.rsplit('.', 1)[-1]
    out[name] = Model(name, method, face, shelf, talk, together, seen)
    out[name].pairs, out[name].tags = bought, tags
  return out


def face_of(module, workdir, data, later):
  """What a run recommends and talks with, and the tags of its items. -> recommend, talk or None,
  tags or None"""
  face, talk = (module.faces(workdir, data, later) if hasattr(module, 'faces') else
                (module.recommender(workdir, later), None))
  return face, talk, module.item_tags(workdir, later) if hasattr(module, 'item_tags') else None


def together_bought(pairs, item, history, most=2):
  """Items of a history that the people who bought `item` bought too, most telling first.

  -> [(index, people)], those that many buy anyway further behind
  """
  if pairs is None:
    return []
  offsets, users = pairs
  own = users[offsets[item - 1]:offsets[item]]
  found = []
  for other in dict.fromkeys(history):
    theirs = users[offsets[other - 1]:offsets[other]]
    both = len(np.intersect1d(own, theirs))
    if both > 1:
      found.append((both / len(theirs) ** 0.5, other, both))
  return [(other, both) for _, other, both in sorted(found, key=lambda x: -x[0])[:most]]


def warm_all(models):
  """Warms every model in a thread of its own."""
  for model in models.values():
    threading.Thread(target=model.warm, name=f'warm {model.name}', daemon=True).start()


def describe(models, workdirs):
  """What `recjax serve` says at its start. -> lines"""
  out = []
  for (name, model), workdir in zip(models.items(), workdirs):
    config = run_files.read_config(workdir)['config']
    out.append(f'{name}: {model.method} on {config["data"]}, {len(model.stock):,} items'
               + (', converses' if model.talk else '') + (', has tags' if model.tags else ''))
  return out
