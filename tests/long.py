"""Tests that take long and see what seldom changes: they run with `python -m tests --all`.

Each property keeps one quick test or case without it, so that a fault is seen at once.
"""
import functools
import os
import unittest
from collections.abc import Callable

ALL = os.environ.get('RECJAX_TEST_ALL') == '1'
WHY = 'long: runs with python -m tests --all'


def long(test: Callable) -> Callable:
  """Marks a test method, under its parameters if it has some, as one that runs with --all."""
  test.is_long = True
  return unittest.skipUnless(ALL, WHY)(test)


def long_but(*cases: int | str) -> Callable[[Callable], Callable]:
  """Marks a parameterized test, under its parameters: all cases are long but those named here.

  cases: numbers of cases from 0, or their names.
  """
  def mark(test):
    @functools.wraps(test)
    def case(self, *args, **kwargs):
      if not ALL and is_long(case, self._testMethodName):
        self.skipTest(WHY)
      test(self, *args, **kwargs)
    case.quick = {test.__name__ + str(name) for name in cases}
    return case
  return mark


def is_long(test: Callable, name: str) -> bool:
  """Whether a test runs with --all alone. test: the method. name: its name in the class."""
  return getattr(test, 'is_long', False) or name not in getattr(test, 'quick', {name})


def examples(few: int, many: int) -> Callable[[Callable], Callable]:
  """Settings of a property test, above `given`: few examples, always the same; many with --all.

  few, many: how many of them.
  """
  import hypothesis

  def mark(test):
    test = hypothesis.settings(max_examples=many if ALL else few, derandomize=not ALL,
                               deadline=None, database=None)(test)
    test.in_both = True
    return test
  return mark
