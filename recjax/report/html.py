"""One offline HTML file out of plain values: text is escaped wherever it enters, markup is a type.

Functions return `Html`; whatever else they are given (strings, numbers, lists of them) is text and
is escaped. A report holds no script, loads nothing, and says so in its content security policy.
"""
import dataclasses
import errno
import html
import importlib.resources
import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from recjax import file_io
from recjax.errors import WorkdirError

_VOID = frozenset({'br', 'hr', 'meta'})
# Control characters are not allowed in HTML or XML, lone surrogates not in UTF-8, and the bidi
# overrides would let one title turn the text around it.
_UNPRINTABLE = re.compile(
    '[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069'
    '\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]')
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_FIGURE = re.compile(r'[−+-]?[\d.,]+ ?%?|–')
_SHOWN_SOURCES, _LONGEST_SOURCE = 3, 60


@dataclasses.dataclass(frozen=True)
class Html:
  """Markup made in this room; every plain string is escaped on its way into it."""

  text: str


@dataclasses.dataclass(frozen=True)
class Section:
  """A titled part of a page: it stands in the contents and has its own anchor."""

  title: str
  body: Html


@dataclasses.dataclass(frozen=True)
class Tag:
  """One chip: a word, its weight if it has one, and where it comes from if it is new."""

  text: str
  weight: float | None = None
  new: bool = False
  sources: tuple[str, ...] = ()


def clean(text) -> str:
  """Returns `text` as a string that can stand in a file: what cannot be printed becomes U+FFFD."""
  text = str(text).replace('\r\n', '\n').replace('\r', '\n')
  return _UNPRINTABLE.sub('\ufffd', text)


def element(name: str, *children, **attributes) -> Html:
  """Returns one element; `class_` means class, `aria_label` aria-label.

  children: Html stays, None vanishes, lists and tuples are laid flat, anything else is text.
  attributes: None and False vanish, True stands without a value, anything else is escaped.
  """
  opening = name
  for key, value in attributes.items():
    if value is None or value is False:
      continue
    key = key.rstrip('_').replace('_', '-')
    opening += f' {key}' if value is True else f' {key}="{html.escape(clean(value))}"'
  if name in _VOID:
    return Html(f'<{opening}>')
  return Html(f'<{opening}>{join(children).text}</{name}>')


def join(parts: Iterable) -> Html:
  """Returns `parts` one after the other, escaped by the rule of `element`."""
  texts = []
  for part in parts:
    if isinstance(part, Html):
      texts.append(part.text)
    elif isinstance(part, list | tuple):
      texts.append(join(part).text)
    elif part is not None:
      texts.append(html.escape(clean(part)))
  return Html(''.join(texts))


