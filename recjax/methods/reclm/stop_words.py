"""Stop words of a reply: its text ends where the first of them begins.

A title is whole or not there: where a stop word begins inside one, the text ends before the title.
"""
from collections.abc import Sequence


def title_spans(text: str, titles: Sequence[str]) -> list[tuple[int, int]]:
  """Where each title stands in a reply, with its quotes. text: of the reply. titles: in the order
  in which they are named."""
  spans, place = [], 0
  for title in titles:
    start = text.find(f'"{title}"', place)
    if start < 0:
      break
    place = start + len(title) + 2
    spans.append((start, place))
  return spans


def stop_at(text: str, titles: Sequence[str], stops: Sequence[str]) -> int | None:
  """Where the text of a reply ends because a stop word comes, or None. text, titles: as
  `title_spans` takes them. stops: the stop words."""
  found = [place for stop in stops if (place := text.find(stop)) >= 0]
  return before_titles(min(found), text, titles) if found else None


def safe_length(text: str, titles: Sequence[str], stops: Sequence[str]) -> int:
  """How much of a text that goes on is certain to stay: what may be the beginning of a stop word
  waits. text, titles, stops: as `stop_at` takes them."""
  size = len(text)
  longest = max(map(len, stops), default=1)
  for start in range(max(0, len(text) - longest + 1), len(text)):
    if any(stop.startswith(text[start:]) for stop in stops):
      size = start
      break
  return before_titles(size, text, titles)


def before_titles(place: int, text: str, titles: Sequence[str]) -> int:
  """`place` in a reply's text, or where the title begins that it is within. text, titles: as
  `title_spans` takes them."""
  return next((start for start, end in title_spans(text, titles) if start < place < end), place)
