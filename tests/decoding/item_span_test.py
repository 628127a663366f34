"""Items inside free text: cases by hand, and no made-up or repeated item under any logits."""
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.decoding import device_trie, item_filter, item_span, trie
from recjax.decoding.beam_search import BeamSearch, beam_search
from recjax.decoding.constraints import LIVE, Unconstrained
from recjax.decoding.generate import generate
from recjax.decoding.item_span import SpanSettings
from recjax.decoding.lm_head import BoundDecoder, plain_head
from recjax.decoding.sampling import Sampling, sample
from recjax.decoding.streaming import stream
from recjax.errors import ConfigError, DataError, UserError
from recjax.models import llm, llm_decoder
from recjax.protocols import Decoder
from tests.long import examples, long, long_but

V, SOI, EOI, EOS = 12, 9, 10, 11

A, B, C, D = [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 3, 5, 6], [1, 2, 5, 6]

ABCD = [A, B, C, D]


def constraint(rows, new_tokens=24, batch=1, tails=None, item_filter=None, **kw):
  built = trie.build(rows, end=EOI, vocab=V)
  return built, item_span.item_span_constraint(
    built,
    device_trie.to_device_trie(built),
    SpanSettings(SOI, EOI, (EOS,), new_tokens, **kw),
    batch,
    tails,
    item_filter=item_filter,
  )


def allowed_after(rows, tail, new_tokens=24, **kw):
  """The tokens that may follow an answer so far."""
  _, mode = constraint(rows, new_tokens, tails=[tail], **kw)
  values, ids, _ = mode.candidates(plain_head(jnp.zeros((1, 1, V))), mode.start(1), 0, 0,
                                   lambda *given: given)
  return {int(i) for i, v in zip(ids[0, 0], values[0, 0]) if v > LIVE}


@functools.partial(jax.jit, static_argnames='cfg')
def draw(logits, mode, key, cfg):
  return sample(BoundDecoder(lambda tokens, c, t: (logits[tokens], c)), (), logits[:1].repeat(
      len(mode.catalog), 0), mode, cfg, key)


class OracleTest(parameterized.TestCase):

  @parameterized.parameters(
      ([], {1}), ([1, 2], {3, 5}), (A, {5, EOI}))
  def test_t2_nothing_used(self, prefix, want):
    self.assertEqual(allowed_after(ABCD, [SOI, *prefix]), want)

  @parameterized.parameters(
      ([A], A, {5}), ([B], A, {EOI}), ([A, B], [1, 2, 3], {5}), ([A, B, C], [1, 2], {5}))
  def test_t3_used_titles_close(self, used, prefix, want):
    tail = [t for title in used for t in (SOI, *title, EOI)]
    self.assertEqual(allowed_after(ABCD, [*tail, SOI, *prefix]), want)

  def test_t3_when_all_are_used_no_item_opens(self):
    tail = [t for title in ABCD for t in (SOI, *title, EOI)]
    self.assertNotIn(SOI, allowed_after(ABCD, tail))
    self.assertIn(SOI, allowed_after(ABCD, tail[:-6]))
    self.assertIn(SOI, allowed_after(ABCD, tail, repeat=True))

  def test_t4_an_answer_that_left_the_catalog_is_refused_with_its_position(self):
    with self.assertRaisesRegex(DataError, 'position 6'):
      constraint(ABCD, tails=[[SOI, 1, 2, 3, 4, 5, EOI]])
    with self.assertRaisesRegex(DataError, 'position 1 ends an item that was not opened'):
      constraint(ABCD, tails=[[3, EOI]])

  def test_t5_duplicates_come_as_often_as_they_are(self):
    rows = [[5, 6], [5, 6], [7]]
    once = [SOI, 5, 6, EOI]
    self.assertEqual(allowed_after(rows, [*once, SOI]), {5, 7})
    self.assertEqual(allowed_after(rows, [*once, *once, SOI]), {7})

  def test_t6_a_single_item_is_forced_and_comes_once(self):
    for at, token in enumerate([*A, EOI]):
      self.assertEqual(allowed_after([A], [SOI, *A[:at]]), {token})
    self.assertNotIn(SOI, allowed_after([A], [SOI, *A, EOI]))

  def test_t7_text_is_free_but_for_a_stray_end(self):
    self.assertEqual(allowed_after(ABCD, []), set(range(V)) - {EOI})
    self.assertEqual(allowed_after(ABCD, [3, 4]), set(range(V)) - {EOI})

  def test_items_are_not_opened_that_could_not_be_finished(self):
    self.assertIn(SOI, allowed_after(ABCD, [], new_tokens=6))
    self.assertNotIn(SOI, allowed_after(ABCD, [], new_tokens=5))
    self.assertEqual(allowed_after(ABCD, [SOI, 1, 2, 3], new_tokens=2), {4})  # C needs three

  def test_the_end_of_the_answer_does_not_come_inside_an_item(self):
    self.assertNotIn(EOS, allowed_after(ABCD, [SOI, 1]))

  def test_max_items_ends_the_list(self):
    self.assertNotIn(SOI, allowed_after(ABCD, [SOI, *A, EOI], max_items=1))

  def test_limits_hold_inside_items(self):
    built = trie.build(ABCD, end=EOI, vocab=V)
    limits = item_filter.build_item_filter(built, allowed=[[2, 4]])
    self.assertEqual(allowed_after(ABCD, [SOI, 1, 2, 3], item_filter=limits), {4})
    self.assertEqual(allowed_after(ABCD, [SOI, *A], item_filter=limits), {5})

  def test_titles_without_an_end_are_refused(self):
    built = trie.build(np.array([[1, 2], [1, 3]]), vocab=V)
    with self.assertRaisesRegex(DataError, 'end-of-item'):
      item_span.item_span_constraint(built, device_trie.to_device_trie(built),
                                     SpanSettings(SOI, EOI, (EOS,), 8))


