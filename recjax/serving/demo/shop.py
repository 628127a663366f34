"""The demonstration shop: a static page, and the routes that it asks."""
import asyncio
import importlib.resources
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import fastapi
import pydantic
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from recjax.serving.catalog_snapshot import CatalogSnapshot
from recjax.serving.chat_completions import EVENT_STREAM_HEADERS
from recjax.serving.demo.search import CatalogSearch
from recjax.serving.demo.sessions import Session, Sessions
from recjax.serving.http_errors import RequestError, replace_surrogates
from recjax.serving.routes import clean_id
from recjax.serving.served_model import ServedModel
from recjax.serving.service import RecommendationService, allowed_mask

MAX_SHOWN = 50  # items of a visitor's history that are shown
MAX_STREAMS, HEARTBEAT_SECONDS, POLL_SECONDS = 512, 15.0, 1.0  # of event streams
MAX_CATEGORIES_SHOWN, MAX_DESCRIPTION_CHARS, MAX_NOTE_CHARS = 40, 240, 200
MEDIA_TYPES = {'html': 'text/html; charset=utf-8', 'js': 'text/javascript; charset=utf-8',
               'css': 'text/css; charset=utf-8', 'svg': 'image/svg+xml'}
ShortText = Annotated[str, fastapi.Query(max_length=200)]


