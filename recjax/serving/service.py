"""What the routes share: the models, their queues, interests, and reasons for recommendations."""
import asyncio
import concurrent.futures
import dataclasses
import logging
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
from recjax.serving.batcher import Batcher, QueueFull
from recjax.serving.catalog_snapshot import CatalogSnapshot
from recjax.serving.events import Event, EventStore, Shown, StoreUnavailable, Written
from recjax.serving.http_errors import CLIENT_CLOSED_REQUEST, RequestError, replace_surrogates
from recjax.serving.prometheus import Metrics
from recjax.serving.served_model import RecommendQuery, ServedModel, co_purchased
from recjax.serving.user_histories import parse_split
from recjax.text import interest_terms as local_interests
from recjax.text.llm_api import ApiConfig

INTEREST_WORKERS = 8  # interests that are asked for at a time
EVENT_BATCH, MAX_WAITING_EVENTS = 256, 4096  # requests whose events are written together, and wait
log = logging.getLogger('recjax')


@dataclasses.dataclass(frozen=True)
class ServerSettings:
  """How a server is run.

  host: address to listen on. port: 0 for any free one.
  api_key: the secret that every request must carry, '' for none.
  answer_seconds: that an answer may take. body_seconds: that a client may take to send a body.
  max_concurrent: requests at a time.
  shop: whether the demonstration shop is served too.
  interests_url, interests_model: an OpenAI-compatible endpoint that interests come from, '' for
  words of the catalog. interests_key_env: the environment variable that holds its key.
  interests_seconds: that it may take.
  events: the database of events, as `EventStore` takes it. split: which users get which model, as
  `parse_split` takes it. history_types: which events make a user's history.
  """
  host: str = '127.0.0.1'
  port: int = 8000
  api_key: str = ''
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
  `settings.events` says.

  is_closing: whether the server is ending. started: when it began, seconds since 1970. executor:
  threads in which interests are found.
  """

  def __init__(self, models: Mapping[str, ServedModel], settings: ServerSettings | None = None,
               metrics: Metrics | None = None, store: EventStore | None = None):
    settings = settings or ServerSettings()
    self.models, self.settings = models, settings
    self.metrics = metrics or Metrics()
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
        lambda: sum(len(m.batcher) + len(m.chat_batcher or ()) for m in models.values()))
    self.metrics.add_gauge('recjax_models_ready', 'Models that answer',
                           lambda: sum(m.is_ready for m in models.values()))

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

  async def answer(self, request: fastapi.Request, batcher: Batcher, query: Any) -> Any:
    """Returns the answer to a query when its batch is done.

    request: the client's; where it goes away, the query is taken out of the queue. batcher: the
    queue. query: what it takes. Raises RequestError.
    """
    try:
      future = batcher.submit(query)
    except QueueFull as error:
      raise RequestError(503, f'{error}; try again', {'Retry-After': '1'}) from None
    answer = asyncio.wrap_future(future)
    disconnect = asyncio.ensure_future(wait_for_disconnect(request))
    try:
      await asyncio.wait({answer, disconnect}, timeout=self.settings.answer_seconds,
                         return_when=asyncio.FIRST_COMPLETED)
      if answer.done():
        return answer.result()
      if disconnect.done():
        raise RequestError(CLIENT_CLOSED_REQUEST, 'gone')
      raise RequestError(504, f'no answer in {self.settings.answer_seconds:g} s')
    except UserError as error:
      raise RequestError(422, str(error)) from error
    finally:
      disconnect.cancel()
      answer.cancel()

  async def recommend(self, request: fastapi.Request, model: ServedModel, history: Sequence[int],
                      k: int, allowed: np.ndarray) -> list[tuple[int, float]]:
    """Returns (item index, score) of the best items, best first.

    request: the client's. model: which to ask. history: item indices, oldest first. k: how many
    items. allowed: (N,) bool, which items may come. Raises RequestError.
    """
    query = RecommendQuery(history, min(k, len(model.snapshot)), allowed)
    return await self.answer(request, model.batcher, query)

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

  async def record(self, request: fastapi.Request, rows: Sequence[Event | Shown]) -> Written:
    """Writes events, and returns what became of them when they are on disk.

    request: the client's. rows: what to write. Raises RequestError where the database is away.
    """
    written = await self.answer(request, self.event_batcher, rows)
    if isinstance(written, StoreUnavailable):
      raise store_away(written) from written
    return written

  async def record_shown(self, request: fastapi.Request, user: str, model: ServedModel,
                         items: Sequence[str]) -> str | None:
    """Writes what an answer shows.

    request: the client's. user: an id. model: that recommended. items: ids, the best first.

    Returns the id by which events name the answer; None where the database is away, which keeps
    nobody from an answer.
    """
    request_id = uuid.uuid4().hex
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
    for model in self.models.values():
      model.close(self.settings.answer_seconds)
    self.event_batcher.close(self.settings.answer_seconds)
    self.store.close()
    self.executor.shutdown(wait=False, cancel_futures=True)


async def wait_for_disconnect(request: fastapi.Request) -> None:
  """Returns when the client of `request` has gone."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


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
