"""Beam search against whole catalogs scored by brute force, and against the literal judge."""
import dataclasses
import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.decoding import constraints, device_trie, item_filter, trie
from recjax.decoding.beam_search import BeamSearch, beam_search
from recjax.decoding.constraints import (
  CatalogConstraint,
  CodeConstraint,
  Normalization,
  Unconstrained,
)
from recjax.decoding.lm_head import BoundDecoder
from recjax.errors import ConfigError
from tests.long import examples, long, long_but
from tests.reference import beam_search as judge

V, END = 8, 7

CATALOGS = st.lists(st.lists(st.integers(0, END - 1), min_size=1, max_size=5), min_size=1,
                      max_size=24)


@functools.partial(jax.jit, static_argnames='cfg')
def search(table, first, constraint, cfg, length_offset=0):
  """A model whose next token depends on the last one and its place. table: (steps, V, V), or
  (V, V) for every step; first: (B, V)"""
  table = table if table.ndim == 3 else jnp.stack([table] * cfg.new_tokens)
  return beam_search(BoundDecoder(lambda tokens, cache, t: (table[t, tokens], cache)), (), first,
                     constraint, dataclasses.replace(cfg, length_offset=length_offset))


def tables(seed, batch=2, size=V, scale=2.0, steps=6):
  """Each step has its own table: with one for all, two orders of the same tokens can tie."""
  rng = np.random.default_rng(seed)
  return (jnp.asarray(rng.normal(size=(steps, size, size)) * scale, jnp.float32),
          jnp.asarray(rng.normal(size=(batch, size)) * scale, jnp.float32))


def logp_of(table, first):
  table, first = (np.asarray(jax.nn.log_softmax(x)) for x in (table, first))
  return lambda row: table[len(row) - 1, row[-1]] if row else first


def rows_of(found, request):
  """-> [(score, tokens)] of the rows that exist"""
  return [(float(found.rows.scores[request, k]),
           tuple(found.rows.tokens[request, k, :found.rows.lengths[request, k]].tolist()))
          for k in range(int(found.count[request]))]


def planted(rows, denominator='vocab', **kw):
  """Titles of a catalog; one width for all of them, so that they share compiled programs."""
  small = device_trie.to_device_trie(trie.build(rows, end=END, vocab=V))
  return CatalogConstraint(dataclasses.replace(small, width=16, root_width=16),
                           normalization=Normalization(denominator), **kw)


def brute(rows, logp, alpha=0.0, valid=False):
  """Every title's value. -> {tokens: value}, best first"""
  out = {}
  for row in {(*r, END) for r in map(tuple, rows)}:
    total = 0.0
    for at, token in enumerate(row):
      step = logp(row[:at])
      if valid:
        kids = sorted({(*r, END)[at] for r in map(tuple, rows) if (*r, END)[:at] == row[:at]})
        step = step - np.logaddexp.reduce(step[kids])
      total += step[token]
    out[row] = total / len(row) ** alpha
  return sorted(out.items(), key=lambda x: -x[1])


class WholeCatalogTest(parameterized.TestCase):

  @examples(6, 80)
  @hypothesis.given(CATALOGS, st.integers(0, 10**6), st.sampled_from([0.0, 0.5]),
                    st.booleans())
  def test_enough_beams_give_all_titles_in_exact_order(self, rows, seed, alpha, valid):
    alpha = 0.0 if valid else alpha
    table, first = tables(seed)
    found = search(table, first, planted(rows, 'valid' if valid else 'vocab'),
                   BeamSearch(26, 6, alpha, 'never'))
    for b in range(2):
      want = brute(rows, logp_of(table, first[b]), alpha, valid)
      got = rows_of(found, b)
      self.assertEqual([r for _, r in got], [r for r, _ in want])
      np.testing.assert_allclose([s for s, _ in got], [s for _, s in want], atol=1e-4)
      if valid:  # a proper distribution over the catalog
        self.assertAlmostEqual(float(np.exp([s for s, _ in got]).sum()), 1, delta=1e-4)

  def test_valid_scores_are_never_below_those_of_the_vocabulary(self):
    rows = np.random.default_rng(0).integers(0, 7, (20, 4)).tolist()
    table, first = tables(0)
    by = [dict((r, s) for s, r in rows_of(search(
        table, first, planted(rows, n), BeamSearch(26, 6, 0.0)), 0))
        for n in ('vocab', 'valid')]
    self.assertTrue(all(by[1][r] >= s - 1e-5 for r, s in by[0].items()))


