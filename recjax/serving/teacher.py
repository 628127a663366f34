"""A trained sequential recommender behind HTTP, with RecLM's published requests (reclm.md 2.2).

POST /inference and /ranking take {'users', 'item_lengths', 'item_lists', 'k', 'immediately',
'candidate_item_lists', 'target_category'}; every element of the lists is answered, in order.
"""
import threading

import pydantic

from recjax.errors import DataError

MOST, BODY = 4096, 16 << 20  # lists of a request, its bytes


class Request(pydantic.BaseModel):
  """What a client sends; users and item_lengths are taken and not needed."""
  item_lists: list[list[str | int]]
  users: list[str | int] = []
  item_lengths: list[int] = []
  k: int = pydantic.Field(10, ge=1)
  immediately: int = 0
  candidate_item_lists: list[list[str | int]] | None = None
  target_category: list[str] | None = None


def app(recommend, catalog, name=''):
  """The application. recommend: the face of a trained method; catalog: its items. -> FastAPI"""
  import fastapi
  from fastapi.responses import JSONResponse
  made, lock = fastapi.FastAPI(title='recjax teacher', version='1'), threading.Lock()
  groups = categories(catalog)

  @made.middleware('http')
  async def bounded(request, call):
    size = request.headers.get('content-length', '')
    if request.method == 'POST' and (not size.isdigit() or int(size) > BODY):
      return JSONResponse({'detail': f'a request states its length, at most {BODY:,} bytes'}, 413)
    return await call(request)

  def refused(error):
    return fastapi.HTTPException(422, str(error))

  @made.get('/healthz')
  def healthz():
    return {'status': 'ok', 'model': name, 'items': len(catalog)}

  @made.post('/inference')
  def inference(request: Request):
    try:
      with lock:
        return infer(recommend, catalog, groups, checked(request))
    except DataError as error:
      raise refused(error) from error

  @made.post('/ranking')
  def ranking(request: Request):
    try:
      with lock:
        return {'ranking': rank(recommend, catalog, checked(request))}
    except DataError as error:
      raise refused(error) from error
  return made


def checked(request):
  """The request with ids as text. Raises DataError for lists that do not fit each other."""
  count = len(request.item_lists)
  if not 0 < count <= MOST:
    raise DataError(f'item_lists holds {count} lists; send 1 to {MOST}')
  for key in ('candidate_item_lists', 'target_category'):
    some = getattr(request, key)
    if some is not None and len(some) != count:
      raise DataError(f'{key} has {len(some)} entries for {count} item_lists')
  request.item_lists = [list(map(str, x)) for x in request.item_lists]
  if request.candidate_item_lists is not None:
    request.candidate_item_lists = [list(map(str, x)) for x in request.candidate_item_lists]
  return request


def categories(catalog):
  """{category: set of item ids}: every part of an item's list, and every path, with and without
  its root."""
  out = {}
  for item, some in zip(catalog.ids, catalog.columns.get('categories') or ()):
    for name in {*(some or ()), *(', '.join((some or ())[a:e]) for a in (0, 1)
                                  for e in range(a + 1, len(some or ()) + 1))}:
      out.setdefault(name, set()).add(item)
  return out


def allowed_of(request, row, catalog, groups):
  """Items that one list may be answered with, None for all; and whether its history is out."""
  if request.candidate_item_lists is not None:
    some = request.candidate_item_lists[row]
    for item in some:
      catalog.index(item)
    return frozenset(some), False
  if request.target_category is None:
    return None, True
  sign, name = request.target_category[row][:1], request.target_category[row][1:]
  if sign not in '+-' or not sign or name not in groups:
    raise DataError(f'target_category {request.target_category[row]!r}: give + or - and a known '
                    f'category, e.g. +{next(iter(groups), "Name")}')
  return frozenset(groups[name] if sign == '+' else set(catalog.ids) - groups[name]), True


def infer(recommend, catalog, groups, request):
  """The k best items of every list; fewer where fewer may come, and 'short' says so."""
  k, out, same = min(request.k, len(catalog)), [None] * len(request.item_lists), {}
  for row in range(len(out)):
    same.setdefault(allowed_of(request, row, catalog, groups), []).append(row)
  for (allowed, unseen), rows in same.items():
    if allowed is not None and not allowed:
      found = [[] for _ in rows]
    else:
      found = recommend([request.item_lists[r] for r in rows], k, unseen, allowed)[0]
    for r, items in zip(rows, found):
      out[r] = list(items)
  answer = {'inference': out}
  return {**answer, 'short': True} if any(len(o) < request.k for o in out) else answer


def rank(recommend, catalog, request):
  """Where each candidate stands among all items, 0 the best. -> lists of int"""
  if request.candidate_item_lists is None:
    raise DataError('/ranking needs candidate_item_lists')
  for some in request.candidate_item_lists:
    for item in some:
      catalog.index(item)
  order = recommend(request.item_lists, len(catalog), False)[0]
  places = [{item: r for r, item in enumerate(row)} for row in order]
  return [[place[i] for i in some] for place, some in zip(places, request.candidate_item_lists)]
