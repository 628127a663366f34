
import json
import pathlib
import time
import warnings

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.errors import ConfigError, DataError
from recjax.retrieval import bm25
from tests.reference import metrics as judge

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared'

T12 = [['x', 'y'], ['x', 'z', 'z'], ['w'], ['v'], ['u'], ['t']]

OFF = -np.inf

SHOPS = st.lists(st.dictionaries(st.sampled_from('abcdef'), st.integers(1, 5), max_size=5),
                 min_size=2, max_size=8).filter(any)


def ragged(rows):
  return (np.array([i for row in rows for i in row], np.int32),
          np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64))


class BM25Test(parameterized.TestCase):

  def test_oracle_t12(self):
    model = bm25.BM25.fit(T12, k1=0.75, b=0.75, idf_cutoff=OFF)
    self.assertAlmostEqual(model.idf[model.terms['x']], 0.587787, places=6)
    self.assertAlmostEqual(model.idf[model.terms['z']], 1.299283, places=6)
    scores = model.scores([['x', 'z']])
    self.assertEqual((scores.shape, scores.dtype), ((1, 6), np.float32))
    np.testing.assert_allclose(scores[0, :3], [0.530904, 1.817639, 0], atol=1e-6)
    self.assertEqual(model.dropped, 0)

  def test_further_documents_change_no_score_of_those_before(self):
    more = [*T12, ['x', 'new', 'x', 'z'], ['x'] * 9]
    before = bm25.BM25.fit(T12, idf_cutoff=OFF).scores([['x', 'z'], ['y']])
    after = bm25.BM25.fit(more, idf_cutoff=OFF, known=6).scores([['x', 'z'], ['y']])
    np.testing.assert_array_equal(after[:, :6], before)
    self.assertTrue((after[0, 6:] > 0).all())
    found = bm25.BM25.fit(more, idf_cutoff=OFF, known=6).scores([['new']])[0]
    self.assertEqual(found.argmax(), 6)  # a tag that nobody had is as rare as can be
    self.assertNotAlmostEqual(bm25.BM25.fit(more, idf_cutoff=OFF).scores([['x']])[0, 0],
                              before[0, 0])

  def test_a_tag_at_the_cutoff_is_dropped(self):
    # In 2 of 4 documents: ln(2.5) - ln(2.5) = 0, the default cutoff.
    model = bm25.BM25.fit([['half', 'rare'], ['half'], ['other'], ['last']])
    self.assertEqual((model.idf[model.terms['half']], model.dropped), (0, 1))

  def test_cutoff_that_drops_every_tag_warns_and_scores_zero(self):
    with self.assertWarnsRegex(UserWarning, 'all 7 tags .* lower idf_cutoff'):
      model = bm25.BM25.fit(T12, idf_cutoff=4)
    self.assertEqual(model.dropped, 7)
    np.testing.assert_array_equal(model.scores([['x', 'z']]), np.zeros((1, 6)))

  def test_documents_may_be_lists_pairs_or_mappings(self):
    pairs = [[('x', 1), ('y', 1)], [('x', 1), ('z', 2)]] + T12[2:]
    mappings = [dict(p) for p in pairs[:2]] + T12[2:]
    want = bm25.BM25.fit(T12).scores([['x', 'z']])
    for docs in (pairs, mappings, (doc for doc in pairs)):
      np.testing.assert_array_equal(bm25.BM25.fit(docs).scores([{'x': 1, 'z': 1}]), want)

  def test_query_weights_count_linearly_and_unknown_tags_add_nothing(self):
    model = bm25.BM25.fit(T12)
    x, z = model.scores([['x'], ['z']])
    found = model.scores([{'x': 3, 'z': 0.5, 'never seen': 9}, {}])
    np.testing.assert_allclose(found, [3 * x + 0.5 * z, 0 * x], rtol=1e-6)

  def test_an_empty_document_never_scores(self):
    model = bm25.BM25.fit([['a'], [], ['b'], ['c']])
    self.assertEqual(model.scores([['a', 'b', 'c']])[0, 1], 0)

  @settings(max_examples=60, deadline=None, database=None)
  @given(SHOPS, st.data())
  def test_scores_match_the_plain_judge(self, docs, data):
    how = data.draw(st.sampled_from(bm25.REDUCERS))
    history = data.draw(st.lists(st.integers(1, len(docs)), min_size=1, max_size=5))
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      model = bm25.BM25.fit(docs, idf_cutoff=OFF)
    query = bm25.reduce_queries(model.counts, *ragged([[], history]), how)
    plain = judge.reduce(docs, history, how)
    names = {column: tag for tag, column in model.terms.items()}
    self.assertEqual({names[c]: w for c, w in zip(query.indices, query.data)}, plain)
    want = judge.bm25(docs, plain, 0.75, 0.75, OFF)
    found = model.scores(query)
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[1], want, rtol=1e-5, atol=1e-5)  # float32 sums of 6 terms

  def test_both_ways_to_multiply_agree_to_the_bit(self):
    rng = np.random.default_rng(0)
    docs = [{f't{t}': int(w) for t, w in zip(rng.integers(0, 60, 20), rng.integers(1, 9, 20))}
            for _ in range(80)]
    model = bm25.BM25.fit(docs)
    queries = bm25.reduce_queries(model.counts, *ragged(rng.integers(1, 81, (9, 4)).tolist()))
    dense = model.scores(queries)
    np.testing.assert_array_equal((queries @ model.by_tag).toarray(), dense)

  def test_scores_of_a_block_do_not_depend_on_its_size(self):
    rng = np.random.default_rng(1)
    docs = [[f't{t}' for t in rng.integers(0, 40, 6)] for _ in range(50)]
    score = bm25.history_scores(bm25.BM25.fit(docs), 'sum')
    rows = [rng.integers(1, 51, n).tolist() for n in (1, 4, 0, 7, 2)]
    whole = score(*ragged(rows))
    for i, row in enumerate(rows):
      np.testing.assert_array_equal(score(*ragged([row]))[0], whole[i])

  @parameterized.parameters('union', 'sum', 'intersection', 'last')
  def test_empty_histories_are_empty_queries(self, how):
    model = bm25.BM25.fit(T12)
    queries = bm25.reduce_queries(model.counts, *ragged([[], []]), how)
    self.assertEqual((queries.shape, queries.nnz), ((2, 7), 0))

  @parameterized.parameters(
      ('no tag at all', lambda: bm25.BM25.fit([[], []])),
      ("document 1 gives tag 'b' the weight 0", lambda: bm25.BM25.fit([['a'], {'b': 0}])),
      ('the weight nan', lambda: bm25.BM25.fit([{'a': float('nan')}])),
      ('items 9..9, but 6 documents', lambda: bm25.history_scores(bm25.BM25.fit(T12))(
          *ragged([[9]]))))
  def test_bad_data_is_named(self, words, call):
    with self.assertRaisesRegex(DataError, words):
      call()

  def test_bad_settings_are_named(self):
    with self.assertRaisesRegex(ConfigError, 'k1=-1'):
      bm25.BM25.fit(T12, k1=-1)
    with self.assertRaisesRegex(ConfigError, "'mean' is unknown; use one of union"):
      bm25.reduce_queries(bm25.BM25.fit(T12).counts, *ragged([[1]]), 'mean')

  @absltest.skipUnless((SHARED / 'data/formats/betag').is_dir(), 'no shared BETag files')
  def test_real_base_tags_score_in_seconds_and_find_more_than_chance(self):
    folder = SHARED / 'data/formats/betag'
    tags = json.loads((folder / 'base_tags.json').read_text())
    index = {item: i for i, item in enumerate(tags, start=1)}
    rows = [[index[str(i)] for i in row] for row in
            json.loads((folder / 'inters.train.json').read_text())]
    start = time.process_time()
    model = bm25.BM25.fit(list(tags.values()))
    score, hits = bm25.history_scores(model), 0
    for at in range(0, len(rows), 512):
      block = rows[at:at + 512]
      found = score(*ragged([row[:-1] for row in block]))
      own = found[np.arange(len(block)), [row[-1] - 1 for row in block]]
      hits += int(((found >= own[:, None]).sum(axis=1) <= 10 + 1).sum())
    self.assertLess(time.process_time() - start, 30)  # 0.3 s alone
    self.assertGreater(hits / len(rows), 10 * 10 / len(tags))


if __name__ == '__main__':
  absltest.main()