class JudgeTest(parameterized.TestCase):

  @parameterized.parameters(
      (0.0, False, (7,), 3), (0.5, False, (6, 7), 3), (1.0, False, (7,), 1),
      (0.0, True, (6, 7), 3), (1.0, True, (7,), 3), (1.0, True, (6, 7), 1),
      (0.5, 'never', (7,), 3), (1.0, 'never', (6, 7), 3))
  @long_but(0, 1, 4, 6)
  def test_free_rows_are_those_of_the_judge(self, alpha, early, ends, beams):
    for seed in range(4):
      table, first = tables(seed)
      found = search(table, first, Unconstrained(ends), BeamSearch(beams, 6, alpha, early))
      for b in range(2):
        want = judge.beam_search(logp_of(table, first[b]), beams, 6, set(ends), alpha, early)
        got = rows_of(found, b)
        self.assertEqual([r for _, r in got], [r for _, r in want])
        np.testing.assert_allclose([s for s, _ in got], [s for s, _ in want], atol=1e-4)

  @parameterized.parameters(False, True, 'never')
  @long_but(0)
  def test_tokens_of_prompts_may_count_in_the_length(self, early):
    changed = 0
    for seed in range(4):
      table, first = tables(seed)
      cfg = BeamSearch(3, 6, 1.0, early)
      found = search(table, first, Unconstrained((6, 7)), cfg, jnp.array([3, 40]))
      for b, before in enumerate((3, 40)):
        want = judge.beam_search(logp_of(table, first[b]), 3, 6, {6, 7}, 1.0, early, before=before)
        self.assertEqual([r for _, r in rows_of(found, b)], [r for _, r in want])
        np.testing.assert_allclose([s for s, _ in rows_of(found, b)], [s for s, _ in want],
                                   atol=1e-5)
      short = search(table, first, Unconstrained((6, 7)), cfg)
      changed += int((short.rows.tokens != found.rows.tokens).any())
    self.assertGreater(changed, 0)

  @examples(5, 40)
  @hypothesis.given(CATALOGS, st.integers(0, 10**6), st.sampled_from([0.0, 1.0]),
                    st.sampled_from([False, True]))
  def test_few_beams_prune_as_the_judge_does(self, rows, seed, alpha, early):
    table, first = tables(seed)
    found = search(table, first, planted(rows), BeamSearch(3, 6, alpha, early))
    built = trie.build(rows, end=END, vocab=V)
    for b in range(2):
      want = judge.beam_search(logp_of(table, first[b]), 3, 6, {END}, alpha, early,
                               lambda row: built.children(list(row)))
      self.assertEqual([r for _, r in rows_of(found, b)], [r for _, r in want])

  def test_one_beam_is_greedy(self):
    table, first = tables(3)
    found = search(table, first, Unconstrained((END,)), BeamSearch(1, 6, 0.0))
    row = rows_of(found, 0)[0][1]
    logp = logp_of(table, first[0])
    self.assertEqual(list(row), [int(np.argmax(logp(row[:i]))) for i in range(len(row))])

  def test_ends_before_the_minimum_do_not_come(self):
    table, first = tables(1)
    first = first.at[:, END].add(9)
    free = search(table, first, Unconstrained((END,), 3), BeamSearch(4, 6, 0.0))
    self.assertGreaterEqual(int(free.rows.lengths.min()), 3)
    titles = search(table, first, planted([[1], [2], [1, 2], [1, 2, 3]], min_new_tokens=3),
                    BeamSearch(4, 6, 0.0))
    self.assertEqual({r for _, r in rows_of(titles, 0)}, {(1, 2, END), (1, 2, 3, END)})

  def test_scores_of_every_step_sum_to_the_rows(self):
    table, first = tables(5)
    found = search(table, first, Unconstrained((END,)), BeamSearch(4, 6, 0.0, token_scores=True))
    np.testing.assert_allclose(found.rows.token_scores.sum(-1), found.rows.scores, atol=1e-4)
    logp = logp_of(table, first[0])
    _, row = rows_of(found, 0)[0]
    np.testing.assert_allclose(found.rows.token_scores[0, 0, :len(row)],
                               [logp(row[:i])[t] for i, t in enumerate(row)], atol=1e-4)


