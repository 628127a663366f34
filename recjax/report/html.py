"""One offline HTML file out of plain values: text is escaped wherever it enters, markup is a type.

Functions return `Markup`; whatever else they are given (strings, numbers, lists of them) is text
and is escaped by the templates in templates/. A report holds no script, loads nothing, and says so
in its content security policy.
"""
import dataclasses
import errno
import functools
import importlib.resources
import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from recjax import file_io
from recjax.errors import WorkdirError

# Control characters are not allowed in HTML or XML, lone surrogates not in UTF-8, and the bidi
# overrides would let one title turn the text around it.
_UNPRINTABLE = re.compile(
    '[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069'
    '\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]')
_FIGURE = re.compile(r'[−+-]?[\d.,]+ ?%?|–')
_MAX_SHOWN_SOURCES, _MAX_SOURCE_CHARS = 3, 60
_RESERVED_ANCHORS = ('main', 'contents', 'summary')


@dataclasses.dataclass(frozen=True)
class Section:
  """A titled part of a page: it stands in the contents and has its own anchor.

  title: as readers see it. body: what stands below it.
  """
  title: str
  body: Markup


@dataclasses.dataclass(frozen=True)
class Tag:
  """One chip.

  text: the tag. weight: shown beside it, None for none. new: whether it is marked as new. sources:
  where it comes from.
  """
  text: str
  weight: float | None = None
  new: bool = False
  sources: tuple[str, ...] = ()


def clean(text: Any) -> str:
  """Returns `text` as a string that can stand in a file: what cannot be printed becomes U+FFFD."""
  text = str(text).replace('\r\n', '\n').replace('\r', '\n')
  return _UNPRINTABLE.sub('\ufffd', text)


@functools.cache
def environment() -> jinja2.Environment:
  """Returns the templates: every value that is no Markup is cleaned and escaped, None is empty."""
  def finalize(value: object) -> object:
    if value is None:
      return ''
    return value if hasattr(value, '__html__') else clean(value)
  return jinja2.Environment(
      loader=jinja2.PackageLoader('recjax.report'), autoescape=True, finalize=finalize,
      undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
      keep_trailing_newline=True, auto_reload=False)


def render(macro: str, *values: Any) -> Markup:
  """Returns what a macro of templates/components.html makes.

  macro: its name. values: what it takes; text is escaped.
  """
  return getattr(environment().get_template('components.html').module, macro)(*values)


def inline(*parts: Any) -> Markup:
  """Returns parts one after the other.

  parts: Markup stays, None vanishes, lists and tuples are laid flat, anything else is text.
  """
  return Markup('').join(part if isinstance(part, Markup) else escape(clean(part))
                         for part in _flat(parts))


def blocks(*parts: Any) -> Markup:
  """Returns parts one under the other.

  parts: Markup stays, None and '' vanish, lists and tuples are laid flat, anything else becomes a
  paragraph.
  """
  return render('blocks', [part for part in _flat(parts) if isinstance(part, Markup) or part != ''])


def number(value: float | None, decimals: int | None = None) -> str:
  """Returns a number for a reader: 12,345 or 0.1235; an en dash where there is none.

  value: the number. decimals: how many, so that a column lines up; without it four significant
  digits.
  """
  if value is None or not math.isfinite(value):
    return '–'
  if isinstance(value, numbers.Integral):
    text = f'{int(value):,}'
  elif decimals is not None:
    text = f'{value:,.{decimals}f}'
  else:
    text = f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
  return text.replace('-', '−')


def page(title: str, subtitle: str, summary: Any, sections: Sequence[Section], footer: Any = ''
         ) -> str:
  """Returns the whole file as text.

  title: its name. subtitle: one line under the title. summary: what to know first, text or `tiles`
  or both in a list. sections: in reading order; equal titles get different anchors. footer: below
  all, '' for none.
  """
  style = importlib.resources.files('recjax.report').joinpath('style.css').read_text('utf-8')
  anchors = _anchors([section.title for section in sections])
  return environment().get_template('page.html').render(
      title=title, subtitle=subtitle, style=Markup(style), summary=blocks(summary),
      sections=list(zip(sections, anchors)), footer=blocks(footer) if footer else None)


def section(title: str, *body: Any, intro: Any = '') -> Section:
  """Returns a part of the page.

  title: its name. body: what it holds, as `blocks` takes it. intro: what to know before it.
  """
  return Section(title, render('section_body', blocks(*body), intro))


def tiles(figures: Iterable[Sequence]) -> Markup:
  """Returns a row of key figures. figures: (label, value) or (label, value, note) of each."""
  return render('tiles', [(label, _shown(value), note[0] if note else None)
                          for label, value, *note in figures])


def table(head: Sequence, rows: Sequence[Sequence], caption: Any, align: str = '') -> Markup:
  """Returns a table whose first column names the rows.

  head: one label per column. rows: cells, text, numbers or Markup. caption: what the table shows.
  align: one letter per column, `l` or `r`; without it columns of figures (numbers, `98.5%`) go
  right and the rest left.
  """
  align = align or ''.join(
      'r' if rows and all(_is_figure(row[i]) for row in rows) else 'l' for i in range(len(head)))
  sides = ['num' if side == 'r' else None for side in align]
  name = caption.striptags() if isinstance(caption, Markup) else caption
  return render('table', list(zip(map(_shown, head), sides)),
                [list(zip(map(_shown, row), sides)) for row in rows], caption, name)


