"""Opening a real language model: time and memory of a GGUF file, beside a folder of safetensors.

  python -m benchmarks.open_model MODEL.gguf                 # in float32 and bfloat16
  python -m benchmarks.open_model MODEL.gguf --transformers  # and transformers reading the file

The file is converted once (`recjax convert --to=hf`), all weights are compared, then each case is
opened in a process of its own, in turn. Seconds are of the processor, as the kernel counts them for
the process, imports left out. Memory is the growth of the process's peak while it opens, in shares
of the size of the weights in their type: 1 is the weights alone.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from recjax.models import huggingface, llm
from recjax.text import tokenizer

CASES = {'gguf, recjax': ('float32', 'bfloat16'), 'folder, recjax': ('float32', 'bfloat16'),
         'gguf, transformers': ('float32', 'bfloat16')}


def parse():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('model')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--transformers', action='store_true')
  parser.add_argument('--case', default='')
  parser.add_argument('--dtype', default='')
  return parser.parse_args()


def peak():
  """Peak bytes of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def open_ours(path, dtype):
  """-> seconds of opening weights and tokenizer"""
  jax.block_until_ready(jax.numpy.zeros(3) + 1)  # the backend itself
  import gguf  # noqa: F401
  import tokenizers  # noqa: F401
  shapes = llm.shapes(huggingface.read_config(path))  # traced once, whatever is opened
  before, start = peak(), time.process_time()
  cfg = huggingface.read_config(path)
  params = jax.block_until_ready(huggingface.load(path, cfg, dtype=dtype))
  tokenizer.load(path)
  assert jax.tree.structure(params) == jax.tree.structure(shapes)
  return time.process_time() - start, peak() - before


def open_theirs(path, dtype):
  """As `open_ours`, by transformers in torch."""
  import torch
  import transformers
  path = pathlib.Path(path)
  before, start = peak(), time.process_time()
  model = transformers.AutoModelForCausalLM.from_pretrained(
      path.parent, gguf_file=path.name, dtype=getattr(torch, dtype))
  transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  assert model.dtype == getattr(torch, dtype)
  return time.process_time() - start, peak() - before


def run(path, case, dtype):
  """One case in a process of its own. -> (seconds, bytes)"""
  done = subprocess.run([sys.executable, '-m', 'benchmarks.open_model', str(path), f'--case={case}',
                         f'--dtype={dtype}'], check=True, capture_output=True, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def main():
  args = parse()
  if args.case:
    opened = open_theirs if 'transformers' in args.case else open_ours
    print(json.dumps(opened(args.model, args.dtype)))
    return
  cases = [(case, dtype) for case, dtypes in CASES.items() for dtype in dtypes
           if args.transformers or 'transformers' not in case]
  with tempfile.TemporaryDirectory() as room:
    cfg = huggingface.read_config(args.model)
    huggingface.convert_gguf(args.model, room)
    tokenizer.load(args.model).save(room)
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(args.model, cfg),
                 huggingface.load(room, cfg))
    results = {case: [] for case in cases}
    for _ in range(args.rounds):
      for case, dtype in cases:
        path = room if case.startswith('folder') else args.model
        results[case, dtype].append(run(path, case, dtype))
        print(case, dtype, *results[case, dtype][-1], file=sys.stderr, flush=True)
  table(args.model, cfg, results)


def table(model, cfg, results):
  """Prints the medians. results: (case, type) -> [(seconds, bytes)]"""
  count = llm.param_bytes(cfg) / np.dtype(cfg.param_dtype).itemsize
  print(f'{model}: {count / 1e6:.1f} million weights, equal in both')
  print('| case | type | CPU seconds | peak growth, MiB | of the weights |')
  print('| --- | --- | --- | --- | --- |')
  for (case, dtype), values in results.items():
    seconds, size = (statistics.median(column) for column in zip(*values))
    weights = count * (4 if dtype == 'float32' else 2)
    spread = f'{min(v[0] for v in values):.2f} to {max(v[0] for v in values):.2f}'
    print(f'| {case} | {dtype} | {seconds:.2f} ({spread}) | {size / 2**20:,.0f} | '
          f'{size / weights:.2f} |')


if __name__ == '__main__':
  main()
