"""One LoRA training step (loss and gradient of the adapters) beside transformers + PEFT in torch.

  python -m benchmarks.lora_step            # float32 on a CPU, bfloat16 where JAX finds a GPU
  python -m benchmarks.lora_step --rounds=30 --width=1024 --layers=16 --vocab=32000
  python -m benchmarks.lora_step --weights=CHECKPOINT --memory  # a real model; peaks of memory too

Both sides hold the same weights and adapters, each in a process of its own; their losses are
compared before any timing, and rounds alternate between them. Lines of the table: the same
(8, 256) batch; eight samples behind one shared prefix, packed here and padded to 1024 there as
published; the same samples padded only to the longest there. Ratios are of medians, above 1 means
faster than torch.
"""
import argparse
import dataclasses
import functools
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from recjax.models import attention, huggingface, llm
from recjax.training.losses.lm import token_nll

PREFIX, ROW = 120, 512
AT_ONCE = 2048  # tokens of torch's widest step; more go in parts, as 24 GiB do not hold 8 x 1024


def parse():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, value in dict(rounds=15, width=256, layers=4, heads=8, kv_heads=4, ffn=704,
                          vocab=8000, rank=16, seed=0, threads=os.cpu_count()).items():
    parser.add_argument(f'--{name}', type=int, default=value)
  parser.add_argument('--weights', default='', help='a checkpoint folder instead of a random model')
  parser.add_argument('--memory', action='store_true',
                      help='peak memory of each side of each line, in a process of its own')
  parser.add_argument('--side', default='', help=argparse.SUPPRESS)  # of a process of its own
  parser.add_argument('--folder', default='', help=argparse.SUPPRESS)  # for the weights of both
  args = parser.parse_args()
  if args.weights:
    args.vocab = huggingface.read_config(args.weights).vocab
  return args


def samples(args):
  """Eight token lists behind one prefix, 300 tokens long on average with the prefix."""
  rng = np.random.default_rng(args.seed)
  lengths = np.clip(rng.lognormal(np.log(165), 0.45, 8).astype(int), 40, ROW)
  prefix = rng.integers(0, args.vocab, PREFIX)
  return prefix, [rng.integers(0, args.vocab, n) for n in lengths]


def peer(args, half, folder):
  """A torch model with adapters whose B is not zero, also written to `folder`. -> model, device"""
  import peft
  import torch
  import transformers
  torch.set_num_threads(args.threads)
  torch.manual_seed(args.seed)
  device = 'cuda' if torch.cuda.is_available() and half else 'cpu'
  if args.weights:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.weights, dtype=torch.float32, use_cache=False)
  else:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=args.vocab, hidden_size=args.width, num_hidden_layers=args.layers,
        num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
        intermediate_size=args.ffn, rms_norm_eps=1e-5, use_cache=False))
  model = model.to(torch.bfloat16) if half else model
  model.save_pretrained(f'{folder}/base')
  names = [m.rpartition('.')[2] for m in huggingface.MODULES.values()]
  model = peft.get_peft_model(model, peft.LoraConfig(
      r=args.rank, lora_alpha=2 * args.rank, target_modules=names, task_type='CAUSAL_LM'))
  for name, p in model.named_parameters():
    if 'lora_B' in name:
      torch.nn.init.normal_(p, std=0.02)
  model.save_pretrained(f'{folder}/adapter')
  return model.to(device).train(), device


