"""`recjax serve` as a process: what a terminal sees when it is stopped."""
import pathlib
import signal
import socket
import subprocess
import sys
import time

import httpx
from absl.testing import absltest

from recjax import experiment
from tests.long import long

CONFIG = f'{pathlib.Path(__file__).parents[2]}/configs/sequential_scientific.py:data=sample:1:60'
WARMS_FOREVER = '''
import itertools, sys
import jax
from recjax import cli
from recjax.serving import served_model

def warm_up(self):
  for n in itertools.count(1):
    jax.jit(lambda x: (x @ x).sum() * n)(jax.numpy.ones((300, 300))).block_until_ready()

served_model.ServedModel.warm_up = warm_up
sys.argv = ['recjax', 'serve', sys.argv[1], '--port=' + sys.argv[2]]
cli.main()
'''


class ServeTest(absltest.TestCase):

  @long
  def test_ctrl_c_ends_it_cleanly_while_models_warm(self):
    room = self.create_tempdir().full_path
    experiment.train(CONFIG, room, {
        'train.epochs': 1, 'model.width': 8, 'eval.classical': False})
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, '-c', WARMS_FOREVER, room, str(port)],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
      for _ in range(600):
        try:
          if httpx.get(f'http://127.0.0.1:{port}/healthz', timeout=60).status_code == 200:
            break
        except httpx.HTTPError:
          time.sleep(.5)
      process.send_signal(signal.SIGINT)
      out, said = process.communicate(timeout=300)
    self.assertIn('is the shop', out)
    self.assertEqual((process.returncode, said), (0, ''))


if __name__ == '__main__':
  absltest.main()