class OracleTest(parameterized.TestCase):

  def table(self, start, after):
    """Log-probabilities as logits: nothing is lost by normalizing them again, rest is left over."""
    table = np.full((V, V), -1e9, np.float32)
    first = np.full((1, V), -1e9, np.float32)
    for row, given in [(first[0], start), *((table[k], v) for k, v in after.items())]:
      for token, p in given.items():
        row[token] = np.log(p)
      row[6] = np.log(max(1e-9, 1 - sum(given.values())))
    return jnp.asarray(table), jnp.asarray(first)

  def test_d1_ghost_tokens_win_by_length_normalization_alone(self):
    table, first = self.table({0: .4, 1: .3}, {0: {END: .5}, 1: {2: .6}, 2: {3: .99}, 3: {4: .99},
                                               4: {END: .99}})
    rows = [[0], [1, 2, 3, 4]]
    for alpha, order, scores in ((0.0, [0, 1], [-1.609438, -1.744949]),
                                 (1.0, [1, 0], [-0.348990, -0.804719])):
      found = rows_of(search(table, first, planted(rows), BeamSearch(2, 6, alpha, 'never')), 0)
      self.assertEqual([list(r[:-1]) for _, r in found], [rows[i] for i in order])
      np.testing.assert_allclose([s for s, _ in found], scores, atol=1e-5)

  @parameterized.parameters(
      (1.0, [-2.823461, -1.570698, -0.582322]), (.8, [-2.397398, -1.497353, -0.787745]),
      (.5, [-1.758304, -1.387335, -1.095880]), (0.0, [-0.693147, -1.203973, -1.609438]))
  def test_d2_mixing_with_a_text_free_model(self, gamma, scores):
    rows = [[5, 1], [5, 2], [4, 3]]
    table, first = self.table({5: .3, 4: .6}, {5: {1: .2, 2: .7}, 4: {3: .95}, 1: {END: .99},
                                               2: {END: .99}, 3: {END: .98}})
    titles = planted(rows)
    mix = constraints.score_mixing(titles.trie, jnp.array([[.5, .3, .2]]), gamma)
    found = rows_of(search(table, first, dataclasses.replace(titles, mixing=mix),
                           BeamSearch(3, 6, 0.0)), 0)
    got = {r[:-1]: s for s, r in found}
    np.testing.assert_allclose([got[tuple(r)] for r in rows], scores, atol=1e-5)
    self.assertEqual([s for s, _ in found], sorted(got.values(), reverse=True))

  def test_d3_more_beams_than_titles_give_the_titles_alone(self):
    table, first = tables(0)
    found = search(table, first, planted([[1], [2], [3]]), BeamSearch(10, 6, 0.0))
    self.assertEqual(found.count.tolist(), [3, 3])
    self.assertEqual(found.exists.sum(), 6)

  def test_d4_prefix_titles_share_the_assistants_mass(self):
    titles = planted([[1], [1, 2]])
    mix = constraints.score_mixing(titles.trie, jnp.array([[.2, .6], [.2, .6]]), 0.0)
    table, first = tables(0)
    found = search(table, first, dataclasses.replace(titles, mixing=mix), BeamSearch(2, 6, 0.0))
    got = {r: s for s, r in rows_of(found, 0)}
    np.testing.assert_allclose(np.exp([got[1, END], got[1, 2, END]]), [.25, .75], atol=1e-5)

  def test_small_shares_of_the_assistant_survive_running_sums(self):
    rng = np.random.default_rng(0)
    rows = [[int(a), int(b), int(c)] for a in range(5) for b in range(6) for c in range(6)]
    p = rng.uniform(size=(1, len(rows)))
    p[0, 100:] *= 1e-7  # the first items hold nearly all of it: plain float32 sums lose the rest
    titles = planted(rows)
    mix = constraints.score_mixing(titles.trie, jnp.asarray(p / p.sum(), jnp.float32), 0.0)
    table, first = tables(0, 1)
    found = rows_of(search(table, first, dataclasses.replace(titles, mixing=mix),
                           BeamSearch(len(rows), 4, 0.0)), 0)
    got = {r[:-1]: s for s, r in found}
    np.testing.assert_allclose([got[tuple(r)] for r in rows], np.log(p / p.sum())[0], atol=1e-3)

  @parameterized.parameters(
      ('vocab', {(0, 1): .175, (0, 2): .125, (2, 0): .068, (1, 2): .015}),
      ('valid', {(1, 2): .30, (0, 1): .291667, (0, 2): .208333, (2, 0): .20}))
  def test_semantic_ids_with_both_scores(self, normalize, want):
    table = np.log(np.array([[.4, .35, .25], [.9, .05, .05], [.34, .33, .33]], np.float32))
    first = np.log(np.array([[.5, .3, .2]], np.float32))
    codes = np.array([[0, 1], [0, 2], [1, 2], [2, 0]])
    titles = CatalogConstraint(
      device_trie.to_device_trie(trie.build(codes, vocab=3)), normalization=Normalization(normalize)
    )
    found = rows_of(
      search(jnp.asarray(table), jnp.asarray(first), titles, BeamSearch(4, 2, 0.0)), 0
    )
    self.assertEqual([r for _, r in found], list(want))
    np.testing.assert_allclose(np.exp([s for s, _ in found]), list(want.values()), atol=1e-5)
    two = rows_of(search(jnp.asarray(table), jnp.asarray(first), dataclasses.replace(
        titles, normalization=Normalization()), BeamSearch(2, 2, 0.0)), 0)
    self.assertEqual([r for _, r in two], [(0, 1), (0, 2)])  # (2, 0) is pruned at the first step

  @long
  def test_tables_of_wide_levels_are_one_on_host_and_device(self):
    codes = np.random.default_rng(0).integers(0, 256, (2000, 2))
    offsets = 10 + 256 * np.arange(2)
    device = jax.jit(device_trie.semantic_id_trie, static_argnums=1)(
        jnp.asarray(codes, jnp.int32), 256, jnp.asarray(offsets))
    host = device_trie.to_device_trie(trie.build(codes, vocab=256), level_offsets=offsets)
    table, first = tables(0, 2, 600)
    found = [search(table, first, CatalogConstraint(f, normalization=Normalization('level', 256)),
                    BeamSearch(20, 2, 0.0)) for f in (host, device)]
    np.testing.assert_array_equal(found[0].rows.tokens, found[1].rows.tokens)
    real = {tuple(r) for r in (codes + offsets).tolist()}
    self.assertContainsSubset({r for _, r in rows_of(found[0], 0)}, real)

  def test_levels_are_normalized_over_their_own_codes(self):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (12, 3))
    titles = CatalogConstraint(
      device_trie.to_device_trie(trie.build(codes, vocab=4), level_offsets=[10, 20, 30]),
      normalization=Normalization('level', 4),
    )
    table, first = tables(0, 1, 40)
    found = rows_of(search(table, first, titles, BeamSearch(12, 3, 0.0)), 0)
    table, first = np.asarray(table), np.asarray(first)
    want = {}
    for row in {tuple(r) for r in codes.tolist()}:
      at, total = first[0], 0.0
      for level, code in enumerate(row):
        part = at[10 * (level + 1):10 * (level + 1) + 4]
        total += part[code] - np.logaddexp.reduce(part)
        at = table[level, 10 * (level + 1) + code]
      want[tuple(10 * (i + 1) + c for i, c in enumerate(row))] = total
    want = sorted(want.items(), key=lambda x: -x[1])
    self.assertEqual([r for _, r in found], [r for r, _ in want])
    np.testing.assert_allclose([s for s, _ in found], [s for _, s in want], atol=1e-4)


