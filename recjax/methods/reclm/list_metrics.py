"""How good and how clean lists are, with every list counted (reclm.md 5.1)."""
import decimal
import re

import numpy as np

LINE = re.compile(r'^\s*\d+\.\s+')

NUMBER = re.compile(r'[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+')


def list_rates(lists, histories, targets, categories, n, asked):
  """Rates of recommendation lists: means over all lists, the empty ones too.

  lists: item indices, as long as they came; one outside 1..N stands for a title that no item has.
  histories: what was shown. targets: (n,). categories: by index - 1, the most specific last. asked:
  items asked for. -> {name: float}
  """
  rows, shown = [], set()
  for items, history, target in zip(lists, histories, targets):
    cut = list(items[:asked])
    shown.update(i for i in cut if 1 <= i <= n)
    strange = sum(not 1 <= i <= n for i in cut)
    seen = set(map(int, history))
    place = cut.index(target) if target in cut else None
    kind = (categories[target - 1] or [None])[-1]
    rows.append({
        'HR': place is not None, 'MRR': 0 if place is None else 1 / (place + 1),
        'NDCG': 0 if place is None else 1 / np.log2(place + 2),
        'NonExistRate': strange, 'RepeatRate': len(cut) - len(set(cut)),
        'InHistoryRate': sum(i in seen for i in cut), 'CorrectCount': len(items) == asked,
        'EmptyRate': not items,
        'TargetCategoryRate': sum(kind is not None and kind in categories[i - 1]
                                  for i in cut if 1 <= i <= n)})
  out = {f'{k}@{asked}': float(np.mean([r[k] for r in rows])) for k in rows[0]}
  out[f'OOD@{asked} share'] = out[f'NonExistRate@{asked}'] / asked
  return {**out, f'coverage@{asked}': len(shown) / n, 'lists': len(rows)}


def last_number(text):
  """The last number in a text, or None: signs, thousands separators and decimals are read (M6)."""
  found = NUMBER.findall(text)
  if not found:
    return None
  try:
    return decimal.Decimal(found[-1].replace(',', ''))
  except decimal.InvalidOperation:
    return None


def parse_titles(ids, tokenizer, soi, eoi):
  """Titles that an unconstrained reply names (reclm.md 5.1). -> list of token lists or texts

  Between control symbols they are tokens; where none is opened every line that is not empty is one,
  without its number, as text. A title that is not closed is none.
  """
  out, start = [], None
  for at, token in enumerate(ids):
    if token == soi:
      start = at + 1
    elif token == eoi and start is not None:
      out.append(list(ids[start:at]))
      start = None
  if soi in ids:
    return out
  lines = (LINE.sub('', line).strip() for line in tokenizer.decode(list(ids)).splitlines())
  return [line for line in lines if line]


def match_items(found, stock, tokenizer, vague=0):
  """Titles of `titles_of` as items: by tokens, by spelling, or within `vague` edits.

  -> item indices; below 0, equal for equal titles, where no item has the title
  """
  rows, out, strange = {tuple(r): i for i, r in enumerate(stock.rows, 1)}, [], {}
  for one in found:
    text = one if isinstance(one, str) else tokenizer.decode(one).strip()
    item = (0 if isinstance(one, str) else rows.get(tuple(one), 0)) or stock.index.get(text, 0)
    if not item and vague:
      item = stock.index.get(nearest_title(text, stock.titles, vague), 0)
    out.append(item or strange.setdefault(text, -1 - len(strange)))
  return out


def nearest_title(title, titles, most=3):
  """Vague mapping: the title within so few edits, the nearest, then the first in order; or None."""
  best = None
  for candidate in titles:
    if abs(len(candidate) - len(title)) > most:
      continue
    distance = edit_distance(title, candidate, most)
    if distance <= most and (best is None or (distance, candidate) < best):
      best = distance, candidate
  return best and best[1]


def edit_distance(a, b, most):
  """Edit distance of two texts, or most + 1 where it is larger: a band of 2 most + 1 places."""
  row = {j: j for j in range(min(len(b), most) + 1)}
  for i, x in enumerate(a, 1):
    fresh = {}
    for j in range(max(0, i - most), min(len(b), i + most) + 1):
      steps = [row.get(j, most) + 1]
      if j:
        steps += [fresh.get(j - 1, most) + 1, row.get(j - 1, most + 1) + (x != b[j - 1])]
      fresh[j] = min(steps)
    row = fresh
    if min(row.values()) > most:
      return most + 1
  return min(row.get(len(b), most + 1), most + 1)
