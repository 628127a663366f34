"""Sequential recommenders over item ids: SASRec, GRU4Rec, BERT4Rec and HSTU.

Kang and McAuley, ICDM 2018; Hidasi et al., ICLR 2016; Sun et al., CIKM 2019; Zhai et al., ICML
2024. Every other method is compared with these, and some use them as teacher or backbone.

Deliberate differences from the authors' code:
  - users share rows of places ("packing"), so a short history does not pay for a long row;
    positions count from the right, as with padding on the left, and scores do not change;
  - the loss is a mean over all targets of a batch, not over padded places;
  - the epoch that is kept is the best on validation NDCG@10, full ranking; test users are never
    looked at before;
  - HSTU is told when the target will come in a row of its own alone, `clock=target`.
"""
from ml_collections import ConfigDict

from recjax.data import array_record
from recjax.data.loading import load_for_config
from recjax.evaluation import results
from recjax.methods.sequential import (
  evaluate,
  export,
  inference,
  on_disk,
  planning,
  report,
  train,
)
from recjax.run_files import read_json
from recjax.training import continuation
from recjax.training.workdir import Workdir


def run(cfg: ConfigDict, work: Workdir) -> None:
  """The experiment, stage by stage. cfg: the run's config. work: the Workdir."""
  if array_record.is_record_folder(cfg.data):
    return on_disk.run(cfg, work)
  dataset = load_for_config(cfg)
  train.check(cfg, dataset)
  work.log(dataset.summary)
  start, used = train.open_start(cfg, dataset.catalog), continuation.shortened(cfg)
  if start:
    work.log(f'{start.said(dataset.catalog)}; {used.train.epochs} epochs at {used.optim.lr:g}')
  trained = work.stage('train', train.stage, train.settings(used), dataset, *filter(None, [start]))
  evaluated = work.stage('evaluate', evaluate.stage, evaluate.settings(used), dataset, trained)
  work.publish(evaluated, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, dataset, evaluated)
  results.show(work, evaluated)
  sampled = read_json(evaluated / 'results.json').get('sampled')
  if sampled:
    work.log(f'{sampled["protocol"]}: HR@10 {sampled["HR@10"]:.4f}, NDCG@10 '
             f'{sampled["NDCG@10"]:.4f}')


recommender, cost, convert = inference.recommender, planning.cost, export.convert


def validated(cfg: ConfigDict) -> str:
  """The stage whose validation figures tell settings apart, for `recjax sweep`.

  cfg: the run's config.
  """
  return 'train'
