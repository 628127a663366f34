"""Test users one by one: what they had, what came next, what was recommended, what led to it."""
import pathlib

import numpy as np

from recjax.report import html

USERS, TOP, SHOWN = 12, 10, 12  # users of a page, items of a list, items of a history
LONGEST = 90  # letters of a title
RULE = ('A third of a dozen users comes from each of three groups, more from the others where one '
        'is small; within a group evenly from the best place of the next item to the worst, equal '
        'places in the order of the data.')


def section(path, catalog, cases, row, seed=0, tell=None, score='Score', ends=0, intro=''):
  """A dozen test users by a rule that the page states: hits, near misses and failures.

  path: the run's folder, with ranks.parquet and predictions.parquet. cases: the test cases in the
  order of ranks.parquet, with `history(case)` and `targets`. row: whose lists and ranks, those of
  `seed` where there are several. tell: what the method adds, called with a case and the items of
  its history and of its list that are shown, (n,) indices each; -> {head: cells of the history},
  {head: cells of the list}, parts for below. score: what the scores are, '' leaves them out. ends:
  items of a list where a target outside has no place, 0 for full ranking. intro: about the method's
  own columns.
  """
  users, ranks = read_ranks(path, row, seed)
  groups = grouped(ranks, ends)
  chosen = choose([rows for _, rows in groups])
  shown = read_lists(path, [users[c] for some in chosen for c in some])
  first, parts = next((some[0] for some in chosen if len(some)), None), []
  for (name, rows), some in zip(groups, chosen):
    parts.append(html.element('h3', f'{name}: {len(rows):,} of {len(users):,} users'))
    for c in some:
      where = f'place {ranks[c] + 1:,}'
      if ends and ranks[c] >= ends:
        where = f'not in the list of {ends}'
      target, items = int(cases.targets[c]), shown.get(users[c], [])
      if target in cases.history(c) and catalog.id_of(target) not in dict(items):
        where += ', had before and so in no list'
      parts.append(html.element('div', html.details(
          f'{users[c]}, {where}: {title_of(catalog, target)}',
          *user(catalog, cases.history(c), target, where, items, score,
                lambda *given, c=c: tell(c, *given) if tell else ({}, {}, [])),
          open_=bool(c == first)), class_='user'))
  return html.section('Users one by one', *parts, intro=f'{RULE} {intro}'.strip())


def user(catalog, history, target, where, items, score, tell):
  """What unfolds. items: [(item id, score)], best first. tell: of `section`, knowing its case."""
  items = [(catalog.index(i), s) for i, s in items[:TOP]]
  had = np.asarray(history)[-SHOWN:]
  before, beside, parts = tell(had, np.array([i for i, _ in items], np.int32))
  cut = f', the last {len(had)} of {len(history)}' if len(had) < len(history) else ''
  rows = [[str(len(history) - len(had) + n), title_of(catalog, i), *more]
          for n, (i, *more) in enumerate(zip(had, *before.values()), 1)]
  listed = [[str(n), marked(catalog, i, target), *([html.number(s, 4)] if score else []), *more]
            for n, ((i, s), *more) in enumerate(zip(items, *beside.values()), 1)]
  return [html.table(['', 'Item', *before], rows, f'What the user had, newest last{cut}'),
          html.element('p', 'What came next: ', html.element('strong', title_of(catalog, target)),
                       f', {where}.'),
          html.table(['', 'Recommended', *([score] if score else []), *beside], listed,
                     f'The first {len(listed)} of the list') if listed else
          'The list is empty.', *parts]


def marked(catalog, item, target):
  """A title of the list; that of the target says so."""
  title = title_of(catalog, item)
  return [html.element('strong', title), ' (the next item)'] if item == target else title


def grouped(ranks, ends):
  """Hits, near misses and failures. ranks: (n,), 0 is best. -> [(name, cases by rank)]"""
  near, far = (TOP, 50) if not ends else (TOP, ends) if ends > TOP else (3, ends)
  order = np.argsort(ranks, kind='stable')
  cuts = np.searchsorted(ranks[order], [near, far])
  names = (f'Hits, at places 1 to {near}', f'Near misses, at places {near + 1} to {far}',
           f'Failures, not in the list of {ends}' if ends else f'Failures, after place {far}')
  return list(zip(names, np.split(order, cuts)))


def choose(groups):
  """Some cases of each group, spread over it. groups: of (n,) cases -> one array each"""
  chosen, left = {}, USERS
  for done, g in enumerate(sorted(range(len(groups)), key=lambda g: len(groups[g]))):
    take = min(len(groups[g]), left // (len(groups) - done))
    at = np.linspace(0, len(groups[g]) - 1, take).round().astype(int)
    chosen[g], left = groups[g][at], left - take
  return [chosen[g] for g in range(len(groups))]


def read_ranks(path, row, seed):
  """-> user names, (n,) ranks of a row, of one seed where there are several"""
  import pyarrow.parquet as pq
  table = pq.read_table(pathlib.Path(path) / 'ranks.parquet',
                        filters=[('row', 'in', [row, f'{row}:seed={seed}'])])
  return table['user'].to_pylist(), table['rank'].to_numpy()


def read_lists(path, users):
  """-> {user: [(item id, score)], best first} of some users"""
  import pyarrow.parquet as pq
  found = {}
  for line in pq.read_table(pathlib.Path(path) / 'predictions.parquet',
                            filters=[('user', 'in', users)]).to_pylist():
    found.setdefault(line['user'], []).append((line['rank'], line['item'], line['score']))
  return {user: [(i, s) for _, i, s in sorted(lines)] for user, lines in found.items()}


def title_of(catalog, item):
  """The title of an item index, cut where it is very long; the id where there is none."""
  titles = catalog.columns.get('title')
  text = str(titles[item - 1] or '') if titles else ''
  text = text or catalog.id_of(int(item))
  return text if len(text) <= LONGEST else f'{text[:LONGEST - 1].rstrip()}…'
