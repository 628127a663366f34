"""A training step of HSTU against plain PyTorch: the same weights, users, negatives and loss.

What `benchmarks.sequential --lines=hstu` runs. Published sizes of MovieLens-1M: width 50, two
layers, one head, 200 items a user, 128 users a step, 128 negatives at each position, cosines over
.05. SASRec's file has no times, so a minute to a day is drawn between two items, for both sides.

PyTorch has a padded row for each user, as the published code in its attention, and finds a step's
time buckets once for all layers (the published code does it in each). Negatives are gathered as
published, or picked from the scores of the whole catalog, as recjax does.
"""
import dataclasses
import pathlib
import sys

import jax
import numpy as np

from recjax import experiment
from recjax.data import loading, splits
from recjax.models import hstu, seqrec
from recjax.training import sequential as train

ROOT = pathlib.Path(__file__).parents[1]


def run(args):
  """Checks that losses are equal without dropout, then times the sides in turn."""
  from benchmarks import sequential
  cfg = experiment.read_config(str(ROOT / 'configs' / 'sequential_ml1m.py') + ':paper,model=hstu')
  shop = loading.load_data(args.movielens)
  rng = np.random.default_rng(0)
  data = splits.leave_one_out(shop.interactions).train
  gaps = rng.integers(60, 86_400, len(data.items))
  data = dataclasses.replace(data, times=10**9 + np.cumsum(gaps))
  model = train.model_config(cfg, len(shop.catalog))
  batch = np.asarray(train.sequences(data, model.max_history, True))
  batch = batch[rng.permutation(len(batch) - 1)[:cfg.train.batch]]
  params = seqrec.init(model, jax.random.key(0))
  ours, value = sequential.our_step(cfg, model, params, batch)
  sides = {}
  for name in ('gathered', 'whole catalog'):
    sides[f'torch, {name}'], check = peer_step(cfg, model, params, batch, name)
    if abs(check - value) > 1e-4 * abs(value):
      sys.exit(f'FAIL: the losses are {value:.6f} and {check:.6f} ({name})')
  print(f'  loss {value:.5f}; {int((batch[:, :model.max_history] > 0).sum()):,} tokens in '
        f'{len(batch)} rows of {model.max_history}')
  sequential.versus(args.rounds, {**sides, 'recjax': ours})


def peer_step(cfg, model, params, batch, name):
  """-> (run one step, loss without dropout on the negatives that recjax draws)"""
  import torch
  from torch.nn import functional as F
  size, length = model.width // model.heads, model.max_history
  weights = jax.tree.map(lambda x: torch.tensor(np.array(x), requires_grad=True), params)
  seqs, times = (torch.as_tensor(x.astype(np.int64)) for x in np.split(batch, [length + 1], 1))
  # Padded on the right, as published.
  count = (seqs > 0).sum(1)
  seqs, times = (torch.stack([row.roll(int(n)) for row, n in zip(x, count)]) for x in (seqs, times))
  inputs, goals = torch.where(seqs[:, 1:] > 0, seqs[:, :-1], 0), seqs[:, 1:]
  real = goals > 0
  behind = (torch.arange(length)[:, None] - torch.arange(length)).clamp(min=0)
  mask = torch.ones(length, length).tril().bool() & real[:, None]

  def states(p):
    table = weights['items']
    x = table[inputs] * model.width ** .5 + weights['positions'][:length]
    x = F.dropout(x, p) * real[..., None]
    gaps = (times[:, 1:, None] - times[:, None, :-1]).abs().clamp(min=1)
    buckets = (gaps.double().log() / .301).long().clamp(max=hstu.NUM_BUCKETS - 1)
    for layer in range(model.layers):
      w = weights[f'block_{layer}']
      u, v, q, k = F.silu(F.layer_norm(x, x.shape[-1:], eps=1e-6) @ w['uvqk']).chunk(4, -1)
      q, k, v = (y.reshape(*y.shape[:2], model.heads, size).transpose(1, 2) for y in (q, k, v))
      bias = w['behind'][behind] + w['time'].index_select(0, buckets.reshape(-1)).reshape(
          buckets.shape)
      scores = q @ k.transpose(2, 3) + bias[:, None]
      y = (F.silu(scores) / model.num_slots * mask[:, None]) @ v
      y = F.layer_norm(y.transpose(1, 2).reshape(x.shape), x.shape[-1:], eps=1e-6)
      x = (x + F.dropout(u * y, p) @ w['out']['kernel'] + w['out']['bias']) * real[..., None]
    return F.normalize(x[real], dim=-1, eps=1e-6)

  def loss(p, drawn=None):
    h, goal = states(p), goals[real] - 1
    if drawn is None:
      drawn = torch.randint(0, model.items, (len(h), cfg.loss.negatives))
    table = F.normalize(weights['items'][1:model.items + 1], dim=-1, eps=1e-6)
    if name == 'gathered':
      up, down = (h * table[goal]).sum(-1), torch.einsum('td,tkd->tk', h, table[drawn])
    else:
      every = h @ table.T
      up, down = every.gather(1, goal[:, None])[:, 0], every.gather(1, drawn)
    down = torch.where(drawn == goal[:, None], -5e4, down / model.temperature)
    return F.cross_entropy(torch.cat([up[:, None] / model.temperature, down], 1),
                           torch.zeros(len(h), dtype=torch.long))

  targets = -(-int(real.sum()) // 128) * 128
  draw = jax.random.split(jax.random.key(1), 3)[2]  # as `loss_of` parts the key
  drawn = train.negatives(cfg.loss, model.items, targets, len(batch), draw)
  drawn = torch.as_tensor(np.array(drawn[:int(real.sum())], np.int64))
  value = float(loss(0.0, drawn).detach())
  adam = torch.optim.AdamW(jax.tree.leaves(weights), lr=cfg.optim.lr, betas=(.9, .98),
                           weight_decay=0)

  def run():
    adam.zero_grad()
    loss(model.dropout).backward()
    adam.step()
  run()
  return run, value
