"""Search in the shop: beginnings of words against plain Python, accents, slips of the hand."""
import random
import re

import numpy as np
from absl.testing import absltest, parameterized

from recjax.data.dataset import Catalog
from recjax.errors import DataError
from recjax.serving.catalog_snapshot import CatalogSnapshot
from recjax.serving.demo.search import CatalogSearch

TITLES = ['Mörser mit Stößel, grün', 'Becherglas 250 ml', 'Becherglas 500 ml hoch', 'Café crème',
          'Øl glass', 'Handschuhe Nitril', 'stirring rod', 'Stirring bar "PTFE" 5-pack', None,
          'שלום עולם', 'グラス', "Robert'); DROP TABLE items;--"]


def snapshot(titles, counts=None, **columns):
  ids = tuple(f'i{n}' for n in range(len(titles)))
  counts = np.arange(len(titles), 0, -1) if counts is None else counts
  return CatalogSnapshot(Catalog(ids, {'title': titles, **columns}), counts)


class SearchTest(parameterized.TestCase):

  def found(self, query, titles=TITLES):
    found = CatalogSearch().search(snapshot(titles), query)
    return [item - 1 for item in found.items], found.read_as

  @parameterized.parameters(
      ('morser', [0]), ('MÖRSER', [0]), ('stoss', [0]), ('stöß', [0]), ('creme', [3]),
      ('cafe\u0301', [3]), ('ol', [4]), ('glass', [4]), ('bech 500', [2]), ('5', [2, 7]),
      ('ptfe 5-p', [7]), ('שלום', [9]), ('グラ', [10]), ("robert'); drop", [11]), ('x', []),
      ('"', [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]))
  def test_accents_signs_and_scripts(self, query, items):
    self.assertEqual(self.found(query), (items, ''))

  @parameterized.parameters(
      ('bechreglas', [1, 2], 'becherglas'), ('Becherglass 500', [2], 'becherglas 500'),
      ('handshuhe', [5], 'handschuhe'), ('moerser', [0], 'morser'), ('nitirl', [5], 'nitril'),
      ('stirrin rod', [6], ''), ('glsas', [4], 'glass'), ('gurn', [0], 'grun'),
      ('sitrring rods', [6], 'stirring rod'))
  def test_slips_of_the_hand(self, query, items, read_as):
    self.assertEqual(self.found(query), (items, read_as))

  @parameterized.parameters('xylophon', 'zzz', 'abc', 'becherglas xylophon')
  def test_what_is_not_there_is_not_made_up(self, query):
    self.assertEqual(self.found(query), ([], ''))

  def test_it_finds_what_plain_python_finds_best_sold_first(self):
    rng = random.Random(0)
    words = [''.join(rng.choices('abcdefgh', k=rng.randint(1, 5))) for _ in range(60)]
    titles = [' '.join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(300)]
    counts = np.array([rng.randrange(50) for _ in titles])
    brands = rng.choices(words, k=300)
    categories = [rng.choices(words, k=2) for _ in titles]
    shop = snapshot(titles, counts, brand=brands, categories=categories)
    search = CatalogSearch()
    order = sorted(range(300), key=lambda n: (-counts[n], n))
    for _ in range(200):
      parts = [rng.choice(words)[:rng.randint(1, 4)] for _ in range(rng.randint(1, 3))]
      want = [n for n in order if all(
          any(word.startswith(part) for word in re.findall(r'\w+', ' '.join(
              [titles[n], brands[n], *categories[n]]))) for part in parts)]
      found = search.search(shop, ' '.join(parts).upper(), limit=300)
      self.assertEqual(([item - 1 for item in found.items], found.total), (want, len(want)))
    found = search.search(shop, words[0][:1], categories[0][0], 1, 2)
    every = search.search(shop, words[0][:1], categories[0][0], 0, 300)
    self.assertEqual((found.items, found.total), (every.items[1:3], every.total))
    with self.assertRaises(DataError):
      search.search(shop, '', 'no such')


if __name__ == '__main__':
  absltest.main()
