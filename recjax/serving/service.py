"""What the routes share: the models, their queues, interests, and reasons for recommendations."""
import asyncio
import concurrent.futures
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import fastapi
import numpy as np

from recjax.data.formats import etegrec
from recjax.errors import ConfigError, DataError, ServiceError, UserError
from recjax.serving import limits
from recjax.serving.batcher import Batcher, QueueFull
from recjax.serving.catalog_snapshot import CatalogSnapshot
from recjax.serving.http_errors import CLIENT_CLOSED_REQUEST, RequestError, replace_surrogates
from recjax.serving.prometheus import Metrics
from recjax.serving.served_model import RecommendQuery, ServedModel, co_purchased
from recjax.text import interest_terms as local_interests
from recjax.text.llm_api import ApiConfig

INTEREST_WORKERS = 8  # interests that are asked for at a time


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
  run. metrics: what is counted.

  is_closing: whether the server is ending. started: when it began, seconds since 1970. executor:
  threads in which interests are found.
  """

  def __init__(self, models: Mapping[str, ServedModel], settings: ServerSettings | None = None,
               metrics: Metrics | None = None):
    settings = settings or ServerSettings()
    self.models, self.settings = models, settings
    self.metrics = metrics or Metrics()
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
    self.executor.shutdown(wait=False, cancel_futures=True)


async def wait_for_disconnect(request: fastapi.Request) -> None:
  """Returns when the client of `request` has gone."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def allowed_mask(snapshot: CatalogSnapshot, **filters: Any) -> np.ndarray:
  """Returns which items may come, (N,) bool.

  snapshot: the catalog. filters: as `CatalogSnapshot.allowed_mask` takes them. Raises RequestError
  for an unknown category.
  """
  try:
    return snapshot.allowed_mask(**filters)
  except DataError as error:
    raise RequestError(422, replace_surrogates(str(error))) from error
