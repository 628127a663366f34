"""POST /v1/recommend without the layers of FastAPI, which take longer than the answer itself.

What is sound is read by the same pydantic model and answered by the same function as FastAPI's
route; everything else, errors too, goes to FastAPI as it came, so that there is one text of each.
"""
import json
from collections.abc import Callable, Mapping
from typing import Any

import fastapi
import orjson
import pydantic

from recjax.serving import routes
from recjax.serving.http_errors import RequestError
from recjax.serving.service import RecommendationService

PATH = '/v1/recommend'


class DirectRoute:
  """An ASGI application that answers POST /v1/recommend, and leaves the rest to another.

  app: the application of all routes, this one too. service: what answers.
  """

  def __init__(self, app: fastapi.FastAPI, service: RecommendationService):
    self.app, self.service = app, service
    self._handlers: Mapping[Any, Any] = app.exception_handlers
    self._route = next(route for route in app.routes if getattr(route, 'path', '') == PATH)

  async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
    """Answers one request, as ASGI defines it, whose body comes in one piece. scope, receive, send:
    of ASGI."""
    if scope.get('path') != PATH or scope['method'] != 'POST' or not is_json(scope):
      await self.app(scope, receive, send)
      return
    messages = [await receive()]
    try:
      body = routes.RecommendRequest.model_validate_json(messages[0]['body'])
    except pydantic.ValidationError:
      async def receive_again() -> dict[str, Any]:
        return messages.pop() if messages else await receive()
      await self.app(scope, receive_again, send)
      return
    scope['route'] = self._route
    request = fastapi.Request(scope, receive)
    try:
      answer = await routes.recommendation(self.service, body, request)
    except RequestError as error:
      response = await self._handlers[RequestError](request, error)
      await response(scope, receive, send)
      return
    content = encode_json(answer)
    await send({'type': 'http.response.start', 'status': 200, 'headers': [
        (b'content-length', b'%d' % len(content)), (b'content-type', b'application/json')]})
    await send({'type': 'http.response.body', 'body': content})


def is_json(scope: dict[str, Any]) -> bool:
  """Returns whether a request says that its body is JSON, in the usual words. scope: of ASGI."""
  return any(value.partition(b';')[0].strip() == b'application/json'
             for name, value in scope['headers'] if name == b'content-type')


def encode_json(answer: Any) -> bytes:
  """Returns an answer as JSON, with null for a float that is no number. answer: values of JSON;
  integers of any size, as columns of catalogs may have them, take the longer way, which raises
  ValueError for such a float."""
  try:
    return orjson.dumps(answer)
  except TypeError:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(',', ':')).encode()
