"""Starts several processes of one experiment on this machine, as a pod would on its hosts.

  python launch/local.py --processes=2 [--devices=4] [--dry-run] -- --config=configs/x.py ...

What follows `--` goes to `python -m recjax.main`. On CPU every process gets `--devices` virtual
devices; on GPUs, give each its own cards by CUDA_VISIBLE_DEVICES and use `--platform=cuda`.
Where one process fails the others are ended, and the exit code is that of the first that failed.
"""
import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time


def free_port():
  """A TCP port that nobody listens on."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def commands(args, port):
  """One command and its own environment for each process. -> [(argv, {name: value})]"""
  own = {'JAX_PLATFORMS': args.platform}
  if args.platform == 'cpu':
    own['JAX_NUM_CPU_DEVICES'] = str(args.devices)
  return [([sys.executable, '-m', 'recjax.main', '--multihost', f'--coordinator=localhost:{port}',
            f'--processes={args.processes}', f'--process_id={i}', *args.flags], own)
          for i in range(args.processes)]


def supervise(processes, poll=0.1, grace=20.0):
  """Waits for all; where one fails, ends the others. -> exit code"""
  code = 0
  while None in [p.poll() for p in processes]:
    bad = [p.returncode for p in processes if p.returncode]
    if bad and not code:
      code, end = bad[0], time.monotonic() + grace
      for p in processes:
        if p.poll() is None:
          p.terminate()
    if code and time.monotonic() > end:
      for p in processes:
        if p.poll() is None:
          p.kill()
    time.sleep(poll)
  return code or next((p.returncode for p in processes if p.returncode), 0)


def main():
  """Starts, waits, hands SIGTERM and SIGINT on. -> exit code"""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--processes', type=int, default=2, help='how many (default 2)')
  parser.add_argument('--devices', type=int, default=1, help='virtual CPU devices of each '
                      'process (default 1)')
  parser.add_argument('--platform', default='cpu', help='cpu, cuda or tpu (default cpu)')
  parser.add_argument('--dry-run', action='store_true', help='print the commands and end')
  parser.add_argument('flags', nargs='*', help='flags for recjax.main, after --')
  args = parser.parse_args()
  if args.processes < 1 or args.devices < 1:
    parser.error('--processes and --devices must be at least 1')
  made = commands(args, 0 if args.dry_run else free_port())
  if args.dry_run:
    for argv, own in made:
      print(' '.join([*(f'{k}={v}' for k, v in own.items()), shlex.join(argv)]))
    return 0
  processes = [subprocess.Popen(argv, env={**os.environ, **own}) for argv, own in made]
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda n, frame: [p.send_signal(n) for p in processes
                                            if p.poll() is None])
  code = supervise(processes)
  return 128 - code if code < 0 else code


if __name__ == '__main__':
  sys.exit(main())
