"""SASRec's full-softmax step on 1, 2, 4 and 8 devices, the users of each device constant.

  python -m benchmarks.weak_scaling [--users=64] [--items=4096] [--model=1] [--compile-only]

Virtual CPU devices share the cores of one machine, so the time says nothing about a pod's: eight of
them do eight times the work on the same cores. What carries over is the work of one device and the
collectives of the compiled step, beside the fewest bytes that its sharding allows.
"""
import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import sequential_beauty
from recjax.distributed import sharding
from recjax.models import seqrec
from recjax.training import cost_model, optim, sequential

LENGTH, MEAN = 32, 16  # places of a row, items of a user


def step_of(mesh, users, items, width):
  """One step as an epoch of one, jitted, and what it takes. -> jitted, arguments"""
  cfg = sequential_beauty.get_config()
  cfg.model.update(max_history=LENGTH, width=width, hidden=width)
  cfg.train.batch = users
  model, tx = sequential.model_config(cfg, items), optim.make(cfg.optim, 100)
  rows, targets = users * MEAN // LENGTH, users * MEAN
  _, loss = sequential.plain(model, functools.partial(
      sequential.loss_of, cfg, model, mesh, rows, targets), targets)
  run = jax.jit(jax.vmap(functools.partial(sequential.epoch, cfg, tx, loss, 1),
                         (0, 0, None, None)), donate_argnums=0)

  def init(key):
    params = seqrec.init(model, key)
    return {'params': params, 'opt': tx.init(params)}
  seqs = np.zeros((users + 1, LENGTH + 1), np.int32)
  seqs[:-1, -MEAN - 1:] = np.random.default_rng(0).integers(1, items + 1, (users, MEAN + 1))
  keys = jax.random.key(0)[None]
  state = jax.jit(jax.vmap(init), out_shardings=jax.NamedSharding(mesh, jax.P()))(keys)
  return run, (state, keys, jnp.asarray(seqs), np.int32(0))


def measure(args):
  """Compiles and times the step in this process. -> {name: number}"""
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': args.model})
  users = args.users * sharding.num_batch_shards(mesh)
  with jax.set_mesh(mesh):
    run, (state, *rest) = step_of(mesh, users, args.items, args.width)
    program = run.lower(state, *rest).compile()
    found = {
        'users': users, 'gflop': program.cost_analysis()['flops'] / 1e9,
        'temporary': program.memory_analysis().temp_size_in_bytes / 2**20,
        'collectives': cost_model.collectives(program.as_text()),
        'parameters': sum(x.size * 4 for x in jax.tree.leaves(state['params'])),
        'states': users * MEAN * args.width * 4}
    times = []
    for _ in range(0 if args.compile_only else 12):
      start = time.monotonic()
      state, means = run(state, *rest)
      jax.block_until_ready(means)
      times.append(time.monotonic() - start)
  return found | ({'seconds': statistics.median(times[2:])} if times else {})


def main():
  """Runs each number of devices in a process of its own and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--users', type=int, default=64, help='of each data device')
  parser.add_argument('--items', type=int, default=4096)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--model', type=int, default=1, help='devices that share the item table')
  parser.add_argument('--devices', default='1,2,4,8')
  parser.add_argument('--compile-only', action='store_true')
  parser.add_argument('--here', action='store_true', help='in this process, on its devices')
  args = parser.parse_args()
  if args.here:
    print(json.dumps(measure(args)))
    return
  for count in map(int, args.devices.split(',')):
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.weak_scaling', '--here', *sys.argv[1:]], text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(count)},
        stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    moved = ', '.join(f'{n} {kind} of {size / 1e6:.2f} MB'
                      for kind, (n, size) in sorted(found['collectives'].items())) or 'none'
    print(f'{count} devices, {found["users"]} users: {found["gflop"]:.2f} GFLOP and '
          f'{found["temporary"]:.0f} MiB a device, {found.get("seconds", 0) * 1e3:.0f} ms; '
          f'{moved}; of all: gradients {found["parameters"] / 1e6:.2f} MB, states of targets '
          f'{found["states"] / 1e6:.2f} MB', flush=True)


if __name__ == '__main__':
  main()
