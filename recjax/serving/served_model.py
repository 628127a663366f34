"""Trained runs, opened for serving: one batcher each, programs compiled for few shapes."""
import dataclasses
import functools
import logging
import os
import threading
import time
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from recjax import recommend, run_files, settings
from recjax.decoding.prefix_memory import PrefixMemory
from recjax.errors import ConfigError
from recjax.evaluation.recommender import CatalogRecommender, as_recommender
from recjax.serving.batcher import Batcher
from recjax.serving.catalog_snapshot import CatalogSnapshot, CatalogVersions
from recjax.serving.user_histories import TrainingHistories

BATCH_SIZES = (1, 8, 64)  # histories of a call, padded up
TOP_KS = (20, 100)  # items of an answer, padded up, as few as suffice
WARM_UP_LENGTHS = (1, 9, 17, 33, 65)  # of histories that are run before the first request
LLM_BATCH_SIZE, CHAT_BATCH_SIZE, MAX_WAITING_CHATS = 8, 8, 64
MAX_HISTORY_READ = 1000  # last items of a history that a model is shown
PREFIX_MIB = 256  # of what a language model keeps of prompts
log = logging.getLogger('recjax')


@dataclasses.dataclass(frozen=True)
class RecommendQuery:
  """One history to recommend for.

  history: item indices 1..N, oldest first. k: how many items, at most the last of TOP_KS. allowed:
  (N,) bool, which items may come.
  """
  history: Sequence[int]
  k: int
  allowed: np.ndarray


@dataclasses.dataclass(frozen=True)
class Purchases:
  """Who bought which item, for what buyers have in common.

  users: the buyers of all items, item 1 first. offsets: (N + 1,), where in `users` each begins.
  """
  offsets: np.ndarray
  users: np.ndarray

  def buyers(self, item: int) -> np.ndarray:
    """Returns the users that bought item index 1..N."""
    return self.users[self.offsets[item - 1]:self.offsets[item]]


