"""The routes under /v1: recommendations, interests, tags, the catalog; and how the server does.

Chat stands in chat_completions.py, RecLM's published routes in reclm_api.py, the demonstration shop
in demo/.
"""
from typing import Annotated

import fastapi
import pydantic
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from recjax.errors import UserError
from recjax.serving.catalog_snapshot import CatalogSnapshot
from recjax.serving.http_errors import replace_surrogates
from recjax.serving.service import RecommendationService, allowed_mask
from recjax.text import interest_terms as local_interests

MAX_K, MAX_HISTORY, MAX_FILTER_ITEMS, MAX_TAG_ITEMS = 100, 10_000, 100_000, 1000
MAX_UNKNOWN_SHOWN, MAX_NOTE_CHARS = 100, 300


def clean_id(value: str | int) -> str:
  """Returns an id as text. value: what a client sent. Raises ValueError for what no database
  holds."""
  text = str(value)
  if '\0' in text or replace_surrogates(text) != text:
    raise ValueError('an id is a text without the sign NUL and without halves of characters')
  return text


UserId = Annotated[str, pydantic.Field(max_length=500), pydantic.AfterValidator(clean_id)]
ItemId = Annotated[pydantic.StrictStr, pydantic.Field(max_length=500)] | pydantic.StrictInt
FilterItems = Annotated[list[ItemId], pydantic.Field(max_length=MAX_FILTER_ITEMS)]
History = Annotated[list[ItemId], pydantic.Field(max_length=MAX_HISTORY,
                                                 description='item ids, oldest first')]


class StrictBody(pydantic.BaseModel):
  """A body whose misspelled fields are refused."""
  model_config = pydantic.ConfigDict(extra='forbid')


class RecommendRequest(StrictBody):
  """What POST /v1/recommend takes."""
  history: History = []
  user: UserId = pydantic.Field(
      '', description='an id: without `history` it is what the training data and the events say of '
      'this user; which model answers goes by it, too, where the server splits users')
  k: int = pydantic.Field(10, ge=1, le=MAX_K, description='how many items')
  model: str = pydantic.Field('', description='which run; the first where none is named')
  category: str | None = pydantic.Field(None, description='only items of it: one part of their '
                                        'list, or a path parted by commas')
  allow: FilterItems | None = pydantic.Field(None, description='only these items')
  block: FilterItems = pydantic.Field([], description='not these items')
  exclude_seen: bool = pydantic.Field(True, description='not the items of the history')
  why: bool = pydantic.Field(False, description='with reasons')


class TagsRequest(StrictBody):
  """What POST /v1/tags takes: items whose tags are asked for."""
  items: Annotated[list[ItemId], pydantic.Field(max_length=MAX_TAG_ITEMS)]
  model: str = ''


class InterestsRequest(StrictBody):
  """What POST /v1/interests takes: a history whose interests are asked for."""
  history: History
  model: str = ''


def add_health_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds to `app` whether the server lives, answers, and how it does. service: what to look at."""
  @app.get('/healthz')
  async def healthz():
    """The process answers."""
    return {'status': 'ok'}

  @app.get('/readyz')
  async def readyz():
    """Every model is compiled, and the server is not ending."""
    states = {name: model.failure or model.is_ready for name, model in service.models.items()}
    ready = not service.is_closing and all(state is True for state in states.values())
    return JSONResponse({'ready': ready, 'models': states}, 200 if ready else 503)

  @app.get('/metrics', response_class=Response)
  async def metrics():
    """Figures for Prometheus."""
    return Response(service.metrics.render(), media_type='text/plain; version=0.0.4')

  @app.get('/v1/models')
  async def models():
    """What is served, in OpenAI's form."""
    return {'object': 'list', 'data': [
        {'id': name, 'object': 'model', 'created': int(service.started), 'owned_by': 'recjax',
         'method': m.method, 'items': len(m.snapshot), 'catalog': m.snapshot.version,
         'ready': m.is_ready, 'converses': m.chat_model is not None, 'tags': m.tags is not None}
        for name, m in service.models.items()]}


