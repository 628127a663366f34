"""Published raw files, made small in their exact layout, become the data set they should."""
import gzip
import json
import pathlib
import types

from absl.testing import absltest, parameterized

from recjax.data import loading, raw_reader
from recjax.data.prepare import cli, duckdb_engine
from recjax.data.prepare import report as report_lib
from recjax.data.prepare import rules as rules_lib
from recjax.data.sources import amazon, movielens, steam, yelp
from recjax.errors import DataError
from tests.long import long

try:
  import duckdb
except ImportError:
  duckdb = None

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data'


def quiet(text):
  del text


def good(rows):
  """The rows of a source; none may be bad."""
  found = []
  for path, number, row, why in rows:
    assert row is not None, f'{path} {number}: {why}'
    found.append(row)
  return found


class SourcesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, text, encoding='utf-8'):
    path = self.folder / name
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    return path

  def lines(self, name, rows, form=json.dumps):
    return self.write(name, ''.join(form(row) + '\n' for row in rows))

  def test_amazon_2014(self):
    reviews = self.lines('reviews_Beauty_5.json.gz', [{
        'reviewerID': 'A1YJEY40YUW4SE', 'asin': '7806397051', 'reviewerName': 'Andrea',
        'helpful': [3, 4], 'reviewText': 'Fine.', 'overall': 1.0, 'summary': 'so so',
        'unixReviewTime': 1391040000, 'reviewTime': '01 30, 2014'}])
    meta = self.lines('meta_Beauty.json.gz', [{
        'asin': '7806397051', 'description': "It's \n fine", 'title': 'Soap &amp; Co',
        'price': 9.5, 'imUrl': 'http://x/y.jpg', 'related': {'also_bought': ['B1']}, 'brand': '',
        'salesRank': {'Beauty': 5},
        'categories': [['Beauty', 'Bath &amp; Body'], ['Other']]}], repr)
    source = amazon.source('2014', reviews, meta)
    self.assertEqual(source.name, 'Beauty')
    self.assertEqual(good(source.interactions), [('A1YJEY40YUW4SE', '7806397051', 1391040000, 1.0)])
    self.assertEqual(good(source.items), [('7806397051', {
        'title': 'Soap & Co', 'description': "It's fine", 'price': 9.5,
        'categories': ['Beauty', 'Bath & Body']})])

  def test_amazon_2018(self):
    reviews = self.lines('AMAZON_FASHION_5.json.gz', [{
        'overall': 5.0, 'verified': True, 'reviewTime': '09 4, 2015', 'reviewerID': 'ALJ66O1',
        'asin': 'B000K2PJ4K', 'style': {'Size:': ' Big'}, 'reviewText': 'Great',
        'unixReviewTime': 1441324800}])
    meta = self.lines('meta_AMAZON_FASHION.json.gz', [{
        'category': ['Fashion', 'Shoes'], 'tech1': '', 'description': ['One.', 'Two.'], 'fit': '',
        'title': 'Slippers', 'also_buy': [], 'brand': 'Foot', 'feature': ['Soft'], 'rank': [],
        'main_cat': '<img src="x"/>', 'price': '$9.99', 'asin': 'B000K2PJ4K'}])
    source = amazon.source('2018', reviews, meta)
    self.assertEqual(source.name, 'AMAZON_FASHION')
    self.assertEqual(good(source.interactions), [('ALJ66O1', 'B000K2PJ4K', 1441324800, 5.0)])
    self.assertEqual(good(source.items)[0][1] | {'main_category': ''}, {
        'title': 'Slippers', 'brand': 'Foot', 'categories': ['Fashion', 'Shoes'], 'price': 9.99,
        'description': 'One. Two.', 'features': 'Soft', 'main_category': ''})

  def test_amazon_2023(self):
    reviews = self.lines('Video_Games.jsonl.gz', [{
        'rating': 4.0, 'title': 'Good', 'text': 'Game', 'images': [], 'asin': 'B07', 'parent_asin':
        'B08', 'user_id': 'AGCI7FAH4GL5FI65HYLKWTMFZ2CQ', 'timestamp': 1608186804795,
        'helpful_vote': 0, 'verified_purchase': True}])
    meta = self.lines('meta_Video_Games.jsonl.gz', [{
        'main_category': 'Video Games', 'title': 'Quest', 'average_rating': 4.2, 'rating_number': 3,
        'features': ['a', 'b'], 'description': [], 'price': None, 'images': [], 'videos': [],
        'store': 'Maker', 'categories': ['Video Games', 'PC'], 'details': {'Rated': 'E'},
        'parent_asin': 'B08', 'bought_together': None}])
    source = amazon.source('2023', reviews, meta)
    event = ('AGCI7FAH4GL5FI65HYLKWTMFZ2CQ', 'B08', 1608186804795, 4.0)
    self.assertEqual(good(source.interactions), [event])
    self.assertEqual(good(source.items), [('B08', {
        'title': 'Quest', 'brand': 'Maker', 'categories': ['Video Games', 'PC'], 'features': 'a b',
        'main_category': 'Video Games'})])
    table = self.write('Video_Games.csv', 'user_id,parent_asin,rating,timestamp\n'
                       'AGCI7FAH4GL5FI65HYLKWTMFZ2CQ,B08,4.0,1608186804795\n')
    self.assertEqual(good(amazon.source('2023', table).interactions), [event])

  @parameterized.parameters(('2014', 'u,i,5.0,1391040000\n'), ('2018', 'i,u,5.0,1391040000\n'))
  def test_ratings_without_text(self, edition, text):
    path = self.write('ratings_Beauty.csv', text)
    self.assertEqual(good(amazon.source(edition, path).interactions), [('u', 'i', 1391040000, 5.0)])

  def test_categories_are_told_from_names(self):
    for name, want in (('reviews_Beauty_5.json.gz', 'Beauty'), ('Toys_and_Games.jsonl', 'Toys_and'
                       '_Games'), ('ratings_Books.csv', 'Books'), ('meta_CDs.json.gz', 'CDs')):
      self.assertEqual(amazon.category(f'some/{name}'), want)

  def test_movielens_100k(self):
    self.write('u.data', '196\t2\t3\t881250949\n186\t1\t3\t891717742\n')
    flags = ['0'] * 19
    flags[3] = flags[5] = '1'
    self.write('u.item', '1|Toy Story (1995)|01-Jan-1995||http://x|' + '|'.join(flags) + '\n'
               '2|Mis\xe9rables "Les" (1995)|||http://x|' + '|'.join(['0'] * 19) + '\n', 'latin-1')
    source = movielens.source(self.folder)
    self.assertEqual(good(source.interactions), [('196', '2', 881250949, 3.0),
                                           ('186', '1', 891717742, 3.0)])
    self.assertEqual(good(source.items), [
        ('1', {'title': 'Toy Story (1995)', 'categories': ['Animation', 'Comedy']}),
        ('2', {'title': 'Mis\xe9rables "Les" (1995)'})])

  @parameterized.parameters('latin-1', 'utf-8')
  def test_movielens_1m_and_10m(self, encoding):
    self.write('ratings.dat', '1::1193::4.5::978300760\n')
    self.write('movies.dat', "1193::Caf\xe9: One (1975)::Drama|Children's\n", encoding)
    source = movielens.source(self.folder)
    self.assertEqual(good(source.interactions), [('1', '1193', 978300760, 4.5)])
    self.assertEqual(good(source.items), [
        ('1193', {'title': 'Caf\xe9: One (1975)', 'categories': ['Drama', "Children's"]})])

  def test_movielens_20m_and_later(self):
    self.write('ratings.csv', 'userId,movieId,rating,timestamp\r\n1,296,5.0,1147880044\r\n')
    self.write('movies.csv', 'movieId,title,genres\r\n296,"Pulp, ""F"" (1994)",Crime|Drama\r\n'
               '7,X,(no genres listed)\r\n')
    source = movielens.source(self.folder)
    self.assertEqual(good(source.interactions), [('1', '296', 1147880044, 5.0)])
    self.assertEqual(good(source.items), [
        ('296', {'title': 'Pulp, "F" (1994)', 'categories': ['Crime', 'Drama']}),
        ('7', {'title': 'X'})])

  @parameterized.parameters(
      ('academic_dataset', ['Bars', 'Food'], '2016-03-09 20:56:38', 1457556998),
      ('academic_dataset', 'Bars, Food', '2016-03-09 20:56:38', 1457556998),
      ('training_set', ['Bars', 'Food'], '2011-01-26', 1296000000))
  def test_yelp(self, edition, categories, date, time):
    self.lines(f'yelp_{edition}_review.json', [{
        'review_id': 'r', 'user_id': 'u', 'business_id': 'b', 'stars': 4.0, 'date': date,
        'text': 't', 'useful': 0, 'type': 'review'}])
    self.lines(f'yelp_{edition}_business.json', [{
        'business_id': 'b', 'name': 'Bar', 'city': 'Tempe', 'state': 'AZ', 'stars': 4.5,
        'categories': categories, 'neighborhoods': [], 'latitude': 1.0, 'type': 'business'}])
    source = yelp.source(self.folder)
    self.assertEqual(good(source.interactions), [('u', 'b', time, 4.0)])
    self.assertEqual(good(source.items), [('b', {
        'title': 'Bar', 'categories': ['Bars', 'Food'], 'city': 'Tempe', 'state': 'AZ',
        'stars': 4.5})])

  def test_steam(self):
    reviews = self.write('steam_reviews.json.gz', "{u'username': u'Chaos \\u2122', u'hours': 0.1, "
                         "u'product_id': u'725280', u'date': u'2017-12-17', u'text': u'ok'}\n")
    games = self.write('steam_games.json.gz', "{u'publisher': u'K', u'genres': [u'Action'], "
                       "u'app_name': u'Lost', u'tags': [u'Indie', u'RPG'], u'price': u'Free', "
                       "u'early_access': False, u'id': u'725280', u'developer': u'D'}\n")
    source = steam.source(reviews, games)
    self.assertEqual(good(source.interactions), [('Chaos \u2122', '725280', 1513468800, None)])
    self.assertEqual(good(source.items), [('725280', {
        'title': 'Lost', 'brand': 'D', 'categories': ['Action'], 'tags': ['Indie', 'RPG'],
        'price': 'Free'})])

  def test_what_is_missing_is_said_with_where_to_get_it(self):
    with self.assertRaisesRegex(DataError, 'none of u.data, ratings.dat.*files.grouplens.org'):
      movielens.source(self.folder)
    with self.assertRaisesRegex(DataError, 'yelp_academic_dataset_review.json.*yelp.com/dataset'):
      yelp.source(self.folder)
    for edition in amazon.EDITIONS:
      with self.assertRaisesRegex(DataError, 'nowhere.json does not exist; fetch it from .*amazon'):
        amazon.source(edition, 'nowhere.json')
    with self.assertRaisesRegex(DataError, 'none.json does not exist; .*steam'):
      steam.source(self.write('steam_reviews.json', ''), 'none.json')
    self.write('u.data', '')
    with self.assertRaisesRegex(DataError, 'u.data but no u.item'):
      movielens.source(self.folder)

  @absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
  def test_days_bound_times_of_any_unit(self):
    for unit in (1, 1000, 10 ** 6):
      day = 1_577_836_800 * unit  # 2020-01-01
      events = [
        ('f', n, ('u', f'i{n}', t, None), '')
        for n, t in enumerate((day - 1, day, day + 86_400 * unit - 1, day + 86_400 * unit))
      ]
      report = duckdb_engine.prepare(
        raw_reader.Source('x', events),
        self.folder / f'o{unit}',
        rules_lib.Rules(start='2020-01-01', end='2020-01-01'),
        say=quiet,
      )
      self.assertEqual(report['steps'][-1]['interactions'], 2, unit)

  @absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
  @long
  def test_movielens_100k_as_published(self):
    if not (SHARED / 'ml-100k').is_dir():
      self.skipTest('needs ../shared/data/ml-100k')
    data = loading.load_data(SHARED / 'ml-100k')
    shop, goods = data.interactions, data.catalog
    lines = (SHARED / 'ml-100k' / 'sequences.jsonl').read_text().splitlines()
    rows = [(row['user_id'], *event) for row in map(json.loads, lines)
            for event in zip(row['items'], row['ratings'], row['timestamps'])]
    self.write('u.data', ''.join('\t'.join(map(str, row)) + '\n' for row in rows))
    self.write('u.item', ''.join(f'{i}|{title}||||' + '|'.join(
        '01'[g in (genres or [])] for g in movielens.GENRES) + '\n' for i, title, genres in zip(
            goods.ids, goods.columns['title'], goods.columns['categories'])))
    rules, expected = cli.rules_of(self.args('movielens', variant='all'))
    report = duckdb_engine.prepare(
      movielens.source(self.folder), self.folder / 'out', rules, say=quiet
    )
    self.assertIn('\nAs published: 943', report_lib.report_page('x', report, expected['ml-100k']))
    again = loading.load_data(self.folder / 'out')
    self.assertEqual(again.interactions.items.tolist(), shop.items.tolist())
    self.assertEqual(again.interactions.times.tolist(), [row[3] for row in rows])
    self.assertEqual(again.catalog.columns['title'], goods.columns['title'])

  @absltest.skipIf(duckdb is None, 'duckdb is not installed; pip install "recjax[data]"')
  @long
  def test_beauty_of_s3rec_as_published(self):
    if not (SHARED / 'amazon-beauty').is_dir():
      self.skipTest('needs ../shared/data/amazon-beauty')
    data = loading.load_data(SHARED / 'amazon-beauty')
    shop, ids = data.interactions, data.catalog.ids
    rows = [(u, ids[i - 1], 5.0, 1_300_000_000 + n) for u, user in enumerate(shop.users)
            for n, i in enumerate(shop.history(u))]
    # What the 5-core takes away.
    rows += [('rare', ids[0], 5.0, 1_300_000_001), (0, 'rare', 5.0, 1_300_000_999)]
    self.write('ratings_Beauty.csv', ''.join(','.join(map(str, r)) + '\n' for r in rows))
    rules, expected = cli.rules_of(self.args('amazon2014', variant='s3rec'))
    source = amazon.source('2014', self.folder / 'ratings_Beauty.csv')
    report = duckdb_engine.prepare(source, self.folder / 'out', rules, say=quiet)
    page = report_lib.report_page('x', report, expected[source.name])
    self.assertIn('As published: 22,363 users, 12,101 items, 198,502 interactions.', page)
    report['steps'][-1]['users'] += 1
    self.assertIn('NOT as published', report_lib.report_page('x', report, expected[source.name]))

  def args(self, source, **given):
    names = [*rules_lib.Rules.__dataclass_fields__, 'k_core']
    return types.SimpleNamespace(source=source, **dict.fromkeys(names), **given)

  def test_a_rule_beside_a_variant_changes_it_and_what_is_expected(self):
    args = self.args('amazon2014', variant='sasrec')
    rules, expected = cli.rules_of(args)
    self.assertEqual((rules.user_k, rules.once), (5, True))
    self.assertIn('Beauty', expected)
    args.k_core = 10
    rules, expected = cli.rules_of(args)
    self.assertEqual((rules.user_k, rules.item_k, rules.once, expected), (10, 10, True, {}))


if __name__ == '__main__':
  absltest.main()
