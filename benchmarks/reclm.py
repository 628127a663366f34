"""RecLM's teacher in process against HTTP, and what masking the loss to the catalog is worth.

  python -m benchmarks.reclm [--part=teacher] [--samples=2000] [--items=10000]
  python -m benchmarks.reclm --part=scope [--users=400] [--epochs=2] [--data=sample]

teacher: both sides ask the same random SASRec (width 64, two layers) for 11 items; the HTTP side is
the served teacher on this machine, first with one history a call as published, then with 512.
scope: the same model tuned on the same samples with the softmax inside titles over the vocabulary
(train.scope=none), over what the catalog allows (all), or both (train.free=1 beside); all are
judged on held-out lists by the same measure, the negative log-likelihood of title tokens among what
the catalog allows.
"""
import argparse
import pathlib
import statistics
import tempfile
import threading
import time

import jax
import numpy as np

from configs import reclm_scientific
from recjax.data.dataset import Catalog
from recjax.data.loading import load_data
from recjax.distributed import sharding
from recjax.evaluation import ranking
from recjax.methods.reclm import planning, prompts, train
from recjax.methods.reclm import teacher as client
from recjax.models import seqrec
from recjax.serving import reclm_api
from recjax.training import llm_loading, sequential
from recjax.training import workdir as workdir_lib

WAYS = {'none': ('none', 0.0), 'mask': ('all', 0.0), 'both': ('all', 1.0)}  # train.scope, .free


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--part', choices=('teacher', 'scope'), default='teacher')
  parser.add_argument('--samples', type=int, default=2000)
  parser.add_argument('--items', type=int, default=10_000)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--users', type=int, default=400)
  parser.add_argument('--epochs', type=int, default=2)
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--data', default='sample')
  args = parser.parse_args()
  if args.part == 'scope':
    for seed in range(args.seeds):
      compare_scopes(args, seed)
  else:
    compare_teachers(args)


def compare_teachers(args):
  """Milliseconds a sample of each way to ask."""
  n = args.items
  catalog = Catalog(tuple(f'i{i}' for i in range(n)), {})
  model = seqrec.Config('sasrec', n, 10)
  score = sequential.scorer(model, seqrec.init(model, jax.random.key(0)))
  rng = np.random.default_rng(0)
  histories = [rng.integers(1, n + 1, rng.integers(1, 11)).astype(np.int32)
               for _ in range(args.samples)]
  url = start(ranking.recommender(score, catalog))

  def inside():
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    return ranking.top_items(score, np.concatenate(histories), offsets, n, 11)[0]
  few = histories[:max(1, args.samples // 10)]
  sides = {'in process': (inside, len(histories)),
           'one call a sample': (lambda: client.ask_server(url, catalog, few, 11, 1), len(few)),
           '512 a call': (lambda: client.ask_server(url, catalog, histories, 11), len(histories))}
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


def compare_scopes(args, seed):
  """Held-out title NLL without the mask, with it alone and with both, at every evaluation."""
  cfg = reclm_scientific.get_config(f'data={args.data}')
  cfg.seed = seed
  cfg.train.update(sample=args.users, epochs=args.epochs, patience=0)
  cfg.teacher.train.update(epochs=10)
  shop, found = load_data(cfg.data), {}
  titles = [' '.join((t or '').split()) for t in shop.catalog.columns['title']]
  template = prompts.read_template(cfg)
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'model': 1})
  facts = {'command': 'benchmark', 'devices': '1', 'versions': {}, 'revision': '', 'overrides': {}}
  with tempfile.TemporaryDirectory() as folder, workdir_lib.open_work(
      pathlib.Path(folder) / 'run', {'config': cfg.to_dict(), 'facts': facts}, mesh) as work:
    llm = llm_loading.folder(cfg, work, [prompts.message('system', template['system'])],
                          lambda: planning.documents(template, titles, cfg.seed), shop)
    helper = work.stage('teacher', client.stage, client.settings(cfg), shop)
    for name, (kind, free) in WAYS.items():
      cfg.train.update(scope=kind, free=free)
      work.stage(f'tune-{name}', train.stage, train.settings(cfg), shop, llm, helper)
      found[name] = {r['step']: r['title_nll'] for r in work.metrics()
                     if r['stage'] == f'tune-{name}' and 'title_nll' in r}
  print(f'seed {seed}: {cfg.data}, {args.users} users an epoch, {args.epochs} epochs; nats a token '
        'of held-out titles')
  for step, plain in found['none'].items():
    print(f'  step {step:5}: none {plain:.4f}', *(
        f'{name} {found[name][step]:.4f}, ratio {found[name][step] / plain:.4f}'
        for name in ('mask', 'both')), sep=', ')


def start(recommender):
  """Serves in a thread. -> address"""
  import fastapi
  import uvicorn
  app = fastapi.FastAPI()
  reclm_api.add_routes(app, recommender.top_items, recommender.catalog)
  server = uvicorn.Server(uvicorn.Config(app, port=0, log_level='error'))
  threading.Thread(target=server.run, daemon=True).start()
  while not server.started:
    time.sleep(0.01)
  return f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'


if __name__ == '__main__':
  main()
