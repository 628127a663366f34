"""The HTTP application: recommendations, interests, tags, the catalogue, and how the server does.

Conversation stands in chat.py, the web shop in shop.py, RecLM's published routes in teacher.py.
"""
from typing import Annotated

import fastapi
import pydantic
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from recjax.errors import UserError
from recjax.serving import chat, limits, shop, teacher
from recjax.serving import service as services
from recjax.serving.limits import Refused
from recjax.serving.service import MOST_HISTORY, MOST_K, MOST_LIST

Id = Annotated[pydantic.StrictStr, pydantic.Field(max_length=500)] | pydantic.StrictInt
Ids = Annotated[list[Id], pydantic.Field(max_length=MOST_LIST)]
History = Annotated[list[Id], pydantic.Field(max_length=MOST_HISTORY,
                                             description='item ids, oldest first')]
ERRORS = {status: {'description': text} for status, text in (
    (400, 'not JSON'), (401, 'no or a wrong key'), (404, 'no such model or item'),
    (408, 'the request came too slowly'), (413, 'too many bytes'), (422, 'a value that is wrong'),
    (503, 'too many requests; try again'), (504, 'no answer in time'))}


class Strict(pydantic.BaseModel):
  """Bodies whose misspelt fields are refused."""
  model_config = pydantic.ConfigDict(extra='forbid')


class Wanted(Strict):
  """A request for items."""
  history: History = []
  k: int = pydantic.Field(10, ge=1, le=MOST_K, description='how many items')
  model: str = pydantic.Field('', description='which run; the first where none is named')
  category: str | None = pydantic.Field(None, description='only items of it: one part of their '
                                        'list, or a path parted by commas')
  allow: Ids | None = pydantic.Field(None, description='only these items')
  block: Ids = pydantic.Field([], description='not these items')
  exclude_seen: bool = pydantic.Field(True, description='not the items of the history')
  why: bool = pydantic.Field(False, description='with reasons')


class Items(Strict):
  """Items whose tags are asked for."""
  items: Annotated[list[Id], pydantic.Field(max_length=1000)]
  model: str = ''


class Past(Strict):
  """A history whose interests are asked for."""
  history: History
  model: str = ''


def make(service):
  """The application around a Service. -> ASGI application"""
  app = fastapi.FastAPI(title='recjax', version='1', docs_url=None, redoc_url=None,
                        redirect_slashes=False,
                        responses=ERRORS, description='Recommendations of trained models.')
  app.state.service = service
  refusals(app)
  health(app, service)
  items(app, service)
  catalogue(app, service)
  chat.add(app, service)
  shop.add(app, service)
  first = next((m for m in service.models.values() if m.method == 'sequential'),
               next(iter(service.models.values())))
  published = teacher.app(first.plain(), first.stock.catalog, first.name)
  app.router.routes += [r for r in published.routes
                        if getattr(r, 'path', '') in limits.LARGE_PATHS]
  local = service.settings.host in limits.LOCAL
  return limits.Gate(app, service.settings.key, limits.LOCAL if local else (),
                     service.settings.most, service.settings.patience,
                     count=service.counters.request)


def refusals(app):
  """Every error in one form."""
  def answer(status, message, headers=None):
    return JSONResponse(limits.trouble(status, services.clean(message)), status, headers)

  @app.exception_handler(Refused)
  async def refused(request, error):
    return answer(error.status, error.message, error.headers)

  @app.exception_handler(UserError)
  async def mistaken(request, error):
    return answer(422, str(error))

  @app.exception_handler(HTTPException)
  async def other(request, error):
    return answer(error.status_code, str(error.detail), error.headers)

  @app.exception_handler(RequestValidationError)
  async def invalid(request, error):
    found = error.errors()[:3]
    status = 400 if any(e['type'] == 'json_invalid' for e in found) else 422
    return answer(status, '; '.join(
        f'{".".join(map(str, e["loc"]))[:100]}: {e["msg"][:200]}' for e in found))


