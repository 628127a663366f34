"""A training step of SASRec against a plain PyTorch SASRec: the same weights, batch and loss.

  python -m benchmarks.sequential [--data=FOLDER] [--rounds=7] [--lines=bce,last,all,long,memory]

FOLDER holds a canonical data set (Amazon Beauty). Both sides train pre-norm SASRec, width 64, two
layers, one head, 256 users a step, with Adam. Losses are checked to be equal without dropout before
anything is timed, with dropout .2; rounds are interleaved; compilation is apart.

  bce   one negative at every target        last  full softmax, the last place of each user alone
  all   full softmax at every target, torch scoring every padded place, and torch gathering as we do
  long  all, with users whose rows are full, so that packing saves nothing
  hstu  HSTU's step at the published sizes of MovieLens-1M (--movielens), against plain PyTorch
           without fbgemm, with two ways of scoring negatives
  recbole  last, against RecBole's own SASRec at the same sizes; --recbole=SITE_PACKAGES names where
           it is installed (it needs old pins, so an environment of its own is best)
  memory  compiled memory of dense and chunked cross-entropy at 10^4, 10^5, 10^6 items
  evaluate  full ranking of --users over --items within 256 MiB of scores
  quality  training seconds to NDCG@10 .0539 on Beauty's test users, ours and then RecBole's SASRec
           (full softmax, every prefix a sample, 256 a step); each side stops after --minutes
"""
import argparse
import dataclasses
import functools
import importlib.util
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import hstu_step, sequential_quality
from recjax.data import loading, splits
from recjax.models import seqrec
from recjax.training import optim
from recjax.training import sequential as train
from recjax.training.losses import item_losses

ROOT = pathlib.Path(__file__).parents[1]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--lines', default='bce,last,all,long,memory,evaluate')
  parser.add_argument('--data', default='../shared/data/amazon-beauty')
  parser.add_argument('--movielens', default='../shared/data/ml-1m', help='of hstu')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--recbole', default='', help='a site-packages folder that holds recbole')
  parser.add_argument('--minutes', type=float, default=30, help='training time a side, of quality')
  parser.add_argument('--users', type=int, default=20_000, help='of evaluate')
  parser.add_argument('--items', type=int, default=1_000_000, help='of evaluate')
  args = parser.parse_args()
  if not (pathlib.Path(args.data) / 'items.jsonl').exists():
    sys.exit(f'{args.data} holds no items.jsonl; name a folder with --data')
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.rounds} rounds', flush=True)
  for line in args.lines.split(','):
    print(f'\n{line}', flush=True)
    if line in ('memory', 'evaluate', 'quality', 'hstu'):
      {'memory': memory, 'evaluate': evaluate, 'quality': sequential_quality.run,
       'hstu': hstu_step.run}[line](args)
    else:
      step(line, args)


