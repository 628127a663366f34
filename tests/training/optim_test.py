"""Learning rates by step, against published figures."""
import types

from absl.testing import absltest, parameterized

from recjax.errors import ConfigError
from recjax.training import optim


class ScheduleTest(parameterized.TestCase):

  @parameterized.parameters((39, 5e-5), (78, 1e-4), (78 + (6250 - 78) // 2, 2.5075e-5),
                            (6250, 1e-7))
  def test_reclm_as_published(self, step, want):
    """reclm.md 3.4: 6,250 steps, 78 of warm-up, then with the square down to 1e-7."""
    rate = optim.schedule(types.SimpleNamespace(lr=1e-4, warmup=78, schedule='square'), 6250)
    self.assertAlmostEqual(float(rate(step)) / want, 1, places=4)

  @parameterized.parameters(*optim.SCHEDULES)
  def test_all_begin_at_the_rate_and_never_rise(self, name):
    rate = optim.schedule(types.SimpleNamespace(lr=0.1, warmup=2, schedule=name), 20)
    found = [float(rate(step)) for step in range(21)]
    self.assertAlmostEqual(found[0], 0)
    self.assertAlmostEqual(found[2], 0.1, places=6)
    self.assertTrue(all(a >= b - 1e-8 for a, b in zip(found[2:], found[3:])))

  def test_an_unknown_one_is_refused(self):
    with self.assertRaisesRegex(ConfigError, "'cubic'.*square"):
      optim.schedule(types.SimpleNamespace(lr=0.1, warmup=0, schedule='cubic'), 5)


if __name__ == '__main__':
  absltest.main()
