"""Policy and preference losses, against figures by hand and against torch's own arithmetic."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.training.losses import policy, preference
from recjax.training.losses.policy import PolicyLoss, Rolled

NOW = np.array([[[-1, -0.5], [-2, -0.7]]], np.float32)
OLD = np.array([[[-1.3, -0.5], [-1.8, -0.4]]], np.float32)
REFERENCE = np.array([[[-1.1, -0.6], [-1.9, -0.9]]], np.float32)
REWARDS = np.array([[1.0, -1.0]], np.float32)  # whose advantages are themselves


def loss_of(now=NOW, weights=None, counted=None, rewards=REWARDS, **settings):
  """-> losses (B,), what is watched"""
  settings = PolicyLoss(**{'flat': 'keep', 'beta': 0.0, **settings})
  shape = now.shape
  weights = np.full(shape[:2], 1 / shape[1], np.float32) if weights is None else weights
  counted = np.ones(shape, bool) if counted is None else counted
  arrays = map(jnp.asarray, (now, OLD, REFERENCE, counted, weights))
  return policy.policy_loss(settings, Rolled(*arrays), jnp.asarray(rewards))


def gradient_of(**settings):
  return jax.grad(lambda now: loss_of(now, **settings)[0].sum())(jnp.asarray(NOW))


class AdvantagesTest(absltest.TestCase):

  def test_by_hand(self):
    rewards, weights = jnp.array([[1, 0, 0, 0.5]]), jnp.full((1, 4), 0.25)
    for kind, wanted in (('std', [1.305310, -0.783186, -0.783186, 0.261062]),
                         ('mean', [0.625, -0.375, -0.375, 0.125]),
                         ('loo', [1 - 0.5 / 3, -0.5, -0.5, 0.5 - 1 / 3])):
      np.testing.assert_allclose(policy.advantages(kind, rewards, weights), [wanted], atol=1e-5)

  def test_rows_that_do_not_exist_change_nothing(self):
    rewards = jnp.array([[1, 0, 0, 0.5, 7.0, -3.0]])
    weights = jnp.array([[0.25] * 4 + [0, 0]])
    for kind in policy.ADVANTAGES:
      found = policy.advantages(kind, rewards, weights)
      np.testing.assert_allclose(
        found[:, :4], policy.advantages(kind, rewards[:, :4], weights[:, :4]), atol=1e-6)
      np.testing.assert_array_equal(found[:, 4:], 0)

  def test_with_weights_their_weighted_sum_is_zero(self):
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(8), 5)
    rewards = rng.normal(size=(5, 8))
    for kind in ('std', 'mean'):
      found = policy.advantages(kind, jnp.asarray(rewards), jnp.asarray(weights))
      np.testing.assert_allclose((weights * found).sum(1), 0, atol=1e-5)

  def test_lists_of_one_reward_are_flat(self):
    rewards = jnp.array([[0, 0, 0.0], [1, 1, 0], [1, 0, 0]])
    weights = jnp.array([[1 / 3] * 3, [0.5, 0.5, 0], [1 / 3] * 3])
    self.assertEqual(policy.flat_lists(rewards, weights).tolist(), [True, True, False])


class PolicyLossTest(parameterized.TestCase):

  @parameterized.parameters((0.2, -0.144982), (0.28, -0.164982))
  def test_tokens_by_hand(self, clip_high, wanted):
    settings = dict(ratio='token', divergence='k3', beta=0.04, clip_high=clip_high)
    self.assertAlmostEqual(float(loss_of(**settings)[0][0]), wanted, places=5)
    np.testing.assert_allclose(
      gradient_of(**settings)[0], [[0.000952, -0.249048], [0.203631, 0.001813]], atol=1e-5)

  def test_sequences_by_hand(self):
    settings = dict(ratio='sequence')
    self.assertAlmostEqual(float(loss_of(**settings)[0][0]), -0.180917, places=5)
    np.testing.assert_allclose(gradient_of(**settings)[0], [[-0.290459, -0.290459], [0, 0]],
                               atol=1e-5)

  @parameterized.parameters((0.2, 0.2, 1.8, -0.56), (0.2, 0.28, 1.92, -0.56),
                            (0.06, 0.08, 1.62, -0.658))
  def test_clip_by_hand(self, low, high, first, second):
    gains = policy.surrogate(jnp.array([1.3, 0.6]), jnp.array([1.5, -0.7]), low, high)
    np.testing.assert_allclose(gains, [first, second], atol=1e-6)

  @parameterized.product(ratio=policy.RATIOS, average=policy.AVERAGES)
  def test_like_torch(self, ratio, average):
    """The same formula written token by token in torch, with rows of different lengths, weights and
    a row that does not exist."""
    torch = self.torch()
    rng = np.random.default_rng(3)
    now, old, ref = (rng.normal(-1, 0.3, (4, 3, 5)) for _ in range(3))
    lengths = np.array([[5, 3, 1], [2, 2, 4], [1, 5, 5], [3, 3, 3]])
    weights = rng.dirichlet(np.ones(3), 4)
    weights[1] = [0.6, 0.4, 0]
    rewards = rng.normal(size=(4, 3))
    counted = np.arange(5) < lengths[..., None]
    settings = PolicyLoss(ratio=ratio, average=average, divergence='k3', beta=0.2, flat='keep')
    ours = lambda x: policy.policy_loss(  # noqa: E731
      settings, Rolled(x, *map(jnp.asarray, (old, ref, counted, weights))),
      jnp.asarray(rewards))[0]
    with jax.enable_x64(True):
      value, grad = jax.value_and_grad(lambda x: ours(x).sum())(jnp.asarray(now))
    x = torch.tensor(now, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for b in range(4):
      mean = sum(weights[b, k] * rewards[b, k] for k in range(3))
      used = sum(weights[b, k] * lengths[b, k] for k in range(3))
      for k in range(3):
        if not weights[b, k]:
          continue
        n, w, gain = lengths[b, k], weights[b, k], rewards[b, k] - mean
        share = {'answer': w / n, 'token': w / used, 'constant': w / 5}[average]
        logs = x[b, k, :n] - torch.tensor(old[b, k, :n])
        back = torch.tensor(ref[b, k, :n]) - x[b, k, :n]
        total = total + 0.2 * share * (back.exp() - back - 1).sum()
        whole = {'token': logs, 'product': logs.sum(), 'sequence': logs.mean()}[ratio].exp()
        clipped = whole.clamp(0.8, 1.28) * gain
        gains = torch.minimum(whole * gain, clipped)
        total = total - (share * gains.sum() if ratio == 'token' else w * gains)
    total.backward()
    self.assertAlmostEqual(float(value), float(total.detach()), places=6)
    np.testing.assert_allclose(grad, x.grad.numpy(), atol=1e-7)

  def torch(self):
    try:
      import torch
    except ImportError:
      self.skipTest('torch is not installed')
    return torch

  def test_flat_lists_are_left_out_or_pulled_back(self):
    flat = np.zeros((1, 2), np.float32)
    dropped, kept = (loss_of(rewards=flat, beta=0.1, flat=name) for name in ('drop', 'keep'))
    self.assertEqual(float(dropped[0][0]), 0)
    self.assertGreater(float(kept[0][0]), 0)
    self.assertEqual(float(dropped[1]['flat']), 1)
    grad = jax.grad(lambda now: loss_of(now, rewards=flat, beta=0.1, flat='drop')[0].sum())(
      jnp.asarray(NOW))
    np.testing.assert_array_equal(grad, 0)

  def test_far_rows_do_not_overflow_the_divergence(self):
    value, watched = loss_of(np.full_like(NOW, -60), beta=1.0, divergence='k3')
    self.assertTrue(np.isfinite(value).all())
    self.assertEqual(float(watched['kl_clipped']), 1)

  def test_bad_settings(self):
    for bad in (dict(beta=-1.0), dict(clip_low=0.0), dict(clip_high=1.0), dict(kl_clip=0.0),
                dict(advantage='best'), dict(flat='no')):
      with self.assertRaisesRegex(ConfigError, f'policy.{next(iter(bad))}'):
        PolicyLoss(**bad)


class DivergenceTest(absltest.TestCase):

  def test_by_hand(self):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    for kind, values, mean in (('k1', [0.223144, -0.287682, 0], 0.025267),
                               ('k2', [0.024897, 0.041381, 0], 0.024862),
                               ('k3', [0.023144, 0.045651, 0], 0.025267)):
      found = np.asarray(policy.divergence(kind, jnp.asarray(np.log(q / p))))
      np.testing.assert_allclose(found, values, atol=2e-6)
      self.assertAlmostEqual(float(p @ found), mean, places=5)

  def test_as_losses_their_gradients_differ(self):
    """On average over draws: none, that of KL(p | q), that of KL(q | p), by the logits of p."""
    logits, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([0.4, 0.4, 0.2])
    p = jax.nn.softmax(logits)

    def mean(kind):
      return jax.grad(lambda z: (p * policy.divergence(
        kind, jnp.log(q) - jax.nn.log_softmax(z))).sum())(logits)
    np.testing.assert_allclose(mean('k1'), 0, atol=1e-6)
    forward = jax.grad(lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - jnp.log(q))).sum())
    backward = jax.grad(lambda z: (q * (jnp.log(q) - jax.nn.log_softmax(z))).sum())
    np.testing.assert_allclose(mean('k2'), forward(logits), atol=1e-6)
    np.testing.assert_allclose(mean('k3'), backward(logits), atol=1e-6)
    np.testing.assert_allclose(mean('k2'), [0.098938, -0.093885, -0.005053], atol=2e-6)


class PreferenceTest(parameterized.TestCase):

  @parameterized.parameters(
    ('dpo', 0.1, 0.658760, (-0.048251, 0.048251, 0)),
    ('dpo', 1.0, 0.403186, (-0.331812, 0.331812, 0)),
    ('sdpo', 0.1, 1.036494, (-0.064530, 0.033072, 0.031459)),
    ('sdpo', 1.0, 0.586552, (-0.443758, 0.276222, 0.167537)),
    ('pairs', 0.1, 0.646853, (-0.047627, 0.024125, 0.023502)),
    ('pairs', 1.0, 0.333234, (-0.281644, 0.165906, 0.115738)),
    ('dmpo', 1.0, 0.326956, (-0.278885, 0.139442, 0.139442)))
  def test_by_hand(self, kind, beta, loss, gradient):
    reference, exists = jnp.array([[-4.2, -3, -5]]), jnp.ones((1, 3), bool)
    of = lambda x: preference.preference_loss(kind, beta, x, reference, exists).sum()  # noqa: E731
    value, grad = jax.value_and_grad(of)(jnp.array([[-4, -3.5, -6]]))
    self.assertAlmostEqual(float(value), loss, places=5)
    np.testing.assert_allclose(grad[0], gradient, atol=1e-5)

  @parameterized.parameters(*preference.PREFERENCES)
  def test_the_start_and_far_margins(self, kind):
    """At the reference: ln 2, and ln(1 + n) of a softmax. Margins of hundreds stay numbers."""
    exists, at = jnp.ones((1, 4), bool), jnp.array([[-3, -2.5, -7, -1]])
    of = lambda x: preference.preference_loss(kind, 1.0, x, at, exists).sum()  # noqa: E731
    self.assertAlmostEqual(float(of(at)), np.log(4 if kind == 'sdpo' else 2), places=5)
    for shift in (-400.0, 400.0):
      value, grad = jax.value_and_grad(of)(at.at[0, 0].add(shift))
      self.assertAlmostEqual(float(value), max(0.0, -shift) + (
        np.log(3) if kind == 'sdpo' and shift < 0 else 0), places=3)
      self.assertTrue(np.isfinite(grad).all())

  @parameterized.parameters(*preference.PREFERENCES)
  def test_negatives_that_are_not_there(self, kind):
    """They change nothing, and a request without any has no loss."""
    x, ref = jnp.array([[-4, 9.0, -3.5, -6]]), jnp.array([[-4.2, -9.0, -3, -5]])
    some = preference.preference_loss(kind, 0.5, x, ref, jnp.array([[True, False, True, True]]))
    only = preference.preference_loss(kind, 0.5, x[:, [0, 2, 3]], ref[:, [0, 2, 3]],
                                      jnp.ones((1, 3), bool))
    np.testing.assert_allclose(some, only, atol=1e-6)
    none = lambda x: preference.preference_loss(  # noqa: E731
      kind, 0.5, x, ref, jnp.array([[True, False, False, False]])).sum()
    value, grad = jax.value_and_grad(none)(x)
    self.assertEqual(float(value), 0)
    np.testing.assert_array_equal(grad, 0)


if __name__ == '__main__':
  absltest.main()
