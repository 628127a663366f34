"""Health and time of semantic-ID tokenizers on real catalogs.

  python -m benchmarks.tokenizers --vectors=FILE.npy [--vectors=...]
  python -m benchmarks.tokenizers --data=FOLDER [--data=...] --encoder=MINILM_FOLDER

--vectors: (items, numbers), such as stages/*-vectors/vectors.npy of a run; --data with --encoder
makes them of the items' texts. Usage is the share of codes in use, the least of all levels;
collisions are told before equal rows are told apart.
"""
import argparse
import contextlib
import pathlib
import tempfile
import time

import numpy as np
from rich.console import Console

from configs import tiger_beauty
from recjax import run_files
from recjax.data import loading
from recjax.data.dataset import item_texts
from recjax.distributed import sharding
from recjax.methods.etegrec import item_embeddings, tokenization
from recjax.training import workdir as workdir_lib

KINDS = ('rqvae', 'letter', 'rqkmeans_plus', 'rqkmeans', 'rkmeans', 'rkmeans_balanced',
         'rkmeans_mapped', 'opq', 'random')


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--vectors', action='append', default=[])
  parser.add_argument('--data', action='append', default=[])
  parser.add_argument('--encoder', default='')
  parser.add_argument('--kinds', nargs='*', default=KINDS)
  parser.add_argument('--steps', type=int, default=2000)
  args = parser.parse_args()
  for name in args.vectors:
    judge(args, name, np.load(name, allow_pickle=False))
  for name in args.data:
    start = time.perf_counter()
    with opened() as work:
      found = item_embeddings.from_text(
        work, item_texts(loading.load_data(name).catalog), args.encoder
      )
    print(f'{name}: {len(found):,} texts in {time.perf_counter() - start:.1f} s')
    judge(args, name, np.asarray(found, np.float32))


@contextlib.contextmanager
def opened():
  """A run's folder for one stage, gone afterwards. Yields Work"""
  with tempfile.TemporaryDirectory() as room, workdir_lib.open_work(
      pathlib.Path(room) / 'run', {}, sharding.make_mesh({'data': -1, 'fsdp': 1, 'model': 1})
  ) as work:
    work.console, work.current, work.folder = Console(quiet=True), 'tokenizer', pathlib.Path(room)
    yield work


def judge(args, name, x):
  """One line for each tokenizer, 3 levels of 256 codes."""
  print(f'{name}: {x.shape[0]:,} items, {x.shape[1]} numbers\n'
        f'  {"tokenizer":18} {"usage":>7} {"collisions":>11} {"largest group":>14} {"seconds":>8}')
  for kind in args.kinds:
    cfg = tiger_beauty.get_config(f'tokenizer={kind}')
    cfg.semantic_ids.update(size=256, levels=4 if kind == 'opq' else 3, steps=args.steps,
                         eval_every=100, save_every=args.steps)
    if kind == 'letter':
      cfg.semantic_ids.width = x.shape[1]
    with opened() as work:
      np.save(work.folder / 'vectors.npy', x, allow_pickle=False)
      start = time.perf_counter()
      tokenization.stage(work, cfg, work.folder, None)
      took, found = time.perf_counter() - start, run_files.read_json(work.folder / 'health.json')
    print(f'  {kind:18} {min(found["usage"]):7.1%} {found["collision_rate"]:11.2%} '
          f'{found["max_group"]:14,} {took:8.1f}', flush=True)


if __name__ == '__main__':
  main()
