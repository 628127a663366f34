"""Group beam search against figures by hand, a literal judge, and transformers."""
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.decoding.constraints import CodeConstraint, Unconstrained
from recjax.decoding.diverse_beam_search import DiverseBeamSearch, diverse_beam_search
from recjax.decoding.lm_head import BoundDecoder
from recjax.errors import ConfigError
from tests.long import long_but
from tests.reference import group_search as judge

FIXTURE = pathlib.Path(__file__).parent / 'group_beam_hf455.npz'


FREE = Unconstrained()


@functools.partial(jax.jit, static_argnums=(2, 3))
def run(first, table, cfg, rule):
  def step(tokens, cache, t):
    return table[t][tokens], cache
  model = BoundDecoder(step, reorder=lambda cache, parents: cache)
  return diverse_beam_search(model, (), first, rule, cfg)


def search(first, table, cfg, rule=FREE):
  """Searches tables of logits. first: (B, V); table: (T, V, V) by step and last token."""
  return jax.tree.map(np.asarray, run(np.float32(first), np.float32(table), cfg, rule))


def judged(first, table, cfg, rule):
  """The judge's answer for one prompt, in the same form as one prompt of `search`."""
  rows = judge.group_search(
      first, lambda tokens: table[len(tokens) - 1][tokens[-1]], cfg.beams, cfg.groups,
      cfg.diversity_penalty, cfg.new_tokens, rule.min_new_tokens, rule.eos_ids, cfg.pad_id,
      cfg.length_penalty)
  return ([[*t, *[cfg.pad_id] * (cfg.new_tokens - len(t))] for _, t, _ in rows],
          [len(t) for _, t, _ in rows], [g for *_, g in rows], [v for v, *_ in rows])


def random_tables(rng, steps, vocab):
  """Logits that depend on the step too, so that no two paths tie by construction."""
  shapes = (3, vocab), (steps, vocab, vocab)
  return [np.float32(rng.normal(size=shape) * 2) for shape in shapes]


def random_case(seed):
  """-> a search of any kind, its ends, its vocabulary's size, and the generator to go on with"""
  rng = np.random.default_rng(seed)
  groups, size, steps = rng.integers(1, 5), rng.integers(1, 4), int(rng.integers(1, 7))
  ends = int(rng.choice([0, 1, 2, 10]))
  vocab = int(size + ends + rng.integers(1, 12))
  penalty = float(rng.choice([0.3, 1.0, 2.5]))
  shortest, pad_id = int(rng.integers(steps + 1)), int(rng.integers(vocab))
  rule = Unconstrained(tuple(map(int, rng.choice(vocab, ends, replace=False))), shortest)
  cfg = DiverseBeamSearch(int(groups * size), int(groups), penalty, steps,
                          float(rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0])), pad_id)
  return cfg, rule, vocab, rng


class OracleTest(parameterized.TestCase):

  def check(self, found, rows, digits=6):
    for i, (tokens, value) in enumerate(rows):
      self.assertEqual(tuple(found.tokens[0, i]), tokens)
      self.assertAlmostEqual(float(found.scores[0, i]), value, digits)

  @parameterized.parameters(
      (1.0, [((0,), -0.6931), ((1,), -1.2040), ((0,), -1.6931)]),
      (0.5, [((0,), -0.6931), ((0,), -1.1931), ((1,), -1.2040)]),
      (0.2, [((0,), -0.6931), ((0,), -0.8931), ((0,), -1.0931)]))
  def test_t6_memoryless_one_step(self, penalty, rows):
    first = np.log([[.5, .3, .15, .05]])
    found = search(first, np.zeros((1, 4, 4)), DiverseBeamSearch(3, 3, penalty, 1))
    self.check(found, rows, 4)

  def test_t6_penalties_accumulate_over_two_steps(self):
    p = np.log([.5, .3, .15, .05])
    found = search(p[None], np.broadcast_to(p, (2, 4, 4)), DiverseBeamSearch(3, 3, 1.0, 2))
    self.check(found, [((0, 0), -0.6931), ((1, 1), -1.2040), ((0, 0), -1.6931)], 4)

  @parameterized.parameters(
      (1, [((0,), -0.597837, 0), ((1,), -1.203973, 0), ((0,), -1.597837, 1),
           ((1,), -2.203973, 1)]),
      (2, [((0, 1), -0.537936, 0), ((1, 0), -0.809744, 0), ((0, 1), -1.537936, 1),
           ((0, 2), -1.603637, 1)]),
      (3, [((0, 1, 0), -0.497129, 0), ((1, 0, 1), -0.699175, 0), ((0, 2, 2), -1.300141, 1),
           ((0, 1, 0), -1.497129, 1)]))
  def test_t7_two_beams_per_group(self, steps, rows):
    after = np.log([[.1, .62, .2, .08], [.66, .2, .1, .04], [.2, .15, .5, .15],
                    [.25, .25, .3, .2]])
    first = np.log([[.55, .3, .1, .05]])
    found = search(first, np.broadcast_to(after, (3, 4, 4)), DiverseBeamSearch(4, 2, 1.0, steps))
    self.check(found, [(t, v) for t, v, _ in rows])
    self.assertEqual(found.groups[0].tolist(), [g for *_, g in rows])

  @parameterized.parameters(
      (1.0, [((0, 1), -0.5108), ((1, 0), -0.7803), ((0, 2), -1.3574)]),
      (0.3, [((0, 1), -0.5108), ((0, 1), -0.8108), ((0, 1), -1.1108)]))
  def test_t8_state_dependent(self, penalty, rows):
    after = np.log([[.1, .6, .3], [.7, .2, .1], [.2, .2, .6]])
    found = search(np.log([[.6, .3, .1]]), np.broadcast_to(after, (2, 3, 3)),
                   DiverseBeamSearch(3, 3, penalty, 2))
    self.check(found, rows, 4)


