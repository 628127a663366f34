"""The sample shop is always the same, reads well, and holds the signal that it promises."""
import itertools
import time

import numpy as np
from absl.testing import absltest

from recjax.data import loading
from recjax.data.sample_shop import product_text, simulator
from recjax.data.sample_shop.products import AXES, BRANDS
from recjax.errors import ConfigError

FINGERPRINT = 'fd52d5a8e38dd46be0fcff6bd2a1b55d13893bc34435de2636af1f9219619126'


class SampleShopTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    start = time.process_time()
    cls.shop = loading.load_data('sample')
    cls.seconds = time.process_time() - start

  def test_seed_0_is_pinned_and_quick(self):
    self.assertEqual(self.shop.fingerprint, FINGERPRINT)
    self.assertLess(self.seconds, 5)

  def test_other_seeds_give_other_shops(self):
    marks = {simulator.make_shop(seed, 200, 50).fingerprint for seed in (0, 1, 0, 2)}
    self.assertLen(marks, 3)

  def test_sizes_are_as_asked_for(self):
    for items, users in ((1000, 4000), (60, 20), (333, 7)):
      shop = self.shop if items == 1000 else simulator.make_shop(3, items, users)
      self.assertLen(shop.catalog, items)
      self.assertLen(shop.interactions, users)
    with self.assertRaisesRegex(ConfigError, '59 items'):
      simulator.make_shop(items=59)

  def test_sequences_have_5_to_20_items_and_none_twice(self):
    data = self.shop.interactions
    lengths = data.lengths()
    self.assertEqual((lengths.min(), lengths.max()), (5, 20))
    self.assertBetween(lengths.mean(), 7.5, 8.5)
    for u in range(len(data)):
      self.assertLen(set(data.history(u).tolist()), lengths[u])
    self.assertBetween(data.items.min(), 1, len(self.shop.catalog))

  def test_times_rise_within_each_user(self):
    data = self.shop.interactions
    rises = np.diff(data.times) > 0
    rises[data.offsets[1:-1] - 1] = True
    self.assertTrue(rises.all())

  def test_texts_are_complete_and_titles_unique(self):
    columns = self.shop.catalog.columns
    self.assertLen(set(columns['title']), 1000)
    self.assertGreater(len(set(columns['description'])), 950)
    for title, text, brand, path, price in zip(*(columns[c] for c in (
        'title', 'description', 'brand', 'categories', 'price'))):
      self.assertBetween(len(title), 8, 120)
      self.assertNotRegex(title + text, r'[{}|]|  |,,|\.\.')
      self.assertTrue(text.endswith('.') and text[0].isupper(), text)
      self.assertIn(brand, itertools.chain(*BRANDS))
      self.assertBetween(len(path), 2, 3)
      self.assertGreater(price, 1)

  def test_no_text_names_a_project(self):
    columns = self.shop.catalog.columns
    texts = [text.casefold() for text in itertools.chain(
        columns['title'], columns['description'], *columns['categories'])]
    for project in product_text.projects():
      self.assertEmpty([text for text in texts if project in text][:3], project)

  def test_steps_that_follow_each_other_stand_in_different_departments(self):
    kinds = {kind.key: kind for kind in product_text.kinds()}
    projects = product_text.projects()
    self.assertBetween(len(projects), 30, 40)
    self.assertSameElements(itertools.chain(*projects.values()), kinds)
    for name, steps in projects.items():
      self.assertBetween(len(steps), 6, 8, name)
      self.assertLen(set(steps), len(steps), name)
      for one, two in itertools.pairwise(steps):
        self.assertNotEqual(kinds[one].department, kinds[two].department, f'{name}: {one}, {two}')

  def test_the_tables_are_well_formed(self):
    for kind in product_text.kinds():
      self.assertLen(kind.features, 3)
      self.assertLen(kind.nouns, 2)
      self.assertContainsSubset(kind.axes, AXES)
      self.assertBetween(len(kind.axes) + kind.packed, 1, 2)
      self.assertLess(*kind.prices)
    names = list(itertools.chain(*BRANDS))
    self.assertLen(set(names), 40)

  def test_what_can_be_reached_is_as_documented(self):
    found = simulator.oracle()
    self.assertAlmostEqual(found['oracle']['HR@10'], .657, delta=.001)
    self.assertAlmostEqual(found['oracle']['NDCG@10'], .397, delta=.001)
    self.assertAlmostEqual(found['popularity']['HR@10'], .032, delta=.001)
    self.assertAlmostEqual(found['popularity']['NDCG@10'], .016, delta=.001)

  def test_the_oracle_beats_a_ranking_by_successor_counts(self):
    data, n = self.shop.interactions, len(self.shop.catalog)
    counts, popular, hits = np.zeros((n + 1, n + 1)), np.zeros(n + 1), 0
    for u in range(len(data)):
      train = data.history(u)[:-2]
      np.add.at(counts, (train[:-1], train[1:]), 1)
      popular[train] += 1
    for u in range(len(data)):
      *past, target = data.history(u)
      scores = counts[past[-1]] + popular * 1e-6
      scores[past] = -1
      hits += (scores >= scores[target]).sum() <= 10
    self.assertBetween(hits / len(data), .25, .35)


if __name__ == '__main__':
  absltest.main()
