"""Tuning on rolled-out lists through the real path: a small T5 over the codes of 64 items.

Each of 16 contexts has one true item. Supervised training gives it most of the probability, but in
a quarter of the contexts a decoy has more: what labels that are often wrong leave behind.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from recjax.decoding import device_trie
from recjax.decoding.constraints import CatalogConstraint, Normalization
from recjax.errors import ConfigError
from recjax.methods.etegrec import policy as etegrec_policy
from recjax.models import semantic_id_t5, t5
from recjax.policy import tuning
from recjax.policy.tuning import PolicyTuning
from recjax.training.losses.policy import PolicyLoss
from tests import devices
from tests.long import long, long_but

ITEMS, SIZE, LEVELS, CONTEXTS, WRONG = 64, 4, 3, 16, 4
CFG = semantic_id_t5.Config(
  t5.Config(width=32, layers=1, decoder_layers=1, heads=2, head_dim=16, ffn=32, dropout=0.0),
  LEVELS, SIZE, 0, 0)
MODEL = etegrec_policy.make_model(CFG)
CODES = np.array([[i // 16, i // 4 % 4, i % 4] for i in range(ITEMS)], np.int32)
TABLE = np.concatenate([np.full((1, LEVELS), -1, np.int32), CODES])
TRUE = np.random.default_rng(0).permutation(ITEMS)[:CONTEXTS] + 1  # after item context + 1


def batch_of(contexts=CONTEXTS):
  """A request of each of the first contexts."""
  target = TRUE[:contexts]
  return {'tokens': jnp.arange(1, contexts + 1)[:, None], 'lengths': jnp.ones(contexts, jnp.int32),
          'target': jnp.asarray(target, jnp.int32),
          'target_tokens': jnp.asarray(TABLE[target] + np.arange(LEVELS) * SIZE),
          'target_lengths': jnp.full(contexts, LEVELS)}


@functools.cache
def trie():
  with jax.ensure_compile_time_eval():
    return device_trie.semantic_id_trie(jnp.asarray(CODES), SIZE, jnp.arange(LEVELS) * SIZE)


def rule():
  return CatalogConstraint(trie(), normalization=Normalization('valid', SIZE))


@jax.jit
def item_log_probs(params):
  """log p of every item in every context, (contexts, N), by scoring each item's codes."""
  batch = batch_of()
  tokens = jnp.broadcast_to(jnp.asarray(CODES + np.arange(LEVELS) * SIZE),
                            (CONTEXTS, ITEMS, LEVELS))
  return tuning.row_log_probs(
    MODEL, {'params': params, 'table': jnp.asarray(TABLE)}, batch, rule(), tokens,
    jnp.full((CONTEXTS, ITEMS), LEVELS)).sum(-1)


def wanted(true_share):
  """What supervised training is to end with: `true_share` for the true item of a wrong context, .6
  for its decoy, .6 for the true item elsewhere; most of the rest is had by 20 other items."""
  p = np.zeros((CONTEXTS, ITEMS))
  for context, item in enumerate(TRUE):
    p[context, item - 1] = true_share if context < WRONG else 0.6
    if context < WRONG:
      p[context, item % ITEMS] = 0.6
    rest, left = np.flatnonzero(p[context] == 0), 1 - p[context].sum()
    p[context, rest[::3][:20]] = 0.8 * left / 20
    p[context, p[context] == 0] = 0.2 * left / (len(rest) - 20)
  return jnp.asarray(p)


@functools.partial(jax.jit, static_argnums=(0, 1))
def descend(loss, steps, params, key, rate):
  """Adam on loss(params, key). -> params, means of what the loss tells"""
  tx = optax.adam(rate)

  def step(carry, number):
    params, opt = carry
    grads, told = jax.grad(loss, has_aux=True)(params, jax.random.fold_in(key, number))
    updates, opt = tx.update(grads, opt, params)
    return (optax.apply_updates(params, updates), opt), told
  (params, _), told = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
  return params, told


