"""Training seconds to a published NDCG@10: SASRec with the full softmax, ours and RecBole's.

The line `quality` of benchmarks.sequential. Both sides have the same sizes, dropout, rate and batch
of 256, the same users, and are judged by the same full ranking after each epoch; what judging
takes is not counted, compilation is. RecBole trains as it does: each prefix of a history is a
sample with one target, so an epoch has a step for every 256 targets instead of every 256 users.
"""
import sys
import tempfile
import time

import jax
import numpy as np

from recjax.data import dataset, splits
from recjax.evaluation import metrics, ranking
from recjax.training import sequential
from recjax.training import workdir as workdir_lib

TARGET = .0539  # NDCG@10 of SASRec with the full softmax on Beauty (Haneol99/semantic-id-recsys)


class Curve:
  """NDCG@10 of validation and test users over seconds of training alone; ends after `minutes`."""

  def __init__(self, name, split, items, minutes):
    self.name, self.split, self.items, self.minutes = name, split, items, minutes
    self.points, self.spent, self.begun = [], 0.0, time.perf_counter()

  def judge(self, score):
    """Judges an epoch. -> NDCG@10 of validation users. Raises StopIteration when time is up."""
    self.spent += time.perf_counter() - self.begun
    found = [float(metrics.per_case(ranking.rank_cases(score, cases, self.items), (10,))[
        'NDCG@10'].mean()) for cases in (self.split.valid, self.split.test)]
    self.points.append((self.spent, *found))
    print(f'  {self.name}, epoch {len(self.points)}: {self.spent:.0f} s, validation '
          f'{found[0]:.4f}, test {found[1]:.4f}', flush=True)
    if self.spent > 60 * self.minutes:
      raise StopIteration
    self.begun = time.perf_counter()
    return found[0]

  def reached(self):
    """The first seconds at which test users had TARGET, or None."""
    return next((seconds for seconds, _, test in self.points if test >= TARGET), None)


def run(args):
  from benchmarks.sequential import config
  cfg = config('ce')
  cfg.seeds, cfg.eval.memory = 1, 256
  shop = dataset.load_data(args.data)
  split, items = splits.leave_one_out(shop.interactions), len(shop.catalog)
  sides = [Curve(name, split, items, args.minutes) for name in ('recjax', 'RecBole')]
  for side, train in zip(sides, (ours, recbole)):
    side.begun = time.perf_counter()
    try:
      train(cfg, side, args)
    except StopIteration:
      print(f'  {side.name} stopped after {args.minutes:g} minutes', flush=True)
  for side in sides:
    best = max(side.points, key=lambda point: point[1])
    when = side.reached()
    print(f'  {side.name:8} test NDCG@10 {TARGET} '
          + (f'after {when:.0f} s' if when else f'not reached in {side.spent:.0f} s')
          + f'; best epoch by validation: {best[1]:.4f}, test {best[2]:.4f}, at {best[0]:.0f} s')
  one, two = (side.reached() for side in sides)
  if one:
    print(f'  ratio {(two or sides[1].spent) / one:.1f}x{"" if two else " at least"}', flush=True)


def ours(cfg, curve, _):
  """The training of the paper preset, one seed, until its patience or the time ends."""
  model = sequential.model_config(cfg, curve.items)

  def judge(params):
    return [curve.judge(sequential.scorer(model, jax.tree.map(lambda x: x[0], params)))]
  mesh = jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'model'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with tempfile.TemporaryDirectory() as folder, workdir_lib.open_work(folder, {}, mesh) as work:
    work.current = 'train'
    curve.begun = time.perf_counter()
    sequential.fit(work, cfg, curve.items, curve.split.train, judge)


def recbole(cfg, curve, args):
  """RecBole's model over its own samples, with Adam, until the same patience or the time ends."""
  import torch
  torch.manual_seed(0)
  model = sequential.model_config(cfg, curve.items)
  net = recbole_model(args.recbole, model)
  adam = torch.optim.Adam(net.parameters(), lr=cfg.optim.lr)
  rows, goals = prefixes(curve.split.train, model.max_history)
  rng = np.random.default_rng(0)

  def score(items, offsets):
    net.eval()
    with torch.no_grad():
      known = recbole_input(sequential.padded(model, items, offsets))
      return net.full_sort_predict(known).numpy()[:, 1:]
  best = (0.0, 0)
  for epoch in range(cfg.train.epochs):
    order = rng.permutation(len(rows))
    net.train()
    for start in range(0, len(rows), cfg.train.batch):
      some = order[start:start + cfg.train.batch]
      known = recbole_input(rows[some])
      known['item'] = torch.as_tensor(goals[some].astype(np.int64))
      adam.zero_grad()
      net.calculate_loss(known).backward()
      adam.step()
      if time.perf_counter() - curve.begun + curve.spent > 60 * curve.minutes:
        break
    best = max(best, (curve.judge(score), epoch))
    if epoch - best[1] >= cfg.train.patience:
      return


def prefixes(train, length):
  """Every prefix with the item after it. -> (M, length) padded on the left, (M,)"""
  lengths = train.lengths()
  ends = np.concatenate([np.arange(1, n) + start for start, n in zip(train.offsets, lengths)])
  first = np.repeat(train.offsets[:-1], np.maximum(lengths - 1, 0))
  at = ends[:, None] - np.arange(length, 0, -1)
  rows = np.where(at >= first[:, None], train.items[np.maximum(at, 0)], 0)
  return rows, train.items[ends]


def recbole_model(where, model):
  """RecBole's SASRec with the sizes of a seqrec.Config."""
  if where and where not in sys.path:
    sys.path.append(where)
  from recbole.model.sequential_recommender.sasrec import SASRec

  class Sizes:
    def num(self, _):
      return model.items + 1
  return SASRec({
      'USER_ID_FIELD': 'user', 'ITEM_ID_FIELD': 'item', 'LIST_SUFFIX': '_list',
      'ITEM_LIST_LENGTH_FIELD': 'length', 'NEG_PREFIX': 'neg_',
      'MAX_ITEM_LIST_LENGTH': model.max_history, 'device': 'cpu', 'n_layers': model.layers,
      'n_heads': model.heads, 'hidden_act': 'relu', 'hidden_size': model.width,
      'inner_size': model.hidden, 'hidden_dropout_prob': model.dropout,
      'attn_dropout_prob': model.dropout, 'layer_norm_eps': 1e-12, 'initializer_range': .02,
      'loss_type': 'CE'}, Sizes())


def recbole_input(rows):
  """Histories padded on the left, as RecBole takes them: on the right. rows: (B, W) -> dict"""
  import torch
  lengths = (rows > 0).sum(1)
  at = np.arange(rows.shape[1])[None] + rows.shape[1] - lengths[:, None]
  right = np.where(at < rows.shape[1], np.take_along_axis(
      rows, np.minimum(at, rows.shape[1] - 1), 1), 0)
  return {'item_list': torch.as_tensor(right.astype(np.int64)),
          'length': torch.as_tensor(np.maximum(lengths, 1))}
