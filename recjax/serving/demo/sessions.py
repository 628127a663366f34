"""Visitors of the shop: what each bought stays on the server, in a session that a random cookie
names, and nowhere else."""
import asyncio
import collections
import secrets

import fastapi

from recjax.serving.catalog_snapshot import CatalogVersions
from recjax.serving.served_model import ServedModel
from recjax.serving.service import FoundInterests, RecommendationService

COOKIE_NAME, MAX_SESSIONS = 'recjax', 10_000


class Session:
  """One visitor.

  purchases: {catalog: item indices, oldest first}. interests: {catalog: what the newest found
  history is after}. listeners: an event of each open stream, set when interests change. version:
  counts changes of the histories. task: what finds interests now, or None.
  """

  def __init__(self):
    self.purchases: dict[CatalogVersions, list[int]] = collections.defaultdict(list)
    self.interests: dict[CatalogVersions, FoundInterests] = {}
    self.listeners: set[asyncio.Event] = set()
    self.version = 0
    self.task: asyncio.Task | None = None


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

    request: carries its cookie. response: gets the cookie of a new session; without it a new one is
    not kept.
    """
    token = request.cookies.get(COOKIE_NAME, '')
    session = self._sessions.get(token)
    if session is None:
      session = Session()
      if response is None:
        return session
      token = secrets.token_urlsafe(24)
      self._sessions[token] = session
      if len(self._sessions) > MAX_SESSIONS:
        self._sessions.popitem(last=False)
      response.set_cookie(COOKIE_NAME, token, httponly=True, samesite='strict',
                          secure=request.url.scheme == 'https')
    self._sessions.move_to_end(token)
    return session

  def refresh_interests(self, session: Session, model: ServedModel) -> None:
    """Finds the interests of a changed history aside; the newest history wins.

    session: whose history changed. model: the one that the visitor looks at.
    """
    session.version += 1
    if session.task is None or session.task.done():
      session.task = asyncio.create_task(self._find_interests(session, model))

  async def _find_interests(self, session, model):
    found_version = -1
    while found_version != session.version:
      found_version, catalogs = session.version, model.catalogs
      history = list(session.purchases[catalogs])
      interests = await asyncio.get_running_loop().run_in_executor(
          self.service.executor, self.service.find_interests, model.snapshot, history)
      if found_version == session.version:
        session.interests[catalogs] = interests
        for listener in session.listeners:
          listener.set()
