"""10,000 damaged folders for all readers of files: what cannot be used is named, nothing bursts."""
import json
import pathlib
import random
import shutil

from absl.testing import absltest, parameterized

from recjax.data import loading
from recjax.data.formats import bigrec, etegrec, llmemb, reclm, sequence_lines
from recjax.data.sources import amazon, movielens, steam, table, yelp
from recjax.errors import UserError
from tests.long import long

DAMAGE = [b'\xff\xfe', b'\x00', b'\r', b'\r\n', b'\n', b'\n\n', b'"', b'\xef\xbb\xbf',
          b'{', b'}', b'[', b'[' * 3000, b',', b'\t', b'::', b'|', b'\\ud800', b'NaN', b'1e999',
          b'9' * 5000, b'-1', b'0', b'a' * 5000, b'null', b'true', b'[]', b'{}', b'""',
          b'\xed\xa0\x80', b' ', b'-']
NUMBER, FEW = 500, 100  # damaged folders of each reader; those without --all


def lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def rows_of(source):
  """Everything that a source yields; either a row or a reason, with a number."""
  for rows in (source.interactions, source.items):
    for path, number, row, why in rows:
      assert (row is None) == bool(why), (path, number, row, why)
      assert number >= 1, number


REVIEWS = [{'reviewerID': f'u{n}', 'asin': 'i', 'overall': 5.0, 'unixReviewTime': n}
           for n in range(3)]
# name -> (files, reader of the folder)
READERS = {
    'canonical': ({
        'items.jsonl': lines([{'item_id': 'a', 'title': 'A', 'categories': ['C'], 'price': 1.5},
                              {'item_id': 7, 'retired': True}]),
        'sequences.jsonl': lines([{'user_id': 'u', 'items': ['a', 7], 'times': [1, 2],
                                   'ratings': [1, 2.5]}])}, loading.load_data),
    'betag': ({'inters.train.json': b'[[3,1],[1]]', 'base_tags.json': b'{"1":["a"],"3":["c"]}'},
              loading.load_data),
    'llmemb': ({'inter_seq.txt': b'1 1 2 1\n2 2\n', 'id_map.json':
                b'{"id2item": {"1": "a", "2": "b"}, "id2user": {"1": "u", "2": "v"}}',
                'item_str.jsonline': lines([{'input': 'x', 'item_id': str(n)} for n in (1, 2)])},
               loading.load_data),
    'llmemb pairs': ({'inter.txt': b'1 1\n1 2\n2 2\n', 'id_map.json':
                      b'{"id2item": {"1": "a", "2": "b"}, "id2user": {"1": "u", "2": "v"}}'},
                     llmemb.read),
    'reclm': ({'sequential.jsonl': b'{"u": ["a", "b"]}', 'metas.jsonl':
               b'{"a": {"title": "A", "category": ["C", "D"]}, "b": {"title_t": "B"}}'},
              loading.load_data),
    'reclm category': ({'sequential.jsonl': b'{"u": ["a", "b"]}', 'metas.jsonl':
                        b'{"a": {"title": "A"}, "b": {}}', 'category.jsonl': b'{"C": ["a", "b"]}'},
                       loading.load_data),
    'reclm source': ({'sequential.jsonl': b'{"u": ["a", "b"]}', 'metas.jsonl':
                      b'{"a": {"title": "A", "category": ["C", "D"]}, "b": {"title_t": "B"}}'},
                     lambda f: rows_of(reclm.source(f))),
    'sequences': ({'x.txt': b'u a b\nv a\n', 'i.csv': b'item_id,title\na,A\n'},
                  lambda f: rows_of(sequence_lines.source(f / 'x.txt', f / 'i.csv'))),
    'etegrec': ({'x.emb_map.json': b'{"[PAD]": 0, "a": 1, "b": 2}', 'x.test.jsonl':
                 lines([{'inter_history': ['a'], 'target_id': 'b', 'user_id': 'u'}] * 2)},
                lambda f: rows_of(etegrec.source(f))),
    'table': ({'x.csv': b'user,item,time,rating\nu,i,2020-01-02,2\nv,"j",2020-01-01,3\n',
               'i.tsv': b'item\tname\tgenres\ni\tI\tA|B\n'},
              lambda f: rows_of(table.source(f / 'x.csv', f / 'i.tsv'))),
    'recbole': ({'x.inter': b'user_id:token\titem_id:token\ttimestamp:float\nu\ti\t3\n',
                 'x.item': b'item_id:token\ttitle:token_seq\ni\tA B\n'},
                lambda f: rows_of(table.source(f / 'x.inter', f / 'x.item'))),
    'movielens 100k': ({'u.data': b'1\t2\t3\t4\n', 'u.item': b'2|T|||x|' + b'|'.join([b'0'] * 19)
                        + b'\n'}, lambda f: rows_of(movielens.source(f))),
    'movielens 1m': ({'ratings.dat': b'1::2::3::4\n', 'movies.dat': b'2::T\xe9::A|B\n'},
                     lambda f: rows_of(movielens.source(f))),
    'movielens 32m': ({'ratings.csv': b'userId,movieId,rating,timestamp\r\n1,2,3.5,4\r\n',
                       'movies.csv': b'movieId,title,genres\r\n2,"T, ""a""",A|B\r\n'},
                      lambda f: rows_of(movielens.source(f))),
    'yelp': ({'yelp_academic_dataset_review.json': lines([
        {'user_id': 'u', 'business_id': 'b', 'stars': 4, 'date': '2016-03-09 20:56:38'}]),
              'yelp_academic_dataset_business.json': lines([
                  {'business_id': 'b', 'name': 'B', 'categories': 'A, B', 'city': 'C'}])},
             lambda f: rows_of(yelp.source(f))),
    'steam': ({'r.json': b"{u'username': u'a', u'product_id': u'1', u'date': u'2017-12-17'}\n",
               'g.json': b"{u'id': u'1', u'app_name': u'G', u'genres': [u'A'], u'price': 1.5}\n"},
              lambda f: rows_of(steam.source(f / 'r.json', f / 'g.json'))),
    'amazon 2014': ({'r.json': lines(REVIEWS), 'm.json':
                     b"{'asin': 'i', 'title': 'T &amp; U', 'categories': [['A', 'B']]}\n"},
                    lambda f: rows_of(amazon.source('2014', f / 'r.json', f / 'm.json'))),
    'amazon 2023': ({'r.jsonl': lines([{'user_id': 'u', 'parent_asin': 'i', 'rating': 5,
                                        'timestamp': 1608186804795}]), 'm.jsonl': lines([
        {'parent_asin': 'i', 'title': 'T', 'store': 'S', 'categories': ['A'], 'features': ['x']}])},
                    lambda f: rows_of(amazon.source('2023', f / 'r.jsonl', f / 'm.jsonl'))),
    'bigrec records': ({'x.json': lines([[{'instruction': 'a', 'input': 'b', 'output': 'c'}]])},
                       lambda f: bigrec.read_records(f / 'x.json')),
    'bigrec titles': ({'id2name.txt': b'T\xc3\xa9\t0\nU\t1\n'}, bigrec.read_titles),
    'bigrec movies': ({'movies.dat': b'1::T\xe9 (1990)::A|B\n2::U::C\n'}, bigrec.read_titles),
    'bigrec table': ({'x.csv': b'user_id,history_item_title,item_title,item_id,timestamp\n'
                      b'u,"[\'A\', \'B\']",C,3,17\n'}, lambda f: bigrec.read_table(f / 'x.csv')),
}