def figure(svg: Markup, caption: Any, alt: str) -> Markup:
  """Returns a picture. svg: of `recjax.report.plots`. caption: what it shows. alt: what it says."""
  return render('figure', svg, caption, alt)


def grid(*parts: Markup) -> Markup:
  """Returns the parts side by side, one under the other where the page is narrow."""
  return render('grid', parts)


def facts(values: Mapping) -> Markup:
  """Returns a definition list. values: a mapping in it becomes a list within, sequences get
  commas."""
  return render('facts', _fact_values(values))


def tags(label: str, items: Iterable[Tag | str], empty: str = 'none') -> Markup:
  """Returns chips under a label; new ones are marked and say below from what they come.

  label: what they are. items: plain strings are tags without weight; a weight shows as a number and
  as a filled share of the largest one. empty: what is said where there are none.
  """
  items = [item if isinstance(item, Tag) else Tag(str(item)) for item in items]
  heaviest = max((tag.weight for tag in items if tag.weight), default=1)
  return render('tags', label, [
      {'text': tag.text, 'is_new': tag.new, 'sources': _sources(tag),
       'weight': None if tag.weight is None else number(tag.weight),
       'share': None if tag.weight is None else f'{100 * tag.weight / heaviest:.0f}'}
      for tag in items], empty)


def card(title: str, subtitle: Any, *body: Any) -> Markup:
  """Returns one framed thing. title: its name. subtitle: a line about it. body: what belongs to
  it."""
  return render('card', title, subtitle, blocks(*body))


def cards(parts: Sequence[Markup], shown: int = 4, more: str = 'more') -> Markup:
  """Returns the first cards, and the others folded under a line such as `8 more`.

  parts: all cards. shown: how many are not folded. more: what the line says after their number.
  """
  first, rest = parts[:shown], parts[shown:]
  return inline(first, details(f'{len(rest)} {more}', *rest) if rest else None)


def details(summary: Any, *body: Any, open_: bool = False) -> Markup:
  """Returns something long behind one line; it unfolds on a click and on paper.

  summary: the line. body: what unfolds, as `blocks` takes it. open_: whether it is unfolded.
  """
  return render('details', summary, blocks(*body), open_)


def code(text: str) -> Markup:
  """Returns `text`, a command or a file, as it stands; long lines wrap between words, not at
  hyphens."""
  words = re.split(r'(\s+)', clean(text))
  return render('code', [(word, bool(i % 2)) for i, word in enumerate(words) if word])


def heading(text: Any) -> Markup:
  """Returns `text` as a heading within a section."""
  return render('heading', text)


def label(text: Any) -> Markup:
  """Returns `text` as a line that names what stands below it."""
  return render('label', text)


def value_with_interval(value: Any, interval: str | None, strong: bool = False,
                        hidden: str = '', below: str = '') -> Markup:
  """Returns a table's cell: a value and, smaller below it, its interval.

  value: as text. interval: as text, None for none. strong: whether the value is bold. hidden: what
  screen readers hear after the value. below: a further line.
  """
  return render('value_with_interval', value, interval, strong, hidden, below)


def write(path: str | os.PathLike, text: str) -> None:
  """Writes a page as UTF-8 so that a reader sees the old file or the whole new one.

  path: where. text: the page. Raises WorkdirError when the folder cannot be written or the
  disk is full.
  """
  try:
    file_io.write_atomic(path, text)
  except OSError as error:
    hint = 'make room on the disk' if error.errno == errno.ENOSPC else 'check the folder'
    raise WorkdirError(
        f'{path}: the report cannot be written ({error.strerror}); {hint} and run again') from error


def _anchors(titles: Sequence[str]) -> list[str]:
  taken: set[str] = set(_RESERVED_ANCHORS)
  anchors = []
  for title in titles:
    stem = re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-') or 'part'
    anchor, count = stem, 1
    while anchor in taken:
      count += 1
      anchor = f'{stem}-{count}'
    taken.add(anchor)
    anchors.append(anchor)
  return anchors


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_figure(value: Any) -> bool:
  if isinstance(value, Markup) or not isinstance(value, str):
    return _is_number(value)
  return bool(_FIGURE.fullmatch(value))


def _shown(value: Any) -> Any:
  """Returns what a cell shows: numbers for readers, lists one after the other."""
  if isinstance(value, list | tuple):
    return inline(value)
  return number(value) if _is_number(value) else value


def _fact_values(values: Mapping) -> dict:
  def shown(value: object) -> Any:
    if isinstance(value, Mapping):
      return _fact_values(value)
    if isinstance(value, list | tuple | set | frozenset):
      return inline([[', ' * bool(i), _shown(part)] for i, part in enumerate(value)])
    return _shown(value)
  return {key: shown(value) for key, value in values.items()}


def _flat(parts: Iterable) -> Iterable:
  """Yields parts of nested lists and tuples, without None."""
  for part in parts:
    if isinstance(part, list | tuple):
      yield from _flat(part)
    elif part is not None:
      yield part


def _sources(tag: Tag) -> str:
  """Names the first sources; a dot divides them, for titles are full of commas."""
  names = [clean(source) for source in tag.sources[:_MAX_SHOWN_SOURCES]]
  names = [name if len(name) <= _MAX_SOURCE_CHARS else f'{name[:_MAX_SOURCE_CHARS - 1].rstrip()}…'
           for name in names]
  left = len(tag.sources) - len(names)
  return ' · '.join(names) + (f' and {left} more' if left else '')
