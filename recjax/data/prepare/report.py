"""What a preparation counts and tells on its way, and the page that says it; for both engines."""
import collections
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from recjax.data import raw_reader, times
from recjax.errors import DataError

BLOCK = 1 << 16    # rows that come to an engine together
EXAMPLES = 5
MAX_UNLISTED = .5  # share of unknown items above which the items file may be of other ids
NOTE_KEYS = {'interactions': 'events', 'items': 'goods'}  # of notes, under 'told' in prepared.json


def source_notes(source: raw_reader.Source, what: str) -> dict:
  """What the reading of 'interactions' or 'items' told, as plain JSON without what never happened.

  source: as it is after the reading. what: which of the two.
  """
  return _plain_notes(source.notes.get(what, {})) or {}


def _plain_notes(value: Any) -> Any:
  """Counters as dicts without zeros, empty parts left out."""
  if isinstance(value, dict):
    return {k: v for k, part in value.items() if (v := _plain_notes(part)) not in (0, {}, None, '')
            or k == 'per_second'}
  return value


def time_scale(notes: dict, least: int | None, greatest: int | None) -> times.TimeScale:
  """What the numbers of the times mean: as the `notes` of the source say, or as their ends look.

  least, greatest: those ends, None where there are no times.
  """
  time = notes.get('time')
  if time:
    return times.TimeScale(time['kind'], time['per_second'], time['factor'])
  return times.find_scale(least, greatest)


def time_range(scale: times.TimeScale, least: int | None, greatest: int | None
               ) -> dict[str, str | None]:
  """The unit of `scale`, the least and the greatest time in words; empty without times."""
  return {'unit': scale.unit(), 'first': scale.shown(least), 'last': scale.shown(greatest)
          } if least is not None else {}


def sizes_text(sizes: dict[str, int]) -> str:
  """The numbers of users, items and interactions, `sizes`, in words."""
  return (f'{sizes["users"]:,} users, {sizes["items"]:,} items, {sizes["interactions"]:,} '
          'interactions')


def encode_items(rows: Iterable[raw_reader.ItemRow]) -> Iterator[tuple]:
  """Yields item rows with the columns of each as one JSON text, and whether it has a title."""
  for path, number, item_row, reason in rows:
    if item_row is not None:
      item, columns = item_row
      try:
        text = json.dumps({'item_id': item} | columns, ensure_ascii=False, allow_nan=False)
        text.encode()
        item_row = (item, text, bool(columns.get('title')))
      except (ValueError, TypeError) as error:
        item_row, reason = None, f'a value that JSON cannot hold ({error})'
    yield path, number, item_row, reason


def new_tally() -> dict:
  """Counts of rows and of what was wrong with them, all 0."""
  return {'rows': 0, 'bad': 0, 'why': collections.Counter(), 'examples': []}


def good_blocks(rows: Iterable[tuple], tally: dict) -> Iterator[list[tuple]]:
  """Yields good rows in blocks; the others are counted in `tally`, the first with their places."""
  rows = iter(rows)
  while block := list(itertools.islice(rows, BLOCK)):
    good = []
    for path, number, row, reason in block:
      if row is not None:
        good.append(row)
        continue
      tally['bad'] += 1
      tally['why'][reason] += 1
      if len(tally['examples']) < EXAMPLES:
        tally['examples'].append(f'{raw_reader.row_place(path, number)}: {reason}')
    tally['rows'] += len(block)
    if good:
      yield good
    elif tally['bad'] == tally['rows']:
      check_tally(tally, 0, 'rows')  # a file of another kind, to all appearance


def check_tally(tally: dict, max_bad: float, what: str) -> dict:
  """The tally as it is reported. Raises DataError where a greater share than `max_bad` is bad.

  what: the rows are.
  """
  if tally['bad'] > max_bad * tally['rows']:
    raise DataError(f'{tally["bad"]:,} of {tally["rows"]:,} {what} cannot be used, e.g. '
                    f'{"; ".join(tally["examples"])}. Mend them, or tolerate a greater share: '
                    f'--max-bad (now {max_bad:g})')
  reasons = dict(tally['why'].most_common(50))
  return {'rows': tally['rows'], 'bad': tally['bad'], 'why': reasons, 'examples': tally['examples']}


def report_page(name: str, report: dict, expected: tuple[int, int, int] | None) -> str:
  """The figures of a preparation called `name`, as Markdown.

  report: as the engines make it. expected: the published (users, items, interactions), or None.
  """
  lines = [f'# {name}', '', f'Prepared from {report["source"]}.', '',
           '| after | users | items | interactions |', '| --- | --- | --- | --- |']
  lines += [f'| {s["step"]} | {s["users"]:,} | {s["items"]:,} | {s["interactions"]:,} |'
            for s in report['steps']]
  last = report['steps'][-1]
  lines += ['', f'{last["interactions"] / last["users"]:.2f} interactions a user, '
            f'{last["interactions"] / last["items"]:.2f} an item; {report["written"]["items"]:,} '
            'items written.']
  if report['items_left_out']:
    lines += [f'Left out of the items file: {report["items_left_out"]:,}, of which no interaction '
              'is left; `--all-items` keeps them, for methods that read texts.']
  if expected:
    sizes = (last['users'], last['items'], last['interactions'])
    same = all(e in (0, g) for e, g in zip(expected, sizes))
    lines += [f'{"As published" if same else "NOT as published"}: '
              + ', '.join(f'{e:,} {what}' for e, what in zip(
                  expected, ('users', 'items', 'interactions')) if e) + '.']
  if report.get('update'):
    lines.append(_update_line(report['update']))
  lines += _note_lines(report)
  for what, bad in report['bad'].items():
    if bad['rows']:
      lines.append(f'{bad["bad"]:,} of {bad["rows"]:,} rows of {what} could not be used.')
      lines += [f'- {count:,} times: {reason}' for reason, count in bad['why'].items()]
      lines += [f'- e.g. {example}' for example in bad['examples'][:3]]
  if report['bad']['items'].get('given_twice'):
    lines.append(f'{report["bad"]["items"]["given_twice"]:,} items were given again; the first '
                 'counts.')
  return '\n'.join(lines + _unmatched_lines(report)) + '\n'