class JudgeTest(parameterized.TestCase):

  @parameterized.parameters(range(16))
  @long_but(*range(6))
  def test_equals_the_literal_search(self, seed):
    cfg, rule, vocab, rng = random_case(seed)
    for _ in range(5):
      first, table = random_tables(rng, cfg.new_tokens, vocab)
      found = search(first, table, cfg, rule)
      for b in range(len(first)):
        tokens, lengths, groups, values = judged(first[b], table, cfg, rule)
        self.assertEqual(found.tokens[b].tolist(), tokens)
        self.assertEqual(found.lengths[b].tolist(), lengths)
        self.assertEqual(found.groups[b].tolist(), groups)
        # float32: the log-sum-exp and a few additions round differently
        np.testing.assert_allclose(found.scores[b], values, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(range(10))
  @long_but(*range(4))
  def test_equals_transformers(self, case):
    stored = np.load(FIXTURE)
    settings = json.loads(str(stored['cases']))[case]
    rule = Unconstrained(tuple(settings.pop('eos_ids')), settings.pop('min_new_tokens', 0))
    cfg = DiverseBeamSearch(**settings)
    found = search(stored['first'], stored['table'], cfg, rule)
    tokens = found.tokens.copy()
    last = np.arange(cfg.new_tokens) == found.lengths[..., None] - 1
    tokens[np.isin(tokens, rule.eos_ids) & last] = rule.eos_ids[0]  # it writes the first end token
    np.testing.assert_array_equal(tokens, stored[f'tokens_{case}'])
    # A negative length exponent multiplies by up to 9, and float32 rounding with it.
    np.testing.assert_allclose(found.scores, stored[f'scores_{case}'], rtol=1e-6, atol=1e-5)

  def test_a_long_vocabulary_is_searched_exactly(self):
    rng = np.random.default_rng(0)
    cfg = DiverseBeamSearch(6, 3, 0.7, 3)
    first = rng.normal(size=(1, 2001)).astype(np.float32)
    row = rng.normal(size=(3, 2001)).astype(np.float32)
    model = BoundDecoder(lambda tokens, cache, t: (jnp.asarray(row)[(tokens + t) % 3], cache),
                         reorder=lambda cache, parents: cache)
    found = jax.jit(lambda first: diverse_beam_search(
        model, (), first, Unconstrained((5,), 1), cfg))(first)
    rows = judge.group_search(first[0], lambda s: row[(s[-1] + len(s) - 1) % 3], 6, 3, 0.7, 3, 1,
                              (5,))
    self.assertEqual([tuple(r[:n]) for r, n in zip(np.asarray(found.tokens[0]).tolist(),
                                                   found.lengths[0])], [t for _, t, _ in rows])


class InvariantTest(parameterized.TestCase):

  def test_t9_group_zero_is_greedy(self):
    rng = np.random.default_rng(1)
    first, table = rng.normal(size=(2, 20)), rng.normal(size=(6, 20, 20))
    found = search(first, table, DiverseBeamSearch(5, 5, 1.0, 6))
    for b in range(2):
      tokens = [int(first[b].argmax())]
      while len(tokens) < 6:
        tokens.append(int(table[len(tokens) - 1][tokens[-1]].argmax()))
      self.assertEqual(found.tokens[b, found.groups[b].tolist().index(0)].tolist(), tokens)

  def test_t9_a_large_penalty_makes_first_tokens_distinct(self):
    rng = np.random.default_rng(2)
    found = search(rng.normal(size=(1, 8)), rng.normal(size=(2, 8, 8)),
                   DiverseBeamSearch(8, 8, 1000.0, 2))
    self.assertLen(set(found.tokens[0, :, 0].tolist()), 8)

  @parameterized.parameters(range(100, 103))
  def test_t9_values_fall_and_batch_mates_do_not_matter(self, seed):
    cfg, rule, vocab, rng = random_case(seed)
    first, table = random_tables(rng, cfg.new_tokens, vocab)
    found = search(first, table, cfg, rule)
    self.assertTrue((np.diff(found.scores) <= 0).all())
    order = [2, 0, 1]
    turned = search(first[order], table, cfg, rule)
    alone = search(first[1:2], table, cfg, rule)
    for name in ('tokens', 'scores', 'lengths', 'groups'):
      both = getattr(found, name)
      np.testing.assert_array_equal(getattr(turned, name), both[order])
      np.testing.assert_array_equal(getattr(alone, name), both[1:2])

  def test_t9_a_fixed_length_holds_no_end_token(self):
    rng = np.random.default_rng(3)
    first, table = rng.normal(size=(2, 9)), rng.normal(size=(5, 9, 9))
    first[:, 4], table[..., 4] = 9, 9
    found = search(first, table, DiverseBeamSearch(6, 3, 1.0, 5), Unconstrained((4,), 5))
    self.assertTrue((found.lengths == 5).all())
    self.assertFalse((found.tokens == 4).any())

  def test_equal_values_go_to_the_lower_token_and_group(self):
    found = search(np.zeros((1, 5)), np.zeros((2, 5, 5)), DiverseBeamSearch(3, 3, 1.0, 2))
    self.assertEqual(found.tokens[0].tolist(), [[0, 0], [1, 1], [2, 2]])
    self.assertEqual(found.groups[0].tolist(), [0, 1, 2])

  def test_the_search_stops_when_every_group_is_finished(self):
    calls = []

    def step(tokens, cache, t):
      jax.debug.callback(lambda t: calls.append(int(t)), t)
      return jnp.zeros((*tokens.shape, 6)).at[..., 5].set(9.0), cache
    cfg = DiverseBeamSearch(2, 2, 0.1, 50)
    first = jnp.zeros((1, 6)).at[:, 2].set(9.0)
    found = diverse_beam_search(BoundDecoder(step), (), first, Unconstrained((5,)), cfg)
    jax.effects_barrier()
    self.assertEqual(calls, [0])
    self.assertEqual(found.lengths.tolist(), [[2, 2]])

  def test_no_host_transfer_happens_inside_the_search(self):
    cfg, rule = DiverseBeamSearch(4, 2, 1.0, 4), Unconstrained((1,))
    first, table = jnp.zeros((2, 7)), jnp.zeros((4, 7, 7))
    run(first, table, cfg, rule)
    with jax.transfer_guard('disallow'):
      run(first, table, cfg, rule).tokens.block_until_ready()


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(beams=5, groups=2), 'beams=5'), (dict(diversity_penalty=0.0), 'diversity_penalty'),
      (dict(new_tokens=0), 'new_tokens=0'), (dict(pad_id=-1), 'pad_id'))
  def test_impossible_settings_name_the_setting(self, change, words):
    good = dict(beams=4, groups=2, diversity_penalty=1.0, new_tokens=8)
    with self.assertRaisesRegex(ConfigError, words):
      DiverseBeamSearch(**{**good, **change})

  @parameterized.parameters(
      (9, FREE, (4, 2), False, 'reorder'), (3, FREE, (4, 1), True, 'vocabulary of 3'),
      (9, Unconstrained((5,), 3), (2, 2), True, 'min_new_tokens=3'),
      (9, CodeConstraint(2, 4), (2, 2), True, 'CodeConstraint'))
  def test_what_does_not_go_together_is_refused(self, vocab, rule, sizes, reorder, words):
    model = BoundDecoder(lambda *_: None, reorder=(lambda c, p: c) if reorder else None)
    with self.assertRaisesRegex(ConfigError, words):
      diverse_beam_search(model, (), jnp.zeros((1, vocab)), rule,
                          DiverseBeamSearch(*sizes, 1.0, 2))

  def test_end_tokens_below_zero_are_refused(self):
    with self.assertRaisesRegex(ConfigError, 'eos_ids'):
      Unconstrained((-1,))


if __name__ == '__main__':
  absltest.main()
