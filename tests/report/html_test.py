"""The page: nothing in it can act, whatever text it is given, and it can be read by everyone."""
import html.parser
import importlib.resources
import pathlib
import re
import tempfile

from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from recjax.errors import WorkdirError
from recjax.report import html as page
from recjax.report import result_tables

HOSTILE = (
    '<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)",
    '</style></title></textarea><svg onload=alert(1)>', '<!--', ']]>', '&lt;b&gt;',
    'a\x00b\x1b[31m',
    '\ud800 alone', '\udfff', '\u202egnp.exe', '\ufffe', 'javascript:alert(1)', '\r\n<p>', '`${x}`',
    'width:0;background:url(//x)', '{{x}}', '%s%n', '-->', '\u2028<br>')
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec=None), min_size=1))


class Outline(html.parser.HTMLParser):
  """What a browser would see: elements with the names of their attributes, links and texts."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.elements, self.links, self.texts, self.odd = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, tuple(name for name, _ in attrs)))
    self.links += [value for name, value in attrs if name in ('href', 'src')]

  def handle_endtag(self, tag):
    self.elements.append(('/' + tag, ()))

  def handle_data(self, data):
    self.texts.append(data)

  def handle_comment(self, data):
    self.odd.append(data)

  def unknown_decl(self, data):
    self.odd.append(data)

  def handle_pi(self, data):
    self.odd.append(data)


def full_page(text):
  """A page with `text` in every slot."""
  cell, other = {'value': 0.5, 'low': 0.4, 'high': 0.6, 'n': 9}, f'{text}+'
  made = {'protocol': text, 'seeds': [text],
          'rows': {text: {'HR@10': cell}, other: {'HR@10': cell}},
          'tests': {f'{text}>{other}': {'HR@10': 0.04}}}
  chips = page.tags(text, [text, page.Tag(text, 3, True, (text, text)), page.Tag(text, 2.0)])
  return page.page(text, text, [text, page.tiles([(text, text, text)])], [
      page.section(text, page.table([text, 'b'], [[text, text]], text, 'lr'), text, intro=text),
      page.section('Results', result_tables.results_table(
          made, reference=other, labels={text: text}, caption=text)),
      page.section('Items', page.cards([page.card(text, text, page.grid(chips))] * 3, 1, text)),
      page.section('Rest', page.figure(Markup('<svg></svg>'), text, text),
                   page.details(text, text), page.facts({text: {'a': [text]}})),
  ], text)


class HtmlTest(parameterized.TestCase):

  @settings(max_examples=60, deadline=None)
  @given(TEXTS)
  def test_text_never_becomes_markup(self, text):
    plain, found = Outline(full_page('plain')), Outline(full_page(text))
    self.assertEqual(found.elements, plain.elements)
    self.assertEmpty(found.odd)
    self.assertTrue(all(re.fullmatch(r'#[a-z0-9-]+', link) for link in found.links))

  @settings(max_examples=60, deadline=None)
  @given(TEXTS)
  def test_page_is_valid_utf8_without_control_characters(self, text):
    made = full_page(text).encode('utf-8').decode('utf-8')
    self.assertNotRegex(made, '[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ufffe\uffff]')

  @parameterized.parameters(*HOSTILE)
  def test_text_can_be_read_as_it_was_written(self, text):
    made = Outline(page.heading(text))
    self.assertEqual(''.join(made.texts), page.clean(text))

  @parameterized.parameters('pip install x --a=b', 'line\n  two  spaces\n', '<b> &amp;')
  def test_code_keeps_every_character(self, text):
    self.assertEqual(''.join(Outline(page.code(text)).texts), text)

  def test_page_can_do_nothing_and_load_nothing(self):
    made = full_page('plain')
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)[1]
    self.assertIn("default-src 'none'", policy)
    names = {tag for tag, _ in Outline(made).elements}
    self.assertNoCommonElements(
        names, {'script', 'link', 'img', 'iframe', 'object', 'form', 'base'})
    self.assertNotRegex(made, r'url\(|@import|https?://')

  def test_page_has_language_title_and_one_of_each_landmark(self):
    made = full_page('plain')
    tags = [tag for tag, _ in Outline(made).elements]
    self.assertIn('<html lang="en">', made)
    for name in ('title', 'h1', 'header', 'nav', 'main', 'footer'):
      self.assertEqual(tags.count(name), 1, name)

  def test_equal_titles_get_anchors_of_their_own(self):
    made = page.page('t', 's', 'm', [page.section(name) for name in ('A b', 'A b', '数据', 'main')])
    ids = re.findall(r' id="([^"]*)"', made)
    self.assertLen(set(ids), len(ids))
    self.assertEqual(re.findall(r'href="#([^"]*)"', made),
                     ['main', 'a-b', 'a-b-2', 'part', 'main-2'])

  def test_same_input_gives_the_same_page(self):
    self.assertEqual(full_page('x'), full_page('x'))

  def test_tables_name_rows_and_columns_and_set_figures_right(self):
    row = ['a', 12345, '98.5%', 'x']
    made = page.table(['What', 'Count', 'Share', 'Word'], [row], 'Counts')
    self.assertIn('<caption><span>Counts</span></caption>', made)
    self.assertIn('<th scope="row">a</th>', made)
    self.assertIn('<th scope="col" class="num">Share</th>', made)
    self.assertIn('<td class="num">12,345</td>', made)
    self.assertIn('<td>x</td>', made)

  @parameterized.parameters(
      (12345, '12,345'), (0.123456, '0.1235'), (-0.5, '−0.5'), (1234.5, '1,234'), (3e-4, '0.0003'),
      (None, '–'), (float('nan'), '–'), (float('inf'), '–'))
  def test_numbers_are_written_for_readers(self, value, text):
    self.assertEqual(page.number(value), text)

  def test_new_tags_say_so_and_name_the_items_they_come_from(self):
    titles = ('Beaker, 600 ml', 'x' * 200, 'Slide', 'Lens', 'Lamp')
    made = page.tags('BETags', [page.Tag('optics', 7, True, titles), 'glass'])
    text = ' '.join(Outline(made).texts)
    self.assertIn('new', text)
    self.assertIn('Where the new tag comes from', text)
    self.assertIn('Beaker, 600 ml · ' + 'x' * 59 + '… · Slide and 2 more', text)
    self.assertEqual(made.count('class="chip new"'), 1)

  def test_cards_beyond_the_first_are_folded(self):
    made = page.cards([page.card(f'item {i}', '') for i in range(5)], 2, 'more items')
    self.assertEqual(made[:made.index('<details>')].count('<article'), 2)
    self.assertIn('<summary>3 more items</summary>', made)
    self.assertNotIn('<details', page.cards([page.card('a', '')], 2))


class WriteTest(absltest.TestCase):

  def test_the_whole_file_or_the_old_one(self):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'report.html')
      page.write(path, 'old')
      page.write(path, 'nëw\n')
      self.assertEqual(path.read_bytes(), 'nëw\n'.encode())
      with self.assertRaises(UnicodeEncodeError):
        page.write(path, 'broken \ud800')
      self.assertEqual(path.read_bytes(), 'nëw\n'.encode())
      self.assertEqual([found.name for found in pathlib.Path(folder).iterdir()], ['report.html'])

  def test_a_folder_that_is_not_there_is_named(self):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'none', 'report.html')
      with self.assertRaisesRegex(WorkdirError, re.escape(str(path))):
        page.write(path, 'text')


class StyleTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.css = importlib.resources.files('recjax.report').joinpath('style.css').read_text('utf-8')

  def test_style_cannot_end_its_element_and_loads_nothing(self):
    self.assertNotIn('<', self.css)
    self.assertNotRegex(self.css, r'url\(|@import|@font-face')

  def test_colors_keep_their_contrast_by_day_and_by_night(self):
    palettes = re.findall(r':root \{(.*?)\}', self.css, re.DOTALL)
    self.assertLen(palettes, 2)
    for palette in palettes:
      color = dict(re.findall(r'--([\w-]+): (#\w{6})', palette))
      for text, ground, least in [
          ('ink', 'page', 7), ('ink', 'sheet', 7), ('ink', 'soft', 7), ('ink', 'new-soft', 7),
          ('ink', 'code', 7), ('muted', 'page', 4.5), ('muted', 'sheet', 4.5),
          ('accent', 'page', 4.5), ('accent', 'sheet', 4.5),
          ('new', 'sheet', 4.5), ('new', 'new-soft', 4.5),
          *((f'c{i}', 'page', 3) for i in range(1, 7))]:
        self.assertGreaterEqual(contrast(color[text], color[ground]), least, (text, ground))


def contrast(one, other):
  """Contrast ratio of two #rrggbb colors as WCAG 2 defines it."""
  def luminance(color):
    parts = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
  low, high = sorted([luminance(one), luminance(other)])
  return (high + 0.05) / (low + 0.05)


if __name__ == '__main__':
  absltest.main()
