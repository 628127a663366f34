"""Devices for tests that compare several with one: as many as they want, or the test says so."""
import math
import unittest

import jax
import numpy as np


def some(count):
  """The first `count` devices. A CPU that has fewer fails the test; other devices skip it."""
  found = jax.devices()
  if len(found) >= count:
    return found[:count]
  if found[0].platform == 'cpu':
    raise AssertionError(f'this test wants {count} devices, of which {len(found)} are here; run it '
                         'with JAX_NUM_CPU_DEVICES=8 and JAX_PLATFORMS=cpu')
  raise unittest.SkipTest(f'needs {count} devices, {len(found)} of {found[0].platform} are here')


def mesh(**axes):
  """A mesh of the first devices, as sharding.make_mesh makes it of all. axes: sizes by name."""
  return jax.sharding.Mesh(np.array(some(math.prod(axes.values()))).reshape(*axes.values()),
                           tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
