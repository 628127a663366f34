"""ASGI middleware before every route: who may ask, how many at a time, how much, and how slowly.

A body must come whole within `RequestLimits.body_seconds` before the application sees the request.
Connections that never finish their request head are not seen here; docs/serving.md says what
uvicorn and a proxy do about them.
"""
import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import math
import re
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from recjax.serving.api_keys import KeyRing
from recjax.serving.http_errors import CLIENT_CLOSED_REQUEST, RequestError, error_body
from recjax.serving.workers import HEADER, Worker

MAX_BODY_BYTES, MAX_LARGE_BODY_BYTES = 1 << 20, 16 << 20
LARGE_BODY_PATHS = ('/inference', '/ranking')
MAX_JSON_DEPTH = 32
BODY_SECONDS = 10.0  # that a client may take to send a body
OPEN_PATHS = ('/healthz',)  # that need no key
LOCAL_HOSTS = ('127.0.0.1', 'localhost', '::1')
SECURITY_HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin', 'Cross-Origin-Opener-Policy': 'same-origin',
    'Permissions-Policy': 'camera=(), microphone=(), geolocation=()'}
# A JSON string, to the end where it is not closed, so that nothing is read twice; or a bracket.
JSON_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
READ_HEADERS = (b'host', b'origin', b'authorization', b'x-api-key', HEADER)
ENCODED_HEADERS = [(name.lower().encode(), value.encode())
                   for name, value in SECURITY_HEADERS.items()]
log = logging.getLogger('recjax')


@dataclasses.dataclass(frozen=True)
class RequestLimits:
  """What a request must keep to.

  keys: of which every request must carry one, where there are any, and how often each may ask.
  allowed_hosts: names that requests may be addressed to, () for any.
  max_concurrent: requests at a time.
  body_seconds: seconds that a client may take to send a body.
  worker: by which requests of other workers are known, to whom the rest does not apply; None where
  there are none.
  """
  keys: KeyRing = dataclasses.field(default_factory=KeyRing)
  allowed_hosts: tuple[str, ...] = ()
  max_concurrent: int = 256
  body_seconds: float = BODY_SECONDS
  worker: Worker | None = None


