"""The requests of RecLM's published teacher server, answered by a trained recommender.

POST /inference and /ranking take what the teacher of RecLM's release is sent
(https://github.com/microsoft/RecAI, folder RecLM-cgen). Every list is answered, in order.
"""
import threading
from collections.abc import Callable, Mapping
from typing import Any

import fastapi
import numpy as np
import pydantic

from recjax.data.dataset import Catalog
from recjax.errors import DataError
from recjax.evaluation.recommender import TopItems
from recjax.serving.catalog_snapshot import group_by_category

MAX_LISTS = 4096  # histories of a request


class ReclmRequest(pydantic.BaseModel):
  """What a client sends; users, item_lengths and immediately are taken and not needed.

  item_lists: histories, oldest first. k: items of a list. candidate_item_lists: of each user the
  only items that may come. target_category: of each user what to recommend from.
  """
  item_lists: list[list[str | int]]
  users: list[str | int] = []
  item_lengths: list[int] = []
  k: int = pydantic.Field(10, ge=1)
  immediately: int = 0
  candidate_item_lists: list[list[str | int]] | None = None
  target_category: list[str] | None = None


def add_routes(app: fastapi.FastAPI, current: Callable[[], tuple[TopItems, Catalog]]) -> None:
  """Adds the routes to `app`.

  current: gives what answers now: `top_items` as `evaluation.recommender.CatalogRecommender` has
  it, and its items.
  """
  lock, newest = threading.Lock(), None

  def ranker() -> ReclmRanker:
    nonlocal newest  # of the catalog; a model is held by nobody here, so that it can be let go
    top_items, catalog = current()
    if newest is None or catalog is not newest[0]:
      newest = catalog, group_by_category(catalog.columns.get('categories'))
    return ReclmRanker(top_items, *newest)

  @app.post('/inference')
  def inference(request: ReclmRequest):
    with lock:
      return ranker().infer(request)

  @app.post('/ranking')
  def ranking(request: ReclmRequest):
    with lock:
      return {'ranking': ranker().rank(request)}


class ReclmRanker:
  """Answers requests by a recommender of item indices.

  top_items, catalog: as `current` of `add_routes` gives them. items_by_category: {category: its
  item indices}.
  """

  def __init__(self, top_items: TopItems, catalog: Catalog,
               items_by_category: Mapping[str, np.ndarray]):
    self.top_items, self.catalog = top_items, catalog
    self.items_by_category = items_by_category

  def infer(self, request: ReclmRequest) -> dict[str, Any]:
    """Returns the k best items of every list; where fewer may come, fewer, and 'short' says so.

    request: what was sent. Raises DataError for lists that do not fit each other, and for unknown
    items and categories.
    """
    self._check(request)
    histories = [self._indices(items) for items in request.item_lists]
    k, rows_by_filter = min(request.k, len(self.catalog)), {}
    for row in range(len(histories)):
      mask, exclude_seen = self._filter(request, row)
      key = None if mask is None else mask.tobytes(), exclude_seen
      rows_by_filter.setdefault(key, (mask, exclude_seen, []))[2].append(row)
    answers: list[list[str]] = [[] for _ in histories]
    for mask, exclude_seen, rows in rows_by_filter.values():
      if mask is not None and not mask.any():
        continue
      found, _ = self.top_items([histories[row] for row in rows], k, exclude_seen, mask)
      for row, items in zip(rows, found):
        answers[row] = [self.catalog.id_of(int(item)) for item in items if item]
    is_short = any(len(answer) < request.k for answer in answers)
    return {'inference': answers, **({'short': True} if is_short else {})}

  def rank(self, request: ReclmRequest) -> list[list[int]]:
    """Returns where each candidate stands among all items, 0 the best.

    request: what was sent. Raises DataError as `infer` does, and for candidates that may not come.
    """
    self._check(request)
    if request.candidate_item_lists is None:
      raise DataError('/ranking needs candidate_item_lists')
    candidates = [self._indices(items) for items in request.candidate_item_lists]
    histories = [self._indices(items) for items in request.item_lists]
    orders, _ = self.top_items(histories, len(self.catalog), False, None)
    answers = []
    for items, order in zip(candidates, orders):
      places = {int(item): place for place, item in enumerate(order) if item}
      retired = [int(item) for item in items if int(item) not in places]
      if retired:
        raise DataError(f'item {self.catalog.id_of(retired[0])!r} is retired and has no rank')
      answers.append([places[int(item)] for item in items])
    return answers

  def _check(self, request):
    count = len(request.item_lists)
    if not 0 < count <= MAX_LISTS:
      raise DataError(f'item_lists holds {count} lists; send 1 to {MAX_LISTS}')
    for name in ('candidate_item_lists', 'target_category'):
      values = getattr(request, name)
      if values is not None and len(values) != count:
        raise DataError(f'{name} has {len(values)} entries for {count} item_lists')

  def _indices(self, item_ids):
    return np.array([self.catalog.index(item_id) for item_id in item_ids], np.int32)

  def _filter(self, request, row):
    """The mask of one list, None for all items; and whether its history is left out."""
    if request.candidate_item_lists is not None:
      return self._mask_of(self._indices(request.candidate_item_lists[row])), False
    if request.target_category is None:
      return None, True
    sign, name = request.target_category[row][:1], request.target_category[row][1:]
    if sign not in ('+', '-') or name not in self.items_by_category:
      raise DataError(f'target_category {request.target_category[row]!r}: give + or - and a known '
                      f'category, e.g. +{next(iter(self.items_by_category), "Name")}')
    mask = self._mask_of(self.items_by_category[name])
    return mask if sign == '+' else ~mask, True

  def _mask_of(self, items):
    mask = np.zeros(len(self.catalog), bool)
    mask[items - 1] = True
    return mask
