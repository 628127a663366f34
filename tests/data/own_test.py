"""Files as people have them, from the command line: what is read is right and said, or refused."""
import contextlib
import gzip
import importlib.util
import io
import json
import pathlib
import shutil
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from recjax import cli
from recjax.data import loading

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data' / 'cases'
HEAD = 'user_id,item_id,timestamp\n'
LOG = HEAD + ''.join(f'u{n % 2},{n % 4 + 1},{1_700_000_000 + n}\n' for n in range(12))


@absltest.skipIf(importlib.util.find_spec('duckdb') is None, 'duckdb is not installed; pip install '
                 '"recjax[data]"')
class OwnTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.out = self.folder / 'out'

  def write(self, name, data):
    path = self.folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)

  def prepare(self, source, path, *flags):
    """-> exit code, what was printed"""
    said = io.StringIO()
    shutil.rmtree(self.out, ignore_errors=True)
    words = ['recjax', 'prepare', source, str(path), f'--out={self.out}', *flags]
    with (mock.patch.object(sys, 'argv', words), contextlib.redirect_stdout(said),
          contextlib.redirect_stderr(said)):
      try:
        cli.main()
        code = 0
      except SystemExit as stop:
        code = stop.code
    if not code:
      self.assertIn((self.out / 'README.md').read_text(), said.getvalue())
    return code, ' '.join(said.getvalue().split())

  def good(self, source, path, *flags, says=()):
    """-> the data set of a preparation that must succeed, and say these words"""
    code, said = self.prepare(source, path, *flags)
    self.assertEqual(code, 0, said)
    for words in says:
      self.assertIn(words, said)
    return loading.load_data(self.out)

  def refused(self, source, path, *flags, says=()):
    code, said = self.prepare(source, path, *flags)
    self.assertEqual(code, 2, said)
    for words in says:
      self.assertIn(words, said)
    self.assertFalse(self.out.exists())

  def history(self, data, user=0):
    return [data.catalog.id_of(i) for i in data.interactions.history(user)]

  def column(self, name, values):
    return self.write('log.csv', f'user_id,item_id,{name}\n' + ''.join(
        f'u,i{n},{value}\n' for n, value in enumerate(values)))

  @parameterized.parameters(
      'created_at', 'order_ts', 'order_date', 'event_time', 'Purchased On', 'zeit', 'whatever')
  def test_a_column_of_times_orders_histories_whatever_its_name(self, name):
    for values in (['2024-01-03', '2024-01-02', '2024-01-01'], [1700000003, 1700000002, 1700000001],
                   ['3.1.2024 13:00', '2.1.2024', '31.12.2023']):
      data = self.good('table', self.column(name, values), says=[f'Times: column `{name}` (found'])
      self.assertEqual(self.history(data), ['i2', 'i1', 'i0'])

  def test_without_one_time_column_it_stops_and_asks(self):
    for head, row in (('qty', '3'), ('order_no', '1700000003'), ('note', 'x')):
      self.refused('table', self.column(head, [row] * 3), says=[
          'no column of times is found', f'it has user_id, item_id, {head}', '--columns=time=NAME',
          '--order=file'])
    path = self.write('log.csv', 'user_id,item_id,created_at,updated_at,n\n'
                      'u,a,2024-01-02,2024-01-03,1\nu,b,2024-01-01,2024-01-04,2\n')
    self.refused('table', path, says=['created_at, updated_at could do', '--order=file'])
    path2 = self.write('ends.csv', 'user_id,item_id,session_start,session_end\n'
                       'u,a,1700000001,1700000002\n')
    self.refused('table', path2, says=['session_start, session_end could be one by its numbers'])
    path2 = self.write('two.csv', 'user_id,item_id,timestamp,shipped_ts\n'
                       'u,a,1700000001,1700000002\n')
    self.refused('table', path2, says=['timestamp, shipped_ts could do'])
    path2 = self.write('parts.csv', 'user_id,item_id,date,time\nu,a,2024-01-02,10:00\n')
    data = self.good('table', path2, says=['column `date+time` (found by its name)'])
    self.assertEqual(data.interactions.times.tolist(), [1704189600])
    path2 = self.write('hours.csv', 'user_id,item_id,date,from,to\nu,a,2024-01-02,10:00,11:00\n')
    self.refused('table', path2, says=['date, from, to could do', '--columns=time=DATE+HOUR'])
    data = self.good('table', path2, '--columns=time=date+to')
    self.assertEqual(data.interactions.times.tolist(), [1704193200])
    for flag, want in (('--columns=time=created_at', ['b', 'a']), ('--order=file', ['a', 'b']),
                       ('--columns=time=updated_at', ['a', 'b'])):
      self.assertEqual(self.history(self.good('table', path, flag)), want, flag)
    self.good('table', path, '--order=file', says=['No times: histories have'])
    self.refused('table', path, '--order=file', '--columns=time=created_at', says=['exclude'])
    self.refused('table', path, '--order=file', '--start=2024-01-01', says=['have no times'])

  @parameterized.parameters(
      ['1700000000.75', '1700000000.5', '1700000000.25'],
      ['1700000000003', '1700000000002', '1700000000001'],
      ['1.7000000003e9', '1.7000000002e9', '1.7000000001e9'],
      ['0.75', '0.5', '0.25'], ['17897.75', '17897.5', '17897.25'],
      ['2024-01-01T00:00:00.000003', '2024-01-01T00:00:00.000002', '2024-01-01T00:00:00.000001'],
      ['2024-01-01 00:00:00.3Z', '2024-01-01T02:00:00.2+02:00', '2023-12-31T23:00:00.1-01:00'])
  def test_order_within_a_second_is_kept(self, *values):
    data = self.good('table', self.column('timestamp', values))
    self.assertEqual(self.history(data), ['i2', 'i1', 'i0'])
    self.assertLen(set(data.interactions.times.tolist()), 3)
    atomic = self.write('log.inter', 'user_id:token\titem_id:token\ttimestamp:float\n' + ''.join(
        f'u\ti{n}\t{value}\n' for n, value in enumerate(values)))
    self.assertEqual(self.history(self.good('table', atomic)), ['i2', 'i1', 'i0'])

  def test_bounds_keep_the_right_rows_in_every_unit(self):
    at = 1704067200  # 2024-01-01
    for many in (1, 10 ** 3, 10 ** 6, 10 ** 9):
      rows = [at * many - 1, at * many, (at + 86400) * many - 1, (at + 86400) * many]
      data = self.good('table', self.column('timestamp', rows), '--start=2024-01-01',
                       '--end=2024-01-01')
      self.assertEqual(self.history(data), ['i1', 'i2'], many)
    data = self.good('table', self.column('timestamp', [20231231, 20240101, 20240102]),
                     '--start=2024-01-01', '--end=20240101', says=['days written YYYYMMDD'])
    self.assertEqual(self.history(data), ['i1'])
    data = self.good('table', self.column('timestamp', [f'{at}.5', f'{at - 1}.9']), f'--start={at}')
    self.assertEqual(self.history(data), ['i0'])
    self.refused('table', self.column('timestamp', [at, at * 1000]), '--start=2024-01-01', says=[
        '1 seconds since 1970 (line 2', '1 milliseconds since 1970 (line 3', '--time-format'])
    self.refused('table', self.column('timestamp', [at] * 3), f'--start={at}000',
                 says=['looks like milliseconds since 1970, and the times are seconds'])
    self.refused('table', self.column('timestamp', [1, 2]), '--start=2024-01-01',
                 says=['plain numbers, not dates'])
    self.good('table', self.column('timestamp', [at] * 200 + [0, at * 1000]), says=[
        '2 of 202 rows of interactions could not be used', 'log.csv line 202: the time looks like '
        'plain numbers', 'log.csv line 203: the time looks like milliseconds'])

  def test_dates_of_either_order_are_asked_for(self):
    path = self.column('timestamp', ['02/03/2024', '03/02/2024'])
    self.refused('table', path, says=['02/03/2024', '--time-format=d/m/y', '--time-format=m/d/y'])
    for form, want in (('d/m/y', ['i1', 'i0']), ('m/d/y', ['i0', 'i1']),
                       ('%d/%m/%Y', ['i1', 'i0'])):
      data = self.good('table', path, f'--time-format={form}', says=['as --time-format says'])
      self.assertEqual(self.history(data), want)

  def test_in_tab_separated_files_quotes_are_text(self):
    titles = ['"Wheel" of fortune', '5\'11" tall', '"Heroes"', '"Open', 'close"', '"', 'a ""b""',
              "it's", '""', 'plain']
    items = self.write('news.tsv', 'item_id\ttitle\n' + ''.join(
        f'{n}\t{title}\n' for n, title in enumerate(titles)))
    log = self.write('log.tsv', HEAD.replace(',', '\t') + ''.join(
        f'u\t{n}\t{1_700_000_000 + n}\n' for n in range(10)))
    data = self.good('table', log, f'--items={items}', says=['0 of 10 rows of items'])
    self.assertEqual(data.catalog.columns['title'], [t if t != '""' else '' for t in titles])

  def test_quotes_with_backslashes_stay_in_their_rows(self):
    items = self.write('goods.csv', b'"item_id";"title"\r\n"1";"Say \\"hi\\" &amp; go"\r\n'
                       b'"2";"Ends \\"so\\""\r\n"3";"a; b"\r\n"4";"For\xeat"\r\n')
    log = self.write('log.csv', LOG)
    data = self.good('table', log, f'--items={items}', '--encoding=latin-1')
    self.assertEqual(data.catalog.columns['title'],
                     ['Say "hi" & go', 'Ends "so"', 'a; b', 'For\xeat'])
    data = self.good('table', log, f'--items={items}', says=[
        "read as cp1252, guessed from letters as in 'For\xeat' (cp1250 would read 'For\u0119t': "
        '--encoding=cp1250)'])
    self.assertEqual(data.catalog.columns['title'][3], 'For\xeat')
    self.refused('table', log, '--encoding=klingon', says=['none that is'])

  def test_lists_and_junk_in_cells(self):
    items = self.write('goods.csv', 'item_id,title,categories,price\n'
                       '1,None,"[\'A & B\', \'C\']","$1,299.00"\n2,—,[],—\n'
                       '3,Good &amp; <b>cheap</b>,"[""A"", null]",None\n4,Four,A|None|B,5\n')
    data = self.good('table', self.write('log.csv', LOG), f'--items={items}', says=[
        '2 times, title: None, [] or a dash', '2 times, price: None, [] or a dash',
        '2 times, categories: lists written as texts', '2 of 4 items have no title'])
    self.assertEqual(data.catalog.columns, {
        'title': ['', '', 'Good & cheap', 'Four'], 'price': [1299, None, None, 5],
        'categories': [['A & B', 'C'], None, ['A'], ['A', 'B']]})
    report = json.loads((self.out / 'prepared.json').read_text())
    self.assertEqual(report['told']['goods']['cleaned']['title'],
                     {'None, [] or a dash': 2, 'entities decoded': 1, 'markup taken off': 1})

  def test_what_was_scraped_from_pages(self):
    prices = {'$1,299.00': 1299, '\u2014': None, 'None': None, '.a-box{color:#fff}': None, '': None,
              '12,99 \u20ac': 12.99, 'from 12.99': 'from 12.99'}
    goods = [{'parent_asin': f'B{n}', 'asin': f'B{n}', 'title': 'A &amp;amp; <span id="x">B</span>',
              'price': price, 'categories': ['C &amp; D', '</span></span>'], 'store': 'by\n  Maker'}
             for n, price in enumerate(prices)]
    goods[1]['title'] = 'var aPageStart = (new Date()).getTime();\nvar ue_t0=+new Date();'
    meta = self.write('meta.jsonl', ''.join(json.dumps(row) + '\n' for row in goods).replace(
        '"price": ""', '"price": NaN'))
    for edition, names, many in (('2023', ('user_id', 'parent_asin', 'timestamp', 'rating'), 1000),
                                 ('2018', ('reviewerID', 'asin', 'unixReviewTime', 'overall'), 1)):
      log = self.write('r.jsonl', ''.join(json.dumps(dict(zip(names, ('u', f'B{n}', (
          1_700_000_000 + n) * many, 5.0)))) + '\n' for n in range(len(prices))))
      data = self.good(f'amazon{edition}', log, f'--meta={meta}', says=[
          '1 times, title: page script or CSS', '1 times, price: page script or CSS',
          '2 times, price: None, [] or a dash', '1 times, price: kept as text',
          f'{len(prices)} times, categories: nothing but markup'])
      self.assertEqual(data.catalog.columns, {
          'title': ['A & B', '', *['A & B'] * 5], 'price': list(prices.values()),
          'brand': ['Maker'] * 7, 'categories': [['C & D']] * 7})
      wrong = {'2023': '2018', '2018': '2023'}[edition]
      self.refused(f'amazon{wrong}', log)

  def test_ids_that_became_floats(self):
    floats = LOG.replace(',1,', ',1.0,').replace(',2,', ',2.0,').replace(
        ',3,', ',3.0,').replace(',4,', ',4.0,')
    items = 'item_id,title\n' + ''.join(f'{n},T{n}\n' for n in range(1, 5))
    for log, goods in ((floats, items), (LOG, items.replace(',T', '.0,T'))):
      data = self.good('table', self.write('log.csv', log), '--items=' + self.write('g.csv', goods),
                       says=['item_id: numbers like 17.0 are read as 17'])
      self.assertEqual(data.catalog.columns['title'], ['T1', 'T2', 'T3', 'T4'])
    self.good('table', self.write('log.csv', floats + 'u,x,1700000000\n'),
              says=['ids like 17.0 beside others that are no numbers; kept as they are'])
    self.good('table', self.write('log.csv', LOG), '--items=' + self.write(
        'g.csv', items.replace('title', 'words')), says=[
            'not read: `words`', 'WARNING: NO item has a title', '--item-columns=title=NAME'])
    zeros = HEAD + ''.join(f'u,00000{n},{1_700_000_000 + n}\n' for n in range(1, 5))
    data = self.good('table', self.write('log.csv', zeros), '--items=' + self.write('g.csv', items),
                     says=['WARNING: NO item of the interactions is in the items file',
                           "The interactions have '000001'", "items file has '1'"])
    self.assertEqual(data.catalog.ids, ('000001', '000002', '000003', '000004'))

  def test_repeated_rows_are_counted(self):
    text = LOG + LOG.splitlines()[1] + '\n'
    self.good('table', self.write('log.csv', text), says=['1 rows repeat the user, item and time'])
    data = self.good('table', self.write('log.csv', LOG))
    self.assertNotIn('repeat', (self.out / 'README.md').read_text())
    self.assertLen(data.interactions.items, 12)
    self.good('table', self.write('log.csv', HEAD + 'u,a,1700000000\nu,a,1700000001\n'),
              '--order=file', says=['1 rows repeat the user and item of'])

  @parameterized.parameters(
      ('log.csv', LOG.replace(',', ';').encode()), ('log.csv', LOG.replace(',', '|').encode()),
      ('log.txt', LOG.replace(',', ' ').encode()), ('log.csv', LOG.encode('utf-16')),
      ('log.csv', LOG.encode('utf-16-le')), ('log.csv', gzip.compress(LOG.encode())),
      ('log.csv.gz', LOG.encode()), ('log.csv', LOG.encode('utf-8-sig')),
      ('log.data', LOG.encode()),
      ('log.csv', ''.join(f'{n or ""},{line}\n' for n, line in enumerate(
          LOG.splitlines())).encode()))
  def test_separators_encodings_and_a_column_of_row_numbers(self, name, text):
    data = self.good('table', self.write(name, text))
    self.assertEqual(self.history(data), ['1', '3'] * 3)

  @parameterized.parameters(
      ('x.csv', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'Git LFS'),
      ('x.json', b'[\n {"user_id": "u"}\n]', 'which column is the item? It has user_id'),
      ('x.jsonl', b'[{"user_id": "u"}', 'JSON array that is cut off'),
      ('x.json', b'{\n "u": ["i"]\n}', 'one JSON object over many lines'),
      ('x.csv', b'PK\x03\x04....', 'a zip archive'), ('x.csv', b'PAR1....', 'as Parquet'),
      ('x.csv', b'\n<!DOCTYPE html><html>', 'a web page'), ('x.csv', b'a,b\r1,2\r', 'CR alone'),
      ('x.csv', b'196,242,3,881250949\n186,302,3,891717742\n', '--header'))
  def test_files_of_another_kind_are_named(self, name, data, what):
    self.refused('table', self.write(name, data), says=[what])

  def test_steam_users_that_differ_by_blanks_stay_different(self):
    names = ['Kim', 'Kim ', ' Kim', '\xa0', 'tab\tname', 'tab name']
    rows = [{'username': name, 'product_id': str(n % 2), 'date': f'2018-01-0{n + 1}'}
            for name in names for n in range(3)]
    games = [{'id': str(n), 'app_name': f'Game {n}\u2122 &amp; co', 'genres': ['Indie &amp; More'],
              'price': 'Free'} for n in range(2)]
    paths = [self.write(name, gzip.compress(''.join(f'{row}\n' for row in table).encode()))
             for name, table in (('r.json.gz', rows), ('g.json.gz', games))]
    data = self.good('steam', paths[0], f'--games={paths[1]}')
    self.assertLen(data.interactions, 6)
    self.assertEqual(data.catalog.columns['title'], ['Game 0\u2122 & co', 'Game 1\u2122 & co'])
    self.assertEqual(data.catalog.columns['categories'], [['Indie & More']] * 2)

  def test_lines_without_users_are_told_or_asked_for(self):
    path = self.write('x.txt', '5 6 7\n6 5\n7 5 6\n6 7 5 6\n')
    self.refused('sequences', path, says=['--users=first', '--users=none'])
    data = self.good('sequences', path, '--users=none', says=['each line is a user'])
    self.assertEqual([self.history(data, u) for u in range(4)],
                     [['5', '6', '7'], ['6', '5'], ['7', '5', '6'], ['6', '7', '5', '6']])
    data = self.good('sequences', path, '--users=first')
    self.assertEqual(self.history(data), ['6', '7'])
    for text in ('1 2 3\n2 1 3\n3 3 1\n', 'u 1 2\nv 2\nu 3 4\n', '7 1\n7 2\n2 7\n',
                 '0 1 2\n1 0 2\n'):
      data = self.good('sequences', self.write('y.txt', text), says=['is its user (told'])
      self.assertEqual(sum(data.interactions.lengths()), len(text.split()) - text.count('\n'))

  @parameterized.parameters(
      ('shop-export/bestellungen.csv', ['--items=shop-export/produkte.csv'], 121, 4),
      ('tsv-quotes/behaviors.tsv', ['--items=tsv-quotes/news.tsv'], 211, 0),
      ('float-ids/log.csv', ['--items=float-ids/goods.csv'], 30, 0),
      ('lists-as-text/All_Beauty.csv', ['--items=lists-as-text/raw_meta_All_Beauty.csv'], 12, 0),
      ('bookcrossing/BX-Book-Ratings.csv', ['--items=bookcrossing/BX-Books.csv', '--order=file'],
       6, 0),
      ('mislabelled/really-gz.csv', [], 20, 20), ('mislabelled/array.json', [], 1, 1),
      ('separators/utf16.tsv', [], 20, 20), ('separators/utf16.csv', [], 20, 20),
      ('separators/blank.txt', [], 20, 20), ('separators/pipe.csv', [], 20, 20),
      ('separators/semicolon.csv', [], 20, 20), ('separators/index.csv', [], 20, 20),
      ('shop-export/semi.csv', [], 3, 3), ('time-columns/us_date.csv', [], 2, 2),
      ('time-columns/de_date.csv', [], 2, 2))
  def test_cases(self, path, flags, items, untitled):
    if not SHARED.is_dir():
      self.skipTest('needs ../shared/data/cases')
    data = self.good('table', SHARED / path, *[f.replace('--items=', f'--items={SHARED}/')
                                               for f in flags])
    self.assertLen(data.catalog, items)
    self.assertEqual(data.catalog.columns['title'].count(''), untitled)
    self.assertEqual(json.loads((self.out / 'prepared.json').read_text())['repeated'],
                     30 if 'bestell' in path else 4 if 'array' in path else 0)
    if 'Books' in str(flags):
      self.assertIn('Fran\xe7ois et la for\xeat', data.catalog.columns['title'])


if __name__ == '__main__':
  absltest.main()
