"""kill -9 at random moments of a run, restarting each time: are the final files byte-equal?

  python -m benchmarks.kill_resume --kills=10 [--config=configs/betag_scientific.py] [-- FLAGS ...]
  python -m benchmarks.kill_resume --kills=25 --case=etegrec     # the small models of mesh_parity
  python -m benchmarks.kill_resume --kills=8 --case=etegrec --stage=tokenizer

Runs the experiment once without interruption, then again under fire, and compares every file that
holds results: everything below stages/ but DONE.json (it holds seconds), results.json, ranks and
predictions. Exit code 1 where any differs.
"""
import argparse
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks import mesh_parity

SHOP = 'data=sample:1:400'
# What makes the small models of mesh_parity.CASES train for 200 steps or more, and save often.
TINY, TUNE = ('tiny.save_every=10',), ('optim.save_every=10',)
IDS = ('train.save_every=1', 'train.patience=100')
TITLES = (*TINY, *TUNE, 'train.sample=-1', 'train.epochs=3')
RECLM = (*TINY, *TUNE, 'train.sample=0', 'train.epochs=2')
CODES = (*IDS, 'vectors.train.save_every=1', 'train.epochs=8', 'semantic_ids.size=32',
         'semantic_ids.steps=2000', 'semantic_ids.eval_every=20', 'semantic_ids.save_every=20')
LONGER = {
    'sasrec': (*IDS, 'train.epochs=25'), 'gru4rec': (*IDS, 'train.epochs=25'),
    'bert4rec': (*IDS, 'train.epochs=25'), 'hstu': (*IDS, 'train.epochs=25'),
    'betag': (*TINY, *TUNE, 'train.epochs=3'),
    'bigrec': TITLES, 'd3': TITLES,
    'reclm cgen': RECLM, 'reclm ret': RECLM, 'reclm token': RECLM,
    'llmemb': (*TINY, *IDS, 'train.epochs=40', 'scft.steps=200', 'scft.optim.save_every=20'),
    'etegrec': (*CODES, 'id_optim.lr=1e-6'), 'tiger': CODES}

TOP = ('results.json', 'ranks.parquet', 'predictions.parquet')


def files(workdir):
  """{relative path: bytes} of what a run made."""
  found = {p.relative_to(workdir).as_posix(): p.read_bytes()
           for p in sorted((workdir / 'stages').rglob('*'))
           if p.is_file() and p.name != 'DONE.json'}
  return {**found, **{name: (workdir / name).read_bytes() for name in TOP}}


def start(args, workdir):
  """One attempt at the experiment, in a process of its own."""
  config, flags = args.config, ()
  if args.case:
    name, words, small = mesh_parity.CASES[args.case]
    config = f'configs/{name}.py:{",".join(filter(None, (words, SHOP)))}'
    settings = {flag.partition('=')[0]: flag for flag in (*small, *LONGER[args.case])}
    flags = [f'--config.{flag}' for flag in settings.values()]  # a longer one takes the place
  command = [sys.executable, '-m', 'recjax.main', f'--config={config}', f'--workdir={workdir}',
             *flags, *args.flags]
  log = open(workdir.parent / f'{workdir.name}.log', 'a')  # noqa: SIM115  lives with the process
  return subprocess.Popen(command, stdout=log, stderr=log)


def seconds_of(workdir, stage=''):
  """What the stages of a run took together, or one of them."""
  return sum(json.loads(p.read_text())['seconds']
             for p in workdir.glob(f'stages/*{stage and "-" + stage}/DONE.json'))


def begun(process, workdir, count, stage=''):
  """Waits until a run has begun its `count`-th stage of all attempts; start-up is not at issue.

  stage: that stage is waited for too.
  """
  log = workdir / 'run.log'
  while process.poll() is None and not (
      log.exists() and stages_begun(log) >= count and (not stage or stage_of(workdir) == stage)):
    time.sleep(0.05)


def stages_begun(log):
  """How often the log of all attempts says that a stage begins, not that it was done before."""
  return sum('  [' in line and 'done before' not in line for line in log.read_text().splitlines())


def stage_of(workdir):
  """What was going on: the stage with a partial folder."""
  running = sorted((workdir / 'stages').glob('*.partial'))
  name = running[-1].name.removesuffix('.partial') if running else 'between stages'
  return name.partition('-')[2] or name


def main():
  """Runs, kills, restarts, compares."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--config', default='configs/betag_scientific.py')
  parser.add_argument('--case', default='', choices=['', *LONGER], help='instead of --config')
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--stage', default='', help='kill within this stage alone')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--restart', type=float, default=4,
                      help='seconds that a restarted stage needs to come to new work')
  parser.add_argument('--room', default='', help='keep the two runs here')
  parser.add_argument('flags', nargs='*', help='flags for the experiment, after --')
  args = parser.parse_args()
  room = pathlib.Path(args.room or tempfile.mkdtemp())
  room.mkdir(parents=True, exist_ok=True)
  straight, fired = room / 'straight', room / 'fired'
  began = time.monotonic()
  if start(args, straight).wait():
    sys.exit(f'the uninterrupted run failed; see {straight}.log')
  whole = max(time.monotonic() - began, seconds_of(straight))  # it may stand there already
  print(f'uninterrupted: {whole:.0f} s', flush=True)
  if args.stage:
    whole = seconds_of(straight, args.stage)
    if not whole:
      sys.exit(f'the run has no stage {args.stage}')
  rng = random.Random(args.seed)
  shutil.rmtree(fired, ignore_errors=True)
  for kill in range(args.kills):
    # Kills share what is left to do, so that they fall into every stage.
    left = max(whole - seconds_of(fired, args.stage), args.restart)
    wait = rng.uniform(0.0, 2.0) * (args.restart + left / (args.kills - kill))
    log = fired / 'run.log'
    before = stages_begun(log) if log.exists() else 0
    process = start(args, fired)
    begun(process, fired, before + 1, args.stage)
    try:
      process.wait(wait)
      print(f'attempt {kill + 1}: over before its kill, {wait:.1f} s after its first stage began')
      break
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
      print(f'attempt {kill + 1}: killed {wait:.1f} s after its first stage began, in '
            f'{stage_of(fired)}', flush=True)
  if start(args, fired).wait():
    sys.exit(f'the restarted run failed; see {fired}.log')
  want, got = files(straight), files(fired)
  differing = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
  print(f'{len(want)} files compared, {len(differing)} differ', *differing, sep='\n  ')
  sys.exit(bool(differing))


if __name__ == '__main__':
  main()
