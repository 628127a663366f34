"""The web shop: a static page, and what it asks for. What a visitor bought stays on the server, in
a session that a random cookie names, and nowhere else.
"""
import asyncio
import collections
import importlib.resources
import json
import secrets
from typing import Annotated

import fastapi
import pydantic
from fastapi.responses import JSONResponse, Response, StreamingResponse

from recjax.serving import service as services
from recjax.serving.limits import Refused

COOKIE, SESSIONS, KEPT = 'recjax', 10_000, 50  # visitors, items of a history
STREAMS, HEARTBEAT = 512, 15.0  # open event streams, seconds between signs of life
KINDS = {'html': 'text/html; charset=utf-8', 'js': 'text/javascript; charset=utf-8',
         'css': 'text/css; charset=utf-8', 'svg': 'image/svg+xml'}
Name = Annotated[str, fastapi.Query(max_length=200)]


class Session:
  """One visitor. baskets: shelves -> item indices, oldest first. found: shelves -> interests, their
  source and a note. waiting: an event of each open stream."""

  def __init__(self):
    self.baskets, self.found = collections.defaultdict(list), {}
    self.version, self.job, self.waiting = 0, None, set()


class Bought(pydantic.BaseModel):
  """What a visitor buys."""
  model_config = pydantic.ConfigDict(extra='forbid')
  item: str = pydantic.Field(max_length=500)
  model: str = pydantic.Field('', max_length=200)


class Visitors:
  """Sessions by cookie; the one unseen for longest makes room."""

  def __init__(self, service):
    self.service, self.sessions, self.streams = service, collections.OrderedDict(), 0
    service.counters.gauge('recjax_sessions', 'Visitors of the shop', lambda: len(self.sessions))
    service.counters.gauge('recjax_event_streams', 'Open event streams', lambda: self.streams)

  def of(self, request, response=None):
    """The visitor's session; a new one, which passes where no `response` carries its cookie."""
    name = request.cookies.get(COOKIE, '')
    found = self.sessions.get(name)
    if found is None:
      found = Session()
      if response is None:
        return found
      name = secrets.token_urlsafe(24)
      self.sessions[name] = found
      if len(self.sessions) > SESSIONS:
        self.sessions.popitem(last=False)
      response.set_cookie(COOKIE, name, httponly=True, samesite='strict',
                          secure=request.url.scheme == 'https')
    self.sessions.move_to_end(name)
    return found

  def renew(self, session, model):
    """Interests of a changed history are found aside; the newest history wins."""
    session.version += 1
    if session.job is None or session.job.done():
      session.job = asyncio.create_task(self._renew(session, model))

  async def _renew(self, session, model):
    done = -1
    while done != session.version:
      done, shelves = session.version, model.shelves
      history = list(session.baskets[shelves])
      found = await asyncio.get_running_loop().run_in_executor(
          self.service.pool, self.service.interests, model.stock, history)
      if done == session.version:
        session.found[shelves] = found
        for fresh in session.waiting:
          fresh.set()


def add(app, service):
  """Every route of the shop."""
  visitors = Visitors(service)
  pages(app)
  goods(app, service, visitors)
  history(app, service, visitors)
  events(app, service, visitors)


def pages(app):
  """The page and its parts, out of the package: nothing is looked up by path."""
  folder = importlib.resources.files('recjax.serving') / 'pages'
  parts = {f.name: f.read_bytes() for f in folder.iterdir() if f.name.rpartition('.')[2] in KINDS}

  def part(name):
    if name not in parts:
      raise Refused(404, 'there is no such page')
    return Response(parts[name], media_type=KINDS[name.rpartition('.')[2]],
                    headers={'Cache-Control': 'no-cache'})

  @app.get('/', include_in_schema=False)
  async def page():
    return part('shop.html')

  @app.get('/docs', include_in_schema=False)
  async def docs():
    return part('docs.html')

  @app.get('/static/{name}', include_in_schema=False)
  async def static(name: str):
    return part(name)


def told(service, session, model):
  """What the page shows of a visitor."""
  basket = session.baskets[model.shelves]
  found, source, note = session.found.get(model.shelves, ([], '', ''))
  return {'model': model.name, 'interests': found if basket else [], 'source': source,
          'note': services.clean(note)[:200], 'history': [
              {**brief(model.stock, i), 'position': at} for at, i in enumerate(basket)]}


def brief(stock, item):
  """An item as cards show it."""
  out = stock.show(item)
  return {**out, 'description': (out.get('description') or '')[:240]}