class CodeTest(absltest.TestCase):

  def test_rows_of_codes_are_the_best_of_all_rows_each_level_over_its_own_codes(self):
    levels, size = 3, 4
    table, first = (np.array(x) for x in tables(8, 2, levels * size, steps=levels))
    for level in range(levels):  # each level likes another code
      for logits in (table, first):
        logits[..., level * size + level + 1] += 4
    found = search(jnp.asarray(table), jnp.asarray(first), CodeConstraint(levels, size),
                   BeamSearch(size ** levels, levels, 0.0))
    for b in range(2):
      want = {}
      for codes in itertools.product(range(size), repeat=levels):
        row, logits, total = [], first[b], 0.0
        for level, code in enumerate(codes):
          of_level = logits[level * size:(level + 1) * size]
          total += of_level[code] - np.logaddexp.reduce(of_level)
          row.append(level * size + code)
          logits = table[level, row[-1]]
        want[tuple(row)] = total
      got = rows_of(found, b)
      self.assertEqual(got[0][1], (1, size + 2, 2 * size + 3))
      self.assertEqual([r for _, r in got], sorted(want, key=want.get, reverse=True))
      np.testing.assert_allclose([s for s, _ in got], sorted(want.values(), reverse=True),
                                 atol=1e-4)
      self.assertTrue(found.rows.complete[b].all())


