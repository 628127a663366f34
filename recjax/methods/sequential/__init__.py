"""Sequential recommenders over item ids: SASRec, GRU4Rec and BERT4Rec.

Kang and McAuley, ICDM 2018; Hidasi et al., ICLR 2016; Sun et al., CIKM 2019. Every other method is
compared with these, and some use them as teacher or backbone.

Deliberate differences from the authors' code:
  - users share rows of places ("packing"), so a short history does not pay for a long row;
    positions count from the right, as with padding on the left, and scores do not change;
  - the loss is a mean over all targets of a batch, not over padded places;
  - the epoch that is kept is the best on validation NDCG@10, full ranking; test users are never
    looked at before.
"""
from ml_collections import ConfigDict

from recjax.data import array_record
from recjax.data.dataset import load_data
from recjax.evaluation import results
from recjax.methods.sequential import evaluate, report, streaming, train
from recjax.run_files import read_json
from recjax.training.workdir import Workdir


def run(cfg: ConfigDict, work: Workdir) -> None:
  """The experiment, stage by stage."""
  if array_record.found(cfg.data):
    return streaming.run(cfg, work)
  shop = load_data(cfg.data, cfg.eval.tie_order)
  train.check(cfg, shop)
  work.say(f'{shop.name}: {len(shop.catalog):,} items, {len(shop.interactions):,} users, '
           f'{len(shop.interactions.items):,} interactions, fingerprint {shop.fingerprint[:12]}')
  trained = work.stage('train', train.stage, train.settings(cfg), shop)
  evaluated = work.stage('evaluate', evaluate.stage, evaluate.settings(cfg), shop, trained)
  work.publish(evaluated, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, shop, evaluated)
  results.show(work, evaluated)
  sampled = read_json(evaluated / 'results.json').get('sampled')
  if sampled:
    work.say(f'{sampled["protocol"]}: HR@10 {sampled["HR@10"]:.4f}, NDCG@10 '
             f'{sampled["NDCG@10"]:.4f}')


recommender, cost, convert = evaluate.recommender, evaluate.cost, evaluate.convert


def validated(cfg: ConfigDict) -> str:
  """The stage whose validation figures tell settings apart, for `recjax sweep`."""
  return 'train'
