"""Tests that take long and see what seldom changes: they run with `python -m tests --all`."""
import os
import unittest
from collections.abc import Callable

from absl.testing import absltest

ALL = os.environ.get('RECJAX_TEST_ALL') == '1'


def long(test: Callable) -> Callable:
  """Marks a test method as one that runs with --all."""
  test.is_long = True
  return unittest.skipUnless(ALL, 'long: runs with python -m tests --all')(test)


class LongLoader(absltest.TestLoader):
  """Finds the long tests alone."""

  def getTestCaseNames(self, testCaseClass: type[unittest.TestCase]) -> list[str]:
    """The names of the long tests of a class. testCaseClass: the class."""
    return [name for name in super().getTestCaseNames(testCaseClass)
            if getattr(getattr(testCaseClass, name), 'is_long', False)]


if __name__ == '__main__':
  absltest.main(module=None, testLoader=LongLoader())
