"""The routes of what users do: events in, and a user's data out of the database again."""
from typing import Annotated, Any, Literal

import fastapi
import pydantic

from recjax.serving.events import NOW, Event, event_key
from recjax.serving.http_errors import RequestError
from recjax.serving.routes import StrictBody, UserId, clean_id, note
from recjax.serving.service import RecommendationService

MAX_EVENTS, MAX_CONFLICTS_SHOWN = 1000, 20
LAST_SECOND = 253_402_300_799  # of the year 9999
TEXT_TIME = pydantic.TypeAdapter(pydantic.AwareDatetime)


CleanId = Annotated[
    Annotated[pydantic.StrictStr, pydantic.Field(min_length=1, max_length=500)]
    | pydantic.StrictInt, pydantic.AfterValidator(clean_id)]


def as_time(value: Any) -> int | None:
  """Returns milliseconds since 1970, None for now. value: what a client sent. Raises ValueError for
  what is no time."""
  if value is None:
    return None
  if isinstance(value, int | float) and not isinstance(value, bool):
    if 0 <= value <= LAST_SECOND:
      return round(value * 1000)
  elif isinstance(value, str):
    try:
      return max(0, round(TEXT_TIME.validate_python(value).timestamp() * 1000))
    except pydantic.ValidationError:
      pass
  raise ValueError('a time is seconds since 1970, up to the year 9999, or a text with its zone, as '
                   'in 2026-11-30T12:00:00Z')


ShortId = Annotated[str, pydantic.Field(max_length=200), pydantic.AfterValidator(clean_id)]


class EventRequest(StrictBody):
  """One thing that a user did."""
  user: CleanId
  item: CleanId
  type: Literal['view', 'click', 'cart', 'purchase']
  time: Annotated[Any, pydantic.AfterValidator(as_time), pydantic.WithJsonSchema({'anyOf': [
      {'type': 'number', 'minimum': 0, 'maximum': LAST_SECOND},
      {'type': 'string', 'format': 'date-time'}, {'type': 'null'}]})] = pydantic.Field(
          None, description='when: seconds since 1970, or a time with its zone; now without it')
  request_id: ShortId = pydantic.Field('', description='of the answer that showed the item')
  key: ShortId = pydantic.Field('', description='names the event: what is sent again under it '
                                'counts once; made of the other fields without it')


class EventsRequest(StrictBody):
  """Many events, at most 1,000."""
  events: Annotated[list[EventRequest], pydantic.Field(max_length=MAX_EVENTS)]


class EventsAnswer(pydantic.BaseModel):
  """What became of events. accepted: how many are new and on disk. duplicates: how many were there
  before. unknown: items that no model here knows; their events are kept."""
  accepted: int
  duplicates: int
  unknown: list[str]


class ForgottenAnswer(pydantic.BaseModel):
  """How many events of a user were deleted."""
  deleted: int


def kind_of_body(body: Any) -> str:
  """Returns 'events' for a body with many, else 'event'. body: JSON, or what was made of it."""
  return 'events' if isinstance(body, EventsRequest) or (
      isinstance(body, dict) and 'events' in body) else 'event'


EventsBody = Annotated[
    Annotated[EventRequest, pydantic.Tag('event')]
    | Annotated[EventsRequest, pydantic.Tag('events')],
    pydantic.Discriminator(kind_of_body)]


def as_event(body: EventRequest) -> Event:
  """Returns a checked event as it is stored."""
  user, item = str(body.user), str(body.item)
  key = body.key or event_key(user, item, body.type, body.time, body.request_id)
  return Event(key, user, item, body.type, NOW if body.time is None else body.time,
               body.request_id)


def add_routes(app: fastapi.FastAPI, service: RecommendationService) -> None:
  """Adds the routes to `app`. service: holds the database."""
  @app.post('/v1/events')
  async def events(body: EventsBody, request: fastapi.Request) -> EventsAnswer:
    """Stores what users did; when this answers, it is on disk. What is sent twice counts once."""
    bodies = body.events if isinstance(body, EventsRequest) else [body]
    rows = [as_event(one) for one in bodies]
    note(request, events=len(rows))
    written = await service.record(request, rows)
    service.metrics.count_events(row.type for row in rows)
    if written.conflicts:
      keys = ', '.join(map(repr, written.conflicts[:MAX_CONFLICTS_SHOWN]))
      raise RequestError(409, f'stored under the same key before, with other fields: {keys}; these '
                         f'stay as they were. {written.accepted} other events are stored')
    unknown = dict.fromkeys(row.item for row in rows if not service.knows(row.item))
    return EventsAnswer(accepted=written.accepted, duplicates=written.duplicates,
                        unknown=list(unknown)[:100])

  @app.delete('/v1/users/{user:path}')
  async def forget(user: Annotated[UserId, fastapi.Path(min_length=1)]) -> ForgottenAnswer:
    """Deletes all events of a user, and that answers were shown to them. What a model was trained
    on stays in it."""
    return ForgottenAnswer(deleted=await service.ask_store(service.store.forget, user))
