"""The routes under /v1: recommendations, interests, tags, the catalog; and how the server does.

Chat stands in chat_completions.py, RecLM's published routes in reclm_api.py, the demonstration shop
in demo/.
"""
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import fastapi
import pydantic
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from recjax.errors import UserError
from recjax.serving.catalog_snapshot import CatalogSnapshot
from recjax.serving.http_errors import replace_surrogates
from recjax.serving.prometheus import merge_metrics
from recjax.serving.served_model import ServedModel
from recjax.serving.service import RecommendationService, allowed_mask
from recjax.serving.workers import METRICS_AT_ONCE, METRICS_SECONDS
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


def as_number(value: Any) -> Any:
  """Returns a number, or null, as it came. Raises ValueError for a text, true or false, which
  pydantic would turn into a number."""
  if isinstance(value, str | bool):
    raise ValueError('a number is needed, an integer where things are counted, no text or boolean')
  return value


Whole = Annotated[int, pydantic.BeforeValidator(as_number)]
Number = Annotated[float, pydantic.BeforeValidator(as_number)]
UserId = Annotated[str, pydantic.Field(max_length=500), pydantic.AfterValidator(clean_id)]
ItemId = Annotated[pydantic.StrictStr, pydantic.Field(max_length=500)] | pydantic.StrictInt
FilterItems = Annotated[list[ItemId], pydantic.Field(max_length=MAX_FILTER_ITEMS)]
History = Annotated[list[ItemId], pydantic.Field(max_length=MAX_HISTORY,
                                                 description='item ids, oldest first')]


class StrictBody(pydantic.BaseModel):
  """A body whose misspelled fields are refused."""
  model_config = pydantic.ConfigDict(extra='forbid')


class Neighbor(pydantic.BaseModel):
  """An item of the history that `people` who bought the recommended one bought, too."""
  id: str
  title: str
  people: int


class Reasons(pydantic.BaseModel):
  """Why an item: interests it fits, tags it shares with the history, what its buyers bought."""
  interests: list[str]
  tags: list[str]
  neighbors: list[Neighbor]


class ShownItem(pydantic.BaseModel):
  """An item as people are shown it; what it lacks is left out."""
  id: str
  title: str
  brand: str = ''
  categories: list[str] = []
  description: str = ''
  price: float | str = ''


class RecommendedItem(ShownItem):
  """An item with its score, and with reasons where they were asked for."""
  score: float
  why: Reasons | None = None


class RecommendAnswer(pydantic.BaseModel):
  """What POST /v1/recommend gives. request_id: by which events name the answer; null where it is
  to no user. short: fewer than k may come. source: 'popularity' where nothing is known of the
  history. unknown, unknown_allow: ids of the history, and of `allow`, that the model does not know.
  catalog: the catalog's version."""
  request_id: str | None
  model: str
  items: list[RecommendedItem]
  short: bool
  source: Literal['model', 'popularity']
  unknown: list[str]
  unknown_allow: list[str]
  catalog: int


class Tag(pydantic.BaseModel):
  """A tag of an item."""
  tag: str
  weight: float


class TagsAnswer(pydantic.BaseModel):
  """What POST /v1/tags gives: the tags of each item."""
  model: str
  tags: dict[str, list[Tag]]


class InterestsAnswer(pydantic.BaseModel):
  """What POST /v1/interests gives. source: 'model' where an endpoint foresaw them. note: why that
  gave none."""
  interests: list[str]
  source: Literal['model', 'local']
  unknown: list[str]
  note: str


class ModelCard(pydantic.BaseModel):
  """A run that is served, in OpenAI's form. catalog: its version. converses, tags: what it does
  besides recommending."""
  id: str
  object: Literal['model'] = 'model'
  created: int
  owned_by: str = 'recjax'
  method: str
  items: int
  catalog: int
  ready: bool
  converses: bool
  tags: bool


class ModelList(pydantic.BaseModel):
  """All runs that are served."""
  object: Literal['list'] = 'list'
  data: list[ModelCard]


class Readiness(pydantic.BaseModel):
  """Whether requests should come. models: which of them answer. reasons: why not, with how far a
  model that compiles is."""
  ready: bool
  models: dict[str, bool]
  reasons: list[str]


class CatalogState(pydantic.BaseModel):
  """Which catalog is served. recommended: how many items may come. unknown_to_the_model: items of
  its file that cannot."""
  version: int
  source: str
  items: int
  recommended: int
  unknown_to_the_model: int


