"""How good and how clean lists are, with every list counted (docs/reclm.md)."""
import decimal
import re
from collections.abc import Sequence

import numpy as np

from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog
from recjax.text.tokenizer import Tokenizer

LINE = re.compile(r'^\s*\d+\.\s+')

NUMBER = re.compile(r'[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+')


def list_rates(lists: Sequence[Sequence[int]], histories: Sequence,
               targets: Sequence[int] | np.ndarray, categories: Sequence[Sequence[str]],
               num_items: int, asked: int) -> dict[str, float]:
  """Rates of recommendation lists: means over all lists, the empty ones too.

  lists: item indices, as long as they came; one outside 1..N stands for a title that no item has.
  histories: what was shown. targets: the next item of each. categories: by index - 1, the most
  specific last. num_items: of the catalog. asked: items asked for.
  """
  list_values, shown = [], set()
  for items, history, target in zip(lists, histories, targets):
    first_items = list(items[:asked])
    shown.update(item for item in first_items if 1 <= item <= num_items)
    num_unknown = sum(not 1 <= item <= num_items for item in first_items)
    seen = set(map(int, history))
    place = first_items.index(target) if target in first_items else None
    target_category = (categories[target - 1] or [None])[-1]
    list_values.append({
        'HR': place is not None, 'MRR': 0 if place is None else 1 / (place + 1),
        'NDCG': 0 if place is None else 1 / np.log2(place + 2), 'NonExistRate': num_unknown,
        'RepeatRate': len(first_items) - len(set(first_items)),
        'InHistoryRate': sum(item in seen for item in first_items),
        'CorrectCount': len(items) == asked, 'EmptyRate': not items,
        'TargetCategoryRate': sum(
          target_category is not None and target_category in categories[item - 1]
          for item in first_items
          if 1 <= item <= num_items)})
  rates = {
    f'{name}@{asked}': float(np.mean([values[name] for values in list_values]))
    for name in list_values[0]}
  rates[f'OOD@{asked} share'] = rates[f'NonExistRate@{asked}'] / asked
  return {**rates, f'coverage@{asked}': len(shown) / num_items, 'lists': len(list_values)}


def last_number(text: str) -> decimal.Decimal | None:
  """The last number in a text, or None: signs, thousands separators and decimals are read."""
  numbers = NUMBER.findall(text)
  if not numbers:
    return None
  try:
    return decimal.Decimal(numbers[-1].replace(',', ''))
  except decimal.InvalidOperation:
    return None


def parse_titles(ids: Sequence[int], tokenizer: Tokenizer, soi: int, eoi: int) -> list:
  """Titles that an unconstrained reply names. -> token lists or texts

  ids: of the reply. soi, eoi: the control tokens. tokenizer: of the model. Between control symbols
  they are tokens; where none is opened every line that is not empty is one, without its number, as
  text. A title that is not closed is none.
  """
  titles, start = [], None
  for position, token in enumerate(ids):
    if token == soi:
      start = position + 1
    elif token == eoi and start is not None:
      titles.append(list(ids[start:position]))
      start = None
  if soi in ids:
    return titles
  lines = (LINE.sub('', line).strip() for line in tokenizer.decode(list(ids)).splitlines())
  return [line for line in lines if line]


def match_items(titles: Sequence, tokenized: TokenizedCatalog, tokenizer: Tokenizer,
                max_edits: int = 0) -> list[int]:
  """Titles of `parse_titles` as items: by tokens, by spelling, or within `max_edits` edits.

  tokenizer: of the model. titles: as `parse_titles` gives them. tokenized: the catalog. -> item
  indices; below 0, equal for equal titles, where no item has the title
  """
  item_of_tokens, items, unknown = (
    {
      tuple(title_ids): item_index for item_index, title_ids in enumerate(tokenized.title_tokens, 1)
    },
    [], {})
  for title in titles:
    text = title if isinstance(title, str) else tokenizer.decode(title).strip()
    item = (
      0 if isinstance(title, str) else item_of_tokens.get(tuple(title), 0)
    ) or tokenized.index.get(text, 0)
    if not item and max_edits:
      item = tokenized.index.get(nearest_title(text, tokenized.titles, max_edits), 0)
    items.append(item or unknown.setdefault(text, -1 - len(unknown)))
  return items


def nearest_title(title: str, titles: Sequence[str], max_edits: int = 3) -> str | None:
  """Vague mapping: the title within so few edits, the nearest, then the first in order; or None.

  titles: that there are. max_edits: so few.
  """
  best = None
  for candidate in titles:
    if abs(len(candidate) - len(title)) > max_edits:
      continue
    distance = edit_distance(title, candidate, max_edits)
    if distance <= max_edits and (best is None or (distance, candidate) < best):
      best = distance, candidate
  return best and best[1]


def edit_distance(a: str, b: str, max_edits: int) -> int:
  """Edit distance of two texts, or max_edits + 1 where it is larger: a band of 2 max_edits + 1
  places.

  a, b: the texts.
  """
  row = {j: j for j in range(min(len(b), max_edits) + 1)}
  for i, letter in enumerate(a, 1):
    next_row = {}
    for j in range(max(0, i - max_edits), min(len(b), i + max_edits) + 1):
      steps = [row.get(j, max_edits) + 1]
      if j:
        steps += [
          next_row.get(j - 1, max_edits) + 1, row.get(j - 1, max_edits + 1) + (letter != b[j - 1])]
      next_row[j] = min(steps)
    row = next_row
    if min(row.values()) > max_edits:
      return max_edits + 1
  return min(row.get(len(b), max_edits + 1), max_edits + 1)