class ReplyTest(parameterized.TestCase):

  @examples(4, 30)
  @hypothesis.given(
      st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=4), min_size=1, max_size=9),
      st.integers(0, 10**6), st.sampled_from([0.0, 2.0]),
      st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
  def test_g1_items_exist_and_none_is_repeated(self, rows, seed, temperature, value):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(V, V))
    logits[:, SOI] += 3  # so that items occur
    logits = np.where(rng.uniform(size=(V, V)) < .2, value, logits)
    built, mode = constraint(rows, 40, batch=2)
    found = draw(jnp.asarray(logits, jnp.float32), mode, jax.random.key(seed),
                 Sampling(3, 40, temperature))
    for row, n in zip(np.asarray(found.tokens).reshape(6, -1),
                      np.asarray(found.lengths).reshape(-1)):
      items, _ = item_span.parse(built, row[:n], SOI)  # walks the trie, raises where it leaves
      self.assertLen(set(items), len(items))

  def test_g4_a_model_that_wants_ten_of_two_items_gets_two(self):
    logits = np.zeros((V, V), np.float32)
    logits[:, SOI] = 9
    built, mode = constraint([[1, 2], [3]], 40)
    found = draw(jnp.asarray(logits), mode, jax.random.key(0), Sampling(1, 40, 0.0))
    items, open_ = item_span.parse(built, np.asarray(found.tokens)[0, 0], SOI)
    self.assertEqual((sorted(items), open_), ([1, 2], False))

  @parameterized.parameters(*range(2, 14))
  @long_but(1, 6)
  def test_g5_no_budget_leaves_an_item_open(self, budget):
    logits = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
    logits[:, SOI] += 4
    built, mode = constraint(ABCD, budget)
    found = draw(jnp.asarray(logits), mode, jax.random.key(0), Sampling(1, budget, 0.0))
    row = np.asarray(found.tokens)[0, 0, :int(found.lengths[0, 0])]
    self.assertFalse(item_span.parse(built, row, SOI)[1], row)

  @examples(4, 30)
  @hypothesis.given(
      st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=2, max_size=12),
      st.integers(0, 10**6), st.lists(st.booleans(), min_size=12, max_size=12))
  def test_no_budget_leaves_an_item_open_whatever_is_used_or_forbidden(self, rows, seed, keep):
    logits = np.random.default_rng(seed).normal(size=(V, V))
    logits[:, SOI] += 4
    allowed = [i + 1 for i in range(len(rows)) if keep[i]] or [1]
    built = trie.build(rows, end=EOI, vocab=V)
    limits = item_filter.build_item_filter(built, allowed=[allowed, list(range(1, len(rows) + 1))])
    mode = item_span.item_span_constraint(
      built, device_trie.to_device_trie(built), SpanSettings(SOI, EOI, (EOS,), 33, max_items=6), 2,
      item_filter=limits
    )
    found = draw(
      jnp.asarray(logits, jnp.float32), mode, jax.random.key(seed), Sampling(3, 33, 1.0)
    )
    for b in range(2):
      for row, n in zip(np.asarray(found.tokens)[b], np.asarray(found.lengths)[b]):
        items, left_open = item_span.parse(built, row[:n], SOI)
        self.assertFalse(left_open, row)
        self.assertEqual(n, 33 if EOS not in row[:n] else list(row).index(EOS) + 1)

  def test_shortest_titles_below_by_hand(self):
    built = trie.build([[1], [1, 2], [1, 2, 3], [4, 5, 6, 7]], end=EOI, vocab=V)
    below = item_span.shortest_below(built, 2)
    self.assertEqual(below[0].tolist(), [2, 3, 5])
    self.assertEqual(below[built.walk([1])].tolist(), [2, 3, 4])
    self.assertEqual(below[built.walk([1, 2])].tolist(), [3, 4, 4])
    self.assertEqual(below[built.walk([4])].tolist(), [5, 5, 5])

  @parameterized.parameters(1, 2, 4)
  @long_but(1)
  def test_beams_keep_their_own_lists(self, beams):
    logits = np.random.default_rng(1).normal(size=(V, V)).astype(np.float32)
    logits[:, SOI] += 2
    built, mode = constraint(ABCD, 20, batch=2)
    table = jnp.asarray(logits)
    found = jax.jit(lambda table, mode: beam_search(
        BoundDecoder(lambda tokens, c, t: (table[tokens], c)), (), table[:2], mode,
        BeamSearch(beams, 20, 0.0)))(table, mode)
    self.assertTrue(found.exists.all())
    for b in range(2):
      for k in range(beams):
        items, _ = item_span.parse(
            built, np.asarray(found.rows.tokens)[b, k, :int(found.rows.lengths[b, k])], SOI)
        self.assertLen(set(items), len(items))

  def test_g8_a_batch_over_two_catalogs_equals_separate_runs(self):
    logits = np.random.default_rng(3).normal(size=(V, V)).astype(np.float32)
    logits[:, SOI] += 2
    catalogs, tails = [ABCD, [[7, 8], [7], [0, 8, 7]]], [[SOI, *A, EOI, SOI, 1], [SOI, 7]]
    tries = [trie.build(rows, end=EOI, vocab=V) for rows in catalogs]
    both = item_span.item_span_constraint(
      tries, device_trie.to_device_trie(tries), SpanSettings(SOI, EOI, (EOS,), 20), tails=tails,
      catalog=[0, 1]
    )
    cfg, table = Sampling(1, 20, 0.0), jnp.asarray(logits)
    found = draw(table, both, jax.random.key(0), cfg)
    for b, rows in enumerate(catalogs):
      alone = draw(table, constraint(rows, 20, tails=[tails[b]])[1], jax.random.key(0), cfg)
      np.testing.assert_array_equal(found.tokens[b], alone.tokens[0])
      items, _ = item_span.parse(tries[b], [*tails[b], *np.asarray(
          found.tokens)[b, 0, :int(found.lengths[b, 0])]], SOI)
      self.assertLen(set(items), len(items))
      self.assertNotEmpty(items)

  def test_g2_rows_do_not_depend_on_their_mates(self):
    logits = np.random.default_rng(2).normal(size=(V, V)).astype(np.float32)
    logits[:, SOI] += 2
    tails = [[SOI, 1, 2], [], [SOI, *A, EOI]]
    _, together = constraint(ABCD, 20, tails=tails)
    cfg, table = Sampling(1, 20, 0.0), jnp.asarray(logits)
    found = draw(table, together, jax.random.key(0), cfg)
    for b, tail in enumerate(tails):
      alone = draw(table, constraint(ABCD, 20, tails=[tail])[1], jax.random.key(0), cfg)
      np.testing.assert_array_equal(found.tokens[b], alone.tokens[0])