class RecommendRequest(StrictBody):
  """What POST /v1/recommend takes."""
  history: History = []
  user: UserId = pydantic.Field(
      '', description='an id: without `history` it is what the training data and the events say of '
      'this user; which model answers goes by it, too, where the server splits users')
  k: Whole = pydantic.Field(10, ge=1, le=MAX_K, description='how many items')
  model: str = pydantic.Field('', description='which run; the first where none is named')
  category: str | None = pydantic.Field(None, description='only items of it: one part of their '
                                        'list, or a path separated by commas')
  allow: FilterItems | None = pydantic.Field(None, description='only these items')
  block: FilterItems = pydantic.Field([], description='not these items')
  exclude_seen: pydantic.StrictBool = pydantic.Field(
      True, description='not the items of the history')
  why: pydantic.StrictBool = pydantic.Field(False, description='with reasons')


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
  async def healthz() -> dict[str, Literal['ok']]:
    """The process answers."""
    return {'status': 'ok'}

  @app.get('/readyz', response_model=None, responses={
      200: {'model': Readiness}, 503: {'model': Readiness}})
  async def readyz() -> JSONResponse:
    """Every model is compiled, the database answers, and the server is not ending."""
    reasons = await run_in_threadpool(service.reasons_not_ready)
    states = {name: model.is_ready for name, model in service.models.items()}
    answer = Readiness(ready=not reasons, models=states, reasons=reasons)
    return JSONResponse(answer.model_dump(), 503 if reasons else 200)

  @app.get('/metrics', response_class=Response)
  async def metrics(request: fastapi.Request):
    """Figures for Prometheus; of all workers, each with its number as a label."""
    text, worker = service.metrics.render(), service.worker
    if worker and not getattr(request.state, 'is_of_worker', False):
      others = await run_in_threadpool(list, worker.ask_others(
          'GET', '/metrics', METRICS_SECONDS, METRICS_AT_ONCE))
      text = merge_metrics({worker.number: text, **{
          number: body for number, status, body in others if status == 200}})
    return Response(text, media_type='text/plain; version=0.0.4')


def add_model_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds to `app` what is served, and its next version without a restart. service: whose models."""
  def card(model: ServedModel) -> ModelCard:
    return ModelCard(
        id=model.name, created=int(model.opened), method=model.method, items=len(model.snapshot),
        catalog=model.snapshot.version, ready=model.is_ready,
        converses=model.chat_model is not None, tags=model.tags is not None)

  @app.get('/v1/models')
  async def models() -> ModelList:
    """What is served, in OpenAI's form."""
    return ModelList(data=[card(model) for model in service.models.values()])

  @app.get('/v1/models/{name}')
  async def model(name: str) -> ModelCard:
    """One of what is served."""
    return card(service.model(name))

  @app.post('/v1/models/reload')
  async def reload(request: fastapi.Request, model: str = '') -> ModelCard:
    """Opens the run's folder anew, warms it up, and switches; the old model answers meanwhile, and
    goes on where the new one does not work."""
    found = await run_in_threadpool(service.reload_model, model)
    await run_in_threadpool(service.spread, request)
    return card(found)

  @app.post('/v1/models/rollback')
  async def rollback(model: str = '') -> ModelCard:
    """Returns to the model before the last reload."""
    return card(await run_in_threadpool(service.roll_back_model, model))