def goods(app, service, visitors):
  """Items: all, found, recommended."""
  @app.get('/shop/state')
  async def state(request: fastapi.Request, response: Response, model: Name = ''):
    """The models, and what this visitor did."""
    model = service.model(model)
    session = visitors.of(request, response)
    counts = [(name, int(model.stock.live[rows - 1].sum()))
              for name, rows in model.stock.categories.items() if ', ' not in name]
    top = sorted(counts, key=lambda x: (-x[1], x[0]))[:40]
    return {**told(service, session, model), 'models': [
        {'name': m.name, 'method': m.method, 'converses': m.talk is not None, 'ready': m.ready,
         'trouble': bool(m.trouble)} for m in service.models.values()],
        'categories': [{'name': n, 'items': c} for n, c in top if c], 'items': len(model.stock)}

  @app.get('/shop/items')
  async def find(model: Name = '', q: Name = '', category: Name = '',
                 offset: Annotated[int, fastapi.Query(ge=0, le=10**7)] = 0,
                 limit: Annotated[int, fastapi.Query(ge=1, le=100)] = 24):
    """Items whose words begin with those of `q`, the best sold first."""
    stock = service.model(model).stock
    if category:
      services.allowed(stock, category=category)
    found, total = stock.search(q, category or None, offset, limit)
    return {'items': [brief(stock, i) for i in found], 'total': total}

  @app.get('/shop/item')
  async def one(id: Annotated[str, fastapi.Query(max_length=500)], model: Name = ''):
    """One item, whole."""
    model = service.model(model)
    index = model.stock.index(id)
    if not index:
      raise Refused(404, 'there is no such item')
    tags = [t for t, _ in (model.tags or {}).get(id, ())][:12]
    return {**model.stock.show(index), 'tags': tags,
            'sold': int(model.stock.live[index - 1]) == 1}

  @app.get('/shop/recommend', response_model=None)
  async def recommend(request: fastapi.Request, model: Name = '',
                      k: Annotated[int, fastapi.Query(ge=1, le=50)] = 12) -> JSONResponse:
    """What this visitor may like next, best first, and why."""
    model, session = service.model(model), visitors.of(request)
    basket = list(session.baskets[model.shelves])
    stock = model.stock
    found = await service.recommend(request, model, basket, k,
                                    services.allowed(stock, history=basket))
    liked = services.interest_terms.interests(basket, stock.terms)
    liked = list(dict.fromkeys([*session.found.get(model.shelves, ([],))[0], *liked]))
    return JSONResponse({'source': 'model' if basket else 'popularity', 'items': [
        {**brief(stock, i), 'score': s, 'why': service.why(model, i, basket, liked)}
        for i, s in found]})


def history(app, service, visitors):
  """What a visitor bought."""
  def changed(session, model):
    visitors.renew(session, model)
    return told(service, session, model)

  @app.post('/shop/history')
  async def buy(bought: Bought, request: fastapi.Request, response: Response):
    """Adds an item; of more than 50 the oldest go."""
    model, session = service.model(bought.model), visitors.of(request, response)
    index = model.stock.index(bought.item)
    if not index or not model.stock.live[index - 1]:
      raise Refused(404, 'there is no such item')
    session.baskets[model.shelves] = [*session.baskets[model.shelves], index][-KEPT:]
    return changed(session, model)

  @app.delete('/shop/history')
  async def forget(request: fastapi.Request, model: Name = '',
                   position: Annotated[int | None, fastapi.Query(ge=0, le=KEPT)] = None):
    """Takes one item out, or all."""
    model, session = service.model(model), visitors.of(request)
    basket = session.baskets[model.shelves]
    if position is None:
      basket.clear()
    elif position < len(basket):
      del basket[position]
    else:
      raise Refused(404, 'the history has no such place')
    return changed(session, model)


def events(app, service, visitors):
  """Interests, when they are found."""
  @app.get('/shop/events', response_model=None)
  async def stream(request: fastapi.Request, model: Name = '') -> StreamingResponse | JSONResponse:
    """Server-sent events: `interests` whenever they change."""
    model, session = service.model(model), visitors.of(request)
    if visitors.streams >= STREAMS:
      raise Refused(503, 'too many pages are open; try again', {'Retry-After': '10'})

    async def lines():
      fresh = asyncio.Event()
      session.waiting.add(fresh)
      visitors.streams += 1
      try:
        last, quiet = None, 0.0
        while not service.closing:
          found = session.found.get(model.shelves)
          if found != last:
            last, quiet = found, 0.0
            state = told(service, session, model)
            yield 'event: interests\ndata: ' + json.dumps(
                {k: state[k] for k in ('interests', 'source', 'note')}) + '\n\n'
          elif quiet >= HEARTBEAT:
            quiet = 0.0
            yield ': still here\n\n'
          try:
            async with asyncio.timeout(1.0):  # seldom enough, and the end of the server is seen
              await fresh.wait()
            fresh.clear()
          except TimeoutError:
            quiet += 1.0
      finally:
        session.waiting.discard(fresh)
        visitors.streams -= 1
    return StreamingResponse(lines(), media_type='text/event-stream',
                             headers={'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'})
