"""Tests that take long and see what seldom changes: they run with `python -m tests --all`."""
import os
import unittest

ALL = os.environ.get('RECJAX_TEST_ALL') == '1'
long = unittest.skipUnless(ALL, 'long: runs with python -m tests --all')
