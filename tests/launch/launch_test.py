"""The launch scripts say what they would do, and several processes do what one does."""
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import yaml
from absl.testing import absltest

from tests.long import long

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
FLAGS = ['--config=configs/x.py:paper', '--workdir=/share/a run', '--config.a="q" $HOME']


def dry(script, *words, **env):
  done = subprocess.run([LAUNCH / script, '--dry-run', *words], capture_output=True, text=True,
                        env={**os.environ, **env}, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  return done.stdout


def local():
  spec = importlib.util.spec_from_file_location('local', LAUNCH / 'local.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class DryRunTest(absltest.TestCase):

  def test_a_pod_slice_is_made_filled_used_and_deleted(self):
    env = dict(NAME='pod', ZONE='z', TYPE='v6e-16', SHARE='host:/vol', SPOT='1')
    made = {verb: dry('tpu_vm.sh', verb, *(FLAGS if verb == 'run' else ()), **env)
            for verb in ('create', 'setup', 'run', 'delete')}
    for verb, text in made.items():
      self.assertIn('gcloud compute tpus tpu-vm', text, verb)
      self.assertIn('--zone=z', text)
    self.assertIn('--accelerator-type=v6e-16', made['create'])
    self.assertIn('--spot', made['create'])
    self.assertIn('mount', made['setup'])
    # What the hosts' shells will read gives back the very flags.
    command, = (w for w in shlex.split(made['run']) if w.startswith('--command='))
    self.assertIn('--worker=all', made['run'])
    self.assertEqual(shlex.split(command)[-len(FLAGS):], FLAGS)
    self.assertIn('--multihost', command)

  def test_the_job_set_is_whole_yaml_with_the_flags_as_given(self):
    found = yaml.safe_load(dry('gke.sh', 'run', *FLAGS, IMAGE='r/x:1', HOSTS='8', NAME='run-7'))
    job, = found['spec']['replicatedJobs']
    spec = job['template']['spec']
    self.assertEqual((found['metadata']['name'], spec['completions'], spec['parallelism']),
                     ('run-7', 8, 8))
    pod, = spec['template']['spec']['containers']
    self.assertEqual((pod['image'], pod['args']), ('r/x:1', FLAGS))
    self.assertIn('exec python -m recjax.main --multihost', pod['command'][2])
    self.assertGreaterEqual(spec['template']['spec']['terminationGracePeriodSeconds'], 60)
    self.assertIn('run-7', dry('gke.sh', 'delete', NAME='run-7'))

  def test_slurm_starts_a_process_on_each_node_or_each_gpu(self):
    words = shlex.split(dry('slurm.sbatch', *FLAGS))
    self.assertEqual(words[0], 'srun')
    self.assertEqual(words[-len(FLAGS):], FLAGS)
    self.assertIn('--multihost', words)
    self.assertIn('--gpus-per-task=1', dry('slurm.sbatch', *FLAGS, TASKS='gpu'))
    text = (LAUNCH / 'slurm.sbatch').read_text()
    for needed in ('--signal=TERM@120', '--requeue'):
      self.assertIn(f'#SBATCH {needed}', text)

  def test_one_gpu_box_needs_no_coordinator(self):
    words = shlex.split(dry('gpu.sh', *FLAGS))
    self.assertEqual(words[-len(FLAGS):], FLAGS)
    self.assertNotIn('--multihost', words)

  def test_without_words_each_script_says_how_it_is_used(self):
    for script in ('tpu_vm.sh', 'gke.sh', 'gpu.sh', 'slurm.sbatch'):
      done = subprocess.run([LAUNCH / script], capture_output=True, text=True)
      self.assertEqual(done.returncode, 2, script)
      self.assertIn(f'launch/{script}', done.stdout)

  def test_local_gives_every_process_its_number_and_one_address(self):
    done = subprocess.run([sys.executable, LAUNCH / 'local.py', '--processes=3', '--devices=2',
                           '--dry-run', '--', *FLAGS], capture_output=True, text=True, check=True)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    self.assertLen(lines, 3)
    for i, words in enumerate(lines):
      self.assertIn(f'--process_id={i}', words)
      self.assertIn('JAX_NUM_CPU_DEVICES=2', words)
      self.assertEqual(words[-len(FLAGS):], FLAGS)
    self.assertLen({w for words in lines for w in words if w.startswith('--coordinator')}, 1)

  def test_shellcheck_finds_nothing(self):
    here = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ['PATH']])
    shellcheck = shutil.which('shellcheck', path=here)
    if not shellcheck:
      self.skipTest('shellcheck is not installed')
    done = subprocess.run([shellcheck, *LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch'],
                          capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stdout)


class GpuBoxTest(absltest.TestCase):

  def box(self, code):
    """Starts gpu.sh with a `python` of our own. -> process, the file that counts its starts"""
    room = pathlib.Path(self.create_tempdir().full_path)
    (room / 'python').write_text('#!/usr/bin/env bash\n' + code.replace('ROOM', str(room)))
    (room / 'python').chmod(0o755)
    return subprocess.Popen([LAUNCH / 'gpu.sh', '--config=x'], stderr=subprocess.DEVNULL,
                            env={**os.environ, 'PATH': f'{room}:{os.environ["PATH"]}'}), room

  def test_a_hung_run_is_started_again_and_a_failed_one_is_not(self):
    process, room = self.box('echo x >>ROOM/starts; [ $(wc -l <ROOM/starts) -ge 3 ] || exit 75\n')
    self.assertEqual(process.wait(120), 0)
    self.assertLen((room / 'starts').read_text().split(), 3)
    process, room = self.box('echo x >>ROOM/starts; exit 2\n')
    self.assertEqual(process.wait(120), 2)
    self.assertLen((room / 'starts').read_text().split(), 1)

  def test_sigterm_reaches_the_run_and_its_code_comes_back(self):
    process, room = self.box(
        'trap "sleep 0.3; touch ROOM/saved; exit 143" TERM; touch ROOM/up\n'
        'for i in $(seq 200); do sleep 0.1; done\n')
    while not (room / 'up').exists():
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    self.assertEqual(process.wait(120), 143)
    self.assertTrue((room / 'saved').exists())


class LocalTest(absltest.TestCase):

  def test_one_that_fails_ends_the_others(self):
    code = 'import sys, time; {} == 1 and sys.exit(3); time.sleep(60)'
    jobs = [subprocess.Popen([sys.executable, '-c', code.format(i)]) for i in range(3)]
    start = time.monotonic()
    self.assertEqual(local().supervise(jobs), 3)
    self.assertLess(time.monotonic() - start, 50)  # before they end by themselves
    self.assertTrue(all(j.poll() is not None for j in jobs))

  def data(self, room):
    """Users who walk round a ring of items."""
    folder = room / 'data'
    folder.mkdir()
    rng = np.random.default_rng(0)
    with open(folder / 'items.jsonl', 'w') as f:
      f.writelines(json.dumps({'item_id': f'i{i}', 'title': f'thing {i}'}) + '\n'
                   for i in range(30))
    with open(folder / 'sequences.jsonl', 'w') as f:
      for user, start in enumerate(rng.integers(0, 30, 60)):
        walk = [f'i{(start + j) % 30}' for j in range(int(rng.integers(5, 10)))]
        f.write(json.dumps({'user_id': f'u{user}', 'items': walk}) + '\n')
    return folder

  def start(self, processes, data, workdir, epochs):
    flags = [f'--config=configs/sequential_scientific.py:data={data}', f'--workdir={workdir}',
             f'--config.train.epochs={epochs}', '--config.train.batch=16', '--config.model.width=8',
             '--config.model.hidden=8', '--config.model.layers=1', '--config.model.max_history=8',
             '--config.train.save_every=1000', '--config.train.patience=1000']
    env = {**os.environ, 'JAX_NUM_CPU_DEVICES': '1', 'JAX_PLATFORMS': 'cpu'}
    with open(f'{workdir}.log', 'a') as log:
      return subprocess.Popen([sys.executable, LAUNCH / 'local.py', f'--processes={processes}',
                               '--', *flags], env=env, cwd=ROOT, stderr=log, stdout=log)

  @long
  def test_two_processes_stopped_and_gone_on_with_by_one_end_as_one_alone(self):
    room = pathlib.Path(self.create_tempdir().full_path)
    data = self.data(room)
    many = self.start(2, data, room / 'many', 40)
    log = room / 'many' / 'metrics.jsonl'
    while many.poll() is None and not (log.exists() and log.read_text().count('\n') >= 3):
      time.sleep(0.05)
    many.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    self.assertEqual(many.wait(120), 143, (room / 'many.log').read_text())
    self.assertLess(time.monotonic() - asked, 30)
    said = (room / 'many.log').read_text()
    self.assertRegex(said, r'SIGTERM: saving epoch \d+')
    self.assertEqual(said.count('[1] train'), 1)  # process 1 is silent
    self.assertEqual(self.start(1, data, room / 'many', 40).wait(240), 0)
    epoch = re.search(r'saving epoch (\d+)', said)[1]
    self.assertIn(f'going on from epoch {epoch}', (room / 'many.log').read_text())
    self.assertEqual(self.start(1, data, room / 'one', 40).wait(240), 0)
    losses = [[json.loads(line)['loss_0'] for line in
               (room / n / 'metrics.jsonl').read_text().splitlines()] for n in ('one', 'many')]
    self.assertLen(losses[0], 40)
    np.testing.assert_allclose(*losses, rtol=1e-5)  # sums in another order
    self.assertLess(losses[0][-1], 0.7 * losses[0][0])


if __name__ == '__main__':
  absltest.main()
