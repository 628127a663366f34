"""Damaged checkpoints are named and passed over, and any mesh reads what another wrote."""
import pathlib
import random
import shutil
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from recjax import errors
from recjax.training import checkpoint
from tests import devices as several
from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]


def state(step, devices=1):
  """Arrays of several types, those of two axes split over the devices."""
  rng = np.random.default_rng(step)
  tree = {'train': {'w': rng.normal(size=(64, 32)).astype(np.float32),
                    'b': jnp.asarray(rng.normal(size=16), jnp.bfloat16)},
          'opt': {'m': rng.normal(size=(8, 4)).astype(np.float32), 'step': np.int32(step)}}
  return jax.tree.map(lambda x: jax.device_put(x, where(x, devices)), tree)


def where(x, devices):
  spec = jax.P('data') if np.ndim(x) == 2 else jax.P()
  return jax.NamedSharding(several.mesh(data=devices), spec)


def like(devices=1):
  one = state(0)
  return checkpoint.abstract(one, jax.tree.map(lambda x: where(x, devices), one))


class CheckpointTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'steps'

  def write(self, *steps, devices=1):
    with checkpoint.open_checkpoints(self.path) as saved:
      for step in steps:
        checkpoint.save(saved, step, state(step, devices))

  def read(self, devices=1):
    """-> step, state, what was said"""
    said = []
    with checkpoint.open_checkpoints(self.path) as saved:
      step, found = checkpoint.restore(saved, like(devices), said.append)
    return step, found, '\n'.join(said)

  def arrays(self, step):
    """The files of a step that hold the arrays' bytes, the largest first."""
    files = [p for p in (self.path / str(step)).rglob('*') if p.is_file() and 'd' in p.parts]
    return sorted(files, key=lambda p: -p.stat().st_size) or sorted(
        (p for p in (self.path / str(step)).rglob('*') if p.is_file()),
        key=lambda p: -p.stat().st_size)

  def expect_fall_back(self, what):
    step, found, said = self.read()
    self.assertEqual(step, 4, what)
    self.assertIn('checkpoint 8 cannot be read', said, what)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state(4)))

  def test_every_mesh_reads_what_another_wrote(self):
    self.write(8, devices=8)
    for devices in (1, 2, 4):
      step, found, said = self.read(devices)
      self.assertEqual((step, said), (8, ''))
      self.assertEqual(len(found['train']['w'].sharding.device_set), devices)
      jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state(8)))

  def test_truncated_missing_and_flipped_files_fall_back(self):
    self.write(4, 8)
    whole = self.path.with_name('whole')
    shutil.copytree(self.path, whole)
    rng = random.Random(0)

    def cut(f):
      f.write_bytes(f.read_bytes()[:f.stat().st_size // 2])

    def flip(f):
      data = bytearray(f.read_bytes())
      data[rng.randrange(len(data) // 4, 3 * len(data) // 4)] ^= 1 << rng.randrange(8)
      f.write_bytes(bytes(data))
    for damage in (cut, pathlib.Path.unlink, flip, flip, flip):
      shutil.rmtree(self.path)
      shutil.copytree(whole, self.path)
      damage(self.arrays(8)[0])
      self.expect_fall_back(damage.__name__)

  def test_a_damaged_description_does_not_hide_the_other_steps(self):
    self.write(4, 8)
    about = self.path / '8' / '_CHECKPOINT_METADATA'
    about.write_text(about.read_text().replace('commit_timestamp_nsecs', 'commit_timestamp_ncecs'))
    self.expect_fall_back('description')
    self.assertTrue((self.path / '8.damaged').is_dir())
    self.write(12)
    self.assertEqual(self.read()[0], 12)

  def test_an_array_that_decodes_to_something_else_is_named(self):
    self.write(4)
    with checkpoint.open_checkpoints(self.path) as saved:
      one = state(8)
      wrong = checkpoint.array_sums(one) | {'train/w': 1}
      saved.save_async(8, one, force=True, custom_metadata={'sums': wrong})
    _, _, said = self.read()
    self.assertIn('array train/w is not as it was saved', said)
    self.expect_fall_back('sum')

  def test_checkpoints_from_before_there_were_sums_are_read(self):
    with checkpoint.open_checkpoints(self.path) as saved:
      saved.save_async(8, state(8), force=True)
    self.assertEqual(self.read()[::2], (8, ''))

  def test_where_none_is_whole_the_run_stops(self):
    self.write(8)
    self.arrays(8)[0].unlink()
    with self.assertRaisesRegex(errors.WorkdirError, 'delete that folder'):
      self.read()

  def test_sums_see_every_bit_and_every_place_on_any_mesh(self):
    one = state(1)
    sums = checkpoint.array_sums(one)
    self.assertEqual(sums, checkpoint.array_sums(state(1, devices=8)))
    w = np.array(one['train']['w'])
    for bit in (0, 13, 31):
      changed = w.copy()
      changed.view(np.uint32)[5, 7] ^= np.uint32(1) << np.uint32(bit)
      self.assertNotEqual(checkpoint.array_sums({'w': changed}), checkpoint.array_sums({'w': w}))
    for swapped in (w[::-1], w[:, ::-1]):
      self.assertNotEqual(checkpoint.array_sums({'w': np.ascontiguousarray(swapped)}),
                          checkpoint.array_sums({'w': w}))

  @long
  def test_killed_while_writing_the_step_before_is_there(self):
    code = textwrap.dedent('''
        import itertools, pathlib, sys
        from recjax.training import checkpoint
        from tests.training import checkpoint_test as here
        with checkpoint.open_checkpoints(pathlib.Path(sys.argv[1])) as saved:
          for step in itertools.count(1):
            checkpoint.save(saved, step, here.state(step))
            print(step, flush=True)
    ''')
    process = subprocess.Popen([sys.executable, '-c', code, str(self.path)], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
      if int(line) >= 6:
        break
    time.sleep(0.01)
    process.kill()
    process.communicate()
    step, found, _ = self.read()
    self.assertGreaterEqual(step, 4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state(step)))


if __name__ == '__main__':
  absltest.main()
