"""Tools for assistants by the Model Context Protocol: recommend, search, item and why.

What they name is in the catalog: an assistant that shops with them has real ids, titles and prices.
"""
import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pydantic

from recjax.serving import limits, routes, server
from recjax.serving.demo.search import CatalogSearch
from recjax.serving.http_errors import RequestError
from recjax.serving.service import RecommendationService, allowed_mask
from recjax.text import interest_terms

INSTRUCTIONS = """\
Items of a shop's catalog. Name only items that these tools gave, by their titles, and never make up
an item, a price or an id. `search` finds items by words, `recommend` finds what fits what somebody
bought or likes (give ids of such items as `history`, or the shop's id of the user), `why` says why
an item fits, `item` tells all of one."""
MAX_ITEMS = 50  # of an answer
PATH = '/mcp'
ItemIds = list[Annotated[str, pydantic.Field(max_length=500)]]
Limit = Annotated[int, pydantic.Field(ge=1, le=MAX_ITEMS, description='how many items at most')]
Category = Annotated[str, pydantic.Field(description='only items of it; empty for all')]
History = Annotated[ItemIds, pydantic.Field(
    max_length=1000, description='ids of items that were bought or liked, oldest first')]
User = Annotated[str, pydantic.Field(
    max_length=500, description="the shop's id of a user; without a history it is theirs")]


class FoundItems(pydantic.BaseModel):
  """Items that were found, those bought most first, how many there are in all, and the query with
  what was looked for instead of unknown words, or ''."""
  items: list[routes.ShownItem]
  total: int
  read_as: str


def build(service: RecommendationService) -> Any:
  """Returns the MCPServer of a service. service: what answers; its first model where none is named.
  """
  import mcp_types
  from mcp.server import MCPServer
  mcp = MCPServer('recjax', instructions=INSTRUCTIONS, log_level='WARNING')
  reads = mcp_types.ToolAnnotations(read_only_hint=True, idempotent_hint=True)
  search_words = CatalogSearch()

  def tool(function: Callable) -> Callable:
    @functools.wraps(function)
    async def told(*args: Any, **kwargs: Any) -> Any:
      with tool_errors():
        return await function(*args, **kwargs)
    return mcp.tool(annotations=reads)(told)

  @tool
  async def recommend(history: History | None = None, user: User = '', k: Limit = 5,
                      category: Category = '', only: ItemIds | None = None,
                      without: ItemIds | None = None, model: str = ''
                      ) -> routes.RecommendAnswer:
    """Items that fit what somebody bought or likes, best first, with reasons. `only` and `without`
    are ids of items that alone may come, or may not."""
    body = request_body(history, user, k=k, category=category or None, allow=only,
                        block=without or [], model=model, why=True)
    return routes.RecommendAnswer(**await routes.recommendation(service, body, None))

  @tool
  async def search(query: str = '', category: Category = '', limit: Limit = 10) -> FoundItems:
    """Items whose title, brand or category has words that begin as those of the query; `read_as`
    says what was looked for instead of words that no item has."""
    snapshot = service.model().snapshot
    if category:
      allowed_mask(snapshot, category=category)
    found = await asyncio.to_thread(
        search_words.search, snapshot, query[:200], category or None, 0, limit)
    return FoundItems(items=[routes.ShownItem(**snapshot.describe(item)) for item in found.items],
                      total=found.total, read_as=found.read_as)

  @tool
  async def item(id: str) -> routes.ShownItem:
    """All that the catalog says of one item."""
    snapshot = service.model().snapshot
    return routes.ShownItem(**snapshot.describe(known_item(snapshot, id)))

  @tool
  async def why(id: str, history: History | None = None, user: User = '', model: str = ''
                ) -> routes.Reasons:
    """Why an item fits a history: interests it meets, tags it shares, what its buyers bought."""
    served = service.model_of_user(model, user)
    index = known_item(served.snapshot, id)
    seen, _ = await routes.known_history(service, served, request_body(history, user))
    interests = interest_terms.interests(seen, served.snapshot.terms)
    return routes.Reasons(**service.explain(served, index, seen, interests))
  return mcp


def request_body(history: list[str] | None, user: str, **more: Any) -> routes.RecommendRequest:
  """Returns a request of POST /v1/recommend. history: ids, None for those of the user. user: an id,
  or ''. more: further fields."""
  given = {} if history is None else {'history': history}
  return routes.RecommendRequest(**given, user=user, **more)


def known_item(snapshot: Any, item_id: str) -> int:
  """Returns the index of an item of a CatalogSnapshot. item_id: of the item. Raises RequestError
  where there is none."""
  index = snapshot.index(item_id)
  if not index:
    raise RequestError(404, f'there is no item {item_id!r:.100}; find ids with search or recommend')
  return index


@contextlib.contextmanager
def tool_errors() -> Iterator[None]:
  """Turns errors that a client can mend into those that an assistant reads."""
  from mcp.server.mcpserver.exceptions import ToolError
  try:
    yield
  except RequestError as error:
    raise ToolError(error.message) from error


def listen_http(mcp: Any, service: RecommendationService, sockets: list,
                log: Callable[..., None]) -> None:
  """Serves the tools at /mcp until a signal comes, under the limits of the service.

  mcp: of `build`. service: what answers. sockets: of `server.bind_sockets`. log: prints a line, as
  `print` does.
  """
  settings = service.settings
  is_local = settings.host in limits.LOCAL_HOSTS
  app = limits.LimitsMiddleware(
      mcp.streamable_http_app(streamable_http_path=PATH, json_response=True, stateless_http=True),
      limits.RequestLimits(service.keys, limits.LOCAL_HOSTS if is_local else (),
                           settings.max_concurrent, settings.body_seconds),
      on_request=service.observe_request)
  for one in sockets:
    one.listen(server.BACKLOG)
  host = f'[{settings.host}]' if ':' in settings.host else settings.host
  log(f'http://{host}:{sockets[0].getsockname()[1]}{PATH} has the tools', flush=True)
  server.uvicorn_server(app, service, log, lifespan='on').run(sockets)
