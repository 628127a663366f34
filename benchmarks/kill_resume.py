"""kill -9 at random moments of a run, restarting each time: are the final files byte-equal?

  python -m benchmarks.kill_resume --kills=10 [--config=configs/betag_scientific.py] [-- FLAGS ...]

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

TOP = ('results.json', 'ranks.parquet', 'predictions.parquet')


def files(workdir):
  """{relative path: bytes} of what a run made."""
  found = {p.relative_to(workdir).as_posix(): p.read_bytes()
           for p in sorted((workdir / 'stages').rglob('*'))
           if p.is_file() and p.name != 'DONE.json'}
  return {**found, **{name: (workdir / name).read_bytes() for name in TOP}}


def start(args, workdir):
  """One attempt at the experiment, in a process of its own."""
  command = [sys.executable, '-m', 'recjax.main', f'--config={args.config}', f'--workdir={workdir}',
             *args.flags]
  log = open(workdir.parent / f'{workdir.name}.log', 'a')  # noqa: SIM115  lives with the process
  return subprocess.Popen(command, stdout=log, stderr=log)


def seconds_of(workdir):
  """What the stages of a run took together."""
  return sum(json.loads(p.read_text())['seconds'] for p in workdir.glob('stages/*/DONE.json'))


def stage_of(workdir):
  """What was going on: the stage with a partial folder."""
  running = sorted((workdir / 'stages').glob('*.partial'))
  return running[-1].name.removesuffix('.partial') if running else 'between stages'


def main():
  """Runs, kills, restarts, compares."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--config', default='configs/betag_scientific.py')
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--startup', type=float, default=8, help='seconds before a run does anything')
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
  rng = random.Random(args.seed)
  shutil.rmtree(fired, ignore_errors=True)
  for kill in range(args.kills):
    # Kills share what is left to do, so that they fall into every stage.
    left = max(whole - seconds_of(fired), args.startup)
    wait = args.startup + rng.uniform(0.0, 2.0) * left / (args.kills - kill)
    process = start(args, fired)
    try:
      process.wait(wait)
      print(f'attempt {kill + 1}: over before its kill at {wait:.0f} s')
      break
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
      print(f'attempt {kill + 1}: killed after {wait:.1f} s in {stage_of(fired)}', flush=True)
  if start(args, fired).wait():
    sys.exit(f'the restarted run failed; see {fired}.log')
  want, got = files(straight), files(fired)
  differing = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
  print(f'{len(want)} files compared, {len(differing)} differ', *differing, sep='\n  ')
  sys.exit(bool(differing))


if __name__ == '__main__':
  main()
