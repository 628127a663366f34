"""What is no text, list, price or id never becomes one; all that is changed is counted."""
import collections

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.data import cleaning, loading
from tests.long import examples

SCRIPT = 'var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();'
CSS = '.a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{background-color:#fffbf3}'
NOTHING = ['None', 'none', 'null', 'NaN', '[]', '{}', "['']", '[None]', '-', '—', ' – ', '--',
           'N/A', SCRIPT, CSS, '</span></span></span>', '<br/>', '&nbsp;', '&mdash;',
           '<script>alert(1)</script>', '<style>a{b:c}</style>', '$(document).ready(function(){})',
           'undefined', '\u200b', '<span id="title" class="a-size',
           '&lt;span&gt;&lt;/span&gt;']
KEPT = ['I <3 you', 'Dr. <Who>', 'B <s>', 'x < y > z', 'C++ {basics}: intro', 'AT&T',
        'Salt &notables', '"Heroes"', '[REC]', '[1408]', 'JavaScript: The Good Parts', 'Non-stop',
        'None of the Above', 'Function (Deluxe)', '(500) Days of Summer', 'Let it = be',
        'e=mc2; a (short) story',
        "['90s hits", '1984', 'Size (a; b)', 'A - B']


def count():
  return collections.Counter()


class CleaningTest(parameterized.TestCase):

  @parameterized.parameters(*NOTHING)
  def test_what_is_no_text_is_emptied_and_counted(self, value):
    for made in (cleaning.clean_text, cleaning.clean_list):
      counts = count()
      self.assertIsNone(made(value, counts))
      self.assertGreaterEqual(counts.total(), 1)
    told = cleaning.new_counts()
    self.assertEqual(
      cleaning.clean_item(
        {'title': value, 'price': value, 'categories': [value, 'A'], 'brand': value}, told
      ),
      {'categories': ['A']},
    )
    self.assertEqual(
      {name for name, found in told['cleaned'].items() if found.total()},
      {'title', 'price', 'categories', 'brand'},
    )

  @parameterized.parameters(*KEPT)
  def test_titles_stay_as_they_are(self, value):
    counts = count()
    self.assertEqual(cleaning.clean_text(value, counts), value)
    self.assertEqual(counts.total(), 0)
    self.assertEqual(cleaning.clean_text(value, count(), True), value)

  @parameterized.parameters(
      ('<span id="productTitle" class="a-size-large">Good 3 &amp; co</span>', 'Good 3 & co'),
      ('Good &amp;amp; more &#39;x&#39;', "Good & more 'x'"), ('A<br>B', 'A B'),
      ('H<sub>2</sub>O', 'H2O'), ('&lt;b&gt;Bold&lt;/b&gt;', 'Bold'), (' a\n\t b ', 'a b'),
      ('<p>Hi</p><style>.a{b:c}</style>', 'Hi'), (["One.", None, 'Two.'], 'One. Two.'),
      (['The', 'None', '-', 'Band'], 'The None - Band'),
      ("['Soft', \"Won't shed\"]", "Soft Won't shed"), (3, '3'), ('a\ud800b', 'ab'))
  def test_markup_goes(self, value, want):
    self.assertEqual(cleaning.clean_text(value, count()), want)

  def test_script_behind_the_beginning_does_not_cost_a_long_text(self):
    text = 'A book that explains in many words what a programmer does all day long, e.g. ' * 2
    self.assertEqual(
      cleaning.clean_text(text + SCRIPT, count(), True), ' '.join((text + SCRIPT).split())
    )
    self.assertIsNone(cleaning.clean_text(SCRIPT + text, count(), True))

  @parameterized.parameters(
      ("['Beauty & Personal Care', 'Tools']", ['Beauty & Personal Care', 'Tools']),
      ('["A", "B"]', ['A', 'B']), ("['A' 'B']", ['A', 'B']), ("['A'\n 'B']", ['A', 'B']),
      ("('A',)", ['A']), ("{'B', 'A'}", ['B', 'A']), ("[nan, 'A', None]", ['A']), ('[]', None),
      ('["A", null, "None"]', ['A']), ("[['A', 'B'], ['A']]", ['A', 'B']), ('[1, 2]', ['1', '2']),
      ("[{'id': 28, 'name': 'Action'}]", ['Action']), ('[Action, Indie]', ['Action', 'Indie']),
      ("['O\\'Neil', \"it's\"]", ["O'Neil", "it's"]), (['A &amp; B', '</span>'], ['A & B']),
      (['A', 'A', ' A '], ['A']), (None, None), (float('nan'), None), ('', None), ('A', ['A']),
      (["['A', 'B']"], ['A', 'B']), ('[broken', ['[broken']))
  def test_lists(self, value, want):
    self.assertEqual(cleaning.clean_list(value, count()), want)

  def test_what_must_be_texts_when_read_is_cleaned_to_texts(self):
    self.assertContainsSubset(loading.CHECKED_TEXTS, cleaning.CLEANED_TEXTS)
    self.assertContainsSubset(loading.CHECKED_LISTS, cleaning.CLEANED_LISTS)

  def test_only_other_texts_are_parted(self):
    self.assertEqual(cleaning.split_categories('A|B', '|'), ['A', 'B'])
    self.assertEqual(cleaning.split_categories("['A|B', 'C']", '|'), "['A|B', 'C']")
    self.assertEqual(cleaning.split_categories(['A|B'], '|'), ['A|B'])

  @parameterized.parameters(
      ('$1,299.00', 1299), ('12,99 €', 12.99), ('1.299,00', 1299), ('24,32', 24.32),
      ('12.99', 12.99), ("CHF 1'299.50", 1299.5), ('1 299,00 zł', 1299),
      ('1,234,567', 1234567), ('.99', .99),
      ('0', 0), ('€5', 5), ('5.- ', 5),
      (12.99, 12.99), (0, 0), ('US$ 3.50', 3.5), ('1,299', '1,299'),
      ('from 12.99', 'from 12.99'), ('$5.00 - $9.99', '$5.00 - $9.99'), ('Free', 'Free'),
      (float('nan'), None), (float('inf'), None), (True, None), ('NA', None), ('1,2,3', '1,2,3'))
  def test_prices(self, value, want):
    self.assertEqual(cleaning.clean_price(value, count()), want)

  def test_a_column_of_prices_tells_the_decimal_sign(self):
    self.assertEqual(cleaning.decimal_sign(['24,32', '1,299', None, 5]), ',')
    self.assertEqual(cleaning.decimal_sign(['24.32', '1,299']), '.')
    self.assertEqual(cleaning.decimal_sign(['24.32', '1,29']), '')
    self.assertEqual(cleaning.clean_price('1,299', count(), '.'), 1299)
    self.assertEqual(cleaning.clean_price('1,299', count(), ','), 1.299)
    self.assertEqual(cleaning.clean_price('1.299', count(), ','), 1299)

  def test_ids(self):
    told = count()
    for value, want in ((7, '7'), ('000017', '000017'), (17.0, '17'), (' a ', 'a'), ('1e5', '1e5'),
                        ('17.0', '17.0'), ('nan', 'nan')):
      self.assertEqual(cleaning.clean_id(value, 'item', told), want)
    self.assertEqual(cleaning.clean_id('17.0', 'item', told, True), '17')
    self.assertEqual({what: n for what, n in told.items() if n}, {
        'item: ids like nan or None, which may be nobody; kept as one': 1,
        'item: numbers like 17.0 are read as 17': 2, 'item: blanks around ids are taken off': 1,
        'item: ids like 1.5E+12, which a spreadsheet may have rounded; kept as they are': 1})
    for value in (None, '', ' ', float('nan'), 1.5, 2.0 ** 60, float('inf'), True,
                  [1], 'a\x01b'):
      with self.assertRaises(ValueError):
        cleaning.clean_id(value, 'item')

  def test_names_may_be_kept_exactly(self):
    names = ['Kim', ' Kim', 'Kim ', '\xa0', '\u200b', 'tab\tname', 'tab name', 'new\nline']
    told = count()
    made = [cleaning.clean_id(name, 'user', told, exact=True) for name in names]
    self.assertLen(set(made), len(names))
    self.assertEqual(made[:4], names[:4])
    self.assertEqual(told['user: control signs are written as \\n'], 2)

  def test_whether_17_0_is_17(self):
    for values, want in ((['17.0', '18.0'], True), (['17.0', '18'], True), (['17', '18'], False),
                         (['17.0', 'x'], False), (['17.0', '017'], False), (['1.50'], False)):
      ids = cleaning.IdColumn()
      for value in values:
        ids.add(value)
      self.assertEqual(ids.whole(), want, values)

  @examples(40, 200)
  @hypothesis.given(st.text(max_size=60))
  def test_cleaning_a_clean_text_changes_nothing(self, value):
    made = cleaning.clean_text(value, count())
    self.assertIn(made and cleaning.clean_text(made, count()), (made, None))


if __name__ == '__main__':
  absltest.main()
