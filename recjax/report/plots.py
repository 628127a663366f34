"""Pictures as inline SVG that take their colors and their typeface from the page.

Each function returns markup of a few kilobytes, equal for equal input. matplotlib draws with
stand-in colors, which become the style sheet's variables, so one picture reads well by day and by
night.
"""
import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from recjax.report.html import clean, number

# Stand-in color -> the page's variable and the color to use where there is no page.
_COLORS = {
    '#010203': ('ink', '#1d2229'), '#020304': ('muted', '#5a626d'), '#030405': ('line', '#dedbd5'),
    '#040506': ('page', '#ffffff'), '#050607': ('c1', '#1f5f8b'), '#060708': ('c2', '#b3590b'),
    '#070809': ('c3', '#3b7a3e'), '#08090a': ('c4', '#7d4f9e'), '#090a0b': ('c5', '#a63a50'),
    '#0a0b0c': ('c6', '#56707f'),
}
_INK, _MUTED, _LINE, _PAGE, *_SERIES = _COLORS
_DASHES = ('-', (0, (5, 2)), (0, (1, 1.5)))
_STYLE: dict[Any, Any] = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'recjax', 'svg.image_inline': True,
    'text.parse_math': False, 'text.usetex': False, 'font.size': 12.5, 'text.color': _INK,
    'axes.labelcolor': _MUTED, 'axes.labelsize': 12.5, 'axes.edgecolor': _LINE,
    'axes.linewidth': 1.0, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.grid': True, 'axes.axisbelow': True, 'grid.color': _LINE, 'grid.linewidth': 0.8,
    'xtick.color': _LINE, 'ytick.color': _LINE, 'xtick.labelcolor': _MUTED,
    'ytick.labelcolor': _MUTED, 'xtick.minor.visible': False, 'legend.frameon': False,
    'path.simplify': True, 'path.simplify_threshold': 0.5, 'lines.linewidth': 1.8,
    'lines.solid_capstyle': 'round',
}
_WIDTH = 6.4  # inches of 72 SVG units: text stays legible when a phone shows it at three quarters
_MAX_POINTS = 400
_MAX_DOTS = 1200
_MAX_LABEL_CHARS = 28
_COST_HEIGHT, _LABEL_GAP = 4.2, .065  # inches; share of the height that a label takes


