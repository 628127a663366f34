"""Tries against a dictionary trie, on random catalogs and by hand."""
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.decoding import device_trie, item_filter, trie
from recjax.errors import DataError
from tests.long import examples

A = [32, 426, 356, 423]
TITLES = [A, [*A, 469, 435], [32, 426, 356, 469, 435], [32, 426, 469, 435]]
END = 9002
CATALOGS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=25)


def dictionary(rows, end):
  """The trie that everybody would write first."""
  root = {}
  for row in rows:
    node = root
    for token in [*row, end]:
      node = node.setdefault(token, {})
  return root


class TrieTest(parameterized.TestCase):

  def agree(self, built, node, prefix):
    self.assertEqual(built.children(prefix), sorted(node), prefix)
    for token, child in node.items():
      self.agree(built, child, [*prefix, token])

  @examples(60, 300)
  @hypothesis.given(CATALOGS, st.randoms(use_true_random=False))
  def test_children_are_those_of_a_dictionary_in_any_order(self, rows, random):
    want = dictionary(rows, 5)
    self.agree(trie.build(rows, end=5), want, [])
    random.shuffle(rows)
    built = trie.build(rows, end=5)
    self.agree(built, want, [])
    self.assertEqual([built.row(i).tolist() for i in range(len(rows))], [[*r, 5] for r in rows])
    ordered = [built.row(i).tolist() for i in built.item]
    self.assertEqual(ordered, sorted(ordered))

  @examples(20, 100)
  @hypothesis.given(CATALOGS)
  def test_a_node_holds_the_places_of_the_titles_below_it(self, rows):
    built = trie.build(rows, end=5)
    for row in rows:
      for at in range(len(row) + 1):
        node = built.walk(row[:at])
        below = {i for i, r in enumerate(rows) if r[:at] == row[:at]}
        places = built.item[built.lo[node]:built.hi[node]]
        if built.fan_out[node]:  # a node of one title stands for all of its prefixes
          self.assertEqual(set(places.tolist()), below)
        self.assertContainsSubset(places.tolist(), below)

  def test_t1_every_prefix_counts_the_titles_below_it(self):
    built = trie.build(TITLES, end=END)
    for prefix, count in (([], 4), ([32], 4), ([32, 426], 4), ([32, 426, 356], 3), (A, 2),
                          ([*A, END], 1)):
      node = built.walk(prefix)
      self.assertEqual(built.hi[node] - built.lo[node], count, prefix)

  def test_t2_a_title_that_begins_another_may_end_or_go_on(self):
    built = trie.build(TITLES, end=END)
    self.assertEqual(built.children([]), [32])
    self.assertEqual(built.children([32, 426]), [356, 469])
    self.assertEqual(built.children(A), [469, END])

  def test_t6_a_single_title_is_forced(self):
    built = trie.build([A], end=END)
    self.assertLen(built.tok, 1)
    self.assertEqual([built.children(A[:i]) for i in range(5)], [[t] for t in [*A, END]])

  def test_duplicates_share_a_leaf(self):
    built = trie.build([[5, 6], [7], [5, 6]], end=9)
    leaf = built.walk([5, 6, 9])
    self.assertEqual(sorted(built.item[built.lo[leaf]:built.hi[leaf]]), [0, 2])
    self.assertEqual(built.stats()['duplicates'], 1)

  def test_what_is_saved_is_loaded_and_mapped(self):
    folder = pathlib.Path(self.create_tempdir().full_path) / 'trie'
    for rows, end in ((TITLES, END), (np.array([[1, 2], [1, 3]]), None)):
      built = trie.build(rows, end=end)
      built.save(folder)
      for mmap in (False, True):
        again = trie.Trie.load(folder, mmap)
        self.agree(again, dictionary(TITLES, END), []) if end else None
        for name in trie.ARRAYS:
          np.testing.assert_array_equal(getattr(again, name), getattr(built, name))
    (folder / 'tok.npy').write_bytes(b'x')
    with self.assertRaisesRegex(DataError, 'no readable trie'):
      trie.Trie.load(folder)

  @parameterized.parameters(
      ([], 5, 'empty'), ([[1], []], 5, 'row 1 has no tokens'),
      ([[1], [2, 5, 1]], 5, 'row 1 holds the end token'), ([[1], [-1]], 5, 'row 1 holds token -1'),
      ([[1, 2], [1]], None, 'row 1 begins row 0'))
  def test_bad_catalogs_are_refused_by_row(self, rows, end, words):
    with self.assertRaisesRegex(DataError, words):
      trie.build(rows, end=end)

  def test_tokens_of_another_tokenizer_are_refused(self):
    with self.assertRaisesRegex(DataError, 'row 1 holds token 12, outside the vocabulary of 10'):
      trie.build([[1], [2, 12]], end=9, vocab=10)

  def test_walks_name_where_they_leave(self):
    built = trie.build(TITLES, end=END)
    with self.assertRaisesRegex(DataError, 'token 7 at position 2'):
      built.walk([32, 426, 7])
    with self.assertRaisesRegex(DataError, 'token 9 at position 5'):
      built.walk([*A, 469, 9])

  def test_long_common_beginnings_and_large_vocabularies_are_sorted(self):
    rng = np.random.default_rng(0)
    stem = rng.integers(0, 150_000, 20).tolist()
    rows = [[*stem[:n], *rng.integers(0, 150_000, 3)] for n in rng.integers(0, 21, 300)]
    built = trie.build(rows, end=151_000, vocab=152_000)
    ordered = [built.row(i).tolist() for i in built.item]
    self.assertEqual(ordered, sorted(ordered))
    self.agree(built, dictionary(rows, 151_000), [])


