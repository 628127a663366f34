"""Sequential recommenders over item ids: SASRec, GRU4Rec and BERT4Rec (sequential.md).

Kang and McAuley, ICDM 2018; Hidasi et al., ICLR 2016; Sun et al., CIKM 2019. Every other method is
compared with these, and some use them as teacher or backbone.

Deliberate differences from the authors' code:
  - users share rows of places ("packing"), so a short history does not pay for a long row;
    positions count from the right, as with padding on the left, and scores do not change;
  - the loss is a mean over all targets of a batch, not over padded places;
  - the epoch that is kept is the best on validation NDCG@10, full ranking; test users are never
    looked at before.
"""
from recjax.data import array_record
from recjax.data.dataset import load_data
from recjax.evaluation import results
from recjax.methods.sequential import evaluate, report, streaming, train
from recjax.run_files import read_json


def run(cfg, work):
  """The experiment, stage by stage."""
  if array_record.found(cfg.data):
    return streaming.run(cfg, work)
  shop = load_data(cfg.data, cfg.eval.tie_order)
  train.check(cfg, shop)
  work.say(f'{shop.name}: {len(shop.catalog):,} items, {len(shop.interactions):,} users, '
           f'{len(shop.interactions.items):,} interactions, fingerprint {shop.fingerprint[:12]}')
  made = work.stage('train', train.stage, train.settings(cfg), shop)
  found = work.stage('evaluate', evaluate.stage, evaluate.settings(cfg), shop, made)
  work.publish(found, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, shop, found)
  results.show(work, found)
  few = read_json(found / 'results.json').get('sampled')
  if few:
    work.say(f'{few["protocol"]}: HR@10 {few["HR@10"]:.4f}, NDCG@10 {few["NDCG@10"]:.4f}')


recommender, cost, convert = evaluate.recommender, evaluate.cost, evaluate.convert


def validated(cfg):
  """The stage whose validation figures tell settings apart, for `recjax sweep`."""
  return 'train'