class LimitTest(absltest.TestCase):

  @examples(4, 30)
  @hypothesis.given(CATALOGS, st.data())
  @long
  def test_a_filter_gives_what_a_trie_of_the_subset_gives(self, rows, data):
    keep = data.draw(st.lists(st.integers(1, len(rows)), min_size=1, unique=True))
    taken = data.draw(st.lists(st.sampled_from(keep), max_size=len(keep) - 1, unique=True))
    built = trie.build(rows, end=END, vocab=V)
    table, first = tables(0, 1)
    limits = item_filter.build_item_filter(built, allowed=[keep], taken=[taken])
    titles = planted(rows, item_filter=limits)
    left = [rows[i - 1] for i in keep if i not in taken]
    found = rows_of(search(table, first, titles, BeamSearch(26, 6, 0.0)), 0)
    want = rows_of(search(table, first, planted(left), BeamSearch(26, 6, 0.0)), 0)
    self.assertEqual([r for _, r in found], [r for _, r in want])

  def test_each_request_has_its_own_lists_and_catalog(self):
    one, two = [[1], [2], [3]], [[4, 5], [4, 6], [5]]
    tries = [trie.build(r, end=END, vocab=V) for r in (one, two)]
    titles = CatalogConstraint(device_trie.to_device_trie(tries), catalog=jnp.array([0, 1]))
    table, first = tables(0)
    found = search(table, first, titles, BeamSearch(5, 6, 0.0))
    for b, rows in enumerate((one, two)):
      alone = search(table, first[b:b + 1], planted(rows), BeamSearch(5, 6, 0.0))
      self.assertEqual(rows_of(found, b), rows_of(alone, 0))

  def test_all_items_of_a_shared_title_must_go_before_it_closes(self):
    built = trie.build([[1], [2], [1]], end=END, vocab=V)
    table, first = tables(0, 1)
    for taken, want in (([1], {(1, END), (2, END)}), ([1, 3], {(2, END)}), ([1, 2, 3], set())):
      titles = CatalogConstraint(
        device_trie.to_device_trie(built), item_filter.build_item_filter(built, taken=[taken])
      )
      found = rows_of(search(table, first, titles, BeamSearch(5, 6, 0.0)), 0)
      self.assertEqual({r for _, r in found}, want)


