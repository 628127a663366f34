"""The same experiment on 1, 2, 4, 8 devices and in 2 processes: are its loss curves the same?

  python -m benchmarks.mesh_parity [--case=betag] [--layouts=1,8,2p,fsdp] [--room=DIR]

Runs `python -m recjax.main` with small models on the built-in shop, once for each layout, and
compares every loss of metrics.jsonl and the final ranks with those of the first layout. Exit code 1
where a loss differs by more than 1e-5 of itself within the first `--early` logged steps of a stage.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow.parquet as pq

ROOT = pathlib.Path(__file__).parents[1]
BOUND = 1e-5
SHOP = 'data=sample:1:200'
# Devices of each process, processes, further flags.
LAYOUTS = {
    '1': (1, 1, ()), '2': (2, 1, ()), '4': (4, 1, ()), '8': (8, 1, ()), '16': (16, 1, ()),
    '2p': (1, 2, ()),
    'fsdp': (8, 1, ('mesh.fsdp=2',)), 'model': (8, 1, ('mesh.model=2',)),
    'both': (8, 1, ('mesh.fsdp=2', 'mesh.model=2'))}

TINY = ('tiny.vocab=512', 'tiny.width=32', 'tiny.layers=1', 'tiny.ffn=64',
        'tiny.batch=3', 'tiny.epochs=0.04', 'tiny.log_every=1', 'tiny.warmup=5')
TUNE = ('optim.log_every=1', 'optim.warmup=5')
IDS = ('{}model.width=16', '{}model.hidden=16', '{}model.layers=1', '{}model.max_history=16',
       '{}train.batch=30', '{}train.epochs=6')


def ids(group=''):
  """Flags of a small recommender over ids."""
  return tuple(flag.format(group) for flag in IDS)


CODES = (
  'semantic_ids.steps=20',
  'semantic_ids.eval_every=5',
  'semantic_ids.batch=100',
  'semantic_ids.hidden=(16,)',
  'semantic_ids.size=16',
  'semantic_ids.width=16',
  'model.width=16',
  'model.max_history=4',
  'model.ffn=32',
  'model.layers=1',
  'model.decoder_layers=1',
  'model.fusion_layers=1',
  'model.head_dim=8',
  'train.batch=30',
  'train.valid_users=40',
  'train.epochs=2',
  'decode.beams=10',
  *ids('vectors.'),
)
RECLM = (
  *TINY,
  *TUNE,
  *ids('teacher.'),
  'train.batch=3',
  'train.sample=60',
  'train.epochs=1',
  'train.valid_users=16',
  'eval.users=10',
  'eval.rounds=4',
  'decode.new_tokens=48',
  'eval.answer_tokens=8',
)
BIGREC = (
  *TINY,
  *TUNE,
  *ids('assist.'),
  'train.sample=120',
  'train.epochs=1',
  'train.batch=5',
  'train.valid_sample=20',
  'eval.max_valid_users=20',
  'eval.max_test_users=20',
  'ground.max_gamma=5',
  'ground.step=0.2',
)
LLMEMB = (
  *TINY,
  *ids(),
  'base.width=16',
  'base.hidden=16',
  'base.layers=1',
  'base.max_history=16',
  'lora.rank=4',
  'scft.steps=12',
  'scft.batch=24',
  'scft.optim.log_every=1',
  'pca.dim=16',
  'rat.hidden=16',
  'rat.ablations=()',
)
CASES = {
    'sasrec': ('sequential_beauty', '', ids()),
    'gru4rec': ('sequential_beauty', 'model=gru4rec', ids()),
    'bert4rec': ('sequential_beauty', 'model=bert4rec', ids()),
    'hstu': ('sequential_beauty', 'model=hstu', ids()),
    'betag': ('betag_scientific', '', (
        *TINY, 'tiny.layers=2', 'tiny.epochs=0.1', *TUNE, 'train.epochs=1', 'train.batch=5',
        'lora.rank=4', 'decode.beams=4', 'decode.groups=4', 'decode.new_tokens=6',
        'select.top_m=(2,4)', 'select.top_k=(8,)')),
    'bigrec': ('bigrec_games', '', BIGREC),
    'd3': ('d3_scientific', '', BIGREC[:-2]),
    'reclm cgen': ('reclm_scientific', 'grounding=cgen', RECLM),
    'reclm ret': ('reclm_scientific', 'grounding=ret', (*RECLM, 'ret.hidden=16')),
    'reclm token': ('reclm_scientific', 'grounding=token', (*RECLM, 'semantic_ids.size=16')),
    'llmemb': ('llmemb_scientific', '', LLMEMB),
    'etegrec': ('etegrec_scientific', '', (
        *CODES, 'train.epochs=4', 'align.warm=1', 'finetune.epochs=1')),
    'tiger': ('tiger_beauty', '', CODES)}


def command(case, layout, workdir):
  """-> argv, environment of one run"""
  config, words, flags = CASES[case]
  devices, processes, more = LAYOUTS[layout]
  given = [f'--config=configs/{config}.py:{",".join(filter(None, (words, SHOP)))}',
           f'--workdir={workdir}', *(f'--config.{f}' for f in (*flags, *more))]
  start = (['-m', 'recjax.main'] if processes == 1 else
           ['launch/local.py', f'--processes={processes}', f'--devices={devices}', '--'])
  return [sys.executable, *start, *given], {
      **os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}


def run(case, layout, workdir):
  """One run, or what an earlier one left. Ends the program where it fails."""
  if not (workdir / 'results.json').exists():
    argv, env = command(case, layout, workdir)
    start = time.monotonic()
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
      sys.exit(f'{case} on {layout} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}')
    print(f'{case} on {layout}: {time.monotonic() - start:.0f} s', flush=True)


def curves(workdir):
  """{(stage, name): {step: value}} of everything that is a loss."""
  found = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    for name, value in row.items():
      if name.startswith('loss') or name == 'valid_loss':
        found.setdefault((row['stage'], name), {})[row['step']] = value
  return found


def difference(one, other, early):
  """The largest relative difference of two curves, early on and ever. -> float, float

  Infinite where they have other steps.
  """
  if one.keys() != other.keys():
    return np.inf, np.inf
  a, b = (np.array([c[s] for s in sorted(one)]) for c in (one, other))
  apart = np.abs(a - b) / np.maximum(np.abs(a), 1e-30)
  return apart[:early].max(), apart.max()


def ranks(workdir):
  """All ranks of a run, by their columns."""
  table = pq.read_table(workdir / 'ranks.parquet')
  return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def differing(one, other):
  """The share of ranks that differ. -> float"""
  if one.keys() != other.keys() or any(len(one[n]) != len(other[n]) for n in one):
    return 1.0
  return float(np.mean([(one[n] != other[n]).mean() for n in one]))


def compare(case, layouts, room, early):
  """Runs a case on all layouts and prints how far its curves are apart. -> whether within bounds"""
  folders = {layout: room / f'{case.replace(" ", "_")}-{layout}' for layout in layouts}
  for layout, folder in folders.items():
    run(case, layout, folder)
  first, *rest = layouts
  want, good = curves(folders[first]), True
  print(f'| {case} | steps | ' + ' | '.join(f'{first} : {other}' for other in rest) + ' |')
  for (stage, name), curve in want.items():
    cells = []
    for other in rest:
      soon, ever = difference(curve, curves(folders[other]).get((stage, name), {}), early)
      good &= bool(soon <= BOUND)
      cells.append(f'{soon:.1e}' + (f' (later {ever:.1e})' if ever > max(BOUND, soon) else ''))
    print(f'| {stage} {name} | {len(curve)} | ' + ' | '.join(cells) + ' |')
  cells = [differing(ranks(folders[first]), ranks(folders[other])) for other in rest]
  print('| ranks that differ | | ' + ' | '.join(f'{c:.2%}' for c in cells) + ' |', flush=True)
  return good


def main():
  """Compares one case or all."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--case', default='', help=f'one of {", ".join(CASES)}; all by default')
  parser.add_argument('--layouts', default='1,2,4,8,2p', help=f'of {" ".join(LAYOUTS)}')
  parser.add_argument('--early', type=int, default=10**9, help='logged steps held to the bound')
  parser.add_argument('--room', default='', help='keep the runs here')
  args = parser.parse_args()
  room = pathlib.Path(args.room or tempfile.mkdtemp())
  cases = args.case.split(',') if args.case else list(CASES)
  good = [compare(case, args.layouts.split(','), room, args.early)
          for case in cases]
  sys.exit(not all(good))


if __name__ == '__main__':
  main()
