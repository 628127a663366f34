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
"""
from recjax.data.dataset import load_data
from recjax.evaluation import results
from recjax.methods.etegrec import (
  evaluate,
  inference,
  interests,
  item_embeddings,
  report,
  tokenization,
  train,
)


def run(cfg, work):
  """The experiment, stage by stage."""
  train.check(cfg)
  shop = load_data(cfg.data)
  work.say(f'{shop.name}: {len(shop.catalog):,} items, {len(shop.interactions):,} users, '
           f'{len(shop.interactions.items):,} interactions, fingerprint {shop.fingerprint[:12]}')
  made = work.stage('vectors', item_embeddings.stage, item_embeddings.settings(cfg), shop)
  coded = work.stage('tokenizer', tokenization.stage, tokenization.settings(cfg), made,
                     shop.catalog.ids)
  heard = None
  if cfg.fusion != 'none':
    heard = work.stage('interests', interests.stage, interests.settings(cfg), shop)
  model = work.stage('train', train.stage, train.settings(cfg), shop, made, coded, heard)
  if cfg.finetune.epochs:
    model = work.stage('finetune', train.finetune, train.finetune_settings(cfg), shop, made, coded,
                       heard, model)
  found = work.stage('evaluate', evaluate.stage, evaluate.settings(cfg), shop, made, coded, heard,
                     model)
  work.publish(found, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, shop, made, coded, heard, model, found)
  results.show(work, found)


recommender, cost, convert = (
  inference.recommender,
  inference.cost,
  inference.convert,
)


def validated(cfg):
  """The stage whose validation figures tell settings apart, for `recjax sweep`."""
  return 'train'
