"""Raw rows: what is good comes through, what is not is named with its line, and nothing is lost."""
import gzip
import json
import pathlib
import random

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.data import raw_reader
from recjax.errors import ConfigError, DataError, UserError
from tests.long import examples, long

DAMAGE = [b'\xff\xfe', b'\x00', b'\r', b'\r\n', b'\n', b'"', b'\xef\xbb\xbf', b'{', b'[[[[', b',,,',
          b'\t', b'::', b'\\ud800', b'NaN', b'1e999', b'9' * 5000, b'a' * 5000, b'null',
          b'\xed\xa0\x80']

GOOD = {
    'x.csv': b'user,item,time\n' + b''.join(b'u%d,"i %d",%d\n' % (n, n, n) for n in range(8)),
    'x.inter': b'user:token\titem:token\ttime:float\n' + b'u\ti\t3\n' * 8,
    'x.jsonl': b''.join(b'{"user": "u%d", "item": %d, "time": %d}\n' % (n, n, n)
                        for n in range(8)),
    'x.json': b"{'user': 'u', 'item': u'\\u00e9', 'time': '2013-05-02'}\n" * 8,
    'x.dat': b'u::i::3\n' * 8,
}

HEADERS = {'x.dat': ('user', 'item', 'time')}


class RawTest(parameterized.TestCase):

  def write(self, name, data):
    path = pathlib.Path(self.create_tempdir().full_path) / name
    path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    return path

  def read(self, name, data, **given):
    return list(raw_reader.read(self.write(name, data), **given))

  def events(self, name, data, **given):
    path = self.write(name, data)
    return [
      (number, event[:3] if event else why)
      for _, number, event, why in raw_reader.to_interactions(
        path, raw_reader.read(path, **given), 'user', 'item', 'time'
      )
    ]

  def test_every_kind_of_table_gives_the_same_rows(self):
    import pyarrow as pa
    from pyarrow import parquet
    want = [('u1', 'i1', 5), ('u2', '7', 0)]
    texts = {
        'a.csv': b'\xef\xbb\xbfuser,item,time\r\nu1,"i1",5\r\n\r\nu2,7,0\r\n',
        'a.tsv.gz': b'user\titem\ttime\nu1\ti1\t5\nu2\t7\t0\n',
        'a.inter': b'user:token\titem:token\ttime:float\nu1\ti1\t5\nu2\t7\t0\n',
        'a.jsonl': b'{"user":"u1","item":"i1","time":5}\n\n{"user":"u2","item":7,"time":0}\n',
        'a.ndjson.gz': b'{"user":"u1","item":"i1","time":5}\n{"user":"u2","item":7,"time":0}'}
    for name, text in texts.items():
      self.assertEqual([e for _, e in self.events(name, text)], want, name)
    path = self.write('a.parquet', b'')
    parquet.write_table(pa.table({'user': ['u1', 'u2'], 'item': ['i1', '7'], 'time': [5, 0]}), path)
    rows = raw_reader.to_interactions(path, raw_reader.read(path), 'user', 'item', 'time')
    self.assertEqual([event[:3] for _, _, event, _ in rows], want)

  def test_columns_without_names_and_other_separators(self):
    rows = self.events('r.dat', b'1::2::3\n', header=('user', 'item', 'time'))
    self.assertEqual(rows, [(1, ('1', '2', 3))])
    rows = self.events('r.log', b'user|item|time\n1|2|3\n', sep='|')
    self.assertEqual(rows, [(2, ('1', '2', 3))])
    with self.assertRaisesRegex(ConfigError, r'r\.log: what kind of table.*--sep'):
      self.read('r.log', b'user|item\n')

  def test_lists_of_recbole_are_parted(self):
    row = self.read('r.item', b'item_id:token\tclass:token_seq\n1\tA B\n')[0][1]
    self.assertEqual(row, {'item_id': '1', 'class': ['A', 'B']})

  @parameterized.parameters(
      (b'u,i\n', '2 columns where the header has 3'), (b',i,3\n', 'user is empty'),
      (b'u,i,soon\n', 'the time is neither'), (b'u,i,\xff\n', 'not in the encoding'),
      (b'u\x01,i,3\n', 'control signs'), (b'u,"i"x,3\n', 'not a row of a table'),
      (b'u,i,nan\n', 'the time is neither'), (b'u,i,1e99\n', 'the time is neither'))
  def test_rows_of_tables_that_cannot_be_used(self, line, why):
    rows = self.events('x.csv', b'user,item,time\na,b,1\n' + line + b'c,d,2\n')
    self.assertEqual([rows[0], rows[2]], [(2, ('a', 'b', 1)), (4, ('c', 'd', 2))])
    self.assertEqual(rows[1][0], 3)
    self.assertIn(why, rows[1][1])

  @parameterized.parameters(
      (b'nonsense', 'not JSON'), (b'[1]', 'not a JSON object'), (b'{"user": NaN}', 'not JSON'),
      (b'\xff', 'not UTF-8'), (b'[' * 100_000, 'not JSON'), (b'{}', 'user is empty'),
      (b'{"user": [1], "item": 2, "time": 3}', 'neither a text nor a whole number'),
      (b'{"user": "\\ud800", "item": 2, "time": 3}', 'half a surrogate'),
      (b'{"user": 1, "item": 2, "time": true}', 'the time is neither'))
  def test_lines_of_json_that_cannot_be_used(self, line, why):
    good = b'{"user": 1, "item": 2, "time": 3}\n'
    rows = self.events('x.jsonl', good + line + b'\n' + good)
    self.assertEqual([rows[0], rows[2]], [(1, ('1', '2', 3)), (3, ('1', '2', 3))])
    self.assertEqual(rows[1][0], 2)
    self.assertIn(why, rows[1][1])

  def test_an_open_quote_costs_its_own_line_only(self):
    text = b'user,item,time\na,"b,1\n' + b''.join(b'u,i%d,1\n' % n for n in range(300))
    rows = self.events('x.csv', text)
    self.assertEqual(rows[0], (2, 'an open quote'))
    self.assertEqual([e[1] for _, e in rows[1:]], [f'i{n}' for n in range(300)])
    text = b'user,item,time\na,b,1\na,"b,1\nc,d,2\n'
    self.assertEqual(self.events('x.csv', text),
                     [(2, ('a', 'b', 1)), (3, 'an open quote'), (4, ('c', 'd', 2))])

  def test_texts_with_line_breaks_stay_whole(self):
    rows = self.read('x.csv', b'item,title\n1,"two\nlines"\n2,one\n')
    self.assertEqual([row['title'] for _, row, _ in rows], ['two\nlines', 'one'])

  def test_endless_lines_are_refused_and_the_next_ones_read(self):
    for name in ('x.jsonl', 'x.csv', 'x.csv.gz'):
      good = b'{"user": 1}\n' if 'json' in name else b'user,item\n1,2\n'
      rows = self.read(
        name,
        good
        + b'a' * (raw_reader.MAX_LINE_BYTES + 5)
        + b'\n'
        + good[-12 if 'json' in name else -4 :],
      )
      self.assertEqual([bool(row) for _, row, _ in rows], [True, False, True], name)

  def test_dicts_of_python_are_read_where_they_are_expected(self):
    text = b"{'user': u'Jo\\u00e3o', 'item': 1, 'time': 2}\n__import__('os').abort()\n"
    rows = self.read('x.json', text, literal=True)
    self.assertEqual(rows[0][1]['user'], 'Jo\xe3o')
    self.assertEqual(rows[1][1:], (None, 'neither JSON nor a Python dict'))
    self.assertEqual([why for _, _, why in self.read('x.json', text)], ['not JSON'] * 2)

  def test_files_that_cannot_be_read_are_named(self):
    path = self.write('x.jsonl.gz', b'{"a": 1}\n' * 999)
    path.write_bytes(path.read_bytes()[:-9])
    for bad, why in ((path, 'cut off'), (self.write('y.parquet', b'no'), 'Parquet'),
                     (path.with_name('none.csv'), 'does not exist'),
                     (self.write('z.csv', b'a,a\n'), 'name each column once')):
      with self.assertRaisesRegex(DataError, f'{bad.name}.*{why}'):
        list(raw_reader.read(bad))

  def test_texts_and_lists(self):
    self.assertEqual(raw_reader.as_text([' a\n b', None, 3]), 'a b 3')
    self.assertIsNone(raw_reader.as_text(float('nan')))
    self.assertEqual(raw_reader.as_list([['A', 'B'], ['A', ' C ']]), ['A', 'B', 'C'])
    self.assertEqual(raw_reader.as_list('A|B', '|'), ['A', 'B'])
    self.assertIsNone(raw_reader.as_list('', '|'))

  def test_damaged_files_leave_no_row_uncounted(self):
    self.check_damages(range(40))

  @long
  def test_ten_thousand_damaged_files_leave_no_row_uncounted(self):
    self.assertGreaterEqual(len(GOOD) * 2000, 10_000)
    self.check_damages(range(40, 2000))

  def check_damages(self, seeds):
    path = self.write('x', b'')
    for name, good in GOOD.items():
      target = path.with_name(name)
      for seed in seeds:
        draw = random.Random(f'{name}{seed}')
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
          at = draw.randrange(len(data) + 1)
          data[at:at + draw.choice([0, 0, 1, 9])] = draw.choice(DAMAGE)
        target.write_bytes(data)
        self.check(target, bytes(data), HEADERS.get(name, ()))

  def check(self, path, data, header):
    lines = data.removeprefix(b'\xef\xbb\xbf').split(b'\n')
    try:
      rows = list(
        raw_reader.to_interactions(
          path, raw_reader.read(path, header, literal=True), 'user', 'item', 'time'
        )
      )
    except UserError as error:
      self.assertIn(path.name, str(error))
      return
    numbers = [number for _, number, _, _ in rows]
    self.assertEqual(numbers, sorted(set(numbers)))
    for _, number, event, why in rows:
      self.assertNotEqual(event is None, why == '')
      self.assertBetween(number, 1, len(lines))
    if path.suffix in ('.jsonl', '.json'):
      self.assertLen(rows, sum(bool(line.strip()) for line in lines))
    elif path.suffix == '.dat':
      self.assertLen(rows, sum(bool(line.rstrip(b'\r')) for line in lines))

  @examples(20, 100)
  @hypothesis.given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1),
                                       st.integers(-2 ** 61, 2 ** 61)), max_size=20))
  def test_ids_of_any_letters_come_through_or_are_named(self, rows):
    data = ''.join(json.dumps({'user': u, 'item': i, 'time': t}) + '\n' for u, i, t in rows)
    for (user, item, time), (_, found) in zip(rows, self.events('x.jsonl', data.encode()),
                                              strict=True):
      if isinstance(found, tuple):
        self.assertEqual(found, (user.strip(), item.strip(), time))
      else:
        self.assertRegex(found, 'is empty|control signs or half')


if __name__ == '__main__':
  absltest.main()
