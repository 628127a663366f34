"""Grounding and D3's assistant against the published ways and faiss, side by side.

  python -m benchmarks.grounding [--lines=curve,nearest,assistant] [--faiss=SITE_PACKAGES]

curve: 5,000 queries x 17,408 items x 200 gammas, ranks of the targets, against sorting twice for
every gamma in NumPy (a few rows of it, scaled; equality is checked on those rows). nearest: exact
top 10 of 100,000 x 1,024 against faiss-cpu's flat index, ids compared. assistant: the sums of a
catalog's probabilities below all children of the root, against a loop over items.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from recjax.decoding import constraints, device_trie, trie
from recjax.retrieval import nearest as nearest_lib

PEER = '''
import sys, time
sys.path.insert(0, sys.argv[2])
import faiss, numpy as np
with np.load(sys.argv[1]) as a:
  items, queries = a['items'], a['queries']
faiss.omp_set_num_threads(int(sys.argv[3]))
index = faiss.IndexFlatL2(items.shape[1])
index.add(items)
index.search(queries, 10)
times = []
for _ in range(5):
  start = time.perf_counter()
  _, ids = index.search(queries, 10)
  times.append(time.perf_counter() - start)
np.savez(sys.argv[1] + '.out.npz', ids=ids, times=times)
'''


def main():
  """Runs the lines that the flags name."""
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument('--lines', default='curve,nearest,assistant')
  flags.add_argument('--faiss', default='', help='site-packages that hold faiss-cpu')
  flags.add_argument('--threads', type=int, default=2)
  flags.add_argument('--queries', type=int, default=5000)
  args = flags.parse_args()
  for line in args.lines.split(','):
    print(f'\n{line}')
    globals()[line](args)


def timed(run, rounds=3):
  """Seconds of each round after one that compiles. -> sorted list"""
  jax.block_until_ready(run())
  out = []
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(run())
    out.append(time.perf_counter() - start)
  return sorted(out)


def curve(args):
  """Ranks for every gamma."""
  rng = np.random.default_rng(0)
  n, count, block = 17_408, args.queries, 250
  gammas = np.concatenate([np.arange(0, 1.005, 0.01), np.arange(1, 100)]).astype(np.float32)[:200]
  near = np.asarray(nearest_lib.min_max_normalize(rng.random((block, n), np.float32)))
  weight = rng.random(n).astype(np.float32)
  targets = rng.integers(0, n, block)

  def ours():
    given = jnp.asarray(near), jnp.asarray(weight), jnp.asarray(targets), jnp.asarray(gammas)
    return nearest_lib.rank_curve(*given, ties='index')
  seconds = timed(ours)
  found = np.asarray(ours())
  rows, some = 4, (0, 50, 120, 199)

  def theirs(gamma):
    score = near[:rows].astype(np.float64) * (1 + weight) ** -float(gamma)
    return np.argsort(np.argsort(score, 1, kind='stable'), 1)
  start = time.perf_counter()
  sorted_ranks = [theirs(gammas[g]) for g in some]
  each = (time.perf_counter() - start) / (rows * len(some))
  same = sum(int(found[g, b] == r[b, targets[b]]) for g, r in zip(some, sorted_ranks)
             for b in range(rows))
  whole = seconds[len(seconds) // 2] * count / block
  print(f'  ranks equal to sorting twice in float64: {same} of {rows * len(some)}')
  print(f'  recjax {whole:.1f} s for {count:,} queries x {n:,} items x {len(gammas)} gammas '
        f'(from blocks of {block}); sorting twice {each * count * len(gammas):,.0f} s '
        f'(from {rows * len(some)} rows): {each * count * len(gammas) / whole:.0f}x')


def nearest(args):
  """Exact nearest neighbors."""
  rng = np.random.default_rng(0)
  items = rng.normal(size=(100_000, 1024)).astype(np.float32)
  queries = rng.normal(size=(256, 1024)).astype(np.float32)
  vectors = nearest_lib.with_rounded(nearest_lib.center(items))
  given = jnp.asarray(queries)
  seconds = timed(lambda: nearest_lib.nearest(vectors, given, 10), 5)
  flops = 2 * items.size * len(queries)
  print(f'  recjax {seconds[2] * 1e3:.0f} ms for {len(queries)} queries ({seconds[0] * 1e3:.0f} to '
        f'{seconds[-1] * 1e3:.0f}), {flops / seconds[2] / 1e9:.0f} GFLOP/s')
  if not args.faiss:
    return
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'a.npz'
    np.savez(path, items=items, queries=queries)
    subprocess.run([sys.executable, '-c', PEER, str(path), args.faiss, str(args.threads)],
                   check=True)
    with np.load(f'{path}.out.npz') as out:
      ids, theirs = out['ids'], np.sort(out['times'])
  again = timed(lambda: nearest_lib.nearest(vectors, given, 10), 5)
  ours = np.asarray(nearest_lib.nearest(vectors, given, 10)[1])
  print(f'  faiss flat {theirs[2] * 1e3:.0f} ms ({theirs[0] * 1e3:.0f} to {theirs[-1] * 1e3:.0f}); '
        f'recjax again {again[2] * 1e3:.0f} ms: {theirs[2] / again[2]:.2f}x; ids equal: '
        f'{(ours == ids).mean():.4%}')


def assistant(args):
  """D3's sums at the first step."""
  del args
  rng = np.random.default_rng(0)
  n = 20_000
  rows = [rng.integers(0, 5000, rng.integers(3, 14)).tolist() for _ in range(n)]
  tree = trie.build(rows, end=5000, vocab=5001)
  planted = device_trie.to_device_trie(tree)
  share = jnp.asarray(rng.dirichlet(np.ones(n), 1), jnp.float32)
  first = planted.first[0], planted.first[1]
  child = jnp.arange(int(first[0]), int(first[1]))

  @jax.jit
  def ours(share):
    made = constraints.score_mixing(planted, share, 0.5)
    return made.mass(planted.lo[child][None, None], planted.hi[child][None, None])
  seconds = timed(lambda: ours(share), 20)
  host = np.asarray(share)[0]
  start = time.perf_counter()
  sums = {}
  for item, row in enumerate(rows):
    sums[row[0]] = sums.get(row[0], 0.0) + float(host[item])
  loop = time.perf_counter() - start
  found = dict(zip(np.asarray(planted.tok)[np.asarray(child)].tolist(),
                   np.asarray(ours(share))[0, 0].tolist()))
  worst = max(abs(found[t] - s) for t, s in sums.items())
  print(f'  {len(child):,} children of the root, {n:,} items: {seconds[10] * 1e3:.3f} ms '
        f'({seconds[0] * 1e3:.3f} to {seconds[-1] * 1e3:.3f}); a loop over items in Python '
        f'{loop * 1e3:.1f} ms; largest difference {worst:.1e}')


if __name__ == '__main__':
  main()