@functools.cache
def supervised(true_share):
  """What training leaves."""
  target = wanted(true_share)
  loss = lambda params, key: (-(target * item_log_probs(params)).sum(-1).mean(), {})  # noqa: E731
  key = jax.random.key(0)
  params, _ = descend(loss, 400, semantic_id_t5.init(CFG, key), key, 5e-3)
  return params


def tuned(settings, params, steps, contexts=CONTEXTS):
  """Tunes on the first contexts. -> params, what was told"""
  frozen = {'table': jnp.asarray(TABLE), 'trie': trie(), 'reference': params}
  make = tuning.make_loss(settings, MODEL)
  return descend(lambda p, key: make(p, frozen, batch_of(contexts), key), steps, params,
                 jax.random.key(0), 2e-3)


@functools.cache
def spread():
  """Random parameters whose items differ widely, for what needs no training."""
  params = semantic_id_t5.init(CFG, jax.random.key(5))
  return {**params, 'codes': params['codes'] * 40}


def right(params):
  """Share of the wrong contexts whose first item is the true one now, and of the others."""
  hit = np.asarray(item_log_probs(params).argmax(-1)) + 1 == TRUE
  return hit[:WRONG].mean(), hit[WRONG:].mean()


BEAMS = PolicyTuning(rollout='beams', rows=8, nll=0.0)


@long
class WrongLabelsTest(parameterized.TestCase):

  def test_beams_mend_what_stands_in_their_lists(self):
    params = supervised(0.1)
    self.assertEqual(right(params), (0, 1))
    end, told = tuned(BEAMS, params, 150)
    self.assertEqual(right(end), (1, 1))
    self.assertGreater(told['reward'][-20:].mean(), told['reward'][:20].mean())

  def test_outside_the_list_beams_learn_nothing_and_draws_do(self):
    """The true item at rank 18 and below: beams that learned it would have seen the target."""
    params = supervised(0.008)
    order = (-np.asarray(item_log_probs(params))).argsort(-1).argsort(-1)
    self.assertGreater(order[np.arange(WRONG), TRUE[:WRONG] - 1].min(), 8)
    end, told = tuned(BEAMS, params, 20, contexts=WRONG)
    self.assertEqual(float(told['flat'].min()), 1)
    jax.tree.map(np.testing.assert_array_equal, end, params)
    drawn = dataclasses.replace(BEAMS, rollout='swor')
    self.assertEqual(right(tuned(drawn, params, 200, contexts=WRONG)[0])[0], 1)

  def test_preferences_mend_it_too(self):
    settings = PolicyTuning(loss='sdpo', rollout='beams', rows=4, nll=0.0,
                            grpo=PolicyLoss(beta=0.1))
    self.assertEqual(right(tuned(settings, supervised(0.1), 100)[0]), (1, 1))


