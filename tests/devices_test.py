"""However a test file is started, it has eight devices, or it says that it lacks them."""
import os
import pathlib
import re
import subprocess
import sys
import unittest
from unittest import mock

import jax
from absl.testing import absltest

from tests import devices
from tests.long import long

ASK = 'import tests.devices, jax; print(jax.device_count())'


class DevicesTest(absltest.TestCase):

  def started(self, **env):
    """What a fresh process of ours finds. -> text"""
    inherited = {k: v for k, v in os.environ.items() if k != 'JAX_NUM_CPU_DEVICES'}
    return subprocess.run([sys.executable, '-c', ASK], env={
        **inherited, 'JAX_PLATFORMS': 'cpu', **env}, capture_output=True, text=True).stdout.strip()

  @long
  def test_eight_by_default_or_what_the_environment_says(self):
    self.assertEqual(self.started(), '8')
    self.assertEqual(self.started(JAX_NUM_CPU_DEVICES='3'), '3')
    self.assertEqual(self.started(XLA_FLAGS='--xla_force_host_platform_device_count=2'), '2')

  def test_the_runner_has_them(self):
    if jax.default_backend() == 'cpu':
      self.assertLen(devices.some(8), 8)
      self.assertEqual(dict(devices.mesh(data=4, model=2).shape), {'data': 4, 'model': 2})

  def test_no_other_test_slices_the_devices_itself(self):
    for path in pathlib.Path(__file__).parent.rglob('*.py'):
      found = re.findall(r'jax\.devices\(\)\[:(?!1\]).*', path.read_text())
      self.assertEqual(found, [], path)  # a slice of too few says nothing

  def test_too_few_are_a_failure_here_and_a_skip_by_name_elsewhere(self):
    for platform, error in (('cpu', AssertionError), ('tpu', unittest.SkipTest)):
      with mock.patch.object(jax, 'devices', lambda p=platform: [mock.Mock(platform=p)]):
        self.assertLen(devices.some(1), 1)
        with self.assertRaisesRegex(error, '8 devices'):
          devices.some(8)


if __name__ == '__main__':
  absltest.main()
