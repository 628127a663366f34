"""Beam's pipelines give what DuckDB gives, file for file; mistakes are said in the same words."""
import functools
import importlib.util
import pathlib
import random
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from recjax.data import raw_reader
from recjax.data.prepare import beam_engine, duckdb_engine
from recjax.data.prepare import rules as rules_lib
from recjax.data.sources import table
from recjax.errors import ConfigError, DataError, EmptyDatasetError
from tests.long import long

MISSING = [m for m in ('apache_beam', 'duckdb') if importlib.util.find_spec(m) is None]


def quiet(text):
  del text


def source(seed=0, timed=True, bad=2, titles=0.7):
  """Some users and items, names of any letters, a few rows that are bad, items listed twice."""
  draw = random.Random(seed)
  events = [('f.csv', n, (f'u\xe9 {draw.randrange(12)}', f"i'{draw.randrange(9)}",
                          draw.randrange(20) if timed else None, float(draw.randint(1, 5))), '')
            for n in range(150)] + [('f.csv', 150 + n, None, 'odd') for n in range(bad)]
  draw.shuffle(events)
  goods = [('g.csv', n, (f"i'{draw.randrange(12)}", {'title': f'T\n{n}'} if draw.random() < titles
                         else {}), '') for n in range(10)]
  return raw_reader.Source('made', events, goods)


@absltest.skipIf(MISSING, f'{", ".join(MISSING)} missing; pip install "recjax[data,beam]"')
class BeamTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def test_a_misspelled_flag_of_beam_is_refused(self):
    with self.assertRaisesRegex(ConfigError, '--beam: Beam has no flag --runer'):
      beam_engine.prepare(
        source, self.folder / 'out', rules_lib.Rules(), options=['--runer=DirectRunner']
      )
    self.assertFalse((self.folder / 'out').exists())
    beam_engine.check_options(
      ['--runner=DirectRunner', '--direct_num_workers=2', '--temp_location=/x']
    )

  @parameterized.parameters(
      dict(), dict(user_k=8, item_k=12), dict(user_k=14, item_k=14, once=True, ties='item'),
      dict(min_rating=2.0, start='3', end='17', repeats='last', min_length=3),
      dict(untitled='drop', repeats='first', max_length=3, cut='first', sample=5, seed=4),
      dict(repeats='first-in-file', max_length=2, all_items=True, ties='item'))
  @long
  def test_files_and_counts_are_those_of_duckdb(self, **given):
    rules = rules_lib.Rules(max_bad=0.1, **given)
    timed = 'start' in given or 'untitled' not in given
    made = functools.partial(source, len(given), timed)
    want = duckdb_engine.prepare(made(), self.folder / 'duckdb', rules, say=quiet)
    got = beam_engine.prepare(made, self.folder / 'beam', rules, say=quiet)
    self.assertEqual(got, want)
    for name in ('items.jsonl', 'sequences.jsonl', 'prepared.json'):
      self.assertEqual((self.folder / 'beam' / name).read_text(),
                       (self.folder / 'duckdb' / name).read_text(), name)
    self.assertCountEqual([p.name for p in self.folder.iterdir()], ['beam', 'duckdb'])

  @long
  def test_tables_are_read_alike(self):
    log, goods = self.folder / 'log.csv', self.folder / 'goods.csv'
    log.write_text('user_id,item_id,created_at\n' + ''.join(
        f'u{n % 3},{n % 5}.0,2024-01-{1 + n % 7:02d} 10:00:00.{9 - n % 9}\n' for n in range(60)))
    goods.write_text('item_id,title,categories,price\n0,None,[],—\n'
                     '1,A &amp; B,"[\'x\', \'y\']",5\n')
    rules = rules_lib.Rules(start='2024-01-02', end='2024-01-06')
    made = functools.partial(table.source, log, goods)
    want = duckdb_engine.prepare(made(), self.folder / 'duckdb', rules, say=quiet)
    got = beam_engine.prepare(made, self.folder / 'beam', rules, say=quiet)
    self.assertEqual(got, want)
    self.assertEqual(want['times']['unit'], 'milliseconds since 1970')
    self.assertEqual(want['told']['goods']['cleaned']['title']['None, [] or a dash'], 1)
    self.assertEqual(want['repeated'], 0)
    self.assertEqual((self.folder / 'beam' / 'sequences.jsonl').read_text(),
                     (self.folder / 'duckdb' / 'sequences.jsonl').read_text())

  @long
  def test_mistakes_are_said_and_nothing_stays(self):
    with self.assertRaisesRegex(DataError, '9 of 159 interactions cannot be used, e.g. f.csv'):
      beam_engine.prepare(
        functools.partial(source, bad=9), self.folder / 'x', rules_lib.Rules(), say=quiet
      )
    with self.assertRaisesRegex(EmptyDatasetError, 'nothing is left after "users with 99'):
      beam_engine.prepare(
        source, self.folder / 'x', rules_lib.Rules(user_k=99, max_bad=1.0), say=quiet
      )
    self.assertEmpty(list(self.folder.iterdir()))


class WithoutBeamTest(absltest.TestCase):

  def test_the_way_to_get_it_is_said(self):
    with (
      mock.patch.dict(sys.modules, apache_beam=None),
      self.assertRaisesRegex(ConfigError, r'pip install "recjax\[beam\]"'),
    ):
      beam_engine.prepare(
        source, pathlib.Path(self.create_tempdir().full_path) / 'x', rules_lib.Rules()
      )


if __name__ == '__main__':
  absltest.main()
