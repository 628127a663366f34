"""Tag lists out of replies: cleaning, fallback, pooling."""
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.text import tag_parsing

TAGS = st.lists(st.text('abcdé -/&', min_size=1, max_size=12).map(str.strip).filter(
    lambda tag: tag and tag[0] not in '-/&'), min_size=1, max_size=8,
                unique_by=str.casefold).map(lambda tags: [' '.join(tag.split()) for tag in tags])


class ParseTest(parameterized.TestCase):

  @parameterized.parameters(
      ('1. Wood screws\n2. "Pocket hole"\n3. **Coarse thread**',
       ['Wood screws', 'Pocket hole', 'Coarse thread']),
      ('Sure! Here are tags: 1. a 2. b 3. c', ['a', 'b', 'c']),
      ('Tags:\n\n1) a\n2) b\n\nHope this helps', ['a', 'b']),
      ('**1.** Steel.\n 2. steel\n10. STEEL \n11. Iron', ['Steel', 'Iron']),
      ('1. 3D printer\n2. 1.75 mm filament\n3. grade 3.5', ['3D printer', '1.75 mm filament',
                                                            'grade 3.5']),
      ('Here you go:\n- wood, steel\n• brass; zinc\n', ['wood', 'steel', 'brass', 'zinc']),
      ('', []), ('1. \n2. "*"', []))
  def test_replies_give_clean_tags(self, text, expected):
    self.assertEqual(tag_parsing.parse_tag_list(text), expected)

  def test_replies_without_numbers_can_be_told(self):
    self.assertTrue(tag_parsing.is_numbered('tags 1. a 2. b'))
    self.assertFalse(tag_parsing.is_numbered('a, b'))

  @settings(max_examples=200, deadline=None, database=None)
  @given(TAGS)
  def test_numbered_lists_come_back_whole(self, tags):
    for join in ('\n', ' '):
      text = join.join(f'{i}. {tag}' for i, tag in enumerate(tags, 1))
      seen = list({tag.casefold(): tag for tag in reversed(tags)}.values())[::-1]
      self.assertCountEqual(tag_parsing.parse_tag_list(text), seen)

  @settings(max_examples=200, deadline=None, database=None)
  @given(st.text())
  def test_any_text_gives_distinct_tags_without_line_breaks_or_quotes(self, text):
    tags = tag_parsing.parse_tag_list(text)
    self.assertLen({tag.casefold() for tag in tags}, len(tags))
    for tag in tags:
      self.assertNotRegex(tag, r'[\n"*]')
      self.assertEqual(tag, tag.strip())


class PoolTest(absltest.TestCase):

  def test_order_is_by_number_of_samples_then_first_place(self):
    samples = [['b', 'a', 'b'], ['C', 'A'], ['c', 'd', 'a']]
    self.assertEqual(tag_parsing.pool_samples(samples), ['a', 'C', 'b', 'd'])
    self.assertEqual(tag_parsing.pool_samples(samples, cap=2), ['a', 'C'])
    self.assertEqual(tag_parsing.pool_samples([]), [])

  @settings(max_examples=100, deadline=None, database=None)
  @given(st.lists(st.lists(st.text('abC', min_size=1, max_size=2), max_size=5), max_size=5))
  def test_counts_never_rise_along_the_list(self, samples):
    pooled = tag_parsing.pool_samples(samples, cap=99)
    counts = [sum(tag.casefold() in {t.casefold() for t in s} for s in samples) for tag in pooled]
    self.assertEqual(counts, sorted(counts, reverse=True))
    self.assertLen(pooled, len({t.casefold() for s in samples for t in s}))


if __name__ == '__main__':
  absltest.main()
