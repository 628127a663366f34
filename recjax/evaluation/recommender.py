"""A trained method behind one face: item ids outside, item indices and masks inside."""
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from recjax.data.dataset import Catalog
from recjax.errors import DataError
from recjax.protocols import ScoreFn

# (histories, k, exclude_seen, mask) -> item indices and scores; `Recommender` says what they are.
TopItems = Callable[[list[np.ndarray], int, bool, np.ndarray | None],
                    tuple[Sequence[Sequence[int]] | np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class CatalogRecommender:
  """What a method's `recommender` returns. Called with item ids, it translates them at its edge.

  top_items: called with (histories, k, exclude_seen, mask). histories: B arrays (L,) int32 of item
    indices 1..N, oldest first. k: how many items. exclude_seen: leave those of the history out.
    mask: (N,) bool of items that may come, or None for all; (B, N) where `masks_by_row`. Returns
    item indices (B, K), 0 where there are no more, and scores (B, K), best first.
  catalog: the N items.
  masks_by_row: whether `top_items` takes a mask for each history.
  max_batch: histories of a call beyond which more gain nothing, None for any number.
  score_fn: scores of the whole catalog, None where a search finds lists alone. logits: whether the
    softmax of these is what the model trains, so that it says how sure it is.
  choice_fn: of a run that was refitted the score_fn before that, which has learned nothing that
    validation asks for; None where it was not kept, or nothing was refitted.
  list_size: items of a list that its search finds anyway, 0 where nothing is said.
  """
  top_items: TopItems
  catalog: Catalog
  masks_by_row: bool = False
  max_batch: int | None = None
  score_fn: ScoreFn | None = None
  logits: bool = False
  choice_fn: ScoreFn | None = None
  list_size: int = 0

  @property
  def timed(self) -> bool:
    """Whether it reads when things happened, where a call tells it."""
    return getattr(self.score_fn, 'timed', False)

  def __call__(self, histories: Sequence[Sequence[Any]], k: int, exclude_seen: bool = True,
               allowed: Iterable[Any] | None = None,
               times: Sequence[Sequence[int]] | None = None) -> tuple[list[list[str]], np.ndarray]:
    """Recommends for histories of anybody.

    histories: B lists of item ids, oldest first. k: how many items. exclude_seen: leave those of
    the history out. allowed: item ids that may come, None for all; or a mask as `top_items` takes.
    times: of each history the seconds of its items and, last, of the request; read where `timed`.

    Returns item ids [B][<= k] and scores (B, k). Raises DataError for an id that the catalog lacks.
    """
    rows = [np.array([self.catalog.index(i) for i in history], np.int32) for history in histories]
    told: tuple = ()
    if times is not None and self.timed:
      told = ([np.array(seconds, np.int64) for seconds in times],)
      for history, seconds in zip(histories, times):
        if len(seconds) != len(history) + 1:
          raise DataError(f'{len(seconds)} times for a history of {len(history)} items; give one '
                          'for each, and one for the request')
    top_items: Callable = self.top_items
    items, scores = top_items(rows, k, exclude_seen, mask_of(allowed, self.catalog), *told)
    return [[self.catalog.id_of(int(i)) for i in row if i] for row in items], scores


def mask_of(allowed: Iterable[Any] | np.ndarray | None, catalog: Catalog) -> np.ndarray | None:
  """Returns the mask of a set of item ids, (N,) bool; None and masks stay as they are.

  allowed: item ids, a mask, or None. catalog: the N items. Raises DataError for an id it lacks.
  """
  if allowed is None or isinstance(allowed, np.ndarray):
    return allowed
  mask = np.zeros(len(catalog), bool)
  mask[[catalog.index(i) - 1 for i in allowed]] = True
  return mask


def as_recommender(recommend: Callable, catalog: Catalog) -> CatalogRecommender:
  """Returns a function of item ids as a Recommender whose indices are those of a catalog.

  recommend: called as Recommender is, with `allowed` a set of item ids; a Recommender of the same
  items in the same order is returned as it is. catalog: the items.
  """
  if isinstance(recommend, CatalogRecommender) and recommend.catalog.ids == catalog.ids:
    return recommend

  def top_items(histories: Sequence, k: int, exclude_seen: bool, mask: np.ndarray | None) -> tuple:
    allowed = None if mask is None else frozenset(catalog.ids[i] for i in np.flatnonzero(mask))
    item_ids, scores = recommend([[catalog.id_of(int(i)) for i in history]
                                  for history in histories], k, exclude_seen, allowed)
    items = np.zeros((len(item_ids), k), np.int32)
    for row, ids in zip(items, item_ids):
      row[:len(ids)] = [catalog.index(i) for i in ids]
    return items, scores
  return CatalogRecommender(top_items, catalog)