def eager():
  """A model that likes items, 33 titles, two prompts. -> decoder, params, trie, prompts, rule"""
  vocab, soi, eoi, eos = 40, 37, 38, 39
  cfg = llm.Config(vocab=vocab, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
  params = llm.init(cfg, jax.random.key(1))
  params = {'params': jax.tree.map(lambda x: x * 8 if x.ndim > 2 else x, params)}
  bare = llm_decoder.decoder(llm.LM(cfg))
  want_items = jnp.zeros(vocab).at[soi].set(4.0)  # so that items occur
  decoder = bare._replace(logits=lambda p, h: bare.logits(p, h) + want_items, rows=None)
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 36, rng.integers(3, 9)).tolist() for _ in range(30)]
  rows += [rows[0][:2] + [1, 2], rows[1][:1], rows[3]]
  built = trie.build(rows, end=eoi, vocab=vocab)
  planted = device_trie.to_device_trie(built)
  prompts = [rng.integers(0, 36, n).tolist() for n in (5, 9)]
  prompts[1] += [soi, *rows[2][:1]]
  mode = item_span.item_span_constraint(built, planted, SpanSettings(soi, eoi, (eos,), 40),
                                        tails=[[], [soi, *rows[2][:1]]])
  return decoder, params, built, prompts, mode