def loss_curves(curves: Mapping[str, Sequence], validation: Mapping[str, Sequence] | None = None,
                ylabel: str = 'loss', xlabel: str = 'step') -> Markup:
  """Draws curves over steps: smoothed lines, raw values faint behind them, validation as dots.

  curves, validation: {name: [(step, value), ...]} in step order; values that are not finite are
  left out. A name has one color in both. One picture holds curves of one scale; stages of other
  scales get pictures of their own. ylabel, xlabel: what the axes say.
  """
  validation = validation or {}
  names = list(dict.fromkeys([*curves, *validation]))

  def paint(axes: Any) -> None:
    handles = {}
    for i, name in enumerate(names):
      color, dash = _SERIES[i % len(_SERIES)], _DASHES[i // len(_SERIES) % len(_DASHES)]
      steps, values = _finite_points(curves.get(name, ()))
      if len(steps):
        smooth = _smoothed(values)
        if not np.array_equal(smooth, values):
          axes.plot(*_thinned(steps, values), color=color, linewidth=0.8, alpha=0.3)
        handles[name], = axes.plot(*_thinned(steps, smooth), color=color, linestyle=dash)
      steps, values = _finite_points(validation.get(name, ()))
      if len(steps):
        label = f'{name}, validation' if len(names) > 1 else 'validation'
        handles[label], = axes.plot(steps, values, color=color, linestyle=(0, (2, 2)), linewidth=1,
                                    marker='o', markersize=6, markeredgecolor=_PAGE)
    axes.set_xlabel(clean(xlabel))
    axes.set_ylabel(clean(ylabel))
    axes.xaxis.set_major_formatter(_plain)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axes.grid(axis='x', visible=False)
    _legend(axes, handles)
    if not handles:
      _nothing(axes)

  return _drawn(paint, height=3.6)


def bars_with_intervals(rows: Mapping[str, Mapping], metric: str,
                        labels: Mapping[str, str] | None = None, highlight: str = '') -> Markup:
  """Draws one bar per row, from zero, with its interval and its value.

  rows: {row: {metric: {value, low, high}}}, as in results.json; rows without the metric are left
  out. metric: which. labels: row -> what to call it. highlight: the row to draw in the accent
  color; all of them when it is empty.
  """
  labels = labels or {}
  cells = {row: made[metric] for row, made in rows.items()
           if _finite(made.get(metric, {}).get('value'))}

  def paint(axes: Any) -> None:
    left, top = 0.0, 0.0
    for y, (row, cell) in enumerate(cells.items()):
      value, low, high = (cell.get(k) for k in ('value', 'low', 'high'))
      color = _SERIES[0] if highlight in ('', row) else _SERIES[-1]
      axes.barh(y, value, height=0.5, color=color, alpha=0.35)
      right = value
      if _finite(low) and _finite(high):
        axes.plot([low, high], [y, y], color=color, linewidth=2.4)
        left, right = min(left, low), max(value, high)
      axes.plot([value], [y], 'o', color=color, markersize=7, markeredgecolor=_PAGE)
      axes.annotate(number(float(value), 4), (right, y), (8, 0), textcoords='offset points',
                    va='center', ha='left')
      top = max(top, right)
    axes.set_yticks(range(len(cells)), [_label(labels.get(row, row)) for row in cells])
    axes.tick_params(axis='y', length=0, labelcolor=_INK)
    axes.grid(visible=False)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlim(left, (top or 1.0) * 1.16)
    axes.set_xlabel(clean(metric))
    axes.xaxis.get_major_locator().set_params(nbins=5)
    if not cells:
      _nothing(axes)

  return _drawn(paint, height=0.95 + 0.42 * max(len(cells), 3))


def curves_over_k(curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
                  ylabel: str, labels: Mapping[str, str] | None = None) -> Markup:
  """Draws a metric against the length of lists, with its interval as a band.

  curves: {row: [(k, value, low, high), ...]}. ylabel: the metric. labels: row -> what to call it.
  """
  labels = labels or {}

  def paint(axes: Any) -> None:
    handles, every = {}, sorted({point[0] for curve in curves.values() for point in curve})
    for i, (row, curve) in enumerate(curves.items()):
      color, dash = _SERIES[i % len(_SERIES)], _DASHES[i // len(_SERIES) % len(_DASHES)]
      k, value, low, high = np.asarray(curve, float).reshape(-1, 4).T
      axes.fill_between(k, low, high, color=color, alpha=0.14, linewidth=0)
      handles[labels.get(row, row)], = axes.plot(k, value, color=color, linestyle=dash,
                                                 marker='o', markersize=4)
    if every:
      axes.set_xscale('log')
      axes.set_xticks(every, [_plain(k) for k in every])
      axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel('k, the length of the list')
    axes.set_ylabel(clean(ylabel))
    axes.grid(axis='x', visible=False)
    _legend(axes, handles)
    if not handles:
      _nothing(axes)

  return _drawn(paint, height=3.9)


def quality_against_cost(points: Mapping[str, tuple[float, float, float, float]], xlabel: str,
                         ylabel: str, labels: Mapping[str, str] | None = None,
                         highlight: Sequence[str] = ()) -> Markup:
  """Draws rows by what they cost, on a logarithmic axis, and what they reach, with intervals.

  points: {row: (cost above 0, value, low, high)}. xlabel, ylabel: what the axes say. labels: row ->
  what to call it. highlight: rows in the accent color. Rows that no other beats at less or equal
  cost are joined by a line; they and the highlighted ones are named.
  """
  labels, front = labels or {}, pareto({row: point[:2] for row, point in points.items()})

  def paint(axes: Any) -> None:
    ordered = [points[row][:2] for row in front]
    axes.plot(*np.asarray(ordered, float).reshape(-1, 2).T, color=_MUTED, linewidth=1,
              drawstyle='steps-post')
    for row, (cost, value, low, high) in points.items():
      color = _SERIES[0] if row in highlight else _SERIES[-1]
      axes.plot([cost, cost], [low, high], color=color, linewidth=1.4, alpha=0.6)
      axes.plot([cost], [value], 'o', color=color, markersize=6, markeredgecolor=_PAGE)
    top = 1.08 * max((point[3] for point in points.values()), default=1.0) or 1.0
    axes.set_ylim(0, top)
    below = top
    for row in sorted({*front, *highlight} & {*points}, key=lambda row: -points[row][1]):
      below = min(points[row][1], below - _LABEL_GAP * top)  # so that no label hides another
      drop = (below - points[row][1]) / top * _COST_HEIGHT * 72 * .8
      axes.annotate(_label(labels.get(row, row)), points[row][:2], (12, drop), va='center',
                    ha='left', textcoords='offset points', fontsize=11, arrowprops={
                        'arrowstyle': '-', 'color': _MUTED, 'linewidth': 0.6, 'shrinkB': 4})
    if points:
      axes.set_xscale('log')
      costs = [point[0] for point in points.values()]
      axes.set_xlim(min(costs) / 1.6, max(costs) * (max(costs) / min(costs)) ** .3 * 3)
    axes.xaxis.set_major_formatter(_plain)
    axes.xaxis.set_minor_formatter('')
    axes.tick_params(which='minor', length=0)
    axes.set_xlabel(clean(xlabel))
    axes.set_ylabel(clean(ylabel))
    if not points:
      _nothing(axes)

  return _drawn(paint, height=_COST_HEIGHT)


def pareto(points: Mapping[str, Sequence[float]]) -> list[str]:
  """Rows that no other beats at less or equal cost, by cost. points: {row: (cost, value)}."""
  best, front = -math.inf, []
  for row in sorted(points, key=lambda row: (points[row][0], -points[row][1])):
    if points[row][1] > best:
      best = points[row][1]
      front.append(row)
  return front


def standalone(svg: Markup) -> str:
  """A picture as a file of its own, in the colors of the day, for programs that know no style sheet
  of ours. svg: of this module."""
  size = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', svg)
  sized = f'<svg width="{size[1]}" height="{size[2]}"' if size else '<svg'
  return re.sub(r'var\(--\w+, (#[0-9a-f]{6})\)', r'\1', str(svg)).replace('<svg', sized, 1)


def scatter(points: np.ndarray, groups: Sequence[str], xlabel: str = 'first component',
            ylabel: str = 'second component', lines: Sequence = ()) -> Markup:
  """Draws points of a plane in the colors of their groups, without scales.

  points: (N, 2). groups: what each belongs to; the largest get colors, the rest shares one.
  xlabel, ylabel: what the axes say. lines: pairs of points, drawn thin from one to the other.
  """
  points = np.asarray(points, float).reshape(-1, 2)
  some = np.linspace(0, len(points) - 1, min(len(points), _MAX_DOTS)).astype(int)
  points, group_of = points[some], np.asarray([str(g) for g in groups], object)[some]
  sizes = {name: int((group_of == name).sum()) for name in sorted(set(group_of))}
  named = sorted(sizes, key=lambda name: -sizes[name])[:len(_SERIES) - (len(sizes) > len(_SERIES))]

  def paint(axes: Any) -> None:
    handles = {}
    for start, end in lines:
      axes.plot([start[0], end[0]], [start[1], end[1]], color=_MUTED, linewidth=0.7, alpha=0.6)
    for i, name in enumerate([*named, None]):
      is_member = np.isin(group_of, named, invert=True) if name is None else (
          np.asarray(group_of == name))
      if is_member.any():
        handles[name or 'other'], = axes.plot(
            *points[is_member].T, 'o', color=_SERIES[i], markersize=3.5, alpha=0.7,
            markeredgewidth=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(clean(xlabel))
    axes.set_ylabel(clean(ylabel))
    _legend(axes, handles)
    if not handles:
      _nothing(axes)

  return _drawn(paint, height=4.2)


def heat_map(values: np.ndarray, rows: Sequence[str], xlabel: str, label: str) -> Markup:
  """Draws a matrix as colors, one line a row.

  values: (R, C), never negative; 0 is left white. rows: what to call each. xlabel: what the axis
  says. label: what the scale of the colors says.
  """
  values = np.asarray(values, float)

  def paint(axes: Any) -> None:
    shown = np.ma.masked_less_equal(values, 0)
    drawn = axes.pcolormesh(shown, cmap='viridis')
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_label(r) for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel(clean(xlabel))
    axes.grid(visible=False)
    bar = axes.figure.colorbar(drawn, ax=axes, label=clean(label))
    bar.solids.set_rasterized(False)  # pictures inside pictures do not survive `_tidied`
    bar.solids.set_edgecolor('face')

  return _drawn(paint, height=1.4 + 0.5 * len(rows))


def tag_frequency(before: Mapping[str, float], after: Mapping[str, float],
                  labels: tuple[str, str] = ('before', 'after')) -> Markup:
  """Draws use against rank on two logarithmic axes: how steeply tags go from common to rare.

  before, after: {tag: count}; counts below 1 are left out. labels: what to call the two.
  """
  def paint(axes: Any) -> None:
    handles = {}
    for counts, label, color, dash in zip((before, after), labels, _SERIES, _DASHES):
      uses = np.sort([float(count) for count in counts.values() if count >= 1])[::-1]
      if len(uses):
        ranks = np.arange(1, len(uses) + 1)
        # Equally many points per decade: a million tags draw as well as a thousand.
        chosen = np.unique(np.geomspace(1, len(uses), _MAX_POINTS).round().astype(int)) - 1
        handles[f'{label}, {len(uses):,} tags'], = axes.plot(
            ranks[chosen], uses[chosen], color=color, linestyle=dash, linewidth=2.2)
    axes.set_xscale('log')
    axes.set_yscale('log')
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_formatter(_plain)
      axis.set_minor_formatter('')
    axes.tick_params(which='minor', length=0)
    axes.set_xlabel('rank of the tag')
    axes.set_ylabel('uses')
    _legend(axes, handles)
    if not handles:
      _nothing(axes)

  return _drawn(paint, height=3.6)


def histogram(values: Sequence[float], xlabel: str, ylabel: str = 'count', bins: int = 30
              ) -> Markup:
  """Draws how often values occur; whole numbers within a short range get one bar each.

  values: numbers of any count; those that are not finite are left out. xlabel, ylabel: what the
  axes say. bins: bars, where values do not get one each.
  """
  finite = np.asarray(values, float)
  finite = finite[np.isfinite(finite)]

  def paint(axes: Any) -> None:
    if len(finite):
      whole = (finite == finite.round()).all() and np.ptp(finite) < 2 * bins
      edges = np.arange(finite.min() - 0.5, finite.max() + 1) if whole else bins
      heights, edges = np.histogram(finite, edges)
      axes.bar(edges[:-1], heights, np.diff(edges), align='edge', color=_SERIES[0],
               edgecolor=_PAGE, linewidth=1)
      axes.xaxis.get_major_locator().set_params(integer=bool(whole))
    axes.set_xlabel(clean(xlabel))
    axes.set_ylabel(clean(ylabel))
    axes.xaxis.set_major_formatter(_plain)
    axes.yaxis.set_major_formatter(_plain)
    axes.grid(axis='x', visible=False)
    if not len(finite):
      _nothing(axes)

  return _drawn(paint, height=3.6)


def _drawn(paint: Callable[[Any], None], height: float) -> Markup:
  """Gives `paint` a pair of axes in the house style and returns what it drew."""
  import matplotlib
  from matplotlib.backends.backend_svg import FigureCanvasSVG
  from matplotlib.figure import Figure
  with matplotlib.rc_context(), warnings.catch_warnings():
    # The page's typeface writes the text, so it does not matter what matplotlib's lacks.
    warnings.filterwarnings('ignore', message='Glyph .* missing from')
    matplotlib.rcdefaults()  # a reader's own matplotlibrc must not change the picture
    matplotlib.rcParams.update(_STYLE)
    figure = Figure(figsize=(_WIDTH, height), layout='constrained')
    paint(figure.add_subplot())
    file = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
  return Markup(_tidied(file.getvalue()))


def _tidied(svg: str) -> str:
  """Turns matplotlib's file into part of a page.

  No metadata, global style, namespaces or unused ids; the used ids are made unique to this picture.
  """
  root = ElementTree.fromstring(svg)
  for parent in root.iter():
    parent.tag = parent.tag.rpartition('}')[2]
    parent.attrib = {key.rpartition('}')[2]: value for key, value in parent.attrib.items()}
    for child in list(parent):
      if child.tag.rpartition('}')[2] in ('metadata', 'style'):
        parent.remove(child)
  root.attrib = {'viewBox': root.get('viewBox', ''), 'xmlns': 'http://www.w3.org/2000/svg',
                 'font-family': 'sans-serif'}
  prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
  new_ids: dict[str, str] = {}

  def renamed(match: re.Match) -> str:
    return match[1] + new_ids.setdefault(match[2], f'p{prefix}-{len(new_ids)}') + match[3]
  for node in root.iter():
    for key in ('href', 'clip-path', 'style'):
      if key in node.attrib:
        node.set(key, re.sub(r'(^#|url\(#)(\w+)(\)|$)', renamed, node.attrib[key]))
    if 'style' in node.attrib:
      node.set('style', _paged(node.attrib['style']))
  for node in root.iter():
    name = new_ids.get(node.attrib.pop('id', ''))
    if name:
      node.set('id', name)
    if not (node.text or '').strip():
      node.text = None
    node.tail = None
  return ElementTree.tostring(root, encoding='unicode')


def _paged(style: str) -> str:
  """Writes a style in the page's colors and in its typeface; both ways matplotlib names a font."""
  style = re.sub(r'\bfont: [^;]*?([\d.]+px)[^;]*', r'font-size: \1', style)
  style = re.sub(r'\bfont-family: [^;]*;?', '', style)
  for stand_in, (name, color) in _COLORS.items():
    style = style.replace(stand_in, f'var(--{name}, {color})')
  return style


def _finite(value: Any) -> bool:
  return value is not None and math.isfinite(value)


def _finite_points(points: Sequence) -> tuple[np.ndarray, np.ndarray]:
  pairs = np.asarray(list(points), float).reshape(-1, 2)
  pairs = pairs[np.isfinite(pairs).all(1)]
  return pairs[:, 0], pairs[:, 1]


def _smoothed(values: np.ndarray) -> np.ndarray:
  """Running mean around each point, so that the line does not lag behind a falling loss."""
  width = len(values) / 80
  if width < 0.5:
    return values
  reach = math.ceil(3 * width)
  kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
  total, weight = (np.convolve(x, kernel)[reach:-reach] for x in (values, np.ones_like(values)))
  return total / weight


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Keeps the lowest and highest of each stretch, so that spikes survive."""
  if len(steps) <= _MAX_POINTS:
    return steps, values
  stretches = np.array_split(np.arange(len(steps)), _MAX_POINTS // 2)
  kept = np.unique([[part[values[part].argmin()], part[values[part].argmax()]]
                    for part in stretches] + [[0, len(steps) - 1]])
  return steps[kept], values[kept]


def _plain(value: float, _position: int | None = None) -> str:
  return number(int(value) if float(value).is_integer() else value)


def _label(text: Any) -> str:
  text = ' '.join(clean(text).split())
  return text if len(text) <= _MAX_LABEL_CHARS else text[:_MAX_LABEL_CHARS - 1].rstrip() + '…'


def _legend(axes: Any, handles: Mapping) -> None:
  """Names the lines above the picture."""
  if handles:
    # matplotlib leaves out labels that begin with an underscore: a thin space keeps them.
    names = [f'\u2009{_label(name)}' for name in handles]
    axes.legend(list(handles.values()), names, loc='lower left', bbox_to_anchor=(0, 1),
                ncols=2, borderaxespad=0.2, handlelength=1.6, columnspacing=1.6)


def _nothing(axes: Any) -> None:
  axes.annotate('nothing to show', (0.5, 0.5), xycoords='axes fraction', ha='center', color=_MUTED)
