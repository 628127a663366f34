"""Requests that say what a list may hold: a category or none of it, or how many of a category.

The optional pack of Lu et al., arXiv 2403.05063, off by default (`control.share`). Every draw is a
function of (seed, epoch, user) alone.
"""
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog
from recjax.text.prompt_templates import fill

LIST_KINDS = ('with', 'without', 'at_most', 'at_least', 'about')  # what is asked of a list

QUESTION_KINDS = ('category_of', 'item_of')

KINDS = LIST_KINDS + QUESTION_KINDS

FIELDS = {'with': ('category',), 'without': ('category',),
          **{k: ('category', 'wanted') for k in ('at_most', 'at_least', 'about')},
          'category_of': ('title',), 'item_of': ('category', 'count')}


@dataclasses.dataclass(frozen=True)
class CategoryRequest:
  """What is asked of a list.

  kind: of LIST_KINDS. wanted: items of the category, for the last three kinds.
  """
  kind: str
  category: str
  wanted: int = 0

  def text(self, template: dict[str, str]) -> str:
    """The sentence that a request ends with. template: the request's parts."""
    return fill(template[self.kind], category=self.category, wanted=str(self.wanted))

  def followed(self, items: Sequence[int] | np.ndarray, members: set[int]) -> bool:
    """Whether a list does what was asked; an empty one never does.

    members: items of the category.
    """
    inside = sum(item in members for item in items)
    return bool(items) and {
        'with': inside == len(items), 'without': not inside, 'at_most': inside <= self.wanted,
        'at_least': inside >= self.wanted, 'about': abs(inside - self.wanted) <= 1}[self.kind]


def category_members(tokenized: TokenizedCatalog) -> dict[str, set[int]]:
  """The items of each category, as indices 1..N. tokenized: the catalog."""
  members = {}
  for item, paths in enumerate(tokenized.categories, 1):
    for path in paths:
      members.setdefault(path, set()).add(item)
  return members


def make_lists(tokenized: TokenizedCatalog, histories: Sequence[np.ndarray],
               targets: Sequence[int] | np.ndarray, teach: Callable, seeds: Sequence,
               kinds: Sequence[str], max_items: int) -> list[tuple | None]:
  """Requests about categories and the lists that answer them, the true item first.

  histories: item indices; targets: the next item of each, whose categories are asked for, or with
  'without' the one that the teacher's list holds most of and the target does not have. teach:
  (histories, k, signs) -> (M, k) items, signs '+C' or '-C'. seeds: a seed of each; kinds: of
  LIST_KINDS, of each; max_items: of a list. tokenized: the catalog. -> for each the labels and the
  CategoryRequest, or None where no category serves
  """
  if not histories:
    return []
  plain, members = teach(histories, max_items + 1), category_members(tokenized)
  rngs = [np.random.default_rng(seed) for seed in seeds]
  chosen = [_category(tokenized, kind, target, taught.tolist(), rng)
            for kind, target, taught, rng in zip(kinds, targets, plain, rngs)]
  served = [i for i, category in enumerate(chosen) if category]
  served_histories = [histories[i] for i in served]
  inside, outside = (
    teach(served_histories, max_items + 1, [sign + chosen[i] for i in served])
    if served_histories
    else ()
    for sign in '+-')
  lists = [None] * len(histories)
  for place, i in enumerate(served):
    category_items = members[chosen[i]]
    sides = [
      [
        item
        for item in taught[place].tolist()
        if item and item != targets[i] and (item in category_items) == is_inside]
      for taught, is_inside in ((inside, True), (outside, False))]
    lists[i] = _labels(
      kinds[i], chosen[i], int(targets[i]), category_items, *sides, rngs[i], max_items)
  return lists


def _category(tokenized: TokenizedCatalog, kind: str, target: int, taught: list[int],
              rng: np.random.Generator) -> str | None:
  """The category that a request is about, or None."""
  target_paths = tokenized.categories_of(target)
  if kind != 'without':
    return target_paths[rng.integers(len(target_paths))] if target_paths else None
  counts = {}
  for path in (
    p for item in taught if item for p in tokenized.categories_of(item) if p not in target_paths):
    counts[path] = counts.get(path, 0) + 1
  return min(counts, key=lambda p: (-counts[p], p)) if counts else None


def _labels(kind: str, category: str, target: int, own: set[int], inside: list[int],
            outside: list[int], rng: np.random.Generator,
            max_items: int) -> tuple[list[int], CategoryRequest]:
  """-> labels, request. inside, outside: the teacher's items on both sides, without the target."""
  if kind in ('with', 'without'):
    return [target, *(inside if kind == 'with' else outside)][:max_items], CategoryRequest(
      kind, category)
  # the target has the category: it is one of those wanted
  size = min(max_items, 1 + len(inside) + len(outside))
  low, high = max(1, size - len(outside)), min(size, 1 + len(inside))
  count = int(rng.integers(low, high + 1))
  slack = int(rng.integers(2)) if kind != 'about' else 0  # off by one on the safe side
  wanted = {'at_most': min(size, count + slack), 'at_least': max(0, count - slack),
            'about': count}[kind]
  rest = inside[:count - 1] + outside[:size - count]
  return ([target, *(rest[i] for i in rng.permutation(len(rest)))],
          CategoryRequest(kind, category, wanted))


def make_question(tokenized: TokenizedCatalog, template: dict[str, str], kind: str, item: int,
                  rng: np.random.Generator, max_items: int) -> tuple[str, list]:
  """A question about an item's most specific category, or for items of it.

  kind: of QUESTION_KINDS. item: one that has categories. max_items: of an answer. rng: of the
  draws. tokenized: the catalog. template: the request's parts. -> text, and its answer: for
  'category_of' [the category], for 'item_of' item indices, to be written as a list
  """
  path = tokenized.categories_of(item)[-1]
  if kind == 'category_of':
    return fill(template[kind], title=tokenized.title(item)), [path]
  members = [number for number, paths in enumerate(tokenized.categories, 1) if path in paths]
  count = int(rng.integers(1, min(max_items, len(members)) + 1))
  return (fill(template[kind], category=path, count=str(count)),
          [members[number] for number in rng.permutation(len(members))[:count]])