def _note_lines(report: dict) -> list[str]:
  """What was taken from which column, how it was told, and what was changed, in sentences."""
  lines = []
  for what, key in NOTE_KEYS.items():
    notes = report['told'].get(key, {})
    lines += [f'{what.capitalize()}: {notes[note]}.' for note in ('read', 'layout', 'decimal')
              if note in notes]
    if 'columns' in notes:
      taken = ', '.join(f'{ours}=`{theirs}`' for ours, theirs in notes['columns'].items())
      left = ', '.join(f'`{name}`' for name in notes.get('ignored', ()))
      lines.append(f'Columns of {what}: {taken}' + (f'; not read: {left}' if left else '') + '.')
    if 'events' in notes:
      counts = ', '.join(f'{name or "(empty)"} {n:,}' for name, n in notes['events'].items())
      lines.append(f'Events: {counts}' + (f'; {notes["counted"]}.' if 'counted' in notes else '.'))
    lines += [f'{count:,} rows do not count: {reason}.'
              for reason, count in notes.get('left_out', {}).items()]
    for name, counts in ((what, notes.get('ids', {})), *notes.get('cleaned', {}).items()):
      lines += [f'- {count:,} times, {name}: {reason}' for reason, count in counts.items()]
  lines.append(_times_line(report))
  lines += [f'- {note}' for note in report['told'].get(NOTE_KEYS['interactions'], {}).get(
      'calendar', ())]
  if report['repeated']:
    timed = ', item and time' if report['times'] else ' and item'
    lines.append(f'{report["repeated"]:,} rows repeat the user{timed} of an earlier row; all were '
                 'read' + ('.' if report['rules']['repeats'] != 'keep' else
                           ' and kept (--repeats=first keeps one).'))
  if report['untitled']:
    lines.append(f'{report["untitled"]:,} of {report["written"]["items"]:,} items have no title.')
  return lines


def _times_line(report: dict) -> str:
  """Which times order the histories, in a sentence."""
  time, span = report['told'].get(NOTE_KEYS['interactions'], {}).get('time', {}), report['times']
  if not span:
    return 'No times: histories have the order of the file.'
  text = 'Times: '
  if time:
    how = ' ' + time['found'] if time.get('found', 'named') != 'named' else ''
    text += f'column `{time["column"]}`' + (f' (found{how})' if how else '')
    text += f', {times.DESCRIPTIONS.get(time["kind"], time["kind"])}'
    text += f' ({time["told"]})' if 'told' in time else ''
    text += '; '
  return text + (f'{span["first"]} to {span["last"]}, written as {span["unit"]}'
                 + (', UTC.' if time.get('per_second', 1) else '.'))


def _unmatched_lines(report: dict) -> list[str]:
  """Whether the items file knows the items of the interactions, in sentences."""
  lacking, met = report['items_not_in_the_items_file'], report['steps'][0]['items']
  if not report['bad']['items']['rows']:
    return []
  if lacking < met and report['untitled'] == report['written']['items']:
    return ['WARNING: NO item has a title. Which column of the items file holds the titles? Say '
            '--item-columns=title=NAME']
  if not lacking:
    return []
  text = (f'{lacking:,} items of the interactions are not in the items file; they have '
          'no title (untitled=drop leaves them out).')
  if lacking < MAX_UNLISTED * met:
    return [text]
  examples = {name: ', '.join(repr(i) for i in ids) for name, ids in report['unlisted'].items()}
  none = 'NO item of the interactions is in the items file, so none has a title'
  if lacking < met:
    none = (f'only {met - lacking:,} of {met:,} items of the interactions are in the items file; '
            'the others have no title')
  return [f'WARNING: {none}. The interactions have {examples["lacking"]}, the items '
          f'file has {examples["listed"]}: are these the same ids, written alike (zeros in front, '
          'capitals, another column: --columns=item=NAME, --item-columns=item=NAME)?']


def _update_line(counts: dict) -> str:
  """What became of the items of an earlier data set, in a sentence."""
  old = sum(counts[fate] for fate in ('same', 'changed', 'retired', 'back'))
  return (f'Of {old:,} items of {counts["of"]}, which keep their numbers, {counts["same"]:,} are '
          f'the same, {counts["changed"]:,} changed, {counts["back"]:,} came back and '
          f'{counts["retired"]:,} are retired; {counts["new"]:,} are new.')
