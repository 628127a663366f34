"""Pictures: small, equal for equal input, colored by the page, and safe for any text."""
import functools
import re
import warnings
from xml.etree import ElementTree

import numpy as np
from absl.testing import absltest, parameterized

from recjax.report import plots

STEPS = [(step, 3.0 * np.exp(-step / 300) + 1) for step in range(0, 3000, 2)]
CELL = {'value': 0.17, 'low': 0.16, 'high': 0.18, 'n': 10}
HOSTILE = ('</text><script>alert(1)</script>', '$\\frac{1}{', '_hidden', '\ud800', 'a\x00b',
           '数据 & "x"', '#010203 id="a"', 'url(#a)')


@functools.cache
def every_picture(text='name'):
  rows = {text: {'HR@10': CELL}, 'zero': {'HR@10': {'value': 0.0}}, 'none': {}}
  return {
      'loss': plots.loss_curves({text: STEPS, 'b': STEPS[:3]}, {text: [(0, 3.0), (99, 2.0)]}, text),
      'bars': plots.bars_with_intervals(rows, 'HR@10', {'zero': text}, highlight=text),
      'tags': plots.tag_frequency({'a': 100, 'b': 10, text: 1}, {'a': 5}, (text, text)),
      'curves': plots.curves_over_k({text: [(1, .1, .05, .2), (10, .3, .2, .4)]}, text),
      'cost': plots.quality_against_cost({text: (3., .1, .05, .2), 'b': (90., .05, .01, .2)},
                                         text, text, {}, [text]),
      'histogram': plots.histogram([1, 2, 2, 3], text, text),
      'scatter': plots.scatter([[0, 0], [1, 2], [3, 1]], [text, 'b', 'b'], text, text),
  }


def lines(picture):
  """Points of the lines that the first color draws, in drawing order: [(n, 2) float]."""
  found = [node for node in ElementTree.fromstring(picture).iter()
           if node.get('clip-path') and 'stroke: var(--c1' in node.get('style', '')]
  return [np.array(re.findall(r'-?[\d.]+', node.get('d')), float).reshape(-1, 2) for node in found]


class ScatterTest(absltest.TestCase):

  def test_the_largest_groups_have_names_and_the_rest_is_one(self):
    groups = [f'g{i}' for i in range(9) for _ in range(10 - i)]
    points = np.random.default_rng(0).normal(size=(len(groups), 2))
    drawn = plots.scatter(points, groups)
    for name in ('g0', 'g4', 'other'):
      self.assertIn(name, drawn)
    self.assertNotIn('g8', drawn)
    self.assertNotIn('other', plots.scatter(points[:20], groups[:20]))
    self.assertIn('nothing to show', plots.scatter(np.zeros((0, 2)), []))