def torch_step(model, device, tokens, mask, labels):
  """-> function that makes one step and returns the loss; in parts where it is over AT_ONCE"""
  import torch
  put = functools.partial(torch.as_tensor, dtype=torch.long, device=device)
  rows, counted, parts = max(1, AT_ONCE // tokens.shape[1]), (labels[:, 1:] >= 0).sum(), []
  for start in range(0, len(tokens), rows):
    part = slice(start, start + rows)
    batch = dict(input_ids=put(tokens[part]), labels=put(labels[part]))
    if not mask.all():
      batch['attention_mask'] = put(mask[part])
    parts.append(((labels[part, 1:] >= 0).sum() / counted, batch))
  trained = [p for p in model.parameters() if p.requires_grad]

  def step():
    total = 0.
    for p in trained:
      p.grad = None
    for share, batch in parts:
      loss = model(**batch).loss * share
      loss.backward()
      total += loss.item()
    return total
  return step


def jax_step(cfg, params, adapters, prefix, tokens, positions, segments, targets):
  """-> function that makes one step and returns the loss; targets below 0 are not counted."""
  model = llm.LM(cfg)

  def loss(adapters, params, prefix, tokens, positions, segments, targets):
    apply = functools.partial(model.apply, {'params': params, 'lora': adapters})
    past = ()
    if prefix.size:
      at = jnp.arange(prefix.shape[1])[None]
      _, (k, v) = apply(prefix, at, jnp.ones_like(prefix))
      past = (attention.kv_block(k[:, 0], v[:, 0], jnp.ones(prefix.shape[1], bool)),)
    hidden, _ = apply(tokens, positions, segments, past)
    counted = targets.reshape(-1) >= 0
    nll = token_nll(hidden.reshape(-1, cfg.width), llm.head_matrix(params, cfg),
                    jnp.maximum(targets.reshape(-1), 0))
    return jnp.where(counted, nll, 0).sum() / counted.sum()
  fn = jax.jit(jax.value_and_grad(loss))
  batch = [jnp.asarray(x, jnp.int32) for x in (prefix, tokens, positions, segments, targets)]
  return lambda: float(jax.block_until_ready(fn(adapters, params, *batch))[0])


def padded(prefix, tails, length):
  """-> tokens, mask, labels of right-padded rows; a sample's own tokens but the first count."""
  tokens, mask, labels = (np.full((len(tails), length), fill) for fill in (0, 0, -100))
  for row, tail in enumerate(tails):
    end = len(prefix) + len(tail)
    tokens[row, :end] = np.concatenate([prefix, tail])
    mask[row, :end] = 1
    labels[row, len(prefix) + 1:end] = tail[1:]
  return tokens, mask, labels


def packed(prefix, tails):
  """First-fit rows without the prefix, of the length that leaves the fewest places empty.

  -> prefix, tokens, positions, segments, targets
  """
  return min((packed_to(prefix, tails, length) for length in range(-(-max(map(len, tails)) // 64)
                                                                   * 64, ROW + 1, 64)),
             key=lambda batch: batch[1].size)


def packed_to(prefix, tails, length):
  """`packed`, into rows of `length` at most."""
  rows = []
  for tail in sorted(tails, key=len, reverse=True):
    row = next((r for r in rows if sum(map(len, r)) + len(tail) <= length), None)
    if row is None:
      rows.append(row := [])
    row.append(tail)
  used = -(-max(sum(map(len, r)) for r in rows) // 64) * 64
  tokens, positions, segments = (np.zeros((len(rows), used), int) for _ in range(3))
  targets = np.full((len(rows), used), -1)
  for i, row in enumerate(rows):
    at = 0
    for j, tail in enumerate(row):
      here = slice(at, at + len(tail))
      tokens[i, here], segments[i, here] = tail, j + 1
      positions[i, here] = len(prefix) + np.arange(len(tail))
      targets[i, at:at + len(tail) - 1] = tail[1:]
      at += len(tail)
  return prefix[None], tokens, positions, segments, targets


def same_shape(args):
  tokens = np.random.default_rng(args.seed + 1).integers(0, args.vocab, (8, 256))
  ones, at = np.ones_like(tokens), np.broadcast_to(np.arange(256), tokens.shape)
  targets = np.concatenate([tokens[:, 1:], np.full((8, 1), -1)], 1)
  return (np.zeros((1, 0)), tokens, at, ones, targets), (tokens, ones, tokens)


def lines_of(args):
  """-> [(name, tokens that count, our batch, torch's batch)] of the lines of the table"""
  prefix, tails = samples(args)
  real = len(tails) * PREFIX + sum(map(len, tails))
  longest = PREFIX + max(map(len, tails))
  pack = packed(prefix, tails)
  return [
      ('same shapes (8, 256)', 8 * 256, *same_shape(args)),
      (f'packed {pack[1].shape} / padded to {longest}', real, pack, padded(prefix, tails, longest)),
      (f'packed {pack[1].shape} / padded to 1024', real, pack, padded(prefix, tails, 1024))]


def work(args):
  """A side in a process of its own: says what it is, then, for the number of each line that it
  reads, the loss and the seconds of a step, and the peak of its memory so far in bytes."""
  half, lines = jax.default_backend() == 'gpu', lines_of(args)
  if args.side == 'torch':
    model, about = peer(args, half, args.folder)
    steps = [torch_step(model, about, *batch) for *_, batch in lines]
  else:
    base, adapter = f'{args.folder}/base', f'{args.folder}/adapter'
    cfg = huggingface.adapter_config(adapter, huggingface.read_config(base))
    cfg = dataclasses.replace(cfg, dtype='bfloat16' if half else 'float32',
                              scan_unroll=min(cfg.layers, 4) if not args.weights else 1)
    about = f'{jax.devices()[0].device_kind}, {cfg.dtype}'
    params, adapters = huggingface.load(base, cfg), huggingface.load_adapter(adapter, cfg)
    steps = [jax_step(cfg, params, adapters, *batch) for _, _, batch, _ in lines]
  print(about, flush=True)
  for number in sys.stdin:
    start = time.perf_counter()
    loss = steps[int(number)]()
    print(loss, time.perf_counter() - start,
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


class Side:
  """A process of `work`. name: 'recjax' or 'torch', who is first, since it makes the weights.
  folder: for them."""

  def __init__(self, name, folder):
    self.name = name
    self.process = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.lora_step', *sys.argv[1:], f'--side={name}',
         f'--folder={folder}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.about = self.said()

  def said(self):
    line = self.process.stdout.readline()
    if not line:
      raise EOFError(f'{self.name} ended with code {self.process.wait()}')
    return line.strip()

  def step(self, line):
    """-> loss, seconds, peak of memory in bytes"""
    print(line, file=self.process.stdin, flush=True)
    return [float(word) for word in self.said().split()]

  def close(self):
    self.process.stdin.close()
    self.process.wait()


def compare(line, name, tokens, sides, rounds, tolerance):
  """Checks that the losses agree, then times alternating rounds and prints one line."""
  a, b = (side.step(line)[0] for side in sides)
  if abs(a - b) > tolerance * abs(b):
    sys.exit(f'{name}: losses differ, {a:.6f} here and {b:.6f} in torch')
  for side in sides:
    side.step(line)
  times = [[side.step(line)[1] for side in sides] for _ in range(rounds)]
  x, y = map(statistics.median, zip(*times))
  best = [min(each) for each in zip(*times)]
  print(f'{name:34} {a:8.4f} {tokens / x:10.0f} {tokens / y:10.0f} {y / x:7.2f}'
        f' {best[1] / best[0]:7.2f}', flush=True)


def peaks(args, folder):
  """Peak memory of a process that has made a step, for each side of each line."""
  Side('torch', folder).close()  # makes the weights
  for line, (name, *_) in enumerate(lines_of(args)):
    found = []
    for kind in ('recjax', 'torch'):
      side = Side(kind, folder)
      try:
        found.append(f'{kind} {side.step(line)[2] / 2**30:.2f} GiB')
      except EOFError as error:
        found.append(str(error))
      side.close()
    print(f'{name}: {"; ".join(found)}', flush=True)


def main():
  args = parse()
  absent = [p for p in ('torch', 'transformers', 'peft') if importlib.util.find_spec(p) is None]
  if absent:
    print(f'skipped: {", ".join(absent)} not installed')
    return
  if args.side:
    work(args)
    return
  with tempfile.TemporaryDirectory() as folder:
    if args.memory:
      peaks(args, folder)
      return
    theirs = Side('torch', folder)
    sides = (Side('recjax', folder), theirs)
    print(f'{sides[0].about}, torch on {theirs.about}, {args.threads} threads, {args.rounds} '
          f'rounds\n{"":34} {"loss":>8} {"tokens/s":>10} {"torch":>10} {"ratio":>7} {"of best":>7}')
    near = 2e-2 if 'bfloat16' in sides[0].about else 1e-4
    for line, (name, tokens, *_) in enumerate(lines_of(args)):
      compare(line, name, tokens, sides, args.rounds, near)
    for side in sides:
      side.close()


if __name__ == '__main__':
  main()
