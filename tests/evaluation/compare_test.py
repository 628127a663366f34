import csv
import io
import json
import pathlib
import re
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

from recjax import cli
from recjax.errors import ConfigError, DataError, WorkdirError
from recjax.evaluation import compare, metrics, slices, statistics
from recjax.evaluation import results as results_lib

USERS = [f'u{i}' for i in range(60)]


class RunsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.room = pathlib.Path(self.create_tempdir().full_path)
    rng = np.random.default_rng(0)
    self.good = rng.integers(0, 20, 60).astype(np.int32)
    self.bad = (self.good + 9).astype(np.int32)

  def run_at(self, name, rows, users=USERS, protocol='p', data='d1', groups=None):
    folder = self.room / name
    folder.mkdir(parents=True)
    results = {'protocol': protocol, 'data_fingerprint': data, 'rows': {}, 'tests': {}}
    (folder / 'results.json').write_text(json.dumps(results))
    results_lib.write_ranks(folder / 'ranks.parquet', users, rows, groups)
    return folder

  def test_groups_are_those_of_the_run_that_tells_most(self):
    head = np.arange(60) < 30
    old = self.run_at('old', {'a': self.good}, groups={'head': head})
    new = self.run_at('new', {'b': self.bad}, groups={'head': head, 'cold': ~head})
    self.assertEqual(compare.compare([old, new])['groups']['sizes'], {'head': 30, 'cold': 30})

  def test_two_runs_in_one_table_over_shared_users(self):
    a = self.run_at('a', {'betags': self.good, 'popularity': self.bad})
    order = np.random.default_rng(1).permutation(60)[:50]
    b = self.run_at('b', {'sasrec:bce': self.bad[order], 'popularity': self.bad[order]},
                    [USERS[i] for i in order])
    found = compare.compare([a, b])
    self.assertEqual((found['users'], found['left_out'], found['protocol'], found['data']),
                     (50, {'a': 10, 'b': 0}, 'p', 'd1'))
    self.assertEqual(list(found['rows']), ['a:betags', 'a:popularity', 'b:sasrec:bce'])
    self.assertEqual(found['once'], ['popularity'])  # the same ranks in both
    self.assertIn('popularity: the same in several runs, shown once', compare.text_table(found))
    shared = np.sort(order)
    rows = {n: metrics.per_case(r[shared]) for n, r in
            (('a:betags', self.good), ('a:popularity', self.bad), ('b:sasrec:bce', self.bad))}
    pairs = [tuple(name.split('>')) for name in found['tests']]
    self.assertLen(pairs, 3)
    want = statistics.summarize(rows, 0, pairs=pairs)
    self.assertEqual((found['rows'], found['tests']), (want['rows'], want['tests']))

  def test_runs_that_drew_other_users_compare_over_those_they_share(self):
    said = 'leave-one-out: x; {} of 60 users, those with 3 items or more{}, full ranking over 9'
    drawn = '; drawn by seed 42 out of 60'
    every = self.run_at('every', {'a': self.good}, protocol=said.format(60, ''))
    few = self.run_at('few', {'b': self.bad[:20]}, USERS[:20], said.format(20, drawn))
    old = self.run_at('old', {'c': self.bad[:20]}, USERS[:20], said.format(60, ''))
    for runs in ((every, few), (few, every), (every, old), (few, old)):
      found = compare.compare(runs)
      self.assertEqual(found['protocol'], said.format(20, '; those that all runs ranked'))
      self.assertEqual(found['users'], 20)
    for runs, want in (([every], said.format(60, '')), ([few], said.format(20, drawn)),
                       ([old], said.format(20, '; those that all runs ranked'))):
      self.assertEqual(compare.compare(runs)['protocol'], want)
    other = self.run_at('other', {'d': self.good}, protocol=said.format(60, '; tied times: x'))
    with self.assertRaisesRegex(DataError, 'differ in their protocol'):
      compare.compare([every, other])

  def test_sanity_rows_are_not_tested_against_each_other(self):
    a = self.run_at('a', {'betags': self.good, 'popularity': self.bad, 'random': self.bad + 1})
    b = self.run_at('b', {'betags': self.good, 'popularity': self.bad + 2})
    pairs = list(compare.compare([a, b])['tests'])
    self.assertNotIn('a:popularity>b:popularity', pairs)
    self.assertIn('a:betags>b:betags', pairs)  # a run's own row is never left out
    self.assertLen(pairs, 7)

  def seeded(self, seeds, rows, group, **settings):
    """Runs whose configs differ in their seed alone. rows: of seed -> {row: ranks}."""
    runs = []
    for seed in seeds:
      runs.append(self.run_at(f'{group}/seed={seed}', rows(seed)))
      (runs[-1] / 'config.json').write_text(json.dumps(
          {'config': {'method': 'm', 'seed': seed, **settings}}))
    return runs

  def noisy(self, ranks, seed):
    """Ranks with a third of the users redrawn."""
    draws = np.random.default_rng(seed)
    return np.where(draws.random(60) < .3, draws.integers(0, 20, 60), ranks).astype(np.int32)

  def test_runs_that_differ_in_their_seed_are_one_row(self):
    runs = self.seeded((3, 4, 5), lambda s: {'sasrec': self.noisy(self.good, s),
                                             'popularity': self.bad}, 'wide', width=9)
    table = compare.compare(runs)
    self.assertEqual(list(table['rows']), ['wide:sasrec', 'wide:popularity'])
    each = np.stack([metrics.per_case(self.noisy(self.good, s))['HR@10'] for s in (3, 4, 5)])
    cell, want = table['rows']['wide:sasrec']['HR@10'], statistics.two_way(each)
    self.assertAlmostEqual(cell['value'], each.mean())
    self.assertEqual((cell['low'], cell['high']), (want['low'], want['high']))
    self.assertEqual(table['spread']['wide:sasrec']['HR@10'], want)
    p = statistics.paired_test(each.mean(0), metrics.per_case(self.bad)['HR@10'], 0)
    self.assertEqual(table['tests']['wide:sasrec>wide:popularity']['HR@10'], p)
    text = ' '.join(compare.text_table(table).split())
    self.assertTrue(text.startswith(f'wide:sasrec has the highest HR@10, {each.mean():.4f} (mean '
                                    'over 3 seeds); it is ahead of wide:popularity'), text)
    self.assertIn('interval over users and seeds', text)
    alone = compare.compare(runs, ['seed=4:sasrec', 'seed=5:sasrec'])
    self.assertEqual(list(alone['rows']), ['seed=4:sasrec', 'seed=5:sasrec'])

  def test_what_seeds_alone_make_is_no_lead(self):
    def shifted(hits):
      return np.where(np.arange(60) < hits, 0, 30).astype(np.int32)
    one = self.seeded((0, 1, 2), lambda s: {'x': shifted((20, 30, 40)[s])}, 'one', width=1)
    two = self.seeded((0, 1, 2), lambda s: {'y': shifted((12, 22, 32)[s])}, 'two', width=2)
    far = self.seeded((0, 1, 2), lambda s: {'z': shifted(s)}, 'far', width=3)
    table = compare.compare([*one, *two, *far])
    self.assertLess(table['tests']['one:x>two:y']['HR@10'], .05)  # by users alone it would be one
    self.assertRegex(table['verdict'], 'one:x has the highest .*ahead of far:z; not told apart '
                     'from two:y .*above what seeds alone make')

  def test_two_seeds_are_printed_and_have_no_interval_of_seeds(self):
    runs = self.seeded((0, 1), lambda s: {'x': self.noisy(self.good, s), 'random': self.bad + s},
                       'few')
    table = compare.compare(runs)
    self.assertEqual(list(table['rows']), ['few:x', 'few:random'])
    self.assertIn('too few to say how far seeds reach', compare.note(table))
    self.assertLen(table['by_seed']['few:x'], 2)

  def test_seeds_inside_a_run_and_the_same_seed_twice(self):
    rows = {f'x:seed={s}': self.noisy(self.good, s) for s in (0, 1, 2)}
    table = compare.compare([self.run_at('a', rows)], ['x'])
    self.assertEqual(list(table['rows']), ['a:x'])
    self.assertEqual(list(compare.compare([self.room / 'a'], ['x:seed=1'])['rows']),
                     ['a:x:seed=1'])
    again = [self.seeded((7,), lambda seed: {'x': self.noisy(self.good, seed)}, 'one'),
             self.seeded((7,), lambda seed: {'x': self.noisy(self.good, seed + 1)}, 'two')]
    self.assertLen(compare.compare([run for runs in again for run in runs])['rows'], 2)

  def test_seeds_that_two_runs_share_are_not_counted_twice(self):
    inside = {f'x:seed={s}': self.noisy(self.good, s) for s in (0, 1, 2)}
    runs = [self.run_at('a', inside), self.run_at('b', {'x': inside['x:seed=2']})]
    for folder, seed, seeds in zip(runs, (0, 2), (3, 1)):
      (folder / 'config.json').write_text(json.dumps(
          {'config': {'method': 'sequential', 'seed': seed, 'seeds': seeds}, 'facts': {}}))
    table = compare.compare(runs)
    self.assertEqual(list(table['rows']), ['a:x', 'b:x'])
    self.assertEqual(table['spread']['a:x']['HR@10']['seeds'], 3)

  def test_one_reference_puts_its_p_beside_the_figures(self):
    a = self.run_at('a', {'betags': self.good, 'popularity': self.bad})
    table = compare.compare([a], against='popularity')
    p = table['tests']['a:betags>a:popularity']['HR@10']
    self.assertEqual(table['against'], 'a:popularity')
    for render in (compare.text_table, compare.markdown_table, compare.latex_table):
      text = render(table)
      self.assertIn(f'{p:.4f}', text)
      self.assertIn('reference', text)
      self.assertEqual(text.count('p, Holm'), 0)

  def test_the_page_says_what_each_row_rests_on(self):
    a = self.run_at('a', {'betags': self.good, 'popularity': self.bad})
    b = self.run_at('b', {'tiger': self.bad[:50]}, USERS[:50])
    (b / 'config.json').write_text(json.dumps({
        'config': {'method': 'etegrec', 'preset': 'paper'},
        'facts': {'revision': 'abc1234', 'command': 'python -m recjax.main --config=b'}}))
    table = compare.compare([a, b], against='popularity')
    page = re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', cli.compare.page([str(a), str(b)], table)))
    self.assertIn('50 users that all runs ranked. Protocol of every row: p.', page)
    self.assertRegex(page, r'a: betags 50 0\.\d{4}')
    self.assertRegex(page, r'b: tiger 50 0\.\d{4}')
    self.assertIn('paired randomization test against a:popularity, Holm-corrected', page)
    self.assertRegex(page, r'b etegrec paper abc1234 50 0 ')
    self.assertRegex(page, r'a – – – 60 10 ')
    self.assertIn('python -m recjax.main --config=b', page)
    self.assertNotIn('Seeds:', page)

  @mock.patch.object(slices, 'FEWEST', 1)
  def test_differences_by_group_by_hand(self):
    ours = np.where(np.arange(60) < 20, 0, 30).astype(np.int32)  # hits the first 20 users
    base = np.where(np.arange(60) < 30, 0, 30).astype(np.int32)
    masks = {'head': np.arange(60) < 30, 'tail': np.arange(60) >= 30, 'mid': np.zeros(60, bool)}
    a = self.run_at('a', {'ours': ours}, USERS, groups=masks)
    b = self.run_at('b', {'sasrec': base[10:]}, USERS[10:])  # a run that does not say its groups
    found = compare.compare([b, a], against='sasrec')['groups']
    self.assertEqual((found['reference'], found['metric']), ('b:sasrec', 'HR@10'))
    self.assertEqual(found['sizes'], {'head': 20, 'tail': 30})
    cells = found['rows']['a:ours']
    self.assertEqual((cells['head']['value'], cells['tail']['value']), (-.5, 0))
    self.assertLess(cells['head']['low'], -.5)
    self.assertGreater(cells['head']['high'], -.5)
    self.assertEqual(cells['tail']['p'], 1)
    want = 2 * statistics.paired_test(ours[10:30] < 10., base[10:30] < 10., 0)
    self.assertAlmostEqual(cells['head']['p'], want)  # Holm over two tests
    self.assertEqual(found['rows']['b:sasrec']['head'], {'value': 1, 'low': 1, 'high': 1})
    page = cli.compare.page([str(b), str(a)], compare.compare([b, a], against='sasrec'))
    words = re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', page))
    self.assertIn('Differences by group', words)
    self.assertRegex(words, r'a: ours −0\.5000 −0\.\d{4} to −0\.\d{4} p (< )?0\.\d{3} 0\.0000 ')
    self.assertIn('<strong>−0.5000</strong>', page)

  def test_small_groups_have_no_figures_and_times_come_last(self):
    count = np.arange(60)
    masks = {'2014-05': count < 31, '2014-04': count >= 30, 'len4-5': count < 40,
             'tail': count < 29, 'new': count > 0}
    a = self.run_at('a', {'ours': self.good, 'sasrec': self.bad}, groups=masks)
    table = compare.compare([a])
    found = table['groups']
    self.assertEqual(list(found['sizes']), ['len4-5', 'new', '2014-04', '2014-05'])
    self.assertEqual((found['few'], found['sizes']['2014-04']), ({'tail': 29}, 30))
    self.assertEqual(set(found['rows']['a:sasrec']), set(found['sizes']))
    words = re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', cli.compare.page([str(a)], table)))
    for said in ('How long the history is: HR@10 less that of a: ours',
                 'have no figures: tail (29)', 'When the next item was met: HR@10',
                 'len4-5* n = 40'):
      self.assertIn(said, words)

  @mock.patch.object(slices, 'FEWEST', 1)
  def test_groups_are_those_of_the_run_of_most_users(self):
    # A run of few users cuts short and long histories at their own median.
    of = lambda cut, n: {name: np.arange(n) < cut if name in ('head', 'short') else np.arange(  # noqa: E731
        n) >= cut for name in ('head', 'tail', 'short', 'long')}
    every = self.run_at('every', {'a': self.good}, groups=of(25, 60))
    few = self.run_at('few', {'b': self.bad[:30]}, USERS[:30], groups=of(10, 30))
    for runs in ((every, few), (few, every)):
      self.assertEqual(compare.compare(runs)['groups']['sizes'],
                       {'head': 25, 'tail': 5, 'short': 25, 'long': 5})

  def test_runs_that_say_no_groups_have_no_such_section(self):
    a = self.run_at('a', {'betags': self.good, 'popularity': self.bad})
    table = compare.compare([a])
    self.assertEqual(table['groups'], {})
    self.assertNotIn('Differences by group', cli.compare.page([str(a)], table))

  def test_several_seeds_make_one_row(self):
    runs = [self.run_at(n, {'betags': r, 'popularity': self.bad}) for n, r in
            (('s0', self.good), ('s1', self.bad))]
    cells = compare.average(runs)
    want = [metrics.per_case(r)['NDCG@10'].mean() for r in (self.good, self.bad)]
    self.assertAlmostEqual(cells['NDCG@10']['value'], np.mean(want))
    self.assertEqual(cells['NDCG@10']['n'], 60)

  def test_rows_can_be_chosen_and_tested_against_one(self):
    a = self.run_at('a', {'betags': self.good, 'popularity': self.bad, 'random': self.bad})
    b = self.run_at('b', {'betags': self.bad})
    found = compare.compare([a, b], rows=('betags', 'a:random'), against='a:random')
    self.assertEqual(list(found['tests']), ['a:betags>a:random', 'b:betags>a:random'])
    c = self.run_at('c', {'tiger': self.bad, 'random': self.bad})
    self.assertEqual(list(compare.compare([a, c], rows=('random',))['rows']), ['a:random'])
    self.assertEqual(list(compare.compare([a, c], rows=('random', 'c:random'))['rows']),
                     ['a:random', 'c:random'])
    with self.assertRaisesRegex(ConfigError, "'betags' .* one of a:betags, b:betags$"):
      compare.compare([a, b], against='betags')
    with self.assertRaisesRegex(DataError, 'no row is named tiger; these runs have a:betags'):
      compare.compare([a, b], rows=('betags', 'tiger'))
    self.enterContext(mock.patch('sys.argv', ['recjax', 'compare', str(a), str(b), '--format=csv',
                                              '--rows=betags,a:random', '--against=a:random']))
    said = self.enterContext(mock.patch('sys.stdout', io.StringIO()))
    cli.main()
    self.assertEqual(list(dict.fromkeys(r['row'] for r in csv.DictReader(io.StringIO(
        said.getvalue())))), ['a:betags', 'a:random', 'b:betags'])

  def test_folders_of_one_name_are_told_apart(self):
    a = self.run_at('x/run', {'betags': self.good})
    b = self.run_at('y/run', {'betags': self.good})
    self.assertEqual(list(compare.compare([a, b])['rows']), [f'{a}:betags', f'{b}:betags'])

  @parameterized.parameters(
      (dict(data='d2'), 'differ in their data.*a: d1; b: d2'),
      (dict(protocol='q'), 'differ in their protocol.*a: p; b: q'),
      (dict(users=[f'v{i}' for i in range(60)]), 'no user is ranked in all of a, b'),
      (dict(data=''), 'names no data_fingerprint'))
  def test_runs_that_do_not_compare_say_why(self, other, words):
    a = self.run_at('a', {'betags': self.good})
    b = self.run_at('b', {'betags': self.good}, **other)
    with self.assertRaisesRegex(DataError, words):
      compare.compare([a, b])

  def test_missing_or_broken_files_are_named(self):
    a = self.run_at('a', {'betags': self.good})
    with self.assertRaisesRegex(DataError, 'name each run once'):
      compare.compare([a, a])
    with self.assertRaisesRegex(DataError, 'none/results.json does not exist'):
      compare.compare([self.room / 'none'])
    (a / 'ranks.parquet').write_bytes(b'nothing')
    with self.assertRaisesRegex(DataError, 'ranks.parquet is no Parquet file'):
      compare.compare([a])
    (a / 'results.json').write_text('{')
    with self.assertRaisesRegex(DataError, 'not readable JSON'):
      compare.compare([a])

  def test_every_rendering_shows_the_same_figures(self):
    a = self.run_at('a_1', {'betags': self.good, 'popularity': self.bad})
    table = compare.compare([a])
    cell = table['rows']['a_1:betags']['HR@10']
    shown = '{value:.4f}'.format(**cell), '[{low:.4f}, {high:.4f}]'.format(**cell)
    p = f'{table["tests"]["a_1:betags>a_1:popularity"]["HR@10"]:.4f}'
    text = compare.text_table(table)
    for words in (*shown, p, 'a_1:betags', 'HR@10'):
      self.assertIn(words, text)
    markdown = compare.markdown_table(table)
    self.assertIn(f'| a_1:betags | 60 | **{shown[0]}** {shown[1]} |', markdown)
    self.assertIn(f'| a_1:betags>a_1:popularity | {p} |', markdown)
    latex = compare.latex_table(table)
    self.assertIn(rf'a\_1:betags & 60 & \textbf{{{shown[0]}}} {shown[1]} &', latex)
    self.assertIn(r'a\_1:betags\textgreater{}a\_1:popularity', latex)
    lines = list(csv.DictReader(io.StringIO(compare.csv_table(table))))
    self.assertLen(lines, 6)
    self.assertEqual(float(lines[0]['value']), cell['value'])
    self.assertEqual(lines[0]['p:a_1:betags'], '')
    self.assertAlmostEqual(float(lines[0]['p:a_1:popularity']), float(p), places=4)
    self.assertEqual(lines[0]['p:a_1:popularity'], lines[3]['p:a_1:betags'])


class FilesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'x.parquet'

  def test_ranks_come_back_and_equal_calls_write_equal_bytes(self):
    rows = {'b': np.array([3, 0, 7], np.int32), 'a': np.array([1, 1, 2], np.int64)}
    results_lib.write_ranks(self.path, ['x', 'ü', '3'], rows)
    users, found = results_lib.read_ranks(self.path)
    self.assertEqual((users, list(found)), (('x', 'ü', '3'), ['b', 'a']))
    for row, ranks in rows.items():
      np.testing.assert_array_equal(found[row], ranks)
      self.assertEqual(found[row].dtype, np.int32)
    self.assertEqual(str(pq.read_schema(self.path).remove_metadata()),
                     'user: string\nrow: string\nrank: int32')
    first = self.path.read_bytes()
    results_lib.write_ranks(self.path, ['x', 'ü', '3'], rows)
    self.assertEqual(self.path.read_bytes(), first)
    self.assertEqual([p.name for p in self.path.parent.iterdir()], ['x.parquet'])

  def test_groups_stand_beside_ranks(self):
    masks = {'head': np.array([True, False]), 'short': np.array([True, True])}
    results_lib.write_ranks(
      self.path, ['x', 'y'], {'a': np.array([1, 2]), 'b': np.array([3, 4])}, masks
    )
    self.assertEqual(results_lib.read_groups(self.path), {'x': ['head', 'short'], 'y': ['short']})
    self.assertEqual(list(results_lib.read_ranks(self.path)[1]), ['a', 'b'])
    results_lib.write_ranks(self.path, ['x'], {'a': np.array([1])})
    self.assertEqual(results_lib.read_groups(self.path), {})

  def test_lines_may_stand_in_any_order_but_rows_must_rank_the_same_users(self):
    results_lib.write_ranks(self.path, ['x', 'y'], {'a': np.array([1, 2]), 'b': np.array([3, 4])})
    table = pq.read_table(self.path)
    pq.write_table(table.take([3, 1, 0, 2]), self.path)
    users, found = results_lib.read_ranks(self.path)
    self.assertEqual({u: r for u, r in zip(users, found['a'].tolist())}, {'x': 1, 'y': 2})
    pq.write_table(table.take([0, 1, 2]), self.path)
    with self.assertRaisesRegex(DataError, 'row b does not rank the same users as row a'):
      results_lib.read_ranks(self.path)
    pq.write_table(table.drop_columns(['rank']), self.path)
    with self.assertRaisesRegex(DataError, 'no Parquet file with columns'):
      results_lib.read_ranks(self.path)

  def test_bad_ranks_are_not_written(self):
    for users, ranks in ((['x'], [1, 2]), (['x', 'y'], [1.5, 2]), (['x', 'x'], [1, 2])):
      with self.assertRaises(DataError):
        results_lib.write_ranks(self.path, users, {'a': np.array(ranks)})
    self.assertFalse(self.path.exists())

  def test_predictions_leave_out_empty_places(self):
    items = [['i1', 'i2', None], ['i3', '', None]]
    results_lib.write_predictions(self.path, ['x', 'y'], items, np.arange(6).reshape(2, 3))
    found = pq.read_table(self.path).to_pylist()
    self.assertEqual([tuple(r.values()) for r in found],
                     [('x', 1, 'i1', 0), ('x', 2, 'i2', 1), ('y', 1, 'i3', 3)])
    with self.assertRaisesRegex(DataError, 'do not belong together'):
      results_lib.write_predictions(self.path, ['x'], items, np.zeros((2, 3)))

  def test_a_folder_that_cannot_be_written_is_named(self):
    with self.assertRaisesRegex(WorkdirError, 'cannot write .*gone'):
      results_lib.write_ranks(self.path.parent / 'gone' / 'x', ['x'], {'a': np.array([1])})


if __name__ == '__main__':
  absltest.main()
