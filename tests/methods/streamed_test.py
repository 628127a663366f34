"""Training on users that stay on disk: the same losses, any number of processes, the whole run."""
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from recjax import recommend, run_files
from recjax.data import array_record, loading, splits
from recjax.errors import ConfigError, DataError
from recjax.methods import sequential
from recjax.methods.sequential import on_disk
from recjax.methods.sequential import train as stages
from recjax.models import seqrec
from recjax.training import sequential as train
from recjax.training import sequential_on_disk
from recjax.training import workdir as workdir_lib
from tests import told
from tests.long import long, long_but
from tests.methods.sequential_test import config, dataset, mesh, ring

MISSING = [m for m in ('tensorflow_datasets', 'grain', 'array_record')
           if importlib.util.find_spec(m) is None]
FACTS = {'command': 'x', 'devices': '1', 'revision': 'r', 'versions': {}, 'overrides': {}}

# Some steps in one or more processes: the batches are shared by row of a global array.
WORKER = '''
import json, sys
import jax, numpy as np
from recjax.data import array_record
from recjax.training import loop, sequential, sequential_on_disk
from recjax.models import seqrec
from tests.methods.sequential_test import config
number, count, port, path, start, steps, old, out = sys.argv[1:]
number, count, start, steps = map(int, (number, count, start, steps))
if count > 1:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'127.0.0.1:{port}', count, number)
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 1, 1), ('data', 'fsdp', 'model'),
                         axis_types=(jax.sharding.AxisType.Auto,) * 3)
cfg, shop = config(), array_record.load(path)
model = sequential.model_config(cfg, len(shop.catalog))
part = sequential_on_disk.batches(cfg, shop, model.max_history, 2)
loss = sequential_on_disk.objective(cfg, model, (64, 768), mesh)
with jax.set_mesh(mesh):
  params = jax.jit(lambda: seqrec.init(model, jax.random.key(0)))()
  if start:
    params = jax.tree.map(lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P())),
                          sequential.load(old))
  step = jax.jit(lambda p, b, k: jax.tree.map(lambda x, g: x - 0.1 * g, p, jax.grad(
      lambda p: loss(p, (), b, k)[0])(p)), out_shardings=jax.NamedSharding(mesh, jax.P()))
  for i in range(start, start + steps):
    params = step(params, loop.place(part[i], mesh, True), jax.random.fold_in(jax.random.key(1), i))
with open(f'{out}.{number}.json', 'w') as f:  # which users this process has read
  json.dump([part.rows_of(i) for i in range(start, start + steps)], f)
if number == 0:
  sequential.save(out, params)
'''


def stored(shop, room):
  """A data set as records. -> their folder"""
  loading.save_data(shop, room / 'shop')
  return array_record.write(room / 'shop', room / 'tfds')


