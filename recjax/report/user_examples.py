"""Test users one by one: what they had, what came next, what was recommended, what led to it."""
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from recjax.data.dataset import Catalog
from recjax.data.splits import Cases
from recjax.report import html

N_USERS, N_LIST_ITEMS, N_HISTORY_ITEMS = 12, 10, 12  # shown of a page, of a list, of a history
MAX_TITLE_CHARS = 90
SELECTION_RULE = (
    'Twelve users, four from each of three groups (more from the others where one is small). '
    'Within a group they are spread evenly from the best rank of the next item to the worst; equal '
    'ranks are in the order of the data.')
Columns = Mapping[str, Sequence]  # head: a cell for each item
Annotate = Callable[[np.ndarray, np.ndarray], tuple[Columns, Columns, Sequence]]


def section(path: str | os.PathLike, catalog: Catalog, cases: Cases, row: str, seed: int = 0,
            annotate: Callable[[int, np.ndarray, np.ndarray],
                               tuple[Columns, Columns, Sequence]] | None = None,
            score: str = 'Score', list_length: int = 0, intro: str = '') -> html.Section:
  """Returns a dozen test users by a rule that the page states: hits, near misses and failures.

  path: the run's folder, with ranks.parquet and predictions.parquet. catalog: the items. cases: the
  test cases in the order of ranks.parquet. row: whose lists and ranks, those of `seed` where there
  are several. annotate: what the method adds, called with a case and the items of its history and
  of its list that are shown, (n,) indices each; gives columns of the history, columns of the list
  and parts for below. score: what the scores are, '' leaves them out. list_length: items of a list
  where a target outside has no place, 0 for full ranking. intro: about the method's own columns.
  """
  user_names, ranks = read_ranks(path, row, seed)
  groups = group_by_rank(ranks, list_length)
  chosen = spread_over_groups([members for _, members in groups])
  lists = read_lists(path, [user_names[case] for members in chosen for case in members])
  first = next((members[0] for members in chosen if len(members)), None)
  parts = []
  for (name, members), shown in zip(groups, chosen):
    parts.append(html.heading(f'{name}: {len(members):,} of {len(user_names):,} users'))
    for case in shown:
      user, target = user_names[case], int(cases.targets[case])
      where = f'place {ranks[case] + 1:,}'
      if list_length and ranks[case] >= list_length:
        where = f'not in the list of {list_length}'
      listed = lists.get(user, [])
      if target in cases.history(case) and catalog.id_of(target) not in dict(listed):
        where += ', had before and so in no list'
      body = user_body(catalog, cases.history(case), target, where, listed, score,
                       lambda *items, case=case: annotate(case, *items) if annotate else (
                           {}, {}, []))
      parts.append(html.render('user', f'{user}, {where}: {title_of(catalog, target)}',
                               html.blocks(*body), bool(case == first)))
  return html.section('Users one by one', *parts, intro=f'{SELECTION_RULE} {intro}'.strip())


def user_body(catalog: Catalog, history: Sequence[int] | np.ndarray, target: int, where: str,
              listed: Sequence[tuple[str, float]], score: str, annotate: Annotate) -> list:
  """Returns what unfolds below a user.

  catalog: the items. history: item indices, oldest first. target: the index of the next item.
  where: its place, in words. listed: (item id, score), best first. score: as `section` takes it.
  annotate: of `section`, knowing its case.
  """
  shown_list = [(catalog.index(item_id), value) for item_id, value in listed[:N_LIST_ITEMS]]
  shown_history = np.asarray(history)[-N_HISTORY_ITEMS:]
  history_columns, list_columns, parts = annotate(
      shown_history, np.array([item for item, _ in shown_list], np.int32))
  cut = (f', the last {len(shown_history)} of {len(history)}'
         if len(shown_history) < len(history) else '')
  start = len(history) - len(shown_history)
  history_rows = [[str(start + n), title_of(catalog, item), *cells] for n, (item, *cells) in
                  enumerate(zip(shown_history, *history_columns.values()), 1)]
  list_rows = [[str(n), marked_title(catalog, item, target),
                *([html.number(value, 4)] if score else []), *cells]
               for n, ((item, value), *cells) in
               enumerate(zip(shown_list, *list_columns.values()), 1)]
  list_table = html.table(
      ['', 'Recommended', *([score] if score else []), *list_columns], list_rows,
      f'The first {len(list_rows)} of the list') if list_rows else 'The list is empty.'
  return [html.table(['', 'Item', *history_columns], history_rows,
                     f'What the user had, newest last{cut}'),
          html.render('next_item', title_of(catalog, target), where), list_table, *parts]


