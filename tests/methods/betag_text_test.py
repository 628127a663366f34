"""BETag's texts: samples, prompts, parsing of generated lines, selection (Lin et al., 2025)."""
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax import errors
from recjax.data.batches import halving_draws
from recjax.methods.betag import prompts
from tests.long import long

TAGS = {10: ['a', 'b'], 20: ['c'], 30: ['d', 'e']}


class SampleTest(parameterized.TestCase):

  def test_t1_prompt_and_output_make_the_article(self):
    prompt, output = prompts.training_sample([TAGS[i] for i in (10, 20, 30)], '| ', ())
    self.assertEqual(prompt, '1. a| b\n2.')
    self.assertEqual(output, ' c\n3. d| e')
    self.assertEqual(prompt + output, '1. a| b\n2. c\n3. d| e')
    self.assertEqual(prompts.generation_prompt(TAGS[10], '| ', 15), prompt)

  @parameterized.parameters(
      ((0.8, 1.0), 1, {1}), ((0.8, 1.0), 3, {2, 3}), ((0.8, 1.0), 7, {5, 6, 7}),
      ((0.8, 1.0), 10, {8, 9, 10}), ((2, 5), 9, {2, 3, 4}), ((), 4, {4}))
  def test_t2_tag_counts_are_uniform_over_the_range(self, keep, n_tags, expected):
    low, high = prompts.keep_range(n_tags, keep)
    self.assertEqual(set(range(low, high + 1)), expected)
    counts = np.zeros(n_tags + 1)
    for seed in range(600):
      prompt, _ = prompts.training_sample(
          [[f't{i}' for i in range(n_tags)], ['x']], '| ', keep or (1.0, 1.0),
          np.random.default_rng(seed))
      counts[prompt.count('| ') + 1] += 1
    for n in expected:
      self.assertAlmostEqual(counts[n] / 600, 1 / len(expected), delta=0.08)  # 4 sigma

  def test_ranges_that_leave_no_tag_are_refused(self):
    with self.assertRaisesRegex(errors.ConfigError, r'train\.keep'):
      prompts.keep_range(5, (3, 3))

  @parameterized.parameters((15, {0}), (16, {0, 1}), (20, {0, 1, 2, 3, 4, 5}), (3, {0}))
  def test_t4_windows(self, length, starts):
    found = set()
    for seed in range(200):
      start, stop = prompts.window(length, 15, np.random.default_rng(seed))
      self.assertEqual(stop - start, min(length, 15))
      found.add(start)
    self.assertEqual(found, starts)

  def test_a_draw_depends_on_its_number_and_the_seed_alone(self):
    from recjax.methods.betag.train import DrawSettings
    cfg = DrawSettings(1, 15, '| ', (0.8, 1.0))
    sequence = [[f'{i}{j}' for j in range(8)] for i in range(30)]
    one = prompts.draw_sample(sequence, 5, cfg)
    self.assertEqual(one, prompts.draw_sample(sequence, 5, cfg))
    self.assertNotEqual(one, prompts.draw_sample(sequence, 6, cfg))
    self.assertNotEqual(
      one, prompts.draw_sample(sequence, 5, DrawSettings(2, 15, '| ', (0.8, 1.0)))
    )