@absltest.skipIf(MISSING, f'{", ".join(MISSING)} missing; pip install "recjax[data]"')
class StreamedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.room = pathlib.Path(tempfile.mkdtemp())

  def run_on(self, cfg, folder):
    with workdir_lib.open_work(folder, {'config': cfg.to_dict(), 'facts': FACTS}, mesh()) as work:
      sequential.run(cfg, work)
    return run_files.read_json(folder / 'results.json')

  def train_on(self, cfg, folder):
    shop = array_record.load(cfg.data)
    few, _ = on_disk.sample(shop)
    with workdir_lib.open_work(folder, {}, mesh()) as work:
      work.stage('train', on_disk.stage, stages.settings(cfg), shop, few)

  @long
  def test_from_records_to_report_and_recommendations(self):
    cfg, folder = config(), self.room / 'run'
    cfg.optim.lr = 1e-2
    cfg.train.update(epochs=6, patience=8, valid_users=300)
    shop = ring(800)
    cfg.data = str(stored(shop, self.room))
    with mock.patch.object(on_disk, 'MAX_USERS', 400):
      results = self.run_on(cfg, folder)
    self.assertIn('400 users drawn of 800', results['protocol'])
    self.assertEqual(told.check(results)[0], 400)
    self.assertEqual(results['data_fingerprint'], shop.fingerprint)
    self.assertGreater(results['rows']['sasrec']['HR@1']['value'], 0.6)
    self.assertIn('waited for data', (folder / 'report.html').read_text())
    waits = [r['data_wait'] for r in map(dict, self.rows(folder)) if 'data_wait' in r]
    self.assertTrue(waits and all(0 <= w <= 1 for w in waits))
    ask, known = recommend.load(folder)
    self.assertEqual(ask([['i3', 'i4', 'i5']], 1)[0], [['i6']])
    with self.assertRaisesRegex(DataError, '--history'):
      recommend.history_of(known, 'u0')
    about = pathlib.Path(cfg.data) / 'records.json'
    about.write_text(about.read_text().replace(shop.fingerprint, 'other'))
    with self.assertRaisesRegex(DataError, 'has changed since'):
      recommend.load(folder)

  def rows(self, folder):
    with workdir_lib.open_work(folder) as work:
      return work.metrics()

  @parameterized.parameters('sasrec', 'hstu')
  @long
  def test_a_run_that_was_killed_ends_where_an_uninterrupted_one_does(self, kind):
    cfg = config(model=kind)
    cfg.train.update(epochs=2, batch=64)
    cfg.data = str(stored(ring(300), self.room))
    self.train_on(cfg, self.room / 'whole')
    inner = array_record.Batches.__getitem__

    def dying(batches, step):
      if step == 7 and batches.size == 64:
        raise KeyboardInterrupt
      return inner(batches, step)

    with (
      mock.patch.object(sequential_on_disk, 'SAVE_EVERY', 3),
      mock.patch.object(sequential_on_disk, 'SAMPLE', 4),
      mock.patch.object(array_record.Batches, '__getitem__', dying),
      self.assertRaises(KeyboardInterrupt),
    ):
      self.train_on(cfg, self.room / 'killed')
    with mock.patch.object(sequential_on_disk, 'SAMPLE', 4):
      self.train_on(cfg, self.room / 'killed')
    one, other = (next((self.room / n / 'stages').glob('*train/model.npz')).read_bytes()
                  for n in ('whole', 'killed'))
    self.assertIn('going on from step 6', (self.room / 'killed' / 'run.log').read_text())
    self.assertEqual(one, other)

  @parameterized.parameters('sasrec', 'bert4rec', 'hstu')
  @long_but(0, 2)
  def test_a_batch_that_does_not_fit_has_the_same_loss(self, kind):
    cfg = config(model=kind)
    cfg.model.dropout = 0.0
    cfg.loss.kind = 'ce'  # negatives are drawn by place
    model = train.model_config(cfg, 50)
    params = seqrec.init(model, jax.random.key(0))
    rng = np.random.default_rng(0)
    examples = [{'items': rng.integers(1, 51, n).astype(np.int32),
                 'times': np.cumsum(rng.integers(0, 10 ** 5, n))} for n in rng.integers(0, 20, 64)]
    batch = sequential_on_disk.rows_of(examples, 12, 2, int(kind == 'hstu'))
    values = [float(jax.jit(sequential_on_disk.objective(cfg, model, room, mesh()))(
        params, (), batch, jax.random.key(1))[0]) for room in ((64, 768), (56, 768), (8, 64))]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)
    self.assertGreater(values[0], 1)

  def test_held_out_items_are_not_read_and_short_users_are_whole(self):
    rows = [np.arange(1, n + 1, dtype=np.int32) for n in (0, 1, 2, 3, 5, 9)]
    got = sequential_on_disk.rows_of([{'items': r} for r in rows], 3, 2)['seqs']
    self.assertEqual(got.tolist(), [[0] * 4, [0, 0, 0, 1], [0, 0, 1, 2], [0, 0, 0, 1], [0, 1, 2, 3],
                                    [4, 5, 6, 7]])
    data = dataset([r for r in rows if len(r)], 9).interactions
    examples = [{'items': data.history(u), 'times': data.times[slice(*data.offsets[u:u + 2])]}
                for u in range(len(data))]
    timed = sequential_on_disk.rows_of(examples, 3, 2, 1)['seqs']
    in_memory = train.sequences(splits.leave_one_out(data).train, 3, True)
    np.testing.assert_array_equal(timed, in_memory[:-1])

  @long
  def test_two_processes_and_a_change_of_their_number_learn_what_one_does(self):
    path = stored(ring(300), self.room)

    def run(count, start, steps, old, out):
      with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
      jobs = [subprocess.Popen(
          [sys.executable, '-c', WORKER, *map(str, (n, count, port, path, start, steps, old, out))],
          env=self.one_device(), stderr=subprocess.PIPE, text=True) for n in range(count)]
      for job in jobs:
        said = job.communicate(timeout=300)[1]
        self.assertEqual(job.returncode, 0, said)
      read = [json.loads(pathlib.Path(f'{out}.{n}.json').read_text()) for n in range(count)]
      return train.load(out), [sum(rows, []) for rows in zip(*read)]  # of each step
    one, users = run(1, 0, 4, '', self.room / 'one.npz')
    parts = [run(2, 0, 2, '', self.room / 'a.npz'),
             run(1, 2, 1, self.room / 'a.npz', self.room / 'b.npz'),
             run(2, 3, 1, self.room / 'b.npz', self.room / 'c.npz')]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, parts[-1][0])
    self.assertEqual(sum((steps for _, steps in parts), []), users)
    self.assertLen(set(sum(users, [])), 4 * 64)  # of 300 nobody is read twice
    fresh = seqrec.init(train.model_config(config(), 50), jax.random.key(0))
    self.assertGreater(float(jnp.abs(one['items'] - fresh['items']).max()), 1e-4)

  def one_device(self):
    root = str(pathlib.Path(__file__).parents[2])
    return {**os.environ, 'JAX_NUM_CPU_DEVICES': '1', 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': root}

  def test_what_cannot_be_is_said_before_anything_runs(self):
    path = stored(ring(30), self.room)
    with self.assertRaisesRegex(DataError, 'holds records, which the sequential'):
      loading.load_data(path)
    for change, why in ((dict(seeds=2), 'seeds=2'),
                        (dict(eval={'tie_order': 'shuffle(1)'}), 'tie_order'),
                        (dict(eval={'drop_cold_targets': True}), 'drop_cold')):
      cfg = config()
      cfg.data = str(path)
      cfg.update(change)
      with self.assertRaisesRegex(ConfigError, why):
        self.run_on(cfg, self.room / 'run')
    cfg = config()
    with (mock.patch.object(jax, 'process_count', lambda: 3),
          self.assertRaisesRegex(ConfigError, 'batch=64 does not divide over 3')):
      sequential_on_disk.batches(cfg, array_record.load(path), 12, 2)


if __name__ == '__main__':
  absltest.main()