class RolloutTest(parameterized.TestCase):

  @parameterized.parameters(*tuning.ROLLOUTS)
  @long_but(0)
  def test_rows_are_items_with_their_log_probabilities(self, rollout):
    params = spread()
    settings = PolicyTuning(rollout=rollout, rows=6)
    frozen = {'table': jnp.asarray(TABLE), 'trie': trie()}
    inputs = {'params': params, 'table': jnp.asarray(TABLE)}
    rolled = jax.jit(lambda key: tuning.roll_out(
      settings, MODEL, inputs, frozen, batch_of(), rule(), key))(jax.random.key(0))
    items = np.asarray(rolled.items)
    self.assertTrue(((items > 0) & (items <= ITEMS)).all())
    np.testing.assert_array_equal(
      rolled.tokens, (CODES + np.arange(LEVELS) * SIZE)[items - 1])
    exact = np.take_along_axis(np.asarray(item_log_probs(params)), items - 1, 1)
    np.testing.assert_allclose(rolled.log_probs, exact, atol=1e-4)
    np.testing.assert_allclose(rolled.token_log_probs.sum(-1), exact, atol=1e-4)
    self.assertTrue((np.diff(rolled.log_probs) <= 1e-6).all())
    np.testing.assert_allclose(rolled.weights.sum(-1), 1, atol=1e-5)
    if rollout != 'samples':
      self.assertTrue((np.sort(items)[:, 1:] != np.sort(items)[:, :-1]).all())
    if rollout == 'beams':
      np.testing.assert_array_equal(items[:, 0], item_log_probs(params).argmax(-1) + 1)

  def test_a_whole_catalog_without_replacement_gives_the_exact_gradient(self):
    """As many rows as items: the loss's gradient is that of minus the expected reward."""
    params = spread()
    settings = PolicyTuning(rows=ITEMS, reward='hit', nll=0.0, grpo=PolicyLoss(beta=0.0))
    frozen = {'table': jnp.asarray(TABLE), 'trie': trie(), 'reference': params}
    grads = jax.jit(jax.grad(lambda p: tuning.make_loss(settings, MODEL)(
      p, frozen, batch_of(), jax.random.key(1))[0]))(params)
    exact = jax.jit(jax.grad(lambda p: -jnp.exp(item_log_probs(p))[
      jnp.arange(CONTEXTS), TRUE - 1].mean()))(params)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(exact)):
      np.testing.assert_allclose(ours, theirs, atol=2e-5)

  def test_lists_that_say_nothing_leave_the_model_as_it_is(self):
    """No list holds the target and there is no supervised loss: no gradient, no pull either."""
    params = spread()
    moved = jax.tree.map(lambda x: x * 1.01, params)
    batch = batch_of()
    batch['target'] = jnp.zeros_like(batch['target'])  # an item that no list holds
    frozen = {'table': jnp.asarray(TABLE), 'trie': trie(), 'reference': params}
    grads, told = jax.jit(jax.grad(tuning.make_loss(BEAMS, MODEL), has_aux=True))(
      moved, frozen, batch, jax.random.key(0))
    self.assertEqual(max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)), 0)
    self.assertEqual(float(told['flat']), 1)
    self.assertEqual(float(told['hit']), 0)

  @long
  def test_at_the_start_nothing_diverges(self):
    params = spread()
    frozen = {'table': jnp.asarray(TABLE), 'trie': trie(), 'reference': params}
    _, told = jax.jit(tuning.make_loss(PolicyTuning(rows=8), MODEL))(
      params, frozen, batch_of(), jax.random.key(0))
    self.assertLess(float(told['kl']), 1e-6)
    self.assertLess(float(told['log_ratio']), 1e-4)
    self.assertEqual(float(told['clipped']), 0)
    p = np.exp(np.asarray(item_log_probs(params)))
    self.assertAlmostEqual(float(told['entropy']), -(p * np.log(p)).sum(1).mean(), delta=0.6)

  @long
  def test_devices_change_nothing(self):
    """Requests over one device and over eight: the same rows are drawn, the same gradient."""
    params = spread()
    frozen = {'table': jnp.asarray(TABLE), 'trie': trie(), 'reference': params}
    loss = tuning.make_loss(PolicyTuning(rows=4), MODEL)
    found = []
    for count in (1, 8):
      mesh = devices.mesh(data=count)
      with jax.set_mesh(mesh):
        batch = {name: jax.device_put(x, jax.NamedSharding(mesh, jax.P('data')))
                 for name, x in batch_of().items()}
        found.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(
          params, frozen, batch, jax.random.key(3)))
    for one, other in zip(*map(jax.tree.leaves, found)):
      np.testing.assert_allclose(one, other, atol=1e-5)

  def test_settings_that_do_not_go_together(self):
    for bad, word in ((dict(rows=1), 'rows'), (dict(loss='ppo'), 'loss'),
                      (dict(rollout='best'), 'rollout'), (dict(reward='ndcg'), 'reward'),
                      (dict(nll=-0.1), 'nll'), (dict(grpo=PolicyLoss(ratio='token')), 'ratio'),
                      (dict(loss='sdpo', rollout='samples'), 'different'),
                      (dict(loss='sdpo', rollout='beams', grpo=PolicyLoss(beta=0.0)), 'beta')):
      with self.assertRaisesRegex(ConfigError, word):
        PolicyTuning(**bad)


if __name__ == '__main__':
  absltest.main()