def config(loss):
  spec = importlib.util.spec_from_file_location('c', ROOT / 'configs' / 'sequential_beauty.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(f'paper,loss={loss}')


def step(line, args):
  """One line: equal losses, then times."""
  cfg = config('bce' if line == 'bce' else 'ce')
  cfg.model.dropout, cfg.loss.exclude = 0.2, 'none'
  shop = loading.load_data(args.data)
  seqs = np.asarray(train.sequences(splits.leave_one_out(shop.interactions).train, 50))[:-1]
  rng = np.random.default_rng(0)
  if line == 'long':
    seqs = rng.integers(1, len(shop.catalog) + 1, (256, 51)).astype(np.int32)
  batch = seqs[rng.permutation(len(seqs))[:256]]
  model = train.model_config(cfg, len(shop.catalog))
  params = seqrec.init(model, jax.random.key(0))
  example = train.example
  if line in ('last', 'recbole'):
    def only_last(*given):
      inputs, targets = example(*given)
      return inputs, targets.at[:, :-1].set(0)
    train.example = only_last
  ours, value = our_step(cfg, model, params, batch)
  if line == 'recbole':
    theirs = {'RecBole': (recbole_step(args.recbole, model, batch), value)}
  else:
    theirs = {name: peer_step(line, name, model, params, batch) for name in (
        ('every place', 'gathered') if line in ('all', 'long') else ('plain',))}
  train.example = example
  for name, (_, check) in theirs.items():
    if line not in ('bce', 'recbole') and abs(check - value) > 1e-4 * abs(value):
      sys.exit(f'FAIL: the losses are {value:.6f} and {check:.6f} ({name})')
  print(f'  loss {value:.5f}; {int((batch > 0).sum()):,} tokens in 256 rows of 51')
  versus(args.rounds, {**{f'torch, {k}': f for k, (f, _) in theirs.items()}, 'recjax': ours})


def our_step(cfg, model, params, batch):
  """-> (run one step, loss without dropout)"""
  items = jnp.asarray(batch)[:, :model.max_history + 1]
  counts = jnp.maximum((items > 0).sum(-1) - 1, 0)
  rows = -(-int(train.assign_rows(counts, model.max_history)[2]) // 8) * 8
  inputs, goals = train.example(cfg, model, items, jax.random.key(0))
  del inputs
  targets = -(-int((goals > 0).sum()) // 128) * 128
  mesh = jax.make_mesh((1,), ('data',))
  tx = optim.make(cfg.optim, 1000)
  still = dataclasses.replace(model, dropout=0.0)
  value = float(train.loss_of(cfg, still, mesh, rows, targets, params, jnp.asarray(batch),
                              jax.random.key(1)))

  @functools.partial(jax.jit, donate_argnums=0)
  def advance(state, seqs, key):
    loss, grads = jax.value_and_grad(functools.partial(
        train.loss_of, cfg, model, mesh, rows, targets))(state[0], seqs, key)
    updates, opt = tx.update(grads, state[1], state[0])
    return (jax.tree.map(jnp.add, state[0], updates), opt), loss
  state = [(params, tx.init(params)), 0]
  state[0] = jax.tree.map(jnp.array, state[0])
  seqs = jnp.asarray(batch)
  start = time.perf_counter()
  state[0], _ = advance(state[0], seqs, jax.random.key(0))
  jax.block_until_ready(state[0])
  print(f'  packed into {rows} rows of {model.max_history}, {targets} targets; compile '
        f'{time.perf_counter() - start:.1f} s')

  def run():
    state[1] += 1
    state[0], loss = advance(state[0], seqs, jax.random.key(state[1]))
    jax.block_until_ready(loss)
  return run, value


def peer_step(line, name, model, params, batch):
  """A plain PyTorch SASRec, padded on the left. -> (run one step, loss without dropout)"""
  import torch
  from torch import nn
  from torch.nn import functional as F

  class Layer(nn.Module):
    def __init__(self, width):
      super().__init__()
      self.n1, self.n2 = (nn.LayerNorm(width, eps=1e-8) for _ in range(2))
      self.q, self.k, self.v, self.o, self.up, self.down = (
          nn.Linear(width, width) for _ in range(6))

    def forward(self, x, mask, real, p):
      y = self.n1(x)
      q, k, v = self.q(y), self.k(y), self.v(y)
      w = (q @ k.transpose(1, 2) / q.shape[-1] ** .5).masked_fill(~mask, -1e9).softmax(-1)
      x = x + F.dropout(self.o(F.dropout(w, p) @ v), p)
      y = F.dropout(F.relu(self.up(self.n2(x))), p)
      return (x + F.dropout(self.down(y), p)) * real

  class SASRec(nn.Module):
    def __init__(self):
      super().__init__()
      self.items = nn.Parameter(torch.zeros(model.items + 2, model.width))
      self.positions = nn.Parameter(torch.zeros(model.max_history, model.width))
      self.layers = nn.ModuleList(Layer(model.width) for _ in range(model.layers))
      self.norm = nn.LayerNorm(model.width, eps=1e-8)

    def forward(self, items, p):
      real = (items > 0).float()[..., None]
      x = F.dropout(self.items[items] * model.width ** .5 + self.positions, p) * real
      n = model.max_history
      mask = torch.ones(n, n, dtype=torch.bool).tril() & (items > 0)[:, None]
      for layer in self.layers:
        x = layer(x, mask, real, p)
      return self.norm(x)

  net = SASRec()
  fill(net, params)
  adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(.9, .98))
  rows = torch.as_tensor(batch.astype(np.int64))
  inputs, targets = rows[:, :-1], torch.where(rows[:, :-1] > 0, rows[:, 1:], 0)
  if line == 'last':
    targets = targets.clone()
    targets[:, :-1] = 0
  real = targets > 0

  def loss(p):
    states = net(inputs, p)
    table = net.items[1:model.items + 1]
    if line == 'bce':
      wrong = torch.randint(0, model.items, targets.shape)
      up = (states * table[(targets - 1).clamp(0)]).sum(-1)
      down = (states * table[wrong]).sum(-1)
      return (F.softplus(-up) + F.softplus(down))[real].mean()
    if name == 'every place':
      logits = states @ table.T
      return F.cross_entropy(logits.reshape(-1, model.items),
                             torch.where(real, targets - 1, -100).reshape(-1))
    states, wanted = (states[:, -1], targets[:, -1]) if line == 'last' else (
        states[real], targets[real])
    good = wanted > 0
    return F.cross_entropy(states[good] @ table.T, wanted[good] - 1)

  value = float(loss(0.0).detach())

  def run():
    adam.zero_grad()
    loss(.2).backward()
    adam.step()
  run()
  return run, value


def recbole_step(where, model, batch):
  """RecBole's SASRec, CE, on the same users: it scores the last place. -> run one step"""
  import torch
  net = sequential_quality.recbole_model(where, model)
  rows, goals = batch[:, :-1], batch[:, -1]
  known = sequential_quality.recbole_input(rows)
  known['item'] = torch.as_tensor(goals.astype(np.int64))
  adam = torch.optim.Adam(net.parameters(), lr=1e-3)

  def run():
    adam.zero_grad()
    net.calculate_loss(known).backward()
    adam.step()
  run()
  return run


def fill(net, params):
  """Copies Flax parameters into the torch model."""
  import torch

  def put(to, x):
    with torch.no_grad():
      to.copy_(torch.as_tensor(np.array(x)))
  put(net.items, params['items'])
  put(net.positions, params['positions'])
  put(net.norm.weight, params['norm']['scale'])
  put(net.norm.bias, params['norm']['bias'])
  for i, layer in enumerate(net.layers):
    block = params[f'block_{i}']
    width = net.items.shape[1]
    for to, x in ((layer.q, block['attention']['q']), (layer.k, block['attention']['k']),
                  (layer.v, block['attention']['v']), (layer.o, block['attention']['out']),
                  (layer.up, block['feed']['up']), (layer.down, block['feed']['down'])):
      put(to.weight, np.array(x['kernel']).reshape(width, width).T)
      put(to.bias, np.array(x['bias']).reshape(-1))
    for to, x in ((layer.n1, block['norm_1']), (layer.n2, block['norm_2'])):
      put(to.weight, x['scale'])
      put(to.bias, x['bias'])


def versus(rounds, sides):
  """Times the sides in turn; ratios are those of each round, a peer's time over ours."""
  times = {name: [] for name in sides}
  for _ in range(rounds):
    for name, run in sides.items():
      start = time.perf_counter()
      for _ in range(3):
        run()
      times[name].append((time.perf_counter() - start) / 3)
  for name, seconds in times.items():
    ratios = [a / b for a, b in zip(seconds, times['recjax'])]
    print(f'  {name:20} {statistics.median(seconds) * 1e3:8.1f} ms a step ({min(seconds) * 1e3:.0f}'
          f' - {max(seconds) * 1e3:.0f}), recjax is {statistics.median(ratios):.2f}x as fast '
          f'(least {min(ratios):.2f}x)', flush=True)


def memory(_):
  """Temporary bytes of loss and gradient for 2,048 positions, width 64."""
  for items in (10_000, 100_000, 1_000_000):
    given = (jax.ShapeDtypeStruct((2048, 64), 'float32'),
             jax.ShapeDtypeStruct((items, 64), 'float32'), jax.ShapeDtypeStruct((2048,), 'int32'))

    def dense(states, table, targets):
      return item_losses.cross_entropy(states, table, targets).mean()

    def chunked(states, table, targets, items=items):
      return item_losses.chunked_cross_entropy(states, table, targets, jnp.zeros(items),
                                               4096).mean()
    sizes = [jax.jit(jax.grad(f, (0, 1))).lower(*given).compile().memory_analysis()
             .temp_size_in_bytes for f in (dense, chunked)]
    print(f'  {items:,} items: dense {sizes[0] / 2**20:,.0f} MiB, chunks of 4,096 '
          f'{sizes[1] / 2**20:,.0f} MiB, {sizes[0] / sizes[1]:.1f}x less (the table and its '
          f'gradient take {2 * items * 256 / 2**20:,.0f} MiB more)', flush=True)


def evaluate(args):
  """Ranks users of a random model among many items; says seconds, FLOP/s and peak memory."""
  import resource

  from recjax.evaluation import ranking
  items, users = args.items, args.users
  model = seqrec.Config('sasrec', items, 50)
  params = seqrec.init(model, jax.random.key(0))
  rng = np.random.default_rng(0)
  flat = rng.integers(1, items + 1, users * 8).astype(np.int32)
  cases = splits.Cases(np.arange(users, dtype=np.int32),
                       (flat, np.arange(users + 1, dtype=np.int64) * 8),
                       rng.integers(1, items + 1, users).astype(np.int32))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  start = time.perf_counter()
  ranks = ranking.rank_cases(train.scorer(model, params), cases, items)
  seconds = time.perf_counter() - start
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  flops = 2 * users * items * model.width
  print(f'  {users:,} users over {items:,} items in {seconds:.0f} s with compilation, '
        f'{flops / seconds / 1e9:.0f} GFLOP/s; peak memory grew by {(after - before) / 1024:,.0f} '
        f'MiB (table {items * 256 / 2**20:.0f} MiB before, once more as rows 1..N); mean rank '
        f'{ranks.mean():,.0f}', flush=True)


if __name__ == '__main__':
  main()
