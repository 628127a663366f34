"""Requests that say what a list may hold: a category or none of it, or how many of a category.

The optional pack of the predecessor (arXiv 2403.05063; reclm.md 3.1, 5.1), off by default
(`control.share`). Every draw is a function of (seed, epoch, user) alone.
"""
import dataclasses

import numpy as np

from recjax.text.prompt_templates import fill

LIST_KINDS = ('with', 'without', 'at_most', 'at_least', 'about')  # what is asked of a list

QUESTION_KINDS = ('category_of', 'item_of')

KINDS = LIST_KINDS + QUESTION_KINDS

FIELDS = {'with': ('category',), 'without': ('category',),
          **{k: ('category', 'wanted') for k in ('at_most', 'at_least', 'about')},
          'category_of': ('title',), 'item_of': ('category', 'count')}


@dataclasses.dataclass(frozen=True)
class CategoryRequest:
  """What is asked of a list. kind: of LISTS. wanted: items of the category, for the last three."""
  kind: str
  category: str
  wanted: int = 0

  def text(self, template):
    """The sentence that a request ends with."""
    return fill(template[self.kind], category=self.category, wanted=str(self.wanted))

  def followed(self, items, members):
    """Whether a list does what was asked; an empty one never does. members: set of items"""
    inside = sum(i in members for i in items)
    return bool(items) and {
        'with': inside == len(items), 'without': not inside, 'at_most': inside <= self.wanted,
        'at_least': inside >= self.wanted, 'about': abs(inside - self.wanted) <= 1}[self.kind]


def category_members(stock):
  """-> {category: set of item indices 1..N}"""
  out = {}
  for item, paths in enumerate(stock.categories, 1):
    for path in paths:
      out.setdefault(path, set()).add(item)
  return out


def make_lists(stock, histories, targets, teach, seeds, kinds, most):
  """Requests about categories and the lists that answer them, the true item first.

  histories: item indices; targets: the next item of each, whose categories are asked for, or with
  'without' the one that the teacher's list holds most of and the target does not have. teach:
  (histories, k, signs) -> (M, k) items, signs '+C' or '-C'. seeds: a seed of each; kinds: of LISTS,
  of each; most: items of a list. -> [(labels, Wish) or None where no category serves]
  """
  if not histories:
    return []
  plain, groups = teach(histories, most + 1), category_members(stock)
  drawn = [np.random.default_rng(s) for s in seeds]
  chosen = [_category(stock, kind, target, row.tolist(), rng)
            for kind, target, row, rng in zip(kinds, targets, plain, drawn)]
  good = [i for i, c in enumerate(chosen) if c]
  some = [histories[i] for i in good]
  inside, outside = (teach(some, most + 1, [sign + chosen[i] for i in good]) if some else ()
                     for sign in '+-')
  out = [None] * len(histories)
  for at, i in enumerate(good):
    own = groups[chosen[i]]
    sides = [[j for j in row[at].tolist() if j and j != targets[i] and (j in own) == belongs]
             for row, belongs in ((inside, True), (outside, False))]
    out[i] = _labels(kinds[i], chosen[i], int(targets[i]), own, *sides, drawn[i], most)
  return out


def _category(stock, kind, target, taught, rng):
  """The category that a request is about, or None."""
  own = stock.categories[target - 1]
  if kind != 'without':
    return own[rng.integers(len(own))] if own else None
  counts = {}
  for path in (p for i in taught if i for p in stock.categories[i - 1] if p not in own):
    counts[path] = counts.get(path, 0) + 1
  return min(counts, key=lambda p: (-counts[p], p)) if counts else None


def _labels(kind, category, target, own, inside, outside, rng, most):
  """-> labels, Wish. inside, outside: the teacher's items on both sides, without the target."""
  if kind in ('with', 'without'):
    return [target, *(inside if kind == 'with' else outside)][:most], CategoryRequest(
      kind, category
    )
  # the target has the category: it is one of those wanted
  size = min(most, 1 + len(inside) + len(outside))
  low, high = max(1, size - len(outside)), min(size, 1 + len(inside))
  count = int(rng.integers(low, high + 1))
  slack = int(rng.integers(2)) if kind != 'about' else 0  # off by one on the safe side
  wanted = {'at_most': min(size, count + slack), 'at_least': max(0, count - slack),
            'about': count}[kind]
  rest = inside[:count - 1] + outside[:size - count]
  return ([target, *(rest[i] for i in rng.permutation(len(rest)))],
          CategoryRequest(kind, category, wanted))


def make_question(stock, template, kind, item, rng, most):
  """A question about an item's most specific category, or for items of it.

  item: one that has categories. -> text, and its answer: for 'category_of' [the category], for
  'item_of' item indices, to be written as a list
  """
  path = stock.categories[item - 1][-1]
  if kind == 'category_of':
    return fill(template[kind], title=stock.titles[item - 1]), [path]
  own = [i for i, paths in enumerate(stock.categories, 1) if path in paths]
  count = int(rng.integers(1, min(most, len(own)) + 1))
  return (fill(template[kind], category=path, count=str(count)),
          [own[i] for i in rng.permutation(len(own))[:count]])
