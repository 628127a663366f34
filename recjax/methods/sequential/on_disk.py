"""The experiment on records: users stay on disk, a sample of them is judged."""
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from recjax.data import array_record, splits
from recjax.data.dataset import Dataset
from recjax.errors import ConfigError, DataError
from recjax.evaluation import ranking, results
from recjax.file_io import write_json
from recjax.methods.sequential import evaluate, report, train
from recjax.models import layers
from recjax.training import sequential, sequential_on_disk
from recjax.training.workdir import Workdir

MAX_USERS = 20_000  # users who are judged at most, the same ones for validation and test


def run(cfg: ConfigDict, work: Workdir) -> None:
  """As the method's `run`, with training and memory that do not grow with the users.

  cfg: the run's config. work: the Workdir.
  """
  records = array_record.load(cfg.data)
  check(cfg, records)
  work.log(f'{records.name}: {len(records.catalog):,} items, {len(records):,} users on disk, '
           f'fingerprint {records.fingerprint[:12]}')
  few, drawn = sample(records)
  train.check(cfg, few)
  trained = work.stage('train', stage, train.settings(cfg), records, few)
  evaluated = work.stage('evaluate', evaluate.stage, evaluate.settings(cfg), few, trained, drawn)
  work.publish(evaluated, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, few, evaluated)
  results.show(work, evaluated)


def check(cfg: ConfigDict, records: array_record.Records) -> None:
  """What users on disk cannot do. cfg: the run's config. records: the users. Raises ConfigError."""
  if cfg.seeds != 1:
    raise ConfigError(f'seeds={cfg.seeds}: records are trained on with one seed a run; set '
                      '--config.seeds=1 and give each --config.seed a workdir')
  if cfg.start.run:
    raise ConfigError(f'start.run={cfg.start.run!r}: training on records begins from nothing each '
                      'time; leave --from out, or name a data set that fits into memory')
  if cfg.eval.tie_order != 'file':
    raise ConfigError(f'eval.tie_order={cfg.eval.tie_order!r}: records keep the order of the '
                      'file')
  if cfg.split.kind != 'leave_one_out':
    raise ConfigError(f'split.kind={cfg.split.kind!r} needs all users in memory; records are split '
                      'by leave-one-out')
  if cfg.eval.drop_cold_targets:
    raise ConfigError('eval.drop_cold_targets needs all training users in memory; leave it False')
  sequential_on_disk.batches(cfg, records, 1, 2)


def sample(records: array_record.Records) -> tuple[Dataset, str]:
  """Users to judge, drawn once.

  records: the records. -> Dataset of them, what the protocol says about it
  """
  rows = np.random.default_rng(0).permutation(len(records))[:MAX_USERS]
  few = records.users(np.sort(rows))
  if len(rows) == len(records):
    return few, ''
  return few, (f'; {len(rows):,} users drawn of {len(records):,}, among whom alone popularity, '
               'classical rows and groups are counted')


def stage(work: Workdir, cfg: ConfigDict, records: array_record.Records,
          few: Dataset) -> dict[str, Any]:
  """Trains one seed on all users and keeps the best epoch by validation NDCG@10.

  work: the Workdir. cfg: the run's config. records: the records. few: users of it in memory.
  """
  split = splits.leave_one_out(few.interactions)
  if not len(split.valid):
    raise DataError(f'none of {len(few.interactions):,} users of {records.name} has 3 items')
  n = len(records.catalog)
  model = sequential.model_config(cfg, n)
  validate = ranking.validator(lambda params: sequential.scorer(model, params), split.valid, n, 1,
                            cfg.train.valid_users)
  best, score, epoch = sequential_on_disk.fit_records(work, cfg, records, validate)
  best = jax.tree.map(lambda x: np.asarray(x)[None], best)
  sequential.save(work.folder / 'model.npz', best)
  write_json(work.folder / 'valid.json', {'NDCG@10': [round(float(score), 6)], 'epoch': [epoch]})
  waits = [r['data_wait'] for r in work.metrics() if r['stage'] == 'train' and 'data_wait' in r]
  return {'parameters': f'{layers.count_params(best):,}', 'best_epoch': epoch,
          'valid_NDCG@10': f'{score:.4f}',
          'share_of_time_waiting_for_data': f'{np.median(waits):.1%}'}