def add_recommend_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds to `app` recommendations and what explains them. service: what answers.

  Item ids become indices here, on their way in, and ids again in `CatalogSnapshot.describe`.
  """
  @app.post('/v1/recommend', response_model=None, responses={200: {'model': RecommendAnswer}})
  async def recommend(body: RecommendRequest, request: fastapi.Request) -> JSONResponse:
    """The best items for a history; ids that the model does not know are left out and named."""
    return JSONResponse(await recommendation(service, body, request))  # FastAPI would copy it

  @app.post('/v1/interests')
  async def interests(body: InterestsRequest) -> InterestsAnswer:
    """What a history is after: by the endpoint that the server was given, or from local words."""
    snapshot = service.model(body.model).snapshot
    history, unknown = snapshot.indices(body.history)
    found = await run_in_threadpool(service.find_interests, snapshot, history)
    return InterestsAnswer(
        interests=list(found.interests), source='model' if found.source == 'model' else 'local',
        unknown=shown_ids(unknown),
        note=replace_surrogates(found.note)[:MAX_NOTE_CHARS])

  @app.post('/v1/tags')
  async def tags(body: TagsRequest) -> TagsAnswer:
    """The BETags of items with their weights."""
    model = service.model(body.model, 'tags', 'for tags serve the folder of a BETag run')
    tags_by_item = model.tags or {}
    return TagsAnswer(model=model.name, tags={
        replace_surrogates(str(item)): [
            Tag(tag=tag, weight=weight) for tag, weight in tags_by_item.get(str(item), ())]
        for item in body.items})


async def recommendation(service: RecommendationService, body: RecommendRequest,
                         request: fastapi.Request | None) -> dict[str, Any]:
  """Returns what RecommendAnswer describes.

  service: what answers. body: what is asked. request: the client's, or None. Raises RequestError.
  """
  model = service.model_of_user(body.model, body.user)
  snapshot = model.snapshot
  history, unknown = await known_history(service, model, body)
  block, _ = snapshot.indices(body.block)
  allow, unknown_allow = snapshot.indices(body.allow or ())
  allowed = allowed_mask(
      snapshot, category=body.category, block=block, history=history,
      allow=None if body.allow is None else allow, exclude_seen=body.exclude_seen)
  recommended = await service.recommend(request, model, history, body.k, allowed)
  items = [{**snapshot.describe(item), 'score': score} for item, score in recommended]
  if body.why:
    interests = local_interests.interests(history, snapshot.terms)
    for shown, (item, _) in zip(items, recommended):
      shown['why'] = service.explain(model, item, history, interests)
  note(request, model=model.name, items=len(items), user=body.user,
       history=[snapshot.item_id(item) for item in history] if service.settings.log_histories
       else None)
  request_id = await service.record_shown(
      request, body.user, model, [shown['id'] for shown in items]) if body.user else None
  return {'request_id': request_id, 'model': model.name, 'items': items,
          'short': len(items) < body.k, 'source': 'model' if history else 'popularity',
          'unknown': shown_ids(unknown), 'unknown_allow': shown_ids(unknown_allow),
          'catalog': snapshot.version}


async def known_history(service: RecommendationService, model: ServedModel, body: RecommendRequest
                        ) -> tuple[list[int], Sequence[str | int]]:
  """Returns the history that a request is about, item indices, and the ids that are unknown.

  service: knows users. model: whose indices. body: names a history, or a user. Raises RequestError.
  """
  if body.user and 'history' not in body.model_fields_set:
    return await service.user_history(model, body.user)
  return model.snapshot.indices(body.history)


def add_catalog_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds to `app` another state of the items, without a restart. service: whose catalogs."""
  def describe(snapshot: CatalogSnapshot) -> CatalogState:
    return CatalogState(
        version=snapshot.version, source=snapshot.source, items=len(snapshot),
        recommended=int(snapshot.is_live.sum()), unknown_to_the_model=snapshot.unknown_items)

  @app.get('/v1/catalog')
  async def state(model: str = '') -> CatalogState:
    """Which catalog is served."""
    return describe(service.model(model).snapshot)

  @app.post('/v1/catalog/reload')
  async def reload(request: fastapi.Request, model: str = '') -> CatalogState:
    """Reads the items file again; where it is broken the old catalog goes on."""
    catalogs = service.model(model).catalogs
    try:
      snapshot = await run_in_threadpool(catalogs.reload)
    except UserError:
      service.metrics.catalog_reloads.labels('refused').inc()
      raise
    service.metrics.catalog_reloads.labels('taken').inc()
    await run_in_threadpool(service.spread, request)
    return describe(snapshot)

  @app.post('/v1/catalog/rollback')
  async def rollback(model: str = '') -> CatalogState:
    """Returns to the catalog before."""
    service.refuse_with_workers('earlier catalogs are in memory alone')
    return describe(await run_in_threadpool(service.model(model).catalogs.rollback))


def note(request: fastapi.Request | None, **notes: Any) -> None:
  """Notes what the access log says of a request. request: the client's, or None. notes: by name,
  None for those that are not to be noted."""
  for name, value in notes.items():
    if request is not None and value is not None:
      setattr(request.state, name, value)


def shown_ids(item_ids: Sequence[str | int]) -> list[str]:
  """Returns the first of `item_ids`, which a client sent and nobody knows, as they can be sent."""
  return [replace_surrogates(str(item_id)) for item_id in item_ids[:MAX_UNKNOWN_SHOWN]]