class BrokenTest(parameterized.TestCase):

  @parameterized.parameters(*READERS)
  def test_damage_is_named(self, name):
    self.check(name, range(-1, FEW))

  @parameterized.parameters(*READERS)
  @long
  def test_ten_thousand_damages_are_named(self, name):
    self.assertGreaterEqual(len(READERS) * NUMBER, 10_000)
    self.check(name, range(FEW, NUMBER))

  def check(self, name, seeds):
    contents, read = READERS[name]
    folder = pathlib.Path(self.create_tempdir().full_path)
    refused = 0
    for seed in seeds:
      draw = random.Random(f'{name}{seed}')
      shutil.rmtree(folder)
      folder.mkdir()
      for file, good in contents.items():
        (folder / file).write_bytes(good)
      if seed >= 0:
        self.damage(draw, folder / draw.choice(list(contents)))
      try:
        read(folder)
      except UserError as error:
        self.assertGreaterEqual(seed, 0, f'{name} as it should be: {error}')
        self.assertTrue(any(f in str(error) for f in [*contents, folder.name]), str(error))
        refused += 1
      except Exception as error:
        shown = {f: (folder / f).read_bytes()[:300] for f in contents if (folder / f).exists()}
        raise AssertionError(f'{name}, seed {seed}: {error!r} for {shown}') from error
    self.assertGreater(refused, 0)

  def damage(self, draw, path):
    if draw.random() < 0.02:
      path.unlink()
      return
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 4)):
      at = draw.randrange(len(data) + 1)
      data[at:at + draw.choice([0, 0, 1, 9])] = draw.choice(DAMAGE)
    path.write_bytes(data[:draw.choice([len(data)] * 9 + [draw.randrange(len(data) + 1)])])


if __name__ == '__main__':
  absltest.main()