def add_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds every route of the shop to `app`. service: what answers."""
  sessions, search = Sessions(service), CatalogSearch()
  for model in service.models.values():
    search.prepare(model.snapshot)
  add_page_routes(app)
  add_item_routes(app, service, sessions, search)
  add_history_routes(app, service, sessions)
  add_event_route(app, service, sessions)


def add_page_routes(app: fastapi.FastAPI) -> None:
  """Adds the page and its parts to `app`, out of the package: nothing is looked up by path."""
  folder = importlib.resources.files('recjax.serving.demo') / 'static'
  contents = {file.name: file.read_bytes() for file in folder.iterdir()
              if file.name.rpartition('.')[2] in MEDIA_TYPES}

  def part(name: str) -> Response:
    if name not in contents:
      raise RequestError(404, 'there is no such page')
    return Response(contents[name], media_type=MEDIA_TYPES[name.rpartition('.')[2]],
                    headers={'Cache-Control': 'no-cache'})

  @app.get('/', include_in_schema=False)
  async def page():
    return part('shop.html')

  @app.get('/static/{name}', include_in_schema=False)
  async def static(name: str):
    return part(name)


async def visitor_state(sessions: Sessions, session: Session, model: ServedModel
                        ) -> dict[str, Any]:
  """Returns what the page shows of a visitor.

  sessions: of all visitors. session: the visitor's. model: the one that the visitor looks at.
  """
  bought = await sessions.purchases(session, model)
  return {'model': model.name, 'user': session.user, **shown_interests(session, model),
          'bought': len(bought),
          'history': [{**card(model.snapshot, item), 'key': event.key}
                      for event, item in bought[-MAX_SHOWN:]]}


def shown_interests(session: Session, model: ServedModel) -> dict[str, Any]:
  """Returns a visitor's interests as the page shows them. session: the visitor's. model: the one
  that the visitor looks at."""
  found = session.found(model)
  return {'interests': found.interests, 'source': found.source,
          'note': replace_surrogates(found.note)[:MAX_NOTE_CHARS]}


def card(snapshot: CatalogSnapshot, item: int) -> dict[str, Any]:
  """Returns item index 1..N of `snapshot` as cards show it."""
  shown = snapshot.describe(item)
  return {**shown, 'description': (shown.get('description') or '')[:MAX_DESCRIPTION_CHARS]}


def top_categories(snapshot: CatalogSnapshot) -> list[dict[str, Any]]:
  """Returns the categories of `snapshot` that have live items, the largest first."""
  sizes = [(name, int(snapshot.is_live[items - 1].sum()))
           for name, items in snapshot.items_by_category.items() if ', ' not in name]
  sizes.sort(key=lambda pair: (-pair[1], pair[0]))
  return [{'name': name, 'items': size} for name, size in sizes[:MAX_CATEGORIES_SHOWN] if size]


def add_item_routes(app: fastapi.FastAPI, service: RecommendationService, sessions: Sessions,
                    search: CatalogSearch) -> None:
  """Adds items to `app`: all, found, one. service: what answers. sessions: of the visitors. search:
  what finds items."""
  @app.get('/shop/state')
  async def state(request: fastapi.Request, response: Response, model: ShortText = ''):
    """The models, and what this visitor did."""
    session = sessions.get(request, response)
    served = service.model_of_user(model, session.user)
    return {**await visitor_state(sessions, session, served), 'models': [
        {'name': m.name, 'method': m.method, 'converses': m.chat_model is not None,
         'ready': m.is_ready, 'trouble': bool(m.failure)} for m in service.models.values()],
        'categories': top_categories(served.snapshot), 'items': len(served.snapshot)}

  @app.get('/shop/items')
  async def find(model: ShortText = '', q: ShortText = '', category: ShortText = '',
                 offset: Annotated[int, fastapi.Query(ge=0, le=10**7)] = 0,
                 limit: Annotated[int, fastapi.Query(ge=1, le=100)] = 24):
    """Items whose words begin with those of `q`, the best sold first; `read_as` says what was
    looked for instead of words that no item has."""
    snapshot = service.model(model).snapshot
    if category:
      allowed_mask(snapshot, category=category)
    found = await run_in_threadpool(search.search, snapshot, q, category or None, offset, limit)
    return {'items': [card(snapshot, item) for item in found.items], 'total': found.total,
            'read_as': found.read_as}

  @app.get('/shop/item')
  async def one(id: Annotated[str, fastapi.Query(max_length=500)], model: ShortText = ''):
    """One item, whole."""
    served = service.model(model)
    item = served.snapshot.index(id)
    if not item:
      raise RequestError(404, 'there is no such item')
    tags = [tag for tag, _ in (served.tags or {}).get(id, ())][:12]
    return {**served.snapshot.describe(item), 'tags': tags,
            'sold': bool(served.snapshot.is_live[item - 1])}


def add_history_routes(app: fastapi.FastAPI, service: RecommendationService,
                       sessions: Sessions) -> None:
  """Adds what a visitor bought to `app`. service: what answers. sessions: of the visitors."""
  @app.get('/shop/history')
  async def history(request: fastapi.Request, model: ShortText = ''):
    """What this visitor bought, the newest 50; POST /v1/events adds to it."""
    return await visitor_state(sessions, sessions.get(request), service.model(model))

  @app.delete('/shop/history')
  async def forget(request: fastapi.Request, model: ShortText = '',
                   key: Annotated[ShortText, pydantic.AfterValidator(clean_id)] = ''):
    """Takes one purchase out, or all that is known of this visitor."""
    served, session = service.model(model), sessions.get(request)
    if not await service.ask_store(service.store.forget, session.user, key) and key:
      raise RequestError(404, 'the history has no such purchase')
    return await visitor_state(sessions, session, served)


def add_event_route(app: fastapi.FastAPI, service: RecommendationService,
                    sessions: Sessions) -> None:
  """Adds interests to `app`, when they are found. service: what answers. sessions: of the
  visitors."""
  @app.get('/shop/events', response_model=None)
  async def stream(request: fastapi.Request, model: ShortText = '') -> StreamingResponse:
    """Server-sent events: `interests` whenever they change."""
    served, session = service.model(model), sessions.get(request)
    if sessions.open_streams >= MAX_STREAMS:
      raise RequestError(503, 'too many pages are open; try again', {'Retry-After': '10'})
    return StreamingResponse(
        interest_events(sessions, session, served, lambda: service.is_closing),
        media_type='text/event-stream', headers=EVENT_STREAM_HEADERS)


async def interest_events(sessions: Sessions, session: Session, model: ServedModel,
                          is_closing: Callable[[], bool]) -> AsyncIterator[str]:
  """Yields a visitor's interests as server-sent events, and signs of life between them.

  sessions: of all visitors. session: the visitor's. model: the one that the visitor looks at.
  is_closing: whether the server ends.
  """
  changed = asyncio.Event()
  session.listeners.add(changed)
  sessions.open_streams += 1
  try:
    sent, quiet_seconds = None, 0.0
    while not is_closing():
      found = session.found(model)
      if found != sent:
        sent, quiet_seconds = found, 0.0
        data = json.dumps(shown_interests(session, model))
        yield f'event: interests\ndata: {data}\n\n'
      elif quiet_seconds >= HEARTBEAT_SECONDS:
        quiet_seconds = 0.0
        yield ': still here\n\n'
      try:
        async with asyncio.timeout(POLL_SECONDS):  # often enough to see the end of the server
          await changed.wait()
        changed.clear()
      except TimeoutError:
        quiet_seconds += POLL_SECONDS
  finally:
    session.listeners.discard(changed)
    sessions.open_streams -= 1
