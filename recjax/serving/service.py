"""What the routes share: the models, their queues, interests, and reasons for recommendations."""
import asyncio
import concurrent.futures
import dataclasses
import functools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fastapi
import numpy as np
from fastapi.concurrency import run_in_threadpool

from recjax.data.formats import etegrec
from recjax.errors import ConfigError, DataError, ServiceError, UserError
from recjax.serving import limits
from recjax.serving.access_log import AccessLog
from recjax.serving.api_keys import ApiKey, KeyRing, read_keys
from recjax.serving.batcher import Batcher, QueueFull
from recjax.serving.catalog_snapshot import CatalogSnapshot
from recjax.serving.events import Event, EventStore, Shown, StoreUnavailable, Written
from recjax.serving.http_errors import CLIENT_CLOSED_REQUEST, RequestError, replace_surrogates
from recjax.serving.prometheus import Metrics
from recjax.serving.served_model import PREFIX_MIB, RecommendQuery, ServedModel, co_purchased
from recjax.serving.user_histories import parse_split
from recjax.serving.workers import Worker
from recjax.text import interest_terms as local_interests
from recjax.text.llm_api import ApiConfig

INTEREST_WORKERS = 8  # interests that are asked for at a time
EVENT_BATCH, MAX_WAITING_EVENTS = 256, 4096  # requests whose events are written together, and wait
WATCH_SECONDS = 0.05  # after which somebody looks whether the client of an answer is still there
log = logging.getLogger('recjax')


@dataclasses.dataclass(frozen=True)
class ServerSettings:
  """How a server is run.

  host: address to listen on. port: 0 for any free one.
  api_key: a secret that every request must carry, '' for none. keys: a file of more of them, as
  `api_keys.read_keys` reads it. rate, burst: how often whoever needs no key of that file may ask.
  unix_socket: the path of a socket to listen on instead, '' for none.
  access_log, log_histories: where requests are logged, as `AccessLog` takes it, '' for nowhere, and
  whether with histories.
  answer_seconds: that an answer may take. body_seconds: that a client may take to send a body.
  max_concurrent: requests at a time.
  shop: whether the demonstration shop is served too.
  interests_url, interests_model: an OpenAI-compatible endpoint that interests come from, '' for
  words of the catalog. interests_key_env: the environment variable that holds its key.
  interests_seconds: that it may take.
  events: the database of events, as `EventStore` takes it. split: which users get which model, as
  `parse_split` takes it. history_types: which events make a user's history. workers: processes
  that answer. prefix_bytes: that each language model may keep of prompts, of each worker.
  """
  host: str = '127.0.0.1'
  port: int = 8000
  api_key: str = ''
  keys: str = ''
  rate: float = 0.0
  burst: int = 100
  unix_socket: str = ''
  access_log: str = ''
  log_histories: bool = False
  answer_seconds: float = 60.0
  max_concurrent: int = 256
  body_seconds: float = limits.BODY_SECONDS
  shop: bool = True
  interests_url: str = ''
  interests_model: str = ''
  interests_key_env: str = 'OPENAI_API_KEY'
  interests_seconds: float = 20.0
  events: str = ''
  split: str = ''
  history_types: tuple[str, ...] = ('purchase',)
  workers: int = 1
  prefix_bytes: int = PREFIX_MIB << 20


@dataclasses.dataclass(frozen=True)
class FoundInterests:
  """The interests of a history.

  interests: strongest first. source: 'model' where the endpoint foresaw them, 'local' where they
  are words of the catalog, '' where nobody was asked yet. note: why the endpoint gave none, or ''.
  """
  interests: Sequence[str] = ()
  source: str = ''
  note: str = ''