def add_recommend_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds to `app` recommendations and what explains them. service: what answers.

  Item ids become indices here, on their way in, and ids again in `CatalogSnapshot.describe`.
  """
  @app.post('/v1/recommend', response_model=None)
  async def recommend(body: RecommendRequest, request: fastapi.Request) -> JSONResponse:
    """The best items for a history; ids that the model does not know are left out and named."""
    model = service.model_of_user(body.model, body.user)
    snapshot = model.snapshot
    if body.user and 'history' not in body.model_fields_set:
      history, unknown = await service.user_history(model, body.user)
    else:
      history, unknown = snapshot.indices(body.history)
    allowed = allowed_mask(
        snapshot, category=body.category, block=snapshot.indices(body.block)[0], history=history,
        allow=None if body.allow is None else snapshot.indices(body.allow)[0],
        exclude_seen=body.exclude_seen)
    recommended = await service.recommend(request, model, history, body.k, allowed)
    items = [{**snapshot.describe(item), 'score': score} for item, score in recommended]
    if body.why:
      interests = local_interests.interests(history, snapshot.terms)
      for shown, (item, _) in zip(items, recommended):
        shown['why'] = service.explain(model, item, history, interests)
    request_id = await service.record_shown(
        request, body.user, model, [shown['id'] for shown in items]) if body.user else None
    return JSONResponse({  # as it is: FastAPI would copy every value first
        'request_id': request_id, 'model': model.name, 'items': items, 'short': len(items) < body.k,
        'source': 'model' if history else 'popularity', 'unknown': shown_ids(unknown),
        'catalog': snapshot.version})

  @app.post('/v1/interests')
  async def interests(body: InterestsRequest):
    """What a history is after: by the endpoint that the server was given, or from local words."""
    snapshot = service.model(body.model).snapshot
    history, unknown = snapshot.indices(body.history)
    found = await run_in_threadpool(service.find_interests, snapshot, history)
    return {'interests': found.interests, 'source': found.source, 'unknown': shown_ids(unknown),
            'note': replace_surrogates(found.note)[:MAX_NOTE_CHARS]}

  @app.post('/v1/tags')
  async def tags(body: TagsRequest):
    """The BETags of items with their weights."""
    model = service.model(body.model, 'tags', 'for tags serve the folder of a BETag run')
    tags_by_item = model.tags or {}
    return {'model': model.name, 'tags': {
        replace_surrogates(str(item)): [
            {'tag': tag, 'weight': weight} for tag, weight in tags_by_item.get(str(item), ())]
        for item in body.items}}


def add_catalog_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds to `app` another state of the items, without a restart. service: whose catalogs."""
  def describe(snapshot: CatalogSnapshot):
    return {'version': snapshot.version, 'source': snapshot.source, 'items': len(snapshot),
            'recommended': int(snapshot.is_live.sum()),
            'unknown_to_the_model': snapshot.unknown_items}

  @app.get('/v1/catalog')
  async def state(model: str = ''):
    """Which catalog is served."""
    return describe(service.model(model).snapshot)

  @app.post('/v1/catalog/reload')
  async def reload(model: str = ''):
    """Reads the items file again; where it is broken the old catalog goes on."""
    catalogs = service.model(model).catalogs
    try:
      snapshot = await run_in_threadpool(catalogs.reload)
    except UserError:
      service.metrics.catalog_reloads.labels('refused').inc()
      raise
    service.metrics.catalog_reloads.labels('taken').inc()
    return describe(snapshot)

  @app.post('/v1/catalog/rollback')
  async def rollback(model: str = ''):
    """Returns to the catalog before."""
    return describe(await run_in_threadpool(service.model(model).catalogs.rollback))


def shown_ids(item_ids: list[str | int]) -> list[str]:
  """Returns the first of `item_ids`, which a client sent and nobody knows, as they can be sent."""
  return [replace_surrogates(str(item_id)) for item_id in item_ids[:MAX_UNKNOWN_SHOWN]]