def marked_title(catalog: Catalog, item: int, target: int) -> str | Markup:
  """Returns the title of an item of a list; that of the target says so.

  catalog: the items. item, target: indices.
  """
  title = title_of(catalog, item)
  return html.render('marked_title', title) if item == target else title


def group_by_rank(ranks: np.ndarray, list_length: int) -> list[tuple[str, np.ndarray]]:
  """Returns hits, near misses and failures: (name, cases from the best rank to the worst) of each.

  ranks: (n,), 0 is best. list_length: as `section` takes it.
  """
  near, far = (N_LIST_ITEMS, 50) if not list_length else (
      (N_LIST_ITEMS, list_length) if list_length > N_LIST_ITEMS else (3, list_length))
  order = np.argsort(ranks, kind='stable')
  cuts = np.searchsorted(ranks[order], [near, far])
  names = (f'Hits, at places 1 to {near}', f'Near misses, at places {near + 1} to {far}',
           f'Failures, not in the list of {list_length}' if list_length else
           f'Failures, after place {far}')
  return list(zip(names, np.split(order, cuts)))


def spread_over_groups(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns some cases of each group, spread over it. groups: the cases (n,) of each."""
  chosen, left = {}, N_USERS
  for done, g in enumerate(sorted(range(len(groups)), key=lambda g: len(groups[g]))):
    count = min(len(groups[g]), left // (len(groups) - done))
    rows = np.linspace(0, len(groups[g]) - 1, count).round().astype(int)
    chosen[g], left = groups[g][rows], left - count
  return [chosen[g] for g in range(len(groups))]


def read_ranks(path: str | os.PathLike, row: str, seed: int) -> tuple[list[str], np.ndarray]:
  """Returns user names, with the case's number where users have several, and ranks (n,) of a row.

  path: the run's folder. row: its name. seed: of which, where there are several.
  """
  import pyarrow.parquet as pq
  table = pq.read_table(pathlib.Path(path) / 'ranks.parquet',
                        filters=[('row', 'in', [row, f'{row}:seed={seed}'])])
  names = table['user'].to_pylist()
  if 'case' in table.column_names:
    names = [_case_name(user, case) for user, case in zip(names, table['case'].to_pylist())]
  return names, table['rank'].to_numpy()


def _case_name(user: str, case: int) -> str:
  return f'{user}, case {case}'


def read_lists(path: str | os.PathLike, names: Iterable[str]
               ) -> dict[str, list[tuple[str, float]]]:
  """Returns {name: (item id, score) of the list, best first}.

  path: the run's folder. names: whose lists, as `read_ranks` names them.
  """
  import pyarrow.parquet as pq
  path, names = pathlib.Path(path) / 'predictions.parquet', set(names)
  several = 'case' in pq.read_schema(path).names
  users = {name.rpartition(', case ')[0] for name in names} if several else names
  lists: dict[str, list[Any]] = {}
  for line in pq.read_table(path, filters=[('user', 'in', list(users))]).to_pylist():
    name = _case_name(line['user'], line['case']) if several else line['user']
    if name in names:
      lists.setdefault(name, []).append((line['rank'], line['item'], line['score']))
  return {user: [(item, score) for _, item, score in sorted(rows)]
          for user, rows in lists.items()}


def title_of(catalog: Catalog, item: int) -> str:
  """Returns the title of an item index, cut where it is very long; the id where there is none.

  catalog: the items. item: an index 1..N.
  """
  titles = catalog.columns.get('title')
  text = str(titles[item - 1] or '') if titles else ''
  text = text or catalog.id_of(int(item))
  if len(text) <= MAX_TITLE_CHARS:
    return text
  return f'{text[:MAX_TITLE_CHARS - 1].rstrip()}…'
