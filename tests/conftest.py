"""`pytest tests` runs the same cases as `python -m tests`, under the same settings."""
import os

import tests
from tests.__main__ import environment

os.environ.update(environment())
tests.check_annotations()

from absl import flags  # noqa: E402

if not flags.FLAGS.is_parsed():
  flags.FLAGS(['pytest'])
