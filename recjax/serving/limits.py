"""What every request meets first: who may ask, how much, for how long; and what is counted."""
import asyncio
import base64
import contextlib
import hmac
import json
import logging
import re
import time
import urllib.parse

from uvicorn.protocols.http.h11_impl import H11Protocol

BODY, LARGE = 1 << 20, 16 << 20  # bytes of a request
LARGE_PATHS = ('/inference', '/ranking')
DEPTH = 32  # of JSON within JSON
PATIENCE = 10.0  # seconds that a client may take for its head, and for its body
LOCAL = ('127.0.0.1', 'localhost', '::1')
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin', 'Cross-Origin-Opener-Policy': 'same-origin',
    'Permissions-Policy': 'camera=(), microphone=(), geolocation=()'}
RAW_HEADERS = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
KINDS = {401: 'authentication_error', 403: 'permission_error', 404: 'not_found_error',
         408: 'timeout_error', 413: 'invalid_request_error', 429: 'rate_limit_error',
         503: 'overloaded_error', 504: 'timeout_error'}
# A text, to the end where it is not closed, so that nothing is read twice; or a bracket.
TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
log = logging.getLogger('recjax')


class Refused(Exception):
  """A request that is answered with an error status."""

  def __init__(self, status, message, headers=None):
    super().__init__(message)
    self.status, self.message, self.headers = status, message, headers or {}


def trouble(status, message):
  """The body of an error, in the form that OpenAI's clients read."""
  kind = KINDS.get(status, 'invalid_request_error' if status < 500 else 'server_error')
  return {'detail': message, 'error': {'message': message, 'type': kind, 'param': None,
                                       'code': str(status)}}


class Gate:
  """An ASGI application around another one.

  key: '' for none. hosts: names that requests may be addressed to, () for any. most: requests at a
  time. count: called with (scope, status, seconds).
  """

  def __init__(self, app, key='', hosts=(), most=256, patience=PATIENCE, count=None):
    self.app, self.key, self.hosts, self.most = app, key, tuple(hosts), most
    self.patience, self.count = patience, count or (lambda scope, status, seconds: None)
    self.running = 0

  async def __call__(self, scope, receive, send):
    if scope['type'] == 'lifespan':
      await self.app(scope, receive, send)
    elif scope['type'] != 'http':
      await send({'type': 'websocket.close', 'code': 1008})
    else:
      await self.http(scope, receive, send)

  async def http(self, scope, receive, send):
    start, status = time.perf_counter(), 499  # where nobody waits for an answer any more

    async def sent(message):
      nonlocal status
      if message['type'] == 'http.response.start':
        status = message['status']
        have = {k.lower() for k, _ in message['headers']}
        message['headers'] = [*message['headers'], *(h for h in RAW_HEADERS if h[0] not in have)]
      await send(message)
    self.running += 1
    try:
      self.admit(scope)
      await self.app(scope, await self.body(scope, receive), sent)
    except Refused as error:
      await refuse(sent, error)
    except Exception:
      log.exception('%s %s failed', scope['method'], scope['path'])
      with contextlib.suppress(Exception):
        await refuse(sent, Refused(500, 'something went wrong here; the log of the server says '
                                   'what'))
    finally:
      self.running -= 1
      self.count(scope, status, time.perf_counter() - start)

  def admit(self, scope):
    """Raises Refused for a full house, a foreign host or page, a wrong key."""
    heads = {k.decode('latin1'): v.decode('latin1') for k, v in scope['headers']}
    if self.running > self.most:
      raise Refused(503, f'{self.most} requests are being answered; try again',
                    {'Retry-After': '1'})
    host = heads.get('host', '')
    if self.hosts and urllib.parse.urlsplit(f'//{host}').hostname not in self.hosts:
      raise Refused(421, 'this server does not answer for that host name')
    origin = heads.get('origin')
    if scope['method'] not in ('GET', 'HEAD', 'OPTIONS') and origin is not None and (
        urllib.parse.urlsplit(origin).netloc != host):
      raise Refused(403, 'requests of other web sites are not taken')
    if self.key and not hmac.compare_digest(given_key(heads).encode(), self.key.encode()):
      raise Refused(401, 'a key is needed: Authorization: Bearer KEY',
                    {'WWW-Authenticate': 'Basic realm="recjax", charset="UTF-8"'})

  async def body(self, scope, receive):
    """Reads the whole body, which keeps slow clients out of the application. -> receive"""
    most = LARGE if scope['path'] in LARGE_PATHS else BODY
    told = dict(scope['headers']).get(b'content-length', b'0')
    if not told.isdigit() or int(told) > most:
      raise Refused(413, f'a request holds at most {most:,} bytes', {'Connection': 'close'})
    parts, size, more = [], 0, True
    try:
      async with asyncio.timeout(self.patience):
        while more:
          message = await receive()
          if message['type'] == 'http.disconnect':
            raise Refused(499, 'gone')
          parts.append(message.get('body', b''))
          size, more = size + len(parts[-1]), message.get('more_body', False)
          if size > most:
            raise Refused(413, f'a request holds at most {most:,} bytes', {'Connection': 'close'})
    except TimeoutError:
      raise Refused(408, f'the request did not come whole in {self.patience:g} s',
                    {'Connection': 'close'}) from None
    whole = b''.join(parts)
    if deep(whole):
      raise Refused(422, f'the JSON is nested deeper than {DEPTH}')
    given = [{'type': 'http.request', 'body': whole, 'more_body': False}]

    async def again():
      return given.pop() if given else await receive()
    return again


