"""The local tagger: what it keeps, what it leaves out, and that it always says something."""
import json
import pathlib
import time

from absl.testing import absltest
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.errors import DataError
from recjax.text import keywords
from tests.long import long

SCIENTIFIC = (pathlib.Path(__file__).parents[2].parent / 'shared' / 'data' / 'amazon-scientific'
              / 'items.jsonl')
SHOP = dict(
    title=['Kreg SML-C125-500 1-1/4-Inch #8 Coarse Pocket Hole Screws, 500-Pack',
           'Fine Pocket Hole Screws by Kreg, 100 count', 'Stanley 1/2-Inch Steel Staples',
           'Steel Staples &amp; Tacks | Heavy-Duty', 'Pocket Hole Jig', None],
    brand=['Kreg', 'Kreg Tools, Inc.', 'Stanley', None, 'Kreg', None],
    categories=[['All', 'Fasteners', 'Wood Screws'], ['All', 'Fasteners', 'Wood Screws'],
                ['All', 'Fasteners', 'Staples'], 'All > Fasteners > Staples', ['All'], None],
    description=['The screws are <b>strong</b>. Use these pocket hole screws with a jig.',
                 'Use it.', 'For the staple gun', 'A staple gun, needs staples', None, None],
    price=[3.5, 4, None, 2.0, 30, 1], count=[1, 2, 3, 4, 5, 6])


class TagsTest(absltest.TestCase):

  def test_brand_and_leaf_category_lead_and_key_phrases_follow(self):
    tags = keywords.extract_tags(SHOP)
    self.assertEqual(tags[0][:3], ['kreg', 'wood screws', 'pocket hole screws'])
    self.assertEqual(tags[1][0], 'kreg tools')
    self.assertIn('pocket hole screws', tags[1])
    self.assertTrue(any('pocket hole' in tag for tag in tags[0]))

  def test_codes_measures_markup_and_the_common_root_are_left_out(self):
    tags = [tag for row in keywords.extract_tags(SHOP) for tag in row]
    for word in ('sml', 'c125', '500', 'inch', 'pack', 'all', 'amp', 'b', 'the'):
      self.assertNotIn(word, ' '.join(tags).split())

  def test_an_item_without_text_has_no_tags_and_others_have_some(self):
    tags = keywords.extract_tags(SHOP)
    self.assertEqual([bool(row) for row in tags], [True] * 5 + [False])
    self.assertEqual(keywords.extract_tags(dict(title=['2010 (2010)', '12x9', 'The'])),
                     [['2010 (2010)'], ['12x9'], ['the']])

  def test_columns_can_be_left_out(self):
    tags = keywords.extract_tags(SHOP, exclude=('brand', 'categories'))
    self.assertNotIn('fasteners', [tag for row in tags for tag in row])

  def test_uneven_columns_are_refused(self):
    with self.assertRaisesRegex(DataError, "'b': 1"):
      keywords.extract_tags(dict(a=['x', 'y'], b=['z']))

  def test_no_items_give_no_tags(self):
    self.assertEqual(keywords.extract_tags({}), [])
    self.assertEqual(keywords.extract_tags(dict(title=[])), [])

  def test_any_catalog_gives_clean_distinct_tags_and_the_same_twice(self):
    text = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=30),
                     st.sampled_from(['Steel Rods', 'a | b, c', 'x\ny', '猫の絵', 'http://a.b']),
                     st.lists(st.text('ab |,\n>-&7é', max_size=9), max_size=3))
    names = st.sampled_from(['title', 'brand', 'categories', 'description', 'color'])

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.integers(0, 5).flatmap(
        lambda n: st.dictionaries(names, st.lists(text, min_size=n, max_size=n))),
           st.integers(1, 6))
    def check(columns, n):
      tags = keywords.extract_tags(columns, n)
      self.assertEqual(tags, keywords.extract_tags(columns, n))
      for row, found in enumerate(tags):
        self.assertLessEqual(len(found), n)
        self.assertLen(set(found), len(found))
        for tag in found:
          self.assertNotRegex(tag, r'[|,\n]')
          self.assertEqual(tag, tag.strip().lower())
          self.assertTrue(tag)
        title = (columns.get('title') or [None] * len(tags))[row]
        if isinstance(title, str) and any(c.isalnum() for c in title) and 'http' not in title:
          self.assertNotEmpty(found)

    check()


class RealDataTest(absltest.TestCase):

  @absltest.skipUnless(SCIENTIFIC.is_file(), f'needs {SCIENTIFIC}')
  @long
  def test_a_real_catalog_is_tagged_well_and_in_seconds(self):
    rows = [json.loads(line) for line in SCIENTIFIC.read_text('utf-8').split('\n') if line]
    columns = {name: [row.get(name) for row in rows]
               for name in ('title', 'brand', 'categories', 'description')}
    began = time.process_time()
    tags = keywords.extract_tags(columns)
    self.assertLess(time.process_time() - began, 5)
    self.assertTrue(all(tags))
    by_title = {row['title']: found for row, found in zip(rows, tags, strict=True)}
    for start, expected in (
        ('SEOH 10ml All Glass Graduated Cylinder', {'seoh', 'cylinders', 'graduated cylinder'}),
        ('HATCHBOX PLA 3D Printer Filament', {'hatchbox', '3d printing filament'}),
        ('HDE Non-Contact Infrared', {'hde', 'infrared thermometers', 'temperature gun'})):
      found = next(found for title, found in by_title.items() if title.startswith(start))
      self.assertContainsSubset(expected, found)
    self.assertGreater(sum(map(len, tags)) / len(tags), 6)


if __name__ == '__main__':
  absltest.main()