def number(value: float | None, decimals: int | None = None) -> str:
  """Returns a number for a reader: 12,345 or 0.1235; an en dash where there is none.

  decimals: how many, so that a column lines up; without it four significant digits.
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


def page(title: str, subtitle: str, summary, sections: Sequence[Section], footer='') -> str:
  """Returns the whole file as text.

  subtitle: one line under the title. summary: what to know first, text or `tiles` or both in a
  list. sections: in reading order; equal titles get different anchors.
  """
  anchors = _anchors([part.title for part in sections])
  style = importlib.resources.files('recjax.report').joinpath('style.css').read_text('utf-8')
  contents = element('ol', [element('li', element('a', part.title, href=f'#{anchor}'))
                            for part, anchor in zip(sections, anchors)])
  head = element(
      'head', element('meta', charset='utf-8'),
      element('meta', http_equiv='Content-Security-Policy', content=_POLICY),
      element('meta', name_='viewport', content='width=device-width, initial-scale=1'),
      element('meta', name_='color-scheme', content='light dark'),
      element('title', title), element('style', Html(style)))
  body = element(
      'body', element('a', 'Skip to the results', class_='skip', href='#main'),
      element('header', element('h1', title), element('p', subtitle, class_='subtitle')),
      element('nav', element('p', 'Contents', class_='label', id='contents'), contents,
              aria_labelledby='contents'),
      element('main', element('section', element('h2', 'Summary', id='summary'), _blocks([summary]),
                              class_='summary', aria_labelledby='summary'),
              [_rendered(part, anchor) for part, anchor in zip(sections, anchors)], id='main'),
      element('footer', _blocks([footer])) if footer else None)
  return '<!doctype html>\n' + element('html', head, body, lang='en').text + '\n'


def section(title: str, *body, intro='') -> Section:
  """Returns a part of the page; plain strings in `body` and `intro` become paragraphs."""
  lead = element('p', intro, class_='intro') if intro else None
  return Section(title, join([lead, _blocks(body)]))


def tiles(figures: Iterable[Sequence]) -> Html:
  """Returns a row of key figures. figures: (label, value) or (label, value, note)."""
  def tile(label, value, note=None):
    value = element('dd', _shown(value), class_='value')
    return element('div', element('dt', label), value, element('dd', note) if note else None)
  return element('dl', [tile(*figure) for figure in figures], class_='tiles')


def table(head: Sequence, rows: Sequence[Sequence], caption, align: str = '') -> Html:
  """Returns a table whose first column names the rows.

  head: one label per column. rows: cells, text, numbers or Html. align: one letter per column, `l`
  or `r`; without it columns of figures (numbers, `98.5%`) go right and the rest left.
  """
  align = align or ''.join(
      'r' if rows and all(_is_figure(row[i]) for row in rows) else 'l' for i in range(len(head)))
  sides = ['num' if side == 'r' else None for side in align]
  def row(cells):
    first = element('th', _shown(cells[0]), scope='row', class_=sides[0])
    return element('tr', first, [element('td', _shown(cell), class_=side)
                                 for cell, side in zip(cells[1:], sides[1:])])
  # A heading without words is no heading to a screen reader.
  top = element('tr', [element('th', cell, scope='col', class_=side) if cell != '' else
                       element('td', class_=side) for cell, side in zip(head, sides)])
  # The inner span stays in view while the table scrolls beneath it.
  body = element('table', element('caption', element('span', caption)), element('thead', top),
                 element('tbody', [row(cells) for cells in rows]))
  # A box that scrolls sideways must be reachable by keyboard, hence the tab stop and its name.
  name = re.sub('<[^>]*>', '', caption.text) if isinstance(caption, Html) else caption
  return element('div', body, class_='scroll', role='group', tabindex='0', aria_label=name)


def figure(svg: Html, caption, alt: str) -> Html:
  """Returns a picture of `recjax.report.plots` with what it shows (`caption`) and says (`alt`)."""
  return element('figure', element('div', svg, class_='plot', role='img', aria_label=alt),
                 element('figcaption', caption))


def grid(*parts) -> Html:
  """Returns the parts side by side, one under the other where the page is narrow."""
  return element('div', parts, class_='grid')


def facts(values: Mapping) -> Html:
  """Returns a definition list; a mapping as value becomes a list within, sequences get commas."""
  def shown(value):
    if isinstance(value, Mapping):
      return facts(value)
    if isinstance(value, list | tuple | set | frozenset):
      return [[', ' * bool(i), _shown(part)] for i, part in enumerate(value)]
    return _shown(value)
  return element('dl', [element('div', element('dt', key), element('dd', shown(value)))
                        for key, value in values.items()], class_='facts') if values else Html('–')


def tags(label: str, items: Iterable[Tag | str], empty='none') -> Html:
  """Returns chips under a label; new ones are marked and say below from what they come.

  items: plain strings are tags without weight. A weight shows as a number and as a filled share of
  the largest one.
  """
  items = [item if isinstance(item, Tag) else Tag(str(item)) for item in items]
  heaviest = max((tag.weight for tag in items if tag.weight), default=1)
  chips = [element('li', _chip(tag, heaviest)) for tag in items]
  origins = [tag for tag in items if tag.sources]
  notes = [element('div', element('dt', element('bdi', tag.text)), element('dd', _sources(tag)))
           for tag in origins]
  words = 'Where the new tag comes from' if len(origins) == 1 else (
      f'Where the {len(origins)} new tags come from')
  return element(
      'div', element('p', label, class_='label'),
      element('ul', chips, class_='chips') if chips else element('p', empty, class_='note'),
      details(words, element('dl', notes, class_='origins')) if notes else None, class_='tags')


def card(title: str, subtitle, *body) -> Html:
  """Returns one framed thing (an item, a user): its name, a line about it, what belongs to it."""
  return element('article', element('h3', element('bdi', title)),
                 element('p', subtitle, class_='note') if subtitle else None, _blocks(body),
                 class_='card')


def cards(parts: Sequence[Html], shown: int = 4, more: str = 'more') -> Html:
  """Returns the first `shown` cards, and the others folded under a line such as `8 more`."""
  first, rest = parts[:shown], parts[shown:]
  return join([first, details(f'{len(rest)} {more}', *rest) if rest else None])


def details(summary, *body, open_: bool = False) -> Html:
  """Returns something long behind one line; it unfolds on a click and on paper."""
  return element('details', element('summary', summary), element('div', _blocks(body)), open=open_)


def code(text: str) -> Html:
  """Returns a command or a file as written; long lines wrap between words, not at hyphens."""
  words = re.split(r'(\s+)', clean(text))
  return element('pre', element('code', [word if i % 2 or not word else element('span', word)
                                         for i, word in enumerate(words)]))


def write(path: str | os.PathLike, text: str) -> None:
  """Writes `text` as UTF-8 so that a reader sees the old file or the whole new one.

  Raises WorkdirError when the folder cannot be written or the disk is full.
  """
  try:
    file_io.write_atomic(path, text)
  except OSError as error:
    hint = 'make room on the disk' if error.errno == errno.ENOSPC else 'check the folder'
    raise WorkdirError(
        f'{path}: the report cannot be written ({error.strerror}); {hint} and run again') from error


def _blocks(parts) -> Html:
  """Lays parts one under the other: text becomes paragraphs, lists are laid flat."""
  laid = []
  for part in parts:
    if isinstance(part, list | tuple):
      laid.append(_blocks(part))
    elif isinstance(part, Html) or part is None:
      laid.append(part)
    elif part != '':
      laid.append(element('p', part))
  return join(laid)


def _rendered(part: Section, anchor: str) -> Html:
  heading = element('h2', part.title, id=anchor)
  return element('section', heading, part.body, aria_labelledby=anchor)


def _anchors(titles: Sequence[str]) -> list[str]:
  taken, anchors = {'main', 'contents', 'summary'}, []
  for title in titles:
    stem = re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-') or 'part'
    anchor, count = stem, 1
    while anchor in taken:
      count += 1
      anchor = f'{stem}-{count}'
    taken.add(anchor)
    anchors.append(anchor)
  return anchors


def _is_number(value) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_figure(value) -> bool:
  return _is_number(value) or (isinstance(value, str) and bool(_FIGURE.fullmatch(value)))


def _shown(value):
  return number(value) if _is_number(value) else value


def _chip(tag: Tag, heaviest: float) -> Html:
  share = None if tag.weight is None else f'--share:{100 * tag.weight / heaviest:.0f}%'
  weight = None if tag.weight is None else element(
      'span', element('span', ' weight ', class_='hidden'), number(tag.weight), class_='weight')
  mark = element('span', 'new', class_='mark') if tag.new else None
  title = f'from {_sources(tag)}' if tag.sources else None
  return element('span', element('bdi', tag.text), weight, mark, style=share, title=title,
                 class_='chip new' if tag.new else 'chip')


def _sources(tag: Tag) -> str:
  """Names the first sources; a dot divides them, for titles are full of commas."""
  names = [clean(source) for source in tag.sources[:_SHOWN_SOURCES]]
  names = [name if len(name) <= _LONGEST_SOURCE else f'{name[:_LONGEST_SOURCE - 1].rstrip()}…'
           for name in names]
  left = len(tag.sources) - len(names)
  return ' · '.join(names) + (f' and {left} more' if left else '')
