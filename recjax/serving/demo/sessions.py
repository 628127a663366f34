"""Visitors of the shop. A random cookie names each; what they bought is in the database of events,
so it outlives the server. What is found of it meanwhile is in memory."""
import asyncio
import collections
import hashlib
import re
import secrets

import fastapi

from recjax.serving.catalog_snapshot import CatalogVersions
from recjax.serving.events import Event
from recjax.serving.served_model import ServedModel
from recjax.serving.service import FoundInterests, RecommendationService

COOKIE_NAME, MAX_SESSIONS = 'recjax', 10_000
COOKIE = re.compile(r'[\w-]{32}', re.ASCII)
COOKIE_SECONDS = 365 * 86_400


class Session:
  """One visitor.

  user: the id by which the database of events knows the visitor; the cookie does not follow from
  it. histories: {catalog: the newest history that was looked at, item indices}. interests:
  {catalog: what the newest found history is after}. listeners: an event of each open stream, set
  when interests change. tasks: {catalog: what finds interests now}.
  """

  def __init__(self, cookie: str):
    self.user = f'shop-{hashlib.sha256(cookie.encode()).hexdigest()[:24]}'
    self.histories: dict[CatalogVersions, list[int]] = {}
    self.interests: dict[CatalogVersions, FoundInterests] = {}
    self.listeners: set[asyncio.Event] = set()
    self.tasks: dict[CatalogVersions, asyncio.Task] = {}

  def found(self, model: ServedModel) -> FoundInterests:
    """Returns the interests that are known of the history in the catalog of `model`."""
    known = self.interests.get(model.catalogs) if self.histories.get(model.catalogs) else None
    return known or FoundInterests()


class Sessions:
  """Sessions by cookie; the one unseen for longest makes room.

  service: whose interests are found. open_streams: event streams that are open.
  """

  def __init__(self, service: RecommendationService):
    self.service, self.open_streams = service, 0
    self._sessions: collections.OrderedDict[str, Session] = collections.OrderedDict()
    service.metrics.add_gauge('recjax_sessions', 'Visitors of the shop',
                              lambda: len(self._sessions))
    service.metrics.add_gauge('recjax_event_streams', 'Open event streams',
                              lambda: self.open_streams)

  def get(self, request: fastapi.Request, response: fastapi.Response | None = None) -> Session:
    """Returns the visitor's session.

    request: carries its cookie. response: gets the cookie of a new visitor; without it a new one is
    not kept.
    """
    cookie = request.cookies.get(COOKIE_NAME, '')
    if not COOKIE.fullmatch(cookie):
      cookie = secrets.token_urlsafe(24)
      if response is None:
        return Session(cookie)
      response.set_cookie(COOKIE_NAME, cookie, httponly=True, samesite='strict',
                          max_age=COOKIE_SECONDS, secure=request.url.scheme == 'https')
    if cookie not in self._sessions:
      self._sessions[cookie] = Session(cookie)
      if len(self._sessions) > MAX_SESSIONS:
        self._sessions.popitem(last=False)
    self._sessions.move_to_end(cookie)
    return self._sessions[cookie]

  async def purchases(self, session: Session, model: ServedModel) -> list[tuple[Event, int]]:
    """Returns what a visitor bought, oldest first, with item indices; what the catalog of the model
    lacks is left out. Interests of a changed history are found aside.

    session: the visitor's. model: the one that the visitor looks at.
    """
    events = await self.service.ask_store(self.service.store.history, session.user)
    known = [(event, item) for event in events if (item := model.snapshot.index(event.item))]
    history = [item for _, item in known]
    if history != session.histories.get(model.catalogs, []):
      session.histories[model.catalogs] = history
      task = session.tasks.get(model.catalogs)
      if task is None or task.done():
        session.tasks[model.catalogs] = asyncio.create_task(self._find_interests(session, model))
    return known

  async def _find_interests(self, session, model):
    """Finds the interests of the newest history."""
    catalogs, found_for = model.catalogs, None
    while found_for != session.histories[catalogs]:
      found_for = session.histories[catalogs]
      interests = await asyncio.get_running_loop().run_in_executor(
          self.service.executor, self.service.find_interests, model.snapshot, found_for)
      if found_for == session.histories[catalogs]:
        session.interests[catalogs] = interests
        for listener in session.listeners:
          listener.set()