class PlotsTest(parameterized.TestCase):

  def test_pictures_are_small_and_equal_for_equal_input(self):
    first, second = every_picture(), every_picture.__wrapped__()
    for name, picture in first.items():
      self.assertEqual(picture, second[name], name)
      self.assertLess(len(picture), 60_000, name)

  def test_colors_and_typeface_are_the_pages(self):
    for name, picture in every_picture().items():
      colors = re.findall(r'#[0-9a-f]{6}', re.sub(r'var\([^)]*\)', '', picture))
      self.assertEmpty(colors, name)
      self.assertIn('var(--muted, ', picture)
      self.assertNotRegex(picture, r'<style|metadata|DejaVu|\d{4}-\d\d-\d\d')

  def test_pictures_of_one_page_share_no_ids(self):
    ids = [found for picture in every_picture().values()
           for found in re.findall(r' id="([^"]*)"', picture)]
    self.assertNotEmpty(ids)
    self.assertLen(set(ids), len(ids))

  def test_every_reference_has_its_target(self):
    for picture in every_picture().values():
      used = re.findall(r'(?:url\(|href=")#([\w-]+)', picture)
      self.assertNotEmpty(used)
      self.assertContainsSubset(used, re.findall(r' id="([^"]*)"', picture))

  @parameterized.parameters(*HOSTILE)
  def test_text_never_becomes_markup_nor_mathematics(self, text):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      made = every_picture(text)
    for picture in made.values():
      root = ElementTree.fromstring(picture.encode('utf-8'))
      names = {node.tag.rpartition('}')[2] for node in root.iter()}
      self.assertContainsSubset(
          names, {'svg', 'g', 'path', 'text', 'tspan', 'use', 'defs', 'clipPath', 'rect'})
      self.assertIn(plots.clean(text)[:10], ''.join(root.itertext()))

  @parameterized.parameters(
      ('loss_curves', ({'a': [(0, float('nan'))]},)), ('bars_with_intervals', ({}, 'HR@10')),
      ('tag_frequency', ({}, {})), ('histogram', ([], 'x')), ('curves_over_k', ({}, 'x')),
      ('quality_against_cost', ({}, 'x', 'y')))
  def test_nothing_to_show_is_said(self, name, arguments):
    self.assertIn('nothing to show', getattr(plots, name)(*arguments))

  def test_the_front_holds_what_nothing_cheaper_beats(self):
    points = {'a': (1, .1), 'b': (2, .1), 'c': (2, .3), 'd': (9, .2), 'e': (5, .4), 'f': (5, .5)}
    self.assertEqual(plots.pareto(points), ['a', 'c', 'f'])
    whole = {row: (*x, x[1] - .1, x[1] + .1) for row, x in points.items()}
    drawn = plots.quality_against_cost(whole, 'seconds', 'x', {'c': 'third'}, ['d'])
    named = [row for row in ('a', 'b', 'third', 'd', 'e', 'f') if f'>{row}</text>' in drawn]
    self.assertEqual(named, ['a', 'third', 'd', 'f'])

  def test_a_file_of_its_own_has_plain_colors_and_a_size(self):
    for name, picture in every_picture().items():
      alone = plots.standalone(picture)
      self.assertNotIn('var(', alone, name)
      self.assertGreater(float(ElementTree.fromstring(alone).get('width')), 100)

  def test_smoothing_does_not_lag_behind_a_falling_loss(self):
    raw, smooth = lines(plots.loss_curves({'a': [(i, 9 - i / 100) for i in range(800)]}))
    middle = (raw[0, 0] + raw[-1, 0]) / 2
    drawn = [np.interp(middle, line[:, 0], line[:, 1]) for line in (raw, smooth)]
    self.assertAlmostEqual(*drawn, delta=0.2)  # in 260 units of height

  def test_smoothing_takes_the_noise_away(self):
    noise = np.random.default_rng(0).normal(size=2000)
    raw, smooth = lines(plots.loss_curves({'a': list(enumerate(noise))}))
    self.assertLess(smooth[:, 1].std(), raw[:, 1].std() / 4)

  def test_a_long_run_stays_small_and_keeps_its_spikes(self):
    values = np.ones(100_000)
    values[[7, 51_234]] = 5.0, -5.0
    made = plots.loss_curves({'a': list(enumerate(values))})
    raw, _ = lines(made)
    self.assertLess(len(made), 30_000)
    top, base, bottom = raw[:, 1].min(), np.median(raw[:, 1]), raw[:, 1].max()
    np.testing.assert_allclose((base - top) / (bottom - top), 0.4, atol=0.01)

  def test_a_readers_own_settings_change_nothing(self):
    import matplotlib
    plain = plots.histogram([1, 2, 3], 'x')
    with matplotlib.rc_context({'font.size': 30, 'axes.facecolor': 'red'}):
      self.assertEqual(plots.histogram([1, 2, 3], 'x'), plain)
      self.assertEqual(matplotlib.rcParams['font.size'], 30)


if __name__ == '__main__':
  absltest.main()