def deep(body):
  """Whether JSON text (bytes) is nested deeper than DEPTH; brackets within texts do not count."""
  if body.count(b'[') + body.count(b'{') <= DEPTH:
    return False
  level = 0
  for found in TOKENS.finditer(body):
    if found[0] in (b'[', b'{'):
      level += 1
      if level > DEPTH:
        return True
    elif found[0] in (b']', b'}'):
      level -= 1
  return False


def given_key(heads):
  """The key of a request: a bearer's, X-API-Key, or a browser's password. -> str"""
  kind, _, value = heads.get('authorization', '').partition(' ')
  if kind.lower() == 'bearer':
    return value.strip()
  if kind.lower() == 'basic':
    try:
      return base64.b64decode(value, validate=True).decode().partition(':')[2]
    except ValueError:
      return ''
  return heads.get('x-api-key', '')


async def refuse(send, error):
  """Sends an error as JSON."""
  body = json.dumps(trouble(error.status, error.message)).encode()
  headers = {'Content-Type': 'application/json', 'Content-Length': str(len(body)), **error.headers}
  await send({'type': 'http.response.start', 'status': error.status,
              'headers': [(k.lower().encode(), v.encode()) for k, v in headers.items()]})
  await send({'type': 'http.response.body', 'body': body})


class Punctual(H11Protocol):
  """HTTP whose clients must send the head of a request in PATIENCE seconds."""

  def connection_made(self, transport):
    super().connection_made(transport)
    self.late = None
    self.expect()

  def data_received(self, data):
    super().data_received(data)
    self.expect()

  def connection_lost(self, error):
    if self.late:
      self.late.cancel()
    super().connection_lost(error)

  def idle(self):
    """Whether no request is being answered, so that a head is awaited."""
    return self.cycle is None or self.cycle.response_complete

  def expect(self):
    """Starts the clock where a head is awaited, stops it where one came."""
    if not self.idle():
      if self.late:
        self.late.cancel()
      self.late = None
    elif self.late is None:
      self.late = self.loop.call_later(PATIENCE, self.part)

  def part(self):
    """Ends a connection whose client took too long."""
    self.late = None
    if self.idle() and not self.transport.is_closing():
      self.transport.close()
