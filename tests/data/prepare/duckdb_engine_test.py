"""The funnel against a plain reading of its rules; whole results or none; what is bad is said."""
import collections
import json
import pathlib
import sys
from unittest import mock

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.data import loading, raw_reader
from recjax.data.prepare import duckdb_engine, duckdb_writer
from recjax.data.prepare import report as report_lib
from recjax.data.prepare import rules as rules_lib
from recjax.errors import ConfigError, DataError, EmptyDatasetError
from tests.long import examples

try:
  import duckdb
except ImportError:
  duckdb = None


def quiet(text):
  del text


def by_hand(events, titled, rules):
  """What must be left. events: (user, item, time, rating) -> {user: [(item, time, rating)]}"""
  rows = [(*event, n) for n, event in enumerate(events)]
  if rules.min_rating:
    rows = [r for r in rows if r[3] >= rules.min_rating]
  rows = [r for r in rows if (not rules.start or r[2] >= int(rules.start))
          and (not rules.end or r[2] <= int(rules.end))]
  if rules.untitled == 'drop':
    rows = [r for r in rows if r[1] in titled]
  if rules.repeats != 'keep':
    order = {'first': lambda r: (r[2], r[4]), 'last': lambda r: (-r[2], -r[4]),
             'first-in-file': lambda r: r[4]}[rules.repeats]
    best = {}
    for r in sorted(rows, key=order):
      best.setdefault(r[:2], r)
    rows = sorted(best.values(), key=lambda r: r[4])
  while rules.user_k or rules.item_k:
    users, items = (collections.Counter(r[c] for r in rows) for c in (0, 1))
    fewer = [r for r in rows if users[r[0]] >= rules.user_k and items[r[1]] >= rules.item_k]
    done = rules.once or len(fewer) == len(rows)
    rows = fewer
    if done:
      break
  users = {}
  for r in sorted(rows, key=lambda r: (r[2], r[1] if rules.ties == 'item' else '', r[4])):
    users.setdefault(r[0], []).append(r)
  cut = {u: v for u, v in users.items() if len(v) >= rules.min_length}
  if rules.max_length:
    for user, row in cut.items():
      row = sorted(row, key=lambda r: (r[2], r[4]))
      kept = row[-rules.max_length:] if rules.cut == 'last' else row[:rules.max_length]
      cut[user] = [r for r in users[user] if r in kept]
  return {u: [(r[1], r[2], r[3]) for r in cut[u]] for u in dict.fromkeys(e[0] for e in events)
          if u in cut}


ids = st.sampled_from(['a', 'b', 'c', '\xe9', 'e e', "f'", '7'])

RULES = st.builds(
    rules_lib.Rules, min_rating=st.sampled_from([0.0, 2.0]), start=st.sampled_from(['', '1']),
    end=st.sampled_from(['', '3']), untitled=st.sampled_from(['keep', 'drop']),
    repeats=st.sampled_from(list(rules_lib.REPEATS)), user_k=st.integers(0, 3),
    item_k=st.integers(0, 3), once=st.booleans(), min_length=st.integers(0, 3),
    max_length=st.integers(0, 3), cut=st.sampled_from(['last', 'first']),
    ties=st.sampled_from(list(rules_lib.EQUAL_TIMES)))


@absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
class FunnelTest(parameterized.TestCase):

  def prepare(self, events, goods=(), rules=None, folder=None, **given):
    out = pathlib.Path(folder or self.create_tempdir().full_path) / 'out'
    source = raw_reader.Source('made', [('f.csv', n, e, '' if e else 'odd')
                                    for n, e in enumerate(events, 2)],
                           [('g.csv', n, g, '') for n, g in enumerate(goods, 2)])
    return out, duckdb_engine.prepare(source, out, rules or rules_lib.Rules(), say=quiet,
                               **given)

  @examples(12, 80)
  @hypothesis.given(st.lists(st.tuples(ids, ids, st.integers(0, 4), st.integers(1, 3).map(float)),
                             min_size=1, max_size=40), st.lists(ids), RULES)
  def test_all_rules_as_by_hand(self, events, listed, rules):
    goods = [(item, {'title': f'the {item}'}) for item in listed]
    want = by_hand(events, set(listed), rules)
    if not want:
      with self.assertRaisesRegex(EmptyDatasetError, 'nothing is left after'):
        self.prepare(events, goods, rules)
      return
    out, report = self.prepare(events, goods, rules)
    data = loading.load_data(out)
    shop = data.interactions
    got = {user: [(data.catalog.id_of(i), int(t), float(r)) for i, t, r in zip(
        shop.history(u), shop.times[shop.offsets[u]:], shop.ratings[shop.offsets[u]:])]
           for u, user in enumerate(shop.users)}
    self.assertEqual(got, want)
    self.assertEqual(list(got), list(want))
    order = dict.fromkeys([*listed, *(e[1] for e in events)])
    met = {item for row in want.values() for item, _, _ in row}
    self.assertEqual(list(data.catalog.ids), [item for item in order if item in met])
    last = report['steps'][-1]
    self.assertEqual((last['users'], last['items'], last['interactions']),
                     (len(want), len(met), sum(map(len, want.values()))))
    self.assertEqual(report['items_left_out'], len(set(listed) - met))

  @parameterized.parameters('jsonl', 'jsonl.gz', 'parquet')
  def test_layouts_hold_the_same_data_in_many_blocks(self, layout):
    for module in (report_lib, duckdb_writer):
      self.enter_context(mock.patch.object(module, 'BLOCK', 7))
    events = [(f'u{n % 10}', f'i{n % 13}', n // 3, 0.1 * (n % 5)) for n in range(200)]
    out, _ = self.prepare(events, [('i5', {'title': 'five', 'price': 1.5})], layout=layout)
    data = loading.load_data(out)
    self.assertEqual(data.interactions.lengths().tolist(), [20] * 10)
    self.assertEqual(data.catalog.columns['price'][0], 1.5)
    self.assertEqual(data.catalog.ids[:3], ('i5', 'i0', 'i1'))
    self.assertEqual(data.interactions.ratings[1], 0)
    self.assertTrue((out / 'prepared.json').is_file())

  def test_users_are_drawn_by_seed(self):
    events = [(f'u{n}', 'i', n, 1.0) for n in range(50)]
    drawn = []
    for seed in (1, 1, 2):
      out, report = self.prepare(events, rules=rules_lib.Rules(sample=9, seed=seed))
      drawn.append(loading.load_data(out).interactions.users)
      self.assertEqual(report['steps'][-1]['users'], 9)
    self.assertEqual(drawn[0], drawn[1])
    self.assertNotEqual(drawn[0], drawn[2])

  def test_all_items_keeps_items_that_nobody_met(self):
    goods = [('y', {'title': 'Y'}), ('x', {'title': 'X'}), ('y', {'title': 'again'})]
    out, report = self.prepare([('u', 'x', 1, 1.0)], goods, rules_lib.Rules(all_items=True))
    self.assertEqual(loading.load_data(out).catalog.columns['title'], ['Y', 'X'])
    self.assertEqual(report['bad']['items']['given_twice'], 1)
    self.assertEqual(report['items_not_in_the_items_file'], 0)
    self.assertEqual(report['items_left_out'], 0)
    out, report = self.prepare([('u', 'x', 1, 1.0)], goods)
    self.assertEqual(loading.load_data(out).catalog.columns['title'], ['X'])
    self.assertEqual(report['items_left_out'], 1)  # y
    self.assertIn('Left out of the items file: 1,', report_lib.report_page('d', report, None))

  def test_an_update_keeps_numbers_and_retires_what_is_gone(self):
    folder = self.create_tempdir().full_path
    first = [('a', {'title': 'A'}), ('b', {'title': 'B', 'price': 2}), ('c', {'title': 'C'})]
    events = [('u', i, n, 1.0) for n, i in enumerate('abcx')]
    old, report = self.prepare(events, first, folder=folder)
    self.assertEqual(report['update'], {})
    before = loading.load_data(old)
    self.assertIsNone(before.catalog.active_ids())

    rules = rules_lib.Rules(min_length=2)
    second = [('new', {'title': 'N'}), ('c', {'title': 'C'}), ('b', {'title': 'B', 'price': 1})]
    events = [('u', i, n, 1.0) for n, i in enumerate(['a', 'new', 'late', 'c'])] + [
        ('v', 'rare', 9, 1.0)]
    new, report = self.prepare(events, second, rules, self.create_tempdir().full_path, update=old)
    data = loading.load_data(new)
    self.assertEqual(data.catalog.ids, ('a', 'b', 'c', 'x', 'new', 'late'))
    self.assertEqual(data.catalog.columns['retired'], [True, None, None, True, None, None])
    self.assertEqual(data.catalog.columns['title'], ['A', 'B', 'C', '', 'N', ''])
    self.assertEqual(data.catalog.columns['price'][1], 1)
    self.assertEqual(data.catalog.active_ids(), {'b', 'c', 'new', 'late'})
    self.assertEqual([data.catalog.id_of(i) for i in data.interactions.history(0)],
                     ['a', 'new', 'late', 'c'])
    self.assertEqual(report['update'], {'of': str(old), 'same': 1, 'changed': 1, 'retired': 2,
                                        'back': 0, 'new': 2})
    self.assertNotEqual(data.fingerprint, before.fingerprint)

    # Once more, in place and without a file of items: what is bought again is back, texts stay.
    _, report = self.prepare([('u', 'x', 1, 1.0), ('u', 'b', 2, 1.0)], folder=new.parent,
                             update=new, overwrite=True)
    data = loading.load_data(new)
    self.assertEqual(data.catalog.ids, ('a', 'b', 'c', 'x', 'new', 'late'))
    self.assertEqual(data.catalog.active_ids(), {'b', 'x'})
    self.assertEqual(data.catalog.columns['title'], ['A', 'B', 'C', '', 'N', ''])
    self.assertEqual(
      report['update'], {'of': str(new), 'same': 1, 'changed': 0, 'retired': 4, 'back': 1, 'new': 0}
    )
    self.assertIn(
      '1 came back and 4 are retired; 0 are new', report_lib.report_page('x', report, None)
    )

  @examples(6, 30)
  @hypothesis.given(*[st.lists(ids, max_size=8)] * 2, *[st.lists(ids, min_size=1, max_size=8)] * 2)
  def test_numbers_never_change_by_an_update(self, listed, then, met, later):
    goods = [[(i, {'title': f'{i} {n}'}) for i in row] for n, row in enumerate((listed, then))]
    rules = rules_lib.Rules(all_items=True)
    old, _ = self.prepare([('u', i, 0, 1.0) for i in met], goods[0], rules)
    new, report = self.prepare([('u', i, 0, 1.0) for i in later], goods[1], rules, update=old)
    before, after = (loading.load_data(f).catalog for f in (old, new))
    self.assertEqual(after.ids[:len(before)], before.ids)
    self.assertEqual(set(after.ids), set(before.ids) | set(then) | set(later))
    gone = set(before.ids) - set(then or later)
    self.assertEqual(after.active_ids() or set(after.ids), set(after.ids) - gone)
    self.assertEqual(sum(v for k, v in report['update'].items() if k != 'of'), len(after))

  def test_an_update_of_nothing_is_refused(self):
    for folder in ('nowhere', self.create_tempdir().full_path):
      with self.assertRaisesRegex(DataError, 'no data set stands there'):
        self.prepare([('u', 'a', 1, 1.0)], update=folder)

  def test_without_times_and_ratings_the_file_has_the_order(self):
    out, _ = self.prepare([('u', 'b', None, None), ('v', 'a', None, None), ('u', 'a', None, None)])
    rows = [json.loads(line) for line in (out / 'sequences.jsonl').read_text().splitlines()]
    self.assertEqual(rows, [{'user_id': 'u', 'items': ['b', 'a']},
                            {'user_id': 'v', 'items': ['a']}])

  def test_too_many_bad_rows_stop_and_leave_nothing_behind(self):
    folder = self.create_tempdir().full_path
    events = [('u', 'a', 1, 1.0)] * 8 + [None, None]
    with self.assertRaisesRegex(DataError, '2 of 10 interactions.*f.csv line 10: odd.*--max-bad'):
      self.prepare(events, rules=rules_lib.Rules(max_bad=0.1), folder=folder)
    self.assertEmpty(list(pathlib.Path(folder).iterdir()))
    _, report = self.prepare(events, rules=rules_lib.Rules(max_bad=0.2), folder=folder)
    bad = report['bad']['interactions']
    self.assertEqual((bad['rows'], bad['bad'], bad['why']), (10, 2, {'odd': 2}))
    self.assertEqual([p.name for p in pathlib.Path(folder).iterdir()], ['out'])
    with self.assertRaisesRegex(DataError, 'exists already'):
      self.prepare(events, folder=folder)

  def test_without_duckdb_the_way_to_get_it_is_said(self):
    with (mock.patch.dict(sys.modules, {'duckdb': None}),
          self.assertRaisesRegex(ConfigError, r'pip install "recjax\[data\]"')):
      self.prepare([('u', 'a', 1, 1.0)])

  def test_too_little_memory_is_said(self):
    events = [(f'u{n}' * 40, f'i{n}' * 40, n, 1.0) for n in range(60_000)]
    folder = self.create_tempdir().full_path
    with self.assertRaisesRegex(ConfigError, '2MB of memory is not enough.*--memory'):
      self.prepare(events, memory='2MB', folder=folder)
    self.assertEmpty(list(pathlib.Path(folder).iterdir()))

  def test_settings_that_are_none_are_refused(self):
    for given in ({'repeats': 'some'}, {'start': 'May'}, {'ties': 'random'}, {'cut': 'middle'}):
      with self.assertRaisesRegex(ConfigError, next(iter(given))):
        self.prepare([('u', 'a', 1, 1.0)], rules=rules_lib.Rules(**given))
    with self.assertRaisesRegex(ConfigError, 'as in 2GB'):
      self.prepare([('u', 'a', 1, 1.0)], memory='lots')


if __name__ == '__main__':
  absltest.main()
