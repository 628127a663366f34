"""Tests that take long and see what seldom changes: they run with `python -m tests --all`."""
import os
import unittest
from collections.abc import Callable

ALL = os.environ.get('RECJAX_TEST_ALL') == '1'


def long(test: Callable) -> Callable:
  """Marks a test method as one that runs with --all."""
  test.is_long = True
  return unittest.skipUnless(ALL, 'long: runs with python -m tests --all')(test)
