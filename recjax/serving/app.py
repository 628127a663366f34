"""The HTTP application: its routes, how errors are answered, and the limits around it."""
import functools
from collections.abc import Mapping
from typing import Any

import fastapi
import pydantic
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from recjax.errors import UserError
from recjax.serving import (
  api_docs,
  chat_completions,
  direct_route,
  event_routes,
  limits,
  reclm_api,
  routes,
)
from recjax.serving.http_errors import RequestError, error_body, replace_surrogates
from recjax.serving.service import RecommendationService


class ErrorText(pydantic.BaseModel):
  """An error as OpenAI's clients read it. param: the field that is wrong, if it is one."""
  message: str
  type: str
  param: str | None
  code: str


class ErrorAnswer(pydantic.BaseModel):
  """Every error's body. detail: the message again."""
  detail: str
  error: ErrorText


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {'description': text, 'model': ErrorAnswer} for status, text in (
        (400, 'not JSON'), (401, 'no or a wrong key'), (403, "another site's page"),
        (404, 'no such model or item'), (408, 'the request came too slowly'),
        (409, 'a key that stands for something else'), (413, 'too many bytes'),
        (422, 'a value that is wrong'), (429, 'too many requests of this key'),
        (503, 'too many requests; try again'),
        (504, 'no answer in time'))}


def create_app(service: RecommendationService) -> limits.LimitsMiddleware:
  """Returns the ASGI application of a service, its limits around it.

  service: what answers; `service.settings.shop` says whether the demonstration shop is there.
  """
  settings = service.settings
  app = fastapi.FastAPI(title='recjax', version='1', docs_url=None, redoc_url=None,
                        redirect_slashes=False, responses=ERROR_RESPONSES,
                        description='Recommendations of trained models.')
  app.state.service = service
  app.openapi = functools.partial(openapi_with_keys, app)
  add_error_handlers(app)
  routes.add_health_routes(app, service)
  routes.add_model_routes(app, service)
  routes.add_recommend_routes(app, service)
  event_routes.add_routes(app, service)
  routes.add_catalog_routes(app, service)
  chat_completions.add_routes(app, service)
  names = list(service.models)
  ranker = next((n for n in names if service.models[n].method == 'sequential'), names[0])
  reclm_api.add_routes(app, lambda: (service.models[ranker].top_items,
                                     service.models[ranker].snapshot.catalog))
  api_docs.add_api_docs(app)
  if settings.shop:
    from recjax.serving.demo import shop
    shop.add_routes(app, service)
  is_local = settings.host in limits.LOCAL_HOSTS and not settings.unix_socket
  middleware = limits.LimitsMiddleware(
      direct_route.DirectRoute(app, service),
      limits.RequestLimits(service.keys, limits.LOCAL_HOSTS if is_local else (),
                           settings.max_concurrent, settings.body_seconds, service.worker),
      on_request=service.observe_request)
  service.metrics.add_gauge('recjax_running', 'Requests that are being answered',
                            lambda: middleware.running)
  return middleware


def openapi_with_keys(app: fastapi.FastAPI) -> dict[str, Any]:
  """Returns the OpenAPI document of `app` with the ways in which a key is sent, made once."""
  if not app.openapi_schema:
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes,
                         description=app.description)
    schema['components']['securitySchemes'] = {
        'bearer': {'type': 'http', 'scheme': 'bearer'},
        'header': {'type': 'apiKey', 'in': 'header', 'name': 'X-API-Key'},
        'browser': {'type': 'http', 'scheme': 'basic'}}
    has_key = bool(app.state.service.keys.keys)
    schema['security'] = [{name: []} for name in ('bearer', 'header', 'browser') if has_key] or [{}]
    schema['paths']['/healthz']['get']['security'] = [{}]
    app.openapi_schema = schema
  return app.openapi_schema


def add_error_handlers(app: fastapi.FastAPI) -> None:
  """Makes `app` answer every error in one form."""
  def answer(status: int, message: str, headers: Mapping[str, str] | None = None,
             param: str | None = None) -> JSONResponse:
    body = error_body(status, replace_surrogates(message), param and replace_surrogates(param))
    return JSONResponse(body, status, headers)

  @app.exception_handler(RequestError)
  async def request_error(request: Any, error: Any) -> JSONResponse:
    return answer(error.status, error.message, error.headers)

  @app.exception_handler(UserError)
  async def user_error(request: Any, error: Any) -> JSONResponse:
    return answer(422, str(error))

  @app.exception_handler(HTTPException)
  async def http_exception(request: Any, error: Any) -> JSONResponse:
    headers = dict(error.headers or {})
    if error.status_code == 405:  # of all routes of the path, not of the first one
      methods = {method for route in app.routes if isinstance(route, Route)
                 and route.path_regex.match(request.url.path) for method in route.methods or ()}
      headers['Allow'] = ', '.join(sorted(methods))
    return answer(error.status_code, str(error.detail), headers)

  @app.exception_handler(RequestValidationError)
  async def validation_error(request: Any, error: Any) -> JSONResponse:
    problems = error.errors()[:3]
    status = 400 if any(p['type'] == 'json_invalid' for p in problems) else 422
    places = ['.'.join(str(part) for part in p['loc'])[:100] for p in problems]
    texts = ['this is not supported; leave it out' if p['type'] == 'extra_forbidden' else
             p['msg'][:200] for p in problems]
    return answer(status, '; '.join(map(': '.join, zip(places, texts))),
                  param=places[0].removeprefix('body.'))
