"""Semantic IDs: TIGER, and ETEGRec, which learns IDs and recommender together; with interests.

Rajput et al., NeurIPS 2023 (TIGER); Liu et al., SIGIR 2025, arXiv 2409.05546 (ETEGRec). An item is
a few codes, made of its vector by a tokenizer (RQ-VAE, residual k-means and others). A T5 reads the
codes of a history and writes those of the next item; beams run over real items alone. ETEGRec
trains the tokenizer too, in turn with the recommender, held together by two alignment losses.
Interests of a user, short texts, may be read beside the history.

Deliberate differences from the authors' code (docs/etegrec.md):
  - interests reach the logits (`fusion=encoder`, `prefix`); as released (`pooled`) they cannot;
  - beams are real items; free ones are judged beside them and their invalid share is reported;
  - rows of a step share a shape by bins of lengths; histories are cut to `model.max_history` items;
  - learning rates fall to 0 over the steps that really run;
  - the distances of SIA are negated, as the paper has it (`align.sign=pos` for the released form).

In all files `work` is the run's Workdir, `cfg` its config or the part that a stage's `settings`
takes of it, `dataset` users and items, `X_dir` the folder that stage X left, `outcome` what
results.json holds and `row` a name of its rows. Items are indices 1..N, 0 is none.
"""
from ml_collections import ConfigDict

from recjax.data.loading import load_for_config
from recjax.evaluation import results
from recjax.methods.etegrec import (
  evaluate,
  export,
  inference,
  interests,
  item_embeddings,
  planning,
  policy,
  report,
  tokenization,
  train,
  update,
)
from recjax.training.workdir import Workdir


def run(cfg: ConfigDict, work: Workdir) -> None:
  """The experiment, stage by stage. cfg, work: of the run."""
  train.check(cfg)
  dataset = load_for_config(cfg)
  work.log(dataset.summary)
  start = train.open_start(cfg, dataset.catalog)
  cfg, began = train.shortened(cfg), [start] if start else []
  if start:
    work.log(f'{start.said(dataset.catalog)}; {cfg.train.epochs} epochs at {cfg.optim.lr:g}')
  vectors_dir = work.stage(
    'vectors', item_embeddings.stage, item_embeddings.settings(cfg), dataset, *began)
  ids_dir = work.stage(
    'tokenizer', update.carry_ids if start else tokenization.stage, tokenization.settings(cfg),
    vectors_dir, dataset.catalog.ids, *began)
  interests_dir = None
  if cfg.fusion != 'none':
    interests_dir = interests.make(cfg, work, dataset)
  model_dir = work.stage(
    'train', train.stage, train.settings(cfg), dataset, vectors_dir, ids_dir, interests_dir,
    *began)
  if cfg.finetune.epochs:
    model_dir = work.stage(
      'finetune', train.finetune, train.finetune_settings(cfg), dataset, vectors_dir, ids_dir,
      interests_dir, model_dir)
  before_dir = model_dir
  if cfg.policy.loss != 'none':
    model_dir = work.stage(
      'policy', policy.stage, policy.settings(cfg), dataset, vectors_dir, ids_dir, interests_dir,
      model_dir)
  results_dir = work.stage(
    'evaluate', evaluate.stage, evaluate.settings(cfg), dataset, vectors_dir, ids_dir,
    interests_dir, model_dir, before_dir if before_dir != model_dir else None)
  work.publish(results_dir, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, dataset, vectors_dir, ids_dir, interests_dir, model_dir, results_dir)
  results.show(work, results_dir)


recommender, cost, convert = inference.recommender, planning.cost, export.convert


def validated(cfg: ConfigDict) -> str:
  """The stage whose validation figures tell settings apart, for `recjax sweep`. cfg: the run's
  config."""
  return 'train' if cfg.policy.loss == 'none' else 'policy'