def health(app, service):
  """Whether the server lives, answers, and how it does."""
  @app.get('/healthz')
  async def healthz():
    """The process answers."""
    return {'status': 'ok'}

  @app.get('/readyz')
  async def readyz():
    """Every model is compiled, and the server is not ending."""
    state = {name: model.trouble or model.ready for name, model in service.models.items()}
    good = not service.closing and all(s is True for s in state.values())
    return JSONResponse({'ready': good, 'models': state}, 200 if good else 503)

  @app.get('/metrics', response_class=Response)
  async def metrics():
    """Figures for Prometheus."""
    return Response(service.counters.page(), media_type='text/plain; version=0.0.4')

  @app.get('/v1/models')
  async def models():
    """What is served, in OpenAI's form."""
    return {'object': 'list', 'data': [
        {'id': name, 'object': 'model', 'created': int(service.started), 'owned_by': 'recjax',
         'method': m.method, 'items': len(m.stock), 'catalogue': m.stock.version, 'ready': m.ready,
         'converses': m.talk is not None, 'tags': m.tags is not None}
        for name, m in service.models.items()]}


def items(app, service):
  """Recommendations, and what explains them."""
  @app.post('/v1/recommend', response_model=None)
  async def recommend(wanted: Wanted, request: fastapi.Request) -> JSONResponse:
    """The best items for a history; ids that the model does not know are left out and named."""
    model = service.model(wanted.model)
    stock = model.stock
    history, unknown = services.known_items(stock, wanted.history)
    good = services.allowed(stock, category=wanted.category, allow=wanted.allow,
                            block=wanted.block, history=history, unseen=wanted.exclude_seen)
    found = await service.recommend(request, model, history, wanted.k, good)
    out = [{**stock.show(i), 'score': score} for i, score in found]
    if wanted.why:
      liked = services.interest_terms.interests(history, stock.terms)
      for row, (i, _) in zip(out, found):
        row['why'] = service.why(model, i, history, liked)
    return JSONResponse({  # as it is: FastAPI would copy every value first
        'model': model.name, 'items': out, 'short': len(out) < wanted.k,
        'source': 'model' if history else 'popularity', 'unknown': unknown[:100],
        'catalogue': stock.version})

  @app.post('/v1/interests')
  async def interests(past: Past):
    """What a history is after: by the endpoint that the server was given, or from local words."""
    stock = service.model(past.model).stock
    history, unknown = services.known_items(stock, past.history)
    found, source, note = await run_in_threadpool(service.interests, stock, history)
    return {'interests': found, 'source': source, 'note': services.clean(note)[:300],
            'unknown': unknown[:100]}

  @app.post('/v1/tags')
  async def tags(asked: Items):
    """The BETags of items with their weights."""
    model = service.model(asked.model, 'tags', 'for tags serve the folder of a BETag run')
    return {'model': model.name, 'tags': {
        services.clean(str(i)): [{'tag': t, 'weight': w} for t, w in model.tags.get(str(i), ())]
        for i in asked.items}}


def catalogue(app, service):
  """Another state of the items, without a restart."""
  def told(stock):
    return {'version': stock.version, 'source': stock.source, 'items': len(stock),
            'recommended': int(stock.live.sum()), 'unknown_to_the_model': stock.strangers}

  @app.get('/v1/catalogue')
  async def state(model: str = ''):
    """Which catalogue is served."""
    return told(service.model(model).stock)

  @app.post('/v1/catalogue/reload')
  async def reload(model: str = ''):
    """Reads the items file again; where it is broken the old catalogue goes on."""
    shelves = service.model(model).shelves
    try:
      found = await run_in_threadpool(shelves.reload)
    except UserError:
      service.counters.reloads.labels('refused').inc()
      raise
    service.counters.reloads.labels('taken').inc()
    return told(found)

  @app.post('/v1/catalogue/rollback')
  async def rollback(model: str = ''):
    """Returns to the catalogue before."""
    return told(await run_in_threadpool(service.model(model).shelves.rollback))