class LimitsMiddleware:
  """An ASGI application around another one that holds requests to `RequestLimits`.

  app: the application inside. limits: what requests must keep to. on_request: called with (scope,
  status, seconds) after every request. running: how many requests are being answered.
  """

  def __init__(self, app: Callable, limits: RequestLimits,
               on_request: Callable[[Mapping[str, Any], int, float], None] | None = None):
    self.app, self.limits = app, limits
    self.on_request = on_request or (lambda scope, status, seconds: None)
    self.running = 0

  async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
    """Answers one connection, as ASGI defines it. scope, receive, send: of ASGI."""
    if scope['type'] == 'lifespan':
      await self.app(scope, receive, send)
    elif scope['type'] != 'http':
      await send({'type': 'websocket.close', 'code': 1008})
    else:
      await self._http(scope, receive, send)

  async def _http(self, scope, receive, send):
    start, status = time.perf_counter(), CLIENT_CLOSED_REQUEST
    notes = scope['state'] = {**scope.get('state', {}), 'request_id': uuid.uuid4().hex}

    async def send_with_headers(message: dict[str, Any]) -> None:
      nonlocal status
      if message['type'] == 'http.response.start':
        status = message['status']
        message['headers'] = [*with_security_headers(message['headers']),
                              (b'x-request-id', notes['request_id'].encode())]
      await send(message)
    self.running += 1
    try:
      self._admit(scope)
      await self.app(scope, await self._read_body(scope, receive), send_with_headers)
    except RequestError as error:
      await send_error(send_with_headers, error)
    except Exception:
      log.exception('%s %s failed', scope['method'], scope['path'])
      with contextlib.suppress(Exception):
        await send_error(send_with_headers, RequestError(
            500, 'something went wrong here; the log of the server says what'))
    finally:
      self.running -= 1
      self.on_request(scope, status, time.perf_counter() - start)

  def _admit(self, scope):
    """Raises RequestError for too many requests, a foreign host or page, a wrong key."""
    headers = {k.decode('latin1'): v.decode('latin1') for k, v in scope['headers']
               if k in READ_HEADERS}
    limits, of_worker = self.limits, headers.get(HEADER.decode())
    if of_worker is not None and limits.worker and limits.worker.is_sender(of_worker):
      scope['state']['is_of_worker'] = True
      return
    if self.running > limits.max_concurrent:
      raise RequestError(503, f'{limits.max_concurrent} requests are being answered; try again',
                         {'Retry-After': '1'})
    host = headers.get('host', '')
    if limits.allowed_hosts and (
        urllib.parse.urlsplit(f'//{host}').hostname not in limits.allowed_hosts):
      raise RequestError(421, 'this server does not answer for that host name')
    origin = headers.get('origin')
    if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
      raise RequestError(403, 'requests of other web sites are not taken')
    if scope['path'] in OPEN_PATHS:
      return
    name = limits.keys.name_of(request_key(headers))
    if name is None:
      raise RequestError(401, 'a key is needed: Authorization: Bearer KEY',
                         {'WWW-Authenticate': 'Basic realm="recjax", charset="UTF-8"'})
    scope['state']['key'] = name
    if wait := limits.keys.wait_of(name):
      raise RequestError(429, 'too many requests of this key; try again later',
                         {'Retry-After': str(math.ceil(wait))})

  async def _read_body(self, scope, receive):
    """Reads the whole body, which keeps slow clients out of the application. -> receive"""
    large = scope['path'] in LARGE_BODY_PATHS
    max_bytes = MAX_LARGE_BODY_BYTES if large else MAX_BODY_BYTES
    too_large = RequestError(413, f'a request holds at most {max_bytes:,} bytes',
                             {'Connection': 'close'})
    content_length = dict(scope['headers']).get(b'content-length', b'0')
    if not content_length.isdigit() or int(content_length) > max_bytes:
      raise too_large
    chunks, size, more = [], 0, True
    try:
      async with asyncio.timeout(self.limits.body_seconds):
        while more:
          message = await receive()
          if message['type'] == 'http.disconnect':
            raise RequestError(CLIENT_CLOSED_REQUEST, 'gone')
          chunks.append(message.get('body', b''))
          size, more = size + len(chunks[-1]), message.get('more_body', False)
          if size > max_bytes:
            raise too_large
    except TimeoutError:
      raise RequestError(
          408, f'the request did not come whole in {self.limits.body_seconds:g} s',
          {'Connection': 'close'}) from None
    body = b''.join(chunks)
    if is_nested_too_deep(body):
      raise RequestError(422, f'the JSON is nested deeper than {MAX_JSON_DEPTH}')
    messages = [{'type': 'http.request', 'body': body, 'more_body': False}]

    async def receive_whole() -> dict[str, Any]:
      return messages.pop() if messages else await receive()
    return receive_whole


def with_security_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
  """Returns `headers` of an answer, as ASGI has them, with those of SECURITY_HEADERS it lacks."""
  present = {name.lower() for name, _ in headers}
  return [*headers, *(header for header in ENCODED_HEADERS if header[0] not in present)]


def is_nested_too_deep(body: bytes) -> bool:
  """Returns whether JSON is nested deeper than MAX_JSON_DEPTH; brackets in strings do not count.

  body: JSON text, which need not be valid.
  """
  if body.count(b'[') + body.count(b'{') <= MAX_JSON_DEPTH:
    return False
  depth = 0
  for token in JSON_TOKENS.finditer(body):
    if token[0] in (b'[', b'{'):
      depth += 1
      if depth > MAX_JSON_DEPTH:
        return True
    elif token[0] in (b']', b'}'):
      depth -= 1
  return False


def request_key(headers: Mapping[str, str]) -> str:
  """Returns the key of a request: of a bearer, X-API-Key, or a browser's password; '' for none.

  headers: names in lower case.
  """
  scheme, _, value = headers.get('authorization', '').partition(' ')
  if scheme.lower() == 'bearer':
    return value.strip()
  if scheme.lower() == 'basic':
    try:
      return base64.b64decode(value, validate=True).decode().partition(':')[2]
    except ValueError:
      return ''
  return headers.get('x-api-key', '')


async def send_error(send: Callable, error: RequestError) -> None:
  """Sends an error as JSON.

  send: of ASGI. error: what to say.
  """
  body = json.dumps(error_body(error.status, error.message)).encode()
  headers = {'Content-Type': 'application/json', 'Content-Length': str(len(body)), **error.headers}
  await send({'type': 'http.response.start', 'status': error.status,
              'headers': [(k.lower().encode(), v.encode()) for k, v in headers.items()]})
  await send({'type': 'http.response.body', 'body': body})