children_of = jax.jit(device_trie.children, static_argnums=3)


class ForestTest(absltest.TestCase):

  def children(self, planted, node, depth):
    width = max(planted.width, planted.root_width)
    token, child, exists = map(np.asarray, children_of(
      planted, jnp.full((1, 1), node), jnp.int32(depth), width))
    return {int(t): int(c) for t, c, e in zip(token[0, 0], child[0, 0], exists[0, 0]) if e}

  def walked(self, planted, root, prefix):
    node = root
    for depth, token in enumerate(prefix):
      node = self.children(planted, node, depth)[token]
    return node

  @examples(2, 20)
  @hypothesis.given(CATALOGS, CATALOGS)
  def test_device_children_are_the_hosts_also_of_joined_catalogs(self, one, two):
    tries = [trie.build(rows, end=5) for rows in (one, two)]
    planted = device_trie.to_device_trie(tries)
    for built, root, rows in zip(tries, planted.roots.tolist(), (one, two)):
      for row in rows[:4]:
        row = [*row, 5]
        for at in range(len(row)):
          node = self.walked(planted, root, row[:at])
          self.assertEqual(sorted(self.children(planted, node, at)), built.children(row[:at]))
        self.assertTrue(device_trie.complete(
            planted, jnp.asarray(self.walked(planted, root, row)), len(row)))

  @examples(2, 20)
  @hypothesis.given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=2, max_size=30))
  def test_codes_built_on_the_device_are_those_of_the_host(self, codes):
    codes = np.array(codes, np.int32)
    offsets = jnp.array([100, 200, 300])
    host = device_trie.to_device_trie(trie.build(codes, vocab=4), level_offsets=offsets)
    device = jax.jit(device_trie.semantic_id_trie, static_argnums=1)(jnp.asarray(codes), 4, offsets)
    for row in codes[:6]:
      a = b = 0
      for depth, code in enumerate(row):
        left, right = self.children(host, a, depth), self.children(device, b, depth)
        self.assertEqual(sorted(left), sorted(right))
        a, b = left[int(code) + int(offsets[depth])], right[int(code) + int(offsets[depth])]
      for planted, node in ((host, a), (device, b)):
        items = planted.item[int(planted.lo[node]):int(planted.hi[node])].tolist()
        self.assertEqual(sorted(items), np.flatnonzero((codes == row).all(1)).tolist())

  def test_dense_rows_give_what_gathers_give(self):
    rng = np.random.default_rng(0)
    rows = [[int(a), int(b)] for a, b in rng.integers(0, 60, (400, 2))]
    built = trie.build(rows, end=60, vocab=64)
    sparse, dense = (
      device_trie.to_device_trie(built, dense_from=10**6),
      device_trie.to_device_trie(built, dense_from=3),
    )
    self.assertGreater(len(dense.wide), 5)
    nodes = jnp.asarray(rng.integers(0, len(built.tok), (1, 200)))
    got = device_trie.dense_children(dense, nodes, 1, 64)
    token, child, exists = device_trie.children(sparse, nodes, 1, 64)
    want = np.full(got.shape, -1)
    for k in range(200):
      good = np.asarray(exists[0, k])
      want[0, k, np.asarray(token[0, k])[good]] = np.asarray(child[0, k])[good]
    np.testing.assert_array_equal(got, want)

  @examples(4, 30)
  @hypothesis.given(st.integers(1, 90), st.data())
  def test_open_places_are_counted_like_a_list(self, count, data):
    built = trie.build([[i // 10, i % 10] for i in range(count)], end=10)
    items = np.arange(1, count + 1)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    taken = data.draw(st.lists(st.integers(1, count), max_size=9))
    for limits, open_ in (
        (item_filter.build_item_filter(built, allowed=allowed[None]), allowed),
        (item_filter.build_item_filter(built, taken=[taken]), ~np.isin(items, taken)),
        (item_filter.build_item_filter(built, allowed=allowed[None], taken=[taken]),
         allowed & ~np.isin(items, taken))):
      lo, hi = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count))))
      got = limits.count_open(jnp.full((1, 1), lo), jnp.full((1, 1), hi))
      self.assertEqual(int(got[0, 0]), int(open_[built.item[lo:hi]].sum()))

  def test_unknown_items_in_a_limit_are_named(self):
    built = trie.build([[1], [2]], end=5)
    with self.assertRaisesRegex(DataError, 'item 3 is outside'):
      item_filter.build_item_filter(built, allowed=[[1, 3]])
    with self.assertRaisesRegex(DataError, 'item 0 is outside'):
      item_filter.build_item_filter(built, taken=[[0]])


if __name__ == '__main__':
  absltest.main()
