"""kill -9 inside checkpoint writes, and damage to finished ones: is the newest whole step restored?

  python -m benchmarks.checkpoint_faults [--kills=50] [--damages=50] [--mib=32]

A child process saves states of `--mib` MiB one after another; it is killed at a moment drawn in
a write, and the step that is then restored must be one that was whole, bit for bit: the last that
was said to be finished, or the one that was being written, if it came to its end. Then finished
steps are cut, flipped in one bit, or robbed of a file; each must be named and passed over.
"""
import argparse
import collections
import itertools
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from recjax.training import checkpoint


def state(step, mib):
  """Random arrays that depend on the step alone."""
  rng = np.random.default_rng(step)
  size = mib << 16
  return {f'part_{i}': jax.device_put(rng.random((4, size // 4), np.float32)) for i in range(4)}


def child(path, first, mib):
  """Saves steps one after another and says when each begins and when it is finished."""
  with checkpoint.open_checkpoints(path) as saved:
    for step in itertools.count(first):
      one = state(step, mib)
      print('begin', step, flush=True)
      checkpoint.save(saved, step, one)
      saved.wait()
      print('whole', step, flush=True)


def restored(path, mib):
  """-> (step, whether its bits are those that were saved, what was said)"""
  said = []
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                      state(0, mib))
  with checkpoint.open_checkpoints(path) as saved:
    step, found = checkpoint.restore(saved, like, said.append)
  same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), found,
                      state(step, mib))
  return step, all(jax.tree.leaves(same)), ' '.join(said)


def kill_once(path, mib, share, typical):
  """Starts a child, kills it at `share` of its third write. -> (last whole step, begun step)"""
  first = max([int(p.name) for p in path.iterdir() if p.name.isdigit()], default=0) + 1
  process = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.checkpoint_faults', f'--child={path}', f'--first={first}',
       f'--mib={mib}'], stdout=subprocess.PIPE, text=True)
  whole, begun, started, took = first - 1, first, 0.0, []
  for line in process.stdout:
    word, step = line.split()
    if word == 'whole':
      whole = int(step)
      took.append(time.monotonic() - started)
      continue
    begun, started = int(step), time.monotonic()
    if begun == first + 2:
      time.sleep(share * (took[-1] if took else typical))
      process.kill()
      break
  rest = process.stdout.read().split('\n')
  process.wait()
  whole = max([whole, *(int(r.split()[1]) for r in rest if r.startswith('whole'))])
  return whole, begun


def damage(folder, kind, rng):
  """Cuts, flips one bit of, or removes one of the larger files of a step. -> the file's name"""
  files = sorted((p for p in folder.rglob('*') if p.is_file()), key=lambda p: -p.stat().st_size)
  one = rng.choice(files[:max(1, len(files) // 2)])
  data = bytearray(one.read_bytes())
  if kind == 'missing':
    one.unlink()
  elif kind == 'cut':
    one.write_bytes(bytes(data[:rng.randrange(len(data))]))
  else:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    one.write_bytes(bytes(data))
  return one.name


def main():
  """Runs both parts and prints how many went right. -> exit code"""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--damages', type=int, default=50)
  parser.add_argument('--mib', type=int, default=32)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--child', help=argparse.SUPPRESS)
  parser.add_argument('--first', type=int, default=1, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    child(pathlib.Path(args.child), args.first, args.mib)
  rng, room = random.Random(args.seed), pathlib.Path(tempfile.mkdtemp())
  path, right, inside = room / 'steps', 0, 0
  path.mkdir()
  for kill in range(args.kills):
    whole, begun = kill_once(path, args.mib, (kill + rng.random()) / args.kills, 0.5)
    step, same, said = restored(path, args.mib)
    inside += step < begun
    good = same and whole <= step <= begun and not said
    right += good
    if not good:
      print(f'kill {kill}: whole {whole}, begun {begun}, restored {step}, same {same}: {said}')
  print(f'{right} of {args.kills} kills restored the newest finished step, bit for bit; {inside} '
        'fell inside the write', flush=True)
  tally = collections.Counter()
  for number in range(args.damages):
    shutil.rmtree(path, ignore_errors=True)
    with checkpoint.open_checkpoints(path) as saved:
      for step in (1, 2):
        checkpoint.save(saved, step, state(step, 1))
    kind = ('cut', 'flipped', 'missing')[number % 3]
    name = damage(path / '2', kind, rng)
    step, same, said = restored(path, 1)
    fell = step == 1 and same and 'checkpoint 2' in said
    harmless = step == 2 and same  # what was hit is not needed to read the arrays
    tally[kind, 'named and passed over' if fell else 'harmless' if harmless else 'WRONG'] += 1
    if not fell and not harmless:
      print(f'damage {number}: {kind} {name}: restored {step}, same {same}: {said}')
  for (kind, what), count in sorted(tally.items()):
    print(f'{kind}: {count} {what}')
  shutil.rmtree(room)
  sys.exit(right < args.kills or any(what == 'WRONG' for _, what in tally))


if __name__ == '__main__':
  main()
