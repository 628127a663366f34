"""One process of the suite: `python -m tests.room tests.a_test ...`, or a fork of the runner.

Compiled programs are dropped where there are many: thousands of them in one process would come to
the system's limit of memory maps.
"""
import gc
import os
import pathlib
import sys
import unittest
from types import ModuleType
from typing import Any, NoReturn

from absl.testing import absltest

from tests.long import ALL, is_long

LONG_ALONE = os.environ.get('RECJAX_TEST_LONG_ALONE') == '1'

MAPS = pathlib.Path('/proc/self/maps')
MOST_MAPS = 15_000  # Linux allows 65,530; a file takes 10,000, with its long tests more


class FileSuite(unittest.TestSuite):
  """The tests of a file, after which JAX forgets its programs if they are many."""

  def run(self, result: unittest.TestResult, debug: bool = False) -> unittest.TestResult:
    """Runs the tests. result: where they are told. debug: whether errors are raised."""
    super().run(result, debug)
    many = not MAPS.exists() or MAPS.read_bytes().count(b'\n') > MOST_MAPS
    if many and 'jax' in sys.modules:
      sys.modules['jax'].clear_caches()
      gc.collect()
    return result


class RoomLoader(absltest.TestLoader):
  """Finds the tests of files: without long ones, with them, or these alone, as was asked."""

  def loadTestsFromModule(self, module: ModuleType, **how: Any) -> unittest.TestSuite:
    """The tests of a file. module: the file. how: as unittest gives it."""
    return FileSuite([super().loadTestsFromModule(module, **how)])

  def getTestCaseNames(self, testCaseClass: type[unittest.TestCase]) -> list[str]:
    """The names of a class's tests. testCaseClass: the class. Raises ValueError where a test names
    quick cases that it has not."""
    names = super().getTestCaseNames(testCaseClass)

    def wanted(name):
      test = getattr(testCaseClass, name)
      if unknown := getattr(test, 'quick', set()) - set(names):
        raise ValueError(f'{testCaseClass.__qualname__} has no case {", ".join(sorted(unknown))}')
      if LONG_ALONE:
        return is_long(test, name) or getattr(test, 'in_both', False)
      return ALL or not is_long(test, name)
    return list(filter(wanted, names))


def main() -> NoReturn:
  """Runs the files that sys.argv names and ends with unittest's exit code."""
  # Most objects of a suite live as long as it: looking at all of them again takes a tenth of it.
  gc.set_threshold(50_000, 20, 50)
  absltest.main(module=None, testLoader=RoomLoader())
  raise AssertionError('absltest.main came back')


if __name__ == '__main__':
  main()
