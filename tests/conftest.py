"""`pytest tests` runs the same cases as `python -m tests`, under the same settings."""
import os

from tests.__main__ import environment

os.environ.update(environment())

from absl import flags  # noqa: E402

if not flags.FLAGS.is_parsed():
  flags.FLAGS(['pytest'])
