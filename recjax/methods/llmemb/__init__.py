"""LLMEmb: a language model as the generator of item embeddings for sequential recommenders.

Liu et al., AAAI 2025, arXiv 2409.19925. Embeddings of item ids say little about items that few
people met. Here an LLM reads an item's attributes; contrastive fine-tuning (SCFT) teaches it that
two views of an item, each without some attributes, are the same item. Its vectors are reduced by
PCA, and a small adapter turns them into the item table of a recommender, which is trained while its
vectors are drawn towards those that ids alone gave (RAT). No LLM runs when recommending.

Deliberate differences from the authors' code (docs/llmemb.md lists them one by one, and
`profile=faithful` takes back those that change results):
  - cosine InfoNCE with negatives from all devices, views drawn anew in every epoch;
  - the adapter runs once a step over the distinct items of a batch, not over every position;
  - alignment compares distinct items; recommenders see no padding and no later item;
  - the epoch that is kept is the best on validation NDCG@10 of full ranking.
"""
from recjax.data.loading import load_data
from recjax.evaluation import results
from recjax.methods.llmemb import (
  evaluate,
  item_embeddings,
  planning,
  prompts,
  rat,
  report,
  scft,
  variants,
)


def run(cfg, work):
  """The experiment, stage by stage."""
  variants.check(cfg)
  shop = load_data(cfg.data)
  work.say(f'{shop.name}: {len(shop.catalog):,} items, {len(shop.interactions):,} users, '
           f'{len(shop.interactions.items):,} interactions, fingerprint {shop.fingerprint[:12]}')
  rat.check(cfg, len(shop.catalog))
  texts = work.stage('prompts', prompts.stage, prompts.settings(cfg), shop)
  llm = variants.llm_folder(cfg, work, texts)
  tables = {source: embeddings(cfg, work, texts, llm, source) for source in variants.sources(cfg)}
  ids = {kind: work.stage(f'ids-{kind}', rat.ids_stage, rat.id_settings(cfg, kind), shop)
         for kind in variants.id_models(cfg)}
  made = {variant: work.stage(f'rat-{variant}', rat.stage, rat.settings(cfg, variant), shop,
                              tables[variants.source(cfg, variant)], ids[variants.aligned_to(cfg)])
          for variant in variants.variants(cfg)}
  found = work.stage('evaluate', evaluate.stage, evaluate.settings(cfg), shop, tables, ids, made)
  work.publish(found, 'results.json', 'ranks.parquet', 'predictions.parquet')
  report.write(cfg, work, shop, tables, ids, made, found)
  results.show(work, found)
  evaluate.show(work, found)


def embeddings(cfg, work, texts, llm, source):
  """One table of item vectors, through its own stages. -> folder with table.npy"""
  if source == 'file':
    return work.stage(
      'pca-file', item_embeddings.reduce_file, item_embeddings.file_settings(cfg), texts
    )
  if source == 'text':
    raw = work.stage(
      'export-text',
      item_embeddings.stage,
      item_embeddings.settings(cfg, source),
      texts,
      variants.text_folder(cfg),
      None,
      shared=True,
    )
  else:
    tuned = (
      None
      if source == 'plain'
      else work.stage(f'scft-{source}', scft.stage, scft.settings(cfg, source), texts, llm)
    )
    raw = work.stage(
      f'export-{source}',
      item_embeddings.stage,
      item_embeddings.settings(cfg, source),
      texts,
      llm,
      tuned,
      shared=True,
    )
  return work.stage(f'pca-{source}', item_embeddings.reduce, cfg.pca, raw)


SHARED = ('export',)  # stages made of shards, which parts of a run divide
recommender, convert = evaluate.recommender, planning.convert


def cost(cfg, shop):
  """What a run would take, before it runs. -> {what: text}"""
  return planning.cost(cfg, shop) | rat.cost(cfg, shop)


def validated(cfg):
  """The stage whose validation figures tell settings apart, for `recjax sweep`."""
  return f'rat-{cfg.rat.variant}'