class RobustTest(parameterized.TestCase):

  @examples(4, 30)
  @hypothesis.given(CATALOGS, st.integers(0, 10**6),
                    st.sampled_from([np.nan, np.inf, -np.inf, 0.0]),
                    st.sampled_from(['vocab', 'valid']))
  def test_broken_logits_never_give_a_made_up_title(self, rows, seed, value, normalize):
    rng = np.random.default_rng(seed)
    table, first = tables(seed)
    table = jnp.where(jnp.asarray(rng.uniform(size=(V, V)) < .4), value, table)
    first = jnp.where(jnp.asarray(rng.uniform(size=(2, V)) < .4), value, first)
    found = search(table, first, planted(rows, normalize), BeamSearch(5, 6, 0.0))
    real = {(*r, END) for r in map(tuple, rows)}
    for b in range(2):
      got = rows_of(found, b)
      self.assertContainsSubset({r for _, r in got}, real)
      self.assertLen({r for _, r in got}, len(got))
      self.assertTrue(np.isfinite([s for s, _ in got]).all())
      self.assertLen(got, min(5, len(real)))

  def test_batch_mates_and_order_change_nothing(self):
    rows = np.random.default_rng(0).integers(0, 7, (30, 4)).tolist()
    table, first = tables(1, 4)
    titles = planted(rows)
    found = search(table, first, titles, BeamSearch(4, 6, 0.0))
    turned = search(table, first[::-1], titles, BeamSearch(4, 6, 0.0))
    for b in range(4):
      alone = search(table, first[b:b + 1], titles, BeamSearch(4, 6, 0.0))
      self.assertEqual(rows_of(found, b), rows_of(alone, 0))
      self.assertEqual(rows_of(found, b), rows_of(turned, 3 - b))

  def test_titles_longer_than_the_limit_come_back_marked_as_cut(self):
    table, first = tables(0, 1)
    found = search(table, first, planted([[1, 2, 3, 4], [2]]), BeamSearch(4, 3, 0.0))
    done = {tuple(found.rows.tokens[0, k, :n].tolist()): bool(found.rows.complete[0, k])
            for k, n in enumerate(found.rows.lengths[0].tolist()) if found.exists[0, k]}
    self.assertEqual(done, {(1, 2, 3): False, (2, END): True})

  def test_wide_nodes_by_token_give_what_gathers_give(self):
    rng = np.random.default_rng(0)
    rows = [[int(a), int(b)] for a, b in rng.integers(0, 50, (600, 2))]
    built = trie.build(rows, end=60, vocab=64)
    table, first = tables(2, 3, 64)
    cfg = BeamSearch(7, 3, 0.0)
    found = [
      search(table, first, CatalogConstraint(device_trie.to_device_trie(built, dense_from=d)), cfg)
      for d in (10**6, 8)
    ]
    np.testing.assert_array_equal(found[0].rows.tokens, found[1].rows.tokens)
    np.testing.assert_allclose(found[0].rows.scores, found[1].rows.scores, atol=1e-5)

  def test_another_catalog_of_that_size_is_the_same_program(self):
    rng = np.random.default_rng(0)
    count = []

    @jax.jit
    def run(table, first, titles):
      count.append(1)
      return beam_search(BoundDecoder(lambda token, c, t: (table[t, token], c)), (), first, titles,
                         BeamSearch(4, 8, 0.0)).rows.scores
    table, first = tables(0, 2, 64)
    for n in (390, 400, 410):
      rows = rng.integers(0, 60, (n, 3)).tolist()
      built = trie.build(rows, end=63, vocab=64)
      limits = item_filter.build_item_filter(
        built, allowed=[rng.integers(1, n + 1, 50)] * 2, taken=[[1], [2, 3]]
      )
      run(table, first, CatalogConstraint(device_trie.to_device_trie(built), limits))
    self.assertLen(count, 1)

  def test_nothing_goes_to_the_host_inside_the_loop(self):
    table, first = tables(0)
    titles, cfg = planted([[1, 2], [3]]), BeamSearch(4, 6, 0.0)
    search(table, first, titles, cfg)
    with jax.transfer_guard('disallow'):
      jax.block_until_ready(search(table, first, titles, cfg))
    text = str(jax.make_jaxpr(lambda t, f, x: search(t, f, x, cfg))(table, first, titles))
    self.assertNotIn('callback', text)

  def test_settings_that_contradict_are_refused(self):
    for wrong in (dict(beams=0), dict(new_tokens=0), dict(early_stopping='soon')):
      with self.assertRaises(ConfigError):
        BeamSearch(**{'beams': 2, 'new_tokens': 3, **wrong})
    with self.assertRaisesRegex(ConfigError, "'all'"):
      Normalization('all')
    with self.assertRaisesRegex(ConfigError, 'code_size'):
      Normalization('level')


if __name__ == '__main__':
  absltest.main()
