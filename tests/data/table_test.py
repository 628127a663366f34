"""A user's own tables, from the command line to a data set that loads; every mistake is named."""
import contextlib
import importlib.util
import io
import json
import pathlib
import random
import sys
import zipfile
from unittest import mock

from absl.testing import absltest, parameterized

from recjax import cli
from recjax.data import array_record, loading
from recjax.data.prepare import duckdb_engine, rules
from recjax.data.sources import events, table
from recjax.errors import ConfigError, DataError
from tests.long import long_but

try:
  import duckdb
except ImportError:
  duckdb = None

ROWS = [('ann', 'x', '2024-01-02', 5), ('ann', 'y', '2024-01-03', 4), ('bob', 'y', '2024-01-01', 2),
        ('bob', 'x', '2024-01-05 10:00', 3), ('bob', 'z', '2024-01-04', 1)]


class TableTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, text):
    path = self.folder / name
    path.write_text(text)
    return str(path)

  def interactions(self, header='customer,sku,when,stars'):
    return self.write('log.csv', header + '\n' + ''.join(','.join(map(str, r)) + '\n'
                                                         for r in ROWS))

  def run_cli(self, *words):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (mock.patch.object(sys, 'argv', ['recjax', 'prepare', *words]),
          contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
      try:
        cli.main()
      except SystemExit as stop:
        code = stop.code
    return code, out.getvalue(), err.getvalue()

  @absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
  def test_from_the_command_line_to_a_data_set(self):
    items = self.write('goods.jsonl', ''.join(json.dumps(r) + '\n' for r in (
        {'id': 'y', 'name': 'Why', 'kind': 'A|B', 'cost': 2.5}, {'id': 'x', 'name': ' Ex  x '})))
    out = str(self.folder / 'data')
    flags = ('--columns=user=customer,item=sku,time=when,rating=stars', f'--out={out}')
    code, said, _ = self.run_cli(
        'table', self.interactions(), *flags, f'--items={items}', '--untitled=drop', '--k-core=2',
        '--item-columns=item=id,categories=kind,price=cost', '--layout=parquet')
    self.assertEqual(code, 0)
    data = loading.load_data(out)
    self.assertEqual(data.catalog.ids, ('y', 'x'))
    self.assertEqual(data.catalog.columns, {'title': ['Why', 'Ex x'], 'price': [2.5, None],
                                            'categories': [['A', 'B'], None]})
    self.assertEqual(data.interactions.items.tolist(), [2, 1, 1, 2])
    self.assertEqual(data.interactions.times.tolist()[0], 1704153600)
    self.assertEqual(data.interactions.ratings.tolist(), [5, 4, 2, 3])
    for words in ('| as read | 2 | 3 | 5 |', '| untitled=drop | 2 | 2 | 4 |',
                  '1 items of the interactions are not in', '5 rows in', f'data set: {out}'):
      self.assertIn(words, said)
    self.assertIn('untitled=drop', (self.folder / 'data' / 'README.md').read_text())
    code, _, error = self.run_cli('table', self.interactions(), *flags)
    self.assertEqual(code, 2)
    self.assertIn('exists already', error)
    code, _, _ = self.run_cli('table', self.interactions(), *flags, '--overwrite')
    self.assertEqual((code, len(loading.load_data(out).catalog)), (0, 3))

  @parameterized.parameters(('recbole', 'x.inter'), ('sequences', 'x.ids.json'),
                            ('etegrec', 'x.test.jsonl'), ('reclm', 'category.jsonl'))
  def test_export(self, to, name):
    out = self.folder / 'x'
    code, _, _ = self.run_cli('export', 'sample', f'--to={to}', f'--out={out}')
    self.assertEqual(code, 0)
    self.assertGreater((out / name).stat().st_size, 1000)

  @absltest.skipIf(importlib.util.find_spec('tensorflow_datasets') is None, 'needs TFDS')
  def test_records_of_a_data_set(self):
    self.write('items.jsonl', '{"item_id": "a"}\n')
    self.write('sequences.jsonl', '{"user_id": "u", "items": ["a", "a"]}\n')
    code, said, _ = self.run_cli('records', str(self.folder), f'--out={self.folder / "tfds"}')
    self.assertEqual(code, 0)
    stored = array_record.load(said.split('data set: ')[1].strip())
    self.assertEqual(stored.source[0]['items'].tolist(), [1, 1])

  @absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
  def test_an_archive_is_read_without_being_unpacked_by_hand(self):
    path = self.folder / 'ml-1m.zip'
    out = self.folder / 'films'
    flags = ('movielens', str(path), f'--out={out}')
    code, _, error = self.run_cli(*flags)
    self.assertEqual(code, 2)
    self.assertIn('ml-1m.zip does not exist; fetch it from https://files.grouplens.org', error)
    self.assertIn('--download', error)
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('ml-1m/ratings.dat', '1::1193::5::978300760\n' * 2)
      archive.writestr('ml-1m/movies.dat', '1193::One (1975)::Drama\n')
      archive.writestr('ml-1m/README', 'of GroupLens')
    code, said, _ = self.run_cli(*flags, '--variant=all')
    self.assertEqual(code, 0)
    self.assertIn('Prepared from ml-1m.', said)
    self.assertIn('NOT as published: 6,040 users', said)
    self.assertEqual(loading.load_data(out).interactions.items.tolist(), [1, 1])
    self.assertCountEqual([p.name for p in self.folder.iterdir()], ['ml-1m.zip', 'films'])

  def events(self, path, **given):
    return [event for _, _, event, _ in table.source(path, **given).interactions]

  def test_well_known_names_need_no_flag(self):
    found = self.events(self.interactions('User_ID,parent_asin,Timestamp,overall'))
    self.assertEqual(found[1], ('ann', 'y', 1704240000, 4.0))
    found = self.events(self.interactions('user_id:token,item_id:token,date:token,note:token'))
    self.assertEqual(found[1], ('ann', 'y', 1704240000, None))

  def test_a_column_can_be_left_out_or_lack_names(self):
    path = self.interactions('user,item,time,rating')
    self.assertEqual(self.events(path, columns='time=,rating=')[0], ('ann', 'x', None, None))
    bare = self.write('bare.tsv', 'ann\tx\t7\n')
    self.assertEqual(self.events(bare, header='user,item,time'), [('ann', 'x', 7, None)])

  @absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
  @parameterized.parameters(*range(60))
  @long_but(*range(8))
  def test_counts_reconcile_for_damaged_tables(self, seed):
    damage = ['"', '\x00', '\r', '\n', ',', '\ufeff', '{', '\\ud800', 'nan', 'x' * 200_000, '']
    draw = random.Random(seed)
    if seed % 2:
      text = ''.join(json.dumps({'user': f'u{n % 9}', 'item': n % 7, 'time': n}) + '\n'
                     for n in range(60))
    else:
      text = 'user,item,time\n' + ''.join(f'u{n % 9},"i {n % 7}",{n}\n' for n in range(60))
    for _ in range(draw.randint(0, 8)):
      at = draw.randrange(16, len(text))
      text = text[:at] + draw.choice(damage) + text[at + draw.randint(0, 3):]
    path = self.folder / ('log.jsonl' if seed % 2 else 'log.csv')
    path.write_bytes(text.encode().replace(b'i 3', b'\xff', draw.randint(0, 2)))
    report = duckdb_engine.prepare(
      table.source(path),
      self.folder / 'out',
      rules.Rules(max_bad=1.0),
      say=lambda said: None,
    )
    bad = report['bad']['interactions']
    self.assertEqual(sum(bad['why'].values()), bad['bad'])
    self.assertEqual(report['steps'][0]['interactions'], bad['rows'] - bad['bad'])
    data = loading.load_data(self.folder / 'out')
    self.assertLen(data.interactions.items, bad['rows'] - bad['bad'])
    if seed % 2:
      self.assertEqual(bad['rows'], sum(bool(s.strip()) for s in path.read_bytes().split(b'\n')))

  def test_a_name_as_it_is_written_comes_before_one_with_signs_in_it(self):
    path = self.write('log.jsonl', ''.join(json.dumps(
        {'user': 'ann', 'item': f'i{n}', name: n}) + '\n' for n, name in (
            (1, 'time'), (2, 'tim{e'), (3, 'time'))))
    self.assertEqual([event and event[2] for event in self.events(path)], [1, None, 3])

  @parameterized.parameters(
      ('Resolved', ''), ('resource', ''), ('Reso', 'return'), ('avoid', ''),
      ('order_void', 'return'), ('removefromcart', 'return'), ('Storno', 'return'),
      ('addtocart', 'cart'), ('pv', 'view'), ('pvp', ''), ('Bestellung', 'purchase'))
  def test_words_of_events(self, value, kind):
    self.assertEqual(events.kind_of(value), kind)

  def test_mistakes_in_the_mapping_are_named(self):
    path = self.interactions('person,thing,when,stars')
    for columns, why in (('', r'log.csv: which column is the user\?.*person, thing.*--columns='),
                         ('user=persons', "no column 'persons'; it has person, thing"),
                         ('user', 'OURS=THEIRS'), ('users=person', "'users' is none of")):
      with self.assertRaisesRegex(ConfigError, why):
        table.source(path, columns=columns)
    with self.assertRaisesRegex(ConfigError, r'which column is the item\?.*--item-columns'):
      table.source(self.interactions('user,item,time,rating'), self.write('i.csv', 'a,b\n1,2\n'))
    for name, text, why in (('e.csv', '', 'no row that can be read'),
                            ('b.jsonl', 'no\n', 'b.jsonl line 1: not JSON')):
      with self.assertRaisesRegex(DataError, why):
        table.source(self.write(name, text))

  @absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
  def test_unknown_variants_are_refused(self):
    code, _, error = self.run_cli('table', self.interactions('user,item,time,rating'),
                                  '--out', str(self.folder / 'o'), '--variant=best')
    self.assertEqual(code, 2)
    self.assertIn('table has none', error)


if __name__ == '__main__':
  absltest.main()