class ServedModel:
  """One trained run behind a queue.

  name: as clients call it. method: the name of its method. recommender: what it trained. catalogs:
  its catalog, which may change. chat_model: what replies to conversations, or None. batched:
  whether requests are answered together. on_batch: called with (kind, name, size, seconds) after
  each call.
  tags: {item id: [(tag, weight)]} of a BETag run, or None. purchases: of the data set, or None.
  training_histories: of the users of the data set; without them nobody is known. prefix_memory: of
  the prompts that the run's language model read, or None.

  opened: when, seconds since 1970. is_ready: whether its programs are compiled. failure: why they
  could not be, '' where they could. batch_sizes: of its calls. batch_seconds: {size: how long a
  call takes}, as `warm_up` measures it.
  """

  def __init__(self, name: str, method: str, recommender: CatalogRecommender,
               catalogs: CatalogVersions, chat_model: Any = None, batched: bool = True,
               on_batch: Callable[[str, str, int, float], None] | None = None,
               tags: Mapping[str, Sequence[tuple[str, float]]] | None = None,
               purchases: Purchases | None = None,
               training_histories: TrainingHistories | None = None,
               prefix_memory: PrefixMemory | None = None):
    self.name, self.method, self.catalogs = name, method, catalogs
    self.recommender, self.chat_model = recommender, chat_model
    self.tags, self.purchases, self.prefix_memory = tags, purchases, prefix_memory
    self.training_histories = training_histories or TrainingHistories(None)
    max_batch = recommender.max_batch or (
        BATCH_SIZES[-1] if recommender.masks_by_row else LLM_BATCH_SIZE)
    self.batch_sizes = tuple(s for s in BATCH_SIZES if s <= max_batch) if batched else (1,)
    self.uses_llm = max_batch < BATCH_SIZES[-1]
    self.batch_seconds = dict.fromkeys(self.batch_sizes, 0.0)
    on_batch = on_batch or (lambda kind, name, size, seconds: None)
    self.batcher = Batcher(self.answer, self.batch_sizes[-1], name=f'recommend {name}',
                           on_batch=functools.partial(on_batch, 'recommend', name),
                           batch_size_for=self.best_batch_size)
    self.chat_batcher = chat_model and Batcher(
        chat_model, CHAT_BATCH_SIZE if batched else 1, MAX_WAITING_CHATS, name=f'chat {name}',
        on_batch=functools.partial(on_batch, 'chat', name), settles_early=True)
    self.opened, self.is_ready, self.failure = time.time(), False, ''
    self._warm_start, self._warm_done, self._warm_steps = 0.0, 0, 0

  @property
  def waiting(self) -> int:
    """How many requests wait."""
    return self.batcher.waiting + (self.chat_batcher.waiting if self.chat_batcher else 0)

  @property
  def snapshot(self) -> CatalogSnapshot:
    """The catalog that is served now."""
    return self.catalogs.current

  def answer(self, queries: Sequence[RecommendQuery]) -> list[list[tuple[int, float]]]:
    """Recommends for many histories; popular items where a history is empty.

    queries: what to recommend for.

    Returns [(item index, score), ...] of each, best first.
    """
    answers: list[Any] = [None] * len(queries)
    for rows in self._group(queries):
      k = max(queries[row].k for row in rows)
      k = min(next(top_k for top_k in TOP_KS if top_k >= k), len(self.snapshot))
      for row, found in zip(rows, self._answer_group([queries[row] for row in rows], k)):
        answers[row] = found[:queries[row].k]
    return answers

  def best_batch_size(self, waiting: int) -> int:
    """Returns the size of calls by which `waiting` requests are answered soonest; the larger one
    in doubt."""
    return min(reversed(self.batch_sizes),
               key=lambda size: -(-waiting // size) * self.batch_seconds[size])

  def _group(self, queries):
    """Rows that one call can answer: all that have a history, or those of them with one mask."""
    rows_by_mask = {}
    for row, query in enumerate(queries):
      if query.history:
        key = b'' if self.recommender.masks_by_row else query.allowed.tobytes()
        rows_by_mask.setdefault(key, []).append(row)
    return [*rows_by_mask.values(),
            *([row] for row, query in enumerate(queries) if not query.history)]

  def _answer_group(self, queries, k):
    if not queries[0].history:
      return [most_popular(self.snapshot, queries[0].allowed, k)]
    size = next(s for s in self.batch_sizes if s >= len(queries))
    padded = [*queries, *[queries[-1]] * (size - len(queries))]
    histories = [np.array(query.history[-MAX_HISTORY_READ:], np.int32) for query in padded]
    if self.recommender.masks_by_row:
      mask = np.stack([query.allowed for query in padded])
    else:
      mask = queries[0].allowed
      if not mask.any():
        return [[] for _ in queries]
    items, scores = self.recommender.top_items(histories, k, False, mask)
    return [[(item, score) for item, score in zip(
        np.asarray(found).tolist(), np.asarray(of_found).tolist()) if item]
            for _, found, of_found in zip(queries, items, scores)]

  def top_items(self, histories: Sequence[Sequence[int] | np.ndarray], k: int,
                exclude_seen: bool = True, mask: np.ndarray | None = None
                ) -> tuple[list[list[int]], np.ndarray]:
    """Recommends for whole lists of histories at once, in programs of few shapes.

    histories: lists of item indices 1..N, oldest first. k: how many items. exclude_seen: leave
    those of the history out. mask: (N,) bool, which items may come, None for all; retired ones
    never come.

    Returns item indices [B][<= k] and scores (B, <= k).
    """
    snapshot, count = self.snapshot, len(histories)
    if not snapshot.is_live.all():
      mask = snapshot.is_live if mask is None else snapshot.is_live & mask
    size = next((s for s in (*BATCH_SIZES, 512) if s >= count), -(-count // 512) * 512)
    top_k = next((top_k for top_k in TOP_KS if top_k >= k), len(snapshot))
    rows = [np.array(history, np.int32) for history in histories]
    items, scores = self.recommender.top_items(
        [*rows, *[rows[-1]] * (size - count)], min(top_k, len(snapshot)), exclude_seen, mask)
    return [[int(item) for item in row if item][:k] for row in items[:count]], scores[:count, :k]

  def warm_up(self) -> None:
    """Compiles what requests need before they come, and measures how long calls take.

    What goes wrong is logged and stands in `failure`; how far it is in `warm_up_state`.
    """
    self._warm_start = start = time.monotonic()
    try:
      steps = self._warm_up_steps()
      for self._warm_done, step in enumerate(steps):
        self._warm_steps = len(steps)
        step()
    except Exception as error:
      log.exception('%s does not work', self.name)
      self.failure = f'{self.name}: {error}'
      return
    self.is_ready = True
    log.info('%s is ready after %.1f s', self.name, time.monotonic() - start)

  def _warm_up_steps(self) -> list[Callable[[], Any]]:
    """What `warm_up` does, a call each."""
    all_allowed = np.ones(len(self.snapshot), bool)
    title_lengths = [len(self.snapshot.title(i)) for i in range(1, len(self.snapshot) + 1)]
    long = (np.argsort(title_lengths)[-20:] + 1).tolist()  # later prompts are padded to the first
    histories = [long, long[:3]] if self.uses_llm else [[1] * n for n in WARM_UP_LENGTHS]

    def measure(size: int) -> None:
      last = [RecommendQuery(histories[-1], TOP_KS[0], all_allowed)] * size
      self.batch_seconds[size] = min(
          timeit.repeat(functools.partial(self.answer, last), number=1, repeat=3))
    steps: list[Callable[[], Any]] = []
    for size in self.batch_sizes:
      for history in histories:
        for k in TOP_KS if len(history) == 1 else TOP_KS[:1]:
          queries = [RecommendQuery(history, k, all_allowed)] * size
          steps.append(functools.partial(self.answer, queries))
      steps.append(functools.partial(measure, size))
    if self.chat_model is not None:
      steps.append(self.chat_model.warm)
    return steps

  def warm_up_state(self) -> str:
    """Returns why the model does not answer yet, or never will; '' where it does."""
    if self.is_ready or self.failure:
      return self.failure
    if not self._warm_steps:
      return f'{self.name}: waits to be compiled'
    seconds = time.monotonic() - self._warm_start
    left = (f', about {seconds / self._warm_done * (self._warm_steps - self._warm_done):.0f} s left'
            if self._warm_done else '')
    return (f'{self.name}: compiles, step {self._warm_done + 1} of {self._warm_steps}, for '
            f'{seconds:.0f} s{left}')

  def forget_prompts(self) -> None:
    """Makes room where another model answers now: prompts are read anew if it is ever asked."""
    if self.prefix_memory:
      self.prefix_memory.clear()

  def close(self, timeout: float) -> None:
    """Answers what waits and takes no more. timeout: seconds that each queue has."""
    for batcher in filter(None, (self.batcher, self.chat_batcher)):
      batcher.close(timeout)


def most_popular(snapshot: CatalogSnapshot, allowed: np.ndarray, k: int
                 ) -> list[tuple[int, float]]:
  """Returns what is bought most, for somebody of whom nothing is known: (item index, how often).

  snapshot: the catalog. allowed: (N,) bool, which items may come. k: how many.
  """
  items = snapshot.by_popularity[allowed[snapshot.by_popularity - 1]][:k]
  return [(int(item), float(snapshot.purchase_counts[item - 1])) for item in items]


def count_purchases(dataset: Any) -> tuple[np.ndarray, Purchases | None]:
  """Returns how often each item was bought, (N,) int64, and who bought it, None where unknown.

  dataset: a Dataset, or Records, which keep no interactions in memory.
  """
  n_items = len(dataset.catalog)
  interactions = getattr(dataset, 'interactions', None)
  if interactions is None:
    return np.zeros(n_items, np.int64), None
  counts = np.bincount(interactions.items, minlength=n_items + 1)[1:]
  users = np.repeat(np.arange(len(interactions), dtype=np.int32), interactions.lengths())
  order = np.argsort(interactions.items, kind='stable')
  return counts, Purchases(np.concatenate([[0], np.cumsum(counts)]), users[order])


def co_purchased(purchases: Purchases | None, item: int, history: Iterable[int],
                 limit: int = 2) -> list[tuple[int, int]]:
  """Returns items of a history that the buyers of `item` bought too, most telling first.

  purchases: of the data set, or None. item: an item index 1..N. history: item indices. limit: the
  most to return.

  Each stands with how many bought both; items that many buy anyway stand further behind.
  """
  if purchases is None:
    return []
  buyers, scored = purchases.buyers(item), []
  for other in dict.fromkeys(history):
    other_buyers = purchases.buyers(other)
    shared = len(np.intersect1d(buyers, other_buyers))
    if shared > 1:
      scored.append((shared / len(other_buyers) ** 0.5, other, shared))
  scored.sort(key=lambda entry: -entry[0])
  return [(other, shared) for _, other, shared in scored[:limit]]


class ModelOpener:
  """Opens finished runs; those on the same data share a catalog, and users' histories.

  chat_data: further data sets that chat models recommend from. items_file: the items as they are
  now, as CatalogVersions takes it. batched, on_batch: as ServedModel takes them. later: a data set
  that carries on that of every run, as `recommend.load` takes it. prefix_bytes: that each language
  model may keep of prompts, 0 for nothing. on_prompt: called with (name, tokens found, tokens read)
  for each of its prompts.
  """

  def __init__(self, chat_data: Sequence[str] = (), items_file: str | os.PathLike | None = None,
               batched: bool = True,
               on_batch: Callable[[str, str, int, float], None] | None = None,
               later: str | os.PathLike | None = None, prefix_bytes: int = PREFIX_MIB << 20,
               on_prompt: Callable[[str, int, int], None] | None = None):
    self.prefix_bytes = prefix_bytes
    self.on_prompt = on_prompt or (lambda name, found, read: None)
    self.chat_data, self.items_file, self.later = chat_data, items_file, later
    self.batched, self.on_batch = batched, on_batch
    self._shared: dict[str, tuple[CatalogVersions, Purchases | None, TrainingHistories]] = {}

  def open(self, workdir: str | os.PathLike) -> ServedModel:
    """Returns the run in the folder `workdir` as it is now. Raises UserError."""
    module, dataset = recommend.open_data(workdir, self.later)
    if dataset.fingerprint not in self._shared:
      counts, purchases = count_purchases(dataset)
      self._shared[dataset.fingerprint] = (
          CatalogVersions(dataset.catalog, counts, self.items_file), purchases,
          TrainingHistories(dataset))
    catalogs, purchases, histories = self._shared[dataset.fingerprint]
    name = name_of(workdir)
    memory = PrefixMemory(self.prefix_bytes, functools.partial(
        self.on_prompt, name)) if hasattr(module, 'faces') else None
    with run_files.opening(workdir), settings.reading(workdir):
      recommender, chat_model, tags = open_run(
          module, workdir, self.chat_data, self.later, memory)
    return ServedModel(
        name, module.__name__.rsplit('.', 1)[-1],
        as_recommender(recommender, dataset.catalog), catalogs, chat_model, self.batched,
        self.on_batch, tags, purchases, histories, memory)


def name_of(workdir: str | os.PathLike) -> str:
  """Returns what clients call the run in the folder `workdir`."""
  return str(workdir).rstrip('/').rsplit('/', 1)[-1] or str(workdir)


def open_models(workdirs: Iterable[str | os.PathLike], opener: ModelOpener | None = None,
                log: Callable[[str], Any] = lambda text: None, **options: Any
                ) -> dict[str, ServedModel]:
  """Opens finished runs.

  workdirs: their folders. opener: what opens them; without it one of these `options`. log: is told
  which one is read.

  Returns {name: model} in order. Raises ConfigError where two folders have one name.
  """
  models: dict[str, ServedModel] = {}
  opener, workdirs = opener or ModelOpener(**options), list(workdirs)
  for number, workdir in enumerate(workdirs, 1):
    name = name_of(workdir)
    if name in models:
      raise ConfigError(f'two folders are called {name!r}, which clients could not tell apart; '
                        'rename one')
    log(f'reading {name}, {number} of {len(workdirs)}')
    models[name] = opener.open(workdir)
  return models


def open_run(module: ModuleType, workdir: str | os.PathLike, chat_data: Sequence[str],
             later: str | os.PathLike | None, memory: PrefixMemory | None
             ) -> tuple[Any, Any, Any]:
  """Returns what a run recommends and chats with, and the tags of its items; the last two may be
  None.

  module: the package of its method. workdir, chat_data, later: as `ModelOpener` takes them. memory:
  of the prompts of a method with `faces`.
  """
  if hasattr(module, 'faces'):
    recommender, chat_model = module.faces(workdir, chat_data, later, memory)
  else:
    recommender, chat_model = module.recommender(workdir, later), None
  tags = module.item_tags(workdir, later) if hasattr(module, 'item_tags') else None
  return recommender, chat_model, tags


def warm_up_all(models: Mapping[str, ServedModel]) -> list[threading.Thread]:
  """Warms up all `models`, {name: model}, each in a thread of its own; returns these at once."""
  threads = [threading.Thread(target=model.warm_up, name=f'warm up {model.name}', daemon=True)
             for model in models.values()]
  for thread in threads:
    thread.start()
  return threads


def describe_models(models: Mapping[str, ServedModel], workdirs: Iterable[str]) -> list[str]:
  """Returns what `recjax serve` says at its start, a line a model.

  models: {name: model}. workdirs: their folders, in the same order.
  """
  lines = []
  for (name, model), workdir in zip(models.items(), workdirs):
    config = run_files.read_config(workdir)['config']
    lines.append(f'{name}: {model.method} on {config["data"]}, {len(model.snapshot):,} items'
                 + (', converses' if model.chat_model else '')
                 + (', has tags' if model.tags else ''))
  return lines
