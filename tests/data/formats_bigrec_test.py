"""BIGRec's and D3's files: read what the authors wrote, write it again, name what is wrong."""
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from recjax.data.formats import bigrec as files
from recjax.errors import DataError

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data' / 'formats' / 'bigrec'
LETTER = st.characters(codec='utf-8', exclude_categories=('Cc', 'Cs', 'Zl', 'Zp'))
TITLE = st.text(LETTER, min_size=1, max_size=20).map(files.clean_title).filter(
    lambda t: t and '"' not in t and '&' not in t)


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(tempfile.mkdtemp())

  @given(st.lists(TITLE, min_size=1, max_size=6))
  def test_quoted_titles_come_back(self, titles):
    self.assertEqual(files.unquote_titles('Picked:' + files.quote_titles(titles) + '\n '), titles)

  def test_a_title_with_inches_comes_back(self):
    titles = ['Pipe 1/2" x 3"', 'B']
    self.assertEqual(files.unquote_titles(files.quote_titles(titles)), titles)

  @parameterized.parameters(('A\tB\nC', 'A B C'), ('"Quoted"', 'Quoted'), (' x  y ', 'x y'),
                            ('Nuts &amp; bolts', 'Nuts & bolts'), ('"', ''),
                            ('1/2" pipe', '1/2" pipe'), ('Pipe 3"', 'Pipe 3"'))
  def test_one_spelling(self, raw, want):
    self.assertEqual(files.clean_title(raw), want)

  def test_records_go_out_as_they_came_in(self):
    rows = [{'instruction': 'i', 'input': 'x:"A", "B"\n ', 'output': '"Ünï"'}]
    files.write_records(self.folder / 'a.json', rows)
    self.assertEqual(files.read_records(self.folder / 'a.json'), rows)
    self.assertIn('Ünï', (self.folder / 'a.json').read_text())

  def test_records_that_lack_something(self):
    (self.folder / 'a.json').write_text('[{"instruction": "i", "input": "x", "output": 3}]')
    with self.assertRaisesRegex(DataError, "record 0 lacks the text 'output'"):
      files.read_records(self.folder / 'a.json')
    (self.folder / 'a.json').write_text('{}')
    with self.assertRaisesRegex(DataError, 'must hold a list'):
      files.read_records(self.folder / 'a.json')

  def test_title_lists(self):
    path = self.folder / 'id2name.txt'
    path.write_text('B\t1\nA\twith tab\t0\nB\t2\n')
    self.assertEqual(files.read_id2name(path), ['A\twith tab', 'B', 'B'])
    files.write_id2name(path, ['x', 'y'])
    self.assertEqual(files.read_titles(self.folder), {'0': 'x', '1': 'y'})
    for text, what in (('A\n', 'line 1'), ('A\t0\nB\t0\n', 'stands there twice'),
                       ('A\t1\n', 'numbers 1 titles')):
      path.write_text(text)
      with self.assertRaisesRegex(DataError, what):
        files.read_id2name(path)
    with self.assertRaisesRegex(DataError, 'holds no id2name.txt'):
      files.read_titles(tempfile.mkdtemp())

  def test_movies_in_either_encoding(self):
    path = self.folder / 'movies.dat'
    for code in ('utf-8', 'iso-8859-1'):
      path.write_bytes('7::Amélie (2001)::Comedy\n'.encode(code))
      self.assertEqual(files.read_titles(self.folder), {'7': 'Amélie (2001)'})
    path.write_text('7:Amelie\n')
    with self.assertRaisesRegex(DataError, 'line 1'):
      files.read_movies(path)

  def test_tables_are_read_without_being_run(self):
    path = self.folder / 't.csv'
    rows = [
      dict(
        zip(
          files.TABLE_COLUMNS,
          ('u', "['a']", 'b', '[0]', '1', "['A, \"x\"', 'B']", 'C', '[5.0]', '4.0', '99'),
        )
      )
    ]
    files.write_table(path, rows)
    self.assertEqual(files.read_table(path), [{
        'user_id': 'u', 'history': ['A, "x"', 'B'], 'title': 'C', 'id': '1', 'timestamp': 99}])
    bad = [dict(rows[0], history_item_title='__import__("os").getcwd()')]
    files.write_table(path, bad)
    with self.assertRaisesRegex(DataError, 'line 2: history_item_title must be a list'):
      files.read_table(path)
    path.write_text('user_id,timestamp\nu,1\n')
    with self.assertRaisesRegex(DataError, "lacks the column 'history_movie_title'"):
      files.read_table(path)

  def test_predictions_have_the_authors_names(self):
    record = {'instruction': 'i', 'input': 'x', 'output': '"A"', 'more': 1}
    files.write_predictions(self.folder / 'p.json', [record], [['A', 'B']], [[-.5, -1]])
    self.assertEqual(json.loads((self.folder / 'p.json').read_text()), [{
        'instruction': 'i', 'input': 'x', 'output': '"A"', 'predict': ['A', 'B'],
        'predict_score': [-.5, -1.0]}])

  def test_published_samples_load_as_they_are(self):
    if not SHARED.is_dir():
      self.skipTest('no sample files here')
    for name in ('game', 'movie'):
      titles = {files.clean_title(t) for t in files.read_titles(SHARED / name).values()}
      for part in ('train', 'valid', 'test'):
        for row in files.read_records(SHARED / name / f'{part}.json'):
          self.assertIn(files.clean_title(row['output']), titles)
          self.assertTrue(files.unquote_titles(row['input']))


if __name__ == '__main__':
  absltest.main()