class SamplerTest(absltest.TestCase):

  def test_t3_first_draw_follows_the_lengths(self):
    counts = np.bincount([halving_draws(np.array([2, 4, 2]), 1, s)[0] for s in range(4000)])
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)  # 4 sigma

  def test_t3_after_the_longest_all_are_equally_likely(self):
    second = [d[1] for d in (halving_draws(np.array([2, 4, 2]), 1, s) for s in range(6000))
              if d[0] == 1]
    np.testing.assert_allclose(np.bincount(second) / len(second), [1 / 3] * 3, atol=0.04)

  @long
  def test_t3_weights_reset_at_an_epoch_once_all_were_drawn(self):
    fourth = [d[3] for d in (halving_draws(np.array([2, 4, 2]), 2, s) for s in range(20_000))
              if set(d[:3]) == {0, 1, 2}]
    np.testing.assert_allclose(np.bincount(fourth) / len(fourth), [0.25, 0.5, 0.25], atol=0.03)
    kept = [d[3] for d in (halving_draws(np.array([2, 4, 2]), 2, s) for s in range(40_000))
            if tuple(d[:3]) == (1, 1, 1)]  # weights stay 2, 0.5, 2
    np.testing.assert_allclose(np.bincount(kept) / len(kept), [4 / 9, 1 / 9, 4 / 9], atol=0.06)

  def test_every_sequence_is_drawn_within_a_few_epochs(self):
    draws = halving_draws(np.random.default_rng(0).integers(3, 40, 500), 5, 0)
    self.assertLen(set(draws.tolist()), 500)


class ParseTest(parameterized.TestCase):

  @parameterized.parameters(
      ('1. a| b\n2. c| d\n3. e', ['c', 'd']), ('1. a| b\n2. c| g| h', ['c', 'g', 'h']),
      ('1. a| b\n2. \n3. z', []), ('1. a| b', []))
  def test_t10_second_lines(self, generated, expected):
    self.assertEqual(prompts.parse_beam(generated, '| ', drop_truncated=False)[0], expected)

  def test_t10_rows_and_counts(self):
    rows, counts = prompts.parse_raw(
        {'7': ['1. a| b\n2. c| d\n3. e', '1. a| b\n2. c| g| h', '1. a| b\n2. \n3. z']}, '| ', 3)
    self.assertEqual(rows, {'7': [['a', 'b'], ['c', 'd'], ['c', 'g']]})  # h may be half a tag
    self.assertEqual(counts, {'items': 1, 'beams': 3, 'without_line': 1, 'cut_lines': 1})

  def test_a_single_text_stands_for_one_beam(self):
    self.assertEqual(prompts.parse_raw({'1': '1. a\n2. b\n'}, '| ')[0], {'1': [['a'], ['b']]})

  def test_missing_beams_are_an_error_that_names_the_item(self):
    with self.assertRaisesRegex(errors.DataError, 'item 9'):
      prompts.parse_raw({'9': ['1. a\n2. b\n']}, '| ', beams=2)

  TAG = st.text(st.characters(codec='utf-8', exclude_characters='|\n\r\x0b\x0c\x1c\x1d\x1e\x85'
                              '\u2028\u2029'), min_size=1).map(str.strip).filter(
      lambda t: t and not t[0].isdigit())

  @settings(deadline=None)
  @given(st.lists(st.lists(TAG, min_size=1), min_size=2, max_size=4))
  def test_t13_parsing_gives_back_what_was_written(self, lists):
    raw = '\n'.join(prompts.item_line(i, tags, '| ') for i, tags in enumerate(lists, 1)) + '\n'
    rows, _ = prompts.parse_raw({'x': [raw]}, '| ')
    self.assertEqual(rows['x'], lists[:2])

  @settings(deadline=None)
  @given(st.text())
  def test_no_text_breaks_the_parser(self, generated):
    tags, _ = prompts.parse_beam(generated, '| ')
    self.assertFalse([t for t in tags if not t.strip() or '\n' in t])


class SelectTest(absltest.TestCase):

  def test_t11_most_common_with_ties_by_first_appearance(self):
    rows = [['a', 'b'], ['b', 'c'], ['b', 'a', 'd']]
    self.assertEqual(prompts.select(rows, top_k=3), [('b', 3), ('a', 2), ('c', 1)])
    self.assertEqual(prompts.select(rows, top_m=1), [('b', 2), ('a', 1), ('c', 1)])

  def test_case_and_repeats_count_apart_unless_asked(self):
    rows = [['A'], ['a', 'a']]
    self.assertEqual(prompts.select(rows), [('a', 2), ('A', 1)])
    self.assertEqual(prompts.select(rows, casefold=True, dedup_within_beam=True), [('a', 2)])


if __name__ == '__main__':
  absltest.main()
