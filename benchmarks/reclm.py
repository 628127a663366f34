"""RecLM's teacher: all windows of an epoch in one go, in process, against one HTTP call a sample.

  python -m benchmarks.reclm [--samples=2000] [--items=10000]

Both sides ask the same random SASRec (width 64, two layers) for 11 items; the HTTP side is the
served teacher on this machine, first with one history a call as published, then with 512.
"""
import argparse
import statistics
import threading
import time

import jax
import numpy as np

from recjax.data.catalog import Catalog
from recjax.evaluation import ranking
from recjax.methods.reclm import teacher as client
from recjax.models import seqrec
from recjax.serving import teacher
from recjax.training import sequential


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--samples', type=int, default=2000)
  parser.add_argument('--items', type=int, default=10_000)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  n = args.items
  catalog = Catalog(tuple(f'i{i}' for i in range(n)), {})
  model = seqrec.Config('sasrec', n, 10)
  score = sequential.scorer(model, seqrec.init(model, jax.random.key(0)))
  rng = np.random.default_rng(0)
  histories = [rng.integers(1, n + 1, rng.integers(1, 11)).astype(np.int32)
               for _ in range(args.samples)]
  url = start(ranking.recommender(score, catalog), catalog)

  def inside():
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    return ranking.top_items(score, np.concatenate(histories), offsets, n, 11)[0]
  few = histories[:max(1, args.samples // 10)]
  sides = {'in process': (inside, len(histories)),
           'one call a sample': (lambda: client.over_http(url, catalog, few, 11, 1), len(few)),
           '512 a call': (lambda: client.over_http(url, catalog, histories, 11), len(histories))}
  found = {name: run()[:len(few)] for name, (run, _) in sides.items()}
  same = all((x == found['in process']).all() for x in found.values())
  times = {name: [] for name in sides}
  for _ in range(args.rounds):
    for name, (run, count) in sides.items():
      begun = time.perf_counter()
      run()
      times[name].append((time.perf_counter() - begun) / count * 1e3)
  base = statistics.median(times['in process'])
  print(f'{n:,} items, lists equal: {same}')
  for name, each in times.items():
    middle = statistics.median(each)
    print(f'  {name:18} {middle:8.3f} ms a sample ({min(each):.3f} to {max(each):.3f}), '
          f'{middle / base:6.1f}x the time in process')


def start(face, catalog):
  """Serves in a thread. -> address"""
  import uvicorn
  server = uvicorn.Server(uvicorn.Config(teacher.app(face, catalog), port=0, log_level='error'))
  threading.Thread(target=server.run, daemon=True).start()
  while not server.started:
    time.sleep(0.01)
  return f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'


if __name__ == '__main__':
  main()