class RecommendationService:
  """Everything behind the routes.

  models: {name: model}, the first answers where a request names none. settings: how the server is
  run. metrics: what is counted. store: the database of events; without it, it is opened as
  `settings.events` says. worker: its place among others, None where it answers alone.

  reopen: {name: opens the run anew}, for `reload_model`. is_closing: whether the server is ending.
  started: when it began, seconds since 1970. executor: threads in which interests are found.
  """

  def __init__(self, models: Mapping[str, ServedModel], settings: ServerSettings | None = None,
               metrics: Metrics | None = None, store: EventStore | None = None,
               worker: Worker | None = None):
    settings = settings or ServerSettings()
    self.worker = worker
    self.models, self.settings = dict(models), settings
    self.reopen: Mapping[str, Callable[[], ServedModel]] = {}
    self._earlier_models: dict[str, ServedModel] = {}
    self._reloading = threading.Lock()
    self.metrics = metrics or Metrics()
    self.keys = open_keys(settings, worker.folder if worker else '')
    self._access_log = AccessLog(
        settings.access_log, settings.log_histories) if settings.access_log else None
    self.split = parse_split(settings.split, models)
    self.store = store or EventStore(settings.events)
    self.event_batcher = Batcher(self.store.write, EVENT_BATCH, MAX_WAITING_EVENTS, name='events',
                                 on_batch=self.metrics.observe_event_batch)
    self.is_closing, self.started = False, time.time()
    self.executor = concurrent.futures.ThreadPoolExecutor(INTEREST_WORKERS, 'interests')
    self._interests_api = ApiConfig(
        settings.interests_url, settings.interests_model, n=1, temperature=0.6,
        timeout=settings.interests_seconds, retries=2) if settings.interests_url else None
    self.metrics.add_gauge(
        'recjax_waiting', 'Requests that wait for a batch',
        lambda: sum(model.waiting for model in self.models.values()))
    self.metrics.add_gauge('recjax_models_ready', 'Models that answer',
                           lambda: sum(m.is_ready for m in self.models.values()))
    for name, model in self.models.items():
      if model.prefix_memory:
        self.metrics.watch_prefix_bytes(name, functools.partial(self._prefix_bytes, name))

  def _prefix_bytes(self, name: str) -> int:
    """Bytes that the model of that name keeps of prompts, and the one before the last reload."""
    memories = (model.prefix_memory for model in (self.models[name], self._earlier_models.get(name))
                if model)
    return sum(memory.num_bytes for memory in memories if memory)

  def model(self, name: str = '', capability: str = '', remedy: str = '') -> ServedModel:
    """Returns a model by name, or where there is none the first that can do what is asked.

    name: of the model, '' for any. capability: an attribute of ServedModel that must not be None,
    '' for none. remedy: what to do where no model can.

    Raises RequestError where there is no such model.
    """
    if name:
      model = self.models.get(name)
      if model is None:
        raise RequestError(404, f'there is no model {name!r:.100}; there are '
                                f'{", ".join(self.models)}')
      if capability and getattr(model, capability) is None:
        raise RequestError(422, f'{name} cannot do this; {remedy}')
      return model
    for model in self.models.values():
      if not capability or getattr(model, capability) is not None:
        return model
    raise RequestError(404, f'no model here can do this; {remedy}')

  def reasons_not_ready(self) -> list[str]:
    """Returns why the server should get no requests now, nothing where it should. Asks the
    database."""
    reasons = [state for model in self.models.values() if (state := model.warm_up_state())]
    if self.is_closing:
      reasons.append('the server is ending')
    try:
      self.store.check()
    except StoreUnavailable:
      reasons.append('the database of events does not answer')
    return reasons

  def reload_model(self, name: str) -> ServedModel:
    """Opens the run of a model anew, warms it up beside the old one, which answers meanwhile, and
    puts it in its place; blocks for as long. The old one is kept for `roll_back_model`.

    name: of the model. Raises RequestError where there is none, or another is being reloaded, and
    ConfigError where the run does not open or does not work; the old one stays then.
    """
    old = self.model(name)
    if old.name not in self.reopen:
      raise RequestError(422, f'{old.name} was not opened from a folder')
    if not self._reloading.acquire(blocking=False):
      raise RequestError(409, 'a model is being reloaded already; try again')
    try:
      try:
        new = self.reopen[old.name]()
        new.warm_up()
      except UserError as error:
        raise RequestError(422, f'the old {old.name} goes on: {error}') from error
      except Exception as error:
        log.exception('%s could not be opened', old.name)
        raise RequestError(422, f'the old {old.name} goes on: {error}') from error
      if new.failure:
        new.close(0)
        raise RequestError(422, f'the old {old.name} goes on: {new.failure}')
      if older := self._earlier_models.pop(old.name, None):
        older.close(self.settings.answer_seconds)
      self._earlier_models[old.name], self.models[old.name] = old, new
      old.forget_prompts()
      return new
    finally:
      self._reloading.release()

  def roll_back_model(self, name: str) -> ServedModel:
    """Puts the model before the last reload back, and keeps the newer one for the next roll-back.

    name: of the model. Raises RequestError where there is none, and where several workers answer.
    """
    self.refuse_with_workers('the model before the last reload is in memory alone')
    current = self.model(name)
    with self._reloading:
      if current.name not in self._earlier_models:
        raise RequestError(422, f'there is no earlier {current.name} to return to')
      earlier = self._earlier_models[current.name]
      newer = self._earlier_models[current.name] = self.models[current.name]
      self.models[current.name] = earlier
      newer.forget_prompts()
      return earlier

  def refuse_with_workers(self, reason: str) -> None:
    """Raises RequestError where several workers answer. reason: why they cannot do this."""
    if self.worker:
      raise RequestError(422, f'this needs --workers=1: {reason}, and a worker that starts anew '
                         'could not return to it; put the earlier files back and reload')

  def spread(self, request: fastapi.Request) -> None:
    """Has the other workers do what this one did for a request; blocks until they have. request: of
    a client, or of another worker, which spreads it itself. Raises RequestError."""
    if self.worker and not getattr(request.state, 'is_of_worker', False):
      self.worker.spread(f'{request.url.path}?{request.url.query}')

  async def answer(self, request: fastapi.Request | None, batcher: Batcher, query: Any) -> Any:
    """Returns the answer to a query when its batch is done.

    request: the client's; where it goes away, the query is taken out of the queue; None where
    nobody can go away. batcher: the queue. query: what it takes. Raises RequestError.
    """
    try:
      answer = batcher.ask(query)
    except QueueFull as error:
      raise RequestError(503, f'{error}; try again', {'Retry-After': '1'}) from None
    loop, watch = asyncio.get_running_loop(), []
    timer = loop.call_later(WATCH_SECONDS, lambda: watch.append(
        loop.create_task(self._give_up(request, answer))))
    try:
      return await answer
    except UserError as error:
      raise RequestError(422, str(error)) from error
    finally:
      timer.cancel()
      for task in watch:
        task.cancel()

  async def _give_up(self, request: fastapi.Request | None, answer: asyncio.Future) -> None:
    """Ends the wait for an answer whose client goes away, or that takes too long."""
    error = RequestError(CLIENT_CLOSED_REQUEST, 'gone')
    try:
      async with asyncio.timeout(self.settings.answer_seconds - WATCH_SECONDS):
        await (wait_for_disconnect(request) if request else asyncio.Event().wait())
    except TimeoutError:
      error = RequestError(504, f'no answer in {self.settings.answer_seconds:g} s')
    if not answer.done():
      answer.set_exception(error)

  async def recommend(self, request: fastapi.Request | None, model: ServedModel,
                      history: Sequence[int], k: int, allowed: np.ndarray
                      ) -> list[tuple[int, float]]:
    """Returns (item index, score) of the best items, best first.

    request: the client's, or None. model: which to ask. history: item indices, oldest first. k: how
    many items. allowed: (N,) bool, which items may come. Raises RequestError.
    """
    query = RecommendQuery(history, min(k, len(model.snapshot)), allowed)
    return await self.answer(request, model.batcher, query)

  def observe_request(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
    """Counts and logs one request. scope: of ASGI. status: of the answer. seconds: that it took."""
    self.metrics.observe_request(scope, status, seconds)
    if self._access_log:
      self._access_log.write(scope, status, seconds)

  def model_of_user(self, name: str, user: str) -> ServedModel:
    """Returns the model that a user gets.

    name: of the model that is asked for, '' for the one that the split gives. user: an id, '' for
    nobody in particular. Raises RequestError where there is no such model.
    """
    return self.model(self.split.choose(user) if self.split and user and not name else name)

  def knows(self, item_id: str) -> bool:
    """Returns whether any model knows the item `item_id`."""
    return any(model.snapshot.index(item_id) for model in self.models.values())

  async def ask_store(self, call: Callable, *args: Any) -> Any:
    """Returns what a method of the store gives. call: the method. args: its arguments. Raises
    RequestError where the database is away."""
    try:
      return await run_in_threadpool(call, *args)
    except StoreUnavailable as error:
      raise store_away(error) from error

  async def user_history(self, model: ServedModel, user: str) -> tuple[list[int], list[str]]:
    """Returns what a user did by now: item indices, oldest first, and ids that the model does not
    know. Every event that was answered for is in it, whichever process wrote it.

    model: whose indices. user: an id. Raises RequestError where the database is away.
    """
    events = await self.ask_store(self.store.history, user, self.settings.history_types)
    return model.training_histories.merge(user, events, model.snapshot.index)

  async def record(self, request: fastapi.Request | None, rows: Sequence[Event | Shown]) -> Written:
    """Writes events, and returns what became of them when they are on disk.

    request: the client's. rows: what to write. Raises RequestError where the database is away.
    """
    written = await self.answer(request, self.event_batcher, rows)
    if isinstance(written, StoreUnavailable):
      raise store_away(written) from written
    return written

  async def record_shown(self, request: fastapi.Request | None, user: str, model: ServedModel,
                         items: Sequence[str]) -> str | None:
    """Writes what an answer shows.

    request: the client's, or None. user: an id. model: that recommended. items: ids, the best
    first.

    Returns the id by which events name the answer; None where the database is away, which keeps
    nobody from an answer.
    """
    request_id = uuid.uuid4().hex if request is None else (
        getattr(request.state, 'request_id', '') or uuid.uuid4().hex)
    shown = Shown(request_id, user, model.name, round(time.time() * 1000), items)
    try:
      await self.record(request, [shown])
    except RequestError as error:
      if error.status == CLIENT_CLOSED_REQUEST:
        raise
      self.metrics.impressions_lost.inc()
      log.warning('an answer is not in the events: %s', error.message)
      return None
    return request_id

  def find_interests(self, snapshot: CatalogSnapshot, history: Sequence[int]) -> FoundInterests:
    """Finds the interests of a history; blocks while the endpoint is asked.

    snapshot: the catalog. history: item indices, oldest first.
    """
    note = ''
    if self._interests_api and history:
      try:
        interests = local_interests.ask_model(
            history, snapshot.columns, self._interests_api, self.settings.interests_key_env,
            etegrec.parse_interests)
        self.metrics.interests.labels('model').inc()
        return FoundInterests(interests, 'model')
      except (ServiceError, ConfigError) as error:
        note = str(error)
    self.metrics.interests.labels('failed' if note else 'local').inc()
    return FoundInterests(local_interests.interests(history, snapshot.terms), 'local', note)

  def explain(self, model: ServedModel, item: int, history: Sequence[int],
              interests: Sequence[str]) -> dict[str, list]:
    """Returns reasons for an item: interests it fits, tags it shares, what its buyers bought.

    model: that recommended it. item: its index. history: item indices, oldest first. interests: of
    the history.
    """
    snapshot, recent = model.snapshot, history[-local_interests.RECENT:]
    reasons: dict[str, list] = {
        'interests': local_interests.shared_terms(item, interests, snapshot.terms), 'tags': [],
        'neighbors': []}
    if model.tags:
      history_tags = {tag for seen in recent
                      for tag, _ in model.tags.get(snapshot.item_id(seen), ())}
      reasons['tags'] = [tag for tag, _ in model.tags.get(snapshot.item_id(item), ())
                         if tag in history_tags][:4]
    for other, people in co_purchased(model.purchases, item, recent):
      reasons['neighbors'].append({'id': snapshot.item_id(other),
                                    'title': snapshot.title(other)[:200], 'people': people})
    return reasons

  def close(self) -> None:
    """Answers what waits, and ends."""
    self.is_closing = True
    for model in (*self.models.values(), *self._earlier_models.values()):
      model.close(self.settings.answer_seconds)
    self.event_batcher.close(self.settings.answer_seconds)
    self.store.close()
    self.executor.shutdown(wait=False, cancel_futures=True)
    if self._access_log:
      self._access_log.close()


async def wait_for_disconnect(request: fastapi.Request) -> None:
  """Returns when the client of `request` has gone."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def open_keys(settings: ServerSettings, folder: str = '') -> KeyRing:
  """Returns the keys of a server. settings: its own. folder: as KeyRing takes it. Raises
  ConfigError."""
  keys = read_keys(settings.keys, os.environ) if settings.keys else ()
  if settings.api_key:
    keys = (*keys, ApiKey('default', settings.api_key, settings.rate, settings.burst))
  return KeyRing(keys, (settings.rate, settings.burst), folder)


def store_away(error: StoreUnavailable) -> RequestError:
  """Returns what a client is told where the database is away. error: what it said, for the log."""
  log.warning('%s', error)
  return RequestError(503, 'the database of events does not answer; try again',
                      {'Retry-After': '5'})


def allowed_mask(snapshot: CatalogSnapshot, **filters: Any) -> np.ndarray:
  """Returns which items may come, (N,) bool.

  snapshot: the catalog. filters: as `CatalogSnapshot.allowed_mask` takes them. Raises RequestError
  for an unknown category.
  """
  try:
    return snapshot.allowed_mask(**filters)
  except DataError as error:
    raise RequestError(422, replace_surrogates(str(error))) from error