class ForcedTest(parameterized.TestCase):
  """Forced tokens together, the reply unchanged; with a model that has a cache."""

  @parameterized.product(temperature=(0.0, 1.0), width=(2, 6))
  @long_but(3)
  def test_g7_replies_are_those_of_one_token_at_a_time(self, temperature, width):
    decoder, params, built, prompts, mode = eager()
    soi, start = 37, [[], prompts[1][9:]]
    plain, runs = (generate(
        decoder, params, prompts,
        Sampling(3, temperature=temperature, token_scores=True, pass_width=w), mode, seed=5,
        bucket=16) for w in (0, width))
    np.testing.assert_array_equal(runs.tokens, plain.tokens)
    np.testing.assert_array_equal(runs.lengths, plain.lengths)
    np.testing.assert_array_equal(runs.complete, plain.complete)
    np.testing.assert_allclose(runs.scores, plain.scores, atol=1e-3)
    np.testing.assert_allclose(runs.token_scores, plain.token_scores, atol=1e-3)
    items = [item_span.parse(built, [*start[b], *plain.row(b, k)], soi)[0]
             for b in range(2) for k in range(3)]
    self.assertGreater(min(map(len, items)), 1)
    self.assertLess(runs.steps, plain.steps * (.8 if width == 2 else .6))

  @parameterized.product(temperature=(0.0, 1.0), passes=(1, 3))
  @long
  def test_rows_that_are_told_while_they_grow(self, temperature, passes):
    decoder, params, _, prompts, mode = eager()
    search, given = Sampling(temperature=temperature, pass_width=6), dict(seed=5, bucket=16)
    whole = generate(decoder, params, prompts, search, mode, **given)
    told = []

    def all_go_on(rows):
      told.append(rows)
      return [True, True]
    found = stream(decoder, params, prompts, search, mode, all_go_on, passes=passes, **given)
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    np.testing.assert_array_equal(found.complete, whole.complete)
    self.assertEqual(found.steps, whole.steps)
    self.assertGreater(len(told), 4)
    for b in range(2):
      grown = [rows[b] for rows in told]
      self.assertLen(grown[0], 1)
      for row, longer in zip(grown, grown[1:]):
        self.assertEqual(longer[:len(row)], row)
        self.assertLessEqual(len(longer) - len(row), 6 * passes)
      self.assertEqual(grown[-1], whole.row(b, 0))

    def first_stops(rows):
      told.append(rows)
      return [len(told) < 2, True]
    told.clear()
    found = stream(decoder, params, prompts, search, mode, first_stops, passes=passes, **given)
    self.assertEqual(found.row(0, 0), told[1][0])
    self.assertLess(found.lengths[0, 0], whole.lengths[0, 0])
    self.assertFalse(found.complete[0, 0])
    self.assertEqual(found.row(1, 0), whole.row(1, 0))
    told.clear()
    stream(decoder, params, prompts, search, mode, lambda rows: told.append(rows) or [False, False],
           passes=passes, **given)
    self.assertLen(told, 1)

  @long
  def test_a_model_that_gives_nan_is_told_when_it_does(self):
    decoder, params, _, prompts, mode = eager()
    torn = decoder._replace(extend=lambda *given: (lambda h, c: (h * jnp.nan, c))(
        *decoder.extend(*given)))
    told = []
    with self.assertRaisesRegex(UserError, 'NaN for request 0 at new token 1'):
      stream(torn, params, prompts, Sampling(temperature=0.0, pass_width=6), mode,
             lambda rows: told.append(rows) or [True, True], bucket=16, passes=1)
    self.assertEqual([len(row) for row in told[0]], [1, 1])

  def test_forced_tokens_by_hand(self):
    cases = [([], None), ([SOI], 1), ([SOI, 1], 2), ([SOI, 1, 2], None), ([SOI, 1, 2, 5], 6),
             ([SOI, 1, 2, 5, 6], EOI), ([SOI, *A], None), ([SOI, *A, 5], 6)]
    for tail, want in cases:
      _, mode = constraint(ABCD, tails=[tail])
      token, _, one = mode.forced_token(mode.start(1), 0)
      self.assertEqual(int(token[0, 0]) if one[0, 0] else None, want, tail)
    used = [SOI, *A, EOI, SOI, *B, EOI, SOI, 1, 2, 3]  # two titles went, one is left below
    _, mode = constraint(ABCD, tails=[used])
    token, _, one = mode.forced_token(mode.start(1), 0)
    self.assertEqual((int(token[0, 0]), bool(one[0, 0])), (5, True))

  def test_passes_of_several_tokens_need_forced_ones(self):
    with self.assertRaisesRegex(ConfigError, 'needs a constraint with forced'):
      generate(Decoder(*[None] * 4), None, [[1]], Sampling(1, 4, pass_width=4))
    with self.assertRaisesRegex(ConfigError, 'pass_width=0'):
      stream(Decoder(*[None] * 4), None, [[1]], Sampling(1, 4), Unconstrained(), print)


if __name__ == '__main__':
  absltest.main()
